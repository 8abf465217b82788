"""W4A8 with FP8 activations, as Marlin's variant for Ada does it: INT4 weights become e4m3 in registers, exactly.

An INT4 code of magnitude c becomes the e4m3 whose bits are c, which is c * 2^-9: a subnormal, or for 8 the smallest normal. Scales hold
the 512. Tensor cores see these exponents when they align products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.fma import fma
from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_range, check_shape, checked
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.fp8 import Fp8Matrix
from mmabits.kernels.schemes.packing_awq_gptq import Words, pack_words, unpack_words
from mmabits.kernels.schemes.w4a16 import GROUP, SYMMETRIC_ZERO, quantize_int4
from mmabits.kernels.schemes.w8a8 import Floats

FACTOR: Final = 512
"""What scales hold beside the weights' own: an e4m3 of bits c is c / 512."""


@dataclass(frozen=True, kw_only=True, eq=False)
class W4A8Fp8Weights:
    """Symmetric INT4 weights with f16 scales: weight[k, n] = code[k, n] * scale[k // group, n].

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, codes outside -8 to 7, scales that are not finite once multiplied by 512.
    """

    codes: npt.NDArray[np.int8]
    """(K, N), -8 to 7."""
    scales: npt.NDArray[np.float16]
    """(K / group, N), or (1, N) where there are no groups."""
    group: int = GROUP
    """Elements of K that share a scale; 0: a scale for each channel."""

    def __post_init__(self) -> None:
        """Check."""
        k, n = checked(self.codes, "codes", (np.int8,), 2).shape
        checked(self.scales, "scales", (np.float16,), 2)
        if self.group:
            check_multiple(k, self.group, "K of the weights", "the group size")
        check_shape(self.scales, "scales", (k // self.group if self.group else 1, n))
        check_range(self.codes, "codes of INT4 weights", -8, 7)
        check_finite(self.scales, "scales")
        check_finite(self.kernel_scales, f"scales times {FACTOR}")

    @property
    def kernel_scales(self) -> npt.NDArray[np.float16]:
        """The scales times 512, as the kernel takes them: exact, or infinite."""
        with np.errstate(over="ignore"):
            return np.asarray(self.scales * np.float16(FACTOR))

    def e4m3(self) -> npt.NDArray[Any]:
        """What the tensor cores get, (K, N): the code's magnitude as the bits of an e4m3. Zero is +0."""
        magnitudes = np.abs(self.codes.astype(np.int16)).astype(np.uint8)
        signs = np.where(self.codes < 0, np.uint8(128), np.uint8(0))
        return (magnitudes | signs).view(ml_dtypes.float8_e4m3fn)

    def dequantize(self) -> Floats:
        """Code times scale in float32, which is exact."""
        scales = self.scales.astype(np.float32)
        return np.asarray(self.codes.astype(np.float32) * (np.repeat(scales, self.group, axis=0) if self.group else scales))

    def pack(self) -> Words:
        """(K / 8, N) int32: eight codes of neighbours in K to a word, two's complement, lowest nibble first."""
        return pack_words(self.codes.view(np.uint8) & np.uint8(15), axis=0)


def unpack_codes(words: Words) -> npt.NDArray[np.int8]:
    """The inverse of `W4A8Fp8Weights.pack`."""
    nibbles = unpack_words(words, axis=0).astype(np.int8)
    return np.where(nibbles > 7, nibbles - np.int8(16), nibbles).astype(np.int8)


def quantize_w4a8_fp8(weights: Array, *, group: int = GROUP) -> W4A8Fp8Weights:
    """Symmetric INT4 as GPTQ's checkpoints have it, for e4m3 activations: `quantize_int4(symmetric=True)`, codes less 8.

    Args:
        weights: (K, N) float32, finite.
        group: elements of K with a scale, K a multiple; 0: a scale for each channel.

    Raises:
        OperandTypeError, OperandError: something else; scales beyond f16 / 512.
    """
    given = checked(weights, "weights", (np.float32,), 2)
    if not group and not given.shape[0]:
        return W4A8Fp8Weights(codes=np.zeros(given.shape, np.int8), scales=np.ones((1, given.shape[1]), np.float16), group=0)
    found = quantize_int4(given, group=group or given.shape[0], symmetric=True)
    codes = (found.codes.astype(np.int16) - SYMMETRIC_ZERO).astype(np.int8)
    return W4A8Fp8Weights(codes=codes, scales=found.scales, group=group)


def w4a8_fp8_matmul(x: Fp8Matrix, w: W4A8Fp8Weights, *, arch: str | Dots) -> Floats:
    """e4m3 activations times INT4 weights: the bits of `mmabits.kernels.triton.w4a8_fp8`.

    Without groups one chain of instructions runs through K, and the accumulators are multiplied by the row's scale, then by the
    channel's times 512. With groups each starts from zero; `total = fma(sum, scale times 512, total)`; the row's scale follows at the end.
    Marlin's kernel also splits K among warps and CTAs, which changes the order of its sums; this is its arithmetic within one of them.

    Args:
        x: (M, K) e4m3 with a scale for each row or one for all.
        w: (K, N).
        arch: architecture, or its dots.

    Returns:
        (M, N) float32.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.

    Source: vLLM, csrc/quantization/marlin (`marlin_int4_fp8_preprocess`, `dequant`, `matmul_a8`).
    """
    if x.elements.dtype != ml_dtypes.float8_e4m3fn or x.elements.shape[-1] != w.codes.shape[0]:
        raise OperandError(f"activations must be (M, {w.codes.shape[0]}) of float8_e4m3fn, got {x.elements.shape} of {x.elements.dtype}")
    if x.scales.shape not in ((x.elements.shape[0], 1), (1, 1)):
        raise OperandError(f"scales of the activations must be ({x.elements.shape[0]}, 1) or (1, 1), got {x.scales.shape}")
    dots, elements, scales = as_dots(arch), w.e4m3(), w.kernel_scales.astype(np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if not w.group:
            channel: Floats = (dots(x.elements, elements) * x.scales) * scales
            return channel
        total = np.zeros((x.elements.shape[0], w.codes.shape[1]), np.float32)
        for block, start in enumerate(range(0, w.codes.shape[0], w.group)):
            part = slice(start, start + w.group)
            sums = dots(np.ascontiguousarray(x.elements[:, part]), elements[part])
            total = fma(sums, np.broadcast_to(scales[block], sums.shape), total)
        result: Floats = total * x.scales
    return result
