"""What PyTorch leaves undefined on a GPU: memory that nothing has written yet. `emulate(..., undefined="poison")` fills it."""

from __future__ import annotations

from typing import Any, Final

import torch

from mmabits.emulator.hooks.session import JUNK

_NAMES: Final = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
UNWRITTEN: Final = frozenset(
    getattr(packet, overload) for packet in (getattr(torch.ops.aten, name) for name in _NAMES) for overload in packet.overloads()
)
"""Operators whose result is memory as it was."""


def poison(tensor: torch.Tensor) -> None:
    """Fill a tensor with what no program can take for a result: NaN, True for booleans, else bytes of JUNK."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        return
    if tensor.dtype == torch.bool or tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float4_e2m1fn_x2):
        tensor.fill_(float("nan"))
    else:
        whole = torch.frombuffer(bytearray([JUNK] * tensor.element_size()), dtype=torch.uint8).view(tensor.dtype)
        tensor.copy_(whole.reshape([1] * tensor.dim()).expand(tensor.shape).to(tensor.device))


def unwritten(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of one of UNWRITTEN, poisoned."""
    result = func(*args, **kwargs)
    poison(result)
    return result
