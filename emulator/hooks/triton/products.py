"""Dots, computed as their plans say."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import encode, from_codes
from mmabits.emulator.engine.fma import canonical, fma
from mmabits.emulator.hooks.session import ReadyProduct, Session
from mmabits.emulator.hooks.triton.plans import DotScheme, Plan

Array = npt.NDArray[Any]

VIEWS = {
    "bf16": np.dtype(ml_dtypes.bfloat16), "e4m3": np.dtype(ml_dtypes.float8_e4m3fn), "e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
}  # fmt: skip
_SPLITS = {DotScheme.TF32X3: 2, DotScheme.BF16X3: 2, DotScheme.BF16X6: 3}
_TERMS = {
    DotScheme.TF32X3: ((1, 0), (0, 1), (0, 0)),
    DotScheme.BF16X3: ((1, 0), (0, 1), (0, 0)),
    DotScheme.BF16X6: ((1, 1), (2, 0), (0, 2), (1, 0), (0, 1), (0, 0)),
}
"""Which part of A meets which part of B, in the order of the compiler; part 0 is the largest."""


def as_operand(data: Array, name: str) -> Array:
    """What the interpreter holds, in the dtype that gemm takes."""
    view = VIEWS.get(name)
    return data if view is None else np.ascontiguousarray(data).view(view)


def product(session: Session, plan: Plan, a: Array, b: Array, c: Array, *, site: str, note: str = "") -> Array:
    """D of a dot: (..., M, N) in the accumulator's dtype; entered into the report.

    Args:
        session: whose architecture and level of evidence count.
        plan: what the compiler makes of it.
        a: (..., M, K), in a dtype of gemm.
        b: (..., K, N).
        c: (..., M, N) accumulator.
        site: where in the program, for the report.
        note: for the report, beside the plan's.
    """
    *batch, m, k = a.shape
    n, count = b.shape[-1], batch[0] if batch else 1
    if plan.scheme is DotScheme.FMA:
        session.skip(site, f"tl.dot {m} x {n} x {k}", f"not on tensor cores: computed as {DotScheme.FMA.value}", count=count)
        return fma_chain(a, b, c)
    ready = _ready(session, plan, site, note)
    ready.count(m, n, k, count=count)
    if plan.scheme is not DotScheme.PLAIN:
        return _of_parts(ready, plan, a, b, c)
    if plan.convert:
        to = VIEWS.get(plan.convert, np.dtype(np.float16))
        a, b = a.astype(to), b.astype(to)
    return _multiplied(ready, plan, a, b, c)


def _ready(session: Session, plan: Plan, site: str, note: str) -> ReadyProduct:
    assert plan.instruction is not None
    notes = "; ".join(filter(None, (plan.note, note)))
    return session.ready(site, plan.instruction, promote_every=plan.promote_every or None, note=notes)


def scaled_product(
    session: Session, plan: Plan, a: Array, b: Array, c: Array, scale_a: Array | None, scale_b: Array | None, *, site: str, note: str = ""
) -> Array:
    """D of a block-scaled dot: (M, N), float32; entered into the report.

    Args:
        session: whose architecture and level of evidence count.
        plan: what the compiler makes of it.
        a: (M, K) elements.
        b: (K, N) elements.
        c: (M, N) accumulator.
        scale_a: (M, K / block) scales, float8_e8m0fnu or float8_e4m3fn.
        scale_b: (K / block, N).
        site: where in the program, for the report.
        note: for the report, beside the plan's.
    """
    ready = _ready(session, plan, site, note)
    ready.count(a.shape[0], b.shape[1], a.shape[1])
    if not plan.convert:
        return ready.multiply(a, b, c, scale_a=scale_a, scale_b=scale_b)
    left = _scaled_operand(plan, a, scale_a, axis=1)
    right = _scaled_operand(plan, b, scale_b, axis=0)
    return _multiplied(ready, plan, left, right, c)


def _multiplied(ready: ReadyProduct, plan: Plan, a: Array, b: Array, c: Array) -> Array:
    if plan.k_order:
        a, b = a[..., list(plan.k_order)], b[..., list(plan.k_order), :]
    return ready.multiply(a, b, c)


# f32 by way of smaller types ---------------------------------------------------------------------------------------------


def _of_parts(ready: ReadyProduct, plan: Plan, a: Array, b: Array, c: Array) -> Array:
    """The small terms first; a NaN among them is dropped, so that infinities meet in the large term; then the accumulator."""
    count = _SPLITS[plan.scheme]
    split = _tf32_parts if plan.scheme is DotScheme.TF32X3 else _bf16_parts
    left, right = split(a, count), split(b, count)
    total = np.zeros_like(c)
    terms = _TERMS[plan.scheme]
    for i, j in terms[:-1]:
        total = _multiplied(ready, plan, left[i], right[j], total)
    total = np.where(np.isnan(total), np.float32(0), total)
    total = _multiplied(ready, plan, left[0], right[0], total)
    with np.errstate(invalid="ignore", over="ignore"):
        return canonical(total + c)


def _tf32_parts(x: Array, count: int) -> list[Array]:
    """cvt.rna.tf32, and what is left, of which the unit ignores the low bits."""
    large = from_codes(encode(x, "tf32", rounding="rna"), "tf32").view(np.float32)
    with np.errstate(invalid="ignore"):
        return [large, x - large]


def _bf16_parts(x: Array, count: int) -> list[Array]:
    parts = []
    with np.errstate(invalid="ignore", over="ignore"):
        for _ in range(count):
            parts.append(x.astype(ml_dtypes.bfloat16))
            x = x - parts[-1].astype(np.float32)
    return parts


# Block scales without a block-scaled instruction -------------------------------------------------------------------------


def _scaled_operand(plan: Plan, elements: Array, scales: Array | None, *, axis: int) -> Array:
    """Elements converted to bf16 or f16 and multiplied by their scales there, one rounding."""
    to = VIEWS.get(plan.convert, np.dtype(np.float16))
    values = _converted(elements, plan.convert)
    if scales is None:
        return values.astype(to)
    if scales.dtype == ml_dtypes.float8_e8m0fnu:
        codes = scales.view(np.uint8)
        factors = np.ldexp(np.float64(1), codes.astype(np.int32) - 127)
        factors[codes == 0] = plan.zero_scale if plan.convert == "bf16" else 0.0
        factors[codes == 0xFF] = plan.nan_scale
    else:
        factors = scales.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        steps = factors.astype(np.float32).astype(to).astype(np.float32)
        wide = np.repeat(steps, elements.shape[axis] // scales.shape[axis], axis=axis)
        return (values * wide).astype(to)


def _converted(elements: Array, to: str) -> Array:
    """The elements as float32, as the compiler's conversions to bf16 and f16 have them."""
    from mmabits.emulator.hooks.triton.casts import bf16_of_e5m2

    if elements.dtype == VIEWS["e5m2"] and to == "bf16":
        return bf16_of_e5m2()[elements.view(np.uint8)]
    return elements.astype(np.float32)


# Without tensor cores ----------------------------------------------------------------------------------------------------


def fma_chain(a: Array, b: Array, c: Array) -> Array:
    """A chain c + a[0] b[0] + a[1] b[1] + ..., each step one f32 fused multiply-add."""
    total = canonical(c.astype(np.float32))
    for k in range(a.shape[-1]):
        total = fma(a[..., :, k, None], b[..., k, None, :], total)
    return total
