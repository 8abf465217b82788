"""Operands of more than 2^31 elements: each kernel on a tile that lies beyond, against the same tile at the start of small operands.

The memory is mapped and never touched but where the tiles lie. A program far down a grid is run without those before it.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

torch, triton = pytest.importorskip("torch"), pytest.importorskip("triton")

from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle  # noqa: E402

from mmabits import emulate  # noqa: E402
from mmabits.kernels.triton import (  # noqa: E402
    attention,
    attention_cached,
    block_scaled,
    fp8,
    fp8_blockwise,
    matmul,
    moe,
    moe_experts,
    moe_layer,
    moe_sums,
    mxfp6_mxfp4,
    nvfp4,
    persistent,
    quantizing,
    routing,
    scaled,
    split_k,
    training,
    w4a8,
    w4a16,
    w8a8,
)

BEYOND = 2**31
NO_RESERVE = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE: memory need not be there before it is touched
ROWS, K, N = 4, 128, 256
TILES = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 64}


def drawn(dtype: Any, *shape: int, seed: int = 1) -> Any:
    """Bytes that are finite numbers in every type."""
    size = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    codes = np.random.default_rng(seed).integers(0, 100, size).astype(np.uint8)
    if dtype == torch.float32:
        return torch.from_numpy(codes.reshape(-1, 4)[:, 0].astype(np.float32) / 8 - 6).reshape(shape)
    if dtype == torch.float16:
        return torch.from_numpy(codes.reshape(-1, 2)[:, 0].astype(np.float16) / 8 - 6).reshape(shape)
    return torch.from_numpy(codes).view(dtype).reshape(shape)


def mapped(dtype: Any, *shape: int) -> Any:
    """A tensor of zeros whose pages exist once they are touched."""
    size = int(np.prod(shape, dtype=np.int64)) * torch.empty(0, dtype=dtype).element_size()
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).reshape(shape)


@dataclass
class Place:
    """Where a tile lies: near, at the start of small operands, or far, at the end of ones beyond 2^31 elements."""

    far: bool
    rows: int = ROWS
    program: tuple[int, int, int] = (0, 0, 0)
    outputs: list[Any] = field(default_factory=list)

    def start(self, width: int, block: int = 16) -> int:
        """The first row, so that it is the first of a block and `width` times it is beyond."""
        return -(-BEYOND // width // block) * block if self.far else 0

    def rowwise(self, dtype: Any, start: int, *width: int, seed: int = 1) -> Any:
        """(start + ROWS, width), the last rows drawn."""
        content = drawn(dtype, self.rows, *width, seed=seed)
        if not start:
            return content
        whole = mapped(dtype, start + self.rows, *width)
        whole[start:] = content
        return whole

    def columnwise(self, dtype: Any, rows: int, columns: int, seed: int = 1) -> tuple[Any, int]:
        """(rows, many) with the first `columns` drawn, and how many: the last two rows are beyond."""
        content = drawn(dtype, rows, columns, seed=seed)
        if not self.far:
            return content, columns
        many = -(-BEYOND // (rows - 2) // 64) * 64
        whole = mapped(dtype, rows, many)
        whole[:, :columns] = content
        return whole, many

    def output(self, dtype: Any, start: int, *width: int) -> Any:
        """Rows to be written; what was is compared."""
        whole = mapped(dtype, start + self.rows, *width)
        self.outputs.append(whole[start:])
        return whole


Case = Callable[[Place], tuple[Any, tuple[Any, ...], dict[str, Any]]]
E4M3, F32, F16, I32, I8, U8 = torch.float8_e4m3fn, torch.float32, torch.float16, torch.int32, torch.int8, torch.uint8


def fp8_left(at: Place) -> Any:
    start = at.start(K)
    at.program = (start // 16, 0, 0)
    x, out = at.rowwise(E4M3, start, K), at.output(F32, start, N)
    one = torch.ones(1)
    return fp8.fp8_kernel, (x, one, drawn(E4M3, N, K, seed=2), one, out, start + ROWS, N, K), {
        "PER_ROW": False, "PER_COLUMN": False, "IMPRECISE": None, **TILES}  # fmt: skip


def fp8_right(at: Place) -> Any:
    start = at.start(K)
    at.program = (0, start // 16, 0)
    w, scales = at.rowwise(E4M3, start, K), at.rowwise(F32, start, seed=3)
    out = mapped(F32, 2, start + ROWS)
    at.outputs.append(out[:, start:])
    return fp8.fp8_kernel, (drawn(E4M3, 2, K, seed=2), torch.ones(1), w, scales, out, 2, start + ROWS, K), {
        "PER_ROW": False, "PER_COLUMN": True, "IMPRECISE": None, **TILES}  # fmt: skip


def fp8_quantized(at: Place) -> Any:
    start = at.start(K)
    at.program = (start, 0, 0)
    x, out, scales = at.rowwise(F32, start, K), at.output(E4M3, start, K), at.output(F32, start)
    return fp8.fp8_rows_kernel, (x, out, scales, K), {"MAX": 448.0, "RECIPE": "divide", "BLOCK": K}


def tiles_quantized(at: Place) -> Any:
    start = at.start(K, 32)
    at.program = (start // 32, 0, 0)
    x, out, scales = at.rowwise(F32, start, K), at.output(E4M3, start, K), at.output(F32, start)
    return fp8_blockwise.tiles_kernel, (x, out, scales, start + ROWS, K, 1e-4), {
        "MAX": 448.0, "RECIPE": "divide", "SQUARE": False, "ROWS": 32, "BLOCK": 128}  # fmt: skip


def tiles_left(at: Place) -> Any:
    start = at.start(K)
    at.program = (start // 16, 0, 0)
    x, scales, out = at.rowwise(E4M3, start, K), at.rowwise(F32, start, 1, seed=3), at.output(F32, start, N)
    w = drawn(E4M3, N, K, seed=2), drawn(F32, 2, 1, seed=4)
    return fp8_blockwise.fp8_blockwise_kernel, (x, scales, *w, out, start + ROWS, N, K), {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK": 128}


def mx_rows(at: Place) -> Any:
    start = at.start(K, 32)
    at.program = (start // 32, 1, 0)
    x, out, scales = at.rowwise(F32, start, K), at.output(E4M3, start, K), at.output(U8, start, K // 32)
    return quantizing.mx_kernel, (x, out, scales, start + ROWS, K, K, 1), {
        "EMAX": 8, "FRACTION_BITS": 3, "MAX": 448.0, "RECIPE": "floor", "PACK": 1, "BLOCK_R": 32}  # fmt: skip


def mx_columns(at: Place, pack: int = 1) -> Any:
    """(K, R) with blocks along K: the last of 32 rows is beyond."""
    x, many = at.columnwise(F32, 32, ROWS)
    out, scales = mapped(U8 if pack == 2 else E4M3, many, 32 // pack), mapped(U8, many)
    at.outputs += [out[:ROWS], scales[:ROWS]]
    return quantizing.mx_kernel, (x, out, scales, many, 32, 1, many), {
        "EMAX": 2 if pack == 2 else 8, "FRACTION_BITS": 1 if pack == 2 else 3, "MAX": 6.0 if pack == 2 else 448.0, "RECIPE": "floor",
        "PACK": pack, "BLOCK_R": 4}  # fmt: skip


def mxfp4_columns(at: Place) -> Any:
    return mx_columns(at, pack=2)


def nvfp4_rows(at: Place) -> Any:
    start = at.start(K, 32)
    at.program = (start // 32, 1, 0)
    x, out, scales = at.rowwise(F32, start, K), at.output(U8, start, K // 2), at.output(U8, start, K // 16)
    return nvfp4.nvfp4_kernel, (x, out, scales, torch.ones(1), start + ROWS, K, K, 1), {"SQUARE": False, "BLOCK_R": 32}


def nvfp4_columns(at: Place) -> Any:
    x, many = at.columnwise(F32, 16, ROWS)
    out, scales = mapped(U8, many, 8), mapped(U8, many)
    at.outputs += [out[:ROWS], scales[:ROWS]]
    return nvfp4.nvfp4_kernel, (x, out, scales, torch.ones(1), many, 16, 1, many), {"SQUARE": False, "BLOCK_R": 4}


def hadamard_rows(at: Place) -> Any:
    start = at.start(K, 32)
    at.program = (start // 32, 1, 0)
    x, out = at.rowwise(F32, start, K), at.output(F32, start, K)
    return training.hadamard_kernel, (x, torch.ones(16), out, start + ROWS, K, K, 1), {"ROWS": 32}


def hadamard_columns(at: Place) -> Any:
    x, many = at.columnwise(F32, 16, ROWS)
    out = mapped(F32, many, 16)
    at.outputs.append(out[:ROWS])
    return training.hadamard_kernel, (x, torch.ones(16), out, many, 16, 1, many), {"ROWS": 4}


def nvfp4_drawn_rows(at: Place) -> Any:
    start = at.start(K, 32)
    at.program = (start // 32, 1, 0)
    x, random = at.rowwise(F32, start, K), at.rowwise(I32, start, K, seed=2)
    out, scales = at.output(U8, start, K // 2), at.output(U8, start, K // 16)
    return training.nvfp4_drawn_kernel, (x, random, out, scales, torch.ones(1), start + ROWS, K, K, 1), {"BLOCK_R": 32}


def nvfp4_drawn_columns(at: Place) -> Any:
    x, many = at.columnwise(F32, 16, ROWS)
    random, _ = at.columnwise(I32, 16, ROWS, seed=2)
    out, scales = mapped(U8, many, 8), mapped(U8, many)
    at.outputs += [out[:ROWS], scales[:ROWS]]
    return training.nvfp4_drawn_kernel, (x, random, out, scales, torch.ones(1), many, 16, 1, many), {"BLOCK_R": 4}


def blocks_left(at: Place) -> Any:
    start = at.start(K)
    at.program = (start // 16, 0, 0)
    a, out = at.rowwise(E4M3, start, K), at.output(F32, start, N)
    b, b_scales = drawn(E4M3, N, K, seed=2), drawn(U8, N, K // 32, seed=4) + 100
    a_scales = at.rowwise(U8, start, K // 32, seed=3)
    return block_scaled.block_scaled_kernel, (a, a_scales, b, b_scales, out, out, start + ROWS, N, K), {
        "A_FORMAT": "e4m3", "B_FORMAT": "e4m3", "GROUP": 32, "SWIZZLED": False, "ALPHA": False, **TILES}  # fmt: skip


def blocks_right(at: Place) -> Any:
    start = at.start(K)
    at.program = (0, start // 16, 0)
    b, b_scales = at.rowwise(E4M3, start, K), at.rowwise(U8, start, K // 32, seed=3)
    out = mapped(F32, 2, start + ROWS)
    at.outputs.append(out[:, start:])
    a, a_scales = drawn(E4M3, 2, K, seed=2), drawn(U8, 2, K // 32, seed=4) + 100
    return block_scaled.block_scaled_kernel, (a, a_scales, b, b_scales, out, out, 2, start + ROWS, K), {
        "A_FORMAT": "e4m3", "B_FORMAT": "e4m3", "GROUP": 32, "SWIZZLED": False, "ALPHA": False, **TILES}  # fmt: skip


def mxfp6_left(at: Place) -> Any:
    width = K * 3 // 4
    start = at.start(width)
    at.program = (start // 16, 0, 0)
    a, a_scales, out = at.rowwise(U8, start, width), at.rowwise(U8, start, K // 32, seed=3), at.output(F32, start, N)
    b, b_scales = drawn(U8, N, width, seed=2), drawn(U8, N, K // 32, seed=4) + 100
    return mxfp6_mxfp4.mxfp6_kernel, (a, a_scales, b, b_scales, out, start + ROWS, N, K), {"A_EXPONENT": 3, "B_EXPONENT": 2, **TILES}


def int8_left(at: Place) -> Any:
    start = at.start(K)
    at.program = (start // 16, 0, 0)
    x, scales, out = at.rowwise(I8, start, K), at.rowwise(F32, start, seed=3), at.output(F32, start, N)
    return w8a8.w8a8_kernel, (x, scales, drawn(I8, K, N, seed=2), drawn(F32, N, seed=4), out, start + ROWS, N, K), TILES


def int8_right(at: Place) -> Any:
    w, many = at.columnwise(I8, K, 16)
    scales, out = at_start(F32, many), at_start(F32, 2, many)
    at.outputs.append(out[:, :16])
    return w8a8.w8a8_kernel, (drawn(I8, 2, K, seed=2), drawn(F32, 2, seed=4), w, scales, out, 2, many, K), TILES


def at_start(dtype: Any, *shape: int) -> Any:
    """Zeros, or where there is one dimension ones, in the first 16."""
    whole = mapped(dtype, *shape)
    if len(shape) == 1:
        whole[:16] = 1
    return whole


def outliers(at: Place) -> Any:
    w16, many = at.columnwise(F16, K, 16)
    w = mapped(I8, K, many)
    scales, out = at_start(F32, many), at_start(F32, 2, many)
    at.outputs.append(out[:, :16])
    columns = torch.tensor([3, K - 1], dtype=I32)
    left = drawn(I8, 2, K, seed=2), drawn(F32, 2, seed=4), w, scales, drawn(F16, 2, 2, seed=5), columns, w16
    return w8a8.llm_int8_kernel, (*left, out, 2, many, K, 2), {**TILES, "BLOCK_OUTLIERS": 16}


def w4a8_right(at: Place) -> Any:
    words, many = at.columnwise(I32, K // 8, 16)
    scales, out = at_start(F32, many), at_start(F32, 2, many)
    at.outputs.append(out[:, :16])
    return w4a8.w4a8_kernel, (drawn(I8, 2, K, seed=2), drawn(F32, 2, seed=4), words, scales, scales, out, 2, many, K), {"GROUP": 0, **TILES}


def w4a8_left(at: Place) -> Any:
    start = at.start(K)
    at.program = (start // 16, 0, 0)
    x, scales, out = at.rowwise(I8, start, K), at.rowwise(F32, start, seed=3), at.output(F32, start, N)
    parts = drawn(I32, K // 8, N, seed=2), drawn(F16, 1, N, seed=4), drawn(F32, N, seed=5)
    return w4a8.w4a8_kernel, (x, scales, *parts, out, start + ROWS, N, K), {"GROUP": K, **TILES}


def awq_right(at: Place) -> Any:
    words, many = at.columnwise(I32, 2 * K, 2)
    at.outputs.append(out := at_start(F32, 2, 8 * many))
    at.outputs[-1] = out[:, :16]
    zeros, scales = at_start(I32, many), at_start(F16, 8 * many)
    return w4a16.awq_kernel, (drawn(F16, 2, 2 * K, seed=2), words, zeros, scales, out, 2, 8 * many, 2 * K), {"GROUP": 2 * K, **TILES}


def awq_left(at: Place) -> Any:
    start = at.start(K)
    at.program = (start // 16, 0, 0)
    x, out = at.rowwise(F16, start, K), at.output(F32, start, N)
    parts = drawn(I32, K, N // 8, seed=2), drawn(I32, 1, N // 8, seed=3), drawn(F16, 1, N, seed=4)
    return w4a16.awq_kernel, (x, *parts, out, start + ROWS, N, K), {"GROUP": K, **TILES}


def gptq_right(at: Place) -> Any:
    words, many = at.columnwise(I32, K // 8, 16)
    at.outputs.append((out := at_start(F32, 2, many))[:, :16])
    groups = torch.zeros(K, dtype=I32)
    zeros, scales = at_start(I32, many // 8), at_start(F16, many)
    return w4a16.gptq_kernel, (drawn(F16, 2, K, seed=2), words, zeros, scales, groups, out, 2, many, K), {"ADD_TO_ZERO": 1, **TILES}


def gptq_groups(at: Place) -> Any:
    """Every element of K its own group: scales beyond."""
    scales, many = at.columnwise(F16, 32, 16)
    at.outputs.append((out := at_start(F32, 2, many))[:, :16])
    words, zeros = (
        at_start(I32, 4 * many).reshape(4, many),
        mapped(I32, 32, many // 8),
    )
    groups = torch.arange(32, dtype=I32)
    return (
        w4a16.gptq_kernel,
        (drawn(F16, 2, 32, seed=2), words, zeros, scales, groups, out, 2, many, 32),
        {"ADD_TO_ZERO": 1, **TILES, "BLOCK_K": 32},
    )


def gptq_left(at: Place) -> Any:
    start = at.start(K)
    at.program = (start // 16, 0, 0)
    x, out = at.rowwise(F16, start, K), at.output(F32, start, N)
    parts = drawn(I32, K // 8, N, seed=2), drawn(I32, 1, N // 8, seed=3), drawn(F16, 1, N, seed=4), torch.zeros(K, dtype=I32)
    return w4a16.gptq_kernel, (x, *parts, out, start + ROWS, N, K), {"ADD_TO_ZERO": 0, **TILES}


def moe_tokens(at: Place, mxfp4: bool = False) -> Any:
    """Choices that are far down: activations, weights of the routing and rows of the result."""
    start = at.start(K)
    x = at.rowwise(torch.bfloat16 if mxfp4 else F16, start, K)
    if mxfp4:
        x[start:] = drawn(F32, ROWS, K).bfloat16()
    weights, rows = at.rowwise(F32, start, 1, seed=3), at.output(F32, start, N)
    choices = torch.full((16,), start + ROWS, dtype=I32)
    choices[:ROWS] = torch.arange(start, start + ROWS, dtype=I32)
    tables = choices, torch.zeros(1, dtype=I32), weights, rows, start + ROWS, N, K, 1
    if mxfp4:
        parts = drawn(U8, 1, N, K // 2, seed=2), drawn(U8, 1, N, K // 32, seed=4) + 100
        return moe.moe_mxfp4_kernel, (x, *parts, *tables), TILES
    parts = drawn(I32, 1, K, N // 8, seed=2), drawn(I32, 1, 1, N // 8, seed=4), drawn(F16, 1, 1, N, seed=5)
    return moe.moe_w4a16_kernel, (x, *parts, *tables), {"GROUP": K, **TILES}


def moe_mxfp4_tokens(at: Place) -> Any:
    return moe_tokens(at, mxfp4=True)


def _moe_tables(at: Place, start: int, experts: int = 1) -> tuple[Any, ...]:
    """Choices that are far down, of the last expert."""
    weights, rows = at.rowwise(F32, start, 1, seed=3), at.output(F32, start, N)
    choices = torch.full((16,), start + ROWS, dtype=I32)
    choices[:ROWS] = torch.arange(start, start + ROWS, dtype=I32)
    return choices, torch.full((1,), experts - 1, dtype=I32), weights, rows, start + ROWS, N, K, 1


def moe_int8_tokens(at: Place) -> Any:
    start = at.start(K)
    x, x_scales = at.rowwise(I8, start, K), at.rowwise(F32, start, 1, seed=5)
    parts = drawn(I8, 1, N, K, seed=2), drawn(F32, 1, N, seed=4)
    return moe_experts.moe_w8a8_kernel, (x, x_scales, *parts, *_moe_tables(at, start)), TILES


def moe_int8_experts(at: Place) -> Any:
    """An expert whose weights are beyond."""
    experts = -(-BEYOND // (N * K)) + 2 if at.far else 1
    w, w_scales = mapped(I8, experts, N, K), mapped(F32, experts, N)
    w[-1], w_scales[-1] = drawn(I8, N, K, seed=2), drawn(F32, N, seed=4)
    x, x_scales = drawn(I8, ROWS, K), drawn(F32, ROWS, seed=5)
    return moe_experts.moe_w8a8_kernel, (x, x_scales, w, w_scales, *_moe_tables(at, 0, experts)), TILES


def moe_words_tokens(at: Place) -> Any:
    start = at.start(K)
    parts = drawn(I32, 1, K // 4, N, seed=2), drawn(F16, 1, 2, N, seed=4)
    return moe_experts.moe_w8a16_kernel, (at.rowwise(F16, start, K), *parts, *_moe_tables(at, start)), {
        "E4M3": False, "GROUP": K // 2, **TILES}  # fmt: skip


def moe_tiles_tokens(at: Place) -> Any:
    start = at.start(K)
    x, x_scales = at.rowwise(E4M3, start, K), at.rowwise(F32, start, 1, seed=5)
    parts = drawn(E4M3, 1, N, K, seed=2), drawn(F32, 1, N // 128, 1, seed=4)
    return moe_experts.moe_fp8_tiles_kernel, (x, x_scales, *parts, *_moe_tables(at, start)), {
        "IN_TURN": False, "BLOCK_M": 16, "BLOCK_N": 16, "BLOCK": 128}  # fmt: skip


def moe_blocks_tokens(at: Place) -> Any:
    start = at.start(K)
    x, x_scales = at.rowwise(E4M3, start, K), at.rowwise(U8, start, K // 32, seed=5)
    parts = drawn(E4M3, 1, N, K, seed=2), drawn(U8, 1, N, K // 32, seed=4) + 100
    return moe_experts.moe_block_scaled_kernel, (x, x_scales, *parts, torch.ones(1), *_moe_tables(at, start)), {
        "FORMAT": "e4m3", "GROUP": 32, "ALPHA": True, **TILES}  # fmt: skip


def moe_ordered_sum(at: Place) -> Any:
    start = at.start(2 * N)
    at.program = (start, 0, 0)
    rows, out = at.rowwise(F32, start, 2, N), at.output(F32, start, N)
    return moe_sums.ordered_kernel, (rows, out, N), {"TOP_K": 2, "ROUND": True, "BLOCK_N": 16}


def moe_gated(at: Place) -> Any:
    start = at.start(2 * N)
    at.program = (start, 0, 0)
    rows, out = at.rowwise(F32, start, 2 * N), at.output(F32, start, N)
    return moe_layer.swiglu_kernel, (rows, out, start + ROWS, N), {"KIND": triton.language.bfloat16, "BLOCK_N": 16}


def moe_int8_rows(at: Place) -> Any:
    start = at.start(K)
    at.program = (start, 0, 0)
    x, out, scales = at.rowwise(F32, start, K), at.output(I8, start, K), at.output(F32, start)
    return moe_layer.int8_rows_kernel, (x, out, scales, K), {"BLOCK_K": 64}


def moe_scores(at: Place) -> Any:
    start = at.start(K, 128)
    at.program = (start // 128, 0, 0)
    logits, scores = at.rowwise(F32, start, K), at.output(F32, start, K)
    return routing.scores_kernel, (logits, scores, start + ROWS, K), {"SOFTMAX": False, "BLOCK": 128}


def moe_sum(at: Place) -> Any:
    start = at.start(2 * N)
    at.program = (start, 0, 0)
    rows, out = at.rowwise(F32, start, 2, N), at.output(F32, start, N)
    return moe.moe_sum_kernel, (rows, out, N), {"TOP_K": 2, "BLOCK_N": 16}


def sage(at: Place, eight: bool = False) -> Any:
    """A head far down."""
    keys, width, heads = 32, 32, BEYOND // (32 * 32)
    head = heads if at.far else 0
    at.program = (0, head, 0)
    at.rows = 1
    q, k = at.rowwise(I8, head, keys, width), at.rowwise(I8, head, keys, width, seed=2)
    v, out = at.rowwise(E4M3 if eight else F16, head, keys, width, seed=3), at.output(F32, head, keys, width)
    scales = [at.rowwise(F32, head, size, seed=seed).abs_() for size, seed in ((1, 4), (1, 5), (width, 6))]
    return attention.sage_kernel, (q, scales[0], k, scales[1], v, scales[2], out, keys, keys, 1), {
        "CAUSAL": True, "FP8": eight, "D": width, "BLOCK_Q": 32, "BLOCK_K": 32, "LEVELS": 5}  # fmt: skip


def sage2(at: Place) -> Any:
    return sage(at, eight=True)


def cached(at: Place) -> Any:
    """The page far down, and the sequence."""
    page, width = 32, 32
    first = at.start(page * width, 1)
    at.rows = 1
    keys, values = at.rowwise(E4M3, first, page, 1, width), at.rowwise(E4M3, first, page, 1, width, seed=2)
    sequence = at.start(page * width, 1)
    at.program = (0, 0, sequence)
    q, out = at.rowwise(E4M3, sequence, page, width, seed=3), at.output(F32, sequence, page, width)
    tables, lengths = torch.zeros((sequence + 1, 1), dtype=I32), torch.zeros(sequence + 1, dtype=I32)
    tables[-1], lengths[-1] = first, page
    return attention.fp8_kernel, (q, keys, values, tables, lengths, out, torch.ones(1), torch.ones(1), 1, 1, page, 1), {
        "PAGE": page, "D": width, "BLOCK_Q": 16, "BLOCK_K": 32, "LEVELS": 5}  # fmt: skip


def int8_cache(at: Place) -> Any:
    """The page far down, and the sequence."""
    page, width = 32, 64
    first, sequence = at.start(page * width // 4, 1), at.start(page * width, 1)
    at.rows, at.program = 1, (0, 0, sequence)
    words = [at.rowwise(I32, first, page, 1, width // 4, seed=seed) for seed in (1, 2)]
    scales = [at.rowwise(F32, first, page, 1, 1, seed=seed).abs_() for seed in (3, 4)]
    q = at.rowwise(F16, sequence, 1, page, width, seed=5)
    sums = [at.output(F32, sequence, page) for _ in range(2)]
    parts = at.output(F32, sequence, page, width)
    tables, lengths = torch.zeros((sequence + 1, 1), dtype=I32), torch.zeros(sequence + 1, dtype=I32)
    tables[-1], lengths[-1] = first, page
    sides = {"ELEMENT": "s8", "SCALE": "f32", "ZEROS": False, "TOKENS": 1, "CHANNELS": width}
    return attention_cached.cached_kernel, (
        q, words[0], scales[0], scales[0], words[1], scales[1], scales[1], q, tables, lengths, q, torch.ones(1) / 1024, *sums, parts,
        1, 1, 1, page, 1, 1, 0, page,
    ), {
        **{f"{side}_{name}": value for side in "KV" for name, value in sides.items()}, "OUTSIDE": True, "SINKS": False, "D": width,
        "BLOCK_Q": 16, "BLOCK_K": 32, "LEVELS": 5,
    }  # fmt: skip


def merged(at: Place) -> Any:
    sequence = at.start(16 * 64, 1)
    at.rows, at.program = 1, (0, 0, sequence)
    sums = [at.rowwise(F32, sequence, 16, seed=seed).abs_() for seed in (1, 2)]
    parts, out = at.rowwise(F32, sequence, 16, 64, seed=3), at.output(F32, sequence, 16, 64)
    return attention_cached.merge_kernel, (*sums, parts, out, torch.ones(1), 1, 1, 1, 16, 1), {"D": 64, "BLOCK_Q": 16}


def strided(at: Place, dtype: Any, rows: int, columns: int, seed: int = 1) -> Any:
    """A matrix with gaps between its rows, the last of which is beyond."""
    gap = -(-BEYOND // (rows - 1) // 8) * 8 if at.far else columns
    whole = torch.as_strided(mapped(dtype, (rows - 1) * gap + columns), (rows, columns), (gap, 1))
    whole.copy_(drawn(dtype, rows, columns, seed=seed))
    return whole


def plain(at: Place, kernel: Any, **more: Any) -> Any:
    a, b, c = strided(at, F16, ROWS, 64), strided(at, F16, 64, 16, seed=2), strided(at, F32, ROWS, 16, seed=3)
    at.outputs.append(c)
    sizes = (a, b, c, ROWS, 16, 64, *a.stride(), *b.stride(), *c.stride())
    return kernel, sizes, {**TILES, "BLOCK_K": 32, "GROUP_M": 8, **more}


def plain_matmul(at: Place) -> Any:
    return plain(at, matmul.matmul_kernel.fn, ACTIVATION="")


def plain_persistent(at: Place) -> Any:
    return plain(at, persistent.persistent_kernel, PROGRAMS=1)


def parts_of_k(at: Place) -> Any:
    """The third part of the sums is beyond."""
    at.program = (0, 2, 0)
    gap = BEYOND // 2 if at.far else ROWS * 16
    a, b = strided(at, F16, ROWS, 64), strided(at, F16, 64, 16, seed=2)
    whole = torch.as_strided(mapped(F32, 2 * gap + ROWS * 16), (3, ROWS, 16), (gap, 16, 1))
    at.outputs.append(whole[2])
    return split_k.split_k_kernel, (a, b, whole, ROWS, 16, 64, 16, *a.stride(), *b.stride(), gap, 16, 1), {
        **TILES, "BLOCK_K": 16, "GROUP_M": 8, "ATOMIC": False}  # fmt: skip


def sum_of_parts(at: Place) -> Any:
    gap = BEYOND // 2 if at.far else 64
    whole = torch.as_strided(mapped(F32, 2 * gap + 64), (3, 64), (gap, 1))
    whole.copy_(drawn(F32, 3, 64))
    at.outputs.append(c := torch.zeros(64))
    return split_k.sum_parts_kernel, (whole, c, 64, gap), {"PARTS": 3, "BLOCK": 64}


def sum_far_down(at: Place) -> Any:
    start = at.start(1, 64)
    at.program = (start // 64, 0, 0)
    at.rows = 64
    parts, c = at.rowwise(F32, start), at.output(F32, start)
    return split_k.sum_parts_kernel, (parts, c, start + 64, 0), {"PARTS": 1, "BLOCK": 64}


def scaled_left(at: Place) -> Any:
    start = at.start(K)
    at.program = (start // 16, 0, 0)
    a, a_scales, out = at.rowwise(E4M3, start, K), at.rowwise(U8, start, K // 32, seed=3), at.output(F32, start, N)
    b, b_scales = drawn(E4M3, K, N, seed=2), drawn(U8, N, K // 32, seed=4) + 100
    return scaled.scaled_kernel, (a, a_scales, b, b_scales, out, start + ROWS, N, K), {
        "A_FORMAT": "e4m3", "B_FORMAT": "e4m3", "BLOCK_SCALE": 32, **TILES}  # fmt: skip


CASES: list[Case] = [
    fp8_left, fp8_right, fp8_quantized, tiles_quantized, tiles_left, mx_rows, mx_columns, mxfp4_columns, nvfp4_rows, nvfp4_columns,
    hadamard_rows, hadamard_columns, nvfp4_drawn_rows, nvfp4_drawn_columns,
    blocks_left, blocks_right, mxfp6_left, int8_left, int8_right, outliers, w4a8_left, w4a8_right, awq_left, awq_right, gptq_left,
    gptq_right, gptq_groups, moe_tokens, moe_mxfp4_tokens, moe_sum, moe_int8_tokens, moe_int8_experts,
    moe_words_tokens, moe_tiles_tokens, moe_blocks_tokens, moe_ordered_sum, moe_gated, moe_int8_rows, moe_scores,
    sage, sage2, cached, int8_cache, merged, plain_matmul, plain_persistent, parts_of_k,
    sum_of_parts, sum_far_down, scaled_left,
]  # fmt: skip


@pytest.fixture
def one_program(monkeypatch: Any) -> Iterator[Callable[[Place, Any], None]]:
    """Runs one program of a grid, wherever in it."""
    place: list[tuple[int, int, int]] = [(0, 0, 0)]

    def program_id(self: Any, axis: int) -> Any:
        import triton.language as tl

        return TensorHandle(np.array([place[0][axis]], np.int32), tl.int32)

    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", program_id)
    # Copying results back to where they are would touch every page.
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *arguments: None)

    def run(at: Place, case: Case) -> None:
        kernel, arguments, constants = case(at)
        place[0] = at.program
        kernel[(1, 1, 1)](*arguments, **constants, enable_fp_fusion=False)

    with emulate("sm_90a", frameworks=["triton"], triton="interpreted"):
        yield run


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_beyond_2_to_the_31_as_before(case: Case, one_program: Any) -> None:
    near, far = Place(far=False), Place(far=True)
    one_program(near, case)
    one_program(far, case)
    for wanted, got in zip(near.outputs, far.outputs, strict=True):
        assert wanted.shape == got.shape
        bits = [each.contiguous().view(torch.uint8) for each in (wanted, got)]
        assert bits[0].any(), "nothing was written"
        assert torch.equal(*bits)
