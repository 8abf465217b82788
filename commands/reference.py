"""The page of the command line, docs/commands.md: every command with its examples, arguments and options, from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from mmabits.commands.examples import EXAMPLES


def every_command() -> Iterator[tuple[str, Any]]:
    """(whole name, click's command), groups before what is in them."""
    import typer

    from mmabits.commands.main import app

    yield from _below("mmabits", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from _below(f"{name} {word}", inner)


def reference_markdown() -> str:
    """The generated part of docs/commands.md, without a newline at the end."""
    return "\n\n".join(part for name, command in every_command() for part in _section(name, command))


def _section(name: str, command: Any) -> Iterator[str]:
    yield f"## {name}"
    help_text = (command.help or "").replace("\b", "").strip()
    yield help_text
    yield "\n".join(("```text", *EXAMPLES[name], "```"))
    rows = [_row(parameter) for parameter in command.params if not _is_common(parameter)]
    if rows:
        yield "\n".join(("| Argument or option | What it is |", "|---|---|", *rows))


def _is_common(parameter: Any) -> bool:
    return "--help" in parameter.opts


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.name] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    told = getattr(parameter, "help", None) or ""
    notes = [told if told.endswith("...") else told.removesuffix(".")]
    if parameter.required and not is_argument:
        notes.append("required")
    if not parameter.required and is_argument:
        notes.append("may be left out")
    default = parameter.default
    if isinstance(default, int | float | str | PurePath) and not isinstance(default, bool):
        notes.append(f"default {default}")
    what = "; ".join(filter(None, notes)).replace("|", "\\|")
    return f"| {', '.join(f'`{word}`' for word in names)} | {what} |"
