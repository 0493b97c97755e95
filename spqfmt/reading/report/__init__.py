"""What every tensor costs, tensor by tensor and in groups: the contents of `spqfmt inspect`."""

from spqfmt.reading.report.build import inspect_file, report_tensor
from spqfmt.reading.report.file import FileReport
from spqfmt.reading.report.groups import GROUPINGS, Grouping, add_up, each_group, group
from spqfmt.reading.report.records import (
    CostParts,
    Distance,
    FileTotals,
    GroupReport,
    Histogram,
    Measured,
    OutlierMap,
    SourceReport,
    StreamReport,
    TensorReport,
)

__all__ = [
    "GROUPINGS",
    "CostParts",
    "Distance",
    "FileReport",
    "FileTotals",
    "GroupReport",
    "Grouping",
    "Histogram",
    "Measured",
    "OutlierMap",
    "SourceReport",
    "StreamReport",
    "TensorReport",
    "add_up",
    "each_group",
    "group",
    "inspect_file",
    "report_tensor",
]
