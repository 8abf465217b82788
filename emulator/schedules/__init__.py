"""Schedules: in which order a library adds up the elements of K, and what rounds its sums on the way.

`schedule` and `sums` are the data, `cublaslt` plans one for a configuration of cuBLASLt, `choices` says which configuration a shape may
get, `cores` computes the sums of CUDA cores, `run` a product.
"""

from mmabits.emulator.schedules.choices import Candidate, Choice, choice
from mmabits.emulator.schedules.schedule import Schedule
from mmabits.emulator.schedules.sums import BlockSums, Chains, LaneSums, LibraryBug, Merge, NoSchedule, PartSums, Planned, RangeSums

__all__ = [
    "BlockSums", "Candidate", "Chains", "Choice", "LaneSums", "LibraryBug", "Merge", "NoSchedule", "PartSums", "Planned", "RangeSums",
    "Schedule", "choice",
]  # fmt: skip
