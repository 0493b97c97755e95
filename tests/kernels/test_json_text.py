"""The native reader of JSON texts against Python's: what section 3 of FORMAT.md allows, and what comes of it."""

import json
import random
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spqfmt.errors import CorruptError, FormatError, LimitError
from spqfmt.kernels.json_text import check_json, chunk_table, project_json, tensor_places

LARGEST = 2**53 - 1
texts = st.text() | st.text('"\\/\b\n\té€😀\u2028\x7f', max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-LARGEST, LARGEST) | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=20),
    max_leaves=40,
)


def depth(value):
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if below is None else 1 + max(map(depth, below), default=0)


def wanted_of(value):
    """What gives back the value itself, where it is made of objects and scalars."""
    return {key: wanted_of(inner) for key, inner in value.items()} if isinstance(value, dict) else "scalar"


def without_lists(value):
    if isinstance(value, dict):
        return {key: without_lists(inner) for key, inner in value.items()}
    return ... if isinstance(value, list) else value


@given(st.dictionaries(texts, values, max_size=20), st.booleans(), st.sampled_from([None, 1]))
def test_what_json_writes_is_read(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    if depth(value) > 16:
        with pytest.raises(LimitError):
            check_json(text)
        return
    check_json(text)
    assert project_json(text, 0, len(text), wanted_of(value)) == without_lists(value)


GOOD = [
    b'{"a":0,"b":-0,"c":9007199254740991,"d":-9007199254740991}',
    b' \t\r\n{ "a" : [ 1 , 2 ] } \n',
    b'{"\\u0061b":1,"a":2,"\\/":3,"/ ":4}',
    b'{"a":"\\ud83d\\ude00\\"\\\\"}',
    '{"ключ":"значение","😀":"\x7f"}'.encode(),
    b'{"' + b"[" * 15 + b'":' + b"[" * 15 + b"]" * 15 + b"}",
]
BAD = [
    b"", b" ", b"[]", b"1", b'"a"', b"null", b"{", b"{}}", b"{} x", b"{,}", b'{"a"}', b'{"a":}', b'{"a":1,}', b"{1:1}",
    b"{'a':1}", b'{"a" 1}', b'{"a":[1,]}', b'{"a":[,1]}', b'{"a":[1 2]}', b'{"a":[1}', b'{"a":{]}', b'{"a":"b}',
    b'{"a":01}', b'{"a":-}', b'{"a":+1}', b'{"a":1.0}', b'{"a":1e5}', b'{"a":1E5}', b'{"a":.5}', b'{"a":0x1}',
    b'{"a":9007199254740992}', b'{"a":-9007199254740992}', b'{"a":99999999999999999999}', b'{"a":00000000000000000001}',
    b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":True}', b'{"a":nul}', b'{"a":truex}',
    b'{"a":"\n"}', b'{"a":"\x00"}', b'{"a":"\\x41"}', b'{"a":"\\u12"}', b'{"a":"\\u12g4"}', b'{"a":"\\', b'{"a":"\\"}',
    b'{"a":"\\ud800"}', b'{"a":"\\udc00"}', b'{"a":"\\ud800\\ud800"}', b'{"a":"\\ud800x"}', b'{"a":"\\ud800\\n"}',
    b'{"a":1,"a":1}', b'{"a":1,"\\u0061":1}', b'{"x":{"b":1,"c":2,"b":3}}', b'{"x":[{"":0,"":0}]}', b'\xef\xbb\xbf{}',
    b'{"a":"\xff"}', b'{"a":"\xc0\x80"}', b'{"a":"\xe0\x80\x80"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xf4\x90\x80\x80"}',
    b'{"a":"\xf0\x80\x80\x80"}', b'{"a":"\xe2\x82"}', b'{"a":"\xe2\x82', b'{"\xff":1}', b'{"a":1}\x00', b'{"a":\xa01}',
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_allowed_texts(text):
    check_json(text)
    value = json.loads(text)
    assert project_json(text, 0, len(text), wanted_of(value)) == without_lists(value)


@pytest.mark.parametrize("text", BAD)
def test_texts_that_are_not_allowed(text):
    with pytest.raises(CorruptError):
        check_json(text)


def test_a_key_that_is_repeated_among_many():
    keys = [f"key {k}" for k in range(1000)]
    text = ",".join(f'"{key}":0' for key in keys)
    check_json(f"{{{text}}}".encode())
    for again in ("key 0", "key 999", "key \\u0035"):
        with pytest.raises(CorruptError, match="repeated"):
            check_json(f'{{{text},"{again}":0}}'.encode())


def test_nesting():
    for n, error in ((15, None), (16, LimitError), (100_000, LimitError)):
        text = b'{"a":' + b"[" * n + b"]" * n + b"}"
        if error is None:
            check_json(text)
        else:
            with pytest.raises(error):
                check_json(text)


def python_takes(text):
    """Whether Python's reader, with the same rules, takes it: the reader of the reference decoder in short."""

    def refuse(_):
        raise ValueError

    def unique(pairs):
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError
        return dict(pairs)

    def integer(digits):
        if len(digits) > 17 or abs(int(digits)) > LARGEST:
            raise ValueError
        return int(digits)

    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=unique,
            parse_float=refuse,
            parse_constant=refuse,
            parse_int=integer,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and depth(value) <= 16


def test_mutated_texts_are_taken_exactly_where_python_takes_them():
    value = {"name": "é\n😀", "n": [1, -20, 2**40], "x": {"y": None, "z": [True, {"a": '\\"'}]}}
    wholes = [json.dumps(value, ensure_ascii=ascii_only).encode() for ascii_only in (True, False)]
    generator = random.Random(5)
    alphabet = b'"\\{}[]:,0123456789.eE+-aunt fld\t\x00\xc3\xa9\xff'
    taken = 0
    for number in range(20_000):
        text = bytearray(wholes[number % 2])
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(text))
            what = generator.randrange(3)
            if what == 0:
                text[at] = generator.choice(alphabet)
            elif what == 1:
                del text[at : at + generator.randint(1, 4)]
            else:
                text.insert(at, generator.choice(alphabet))
        try:
            check_json(bytes(text))
        except FormatError:
            assert not python_takes(bytes(text)), bytes(text)
        else:
            assert python_takes(bytes(text)), bytes(text)
            taken += 1
    assert taken > 100


@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_no_text_is_read_past_its_end(text, begin, end):
    """On what was not checked the answers mean nothing; AddressSanitizer watches the rest."""
    wanted = {"a": "scalar", "b": "integers", "c": "rows", "d": "strings", "e": 3, "f": (3, {"a": "scalar"})}
    for kind in (wanted, *wanted.values()):
        with suppress(FormatError, ValueError):
            project_json(b'{"a":' + text, min(begin, end), min(end, len(text)), kind)
    with suppress(FormatError, ValueError):
        tensor_places(text, np.array([[min(begin, end), end]]), 64)


def project(value, wanted):
    text = json.dumps(value).encode()
    check_json(text)
    return project_json(text, 0, len(text), wanted)


def test_lists():
    def numbers(found):
        return np.frombuffer(found, np.int64).tolist()

    value = {
        "i": [1, -2, 3],
        "r": [[1, 2], [3, 4]],
        "e": [],
        "s": ["a", {"b": 1}, []],
        "o": [{"n": 1, "x": 2}, 5],
    }
    found = project(value, {"i": "integers", "r": "rows", "e": "rows", "s": 3, "o": (2, {"n": "scalar"})})
    assert numbers(found["i"]) == [1, -2, 3]
    assert (numbers(found["r"][0]), found["r"][1]) == ([1, 2, 3, 4], 2)
    assert found["e"] == (b"", 0)
    assert found["o"] == [{"n": 1}, 5]
    text = json.dumps(value).encode()
    spans = np.frombuffer(found["s"], np.int64).reshape(-1, 2)
    assert [json.loads(text[begin:end]) for begin, end in spans] == value["s"]
    with pytest.raises(LimitError):
        project(value, {"s": 2})
    with pytest.raises(CorruptError):
        project(value, {"o": (1, {})})
    assert project({"m": {"a": "b"}, "n": {"a": 1}}, {"m": "strings", "n": "strings"}) == {
        "m": {"a": "b"},
        "n": ...,
    }


@pytest.mark.parametrize(
    "other", [[[1, 2], [3]], [[]], [[], []], [1], [[1], 2], [["1"]], [[True]], [[None]], [[[1]]]], ids=str
)
def test_rows_that_are_none(other):
    assert project({"r": other}, {"r": "rows"}) == {"r": ...}


def test_another_kind_than_is_wanted():
    for value in (1, "a", None, True):
        for wanted in ("scalar", "integers", "rows", "strings", 5, (5, {}), {}):
            assert project({"v": value}, {"v": wanted}) == {"v": value}
    assert project({"v": {"a": 1}}, {"v": "scalar"}) == {"v": ...}
    assert project({"v": [1]}, {"v": "scalar"}) == {"v": ...}
    with pytest.raises(ValueError, match="wanted"):
        project({"v": 1}, {"v": "no such kind"})


def test_chunk_table():
    rows = np.array([[8, 4, 0, 1, 4, 0, 2], [0, 0, 0, 0, 0, 0, 0], [3, 100, 2, 9, 3, 0, 7]], np.int64)
    rows[0, [1, 4]] = 8
    n, table = chunk_table(rows, 16, 128, 64, may_be_empty=True)
    assert n == 11
    assert table.tolist() == [[0, 8, 128, 192], [8, 0, 256, 256], [8, 3, 256, 384]]
    assert chunk_table(rows, 16, 8192, 4096, may_be_empty=True)[1][:, 2:].tolist() == [
        [8192, 12288],
        [16384, 16384],
        [16384, 20480],
    ]
    for row, column, value in (
        (0, 0, -1),
        (0, 1, 9),
        (2, 6, 2**32),
        (1, 6, 1),
        (2, 0, 2**53 - 1),
        (2, 1, 2**53 - 1),
    ):
        bad = rows.copy()
        bad[row, column] = value
        with pytest.raises(FormatError, match=f"chunk {row} "):
            chunk_table(bad, 16, 128, 64, may_be_empty=True)
    with pytest.raises(CorruptError, match="chunk 1 is empty"):
        chunk_table(rows, 16, 128, 64, may_be_empty=False)
