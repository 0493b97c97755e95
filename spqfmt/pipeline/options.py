"""What a pack is asked for, checked before anything is read."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from spqfmt.calibration.text import CalibrationOptions
from spqfmt.codecs.chunks import CodecPolicy
from spqfmt.errors import OptionError
from spqfmt.quantize.base import Method, MethodOptions, refuse_others
from spqfmt.quantize.calibrated import is_calibrated
from spqfmt.quantize.registry import METHODS

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as 300MiB, 2GB or 4096. OptionError when it is none."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise OptionError(f"{text!r} is not a size like 300MiB or 2GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True)
class PackOptions:
    """Method and its options, codec policy, shards."""

    method: Method
    method_options: MethodOptions
    codec: CodecPolicy
    shard_bytes: int | None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)


def pack_options(
    *,
    method: str = "lossless",
    bits: int | None = None,
    group_size: int | None = None,
    granularity: str | None = None,
    embedding_bits: int | None = None,
    threshold: float | None = None,
    damping: float | None = None,
    act_order: bool | None = None,
    alpha: float | None = None,
    scaling: str | None = None,
    pruning: str | None = None,
    sparsity: float | None = None,
    pattern: str | None = None,
    activations: str | None = None,
    range_weight: float | None = None,
    saliency_tokens: str | None = None,
    search_steps: int | None = None,
    search_samples: int | None = None,
    calibration: str | Path | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
    sequential: bool | None = None,
    seed: int | None = None,
    codec: str = "auto",
    partial: str = "none",
    shard_size: int | str | None = None,
) -> PackOptions:
    """Check and complete what the user gave. OptionError says what is wrong in one line."""
    if method not in METHODS:
        raise OptionError(f"unknown method {method!r}; there are {', '.join(sorted(METHODS))}")
    if codec not in {"auto", "raw", "zstd", "rans"}:
        raise OptionError(f"unknown codec {codec!r}; there are auto, raw, zstd and rans")
    shard_bytes = parse_size(shard_size) if isinstance(shard_size, str) else shard_size
    if shard_bytes is not None and shard_bytes < 1:
        raise OptionError("a shard size is at least 1 byte")
    asked = MethodOptions(
        bits,
        granularity,
        group_size,
        embedding_bits,
        threshold,
        damping,
        act_order,
        alpha,
        scaling,
        pruning,
        sparsity,
        pattern,
        activations,
        range_weight,
        saliency_tokens,
        search_steps,
        search_samples,
    )
    refuse_others(METHODS[method], asked)
    given = {
        "text": None if calibration is None else Path(calibration),
        "samples": samples,
        "seq_len": seq_len,
        "sequential": sequential,
        "seed": seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given and not is_calibrated(METHODS[method]):
        raise OptionError(f"method {method} needs no calibration and takes no options for it")
    return PackOptions(
        METHODS[method],
        METHODS[method].check(asked),
        CodecPolicy(codec, _partial_every(partial)),
        shard_bytes,
        CalibrationOptions(**given),  # type: ignore[arg-type]  # each value has its field's type
    )


def _partial_every(partial: str) -> int:
    if partial == "none":
        return 1
    match = re.fullmatch(r"every:(\d+)", partial)
    if match is None or int(match[1]) < 1:
        raise OptionError(f"partial is none or every:N with N at least 1, not {partial!r}")
    return int(match[1])
