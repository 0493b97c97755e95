"""`spqfmt unpack`: a .spq file back to a Hugging Face folder."""

from pathlib import Path

import click

from spqfmt.cli.failures import about
from spqfmt.cli.parameters import MODEL
from spqfmt.cli.progress import Bar


@click.command("unpack")
@click.argument("file", type=MODEL)
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option(
    "--keep-packed",
    is_flag=True,
    help="Copy FILE instead: AutoModelForCausalLM.from_pretrained(OUT_DIR) loads it once spqfmt is imported.",
)
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def unpack(*, file: Path, out_dir: Path, keep_packed: bool, quiet: bool) -> None:
    """Write FILE as a Hugging Face folder: safetensors, config, tokenizer. Quantized tensors are dequantized.

    \b
    spqfmt unpack model.spq model-folder
    spqfmt unpack model.spq packed-folder --keep-packed
    """
    # torch takes seconds to import: not for --help.
    from spqfmt.reading.unpack import unpack as write_folder

    with about(file, out_dir):
        write_folder(file, out_dir, keep_packed=keep_packed, progress=Bar("unpacking", quiet=quiet))
    if not quiet:
        click.echo(f"{out_dir}: written", err=True)
