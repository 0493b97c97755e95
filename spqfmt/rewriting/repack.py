"""A .spq file with other chunks compressed, or by another codec: nothing is quantized again.

What comes out is, byte for byte, what packing with the same rule and codec gives.
"""

import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from spqfmt.codecs.registry import CHOICES, unknown_codec
from spqfmt.codecs.threads import blocks
from spqfmt.container.model import OpenModel, open_model
from spqfmt.container.output import Output, check_name
from spqfmt.container.reader import Reader
from spqfmt.container.strict_json import Json
from spqfmt.errors import OptionError
from spqfmt.progress import Progress, Silent
from spqfmt.records import TensorRecord
from spqfmt.rewriting.laid import Laid
from spqfmt.rewriting.partial import Speed, parse_partial
from spqfmt.rewriting.rewrite import Rewrite
from spqfmt.sizes import check_ranks, parse_block, parse_chunk_alignment, parse_shard_size, segment_alignment
from spqfmt.stand_ins import given_path
from spqfmt.wire import CHUNK_ALIGNMENT


@dataclass(frozen=True)
class RepackReport:
    """What a repack made. Chunks are those of weights; a copied one has the stored bytes that it had."""

    files: tuple[Path, ...]
    source_bytes: int
    file_bytes: int
    n_chunks: int
    n_compressed: int
    n_copied: int
    partial_plan: Json | None
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return the report as plain data, for `--json`."""
        return asdict(self) | {"files": [str(file) for file in self.files]}


def repack(
    path: str | Path,
    out: str | Path,
    *,
    partial: str = "none",
    codec: str | None = None,
    rates: str | Path | None = None,
    shard_size: int | str | None = None,
    chunk_alignment: int | str | None = None,
    ranks: int | None = None,
    block: int | str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> RepackReport:
    """Write `path`, an .spq file or the .spq.index.json of a model in shards, to `out` with another plan.

    `partial` is the rule as in `spqfmt repack --help`; none compresses all chunks. `codec` None leaves compressed
    chunks to the codec that they have. `rates` is a file of decode rates for the rule speed; by default they are
    measured. Shards stay cut where they are unless `shard_size` is given, and chunks begin at such multiples as before
    unless `chunk_alignment` is. With `ranks` layers are stored so that each of so many processes reads its part alone;
    1 stores them as without. `block` writes all rans chunks anew, in blocks of that size, such as "16KiB", or "gpu" for
    what suits devices. `out` may be `path` with `force`.

    Raises FormatError for the file, OptionError for options that make no sense, EncodeError for a size that cannot be
    reached, FileExistsError when `out` exists and `force` is not set, OSError. `out` is not touched then.
    """
    started = time.monotonic()
    path, out = given_path(path), given_path(out)
    check_name(out)
    rule = parse_partial(partial, rates)
    if codec is not None and codec not in CHOICES:
        raise OptionError(unknown_codec(codec))
    block_log2 = parse_block(block)
    shard_bytes = parse_shard_size(shard_size)
    n_ranks = check_ranks(ranks)
    if n_ranks is not None and isinstance(rule, Speed):
        raise OptionError("--ranks goes with no --partial speed: repack twice, with --ranks first")
    with ExitStack() as stack:
        model = stack.enter_context(open_model(path))
        model.refuse_lone_shard()
        readers = model.readers
        if shard_bytes:
            _check_cut(path, readers)
        indexes = [reader.index for reader in readers]
        had = max(i.chunk_alignment or CHUNK_ALIGNMENT for i in indexes)
        of_chunks = parse_chunk_alignment(chunk_alignment) or had
        of_segments = indexes[0].segment_alignment
        if of_chunks < had:
            # Segments were aligned for the chunks' sake, or would have been in any case.
            tensors = (t for i in indexes for t in i.tensors if t.tied_to is None)
            of_segments = segment_alignment(sum(map(_packed_bytes, tensors)))
        alignment = max(of_chunks, of_segments)
        starts = () if shard_bytes else _shard_starts(readers)
        output = Output(
            out,
            alignment,
            force=force,
            chunk_alignment=of_chunks,
            shard_bytes=shard_bytes,
            shard_starts=starts,
        )
        shown = stack.enter_context(progress or Silent())
        shown.start(
            sum(stream.stored_bytes for r in readers for t in r.index.tensors for stream in t.streams)
        )
        shown.stage("choosing chunks")
        stack.enter_context(blocks(block_log2))
        work = Rewrite(readers, rule, codec, _laid_for(model, n_ranks), block_log2=block_log2)
        sealed = work.write(stack.enter_context(output), shown)
        source_bytes = sum(reader.file_bytes for reader in readers)
    return RepackReport(
        files=tuple(file.path for file in sealed),
        source_bytes=source_bytes,
        file_bytes=sum(file.file_bytes for file in sealed),
        n_chunks=work.n_chunks,
        n_compressed=work.n_compressed,
        n_copied=work.n_copied,
        partial_plan=work.partial_plan,
        seconds=time.monotonic() - started,
    )


def _packed_bytes(tensor: TensorRecord) -> int:
    """About what a pack has counted of a tensor: its codes where the source has codes, else its own dtype."""
    if not tensor.origin:
        return tensor.source_bytes
    return sum(stream.raw_bytes for stream in tensor.streams)


def _laid_for(model: OpenModel, n_ranks: int | None) -> Laid | None:
    if n_ranks is None:
        return None
    if n_ranks == 1:
        return Laid(None, 1)
    # transformers takes seconds to import.
    from spqfmt.models.rank_plan import cut_tensors

    shapes = [record.shape for record in model.tensors.values()]
    assets = {name: model.read_asset(name) for name in model.asset_names if name == "config.json"}
    cut = cut_tensors(assets, model.tensors, shapes, str(model.path))
    if not cut:
        raise OptionError(f"{model.path}: --ranks: transformers has no plan for the ranks of this model")
    return Laid(cut, n_ranks)


def _check_cut(path: Path, readers: Sequence[Reader]) -> None:
    """A file may be cut into shards between segments only where none needs a tensor of another."""
    for reader in readers:
        for segment in reader.index.segments:
            tensors = reader.index.tensors_of(segment)
            own = {tensor.name for tensor in tensors}
            for tensor in tensors:
                needs = {
                    reader.index.tensors[s.same_as].name for s in tensor.streams if s.same_as is not None
                }
                needs |= {tensor.tied_to} if tensor.tied_to else set()
                if away := needs - own:
                    raise OptionError(
                        f"{path}: it cannot be cut into shards: {tensor.name!r} needs {min(away)!r}, "
                        "which is in another segment"
                    )


def _shard_starts(readers: Sequence[Reader]) -> Collection[int]:
    """Numbers of the segments that begin a file; none for a model that is one file."""
    if readers[0].index.shard is None:
        return ()
    starts, at = set(), 0
    for reader in readers:
        starts.add(at)
        at += len(reader.index.segments)
    return starts
