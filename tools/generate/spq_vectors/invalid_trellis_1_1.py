"""The invalid vectors of trellises."""

from collections.abc import Callable

from spq_vectors import encode
from spq_vectors.build import FEATURES, Record, Stream, Tensor
from spq_vectors.invalid import bad
from spq_vectors.invalid_1_1 import small
from spq_vectors.invalid_schemes import FEATURE
from spq_vectors.valid_uniform import step

PARAMETER = '| `trellis` | optional `{"rows": T}`, T at least 1 |'
ALLOWED = "With `trellis` the orientation MUST be `rows`, and the stream `codes` is of i8"
RANGE = "A path code MUST be from -64 to 63."


def tensor(
    parameter: object, dtype: str = "i8", paths: tuple[int, ...] = (1, -1, 0) * 8, **parameters: object
) -> Tensor:
    """Return a uniform tensor [4, 6] of path codes."""
    merged: Record = {"orientation": "rows", "step": step(0.5), "trellis": parameter, **parameters}
    return Tensor("weight", [4, 6], "f32", [Stream("codes", dtype, paths)], "uniform", merged)


def trellis() -> None:
    """Break what 5.3 says of trellises, and leave out their bit."""
    right = tensor({"rows": 2})
    bad("feature_trellis", "corrupt", FEATURE, small(right, required=1 << FEATURES["uniform"]))
    cases: dict[str, object] = {
        "0": {"rows": 0}, "negative": {"rows": -1}, "boolean": {"rows": True}, "missing": {"row": 2}, "integer": 2,
        "list": [2], "string": {"rows": "2"}, "null": None,
    }  # fmt: skip
    for name, parameter in cases.items():
        bad(f"trellis_{name}", "corrupt", PARAMETER, small(tensor(parameter)))
    bad("trellis_by_columns", "corrupt", ALLOWED, small(tensor({"rows": 2}, orientation="columns")))
    for dtype in ("i2", "i4"):
        bad(f"trellis_{dtype}", "corrupt", ALLOWED, small(tensor({"rows": 2}, dtype)))
    for name, place, value in (
        ("64", 0, 64),
        ("minus_65", 23, -65),
        ("127", 11, 127),
        ("minus_128", 6, -128),
    ):
        paths = [1, -1, 0] * 8
        paths[place] = value
        bad(f"trellis_path_{name}", "corrupt", RANGE, small(tensor({"rows": 2}, paths=tuple(paths))))
    same = tensor({"rows": 2}, paths=(64,) * 24)
    same.streams[0].encoders = [encode.constant]
    bad("trellis_path_constant", "corrupt", RANGE, small(same))


PARTS: tuple[Callable[[], None], ...] = (trellis,)
