"""Which modules are taken for norms, and that they compute what they did."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated
from transformers.models.t5.modeling_t5 import T5LayerNorm

import spqfmt
from spqfmt.loaders.packed.fused import SWITCH
from spqfmt.loaders.packed.fused.norms import fuse_norms

N = 96
NORMS = {
    "llama": lambda: LlamaRMSNorm(N, eps=1e-5),
    "gemma": lambda: GemmaRMSNorm(N, eps=1e-6),
    "olmo2": lambda: Olmo2RMSNorm(N, eps=1e-5),
    "t5": lambda: T5LayerNorm(N, eps=1e-6),
    "torch": lambda: nn.RMSNorm(N, eps=1e-5),
}


class Negative(nn.Module):
    """Looks like a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(N))
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All but a norm."""
        return -self.weight * (x.float() * torch.rsqrt(x.float().square().mean(-1, True) + self.eps)).to(
            x.dtype
        )


class Refusing(Negative):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Nothing."""
        raise NotImplementedError


def without_epsilon() -> nn.Module:
    norm = LlamaRMSNorm(N, eps=1e-5)
    norm.variance_epsilon = 1  # no float: it is no candidate
    return norm


OTHERS = {
    "negative": Negative,
    "refusing": Refusing,
    "no epsilon": without_epsilon,
    "layer norm": lambda: nn.LayerNorm(N, bias=False),
    "gated": lambda: Qwen3NextRMSNormGated(N),
    "prelu": lambda: nn.PReLU(N),
    "linear": lambda: nn.Linear(1, N, bias=False),
}


def with_weights(norm: nn.Module, dtype: torch.dtype) -> nn.Module:
    norm = norm.to(dtype).requires_grad_(False)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_computes_what_it_did(name: str, dtype: torch.dtype) -> None:
    norm = with_weights(NORMS[name](), dtype)
    kind, names = type(norm), list(norm.state_dict())
    inputs = [
        torch.randn(shape).to(dtype) * size for shape in ((N,), (1, 1, N), (3, 40, N)) for size in (1, 1e-3)
    ]
    expected = [norm(x) for x in inputs]
    assert fuse_norms(nn.Sequential(norm)) == 1
    assert isinstance(norm, kind)
    assert type(norm).__name__ == kind.__name__
    assert list(norm.state_dict()) == names
    for x, y in zip(inputs, expected, strict=True):
        found = norm(x)
        assert found.dtype == y.dtype
        places = 8 if dtype is torch.float32 else 2
        assert (
            (found - y).abs() <= places * torch.finfo(dtype).eps * y.abs() + torch.finfo(dtype).tiny
        ).all()
    assert fuse_norms(nn.Sequential(norm)) == 0  # it is one already


@pytest.mark.parametrize("name", OTHERS)
def test_what_computes_anything_else_is_left(name: str) -> None:
    module = with_weights(OTHERS[name](), torch.bfloat16)
    kind = type(module)
    assert fuse_norms(nn.Sequential(module)) == 0
    assert type(module) is kind


def test_what_is_unusual_is_left_to_torch() -> None:
    norm = with_weights(LlamaRMSNorm(N), torch.bfloat16)
    plain = with_weights(LlamaRMSNorm(N), torch.bfloat16)
    plain.load_state_dict(norm.state_dict())
    fuse_norms(nn.Sequential(norm))
    for x in (torch.randn(2, N), torch.randn(N, 2).bfloat16().t(), torch.randn(0, N).bfloat16()):
        assert torch.equal(norm(x), plain(x))
    x = torch.randn(2, N).bfloat16()
    assert torch.equal(norm(hidden_states=x), plain(x))
    with pytest.raises(RuntimeError):
        norm(x[:, :-1])
    a, b = (x.clone().requires_grad_() for _ in range(2))
    norm(a).sum().backward()
    plain(b).sum().backward()
    assert torch.equal(a.grad, b.grad)


def test_weights_and_hooks_of_later_count() -> None:
    norm = with_weights(LlamaRMSNorm(N), torch.bfloat16)
    fuse_norms(nn.Sequential(norm))
    x = torch.randn(2, N).bfloat16()
    y = norm(x)
    norm.weight.mul_(2)
    assert torch.equal(norm(x), 2 * y)
    norm.register_forward_hook(lambda module, given, found: found + 1)
    assert torch.equal(norm(x), 2 * y + 1)


def test_a_packed_model_has_them_unless_the_variable_is_0(
    packed_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor([[3, 4, 5]])
    fused, _ = spqfmt.load_model(packed_llama, packed=True)
    monkeypatch.setenv(SWITCH, "0")
    plain, _ = spqfmt.load_model(packed_llama, packed=True)
    with torch.no_grad():
        a, b = (model(ids).logits.float() for model in (fused, plain))
    assert not any(hasattr(module, "_form") for module in plain.modules())
    assert (
        sum(hasattr(module, "_form") and "norm" in name for name, module in fused.named_modules())
        == 2 * 12 + 1
    )
    assert (a - b).abs().max() <= 0.05 * b.abs().max()
