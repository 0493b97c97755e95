"""A codec, method or source is one module, a scheme one, or two with products: all else finds them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spqfmt.cli.pack import pack
from spqfmt.loaders.schemes.registry import PRODUCTS
from spqfmt.quantize.registry import METHODS
from spqfmt.schemes.registry import SCHEMES
from spqfmt.schemes.sides import PackedScheme

ROOT = Path(__file__).resolve().parents[2]
RECIPES = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Recipes")[1]
SCRIPT = Path(__file__).with_name("with_added.py")


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            "codec",
            {
                "codecs": ["deflate", "deflate+raw"],
                "schemes": ["dense", "uniform"],
                "packed": 16,
                "on device": 16,
            },
        ),
        ("scheme", {"codecs": ["rans", "raw"], "schemes": ["dense", "halves"], "packed": 16, "on device": 0}),
        (
            "plain",
            {"codecs": ["rans", "raw"], "schemes": ["dense", "plain_halves"], "packed": 0, "on device": 0},
        ),
        (
            "source",
            {
                "notes": [
                    "2 tensors are codes in the source (int8 by rows): rtn has quantized again what they stand for"
                ]
            },
        ),
    ],
)
def test_what_is_added_in_a_module_of_its_own_works_everywhere(
    tmp_path: Path, case: str, expected: dict[str, Any]
) -> None:
    """pack, inspect, plan, verify, read, load decoded, packed and on a device, repack, unpack."""
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "model"), case],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout) == expected


def test_schemes_with_sides_are_those_with_products() -> None:
    assert {name for name, scheme in SCHEMES.items() if isinstance(scheme, PackedScheme)} == set(PRODUCTS)


def test_the_help_of_pack_names_every_method() -> None:
    """By hand: a registry of methods would import torch for `--help`."""
    [option] = [param for param in pack.params if param.name == "method"]
    words = set(re.findall(r"\w+", option.help or ""))  # type: ignore[attr-defined]
    assert METHODS.keys() <= words


def test_the_recipe_of_a_residency_state_names_what_knows_the_states() -> None:
    """Whatever tells states apart names some of them."""
    [recipe] = re.findall(r"\*\*A residency state\.\*\*.*?\n\n", RECIPES, flags=re.DOTALL)
    named = set(re.findall(r"`(spqfmt/[\w./]+)`", recipe))
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for suffix in ("py", "js", "html")
        for path in (ROOT / "spqfmt").rglob(f"*.{suffix}")
    }
    known = {
        path for path, text in texts.items() if '"compressed"' in text and re.search('"(disk|host)"', text)
    }
    assert known - {"spqfmt/bench/tokens/configurations.py"} <= named  # there they are names of rows


@pytest.mark.parametrize("path", re.findall(r"`((?:spqfmt|spec|tests|tools|docs)/[\w./]+)`", RECIPES))
def test_files_that_recipes_name_are_there(path: str) -> None:
    assert (ROOT / path).exists() or Path(path).stem == "NAME"
