"""Products and sums that ptxas fuses, and those that it leaves."""

from __future__ import annotations

import pytest

from mmabits.emulator.machine.fusion import contracted
from mmabits.emulator.machine.ptx import read_ptx


def after(body: str) -> list[str]:
    """The opcodes and operands that are left."""
    text = (
        ".version 8.8\n.target sm_80\n.visible .entry k() {\n.reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .pred %p<4>;\n"
        + body + "\nret;\n}"
    )  # fmt: skip
    found, _ = contracted(read_ptx(text).entries["k"])

    def name(operand: object) -> str:
        inner = getattr(operand, "operand", None)
        return f"-{name(inner)}" if inner is not None else str(getattr(operand, "name", operand))

    return [f"{each.opcode} {' '.join(map(name, each.operands))}" for each in found.instructions[:-1]]


@pytest.mark.parametrize(("body", "wanted"), [
    ("mul.f32 %r1, %r2, %r3; add.f32 %r4, %r1, %r5;", ["fma.rn.f32 %r4 %r2 %r3 %r5"]),
    ("mul.f32 %r1, %r2, %r3; add.f32 %r4, %r5, %r1;", ["fma.rn.f32 %r4 %r2 %r3 %r5"]),
    ("mul.f32 %r1, %r2, %r3; sub.f32 %r4, %r1, %r5;", ["fma.rn.f32 %r4 %r2 %r3 -%r5"]),
    ("mul.f32 %r1, %r2, %r3; sub.f32 %r4, %r5, %r1;", ["fma.rn.f32 %r4 -%r2 %r3 %r5"]),
    # of ab + cd the first operand of the sum is fused
    ("mul.f32 %r1, %r2, %r3; mul.f32 %r6, %r7, %r8; add.f32 %r4, %r1, %r6;", ["mul.f32 %r6 %r7 %r8", "fma.rn.f32 %r4 %r2 %r3 %r6"]),
    # two sums: fused in both
    ("mul.f32 %r1, %r2, %r3; add.f32 %r4, %r1, %r5; add.f32 %r6, %r1, %r7;", ["fma.rn.f32 %r4 %r2 %r3 %r5", "fma.rn.f32 %r6 %r2 %r3 %r7"]),
    # a product that one of two sums takes stays for the other
    ("mul.f32 %r1, %r2, %r3; mul.f32 %r6, %r7, %r8; add.f32 %r4, %r1, %r5; add.f32 %r9, %r6, %r1;",
     ["mul.f32 %r1 %r2 %r3", "fma.rn.f32 %r4 %r2 %r3 %r5", "fma.rn.f32 %r9 %r7 %r8 %r1"]),
    ("mul.f32x2 %rd1, %rd2, %rd3; add.f32x2 %rd4, %rd1, %rd5;", ["fma.rn.f32x2 %rd4 %rd2 %rd3 %rd5"]),
    ("mul.f16x2 %r1, %r2, %r3; add.f16x2 %r4, %r1, %r5;", ["fma.rn.f16x2 %r4 %r2 %r3 %r5"]),
])  # fmt: skip
def test_fused(body: str, wanted: list[str]) -> None:
    assert after(body) == wanted


@pytest.mark.parametrize("body", [
    "mul.f32 %r1, %r2, %r3; add.f32 %r4, %r1, %r5; st.global.b32 [%rd1], %r1;",  # stored too
    "mul.rn.f32 %r1, %r2, %r3; add.f32 %r4, %r1, %r5;",
    "mul.f32 %r1, %r2, %r3; add.rn.f32 %r4, %r1, %r5;",
    "mul.ftz.f32 %r1, %r2, %r3; add.f32 %r4, %r1, %r5;",
    "mul.f32 %r1, %r2, %r3; add.f64 %rd4, %rd1, %rd5;",
    "mul.lo.s32 %r1, %r2, %r3; add.s32 %r4, %r1, %r5;",
    "@%p1 mul.f32 %r1, %r2, %r3; add.f32 %r4, %r1, %r5;",
    "mul.f32 %r1, %r2, %r3; @%p1 add.f32 %r4, %r1, %r5;",
    "mul.f32 %r1, %r2, %r3; mul.f32 %r1, %r6, %r7; add.f32 %r4, %r1, %r5;",  # the product is written twice
    "mov.b32 %r2, 0; mov.b32 %r2, 1; mul.f32 %r1, %r2, %r3; add.f32 %r4, %r1, %r5;",  # a factor is
])  # fmt: skip
def test_left(body: str) -> None:
    assert not any(each.startswith("fma") for each in after(body))
