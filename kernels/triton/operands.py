"""What the launchers of quantized kernels check of their tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmabits.isa import OperandError, OperandTypeError

if TYPE_CHECKING:
    import torch


def checked(tensor: Any, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> torch.Tensor:
    """A contiguous tensor of one of `dtypes`; None in `shape` is any size.

    Raises:
        OperandTypeError: no tensor, or another dtype.
        OperandError: another shape, or strides with gaps.
    """
    kind = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
    if not hasattr(tensor, "data_ptr") or kind not in dtypes:
        raise OperandTypeError(f"{name} must be a torch tensor of {' or '.join(dtypes)}, got {kind}")
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(want is not None and want != got for want, got in zip(shape, found, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise OperandError(f"{name} must have shape ({wanted}), got {found}")
    if not tensor.is_contiguous():
        raise OperandError(f"{name} must be contiguous, got strides {tuple(tensor.stride())} of shape {found}")
    result: torch.Tensor = tensor
    return result


def check_multiple(size: int, block: int, what: str, of: str) -> None:
    """Refuse a size that is no multiple of a block.

    Raises:
        OperandError: it is none.
    """
    if block < 1 or size % block:
        raise OperandError(f"{what} must be a multiple of {of} {block}, got {size}")


def group_size(k: int, groups: int) -> int:
    """Elements of K with one scale; 0 where there is no K.

    Raises:
        OperandError: K is no multiple of the number of groups.
    """
    if k == 0:
        return 0
    check_multiple(k, groups, "K", "the number of groups")
    return k // groups


def reads(tensor: torch.Tensor, check: bool | None) -> bool:
    """Whether a launcher looks at the numbers of a tensor: as it is told, else where they lie on the CPU.

    On a GPU looking makes the host wait for all that is under way.
    """
    return tensor.device.type == "cpu" if check is None else check


def check_indices(tensor: torch.Tensor, name: str, first: int, last: int, check: bool | None = None) -> None:
    """Refuse integers outside `first` to `last`, both included, where `reads` says that they are looked at.

    Raises:
        OperandError: there are some.
    """
    if not tensor.numel() or not reads(tensor, check):
        return
    low, high = (int(end) for end in tensor.aminmax())
    if low < first or high > last:
        where = tuple(((tensor < first) | (tensor > last)).nonzero()[0].tolist())
        raise OperandError(f"{name} are {first} to {last}, got {int(tensor[where])} at index {where}")


def zeros_like(tensor: torch.Tensor, *shape: int) -> torch.Tensor:
    """A float32 tensor of zeros beside another: the product over no K, and any product that is empty."""
    import torch

    return torch.zeros(shape, dtype=torch.float32, device=tensor.device)


def float32_like(tensor: torch.Tensor, *shape: int) -> torch.Tensor:
    """An uninitialized float32 tensor beside another."""
    import torch

    return torch.empty(shape, dtype=torch.float32, device=tensor.device)
