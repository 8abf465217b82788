"""What long work shows: on a terminal, and nothing in a pipe."""

from __future__ import annotations

import io
import time

import pytest

from mmabits.reports.progress import progress, working


class _Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def screens(monkeypatch: pytest.MonkeyPatch) -> tuple[_Screen, _Screen]:
    """Standard output and standard error."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    out, error = _Screen(True), _Screen(True)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", error)
    return out, error


def test_a_line_comes_after_a_while_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    out, error = screens(monkeypatch)
    with working("multiplying", patience=0.05):
        time.sleep(0.4)
        print("a result")
    assert "multiplying" in error.getvalue() and error.getvalue().endswith("\x1b[2K")  # the line is erased
    assert out.getvalue() == "a result\n"


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, error = screens(monkeypatch)
    with working("multiplying", patience=30):
        pass
    assert "multiplying" not in error.getvalue()


def test_an_error_ends_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _, error = screens(monkeypatch)
    with pytest.raises(ZeroDivisionError), working("dividing", patience=0.01):
        time.sleep(0.2)
        raise ZeroDivisionError
    assert "dividing" in error.getvalue() and error.getvalue().endswith("\x1b[2K")


def test_a_pipe_stays_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    out, error = screens(monkeypatch)
    error.terminal = False
    with working("multiplying", patience=0.01), progress(3, "counting") as advance:
        advance()
        time.sleep(0.1)
    assert (out.getvalue(), error.getvalue()) == ("", "")


def test_a_bar_leaves_standard_output_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    out, error = screens(monkeypatch)
    with progress(3, "counting") as advance:
        print("a result")
        advance()
    assert "counting" in error.getvalue() and out.getvalue() == "a result\n"
