"""What kernels do with an accumulator before they store it: scale, add, round."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from mmabits.emulator.codecs import encode

Floats = npt.NDArray[np.float32]

_FP8 = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


def fused_multiply_add(x: Floats, y: Floats, z: Floats) -> Floats:
    """`x * y + z` with one rounding to nearest even, as FFMA; float32 arrays that broadcast."""
    with np.errstate(all="ignore"):
        product = x.astype(np.float64) * y  # exact: 48 bits
        total = np.asarray(product + z)
        part = total - product
        lost = np.asarray((product - (total - part)) + (z - part))
        # Rounding to odd: a float64 whose last bit stands for all that was cut rounds to the float32 of the exact sum.
        is_cut = (lost != 0) & np.isfinite(lost) & (total.view(np.int64) & 1 == 0)
        odd = np.where(is_cut, np.nextafter(total, np.where(lost > 0, np.inf, -np.inf)), total)
        rounded: Floats = odd.astype(np.float32)
    return rounded


def store(result: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A result in the type it is stored in: rounded to nearest even; FP8 saturates, as `cvt.rn.satfinite`."""
    form = _FP8.get(dtype)
    if form is None:
        return result.to(dtype)
    codes = encode(result.detach().cpu().numpy(), form, satfinite=True)
    return torch.from_numpy(codes).view(dtype).to(result.device)
