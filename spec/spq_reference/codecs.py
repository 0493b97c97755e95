"""FORMAT.md 4: the codecs."""

import zstandard

from spq_reference.errors import Corrupt, Unsupported, require, within

RAW, ZSTD, RANS = 0, 1, 2


def decode(codec: int, stored: bytes, raw_bytes: int) -> bytes:
    """Return the raw bytes of a chunk's plane."""
    # > A codec turns the `raw_bytes` of a chunk's plane into `stored_bytes` and back. `raw_bytes` is known from the
    # > index.
    if codec == RAW:
        # > The stored bytes are the raw bytes; `stored_bytes` MUST equal `raw_bytes`.
        require(len(stored) == raw_bytes, "a raw chunk of another size")
        return stored
    if codec == ZSTD:
        return decode_zstd(stored, raw_bytes)
    require(codec == RANS, f"codec {codec}")
    return decode_rans(stored, raw_bytes)


def u32(data: bytes, offset: int) -> int:
    """Return the u32 at an offset."""
    return int.from_bytes(data[offset : offset + 4], "little")


def decode_zstd(stored: bytes, raw_bytes: int) -> bytes:
    """Decode a chunk of 4.2."""
    # > The raw bytes are cut into frames of 65,536 bytes, the last one holding the rest. The chunk begins with one
    # > `u32` for each frame: the end of the frame, counted from the start of the chunk.
    n_frames = -(-raw_bytes // 65536)
    begin = 4 * n_frames
    require(begin <= len(stored), "zstd: no room for the directory")
    raw = bytearray()
    for i in range(n_frames):
        # > The first frame begins after this directory, each later one at the end of the one before it; the last end
        # > MUST equal `stored_bytes`.
        end = u32(stored, 4 * i)
        require(begin < end <= len(stored), "zstd: end of a frame")
        raw += decode_frame(stored[begin:end], min(65536, raw_bytes - len(raw)))
        begin = end
    require(begin == len(stored), "zstd: last end is not the chunk's")
    return bytes(raw)


def decode_frame(frame: bytes, raw_bytes: int) -> bytes:
    """Decode one zstd frame, and nothing else, that must hold raw_bytes."""
    # > Each frame is exactly one RFC 8878 frame (not a skippable one) without dictionary and without checksum, with its
    # > content size present and equal to the frame's raw bytes, and with a window that section 9 allows.
    try:
        parameters = zstandard.get_frame_parameters(frame)
        require(frame[:4] == bytes.fromhex("28b52ffd"), "zstd: not a frame")
        require(parameters.dict_id == 0, "zstd: a dictionary")
        require(not parameters.has_checksum, "zstd: a checksum")
        require(parameters.content_size == raw_bytes, "zstd: content size")
        check_window(parameters.window_size, raw_bytes)
        raw = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt(f"zstd: {error}") from error
    require(len(raw) == raw_bytes, "zstd: size")
    return raw


def check_window(window_bytes: int, content_bytes: int) -> None:
    """Check what a zstd frame asks of a decoder's memory."""
    # > The window of a zstd frame (RFC 8878, 3.1.1.1.2) MUST NOT pass `max_zstd_window_bytes` and the frame's content
    # > size both.
    within(window_bytes, max(8388608, content_bytes), "window of a zstd frame")


def decode_rans(stored: bytes, raw_bytes: int) -> bytes:
    """Decode a chunk of 4.3."""
    # > A chunk begins with 4 bytes:
    require(len(stored) >= 4, "rans: no header")
    coder, kind, block_log2, symbol = stored[:4]
    # > A coder that is not known is unsupported, not corrupt.
    if coder != 1:
        raise Unsupported(f"rans coder {coder}")
    # > | 1 | u8 | kind: 0 blocks, 1 constant |
    # > | 2 | u8 | block_log2: 7 to 16 for kind 0, 0 for kind 1 |
    # > | 3 | u8 | symbol for kind 1, 0 for kind 0 |
    require(kind <= 1, "rans: kind")
    if kind == 1:
        # > A chunk of kind 1 is these 4 bytes alone; every raw byte equals `symbol`.
        require(block_log2 == 0 and len(stored) == 4, "rans: constant chunk")
        return bytes([symbol]) * raw_bytes
    require(7 <= block_log2 <= 16 and symbol == 0, "rans: header of blocks")
    require(len(stored) >= 8, "rans: no table")
    first, last = stored[4], stored[5]
    table_bytes = int.from_bytes(stored[6:8], "little")
    # > | 5 | u8 | last_symbol, greater than first_symbol |
    require(first < last, "rans: last_symbol")
    require(8 + table_bytes <= len(stored), "rans: table_bytes")
    freq = frequencies(stored[8 : 8 + table_bytes], first, last)
    # > | | zero bytes | up to a multiple of 4 |
    # > | | u32 each | block_end of each block |
    directory = -(-(8 + table_bytes) // 4) * 4
    require(not any(stored[8 + table_bytes : directory]), "rans: padding of the table")
    # > The raw bytes are cut into blocks of `2^block_log2` bytes, the last one holding the rest. `block_end` of a block
    # > counts from the start of the chunk. Block 0 begins after the directory, each later block at the end of the one
    # > before it.
    n_blocks = -(-raw_bytes >> block_log2)
    begin = directory + 4 * n_blocks
    require(begin <= len(stored), "rans: no room for the directory")
    # > `cum[s]` is the sum of the frequencies of the symbols below `s`.
    cum = [sum(freq[:s]) for s in range(256)]
    symbol_of_slot = [s for s in range(256) for _ in range(freq[s])]
    raw = bytearray()
    for i in range(n_blocks):
        # > Each block_end MUST be a multiple of 4 and at least 128 more than the block's begin; the last MUST equal
        # > `stored_bytes`.
        end = u32(stored, directory + 4 * i)
        require(end % 4 == 0 and begin + 128 <= end <= len(stored), "rans: block_end")
        block_raw_bytes = min(1 << block_log2, raw_bytes - len(raw))
        raw += decode_block(stored[begin:end], block_raw_bytes, freq, cum, symbol_of_slot)
        begin = end
    require(begin == len(stored), "rans: last block_end is not the chunk's")
    return bytes(raw)


def frequencies(table: bytes, first: int, last: int) -> list[int]:
    """Read the frequency table: 256 frequencies that add up to 4096."""
    # > A bit stream, least significant bit of each byte first, fields least significant bit first.
    stream, n_bits, position = int.from_bytes(table, "little"), 8 * len(table), 0
    # > All other symbols have frequency 0.
    freq = [0] * 256
    for s in range(first, last + 1):
        # > For each symbol from first_symbol to last_symbol: a class `L` of 4 bits, at most 12; the frequency is 0 for
        # > `L = 0`, 1 for `L = 1`, else `2^(L-1)` plus the next `L - 1` bits.
        L = stream >> position & 15
        position += 4
        require(L <= 12, "rans: class of a frequency")
        if L:
            freq[s] = (1 << (L - 1)) + (stream >> position & ((1 << (L - 1)) - 1))
            position += L - 1
    # > table_bytes MUST be the number of bytes that the fields occupy; unused bits of the last byte MUST be zero.
    require(-(-position // 8) * 8 == n_bits, "rans: table_bytes")
    require(stream >> position == 0, "rans: unused bits of the table")
    # > The frequencies of first_symbol and last_symbol MUST NOT be 0, none may pass 4095, and they MUST add up to 4096.
    require(freq[first] > 0 and freq[last] > 0, "rans: first or last frequency is 0")
    require(max(freq) <= 4095 and sum(freq) == 4096, "rans: sum of the frequencies")
    return freq


def decode_block(
    block: bytes, raw_bytes: int, freq: list[int], cum: list[int], symbol_of_slot: list[int]
) -> bytes:
    """Decode one block."""
    # > A block holds 32 states (`u32`, each at least 65,536), one for each lane, then words (`u16`), then one zero
    # > `u16` where that is needed to reach a multiple of 4.
    states = [u32(block, 4 * lane) for lane in range(32)]
    require(min(states) >= 65536, "rans: state")
    words = [int.from_bytes(block[i : i + 2], "little") for i in range(128, len(block), 2)]
    n_groups = -(-raw_bytes // 128)
    symbols = bytearray(128 * n_groups)
    used = 0
    # > For each step in order, for each lane in ascending order, with `x` the lane's state:
    for step in range(4 * n_groups):
        for lane in range(32):
            x = states[lane]
            # > 1. `slot = x % 4096`; the symbol is the `s` with `cum[s] <= slot < cum[s] + freq[s]`.
            slot = x % 4096
            s = symbol_of_slot[slot]
            # > 2. `x = freq[s] * floor(x / 4096) + slot - cum[s]`.
            x = freq[s] * (x // 4096) + slot - cum[s]
            # > 3. If `x < 65536`, then `x = x * 65536 + w`, where `w` is the next word of the block.
            if x < 65536:
                require(used < len(words), "rans: words end early")
                x = x * 65536 + words[used]
                used += 1
            states[lane] = x
            # > Symbol `i` of a block belongs to group `i / 128` (rounded down), lane `(i % 128) / 4` (rounded down) and
            # > step `4 * group + i % 4`.
            symbols[128 * (step // 4) + 4 * lane + step % 4] = s
    # > After the last step every state MUST equal 65,536, and all words MUST be used; at most one zero word of padding
    # > is left.
    require(states == [65536] * 32, "rans: final state")
    require(words[used:] in ([], [0]), "rans: words are left")
    # > A last group that is not full is coded as a full one; the decoder drops the symbols past the block's end, which
    # > may be any symbols of non-zero frequency.
    return bytes(symbols[:raw_bytes])
