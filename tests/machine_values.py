"""Random operands for kernels of the machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import mmabits
from mmabits.emulator.codecs import as_codes
from mmabits.isa import FormatSpec


def finite_codes(rng: np.random.Generator, shape: tuple[int, ...], spec: FormatSpec) -> npt.NDArray[Any]:
    """Codes of moderate numbers."""
    if spec.is_integer:
        return rng.integers(0, spec.codes, shape).astype(f"uint{spec.container_bits}")
    if spec.name == "ue8m0":
        return rng.integers(120, 135, shape).astype(np.uint8)
    numbers = np.round(rng.standard_normal(shape) * 8) / 4
    return as_codes(mmabits.encode(np.abs(numbers) + 0.25 if spec.scale_only else numbers, spec.name), spec)
