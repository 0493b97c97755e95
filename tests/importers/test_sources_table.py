"""docs/sources.md has a row for each kind of codes that is kept, and the tool that makes it can make each."""

from pathlib import Path

import quantized
import sources_table

from spqfmt.importers.quantizers.registry import families
from spqfmt.kernels.ggml_types import BLOCK_TYPES

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"


def shown() -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [cells for cells in lines if len(cells) == 7 and cells[0] != "format"]


def test_each_family_and_each_type_of_blocks_has_a_row() -> None:
    of_arrays = {type(family).__module__.rpartition(".")[2] for family in families()}
    assert {row.family for row in sources_table.ROWS} == of_arrays | {sources_table.GGUF}
    assert {row.kind for row in sources_table.ROWS if row.family == sources_table.GGUF} == set(BLOCK_TYPES)
    assert len({row.title for row in sources_table.ROWS}) == len(sources_table.ROWS)
    layouts = {row.layout for row in sources_table.ROWS if row.family != sources_table.GGUF}
    assert layouts <= set(quantized.LAYOUTS)


def test_the_page_has_what_was_measured_of_every_row() -> None:
    found = shown()
    assert [(cells[0], cells[1]) for cells in found] == [(row.format, row.kind) for row in sources_table.ROWS]
    for cells in found:
        assert cells[3:6] == ["yes", "yes", "yes"], cells
        assert 0.3 < float(cells[6]) < 1, cells


def test_the_tool_measures_what_is_there(tmp_path: Path) -> None:
    """On a small model: codes that are kept, run, come back and take what `inspect` says."""
    import tiny
    import torch

    tiny.build("llama", tmp_path / "floats", dtype=torch.float16)
    row = next(row for row in sources_table.ROWS if row.title == "compressed-tensors int8, rows")
    quantized.write(tmp_path / "floats", tmp_path / "source", row.layout)
    result = sources_table.measured(row, tmp_path / "source", tmp_path)
    assert (result.exact, result.runs, result.returns) == (True, True, True)
    assert 0.5 < result.ratio < 1.05
    assert result.form == "int8, a scale for each row"
    [line] = [
        line for line in sources_table.table({row.title: result}) if f"| {row.format} | {row.kind} |" in line
    ]
    assert line.endswith(f"| yes | yes | yes | {result.ratio:.3f} |")
