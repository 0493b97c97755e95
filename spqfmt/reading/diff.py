"""Two files of one model: what each tensor costs in them, and whether both restore the same.

Two files are equal when they hold the same tensors (name, shape, dtype, treatment of the layer's input), restored to
the same bits, and the same assets. How they are stored (scheme, codec, order, tying, shards) makes no difference.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass

from spqfmt.container.content import content_head
from spqfmt.container.fetch import StreamFetch
from spqfmt.container.located import located
from spqfmt.container.model import Held, OpenModel, open_model
from spqfmt.container.reader import Reader
from spqfmt.errors import OptionError
from spqfmt.progress import Progress, Silent
from spqfmt.reading.distance import distance, same_elements
from spqfmt.reading.report import Distance, FileReport, TensorReport, inspect_file
from spqfmt.reading.rows import holder
from spqfmt.reading.side_by_side import both
from spqfmt.records import Stream, TensorRecord
from spqfmt.schemes.uniform import read_scale

EQUAL, WEIGHTS, SHAPE, DTYPE, INPUT = "equal", "weights", "shape", "dtype", "input"
_AT_ONCE = 1 << 20
"""Elements of streams that are compared together."""
ONLY_FIRST, ONLY_SECOND = "only in the first", "only in the second"


@dataclass(frozen=True)
class TensorDiff:
    """One tensor in both files. `difference` is equal, weights, shape, dtype, input, or which file alone has it.

    `error` is of the second against the first; None where it was not asked for or cannot be.
    """

    name: str
    difference: str
    first: TensorReport | None
    second: TensorReport | None
    error: Distance | None

    def to_json(self) -> dict[str, object]:
        """Return the difference as plain data, for `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class DiffReport:
    """`assets` are the names of those that differ, with which file alone has them, or contents."""

    first: FileReport
    second: FileReport
    tensors: tuple[TensorDiff, ...]
    assets: dict[str, str]

    @property
    def equal(self) -> bool:
        """Whether the two files restore the same model."""
        return not self.assets and all(t.difference == EQUAL for t in self.tensors)

    def to_json(self) -> dict[str, object]:
        """Return plain data: of the files their sizes and totals, of tensors what differs."""
        return self.without_tensors() | {"tensors": [t.to_json() for t in self.tensors]}

    def without_tensors(self) -> dict[str, object]:
        """The same without what differs tensor by tensor."""
        files = {
            key: {"file_bytes": file.file_bytes, "metadata": file.metadata, "totals": asdict(file.totals)}
            for key, file in (("first", self.first), ("second", self.second))
        }
        return {"equal": self.equal, **files, "assets": self.assets}


def diff_files(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    matches: Callable[[str], bool] | None = None,
    error: bool = False,
    progress: Progress | None = None,
) -> DiffReport:
    """Compare two .spq files (or indexes of shards); only tensors whose name `matches`, if given, and then no assets.

    Decodes what is not stored alike, each tensor up to its first difference; with `error`, all of it. Content digests
    that are equal only tell that comparing streams will do. Raises FormatError.
    """
    reports = inspect_file(first), inspect_file(second)
    with open_model(first) as a, open_model(second) as b, progress or Silent() as shown:
        by_name = [{t.name: t for t in report.tensors} for report in reports]
        chosen = [n for n in dict.fromkeys((*a.tensors, *b.tensors)) if matches is None or matches(n)]
        if matches is not None and not chosen:
            raise OptionError("no tensor of either file has such a name")
        shown.start(sum(by_name[0][n].raw_bytes for n in chosen if n in a.tensors))
        tensors = []
        for name in chosen:
            pair = by_name[0].get(name), by_name[1].get(name)
            tensors.append(_tensor(name, pair, _held(a, name), b=_held(b, name), error=error))
            shown.advance(pair[0].raw_bytes if pair[0] else 0, name)
        assets = _asset_differences(a, b) if matches is None else {}
    return DiffReport(*reports, tuple(tensors), assets)


def _held(model: OpenModel, name: str) -> Held | None:
    return model.held(name) if name in model.tensors else None


def _tensor(
    name: str,
    reports: tuple[TensorReport | None, TensorReport | None],
    a: Held | None,
    b: Held | None,
    error: bool,
) -> TensorDiff:
    if a is None or b is None:
        return TensorDiff(name, ONLY_SECOND if a is None else ONLY_FIRST, *reports, None)
    if a[1].shape != b[1].shape:
        return TensorDiff(name, SHAPE, *reports, None)
    far = None
    if a[1].dtype != b[1].dtype:
        difference = DTYPE
    elif _treatment(*a) != _treatment(*b):
        difference = INPUT
    elif stored_alike(a, b) or _same_as_claimed(a, b) or _same(a, b):
        difference = EQUAL
        far = Distance(0.0, 0.0, 0.0)
    else:
        difference = WEIGHTS
    if error and far is None and not _any_named(a, b):
        far = distance(both(b, a), b[1].dtype, a[1].dtype)
    return TensorDiff(name, difference, *reports, far if error else None)


def _treatment(reader: Reader, record: TensorRecord) -> tuple[object, ...]:
    """What is done with the input of the tensor's layer; quantized inputs are multiplied by the column scales."""
    scales = None
    if record.activation_quantization is not None and "column_scales" in record.by_role:
        with located(reader.path):
            values = read_scale(record, StreamFetch(reader, record), "column_scales", first=0, stop=None)
        scales = None if values is None else values.tobytes()
    return record.activation_clamp, record.activation_quantization, scales


def _same_as_claimed(a: Held, b: Held) -> bool:
    """Whether both files say by a digest that the tensors hold the same, and their streams do.

    A digest alone could be anyone's. What it is made of, the same elements with the same meaning, is compared faster
    than what is restored of it.
    """
    records = holder(*a), holder(*b)
    if records[0].content is None or records[0].content != records[1].content:
        return False
    heads = [content_head(reader, record) for reader, record in zip((a[0], b[0]), records, strict=True)]
    return heads[0] == heads[1] and _same_elements_of_streams(*zip((a[0], b[0]), records, strict=True))


def stored_alike(a: Held, b: Held) -> bool:
    """Whether both tensors are the same stored bytes with the same meaning; FormatError where these are damaged."""
    records = [holder(reader, record) for reader, record in (a, b)]
    meaning = [(r.scheme, r.parameters, r.transposed, r.view, len(r.streams)) for r in records]
    if meaning[0] != meaning[1] or (records[0].is_named and not _same_parameters(a, b)):
        return False
    if not all(map(_alike, *(record.streams for record in records))):
        return False
    for ours, theirs in zip(*(record.streams for record in records), strict=True):
        streams = a[0].owner(ours), b[0].owner(theirs)
        if not _alike(*streams):
            return False
        for chunk, twin in zip(*(stream.chunks.held for stream in streams), strict=True):
            for mine, other in zip(chunk.planes, twin.planes, strict=True):
                stored = a[0].read_bytes(mine.offset, mine.stored_bytes)
                if stored != b[0].read_bytes(other.offset, other.stored_bytes):
                    return False
            with located(a[0].path, f"tensor {records[0].name!r}, {ours.role}", chunk):
                a[0].check_chunk(chunk, streams[0].dtype)
    a[0].check_elements(records[0])
    return True


def _alike(one: Stream, other: Stream) -> bool:
    """Whether all of two streams' records is the same but places in the file."""
    outlines = [(s.role, s.dtype, s.n) for s in (one, other)]
    return outlines[0] == outlines[1] and one.chunks.alike(other.chunks)


def _same(a: Held, b: Held) -> bool:
    return same_elements_of_streams(a, b) if _any_named(a, b) else same_weights(a, b)


def _any_named(a: Held, b: Held) -> bool:
    return any(holder(*held).is_named for held in (a, b))


def _same_parameters(a: Held, b: Held) -> bool:
    """Whether parameters are equal as they stand in the files: of an unknown scheme nobody knows which matter."""
    found = [
        reader.index.json_of(reader.index.by_name.numbers[holder(reader, r).name]) for reader, r in (a, b)
    ]
    return found[0]["parameters"] == found[1]["parameters"]


def same_elements_of_streams(a: Held, b: Held) -> bool:
    """Whether two tensors, one of them in a scheme that is not known, have the same scheme, parameters and streams."""
    records = holder(*a), holder(*b)
    outlines = [(r.scheme, [(s.role, s.dtype, s.n) for s in r.streams]) for r in records]
    if outlines[0] != outlines[1] or not _same_parameters(a, b):
        return False
    return _same_elements_of_streams((a[0], records[0]), (b[0], records[1]))


def _same_elements_of_streams(a: Held, b: Held) -> bool:
    """Whether all streams of two tensors, which are not tied and have the same outlines, have the same elements."""
    one, other = (StreamFetch(reader, record) for reader, record in (a, b))
    return all(
        same_elements(*(fetch(s.role, at, min(s.n, at + _AT_ONCE)) for fetch in (one, other)))
        for s in a[1].streams
        for at in range(0, s.n, _AT_ONCE)
    )


def same_weights(a: Held, b: Held) -> bool:
    """Whether both, of one shape and dtype, are restored to the same bits; stops at the first part that is not."""
    return all(same_elements(*parts) for parts in both(a, b))


def _asset_differences(first: OpenModel, second: OpenModel) -> dict[str, str]:
    ours, theirs = ({n: model.asset_holders[n] for n in model.asset_names} for model in (first, second))
    alone = {name: ONLY_FIRST for name in ours if name not in theirs}
    alone |= {name: ONLY_SECOND for name in theirs if name not in ours}
    both = (name for name in ours if name in theirs)
    return alone | {
        name: "contents"
        for name in both
        if _asset_digest(ours[name], name) != _asset_digest(theirs[name], name)
    }


def _asset_digest(reader: Reader, name: str) -> bytes:
    digest = hashlib.sha256()
    for piece in reader.asset_pieces(name):
        digest.update(piece)
    return digest.digest()
