"""Machine code of the Triton kernels, read without a GPU: registers, spills, instructions of the inner loop.

    python tools/gpu_code.py            compile for all targets and write the table into docs/gpu-kernels.md
    python tools/gpu_code.py --check    compile; fail on a spill, or where a number grew by more than 10 %

Triton compiles for a target that is not there; its wheel has NVIDIA's assembler and disassembler.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spqfmt.kernels.device.matrix import GroupScales, GroupValues, Matrix, UniformScales
from spqfmt.kernels.triton import fused, multiply, outliers, planes, rans, weights
from spqfmt.kernels.triton import kernels as launch
from spqfmt.kernels.triton.arguments import TO, code_arguments, scale_arguments

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gpu-kernels.md"
MARKS = "<!-- table: gpu_code -->\n", "<!-- end -->\n"
TARGETS = (80, 90, 100)
GROWTH = 1.10
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Variant:
    """A kernel as the launcher compiles it. `units`: runs of 32 symbols, or weights, in one turn of the inner loop."""

    name: str
    kernel: Any
    arguments: Mapping[str, Any]
    n_warps: int = 4
    units: int | None = None


@dataclass(frozen=True)
class Code:
    """What the machine code of one kernel for one target costs. `inner_loop`: its longest innermost loop, or 0."""

    name: str
    target: str
    registers: int
    spills: int
    instructions: int
    inner_loop: int
    per_32: float | None


def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor that stands for a pointer."""
    return torch.empty(shape or (1,), dtype=dtype, device="meta")


F32, F16, I64, I32, I16, U8 = map(
    tensor, (torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.uint8)
)
SHAPE = (4096, 4096)
N_GROUPS = 32
GROUP = GroupValues(tensor(torch.float16, SHAPE[0], N_GROUPS))
LEVEL2 = GroupValues(
    tensor(torch.uint8, SHAPE[0], N_GROUPS),
    tensor(torch.float16, 256, N_GROUPS),
    tensor(torch.float16, 256, N_GROUPS),
    (16, 1),
)
ROWS = Matrix(SHAPE, "i8", UniformScales(tensor(torch.float32, SHAPE[0])))
COLUMNS = Matrix(SHAPE, "i8", UniformScales(tensor(torch.float32, SHAPE[0]), tensor(torch.float32, SHAPE[1])))
GROUPED = Matrix(SHAPE, "u4", GroupScales(128, GROUP, GROUP))
SPQR = Matrix(SHAPE, "u4", GroupScales(128, LEVEL2, LEVEL2))


def variants() -> Iterator[Variant]:
    """All kernels, in the forms that matter."""
    blocks = {"stored": I32, "words": I16, "records": I32, "tables": I32, "error": I32}
    for words in (True, False):
        arguments = {**blocks, "out": I32 if words else U8, "first_block": 0, "WORDS": words}
        yield Variant(f"rans to {'words' if words else 'bytes'}", rans.decode_blocks, arguments, units=4)
    yield Variant("rans tables", rans.build_tables, {"records": I32, "tables": I32})
    matrices = {
        "i8 by rows": ROWS,
        "i8 by rows and columns": COLUMNS,
        "u4 groups": GROUPED,
        "u4 supergroups": SPQR,
    }
    for name, matrix in matrices.items():
        scales = scale_arguments(matrix) | code_arguments(matrix)
        arguments = {**blocks, "out": I64, "first_row": 0, "N_COLUMNS": SHAPE[1], **scales}
        yield Variant(f"rans to bfloat16, {name}", fused.decode_dequantize, arguments, units=4)
    sizes = dict.fromkeys(("first", "first_row", "stop_row", "n_tokens", "n_columns", "y_stride"), 0)
    for name, matrix in matrices.items():
        scales = scale_arguments(matrix) | code_arguments(matrix)
        place = dict.fromkeys(("first", "first_channel", "stop_channel", "width", "n_columns"), 0) | {
            "codes": U8,
            "out": I16,
            "order": None,
            "permutation": None,
        }
        yield Variant(
            f"dequantize, {name}",
            weights.dequantize,
            {**place, **scales, **launch.TILE_BY_ROWS, "BY_COLUMNS": False, "TO": TO[torch.bfloat16]},
        )
        for tokens, tile in (("1 token", launch.TILE_OF_ONE_TOKEN), ("16 tokens", launch.TILE_OF_TOKENS)):
            to, x = (torch.float32, F32) if tokens == "1 token" else (torch.bfloat16, tensor(torch.bfloat16))
            yield Variant(
                f"multiply {tokens}, {name}",
                multiply.multiply,
                {"x": x, "codes": U8, "y": F32, **sizes, **scales, **tile, "TO": TO[to]},
                units=tile["ROWS"] * tile["COLUMNS"] // 128,
            )
    yield Variant(
        "merge planes", planes.merge_planes, {"planes": U8, "out": I16, "n": 0, "SIZE": 2, "ROTATED": True}
    )
    yield Variant(
        "outliers",
        outliers.replace,
        {"out": I16, "row_begin": I32, "columns": I32, "values": F32, "places": None, "permutation": None}
        | dict.fromkeys(("first_row", "first_channel", "stop_channel", "width"), 0)
        | {"BY_COLUMNS": False, "TO": TO[torch.bfloat16]},
    )


def assemble(variant: Variant, capability: int) -> bytes:
    """The cubin of a variant for a target."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    for number, parameter in enumerate(variant.kernel.params):
        value = variant.arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
        elif parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[number,] = value
        else:
            signature[parameter.name] = "i32"
    # pointers of whole tensors lie at multiples of 16
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(signature)
        if signature[name].startswith("*")
    }
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": variant.n_warps, **launch.EXACT}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cubin: bytes = compiled.asm["cubin"]
    return cubin


def read(variant: Variant, capability: int) -> Code:
    """Compile and count."""
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(assemble(variant, capability))
        usage = _run("cuobjdump", "-res-usage", str(cubin))
        listing = _run("nvdisasm", "-c", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise SystemExit(f"{variant.name}: no resource usage in {usage!r}")
    instructions, loops = parse(listing)
    spills = sum(re.search(r"\b(STL|LDL)\b", line) is not None for line in instructions)
    inner = max(loops, default=0)
    return Code(
        variant.name,
        f"sm_{capability}",
        int(found[1]),
        spills or int(found[2]) // 4,
        len(instructions),
        inner,
        inner / variant.units if variant.units else None,
    )


def parse(listing: str) -> tuple[list[str], list[int]]:
    """Instructions of a disassembly, and the lengths of its innermost loops: jumps back that hold no other."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    jumps = [
        (labels[target[1]], number)
        for number, instruction in enumerate(instructions)
        if (target := re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction))
    ]
    # a jump to itself is the end of the code
    loops = [(begin, end) for begin, end in jumps if begin < end]
    innermost = [
        (begin, end)
        for begin, end in loops
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in loops)
    ]
    while instructions and (instructions[-1] == "NOP" or "BRA" in instructions[-1]):
        instructions.pop()
    return instructions, [end - begin + 1 for begin, end in innermost]


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _read_both(task: tuple[str, int]) -> Code:
    name, capability = task
    [variant] = [variant for variant in variants() if variant.name == name]
    return read(variant, capability)


def read_all() -> list[Code]:
    """All kernels for all targets, two at a time."""
    tasks = [(variant.name, capability) for variant in variants() for capability in TARGETS]
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(_read_both, tasks))


COLUMNS_OF_TABLE = ("kernel", "target", "registers", "spills", "instructions", "inner loop", "per 32")


def table(codes: list[Code]) -> str:
    """The lines of the table."""
    rows = [
        f"| {c.name} | {c.target} | {c.registers} | {c.spills} | {c.instructions} | {c.inner_loop or '-'} "
        f"| {'-' if c.per_32 is None else f'{c.per_32:.1f}'} |\n"
        for c in codes
    ]
    head = f"| {' | '.join(COLUMNS_OF_TABLE)} |\n" + "|---" * len(COLUMNS_OF_TABLE) + "|\n"
    return head + "".join(rows)


def split_page(text: str) -> tuple[str, str, str]:
    """What stands before the table, the table, what stands behind it."""
    before, found, rest = text.partition(MARKS[0])
    middle, end, after = rest.partition(MARKS[1])
    if not found or not end:
        raise SystemExit(f"{PAGE.name} has no place for the table")
    return before + found, middle, end + after


def problems(codes: list[Code], page: str) -> list[str]:
    """What is worse than the table says: spills, more than GROWTH, kernels that it lacks."""
    _, middle, _ = split_page(page)
    known = {}
    for line in middle.splitlines()[2:]:
        name, target, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
        known[name, target] = [0 if number == "-" else float(number) for number in numbers]
    found = []
    for code in codes:
        what = f"{code.name} for {code.target}"
        if code.spills:
            found.append(f"{what}: {code.spills} spills")
        if (code.name, code.target) not in known:
            found.append(f"{what}: not in {PAGE.name}")
            continue
        registers, _, instructions, inner_loop, _ = known.pop((code.name, code.target))
        for name, now, before in (
            ("registers", code.registers, registers),
            ("instructions", code.instructions, instructions),
            ("instructions in the inner loop", code.inner_loop, inner_loop),
        ):
            if now > GROWTH * before:
                found.append(f"{what}: {now} {name}, {before:.0f} in {PAGE.name}")
    found += [f"{name} for {target}: in {PAGE.name}, but there is no such kernel" for name, target in known]
    return found


def main() -> None:
    """Write the table, or check it."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--check", action="store_true")
    check = arguments.parse_args().check
    codes = read_all()
    page = PAGE.read_text()
    if check:
        found = problems(codes, page)
        print("\n".join(found) or f"{len(codes)} kernels as in {PAGE.name}")
        sys.exit(bool(found))
    before, _, after = split_page(page)
    PAGE.write_text(before + table(codes) + after)


if __name__ == "__main__":
    main()
