"""Codes of four bits of bitsandbytes: NF4 and FP4, with or without scales that are codes themselves.

    NAME                   U8 (or the bytes in another dtype) [n / 2, 1], two codes a byte, the first in its high half
    NAME.absmax            F32 [blocks], or U8 where they are codes themselves
    NAME.quant_map         F32 [16], the value of each code
    NAME.nested_absmax     F32 [blocks / 256], NAME.nested_quant_map F32 [256]: of scales that are codes
    NAME.quant_state.bitsandbytes__nf4, or __fp4: U8, JSON with shape, dtype, sizes of blocks, and what is added to
    scales that are codes

A block is so many weights in a row of all of them, wherever the matrix has its edges. What is restored is map[code] *
scale in binary32, rounded to the dtype that the JSON names; a scale that is a code is map[code] * nested + offset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from spqfmt.codecs.elements import Elements, from_planes
from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import DTYPES, Checkpoint, CodedWeight, LeftAsArrays, misfit, missing
from spqfmt.records import dense_bytes
from spqfmt.schemes.floats import overflow_allowed
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped

_STATE = ".quant_state.bitsandbytes__"
_TYPES = ("nf4", "fp4")


class Bitsandbytes:
    """Codes of four bits in blocks."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights that have a state beside them, as `Family.find` says."""
        _check_complete(checkpoint)
        for name, array in checkpoint.arrays.items():
            stem, is_state, kind = name.rpartition(_STATE)
            if not is_state or kind not in _TYPES or array.dtype != "u8" or stem not in checkpoint.arrays:
                continue
            if checkpoint.quantizer.writes(kind.upper(), {"bitsandbytes": frozenset({kind})}, stem):
                blocks = _Blocks.of(checkpoint, stem, name, kind)
                if prod(blocks.shape) % 2:
                    yield LeftAsArrays(
                        stem, "codes of an odd number, whose last byte has a half that is none's"
                    )
                    continue
                blocks.check(checkpoint)
                weight = blocks.weight(checkpoint)
                if weight.transposed and weight.view is not None:
                    # A view is of the weights in the order of the model, which is not the order of the blocks.
                    yield LeftAsArrays(
                        stem, "blocks that are no parts of rows, of a matrix that the model has turned"
                    )
                else:
                    yield weight


def _check_complete(checkpoint: Checkpoint) -> None:
    """Raise ImporterError for blocks without a state, and a state without blocks, where the config is the library's."""
    arrays, said = checkpoint.arrays, checkpoint.quantizer
    if said.method != "bitsandbytes":
        return
    states = {name.rpartition(_STATE)[0]: name for name in arrays if _STATE in name}
    for stem, state in states.items():
        if stem not in arrays:
            raise missing(stem, state)
    kind = next((kind for kind in _TYPES if kind in said.formats), "")
    for name, array in arrays.items():
        stem = name.removesuffix(".absmax")
        is_codes = kind and stem == name and name.endswith(".weight") and array.dtype == "u8"
        if (stem != name or is_codes) and stem not in states:
            raise missing(f"{stem}{_STATE}{kind or _TYPES[0]}", name)


@dataclass(frozen=True)
class _Blocks:
    """What the state beside codes of four bits says of them, of which the arrays have the shapes."""

    name: str
    kind: str
    state: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    nested_size: int
    """0 where scales are numbers."""
    offset: np.float32

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str, state: str, kind: str) -> _Blocks:
        """Read what a state says of its arrays, whose shapes `check` compares.

        Raises ImporterError.
        """
        said = _json(checkpoint, state)
        is_nested = f"{name}.nested_absmax" in checkpoint.arrays
        shape, dtype = said.get("shape"), DTYPES.get(str(said.get("dtype")))
        size, nested = _count(said.get("blocksize")), _count(said.get("nested_blocksize")) if is_nested else 1
        offset = said.get("nested_offset") if is_nested else 0.0
        fits = said.get("quant_type") == kind and is_nested == ("nested_offset" in said)
        sizes = [_count(n) for n in shape] if isinstance(shape, list) else []
        if not (fits and dtype and size and nested and sizes and all(sizes) and isinstance(offset, float)):
            raise ImporterError(
                f"tensor {state!r} says {json.dumps(said)[:200]}, which does not fit the arrays beside it; "
                "download both again"
            )
        with overflow_allowed():
            of_map = np.float32(offset)
        if not np.isfinite(of_map):
            raise ImporterError(f"tensor {state!r} holds an offset of {offset}; --method lossless keeps it")
        n_weights = prod(sizes)
        # A block ends with the weights, however long it is said to be.
        size = min(size, n_weights)
        nested = min(nested, -(-n_weights // size)) if is_nested else 0
        return cls(name, kind, state, tuple(sizes), dtype=dtype, size=size, nested_size=nested, offset=of_map)

    @property
    def n_blocks(self) -> int:
        return -(-prod(self.shape) // self.size)

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise ImporterError unless the arrays have the lengths and dtypes that these blocks need."""
        arrays, nested = checkpoint.arrays, self.nested_size
        codes = arrays[self.name]
        if codes.dtype == "bool":
            raise misfit(arrays, self.name, self.state, ": codes of bool")
        if 2 * dense_bytes(codes.dtype, prod(codes.shape)) != prod(self.shape):
            raise misfit(arrays, self.state, self.name, f", which says {list(self.shape)}")
        due = {"absmax": ("u8" if nested else "f32", self.n_blocks), "quant_map": ("f32", 16)}
        if nested:
            due |= {"nested_absmax": ("f32", -(-self.n_blocks // nested)), "nested_quant_map": ("f32", 256)}
        for end, (dtype, n) in due.items():
            found = arrays.get(f"{self.name}.{end}")
            if found is None:
                raise missing(f"{self.name}.{end}", self.state)
            if (found.dtype, prod(found.shape)) != (dtype, n):
                raise misfit(
                    arrays,
                    f"{self.name}.{end}",
                    self.name,
                    f" in blocks of {self.size}: {n} of {dtype} are due",
                )
            if end.endswith("map") and found.shape != (n,):
                raise misfit(arrays, f"{self.name}.{end}", self.name, f": a line of {n} is due")

    def weight(self, checkpoint: Checkpoint) -> CodedWeight:
        """The weight that these codes stand for."""
        nested, of_scales = self.nested_size, f"{self.name}.absmax"
        grid = self._grid()
        turned = checkpoint.turns(self.name) and len(self.shape) == 2
        lines = -(-grid.rows // grid.group_rows)

        def scales() -> GroupValues:
            if not nested:
                return GroupValues(checkpoint.scales(of_scales, "f32").reshape(lines, -1), "f32")
            steps = checkpoint.scales(f"{self.name}.nested_absmax", "f32").reshape(-1, 1)
            return GroupValues(
                checkpoint.read(of_scales).reshape(lines, -1),
                "u8",
                steps=steps,
                steps_dtype="f32",
                levels=checkpoint.scales(f"{self.name}.nested_quant_map", "f32"),
                minimums=np.full_like(steps, -self.offset),
            )

        def stored() -> Grouped:
            return Grouped(
                codes=_unpacked(checkpoint.read(self.name)).reshape(grid.rows, -1),
                code_dtype="u4",
                group_size=grid.group_size,
                bits=4,
                scale=scales(),
                levels=checkpoint.scales(f"{self.name}.quant_map", "f32"),
                supergroup=grid.supergroup if nested else None,
                group_rows=grid.group_rows,
            )

        halves = {"dims": [prod(self.shape) // 2, 2], "axes": [0, 1], "flip": True}
        parts: dict[str, Mapping[str, object] | None] = {
            self.name: {"stream": "codes", **halves},
            of_scales: {"stream": "scale_codes" if nested else "scales"},
            f"{self.name}.quant_map": {"stream": "levels"},
            self.state: None,
        }
        if nested:
            parts[f"{self.name}.nested_absmax"] = {"stream": "scale_steps"}
            parts[f"{self.name}.nested_quant_map"] = {"stream": "scale_levels"}
        return CodedWeight(
            name=self.name,
            shape=self.shape[::-1] if turned else self.shape,
            dtype=self.dtype,
            form=self.kind.upper(),
            arrays=parts,
            stored=stored,
            transposed=turned,
            view=grid.view,
        )

    def _grid(self) -> _Grid:
        """Blocks as groups of the matrix, where its edges are theirs: of another matrix where they are not."""
        *_, columns = self.shape
        rows, size = prod(self.shape) // columns, self.size
        groups = columns // size
        per = self.nested_size or 1
        if columns % size == 0 and (per % groups == 0 or groups % per == 0):
            supergroup = (per // groups, groups) if per >= groups else (1, per)
            return _Grid(rows, size, supergroup=supergroup)
        if size % columns == 0 and len(self.shape) == 2:
            return _Grid(rows, columns, group_rows=size // columns, supergroup=(per, 1))
        if prod(self.shape) % size == 0:
            return _Grid(self.n_blocks, size, supergroup=(per, 1), view=(self.n_blocks, size))
        return _Grid(1, size, supergroup=(1, per), view=(1, prod(self.shape)))


@dataclass(frozen=True)
class _Grid:
    """A matrix whose groups are the blocks, one after the other."""

    rows: int
    group_size: int
    group_rows: int = 1
    supergroup: tuple[int, int] = (1, 1)
    view: tuple[int, ...] | None = None


def _count(found: object) -> int:
    """A number above 0; 0 for all else."""
    return found if type(found) is int and found > 0 else 0


def _json(checkpoint: Checkpoint, state: str) -> dict[str, Any]:
    try:
        found = json.loads(checkpoint.read(state).tobytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ImporterError(f"tensor {state!r} holds no JSON object; download the model again")
    return found


def _unpacked(stored: Elements) -> Elements:
    """The codes of bytes, one a byte, that of the high half first."""
    flat = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
    codes = np.empty(2 * flat.size, np.uint8)
    from_planes(flat, "u4", codes.size, codes)
    return codes.reshape(-1, 2)[:, ::-1].reshape(-1)


FAMILY = Bitsandbytes()
