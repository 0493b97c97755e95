"""What every tensor costs, tensor by tensor and in groups: the contents of `spqfmt inspect`."""

from spqfmt.pipeline.report.build import inspect_file, report_tensor
from spqfmt.pipeline.report.groups import GROUPINGS, Grouping, add_up, group
from spqfmt.pipeline.report.records import (
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
