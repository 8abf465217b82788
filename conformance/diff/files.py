"""Files of arrays as codes with a manifest: what the formats of `mmabits diff` share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from mmabits.conformance.record.recording import data_sha256, write_new
from mmabits.isa.errors import OperandError
from mmabits.reports.stored import format_of, open_tensors, read_json

Array = npt.NDArray[Any]

DTYPES: Final = {
    str(np.dtype(dtype)): np.dtype(dtype)
    for dtype in (
        np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2, ml_dtypes.float6_e3m2fn, ml_dtypes.float6_e2m3fn, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu,
    )
}  # fmt: skip
"""What such a file can hold, by name."""


def check_dtypes(arrays: Mapping[str, Array]) -> None:
    """Refuse arrays that such a file cannot hold.

    Raises:
        OperandError: one of another dtype.
    """
    for name, array in arrays.items():
        if str(array.dtype) not in DTYPES:
            raise OperandError(f"{name} is {array.dtype}; a run holds {', '.join(DTYPES)}")


def write_arrays(path: str | os.PathLike[str], form: str, manifest: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a file, whole or not at all; nothing is replaced.

    Args:
        path: where to.
        form: the format it says it has.
        manifest: plain values; `dtypes` is added.
        arrays: by name.

    Raises:
        VectorFileError: a file of that name is there, or it cannot be written.
    """
    codes = {name: np.asarray(array, order="C").view(f"uint{8 * array.dtype.itemsize}") for name, array in arrays.items()}
    text = json.dumps({**manifest, "dtypes": {name: str(array.dtype) for name, array in arrays.items()}}, sort_keys=True)
    write_new(Path(path), save(codes, {"format": form, "manifest": text, "sha256": _sha256(codes, text)}))


def read_arrays(path: str | os.PathLike[str], form: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read and check a file: its manifest without `dtypes`, and its arrays.

    Raises:
        VectorFileError: the file is missing, damaged, of another format or contradicts itself; one line that names it.
    """
    with open_tensors(path) as file:
        if file.metadata.get("format") != form:
            raise OperandError(f"metadata key 'format' is {file.metadata.get('format', 'missing')!r}; allowed: {form!r}")
        return _from_parts(file.metadata, {name: file.tensor(name) for name in file.names})


def check_manifest(manifest: Mapping[str, Any], texts: tuple[str, ...]) -> None:
    """Refuse a manifest that lacks a text, or says something else than it should.

    Raises:
        OperandError: it does.
    """
    absent = [name for name in texts if not isinstance(manifest.get(name), str)]
    if absent:
        raise OperandError(f"the manifest has no text {absent[0]!r}")
    for name, (is_right, what) in _KINDS.items():
        if name in manifest and not is_right(manifest[name]):
            raise OperandError(f"the manifest's {name!r} is {manifest[name]!r:.40}; allowed: {what}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


_KINDS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "seed": (lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0, "an integer from 0 on"),
    "versions": (_are_texts, "texts by name"),
    "instruction": (lambda value: value is None or isinstance(value, str), "a text or null"),
    "fast_accum": (lambda value: value is None or isinstance(value, bool), "true, false or null"),
}
"""What else a manifest may hold, where it does."""


def _sha256(codes: Mapping[str, Array], manifest: str) -> str:
    return hashlib.sha256(f"{data_sha256(codes)}\n{manifest}".encode()).hexdigest()


def _from_parts(metadata: Mapping[str, str], codes: dict[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
    missing = [key for key in ("manifest", "sha256") if key not in metadata]
    if missing:
        raise OperandError(f"metadata key {missing[0]!r} is missing")
    if _sha256(codes, metadata["manifest"]) != metadata["sha256"]:
        raise OperandError("its sha256 is not that of its contents; it was damaged or changed")
    manifest = read_json(metadata["manifest"], "metadata key 'manifest'")
    if not isinstance(manifest, dict) or not isinstance(dtypes := manifest.pop("dtypes", None), dict):
        raise OperandError("metadata key 'manifest' names no dtypes")
    if set(dtypes) != set(codes):
        raise OperandError(
            f"tensors are {', '.join(sorted(codes)) or 'none'}, but the manifest names {', '.join(sorted(dtypes)) or 'none'}"
        )
    arrays: dict[str, Array] = {}
    for name, array in codes.items():
        dtype = DTYPES.get(str(dtypes[name]))
        if dtype is None or array.dtype != np.dtype(f"uint{8 * dtype.itemsize}"):
            raise OperandError(f"tensor {name!r} is {array.dtype} and stands for {dtypes[name]!r}, which does not go together")
        arrays[name] = array.view(dtype)
    return manifest, arrays


__all__ = ["DTYPES", "check_dtypes", "check_manifest", "format_of", "read_arrays", "write_arrays"]
