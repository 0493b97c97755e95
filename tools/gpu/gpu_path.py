"""How long instructions take that wait for each other: the least time of a loop's turn, however idle the machine.

Every instruction begins when what it reads is there. Latencies in cycles are those that are published for NVIDIA's
machines since 2018 (arXiv 1804.06826, 2402.13499), loads those of the first cache.
"""

import re
from collections.abc import Sequence

LATENCIES = {
    "LDG": 41,
    "LDS": 29,
    "SHFL": 23,
    "S2R": 20,
    "REDUX": 18,
    "POPC": 15,
    "ISETP": 13,
    "VOTE": 12,
}
"""Opcodes that take longer than the others."""
OTHERS = 5
FROM_UNIFORM = 12
"""A multiplication that reads a register of the whole warp."""
_NO_RESULT = ("STG", "BRA", "NOP", "WARPSYNC", "CALL", "RET", "ATOMG", "RED")
_REGISTER = re.compile(r"\b(UR\d+|R\d+|UP\d|P\d)\b")
_TURNS = 20


def cycles_of_a_turn(body: Sequence[str]) -> float:
    """The critical path of one turn of a loop of these instructions, in its steady state."""
    ready: dict[str, float] = {}
    after = []
    for _ in range(2):
        for _ in range(_TURNS):
            for instruction in body:
                _follow(instruction, ready)
        after.append(max(ready.values(), default=0.0))
    return (after[1] - after[0]) / _TURNS


def _follow(instruction: str, ready: dict[str, float]) -> None:
    """Note when what an instruction writes is there."""
    words = instruction.split()
    opcode = words[1 if words[0].startswith("@") else 0]
    name = opcode.split(".")[0]
    if name in _NO_RESULT:
        return
    registers = _REGISTER.findall(instruction)
    operands = instruction.split(opcode, 1)[1].split(",")
    written = _REGISTER.findall(operands[0])
    if len(operands) > 1 and (name == "SHFL" or re.fullmatch(r"\s*P\d\s*", operands[1])):
        written += _REGISTER.findall(
            operands[1]
        )  # a carry, the second result of a comparison, the first of a shuffle
    read = [r for r in registers if r not in written] + [r for r in written if registers.count(r) > 1]
    # An address has two registers.
    read += [f"R{int(n) + 1}" for n in re.findall(r"\[R(\d+)", instruction)]
    start = max((ready.get(register, 0.0) for register in read), default=0.0)
    latency = LATENCIES.get(name, OTHERS)
    if name == "IMAD" and any(register.startswith("UR") for register in read):
        latency = FROM_UNIFORM
    for register in written:
        ready[register] = start + latency
