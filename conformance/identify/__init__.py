"""Finding the arithmetic of a device by asking it."""

from mmabits.conformance.identify.identification import Identification, Match, Undecided, identify

__all__ = ["Identification", "Match", "Undecided", "identify"]
