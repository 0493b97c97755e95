"""What all tests share: the Hypothesis profiles, and the marker `every_backend`."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from spqfmt.kernels import backend

# One profile for `make check` everywhere: the same examples on every run, so that a red run is red again; no deadline,
# since a shared two-core machine stalls for longer than any example takes. "wide" is for looking for new failures.
settings.register_profile(
    "check",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("wide", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "check"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that is marked `every_backend` runs under each that this machine has."""
    if metafunc.definition.get_closest_marker("every_backend"):
        metafunc.fixturenames.append("backend_of_test")
        metafunc.parametrize("backend_of_test", backend.available(), indirect=True)


@pytest.fixture
def backend_of_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Select the backend of a test that is marked `every_backend`."""
    with backend.use(request.param):
        yield
