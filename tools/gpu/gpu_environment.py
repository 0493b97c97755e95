"""What a section of tools/gpu/gpu_check.py runs in: versions, the device and its memory as the driver tells them."""

import platform
from functools import partial
from importlib import metadata

import torch
from gpu_lines import NotHereError, Options
from gpu_machine import Check, open_check
from gpu_report import NOT_A_GPU

_PACKAGES = ("torch", "triton", "transformers", "nvidia-nvcomp-cu12", "nvidia-nvcomp-cu13", "bitsandbytes")


def environment(options: Options) -> None:
    """Rows that cannot be wrong, each a case of its own."""
    check = open_check(options)
    check.case("device", lambda: _device(check))
    check.add("python", note=f"{platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        check.case(package, partial(_version, check, package))
    if check.on_gpu:
        check.case("memory by the driver", lambda: _memory(check))


def _device(check: Check) -> None:
    name, note = NOT_A_GPU, ""
    if check.on_gpu:
        properties = torch.cuda.get_device_properties(check.device)
        name = properties.name
        note = (
            f"sm_{properties.major}{properties.minor}, {properties.multi_processor_count} multiprocessors, "
            f"CUDA {torch.version.cuda}"
        )
    check.figure("device", name)
    check.figure("on_gpu", check.on_gpu)
    check.figure("kernels", check.kernels.name)
    check.add("device", note=f"{name}{', ' * bool(note)}{note}")


def _version(check: Check, package: str) -> None:
    try:
        check.add(package, note=metadata.version(package))
    except metadata.PackageNotFoundError as error:
        raise NotHereError("not installed") from error


def _memory(check: Check) -> None:
    free, total = torch.cuda.mem_get_info(check.device)
    check.add("memory by the driver", free / 2**20, "MiB free", note=f"of {total / 2**20:.0f} MiB")
