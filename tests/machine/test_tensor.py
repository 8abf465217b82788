"""mma.sync in a kernel, of every type and architecture, against `mmabits.gemm`: fragments, chains along K, tiles side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import operands
import pytest
from machine_values import finite_codes

import mmabits
from mmabits.conformance.record.session import recordable, representatives
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.emulator.machine.kernel import Kernel
from mmabits.isa import MmabitsError
from mmabits.isa.fragments import Layout, accumulator_layout, operand_layout, register_bits, scale_layout
from mmabits.isa.instructions import Instruction

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
CHAIN = 2


def instructions() -> list[object]:
    found = []
    for arch in ARCHITECTURES:
        for instruction in recordable(arch, only="mma.sync"):
            quick = instruction in representatives(arch)
            found.append(pytest.param(arch, instruction, marks=() if quick else pytest.mark.slow, id=f"{arch}-{instruction.ptx}"))
    return found


def kernel_text(instruction: Instruction, layouts: dict[str, Layout], tiles: int) -> str:
    """A warp that loads the fragments of A, of `tiles` B, and of C, multiplies CHAIN times, and stores D."""
    lines, names = [], {}
    for name, layout in layouts.items():
        bits = register_bits(layout.spec) if name in "abc" else 32
        copies = 1 if name in ("a", "scale_a") else tiles
        count = layout.words * 32 // bits // 32
        for copy in range(copies):
            names[name, copy] = [f"%{name}{copy}_{place}" for place in range(count)]
            for place, register in enumerate(names[name, copy]):
                lines.append(f".reg .b{bits} {register};")
                offset = (copy * count + place) * 4 * bits
                lines.append(f"ld.global.b{bits} {register}, [%rd_{name}_{bits}+{offset}];")
    for tile in range(tiles):
        for step in range(CHAIN):

            def part(name: str, copy: int, step: int = step) -> str:
                registers = names[name, copy]
                count = len(registers) // (CHAIN if name != "c" else 1)
                start = step * count if name != "c" else 0
                return "{" + ", ".join(registers[start : start + count]) + "}"

            scales = ""
            if "scale_a" in layouts:
                scales = f", {names['scale_a', 0][step]}, {{0, 0}}, {names['scale_b', tile][step]}, {{0, 0}}"
            lines.append(f"{instruction.ptx} {part('c', tile)}, {part('a', 0)}, {part('b', tile)}, {part('c', tile)}{scales};")
    for tile in range(tiles):
        bits = register_bits(instruction.d_type)
        for place, register in enumerate(names["c", tile]):
            lines.append(f"st.global.b{bits} [%rd_c_{bits}+{(tile * len(names['c', tile]) + place) * 4 * bits}], {register};")
    head = []
    for place, name in enumerate(layouts):
        head.append(f".reg .b64 %rd_{name}; ld.param.b64 %rd_{name}, [k_{place}];")
        for bits in (32, 64):
            head.append(f".reg .b64 %rd_{name}_{bits}; mad.wide.u32 %rd_{name}_{bits}, %lane, {bits // 8}, %rd_{name};")
    parameters = ", ".join(f".param .u64 k_{place}" for place in range(len(layouts)))
    body = "\n".join([".reg .b32 %lane; mov.u32 %lane, %tid.x;", *head, *lines, "ret;"])
    return f".version 8.8\n.target sm_80\n.visible .entry k({parameters}) .reqntid 32 {{\n{body}\n}}"


@pytest.mark.parametrize(("arch", "instruction"), instructions())
def test_a_chain_of_two_beside_another(arch: str, instruction: Instruction) -> None:
    rng, tiles = operands.generator("machine", arch, instruction.ptx), 2
    layouts = {
        "a": operand_layout(instruction, side="a", chain=CHAIN), "b": operand_layout(instruction, side="b", chain=CHAIN),
        "c": accumulator_layout(instruction),
    }  # fmt: skip
    if instruction.scale_type is not None:
        layouts["scale_a"] = scale_layout(instruction, side="a", chain=CHAIN)
        layouts["scale_b"] = scale_layout(instruction, side="b", chain=CHAIN)
    codes = {
        name: finite_codes(rng, (1 if name in ("a", "scale_a") else tiles, *layout.shape), layout.spec) for name, layout in layouts.items()
    }
    words = {name: layout.pack(codes[name]) for name, layout in layouts.items()}
    made = Kernel(kernel_text(instruction, layouts, tiles), arch=arch)
    held = {name: np.ascontiguousarray(each) for name, each in words.items()}
    made.launch(
        (1,), [each.ctypes.data for each in held.values()], [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in held.values()]
    )
    found = layouts["c"].unpack(held["c"])

    def values(name: str, tile: int) -> Any:
        return from_codes(codes[name][0 if name in ("a", "scale_a") else tile], layouts[name].spec)

    for tile in range(tiles):
        scales: dict[str, Any] = {}
        if "scale_a" in layouts:
            scales = {name: values(name, tile) for name in ("scale_a", "scale_b")}
        wanted = mmabits.gemm(values("a", tile), values("b", tile), values("c", tile), instruction=instruction, arch=arch, **scales)
        assert np.array_equal(found[tile], as_codes(wanted, instruction.d_type))
    assert len(made.matrices) == 1 and [kind.columns for kind in made._uniform.products.kinds] == [tiles]


def test_an_instruction_that_the_architecture_lacks() -> None:
    (instruction,) = [each for each in recordable("sm_89", only="m16n8k32") if "e4m3.e4m3.f32" in each.ptx and "mma.sync" in each.ptx][:1]
    layouts = {
        "a": operand_layout(instruction, side="a", chain=CHAIN), "b": operand_layout(instruction, side="b", chain=CHAIN),
        "c": accumulator_layout(instruction),
    }  # fmt: skip
    with pytest.raises(MmabitsError, match=r"is not emulated"):
        Kernel(kernel_text(instruction, layouts, 1), arch="sm_80")


@pytest.mark.parametrize("read", ["stored", "added to twice", "by nothing else"])
def test_a_sum_on_the_way_that_something_else_reads(read: str) -> None:
    """C of a product is D of the one before, in other registers: D of both counts."""
    multiply = (
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{0}0, {0}1, {0}2, {0}3}}, {{%a0, %a1, %a2, %a3}}, {{%a4, %a5}}, {{{1}}};"
    )
    products = [multiply.format("%d", "%z, %z, %z, %z"), multiply.format("%e", "%d0, %d1, %d2, %d3")]
    products += [multiply.format("%f", "%d0, %d1, %d2, %d3")] if read == "added to twice" else []
    stored = {"stored": "ed", "added to twice": "ef", "by nothing else": "e"}[read]
    lines = [
        ".reg .b32 %lane, %z, %a<6>, %d<4>, %e<4>, %f<4>; .reg .b64 %p; ld.param.b64 %p, [k_0];",
        "mov.u32 %lane, %tid.x; mad.wide.u32 %p, %lane, 32, %p; mov.b32 %z, 0;", *(f"mov.b32 %a{each}, 0x3C003C00;" for each in range(6)),
        *products, *(f"st.global.v4.b32 [%p+{16 * at}], {{%{x}0, %{x}1, %{x}2, %{x}3}};" for at, x in enumerate(stored)),
    ]  # fmt: skip
    text = ".version 8.8\n.target sm_80\n.visible .entry k(.param .u64 k_0) .reqntid 32 {\n" + "\n".join(lines) + "\nret;\n}"
    found = np.zeros((32, 8), np.float32)
    made = Kernel(text, arch="sm_80")
    made.launch((1,), [found.ctypes.data], [(found.ctypes.data, found.ctypes.data + found.nbytes)])
    wanted = {"stored": (32, 16), "added to twice": (32, 32), "by nothing else": (32, 0)}[read]
    assert np.array_equal(found, np.repeat(np.array([wanted], np.float32), 4, axis=1).repeat(32, axis=0))
    assert [kind.steps for kind in made._uniform.products.kinds] == ([2] if read == "by nothing else" else [1])
