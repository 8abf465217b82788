"""The functions that machine code is made of, by the kind of arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmabits.emulator.chains import chain_entry, integer_entry
from mmabits.emulator.fused import fused_entry, side_by_side_entry
from mmabits.emulator.grouped import grouped_entry, grouped_side_by_side_entry
from mmabits.emulator.native import Variant


def _machine_entry(_variant: Variant) -> Callable[[Any], Any]:
    """What the code of compiled kernels calls."""
    from mmabits.emulator.machine.operations import helper

    return helper


_ENTRIES: dict[str, Callable[[Variant], Callable[[Any], None]]] = {
    "fused": fused_entry,
    "fused_side_by_side": side_by_side_entry,
    "grouped": grouped_entry,
    "grouped_side_by_side": grouped_side_by_side_entry,
    "chain": chain_entry,
    "integer": integer_entry,
    "machine": _machine_entry,
}


def entry(variant: Variant) -> Callable[[Any], None]:
    """The function of a variant, to be compiled for the address of a record (native.CALL)."""
    return _ENTRIES[variant.kind](variant)
