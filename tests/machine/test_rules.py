"""Small rules of the machine that few kernels show: who waits for whom, which lanes count, where memory ends, what a carry survives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import operands
import ptx_interpreter
import pytest

from mmabits.emulator.machine.kernel import Kernel, KernelError
from mmabits.emulator.machine.warp import UnknownOpcode

Words = npt.NDArray[np.uint32]


def launched(body: str, *, threads: int = 32, before: str = "", words: int | Words = 128, **options: Any) -> Words:
    """What a kernel leaves in an array, of zeros or given; %rd1 is its address, %rd2 the thread's word of it, %r1 the thread."""
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
    found = np.zeros(words, np.uint32) if isinstance(words, int) else words.copy()
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


@pytest.mark.parametrize("lane", [0, 1, 31])
def test_one_lane_goes_another_way(lane: int) -> None:
    found = launched(f"""
	add.u32 %r3, %r1, 1;
	setp.eq.u32 %p1, %r1, {lane};
	@%p1 bra $L_end;
	st.global.b32 [%rd2], %r3;
	setp.eq.u32 %p2, %r1, {lane ^ 3};
	@%p2 ret;
	st.global.b32 [%rd2+128], %r3;
$L_end:
	ret;""")  # fmt: skip
    wanted = [0 if each == lane else each + 1 for each in range(32)]
    assert found[:64].tolist() == wanted + [0 if place == lane ^ 3 else each for place, each in enumerate(wanted)]


def test_lanes_that_have_ended_have_no_vote() -> None:
    found = launched("""
	setp.ge.u32 %p1, %r1, 9;
	@!%p1 ret;
	vote.sync.all.pred %p2, %p1, -1;
	selp.b32 %r2, 1, 0, %p2;
	redux.sync.min.s32 %r3, %r1, -1;
	mad.lo.u32 %r2, %r3, 10, %r2;
	st.global.b32 [%rd2], %r2;
	ret;""")  # fmt: skip
    assert found[:32].tolist() == [0] * 9 + [91] * 23


def test_lanes_that_a_warp_lacks() -> None:
    found = launched("""
	mov.u32 %r2, %warpid;
	mov.u32 %r3, %laneid;
	mad.lo.u32 %r2, %r2, 32, %r3;
	mad.wide.u32 %rd2, %r2, 4, %rd1;
	atom.global.add.u32 %r4, [%rd2], 1;
	ret;""", threads=40)  # fmt: skip
    assert found.tolist() == [1] * 40 + [0] * 88


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


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_every_distance_and_clamp(mode: str) -> None:
    """Each lane with a distance, a clamp and a segment of its own."""
    rng = operands.generator("shfl", mode)
    words = rng.integers(0, 1 << 32, (3, 16, 32), dtype=np.uint32)
    words[1, ::2] &= 31
    words[2, ::2] = rng.choice(np.array([0, 0x1F, 0x181F, 0x1C1F, 0x1000, 0x1E01], np.uint32), (8, 32))
    body = "".join(f"""
	ld.global.b32 %r2, [%rd2+{128 * each}]; ld.global.b32 %r3, [%rd2+{128 * (16 + each)}]; ld.global.b32 %r4, [%rd2+{128 * (32 + each)}];
	shfl.sync.{mode}.b32 %r5|%p1, %r2, %r3, %r4, -1;
	selp.b32 %r6, 1, 0, %p1;
	st.global.b32 [%rd2+{128 * each}], %r5; st.global.b32 [%rd2+{128 * (16 + each)}], %r6;""" for each in range(16))  # fmt: skip
    found = launched(body + "\nret;", words=words.reshape(-1)).reshape(3, 16, 32)
    for each in range(16):
        for lane in range(32):
            other, inside = ptx_interpreter.shuffled(mode, lane, int(words[1, each, lane]), int(words[2, each, lane]))
            assert (int(found[0, each, lane]), bool(found[1, each, lane])) == (int(words[0, each, other]), inside), (each, lane)


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("store", [False, True])
def test_matrices_of_shared_memory(store: bool, trans: bool) -> None:
    """Four matrices, rows at other places than those of their lanes."""
    elements = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    word = ".trans" if trans else ""
    place = "xor.b32 %r3, %r1, 5; mad.lo.u32 %r2, %r3, 16, %r2;"
    own = "mov.b32 %r4, room; mad.lo.u32 %r4, %r1, 16, %r4; mad.wide.u32 %rd3, %r1, 16, %rd1;"
    four = "{%r10, %r11, %r12, %r13}"
    load, save = (
        f"ldmatrix.sync.aligned.m8n8.x4{word}.shared.b16 {four}, [%r2];",
        f"stmatrix.sync.aligned.m8n8.x4{word}.shared.b16 [%r2], {four};",
    )
    first = (
        f"ld.global.v4.b32 {four}, [%rd3]; {save}" if store else f"ld.global.v4.b32 {four}, [%rd3]; st.shared.v4.b32 [%r4], {four}; {load}"
    )
    last = f"ld.shared.v4.b32 {four}, [%r4]; " if store else ""
    rows = elements.reshape(32, 8)
    fragments = (elements.transpose(0, 2, 1) if trans else elements).reshape(4, 32, 2).transpose(1, 0, 2).reshape(32, 8)
    given, wanted = (fragments, rows) if store else (rows, fragments)
    mixed = np.arange(32) ^ 5
    given, wanted = (given, wanted[mixed]) if store else (given[mixed], wanted)
    body = f".shared .align 16 .b8 room[512]; mov.b32 %r2, room; {place} {own} {first} {last} st.global.v4.b32 [%rd3], {four}; ret;"
    found = launched(body, words=np.ascontiguousarray(given).reshape(-1).view(np.uint32))
    assert np.array_equal(found.view(np.uint16).reshape(32, 8), wanted)


# ------------------------------------------------------------------------------------------------------------------ atomic


@pytest.mark.parametrize("kind", ["u32", "s32", "b32", "u64", "s64", "b64"])
def test_atomic_operations(kind: str) -> None:
    """Each on a word of its own, of numbers that are equal, smaller, larger, zero and of either sign."""
    bits = int(kind[1:])
    names = {"b": ["and", "or", "xor", "exch", "cas"], "u": ["add", "min", "max"] + ["inc", "dec"] * (bits == 32), "s": ["min", "max"]}[
        kind[0]
    ]
    edges = [0, 1, 2, 1 << (bits - 1), (1 << bits) - 1, (1 << (bits - 1)) - 1, 5, 5]
    unsigned = np.uint32 if bits == 32 else np.uint64
    pairs = np.array(
        [(edges[(lane + shift) % 8], edges[lane // 8 * 2 % 8], edges[lane % 5]) for shift in (0, 3) for lane in range(32)], unsigned
    )
    pool = "r" if bits == 32 else "rd"
    size = bits // 8
    for name in names:
        other = f", %{pool}7" if name == "cas" else ""
        found = launched(f"""
	mad.wide.u32 %rd2, %r1, {3 * size}, %rd1;
	ld.global.b{bits} %{pool}6, [%rd2+{size}]; ld.global.b{bits} %{pool}7, [%rd2+{2 * size}];
	atom.global.{name}.{kind} %{pool}8, [%rd2], %{pool}6{other};
	st.global.b{bits} [%rd2+{size}], %{pool}8;
	ret;""", threads=64, words=pairs.reshape(-1).view(np.uint32)).view(unsigned).reshape(64, 3)  # fmt: skip
        for (old, value, third), (new, was, _) in zip(pairs.tolist(), found.tolist(), strict=True):
            sign = [each - (1 << bits) if kind[0] == "s" and each >> (bits - 1) else each for each in (old, value, third)]
            assert (new, was) == (ptx_interpreter.ATOMIC[name](*sign) & (1 << bits) - 1, old), (name, old, value)


# --------------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("have", [0, 4, 8, 16])
def test_a_copy_of_less_is_filled_with_zeros(have: int) -> None:
    found = launched(f"""
	.shared .align 16 .b8 room[512];
	mov.b32 %r2, room; mad.lo.u32 %r2, %r1, 16, %r2; mad.wide.u32 %rd3, %r1, 16, %rd1;
	mov.b32 %r5, -1; st.shared.v4.b32 [%r2], {{%r5, %r5, %r5, %r5}};
	mov.b32 %r6, {have};
	cp.async.cg.shared.global [%r2], [%rd3], 16, %r6;
	cp.async.wait_all;
	ld.shared.v4.b32 {{%r10, %r11, %r12, %r13}}, [%r2]; st.global.v4.b32 [%rd3], {{%r10, %r11, %r12, %r13}};
	ret;""", words=np.arange(1, 129, dtype=np.uint32))  # fmt: skip
    wanted = np.arange(1, 129, dtype=np.uint32).reshape(32, 4)
    wanted[:, have // 4 :] = 0
    assert np.array_equal(found.reshape(32, 4), wanted)


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


@pytest.mark.parametrize(("space", "end"), [("local", 64), ("shared", 64), ("const", 64), ("variable", 64), ("global", 512)])
def test_each_space_has_an_end(space: str, end: int) -> None:
    """`variable` is one of the module."""
    named = {"variable": "global"}.get(space, space)
    declared = f".{named} .align 16 .b8 room[64];" if space != "global" else ""
    before = declared if space in ("const", "variable") else ""
    start = "" if space == "global" else "mov.b64 %rd1, room;"
    body = f"{'' if before else declared} {start} ld.{named}.b32 %r2, [%rd1+PLACE]; ret;"
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


# --------------------------------------------------------------------------------------------------------------- what begins as zeros


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("body", "found"), [
    # a register that only a later round writes
    ("mov.b32 %r3, 0; loop: mov.b32 %r5, %r4; add.u32 %r4, %r1, 9; add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, %r6; @%p1 bra loop;", "%r5"),
    # one that only some lanes write
    ("setp.eq.u32 %p1, %r1, 3; @%p1 bra over; mov.b32 %r3, 0; bra done; over: add.u32 %r4, %r1, 7; mov.b32 %r3, 1; "
     "done: add.u32 %r5, %r4, 0;", "%r5"),
    # one of a lane that went another way
    ("setp.lt.u32 %p1, %r1, 4; @%p1 bra over; mov.b32 %r4, 5; shfl.sync.idx.b32 %r5, %r4, 0, 31, 0xFFFFFFF0; bra done;"
     " over: mov.b32 %r4, 6; mov.b32 %r5, 0; done: add.u32 %r5, %r5, %r4;", "%r5"),
    # local memory
    (".local .align 16 .b8 stack[16]; ld.local.b32 %r5, [stack+4]; st.local.b32 [stack+4], %r1;", "%r5"),
])  # fmt: skip
def test_what_was_never_written_is_zero(body: str, found: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever programs ran before on the same thread."""
    monkeypatch.setattr("mmabits.emulator.engine.products.threads_wanted", lambda: threads)
    text = f"""
.version 8.8
.target sm_80
.visible .entry k(.param .u64 k_0) .reqntid 32 {{
	.reg .pred %p<10>; .reg .b32 %r<40>; .reg .b64 %rd<10>;
	ld.param.b64 %rd1, [k_0];
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %ctaid.x;
	mad.lo.u32 %r7, %r2, 32, %r1;
	mad.wide.u32 %rd2, %r7, 4, %rd1;
	ld.global.b32 %r6, [%rd2];
{body}
	st.global.b32 [%rd2], {found};
	ret;
}}"""
    rounds = np.repeat(np.arange(40, dtype=np.uint32) % 2 + 1, 32)
    cells = rounds.copy()
    Kernel(text, arch="sm_80").launch((40,), [cells.ctypes.data], [(cells.ctypes.data, cells.ctypes.data + cells.nbytes)])
    lanes = np.tile(np.arange(32, dtype=np.uint32), 40)
    wanted = {
        "loop": np.where(rounds == 2, lanes + 9, 0), "over": np.where(lanes == 3, lanes + 7, 0), "shfl": np.where(lanes < 4, 6, 5),
    }  # fmt: skip
    name = next((each for each in ("shfl", "loop", "over") if each in body), "")
    np.testing.assert_array_equal(cells, wanted.get(name, np.zeros(1280, np.uint32)))


def test_an_index_outside_the_table_of_a_branch() -> None:
    body = """
	ways: .branchtargets one, two;
	add.u32 %r3, %r1, {first};
	shr.u32 %r3, %r3, 4;
	brx.idx %r3, ways;
one:
	mov.b32 %r4, 1;
	bra done;
two:
	mov.b32 %r4, 2;
done:
	st.global.b32 [%rd2], %r4;
	ret;"""
    assert launched(body.replace("{first}", "0"))[:32].tolist() == [1] * 16 + [2] * 16
    with pytest.raises(KernelError, match=r"the index 2 of a branch, outside its table, .* lane 31, at `brx.idx"):
        launched(body.replace("{first}", "1"))


@pytest.mark.parametrize(("variable", "flushes"), [(".global", True), (".shared", False)])
def test_sums_in_variables_flush_as_their_space_does(variable: str, flushes: bool) -> None:
    space = variable[1:]
    found = launched(f"""
	{"" if space == "global" else f"{variable} .align 4 .b32 cell[1];"}
	setp.ne.u32 %p1, %r1, 0;
	@%p1 ret;
	mov.b32 %r3, 0x00000003;
	atom.{space}.add.f32 %r4, [cell], %r3;
	atom.{space}.add.f32 %r5, [cell], 0f00000000;
	st.global.b32 [%rd1], %r5;
	ret;""", before=f"{variable} .align 4 .b32 cell[1];" if space == "global" else "")  # fmt: skip
    assert found[0] == (0 if flushes else 3)


# ------------------------------------------------------------------------------------------------- barriers that count as they meet


@pytest.mark.parametrize("parted", [False, True])
@pytest.mark.parametrize("threads", [96, 80])
@pytest.mark.parametrize(("opcode", "limit"), [
    ("bar.red.popc.u32", 70), ("barrier.cta.red.popc.aligned.u32", 3), ("bar.red.and.pred", 96), ("bar.red.and.pred", 40),
    ("bar.red.or.pred", 0), ("bar.red.or.pred", 40),
])  # fmt: skip
def test_a_barrier_with_a_reduction(opcode: str, limit: int, threads: int, parted: bool) -> None:
    """Of the threads below a limit, twice, with another sum the second time."""
    target, taken = ("%r5", "") if "popc" in opcode else ("%p5", "selp.b32 %r5, 1, 0, %p5;")
    other, more = ("%r6", "") if "popc" in opcode else ("%p6", "selp.b32 %r6, 1, 0, %p6;")
    found = launched(f"""
	{"setp.eq.u32 %p7, %r1, 5; @%p7 bra over; mov.b32 %r7, 0; over:" if parted else ""}
	setp.lt.u32 %p1, %r1, {limit};
	{opcode} {target}, 1, {(threads + 31) // 32 * 32}, %p1;
	{taken}
	{opcode} {other}, 0, !%p1;
	{more}
	mad.lo.u32 %r5, %r6, 1000, %r5;
	st.global.b32 [%rd2], %r5;
	ret;""", threads=threads)  # fmt: skip
    below = min(limit, threads)
    first, second = below, threads - below
    if "and" in opcode:
        first, second = int(first == threads), int(second == threads)
    elif ".or." in opcode:
        first, second = int(first > 0), int(second > 0)
    assert found[:threads].tolist() == [1000 * second + first] * threads


def test_a_barrier_with_a_reduction_in_a_loop() -> None:
    """As a vote of the whole CTA ends it; its result lives on."""
    found = launched("""
	mov.b32 %r4, 0;
loop:
	add.u32 %r4, %r4, 1;
	setp.lt.u32 %p1, %r4, %r1;
	bar.red.popc.u32 %r5, 0, %p1;
	setp.gt.u32 %p2, %r5, 10;
	setp.lt.and.u32 %p2, %r4, 70, %p2;
	@%p2 bra loop;
	mad.lo.u32 %r5, %r4, 100, %r5;
	st.global.b32 [%rd2], %r5;
	ret;""", threads=64)  # fmt: skip
    assert found[:64].tolist() == [5310] * 64
