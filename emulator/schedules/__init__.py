"""Schedules: in which order a library adds up the elements of K, and what rounds its sums on the way.

`schedule` is the data, `cublaslt` plans one for a configuration of cuBLASLt, `choices` says which configuration a shape may get, `cores`
computes those of CUDA cores, `run` a product.
"""

from mmabits.emulator.schedules.choices import Candidate, Choice, choice
from mmabits.emulator.schedules.schedule import (
    Blocks,
    Chains,
    Lanes,
    LibraryBug,
    Merge,
    NoSchedule,
    Parts,
    Planned,
    Ranges,
    Schedule,
)

__all__ = [
    "Blocks", "Candidate", "Chains", "Choice", "Lanes", "LibraryBug", "Merge", "NoSchedule", "Parts", "Planned", "Ranges", "Schedule",
    "choice",
]  # fmt: skip
