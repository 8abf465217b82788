"""SageAttention's FP8 form, with sums at two levels: `sage2.cu`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.cuda.sources import module
from mmabits.kernels.schemes.attention import E4M3Columns, Int8Blocks, check_sage2, sage2_output_scales

BLOCK: Final = 64
WIDTHS: Final = (64, 128)
EXPONENTIAL: Final = "ex2.approx.ftz.f32"
"""The kernel's exp2."""
ORDER: Final = tuple(
    16 * group + 8 * half + 2 * pair + one for group in range(4) for pair in range(4) for half in range(2) for one in range(2)
)
"""Keys of a block in the order in which P V takes them."""


def _padded(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(heads, rows, D) with rows to whole blocks."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK), (0, 0)))


def sage2_attention(q: Int8Blocks, k: Int8Blocks, v: E4M3Columns, *, arch: str, causal: bool = False) -> npt.NDArray[np.float32]:
    """The bits of `schemes.attention.sage2_attention` with `exp2` as the GPU has it, and P V in `ORDER`.

    Args:
        q: (heads, queries, D), D 64 or 128, blocks of 64.
        k: (heads / share, keys, D), likewise.
        v: (heads / share, keys, D).
        arch: architecture, or a GPU of it, from sm_89 on.
        causal: whether a query sees no later keys.

    Returns:
        (heads, queries, D) float32.

    Raises:
        OperandTypeError, OperandError: operands that do not fit.
        MmabitsError: as `mmabits.compile_cuda`, and of its kernels.
    """
    check_sage2(q, k, v, causal)
    (heads, queries, width), keys = q.codes.shape, k.codes.shape[1]
    if width not in WIDTHS or q.block != BLOCK or k.block != BLOCK:
        raise OperandError(f"the kernel takes D = 64 or 128 in blocks of {BLOCK}, got D = {width}, blocks of {q.block} and {k.block}")
    out = np.zeros((heads, queries, width), np.float32)
    if keys == 0 or out.size == 0:
        return out
    left, right, values = _padded(q.codes), _padded(k.codes), _padded(v.codes.view(np.uint8))
    length = values.shape[1]
    turned = values.reshape(len(values), length // BLOCK, BLOCK, width)[:, :, list(ORDER)].reshape(len(values), length, width)
    kernel = module("sage2", arch, f"-DWIDTH={width}", since=89)["sage2"]
    kernel(
        (left.shape[1] // BLOCK, heads), 128, left, right, np.ascontiguousarray(turned.transpose(0, 2, 1)), q.scales, k.scales,
        sage2_output_scales(v), out, queries, keys, left.shape[1], length, heads // len(right), int(causal),
        shared=2 * (BLOCK * (width + 16) + width * (BLOCK + 16)),
    )  # fmt: skip
    return out
