"""Tables and charts for a terminal, and for a pipe."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from spqfmt.cli.charts import bar, columns, shades, spark
from spqfmt.cli.table import Column, Table, shorten
from spqfmt.cli.units import change, count, matcher, percent, printable, ratio, relative_error, size
from spqfmt.reading.report import Histogram, OutlierMap

COLUMNS = (
    Column("tensor"),
    Column("bits"),
    Column("drawn", left=True, terminal_only=True),
    Column("far", spare=1),
)
NAME = "model.layers.0.self_attn.some_long_projection.weight"


def shown(width: int | None, rows: list[list[str]]) -> list[str]:
    """Lines of the table in a terminal of this width, or in a pipe; never colours, which tell nothing alone."""
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=width is not None, no_color=True, color_system=None
    )
    console.print(Table(COLUMNS, rows), crop=False)
    return out.getvalue().splitlines()


def test_a_pipe_gets_whole_names_and_no_drawings() -> None:
    assert shown(None, [[NAME * 9, "3.5", "███", "yes"]]) == [
        f"{'tensor':{9 * len(NAME)}}  bits  far",
        f"{NAME * 9}   3.5  yes",
    ]


@pytest.mark.parametrize("width", [40, 45, 60, 90])
def test_a_line_is_never_wider_than_the_terminal(width: int) -> None:
    rows = [[NAME, "3.5", "███", "yes"], ["模型" * 20, "12.25", "█", ""], ["w", "", "", ""]]
    lines = shown(width, rows)
    assert len(lines) == 4
    assert all(cell_len(line) <= width for line in lines)
    assert ("far" in lines[0]) == (width > 45)
    assert NAME[-9:] in lines[1]


def test_a_column_without_content_is_left_out() -> None:
    assert shown(None, [["w", "", "", "x"]]) == ["tensor  far", "w         x"]


def test_no_rows_leave_the_name_of_the_first_column() -> None:
    assert shown(None, []) == ["tensor"]


@pytest.mark.parametrize("width", range(1, 20))
def test_a_shortened_name_keeps_its_end(width: int) -> None:
    short = shorten("model.layers.0.up", width)
    assert cell_len(short) == min(width, 17)
    assert short[-1] == "p" or width < 2


def test_sizes_counts_and_shares() -> None:
    assert [size(n) for n in (0, 999, 1000, 120_790_727, 3.2e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "120.8 MB",
        "3.20 TB",
    ]
    assert [count(n) for n in (0, 999, 1000, 134_515_008, 7e12)] == ["0", "999", "1.0 k", "134.5 M", "7.00 T"]
    assert [percent(x) for x in (0, 0.5, 0.012, 0.0034, 1e-6)] == [
        "",
        "50.0 %",
        "1.2 %",
        "0.34 %",
        "< 0.01 %",
    ]


def test_changes_and_errors_in_percent() -> None:
    assert [change(x) for x in (0.0083, -0.25, 0)] == ["+0.83 %", "-25.00 %", "+0.00 %"]
    assert [relative_error(x) for x in (0.12345, 1e-5, 0)] == ["12.345 %", "0.001 %", "0"]


def test_a_ratio_says_what_it_is_to() -> None:
    assert ratio(100, 200, 200) == "ratio 2.00 to BF16"
    # Norms in FP32 beside weights in BF16 make no difference that is shown.
    assert ratio(1000, 2001, 2000) == "ratio 2.00 to BF16"
    assert ratio(100, 400, 200) == "ratio 4.00 to the source, 2.00 to BF16"


def test_control_characters_are_spelled_out() -> None:
    assert printable("a\x1b[2J\nb\u202e") == r"a\x1b[2J\nb\u202e"
    assert printable("шар 模型") == "шар 模型"


def test_patterns_match_as_file_names_do_or_as_they_stand() -> None:
    matches = matcher(["*.mlp.*", "w[0]"])
    assert [matches(n) for n in ("a.mlp.b", "w[0]", "w0", "w1", "mlp")] == [True, True, True, False, False]


def test_a_bar_fills_with_its_share() -> None:
    assert [bar(x, 4) for x in (0, 0.5, 0.53125, 1, 7, -1)] == [
        "····",
        "██··",
        "██▏·",
        "████",
        "████",
        "····",
    ]


def test_a_histogram_in_a_line_and_in_lines() -> None:
    histogram = Histogram("code", -2, (1, 0, 8, 7), 0)
    assert spark(histogram) == "▁ █▇"
    assert spark(Histogram("code", 0, tuple(range(64)), 0), 16)[-1] == "█"
    assert [line.split()[0] for line in columns(histogram, 4)] == ["-2", "-1", "0", "1"]
    assert [line.split()[-2] for line in columns(histogram, 4)] == ["6.25", "0.00", "50.00", "43.75"]
    halves = list(columns(histogram, 2))
    assert [line.split()[:3] for line in halves] == [["-2", "to", "-1"], ["0", "to", "1"]]


def test_a_map_is_darkest_where_most_outliers_are() -> None:
    assert list(shades(OutlierMap(2, 3, 1, 1, ((0, 1, 100), (30, 0, 0))))) == [" ░█", "▓  "]
