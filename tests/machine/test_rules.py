"""Small rules of the machine that few kernels show: who waits for whom, which lanes count, where memory ends, what a carry survives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mmabits.emulator.machine.kernel import Kernel, KernelError
from mmabits.emulator.machine.warp import UnknownOpcode

Words = npt.NDArray[np.uint32]


def launched(body: str, *, threads: int = 32, before: str = "", words: int = 128, **options: Any) -> Words:
    """What a kernel leaves in an array; %rd1 is its address, %rd2 the thread's word of it, %r1 the thread."""
    text = f"""
.version 8.8
.target sm_80
{before}
.visible .entry k(.param .u64 k_0) .reqntid {threads} {{
	.reg .pred %p<10>; .reg .b16 %h<10>; .reg .b32 %r<40>; .reg .b64 %rd<10>;
	ld.param.b64 %rd1, [k_0];
	mov.u32 %r1, %tid.x;
	mad.wide.u32 %rd2, %r1, 4, %rd1;
{body}
}}"""
    found = np.zeros(words, np.uint32)
    Kernel(text, arch="sm_80", **options).launch((1,), [found.ctypes.data], [(found.ctypes.data, found.ctypes.data + found.nbytes)])
    return found


# ------------------------------------------------------------------------------------------------------------------- barriers


def test_a_warp_that_has_ended_is_not_waited_for() -> None:
    found = launched("""
	setp.lt.u32 %p1, %r1, 32;
	@%p1 ret;
	bar.sync 0;
	st.global.b32 [%rd2], %r1;
	ret;""", threads=96)  # fmt: skip
    assert found.tolist() == [n if 32 <= n < 96 else 0 for n in range(128)]


def test_a_barrier_lets_go_whom_it_holds() -> None:
    """Warps 0 and 1 meet at barrier 1 twice, while warp 2 waits at barrier 2 for what they do."""
    found = launched("""
	.shared .align 4 .b32 cell[1];
	setp.ge.u32 %p1, %r1, 64;
	@%p1 bra $L_last;
	bar.sync 1, 64;
	bar.sync 1, 64;
	mov.b32 %r5, 7;
	st.shared.b32 [cell], %r5;
	bar.sync 2, 96;
	ret;
$L_last:
	bar.sync 2, 96;
	ld.shared.b32 %r6, [cell];
	st.global.b32 [%rd2], %r6;
	ret;""", threads=96)  # fmt: skip
    assert found.tolist() == [7 if 64 <= n < 96 else 0 for n in range(128)]


def test_a_barrier_with_two_counts_is_an_error() -> None:
    with pytest.raises(KernelError, match="ways that do not fit"):
        launched("""
	setp.ge.u32 %p1, %r1, 32;
	@%p1 bra $L_other;
	bar.sync 1, 64;
	ret;
$L_other:
	bar.sync 1, 96;
	ret;""", threads=96)  # fmt: skip


@pytest.mark.parametrize("count", [16, 40])
def test_a_barrier_for_less_than_a_warp_is_an_error(count: int) -> None:
    with pytest.raises(KernelError, match="ways that do not fit"):
        launched(f"bar.sync 1, {count}; ret;", threads=64)


# ----------------------------------------------------------------------------------------------------------------- whole warps

MATRIX = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r2];"


def test_a_matrix_for_a_part_of_a_warp_is_an_error() -> None:
    with pytest.raises(KernelError, match=r"the whole warp, to which only some of its lanes came.*ldmatrix"):
        launched(f"""
	.shared .align 16 .b8 room[128];
	mov.b32 %r2, room;
	setp.lt.u32 %p1, %r1, 9;
	@%p1 bra $L_end;
	{MATRIX}
$L_end:
	ret;""")  # fmt: skip


def test_a_matrix_under_a_guard_is_refused() -> None:
    with pytest.raises(UnknownOpcode, match="under a guard"):
        launched(f".shared .align 16 .b8 room[128]; mov.b32 %r2, room; setp.lt.u32 %p1, %r1, 64; @%p1 {MATRIX} ret;")


def test_lanes_that_run() -> None:
    found = launched("""
	activemask.b32 %r3;
	st.global.b32 [%rd1], %r3;
	setp.lt.u32 %p1, %r1, 9;
	@%p1 bra $L_end;
	setp.gt.u32 %p2, %r1, 12;
	activemask.b32 %r3;
	st.global.b32 [%rd1+4], %r3;
	@%p2 activemask.b32 %r3;
	@%p2 st.global.b32 [%rd1+8], %r3;
	mov.b32 %r4, 1;
	vote.sync.all.pred %p3, %p2, 0xffffe000;
	vote.sync.uni.pred %p4, %p1, 0xfffffe00;
	selp.b32 %r5, 1, 0, %p3;
	selp.b32 %r6, 1, 0, %p4;
	@%p2 st.global.b32 [%rd1+12], %r5;
	@%p2 st.global.b32 [%rd1+16], %r6;
$L_end:
	ret;""")  # fmt: skip
    assert [hex(word) for word in found[:5].tolist()] == ["0xffffffff", "0xfffffe00", "0xffffe000", "0x1", "0x1"]


# --------------------------------------------------------------------------------------------------------------------- memory


def test_wait_all_takes_what_was_not_committed() -> None:
    found = launched("""
	.shared .align 16 .b8 room[128];
	mov.b32 %r2, room;
	mad.lo.u32 %r2, %r1, 4, %r2;
	st.global.b32 [%rd2], %r1;
	cp.async.ca.shared.global [%r2], [%rd2], 4;
	cp.async.wait_all;
	ld.shared.b32 %r3, [%r2];
	add.u32 %r3, %r3, 1;
	st.global.b32 [%rd2], %r3;
	ret;""")  # fmt: skip
    assert found[:32].tolist() == list(range(1, 33))


def test_groups_that_may_stay_under_way_stay() -> None:
    """Of two groups the last stays, and then shows what lies at its source when it is waited for."""
    found = launched("""
	.shared .align 16 .b8 room[256];
	mov.b32 %r2, room;
	mad.lo.u32 %r2, %r1, 8, %r2;
	mov.b32 %r4, 5;
	st.global.b32 [%rd2], %r4;
	cp.async.ca.shared.global [%r2], [%rd2], 4;
	cp.async.commit_group;
	cp.async.ca.shared.global [%r2+4], [%rd2], 4;
	cp.async.commit_group;
	cp.async.wait_group 1;
	mov.b32 %r4, 6;
	st.global.b32 [%rd2], %r4;
	cp.async.wait_group 0;
	ld.shared.v2.b32 {%r5, %r6}, [%r2];
	mad.lo.u32 %r5, %r5, 10, %r6;
	st.global.b32 [%rd2], %r5;
	ret;""")  # fmt: skip
    assert found[:32].tolist() == [56] * 32


@pytest.mark.parametrize(("space", "end"), [("local", 64), ("shared", 64), ("const", 80), ("global", 512)])
def test_each_space_has_an_end(space: str, end: int) -> None:
    """Of constants 16 bytes further than they go."""
    declared = f".{space} .align 16 .b8 room[64];" if space != "global" else ""
    before = declared if space == "const" else ""
    start = "" if space == "global" else "mov.b64 %rd1, room;"
    body = f"{'' if before else declared} {start} ld.{space}.b32 %r2, [%rd1+PLACE]; ret;"
    launched(body.replace("PLACE", str(end - 4)), before=before)
    with pytest.raises(KernelError, match="outside"):
        launched(body.replace("PLACE", str(end)), before=before)


def test_an_access_that_reaches_past_the_end() -> None:
    with pytest.raises(KernelError, match="outside"):
        launched("ld.global.v2.b64 {%rd3, %rd4}, [%rd1+496]; ret;", words=126)
    with pytest.raises(KernelError, match="outside"):
        launched("ld.global.b32 %r2, [%rd1]; ld.global.v2.b64 {%rd3, %rd4}, [%rd1+496]; ret;", words=126)


def test_a_vector_is_aligned_as_a_whole() -> None:
    with pytest.raises(KernelError, match="a misaligned access"):
        launched("ld.global.v2.b64 {%rd3, %rd4}, [%rd1+8]; ret;")


def test_local_memory_is_a_lanes_own() -> None:
    found = launched("""
	.local .align 4 .b32 stack[4];
	st.local.b32 [stack+4], %r1;
	bar.sync 0;
	ld.local.b32 %r2, [stack+4];
	st.global.b32 [%rd2], %r2;
	ret;""", threads=64)  # fmt: skip
    assert found[:64].tolist() == list(range(64))


def test_spaces_of_generic_addresses() -> None:
    found = launched("""
	.shared .align 4 .b32 cell[1]; .local .align 4 .b32 stack[1];
	mov.b64 %rd3, cell; cvta.shared.u64 %rd3, %rd3;
	mov.b64 %rd4, stack; cvta.local.u64 %rd4, %rd4;
	isspacep.shared %p1, %rd3; isspacep.shared %p2, %rd4; isspacep.local %p3, %rd4; isspacep.global %p4, %rd1;
	isspacep.global %p5, %rd3;
	cvta.to.shared.u64 %rd5, %rd3;
	mov.b32 %r2, 0;
	selp.b32 %r3, 1, 0, %p1; bfi.b32 %r2, %r3, %r2, 0, 1;
	selp.b32 %r3, 1, 0, %p2; bfi.b32 %r2, %r3, %r2, 1, 1;
	selp.b32 %r3, 1, 0, %p3; bfi.b32 %r2, %r3, %r2, 2, 1;
	selp.b32 %r3, 1, 0, %p4; bfi.b32 %r2, %r3, %r2, 3, 1;
	selp.b32 %r3, 1, 0, %p5; bfi.b32 %r2, %r3, %r2, 4, 1;
	st.b32 [%rd3], %r2;
	ld.shared.b32 %r4, [%rd5];
	st.global.b32 [%rd2], %r4;
	ret;""")  # fmt: skip
    assert found[:32].tolist() == [0b01101] * 32


# --------------------------------------------------------------------------------------------------------------------- carries


@pytest.mark.parametrize("between", ["", "$L_here:", "bar.sync 0;"])
def test_a_carry_lives_until_it_is_read(between: str) -> None:
    found = launched(f"""
	mov.b32 %r2, -1;
	mov.b32 %r3, 0;
	add.cc.u32 %r4, %r2, %r1;
{between}
	addc.u32 %r5, %r3, 10;
	st.global.b32 [%rd2], %r5;
	ret;""")  # fmt: skip
    assert found[:32].tolist() == [10, *[11] * 31]
