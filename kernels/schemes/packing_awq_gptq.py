"""INT4 weights as AutoAWQ and AutoGPTQ checkpoints hold them: int32 words of eight, in safetensors files.

AWQ (the `gemm` version): words along N, nibble i of a word holding column 8 j + (0, 2, 4, 6, 1, 3, 5, 7)[i], of weights and of zeros.
GPTQ: words of weights along K and of zeros along N, both in ascending order; zeros are stored minus one unless the checkpoint says
`gptq_v2`; `g_idx` names the group of each element of K.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_range, check_shape, checked
from mmabits.kernels.schemes.w4a16 import GROUP, MAX_CODE, Int4Weights
from mmabits.reports.written import written_whole

WORD: Final = 8
"""Codes in an int32 word."""
AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns the nibbles of an AWQ word hold, from the lowest."""
ASCENDING: Final = tuple(range(WORD))

Words = npt.NDArray[np.int32]


def pack_words(codes: Array, *, axis: int, order: tuple[int, ...] = ASCENDING) -> Words:
    """Eight codes of four bits to an int32 word.

    Args:
        codes: integers 0 to 15, a length along `axis` that is a multiple of 8.
        axis: along which eight neighbours share a word.
        order: the neighbour that each nibble holds, from the lowest nibble.

    Raises:
        OperandTypeError: no integers.
        OperandError: a length that is no multiple of 8, another axis or order, a code below 0 or above 15.
    """
    if not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu":
        raise OperandTypeError(f"codes must be a NumPy array of integers, got {getattr(codes, 'dtype', type(codes).__name__)}")
    _check_packing(codes, axis, order)
    check_multiple(codes.shape[axis], WORD, f"the length along axis {axis}", "the codes of a word,")
    check_range(codes, "codes of four bits", 0, MAX_CODE)
    last = np.moveaxis(codes, axis, -1)
    eights = last.reshape(*last.shape[:-1], last.shape[-1] // WORD, WORD).astype(np.uint32)[..., list(order)]
    shifts = np.arange(0, 4 * WORD, 4, dtype=np.uint32)
    words = np.bitwise_or.reduce(eights << shifts, axis=-1).astype(np.uint32)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


def unpack_words(words: Words, *, axis: int, order: tuple[int, ...] = ASCENDING) -> npt.NDArray[np.uint8]:
    """The inverse of `pack_words`.

    Raises:
        OperandTypeError: another dtype than int32.
        OperandError: another axis or order.
    """
    _check_packing(checked(words, "words", (np.int32,)), axis, order)
    last = np.ascontiguousarray(np.moveaxis(words, axis, -1)).view(np.uint32)
    nibbles = (last[..., None] >> np.arange(0, 4 * WORD, 4, dtype=np.uint32)) & np.uint32(MAX_CODE)
    eights = np.empty(nibbles.shape, np.uint8)
    eights[..., list(order)] = nibbles
    flat = eights.reshape(*last.shape[:-1], last.shape[-1] * WORD)
    return np.ascontiguousarray(np.moveaxis(flat, -1, axis))


def _check_packing(array: Array, axis: int, order: tuple[int, ...]) -> None:
    if not -array.ndim <= axis < array.ndim:
        raise OperandError(f"axis {axis} is outside an array of {array.ndim} dimensions")
    if sorted(order) != list(ASCENDING):
        raise OperandError(f"order must be a permutation of 0 to {WORD - 1}, got {order}")


def _group_size(k: int, scales: Array) -> int:
    """Elements of K with one scale; the usual number where there is no K."""
    return k // scales.shape[0] if scales.shape[0] else GROUP


def checked_for_awq(weights: Int4Weights) -> None:
    """Refuse what AWQ has no place for.

    Raises:
        OperandError: a zero point of 16, groups out of order.
    """
    if weights.zeros.max(initial=0) > MAX_CODE:
        raise OperandError(f"AWQ holds zero points 0 to {MAX_CODE}, got {weights.zeros.max()}")
    if weights.g_idx is not None and not np.array_equal(weights.g_idx, np.arange(weights.shape[0]) // weights.group):
        raise OperandError("AWQ has groups of neighbours only, got a g_idx of another order")


class PackedLayer(Protocol):
    """Tensors of a layer as a checkpoint names them."""

    FIELDS: ClassVar[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class AwqTensors:
    """The tensors of one layer of an AWQ checkpoint.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, scales that are not finite.
    """

    qweight: Words
    """(K, N / 8)."""
    qzeros: Words
    """(K / group, N / 8)."""
    scales: npt.NDArray[np.float16]
    """(K / group, N)."""

    FIELDS: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")

    def __post_init__(self) -> None:
        """Check."""
        checked(self.qweight, "qweight", (np.int32,), 2)
        checked(self.qzeros, "qzeros", (np.int32,), 2)
        checked(self.scales, "scales", (np.float16,), 2)
        (k, words), groups = self.qweight.shape, self.scales.shape[0]
        check_shape(self.scales, "scales", (groups, words * WORD))
        check_shape(self.qzeros, "qzeros", (groups, words))
        if k:
            check_multiple(k, groups, "K of qweight", "the number of groups")
        check_finite(self.scales, "scales")

    @classmethod
    def pack(cls, weights: Int4Weights) -> AwqTensors:
        """From plain codes.

        Raises:
            OperandError: N is no multiple of 8; a zero point of 16 or groups out of order, for which AWQ has no place.
        """
        checked_for_awq(weights)
        return cls(
            qweight=pack_words(weights.codes, axis=1, order=AWQ_ORDER), qzeros=pack_words(weights.zeros, axis=1, order=AWQ_ORDER),
            scales=weights.scales,
        )  # fmt: skip

    def unpack(self) -> Int4Weights:
        """To plain codes."""
        return Int4Weights(
            codes=unpack_words(self.qweight, axis=1, order=AWQ_ORDER), zeros=unpack_words(self.qzeros, axis=1, order=AWQ_ORDER),
            scales=self.scales, group=_group_size(self.qweight.shape[0], self.scales),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class GptqTensors:
    """The tensors of one layer of a GPTQ checkpoint.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, groups in `g_idx` that are not there, scales that are not finite.
    """

    qweight: Words
    """(K / 8, N)."""
    qzeros: Words
    """(K / group, N / 8)."""
    scales: npt.NDArray[np.float16]
    """(K / group, N)."""
    g_idx: npt.NDArray[np.int32]
    """(K,) groups, 0 to K / group - 1."""
    zeros_minus_one: bool = True
    """Whether `qzeros` holds zero points minus one (`gptq`) or as they are (`gptq_v2`)."""

    FIELDS: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")

    def __post_init__(self) -> None:
        """Check."""
        checked(self.qweight, "qweight", (np.int32,), 2)
        checked(self.qzeros, "qzeros", (np.int32,), 2)
        checked(self.scales, "scales", (np.float16,), 2)
        checked(self.g_idx, "g_idx", (np.int32,), 1)
        (words, n), groups = self.qweight.shape, self.scales.shape[0]
        check_multiple(n, WORD, "N of qweight", "the codes of a word,")
        check_shape(self.scales, "scales", (groups, n))
        check_shape(self.qzeros, "qzeros", (groups, n // WORD))
        check_shape(self.g_idx, "g_idx", (words * WORD,))
        if words:
            check_multiple(words * WORD, groups, "K of qweight", "the number of groups")
        check_range(self.g_idx, "groups of g_idx", 0, groups - 1)
        check_finite(self.scales, "scales")

    @classmethod
    def pack(cls, weights: Int4Weights, *, zeros_minus_one: bool = True) -> GptqTensors:
        """From plain codes.

        Args:
            weights: K and N multiples of 8.
            zeros_minus_one: as the field.

        Raises:
            OperandError: a zero point that the format cannot hold: it has 1 to 16, or 0 to 15 as `gptq_v2`.
        """
        low = 1 if zeros_minus_one else 0
        least, most = weights.zeros.min(initial=low), weights.zeros.max(initial=low)
        if least < low or most > low + MAX_CODE:
            raise OperandError(f"the GPTQ format holds zero points {low} to {low + MAX_CODE}, got {least} to {most}")
        return cls(
            qweight=pack_words(weights.codes, axis=0), qzeros=pack_words(weights.zeros - np.uint8(low), axis=1), scales=weights.scales,
            g_idx=weights.groups, zeros_minus_one=zeros_minus_one,
        )  # fmt: skip

    def unpack(self) -> Int4Weights:
        """To plain codes; a stored zero of 15 counts as 16 where one is added, as kernels that do not mask the sum have it."""
        zeros = unpack_words(self.qzeros, axis=1) + np.uint8(self.zeros_minus_one)
        return Int4Weights(
            codes=unpack_words(self.qweight, axis=0), zeros=zeros, scales=self.scales, g_idx=self.g_idx,
            group=_group_size(self.g_idx.size, self.scales),
        )  # fmt: skip

    def as_version(self, *, zeros_minus_one: bool) -> GptqTensors:
        """The same weights as the other version stores them.

        Raises:
            OperandError: a zero point that it cannot hold: 0 in `gptq`, 16 in `gptq_v2`.
        """
        return GptqTensors.pack(self.unpack(), zeros_minus_one=zeros_minus_one)

    @property
    def doubt(self) -> str:
        """Why the zeros may have been read as those of the other version; empty: there is no sign of it.

        Symmetric weights have the zero point 8 throughout. Where all are 7 or 9 instead, they were one off when they were read.
        """
        zeros = unpack_words(self.qzeros, axis=1).astype(np.int64) + self.zeros_minus_one
        for wrong, other in ((9, "gptq_v2, which stores zeros as they are"), (7, "gptq, which stores zeros minus one")):
            if zeros.size and (zeros == wrong).all() and (wrong == 9) == self.zeros_minus_one:
                return f"all zero points are {wrong}; symmetric weights have 8, so that the file may be of {other}"
        return ""


def write_checkpoint(path: str | Path, layers: Mapping[str, PackedLayer]) -> None:
    """A safetensors file with the names that AutoAWQ and AutoGPTQ use: `<layer>.qweight`, `<layer>.qzeros`, ...

    Layers are `AwqTensors`, `GptqTensors`, or those of `packing_awq_gemv`. What safetensors has no place for, the method, `version` and
    `checkpoint_format`, stands in a checkpoint's config.json: see `quantization_config` and `gemv_config`.

    Raises:
        OperandTypeError: layers of another kind.
        OperandError: the file cannot be written; nothing half-written is left.
    """
    from safetensors.numpy import save

    if not isinstance(layers, Mapping):
        raise OperandTypeError(f"layers must be a mapping of names to layers, got {type(layers).__name__}")
    for name, layer in layers.items():
        if not isinstance(getattr(layer, "FIELDS", None), tuple):
            raise OperandTypeError(
                f"layer {name!r} must be AwqTensors, GptqTensors or those of packing_awq_gemv, got {type(layer).__name__}"
            )
    tensors = {f"{name}.{field}": np.ascontiguousarray(getattr(layer, field)) for name, layer in layers.items() for field in layer.FIELDS}
    try:
        with written_whole(Path(path)) as partial:
            partial.write_bytes(save(tensors, metadata={"format": "pt"}))
    except OSError as error:
        raise OperandError(f"{path} cannot be written ({error.strerror or error})") from error


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A safetensors file, open: its `keys()` and `get_tensor(name)`.

    Raises:
        OperandError: no such file, or no such content.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb"), safe_open(str(path), framework="numpy") as file:
            yield file
    except OSError as error:
        raise OperandError(f"{path} cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise OperandError(f"{path} is no safetensors file: {error}") from error


def tensors_of(file: Any, names: Mapping[str, str]) -> dict[str, Array]:
    """Tensors of an open file, by the fields that they go to.

    Raises:
        OperandTypeError: a type that NumPy lacks.
    """
    found = {}
    for field, name in names.items():
        try:
            found[field] = file.get_tensor(name)
        except (AttributeError, KeyError, TypeError) as error:  # safetensors looks for a type of that name in NumPy
            raise OperandTypeError(f"{field} is {file.get_slice(name).get_dtype()}, for which NumPy has no type") from error
    return found


def quantization_config(layer: AwqTensors | GptqTensors) -> dict[str, Any]:
    """The `quantization_config` of config.json that tells loaders how such a layer is packed."""
    if isinstance(layer, AwqTensors):
        group = _group_size(layer.qweight.shape[0], layer.scales)
        return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    group = _group_size(layer.g_idx.size, layer.scales)
    in_order = np.array_equal(layer.g_idx, np.arange(layer.g_idx.size) // group)
    return {
        "quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": not in_order, "sym": False,
        "checkpoint_format": "gptq" if layer.zeros_minus_one else "gptq_v2",
    }  # fmt: skip


def read_checkpoint(path: str | Path, *, zeros_minus_one: bool = True) -> dict[str, AwqTensors | GptqTensors]:
    """The quantized layers of a safetensors file by name; a layer with a `g_idx` is GPTQ's, one without is AWQ's, version `gemm`.

    Other versions of AWQ are read by `packing_awq_gemv.read_gemv_checkpoint`.

    Args:
        path: of the file. Tensors of a type that NumPy lacks and tensors of layers that are not quantized are left alone.
        zeros_minus_one: how GPTQ zeros are stored: False where config.json has `"checkpoint_format": "gptq_v2"`. A warning says where
            they look like those of the other version.

    Raises:
        OperandError: no such file; a layer with a `qweight` that lacks another of its tensors, or whose tensors do not fit each other.
        OperandTypeError: tensors of other types.
    """
    layers: dict[str, AwqTensors | GptqTensors] = {}
    with opened(path) as file:
        names = set(file.keys())
        for name in sorted(each.removesuffix(".qweight") for each in names if each.endswith(".qweight")):
            is_gptq = f"{name}.g_idx" in names
            fields = (GptqTensors if is_gptq else AwqTensors).FIELDS
            missing = [f"{name}.{field}" for field in fields if f"{name}.{field}" not in names]
            if missing:
                raise OperandError(f"{path} has {name}.qweight without {', '.join(missing)}")
            try:
                tensors = tensors_of(file, {field: f"{name}.{field}" for field in fields})
                layer = GptqTensors(**tensors, zeros_minus_one=zeros_minus_one) if is_gptq else AwqTensors(**tensors)
            except (OperandError, OperandTypeError) as error:
                raise type(error)(f"{path}: {name}: {error}") from None
            layers[name] = layer
            if isinstance(layer, GptqTensors) and layer.doubt:
                warnings.warn(f"{path}: {name}: {layer.doubt}", stacklevel=2)
    return layers
