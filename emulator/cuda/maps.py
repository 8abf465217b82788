"""Tensor maps of arrays: `mmabits.tensor_map`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from mmabits.emulator.cuda.arguments import PassedArray, given
from mmabits.emulator.machine import tensormaps
from mmabits.emulator.machine.tensormaps import ATOMS, ELEMENTS, SWIZZLES
from mmabits.isa.errors import OperandError, OperandTypeError

_ELEMENTS: Final = {
    "uint8": "u8", "int8": "u8", "uint16": "u16", "int16": "u16", "uint32": "u32", "int32": "s32", "uint64": "u64", "int64": "s64",
    "float16": "f16", "float32": "f32", "float64": "f64", "bfloat16": "bf16", "float8_e4m3fn": "u8", "float8_e5m2": "u8",
    "float8_e8m0fnu": "u8", "bool": "u8", "float8_e4m3": "u8",
}  # fmt: skip
"""Elements of TMA, by the dtype."""
_CODES: Final = {row.name: code for code, row in ELEMENTS.items()}
_SPANS: Final = {0: 0, **{span: code for code, span in SWIZZLES.items() if code}}
_FILLS: Final = {"zeros": 0, "nan": 1}


class ArrayMap:
    """A tensor map of an array: an argument of a kernel, 128 bytes of `CUtensorMap`. It keeps the array."""

    def __init__(self, array: PassedArray, record: bytes, text: str) -> None:
        self.array, self.record, self._text = array, record, text

    def __repr__(self) -> str:
        return self._text

    def __bytes__(self) -> bytes:
        return self.record


def tensor_map(
    array: Any,
    *,
    box: Sequence[int],
    swizzle: int = 0,
    interleave: int = 0,
    fill: str = "zeros",
    element_strides: Sequence[int] | None = None,
    element: str | None = None,
    atom: int = 16,
) -> ArrayMap:
    """Describe an array to TMA, as `cuTensorMapEncodeTiled` does.

    Args:
        array: NumPy, torch or JAX array of one to five dimensions; its last axis is contiguous, the others are multiples of 16 bytes
            apart.
        box: elements that are copied at once, along each axis of the array, in the order of its shape. (The driver's function wants
            them the other way round, as it does sizes.)
        swizzle: 0, or 32, 64 or 128 bytes.
        interleave: 0. Slices of 16 and 32 bytes are an error: where they lie is not published.
        fill: what stands for elements outside: `"zeros"` or `"nan"`.
        element_strides: along each axis every so many-th element of the box is copied, up to 8; 1 along the last axis. ceil(box / stride)
            of them lie in shared memory.
        element: what the array holds, where the dtype does not say: `"u8"`, `"bf16"`, `"b4x16_p64"`. Of the narrow ones (16 elements
            of 4 or 6 bits) the array holds bytes, and sizes and box are counted in elements.
        atom: bytes that are exchanged as one: 16, 32 or 64.

    Returns:
        An argument for a kernel's parameter of type `const __grid_constant__ CUtensorMap`.

    Raises:
        OperandError: what a map cannot have, or what is not emulated.
        OperandTypeError: no array, or a dtype without an element.
    """
    held = given(array, "the array of a tensor map")
    sizes = _whole(box, "box")
    if interleave not in (0, 16, 32):
        raise OperandError(f"interleave must be 0, or 16 or 32 bytes, got {interleave!r}")
    if interleave:
        raise OperandError(
            f"a tensor map that interleaves slices of {interleave} bytes is not emulated: neither the PTX manual (5.5.6) nor the driver's "
            "says where the slices lie in memory, and which coordinate counts them. A map of one dimension more describes such a tensor"
        )
    steps = [1] * len(sizes) if element_strides is None else _whole(element_strides, "element_strides")
    name = _ELEMENTS.get(held.dtype) if element is None else element
    if not isinstance(name, str | None):
        raise OperandTypeError(f"element must be text, got {name!r:.60}")
    if name is None:
        raise OperandTypeError(f"TMA has no elements of type {held.dtype}; element= names one of {', '.join(_CODES)}")
    row = ELEMENTS.get(_CODES.get(name, -1))
    if row is None:
        raise OperandError(f"element {name!r}: there are {', '.join(_CODES)}")
    if row.unit == 1 and row.wide != held.itemsize:
        raise OperandError(f"element {name} has {row.wide} bytes, the array's have {held.itemsize}")
    if swizzle not in list(_SPANS) or fill not in list(_FILLS) or atom not in ATOMS.values():
        raise OperandError(
            f"a tensor map with swizzle {swizzle!r}, fill {fill!r}, atom {atom!r}: there are {list(_SPANS)}, {list(_FILLS)}, 16, 32, 64"
        )
    if fill == "nan" and not row.nan:
        raise OperandError(f"a tensor map of {name} cannot fill with NaN: elements of floating point alone can")
    shape = list(held.shape)
    if not shape or len(sizes) != len(shape):
        raise OperandError(f"a tensor map of an array of shape {held.shape} with a box of {len(sizes)} sizes")
    if any(each < 0 for each in held.strides):
        raise OperandError(f"a tensor map of an array with strides {held.strides}: none may be negative")
    if held.strides[-1] != held.itemsize and shape[-1] != 1:
        raise OperandError(f"a tensor map of an array with strides {held.strides}: the last axis must be contiguous")
    if row.unit != 1:
        shape[-1] = shape[-1] * held.itemsize * row.unit // row.wide
    atom_code = next(code for code, size in ATOMS.items() if size == atom)
    record = tensormaps.tensor_map(
        held.address, shape[::-1], list(held.strides[-2::-1]), sizes[::-1], element=_CODES[name],
        swizzle=_SPANS[swizzle], fill=_FILLS[fill], atom=atom_code, element_strides=steps[::-1],
    )  # fmt: skip
    told = f", element strides {tuple(steps)}" if any(each != 1 for each in steps) else ""
    return ArrayMap(held, record, f"<tensor map of {held.dtype} {held.shape}, box {tuple(sizes)}, swizzle {swizzle}{told}>")


def _whole(values: Any, name: str) -> list[int]:
    """Sizes along the axes."""
    is_several = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str | bytes)
    if not is_several or not all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in values):
        raise OperandTypeError(f"{name} must be integers, one for each axis, got {values!r:.60}")
    return [int(each) for each in values]
