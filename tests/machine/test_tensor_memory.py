"""Tensor memory of a kernel: allocation, every shape of tcgen05.ld and tcgen05.st, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import operands
import pytest

from mmabits.emulator.machine.kernel import Kernel, KernelError
from mmabits.emulator.machine.warp import UnknownOpcode
from mmabits.isa.fragments import TRANSFER_SHAPES, transfer_places

HEAD = ".version 8.8\n.target sm_100a\n.address_size 64\n"
ALLOCATED = """
	.shared .align 16 .b8 place[16];
	.reg .pred %p<9>; .reg .b32 %r<400>; .reg .b64 %rd<9>; .reg .b32 %warp, %lane, %base, %mine;
	ld.param.b64 %rd1, [k_0]; ld.param.b64 %rd2, [k_1];
	mov.u32 %r1, %tid.x; shr.u32 %warp, %r1, 5; and.b32 %lane, %r1, 31;
	setp.eq.b32 %p1, %warp, 0; mov.b32 %r2, place;
	@%p1 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r2], COLUMNS;
	bar.sync 0;
	ld.shared.b32 %base, [place];
	shl.b32 %r3, %warp, 21; add.s32 %mine, %base, %r3;
"""
"""%base: the address of what is allocated, %mine: that of the warp's quarter."""
FREED = """
	bar.sync 0;
	@%p1 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
	@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %base, COLUMNS;
	ret;
"""


def kernel(body: str, *, warps: int = 4, columns: int = 512, freed: str = FREED, arch: str = "sm_100a") -> Kernel:
    text = f"{HEAD}.visible .entry k(.param .u64 k_0, .param .u64 k_1) .reqntid {32 * warps} {{{ALLOCATED}{body}{freed}}}"
    return Kernel(text.replace("COLUMNS", str(columns)), arch=arch)


def run(made: Kernel, *arrays: npt.NDArray[Any], grid: int = 1) -> None:
    ranges = [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
    made.launch((grid,), [each.ctypes.data for each in arrays], ranges)


def registers(prefix: str, count: int) -> str:
    return "{" + ", ".join(f"%{prefix}{place}" for place in range(count)) + "}"


def moved(pointer: int, prefix: str, count: int, *, store: bool) -> str:
    """Registers of all threads from or to an array, (registers, threads)."""
    lines = [f".reg .b32 %{prefix}<{count}>; .reg .b64 %{prefix}at; mad.wide.u32 %{prefix}at, %r1, 4, %rd{pointer};"]
    for place in range(count):
        memory, register = f"[%{prefix}at+{512 * place}]", f"%{prefix}{place}"
        lines.append(f"st.global.b32 {memory}, {register};" if store else f"ld.global.b32 {register}, {memory};")
    return "\n".join(lines)


def transfers() -> list[tuple[str, int, bool]]:
    found = []
    for shape, row in TRANSFER_SHAPES.items():
        number = 1
        while number <= row.most:
            if number in (1, 8, row.most):
                found.append((shape, number, False))
            if number in (4, row.most // 2):
                found.append((shape, number, True))
            number *= 2
    return found


@pytest.mark.parametrize(("shape", "number", "packed"), transfers())
def test_what_is_stored_is_loaded_by_cells(shape: str, number: int, packed: bool) -> None:
    """Stored in one shape, loaded one row after another, and the other way round: the places are those of isa/fragments.py."""
    row = TRANSFER_SHAPES[shape]
    count = row.registers * number
    halves, split = 2 if shape == "16x32bx2" else 1, 2 * number + 32
    columns = row.columns * number * (2 if packed else 1)
    middle = f", {split}" if halves == 2 else ""
    loaded = f"{split + columns}" if halves == 2 else f"{columns}"
    half = 16 if row.rows == 16 else 0
    width = 1
    while width < int(loaded):
        width *= 2
    rng = operands.generator("tensor memory", shape, number, packed)
    given = rng.integers(0, 1 << 32, (count, 128), np.uint32)
    found = np.zeros((min(width, 128), 128), np.uint32)
    start = [f"add.s32 %r5, %mine, {(half << 16) + 32};", moved(1, "g", count, store=False)]
    word = f"{shape}.x{number}"
    start.append(f"tcgen05.st.sync.aligned.{word}{'.unpack::16b' if packed else ''}.b32 [%r5]{middle}, {registers('g', count)};")
    ends = ["tcgen05.wait::st.sync.aligned;"]
    plain = [f"tcgen05.ld.sync.aligned.32x32b.x{len(found)}.b32 {registers('f', len(found))}, [%mine+32];"]
    body = "\n".join([*start, *ends, f".reg .b32 %f<{len(found)}>;", *plain, "tcgen05.wait::ld.sync.aligned;",
                      moved(2, "f", len(found), store=True).replace(f".reg .b32 %f<{len(found)}>;", "")])  # fmt: skip
    run(kernel(body), given, found)
    wanted = np.zeros((4, 32, 512), np.uint32)
    lanes, places = transfer_places(shape, number, split=split, packed=packed)
    for warp in range(4):
        words = given[:, 32 * warp : 32 * warp + 32]
        parts = np.stack([words & 0xFFFF, words >> 16], axis=-1) if packed else words[..., None]
        wanted[warp, lanes + half, places] = parts
    assert np.array_equal(found, wanted[:, :, : len(found)].reshape(128, len(found)).T)
    # The other way round, from random cells.
    cells = rng.integers(0, 1 << 32, (128, 128), np.uint32)
    back = np.zeros((count, 128), np.uint32)
    body = "\n".join([
        f"add.s32 %r5, %mine, {half << 16};", moved(1, "c", 128, store=False),
        *(f"tcgen05.st.sync.aligned.32x32b.x128.b32 [%mine+{128 * place}], {registers('c', 128)};" for place in range(4)),
        f".reg .b32 %b<{count}>;",
        f"tcgen05.ld.sync.aligned.{word}{'.pack::16b' if packed else ''}.b32 {registers('b', count)}, [%r5]{middle};",
        moved(2, "b", count, store=True).replace(f".reg .b32 %b<{count}>;", ""),
    ])  # fmt: skip
    run(kernel(body), cells, back)
    for warp in range(4):
        held = np.tile(cells[:, 32 * warp : 32 * warp + 32].T, (1, 4))[lanes + half, places]
        want = held[..., 0] & 0xFFFF | held[..., 1] << 16 if packed else held[..., 0]
        assert np.array_equal(back[:, 32 * warp : 32 * warp + 32], want)


def test_whole_rows_without_a_lane_are_those_of_the_warp() -> None:
    """DeepGEMM's kernels load 32x32b at lane 0 in every warp."""
    given = np.random.default_rng(0).integers(0, 1 << 32, (4, 128), np.uint32)
    found = np.zeros((4, 128), np.uint32)
    body = "\n".join([
        moved(1, "g", 4, store=False), f"tcgen05.st.sync.aligned.32x32b.x4.b32 [%mine+8], {registers('g', 4)};", ".reg .b32 %f<4>;",
        f"tcgen05.ld.sync.aligned.32x32b.x4.b32 {registers('f', 4)}, [%base+8];",
        moved(2, "f", 4, store=True).replace(".reg .b32 %f<4>;", ""),
    ])  # fmt: skip
    run(kernel(body), given, found)
    assert np.array_equal(found, given)


def test_allocations_lie_beside_each_other_and_are_zeroed() -> None:
    body = """
	@!%p1 bra $L_done;
	tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [place+4], 128;
	ld.shared.b32 %r20, [place+4];
	tcgen05.dealloc.cta_group::1.sync.aligned.b32 %base, 64;
	tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [place], 32;
	ld.shared.b32 %r21, [place];
	tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [place], 32;
	ld.shared.b32 %r22, [place];
	st.global.v4.b32 [%rd2], {%base, %r20, %r21, %r22};
	tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r20, 128;
	tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r21, 32;
	tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r22, 32;
	$L_done:
	ret;"""
    found = np.zeros(4, np.uint32)
    run(kernel(body, columns=64, freed=""), found, found)
    assert found.tolist() == [0, 64, 0, 32]


LOAD = "tcgen05.ld.sync.aligned.16x64b.x1.b32 {%r9},"
MORE = "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [place], 32;"
WRONG = {
    "a warp in another's quarter": (64, f"{LOAD} [%base];", FREED, r"the address 0x0 .* quarter"),
    "a lane in the middle": (64, f"add.s32 %r8, %mine, 524288; {LOAD} [%r8];", FREED, "the address 0x80000"),
    "another address in each lane": (64, f"add.s32 %r8, %mine, %lane; {LOAD} [%r8];", FREED, "the same in all lanes"),
    "columns of nobody": (64, "tcgen05.ld.sync.aligned.32x32b.x2.b32 {%r9, %r10}, [%mine+63];", FREED, "not allocated, at 0x3f"),
    "a second half of nobody": (64, "tcgen05.st.sync.aligned.16x32bx2.x1.b32 [%mine], 64, {%r9};", FREED, "not allocated"),
    "33 columns": (33, "", FREED, "33 columns of tensor memory; there may be"),
    "more than there is": (512, f"@%p1 {MORE}", FREED, "32 columns .* not left"),
    "after the right was given up": (64, "@%p1 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;"
                                     f"@%p1 {MORE}", FREED, "given up"),
    "a part": (64, "@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %base, 32;", FREED, "not allocated, at 0x0"),
    "twice": (64, "@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %base, 64;", FREED, "not allocated, at 0x0"),
    "never": (64, "", "ret;", "not given back"),
    "some lanes": (64, f"setp.lt.u32 %p2, %lane, 5; @%p2 {LOAD} [%mine];", FREED, "only some of its lanes"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_gpu_leaves_undefined_is_an_error(wrong: str) -> None:
    columns, body, freed, message = WRONG[wrong]
    found = np.zeros(4, np.uint32)
    with pytest.raises(KernelError, match=message):
        run(kernel(body, columns=columns, freed=freed), found, found)


@pytest.mark.parametrize("opcode", ["tcgen05.ld.red.sync.aligned.32x32b.x2.min.f32 {%r9, %r10}, %r11, [%base]",
                                    "tcgen05.st.sync.aligned.16x256b.x64.b32 [%base], {%r9}",
                                    "tcgen05.dealloc.cta_group::2.sync.aligned.b32 %base, 64"])  # fmt: skip
def test_what_is_not_emulated_is_an_error_before_the_launch(opcode: str) -> None:
    with pytest.raises(UnknownOpcode, match=rf"k: .*{opcode.split(' ')[0]}"):
        kernel(f"{opcode};")
