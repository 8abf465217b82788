"""`mmabits.compare_schedules`: whether what kernels compute hangs on the order in which a GPU does their work."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.cuda.modules import ORDER
from mmabits.emulator.interop import to_numpy
from mmabits.emulator.machine.workorder import WorkSchedule
from mmabits.isa import OperandError

SCHEDULES: Final = ("latest", "earliest", 0, 1, 2, 3)
"""Orders that are tried where none are named."""


@dataclass(frozen=True, kw_only=True)
class OrderDifference:
    """A tensor that another order of work gave other bits."""

    schedule: str | int
    tensor: int
    """Its place among the tensors."""
    elements: int
    """How many of its elements differ."""
    first: tuple[int, ...]
    """The first of them,"""
    usual: Any
    """its value by the usual order,"""
    found: Any
    """and by this."""

    def __str__(self) -> str:
        count = f"{self.elements:,} elements of tensor {self.tensor}"
        return f"schedule {self.schedule!r}: {count}, first {self.first}: {self.usual} became {self.found}"


@dataclass(frozen=True, kw_only=True)
class ScheduleComparison:
    """What came of running a program by several orders."""

    schedules: tuple[str | int, ...]
    differences: tuple[OrderDifference, ...]
    errors: tuple[tuple[str | int, Exception], ...] = ()
    """Orders by which it failed."""

    @property
    def same(self) -> bool:
        """Whether all gave the same bits."""
        return not self.differences and not self.errors

    def __str__(self) -> str:
        if self.same:
            return f"the same bits by {len(self.schedules)} other orders"
        lines = [str(each) for each in self.differences] + [f"schedule {name!r}: {error}" for name, error in self.errors]
        return "\n".join(lines)


def compare_schedules(
    launch: Callable[[], object], tensors: Sequence[Any] | Any, *, arch: str, schedules: Sequence[str | int] = SCHEDULES
) -> ScheduleComparison:
    """Run compiled kernels of Triton, CUDA C++ or PTX by several orders of work that a GPU may take, and compare what they write.

    Every run begins with the tensors as they are now; afterwards they hold what the usual order gives.

    Args:
        launch: a function without arguments that launches the kernels.
        tensors: PyTorch tensors on the CPU or NumPy arrays that they read and write, or one.
        arch: architecture, or GPU.
        schedules: orders to try: `"latest"` (asynchronous work as late as its waits allow, warps and programs backwards), `"earliest"`
            (work at once), and numbers of orders by chance.

    Returns:
        Which tensors differ by which order; str() of it says so.

    Raises:
        OperandError: no such order, or what is no tensor.
        MmabitsError: what `launch` raises by the usual order.
    """
    from mmabits.emulator.hooks.session import emulate

    if not callable(launch):
        raise OperandError(f"launch must be a function without arguments, not {type(launch).__name__}")
    held = list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]
    arrays: list[npt.NDArray[Any]] = [_storage(each, place) for place, each in enumerate(held)]
    for each in schedules:
        if WorkSchedule.of(each) is None:
            raise OperandError("schedule None is the usual order, with which the others are compared")
    before = [each.copy() for each in arrays]

    def run(schedule: str | int) -> list[npt.NDArray[Any]]:
        for array, start in zip(arrays, before, strict=True):
            array[...] = start
        token = ORDER.set(WorkSchedule.of(schedule))
        try:
            if importlib.util.find_spec("triton") is None:  # kernels of CUDA C++ and PTX need none
                launch()
            else:
                with emulate(arch, frameworks=["triton"], triton="compiled", schedule=schedule):
                    launch()
        finally:
            ORDER.reset(token)
        return [each.copy() for each in arrays]

    usual = run("usual")
    differences: list[OrderDifference] = []
    errors: list[tuple[str | int, Exception]] = []
    for schedule in schedules:
        try:
            found = run(schedule)
        except Exception as error:  # an order by which it fails is what is looked for
            errors.append((schedule, error))
            continue
        for place, (expected, got) in enumerate(zip(usual, found, strict=True)):
            differs = np.argwhere((expected.view(np.uint8) != got.view(np.uint8)).reshape(*expected.shape, -1).any(axis=-1))
            if len(differs):
                first = tuple(int(each) for each in differs[0])
                differences.append(
                    OrderDifference(
                        schedule=schedule, tensor=place, elements=len(differs), first=first, usual=expected[first], found=got[first]
                    )
                )
    for array, end in zip(arrays, usual, strict=True):
        array[...] = end
    return ScheduleComparison(schedules=tuple(schedules), differences=tuple(differences), errors=tuple(errors))


def _storage(tensor: Any, place: int) -> npt.NDArray[Any]:
    """A tensor's own memory as an array."""
    if isinstance(tensor, np.ndarray):
        if not tensor.flags.c_contiguous or not tensor.flags.writeable:
            raise OperandError(f"tensor {place} must be a contiguous array that can be written")
        return tensor.reshape(1) if tensor.ndim == 0 else tensor
    if not hasattr(tensor, "data_ptr") or not tensor.is_contiguous() or str(tensor.device) != "cpu":
        raise OperandError(f"tensor {place} must be a contiguous PyTorch tensor on the CPU or NumPy array, got {type(tensor).__name__}")
    array, _ = to_numpy(tensor.detach(), f"tensor {place}")
    if array.ctypes.data != tensor.data_ptr():
        raise OperandError(f"tensor {place} of {tensor.dtype} cannot be looked at as an array")
    return array.reshape(1) if array.ndim == 0 else array
