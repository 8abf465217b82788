"""Matrices out of files of others: .npy, .npz, .safetensors and .pt. Nothing in them is run."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import from_codes
from mmabits.emulator.engine import memory
from mmabits.emulator.interop import to_numpy
from mmabits.isa import FORMATS, FormatSpec, MmabitsError, OperandError, VectorFileError, format_spec
from mmabits.reports.failures import one_line
from mmabits.reports.stored import check_file

Array = npt.NDArray[Any]

SUFFIXES: Final = (".npy", ".npz", ".safetensors", ".pt", ".pth")
STANDARD: Final = "-"
"""Standard input, as .npy."""
_TENSOR_TYPES: Final[dict[str, Any]] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu, "I8": np.int8, "U8": np.uint8, "I32": np.int32,
    "I16": np.int16, "U16": np.uint16, "U32": np.uint32,
}  # fmt: skip
"""What safetensors calls a type."""
_SHOWN: Final = 8
"""Names in an error."""


class MissingTensor(VectorFileError):
    """A file has no tensor of the name asked for."""


@dataclass(frozen=True, kw_only=True)
class MatrixSource:
    """Where a matrix lies: a file, and in one of many tensors which."""

    path: str
    tensor: str | None = None

    @classmethod
    def of(cls, text: str) -> MatrixSource:
        """`a.npy`, `model.safetensors:layer.0.weight`, or `-` for standard input.

        A file whose whole name is there is that file, colons and all.
        """
        if text == STANDARD or os.path.exists(text) or ":" not in text:
            return cls(path=text)
        for suffix in SUFFIXES:
            head, found, tail = text.partition(f"{suffix}:")
            if found:
                return cls(path=head + suffix, tensor=tail)
        return cls(path=text)

    def __str__(self) -> str:
        return self.path if self.tensor is None else f"{self.path}:{self.tensor}"


def read_matrix(source: str | MatrixSource, *, stored: str | FormatSpec | None = None) -> Array:
    """An array out of a file.

    Args:
        source: `file`, or `file:tensor` where the file holds several; `-` is a .npy on standard input.
        stored: the format that bytes (u8, or the raw types that NumPy writes for ml_dtypes) are codes of.

    Returns:
        The array; tensors of bfloat16 and of FP8 have the types of ml_dtypes.

    Raises:
        VectorFileError: the file is missing, damaged or of another kind; one line that names it.
        MissingTensor: it lacks the tensor.
        OperandError: `stored` is no format, or does not fit what the file holds.
    """
    place = MatrixSource.of(source) if isinstance(source, str) else source
    form = None if stored is None else format_spec(stored)
    try:
        array = _read(place)
    except MissingTensor:
        raise
    except MmabitsError as error:
        raise VectorFileError(f"{place}: {error}") from error
    except OSError as error:
        raise VectorFileError(f"{place}: cannot be read ({error.strerror or one_line(error)})") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, RuntimeError, MemoryError, ImportError) as error:
        raise VectorFileError(f"{place}: cannot be read ({one_line(error)})") from error
    return _typed(array, form, place)


def _read(place: MatrixSource) -> Array:
    if place.path == STANDARD:
        return np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)  # type: ignore[no-any-return]
    suffix = Path(place.path).suffix
    if suffix not in SUFFIXES:
        raise OperandError(f"matrices are read from {', '.join(SUFFIXES)}")
    check_file(place.path)
    if suffix == ".npy":
        if place.tensor is not None:
            raise OperandError("a .npy file holds one array, which has no name")
        with open(place.path, "rb") as file:
            found = np.load(file, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise OperandError("is no .npy file")
        return found
    if suffix == ".npz":
        with zipfile.ZipFile(place.path) as members:
            memory.require(sum(one.file_size for one in members.infolist()), "unpacking it")
        with open(place.path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            array: Array = arrays[_chosen(place, list(arrays.files))]
        return array
    return _safetensors(place) if suffix == ".safetensors" else _torch(place)


def _chosen(place: MatrixSource, names: list[str]) -> str:
    """The tensor's name: the one asked for, or the only one there is."""
    if place.tensor is not None and place.tensor in names:
        return place.tensor
    shown = f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}" or "none"
    if place.tensor is not None:
        raise MissingTensor(f"{place}: no such tensor; there are {shown}")
    if len(names) != 1:
        raise OperandError(f"holds {len(names)} tensors: name one after a colon ({shown})")
    return names[0]


def _safetensors(place: MatrixSource) -> Array:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place.path, framework="numpy") as file:  # the library checks header and offsets
            name = _chosen(place, list(file.keys()))
    except SafetensorError as error:
        raise OperandError(f"no readable safetensors file ({one_line(error)}); it may be truncated") from error
    with open(place.path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        row = json.loads(raw.read(length))[name]
        if row["dtype"] not in _TENSOR_TYPES:
            raise OperandError(f"tensor {name!r} is {row['dtype']}; allowed: {', '.join(_TENSOR_TYPES)}")
        start, end = row["data_offsets"]
        raw.seek(8 + length + start)
        return np.frombuffer(raw.read(end - start), _TENSOR_TYPES[row["dtype"]]).reshape(row["shape"])


def _torch(place: MatrixSource) -> Array:
    if importlib.util.find_spec("torch") is None:
        raise OperandError("torch is not installed: pip install 'mmabits[torch]'")
    import pickle

    import torch

    try:
        found = torch.load(place.path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise OperandError(f"holds more than weights, which would be run when it is read ({one_line(error)[:120]})") from error
    except (struct.error, AttributeError, IndexError, TypeError) as error:  # what torch's reader of damaged files raises
        raise OperandError(f"no readable file of torch.save ({one_line(error)}); it may be damaged") from error
    tensors = dict(_tensors(found, ""))
    return to_numpy(tensors[_chosen(place, list(tensors))], "the tensor")[0]


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Tensors with the names of the dictionaries and lists around them."""
    if hasattr(value, "untyped_storage"):
        yield name or "tensor", value.detach()
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _tensors(part, f"{name}.{number}" if name else str(number))


def _typed(array: Array, form: FormatSpec | None, place: MatrixSource) -> Array:
    is_raw = array.dtype.type is np.void  # how NumPy writes the types of ml_dtypes
    if form is None:
        if is_raw:
            size = array.dtype.itemsize
            names = [row.name for row in FORMATS.values() if row.container_bits == 8 * size and not row.is_integer]
            raise VectorFileError(f"{place}: elements of {size} raw bytes, whose type .npy does not say; name it: {', '.join(names)}")
        return array
    if not is_raw and array.dtype != np.dtype(f"u{array.dtype.itemsize}"):
        raise OperandError(f"{place}: holds {array.dtype}, not raw codes of {form.name}")
    if 8 * array.dtype.itemsize != form.container_bits:
        raise OperandError(f"{place}: elements of {array.dtype.itemsize} bytes are no codes of {form.name}")
    return from_codes(np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}"), form)


__all__ = ["STANDARD", "SUFFIXES", "MatrixSource", "MissingTensor", "read_matrix"]
