"""Codec zstd: independent frames of 64 KiB behind a directory (FORMAT.md 4.2), for GPUs to decode side by side."""

import threading

import numpy as np
import zstandard
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.errors import CorruptError, LimitError

FRAME_BYTES = wire.ZSTD_FRAME_RAW_BYTES

# Codes have no matches worth finding, text (an asset) has.
_LITERALS = zstandard.ZstdCompressionParameters(
    window_log=17, hash_log=6, chain_log=6, search_log=1, min_match=7,
    strategy=zstandard.STRATEGY_FAST, write_content_size=True, write_checksum=False,
)  # fmt: skip
_MATCHES = zstandard.ZstdCompressionParameters.from_level(19, write_content_size=True, write_checksum=False)


class _Contexts(threading.local):
    """A zstd context must not serve two threads at once."""

    def __init__(self) -> None:
        self.literals = zstandard.ZstdCompressor(compression_params=_LITERALS)
        self.matches = zstandard.ZstdCompressor(compression_params=_MATCHES)
        self.decompressor = zstandard.ZstdDecompressor()


class ZstdCodec:
    """RFC 8878 frames of at most 64 KiB."""

    name = "zstd"
    id = wire.CODEC_ZSTD
    feature = "zstd"
    is_native = False
    is_order0 = False
    device_rate = "zstd"

    def __init__(self) -> None:
        self._contexts = _Contexts()

    def encode(self, raw: Bytes) -> bytes:
        """Frames tuned for codes: literals only."""
        return self._encode(raw, self._contexts.literals)

    def encode_text(self, raw: Bytes) -> bytes:
        """Frames tuned for text: level 19."""
        return self._encode(raw, self._contexts.matches)

    @staticmethod
    def _encode(raw: Bytes, compressor: zstandard.ZstdCompressor) -> bytes:
        view = memoryview(raw.data)
        frames = [compressor.compress(view[i : i + FRAME_BYTES]) for i in range(0, raw.size, FRAME_BYTES)]
        ends = 4 * len(frames) + np.cumsum([len(frame) for frame in frames])
        return ends.astype("<u4").tobytes() + b"".join(frames)

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Decode every frame into its place in `out`."""
        view = memoryview(stored.data)
        for number, (begin, end) in enumerate(frames(stored, out.size).tolist()):
            target = out[number * FRAME_BYTES : (number + 1) * FRAME_BYTES]
            try:
                decompressed = self._contexts.decompressor.decompress(
                    view[begin:end], max_output_size=target.size, allow_extra_data=False
                )
            except zstandard.ZstdError as error:
                raise CorruptError(f"zstd frame {number}: {error}") from error
            if len(decompressed) != target.size:
                raise CorruptError(f"zstd frame {number} decodes to {len(decompressed)} bytes")
            target[:] = np.frombuffer(decompressed, np.uint8)

    def overhead_bytes(self, head: bytes, stored_bytes: int, raw_bytes: int) -> int:
        """The directory of frames."""
        return min(stored_bytes, 4 * -(-raw_bytes // FRAME_BYTES))


def frames(stored: Bytes, raw_bytes: int) -> NDArray[np.int64]:
    """Begin and end of each frame of a chunk of `raw_bytes`, int64[n_frames, 2]. Raises CorruptError.

    The directory and what the frames say of themselves are checked, not what they hold.
    """
    n_frames = -(-raw_bytes // FRAME_BYTES)
    if stored.size < 4 * n_frames:
        raise CorruptError("zstd chunk is shorter than its directory")
    ends = np.frombuffer(stored[: 4 * n_frames].tobytes(), "<u4")
    view, begin = memoryview(stored.data), 4 * n_frames
    found = np.empty((n_frames, 2), np.int64)
    for number, end in enumerate(ends.tolist()):
        if not begin < end <= stored.size:
            raise CorruptError(f"zstd frame {number} ends outside its chunk")
        _check_header(view[begin:end], min(FRAME_BYTES, raw_bytes - number * FRAME_BYTES), number)
        found[number] = begin, end
        begin = end
    if begin != stored.size:
        raise CorruptError("bytes are left after the last zstd frame")
    return found


def _check_header(frame: memoryview, raw_bytes: int, number: int) -> None:
    try:
        header = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as error:
        raise CorruptError(f"zstd frame {number}: {error}") from error
    if header.content_size != raw_bytes or header.dict_id or header.has_checksum:
        raise CorruptError(f"zstd frame {number} does not hold {raw_bytes} bytes plainly")
    check_window(header)


def check_window(header: zstandard.FrameParameters) -> None:
    """Raise LimitError where a frame asks a decoder for more memory than the format lets it (FORMAT.md section 9)."""
    if header.window_size > max(wire.MAX_ZSTD_WINDOW_BYTES, header.content_size):
        raise LimitError(f"a zstd frame asks for a window of {header.window_size} bytes")


CODEC = ZstdCodec()
