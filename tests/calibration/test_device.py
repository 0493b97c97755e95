"""Calibrated on a device that is not there: what lies where, and that nothing else differs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended import a_device

import spqfmt
from spqfmt.errors import BackendError, OptionError
from spqfmt.kernels.cuda_device import own_device

METHODS: dict[str, dict[str, Any]] = {
    "ecq": {"method": "ecq", "bits": 3, "effort": "best", "trellis": True},
    "gptq": {"method": "gptq", "bits": 4},
    "dc": {"method": "dc", "sparsity": 0.2},
    "jsq": {"method": "jsq", "search_steps": 1, "search_samples": 1},
    "llm_int8": {"method": "llm_int8", "threshold": 1.5},
    "sparsegpt": {"method": "sparsegpt", "pattern": "4:8"},
}
SMALL: dict[str, Any] = {"samples": 2, "seq_len": 16}


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spqfmt.calibration.engine.require_cuda", lambda device: None)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")


def test_the_pretended_device_is_apart() -> None:
    with a_device():
        x = torch.ones(2, 2).to("cuda")
        assert x.device.type == (x @ x).device.type == torch.zeros(2, device="cuda").device.type == "cuda"
        assert torch.equal((x @ x).cpu(), torch.full((2, 2), 2.0))
        with pytest.raises(RuntimeError, match="processor"):
            x @ torch.ones(2, 2)
        with pytest.raises(TypeError):
            x.numpy()


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("method", METHODS)
def test_a_device_changes_where_and_not_what(
    method: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    options = METHODS[method] | SMALL
    spqfmt.pack(tiny_folder("llama"), tmp_path / "here.spq", **options)
    with a_device() as n_calls:
        spqfmt.pack(tiny_folder("llama"), tmp_path / "there.spq", **options, device="cuda")
    assert n_calls["scaled_dot_product_attention"]
    assert (tmp_path / "there.spq").read_bytes() == (tmp_path / "here.spq").read_bytes()


def test_processes_of_one_machine_take_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert own_device("cuda") == torch.device("cuda")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    assert [own_device(name) for name in ("cpu", "cuda:0", "cuda")] == [
        torch.device(name) for name in ("cpu", "cuda:0", "cuda:1")
    ]
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert own_device("cuda") == torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert own_device("cuda") == torch.device("cuda")  # which is refused as it is without torchrun


def test_devices_that_cannot_be_are_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "o.spq"
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="device 'cuda' cannot be used"):
            spqfmt.pack(tiny_folder("llama"), out, method="gptq", device="cuda", **SMALL)
    with pytest.raises(OptionError, match="device"):
        spqfmt.pack(tiny_folder("llama"), out, method="gptq", device="tpu", **SMALL)
    with pytest.raises(OptionError, match="device 'cuda:128' is not"):  # torch takes it for -128
        spqfmt.pack(tiny_folder("llama"), out, method="gptq", device="cuda:128", **SMALL)
    with pytest.raises(OptionError, match="rtn needs no calibration"):
        spqfmt.pack(tiny_folder("llama"), out, method="rtn", bits=4, device="cuda")
    assert not out.exists()
