"""Chunks: packing, planes and the three codecs, from FORMAT.md 3.2 and 4, with every freedom of an encoder exposed."""

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zstandard

BITS = {
    "f64": 64, "f32": 32, "f16": 16, "bf16": 16, "f8_e4m3": 8, "f8_e5m2": 8,
    "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i4": 4, "i2": 2,
    "u64": 64, "u32": 32, "u16": 16, "u8": 8, "u4": 4, "u2": 2, "bool": 8, "log8": 8,
}  # fmt: skip
DTYPES_1_0 = tuple(BITS)
BITS |= {
    "f8_e4m3fnuz": 8, "f8_e5m2fnuz": 8, "f8_e8m0": 8, "f6_e2m3": 6, "f6_e3m2": 6, "f4_e2m1": 4, "c64": 64,
}  # fmt: skip

Encoder = Callable[[bytes], tuple[int, bytes]]


def raw(data: bytes) -> tuple[int, bytes]:
    """Leave the bytes as they are, which is codec raw."""
    return 0, data


def zstd(data: bytes) -> tuple[int, bytes]:
    """Codec zstd, frames by the library."""
    return 1, zstd_chunk([zstd_frame(data[at : at + 65536]) for at in range(0, len(data), 65536)])


def zstd_by_hand(data: bytes) -> tuple[int, bytes]:
    """Codec zstd, frames of one raw block each: valid, and the same bytes whatever library is installed."""
    return 1, zstd_chunk([stored_frame(data[at : at + 65536]) for at in range(0, len(data), 65536)])


def zstd_frame(data: bytes, *, checksum: bool = False, size: bool = True) -> bytes:
    """Return one zstd frame."""
    compressor = zstandard.ZstdCompressor(level=19, write_checksum=checksum, write_content_size=size)
    return compressor.compress(data)


def stored_frame(data: bytes, *, blocks: int = 1) -> bytes:
    """Return a zstd frame of raw blocks (RFC 8878 3.1.1.2): content size in 4 bytes, single segment."""
    frame = bytes.fromhex("28b52ffd a0") + struct.pack("<I", len(data))
    size = -(-len(data) // blocks)
    for at in range(0, len(data), size):
        block = data[at : at + size]
        frame += struct.pack("<I", (at + size >= len(data)) | len(block) << 3)[:3] + block
    return frame


def zstd_chunk(frames: Sequence[bytes]) -> bytes:
    """Return the directory and the frames."""
    ends, end = b"", 4 * len(frames)
    for frame in frames:
        end += len(frame)
        ends += struct.pack("<I", end)
    return ends + b"".join(frames)


def constant(data: bytes) -> tuple[int, bytes]:
    """Return a chunk of codec rans, kind constant."""
    assert len(set(data)) == 1
    return 2, bytes([1, 1, 0, data[0]])


def plain_table(data: bytes) -> list[int]:
    """Return frequencies near those of the data, with at least two symbols."""
    counts = Counter(data)
    if len(counts) == 1:
        counts[(data[0] + 1) % 256] = 1
    freq = [0] * 256
    for symbol, count in counts.items():
        freq[symbol] = max(1, count * 4096 // counts.total())
    freq[max(range(256), key=freq.__getitem__)] += 4096 - sum(freq)
    if max(freq) == 4096 or min(freq) < 0:
        raise ValueError("the table does not come out")
    return freq


@dataclass
class Rans:
    """Makes chunks of codec rans, kind blocks. `fill` makes up the last group; None takes the most frequent symbol."""

    block_log2: int = 7
    freq: list[int] | None = None
    fill: int | None = None
    header: dict[int, int] = field(default_factory=dict)  # byte offset: value put there afterwards

    def __call__(self, data: bytes) -> tuple[int, bytes]:
        """Return a chunk of kind blocks."""
        freq = self.freq or plain_table(data)
        table = table_bytes(freq)
        used = [s for s in range(256) if freq[s]]
        head = bytes([1, 0, self.block_log2, 0, used[0], used[-1]]) + struct.pack("<H", len(table)) + table
        head += bytes(-len(head) % 4)
        size = 1 << self.block_log2
        fill = max(used, key=freq.__getitem__) if self.fill is None else self.fill
        blocks = [rans_block(data[at : at + size], freq, fill) for at in range(0, len(data), size)]
        ends, end = b"", len(head) + 4 * len(blocks)
        for block in blocks:
            end += len(block)
            ends += struct.pack("<I", end)
        chunk = bytearray(head + ends + b"".join(blocks))
        for offset, value in self.header.items():
            chunk[offset] = value
        return 2, bytes(chunk)


def table_bytes(freq: Sequence[int]) -> bytes:
    """Return the frequency table as its bit stream."""
    used = [s for s in range(256) if freq[s]]
    stream = n_bits = 0
    for f in freq[used[0] : used[-1] + 1]:
        length = f.bit_length()
        stream |= length << n_bits
        n_bits += 4
        if length > 1:
            stream |= (f - (1 << (length - 1))) << n_bits
            n_bits += length - 1
    return stream.to_bytes(-(-n_bits // 8), "little")


def rans_block(data: bytes, freq: Sequence[int], fill: int) -> bytes:
    """Return one block: 32 final states, the words, the padding word."""
    padded = data + bytes([fill]) * (-len(data) % 128)
    cum = [sum(freq[:s]) for s in range(256)]
    states = [65536] * 32
    words: list[int] = []
    for group in reversed(range(len(padded) // 128)):
        for j in reversed(range(4)):
            for lane in reversed(range(32)):
                s = padded[128 * group + 4 * lane + j]
                x = states[lane]
                if x >= freq[s] << 20:
                    words.append(x & 0xFFFF)
                    x >>= 16
                states[lane] = (x // freq[s] << 12) + x % freq[s] + cum[s]
    body = struct.pack("<32I", *states) + struct.pack(f"<{len(words)}H", *reversed(words))
    return body + bytes(-len(body) % 4)


def packed(bits: int, values: Sequence[int]) -> bytes:
    """Return unsigned elements one after the other, from the lowest bit of the first byte up."""
    out = b""
    for at in range(0, len(values), 8):  # eight elements end at a whole byte
        eight = values[at : at + 8]
        whole = sum(value << i * bits for i, value in enumerate(eight))
        out += whole.to_bytes(-(-len(eight) * bits // 8), "little")
    return out


def planes(dtype: str, elements: Sequence[int]) -> list[bytes]:
    """Return the planes of a chunk from its elements, floats given as their bits."""
    bits = BITS[dtype]
    values = [element % (1 << bits) for element in elements]
    if bits < 8:
        return [packed(bits, values)]
    if dtype in ("f64", "f32", "f16", "bf16"):
        values = [value << 1 & ((1 << bits) - 1) | value >> (bits - 1) for value in values]
    return [bytes(value >> 8 * p & 255 for value in values) for p in range(bits // 8)]
