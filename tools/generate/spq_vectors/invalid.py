"""The invalid vectors of sections 1 to 3: each breaks one clause of FORMAT.md, with everything else in order."""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import zstandard

from spq_vectors import encode
from spq_vectors.build import File, Record, Stream, Tensor, zstd_index
from spq_vectors.encode import Rans, zstd_by_hand
from spq_vectors.valid import dense


@dataclass
class Invalid:
    """A file, the clause that it breaks, quoted, and the kind of error that it must give."""

    kind: str
    clause: str
    data: bytes


INVALID: dict[str, Invalid] = {}


def made_by(parts: Sequence[Callable[[], None]]) -> dict[str, Invalid]:
    """Return the invalid vectors that these functions make."""
    INVALID.clear()
    for part in parts:
        part()
    return dict(INVALID)


def bad(name: str, kind: str, clause: str, file: File | bytes) -> None:
    """Put a file into INVALID."""
    assert name not in INVALID, name
    INVALID[name] = Invalid(kind, clause, file if isinstance(file, bytes) else file.build())


def change(path: str, value: object) -> Callable[[Record], None]:
    """Return an edit of the index that sets the value at a dotted path."""

    def edit(index: Record) -> None:
        *parents, last = path.split(".")
        node: Any = index
        for key in parents:
            node = node[int(key) if isinstance(node, list) else key]
        node[int(last) if isinstance(node, list) else last] = value

    return edit


def drop(key: str, record: str = "") -> Callable[[Record], None]:
    """Return an edit that leaves out a key of the index, or of its first tensor or stream."""

    def edit(index: Record) -> None:
        del {"": index, "tensor": index["tensors"][0], "stream": index["tensors"][0]["streams"][0]}[record][
            key
        ]

    return edit


def small(*tensors: Tensor, **options: Any) -> File:
    """Return a file of one segment; a dense tensor of 8 bytes where none is given."""
    return File([("all", tensors or [dense("weight", [8], "u8", range(8))])], **options)


def edited(path: str, value: object) -> File:
    """Return the small file with a changed index."""
    return small(edit=change(path, value))


def header_and_trailer() -> None:
    """Break rules of section 2."""
    good = small().build()
    bad("not_spq", "not spq", "the first 8 bytes are not the magic", b"PK" + good[2:])
    bad("magic_line_end", "not spq", "the first 8 bytes are not the magic", good.replace(b"\r\n", b"\n", 1))
    bad("short", "not spq", "or there are less than 8", good[:7])
    bad("only_magic", "truncated", "it is shorter than header and trailer", good[:8])
    bad("no_trailer", "truncated", "its last 8 bytes are not the magic", good[:-96])
    bad("appended", "truncated", "its last 8 bytes are not the magic", good + b"\0")
    header, middle, trailer = good[:64], good[64:-96], good[-96:]
    bad("cut_in_the_middle", "truncated", "`file_bytes` passes its length", header + middle[64:] + trailer)
    bad(
        "longer",
        "corrupt",
        "`file_bytes` MUST equal the length of the file",
        header + bytes(64) + middle + trailer,
    )
    future = small(version=(2, 0), required=1 << 40, header_zeros=b"\1" * 52).build()
    bad("major_2", "unsupported", "A reader MUST refuse a file whose major version it does not know", future)
    bad(
        "major_2_short",
        "unsupported",
        "A reader MUST refuse a file whose major version it does not know",
        future[:30],
    )
    bad(
        "major_0",
        "unsupported",
        "A reader MUST refuse a file whose major version it does not know",
        small(version=(0, 9)),
    )
    bit = small(required=1 << 13, text=lambda _: b"not JSON")
    bad("required_bit_13", "unsupported", "a file with a required feature bit that it does not know", bit)
    bad(
        "required_bit_63",
        "unsupported",
        "a file with a required feature bit that it does not know",
        small(required=1 << 63),
    )
    bad("header_not_zero", "corrupt", "52 bytes that MUST be zero", small(header_zeros=bytes(51) + b"\1"))
    bad("minor_differs", "corrupt", "Major and minor MUST equal the header's.", small(header_version=(1, 3)))
    major = small(trailer={80: b"\2\0"})
    bad("major_differs", "corrupt", "Major and minor MUST equal the header's.", major)
    bad("trailer_not_zero", "corrupt", "MUST be zero", small(trailer={84: b"\1"}))
    places = "`index_offset + index_stored_bytes + 96` MUST equal `file_bytes`, computed without overflow."
    offset, stored = struct.unpack("<2Q", trailer[32:48])
    bad("index_offset", "corrupt", places, small(trailer={32: struct.pack("<Q", offset + 64)}))
    wrapped = struct.pack("<2Q", offset + stored + 2**63, 2**63)
    bad("index_overflow", "corrupt", places, small(trailer={32: wrapped}))
    early = File(trailer={32: struct.pack("<2Q", 60, len(File().build()) - 96 - 60)})
    bad("index_in_header", "corrupt", "`index_offset` MUST be at least 64.", early)
    bad("digest", "checksum", "digest: SHA-256 of trailer bytes 32 to 95 followed by the stored index",
        small(trailer={0: bytes(32)}))  # fmt: skip
    swapped = good.replace(b'"weight"', b'"wieght"')
    bad(
        "digest_of_index",
        "checksum",
        "digest: SHA-256 of trailer bytes 32 to 95 followed by the stored index",
        swapped,
    )
    bad("digest_of_trailer", "checksum", "digest: SHA-256 of trailer bytes 32 to 95 followed by the stored index",
        good[:-96] + trailer[:72] + b"\4" + trailer[73:])  # fmt: skip


def layout() -> None:
    """Break rules of sections 2.3 and 3.3."""
    two = [dense(name, [3], "u8", [1, 2, 3]) for name in "ab"]
    bad(
        "padding",
        "corrupt",
        "Padding bytes, which are those between the parts, MUST be zero",
        small(*two, padding=1),
    )
    aligned = File([("a", two[:1]), ("b", two[1:])], alignment=4096, edit=change("segment_alignment", 64))
    bad("gap", "corrupt", "`index_offset` MUST equal `align(e, 64)` after the last chunk", aligned)
    bad("alignment_128", "corrupt", "| `segment_alignment` | 64 or 4096 |", edited("segment_alignment", 128))
    past = {"role": "values", "dtype": "u8", "n": 8, "chunks": [[8, 2**52, 2, 0]]}
    bad("chunk_past_index", "corrupt", "`index_offset` MUST equal `align(e, 64)` after the last chunk",
        small(edit=change("tensors.0.streams.0", past), required=2))  # fmt: skip
    crc = "A reader MUST check it before it hands out anything decoded from the chunk."
    flip = small(
        dense("weight", [300], "u8", [k % 7 for k in range(300)], encoders=[Rans()]), payload=flip_last
    )
    bad("crc_rans", "checksum", crc, flip)
    bad("crc_raw", "checksum", crc, small(dense("weight", [8], "u8", range(56, 64)), payload=flip_last))
    asset = File(assets=[("a", Stream("asset", "u8", b"abc"))], payload=flip_last)
    bad("crc_asset", "checksum", crc, asset)
    plane = small(dense("weight", [4], "bf16", [256, 1, 2, 3]), payload=flip_last)
    bad("crc_second_plane", "checksum", crc, plane)


def flip_last(out: bytearray) -> None:
    """Flip one bit of the last byte that is not padding."""
    out[len(out.rstrip(b"\0")) - 1] ^= 4


def json_text() -> None:
    """Break the rules for JSON text."""

    def instead(old: str, new: str, compress: Callable[[bytes], bytes] = bytes) -> File:
        def text(whole: str) -> bytes:
            assert old in whole
            return whole.replace(old, new, 1).encode("utf-8", "surrogateescape")

        return small(text=text, extra={"x": 1}, compress=compress)

    number = "Numbers MUST be integers without fraction or exponent, from -(2^53 - 1) to 2^53 - 1."
    for name, digits in (
        ("fraction", "1.0"), ("exponent", "1e0"), ("nan", "NaN"), ("infinity", "-Infinity"),
        ("large", "9007199254740992"), ("small", "-9007199254740992"), ("huge", "9" * 5000), ("leading_zero", "01"),
    ):  # fmt: skip
        bad(f"json_{name}", "corrupt", number, instead('"x":1', f'"x":{digits}'))
    keys = "Keys MUST NOT repeat within an object."
    bad("json_duplicate_key", "corrupt", keys, instead('"shape":[8]', '"shape":[9],"shape":[8]'))
    bad("json_duplicate_unknown", "corrupt", keys, instead('"x":1', '"x":[{"a":1,"\\u0061":2}]'))
    text = "The JSON text is one object, in UTF-8 (RFC 8259) without byte order mark."
    bad("json_bom", "corrupt", text, small(text=lambda whole: b"\xef\xbb\xbf" + whole.encode()))
    bad("json_utf16", "corrupt", text, small(text=lambda whole: whole.encode("utf-16-le")))
    bad("json_not_utf8", "corrupt", text, instead("weight", "w\udcffight"))
    bad("json_list", "corrupt", text, small(text=lambda whole: f"[{whole}]".encode()))
    bad("json_twice", "corrupt", text, small(text=lambda whole: f"{whole}{whole}".encode()))
    bad("json_comma", "corrupt", text, instead('"x":1', '"x":1,'))
    bad("json_control", "corrupt", text, instead("weight", "w\night"))
    bad("json_open", "corrupt", text, small(text=lambda whole: whole[:-1].encode()))
    half = "An escape for half of a surrogate pair MUST NOT stand alone."
    bad("json_surrogate", "corrupt", half, instead("weight", "w\\ud83dight"))
    bad("json_surrogate_unknown", "corrupt", half, instead('"x":1', '"x":["\\udc0d"]'))
    depth = "Nesting MUST NOT pass 16 levels, the outermost object being level 1."
    bad("json_depth_17", "limit", depth, instead('"x":1', f'"x":{"[" * 16}{"]" * 16}'))
    deep = f'"x":{"[" * 30000}{"]" * 30000}'
    bad("json_depth_30000", "limit", depth, instead('"x":1', deep, zstd_index))
    absent = "All keys in the tables below MUST be there unless they are called optional or the text says otherwise"
    for key in ("segment_alignment", "segments", "tensors", "assets", "metadata"):
        bad(f"no_{key}", "corrupt", absent, small(edit=drop(key)))
    for key in ("name", "shape", "dtype", "scheme", "method", "parameters", "streams"):
        bad(f"tensor_no_{key}", "corrupt", absent, small(edit=drop(key, "tensor")))
    for key in ("role", "dtype", "n", "chunks"):
        bad(f"stream_no_{key}", "corrupt", absent, small(edit=drop(key, "stream")))
    null = "a key that is not there is left out, never `null`."
    bad("null", "corrupt", null, edited("tensors.0.transposed", None))
    bad("boolean", "corrupt", "An integer is never a boolean.", edited("tensors.0.shape", [True, 8]))
    bad(
        "negative",
        "corrupt",
        "Integers without a stated range are at least 0.",
        edited("tensors.0.shape", [-1, -8]),
    )
    bad("metadata_integer", "corrupt", "object of strings; informative", edited("metadata", {"a": 1}))


def stored_index() -> None:
    """Break the rules for the stored index."""
    frame = "otherwise it is one zstd frame (RFC 8878, no dictionary, with its content size present)"

    def compressed(compress: Callable[[bytes], bytes]) -> File:
        return small(compress=compress)

    bad("index_not_zstd", "corrupt", frame, compressed(lambda text: text + b" "))
    bad("index_no_size", "corrupt", frame, compressed(lambda text: encode.zstd_frame(text, size=False)))
    bad(
        "index_two_frames",
        "corrupt",
        frame,
        compressed(lambda text: encode.zstd_frame(text) + encode.zstd_frame(b"")),
    )
    bad("index_wrong_size", "corrupt", "that decodes to `index_raw_bytes` bytes",
        compressed(lambda text: encode.zstd_frame(text + b" ")))  # fmt: skip
    bad("index_damaged", "corrupt", frame, compressed(lambda text: encode.zstd_frame(text)[:-5]))
    skip = compressed(
        lambda text: bytes.fromhex("502a4d18") + struct.pack("<I", len(text)) + bytes(len(text))
    )
    bad("index_skippable", "corrupt", frame, skip)
    limit = "`index_raw_bytes` MUST NOT pass `index_ratio * index_stored_bytes + index_slack_bytes`."
    bomb = small(
        text=lambda text: b" " * (1 << 20) + text.encode(),
        compress=zstandard.ZstdCompressor(level=19).compress,
    )
    bad("index_bomb", "limit", limit, bomb)
    bad("index_raw_bytes", "limit", limit, small(trailer={48: struct.pack("<Q", 2**60)}))


def records() -> None:
    """Break rules of sections 3 to 3.3, feature bits and the limits."""
    segments = "`n_tensors` is at least 1; the sum MUST equal the number of tensors"
    bad("segments_few", "corrupt", segments, edited("segments", []))
    bad("segments_many", "corrupt", segments, edited("segments", [{"name": "a", "n_tensors": 2}]))
    empty_segment = [{"name": "a", "n_tensors": 0}, {"name": "b", "n_tensors": 1}]
    bad("segment_empty", "corrupt", segments, edited("segments", empty_segment))
    name = "string, 1 to 1024 bytes of UTF-8, unique in the file"
    bad("name_empty", "corrupt", name, edited("tensors.0.name", ""))
    bad("name_long", "limit", name, edited("tensors.0.name", "\u00e9" * 513))
    bad(
        "segment_name_long",
        "limit",
        "a name has at most 1024 bytes of UTF-8",
        edited("segments.0.name", "x" * 1025),
    )
    bad("name_twice", "corrupt", name, small(*(dense("weight", [1], "u8", [1]) for _ in range(2))))
    bad("dimensions_9", "limit", "list of at most 8 integers", edited("tensors.0.shape", [8] + [1] * 8))
    shape = "The product of a shape's dimensions, those that are 0 left out, MUST NOT pass 2^53 - 1."
    bad("shape_large", "limit", shape, small(dense("weight", [0, 2**30, 2**30], "f32", [])))
    bad(
        "scheme_unknown",
        "corrupt",
        "so one that this version does not name is corrupt",
        edited("tensors.0.scheme", "x"),
    )
    bad(
        "dtype_unknown",
        "corrupt",
        "so one that this version does not name is corrupt",
        edited("tensors.0.dtype", "f4"),
    )
    bad("codec_unknown", "corrupt", "so one that this version does not name is corrupt",
        edited("tensors.0.streams.0.chunks", [[8, 8, 3, 0]]))  # fmt: skip
    bad(
        "role_unknown",
        "corrupt",
        "string, one of the scheme's (section 5)",
        edited("tensors.0.streams.0.role", "codes"),
    )
    bad("dtype_not_allowed", "corrupt", "one of those that the tables of section 5 allow for the role",
        edited("tensors.0.streams.0.dtype", "i8"))  # fmt: skip
    bad("dense_log8", "corrupt", "`dtype` of the tensor is any dtype of 8 bits or more but log8.",
        small(dense("weight", [2], "log8", [1, 2])))  # fmt: skip
    bad("dense_u4", "corrupt", "`dtype` of the tensor is any dtype of 8 bits or more but log8.",
        small(dense("weight", [2], "u4", [1, 2])))  # fmt: skip
    role = dense("weight", [2], "u8", [1, 2])
    role.streams = [*role.streams, *role.streams]
    bad("role_twice", "corrupt", "list of stream records, each role at most once", small(role))
    bad(
        "dense_transposed",
        "corrupt",
        "true only for the schemes uniform and grouped",
        edited("tensors.0.transposed", True),
    )
    bad("n_wrong", "corrupt", "it MUST equal the number that section 5 gives", edited("tensors.0.shape", [9]))
    chunks = "their numbers MUST add up to `n`"
    bad("chunks_few", "corrupt", chunks, small(dense("weight", [8], "u8", range(8), sizes=[4, 3])))
    bad("chunks_none", "corrupt", chunks, small(dense("weight", [8], "u8", range(8), sizes=[])))
    empty = "is allowed only in outlier streams (5.4)"
    bad("chunk_empty", "corrupt", empty, small(dense("weight", [8], "u8", range(8), sizes=[8, 0])))
    bad("chunk_record_short", "corrupt", "A chunk record is a flat list of integers",
        edited("tensors.0.streams.0.chunks", [[8, 8, 0]]))  # fmt: skip
    large = Tensor("weight", [2**24 + 1], "u8", [Constants(1, 2**24 + 1)])
    bad("chunk_large", "limit", "it MUST NOT pass 16 MiB", small(large))
    bad("raw_size", "corrupt", "`stored_bytes` MUST equal `raw_bytes`",
        small(dense("weight", [8], "u8", range(8), encoders=[lambda data: (0, data[:-1])])))  # fmt: skip
    bad("entropy_bits", "corrupt", "optional list with one integer for each plane",
        edited("tensors.0.streams.0.entropy_bits", [1, 1]))  # fmt: skip
    expansion = (
        "The `raw_bytes` of all chunks together MUST NOT pass `expansion_ratio * file_bytes + "
        "expansion_slack_bytes`."
    )
    bad("expansion", "limit", expansion, small(Tensor("weight", [20 * 2**24], "u8", [Constants(20, 2**24)])))
    feature = "a reader MUST refuse a file that uses a feature without its bit."
    coded = dense("weight", [130], "u8", [k % 3 for k in range(130)], encoders=[Rans()])
    bad("feature_rans", "corrupt", feature, small(coded, required=0))
    coded = dense("weight", [130], "u8", [k % 3 for k in range(130)], encoders=[zstd_by_hand])
    bad("feature_zstd", "corrupt", feature, small(coded, required=0b1111111111110))
    tied = Tensor("head", [8], "u8", scheme="tied", extra={"tied_to": "weight"})
    own = dense("weight", [8], "u8", range(8))
    bad("feature_tied", "corrupt", feature, small(own, tied, required=0))
    bad("feature_shard", "corrupt", feature, small(extra={"shard": {"number": 1, "count": 1}}, required=0))
    to = "the name of an earlier tensor of the same shape and dtype that is not tied itself"
    to_weight: Record = {"tied_to": "weight"}
    for name_, record, others in (
        ("tied_shape", {"shape": [4, 2]}, [own]), ("tied_dtype", {"dtype": "i8"}, [own]),
        ("tied_to_later", {}, []), ("tied_to_itself", {"tied_to": "head"}, [own]),
        ("tied_to_tied", {"tied_to": "tail"}, [own, Tensor("tail", [8], "u8", scheme="tied", extra=to_weight)]),
    ):  # fmt: skip
        head = Tensor("head", [8], "u8", scheme="tied", extra={"tied_to": "weight", **record})
        bad(name_, "corrupt", to, small(*others, head))
    held = Tensor("head", [8], "u8", [Stream("values", "u8", range(8))], "tied", extra={"tied_to": "weight"})
    bad("tied_streams", "corrupt", "scheme `tied` has none, and the key may be left out", small(own, held))
    stray = Tensor("head", [8], "u8", own.streams, extra={"tied_to": "weight"})
    bad("tied_to_dense", "corrupt", "scheme `tied` only", small(own, stray))
    roles = "not for the roles `values`, `codes`, `outlier_gaps`, `outlier_values` and `asset`"
    bad("same_as_values", "corrupt", roles,
        small(own, Tensor("b", [8], "u8", [Stream("values", "u8", n=8, same_as=0)])))  # fmt: skip


class Constants(Stream):
    """Constant chunks, written without the raw bytes that they stand for."""

    def __init__(self, n_chunks: int, size: int) -> None:
        """Hold so many chunks of so many elements."""
        super().__init__("values", "u8")
        self.n_chunks, self.size = n_chunks, size

    def build(self) -> tuple[Record, list[bytes]]:
        """Return the record and the planes."""
        stored = bytes([1, 1, 0, 0])
        chunks = [[self.size, 4, 2, zlib.crc32(stored)]] * self.n_chunks
        record = {"role": "values", "dtype": "u8", "n": self.size * self.n_chunks, "chunks": chunks}
        return record, [stored] * self.n_chunks
