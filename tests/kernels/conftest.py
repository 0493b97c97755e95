"""Data and backends that the kernels' tests share."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from spqfmt.kernels import backend, native
from spqfmt.kernels.backend import Backend

Bytes = npt.NDArray[np.uint8]

# Those that this machine passes over for a faster one of the same name are tested like the rest.
VARIANTS = [name for name in native.kernel_variants() if name not in backend.available()]


@pytest.fixture(params=[*backend.available(), *VARIANTS])
def each_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    name = request.param
    with backend.use(name if name in backend.available() else name.partition(":")[0]) as selected:
        if name in VARIANTS:
            native.select_kernels(name)
        yield selected


def gaussian(n: int) -> Bytes:
    codes = np.rint(np.random.default_rng(n).normal(0, 16, n))
    return np.clip(codes, -127, 127).astype(np.int8).view(np.uint8)


def skewed(n: int) -> Bytes:
    return (np.random.default_rng(n).geometric(0.9, n) % 256).astype(np.uint8)


def flat(n: int) -> Bytes:
    return np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8)


def two_symbols(n: int) -> Bytes:
    return np.where(np.random.default_rng(n).random(n) < 0.001, 255, 0).astype(np.uint8)


def constant(n: int) -> Bytes:
    return np.full(n, 200, np.uint8)


def changing(n: int) -> Bytes:
    """Blocks of very different cost: the cursors of a lockstep run apart."""
    data = gaussian(n)
    data[: n // 3] = 3
    return data


SOURCES: list[Callable[[int], Bytes]] = [gaussian, skewed, flat, two_symbols, constant, changing]


@pytest.fixture(params=SOURCES, ids=lambda source: str(source.__name__))
def source(request: pytest.FixtureRequest) -> Callable[[int], Bytes]:
    return request.param  # type: ignore[no-any-return]
