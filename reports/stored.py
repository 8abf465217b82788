"""Files of others, read with care: safetensors and JSON. Whatever a file holds, it gives arrays and texts, or one error that names it."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from mmabits.emulator.engine import memory
from mmabits.isa import MmabitsError, OperandError, VectorFileError
from mmabits.reports.failures import one_line

Codes = npt.NDArray[Any]

TYPES: Final = ("U8", "U16", "U32", "U64")
"""What a tensor of codes can be, as safetensors calls it."""
SUFFIX: Final = ".safetensors"
_DIMENSIONS: Final = 8
_LONGEST_NUMBER: Final = 9


class TensorFile:
    """An open safetensors file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.metadata: dict[str, str] = file.metadata() or {}
        self.names: list[str] = list(file.keys())

    def tensor(self, name: str) -> Codes:
        """A tensor of codes.

        Raises:
            OperandError: another type, too many dimensions, or sizes that no array has.
        """
        part = self._file.get_slice(name)
        kind, shape = str(part.get_dtype()), tuple(part.get_shape())
        if kind not in TYPES:
            raise OperandError(f"tensor {name!r} is {kind}; allowed: {', '.join(TYPES)}")
        if len(shape) > _DIMENSIONS or math.prod(max(size, 1) for size in shape) >= 1 << 60:
            raise OperandError(f"tensor {name!r} has shape {shape}, which no array has")
        codes: Codes = self._file.get_tensor(name)
        return codes


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """A safetensors file, open.

    Args:
        path: a file; no pipe and no device is waited for.

    Raises:
        VectorFileError: it is missing, damaged or no file, or what stands in the block says that it is wrong; one line that names it.
    """
    try:
        check_file(path)
        with safe_open(os.fspath(path), framework="numpy") as file:
            _check_header(path)
            yield TensorFile(file)
    except SafetensorError as error:
        raise VectorFileError(f"{os.fspath(path)}: no readable safetensors file ({one_line(error)}); it may be truncated") from error
    except OSError as error:
        raise VectorFileError(f"{os.fspath(path)}: cannot be read ({error.strerror or one_line(error)})") from error
    except MmabitsError as error:
        raise VectorFileError(f"{os.fspath(path)}: {error}") from error


def _check_header(path: str | os.PathLike[str]) -> None:
    """Refuse a header that says a thing twice: readers differ in what they make of it."""
    with open(path, "rb") as file:
        read_json(file.read(int.from_bytes(file.read(8), "little")), "its header")


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The format that a safetensors file says it has; None where it says none or cannot be read."""
    with suppress(VectorFileError), open_tensors(path) as file:
        return file.metadata.get("format")
    return None


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file, and one larger than memory.

    Raises:
        OSError: it is not there, or may not be looked at.
        OperandError: a folder, a pipe, a device.
        NotEnoughMemory: it is too large.
    """
    try:
        found = os.stat(path)
    except ValueError as error:  # a zero byte in the name
        raise OperandError(f"no such file ({one_line(error)})") from error
    if not stat.S_ISREG(found.st_mode):
        raise OperandError("is a folder, not a file" if stat.S_ISDIR(found.st_mode) else "is no regular file")
    memory.require(found.st_size, "reading it")


def whole_number(metadata: Mapping[str, str], key: str) -> int:
    """A positive number out of metadata.

    Raises:
        OperandError: it is none.
    """
    text = metadata[key]
    if not (text.isascii() and text.isdecimal() and 0 < len(text) <= _LONGEST_NUMBER and int(text)):
        raise OperandError(f"metadata key {key!r} is {text!r}; allowed: a positive integer")
    return int(text)


def read_json(text: str | bytes, what: str) -> Any:
    """JSON of the strict kind: finite numbers, no key twice.

    Args:
        text: the JSON; bytes are UTF-8.
        what: what to call it in an error.

    Raises:
        OperandError: it is no JSON, or nested beyond reason.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise OperandError(f"{what} is no JSON ({reason})") from error


def read_json_file(path: Path, what: str) -> Any:
    """A file of JSON.

    Raises:
        OperandError: it cannot be read, or is no JSON.
    """
    try:
        check_file(path)
        data = path.read_bytes()
    except OSError as error:
        raise OperandError(f"{what} cannot be read ({error.strerror or one_line(error)})") from error
    return read_json(data, what)


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond float64")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


__all__ = ["SUFFIX", "TYPES", "TensorFile", "check_file", "format_of", "open_tensors", "read_json", "read_json_file", "whole_number"]
