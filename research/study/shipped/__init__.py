"""The studies that ship."""

from __future__ import annotations

from typing import Final

from mmabits.research.study.shipped import (
    accumulation,
    attention,
    calibration,
    generations,
    kv_caches,
    moe_orders,
    outliers,
    scales,
    training,
    zero_points,
)
from mmabits.research.study.shipped.row import Shipped

STUDIES: Final[dict[str, Shipped]] = {
    module.STUDY.name: module.STUDY
    for module in (
        accumulation,
        outliers,
        scales,
        zero_points,
        calibration,
        attention,
        kv_caches,
        moe_orders,
        training,
        generations,
    )
}
"""Every study by its name."""
