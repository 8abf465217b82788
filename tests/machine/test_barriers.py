"""mbarriers, waits and turns: against a reference in plain Python, and by kernels whose warps, lanes and CTAs wait for each other."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import operands
import pytest

from mmabits.emulator.machine import kernel as machine
from mmabits.emulator.machine.kernel import Kernel, KernelError

HEAD = ".version 8.8\n.target sm_90a\n.address_size 64\n.extern .shared .align 16 .b8 room[];\n"
REGISTERS = "\t.reg .pred %p<20>;\n\t.reg .b16 %rs<20>;\n\t.reg .b32 %r<60>;\n\t.reg .b64 %rd<40>;\n"
PLACE = """
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %ctaid.x;
	mov.u32 %r3, %ntid.x;
	mad.lo.s32 %r4, %r2, %r3, %r1;
	mul.wide.u32 %rd10, %r4, 4;
	add.s64 %rd11, %rd1, %rd10;
	mov.b32 %r8, room;
	shr.u32 %r6, %r1, 5;
"""
"""%r1: thread, %r6: warp, %r8: shared memory, %rd11: the thread's word of the first array."""


def kernel(body: str, *, threads: int = 32, parameters: int = 1, shared: int = 1024) -> Kernel:
    """A kernel of pointers: %rd1, %rd2, ..."""
    names = [f".param .u64 k_param_{place}" for place in range(parameters)]
    loads = "".join(f"\tld.param.b64 %rd{place + 1}, [k_param_{place}];\n" for place in range(parameters))
    text = f"{HEAD}.visible .entry k(\n{', '.join(names)}\n)\n.reqntid {threads}\n{{\n{REGISTERS}{loads}{PLACE}{body}\n}}\n"
    return Kernel(text, arch="sm_90a", shared=shared)


def run(made: Kernel, *arrays: npt.NDArray[Any], grid: tuple[int, ...] = (1,)) -> None:
    ranges = [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
    made.launch(grid, [each.ctypes.data for each in arrays], ranges)


# ------------------------------------------------------------------------------------------------------------------ reference


class Misused(Exception):
    """What the machine calls an error."""


@dataclass
class Phases:
    """An mbarrier as the manual describes it."""

    expected: int
    phase: int = 0
    left: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        self.left = self.expected

    def change(self, arrivals: int, size: int, dropped: int) -> None:
        if self.left < arrivals:
            raise Misused
        self.left, self.size, self.expected = self.left - arrivals, self.size + size, self.expected - dropped
        if self.left == 0 and self.size == 0:
            self.phase, self.left = self.phase + 1, self.expected


STEPS = {
    "arrive": ("mbarrier.arrive.shared::cta.b64 %rd20, [%r8];", (1, 0, 0)),
    "arrive 2": ("mbarrier.arrive.release.cta.shared::cta.b64 %rd20, [%r8], 2;", (2, 0, 0)),
    "drop": ("mbarrier.arrive_drop.shared.b64 %rd20, [%r8];", (1, 0, 1)),
    "expect": ("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r8], 48;", (0, 48, 0)),
    "complete": ("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r8], 16;", (0, -16, 0)),
    "arrive and expect": ("mbarrier.arrive.expect_tx.shared::cta.b64 %rd20, [%r8], 32;", (1, 32, 0)),
}


@pytest.mark.parametrize("seed", range(6))
def test_phases_are_those_of_the_manual(seed: int) -> None:
    """After every step: both parities, the state's phase, and the arrivals that were left before it."""
    rng, count = operands.generator("mbarrier", seed), seed % 3 + 1
    barrier, lines, wanted = Phases(count), [], []
    for _ in range(60):
        names = ["complete"] if barrier.size > (0 if barrier.left == 0 else 64) else list(STEPS)
        name = names[int(rng.integers(len(names)))]
        text, change = STEPS[name]
        before = Phases(**vars(barrier))
        before.left = barrier.left
        if barrier.left < change[0] or barrier.expected - change[2] < 1:
            continue
        barrier.change(*change)
        lines.append(f"mov.b64 %rd20, 0; {text}")
        lines.append("mbarrier.pending_count.b64 %r20, %rd20;")
        for place, test in enumerate(("test_wait.parity.shared.b64 %p{p}, [%r8], 0", "test_wait.parity.shared.b64 %p{p}, [%r8], 1")):
            lines.append(f"mbarrier.{test.format(p=place)}; selp.b32 %r{21 + place}, 1, 0, %p{place};")
        gives_state = change[0] > 0
        if gives_state:
            lines.append("mbarrier.test_wait.shared.b64 %p3, [%r8], %rd20; selp.b32 %r23, 1, 0, %p3;")
        else:
            lines.append("mov.b32 %r20, 0; mov.b32 %r23, 0;")
        lines += [f"st.global.b32 [%rd1+{16 * len(wanted) + 4 * word}], %r{20 + word};" for word in range(4)]
        ended = barrier.phase % 2 == 1
        wanted.append([before.left if gives_state else 0, int(ended), int(not ended), int(gives_state and barrier.phase != before.phase)])
    body = "\n".join(["setp.ne.s32 %p9, %r1, 0; @%p9 ret;", f"mbarrier.init.shared::cta.b64 [%r8], {count};", *lines, "ret;"])
    found = np.zeros((len(wanted), 4), np.int32)
    run(kernel(body), found)
    assert barrier.phase > 1 and found.tolist() == wanted


@pytest.mark.parametrize(("body", "why"), [
    ("mbarrier.arrive.shared.b64 _, [%r8];", "no mbarrier was initialised at 0x1"),
    ("mbarrier.init.shared.b64 [%r8], 0;", "a count of arrivals"),
    ("mbarrier.init.shared.b64 [%r8], 1048576;", "a count of arrivals"),
    ("mbarrier.init.shared.b64 [%r8], 2; mbarrier.arrive.shared.b64 _, [%r8], 3;", "a count of arrivals"),
    ("mbarrier.init.shared.b64 [%r8], 1; mbarrier.expect_tx.shared.b64 [%r8], 1048575; mbarrier.expect_tx.shared.b64 [%r8], 1;",
     "more bytes than"),
    ("mbarrier.init.shared.b64 [%r8], 1; mbarrier.arrive.noComplete.shared.b64 %rd20, [%r8], 1;",
     "an operation that must not end the phase"),
    ("mbarrier.init.shared.b64 [%r8], 1; mbarrier.inval.shared.b64 [%r8]; mbarrier.arrive.shared.b64 _, [%r8];", "no mbarrier"),
    ("mbarrier.init.shared.b64 [%r8+4], 1;", "a misaligned access"),
])  # fmt: skip
def test_misuse_is_an_error(body: str, why: str) -> None:
    with pytest.raises(KernelError, match=f"k: {why}.*lane 0, at `mbarrier"):
        run(kernel(f"setp.ne.s32 %p9, %r1, 0; @%p9 ret; {body} ret;"), np.zeros(4, np.int32))


# ------------------------------------------------------------------------------------------------------------ warps and waits

WAIT = """{{ .reg .pred complete;
wait{0}:
	mbarrier.try_wait.parity.shared::cta.b64 complete, [{1}], {2};
	@!complete bra.uni wait{0};
}}"""
"""As Triton writes it: number, address, parity."""


def test_a_ring_between_warps_of_two_kinds() -> None:
    """A warp fills two buffers that three warps empty: full and empty barriers, parities that alternate."""
    made = kernel(f"""
	setp.ne.s32 %p1, %r1, 0;
	@%p1 bra $L_ready;
	mbarrier.init.shared::cta.b64 [%r8], 32;
	mbarrier.init.shared::cta.b64 [%r8+8], 32;
	mbarrier.init.shared::cta.b64 [%r8+16], 96;
	mbarrier.init.shared::cta.b64 [%r8+24], 96;
$L_ready:
	bar.sync 0;
	mov.b32 %r10, 0;
	mov.b32 %r11, 0;
	setp.eq.s32 %p2, %r6, 3;
	and.b32 %r12, %r1, 31;
	shl.b32 %r13, %r12, 2;
	add.s32 %r13, %r13, %r8;
	mov.b32 %r30, 0;
	@!%p2 bra $L_take;
$L_fill:
	and.b32 %r14, %r10, 1;
	shl.b32 %r15, %r14, 3;
	add.s32 %r15, %r15, %r8;
	add.s32 %r16, %r15, 16;
	shr.u32 %r17, %r10, 1;
	and.b32 %r17, %r17, 1;
	xor.b32 %r18, %r17, 1;
	{WAIT.format(1, "%r16", "%r18")}
	shl.b32 %r19, %r14, 7;
	add.s32 %r19, %r19, %r13;
	mad.lo.s32 %r20, %r10, 100, %r12;
	st.shared.b32 [%r19+64], %r20;
	mbarrier.arrive.shared::cta.b64 _, [%r15];
	add.s32 %r10, %r10, 1;
	setp.lt.s32 %p3, %r10, 7;
	@%p3 bra $L_fill;
	ret;
$L_take:
	and.b32 %r14, %r10, 1;
	shl.b32 %r15, %r14, 3;
	add.s32 %r15, %r15, %r8;
	shr.u32 %r17, %r10, 1;
	and.b32 %r17, %r17, 1;
	{WAIT.format(2, "%r15", "%r17")}
	shl.b32 %r19, %r14, 7;
	add.s32 %r19, %r19, %r13;
	ld.shared.b32 %r20, [%r19+64];
	mad.lo.s32 %r30, %r30, 3, %r20;
	mbarrier.arrive.shared::cta.b64 _, [%r15+16];
	add.s32 %r10, %r10, 1;
	setp.lt.s32 %p3, %r10, 7;
	@%p3 bra $L_take;
	st.global.b32 [%rd11], %r30;
	ret;""", threads=128)  # fmt: skip
    found = np.zeros(128, np.int32)
    run(made, found)
    total = np.zeros(32, np.int64)
    for step in range(7):
        total = total * 3 + step * 100 + np.arange(32)
    assert np.array_equal(found.reshape(4, 32)[:3], np.tile(total, (3, 1))) and not found[96:].any()


def test_lanes_of_one_warp_wait_for_each_other() -> None:
    """Lane 0 waits at a lower place for what the other lanes do after it: they go on meanwhile, and bar.warp.sync brings all together."""
    made = kernel(f"""
	setp.ne.s32 %p1, %r1, 0;
	@%p1 bra $L_others;
	mbarrier.init.shared::cta.b64 [%r8], 31;
	bar.warp.sync -1;
	{WAIT.format(1, "%r8", "0")}
	ld.shared.b32 %r20, [%r8+64];
	st.shared.b32 [%r8+128], %r20;
	bra.uni $L_end;
$L_others:
	bar.warp.sync -1;
	mov.b32 %r20, 5;
	st.shared.b32 [%r8+64], %r20;
	mbarrier.arrive.shared::cta.b64 _, [%r8];
$L_end:
	bar.warp.sync 0xffffffff;
	ld.shared.b32 %r21, [%r8+128];
	st.global.b32 [%rd11], %r21;
	ret;""")  # fmt: skip
    with pytest.raises(KernelError, match="a deadlock"):  # two different bar.warp.sync do not meet
        run(made, np.zeros(32, np.int32))
    made = kernel(f"""
	setp.ne.s32 %p1, %r1, 0;
	@!%p1 mbarrier.init.shared::cta.b64 [%r8], 31;
	@%p1 bra $L_others;
	{WAIT.format(1, "%r8", "0")}
	ld.shared.b32 %r20, [%r8+64];
	st.shared.b32 [%r8+128], %r20;
	bra.uni $L_end;
$L_others:
	mov.b32 %r20, 5;
	st.shared.b32 [%r8+64], %r20;
	mbarrier.arrive.shared::cta.b64 _, [%r8];
$L_end:
	bar.warp.sync 0xffffffff;
	ld.shared.b32 %r21, [%r8+128];
	st.global.b32 [%rd11], %r21;
	ret;""")  # fmt: skip
    found = np.zeros(32, np.int32)
    run(made, found)
    assert found.tolist() == [5] * 32


def test_a_barrier_after_a_lane_that_waits() -> None:
    made = kernel(f"""
	setp.eq.s32 %p1, %r1, 0;
	@%p1 mbarrier.init.shared::cta.b64 [%r8], 1;
	bar.sync 0;
	setp.eq.s32 %p2, %r6, 1;
	@%p2 bra $L_second;
	setp.ne.s32 %p3, %r1, 0;
	@%p3 bra $L_all;
	{WAIT.format(1, "%r8", "0")}
	mov.b32 %r20, 9;
	st.shared.b32 [%r8+64], %r20;
	bra.uni $L_all;
$L_second:
	setp.eq.s32 %p4, %r1, 32;
	@%p4 mbarrier.arrive.shared::cta.b64 _, [%r8];
$L_all:
	bar.sync 0;
	ld.shared.b32 %r21, [%r8+64];
	st.global.b32 [%rd11], %r21;
	ret;""", threads=64)  # fmt: skip
    found = np.zeros(64, np.int32)
    run(made, found)
    assert found.tolist() == [9] * 64


def test_a_deadlock_at_an_mbarrier_names_who_waits() -> None:
    made = kernel(f"""
	setp.eq.s32 %p1, %r1, 0;
	@%p1 mbarrier.init.shared::cta.b64 [%r8+16], 2;
	bar.sync 0;
	add.s32 %r9, %r8, 16;
	setp.eq.s32 %p2, %r1, 40;
	@%p2 mbarrier.arrive.shared::cta.b64 _, [%r9];
	{WAIT.format(1, "%r9", "0")}
	ret;""", threads=64)  # fmt: skip
    with pytest.raises(
        KernelError,
        match=r"k: a deadlock in program 0: warp 0 for the mbarrier at 0x10 of shared memory, `mbarrier.try_wait.*PTX\); warp 1",
    ):
        run(made, np.zeros(4, np.int32))


def test_a_try_that_fails_says_so_where_nothing_else_goes_on() -> None:
    """mbarrier.try_wait has a time limit: a warp that asks for a phase which needs its own arrival is told no."""
    made = kernel("""
	setp.eq.s32 %p1, %r1, 0;
	@%p1 mbarrier.init.shared::cta.b64 [%r8], 32;
	bar.warp.sync -1;
	mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r8], 0;
	mbarrier.arrive.shared::cta.b64 %rd20, [%r8];
	mbarrier.try_wait.shared::cta.b64 %p3, [%r8], %rd20, 0x989680;
	mbarrier.try_wait.parity.shared::cta.b64 %p4, [%r8], 1;
	selp.b32 %r20, 1, 0, %p2;
	selp.b32 %r21, 2, 0, %p3;
	selp.b32 %r22, 4, 0, %p4;
	add.s32 %r20, %r20, %r21;
	add.s32 %r20, %r20, %r22;
	st.global.b32 [%rd11], %r20;
	ret;""")  # fmt: skip
    found = np.zeros(32, np.int32)
    run(made, found)
    assert found.tolist() == [2] * 32


@pytest.mark.parametrize("noinc", [True, False])
def test_copies_arrive_at_an_mbarrier(noinc: bool) -> None:
    """cp.async.mbarrier.arrive counts once, or, without .noinc, changes nothing in the end; the copies are put off until the wait."""
    made = kernel(f"""
	setp.eq.s32 %p1, %r1, 0;
	@%p1 mbarrier.init.shared::cta.b64 [%r8], {32 if noinc else 33};
	bar.warp.sync -1;
	shl.b32 %r9, %r1, 2;
	add.s32 %r10, %r8, %r9;
	cp.async.ca.shared.global [%r10+64], [%rd11], 4;
	cp.async.mbarrier.arrive{".noinc" if noinc else ""}.shared::cta.b64 [%r8];
	ld.shared.b32 %r20, [%r10+64];
	{"" if noinc else "@%p1 mbarrier.arrive.shared::cta.b64 _, [%r8], 33;"}
	{WAIT.format(1, "%r8", "0")}
	ld.shared.b32 %r21, [%r10+64];
	mad.lo.s32 %r21, %r20, 1000, %r21;
	st.global.b32 [%rd11], %r21;
	ret;""")  # fmt: skip
    found = np.arange(7, 39, dtype=np.int32)
    run(made, found)
    assert found.tolist() == list(range(7, 39))


# ----------------------------------------------------------------------------------------------------------- named barriers


def test_warps_arrive_at_a_named_barrier_and_go_on() -> None:
    made = kernel("""
	setp.eq.s32 %p1, %r6, 1;
	@%p1 bra $L_second;
	bar.sync 3, 64;
	ld.shared.b32 %r20, [%r8];
	st.global.b32 [%rd11], %r20;
	ret;
$L_second:
	mov.b32 %r20, 8;
	st.shared.b32 [%r8], %r20;
	barrier.cta.arrive.aligned 3, 64;
	mov.b32 %r20, 1;
	st.global.b32 [%rd11], %r20;
	ret;""", threads=64)  # fmt: skip
    found = np.zeros(64, np.int32)
    run(made, found)
    assert found.tolist() == [8] * 32 + [1] * 32


def test_the_barrier_of_a_cluster_of_one() -> None:
    made = kernel("""
	mad.lo.s32 %r9, %r1, 4, %r8;
	st.shared.b32 [%r9], %r1;
	barrier.cluster.arrive.release.aligned;
	barrier.cluster.wait.acquire.aligned;
	xor.b32 %r10, %r1, 127;
	mad.lo.s32 %r9, %r10, 4, %r8;
	ld.shared.b32 %r20, [%r9];
	barrier.cluster.arrive.aligned;
	barrier.cluster.wait.aligned;
	st.shared.b32 [%r9], %r20;
	st.global.b32 [%rd11], %r20;
	ret;""", threads=128)  # fmt: skip
    found = np.zeros(128, np.int32)
    run(made, found)
    assert found.tolist() == list(range(127, -1, -1))


# ------------------------------------------------------------------------------------------------------------ CTAs that wait

SPIN = """
$L_spin:
	{0};
	setp.lt.s32 %p5, %r20, %r21;
	@%p5 bra $L_spin;
"""


@pytest.mark.parametrize("look", [
    "ld.acquire.gpu.global.b32 %r20, [%rd2]", "ld.volatile.global.u32 %r20, [%rd2]", "atom.global.gpu.acquire.add.u32 %r20, [%rd2], 0",
])  # fmt: skip
@pytest.mark.parametrize("threads", [1, 32])
def test_programs_wait_for_later_ones(look: str, threads: int) -> None:
    """Each of 40 programs waits until all later ones have come: they take turns, in as much room as that needs."""
    made = kernel(f"""
	sub.s32 %r21, 39, %r2;
	setp.ne.s32 %p6, %r1, 0;
	@%p6 bra $L_end;
	{SPIN.format(look)}
	atom.global.add.u32 %r22, [%rd2], 1;
	mul.wide.u32 %rd12, %r2, 4;
	add.s64 %rd12, %rd12, %rd1;
	st.global.b32 [%rd12], %r22;
$L_end:
	ret;""", threads=threads, parameters=2)  # fmt: skip
    found, cell = np.zeros(40, np.int32), np.zeros(1, np.int32)
    run(made, found, cell, grid=(40,))
    assert found.tolist() == list(range(39, -1, -1)) and cell[0] == 40


def test_programs_that_wait_for_nothing_are_a_deadlock() -> None:
    made = kernel(f"\tmov.b32 %r21, 4;{SPIN.format('ld.acquire.gpu.global.b32 %r20, [%rd2]')}\tret;", parameters=2)
    with pytest.raises(KernelError, match=r"k: a deadlock in program 0: warp 0 `ld.acquire.gpu.global.b32 %r20, \[%rd2\]` \(line"):
        run(made, np.zeros(1, np.int32), np.zeros(1, np.int32), grid=(5,))


LOCK = """
again:
	bar.sync 0;
	ld.acquire.gpu.global.b32 %r20, [%rd2];
	bar.sync 0;
	setp.ne.s32 %p1, %r20, %r21;
	@%p1 bra again;
	bar.sync 0;
	setp.ne.s32 %p2, %r1, 0;
	@%p2 bra done;
	atom.global.add.u32 %r22, [%rd2], 1;
done:
	ret;"""
"""As Triton writes `while tl.atomic_cas(lock, ...) != ticket: pass`: barriers stand inside the loop that waits."""


def test_programs_that_wait_at_barriers_too_let_others_begin() -> None:
    made = kernel(f"\tsub.s32 %r21, 39, %r2;{LOCK}", threads=128, parameters=2)
    cell = np.zeros(1, np.int32)
    run(made, np.zeros(1, np.int32), cell, grid=(40,))
    assert cell[0] == 40


def test_programs_that_wait_at_barriers_for_nothing_are_a_deadlock() -> None:
    made = kernel(f"\tsub.s32 %r21, 4, %r2;{LOCK}", threads=64, parameters=2)
    cell = np.full(1, 9, np.int32)
    with pytest.raises(KernelError, match="k: a deadlock in program 0: warp 0"):
        run(made, np.zeros(1, np.int32), cell, grid=(5,))


def test_the_room_for_programs_that_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: programs that do not fit beside those that wait for them never begin."""
    monkeypatch.setattr(machine, "_ROOM", 8)
    made = kernel(f"\tsub.s32 %r21, 39, %r2;{SPIN.format('ld.acquire.gpu.global.b32 %r20, [%rd2]')}\tret;", parameters=2)
    with pytest.raises(KernelError, match="a deadlock in program 0"):
        run(made, np.zeros(1, np.int32), np.zeros(1, np.int32), grid=(40,))


@pytest.mark.slow  # it goes by time
def test_a_loop_that_never_ends_can_be_interrupted() -> None:
    made = kernel("$L_loop:\n\tadd.s32 %r20, %r20, 1;\n\tbra.uni $L_loop;\n")

    def raises(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, raises)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TimeoutError):
            run(made, np.zeros(1, np.int32))
    finally:
        signal.signal(signal.SIGALRM, before)
