"""The former place of `mmabits.conformance.recorded.dots`, kept for programs that import from here."""

from mmabits.conformance.recorded.dots import FORMAT, KINDS, REQUIRED_KEYS, SCALED_KEYS, SUFFIX, DotVectors, read_vectors, write_vectors

__all__ = ["FORMAT", "KINDS", "REQUIRED_KEYS", "SCALED_KEYS", "SUFFIX", "DotVectors", "read_vectors", "write_vectors"]
