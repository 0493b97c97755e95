"""Models of different contexts side by side in one process."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import spqfmt
from spqfmt.codecs.threads import n_threads
from spqfmt.container.reader import Reader
from spqfmt.kernels import _native, backend, native
from spqfmt.kernels.context import Context, using
from spqfmt.loaders.plan import plan_model
from spqfmt.residency.rates import measure_rates

IDS = torch.arange(24)[None]


def watched(model: Any) -> set[tuple[int, str, str]]:
    """What is in force whenever the model's engine asks for weights, from now on."""
    seen: set[tuple[int, str, str]] = set()
    engine = model.packed_weights
    lend, lend_rows = engine._lend, engine._lend_rows

    def noted(lend: Any) -> Any:
        def call(part: Any) -> Any:
            seen.add((n_threads(), backend.backend(), native.active_kernels()))
            return lend(part)

        return call

    engine._lend, engine._lend_rows = noted(lend), noted(lend_rows)
    return seen


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(IDS).logits
    return output


def test_each_model_keeps_what_it_was_loaded_with(packed_llama: Path) -> None:
    smallest = plan_model(packed_llama, dtype="float32").plan.smallest_bytes
    with using(Context(threads=1, backend=backend.find("scalar"))):
        one, _ = spqfmt.load_model(packed_llama, memory=smallest, dtype="float32")
    with using(Context(threads=2)):
        two, _ = spqfmt.load_model(packed_llama, memory=smallest, dtype="float32")
    expected = logits(one)
    seen = [watched(model) for model in (one, two)]
    results: list[list[torch.Tensor]] = [[], []]

    def run(number: int) -> None:
        for _ in range(3):
            results[number].append(logits((one, two)[number]))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    with using(Context(threads=5)):
        run(0)
        run(1)
        assert n_threads() == 5
    for thread in threads:
        thread.join()
    default = backend.current()
    assert seen == [{(1, "scalar", "scalar")}, {(2, default.name, default.kernels)}]
    assert [len(outputs) for outputs in results] == [6, 6]
    assert all(torch.equal(output, expected) for outputs in results for output in outputs)
    one.packed_weights.close()
    two.packed_weights.close()


def test_a_read_rate_is_of_its_context_alone(packed_llama: Path) -> None:
    with Reader(packed_llama) as reader:
        measured = measure_rates(reader).read
        with using(Context(read_rate=1.0)):
            assert measure_rates(reader).read == 1.0
        assert measure_rates(reader).read == measured
    in_memory = plan_model(packed_llama).plan.in_memory_bytes
    with using(Context(read_rate=1.0)):
        plan = plan_model(packed_llama, memory=in_memory).plan
    assert all(part.residency != "disk" for part in plan.parts)


@pytest.mark.parametrize("n", [1, 3])
def test_native_code_is_given_the_context_s_number(
    packed_llama: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    seen: dict[str, set[int]] = {}
    for name in ("decode_verified_chunks", "dequantize_uniform"):
        original = getattr(_native, name)

        def noted(*given: Any, name: str = name, original: Any = original, **named: Any) -> None:
            seen.setdefault(name, set()).add(named.get("n_threads", given[-1]))
            original(*given, **named)

        monkeypatch.setattr(_native, name, noted)
    smallest = plan_model(packed_llama).plan.smallest_bytes
    with using(Context(threads=n)):
        model, _ = spqfmt.load_model(packed_llama, memory=smallest)
    with torch.inference_mode():
        model(torch.arange(100)[None])  # so many that weights are dequantized
    assert seen == {"decode_verified_chunks": {n}, "dequantize_uniform": {n}}
    model.packed_weights.close()
