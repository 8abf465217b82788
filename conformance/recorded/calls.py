"""Files of runs: a whole product ("gemm-run/1"), or a call of a kernel ("kernel-run/1"); operands, results, and how they came about.

| tensor           | of gemm-run/1                                                               |
|------------------|-----------------------------------------------------------------------------|
| a, b             | codes as unsigned integers, (M, K) and (K, N)                               |
| result           | codes, (M, N)                                                               |
| scale_a, scale_b | where there are scales: codes of block scales, or the bits of f32 factors   |

Those of kernel-run/1 are `in.NAME` and `out.NAME`, codes as unsigned integers of any shape.

The metadata hold `format`, `manifest` (JSON) and `sha256`, over the tensors and the manifest. A finished file is never written again.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy.typing as npt

from mmabits.conformance.recorded.base import Recorded
from mmabits.conformance.recorded.files import check_dtypes, read_arrays, write_arrays
from mmabits.isa.errors import OperandError
from mmabits.reports.stored import TensorFile

Array = npt.NDArray[Any]

PRODUCT_FORMAT: Final = "gemm-run/1"
KERNEL_FORMAT: Final = "kernel-run/1"
_TENSORS: Final = ("a", "b", "result")
_SCALES: Final = ("scale_a", "scale_b")
_TEXTS: Final = ("case", "arch", "call", "kind", "gpu")
_OPTIONAL: Final = ("seed", "versions")


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedCall(Recorded):
    """What one call of a framework or a kernel gave."""

    MORE: ClassVar[tuple[str, ...]] = ()
    """What else a manifest says."""
    case: str
    """Name of what was run; of a kernel, a row of diff/kernel_cases.py."""
    arch: str
    call: str
    """The framework's call, or the instruction."""
    kind: str
    """`hardware`, or `emulator`: a stand-in, proving nothing about hardware."""
    gpu: str
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """Operands and results as a file names them."""

    @property
    def manifest(self) -> dict[str, Any]:
        """All but the arrays."""
        return {**{name: getattr(self, name) for name in (*_TEXTS, *self.MORE, "seed")}, "versions": dict(self.versions)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Run(RecordedCall):
    """One product as a GPU, or the emulator in its place, gave it.

    Raises:
        OperandError: shapes or a kind that do not fit.
    """

    FORMAT: ClassVar[str] = PRODUCT_FORMAT
    MORE: ClassVar[tuple[str, ...]] = ("instruction", "fast_accum")
    a: Array
    """(M, K), in the dtype of its type."""
    b: Array
    """(K, N)"""
    result: Array
    """(M, N)"""
    scale_a: Array | None = None
    scale_b: Array | None = None
    instruction: str | None = None
    """None: whatever the library chose."""
    fast_accum: bool | None = None
    """Of FP8 products: what the call asked for."""

    def __post_init__(self) -> None:
        self.hold()
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[1] != self.b.shape[0]:
            raise OperandError(f"operands must be (M, K) and (K, N), got {self.a.shape} and {self.b.shape}")
        if self.result.shape != (self.a.shape[0], self.b.shape[1]):
            raise OperandError(f"the result must be {(self.a.shape[0], self.b.shape[1])}, got {self.result.shape}")
        if (self.scale_a is None) != (self.scale_b is None):
            raise OperandError("scale_a and scale_b are given together or not at all")
        check_dtypes(self.arrays)

    @property
    def arrays(self) -> dict[str, Array]:
        """Operands, result and scales by name."""
        found = {name: getattr(self, name) for name in (*_TENSORS, *_SCALES)}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def scales(self) -> dict[str, Any]:
        """Both, as keyword arguments."""
        return {name: getattr(self, name) for name in _SCALES}

    @property
    def manifest(self) -> dict[str, Any]:
        """All but the arrays."""
        return {**super().manifest, "dtypes": {name: str(array.dtype) for name, array in self.arrays.items()}}

    @classmethod
    def of_file(cls, file: TensorFile, path: Path) -> Self:
        """As the base says."""
        known, arrays = read_arrays(file, PRODUCT_FORMAT, _TEXTS, (*_OPTIONAL, *cls.MORE))
        if set(arrays) not in ({*_TENSORS}, {*_TENSORS, *_SCALES}):
            raise OperandError(
                f"tensors are {', '.join(sorted(arrays)) or 'none'}; allowed: {', '.join(_TENSORS)}, and both scales or none"
            )
        return cls(**known, **arrays)


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelRun(RecordedCall):
    """A kernel's operands and results, and where they come from.

    Raises:
        OperandError: an unknown kind or case, or arrays that a file cannot hold.
    """

    FORMAT: ClassVar[str] = KERNEL_FORMAT
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    def __post_init__(self) -> None:
        from mmabits.conformance.diff.kernel_cases import case_of_kernel

        self.hold()
        case = case_of_kernel(self.case)
        if set(self.outputs) != set(case.outputs):
            raise OperandError(f"outputs are {', '.join(self.outputs) or 'none'}; {self.case} has {', '.join(case.outputs)}")
        check_dtypes(self.arrays)

    @property
    def arrays(self) -> dict[str, Array]:
        """Inputs and outputs as a file names them."""
        return {f"{side}.{name}": array for side, arrays in (("in", self.inputs), ("out", self.outputs)) for name, array in arrays.items()}

    @classmethod
    def of_file(cls, file: TensorFile, path: Path) -> Self:
        """As the base says."""
        known, arrays = read_arrays(file, KERNEL_FORMAT, _TEXTS, _OPTIONAL)
        sides: dict[str, dict[str, Array]] = {"in": {}, "out": {}}
        for name, array in arrays.items():
            side, _, short = name.partition(".")
            if side not in sides or not short:
                raise OperandError(f"tensor {name!r} is neither an input nor an output")
            sides[side][short] = array
        return cls(**known, inputs=sides["in"], outputs=sides["out"])


read_run: Final = Run.read


def write_run(path: str | os.PathLike[str], run: RecordedCall) -> None:
    """Write a run, whole or not at all; nothing is replaced.

    Raises:
        VectorFileError: a file of that name is there, or it cannot be written.
    """
    write_arrays(Path(path), run.FORMAT, {name: value for name, value in run.manifest.items() if name != "dtypes"}, run.arrays)


__all__ = ["KERNEL_FORMAT", "PRODUCT_FORMAT", "KernelRun", "RecordedCall", "Run", "read_run", "write_run"]
