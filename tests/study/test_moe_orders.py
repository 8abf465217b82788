"""The study of mixtures of experts: small tiles multiply as Triton's kernels do, and rows that can be checked otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from arrays import tensor

from mmabits import emulate
from mmabits.kernels.schemes import moe, moe_experts
from mmabits.research.study.shipped import STUDIES
from mmabits.research.study.shipped.moe_orders import in_small_tiles

LAUNCHERS = {
    "w8a8": "moe_experts:moe_w8a8", "w8a16-int8": "moe_experts:moe_w8a16", "fp8-tiles": "moe_experts:moe_fp8_tiles",
    "mxfp8": "moe_experts:moe_mxfp8", "nvfp4": "moe_experts:moe_nvfp4", "w4a16": "moe:moe_w4a16", "mxfp4": "moe:moe_mxfp4",
}  # fmt: skip
QUICK = {("fp8-tiles", "sm_90a"), ("mxfp8", "sm_100a")}


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        pytest.param(name, arch, marks=() if (name, arch) in QUICK else pytest.mark.slow)
        for name in LAUNCHERS
        for arch in ("sm_90a", "sm_100a")
    ],
)
def test_small_tiles_are_those_of_the_kernels(name: str, arch: str) -> None:
    """On numbers of many magnitudes, where another order of K or another instruction shows."""
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        pytest.skip("an older Triton may choose other instructions")
    import importlib

    rng = np.random.default_rng(3)
    values, weights = (
        (rng.standard_normal(shape) * 2.0 ** rng.integers(-7, 3, shape)).astype(np.float32) for shape in ((24, 256), (4, 256, 64))
    )
    routing, scheme = moe.route(rng.standard_normal((24, 4)).astype(np.float32), top_k=2), moe_experts.EXPERTS[name]
    x, experts = scheme.activations(values), moe_experts.quantize_experts(weights, scheme)
    aligned = moe.align(routing, block=16)
    arrays = (*scheme.stored(x).values(), *experts.pack().values(), routing.weights, aligned.choices, aligned.experts)
    module, _, function = LAUNCHERS[name].partition(":")
    launcher: Any = getattr(importlib.import_module(f"mmabits.kernels.triton.{module}"), function)
    with emulate(arch, frameworks=["triton"], triton="interpreted"):
        got = launcher(*map(tensor, arrays), block_m=16).numpy()
    small, dots = in_small_tiles(experts, arch)
    wanted = moe_experts.moe_matmul(x, small, routing, arch=dots)
    assert np.array_equal(got.view(np.uint32), wanted.view(np.uint32))
    if (name, arch) in QUICK:
        assert not np.array_equal(wanted, moe_experts.moe_matmul(x, experts, routing, arch=arch)), "the data cannot tell"


def test_what_the_study_says_of_the_batch() -> None:
    """INT8 is exact whatever the tile; FP8 on Hopper is not; NVFP4's scale is that of all tokens."""
    at = STUDIES["moe-orders"].at
    for scheme, ways in (("w8a8", (0, 0)), ("fp8-tiles", (0, 1)), ("nvfp4", (1, 1))):
        rows = {row["way"]: row["share"] for row in at(scheme=scheme, arch="sm_90a", kind="batch") if row["batch"] == 4}
        assert tuple(int(rows[way] > 0.9) for way in ("the same tiles", "tiles of 16 rows")) == ways
        assert all(share in (0, 1) or share > 0.9 for share in rows.values())
    (row,) = at(scheme="fp8-tiles", arch="sm_90a", kind="places")
    assert row["share"] == 0


def test_what_the_study_says_of_orders() -> None:
    rows = list(STUDIES["moe-orders"].at(scheme="w8a8", arch="sm_100a", kind="orders"))
    share = {(row["dtype"], row["way"]): row["share"] for row in rows}
    size = {(row["dtype"], row["way"]): row["rms"] for row in rows}
    for dtype in ("f32", "bf16"):
        assert 0.2 < share[dtype, "by expert"] < share[dtype, "atomic, any order"] < 1
    assert 2**14 < size["bf16", "by expert"] / size["f32", "by expert"] < 2**18
