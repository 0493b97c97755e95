"""The rows of the table of methods (tools/paper/evaluate_methods.py), in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Options = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Row:
    """A method and its options, as on the command line without the dashes; an option without a value has "".

    `settings` is what the tables show. `series` names the line that joins points in the plot of frontier.py: rows that
    differ in nothing but how many bits they are given; without one a row is a point of its own. `samples` and
    `seq_len` are the row's own where it does not calibrate with the tool's. `calibrated`: whether it does at all.
    """

    method: str
    settings: str
    options: Options = field(default_factory=dict)
    series: str = ""
    calibrated: bool = True
    samples: int | None = None
    seq_len: int | None = None

    @property
    def title(self) -> str:
        """What --rows is matched with; no two rows share it."""
        return f"{self.method} {self.settings}".strip()


def _rtn(bits: int, size: int) -> Row:
    settings = f"{bits} bits, groups of {size}"
    return Row(
        method="rtn",
        settings=settings,
        options={"bits": bits, "group-size": size},
        series=f"rtn, groups of {size}",
        calibrated=False,
    )


def _gptq(bits: int, size: int) -> Row:
    settings = f"{bits} bits, groups of {size}"
    return Row("gptq", settings, {"bits": bits, "group-size": size}, f"gptq, groups of {size}")


def _gptaq(bits: int, size: int) -> Row:
    """gptq with weights corrected for what was lost before (tools/paper/peers/gptaq.py)."""
    settings = f"{bits} bits, groups of {size}"
    return Row("gptaq", settings, {"bits": bits, "group-size": size}, f"gptaq, groups of {size}")


def _after(pruning: str, pattern: str = "") -> Row:
    """A row of SmoothQuant after pruning."""
    options: Options = {"pruning": pruning, **({"pattern": pattern} if pattern else {"sparsity": 0.5})}
    return Row("smoothquant", f"after {pruning}, {pattern or '50 %'}", options)


def _effort(bits: float, effort: str, *grades: str, trellis: bool) -> Row:
    """An effort as it is; with `grades`, options of ecq, those on 128 samples."""
    samples = 32 if effort == "normal" and not grades else 128
    said = [
        f"{bits} bits",
        f"effort {effort}",
        *(f"{samples} samples, {grade.replace('-', ' ')}" for grade in grades),
    ]
    options: dict[str, str | int | float] = {"bits": bits, "effort": effort}
    options |= {g.removeprefix("no-"): False if g.startswith("no-") else "" for g in grades}
    if trellis:
        options = {**options, "trellis": ""}
    return Row(
        method="ecq",
        settings=", ".join([*said, "trellis"] if trellis else said),
        options=options,
        series="" if grades else ", ".join(["ecq", *said[1:], *(["trellis"] if trellis else [])]),
        samples=samples,
    )


def _ecq(bits: float, *grades: str) -> Row:
    """`grades` are options of ecq, as on the command line without the dashes. Codes are chosen once."""
    effort = {} if "no-calibration" in grades else {"effort": "fast"}
    options: Options = {"bits": bits, **effort, **dict.fromkeys(grades, "")}
    names = [grade.replace("-", " ") for grade in grades]
    return Row(
        method="ecq",
        settings=", ".join([f"{bits:g} bits", *names]),
        options=options,
        series=", ".join(["ecq", *names]),
        calibrated="no-calibration" not in grades,
    )


def _gguf(name: str, way: str = "") -> Row:
    """A type of ggml; `way` is importance, fallback or none (tools/paper/gguf_rows.py)."""
    options: Options = {"type": name, **({way: ""} if way else {})}
    settings = f"{name}, {way}" if way else name
    return Row(
        method="gguf",
        settings=settings,
        options=options,
        series=f"gguf, {way}" if way else "gguf",
        calibrated=way == "importance",
    )


ROWS: tuple[Row, ...] = (
    Row("lossless", "", calibrated=False),
    *(_rtn(bits, 16) for bits in (3, 4)),
    *(_rtn(bits, 64) for bits in (2, 3, 4, 5, 6)),
    *(
        Row(
            method="rtn",
            settings=f"{bits} bits per row",
            options={"bits": bits},
            series="rtn, rows",
            calibrated=False,
        )
        for bits in (4, 6, 8)
    ),
    *(Row("gptq", f"{bits} bits per row", {"bits": bits}, "gptq, rows") for bits in (3, 4)),
    *(_gptq(bits, 16) for bits in (3, 4)),
    *(_gptq(bits, 64) for bits in (2, 3, 4, 5)),
    *(_gptq(bits, 128) for bits in (3, 4)),
    *(Row("spqr", f"{bits} bits, threshold 0.2", {"bits": bits}, "spqr") for bits in (2, 3, 4, 5)),
    *(
        Row("spqr", f"{bits} bits, threshold 0.2, 128 samples", {"bits": bits}, samples=128)
        for bits in (3, 4)
    ),
    *(Row("spqr", f"{bits} bits, no outliers", {"bits": bits, "threshold": "inf"}) for bits in (3, 4)),
    Row("dc", "alpha 0.8"),
    Row("dc", "alpha 0.8, 20 % pruned", {"sparsity": 0.2}),
    Row("dc", "alpha 0.8, weights only", {"activations": "float"}),
    Row("dc", "alpha 0.8, 20 % pruned, weights only", {"sparsity": 0.2, "activations": "float"}),
    Row("dc", "alpha 0.5", {"alpha": 0.5}),
    Row("smoothquant", "alpha 0.5"),
    Row("smoothquant", "per tensor", {"granularity": "tensor"}),
    Row("llm_int8", "8 bits per row, outlier columns kept"),
    Row("zeroquant", "8 bits, groups of 128"),
    *(_after(criterion) for criterion in ("magnitude", "wanda", "sparsegpt", "sar")),
    _after("wanda", "2:4"),
    Row("jsq", "50 %, no editing", {"search-steps": 0}),
    Row("jsq", "2:4, no editing", {"pattern": "2:4", "search-steps": 0}),
    Row("jsq", "50 %, lambda 1, no editing", {"range-weight": 1, "search-steps": 0}),
    Row("jsq", "50 %"),
    *(_ecq(bits) for bits in (2.5, 3, 3.5, 4, 5, 6, 8)),
    *(_ecq(bits, "gradients") for bits in (2.5, 3, 3.5, 4)),
    *(_ecq(bits, "no-calibration") for bits in (3, 4)),
    *(_ecq(bits, "sequential") for bits in (3, 4)),
    *(_ecq(bits, "gradients", "sequential") for bits in (3, 4)),
    *(
        Row("ecq", f"{bits} bits, 128 samples", {"bits": bits, "effort": "fast"}, samples=128)
        for bits in (3, 4)
    ),
    Row("ecq", "4 bits, gradients, 128 samples", {"bits": 4, "effort": "fast", "gradients": ""}, samples=128),
    *(_effort(bits, "normal", trellis=trellis) for trellis in (False, True) for bits in (2.5, 3, 4)),
    *(_effort(bits, "best", trellis=trellis) for trellis in (False, True) for bits in (2.5, 3, 4)),
    # What more samples bring, and what corrections do.
    *(_effort(3, "normal", "sequential", trellis=trellis) for trellis in (False, True)),
    *(
        _effort(bits, "normal", "no-sequential", trellis=trellis)
        for trellis in (False, True)
        for bits in (3, 4)
    ),
    *(_gptaq(bits, 64) for bits in (3, 4)),
    *(
        Row("trellis", f"{bits} bits, fixed rate", {"bits": bits}, "trellis, fixed rate")
        for bits in (2, 3, 4)
    ),
    *(_gguf(name) for name in ("Q3_K", "Q4_K", "Q5_K", "Q6_K")),
    *(_gguf(name, "importance") for name in ("Q3_K", "IQ3_S", "IQ4_XS", "Q4_K")),
    *(_gguf(name, "fallback") for name in ("Q3_K", "Q4_K")),
)
