"""The engine on an NVIDIA GPU, for `device="cuda"`: one output element a thread, in integers.

The same rows (plan.py) drive it as the engine of the CPU, and it gives the same bits; of the code they share nothing, so each
checks the other. Operands are taken apart once, to words of a significand and an exponent; then each thread walks K in steps.
All but f64 is integer arithmetic, so no compiler can contract, reorder or flush anything; f64 calls the fused multiply-add
of each rounding by name. Accumulators travel as the bits of a float32; `started` and `finished` know what C and D are.

Imported only when asked for. In Numba's CUDA simulator (NUMBA_ENABLE_CUDASIM=1) everything but f64 runs without a GPU.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import config, types
from numba.core.errors import NumbaPerformanceWarning

from mmabits.emulator.engine import plan
from mmabits.emulator.engine.plan import NEAREST_EVEN, NO_EXPONENT, TOWARD_NEGATIVE, TOWARD_POSITIVE, TOWARD_ZERO
from mmabits.isa import Arithmetic, DeviceUnavailable, FormatSpec, Lowering, UnsupportedInstruction

try:
    cuda: Any = import_module("numba.cuda")
except ImportError:
    raise DeviceUnavailable("device='cuda' needs numba.cuda, which this Numba lacks: pip install 'mmabits[cuda]'") from None
try:
    libdevice: Any = import_module("numba.cuda.libdevice")
except ImportError:  # the simulator has none
    libdevice = None
if getattr(config, "ENABLE_CUDASIM", False) and libdevice is not None and libdevice.fma_rn(1.0, 1.0, 1.0) is None:
    libdevice = None  # descriptions of functions alone


def _load_arrays() -> None:
    """Load numba-cuda's module of array functions, which up to 0.30 asks NumPy for `row_stack`; NumPy 2.5 has it no more."""
    if hasattr(np, "row_stack"):
        return
    setattr(np, "row_stack", np.vstack)  # noqa: B010 - the stubs have no such name
    try:
        import_module("numba.cuda.np.arrayobj")
    except ImportError:  # Numba's own target and the simulator have no such module
        pass
    finally:
        delattr(np, "row_stack")


_load_arrays()

Array = npt.NDArray[Any]

NOT_FINITE = 20000
"""The exponent of a word that is infinite (its significand is then 1 or -1) or NaN (0)."""
SUSPICIOUS = 4096
"""Exponents of products above this mean that a factor is not finite, also where the other is zero."""
MOST_GROUPS = 8
"""Groups of a step of scaled groups, at most."""
MOST_UNITS = 1 << 62
"""Sums of a step stay below this many last places."""
SIMULATED = bool(getattr(config, "ENABLE_CUDASIM", False))
"""Whether this is Numba's simulator, whose threads are threads of Python."""
THREADS, MOST_BLOCKS = (2, 1) if SIMULATED else (128, 1 << 20)
FEWEST_CELLS = 16 if SIMULATED else 1 << 16
"""Elements of D that a launch computes at least: about what keeps a GPU busy."""
PIECE = 0.2
"""Seconds that a launch should take: between launches a signal's handler has its turn."""

F32_NAN, F32_INFINITY, F32_SIGN, F32_MAGNITUDE = 0x7FFFFFFF, 0x7F800000, 0x80000000, 0x7FFFFFFF
F32_FRACTION, F32_MIN_EXPONENT, F32_MAX_EXPONENT = 23, -126, 127
F16_INFINITY, F16_SIGN, F16_MAGNITUDE = 0x7C00, 0x8000, 0x7FFF
F16_FRACTION, F16_MIN_EXPONENT = 10, -14

kernel: Any = cuda.jit
"""Compile a function that Python starts on the device."""
device: Any = cuda.jit(device=True)
"""Compile a function that kernels call."""


@device
def larger(x: int, y: int) -> Any:
    """The larger of two integers; Numba's own CUDA target has no `max` of integers since 0.68."""
    return x if x > y else y


@device
def smaller(x: int, y: int) -> Any:
    """The smaller of two integers."""
    return x if x < y else y


# ------------------------------------------------------------------------------------------------------------------ words
# A word is an int32: its exponent above, its signed significand in the low 16 bits.


@device
def word_of(exponent: int, significand: int) -> Any:
    """A word of its parts."""
    return (np.int64(exponent) << 16) | (np.int64(significand) & 0xFFFF)


@device
def exponent_of(word: Any) -> Any:
    """NO_EXPONENT for zero, NOT_FINITE for infinity and NaN."""
    return np.int64(word) >> 16


@device
def significand_of(word: Any) -> Any:
    """The signed significand, as an integer."""
    return ((np.int64(word) & 0xFFFF) ^ 0x8000) - 0x8000


@device
def decoded(code: Any, form: Any) -> Any:
    """The word of a code: section 1."""
    field = (np.int64(code) >> form.low_bits) & ((np.int64(1) << (form.sign_shift - form.low_bits)) - 1)
    sign = 1 - 2 * ((np.int64(code) >> form.sign_shift) & 1)
    if field >= form.lowest_nonfinite:
        return word_of(NOT_FINITE, sign if field == form.infinity else 0)
    if field == 0:
        return word_of(NO_EXPONENT, 0)
    exponent = field >> form.fraction_bits
    significand = field & ((np.int64(1) << form.fraction_bits) - 1)
    if exponent > 0:
        significand |= np.int64(1) << form.fraction_bits
    exponent = larger(exponent, 1) - form.bias
    while exponent > form.min_exponent and significand >> form.fraction_bits == 0:
        significand <<= 1
        exponent -= 1
    return word_of(exponent, sign * significand)


@device
def scaled(word: Any, scale: Any) -> Any:
    """An element's word times the word of its block scale: section 3."""
    if exponent_of(scale) == NOT_FINITE:
        return word_of(NOT_FINITE, 0)
    if exponent_of(word) == NOT_FINITE or exponent_of(word) == NO_EXPONENT:
        return np.int64(word)
    if exponent_of(scale) == NO_EXPONENT:
        return word_of(NO_EXPONENT, 0)
    return word_of(exponent_of(word) + exponent_of(scale), significand_of(word) * significand_of(scale))


@kernel
def decode_kernel(codes: Any, scales: Any, order: Any, form: Any, negate: int, block: int, words: Any) -> None:
    """Codes to words, in the order the unit takes them, with zeros past the end.

    codes: (outer, K, inner); scales: words, (outer, blocks, inner), or empty with block 0; words: (outer, K padded, inner).
    """
    padded, inner = words.shape[1], words.shape[2]
    for cell in range(cuda.grid(1), words.size, cuda.gridsize(1)):
        first, k, last = cell // (padded * inner), cell // inner % padded, cell % inner
        at = k - k % order.size + order[k % order.size] if order.size > 0 else k
        word = word_of(NO_EXPONENT, 0)
        if at < codes.shape[1]:
            word = decoded(codes[first, at, last], form)
            if block > 0:
                word = scaled(word, scales[first, at // block, last])
        if negate == 1:
            word = word_of(exponent_of(word), -significand_of(word))
        words[first, k, last] = word


@kernel
def look_up_kernel(codes: Any, table: Any, negate: int, values: Any) -> None:
    """Codes of at most 8 bits to what a table has for them, with zeros past the end; arrays as in decode_kernel."""
    padded, inner = values.shape[1], values.shape[2]
    for cell in range(cuda.grid(1), values.size, cuda.gridsize(1)):
        first, k, last = cell // (padded * inner), cell // inner % padded, cell % inner
        value = np.int64(0)
        if k < codes.shape[1]:
            value = np.int64(table[codes[first, k, last]])
        values[first, k, last] = -value if negate == 1 else value


# ------------------------------------------------------------------------------- accumulators: the bits of a float32, int64


@device
def is_finite(held: int) -> Any:
    """Whether an accumulator is a number."""
    return (held & F32_INFINITY) != F32_INFINITY


@device
def is_nan(held: int) -> Any:
    """Whether an accumulator is NaN."""
    return (held & F32_MAGNITUDE) > F32_INFINITY


@device
def held_significand(held: int) -> Any:
    """The signed significand of a finite accumulator."""
    significand = held & 0x7FFFFF
    if held & F32_INFINITY:
        significand |= 0x800000
    return -significand if held & F32_SIGN else significand


@device
def held_exponent(held: int) -> Any:
    """The exponent of an accumulator as a float32."""
    return larger((held >> F32_FRACTION) & 0xFF, 1) - 127


@device
def entering_exponent(held: int, numbers: Any, result: Any) -> Any:
    """What an accumulator brings to the alignment: sections 1 and 2."""
    if held & F32_MAGNITUDE == 0:
        return np.int64(numbers.zero_exponent)
    return larger(held_exponent(held), np.int64(result.min_exponent)) - numbers.c_shift


@device
def bit_length(value: int) -> Any:
    """Bits of a number that is not negative."""
    length = np.int64(0)
    for half in (32, 16, 8, 4, 2, 1):
        if value >> half:
            value >>= half
            length += half
    return length + value


@device
def truncated(value: int, shift: int) -> Any:
    """A whole number times 2^shift, toward zero to a whole number."""
    if shift >= 0:
        return value << shift
    places = smaller(-shift, 63)
    return -(-value >> places) if value < 0 else value >> places


@device
def rounded(total: int, lsb: int, mode: int, fraction_bits: int, min_exponent: int, max_exponent: int) -> Any:
    """The bits, as a float32, of total * 2^lsb rounded once to a format that float32 contains. Too large is infinity, zero is +0."""
    sign = np.int64(F32_SIGN) if total < 0 else np.int64(0)
    magnitude = abs(total)
    ulp = larger(bit_length(magnitude) - 1 + lsb, np.int64(min_exponent)) - fraction_bits
    drop = smaller(ulp - lsb, 63)
    if drop <= 0:
        kept = magnitude << -drop
    else:
        kept = magnitude >> drop
        rest, half = magnitude - (kept << drop), np.int64(1) << (drop - 1)
        if mode == NEAREST_EVEN and (rest > half or (rest == half and kept & 1 == 1)):
            kept += 1
    if kept == 0:
        return np.int64(0)
    top = bit_length(kept) - 1 + ulp
    if top > max_exponent:
        return sign | F32_INFINITY
    place = larger(top, np.int64(F32_MIN_EXPONENT))
    significand = truncated(kept, ulp - place + F32_FRACTION)  # exact; a normal number's hidden bit adds 1 to the exponent field
    return sign | (((place - F32_MIN_EXPONENT) << F32_FRACTION) + significand)


@device
def signed_infinity(positive: bool, negative: bool) -> Any:
    """The sum of infinities of these signs."""
    if positive and negative:
        return np.int64(F32_NAN)
    return np.int64(F32_INFINITY) if positive else np.int64(F32_INFINITY | F32_SIGN)


@device
def nearest_sum(x: int, y: int, fraction_bits: int, min_exponent: int, max_exponent: int) -> Any:
    """The IEEE sum of two accumulators, to nearest even in a format that float32 contains."""
    if is_nan(x) or is_nan(y):
        return np.int64(F32_NAN)
    if not (is_finite(x) and is_finite(y)):
        return signed_infinity(x == F32_INFINITY or y == F32_INFINITY, x == F32_INFINITY | F32_SIGN or y == F32_INFINITY | F32_SIGN)
    if (x | y) & F32_MAGNITUDE == 0:
        return x & y
    if held_exponent(x) < held_exponent(y):
        x, y = y, x
    # 36 bits below the larger's last place nothing but the smaller's sign can matter.
    distance, small = held_exponent(x) - held_exponent(y), held_significand(y)
    small = small << (36 - distance) if distance <= 36 else smaller(larger(small, -1), 1)
    lsb = held_exponent(x) - F32_FRACTION - 36
    return rounded((held_significand(x) << 36) + small, lsb, NEAREST_EVEN, fraction_bits, min_exponent, max_exponent)


@device
def promoted(total: int, chain: int, in_f16: int, result: Any) -> Any:
    """The total after a chain is added to it, in f32 or f16."""
    if in_f16 == 1:
        return nearest_sum(total, chain, result.fraction_bits, result.min_exponent, result.max_exponent)
    return nearest_sum(total, chain, F32_FRACTION, F32_MIN_EXPONENT, F32_MAX_EXPONENT)


@device
def is_due(done: int, k: int, every: int) -> Any:
    """Whether something is added after `done` of k elements of K, as it is after every so many (0: never), and after the last."""
    return every > 0 and (done % every == 0 or done == k)


@device
def started(code: int, result: Any) -> Any:
    """An accumulator by its code in C."""
    if result.half == 0:
        return np.int64(code)
    sign, magnitude = (np.int64(code) & F16_SIGN) << 16, np.int64(code) & F16_MAGNITUDE
    if magnitude >= F16_INFINITY:
        return sign | F32_INFINITY | (magnitude - F16_INFINITY) << 13
    lowest = np.int64(1) << F16_FRACTION  # the smallest normal number
    significand = magnitude if magnitude < lowest else (magnitude & (lowest - 1)) | lowest
    lsb = larger(magnitude >> F16_FRACTION, 1) - 1 + F16_MIN_EXPONENT - F16_FRACTION
    return sign | rounded(significand, lsb, NEAREST_EVEN, F32_FRACTION, F32_MIN_EXPONENT, F32_MAX_EXPONENT)


@device
def finished(total: int, result: Any) -> Any:
    """The code in D of an accumulator, which is one of the values of D's type."""
    if is_nan(total):
        return np.int64(result.nan)
    if result.half == 0:
        return total
    sign = (total & F32_SIGN) >> 16
    if not is_finite(total):
        return sign | F16_INFINITY
    exponent, significand = held_exponent(total), abs(held_significand(total))
    above = larger(exponent - F16_MIN_EXPONENT, np.int64(0))
    below = exponent - F16_MIN_EXPONENT - above
    return sign | (above << F16_FRACTION) + truncated(significand, below - (F32_FRACTION - F16_FRACTION))


# ------------------------------------------------------------------------------------------------------- sections 2, 3 and 5


@device
def special_step(left: Any, right: Any, item: int, row: int, column: int, k0: int, held: int, numbers: Any) -> Any:
    """Section 5: what a step comes to in which something is not finite."""
    if is_nan(held):
        return np.int64(F32_NAN)
    positive, negative = held == F32_INFINITY, held == F32_INFINITY | F32_SIGN
    for k in range(k0, k0 + numbers.step):
        a, b = left[item, row, k], right[item, k, column]
        if exponent_of(a) == NOT_FINITE or exponent_of(b) == NOT_FINITE:
            sign = significand_of(a) * significand_of(b)
            if sign == 0:  # a NaN, or 0 times infinity
                return np.int64(F32_NAN)
            positive = positive or sign > 0
            negative = negative or sign < 0
    return signed_infinity(positive, negative)


@device
def fused_step(left: Any, right: Any, item: int, row: int, column: int, k0: int, held: int, point: int, numbers: Any, result: Any) -> Any:
    """One step: the accumulator after it."""
    top = larger(np.int64(numbers.zero_exponent), entering_exponent(held, numbers, result))
    for k in range(k0, k0 + numbers.step):
        top = larger(top, exponent_of(left[item, row, k]) + exponent_of(right[item, k, column]))
    if top > SUSPICIOUS or not is_finite(held):
        return special_step(left, right, item, row, column, k0, held, numbers)
    lsb = top - numbers.fraction_bits
    total = truncated(held_significand(held), held_exponent(held) - numbers.c_shift - F32_FRACTION - lsb)
    for k in range(k0, k0 + numbers.step):
        a, b = left[item, row, k], right[item, k, column]
        total += truncated(significand_of(a) * significand_of(b), exponent_of(a) + exponent_of(b) - point - lsb)
    return rounded(total, lsb, result.mode, result.fraction_bits, result.min_exponent, result.max_exponent)


@kernel
def fused_kernel(left: Any, right: Any, d: Any, first: int, last: int, point: int, numbers: Any, result: Any) -> None:
    """Elements first .. last - 1 of d. left: words (batch, M, K padded); right: words (batch, K padded, N); d: codes (batch, M, N).

    A product of two significands has `point` fraction bits.
    """
    rows, columns, k_padded = d.shape[1], d.shape[2], left.shape[2]
    for cell in range(first + cuda.grid(1), last, cuda.gridsize(1)):
        item, row, column = cell // (rows * columns), cell // columns % rows, cell % columns
        total, part = started(d[item, row, column], result), np.int64(0)
        chain = np.int64(0) if numbers.restart > 0 else total
        for k0 in range(0, k_padded, numbers.step):
            chain = fused_step(left, right, item, row, column, k0, chain, point, numbers, result)
            done = k0 + numbers.step
            if is_due(done, k_padded, numbers.restart):
                if numbers.promote > 0:
                    part = promoted(part, chain, numbers.restart_f16, result)
                else:
                    total = promoted(total, chain, numbers.restart_f16, result)
                chain = np.int64(0)
            if is_due(done, k_padded, numbers.promote):
                total, part = promoted(total, part, 0, result), np.int64(0)
        d[item, row, column] = finished(chain if numbers.restart == 0 else total, result)


# ------------------------------------------------------------------------------------------------------- sections 4 and 5


@device
def grouped_step(
    left: Any, right: Any, scale_a: Any, scale_b: Any, item: int, row: int, column: int, k0: int, held: int, point: int, numbers: Any,
    result: Any,
) -> Any:  # fmt: skip
    """One step of scaled groups: the accumulator after it."""
    sums = cuda.local.array(MOST_GROUPS, types.int64)
    exponents = cuda.local.array(MOST_GROUPS, types.int64)
    groups = numbers.step // numbers.group
    top = larger(np.int64(numbers.zero_exponent), entering_exponent(held, numbers, result))
    has_nan = is_nan(held)
    for group in range(groups):
        first = k0 + group * numbers.group
        block = first // numbers.block
        total, occupied = np.int64(0), False
        for k in range(first, first + numbers.group):
            product = np.int64(left[item, row, k]) * np.int64(right[item, k, column])
            total += product
            occupied = occupied or product != 0
        sums[group], exponents[group] = 0, NO_EXPONENT
        if block < scale_b.shape[1]:
            a, b = scale_a[item, row, block], scale_b[item, block, column]
            has_nan = has_nan or exponent_of(a) == NOT_FINITE or exponent_of(b) == NOT_FINITE
            if occupied:
                sums[group] = total * significand_of(a) * significand_of(b)
                exponents[group] = exponent_of(a) + exponent_of(b)  # of a zero scale far below every other
        top = larger(top, exponents[group])
    if has_nan:
        return np.int64(F32_NAN)
    if not is_finite(held):
        return held
    lsb = top - numbers.fraction_bits
    total = truncated(held_significand(held), held_exponent(held) - numbers.c_shift - F32_FRACTION - lsb)
    for group in range(groups):
        total += truncated(sums[group], exponents[group] - point - lsb)
    return rounded(total, lsb, result.mode, result.fraction_bits, result.min_exponent, result.max_exponent)


@kernel
def grouped_kernel(
    left: Any, right: Any, scale_a: Any, scale_b: Any, d: Any, first: int, last: int, point: int, numbers: Any, result: Any
) -> None:  # fmt: skip
    """Like fused_kernel, but the elements are fixed-point integers; scales: words (batch, M, blocks), (batch, blocks, N)."""
    rows, columns, k_padded = d.shape[1], d.shape[2], left.shape[2]
    for cell in range(first + cuda.grid(1), last, cuda.gridsize(1)):
        item, row, column = cell // (rows * columns), cell // columns % rows, cell % columns
        total, part = started(d[item, row, column], result), np.int64(0)
        chain = np.int64(0) if numbers.restart > 0 else total
        for k0 in range(0, k_padded, numbers.step):
            chain = grouped_step(left, right, scale_a, scale_b, item, row, column, k0, chain, point, numbers, result)
            done = k0 + numbers.step
            if is_due(done, k_padded, numbers.restart):
                if numbers.promote > 0:
                    part = promoted(part, chain, numbers.restart_f16, result)
                else:
                    total = promoted(total, chain, numbers.restart_f16, result)
                chain = np.int64(0)
            if is_due(done, k_padded, numbers.promote):
                total, part = promoted(total, part, 0, result), np.int64(0)
        d[item, row, column] = finished(chain if numbers.restart == 0 else total, result)


# -------------------------------------------------------------------------------------------------------------- section 6


@kernel
def chain_kernel(a: Any, b: Any, d: Any, first: int, last: int, numbers: Any, nan: float) -> None:
    """f64: a chain of fused multiply-adds, k ascending, rounded as the instruction says. The one kernel that uses floats."""
    rows, columns, k_total = d.shape[1], d.shape[2], a.shape[2]
    for cell in range(first + cuda.grid(1), last, cuda.gridsize(1)):
        item, row, column = cell // (rows * columns), cell // columns % rows, cell % columns
        total = d[item, row, column]
        for k in range((k_total + numbers.k_instruction - 1) // numbers.k_instruction * numbers.k_instruction):
            x, y = 0.0, 0.0  # what fills the last instruction turns -0 to +0, save where it rounds down
            if k < k_total:
                x, y = a[item, row, k], b[item, k, column]
            if numbers.negate == 1:
                x = -x
            if numbers.rounding == TOWARD_ZERO:
                total = libdevice.fma_rz(x, y, total)
            elif numbers.rounding == TOWARD_POSITIVE:
                total = libdevice.fma_ru(x, y, total)
            elif numbers.rounding == TOWARD_NEGATIVE:
                total = libdevice.fma_rd(x, y, total)
            else:
                total = libdevice.fma_rn(x, y, total)
        d[item, row, column] = nan if total != total else total


@kernel
def integer_kernel(a: Any, b: Any, d: Any, first: int, last: int, numbers: Any) -> None:
    """Integers: each instruction's exact sum is added to the accumulator, which wraps or is clamped."""
    rows, columns, k_total = d.shape[1], d.shape[2], a.shape[2]
    low, high = np.int64(-(1 << 31)), np.int64((1 << 31) - 1)
    for cell in range(first + cuda.grid(1), last, cuda.gridsize(1)):
        item, row, column = cell // (rows * columns), cell // columns % rows, cell % columns
        total = np.int64(d[item, row, column])
        for k0 in range(0, k_total, numbers.k_instruction):
            for k in range(k0, smaller(k0 + numbers.k_instruction, k_total)):
                total += np.int64(a[item, row, k]) * np.int64(b[item, k, column])
            total = smaller(larger(total, low), high) if numbers.saturate == 1 else ((total - low) & 0xFFFFFFFF) + low
        d[item, row, column] = total


# --------------------------------------------------------------------------------------------------------------- the host


def run(lowering: Lowering, a: Array, b: Array, d: Array, scale_a: Array | None, scale_b: Array | None, promote_every: int = 0) -> None:
    """Compute d = a @ b + d on the GPU; arguments and results are those of products.run, to the bit.

    Raises:
        DeviceUnavailable: there is no GPU, or Numba cannot use it.
        UnsupportedInstruction: sums that 64-bit integers do not hold; f64 in the simulator.
    """
    _check_available()
    numbers = plan.step_numbers(lowering, promote_every)
    arithmetic = lowering.datapath.arithmetic
    if arithmetic is Arithmetic.FMA_CHAIN:
        if libdevice is None:
            raise UnsupportedInstruction(f"{lowering.instruction}: Numba's CUDA simulator has no fused multiply-add; use device='cpu'")
        nan = np.uint64(plan.result_numbers(lowering).nan).view(np.float64)
        _compute(chain_kernel, (_to_device(a), _to_device(b)), d, numbers, nan)
    elif arithmetic is Arithmetic.INTEGER:
        signs = (numbers.signed_a, numbers.signed_b)
        bytes_ = (array.view(np.int8 if signed else np.uint8) for array, signed in zip((a, b), signs, strict=True))
        _compute(integer_kernel, tuple(_to_device(array) for array in bytes_), d, numbers)
    elif arithmetic is Arithmetic.GROUPED and scale_a is not None and scale_b is not None:
        _run_grouped(lowering, promote_every, a, b, d, scale_a, scale_b)
    else:
        _run_fused(lowering, promote_every, a, b, d, scale_a, scale_b)


def _run_fused(lowering: Lowering, promote_every: int, a: Array, b: Array, d: Array, scale_a: Array | None, scale_b: Array | None) -> None:
    row, numbers, result = lowering.instruction, plan.step_numbers(lowering, promote_every), plan.result_numbers(lowering, promote_every)
    scale_bits = row.scale_type.fraction_bits if row.scale_type else 0
    _check_width(lowering, numbers.step * (16 if scale_bits else 4))  # each significand is below 2
    order = _to_device(plan.k_order(lowering))

    def words(codes: Array, scales: Array | None, form: FormatSpec, negate: int) -> Any:
        block = 0 if scales is None else numbers.block
        factors = np.zeros((0, 0, 0), np.int32) if scales is None else _words_of_scales(row.scale_type)[scales]
        out = _room(codes, numbers)
        code = plan.format_numbers(form, lowering.unpacked_to)
        _launch(decode_kernel, out.size, _to_device(codes), _to_device(factors), order, code, negate, block, out)
        return out

    left = words(_as_columns(a), None if scale_a is None else _as_columns(scale_a), row.a_type, numbers.negate)
    right = words(b, scale_b, row.b_type, 0)
    point = row.a_type.fraction_bits + row.b_type.fraction_bits + 2 * scale_bits
    left = left.reshape(a.shape[0], a.shape[1], left.shape[1])
    _compute(fused_kernel, (left, right), _codes_of(d), point, numbers, result)


def _run_grouped(lowering: Lowering, promote_every: int, a: Array, b: Array, d: Array, scale_a: Array, scale_b: Array) -> None:
    row, numbers, result = lowering.instruction, plan.step_numbers(lowering, promote_every), plan.result_numbers(lowering, promote_every)
    table_a, table_b = _fixed_point(row.a_type), _fixed_point(row.b_type)
    point = _point(row.a_type) + _point(row.b_type)
    largest = int(np.abs(table_a).max()) * int(np.abs(table_b).max())
    _check_width(lowering, numbers.step * 4 * ((largest >> point) + 1))
    if numbers.step // numbers.group > MOST_GROUPS:
        raise UnsupportedInstruction(f"{lowering.datapath.name}: {numbers.step // numbers.group} groups a step, at most {MOST_GROUPS} fit")

    def values(codes: Array, table: Array, negate: int) -> Any:
        out = _room(codes, numbers)
        _launch(look_up_kernel, out.size, _to_device(codes), _to_device(table), negate, out)
        return out

    left, right = values(_as_columns(a), table_a, numbers.negate), values(b, table_b, 0)
    left = left.reshape(a.shape[0], a.shape[1], left.shape[1])
    scales = [_to_device(_words_of_scales(row.scale_type)[codes]) for codes in (scale_a, scale_b)]
    if row.scale_type is not None:
        point += 2 * row.scale_type.fraction_bits
    _compute(grouped_kernel, (left, right, *scales), _codes_of(d), point, numbers, result)


def _codes_of(d: Array) -> Array:
    """C and D as unsigned integers."""
    return d.view(np.uint16 if d.dtype == np.float16 else np.uint32)


def _as_columns(array: Array) -> Array:
    """(batch, M, K) as (batch * M, K, 1): K in the middle, as in B."""
    return array.reshape(-1, array.shape[2], 1)


def _room(codes: Array, numbers: plan.StepNumbers) -> Any:
    """An int32 array on the device for what (outer, K, inner) codes become, K padded to whole instructions."""
    outer, k, inner = codes.shape
    return cuda.device_array((outer, -(-k // numbers.k_instruction) * numbers.k_instruction, inner), np.int32)


@lru_cache(maxsize=16)
def _words_of_scales(form: FormatSpec | None) -> Array:
    """The word of every scale code."""
    values, exponents, _ = plan.scale_tables(form)
    nan = np.isnan(values)
    exponents = np.where(nan, NOT_FINITE, exponents).astype(np.int64)
    ordinary = (values != 0) & ~nan
    bits = form.fraction_bits if form else 0
    significands = np.ldexp(np.where(ordinary, values, 0.0), np.where(ordinary, bits - exponents, 0)).astype(np.int64)
    return (exponents << 16 | significands & 0xFFFF).astype(np.int32)


def _point(form: FormatSpec) -> int:
    """Fraction bits of a format's elements as fixed-point integers."""
    return form.fraction_bits - form.min_exponent


@lru_cache(maxsize=16)
def _fixed_point(form: FormatSpec) -> Array:
    """Every element code as a fixed-point integer."""
    values = np.ldexp(plan.element_values(form).astype(np.float64), _point(form))
    if not (np.abs(values) < 1 << 31).all():
        raise UnsupportedInstruction(f"elements of {form.name} in scaled groups do not fit 32-bit integers")
    return values.astype(np.int32)


def _check_width(lowering: Lowering, units: int) -> None:
    """Terms of a step that are together below units * 2^E, and the accumulator, must fit 64-bit integers."""
    path = lowering.datapath
    if (units + 2) << path.fraction_bits >= MOST_UNITS:
        raise UnsupportedInstruction(f"{path.name}: sums of {path.fraction_bits} fraction bits need more than 64-bit integers")


def _check_available() -> None:
    if not cuda.is_available():
        reason = str(cuda.cuda_error() or "no NVVM library").strip().split("\n")[-1].rstrip(":") or "no driver"
        raise DeviceUnavailable(
            f"device='cuda' finds no NVIDIA GPU that Numba can use ({reason}): it takes a driver, and the CUDA libraries of"
            " pip install 'mmabits[cuda]'; device='cpu' gives the same bits"
        )


def _to_device(array: Array) -> Any:
    return cuda.to_device(np.ascontiguousarray(array))


def _compute(function: Callable[..., None], operands: tuple[Any, ...], d: Array, *scalars: Any) -> None:
    """Run a kernel over the elements of d, which goes there and comes back: a piece at a time. However it ends, no kernel runs then."""
    results = _to_device(d)
    first, cells = 0, FEWEST_CELLS
    try:
        while first < d.size:
            last, began = min(first + cells, d.size), time.perf_counter()
            _launch(function, last - first, *operands, results, first, last, *scalars)
            cuda.synchronize()
            cells = max(FEWEST_CELLS, int(cells * min(4.0, PIECE / max(time.perf_counter() - began, 1e-6))))
            first = last
        results.copy_to_host(d)
    finally:
        cuda.synchronize()


def _launch(function: Any, cells: int, *arguments: Any) -> None:
    """Start a kernel with a thread for every cell, or fewer that take several."""
    blocks = min(-(-cells // THREADS), MOST_BLOCKS)
    with warnings.catch_warnings():  # a small product leaves most of a GPU idle: no news to the caller
        warnings.simplefilter("ignore", NumbaPerformanceWarning)
        function[blocks, THREADS](*arguments)
