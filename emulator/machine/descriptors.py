"""Matrix descriptors: where wgmma and tcgen05 find a matrix in shared memory. The readable form; operands.py is the fast one.

A matrix of MN rows and K columns lies in chunks of 16 bytes along its major dimension. Eight neighbours along the other dimension, each
one swizzle span long, make an atom; `stride` and `leading` lead from atom to atom. The swizzle exchanges chunks by bits of the address.

Sources: PTX ISA, matrix descriptors of wgmma and tcgen05, canonical layouts; CUTLASS, cute/arch/mma_sm90_desc.hpp and mma_sm100_desc.hpp.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mmabits.isa.errors import OperandError

CHUNK: Final = 16
"""Bytes that lie side by side in every layout."""
ADDRESS_BITS: Final = 18
"""Of an address or offset in shared memory; descriptors leave out the lowest four."""


class Swizzle(NamedTuple):
    """A way to exchange chunks."""

    name: str
    span: int
    """Bytes along the major dimension within which chunks are exchanged."""
    unit: int = CHUNK
    """Bytes that are exchanged as one."""

    @property
    def rows(self) -> int:
        """Rows of an atom."""
        return 8 if self.unit == CHUNK else 4

    def __call__(self, address: int) -> int:
        """Where the byte of an address lies: the bits that number the unit are xored with those that number the row of 128 bytes."""
        mask = self.span // self.unit - 1
        return address ^ (address >> 7 & mask) * self.unit


NONE: Final = Swizzle("none", 16)
SPAN_32: Final = Swizzle("32B", 32)
SPAN_64: Final = Swizzle("64B", 64)
SPAN_128: Final = Swizzle("128B", 128)
SPAN_128_UNIT_32: Final = Swizzle("128B, atoms of 32B", 128, 32)

WGMMA_SWIZZLES: Final = {0: NONE, 1: SPAN_128, 2: SPAN_64, 3: SPAN_32}
"""Bits 62 and 63 of wgmma's descriptors."""
TCGEN05_SWIZZLES: Final = {0: NONE, 1: SPAN_128_UNIT_32, 2: SPAN_128, 4: SPAN_64, 6: SPAN_32}
"""Bits 61 to 63 of tcgen05's descriptors."""


class MatrixDescriptor(NamedTuple):
    """A descriptor's fields, in bytes."""

    start: int
    leading: int
    stride: int
    swizzle: Swizzle
    base_offset: int = 0
    leading_is_address: bool = False

    def check(self) -> None:
        """Refuse what is not modelled.

        Raises:
            OperandError: a base offset (a matrix that does not start where its swizzle pattern repeats), an absolute leading address.
        """
        if self.base_offset or self.leading_is_address:
            raise OperandError("a matrix descriptor with a base offset or an absolute leading address is not emulated")

    def element(self, row: int, k: int, *, bits: int, elements: int, mn_major: bool) -> int:
        """The bit of shared memory at which an element starts.

        Args:
            row: along M or N.
            k: along K.
            bits: of an element.
            elements: in a chunk of 16 bytes: 128 / bits, or 16 in the f8f6f4 kinds, whatever the type.
            mn_major: neighbours along M or N lie side by side; else those along K.
        """
        along, across = (row, k) if mn_major else (k, row)
        chunk, place = divmod(along, elements)
        atom, line = divmod(across, self.swizzle.rows)
        if self.swizzle is NONE:  # the offset along K is the leading one
            offset = line * CHUNK + (atom * self.leading + chunk * self.stride if mn_major else atom * self.stride + chunk * self.leading)
        else:
            span, within = divmod(chunk, self.swizzle.span // CHUNK)
            if span and not mn_major:
                raise OperandError(f"{k} elements along K reach beyond the swizzle span of {self.swizzle.name}")
            offset = atom * self.stride + line * self.swizzle.span + within * CHUNK + span * self.leading
        return 8 * self.swizzle(self.start + offset) + place * bits


def _field(code: int, first: int) -> int:
    """A field of 14 bits, as bytes."""
    return (code >> first & 0x3FFF) << 4


def _encoded(value: int, first: int) -> int:
    if value & 15 or value >> ADDRESS_BITS:
        raise OperandError(f"{value} bytes do not fit a matrix descriptor")
    return value >> 4 << first


def wgmma_descriptor(code: int) -> MatrixDescriptor:
    """The fields of a descriptor of wgmma, 64 bits."""
    return MatrixDescriptor(_field(code, 0), _field(code, 16), _field(code, 32), WGMMA_SWIZZLES[code >> 62 & 3], code >> 49 & 7)


def tcgen05_descriptor(code: int) -> MatrixDescriptor:
    """The fields of a descriptor of tcgen05, 64 bits.

    Raises:
        OperandError: a swizzle mode that there is not.
    """
    swizzle = TCGEN05_SWIZZLES.get(code >> 61 & 7)
    if swizzle is None:
        raise OperandError(f"the swizzle mode {code >> 61 & 7} of a matrix descriptor; there are {', '.join(map(str, TCGEN05_SWIZZLES))}")
    return MatrixDescriptor(_field(code, 0), _field(code, 16), _field(code, 32), swizzle, code >> 49 & 7, bool(code >> 52 & 1))


def encode_wgmma(descriptor: MatrixDescriptor) -> int:
    """The 64 bits of a descriptor of wgmma."""
    return _offsets(descriptor) | _mode(WGMMA_SWIZZLES, descriptor.swizzle) << 62


def encode_tcgen05(descriptor: MatrixDescriptor) -> int:
    """The 64 bits of a descriptor of tcgen05."""
    return _offsets(descriptor) | _mode(TCGEN05_SWIZZLES, descriptor.swizzle) << 61 | descriptor.leading_is_address << 52 | 1 << 46


def _mode(modes: dict[int, Swizzle], wanted: Swizzle) -> int:
    found = [mode for mode, swizzle in modes.items() if swizzle == wanted]
    if not found:
        raise OperandError(f"no swizzle {wanted.name} in this descriptor")
    return found[0]


def _offsets(descriptor: MatrixDescriptor) -> int:
    placed = _encoded(descriptor.start, 0) | _encoded(descriptor.leading, 16) | _encoded(descriptor.stride, 32)
    return placed | descriptor.base_offset << 49
