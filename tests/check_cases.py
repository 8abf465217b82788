"""Small kernels with one planted fault each, and their corrected twins: `<<fault|twin>>` in the text of a kernel is where they differ."""

# ruff: noqa: E501 - lines of PTX

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.conformance.record.kernels import instruction_descriptor
from mmabits.emulator.machine.checks import KernelFinding
from mmabits.emulator.machine.descriptors import NONE, MatrixDescriptor, encode_tcgen05, encode_wgmma
from mmabits.emulator.machine.kernel import Kernel
from mmabits.isa import parse

WORDS = 4096
"""Of the array that a kernel gets."""
_BEGIN = """
	.reg .pred %p<20>; .reg .b16 %rs<20>; .reg .b32 %r<80>; .reg .b64 %rd<60>; .reg .b32 %c<8>; .reg .b32 %v<8>; .reg .b32 %undefined;
	.local .align 16 .b8 depot[64];
	ld.param.b64 %rd1, [k_0];
	mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r4, %r2, %r3, %r1;
	mul.wide.u32 %rd10, %r4, 4; add.s64 %rd11, %rd1, %rd10; mov.b32 %r8, room;
	shr.u32 %r6, %r1, 5; and.b32 %r7, %r1, 31;
	shl.b32 %r60, %r1, 2; add.s32 %r9, %r8, %r60; xor.b32 %r61, %r60, 128; add.s32 %r10, %r8, %r61; xor.b32 %r62, %r60, 4;
	add.s32 %r11, %r8, %r62; shl.b32 %r63, %r1, 4; add.s32 %r12, %r8, %r63; xor.b32 %r64, %r63, 512; add.s32 %r13, %r8, %r64;
	setp.eq.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r6, 0; setp.eq.u32 %p3, %r7, 0; setp.eq.u32 %p9, 0, 0; setp.eq.u32 %p8, %r1, 32;
	mul.wide.u32 %rd12, %r1, 16; add.s64 %rd13, %rd1, %rd12;
"""
"""%r1: thread, %r2: CTA, %r6: warp, %r7: lane, %r8: shared memory, %r9: the thread's word in it, %r10: the one of the same lane of the next
warp, %r11: that of the lane beside; %r12, %r13: 16 bytes of the thread and of the next warp; %rd11, %rd13: the thread's word and 16 bytes of
the array; %p1: the first thread, %p2: the first warp, %p3: the first lane, %p8: thread 32, %p9: true."""


@dataclass(frozen=True, kw_only=True)
class CheckCase:
    """A kernel with a fault, and without."""

    name: str
    check: str
    """Which check finds it,"""
    match: str
    """and how it calls it: a regular expression."""
    body: str
    arch: str = "sm_90a"
    threads: int = 64
    grid: int = 1
    cluster: int = 1
    shared: int = 8192

    def kernel(self, way: int, **options: Any) -> Kernel:
        """With the fault (0), or without (1)."""
        text = re.sub("<<(.*?)(?:\\|\\|(.*?))?>>", lambda found: found[way + 1] or "", self.body, flags=re.S)
        head = f".version 8.8\n.target {self.arch}\n.address_size 64\n.extern .shared .align 1024 .b8 room[];\n"
        entry = f".visible .entry k(.param .u64 k_0) .reqntid {self.threads}\n{{\n{_BEGIN}{text}\n\tret;\n}}\n"
        cluster = {"cluster": (self.cluster, 1, 1)} if self.cluster > 1 else {}
        return Kernel(head + entry, arch=self.arch, shared=self.shared, **cluster, **options)

    def findings(self, way: int, checks: tuple[str, ...] = ("memory", "init", "races", "sync")) -> list[KernelFinding]:
        """What the checks say of it."""
        array: npt.NDArray[Any] = np.zeros(WORDS + 64, np.uint32)
        start = array.ctypes.data + -array.ctypes.data % 256
        found: list[KernelFinding] = []
        self.kernel(way, checks=checks).launch((self.grid,), [start], [(start, start + 4 * WORDS)], findings=found)
        return found


def _wait(barrier: str, parity: int | str = 0, label: str = "w") -> str:
    return f"$L_{label}: mbarrier.try_wait.parity.shared::cta.b64 %p5, [{barrier}], {parity}; @!%p5 bra $L_{label};\n"


def _rows(*rows: tuple[str, str, str, str], **options: Any) -> list[CheckCase]:
    return [CheckCase(name=name, check=check, match=match, body=body, **options) for name, check, match, body in rows]


_OUT = "\n\tst.global.b32 [%rd11+8192], %r20;\n"
_BAR = "bar.sync 0;"

BARRIERS = _rows(
    ("write then read of another warp", "races", "reads 0x.* wrote; .* missing: a barrier",
     "st.shared.b32 [%r9], %r1; <<||bar.sync 0;>> ld.shared.b32 %r20, [%r10];" + _OUT),
    ("read then write of another warp", "races", "writes 0x.* reads; .* missing: a barrier",
     "st.shared.b32 [%r9], %r1; bar.sync 0; ld.shared.b32 %r20, [%r10]; <<||bar.sync 0;>> add.s32 %r21, %r1, 7; st.shared.b32 [%r9], %r21;"
     + _OUT),
    ("two warps write one word", "races", "writes 0x.* wrote; .* missing: a barrier",
     "and.b32 %r20, %r60, <<127||255>>; add.s32 %r21, %r8, %r20; st.shared.b32 [%r21], %r1;"),
    ("two lanes write one word", "races", "writes 0x.* wrote; .* missing: bar.warp.sync",
     "shr.u32 %r20, %r1, <<1||0>>; shl.b32 %r20, %r20, 2; add.s32 %r21, %r8, %r20; st.shared.b32 [%r21], %r1;"),
    ("two lanes write one byte", "races", "writes 0x.* wrote",
     "shr.u32 %r20, %r1, <<1||0>>; add.s32 %r21, %r8, %r20; st.shared.b8 [%r21], %r1;"),
    ("vectors that overlap", "races", "writes 0x.* wrote",
     "shl.b32 %r20, %r1, 3; add.s32 %r21, %r8, %r20; and.b32 %r22, %r21, -<<16||8>>; add.s32 %r23, %r1, 1;"
     " st.shared.v2.b32 [%r22], {%r1, %r23};"),
    ("the lane beside, without bar.warp.sync", "races", "reads 0x.* missing: bar.warp.sync",
     "st.shared.b32 [%r9], %r1; <<||bar.warp.sync -1;>> ld.shared.b32 %r20, [%r11];" + _OUT),
    ("bar.warp.sync of half of the lanes", "races", "reads 0x.* missing: bar.warp.sync",
     "st.shared.b32 [%r9], %r1; setp.lt.u32 %p4, %r7, 16; mov.b32 %r30, <<65535||-1>>; xor.b32 %r31, %r30, -1; <<||mov.b32 %r31, -1;>>"
     " @!%p4 mov.b32 %r30, %r31; bar.warp.sync %r30; xor.b32 %r32, %r60, 64; add.s32 %r32, %r8, %r32; ld.shared.b32 %r20, [%r32];" + _OUT),
    ("barriers of the two halves, of different numbers", "races", "reads 0x.* missing: a barrier",
     "st.shared.b32 [%r9], %r1; mov.b32 %r30, 1; @!%p2 mov.b32 %r30, <<2||1>>; bar.sync %r30, <<32||64>>; ld.shared.b32 %r20, [%r10];" + _OUT),
    ("bar.arrive where it should wait", "races", "reads 0x.* wrote",
     "@!%p2 bra $L_b; st.shared.b32 [%r9], %r1; bar.sync 1, 64; bra $L_e;\n$L_b: bar.<<arrive||sync>> 1, 64; ld.shared.b32 %r20, [%r10];\n"
     "$L_e: bar.sync 0;"),
    ("bar.arrive before the write", "races", "reads 0x.* wrote; .* missing: a barrier|writes 0x",
     "@!%p2 bra $L_b; <<bar.arrive 1, 64;||>> st.shared.b32 [%r9], %r1; <<||bar.arrive 1, 64;>> bra $L_e;\n"
     "$L_b: bar.sync 1, 64; ld.shared.b32 %r20, [%r10];\n$L_e: bar.sync 0;"),
    ("a vote in place of a barrier", "races", "reads 0x",
     "st.shared.b32 [%r9], %r1; <<vote.sync.any.pred %p5, %p9, -1;||barrier.cta.red.or.aligned.pred %p5, 0, %p9;>>"
     " ld.shared.b32 %r20, [%r10];" + _OUT),
    ("stmatrix, read by another warp", "races", "reads 0x",
     "and.b32 %r20, %r7, 7; shl.b32 %r20, %r20, 4; shl.b32 %r21, %r6, 7; add.s32 %r20, %r20, %r21; add.s32 %r20, %r20, %r8;"
     " stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r20], {%r1}; <<||bar.sync 0;>> ld.shared.b32 %r20, [%r10];" + _OUT),
    ("stmatrix of two warps to one place", "races", "stmatrix.* writes 0x.* wrote",
     "and.b32 %r20, %r7, 7; shl.b32 %r20, %r20, 4; add.s32 %r20, %r20, %r8; stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r20], {%r<<1||7>>};"),
    ("ldmatrix of what another warp wrote", "races", "ldmatrix.* reads 0x",
     "st.shared.b32 [%r9], %r1; <<bar.warp.sync -1;||bar.sync 0;>> and.b32 %r20, %r7, 7; shl.b32 %r20, %r20, 4;"
     " xor.b32 %r21, %r6, 1; shl.b32 %r21, %r21, 7; add.s32 %r20, %r20, %r21; add.s32 %r20, %r20, %r8;"
     " ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r20}, [%r20];" + _OUT),
    ("a loop with one buffer and one barrier", "races", "writes 0x.* reads",
     "mov.b32 %r30, 0; mov.b32 %r20, 0;\n$L_l: add.s32 %r31, %r1, %r30; st.shared.b32 [%r9], %r31; bar.sync 0; ld.shared.b32 %r32, [%r10];"
     " add.s32 %r20, %r20, %r32; <<||bar.sync 0;>> add.s32 %r30, %r30, 1; setp.lt.u32 %p4, %r30, 3; @%p4 bra $L_l;" + _OUT),
    ("a loop with two buffers and a barrier too few", "races", "writes 0x.* reads",
     "mov.b32 %r30, 0; mov.b32 %r20, 0;\n$L_l: and.b32 %r33, %r30, <<0||1>>; shl.b32 %r33, %r33, 9; add.s32 %r34, %r9, %r33;"
     " add.s32 %r35, %r10, %r33; add.s32 %r31, %r1, %r30; st.shared.b32 [%r34], %r31; bar.sync 0; ld.shared.b32 %r32, [%r35];"
     " add.s32 %r20, %r20, %r32; add.s32 %r30, %r30, 1; setp.lt.u32 %p4, %r30, 4; @%p4 bra $L_l;" + _OUT),
    ("the last step of a sum", "races", "reads 0x",
     "st.shared.b32 [%r9], %r1; bar.sync 0; @!%p2 bra $L_e; ld.shared.b32 %r20, [%r9+128]; add.s32 %r20, %r20, %r1; st.shared.b32 [%r9], %r20;"
     " <<||bar.warp.sync -1;>> setp.lt.u32 %p4, %r7, 16; @!%p4 bra $L_e; ld.shared.b32 %r21, [%r9+64]; add.s32 %r20, %r20, %r21;\n"
     "$L_e: bar.sync 0;"),
    ("an atomic, read at once", "races", "reads 0x",
     "@%p1 st.shared.b32 [%r8], 0; bar.sync 0; red.shared.add.u32 [%r8], 1; <<||bar.sync 0;>> ld.shared.b32 %r20, [%r8];" + _OUT),
    ("an atomic beside a store", "races", "atom.* wrote|red.*writes 0x|writes 0x",
     "@%p1 st.shared.b32 [%r8], 5; <<||bar.sync 0;>> red.shared.add.u32 [%r8], 1;"),
    ("a flag without a fence", "races", "reads 0x",
     "@%p1 st.shared.b32 [%r8], 0; bar.sync 0; @!%p2 bra $L_b; st.shared.b32 [%r9+256], %r1; <<||membar.cta; bar.warp.sync -1;>>"
     " @%p3 st.volatile.shared.b32 [%r8], 1; bra $L_e;\n$L_b: ld.volatile.shared.b32 %r21, [%r8]; setp.eq.u32 %p4, %r21, 0; @%p4 bra $L_b;"
     " ld.shared.b32 %r20, [%r10+256];\n$L_e: bar.sync 0;"),
)  # fmt: skip

VALUES = _rows(
    ("shared memory that nobody wrote", "init", "reads 0x.* nothing has written",
     "<<||st.shared.b32 [%r9], %r1;>> ld.shared.b32 %r20, [%r9];" + _OUT),
    ("half of the threads write", "init", "reads 0x.* nothing has written",
     "setp.lt.u32 %p4, %r1, <<32||64>>; @%p4 st.shared.b32 [%r9], %r1; bar.sync 0; ld.shared.b32 %r20, [%r10];" + _OUT),
    ("one byte of a word", "init", "reads 0x.* nothing has written",
     "st.shared.<<b8||b32>> [%r9], %r1; st.shared.b8 [%r9], %r1; ld.shared.b32 %r20, [%r9];" + _OUT),
    ("padding that ldmatrix reads", "init", "ldmatrix.* nothing has written",
     "setp.lt.u32 %p4, %r7, <<28||32>>; @%p4 st.shared.b32 [%r9], %r1; bar.warp.sync -1; and.b32 %r20, %r7, 7; shl.b32 %r20, %r20, 4;"
     " shl.b32 %r21, %r6, 7; add.s32 %r20, %r20, %r21; add.s32 %r20, %r20, %r8; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r20}, [%r20];"
     + _OUT),
    ("a counter that begins nowhere", "init", "red.* nothing has written",
     "<<||@%p1 st.shared.b32 [%r8], 0;>> bar.sync 0; red.shared.add.u32 [%r8], 1;"),
    ("local memory", "init", "local memory, which nothing has written",
     "mov.b64 %rd20, depot; <<||st.local.b32 [%rd20+4], %r1;>> st.local.b32 [%rd20], %r1; ld.local.b32 %r20, [%rd20+4];" + _OUT),
    ("a register, on one way", "init", "register %r20, which was not written",
     "<<||mov.b32 %r20, 0;>> setp.lt.u32 %p4, %r7, 5; @%p4 mov.b32 %r20, %r1;" + _OUT),
    ("a register, behind a branch", "init", "register %r20, which was not written",
     "setp.lt.u32 %p4, %r7, <<5||40>>; @!%p4 bra $L_a; mov.b32 %r20, %r1;\n$L_a:" + _OUT),
    ("a predicate", "init", "register %p7, which was not written",
     "<<||setp.eq.u32 %p7, %r1, 3;>> mov.b32 %r20, 1; @%p7 mov.b32 %r20, 2;" + _OUT),
    ("a sum that begins nowhere", "init", "register %undefined",
     "<<||mov.b32 %undefined, 0;>> add.s32 %undefined, %undefined, %r1; st.global.b32 [%rd11], %undefined;"),
    ("a copy out of what nobody wrote", "init", "cp.async.bulk.* nothing has written",
     "<<||st.shared.b32 [%r9], %r1;>> fence.proxy.async.shared::cta; bar.sync 0;"
     " @%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r8], 256; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"),
)  # fmt: skip

_COPY = "cp.async.ca.shared.global [%r12], [%rd13], 16; "
COPIES = _rows(
    ("cp.async without a wait", "races", "cp.async.wait_group",
     _COPY + "cp.async.commit_group; <<||cp.async.wait_group 0;>> ld.shared.b32 %r20, [%r12];" + _OUT),
    ("cp.async with a wait for the group before", "races", "cp.async.wait_group",
     _COPY + "cp.async.commit_group; cp.async.ca.shared.global [%r12+2048], [%rd13], 16; cp.async.commit_group;"
     " cp.async.wait_group <<1||0>>; ld.shared.b32 %r20, [%r12+2048];" + _OUT),
    ("cp.async that was not committed", "races", "cp.async.wait_group",
     _COPY + "<<||cp.async.commit_group;>> cp.async.wait_group 0; ld.shared.b32 %r20, [%r12];" + _OUT),
    ("cp.async waited for by its lane alone", "races", "cp.async.wait_group of the lane that copied, and a barrier",
     _COPY + "cp.async.commit_group; cp.async.wait_group 0; <<||bar.sync 0;>> ld.shared.b32 %r20, [%r13];" + _OUT),
    ("cp.async: the barrier before the wait", "races", "and a barrier behind it",
     _COPY + "cp.async.commit_group; <<bar.sync 0; cp.async.wait_all;||cp.async.wait_all; bar.sync 0;>> ld.shared.b32 %r20, [%r13];" + _OUT),
    ("cp.async refills what others read", "races", "cp.async.* writes 0x.* reads",
     "st.shared.b32 [%r12], %r1; bar.sync 0; ld.shared.b32 %r20, [%r13]; <<||bar.sync 0;>>" + _COPY
     + "cp.async.commit_group; cp.async.wait_all;" + _OUT),
    ("cp.async: a buffer of a pipeline too few", "races", "cp.async.* writes 0x.* reads",
     _COPY + "cp.async.commit_group; mov.b32 %r30, 0; mov.b32 %r20, 0;\n$L_l: add.s32 %r31, %r30, 1; and.b32 %r32, %r31, <<0||1>>;"
     " shl.b32 %r32, %r32, 10; add.s32 %r33, %r12, %r32; and.b32 %r34, %r30, <<0||1>>; shl.b32 %r34, %r34, 10; add.s32 %r35, %r13, %r34;"
     " cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r36, [%r35]; add.s32 %r20, %r20, %r36;"
     " cp.async.ca.shared.global [%r33], [%rd13], 16; cp.async.commit_group; add.s32 %r30, %r30, 1; setp.lt.u32 %p4, %r30, 4; @%p4 bra $L_l;"
     " cp.async.wait_all;" + _OUT),
    ("two copies to one place", "races", "cp.async.* writes 0x.* wrote",
     _COPY + "cp.async.commit_group; <<||cp.async.wait_group 0;>> " + _COPY + "cp.async.commit_group; cp.async.wait_group 0;"),
    ("an mbarrier that does not wait for cp.async", "races", "cp.async.wait_group|reads 0x",
     "@%p1 mbarrier.init.shared::cta.b64 [%r8+4096], 64; bar.sync 0;" + _COPY
     + "<<mbarrier.arrive.shared::cta.b64 _, [%r8+4096];||cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r8+4096];>>\n"
     + _wait("%r8+4096") + "ld.shared.b32 %r20, [%r13];" + _OUT),
)  # fmt: skip

_INIT = "@%p1 mbarrier.init.shared::cta.b64 [%r8+4096], 1; bar.sync 0;"
_EXPECT = "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8+4096], 1024; "
_BULK = "@%p1 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r8], [%rd1], 1024, [%r8+4096];\n"
_READ = "ld.shared.b32 %r20, [%r12];"
_ALL_WAIT = _wait("%r8+4096")
MBARRIERS = _rows(
    ("a bulk copy without a wait", "races", "a wait for the phase", _INIT + _EXPECT + _BULK + "<<||" + _ALL_WAIT + ">>" + _READ + _OUT),
    ("a bulk copy, waited for with the wrong parity", "races", "a wait for the phase",
     _INIT + _EXPECT + _BULK + "$L_w: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r8+4096], <<1||0>>; @!%p5 bra $L_w;" + _READ + _OUT),
    ("one thread waits for a bulk copy", "races", "a wait for the phase",
     _INIT + _EXPECT + _BULK + "@!%p1 bra $L_s;\n" + _ALL_WAIT + "$L_s: <<||bar.sync 0;>>" + _READ + _OUT),
    ("a bulk copy refills what others read", "races", "cp.async.bulk.* writes 0x.* reads",
     _INIT + _EXPECT + _BULK + _ALL_WAIT + _READ + "<<||bar.sync 0;>>" + _EXPECT + _BULK
     + _wait("%r8+4096", 1, "x") + _OUT),
    ("a bulk copy into what threads wrote, without a proxy fence", "races", "fence.proxy.async",
     _INIT + "st.shared.b32 [%r9], %r1; <<||fence.proxy.async.shared::cta;>> bar.sync 0;" + _EXPECT + _BULK + _ALL_WAIT + _READ + _OUT),
    ("a bulk store without a proxy fence", "races", "missing: fence.proxy.async",
     "st.shared.b32 [%r9], %r1; <<||fence.proxy.async.shared::cta;>> bar.sync 0;"
     " @%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r8], 256; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"),
    ("a proxy fence of a thread that does not copy", "races", "missing: fence.proxy.async",
     "st.shared.b32 [%r9], %r1; bar.sync 0; <<@%p8||@%p1>> fence.proxy.async.shared::cta;"
     " @%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r8], 256; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"),
    ("a bulk store without a barrier", "races", "missing: (bar.warp.sync or )?a barrier",
     "st.shared.b32 [%r9], %r1; fence.proxy.async.shared::cta; <<||bar.sync 0;>>"
     " @%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r8], 256; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"),
    ("what a bulk store reads is written again", "races", "writes 0x.* reads; .* cp.async.bulk.wait_group",
     "st.shared.b32 [%r9], %r1; fence.proxy.async.shared::cta; bar.sync 0;"
     " @%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r8], 256; cp.async.bulk.commit_group;"
     " <<||cp.async.bulk.wait_group.read 0;>> bar.sync 0; add.s32 %r20, %r1, 9; st.shared.b32 [%r9], %r20; cp.async.bulk.wait_group 0;"),
    ("a wait for the bulk group before", "races", "writes 0x.* reads; .* cp.async.bulk.wait_group",
     "st.shared.b32 [%r9], %r1; fence.proxy.async.shared::cta; bar.sync 0;"
     " @%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r8], 256; cp.async.bulk.commit_group;"
     " cp.async.bulk.wait_group.read <<1||0>>; bar.sync 0; add.s32 %r20, %r1, 9; st.shared.b32 [%r9], %r20; cp.async.bulk.wait_group 0;"),
    ("an mbarrier whose beginning nobody waited for", "races", "uses the mbarrier .* initialised",
     "@%p1 mbarrier.init.shared::cta.b64 [%r8+4096], 64; <<||bar.sync 0;>> mbarrier.arrive.shared::cta.b64 _, [%r8+4096];\n" + _ALL_WAIT),
    ("an arrival before the write", "races", "reads 0x.* wrote|writes 0x",
     "@%p1 mbarrier.init.shared::cta.b64 [%r8+4096], 64; bar.sync 0; <<mbarrier.arrive.shared::cta.b64 _, [%r8+4096];||>>"
     " st.shared.b32 [%r9], %r1; <<||mbarrier.arrive.shared::cta.b64 _, [%r8+4096];>>\n" + _ALL_WAIT + "ld.shared.b32 %r20, [%r10];" + _OUT),
    ("one lane arrives for its warp", "races", "reads 0x.* wrote",
     "@%p1 mbarrier.init.shared::cta.b64 [%r8+4096], 2; bar.sync 0; st.shared.b32 [%r9], %r1; <<||bar.warp.sync -1;>>"
     " @%p3 mbarrier.arrive.shared::cta.b64 _, [%r8+4096];\n" + _ALL_WAIT + "ld.shared.b32 %r20, [%r10];" + _OUT),
    ("phases that a thread misses", "sync", "phases of the mbarrier .* ended since",
     "@%p1 mbarrier.init.shared::cta.b64 [%r8+4096], 1; @%p1 mbarrier.init.shared::cta.b64 [%r8+4104], 32; bar.sync 0;"
     " @%p1 mbarrier.arrive.shared::cta.b64 _, [%r8+4096]; bar.sync 0;\n" + _ALL_WAIT
     + "bar.sync 0; @%p1 mbarrier.arrive.shared::cta.b64 _, [%r8+4096]; <<@%p1 mbarrier.arrive.shared::cta.b64 _, [%r8+4096];"
     " @%p1 mbarrier.arrive.shared::cta.b64 _, [%r8+4096];||>> bar.sync 0;\n" + _wait("%r8+4096", 1, "x")),
    ("more bytes announced than copied", "sync", "deadlock.*mbarrier at 0x",
     _INIT + "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8+4096], <<1040||1024>>;" + _BULK + _ALL_WAIT + _READ + _OUT),
    ("more arrivals wanted than come", "sync", "deadlock.*mbarrier at 0x",
     "@%p1 mbarrier.init.shared::cta.b64 [%r8+4096], <<65||64>>; bar.sync 0; mbarrier.arrive.shared::cta.b64 _, [%r8+4096];\n" + _ALL_WAIT),
    ("an mbarrier that was not initialised", "sync", "no mbarrier was initialised",
     "<<||@%p1 mbarrier.init.shared::cta.b64 [%r8+4096], 64;>> bar.sync 0; mbarrier.arrive.shared::cta.b64 _, [%r8+4096];\n" + _ALL_WAIT),
    ("more bytes than an arrival announced for", "sync", "deadlock",
     _INIT + "<<@%p1 mbarrier.arrive.shared::cta.b64 _, [%r8+4096]; @%p1 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r8+4096], 2048;||"
     + _EXPECT + ">>" + _BULK + "<<" + _wait("%r8+4096", 0, "y") + _wait("%r8+4096", 1, "z") + "||" + _ALL_WAIT + ">>"),
)  # fmt: skip

_A, _B = MatrixDescriptor(0, 128, 256, NONE), MatrixDescriptor(2048, 128, 256, NONE)
_DESCRIPTORS = f"mov.b64 %rd30, {encode_wgmma(_A)}; mov.b64 %rd31, {encode_wgmma(_B)};"
_FILL = (
    "mov.b32 %r40, %r9; mov.b32 %r41, 0;\n$L_f: st.shared.b32 [%r40], 0; add.s32 %r40, %r40, 512; add.s32 %r41, %r41, 1;"
    " setp.lt.u32 %p6, %r41, 5; @%p6 bra $L_f;\n"
)
_PROXY = "fence.proxy.async.shared::cta; "
_ZEROS = "mov.b32 %c0, 0; mov.b32 %c1, 0; mov.b32 %c2, 0; mov.b32 %c3, 0; "
_MMA = (
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%c0, %c1, %c2, %c3}, %rd30, %rd31, 1, 1, 1, 0, 0; wgmma.commit_group.sync.aligned; "
)
_GIVE = "st.global.b32 [%rd11], %c0;"
_FENCE, _WAIT = "wgmma.fence.sync.aligned; ", "wgmma.wait_group.sync.aligned 0; "
WGMMA = _rows(
    ("wgmma without a first fence", "races", "without wgmma.fence|missing: wgmma.fence",
     _DESCRIPTORS + _ZEROS + _FILL + _PROXY + _BAR + "<<||" + _FENCE + ">>" + _MMA + _WAIT + _GIVE),
    ("accumulators written behind the fence", "races", "missing: wgmma.fence",
     _DESCRIPTORS + _ZEROS + _FILL + _PROXY + _BAR + _FENCE + _MMA + _WAIT + "add.f32 %c0, %c0, %c1; <<||" + _FENCE + ">>" + _MMA + _WAIT
     + _GIVE),
    ("accumulators without a wait", "races", "wgmma that is under way",
     _DESCRIPTORS + _ZEROS + _FILL + _PROXY + _BAR + _FENCE + _MMA + "<<||" + _WAIT + ">>" + _GIVE),
    ("a wait for the group before", "races", "wgmma that is under way",
     _DESCRIPTORS + _ZEROS + _FILL + _PROXY + _BAR + _FENCE + _MMA + "wgmma.wait_group.sync.aligned <<1||0>>; " + _GIVE),
    ("wgmma without a proxy fence", "races", "missing: fence.proxy.async",
     _DESCRIPTORS + _ZEROS + _FILL + "<<||" + _PROXY + ">>" + _BAR + _FENCE + _MMA + _WAIT + _GIVE),
    ("wgmma without a barrier", "races", "reads 0x.* missing: (bar.warp.sync or )?a barrier",
     _DESCRIPTORS + _ZEROS + _FILL + _PROXY + "<<||" + _BAR + ">>" + _FENCE + _MMA + _WAIT + _GIVE),
    ("what wgmma reads is written before the wait", "races", "writes 0x.* wgmma.wait_group",
     _DESCRIPTORS + _ZEROS + _FILL + _PROXY + _BAR + _FENCE + _MMA + "<<||" + _WAIT + _BAR + ">>" + "st.shared.b32 [%r9], 1; " + _WAIT + _GIVE),
    ("what wgmma reads is written behind the wait of one's own warp", "races", "writes 0x.* wgmma.wait_group of that warp, and a barrier",
     _DESCRIPTORS + _ZEROS + _FILL + _PROXY + _BAR + _FENCE + _MMA + _WAIT + "<<||" + _BAR + ">>" + "st.shared.b32 [%r9], 1; " + _GIVE),
    ("wgmma of what nobody wrote", "init", "nothing has written",
     _DESCRIPTORS + _ZEROS + _FILL.replace("%r41, 5", "%r41, <<4||5>>") + _PROXY + _BAR + _FENCE + _MMA + _WAIT + _GIVE),
    ("a refill by a bulk copy before wgmma is done", "races", "cp.async.bulk.* writes 0x.* wgmma.wait_group",
     _DESCRIPTORS + _ZEROS + _FILL + _PROXY + _INIT + _FENCE + _MMA + "<<||" + _WAIT + ">>" + _BAR + _EXPECT + _BULK + _wait("%r8+4096")
     + _WAIT + _GIVE),
    threads=128,
)  # fmt: skip

_TENSOR_KIND = "tcgen05.mma.cta_group::1.kind::f16.m128n16k16.f32.f16.f16"
CLUSTERS = _rows(
    ("shared memory of the other CTA without the cluster's barrier", "races", "barrier.cluster",
     "st.shared.b32 [%r9], %r1; <<bar.sync 0;||barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;>> mov.u32 %r30, %cluster_ctarank;"
     " xor.b32 %r30, %r30, 1; mapa.shared::cluster.u32 %r31, %r9, %r30; ld.shared::cluster.b32 %r20, [%r31];"
     " barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" + _OUT),
    ("the cluster's barrier, arrived at before the write", "races", "barrier.cluster",
     "<<barrier.cluster.arrive.aligned;||>> st.shared.b32 [%r9], %r1; <<||barrier.cluster.arrive.aligned;>> barrier.cluster.wait.aligned;"
     " mov.u32 %r30, %cluster_ctarank; xor.b32 %r30, %r30, 1; mapa.shared::cluster.u32 %r31, %r9, %r30; ld.shared::cluster.b32 %r20, [%r31];"
     " barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" + _OUT),
    ("a store to the other CTA, read without a wait", "races", "a wait for the phase",
     "@%p1 mbarrier.init.shared::cta.b64 [%r8+4096], 1; barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"
     " @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8+4096], 256; mov.u32 %r30, %cluster_ctarank; xor.b32 %r30, %r30, 1;"
     " mapa.shared::cluster.u32 %r31, %r9, %r30; add.s32 %r33, %r8, 4096; mapa.shared::cluster.u32 %r32, %r33, %r30;"
     " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r31], %r1, [%r32];\n<<||" + _ALL_WAIT + ">>"
     "ld.shared.b32 %r20, [%r9];" + _OUT + "<<" + _wait("%r8+4096", 0, "y") + "||>>"
     "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"),
    cluster=2, grid=2,
)  # fmt: skip

_TA, _TB = MatrixDescriptor(0, 128, 256, NONE), MatrixDescriptor(4096, 128, 256, NONE)
_T_BEGIN = (
    f"mov.b64 %rd30, {encode_tcgen05(_TA)}; mov.b64 %rd31, {encode_tcgen05(_TB)}; mov.b32 %r50, {instruction_descriptor(parse(_TENSOR_KIND))};"
    " @%p2 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r8+6160], 32; @%p1 mbarrier.init.shared::cta.b64 [%r8+6144], 1;"
    + _FILL.replace("%r41, 5", "%r41, 9") + _PROXY + "tcgen05.fence::before_thread_sync; bar.sync 0; tcgen05.fence::after_thread_sync;"
    " ld.shared.b32 %r51, [%r8+6160]; shl.b32 %r52, %r6, 21; add.s32 %r53, %r51, %r52; setp.ne.u32 %p10, 0, 0;"
)  # fmt: skip
_T_MMA = "@%p1 tcgen05.mma.cta_group::1.kind::f16 [%r51], %rd30, %rd31, %r50, %p10; "
_T_COMMIT = "@%p1 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r8+6144];\n"
_T_WAIT = _wait("%r8+6144")
_T_AFTER, _T_BEFORE = "tcgen05.fence::after_thread_sync; ", "tcgen05.fence::before_thread_sync; "
_T_LOAD = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%v0}, [%r53]; "
_T_WAITED = "tcgen05.wait::ld.sync.aligned; "
_T_GIVE = "st.global.b32 [%rd11], %v0; "
_T_END = _T_BEFORE + "bar.sync 0; " + _T_AFTER + "@%p2 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r51, 32;"
_T_STORE = f"tcgen05.st.sync.aligned.32x32b.x16.b32 [%r53], {{{', '.join(['%r1'] * 16)}}}; "
_R_BEGIN = _T_BEGIN.replace(
    "@%p1 mbarrier.init.shared::cta.b64 [%r8+6144], 1;",
    "@%p1 mbarrier.init.shared::cta.b64 [%r8+6144], 1; @%p1 mbarrier.init.shared::cta.b64 [%r8+6176], 32;"
    " @%p1 mbarrier.init.shared::cta.b64 [%r8+6184], 1; mov.b16 %rs1, 3; setp.eq.u32 %p11, %r6, 1; setp.eq.u32 %p12, %r1, 64;"
    " add.s32 %r30, %r8, 6176;",
)
"""Roles: warp 1 writes what a product reads, the first thread waits for it and asks, thread 64 fills the place again."""
_R_WROTE = "@!%p11 bra $L_role1; <<ARRIVE||>> st.shared.b32 [%r9], 1; " + _PROXY + "<<||ARRIVE>>\n$L_role1:"
_R_FIRST = "@!%p1 bra $L_role2;\n" + _wait("%r8+6176", 0, "wait1") + _T_AFTER + _T_MMA + "\n$L_role2:"
_R_REFILL = (
    "@!%p12 bra $L_role3;\n" + _wait("%r8+6144", 0, "wait2") + "EXTRA mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8+6184], 1024;"
    " cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r8], [%rd1], 1024, [%r8+6184];\n" + _wait("%r8+6184", 0, "wait3")
    + "$L_role3:" + _wait("%r8+6144", 0, "wait4")
)  # fmt: skip
_PAIR_MEETS = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; "
TCGEN05 = _rows(
    ("tensor memory without a wait for the product", "races", "tcgen05.commit and a wait",
     _T_BEGIN + _T_MMA + _T_COMMIT + "<<bar.sync 0;||" + _T_WAIT + ">>" + _T_AFTER + _T_LOAD + _T_WAITED + _T_GIVE + "<<"
     + _wait("%r8+6144", 0, "y") + "||>>" + _T_END),
    ("a commit before the product", "races", "tcgen05.commit and a wait",
     _T_BEGIN + "<<" + _T_COMMIT + _T_MMA + "||" + _T_MMA + _T_COMMIT + ">>" + _T_WAIT + _T_AFTER + _T_LOAD + _T_WAITED + _T_GIVE + _T_END),
    ("no fence behind the wait", "races", "tcgen05.fence",
     _T_BEGIN + _T_MMA + _T_COMMIT + _T_WAIT + "<<||" + _T_AFTER + ">>" + _T_LOAD + _T_WAITED + _T_GIVE + _T_END),
    ("tcgen05.ld without a wait", "races", "missing: tcgen05.wait::ld",
     _T_BEGIN + _T_MMA + _T_COMMIT + _T_WAIT + _T_AFTER + _T_LOAD + "<<||" + _T_WAITED + ">>" + _T_GIVE + _T_END),
    ("tcgen05.st without a wait, read by the product", "races", "missing: tcgen05.wait::st",
     _T_BEGIN + _T_STORE + "<<||tcgen05.wait::st.sync.aligned;>>" + _T_BEFORE + "bar.sync 0;" + _T_AFTER + _T_MMA.replace("%p10", "%p9")
     + _T_COMMIT + _T_WAIT + _T_AFTER + _T_LOAD + _T_WAITED + _T_GIVE + _T_END),
    ("tcgen05.st, and no fence before the barrier", "races", "tcgen05.fence",
     _T_BEGIN + _T_STORE + "tcgen05.wait::st.sync.aligned; <<||" + _T_BEFORE + ">>bar.sync 0;" + _T_AFTER + _T_MMA.replace("%p10", "%p9")
     + _T_COMMIT + _T_WAIT + _T_AFTER + _T_LOAD + _T_WAITED + _T_GIVE + _T_END),
    ("tcgen05.st, and no barrier", "races", "tensor memory, which .* (wrote|reads); between them is missing",
     _T_BEGIN + _T_STORE + "tcgen05.wait::st.sync.aligned; " + _T_BEFORE + "<<||bar.sync 0;>>" + _T_AFTER + _T_MMA.replace("%p10", "%p9")
     + _T_COMMIT + _T_WAIT + _T_AFTER + _T_LOAD + _T_WAITED + _T_GIVE + _T_END),
    ("a product that adds to nothing", "init", "tensor memory, which nothing has written",
     _T_BEGIN + _T_MMA.replace("%p10", "<<%p9||%p10>>") + _T_COMMIT + _T_WAIT + _T_AFTER + _T_LOAD + _T_WAITED + _T_GIVE + _T_END),
    ("tensor memory that nobody wrote", "init", "tensor memory, which nothing has written",
     _T_BEGIN + "<<||" + _T_STORE + "tcgen05.wait::st.sync.aligned;>>" + _T_LOAD + _T_WAITED + _T_GIVE + _T_END),
    ("what the product reads is written before it is done", "races", "writes 0x.* tcgen05.commit",
     _T_BEGIN + _T_MMA + _T_COMMIT + "<<st.shared.b32 [%r9], 1;" + _T_WAIT + "||" + _T_WAIT + "st.shared.b32 [%r9], 1;>>" + _T_AFTER + _T_LOAD
     + _T_WAITED + _T_GIVE + _T_END),
    ("a product without a proxy fence", "races", "missing: fence.proxy.async",
     _T_BEGIN.replace(_PROXY, "<<||" + _PROXY + ">>") + _T_MMA + _T_COMMIT + _T_WAIT + _T_AFTER + _T_LOAD + _T_WAITED + _T_GIVE + _T_END),
    ("tensor memory given back while others read it", "races", "tcgen05.dealloc.* writes 0x",
     _T_BEGIN + _T_STORE + "tcgen05.wait::st.sync.aligned;" + _T_LOAD + _T_WAITED + _T_GIVE + "setp.eq.u32 %p2, %r6, 3;"
     + _T_END.replace("bar.sync 0;", "<<||bar.sync 0;>>")),
    ("tensor memory that is not given back", "sync", "not given back",
     _T_BEGIN + _T_STORE + "tcgen05.wait::st.sync.aligned;" + _T_LOAD + _T_WAITED + _T_GIVE + "<<||" + _T_END + ">>"),
    ("tensor memory that was given back", "memory", "not allocated",
     _T_BEGIN + _T_STORE + "tcgen05.wait::st.sync.aligned; <<" + _T_END + _T_LOAD + _T_WAITED + "||" + _T_LOAD + _T_WAITED + _T_END + ">>"),
    ("what another warp wrote for the product, filled again behind its commit", "races", "cp.async.bulk.* writes 0x.*st.shared.* wrote",
     _R_BEGIN + _R_WROTE.replace("ARRIVE", "mbarrier.arrive.shared::cta.b64 _, [%r8+6176];") + _R_FIRST + _T_COMMIT + _R_REFILL.replace("EXTRA", "") + _T_END),
    ("a store between a product and its commit", "races", "ld.shared.* reads 0x.* wrote",
     _R_BEGIN + "@%p11 mbarrier.arrive.shared::cta.b64 _, [%r8+6176];\n" + _R_FIRST.replace(
         _T_MMA, "<<||st.shared.b32 [%r8+6200], 1;>>" + _T_MMA + "<<st.shared.b32 [%r8+6200], 1;||>>") + _T_COMMIT
     + _R_REFILL.replace("EXTRA", "ld.shared.b32 %r20, [%r8+6200];") + _T_END),
    ("tensor memory given back, and no fence before the barrier", "races", "tcgen05.dealloc.* missing: tcgen05.fence::before_thread_sync",
     _T_BEGIN + _T_STORE + "tcgen05.wait::st.sync.aligned;" + _T_LOAD + _T_WAITED + _T_GIVE
     + _T_END.replace(_T_BEFORE, "<<||" + _T_BEFORE + ">>").replace(_T_AFTER, "")),
    threads=128, arch="sm_100a",
)  # fmt: skip
TCGEN05 += _rows(
    ("what the other CTA wrote for the product, filled again behind a commit to both", "races", "cp.async.bulk.* writes 0x.*st.shared.* wrote",
     _R_BEGIN.replace("[%r8+6176], 32", "[%r8+6176], 64") + _PAIR_MEETS + _R_WROTE.replace(
         "ARRIVE", "mapa.shared::cluster.u32 %r31, %r30, 0; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r31];")
     + "mov.u32 %r32, %cluster_ctarank; setp.eq.and.u32 %p1, %r32, 0, %p1;\n" + _R_FIRST
     + _T_COMMIT.replace(".b64 [%r8+6144];", ".multicast::cluster.b64 [%r8+6144], %rs1;") + _R_REFILL.replace("EXTRA", "") + _PAIR_MEETS + _T_END),
    threads=128, arch="sm_100a", cluster=2, grid=2,
)  # fmt: skip

TOGETHER = _rows(
    ("a warp that ends before the barrier", "sync", "part of the block: 1 warps",
     "<<@!%p2 ret;||>> bar.sync 0; st.global.b32 [%rd11], %r1;"),
    ("lanes that end before the barrier", "sync", "part of the block: lanes",
     "setp.gt.u32 %p4, %r7, <<20||40>>; @%p4 ret; bar.sync 0; st.global.b32 [%rd11], %r1;"),
    ("a barrier of a part of the lanes", "sync", "barrier",
     "setp.lt.u32 %p4, %r7, <<16||32>>; @!%p4 bra $L_o; bar.sync 0; bra $L_e;\n$L_o: st.global.b32 [%rd11], %r1;\n$L_e: st.global.b32 [%rd11], %r1;"),
    ("shfl with lanes that have ended", "sync", "names lanes that are not there",
     "setp.gt.u32 %p4, %r7, <<23||31>>; @%p4 ret; shfl.sync.bfly.b32 %r20, %r1, 1, 31, -1;" + _OUT),
    ("shfl from a lane that does not run", "sync", "reads from lane",
     "setp.gt.u32 %p4, %r7, 23; @%p4 ret; shfl.sync.idx.b32 %r20, %r1, <<28||3>>, 31, 0xffffff;" + _OUT),
    ("a lane that its mask does not name", "sync", "does not name it",
     "mov.b32 %r30, <<0xffff||-1>>; vote.sync.ballot.b32 %r20, %p1, %r30;" + _OUT),
    ("elect with lanes that have ended", "sync", "names lanes that are not there",
     "setp.gt.u32 %p4, %r7, 23; @%p4 ret; elect.sync %r20|%p5, <<-1||0xffffff>>;" + _OUT),
    ("redux with lanes that have ended", "sync", "names lanes that are not there",
     "setp.gt.u32 %p4, %r7, 23; @%p4 ret; redux.sync.add.u32 %r20, %r1, <<-1||0xffffff>>;" + _OUT),
    ("two barriers in different orders", "sync", "deadlock",
     "@!%p2 bra $L_b; bar.sync 1, 64; bar.sync 2, 64; bra $L_e;\n$L_b: bar.sync <<2||1>>, 64; bar.sync <<1||2>>, 64;\n$L_e: bar.sync 0;"),
    ("a barrier for more threads than there are", "sync", "deadlock.* at barrier 1", "bar.sync 1, <<96||64>>;"),
    ("a barrier of two counts", "sync", "do not fit",
     "mov.b32 %r30, 64; @!%p2 mov.b32 %r30, <<96||64>>; bar.sync 1, %r30;"),
    ("lanes that vote on different ways", "sync", "deadlock|names lanes that are not there",
     "setp.lt.u32 %p4, %r7, 16; <<@%p4 bra $L_a; bar.warp.sync 0xffff0000; ret;\n$L_a:||>> vote.sync.ballot.b32 %r20, %p1, -1;" + _OUT),
    ("mma with half of the lanes", "sync", "only some of its lanes|deadlock.* `mma.sync",
     "mov.b32 %v0, 0; mov.b32 %v1, 0; mov.b32 %v2, 0; mov.b32 %v3, 0; setp.lt.u32 %p4, %r7, <<16||32>>; @!%p4 bra $L_e;"
     " mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%c0, %c1, %c2, %c3}, {%v0, %v1}, {%v2}, {%v0, %v1, %v2, %v3};\n$L_e: bar.warp.sync -1;"),
)  # fmt: skip

MEMORY = _rows(
    ("a store behind the array", "memory", "outside the memory", "st.global.b32 [%rd11+<<16384||1024>>], %r1;"),
    ("a load behind shared memory", "memory", "outside the memory",
     "st.shared.b32 [%r9], %r1; ld.shared.b32 %r20, [%r9+<<8190||0>>];".replace("8190", "8192") + _OUT),
    ("a misaligned vector", "memory", "misaligned",
     "st.shared.b32 [%r9], %r1; bar.sync 0; @%p1 ld.shared.v2.b32 {%r20, %r21}, [%r8+<<4||8>>];"),
    ("local memory behind its end", "memory", "outside the memory", "mov.b64 %rd20, depot; st.local.b32 [%rd20+<<64||60>>], %r1;"),
)  # fmt: skip

GLOBAL = [
    *_rows(
        ("global memory without a barrier", "races", "global memory.* missing: a barrier",
         "st.global.b32 [%rd11], %r1; <<||bar.sync 0;>> xor.b32 %r30, %r60, 128; cvt.u64.u32 %rd20, %r30; add.s64 %rd21, %rd1, %rd20;"
         " ld.global.b32 %r20, [%rd21]; st.global.b32 [%rd11+4096], %r20;"),
        ("global memory, read by the lane beside", "races", "global memory.* missing: bar.warp.sync",
         "st.global.b32 [%rd11], %r1; <<||bar.warp.sync -1;>> xor.b32 %r30, %r60, 4; cvt.u64.u32 %rd20, %r30; add.s64 %rd21, %rd1, %rd20;"
         " ld.global.b32 %r20, [%rd21]; st.global.b32 [%rd11+4096], %r20;"),
    ),
    *_rows(
        ("two CTAs write one word", "races", "global memory, .* of program",
         "add.s32 %r30, %r4, 1; <<mul.wide.u32 %rd20, %r1, 4; add.s64 %rd11, %rd1, %rd20;||>> st.global.b32 [%rd11], %r30;"),
        ("a sum without atomics", "races", "global memory, .* of program",
         "<<@%p1 ld.global.b32 %r20, [%rd1]; @%p1 add.s32 %r20, %r20, 1; @%p1 st.global.b32 [%rd1], %r20;||@%p1 red.global.add.u32 [%rd1], 1;>>"),
        ("a flag for another CTA without a fence", "races", "global memory, .* of program",
         "setp.eq.u32 %p4, %r2, 0; @!%p4 bra $L_b; st.global.b32 [%rd11+1024], %r1; bar.sync 0;"
         " @%p1 <<st.relaxed||st.release>>.gpu.global.b32 [%rd1], 1; bra $L_e;\n"
         "$L_b: ld.acquire.gpu.global.b32 %r20, [%rd1]; setp.eq.u32 %p5, %r20, 0; @%p5 bra $L_b; ld.global.b32 %r21, [%rd11+768];\n$L_e:"),
        ("the last CTA sums up without a fence", "races", "global memory, .* of program",
         "st.global.b32 [%rd11+1024], %r1; <<||membar.gl;>> bar.sync 0; @!%p1 bra $L_e; atom.global.add.u32 %r20, [%rd1], 1;"
         " setp.ne.u32 %p4, %r20, 1; @%p4 bra $L_e; ld.global.b32 %r21, [%rd1+1024]; ld.global.b32 %r22, [%rd1+1280];"
         " add.s32 %r21, %r21, %r22; st.global.b32 [%rd1+8], %r21;\n$L_e:"),
        grid=2,
    ),
]  # fmt: skip

CASES = [*BARRIERS, *VALUES, *COPIES, *MBARRIERS, *WGMMA, *TCGEN05, *CLUSTERS, *TOGETHER, *MEMORY, *GLOBAL]
