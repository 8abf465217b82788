"""Files of runs, the format "gemm-run/1": operands and result of one whole product, and how it came about.

| tensor           | what                                                                        |
|------------------|-----------------------------------------------------------------------------|
| a, b             | codes as unsigned integers, (M, K) and (K, N)                               |
| result           | codes, (M, N)                                                               |
| scale_a, scale_b | where there are scales: codes of block scales, or the bits of f32 factors   |

The metadata hold `format`, `manifest` (JSON) and `sha256`, over the tensors and the manifest. A finished file is never written again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy.typing as npt

from mmabits.conformance.diff.files import check_dtypes, check_manifest, format_of, read_arrays, write_arrays
from mmabits.isa.errors import MmabitsError, OperandError, VectorFileError

Array = npt.NDArray[Any]

FORMAT: Final = "gemm-run/1"
KINDS: Final = ("hardware", "emulator")
_TENSORS: Final = ("a", "b", "result")
_SCALES: Final = ("scale_a", "scale_b")
_TEXTS: Final = ("case", "arch", "call", "kind", "gpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One product as a GPU, or the emulator in its place, gave it.

    Raises:
        OperandError: shapes or a kind that do not fit.
    """

    case: str
    """Name of what was run."""
    arch: str
    call: str
    """The framework's call, or the instruction."""
    kind: str
    """`hardware`, or `emulator`: a stand-in, proving nothing about hardware."""
    gpu: str
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
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OperandError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
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
    def manifest(self) -> dict[str, Any]:
        """All but the arrays."""
        return {
            **{name: getattr(self, name) for name in (*_TEXTS, "instruction", "fast_accum", "seed")},
            "versions": dict(self.versions), "dtypes": {name: str(array.dtype) for name, array in self.arrays.items()},
        }  # fmt: skip


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is of this format. A file that cannot be read is not."""
    return format_of(path) == FORMAT


def write_run(path: str | os.PathLike[str], run: Run) -> None:
    """Write a run, whole or not at all; nothing is replaced.

    Raises:
        VectorFileError: a file of that name is there, or it cannot be written.
    """
    write_arrays(path, FORMAT, {name: value for name, value in run.manifest.items() if name != "dtypes"}, run.arrays)


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read and check a run.

    Raises:
        VectorFileError: the file is missing, damaged, of another format or contradicts itself; one line that names it.
    """
    manifest, arrays = read_arrays(path, FORMAT)
    try:
        if set(arrays) not in ({*_TENSORS}, {*_TENSORS, *_SCALES}):
            raise OperandError(
                f"tensors are {', '.join(sorted(arrays)) or 'none'}; allowed: {', '.join(_TENSORS)}, and both scales or none"
            )
        check_manifest(manifest, _TEXTS)
        known: dict[str, Any] = {
            name: manifest[name] for name in (*_TEXTS, "instruction", "fast_accum", "seed", "versions") if name in manifest
        }
        return Run(**(known | arrays))
    except MmabitsError as error:
        raise VectorFileError(f"{path}: {error}") from error
