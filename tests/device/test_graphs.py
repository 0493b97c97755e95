"""A token as one graph on a simulated device, which records what it is given and forbids what CUDA forbids meanwhile."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import device_support
import pytest
import tiny
import torch
import transformers
from device_support import RATES, engine_of, loaded_onto_device

import spqfmt
from spqfmt.codecs.threads import blocks
from spqfmt.errors import BackendError
from spqfmt.kernels.torch_rans import RansBlocks, decode_blocks
from spqfmt.loaders.device import Fault, SimulatedDevice
from spqfmt.loaders.device.graphs import MOST_RECORDED, TokenGraphs, as_graphs, refusal
from spqfmt.loaders.device.seam import Queue, Work
from spqfmt.loaders.load import plan_device

PROMPT = torch.tensor([[(i * 37 + 11) % 256 for i in range(5)]])
N_TOKENS = 7
N_PLAIN = 4
"""The prompt's, the two before there is a graph, and the one that is computed both ways."""
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "tie_word_embeddings": False}
STATES = {
    "8 bits, decoded": ("rtn", {}),
    "4 bits, decoded": ("rtn", {"bits": 4, "group_size": 32}),
    "bf16, decoded": ("lossless", {}),
    "8 bits, compressed": ("rtn", {}),
    "bf16, compressed": ("lossless", {}),
    "8 bits, straight": ("rtn", {}),
    "bf16, straight": ("lossless", {}),
}
Files = Callable[[str], Path]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A small Llama by a method of STATES, made once, whose codes are worth compressing."""
    root = tmp_path_factory.mktemp("graphs")
    config = transformers.LlamaConfig(**tiny._LLAMA | SHAPE)
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter[:, 0] *= 60
        model.save_pretrained(root)

    def pack(state: str) -> Path:
        method, options = STATES[state]
        path = root / f"{method}{options.get('bits', '')}.spq"
        if not path.exists():
            with blocks(13):
                spqfmt.pack(root, path, method=method, codec="rans", **options)
        return path

    return pack


@pytest.fixture(scope="module", autouse=True)
def decoded_once() -> Iterator[None]:
    """The plain decoder takes a second for what is decoded for each token: the same blocks give the same symbols."""
    known: dict[Any, Any] = {}

    def decode(words: torch.Tensor, of: RansBlocks, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key = tuple(t.numpy().tobytes() for t in (words, *of, frequencies))
        if key not in known:
            known[key] = decode_blocks(words, of, frequencies)
        symbols, faults = known[key]
        return symbols.clone(), faults.clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spqfmt.kernels.torch_device.rans.decode_blocks", decode)
        yield


@contextlib.contextmanager
def loaded(packed: Files, state: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, SimulatedDevice]]:
    """The model with weights of products in that state, and its device."""
    how = state.rpartition(" ")[2]
    rates = replace(RATES, fused=1e9 if how == "decoded" else 1e12)

    def planned(*arguments: Any, **options: Any) -> Any:
        plan = plan_device(*arguments, **options)
        return replace(plan, parts=tuple(replace(p, fused=p.fused and how == "straight") for p in plan.parts))

    monkeypatch.setattr(device_support, "RATES", rates)
    monkeypatch.setattr("spqfmt.loaders.load.plan_device", planned)
    monkeypatch.setattr("spqfmt.loaders.load.DEVICE_PART_BYTES", 1 << 14)
    model, device = loaded_onto_device(packed(state), 1 << 30, None)
    products = [part for part in model.packed_weights.plan.parts if not part.item.lookups]
    expected = ("decoded" if how == "decoded" else "compressed", how == "straight")
    assert expected in {(part.residency, part.fused) for part in products}
    yield model, device
    model.packed_weights.close()


def answer(model: Any, n_tokens: int = N_TOKENS, **options: Any) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens and their logits, with a cache that does not grow."""
    with torch.inference_mode():
        found = model.generate(
            PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=n_tokens, min_new_tokens=n_tokens,
            do_sample=False, cache_implementation="static", disable_compile=True, output_logits=True,
            return_dict_in_generate=True, **options,
        )  # fmt: skip
    return found.sequences[0].tolist(), list(found.logits)


def same(one: tuple[list[int], list[torch.Tensor]], other: tuple[list[int], list[torch.Tensor]]) -> bool:
    return one[0] == other[0] and all(map(torch.equal, one[1], other[1]))


@contextlib.contextmanager
def no_words() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("state", STATES)
def test_a_whole_token_is_a_graph_that_gives_the_same_bits(
    packed: Files, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(packed, state, monkeypatch) as (model, device):
        assert refusal(model) is None
        expected = answer(model)
        assert len({str(logits) for logits in expected[1]}) == N_TOKENS, "every token must have its own"
        device.trace.clear()
        with no_words(), as_graphs(model) as graphs:
            assert same(answer(model), expected)
        assert (graphs.n_replayed, graphs.why) == (N_TOKENS - N_PLAIN + 1, None)
        assert device.trace[-1].label == "a graph"
        assert "forward" not in vars(model)
        # what was decoded for a graph is nobody else's afterwards
        assert same(answer(model), expected)
