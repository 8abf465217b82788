"""Self-contained HTML pages: one file, no network, readable in light and dark, on a phone and on a wall."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from mmabits.isa import MmabitsError, OperandError, visible
from mmabits.reports.written import written_whole


def render(template: str, *, package: str = __name__, **values: Any) -> str:
    """An HTML page from a template. Control characters and marks of writing direction are spelled out, wherever they come from.

    Args:
        template: file name inside `package`; it extends `base.html.j2` and fills its blocks `title`, `lead`, `body`, `style`, `script`.
        package: the package that holds it.
        values: what the template names. `version` and `today` are added.

    Raises:
        MmabitsError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise MmabitsError("HTML pages need jinja2: pip install jinja2") from None
    from mmabits import __version__

    def load(name: str) -> str | None:
        for place in (package, __name__):
            file = resources.files(place) / name
            if file.is_file():
                return file.read_text(encoding="utf-8")
        return None

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    page = environment.get_template(template).render(version=__version__, today=today, **values)
    return visible(page, keep="\n\t")


def check_page(path: str | Path | None, *, suffixes: Sequence[str] = (".html",)) -> None:
    """Refuse a place for a page before the work whose result it shall show.

    Args:
        path: where the page shall go; folders that are missing will be made. None: nowhere.
        suffixes: what its name may end in.

    Raises:
        OperandError: another ending, a folder of that name, or a place where nothing can be written.
    """
    if path is None:
        return
    target = Path(path)
    if target.suffix not in suffixes:
        raise OperandError(f"a page is written as {' or '.join(suffixes)}, got {str(path)!r}")
    _check_place(target)
    if target.is_dir():
        raise OperandError(f"{path} is a folder; a page is a file")


def check_folder(path: str | Path) -> None:
    """Refuse a place for a folder of results before the work whose results it shall hold.

    Args:
        path: the folder; it and those above it will be made.

    Raises:
        OperandError: a file of that name, or a place where nothing can be written.
    """
    _check_place(Path(path) / "file")


def _check_place(target: Path) -> None:
    try:
        with suppress(FileNotFoundError, NotADirectoryError):  # names that no file can have are told here
            target.lstat()
        there = next(folder for folder in target.absolute().parents if folder.exists())
        if there.is_dir():
            with tempfile.TemporaryFile(dir=there):  # permissions alone do not tell: the whole file system may be read-only
                return
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise OperandError(f"{target.parent} takes no files ({getattr(error, 'strerror', None) or error})") from error
    raise OperandError(f"{target.parent} cannot be made: {there} is no folder")


def write(path: str | Path, text: str) -> Path:
    """Write a file under a temporary name, then give it its own, so that no half file is ever seen.

    Args:
        path: where to; folders are made.
        text: its content.

    Raises:
        MmabitsError: it cannot be written (a full disk, no permission); nothing half-written is left.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MmabitsError(f"{path} cannot be written ({error.strerror or error})") from error
    return target
