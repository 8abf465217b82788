"""FP8 and FP4 products with scales: `_scaled_mm` and `_scaled_mm_v2` (`torch.nn.functional.scaled_mm`), every recipe.

What scales mean, their shapes and which GPU takes which recipe follow PyTorch's CUDA operators (aten/src/ATen/native/cuda/ScaledBlas.cpp).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch

from mmabits.emulator.engine.fma import fma
from mmabits.emulator.hooks.torch import openmp
from mmabits.emulator.hooks.torch.calls import Array, OperatorCall, tensor_of, to_numpy
from mmabits.emulator.hooks.torch.epilogue import Floats, store
from mmabits.emulator.hooks.torch.products import OUTPUTS, joined
from mmabits.emulator.layouts import unpack_fp4, unswizzle_scales
from mmabits.isa import Instruction, OperandError, OperandTypeError, UnsupportedInstruction, architecture, lower
from mmabits.isa.choices import library_instruction, library_promotion

FP8: Final = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}
FP4: Final = {torch.float4_e2m1fn_x2: "e2m1"}
BLOCK: Final = 128
"""Elements of K with one f32 scale, and rows or columns with it in 128 x 128 blocks."""

TENSOR, ROW, BLOCK_16, BLOCK_32, BLOCK_1X128, BLOCK_128X128 = range(6)
"""torch.nn.functional.ScalingType, which the operators take as integers."""
SWIZZLED: Final = 1
"""torch.nn.functional.SwizzleType.SWIZZLE_32_4_4."""

_CUBLASLT_ROWWISE: Final = 9
"""The major compute capability on which cuBLASLt has rowwise products."""


@dataclass(frozen=True, kw_only=True)
class ScalingRecipe:
    """A way to scale both operands."""

    name: str
    a: tuple[int, ...]
    """ScalingType of each tensor of A's scales."""
    b: tuple[int, ...]
    elements: dict[torch.dtype, str]
    scale_dtype: torch.dtype
    block: int = 0
    """Elements of K with one scale that the tensor core applies; 0: software applies the scales."""
    named_elements: dict[torch.dtype, str] | None = None
    """Elements where the recipe is named (`_scaled_mm_v2`); None: the same."""
    capabilities: tuple[int, ...] = (8, 9, 10, 11, 12)
    """Major compute capabilities for which PyTorch has the recipe."""
    where: str = ""
    """PyTorch's words for that."""

    def __hash__(self) -> int:
        return hash((self.name, self.a, self.b))


_E4M3: Final = {torch.float8_e4m3fn: "e4m3"}
_HOPPER: Final[dict[str, Any]] = {
    "named_elements": _E4M3, "capabilities": (9,), "where": "DeepSeek style (1x128, 128x128) scaling is for compute capability 9.x",
}  # fmt: skip
RECIPES: Final = (
    ScalingRecipe(name="tensorwise", a=(TENSOR,), b=(TENSOR,), elements=FP8, scale_dtype=torch.float32),
    ScalingRecipe(name="rowwise", a=(ROW,), b=(ROW,), elements=FP8, scale_dtype=torch.float32),
    ScalingRecipe(name="128x128 x 1x128", a=(BLOCK_128X128,), b=(BLOCK_1X128,), elements=FP8, scale_dtype=torch.float32, **_HOPPER),
    ScalingRecipe(name="1x128 x 128x128", a=(BLOCK_1X128,), b=(BLOCK_128X128,), elements=FP8, scale_dtype=torch.float32, **_HOPPER),
    ScalingRecipe(name="1x128 x 1x128", a=(BLOCK_1X128,), b=(BLOCK_1X128,), elements=FP8, scale_dtype=torch.float32, **_HOPPER),
    ScalingRecipe(
        name="MXFP8", a=(BLOCK_32,), b=(BLOCK_32,), elements=FP8, named_elements=_E4M3, scale_dtype=torch.float8_e8m0fnu, block=32,
    ),
    ScalingRecipe(
        name="MXFP4", a=(BLOCK_32,), b=(BLOCK_32,), elements=FP4, scale_dtype=torch.float8_e8m0fnu, block=32,
        capabilities=(10,), where="MXFP4 scaling is for compute capability 10.x",
    ),
    ScalingRecipe(name="NVFP4", a=(BLOCK_16,), b=(BLOCK_16,), elements=FP4, scale_dtype=torch.float8_e4m3fn, block=16),
    ScalingRecipe(name="NVFP4", a=(BLOCK_16, TENSOR), b=(BLOCK_16, TENSOR), elements=FP4, scale_dtype=torch.float8_e4m3fn, block=16),
)  # fmt: skip

ROWWISE_OUTPUTS: Final = {torch.bfloat16: (2, 5), torch.float16: (2, 10), torch.float32: (2, 14)}
"""What rowwise products give where PyTorch's CUTLASS kernel computes them (RowwiseScaledMM.cu), and the PyTorch that first had it.
On Hopper it is cuBLASLt, from CUDA 12.9 on."""
ROWWISE_F16_WITHOUT_BIAS: Final = (2, 14)
"""PyTorch before this writes bfloat16 bits into a float16 result that has no bias."""
VERSION: Final = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])

PER_TENSOR: Final = "scale_a * scale_b in f32, then the product times it, then bias"
SCALES_BY_ROW: Final = "the library was asked with one scale for a tensor"
PER_ROW: Final = "the product times scale_a, times scale_b, then bias, each rounded to f32"
PER_BLOCK: Final = "every 128 of K an FFMA with scale_a * scale_b: DeepGEMM's order; cuBLAS's is not documented"
PER_BLOCK_AND_TENSOR: Final = "the global scales' product in f32, then the product times it, then bias"
RESULT_SCALED: Final = "times scale_result in f32 before rounding to FP8"
RESULT_UNSCALED: Final = "scale_result is for FP8 results, and not applied to this one"
RESULT_DROPPED: Final = "scale_result is not applied: the CUDA backend of PyTorch 2.10 to 2.13 does not hand it on to cuBLASLt"
DROPS_SCALE_RESULT: Final = ((2, 10), (2, 13))
"""First and last version of PyTorch that does so (pytorch/pytorch, issue 190449): `_scaled_mm` checks it and no more."""
PADDING_READ: Final = "NaN in the padding of the scales, by which the last instruction multiplies the zeros that fill up its K: NaN"
PADDING_OPEN: Final = (
    "NaN in the padding of the scales past the last instruction's K: kernels that step through K by whole tiles multiply zeros by it, "
    "which gives NaN, others do not read it"
)
FAST_ACCUM: Final = "use_fast_accum=False promoted every {} of K: measured for cuBLASLt on Hopper, as CUTLASS does on Ada"


def check_capability(call: OperatorCall, recipe: ScalingRecipe) -> None:
    """Refuse what PyTorch has no kernel for."""
    found = architecture(call.session.arch).capability
    if found < (8, 9):
        call.session.refuse(call.site, call.signature.name, "PyTorch has scaled products for compute capability 8.9 and from 9.0 on")
    if found[0] not in recipe.capabilities:
        call.session.refuse(call.site, f"{call.signature.name} ({recipe.name})", recipe.where)


def check_rowwise(call: OperatorCall, b: torch.Tensor, out_dtype: torch.dtype, bias: torch.Tensor | None) -> None:
    """Refuse what PyTorch's CUTLASS kernel of rowwise products does not take; cuBLASLt on Hopper takes more.

    Raises:
        OperandTypeError: B or the result in another type.
        EmulationError: a result that PyTorch gets wrong.
    """
    if architecture(call.session.arch).capability[0] == _CUBLASLT_ROWWISE:
        return
    if b.dtype != torch.float8_e4m3fn:
        raise OperandTypeError(f"{call.site}: B of a rowwise product on {call.session.arch} must be torch.float8_e4m3fn, got {b.dtype}")
    version = ".".join(map(str, VERSION))
    if ROWWISE_OUTPUTS.get(out_dtype, (math.inf,)) > VERSION:
        allowed = " or ".join(str(dtype) for dtype, since in ROWWISE_OUTPUTS.items() if since <= VERSION)
        raise OperandTypeError(
            f"{call.site}: out_dtype of a rowwise product on {call.session.arch} must be {allowed} with PyTorch {version}, got {out_dtype}"
        )
    if out_dtype == torch.float16 and bias is None and VERSION < ROWWISE_F16_WITHOUT_BIAS:
        call.session.refuse(call.site, "a rowwise product to float16 without bias", f"PyTorch {version} writes bfloat16 bits on CUDA")


@lru_cache(maxsize=256)
def _instruction(arch: str, a_form: str, b_form: str, scale_type: str | None) -> Instruction | UnsupportedInstruction:
    try:
        return library_instruction(arch, a_form, b_form, scale_type=scale_type)
    except UnsupportedInstruction as error:
        return error


def instruction_for(call: OperatorCall, recipe: ScalingRecipe, a: torch.Tensor, b: torch.Tensor) -> Instruction:
    """The instruction that is taken to compute a product by a recipe.

    Raises:
        EmulationError: PyTorch or the architecture lacks it.
        OperandTypeError: operands of other types.
    """
    check_capability(call, recipe)
    is_named = "recipe_a" in call.values
    elements = recipe.named_elements if is_named and recipe.named_elements is not None else recipe.elements
    for tensor, name in ((a, "A"), (b, "B")):
        if tensor.dtype not in elements:
            allowed = " or ".join(str(dtype) for dtype in elements)
            raise OperandTypeError(f"{call.site}: {name} of {recipe.name} must be {allowed}, got {tensor.dtype}")
    if a.dtype == b.dtype == torch.float8_e5m2:
        call.session.refuse(call.site, call.signature.name, "PyTorch multiplies no two float8_e5m2 matrices")
    scale_type = {torch.float8_e8m0fnu: "ue8m0", torch.float8_e4m3fn: "ue4m3"}.get(recipe.scale_dtype)
    found = _instruction(call.session.arch, recipe.elements[a.dtype], recipe.elements[b.dtype], scale_type)
    if isinstance(found, UnsupportedInstruction):
        call.session.refuse(call.site, f"{call.signature.name} ({recipe.name})", str(found))
    return found


def elements(tensor: torch.Tensor, axis: int) -> Array:
    """A tensor of FP8 or packed FP4 as NumPy; FP4 is unpacked along `axis`, which is K."""
    if tensor.dtype in FP4:
        return unpack_fp4(to_numpy(tensor.view(torch.uint8)), axis=axis)
    return to_numpy(tensor)


def promotion(call: OperatorCall, use_fast_accum: bool) -> tuple[int | None, str]:
    """(elements of K after which the accumulator is promoted, what the report should say of it)."""
    interval = None if use_fast_accum else library_promotion(call.session.arch) or None
    return interval, FAST_ACCUM.format(interval) if interval else ""


def floats(call: OperatorCall, scale: torch.Tensor, shape: tuple[int, ...], name: str) -> Floats:
    """f32 scales of a given shape.

    Raises:
        OperandTypeError, OperandError: another type or shape.
    """
    if scale.dtype != torch.float32:
        raise OperandTypeError(f"{call.site}: {name} must be torch.float32, got {scale.dtype}")
    if tuple(scale.shape) != shape:
        raise OperandError(f"{call.site}: {name} must have shape {shape}, got {tuple(scale.shape)}")
    return to_numpy(scale)


def one_float(call: OperatorCall, scale: torch.Tensor, name: str) -> np.float32:
    """A single f32 scale of any number of dimensions."""
    if scale.numel() != 1:
        raise OperandError(f"{call.site}: {name} must have one element, got shape {tuple(scale.shape)}")
    return np.float32(floats(call, scale.reshape(1), (1,), name)[0])


def swizzled_size(rows: int, columns: int) -> int:
    """Bytes of the 128x4 layout."""
    return -(-rows // 128) * 128 * (-(-columns // 4) * 4)


def unswizzled(call: OperatorCall, scale: torch.Tensor, rows: int, columns: int, recipe: ScalingRecipe, name: str) -> Array:
    """Block scales from the 128x4 layout: (rows, columns and the padding after them to a multiple of 4).

    Raises:
        OperandTypeError, OperandError: another type or number of bytes.
    """
    if scale.dtype != recipe.scale_dtype:
        raise OperandTypeError(f"{call.site}: {name} of {recipe.name} must be {recipe.scale_dtype}, got {scale.dtype}")
    size = swizzled_size(rows, columns)
    if scale.numel() != size or not scale.is_contiguous():
        raise OperandError(
            f"{call.site}: {name} of {recipe.name} must be contiguous with {size} elements (128x4 layout of {rows} x {columns}), "
            f"got shape {tuple(scale.shape)}"
        )
    return unswizzle_scales(to_numpy(scale).reshape(-1), rows, -(-columns // 4) * 4)


# Products by recipe ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaledOperands:
    """A product's operands and scales, as they are multiplied."""

    recipe: ScalingRecipe
    instruction: Instruction
    a: Array
    """(M, K)"""
    b: Array
    """(K, N)"""
    scale_a: Sequence[Any]
    """tensorwise: f32; rowwise: (M, 1) f32; 1x128: (M, K / 128) f32; block scales (M, K / block and padding),
    then f32 for all of A."""
    scale_b: Sequence[Any]
    """Likewise, (1, N), (K / 128, N) and (K / block and padding, N)."""
    note: str = ""
    """What else the report should say."""


def _product(call: OperatorCall, given: ScaledOperands, promote: int | None, *notes: str) -> Floats:
    """A B before scales; as the session's library sums it where it is one of cuBLASLt's."""
    scales, *rest = notes
    is_library = given.recipe.a == (TENSOR,) or architecture(call.session.arch).capability[0] == _CUBLASLT_ROWWISE
    output = OUTPUTS.get(_out_dtype(call, call.values["self"]), "f32") if is_library and "grouped" not in call.signature.name else ""
    openmp.rest(given.a.size * given.b.shape[1])
    return call.session.library.product(
        call.session, call.site, given.a, given.b, instruction=given.instruction, output=output, promote_every=promote,
        fast_accum=bool(call.values["use_fast_accum"]), doubt="" if given.recipe.a == (TENSOR,) else SCALES_BY_ROW,
        note=joined(scales, given.note), chain_note=joined(*rest),
    )  # fmt: skip


def _tensorwise(call: OperatorCall, given: ScaledOperands, promote: int | None, note: str) -> Floats:
    scaled: Floats = _product(call, given, promote, PER_TENSOR, note) * np.float32(given.scale_a[0] * given.scale_b[0])
    return scaled


def _rowwise(call: OperatorCall, given: ScaledOperands, promote: int | None, note: str) -> Floats:
    scaled: Floats = _product(call, given, promote, PER_ROW, note) * given.scale_a[0] * given.scale_b[0]
    return scaled


def _blockwise(call: OperatorCall, given: ScaledOperands, promote: int | None, note: str) -> Floats:
    (m, k), n = given.a.shape, given.b.shape[1]
    words, order = call.session.library.unknown(given.instruction)
    ready = call.session.ready(call.site, given.instruction, note=joined(words, PER_BLOCK, given.note), order=order)
    total: Floats = np.zeros((m, n), np.float32)
    for number, start in enumerate(range(0, k, BLOCK)):
        panel = slice(start, start + BLOCK)
        part = ready.multiply(given.a[:, panel], given.b[panel])
        scale = given.scale_a[0][:, number, None] * given.scale_b[0][number]
        total = fma(part, scale, total)
    ready.count(m, n, k)
    return total


def _block_scaled(call: OperatorCall, given: ScaledOperands, promote: int | None, note: str) -> Floats:
    is_two_level = len(given.scale_a) > 1
    left, right = given.scale_a[0], given.scale_b[0]
    block, instruction = given.recipe.block, given.instruction
    used, read = (-(-given.a.shape[1] // size) * size // block for size in (block, instruction.k))
    read_rows, read_columns = _nans(left[:, used:read], 1), _nans(right[used:read], 0)
    open_rows, open_columns = _nans(left[:, read:], 1), _nans(right[read:], 0)
    is_read = read_rows.any() or read_columns.any()
    words, order = call.session.library.unknown(instruction)
    openmp.rest(given.a.size * given.b.shape[1])
    product: Floats = call.session.dot(
        call.site, given.a, given.b, scale_a=left[:, :used], scale_b=right[:used], instruction=instruction, order=order,
        note=joined(words, PER_BLOCK_AND_TENSOR if is_two_level else "", PADDING_READ if is_read else "", given.note),
    )  # fmt: skip
    spoilt = read_rows[:, None] | read_columns
    if open_rows.any() or open_columns.any():
        call.session.leave_open(call.site, call.operation, PADDING_OPEN, here="poison" if call.session.poisons else "not read")
        spoilt = spoilt | (call.session.poisons & (open_rows[:, None] | open_columns))
    product.view(np.uint32)[spoilt] = lower(instruction, call.session.arch).datapath.result_nan
    return product * np.float32(given.scale_a[1] * given.scale_b[1]) if is_two_level else product


def _nans(scales: Array, axis: int) -> Any:
    """Which rows or columns of scales hold a NaN."""
    return np.isnan(scales.astype(np.float32)).any(axis=axis)


_COMPUTE: Final[dict[int, Callable[[OperatorCall, ScaledOperands, int | None, str], Floats]]] = {
    TENSOR: _tensorwise,
    ROW: _rowwise,
    BLOCK_1X128: _blockwise,
    BLOCK_128X128: _blockwise,
    BLOCK_32: _block_scaled,
    BLOCK_16: _block_scaled,
}


def compute(call: OperatorCall, given: ScaledOperands, use_fast_accum: bool) -> Floats:
    """The scaled product in f32, before bias."""
    with np.errstate(all="ignore"):
        return _COMPUTE[given.recipe.a[0]](call, given, *promotion(call, use_fast_accum))


# The operators --------------------------------------------------------------------------------------------------------


def _check_matrices(call: OperatorCall, a: torch.Tensor, b: torch.Tensor) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise OperandError(f"{call.site}: shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied")
    packed = 2 if a.dtype in FP4 else 1
    if packed * a.shape[1] % 16 or b.shape[1] % 16:
        raise OperandError(f"{call.site}: K and N must be multiples of 16 on a GPU, got {packed * a.shape[1]} and {b.shape[1]}")


def _check_bias(call: OperatorCall, bias: torch.Tensor | None, n: int, out_dtype: torch.dtype) -> None:
    if bias is None:
        return
    if out_dtype == torch.float32:
        raise OperandTypeError(f"{call.site}: PyTorch takes no bias where out_dtype is torch.float32")
    allowed = {torch.float16: (torch.float16,), torch.bfloat16: (torch.bfloat16,)}.get(out_dtype, (torch.float16, torch.bfloat16))
    if bias.dtype not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise OperandTypeError(f"{call.site}: bias must be {wanted} where out_dtype is {out_dtype}, got {bias.dtype}")
    if bias.numel() != n:
        raise OperandError(f"{call.site}: bias must have {n} elements, got {bias.numel()}")


def _empty(call: OperatorCall, a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> Any:
    """Without elements, or of zeros where only K has none: no bias is added to them."""
    return call.give(torch.zeros((a.shape[0], b.shape[1]), dtype=torch.float32, device=a.device).to(out_dtype))


def _finish(call: OperatorCall, product: Floats, a: torch.Tensor, out_dtype: torch.dtype, factor: np.float32 | None) -> Any:
    result, bias = tensor_of(product, a), call.values["bias"]
    if bias is not None:
        result = result + bias.detach().reshape(1, -1).float()
    if factor is not None:
        result = result * float(factor)
    return call.give(store(result, out_dtype))


def _result_factor(call: OperatorCall, out_dtype: torch.dtype) -> tuple[np.float32 | None, str]:
    """(what the result is multiplied by before it is rounded, what the report should say of scale_result)."""
    scale = call.values.get("scale_result")
    if scale is None:
        return None, ""
    factor = one_float(call, scale, "scale_result")
    if out_dtype not in FP8:
        return None, RESULT_UNSCALED
    first, last = DROPS_SCALE_RESULT
    if first <= VERSION <= last:
        return None, RESULT_DROPPED
    return factor, RESULT_SCALED


def _out_dtype(call: OperatorCall, a: torch.Tensor) -> torch.dtype:
    out_dtype: torch.dtype = call.values["out_dtype"] or a.dtype
    if out_dtype not in (*FP8, torch.float32, torch.float16, torch.bfloat16):
        raise OperandTypeError(f"{call.site}: out_dtype must be a float of 8, 16 or 32 bits, got {out_dtype}")
    return out_dtype


def _run(call: OperatorCall, recipe: ScalingRecipe, scales: Callable[[ScalingRecipe], tuple[Sequence[Any], Sequence[Any]]]) -> Any:
    a, b = call.values["self"], call.values["mat2"]
    instruction = instruction_for(call, recipe, a, b)
    out_dtype = _out_dtype(call, a)
    _check_bias(call, call.values["bias"], b.shape[1], out_dtype)
    if recipe.a == (ROW,):
        check_rowwise(call, b, out_dtype, call.values["bias"])
    if recipe.elements is FP4 and call.values["use_fast_accum"]:
        raise OperandError(f"{call.site}: PyTorch takes no use_fast_accum with float4_e2m1fn_x2")
    if recipe.elements is FP4 and recipe.block == BLOCK_SIZES[BLOCK_32] and call.values["bias"] is not None:
        call.session.refuse(call.site, "MXFP4 with bias", "PyTorch's CUDA kernel leaves the bias out")
    factor, note = _result_factor(call, out_dtype)
    if 0 in (*a.shape, *b.shape):
        return _empty(call, a, b, out_dtype)
    scale_a, scale_b = scales(recipe)
    given = ScaledOperands(
        recipe=recipe, instruction=instruction, a=elements(a, 1), b=elements(b, 0), scale_a=scale_a, scale_b=scale_b, note=note
    )  # fmt: skip
    return _finish(call, compute(call, given, call.values["use_fast_accum"]), a, out_dtype, factor)


BLOCK_SIZES: Final = {BLOCK_16: 16, BLOCK_32: 32}


def _sizes(call: OperatorCall) -> tuple[int, int, int]:
    """M, N and K in elements."""
    a, b = call.values["self"], call.values["mat2"]
    return a.shape[0], b.shape[1], a.shape[1] * (2 if a.dtype in FP4 else 1)


def _is_nothing(call: OperatorCall) -> bool:
    return any(call.values[name].is_meta for name in ("self", "mat2"))


def scaled_mm(call: OperatorCall) -> Any:
    """`_scaled_mm`: the recipe shows in the types and shapes of the scales."""
    a, b = call.values["self"], call.values["mat2"]
    if _is_nothing(call):
        return call.stock()
    _check_matrices(call, a, b)
    m, n, k = _sizes(call)
    scale_a, scale_b = call.values["scale_a"], call.values["scale_b"]
    recipe = _seen_recipe(call, m, n, k)

    def scales(recipe: ScalingRecipe) -> tuple[Sequence[Any], Sequence[Any]]:
        if recipe.a == (TENSOR,):
            return [one_float(call, scale_a, "scale_a")], [one_float(call, scale_b, "scale_b")]
        if recipe.block:
            return _block_scales(call, recipe, scale_a, scale_b, m, n, k)
        left, right = to_numpy(scale_a), to_numpy(scale_b)
        if recipe.a == (BLOCK_128X128,):
            left = np.repeat(left, BLOCK, axis=0)[:m]
        if recipe.b == (BLOCK_128X128,):
            right = np.repeat(right, BLOCK, axis=1)[:, :n]
        return [left], [right]

    return _run(call, recipe, scales)


def _seen_recipe(call: OperatorCall, m: int, n: int, k: int) -> ScalingRecipe:
    """The recipe of `_scaled_mm`'s scales, in PyTorch's order of preference."""
    scale_a, scale_b = call.values["scale_a"], call.values["scale_b"]
    dtype = call.values["self"].dtype
    blocks = -(-k // BLOCK)
    for recipe in RECIPES:
        if len(recipe.a) > 1 or dtype not in recipe.elements or not scale_a.dtype == scale_b.dtype == recipe.scale_dtype:
            continue
        if recipe.block or (_fits(scale_a, recipe.a[0], m, blocks) and _fits(scale_b, recipe.b[0], n, blocks, transposed=True)):
            return recipe
    raise OperandError(
        f"{call.site}: scales {scale_a.dtype} {_laid_out(scale_a)} and {scale_b.dtype} {_laid_out(scale_b)} fit no recipe for "
        f"{dtype}, M = {m}, N = {n}, K = {k}: rowwise wants ({m}, 1) and (1, {n}), contiguous; 1x128 ({m}, {blocks}) and "
        f"({blocks}, {n}), with a stride of 1 along M and N; 128x128 one for each block, with a stride of 1 along K"
    )


def _laid_out(scale: torch.Tensor) -> str:
    return f"{tuple(scale.shape)} with strides {tuple(scale.stride())}"


def _fits(scale: torch.Tensor, kind: int, outer: int, blocks: int, *, transposed: bool = False) -> bool:
    """Whether f32 scales have the shape and strides that PyTorch takes for a recipe's: `outer` rows of A or columns of B."""
    if kind == TENSOR:
        return scale.numel() == 1
    if scale.dim() != 2:
        return False
    sizes, strides = tuple(scale.shape), tuple(scale.stride())
    if transposed:
        sizes, strides = sizes[::-1], strides[::-1]
    shape, wanted = {
        ROW: ((outer, 1), (1, 1)),
        BLOCK_1X128: ((outer, blocks), (1, outer)),
        BLOCK_128X128: ((-(-outer // BLOCK), blocks), (blocks, 1)),
    }[kind]
    return sizes == shape and all(size <= 1 or stride == want for size, stride, want in zip(sizes, strides, wanted, strict=True))


def _block_scales(
    call: OperatorCall, recipe: ScalingRecipe, scale_a: torch.Tensor, scale_b: torch.Tensor, m: int, n: int, k: int
) -> tuple[list[Any], list[Any]]:
    columns = -(-k // recipe.block)
    left = unswizzled(call, scale_a, m, columns, recipe, "scale_a")
    return [left], [unswizzled(call, scale_b, n, columns, recipe, "scale_b").T]


def scaled_mm_v2(call: OperatorCall) -> Any:
    """`_scaled_mm_v2`: the recipe is named."""
    a, b = call.values["self"], call.values["mat2"]
    if _is_nothing(call):
        return call.stock()
    _check_matrices(call, a, b)
    check_contraction(call)
    if 0 in (*a.shape, *b.shape):
        return _empty(call, a, b, _out_dtype(call, a))
    return _run(call, named_recipe(call), lambda recipe: _named_scales(call, recipe))


def check_contraction(call: OperatorCall) -> None:
    """Refuse contraction dimensions other than the usual ones."""
    if list(call.values["contraction_dim"] or (-1, -2)) not in ([-1, -2], [1, 0]):
        raise OperandError(f"{call.site}: contraction_dim must be (-1, -2), got {call.values['contraction_dim']}")


def named_recipe(call: OperatorCall) -> ScalingRecipe:
    """The row of the recipes that a `_v2` operator was given.

    Raises:
        OperandError: no such combination, or scales that are missing or not swizzled.
    """
    values = call.values
    wanted = tuple(values["recipe_a"]), tuple(values["recipe_b"])
    dtype = values["self"].dtype
    fitting = [recipe for recipe in RECIPES if (recipe.a, recipe.b) == wanted]
    if not fitting:
        known = ", ".join(sorted({recipe.name for recipe in RECIPES}))
        raise OperandError(f"{call.site}: no recipe has scaling types {wanted[0]} and {wanted[1]}; known are {known}")
    recipe = next((recipe for recipe in fitting if dtype in recipe.elements), fitting[0])
    for side in ("a", "b"):
        if len(values[f"scale_{side}"]) != len(wanted[0]):
            raise OperandError(
                f"{call.site}: {recipe.name} takes {len(wanted[0])} tensors as scale_{side}, got {len(values[f'scale_{side}'])}"
            )
        if recipe.block and list(values[f"swizzle_{side}"])[:1] != [SWIZZLED]:
            raise OperandError(
                f"{call.site}: swizzle_{side} of {recipe.name} must be SWIZZLE_32_4_4, got {list(values[f'swizzle_{side}'])}"
            )
    return recipe


def _named_scales(call: OperatorCall, recipe: ScalingRecipe) -> tuple[Sequence[Any], Sequence[Any]]:
    m, n, k = _sizes(call)
    scale_a, scale_b = call.values["scale_a"], call.values["scale_b"]
    if recipe.block:
        left, right = _block_scales(call, recipe, scale_a[0], scale_b[0], m, n, k)
        left += [one_float(call, scale, "the global scale_a") for scale in scale_a[1:]]
        right += [one_float(call, scale, "the global scale_b") for scale in scale_b[1:]]
        return left, right
    return [_named_floats(call, recipe.a[0], scale_a[0], m, k, "scale_a")], [
        np.transpose(_named_floats(call, recipe.b[0], scale_b[0], n, k, "scale_b"))
    ]


def _named_floats(call: OperatorCall, kind: int, scale: torch.Tensor, rows: int, k: int, name: str) -> Any:
    """f32 scales as (rows, scales of a row), rows being those of A, or the columns of B."""
    blocks = -(-k // BLOCK)
    if kind == TENSOR:
        return one_float(call, scale, name)
    if kind == ROW:
        wanted = [(rows, 1)] if name == "scale_a" else [(1, rows)]
        if name == "scale_b" and architecture(call.session.arch).capability[0] == _CUBLASLT_ROWWISE:
            wanted.append((rows, 1))
        is_fit = tuple(scale.shape) in wanted and scale.is_contiguous()
        if not is_fit or (name == "scale_b" and scale.stride(1) != 1):
            allowed = " or ".join(map(str, wanted))
            raise OperandError(f"{call.site}: {name} must have shape {allowed} and be contiguous, got {_laid_out(scale)}")
        return floats(call, scale.reshape(rows, 1), (rows, 1), name)
    padded = -(-blocks // 4) * 4  # cuBLAS reads 128x128 scales K first, K padded to a multiple of 4
    shape = (rows, blocks) if kind == BLOCK_1X128 else (padded, -(-rows // BLOCK))
    whole = floats(call, scale, shape, name)
    if (shape[0] > 1 and scale.stride(0) != 1) or (shape[1] > 1 and scale.stride(1) != shape[0]):
        raise OperandError(f"{call.site}: {name} must have strides (1, {shape[0]}), got {_laid_out(scale)}")
    return whole if kind == BLOCK_1X128 else np.repeat(whole[:blocks].T, BLOCK, axis=0)[:rows]
