"""A token as one CUDA graph beside the plain pass: the same bits, and how much less a token takes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from gpu_lines import NotHereError, Options
from gpu_machine import Check, open_check
from gpu_model import PROMPT, loaded, model_file

from spqfmt.loaders.device import CudaDevice, SimulatedDevice
from spqfmt.loaders.device.graphs import as_graphs, refusal
from spqfmt.residency.device import plan_device
from spqfmt.residency.device_rates import DEFAULT, DeviceRates
from spqfmt.residency.plan import Plan

STATES = ("decoded", "straight from blocks", "decoded for each token")
N_BEFORE = 4
"""Tokens before the first that is nothing but a graph."""


def graphs(options: Options) -> None:
    """Each state in which weights are on the device."""
    check = open_check(options)
    path = model_file(options, check.sizes)
    for state in STATES:
        check.case(state, partial(check_state, check, path, state))


def check_state(check: Check, path: Path, state: str) -> None:
    """Whether graphs give the bits of plain tokens, and what both take."""
    with _loaded(check, path, state) as model:
        why = refusal(model)
        if why is None and state != "decoded" and not model.packed_weights.plan.is_streamed:
            why = "nothing of this model is worth compressing"
        if why is not None:
            raise NotHereError(why)
        _answer(check, model)  # what is compiled, is
        plain = _answer(check, model)
        with warnings.catch_warnings(record=True) as told, as_graphs(model) as tokens:
            warnings.simplefilter("always")
            found = _answer(check, model)
    words = "; ".join(str(warning.message) for warning in told)
    same = found.tokens == plain.tokens and all(map(torch.equal, found.logits, plain.logits))
    used = tokens.why is None and tokens.n_replayed > 1
    check.add(f"{state}: plain", 1e3 * plain.seconds, unit="ms a token")
    note = words or f"{tokens.n_replayed} of {len(found.logits)} tokens"
    check.add(f"{state}: as graphs", 1e3 * found.seconds, unit="ms a token", ok=same and used, note=note)


@dataclass
class _Answer:
    """`seconds`: of one of the later tokens; `times` when each came."""

    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def put(self, _value: torch.Tensor) -> None:
        """Note when a token came, or the prompt."""
        self.times.append(perf_counter())

    def end(self) -> None:
        """Do nothing: no more tokens come."""

    @property
    def seconds(self) -> float:
        """Median of a token, but for the first ones."""
        gaps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return median(gaps[N_BEFORE + 1 :])


def _answer(check: Check, model: Any) -> _Answer:
    prompt, answer = PROMPT.to(check.device), _Answer()
    n_tokens = N_BEFORE + 2 + check.sizes.n_tokens
    with torch.inference_mode():
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            do_sample=False,
            cache_implementation="static",
            disable_compile=True,
            return_dict_in_generate=True,
            output_logits=True,
            streamer=answer,
        )
    answer.tokens = found.sequences[0].tolist()
    answer.logits = [logits.cpu() for logits in found.logits]
    return answer


@contextmanager
def _loaded(check: Check, path: Path, state: str) -> Iterator[Any]:
    """The model with its weights in that state, which rates that are not true make the planner choose."""

    def planned(*arguments: Any, **options: Any) -> Plan:
        plan = plan_device(*arguments, **options)
        fused = state == "straight from blocks"
        return replace(plan, parts=tuple(replace(part, fused=part.fused and fused) for part in plan.parts))

    kind = CudaDevice if check.on_gpu else SimulatedDevice
    chosen = nullcontext() if state == "decoded" else patch.object(kind, "rates", _compressing(DEFAULT))
    memory = (
        None if state == "decoded" else torch.cuda.mem_get_info(check.device)[0] if check.on_gpu else 1 << 30
    )
    with (
        patch("spqfmt.loaders.load.plan_device", planned),
        chosen,
        loaded(check, path, memory, None) as (model, _, _),
    ):
        yield model


def _compressing(rates: DeviceRates) -> DeviceRates:
    """Rates by which whatever can be multiplied straight stays compressed."""
    return replace(
        rates, fused=1e15, compute=rates.compute / 10, operation_s=0.0, step_s=0.0, fused_step_s=0.0
    )
