"""The one place that imports Numba's decorators, and the policy: no Python objects, cached on disk, never fast-math.

Also the three things the engine needs from LLVM itself: the rounding mode of the running thread, and two short vector
loops whose accumulators must stay in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["NEAREST_EVEN", "TOWARD_NEGATIVE", "TOWARD_POSITIVE", "TOWARD_ZERO", "WIDTH", "dot_columns", "exponent_maxima", "fma_signed", "jit", "prange", "set_rounding"]

TOWARD_ZERO, NEAREST_EVEN, TOWARD_POSITIVE, TOWARD_NEGATIVE = 0, 1, 2, 3
"""Rounding modes as LLVM (and C's FLT_ROUNDS) numbers them."""

WIDTH = 32
"""Columns of a tile: four vectors of f32, two halves of four vectors of f64."""


def jit(function: Callable[..., Any] | None = None, *, parallel: bool = False, inline: bool = False) -> Any:
    """Compile a function for the engine: nopython, cached, division by IEEE rules, and bits that no flag may change."""
    decorate = numba.njit(cache=True, parallel=parallel, error_model="numpy", inline="always" if inline else "never")
    return decorate if function is None else decorate(function)


@intrinsic
def set_rounding(_context: Any, mode: types.Integer) -> Any:
    """Set the rounding mode of this thread's floating-point unit."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        module = builder.module
        function = cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(32)]), "llvm.set.rounding")
        builder.call(function, [context.cast(builder, arguments[0], signature.args[0], types.int32)])
        return context.get_dummy_value()

    return types.none(mode), codegen


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Address of element `offset` of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


def _load(builder: Any, pointer: Any, vector: Any, align: int) -> Any:
    value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    value.align = align
    return value


def _store(builder: Any, value: Any, pointer: Any, align: int) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = align


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)


def _lanes(dtype: Any) -> tuple[int, int]:
    """Lanes and bytes of an element in a 256-bit vector; wider or narrower machines split or join them."""
    size = dtype.bitwidth // 8
    return 32 // size, size


def _fma(builder: Any, vector: Any) -> Any:
    suffix = f"v{vector.count}f{32 if isinstance(vector.element, ir.FloatType) else 64}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.{suffix}")


@intrinsic
def fma_signed(_context: Any, sums: Any, a: Any, a_start: Any, sides: Any, b: Any, b_start: Any, count: Any) -> Any:
    """sums[0, j] += |a[k]| * (b's part of a's sign)[k, j]; sums[1, j] += |a[k]| * (the other part)[k, j].

    `sums` holds 2 x WIDTH; `b` holds from `b_start` on, for each k, WIDTH positive parts then WIDTH negative parts;
    `sides[k]` is k * 2 * WIDTH where a[k] is positive, and WIDTH more where it is negative.
    """
    index = types.intp
    signature = types.none(sums, a, index, sides, b, index, index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _sums, _a, start, _sides, _b, b_first, number = arguments
        word = number.type
        lanes, size = _lanes(b.dtype)
        vector = ir.VectorType(context.get_data_type(b.dtype), lanes)
        fma = _fma(builder, vector)
        constant = word
        per_pass = 4
        for first in range(0, WIDTH // lanes, per_pass):
            places = [ir.Constant(constant, side * WIDTH + (first + v) * lanes) for side in range(2) for v in range(per_pass)]
            cells = []
            for place in places:
                cell = cgutils.alloca_once(builder, vector)
                builder.store(_load(builder, _pointer(context, builder, sums, _sums, place), vector, size), cell)
                cells.append(cell)
            with cgutils.for_range(builder, number) as loop:
                k = builder.add(start, loop.index)
                factor = _splat(builder, builder.load(_pointer(context, builder, a, _a, k)), vector)
                side = builder.sext(builder.load(_pointer(context, builder, sides, _sides, k)), word)
                other = builder.xor(side, ir.Constant(constant, WIDTH))
                for part, base in enumerate((side, other)):
                    for v in range(per_pass):
                        place = builder.add(builder.add(b_first, base), ir.Constant(constant, (first + v) * lanes))
                        value = _load(builder, _pointer(context, builder, b, _b, place), vector, size)
                        cell = cells[part * per_pass + v]
                        builder.store(builder.call(fma, [factor, value, builder.load(cell)]), cell)
            for place, cell in zip(places, cells, strict=True):
                _store(builder, builder.load(cell), _pointer(context, builder, sums, _sums, place), size)
        return context.get_dummy_value()

    return signature, codegen


def _multiply_add(builder: Any, vector: Any, factor: Any, value: Any, total: Any) -> Any:
    if isinstance(vector.element, ir.IntType):
        return builder.add(builder.mul(factor, value), total)
    return builder.call(_fma(builder, vector), [factor, value, total])


@intrinsic
def dot_columns(_context: Any, sums: Any, s_start: Any, a: Any, a_start: Any, b: Any, b_start: Any, count: Any, chains: Any) -> Any:
    """For each of `chains` (a literal) runs of `count` elements, one after the other in a and b, sums of its own:

    sums[s_start + chain * WIDTH + j] += a[a_start + k] * b[b_start + k * WIDTH + j], k ascending, each a fused
    multiply-add (integers wrap), j in 0..WIDTH-1. Several chains at once hide the latency of a multiply-add.
    """
    if not isinstance(chains, types.IntegerLiteral):
        return None
    runs = int(chains.literal_value)
    index = types.intp
    signature = types.none(sums, index, a, index, b, index, index, chains)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _sums, s_first, _a, start, _b, b_first, number, _ = arguments
        word = number.type
        lanes, size = _lanes(b.dtype)
        vector = ir.VectorType(context.get_data_type(b.dtype), lanes)
        vectors = WIDTH // lanes
        places = [builder.add(s_first, ir.Constant(word, v * lanes)) for v in range(runs * vectors)]
        cells = []
        for place in places:
            cell = cgutils.alloca_once(builder, vector)
            builder.store(_load(builder, _pointer(context, builder, sums, _sums, place), vector, size), cell)
            cells.append(cell)
        with cgutils.for_range(builder, number) as loop:
            for run in range(runs):
                k = builder.add(loop.index, builder.mul(number, ir.Constant(word, run)))
                factor = _splat(builder, builder.load(_pointer(context, builder, a, _a, builder.add(start, k))), vector)
                row = builder.add(b_first, builder.mul(k, ir.Constant(word, WIDTH)))
                for v in range(vectors):
                    place = builder.add(row, ir.Constant(word, v * lanes))
                    value = _load(builder, _pointer(context, builder, b, _b, place), vector, size)
                    cell = cells[run * vectors + v]
                    builder.store(_multiply_add(builder, vector, factor, value, builder.load(cell)), cell)
        for place, cell in zip(places, cells, strict=True):
            _store(builder, builder.load(cell), _pointer(context, builder, sums, _sums, place), size)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def exponent_maxima(_context: Any, largest: Any, a: Any, a_start: Any, b: Any, b_start: Any, count: Any) -> Any:
    """largest[j] = max over k of a[a_start + k] + b[b_start + k * WIDTH + j], int16, WIDTH columns, count >= 1."""
    index = types.intp
    signature = types.none(largest, a, index, b, index, index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _largest, _a, start, _b, b_first, number = arguments
        word = number.type
        vector = ir.VectorType(ir.IntType(16), WIDTH)
        maximum = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 2), f"llvm.smax.v{WIDTH}i16")
        cell = cgutils.alloca_once(builder, vector)
        builder.store(ir.Constant(vector, [-(1 << 15)] * WIDTH), cell)
        with cgutils.for_range(builder, number) as loop:
            exponent = _splat(builder, builder.load(_pointer(context, builder, a, _a, builder.add(start, loop.index))), vector)
            row = builder.add(b_first, builder.mul(loop.index, ir.Constant(word, WIDTH)))
            others = _load(builder, _pointer(context, builder, b, _b, row), vector, 2)
            builder.store(builder.call(maximum, [builder.load(cell), builder.add(exponent, others)]), cell)
        _store(builder, builder.load(cell), _pointer(context, builder, largest, _largest, ir.Constant(word, 0)), 2)
        return context.get_dummy_value()

    return signature, codegen
