"""The invalid vectors of section 4 and of packed elements: chunks whose checksum is right and whose content is not."""

import struct
from collections.abc import Sequence

from spq_vectors import encode
from spq_vectors.encode import Rans
from spq_vectors.invalid import bad, small
from spq_vectors.invalid_schemes import uniform_file
from spq_vectors.valid import dense

DATA = bytes(k * k % 11 for k in range(700))
TABLE = [0] * 256
TABLE[:11] = [600, 800, 0, 500, 500, 500, 0, 0, 0, 1195, 1]


def chunk(
    name: str, clause: str, codec: int, stored: bytes, n: int = len(DATA), kind: str = "corrupt"
) -> None:
    """Put a file with this chunk of n raw bytes into INVALID."""
    bad(name, kind, clause, small(dense("weight", [n], "u8", bytes(n), encoders=[lambda _: (codec, stored)])))


def zstd() -> None:
    """Break rules of section 4.2."""
    frames = [encode.stored_frame(bytes(65536)), encode.stored_frame(DATA)]
    n = 65536 + len(DATA)
    frames[0] = encode.zstd_frame(bytes(65536))
    good = encode.zstd_chunk(frames)
    first = struct.unpack("<I", good[:4])[0]
    last = "the last end MUST equal `stored_bytes`"

    def ends(*values: int, rest: bytes = good[8:]) -> bytes:
        return struct.pack("<2I", *values) + rest

    chunk("zstd_last_end", last, 1, ends(first, len(good), rest=good[8:] + b"\0"), n)
    chunk("zstd_end_past_chunk", last, 1, ends(first, len(good) + 1), n)
    chunk("zstd_end_falls", last, 1, ends(len(good), first), n)
    chunk("zstd_end_in_directory", "The first frame begins after this directory", 1, ends(4, len(good)), n)
    chunk("zstd_no_directory", "The chunk begins with one `u32` for each frame", 1, b"\4\0\0\0", n)
    cut = "The raw bytes are cut into frames of 65,536 bytes, the last one holding the rest."
    halves = [encode.stored_frame(DATA[:150]), encode.stored_frame(DATA[150:])]
    chunk("zstd_frames_cut_elsewhere", cut, 1, encode.zstd_chunk(halves))
    shifted = [encode.zstd_frame(bytes(65535)), encode.stored_frame(b"\0" + DATA)]
    chunk("zstd_frame_size", cut, 1, encode.zstd_chunk(shifted), n)
    one = "Each frame is exactly one RFC 8878 frame (not a skippable one) without dictionary and without checksum"
    stored = encode.stored_frame(DATA)
    dictionary = stored[:4] + bytes([stored[4] | 1, 77]) + stored[5:]
    skippable = bytes.fromhex("502a4d18") + struct.pack("<I", len(DATA)) + DATA
    cases = {
        "checksum": encode.zstd_frame(DATA, checksum=True),
        "dictionary": dictionary,
        "skippable": skippable,
        "two_frames": stored + encode.zstd_frame(b""),
        "skippable_behind": stored + bytes.fromhex("502a4d18 00000000"),
        "bytes_behind": stored + b"\0",
        "cut": stored[:-1],
        "magic": b"\0" + stored[1:],
        "reserved_bit": stored[:4] + bytes([stored[4] | 8]) + stored[5:],
    }
    for name, frame in cases.items():
        chunk(f"zstd_{name}", one, 1, encode.zstd_chunk([frame]))
    size = "with its content size present and equal to the frame's raw bytes"
    chunk("zstd_no_size", size, 1, encode.zstd_chunk([encode.zstd_frame(DATA, size=False)]))
    more = stored[:5] + struct.pack("<I", 2**31) + stored[9:]
    chunk("zstd_size_2_31", size, 1, encode.zstd_chunk([more]))
    less = encode.stored_frame(DATA[:-1])
    chunk("zstd_size_less", size, 1, encode.zstd_chunk([less[:5] + struct.pack("<I", len(DATA)) + less[9:]]))


def rans_parts(
    *, freq: Sequence[int] = TABLE, table: bytes | None = None, padding: int = 0, first: int | None = None,
    last: int | None = None, block_log2: int = 8, blocks: Sequence[bytes] | None = None,
    ends: Sequence[int] | None = None, n_ends: int | None = None,
) -> bytes:  # fmt: skip
    """Return a chunk of DATA from its parts, any of which may be wrong."""
    used = [s for s in range(256) if freq[s]]
    table = encode.table_bytes(freq) if table is None else table
    size = 1 << block_log2
    if blocks is None:
        blocks = [encode.rans_block(DATA[at : at + size], TABLE, 0) for at in range(0, len(DATA), size)]
    head = bytes(
        [1, 0, block_log2, 0, used[0] if first is None else first, used[-1] if last is None else last]
    )
    head += struct.pack("<H", len(table)) + table + bytes([padding] * (-len(table) % 4))
    true_ends = []
    end = len(head) + 4 * (len(blocks) if n_ends is None else n_ends)
    for block in blocks:
        end += len(block)
        true_ends.append(end)
    ends = true_ends if ends is None else [end + change for end, change in zip(true_ends, ends, strict=True)]
    return head + struct.pack(f"<{len(ends)}I", *ends) + b"".join(blocks)


def rans_header() -> None:
    """Break the header, the constant kind and the frequency table."""
    good = Rans(8, TABLE, fill=0)(DATA)[1]
    assert good == rans_parts()

    def at(offset: int, value: int) -> bytes:
        return good[:offset] + bytes([value]) + good[offset + 1 :]

    chunk(
        "rans_coder",
        "A coder that is not known is unsupported, not corrupt.",
        2,
        at(0, 2),
        kind="unsupported",
    )
    chunk("rans_kind", "kind: 0 blocks, 1 constant", 2, at(1, 2))
    for value in (0, 6, 17):
        chunk(f"rans_block_log2_{value}", "block_log2: 7 to 16 for kind 0, 0 for kind 1", 2, at(2, value))
    chunk("rans_symbol", "symbol for kind 1, 0 for kind 0", 2, at(3, 1))
    alone = "A chunk of kind 1 is these 4 bytes alone; every raw byte equals `symbol`."
    chunk("rans_constant_longer", alone, 2, bytes([1, 1, 0, 5, 0]))
    chunk("rans_constant_log2", "block_log2: 7 to 16 for kind 0, 0 for kind 1", 2, bytes([1, 1, 7, 5]))
    for n in (0, 3):
        chunk(f"rans_{n}_bytes", "A chunk begins with 4 bytes:", 2, good[:n])
    for n in (4, 7, 12, 20):
        chunk(f"rans_{n}_bytes", "A chunk of kind 0 goes on:", 2, good[:n])
    one = [0] * 256
    one[0] = 2048
    single = encode.table_bytes(one)
    chunk(
        "rans_last_symbol",
        "last_symbol, greater than first_symbol",
        2,
        rans_parts(table=single, first=0, last=0),
    )
    chunk("rans_last_below_first", "last_symbol, greater than first_symbol", 2, rans_parts(first=10, last=0))
    total = (
        "The frequencies of first_symbol and last_symbol MUST NOT be 0, none may pass 4095, and "
        "they MUST add up to 4096."
    )

    def changed(**frequencies: int) -> list[int]:
        freq = list(TABLE)
        for key, value in frequencies.items():
            freq[int(key[1:])] = value
        return freq

    chunk("rans_sum_4095", total, 2, rans_parts(table=encode.table_bytes(changed(s1=799))))
    chunk("rans_sum_4097", total, 2, rans_parts(table=encode.table_bytes(changed(s1=801))))
    chunk("rans_sum_8192", total, 2, rans_parts(table=encode.table_bytes(changed(s1=4095, s3=1300, s2=1))))
    only = changed(s0=0, s1=4096, s3=0, s4=0, s5=0, s9=0, s10=0)
    zero_class = lsb_fields([(13, 4), (0, 12), (0, 4)])
    chunk(
        "rans_frequency_4096",
        "a class `L` of 4 bits, at most 12",
        2,
        rans_parts(freq=only, table=zero_class, first=1, last=2),
    )
    fields = [(12, 4), (2047, 11), (1, 4), (0, 4)]
    chunk("rans_last_frequency_0", total, 2, rans_parts(table=lsb_fields(fields), first=0, last=2))
    fields = [(0, 4), (12, 4), (2047, 11), (1, 4)]
    chunk("rans_first_frequency_0", total, 2, rans_parts(table=lsb_fields(fields), first=0, last=2))
    size = "table_bytes MUST be the number of bytes that the fields occupy; unused bits of the last byte MUST be zero."
    table = encode.table_bytes(TABLE)
    chunk("rans_table_longer", size, 2, rans_parts(table=table + b"\0"))
    chunk("rans_table_shorter", size, 2, rans_parts(table=table[:-1]))
    chunk("rans_table_empty", size, 2, rans_parts(table=b""))
    chunk("rans_table_past_chunk", size, 2, at(7, 255))
    flat = [0] * 256
    flat[:3] = [4000, 64, 32]  # 34 bits: 6 of the last byte and 3 bytes of padding are zero
    unused = bytearray(encode.table_bytes(flat))
    unused[-1] |= 128
    blocks = [encode.rans_block(bytes(n), flat, 0) for n in (256, 256, 188)]
    chunk("rans_table_unused_bits", size, 2, rans_parts(freq=flat, table=bytes(unused), blocks=blocks))
    padded = rans_parts(freq=flat, blocks=blocks, padding=1)
    chunk("rans_table_padding", "zero bytes | up to a multiple of 4", 2, padded)


def lsb_fields(fields: Sequence[tuple[int, int]]) -> bytes:
    """Return a bit stream of (value, bits)."""
    stream = n_bits = 0
    for value, bits in fields:
        stream |= value << n_bits
        n_bits += bits
    return stream.to_bytes(-(-n_bits // 8), "little")


def rans_blocks() -> None:
    """Break the directory and the blocks."""
    size = 256
    good = [encode.rans_block(DATA[at : at + size], TABLE, 0) for at in range(0, len(DATA), size)]
    ends = (
        "Each block_end MUST be a multiple of 4 and at least 128 more than the block's begin; the "
        "last MUST equal `stored_bytes`."
    )
    chunk("rans_end_odd", ends, 2, rans_parts(ends=[2, 0, 0]))
    chunk("rans_end_early", ends, 2, rans_parts(ends=[-len(good[0]), 0, 0]))
    chunk("rans_end_moved", "all words MUST be used", 2, rans_parts(ends=[4, 0, 0]))
    chunk("rans_end_huge", ends, 2, rans_parts(ends=[2**31, 0, 0]))
    chunk("rans_last_end", ends, 2, rans_parts() + bytes(4))
    chunk("rans_last_end_past", ends, 2, rans_parts(ends=[0, 0, 4]))
    cut = "The raw bytes are cut into blocks of `2^block_log2` bytes, the last one holding the rest."
    chunk("rans_block_missing", cut, 2, rans_parts(blocks=good[:2]))
    chunk("rans_block_too_many", cut, 2, rans_parts(blocks=[*good, good[0]]))
    state = "A block holds 32 states (`u32`, each at least 65,536)"
    low = struct.pack("<I", 65535) + good[0][4:]
    chunk("rans_state_low", state, 2, rans_parts(blocks=[low, *good[1:]]))
    chunk("rans_state_zero", state, 2, rans_parts(blocks=[bytes(4) + good[0][4:], *good[1:]]))
    final = "After the last step every state MUST equal 65,536"
    words_used = "all words MUST be used; at most one zero word of padding is left."
    runs = (encode.rans_block(bytes([10] * at) + DATA[at:size], TABLE, 0) for at in range(size))
    bent = bytearray(next(block for block in runs if block[-2:] == b"\0\0"))
    bent[-1] = 1
    chunk("rans_padding_word", words_used, 2, rans_parts(blocks=[bytes(bent), *good[1:]]))
    longer = good[0] + bytes(4)
    chunk("rans_words_left", words_used, 2, rans_parts(blocks=[longer, *good[1:]]))
    chunk("rans_words_missing", words_used, 2, rans_parts(blocks=[good[0][:-4], *good[1:]]))
    chunk("rans_only_states", words_used, 2, rans_parts(blocks=[good[0][:128], *good[1:]]))
    other = bytearray(good[0])
    other[0] ^= 1  # the lane still ends its words, in another state
    chunk("rans_final_state", final, 2, rans_parts(blocks=[bytes(other), *good[1:]]))
    word = bytearray(good[1])
    word[130] ^= 16
    chunk("rans_word", final, 2, rans_parts(blocks=[good[0], bytes(word), good[2]]))


def packed() -> None:
    """Break the packing of 3.2 and 3.3."""
    unused = "Unused bits of the last byte of a chunk MUST be zero."
    bad(
        "unused_bits",
        "corrupt",
        unused,
        uniform_file(rows=1, columns=3, encoders=[lambda data: (0, data[:1] + b"\x12")]),
    )
    of_bool = "`bool` is one byte, which MUST be 0 or 1."
    for name, encoder in (("raw", encode.raw), ("constant", encode.constant), ("rans", encode.Rans(7))):
        elements = [2] * 9 if name == "constant" else [0, 1, 255, *[1] * 6]
        bad(
            f"bool_{name}",
            "corrupt",
            of_bool,
            small(dense("mask", [9], "bool", elements, encoders=[encoder])),
        )
    byte = (
        "In a chunk that is not the stream's last, the number of elements times the element's bits "
        "MUST be a multiple of 8."
    )
    bad("chunk_ends_in_byte", "corrupt", byte, uniform_file(rows=2, columns=3, sizes=[3, 3]))
