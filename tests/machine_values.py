"""Random operands for kernels of the machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import operands

import mmabits
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.isa import FormatSpec
from mmabits.isa.formats import FORMATS


def finite_codes(rng: np.random.Generator, shape: tuple[int, ...], spec: FormatSpec) -> npt.NDArray[Any]:
    """Codes of moderate numbers."""
    if spec.is_integer:
        return rng.integers(0, spec.codes, shape).astype(f"uint{spec.container_bits}")
    if spec.name == "ue8m0":
        return rng.integers(120, 135, shape).astype(np.uint8)
    numbers = np.round(rng.standard_normal(shape) * 8) / 4
    return as_codes(mmabits.encode(np.abs(numbers) + 0.25 if spec.scale_only else numbers, spec.name), spec)


def numbers(name: str, shape: tuple[int, ...], *key: object) -> Any:
    """Random numbers of a format that depend on the key."""
    return from_codes(finite_codes(operands.generator(name, *key), shape, FORMATS[name]), FORMATS[name])


def tensor(array: npt.NDArray[Any]) -> Any:
    """A torch tensor of the same bytes."""
    import torch

    kinds = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
    kind = kinds.get(str(array.dtype))
    if kind is None:
        return torch.from_numpy(np.ascontiguousarray(array))
    whole = np.ascontiguousarray(array)
    return torch.from_numpy(whole.view(f"u{whole.itemsize}").copy()).view(kind)
