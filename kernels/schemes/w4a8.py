"""W4A8 as in QQQ: INT4 weights become INT8 in registers, and INT8 tensor cores multiply them with INT8 activations.

Per channel: INT8 = 16 * INT4, a shift, and the scale of the channel holds the 1 / 16. Per group: INT8 = rint(f16(INT4 * group scale)),
the rounding done by adding 1536 in f16, and a scale for each channel on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_range, check_shape, checked
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.packing_awq_gptq import Words, pack_words, unpack_words
from mmabits.kernels.schemes.w4a16 import GROUP
from mmabits.kernels.schemes.w8a8 import Floats, Int8Matrix, int8_codes, int8_scales, scaled

LARGEST: Final = 7
"""Codes are -7 to 7; -8 would leave INT8 when multiplied by a group scale."""
SHIFT: Final = 16
"""What an INT4 code is multiplied by where there are no groups: a shift by four bits."""
MAGIC: Final = 1536.0
"""1.5 * 2^10: an f16 sum with it has no fraction bits, so the addition rounds to an integer, ties to even."""


@dataclass(frozen=True, kw_only=True, eq=False)
class W4A8Weights:
    """INT4 weights with scales for channels, and for groups where `group_scales` is there.

    Raises:
        OperandTypeError, OperandError: dtypes, shapes, codes outside -7 to 7, scales that are not finite, group scales that leave INT8.
    """

    codes: npt.NDArray[np.int8]
    """(K, N), -7 to 7."""
    channel_scales: Floats
    """(N,), finite."""
    group_scales: npt.NDArray[np.float16] | None = None
    """(K / group, N)."""
    group: int = 0
    """Elements of K with one group scale; 0: there are none."""

    def __post_init__(self) -> None:
        """Check."""
        k, n = checked(self.codes, "codes", (np.int8,), 2).shape
        check_shape(checked(self.channel_scales, "channel_scales", (np.float32,), 1), "channel_scales", (n,))
        check_range(self.codes, "codes of W4A8 weights", -LARGEST, LARGEST)
        check_finite(self.channel_scales, "channel_scales")
        if self.group_scales is not None:
            check_multiple(k, self.group, "K of the weights", "the group size")
            check_shape(checked(self.group_scales, "group_scales", (np.float16,), 2), "group_scales", (k // self.group, n))
            largest = self.group_scales.max(initial=np.float16(0))
            if not (self.group_scales >= 0).all() or np.rint(np.float16(LARGEST) * largest) > 127:
                raise OperandError(f"group scales are 0 to 127 / {LARGEST}, got {self.group_scales.min()} to {largest}")

    def int8(self) -> npt.NDArray[np.int8]:
        """The INT8 codes that the tensor cores get, (K, N)."""
        if self.group_scales is None:
            return (self.codes * np.int8(SHIFT)).astype(np.int8)
        scales = np.repeat(self.group_scales, self.group, axis=0)
        product = self.codes.astype(np.float16) * scales
        return ((product + np.float16(MAGIC)) - np.float16(MAGIC)).astype(np.int8)

    @property
    def output_scales(self) -> Floats:
        """(N,) what the sums are multiplied by: the channels' scales, a sixteenth of them where codes are shifted (exact)."""
        if self.group_scales is None:
            return np.asarray(self.channel_scales * np.float32(1 / SHIFT))
        return self.channel_scales

    def dequantize(self) -> Floats:
        """INT8 code times output scale, rounded once to float32."""
        return np.asarray(self.int8().astype(np.float32) * self.output_scales)

    def pack(self) -> Words:
        """(K / 8, N) int32: eight codes of neighbours in K to a word, two's complement, lowest nibble first."""
        return pack_words(self.codes.view(np.uint8) & np.uint8(15), axis=0)


def unpack_codes(words: Words) -> npt.NDArray[np.int8]:
    """The inverse of `W4A8Weights.pack`."""
    nibbles = unpack_words(words, axis=0).astype(np.int8)
    return np.where(nibbles > LARGEST, nibbles - np.int8(16), nibbles).astype(np.int8)


def quantize_w4a8(weights: Array, *, group: int = GROUP) -> W4A8Weights:
    """INT4 weights for INT8 tensor cores.

    Per channel (`group=0`): `scale = amax / 7`, code = rint(w / scale). Per group: the weights become INT8 by channel first
    (`scale = amax / 127`, `rint`), and these integers INT4 by group: `group scale = f16(amax / 7)`, code = rint(int8 / scale).
    All codes are kept within -7 to 7. Single float32 operations, rounded to nearest even; a scale that would be zero is 1.

    Args:
        weights: (K, N) float32, finite.
        group: elements of K with a scale, K a multiple; 0: scales for channels alone.

    Raises:
        OperandTypeError, OperandError: something else.

    Source: Zhang et al., QQQ (arXiv 2406.09904), without its smoothing and GPTQ steps, which `smoothing_scales` and
    `gptq_quantize` do; codes symmetric, as there.
    """
    w = checked(weights, "weights", (np.float32,), 2)
    check_finite(w, "weights")
    amax = np.abs(w).max(axis=0, initial=np.float32(0))
    if group == 0:
        with np.errstate(under="ignore"):
            wanted = amax / np.float32(LARGEST)
        channel = np.where(wanted > 0, wanted, np.float32(1)).astype(np.float32)
        with np.errstate(over="ignore", under="ignore"):
            codes = np.clip(np.rint(w / channel), -LARGEST, LARGEST).astype(np.int8)
        return W4A8Weights(codes=codes, channel_scales=channel)
    k, n = w.shape
    check_multiple(k, group, "K of the weights", "the group size")
    channel = int8_scales(amax)
    integers = int8_codes(w, channel).astype(np.float32).reshape(k // group, group, n)
    wanted = np.abs(integers).max(axis=1) / np.float32(LARGEST)
    scales = np.where(wanted > 0, wanted, np.float32(1)).astype(np.float16)
    codes = np.clip(np.rint(integers / scales.astype(np.float32)[:, None]), -LARGEST, LARGEST).astype(np.int8).reshape(k, n)
    return W4A8Weights(codes=codes, channel_scales=channel, group_scales=scales, group=group)


def w4a8_matmul(x: Int8Matrix, w: W4A8Weights, *, arch: str | Dots) -> Floats:
    """INT8 activations times INT4 weights: the bits of `mmabits.kernels.triton.w4a8`.

    Args:
        x: (M, K), scales per row.
        w: (K, N).
        arch: architecture, or its dots.

    Returns:
        (M, N) float32: `scaled` sums of INT8 products.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    if x.axis != 0 or x.codes.shape[1] != w.codes.shape[0]:
        raise OperandError(f"activations must be (M, {w.codes.shape[0]}) with scales for rows, got {x.codes.shape}, axis {x.axis}")
    return scaled(as_dots(arch)(x.codes, w.int8()), x.scales, w.output_scales)
