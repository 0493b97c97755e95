"""What tools/gpu/gpu_code.py reads from a disassembly, and what it calls worse. Compiling is a step of CI."""

import os
from dataclasses import replace

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels that are interpreted are not compiled", allow_module_level=True)

import gpu_code
from gpu_code import Code
from gpu_path import cycles_of_a_turn

LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_1:
        /*0020*/                   STL [R1], R2 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/                   EXIT ;
.L_x_2:
        /*0060*/                   BRA `(.L_x_2);
        /*0070*/                   NOP ;
"""


def test_instructions_and_innermost_loops_of_a_disassembly():
    instructions, loops = gpu_code.parse(LISTING)
    assert [i.split()[0] for i in instructions] == ["MOV", "IADD3", "STL", "@P0", "@P1", "EXIT"]
    assert loops == [range(2, 4)]


@pytest.fixture
def page():
    codes = [Code("a", "sm_90", 20, 0, 100, 40, 10.0), Code("b", "sm_90", 30, 0, 50, 0, None)]
    return codes, "words\n" + gpu_code.MARKS["gpu_code"] + gpu_code.table(codes) + gpu_code.END + "more\n"


def test_the_same_numbers_and_a_little_growth_are_fine(page):
    codes, text = page
    assert gpu_code.problems(codes, text) == []
    assert gpu_code.problems([Code("a", "sm_90", 22, 0, 110, 44, 11.0), codes[1]], text) == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (Code("a", "sm_90", 20, 3, 100, 40, 10.0), "a for sm_90: 3 spills"),
        (Code("a", "sm_90", 23, 0, 100, 40, 10.0), "a for sm_90: 23 registers, 20 in gpu-kernels.md"),
        (Code("a", "sm_90", 20, 0, 111, 40, 10.0), "a for sm_90: 111 instructions, 100 in gpu-kernels.md"),
        (
            Code("a", "sm_90", 20, 0, 100, 45, 11.2),
            "a for sm_90: 45 instructions in the inner loop, 40 in gpu-kernels.md",
        ),
    ],
)
def test_a_spill_and_more_than_ten_percent_are_problems(page, code, problem):
    codes, text = page
    assert gpu_code.problems([code, codes[1]], text) == [problem]


def test_kernels_and_table_must_be_the_same(page):
    codes, text = page
    assert gpu_code.problems([*codes, Code("c", "sm_80", 1, 0, 1, 0, None)], text) == [
        "c for sm_80: not in gpu-kernels.md"
    ]
    assert gpu_code.problems(codes[:1], text) == [
        "b for sm_90: in gpu-kernels.md, but there is no such kernel"
    ]


def test_kernels_for_amd_have_no_spills_and_are_those_of_the_table():
    codes = [gpu_code.AmdCode("a", str(target.arch), 20, 30, 0) for target in gpu_code.AMD]
    text = gpu_code.MARKS["gpu_amd"] + gpu_code.amd_table(codes) + gpu_code.END
    assert gpu_code.amd_problems(codes, text) == []
    spilled = [*codes[:2], replace(codes[2], spills=4)]
    assert gpu_code.amd_problems(spilled, text) == ["a for gfx1201: 4 spills"]
    assert gpu_code.amd_problems([replace(code, name="b") for code in codes], text) == [
        "a: not in gpu-kernels.md, or no kernel",
        "b: not in gpu-kernels.md, or no kernel",
    ]


def test_a_product_of_several_tokens_compiles_for_amd_with_and_without_tf32():
    [variant] = [v for v in gpu_code.variants() if v.name == "multiply 16 tokens, i8 by rows"]
    for target, wants in zip(gpu_code.AMD, ("tf32", "ieee", "ieee"), strict=True):
        assert gpu_code.precision(target) == wants
    assert gpu_code.read_amd(variant, gpu_code.AMD[1]).spills == 0


@pytest.mark.parametrize(
    "variant",
    {v.kernel.fn.__name__: v for v in gpu_code.variants()}.values(),
    ids=lambda v: v.kernel.fn.__name__,
)
def test_kernels_compile_where_all_numbers_are_1(variant):
    names = {parameter.name for parameter in variant.kernel.params if not parameter.is_constexpr}
    ones = {name: 1 for name in names if isinstance(variant.arguments[name], int)}
    assert gpu_code.assemble(replace(variant, arguments={**variant.arguments, **ones}), 90)


def test_every_form_that_the_launcher_compiles_has_all_its_arguments():
    for variant in gpu_code.variants():
        names = {parameter.name for parameter in variant.kernel.params}
        assert names == set(variant.arguments), variant.name


@pytest.mark.parametrize(
    ("body", "cycles"),
    [
        (["LDG.E R1, desc[UR6][R2.64]", "IMAD R2, R1, R1, RZ"], 41 + 5),
        (["LDG.E R1, desc[UR6][R2.64]", "IMAD R4, R1, R1, RZ"], 0),  # the next turn waits for nothing
        # An address has two registers.
        (["LDG.E R1, desc[UR6][R2.64]", "LEA.HI.X R3, R1, R5, RZ, 0x2, P0"], 41 + 5),
        (["REDUX.XOR UR10, R1", "IMAD.U32 R1, RZ, RZ, UR10"], 18 + 12),
        (["SHFL.BFLY PT, R2, R1, 0x10, 0x1f", "LOP3.LUT R1, R1, R2, RZ, 0x3c, !PT"], 23 + 5),
        (["IADD3 R1, P1, R1, R2, RZ", "STG.E desc[UR6][R4.64], R1", "@P1 BRA `(.L_x_1)"], 5),
        (["ISETP.GE.U32.AND P0, PT, R1, R2, PT", "@!P0 IMAD R1, R1, R2, R3"], 13 + 5),
    ],
)
def test_a_step_takes_as_long_as_what_waits_for_each_other(body, cycles):
    assert cycles_of_a_turn(body) == cycles


def test_a_longer_step_is_a_problem(page):
    codes, text = page
    codes = [replace(codes[0], path=195.0), codes[1]]
    text = gpu_code.MARKS["gpu_code"] + gpu_code.table(codes) + gpu_code.END
    assert gpu_code.problems(codes, text) == []
    found = gpu_code.problems([replace(codes[0], path=220.0), codes[1]], text)
    assert found == ["a for sm_90: 220 cycles of a step, 195 in gpu-kernels.md"]
