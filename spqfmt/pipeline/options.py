"""What a pack is asked for, checked before anything is read."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict, Unpack

from spqfmt.calibration.text import CalibrationOptions
from spqfmt.codecs.chunks import CodecPolicy
from spqfmt.errors import OptionError
from spqfmt.pipeline.partial import Every, Speed, parse_partial
from spqfmt.pipeline.sizes import parse_shard_size
from spqfmt.quantize.base import Method, MethodOptions, refuse_others
from spqfmt.quantize.calibrated import is_calibrated
from spqfmt.quantize.registry import METHODS


@dataclass(frozen=True)
class PackOptions:
    """Method and its options, codec policy, shards; with `speed` what was packed is cut down to the best chunks."""

    method: Method
    method_options: MethodOptions
    codec: CodecPolicy
    shard_bytes: int | None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    speed: Speed | None = None


class PackArguments(TypedDict, total=False):
    """Keyword arguments of `pack`; each is the option of `spqfmt pack` with its name. None is the default."""

    method: str
    bits: int | None
    group_size: int | None
    granularity: str | None
    embedding_bits: int | None
    threshold: float | None
    damping: float | None
    act_order: bool | None
    alpha: float | None
    scaling: str | None
    pruning: str | None
    sparsity: float | None
    pattern: str | None
    activations: str | None
    range_weight: float | None
    saliency_tokens: str | None
    search_steps: int | None
    search_samples: int | None
    calibration: str | Path | None
    samples: int | None
    seq_len: int | None
    sequential: bool | None
    seed: int | None
    codec: str
    partial: str
    rates: str | Path | None
    shard_size: int | str | None


# argument -> field of CalibrationOptions
_CALIBRATION = {"calibration": "text"} | {n: n for n in ("samples", "seq_len", "sequential", "seed")}
_METHOD = [field.name for field in fields(MethodOptions)]


def pack_options(**arguments: Unpack[PackArguments]) -> PackOptions:
    """Check and complete what the user gave. OptionError says what is wrong in one line."""
    if unknown := arguments.keys() - PackArguments.__annotations__.keys():
        raise TypeError(f"pack has no argument {min(unknown)!r}")
    name = arguments.get("method", "lossless")
    codec = arguments.get("codec", "auto")
    if name not in METHODS:
        raise OptionError(f"unknown method {name!r}; there are {', '.join(sorted(METHODS))}")
    if codec not in {"auto", "raw", "zstd", "rans"}:
        raise OptionError(f"unknown codec {codec!r}; there are auto, raw, zstd and rans")
    method = METHODS[name]
    given: dict[str, Any] = {key: value for key, value in arguments.items() if value is not None}
    asked = MethodOptions(**{key: given[key] for key in _METHOD if key in given})
    refuse_others(method, asked)
    calibration = {field: given[key] for key, field in _CALIBRATION.items() if key in given}
    if calibration and not is_calibrated(method):
        raise OptionError(f"method {name} needs no calibration and takes no options for it")
    if "text" in calibration:
        calibration["text"] = Path(calibration["text"])
    rule = parse_partial(arguments.get("partial", "none"), arguments.get("rates"))
    return PackOptions(
        method,
        method.check(asked),
        CodecPolicy(codec, rule.n if isinstance(rule, Every) else 1),
        parse_shard_size(arguments.get("shard_size")),
        CalibrationOptions(**calibration),
        rule if isinstance(rule, Speed) else None,
    )
