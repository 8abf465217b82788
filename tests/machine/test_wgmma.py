"""wgmma in a kernel, of every type and layout, against `mmabits.gemm`; waits, chains, and what is an error."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import operands
import pytest

import mmabits
from mmabits.conformance.record.session import recordable, representatives
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.emulator.machine.descriptors import NONE, SPAN_32, SPAN_64, SPAN_128, MatrixDescriptor, Swizzle, encode_wgmma
from mmabits.emulator.machine.kernel import Kernel, KernelError
from mmabits.emulator.machine.warp import UnknownOpcode
from mmabits.isa import FormatSpec, parse
from mmabits.isa.fragments import accumulator_layout
from mmabits.isa.instructions import Instruction

ROOM = 96 * 1024
SIDE = 48 * 1024
"""Where B begins in shared memory."""
STEPS = 2


class Way(NamedTuple):
    """How an operand lies: a swizzle and the major dimension, in shared memory, or in registers."""

    swizzle: Swizzle = SPAN_128
    mn_major: bool = False
    in_registers: bool = False


def codes_of(rng: np.random.Generator, shape: tuple[int, ...], spec: FormatSpec) -> npt.NDArray[Any]:
    if spec.is_integer:
        return rng.integers(0, spec.codes, shape).astype(f"uint{spec.container_bits}")
    return as_codes(mmabits.encode(np.round(rng.standard_normal(shape) * 8) / 4, spec.name), spec)


def descriptors(way: Way, rows: int, k: int, bits: int, base: int) -> list[MatrixDescriptor]:
    """Those of STEPS matrices one after another along K, that do not overlap."""
    span, lines = way.swizzle.span, k // 8
    if way.swizzle is NONE:
        leading, stride = (16 * rows, 128) if way.mn_major else (128, 256)
    elif way.mn_major:
        leading, stride = 8 * span * lines, 8 * span
    else:
        leading, stride = 16, 8 * span
    size = max(rows * k * bits // 8, rows * span)
    step = k * bits // 8 if way.swizzle.span > k * bits // 8 and not way.mn_major else -(-size // 1024) * 1024
    return [MatrixDescriptor(base + step * number, leading, stride, way.swizzle) for number in range(STEPS)]


def put(image: npt.NDArray[np.uint8], descriptor: MatrixDescriptor, codes: npt.NDArray[Any], bits: int, mn_major: bool) -> None:
    """Rows (M or N) x K codes where a descriptor says, element by element."""
    for row, k in itertools.product(range(codes.shape[0]), range(codes.shape[1])):
        at = descriptor.element(row, k, bits=bits, elements=128 // bits, mn_major=mn_major) // 8
        image[at : at + bits // 8] = codes[row, k : k + 1].view(np.uint8)


def fragment(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint32]:
    """A of 64 rows in four registers of 128 threads, as the manual's figures have it."""
    per = 32 // bits
    words = np.zeros((4, 128), np.uint32)
    for register, thread, place in itertools.product(range(4), range(128), range(per)):
        row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (register % 2)
        k = per * (thread % 4 + 4 * (register // 2)) + place
        words[register, thread] |= np.uint32(int(codes[row, k]) << bits * place)
    return words


BEGIN = f"""
	.reg .pred %p<20>; .reg .b32 %r<40>; .reg .b64 %rd<40>;
	ld.param.b64 %rd1, [k_0]; ld.param.b64 %rd2, [k_1]; ld.param.b64 %rd3, [k_2];
	mov.u32 %r1, %tid.x; mov.b32 %r8, room;
	mov.u32 %r2, %tid.x;
$L_image:
	shl.b32 %r3, %r2, 2; cvt.u64.u32 %rd4, %r3; add.s64 %rd5, %rd1, %rd4; add.s32 %r4, %r8, %r3;
	ld.global.b32 %r5, [%rd5]; st.shared.b32 [%r4], %r5;
	add.s32 %r2, %r2, %ntid.x; setp.lt.u32 %p1, %r2, {ROOM // 4};
	@%p1 bra $L_image;
	fence.proxy.async.shared::cta;
	bar.sync 0;
	mul.wide.u32 %rd6, %r1, 4; add.s64 %rd7, %rd2, %rd6; add.s64 %rd8, %rd3, %rd6;
	shr.u32 %r6, %r1, 7;
	wgmma.fence.sync.aligned;
"""
"""The image of shared memory from %rd1; %rd7: the thread's accumulators, %rd8: its fragments of A, %r6: its warpgroup."""


def kernel(body: str, threads: int = 128) -> Kernel:
    head = ".version 8.8\n.target sm_90a\n.extern .shared .align 1024 .b8 room[];\n"
    entry = f".visible .entry k(.param .u64 k_0, .param .u64 k_1, .param .u64 k_2) .reqntid {threads}"
    text = f"{head}{entry}\n{{\n{BEGIN}{body}\nret;\n}}"
    return Kernel(text, arch="sm_90a", shared=ROOM)


def registers(count: int) -> str:
    return "{" + ", ".join(f"%c{place}" for place in range(count)) + "}"


def load(count: int, threads: int = 128) -> str:
    return "".join(f".reg .b32 %c{place}; ld.global.b32 %c{place}, [%rd7+{4 * threads * place}];\n" for place in range(count))


def store(count: int, threads: int = 128) -> str:
    return "".join(f"st.global.b32 [%rd7+{4 * threads * place}], %c{place};\n" for place in range(count))


class Case(NamedTuple):
    """Codes of A, B and C, and what a kernel needs of them."""

    instruction: Instruction
    a: npt.NDArray[Any]
    b: npt.NDArray[Any]
    c: npt.NDArray[Any]
    image: npt.NDArray[np.uint8]
    fragments: npt.NDArray[np.uint32]
    operands: list[str]
    """A and B of each step."""
    count: int
    """Accumulators."""

    def words(self) -> npt.NDArray[np.uint32]:
        return accumulator_layout(self.instruction).pack(self.c[None])[0].copy()

    def found(self, words: npt.NDArray[np.uint32]) -> npt.NDArray[Any]:
        return accumulator_layout(self.instruction).unpack(words[None])[0]

    def wanted(self, instruction: Instruction | None = None, *, c: bool = True, steps: int = STEPS) -> npt.NDArray[Any]:
        row = self.instruction
        k = steps * row.k
        a, b = from_codes(self.a[:, :k], row.a_type), from_codes(self.b[:, :k], row.b_type)
        given = [from_codes(self.c, row.d_type)] if c else []
        return as_codes(mmabits.gemm(a, b.T, *given, instruction=instruction or row, arch="sm_90a"), row.d_type)

    def run(self, made: Kernel, words: npt.NDArray[np.uint32]) -> dict[Instruction, int]:
        held = [self.image, words, self.fragments]
        return made.launch((1,), [each.ctypes.data for each in held], [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in held])


def case(name: str, a_way: Way = Way(), b_way: Way = Way(), seed: str = "") -> Case:  # noqa: B008
    row = parse(name)
    rng = operands.generator("wgmma", name, *map(str, (a_way, b_way)), seed)
    bits = [spec.container_bits for spec in (row.a_type, row.b_type)]
    a, b = codes_of(rng, (64, STEPS * row.k), row.a_type), codes_of(rng, (row.n, STEPS * row.k), row.b_type)
    image = rng.integers(0, 256, ROOM, dtype=np.uint8)
    texts, fragments = ["" for _ in range(STEPS)], []
    sides = (descriptors(a_way, 64, row.k, bits[0], 0), descriptors(b_way, row.n, row.k, bits[1], SIDE))
    for step in range(STEPS):
        columns = slice(step * row.k, (step + 1) * row.k)
        codes = [np.ascontiguousarray(each[:, columns]) for each in (a, b)]
        fragments.append(fragment(codes[0], bits[0]))
        if a_way.in_registers:
            first = "{" + ", ".join(f"%a{step}_{place}" for place in range(4)) + "}"
        else:
            put(image, sides[0][step], codes[0], bits[0], a_way.mn_major)
            first = str(encode_wgmma(sides[0][step]))
        put(image, sides[1][step], codes[1], bits[1], b_way.mn_major)
        texts[step] = f"{first}, {encode_wgmma(sides[1][step])}"
    count = row.n // 2 * row.d_type.container_bits // 32
    return Case(row, a, b, codes_of(rng, (64, row.n), row.d_type), image, np.concatenate(fragments), texts, count)


def loads_of_a(way: Way) -> str:
    if not way.in_registers:
        return ""
    lines = [
        f".reg .b32 %a{step}_{place}; ld.global.b32 %a{step}_{place}, [%rd8+{512 * (4 * step + place)}];"
        for step, place in itertools.product(range(STEPS), range(4))
    ]
    return "\n".join(lines) + "\n"


def tail(row: Instruction, a_way: Way, b_way: Way, signs: tuple[int, int] = (1, 1)) -> str:
    """Immediates behind scale-d."""
    numbers = [] if row.a_type.is_integer else list(signs)
    if row.a_type.container_bits == 16:
        numbers += ([] if a_way.in_registers else [int(a_way.mn_major)]) + [int(b_way.mn_major)]
    return "".join(f", {each}" for each in numbers)


COMMIT = "wgmma.commit_group.sync.aligned;\n"


def wait(left: int = 0) -> str:
    return f"wgmma.wait_group.sync.aligned {left};\n"


def product(made: Case, step: int, a_way: Way = Way(), b_way: Way = Way(), adds: str = "1", **options: Any) -> str:  # noqa: B008
    end = tail(made.instruction, a_way, b_way, **options)
    return f"{made.instruction.ptx} {registers(made.count)}, {made.operands[step]}, {adds}{end};\n"


def instructions() -> list[object]:
    quick = {each.ptx for each in representatives("sm_90a")} | {"wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16"}
    rows = [each for each in recordable("sm_90a", only="wgmma") if not (each.negate_a or each.negate_b) and each.scale_d]
    return [pytest.param(each.ptx, marks=() if each.ptx in quick else pytest.mark.slow, id=each.ptx) for each in rows]


@pytest.mark.parametrize("name", instructions())
def test_a_chain_of_every_type(name: str) -> None:
    made = case(name)
    body = load(made.count) + "".join(product(made, step) for step in range(STEPS)) + COMMIT + wait() + store(made.count)
    words, compiled = made.words(), kernel(body)
    executed = made.run(compiled, words)
    assert np.array_equal(made.found(words), made.wanted())
    assert executed == {made.instruction: STEPS} and compiled.early_uses == frozenset()


F16 = "wgmma.mma_async.sync.aligned.m64n{0}k16.f32.f16.f16"
WAYS = [Way(swizzle, major) for swizzle in (NONE, SPAN_32, SPAN_64, SPAN_128) for major in (False, True)]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.swizzle.name}-{'mn' if way.mn_major else 'k'}")
@pytest.mark.parametrize(("side", "n"), [("a", 8), ("b", 128)])
def test_every_layout_in_shared_memory(way: Way, side: str, n: int) -> None:
    ways = (way, Way()) if side == "a" else (Way(), way)
    made = case(F16.format(n), *ways)
    body = load(made.count) + "".join(product(made, step, *ways) for step in range(STEPS)) + COMMIT + wait() + store(made.count)
    words = made.words()
    made.run(kernel(body), words)
    assert np.array_equal(made.found(words), made.wanted())


@pytest.mark.parametrize("name", [
    F16.format(64), "wgmma.mma_async.sync.aligned.m64n16k8.f32.tf32.tf32", "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e5m2",
    "wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.u8", "wgmma.mma_async.sync.aligned.m64n24k16.f16.f16.f16",
])  # fmt: skip
@pytest.mark.parametrize("b_way", [Way(SPAN_32), Way(NONE)], ids=["32B", "none"])
def test_a_from_registers(name: str, b_way: Way) -> None:
    a_way = Way(in_registers=True)
    made = case(name, a_way, b_way)
    body = loads_of_a(a_way) + load(made.count) + "".join(product(made, step, a_way, b_way) for step in range(STEPS))
    words = made.words()
    made.run(kernel(body + COMMIT + wait() + store(made.count)), words)
    assert np.array_equal(made.found(words), made.wanted())


@pytest.mark.parametrize("signs", [(-1, 1), (1, -1), (-1, -1)])
def test_operands_are_negated(signs: tuple[int, int]) -> None:
    made = case(F16.format(32))
    body = load(made.count) + "".join(product(made, step, signs=signs) for step in range(STEPS)) + COMMIT + wait() + store(made.count)
    words, name = made.words(), F16.format(32) + "".join(word for word, sign in zip((".negA", ".negB"), signs, strict=True) if sign < 0)
    made.run(kernel(body), words)
    assert np.array_equal(made.found(words), made.wanted(parse(name)))
    assert np.array_equal(made.wanted(parse(name)), made.wanted()) == (signs == (-1, -1))


@pytest.mark.parametrize("adds", ["0", "%p2"])
def test_the_first_product_may_leave_c_out(adds: str) -> None:
    """C is NaN there, and counts for nothing."""
    made = case(F16.format(16))
    made = made._replace(c=np.full_like(made.c, 0x7FC00000))
    body = (
        "setp.eq.s32 %p2, %r1, -1;\n"
        + load(made.count)
        + product(made, 0, adds=adds)
        + product(made, 1)
        + COMMIT
        + wait()
        + store(made.count)
    )
    words = made.words()
    made.run(kernel(body), words)
    assert np.array_equal(made.found(words), made.wanted(c=False))


def test_a_later_product_begins_the_sum_anew() -> None:
    """Before any wait: what the first put into the accumulators counts for nothing."""
    made = case(F16.format(16))
    body = load(made.count) + product(made, 0) + product(made, 1, adds="0") + COMMIT + wait() + store(made.count)
    words = made.words()
    made.run(kernel(body), words)
    a, b = (from_codes(codes[:, 16:], kind) for codes, kind in ((made.a, made.instruction.a_type), (made.b, made.instruction.b_type)))
    want = mmabits.gemm(a, b.T, instruction=made.instruction, arch="sm_90a")
    assert np.array_equal(made.found(words), as_codes(want, made.instruction.d_type))


def test_a_product_is_put_off_until_its_wait() -> None:
    """B changes between the products and the waits: the first is done at wait_group 1, the second, with what lies there then, at 0."""
    made = case(F16.format(8))
    change = f"""
	setp.lt.u32 %p3, %r1, 64; mov.b32 %r7, 0; shl.b32 %r9, %r1, 4; add.s32 %r9, %r9, %r8; add.s32 %r9, %r9, {SIDE};
	bar.sync 0;
	@%p3 st.shared.v4.b32 [%r9], {{%r7, %r7, %r7, %r7}};
	bar.sync 0;
"""
    zeros = "".join(f".reg .b32 %d{place}; mov.b32 %d{place}, 0;\n" for place in range(made.count))
    second = product(made, 1).replace("%c", "%d")
    also = "".join(f"st.global.b32 [%rd7+{512 * (made.count + place)}], %d{place};\n" for place in range(made.count))
    body = load(made.count) + zeros + product(made, 0) + COMMIT + second + COMMIT + wait(1) + change + wait(0) + store(made.count) + also
    half = 128 * made.count
    words = np.concatenate([made.words(), np.full(half, 7, np.uint32)])
    made.run(kernel(body), words)
    assert np.array_equal(made.found(words[:half]), made.wanted(steps=1)) and not words[half:].any()


def test_what_names_accumulators_before_the_wait_waits() -> None:
    """A mov between a product and its wait: ptxas serialises, so does the machine."""
    made = case(F16.format(8))
    body = load(made.count) + product(made, 0) + COMMIT + "mov.b32 %c0, %c0;\n" + product(made, 1) + COMMIT + wait() + store(made.count)
    compiled = kernel(body)
    words = made.words()
    made.run(compiled, words)
    assert len(compiled.early_uses) == 1 and np.array_equal(made.found(words), made.wanted())


def test_what_a_wait_leaves_under_way_is_waited_for_by_its_reader() -> None:
    """wgmma.wait_group 1 after one group: its accumulators are not there yet."""
    made = case(F16.format(8))
    body = load(made.count) + product(made, 0) + COMMIT + wait(1) + "mov.b32 %r20, %c0;\nmov.b32 %c0, %r20;\n"
    compiled = kernel(body + product(made, 1) + COMMIT + wait() + store(made.count))
    words = made.words()
    made.run(compiled, words)
    assert len(compiled.early_uses) == 1 and np.array_equal(made.found(words), made.wanted())


def test_two_warpgroups_and_a_loop() -> None:
    """Each its own accumulators; a group stays under way from one turn of the loop to the next."""
    made = case(F16.format(24))
    body = load(made.count, 256) + "mov.b32 %r20, 0;\n$L_loop:\n"
    body += product(made, 0) + COMMIT + wait(1) + "add.s32 %r20, %r20, 1; setp.lt.s32 %p4, %r20, 5;\n@%p4 bra $L_loop;\n"
    words = np.zeros((made.count, 2, 128), np.uint32)
    words[:, 0] = made.words().reshape(made.count, 128)
    compiled = kernel(body + wait(0) + store(made.count, 256), threads=256)
    executed = made.run(compiled, words)
    row = made.instruction
    a, b = (np.tile(from_codes(each[:, : row.k], spec), 5) for each, spec in ((made.a, row.a_type), (made.b, row.b_type)))
    for group, c in enumerate((from_codes(made.c, row.d_type), np.zeros((64, row.n), np.float32))):
        found = made.found(np.ascontiguousarray(words[:, group]).reshape(-1))
        assert np.array_equal(found, as_codes(mmabits.gemm(a, b.T, c, instruction=row, arch="sm_90a"), row.d_type))
    assert executed == {row: 10} and compiled.early_uses == frozenset()


# --------------------------------------------------------------------------------------------------------------------- errors


def test_products_that_differ_between_warps() -> None:
    made = case(F16.format(8))
    other = product(made, 0).replace(made.operands[0], f"{made.operands[0].split(',')[0]}, %rd20")
    body = load(made.count) + f"shr.u32 %r20, %r1, 5; cvt.u64.u32 %rd21, %r20; add.s64 %rd20, %rd21, {made.operands[0].split(',')[1]};\n"
    with pytest.raises(KernelError, match=r"a product that is another one, .* than that of the warps beside it, .* warp 1,.* at `wgmma"):
        made.run(kernel(body + other + COMMIT + wait()), made.words())


def test_a_warp_that_never_comes() -> None:
    made = case(F16.format(8))
    body = load(made.count) + "setp.gt.u32 %p5, %r1, 95;\n@%p5 bra $L_end;\n" + product(made, 0) + COMMIT + wait() + "$L_end:\n"
    with pytest.raises(KernelError, match=r"k: a deadlock in program 0: warp 0.*`wgmma.wait_group"):
        made.run(kernel(body), made.words())


@pytest.mark.parametrize("descriptor", [1 << 49 | 1 << 62, 0x3F00 | 8 << 32 | 1 << 62])
def test_descriptors_that_are_not_emulated_or_reach_outside(descriptor: int) -> None:
    made = case(F16.format(8))
    body = load(made.count) + product(made, 0).replace(made.operands[0].split(",")[1], f" {descriptor}") + COMMIT + wait()
    with pytest.raises(KernelError, match="a matrix that reaches outside shared memory, or a descriptor"):
        made.run(kernel(body), made.words())


def test_too_many_products_under_way() -> None:
    made = case(F16.format(8))
    with pytest.raises(KernelError, match="more than 128 products"):
        made.run(kernel(load(made.count) + product(made, 0) * 129 + COMMIT + wait()), made.words())


@pytest.mark.parametrize(("change", "why"), [
    (("m64n8k16.f32.f16.f16", "m64n8k16.f32.f16.bf16"), "is not emulated"), (("%c0, ", ""), "accumulators"),
    ((", 1, 1, 1,", ", 1, 2, 1,"), "these operands"),
    (("wgmma.mma_async", "@%p1 wgmma.mma_async"), "under a guard"),
])  # fmt: skip
def test_what_is_refused_before_the_launch(change: tuple[str, str], why: str) -> None:
    made = case(F16.format(8))
    with pytest.raises(UnknownOpcode, match=why):
        kernel(load(made.count) + product(made, 0).replace(*change) + COMMIT + wait())


def test_a_cta_without_whole_warpgroups() -> None:
    made = case(F16.format(8))
    with pytest.raises(UnknownOpcode, match="in a CTA of 2 warps"):
        kernel(load(made.count) + product(made, 0) + COMMIT + wait(), threads=64)


def test_a_warp_beside_whole_warpgroups_has_no_products() -> None:
    made = case(F16.format(8))
    last = "setp.gt.u32 %p5, %r1, 127;\n@%p5 bra $L_end;\n"
    products = product(made, 0) + COMMIT + wait() + "$L_end:\n"
    made.run(kernel(last + load(made.count) + products, threads=160), made.words())
    with pytest.raises(KernelError, match=r"k: a deadlock in program 0: warp 4.*`wgmma.wait_group"):
        made.run(kernel(last.replace("@%p5", "@!%p5") + f".reg .b32 %c<{made.count}>;\n" + products, threads=160), made.words())


def test_the_code_holds_no_addresses() -> None:
    """So it can be kept in a file."""
    given = case("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16")
    body = load(given.count) + "".join(
        f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {registers(given.count)}, {each}, 1, 1, 1, 0, 0;\n" for each in given.operands
    )
    body += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n" + store(given.count)
    first, second = kernel(body), kernel(body)
    assert first.warpgroups.tables and first._uniform.text == second._uniform.text
    assert first.warpgroups.addresses().tolist() != second.warpgroups.addresses().tolist()
