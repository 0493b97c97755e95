"""Write spec/vectors: files that show every part of the format, and files that each break one of its rules.

    python tools/generate/make_vectors.py [--output DIR] [--force]

The files are written by a writer of their own (tools/generate/spq_vectors), not by the package, and what a reader
must restore comes from numpy and FORMAT.md's formulas. Vectors are frozen: a file that exists with other bytes is
left alone, and the exit code is 1, unless --force says that it shall change.
"""

import argparse
import json
import sys
from pathlib import Path

from spq_vectors import (
    invalid,
    invalid_1_1,
    invalid_beside,
    invalid_codecs,
    invalid_grouped_1_1,
    invalid_schemes,
    invalid_sources_1_1,
    invalid_trellis_1_1,
    valid_dense_1_1,
    valid_floats_1_1,
    valid_grouped,
    valid_levels_1_1,
    valid_origins_1_1,
    valid_sources_1_1,
    valid_trellis_1_1,
)
from spq_vectors.build import Record
from spq_vectors.valid import VALID, Vector
from spq_vectors.valid_grouped import digest

ROOT = Path(__file__).resolve().parents[2]


INVALID = (
    invalid.header_and_trailer, invalid.layout, invalid.json_text, invalid.stored_index, invalid.records,
    invalid_beside.beside_tensors, invalid_codecs.zstd, invalid_codecs.rans_header, invalid_codecs.rans_blocks,
    invalid_codecs.packed, invalid_schemes.matrix, invalid_schemes.uniform, invalid_schemes.channels,
    invalid_schemes.outliers, invalid_schemes.grouped, invalid_schemes.shared,
)  # fmt: skip
VALID_1_1 = tuple(
    maker
    for module in (
        valid_dense_1_1,
        valid_floats_1_1,
        valid_levels_1_1,
        valid_sources_1_1,
        valid_origins_1_1,
        valid_trellis_1_1,
    )
    for maker in module.MAKERS
)
INVALID_1_1 = (
    *invalid_1_1.PARTS,
    *invalid_grouped_1_1.PARTS,
    *invalid_sources_1_1.PARTS,
    *invalid_trellis_1_1.PARTS,
)


def make() -> dict[str, bytes]:
    """Return all files by their path below spec/vectors: those of 1.0, and below 1.1 those of that version."""
    files = {}
    shards, shards_1_1 = valid_grouped.shard_set(), valid_sources_1_1.shard_set()
    files["valid/shards.spq.index.json"] = valid_grouped.shard_index(shards)
    files |= of_valid("", {name: maker() for name, maker in VALID.items()} | shards)
    files |= of_invalid("", invalid.made_by(INVALID))
    files["1.1/valid/sources.spq.index.json"] = valid_grouped.shard_index(shards_1_1)
    files |= of_valid("1.1/", {maker.__name__: maker() for maker in VALID_1_1} | shards_1_1)
    return files | of_invalid("1.1/", invalid.made_by(INVALID_1_1))


def of_valid(folder: str, vectors: dict[str, Vector]) -> dict[str, bytes]:
    """Return valid vectors and their manifest."""
    files, entries = {}, {}
    for name, vector in vectors.items():
        data = vector.file.build()
        files[f"{folder}valid/{name}.spq"] = data
        entries[name] = {
            "shows": vector.shows,
            "file_bytes": len(data),
            "tensors": {key: digest(content) for key, content in vector.tensors.items()},
            "assets": {key: digest(content) for key, content in vector.assets.items()},
        } | ({"as_files": vector.as_files} if vector.as_files else {})
        if folder:
            entries[name]["files"] = {key: digest(content) for key, content in vector.files.items()}
            if vector.files_of_set:
                entries[name]["files_of_set"] = {
                    key: digest(file) for key, file in vector.files_of_set.items()
                }
            entries[name] |= {"refused": sorted(vector.refused), "unmade": sorted(vector.unmade)}
    return {**files, f"{folder}valid/manifest.json": manifest(entries)}


def of_invalid(folder: str, vectors: dict[str, invalid.Invalid]) -> dict[str, bytes]:
    """Return invalid vectors and their manifest."""
    files = {f"{folder}invalid/{name}.spq": file.data for name, file in vectors.items()}
    entries = {name: {"kind": file.kind, "clause": file.clause} for name, file in vectors.items()}
    return {**files, f"{folder}invalid/manifest.json": manifest(entries)}


def manifest(entries: Record) -> bytes:
    """Return the text of a manifest."""
    return (json.dumps(entries, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Write spec/vectors.")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "spec" / "vectors", help="default: spec/vectors"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that exist with other bytes")
    options = parser.parse_args()
    frozen = 0
    for path, data in make().items():
        target = options.output / path
        if target.exists() and target.read_bytes() == data:
            continue
        if target.exists() and not options.force:
            print(f"left as it is: {target}", file=sys.stderr)
            frozen += 1
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        print(f"written: {target}")
    if frozen:
        print(f"{frozen} frozen files would change; --force overwrites them", file=sys.stderr)
    return int(frozen > 0)


if __name__ == "__main__":
    sys.exit(main())
