"""`python -m benchmarks.whole_kernels`: a kernel in IEEE arithmetic, interpreted and compiled; which operation the difference hangs on.

The compiled kernel is kept as a launch (`mmabits kernel --keep`) and run again with one operation of its PTX made another: what it changes
is counted. No result is a measurement of time.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table

import mmabits
from benchmarks.compiled import attention, quantize
from mmabits.conformance.diff.runs import Keeper, emulated
from mmabits.conformance.recorded.runs import PtxRun, read_run
from mmabits.isa import MmabitsError
from mmabits.reports.output import console

Results = dict[str, npt.NDArray[Any]]

_FUSED = re.compile(r"fma\.rn((?:\.ftz)?\.f32)\s+(%\w+), ([^;,]+), ([^;,]+), ([^;,]+);")
_RECIPROCAL = re.compile(r"div\.approx((?:\.ftz)?\.f32)\s+(%\w+), %\w+, (%\w+);(.*?)mul\1\s+(%\w+), \2, (%\w+);", re.S)


def _apart(run: PtxRun) -> PtxRun:
    """Products and sums each rounded: those that Triton fused, and those that ptxas would."""
    text = _FUSED.sub(r"{ .reg .f32 %apart; mul.rn\1 %apart, \3, \4; add.rn\1 \2, %apart, \5; }", run.ptx)
    return replace(run, ptx=text, contracts=False)


def _divided(run: PtxRun) -> PtxRun:
    """Divisions correctly rounded, and x / 448 a division again, which Triton makes a product with the reciprocal."""
    text = _RECIPROCAL.sub(r"\4div.rn\1 \5, \6, \3;", run.ptx)
    if "div.approx" in text:
        raise MmabitsError(f"{run.name}: a reciprocal whose product was not found")
    return replace(run, ptx=re.sub(r"div\.full((?:\.ftz)?\.f32)", r"div.rn\1", text))


CHANGES: tuple[tuple[str, Callable[[PtxRun], PtxRun]], ...] = (
    ("as it is", lambda run: run), ("products and sums each rounded", _apart), ("divisions correctly rounded", _divided),
    ("both", lambda run: _divided(_apart(run))),
)  # fmt: skip


def _attention(arch: str) -> tuple[Callable[[], None], Results, Callable[[], Results]]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 256, 64, generator=generator).half() for _ in range(3))
    o, scale = torch.empty_like(q), np.float32(0.125 * 1.4427)

    def launch() -> None:
        attention[(256 // 64, 4)](q, k, v, o, float(scale), 256, D=64, BM=64, BN=64)

    x, y, z = (each.numpy().astype(np.float32) for each in (q, k, v))
    scores = np.einsum("hid,hjd->hij", x, y).astype(np.float32) * scale
    most = scores.max(-1, keepdims=True)
    p = np.exp2((scores - most).astype(np.float64)).astype(np.float32)
    total = np.einsum("hij,hjd->hid", p.astype(np.float16).astype(np.float32), z) / p.sum(-1, keepdims=True, dtype=np.float32)
    return launch, {"o": total.astype(np.float16).view(np.uint16)}, lambda: {"o": o.view(torch.int16).numpy().view(np.uint16).copy()}


def _quantize(arch: str) -> tuple[Callable[[], None], Results, Callable[[], Results]]:
    x = torch.randn(4096, 128, generator=torch.Generator().manual_seed(0))
    y, scales = torch.empty(4096, 128, dtype=torch.float8_e4m3fn), torch.empty(4096)

    def launch() -> None:
        quantize[(4096,)](x, y, scales, N=128, num_warps=1)

    amax = np.maximum(np.abs(x.numpy()).max(1, keepdims=True), np.float32(1e-10))
    scale = amax / np.float32(448)
    codes = mmabits.encode(x.numpy() / scale, "e4m3", rounding="rn", satfinite=True)
    ieee = {"scales": scale[:, 0].view(np.uint32), "codes": np.asarray(codes).view(np.uint8)}
    return launch, ieee, lambda: {"scales": scales.numpy().view(np.uint32).copy(), "codes": y.view(torch.uint8).numpy().copy()}


def _of(run: PtxRun) -> Results:
    """What a run leaves in its tensors, each of which has a buffer of its own."""
    names = {"o": "o", "scales": "scales", "y": "codes"}
    after = emulated(run)
    return {
        names[each.name]: after[each.buffer].view(f"u{each.size}").reshape(each.shape) for each in run.tensors if each.name in names
    }  # fmt: skip


def _differ(one: Results, other: Results) -> str:
    counts = {name: int((one[name].reshape(-1) != other[name].reshape(-1)).sum()) for name in one}
    return ", ".join(f"{count:,} of {one[name].size:,} {name}" for name, count in counts.items())


def main(arch: str) -> None:
    """Count on an architecture, and draw a table."""
    table = Table(title=f"Results with other bits, {arch}", title_justify="left")
    for name in ("kernel", "way", "beside the compiled kernel", "beside the interpreted one"):
        table.add_column(name, overflow="fold")
    for kernel, make in (("attention", _attention), ("quantizer", _quantize)):
        launch, ieee, look = make(arch)
        with mmabits.emulate(arch, frameworks=["triton"], triton="interpreted"):
            launch()
        interpreted = look()
        with tempfile.TemporaryDirectory() as folder:
            with mmabits.emulate(arch, frameworks=["triton"], triton="compiled") as session:
                session.keeper = Keeper(Path(folder))
                launch()
            run = read_run(session.keeper.paths[-1])
        compiled = look()
        table.add_row(kernel, "IEEE arithmetic, NumPy", _differ(ieee, compiled), _differ(ieee, interpreted))
        table.add_row("", "interpreted", _differ(interpreted, compiled), "")
        for name, change in CHANGES:
            found = _of(change(run))
            table.add_row("", f"compiled, {name}", _differ(found, compiled), _differ(found, interpreted))
    console().print(table)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["sm_90a"]))
