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
    """Element strides less one, 4 bits each: 0 everywhere."""
    atom: int
    """What is exchanged as one, as tensormap.replace says it: 0 for 16 bytes, 1 for 32, 3 for 64."""


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
    lengths, steps = [*sizes, 0, 0, 0, 0][:5], [*strides, 0, 0, 0, 0][:4]
    packed = [lengths[0] | lengths[1] << 32, lengths[2] | lengths[3] << 32, lengths[4]]
    boxes = sum(each << 12 * place for place, each in enumerate(box))
    found = TensorMap._make([MAGIC, address, rank, element, swizzle, fill, *packed, *steps, boxes, 0, atom])
    return np.array([word - (1 << 64) if word >> 63 else word for word in found], np.int64).tobytes()
