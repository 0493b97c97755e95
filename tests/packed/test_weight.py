"""`weight` of a packed layer as models and their users read it, and what a packed model says of itself."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import nn
from torch.nn.utils import prune

import spqfmt
from spqfmt.errors import OptionError, SpqError
from spqfmt.loaders.packed.weight import PackedWeight
from spqfmt.loaders.plan import plan_model

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(24)]])
WEIGHT = torch.linspace(-2, 3, 12).view(4, 3)


@pytest.fixture
def weight() -> PackedWeight:
    return PackedWeight("w", WEIGHT.shape, WEIGHT.dtype, WEIGHT.device, WEIGHT.clone, None)


@pytest.fixture(params=["packed", "on disk"])
def model(request: pytest.FixtureRequest, packed_llama: Path) -> Iterator[Any]:
    smallest = plan_model(packed_llama).plan.smallest_bytes
    options: dict[str, Any] = {"packed": True} if request.param == "packed" else {"memory": smallest}
    loaded, _ = spqfmt.load_model(packed_llama, **options)
    yield loaded
    loaded.packed_weights.close()


@pytest.mark.parametrize("kind", ["mamba", "gpt2"])
def test_a_model_that_reads_weights_gets_the_same_logits_every_time(tmp_path: Path, kind: str) -> None:
    """Mamba multiplies by the weight of dt_proj itself."""
    if kind == "mamba":
        config: Any = transformers.MambaConfig(
            hidden_size=64, num_hidden_layers=2, vocab_size=264, state_size=8
        )
    else:
        config = tiny.configurations()[kind]
    with torch.random.fork_rng(devices=[]), tiny.quiet(), torch.inference_mode():
        torch.manual_seed(0)
        source = transformers.AutoModelForCausalLM.from_config(config).eval()
        source.save_pretrained(tmp_path)
        expected = source(INPUTS).logits
    spqfmt.pack(tmp_path, tmp_path / "m.spq")
    smallest = plan_model(tmp_path / "m.spq").plan.smallest_bytes
    for options in ({"packed": False}, {"packed": True}, {"memory": smallest}):
        results = []
        for _ in range(3):
            loaded, _ = spqfmt.load_model(tmp_path / "m.spq", **options)
            with torch.inference_mode():
                results.append(loaded(INPUTS).logits)
            assert loaded.num_parameters() == source.num_parameters()
            for name, module in source.named_modules():
                if isinstance(module, nn.Linear | nn.Embedding | transformers.pytorch_utils.Conv1D):
                    assert torch.equal(loaded.get_submodule(name).weight.clone(), module.weight)
        assert all(torch.equal(result, results[0]) for result in results)
        assert torch.allclose(results[0], expected, atol=1e-5 * float(expected.abs().max()))


def test_its_form_costs_nothing() -> None:
    def decode() -> torch.Tensor:
        raise AssertionError("values are decoded where nobody wants them")

    weight = PackedWeight("w", (4, 3), torch.bfloat16, torch.device("cpu"), decode, None)
    assert (weight.dtype, weight.device.type, tuple(weight.shape)) == (torch.bfloat16, "cpu", (4, 3))
    assert (weight.size(0), weight.ndim, weight.numel(), weight.nbytes, len(weight)) == (4, 2, 12, 24, 4)
    assert isinstance(weight, torch.Tensor)
    assert not weight.requires_grad
    assert "4, 3" in repr(weight)
    assert weight.is_floating_point()


def test_any_operation_sees_its_values(weight: PackedWeight) -> None:
    x = torch.randn(5, 3)
    operations: list[Callable[[torch.Tensor], Any]] = [
        lambda w: nn.functional.linear(x, w),
        lambda w: w @ x.t(),
        lambda w: x @ w.T,
        lambda w: torch.einsum("rc,nc->rn", w, x),
        lambda w: torch.cat([w, w]),
        lambda w: w.unsqueeze(0).repeat(2, 1, 1),
        lambda w: w[1],
        lambda w: w.data[:, 1],
        lambda w: w.detach().to(torch.float64),
        lambda w: torch.from_numpy(w.numpy()),
        lambda w: nn.functional.embedding(torch.tensor([1, 2]), w),
        lambda w: torch.zeros(4, 3).copy_(w),
        lambda w: torch.zeros(4, 3).add_(w),
        torch.ops.aten.t,
        torch.zeros_like,
        lambda w: w == 3,
    ]
    for operation in operations:
        result = operation(weight)
        assert type(result) is torch.Tensor
        assert torch.equal(result, operation(WEIGHT))


def test_its_inputs_have_gradients(weight: PackedWeight) -> None:
    x = torch.randn(5, 3, requires_grad=True)
    nn.functional.linear(x, weight).sum().backward()
    assert torch.allclose(x.grad, WEIGHT.sum(0).expand(5, 3))


def test_what_would_change_it_is_refused(weight: PackedWeight) -> None:
    changes: list[Callable[[Any], Any]] = [
        lambda w: w.mul_(2),
        lambda w: w.data.zero_(),
        lambda w: w.detach().clamp_(0, 1),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: w.__iadd__(1),
        lambda w: w.copy_(WEIGHT),
        nn.init.normal_,
        nn.init.zeros_,
        lambda w: torch.add(WEIGHT, WEIGHT, out=w),
        lambda w: torch._foreach_mul_([w], 2.0),
        lambda w: torch.ops.aten.mul_(w, 2.0),
        lambda w: setattr(w, "data", WEIGHT),
    ]
    for change in changes:
        with pytest.raises(SpqError, match="packed weights cannot be changed"):
            change(weight)
    with pytest.raises(SpqError, match="no memory of its own"):
        weight.data_ptr()


@pytest.mark.parametrize(
    "of", [lambda w: nn.Parameter(w.clone()), lambda w: w.clone(), lambda w: torch.zeros(2)]
)
def test_no_other_weight_is_assigned_but_its_own(model: Any, of: Callable[[Any], Any]) -> None:
    layer = model.model.layers[0].self_attn.q_proj
    with pytest.raises(
        SpqError, match=r"q_proj\.weight: packed weights cannot be changed; load with packed=False"
    ):
        layer.weight = of(layer.weight)
    layer.weight = layer.weight
    model.tie_weights()
    assert "weight" not in layer._parameters


def test_it_can_be_frozen_and_not_trained(weight: PackedWeight) -> None:
    weight.requires_grad = False
    assert weight.requires_grad_(False) is weight
    for train in (
        lambda: setattr(weight, "requires_grad", True),
        weight.requires_grad_,
        lambda: nn.Parameter(weight),
        lambda: weight.requires_grad_(requires_grad=True),
    ):
        with pytest.raises(SpqError, match=r"^w: packed weights are not trained; load with packed=False"):
            train()
    assert not weight.requires_grad


def test_the_head_can_be_used_as_a_matrix(model: Any) -> None:
    """As those do who look at hidden states, or sum a loss piece by piece."""
    hidden = torch.randn(1, 7, 64, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = model.lm_head(hidden)
        assert torch.equal(nn.functional.linear(hidden, model.lm_head.weight), expected)
        assert torch.allclose(hidden @ model.lm_head.weight.T, expected, atol=0.02)
        assert torch.equal(model.lm_head.weight[5:9], model.get_input_embeddings().weight[5:9])


def test_a_compiled_model_reads_weights(model: Any) -> None:
    layer = model.model.layers[0].mlp.up_proj

    def product(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = layer.weight @ x
        return y.relu()

    x = torch.randn(64, 3, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(torch.compile(product, backend="eager")(x), product(x))


def test_another_dtype_or_device_is_refused_before_anything_changes(model: Any) -> None:
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    moves: list[tuple[str, Callable[[Any], Any]]] = [
        ("cannot become float64", lambda m: m.double()),
        ("cannot become float16", lambda m: m.half()),
        ("cannot become float32", lambda m: m.to(torch.float32)),
        ("cannot become float32", lambda m: m.type(torch.float32)),
        ("cannot move to meta", lambda m: m.to("meta")),
    ]
    for message, move in moves:
        for module in (model, model.model.layers[0].mlp.up_proj):
            with pytest.raises(SpqError, match=message):
                move(module)
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == before
    assert model.to(torch.bfloat16).to("cpu").bfloat16() is model


@pytest.mark.parametrize("options", [{"packed": True}, {"memory": "1GiB"}])
def test_float64_is_refused_before_weights_are_read(packed_llama: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="compute in float32, bfloat16, float16, not in float64"):
        spqfmt.load_model(packed_llama, dtype="float64", **options)
    with pytest.raises(OptionError, match="not in float64"):
        plan_model(packed_llama, dtype="float64")


def test_a_packed_model_knows_its_size(model: Any, packed_llama: Path) -> None:
    decoded, _ = spqfmt.load_model(packed_llama, packed=False)
    for options in ({}, {"exclude_embeddings": True}):
        assert model.num_parameters(**options) == decoded.num_parameters(**options)
    assert model.num_parameters(only_trainable=True) == 0
    floats = sum(p.nbytes for p in model.parameters())
    assert model.get_memory_footprint(return_buffers=False) == floats + model.packed_weights.held_bytes
    assert model.get_memory_footprint(return_buffers=False) == model.packed_weights.plan.held_bytes


def test_torch_prunes_no_packed_layer(model: Any) -> None:
    layer = model.model.layers[0].self_attn.q_proj
    with pytest.raises(SpqError, match=r"q_proj\.weight: packed weights cannot be changed"):
        prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    assert not layer._forward_pre_hooks


def test_training_nothing_is_told(model: Any) -> None:
    with pytest.warns(UserWarning, match="packed weights have none: load with packed=False"):
        assert model.train() is model
    model.model.norm.weight.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.train().training
        assert not model.eval().training
