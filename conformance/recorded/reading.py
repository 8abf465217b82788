"""Finding files, and reading them by the format that they say they have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from mmabits.conformance.recorded.base import Recorded, RecordedDots
from mmabits.conformance.recorded.calls import KernelRun, Run
from mmabits.conformance.recorded.dots import DotVectors, dots_of
from mmabits.conformance.recorded.tiles import Recording
from mmabits.isa.errors import VectorFileError
from mmabits.reports.stored import SUFFIX, open_tensors

FOLDER_VARIABLE: Final = "MMABITS_RECORDINGS"

_DOTS: Final[tuple[type[RecordedDots], ...]] = (DotVectors, Recording)
"""A file of no format is taken for dot products, which say what is missing."""
_EVERY: Final[tuple[type[Recorded], ...]] = (*_DOTS, Run, KernelRun)
R = TypeVar("R", bound=Recorded)


def _read(path: str | os.PathLike[str], kinds: Sequence[type[R]]) -> R:
    with open_tensors(path) as file:
        form = file.metadata.get("format")
        return next((kind for kind in kinds if form == kind.FORMAT), kinds[0]).of_file(file, Path(path))


def read_recorded(path: str | os.PathLike[str]) -> Recorded:
    """Read and check a file of any of the four formats.

    Raises:
        VectorFileError: the file is missing, damaged, of no format or contradicts itself; one line that names it.
    """
    return _read(path, _EVERY)


def read_recorded_dots(path: str | os.PathLike[str]) -> RecordedDots:
    """Read and check a file of tiles or dot products.

    Raises:
        VectorFileError: as `read_recorded`, and for a file of another format.
    """
    return _read(path, _DOTS)


def read_dots(path: str | os.PathLike[str]) -> DotVectors:
    """The dot products of a file of tiles or dot products: of tiles, every element of D is one.

    Raises:
        VectorFileError: the file cannot be read, or holds chains of instructions, whose intermediate results nobody recorded.
    """
    found = read_recorded_dots(path)
    if isinstance(found, DotVectors):
        return found
    if found.chained > 1:
        raise VectorFileError(f"{path}: holds chains of {found.chained} instructions; single dot products are needed (--chain 1)")
    return dots_of(found, np.argwhere(np.ones(found.results.shape, np.bool_)))


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
