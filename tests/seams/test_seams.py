"""A codec is one module, a scheme is one, or two with products; methods are one: all else finds them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spqfmt.loaders.schemes.registry import PRODUCTS
from spqfmt.schemes.registry import SCHEMES
from spqfmt.schemes.sides import PackedScheme

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
