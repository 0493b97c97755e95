"""What CI installs is locked by hashes, and the lock has what pyproject.toml and constraints.txt ask for."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
HELP = "make lock"


def _locked(path: Path) -> dict[str, list[str]]:
    """Versions by name; several where they differ by marker."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("#"):
            continue
        match = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+).* --hash=sha256:[0-9a-f]{64}", line)
        assert match is not None, f"{path.name}: {line[:80]}"
        found.setdefault(canonicalize_name(match[1]), []).append(match[2])
    return found


def test_the_lock_has_what_is_asked_for_and_torch_is_no_part_of_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(words) for words in project["dependencies"] + extras["dev"]]
    for requirement in list(wanted):
        if requirement.name == "spqfmt":
            wanted += [Requirement(words) for extra in requirement.extras for words in extras[extra]]
    locked = _locked(ROOT / "requirements" / "dev.txt")
    assert "torch" not in locked
    for requirement in wanted:
        if requirement.name not in {"torch", "spqfmt"}:
            versions = locked.get(canonicalize_name(requirement.name))
            assert versions, f"{requirement}: {HELP}"
            assert all(requirement.specifier.contains(version) for version in versions), (
                f"{requirement}: {HELP}"
            )


def test_the_lock_agrees_with_constraints_and_with_itself() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    dev = _locked(ROOT / "requirements" / "dev.txt")
    for requirement in wanted:
        if requirement.name != "torch":
            assert all(
                requirement.specifier.contains(version)
                for version in dev[canonicalize_name(requirement.name)]
            ), HELP
    for path in LOCKS:
        for name, versions in _locked(path).items():
            assert dev.get(name, versions) == versions, f"{path.name}: {name}: {HELP}"


def test_workflows_take_actions_by_their_commit() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for used in re.findall(r"uses: *(\S+)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", used), f"{path.name}: {used}"
