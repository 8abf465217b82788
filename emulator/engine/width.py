"""How wide the processor's vectors are: what the engine's code is laid out for. Nothing here needs Numba."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from typing import Final

from llvmlite import binding as llvm

from mmabits.isa import OperandError

SETTING: Final = "MMABITS_LANES"
"""Environment variable that says another number of lanes than the processor has; every number gives the same bits."""
LANES: Final = (4, 8, 16)
"""Numbers of float32 lanes that the engine's code can be laid out for."""


@lru_cache(maxsize=1)
def lanes() -> int:
    """Float32 lanes of a vector: 16 with AVX-512, 8 with AVX2, 4 elsewhere.

    Raises:
        OperandError: MMABITS_LANES is another number.
    """
    told = os.environ.get(SETTING, "")
    if told:
        if told not in map(str, LANES):
            raise OperandError(f"{SETTING} must be one of {', '.join(map(str, LANES))}, got {told!r}")
        return int(told)
    if platform.machine() not in ("x86_64", "AMD64"):
        return 4
    return 16 if has("avx512f", "avx512bw", "avx512vl", "avx512dq") else 8 if has("avx2") else 4


@lru_cache(maxsize=8)
def has(*features: str) -> bool:
    """Whether the processor has all of these, by LLVM's names."""
    found = llvm.get_host_cpu_features()
    return all(found.get(name, False) for name in features)


BYTES_SETTING: Final = "MMABITS_BYTES"
"""Environment variable that says another way to multiply bytes than the processor's best; each gives the same bits."""


@lru_cache(maxsize=1)
def byte_products() -> str:
    """How four products of bytes are added: `vnni` by one instruction, `pairs` by x86's products of pairs of 16 bits, `plain` by any.

    Raises:
        OperandError: MMABITS_BYTES is another word, or one that this processor cannot do.
    """
    possible = ["plain"]
    if platform.machine() in ("x86_64", "AMD64"):
        wide = lanes() < 8 or (lanes() == 8 and has("avx2")) or has("avx512bw")
        possible = ["pairs", *possible] if wide else possible
        if has("avx512vnni", "avx512vl") or (lanes() == 8 and has("avxvnni")):
            possible = ["vnni", *possible]
    told = os.environ.get(BYTES_SETTING, "")
    if told not in ("", *possible):
        raise OperandError(f"{BYTES_SETTING} must be one of {', '.join(possible)} on this processor, got {told!r}")
    return told or possible[0]
