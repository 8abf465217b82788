"""Self-contained HTML pages: one file, no network, readable in light and dark, on a phone and on a wall."""

from __future__ import annotations

import datetime
import os
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


def check_page(path: str | Path | None) -> None:
    """Refuse a place for a page before the work whose result it shall show.

    Args:
        path: where the page shall go; None: nowhere.

    Raises:
        OperandError: it does not end in `.html`, is a folder, or lies where nothing can be written.
    """
    if path is None:
        return
    target = Path(path)
    if target.suffix != ".html":
        raise OperandError(f"a page is written as .html, got {str(path)!r}")
    if target.is_dir():
        raise OperandError(f"{path} is a folder; a page is a file")
    there = next(folder for folder in target.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OperandError(f"{path} cannot be written: {there} is {'no folder' if not there.is_dir() else 'read-only'}")


def write(path: str | Path, text: str) -> Path:
    """Write a file under a temporary name, then give it its own, so that no half file is ever seen.

    Args:
        path: where to; folders are made.
        text: its content.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, target)
    return target
