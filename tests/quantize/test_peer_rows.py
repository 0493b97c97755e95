"""Rows of others in the table of methods: the trellis of fixed rate, and GPTAQ's corrections."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import evaluate_methods
import numpy as np
import pytest
import tiny
import torch
import trellis_rows
from trellis_rows import Turn

import spqfmt
from spqfmt.importers import open_source
from spqfmt.quantize.drift import Drift
from spqfmt.quantize.feedback import factorize
from spqfmt.quantize.statistics import Hessian

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
OPTIONS = {"samples": 8, "seq-len": 64, "bits": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers") / "tiny"
    tiny.build("llama_tied", folder, dtype=torch.float16)
    return folder


def _normal(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


@needs_compiler
@pytest.mark.parametrize(("bits", "most"), [(2, 0.14), (3, 0.19), (4, 0.25)])
def test_paths_are_closed_and_near_the_bound(bits: int, most: float) -> None:
    """Each state is the last bits of the one before and `bits` more, round the circle; few states, for time."""
    values = _normal(12, 256)
    states = trellis_rows.closed_paths(values, bits, state_bits=12).astype(int)
    overlap = (np.roll(states, 1, axis=1) << bits) & ((1 << 12) - 1)
    assert (overlap == states >> bits << bits).all()
    error = np.square(values - trellis_rows.codebook(bits, 12)[states]).mean()
    assert 0 < bits - 0.5 * np.log2(1 / error) < most


@needs_compiler
def test_a_path_is_the_best_of_all_closed_ones() -> None:
    """Of four values of 2 bits with 4-bit states there are 256 closed paths."""
    values = _normal(20, 4)
    code = trellis_rows.codebook(2, 4)
    streams = np.array(np.meshgrid(*[np.arange(4)] * 4)).reshape(4, -1).T
    all_states = (np.roll(streams, 1, axis=1) << 2) + streams
    costs = np.square(values[:, None] - code[all_states]).sum(2)
    found = np.square(values - code[trellis_rows.closed_paths(values, 2, state_bits=4)]).sum(1)
    best = costs.min(1)
    # The closing bits are found by the paper's approximation: they are the best ones in most cases.
    assert (found >= best - 1e-5).all()
    assert np.isclose(found, best, rtol=1e-4).mean() > 0.6


@pytest.mark.parametrize("size", [1, 21, 64, 176])
def test_a_turn_keeps_lengths_and_is_undone(size: int) -> None:
    rows = torch.from_numpy(_normal(5, size))
    turned = Turn(size).there(rows)
    assert torch.allclose(turned.norm(dim=1), rows.norm(dim=1), rtol=1e-4)
    assert torch.allclose(Turn(size).back(turned), rows, atol=1e-5)
    assert size == 1 or not torch.allclose(turned.abs(), rows.abs(), atol=0.1)


@needs_compiler
def test_feedback_lowers_what_outputs_are_off_by() -> None:
    inputs = torch.from_numpy(_normal(2000, 40) @ _normal(40, 40, seed=2))
    matrix = torch.from_numpy(_normal(35, 40, seed=3))
    turn = Turn(40)
    hessian = turn.there(turn.there(inputs.t() @ inputs / 1000).t().contiguous())
    upper = factorize(hessian, trellis_rows.DAMPING, act_order=False).upper
    losses = [
        float((inputs @ (trellis_rows.quantize_matrix(matrix, factor, 3) - matrix).t()).square().mean())
        for factor in (upper, torch.eye(40))
    ]
    assert losses[0] < 0.85 * losses[1]
    assert losses[1] < 0.1 * float((inputs @ matrix.t()).square().mean())


@needs_compiler
def test_the_rest_of_the_model_stays_and_bits_are_counted(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "trellis"
    costs = trellis_rows.pack(source, out, OPTIONS)
    before, after = (
        {t.name: t for t in open_source(folder).tensors if t.tied_to is None} for folder in (source, out)
    )
    assert before.keys() == after.keys()
    n_weights, n_matrices = 0, 0
    for name, tensor in before.items():
        old, new = tensor.load().float(), after[name].load().float()
        if tensor.role != "linear":
            assert torch.equal(old, new)
            continue
        n_weights, n_matrices = n_weights + old.numel(), n_matrices + 1
        assert 0 < float((old - new).square().mean() / old.square().mean()) < 0.2
    assert costs["stored"] == 3 + 32 * n_matrices / n_weights


def test_gptaq_is_packed_like_a_method_of_the_package(source: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples": 8, "seq-len": 64, "bits": 3, "group-size": 16}
    evaluate_methods.pack(source, tmp_path / "gptaq.spq", "gptaq", options)
    given = {name.replace("-", "_"): value for name, value in options.items()}
    spqfmt.pack(source, tmp_path / "gptq.spq", method="gptq", **given)
    first, last = (f"model.layers.{name}.weight" for name in ("0.self_attn.q_proj", "1.mlp.down_proj"))
    with spqfmt.open(tmp_path / "gptaq.spq") as corrected, spqfmt.open(tmp_path / "gptq.spq") as plain:
        assert torch.equal(corrected.read(first), plain.read(first))
        assert not torch.equal(corrected.read(last), plain.read(last))


def test_gptaq_corrects_by_the_closed_form() -> None:
    spec = importlib.util.spec_from_file_location("gptaq", evaluate_methods.PEERS / "gptaq.py")
    assert spec is not None
    assert spec.loader is not None
    gptaq = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gptaq)
    before = torch.from_numpy(_normal(3000, 20))
    after = before @ (torch.eye(20) + 0.1 * torch.from_numpy(_normal(20, 20, seed=5)))
    weight = torch.from_numpy(_normal(7, 20, seed=6))
    hessian, drift = Hessian(20), Drift()
    hessian.add(after)
    drift.add(before, after)
    assert drift.inputs is not None
    factor = factorize(hessian.matrix, 0.01, act_order=False)
    found = after @ gptaq.corrected(weight, drift.inputs, factor).t()
    wanted = before @ weight.t()
    assert (found - wanted).square().mean() < 0.01 * (after @ weight.t() - wanted).square().mean()
