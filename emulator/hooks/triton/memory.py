"""The memory that a launch may touch: the storages of its tensor arguments."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GivenMemory:
    """The storages of a launch's arguments, ascending and apart. The interpreter follows a pointer wherever it leads."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    of: dict[str, tuple[int, int]]
    """First byte, and the byte after the last, for each argument."""

    @classmethod
    def of_arguments(cls, arguments: dict[str, Any]) -> GivenMemory:
        """The storages of tensors, those in tuples and under descriptors too."""
        of = {name: (storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for name, storage in _storages(arguments)}
        ranges = sorted(set(of.values()))
        whole: list[tuple[int, int]] = []
        for start, end in ranges:  # views of one storage, and arrays of other libraries, may overlap
            if whole and start < whole[-1][1]:
                whole[-1] = whole[-1][0], max(end, whole[-1][1])
            elif end > start:
                whole.append((start, end))
        return cls(tuple(start for start, _ in whole), tuple(end for _, end in whole), of)

    def holds(self, pointers: Array, mask: Array | None, size: int) -> bool:
        """Whether elements of `size` bytes at all pointers, or at those where the mask is set, lie in the storages."""
        if pointers.size == 0 or self._in_one(int(pointers.min()), int(pointers.max()), size):
            return True
        if mask is not None:
            pointers = pointers[np.broadcast_to(mask, pointers.shape)]
            if pointers.size == 0 or self._in_one(int(pointers.min()), int(pointers.max()), size):
                return True
        if not self.starts:
            return False
        starts, ends = np.array(self.starts, np.uint64), np.array(self.ends, np.uint64)
        which = np.searchsorted(starts, pointers, side="right") - 1
        return bool(((which >= 0) & (pointers <= ends[which] - np.uint64(size))).all())

    def _in_one(self, lowest: int, highest: int, size: int) -> bool:
        which = bisect.bisect_right(self.starts, lowest) - 1
        return which >= 0 and highest + size <= self.ends[which]

    def distance(self, names: frozenset[str], pointers: Array, mask: Array | None, size: int) -> str:
        """How far pointers made from arguments lead out of them, in words."""
        if mask is not None:
            pointers = pointers[np.broadcast_to(mask, pointers.shape)]
        if len(names) != 1:
            return "it lies outside all tensor arguments"
        start, end = self.of[next(iter(names))]
        before, past = start - int(pointers.min()), int(pointers.max()) + size - end
        far = [f"{before} bytes before the first"] * (before > 0) + [f"{past} bytes past the last"] * (past > 0)
        return f"it reaches {' and '.join(far)} of its {end - start}"


def _storages(arguments: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in arguments.items():
        if isinstance(value, tuple):
            yield from _storages({f"{name}[{index}]": part for index, part in enumerate(value)})
            continue
        while hasattr(value, "base"):  # under a TensorDescriptor, or a tensor taken for one of another type
            value = value.base
        if hasattr(value, "untyped_storage"):
            yield name, value.untyped_storage()
