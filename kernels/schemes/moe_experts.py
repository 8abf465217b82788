"""Experts in INT8, FP8 tiles, MXFP8, NVFP4 and others: the products of the other schemes, grouped by the tokens' experts.

A scheme of experts is a row: how activations and an expert's weights are quantized, what multiplies them, and how kernels store them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.layouts import pack_fp4, unpack_fp4
from mmabits.isa import FORMATS, OperandError, OperandTypeError, nearest
from mmabits.kernels.schemes import fp8_blockwise, mxfp6_mxfp4, mxfp8, nvfp4, w4a16, w8a8, w8a16
from mmabits.kernels.schemes.blocks import ColumnBlocks, RowBlocks
from mmabits.kernels.schemes.checks import Array, check_shape, checked
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.moe import Int4Experts, Routing, check_count

Floats = npt.NDArray[np.float32]
Arrays = dict[str, Array]
Indices = npt.NDArray[np.int64]

_BF16: Final = ml_dtypes.bfloat16


@dataclass(frozen=True, kw_only=True)
class ExpertScheme:
    """One way to store experts and to multiply by them."""

    name: str
    what: str
    activations: Callable[[Floats], Any]
    """(rows, K) float32 to a left operand."""
    weights: Callable[[Floats], Any]
    """(K, N) float32 to a right operand."""
    multiply: Callable[[Any, Any, Dots], Floats]
    """Both to (rows, N) float32."""
    rows: Callable[[Any, Indices], Any]
    """Some rows of a left operand."""
    kinds: tuple[type, type]
    """Classes of the operands."""
    stored: Callable[[Any], Arrays]
    """A left operand as kernels take it."""
    packed: Callable[[Sequence[Any]], Arrays]
    """Right operands as kernels take them, stacked: (experts, ...)."""
    unpacked: Callable[[Mapping[str, Array], int], Any]
    """The inverse, for one expert."""
    block: int = 1
    """K is a multiple of it."""


def _stacked(arrays: Sequence[Array]) -> Array:
    return np.stack([np.ascontiguousarray(array) for array in arrays])


# INT8 -----------------------------------------------------------------------------------------------------------------


def _int8(name: str = "w8a8") -> ExpertScheme:
    def unpacked(arrays: Mapping[str, Array], expert: int) -> w8a8.Int8Matrix:
        return w8a8.Int8Matrix(codes=np.ascontiguousarray(arrays["w"][expert].T), scales=arrays["w_scales"][expert], axis=1)

    return ExpertScheme(
        name=name, what="INT8 x INT8, a float32 scale for each token and output channel",
        activations=lambda values: w8a8.quantize_int8(values, axis=0), weights=lambda values: w8a8.quantize_int8(values, axis=1),
        multiply=lambda x, w, dots: w8a8.w8a8_matmul(x, w, arch=dots),
        rows=lambda x, rows: w8a8.Int8Matrix(codes=x.codes[rows], scales=x.scales[rows], axis=0),
        kinds=(w8a8.Int8Matrix, w8a8.Int8Matrix), stored=lambda x: {"x": x.codes, "x_scales": x.scales},
        packed=lambda each: {"w": _stacked([w.codes.T for w in each]), "w_scales": _stacked([w.scales for w in each])},
        unpacked=unpacked,
    )  # fmt: skip


def _w8a16(kind: str, group: int) -> ExpertScheme:
    def unpacked(arrays: Mapping[str, Array], expert: int) -> w8a16.Weights8:
        return w8a16.Weights8(
            codes=w8a16.unpack_codes(arrays["words"][expert], kind), scales=arrays["scales"][expert], group=group
        )  # fmt: skip

    return ExpertScheme(
        name=f"w8a16-{kind}{'-groups' if group else ''}",
        what=f"bf16 (or f16) x {kind}, f16 scales for {f'{group} of K' if group else 'output channels'}",
        activations=lambda values: values.astype(_BF16), weights=lambda values: w8a16.quantize_w8(values, kind=kind, group=group),
        multiply=lambda x, w, dots: w8a16.w8a16_matmul(x, w, arch=dots), rows=lambda x, rows: x[rows],
        kinds=(np.ndarray, w8a16.Weights8), stored=lambda x: {"x": x},
        packed=lambda each: {"words": _stacked([w.pack() for w in each]), "scales": _stacked([w.scales for w in each])},
        unpacked=unpacked, block=group or 4,
    )  # fmt: skip


# FP8 and block scales -------------------------------------------------------------------------------------------------


def _fp8_tiles(recipe: str, *, in_turn: bool = False) -> ExpertScheme:
    block = fp8_blockwise.BLOCK

    def unpacked(arrays: Mapping[str, Array], expert: int) -> fp8_blockwise.TiledFp8:
        elements, scales = (np.ascontiguousarray(arrays[name][expert].T) for name in ("w", "w_scales"))
        return fp8_blockwise.TiledFp8(elements=elements, scales=scales, tile=(block, block))

    return ExpertScheme(
        name=f"fp8-tiles{'' if recipe == 'divide' else f'-{recipe}'}{'-in-turn' if in_turn else ''}",
        what=f"e4m3 x e4m3, float32 scales ({recipe}) for 1 x 128 of activations and 128 x 128 of weights, promoted every 128"
        f"{', one scale after the other as in vLLM' if in_turn else ''}",
        activations=lambda values: fp8_blockwise.quantize_activations(values, recipe=recipe),
        weights=lambda values: fp8_blockwise.quantize_weights(values, recipe=recipe),
        multiply=lambda x, w, dots: fp8_blockwise.fp8_blockwise_matmul(x, w, arch=dots, in_turn=in_turn),
        rows=lambda x, rows: replace(x, elements=x.elements[rows], scales=x.scales[rows]),
        kinds=(fp8_blockwise.TiledFp8, fp8_blockwise.TiledFp8), stored=lambda x: {"x": x.elements, "x_scales": x.scales},
        packed=lambda each: {"w": _stacked([w.elements.T for w in each]), "w_scales": _stacked([w.scales.T for w in each])},
        unpacked=unpacked, block=block,
    )  # fmt: skip


def _bytes(scales: Array) -> Array:
    """ue8m0 as Triton takes them."""
    return scales.view(np.uint8) if scales.dtype == ml_dtypes.float8_e8m0fnu else scales


def _block_rows(x: RowBlocks, rows: Indices) -> RowBlocks:
    return replace(x, elements=x.elements[rows], scales=x.block_scales[rows])


def _mxfp8() -> ExpertScheme:
    def unpacked(arrays: Mapping[str, Array], expert: int) -> ColumnBlocks:
        return ColumnBlocks(
            scheme="mx-e4m3-floor", element=FORMATS["e4m3"], block=32, axis=0, elements=np.ascontiguousarray(arrays["w"][expert].T),
            scale=FORMATS["ue8m0"], scales=np.ascontiguousarray(arrays["w_scales"][expert].T).view(ml_dtypes.float8_e8m0fnu),
            tensor_scale=np.float32(1),
        )  # fmt: skip

    return ExpertScheme(
        name="mxfp8", what="e4m3 x e4m3, ue8m0 scales for 32 of K",
        activations=lambda values: mxfp8.quantize_rows(values), weights=lambda values: mxfp8.quantize_columns(values),
        multiply=lambda x, w, dots: mxfp8.mxfp8_matmul(x, w, arch=dots), rows=_block_rows, kinds=(RowBlocks, ColumnBlocks),
        stored=lambda x: {"x": x.elements, "x_scales": _bytes(x.block_scales)},
        packed=lambda each: {
            "w": _stacked([w.elements.T for w in each]), "w_scales": _stacked([_bytes(w.block_scales.T) for w in each])
        },
        unpacked=unpacked, block=32,
    )  # fmt: skip


def _nvfp4() -> ExpertScheme:
    def unpacked(arrays: Mapping[str, Array], expert: int) -> ColumnBlocks:
        elements, scales = np.asarray(unpack_fp4(arrays["w"][expert])), arrays["w_scales"][expert]
        return ColumnBlocks(
            scheme="nvfp4", element=FORMATS["e2m1"], block=16, axis=0, elements=np.ascontiguousarray(elements.T), scale=FORMATS["ue4m3"],
            scales=np.ascontiguousarray(scales.T), tensor_scale=arrays["w_tensor_scales"][expert],
        )  # fmt: skip

    return ExpertScheme(
        name="nvfp4", what="e2m1 x e2m1, e4m3 scales for 16 of K, a float32 scale for all activations and for each expert",
        activations=lambda values: nvfp4.quantize_rows(values), weights=lambda values: nvfp4.quantize_columns(values),
        multiply=lambda x, w, dots: nvfp4.nvfp4_matmul(x, w, arch=dots), rows=_block_rows, kinds=(RowBlocks, ColumnBlocks),
        stored=lambda x: {
            "x": np.asarray(pack_fp4(x.elements)), "x_scales": x.block_scales, "x_tensor_scale": np.full(1, x.tensor_scale, np.float32)
        },
        packed=lambda each: {
            "w": _stacked([np.asarray(pack_fp4(np.ascontiguousarray(w.elements.T))) for w in each]),
            "w_scales": _stacked([w.block_scales.T for w in each]),
            "w_tensor_scales": np.array([w.tensor_scale for w in each], np.float32),
        },
        unpacked=unpacked, block=16,
    )  # fmt: skip


# Wider activations ----------------------------------------------------------------------------------------------------


def _w4a16() -> ExpertScheme:
    def packed(each: Sequence[w4a16.Int4Weights]) -> Arrays:
        found = Int4Experts.pack(each)
        return {"qweight": found.qweight, "qzeros": found.qzeros, "scales": found.scales}

    def unpacked(arrays: Mapping[str, Array], expert: int) -> w4a16.Int4Weights:
        one = {name: arrays[name][expert : expert + 1] for name in ("qweight", "qzeros", "scales")}
        return Int4Experts(**one).unpack()[0]

    return ExpertScheme(
        name="w4a16", what="bf16 (or f16) x INT4, f16 scales and zero points for 128 of K",
        activations=lambda values: values.astype(_BF16), weights=w4a16.quantize_int4,
        multiply=lambda x, w, dots: w4a16.w4a16_matmul(x, w, arch=dots), rows=lambda x, rows: x[rows],
        kinds=(np.ndarray, w4a16.Int4Weights), stored=lambda x: {"x": x}, packed=packed, unpacked=unpacked, block=w4a16.GROUP,
    )  # fmt: skip


def _times_mxfp4(x: Array, w: ColumnBlocks, dots: Dots) -> Floats:
    """The weights in bf16, exactly: no instruction takes bf16 with e2m1."""
    values = checked(x, "activations", (_BF16,), 2)
    scales = np.repeat(w.block_scales.astype(np.float32), w.block or 1, axis=0)
    return np.asarray(dots(np.ascontiguousarray(values), (w.elements.astype(np.float32) * scales).astype(_BF16)))


def _mxfp4() -> ExpertScheme:
    def unpacked(arrays: Mapping[str, Array], expert: int) -> ColumnBlocks:
        elements = np.ascontiguousarray(np.asarray(unpack_fp4(arrays["codes"][expert])).T)
        return ColumnBlocks(
            scheme="mx-e2m1-floor", element=FORMATS["e2m1"], block=32, axis=0, elements=elements, scale=FORMATS["ue8m0"],
            scales=np.ascontiguousarray(arrays["scales"][expert].T).view(ml_dtypes.float8_e8m0fnu), tensor_scale=np.float32(1),
        )  # fmt: skip

    return ExpertScheme(
        name="mxfp4", what="bf16 x e2m1, ue8m0 scales for 32 of K",
        activations=lambda values: values.astype(_BF16), weights=lambda values: mxfp6_mxfp4.quantize_columns(values),
        multiply=_times_mxfp4, rows=lambda x, rows: x[rows], kinds=(np.ndarray, ColumnBlocks), stored=lambda x: {"x": x},
        packed=lambda each: {
            "codes": _stacked([np.asarray(pack_fp4(np.ascontiguousarray(w.elements.T))) for w in each]),
            "scales": _stacked([_bytes(w.block_scales.T) for w in each]),
        },
        unpacked=unpacked, block=32,
    )  # fmt: skip


EXPERTS: Final[dict[str, ExpertScheme]] = {
    row.name: row
    for row in (
        _int8(), *(_w8a16(kind, group) for kind in w8a16.KINDS for group in (0, w8a16.GROUP)), _fp8_tiles("divide"),
        _fp8_tiles("divide", in_turn=True), _fp8_tiles("power-of-two"), _mxfp8(), _nvfp4(), _w4a16(), _mxfp4(),
    )
}  # fmt: skip
"""The schemes of experts, by their names."""


_ELSEWHERE: Final = {"int8": "w8a8 or w8a16-int8", "int4": "w4a16", "fp8": "fp8-tiles"}
"""Names of caches and of calibration, and what is like them here."""


def expert_scheme(name: str | ExpertScheme) -> ExpertScheme:
    """The scheme of that name.

    Raises:
        OperandTypeError, OperandError: there is none.
    """
    if isinstance(name, ExpertScheme):
        return name
    if not isinstance(name, str):
        raise OperandTypeError(f"a scheme of experts is an ExpertScheme or its name, got {type(name).__name__}")
    if name not in EXPERTS:
        meant = f"; did you mean {_ELSEWHERE[name]}?" if name in _ELSEWHERE else nearest(str(name), EXPERTS)
        raise OperandError(f"unknown scheme of experts {name!r}{meant}; known: {', '.join(EXPERTS)}")
    return EXPERTS[name]


def _elements(matrix: Any) -> Array:
    found: Array = next((getattr(matrix, name) for name in ("elements", "codes") if hasattr(matrix, name)), matrix)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Experts:
    """Quantized weights of experts, all of one shape.

    Raises:
        OperandTypeError, OperandError: none, other matrices than the scheme's, several shapes.
    """

    scheme: ExpertScheme
    matrices: tuple[Any, ...]
    """A right operand for each expert."""

    def __post_init__(self) -> None:
        """Check."""
        for matrix in self.matrices:
            if not isinstance(matrix, self.scheme.kinds[1]):
                raise OperandTypeError(f"experts in {self.scheme.name} are {self.scheme.kinds[1].__name__}, got {type(matrix).__name__}")
        shapes = sorted({_elements(matrix).shape for matrix in self.matrices})
        if len(shapes) != 1:
            raise OperandError(f"experts must have one shape, got {shapes or 'none'}")

    @property
    def shape(self) -> tuple[int, int]:
        """K and N of each."""
        k, n = _elements(self.matrices[0]).shape
        return k, n

    def pack(self) -> Arrays:
        """As kernels take them, by the names of the launcher's parameters: (experts, ...) each."""
        return self.scheme.packed(self.matrices)

    @classmethod
    def unpack(cls, arrays: Mapping[str, Array], scheme: str | ExpertScheme) -> Experts:
        """The inverse of `pack`.

        Raises:
            OperandTypeError, OperandError: arrays that are not such.
        """
        row = expert_scheme(scheme)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or not array.ndim:
                raise OperandTypeError(f"{name} must be a NumPy array with a dimension of experts, got {type(array).__name__}")
        wanted = {name: len(array) for name, array in arrays.items()}
        if len(set(wanted.values())) != 1:
            raise OperandError(f"arrays of one number of experts are needed, got {wanted}")
        try:
            return cls(scheme=row, matrices=tuple(row.unpacked(arrays, expert) for expert in range(next(iter(wanted.values())))))
        except KeyError as missing:
            raise OperandError(f"experts in {row.name} have an array {missing}, got {', '.join(arrays)}") from None


def quantize_experts(weights: Array, scheme: str | ExpertScheme) -> Experts:
    """Experts by a scheme, each by itself.

    Args:
        weights: (experts, K, N) float32.
        scheme: one of `EXPERTS`.

    Raises:
        OperandTypeError, OperandError: something else; as the scheme's own quantizer.
    """
    row, given = expert_scheme(scheme), checked(weights, "weights", (np.float32,), 3)
    return Experts(scheme=row, matrices=tuple(row.weights(np.ascontiguousarray(each)) for each in given))


# Compositions ---------------------------------------------------------------------------------------------------------


def moe_rows(x: Any, experts: Experts, routing: Routing, *, arch: str | Dots, by_choice: bool = False) -> Floats:
    """The rows of the tokens' products with their experts, not weighted yet.

    Args:
        x: a left operand of the scheme, a row for each token.
        experts: weights.
        routing: as many experts.
        arch: architecture, or its dots.
        by_choice: x has a row for each choice, that of token t and place p being t * top_k + p: the second product of a layer.

    Returns:
        (tokens, top_k, N) float32.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    row, dots = experts.scheme, as_dots(arch)
    if not isinstance(x, row.kinds[0]):
        raise OperandTypeError(f"activations in {row.name} must be {row.kinds[0].__name__}, got {type(x).__name__}")
    check_count(routing, len(experts.matrices))
    (tokens, top_k), (k, n) = routing.experts.shape, experts.shape
    check_shape(_elements(x), "activations", (tokens * top_k if by_choice else tokens, k))
    found = np.zeros((tokens * top_k, n), np.float32)
    for expert in np.unique(routing.experts):
        own = routing.choices_of(int(expert))
        if not own.size:
            continue
        found[own] = row.multiply(row.rows(x, own if by_choice else own // top_k), experts.matrices[int(expert)], dots)
    return found.reshape(tokens, top_k, n)


def weighted_rows(rows: Floats, routing: Routing) -> Floats:
    """Rows times their routing weights, float32, each rounded once; +0 where no expert took a choice."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found = np.asarray(rows * routing.weights[:, :, None])
    if routing.kept is not None:
        found[~routing.kept] = 0
    return found


def added_by_place(rows: Floats) -> Floats:
    """(tokens, N): the rows of each token added in the order of its choices, float32, each sum rounded once."""
    total: Floats = rows[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):
        for place in range(1, rows.shape[1]):
            total = total + rows[:, place]
    return total


def moe_matmul(x: Any, experts: Experts, routing: Routing, *, arch: str | Dots) -> Floats:
    """A grouped product: each token's rows, weighted and added in the order of its choices.

    The bits of `mmabits.kernels.triton.moe_experts` and, for W4A16 and MXFP4, of `mmabits.kernels.triton.moe`.

    Args:
        x: (tokens, K), a left operand of the scheme.
        experts: weights.
        routing: as many experts.
        arch: architecture, or its dots.

    Returns:
        (tokens, N) float32.

    Raises:
        MmabitsError: as `moe_rows`.
    """
    return added_by_place(weighted_rows(moe_rows(x, experts, routing, arch=arch), routing))


__all__ = [
    "EXPERTS",
    "ExpertScheme",
    "Experts",
    "added_by_place",
    "expert_scheme",
    "moe_matmul",
    "moe_rows",
    "quantize_experts",
    "weighted_rows",
]
