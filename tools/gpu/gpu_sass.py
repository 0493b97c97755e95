"""Machine code of NVIDIA's cards as text: instructions, loops, and what is counted of them."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
"""NVIDIA's assemblers and disassemblers, in Triton's wheel."""
SPILLS = ("STL", "LDL")
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


def run_tool(tool: str, *arguments: str) -> str:
    """What a tool of TOOLS prints."""
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def opcodes_of(instructions: Iterable[str]) -> list[str]:
    """The operation of each instruction, without its forms."""
    return [re.sub(r"^@\S+ ", "", instruction).split(".")[0].split(" ")[0] for instruction in instructions]


def parse(listing: str) -> tuple[list[str], list[range]]:
    """Instructions of a disassembly, and the numbers of those in each loop that holds no other."""
    labels, instructions = _labelled(listing)
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


def least_turn(listing: str, opcode: str) -> list[str]:
    """The instructions of the shortest way from the first `opcode` of a disassembly back to it.

    What a GPU takes only where lanes have come apart, BRA.DIV and calls, is left out.
    """
    labels, instructions = _labelled(listing)
    start = opcodes_of(instructions).index(opcode)
    came: dict[int, int] = {}
    front = [start]
    while front and start not in came:
        ahead = []
        for number in front:
            for following in _following(instructions[number], number, labels):
                if following not in came and following < len(instructions):
                    came[following] = number
                    ahead.append(following)
        front = ahead
    if start not in came:
        return []
    way = [came[start]]
    while way[-1] != start:
        way.append(came[way[-1]])
    return [instructions[number] for number in reversed(way)]


def _following(instruction: str, number: int, labels: dict[str, int]) -> Sequence[int]:
    jump = re.search(r"^(@\S+ )?BRA\b.*`\((\.L_x_\d+)\)", instruction)
    if jump is None or "BRA.DIV" in instruction:
        return () if re.match(r"EXIT|RET", instruction) else (number + 1,)
    return (labels[jump[2]],) if jump[1] is None else (number + 1, labels[jump[2]])


def _labelled(listing: str) -> tuple[dict[str, int], list[str]]:
    """Where labels are among the instructions of a disassembly."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    return labels, instructions
