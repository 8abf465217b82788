"""The former place of `mmabits.emulator.hooks.session`, kept for programs that import from here."""

from mmabits.emulator.hooks.session import Session, emulate

__all__ = ["Session", "emulate"]
