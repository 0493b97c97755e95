"""`spqfmt exec`: another program, in which transformers loads folders of packed models."""

import os
import shutil
import sys
from pathlib import Path

import click

from spqfmt.errors import OptionError
from spqfmt.sizes import n_bytes_of
from spqfmt.transformers_hook import MEMORY

_STARTUP = Path(__file__).resolve().parents[1] / "startup"


@click.command("exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
@click.option("--memory", help="Ceiling for the weights of packed models, such as 2GiB: layers stay packed.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(*, memory: str | None, command: tuple[str, ...]) -> None:
    """Run COMMAND, in which transformers loads folders that hold a packed model (`spqfmt unpack --keep-packed`).

    So does all that it starts. The program needs spqfmt installed beside it. Its exit code is this one's.

    \b
    spqfmt exec lm_eval --model hf --model_args pretrained=FOLDER --tasks TASK
    spqfmt exec --memory 2GiB transformers serve FOLDER --device cpu
    """
    name, *_ = command
    # Programs of this environment come first, also where it is not activated.
    program = shutil.which(
        name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if program is None:
        raise OptionError(f"{name}: no such program")
    environment = dict(os.environ)
    others = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([str(_STARTUP), *([others] if others else [])])
    if memory is not None:
        environment[MEMORY] = str(n_bytes_of(memory))
    sys.stdout.flush()
    os.execve(program, command, environment)  # noqa: S606  # to run a program is what is asked for
