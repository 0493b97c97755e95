"""What a family of quantized checkpoints is: which arrays make a weight, and the weight in the terms of a scheme."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from spqfmt.codecs.elements import Elements
from spqfmt.errors import ImporterError
from spqfmt.importers._quantized import QUANTIZER_KEYS, quantizer_of
from spqfmt.importers._safetensors import Stored, loader
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.floats import widen

DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""What a config calls the dtypes of weights."""
COMPRESSED_TENSORS = "compressed-tensors"
_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Types of models that transformers builds of Conv1D."""
_METHODS = frozenset(
    {
        "aqlm", "auto-round", "awq", "bitsandbytes", "bitnet", COMPRESSED_TENSORS, "eetq", "exl2", "exl3",
        "fbgemm_fp8", "fp8", "gptq", "hqq", "modelopt", "mxfp4", "quanto", "spqr", "vptq",
    }
)  # fmt: skip
"""What transformers calls the quantizers whose arrays are known not to be another's."""
_FORMATS = frozenset(
    {
        "dense", "float-quantized", "int-quantized", "marlin-24", "mixed-precision", "mxfp4-pack-quantized",
        "mxfp8-quantized", "naive-quantized", "nvfp4-pack-quantized", "pack-quantized", "sparse-24-bitmask",
        "sparse-bitmask",
    }
)  # fmt: skip
"""What compressed-tensors calls its layouts, those included that are not taken apart."""
_CONFIGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files in which these libraries say what they did, and the method where the file does not name it."""


@dataclass(frozen=True)
class Quantizer:
    """What a config.json says of the quantizer; all is empty where it says nothing."""

    method: str = ""
    formats: frozenset[str] = frozenset()
    """Formats of compressed-tensors, such as "nvfp4-pack-quantized"; of bitsandbytes nf4, fp4 or int8."""
    blocks: tuple[tuple[int, int], ...] = ()
    """Rows and columns of blocks that share a scale."""
    only_blocks: bool = False
    """Whether all of its scales are of such blocks."""
    said: Mapping[str, Any] = field(default_factory=dict)
    """All that it says."""

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path | None = None) -> Quantizer:
        """Read what a config.json says, or a file of the quantizer beside it in `folder`.

        Raises ImporterError where what it says cannot be understood.
        """
        found = quantizer_of(config)
        if found is None and folder is not None:
            found = _beside(folder)
        if not isinstance(found, dict):
            # Other libraries have texts under keys of their own.
            if quantizer_of(config, QUANTIZER_KEYS[:1]) is None:
                return cls()
            raise ImporterError(
                f"config.json: its quantization_config is {str(found)[:40]!r}, no object; download the file again"
            )
        method = found.get("quant_method") or ""
        if not isinstance(method, str):
            raise ImporterError(
                f"config.json: its quant_method is {str(method)[:40]!r}, no name; download it again"
            )
        size = found.get("weight_block_size")
        if size is not None:
            blocks = (_block(size, "weight_block_size"),)
            return cls(method, blocks=blocks, only_blocks=True, said=found)
        if method == "bitsandbytes":
            return cls(method, _of_bitsandbytes(found), said=found)
        groups = found.get("config_groups")
        groups = {} if groups is None else groups
        if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
            raise ImporterError("config.json: its config_groups of quantization are no objects")
        formats = [found.get("format"), *(group.get("format") for group in groups.values())]
        unknown = sorted({str(name) for name in formats if name} - _FORMATS)
        if method == COMPRESSED_TENSORS and unknown:
            raise ImporterError(
                f"config.json: its format {unknown[0][:40]!r} of compressed-tensors is none that is known"
            )
        weights = [group.get("weights") for group in groups.values()]
        schemes = [scheme for scheme in weights if isinstance(scheme, dict)]
        sizes = [scheme.get("block_structure") for scheme in schemes if scheme.get("strategy") == "block"]
        return cls(
            method,
            frozenset(str(name) for name in formats if name),
            tuple(_block(size, "block_structure") for size in sizes),
            only_blocks=bool(sizes) and len(sizes) == len(schemes),
            said=found,
        )

    def writes(self, form: str, methods: Mapping[str, frozenset[str]], name: str) -> bool:
        """Whether arrays that look like `form` are of it; False for a method that nobody here knows.

        `methods` are those that write this form, each with its formats. Raises ImporterError where the config speaks of
        another, and names tensor `name`.
        """
        said = ""
        if self.method in _METHODS - methods.keys():
            said = f"quant_method {self.method!r}"
        elif self.formats and not self.formats & methods.get(self.method, self.formats):
            said = f"format {', '.join(sorted(self.formats))}"
        if said:
            raise ImporterError(
                f"tensor {name!r} is stored as {form}, but config.json says {said}; download both again"
            )
        return not self.method or self.method in methods


def _beside(folder: Path) -> dict[str, Any] | None:
    """What a file of the quantizer itself says, which is all that early checkpoints have; None where there is none."""
    for name, method in _CONFIGS.items():
        try:
            found = json.loads((folder / name).read_bytes())
        except FileNotFoundError:
            continue
        except (ValueError, RecursionError) as error:
            raise ImporterError(
                f"{folder / name}: not valid JSON ({error}); download the file again"
            ) from None
        if not isinstance(found, dict):
            raise ImporterError(f"{folder / name}: not a JSON object; download the file again")
        return {"quant_method": method, **found}
    return None


def _of_bitsandbytes(found: Mapping[str, Any]) -> frozenset[str]:
    """What it quantizes to; empty where the config does not say."""
    if found.get("load_in_8bit"):
        return frozenset({"int8"})
    kind = found.get("bnb_4bit_quant_type") if found.get("load_in_4bit") else None
    return frozenset() if kind is None else frozenset({str(kind)})


def _block(size: object, key: str) -> tuple[int, int]:
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    raise ImporterError(f"config.json: its {key} of quantization is {size!r}, not two numbers")


@dataclass(frozen=True)
class Checkpoint:
    """The arrays of a checkpoint by name, and what its config.json says."""

    arrays: Mapping[str, Stored]
    quantizer: Quantizer
    dtype: str
    """Dtype of the model that computes with them."""
    has_conv1d: bool = False
    """Whether the model's own linear layers have weights [in, out]."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """All that config.json says."""

    @classmethod
    def of(
        cls, arrays: Mapping[str, Stored], config: Mapping[str, Any], folder: Path | None = None
    ) -> Checkpoint:
        """Take the arrays as they are, and what the config, or a file in `folder`, says of them.

        Raises ImporterError.
        """
        text = config.get("text_config")
        places = (config, text if isinstance(text, dict) else {})
        named = (place[key] for place in places for key in ("dtype", "torch_dtype") if place.get(key))
        return cls(
            arrays,
            Quantizer.of(config, folder),
            DTYPES.get(str(next(named, "")), "bf16"),
            has_conv1d=config.get("model_type") in _CONV1D,
            config=config,
        )

    def turns(self, name: str) -> bool:
        """Whether the model has weight `name` as [in, out], which quantizers of linear layers turn."""
        module = name.split(".")[-2:][0]
        return self.has_conv1d and module.startswith(("c_", "q_"))

    def read(self, name: str) -> Elements:
        """An array, as numpy carries it."""
        # torch takes seconds to import: not where only names are asked for.
        from spqfmt.kernels.torch_arrays import to_numpy

        return to_numpy(loader(name, self.arrays[name])())

    def scales(self, name: str, dtype: str) -> Elements:
        """An array of numbers of `dtype`. Raises ImporterError where some is not finite."""
        found = self.read(name)
        if not np.isfinite(widen(found, dtype)).all():
            raise ImporterError(
                f"tensor {name!r} holds scales that are NaN or infinite; --method lossless keeps it"
            )
        return found


@dataclass(frozen=True)
class CodedWeight:
    """A weight that arrays of a checkpoint stand for.

    `name`, `shape`, `dtype` and `transposed` are those of the weight as the model has it. `view` is the shape in which
    its groups are rows or parts of rows, where they are not in its own, or columns with `has_turned_view`. `stored`
    raises ImporterError where the arrays hold what no reader could use. What is `transposed` has no view: the weights
    of a view are in the order of `shape`, which is not that of the codes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    form: str
    arrays: Mapping[str, Mapping[str, object] | None]
    """The arrays that it is taken from, by name, each with the part of it that gives this array again
    (spec/origins/arrays.md); None for a number that is too small to be worth one."""
    stored: Callable[[], Quantized]
    transposed: bool = False
    view: tuple[int, ...] | None = None
    has_turned_view: bool = False


@dataclass(frozen=True)
class LeftAsArrays:
    """Codes, the array of this name, that a family knows and leaves as arrays."""

    name: str
    why: str
    """What a pack says of it: "because of ..."."""


class Family(Protocol):
    """What a module of this folder offers under the name `FAMILY`."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights of a checkpoint that are of this family, and codes that stay arrays. Reads none but small arrays.

        Arrays that only look like it are left to others. Raises ImporterError, with the name of one, for those that
        contradict each other or the config.
        """
        ...


def missing(name: str, beside: str) -> ImporterError:
    """The error of an array that is not there, although another one means nothing without it."""
    return ImporterError(f"tensor {name!r} is missing beside {beside!r}; download the model again")


def misfit(arrays: Mapping[str, Stored], scales: str, codes: str, why: str = "") -> ImporterError:
    """The error of scales whose shape does not fit that of their codes; both are named."""
    return ImporterError(
        f"tensor {scales!r} of shape {list(arrays[scales].shape)} does not fit {codes!r} of shape "
        f"{list(arrays[codes].shape)}{why}; download both again"
    )
