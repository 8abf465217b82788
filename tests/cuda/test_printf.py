"""printf's conversions against the C library's own, on random formats and numbers."""

from __future__ import annotations

import ctypes
import io
import math
import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.context import Context
from mmabits.emulator.machine.hostcalls import WarpMemory, print_text


def printed(text: str, data: bytes) -> tuple[str, int]:
    """What the machine prints, from local memory of lane 0."""
    memory = np.frombuffer(text.encode() + b"\0", np.uint8).copy()
    local = np.frombuffer(data.ljust(256, b"\0"), np.uint8).copy()
    context = np.zeros(len(Context._fields), np.int64)
    for name, value in (("local", local.ctypes.data), ("local_size", local.size)):
        context[Context._fields.index(name)] = value
    ranges = np.array([memory.ctypes.data, memory.ctypes.data + memory.size], np.int64)
    out, before = io.StringIO(), sys.stdout
    sys.stdout = out
    try:
        count = print_text(memory.ctypes.data, words.LOCAL_TAG << words.TAG_SHIFT, WarpMemory(context, ranges), 0)
    finally:
        sys.stdout = before
    return out.getvalue(), count


def by_c(text: str, value: Any) -> str:
    room = ctypes.create_string_buffer(9000)
    ctypes.CDLL(None).snprintf(room, ctypes.c_size_t(9000), text.encode(), value)
    return room.value.decode()


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another C library writes NaN and %p otherwise")
flags = st.text("-+ #0", max_size=3)
sizes = st.sampled_from(["", "1", "7", "20", "-9"])
digits = st.sampled_from(["", ".", ".0", ".3", ".12"])


@linux
@settings(max_examples=400, deadline=None)
@given(flags, st.sampled_from(["", "3", "12"]), digits, st.sampled_from(["d", "i", "u", "x", "X", "o", "lld", "llx", "lu", "zo"]),
       st.integers(-(1 << 63), (1 << 63) - 1))  # fmt: skip
@example("#", "", ".0", "o", 0)
@example("+ ", "5", "", "d", 0)
def test_integers(flag: str, width: str, precision: str, kind: str, number: int) -> None:
    wide = len(kind) > 1
    number = number if wide else (number + (1 << 31)) % (1 << 32) - (1 << 31)
    text = f"<%{flag}{width}{precision}{kind}>"
    found, count = printed(text, struct.pack("<q" if wide else "<i", number))
    assert found == by_c(text, ctypes.c_longlong(number) if wide else ctypes.c_int(number)) and count == 1


@linux
@settings(max_examples=600, deadline=None)
@given(flags, st.sampled_from(["", "3", "24"]), digits, st.sampled_from(list("feEgGaAF")), st.floats(width=64))
@example("0", "12", "", "f", math.inf)
@example("+0", "12", "", "e", math.nan)
@example("#", "", ".0", "f", 3.0)
@example("#", "", "", "g", 100000.0)
@example("", "", ".0", "a", 1.5)
@example("", "", "", "a", 5e-324)
@example("0", "20", "", "a", -1.75)
@example("#", "", ".0", "a", 1.0)
def test_floats(flag: str, width: str, precision: str, kind: str, number: float) -> None:
    text = f"<%{flag}{width}{precision}{kind}>"
    found, count = printed(text, struct.pack("<d", number))
    assert found == by_c(text, ctypes.c_double(number)) and count == 1


def test_arguments_lie_at_multiples_of_their_sizes() -> None:
    data = struct.pack("<i4xdi4xq", 1, 2.5, 3, 4)
    assert printed("%d %f %d %lld%%", data) == ("1 2.500000 3 4%", 4)
    assert printed("%*d|%-*d|%.*f", struct.pack("<iiiii4xd", 4, 7, 4, 7, 1, 0.25)) == ("   7|7   |0.2", 6)
    assert printed("no arguments %", b"") == ("no arguments %", 0)


def test_what_lies_outside_is_nothing() -> None:
    assert printed("[%s]", struct.pack("<q", 1 << 40)) == ("[]", 1)
    assert printed("[%.3s]", struct.pack("<q", 0)) == ("[]", 1)
    text, _ = printed("%999999d", struct.pack("<i", 1))
    assert len(text) == 4096
