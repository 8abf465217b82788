"""`device="cuda"` against the engine of the CPU, product by product: the program of a step, each of whose lines is JSON.

`python -m mmabits.conformance.campaign.engines hardware`; with `simulator` and NUMBA_ENABLE_CUDASIM=1 small products in Numba's simulator.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import gemm
from mmabits.emulator.codecs import as_codes
from mmabits.isa import DeviceUnavailable, UnsupportedInstruction, format_spec
from mmabits.reports.failures import told
from mmabits.reports.output import flush, say

SEED: Final = 0
_TIMES: Final = 3


@dataclass(frozen=True, kw_only=True)
class EngineCase:
    """A product that one of the engine's kernels computes."""

    name: str
    arch: str
    instruction: str
    dtype: Any
    c_dtype: Any = np.float32
    scale_dtype: Any = None
    block: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


_E4M3, _E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn
ENGINE_CASES: Final = (
    EngineCase(name="f16 into f32", arch="sm_90a", instruction="wgmma", dtype=np.float16),
    EngineCase(name="f16 into f16", arch="sm_90a", instruction="wgmma", dtype=np.float16, c_dtype=np.float16),
    EngineCase(name="tf32", arch="sm_90a", instruction="wgmma", dtype=np.float32),
    EngineCase(name="e4m3, promoted every 128", arch="sm_90a", instruction="wgmma", dtype=_E4M3, options={"promote_every": 128}),
    EngineCase(name="e4m3 by two FP16 instructions", arch="sm_90a", instruction="mma.sync", dtype=_E4M3),
    EngineCase(name="MXFP8", arch="sm_100a", instruction="tcgen05.mma.kind::mxf8f6f4.block_scale", dtype=_E4M3,
               scale_dtype=ml_dtypes.float8_e8m0fnu, block=32),
    EngineCase(name="NVFP4", arch="sm_100a", instruction="tcgen05.mma.kind::mxf4nvf4.block_scale", dtype=_E2M1, scale_dtype=_E4M3,
               block=16),
    EngineCase(name="s8", arch="sm_80", instruction="mma.sync", dtype=np.int8, c_dtype=np.int32),
    EngineCase(name="f64", arch="sm_80", instruction="mma.sync", dtype=np.float64, c_dtype=np.float64),
)  # fmt: skip
"""Every kernel of emulator/engine/cuda.py, and what walks K in another way."""


def _operands(case: EngineCase, m: int, n: int, k: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
    rng = np.random.default_rng(SEED)
    a, b = rng.standard_normal((m, k)) * 2.0 ** rng.integers(-3, 4, (m, 1)), rng.standard_normal((k, n))
    c = rng.standard_normal((m, n))
    scales: dict[str, Any] = {}
    if case.scale_dtype is not None:
        scales = {
            "scale_a": (2.0 ** rng.integers(-4, 5, (m, k // case.block))).astype(case.scale_dtype),
            "scale_b": (2.0 ** rng.integers(-4, 5, (k // case.block, n))).astype(case.scale_dtype),
        }
    if case.dtype is np.int8:
        a, b, c = (np.rint(each * 8).clip(-128, 127) for each in (a, b, c))
    return a.astype(case.dtype), b.astype(case.dtype), c.astype(case.c_dtype), scales


def compared(case: EngineCase, size: int) -> dict[str, Any]:
    """A product of size^3 on both devices: how many elements differ, and multiply-adds in a second, without what is compiled.

    Raises:
        DeviceUnavailable: Numba finds no GPU.
        UnsupportedInstruction: Numba's simulator has not what it takes.
    """
    a, b, c, scales = _operands(case, size, size, max(size, 64))
    found, seconds = {}, {}
    for device in ("cuda", "cpu"):
        took = []
        for _ in range(_TIMES):
            began = time.perf_counter()
            d = gemm(a, b, c, instruction=case.instruction, arch=case.arch, device=device, **scales, **case.options)
            took.append(time.perf_counter() - began)
        found[device], seconds[device] = d, took
    form = format_spec({np.float32: "f32", np.float16: "f16", np.int32: "s32", np.float64: "f64"}[case.c_dtype])
    differ = int((as_codes(found["cuda"], form) != as_codes(found["cpu"], form)).sum())
    rates = {device: a.size * b.shape[1] / min(took[1:]) for device, took in seconds.items()}
    first = {device: round(took[0], 3) for device, took in seconds.items()}
    return {"name": case.name, "size": size, "results": int(found["cpu"].size), "differ": differ, "rates": rates, "first": first}


def words_of(row: Mapping[str, Any]) -> str:
    """A line of the program, for people to read."""
    if "error" in row:
        return f"{row['name']}: {row['error']}"
    cuda, cpu = (row["rates"][device] / 1e9 for device in ("cuda", "cpu"))
    first = ", ".join(f"{seconds:.1f} s on {device}" for device, seconds in row["first"].items())
    return (
        f"{row['name']}, {row['size']}^3: {row['differ']:,} of {row['results']:,} differ;"
        f" {cuda:.3g} against {cpu:.3g} billion multiply-adds in a second; the first call {first}"
    )


def read_lines(data: bytes) -> list[dict[str, Any]]:
    """What the program has printed so far; a line that was cut off is none."""
    rows = []
    for line in data.decode(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def rows_of(size: int) -> Iterator[dict[str, Any]]:
    """A row for each case; what cannot be done says so."""
    for case in ENGINE_CASES:
        try:
            yield compared(case, size)
        except DeviceUnavailable as error:
            yield {"missing": str(error)}
            return
        except UnsupportedInstruction as error:
            yield {"name": case.name, "error": told(error)}


def main(where: str) -> None:
    """Print the rows as they come."""
    for row in rows_of(SIZES[where]):
        say(json.dumps(row))
        flush()


SIZES: Final = {"hardware": 1024, "simulator": 4}

if __name__ == "__main__":
    main(sys.argv[1])

__all__ = ["ENGINE_CASES", "EngineCase", "compared", "main", "read_lines", "rows_of", "words_of"]
