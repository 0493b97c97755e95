"""The tables of `spqfmt inspect`."""

from collections.abc import Sequence
from dataclasses import asdict, fields

from spqfmt.cli.charts import bar, spark
from spqfmt.cli.table import Column, Table
from spqfmt.cli.units import change, count, percent, printable, ratio, relative_error, size
from spqfmt.reading.report import CostParts, FileReport, GroupReport, SourceReport, TensorReport, add_up
from spqfmt.reading.report.experts import experts_in

_BAR = 10


def tensor_table(tensors: Sequence[TensorReport], n_tensors: int) -> Table:
    """A row for each tensor, and one for all where they are not all of the file's `n_tensors`."""
    columns = [
        Column("tensor"),
        Column("shape", spare=3),
        Column("scheme", left=True),
        *_COSTS,
        Column("error"),
        Column("codes", spare=4, left=True, style="cyan", terminal_only=True),
        Column("streams", spare=7, left=True, style="dim"),
    ]
    rows = [_tensor_row(tensor) for tensor in tensors]
    if 1 < len(tensors) < n_tensors:
        rows.append(
            [f"{len(tensors)} of {n_tensors} tensors", "", "", *_costs(add_up("", tensors)), "", "", ""]
        )
    return Table(columns, rows)


def _tensor_row(tensor: TensorReport) -> list[str]:
    measured = tensor.measured
    drawn = "" if measured is None or measured.histogram is None else spark(measured.histogram)
    return [
        printable(tensor.name),
        "x".join(map(str, tensor.shape)) or "scalar",
        scheme_of(tensor),
        *_costs(tensor),
        error_of(tensor),
        drawn,
        f"as {printable(tensor.tied_to)}"
        if tensor.tied_to is not None
        else " ".join(f"{stream.role}:{stream.codec}" for stream in tensor.streams),
    ]


def scheme_of(tensor: TensorReport) -> str:
    """Its scheme with what its codes are: grouped u4/64, uniform i8, uniform i8 trellis, dense bf16."""
    if tensor.code_dtype is None:
        return tensor.scheme if tensor.tied_to is not None else f"{tensor.scheme} {tensor.dtype}"
    group = "" if tensor.group_size is None else f"/{tensor.group_size}"
    path = "" if tensor.trellis_rows is None else " trellis"
    return f"{tensor.scheme} {tensor.code_dtype}{group}{path}"


def error_of(tensor: TensorReport) -> str:
    """Relative error, where it was measured."""
    error = None if tensor.measured is None else tensor.measured.error
    if error is None:
        return ""
    if error.relative is None:
        return "not finite" if error.rms is None else "of zeros"
    return relative_error(error.relative)


_COSTS = (
    Column("of raw", spare=5, left=True, style="cyan", terminal_only=True),
    Column("stored"),
    Column("share"),
    Column("bits/w"),
    Column("bound", spare=2),
    Column("over", spare=6),
    Column("ratio", spare=1),
    Column("outliers"),
)


def _costs(of: TensorReport | GroupReport) -> list[str]:
    if not of.n_weights:
        return ["", size(of.stored_bytes) if of.stored_bytes else "", *[""] * 6]
    bound = of.entropy_bits_per_weight
    return [
        bar(of.stored_bytes / of.raw_bytes, _BAR),
        size(of.stored_bytes),
        percent(of.share),
        f"{of.bits_per_weight:.3f}",
        "" if bound is None else f"{bound:.3f}",
        "" if not bound else change(of.bits_per_weight / bound - 1),
        "" if of.ratio is None else f"{of.ratio:.2f}",
        percent(of.outlier_share),
    ]


def group_table(groups: Sequence[GroupReport], title: str) -> Table:
    """A row for each group, with its bytes by part."""
    kinds = [part.name for part in fields(CostParts) if any(getattr(g.parts, part.name) for g in groups)]
    columns = [
        Column(title),
        Column("tensors", spare=4),
        Column("weights", spare=3),
        *_COSTS,
        *(Column(f"{kind} B", spare=7) for kind in kinds),
    ]
    rows = [
        [
            printable(g.name),
            str(g.n_tensors),
            count(g.n_weights),
            *_costs(g),
            *(f"{getattr(g.parts, kind):,}" for kind in kinds),
        ]
        for g in groups
    ]
    return Table(columns, rows)


def stream_table(tensor: TensorReport) -> Table:
    """A row for each stream of one tensor."""
    titles = ("part", "dtype", "codec", "chunks", "raw", "stored", "of it tables", "bits/w", "bound")
    columns = [Column("stream"), *(Column(t, left=i < 3) for i, t in enumerate(titles))]
    n = tensor.n_weights
    rows = [
        [
            s.role,
            s.part,
            s.dtype,
            s.codec,
            str(s.n_chunks),
            size(s.raw_bytes),
            size(s.stored_bytes),
            size(s.table_bytes),
            f"{8 * s.stored_bytes / n:.4f}" if n else "",
            f"{s.entropy_bits / n:.4f}" if n and s.entropy_bits is not None else "",
        ]
        for s in tensor.streams
    ]
    return Table(columns, rows)


def parts_table(report: FileReport) -> Table:
    """What the bytes of the whole file are for; the rows add up to it."""
    columns = [
        Column("part of the file"),
        Column("bytes"),
        Column("share"),
        Column("", left=True, style="cyan", terminal_only=True),
    ]
    parts = {key: n for key, n in asdict(report.totals.parts).items() if n}
    rows = [
        [key, f"{n:,}", percent(n / report.file_bytes), bar(n / report.file_bytes, 24).rstrip("·")]
        for key, n in sorted(parts.items(), key=lambda item: -item[1])
    ]
    return Table(columns, [*rows, ["all", f"{report.file_bytes:,}", percent(1), ""]])


def summary(report: FileReport, name: str) -> str:
    """The file in two lines, and its content digest."""
    t = report.totals
    files = f" in {report.n_files} files" if report.n_files > 1 else ""
    bound = t.entropy_bits_per_weight
    # Of codes the source has fewer bytes than the values take that they stand for.
    source = report.source
    before = source.file_bytes if source is not None and source.forms else t.raw_bytes
    return (
        f"{printable(name)}: {size(report.file_bytes)}{files} from {size(before)}, "
        f"{ratio(report.file_bytes, before, t.bf16_bytes)}; "
        f"{t.bits_per_weight:.3f} bits a weight"
        + ("" if bound is None else f" (bound of the tensors {bound:.3f})")
        + f"\n{count(t.n_weights)} weights in {t.n_tensors} tensors"
        + (f", {percent(t.outlier_share)} outliers" if t.outliers else "")
        + f"; method {printable(report.metadata.get('method', '?'))}, {_partial(report)}format {report.format_version}"
        + _experts(report)
        + ("" if report.source is None else f"\n{_source(report, report.source)}")
        + ("" if report.content is None else f"\ncontent {report.content}")
    )


def _experts(report: FileReport) -> str:
    """What of the file is experts; nothing where it has none, or not all of its tensors are there."""
    found = experts_in(report.tensors) if len(report.tensors) == report.totals.n_tensors else None
    if found is None:
        return ""
    layers = f"in each of {found.n_modules} layers" if found.n_modules > 1 else "in one layer"
    return (
        f"\nexperts: {found.n_experts} {layers}, {count(found.n_weights)} weights in {size(found.stored_bytes)} "
        f"({percent(found.stored_bytes / report.file_bytes)} of the file)"
    )


def _source(report: FileReport, source: SourceReport) -> str:
    """What the source's files take, and what this one takes of it."""
    files = "file" if source.n_files == 1 else f"{source.n_files} files"
    forms = [
        f"{n} {'tensor' if n == 1 else 'tensors'} in {form} {percent(here / max(1, there))}"
        for form, (n, there, here) in source.forms.items()
    ]
    of_it = percent(report.file_bytes / max(1, source.file_bytes))
    return f"source {files} of {size(source.file_bytes)}, this is {of_it} of it" + (
        f": {', '.join(forms)}" if forms else ""
    )


def _partial(report: FileReport) -> str:
    """How the chunks to compress were chosen; nothing where all are."""
    plan = report.partial_plan
    if plan is None:
        return ""
    if plan["rule"] == "every":
        return f"partial every:{plan['n']}, "
    return f"partial speed (tensors of {size(int(str(plan['target_bytes'])))}), "
