"""spec/origins/gguf.md: the blocks of GGUF, from codes, scales and minimums."""

from collections.abc import Callable
from dataclasses import dataclass

from spq_reference.arrays import matrix_elements, reordered
from spq_reference.errors import require
from spq_reference.records import Tensor
from spq_reference.restore import Streams, flat
from spq_reference.schemes import matrix_shape
from spq_reference.text import mapping, word


@dataclass(frozen=True)
class Block:
    """What a block holds: its codes plus the type's offset, and the elements of its other streams by role."""

    q: list[int]
    of: dict[str, list[int]]

    def u16(self, role: str, turn: int = 0) -> list[int]:
        """Return the bytes of the one element of 16 bits; `turn` turns bits."""
        bits = self.of[role][0] ^ turn
        return [bits % 256, bits // 256]


@dataclass(frozen=True)
class Type:
    """A line of both tables: elements, group_size, dtypes of streams, groups of a supergroup, offset, fields."""

    block: int
    group_size: int
    dtypes: dict[str, str]
    tile: int
    offset: int
    fields: Callable[[Block], list[int]]


def nibbles(low: list[int], high: list[int]) -> list[int]:
    """Return bytes of two halves each."""
    return [a % 16 + 16 * (b % 16) for a, b in zip(low, high, strict=True)]


def halves(q: list[int], size: int) -> list[int]:
    """Return bytes whose low halves are the first `size` codes of each run of twice that, the high halves the rest."""
    return [
        byte
        for at in range(0, len(q), 2 * size)
        for byte in nibbles(q[at : at + size], q[at + size : at + 2 * size])
    ]


def fours(q: list[int]) -> list[int]:
    """Return bytes of four codes of 2 bits, from four runs of 32 (*pairs of bits*)."""
    return [
        sum(4**k * (q[at + 32 * k + j] % 4) for k in range(4))
        for at in range(0, len(q), 128)
        for j in range(32)
    ]


def high_bits(q: list[int], bit: int) -> list[int]:
    """Return 32 bytes: bit `k` of byte `j` is a bit of code 32k + j."""
    return [sum((q[32 * k + j] >> bit & 1) << k for k in range(8)) for j in range(32)]


def five_bits(block: Block) -> list[int]:
    """Return the codes of Q5_0 and Q5_1."""
    high = sum((code >> 4 & 1) << j for j, code in enumerate(block.q))
    return [*high.to_bytes(4, "little"), *halves(block.q, 16)]


def q3_scales(block: Block) -> list[int]:
    """Return *scales of 6 bits, by 4*."""
    s = [code + 32 for code in block.of["scale_codes"]]
    return nibbles(s[:8], s[8:]) + [sum(4**k * (s[4 * k + j] // 16) for k in range(4)) for j in range(4)]


def k_scales(block: Block) -> list[int]:
    """Return *scales of 6 bits, by 8*."""
    sc, mi = block.of["scale_codes"], block.of["minimum_codes"]
    packed = [sc[j] + 64 * (sc[j + 4] // 16) for j in range(4)] + [
        mi[j] + 64 * (mi[j + 4] // 16) for j in range(4)
    ]
    return packed + nibbles(sc[4:], mi[4:])


def q6(block: Block) -> list[int]:
    """Return the fields of Q6_K."""
    q = block.q
    low = [q[at + j] % 16 + 16 * (q[at + j + 64] % 16) for at in (0, 32, 128, 160) for j in range(32)]
    high = [sum(4**k * (q[at + 32 * k + j] // 16) for k in range(4)) for at in (0, 128) for j in range(32)]
    return low + high + [code % 256 for code in block.of["scale_codes"]] + block.u16("scale_steps")


def iq4_xs(block: Block) -> list[int]:
    """Return the fields of IQ4_XS."""
    s = [code + 32 for code in block.of["scale_codes"]]
    high = sum(4**k * (s[k] // 16) for k in range(8))
    step = block.u16("scale_steps")
    return [*step, high % 256, high // 256, *nibbles(s[::2], s[1::2]), *halves(block.q, 16)]


def tq1(block: Block) -> list[int]:
    """Return the fields of TQ1_0."""
    found = []
    for first, n_bytes, n_codes in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
        for j in range(n_bytes):
            n = sum(3 ** (4 - k) * block.q[first + n_bytes * k + j] for k in range(n_codes))
            found.append((256 * n + 242) // 243)
    return found + block.u16("scales")


MINUS = 0x8000
F16 = {"scales": "f16"}
BOTH = {"scales": "f16", "minimums": "f16"}
STEPS = {"scale_codes": "i8", "scale_steps": "f16"}
K_STEPS = {"scale_codes": "u8", "scale_steps": "f16", "minimum_codes": "u8", "minimum_steps": "f16"}
K2_STEPS = {**K_STEPS, "scale_codes": "u4", "minimum_codes": "u4"}
TYPES = {
    "Q4_0": Type(32, 32, {"codes": "i4", **F16}, 0, 8, lambda b: b.u16("scales") + halves(b.q, 16)),
    "Q4_1": Type(32, 32, {"codes": "u4", **BOTH}, 0, 0,
                 lambda b: b.u16("scales") + b.u16("minimums", MINUS) + halves(b.q, 16)),
    "Q5_0": Type(32, 32, {"codes": "i8", **F16}, 0, 16, lambda b: b.u16("scales") + five_bits(b)),
    "Q5_1": Type(32, 32, {"codes": "u8", **BOTH}, 0, 0,
                 lambda b: b.u16("scales") + b.u16("minimums", MINUS) + five_bits(b)),
    "Q8_0": Type(32, 32, {"codes": "i8", **F16}, 0, 0, lambda b: b.u16("scales") + [c % 256 for c in b.q]),
    "IQ4_NL": Type(32, 32, {"codes": "u4", "levels": "", **F16}, 0, 0,
                   lambda b: b.u16("scales") + halves(b.q, 16)),
    "MXFP4": Type(32, 32, {"codes": "f4_e2m1", "scales": "f8_e8m0"}, 0, 0,
                  lambda b: [b.of["scales"][0], *halves(b.q, 16)]),
    "Q2_K": Type(256, 16, {"codes": "u2", **K2_STEPS}, 16, 0,
                 lambda b: nibbles(b.of["scale_codes"], b.of["minimum_codes"]) + fours(b.q) + b.u16("scale_steps")
                 + b.u16("minimum_steps")),
    "Q3_K": Type(256, 16, {"codes": "i4", **STEPS}, 16, 4,
                 lambda b: high_bits(b.q, 2) + fours(b.q) + q3_scales(b) + b.u16("scale_steps")),
    "Q4_K": Type(256, 32, {"codes": "u4", **K_STEPS}, 8, 0,
                 lambda b: b.u16("scale_steps") + b.u16("minimum_steps") + k_scales(b) + halves(b.q, 32)),
    "Q5_K": Type(256, 32, {"codes": "u8", **K_STEPS}, 8, 0,
                 lambda b: b.u16("scale_steps") + b.u16("minimum_steps") + k_scales(b) + high_bits(b.q, 4)
                 + halves(b.q, 32)),
    "Q6_K": Type(256, 16, {"codes": "i8", **STEPS}, 16, 32, q6),
    "IQ4_XS": Type(256, 32, {"codes": "u4", "levels": "", **STEPS}, 8, 0, iq4_xs),
    "TQ1_0": Type(256, 256, {"codes": "i2", **F16}, 0, 1, tq1),
    "TQ2_0": Type(256, 256, {"codes": "i2", **F16}, 0, 1, lambda b: fours(b.q) + b.u16("scales")),
}  # fmt: skip

# How many bits the places of a type have for codes plus offset, and for codes of the second level.
CODE_BITS = {"Q5_0": 5, "Q5_1": 5, "Q3_K": 3, "Q5_K": 5, "Q6_K": 6, "TQ1_0": 0, "TQ2_0": 2}
SIGNED_6 = ("Q3_K", "IQ4_XS")


def parts(tensor: Tensor, streams: Streams) -> list[bytes]:
    """Return the one part of the layout `gguf`, version 1."""
    # > There is one part: for each row of the matrix (FORMAT.md 5.1, with orientation, channel order and permutation
    # > undone) its blocks, one after the other. `columns` MUST be a multiple of the block's elements.
    origin = tensor.origin or {}
    name = word(origin.get("type"), tuple(TYPES))
    kind = TYPES[name]
    check_streams(tensor, name, kind)
    rows, columns = matrix_shape(tensor)
    require(columns % kind.block == 0, f"{tensor.name}: rows of no whole number of blocks")
    matrix = matrix_elements(tensor, streams, "codes")
    others = {role: flat(streams, role) for role in kind.dtypes if role not in ("codes", "levels")}
    # > With `column_dims` the columns of the codes are put into another order before they are cut into blocks: a matrix
    # > whose inputs are such heads.
    places = reordered(list(range(columns)), origin, "column_dims", "column_axes")
    matrix = [[row[k] for k in places] for row in matrix]
    per_row = columns // kind.block
    lines = []
    for i in range(rows):
        line = bytearray()
        for b in range(per_row):
            q = [code + kind.offset for code in matrix[i][b * kind.block : (b + 1) * kind.block]]
            number = i * per_row + b
            of = {}
            for role, elements in others.items():
                n = kind.block // kind.group_size if role.endswith("_codes") else 1
                of[role] = elements[number * n : (number + 1) * n]
            check_places(tensor, name, q, of)
            line += bytes(kind.fields(Block(q, of)))
        lines.append(bytes(line))
    numbers = list(range(rows))
    return [b"".join(lines[i] for i in reordered(numbers, origin, "row_dims", "row_axes"))]


def check_streams(tensor: Tensor, name: str, kind: Type) -> None:
    """Check that a tensor has what the table gives for its type."""
    # > The tensor MUST have the `group_size`, the dtypes and the supergroup of one row that the table gives, no
    # > `group_rows`, no outliers, and no second level where the table gives no supergroup.
    require(tensor.scheme == "grouped", f"{tensor.name}: {name} of the scheme {tensor.scheme}")
    parameters = tensor.parameters
    require(parameters["group_size"] == kind.group_size, f"{tensor.name}: group_size of {name}")
    require(
        "group_rows" not in parameters and "outliers" not in parameters, f"{tensor.name}: {name} of tiles"
    )
    tile = {"rows": 1, "groups": kind.tile} if kind.tile else None
    given = mapping(parameters["supergroup"]) if "supergroup" in parameters else None
    same = given if given is None else {key: given[key] for key in ("rows", "groups")}
    require(same == tile, f"{tensor.name}: supergroup of {name}")
    dtypes = {role: stream.dtype for role, stream in tensor.streams.items()}
    dtypes = {role: dtype for role, dtype in dtypes.items() if role not in ("channel_order", "permutation")}
    due = dict(kind.dtypes)
    if "levels" in dtypes:
        dtypes["levels"] = ""
        if name == "MXFP4":
            due |= {"codes": "u4", "levels": ""}
    require(dtypes == due, f"{tensor.name}: streams of {name}")


def check_places(tensor: Tensor, name: str, q: list[int], of: dict[str, list[int]]) -> None:
    """Check that every element fits its place in a block."""
    # > An element that does not fit its place is *corrupt*.
    if name in CODE_BITS:
        top = 3 if name == "TQ1_0" else 1 << CODE_BITS[name]
        require(all(0 <= code < top for code in q), f"{tensor.name}: a code past {name}")
    if name in SIGNED_6:
        require(all(-32 <= code < 32 for code in of["scale_codes"]), f"{tensor.name}: a scale past {name}")
    if name in ("Q4_K", "Q5_K"):
        codes = of["scale_codes"] + of["minimum_codes"]
        require(all(code < 64 for code in codes), f"{tensor.name}: a scale past {name}")
