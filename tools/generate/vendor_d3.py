"""Brings the parts of D3 that the pages draw with into spqfmt/pages/vendored, as published on npm.

    python tools/generate/vendor_d3.py            # the versions and hashes of vendored/manifest.json, as they are there
    python tools/generate/vendor_d3.py --update   # the newest versions; writes their hashes into the manifest

A package is taken only where its SHA-512 is the one that the manifest (or, with --update, npm) says.
"""

import argparse
import base64
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VENDORED = Path(__file__).resolve().parents[2] / "spqfmt" / "pages" / "vendored"
# In the order of their loading. d3-scale also names d3-time and d3-time-format, for scales of time: not used here.
PACKAGES = (
    "d3-array",
    "d3-color",
    "d3-format",
    "d3-interpolate",
    "d3-path",
    "d3-scale",
    "d3-axis",
    "d3-selection",
    "d3-hierarchy",
)


def npm(*arguments: str, cwd: Path | None = None) -> Any:
    """What npm answers, as JSON."""
    command = ["npm", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, cwd=cwd).stdout)


def newest(name: str) -> dict[str, str]:
    """Version and hash of a package as npm has it today."""
    found = npm("view", name, "version", "dist.integrity")
    return {"version": found["version"], "integrity": found["dist.integrity"]}


def fetch(name: str, version: str, integrity: str, folder: Path) -> tuple[bytes, str]:
    """The script and the licence of one package. SystemExit where the archive is not the one of the hash."""
    archive = folder / npm("pack", f"{name}@{version}", cwd=folder)[0]["filename"]
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != integrity:
        raise SystemExit(f"{name} {version} is {found}, not {integrity}")
    with tarfile.open(archive) as members:
        script = members.extractfile(f"package/dist/{name}.min.js")
        licence = members.extractfile("package/LICENSE")
        if script is None or licence is None:
            raise SystemExit(f"{name} {version} has no script or no licence")
        return script.read(), licence.read().decode().strip()


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="take the newest versions")
    path = VENDORED / "manifest.json"
    update = parser.parse_args().update
    manifest = {name: newest(name) for name in PACKAGES} if update else json.loads(path.read_text())
    licences: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, pinned in manifest.items():
            script, licence = fetch(name, pinned["version"], pinned["integrity"], Path(folder))
            (VENDORED / f"{name}.min.js").write_bytes(script)
            pinned["sha256"] = hashlib.sha256(script).hexdigest()
            licences.setdefault(licence, []).append(name)
    text = "\n\n".join(f"{', '.join(names)}\n\n{licence}" for licence, names in licences.items())
    (VENDORED / "LICENSE").write_text(text + "\n")
    path.write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
