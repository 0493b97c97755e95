"""What a pack is asked for, checked before anything is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from spqfmt.calibration.text import CalibrationOptions
from spqfmt.codecs.chunks import CodecPolicy
from spqfmt.codecs.registry import CHOICES, unknown_codec
from spqfmt.errors import ImporterError, OptionError
from spqfmt.importers._quantized import quantized_arrays
from spqfmt.importers._source_file import SourceChangedError
from spqfmt.importers.base import SourceModel
from spqfmt.packing.target import FITTING, KEEPING, KEEPING_CODES, BitsPerWeight, Fit, check_coding, choose
from spqfmt.quantize.base import GradedMethod, KeepingMethod, Method, MethodOptions, refuse_others
from spqfmt.quantize.calibrated import is_calibrated
from spqfmt.quantize.ecq.effort import effort_of
from spqfmt.quantize.registry import METHODS
from spqfmt.rewriting.partial import WHOLE, Every, Speed, parse_partial
from spqfmt.sizes import check_ranks, parse_block, parse_chunk_alignment, parse_shard_size
from spqfmt.stand_ins import given_path
from spqfmt.wire import CHUNK_ALIGNMENT


@dataclass(frozen=True)
class PackOptions:
    """Method and its options, codec policy, shards; with `speed` what was packed is cut down to the best chunks."""

    method: Method
    method_options: MethodOptions
    codec: CodecPolicy
    shard_bytes: int | None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    speed: Speed | None = None
    fit: Fit | None = None
    """The size that ecq must hit; None for other methods."""
    identity: bool = True
    """Whether the file says by digests what it holds, and how the source's files are made again."""
    chunk_alignment: int = CHUNK_ALIGNMENT
    ranks: int = 1
    """Processes that shall each read their part of the layers alone."""
    dequantize: bool = False
    """Whether codes of the source are taken for the values that they stand for."""
    block_log2: int = 0
    """Exponent of 2 of the size of rans blocks; 0 leaves it to the encoder."""
    is_asked: bool = True
    """Whether the method was asked for, or a size; a source may call for another one than the default."""

    def for_source(self, model: SourceModel) -> Self:
        """The options for a model: what stores codes of its own is kept as it is where no method was asked for.

        The default would write the values that the codes stand for, in twice the bytes, or arrays that no model is
        loaded from. Arrays that are not understood, all of them, are left to it. Raises ImporterError for those that
        contradict each other or what is said of them (decision 0047).
        """
        if self.is_asked or self.dequantize:
            return self
        try:
            tensors = model.as_weights().tensors
        except SourceChangedError:
            raise
        except ImporterError as error:
            # What is damaged is not to be packed in silence, but whoever wants its bytes can have them.
            way_out = f"--method {KEEPING} keeps the arrays as they are"
            raise ImporterError(str(error) if KEEPING in str(error) else f"{error}; {way_out}") from None
        coded = [tensor for tensor in tensors if tensor.form]
        left = quantized_arrays((tensor.name, tensor.shape, tensor.dtype) for tensor in tensors)
        if not coded or left or not all(tensor.stored for tensor in coded):
            return self
        return replace(self, method=METHODS[KEEPING_CODES])


class PackArguments(TypedDict, total=False):
    """Keyword arguments of `pack`; each is the option of `spqfmt pack` with its name. None is the default."""

    method: str
    bits: float | None
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
    gradients: bool | None
    no_calibration: bool | None
    effort: str | None
    trellis: bool | None
    dequantize: bool | None
    fit: int | str | None
    fit_memory: int | str | None
    calibration: str | Path | None
    samples: int | None
    seq_len: int | None
    sequential: bool | None
    seed: int | None
    no_bos: bool | None
    device: str | None
    codec: str
    partial: str
    rates: str | Path | None
    shard_size: int | str | None
    no_identity: bool | None
    chunk_alignment: int | str | None
    ranks: int | None
    block: int | str | None


# argument -> field of CalibrationOptions
_CALIBRATION = {"calibration": "text"} | {
    n: n for n in ("samples", "seq_len", "sequential", "seed", "no_bos", "device")
}
_METHOD = [field.name for field in fields(MethodOptions)]


def pack_options(**arguments: Unpack[PackArguments]) -> PackOptions:
    """Check and complete what the user gave. OptionError says what is wrong in one line."""
    if unknown := arguments.keys() - PackArguments.__annotations__.keys():
        raise TypeError(f"pack has no argument {min(unknown)!r}")
    given: dict[str, Any] = {key: value for key, value in arguments.items() if value is not None}
    name, bits, size = choose(*(given.get(key) for key in ("method", "bits", "fit", "fit_memory")))
    codec = arguments.get("codec", "auto")
    if codec not in CHOICES:
        raise OptionError(unknown_codec(codec))
    method = METHODS[name]
    if "method" not in given and size is None:
        _refuse_without_a_method(given)
    asked = MethodOptions(**{key: given[key] for key in _METHOD if key in given and key != "bits"} | bits)
    refuse_others(method, asked)
    method = method.grade(asked) if isinstance(method, GradedMethod) else method
    calibration = {field: given[key] for key, field in _CALIBRATION.items() if key in given}
    if calibration and not is_calibrated(method):
        raise OptionError(f"method {name} needs no calibration and takes no options for it")
    if name == FITTING:
        effort = effort_of(asked.effort)
        calibration = {"sequential": effort.sequential, "samples": effort.samples} | calibration
    if arguments.get("dequantize") and isinstance(method, KeepingMethod):
        raise OptionError(f"--dequantize gives up the codes that method {name} keeps; give one of the two")
    if "text" in calibration:
        calibration["text"] = given_path(calibration["text"])
    rule = parse_partial(arguments.get("partial", "none"), arguments.get("rates"))
    checked = method.check(asked)
    for key, value in given.items():
        # Methods have words of their own for most numbers. An infinite threshold asks for no outliers.
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and key != "threshold")):
            raise OptionError(f"--{key.replace('_', '-')} {value}: not a number that can be worked with")
    shard_bytes = parse_shard_size(arguments.get("shard_size"))
    target: Fit | None = size
    if name == FITTING:
        target = size or BitsPerWeight(checked.bits_per_weight or 0.0)
        check_coding(codec, compresses_all=rule == WHOLE, shards=shard_bytes is not None)
        if given.get("block") is not None:
            raise OptionError(
                f"method {FITTING} plans sizes with its own blocks; give --block to repack afterwards"
            )
    return PackOptions(
        method=method,
        method_options=checked,
        codec=CodecPolicy(codec, rule.n if isinstance(rule, Every) else 1),
        shard_bytes=shard_bytes,
        calibration=CalibrationOptions(**calibration),
        speed=rule if isinstance(rule, Speed) else None,
        fit=target,
        identity=not arguments.get("no_identity"),
        chunk_alignment=parse_chunk_alignment(arguments.get("chunk_alignment")) or CHUNK_ALIGNMENT,
        ranks=_ranks(given.get("ranks"), is_fitted=target is not None),
        dequantize=bool(arguments.get("dequantize")),
        block_log2=parse_block(given.get("block")),
        is_asked="method" in given or size is not None,
    )


def _ranks(given: int | None, *, is_fitted: bool) -> int:
    ranks = check_ranks(given) or 1
    if ranks > 1 and is_fitted:
        raise OptionError("--ranks changes the size that was asked for: pack without it, then repack --ranks")
    return ranks


def _refuse_without_a_method(given: Mapping[str, object]) -> None:
    """Raise OptionError for options of methods where none was named."""
    keys = [key for key in (*_METHOD, *_CALIBRATION) if key in given]
    if not keys:
        return
    takers = [name for name in sorted(METHODS) if all(_takes(METHODS[name], key) for key in keys)]
    options = " and ".join(f"--{key.replace('_', '-')}" for key in keys)
    raise OptionError(
        f"{options} without --method, and by default nothing is quantized"
        + (f"; it goes with {', '.join(takers)}" if takers else "")
    )


def _takes(method: Method, option: str) -> bool:
    if option in _CALIBRATION:
        return is_calibrated(method)
    return option in method.takes or (option == "bits" and "bits_per_weight" in method.takes)
