"""Models of a shape, as the index of a file would describe them: what the simulation plans and runs."""

from collections.abc import Iterator
from dataclasses import dataclass

from spqfmt.codecs.chunks import TARGET_CHUNK_BYTES
from spqfmt.records import Chunk, Chunks, PlaneChunk, Stream, TensorRecord
from spqfmt.residency.inventory import Expert
from spqfmt.wire import CODEC_RANS, CODEC_RAW, DTYPES

CONTEXT_TOKENS = 2048


@dataclass(frozen=True)
class Shape:
    """A Llama of this shape."""

    name: str
    hidden: int
    intermediate: int
    n_layers: int
    vocabulary: int = 32_000
    experts: int = 0
    """Experts of a layer, each with three wide matrices of its own."""
    active: int = 0

    @property
    def cache_bytes(self) -> int:
        """Keys and values of the context, 16 bits each."""
        return 2 * 2 * self.n_layers * self.hidden * CONTEXT_TOKENS

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Name, rows and columns of what tokens are multiplied with, in the order of use."""
        hidden, wide = self.hidden, self.intermediate
        for layer in range(self.n_layers):
            for name in ("q", "k", "v", "o"):
                yield f"layers.{layer}.{name}", hidden, hidden
            for expert in range(self.experts or 1):
                prefix = f"layers.{layer}.experts.{expert}" if self.experts else f"layers.{layer}"
                yield f"{prefix}.gate", wide, hidden
                yield f"{prefix}.up", wide, hidden
                yield f"{prefix}.down", hidden, wide
        yield "head", self.vocabulary, hidden

    def shares(self) -> dict[str, tuple[float | None, Expert | None]]:
        """Tell the planner of experts, by name."""
        found: dict[str, tuple[float | None, Expert | None]] = {}
        for name, _, _ in self.matrices():
            if ".experts." in name:
                _, layer, _, expert, _ = name.split(".")
                found[name] = self.active / self.experts, Expert(int(layer), int(expert))
        return found


@dataclass(frozen=True)
class Codes:
    """Codes of `dtype` that are stored at `stored_bits` each; "bf16" stands for weights as they are.

    `group_size` None: one scale for each row.
    """

    name: str
    dtype: str
    stored_bits: float
    group_size: int | None = None

    @property
    def bits(self) -> int:
        """Bits of a code that is not compressed."""
        return DTYPES[self.dtype].bits


SHAPES = (
    Shape("7B", 4096, 11_008, 32),
    Shape("13B", 5120, 13_824, 40),
    Shape("7B, 64 experts", 2048, 1024, 16, vocabulary=50_304, experts=64, active=8),
)
CODES = (
    Codes("int8", "i8", 7.2),
    Codes("int8, scaled (dc)", "i8", 4.0),
    Codes("int4, groups of 64", "u4", 3.6, 64),
    Codes("bf16, lossless", "bf16", 10.6),
)


def record(name: str, rows: int, columns: int, codes: Codes, *, compressed: bool) -> TensorRecord:
    """A tensor as the index of a file would describe it; it has no bytes."""
    per_chunk = TARGET_CHUNK_BYTES * 8 // min(codes.bits, 8) // columns * columns
    chunks, offset = [], 64
    for first in range(0, rows * columns, per_chunk):
        n = min(per_chunk, rows * columns - first)
        planes = []
        for bits, coded_bits in _planes(codes):
            stored_bits = coded_bits if compressed else bits
            stored, codec = int(n * stored_bits / 8), CODEC_RAW if bits == stored_bits else CODEC_RANS
            planes.append(
                PlaneChunk(offset=offset, stored_bytes=stored, raw_bytes=n * bits // 8, codec=codec, crc32=0)
            )
            offset += -(-stored // 64) * 64
        chunks.append(Chunk(first, n, tuple(planes)))
    role = "values" if codes.dtype == "bf16" else "codes"
    stream = Stream(role, codes.dtype, rows * columns, Chunks.of(chunks))
    scheme = "dense"
    parameters: dict[str, object] = {}
    sides: tuple[Stream, ...] = ()
    if role == "codes" and codes.group_size is None:
        scheme, parameters = "uniform", {"orientation": "rows", "step": 0}
    elif codes.group_size is not None:
        n_groups = rows * -(-columns // codes.group_size)
        scheme = "grouped"
        parameters = {"orientation": "rows", "group_size": codes.group_size, "bits": codes.bits}
        sides = (Stream("scales", "f16", n_groups), Stream("zero_points", "u8", n_groups))
    return TensorRecord(
        name=name,
        shape=(rows, columns),
        dtype="bf16",
        scheme=scheme,
        method="",
        parameters=parameters,
        streams=(stream, *sides),
    )


def _planes(codes: Codes) -> list[tuple[int, float]]:
    """Bits of each plane, and those it is stored in: of floats the mantissas stay as they are."""
    if codes.bits <= 8:
        return [(codes.bits, codes.stored_bits)]
    return [(8, 8), (codes.bits - 8, codes.stored_bits - 8)]
