"""zstd on a device by nvCOMP: without the package, without a driver, with a batch that fails, and when all is well.

There is no GPU here: a stand-in keeps to the documented interface of nvidia-nvcomp 6 (as_arrays over one buffer with
offsets and sizes, Codec.decode into a batch). Where the real package is installed, it is asked too.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from device_support import RATES, plan_of

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.errors import BackendError, CorruptError
from spqfmt.kernels.choose import kernels_for
from spqfmt.kernels.nvcomp import NvcompZstd
from spqfmt.loaders.device import DeviceWeights, SimulatedDevice
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.schemes.uniform import Uniform

CPU = torch.device("cpu")
ROWS, COLUMNS = 256, 300  # two frames, the second one short
NO_DRIVER = (
    "CUDA Runtime API failure: CUDA driver version is insufficient for CUDA runtime version : code=1000."
)


class _Batch:
    def __init__(self, buffer: torch.Tensor, offsets: list[int], sizes: list[int]) -> None:
        assert buffer.dtype == torch.uint8
        assert all(0 <= o and o + s <= buffer.numel() for o, s in zip(offsets, sizes, strict=True))
        self.parts = [buffer[o : o + s] for o, s in zip(offsets, sizes, strict=True)]
        self.offsets = offsets
        self.buffer_sizes = sizes


class _Codec:
    """What nvCOMP does with RAW zstd, done on the CPU."""

    def __init__(self, owner: Any, **options: Any) -> None:
        assert options.keys() == {"algorithm", "bitstream_kind", "device_id", "cuda_stream"}
        assert (options["algorithm"], options["bitstream_kind"]) == ("Zstd", "raw")
        self.owner = owner

    def decompression_config(self, source: _Batch) -> object:
        assert all(offset % 16 == 0 for offset in source.offsets)
        self.owner.n_configurations += 1
        return len(source.parts)

    def decode(self, source: _Batch, *, out: _Batch, decompression_config: object) -> _Batch:
        assert decompression_config == len(source.parts)
        self.owner.n_batches += 1
        if self.owner.fails:
            raise RuntimeError("nvcomp: a batch\n failed")
        for frame, target in zip(source.parts, out.parts, strict=True):
            raw = zstandard.ZstdDecompressor().decompress(
                frame.numpy().tobytes(), max_output_size=target.numel()
            )
            target[: len(raw)].copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
        if self.owner.shortens:
            return SimpleNamespace(buffer_sizes=[1] * len(out.parts))  # type: ignore[return-value]
        return out


@pytest.fixture
def nvcomp(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, imported as the package would be."""
    module = ModuleType("nvidia.nvcomp")
    state: Any = module
    state.n_batches = state.n_configurations = 0
    state.fails = state.shortens = False
    state.BitstreamKind = SimpleNamespace(RAW="raw")
    state.as_arrays = lambda buffer, offsets, sizes, cuda_stream: _Batch(buffer, offsets, sizes)
    state.Codec = lambda **options: _Codec(state, **options)
    parent = ModuleType("nvidia")
    parent.nvcomp = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvidia", parent)
    monkeypatch.setitem(sys.modules, "nvidia.nvcomp", module)
    return state


@pytest.fixture
def stored(write_tensors: Callable[..., Path], generator: Any) -> tuple[Path, torch.Tensor]:
    """Two tensors in zstd chunks, and the first one's codes."""
    tensors, codes = {}, []
    for name in ("a", "b"):
        codes.append(generator.normal(0, 9, (ROWS, COLUMNS)).astype(np.int8))
        tensors[name] = (Uniform(codes[-1], np.float32(1), "i8").encode(), (ROWS, COLUMNS))
    path = write_tensors(tensors, chunk_bytes=1 << 20, codec="zstd")
    with Reader(path) as reader:
        assert {
            p.codec for r in reader.index.tensors for c in r.by_role["codes"].chunks for p in c.planes
        } == {wire.CODEC_ZSTD}
    return path, torch.from_numpy(codes[0]).float()


def engine_with(path: Path, zstd: Any, residency: str = "disk") -> Any:
    reader = Reader(path)
    plan = plan_of([reader], residency, part_bytes=1 << 12, zstd_on_device=zstd is not None)
    device = SimulatedDevice(RATES, capacity_bytes=plan.held_bytes)
    decoder = Decoder(kernels_for(CPU, "torch"), zstd)
    return DeviceWeights(plan, [reader], torch.bfloat16, device, decoder)


def rows_of(engine: Any, name: str = "a") -> torch.Tensor:
    """The matrix, transposed, as products with the unit vectors."""
    y: torch.Tensor = engine.multiply(name, torch.eye(COLUMNS), None, int8_activations=False)
    return y


@pytest.mark.parametrize("residency", ["decoded", "compressed", "host", "disk"])
def test_frames_are_decoded_on_the_device_in_one_batch_a_chunk(
    nvcomp: Any, stored: tuple[Path, torch.Tensor], residency: str
) -> None:
    path, codes = stored
    zstd = NvcompZstd(CPU)
    engine = engine_with(path, zstd, residency)
    for _ in range(2):
        assert torch.equal(rows_of(engine), codes.t())
        rows_of(engine, "b")
    assert zstd.n_fallbacks == 0
    assert nvcomp.n_batches >= (2 if residency == "decoded" else 4)
    assert nvcomp.n_configurations == 1  # both chunks have the same frames
    engine.close()


def test_a_batch_that_fails_is_decoded_on_the_cpu(nvcomp: Any, stored: tuple[Path, torch.Tensor]) -> None:
    path, codes = stored
    zstd = NvcompZstd(CPU)
    nvcomp.fails = True
    engine = engine_with(path, zstd)
    message = r"^nvCOMP failed, the CPU decodes instead: nvcomp: a batch failed$"
    with pytest.warns(RuntimeWarning, match=message):
        found = rows_of(engine)
    assert torch.equal(found, codes.t())
    assert zstd.n_fallbacks >= 1
    nvcomp.fails = False
    assert torch.equal(rows_of(engine), codes.t())
    engine.close()


def test_sizes_that_are_wrong_are_a_failure_too(nvcomp: Any, stored: tuple[Path, torch.Tensor]) -> None:
    path, codes = stored
    zstd = NvcompZstd(CPU)
    nvcomp.shortens = True
    engine = engine_with(path, zstd)
    with pytest.warns(RuntimeWarning, match="frames of other sizes"):
        found = rows_of(engine)
    assert torch.equal(found, codes.t())
    engine.close()


def test_what_neither_decodes_names_the_tensor(
    nvcomp: Any, stored: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checksum fits, the frame does not: as one who forges a file would make it."""
    path, _ = stored
    with Reader(path) as reader:
        plane = reader.index.by_name["b"].by_role["codes"].chunks[0].planes[0]
    data = bytearray(path.read_bytes())
    middle = plane.offset + plane.stored_bytes // 3
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(bytes(data))
    monkeypatch.setattr("spqfmt.kernels.native.crc32", lambda chunk, value=0: _Any())
    with (
        pytest.warns(RuntimeWarning, match="nvCOMP failed"),
        pytest.raises(CorruptError, match=r"tensors\.spq: tensor 'b': zstd frame 0"),
    ):
        engine_with(path, NvcompZstd(CPU), "decoded")


class _Any(int):
    """Equal to every checksum."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def test_the_checksum_is_checked_before_anything_is_sent(
    nvcomp: Any, stored: tuple[Path, torch.Tensor]
) -> None:
    path, _ = stored
    with Reader(path) as reader:
        plane = reader.index.by_name["a"].by_role["codes"].chunks[0].planes[0]
    data = bytearray(path.read_bytes())
    data[plane.offset + plane.stored_bytes // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptError, match="checksum"):
        engine_with(path, NvcompZstd(CPU), "decoded")
    assert nvcomp.n_batches == 0


def test_without_it_the_host_decodes(stored: tuple[Path, torch.Tensor]) -> None:
    path, codes = stored
    engine = engine_with(path, None)
    assert torch.equal(rows_of(engine), codes.t())
    engine.close()


def test_without_the_package_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvcomp", None)
    with pytest.raises(BackendError, match=r"pip install 'spqfmt\[nvcomp\]'"):
        NvcompZstd(CPU)


def test_without_a_driver_it_says_so(nvcomp: Any) -> None:
    def codec(**options: Any) -> None:
        raise RuntimeError(NO_DRIVER)

    nvcomp.Codec = codec
    with pytest.raises(BackendError, match=r"^nvCOMP cannot run here: CUDA Runtime API failure: CUDA driver"):
        NvcompZstd(CPU)


def _installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.nvcomp") is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.skipif(not _installed(), reason="nvidia-nvcomp is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_real_package_without_a_driver_says_so() -> None:
    with pytest.raises(BackendError, match=r"^nvCOMP (cannot run here|is not there)"):
        NvcompZstd(CPU)
