"""Rows lowered to plain numbers: the only thing of isa/ that compiled code sees. Nothing here needs a compiler."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import decode
from mmabits.isa import Arithmetic, FormatSpec, Lowering, NonFinite, Rounding

TOWARD_ZERO, NEAREST_EVEN, TOWARD_POSITIVE, TOWARD_NEGATIVE = 0, 1, 2, 3
"""Rounding modes as LLVM (and C's FLT_ROUNDS) numbers them."""
GROUPS_AT_ONCE = 2
"""Groups whose sums run side by side, for two rows and two vectors, to hide the latency of a multiply-add."""
F32_NAN = 0x7FFFFFFF
"""The NaN that f32 additions, multiplications and fused multiply-adds outside tensor cores give."""
NO_EXPONENT = -8192
"""Stands for the exponent of a zero: added to itself or to any exponent, it stays below every e_zero."""

NEAR = 31
"""How far apart exponents may lie for floors.floor_step."""


class FormatNumbers(NamedTuple):
    """A FormatSpec as integers."""

    fraction_bits: int
    bias: int
    low_bits: int
    sign_shift: int
    """Place of the sign bit; where there is none, a place above the fields, always 0."""
    lowest_nonfinite: int
    """The smallest magnitude field (without low bits) that is not finite; past every field where there is none."""
    infinity: int
    """The magnitude field of infinity, -1 where there is none."""
    min_exponent: int
    """Exponent below which a significand is not normalised: the format's own, or that of the format it is converted to."""
    max_exponent: int
    lowest_place: int
    """The exponent of the lowest bit of all its numbers."""
    narrow: int
    """1 where the exponents of all its numbers lie within NEAR of each other."""


class ResultNumbers(NamedTuple):
    """How the exact sum of a step becomes the accumulator."""

    mode: int
    """TOWARD_ZERO or NEAREST_EVEN."""
    fraction_bits: int
    min_exponent: int
    """Of normal numbers."""
    max_exponent: int
    cut: int
    """Low fraction bits of an f32 that are always zero."""
    nan: int
    """Code of the NaN that comes out, in D's type."""
    half: int
    """1 where D is float16: accumulators are then float32 between D and D."""


class StepNumbers(NamedTuple):
    """A datapath and its use by one instruction."""

    step: int
    fraction_bits: int
    zero_exponent: int
    group: int
    block: int
    """Elements of K per block scale; 0 without."""
    k_instruction: int
    restart: int
    """Elements of K after which the chain is added to the total and starts from +0; 0: never."""
    restart_f16: int
    """The add rounds to f16 (1) or f32 (0)."""
    promote: int
    """Of a lowering with an add of its own: elements of K after which what it has added up is added to an f32 total; 0: never."""
    c_shift: int
    """The accumulator enters each step divided by 2^c_shift."""
    negate: int
    """1 where exactly one of A and B is negated."""
    saturate: int
    rounding: int
    unit_scale: int
    """Code of the block scale 1, for what lies past the edge."""
    floors: int
    """1 where floors.floor_step may take a step."""
    room_of_groups: int
    """F and the places that a scaled sum of a group can have below its scales' exponents: so far E may lie above them."""
    room_of_held: int
    """F - 23: how far E may lie above an accumulator that keeps all its bits."""
    signed_a: int
    signed_b: int
    """Of integers: 1 where their bytes have a sign."""


_MODES = {
    Rounding.TOWARD_ZERO: TOWARD_ZERO, Rounding.NEAREST_EVEN: NEAREST_EVEN, Rounding.UP: TOWARD_POSITIVE, Rounding.DOWN: TOWARD_NEGATIVE,
}  # fmt: skip


@lru_cache(maxsize=256)
def format_numbers(form: FormatSpec, unpacked_to: FormatSpec | None = None) -> FormatNumbers:
    """The row of a format as integers, as a unit sees it that first converts it to another."""
    fields = form.fraction_bits + form.exponent_bits
    lowest = {
        NonFinite.IEEE: form.exponent_mask >> form.ignored_low_bits,
        NonFinite.NAN_ONLY: form.magnitude_mask >> form.ignored_low_bits,
        NonFinite.NONE: 1 << fields,
    }[form.non_finite]
    least = (unpacked_to or form).min_exponent
    return FormatNumbers(
        fraction_bits=form.fraction_bits,
        bias=form.bias,
        low_bits=form.ignored_low_bits,
        sign_shift=form.code_bits - 1 if form.sign_bits else fields + form.ignored_low_bits,
        lowest_nonfinite=lowest,
        infinity=form.exponent_mask >> form.ignored_low_bits if form.has_infinity else -1,
        min_exponent=least,
        max_exponent=form.max_exponent,
        lowest_place=form.min_exponent - form.fraction_bits,
        narrow=int(form.max_exponent - least <= NEAR),
    )


@lru_cache(maxsize=1024)
def result_numbers(lowering: Lowering, promote_every: int = 0) -> ResultNumbers:
    """The result rounding of a lowering's datapath as integers, and what D is: an f32 where the caller promotes."""
    path = lowering.datapath
    return ResultNumbers(
        mode=_MODES[path.result_rounding.mode or Rounding.TOWARD_ZERO],
        fraction_bits=path.result_fraction_bits,
        min_exponent=path.result.min_exponent if not path.result.is_integer else 0,
        max_exponent=path.result.max_exponent if not path.result.is_integer else 0,
        cut=23 - path.result_fraction_bits if path.result.fraction_bits == 23 else 0,
        nan=F32_NAN if promote_every else path.result_nan,
        half=int(path.result.name == "f16" and not promote_every),
    )


@lru_cache(maxsize=1024)
def step_numbers(lowering: Lowering, promote_every: int = 0, general: bool = False) -> StepNumbers:
    """A lowering as integers; a lowering with an add of its own restarts each instruction, any other as the caller promotes.

    `general` has the engine take the path that is right for everything, also where a faster one is.
    """
    instruction = lowering.instruction
    own_add = lowering.separate_add
    return StepNumbers(
        step=lowering.step,
        fraction_bits=lowering.datapath.fraction_bits,
        zero_exponent=lowering.datapath.zero_exponent,
        group=lowering.datapath.group,
        block=instruction.block or 0,
        k_instruction=instruction.k,
        restart=instruction.k if own_add else promote_every,
        restart_f16=int(own_add and lowering.datapath.result.name == "f16"),
        promote=promote_every if own_add else 0,
        c_shift=instruction.scale_input_d,
        negate=int(instruction.negate_a != instruction.negate_b),
        saturate=int(instruction.satfinite),
        rounding=_MODES[instruction.rounding_mode],
        unit_scale=_code_of_one(instruction.scale_type) if instruction.scale_type else 0,
        floors=int(not general and _has_floors(lowering)),
        room_of_groups=lowering.datapath.fraction_bits + _last_place(lowering),
        room_of_held=lowering.datapath.fraction_bits - 23,
        signed_a=int(instruction.a_type.sign_bits > 0),
        signed_b=int(instruction.b_type.sign_bits > 0),
    )


def _has_floors(lowering: Lowering) -> bool:
    """Whether steps are whole runs of four elements, with at most one power of two as scale, of at most 11 fraction bits."""
    path, row = lowering.datapath, lowering.instruction
    plain = path.arithmetic is Arithmetic.FUSED and lowering.step % 4 == 0 and lowering.step // 4 < 128
    narrow = all(not form.is_integer and form.fraction_bits <= 11 for form in (row.a_type, row.b_type))
    scaled = row.block is None or (row.block % lowering.step == 0 and row.scale_type is not None and row.scale_type.fraction_bits == 0)
    return plain and narrow and scaled


def _code_of_one(form: FormatSpec) -> int:
    return form.bias << form.fraction_bits


class StepPowers(NamedTuple):
    """The powers of two that a step of scaled groups works with."""

    window: float
    """2^(52 - F): from 2^E to a number whose last place in float64 is 2^(E - F)."""
    zero: float
    """2^e_zero."""
    floor: float
    """2^exponent of an accumulator's subnormals."""
    byte_unit: float
    """The product of the smallest positive elements: what all products are multiples of."""


def _last_place(lowering: Lowering) -> int:
    """The exponent of the last place that a group's scaled sum can have, its scales' exponents 0."""
    row = lowering.instruction
    scale_bits = row.scale_type.fraction_bits if row.scale_type else 0
    if row.a_type.is_integer or row.b_type.is_integer:
        return 0
    return sum(form.min_exponent - form.fraction_bits for form in (row.a_type, row.b_type)) - 2 * scale_bits


@lru_cache(maxsize=1024)
def step_powers(lowering: Lowering) -> StepPowers:
    """The powers of a lowering."""
    path, row = lowering.datapath, lowering.instruction
    return StepPowers(
        window=2.0 ** (52 - path.fraction_bits),
        zero=2.0**path.zero_exponent,
        floor=2.0**path.result.min_exponent,
        byte_unit=row.a_type.min_positive * row.b_type.min_positive,
    )


@lru_cache(maxsize=1024)
def groups_fit(lowering: Lowering) -> bool:
    """Whether steps.grouped_step is exact for a lowering: float32 holds a group's sum, float64 the sum of all terms.

    A step must be whole pairs of groups, a group's elements have a bit each in a mask, and the tables hold 8-bit codes.
    """
    path, row = lowering.datapath, lowering.instruction
    largest = path.group * row.a_type.max_finite * row.b_type.max_finite
    groups, rest = divmod(lowering.step, path.group)
    whole = rest == 0 and groups % GROUPS_AT_ONCE == 0 and path.group < 63
    tables = all(form.container_bits == 8 and not form.has_nan for form in (row.a_type, row.b_type))
    in_group = largest / (row.a_type.min_positive * row.b_type.min_positive) <= 2.0**24
    in_sum = (4 * groups * largest + 2) * 2.0**path.fraction_bits <= 2.0**52  # two scale significands are below 4
    return whole and tables and in_group and in_sum


@lru_cache(maxsize=1024)
def bytes_fit(lowering: Lowering) -> bool:
    """Whether a grouped lowering's elements are bytes, as multiples of their format's smallest number, and its groups runs of four."""
    row = lowering.instruction
    narrow = all(form.max_finite / form.min_positive <= 127 for form in (row.a_type, row.b_type))
    return narrow and lowering.datapath.group % 4 == 0 and lowering.datapath.group <= 32


@lru_cache(maxsize=64)
def element_values(form: FormatSpec) -> npt.NDArray[np.float32]:
    """The value of every code of a format of at most 8 bits, unused top bits ignored."""
    codes = np.arange(256) & (form.codes - 1)
    return decode(codes.astype(np.uint8), form).astype(np.float32)


@lru_cache(maxsize=16)
def scale_tables(form: FormatSpec | None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int16], npt.NDArray[np.float64]]:
    """The value, the exponent and the power of two of every scale code; NO_EXPONENT and 0 for a zero or NaN."""
    if form is None:
        return np.zeros(0), np.zeros(0, np.int16), np.zeros(0)
    values = decode(np.arange(256, dtype=np.uint8), form)
    ordinary = np.isfinite(values) & (values != 0)
    exponents = np.maximum(np.frexp(np.where(ordinary, values, 1.0))[1] - 1, form.min_exponent)
    powers = np.where(ordinary, np.ldexp(1.0, exponents), 0.0)
    return values, np.where(ordinary, exponents, NO_EXPONENT).astype(np.int16), powers


@lru_cache(maxsize=1024)
def carrier_bits(lowering: Lowering) -> int:
    """24 where float32 carries the truncated sums exactly, 53 where it takes float64, 0 where neither is wide enough.

    The operands must be exact in the carrier, the sum of all terms must stay below 2^(p - 2) units, and float32 must also hold a unit
    as low as that of a step of zeros.
    """
    path, instruction = lowering.datapath, lowering.instruction
    units = (4 * lowering.step + 2) << path.fraction_bits
    narrow = all(
        form.fraction_bits < 12 and form.min_exponent - form.fraction_bits > -40 and form.max_exponent < 40
        for form in (instruction.a_type, instruction.b_type)
    )
    plain = instruction.scale_type is None and instruction.scale_input_d == 0
    holds_zeros = path.zero_exponent - path.fraction_bits > -150
    if units < 1 << 22 and narrow and plain and holds_zeros:
        return 24
    return 53 if units < 1 << 51 else 0


@lru_cache(maxsize=64)
def k_order(lowering: Lowering) -> npt.NDArray[np.int64]:
    """The order of K as an array; empty where it ascends."""
    return np.array(lowering.k_order or (), np.int64)
