"""The former place of `mmabits.research.testing`, kept for programs that import from here."""

from mmabits.research.testing import ToleranceExceeded, assert_within_tolerance

__all__ = ["ToleranceExceeded", "assert_within_tolerance"]
