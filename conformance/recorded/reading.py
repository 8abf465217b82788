"""Finding files, and reading them by the format that they say they have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from mmabits.conformance.recorded import dots, runs, tiles
from mmabits.conformance.recorded.base import Recorded, RecordedDots
from mmabits.conformance.recorded.dots import DotVectors
from mmabits.isa.errors import OperandError, VectorFileError
from mmabits.reports.stored import SUFFIX, TensorFile, open_tensors

FOLDER_VARIABLE: Final = "MMABITS_RECORDINGS"

_DOTS: Final[dict[str, Callable[[TensorFile, Path], RecordedDots]]] = {
    dots.FORMAT: lambda file, path: dots.vectors_of_file(file),
    tiles.FORMAT: tiles.recording_of_file,
}
_EVERY: Final[dict[str, Callable[[TensorFile, Path], Recorded]]] = {
    **_DOTS,
    runs.PRODUCT_FORMAT: lambda file, path: runs.run_of_file(file),
    runs.KERNEL_FORMAT: lambda file, path: runs.kernel_run_of_file(file),
}
"""What reads a file of a format. A file of none is taken for dot products, whose reader says what is missing."""


def read_recorded(path: str | os.PathLike[str]) -> Recorded:
    """Read and check a file of any of the four formats.

    Raises:
        VectorFileError: the file is missing, damaged, of no format or contradicts itself; one line that names it.
    """
    with open_tensors(path) as file:
        return _EVERY.get(file.metadata.get("format", ""), _EVERY[dots.FORMAT])(file, Path(path))


def read_recorded_dots(path: str | os.PathLike[str]) -> RecordedDots:
    """Read and check a file of tiles or dot products.

    Raises:
        VectorFileError: as `read_recorded`, and for a file of another format.
    """
    with open_tensors(path) as file:
        return _DOTS.get(file.metadata.get("format", ""), _DOTS[dots.FORMAT])(file, Path(path))


def read_dots(path: str | os.PathLike[str]) -> DotVectors:
    """The dot products of a file of tiles or dot products: of tiles, every element of D is one.

    Raises:
        VectorFileError: the file cannot be read, or holds chains of instructions, whose intermediate results nobody recorded.
    """
    found = read_recorded_dots(path)
    if isinstance(found, DotVectors):
        return found
    try:
        return found.dots(np.argwhere(np.ones(found.results.shape, np.bool_)))
    except OperandError as error:
        raise VectorFileError(f"{os.fspath(path)}: {error}") from error


def recordings_folder() -> Path | None:
    """Where recordings are looked for without being told: `$MMABITS_RECORDINGS`, else ../shared/hardware beside a checkout.

    Raises:
        VectorFileError: the variable names no folder.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        if not Path(named).is_dir():
            raise VectorFileError(f"{FOLDER_VARIABLE} is {named!r}, which is no folder")
        return Path(named)
    beside = Path(__file__).resolve().parents[3] / "shared" / "hardware"
    return beside if beside.is_dir() else None


def find_files(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The vector files that files and folders (with all below them) name, each once, those of a folder in order.

    Raises:
        VectorFileError: a path that is not there, or a folder without any such file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob(f"*{SUFFIX}") if not file.is_dir())
            if not inside:
                raise VectorFileError(f"{path}: no file *{SUFFIX} in this folder or below it")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise VectorFileError(f"{path}: no such file or folder")
    return list(dict.fromkeys(found))


__all__ = ["FOLDER_VARIABLE", "find_files", "read_dots", "read_recorded", "read_recorded_dots", "recordings_folder"]
