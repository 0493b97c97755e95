"""The core and the wheels for AArch64: cross-built, and tried under an emulator. `make aarch64`.

    python tools/release/aarch64.py [--out dist] [--core-only]

Needs Debian's g++-aarch64-linux-gnu and qemu-user. The fuzz targets (fuzz/native), built without sanitizers, go through
their corpora: scalar and NEON kernels must agree there. Then two wheels are cross-built, one for Python 3.11, one for
the stable ABI of 3.12 and later, for Pythons of Debian for arm64 (debian_python.py), tagged for manylinux, and read by
these under the emulator: all vectors, and the commands that need no torch. The second is built by a Python of its own
version, where one is at hand.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from interpreters import BUILT, ROOT, Environment, at_hand
from wheel_check import VECTORS, check_contents

BUILD = ROOT / "build" / "aarch64"
TOOLCHAIN = ROOT / "tools" / "release" / "aarch64.cmake"
EXACT = "3.11"
SUITES = {EXACT: None, "3.13": "trixie", "3.14": "forky"}
"""Releases of Debian that have these Pythons; None: this machine's."""
PLATFORMS = [f"manylinux_2_{glibc}_aarch64" for glibc in (36, 34, 28, 17)]
"""What the C library of Debian 12 and later ones run."""
TOOLS = Path(sys.executable).parent
EMULATOR = "qemu-aarch64"
TARGETS = sorted(path.stem for path in (ROOT / "fuzz" / "native").glob("*.cpp") if path.stem != "driver")
N_CHANGED = 100
"""Changed inputs of each target, beside those of its corpus."""


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Run a command with the tools of this environment on PATH; SystemExit with what it said where it fails."""
    of_process = dict(os.environ) | variables
    of_process["PATH"] = f"{TOOLS}{os.pathsep}{of_process['PATH']}"
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=of_process,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(
            f"{done.stdout[-4000:]}\nfailed ({done.returncode}): {' '.join(map(str, command))[:300]}"
        )
    return done.stdout


def core() -> None:
    """Build the fuzz targets and take them through their corpora and some changed inputs."""
    build = BUILD / "core"
    options = ["-DSPQFMT_FUZZ=ON", "-DSPQFMT_SANITIZE=", "-DCMAKE_BUILD_TYPE=Fuzz", "-DCMAKE_CXX_FLAGS=-O2"]
    run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}", *options)
    run("cmake", "--build", build)
    for name in TARGETS:
        corpus = ROOT / "fuzz" / "corpus" / name
        # What is found goes to the first folder, and to the one that the program runs in.
        found = build / "corpus" / name
        found.mkdir(parents=True, exist_ok=True)
        runs = len(list(corpus.iterdir())) + N_CHANGED
        run(
            EMULATOR, "-L", "/usr/aarch64-linux-gnu", build / "fuzz" / f"fuzz_{name}", found, corpus,
            f"-runs={runs}", "-max_total_time=60", cwd=found,
        )  # fmt: skip
    print(
        f"core: {len(TARGETS)} targets through their corpora, no difference between NEON and scalar",
        flush=True,
    )


def emulated_python(version: str) -> Path:
    """The folder of a Python for arm64, fetched where it is not there yet."""
    folder = BUILT / f"arm64-{version}"
    if not (folder / "usr" / "bin" / f"python{version}").exists():
        suite = SUITES[version]
        options = ["--architecture", "arm64", *(["--suite", suite] if suite else [])]
        run(TOOLS / "python", "tools/release/debian_python.py", folder, version, *options)
    return folder


def builders() -> dict[str, Path]:
    """Programs that build the wheels, by the version that they are built for."""
    found = {EXACT: TOOLS / "python"}
    stable = [one for one in at_hand([]) if one.name in SUITES and one.name != EXACT]
    if stable:
        environment = Environment(BUILD / f"build-{stable[0].name}", stable[0], TOOLS / "pip")
        environment.install("--no-deps", "--require-hashes", "-r", ROOT / "requirements" / "release.txt")
        found[stable[0].name] = environment.python
    else:
        print(f"no Python of {' or '.join(SUITES)} is at hand: no wheel for the stable ABI", flush=True)
    return found


def wheel(version: str, builder: Path, python: Path) -> Path:
    """Cross-build a wheel for the Python in a folder; return it, tagged."""
    plain, tagged = BUILD / f"plain-{version}", BUILD / f"tagged-{version}"
    for old in (plain, tagged):
        shutil.rmtree(old, ignore_errors=True)
    module = f".cpython-{version.replace('.', '')}-aarch64-linux-gnu.so" if version == EXACT else ".abi3.so"
    include = python / "usr" / "include" / f"python{version}"
    settings = [
        f"cmake.define.CMAKE_TOOLCHAIN_FILE={TOOLCHAIN}",
        f"cmake.define.Python_INCLUDE_DIR={include}",
        f"build-dir=build/aarch64/wheel-{version}",
    ]
    if version == EXACT:
        settings.append(f"cmake.define.NB_SUFFIX={module}")
    given = [f"--config-setting={setting}" for setting in settings]
    run(
        builder, "-m", "build", "--no-isolation", "--wheel", "--outdir", plain, *given, ROOT,
        _PYTHON_HOST_PLATFORM="linux-aarch64", SETUPTOOLS_EXT_SUFFIX=module,
    )  # fmt: skip
    [made] = plain.glob("*aarch64.whl")
    run(TOOLS / "python", "-m", "auditwheel", "repair", "--wheel-dir", tagged, made)
    [made] = tagged.glob("*aarch64.whl")
    return made


def try_it(version: str, python: Path, made: Path) -> None:
    """Install the wheel and what reading needs beside the Python, and read all vectors under the emulator."""
    packages = BUILD / f"packages-{version}"
    shutil.rmtree(packages, ignore_errors=True)
    pip: list[str | Path] = [
        TOOLS / "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        packages,
    ]
    pip += ["--only-binary", ":all:", "--python-version", version]
    pip += [word for platform in PLATFORMS for word in ("--platform", platform)]
    run(*pip, "click", "jinja2", "numpy", "rich", "zstandard")
    run(*pip, "--no-deps", made)
    emulated: list[str | Path] = [EMULATOR, "-L", python, python / "usr" / "bin" / f"python{version}"]
    shown = run(*emulated, "-P", "-c", VECTORS, ROOT / "spec" / "vectors", PYTHONPATH=str(packages)).strip()
    print(f"emulated Python {version}: {shown}", flush=True)
    vector = ROOT / "spec" / "vectors" / "valid" / "grouped_spqr.spq"
    for command in ("inspect", "verify"):
        run(*emulated, "-P", "-m", "spqfmt", command, vector, PYTHONPATH=str(packages))
    if "by neon" not in shown:
        raise SystemExit("the NEON kernels were not chosen")


def main() -> int:
    """Build and try; the wheels go to OUT."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--core-only", action="store_true")
    arguments = parser.parse_args()
    missing = [name for name in ("aarch64-linux-gnu-g++", EMULATOR) if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} missing: apt-get install g++-aarch64-linux-gnu qemu-user")
    core()
    if arguments.core_only:
        return 0
    built = []
    for version, builder in builders().items():
        python = emulated_python(version)
        made = wheel(version, builder, python)
        print(f"{made.name}: {check_contents(made)}", flush=True)
        try_it(version, python, made)
        built.append(made)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for old in arguments.out.glob("*aarch64.whl"):
        old.unlink()
    for made in built:
        print(shutil.copy(made, arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
