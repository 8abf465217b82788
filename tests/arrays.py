"""Arrays between NumPy, PyTorch and JAX by their bits, and whether two have the same."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmabits.emulator.layouts import pack_fp4

AS_BYTES = ("float8_e8m0fnu",)
"""What Triton takes as uint8."""


def tensor(array: Any) -> Any:
    """A contiguous torch tensor of the same bits, as kernels take it: e2m1 packed along its last axis, ue8m0 as uint8."""
    torch = pytest.importorskip("torch")
    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.float4_e2m1fn:
        return torch.from_numpy(pack_fp4(array))
    name = array.dtype.name
    if name in AS_BYTES:
        return torch.from_numpy(array.view(np.uint8).copy())
    if hasattr(ml_dtypes, name):
        return torch.from_numpy(array.view(f"i{array.itemsize}").copy()).view(getattr(torch, name))
    return torch.from_numpy(array.copy())


def stored(values: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Type, shape and bytes of an array or tensor."""
    if hasattr(values, "detach"):
        import torch

        codes = values.detach().cpu().contiguous().view(torch.uint8) if values.dim() else values.detach().cpu().reshape(1).view(torch.uint8)
        return str(values.dtype).removeprefix("torch."), tuple(values.shape), codes.numpy().tobytes()
    values = np.asarray(values)
    return values.dtype.name, values.shape, np.ascontiguousarray(values).tobytes()


def same_bits(got: Any, want: Any) -> bool:
    """Whether type, shape and every bit agree, of arrays of whatever library."""
    return stored(got) == stored(want)
