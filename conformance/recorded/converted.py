"""Recordings of others made vector files: arrays out of .npz, .csv or raw files, with a description in TOML of what they are."""

from __future__ import annotations

import csv
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.conformance.record.tiles import TileOperands
from mmabits.conformance.recorded.base import Provenance
from mmabits.conformance.recorded.dots import DotVectors
from mmabits.conformance.recorded.tiles import Recording
from mmabits.emulator.codecs import decode, encode
from mmabits.isa import FormatSpec, Instruction, MmabitsError, OperandError, VectorFileError, architecture, parse
from mmabits.reports.failures import one_line
from mmabits.reports.matrices import MissingTensor, read_matrix
from mmabits.reports.stored import check_file

Array = npt.NDArray[Any]

TEXTS: Final = ("gpu", "note", "source", "license")
KEYS: Final = ("instruction", "arch", "kind", *TEXTS, "data", "chain", "values", "tensors")
NAMES: Final = ("a", "b", "c", "d", "scale_a", "scale_b")
_RAW_KEYS: Final = ("file", "dtype", "shape", "offset")
_COLUMN: Final = re.compile(r"(scale_a|scale_b|a|b|c|d)_?(\d*)")
_INTEGER: Final = re.compile(r"0[xX][0-9a-fA-F]+|\d+")


def convert(description: str | Path) -> DotVectors | Recording:
    """Vectors out of a description and the files that it names.

    Args:
        description: a TOML file: see docs/vector-format.md.

    Returns:
        Dot products where `a` is (n, K), tiles where it is (tiles, M, K).

    Raises:
        VectorFileError: a file cannot be read, or does not hold what the description says; one line that names it.
    """
    path = Path(description)
    try:
        check_file(path)
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VectorFileError(f"no file is called {path}") from error
    except (OSError, ValueError, MmabitsError) as error:
        raise VectorFileError(f"{path}: cannot be read as TOML ({one_line(error)})") from error
    try:
        return _made(given, path.parent)
    except VectorFileError:
        raise
    except MmabitsError as error:
        raise VectorFileError(f"{path}: {error}") from error


def _made(given: Mapping[str, Any], folder: Path) -> DotVectors | Recording:
    unknown = [key for key in given if key not in KEYS]
    if unknown:
        raise OperandError(f"unknown key {unknown[0]!r}; known: {', '.join(KEYS)}")
    for key in ("instruction", "arch", "kind", "gpu"):
        if not isinstance(given.get(key), str):
            raise OperandError(f"key {key!r} is missing, or no text")
    for key in ("note", "source", "license", "data"):
        if not isinstance(given.get(key, ""), str):
            raise OperandError(f"key {key!r} must be a text, got {given[key]!r}")
    row, arch = parse(given["instruction"]), architecture(given["arch"]).name
    chain, are_values = given.get("chain", 1), given.get("values", False)
    if isinstance(chain, bool) or not isinstance(chain, int) or chain < 1:
        raise OperandError(f"chain must be a number of instructions, got {chain!r}")
    if not isinstance(are_values, bool):
        raise OperandError(f"values must be true (numbers) or false (codes), got {are_values!r}")
    formats = _formats(row)
    arrays: dict[str, Any] = {
        name: _codes(array, formats[name], name, are_values=are_values) for name, array in _arrays(given, folder, formats).items()
    }  # fmt: skip
    if arrays["a"].ndim == 2:
        return _dots(given, row, arch, arrays, chain)
    return _tiles(given, row, arch, arrays, chain)


def _formats(row: Instruction) -> dict[str, FormatSpec]:
    formats = {"a": row.a_type, "b": row.b_type, "c": row.c_type, "d": row.d_type}
    return formats if row.scale_type is None else {**formats, "scale_a": row.scale_type, "scale_b": row.scale_type}


def _dots(given: Mapping[str, Any], row: Instruction, arch: str, arrays: dict[str, Any], chain: int) -> DotVectors:
    if chain != 1:
        raise OperandError("dot products are those of one instruction: a chain is recorded as tiles")
    types: dict[str, Any] = {name: getattr(row, name) for name in ("a_type", "b_type", "c_type", "d_type", "scale_type", "block")}
    arrays.setdefault("c", np.zeros(len(arrays["a"]), _container(row.c_type)))
    return DotVectors(
        instruction=row.ptx, arch=arch, kind=given["kind"], k=arrays["a"].shape[1], **types, **arrays,
        **{key: given.get(key, "") for key in TEXTS},
    )  # fmt: skip


def _tiles(given: Mapping[str, Any], row: Instruction, arch: str, arrays: dict[str, Any], chain: int) -> Recording:
    if given["kind"] not in (kinds := (Provenance.HARDWARE, Provenance.EMULATOR)):
        raise OperandError(f"kind is {given['kind']!r}; allowed of tiles: {', '.join(kinds)}")
    d = arrays.pop("d")
    arrays.setdefault("c", np.zeros((len(arrays["a"]), row.m, row.n), _container(row.c_type)))
    return Recording(
        instruction=row, arch=arch, kind=given["kind"], gpu=given["gpu"], chain=chain, operands=TileOperands(**arrays), d=d,
        manifest={key: given[key] for key in ("note", "source", "license") if given.get(key)},
    )  # fmt: skip


# Arrays --------------------------------------------------------------------------------------------------------------


def _arrays(given: Mapping[str, Any], folder: Path, formats: Mapping[str, FormatSpec]) -> dict[str, Array]:
    tensors, data = given.get("tensors", {}), given.get("data")
    if not isinstance(tensors, Mapping):
        raise OperandError("tensors must be a table")
    strange = [name for name in tensors if name not in formats]
    if strange:
        raise OperandError(f"there is no tensor {strange[0]!r}; the instruction has {', '.join(formats)}")
    if data is not None and Path(data).suffix == ".csv":
        if tensors:
            raise OperandError("a .csv file names its columns itself: a0, a1, ..., b0, ..., c, d; tensors do not go with it")
        found = _read_csv(folder / data)
    else:
        found = {}
        for name in formats:
            entry = tensors.get(name, name if data is not None else None)
            if entry is None:
                continue
            try:
                found[name] = _array(name, entry, data, folder)
            except MissingTensor:
                if name != "c" or name in tensors:  # no C is zeros, unless one is named
                    raise
    missing = [name for name in formats if name not in found and name != "c"]
    if missing:
        raise OperandError(f"tensor {', '.join(missing)} missing; the instruction has {', '.join(formats)}")
    strange = [name for name in found if name not in formats]
    if strange:
        raise OperandError(f"scales are there ({', '.join(strange)}), but the instruction has none")
    return found


def _array(name: str, entry: Any, data: str | None, folder: Path) -> Array:
    if isinstance(entry, str):
        if data is None:
            raise OperandError(f"tensor {name!r} is named {entry!r}, but there is no data file that would hold it")
        return _read(f"{folder / data}:{entry}")
    if not isinstance(entry, Mapping):
        raise OperandError(f"tensor {name!r} must be a name in the data file, or a table of {', '.join(_RAW_KEYS)}")
    return _read_raw(name, entry, folder)


def _read(source: str) -> Array:
    try:
        return read_matrix(source)
    except VectorFileError as error:
        if "whose type .npy does not say" not in str(error):
            raise
    return np.asarray(np.load(source.rpartition(":")[0])[source.rpartition(":")[2]])  # raw bytes: the description says what they are


def _read_raw(name: str, entry: Mapping[str, Any], folder: Path) -> Array:
    unknown = [key for key in entry if key not in _RAW_KEYS]
    if unknown or not {"file", "dtype", "shape"} <= set(entry):
        raise OperandError(f"tensor {name!r} of a raw file takes file, dtype and shape, and offset; got {', '.join(entry)}")
    shape, offset = entry["shape"], entry.get("offset", 0)
    if not isinstance(shape, list) or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape):
        raise OperandError(f"the shape of tensor {name!r} must be a list of positive numbers, got {shape!r}")
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise OperandError(f"the offset of tensor {name!r} must be a number of bytes, got {offset!r}")
    try:
        dtype = np.dtype(getattr(ml_dtypes, str(entry["dtype"]), entry["dtype"]))
    except TypeError:
        raise OperandError(f"the dtype of tensor {name!r} is none that NumPy or ml_dtypes has: {entry['dtype']!r}") from None
    path = folder / str(entry["file"])
    try:
        check_file(path)
        raw = path.read_bytes()
    except OSError as error:
        raise VectorFileError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    size = math.prod(shape) * dtype.itemsize
    if len(raw) < offset + size or (offset == 0 and len(raw) != size):
        raise OperandError(f"{path}: {len(raw)} bytes; tensor {name!r} of {shape} {dtype} from {offset} takes {size}")
    return np.frombuffer(raw, dtype, count=math.prod(shape), offset=offset).reshape(shape)


def _read_csv(path: Path) -> dict[str, Array]:
    try:
        check_file(path)
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VectorFileError(f"{path}: cannot be read ({one_line(error)})") from error
    rows = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    if len(rows) < 2:
        raise VectorFileError(f"{path}: a line of headings and one of numbers at least")
    places: dict[str, dict[int, int]] = {}
    for column, heading in enumerate(rows[0]):
        match = _COLUMN.fullmatch(heading)
        if match is None or int(match[2] or 0) in places.setdefault(match[1], {}):
            raise VectorFileError(f"{path}: heading {heading!r}; there are a0, a1, ..., b0, ..., c, d, scale_a0, ..., each once")
        places[match[1]][int(match[2] or 0)] = column
    for name, columns in places.items():
        if sorted(columns) != list(range(len(columns))):
            raise VectorFileError(f"{path}: columns of {name} are {sorted(columns)}, not 0 to {len(columns) - 1}")
    for number, line in enumerate(rows[1:], 2):
        if len(line) != len(rows[0]):
            raise VectorFileError(f"{path}: row {number} has {len(line)} cells, the headings {len(rows[0])}")
    found = {}
    for name, columns in places.items():
        cells = [[line[columns[place]] for place in range(len(columns))] for line in rows[1:]]
        numbers = np.array([[_cell(cell, path) for cell in line] for line in cells], dtype=object)
        found[name] = numbers[:, 0] if name in ("c", "d") else numbers
    return found


def _cell(text: str, path: Path) -> int | float:
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0X") else int(text)
    try:
        return float(text)
    except ValueError:
        raise VectorFileError(f"{path}: {text!r} is no number") from None


# Codes ---------------------------------------------------------------------------------------------------------------


def _container(form: FormatSpec) -> np.dtype[Any]:
    return np.dtype(f"u{form.container_bits // 8}")


def _codes(array: Array, form: FormatSpec, name: str, *, are_values: bool) -> Array:
    """The codes of an array: as they are, the bits of a typed one, or the codes of numbers."""
    container = _container(form)
    if are_values and array.dtype.type is not np.void:
        return _of_values(array, form, name)
    if array.dtype == object:
        if not all(isinstance(cell, int) and 0 <= cell < 1 << form.container_bits for cell in array.reshape(-1)):
            raise OperandError(f"tensor {name!r} holds what is no code of {form.name}; set values = true for numbers")
        return array.astype(container)
    if array.dtype.itemsize != container.itemsize:
        raise OperandError(f"tensor {name!r} is {array.dtype}; codes of {form.name} have {container.itemsize} bytes")
    native = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="), copy=False)
    is_typed = native.dtype.kind in "fV" and native.dtype.type is not np.void
    if is_typed and native.dtype != np.dtype(form.numpy_name) and not (form.name == "tf32" and native.dtype == np.float32):
        raise OperandError(f"tensor {name!r} is {native.dtype}, but the instruction has {form.name} there")
    return native.view(container)


def _of_values(array: Array, form: FormatSpec, name: str) -> Array:
    try:
        values = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise OperandError(f"tensor {name!r} holds no numbers ({one_line(error)})") from error
    codes = encode(values, form, satfinite=False) if not form.is_integer else encode(values.astype(np.int64), form)
    back = decode(codes, form)
    wrong = values[(back != values) & ~(np.isnan(back) & np.isnan(values))]
    if wrong.size:
        raise OperandError(f"tensor {name!r}: {wrong.reshape(-1)[0]:.17g} is no {form.name}")
    return np.asarray(codes).astype(_container(form), copy=False)


__all__ = ["KEYS", "convert"]
