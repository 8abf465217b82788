"""Files of runs, the format "gemm-run/1": operands and result of one whole product, and how it came about.

| tensor           | what                                                                        |
|------------------|-----------------------------------------------------------------------------|
| a, b             | codes as unsigned integers, (M, K) and (K, N)                               |
| result           | codes, (M, N)                                                               |
| scale_a, scale_b | where there are scales: codes of block scales, or the bits of f32 factors   |

The metadata hold `format`, `manifest` (JSON) and `sha256`, over the tensors and the manifest. A finished file is never written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mmabits.conformance.record.recording import _write_new, data_sha256
from mmabits.isa.errors import MmabitsError, OperandError, VectorFileError

Array = npt.NDArray[Any]

FORMAT: Final = "gemm-run/1"
KINDS: Final = ("hardware", "emulator")
_TENSORS: Final = ("a", "b", "result")
_SCALES: Final = ("scale_a", "scale_b")
_TEXTS: Final = ("case", "arch", "call", "kind", "gpu")
_DTYPES: Final = {
    str(np.dtype(dtype)): np.dtype(dtype)
    for dtype in (
        np.float64, np.float32, np.float16, np.int32, np.int8, np.uint8, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
        ml_dtypes.float6_e3m2fn, ml_dtypes.float6_e2m3fn, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu,
    )
}  # fmt: skip


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
        for name, array in self.arrays.items():
            if str(array.dtype) not in _DTYPES:
                raise OperandError(f"{name} is {array.dtype}; a run holds {', '.join(_DTYPES)}")

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
    with suppress(SafetensorError, OSError), safe_open(os.fspath(path), framework="numpy") as file:
        return bool((file.metadata() or {}).get("format") == FORMAT)
    return False


def write_run(path: str | os.PathLike[str], run: Run) -> None:
    """Write a run, whole or not at all; nothing is replaced.

    Raises:
        VectorFileError: a file of that name is there, or it cannot be written.
    """
    codes = {name: np.ascontiguousarray(array).view(f"uint{8 * array.dtype.itemsize}") for name, array in run.arrays.items()}
    manifest = json.dumps(run.manifest, sort_keys=True)
    _write_new(Path(path), save(codes, {"format": FORMAT, "manifest": manifest, "sha256": _sha256(codes, manifest)}))


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read and check a run.

    Raises:
        VectorFileError: the file is missing, damaged, of another format or contradicts itself; one line that names it.
    """
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise OperandError(f"metadata key 'format' is {metadata.get('format', 'missing')!r}; allowed: {FORMAT!r}")
            codes = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        return _from_parts(metadata, codes)
    except SafetensorError as error:
        raise VectorFileError(f"{path}: no readable safetensors file ({' '.join(str(error).split())}); it may be truncated") from error
    except OSError as error:
        raise VectorFileError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MmabitsError as error:
        raise VectorFileError(f"{path}: {error}") from error


def _sha256(codes: Mapping[str, Array], manifest: str) -> str:
    return hashlib.sha256(f"{data_sha256(codes)}\n{manifest}".encode()).hexdigest()


def _from_parts(metadata: Mapping[str, str], codes: dict[str, Array]) -> Run:
    missing = [key for key in ("manifest", "sha256") if key not in metadata]
    if missing:
        raise OperandError(f"metadata key {missing[0]!r} is missing")
    if _sha256(codes, metadata["manifest"]) != metadata["sha256"]:
        raise OperandError("its sha256 is not that of its contents; it was damaged or changed")
    try:
        manifest = json.loads(metadata["manifest"])
    except json.JSONDecodeError as error:
        raise OperandError(f"metadata key 'manifest' is no JSON ({error})") from error
    if not isinstance(manifest, dict) or not isinstance(dtypes := manifest.pop("dtypes", None), dict):
        raise OperandError("metadata key 'manifest' names no dtypes")
    if set(codes) not in ({*_TENSORS}, {*_TENSORS, *_SCALES}) or set(dtypes) != set(codes):
        raise OperandError(f"tensors are {', '.join(sorted(codes)) or 'none'}; allowed: {', '.join(_TENSORS)}, and both scales or none")
    arrays: dict[str, Any] = {}
    for name, array in codes.items():
        dtype = _DTYPES.get(str(dtypes[name]))
        if dtype is None or array.dtype != np.dtype(f"uint{8 * dtype.itemsize}"):
            raise OperandError(f"tensor {name!r} is {array.dtype} and stands for {dtypes[name]!r}, which does not go together")
        arrays[name] = array.view(dtype)
    absent = [name for name in _TEXTS if not isinstance(manifest.get(name), str)]
    if absent:
        raise OperandError(f"the manifest has no text {absent[0]!r}")
    known = {name: manifest[name] for name in (*_TEXTS, "instruction", "fast_accum", "seed", "versions") if name in manifest}
    return Run(**known, **arrays)
