"""Tensor maps: what tells TMA how a tensor lies in global memory and how its boxes lie in shared memory.

The 128 bytes that CUDA makes are not documented. A map here has words of our own: those that the launcher makes for host descriptors,
and those that kernels write by tensormap.replace. Dimensions are numbered as TMA does, the one of neighbours first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from mmabits.isa.errors import OperandError

BYTES: Final = 128
MAGIC: Final = 0x4D61704D6D61
"""In the first word of every map that was written."""
MOST_DIMENSIONS: Final = 5
MOST_STRIDE: Final = 8
"""Of elements of a box, as `cuTensorMapEncodeTiled` has it."""
FIELDS: Final = (
    "global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride", "elemtype", "interleave_layout", "swizzle_mode",
    "swizzle_atomicity", "fill_mode",
)  # fmt: skip
"""Of tensormap.replace, by the number that MAP_FIELD takes; one more copies the map."""
COPY_MAP: Final = len(FIELDS)


class TensorMap(NamedTuple):
    """The words of a map, 64 bits each; unused ones are 0."""

    magic: int
    address: int
    rank: int
    element: int
    """A code of ELEMENTS."""
    swizzle: int
    """A code of SWIZZLES."""
    fill: int
    """0: what lies outside is 0; 1: it is NaN."""
    sizes_01: int
    """Two sizes of the tensor, in elements, 32 bits each,"""
    sizes_23: int
    size_4: int
    stride_1: int
    """Bytes from neighbour to neighbour along each dimension but the first."""
    stride_2: int
    stride_3: int
    stride_4: int
    box: int
    """Sizes of the box, 12 bits each."""
    steps: int
    """Strides of elements less one, 4 bits each: 0 for the first dimension."""
    atom: int
    """What is exchanged as one, as tensormap.replace says it: 0 for 16 bytes, 1 for 32, 3 for 64."""


class MapDescription(NamedTuple):
    """What a map says, in words: dimensions numbered as TMA does."""

    address: int
    element: str
    """A name of ELEMENTS."""
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    """Bytes, of every dimension but the first."""
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    swizzle: int
    """Bytes of a span; 0 without."""
    atom: int
    """Bytes that are exchanged as one."""
    fills_nan: bool


def described(record: bytes) -> MapDescription:
    """What the record of a map says.

    Raises:
        OperandError: it is no record of `tensor_map`.
    """
    words = TensorMap._make(int(each) for each in np.frombuffer(record, np.int64)) if len(record) == BYTES else None
    if words is None or words.magic != MAGIC:
        raise OperandError("these bytes are no tensor map")
    rank = words.rank
    sizes = np.frombuffer(record, np.uint32)[2 * TensorMap._fields.index("sizes_01") :][:rank]
    box = tuple(words.box >> 12 * place & 0xFFF for place in range(rank))
    steps = tuple((words.steps >> 4 * place & 15) + 1 for place in range(rank))
    strides = (words.stride_1, words.stride_2, words.stride_3, words.stride_4)[: rank - 1]
    span = SWIZZLES[words.swizzle] if words.swizzle else 0
    address = words.address & (1 << 64) - 1
    name = ELEMENTS[words.element].name
    return MapDescription(address, name, tuple(map(int, sizes)), strides, box, steps, span, ATOMS[words.atom], bool(words.fill))


class Element(NamedTuple):
    """A type of elements. Narrow ones go by 16."""

    name: str
    unit: int
    """Elements that go together,"""
    wide: int
    """bytes of them in global memory,"""
    held: int
    """and in shared memory."""
    nan: int = 0
    """What fills a map that asks for NaN, in each element; 0 where there is none."""


ELEMENTS: Final = {
    0: Element("u8", 1, 1, 1), 1: Element("u16", 1, 2, 2), 2: Element("u32", 1, 4, 4), 3: Element("s32", 1, 4, 4),
    4: Element("u64", 1, 8, 8), 5: Element("s64", 1, 8, 8), 6: Element("f16", 1, 2, 2, 0x7FFF), 7: Element("f32", 1, 4, 4, 0x7FFFFFFF),
    9: Element("f64", 1, 8, 8, 0x7FF8000000000000), 10: Element("bf16", 1, 2, 2, 0x7FFF), 13: Element("b4x16", 16, 8, 8),
    14: Element("b4x16_p64", 16, 8, 16), 15: Element("b6x16_p32", 16, 12, 16),
}  # fmt: skip
"""By the code of tensormap.replace. Not there: f32.ftz (8), tf32 (11) and tf32.ftz (12), which change what is copied."""
ELEMENT_TABLE: Final = np.array(
    [word for code in range(16) for word in (ELEMENTS[code][1:] if code in ELEMENTS else (0, 0, 0, 0))], np.int64
)  # fmt: skip
SWIZZLES: Final = {0: 16, 1: 32, 2: 64, 3: 128}
"""Spans in bytes, by the code."""
ATOMS: Final = {0: 16, 1: 32, 3: 64}
"""Bytes, by the code of swizzle_atomicity; 2 (32 bytes, with their halves exchanged) is not there."""


def tensor_map(
    address: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    *,
    element: int,
    swizzle: int = 0,
    fill: int = 0,
    atom: int = 0,
    element_strides: Sequence[int] | None = None,
) -> bytes:
    """The record of a map.

    Args:
        address: of the tensor.
        sizes: in elements, the dimension of neighbours first.
        strides: bytes, of every dimension but the first.
        box: elements of a box.
        element: a code of ELEMENTS.
        swizzle: a code of SWIZZLES.
        fill: 1 for NaN in what lies outside.
        atom: a code of ATOMS.
        element_strides: of the box's elements along each dimension every so many-th is copied; 1 everywhere if None.

    Raises:
        OperandError: what a map cannot have, or what is not emulated.
    """
    rank = len(sizes)
    if not 1 <= rank <= MOST_DIMENSIONS or len(box) != rank or len(strides) != rank - 1:
        raise OperandError(f"a tensor map of {rank} sizes, {len(strides)} strides and {len(box)} sizes of a box")
    row = ELEMENTS.get(element)
    if row is None or swizzle not in SWIZZLES or atom not in ATOMS:
        raise OperandError(f"a tensor map of element type {element}, swizzle {swizzle}, atoms {atom} is not emulated")
    if address % 16 or any(stride % 16 for stride in strides):
        raise OperandError(f"a tensor map at {address:#x} with strides {tuple(strides)}: they must be multiples of 16 bytes")
    if any(not 1 <= each <= 256 for each in box) or any(not 1 <= each < 1 << 32 for each in sizes):
        raise OperandError(f"a tensor map of sizes {tuple(sizes)} with a box of {tuple(box)}")
    inner, most = box[0] // row.unit * row.held, SWIZZLES[swizzle] if swizzle else 1 << 12
    if box[0] % row.unit or inner % 16 or inner > most:
        raise OperandError(f"rows of a box of {box[0]} {row.name}: they must be multiples of 16 bytes, of at most {most} with this swizzle")
    each_step = [1] * rank if element_strides is None else list(element_strides)
    if len(each_step) != rank or any(not 1 <= each <= MOST_STRIDE for each in each_step) or each_step[0] != 1:
        raise OperandError(
            f"a tensor map with strides of elements {tuple(each_step)}: along the axis of neighbours 1, along the others 1 to {MOST_STRIDE}"
        )
    lengths, steps = [*sizes, 0, 0, 0, 0][:5], [*strides, 0, 0, 0, 0][:4]
    packed = [lengths[0] | lengths[1] << 32, lengths[2] | lengths[3] << 32, lengths[4]]
    boxes = sum(each << 12 * place for place, each in enumerate(box))
    strided = sum((each - 1) << 4 * place for place, each in enumerate(each_step))
    found = TensorMap._make([MAGIC, address, rank, element, swizzle, fill, *packed, *steps, boxes, strided, atom])
    return np.array([word - (1 << 64) if word >> 63 else word for word in found], np.int64).tobytes()
