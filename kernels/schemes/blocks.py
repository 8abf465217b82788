"""Block-scaled matrices as operands: which side of a product a matrix can be on is in its type.

A left operand has its blocks along rows, a right one along columns. Neither can be made of the other, so a matrix that is used both ways,
as in training, is quantized both ways from the source (`Both`); what is free is the transpose, which turns row blocks into column blocks.
Quantizers take float32 only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import numpy_dtype
from mmabits.isa import OperandError, OperandTypeError, UnsupportedInstruction, library_instruction, nearest
from mmabits.kernels.quantize import Quantized
from mmabits.kernels.schemes.dots import Dots, as_dots

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

WAYS = ("block-scaled", "bf16", "e4m3")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Blocks(Quantized):
    """A block-scaled matrix."""

    def __post_init__(self) -> None:
        """Check.

        Raises:
            OperandTypeError, OperandError: parts that do not fit each other.
        """
        place = self._place()
        if self.elements.ndim != 2 or self.axis % 2 != place:
            raise OperandError(
                f"{type(self).__name__} is a matrix with blocks along axis {place}, got shape {self.elements.shape}, axis {self.axis}"
            )
        if self.scale is None or self.scales is None or self.block is None:
            raise OperandError(f"{type(self).__name__} of {self.element.name} has block scales, got none")
        if self.elements.dtype != numpy_dtype(self.element) or self.scales.dtype != numpy_dtype(self.scale):
            raise OperandTypeError(
                f"elements and scales must be {self.element.name} and {self.scale.name}, got {self.elements.dtype} and {self.scales.dtype}"
            )
        wanted = list(self.elements.shape)
        if wanted[place] % self.block:
            raise OperandError(f"K must be a multiple of the block size {self.block}, got {wanted[place]}")
        wanted[place] //= self.block
        if self.scales.shape != tuple(wanted):
            raise OperandError(f"scales must have shape {tuple(wanted)}, got {self.scales.shape}")

    @staticmethod
    def _place() -> int:
        raise NotImplementedError

    @classmethod
    def of(cls, quantized: Quantized) -> Self:
        """A quantized matrix as an operand.

        Raises:
            OperandTypeError, OperandError: its blocks lie the other way, or it has none.
        """
        if not isinstance(quantized, Quantized):
            raise OperandTypeError(f"an operand is made of a Quantized, got {type(quantized).__name__}")
        return cls(**{field.name: getattr(quantized, field.name) for field in fields(Quantized)})

    @property
    def block_scales(self) -> Array:
        """The block scales; there always are."""
        if self.scales is None:
            raise OperandError(f"{type(self).__name__} has no block scales")
        return self.scales

    def _transposed(self) -> dict[str, Any]:
        parts = {field.name: getattr(self, field.name) for field in fields(Quantized)}
        flipped = {"elements": np.ascontiguousarray(self.elements.T), "scales": np.ascontiguousarray(self.block_scales.T)}
        return {**parts, **flipped, "axis": 1 - self.axis % 2}


@dataclass(frozen=True, kw_only=True, eq=False)
class RowBlocks(_Blocks):
    """A left operand, (M, K): blocks along rows, scales (M, K / block)."""

    @staticmethod
    def _place() -> int:
        return 1

    @property
    def T(self) -> ColumnBlocks:  # noqa: N802 - as NumPy calls it
        """The transpose, a right operand; its bits are those of the matrix."""
        return ColumnBlocks(**self._transposed())


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnBlocks(_Blocks):
    """A right operand, (K, N): blocks along columns, scales (K / block, N)."""

    @staticmethod
    def _place() -> int:
        return 0

    @property
    def T(self) -> RowBlocks:  # noqa: N802 - as NumPy calls it
        """The transpose, a left operand; its bits are those of the matrix."""
        return RowBlocks(**self._transposed())


@dataclass(frozen=True, kw_only=True, eq=False)
class Both:
    """A matrix quantized along rows and along columns, each from the same float32 source."""

    rows: RowBlocks
    columns: ColumnBlocks

    def __post_init__(self) -> None:
        """Check.

        Raises:
            OperandTypeError, OperandError: not a pair of copies of one matrix.
        """
        if not isinstance(self.rows, RowBlocks) or not isinstance(self.columns, ColumnBlocks):
            raise OperandTypeError(
                f"Both takes RowBlocks and ColumnBlocks, got {type(self.rows).__name__} and {type(self.columns).__name__}"
            )
        if self.rows.elements.shape != self.columns.elements.shape:
            raise OperandError(f"rows and columns must have one shape, got {self.rows.elements.shape} and {self.columns.elements.shape}")


def block_scaled_matmul(a: RowBlocks, b: ColumnBlocks, *, arch: str | Dots, through: str | None = None) -> Floats:
    """A B of block-scaled operands, tensor scales left aside: one chain of instructions over K.

    Args:
        a: (M, K).
        b: (K, N).
        arch: architecture, or its dots. Their `instruction` and `k_order` are those of the product that is done in the end.
        through: `"block-scaled"`: the instruction that takes block scales; `"bf16"`: elements times scales in bf16, one rounding, and
            bf16 instructions, as Triton does it where there are none; `"e4m3"`: elements as e4m3, which holds those of the 6-bit
            formats, into block-scaled instructions; None: block-scaled where the architecture has it, else bf16.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: operands that do not fit.
        UnsupportedInstruction: `"block-scaled"` or `"e4m3"` where there is no such instruction.
        MmabitsError: as `mmabits.gemm`.
    """
    check_operands(a, b)
    if through is not None and through not in WAYS:
        raise OperandError(f"unknown way {through!r}{nearest(str(through), WAYS)}; known: {', '.join(WAYS)}")
    dots = as_dots(arch)
    if through is None:
        through = "block-scaled" if has_block_scaling(a, b, dots.arch) else "bf16"
    if through == "bf16":
        return np.asarray(dots(_in_bf16(a), _in_bf16(b)))
    left, right = a.elements, b.elements
    if through == "e4m3":
        left, right = (each.astype(ml_dtypes.float8_e4m3fn) for each in (left, right))
    return np.asarray(dots(left, right, scale_a=a.block_scales, scale_b=b.block_scales))


def has_block_scaling(a: RowBlocks, b: ColumnBlocks, arch: str) -> bool:
    """Whether an architecture has a block-scaled instruction for two operands."""
    try:
        library_instruction(arch, a.element.name, b.element.name, scale_type=_scale_name(a))
    except UnsupportedInstruction:
        return False
    return True


def check_operands(a: RowBlocks, b: ColumnBlocks) -> None:
    """Refuse what is not a left and a right operand of one product.

    Raises:
        OperandTypeError, OperandError: they are none.
    """
    if not isinstance(a, RowBlocks):
        raise OperandTypeError(f"a must be RowBlocks (scales along the rows of A), got {type(a).__name__}")
    if not isinstance(b, ColumnBlocks):
        raise OperandTypeError(f"b must be ColumnBlocks (scales along the columns of B), got {type(b).__name__}")
    if a.elements.shape[1] != b.elements.shape[0]:
        raise OperandError(f"a has K = {a.elements.shape[1]} and b has K = {b.elements.shape[0]}; they must agree")
    if (_scale_name(a), a.block) != (_scale_name(b), b.block):
        raise OperandError(f"a has {_scale_name(a)} scales for {a.block} elements and b {_scale_name(b)} for {b.block}; they must agree")


def _scale_name(operand: _Blocks) -> str:
    return operand.scale.name if operand.scale is not None else ""


def _in_bf16(operand: _Blocks) -> Array:
    steps = operand.block_scales.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        products = operand.elements.astype(np.float32) * np.repeat(steps, operand.block or 1, axis=operand.axis)
        return products.astype(ml_dtypes.bfloat16)
