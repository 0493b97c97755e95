"""A wheel: what is in it, and what it does in an environment that has nothing else."""

import re
import resource
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from interpreters import ROOT, Environment, Interpreter, project

MOST_WHEEL_BYTES = 5_000_000
MOST_ENVIRONMENT_BYTES = 150_000_000
VECTORS = """
import sys, pathlib, spqfmt
from spqfmt.kernels.backend import backend
n_sound = n_refused = 0
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.spq")):
    if path.parent.name == "valid":
        spqfmt.verify(path, content=True)
        n_sound += 1
    elif path.parent.name == "invalid":
        try:
            spqfmt.verify(path, content=True)
        except spqfmt.SpqError:
            n_refused += 1
        else:
            raise SystemExit(f"{path}: taken for sound")
print(f"{n_sound} vectors sound, {n_refused} refused, by {backend()}")
"""


def check_contents(wheel: Path) -> str:
    """Its size, licences, man pages, and that no sources are in it. Raises SystemExit; returns what there is."""
    n_bytes = wheel.stat().st_size
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    licences = {re.sub(r".*\.dist-info/licenses/", "", name) for name in names if "/licenses/" in name}
    wanted = {
        str(path.relative_to(ROOT))
        for pattern in project()["license-files"]  # type: ignore[attr-defined]
        for path in ROOT.glob(pattern)
    }
    pages = [name for name in names if re.search(r"\.data/data/share/man/man1/spqfmt[\w-]*\.1$", name)]
    sources = [name for name in names if re.search(r"\.(cpp|hpp|h|a|o)$|CMakeLists", name)]
    modules = [name for name in names if re.search(r"spqfmt/kernels/_native[^/]*\.so$", name)]
    if n_bytes > MOST_WHEEL_BYTES:
        raise SystemExit(f"{wheel.name}: {n_bytes} bytes, more than {MOST_WHEEL_BYTES}")
    if wanted - licences or sources or len(modules) != 1 or not pages:
        raise SystemExit(
            f"{wheel.name}: without {sorted(wanted - licences)}, with {sources}, "
            f"modules {modules}, {len(pages)} man pages"
        )
    return f"{n_bytes / 1e6:.2f} MB, {len(licences)} licences, {len(pages)} man pages"


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Measured:
    """What an environment without torch took: by the clock to be installed, of the processor to show its help."""

    install_seconds: float
    n_bytes: int
    help_seconds: float
    said: str


def without_torch(folder: Path, interpreter: Interpreter, wheel: Path, pip: Path) -> Measured:
    """Install what README says for machines that only look; read all vectors. SystemExit where it fails."""
    readme = (ROOT / "README.md").read_text("utf-8")
    packages = re.search(r"pip install ([\w ]+) && pip install --no-deps \S+", readme)
    assert packages is not None
    began = time.monotonic()
    environment = Environment(folder, interpreter, pip)
    environment.install(*packages[1].split())
    environment.install("--no-deps", wheel)
    took = time.monotonic() - began
    said = environment.run("python", "-c", VECTORS, ROOT / "spec" / "vectors").stdout.strip()
    vector = next((ROOT / "spec" / "vectors" / "valid").glob("*.spq"))
    for command, *files in (("inspect", vector), ("verify", vector), ("diff", vector, vector)):
        environment.run("spqfmt", str(command), *files)
    times = []
    for _ in range(9):
        began = _children_seconds()
        environment.run("spqfmt", "--help")
        times.append(_children_seconds() - began)
    return Measured(took, environment.n_bytes(), sorted(times)[len(times) // 2], said)
