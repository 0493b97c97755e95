"""One Chromium for all tests of pages, and pages to look at."""

import os
from collections.abc import Iterator
from pathlib import Path

import files
import pytest
from browser import MISSING, Browser

from spqfmt.pages.inspect import inspect_page
from spqfmt.reading.measure import measure_file
from spqfmt.reading.report import inspect_file
from spqfmt.residency.rates import Rates


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A Chromium that runs until the session ends."""
    if MISSING is not None:
        if os.environ.get("CI"):
            pytest.fail(f"CI must run the tests of pages: {MISSING}")
        pytest.skip(MISSING)
    with Browser() as found:
        yield found


@pytest.fixture(scope="session")
def rates() -> Rates:
    """Of a machine with a slow disk."""
    return Rates(read=1e8, compute=5e9, codecs={"raw": 8e9, "rans": 2e9, "zstd": 1e9})


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file."""
    return files.write_model(tmp_path_factory.mktemp("file") / "small.spq")


@pytest.fixture(scope="session")
def page(model: Path, rates: Rates) -> Path:
    """Its page, every tensor measured."""
    path = model.with_suffix(".html")
    path.write_text(inspect_page(measure_file(model, inspect_file(model)), model, rates), "utf-8")
    return path


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory, rates: Rates) -> Path:
    """The page of a file whose own name, and one of whose tensors', would be markup."""
    path = files.write_model(
        tmp_path_factory.mktemp("hostile") / "<b onclick=alert(2)>&.spq", outside=files.HOSTILE
    )
    page = path.with_name("page.html")
    page.write_text(inspect_page(measure_file(path, inspect_file(path)), path, rates), "utf-8")
    return page
