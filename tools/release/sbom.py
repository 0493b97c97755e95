"""The software bill of materials of the wheel, in CycloneDX's JSON.

    python tools/release/sbom.py OUT.cdx.json

The package and what it asks for (dependencies and extras of pyproject.toml, in the versions of constraints.txt and
requirements/dev.txt that it was tested with; the lock has the hashes of their files), and what is linked into the wheel
or lies in it, which no installer sees. `make sbom` installs what this needs.
"""

import argparse
import base64
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OF_USERS = ("remote", "serve", "gguf", "sign", "plots", "triton")
"""Extras that give the package more to do; the others are for work on it."""
LICENCES = {"nanobind": "BSD-3-Clause", "robin-map": "MIT"}
"""CMakeLists.txt links nanobind in (NB_STATIC), with the map that it carries: their licences."""


def locked() -> dict[str, str]:
    """Return the versions of constraints.txt and of the lock."""
    found: dict[str, str] = {}
    for name in ("constraints.txt", "requirements/dev.txt"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            match = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line)
            if match is not None:
                found[canonicalize_name(match[1])] = match[2]
    return found


def needed(dependencies: list[str], extras: dict[str, list[str]]) -> Iterator[tuple[str, ComponentScope]]:
    """Yield the names that the package asks for, and whether it needs them for everything."""
    for words in dependencies:
        yield canonicalize_name(Requirement(words).name), ComponentScope.REQUIRED
    for words in (words for extra in OF_USERS for words in extras[extra]):
        yield canonicalize_name(Requirement(words).name), ComponentScope.OPTIONAL


def bill() -> Bom:
    """Return the bill for the version in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    licences, versions = LicenseFactory(), locked()
    package = Component(
        name=project["name"],
        version=project["version"],
        type=ComponentType.APPLICATION,
        licenses=[licences.make_from_string(project["license"])],
        purl=PackageURL("pypi", name=project["name"], version=project["version"]),
        bom_ref=project["name"],
    )
    parts = []
    scopes = dict(reversed(list(needed(project["dependencies"], project["optional-dependencies"]))))
    for name, scope in sorted(scopes.items()):
        parts.append(_part("pypi", name, versions[name], scope=scope))
    for name, licence in LICENCES.items():
        parts.append(
            _part("generic", name, versions.get(name), licenses=[licences.make_from_string(licence)])
        )
    vendored = json.loads((ROOT / "spqfmt/pages/vendored/manifest.json").read_text(encoding="utf-8"))
    for name, entry in vendored.items():
        found = base64.b64decode(entry["integrity"].removeprefix("sha512-")).hex()
        hashes = [HashType(alg=HashAlgorithm.SHA_512, content=found)]
        parts.append(
            _part("npm", name, entry["version"], hashes=hashes, licenses=[licences.make_from_string("ISC")])
        )
    bom = Bom(components=parts)
    bom.metadata.component = package
    bom.register_dependency(package, parts)
    return bom


def _part(kind: str, name: str, version: str | None, **more: Any) -> Component:
    purl = PackageURL(kind, name=name, version=version)
    about = {"name": name, "version": version, "purl": purl, "bom_ref": str(purl), **more}
    return Component(type=ComponentType.LIBRARY, **about)


def main() -> int:
    """Write the bill, which must be valid by CycloneDX's own schema."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    text = JsonV1Dot6(bill()).output_as_string(indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise SystemExit(f"not CycloneDX: {wrong}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    print(f"{out}: {len(json.loads(text)['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
