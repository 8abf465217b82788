"""What was recorded, in whatever format, against the emulator."""

from __future__ import annotations

import os

from mmabits.conformance.diff.comparison import Comparison
from mmabits.conformance.diff.dots import compare_dots
from mmabits.conformance.diff.kernels import compare_kernel
from mmabits.conformance.diff.products import compare_product
from mmabits.conformance.recorded.base import Recorded, RecordedDots
from mmabits.conformance.recorded.calls import KernelRun, Run
from mmabits.conformance.recorded.reading import read_recorded
from mmabits.isa import OperandError


def compare_recorded(recorded: Recorded, *, arch: str | None = None, path: str | os.PathLike[str] = "") -> Comparison:
    """Emulate what was recorded, and compare the results bit by bit.

    Args:
        recorded: of a file of any format, or just made.
        arch: what to emulate; that of the recording if None.
        path: the file.

    Raises:
        MmabitsError: the architecture lacks the product, or a framework is missing.
    """
    match recorded:
        case RecordedDots():
            return compare_dots(recorded, path=path, arch=arch)
        case Run():
            return compare_product(recorded, arch=arch)
        case KernelRun():
            return compare_kernel(recorded, arch=arch)
    raise OperandError(f"nothing compares a {type(recorded).__name__}")


def compare_file(path: str | os.PathLike[str], *, arch: str | None = None) -> Comparison:
    """The same of a file.

    Raises:
        VectorFileError: it cannot be read, or is of none of the formats.
        MmabitsError: as `compare_recorded`.
    """
    return compare_recorded(read_recorded(path), arch=arch, path=path)


__all__ = ["compare_file", "compare_recorded"]
