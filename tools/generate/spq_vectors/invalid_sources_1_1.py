"""The invalid vectors of 7.2 and 7.3: source files and origins."""

import zlib
from collections.abc import Callable
from typing import Any

from spq_vectors.build import File, Record, Stream, Tensor
from spq_vectors.invalid import bad, change
from spq_vectors.invalid_1_1 import WEIGHT, small, with_key
from spq_vectors.invalid_schemes import ONE
from spq_vectors.source_files import Part, Sources
from spq_vectors.valid import dense
from spq_vectors.valid_floats_1_1 import grouped

NOTES = ("notes.txt", Stream("asset", "u8", b"note"))
EIGHT = bytes(range(8))


def made(edit: Callable[[Record], object] | None = None, name: str = "model.safetensors") -> File:
    """Return a file with one source file of literals and the tensor, and one that is an asset."""
    sources = Sources()
    sources.add(name, [b"head", Part(0, EIGHT), b"end"])
    sources.keep("notes.txt", b"note")
    changes = {"edit": edit} if edit is not None else {}
    return small(assets=[NOTES, *sources.assets()], extra={"sources": sources.record()}, **changes)


def pieces(value: object) -> File:
    """Return it with other pieces."""
    return made(change("sources.files.0.pieces", value))


def records() -> None:
    """Break rules for the records of 7.2."""
    key = "optional: the name of an asset"
    bad("sources_literals_missing", "corrupt", key, made(change("sources.literals", "other.bin")))
    bad("sources_literals_number", "corrupt", key, made(change("sources.literals", 0)))
    up = "the pieces of all files use them in order, and MUST use them up."
    bad("sources_literals_few", "corrupt", up, pieces([[4, 0, 0], [4]]))
    bad("sources_literals_left", "corrupt", up, pieces([[4, 0, 0], [2]]))
    bad("sources_literals_none", "corrupt", up, made(lambda index: index["sources"].pop("literals")))
    bad("sources_literals_idle", "corrupt", up, made(lambda index: index["sources"]["files"].pop(0)))
    bad(
        "sources_no_files",
        "corrupt",
        "| `files` | list of file records |",
        made(lambda index: index["sources"].pop("files")),
    )
    for field in ("name", "file_bytes", "sha256"):

        def without(index: Record, field: str = field) -> None:
            del index["sources"]["files"][0][field]

        bad(f"sources_no_{field}", "corrupt", f"| `{field}` |", made(without))
    digest = "hex digest of the file"
    bad("sources_sha256_upper", "corrupt", digest, made(change("sources.files.0.sha256", "A" * 64)))
    path = "The name of a file with pieces is a relative path"
    names = (
        "../x.safetensors", "/x.safetensors", "a//b.safetensors", "a\\b.safetensors", "", "..",
        "a /b.safetensors", "a/ b.safetensors", "c:b.safetensors", "a\x85b.safetensors", "a\xadb.safetensors",
        "a\u200bb.safetensors", "a\u202eb.safetensors", "a\u2060b.safetensors", "a\ufeffb.safetensors", "a\nb",
        f"{'ü' * 128}.gguf",
    )  # fmt: skip
    for number, name in enumerate(names):
        bad(f"sources_name_{number}", "corrupt", path, made(name=name))
    path = "without, any string of 1 to 1024 bytes of UTF-8"
    bad("sources_name_long", "limit", path, made(change("sources.files.1.name", "x" * 1025)))
    bad("sources_name_empty", "corrupt", path, made(change("sources.files.1.name", "")))
    bad(
        "sources_twice",
        "corrupt",
        "unique among the files",
        made(change("sources.files.1.name", "model.safetensors")),
    )
    asset = "A file with pieces MUST NOT have the name of an asset"
    bad("sources_is_asset", "corrupt", asset, made(change("sources.files.0.name", "notes.txt")))
    folder = "no name of an asset or of a file with pieces, followed by `/`, may begin another."
    bad("sources_is_folder", "corrupt", folder, made(name="notes.txt/model.safetensors"))
    integers = "A piece is a list of integers:"
    for number, value in enumerate(
        ([], [4, 0], [4, 0, 0, 0], [4, 0, 0, 0, 8, 0], [4, 0, None], ["4", 0, 0], 4)
    ):
        bad(f"sources_piece_{number}", "corrupt", integers, pieces([value, [3]]))
    total = "The lengths of a file's pieces MUST add up to `file_bytes`."
    bad("sources_file_bytes", "corrupt", total, made(change("sources.files.0.file_bytes", 16)))
    bad("sources_piece_short", "corrupt", total, pieces([[4, 0, 0, 0, 7], [3]]))
    part = "part `p` (7.3) of tensor `t` (from 0, in `tensors`)"
    bad("sources_no_tensor", "corrupt", part, pieces([[4, 1, 0], [3]]))
    bad(
        "sources_no_part",
        "corrupt",
        "Without `origin` part 0 is the restored tensor",
        pieces([[4, 0, 1], [3]]),
    )
    bad("sources_past_part", "corrupt", "`n` bytes of it from byte `a` on", pieces([[4, 0, 0, 1, 8], [3]]))
    checks = "A reader that makes a file MUST check its length before it writes, and then its digest"
    bad("sources_sha256", "checksum", checks, made(change("sources.files.0.sha256", "0" * 64)))
    limit = "The `file_bytes` of all files with pieces MUST NOT pass, together, what section 9 allows"
    bad("sources_expansion", "limit", limit, expansion())


class Zeros(Stream):
    """A stream of six chunks of 16 MiB of zeros."""

    def build(self) -> tuple[Record, list[bytes]]:
        """Return the record and the stored planes."""
        chunk = bytes([1, 1, 0, 0])
        record = {
            "role": "values",
            "dtype": "u8",
            "n": 6 << 24,
            "chunks": [[1 << 24, 4, 2, zlib.crc32(chunk)]] * 6,
        }
        return record, [chunk] * 6


def expansion() -> File:
    """Return a file of 1 kB whose source file would have 384 MiB."""
    sources = Sources()
    sources.keep("model.safetensors", b"", pieces=[[0, 0, 0]] * 4)
    sources.records[0]["file_bytes"] = 24 << 24
    zeros = Tensor("weight", [6 << 24], "u8", [Zeros("values", "u8")])
    return small(zeros, extra={"sources": sources.record()})


def origins() -> None:
    """Break rules for the records of 7.3."""
    name = "with a name of 1 to 64 characters of `a-z 0-9 _ -` and a version of at least 1."
    cases: dict[str, Record] = {
        "upper": {"layout": "GGUF", "version": 1},
        "empty": {"layout": "", "version": 1},
        "path": {"layout": "../x", "version": 1},
        "long": {"layout": "a" * 65, "version": 1},
        "no_version": {"layout": "x"},
        "version_0": {"layout": "x", "version": 0},
        "no_layout": {"version": 1},
        "version_text": {"layout": "x", "version": "1"},
    }
    for case, record in cases.items():
        bad(f"origin_{case}", "corrupt", name, with_key(origin=record))
    bad("origin_list", "corrupt", name, with_key(origin=["x", 1]))
    tied = dense("tied", [8], "u8", [])
    tied.scheme, tied.streams, tied.extra = (
        "tied",
        [],
        {"tied_to": "weight", "origin": {"layout": "x", "version": 1}},
    )
    bad("origin_tied", "corrupt", "optional (7.3); not for the scheme `tied`", small(WEIGHT, tied))


def of_arrays(case: str, clause: str, *parts: object, n: int = 8, part: int = 0) -> None:
    """Put in a file that is a part of the layout `arrays`."""
    tensor = grouped(
        "weight",
        [2, 8],
        "f32",
        [Stream("codes", "u4", range(16)), Stream("scales", "f32", [ONE] * 2)],
        {"group_size": 8},
    )
    tensor.extra = {"origin": {"layout": "arrays", "version": 1, "parts": list(parts)}}
    sources = Sources()
    sources.add("model.safetensors", [Part(0, bytes(n), part)])
    bad(f"arrays_{case}", "corrupt", clause, small(tensor, extra={"sources": sources.record()}))


def arrays() -> None:
    """Break the rules of spec/origins/arrays.md."""
    dims = "`dims` MUST multiply to their number."
    of_arrays("dims", dims, {"stream": "codes", "dims": [2, 7], "axes": [1, 0]})
    of_arrays("dims_large", dims, {"stream": "codes", "dims": [2**40, 2**40], "axes": [1, 0]})
    axes = "`axes` is a permutation of the numbers of the dimensions"
    for number, value in enumerate(([0, 0], [0, 2], [0], [0, 1, 2])):
        of_arrays(f"axes_{number}", axes, {"stream": "codes", "dims": [2, 8], "axes": value})
    both = "optional, both or neither: lists of 1 to 8 integers"
    of_arrays("dims_alone", both, {"stream": "codes", "dims": [2, 8]})
    of_arrays("axes_alone", both, {"stream": "codes", "axes": [0]})
    of_arrays("dims_9", both, {"stream": "codes", "dims": [16] + [1] * 8, "axes": list(range(9))})
    of_arrays("stream", "a role of the tensor's streams, or `column_groups`", {"stream": "values"})
    of_arrays("stream_missing", "a role of the tensor's streams, or `column_groups`", {"bits": 4})
    for bits in (0, 65):
        of_arrays(f"bits_{bits}", "optional integer from 1 to 64", {"stream": "codes", "bits": bits})
    of_arrays("add", "optional integer from -2^31 to 2^31", {"stream": "codes", "add": 2**31 + 1})
    of_arrays("flip", "| `flip` | optional boolean |", {"stream": "codes", "flip": 1})
    units = "they MUST be a whole number of units and of bytes."
    of_arrays("units", units, {"stream": "codes", "unit_bits": 24, "unit_dims": [2], "unit_axes": [0]})
    twelve = {"stream": "scales", "bits": 6, "unit_bits": 12, "unit_dims": [1], "unit_axes": [0]}
    of_arrays("units_bytes", units, twelve, n=2)
    all_of = "optional, all or none: an integer, at least 1, and lists of 1 to 8 integers"
    of_arrays("unit_bits_alone", all_of, {"stream": "codes", "unit_bits": 32})
    of_arrays("unit_dims_alone", all_of, {"stream": "codes", "unit_dims": [2], "unit_axes": [0]})
    of_arrays(
        "no_part",
        "`[l, t, p]` is the next `l` bytes of the literals followed by part `p`",
        {"stream": "codes"},
        part=1,
    )
    of_arrays("part_number", "a list with one object for each part", "codes")


def of_gguf(
    case: str, clause: str, kind: str, streams: list[Stream], columns: int = 32, n: int = 18, **more: Any
) -> None:
    """Put in a file that is the part of a tensor of one row of blocks."""
    parameters: Record = {"group_size": 32, **more.pop("parameters", {})}
    tensor = grouped("weight", [1, columns], "f32", streams, parameters)
    tensor.extra = {"origin": {"layout": "gguf", "version": 1, "type": kind, **more}}
    sources = Sources()
    sources.add("model.gguf", [Part(0, bytes(n))])
    bad(f"gguf_{case}", "corrupt", clause, small(tensor, extra={"sources": sources.record()}))


def gguf() -> None:
    """Break the rules of spec/origins/gguf.md."""
    scale = Stream("scales", "f16", [0x3C00])
    q4 = [Stream("codes", "i4", [k % 16 - 8 for k in range(32)]), scale]
    of_gguf("type", "name of the block's type, one of the table", "Q9_9", q4)
    must = (
        "The tensor MUST have the `group_size`, the dtypes and the supergroup of one row that the table gives"
    )
    of_gguf("dtype", must, "Q4_1", q4)
    of_gguf(
        "group_size",
        must,
        "Q4_0",
        [q4[0], Stream("scales", "f16", [0x3C00] * 2)],
        parameters={"group_size": 16},
    )
    of_gguf("group_rows", must, "Q4_0", q4, parameters={"group_rows": 1})
    tile = {"supergroup": {"rows": 1, "groups": 1}}
    second = [Stream("scale_codes", "i8", [1]), Stream("scale_steps", "f16", [0x3C00])]
    of_gguf("supergroup", must, "Q4_0", [q4[0], *second], parameters=tile)
    levels = [Stream("codes", "u4", range(16)), Stream("levels", "f16", [0x3C00] * 16), scale]
    of_gguf("columns", "`columns` MUST be a multiple of the block's elements.", "IQ4_NL", levels, 16, 0)
    fit = "An element that does not fit its place is *corrupt*."
    eight = [Stream("codes", "i8", [16] + [0] * 31), scale]
    of_gguf("code", fit, "Q5_0", eight, 32, 22)
    large = [Stream("codes", "u8", [32] + [0] * 31), scale, Stream("minimums", "f16", [0])]
    of_gguf("code_u8", fit, "Q5_1", large, 32, 24)
    codes = [
        Stream("codes", "u4", [0] * 256),
        Stream("scale_codes", "u8", [64] + [1] * 7),
        Stream("scale_steps", "f16", [0]),
    ]
    codes += [Stream("minimum_codes", "u8", [1] * 8), Stream("minimum_steps", "f16", [0])]
    eights = {"supergroup": {"rows": 1, "groups": 8}}
    of_gguf("scale", fit, "Q4_K", codes, 256, 144, parameters=eights)
    of_gguf("rows", "both or neither: lists of 1 to 8 integers", "Q4_0", q4, row_dims=[1])
    of_gguf(
        "column_dims",
        "| `column_dims`, `column_axes` | the same |",
        "Q4_0",
        q4,
        column_dims=[2, 8],
        column_axes=[1, 0],
    )


PARTS: tuple[Callable[[], None], ...] = (records, origins, arrays, gguf)
