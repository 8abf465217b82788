"""What `mmabits diff --record` runs: matrix products of PyTorch itself, a row each."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.runs import Run
from mmabits.emulator.interop import to_numpy
from mmabits.emulator.session import emulate
from mmabits.isa import DeviceUnavailable, OperandError, UnknownArchitecture, nearest
from mmabits.isa.architectures import ARCHITECTURES

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call on operands drawn by seed."""

    name: str
    call: str
    """For the manifest."""
    run: Callable[[Any, Case, Any, Any, Any, Any], Any]
    """(torch, the case, a, b, scale_a, scale_b) -> the result, all tensors of one device."""
    dtype: Any
    """Of both operands: a NumPy or ml_dtypes type."""
    m: int = 256
    n: int = 256
    k: int
    scales: str = ""
    """`tensor`, `row`; empty: none."""
    fast_accum: bool | None = None
    out: str = ""
    """torch's name of the result's type, where the call takes it."""

    def operands(self, seed: int) -> tuple[Array, Array, Array | None, Array | None]:
        """(M, K), (K, N) and f32 factors: normal numbers whose rows and columns differ in size by powers of two."""
        rng = np.random.default_rng(seed)
        a, b = rng.standard_normal((self.m, self.k)), rng.standard_normal((self.k, self.n))
        a, b = a * 2.0 ** rng.integers(-3, 4, (self.m, 1)), b * 2.0 ** rng.integers(-3, 4, (1, self.n))
        shapes = {"tensor": ((), ()), "row": ((self.m, 1), (1, self.n))}.get(self.scales)
        scales = (
            (None, None) if shapes is None else tuple(rng.uniform(0.5, 2, shape).astype(np.float32) for shape in map(_at_least, shapes))
        )
        return a.astype(self.dtype), b.astype(self.dtype), scales[0], scales[1]


def _at_least(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], shape[1]) if shape else (1, 1)


def _mm(torch: Any, case: Case, a: Any, b: Any, scale_a: Any, scale_b: Any) -> Any:
    return torch.mm(a, b)


def _scaled_mm(torch: Any, case: Case, a: Any, b: Any, scale_a: Any, scale_b: Any) -> Any:
    columns = b.t().contiguous().t()  # cuBLASLt takes B column by column
    return torch._scaled_mm(a, columns, scale_a, scale_b, out_dtype=getattr(torch, case.out), use_fast_accum=case.fast_accum)


def _cases() -> Iterator[Case]:
    for k in (256, 1024, 4096):
        for name, dtype in (("f16", np.float16), ("bf16", ml_dtypes.bfloat16), ("tf32", np.float32)):
            yield Case(name=f"mm-{name}-k{k}", call=f"torch.mm ({name})", run=_mm, dtype=dtype, k=k)
        for scales, out in (("tensor", "float32"), ("row", "bfloat16")):
            for fast in (True, False):
                yield Case(
                    name=f"scaled-mm-e4m3-{scales}-{'fast' if fast else 'accurate'}-k{k}", run=_scaled_mm,
                    call=f"torch._scaled_mm (e4m3, one factor for each {scales}, use_fast_accum={fast}, out_dtype={out})",
                    dtype=ml_dtypes.float8_e4m3fn, k=k, scales=scales, fast_accum=fast, out=out,
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
        DeviceUnavailable: PyTorch, its CUDA build or a GPU is missing.
        MmabitsError: the architecture lacks the product.
    """
    torch = _torch()
    if stand_in is None:
        arch, gpu, device = _gpu(torch)
    else:
        arch, gpu, device = stand_in, f"emulator of {stand_in}", "cpu"
    a, b, scale_a, scale_b = case.operands(seed)
    tensors = [None if array is None else _tensor(torch, array).to(device) for array in (a, b, scale_a, scale_b)]
    with ExitStack() as around:
        around.enter_context(_tf32(torch))
        if stand_in is not None:
            around.enter_context(emulate(arch, frameworks=["torch"]))
        result = case.run(torch, case, *tensors)
    return Run(
        case=case.name, arch=arch, call=case.call, kind="hardware" if stand_in is None else "emulator", gpu=gpu, a=a, b=b,
        result=np.ascontiguousarray(to_numpy(result, "the result")[0]), scale_a=scale_a, scale_b=scale_b, fast_accum=case.fast_accum,
        seed=seed, versions=_versions(torch),
    )  # fmt: skip


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise DeviceUnavailable("the cases of mmabits diff call PyTorch, which is not installed: pip install 'mmabits[torch]'") from None
    return torch


def _gpu(torch: Any) -> tuple[str, str, str]:
    """(architecture, name, torch device) of the GPU at hand."""
    if torch.version.cuda is None:
        raise DeviceUnavailable(f"PyTorch {torch.__version__} is built without CUDA; recording a run takes a CUDA build and a GPU")
    if not torch.cuda.is_available():
        raise DeviceUnavailable(f"PyTorch {torch.__version__} finds no CUDA GPU here; recording a run takes one")
    major, minor = torch.cuda.get_device_capability()
    found = [name for name in ARCHITECTURES if re.fullmatch(rf"sm_{major}{minor}[a-z]?", name)]
    if not found:
        raise UnknownArchitecture(f"{torch.cuda.get_device_name()} is sm_{major}{minor}; known: {', '.join(ARCHITECTURES)}")
    return found[0], torch.cuda.get_device_name(), "cuda"


def _tensor(torch: Any, array: Array) -> Any:
    """A CPU tensor of the same bits."""
    kind = str(array.dtype)
    if array.dtype.kind == "f" and array.dtype.itemsize > 1 and kind != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(f"int{8 * array.dtype.itemsize}")).view(getattr(torch, kind))


@contextmanager
def _tf32(torch: Any) -> Iterator[None]:
    """f32 products as TF32, and PyTorch's setting as it was afterwards."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _versions(torch: Any) -> dict[str, str]:
    from mmabits import __version__

    known = {"mmabits": __version__, "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return known if torch.version.cuda is None else {**known, "cuda": torch.version.cuda}


__all__ = ["CASES", "Case", "case_named", "record_case"]
