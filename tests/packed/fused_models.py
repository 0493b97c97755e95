"""Small models with packed weights, and what they say of some tokens."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import nn
from transformers import DynamicCache

import spqfmt
from spqfmt.loaders.packed.fused import SWITCH, layer_steps
from spqfmt.models.caches import cache_name

BASE = dict(tiny._LLAMA)
HEADS = {"head_dim": 24}


def packed(folder: Path, config: Any) -> Path:
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
        model.save_pretrained(folder)
    spqfmt.pack(folder, folder / "m.spq", method="rtn")
    return folder / "m.spq"


def both(path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None = None) -> tuple[Any, Any]:
    fused, _ = spqfmt.load_model(path, packed=True, dtype=dtype)
    with monkeypatch.context() as patch:
        patch.setenv(SWITCH, "0")
        plain, _ = spqfmt.load_model(path, packed=True, dtype=dtype)
    return fused, plain


def called(model: Any, ids: torch.Tensor | None, cache: Any, **options: Any) -> Any:
    return model(ids, **{cache_name(model): cache}, **options)


def logits(model: Any, n_texts: int = 2, **options: Any) -> torch.Tensor:
    """Of a prompt, and of some tokens after it one by one: [texts, tokens, vocabulary]."""
    ids = torch.arange(n_texts * 12).view(n_texts, 12) % 200 + 3
    cache = DynamicCache(config=model.config)
    parts = ids[:, :6], *(ids[:, i : i + 1] for i in range(6, 12))
    with torch.inference_mode():
        return torch.cat([called(model, part, cache, **options).logits.float() for part in parts], 1)


def taken(model: nn.Module) -> Counter[str]:
    return Counter(
        type(module).__mro__[1].__module__.rpartition(".")[2]
        for module in model.modules()
        if hasattr(module, "_form")
    )


def load(folder: Path, name: str, dtype: str | None = None, **changed: Any) -> Any:
    path = packed(folder, getattr(transformers, name)(**BASE | changed))
    return spqfmt.load_model(path, packed=True, dtype=dtype)[0]


def run(model: Any, cache: Any, n_texts: int = 2, n_tokens: int = 6, **options: Any) -> torch.Tensor:
    """Logits of a prompt, and of some tokens after it one by one: [texts, tokens, vocabulary]."""
    ids = torch.arange(n_texts * 16).view(n_texts, 16) % 200 + 3
    parts = ids[:, :6], *(ids[:, i : i + 1] for i in range(6, 6 + n_tokens))
    with torch.inference_mode():
        return torch.cat([called(model, part, cache, **options).logits for part in parts], 1)


@contextmanager
def without_layers() -> Iterator[None]:
    """Layers are their own classes' meanwhile, and what they call is not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_steps.LayerSteps, "step", lambda *_: None)
        yield


def is_same(model: Any, new_cache: Callable[[], Any] | None = None, **options: Any) -> bool:
    """Whether logits and caches are the same bits with layers taken over and without."""
    caches = [DynamicCache(config=model.config) if new_cache is None else new_cache() for _ in range(2)]
    found = run(model, caches[0], **options)
    with without_layers():
        expected = run(model, caches[1], **options)
    same = [
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for a, b in zip(caches[0].layers, caches[1].layers, strict=True)
    ]
    return torch.equal(found, expected) and all(same)


def counted_layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each native call has from now on."""
    found: list[int] = []
    real = layer_steps.step_layers

    def counted(layers: list[Any], *given: Any) -> None:
        found.append(len(layers))
        real(layers, *given)

    monkeypatch.setattr(layer_steps, "step_layers", counted)
    return found
