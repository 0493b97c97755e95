"""What all tests share: the Hypothesis profiles, the marker `every_backend`, source models made in memory."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from spqfmt.importers.base import Asset, SourceModel, SourceTensor
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


@pytest.fixture(autouse=True)
def as_fast_in_every_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded does not depend on what the machine that tests is fast with."""
    monkeypatch.setattr("spqfmt.kernels.products.product_seconds", lambda _: 1.0)


@pytest.fixture
def source_tensor() -> Callable[..., SourceTensor]:
    """Makes a tensor of a source; see `_source_tensor`."""
    return _source_tensor


def _source_tensor(
    name: str,
    value: torch.Tensor,
    *,
    segment: str = "layer",
    role: str = "linear",
    transposed: bool = False,
    tied_to: str | None = None,
) -> SourceTensor:
    """A tensor whose `load` returns `value`."""
    names = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64"}
    return SourceTensor(
        name=name,
        shape=tuple(value.shape),
        dtype=names[value.dtype],
        segment=segment,
        role=role,  # type: ignore[arg-type]
        transposed=transposed,
        tied_to=tied_to,
        load=value.clone,
    )


@pytest.fixture
def make_model() -> Callable[..., SourceModel]:
    """A model of two layers with a tied head, a scalar, an empty tensor and an odd width."""

    def make(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> SourceModel:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).mul(0.02).to(dtype)

        embedding = normal(300, 37)
        tensors = [_source_tensor("embed", embedding, segment="embed", role="embedding")]
        for layer in range(2):
            at = f"layers.{layer}"
            tensors += [
                _source_tensor(f"{at}.norm", normal(37), segment=at, role="other"),
                _source_tensor(f"{at}.up", normal(129, 37), segment=at),
                _source_tensor(f"{at}.down", normal(37, 129), segment=at, transposed=True),
                _source_tensor(f"{at}.count", torch.tensor(7), segment=at, role="other"),
                _source_tensor(f"{at}.none", normal(0, 4), segment=at, role="other"),
            ]
        tensors.append(_source_tensor("head", embedding, segment="head", role="head", tied_to="embed"))
        assets = (Asset("config.json", b'{"model_type": "none"}'), Asset("empty.txt", b""))
        return SourceModel(tuple(tensors), assets, "None", "memory")

    return make


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny model of a name; made once a session, not to be changed."""
    import tiny  # most tests need no transformers

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny.build(name, made[name])
        return made[name]

    return folder
