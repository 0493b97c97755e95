"""Inputs of every kind: a packed module gives what torch's own gives, or the same kind of error."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import spqfmt
from spqfmt.loaders.packed import Packed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INPUTS = (
    *DTYPES, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip
LAYERS = {
    "llama": ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj", "lm_head"),
    "gpt2": ("transformer.h.0.mlp.c_fc", "transformer.h.1.attn.c_attn"),
    "opt": ("model.decoder.layers.0.fc1",),
}
EMBEDDINGS = {"llama": "model.embed_tokens", "gpt2": "transformer.wte", "opt": "model.decoder.embed_tokens"}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"method": "rtn", "bits": 4, "group_size": 16},
    "gpt2": {"method": "rtn"},
    "opt": {},
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def packed(family: str, tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(family) / "m.spq"
    spqfmt.pack(tiny_folder(family), out, **KINDS[family])
    return out


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def models(packed: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """Packed and decoded, in one dtype."""
    name = str(request.param).removeprefix("torch.")
    ours, _ = spqfmt.load_model(packed, dtype=name, packed=True, activations="float")
    theirs, _ = spqfmt.load_model(packed, dtype=name, packed=False)
    yield ours, theirs
    ours.packed_weights.close()


def outcome(module: nn.Module, x: Any, context: AbstractContextManager[Any] | None = None) -> Any:
    """What a module gives, or the type of what it raises."""
    with torch.inference_mode(), context or nullcontext():
        try:
            return module(x)
        except (RuntimeError, TypeError, IndexError) as error:
            return type(error)


def assert_same(made: Any, expected: Any) -> None:
    if isinstance(expected, type):
        assert made is expected
        return
    assert (made.dtype, made.shape) == (expected.dtype, expected.shape)
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    # Sums are rounded in another order, and float16 under bfloat16's autocast is rounded once more.
    epsilon = max(torch.finfo(expected.dtype).eps, 1e-6)
    assert torch.allclose(made.double(), expected.double(), rtol=2 * epsilon, atol=4 * epsilon * largest)


def pairs(models: tuple[Any, Any], names: tuple[str, ...]) -> Iterator[tuple[nn.Module, nn.Module]]:
    for name in names:
        ours, theirs = (model.get_submodule(name) for model in models)
        assert isinstance(ours, Packed)
        assert isinstance(theirs, nn.Linear | Conv1D | nn.Embedding)
        yield ours, theirs


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n_tokens", [0, 1, 40])
def test_every_pair_of_dtypes(
    family: str, models: tuple[Any, Any], n_tokens: int, autocast: torch.dtype | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    for ours, theirs in pairs(models, LAYERS[family]):
        wide = torch.randn(1, n_tokens, ours.in_features, generator=generator) * 3  # type: ignore[arg-type]
        for dtype in INPUTS:
            x = wide.to(dtype)
            contexts = [None if autocast is None else torch.autocast("cpu", autocast) for _ in range(2)]
            assert_same(outcome(ours, x, contexts[0]), outcome(theirs, x, contexts[1]))


def test_forms_of_an_input(family: str, models: tuple[Any, Any]) -> None:
    dtype = models[0].dtype
    for ours, theirs in pairs(models, LAYERS[family]):
        n: int = ours.in_features  # type: ignore[assignment]
        wide = torch.randn(6, 2 * n, generator=torch.Generator().manual_seed(1)).to(dtype)
        forms = [
            wide[:, :n].t().contiguous().t(),
            wide[:, ::2],
            wide[::2, n:],
            wide[:1, :n].expand(5, n),
            wide[:, :1].expand(6, n),
            wide[0, :n],
            wide[:0, :n],
            wide[:, : n - 1],
            wide[:, : n + 1],
            wide.reshape(2, 3, 1, 2 * n)[..., :n],
            wide[:, :0],
        ]
        for x in forms:
            expected = outcome(theirs, x.contiguous() if isinstance(theirs, Conv1D) else x)
            assert_same(outcome(ours, x), expected)
        for wrong in (None, [1.0], wide.numpy if dtype == torch.float32 else 3):
            made = outcome(ours, wrong)
            assert made is TypeError


def test_rows_are_looked_up_by_numbers_that_torch_takes(family: str, models: tuple[Any, Any]) -> None:
    for ours, theirs in pairs(models, (EMBEDDINGS[family],)):
        n: int = ours.num_embeddings  # type: ignore[assignment]
        ids = torch.tensor([[0, 3, n - 1], [7, 7, 1]])
        for dtype in INPUTS:
            assert_same(
                outcome(ours, ids.clamp(max=1).to(dtype)), outcome(theirs, ids.clamp(max=1).to(dtype))
            )
        for x in (
            ids.t(),
            ids[:, :1].expand(2, 4),
            ids[:, ::2],
            ids[0, 0],
            ids[:0],
            ids[:, :0],
            ids.int(),
            ids - 1,
            ids + 1,
            torch.tensor([-(2**40), 2**40]),
        ):
            assert_same(outcome(ours, x), outcome(theirs, x))


def test_a_weight_multiplies_what_torch_multiplies(family: str, models: tuple[Any, Any]) -> None:
    """`torch.nn.functional.linear` with the weight of a packed module, as models that hold no bias call it."""
    dtype = models[0].dtype
    for ours, theirs in pairs(models, LAYERS[family]):
        if isinstance(theirs, Conv1D):
            continue
        rows, columns = theirs.weight.shape  # type: ignore[misc,union-attr]
        x = torch.randn(2, columns, generator=torch.Generator().manual_seed(2)).to(dtype)
        biases = [None, x.new_ones(rows), x.new_ones(1), x.new_ones(rows + 1), torch.ones(rows).double()]
        inputs = [x, x.double(), x.long(), x[:, 1:], torch.cat([x, x], 1), x[0], x[:0], x[0, 0]]
        for autocast in (None, torch.bfloat16):
            for one in inputs:
                for bias in biases:
                    made, expected = (
                        outcome(_Product(module, bias), one, autocast and torch.autocast("cpu", autocast))
                        for module in (ours, theirs)
                    )
                    assert_same(made, expected)


class _Product(nn.Module):
    def __init__(self, module: nn.Module, bias: torch.Tensor | None) -> None:
        super().__init__()
        self._of = [module]
        self._bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self._of[0].weight, self._bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_a_whole_model_under_autocast(family: str, models: tuple[Any, Any], autocast: torch.dtype) -> None:
    ids = torch.tensor([[(i * 37) % 200 for i in range(12)]])
    made, expected = (outcome(_Logits(model), ids, torch.autocast("cpu", autocast)) for model in models)
    if isinstance(expected, type):  # norms that torch does not compute in two types
        assert made is expected
        return
    assert made.dtype == expected.dtype
    assert torch.allclose(made.float(), expected.float(), atol=0.05 * float(expected.float().abs().max()))


class _Logits(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self._of = [model]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._of[0](input_ids=ids).logits
        return logits


def test_errors_name_the_tensor(models: tuple[Any, Any], family: str) -> None:
    for ours, _ in pairs(models, LAYERS[family][:1]):
        with pytest.raises(RuntimeError, match=rf"^{ours.record.name}: .*dtype"):  # type: ignore[union-attr]
            ours(torch.zeros(1, ours.in_features, dtype=torch.int64))  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match=rf"^{ours.record.name}: .*shapes"):  # type: ignore[union-attr]
            ours(torch.zeros(1, 1, dtype=models[0].dtype))
