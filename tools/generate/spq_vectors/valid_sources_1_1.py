"""The valid vectors of 1.1 with source files, and of metadata."""

import json
from collections.abc import Sequence

from spq_vectors import digest, expected
from spq_vectors.build import File, Record, Stream, Tensor
from spq_vectors.encode import Rans, raw
from spq_vectors.invalid import change
from spq_vectors.source_files import Part, Sources, safetensors
from spq_vectors.valid import Vector, dense, file_1_1, whole

F16_ONE = 0x3C00


def with_sources(
    tensors: Sequence[Tensor], sources: Sources, assets: Sequence[tuple[str, Stream]] = ()
) -> File:
    """Return a file with tensors and source files."""
    held = [*assets, *sources.assets()]
    return file_1_1(*tensors, assets=held, extra={"sources": sources.record()})


def sources_safetensors() -> Vector:
    """A folder of Hugging Face's: two files of weights, text, a file that was left out."""
    embed = expected.bits_of([0.01 * k for k in range(12)], "bf16")
    qkv = [0x3000 + k for k in range(24)]
    norm = expected.bits_of([1.0, -0.0, 2.5], "f32")
    tensors = [
        dense("embed", [4, 3], "bf16", embed, encoders=[raw, Rans()], sizes=[8, 4]),
        dense("qkv", [6, 4], "f16", qkv),
        dense("norm", [3], "f32", norm),
        Tensor("head", [4, 3], "bf16", scheme="tied", extra={"tied_to": "embed"}),
        dense("nothing", [0, 2], "u8", []),
    ]
    contents = {
        "embed": whole("bf16", embed),
        "qkv": whole("f16", qkv),
        "norm": whole("f32", norm),
        "nothing": b"",
    }
    contents["head"] = contents["embed"]
    q, k, v = (Part(1, contents["qkv"][at : at + n], 0, at) for at, n in ((0, 32), (32, 8), (40, 8)))
    sources = Sources()
    config = b'{"model_type": "vector"}'
    sources.keep("config.json", config)
    first = {
        "k": ("F16", [1, 4], k),
        "embed": ("BF16", [4, 3], Part(0, contents["embed"])),
        "q": ("F16", [4, 4], q),
    }
    sources.add("model-00001-of-00002.safetensors", safetensors(first, {"format": "pt", "license": "none"}))
    step = (7).to_bytes(8, "little")
    second: dict[str, tuple[str, list[int], bytes | Part]] = {
        "head": ("BF16", [4, 3], Part(3, contents["head"])), "none": ("U8", [0, 2], Part(4, b"")),
              "step": ("I64", [], step), "v": ("F16", [1, 4], v), "norm": ("F32", [3], Part(2, contents["norm"])),
              "last": ("U8", [2], b"\x01\x02")}  # fmt: skip
    sources.add("weights/model-00002-of-00002.safetensors", safetensors(second))
    sources.keep("caf\u00e9 (1).onnx", b"left out")
    sources.keep("notes.txt", b"as they were")
    sources.add("empty.safetensors", [])
    held = [
        ("config.json", Stream("asset", "u8", config)),
        ("notes.txt", Stream("asset", "u8", b"as they are.")),
    ]
    file = with_sources(tensors, sources, held)
    shows = (
        "two files of safetensors with their headers, parts of a part, a tied tensor, small tensors among the "
        "literals; a file of no pieces at all, one that is an asset, one that was left out, one that was changed"
    )
    made = sources.made | {"config.json": config}
    assets = {"config.json": config, "notes.txt": b"as they are."}
    return Vector(shows, file, contents, assets, made)


def sources_of_weights_alone() -> Vector:
    """Source files without a single literal, and without any file."""
    sources = Sources()
    sources.add("raw.gguf", [Part(0, b"\x01\x02"), Part(0, b"\x02", 0, 1)])
    file = with_sources([dense("weight", [2], "u8", [1, 2])], sources)
    shows = "sources without literals"
    return Vector(shows, file, {"weight": b"\x01\x02"}, {}, sources.made)


def sources_names() -> Vector:
    """Names that no asset may have."""
    sources = Sources()
    names = (
        "sd v1 (x)=2.safetensors",
        "größe/模型.safetensors",
        "a",
        f"{'é' * 127}/{'x' * 255}/-.b\u0301\U0001f600",
    )
    for name in names:
        sources.add(name, [b"N", Part(0, b"\x01\x02")])
    file = with_sources([dense("weight", [2], "u8", [1, 2])], sources)
    shows = "names of source files that no asset may have: spaces, signs, letters of any alphabet, 255 bytes in a part"
    return Vector(shows, file, {"weight": b"\x01\x02"}, {}, sources.made)


def sources_unknown() -> Vector:
    """Origins that a reader does not know, beside a file that it can make."""
    a, b, c = (dense(name, [2], "u8", [k, k]) for k, name in enumerate("abc"))
    a.extra = {"origin": {"layout": "later_one", "version": 1, "parts": "any"}}
    b.extra = {"origin": {"layout": "arrays", "version": 2}}
    named = Tensor("named", [2], "u8", [Stream("x", "u8", [5])], "example.x/1")
    sources = Sources()
    sources.add("a.safetensors", [b"AAA", Part(0, b"??"), b"A"])
    sources.add("c.safetensors", [b"CC", Part(2, b"\x02\x02"), b"C"])
    sources.add("b.safetensors", [b"B", Part(1, b"??", 7)])
    sources.add("named.safetensors", [b"N", Part(3, b"??")])
    unmade = ["a.safetensors", "b.safetensors", "named.safetensors"]
    files = {"c.safetensors": sources.made["c.safetensors"]}
    contents = {"a": b"\0\0", "b": b"\1\1", "c": b"\2\2"}
    shows = "a layout and a version that nobody knows, and a named scheme: their files cannot be made, another can"
    return Vector(shows, with_sources([a, b, c, named], sources), contents, {}, files, ["named"], unmade)


def shard_set() -> dict[str, Vector]:
    """Return two shards; the source files, in the first, are made of tensors of both."""
    held = {"b": [1, 2, 3], "a": [4], "c": [5, 6]}
    tensors = [dense(name, [len(values)], "u8", values) for name, values in held.items()]
    built = [tensor.build()[0] for tensor in tensors]
    model = digest.add_content(built, [[tensor.streams[0].elements] for tensor in tensors])
    sources = Sources()
    entries = {name: ("U8", [len(held[name])], Part(k, bytes(held[name]))) for k, name in enumerate(held)}
    sources.add("model.safetensors", safetensors(entries))
    vectors = {}
    for number, members in ((1, tensors[:2]), (2, tensors[2:])):
        extra: Record = {"shard": {"number": number, "count": 2}}
        extra |= {"sources": sources.record()} if number == 1 else {}
        assets = sources.assets() if number == 1 else []
        file = file_1_1(*members, extra=extra, assets=assets, content=True, edit=change("content", model))
        contents = {tensor.name: bytes(held[tensor.name]) for tensor in members}
        shows = f"shard {number} of 2, with content of both; source files of the tensors of both"
        vectors[f"sources-{number:05}-of-00002"] = Vector(shows, file, contents)
    vectors["sources-00001-of-00002"].files_of_set = sources.made
    return vectors


def description() -> Vector:
    """The keys of metadata that have a meaning."""
    metadata = {
        "license": "Apache-2.0",
        "base_model": "nobody/none",
        "creator": "the vectors",
        "writer": "none 0",
    }
    known = json.loads(json.dumps(metadata | {"source": "", "spq_later": "?"}))
    file = file_1_1(dense("weight", [1], "u8", [F16_ONE % 256]), extra={"metadata": known})
    return Vector(
        "metadata with the keys that have a meaning, and one that is reserved", file, {"weight": b"\0"}
    )


MAKERS = (sources_safetensors, sources_of_weights_alone, sources_names, sources_unknown, description)
