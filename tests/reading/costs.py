"""A script of test_cost.py: what one command costs on each of some files, all in this process.

python costs.py COMMAND... -- PLAIN FILE...: a line of JSON for each, with seconds of processor time and bytes of memory
beyond what was held before; "FILE" in the command is the file. PLAIN is read first, for imports and caches.
"""

import json
import os
import resource
import sys
from pathlib import Path

from spqfmt.cli.main import main


def seconds() -> float:
    """Processor time of this process until now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_bytes() -> int:
    """The most memory since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def forget_peak() -> None:
    """Let the most be what is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def run(command: list[str]) -> int | str | None:
    """The command's exit code, its words thrown away."""
    shown = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        main(command)
    except SystemExit as ended:
        return ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), shown, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(nowhere)
    return 0


at = sys.argv.index("--")
words, files = sys.argv[1:at], sys.argv[at + 1 :]
for file in (files[0], *files):
    forget_peak()
    memory, time = peak_bytes(), seconds()
    code = run([word.replace("FILE", file) for word in words])
    cost = {"code": code, "seconds": seconds() - time, "bytes": peak_bytes() - memory}
    sys.stdout.write(json.dumps({"file": Path(file).stem, **cost}) + "\n")
    sys.stdout.flush()
