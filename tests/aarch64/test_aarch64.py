"""The decoder for AArch64, cross-built and run under emulation: chunks of vectors, made and damaged ones.

`make aarch64` builds the whole core and the wheel, and runs more.
"""

import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from spq_reference.codecs import RANS
from spq_reference.container import read_container

from spqfmt.errors import CorruptError, UnsupportedError
from spqfmt.kernels import native

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "spqfmt" / "kernels" / "native"
SOURCES = (
    "chunk_decode", "crc32_arm", "crc32_scalar", "decode_neon", "decode_scalar", "frequencies",
)  # fmt: skip
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# Where Debian's cross compiler has the libraries that the program is started with.
SYSTEM = os.environ.get("SPQFMT_AARCH64_SYSTEM", "/usr/aarch64-linux-gnu")

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None,
    reason=f"{COMPILER} or {EMULATOR} is missing (Debian: g++-aarch64-linux-gnu, qemu-user)",
)


def of_vectors() -> Iterator[tuple[bytes, int]]:
    """The rans chunks of all valid vectors, each with the number of its symbols."""
    for path in sorted((ROOT / "spec" / "vectors").rglob("valid/*.spq")):
        data = path.read_bytes()
        index = read_container(data)
        for streams in [*(tensor.streams for tensor in index.tensors), index.assets]:
            for stream in streams.values():
                for _, planes in stream.chunks:
                    for plane in planes:
                        if plane.codec == RANS:
                            yield data[plane.offset : plane.offset + plane.stored_bytes], plane.raw_bytes


def made() -> Iterator[tuple[bytes, int]]:
    """Chunks of few, of many and of frequent symbols, whose last blocks have all kinds of lengths."""
    random = np.random.default_rng(0)
    for n in (1, 127, 128, 129, 4097, 9 * 4096 + 77, 65536, 200_003):
        normal = np.clip(np.rint(random.standard_normal(n) * 20), -128, 127).astype(np.int8).view(np.uint8)
        sparse = np.where(random.random(n) < 0.02, 200, 3).astype(np.uint8)
        for data in (normal, sparse, random.integers(0, 256, n).astype(np.uint8)):
            for block_log2 in (0, 7, 12):
                yield native.rans_encode(data, block_log2), n


def damaged(chunk: bytes, n: int) -> Iterator[tuple[bytes, int]]:
    random = np.random.default_rng(len(chunk))
    for at in random.integers(0, len(chunk), 60):
        changed = bytearray(chunk)
        changed[at] ^= 1 << random.integers(8)
        yield bytes(changed), n
    yield chunk[: len(chunk) // 2], n


def record(chunk: bytes, n: int) -> bytes:
    symbols = np.empty(n, np.uint8)
    try:
        native.rans_decode(chunk, symbols)
        refused, shown = 0, symbols.tobytes()
    except (CorruptError, UnsupportedError):
        refused, shown = 1, b""
    return struct.pack("<4I", len(chunk), n, refused, zlib.crc32(chunk)) + chunk + shown


def test_the_decoder_gives_what_it_gives_elsewhere(tmp_path: Path) -> None:
    program = tmp_path / "chunks"
    command = [
        COMPILER,
        "-std=c++17",
        "-O2",
        "-march=armv8-a+crc",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{CORE}",
    ]
    command += [str(Path(__file__).with_name("chunks.cpp")), *(str(CORE / f"{name}.cpp") for name in SOURCES)]
    subprocess.run([*command, "-o", str(program)], check=True)
    frozen, fresh = list(of_vectors()), list(made())
    assert len(frozen) > 50
    broken = [case for chunk, n in fresh[-9:] + frozen[:5] for case in damaged(chunk, n)]
    (tmp_path / "list").write_bytes(b"".join(record(*case) for case in [*frozen, *fresh, *broken]))
    run = [EMULATOR, "-L", SYSTEM, str(program), str(tmp_path / "list")]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    n_chunks, n_refused, _ = (int(word) for word in done.stdout.split() if word.isdigit())
    assert n_chunks == len(frozen) + len(fresh) + len(broken)
    assert len(broken) // 2 < n_refused <= len(broken)
