"""README's first lines, as a newcomer follows them: with the wheel, and no compiler on PATH."""

import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from interpreters import ROOT, Environment, Interpreter

MODEL = "$(python tools/models/smollm2.py)"


def follow(
    folder: Path, interpreter: Interpreter, wheel: Path, pip: Path, say: Callable[[str], None]
) -> None:
    """Install with torch, and run the commands behind a dollar. SystemExit where one fails."""
    readme = (ROOT / "README.md").read_text("utf-8")
    began = time.monotonic()
    environment = Environment(folder, interpreter, pip)
    environment.install(f"{wheel}[gguf]")
    say(
        f"README: `pip install 'spqfmt[gguf]'` {time.monotonic() - began:.0f} s, {environment.n_bytes() / 1e9:.1f} GB"
    )
    for line in re.findall(r"^    \$ (.*)$", readme, re.M):
        began = time.monotonic()
        words = shlex.split(line.replace(MODEL, "MODEL"))
        if words[:2] == ["pip", "install"]:
            environment.install(*words[2:])
            shown = ""
        else:
            if "MODEL" in words:
                found = environment.run("python", ROOT / "tools" / "models" / "smollm2.py").stdout.strip()
                words[words.index("MODEL")] = found
            done = environment.run(*words)
            shown = (done.stdout + done.stderr).strip().splitlines()[-1]
        say(f"README: `{line}` {time.monotonic() - began:.1f} s; {shown}")
