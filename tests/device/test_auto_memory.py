"""The ceiling "auto": what is free less what comes on top, on devices and the host; what is said where it ran out."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers
from device_support import RATES

import spqfmt
from spqfmt.errors import MemoryBudgetError, OptionError, SpqError
from spqfmt.loaders.auto_memory import RESERVED_BYTES, peak_of_device, told_of_tokens
from spqfmt.loaders.device import SimulatedDevice
from spqfmt.loaders.estimate import estimate
from spqfmt.loaders.model import load_onto
from spqfmt.loaders.packed.options import TOKENS, packing_options
from spqfmt.loaders.plan import plan_for_device
from spqfmt.residency.available import available_bytes

TOKENS_ASKED = 64


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto") / "llama"
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**tiny._LLAMA)
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    spqfmt.pack(folder, folder / "m.spq", method="rtn")
    return folder / "m.spq"


def on_top(path: Path, n_tokens: int = TOKENS_ASKED) -> int:
    config = transformers.AutoConfig.from_pretrained(path.parent)
    found = estimate(config, torch.bfloat16, n_tokens, 1)
    return found.kv_cache_bytes + found.activation_bytes


def load(path: Path, free: int | None, **options: Any) -> Any:
    """The model on a device with so much free memory."""
    wanted = packing_options(path, "cuda", "auto", None, None, n_tokens=TOKENS_ASKED)
    device = SimulatedDevice(RATES, capacity_bytes=free)
    return load_onto(path, device.torch_device, device, wanted, dtype="bfloat16", **options)[0]


def test_the_ceiling_is_what_is_free_less_what_comes_on_top(path: Path, small_parts: None) -> None:
    kept = RESERVED_BYTES + on_top(path)
    plan = plan_for_device(path, dtype="bfloat16", rates=RATES).plan
    for free, streams in ((plan.smallest_bytes + kept, True), (4 * plan.decoded_bytes + 2 * kept, False)):
        model = load(path, free)
        engine = model.packed_weights
        assert engine.plan.memory_bytes == free - kept
        assert engine.plan.held_bytes <= free - kept
        assert engine.plan.is_streamed is streams
        engine.close()


def test_less_than_the_weights_need_says_what_is_free_and_what_to_give(path: Path) -> None:
    smallest = plan_for_device(path, dtype="bfloat16", rates=RATES).plan.smallest_bytes
    free = RESERVED_BYTES + on_top(path) + smallest - 4096
    with pytest.raises(MemoryBudgetError, match=r"^cpu has [\d.]+ MiB free; of it .* 64 tokens") as caught:
        load(path, free)
    assert f"give memory {-(-smallest * 10 // 2**20) / 10:.1f}MiB" in str(caught.value)
    assert caught.value.smallest_bytes == smallest


def test_more_tokens_leave_less_for_weights_and_nobody_knows_is_said(path: Path) -> None:
    assert on_top(path, 4096) > on_top(path, 64) > 0
    with pytest.raises(SpqError, match="memory auto: what is free on cpu is not known here; give a size"):
        load(path, None)


def test_it_is_the_default_of_commands_on_a_gpu_and_a_choice_elsewhere(path: Path) -> None:
    found = packing_options(path, "cuda", None, "auto", None)
    assert found is not None
    assert (found.auto_tokens, found.memory_bytes, found.is_optional) == (TOKENS, None, True)
    assert packing_options(path, "cuda", None, None, None) is None
    on_cpu = packing_options(path, "cpu", "auto", None, None, n_tokens=7)
    assert on_cpu is not None
    assert on_cpu.auto_tokens == 7
    assert replace(on_cpu, auto_tokens=0).memory_bytes is None
    for memory, n_tokens in (("1GiB", 7), (None, 7), ("auto", 0), ("auto", True)):
        with pytest.raises(OptionError, match="n_tokens is a number of tokens"):
            packing_options(path, "cpu", memory, None, None, n_tokens=n_tokens)


def test_it_is_the_default_of_load_model_on_a_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `load_model` asks for; then the same on a simulated device, whose tensors are the host's."""
    asked: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        "spqfmt.loaders.model.open_device", lambda where, *, packed: f"opened {where}" if packed else None
    )
    monkeypatch.setattr(
        "spqfmt.loaders.model.load_onto",
        lambda path, where, target, wanted, **_: asked.append((target, wanted)) or (None, None),
    )
    for options in ({}, {"n_tokens": 9}, {"host_memory": "1GiB"}, {"packed": False}, {"memory": "1GiB"}):
        spqfmt.load_model(path, device="cuda", **options)
    spqfmt.load_model(path.parent, device="cuda")  # a source has no codes
    (_, plain), (_, nine), (_, host), decoded, (_, given), source = asked
    assert [w.auto_tokens for w in (plain, nine, host, given)] == [TOKENS, 9, TOKENS, 0]
    assert asked[0][0] == "opened cuda"
    assert (host.host_memory_bytes, given.memory_bytes) == (1 << 30, 1 << 30)
    assert decoded == source == (None, None)
    monkeypatch.undo()
    free = RESERVED_BYTES + on_top(path, TOKENS) + (64 << 20)
    device = SimulatedDevice(RATES, capacity_bytes=free)
    model, _ = load_onto(path, device.torch_device, device, plain, dtype="bfloat16")
    assert model.packed_weights.plan.memory_bytes == free - RESERVED_BYTES - on_top(path, TOKENS)
    model.packed_weights.close()


def test_a_dtype_that_packed_weights_have_not_is_given_ordinary_parameters(path: Path) -> None:
    closed: list[bool] = []
    device = SimulatedDevice(RATES, capacity_bytes=1)
    device.close = lambda: closed.append(True)  # type: ignore[method-assign]
    wanted = packing_options(path, "cuda", None, "auto", None)
    model, _ = load_onto(path, torch.device("meta"), device, wanted, dtype="float64")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert not hasattr(model, "packed_weights")
    assert closed
    with pytest.raises(OptionError, match="packed weights compute in"):
        load_onto(
            path,
            torch.device("meta"),
            device,
            packing_options(path, "cuda", "auto", None, None),
            dtype="float64",
        )


def test_on_the_host_a_part_of_what_is_free_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1 << 30
    monkeypatch.setattr("spqfmt.residency.available.available_bytes", lambda: free)
    model, _ = spqfmt.load_model(path, dtype="bfloat16", memory="auto", n_tokens=TOKENS_ASKED)
    assert model.packed_weights.plan.memory_bytes == free - free // 16 - on_top(path)
    assert peak_of_device(model) is None
    model.packed_weights.close()


def test_what_is_free_is_the_less_of_the_machine_and_the_group() -> None:
    files = {"/proc/meminfo": "MemTotal:  100 kB\nMemAvailable:    64 kB\n"}
    assert available_bytes(files.get) == 64 << 10
    limit, now = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"
    assert available_bytes({**files, limit: "max\n", now: "5\n"}.get) == 64 << 10
    assert available_bytes({**files, limit: "5000\n", now: "900\n"}.get) == 4100
    assert available_bytes({**files, limit: "5\n", now: "900\n"}.get) == 0
    assert available_bytes({}.get) is None


def test_a_device_that_runs_out_beside_the_weights_says_what_to_give() -> None:
    device = SimulatedDevice(RATES, capacity_bytes=1 << 20)
    model = SimpleNamespace(packed_weights=SimpleNamespace(device=device, held_bytes=5 << 30))
    message = (
        r"^cpu ran out of memory beside the weights, .* 5120\.0 MiB; 1\.0 MiB are free: give .* 4096\.0MiB"
    )
    with pytest.raises(MemoryBudgetError, match=message), told_of_tokens(model):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    with pytest.raises(RuntimeError, match="another"), told_of_tokens(model):
        raise RuntimeError("another")
    with pytest.raises(torch.OutOfMemoryError), told_of_tokens(SimpleNamespace()):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
