"""`mmabits cache`: where the engine's machine code is kept, and how it is filled and emptied."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mmabits.commands.completion import architectures
from mmabits.reports.output import complain, say, say_json

if TYPE_CHECKING:
    from mmabits.emulator.engine.record import Variant
    from mmabits.isa import Lowering

EXIT_ERROR: Final = 2

cache = typer.Typer(
    help="Where the engine's machine code is kept; `warm` fills the cache, `clear` empties it.",
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder of the cache."""

    path: Path
    problem: str
    """Why nothing is kept in it; empty where it is, or could be made."""
    keeps_machine_code: bool
    """Whether machine code is looked for in it; else it is for the answers of Triton's compiler alone."""
    functions: int
    current: int
    """Functions that this installation would use on this processor."""
    answers: int
    """Files with answers of Triton's compiler."""
    size: int
    """Bytes of all of them."""


def folders() -> list[Folder]:
    """The folders of the cache, in the order in which they are looked into."""
    from mmabits.emulator.engine import cache as files

    for_code = list(files.machine_code_folders())
    own = files.user_folder()
    return [_folder(path, path in for_code) for path in dict.fromkeys((*for_code, *([] if own is None else [own])))]


def _folder(path: Path, keeps_machine_code: bool) -> Folder:
    from mmabits.emulator.engine import cache as files
    from mmabits.emulator.engine.machine_code import is_current

    found = files.kept_files(path)
    functions = [each for each in found if each.suffix == ".mmabits"]
    return Folder(
        path=path, problem=files.problem(path), keeps_machine_code=keeps_machine_code, functions=len(functions),
        current=sum(is_current(each.name) for each in functions), answers=sum(each.suffix == ".jsonl" for each in found),
        size=sum(each.lstat().st_size for each in found),
    )  # fmt: skip


@cache.callback()
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where the engine's machine code is kept, and how large it is."""
    if context.invoked_subcommand is not None:
        return
    found = folders()
    taken = next((each for each in found if each.keeps_machine_code and not each.problem), None)
    if as_json:
        rows = [
            {
                "path": str(each.path), "problem": each.problem or None, "machine_code": each.keeps_machine_code,
                "functions": each.functions, "current": each.current, "triton_answers": each.answers, "bytes": each.size,
            }
            for each in found
        ]  # fmt: skip
        say_json({"keeps_in": str(taken.path) if taken else None, "folders": rows})
        return
    for each in found:
        say(str(each.path))
        say(f"  {_counted(each.functions, 'function')}, {each.current} of them for this installation and processor; {_size(each.size)}")
        if each.answers:
            say(f"  {_counted(each.answers, 'file')} of answers of Triton's compiler")
        if each.problem:
            say(f"  not used: {each.problem}")
    say(f"new machine code is kept in {taken.path}" if taken else "no folder can keep machine code: every process compiles it anew")


@cache.command()
def warm(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(help="Instructions in full, or parts of their names: wgmma, mma.sync, kind::mxf4, e4m3. Without any, all."),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(autocompletion=architectures, help="Only what instructions of this architecture take: sm_90a, ...")
    ] = None,
) -> None:
    """Compile what instructions take and is not kept yet.

    That is ten seconds for each of at most twelve functions.
    Machine code is for one processor and one installation: in an image, warm the cache on the kind of machine that runs it.
    """
    from mmabits.emulator.engine import machine_code
    from mmabits.reports.progress import progress

    wanted = variants(kinds or [], arch)
    made = 0
    with progress(len(wanted), "compiling") as advance:
        for variant in wanted:
            start = time.perf_counter()
            try:
                new = machine_code.warm(variant)
            except OSError as error:
                complain(f"machine code cannot be kept: {error}")
                raise typer.Exit(EXIT_ERROR) from None
            made += new
            say(f"{variant.symbol}: {f'made in {time.perf_counter() - start:.1f} s' if new else 'kept already'}")
            advance()
    say(f"{_counted(made, 'function')} made, {len(wanted) - made} kept already")


@cache.command()
def clear() -> None:
    """Remove every kept file, other installations' too."""
    from mmabits.emulator.engine import cache as files

    removed = size = failed = 0
    for folder in folders():
        for path in files.kept_files(folder.path):
            try:
                length = path.lstat().st_size
                path.unlink()
            except OSError as error:
                complain(files.text_of(error))
                failed += 1
            else:
                removed, size = removed + 1, size + length
    say(f"{_counted(removed, 'file')} removed, {_size(size)}")
    if failed:
        raise typer.Exit(EXIT_ERROR)


def variants(kinds: list[str], arch: str | None) -> list[Variant]:
    """What machine code the named instructions take.

    Args:
        kinds: spellings in full, or dotted parts of them, all of which must stand in an instruction's; none for every instruction.
        arch: only on this architecture; None for all.

    Raises:
        UnknownInstruction: a name that fits nothing.
        UnknownArchitecture: no such architecture.
    """
    from mmabits.emulator.engine import native
    from mmabits.isa import UnknownInstruction, nearest
    from mmabits.isa.lowering import lowerings

    rows = [(set(row.instruction.ptx.split(".")) | {str(row.instruction.family)}, row) for row in lowerings(arch)]
    found = [] if kinds else [row for _, row in rows]
    for kind in kinds:
        fitting = [row for words, row in rows if kind in words or set(kind.split(".")) <= words] or _spelled(kind, arch)
        if not fitting:
            known = {word for words, _ in rows for word in words}
            where = f" on {arch}" if arch else ""
            raise UnknownInstruction(f"no instruction{where} is called {kind!r} or has such parts{nearest(kind, known)}")
        found += fitting
    return list(dict.fromkeys(variant for row in found for variant in native.variants(row)))


def _spelled(text: str, arch: str | None) -> list[Lowering]:
    """An instruction in full, of any shape, on the architectures that have it."""
    from mmabits.isa import ARCHITECTURES, UnknownInstruction, UnsupportedInstruction, lower, parse

    try:
        instruction = parse(text)
    except UnknownInstruction:
        return []
    found = []
    for name in ARCHITECTURES if arch is None else (arch,):
        try:
            found.append(lower(instruction, name))
        except UnsupportedInstruction:
            continue
    return found


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
