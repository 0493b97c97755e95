"""Machine code of the Triton kernels, read without a GPU: registers, spills, instructions of the inner loop.

    python tools/gpu/gpu_code.py            compile for all targets, write the tables into docs/gpu-kernels.md
    python tools/gpu/gpu_code.py --check    compile; fail on a spill, or where a number grew by more than 10 %

Triton compiles for a target that is not there; its wheel has NVIDIA's assembler and disassembler. For AMD's targets
it is compiled as well; of them registers and spills are told, as their compiler writes them.
"""

import argparse
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import triton
from gpu_fused import read_fused
from gpu_path import cycles_of_a_turn
from gpu_sass import INTEGER, SLOW, SPILLS, Code, opcodes_of, parse, run_tool
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
        usage = run_tool("cuobjdump", "-res-usage", str(cubin))
        listing = run_tool("nvdisasm", "-c", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise SystemExit(f"{variant.name}: no resource usage in {usage!r}")
    instructions, loops = parse(listing)
    inner = max(loops, key=len, default=range(0))
    opcodes = opcodes_of([instructions[number] for number in inner])
    spills = sum(opcode in SPILLS for opcode in opcodes_of(instructions))
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
        fused = pool.map(
            read_fused, (*TARGETS, *MORE_TARGETS), ((True,) * len(TARGETS) + (False,) * len(MORE_TARGETS))
        )
        of_amd = pool.map(_read_amd, [(name, number) for name in names for number in range(len(AMD))])
        found = [*codes, *(code for own in fused for code in own)]
        return found, list(of_amd)


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
