"""Codec zstd: independent frames of 64 KiB behind a directory (FORMAT.md 4.2), for GPUs to decode side by side."""

import threading
from collections.abc import Callable

import numpy as np
import zstandard
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.errors import CorruptError, LimitError, refused_by_zstd

FRAME_BYTES = wire.ZSTD_FRAME_RAW_BYTES

# Codes have no matches worth finding, text (an asset) has. A tokenizer takes twice the time at level 19, for 1 % less.
_LITERALS = zstandard.ZstdCompressionParameters(
    window_log=17, hash_log=6, chain_log=6, search_log=1, min_match=7,
    strategy=zstandard.STRATEGY_FAST, write_content_size=True, write_checksum=False,
)  # fmt: skip
_MATCHES = zstandard.ZstdCompressionParameters.from_level(16, write_content_size=True, write_checksum=False)


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
    constant_bytes = 0
    device_rate = "zstd"

    def __init__(self) -> None:
        self._contexts = _Contexts()

    def encode(self, raw: Bytes) -> bytes:
        """Frames tuned for codes: literals only."""
        return self._encode(raw, self._contexts.literals)

    def encode_text(self, raw: Bytes) -> bytes:
        """Frames tuned for text: level 16."""
        return self._encode(raw, self._contexts.matches)

    @staticmethod
    def _encode(raw: Bytes, compressor: zstandard.ZstdCompressor) -> bytes:
        view = memoryview(raw.data)
        frames = [compressor.compress(view[i : i + FRAME_BYTES]) for i in range(0, raw.size, FRAME_BYTES)]
        ends = 4 * len(frames) + np.cumsum([len(frame) for frame in frames])
        return ends.astype("<u4").tobytes() + b"".join(frames)

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Decode every frame into its place in `out`."""
        self.parts(stored, out.size).read(0, out)

    def parts(self, stored: Bytes, raw_bytes: int) -> "ZstdParts":
        """Give parts of a chunk, decoded frame by frame."""
        return ZstdParts(stored, raw_bytes, self.decompress)

    def overhead_bytes(self, head: bytes, stored_bytes: int, raw_bytes: int) -> int:
        """Return the size of the directory of frames."""
        return min(stored_bytes, 4 * -(-raw_bytes // FRAME_BYTES))

    def decompress(self, frame: memoryview, raw_bytes: int, number: int) -> bytes:
        """What one frame holds. Raises CorruptError that names its number."""
        try:
            decompressed = self._contexts.decompressor.decompress(
                frame, max_output_size=raw_bytes, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise refused_by_zstd(f"zstd frame {number}", error) from error
        if len(decompressed) != raw_bytes:
            raise CorruptError(f"zstd frame {number} decodes to {len(decompressed)} bytes")
        return decompressed


class ZstdParts:
    """A chunk whose frames are decoded when something of them is wanted."""

    constant: int | None = None

    def __init__(
        self, stored: Bytes, raw_bytes: int, decompress: Callable[[memoryview, int, int], bytes]
    ) -> None:
        self._view = memoryview(stored.data)
        self._raw_bytes = raw_bytes
        self._frames = frames(stored, raw_bytes)
        self._decompress = decompress

    def read(self, first: int, out: Bytes) -> None:
        """Whole frames, and of the first and the last what is wanted."""
        stop = first + out.size
        for number in range(first // FRAME_BYTES, -(-stop // FRAME_BYTES)):
            begin, end = self._frames[number].tolist()
            at = number * FRAME_BYTES
            raw_bytes = min(FRAME_BYTES, self._raw_bytes - at)
            frame = np.frombuffer(self._decompress(self._view[begin:end], raw_bytes, number), np.uint8)
            low, high = max(first, at), min(stop, at + raw_bytes)
            out[low - first : high - first] = frame[low - at : high - at]


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
        raise refused_by_zstd(f"zstd frame {number}", error) from error
    if header.content_size != raw_bytes or header.dict_id or header.has_checksum:
        raise CorruptError(f"zstd frame {number} does not hold {raw_bytes} bytes plainly")
    check_window(header)


def check_window(header: zstandard.FrameParameters) -> None:
    """Raise LimitError where a frame asks a decoder for more memory than the format lets it (FORMAT.md section 9)."""
    if header.window_size > max(wire.MAX_ZSTD_WINDOW_BYTES, header.content_size):
        raise LimitError(f"a zstd frame asks for a window of {header.window_size} bytes")


CODEC = ZstdCodec()
