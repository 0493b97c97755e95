"""spec/index.schema.json: every valid index obeys it, many invalid ones do not, and its numbers are the registry's."""

import json
import re
import struct
import tomllib
from pathlib import Path
from typing import Any

import pytest
import second_reader
import zstandard
from spec_support import ROOT, VECTORS

SCHEMA = json.loads((ROOT / "spec" / "index.schema.json").read_text(encoding="utf-8"))
REGISTRY = tomllib.loads((ROOT / "spec" / "registry.toml").read_text(encoding="utf-8"))
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
WORDS = {"$schema", "$defs", "title", "description", "type", "enum", "const", "required", "properties", "items",
         "prefixItems", "additionalProperties", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength",
         "pattern", "allOf", "anyOf", "not", "if", "then", "else", "$ref"}  # fmt: skip


def obeys(value: Any, schema: Any) -> bool:
    """Whether a value obeys a schema, by the words of JSON Schema 2020-12 that this schema uses."""
    if isinstance(schema, bool):
        return schema
    assert set(schema) <= WORDS, set(schema) - WORDS
    if "$ref" in schema and not obeys(value, SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]]):
        return False
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, bool))):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if not all(obeys(value, each) for each in schema.get("allOf", ())):
        return False
    if "anyOf" in schema and not any(obeys(value, each) for each in schema["anyOf"]):
        return False
    if "not" in schema and obeys(value, schema["not"]):
        return False
    if "if" in schema and not obeys(
        value, schema.get("then" if obeys(value, schema["if"]) else "else", True)
    ):
        return False
    return of_its_type(value, schema)


def of_its_type(value: Any, schema: dict[str, Any]) -> bool:
    """The words that hold for values of one type alone."""
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if isinstance(value, str):
        fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        return fits and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        rest = value[len(first) :]
        return (
            fits and all(map(obeys, value, first)) and all(obeys(v, schema.get("items", True)) for v in rest)
        )
    known = schema.get("properties", {})
    other = schema.get("additionalProperties", True)
    return set(schema.get("required", ())) <= set(value) and all(
        obeys(each, known.get(key, other)) for key, each in value.items()
    )


def index_of(path: Path) -> Any:
    return second_reader.index_of(path.read_bytes())


@pytest.mark.parametrize("path", sorted(VECTORS.rglob("valid/*.spq")), ids=lambda path: path.stem)
def test_every_valid_index_obeys(path):
    assert obeys(index_of(path), SCHEMA)


def test_what_a_schema_can_say_is_said():
    refused = set()
    for path in VECTORS.rglob("invalid/*.spq"):
        try:
            index = index_of(path)
        except (ValueError, RecursionError, struct.error, zstandard.ZstdError):
            continue  # no index at all
        if not obeys(index, SCHEMA):
            refused.add(path.stem)
    some = {"no_tensors", "null", "boolean", "negative", "step_zero", "view_empty", "named_00",
            "content_upper", "sources_piece_0", "origin_path", "codes_u8", "scales_f8_e5m2",
            "group_rows_0"}  # fmt: skip
    assert some <= refused
    assert len(refused) > 170


def test_its_numbers_are_the_registry_s():
    tensor = SCHEMA["$defs"]["tensor"]["properties"]
    assert sorted(tensor["dtype"]["enum"]) == sorted(REGISTRY["dtypes"])
    limits = REGISTRY["limits"]
    assert SCHEMA["properties"]["tensors"]["maxItems"] == limits["max_tensors"]
    assert SCHEMA["properties"]["segments"]["maxItems"] == limits["max_segments"]
    assert SCHEMA["properties"]["assets"]["maxItems"] == limits["max_assets"]
    assert SCHEMA["properties"]["shard"]["properties"]["count"]["maximum"] == limits["max_shards"]
    assert SCHEMA["$defs"]["dims"]["maxItems"] == tensor["view"]["maxItems"] == limits["max_dimensions"]
    assert SCHEMA["$defs"]["count"]["maximum"] == limits["max_file_bytes"]
