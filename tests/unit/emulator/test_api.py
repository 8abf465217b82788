"""`mma` and `gemm`: every refusal, and what holds for every product whatever its shape, layout and threads."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numba
import numpy as np
import operands
import pytest

import mmabits
from mmabits.emulator.api import row_by_row
from mmabits.emulator.codecs import from_codes
from mmabits.emulator.engine import machine_code, products
from mmabits.isa import (
    Instruction,
    InsufficientEvidence,
    MmabitsError,
    OperandError,
    OperandTypeError,
    UnknownArchitecture,
    UnknownInstruction,
    UnsupportedInstruction,
    parse,
)

Array = np.ndarray[Any, Any]

E4M3, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu
WGMMA = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"
WGMMA_F16 = "wgmma.mma_async.sync.aligned.m64n8k32.f16.e4m3.e4m3"
MXF8 = "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e4m3.e4m3.ue8m0"
NVF4 = "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"


def zeros(*shape: int, dtype: Any = E4M3) -> Array:
    return np.zeros(shape, dtype)


def ones(*shape: int, dtype: Any = E8M0) -> Array:
    return np.ones(shape, np.float32).astype(dtype)


def bits(array: Array) -> Array:
    """The codes of a result."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def same(got: Array, want: Array) -> bool:
    """Equal in dtype, shape and every bit."""
    return got.dtype == want.dtype and got.shape == want.shape and bool((bits(got) == bits(want)).all())


# ---------------------------------------------------------------------------------------------------------------- refusals


def wgmma(a: Any, b: Any, *rest: Any, **options: Any) -> Any:
    return mmabits.gemm(a, b, *rest, **({"instruction": WGMMA, "arch": "sm_90a"} | options))


def mxf8(a: Any, b: Any, *rest: Any, **options: Any) -> Any:
    return mmabits.gemm(a, b, *rest, **({"instruction": MXF8, "arch": "sm_100a"} | options))


def tile(a: Any, b: Any, *rest: Any, instruction: Any = WGMMA, **options: Any) -> Any:
    return mmabits.mma(instruction, a, b, *rest, **({"arch": "sm_90a"} | options))


A, B, C = zeros(64, 32), zeros(32, 8), zeros(64, 8, dtype=np.float32)
SA, SB = ones(64, 1), ones(1, 8)
F64, S8 = zeros(8, 16, dtype=np.float64), zeros(16, 32, dtype=np.int8)
K64 = {"a": zeros(16, 64, dtype=ml_dtypes.float4_e2m1fn), "b": zeros(64, 8, dtype=ml_dtypes.float4_e2m1fn)}

REFUSALS: dict[str, tuple[type[MmabitsError], str, Callable[[], Any]]] = {
    # what is no array
    "a None": (OperandTypeError, "a must be a NumPy, torch or JAX array, got builtins.NoneType", lambda: wgmma(None, B)),
    "b None": (OperandTypeError, "b must be an array, got None", lambda: wgmma(A, None)),
    "a list": (OperandTypeError, "a must be .* array, got builtins.list", lambda: wgmma([[1.0]], B)),
    "b scalar": (OperandTypeError, "b must be .* array, got builtins.float", lambda: wgmma(A, 1.0)),
    "c list": (OperandTypeError, "c must be .* array, got builtins.list", lambda: wgmma(A, B, [[0.0]])),
    "scale list": (OperandTypeError, "scale_b must be .* array, got builtins.list", lambda: mxf8(A, B, scale_a=SA, scale_b=[[1]])),
    "masked array": (OperandTypeError, "a must be .* array, got numpy.ma.*MaskedArray", lambda: wgmma(np.ma.masked_array(A), B)),
    # dtypes
    "a object": (OperandTypeError, "a has dtype object; allowed are .*float8_e4m3fn", lambda: wgmma(A.astype(object), B)),
    "b bool": (OperandTypeError, "b has dtype bool; allowed are .*float8_e4m3fn", lambda: wgmma(A, B.astype(bool))),
    "a big-endian": (OperandTypeError, "a has dtype >f2; allowed are .*float16.*; its bytes are swapped: pass a.astype\\('<f2'\\)$",
                     lambda: wgmma(A.astype(">f2"), B)),
    "c big-endian": (OperandTypeError, "c has dtype >f4; allowed are .*float32.*; its bytes are swapped: pass c.astype\\('<f4'\\)$",
                     lambda: wgmma(A, B, C.astype(">f4"))),
    "a of another instruction": (OperandTypeError, r"a of wgmma\S+ must be float8_e4m3fn \(e4m3\), got float16",
                                 lambda: wgmma(A.astype(np.float16), B)),
    "b of another instruction": (OperandTypeError, r"b of wgmma\S+ must be float8_e4m3fn \(e4m3\), got float8_e5m2",
                                 lambda: tile(A, B.astype(ml_dtypes.float8_e5m2))),
    "a of another Instruction": (OperandTypeError, r"a of wgmma\S+ must be float8_e4m3fn \(e4m3\), got float16",
                                 lambda: wgmma(A.astype(np.float16), B, instruction=parse(WGMMA))),
    "operands no instruction takes": (UnknownInstruction, "wgmma: .* no operands f64 x e4m3; allowed: f16",
                                      lambda: wgmma(A.astype(np.float64), B, instruction="wgmma")),
    "c bf16": (OperandTypeError, "c has dtype bfloat16; allowed are float16, float32", lambda: wgmma(A, B, C.astype(ml_dtypes.bfloat16))),
    "c f16 for f32": (OperandTypeError, r"c of wgmma\S+ must be float32 \(f32\), got float16", lambda: tile(A, B, C.astype(np.float16))),
    "c f32 for f16": (OperandTypeError, r"c of wgmma\S+ must be float16 \(f16\), got float32",
                      lambda: tile(A, B, C, instruction=WGMMA_F16)),
    "c f64 for wgmma": (UnknownInstruction, "no C f64; allowed: D f32 with C f32 or D f16 with C f16",
                        lambda: wgmma(A, B, C.astype(np.float64), instruction="wgmma")),
    "c f32 for integers": (UnknownInstruction, "no C f32; allowed: D s32 with C s32",
                           lambda: mmabits.gemm(S8, S8.T, zeros(16, 16, dtype=np.float32), instruction="mma.sync", arch="sm_80")),
    # shapes
    "a 1-D": (OperandError, r"a must have at least two dimensions, got shape \(32,\)", lambda: wgmma(A[0], B)),
    "b 1-D": (OperandError, r"b must have at least two dimensions, got shape \(32,\)", lambda: wgmma(A, B[:, 0])),
    "K": (OperandError, r"a has K = 32 \(shape \(64, 32\)\) and b has K = 16 \(shape \(16, 8\)\)", lambda: wgmma(A, B[:16])),
    "batches": (OperandError, r"leading dimensions of a \(2, 64, 32\) and b \(3, 32, 8\) do not broadcast",
                lambda: wgmma(zeros(2, 64, 32), zeros(3, 32, 8))),
    "c transposed": (OperandError, r"c of wgmma\S+ must have shape \(64, 8\), got \(8, 64\)", lambda: wgmma(A, B, C.T)),
    "c 1-D": (OperandError, r"c of wgmma\S+ must have shape \(64, 8\), got \(8,\)", lambda: wgmma(A, B, C[0])),
    "c with a batch of its own": (OperandError, r"c of .* must have shape \(64, 8\), got \(2, 64, 8\)",
                                  lambda: wgmma(A, B, np.stack([C, C]))),
    "c of another batch": (OperandError, r"c of .* must have shape \(3, 64, 8\), got \(2, 64, 8\)",
                           lambda: wgmma(zeros(3, 64, 32), B, np.stack([C, C]))),
    "mma M": (OperandError, r"operand A of wgmma\S+ must have shape \(64, 32\), got \(1, 32\); mmabits.gemm takes any",
              lambda: tile(A[:1], B)),
    "mma N": (OperandError, r"operand B of wgmma\S+ must have shape \(32, 8\), got \(32, 4\)", lambda: tile(A, B[:, :4])),
    "mma K": (OperandError, r"operand A of wgmma\S+ must have shape \(64, 32\), got \(64, 16\)", lambda: tile(A[:, :16], B[:16])),
    # block scales
    "scale_a alone": (OperandError, "scale_a is given without scale_b", lambda: mxf8(A, B, scale_a=SA)),
    "scale_b alone": (OperandError, "scale_b is given without scale_a", lambda: mxf8(A, B, scale_b=SB)),
    "scales missing": (OperandError, r"block-scaled: it needs scale_a \(\.\.\., 64, 1\) and scale_b \(\.\.\., 1, 8\), got none",
                       lambda: mxf8(A, B)),
    "scales missing, short": (OperandError, "is block-scaled: it needs scale_a",
                              lambda: mxf8(A, B, instruction="tcgen05.mma.kind::mxf8f6f4.block_scale")),
    "scales missing, mma": (OperandError, "is block-scaled: it needs scale_a", lambda: tile(**K64, instruction=NVF4, arch="sm_120a")),
    "scales for an unscaled one": (OperandError, r"wgmma\S+ takes no block scales, got scale_a and scale_b of dtype float8_e8m0fnu",
                                   lambda: wgmma(A, B, scale_a=SA, scale_b=SB)),
    "scales for an unscaled one, short": (UnknownInstruction, "has no block scales ue8m0; allowed: no block scales",
                                          lambda: wgmma(A, B, instruction="wgmma", scale_a=SA, scale_b=SB)),
    "scale dtype": (OperandTypeError, "scale_a has dtype float32; allowed are float8_e4m3fn, float8_e8m0fnu",
                    lambda: mxf8(A, B, scale_a=SA.astype(np.float32), scale_b=SB)),
    "scale dtypes differ": (OperandTypeError, "scale_a has dtype float8_e4m3fn and scale_b float8_e8m0fnu; both must be the same",
                            lambda: mxf8(A, B, scale_a=ones(64, 1, dtype=E4M3), scale_b=SB)),
    "scale type of another instruction": (OperandTypeError, r"scale_a and scale_b of tcgen05.* must be float8_e8m0fnu .*, got float8_e4m3",
                                          lambda: mxf8(A, B, scale_a=ones(64, 1, dtype=E4M3), scale_b=ones(1, 8, dtype=E4M3))),
    "scale_a transposed": (OperandError, r"scale_a of tcgen05\S+ must have shape \(64, 1\) \(one scale for 32 .*, got \(1, 64\)",
                           lambda: mxf8(A, B, scale_a=SA.T, scale_b=SB)),
    "scales of another block size": (OperandError, r"scale_b of tcgen05\S+ must have shape \(1, 8\) \(one scale for 32 .*\), got \(2, 8\)",
                                     lambda: mxf8(A, B, scale_a=SA, scale_b=ones(2, 8))),
    "block size 16 for 32": (OperandError, r"scale_a of .* must have shape \(16, 4\) \(one scale for 16 .*\), got \(16, 2\)",
                             lambda: tile(**K64, instruction=NVF4, arch="sm_120a", scale_a=ones(16, 2, dtype=E4M3),
                                          scale_b=ones(2, 8, dtype=E4M3))),
    "NaN in scale_a": (OperandError, r"scale_a has the NaN code 0xff at index \(3, 0\), and nan_scales is 'refuse'",
                       lambda: mxf8(A, B, scale_a=with_code(SA, (3, 0), 0xFF), scale_b=SB, nan_scales="refuse")),
    "NaN in scale_b": (OperandError, r"scale_b has the NaN code 0x7f at index \(2, 5\), and nan_scales is 'refuse'",
                       lambda: tile(**K64, instruction=NVF4, arch="sm_120a", scale_a=ones(16, 4, dtype=E4M3),
                                    scale_b=with_code(ones(4, 8, dtype=E4M3), (2, 5), 0x7F), nan_scales="refuse")),
    "nan_scales": (OperandError, "nan_scales must be 'propagate' or 'refuse', got 'ignore'",
                   lambda: mxf8(A, B, scale_a=SA, scale_b=SB, nan_scales="ignore")),
    # names
    "architecture": (UnknownArchitecture, "unknown architecture 'sm_91'; known: .*sm_90a", lambda: wgmma(A, B, arch="sm_91")),
    "architecture without its a": (UnknownArchitecture, "'sm_90' leaves out .* write 'sm_90a'", lambda: wgmma(A, B, arch="sm_90")),
    "architecture None": (UnknownArchitecture, "given as text such as 'sm_90a', not as NoneType", lambda: wgmma(A, B, arch=None)),
    "architecture list": (UnknownArchitecture, "not as list", lambda: wgmma(A, B, arch=["sm_90a"])),
    "instruction": (UnknownInstruction, "unknown instruction 'wgmmma'; did you mean wgmma", lambda: wgmma(A, B, instruction="wgmmma")),
    "qualifier": (UnknownInstruction, "unknown qualifier 'alined'; did you mean aligned",
                  lambda: tile(A, B, instruction=WGMMA.replace("aligned", "alined"))),
    "instruction None": (UnknownInstruction, "as text or as an Instruction, not as NoneType", lambda: wgmma(A, B, instruction=None)),
    "instruction list": (UnknownInstruction, "as text or as an Instruction, not as list", lambda: wgmma(A, B, instruction=[WGMMA])),
    "instruction elsewhere": (UnsupportedInstruction, "sm_90a has no tcgen05.mma; for e4m3 x e4m3 it has wgmma.mma_async, mma.sync",
                              lambda: wgmma(A, B, instruction="tcgen05.mma")),
    "instruction not here yet": (UnsupportedInstruction, r"sm_80 has no wgmma.*targets with it: sm_90a", lambda: tile(A, B, arch="sm_80")),
    "sparse": (UnsupportedInstruction, "known but not modelled: 2:4 sparse A",
               lambda: wgmma(A, B, instruction="mma.sp.sync.aligned.m16n8k64.row.col.f32.e4m3.e4m3.f32")),
    # evidence
    "evidence": (InsufficientEvidence, r"wgmma\S+ on sm_90a rests on published evidence, but recorded is required",
                 lambda: wgmma(A, B, require="recorded")),
    "evidence, mma": (InsufficientEvidence, "rests on published evidence, but recorded is required",
                      lambda: tile(A, B, require="recorded")),
    "evidence level": (OperandError, "unknown evidence level 'record'; did you mean recorded", lambda: wgmma(A, B, require="record")),
    # promotion
    "promote 0": (OperandError, "promote_every must be a positive number of elements of K, got 0", lambda: wgmma(A, B, promote_every=0)),
    "promote -32": (OperandError, "promote_every must be a positive number .*, got -32", lambda: wgmma(A, B, promote_every=-32)),
    "promote float": (OperandError, r"promote_every must be a positive number .*, got 32\.0", lambda: wgmma(A, B, promote_every=32.0)),
    "promote bool": (OperandError, "promote_every must be a positive number .*, got True", lambda: wgmma(A, B, promote_every=True)),
    "promote text": (OperandError, "promote_every must be a positive number .*, got '32'", lambda: wgmma(A, B, promote_every="32")),
    "promote 48": (OperandError, "promote_every must be a multiple of the instruction's K = 32, got 48",
                   lambda: wgmma(A, B, promote_every=48)),
    "promote f64": (OperandError, "promote_every is for f32 and f16 accumulators, .* has f64",
                    lambda: mmabits.gemm(F64, F64.T, instruction="mma.sync", arch="sm_80", promote_every=16)),
    "promote integers": (OperandError, "promote_every is for f32 and f16 accumulators, .* has s32",
                         lambda: mmabits.gemm(S8, S8.T, instruction="mma.sync", arch="sm_80", promote_every=32)),
    "promote with c f16": (OperandTypeError, "with promote_every c must be float32, got float16",
                           lambda: wgmma(A, B, C.astype(np.float16), instruction=WGMMA_F16, promote_every=32)),
}  # fmt: skip


def with_code(array: Array, index: tuple[int, ...], code: int) -> Array:
    """A copy with one code changed."""
    changed = array.copy()
    changed.view(np.uint8)[index] = code
    return changed


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class, one line that says what arrived and what is allowed, and nothing computed before it."""
    monkeypatch.setattr(products, "run", lambda *_: pytest.fail("computed before refusing"))
    error, pattern, call = REFUSALS[case]
    with pytest.raises(error, match=pattern) as caught:
        call()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 320


def test_the_negative_control_of_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the refusals are variations of does reach the engine."""
    reached = []
    monkeypatch.setattr(products, "run", lambda *_: reached.append(1))
    wgmma(A, B, C, promote_every=np.int64(64))
    tile(A, B, C, require="published")
    mxf8(A, B, scale_a=SA, scale_b=SB, nan_scales="refuse")
    tile(**K64, instruction=NVF4, arch="sm_120a", scale_a=ones(16, 4, dtype=E4M3), scale_b=ones(4, 8, dtype=E4M3))
    assert len(reached) == 4


# ------------------------------------------------------------------------------------------------------------------ shapes

PRODUCTS = {
    "wgmma e4m3": ("sm_90a", WGMMA),
    "wgmma f16 accumulator": ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16"),
    "mma.sync bf16": ("sm_80", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"),
    "mma.sync tf32": ("sm_80", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"),
    "fp8 by way of f16": ("sm_90a", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32"),
    "fp8 by way of f16, f16": ("sm_90a", "mma.sync.aligned.m16n8k32.row.col.f16.e5m2.e4m3.f16"),
    "scale-input-d": ("sm_100a", "tcgen05.mma.cta_group::1.kind::f16.m128n8k16.f32.f16.f16.scale_input_d::3"),
    "fp6 x fp4": ("sm_100a", "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n8k32.f32.e3m2.e2m1"),
    "mxf8": ("sm_100a", MXF8),
    "mxf4": ("sm_120a", "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0"),
    "nvf4": ("sm_120a", NVF4),
    "f64": ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64"),
    "int8": ("sm_80", "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32"),
    "int8 satfinite": ("sm_80", "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.u8.s8.s32"),
    "int4": ("sm_80", "mma.sync.aligned.m16n8k64.row.col.s32.s4.u4.s32"),
}  # fmt: skip


class Drawn:
    """Operands of one product; every array may be replaced before use."""

    def __init__(self, name: str, m: int, n: int, k: int, *, batch: tuple[int, ...] = (), kind: str = "raw_finite") -> None:
        self.arch, self.text = PRODUCTS[name]
        self.row = parse(self.text)
        rng = operands.generator("api", name, m, n, k, batch, kind)
        row = self.row
        self.a = from_codes(operands.draw(kind, row.a_type.name, (*batch, m, k), rng), row.a_type)
        self.b = from_codes(operands.draw(kind, row.b_type.name, (*batch, k, n), rng), row.b_type)
        self.c = from_codes(operands.draw(kind, row.c_type.name, (*batch, m, n), rng), row.c_type)
        self.scales: dict[str, Array] = {}
        if row.scale_type is not None and row.block is not None:
            blocks = -(-k // row.block)
            for side, shape in (("scale_a", (m, blocks)), ("scale_b", (blocks, n))):
                near_one = rng.integers(0x70, 0x7F, (*batch, *shape), dtype=np.uint8)  # 2^-15 to 1, or 16 to 416
                self.scales[side] = from_codes(near_one, row.scale_type)

    def gemm(self, **options: Any) -> Array:
        given = {"a": self.a, "b": self.b, "c": self.c, **self.scales}
        return mmabits.gemm(**(given | {"instruction": self.row, "arch": self.arch} | options))


def padded(array: Array, *sizes: int) -> Array:
    """The matrix with codes 0 (for scales too: ml_dtypes makes a ue8m0 zero NaN) up to multiples of the sizes."""
    codes = np.ascontiguousarray(array).view(f"V{array.dtype.itemsize}")
    return np.pad(codes, [(0, -have % size) for have, size in zip(array.shape, sizes, strict=True)]).view(array.dtype)


def by_tiles(drawn: Drawn) -> Array:
    """The product put together from calls of `mma`: tiles of the instruction's own shape, K upward, each result the next one's c."""
    row = drawn.row
    a, b, d = padded(drawn.a, row.m, row.k), padded(drawn.b, row.k, row.n), padded(drawn.c, row.m, row.n)
    per_k = row.k // (row.block or row.k)
    if drawn.scales:
        scale_a, scale_b = padded(drawn.scales["scale_a"], row.m, per_k), padded(drawn.scales["scale_b"], per_k, row.n)
    for i, j, k in itertools.product(
        *(range(0, size, unit) for size, unit in zip((*d.shape, a.shape[1]), (row.m, row.n, row.k), strict=True))
    ):
        scales = {}
        if drawn.scales:
            blocks = slice(k // row.k * per_k, (k // row.k + 1) * per_k)
            scales = {"scale_a": scale_a[i : i + row.m, blocks], "scale_b": scale_b[blocks, j : j + row.n]}
        at = np.s_[i : i + row.m, j : j + row.n]
        d[at] = mmabits.mma(row, a[i : i + row.m, k : k + row.k], b[k : k + row.k, j : j + row.n], d[at], arch=drawn.arch, **scales)
    return d[: drawn.c.shape[0], : drawn.c.shape[1]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (17, 9, 65), (5, 33, 40)], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_edges_equal_a_chain_of_instructions_on_padded_tiles(name: str, shape: tuple[int, int, int]) -> None:
    """M, N and K that are multiples of nothing."""
    drawn = Drawn(name, *shape)
    assert same(drawn.gemm(), by_tiles(drawn))


@pytest.mark.parametrize("name", ["wgmma e4m3", "mxf8", "nvf4", "int8"])
def test_large_edges_equal_a_chain_of_instructions_on_padded_tiles(name: str) -> None:
    """More than one task in M and several panels in K."""
    drawn = Drawn(name, 130, 33, 257)
    assert same(drawn.gemm(), by_tiles(drawn))


@pytest.mark.parametrize("name", PRODUCTS)
def test_zero_padding_by_the_caller_changes_nothing(name: str) -> None:
    drawn = Drawn(name, 19, 11, 71)
    want = drawn.gemm()
    row = drawn.row
    given = {"a": padded(drawn.a, 32, row.k), "b": padded(drawn.b, row.k, 32), "c": padded(drawn.c, 32, 32)}
    if drawn.scales:
        per_k = row.k // (row.block or row.k)
        given |= {"scale_a": padded(drawn.scales["scale_a"], 32, per_k), "scale_b": padded(drawn.scales["scale_b"], per_k, 32)}
    assert same(drawn.gemm(**given)[:19, :11], want)


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_accumulator_is_handed_on(name: str) -> None:
    """A product over K equals its second half with the first half's result as c."""
    drawn = Drawn(name, 9, 10, 128)
    parts = []
    for half in (slice(0, 64), slice(64, 128)):
        scales = {}
        if drawn.scales:
            blocks = slice(half.start // (drawn.row.block or 1), half.stop // (drawn.row.block or 1))
            scales = {"scale_a": drawn.scales["scale_a"][:, blocks], "scale_b": drawn.scales["scale_b"][blocks]}
        c = parts[-1] if parts else drawn.c
        parts.append(drawn.gemm(a=drawn.a[:, half], b=drawn.b[half], c=c, **scales))
    assert same(drawn.gemm(), parts[-1])


@pytest.mark.parametrize("name", PRODUCTS)
def test_without_c_is_c_of_plus_zero(name: str) -> None:
    drawn = Drawn(name, 9, 10, 64)
    assert same(drawn.gemm(c=None), drawn.gemm(c=np.zeros_like(drawn.c)))
    if name == "f64":  # the one unit that keeps the sign of a zero
        drawn.a, drawn.b = np.full_like(drawn.a, -0.0), np.ones_like(drawn.b)
        assert not np.signbit(drawn.gemm(c=None)).any()


def canonical(array: Array) -> Array:
    """float32 with every NaN the canonical one."""
    return np.where(np.isnan(array), np.uint32(0x7FFFFFFF).view(np.float32), array)


@pytest.mark.parametrize("kind", ["plain", "raw_finite"])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", [name for name in PRODUCTS if name not in ("f64", "int8", "int8 satfinite", "int4", "scale-input-d")])
def test_promotion_by_hand(name: str, every: int, kind: str) -> None:
    """The chain restarts from zero, and NumPy's float32 addition collects the parts; the last part is short."""
    step = every * parse(PRODUCTS[name][1]).k
    drawn = Drawn(name, 7, 11, 3 * step + 5, kind=kind)
    total = Drawn("wgmma e4m3", 7, 11, 32, kind=kind).c
    got = drawn.gemm(c=total, promote_every=step)
    with np.errstate(all="ignore"):
        for k in range(0, drawn.a.shape[1], step):
            scales = {}
            if drawn.scales:
                blocks = slice(k // (drawn.row.block or 1), -(-(k + step) // (drawn.row.block or 1)))
                scales = {"scale_a": drawn.scales["scale_a"][:, blocks], "scale_b": drawn.scales["scale_b"][blocks]}
            total = total + drawn.gemm(a=drawn.a[:, k : k + step], b=drawn.b[k : k + step], c=None, **scales).astype(np.float32)
    assert same(got, canonical(total))
    assert kind != "plain" or np.isfinite(got).all()


def test_promotion_changes_results() -> None:
    """It is no option without effect, and longer than K it is one addition at the end."""
    drawn = Drawn("wgmma e4m3", 40, 40, 256, kind="plain")
    plain, promoted = drawn.gemm(c=None), drawn.gemm(c=None, promote_every=128)
    assert (plain != promoted).any()
    assert same(drawn.gemm(c=None, promote_every=1024), plain)


@pytest.mark.parametrize("rounding", ["rn", "rz", "rp", "rm"])
def test_padding_of_f64_is_part_of_the_chain(rounding: str) -> None:
    """fma(+0, +0, -0) is +0 but for rounding down: a -0 survives only where K is whole instructions."""
    drawn = Drawn("f64", 2, 2, 4)
    drawn.row = parse(f"mma.sync.aligned.m8n8k4.row.col.{rounding}.f64.f64.f64.f64")
    drawn.a, drawn.b, drawn.c = (np.full((2, 4), -0.0), np.full((4, 2), 1.0), np.full((2, 2), -0.0))
    assert np.signbit(drawn.gemm()).all()
    drawn.a, drawn.b = drawn.a[:, :3], drawn.b[:3]
    assert same(drawn.gemm(), by_tiles(drawn))
    assert np.signbit(drawn.gemm()).all() == (rounding == "rm")


# ------------------------------------------------------------------------------------------------------- batches, layouts


def loop(drawn: Drawn, batch: tuple[int, ...]) -> Array:
    """The batch one product after another."""
    everything = {"a": drawn.a, "b": drawn.b, "c": drawn.c, **drawn.scales}
    wide = {name: np.broadcast_to(array, (*batch, *array.shape[-2:])) for name, array in everything.items()}
    results = [drawn.gemm(**{name: array[index] for name, array in wide.items()}) for index in np.ndindex(*batch)]
    return np.stack(results).reshape(*batch, *results[0].shape)


def without(array: Array, *axes: int) -> Array:
    """The array cut to size 1 along some axes."""
    return array[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(array.ndim))]


@pytest.mark.parametrize("name", ["wgmma e4m3", "fp8 by way of f16, f16", "mxf8", "nvf4", "f64", "int4"])
def test_batches_equal_a_loop(name: str) -> None:
    """Leading dimensions of all, broadcast ones, and B (with its scales) shared by the batch."""
    for change in (
        {},
        {"b": lambda array: array[0, 0]},
        {"a": lambda array: array[0, 0]},
        {"a": lambda array: without(array, 1), "b": lambda array: without(array, 0)},
        {"c": lambda array: array[0, 0]},
        {"b": lambda array: array[0, 0], "c": lambda array: without(array, 0)},
    ):
        drawn = Drawn(name, 5, 6, 70, batch=(2, 3))
        for operand, cut in change.items():
            setattr(drawn, operand, cut(getattr(drawn, operand)))
            if f"scale_{operand}" in drawn.scales:
                drawn.scales[f"scale_{operand}"] = cut(drawn.scales[f"scale_{operand}"])
        assert same(drawn.gemm(), loop(drawn, (2, 3))), change


def test_scales_may_be_shared_where_operands_are_not() -> None:
    """A batch of operands under one set of scales, and the other way round."""
    drawn = Drawn("mxf8", 5, 6, 70, batch=(4,))
    drawn.scales = {name: array[0] for name, array in drawn.scales.items()}
    assert same(drawn.gemm(), loop(drawn, (4,)))
    drawn = Drawn("nvf4", 5, 6, 70, batch=(4,))
    drawn.b = drawn.b[0]
    assert same(drawn.gemm(), loop(drawn, (4,)))


def fortran(array: Array) -> Array:
    return np.asfortranarray(array)


def every_second(array: Array) -> Array:
    wide = np.repeat(np.repeat(array, 2, axis=0), 2, axis=1)
    return wide[::2, ::2]


def backwards(array: Array) -> Array:
    return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]


def read_only(array: Array) -> Array:
    frozen = array.copy()
    frozen.flags.writeable = False
    return frozen


def unaligned(array: Array) -> Array:
    return np.frombuffer(b"\0" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


def matrix(array: Array) -> Array:
    return np.asmatrix(array)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("layout", [fortran, every_second, backwards, read_only, unaligned, matrix])
@pytest.mark.parametrize("name", ["mma.sync bf16", "mxf8", "nvf4", "f64", "int8"])
def test_layouts_in_memory_do_not_matter(name: str, layout: Callable[[Array], Array]) -> None:
    drawn = Drawn(name, 20, 12, 70)
    given = {"a": drawn.a, "b": drawn.b, "c": drawn.c, **drawn.scales}
    changed = {key: layout(array) for key, array in given.items()}
    result = drawn.gemm(**changed)
    assert same(result, drawn.gemm())
    assert type(result) is np.ndarray


def test_no_layout_takes_other_machine_code() -> None:
    """Read-only and unaligned arrays (memory maps, JAX) are made fit for the one function there is."""
    drawn = Drawn("wgmma e4m3", 20, 12, 70)
    drawn.gemm()
    before = dict(machine_code._functions)
    for layout in (read_only, unaligned, fortran):
        drawn.gemm(a=layout(drawn.a), c=layout(drawn.c))
        drawn.gemm(b=layout(drawn.b))
    assert machine_code._functions == before != {}


@pytest.mark.parametrize("name", PRODUCTS)
def test_inputs_are_left_alone(name: str) -> None:
    """No byte of an operand changes, and the result shares no memory with c."""
    drawn = Drawn(name, 20, 12, 70, kind="raw")
    given = {"a": drawn.a, "b": drawn.b, "c": drawn.c, **drawn.scales}
    before = {key: array.tobytes() for key, array in given.items()}
    result = drawn.gemm()
    assert {key: array.tobytes() for key, array in given.items()} == before
    assert not np.shares_memory(result, drawn.c)
    assert result.flags.writeable and result.flags.c_contiguous


# ------------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(("name", "dtype"), [("wgmma f16 accumulator", np.float16), ("fp8 by way of f16, f16", np.float16),
                                             ("wgmma e4m3", np.float32), ("f64", np.float64), ("int4", np.int32)])  # fmt: skip
def test_results_have_the_type_of_d(name: str, dtype: type) -> None:
    drawn = Drawn(name, 9, 10, 64)
    assert drawn.gemm().dtype == dtype
    assert drawn.gemm(c=None).dtype == dtype


FLOATS = [name for name in PRODUCTS if not name.startswith("int")]
NAN = {"f16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0x7FF8000000000000}


@pytest.mark.parametrize("name", FLOATS)
def test_every_nan_is_the_canonical_one(name: str) -> None:
    """Signalling, negative and other NaN in c, and none of their payloads in d."""
    drawn = Drawn(name, 30, 30, 70)
    kind = drawn.row.c_type
    top = kind.exponent_mask
    rng = operands.generator("nan", name)
    payload = rng.integers(1, kind.fraction_mask, drawn.c.shape, dtype=np.uint64) | top
    codes = (payload | rng.integers(0, 2, drawn.c.shape, dtype=np.uint64) * kind.sign_mask).astype(f"u{drawn.c.dtype.itemsize}")
    drawn.c = codes.view(drawn.c.dtype)
    assert set(bits(drawn.gemm()).flat) == {NAN[kind.name]}


@pytest.mark.parametrize("name", ["wgmma f16 accumulator", "wgmma e4m3"])
def test_a_promoted_nan_is_that_of_f32(name: str) -> None:
    """The IEEE addition that collects the parts makes it, whatever the tensor core's accumulator."""
    drawn = Drawn(name, 5, 6, 128)
    drawn.a[2, 3] = np.nan
    assert set(bits(drawn.gemm(c=None, promote_every=64))[2]) == {0x7FFFFFFF}


@pytest.mark.parametrize("kind", ["cancelling", "sparse", "raw_finite", "wide"])
@pytest.mark.parametrize("name", [name for name in FLOATS if name != "f64"])
def test_no_result_is_minus_zero(name: str, kind: str) -> None:
    """Section 5 of the arithmetic: a zero is +0 whatever the signs; also from -0 everywhere."""
    drawn = Drawn(name, 30, 30, 70, kind=kind)
    drawn.c = -np.zeros_like(drawn.c)
    drawn.a[:3], drawn.b[:, :3] = 0, 0
    drawn.a[:2], drawn.b[:, 2] = -drawn.a[:2], -drawn.b[:, 2]
    d = drawn.gemm()
    assert (d == 0).sum() >= 9
    assert not np.signbit(d[d == 0]).any()


def test_a_ue8m0_scale_of_0_is_a_power_of_two_and_one_of_ff_is_nan() -> None:
    """0x00 is 2^-127, not zero; 0xFF makes its row or column NaN and no other."""
    a, b = np.full((4, 64), 64.0).astype(E4M3), np.full((64, 3), 32.0).astype(E4M3)
    scale_a, scale_b = np.full((4, 2), 0x7F, np.uint8), np.full((2, 3), 0x7F, np.uint8)
    scale_a[1], scale_a[2, 1], scale_b[0, 2] = 0x00, 0xFF, 0xFF
    d = mxf8(a, b, scale_a=scale_a.view(E8M0), scale_b=scale_b.view(E8M0))
    full, nan = 2.0**17, np.nan
    assert np.array_equal(d, [[full, full, nan], [full * 2.0**-127] * 2 + [nan], [nan, nan, nan], [full, full, nan]], equal_nan=True)


def test_nan_scales_reach_the_result_unless_refused() -> None:
    drawn = Drawn("nvf4", 4, 5, 64)
    drawn.scales["scale_b"] = with_code(drawn.scales["scale_b"], (1, 2), 0xFF)
    for options in ({}, {"nan_scales": "propagate"}):
        d = drawn.gemm(c=None, **options)
        assert np.isnan(d[:, 2]).all()
        assert np.isfinite(np.delete(d, 2, axis=1)).all()
    with pytest.raises(OperandError, match=r"scale_b has the NaN code 0xff at index \(1, 2\)"):
        drawn.gemm(nan_scales="refuse")


def test_the_sign_of_a_ue4m3_scale_is_not_read() -> None:
    drawn = Drawn("nvf4", 20, 12, 140)
    want = drawn.gemm()
    for name, scale in drawn.scales.items():
        drawn.scales[name] = (scale.view(np.uint8) | 0x80).view(E4M3)
    assert same(drawn.gemm(), want)


def test_narrow_operands_against_plain_arithmetic() -> None:
    """int4, fp6 and fp4 with sums that are exact: what NumPy's matmul of their values gives."""
    for name, kind in (("int4", np.int32), ("int8", np.int32), ("fp6 x fp4", np.float32)):
        drawn = Drawn(name, 20, 12, 96)
        exact = drawn.a.astype(np.float64) @ drawn.b.astype(np.float64)
        assert np.array_equal(drawn.gemm(c=None), exact.astype(kind)), name
        assert drawn.a.min() < 0 <= drawn.b.max()


# ------------------------------------------------------------------------------------------------------------------ threads


@pytest.fixture
def threads() -> Iterator[None]:
    """Sets the number of threads back."""
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


LARGE = ["wgmma e4m3", "wgmma f16 accumulator", "mxf8", "nvf4", "f64", "int8"]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", LARGE)
def test_the_number_of_threads_does_not_matter(name: str) -> None:
    drawn = Drawn(name, 300, 40, 130)
    results = []
    for count in sorted({1, numba.config.NUMBA_NUM_THREADS}):
        numba.set_num_threads(count)
        results += [drawn.gemm(), drawn.gemm()]
    assert all(same(result, results[0]) for result in results)


def test_calls_from_several_threads() -> None:
    """Small products, which stay in the caller's thread, and large ones, which share one pool, at the same time."""
    work = [Drawn(name, m, 40, 130) for name in ("wgmma e4m3", "nvf4", "f64") for m in (5, 300)]
    want = [drawn.gemm() for drawn in work]
    barrier = threading.Barrier(4)

    def everything(shift: int) -> list[bool]:
        barrier.wait(timeout=60)
        turns = [(i + shift) % len(work) for i in range(2 * len(work))]
        return [same(work[i].gemm(), want[i]) for i in turns]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(everything, range(4)))
    assert [all(results) for results in found] == [True] * 4


def rounds_to_nearest() -> bool:
    """Whether this thread's floating-point unit does: 1 + 3/4 ulp, both signs, in both precisions, and 1/3."""
    one, most, third = np.array([1.0, -1.0]), np.array([0.75, -0.75]) * 2.0**-52, np.array([3.0, -3.0])
    up = np.array([1.0, -1.0]) * (1 + 2.0**-52)
    single = np.float32(2.0**-23) * np.array([0.75, -0.75], np.float32)
    return bool(
        (one + most == up).all() and (one.astype(np.float32) + single != one.astype(np.float32)).all()
        and (bits(one / third) == 0x3FD5555555555555).all() and (bits(one.astype("f4") / np.float32(3)) == (0x3EAAAAAB, 0xBEAAAAAB)).all()
    )  # fmt: skip


@numba.njit(parallel=True)
def _sums_in_workers(out: Array, one: float, most: float) -> None:
    for i in numba.prange(out.size):
        total = 0.0
        for _ in range(2000):
            total += one + most
        out[i] = total


def workers_round_to_nearest() -> bool:
    """Whether each thread of Numba's pool does."""
    out = np.zeros(64)
    _sums_in_workers(out, 1.0, 0.75 * 2.0**-52)
    want = 0.0
    for _ in range(2000):
        want += 1 + 2.0**-52
    return bool((out == want).all())


def test_the_floating_point_unit_is_left_rounding_to_nearest() -> None:
    """After small, large and refused calls; here, in another thread and in the pool's threads."""
    assert rounds_to_nearest() and workers_round_to_nearest()
    for name in LARGE:
        for m in (5, 300):
            Drawn(name, m, 40, 130).gemm()
            assert rounds_to_nearest(), (name, m)
            assert workers_round_to_nearest(), (name, m)
    directed = "mma.sync.aligned.m8n8k4.row.col.{}.f64.f64.f64.f64"
    for mode in ("rz", "rp", "rm"):
        Drawn("f64", 300, 40, 130).gemm(instruction=directed.format(mode))
        assert rounds_to_nearest() and workers_round_to_nearest(), mode
    with pytest.raises(OperandError, match="promote_every"):
        wgmma(A, B, promote_every=5)
    assert rounds_to_nearest()

    def call() -> bool:
        return same(Drawn("wgmma e4m3", 300, 40, 130).gemm(), Drawn("wgmma e4m3", 300, 40, 130).gemm()) and rounds_to_nearest()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: call(), range(4))) == [True] * 4


def test_instructions_are_taken_as_text_and_as_rows() -> None:
    """The same instruction three ways: whole, as a row, and left to the operands (whose tile is another, with the same arithmetic)."""
    drawn = Drawn("wgmma e4m3", 20, 12, 70)
    row: Instruction = mmabits.instruction(WGMMA)
    assert same(drawn.gemm(instruction=WGMMA), drawn.gemm(instruction=row))
    assert same(drawn.gemm(instruction="wgmma"), drawn.gemm(instruction=row))


def test_programs_that_flush_subnormals_change_no_bit() -> None:
    """torch.set_flush_denormal sets the flags of the calling thread; the engine keeps subnormals and puts the flags back."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    a = (rng.standard_normal((3, 32)) * 2.0**-70).astype(ml_dtypes.bfloat16)
    b = (rng.standard_normal((32, 5)) * 2.0**-68).astype(ml_dtypes.bfloat16)
    want = mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a")
    assert np.all(np.abs(want) < 2.0**-126)
    assert np.any(want != 0)
    tiny = np.full(8, 2.0**-140, np.float32)
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormals")
        got = mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a")
        flushed = tiny * np.float32(1)
    finally:
        torch.set_flush_denormal(False)
    assert got.tobytes() == want.tobytes()
    assert np.all(flushed == 0), "the flags of the thread were not put back"
    assert np.all(tiny * np.float32(1) == tiny)


FORKED = """
import multiprocessing, ml_dtypes, numba, numpy as np, mmabits
numba.set_num_threads(2)
a = np.ones((256, 256), ml_dtypes.float8_e4m3fn)

def product(results=None):
    d = mmabits.gemm(a, a, instruction="wgmma", arch="sm_90a")
    if results is not None:
        results.put(d[0, 0].item())

product()
fork = multiprocessing.get_context("fork")
results = fork.SimpleQueue()
child = fork.Process(target=product, args=(results,))
child.start()
child.join(30)
print("hangs" if child.is_alive() else results.get())
child.kill()
"""


def test_a_forked_process_computes_too() -> None:
    """It inherits the thread pool without the threads; a product there must not wait for them."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["256.0"]


@pytest.mark.parametrize("dtype", [E4M3, np.float16, np.float32], ids=str)
@pytest.mark.parametrize("shape", [(300, 513), (1025, 64), (3, 257, 300)], ids=str)
def test_matrices_that_lie_column_by_column(dtype: Any, shape: tuple[int, ...]) -> None:
    """Large ones are copied in strips: the same elements, whatever the strides."""
    rng = np.random.default_rng(7)
    b = rng.standard_normal(shape).astype(np.float32).astype(dtype).swapaxes(-1, -2)
    for view in (b, b[..., ::-1, :], b[..., ::2, 3:]):
        bits = view.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[view.dtype.itemsize])
        copy = row_by_row(bits)
        assert copy.flags.c_contiguous and np.array_equal(copy, bits)
    a = rng.standard_normal((4, shape[-1])).astype(np.float32).astype(dtype)
    got, want = (mmabits.gemm(a, each, instruction="wgmma", arch="sm_90a") for each in (b, np.ascontiguousarray(b)))
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
