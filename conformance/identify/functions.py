"""`mmabits identify --function`: the structure behind a recorded function, and its proof on every operand that was recorded.

An interpolation of the special function unit is looked for with integers: for each row of the table the numbers A, B and C that give every
result of the row. Other functions are compared with the model that stands in for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.record.functions import PLANS, computed
from mmabits.conformance.recorded.functions import BLOCK, Codes, FunctionTable
from mmabits.isa import OperandError
from mmabits.isa.opcodes import opcode_table
from mmabits.isa.opcodes.functions import INFINITY, NAN, QUADRATICS, SIGN, Quadratic, tables

Integers = npt.NDArray[np.int64]
_F: Final = 0x7F_FFFF
_UNITS: Final = ("rcp", "rsqrt", "ex2", "lg2")
_LOWS: Final = (19, 18, 17, 16, 15, 14)
"""Bits of r, the widest rows first."""
_SQUARED: Final = 17
"""Bits that the unit squares."""
_SOME: Final = 1 << 10
_SHOWN: Final = 8
_AROUND_B: Final = 40
_AROUND_C: Final = 3
_FINEST: Final = {"lg2": 1 << 13}
"""Units of a result's last place that the truncated square leaves open: 2^-23 of 36 fraction bits."""
_SPAN: Final = 0.75
"""Half the interval of results, in units, that a real quadratic may miss the middle by: a half, and what the truncated square adds."""


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """An interpolation as it was found: (K + B r + C square(r 2^s) 2^c) >> cut for each row."""

    form: Quadratic
    k: tuple[int, ...]
    """A 2^a and the constant in one."""
    b: tuple[int, ...]
    c: tuple[int, ...]

    def __call__(self, places: Integers) -> Integers:
        """Results before they are packed, cut."""
        form = self.form
        row, r = places >> form.low, places & (1 << form.low) - 1
        k, b, c = (np.array(each, np.int64) for each in (self.k, self.b, self.c))
        total = k[row] + b[row] * r + (c[row] * squares(r << form.s) << form.c)
        return np.asarray(total >> form.cut)


def known_rows(name: str) -> TableRows:
    """The tables of the emulator."""
    form = QUADRATICS[name]
    a, b, c = zip(*tables()[form.table], strict=True)
    return TableRows(form=form, k=tuple((each << form.a) + form.constant for each in a), b=b, c=c)


def squares(x: Integers) -> Integers:
    """The unit's truncated squares of numbers of 17 bits."""
    total = np.zeros_like(x)
    for place in range(17):
        total += np.where(x >> place & 1, x >> (18 - place), 0)
    return total >> 1


# The unit around an interpolation ----------------------------------------------------------------------------------------


def unit(name: str, codes: Codes, rows: TableRows) -> Codes:
    """A function of the unit, flushing subnormal numbers, with any rows.

    Args:
        name: `rcp`, `rsqrt`, `ex2` or `lg2`.
        codes: operands.
        rows: of its interpolation.
    """
    bits = codes.astype(np.int64)
    sign, field, fraction = bits & SIGN, bits >> 23 & 0xFF, bits & _F
    found = {"rcp": _reciprocal, "rsqrt": _root, "ex2": _power, "lg2": _logarithm}[name](sign, field, fraction, rows)
    return np.where((field == 0xFF) & (fraction != 0), NAN, found).astype(np.uint32)


def _packed(exponent: Integers, m: Integers) -> Integers:
    exponent = exponent + (m >> 24)
    found = exponent << 23 | np.where(m >> 24, 0, m & _F)
    return np.where(exponent >= 255, INFINITY, np.where(exponent > 0, found, 0))


def _reciprocal(sign: Integers, field: Integers, fraction: Integers, rows: TableRows) -> Integers:
    found = _packed(253 - field, rows(fraction)) | sign
    return np.where(field == 0xFF, sign, np.where(field == 0, sign | INFINITY, found))


def _root(sign: Integers, field: Integers, fraction: Integers, rows: TableRows) -> Integers:
    u = field - 127
    g = fraction | (u & 1) << 23
    found = np.where(g == 0, (127 - (u >> 1)) << 23, ((126 - (u >> 1)) << 23) + rows(g) - 2**23)
    found = np.where(field == 0xFF, 0, np.where(sign != 0, NAN, found))
    return np.where(field == 0, sign | INFINITY, found)


def _power(sign: Integers, field: Integers, fraction: Integers, rows: TableRows) -> Integers:
    significand, shift = np.where(field, fraction | 1 << 23, 0), np.clip(127 - field, -7, 40)
    fixed = np.where(shift >= 0, significand >> np.maximum(shift, 0), significand << np.maximum(-shift, 0))
    whole, rest = fixed >> 23, fixed & _F
    minus = sign != 0
    whole = np.where(minus, np.where(rest == 0, -whole, -whole - 1), whole)
    rest = np.where(minus & (rest != 0), _F - rest, rest)
    return np.where(field >= 134, np.where(minus, 0, INFINITY), _packed(whole + 127, rows(rest)))


def _logarithm(sign: Integers, field: Integers, fraction: Integers, rows: TableRows) -> Integers:
    total = np.where(fraction, rows(fraction), 0) + ((field - 127) << 36)
    minus = total < 0
    size = np.where(minus, np.where(fraction == 0, -total, ~total), total)
    top = np.frexp(size.astype(np.float64))[1].astype(np.int64) - 1  # exact up to 2^53, and sizes lie below 2^43
    cut = np.where(top >= 23, size >> np.maximum(top - 23, 0), size << np.maximum(23 - top, 0))
    found = np.where(minus, SIGN, 0) | ((top - 36 + 127) << 23) + cut - 2**23
    found = np.where(size == 0, 0, found)
    found = np.where(field == 0xFF, INFINITY, np.where(sign != 0, NAN, found))
    return np.where(field == 0, SIGN | INFINITY, found)


# What a table says of it -------------------------------------------------------------------------------------------------


def _wanted(name: str, table: FunctionTable) -> tuple[Integers, Integers]:
    """The least and the largest result before packing, for every place of the table; what is exact is left open."""
    codes = table.results[0].astype(np.int64)
    if name == "lg2":
        codes = codes[: 1 << 23]
        exponent = (codes >> 23 & 0xFF) - 127 + 13
        m = codes & _F | 1 << 23
        low = np.where(exponent >= 0, m << np.maximum(exponent, 0), m >> np.maximum(-exponent, 0))
        high = low + (1 << np.maximum(exponent, 0)) - 1
    else:
        low = codes - ((128 if name == "ex2" else 126) << 23) + 2**23
        high = low.copy()
    if name in ("rsqrt", "lg2"):
        low[0], high[0] = -(2**60), 2**60
    return low, high


def _width(low: Integers, high: Integers, finest: int) -> int | None:
    """Bits of r of the widest rows that quadratics fit, results being no finer than the truncated square makes them."""
    middle, unit_of = (low + high) / 2, np.maximum(high - low + 1, finest)
    for bits in _LOWS:
        r = np.linspace(1, (1 << bits) - 1, 4096).astype(np.int64)
        squared = squares(r << _SQUARED - bits) / 2**_SQUARED if bits <= _SQUARED else (r / 2**bits) ** 2
        basis = np.stack([np.ones(len(r)), r / 2**bits, squared], axis=1)
        values = middle.reshape(-1, 1 << bits)[:, r].T
        fitted, *_ = np.linalg.lstsq(basis, values, rcond=None)
        missed = np.abs(basis @ fitted - values) / unit_of.reshape(-1, 1 << bits)[:, r].T
        if missed.max() < _SPAN:
            return bits
    return None


def _fit_row(form: Quadratic, low: Integers, high: Integers, hint: tuple[int, int] | None) -> tuple[int, int, int] | None:
    """K, B and C that give every result of a row; None without any."""
    r = np.arange(1 << form.low, dtype=np.int64)
    q = squares(r << form.s) << form.c
    least, most = np.maximum(low, -(2**45)) << form.cut, (np.minimum(high, 2**45) << form.cut) + (1 << form.cut) - 1
    some = np.unique(np.concatenate([np.linspace(1, len(r) - 1, _SOME).astype(int), np.arange(1, 64), np.arange(len(r) - 64, len(r))]))
    basis = np.stack([np.ones(len(some)), r[some], q[some]], axis=1).astype(float)
    scale = np.abs(basis).max(axis=0)
    near = np.linalg.lstsq(basis / scale, (least[some] + most[some]) / 2, rcond=None)[0] / scale
    middle_c = round(near[2])
    tried = [hint] if hint is not None else []
    around = sorted(range(-_AROUND_C, _AROUND_C + 1), key=abs)
    # A step of C is met by one of B: the line that takes its place over the row.
    slope = float(q[-1]) / float(r[-1])
    beside = sorted(range(-_AROUND_B, _AROUND_B + 1), key=abs)
    tried += [(round(near[1] - slope * each) + more, middle_c + each) for each in around for more in beside]
    for b, c in tried:
        at = b * r[some] + c * q[some]
        if (least[some] - at).max() > (most[some] - at).min():
            continue
        every = b * r + c * q
        first, last = int((least - every).max()), int((most - every).min())
        if first <= last:
            return _best(first, last, form), b, c
    return None


def _best(first: int, last: int, form: Quadratic) -> int:
    """Of the constants that fit, the one with the form's own in its low bits, if it is among them."""
    unit_of = 1 << form.a
    found = first + (form.constant - first) % unit_of
    return found if found <= last else (first + last) // 2


@dataclass(frozen=True, kw_only=True)
class FunctionIdentification:
    """What a table says of a function."""

    opcode: str
    arch: str
    gpu: str
    structure: str
    """In words."""
    rows: TableRows | None
    """Of an interpolation."""
    changed: tuple[int, ...]
    """TableRows that are not those of the emulator's table."""
    differ: int
    """Results of the table that the model does not give."""
    compared: int
    """Results of the table."""
    wrong_blocks: tuple[int, ...]
    """Blocks of operands whose sum it does not give,"""
    blocks: int
    """of so many."""
    is_whole: bool
    """Whether those are all operands."""

    @property
    def fits(self) -> bool:
        """Whether the model gives everything that was recorded."""
        return not self.differ and not self.wrong_blocks

    def __str__(self) -> str:
        lines = [f"{self.opcode} of {self.gpu} ({self.arch})", f"  structure  {self.structure}"]
        if self.rows is not None:
            more = " ..." if len(self.changed) > _SHOWN else ""
            same = f"rows {', '.join(map(str, self.changed[:_SHOWN]))}{more} are others" if self.changed else "the same rows"
            lines.append(f"  table      beside the emulator's: {same}")
        if self.compared:
            lines.append(f"  results    {self.compared:,} kept, {self.differ:,} not given by it")
        if self.blocks:
            what = "all 2^32 operands" if self.is_whole else f"{self.blocks} blocks of 2^20 operands"
            found = f"{len(self.wrong_blocks)} blocks differ" if self.wrong_blocks else "every sum is the same"
            lines.append(f"  proof      {what}: {found}")
        return "\n".join([*lines, f"  {'the model fits' if self.fits else 'the model does not fit'}"])


def identify_function(table: FunctionTable, *, most_blocks: int | None = None) -> FunctionIdentification:
    """Find the structure behind a recorded function, and prove it on all that was recorded.

    Args:
        table: the recording.
        most_blocks: blocks of 2^20 operands to prove it on, evenly spread; all if None, which takes minutes.

    Raises:
        OperandError: a function that the emulator has no row for.
    """
    if table.opcode not in opcode_table():
        raise OperandError(f"{table.opcode!r} is no function that is known; known are {', '.join(plan.opcode for plan in PLANS)}")
    base = table.opcode.partition(".")[0]
    if base in _UNITS and "ftz" in table.opcode and table.opcode.endswith("f32") and table.results:
        rows, why = _interpolation(base, table)
        if rows is not None:
            return _judged(table, f"interpolation: {why}", lambda codes: unit(base, codes, rows), most_blocks, rows, base)
        return _judged(table, f"no interpolation of the known form ({why}); beside the emulator's", _emulated(table), most_blocks)
    row = opcode_table()[table.opcode]
    if not table.results:
        return _judged(table, "the expansion around the unit, as the emulator has it", _emulated(table), most_blocks)
    distinct = len(np.unique(np.concatenate(table.results)))
    kept = sum(map(len, table.results))
    words = f"a plain table of {kept:,} results, {distinct:,} of them distinct; beside the emulator's ({row.note or row.evidence})"
    return _judged(table, words, _emulated(table), most_blocks)


def _emulated(table: FunctionTable) -> Callable[[Codes], Codes]:
    return lambda codes: computed(table.opcode, codes, table.arch)


def _interpolation(base: str, table: FunctionTable) -> tuple[TableRows | None, str]:
    """TableRows that give the first range of a table, and words."""
    low, high = _wanted(base, table)
    form = QUADRATICS[base]
    bits = _width(low, high, _FINEST.get(base, 1))
    if bits is None:
        return None, "no quadratic fits rows of 2^14 operands"
    if bits > _SQUARED:
        return None, f"rows of 2^{bits} operands, wider than the unit's square takes"
    known = known_rows(base) if bits == form.low else None
    form = replace(form, low=bits, s=_SQUARED - bits)
    found: list[tuple[int, int, int]] = []
    for place, (least, most) in enumerate(zip(low.reshape(-1, 1 << bits), high.reshape(-1, 1 << bits), strict=True)):
        hint = None if known is None else (known.b[place], known.c[place])
        row = _fit_row(form, least, most, hint)
        if row is None:
            return None, f"no integers give row {place} of {len(low) >> bits}"
        found.append(row)
    k, b, c = zip(*found, strict=True)
    words = f"{len(found)} rows of 2^{bits} operands, A 2^{form.a} + B r + C square(r), cut by {form.cut} bits"
    return TableRows(form=form, k=k, b=b, c=c), words


def _judged(
    table: FunctionTable, structure: str, model: Callable[[Codes], Codes], most: int | None, rows: TableRows | None = None, base: str = ""
) -> FunctionIdentification:
    differ = compared = 0
    for (first, count), results in zip(table.ranges, table.results, strict=True):
        for start in range(0, count, BLOCK):
            part = results[start : start + BLOCK]
            given = model(np.arange(first + start, first + start + len(part), dtype=np.uint32))
            differ += int((given != part).sum())
            compared += len(part)
    wrong = table.wrong_blocks(lambda first, count: model(np.arange(first, first + count, dtype=np.uint32)), most=most)
    looked = len(table.blocks) if most is None else min(most, len(table.blocks))
    changed: list[int] = []
    if rows is not None:
        known = known_rows(base)
        theirs, ours = (list(zip(each.k, each.b, each.c, strict=True)) for each in (rows, known))
        changed = [place for place, row in enumerate(theirs) if len(theirs) != len(ours) or row != ours[place]]
    return FunctionIdentification(
        opcode=table.opcode, arch=table.arch, gpu=table.gpu, structure=structure, rows=rows, changed=tuple(changed), differ=differ,
        compared=compared, wrong_blocks=tuple(wrong), blocks=looked, is_whole=table.is_whole and looked == len(table.blocks),
    )  # fmt: skip
