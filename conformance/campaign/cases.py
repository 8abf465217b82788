"""Products and kernels whose results were the emulator's: what is kept of them, and how they are made again from their seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.kernel_cases import KernelCase
from mmabits.conformance.diff.kernels import emulated
from mmabits.conformance.diff.recorder import ALL_CASES
from mmabits.conformance.diff.schedules import assumed_schedule, recompute
from mmabits.conformance.recorded.calls import KernelRun, RecordedCall
from mmabits.conformance.recorded.files import DTYPES, data_sha256
from mmabits.isa import OperandError

Array = npt.NDArray[Any]

WAYS: Final = ("interpreted", "compiled")
"""How `emulate` computes Triton's kernels."""
_MOST_SEED: Final = 1 << 16


def _digest(arrays: Mapping[str, Array]) -> str:
    codes = {name: np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}") for name, array in arrays.items()}
    return data_sha256(codes)


def _operands(run: RecordedCall) -> dict[str, Array]:
    if isinstance(run, KernelRun):
        return dict(run.inputs)
    return {name: array for name, array in run.arrays.items() if name != "result"}


def described_case(run: RecordedCall, way: str = WAYS[0]) -> dict[str, Any]:
    """What it takes to make a run again, and to know that it is the same."""
    results = run.outputs if isinstance(run, KernelRun) else {"result": run.arrays["result"]}
    return {
        "case": run.case, "seed": run.seed, "way": way, "dtypes": {name: str(array.dtype) for name, array in results.items()},
        "results": sum(array.size for array in results.values()), "operands_sha256": _digest(_operands(run)),
        "data_sha256": _digest(run.arrays),
    }  # fmt: skip


def remade(row: Mapping[str, Any], arch: str) -> int:
    """Make a run again as the emulator computes it now, and hold it against its hash.

    Args:
        row: of `described_case`, out of a manifest that may come from anywhere.
        arch: what to emulate.

    Returns:
        How many elements are as they were recorded.

    Raises:
        DeviceUnavailable: the case's framework is not installed.
        OperandError: the row is of no case, or operands or results are others now.
    """
    case, seed = ALL_CASES.get(str(row.get("case"))), row.get("seed")
    if case is None or not isinstance(seed, int) or not 0 <= seed < _MOST_SEED or row.get("way") not in WAYS:
        raise OperandError("case, seed or way are none that a campaign has")
    if isinstance(case, KernelCase):
        operands = case.draw(seed).inputs
    else:
        a, b, scale_a, scale_b = case.operands(seed)
        named = {"a": a, "b": b, "scale_a": scale_a, "scale_b": scale_b}
        operands = {name: array for name, array in named.items() if array is not None}
    if _digest(operands) != row.get("operands_sha256"):
        raise OperandError(f"{case.name} draws other operands now than at the archive's commit; replay it there")
    if isinstance(case, KernelCase):
        outputs, _ = emulated(case, operands, arch, way=row["way"])
        arrays = {f"{side}.{name}": array for side, of in (("in", operands), ("out", outputs)) for name, array in of.items()}
        size = sum(array.size for array in outputs.values())
    else:
        dtypes = row.get("dtypes")
        dtype = DTYPES.get(str(dtypes.get("result"))) if isinstance(dtypes, dict) else None
        if dtype is None:
            raise OperandError("the manifest does not tell the type of its result")
        scales = {name: operands.get(name) for name in ("scale_a", "scale_b")}
        schedule = assumed_schedule(operands["a"], operands["b"], arch=arch, scale_a=scales["scale_a"], fast_accum=case.fast_accum)
        result = recompute(operands["a"], operands["b"], schedule=schedule, arch=arch, **scales, dtype=dtype)
        arrays, size = {**operands, "result": result}, result.size
    if _digest(arrays) != row.get("data_sha256"):
        raise OperandError(
            "the emulator gives other results than were recorded; only their hash is kept, and the archive's commit gave them"
        )
    return int(size)


__all__ = ["WAYS", "described_case", "remade"]
