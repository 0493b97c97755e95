"""`spqfmt unpack`: a .spq file back to a Hugging Face folder."""

from pathlib import Path

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
    "--with-code", is_flag=True, help="Write the model's own code too. Read it before anything runs it."
)
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def unpack(*, file: Path, out_dir: Path, keep_packed: bool, with_code: bool, quiet: bool) -> None:
    """Write FILE as a Hugging Face folder: safetensors, config, tokenizer. Quantized tensors are dequantized.

    Files of FILE that could be run or followed by other programs are left out, and named.

    \b
    spqfmt unpack model.spq model-folder
    spqfmt unpack model.spq packed-folder --keep-packed
    """
    # torch takes seconds to import: not for --help.
    from spqfmt.reading.unpack import unpack as write_folder

    with about(file, out_dir):
        report = write_folder(
            file,
            out_dir,
            keep_packed=keep_packed,
            with_code=with_code,
            progress=Bar("unpacking", quiet=quiet),
        )
    if not quiet:
        click.echo(f"{out_dir}: written", err=True)
        tell_left_out(report.left_out)
