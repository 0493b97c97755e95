"""What a form of export is: a model whose codes lie on an even grid, in the files of another program.

An exporter is a module of this folder with `EXPORTER`. It sees weights as `ExportWeight`, never a .spq file. Where
codes do not fit its form it raises EncodeError, with the tensor's name, before it writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from spqfmt.errors import EncodeError
from spqfmt.schemes.base import Float32

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EvenGrid:
    """The numbers of groups of a matrix whose codes are whole numbers from 0 to 2^bits - 1.

    weight[i, k] = fl(scale[i, g] * (code[i, k] - zero[i, g])), or fl(fl(scale[i, g] * code[i, k]) - minimum[i, g]),
    with g the group of column k: column_groups[k], or floor(k / group_size) where that is None.
    """

    bits: int
    group_size: int
    """Columns of a group; all columns where a row has one scale."""
    scale: Float32
    """Scales, [rows, groups], all of them finite."""
    zero: NDArray[np.int16]
    """Zero points, [rows, groups], 0 where there are minimums."""
    minimum: Float32 | None = None
    column_groups: NDArray[np.int32] | None = None

    @property
    def is_symmetric(self) -> bool:
        """Whether all zero points are the middle of the codes."""
        return self.minimum is None and bool((self.zero == 1 << (self.bits - 1)).all())


class ExportWeight(Protocol):
    """A tensor of the model, as exporters take it. Rows of its grid and codes are outputs."""

    @property
    def name(self) -> str:
        """Its name in transformers' model."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what `load` returns."""

    @property
    def dtype(self) -> str:
        """Dtype of what `load` returns, by the names of `SourceTensor`."""

    @property
    def tied_to(self) -> str | None:
        """Set for a tensor that shares another one's values."""

    @property
    def role(self) -> str:
        """What quantizers take it for: "linear", "embedding", "head" or "other", such as a router."""

    @property
    def has_codes(self) -> bool:
        """Whether its values are made of codes."""

    @property
    def rounds_inputs(self) -> bool:
        """Whether its layer was quantized for inputs of 8 bits, rounded as the model runs, a scale for each token."""

    @property
    def is_transposed(self) -> bool:
        """Whether the rows of its matrix are the columns of the tensor."""

    @property
    def why_no_grid(self) -> str:
        """Why the codes, if it has any, lie on no even grid of groups of one row; empty where they do."""

    def load(self) -> torch.Tensor:
        """Read the values, rounded to the dtype."""

    def grid(self) -> EvenGrid:
        """Read the numbers of its groups. Raises EncodeError where these are no even grid."""

    def codes(self) -> NDArray[np.uint8]:
        """Read the codes, [rows, columns], in the order of the columns."""


@dataclass(frozen=True)
class ExportModel:
    """A model on its way out. `config` is what config.json says, without words of a quantizer."""

    weights: Sequence[ExportWeight]
    config: Mapping[str, Any]
    assets: Mapping[str, Iterable[bytes] | bytes]
    others: Mapping[str, Iterable[bytes]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """Names of the files of weights, and of tensors whose codes were written as the values that they stand for.

    The latter with what codes these are.
    """

    files: tuple[str, ...]
    plain: Mapping[str, str] = field(default_factory=dict)
    is_alone: bool = False
    """Whether no small files are written beside."""


class Exporter(Protocol):
    """What a module of this folder offers under the name `EXPORTER`."""

    name: str
    """What `--as` calls it."""

    def export(self, model: ExportModel, out: Path) -> Exported:
        """Write the model, whole or not at all.

        Raises EncodeError for the first tensor that does not fit, FileExistsError and OSError for `out`.
        """
        ...


OF_NO_LAYER = "codes of no layer"
OF_ANOTHER_ORDER = "its columns are grouped in another order (act-order; gptq has --no-act-order)"
"""What codes of embeddings and heads are."""


def refuse(weight: str, why: str, form: str) -> NoReturn:
    """Raise EncodeError: a tensor does not fit a form of export."""
    raise EncodeError(
        f"tensor {weight!r}: {why}, which {form} does not hold; --as dense writes plain weights"
    )
