"""The same bytes whatever the number of threads, torch's and the encoder's (decision 0017 says how far that goes)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from calibration_models import TEXT, tiny

import spqfmt
from spqfmt.codecs.threads import jobs
from spqfmt.quantize.feedback import factorize


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model large enough that torch shares its work among threads."""
    folder = tmp_path_factory.mktemp("wide")
    config = transformers.LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=96,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tiny.byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"method": "gptq", "bits": 4, "group_size": 32},
        {"method": "spqr", "bits": 3},
        {"method": "dc", "sparsity": 0.2},
        {"method": "jsq", "search_steps": 1, "search_samples": 1},
    ],
    ids=lambda options: options["method"],
)
def test_the_file_does_not_depend_on_threads(options: dict[str, Any], wide: Path, tmp_path: Path) -> None:
    made = []
    for n_threads, n_jobs in ((1, 1), (2, 2), (1, 2)):
        torch.set_num_threads(n_threads)
        with jobs(n_jobs):
            out = tmp_path / "m.spq"
            spqfmt.pack(wide, out, samples=4, seq_len=128, calibration=TEXT, force=True, **options)
        made.append(out.read_bytes())
    assert made[0] == made[1]
    assert made[0] == made[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("columns", [128, 600, 1100])
def test_a_factor_does_not_depend_on_threads(columns: int, dtype: torch.dtype) -> None:
    inputs = torch.randn(2 * columns, columns, generator=torch.Generator().manual_seed(0))
    hessian = inputs.t() @ inputs
    factors = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        factors.append(factorize(hessian, 0.01, act_order=True, dtype=dtype).upper)
    assert torch.equal(factors[0], factors[1])
    assert torch.equal(factors[0], factors[2])
    order = torch.argsort(hessian.double().diagonal(), descending=True, stable=True)
    damped = hessian.double()[order][:, order]
    damped.diagonal().add_(0.01 * float(damped.diagonal().mean()))
    identity = factors[0].double().t() @ factors[0].double() @ damped
    assert torch.allclose(identity, torch.eye(columns, dtype=torch.float64), atol=1e-4)
