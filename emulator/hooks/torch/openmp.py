"""PyTorch's threads and the engine's on the same processors.

The threads with which PyTorch computes wait for more work by spinning, for milliseconds after each operator: as long as many a
product takes, and on the processors that the engine's threads need. So they are ended before a product that takes several threads;
PyTorch starts them again when it has work for them.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

from mmabits.emulator.engine.products import SERIAL_PRODUCTS

_MAPS: Final = Path("/proc/self/maps")
_LIBRARY: Final = re.compile(r"(/\S*/libgomp[-.\w]*\.so[.\d]*)$", re.MULTILINE)
"""GNU's OpenMP, which PyTorch's packages for Linux bring. Others are left alone: they may share one pool between threads."""
_SOFT: Final = 1
"""`omp_pause_soft`: what the program has set stays."""


@lru_cache(maxsize=1)
def _pause() -> Callable[[int], int] | None:
    """OpenMP's function that ends the calling thread's idle helpers; None where there is none, or not one that is known to do so."""
    try:
        paths = set(_LIBRARY.findall(_MAPS.read_text()))
        if len(paths) != 1:
            return None
        pause: Callable[[int], int] = ctypes.CDLL(paths.pop(), os.RTLD_NOW | os.RTLD_NOLOAD).omp_pause_resource_all
    except (OSError, AttributeError):  # another system, or an older OpenMP
        return None
    return pause


def rest(products: int) -> None:
    """Have PyTorch's threads wait without a processor while so many products are computed, where they are many.

    Inside one of PyTorch's own parallel regions OpenMP refuses, and nothing happens.
    """
    if products > SERIAL_PRODUCTS and torch.get_num_threads() > 1:
        pause = _pause()
        if pause is not None:
            pause(_SOFT)
