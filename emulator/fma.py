"""The former place of `mmabits.emulator.engine.fma`, kept for programs that import from here."""

from mmabits.emulator.engine.fma import fma

__all__ = ["fma"]
