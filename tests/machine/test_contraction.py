"""Products and sums that ptxas fuses, and those that it leaves; what it computes of constants. All of it stands in machine code too."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

import mmabits
from mmabits.emulator.machine.fusion import contracted, folded
from mmabits.emulator.machine.ptx import read_ptx
from mmabits.emulator.machine.sass import FusionCheck, assemble
from mmabits.isa import OperandError
from mmabits.isa.contraction import CONTRACTIONS, contraction
from mmabits.isa.errors import DeviceUnavailable

HEAD = """.version 8.8
.target {arch}
.address_size 64
.visible .entry k(.param .u64 p) {{
.reg .b32 %r<60>; .reg .b64 %rd<60>; .reg .pred %p<4>; .reg .b16 %h<60>;
ld.param.u64 %rd0, [p];
"""
INPUTS = "".join(f"ld.global.b32 %r{k + 10}, [%rd0+{4 * k}]; ld.global.b64 %rd{k + 10}, [%rd0+{8 * k + 64}];\n" for k in range(6))
INPUTS += "setp.gt.f32 %p1, %r14, %r15;\n"
A, B, C, D, E = (f"%r{k}" for k in range(10, 15))
"""Registers that hold what was loaded."""
FUSED = {
    "a sum": (f"mul.f32 %r1, {A}, {B}; add.f32 %r2, %r1, {C};", "fma A B C"),
    "its other operand": (f"mul.f32 %r1, {A}, {B}; add.f32 %r2, {C}, %r1;", "fma A B C"),
    "less": (f"mul.f32 %r1, {A}, {B}; sub.f32 %r2, %r1, {C};", "fma A B -C"),
    "from": (f"mul.f32 %r1, {A}, {B}; sub.f32 %r2, {C}, %r1;", "fma -A B C"),
    "flushed": (f"mul.ftz.f32 %r1, {A}, {B}; add.ftz.f32 %r2, %r1, {C};", "fma A B C"),
    "saturated": (f"mul.f32 %r1, {A}, {B}; add.sat.f32 %r2, %r1, {C};", "fma A B C"),
    "a copy": (f"mul.f32 %r1, {A}, {B}; mov.b32 %r3, %r1; add.f32 %r2, %r3, {C};", "fma A B C"),
    "a negative": (f"mul.f32 %r1, {A}, {B}; neg.f32 %r3, %r1; add.f32 %r2, %r3, {C};", "fma -A B C"),
    "less a negative": (f"mul.f32 %r1, {A}, {B}; neg.f32 %r3, %r1; sub.f32 %r2, {C}, %r3;", "fma A B C"),
    "under a guard": (f"mul.f32 %r1, {A}, {B}; mov.b32 %r2, {D}; @%p1 add.f32 %r2, %r1, {C};", "mov D, fma A B C"),
    "the first of two": (f"mul.f32 %r1, {A}, {B}; mul.f32 %r3, {C}, {D}; add.f32 %r2, %r1, %r3;", "mul C D, fma A B r3"),
    "two sums": (f"mul.f32 %r1, {A}, {B}; add.f32 %r2, %r1, {C}; add.f32 %r3, %r1, {D};", "fma A B C, fma A B D"),
    "the one with one use": (
        f"mul.f32 %r1, {A}, {B}; mul.f32 %r4, {C}, {D}; add.f32 %r2, %r1, %r4; add.f32 %r3, %r1, {E};",
        "mul A B, fma C D r1, add r1 E"),
    "likewise, later": (
        f"mul.f32 %r1, {A}, {B}; mul.f32 %r4, {C}, {D}; add.f32 %r3, %r1, {E}; add.f32 %r2, %r4, %r1;",
        "mul A B, add r1 E, fma C D r1"),
    "of two with two uses the first": (
        f"mul.f32 %r1, {A}, {B}; mul.f32 %r4, {C}, {D}; add.f32 %r2, %r1, %r4; add.f32 %r3, %r1, {E}; add.f32 %r5, %r4, {E};",
        "mul C D, fma A B r4, fma A B E, add r4 E"),
    "one that another sum needs": (
        f"mul.f32 %r1, {A}, {B}; mul.f32 %r4, {C}, {D}; add.f32 %r3, %r1, {E}; add.f32 %r5, %r4, {E}; add.f32 %r2, %r1, %r4;",
        "mul C D, fma A B E, fma C D E, fma A B r4"),
    "across a barrier": (f"mul.f32 %r1, {A}, {B}; bar.sync 0; add.f32 %r2, %r1, {C};", "bar, fma A B C"),
    "a factor written anew": (
        f"mul.f32 %r1, {A}, {B}; add.f32 {A}, {C}, {D}; add.f32 %r2, %r1, {C}; st.global.b32 [%rd0], {A};",
        "mov A, add C D, fma fused1 B C"),
    "a product written anew": (
        f"mul.f32 %r1, {A}, {B}; add.f32 %r2, %r1, {C}; mul.f32 %r1, {C}, {D}; add.f32 %r3, %r1, {E};", "fma A B C, fma C D E"),
    "pairs": ("mul.f32x2 %rd1, %rd10, %rd11; add.f32x2 %rd2, %rd1, %rd12;", "fma rd10 rd11 rd12"),
    "f16x2": (f"mul.f16x2 %r1, {A}, {B}; add.f16x2 %r2, %r1, {C};", "fma A B C"),
    "f64": ("mul.f64 %rd1, %rd10, %rd11; sub.f64 %rd2, %rd1, %rd12;", "fma rd10 rd11 -rd12"),
}  # fmt: skip
LEFT = {
    "stored too": f"mul.f32 %r1, {A}, {B}; add.f32 %r2, %r1, {C}; st.global.b32 [%rd0], %r1;",
    "a factor too": f"mul.f32 %r1, {A}, {B}; add.f32 %r2, %r1, {C}; mul.f32 %r3, %r1, {D}; st.global.b32 [%rd0], %r3;",
    "the product rounds": f"mul.rn.f32 %r1, {A}, {B}; add.f32 %r2, %r1, {C};",
    "the sum rounds": f"mul.f32 %r1, {A}, {B}; add.rn.f32 %r2, %r1, {C};",
    "one flushes": f"mul.ftz.f32 %r1, {A}, {B}; add.f32 %r2, %r1, {C};",
    "the product saturates": f"mul.sat.f32 %r1, {A}, {B}; add.f32 %r2, %r1, {C};",
    "the product is guarded": f"mov.b32 %r1, {D}; @%p1 mul.f32 %r1, {A}, {B}; add.f32 %r2, %r1, {C};",
    "twice itself": f"mul.f32 %r1, {A}, {B}; add.f32 %r2, %r1, %r1;",
    "less itself": f"mul.f32 %r1, {A}, {B}; neg.f32 %r3, %r1; add.f32 %r2, %r1, %r3;",
    "magnitude": f"mul.f32 %r1, {A}, {B}; abs.f32 %r3, %r1; add.f32 %r2, %r3, {C};",
    "a choice": f"mul.f32 %r1, {A}, {B}; selp.b32 %r3, %r1, {D}, %p1; add.f32 %r2, %r3, {C};",
    "in another block": f"mul.f32 %r1, {A}, {B}; mov.b32 %r2, {D}; @%p1 bra L1; bar.sync 0; add.f32 %r2, %r1, {C}; L1:",
    "from two blocks": f"mul.f32 %r1, {A}, {B}; @%p1 bra L2; bar.sync 0; mul.f32 %r1, {C}, {D}; L2: add.f32 %r2, %r1, {E};",
    "in a loop": f"mul.f32 %r1, {A}, {B}; mov.b32 %r2, {C}; mov.u32 %r3, %tid.x; L3: bar.sync 0; add.f32 %r2, %r2, %r1; "
                 "sub.s32 %r3, %r3, 1; setp.gt.s32 %p2, %r3, 0; @%p2 bra L3;",
}  # fmt: skip
NAMES = {"r10": "A", "r11": "B", "r12": "C", "r13": "D", "r14": "E"}


def written(body: str, arch: str = "sm_80") -> str:
    """A kernel with the results of a body stored, one instruction to a line."""
    results = dict.fromkeys(re.findall(r"[\w.]+ (%(?:r|rd)\d)\b,", re.sub(r"\[.*?\]", "", body)))
    stores = [f"st.global.{'b64' if name.startswith('%rd') else 'b32'} [%rd0+{128 + 8 * k}], {name};" for k, name in enumerate(results)]
    last = set(re.findall(r"(?:add|sub)[\w.]* (%(?:r|rd)\d)\b", body))
    kept = [each for each in stores if each.split()[-1].rstrip(";") in last]
    return HEAD.format(arch=arch) + INPUTS + body.replace("; ", ";\n") + "\n" + "\n".join(kept) + "\nret;\n}\n"


def after(body: str, arch: str = "sm_80") -> str:
    """What is left of a body."""

    def name(operand: object) -> str:
        inner = getattr(operand, "operand", None)
        if inner is not None:
            return f"-{name(inner)}"
        plain = str(getattr(operand, "name", operand)).lstrip("%")
        return NAMES.get(plain, plain)

    found, _ = contracted(read_ptx(written(body, arch)).entries["k"], contraction(arch))
    kept = [each for each in found.instructions if not each.opcode.startswith(("ld.", "st.", "ret", "setp"))]
    read = (f"{each.opcode.partition('.')[0]} {' '.join(map(name, each.operands[1:]))}".strip() for each in kept)
    return ", ".join("bar" if each.startswith("bar") else each for each in read)


@pytest.mark.parametrize("case", FUSED)
def test_fused(case: str) -> None:
    body, wanted = FUSED[case]
    assert after(body, "sm_100a") == wanted


@pytest.mark.parametrize("case", LEFT)
def test_left(case: str) -> None:
    assert "fma" not in after(LEFT[case])


def machine_code(text: str, arch: str) -> FusionCheck:
    """The comparison, or a test that is skipped."""
    try:
        return mmabits.check_fusion(text, arch=arch)
    except DeviceUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"])
def test_the_machine_code_says_the_same(arch: str) -> None:
    """All cases, each a kernel of one text."""
    bodies = {**{name: body for name, (body, _) in FUSED.items()}, **LEFT}
    if arch in ("sm_80", "sm_89", "sm_90a"):
        del bodies["pairs"]
    head, _, _ = HEAD.format(arch=arch).partition(".visible")
    texts = [written(body, arch).removeprefix(head).replace("entry k(", f"entry k{place}(") for place, body in enumerate(bodies.values())]
    text = head + "".join(texts)
    try:
        cubin = assemble(text, arch=arch)
    except DeviceUnavailable as error:
        pytest.skip(str(error))
    found = [mmabits.check_fusion(text, arch=arch, kernel=f"k{place}", cubin=cubin) for place in range(len(bodies))]
    parted = [f"{name}: {each}" for name, each in zip(bodies, found, strict=True) if not each.agrees or not each.compared]
    assert not parted, "\n".join(parted)


@pytest.mark.parametrize(("arch", "sets"), [("sm_100a", 0), ("sm_120a", 2)])
def test_pairs_are_two_operations_on_geforce_blackwell(arch: str, sets: int) -> None:
    """Their halves are fused each by itself, through what packs and unpacks them."""
    body = "mul.f32x2 %rd1, %rd10, %rd11; mov.b64 {%r3, %r4}, %rd1; add.f32 %r1, %r3, %r12; add.f32 %r2, %r4, %r13;"
    assert Counter(after(body, arch).split())["fma"] == sets
    packed = "mul.f32 %r1, %r10, %r11; mul.f32 %r3, %r12, %r13; mov.b64 %rd1, {%r1, %r3}; add.f32x2 %rd2, %rd1, %rd10;"
    assert Counter(after(packed, arch).split())["fma"] == sets
    for text in (body, packed):
        assert machine_code(written(text, arch), arch).agrees


def test_rows() -> None:
    assert {row.source for row in CONTRACTIONS} == {"machine-code"}
    assert not contraction("sm_100a").splits_pairs and contraction("rtx5090").splits_pairs
    assert contraction("sm_86").assembler == contraction("a100").assembler


def numbers(codes: list[int]) -> list[float]:
    return [float(np.uint32(code).view(np.float32)) for code in codes]


def constants(body: str, *, contracts: bool = True) -> list[tuple[str, list[int]]]:
    """Opcodes and numbers of a body."""
    found = folded(read_ptx(written(body)).entries["k"], contracts=contracts)
    kept = [each for each in found.instructions if not each.opcode.startswith(("ld.", "st.", "ret", "setp"))]
    return [(each.opcode, [one.number for one in each.operands if hasattr(one, "number")]) for each in kept]


def test_a_constant_divisor_becomes_its_rounded_reciprocal() -> None:
    """Not the unit's: 3 has another there."""
    assert constants(f"div.full.f32 %r1, {A}, 0f40400000;") == [("mul.f32", [0x3EAAAAAB])]
    assert constants(f"div.full.f32 %r1, {A}, 0f40400000;", contracts=False) == [("mul.rn.f32", [0x3EAAAAAB])]
    assert constants(f"mov.b32 %r3, 0f43E00000; div.approx.ftz.f32 %r1, {A}, %r3;")[1] == ("mul.ftz.f32", [0x3B124925])
    large = constants(f"div.full.f32 %r1, {A}, 0f7F000000;")
    assert [opcode for opcode, _ in large] == ["mul.rn.f32", "mul.f32"] and numbers([each[0] for _, each in large]) == [0.25, 2.0**-125]
    small = constants(f"div.full.f32 %r1, {A}, 0f00400000;")
    assert numbers([each[0] for _, each in small]) == [2.0**24, 2.0**103]
    assert constants(f"div.full.f32 %r1, {A}, 0f7F800000;")[0][0] == "div.full.f32"


@pytest.mark.parametrize(("opcode", "x", "wanted"), [
    ("rcp.approx.ftz.f32", 3.0, 1 / 3), ("ex2.approx.f32", 0.3, 2**0.3), ("rsqrt.approx.ftz.f32", 3.0, 3**-0.5),
    ("lg2.approx.f32", 3.0, 1.5849625), ("sin.approx.f32", 1.0, 0.841470985), ("cos.approx.f32", 1.0, 0.540302306),
    ("sqrt.approx.f32", 2.0, 2**0.5),
])  # fmt: skip
def test_functions_of_constants_are_correctly_rounded(opcode: str, x: float, wanted: float) -> None:
    code = int(np.float32(x).view(np.uint32))
    wanted = {0.3: float(np.float32(2.0 ** float(np.float32(0.3))))}.get(x, wanted)
    assert constants(f"{opcode} %r1, 0f{code:08X};") == [("mov.b32", [int(np.float32(wanted).view(np.uint32))])]


def test_what_is_no_normal_number_is_left_to_the_unit() -> None:
    for opcode, code in (("rcp.approx.f32", 0), ("ex2.approx.f32", 0xC3000000), ("lg2.approx.f32", 0xBF800000), ("rsqrt.approx.f32", 1)):
        assert constants(f"{opcode} %r1, 0f{code:08X};")[0][0] == opcode


def test_what_cannot_be_compared_is_an_error() -> None:
    with pytest.raises(OperandError, match="got 'other'"):
        mmabits.check_fusion(written(FUSED["a sum"][0]), arch="sm_80", kernel="other")


def test_a_difference_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the rule fused nothing."""
    from mmabits.emulator.machine import sass

    text = written(FUSED["a sum"][0])
    assert "all as in the machine code" in str(machine_code(text, "sm_80"))
    monkeypatch.setattr(sass, "contracted", lambda entry, rule: (entry, 0))
    found = machine_code(text, "sm_80")
    assert not found.agrees and "here sum, in the machine code fused" in str(found) and "(line" in str(found)
