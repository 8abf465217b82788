"""Calls of the Triton kernels, as the rows of `mmabits diff` have them: emulated, and composed."""

from __future__ import annotations

from typing import Any

import numpy as np
from arrays import tensor

from mmabits.conformance.diff.kernel_cases import KERNEL_CASES, Drawn, KernelCase
from mmabits.emulator.hooks.session import SessionReport, emulate
from mmabits.kernels.schemes.dots import Dots

Array = np.ndarray[Any, Any]
SEED = 20260204
UNIT = {
    ("fp8", "sm_89"): "mma.sync.aligned.m16n8k32.row.col.f32.e", ("fp8", "sm_90a"): "wgmma", ("fp8", "sm_100a"): "kind::f8f6f4",
    ("fp8", "sm_120a"): "mma.sync.aligned.m16n8k32.row.col.f32.e",
    ("mxfp8", "sm_100a"): "kind::mxf8f6f4", ("mxfp8", "sm_120a"): "kind::mxf8f6f4",
    ("mxfp6", "sm_100a"): "kind::mxf8f6f4", ("mxfp6", "sm_120a"): "kind::mxf8f6f4",
    ("mxfp4", "sm_100a"): "kind::mxf4.", ("mxfp4", "sm_120a"): "kind::mxf4nvf4",
    ("nvfp4", "sm_100a"): "kind::mxf4nvf4", ("nvfp4", "sm_120a"): "kind::mxf4nvf4",
}  # fmt: skip
"""Part of the instruction's spelling, by the scheme; bf16 where there is no entry for one of these schemes."""


def launched(case: KernelCase, drawn: Drawn) -> Any:
    """What the launcher returns, on CPU tensors."""
    return case.function(**case.arguments({name: tensor(array) for name, array in drawn.inputs.items()}), **case.options)


def emulated(case: KernelCase | str, arch: str) -> tuple[Array, SessionReport]:
    """The product of a row, by its name or itself, and the session's report."""
    row = KERNEL_CASES[case] if isinstance(case, str) else case
    with emulate(arch, frameworks=["triton"], triton="interpreted") as session:
        result = launched(row, row.draw(SEED))
    return result.numpy(), session.report()


def composed(case: KernelCase, arch: str) -> Array:
    """The same by the composition."""
    composition = case.draw(SEED).composition
    assert composition is not None
    return composition(arch, lambda **fields: Dots(arch=arch, **fields))["out"]
