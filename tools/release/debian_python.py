"""A Python of another release of Debian, or for another processor, in a folder: nothing on this machine is changed.

    python tools/release/debian_python.py FOLDER 3.13 --suite trixie
    python tools/release/debian_python.py FOLDER 3.11 --architecture arm64

apt downloads the packages with all that they need, from the mirror that this machine has, and they are unpacked: the
interpreter is FOLDER/usr/bin/python3.13. One for this processor starts as it is, with its own C library; one for
another is started by an emulator: `qemu-aarch64 -L FOLDER FOLDER/usr/bin/python3.11`. Packages come by the pip of
another Python.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
"""Debian's own file of where packages come from (since Debian 12)."""
APT, DPKG = "/usr/bin/apt-get", "/usr/bin/dpkg"


def sources(suite: str | None) -> str:
    """The first entry of the machine's sources, of a suite or of the machine's own."""
    try:
        entry = next(part for part in SOURCES.read_text(encoding="utf-8").split("\n\n") if "URIs:" in part)
    except (OSError, StopIteration):
        raise SystemExit(f"{SOURCES}: this needs a machine with Debian 12 or newer") from None
    return entry if suite is None else re.sub(r"(?m)^Suites:.*$", f"Suites: {suite}", entry)


def apt(place: Path, architecture: str | None, *words: str) -> None:
    """Run apt-get with lists, cache and state of its own, as if nothing were installed."""
    settings = {
        "Dir::State": place / "state",
        "Dir::Cache": place / "cache",
        "Dir::State::status": "/dev/null",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": place / "sources",
        "Debug::NoLocking": 1,
        "APT::Sandbox::User": "",
    }
    if architecture is not None:
        settings |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    subprocess.run([APT, "-qq", *options, *words], check=True, stdout=subprocess.DEVNULL)


def start_as_it_is(folder: Path, python: Path) -> None:
    """Have the interpreter take the C library beside it: that of this machine may be older than it needs."""
    [loader] = {path.resolve() for path in folder.rglob("ld-linux-x86-64.so.2")}
    program = python.rename(python.with_name(f"{python.name}.elf"))
    python.write_text(
        f'#!/bin/sh\nexec "{loader}" --library-path "{loader.parent}" --argv0 "$0" "{program}" "$@"\n',
        encoding="utf-8",
    )
    python.chmod(0o755)


def main() -> int:
    """Make the folder anew; print the interpreter's path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("version", help="such as 3.13")
    parser.add_argument("--suite", help="the release of Debian; this machine's by default")
    parser.add_argument("--architecture", help="such as arm64; this machine's by default")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    place = folder.with_name(f"{folder.name}.apt")
    for old in (folder, place):
        shutil.rmtree(old, ignore_errors=True)
    for name in ("state/lists/partial", "cache/archives/partial", "sources"):
        (place / name).mkdir(parents=True)
    (place / "sources" / "debian.sources").write_text(sources(arguments.suite), encoding="utf-8")
    apt(place, arguments.architecture, "update")
    # Packages with C++ in them (numpy) take its library from the system.
    wanted = [f"python{arguments.version}", f"libpython{arguments.version}-dev", "libstdc++6"]
    apt(place, arguments.architecture, "install", "-y", "--download-only", "--no-install-recommends", *wanted)
    for package in sorted((place / "cache" / "archives").glob("*.deb")):
        subprocess.run([DPKG, "-x", str(package), str(folder)], check=True)
    shutil.rmtree(place)
    # Debian's header sends for the processor's, which a compiler would look for in the system's own folders.
    [header] = folder.glob(f"usr/include/*-linux-gnu/python{arguments.version}/pyconfig.h")
    shutil.copyfile(header, folder / "usr" / "include" / f"python{arguments.version}" / "pyconfig.h")
    if not (folder / "lib").exists():  # since Debian 13 a link that a package of its own brings
        (folder / "lib").symlink_to("usr/lib")
    python = folder / "usr" / "bin" / f"python{arguments.version}"
    if arguments.architecture is None:
        start_as_it_is(folder, python)
        # As the package does where it is installed: else each start compiles what it imports, where none may be kept.
        library = folder / "usr" / "lib" / f"python{arguments.version}"
        subprocess.run([python, "-m", "compileall", "-q", str(library)], check=True)
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
