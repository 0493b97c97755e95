"""`spqfmt pack`: a model into a .spq file."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spqfmt.cli.failures import about
from spqfmt.cli.hub import SourcePath, shows_bars
from spqfmt.cli.importing import importing
from spqfmt.cli.names import listed, tell_left_out
from spqfmt.cli.parameters import ALIGNMENT, ALIGNMENT_HELP, RANKS
from spqfmt.cli.partial import BLOCK, FOR, PARTIAL, RATES, block_for
from spqfmt.cli.paths import PIPE, InputPath, OutputPath
from spqfmt.cli.pipes import stdout_file
from spqfmt.cli.progress import Bar
from spqfmt.cli.together import together
from spqfmt.cli.units import printable, ratio, size
from spqfmt.codecs.registry import CHOICES
from spqfmt.container.output import check_name
from spqfmt.errors import OptionError
from spqfmt.hub.names import HubName

if TYPE_CHECKING:
    from spqfmt.importers.base import SourceModel
    from spqfmt.packing.options import PackOptions
    from spqfmt.packing.plan import PackPlan
    from spqfmt.packing.projection import Projection


@click.command("pack")
@click.argument("source", type=SourcePath(folders=True))
@click.argument("out", type=OutputPath(pipes=True))
@click.option(
    "--method",
    help="lossless, keep (the codes that the source stores), rtn (round to nearest), gptq, spqr, dc, jsq, "
    "ecq (any size); or a baseline: "
    "smoothquant, magnitude, wanda, sparsegpt, llm_int8, zeroquant. "
    "[default: lossless, for a GGUF file of blocks keep; ecq with --fit or --fit-memory]",
)
@click.option(
    "--bits",
    type=float,
    help="Bits of a code, 2 to 8. ecq: any number from 1 to 8 such as 3.2, all that is stored for a quantized weight "
    "in the mean, embedding, tables, scales, checksums and padding included. [default: the method's own]",
)
@click.option("--fit", help="A file of this size, such as 90MiB: hit within 1 %, never above. Implies ecq.")
@click.option(
    "--fit-memory",
    help="A model whose weights all have room in memory, compressed, under this ceiling of `spqfmt plan`, such as "
    "200MiB. Implies ecq.",
)
@click.option(
    "--gradients",
    is_flag=True,
    default=None,
    help="ecq: one backward pass more, for outputs and rows of the embedding that matter more.",
)
@click.option(
    "--no-calibration", is_flag=True, default=None, help="ecq: from the weights alone, in seconds; worse."
)
@click.option(
    "--effort",
    type=click.Choice(["fast", "normal", "best"]),
    help="ecq: how much time it takes to be better, where other options do not say. fast: codes are chosen once; "
    "normal: they are made better twice, and --sequential; best: six times, --sequential, --gradients, 128 samples "
    "in place of 32, and rows make up for each other's errors (not with --trellis). [default: normal]",
)
@click.option(
    "--trellis",
    is_flag=True,
    default=None,
    help="ecq: codes along a trellis of 8 states, at 2 to 4 bits 0.06 to 0.16 bits a weight better. For small files: "
    "where layers are kept as codes, these take a byte each from 2.75 bits on.",
)
@click.option(
    "--dequantize",
    is_flag=True,
    default=None,
    help="Take what the codes of a quantized source stand for (GGUF, GPTQ, AWQ, FP8 and the like) in place of these, "
    "as if that were the model: for any method but keep. [default method: lossless]",
)
@click.option(
    "--granularity",
    type=click.Choice(["tensor", "row", "group"]),
    help="What shares one scale. [default: row; group with --group-size]",
)
@click.option("--group-size", type=int, help="Input columns in a group. [default: rtn 64, gptq 128, spqr 16]")
@click.option(
    "--embedding-bits",
    type=int,
    help="For embedding and head; 16 keeps them as they are. [default: 8; ecq: by allocation]",
)
@click.option(
    "--threshold", type=float, help="spqr: what an outlier must exceed; less means more. [default: 0.2]"
)
@click.option("--damping", type=float, help="Added to the Hessian's diagonal, in means of it.")
@click.option(
    "--act-order/--no-act-order", default=None, help="Quantize the columns with the largest inputs first."
)
@click.option(
    "--alpha", type=float, help="Exponent of the input channels' scale. [default: dc 0.8, others 0.5]"
)
@click.option(
    "--scaling",
    type=click.Choice(["none", "activation", "smoothquant"]),
    help="Scale of an input channel: none, max|X|^alpha, or that by max|W|^(1-alpha).",
)
@click.option(
    "--pruning",
    type=click.Choice(["none", "magnitude", "wanda", "linf", "sar", "sparsegpt"]),
    help="What decides which weights become 0.",
)
@click.option("--sparsity", type=float, help="Share of the weights that become 0.")
@click.option(
    "--pattern", type=click.Choice(["unstructured", "2:4", "4:8"]), help="Weights kept of each few columns."
)
@click.option(
    "--activations", type=click.Choice(["int8", "float"]), help="Inputs of the layers as the model runs."
)
@click.option(
    "--range-weight", type=float, help="sar: lambda, the weight of the output's range. [default: 2]"
)
@click.option(
    "--saliency-tokens",
    type=click.Choice(["mean", "all"]),
    help="sar: ranges over the samples' mean at each position, or over all tokens. [default: mean]",
)
@click.option(
    "--search-steps",
    type=int,
    help="jsq: steps of the annealing; 0 edits nothing. Each compresses half of the model, on average, on the search's "
    "samples: 16 steps on 4 take 6 minutes of one core for 135 M parameters. [default: 16]",
)
@click.option(
    "--search-samples", type=int, help="jsq: samples that the annealing tries a vector on. [default: 4]"
)
@click.option(
    "--calibration",
    type=InputPath(folders=True),
    help="UTF-8 text, .jsonl with a text field, or a folder of such files (.txt, .md, .jsonl, .ndjson). "
    "[default: a text in the package]",
)
@click.option(
    "--samples", type=int, help="Samples of the calibration. [default: 128; ecq: 32 but with --effort best]"
)
@click.option("--seq-len", type=int, help="Tokens of a sample, at most what the model takes. [default: 512]")
@click.option(
    "--no-bos",
    is_flag=True,
    default=None,
    help="Calibrate on samples of the text alone, without what the tokenizer begins a text with.",
)
@click.option("--seed", type=int, help="Chooses the samples. [default: 0]")
@click.option(
    "--sequential/--no-sequential",
    default=None,
    help="Calibrate each block on what the quantized ones before it give; with ecq each layer too, which then makes up "
    "for what they are off by. [default: sequential; ecq: but with --effort fast]",
)
@click.option(
    "--device",
    help="Where methods that calibrate run the model, gather what its layers read and compute with it: cpu, cuda or "
    "cuda:N. Codes are chosen on the processor all the same. [default: cpu]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with an interrupted pack from the block, or the shards, where it stood.",
)
@click.option(
    "--codec",
    type=click.Choice(CHOICES),
    default="auto",
    show_default=True,
    help="Entropy coder of the chunks; auto is rans where it saves 1 % or more.",
)
@PARTIAL
@RATES
@BLOCK
@FOR
@click.option(
    "--no-identity",
    is_flag=True,
    default=None,
    help="Without digests of what the tensors hold and without what gives the source's files back: a few bytes less, "
    "and a file of format 1.0 where nothing else needs 1.1.",
)
@click.option(
    "--shard-size",
    help="Write several files of at most this size, such as 2GiB. Started by torchrun, several processes write them; "
    "with calibration they share the blocks, and need no shards.",
)
@click.option("--chunk-alignment", type=ALIGNMENT, help=f"{ALIGNMENT_HELP} [default: 64]")
@RANKS
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Threads that encode. [default: SPQFMT_THREADS, or as many as torch takes]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show what would be done with each tensor, refuse a size that cannot be had; write nothing. With calibration, "
    "how long it would take here and in how much memory, which takes some seconds to tell.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
def pack(
    *,
    source: Path | HubName,
    out: Path,
    jobs: int | None,
    dry_run: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
    resume: bool,
    machine: str | None,
    **options: str | int | float | Path | None,
) -> None:
    """Pack SOURCE into OUT.spq: a model's folder, a pipeline's, an adapter's, a GGUF file, or one file of weights.

    Weights are safetensors, or what torch's safe loader reads. SOURCE may be OWNER/NAME[@REVISION][/FILE.gguf], a model
    on a hub: what the cache of huggingface_hub lacks of it is fetched there. OUT may be -, for a pipe: the file goes to
    stdout once it is whole.

    \b
    spqfmt pack path/to/model model.spq
    spqfmt pack path/to/model model.spq --method rtn --bits 4 --group-size 64
    spqfmt pack model.gguf model.spq --dequantize --method rtn --bits 8 --granularity tensor
    spqfmt pack path/to/model model.spq --method spqr --bits 3
    spqfmt pack path/to/model model.spq --method ecq --bits 3.2
    spqfmt pack path/to/model model.spq --fit 90MiB
    spqfmt pack path/to/model - | ssh host "cat > model.spq"
    torchrun --nproc-per-node 4 -m spqfmt pack path/to/model model.spq --shard-size 2GiB
    spqfmt pack owner/model model.spq --method rtn --bits 8
    """
    # torch takes seconds to import: not for --help.
    with importing():
        from spqfmt.cli.plan_table import print_plan
        from spqfmt.codecs import threads
        from spqfmt.importers.registry import open_source
        from spqfmt.kernels import native
        from spqfmt.kernels.context import current
        from spqfmt.packing.dequantized import as_packed
        from spqfmt.packing.estimate import estimate
        from spqfmt.packing.fit.bounds import room_for
        from spqfmt.packing.options import pack_options
        from spqfmt.packing.pack import open_named, pack_model
        from spqfmt.packing.plan import plan_pack
        from spqfmt.packing.target import BitsPerWeight
        from spqfmt.packing.together import check_together, pack_together
        from spqfmt.processes import threads_of_one
        from spqfmt.quantize.base import KeepingMethod

    with together() as processes, ExitStack() as stack:
        options["block"] = block_for(options.get("block"), machine)  # type: ignore[arg-type]  # click has checked it
        checked = pack_options(**options)  # type: ignore[arg-type]  # click has checked the types
        if processes is not None:
            check_together(checked)
            if out == PIPE:
                raise OptionError("-: several processes write into a folder that all have; give a name")
            jobs = jobs or threads.wanted_threads(current()) or threads_of_one(native.usable_threads())
        is_first = processes is None or processes.number == 0
        if out == PIPE:
            _check_pipe(checked.shard_bytes is None, resume=resume, as_json=as_json and not dry_run)
        else:
            check_name(out)
        to_pipe = out == PIPE and not dry_run
        place = source if isinstance(source, Path) else _fetched(source, quiet=quiet or as_json)
        path = stack.enter_context(stdout_file()) if to_pipe else out
        for context in (threads.jobs(jobs), threads.blocks(checked.block_log2), about(place, path)):
            stack.enter_context(context)
        model = open_named(place, source) if isinstance(source, HubName) else open_source(place)
        checked = checked.for_source(model)
        model = as_packed(model, checked)
        if dry_run:
            plan = plan_pack(model, checked)
            # Not for --bits, which has a default: the check encodes what is not quantized.
            if checked.fit is not None and not isinstance(checked.fit, BitsPerWeight):
                with model.unchanged():
                    room_for(model, plan, checked)
            if is_first:
                print_plan(
                    plan,
                    checked,
                    model.left_out,
                    estimated=estimate(model, plan, checked),
                    projected=_projected(model, plan, checked),
                    as_json=as_json,
                )
            return
        progress = Bar("packing", quiet=quiet or as_json or not is_first)
        if processes is None:
            report = pack_model(model, path, checked, force=force, resume=resume, progress=progress)
        else:
            report = pack_together(
                model, path, checked, processes, force=force, resume=resume, progress=progress
            )
    if not is_first:
        return
    keeps = isinstance(checked.method, KeepingMethod)
    unused, missing = ((), ()) if quiet else _unmatched(model.as_weights() if keeps else model)
    if as_json:
        click.echo(json.dumps(report.to_json() | {"unused": unused, "missing": missing}))
    elif not quiet:
        bits = 8 * report.file_bytes / max(1, report.n_weights)
        click.echo(
            f"{'stdout' if out == PIPE else report.files[-1]}: {size(report.file_bytes)} from {size(report.raw_bytes)} "
            f"({ratio(report.file_bytes, report.raw_bytes, report.bf16_bytes)}, {bits:.2f} bits a weight), "
            f"{report.n_tensors} tensors in {report.seconds:.1f} s",
            err=True,
        )
        for reason, names in report.left_dense_by_reason.items():
            click.echo(printable(f"stored as they are, because {reason}: {listed(names, 1)}"), err=True)
        if unused:
            where = f"in the file, but {model.architecture} has no place for"
            click.echo(printable(f"{where}: {listed(unused, 1)}"), err=True)
        if missing:
            where = f"not in the file, but {model.architecture} needs, so that it cannot be loaded"
            click.echo(printable(f"{where}: {listed(missing, 1)}"), err=True)
        if report.assets:
            click.echo(printable(f"files with it: {listed(report.assets)}"), err=True)
        tell_left_out(report.left_out)
        tell_left_out(report.not_given_back, "not given back by unpack, ")
        for note in dict.fromkeys(report.notes):
            click.echo(printable(note), err=True)


def _check_pipe(is_one_file: bool, *, resume: bool, as_json: bool) -> None:
    """Raise OptionError for what a pipe cannot have."""
    if not is_one_file:
        raise OptionError("-: a pipe has one file, --shard-size makes several; give a name")
    if resume:
        raise OptionError("-: of a pipe nothing is left to go on with; --resume needs a name")
    if as_json:
        raise OptionError("-: stdout has the model, --json would be in it; give a name")


def _fetched(name: HubName, *, quiet: bool) -> Path:
    from spqfmt.hub import fetch_source

    return fetch_source(name, shows=shows_bars(quiet=quiet))


def _projected(model: "SourceModel", plan: "PackPlan", options: "PackOptions") -> "Projection | None":
    from spqfmt.quantize.calibrated import is_calibrated

    if not is_calibrated(options.method):
        return None
    # transformers takes seconds to import.
    from spqfmt.packing.projection import project

    return project(model, plan, options)


def _unmatched(model: "SourceModel") -> tuple[Sequence[str], Sequence[str]]:
    """Tensors that transformers' class of the model has no place for, and what it needs that is not there.

    Nothing where the config names no such class.
    """
    config = next((asset.data for asset in model.assets if asset.name == "config.json"), b"")
    if model.is_complete or b'"model_type"' not in config:
        return (), ()
    # transformers takes seconds to import.
    from spqfmt.models.places import unmatched

    return unmatched(model)
