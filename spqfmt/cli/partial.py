"""The options of how chunks are compressed, which `pack` and `repack` share."""

import click

from spqfmt.cli.paths import InputPath
from spqfmt.sizes import FOR_GPU

PARTIAL = click.option(
    "--partial",
    default="none",
    show_default=True,
    metavar="RULE",
    help="Leave chunks of weights uncompressed, so that they need no decoding. none: all are compressed. every:N: only "
    "the last of every N is. speed: only those that save most bytes for each millisecond of decoding, until half of "
    "the saving is made; speed:40%, until another share of it is; speed:90MiB, until all tensors take at most that; "
    "speed:25ms, as long as decoding all weights once takes at most that on one thread.",
)
RATES = click.option(
    "--rates",
    type=InputPath(),
    metavar="FILE",
    help="For speed: how fast the machine that shall run the model decodes, in a JSON file that `spqfmt bench --rates` "
    "printed there. [default: measured on this machine]",
)
BLOCK = click.option(
    "--block",
    metavar="SIZE",
    help="Blocks of the rans chunks: 4KiB to 64KiB. Smaller ones cost bytes (INT8 0.6 % at 16KiB, exponents of BF16 "
    "1.5 %) and are decoded side by side on a GPU. [default: as large as pays]",
)
FOR = click.option(
    "--for",
    "machine",
    type=click.Choice((FOR_GPU,)),
    help="In place of --block: the size that suits this machine by the simulation in docs/gpu.md.",
)


def block_for(block: str | None, machine: str | None) -> str | None:
    """What --block or --for asks for. Raises UsageError for both."""
    if block is not None and machine is not None:
        raise click.UsageError("give --block or --for, not both")
    return block or machine
