"""Ordinary products: mm, bmm, addmm and their kin, on f16, bf16, tf32, f64 and int8."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch

from mmabits.emulator.hooks.torch import openmp
from mmabits.emulator.hooks.torch.calls import OperatorCall, tensor_of, to_numpy
from mmabits.emulator.hooks.torch.epilogue import store
from mmabits.emulator.interop import without_numbers
from mmabits.isa import Instruction, OperandError, UnsupportedInstruction
from mmabits.isa.choices import library_instruction

EPILOGUE: Final = "alpha, beta and C in the accumulator's type after the product, then rounded once"


@dataclass(frozen=True, kw_only=True)
class OperandKind:
    """How products of one torch type are computed."""

    form: str
    """The tensor core's name of it."""
    falls_back: str = ""
    """Where an architecture has no instruction: what the GPU does instead. Empty: the library has no such product there."""


KINDS: Final = {
    torch.float16: OperandKind(form="f16"),
    torch.bfloat16: OperandKind(form="bf16"),
    torch.float32: OperandKind(form="tf32", falls_back="this architecture has no TF32, f32 products run on CUDA cores"),
    torch.float64: OperandKind(form="f64", falls_back="this architecture has no f64 tensor cores, such products run on CUDA cores"),
    torch.int8: OperandKind(form="s8"),
}

OUTPUTS: Final = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
"""Results of products whose sums a library's schedule says."""

IN_CUBLAS: Final = "PyTorch hands such products to cuBLAS, those with a bias to cuBLASLt, and nobody has compared their choices"
CUDA_CORES: Final = "f32 products run on CUDA cores unless torch.backends.cuda.matmul allows TF32"
NO_GPU_KERNEL: Final = "PyTorch multiplies no matrices of {} on CUDA devices"
FEW_ROWS: Final = "PyTorch to 2.10 at least refuses 16 rows and fewer of integers on CUDA devices"
VECTOR: Final = "a matrix times a vector: cuBLAS has kernels for it without tensor cores, which PyTorch calls for this type"
COMPLEX: Final = "complex products are not emulated"


@dataclass(frozen=True, kw_only=True)
class Route:
    """What becomes of products of a type on an architecture."""

    instruction: Instruction | None
    reason: str = ""
    """Without an instruction: why."""
    is_refused: bool = False


@lru_cache(maxsize=256)
def _route(arch: str, dtype: torch.dtype, accumulator: str | None) -> Route:
    kind = KINDS[dtype]
    try:
        return Route(instruction=library_instruction(arch, kind.form, kind.form, c_type=accumulator))
    except UnsupportedInstruction as error:
        if kind.falls_back:
            return Route(instruction=None, reason=kind.falls_back)
        return Route(instruction=None, reason=str(error), is_refused=True)


def allows_tf32() -> bool:
    """Whether PyTorch lets cuBLAS multiply f32 as TF32, by whichever of its settings."""
    return torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"  # type: ignore[attr-defined,unused-ignore]


def _accumulator(dtype: torch.dtype, out_dtype: torch.dtype) -> str | None:
    """f16 where `allow_fp16_accumulation` says so: for f16 operands and results."""
    is_half = dtype == torch.float16 == out_dtype
    return "f16" if is_half and torch._C._get_cublas_allow_fp16_accumulation() else None


def route(arch: str, dtype: torch.dtype, out_dtype: torch.dtype | None = None) -> Route:
    """What becomes of products of a torch type, the settings of PyTorch considered."""
    if dtype.is_complex:
        return Route(instruction=None, reason=COMPLEX)
    if dtype not in KINDS:
        return Route(instruction=None, reason=NO_GPU_KERNEL.format(dtype))
    if dtype == torch.float32 and not allows_tf32():
        return Route(instruction=None, reason=CUDA_CORES)
    return _route(arch, dtype, _accumulator(dtype, out_dtype or dtype))


def joined(*notes: str) -> str:
    """Notes in one line, empty ones left out."""
    return "; ".join(filter(None, notes))


def _fits(a: Any, b: Any, dimensions: int) -> bool:
    return bool(
        a.dim() == b.dim() == dimensions
        and a.dtype == b.dtype
        and a.shape[-1] == b.shape[-2]
        and a.shape[:-2] == b.shape[:-2]
    )  # fmt: skip


def _spreads(c: torch.Tensor, shape: torch.Size) -> bool:
    """Whether C broadcasts to the shape of the result."""
    return c.dim() <= len(shape) and all(size in (1, wanted) for size, wanted in zip(reversed(c.shape), reversed(shape), strict=False))


def _combine(product: torch.Tensor, c: torch.Tensor | None, alpha: Any, beta: Any) -> torch.Tensor:
    """`alpha * product + beta * C` in the place of the product, each operation rounded in its type; C is not read where beta is 0."""
    if alpha != 1:
        product.mul_(torch.tensor(alpha, dtype=product.dtype))
    if c is None or beta == 0:
        return product
    c = c.detach() if c.requires_grad else c
    if beta != 1:
        c = c.to(product.dtype) * torch.tensor(beta, dtype=product.dtype)
    return product.add_(c)


def _activation(call: OperatorCall, result: torch.Tensor) -> torch.Tensor:
    if call.signature.name != "_addmm_activation":
        return result
    return torch.nn.functional.gelu(result, approximate="tanh") if call.values["use_gelu"] else torch.relu(result)


def compute(
    call: OperatorCall, a: torch.Tensor, b: torch.Tensor, instruction: Instruction, epilogue: str = "", output: torch.dtype | None = None
) -> torch.Tensor:
    """A B in the accumulator's type, entered into the report; as the session's library sums it where the result's type is given."""
    openmp.rest(a.numel() * b.shape[-1])
    result = call.session.library.product(
        call.session, call.site, to_numpy(a), to_numpy(b), instruction=instruction,
        output="" if output is None else OUTPUTS.get(output, ""), doubt=IN_CUBLAS, note=epilogue,
    )  # fmt: skip
    return tensor_of(result, a)


def _not_plain(*tensors: torch.Tensor | None) -> str:
    """Why a product is none of plain matrices: for the report; empty where it is one."""
    reasons = (without_numbers(tensor) for tensor in tensors if tensor is not None)
    return next((f"an operand is {reason}" for reason in reasons if reason), "")


def _matmul(call: OperatorCall, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None, dimensions: int) -> Any:
    """One call of the family; `c` is None for mm and bmm."""
    if a.is_meta or b.is_meta:
        return call.stock()
    reason = _not_plain(a, b, c)
    if reason:
        return call.skip(reason)
    if not _fits(a, b, dimensions) or a.numel() == 0 or b.numel() == 0:
        return call.stock()  # nothing is multiplied: PyTorch raises its own error, or the result is empty, or that of C
    out_dtype = call.values.get("out_dtype") or a.dtype
    if c is not None and c.dtype not in (a.dtype, out_dtype):
        return call.stock()
    found = route(call.session.arch, a.dtype, out_dtype)
    if found.instruction is None:
        return _without_instruction(call, found)
    if c is not None and not _spreads(c, torch.Size((*a.shape[:-1], b.shape[-1]))):
        return call.stock()  # PyTorch's own error
    product = compute(call, a, b, found.instruction, "" if c is None else EPILOGUE, out_dtype)
    alpha, beta = call.values.get("alpha", 1), call.values.get("beta", 1)
    return call.give(store(_activation(call, _combine(product, c, alpha, beta)), out_dtype))


def _without_instruction(call: OperatorCall, found: Route) -> Any:
    if found.is_refused:
        call.session.refuse(call.site, call.signature.name, found.reason)
    return call.skip(found.reason)


def mm(call: OperatorCall) -> Any:
    """`mm`: (M, K) x (K, N)."""
    return _matmul(call, call.values["self"], call.values["mat2"], None, 2)


def bmm(call: OperatorCall) -> Any:
    """`bmm`: (batch, M, K) x (batch, K, N)."""
    return _matmul(call, call.values["self"], call.values["mat2"], None, 3)


def addmm(call: OperatorCall) -> Any:
    """`addmm` and `_addmm_activation`: beta C + alpha A B."""
    return _matmul(call, call.values["mat1"], call.values["mat2"], call.values["self"], 2)


def baddbmm(call: OperatorCall) -> Any:
    """`baddbmm`: as `addmm`, in batches."""
    return _matmul(call, call.values["batch1"], call.values["batch2"], call.values["self"], 3)


def mv(call: OperatorCall) -> Any:
    """`mv`: (M, K) x (K)."""
    return _times_vector(call, call.values["self"], call.values["vec"], None)


def addmv(call: OperatorCall) -> Any:
    """`addmv`: beta C + alpha A x."""
    return _times_vector(call, call.values["mat"], call.values["vec"], call.values["self"])


def _times_vector(call: OperatorCall, a: torch.Tensor, vector: torch.Tensor, c: torch.Tensor | None) -> Any:
    """A matrix times a vector: for f16 and bf16 PyTorch calls cuBLAS's product of matrices, as XLA does; else a kernel for vectors.

    Source: `gemv<at::Half>` and `gemv<at::BFloat16>` in aten/src/ATen/cuda/CUDABlas.cpp.
    """
    tensors = [each for each in (a, vector, c) if each is not None]
    if a.is_meta or vector.is_meta:
        return call.stock()
    reason = _not_plain(*tensors) or ("" if a.dtype in (torch.float16, torch.bfloat16) else VECTOR)
    if reason:
        return call.skip(reason)
    fits = a.dim() == 2 and vector.dim() == 1 and len({each.dtype for each in tensors}) == 1 and a.shape[1] == vector.shape[0]
    if not fits or a.numel() == 0 or (c is not None and not _spreads(c, a.shape[:1])):
        return call.stock()
    found = route(call.session.arch, a.dtype)
    if found.instruction is None:
        return _without_instruction(call, found)
    product = compute(call, a, vector[:, None], found.instruction, "" if c is None else EPILOGUE, a.dtype)[:, 0]
    return call.give(store(_combine(product, c, call.values.get("alpha", 1), call.values.get("beta", 1)), a.dtype))


def addbmm(call: OperatorCall) -> Any:
    """`addbmm`: PyTorch adds the products of a batch one by one, each sum rounded to the result's type."""
    a, b, c = call.values["batch1"], call.values["batch2"], call.values["self"]
    if a.is_meta or b.is_meta:
        return call.stock()
    reason = _not_plain(a, b, c)
    if reason:
        return call.skip(reason)
    if not _fits(a, b, 3) or a.numel() == 0 or b.numel() == 0:
        return call.stock()
    found = route(call.session.arch, a.dtype)
    if found.instruction is None:
        return _without_instruction(call, found)
    total, beta = c, call.values["beta"]
    for left, right in zip(a, b, strict=True):
        product = compute(call, left, right, found.instruction, EPILOGUE, c.dtype)
        total, beta = store(_combine(product, total, call.values["alpha"], beta), c.dtype), 1
    return call.give(total)


def int_mm(call: OperatorCall) -> Any:
    """`_int_mm`: s8 x s8 into s32."""
    a, b = call.values["self"], call.values["mat2"]
    if a.is_meta or b.is_meta or _not_plain(a, b) or not _fits(a, b, 2) or a.dtype != torch.int8 or a.numel() == 0 or b.numel() == 0:
        return call.stock()
    found = route(call.session.arch, torch.int8)
    if found.instruction is None:
        return _without_instruction(call, found)
    (k, n), rows = b.shape, a.shape[0]
    if k % 8 or n % 8:
        raise OperandError(f"{call.site}: K and N must be multiples of 8 on a GPU, got {k} and {n}")
    return call.give(compute(call, a, b, found.instruction, FEW_ROWS if rows <= 16 else ""))
