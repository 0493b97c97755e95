"""All that a release publishes, built from the last commit and checked: `make release`.

    python tools/release/release.py [OUT] [--python PROGRAM ...] [--full] [--no-site]

Builds the sdist from a clean copy of HEAD, wheels from that sdist (one for Python 3.11, one for the stable ABI of 3.12
and later), tags them for manylinux, installs them into new environments of each Python at hand, without torch and
without a compiler on PATH, and reads all vectors there. Then the site, the bill of materials and SHA256SUMS. --full
also installs all of README's first lines, torch included, and follows them. The last lines say what is left for a
person. Other Pythons: tools/release/debian_python.py. A wheel for aarch64: `make aarch64`, before this.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from follow_readme import follow
from interpreters import ROOT, Environment, Interpreter, at_hand, project, supported
from wheel_check import MOST_ENVIRONMENT_BYTES, check_contents, without_torch

WORK = ROOT / "build" / "release-work"
STABLE = (3, 12)
"""One wheel for this version and all later ones (pyproject.toml, wheel.py-api)."""
TOOLS = Path(sys.executable).parent
GIT = shutil.which("git") or "git"


def git(*words: str) -> str:
    """What git says, in the repository."""
    return subprocess.run([GIT, *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a tool of this environment; what it prints is kept for where it fails."""
    variables = dict(os.environ)
    variables["PATH"] = f"{TOOLS}{os.pathsep}{variables['PATH']}"
    variables["SOURCE_DATE_EPOCH"] = git("log", "-1", "--format=%ct")
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{done.stdout[-4000:]}\nfailed: {' '.join(map(str, command))}")


def say(what: str) -> None:
    """One line of what was done."""
    print(what, flush=True)


def sdist(out: Path) -> Path:
    """Make the sdist of the last commit, and nothing that lies about; return its unpacked folder."""
    source = WORK / "source"
    source.mkdir(parents=True)
    run("git", "archive", "--output", WORK / "source.tar", "HEAD")
    with tarfile.open(WORK / "source.tar") as archive:
        archive.extractall(source, filter="data")
    run(TOOLS / "python", "-m", "build", "--no-isolation", "--sdist", "--outdir", out, source)
    [made] = out.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        archive.extractall(WORK / "sdist", filter="data")
    say(f"{made.name}: {made.stat().st_size / 1e6:.1f} MB")
    [folder] = (WORK / "sdist").iterdir()
    return folder


def wheel(source: Path, interpreter: Interpreter, out: Path) -> Path:
    """Build a wheel from the sdist with one Python, and tag it for manylinux."""
    environment = Environment(WORK / f"build-{interpreter.name}", interpreter, TOOLS / "pip")
    environment.install("--no-deps", "--require-hashes", "-r", ROOT / "requirements" / "release.txt")
    plain, tagged = WORK / f"plain-{interpreter.name}", WORK / f"tagged-{interpreter.name}"
    run(environment.python, "-m", "build", "--no-isolation", "--wheel", "--outdir", plain, source)
    [made] = plain.glob("*.whl")
    run(TOOLS / "python", "-m", "auditwheel", "repair", "--wheel-dir", tagged, made)
    [made] = tagged.glob("*.whl")
    say(f"{made.name}: {check_contents(made)}")
    return Path(shutil.copy(made, out))


def wheels(source: Path, interpreters: list[Interpreter], out: Path) -> dict[Interpreter, Path]:
    """A wheel for each Python, by it; later ones than STABLE have one together."""
    made: dict[Interpreter, Path] = {}
    stable: Path | None = None
    for interpreter in interpreters:
        if interpreter.version < STABLE:
            made[interpreter] = wheel(source, interpreter, out)
        else:
            stable = stable or wheel(source, interpreter, out)
            made[interpreter] = stable
    return made


def check(made: dict[Interpreter, Path]) -> list[str]:
    """Install each wheel on each Python that it is for; return what was over a bound."""
    over = []
    for interpreter, path in made.items():
        found = without_torch(WORK / f"clean-{interpreter.name}", interpreter, path, TOOLS / "pip")
        say(
            f"Python {interpreter.name}: {found.said}; without torch {found.n_bytes / 1e6:.0f} MB, installed in "
            f"{found.install_seconds:.0f} s by the clock, --help {found.help_seconds:.3f} s of the processor"
        )
        if found.n_bytes > MOST_ENVIRONMENT_BYTES:
            over.append(f"Python {interpreter.name}: {found.n_bytes} bytes without torch")
    return over


def left_for_a_person(version: str, interpreters: list[Interpreter], out: Path, over: list[str]) -> list[str]:
    """What this tool could not do, or may not."""
    left = list(over)
    if git("status", "--porcelain", "--untracked-files=no"):
        left.append("the work tree has changes that are not committed: they are not in what was built")
    if not any(
        line == f"## {version}" for line in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines()[:8]
    ):
        left.append(f"CHANGELOG.md does not begin with {version}")
    absent = [version for version in supported() if version not in {one.version for one in interpreters}]
    for major, minor in absent:
        which = "the wheel for the stable ABI is for it" if (major, minor) >= STABLE else "no wheel was built"
        left.append(f"Python {major}.{minor} is not at hand: {which}, nothing was tried on it")
    if not list(out.glob("*aarch64.whl")):
        left.append("no wheel for aarch64 is there: `make aarch64`, or the forge's workflow `wheels`")
    else:
        left.append(
            "look that the wheel for aarch64 was made from this commit: it is of what lay in the work tree"
        )
    left += [
        "`make check`, `make sanitize`, `make demo` and `make pages` on this commit; read and look at what they give",
        f"open the site ({out.name}/*-site.tar.gz), publish it",
        f"`git tag -s v{version}` and push it; the workflow `wheels` builds the same once more, on each Python",
        f"compare and publish what is in {out.name}/, with SHA256SUMS; a block `Unreleased` at the top of CHANGELOG.md",
    ]
    return left


def main() -> int:
    """Build, check, and say what is left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "dist")
    parser.add_argument(
        "--python", type=Path, action="append", default=[], help="all that are at hand by default"
    )
    parser.add_argument("--full", action="store_true", help="follow README's first lines too, with torch")
    parser.add_argument("--no-site", action="store_true")
    arguments = parser.parse_args()
    out, version = arguments.out.resolve(), str(project()["version"])
    interpreters = at_hand(arguments.python)
    if not interpreters:
        raise SystemExit("no Python that pyproject.toml names is at hand")
    shutil.rmtree(WORK, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("*.tar.gz"), *out.glob("*x86_64.whl")]:
        old.unlink()
    say(f"spqfmt {version}, commit {git('rev-parse', '--short', 'HEAD')}")
    source = sdist(out)
    made = wheels(source, interpreters, out)
    over = check(made)
    for path in out.glob("*aarch64.whl"):
        if f"-{version}-" not in path.name:
            raise SystemExit(f"{path} is of another version: `make aarch64`, or remove it")
        say(f"{path.name}: {check_contents(path)} (made by `make aarch64` from the work tree)")
    if arguments.full:
        follow(WORK / "readme", interpreters[0], made[interpreters[0]], TOOLS / "pip", say)
    run(TOOLS / "python", "tools/release/sbom.py", out / "spqfmt.cdx.json")
    if not arguments.no_site:
        run("make", "--no-print-directory", "site")
        with tarfile.open(out / f"spqfmt-{version}-site.tar.gz", "w:gz") as archive:
            archive.add(ROOT / "build" / "site", f"spqfmt-{version}-site")
    files = sorted(path for path in out.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (out / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    say(f"{out}: {', '.join(path.name for path in files)}, SHA256SUMS")
    say("left for a person:")
    for what in left_for_a_person(version, interpreters, out, over):
        say(f"- {what}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
