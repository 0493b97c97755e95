"""The kernels of spqfmt/kernels/cuda on the CPU: compiled against the emulator of tools/gpu/warp, as a driver."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spqfmt.kernels.cuda.driver import Launch

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas", "-DEMULATED", "-shared", "-fPIC")


def compiler() -> str | None:
    """The compiler of C++ that is here."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


class EmulatedDriver:
    """Runs kernels at once. `seed` chooses the order of lanes; a fault of the emulator is RuntimeError."""

    def __init__(self, folder: Path) -> None:
        path = folder / "fused.so"
        found = compiler()
        assert found is not None
        source = ROOT / "tools" / "gpu" / "warp"
        subprocess.run(
            [found, *FLAGS, f"-I{source}", "-o", str(path), str(source / "fused.cpp")],
            check=True,
            timeout=300,
        )
        self._library: Any = ctypes.CDLL(str(path))
        self._library.launch.restype = ctypes.c_char_p
        self._library.launch.argtypes = [ctypes.c_char_p, *[ctypes.c_uint] * 3, ctypes.c_void_p]
        self._library.give_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.seed = 1
        self.launched: list[str] = []

    def give(self, tensors: Sequence[torch.Tensor | None]) -> None:
        """Let kernels touch these and nothing else."""
        self._given = [tensor for tensor in tensors if tensor is not None]
        for number, tensor in enumerate(self._given):
            self._library.give_memory(tensor.data_ptr(), tensor.nbytes, number == 0)

    def give_all(self) -> None:
        """Let kernels touch whatever there is."""
        self._library.give_memory(0, (1 << 63) - 1, True)

    def run(self, name: str, programs: int, threads: int, address: int | None) -> None:
        """Launch a kernel with the arguments at an address."""
        self.launched.append(name)
        error = self._library.launch(name.encode(), programs, threads, self.seed, address)
        if error is not None:
            raise RuntimeError(error.decode())

    def prepare(self, name: str, programs: int, threads: int, arguments: ctypes.Structure) -> Launch:
        """Driver.prepare."""
        return lambda: self.run(name, programs, threads, ctypes.addressof(arguments))
