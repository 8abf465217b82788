"""Matrices of shared memory as arrays of codes, compiled: the fast form of descriptors.py, for wgmma and tcgen05."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine.tensorrecords import SIGNED

WGMMA, TCGEN05 = range(2)
"""Kinds of descriptors."""
READ, OUTSIDE_SHARED, UNKNOWN_DESCRIPTOR = range(3)
"""What read_matrix returns."""


@jit
def swizzled(address: int, span: int, unit: int) -> int:
    """Where the byte of an address lies."""
    return address ^ (address >> 7 & (span // unit - 1)) * unit


@jit
def swizzle_span(code: int, kind: int) -> int:
    """The span of a descriptor's swizzle in bytes, 129 for 128 in units of 32, 0 where there is no such mode."""
    if kind == WGMMA:
        mode = code >> 62 & 3
        return 16 if mode == 0 else 256 >> mode
    mode = code >> 61 & 7
    if mode == 0:
        return 16
    if mode == 1:
        return 129
    return 128 if mode == 2 else 64 if mode == 4 else 32 if mode == 6 else 0


@jit
def read_matrix(
    shared: int, size: int, code: int, kind: int, mn_major: bool, rows: int, ks: int, bits: int, elements: int, out: int, row_step: int,
    k_step: int, held: int, skipped: int,
) -> int:  # fmt: skip
    """Copy rows x ks elements to out + (row * row_step + k * k_step) elements.

    Args:
        shared: address of shared memory,
        size: and its bytes.
        code: the descriptor,
        kind: WGMMA or TCGEN05.
        mn_major: the matrix is MN-major, else K-major.
        rows: along M or N.
        ks: along K.
        bits: of an element,
        elements: in a chunk of 16 bytes.
        out: address of the array of codes.
        row_step: elements of it from row to row,
        k_step: and from k to k.
        held: bits of an element of it, or SIGNED.
        skipped: rows of the matrix before the first that is read.
    """
    start, leading, stride = (code & 0x3FFF) << 4, (code >> 16 & 0x3FFF) << 4, (code >> 32 & 0x3FFF) << 4
    span = swizzle_span(code, kind)
    if span == 0 or (span != 16 and code >> 49 & 7 != 0) or (kind == TCGEN05 and code >> 52 & 1 != 0):
        return UNKNOWN_DESCRIPTOR
    unit = 16
    lines = 8
    if span == 129:
        span, unit, lines = 128, 32, 4
    across_count = ks if mn_major else rows
    along_count = rows if mn_major else ks
    across_first = 0 if mn_major else skipped
    along_first = skipped if mn_major else 0
    across_step = k_step if mn_major else row_step
    along_step = row_step if mn_major else k_step
    chunks = (along_count + elements - 1) // elements
    first_chunk = along_first // elements
    mask = np.uint64((1 << bits) - 1)
    for line in range(across_count):
        across = across_first + line
        atom = across // lines
        within_atom = across % lines
        for number in range(chunks):
            chunk = first_chunk + number
            if span == 16:
                offset = within_atom * 16
                if mn_major:
                    offset += atom * leading + chunk * stride
                else:
                    offset += atom * stride + chunk * leading
            else:
                spans = chunk // (span // 16)
                if spans != 0 and not mn_major:
                    return UNKNOWN_DESCRIPTOR
                offset = atom * stride + within_atom * span + chunk % (span // 16) * 16 + spans * leading
            address = swizzled(start + offset, span, unit)
            if address + 16 > size:
                return OUTSIDE_SHARED
            words = array_at(shared + address, 2, np.uint64)
            count = min(elements, along_count - number * elements)
            at = line * across_step + number * elements * along_step
            if bits == 16:
                halves, codes16 = array_at(shared + address, 8, np.uint16), array_at(out, 1 << 40, np.uint16)
                for place in range(count):
                    codes16[at + place * along_step] = halves[place]
                continue
            if bits == 8 and held == 8:
                octets, codes8 = array_at(shared + address, 16, np.uint8), array_at(out, 1 << 40, np.uint8)
                for place in range(count):
                    codes8[at + place * along_step] = octets[place]
                continue
            for place in range(count):
                bit = place * bits
                if bit >= 64:
                    found = words[1] >> np.uint64(bit - 64)
                else:
                    found = words[0] >> np.uint64(bit)
                    if bit + bits > 64:
                        found |= words[1] << np.uint64(64 - bit)
                put_code(out, at + place * along_step, found & mask, bits, held)
    return READ


@jit
def put_code(out: int, place: int, code: Any, bits: int, held: int) -> None:
    """Write one element of an array of codes."""
    if held == 8:
        array_at(out, 1 << 40, np.uint8)[place] = np.uint8(code)
    elif held == 16:
        array_at(out, 1 << 40, np.uint16)[place] = np.uint16(code)
    elif held == SIGNED:
        shift = 64 - bits
        array_at(out, 1 << 40, np.int8)[place] = np.int8(np.int64(code << np.uint64(shift)) >> shift)
    else:
        array_at(out, 1 << 40, np.uint32)[place] = np.uint32(code)
