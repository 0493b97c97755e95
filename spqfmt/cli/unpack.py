"""`spqfmt unpack`: a .spq file back to the files of its source, or to a Hugging Face folder."""

from pathlib import Path
from typing import Literal

import click

from spqfmt.cli.failures import about
from spqfmt.cli.names import tell_left_out
from spqfmt.cli.parameters import SPQ
from spqfmt.cli.paths import OutputPath
from spqfmt.cli.progress import Bar


@click.command("unpack")
@click.argument("file", type=SPQ)
@click.argument("out_dir", type=OutputPath(folders=True))
@click.option(
    "--keep-packed",
    is_flag=True,
    help="Copy FILE instead: AutoModelForCausalLM.from_pretrained(OUT_DIR) loads it once spqfmt is imported.",
)
@click.option(
    "--with-code",
    is_flag=True,
    help="Write the model's own code too, settings that name code, and what else programs may run or follow. Read it "
    "before anything runs it.",
)
@click.option(
    "--as",
    "as_",
    type=click.Choice(["source", "dense", "compressed-tensors", "gptq", "gguf"]),
    help="source: the files that FILE was packed from, byte for byte. dense: plain weights. Others: what "
    "other programs serve, with the codes of FILE as they are; gguf is one file, OUT_DIR its name. [default: source "
    "where FILE can give it]",
)
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def unpack(
    *,
    file: Path,
    out_dir: Path,
    keep_packed: bool,
    with_code: bool,
    as_: Literal["source", "dense", "compressed-tensors", "gptq", "gguf"] | None,
    quiet: bool,
) -> None:
    """Write FILE as a folder: the very files that it was packed from, where nothing was quantized.

    They are compared with their SHA-256. Any other FILE gives safetensors, config and tokenizer as Hugging Face has
    them; quantized tensors are dequantized.

    Codes that do not fit what --as names are refused by the tensor's name, and nothing is written.

    Files of FILE that could be run or followed by other programs are left out, and named; so are settings that make
    transformers fetch or run code (auto_map, kernels of a hub).

    \b
    spqfmt unpack model.spq model-folder
    spqfmt unpack model.spq packed-folder --keep-packed
    spqfmt unpack model.spq served-folder --as compressed-tensors
    spqfmt unpack model.spq model.gguf --as gguf
    """
    # torch takes seconds to import: not for --help.
    from spqfmt.reading.unpack import unpack as write_folder

    with about(file, out_dir):
        report = write_folder(
            file,
            out_dir,
            keep_packed=keep_packed,
            with_code=with_code,
            as_=as_,
            progress=Bar("unpacking", quiet=quiet),
        )
    if not quiet:
        n = len(report.written) + (0 if report.identical else len(report.changed) + len(report.made))
        what = "identical to the source" if report.identical else f"{len(report.made)} not the source's"
        click.echo(f"{out_dir}: {n} file{'' if n == 1 else 's'}, {what}", err=True)
        tell_left_out(report.made, "not the source's, ")
        tell_left_out(report.changed, "written ")
        tell_left_out(report.plain, "plain weights, ")
        tell_left_out(report.left_out)
