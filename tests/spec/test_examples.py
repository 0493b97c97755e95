"""The examples of FORMAT.md section 10, through both decoders."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from spec_support import FORMAT, READERS
from spq_reference import codecs as reference_codecs
from spq_reference.numbers import BITS, elements, n_planes
from spq_vectors.build import Stream
from spq_vectors.invalid_schemes import uniform_file

from spqfmt.codecs.elements import CARRIERS, from_planes
from spqfmt.codecs.registry import decode_into

CODECS = {"rans": reference_codecs.RANS, "zstd": reference_codecs.ZSTD}


@dataclass(frozen=True)
class Example:
    """A fenced example: its kind, options, bytes, and what stands behind `gives`."""

    kind: str
    options: dict[str, str]
    data: bytes
    gives: str


def examples() -> list[Example]:
    found = []
    for head, body in re.findall(r"^```example (.*?)\n(.*?)^```", FORMAT, flags=re.DOTALL | re.MULTILINE):
        kind, *options = head.split()
        data = b""
        *lines, gives = body.splitlines()
        for line in lines:
            offset, hexes = re.fullmatch(r" *(\d+)  ((?:[0-9a-f]{2} )*[0-9a-f]{2})(?:  .*)?", line).groups()
            assert int(offset) == len(data), f"{head}: {line}"
            data += bytes.fromhex(hexes)
        assert gives.startswith("gives ")
        found.append(
            Example(kind, dict(option.split("=") for option in options), data, gives[len("gives ") :])
        )
    return found


EXAMPLES = examples()


def of(*kinds: str):
    chosen = [example for example in EXAMPLES if example.kind in kinds]
    return pytest.mark.parametrize("example", chosen, ids=[f"{e.kind}{k}" for k, e in enumerate(chosen)])


def test_every_form_has_an_example():
    assert {example.kind for example in EXAMPLES} == {"rans", "zstd", "elements", "outlier_gaps", "file"}


@of("rans", "zstd")
def test_chunk(example):
    raw = bytes.fromhex(example.gives)
    codec = CODECS[example.kind]
    assert int(example.options["raw_bytes"]) == len(raw)
    assert reference_codecs.decode(codec, example.data, len(raw)) == raw
    out = np.zeros(len(raw), np.uint8)
    decode_into(codec, np.frombuffer(example.data, np.uint8), out)
    assert out.tobytes() == raw


@of("elements")
def test_elements(example):
    dtype, n = example.options["dtype"], int(example.options["n"])
    expected = [int(value, 16 if dtype == "bf16" else 10) for value in example.gives.split()]
    planes = n_planes(dtype)
    size = len(example.data) // planes
    assert elements(dtype, [example.data[p * size :][:size] for p in range(planes)], n) == expected
    out = np.empty(n, CARRIERS[dtype])
    from_planes(np.frombuffer(example.data, np.uint8), dtype, n, out)
    mask = (1 << BITS[dtype]) - 1
    assert [int(value) & mask for value in out] == [value & mask for value in expected]


@of("outlier_gaps")
@pytest.mark.parametrize("reader", sorted(READERS))
def test_outlier_gaps(example, reader, tmp_path):
    places = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+), (\d+)\)", example.gives)]
    rest = [
        Stream("outlier_gaps", "u8", example.data),
        Stream("outlier_values", "f32", [0x42C80000] * len(places)),  # 100.0: no code gives it
    ]
    file = uniform_file(
        columns=int(example.options["columns"]), parameters={"outliers": {"rows_per_band": 4}}, rest=rest
    )
    path = tmp_path / "outliers.spq"
    path.write_bytes(file.build())
    ((shape, _, data),) = READERS[reader](path).tensors.values()
    found = np.argwhere(np.frombuffer(data, np.float32).reshape(shape) == 100.0)
    assert [tuple(place) for place in found.tolist()] == places


@of("file")
@pytest.mark.parametrize("reader", sorted(READERS))
def test_file(example, reader, tmp_path):
    path = tmp_path / "example.spq"
    path.write_bytes(example.data)
    name, *raw = example.gives.split()
    content = READERS[reader](path)
    assert content.tensors == {name: ((len(raw),), "u8", bytes.fromhex("".join(raw)))}
    assert content.assets == {}
