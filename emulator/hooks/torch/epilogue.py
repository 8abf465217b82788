"""What kernels do with an accumulator before they store it: scale, add, round."""

from __future__ import annotations

from math import isnan

import numpy as np
import numpy.typing as npt
import torch

from mmabits.emulator.codecs import encode
from mmabits.emulator.hooks.stored import SATURATING, STORED_NANS
from mmabits.isa import format_spec

Floats = npt.NDArray[np.float32]

_FP8 = {getattr(torch, format_spec(name).numpy_name): name for name in SATURATING}
_NANS = {
    torch.float16: (torch.int16, STORED_NANS["f16"]),
    torch.bfloat16: (torch.int16, STORED_NANS["bf16"]),
    torch.float32: (torch.int32, STORED_NANS["f32"]),
    torch.float64: (torch.int64, STORED_NANS["f64"]),
}
"""Integers as wide as a type, and the code of its NaN."""


def store(result: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A result in the type it is stored in: rounded to nearest even; FP8 saturates, as `cvt.rn.satfinite`. NaN is the GPU's."""
    form = _FP8.get(dtype)
    if form is None:
        return _with_one_nan(result.to(dtype))
    codes = encode(result.detach().cpu().numpy(), form, satfinite=True)
    return torch.from_numpy(codes).view(dtype).to(result.device)


def _with_one_nan(result: torch.Tensor) -> torch.Tensor:
    if result.dtype not in _NANS or not isnan(result.sum().item()):  # a NaN makes the sum one: a tenth of the time of looking for it
        return result
    integers, code = _NANS[result.dtype]
    return result.view(integers).masked_fill(result.isnan(), code).view(result.dtype)
