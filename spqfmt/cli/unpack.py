"""`spqfmt unpack`: a .spq file back to a Hugging Face folder."""

from pathlib import Path

import click

from spqfmt.cli.parameters import MODEL
from spqfmt.cli.progress import Bar


@click.command("unpack")
@click.argument("file", type=MODEL)
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def unpack(*, file: Path, out_dir: Path, quiet: bool) -> None:
    """Write FILE as a Hugging Face folder: safetensors, config, tokenizer. Quantized tensors are dequantized.

    \b
    spqfmt unpack model.spq model-folder
    """
    # torch takes seconds to import: not for --help.
    from spqfmt.pipeline.unpack import unpack as write_folder

    write_folder(file, out_dir, progress=Bar("unpacking", quiet=quiet))
    if not quiet:
        click.echo(f"{out_dir}: written", err=True)
