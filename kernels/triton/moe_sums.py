"""Sums over a token's experts: in order, or by atomic additions in the order in which programs come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.triton.operands import check_indices, checked

if TYPE_CHECKING:
    import torch

REDUCTIONS = ("ordered", "atomic")
STORED = ("float32", "bfloat16", "float16")


@triton.jit
def ordered_kernel(rows_ptr, out_ptr, N, TOP_K: tl.constexpr, ROUND: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The rows of a token from +0 on, by place; ROUND: every sum in the type of the rows."""
    token = tl.program_id(0).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for place in tl.static_range(TOP_K):
        total = total + tl.load(rows_ptr + (token * TOP_K + place) * N + n, mask=n < N, other=0.0).to(tl.float32)
        if ROUND:
            total = total.to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + token * N + n, total.to(out_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def atomic_kernel(  # type: ignore[no-untyped-def]
    rows_ptr, choices_ptr, out_ptr, CHOICES, N, TOP_K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The rows of a block of choices, added to those of their tokens."""
    choice = tl.load(choices_ptr + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    there = (choice < CHOICES)[:, None] & (n[None, :] < N)
    rows = tl.load(rows_ptr + choice[:, None] * N + n[None, :], mask=there, other=0.0)
    tl.atomic_add(out_ptr + (choice // TOP_K)[:, None] * N + n[None, :], rows, mask=there)


def add_rows(
    rows: torch.Tensor, *, top_k: int, reduction: str = "ordered", choices: torch.Tensor | None = None, round_each: bool = True,
    check: bool | None = None, block_m: int = 64, block_n: int = 64,
) -> torch.Tensor:  # fmt: skip
    """The sum over each token's rows.

    `"atomic"` adds a block of choices a program: on a GPU in whatever order they finish, so that last bits vary from run to run. Under
    emulation programs run in ascending order, or by the order that `schedule` names; blocks of `align` ascend by expert.

    Args:
        rows: (tokens * top_k, N) float32, bfloat16 or float16, contiguous: weighted rows by choice.
        top_k: rows of a token.
        reduction: `"ordered"`, by place, or `"atomic"`.
        choices: (blocks * block_m,) int32, of `align`, for `"atomic"`.
        round_each: for `"ordered"`, whether every sum is rounded to the type of the rows, as atomic additions are; else they are float32.
        check: whether to look at `choices` first; None: if they are on the CPU, since for a GPU the host would have to wait.
        block_m: rows of a block of `align`.
        block_n: columns of a program.

    Returns:
        (tokens, N) of the type of the rows.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, an unknown reduction.
    """
    import torch

    if reduction not in REDUCTIONS:
        raise OperandError(f"unknown reduction {reduction!r}; there are {', '.join(REDUCTIONS)}")
    count, n = checked(rows, "rows", STORED, (None, None)).shape
    if top_k < 1 or count % top_k:
        raise OperandError(f"rows must be a multiple of top_k, got {count} and {top_k}")
    out = torch.zeros((count // top_k, n), dtype=rows.dtype, device=rows.device)
    if reduction == "ordered":
        if rows.numel():
            ordered_kernel[(count // top_k, triton.cdiv(n, block_n))](
                rows, out, n, TOP_K=top_k, ROUND=round_each, BLOCK_N=block_n, enable_fp_fusion=False
            )
        return out
    if choices is None:
        raise OperandError("atomic additions need the choices of `align`, got None")
    held = checked(choices, "choices", ("int32",), (None,)).shape[0]
    if held % block_m:
        raise OperandError(f"choices must be whole blocks of {block_m}, got {held}")
    check_indices(choices, "choices", 0, count, check)
    if rows.numel():
        atomic_kernel[(held // block_m, triton.cdiv(n, block_n))](
            rows, choices, out, count, n, top_k, BLOCK_M=block_m, BLOCK_N=block_n, enable_fp_fusion=False
        )
    return out
