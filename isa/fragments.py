"""Where the elements of a tile lie when a kernel picks them up: one table for packing, unpacking and the tests.

A kernel of kernels.py loads and stores whole 32-bit words at plain addresses: register after register of a warp, the image of
shared memory, or the columns of tensor memory. All that is particular to an instruction (fragments, core matrices, containers of
sub-byte types, provider lanes of scales) is the bit at which an element starts in those words, and that is here.

Sources: PTX ISA, the matrix fragments of mma.sync and wgmma, matrix descriptors without swizzling, and the tcgen05 sections on
data path layout, packing formats and block scaling; CUTLASS for what the PTX text has in figures only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.isa.errors import OperandError
from mmabits.isa.formats import FormatSpec
from mmabits.isa.instructions import Family, Instruction

Codes = npt.NDArray[Any]
Words = npt.NDArray[np.uint32]
Index = npt.NDArray[np.int64]

LANES: Final = 32
"""Threads of a warp."""
TMEM_LANES: Final = 128
"""Rows of tensor memory; also the threads of a warpgroup."""
CORE_ROWS: Final = 8
"""Rows of a core matrix, 16 bytes each."""
CHUNK_BITS: Final = 128
"""A row of a core matrix."""
LEADING_BYTES: Final = 128
"""From one core matrix to its neighbour along K."""
STRIDE_BYTES: Final = 256
"""From one core matrix to the next eight rows: every instruction's K takes two chunks of 16 bytes."""
_GROUP: Final = 16
"""Elements of tcgen05's f8f6f4 kinds that take 16 bytes whatever their width."""


class ScaleSelectors(NamedTuple):
    """Which byte of which lanes' registers holds the block scales of mma.sync (byte-id and thread-id of PTX)."""

    byte_a: int = 0
    thread_a: int = 0
    byte_b: int = 0
    thread_b: int = 0


FIRST: Final = ScaleSelectors()
"""Byte 0 of the first lanes."""


class _Move(NamedTuple):
    """Elements that start in different 64-bit words; `spill` of them reach into the next word."""

    element: Index
    word: Index
    shift: npt.NDArray[np.uint64]
    spill: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where each element of a matrix starts in the words of one tile."""

    shape: tuple[int, int]
    """Rows and columns of the matrix."""
    spec: FormatSpec
    bits: int
    """Size of the words, a multiple of 64."""
    starts: Index
    """(copies, rows * columns): the first bit of each element, in each copy of it."""

    @property
    def words(self) -> int:
        """32-bit words of one tile."""
        return self.bits // 32

    @cached_property
    def _moves(self) -> tuple[_Move, ...]:
        """The elements in groups within which no two share a 64-bit word."""
        element = np.tile(np.arange(self.starts.shape[1]), self.starts.shape[0])
        start = self.starts.reshape(-1)
        order = np.argsort(start, kind="stable")
        element, start = element[order], start[order]
        word = start // 64
        first = np.r_[True, word[1:] != word[:-1]]
        rank = np.arange(len(word)) - np.flatnonzero(first)[np.cumsum(first) - 1]
        groups = [rank == number for number in range(int(rank.max()) + 1)]
        return tuple(
            _Move(element[group], word[group], (start[group] % 64).astype(np.uint64), start[group] % 64 + self.spec.code_bits > 64)
            for group in groups
        )

    def pack(self, codes: Codes) -> Words:
        """Codes as a kernel's words.

        Args:
            codes: (tiles, rows, columns) unsigned integers below the format's number of codes.

        Returns:
            (tiles, words) 32-bit words; bits that no element takes are 0.

        Raises:
            OperandError: another shape.
        """
        if codes.shape[1:] != self.shape:
            raise OperandError(f"tiles of {self.spec.name} have shape {codes.shape[1:]} here; the layout is for {self.shape}")
        flat = codes.reshape(len(codes), -1).astype(np.uint64)
        packed = np.zeros((len(codes), self.bits // 64), dtype=np.uint64)
        for move in self._moves:
            values = flat[:, move.element]
            packed[:, move.word] |= values << move.shift
            if move.spill.any():
                over = move.spill
                packed[:, move.word[over] + 1] |= values[:, over] >> (np.uint64(64) - move.shift[over])
        return packed.view(np.uint32)

    def unpack(self, words: Words) -> Codes:
        """The codes in a kernel's words; of several copies the last counts.

        Args:
            words: (tiles, words) 32-bit words.

        Returns:
            (tiles, rows, columns) unsigned integers as wide as the format's container.
        """
        packed = np.ascontiguousarray(words).view(np.uint64)
        mask = np.uint64((1 << self.spec.code_bits) - 1)
        flat = np.zeros((len(words), self.starts.shape[1]), dtype=np.uint64)
        for move in self._moves:
            values = packed[:, move.word] >> move.shift
            over = move.spill
            if over.any():
                values[:, over] |= packed[:, move.word[over] + 1] << (np.uint64(64) - move.shift[over])
            flat[:, move.element] = values & mask
        return flat.reshape(len(words), *self.shape).astype(f"uint{self.spec.container_bits}")


def _grid(rows: int, columns: int) -> tuple[Index, Index]:
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return row.reshape(-1), column.reshape(-1)


# Widths --------------------------------------------------------------------------------------------------------------


def slot_bits(instruction: Instruction, spec: FormatSpec) -> int:
    """Bits an operand's element takes in a register of mma.sync: kind::f8f6f4 and kind::mxf8f6f4 give fp6 and fp4 a byte each."""
    return 8 if instruction.kind in ("f8f6f4", "mxf8f6f4") else spec.code_bits


def slot_shift(instruction: Instruction, spec: FormatSpec) -> int:
    """First bit of the code in its slot: e2m1 sits in bits 2 to 5 of its byte, e3m2 and e2m3 in bits 0 to 5."""
    return 2 if spec.code_bits == 4 and slot_bits(instruction, spec) == 8 else 0


def register_elements(instruction: Instruction, spec: FormatSpec) -> int:
    """Elements of an operand in one register of mma.sync (64 bits wide for f64)."""
    return max(1, LANES // slot_bits(instruction, spec))


def register_bits(spec: FormatSpec) -> int:
    """Width of a register that holds this type."""
    return 64 if spec.container_bits == 64 else 32


def operand_registers(instruction: Instruction, *, side: str) -> int:
    """Registers of A or B in each lane, for one mma.sync."""
    rows, spec = (instruction.m, instruction.a_type) if side == "a" else (instruction.n, instruction.b_type)
    return rows * instruction.k // (LANES * register_elements(instruction, spec))


def accumulator_registers(instruction: Instruction) -> int:
    """Registers of C and D in each lane, for mma.sync and wgmma."""
    per_register = 2 if instruction.d_type.container_bits == 16 else 1
    return instruction.m * instruction.n // (_threads(instruction) * per_register)


def _threads(instruction: Instruction) -> int:
    return LANES if instruction.family is Family.MMA_SYNC else TMEM_LANES


def ctas(instruction: Instruction) -> int:
    """Thread blocks that carry out one instruction together."""
    return instruction.cta_group or 1


# Operands ------------------------------------------------------------------------------------------------------------


def _fragment_start(instruction: Instruction, spec: FormatSpec, registers: int, row: Index, k: Index) -> Index:
    """mma.sync: row g and g + 8 alternate by register, a lane takes neighbours along K, four lanes make a quarter-warp's row."""
    per_register = register_elements(instruction, spec)
    group, within = np.divmod(k % instruction.k, 4 * per_register)
    thread, element = np.divmod(within, per_register)
    halves = registers * 4 * per_register // instruction.k
    register = group * halves + row // CORE_ROWS
    lane = 4 * (row % CORE_ROWS) + thread
    word = (k // instruction.k * registers + register) * LANES + lane
    start: Index = word * register_bits(spec) + element * slot_bits(instruction, spec) + slot_shift(instruction, spec)
    return start


def _fragment(instruction: Instruction, side: str, chain: int, row: Index, k: Index) -> tuple[Index, int]:
    spec = instruction.a_type if side == "a" else instruction.b_type
    registers = operand_registers(instruction, side=side)
    bits = chain * registers * LANES * register_bits(spec)
    return _fragment_start(instruction, spec, registers, row, k), bits


def chunk_elements(instruction: Instruction, spec: FormatSpec) -> int:
    """Elements in the 16 bytes of a core matrix's row: 16 in tcgen05's f8f6f4 kinds, whose narrow types leave the rest unused."""
    return _GROUP if instruction.kind in ("f8f6f4", "mxf8f6f4") else CHUNK_BITS // spec.code_bits


def _core_matrices(instruction: Instruction, side: str, chain: int, row: Index, k: Index) -> tuple[Index, int]:
    """Shared memory for wgmma and tcgen05.mma: K-major, no swizzling; core matrices of 8 rows x 16 bytes, K before rows."""
    spec, all_rows = (instruction.a_type, instruction.m) if side == "a" else (instruction.b_type, instruction.n)
    rows = all_rows // ctas(instruction)
    cta, own_row = np.divmod(row, rows)
    chunk, element = np.divmod(k % instruction.k, chunk_elements(instruction, spec))
    step_bytes = rows // CORE_ROWS * STRIDE_BYTES
    start = (
        (cta * chain + k // instruction.k) * step_bytes
        + own_row // CORE_ROWS * STRIDE_BYTES + chunk * LEADING_BYTES + own_row % CORE_ROWS * (CHUNK_BITS // 8)
    )  # fmt: skip
    return start * 8 + element * spec.code_bits, ctas(instruction) * chain * step_bytes * 8


_OPERANDS: Final[dict[Family, Callable[[Instruction, str, int, Index, Index], tuple[Index, int]]]] = {
    Family.MMA_SYNC: _fragment,
    Family.WGMMA: _core_matrices,
    Family.TCGEN05: _core_matrices,
}


def operand_layout(instruction: Instruction, *, side: str, chain: int = 1) -> Layout:
    """The layout of A (M x K) or B (K x N) for `chain` instructions along K.

    Args:
        instruction: the instruction.
        side: `"a"` or `"b"`.
        chain: instructions one after another; K of the matrix is `chain` times the instruction's.
    """
    k_total = chain * instruction.k
    if side == "a":
        shape, spec = (instruction.m, k_total), instruction.a_type
        row, k = _grid(*shape)
    else:
        shape, spec = (k_total, instruction.n), instruction.b_type
        k, row = _grid(*shape)
    starts, bits = _OPERANDS[instruction.family](instruction, side, chain, row, k)
    return Layout(shape=shape, spec=spec, bits=bits, starts=starts[None])


# Accumulators --------------------------------------------------------------------------------------------------------


def _accumulator_fragment(instruction: Instruction, row: Index, column: Index) -> tuple[Index, int]:
    """mma.sync and wgmma: a lane holds two neighbouring columns of rows g and g + 8, and so on every 8 columns and 16 rows."""
    spec = instruction.d_type
    warp, own_row = np.divmod(row, 2 * CORE_ROWS)
    tile, own_column = np.divmod(column, CORE_ROWS)
    thread = warp * LANES + 4 * (own_row % CORE_ROWS) + own_column // 2
    halves = 2 if instruction.m > CORE_ROWS else 1
    pair = tile * halves + own_row // CORE_ROWS
    registers, threads = accumulator_registers(instruction), _threads(instruction)
    bits = registers * threads * register_bits(spec)
    if spec.container_bits == 16:
        return (pair * threads + thread) * 32 + own_column % 2 * 16, bits
    return ((2 * pair + own_column % 2) * threads + thread) * register_bits(spec), bits


def accumulator_columns(instruction: Instruction) -> int:
    """Columns of tensor memory that D takes in each thread block."""
    return instruction.n // 2 if _folded(instruction) else instruction.n


def _folded(instruction: Instruction) -> bool:
    """M = 128 over two thread blocks: 64 rows each, and the right half of the columns in the upper 64 lanes."""
    return instruction.cta_group == 2 and instruction.m == 128


def _accumulator_tmem(instruction: Instruction, row: Index, column: Index) -> tuple[Index, int]:
    """Tensor memory: one element a 32-bit cell (an f16 in its low half); which lane a row has depends on M and cta_group."""
    cta, own_row = np.divmod(row, instruction.m // ctas(instruction))
    columns = accumulator_columns(instruction)
    if _folded(instruction):
        lane, cell = own_row + TMEM_LANES // 2 * (column // columns), column % columns
    elif instruction.m == 64:
        lane, cell = LANES * (own_row // 16) + own_row % 16, column
    else:
        lane, cell = own_row, column
    return ((cta * columns + cell) * TMEM_LANES + lane) * 32, ctas(instruction) * columns * TMEM_LANES * 32


_ACCUMULATORS: Final[dict[Family, Callable[[Instruction, Index, Index], tuple[Index, int]]]] = {
    Family.MMA_SYNC: _accumulator_fragment,
    Family.WGMMA: _accumulator_fragment,
    Family.TCGEN05: _accumulator_tmem,
}


def accumulator_layout(instruction: Instruction) -> Layout:
    """The layout of C and D, M x N."""
    shape = (instruction.m, instruction.n)
    starts, bits = _ACCUMULATORS[instruction.family](instruction, *_grid(*shape))
    return Layout(shape=shape, spec=instruction.d_type, bits=bits, starts=starts[None])


# Block scales --------------------------------------------------------------------------------------------------------


def _register_scales(
    instruction: Instruction, side: str, chain: int, row: Index, block: Index, selectors: ScaleSelectors
) -> tuple[Index, int]:
    """mma.sync: one register a lane; a row of A is with lane 4 (m mod 8) + 2 thread-id + m / 8, a column of B with 4 n + thread-id."""
    step, own_block = np.divmod(block, scales_per_row(instruction))
    if side == "a":
        lane, byte = 4 * (row % CORE_ROWS) + 2 * selectors.thread_a + row // CORE_ROWS, selectors.byte_a + own_block
    else:
        lane, byte = 4 * row + selectors.thread_b, selectors.byte_b + own_block
    return ((step * LANES + lane) * 32 + byte * 8)[None], chain * LANES * 32


def scale_columns(instruction: Instruction, *, side: str) -> int:
    """Columns of tensor memory that the scales of one instruction take in each thread block."""
    if side == "a":
        return -(-(instruction.m // ctas(instruction)) // LANES)
    return -(-(instruction.n // 2 if _folded(instruction) else instruction.n) // LANES)


def _tmem_scales(instruction: Instruction, side: str, chain: int, row: Index, block: Index, selectors: ScaleSelectors) -> tuple[Index, int]:
    """Tensor memory: rows 32 j to 32 j + 31 in the lanes of column j, a byte for each block along K, the same in all four quarters.

    Both thread blocks of a pair hold the scales of their own rows of A and of all columns of B. Where D is folded, so are the
    scales of B: those of the right half lie in the upper two quarters.
    """
    columns = scale_columns(instruction, side=side)
    step, own_block = np.divmod(block, scales_per_row(instruction))
    quarters = np.arange(4)[:, None]
    if side == "a":
        cta, own_row = np.divmod(row, instruction.m // ctas(instruction))
        copies = (cta[None], quarters, own_row[None])
    elif _folded(instruction):
        half, own_row = np.divmod(row, instruction.n // 2)
        pairs = np.array([(c, q) for c in range(2) for q in range(2)])
        copies = (pairs[:, :1], 2 * half[None] + pairs[:, 1:], own_row[None])
    else:
        every = np.array([(c, q) for c in range(ctas(instruction)) for q in range(4)])
        copies = (every[:, :1], every[:, 1:], row[None])
    cta, quarter, own = copies
    lane, column = quarter * LANES + own % LANES, own // LANES
    word = ((cta * chain + step) * columns + column) * TMEM_LANES + lane
    return word * 32 + own_block * 8, ctas(instruction) * chain * columns * TMEM_LANES * 32


def scales_per_row(instruction: Instruction) -> int:
    """Block scales of one row of A in one instruction."""
    if instruction.block is None:
        raise OperandError(f"{instruction} has no block scales")
    return instruction.k // instruction.block


def scale_layout(instruction: Instruction, *, side: str, chain: int = 1, selectors: ScaleSelectors = FIRST) -> Layout:
    """The layout of the scales of A (M x blocks) or B (blocks x N).

    Args:
        instruction: one with block scales.
        side: `"a"` or `"b"`.
        chain: instructions one after another.
        selectors: of mma.sync; tcgen05.mma takes its scales from byte 0.

    Raises:
        OperandError: no block scales.
    """
    blocks = chain * scales_per_row(instruction)
    if instruction.scale_type is None:
        raise OperandError(f"{instruction} has no block scales")
    if side == "a":
        shape = (instruction.m, blocks)
        row, block = _grid(*shape)
    else:
        shape = (blocks, instruction.n)
        block, row = _grid(*shape)
    place = _register_scales if instruction.family is Family.MMA_SYNC else _tmem_scales
    starts, bits = place(instruction, side, chain, row, block, selectors)
    return Layout(shape=shape, spec=instruction.scale_type, bits=bits, starts=np.broadcast_to(starts, (len(starts), len(row))))


# Tensor memory and registers -----------------------------------------------------------------------------------------


class TransferShape(NamedTuple):
    """What one tcgen05.ld or tcgen05.st moves between tensor memory and a warp's registers, for `.x1`."""

    name: str
    rows: int
    """Lanes of tensor memory."""
    columns: int
    """Columns of 32 bits, of each half where there are two."""
    registers: int
    most: int
    """Largest `.num`."""
    place: Callable[[Index, Index], tuple[Index, Index]]
    """Lane of tensor memory and column, from thread and register."""


TRANSFER_SHAPES: Final = {
    each.name: each
    for each in (
        TransferShape("32x32b", 32, 1, 1, 128, lambda t, r: (t, r)),
        TransferShape("16x64b", 16, 2, 1, 128, lambda t, r: (t // 4 + 8 * (t % 2), t // 2 % 2 + 2 * r)),
        TransferShape("16x128b", 16, 4, 2, 64, lambda t, r: (t // 4 + 8 * (r % 2), t % 4 + 4 * (r // 2))),
        TransferShape("16x256b", 16, 8, 4, 32, lambda t, r: (t // 4 + 8 * (r // 2 % 2), r % 2 + 2 * (t % 4) + 8 * (r // 4))),
        TransferShape("16x32bx2", 16, 1, 1, 128, lambda t, r: (t % 16, r)),
    )
}
"""By their names in PTX. In 16x32bx2 the upper 16 threads have columns of their own, from an offset that the instruction gives."""


def transfer_places(shape: str, count: int, *, split: int = 0, packed: bool = False) -> tuple[Index, Index]:
    """Where the registers of tcgen05.ld and tcgen05.st lie in tensor memory.

    Args:
        shape: a key of TRANSFER_SHAPES.
        count: `.num`.
        split: columns from the first half of 16x32bx2 to the second.
        packed: `.pack::16b`, `.unpack::16b`: a register holds the low halves of two neighbouring columns.

    Returns:
        Lanes and columns, (registers, 32 threads, words), relative to the address; words is 2 where packed, else 1.
    """
    row = TRANSFER_SHAPES[shape]
    register, thread = np.meshgrid(np.arange(row.registers * count), np.arange(LANES), indexing="ij")
    lane, word = row.place(thread, register)
    parts = 2 if packed else 1
    columns = (word[..., None] * parts + np.arange(parts)) + (thread // 16 * split if shape == "16x32bx2" else 0 * thread)[..., None]
    return np.broadcast_to(lane[..., None], columns.shape), columns
