"""The options of partial compression, which `pack` and `repack` share."""

import click

from spqfmt.cli.paths import InputPath

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
