"""The frozen records of a report. Sizes are bytes of the file; a share is a fraction from 0 to 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class CostParts:
    """Bytes by what they are for. Those of a whole file add up to its bytes."""

    values: int = 0
    """Elements of dense tensors."""
    codes: int = 0
    """Codes of quantized tensors."""
    scales: int = 0
    """Scales, zero points, minimums and what restores them."""
    outliers: int = 0
    """Gaps and values of outliers."""
    orders: int = 0
    """Permutations and channel orders."""
    tables: int = 0
    """What the codecs put before the elements of each chunk: its header, frequency table and directory."""
    assets: int = 0
    """Embedded files: configuration, tokenizer."""
    index: int = 0
    """The index without its checksums; of a model in shards also the file that lists them."""
    checksums: int = 0
    """The digest, and 4 bytes for the CRC-32 of each chunk plane, which no compression of the index can save."""
    frame: int = 0
    """Header and trailer without the digest."""
    padding: int = 0
    """Zeros that align chunks and segments."""

    @property
    def total(self) -> int:
        """Sum of all the parts."""
        return sum(_numbers(self))

    @classmethod
    def sum(cls, parts: Iterable[CostParts]) -> CostParts:
        """Each part of all of them together."""
        return cls(*map(sum, zip(*map(_numbers, parts), strict=True)))

    def __add__(self, other: CostParts) -> CostParts:
        return CostParts.sum((self, other))


_numbers = attrgetter(*CostParts.__slots__)


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What one stream costs.

    `codec` joins the codecs of its chunks, as in raw+rans; shared for one that another tensor holds. `part` is the
    field of `CostParts` that its bytes but `table_bytes` count for. `entropy_bits` is the order-0 bound of its
    elements, None where the file does not say.
    """

    role: str
    dtype: str
    codec: str
    n_chunks: int
    raw_bytes: int
    stored_bytes: int
    part: str
    table_bytes: int
    entropy_bits: int | None


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` elements have the value `first + i`.

    `unit` is code (of a quantized tensor), integer (of a dense one) or exponent: floor(log2 |x|) of the finite floats
    other than 0 of a dense tensor, whose zeros are `n_zeros`.
    """

    unit: str
    first: int
    counts: tuple[int, ...]
    n_zeros: int


@dataclass(frozen=True)
class OutlierMap:
    """Outliers of a matrix in its stored column order: `counts[i][j]` of them in cell (i, j).

    A cell is `rows_per_cell` by `columns_per_cell` weights, less at the lower and right edges.
    """

    rows: int
    columns: int
    rows_per_cell: int
    columns_per_cell: int
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Distance:
    """Distance of the restored tensor W' to a reference W of the same shape, both in their own dtypes.

    `relative` is |W - W'| / |W| in the Frobenius norm (None where only W is 0), `rms` is |W - W'| / sqrt(n), `largest`
    the largest absolute difference. All None where the two differ at a place where one is not finite.
    """

    relative: float | None
    rms: float | None
    largest: float | None


@dataclass(frozen=True)
class Measured:
    """What only the payload can tell of a tensor. `error` needs a reference that has the tensor."""

    histogram: Histogram | None
    outlier_map: OutlierMap | None
    error: Distance | None


@dataclass(frozen=True, slots=True)
class _Cost:
    """What something stored costs. `share` is of the bytes of all files; padding does not count."""

    name: str
    n_weights: int
    raw_bytes: int
    stored_bytes: int
    bits_per_weight: float
    entropy_bits_per_weight: float | None
    ratio: float | None
    share: float
    outliers: int
    outlier_share: float
    parts: CostParts


@dataclass(frozen=True, slots=True)
class TensorReport(_Cost):
    """What one tensor costs. `raw_bytes` is its size in its source dtype, 0 for a tied one.

    `layer` and `projection` are read from the name: model.layers.3 and mlp.up_proj.weight; a tensor outside the
    layers is a layer of its own.
    """

    layer: str
    projection: str
    shape: tuple[int, ...]
    dtype: str
    scheme: str
    method: str
    segment: str
    code_dtype: str | None
    group_size: int | None
    tied_to: str | None
    streams: tuple[StreamReport, ...]
    form: str = ""
    """What it was in the source, such as "GGUF Q4_K" or "GPTQ int4, groups of 128"; empty for weights."""
    form_bytes: int = 0
    """The bytes that it took there."""
    measured: Measured | None = None
    trellis_rows: int | None = None
    """Rows of a tile, where codes are stored as path codes of a trellis (FORMAT.md 5.3)."""

    def to_json(self) -> dict[str, object]:
        """Return the report as plain data, for `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GroupReport(_Cost):
    """Several tensors together, as a `TensorReport` tells them of one.

    The entropy is None where a tensor that has weights does not say its own.
    """

    n_tensors: int


@dataclass(frozen=True)
class FileTotals:
    """Where the bytes of all files are.

    `tensor_bytes` to `shard_index_bytes` add up to the bytes of all files, and so do `parts`. `bits_per_weight` counts
    all of them; the entropy bound is of the tensors alone. `ratio` is to `raw_bytes`, the tensors in the source's
    dtypes; `bf16_bytes` is their size with all floats of 16 or more bits as BF16.
    """

    n_tensors: int
    n_weights: int
    raw_bytes: int
    bf16_bytes: int
    bits_per_weight: float
    entropy_bits_per_weight: float | None
    ratio: float
    outliers: int
    outlier_share: float
    tensor_bytes: int
    asset_bytes: int
    padding_bytes: int
    index_bytes: int
    header_bytes: int
    trailer_bytes: int
    shard_index_bytes: int
    parts: CostParts


@dataclass(frozen=True, slots=True)
class SourceReport:
    """The source's files that hold tensors and can be written again, with what they take.

    `forms` are what their tensors were, other than weights: how many, their bytes there and here.
    """

    n_files: int
    file_bytes: int
    forms: dict[str, tuple[int, int, int]]
