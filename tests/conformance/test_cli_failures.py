"""What goes wrong on the command line: one line and status 2, whatever it is and wherever the output goes."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

import mmabits
from mmabits.commands import main
from mmabits.commands.examples import EXAMPLES
from mmabits.conformance.record.generators import find_generator
from mmabits.conformance.recorded.dots import DotVectors, write_vectors
from mmabits.isa import OperandError, format_spec, instructions
from mmabits.reports import failures
from mmabits.reports.output import Fitting, draw
from mmabits.reports.pages import check_folder, check_page, render

# A terminal of our own takes a fork; where JAX was imported before, it warns of that.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")

ROOT = Path(__file__).resolve().parents[2]
WGMMA = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call the command in this process."""

    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as left:
            main.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(left.value.code or 0), captured.out, captured.err)

    return call


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # what is buffered is written at the end
    return {**kept, "PYTHONPATH": str(ROOT / "src"), **more}


def shell(command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `mmabits` is the command."""
    script = f'set -o pipefail; mmabits() {{ "{sys.executable}" -m mmabits.commands.main "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, env=environment(**more), check=False)


# Every kind of error ------------------------------------------------------------------------------------------------------------

FORESEEN = {
    "OSError": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    "OSError with a file": (OSError(errno.EACCES, "Permission denied", "some\x1b[2J/file"), r"some\x1b[2J/file: Permission denied"),
    "OSError without a number": (OSError("odd\nin two lines"), "odd in two lines"),
    "BlockingIOError": (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "Resource temporarily unavailable"),
    "MemoryError": (MemoryError(), "not enough memory"),
    "MemoryError of NumPy": (MemoryError("Unable to allocate 8 TiB"), "not enough memory (Unable to allocate 8 TiB)"),
    "RecursionError": (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    "ours": (OperandError("no \x1b[2J"), r"no \x1b[2J"),
}


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def broken(**_: object) -> None:
        raise error

    monkeypatch.setattr("mmabits.isa.instructions", broken)


@pytest.mark.parametrize("name", FORESEEN)
@pytest.mark.parametrize("traceback", ["", "1"])
def test_errors_of_the_machine_are_a_line(run, monkeypatch: pytest.MonkeyPatch, name: str, traceback: str) -> None:
    error, said = FORESEEN[name]
    failing(monkeypatch, error)
    monkeypatch.setenv(failures.VARIABLE, traceback)
    assert run("list") == (2, "", f"error: {said}\n")


def test_an_unforeseen_error_is_a_line_with_a_status_of_its_own(run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("division\nby \x1b zero"))
    monkeypatch.delenv(failures.VARIABLE, raising=False)
    wanted = "error: internal error, ZeroDivisionError: division by \\x1b zero (a mistake in mmabits; MMABITS_TRACEBACK=1 shows where)\n"
    assert run("list") == (70, "", wanted)


def test_an_unforeseen_error_is_raised_where_its_traceback_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the tests see where it comes from, and so does who asks."""
    failing(monkeypatch, ZeroDivisionError("here"))
    monkeypatch.setenv(failures.VARIABLE, "1")
    with pytest.raises(ZeroDivisionError, match="here"):
        main.main(["list"])


def test_ctrl_c_is_no_difference(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 1 would say that results differ."""
    failing(monkeypatch, KeyboardInterrupt())
    assert run("list").status == 130


# Where the output goes ----------------------------------------------------------------------------------------------------------

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@FULL
@pytest.mark.parametrize(
    "command", ["list", "list --json", "list --markdown", "show wgmma --arch h100 --a-type e4m3", "--help", "--version"]
)
def test_a_full_disk_is_a_line(command: str) -> None:
    done = shell(f"mmabits {command} > /dev/full")
    assert done.returncode == 2
    assert re.fullmatch(r"error: (standard output cannot be written \()?No space left on device\)?\n", done.stderr), done.stderr


@pytest.mark.parametrize("command", ["list", "list --json", "--help"])
def test_a_reader_that_leaves_is_told_nothing(command: str) -> None:
    done = shell(f"mmabits {command} | true")
    assert (done.returncode, done.stderr) == (2, "")


@FULL
def test_an_error_that_nobody_can_read_keeps_its_status() -> None:
    for where in ("2> /dev/full", "--nope 2> /dev/full", "2>&-", "> /dev/full 2>&1", ">&- 2>&-"):
        done = shell(f"mmabits list --arch sm_91 {where}")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", ""), where


def test_an_encoding_without_a_character_is_no_error(tmp_path: Path) -> None:
    e4m3, f32 = format_spec("e4m3"), format_spec("f32")
    one, zero = np.array([[0x38]], np.uint8), np.zeros(1, np.uint32)
    write_vectors(
        tmp_path / "größe.safetensors",
        DotVectors(
            instruction=WGMMA, arch="sm_90a", a_type=e4m3, b_type=e4m3, c_type=f32, d_type=f32, k=1, a=one, b=one, c=zero, d=zero, gpu="大",
        ),
    )  # fmt: skip
    done = shell(f"mmabits replay '{tmp_path}'", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (1, "")
    assert r"gr\xf6\xdfe.safetensors row 0" in done.stdout and r"\u5927" in done.stdout


# What commands are asked for ------------------------------------------------------------------------------------------------------


def check_error(result: Result, match: str) -> None:
    assert (result.status, result.out) == (2, "")
    assert re.fullmatch(rf"error: .*{match}.*\n", result.err), result.err


def test_a_file_in_the_place_of_a_folder_is_said_before_any_work(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "FILE"
    file.write_text("here already")

    def works(*_: object, **__: object) -> None:
        pytest.fail("it has begun to work")

    for place in (
        "conformance.probes.pack.entries", "commands.demo.load_operands", "research.study.report.sweep", "conformance.diff.recorder.choose",
        "commands.minilm.tokenize",
    ):  # fmt: skip
        monkeypatch.setattr(f"mmabits.{place}", works)
    monkeypatch.setattr("mmabits.commands.minilm.model_folder", lambda: tmp_path)
    pytest.importorskip("matplotlib")
    for out in (file, file / "below"):
        for command in (("vectors", "pack"), ("demo", "--size", "small"), ("study", "scales", "--size", "quick")):
            check_error(run(*command, "--out", out), "FILE is no folder")
        check_error(run("diff", "--emulated", "--arch", "h100", "--record", out), "FILE is no folder")
        check_error(run("record", "--emulated", "--arch", "h100", "--out", out), "FILE is no folder")
        if pytest.importorskip("torch"):
            check_error(run("minilm", "--out", out), "FILE is no folder")
    assert file.read_text() == "here already"


def test_places_that_take_no_files(tmp_path: Path) -> None:
    check_folder(tmp_path / "made" / "later")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OperandError, match="takes no files"):
        check_folder(tmp_path / "zero\0byte")
    with pytest.raises(OperandError, match="takes no files"):
        check_page(tmp_path / ("x" * 5000) / "page.html")


@pytest.mark.parametrize("missing", ["matplotlib.figure", "jinja2"])
def test_study_looks_for_what_it_needs_before_it_computes(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def works(*_: object, **__: object) -> None:
        pytest.fail("it has begun to work")

    monkeypatch.setattr("mmabits.research.study.report.sweep", works)
    monkeypatch.setitem(sys.modules, missing, None)
    check_error(run("study", "scales", "--size", "quick", "--out", tmp_path / "out"), rf"need {missing.split('.')[0]} .*pip install")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--seed", "-1"), "Invalid value for '--seed'"),
        (("--k", "1000000000"), "Invalid value for '--k'"),
        (("--k", "0"), "Invalid value for '--k'"),
    ],
)
def test_numbers_out_of_range_are_refused(run, arguments: tuple[str, ...], match: str) -> None:
    result = run("explain", "wgmma", "--arch", "h100", *arguments)
    assert (result.status, result.out) == (2, "") and match in result.err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--a-type", "s8", "--c", "nan"), "--c: nan is no s32"),
        (("--a-type", "s8", "--c", "1.5"), r"--c: 1\.5 is no s32"),
        (("--a-type", "s8", "--c", "1e300"), r"--c: 1.*e\+300 is no s32"),
        (("--a-type", "s8", "--a", "300,1", "--b", "1,1"), "--a: 300 is no s8"),
        (("--a-type", "s4", "--a", "nan", "--b", "1"), "--a: nan is no s4"),
        (("--a-type", "f16", "--a", "one", "--b", "1"), "--a takes numbers separated by commas, got 'one'"),
    ],
)
def test_values_that_a_format_does_not_have_are_refused(run, arguments: tuple[str, ...], match: str) -> None:
    check_error(run("explain", "mma.sync", "--arch", "sm_80", *arguments), match)


def test_scales_are_what_they_say(run) -> None:
    scaled = ("explain", "tcgen05.mma", "--arch", "b200", "--a-type", "float4_e2m1fn", "--scale-type", "float8_e8m0fnu", "--k", "64")
    assert "0x" in run(*scaled, "--scale-a", "0.5,4", "--scale-b", "1,1").out
    check_error(run(*scaled, "--scale-a", "0.5,3", "--scale-b", "1,1"), "--scale-a: 3 is no ue8m0")


def test_an_accumulator_beyond_its_type_is_infinite_without_a_warning(run) -> None:
    assert re.search(
        r"^sm_90a +\+?inf +0x7f800000", run("explain", "wgmma", "--arch", "h100", "--c", "1e300", "--k", "8").out, re.MULTILINE
    )


def test_a_recording_larger_than_memory_is_refused_before_any_work(run, tmp_path: Path) -> None:
    asked = ("record", "--emulated", "--arch", "h100", "--out", tmp_path, "--instruction", WGMMA, "--generator", "normal")
    for size in (("--tiles", "1000000000"), ("--tiles", "2", "--chain", "1000000000")):
        result = run(*asked, *size)
        assert result.status == 2 and "1 failed" in result.out
        assert re.search(r"error: .*: a recording of [\d,]+ tiles takes [\d.,]+ GiB of memory, and .* can be had\n", result.err)
    assert list(tmp_path.iterdir()) == []


CALLED: list[object] = []


def no_generator(*arguments: object) -> None:
    CALLED.append(arguments)


def of_three(instruction: object, arch: str, tiles: int) -> None:
    CALLED.append(instruction)


class Four:
    def __init__(self, instruction: object, arch: str, tiles: int, seed: int) -> None:
        CALLED.append(instruction)


def breaks(instruction: object, arch: str, tiles: int, seed: int) -> object:
    raise KeyError("in it")


def makes_no_tiles(instruction: object, arch: str, tiles: int, seed: int) -> object:
    return 3


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("os:system", "no generator 'os:system': os is a module of Python itself"),
        ("builtins:print", "builtins is a module of Python itself"),
        ("subprocess:run", "subprocess is a module of Python itself"),
        ("os.path:join", "os.path is a module of Python itself"),
        ("numpy:add", "'numpy:add' is no generator: one takes instruction, arch, tiles and seed"),
        ("own_generators:no_generator", "is no generator"),
        ("own_generators:of_three", "is no generator"),
        ("own_generators:Four", "is no generator"),
        ("own_generators:CALLED", "is no function"),
        ("own_generators:", "no generator 'own_generators:': AttributeError"),
        (":x", "no generator ':x': ValueError"),
        (".y:x", "no generator '.y:x': TypeError"),
        ("broken_generators:x", "no generator 'broken_generators:x': SyntaxError"),
        ("leaving_generators:x", "no generator 'leaving_generators:x': SystemExit: 3"),
    ],
)
def test_what_is_no_generator_is_never_called(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, match: str) -> None:
    (tmp_path / "broken_generators.py").write_text("x = (")
    (tmp_path / "leaving_generators.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "own_generators", sys.modules[__name__])
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("os.system is called"))
    check_error(run("record", "--emulated", "--arch", "h100", "--out", tmp_path / "out", "--generator", name), re.escape(match))
    assert not CALLED and not (tmp_path / "out").exists()


def test_a_generator_that_breaks_spoils_its_recording(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_generators", sys.modules[__name__])
    assert find_generator("own_generators:breaks") is breaks
    for name, match in (("breaks", "fails: KeyError: 'in it'"), ("makes_no_tiles", "makes int, not TileOperands")):
        asked = ("--instruction", WGMMA, "--tiles", "2", "--generator", f"own_generators:{name}")
        result = run("record", "--emulated", "--arch", "h100", "--out", tmp_path, *asked)
        assert result.status == 2 and f"generator own_generators:{name} {match}" in result.err


def test_gpus_are_taken_wherever_an_architecture_is(run, tmp_path: Path) -> None:
    assert run("list", "--arch", "NVIDIA H100 PCIe") == run("list", "--arch", "sm_90a")
    short = ("wgmma", "--a-type", "torch.float8_e4m3fn")
    assert run("show", *short, "--arch", "H200") == run("show", "wgmma", "--a-type", "e4m3", "--arch", "sm_90a")
    assert run("explain", "wgmma", "--arch", "h100", "--beside", "rtx5090") == run(
        "explain", "wgmma", "--arch", "sm_90a", "--beside", "sm_120a"
    )
    asked = ("record", "--emulated", "--out", tmp_path, "--instruction", WGMMA, "--tiles", "2", "--generator", "normal")
    assert run(*asked, "--arch", "gh200").status == 0
    (file,) = tmp_path.glob("*.safetensors")
    assert file.name.startswith("sm_90a.")
    assert run(*asked, "--arch", "sm_90a").out.endswith("0 recorded, 1 kept, 0 failed\n")
    assert run("diff", "--against", file, "--arch", "h100").status == 0
    check_error(run("diff", "--against", file, "--arch", "RTX 6000"), r"may be sm_75 .* or sm_89 .* or sm_120a")
    check_error(run("list", "--arch", "b100"), "unknown architecture 'b100'; known: sm_70")


def test_gpus_are_taken_in_python_too() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((8, 32)).astype(np.float16), rng.standard_normal((32, 8)).astype(np.float16)
    for gpu, arch in (("NVIDIA H100 PCIe", "sm_90a"), ("rtx5090", "sm_120a"), ("v100", "sm_70")):
        found, wanted = (mmabits.gemm(a, b, instruction="mma.sync", arch=name) for name in (gpu, arch))
        assert found.tobytes() == wanted.tobytes()
        assert mmabits.explain(a[0], b[:, 0], instruction="mma.sync", arch=gpu).on(gpu).arch == arch
        with mmabits.emulate(gpu, frameworks=[]) as session:
            assert session.arch == arch


# Pages --------------------------------------------------------------------------------------------------------------------------


def test_a_page_spells_out_what_steers(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmabits.reports.pages.report import Report, report_page

    page = report_page(Report(title="a\x1b[2Jb", lead="\u202elead\u2066", facts=(("GPU \x9b", "<H100>\x00\udcff"),)))
    assert r"a\x1b[2Jb" in page and r"\u202elead\u2066" in page and r"GPU \x9b" in page and r"&lt;H100&gt;\x00\udcff" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    assert page.encode("utf-8")
    assert render.__doc__


# Eighty columns -----------------------------------------------------------------------------------------------------------------


def in_terminal(*arguments: str, columns: int = 80) -> str:
    """What the command prints on a terminal of so many columns, without colours."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(environment(TERM="xterm"))
        os.environ.pop("COLUMNS", None)
        os.execv(sys.executable, [sys.executable, "-m", "mmabits.commands.main", *arguments])
    import fcntl

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    parts = []
    try:
        while part := os.read(terminal, 65536):
            parts.append(part)
    except OSError:  # Linux says so at the end
        pass
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    text = b"".join(parts).decode().replace("\r\n", "\n")
    assert os.waitstatus_to_exitcode(status) == 0, text
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def in_pipe(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mmabits.commands.main", *arguments], capture_output=True, text=True, env=environment(COLUMNS="80"),
        timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


WAYS = pytest.mark.parametrize("printed", [in_terminal, in_pipe], ids=["terminal", "pipe"])


@WAYS
def test_list_has_whole_names_in_eighty_columns(printed: Callable[..., str]) -> None:
    text = printed("list")
    words = " ".join(text.split())  # prose goes on below on a terminal
    rows = instructions()
    for row in rows:
        assert row.pattern in text, row.pattern
        assert row.note in words, row.note
        for machine in {row.machine[0], row.machine[-1]} if row.machine else ():
            assert machine in text, machine
    assert "…" not in text
    assert text.splitlines()[-1].startswith(f"{len(rows)} forms: ")


def words_of(text: str) -> set[str]:
    frame = set("━┃┏┓┡┩╇┳│└┘┴─")
    return {word for word in text.split() if not set(word) <= frame}


@pytest.mark.parametrize(
    "asked",
    [
        ("wgmma", "--arch", "sm_90a", "--k", "80", "--beside", "sm_100a"),
        ("tcgen05.mma", "--arch", "sm_100a", "--a-type", "e2m1", "--scale-type", "ue4m3"),
    ],
    ids=["wgmma", "mxf4"],
)
def test_explain_has_whole_numbers_in_eighty_columns(asked: tuple[str, ...]) -> None:
    """Every word that a terminal wide enough shows is there, in one piece."""
    wide, narrow, piped = in_terminal("explain", *asked, columns=400), in_terminal("explain", *asked), in_pipe("explain", *asked)
    for text in (narrow, piped):
        assert "…" not in text and words_of(wide) <= set(text.split()), words_of(wide) - set(text.split())
        assert text.splitlines()[0] == wide.splitlines()[0]


def test_a_table_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a\x1b[2Jheading", title="\u202etitle")
    table.add_row("\x9b2J\x00")
    table.add_row(Text("cell\x1b[0m"))
    draw(table)
    out = capsys.readouterr().out
    assert all(text in out for text in (r"a\x1b[2Jheading", r"\u202etitle", r"\x9b2J\x00", r"cell\x1b[0m")), out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)


def test_a_table_is_stacked_where_it_does_not_fit_and_nothing_is_lost() -> None:
    table = Table(title="of [b]two[/]", box=None)
    for heading in ("name", "a heading", "empty", "last"):
        table.add_column(heading, no_wrap=True)
    table.add_row("x" * 30, Text("1.5", "red"), "", "y" * 50)
    table.add_row("z", "2", "3", "[bold]4[/]")
    text = io.StringIO()
    console = Console(file=text, width=60)
    console.print(Fitting(table))
    assert [line.rstrip() for line in text.getvalue().splitlines()] == [
        "of two", f"name {'x' * 30}", "  a heading  1.5", "  last", "y" * 50, "name z", "  a heading  2", "  empty      3",
        "  last       4",
    ], "elsewhere a name that is too long is folded"  # fmt: skip
    wide = io.StringIO()
    Console(file=wide, width=200).print(Fitting(table))
    assert re.search(rf"^ {'x' * 30}  1\.5 +{'y' * 50} *$", wide.getvalue(), re.MULTILINE)


def test_both_names_of_a_stacked_row_have_their_word() -> None:
    table = Table(box=None)
    for heading in ("setting", "against", "what"):
        table.add_column(heading, no_wrap=True)
    table.add_row("sm_90a, int8", "sm_90a, fp8", "x" * 60)
    text = io.StringIO()
    Console(file=text, width=60).print(Fitting(table, 2, " against "))
    assert [line.rstrip() for line in text.getvalue().splitlines()] == ["sm_90a, int8 against sm_90a, fp8", "  what", "x" * 60]


def test_tables_in_a_pipe_have_no_blanks_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(box=None, title="of two")
    table.add_column("name")
    table.add_column("products")
    table.add_row("short", "x")
    table.add_row("not run", "y" * 200)
    draw(table)
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines] == ["of two", "name     products", "short    x", f"not run  {'y' * 200}"]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("command", [name.removeprefix("mmabits").strip() for name in EXAMPLES])
def test_help_is_whole_in_eighty_columns(run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    wide = run(*command.split(), "--help").out
    monkeypatch.setenv("COLUMNS", "80")
    narrow = run(*command.split(), "--help").out
    if not command:
        assert in_terminal("--help") == in_pipe("--help") == narrow
    assert set(narrow.split()) == set(wide.split())
    assert max(map(len, narrow.splitlines())) <= 80
    assert command or "..." not in narrow.split("Commands:")[1], "a sentence is cut"
