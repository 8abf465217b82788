"""What a kernel's calls of the host's functions do: printf writes to Python's standard output, a failed assertion is an error.

The format is C's, with the sizes that CUDA gives the arguments; text goes out at the call, lanes in ascending order.
"""

from __future__ import annotations

import ctypes
import math
import re
import struct
import sys
from typing import Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.context import Context
from mmabits.emulator.machine.ptx import PtxInstruction, Symbol, Vector
from mmabits.isa import EmulationError

FAILS: Final = ("__assertfail", "__assert_fail")
FUNCTIONS: Final = ("vprintf", *FAILS)
"""Functions of the host that a kernel may call."""
_PLACE: Final = {name: place for place, name in enumerate(Context._fields)}
_LONGEST: Final = 1 << 16
"""Bytes of a string."""
_WIDEST: Final = 1 << 12
"""Characters of a number."""
_SPEC: Final = re.compile(r"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+)?)?(hh|h|ll|l|j|z|t|L)?([diouxXcsfFeEgGaAp%])")
_WIDE: Final = ("l", "ll", "j", "z", "t")


class KernelError(EmulationError):
    """A kernel did what a GPU ends it for, or leaves undefined."""

    code = 0
    """Which of the errors of context.py and its like; 0 of a deadlock."""
    instruction: PtxInstruction | None = None
    """Where it happened."""


class WarpMemory:
    """Memory as a warp sees it, to read and write from outside.

    Args:
        context: of the warp.
        ranges: pairs of addresses, first and one past the last, of global memory.
    """

    def __init__(self, context: npt.NDArray[np.int64], ranges: npt.NDArray[np.int64]) -> None:
        self.context, self.ranges = context, ranges

    def word(self, name: str) -> int:
        """A word of the context."""
        return int(self.context[_PLACE[name]])

    def room(self, address: int, lane: int) -> tuple[int, int]:
        """Where an address lies in this process, and how many bytes there are from it on: 0 where there are none."""
        tag, low = address >> words.TAG_SHIFT, address & (1 << words.TAG_SHIFT) - 1
        if tag == words.LOCAL_TAG:
            size = self.word("local_size")
            return self.word("local") + lane * size + low, max(0, size - low)
        if tag == words.SHARED_TAG:
            return self.word("shared") + low, max(0, self.word("shared_size") - low)
        if tag == words.CONSTANT_TAG:
            return self.word("constants") + low, max(0, self.word("constants_size") - low)
        for first, last in self.ranges.reshape(-1, 2).tolist():
            if tag == 0 and first <= address < last:
                return address, last - address
        return address, 0

    def read(self, address: int, size: int, lane: int) -> bytes:
        """Bytes; fewer where the memory ends."""
        place, room = self.room(address, lane)
        return ctypes.string_at(place, min(size, room)) if room else b""

    def text(self, address: int, lane: int) -> str:
        """A string up to its zero."""
        return self.read(address, _LONGEST, lane).partition(b"\0")[0].decode(errors="replace")

    def local(self, place: int, lane: int) -> int:
        """The address of a lane's variable."""
        return place | words.LOCAL_TAG << words.TAG_SHIFT

    def number(self, place: int, size: int, lane: int) -> int:
        """What a variable of local memory holds."""
        return int.from_bytes(self.read(self.local(place, lane), size, lane), "little")

    def write(self, place: int, number: int, lane: int) -> None:
        """Write 32 bits of a variable of local memory."""
        address, room = self.room(self.local(place, lane), lane)
        if room >= 4:
            ctypes.memmove(address, (number & 0xFFFF_FFFF).to_bytes(4, "little"), 4)


def called(instruction: PtxInstruction, places: dict[str, int], memory: WarpMemory, lanes: int, kernel: str) -> None:
    """Carry out a call.

    Args:
        instruction: the call.
        places: of variables, by their names.
        memory: the warp's.
        lanes: that call, a bit each.
        kernel: its name.

    Raises:
        KernelError: a failed assertion.
    """
    groups = [
        [places[each.name] for each in one.items if isinstance(each, Symbol)] for one in instruction.operands if isinstance(one, Vector)
    ]
    name = next(each.name for each in instruction.operands if isinstance(each, Symbol))
    for lane in range(32):
        if lanes >> lane & 1 == 0:
            continue
        if name in FAILS:
            raise KernelError(f"{kernel}: {_assertion(groups[-1], memory, lane)}, at {instruction}")
        given = groups[-1]
        count = print_text(memory.number(given[0], 8, lane), memory.number(given[1], 8, lane), memory, lane)
        if len(groups) == 2 and groups[0]:
            memory.write(groups[0][0], count, lane)


def _assertion(given: list[int], memory: WarpMemory, lane: int) -> str:
    """`__assertfail(message, file, line, function, size of a character)`."""
    message, file, function = (memory.text(memory.number(given[place], 8, lane), lane) for place in (0, 1, 3))
    linear = 32 * memory.word("warp") + lane
    x, y = memory.word("ntid_x"), memory.word("ntid_y")
    cta = tuple(memory.word(f"ctaid_{axis}") for axis in "xyz")
    thread = (linear % x, linear // x % y, linear // x // y)
    where = f" ({file}:{memory.number(given[2], 4, lane)}{function and f', {function}'})" if file else ""
    told = f"the assertion `{message}` failed{where}" if message else "an assertion failed"
    return f"a trap, {told}, in program {cta}, thread {thread}"


def print_text(format_at: int, arguments_at: int, memory: WarpMemory, lane: int) -> int:
    """Write one line of printf; how many arguments it took, -1 without a format."""
    if not format_at:
        return -1
    arguments = _Arguments(arguments_at, memory, lane)
    if sys.stdout is not None:  # as print() does where a process has none
        sys.stdout.write(_SPEC.sub(arguments.shown, memory.text(format_at, lane)))
    return arguments.count


class _Arguments:
    """Arguments of printf one after another, each at a multiple of its size."""

    def __init__(self, address: int, memory: WarpMemory, lane: int) -> None:
        self.at, self.memory, self.lane, self.count = address, memory, lane, 0

    def take(self, size: int) -> bytes:
        """The next."""
        self.at = (self.at + size - 1) // size * size
        found = self.memory.read(self.at, size, self.lane).ljust(size, b"\0")
        self.at += size
        self.count += 1
        return found

    def shown(self, found: re.Match[str]) -> str:
        """What a conversion becomes."""
        flags, width, precision, length, kind = found.groups()
        if kind == "%":
            return "%"
        has_precision = "." in found[0]
        wide = min(_WIDEST, abs(number)) if (number := self._size(width)) else 0
        if width == "*" and number < 0:
            flags += "-"
        digits = self._size(precision) if has_precision else -1
        digits = min(digits, _WIDEST)
        if kind in "di":
            size = 8 if length in _WIDE else 4
            text = _integer(int.from_bytes(self.take(size), "little", signed=True), flags, digits, "d")
        elif kind in "ouxX":
            size = 8 if length in _WIDE else 4
            text = _integer(int.from_bytes(self.take(size), "little"), flags.replace("+", "").replace(" ", ""), digits, kind)
        elif kind == "c":
            text = chr(self.take(4)[0])
        elif kind == "s":
            text = self.memory.text(int.from_bytes(self.take(8), "little"), self.lane)
            text = text[:digits] if digits >= 0 else text
        elif kind == "p":
            address = int.from_bytes(self.take(8), "little")
            text = f"{address:#x}" if address else "(nil)"
        else:
            text = _float(struct.unpack("<d", self.take(8))[0], flags, digits, kind)
        is_number = kind not in "csp" and text.lstrip("+- ")[:1] not in ("i", "n", "I", "N")
        if "-" in flags:
            return text.ljust(wide)
        if "0" in flags and is_number and not (kind in "diouxX" and digits >= 0):
            head = re.match(r"[-+ ]?(?:0[xX])?", text)
            start = head.end() if head else 0
            return text[:start] + text[start:].rjust(wide - start, "0")
        return text.rjust(wide)

    def _size(self, text: str | None) -> int:
        if text != "*":
            return int(text[:6]) if text else 0
        return int.from_bytes(self.take(4), "little", signed=True)


def _integer(number: int, flags: str, digits: int, kind: str) -> str:
    sign = "-" if number < 0 else "+" if "+" in flags else " " if " " in flags else ""
    plain = {"o": "o", "x": "x", "X": "X"}.get(kind, "d")
    body = f"{abs(number):{plain}}" if digits != 0 or number else ""
    body = body.rjust(max(0, digits), "0")
    if "#" in flags and kind == "o" and not body.startswith("0"):
        body = "0" + body
    if "#" in flags and kind in "xX" and number:
        body = f"0{kind}{body}"
    return sign + body


def _float(number: float, flags: str, digits: int, kind: str) -> str:
    sign = "-" if math.copysign(1, number) < 0 else "+" if "+" in flags else " " if " " in flags else ""
    number, text = abs(number), ""
    if not math.isfinite(number):
        text = "nan" if math.isnan(number) else "inf"
    elif kind in "aA":
        text = _hexadecimal(number, digits)
        if "#" in flags and "." not in text:
            text = text.replace("p", ".p")
    else:
        python = "%" + ("#" if "#" in flags else "") + f".{digits if digits >= 0 else 6}" + kind.lower()
        text = python % number
    return sign + (text.upper() if kind.isupper() else text)


def _hexadecimal(number: float, digits: int) -> str:
    """C's %a: one digit, as few behind the point as are needed, the exponent of two."""
    if number == 0:
        return "0x0" + ("." + "0" * digits if digits > 0 else "") + "p+0"
    fraction, exponent = math.frexp(number)
    significand, exponent = int(fraction * (1 << 53)), exponent - 1
    if exponent < -1022:
        significand, exponent = significand >> (-1022 - exponent), -1022
    if 0 <= digits < 13:
        unit = 1 << 4 * (13 - digits)
        kept, rest = divmod(significand, unit)
        significand = (kept + (2 * rest > unit or (2 * rest == unit and kept & 1 == 1))) * unit
    whole, behind = significand >> 52, f"{significand & (1 << 52) - 1:013x}"
    behind = behind.rstrip("0") if digits < 0 else behind[:digits].ljust(digits, "0")
    return f"0x{whole}{behind and f'.{behind}'}p{exponent:+d}"


__all__ = ["FAILS", "FUNCTIONS", "WarpMemory", "KernelError", "called"]
