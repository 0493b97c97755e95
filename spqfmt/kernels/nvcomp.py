"""zstd chunks decoded on a GPU by nvCOMP, in batches of frames, as RAW: its own headers are in no file of ours.

Frames are independent RFC 8878 frames of at most 64 KiB (FORMAT.md 4.2), checked against the chunk's CRC-32 on the host
before they are sent. Where nvCOMP fails with a batch, the batch is decoded on the CPU.

The Python package is nvidia-nvcomp-cu12 or -cu13, version 6. It is loaded without a driver, and then every call raises.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.errors import BackendError, CorruptError, refused_by_zstd


@dataclass(eq=False)
class ZstdFrames:
    """The frames of one chunk in the bytes that were sent: int64[n, 2], where each begins and how long it is.

    They decode to `raw_bytes` bytes from `out_offset` on. `proven`: decoded once, and found to have the right sizes.
    """

    frames: NDArray[np.int64]
    out_offset: int
    raw_bytes: int
    proven: bool = False

    def outputs(self) -> tuple[list[int], list[int]]:
        """Where each frame's bytes go, and how many."""
        offsets = list(range(self.out_offset, self.out_offset + self.raw_bytes, wire.ZSTD_FRAME_RAW_BYTES))
        end = self.out_offset + self.raw_bytes
        return offsets, [min(wire.ZSTD_FRAME_RAW_BYTES, end - offset) for offset in offsets]


class NvcompZstd:
    """Decodes on one CUDA device. BackendError: nvCOMP is not installed, or cannot run here.

    `n_fallbacks` counts batches that the CPU had to decode.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            self._nvcomp: Any = import_module("nvidia.nvcomp")
        except ImportError as error:
            raise BackendError(
                f"nvCOMP is not there ({error}): pip install 'spqfmt[nvcomp]', or leave its backend out"
            ) from error
        self.n_fallbacks = 0
        self._device = device
        self._codecs: dict[int, Any] = {}
        self._configurations: dict[tuple[int, int], Any] = {}
        try:
            self._codec(_stream(device))
        except Exception as error:
            raise BackendError(f"nvCOMP cannot run here: {_one_line(error)}") from error

    def decode(self, sent: torch.Tensor, jobs: Sequence[ZstdFrames], out: torch.Tensor) -> None:
        """All frames of `sent` into `out`, uint8 on the device, launched on the current stream.

        It waits for the stream where chunks of so many frames, or these chunks, are decoded for the first time.
        Raises CorruptError for frames that the CPU cannot decode either.
        """
        for job in jobs:
            try:
                self._decode(sent, job, out)
            except Exception as error:  # noqa: BLE001  # whatever it is, the CPU can decode
                if not self.n_fallbacks:
                    warnings.warn(
                        f"nvCOMP failed, the CPU decodes instead: {_one_line(error)}",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                self.n_fallbacks += 1
                decode_on_cpu(sent, job, out)
                job.proven = True

    def _decode(self, sent: torch.Tensor, job: ZstdFrames, out: torch.Tensor) -> None:
        stream = _stream(self._device)
        codec = self._codec(stream)
        begins, sizes = job.frames.T.tolist()
        offsets, raw_sizes = job.outputs()
        source = self._nvcomp.as_arrays(sent, begins, sizes, cuda_stream=stream)
        target = self._nvcomp.as_arrays(out, offsets, raw_sizes, cuda_stream=stream)
        # What reading a batch's headers gives holds for every batch of frames of these sizes.
        key = stream, job.raw_bytes
        if key not in self._configurations:
            self._configurations[key] = codec.decompression_config(source)
        decoded = codec.decode(source, out=target, decompression_config=self._configurations[key])
        if not job.proven:
            if list(decoded.buffer_sizes) != raw_sizes:
                raise BackendError("frames of other sizes came out")
            job.proven = True

    def _codec(self, stream: int) -> Any:
        if stream not in self._codecs:
            self._codecs[stream] = self._nvcomp.Codec(
                algorithm="Zstd",
                bitstream_kind=self._nvcomp.BitstreamKind.RAW,
                device_id=self._device.index or 0,
                cuda_stream=stream,
            )
        return self._codecs[stream]


def decode_on_cpu(sent: torch.Tensor, job: ZstdFrames, out: torch.Tensor) -> None:
    """The same by way of the CPU; waits for the device. Raises CorruptError."""
    decompressor = zstandard.ZstdDecompressor()
    for number, ((begin, size), offset, raw_bytes) in enumerate(
        zip(job.frames.tolist(), *job.outputs(), strict=True)
    ):
        frame = sent[begin : begin + size].cpu().numpy().tobytes()
        try:
            raw = decompressor.decompress(frame, max_output_size=raw_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise refused_by_zstd(f"zstd frame {number}", error) from error
        if len(raw) != raw_bytes:
            raise CorruptError(f"zstd frame {number} decodes to {len(raw)} bytes")
        out[offset : offset + raw_bytes].copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))


def _stream(device: torch.device) -> int:
    """torch's current stream, as nvCOMP takes it; 0 where the device has none."""
    if device.type != "cuda":
        return 0
    number: int = torch.cuda.current_stream(device).cuda_stream
    return number


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
