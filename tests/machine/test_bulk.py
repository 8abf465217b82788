"""TMA and bulk copies, against a reference in plain Python that goes byte by byte."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import operands
import pytest

from mmabits.emulator.machine.kernel import Kernel, KernelError
from mmabits.emulator.machine.tensormaps import ELEMENTS, tensor_map
from mmabits.emulator.machine.warp import UnknownOpcode
from mmabits.isa import OperandError
from mmabits.isa.opcodes import opcode_table

HEAD = ".version 8.8\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 room[];\n"
REGISTERS = "\t.reg .pred %p<20>;\n\t.reg .b32 %r<60>;\n\t.reg .b64 %rd<40>;\n"
START = """
	mov.u32 %r1, %tid.x;
	mov.b32 %r8, room;
	mov.b32 %r2, k_param_0;
	cvt.u64.u32 %rd2, %r2;
	cvta.param.u64 %rd3, %rd2;
	ld.param.b64 %rd1, [k_param_1];
	setp.eq.s32 %p1, %r1, 0;
	@%p1 mbarrier.init.shared::cta.b64 [%r8], 1;
	bar.warp.sync -1;
"""
"""%rd3: the map, %rd1: the array; the box begins at 1024 of shared memory."""
WAIT = """
$L_wait:
	mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r8], 0;
	@!%p2 bra $L_wait;
"""
ROOM = 40 * 1024
MOVE = """
	mov.b32 %r10, %r1;
$L_move:
	shl.b32 %r11, %r10, 2;
	add.s32 %r12, %r8, %r11;
	cvt.u64.u32 %rd10, %r11;
	add.s64 %rd11, %rd1, %rd10;
	{0}
	add.s32 %r10, %r10, 32;
	setp.lt.s32 %p3, %r10, {1};
	@%p3 bra $L_move;
"""
OUT = "ld.shared.b32 %r13, [%r12+1024]; st.global.b32 [%rd11], %r13;"
IN = "ld.global.b32 %r13, [%rd11]; st.shared.b32 [%r12+1024], %r13;"


def kernel(body: str) -> Kernel:
    head = ".visible .entry k(.param .align 64 .b8 k_param_0[128], .param .u64 k_param_1) .reqntid 32"
    text = f"{HEAD}{head}\n{{\n{REGISTERS}{START}{body}\nret;\n}}"
    return Kernel(text, arch="sm_90a", shared=ROOM)


def run(made: Kernel, tensor: bytes, array: npt.NDArray[Any], *more: npt.NDArray[Any]) -> None:
    ranges = [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in (array, *more)]
    made.launch((1,), [tensor, array.ctypes.data], ranges)


def aligned(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 1024, np.uint8)
    start = -raw.ctypes.data % 1024
    return raw[start : start + size].view(dtype).reshape(shape)


def swizzled(address: int, span: int, atom: int) -> int:
    """The manual's figures: units of 16 (or 32, 64) bytes within a span, exchanged by the number of the row of 128 bytes."""
    if span == 16:
        return address
    units = span // atom
    unit = address % span // atom ^ address // 128 % units
    return address // span * span + unit * atom + address % atom


def places(
    sizes: tuple[int, ...], box: tuple[int, ...], start: tuple[int, ...], bytes_of: int, span: int, atom: int, steps: Any = None
) -> Any:  # fmt: skip
    """For every element of a box: its index in the tensor, or None, and the byte of shared memory."""
    for number, at in enumerate(itertools.product(*map(range, [0] * len(box), box[::-1], steps[::-1] if steps else [1] * len(box)))):
        index = tuple(place + first for place, first in zip(at, start[::-1], strict=True))
        inside = all(0 <= place < size for place, size in zip(index, sizes[::-1], strict=True))
        yield (index if inside else None), swizzled(1024 + number * bytes_of, span, atom) - 1024


CASES = [
    # element, sizes, box, swizzle, atom, strides of elements: dimensions as TMA numbers them
    (6, (70,), (32,), 0, 0), (6, (96, 40), (64, 24), 3, 0), (6, (50, 13), (32, 8), 2, 0), (10, (40, 20), (16, 16), 1, 0),
    (7, (40, 20), (32, 8), 3, 0), (0, (200, 9), (128, 8), 3, 0), (0, (200, 9), (48, 5), 0, 0), (5, (12, 4), (8, 4), 2, 0),
    (2, (20, 6, 5), (8, 3, 4), 1, 0), (1, (32, 5, 4, 3), (16, 2, 2, 2), 1, 0), (6, (24, 5, 4, 3, 2), (8, 2, 3, 2, 2), 0, 0),
    (0, (256, 12), (128, 8), 3, 1), (0, (256, 12), (128, 8), 3, 3), (9, (30, 7), (16, 4), 3, 0),
    (6, (96, 40), (64, 24), 3, 0, (1, 3)), (2, (20, 9, 11), (8, 7, 5), 1, 0, (1, 2, 8)),
    (1, (24, 5, 4, 9, 2), (8, 2, 3, 8, 2), 0, 0, (1, 1, 2, 3, 1)),
]  # fmt: skip
DTYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def made_case(case: Any, seed: str) -> Any:
    element, sizes, box, swizzle, atom, *steps = case
    row = ELEMENTS[element]
    rng = operands.generator("bulk", seed, *map(str, sizes), element)
    dtype = DTYPES[row.wide]
    pitch = -(-sizes[0] * row.wide // 16) * 16 + 16
    whole = aligned((*sizes[:0:-1], pitch // row.wide), dtype)
    whole[...] = rng.integers(1, 1 << min(63, 8 * row.wide), whole.shape, dtype=np.uint64).astype(dtype)
    strides = [int(each) for each in whole.strides[-2::-1]]
    start = tuple(int(rng.integers(-each // 3, size)) for each, size in zip(box, sizes, strict=True))
    span = {0: 16, 1: 32, 2: 64, 3: 128}[swizzle]
    return whole, strides, start, row, dtype, span, {0: 16, 1: 32, 3: 64}[atom], steps[0] if steps else (1,) * len(sizes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)).replace(" ", ""))
@pytest.mark.parametrize("fill", [0, 1])
def test_boxes_to_shared_memory(case: Any, fill: int) -> None:
    element, sizes, box, swizzle, atom = case[:5]
    for trial in range(4):
        whole, strides, start, row, dtype, span, unit, steps = made_case(case, f"load{trial}")
        total = int(np.prod([-(-each // step) for each, step in zip(box, steps, strict=True)])) * row.held
        coordinates = ", ".join(f"%r{20 + place}" for place in range(len(box)))
        moves = "".join(f"mov.b32 %r{20 + place}, {at};" for place, at in enumerate(start))
        made = kernel(f"""
	{moves}
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], {total};
	add.s32 %r9, %r8, 1024;
	@%p1 cp.async.bulk.tensor.{len(box)}d.shared::cta.global.mbarrier::complete_tx::bytes [%r9], [%rd3, {{{coordinates}}}], [%r8];
	{WAIT}{MOVE.format(OUT, total // 4)}""")
        found = np.full(-(-total // 128) * 128, 255, np.uint8)
        record = tensor_map(
            whole.ctypes.data, sizes, strides, box, element=element, swizzle=swizzle, fill=fill, atom=atom, element_strides=steps
        )
        run(made, record, found, whole)
        wanted = np.full(total, 255, np.uint8)
        for index, place in places(sizes, box, start, row.wide, span, unit, steps):
            value = np.array(row.nan * fill if index is None else whole[index], dtype)
            wanted[place : place + row.wide] = value.reshape(1).view(np.uint8)
        assert np.array_equal(found[:total], wanted)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)).replace(" ", ""))
def test_boxes_to_global_memory(case: Any) -> None:
    element, sizes, box, swizzle, atom = case[:5]
    for trial in range(4):
        whole, strides, start, row, dtype, span, unit, steps = made_case(case, f"store{trial}")
        total = int(np.prod([-(-each // step) for each, step in zip(box, steps, strict=True)])) * row.held
        coordinates = ", ".join(f"%r{20 + place}" for place in range(len(box)))
        moves = "".join(f"mov.b32 %r{20 + place}, {at};" for place, at in enumerate(start))
        made = kernel(f"""
	{moves}{MOVE.format(IN, total // 4)}
	fence.proxy.async.shared::cta;
	add.s32 %r9, %r8, 1024;
	@%p1 cp.async.bulk.tensor.{len(box)}d.global.shared::cta.bulk_group [%rd3, {{{coordinates}}}], [%r9];
	cp.async.bulk.commit_group;
	cp.async.bulk.wait_group 0;""")
        given = operands.generator("bulk", "given").integers(0, 256, -(-total // 128) * 128, dtype=np.uint8)
        wanted = whole.copy()
        for index, place in places(sizes, box, start, row.wide, span, unit, steps):
            if index is not None:
                wanted[index] = given[place : place + row.wide].view(dtype)[0]
        record = tensor_map(whole.ctypes.data, sizes, strides, box, element=element, swizzle=swizzle, atom=atom, element_strides=steps)
        run(made, record, given, whole)
        assert np.array_equal(whole, wanted)


@pytest.mark.parametrize(("element", "wide"), [(14, 8), (15, 12), (13, 8)])
def test_narrow_elements_are_padded_in_shared_memory(element: int, wide: int) -> None:
    """16 elements of 4 or 6 bits: 8 or 12 bytes of global memory, which the barrier counts, 16 of shared memory; b4x16 stays packed."""
    held = 8 if element == 13 else 16
    tensor = aligned((6, 24 * wide), np.uint8)
    tensor[...] = operands.generator("narrow", element).integers(0, 256, tensor.shape, dtype=np.uint8)
    total = 4 * 8 * held
    made = kernel(f"""
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], {4 * 8 * wide};
	add.s32 %r9, %r8, 1024;
	mov.b32 %r20, 256; mov.b32 %r21, 3;
	@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r9], [%rd3, {{%r20, %r21}}], [%r8];
	{WAIT}{MOVE.format(OUT, total // 4)}""")
    found = np.full(total, 255, np.uint8)
    run(made, tensor_map(tensor.ctypes.data, (336, 6), (24 * wide,), (128, 4), element=element), found, tensor)
    wanted = np.zeros((4, 8, held), np.uint8)
    for line, unit in itertools.product(range(4), range(8)):
        if line + 3 < 6 and unit + 16 < 21:
            wanted[line, unit, :wide] = tensor[line + 3, (unit + 16) * wide :][:wide]
    assert np.array_equal(found, wanted.reshape(-1))


def test_copies_are_put_off_until_the_wait_that_wants_them() -> None:
    """What lies at the source when the barrier is waited for is copied; the other barrier's copy is later still."""
    made = kernel(f"""
	add.s32 %r9, %r8, 1024;
	add.s32 %r7, %r8, 8;
	@%p1 mbarrier.init.shared::cta.b64 [%r7], 1;
	mov.b32 %r20, 0;
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], 64;
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r7], 64;
	@%p1 cp.async.bulk.tensor.1d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r9+128], [%rd3, {{%r20}}], [%r7];
	@%p1 cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r9], [%rd3, {{%r20}}], [%r8], %rd9;
	mov.b32 %r21, 5;
	st.global.b32 [%rd1], %r21;
	ld.shared.b32 %r22, [%r9];
	{WAIT}
	ld.shared.b32 %r23, [%r9];
	ld.shared.b32 %r24, [%r9+128];
	mov.b32 %r21, 6;
	st.global.b32 [%rd1], %r21;
$L_again:
	mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r7], 0;
	@!%p2 bra $L_again;
	ld.shared.b32 %r25, [%r9+128];
	st.global.v4.b32 [%rd1+16], {{%r22, %r23, %r24, %r25}};""")
    array = aligned((32,), np.int32)
    array[:] = 9
    run(made, tensor_map(array.ctypes.data, (32,), (), (16,), element=3), array)
    assert array[4:8].tolist() == [0, 5, 0, 6]


def test_groups_are_waited_for_in_order() -> None:
    """Two groups of copies to global memory; one may be left."""
    made = kernel("""
	add.s32 %r9, %r8, 1024;
	mov.b32 %r21, 5;
	@%p1 st.shared.b32 [%r9], %r21;
	@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r9], 16;
	cp.async.bulk.commit_group;
	add.s64 %rd4, %rd1, 16;
	@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd4], [%r9], 16;
	cp.async.bulk.commit_group;
	cp.async.bulk.wait_group.read 1;
	mov.b32 %r21, 6;
	@%p1 st.shared.b32 [%r9], %r21;
	cp.async.bulk.wait_group 0;
	mov.b32 %r21, 7;
	@%p1 st.shared.b32 [%r9], %r21;
	add.s64 %rd4, %rd1, 32;
	@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd4], [%r9], 16;""")
    array = aligned((16,), np.int32)
    run(made, bytes(128), array)
    assert array[[0, 4, 8]].tolist() == [5, 6, 7]  # the last one when the program ends


def test_bytes_to_shared_memory() -> None:
    made = kernel(f"""
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], 96;
	add.s32 %r9, %r8, 1024;
	@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r9+32], [%rd1+16], 96, [%r8];
	{WAIT}
	add.s64 %rd4, %rd1, 256;
	@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd4], [%r9], 128;
	cp.async.bulk.commit_group;
	cp.async.bulk.wait_group 0;""")
    array = aligned((96,), np.int32)
    array[:] = np.arange(96)
    run(made, bytes(128), array)
    assert array[64:96].tolist() == [0] * 8 + list(range(4, 28))


@pytest.mark.parametrize(
    ("element", "operation"), [(3, "add"), (3, "min"), (2, "max"), (2, "and"), (4, "or"), (5, "min"), (2, "xor"), (7, "add")]
)
def test_boxes_are_reduced_into_global_memory(element: int, operation: str) -> None:
    dtype = {2: np.uint32, 3: np.int32, 4: np.uint64, 5: np.int64, 7: np.float32}[element]
    rng = operands.generator("reduce", element, operation)
    count = 128 // np.dtype(dtype).itemsize
    both = rng.integers(-1000, 1000, (2, count)).astype(dtype)
    given, tensor = aligned((count,), dtype), aligned((count,), dtype)
    given[:], tensor[:] = both
    made = kernel(f"""{MOVE.format(IN, 32)}
	add.s32 %r9, %r8, 1024;
	mov.b32 %r20, 4;
	@%p1 cp.reduce.async.bulk.tensor.1d.global.shared::cta.{operation}.tile.bulk_group [%rd3, {{%r20}}], [%r9];""")
    run(made, tensor_map(tensor.ctypes.data, (count,), (), (count,), element=element), given, tensor)
    function = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[
        operation
    ]
    wanted = both[1].copy()
    wanted[4:] = function(both[1][4:], both[0][:-4])
    assert np.array_equal(tensor, wanted)


HALVES = {6: np.float16, 10: ml_dtypes.bfloat16}


def halves(element: int, operation: str) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Codes, subnormal numbers, zeros, infinities and NaN among them, and what their sum, minimum or maximum is."""
    rng = operands.generator("halves", element, operation)
    first, second = (rng.integers(0, 1 << 16, 4096).astype(np.uint16) for _ in range(2))
    top = int(np.array(np.inf, HALVES[element]).view(np.uint16))
    edges = np.array([0, 0x8000, 1, 0x8001, top, top | 0x8000, top + 1, 0x7FFF], np.uint16)
    first[:64], second[:64] = np.repeat(edges, 8), np.tile(edges, 8)
    word = "f16" if element == 6 else "bf16"
    reference = opcode_table()[f"{'add.rn' if operation == 'add' else operation}.{word}"].reference
    assert reference is not None
    codes = np.array([reference(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)], np.uint16)
    return first, second, codes


@pytest.mark.parametrize("element", HALVES)
@pytest.mark.parametrize("operation", ["add", "min", "max"])
def test_halves_are_reduced(element: int, operation: str) -> None:
    """Boxes of 64, and runs of bytes, one behind the other."""
    first, second, wanted = halves(element, operation)
    given, tensor = aligned((4096,), np.uint16), aligned((8192,), np.uint16)
    given[:], tensor[:4096], tensor[4096:] = first, second, second
    word = "f16" if element == 6 else "bf16"
    body = f"""{MOVE.format(IN, 2048)}
	mov.b32 %r20, 0;
	add.s32 %r9, %r8, 1024;
$L_boxes:
	@%p1 cp.reduce.async.bulk.tensor.1d.global.shared::cta.{operation}.tile.bulk_group [%rd3, {{%r20}}], [%r9];
	add.s32 %r20, %r20, 64;
	add.s32 %r9, %r9, 128;
	setp.lt.s32 %p3, %r20, 4096;
	@%p3 bra $L_boxes;
	add.s32 %r9, %r8, 1024;
	ld.param.b64 %rd5, [k_param_0+8];
	add.s64 %rd5, %rd5, 8192;
	@%p1 cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}.noftz.{word} [%rd5], [%r9], 8192;"""
    run(kernel(body), tensor_map(tensor.ctypes.data, (4096,), (), (64,), element=element), given, tensor)
    assert np.array_equal(tensor[:4096], wanted)
    assert np.array_equal(tensor[4096:], wanted)


@pytest.mark.parametrize(("word", "operation", "dtype"), [
    ("u32", "add", np.uint32), ("s32", "min", np.int32), ("u64", "max", np.uint64), ("b64", "xor", np.uint64), ("f32", "add", np.float32),
    ("f64", "add", np.float64),
])  # fmt: skip
def test_runs_of_bytes_are_reduced(word: str, operation: str, dtype: Any) -> None:
    count = 128 // np.dtype(dtype).itemsize
    both = operands.generator("runs", word).integers(-1000, 1000, (2, count)).astype(dtype)
    given, tensor = aligned((count,), dtype), aligned((count,), dtype)
    given[:], tensor[:] = both
    body = f"""{MOVE.format(IN, 32)}
	add.s32 %r9, %r8, 1024;
	ld.param.b64 %rd5, [k_param_0];
	@%p1 cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}.{word} [%rd5], [%r9], 128;"""
    run(kernel(body), tensor.ctypes.data.to_bytes(128, "little"), given, tensor)
    function = {"add": np.add, "min": np.minimum, "max": np.maximum, "xor": np.bitwise_xor}[operation]
    assert np.array_equal(tensor, function(*both))


@pytest.mark.parametrize("opcode", ["min.f32", "and.f16", "inc.u32", "add.b16"])
def test_reductions_that_there_are_not(opcode: str) -> None:
    with pytest.raises(UnknownOpcode, match=r"cp\.reduce\.async\.bulk"):
        kernel(f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{opcode} [%rd1], [%r8], 128;")


@pytest.mark.parametrize(("suffix", "operand", "words"), [
    ("b32", "%r20", 1), ("v2.b32", "{%r20, %r21}", 2), ("v4.b32", "{%r20, %r21, %r22, %r23}", 4),
    ("b64", "%rd20", 2), ("v2.f64", "{%rd20, %rd21}", 4),
])  # fmt: skip
def test_a_store_that_an_mbarrier_counts(suffix: str, operand: str, words: int) -> None:
    """It is done when a wait wants it, and not before."""
    body = f"""
	mad.lo.u32 %r9, %r1, 16, %r8;
	add.u32 %r9, %r9, 1024;
	mad.lo.u32 %r20, %r1, 4, 1000; add.u32 %r21, %r20, 1; add.u32 %r22, %r20, 2; add.u32 %r23, %r20, 3;
	mov.b64 %rd20, {{%r20, %r21}}; mov.b64 %rd21, {{%r22, %r23}};
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], {32 * 4 * words};
	bar.warp.sync -1;
	st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.{suffix} [%r9], {operand}, [%r8];
	ld.shared.b32 %r30, [%r9];
	{WAIT}
	ld.shared.v4.b32 {{%r31, %r32, %r33, %r34}}, [%r9];
	mad.wide.u32 %rd5, %r1, 20, %rd1;
	st.global.b32 [%rd5], %r30;
	st.global.b32 [%rd5+4], %r31; st.global.b32 [%rd5+8], %r32; st.global.b32 [%rd5+12], %r33; st.global.b32 [%rd5+16], %r34;"""
    found = aligned((32, 5), np.uint32)
    run(kernel(body), bytes(128), found)
    wanted = np.zeros((32, 5), np.uint32)
    wanted[:, 1 : 1 + words] = 1000 + 4 * np.arange(32)[:, None] + np.arange(words)
    assert np.array_equal(found, wanted)


def test_a_map_that_the_kernel_makes() -> None:
    """As Triton does it: zeros and fields in shared memory, a copy to global memory, a fence, a load."""
    fields = [
        ("global_address.shared::cta.b1024.b64", "%rd20"), ("rank.shared::cta.b1024.b32", "0x1"),
        ("box_dim.shared::cta.b1024.b32", "0x0, %r20"),
        ("box_dim.shared::cta.b1024.b32", "0x1, %r21"), ("global_dim.shared::cta.b1024.b32", "0x0, %r22"),
        ("global_dim.shared::cta.b1024.b32", "0x1, %r23"), ("global_stride.shared::cta.b1024.b64", "0x0, %rd21"),
        ("element_stride.shared::cta.b1024.b32", "0x0, %r24"), ("element_stride.shared::cta.b1024.b32", "0x1, %r24"),
        ("elemtype.shared::cta.b1024.b32", "0x6"), ("swizzle_mode.shared::cta.b1024.b32", "0x3"),
        ("fill_mode.shared::cta.b1024.b32", "0x0"), ("swizzle_atomicity.shared::cta.b1024.b32", "0x0"),
    ]  # fmt: skip
    replaced = "\n".join(f"@%p1 tensormap.replace.tile.{name} [ %rd22 + 0 ], {value};" for name, value in fields)
    made = kernel(f"""
	add.s64 %rd20, %rd1, 4096;
	mov.b64 %rd21, 256;
	mov.b32 %r20, 64; mov.b32 %r21, 8; mov.b32 %r22, 100; mov.b32 %r23, 6; mov.b32 %r24, 1;
	add.s32 %r25, %r8, 256;
	cvt.u64.u32 %rd22, %r25;
	{replaced}
	bar.warp.sync -1;
	tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [ %rd1 + 0 ], [ %rd22 + 0 ], 0x80;
	fence.proxy.tensormap::generic.acquire.gpu [ %rd1 + 0 ], 0x80;
	add.s32 %r9, %r8, 1024;
	mov.b32 %r20, 60;
	mov.b32 %r21, 1;
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], 1024;
	@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r9], [%rd1, {{%r20, %r21}}], [%r8];
	{WAIT}{MOVE.format(OUT, 256)}""")
    whole = aligned((4096 + 6 * 256,), np.uint8)
    tensor = whole[4096:].view(np.uint16).reshape(6, 128)
    tensor[...] = np.arange(tensor.size).reshape(tensor.shape)
    before = tensor.copy()
    run(made, bytes(128), whole)
    wanted = np.zeros(512, np.uint16)
    for index, place in places((100, 6), (64, 8), (60, 1), 2, 128, 16):
        wanted[place // 2] = 0 if index is None else before[index]
    assert np.array_equal(whole[:1024].view(np.uint16), wanted)


@pytest.mark.parametrize(("body", "why"), [
    ("[%r9], [%rd3, {{%r20}}]", "no tensor map at"), ("[%r9+16], [%rd4, {{%r20}}]", "a misaligned access at 0x1000000000004"),
])  # fmt: skip
def test_what_cannot_be_copied(body: str, why: str) -> None:
    array = aligned((512,), np.int32)
    made = kernel(f"""
	add.s32 %r9, %r8, 1024;
	mov.b32 %r20, 0;
	mov.b64 %rd4, %rd1;
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], 64;
	@%p1 cp.async.bulk.tensor.1d.shared::cta.global.mbarrier::complete_tx::bytes {body.replace("{{", "{").replace("}}", "}")}, [%r8];
	{WAIT}""")
    array[:32] = np.frombuffer(tensor_map(array.ctypes.data, (512,), (), (16,), element=3), np.int32)
    with pytest.raises(KernelError, match=f"k: {why}"):
        run(made, bytes(128), array)


def test_a_tensor_that_reaches_beyond_its_storage() -> None:
    """The map says more than there is: the copy is refused where it is carried out, and names who asked for it."""
    array = aligned((64,), np.int32)
    made = kernel(f"""
	add.s32 %r9, %r8, 1024;
	mov.b32 %r20, 60;
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], 64;
	@%p1 cp.async.bulk.tensor.1d.shared::cta.global.mbarrier::complete_tx::bytes [%r9], [%rd3, {{%r20}}], [%r8];
	{WAIT}""")
    with pytest.raises(KernelError, match=r"outside the memory.*lane 0, at `@%p1 cp.async.bulk.tensor"):
        run(made, tensor_map(array.ctypes.data, (128,), (), (16,), element=3), array)


@pytest.mark.parametrize(("options", "why"), [
    ({"element": 11}, "element type 11"),
    ({"element_strides": (2,)}, r"strides of elements \(2,\): along the axis of neighbours 1"),
    ({"sizes": (64, 2), "strides": (128,), "box": (64, 2), "element_strides": (1, 9)}, r"strides of elements \(1, 9\)"),
    ({"swizzle": 1}, "at most 32"), ({"box": (300,)}, "a box of"), ({"address": 8}, "multiples of 16"),
])  # fmt: skip
def test_maps_that_cannot_be(options: dict[str, Any], why: str) -> None:
    given = {"address": 0, "sizes": (64,), "strides": (), "box": (64,), "element": 6, **options}
    with pytest.raises(OperandError, match=why):
        tensor_map(**given)
