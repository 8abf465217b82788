"""Where the error of a product comes from, one cause at a time, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import gemm, operand_type, scale_type
from mmabits.emulator.engine.fma import fma
from mmabits.emulator.interop import to_numpy
from mmabits.isa import (
    Arithmetic,
    Instruction,
    OperandError,
    OperandTypeError,
    architecture,
    library_instruction,
    lower,
    resolve,
    what_if,
)
from mmabits.research.study.recipes import Doubles, Recipe, Stored, recipe_named

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

WIDE: Final = {Arithmetic.FUSED: 40, Arithmetic.GROUPED: 38}
"""Fraction bits at which alignment cuts off next to nothing, and that the engine still keeps exact."""
_RESAMPLES: Final = 400


@dataclass(frozen=True, kw_only=True)
class Part:
    """One cause of error. Sizes are root mean squares over all elements, relative to that of the exact product."""

    cause: str
    error: float
    low: float
    high: float
    """Ends of the 95 % confidence interval over samples (rows of A)."""
    largest: float
    """The largest single error, relative to the same."""
    bias: float
    """Mean error in the direction of the exact result, relative to its mean magnitude: negative means results too small."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The parts of a product's error. `parts` sum to `total` element by element; `switched` are changes of one thing at a time."""

    recipe: str
    arch: str
    instruction: str
    shape: tuple[int, int, int]
    promote_every: int | None
    total: Part
    parts: tuple[Part, ...]
    switched: tuple[Part, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each part, for tables: what was studied, then the figures."""
        m, n, k = self.shape
        about = {
            "recipe": self.recipe, "arch": self.arch, "instruction": self.instruction, "m": m, "n": n, "k": k,
            "promote_every": self.promote_every or 0,
        }  # fmt: skip
        kinds = (("total", (self.total,)), ("part", self.parts), ("switched", self.switched))
        return [{**about, "kind": kind, **asdict(part)} for kind, parts in kinds for part in parts]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.table import Table

        m, n, k = self.shape
        promoted = f", promoted every {self.promote_every}" if self.promote_every else ""
        table = Table(title=f"{self.recipe} on {self.arch}, {m} x {n} x {k}{promoted}: {self.instruction}", title_justify="left")
        for heading in ("cause", "error", "95 % interval", "largest", "bias"):
            table.add_column(heading, justify="left" if heading == "cause" else "right")
        for part in (*self.parts, self.total, *self.switched):
            style = "bold" if part is self.total else None
            interval = f"{part.low:.2e} .. {part.high:.2e}"
            table.add_row(part.cause, f"{part.error:.2e}", interval, f"{part.largest:.1e}", f"{part.bias:+.1e}", style=style)
        yield table


def study(
    a: Any, b: Any, *, recipe: str | Recipe = "fp8", arch: str = "sm_90a",
    instruction: str | Instruction | None = None, promote_every: int | None = None, seed: int = 0,
) -> Budget:  # fmt: skip
    """How much of a product's error comes from what.

    The parts, which add up to the whole: quantizing A, quantizing B, both together beyond that, the accumulator's rounding, the
    truncation of the alignment. Then what changes if one thing is switched: another order of K, promotion, no promotion.

    Args:
        a: (M, K) float32 activations, NumPy, torch or JAX; rows are the samples of the confidence intervals.
        b: (K, N) float32 weights.
        recipe: a name in `mmabits.research.study.RECIPES`, or a Recipe.
        arch: architecture, or a name that `what_if` was given.
        instruction: as for `mmabits.gemm`; None: what matrix libraries are taken to use.
        promote_every: as for `mmabits.gemm`.
        seed: of the resampling and of the other order of K.

    Returns:
        The budget. Its reference is the product of the float32 matrices in float64.

    Raises:
        OperandTypeError, OperandError: not two float32 matrices that fit; a K that the recipe's blocks do not divide; values that
            are not finite, or are not once stored or multiplied.
        UnsupportedInstruction: the architecture has no instruction for what the recipe stores.
    """
    left, right = _checked(a, "a"), _checked(b, "b")
    if left.shape[1] != right.shape[0]:
        raise OperandError(f"a has K = {left.shape[1]} (shape {left.shape}) and b has K = {right.shape[0]} (shape {right.shape})")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise OperandError(f"seed must be an integer from 0 upward, got {seed!r}")
    how = recipe_named(recipe)
    stored_a, stored_b = how.quantize(left, -1), how.quantize(right, 0)
    for name, stored in (("a", stored_a), ("b", stored_b)):
        if not np.isfinite(stored.values).all():
            raise OperandError(f"{name} has values that recipe {how.name} cannot store: they become infinities or NaN")
    product = _VariedProduct(stored_a, stored_b, instruction, arch, promote_every, how.block)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    rounded_a, rounded_b = stored_a.values - left, stored_b.values - right
    by_a, by_b = rounded_a @ right.astype(np.float64), left.astype(np.float64) @ rounded_b
    both = stored_a.values @ stored_b.values - exact - by_a - by_b
    result, wide = product(), product(arch=product.wide)
    if not (np.isfinite(result).all() and np.isfinite(wide).all()):
        raise OperandError(f"the product overflows {product.instruction.d_type.name}: an error that is not finite has no parts")
    accumulator = wide - stored_a.values @ stored_b.values
    measure = _Measure(exact, seed)
    order = np.random.default_rng(seed).permutation(left.shape[1] // how.block)
    return Budget(
        recipe=how.name, arch=arch, instruction=product.instruction.ptx, shape=(*exact.shape, left.shape[1]), promote_every=promote_every,
        total=measure("all of it", result - exact),
        parts=(
            measure("quantization of A", by_a), measure("quantization of B", by_b), measure("both quantized, beyond that", both),
            measure("accumulator's rounding", accumulator), measure("alignment's truncation", result - wide),
        ),
        switched=(
            measure("another order of K changes it by", product(order=order) - result),
            *(() if product.is_in_parts else _switched_promotion(product, measure, result, promote_every)),
        ),
    )  # fmt: skip


def _checked(matrix: Any, name: str) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = to_numpy(matrix, name)[0]
    if array.dtype != np.float32:
        raise OperandTypeError(f"{name} must be of float32, got {array.dtype}")
    if array.ndim != 2 or not array.size:
        raise OperandError(f"{name} must be a matrix with elements, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise OperandError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}: an error of what is not finite has no parts")
    return array


def _switched_promotion(product: _VariedProduct, measure: _Measure, result: Doubles, promote_every: int | None) -> Iterator[Part]:
    if product.instruction.d_type.name != "f32":
        return
    if promote_every:
        yield measure("without promotion it changes by", product(promote_every=None) - result)
    else:
        yield measure("promotion every 128 changes it by", product(promote_every=128) - result)


class _VariedProduct:
    """A stored product, computed in variations."""

    def __init__(
        self, a: Stored, b: Stored, instruction: str | Instruction | None, arch: str, promote_every: int | None, block: int
    ) -> None:  # fmt: skip
        self.a, self.b, self.arch, self.promote_every, self.block = a, b, arch, promote_every, block
        types = operand_type(a.elements, "a"), operand_type(b.elements, "b")
        scale = None if a.scales is None else scale_type(a.scales)
        if instruction is None:
            self.instruction = library_instruction(arch, *types, scale_type=scale)
        else:
            self.instruction = resolve(instruction, arch=arch, a_type=types[0], b_type=types[1], scale_type=scale)
        path = lower(self.instruction, arch).datapath
        if path.arithmetic not in (*WIDE, Arithmetic.INTEGER):
            raise OperandError(f"{path.name} has no alignment to study")
        self.wide = _wide(arch) if path.arithmetic in WIDE else arch  # integer sums are exact as they are

    def __call__(
        self, *, arch: str | None = None, order: npt.NDArray[np.int64] | None = None, promote_every: int | None = -1
    ) -> Doubles:  # fmt: skip
        """The product in float64, the recipe's factors applied."""
        a, b = (self.a, self.b) if order is None else (_reordered(self.a, order, self.block, 1), _reordered(self.b, order, self.block, 0))
        every = self.promote_every if promote_every == -1 else promote_every
        d = (self._in_parts if self.is_in_parts else self._at_once)(a, b, arch or self.arch, every)
        return np.asarray(d * (self.a.factor * self.b.factor))

    @property
    def is_in_parts(self) -> bool:
        """Whether kernels scale partial sums."""
        return self.a.parts is not None or self.b.parts is not None

    def _multiplied(self, a: Stored, b: Stored, arch: str, every: int | None, part: slice) -> npt.NDArray[Any]:
        return np.asarray(
            gemm(
                np.ascontiguousarray(a.elements[:, part]), b.elements[part], instruction=self.instruction, arch=arch, promote_every=every,
                scale_a=a.scales, scale_b=b.scales,
            )
        )  # fmt: skip

    def _at_once(self, a: Stored, b: Stored, arch: str, every: int | None) -> Doubles:
        sums = self._multiplied(a, b, arch, every, slice(None)).astype(np.float64)
        if a.zeros is not None or b.zeros is not None:
            over_b, over_a = b.elements.astype(np.int64).sum(axis=0, keepdims=True), a.elements.astype(np.int64).sum(axis=1, keepdims=True)
            zero_a, zero_b = (0 if each is None else each for each in (a.zeros, b.zeros))
            sums = sums - zero_a * over_b - zero_b * over_a + a.elements.shape[1] * zero_a * zero_b
        return np.asarray(sums)

    def _in_parts(self, a: Stored, b: Stored, arch: str, every: int | None) -> Doubles:
        total = np.zeros((len(a.elements), b.elements.shape[1]), np.float32)
        for number, start in enumerate(range(0, a.elements.shape[1], self.block)):
            sums = self._multiplied(a, b, arch, every, slice(start, start + self.block))
            left = np.float32(1) if a.parts is None else a.parts[:, number, None]
            right = np.float32(1) if b.parts is None else b.parts[number]
            with np.errstate(over="ignore", under="ignore"):
                total = fma(sums, np.broadcast_to(np.asarray(left * right, np.float32), sums.shape), total)
        return total.astype(np.float64)


def _reordered(stored: Stored, order: npt.NDArray[np.int64], block: int, axis: int) -> Stored:
    """The same matrix with its blocks of K, which lies along `axis`, in another order."""
    elements = (order[:, None] * block + np.arange(block)).reshape(-1)
    scales, parts = (None if each is None else np.take(each, order, axis=axis) for each in (stored.scales, stored.parts))
    return replace(stored, elements=np.take(stored.elements, elements, axis=axis), scales=scales, parts=parts)


def _wide(arch: str) -> str:
    """An architecture like this one whose alignment cuts off next to nothing."""
    base = architecture(arch)
    if base.base:
        raise OperandError(f"study takes real architectures; {arch!r} is made by what_if. Compare two of those with gemm")
    name = f"{arch} without truncation"
    rows = _fraction_bits(arch)
    what_if(name, base=arch, rows=rows)
    return name


def _fraction_bits(arch: str) -> dict[str, dict[str, int]]:
    from mmabits.isa import DATAPATHS

    found = [row for row in DATAPATHS.values() if row.arch == arch and row.arithmetic in WIDE]
    return {row.part: {"fraction_bits": WIDE[row.arithmetic]} for row in found}


class _Measure:
    """Errors to figures, relative to one exact product."""

    def __init__(self, exact: Doubles, seed: int) -> None:
        self.exact = exact
        self.scale = float(np.sqrt((exact**2).mean())) or 1.0
        rows = len(exact)
        self.samples = np.random.default_rng(seed).integers(0, rows, (_RESAMPLES, rows)) if rows > 1 else None

    def __call__(self, cause: str, error: Doubles) -> Part:
        squares = (error**2).mean(axis=1)
        size = float(np.sqrt(squares.mean())) / self.scale
        low = high = size
        if self.samples is not None:
            references = (self.exact**2).mean(axis=1)
            again = np.sqrt(squares[self.samples].mean(axis=1) / np.maximum(references[self.samples].mean(axis=1), 1e-300))
            low, high = (float(value) for value in np.quantile(again, (0.025, 0.975)))
        mean = float(np.abs(self.exact).mean()) or 1.0
        return Part(
            cause=cause, error=size, low=low, high=high, largest=float(np.abs(error).max()) / self.scale,
            bias=float((error * np.sign(self.exact)).mean()) / mean,
        )  # fmt: skip
