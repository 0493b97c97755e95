"""One family: a small random model, packed without loss and in 4 bits: does what is loaded of it compute the same?

What a file in 4 bits shall compute is what transformers loads from the folder that `unpack` makes of it. Every part of
a model that is a transformers model by itself (a vision tower, a language model) is run by itself too, where inputs for
it can be made; and every weight is compared, whether or not something runs that uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from extras import EXTRAS
from probe_inputs import all_finite, inputs_for, outputs
from tiny_config import tiny_config
from transformers.models.auto import modeling_auto

import spqfmt
from spqfmt.errors import SpqError
from spqfmt.loaders.plan import plan_model

_SUMS = 64
"""Results that are summed in another order may differ by so many units of their dtype, by four times that in 4 bits."""
_SHARE = 4
"""A ceiling is the packed size by this, or the least that the plan allows."""
_DECODED: dict[str, Any] = {"packed": False}
_FOUR_BITS = {"method": "rtn", "bits": 4, "group_size": 16}
MOST_PARAMETERS = 30_000_000
# Each class of these is probed; of a family that has none, the first one of the others.
_LANGUAGE = (
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SPEECH_SEQ_2_SEQ", "CTC",
)  # fmt: skip
_OTHERS = (
    "TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM", "ZERO_SHOT_IMAGE_CLASSIFICATION", "IMAGE_CLASSIFICATION",
    "OBJECT_DETECTION", "UNIVERSAL_SEGMENTATION", "DEPTH_ESTIMATION", "MASK_GENERATION", "PRETRAINING",
)  # fmt: skip


class NotTiny(Exception):  # noqa: N818 # an answer, not an error
    """Why there is no small model of a family that runs."""


@dataclass
class Result:
    """What was found of one family.

    `decoded`, `packed` and `four_bits` (both ways) are empty where it does not come to that, "equal", or what is wrong.
    `ran`: the parts of the model that were run, the whole by its class.
    """

    family: str
    model_class: str = ""
    decoded: str = ""
    packed: str = ""
    four_bits: str = ""
    note: str = ""
    ran: list[str] = field(default_factory=list)
    n_packed: int = 0
    n_weights: int = 0


def model_classes(config_class: Any) -> list[Any]:
    """Classes of a family: its language models, or the one that says most of it; empty where there is none."""
    language = [_class_in(f"MODEL_FOR_{name}_MAPPING", config_class) for name in _LANGUAGE]
    found = list(dict.fromkeys(c for c in language if c is not None))
    if found:
        return found
    others = (*(f"MODEL_FOR_{name}_MAPPING" for name in _OTHERS), "MODEL_MAPPING")
    return [c for c in (_class_in(name, config_class) for name in others) if c is not None][:1]


def _class_in(mapping_name: str, config_class: Any) -> Any:
    mapping = getattr(modeling_auto, mapping_name)
    if config_class not in mapping:
        return None
    try:
        found = mapping[config_class]
    except ValueError:
        # The registry has classes that the library has not.
        return None
    for model_class in found if isinstance(found, list | tuple) else [found]:
        # What needs a library that is not installed has no base class.
        if issubclass(model_class, transformers.PreTrainedModel) and model_class.config_class is config_class:
            return model_class
    return None


def build(model_class: Any, dtype: torch.dtype) -> Any:
    """A small model with seeded random weights, none of them all zeros or ones. Raises NotTiny."""
    config_class = model_class.config_class
    try:
        config = tiny_config(config_class, EXTRAS.get(config_class.model_type, {}))
        if getattr(config, "is_decoder", None) is False and model_class.__name__.endswith(
            ("ForCausalLM", "ModelWithLMHead")
        ):
            config.is_decoder = True
        with torch.device("meta"):
            n = sum(p.numel() for p in model_class(config).parameters())
        if n > MOST_PARAMETERS:
            raise NotTiny(f"{n / 1e6:.0f} million parameters after shrinking")
        torch.manual_seed(0)
        model = model_class(config).to(dtype).eval()
    except (MemoryError, NotTiny):
        raise
    except Exception as error:  # a class may raise anything for a config that nobody has tried
        raise NotTiny(f"its class refuses a small config: {_short(error)}") from error
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.dim() == 1 else 0.02)
    return model


def probe(
    family: str, model_class: Any, folder: Path, dtype: torch.dtype = torch.float32, n_loads: int = 2
) -> Result:
    """Pack a small model of the class into `folder`, load it in every way `n_loads` times, and compare."""
    result = Result(family, model_class.__name__)
    try:
        built = build(model_class, dtype)
        inputs = {name: tried for name, part in parts(built) if (tried := inputs_for(part)) is not None}
    except NotTiny as reason:
        result.note = str(reason)
        return result
    if not inputs:
        result.note = "no part of it runs on inputs made by its signature"
        return result
    result.ran = [name or result.model_class for name in inputs]
    try:
        built.save_pretrained(folder)
        source = type(built).from_pretrained(folder, dtype=dtype).eval()
        expected = {name: outputs(source.get_submodule(name), given) for name, given in inputs.items()}
    except Exception as error:  # noqa: BLE001
        result.note = f"transformers does not bring it back itself, or not to run: {_short(error)}"
        return result
    steady = {
        name
        for name, given in inputs.items()
        if same(outputs(source.get_submodule(name), given), expected[name]) and all_finite(expected[name])
    }
    if not steady:
        result.note = "its own outputs change from call to call, or are no numbers"
        return result
    inputs = {name: inputs[name] for name in inputs if name in steady}
    compare(result, source, {n: (inputs[n], expected[n]) for n in inputs}, folder=folder, n_loads=n_loads)
    return result


def compare(
    result: Result, source: Any, expected: Mapping[str, tuple[Any, Any]], folder: Path, n_loads: int
) -> None:
    """Fill in `result` from what is loaded of the source, packed without loss and in 4 bits."""
    path = folder / "m.spq"
    least = _packed(folder, path, {})
    if isinstance(least, str):
        result.decoded = result.packed = least
    else:
        wanted = Wanted(source, expected)
        result.decoded = _loads(wanted, path, ways=[_DECODED], result=result, n_loads=n_loads)
        ways: list[dict[str, Any]] = [{"packed": True}, {"memory": least}]
        result.packed = _loads(wanted, path, ways=ways, result=result, n_loads=n_loads)
    path.unlink(missing_ok=True)
    result.four_bits = _in_four_bits(result, source, expected, folder)


def _in_four_bits(result: Result, source: Any, expected: Mapping[str, tuple[Any, Any]], folder: Path) -> str:
    path, values = folder / "m4.spq", folder / "values"
    least = _packed(folder, path, _FOUR_BITS)
    if isinstance(least, str):
        return least
    try:
        spqfmt.unpack(path, values)
    except SpqError as error:
        return f"refused to unpack: {_short(error)}"
    except Exception as error:  # noqa: BLE001
        return f"FAILS to unpack: {_short(error)}"
    there = type(source).from_pretrained(values, dtype=source.dtype).eval()
    found = {
        name: (given, outputs(there.get_submodule(name), given)) for name, (given, _) in expected.items()
    }
    if not all(all_finite(values) for _, values in found.values()):
        return "no numbers in 4 bits"
    wanted = Wanted(there, found, 4 * _SUMS)
    return _loads(
        wanted, path, ways=[_DECODED, {"packed": True}, {"memory": least}], result=result, n_loads=1
    )


def _packed(folder: Path, path: Path, options: Mapping[str, Any]) -> int | str:
    """Pack, and give a ceiling; or what is wrong."""
    try:
        spqfmt.pack(folder, path, **options)
        return max(path.stat().st_size // _SHARE, plan_model(path).plan.smallest_bytes)
    except SpqError as error:
        return f"refused: {_short(error)}"
    except Exception as error:  # noqa: BLE001
        return f"FAILS: {_short(error)}"


@dataclass
class Wanted:
    """What a file shall give: weights as in `source`, and by part what it gives for what."""

    source: Any
    outputs: Mapping[str, tuple[Any, Any]]
    n_units: int = _SUMS


def _loads(expected: Wanted, path: Path, ways: list[dict[str, Any]], result: Result, n_loads: int) -> str:
    source = expected.source
    for options in ways:
        # Parts of a matrix are not summed as the whole is.
        found: dict[str, Any] = {}
        for _ in range(n_loads):
            try:
                model, _ = spqfmt.load_model(path, **options)
            except SpqError as error:
                return f"refused: {_short(error)}"
            except Exception as error:  # noqa: BLE001
                return f"FAILS to load: {_short(error)}"
            try:
                for name, (given, wanted) in expected.outputs.items():
                    got = outputs(model.get_submodule(name), given)
                    where = name or "the model"
                    if not all_finite(got):
                        return f"NOT NUMBERS: {where}"
                    if not same(got, found.setdefault(name, got)):
                        return f"CHANGES from load to load: {where}"
                    # Weights are compared to the bit below; torch's sums depend on where in memory they lie, too.
                    if not near(got, wanted, expected.n_units):
                        return f"DIFFERS: {where} by {distance(got, wanted):.1e}"
                if wrong := wrong_weights(source, model):
                    return f"WEIGHTS DIFFER: {', '.join(wrong[:3])}"
                if model.num_parameters() != source.num_parameters():
                    return f"COUNTS {model.num_parameters()} parameters, not {source.num_parameters()}"
                if options is not _DECODED:
                    packed = [m for m in model.modules() if hasattr(m, "record")]
                    result.n_packed = len(packed)
                    result.n_weights = sum(m.record.n_weights for m in packed if not m.is_tied)
            except Exception as error:  # noqa: BLE001
                return f"FAILS: {_short(error)}"
            finally:
                if options is not _DECODED:
                    model.packed_weights.close()
    return "equal"


def wrong_weights(source: Any, model: Any) -> list[str]:
    """Names of weights and buffers that are not as in the source."""
    wrong = []
    for name, wanted in [*source.named_parameters(), *source.named_buffers()]:
        parent, _, own = name.rpartition(".")
        found = getattr(model.get_submodule(parent), own, None)
        if found is None or found.dtype != wanted.dtype or not torch.equal(found.detach().clone(), wanted):
            wrong.append(name)
    return wrong


def parts(model: Any) -> Iterator[tuple[str, Any]]:
    """The model, by an empty name, and what in it is a transformers model by itself."""
    for name, module in model.named_modules():
        if isinstance(module, transformers.PreTrainedModel):
            yield name, module


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Whether all tensors are the same, bit for bit."""
    return len(a) == len(b) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


def near(a: list[torch.Tensor], b: list[torch.Tensor], n_units: int = _SUMS) -> bool:
    """Whether all tensors are the same up to so many units of their dtype."""
    return (
        len(a) == len(b)
        and all(x.shape == y.shape and x.dtype == y.dtype for x, y in zip(a, b, strict=True))
        and (distance(a, b) <= n_units * max(torch.finfo(x.dtype).eps for x in a))
    )


def distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """The largest difference of a tensor, by its largest number."""
    worst = 0.0
    for x, y in zip(a, b, strict=False):
        if x.shape != y.shape:
            return float("inf")
        if x.numel() and not torch.equal(x, y):
            apart = torch.where(x == y, 0.0, (x.double() - y.double()).abs()).max()
            finite = y[y.isfinite()].double().abs()
            worst = max(
                worst, float(apart / finite.max().clamp(min=1e-6)) if finite.numel() else float("inf")
            )
    return worst


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text if isinstance(error, SpqError) else f"{type(error).__name__}: {text}")[:160]
