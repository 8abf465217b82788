"""Operands to measure on: plain ones, and those that make a shortcut for plain ones fall back."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.paths import BenchPath
from mmabits.emulator.codecs import as_codes, from_codes, numpy_dtype
from mmabits.isa import FormatSpec

Array = npt.NDArray[Any]
SEED = 20251121


class Data(enum.Enum):
    """Distributions of the elements of A and B (and of their block scales)."""

    PLAIN = "plain"
    """Normal values of standard deviation 1, or a quarter of the format's range where that is less than 100."""
    WIDE = "wide exponents"
    """Every finite code equally likely, so the exponents are uniform over the format, up to where the sum could overflow."""
    RAW = "raw bits"
    """Every code equally likely, infinities and NaN with the rest."""
    RARE = "rare specials"
    """Finite codes with an infinity or a NaN in few of them: about two outputs of three meet one."""
    ZEROS = "90 % zeros"
    """Plain values, nine of ten replaced by a zero of either sign."""


HARD = tuple(kind for kind in Data if kind is not Data.PLAIN)


@dataclass(frozen=True, kw_only=True)
class Operands:
    """A (M, K), B (K, N) and their block scales (M, blocks), (blocks, N), in the dtypes that mmabits.gemm takes."""

    a: Array
    b: Array
    scale_a: Array | None = None
    scale_b: Array | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, N, K."""
        return self.a.shape[0], self.b.shape[1], self.a.shape[1]

    @property
    def products(self) -> int:
        """M N K."""
        m, n, k = self.shape
        return m * n * k


def kinds_of(path: BenchPath) -> tuple[Data, ...]:
    """The distributions that differ for a path: integers have no exponents, small formats no infinities or NaN."""
    form = path.instruction.a_type
    if form.is_integer:
        return Data.PLAIN, Data.RAW, Data.ZEROS
    has_specials = form.has_nan or path.scale is not None
    return tuple(kind for kind in Data if kind is not Data.RARE or has_specials)


def draw(path: BenchPath, kind: Data, m: int, n: int, k: int) -> Operands:
    """Operands of a path; the same for the same arguments.

    Args:
        path: what they are for.
        kind: their distribution.
        m: rows of A.
        n: columns of B.
        k: length of the sum, a multiple of the block size where there are block scales.
    """
    rng = np.random.default_rng([SEED, zlib.crc32(f"{path.id} {kind.value} {m} {n} {k}".encode())])
    row = path.instruction
    room = row.d_type.max_exponent - k.bit_length() - 2 if not row.d_type.is_integer else 0
    a, b = (elements(kind, form, shape, rng, k, room // 2) for form, shape in ((row.a_type, (m, k)), (row.b_type, (k, n))))
    if row.scale_type is None or row.block is None:
        return Operands(a=a, b=b)
    blocks = -(-k // row.block)
    room = (room - row.a_type.max_exponent - row.b_type.max_exponent) // 2
    scale_a, scale_b = (elements(kind, row.scale_type, shape, rng, blocks, room) for shape in ((m, blocks), (blocks, n)))
    return Operands(a=a, b=b, scale_a=scale_a, scale_b=scale_b)


def elements(kind: Data, form: FormatSpec, shape: tuple[int, int], rng: np.random.Generator, length: int, highest: int) -> Array:
    """A matrix of one distribution in the format's own dtype.

    Args:
        kind: the distribution.
        form: the format.
        shape: of the matrix.
        rng: where the draws come from.
        length: how many of its elements one output meets.
        highest: the largest exponent of `WIDE` and `RARE`.
    """
    match kind:
        case Data.PLAIN:
            return _plain(form, shape, rng)
        case Data.WIDE:
            return from_codes(_finite_codes(form, shape, rng, highest), form)
        case Data.RAW:
            return from_codes(_uniform(form, shape, rng), form)
        case Data.RARE:
            return from_codes(_rare(form, shape, rng, length, highest), form)
        case Data.ZEROS:
            return _zeros(form, shape, rng)


def _plain(form: FormatSpec, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    if form.name == "ue8m0":  # block scales of normal data differ by a few binades
        return from_codes(rng.integers(form.bias - 2, form.bias + 3, shape, dtype=np.uint8), form)
    spread = 1.0 if form.max_finite >= 100 and not form.is_integer else form.max_finite / 4
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(spread)
    if form.scale_only:
        values = np.abs(values) + np.float32(0.25)
    largest = np.float32(min(form.max_finite, float(np.finfo(np.float32).max)))
    values = np.clip(values, -largest, largest)
    whole: Array = np.rint(values) if form.is_integer else values
    return whole.astype(numpy_dtype(form))


def _code_dtype(form: FormatSpec) -> np.dtype[Any]:
    return np.dtype(f"uint{form.container_bits}")


def _uniform(form: FormatSpec, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    codes: Array = rng.integers(0, form.codes - 1, shape, dtype=_code_dtype(form).type, endpoint=True)
    return codes


def _finite_codes(form: FormatSpec, shape: tuple[int, int], rng: np.random.Generator, highest: int) -> Array:
    dtype = _code_dtype(form)
    below_next = ((highest + form.bias + 1) << (form.fraction_bits + form.ignored_low_bits)) - 1
    magnitudes = rng.integers(0, min(below_next, form.max_finite_magnitude), shape, dtype=dtype.type, endpoint=True)
    negative = rng.integers(0, 2, shape, dtype=np.uint8).astype(dtype)
    codes: Array = magnitudes | negative * dtype.type(form.sign_mask)
    return codes.astype(dtype)


def _rare(form: FormatSpec, shape: tuple[int, int], rng: np.random.Generator, length: int, highest: int) -> Array:
    codes = _finite_codes(form, shape, rng, highest)
    specials = [code for code in (form.infinity, form.nan) if code is not None]
    if specials:
        specials += [code | form.sign_mask for code in specials]
        chosen = rng.random(shape, dtype=np.float32) < 0.5 / length
        codes[chosen] = rng.choice(np.array(specials, codes.dtype), int(chosen.sum()))
    return codes


def _zeros(form: FormatSpec, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    codes = as_codes(_plain(form, shape, rng).view(_code_dtype(form)), form).copy()
    if form.has_zero and not form.scale_only:
        chosen = rng.random(shape, dtype=np.float32) < 0.9
        signs = rng.integers(0, 2, shape, dtype=np.uint8).astype(codes.dtype)
        codes[chosen] = 0 if form.is_integer else (signs * codes.dtype.type(form.sign_mask))[chosen]
    return from_codes(codes, form)


def tiled(path: BenchPath, size: int) -> Operands:
    """Plain operands of size^3 without a large temporary: 64 lines drawn, then repeated."""
    few = draw(path, Data.PLAIN, 64, 64, size)

    def rows(part: Array | None) -> Any:
        return None if part is None else _repeat(part, (size, part.shape[1]))

    def columns(part: Array | None) -> Any:
        return None if part is None else _repeat(part, (part.shape[0], size))

    return Operands(a=rows(few.a), b=columns(few.b), scale_a=rows(few.scale_a), scale_b=columns(few.scale_b))


def _repeat(part: Array, shape: tuple[int, int]) -> Array:
    whole = np.empty(shape, part.dtype)
    for i in range(0, shape[0], part.shape[0]):
        for j in range(0, shape[1], part.shape[1]):
            target = whole[i : i + part.shape[0], j : j + part.shape[1]]
            target[...] = part[: target.shape[0], : target.shape[1]]
    return whole


def matmul_operands(m: int, n: int, k: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Plain f32 operands for NumPy's matmul, (M, K) and (K, N)."""
    rng = np.random.default_rng([SEED, m, n, k])
    return rng.standard_normal((m, k), dtype=np.float32), rng.standard_normal((k, n), dtype=np.float32)


Call = Callable[[], Any]


def gemm_call(path: BenchPath, operands: Operands) -> Call:
    """The call to be measured."""
    import mmabits

    def call() -> Any:
        return mmabits.gemm(
            operands.a, operands.b, instruction=path.instruction, arch=path.arch, scale_a=operands.scale_a, scale_b=operands.scale_b,
            promote_every=path.promote_every,
        )  # fmt: skip

    return call
