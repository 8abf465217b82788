"""What XLA is taken to make of a matrix product on a GPU: from its source and JAX's documentation, as rows.

XLA hands products to cuBLASLt (or to kernels of Triton's, after timing them), whose kernels are not documented. What is: the type
the operands are multiplied as, the accumulator, and whether fp8 is accumulated fast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import ml_dtypes
import numpy as np
from jax import lax

from mmabits.emulator.hooks.library import Library, PlannedProduct
from mmabits.isa import Evidence, Instruction, UnsupportedInstruction, library_instruction
from mmabits.isa.choices import library_promotion

XLA_CHOOSES: Final = (
    "XLA times algorithms of cuBLASLt and Triton kernels of its own: which it takes is not known, here the best known of cuBLASLt"
)
PADDED: Final = 8
"""XLA fills M, N and K of f16 and bf16 products with zeros to multiples of this before it gives them to cuBLASLt
(xla/service/gpu/cublas_padding_requirements.h)."""
FAST: Final = "fast accumulation, which XLA asks of cuBLASLt by default"
PROMOTES: Final = "promotion every {} elements of K is assumed: cuBLASLt does not document its interval"
TF32: Final = "f32 read as tf32, XLA's default; HIGHEST would run on CUDA cores"
UPCAST: Final = "fp8 converted to f16 first, as XLA does {}"
VECTORS: Final = "a product of two vectors: XLA makes it a multiplication and a sum, on CUDA cores"


@dataclass(frozen=True, kw_only=True)
class DtypeChoice:
    """How products of one dtype are computed."""

    form: str
    """The tensor core's name of it."""
    accumulator: str | None = None
    """Where it is not the usual one."""
    falls_back: str = ""
    """Where an architecture has no instruction: what the GPU does instead."""


_F8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
_E5M2 = _F8[1]
_F16, _BF16, _F32, _F64 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32), np.dtype(np.float64)
_S8 = np.dtype(np.int8)
_E2M1 = np.dtype(ml_dtypes.float4_e2m1fn)
_NO_UNIT: Final = "{} has no {} tensor cores; such products run on CUDA cores"

RESULTS: Final = {_F16: "f16", _BF16: "bf16", _F32: "f32"}
"""Results of products whose sums a library's schedule says."""

KINDS: Final = {
    _F16: DtypeChoice(form="f16"),
    _BF16: DtypeChoice(form="bf16", falls_back="bf16"),
    _F32: DtypeChoice(form="tf32", falls_back="tf32"),
    _F64: DtypeChoice(form="f64", falls_back="f64"),
    _F8[0]: DtypeChoice(form="e4m3"),
    _F8[1]: DtypeChoice(form="e5m2"),
    _S8: DtypeChoice(form="s8", falls_back="s8"),
}
"""By the dtype of the operands."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What a DotAlgorithmPreset asks of a GPU."""

    operand: np.dtype[Any] | None = None
    """What operands are converted to; None: they are fp8 and stay so."""
    accumulator: str | None = None
    fast: bool = False
    """Accumulates fp8 without promotion."""
    not_emulated: str = ""
    """It runs on CUDA cores, and why."""
    refused: str = ""


_PARTS: Final = "it sums several products of parts of the operands, in an order that XLA chooses"

ALGORITHMS: Final = {
    "ANY_F8_ANY_F8_F32": Algorithm(),
    "ANY_F8_ANY_F8_F32_FAST_ACCUM": Algorithm(fast=True),
    "ANY_F8_ANY_F8_ANY": Algorithm(),
    "ANY_F8_ANY_F8_ANY_FAST_ACCUM": Algorithm(),  # JAX drops the word FAST on the way to XLA
    "F16_F16_F16": Algorithm(operand=_F16, accumulator="f16"),
    "F16_F16_F32": Algorithm(operand=_F16),
    "BF16_BF16_F32": Algorithm(operand=_BF16),
    "BF16_BF16_BF16": Algorithm(refused="tensor cores accumulate bf16 in f32, and how XLA would round in between is not known"),
    "BF16_BF16_F32_X3": Algorithm(refused=_PARTS),
    "BF16_BF16_F32_X6": Algorithm(refused=_PARTS),
    "BF16_BF16_F32_X9": Algorithm(refused=_PARTS),
    "TF32_TF32_F32": Algorithm(operand=_F32),
    "TF32_TF32_F32_X3": Algorithm(refused=_PARTS),
    "F32_F32_F32": Algorithm(not_emulated="F32_F32_F32 runs on CUDA cores"),
    "F64_F64_F64": Algorithm(operand=_F64),
}
"""By the preset's name."""


@dataclass(frozen=True, kw_only=True)
class OnTensorCores:
    """A product for tensor cores."""

    instruction: Instruction
    operands: tuple[np.dtype[Any], np.dtype[Any]]
    """What A and B are converted to."""
    promote_every: int | None
    """Elements of K after which the library promotes; None: it does not."""
    note: str
    fast: bool = False
    """Whether FP8 is accumulated fast."""


@dataclass(frozen=True)
class WithoutTensorCores:
    """A product that the GPU would compute without tensor cores."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """A product that cannot be emulated."""

    reason: str


Choice = OnTensorCores | WithoutTensorCores | Refused


def product(arch: str, a: np.dtype[Any], b: np.dtype[Any], out: np.dtype[Any], precision: Any, *, vectors: bool = False) -> Choice:
    """What becomes of a dot_general on an architecture.

    Args:
        arch: `"sm_90a"` and so on.
        a: dtype of the left operand.
        b: dtype of the right operand.
        out: dtype of the result.
        precision: JAX's parameter: None, two lax.Precision, a DotAlgorithm or a DotAlgorithmPreset.
        vectors: neither operand has a dimension that the result keeps for itself.
    """
    if vectors:
        return WithoutTensorCores(VECTORS)
    if isinstance(precision, (lax.DotAlgorithm, lax.DotAlgorithmPreset)) and precision is not lax.DotAlgorithmPreset.DEFAULT:
        return _by_algorithm(arch, a, b, precision)
    return _by_types(arch, a, b, out, _level(precision))


def _level(precision: Any) -> int:
    """0, 1, 2: DEFAULT, HIGH, HIGHEST; of two, the higher, as XLA takes it."""
    return max((lax.Precision(each).value for each in precision), default=0) if isinstance(precision, tuple) else 0


def _by_algorithm(arch: str, a: np.dtype[Any], b: np.dtype[Any], precision: Any) -> Choice:
    name = _preset_name(precision)
    row = ALGORITHMS.get(name)
    if row is None:
        return Refused(f"no DotAlgorithmPreset is {name}; allowed are {', '.join(ALGORITHMS)}")
    if row.refused:
        return Refused(f"{name}: {row.refused}")
    if row.not_emulated:
        return WithoutTensorCores(row.not_emulated)
    if row.operand is None:
        if a not in _F8 or b not in _F8:
            return Refused(f"{name} takes float8_e4m3fn and float8_e5m2, got {a} and {b}")
        return _fp8(arch, a, b, fast=row.fast)
    return _same_type(arch, row.operand, row.accumulator, "" if row.operand != _F32 else "f32 read as tf32")


def _preset_name(precision: Any) -> str:
    """The preset that an algorithm is, or what it asks for where it is none."""
    if isinstance(precision, lax.DotAlgorithmPreset):
        return str(precision.name)
    types = (precision.lhs_precision_type, precision.rhs_precision_type, precision.accumulation_type)
    left, right, accumulator = (str(np.dtype(each)) for each in types)
    counts = (precision.lhs_component_count, precision.rhs_component_count, precision.num_primitive_operations)
    if counts == (1, 1, 1):
        if left in _FP8_NAMES and right in _FP8_NAMES and accumulator == "float32":
            return "ANY_F8_ANY_F8_F32_FAST_ACCUM" if precision.allow_imprecise_accumulation else "ANY_F8_ANY_F8_F32"
        name = "_".join(_SHORT.get(each, each) for each in (left, right, accumulator))
        return name
    return f"{left} x {right} in {counts[2]} operations"


_FP8_NAMES = tuple(str(dtype) for dtype in _F8)
_SHORT = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


def _by_types(arch: str, a: np.dtype[Any], b: np.dtype[Any], out: np.dtype[Any], level: int) -> Choice:
    if _E2M1 in (a, b):
        return Refused("float4_e2m1fn is multiplied with block scales only: jax.nn.scaled_matmul, jax.lax.scaled_dot")
    if a in _F8 and b in _F8:
        return _fp8(arch, a, b, fast=level == 0)
    kind = a if a == b else out  # JAX converts operands of two types to the result's
    if kind == _F32 and level == lax.Precision.HIGHEST.value:
        return WithoutTensorCores("f32 at precision HIGHEST runs on CUDA cores")
    if kind == _F32 and out != _F32:
        return WithoutTensorCores(f"f32 into {out} runs on CUDA cores")
    if kind == _S8 and out.kind not in "iu":
        return WithoutTensorCores(f"int8 into {out} runs on CUDA cores")
    if (kind.kind in "iub" and kind != _S8) or kind in _SMALL_INTEGERS:
        return WithoutTensorCores(f"XLA gives cuBLASLt no products of {kind}; integer sums are exact, the bits are the same")
    if kind not in KINDS:
        what = "complex products are not emulated" if kind.kind == "c" else f"how XLA multiplies {kind} on a GPU is not modelled"
        return WithoutTensorCores(what) if kind.kind == "c" else Refused(what)
    return _same_type(arch, kind, None, TF32 if kind == _F32 else "")


_SMALL_INTEGERS = tuple(np.dtype(each) for each in (ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2))


def _same_type(arch: str, kind: np.dtype[Any], accumulator: str | None, note: str) -> Choice:
    row = KINDS[kind]
    try:
        instruction = library_instruction(arch, row.form, row.form, c_type=accumulator)
    except UnsupportedInstruction as error:
        return WithoutTensorCores(_NO_UNIT.format(arch, row.falls_back)) if row.falls_back else Refused(str(error))
    return _emulated(instruction, (kind, kind), None, note)


def _fp8(arch: str, a: np.dtype[Any], b: np.dtype[Any], *, fast: bool) -> Choice:
    """fp8 by cuBLASLt's fp8 kernels or, where those do not take the operands, as f16."""
    if a == b == _E5M2:
        return _same_type(arch, _F16, None, UPCAST.format("where both operands are e5m2"))
    try:
        instruction = library_instruction(arch, KINDS[a].form, KINDS[b].form)
    except UnsupportedInstruction:
        return _same_type(arch, _F16, None, UPCAST.format("before sm_89"))
    promoted = library_promotion(arch)
    if not promoted:
        return _emulated(instruction, (a, b), None, "", fast=fast)
    return _emulated(instruction, (a, b), None if fast else promoted, FAST if fast else PROMOTES.format(promoted), fast=fast)


def _emulated(
    instruction: Instruction, operands: tuple[np.dtype[Any], np.dtype[Any]], promote: int | None, note: str, *, fast: bool = False
) -> Choice:
    return OnTensorCores(instruction=instruction, operands=operands, promote_every=promote, note=note, fast=fast)


def plan(library: Library, choice: OnTensorCores, shape: tuple[int, int, int, int], out: np.dtype[Any], arch: str) -> PlannedProduct | None:
    """In which order a product of XLA's is summed, if it goes to cuBLASLt; None: nothing is known, or one chain was asked for.

    Args:
        library: what the block takes the library to do.
        choice: the instruction.
        shape: batch, M, N and K.
        out: dtype of the result.
        arch: architecture.
    """
    m, n, k = shape[1:]
    if library.schedule is None and choice.operands[0] in (_F16, _BF16):
        m, n, k = (-(-size // PADDED) * PADDED for size in (m, n, k))
    found = library.plan(
        m, n, k, instruction=choice.instruction, output=RESULTS.get(out, ""), arch=arch, fast_accum=choice.fast
    )  # fmt: skip
    if found is None or found.found is None:
        return found
    padded = f", as {m} x {n} x {k}" if (m, n, k) != shape[1:] else ""
    return replace(found, words=f"{XLA_CHOOSES}{padded}; {found.words}", evidence=Evidence.INFERRED)


# -------------------------------------------------------------------------------------------------------------- block scales


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Operands of one type with block scales that cuDNN multiplies as they are."""

    form: str
    scale: np.dtype[Any]
    scale_form: str
    block: int


_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
SCALED: Final = {
    _F8[0]: Scaled(form="e4m3", scale=_E8M0, scale_form="ue8m0", block=32),
    _F8[1]: Scaled(form="e5m2", scale=_E8M0, scale_form="ue8m0", block=32),
    _E2M1: Scaled(form="e2m1", scale=_F8[0], scale_form="ue4m3", block=16),
}
"""By the dtype of an operand: MXFP8 and NVFP4."""
CUDNN: Final = "that cuDNN's block-scaled product is this instruction is assumed, and that K is not split"


def block_scaled(
    arch: str, a: np.dtype[Any], b: np.dtype[Any], scale_a: np.dtype[Any], scale_b: np.dtype[Any], k: int, blocks: int
) -> Choice:
    """What becomes of a product with block scales: the instruction for it, or WithoutTensorCores where XLA dequantizes.

    Args:
        arch: `"sm_100a"` and so on.
        a: dtype of the left operand.
        b: dtype of the right operand.
        scale_a: dtype of its scales.
        scale_b: dtype of its scales.
        k: elements of K.
        blocks: scales along K.
    """
    rows = (SCALED.get(a), SCALED.get(b))
    left, right = rows
    if left is None or right is None or (scale_a, scale_b) != (left.scale, right.scale) or left.block != right.block:
        return WithoutTensorCores("cuDNN has no product of such operands and scales")
    if a == b == _E5M2:
        return WithoutTensorCores("cuDNN multiplies no e5m2 by e5m2")
    if k != blocks * left.block:
        return WithoutTensorCores(f"cuDNN takes {left.form} with blocks of {left.block}")
    try:
        instruction = library_instruction(arch, left.form, right.form, scale_type=left.scale_form)
    except UnsupportedInstruction as error:
        return WithoutTensorCores(str(error))
    return OnTensorCores(instruction=instruction, operands=(a, b), promote_every=None, note=CUDNN)
