"""Partial compression: which chunks of weights are worth their decoding (Double Compression, section 3).

Two rules. `every:N` is the paper's: of every N chunks only the last is compressed, so that decoding takes a part in N
of the time. `speed` takes the chunks that save most bytes for each millisecond of decoding.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from spqfmt.errors import EncodeError, OptionError
from spqfmt.residency.decode_rates import DecodeRates, read_rates
from spqfmt.sizes import parse_size

_NUMBER = r"(\d+(?:\.\d+)?)"


@dataclass(frozen=True)
class Every:
    """The rule that compresses only the last of every `n` chunks; 1 compresses all."""

    n: int = 1


@dataclass(frozen=True)
class Speed:
    """The best chunks until `of` is reached.

    `bytes`: all tensors together take at most `value` bytes. `ms`: decoding takes at most `value` milliseconds a pass
    on one thread. `percent`: `value` per cent of what compressing all would save are saved. `rates` None are those of
    this machine.
    """

    of: Literal["bytes", "ms", "percent"]
    value: float
    rates: DecodeRates | None = None


Rule: TypeAlias = Every | Speed
WHOLE = Every()
DEFAULT_PERCENT = 50.0


def parse_partial(text: str, rates: str | Path | None = None) -> Rule:
    """Parse none, every:N, speed, speed:SIZE, speed:TIME as in 25ms, speed:SHARE as in 40%; `rates` is a file of them.

    Raises OptionError, and what `read_rates` does.
    """
    rule = _parse_rule(text)
    if rates is None:
        return rule
    if isinstance(rule, Every):
        raise OptionError(f"partial {text} needs no rates; only speed does")
    return replace(rule, rates=read_rates(rates))


def _parse_rule(text: str) -> Rule:
    name, _, value = text.partition(":")
    if text == "none":
        return WHOLE
    if text == "speed":
        return Speed("percent", DEFAULT_PERCENT)
    if name == "every" and re.fullmatch(r"0*[1-9]\d{0,8}", value):
        return Every(int(value))
    if name == "speed":
        if match := re.fullmatch(_NUMBER + "ms", value):
            return Speed("ms", float(match[1]))
        if (match := re.fullmatch(_NUMBER + "%", value)) and float(match[1]) <= 100:
            return Speed("percent", float(match[1]))
        if re.fullmatch(_NUMBER + r"\s*([KMG]i?)?B", value, re.IGNORECASE):
            return Speed("bytes", parse_size(value))
    raise OptionError(
        f"partial is none, every:N with N at least 1, or speed with a size, a time or a share of the saving "
        f"(speed:90MiB, speed:25ms, speed:40%), not {text!r}"
    )


class Candidate(NamedTuple):
    """A chunk of weights: its bytes raw and compressed, and the time of decoding it."""

    raw_bytes: int
    stored_bytes: int
    decode_ns: float

    @property
    def saved_bytes(self) -> int:
        """Bytes that compressing the chunk saves."""
        return self.raw_bytes - self.stored_bytes


class ChosenChunks(NamedTuple):
    """Numbers of the chunks to compress, the bytes of all tensors then, and the time of decoding them all."""

    chunks: frozenset[int]
    tensor_bytes: int
    decode_ns: float


def choose(candidates: Sequence[Candidate], other_bytes: int, rule: Speed) -> ChosenChunks:
    """The chunks to compress by `rule`; `other_bytes` are those of the tensors' streams that hold no weights.

    Chunks are taken by bytes saved for each nanosecond, equal ones in the order of the file, until the rule is met:
    less saving takes a part of the same chunks. Raises EncodeError when all of them together do not meet it.
    """
    order = sorted(
        (number for number, c in enumerate(candidates) if c.saved_bytes > 0),
        key=lambda number: (-candidates[number].saved_bytes / candidates[number].decode_ns, number),
    )
    tensor_bytes = other_bytes + sum(c.raw_bytes for c in candidates)
    goal = tensor_bytes - sum(candidates[number].saved_bytes for number in order) * rule.value / 100
    chosen: list[int] = []
    decode_ns = 0.0
    for number in order:
        candidate = candidates[number]
        if (
            (rule.of == "bytes" and tensor_bytes <= rule.value)
            or (rule.of == "percent" and tensor_bytes <= goal)
            or (rule.of == "ms" and decode_ns + candidate.decode_ns > 1e6 * rule.value)
        ):
            break
        chosen.append(number)
        tensor_bytes -= candidate.saved_bytes
        decode_ns += candidate.decode_ns
    if rule.of == "bytes" and tensor_bytes > rule.value:
        raise EncodeError(
            f"tensors of {rule.value:.0f} bytes cannot be reached: compressed whole they take {tensor_bytes}"
        )
    return ChosenChunks(frozenset(chosen), tensor_bytes, decode_ns)
