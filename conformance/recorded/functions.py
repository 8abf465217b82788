"""Files of functions, the format "function-table/1": results over the reduced range, and sums of blocks over all operands.

Results are kept as differences from one operand to the next, compressed. A sum of a block of 2^20 operands is that of a mixture of every
result and its operand: a model of the function can be proved on all operands from 4,096 sums.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.recorded.files import read_arrays, write_arrays
from mmabits.isa import OperandError
from mmabits.reports.stored import SUFFIX, open_tensors

FORMAT: Final = "function-table/1"
BLOCK_BITS: Final = 20
BLOCK: Final = 1 << BLOCK_BITS
"""Operands of a sum."""
_TEXTS: Final = ("opcode", "arch", "gpu", "kind", "recorded", "command", "ranges", "driver")
_MOST: Final = 1 << 28
"""Results of a file."""
_STEP, _MIX = np.uint64(0x9E37_79B9_7F4A_7C15), np.uint64(0xBF58_476D_1CE4_E5B9)

Codes = npt.NDArray[np.uint32]
Sums = npt.NDArray[np.uint64]


def block_sum(first: int, results: Codes) -> int:
    """The sum of a block: of a mixture of each result with its operand, modulo 2^64."""
    codes = np.arange(first, first + len(results), dtype=np.uint64)
    mixed = results.astype(np.uint64) + codes * _STEP
    mixed ^= mixed >> np.uint64(29)
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(32)
    return int(mixed.sum(dtype=np.uint64))


@dataclass(frozen=True, kw_only=True, eq=False)
class FunctionTable:
    """What was recorded of a function of one operand."""

    opcode: str
    arch: str
    gpu: str
    kind: str
    """`hardware` or `emulator`."""
    ranges: tuple[tuple[int, int], ...]
    """First operand's code, and how many follow one another."""
    results: tuple[Codes, ...]
    """For each range."""
    blocks: npt.NDArray[np.int64]
    """Which blocks of operands were summed."""
    sums: Sums
    recorded: str = ""
    command: str = ""
    driver: str = ""
    source: str = field(default="", compare=False)

    @property
    def is_whole(self) -> bool:
        """Whether every operand is in a sum."""
        return len(self.blocks) == 1 << 32 - BLOCK_BITS

    def at(self, code: int) -> int | None:
        """The result for an operand; None where it is in no range."""
        for (first, count), results in zip(self.ranges, self.results, strict=True):
            if first <= code < first + count:
                return int(results[code - first])
        return None

    def wrong_blocks(self, model: Callable[[int, int], Codes], *, most: int | None = None) -> list[int]:
        """Blocks whose sum a model does not give.

        Args:
            model: results for `count` operands from `first` on.
            most: blocks to look at, evenly spread; all if None.
        """
        there = len(self.blocks)
        looked = there if most is None else min(most, there)
        chosen = [(2 * each + 1) * there // (2 * looked) for each in range(looked)]
        wrong = []
        for place in chosen:
            first = int(self.blocks[place]) << BLOCK_BITS
            if block_sum(first, model(first, BLOCK)) != int(self.sums[place]):
                wrong.append(int(self.blocks[place]))
        return wrong


def write_function(path: Path, table: FunctionTable) -> None:
    """Write a file, whole or not at all; nothing is replaced.

    Raises:
        VectorFileError: a file of that name is there, or it cannot be written.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"blocks": table.blocks, "sums": table.sums.view(np.int64)}
    for place, results in enumerate(table.results):
        steps = np.diff(results, prepend=np.uint32(0)).astype(np.uint32)
        planes = steps.view(np.uint8).reshape(-1, 4).T  # bytes of one weight together: they compress
        arrays[f"range{place}"] = np.frombuffer(zlib.compress(np.ascontiguousarray(planes).tobytes(), 6), np.uint8)
    manifest = {name: getattr(table, name) for name in _TEXTS if name != "ranges"}
    manifest["ranges"] = " ".join(f"{first:#010x}+{count}" for first, count in table.ranges)
    write_arrays(path, FORMAT, manifest, arrays)


def read_function(path: Path) -> FunctionTable:
    """Read a file.

    Raises:
        VectorFileError: it is missing, damaged, or contradicts itself.
    """
    with open_tensors(path) as file:
        texts, arrays = read_arrays(file, FORMAT, _TEXTS, ())
        ranges = tuple(read_range(word) for word in texts.pop("ranges").split())
        wanted = {"blocks", "sums", *(f"range{place}" for place in range(len(ranges)))}
        if set(arrays) != wanted:
            raise OperandError(f"tensors are {', '.join(sorted(arrays))}; the manifest's ranges want {', '.join(sorted(wanted))}")
        blocks, sums = arrays["blocks"], arrays["sums"]
        if blocks.dtype != np.int64 or sums.dtype != np.int64 or blocks.shape != sums.shape or blocks.ndim != 1:
            raise OperandError("blocks and sums are not of one length, 64 bits each")
        if blocks.size and not 0 <= int(blocks.min()) <= int(blocks.max()) < 1 << 32 - BLOCK_BITS:
            raise OperandError(f"blocks are numbered from 0 to {(1 << 32 - BLOCK_BITS) - 1}")
        results = tuple(_results(arrays[f"range{place}"], count) for place, (_, count) in enumerate(ranges))
        return FunctionTable(**texts, ranges=ranges, results=results, blocks=blocks, sums=sums.view(np.uint64), source=str(path))


def read_range(word: str) -> tuple[int, int]:
    """First operand's code and how many follow it, of `0x3f800000+8388608`.

    Raises:
        OperandError: it is none.
    """
    first, plus, count = word.partition("+")
    try:
        found = int(first, 16), int(count)
    except ValueError:
        plus = ""
        found = (0, 0)
    if not plus or not (found[0] >= 0 and 0 < found[1] <= _MOST and found[0] + found[1] <= 1 << 32):
        raise OperandError(f"a range is {word!r:.40}; allowed is 0x3f800000+8388608")
    return found


def _results(packed: npt.NDArray[Any], count: int) -> Codes:
    if packed.dtype != np.uint8 or packed.ndim != 1:
        raise OperandError("a range of results is no row of bytes")
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(packed.tobytes(), 4 * count + 1)
    except zlib.error as error:
        raise OperandError(f"a range of results is damaged ({error})") from error
    if len(data) != 4 * count:
        raise OperandError(f"a range holds {len(data)} bytes of results; its manifest wants {4 * count}")
    steps = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(4, count).T).view(np.uint32).ravel()
    return np.cumsum(steps, dtype=np.uint32)


__all__ = ["BLOCK", "BLOCK_BITS", "FORMAT", "SUFFIX", "FunctionTable", "block_sum", "read_function", "read_range", "write_function"]
