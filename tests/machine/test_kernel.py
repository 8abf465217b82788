"""Kernels written by hand: control flow, barriers, shared memory, exchange, errors."""

from __future__ import annotations

import signal
import time
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from mmabits.emulator.machine import elementwise, helpers
from mmabits.emulator.machine.context import Context
from mmabits.emulator.machine.kernel import Kernel, KernelError
from mmabits.emulator.machine.ptx import PtxError, read_ptx
from mmabits.emulator.machine.warp import UnknownOpcode
from mmabits.isa import OperandError

HEAD = ".version 8.8\n.target sm_80\n.address_size 64\n"
REGISTERS = "\t.reg .pred %p<20>;\n\t.reg .b16 %rs<20>;\n\t.reg .b32 %r<60>;\n\t.reg .b64 %rd<20>;\n"


def kernel(body: str, *, threads: int = 32, parameters: int = 1, before: str = "", **options: Any) -> Kernel:
    """A kernel of pointers, the first of which is in %rd1, the second in %rd2, ..."""
    names = [f".param .u64 k_param_{place}" for place in range(parameters)]
    loads = "".join(f"\tld.param.b64 %rd{place + 1}, [k_param_{place}];\n" for place in range(parameters))
    text = f"{HEAD}{before}.visible .entry k(\n{', '.join(names)}\n)\n.reqntid {threads}\n{{\n{REGISTERS}{loads}{body}\n}}\n"
    return Kernel(text, arch="sm_80", **options)


def run(made: Kernel, *arrays: npt.NDArray[Any], grid: tuple[int, ...] = (1,)) -> None:
    ranges = [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
    made.launch(grid, [each.ctypes.data for each in arrays], ranges)


PLACE = """
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %ctaid.x;
	mov.u32 %r3, %ntid.x;
	mad.lo.s32 %r4, %r2, %r3, %r1;
	mul.wide.u32 %rd10, %r4, 4;
	add.s64 %rd11, %rd1, %rd10;
"""
"""%r4: the linear thread, %rd11: its word of the first array."""


def test_a_loop_of_another_length_in_every_lane() -> None:
    made = kernel(PLACE + """
	ld.global.b32 %r5, [%rd11];
	mov.b32 %r6, 0;
$L_loop:
	setp.eq.s32 %p1, %r5, 1;
	@%p1 bra $L_done;
	add.s32 %r6, %r6, 1;
	and.b32 %r7, %r5, 1;
	setp.eq.s32 %p2, %r7, 0;
	@%p2 bra $L_even;
	mad.lo.s32 %r5, %r5, 3, 1;
	bra.uni $L_loop;
$L_even:
	shr.u32 %r5, %r5, 1;
	bra.uni $L_loop;
$L_done:
	st.global.b32 [%rd11], %r6;
	ret;""", threads=64)  # fmt: skip
    numbers = np.arange(1, 193, dtype=np.int32)

    def steps(n: int) -> int:
        count = 0
        while n != 1:
            n, count = (n // 2 if n % 2 == 0 else 3 * n + 1), count + 1
        return count

    wanted = [steps(n) for n in numbers.tolist()]
    run(made, numbers, grid=(3,))
    assert numbers.tolist() == wanted


def test_lanes_that_end_early_and_a_warp_that_is_not_full() -> None:
    made = kernel(PLACE + """
	setp.gt.s32 %p1, %r1, 40;
	@%p1 ret;
	ld.global.b32 %r5, [%rd11];
	neg.s32 %r5, %r5;
	st.global.b32 [%rd11], %r5;
	ret;""", threads=48)  # fmt: skip
    numbers = np.arange(96, dtype=np.int32)
    run(made, numbers, grid=(2,))
    assert numbers.tolist() == [-n if n % 48 <= 40 else n for n in range(96)]


SHARED = ".extern .shared .align 16 .b8 room[];\n"
REVERSED = (
    PLACE
    + """
	ld.global.b32 %r5, [%rd11];
	mov.b32 %r8, room;
	shl.b32 %r9, %r1, 2;
	add.s32 %r10, %r8, %r9;
	st.shared.b32 [%r10], %r5;
	bar.sync 0;
	sub.s32 %r11, %r3, %r1;
	add.s32 %r11, %r11, -1;
	shl.b32 %r11, %r11, 2;
	add.s32 %r12, %r8, %r11;
	ld.shared.b32 %r13, [%r12];
	st.global.b32 [%rd11], %r13;
	ret;"""
)


def test_warps_exchange_through_shared_memory() -> None:
    made = kernel(REVERSED, threads=128, before=SHARED, shared=512)
    numbers = np.arange(256, dtype=np.int32)
    run(made, numbers, grid=(2,))
    assert numbers.reshape(2, 128)[:, ::-1].reshape(-1).tolist() == list(range(256))


@pytest.mark.parametrize("threads", [1, 3])
def test_results_do_not_depend_on_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmabits.emulator.engine.products.threads_wanted", lambda: threads)
    made = kernel(REVERSED, threads=64, before=SHARED, shared=256)
    numbers = np.arange(64 * 33, dtype=np.int32)
    run(made, numbers, grid=(33,))
    assert numbers.reshape(33, 64)[:, ::-1].reshape(-1).tolist() == list(range(64 * 33))


def test_three_dimensions() -> None:
    body = """
	mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z;
	mov.u32 %r4, %ctaid.x; mov.u32 %r5, %ctaid.y; mov.u32 %r6, %ctaid.z;
	mad.lo.s32 %r7, %r3, 4, %r2;
	mad.lo.s32 %r8, %r7, 8, %r1;
	mad.lo.s32 %r9, %r6, 3, %r5;
	mad.lo.s32 %r10, %r9, 2, %r4;
	mad.lo.s32 %r11, %r10, 64, %r8;
	mul.wide.u32 %rd10, %r11, 4;
	add.s64 %rd11, %rd1, %rd10;
	st.global.b32 [%rd11], %r11;
	ret;"""
    text = f"{HEAD}.visible .entry k(.param .u64 k_param_0) .reqntid 8, 4, 2 {{\n{REGISTERS} ld.param.b64 %rd1, [k_param_0];{body}\n}}"
    found = np.zeros(64 * 24, np.int32)
    run(Kernel(text, arch="sm_80"), found, grid=(2, 3, 4))
    assert found.tolist() == list(range(64 * 24))


def test_exchange_between_lanes() -> None:
    made = kernel(PLACE + """
	shfl.sync.bfly.b32 %r5|%p1, %r1, 5, 31, -1;
	shfl.sync.up.b32 %r6|%p2, %r1, 3, 0, -1;
	shfl.sync.idx.b32 %r7, %r1, 9, 31, -1;
	shfl.sync.down.b32 %r8|%p3, %r1, 2, 0x181f, -1;
	setp.lt.u32 %p4, %r1, 7;
	vote.sync.ballot.b32 %r9, %p4, -1;
	selp.b32 %r10, 1, 0, %p2;
	selp.b32 %r11, 1, 0, %p3;
	redux.sync.max.s32 %r12, %r1, -1;
	mov.b64 %rd5, {%r5, %r6};
	mov.b64 {%r14, %r15}, %rd5;
	mad.lo.s32 %r16, %r1, 28, 0;
	cvt.u64.u32 %rd6, %r16;
	add.s64 %rd7, %rd1, %rd6;
	st.global.b32 [%rd7], %r14; st.global.b32 [%rd7+4], %r15; st.global.b32 [%rd7+8], %r7; st.global.b32 [%rd7+12], %r8;
	st.global.b32 [%rd7+16], %r9; st.global.b32 [%rd7+20], %r12; st.global.b32 [%rd7+24], %r10;
	ret;""")  # fmt: skip
    found = np.zeros((32, 7), np.int32)
    run(made, found)
    for lane in range(32):
        down = lane + 2 if lane % 8 + 2 <= 7 else lane
        wanted = [lane ^ 5, lane - 3 if lane >= 3 else lane, 9, down, 0x7F, 31, int(lane >= 3)]
        assert found[lane].tolist() == wanted


def test_words_of_several_sizes_and_vectors() -> None:
    made = kernel(PLACE + """
	shl.b32 %r5, %r1, 4;
	cvt.u64.u32 %rd5, %r5;
	add.s64 %rd6, %rd1, %rd5;
	ld.global.v4.b32 {%r6, %r7, %r8, %r9}, [%rd6];
	st.global.v4.b32 [%rd6], {%r9, %r8, %r7, %r6};
	ld.global.s8 %r10, [%rd6];
	ld.global.u16 %r11, [%rd6+2];
	ld.global.v2.b8 {%rs1, %rs2}, [%rd6+4];
	st.global.b32 [%rd6+8], %r10;
	st.global.b16 [%rd6+12], %rs2;
	ret;""")  # fmt: skip
    cells = np.arange(32 * 16, dtype=np.uint32).astype(np.uint8).reshape(32, 16)
    cells[:, 12] = 0xF0  # the first byte after the swap
    before = cells.copy()
    run(made, cells)
    swapped = before.reshape(32, 4, 4)[:, ::-1].reshape(32, 16).copy()
    swapped[:, 8:12] = swapped[:, :1].view(np.int8).astype(np.int32).view(np.uint8)
    swapped[:, 12] = swapped[:, 5]
    swapped[:, 13] = 0
    assert np.array_equal(cells, swapped)


def test_atomic_operations_in_order() -> None:
    made = kernel(PLACE + """
	atom.global.add.u32 %r5, [%rd2], 1;
	st.global.b32 [%rd11], %r5;
	cvt.rn.f32.u32 %r6, %r4;
	red.global.add.f32 [%rd2+4], %r6;
	atom.global.max.s32 %r7, [%rd2+8], %r4;
	ret;""", parameters=2, threads=64)  # fmt: skip
    found, cells = np.zeros(128, np.int32), np.zeros(3, np.int32)
    run(made, found, cells, grid=(2,))
    assert found.tolist() == list(range(128))
    assert cells[0] == 128 and cells[2] == 127
    assert cells[1:2].view(np.float32)[0] == sum(range(128))


@pytest.mark.parametrize(
    ("space", "wanted"), [("global", [0, 0x80000000, 0x00800000, 0]), ("shared", [3, 0x80000003, 0x00800001, 0x00400000])]
)
def test_sums_of_f32_in_global_memory_flush_subnormal_numbers(space: str, wanted: list[int]) -> None:
    """By experiments on GPUs and the manual: always in global memory, never in shared memory."""
    place = "[%rd12]" if space == "global" else "[%r10]"
    made = kernel(PLACE + f"""
	mov.b32 %r8, room;
	shl.b32 %r9, %r1, 2;
	add.s32 %r10, %r8, %r9;
	add.s64 %rd12, %rd2, %rd10;
	ld.global.b32 %r5, [%rd12];
	st.shared.b32 [%r10], %r5;
	ld.global.b32 %r6, [%rd11];
	red.{space}.add.f32 {place}, %r6;
	ld.shared.b32 %r7, [%r10];
	setp.eq.b32 %p1, %r7, %r5;
	@!%p1 st.global.b32 [%rd12], %r7;
	ret;""", parameters=2, before=SHARED, shared=128)  # fmt: skip
    values, cells = np.zeros(32, np.uint32), np.zeros(32, np.uint32)
    values[:4] = 1, 0x80000001, 1, 0x00C00000
    cells[:4] = 2, 0x80000002, 0x00800000, 0x80800000
    run(made, values, cells)
    assert cells[:4].tolist() == wanted


HALVES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("name", HALVES)
def test_sums_of_halves_are_rounded_to_nearest(name: str) -> None:
    """Hard pairs: all exponents, neighbours of ties, subnormal numbers, infinities; against arrays of that type."""
    made = kernel(PLACE + f"""
	shl.b32 %r5, %r4, 2;
	cvt.u64.u32 %rd12, %r5;
	add.s64 %rd13, %rd1, %rd12;
	add.s64 %rd14, %rd2, %rd12;
	ld.global.b32 %r6, [%rd14];
	atom.global.gpu.relaxed.add.noftz.{name}x2 %r7, [%rd13], %r6;
	st.global.b32 [%rd14], %r7;
	ret;""", parameters=2, threads=128)  # fmt: skip
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 1 << 16, 1 << 15).astype(np.uint16) for _ in range(2))
    b[: 1 << 14] = (a[: 1 << 14] & 0xFF80 ^ 0x8000) + rng.integers(0, 128, 1 << 14).astype(np.uint16)  # nearly the opposite
    special = np.array([0, 0x8000, 1, 0x8001, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7F80, 0xFF80, 0x7F7F, 0x7FFF, 0x3C00], np.uint16)
    a[-169:], b[-169:] = np.repeat(special, 13), np.tile(special, 13)
    with np.errstate(all="ignore"):
        total = a.view(HALVES[name]) + b.view(HALVES[name])
    wanted = np.where(np.isnan(total), np.uint16(0x7FFF), total.view(np.uint16))
    before, found = a.copy(), a.copy()
    run(made, found, b, grid=(a.size // 256,))
    assert np.array_equal(found, wanted) and np.array_equal(b, before)


def test_a_sum_of_one_half_and_its_exchange() -> None:
    made = kernel(PLACE + """
	mul.wide.u32 %rd12, %r1, 2;
	add.s64 %rd13, %rd1, %rd12;
	mov.b16 %rs1, 0x3C00;
	red.global.add.noftz.f16 [%rd13], %rs1;
	mov.b16 %rs2, 0x4000;
	mov.b16 %rs3, 7;
	atom.global.cas.b16 %rs4, [%rd13], %rs2, %rs3;
	st.global.b16 [%rd13+64], %rs4;
	ret;""")  # fmt: skip
    cells = np.zeros(64, np.float16)
    cells[::2] = 1
    run(made, cells)
    assert cells[32:].tolist() == [2.0, 1.0] * 16 and cells[:32].view(np.uint16).tolist() == [7, 0x3C00] * 16


def test_constants_in_decimal() -> None:
    """As inline assembly has them: of the type that the instruction reads."""
    made = kernel(PLACE + """
	createpolicy.fractional.L2::evict_last.b64 %rd15, 1.0;
	ld.global.b32 %r5, [%rd11];
	fma.rn.f32 %r6, %r5, -2.5, 1.25e-1;
	st.global.b32 [%rd11], %r6;
	ret;""")  # fmt: skip
    x = np.arange(32, dtype=np.float32)
    run(made, x)
    assert np.array_equal(x, np.arange(32) * -2.5 + 0.125)


@pytest.mark.parametrize("contracts", [True, False])
def test_products_and_sums_are_contracted_or_not(contracts: bool) -> None:
    made = kernel(PLACE + """
	ld.global.b32 %r5, [%rd11];
	mul.f32 %r6, %r5, 0f3F8CCCCD;
	sub.f32 %r7, %r5, %r6;
	st.global.b32 [%rd11], %r7;
	ret;""", contracts=contracts)  # fmt: skip
    x = np.random.default_rng(0).random(32, np.float32)
    f32 = np.float32
    once = (x.astype(np.float64) - x.astype(np.float64) * np.float64(f32(1.1))).astype(f32)  # exact in f64 before it is rounded
    twice = x - x * f32(1.1)
    assert made.fused == int(contracts) and not np.array_equal(once, twice)
    run(made, x)
    assert np.array_equal(x, once if contracts else twice)


def test_copies_are_put_off_until_their_wait() -> None:
    """A copy takes what lies at its source when it is waited for; what was written in between is seen, as late as it may be."""
    made = kernel(PLACE + """
	mov.b32 %r8, room;
	shl.b32 %r9, %r1, 2;
	add.s32 %r10, %r8, %r9;
	mov.b32 %r20, 7;
	st.shared.b32 [%r10], %r20;
	cp.async.ca.shared.global [%r10], [%rd11], 4;
	cp.async.commit_group;
	ld.shared.b32 %r11, [%r10];
	cp.async.wait_group 0;
	ld.shared.b32 %r12, [%r10];
	mad.lo.s32 %r13, %r11, 1000, %r12;
	st.global.b32 [%rd11], %r13;
	ret;""", before=SHARED, shared=128)  # fmt: skip
    numbers = np.arange(32, dtype=np.int32)
    run(made, numbers)
    assert numbers.tolist() == [7000 + n for n in range(32)]


# --------------------------------------------------------------------------------------------------------------------- errors


def test_an_access_outside_is_an_error_that_says_where() -> None:
    made = kernel(PLACE + "\tst.global.b32 [%rd11], %r4;\n\tret;", threads=32)
    guarded = np.zeros(64, np.int32)
    inside = guarded[:40]
    with pytest.raises(
        KernelError, match=r"k: an access at 0x[0-9a-f]+, outside .* program \(1, 0, 0\), warp 0, lane 8, at `st.global.b32"
    ):
        run(made, inside, grid=(2,))
    assert guarded[:40].tolist() == list(range(40)) and not guarded[40:].any()
    run(made, guarded, grid=(2,))  # the process goes on
    assert guarded.tolist() == list(range(64))


def test_shared_memory_has_an_end() -> None:
    with pytest.raises(KernelError, match="outside"):
        run(kernel(REVERSED, threads=128, before=SHARED, shared=256), np.zeros(128, np.int32))


@pytest.mark.parametrize("threads", [32, 64])
def test_an_error_before_a_barrier_names_the_access(threads: int) -> None:
    """Not the barrier, at which it is noticed."""
    made = kernel(PLACE + """
	ld.global.b32 %r5, [%rd11+4096];
	bar.sync 0;
	st.global.b32 [%rd11], %r5;
	ret;""", threads=threads)  # fmt: skip
    with pytest.raises(KernelError, match=r"outside .* lane 0, at `ld.global.b32 %r5"):
        run(made, np.zeros(64, np.int32))


def test_a_misaligned_access_is_an_error() -> None:
    made = kernel(PLACE + "\tld.global.b32 %r5, [%rd1+2];\n\tret;")
    with pytest.raises(KernelError, match="a misaligned access"):
        run(made, np.zeros(4, np.int32))


def test_a_deadlock_is_an_error() -> None:
    made = kernel(PLACE + """
	setp.lt.s32 %p1, %r1, 32;
	@%p1 bra $L_first;
	bar.sync 1, 128;
	ret;
$L_first:
	bar.sync 2, 128;
	ret;""", threads=64)  # fmt: skip
    with pytest.raises(KernelError, match=r"a deadlock in program 0: warp 0 at barrier 2.*warp 1 at barrier 1"):
        run(made, np.zeros(4, np.int32))


def test_lanes_of_a_warp_at_different_places_of_a_barrier() -> None:
    made = kernel(PLACE + """
	setp.lt.s32 %p1, %r1, 16;
	@%p1 bra $L_there;
	bar.sync 0;
$L_there:
	ret;""")  # fmt: skip
    with pytest.raises(KernelError, match="a barrier that lanes or warps come to in ways that do not fit"):
        run(made, np.zeros(4, np.int32))


def test_a_trap_is_an_error() -> None:
    with pytest.raises(KernelError, match="a trap"):
        run(kernel(PLACE + "\ttrap;"), np.zeros(4, np.int32))


@pytest.mark.parametrize(("lane", "guards"), [(40, True), (9, True), (9, False)])
def test_a_trap_is_that_of_lanes_that_come_to_it(lane: int, guards: bool) -> None:
    """Under a guard, or by a branch while the others are at a barrier behind it, as __assertfail is."""
    trap = "@%p1 trap;" if guards else "@!%p1 bra on;\ntrap;\non: bar.sync 0;"
    made = kernel(f"{PLACE}\tsetp.eq.u32 %p1, %r1, {lane};\n{trap}\n\tst.global.b32 [%rd11], 7;\n\tret;")
    found = np.zeros(32, np.int32)
    if lane < 32:
        with pytest.raises(KernelError, match=rf"a trap, in program \(0, 0, 0\), warp 0, lane {lane}, at"):
            run(made, found)
    else:
        run(made, found)
        assert (found == 7).all()


def test_lanes_beyond_a_barrier_that_come_to_no_trap_are_still_an_error() -> None:
    made = kernel(f"{PLACE}\tsetp.eq.u32 %p1, %r1, 9;\n\t@%p1 bra past;\n\tbar.sync 0;\n\tret;\npast: mov.u32 %r2, 1;\n\tret;")
    with pytest.raises(KernelError, match="a barrier that lanes or warps come to in ways that do not fit"):
        run(made, np.zeros(32, np.int32))


def test_an_error_while_the_function_of_parted_lanes_is_made_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    made = kernel(f"{PLACE}\tsetp.eq.u32 %p1, %r1, 9;\n\t@%p1 bra on;\n\tst.global.b32 [%rd11], 7;\non: ret;")

    def broken(**_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(made, "_compiled", broken)
        with pytest.raises(KeyboardInterrupt):
            run(made, np.zeros(32, np.int32))
    found = np.zeros(32, np.int32)
    run(made, found)
    assert (found == 7).sum() == 31


def test_labels_belong_to_their_scope() -> None:
    """Triton's waits on an mbarrier are loops in braces, each with a label of the same name."""
    loop = "{{\nwaitLoop: add.u32 %r{0}, %r{0}, 1;\nsetp.lt.u32 %p1, %r{0}, {1};\n{{\n@%p1 bra waitLoop;\n}}\n}}\n"
    made = kernel(
        f"{PLACE}\tmov.u32 %r20, 0;\n\tmov.u32 %r21, 0;\n{loop.format(20, 3)}{loop.format(21, 5)}"
        "\tmad.lo.u32 %r22, %r20, 10, %r21;\n\tst.global.b32 [%rd11], %r22;\n\tret;"
    )
    found = np.zeros(32, np.int32)
    run(made, found)
    assert (found == 35).all()


def test_an_opcode_without_a_row_is_refused_before_the_launch() -> None:
    with pytest.raises(
        UnknownOpcode, match=r"k: the opcode rcp.approx.ftz.f64 is not emulated \(.* MUFU.RCP64H.*\), in `rcp.* %rd1` \(line 15 of the PTX"
    ):
        kernel("\tmov.b64 %rd1, 0;\n\trcp.approx.ftz.f64 %rd2, %rd1;\n\tret;")


def test_an_opcode_with_a_row_and_without_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(elementwise._EMITTERS, "szext")
    with pytest.raises(UnknownOpcode, match=r"szext\.wrap\.s32"):
        kernel("\tszext.wrap.s32 %r2, %r1, %r1;\n\tret;")


@pytest.mark.parametrize(("text", "why"), [
    ("add.s32 %r1, %q1, 2;", "q1"), ("bra $L_nowhere;", "no place to branch to"), ("add.s32 %r1, [%r2*4], 1;", "address"),
])  # fmt: skip
def test_text_that_is_no_ptx(text: str, why: str) -> None:
    with pytest.raises(PtxError, match=why):
        kernel("\t" + text + "\n\tret;")


def test_parameters_are_counted() -> None:
    with pytest.raises(OperandError, match="k takes 1 parameters, got 2"):
        kernel("\tret;").launch((1,), [0, 0], [])


def test_an_interrupted_launch_leaves_memory_alone() -> None:
    made = kernel(PLACE + """
	mov.b32 %r6, 0;
$L_loop:
	add.s32 %r6, %r6, 1;
	setp.lt.s32 %p1, %r6, 100000;
	@%p1 bra $L_loop;
	st.global.b32 [%rd11], %r6;
	ret;""")  # fmt: skip
    numbers = np.zeros(32 * 50_000, np.int32)

    def raises(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, raises)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(TimeoutError):
            run(made, numbers, grid=(50_000,))
    finally:
        signal.signal(signal.SIGALRM, before)
    written = np.count_nonzero(numbers)
    assert 0 < written < numbers.size
    time.sleep(0.3)
    assert np.count_nonzero(numbers) == written


def test_the_helpers_words_are_those_of_the_records() -> None:
    for place, name in enumerate(Context._fields):
        assert getattr(helpers, f"_{name.upper()}") == place, name


# --------------------------------------------------------------------------------------------------------------------- parsing


def test_scoped_registers_of_inline_assembly() -> None:
    module = read_ptx(HEAD + """
.visible .entry k() .reqntid 32 {
	.reg .b32 %r<4>;
	mov.b32 %r1, 1;
	{ .reg .pred p; .reg .b32 t;
	setp.eq.s32 p, %r1, 1; // a comment; with a semicolon
	@!p bra done;
	mov.b32 t, 0f3F800000;
	}
done:
	{ .reg .pred p; setp.ne.s32 p, %r1, 1; }
	ret;
}""")  # fmt: skip
    entry = module.entries["k"]
    names = {operand.name for each in entry.instructions for operand in each.operands if hasattr(operand, "bits")}
    assert len([name for name in names if name.startswith("p@")]) == 2
    assert entry.labels == {"done": 4}
    assert entry.instructions[3].operands[1].number == 0x3F800000  # type: ignore[union-attr]
    assert entry.instructions[2].guard is not None and entry.instructions[2].guard.negated
