"""C = activation(A B): tiles in grouped order, masked edges, autotuned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from mmabits.isa import OperandError

if TYPE_CHECKING:
    import torch

ACTIVATIONS = ("", "relu", "leaky_relu")


@triton.jit
def grouped_tile(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row and column of a tile, where GROUP_M rows of tiles are walked column by column so that B stays in the cache."""
    rows = tl.cdiv(M, BLOCK_M)
    columns = tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP_M * columns)
    first_row = group * GROUP_M
    height = min(rows - first_row, GROUP_M)
    within = tile % (GROUP_M * columns)
    return first_row + within % height, within // height


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The activation, on f32."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x >= 0, x, 0.01 * x)
    return x


@triton.jit
def tile_product(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, row, column, M, N, k_first, k_last, stride_am, stride_ak, stride_bk, stride_bn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The f32 sums of one tile over [k_first, k_last), accumulated from dot to dot."""
    i = (row * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    j = (column * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(k_first, k_last, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        a_mask = (i[:, None] < M) & (k[None, :] < k_last)
        b_mask = (k[:, None] < k_last) & (j[None, :] < N)
        a = tl.load(a_ptr + i[:, None] * stride_am + k[None, :] * stride_ak, mask=a_mask, other=0.0)
        b = tl.load(b_ptr + k[:, None] * stride_bk + j[None, :] * stride_bn, mask=b_mask, other=0.0)
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def store_tile(  # type: ignore[no-untyped-def]
    c_ptr, tile, row, column, M, N, stride_cm, stride_cn, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Write a tile in the type of C, inside the matrix."""
    i = (row * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    j = (column * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    at = c_ptr + i[:, None] * stride_cm + j[None, :] * stride_cn
    tl.store(at, tile.to(c_ptr.dtype.element_ty), mask=(i[:, None] < M) & (j[None, :] < N))


def _config(m: int, n: int, k: int, *, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8}, num_warps=warps, num_stages=stages)


@triton.autotune(
    configs=[
        _config(64, 64, 64, warps=4, stages=4),
        _config(128, 128, 64, warps=8, stages=3),
        _config(128, 64, 64, warps=4, stages=4),
        _config(64, 128, 32, warps=4, stages=4),
    ],
    key=["M", "N", "K"],
)
@triton.jit
def matmul_kernel(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """One tile of C a program."""
    row, column = grouped_tile(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    acc = tile_product(
        a_ptr, b_ptr, row, column, M, N, 0, K, stride_am, stride_ak, stride_bk, stride_bn, BLOCK_M, BLOCK_N, BLOCK_K
    )  # fmt: skip
    store_tile(c_ptr, activated(acc, ACTIVATION), row, column, M, N, stride_cm, stride_cn, BLOCK_M, BLOCK_N)


def matmul(a: torch.Tensor, b: torch.Tensor, *, activation: str = "", out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """The product of two matrices by `matmul_kernel`.

    Args:
        a: (M, K), float16, bfloat16, float32 (multiplied as tf32) or an fp8 type.
        b: (K, N), the same type; fp8 types may differ.
        activation: `""`, `"relu"` or `"leaky_relu"`, applied to the f32 sums.
        out_dtype: of the result; None: float32.

    Returns:
        (M, N).

    Raises:
        OperandError: shapes that do not meet, or an unknown activation.
    """
    m, n, k = checked_shapes(a, b)
    if activation not in ACTIVATIONS:
        raise OperandError(f"unknown activation {activation!r}; there are {', '.join(map(repr, ACTIVATIONS))}")
    c = _empty(a, m, n, out_dtype)
    if 0 in (m, n, k):
        return c.zero_()
    matmul_kernel[_grid(m, n)](a, b, c, m, n, k, *a.stride(), *b.stride(), *c.stride(), ACTIVATION=activation)
    return c


def checked_shapes(a: torch.Tensor, b: torch.Tensor) -> tuple[int, int, int]:
    """M, N and K of two matrices.

    Raises:
        OperandError: they do not meet.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise OperandError(f"a must be (M, K) and b (K, N), got {tuple(a.shape)} and {tuple(b.shape)}")
    return a.shape[0], b.shape[1], a.shape[1]


def _empty(a: torch.Tensor, m: int, n: int, dtype: torch.dtype | None) -> torch.Tensor:
    import torch

    return torch.empty((m, n), dtype=dtype or torch.float32, device=a.device)


def _grid(m: int, n: int) -> Any:
    return lambda meta: (triton.cdiv(m, meta["BLOCK_M"]) * triton.cdiv(n, meta["BLOCK_N"]),)
