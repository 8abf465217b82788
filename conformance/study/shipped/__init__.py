"""The studies that ship."""

from __future__ import annotations

from typing import Final

from mmabits.conformance.study.shipped import accumulation, attention, generations, outliers, scales
from mmabits.conformance.study.shipped.row import Shipped

STUDIES: Final[dict[str, Shipped]] = {
    module.STUDY.name: module.STUDY for module in (accumulation, outliers, scales, attention, generations)
}
"""Every study by its name."""
