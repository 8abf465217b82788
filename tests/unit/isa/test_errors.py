"""The error classes: what each derives from, and that each prints as its one line."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from mmabits.isa import (
    ARCHITECTURES,
    FORMATS,
    CompilerError,
    DeviceUnavailable,
    EmulationError,
    InsufficientEvidence,
    MmabitsError,
    NotEnoughMemory,
    OperandError,
    OperandTypeError,
    UnknownArchitecture,
    UnknownFormat,
    UnknownInstruction,
    UnsupportedInstruction,
    VectorFileError,
    architecture,
    errors,
    evidence_level,
    format_spec,
    lower,
    nearest,
    parse,
    visible,
)

BUILT_IN = {
    CompilerError: RuntimeError,
    DeviceUnavailable: RuntimeError,
    EmulationError: RuntimeError,
    InsufficientEvidence: RuntimeError,
    NotEnoughMemory: MemoryError,
    OperandError: ValueError,
    OperandTypeError: TypeError,
    UnknownArchitecture: KeyError,
    UnknownFormat: KeyError,
    UnknownInstruction: KeyError,
    UnsupportedInstruction: NotImplementedError,
    VectorFileError: ValueError,
}


def test_the_table_above_is_complete() -> None:
    assert set(BUILT_IN) == {kind for kind in MmabitsError.__subclasses__() if kind.__module__ == errors.__name__}
    assert {name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__} == {
        "MmabitsError", *(kind.__name__ for kind in BUILT_IN)
    }  # fmt: skip


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.__name__)
def test_each_is_an_error_of_mmabits_and_of_python(kind: type[MmabitsError]) -> None:
    assert issubclass(kind, MmabitsError)
    assert issubclass(kind, BUILT_IN[kind])
    with pytest.raises(BUILT_IN[kind], match=r"^what arrived$"):
        raise kind("what arrived")


@pytest.mark.parametrize("kind", [MmabitsError, *BUILT_IN], ids=lambda kind: kind.__name__)
def test_the_text_is_the_message(kind: type[MmabitsError]) -> None:
    """KeyError alone would print it in quotes."""
    assert str(kind("sm_91 is 'unknown'")) == "sm_91 is 'unknown'"
    assert str(kind()) == ""
    again = pickle.loads(pickle.dumps(kind("text")))
    assert type(again) is kind and str(again) == "text"


def test_errors_come_back_from_workers_of_dask() -> None:
    """tblib takes over how exceptions are pickled in the whole process: so in one of its own."""
    pytest.importorskip("tblib")
    program = """
import pickle
from tblib import pickling_support
from mmabits.isa import errors
pickling_support.install()
for kind in vars(errors).values():
    if isinstance(kind, type) and issubclass(kind, errors.MmabitsError):
        again = pickle.loads(pickle.dumps(kind("text")))
        assert type(again) is kind and str(again) == "text", kind
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


SHOWN = {
    "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
    "one\r\ntwo\tthree": r"one\r\ntwo\tthree",
    "\x9b2J": r"\x9b2J",  # the escape sequence's one-byte form
    "\x00\x07\x7f": r"\x00\x07\x7f",
    "a\u202eb\u2066c": r"a\u202eb\u2066c",  # turns the writing direction round
    "a\u200bb\u200fc\ufeff": r"a\u200bb\u200fc\ufeff",
    "a\u2028b\u2029": r"a\u2028b\u2029",
    "\udcff": r"\udcff",  # a byte of a file's name that is no UTF-8
    "\U000e0041": r"\U000e0041",
    "plain: é ü 中文 🙂 a\u00a0b a\u3000b \\x1b": "plain: é ü 中文 🙂 a\u00a0b a\u3000b \\x1b",
}


@pytest.mark.parametrize(("text", "shown"), SHOWN.items(), ids=map(ascii, SHOWN))
def test_what_steers_a_terminal_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == visible(visible(text)) == shown
    assert visible(text).encode()  # no half of a surrogate pair is left
    assert visible("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"


@pytest.mark.parametrize("kind", [MmabitsError, *BUILT_IN], ids=lambda kind: kind.__name__)
def test_a_message_is_one_line_that_can_be_shown(kind: type[MmabitsError]) -> None:
    assert str(kind("file \x1b[2J says\nerror: none\u202e")) == r"file \x1b[2J says\nerror: none\u202e"
    assert str(kind("x" * 2000)) == "x" * 2000
    long = str(kind("start" + "x" * 1_000_000 + "end"))
    assert len(long) < 2000 and long.startswith("start") and long.endswith("end (1,000,008 characters)")


def test_nearest_names_what_is_like_the_word() -> None:
    known = ("wgmma.mma_async", "mma.sync", "tcgen05.mma")
    assert nearest("mma.synk", known).startswith("; did you mean mma.sync")
    assert nearest("mma.synk", known, count=1) == "; did you mean mma.sync?"
    assert nearest("", known) == nearest("zzzz", known) == nearest("x", ()) == ""


@pytest.mark.parametrize("name", FORMATS)
def test_a_mistyped_format_is_recognised(name: str) -> None:
    with pytest.raises(UnknownFormat, match=rf"^unknown format '{name}x'; did you mean .*\b{name}\b.*\?; known: f64, "):
        format_spec(f"{name}x")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_mistyped_architecture_is_recognised(name: str) -> None:
    with pytest.raises(UnknownArchitecture, match=rf"^unknown architecture '{name}x'; did you mean .*\b{name}\b.*\?; known: sm_70, "):
        architecture(f"{name}x")


@pytest.mark.parametrize("name", ["sm_90", "sm_100", "sm_100f", "sm_120", "sm_121f"])
def test_an_architecture_without_its_letter_is_told_so(name: str) -> None:
    with pytest.raises(UnknownArchitecture, match=rf"'{name}' leaves out .*; write '{name.rstrip('f')}a'$"):
        architecture(name)


def test_an_evidence_level_is_one_of_three() -> None:
    with pytest.raises(
        OperandError, match=r"^unknown evidence level 'recordet'; did you mean recorded.*known: inferred, published, recorded$"
    ):
        evidence_level("recordet")


@pytest.mark.parametrize(
    ("text", "arch", "message"),
    [
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16",
            "sm_100a",
            r"sm_100a .*; for f16 x f16 it has (mma\.sync, tcgen05|tcgen05\.mma, mma)",
        ),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "sm_75", r"sm_75 .* it has .*m16n8k8"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "sm_70", "sm_70 .*no tensor-core instruction there takes tf32 x tf32"),
    ],
)
def test_an_architecture_that_lacks_an_instruction_says_what_it_has(text: str, arch: str, message: str) -> None:
    with pytest.raises(UnsupportedInstruction, match=message) as caught:
        lower(parse(text), arch)
    assert "targets with it: " in str(caught.value)
    assert "\n" not in str(caught.value)
