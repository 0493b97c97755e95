"""The valid vectors: what each shows, its file, and the bytes of every tensor and asset that a reader must restore."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spq_vectors import encode, expected
from spq_vectors.build import File, Record, Stream, Tensor, zstd_index
from spq_vectors.encode import BITS, DTYPES_1_0, Rans, constant, raw, zstd, zstd_by_hand

RANS = Rans()
VALID: dict[str, Callable[[], "Vector"]] = {}


@dataclass
class Vector:
    """A file and its content. `shows` is for people.

    `refused` are tensors and `unmade` source files that a reader of FORMAT.md alone knows no way to make.
    """

    shows: str
    file: File
    tensors: dict[str, bytes] = field(default_factory=dict)
    assets: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    refused: Sequence[str] = ()
    unmade: Sequence[str] = ()
    files_of_set: dict[str, bytes] = field(default_factory=dict)  # what all shards make together
    as_files: dict[str, str] = field(default_factory=dict)
    """What assets are as files of a folder (FORMAT.md 7.1), "data" or "code"; the others are left out."""


def vector(make: Callable[[], Vector]) -> Callable[[], Vector]:
    """Put a maker into VALID under its name."""
    VALID[make.__name__] = make
    return make


def file_1_1(*tensors: Tensor, **options: Any) -> File:
    """Return a file of one segment with the lowest version and the bits that it needs."""
    return File([("all", tensors)] if tensors else [], **{"version": None, "optional": None, **options})


def numbers(seed: int, n: int, low: int, high: int) -> list[int]:
    """Return n integers from low to high, most of them near the middle, so that coders have something to do."""
    generator = random.Random(seed)
    middle = (low + high) / 2
    return [min(high, max(low, round(generator.gauss(middle, (high - low) / 10)))) for _ in range(n)]


def whole(dtype: str, elements: Sequence[int]) -> bytes:
    """Return elements as a dense tensor restores them."""
    bits = BITS[dtype]
    return encode.packed(bits, [element % (1 << bits) for element in elements])


def matrix(seed: int, rows: int, columns: int, low: int, high: int) -> NDArray[np.int64]:
    """Return a matrix of codes."""
    return np.array(numbers(seed, rows * columns, low, high), np.int64).reshape(rows, columns)


def flat(array: NDArray[np.int64]) -> list[int]:
    """Return the elements in row-major order."""
    return [int(value) for value in array.ravel()]


def dense(name: str, shape: Sequence[int], dtype: str, elements: Sequence[int], **options: object) -> Tensor:
    """Return a dense tensor; options are the stream's."""
    stream = Stream("values", dtype, elements)
    for key, value in options.items():
        setattr(stream, key, value)
    return Tensor(name, shape, dtype, [stream])


@vector
def empty() -> Vector:
    """No tensor, no asset: header, index, trailer."""
    return Vector("no tensors and no assets", File())


@vector
def dense_dtypes() -> Vector:
    """Every dtype of a dense tensor."""
    special = {
        "f64": [
            0,
            1 << 63,
            1,
            0x7FF0000000000000,
            0x7FF8000000000001,
            0xFFF0000000000001,
            0x3FF0000000000001,
        ],
        "f32": [0, 1 << 31, 1, 0x7F800000, 0x7FC00001, 0xFF800001, 0x3F800001, 0x807FFFFF],
        "f16": [0, 1 << 15, 1, 0x7C00, 0x7E01, 0xFC01, 0x3C01, 0x83FF],
        "bf16": [0, 1 << 15, 1, 0x7F80, 0x7FC1, 0xFF81, 0x3F81, 0x807F],
    }
    tensors, contents = [], {}
    for dtype in DTYPES_1_0:
        bits = BITS[dtype]
        if bits < 8 or dtype == "log8":
            continue
        edges = [0, 1, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1]
        elements = [0, 1, 1, 0] if dtype == "bool" else special.get(dtype, edges)
        tensors.append(dense(f"{dtype}.values", [1, len(elements)], dtype, elements))
        contents[f"{dtype}.values"] = whole(dtype, elements)
    tensors.append(dense("scalar", [], "f32", [0x40490FDB]))
    tensors.append(dense("nothing", [3, 0, 5], "bf16", []))
    contents |= {"scalar": whole("f32", [0x40490FDB]), "nothing": b""}
    shows = "every dtype with zeros of both signs, subnormals, infinities, NaNs with payload; a scalar; no elements"
    return Vector(shows, File([("all", tensors)]), contents)


@vector
def dense_planes() -> Vector:
    """Planes of one chunk with different codecs."""
    generator = random.Random(1)
    elements = expected.bits_of([generator.gauss(0, 0.02) for _ in range(700)], "bf16")
    codecs = [raw, Rans(), zstd_by_hand, Rans(8), zstd, raw]
    tensor = dense("weight", [35, 20], "bf16", elements, sizes=[300, 300, 100], encoders=codecs)
    wide = expected.bits_of([generator.gauss(0, 1) for _ in range(130)], "f32")
    tensors = [tensor, dense("wide", [130], "f32", wide, encoders=[zstd, raw, raw, RANS])]
    return Vector(
        "bf16 and f32 planes, each chunk and plane with another codec",
        File([("layer", tensors)]),
        {"weight": whole("bf16", elements), "wide": whole("f32", wide)},
    )


@vector
def rans_blocks() -> Vector:
    """The freedoms of a rans encoder."""
    skewed = [0] * 256
    skewed[3], skewed[200] = 4095, 1
    all_symbols = [16] * 256
    coarse = [0] * 256
    coarse[0], coarse[1], coarse[2], coarse[9] = 1000, 2048, 24, 1024
    cases: dict[str, tuple[list[int], Sequence[encode.Encoder], list[int]]] = {
        "one": ([7], [Rans()], [1]),
        "group": ([i % 5 for i in range(128)], [Rans()], [128]),
        "blocks": (numbers(2, 300, 0, 40), [Rans(7)], [300]),
        "large_block": (numbers(3, 300, 0, 40), [Rans(16)], [300]),
        "skewed": ([3] * 90 + [200] + [3] * 60, [Rans(8, skewed)], [151]),
        "flat": (list(range(256)), [Rans(8, all_symbols)], [256]),
        "other_symbols": ([1, 2, 0] * 50, [Rans(7, coarse, fill=9)], [150]),
        "constant": ([5] * 1000, [constant], [1000]),
        "chunks": ([9] * 130 + numbers(4, 270, 5, 15), [constant, RANS, raw, Rans(9)], [130, 70, 100, 100]),
    }
    tensors = [
        dense(name, [len(values)], "u8", values, encoders=encoders, sizes=sizes)
        for name, (values, encoders, sizes) in cases.items()
    ]
    return Vector(
        "rans: last groups not full, several block sizes, tables of 4095 + 1, of 256 symbols, with symbols "
        "that do not occur (one of them as filler), constant chunks",
        File([("all", tensors)]),
        {name: bytes(values) for name, (values, _, _) in cases.items()},
    )


@vector
def zstd_frames() -> Vector:
    """More than one frame in a chunk."""
    long = [i // 9000 for i in range(70000)]
    short = numbers(5, 200, 0, 255)

    def two_blocks(data: bytes) -> tuple[int, bytes]:
        return 1, encode.zstd_chunk([encode.stored_frame(data, blocks=2)])

    tensors = [
        dense("long", [70000], "u8", long, encoders=[zstd]),
        dense("short", [200], "u8", short, encoders=[two_blocks]),
    ]
    return Vector(
        "zstd: a chunk of two frames, and a frame of two raw blocks",
        File([("all", tensors)]),
        {"long": bytes(long), "short": bytes(short)},
    )


@vector
def tied_and_segments() -> Vector:
    """Tied tensors, segments at 4096."""
    embed = expected.bits_of([0.01 * k for k in range(-30, 30)], "bf16")
    tensors = [dense("embed", [6, 10], "bf16", embed)]
    tied: Record = {"tied_to": "embed"}
    head = Tensor("head", [6, 10], "bf16", scheme="tied", extra=tied)
    norm = dense("norm", [2, 5], "u8", range(10))

    def leave_out(index: Record) -> None:
        del index["tensors"][2]["streams"], index["tensors"][2]["parameters"]

    segments = [("first", tensors), ("nothing stored", [head]), ("", [norm])]
    segments[1] = ("nothing stored", [head, Tensor("again", [6, 10], "bf16", scheme="tied", extra=tied)])
    file = File(segments, [("a.json", Stream("asset", "u8", b"{}"))], alignment=4096, edit=leave_out)
    contents = {name: whole("bf16", embed) for name in ("embed", "head", "again")}
    return Vector(
        "tied tensors, with and without the keys they may leave out; segment_alignment 4096, a segment without chunks",
        file,
        contents | {"norm": bytes(range(10))},
        {"a.json": b"{}"},
    )


@vector
def assets() -> Vector:
    """Assets and what the index says beside the tensors."""
    config, readme = b'{"model_type": "none"}\n', b"A" * 400 + b"text\n" * 30
    held = [
        ("config.json", Stream("asset", "u8", config)),
        (
            "original/READ_ME-1.txt",
            Stream("asset", "u8", readme, [constant, zstd_by_hand, RANS], [400, 100, 50]),
        ),
        ("empty", Stream("asset", "u8", b"")),
        ("...", Stream("asset", "u8", b"\0\xff")),
    ]
    extra: Record = {"metadata": {"source": "nowhere", "": ""}, "partial_plan": {"rule": "every", "n": 3}}
    contents = {"config.json": config, "original/READ_ME-1.txt": readme, "empty": b"", "...": b"\0\xff"}
    file = File(assets=held, extra=extra, optional=3)
    return Vector("assets of several chunks, an empty one; metadata; partial_plan", file, {}, contents)


@vector
def asset_files() -> Vector:
    """Assets that may be files in a folder, and many that may not."""
    data = (
        "config.json", "LICENSE", "Notice", "README.md", "merges.TXT", "source.spm", "vocab.bpe", "tokenizer.model.v3",
        "1_Pooling/config.json", "2_Dense/model.safetensors", "chat_template.jinja", "a/b/c/names.tsv", "License-MIT",
    )  # fmt: skip
    code = (
        "modeling.py", "custom_generate/GENERATE.PY", "recipe.yaml", "package.json", "sub/requirements.txt",
        "AGENTS.md", "CMakeLists.txt",
    )  # fmt: skip
    neither = (
        ".git/config", ".git/config.json", "x.pyc", ".env", "Makefile", "model.PT", "model.safetensors", "pickle.pkl",
        "CONFIG.JSON", "license/readme.md", "con", "NUL.json", "aux.d/x.json", "Com1.txt", ".json", "a./x.json",
        "x.json.",
        "model.safetensors.index.json", "adapter_config.json", "sub/Adapter_Config.json", ".hidden.json", "sub/.x/y.md",
        "lib.so", "x.spq", "pytorch_model.bin", "tokenizer.model.v4", "README.", "conftest.pyw", "setup.cfg", "run.sh",
        "1_pooling/CONFIG.json", "readme.md/x.txt", "...", "no_ending",
    )  # fmt: skip
    names = (*data, *code, *neither)
    held = [(name, Stream("asset", "u8", name.encode())) for name in names]
    kinds = dict.fromkeys(data, "data") | dict.fromkeys(code, "code")
    shows = "names of assets: data, code, and what never becomes a file in a folder"
    return Vector(
        shows,
        File(assets=held, compress=zstd_index),
        {},
        {name: name.encode() for name in names},
        as_files=kinds,
    )


@vector
def asset_names() -> Vector:
    """Texts that a model needs, and texts that tools obey by their names."""
    data = (
        "generation_config.json", "Tokenizer.4.0.0.JSON", "tokenizer_config.json", "config_sentence_transformers.json",
        "special_tokens_map.json", "added_tokens.json", "vocab-src.json", "entity_vocab.json", "all_results.json",
        "vocab.txt", "dict.de.txt", "labels.txt", "README_zh.md", "LICENSE-LLAMA.txt", "original/params.json",
        "docs/THIRD_PARTY_NOTICES.md", "USE_POLICY.md", "model_card.md", "preprocessor_config.json", "modules.json",
        "additional_chat_templates/tools.jinja", "USAGE_POLICY", "x.model.v1", "usage.md", "_config.json",
    )  # fmt: skip
    code = (
        "opencode.json", "AGENT.md", "CLAUDE.local.md", "requirements-dev.txt", "renovate.json", "biome.json",
        "tsconfig.json", "lefthook.json", "docs/SKILL.md", "GEMINI.md", "a.config.json", "notes.txt", "myreadme.md",
        "conanfile.txt", "vocab.json.txt.py", "xtokenizer.json", "config.json.md", "license.md.yaml",
    )  # fmt: skip
    neither = (
        "-rf.json", "--config/config.json", "x/-/readme.md", "-", "license.sh", "license-x", "config.json5",
        "config.json.lock", "vocab.txt.bak", "tokenizer", "conftest", "x_config.json.index.json", "-.model",
    )  # fmt: skip
    names = (*data, *code, *neither)
    return Vector(
        "names of texts: those of a model's files, others, and parts that begin with a dash",
        File(assets=[(name, Stream("asset", "u8", name.encode())) for name in names], compress=zstd_index),
        {},
        {name: name.encode() for name in names},
        as_files=dict.fromkeys(data, "data") | dict.fromkeys(code, "code"),
    )


@vector
def future_minor() -> Vector:
    """What a reader of 1.0 ignores."""
    unknown: Record = {"later": {"a": [1, [2, {"b": None}], True, "\u20ac"], "c": -(2**53) + 1}}

    def edit(index: Record) -> None:
        for record in (index["tensors"][0], index["tensors"][0]["streams"][0], index["segments"][0], index):
            record.update(unknown)
        index["tensors"][0]["parameters"].update(unknown)
        index["tensors"][0]["streams"][0]["entropy_bits"] = [17]

    def spaced(text: str) -> bytes:
        return (
            b" \t\r\n" + text.replace(":[", " :\r\n[ ").replace('"later"', '"l\\u0061ter"').encode() + b"\n"
        )

    file = File(
        [("schicht \u00e9", [dense("gewicht \u00fc \U0001f40d", [4], "u8", [1, 2, 3, 4])])],
        version=(1, 7),
        optional=(1 << 63) | (1 << 17),
        required=0b1111111111111,
        edit=edit,
        text=spaced,
    )
    shows = (
        "minor version 1.7, unknown keys and optional bits, required bits that nothing uses, names "
        "past ASCII, spaced JSON"
    )
    return Vector(shows, file, {"gewicht \u00fc \U0001f40d": bytes([1, 2, 3, 4])})


@vector
def compressed_index() -> Vector:
    """An index that is a zstd frame."""
    tensors = [dense(f"layer.{k}.weight", [3], "u8", [k, k, k]) for k in range(9)]
    segments = [(f"layer.{k}", [tensor]) for k, tensor in enumerate(tensors)]
    contents = {f"layer.{k}.weight": bytes([k, k, k]) for k in range(9)}
    return Vector("the index as a zstd frame", File(segments, compress=zstd_index), contents)
