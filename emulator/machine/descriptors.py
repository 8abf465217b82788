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
            OperandError: a base offset (a matrix that does not start where its swizzle pattern repeats; without one it says nothing), an
                absolute leading address.
        """
        if (self.base_offset and self.swizzle is not NONE) or self.leading_is_address:
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


# Instruction descriptors of tcgen05.mma --------------------------------------------------------------------------------------


class ProductKind(NamedTuple):
    """A `.kind` of tcgen05.mma."""

    name: str
    k: int
    types: dict[int, str]
    """Formats of A and B by their codes in the descriptor."""
    slot_bits: int
    """Of an element of A in tensor memory."""
    scaled: bool = False
    elements: int = 0
    """In a chunk of 16 bytes, where it does not follow from the width of the type."""


_F8F6F4: Final = {0: "e4m3", 1: "e5m2", 3: "e2m3", 4: "e3m2", 5: "e2m1"}
PRODUCT_KINDS: Final = {
    each.name: each
    for each in (
        ProductKind("f16", 16, {0: "f16", 1: "bf16"}, 16),
        ProductKind("tf32", 8, {2: "tf32"}, 32),
        ProductKind("f8f6f4", 32, _F8F6F4, 8, elements=16),
        ProductKind("i8", 32, {0: "u8", 1: "s8"}, 8),
        ProductKind("mxf8f6f4", 32, _F8F6F4, 8, True, elements=16),
        ProductKind("mxf4", 64, {1: "e2m1"}, 4, True),
        ProductKind("mxf4nvf4", 64, {1: "e2m1"}, 4, True),
    )
}

_ALL_FIELDS: Final = {
    "sparse": (2, 1), "a": (7, 3), "b": (10, 3), "negate_a": (13, 1), "negate_b": (14, 1), "a_mn_major": (15, 1), "b_mn_major": (16, 1),
    "n": (17, 6), "m": (24, 5),
}  # fmt: skip
PLAIN_FIELDS: Final = {**_ALL_FIELDS, "selector": (0, 2), "saturate": (3, 1), "d": (4, 2), "max_shift": (30, 2)}
"""First bit and bits of each field of a descriptor without block scales,"""
SCALED_FIELDS: Final = {**_ALL_FIELDS, "scale_b": (4, 2), "scale_type": (23, 1), "scale_a": (29, 2), "k96": (31, 1)}
"""and with them."""
SCALE_IDS: Final = 3 << 4 | 3 << 29
"""Bits that choose bytes of scales."""
_D_TYPES: Final = {0: "f16", 1: "f32", 2: "s32"}
_SCALE_TYPES: Final = {0: "ue4m3", 1: "ue8m0"}


class InstructionDescriptor(NamedTuple):
    """What a descriptor says."""

    kind: ProductKind
    ptx: str
    """The instruction, as `mmabits.isa.parse` reads it."""
    a_mn_major: bool
    b_mn_major: bool
    scale_a: int = 0
    """First byte of the scales in their column of tensor memory."""
    scale_b: int = 0


def instruction_descriptor(code: int, kind: str, *, block: int = 0, group: int = 1, shift: int = 0) -> InstructionDescriptor:
    """Read an instruction descriptor, 32 bits.

    Args:
        code: the descriptor.
        kind: of the instruction.
        block: elements of K per block scale, as the instruction says it.
        group: `.cta_group`.
        shift: `scale-input-d`.

    Raises:
        OperandError: a code that there is not, or what is not emulated.
    """
    row = PRODUCT_KINDS[kind]
    fields = SCALED_FIELDS if row.scaled else PLAIN_FIELDS
    found = {name: code >> first & (1 << bits) - 1 for name, (first, bits) in fields.items()}
    known = sum(((1 << bits) - 1) << first for first, bits in fields.values())
    what = f"the instruction descriptor {code:#010x} of kind::{kind}"
    if code & ~known & 0xFFFFFFFF:
        raise OperandError(f"{what} has bits {code & ~known & 0xFFFFFFFF:#x}, which mean nothing")
    if found["sparse"] or found.get("selector", 0):
        raise OperandError(f"{what}: a sparse A is not emulated")
    if found.get("max_shift", 0) or found.get("k96", 0):
        raise OperandError(f"{what}: {'K = 96' if found.get('k96', 0) else 'a shift of B'} is not emulated")
    types = [row.types.get(found[side]) for side in "ab"]
    d = "f32" if row.scaled else _D_TYPES.get(found["d"])
    if None in types or d is None:
        raise OperandError(
            f"{what}: types {found['a']}, {found['b']} and {found.get('d', 1)} of A, B and D; of A and B there are {row.types}"
        )
    scales = f".block_scale.block{block}" if row.scaled else ""
    words = [f"tcgen05.mma.cta_group::{group}.kind::{kind}{scales}.m{found['m'] << 4}n{found['n'] << 3}k{row.k}.{d}.{types[0]}.{types[1]}"]
    words += [_SCALE_TYPES[found["scale_type"]]] if row.scaled else []
    words += ["satfinite"] if found.get("saturate", 0) else []
    words += [word for word, name in (("negA", "negate_a"), ("negB", "negate_b")) if found[name]]
    words += [f"scale_input_d::{shift}"] if shift else []
    return InstructionDescriptor(
        row, ".".join(words), bool(found["a_mn_major"]), bool(found["b_mn_major"]), found.get("scale_a", 0), found.get("scale_b", 0)
    )


def elements_of_chunk(kind: ProductKind, code_bits: int) -> int:
    """Elements in 16 bytes of shared memory."""
    return kind.elements or 8 * CHUNK // code_bits
