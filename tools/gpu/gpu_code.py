"""Machine code of the Triton kernels, read without a GPU: registers, spills, instructions of the inner loop.

    python tools/gpu/gpu_code.py            compile for all targets, write the tables into docs/gpu-kernels.md
    python tools/gpu/gpu_code.py --check    compile; fail on a spill, or where a number grew by more than 10 %

Triton compiles for a target that is not there; its wheel has NVIDIA's assembler and disassembler. For AMD's targets
it is compiled as well; of them registers and spills are told, as their compiler writes them.
"""

import argparse
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import triton
from gpu_path import cycles_of_a_turn
from gpu_variants import Variant, variants
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spqfmt.kernels.triton import rans
from spqfmt.kernels.triton.products import EXACT, precision

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu-kernels.md"
MARKS = {name: f"<!-- table: {name} -->\n" for name in ("gpu_code", "gpu_bounds", "gpu_amd")}
END = "<!-- end -->\n"
TARGETS = (80, 90, 100)
MORE_TARGETS = (75, 86, 89, 120)
BROAD = (
    "rans to words",
    "rans to elements",
    "multiply 1 token, i8 by rows",
    "multiply 1 token, u4 groups",
)
"""What most of a token is made of; this alone is read for MORE_TARGETS too."""
AMD = (GPUTarget("hip", "gfx942", 64), GPUTarget("hip", "gfx1100", 32), GPUTarget("hip", "gfx1201", 32))
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


# What runs at 16 lanes a cycle on a multiprocessor, and what the integer pipe runs, at 64 (CUDA programming guide,
# arithmetic instructions); multiplications and additions by IMAD, floats and memory have pipes of their own.
SLOW = ("POPC", "REDUX", "FLO", "MUFU")
INTEGER = (
    "LOP3",
    "SHF",
    "LEA",
    "ISETP",
    "SEL",
    "PRMT",
    "VIMNMX",
    "IMNMX",
    "IADD3",
    "SGXT",
    "FSETP",
    "FSEL",
    "VIADD",
)


@dataclass(frozen=True)
class Code:
    """What the machine code of one kernel for one target costs.

    `inner_loop`: instructions of its longest innermost loop, or 0; `integer` and `slow`: those of them in these pipes.
    `path`: cycles of a step of rans by its critical path (gpu_path), where all loads hit the first cache.
    """

    name: str
    target: str
    registers: int
    spills: int
    instructions: int
    inner_loop: int
    per_32: float | None
    integer: int = 0
    slow: int = 0
    path: float | None = None


class Card(NamedTuple):
    """Multiprocessors, boost clock and memory bandwidth as NVIDIA publishes them; whose code is counted."""

    name: str
    multiprocessors: int
    ghz: float
    gb_s: float
    target: str


CARDS = (
    Card(name="A100 80 GB", multiprocessors=108, ghz=1.41, gb_s=2039, target="sm_80"),
    Card(name="H100 SXM", multiprocessors=132, ghz=1.98, gb_s=3350, target="sm_90"),
    Card(name="RTX 4090", multiprocessors=128, ghz=2.52, gb_s=1008, target="sm_89"),
)
# kernel -> bytes read for a code (6.5 and 3.5 bits of it) and written
TRAFFIC = {
    "rans to words": (6.5 / 8, 1.0),
}


def assemble(variant: Variant, capability: int) -> bytes:
    """The cubin of a variant for a target."""
    cubin: bytes = compiled(variant, GPUTarget("cuda", capability, 32)).asm["cubin"]
    return cubin


def compiled(variant: Variant, target: GPUTarget) -> Any:
    """A variant as Triton compiles it for a target."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    for number, parameter in enumerate(variant.kernel.params):
        value = variant.arguments[parameter.name]
        if parameter.name == "PRECISION":
            value = precision(target)
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
        elif parameter.is_constexpr or value is None or value == 1:  # a launch makes a constant of 1
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
    options = {"num_warps": variant.n_warps, **EXACT}
    return triton.compile(source, target=target, options=options)


@dataclass(frozen=True)
class AmdCode:
    """What AMD's compiler says of one kernel for one of its targets: registers of lanes and of waves, and spills."""

    name: str
    target: str
    vector_registers: int
    scalar_registers: int
    spills: int


def read_amd(variant: Variant, target: GPUTarget) -> AmdCode:
    """Compile one variant, and read what its assembly says at the end."""
    text: str = compiled(variant, target).asm["amdgcn"]
    found = {key: int(number) for key, number in re.findall(r"\.(\w+):\s+(\d+)\s*$", text, re.MULTILINE)}
    return AmdCode(
        name=variant.name,
        target=str(target.arch),
        vector_registers=found["vgpr_count"],
        scalar_registers=found["sgpr_count"],
        spills=found["vgpr_spill_count"] + found["sgpr_spill_count"],
    )


def read(variant: Variant, capability: int) -> Code:
    """Compile one variant, and count its instructions."""
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(assemble(variant, capability))
        usage = _run("cuobjdump", "-res-usage", str(cubin))
        listing = _run("nvdisasm", "-c", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise SystemExit(f"{variant.name}: no resource usage in {usage!r}")
    instructions, loops = parse(listing)
    inner = max(loops, key=len, default=range(0))
    opcodes = [re.sub(r"^@\S+ ", "", instructions[number]).split(".")[0].split(" ")[0] for number in inner]
    spills = sum(re.search(r"\b(STL|LDL)\b", line) is not None for line in instructions)
    return Code(
        name=variant.name,
        target=f"sm_{capability}",
        registers=int(found[1]),
        spills=spills or int(found[2]) // 4,
        instructions=len(instructions),
        inner_loop=len(inner),
        per_32=len(inner) / variant.units if variant.units else None,
        integer=sum(opcode in INTEGER for opcode in opcodes),
        slow=sum(opcode in SLOW for opcode in opcodes),
        path=_path([instructions[n] for n in inner], variant),
    )


def _path(body: list[str], variant: Variant) -> float | None:
    if variant.kernel is not rans.decode_blocks:
        return None
    assert variant.units is not None
    return cycles_of_a_turn(body) / variant.units


def parse(listing: str) -> tuple[list[str], list[range]]:
    """Instructions of a disassembly, and the numbers of those in each loop that holds no other."""
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
    return instructions, [range(begin, end + 1) for begin, end in innermost]


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _read_both(task: tuple[str, int]) -> Code:
    name, capability = task
    [variant] = [variant for variant in variants() if variant.name == name]
    return read(variant, capability)


def _read_amd(task: tuple[str, int]) -> AmdCode:
    name, number = task
    [variant] = [variant for variant in variants() if variant.name == name]
    return read_amd(variant, AMD[number])


def read_all() -> tuple[list[Code], list[AmdCode]]:
    """All kernels for all targets, two at a time."""
    names = [variant.name for variant in variants()]
    with ProcessPoolExecutor(2) as pool:
        tasks = [(n, c) for n in names for c in (*TARGETS, *(MORE_TARGETS if n in BROAD else ()))]
        codes = pool.map(_read_both, tasks)
        of_amd = pool.map(_read_amd, [(name, number) for name in names for number in range(len(AMD))])
        return list(codes), list(of_amd)


def amd_table(codes: list[AmdCode]) -> str:
    """The lines of the table of AMD's targets: a line for each kernel, registers of lanes and of waves."""
    targets = [str(target.arch) for target in AMD]
    head = f"| kernel | {' | '.join(targets)} | spills |\n" + "|---" * (len(targets) + 2) + "|\n"
    by_name: dict[str, list[AmdCode]] = {}
    for code in codes:
        by_name.setdefault(code.name, []).append(code)
    return head + "".join(
        f"| {name} | {' | '.join(f'{c.vector_registers} + {c.scalar_registers}' for c in own)} "
        f"| {sum(c.spills for c in own)} |\n"
        for name, own in by_name.items()
    )


def amd_problems(codes: list[AmdCode], page: str) -> list[str]:
    """What is worse than it should be: spills, and kernels that the page lacks or that are no more."""
    known = set(re.findall(r"^\| ([^|]+) \|", split_page(page, "gpu_amd")[1], re.MULTILINE)) - {"kernel"}
    found = [f"{code.name} for {code.target}: {code.spills} spills" for code in codes if code.spills]
    names = {code.name for code in codes}
    return found + [f"{name}: not in {PAGE.name}, or no kernel" for name in sorted(names ^ known)]


COLUMNS_OF_TABLE = ("kernel", "target", "registers", "spills", "instructions", "inner loop", "per 32", "path")


def table(codes: list[Code]) -> str:
    """The lines of the table."""
    rows = [
        f"| {c.name} | {c.target} | {c.registers} | {c.spills} | {c.instructions} | {c.inner_loop or '-'} "
        f"| {'-' if c.per_32 is None else f'{c.per_32:.1f}'} | {'-' if c.path is None else f'{c.path:.0f}'} |\n"
        for c in codes
    ]
    head = f"| {' | '.join(COLUMNS_OF_TABLE)} |\n" + "|---" * len(COLUMNS_OF_TABLE) + "|\n"
    return head + "".join(rows)


def bounds(codes: list[Code]) -> str:
    """The lines of the table of bounds, in units of 10^9 codes a second."""
    head = "| card | kernel | issue | integer pipe | slow pipe | memory |\n|---|---|---|---|---|---|\n"
    found = {(code.name, code.target): code for code in codes}
    lines = []
    for card in CARDS:
        for kernel, traffic in TRAFFIC.items():
            code = found[kernel, card.target]
            assert code.per_32 is not None
            # a warp instruction takes 1, 2 and 8 cycles of one of four schedulers
            turns = card.multiprocessors * 4 * card.ghz * 32 * code.inner_loop / code.per_32
            limits = [turns / code.inner_loop, turns / (2 * code.integer), turns / (8 * code.slow)]
            cells = [f"{limit:.0f}" for limit in (*limits, card.gb_s / sum(traffic))]
            lines.append(f"| {card.name} | {kernel} | {' | '.join(cells)} |\n")
    return head + "".join(lines)


def split_page(text: str, name: str) -> tuple[str, str, str]:
    """What stands before a table, the table, what stands behind it."""
    before, found, rest = text.partition(MARKS[name])
    middle, end, after = rest.partition(END)
    if not found or not end:
        raise SystemExit(f"{PAGE.name} has no place for the table {name}")
    return before + found, middle, end + after


def problems(codes: list[Code], page: str) -> list[str]:
    """What is worse than the table says: spills, more than GROWTH, kernels that it lacks."""
    _, middle, _ = split_page(page, "gpu_code")
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
        registers, _, instructions, inner_loop, _, path = known.pop((code.name, code.target))
        for name, now, before in (
            ("registers", code.registers, registers),
            ("instructions", code.instructions, instructions),
            ("instructions in the inner loop", code.inner_loop, inner_loop),
            ("cycles of a step", round(code.path or 0), path),
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
    codes, of_amd = read_all()
    page = PAGE.read_text()
    if check:
        found = problems(codes, page) + amd_problems(of_amd, page)
        print(
            "\n".join(found)
            or f"{len(codes)} kernels as in {PAGE.name}, {len(of_amd)} for AMD without spills"
        )
        sys.exit(bool(found))
    tables = {"gpu_code": table(codes), "gpu_bounds": bounds(codes), "gpu_amd": amd_table(of_amd)}
    for name, lines in tables.items():
        before, _, after = split_page(page, name)
        page = before + lines + after
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
