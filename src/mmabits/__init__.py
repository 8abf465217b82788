"""The numerics of GPU tensor cores, bit for bit, on any machine."""

from mmabits.emulator import layouts
from mmabits.emulator.api import gemm, mma
from mmabits.emulator.codecs import decode, encode
from mmabits.emulator.session import emulate
from mmabits.emulator.tolerance import tolerance
from mmabits.isa import MmabitsError, instructions, what_if
from mmabits.isa import parse as instruction

__version__ = "0.1.0"

__all__ = [
    "gemm",
    "mma",
    "emulate",
    "tolerance",
    "what_if",
    "instruction",
    "instructions",
    "decode",
    "encode",
    "layouts",
    "MmabitsError",
    "__version__",
]
