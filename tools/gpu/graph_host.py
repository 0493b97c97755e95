"""What a token costs the host where it is a graph: operations around the model, and our own work for each graph.

    python tools/gpu/graph_host.py [--layers 32]

A Llama with so many narrow layers, transformers' own generate and a cache that does not grow. Counted are operations
of torch that would give a device something to do: those of a token in the model, which a graph holds, and those that
generate asks for besides. Measured, on this machine, are microseconds of one thread in which we look whether all is
where it was, hand over the inputs, and copy the logits; a graph that does nothing stands for CUDA's, so what the
driver takes comes on top.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from statistics import median
from time import thread_time
from typing import Any, TypeVar

import torch
import transformers
from host_time import NO_LAUNCH
from torch.utils._python_dispatch import TorchDispatchMode

from spqfmt.loaders.device.graphs import TokenGraphs

T = TypeVar("T")
ROUNDS = 300
LENGTH = 2048
VIEWS = ("transpose", "permute", "squeeze", "_unsafe_view", "alias", "lift_fresh")
"""More beginnings of operations that give a device nothing to do."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations by where they are asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()
        self.where = "generate"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:
            found = func.decompose(*args, **(kwargs or {}))
        if found is not NotImplemented:
            return found
        if not func.__name__.startswith(NO_LAUNCH + VIEWS):
            self.found[self.where] += 1
        return func(*args, **(kwargs or {}))


class _NothingToDo:
    """Weights whose graphs do nothing."""

    torch_device = torch.device("cpu")

    def settle(self) -> None:
        """Nothing is got ready."""

    def record(self, run: Callable[[], T]) -> tuple[Any, T]:
        """What is computed now stands for what a graph leaves."""
        return None, run()

    def replay(self, _graph: Any) -> None:
        """Give nothing to any device."""


class _Trusting(TokenGraphs):
    """Graphs that nobody compares: these give nothing to compare."""

    def _compare(self, inputs: dict[str, Any]) -> Any:
        return self._replay(inputs)


class _Silent:
    def put(self, _value: torch.Tensor) -> None:
        """Take a token, and show it nowhere."""

    def end(self) -> None:
        """Do nothing: no more tokens come."""


def counted(model: Any) -> dict[str, int]:
    """Operations of one of the later tokens."""
    marks, own = [], model.forward
    with torch.inference_mode(), Operations() as operations:

        def forward(**inputs: Any) -> Any:
            marks.append(operations.found.copy())
            operations.where = "model"
            try:
                return own(**inputs)
            finally:
                operations.where = "generate"

        model.forward = forward
        ids = torch.tensor([[1, 2, 3]])
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "streamer": _Silent()}
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            cache_implementation="static",
            disable_compile=True,
            **options,
        )
    del model.forward
    return dict(marks[4] - marks[3])


def microseconds(model: Any) -> list[float]:
    """What a call of a graph takes, round by round."""
    model.packed_weights = _NothingToDo()
    graphs = _Trusting(model)
    cache = transformers.StaticCache(model.config, max_cache_len=LENGTH)
    one = torch.zeros(1, 1, dtype=torch.int64)
    mask = torch.ones(1, 1, 1, LENGTH, dtype=torch.bool)
    times = []
    with torch.inference_mode():
        model(torch.zeros(1, 3, dtype=torch.int64), past_key_values=cache)
        for _ in range(ROUNDS):
            begun = thread_time()
            graphs(
                input_ids=one, position_ids=one, attention_mask=mask, past_key_values=cache, use_cache=True
            )
            times.append(1e6 * (thread_time() - begun))
    return times[ROUNDS // 10 :]


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=parser.parse_args().layers,
        num_attention_heads=4,
        vocab_size=256,
        max_position_embeddings=LENGTH,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).bfloat16().eval()
    found, times = counted(model), microseconds(model)
    print(
        f"{found['model']} operations in the model, {found['generate']} besides; {min(times):.0f} us least,",
        end=" ",
    )
    print(f"{median(times):.0f} median of a graph's call")


if __name__ == "__main__":
    main()
