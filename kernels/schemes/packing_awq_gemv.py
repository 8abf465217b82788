"""INT4 weights as AutoAWQ's `gemv` and `gemv_fast` checkpoints hold them, by rows of output channels.

`gemv`: int32 words along K, ascending; zeros likewise, eight groups to a word, the number of words rounded up as the kernel reads them.
`gemv_fast`: int16 words, each four codes of one output channel; four channels and 64 of K make 64 words; zeros as `-scale * zero` in f16.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_shape, checked, row_named
from mmabits.kernels.schemes.packing_awq_gptq import WORD, Words, checked_for_awq, opened, pack_words, tensors_of, unpack_words
from mmabits.kernels.schemes.w4a16 import MAX_CODE, Int4Weights

_CHANNELS, _STRIDE, _CHUNK = 4, 64, 32
"""Output channels and elements of K that `gemv_fast` interleaves, and elements that it permutes first."""
_SMALLEST_GROUPS: Final = {64: 2, 32: 4}
"""Words of zeros come in such multiples for small groups; for 128 and more any number."""


def words_of_zeros(k: int, group: int) -> int:
    """Words that a row of zero points has: eight groups to a word, rounded up.

    Raises:
        OperandError: a K that is no multiple of the group, a group that AutoAWQ does not have: 32, 64, 128 and more.
    """
    if group < 128 and group not in _SMALLEST_GROUPS:
        raise OperandError(f"AutoAWQ's gemv kernels have groups of 32, 64, 128 and more, got {group}")
    check_multiple(k, group, "K", "the group size")
    multiple = _SMALLEST_GROUPS.get(group, 1)
    return -(-k // (group * WORD * multiple)) * multiple


def _checked_shapes(scales: Array, k: int, n: int, group: int, *, turned: bool) -> None:
    padded = words_of_zeros(k, group) * WORD
    check_multiple(n, WORD, "N", "what AutoAWQ takes,")
    check_shape(checked(scales, "scales", (np.float16,), 2), "scales", (padded, n) if turned else (n, padded))
    check_finite(scales, "scales")


def _padded(rows: Array, width: int) -> Array:
    """(N, groups) with zeros behind."""
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))


@dataclass(frozen=True, kw_only=True, eq=False)
class AwqGemvTensors:
    """The tensors of one layer of a `gemv` checkpoint.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, scales that are not finite.
    """

    qweight: Words
    """(N, K / 8)."""
    qzeros: Words
    """(N, words of zeros)."""
    scales: npt.NDArray[np.float16]
    """(N, 8 * words of zeros): those behind the last group are padding."""
    group: int
    """Elements of K with a scale: `group_size` of the configuration. Shapes do not tell it, as they are rounded up."""

    FIELDS: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    VERSION: ClassVar[str] = "gemv"

    def __post_init__(self) -> None:
        """Check."""
        n, words = checked(self.qweight, "qweight", (np.int32,), 2).shape
        _checked_shapes(self.scales, words * WORD, n, self.group, turned=False)
        check_shape(checked(self.qzeros, "qzeros", (np.int32,), 2), "qzeros", (n, words_of_zeros(words * WORD, self.group)))

    @classmethod
    def pack(cls, weights: Int4Weights) -> AwqGemvTensors:
        """From plain codes.

        Raises:
            OperandError: a zero point of 16 or groups out of order, for which AWQ has no place; sizes that it does not take.
        """
        checked_for_awq(weights)
        width = words_of_zeros(weights.shape[0], weights.group) * WORD
        return cls(
            qweight=pack_words(np.ascontiguousarray(weights.codes.T), axis=1), group=weights.group,
            qzeros=pack_words(_padded(weights.zeros.T, width), axis=1), scales=_padded(weights.scales.T, width),
        )  # fmt: skip

    def unpack(self) -> Int4Weights:
        """To plain codes."""
        groups = self.qweight.shape[1] * WORD // self.group
        zeros = unpack_words(self.qzeros, axis=1)[:, :groups].T
        return Int4Weights(
            codes=np.ascontiguousarray(unpack_words(self.qweight, axis=1).T), zeros=np.ascontiguousarray(zeros),
            scales=np.ascontiguousarray(self.scales[:, :groups].T), group=self.group,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class AwqGemvFastTensors:
    """The tensors of one layer of a `gemv_fast` checkpoint.

    Its kernel computes `code * scale + qzeros`, where `qzeros` is `-scale * zero` rounded to f16: not always the number that
    (code - zero) * scale is rounded to.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, scales that are not finite, zeros that are no multiples of their scales.
    """

    qweight: npt.NDArray[np.int16]
    """(N / 4, K)."""
    qzeros: npt.NDArray[np.float16]
    """(8 * words of zeros, N): `-scale * zero`."""
    scales: npt.NDArray[np.float16]
    """(8 * words of zeros, N)."""
    group: int
    """Elements of K with a scale: `group_size` of the configuration."""

    FIELDS: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    VERSION: ClassVar[str] = "gemv_fast"

    def __post_init__(self) -> None:
        """Check."""
        quarter, k = checked(self.qweight, "qweight", (np.int16,), 2).shape
        check_multiple(k, _STRIDE, "K", "what is interleaved,")
        _checked_shapes(self.scales, k, quarter * _CHANNELS, self.group, turned=True)
        check_shape(checked(self.qzeros, "qzeros", (np.float16,), 2), "qzeros", self.scales.shape)
        check_finite(self.qzeros, "qzeros")
        groups = k // self.group
        steps = self._steps(groups)
        with np.errstate(over="ignore", under="ignore"):
            again = _scaled_zeros(self.scales[:groups], np.clip(steps, 0, MAX_CODE))
        wrong = (again != self.qzeros[:groups]) | (steps < 0) | (steps > MAX_CODE)
        if wrong.any():
            where = tuple(np.argwhere(wrong)[0].tolist())
            raise OperandError(
                f"qzeros must be -scale * zero for a zero point 0 to {MAX_CODE}, got {self.qzeros[where]} with the scale "
                f"{self.scales[where]} at index {where}"
            )

    def _steps(self, groups: int) -> Array:
        """Zero points: products with scales, undone."""
        scales = self.scales[:groups].astype(np.float32)
        return np.rint(-self.qzeros[:groups].astype(np.float32) / np.where(scales == 0, np.float32(1), scales))

    @classmethod
    def pack(cls, weights: Int4Weights) -> AwqGemvFastTensors:
        """From plain codes.

        Raises:
            OperandError: as `AwqGemvTensors.pack`; a product of scale and zero point that f16 does not reach.
        """
        checked_for_awq(weights)
        k, n = weights.shape
        check_multiple(k, _STRIDE, "K", "what is interleaved,")
        check_multiple(n, WORD, "N", "what AutoAWQ takes,")
        width = words_of_zeros(k, weights.group) * WORD
        with np.errstate(over="ignore"):
            zeros = _scaled_zeros(weights.scales, weights.zeros)
        check_finite(zeros, "-scale * zero")
        return cls(
            qweight=_interleaved(np.ascontiguousarray(weights.codes.T)), group=weights.group,
            qzeros=np.ascontiguousarray(_padded(zeros.T, width).T), scales=np.ascontiguousarray(_padded(weights.scales.T, width).T),
        )  # fmt: skip

    def unpack(self) -> Int4Weights:
        """To plain codes and zero points."""
        groups = self.qweight.shape[1] // self.group
        return Int4Weights(
            codes=np.ascontiguousarray(_separated(self.qweight).T), zeros=self._steps(groups).astype(np.uint8),
            scales=np.ascontiguousarray(self.scales[:groups]), group=self.group,
        )  # fmt: skip


def _scaled_zeros(scales: Array, zeros: Array) -> npt.NDArray[np.float16]:
    """`-(scale * zero)` in f16; the product is exact in float32."""
    return np.asarray(-(scales.astype(np.float32) * zeros.astype(np.float32)).astype(np.float16))


def _interleaved(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """(N, K) codes to (N / 4, K) words.

    Of 32 elements pairs are dealt to four lots (0, 1, 8, 9, 16, 17, 24, 25 is the first), of whose eight the even ones come first; then
    64 elements of one channel follow those of the one before, and four neighbours make a word.
    """
    n, k = codes.shape
    lots = codes.reshape(n, k // _CHUNK, 4, 4, 2).transpose(0, 1, 3, 4, 2).reshape(n // _CHANNELS, _CHANNELS, k // _STRIDE, _STRIDE)
    parts = lots.swapaxes(1, 2).reshape(n // _CHANNELS, k, 4).astype(np.uint16)
    words = parts[..., 0] | parts[..., 1] << 4 | parts[..., 2] << 8 | parts[..., 3] << 12
    return np.ascontiguousarray(words).view(np.int16)


def _separated(words: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """The inverse of `_interleaved`."""
    quarter, k = words.shape
    given = np.ascontiguousarray(words).view(np.uint16)
    parts = np.stack([given >> shift & MAX_CODE for shift in (0, 4, 8, 12)], axis=-1).astype(np.uint8)
    lots = parts.reshape(quarter, k // _STRIDE, _CHANNELS, _STRIDE).swapaxes(1, 2).reshape(quarter * _CHANNELS, k // _CHUNK, 4, 2, 4)
    return np.ascontiguousarray(lots.transpose(0, 1, 4, 2, 3)).reshape(quarter * _CHANNELS, k)


VERSIONS: Final[dict[str, type[AwqGemvTensors] | type[AwqGemvFastTensors]]] = {
    each.VERSION: each for each in (AwqGemvTensors, AwqGemvFastTensors)
}
"""By the configuration's `version`."""


def gemv_config(layer: AwqGemvTensors | AwqGemvFastTensors) -> dict[str, Any]:
    """The `quantization_config` of config.json that tells loaders how such a layer is packed."""
    return {"quant_method": "awq", "bits": 4, "group_size": layer.group, "zero_point": True, "version": layer.VERSION}


def read_gemv_checkpoint(path: str | Path, *, version: str, group: int) -> dict[str, AwqGemvTensors | AwqGemvFastTensors]:
    """The quantized layers of a safetensors file by name. `packing_awq_gptq.write_checkpoint` writes them.

    Args:
        path: of the file. Tensors of a type that NumPy lacks and tensors of layers that are not quantized are left alone.
        version: `"gemv"` or `"gemv_fast"`, as the configuration says.
        group: its `group_size`.

    Raises:
        OperandError: no such file; another version; a layer that lacks a tensor, or whose tensors do not fit each other.
        OperandTypeError: tensors of other types.
    """
    kind = row_named(VERSIONS, version, "version of AWQ checkpoints")
    layers: dict[str, AwqGemvTensors | AwqGemvFastTensors] = {}
    with opened(path) as file:
        names = set(file.keys())
        for name in sorted(each.removesuffix(".qweight") for each in names if each.endswith(".qweight")):
            missing = [f"{name}.{field}" for field in kind.FIELDS if f"{name}.{field}" not in names]
            if missing:
                raise OperandError(f"{path} has {name}.qweight without {', '.join(missing)}")
            try:
                layers[name] = kind(**tensors_of(file, {field: f"{name}.{field}" for field in kind.FIELDS}), group=group)
            except (OperandError, OperandTypeError) as error:
                raise type(error)(f"{path}: {name}: {error}") from None
    return layers
