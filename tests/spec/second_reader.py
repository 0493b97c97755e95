"""A reader of what 1.1 added, written from FORMAT.md and spec/origins alone, in whole arrays.

It shares nothing with the reference decoder or the package, trusts its input, and knows no scheme but dense and grouped
(all of 5.1, 5.2, 5.5), so that a sentence which two people read differently shows.
"""

import hashlib
import json
import struct
from math import prod
from typing import Any

import numpy as np
import zstandard

BITS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "c64": 64, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i4": 4,
        "i2": 2, "u64": 64, "u32": 32, "u16": 16, "u8": 8, "u4": 4, "u2": 2, "bool": 8, "log8": 8, "f6_e2m3": 6,
        "f6_e3m2": 6, "f4_e2m1": 4}  # fmt: skip
Record = dict[str, Any]


def bits_of(dtype: str) -> int:
    return BITS.get(dtype, 8)


def from_bits(stream: np.ndarray, bits: int) -> np.ndarray:
    """Integers of some bits each from a bit array, the lowest bit first."""
    n = stream.size // bits
    wide = np.zeros((n, 64), np.uint8)
    wide[:, :bits] = stream[: n * bits].reshape(n, bits)
    return np.packbits(wide, axis=1, bitorder="little").view("<u8").ravel()


def to_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """The bit array of unsigned integers."""
    wide = np.unpackbits(np.ascontiguousarray(values.astype("<u8")).view(np.uint8), bitorder="little")
    return wide.reshape(-1, 64)[:, :bits].ravel()


def as_bytes(stream: np.ndarray) -> bytes:
    return np.packbits(stream, bitorder="little").tobytes()


def rans(stored: bytes, n: int) -> bytes:
    if stored[1] == 1:
        return stored[3:4] * n
    first, last, size = struct.unpack_from("<BBH", stored, 4)
    table = np.unpackbits(np.frombuffer(stored[8 : 8 + size], np.uint8), bitorder="little").tolist()

    def take(k: int) -> int:
        return sum(table.pop(0) << i for i in range(k))

    freq = [0] * 256
    for symbol in range(first, last + 1):
        length = take(4)
        freq[symbol] = length if length < 2 else (1 << (length - 1)) + take(length - 1)
    slots = np.repeat(np.arange(256), freq)
    starts = np.concatenate([[0], np.cumsum(freq)[:-1]])
    begin = 8 + size + -size % 4 + 4 * -(-n >> stored[2])
    out = b""
    for block in range(-(-n >> stored[2])):
        (end,) = struct.unpack_from("<I", stored, 8 + size + -size % 4 + 4 * block)
        states = list(struct.unpack_from("<32I", stored, begin))
        words = iter(struct.unpack(f"<{(end - begin - 128) // 2}H", stored[begin + 128 : end]))
        here = min(1 << stored[2], n - len(out))
        symbols = np.zeros((-(-here // 128), 32, 4), np.uint8)
        for step in range(4 * symbols.shape[0]):
            for lane, x in enumerate(states):
                symbol = int(slots[x % 4096])
                y = freq[symbol] * (x >> 12) + x % 4096 - int(starts[symbol])
                states[lane] = y if y >= 65536 else y << 16 | next(words)
                symbols[step // 4, lane, step % 4] = symbol
        out += symbols.tobytes()[:here]
        begin = end
    return out


def decode(stored: bytes, codec: int, n: int) -> bytes:
    if codec == 0:
        return stored
    if codec == 2:
        return rans(stored, n)
    ends = struct.unpack_from(f"<{-(-n // 65536)}I", stored)
    begins = (4 * len(ends), *ends[:-1])
    parts = [stored[begin:end] for begin, end in zip(begins, ends, strict=True)]
    return b"".join(zstandard.ZstdDecompressor().decompress(part) for part in parts)


def index_of(data: bytes) -> Record:
    begin, stored, raw = struct.unpack_from("<3Q", data, len(data) - 64)
    text = data[begin : begin + stored]
    index: Record = json.loads(text if stored == raw else zstandard.ZstdDecompressor().decompress(text))
    return index


class File:
    """A whole file: its index, and the elements of every stream as unsigned integers."""

    def __init__(self, data: bytes) -> None:
        self.index = index_of(data)
        self.tensors: list[Record] = self.index["tensors"]
        self.data, self.end = data, 64
        self.held: dict[tuple[int, str], tuple[np.ndarray, list[int]]] = {}
        numbers = iter(range(len(self.tensors)))
        for segment in self.index["segments"]:
            alignment = self.index["segment_alignment"]
            for number in [next(numbers) for _ in range(segment["n_tensors"])]:
                for stream in self.tensors[number].get("streams", []):
                    if "same_as" not in stream:
                        self.held[number, stream["role"]] = self.read(stream, alignment)
                        alignment = self.inner if stream["chunks"] else alignment
                    else:
                        self.held[number, stream["role"]] = self.held[stream["same_as"], stream["role"]]
        self.assets = {}
        for asset in self.index["assets"]:
            values, _ = self.read(asset["stream"], self.inner)
            self.assets[asset["name"]] = values.astype(np.uint8).tobytes()

    @property
    def inner(self) -> int:
        return self.index.get("chunk_alignment", 64)

    def read(self, stream: Record, alignment: int) -> tuple[np.ndarray, list[int]]:
        bits = bits_of(stream["dtype"])
        found, counts = [np.zeros(0, np.uint64)], []
        for n, *planes in stream["chunks"]:
            raw = []
            for stored, codec, _ in zip(planes[::3], planes[1::3], planes[2::3], strict=True):
                begin = -(-self.end // alignment) * alignment
                alignment, self.end = self.inner, begin + stored
                raw.append(decode(self.data[begin : self.end], codec, -(-n * min(bits, 8) // 8)))
            wide = np.array([np.frombuffer(plane, np.uint8) for plane in raw]).T
            stream_bits = np.unpackbits(np.ascontiguousarray(wide).ravel(), bitorder="little")
            values = from_bits(stream_bits, bits)[:n]
            if stream["dtype"] in ("f64", "f32", "f16", "bf16"):
                values = values >> np.uint64(1) | (values & np.uint64(1)) << np.uint64(bits - 1)
            found.append(values)
            counts.append(n)
        return np.concatenate(found), counts

    def shape(self, tensor: Record) -> list[int]:
        """The dimensions after view and transposition (5.1)."""
        shape = list(tensor.get("view", tensor["shape"]))
        if tensor.get("transposed"):
            shape[-2:] = shape[:-3:-1]
        return shape

    def matrix(self, number: int, role: str) -> np.ndarray:
        """Codes or values as the matrix, channels in their own order, columns as stored."""
        tensor = self.tensors[number]
        shape = self.shape(tensor)
        rows, columns = prod(shape[:-1]), shape[-1]
        by_rows = tensor["parameters"].get("orientation", "rows") == "rows"
        channels = self.held[number, role][0].reshape((rows, columns) if by_rows else (columns, rows))
        if (number, "channel_order") in self.held:
            order = self.held[number, "channel_order"][0].astype(int)
            channels = channels[np.argsort(order)]
        return channels if by_rows else channels.T

    def own_columns(self, number: int, matrix: np.ndarray) -> np.ndarray:
        if (number, "permutation") not in self.held:
            return matrix
        return matrix[:, np.argsort(self.held[number, "permutation"][0].astype(int))]

    def numbers(self, number: int, role: str, elements: np.ndarray | None = None) -> np.ndarray:
        """What the elements of a stream stand for, in binary32."""
        stream = next(s for s in self.tensors[number]["streams"] if s["role"] == role)
        held = self.held[number, role][0] if elements is None else elements
        table = "levels" if role == "codes" else role.replace("codes", "levels")
        if table != role and (number, table) in self.held:
            return self.numbers(number, table)[held.astype(int)]
        return value(held, stream["dtype"])

    def group_numbers(self, number: int, name: str, lines: int, groups: int) -> np.ndarray | None:
        def has(part: str) -> bool:
            return (number, name + part) in self.held

        if has("s"):
            return self.numbers(number, f"{name}s").reshape(lines, groups)
        if not has("_codes"):
            return None
        tile = self.tensors[number]["parameters"]["supergroup"]
        high, wide = tile["rows"], tile["groups"]
        across = -(-groups // wide)
        t = (np.arange(lines) // high)[:, None] * across + (np.arange(groups) // wide)[None, :]
        codes = self.numbers(number, f"{name}_codes").reshape(lines, groups)
        step = self.numbers(number, f"{name}_steps")[t]
        if has("_zeros"):
            return step * (codes - self.numbers(number, f"{name}_zeros")[t])
        return (
            step * codes - self.numbers(number, f"{name}_minimums")[t] if has("_minimums") else step * codes
        )

    def grouped(self, number: int) -> np.ndarray:
        """The weights of 5.5, in the tensor's own shape."""
        tensor = self.tensors[number]
        shape = self.shape(tensor)
        codes = self.matrix(number, "codes")
        rows, columns = codes.shape
        size, tall = tensor["parameters"]["group_size"], tensor["parameters"].get("group_rows", 1)
        h = shape[-2] if len(shape) > 1 else 1
        i = np.arange(rows)
        line = i // h * -(-h // tall) + i % h // tall
        lines, groups = rows // h * -(-h // tall), -(-columns // size)
        place = np.ix_(line, np.arange(columns) // size)
        scale, zero_point, minimum = (
            self.group_numbers(number, name, lines, groups) for name in ("scale", "zero_point", "minimum")
        )
        code = self.numbers(number, "codes", codes)
        with np.errstate(over="ignore", invalid="ignore"):
            if zero_point is not None:
                weights = scale[place] * (code - zero_point[place])
            else:
                weights = scale[place] * code
                weights = weights if minimum is None else weights - minimum[place]
        weights = self.own_columns(number, weights).reshape(shape)
        return weights.swapaxes(-1, -2) if tensor.get("transposed") else weights

    def restored(self, number: int) -> bytes | None:
        """The bytes of a tensor; None for what this reader does not know."""
        tensor = self.tensors[number]
        if tensor["scheme"] == "tied":
            return self.restored(
                next(k for k, t in enumerate(self.tensors) if t["name"] == tensor["tied_to"])
            )
        bits = bits_of(tensor["dtype"])
        if tensor["scheme"] == "dense":
            plain = 0 in tensor["shape"] or not tensor["shape"]
            values = self.held[number, "values"][0] if plain else self.matrix(number, "values").ravel()
            return as_bytes(to_bits(values, bits))
        if tensor["scheme"] != "grouped" or "outliers" in tensor["parameters"]:
            return None
        return narrowed(self.grouped(number), tensor["dtype"])

    def content(self, number: int) -> bytes:
        """The digest of 3.5."""
        tensor = self.tensors[number]
        if tensor["scheme"] == "tied":
            return self.content(next(k for k, t in enumerate(self.tensors) if t["name"] == tensor["tied_to"]))
        keys = (
            "shape",
            "dtype",
            "scheme",
            "view",
            "transposed",
            "activation_clamp",
            "activation_quantization",
        )
        head = {key: tensor[key] for key in keys if tensor.get(key)} | {"shape": tensor["shape"]}
        kept = tensor["scheme"] == "uniform" and "trellis" in tensor["parameters"]
        head["parameters"] = {k: v for k, v in tensor["parameters"].items() if k != "class_sizes" or kept}
        head["streams"] = []
        after = b""
        for stream in tensor["streams"]:
            elements, counts = self.held[number, stream["role"]]
            banded = stream["role"].startswith("outlier_") and "/" not in tensor["scheme"]
            head["streams"].append(
                [stream["role"], stream["dtype"], stream["n"], *([counts] if banded else [])]
            )
            after += as_bytes(to_bits(elements, bits_of(stream["dtype"])))
        text = json.dumps(head, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode() + after).digest()

    def model_content(self) -> str:
        named = sorted((tensor["name"].encode(), self.content(k)) for k, tensor in enumerate(self.tensors))
        return hashlib.sha256(b"".join(digest + name + b"\0" for name, digest in named)).hexdigest()

    def part(self, number: int, part: int) -> bytes | None:
        """A part of 7.3, of no origin or of the layout `arrays`; None for others, and for a tensor of another shard."""
        if number >= len(self.tensors):
            return None
        origin = self.tensors[number].get("origin")
        if origin is None:
            return self.restored(number)
        if (origin["layout"], origin["version"]) != ("arrays", 1):
            return None
        made = origin["parts"][part]
        role = made["stream"]
        if role == "column_groups":
            columns = self.shape(self.tensors[number])[-1]
            group = np.arange(columns)[None, :] // self.tensors[number]["parameters"]["group_size"]
            elements, bits = self.own_columns(number, group).ravel().astype(np.int64), 32
        else:
            stream = next(s for s in self.tensors[number]["streams"] if s["role"] == role)
            bits, elements = bits_of(stream["dtype"]), self.held[number, role][0]
            if role in ("codes", "values"):
                elements = self.own_columns(number, self.matrix(number, role)).ravel()
        bits = made.get("bits", bits)
        elements = (elements.astype(np.int64) + made.get("add", 0)).astype(np.uint64)
        elements = elements.reshape(made.get("dims", -1)).transpose(made.get("axes"))
        elements = elements[..., ::-1] if made.get("flip") else elements
        stream_bits = to_bits(np.ascontiguousarray(elements).ravel(), bits)
        if "unit_bits" in made:
            units = stream_bits.reshape(*made["unit_dims"], made["unit_bits"])
            stream_bits = units.transpose(*made["unit_axes"], len(made["unit_axes"])).ravel()
        return as_bytes(stream_bits)

    def files(self) -> dict[str, bytes]:
        """The source files that this reader can make."""
        sources = self.index.get("sources", {"files": []})
        literals = self.assets.get(sources.get("literals", ""), b"")
        found = {}
        for file in sources["files"]:
            parts: list[bytes | None] = []
            if "pieces" not in file:
                asset = self.assets.get(file["name"], b"")
                is_same = hashlib.sha256(asset).hexdigest() == file["sha256"]
                parts.append(asset if is_same and file["name"] in self.assets else None)
            for n, *rest in file.get("pieces", ()):
                parts.append(literals[:n])
                literals = literals[n:]
                if rest:
                    whole = self.part(rest[0], rest[1])
                    cut = slice(rest[2], rest[2] + rest[3]) if len(rest) == 4 else slice(None)
                    parts.append(None if whole is None else whole[cut])
            if None not in parts:
                found[file["name"]] = b"".join(part or b"" for part in parts)
        return found


def value(elements: np.ndarray, dtype: str) -> np.ndarray:
    """Elements as binary32, by the table and the formula of 3.2 in binary64."""
    known = {"f8_e4m3": (4, 3, 7), "f8_e5m2": (5, 2, 15), "f8_e4m3fnuz": (4, 3, 8), "f8_e5m2fnuz": (5, 2, 16),
             "f6_e2m3": (2, 3, 1), "f6_e3m2": (3, 2, 3), "f4_e2m1": (2, 1, 1)}  # fmt: skip
    x = elements.astype(np.int64)
    if dtype == "f8_e8m0":
        return np.where(x == 255, np.nan, np.exp2(x.astype(np.float64) - 127)).astype(np.float32)
    if dtype in known:
        width, mantissa, bias = known[dtype]
        m, e = x & ((1 << mantissa) - 1), x >> mantissa & ((1 << width) - 1)
        fraction = m / 2.0**mantissa
        found = np.where(e == 0, 2.0 ** (1 - bias) * fraction, np.exp2(e - float(bias)) * (1 + fraction))
        found = np.where(x >> (width + mantissa) == 1, -found, found)
        special = {"f8_e4m3": x % 128 == 127, "f8_e5m2": (e == 31) & (m > 0)}.get(
            dtype, np.zeros_like(x, bool)
        )
        special = (x == 128) if dtype.endswith("fnuz") else special
        infinite = (dtype == "f8_e5m2") & (e == 31) & (m == 0)
        found = np.where(infinite, np.copysign(np.inf, found), np.where(special, np.nan, found))
        return found.astype(np.float32)
    if dtype == "f16":
        return x.astype(np.uint16).view(np.float16).astype(np.float32)
    if dtype in ("f32", "bf16"):
        return (x.astype(np.uint32) << (16 if dtype == "bf16" else 0)).astype(np.uint32).view(np.float32)
    if dtype[0] == "i":
        bits = bits_of(dtype)
        x = np.where(x >> (bits - 1) == 1, x - (1 << bits), x)
    return x.astype(np.float32)


def narrowed(weights: np.ndarray, dtype: str) -> bytes:
    """Binary32 weights rounded to a dtype, as bytes."""
    if dtype == "bf16":
        wide = np.ascontiguousarray(weights).view(np.uint32).astype(np.uint64)
        return ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        return weights.astype({"f64": "<f8", "f32": "<f4", "f16": "<f2"}[dtype]).tobytes()
