"""Blocks of GGUF taken apart into codes, scales and minimums, as ggml reads them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Kind:
    """A type of blocks: ggml's number, elements and bytes of a block, group size, dtype of codes, how to take it apart.

    `split` gives for blocks [n, bytes] the codes [n, elements] and the other streams by role, [n, ...] each.
    """

    number: int
    elements: int
    n_bytes: int
    group_size: int
    code_dtype: str
    split: Callable[[Bytes], tuple[Codes, dict[str, tuple[str, NDArray[Any]]]]]


def f16(blocks: Bytes, at: int) -> Codes:
    """Return the bits of the f16 at an offset of each block, [n, 1]."""
    return blocks[:, at : at + 2].copy().view("<u2").astype(np.int64)


def halves(bytes_: Bytes) -> Codes:
    """Return low halves, then high halves, along the last axis."""
    wide = bytes_.astype(np.int64)
    return np.concatenate([wide & 15, wide >> 4], axis=-1)


def pairs(qs: Bytes) -> Codes:
    """Return codes of 2 bits of 64 bytes: each 32 bytes hold 4 runs of 32."""
    wide = qs.reshape(-1, 2, 1, 32).astype(np.int64)
    found: Codes = wide >> np.array([0, 2, 4, 6])[None, None, :, None] & 3
    return found.reshape(-1, 256)


def bits(hm: Bytes) -> Codes:
    """Return one bit for each of 256 codes from 32 bytes: bit k of byte j is that of code 32k + j."""
    found: Codes = hm.astype(np.int64)[:, None, :] >> np.arange(8)[None, :, None] & 1
    return found.reshape(-1, 256)


def scale_only(bias: int, at: int = 2) -> Callable[[Bytes], Any]:
    """Take blocks of Q4_0 and IQ4_NL apart."""
    return lambda b: (halves(b[:, at:]) - bias, {"scales": ("f16", f16(b, 0))})


def q4_1(b: Bytes) -> Any:
    """Take blocks of Q4_1 apart."""
    return halves(b[:, 4:]), {"scales": ("f16", f16(b, 0)), "minimums": ("f16", f16(b, 2) ^ 0x8000)}


def fifth_bits(b: Bytes, at: int) -> Codes:
    """Return the codes of Q5_0 and Q5_1, from 4 bytes of high bits and 16 of low ones."""
    high = b[:, at : at + 4].copy().view("<u4").astype(np.int64)
    return halves(b[:, at + 4 :]) | (high >> np.arange(32)[None, :] & 1) << 4


def q5_1(b: Bytes) -> Any:
    """Take blocks of Q5_1 apart."""
    return fifth_bits(b, 4), {"scales": ("f16", f16(b, 0)), "minimums": ("f16", f16(b, 2) ^ 0x8000)}


def q2_k(b: Bytes) -> Any:
    """Take blocks of Q2_K apart."""
    packed = b[:, :16].astype(np.int64)
    streams = {"scale_codes": ("u4", packed & 15), "scale_steps": ("f16", f16(b, 80))}
    streams |= {"minimum_codes": ("u4", packed >> 4), "minimum_steps": ("f16", f16(b, 82))}
    return pairs(b[:, 16:80]), streams


def q3_k(b: Bytes) -> Any:
    """Take blocks of Q3_K apart."""
    packed = b[:, 96:108].astype(np.int64)
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = (packed[:, None, 8:] >> np.array([0, 2, 4, 6])[None, :, None] & 3).reshape(-1, 16)
    codes = (pairs(b[:, 32:96]) | bits(b[:, :32]) << 2) - 4
    return codes, {"scale_codes": ("i8", (low | high << 4) - 32), "scale_steps": ("f16", f16(b, 108))}


def k_scales(packed: Bytes) -> tuple[Codes, Codes]:
    """Return the 8 scales and 8 minimums of 6 bits of 12 bytes."""
    wide = packed.astype(np.int64)
    a, m, rest = wide[:, :4], wide[:, 4:8], wide[:, 8:]
    scales = np.concatenate([a & 63, (rest & 15) | (a >> 6) << 4], axis=1)
    return scales, np.concatenate([m & 63, (rest >> 4) | (m >> 6) << 4], axis=1)


def k_streams(b: Bytes) -> dict[str, tuple[str, Any]]:
    """Return the second level of Q4_K and Q5_K."""
    scales, minimums = k_scales(b[:, 4:16])
    return {"scale_codes": ("u8", scales), "scale_steps": ("f16", f16(b, 0)),
            "minimum_codes": ("u8", minimums), "minimum_steps": ("f16", f16(b, 2))}  # fmt: skip


def q4_k(b: Bytes) -> Any:
    """Take blocks of Q4_K apart."""
    return halves(b[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256), k_streams(b)


def q5_k(b: Bytes) -> Any:
    """Take blocks of Q5_K apart."""
    low = halves(b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 256)
    return low | bits(b[:, 16:48]) << 4, k_streams(b)


def q6_k(b: Bytes) -> Any:
    """Take blocks of Q6_K apart."""
    low = halves(b[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
    codes = low + 16 * pairs(b[:, 128:192]) - 32
    return codes, {"scale_codes": ("i8", signed(b[:, 192:208])), "scale_steps": ("f16", f16(b, 208))}


def iq4_xs(b: Bytes) -> Any:
    """Take blocks of IQ4_XS apart."""
    low = b[:, 4:8].astype(np.int64)
    low = np.stack([low & 15, low >> 4], axis=2).reshape(-1, 8)
    high = f16(b, 2) >> 2 * np.arange(8)[None, :] & 3
    streams = {"scale_codes": ("i8", (low | high << 4) - 32), "scale_steps": ("f16", f16(b, 0))}
    return halves(b[:, 8:].reshape(-1, 8, 16)).reshape(-1, 256), streams


def tq1_0(b: Bytes) -> Any:
    """Take blocks of TQ1_0 apart: multiplied by 3^k, modulo 256, the leading digit to the base of 3 is code k."""
    runs = []
    for at, size, n_codes in ((0, 32, 5), (32, 16, 5), (48, 4, 4)):
        part = b[:, at : at + size].astype(np.int64)
        runs += [(part * 3**k % 256) * 3 >> 8 for k in range(n_codes)]
    return np.concatenate(runs, axis=1) - 1, {"scales": ("f16", f16(b, 52))}


def signed(b: Bytes) -> Codes:
    """Return bytes as integers of two's complement."""
    return b.view(np.int8).astype(np.int64)


def mxfp4(b: Bytes) -> Any:
    """Take blocks of MXFP4 apart."""
    return halves(b[:, 1:]), {"scales": ("f8_e8m0", b[:, :1].astype(np.int64))}


KINDS = {
    "Q4_0": Kind(2, 32, 18, 32, "i4", scale_only(8)),
    "Q4_1": Kind(3, 32, 20, 32, "u4", q4_1),
    "Q5_0": Kind(6, 32, 22, 32, "i8", lambda b: (fifth_bits(b, 2) - 16, {"scales": ("f16", f16(b, 0))})),
    "Q5_1": Kind(7, 32, 24, 32, "u8", q5_1),
    "Q8_0": Kind(8, 32, 34, 32, "i8", lambda b: (signed(b[:, 2:]), {"scales": ("f16", f16(b, 0))})),
    "Q2_K": Kind(10, 256, 84, 16, "u2", q2_k),
    "Q3_K": Kind(11, 256, 110, 16, "i4", q3_k),
    "Q4_K": Kind(12, 256, 144, 32, "u4", q4_k),
    "Q5_K": Kind(13, 256, 176, 32, "u8", q5_k),
    "Q6_K": Kind(14, 256, 210, 16, "i8", q6_k),
    "IQ4_NL": Kind(20, 32, 18, 32, "u4", scale_only(0)),
    "IQ4_XS": Kind(23, 256, 136, 32, "u4", iq4_xs),
    "TQ1_0": Kind(34, 256, 54, 256, "i2", tq1_0),
    "TQ2_0": Kind(35, 256, 66, 256, "i2", lambda b: (pairs(b[:, :64]) - 1, {"scales": ("f16", f16(b, 64))})),
    "MXFP4": Kind(39, 32, 17, 32, "u4", mxfp4),
}  # fmt: skip
# Where the f16 of a block lie, so that random bytes can be given sensible ones.
F16_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
    "MXFP4": (),
}  # fmt: skip


def random_blocks(name: str, seed: int, n: int) -> Bytes:
    """Return n blocks of a type that ggml could have written."""
    kind = KINDS[name]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (n, kind.n_bytes), np.uint8)
    if name == "TQ2_0":
        blocks[:, :64] = (generator.integers(0, 3, (n, 64, 4)) << np.array([0, 2, 4, 6])).sum(2)
    if name == "TQ1_0":
        codes = generator.integers(0, 3, (n, 52, 5))
        codes[:, 48:, 4] = 0
        blocks[:, :52] = ((codes * 3 ** np.arange(4, -1, -1)).sum(2) * 256 + 242) // 243
    if name == "MXFP4":
        blocks[:, 0] = generator.integers(100, 140, n)
    for at in F16_AT[name]:
        floats = generator.uniform(0.001, 0.1, n).astype(np.float16)
        blocks[:, at : at + 2] = floats.view(np.uint8).reshape(n, 2)
    return blocks
