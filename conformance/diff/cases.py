"""What `mmabits diff` runs of the frameworks' own products: matrix products of PyTorch and JAX, a row each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.frameworks import framework_named
from mmabits.conformance.recorded.calls import Run
from mmabits.emulator.hooks.session import emulate
from mmabits.emulator.interop import to_numpy
from mmabits.isa import OperandError, nearest

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call on operands drawn by seed."""

    name: str
    call: str
    """For the manifest."""
    run: Callable[[Case, Any, Any, Any, Any], Any]
    """(the case, a, b, scale_a, scale_b) -> the result, all tensors of one device."""
    dtype: Any
    """Of A, and of B where `b_dtype` says nothing: a NumPy or ml_dtypes type."""
    b_dtype: Any = None
    framework: str = "torch"
    m: int = 256
    n: int = 256
    k: int
    scales: str = ""
    """`tensor`, `row`; empty: none."""
    fast_accum: bool | None = None
    out: str = ""
    """PyTorch's name of the result's type, where the call takes it."""

    def operands(self, seed: int) -> tuple[Array, Array, Array | None, Array | None]:
        """(M, K), (K, N) and f32 factors: normal numbers whose rows and columns differ in size by powers of two."""
        rng = np.random.default_rng(seed)
        a, b = rng.standard_normal((self.m, self.k)), rng.standard_normal((self.k, self.n))
        a, b = a * 2.0 ** rng.integers(-3, 4, (self.m, 1)), b * 2.0 ** rng.integers(-3, 4, (1, self.n))
        shapes = {"tensor": ((1, 1), (1, 1)), "row": ((self.m, 1), (1, self.n))}.get(self.scales)
        scales = (None, None) if shapes is None else tuple(rng.uniform(0.5, 2, shape).astype(np.float32) for shape in shapes)
        return a.astype(self.dtype), b.astype(self.b_dtype or self.dtype), scales[0], scales[1]


def _mm(case: Case, a: Any, b: Any, scale_a: Any, scale_b: Any) -> Any:
    import torch

    return torch.mm(a, b)


def _scaled_mm(case: Case, a: Any, b: Any, scale_a: Any, scale_b: Any) -> Any:
    import torch

    columns = b.t().contiguous().t()  # cuBLASLt takes B column by column
    call: Any = torch._scaled_mm
    return call(a, columns, scale_a, scale_b, out_dtype=getattr(torch, case.out), use_fast_accum=case.fast_accum)


def _dot_general(case: Case, a: Any, b: Any, scale_a: Any, scale_b: Any) -> Any:
    import jax

    precision = jax.lax.DotAlgorithmPreset.TF32_TF32_F32 if case.dtype is np.float32 else None
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), precision=precision, preferred_element_type=np.float32)


def _cases() -> Iterator[Case]:
    plain = (("f16", np.float16), ("bf16", ml_dtypes.bfloat16), ("tf32", np.float32))
    e4m3, e5m2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
    for k in (256, 1024, 4096):
        for name, dtype in plain:
            yield Case(name=f"mm-{name}-k{k}", call=f"torch.mm ({name})", run=_mm, dtype=dtype, k=k)
        for scales, out in (("tensor", "float32"), ("row", "bfloat16")):
            for fast in (True, False):
                yield Case(
                    name=f"scaled-mm-e4m3-{scales}-{'fast' if fast else 'accurate'}-k{k}", run=_scaled_mm,
                    call=f"torch._scaled_mm (e4m3, one factor for each {scales}, use_fast_accum={fast}, out_dtype={out})",
                    dtype=e4m3, k=k, scales=scales, fast_accum=fast, out=out,
                )  # fmt: skip
        for name, kinds in (*((name, (dtype, dtype)) for name, dtype in plain), ("e4m3", (e4m3, e4m3)), ("e5m2-e4m3", (e5m2, e4m3))):
            yield Case(
                name=f"dot-general-{name}-k{k}", call=f"jax.lax.dot_general ({name}, preferred_element_type=float32)", run=_dot_general,
                dtype=kinds[0], b_dtype=kinds[1], framework="jax", k=k,
            )  # fmt: skip


CASES: Final = {case.name: case for case in _cases()}
"""Every case by its name."""


def case_named(name: str) -> Case:
    """The case of a name.

    Raises:
        OperandError: there is none.
    """
    if name not in CASES:
        raise OperandError(f"unknown case {name!r}{nearest(name, CASES)}; known: {', '.join(CASES)}")
    return CASES[name]


def record_case(case: Case, *, seed: int = 0, stand_in: str | None = None) -> Run:
    """Run a case on the GPU at hand, or under `emulate` in its place.

    Args:
        case: which.
        seed: of the operands.
        stand_in: an architecture, which may be a what-if: the same call on the CPU inside `emulate`. None: the GPU.

    Raises:
        DeviceUnavailable: the framework, its CUDA build or a GPU is missing.
        MmabitsError: the architecture lacks the product.
    """
    framework = framework_named(case.framework, case.name)
    told, device = framework.told(case, seed, stand_in)
    a, b, scale_a, scale_b = case.operands(seed)
    tensors = [None if array is None else framework.put(array, device) for array in (a, b, scale_a, scale_b)]
    with ExitStack() as around:
        around.enter_context(framework.around())
        if stand_in is not None:
            around.enter_context(emulate(told["arch"], frameworks=[case.framework]))
        result = case.run(case, *tensors)
    return Run(
        **told, a=a, b=b, result=np.ascontiguousarray(to_numpy(result, "the result")[0]), scale_a=scale_a, scale_b=scale_b,
        fast_accum=case.fast_accum,
    )  # fmt: skip


__all__ = ["CASES", "Case", "case_named", "record_case"]
