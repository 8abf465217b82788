"""W8A16: INT8 or e4m3 weights with f16 scales, dequantized in registers and multiplied as f16 or bf16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import encode, from_codes
from mmabits.isa import OperandError, format_spec, nearest
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_range, check_shape, checked
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.packing_awq_gptq import Words
from mmabits.kernels.schemes.w4a16 import ACTIVATIONS, GROUP, check_activations
from mmabits.kernels.schemes.w8a8 import LARGEST, Floats

KINDS: Final = {"int8": np.dtype(np.int8), "e4m3": np.dtype(ml_dtypes.float8_e4m3fn)}
"""What weights are stored as."""
_LARGEST: Final = {"int8": float(LARGEST), "e4m3": 448.0}
_SMALLEST_SCALE: Final = np.float32(2.0**-24)  # the smallest f16


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights8:
    """Eight-bit weights: weight[k, n] = code[k, n] * scale[k // group, n].

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, codes that are NaN, scales that are not finite.
    """

    codes: npt.NDArray[Any]
    """(K, N), int8 or float8_e4m3fn, finite."""
    scales: npt.NDArray[np.float16]
    """(K / group, N), or (1, N) where there are no groups; finite."""
    group: int = 0
    """Elements of K that share a scale; 0: a scale for each channel, which the accumulators are multiplied by."""

    def __post_init__(self) -> None:
        """Check."""
        k, n = checked(self.codes, "codes", tuple(KINDS.values()), 2).shape
        checked(self.scales, "scales", (np.float16,), 2)
        if self.group:
            check_multiple(k, self.group, "K of the weights", "the group size")
        check_shape(self.scales, "scales", (k // self.group if self.group else 1, n))
        check_finite(self.codes.astype(np.float32), "codes")
        check_finite(self.scales, "scales")

    @property
    def kind(self) -> str:
        """A name of `KINDS`."""
        return "int8" if self.codes.dtype == np.int8 else "e4m3"

    def operand(self, dtype: Any = np.float16) -> Array:
        """What the tensor cores get, (K, N): codes, exact in either type, or their products with group scales, rounded once.

        For bfloat16 the scale has been rounded to bfloat16 first, as Marlin's kernel has it.

        Args:
            dtype: float16 or bfloat16.

        Raises:
            OperandError: another one.
        """
        kind = np.dtype(dtype)
        if kind not in [np.dtype(each) for each in ACTIVATIONS]:
            raise OperandError(f"8-bit weights are dequantized to float16 or bfloat16, got {kind}")
        codes = self.codes.astype(np.float32)
        if self.group:
            scales = np.repeat(self.scales.astype(np.float32).astype(kind).astype(np.float32), self.group, axis=0)
            with np.errstate(over="ignore", under="ignore"):
                codes = codes * scales  # at most 7 and 11 significand bits: exact
        with np.errstate(over="ignore", under="ignore"):
            result: Array = codes.astype(kind)
        return result

    def dequantize(self) -> Floats:
        """Code times scale in float32, which is exact."""
        scales = self.scales.astype(np.float32)
        return np.asarray(self.codes.astype(np.float32) * (np.repeat(scales, self.group, axis=0) if self.group else scales))

    def pack(self) -> Words:
        """(K / 4, N) int32: four codes of neighbours in K to a word, the lowest K in the lowest byte, as GPTQ has 8-bit codes (signed).

        Raises:
            OperandError: a K that 4 does not divide.
        """
        k, n = self.codes.shape
        check_multiple(k, 4, "K", "the codes of a word,")
        parts = self.codes.view(np.uint8).reshape(k // 4, 4, n).astype(np.uint32)
        return (parts[:, 0] | parts[:, 1] << 8 | parts[:, 2] << 16 | parts[:, 3] << 24).view(np.int32)


def unpack_codes(words: Words, kind: str) -> npt.NDArray[Any]:
    """The inverse of `Weights8.pack`.

    Args:
        words: (K / 4, N) int32.
        kind: `"int8"` or `"e4m3"`.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    _check_kind(kind)
    given = checked(words, "words", (np.int32,), 2).view(np.uint32)
    parts = np.stack([given >> np.uint32(shift) for shift in (0, 8, 16, 24)], axis=1).astype(np.uint8)
    return parts.reshape(4 * given.shape[0], given.shape[1]).view(KINDS[kind])


def _check_kind(kind: str) -> None:
    if not isinstance(kind, str) or kind not in KINDS:
        raise OperandError(f"unknown kind of 8-bit weights {kind!r}{nearest(str(kind), KINDS)}; known: {', '.join(KINDS)}")


def quantize_w8(weights: Array, *, kind: str = "int8", group: int = 0) -> Weights8:
    """Round to nearest: `scale = f16(amax / 127)` or `f16(amax / 448)`, code = `rint(w / scale)` within -127 to 127, or e4m3(w / scale).

    Every operation is a single float32 one rounded to nearest even, elements saturate; the rounded scale is what is used. A scale of
    zeros is 1, and none is below the smallest f16.

    Args:
        weights: (K, N) float32, finite.
        kind: `"int8"` or `"e4m3"`.
        group: elements of K with a scale, K a multiple, usually 128; 0: a scale for each channel.

    Raises:
        OperandTypeError, OperandError: something else; magnitudes for which there is no f16 scale.
    """
    _check_kind(kind)
    given = checked(weights, "weights", (np.float32,), 2)
    check_finite(given, "weights")
    check_range(np.asarray([group]), "group sizes", 0, 2**31 - 1)
    k, n = given.shape
    if group:
        check_multiple(k, group, "K of the weights", "the group size")
    grouped = given.reshape(k // group, group, n) if group else given[None]
    amax = np.abs(grouped).max(axis=1, initial=np.float32(0))
    with np.errstate(over="ignore", under="ignore"):
        wanted = amax / np.float32(_LARGEST[kind])
        scales = np.where(amax > 0, np.maximum(wanted, _SMALLEST_SCALE), np.float32(1)).astype(np.float16)
        if not np.isfinite(scales).all():
            raise OperandError(f"weights reach {amax.max()}, for which there is no f16 scale")
        quotients = grouped / scales.astype(np.float32)[:, None]
    if kind == "int8":
        codes = np.clip(np.rint(quotients), -LARGEST, LARGEST).astype(np.int8)
    else:
        spec = format_spec("e4m3")
        codes = from_codes(encode(quotients, spec, satfinite=True), spec)
    return Weights8(codes=np.ascontiguousarray(codes.reshape(k, n)), scales=scales, group=group)


def w8a16_matmul(x: Array, weights: Weights8, *, arch: str | Dots) -> Floats:
    """Activations times 8-bit weights: the bits of `mmabits.kernels.triton.w8a16`.

    With groups, weights are dequantized to the type of the activations. Without, the codes themselves are multiplied, and the f32
    accumulators by the channel's scale. (Marlin leaves e4m3 codes in f16 a 256th of their value and makes up for it in the scales: the
    same numbers, but for e4m3 subnormals, which are f16 subnormals there, and what tensor cores make of them.)

    Args:
        x: (M, K) float16 or bfloat16.
        weights: (K, N).
        arch: architecture, or its dots.

    Returns:
        (M, N) float32.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.

    Source: Frantar et al., MARLIN (arXiv 2408.11743), and its 8-bit and FP8 forms in vLLM.
    """
    given = check_activations(x, weights.codes.shape[0])
    sums = as_dots(arch)(given, weights.operand(given.dtype))
    if weights.group:
        return np.asarray(sums)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        result: Floats = sums * weights.scales.astype(np.float32)
    return result


__all__ = ["GROUP", "KINDS", "Weights8", "quantize_w8", "unpack_codes", "w8a16_matmul"]
