"""Self-contained HTML pages: one file, no network, readable in light and dark, on a phone and on a wall."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from mmabits.isa import MmabitsError, OperandError


def render(template: str, *, package: str = __name__, **values: Any) -> str:
    """An HTML page from a template.

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
    return environment.get_template(template).render(version=__version__, today=today, **values)


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
    if target.is_dir():
        raise OperandError(f"{path} is a folder; a page is a file")
    there = next(folder for folder in target.absolute().parents if folder.exists())
    if not there.is_dir():
        raise OperandError(f"{path} cannot be written: {there} is no folder")
    try:
        with tempfile.TemporaryFile(dir=there):  # permissions alone do not tell: the whole file system may be read-only
            pass
    except OSError as error:
        raise OperandError(f"{path} cannot be written: {there} takes no files ({error.strerror or error})") from error


def write(path: str | Path, text: str) -> Path:
    """Write a file under a temporary name, then give it its own, so that no half file is ever seen.

    Args:
        path: where to; folders are made.
        text: its content.

    Raises:
        MmabitsError: it cannot be written (a full disk, no permission); nothing half-written is left.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise MmabitsError(f"{path} cannot be written ({error.strerror or error})") from error
    return target
