"""The reference decoder quotes FORMAT.md word for word, leaves no rule out, and shares nothing with the package."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from spec_support import FORMAT_WORDS, ORIGINS_WORDS, ROOT, rules, words
from spq_reference import codecs, container, numbers, restore

FILES = [ROOT / "spec" / "reference_decoder.py", *sorted((ROOT / "spec" / "spq_reference").glob("*.py"))]
TEXTS = f"{FORMAT_WORDS} {ORIGINS_WORDS}"
REGISTRY = tomllib.loads((ROOT / "spec" / "registry.toml").read_text(encoding="utf-8"))

# Rules for more than one file, for writers, or for what a program does with a decoded file.
NOT_DECODING = (
    "MUST, SHOULD and MAY are used as in RFC 2119.",
    "A reader MUST NOT execute an asset.",
    "writes assets as files MUST write those alone that this section allows",
    "A reader MUST NOT refuse a file because it holds them.",
    "its length MUST NOT pass `max_index_raw_bytes`.",
    "`file` MUST be the name of shard k",
    "A reader that opens the model through this file MUST check",
)


def quotes(path: Path) -> list[tuple[int, str]]:
    """Return the quotes of a file: line number and text; consecutive lines are one quote."""
    found: list[tuple[int, str]] = []
    last = -2
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        quote = re.match(r" *# > (.*)", line)
        if quote and number == last + 1:
            found[-1] = (found[-1][0], f"{found[-1][1]} {quote[1]}")
        elif quote:
            found.append((number + 1, quote[1]))
        last = number if quote else last
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_quotes_stand_in_format(path):
    for line, quote in quotes(path):
        # A file lists neighbouring rows or sentences in one comment although the text has others between them.
        parts = (
            [words(quote)] if words(quote) in TEXTS else re.split(r"(?<=\|) (?=\|)|(?<=[.;]) ", words(quote))
        )
        for part in parts:
            assert part in TEXTS, f"{path.name}:{line}: {part}"


def test_every_rule_is_quoted():
    quoted = " ".join(words(quote) for path in FILES for _, quote in quotes(path))
    assert len(rules()) > 40
    missing = [
        rule
        for rule in rules()
        if not any(excused in rule for excused in NOT_DECODING) and longest_part(rule) not in quoted
    ]
    assert missing == []


def longest_part(rule: str) -> str:
    """Return the clause of a rule that holds its MUST: rules are quoted whole or by clause."""
    return next(part for part in re.split(r"; |\. |: | \|", rule.strip("| ")) if "MUST" in part).strip()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_the_standard_library_and_zstandard(path):
    allowed = set(sys.stdlib_module_names) | {"zstandard", "spq_reference"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        if isinstance(node, ast.ImportFrom):
            assert str(node.module).split(".")[0] in allowed


def test_numbers_typed_by_hand_are_the_registry_s():
    assert {name: dtype["bits"] for name, dtype in REGISTRY["dtypes"].items()} == numbers.BITS
    assert tuple(name for name, dtype in REGISTRY["dtypes"].items() if dtype["rotate"]) == numbers.ROTATED
    assert tuple(REGISTRY["log8"]["table"]) == restore.T
    bits = {feature: bit for bit, feature in enumerate(container.REQUIRED) if feature is not None}
    assert bits == REGISTRY["features"]["required"]
    small = {name: tuple(dtype.values())[:3] for name, dtype in REGISTRY["small_floats"].items()}
    assert small == numbers.SMALL_FLOATS
    assert bytes.fromhex(REGISTRY["format"]["magic"]) == container.MAGIC
    assert REGISTRY["codecs"] == {"raw": codecs.RAW, "zstd": codecs.ZSTD, "rans": codecs.RANS}
