"""What every tensor costs, tensor by tensor and in groups: the contents of `spqfmt inspect`."""

from spqfmt.reading.report.build import inspect_file, report_tensor
from spqfmt.reading.report.groups import GROUPINGS, Grouping, add_up, group
from spqfmt.reading.report.records import (
    Distance,
    FileReport,
    GroupReport,
    Histogram,
    Measured,
    OutlierMap,
    Parts,
    StreamReport,
    TensorReport,
    Totals,
)

__all__ = [
    "GROUPINGS",
    "Distance",
    "FileReport",
    "GroupReport",
    "Grouping",
    "Histogram",
    "Measured",
    "OutlierMap",
    "Parts",
    "StreamReport",
    "TensorReport",
    "Totals",
    "add_up",
    "group",
    "inspect_file",
    "report_tensor",
]
