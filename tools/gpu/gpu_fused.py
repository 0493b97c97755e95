"""Machine code of spqfmt/kernels/cuda/fused.ptx, as NVIDIA's assembler makes it for a target."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_path import cycles_of_a_turn
from gpu_sass import INTEGER, SLOW, SPILLS, Code, least_turn, opcodes_of, parse, run_tool

from spqfmt import wire
from spqfmt.kernels import cuda
from spqfmt.kernels.cuda.launches import NAMES

PTX = Path(cuda.__file__).with_name("fused.ptx")
BLACKWELL = 100


def read_fused(capability: int, every: bool) -> list[Code]:
    """Count the kernels of one target; not `every` leaves those for more tokens than one out."""
    names = [name for name in NAMES if every or name.endswith("_1") or name == "finish"]
    with TemporaryDirectory() as folder:
        cubin = str(Path(folder) / "fused.cubin")
        assembler = "ptxas-blackwell" if capability >= BLACKWELL else "ptxas"
        entries = f"--entry={','.join(names)}"
        run_tool(assembler, f"-arch=sm_{capability}", entries, str(PTX), "-o", cubin)
        usage = run_tool("cuobjdump", "-res-usage", cubin)
        listing = run_tool("nvdisasm", "-c", cubin)
    texts = dict(re.findall(r"\.section\s+\.text\.(\w+),.*?\n(.*?)(?=\.section\s|\Z)", listing, re.DOTALL))
    used = dict(re.findall(r"Function (\w+):\s*\n\s*(REG:\d+ STACK:\d+)", usage))
    return [_read(name, capability, used[name], texts[name]) for name in names]


def _read(name: str, capability: int, usage: str, text: str) -> Code:
    registers, stack = map(int, re.findall(r"\d+", usage))
    instructions, _ = parse(text)
    turn = [] if name == "finish" else least_turn(text, "VOTE")
    opcodes = opcodes_of(turn)
    steps = wire.RANS_SYMBOLS_PER_LANE
    return Code(
        name=f"fused, {name}",
        target=f"sm_{capability}",
        registers=registers,
        spills=sum(opcode in SPILLS for opcode in opcodes_of(instructions)) or stack // 4,
        instructions=len(instructions),
        inner_loop=len(turn),
        per_32=len(turn) / steps if turn else None,
        integer=sum(opcode in INTEGER for opcode in opcodes),
        slow=sum(opcode in SLOW for opcode in opcodes),
        path=cycles_of_a_turn(turn) / steps if turn else None,
    )
