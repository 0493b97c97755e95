"""Tiny source models of more families, and a method that only looks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers

from spqfmt.calibration.engine import Calibration
from spqfmt.calibration.text import CalibrationOptions
from spqfmt.importers import open_source
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.calibrated import Block, Result

TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
"""Short, so that tests spend no time on tokens that they do not use."""

SMALL = CalibrationOptions(text=TEXT, samples=6, seq_len=32)


def _more() -> dict[str, Any]:
    """Families that tools/models/tiny.py does not have."""
    common = {
        "vocab_size": tiny.VOCABULARY,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    special = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    return {
        "gpt_neox": transformers.GPTNeoXConfig(
            **common, **special, intermediate_size=80, max_position_embeddings=64
        ),
        "falcon": transformers.FalconConfig(
            **common, **special, alibi=False, new_decoder_architecture=False, multi_query=True, bias=True
        ),
        "gemma2": transformers.Gemma2Config(
            **common, **special, num_key_value_heads=2, head_dim=12, intermediate_size=80, sliding_window=16
        ),
        # It sends ids to the device of its embedding before it calls that. No experts: stacks come otherwise.
        "llama4": transformers.Llama4TextConfig(
            **common,
            **special,
            num_key_value_heads=2,
            head_dim=12,
            intermediate_size_mlp=80,
            moe_layers=[],
            attention_chunk_size=16,
        ),
        "qwen2_moe": transformers.Qwen2MoeConfig(
            **common,
            **special,
            num_key_value_heads=2,
            intermediate_size=80,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=48,
            num_experts=4,
            num_experts_per_tok=2,
        ),
    }


def build(name: str, path: Path) -> None:
    """Write the tiny model `name` with seeded random weights to `path`."""
    if name in tiny.configurations():
        tiny.build(name, path)
        return
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(_more()[name]).save_pretrained(path)
        tiny.byte_tokenizer().save_pretrained(path)


class Kept:
    """An accumulator that keeps all inputs."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []

    def add(self, inputs: torch.Tensor) -> None:
        self.inputs.append(inputs.clone())


@dataclass
class Onlooker:
    """A calibrated method that changes nothing and keeps what it is shown."""

    name: str = "onlooker"
    takes: frozenset[str] = frozenset()
    calibrated: bool = True
    blocks: list[Block] = field(default_factory=list)
    streamed: dict[str, torch.Tensor] = field(default_factory=dict)

    def check(self, options: MethodOptions) -> MethodOptions:
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        return "looked at" if weight.role == "linear" else ""

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Any:
        raise AssertionError(weight.name)

    def accumulator(self, n_columns: int, options: MethodOptions) -> Kept:
        return Kept()

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        self.blocks.append(block)
        for site in block.sites:
            self.streamed[site.layers[0].weight.name] = torch.cat(list(site.inputs()))
        return {}


def wanted_of(path: Path) -> dict[str, Weight]:
    """The linear tensors of a source."""
    return {
        t.name: Weight(t.name, t.shape, t.dtype, t.role, t.transposed)
        for t in open_source(path).tensors
        if t.role == "linear" and t.tied_to is None
    }


def make_engine(path: Path, method: Any, options: CalibrationOptions = SMALL) -> Calibration:
    """An engine over a source folder, for all its linear tensors."""
    return Calibration(open_source(path), method, method.check(MethodOptions()), options, wanted_of(path))
