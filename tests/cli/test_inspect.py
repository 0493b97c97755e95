"""What `spqfmt inspect` says of a file: every byte has its place, groups add up, measurements are the weights' own."""

import json
from collections.abc import Callable
from dataclasses import asdict
from math import isclose
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_models import Models
from spq_command import Run

import spqfmt
from spqfmt.codecs.chunks import EncodedChunk, EncodedPlane
from spqfmt.container.reader import Reader
from spqfmt.container.writer import Writer
from spqfmt.errors import CorruptError
from spqfmt.kernels import native
from spqfmt.reading.report import GROUPINGS, CostParts, FileReport, inspect_file
from spqfmt.reading.report.build import _PARTS, part_of
from spqfmt.reading.report.names import layer_of, projection_of
from spqfmt.records import Stream, TensorRecord
from spqfmt.schemes.registry import SCHEMES

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"
UP = "model.layers.1.mlp.up_proj.weight"


def check_sums(report: FileReport) -> None:
    assert report.totals.parts.total == report.file_bytes
    assert all(n >= 0 for n in asdict(report.totals.parts).values())
    for tensor in report.tensors:
        assert tensor.parts.total == tensor.stored_bytes == sum(s.stored_bytes for s in tensor.streams)
        assert all(0 <= s.table_bytes <= s.stored_bytes for s in tensor.streams)
    for groups in report.groups.values():
        assert sum((g.parts for g in groups), CostParts()) == sum(
            (t.parts for t in report.tensors), CostParts()
        )
        for key in ("n_weights", "raw_bytes", "stored_bytes", "outliers"):
            assert sum(getattr(g, key) for g in groups) == sum(getattr(t, key) for t in report.tensors)
        assert sum(g.n_tensors for g in groups) == len(report.tensors)
        assert isclose(sum(g.share for g in groups), report.totals.tensor_bytes / report.file_bytes)


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.spq")), ids=lambda path: path.stem)
def test_parts_of_every_valid_vector_add_up_to_its_bytes(path: Path) -> None:
    report = inspect_file(path)
    assert report.file_bytes == path.stat().st_size
    check_sums(report)


@pytest.mark.parametrize("kind", ["lossless", "zstd", "int8", "int4"])
def test_parts_of_a_packed_model_add_up_to_its_bytes(models: Models, kind: str) -> None:
    path = getattr(models, kind)
    report = inspect_file(path)
    assert report.file_bytes == path.stat().st_size
    check_sums(report)
    parts = report.totals.parts
    assert parts.tables > 0
    assert parts.assets > 0
    assert (parts.codes > 0) == (parts.scales > 0) == (kind in {"int8", "int4"})


@pytest.mark.parametrize("path", ["models", "vectors"])
def test_parts_of_shards_add_up_to_the_bytes_of_all_files(models: Models, path: str) -> None:
    index = models.shards if path == "models" else VECTORS / "shards.spq.index.json"
    files = sorted(index.parent.glob(f"{index.name.split('.')[0]}-*.spq"))
    report = inspect_file(index)
    assert report.n_files == len(files) > 1
    assert report.file_bytes == sum(file.stat().st_size for file in [index, *files])
    check_sums(report)


def test_every_role_of_every_scheme_has_its_part() -> None:
    scales = {
        f"{kind}_{what}"
        for kind in ("scale", "zero_point", "minimum")
        for what in ("codes", "levels", "steps", "zeros", "minimums")
    } | {"levels", "scales", "zero_points", "minimums", "row_scales", "column_scales"}
    for scheme in SCHEMES.values():
        for role in scheme.roles:
            assert (role in scales) != (role in _PARTS), role
            assert part_of(role) in CostParts.__dataclass_fields__


def write_chunk(path: Path, stored: bytes, codec: int, n_elements: int) -> None:
    """A file with one tensor of u8 in one chunk."""
    record = TensorRecord("w", (n_elements,), "u8", "dense", streams=(Stream("values", "u8", n_elements),))
    plane = EncodedPlane(stored, codec, native.crc32(np.frombuffer(stored, np.uint8)), None)
    with Writer(path, 64, force=False) as writer:
        writer.begin_segment("all")
        writer.add_tensor(record, [[EncodedChunk(n_elements, (plane,))]])
        writer.seal({})
        writer.publish()


def test_tables_of_rans_are_header_frequencies_and_directory(tmp_path: Path) -> None:
    """The example of FORMAT.md section 10: 8 bytes of header, 3 of table and 1 of padding, 4 of directory."""
    symbols = np.random.default_rng(0).integers(0, 3, 1000, dtype=np.uint8)
    stored = native.rans_encode(symbols, 8)
    n_table = int.from_bytes(stored[6:8], "little")
    first_block = 8 + (n_table + 3) // 4 * 4 + 4 * 4
    # Block 0 begins behind the directory with its 32 states, each of at least 65536.
    states = np.frombuffer(stored[first_block : first_block + 128], np.uint32)
    assert (states >= 65536).all()
    write_chunk(tmp_path / "m.spq", stored, 2, 1000)
    spqfmt.verify(tmp_path / "m.spq")
    assert inspect_file(tmp_path / "m.spq").tensors[0].parts == CostParts(
        values=len(stored) - first_block, tables=first_block
    )


def test_a_header_that_claims_more_tables_than_there_are_bytes_is_refused(
    models: Models, tmp_path: Path
) -> None:
    data = bytearray(models.int8.read_bytes())
    with Reader(models.int8) as reader:
        plane = reader.index.tensors[0].by_role["codes"].chunks[0].planes[0]
    assert plane.codec == 2
    data[plane.offset + 6 : plane.offset + 8] = b"\xff\xff"
    (tmp_path / "bad.spq").write_bytes(data)
    with pytest.raises(
        CorruptError, match=r"bad\.spq: tensor 'model\.embed_tokens\.weight', codes.*its tables"
    ):
        inspect_file(tmp_path / "bad.spq")


@pytest.mark.parametrize(
    ("name", "layer", "projection"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3", "mlp.up_proj.weight"),
        ("model.layers.11.mlp.experts.7.up_proj.weight", "model.layers.11", "mlp.experts.*.up_proj.weight"),
        ("transformer.h.0.attn.c_attn.bias", "transformer.h.0", "attn.c_attn.bias"),
        ("h.0.ln_1.weight", "h.0", "ln_1.weight"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight", "lm_head.weight"),
        ("w", "w", "w"),
    ],
)
def test_layer_and_projection_are_read_from_the_name(name: str, layer: str, projection: str) -> None:
    assert (layer_of(name), projection_of(name)) == (layer, projection)


def test_groups_are_by_layer_projection_and_scheme(models: Models) -> None:
    report = inspect_file(models.int8)
    assert {key: [g.name for g in groups][:3] for key, groups in report.groups.items()} == {
        "layer": ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0"],
        "projection": ["model.embed_tokens.weight", "lm_head.weight", "input_layernorm.weight"],
        "scheme": ["uniform", "tied", "dense"],
    }
    up = next(g for g in report.groups["projection"] if g.name == "mlp.up_proj.weight")
    assert up.n_tensors == 2
    assert set(GROUPINGS) == set(report.groups)


def test_a_tied_tensor_costs_nothing_and_is_counted_once(models: Models) -> None:
    report = inspect_file(models.lossless)
    head = next(t for t in report.tensors if t.name == "lm_head.weight")
    assert (head.n_weights, head.stored_bytes, head.tied_to) == (0, 0, "model.embed_tokens.weight")
    with spqfmt.open(models.lossless) as file:
        assert report.totals.n_weights == sum(file.read(n).numel() for n in file if n not in file.tied)


def lines(text: str) -> list[list[str]]:
    """The cells of the first table."""
    return [line.split() for line in text.split("\n\n", maxsplit=1)[0].splitlines()]


def test_the_table_has_a_line_for_each_tensor_and_the_parts_of_the_file(spq: Run, models: Models) -> None:
    done = spq("inspect", models.int4)
    report = inspect_file(models.int4)
    rows = lines(done.stdout)
    titles = "tensor shape scheme stored share bits/w bound over ratio streams"
    assert " ".join(rows[0]) == titles
    assert [row[0] for row in rows[1:]] == [t.name for t in report.tensors]
    up = next(row for row in rows if row[0] == UP)
    tensor = next(t for t in report.tensors if t.name == UP)
    assert up[1:4] == ["176x64", "grouped", "u4/32"]
    assert f"{tensor.bits_per_weight:.3f}" in up
    assert f"{tensor.entropy_bits_per_weight:.3f}" in up
    assert f"{tensor.ratio:.2f}" in up
    assert up[-3:] == [f"{stream.role}:{stream.codec}" for stream in tensor.streams]
    parts = done.stdout.split("part of the file")[1].split("\n\n")[0].splitlines()[1:]
    sizes = [int(line.split()[1].replace(",", "")) for line in parts]
    assert sizes[-1] == models.int4.stat().st_size == sum(sizes[:-1])


@pytest.mark.parametrize("by", list(GROUPINGS))
def test_groups_as_a_table(spq: Run, models: Models, by: str) -> None:
    rows = lines(spq("inspect", models.int4, "--by", by, "--sort", "size").stdout)
    assert rows[0][0] == by
    groups = inspect_file(models.int4).groups[by]  # type: ignore[index]  # the parameter is one of its keys
    assert [row[0] for row in rows[1:]] == [g.name for g in sorted(groups, key=lambda g: -g.stored_bytes)]


def test_the_ratio_of_a_model_in_fp32_is_not_called_one_to_bf16(
    spq: Run, models: Models, edited: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.spq"
    for source, n_bytes in ((models.source, 4), (edited(_in_bf16(models)), 2)):
        done = spq("pack", source, out, "--method", "rtn", "--force")
        totals = inspect_file(out).totals
        assert (totals.raw_bytes, totals.bf16_bytes) == (n_bytes * totals.n_weights, 2 * totals.n_weights)
        to_bf16 = f"{totals.bf16_bytes / out.stat().st_size:.2f} to BF16"
        told = f"ratio {totals.ratio:.2f} to the source, {to_bf16}" if n_bytes == 4 else f"ratio {to_bf16}"
        assert f"({told}, " in done.stderr
        assert f", {told}; " in spq("inspect", out).stdout


def _in_bf16(models: Models) -> dict[str, torch.Tensor]:
    with spqfmt.open(models.lossless) as file:
        return {name: file.read(name).bfloat16() for name in file if name not in file.tied}


def test_a_file_without_tensors_is_shown(spq: Run) -> None:
    for by in ("tensor", *GROUPINGS):
        done = spq("inspect", VECTORS / "empty.spq", "--by", by)
        assert done.code == 0
        assert "0 weights in 0 tensors" in done.stdout


@pytest.mark.parametrize("key", ["size", "bits", "ratio", "over", "outliers"])
def test_rows_sort_the_largest_first(spq: Run, models: Models, key: str) -> None:
    of = {
        "size": lambda t: t["stored_bytes"],
        "bits": lambda t: t["bits_per_weight"],
        "ratio": lambda t: t["ratio"] or 0,
        "over": lambda t: t["bits_per_weight"] / t["entropy_bits_per_weight"] if t["n_weights"] else 0,
        "outliers": lambda t: t["outlier_share"],
    }[key]
    report = json.loads(spq("inspect", models.int4, "--json", "--sort", key).stdout)
    assert [of(t) for t in report["tensors"]] == sorted(map(of, report["tensors"]), reverse=True)
    names = json.loads(spq("inspect", models.int4, "--json", "--sort", "name").stdout)["groups"]["layer"]
    assert [g["name"] for g in names] == sorted(g["name"] for g in names)


def test_a_filter_keeps_the_file_s_totals_and_groups_what_is_left(spq: Run, models: Models) -> None:
    whole = inspect_file(models.int4)
    chosen = json.loads(spq("inspect", models.int4, "--json", "--tensor", "*.mlp.*", "--tensor", UP).stdout)
    assert [t["name"] for t in chosen["tensors"]] == [t.name for t in whole.tensors if ".mlp." in t.name]
    assert chosen["totals"] == json.loads(json.dumps(asdict(whole.totals)))
    stored = sum(t["stored_bytes"] for t in chosen["tensors"])
    assert sum(g["stored_bytes"] for g in chosen["groups"]["scheme"]) == stored
    text = spq("inspect", models.int4, "--tensor", "*.mlp.*").stdout
    assert "6 of 21 tensors" in text
    assert "part of the file" not in text


def test_one_tensor_is_shown_with_its_streams_histogram_and_map(spq: Run, tmp_path: Path) -> None:
    done = spq("inspect", VECTORS / "grouped_spqr.spq", "--measure")
    tensor = inspect_file(VECTORS / "grouped_spqr.spq").tensors[0]
    assert tensor.outliers > 0
    for stream in tensor.streams:
        assert stream.role in done.stdout
    assert "elements" in done.stdout
    assert "outliers: a cell is 1 rows (down) by 1 stored columns" in done.stdout


def test_names_from_a_file_cannot_move_the_cursor_nor_set_colours(spq: Run, tmp_path: Path) -> None:
    name = "w\x1b[2J\r\n[red]x[/red]"
    with Writer(tmp_path / "m.spq", 64, force=False) as writer:
        writer.begin_segment("all")
        for number in range(2):
            stream = Stream("values", "u8", 0)
            writer.add_tensor(TensorRecord(f"{name}{number}", (0,), "u8", "dense", streams=(stream,)), [[]])
        writer.seal({"method": "\x1b[31m"})
        writer.publish()
    done = spq("inspect", tmp_path / "m.spq")
    assert r"w\x1b[2J\r\n[red]x[/red]0" in done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_json_is_what_the_design_names_and_no_nan(spq: Run, models: Models) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    done = spq("inspect", models.int4, "--json", "--measure")
    report = json.loads(done.stdout, parse_constant=refuse)
    assert {"format_version", "file_bytes", "totals", "groups", "tensors"} <= set(report)
    keys = {
        "name", "shape", "dtype", "scheme", "method", "n_weights", "raw_bytes", "stored_bytes", "bits_per_weight",
        "entropy_bits_per_weight", "ratio", "outliers", "streams", "layer", "projection", "parts", "share",
        "outlier_share", "measured",
    }  # fmt: skip
    for tensor in report["tensors"]:
        assert keys <= set(tensor)
        assert (tensor["measured"] is None) == (tensor["scheme"] == "tied")
    assert sum(report["totals"]["parts"].values()) == report["file_bytes"]


def test_info_of_an_open_tensor_is_the_report_s(models: Models) -> None:
    with spqfmt.open(models.int4) as file:
        for tensor in inspect_file(models.int4).tensors:
            assert file[tensor.name].info == tensor
    with spqfmt.open(models.shards) as file:
        for tensor in inspect_file(models.shards).tensors:
            assert file[tensor.name].info == tensor


def test_a_trellis_is_named_beside_its_codes(spq: Run) -> None:
    vector = VECTORS.parent / "1.1" / "valid" / "trellis.spq"
    told = json.loads(spq("inspect", vector, "--json").stdout)
    with_path = [tensor["name"] for tensor in told["tensors"] if tensor["trellis_rows"] is not None]
    assert with_path
    lines = spq("inspect", vector).stdout.splitlines()
    assert len([line for line in lines if "uniform i8 trellis" in line]) == len(with_path)
