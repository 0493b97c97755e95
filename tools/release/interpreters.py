"""Pythons at hand, and environments of them."""

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "pythons"
"""Where debian_python.py may have put others."""
PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"


def project() -> dict[str, object]:
    """What pyproject.toml says of the package."""
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return found


@dataclass(frozen=True)
class Interpreter:
    """A Python: its program, and its version such as (3, 13)."""

    program: Path
    version: tuple[int, int]

    @property
    def name(self) -> str:
        """Name its version, such as 3.13."""
        return ".".join(map(str, self.version))


def supported() -> list[tuple[int, int]]:
    """Versions that pyproject.toml names."""
    words = [str(word) for word in project()["classifiers"]]  # type: ignore[attr-defined]
    numbers = [word.rpartition(" :: ")[2] for word in words if word.startswith("Programming Language")]
    return sorted(_numbers(number) for number in numbers if number.startswith("3."))


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def at_hand(given: list[Path]) -> list[Interpreter]:
    """Those that were given, or else one of each version on PATH, of pyenv, or in build/pythons; ascending."""
    found: dict[tuple[int, int], Interpreter] = {}
    for program in given or _everywhere():
        command = [str(program), "-c", "import sys; print(*sys.version_info[:2])"]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, check=bool(given)).stdout.split()
        except OSError:  # one for another processor
            continue
        if len(shown) == 2:
            version = int(shown[0]), int(shown[1])
            found.setdefault(version, Interpreter(program, version))
    return [found[version] for version in sorted(found) if version in supported() or given]


def _everywhere() -> Iterator[Path]:
    for major, minor in supported():
        name = f"python{major}.{minor}"
        on_path = shutil.which(name)
        if on_path is not None:
            yield Path(on_path)
        # What pyenv puts on PATH starts no version but those that are chosen.
        yield from sorted(PYENV.glob(f"{major}.{minor}.*/bin/{name}"))
        yield from sorted(BUILT.glob(f"*/usr/bin/{name}"))


class Environment:
    """A new virtual environment without pip: packages come by the pip of this tool's own."""

    def __init__(self, folder: Path, interpreter: Interpreter, pip: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter.program, "-m", "venv", "--without-pip", folder], check=True)
        self.folder, self._pip = folder, pip
        self.python = folder / "bin" / "python"

    def install(self, *words: str | Path) -> None:
        """Have pip install: built packages alone, with no compiler on PATH."""
        command = [self._pip, "--python", self.python, "install", "--quiet", "--disable-pip-version-check"]
        command += ["--only-binary", ":all:", *words]
        subprocess.run(list(map(str, command)), env=self.variables(), check=True)

    def variables(self) -> dict[str, str]:
        """The environment of this process; on PATH there is nothing but the virtual environment."""
        return dict(os.environ) | {"PATH": str(self.folder / "bin"), "PYTHONSAFEPATH": "1"}

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, in its folder."""
        program = self.folder / "bin" / str(command[0])
        done = subprocess.run(
            [program, *command[1:]], cwd=self.folder, env=self.variables(),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(
                f"{program.name} {' '.join(map(str, command[1:]))[:200]}\n{done.stdout}{done.stderr}"
            )
        return done

    def n_bytes(self) -> int:
        """What the environment takes on the disk."""
        kept = [path.lstat() for path in self.folder.rglob("*") if not path.is_dir()]
        return sum(512 * status.st_blocks for status in kept)
