"""What the engine refuses because it could not be exact."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mmabits.emulator.engine import plan, products
from mmabits.isa import Lowering, UnsupportedInstruction, lower, parse

NVFP4 = "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3"


def changed(*, step: int = 64, **numbers: Any) -> Lowering:
    """The NVFP4 lowering with other numbers."""
    lowering = lower(parse(NVFP4), "sm_100a")
    return dataclasses.replace(lowering, step=step, datapath=dataclasses.replace(lowering.datapath, step=step, **numbers))


def run(lowering: Lowering) -> np.ndarray[Any, Any]:
    """One dot product of ones with unit scales."""
    ones, scales = np.full((1, 1, 64), 2, np.uint8), np.full((1, 1, 4), 0x38, np.uint8)
    d = np.zeros((1, 1, 1), np.float32)
    products.run(lowering, ones, ones.reshape(1, 64, 1), d, scales, scales.reshape(1, 4, 1))
    return d


def test_the_rows_groups_fit() -> None:
    assert plan.groups_fit(changed())
    assert run(changed()).item() == 64.0


@pytest.mark.parametrize(
    "lowering",
    [
        pytest.param(changed(step=48), id="three groups"),
        pytest.param(changed(group=64), id="one group, wider than a mask"),
        pytest.param(changed(fraction_bits=39), id="more bits than float64 carries"),
    ],
)
def test_groups_that_would_not_be_exact_are_refused(lowering: Lowering) -> None:
    """An odd group would be left out silently; a wider sum would be rounded."""
    assert not plan.groups_fit(lowering)
    with pytest.raises(UnsupportedInstruction, match=r"^sm_100a\.tcgen05\.mxf4\.f32: groups are modelled with block scales"):
        run(lowering)
