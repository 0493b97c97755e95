"""The report of a whole file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from spqfmt.reading.report.groups import GROUPINGS, Grouping, group
from spqfmt.reading.report.records import FileTotals, GroupReport, SourceReport, TensorReport


@dataclass(frozen=True)
class FileReport:
    """All that `inspect --json` says.

    `content` is the digest of what the tensors hold (3.5), None where the file does not say it.
    `partial_plan` is how the chunks to compress were chosen (FORMAT.md 3.4), None where all are compressed.
    """

    format_version: str
    file_bytes: int
    n_files: int
    content: str | None
    metadata: dict[str, str]
    partial_plan: Mapping[str, object] | None
    assets: dict[str, int]
    totals: FileTotals
    tensors: tuple[TensorReport, ...]
    source: SourceReport | None = None
    """The files that it was packed from, None where they cannot be written again."""

    @property
    def groups(self) -> dict[Grouping, tuple[GroupReport, ...]]:
        """The tensors by layer, by projection and by scheme, in the file's order; added up each time."""
        return {by: group(self.tensors, by) for by in GROUPINGS}

    def to_json(self) -> dict[str, object]:
        """Return the report as plain data, for `--json`."""
        groups = {by: [asdict(of) for of in groups] for by, groups in self.groups.items()}
        plain = asdict(self)
        return {**plain, "groups": groups, "tensors": plain.pop("tensors")}
