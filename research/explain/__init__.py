"""`mmabits.explain`: one element of a product, from its operands to its last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import operand_type, prepare
from mmabits.emulator.codecs import as_codes
from mmabits.emulator.interop import to_numpy
from mmabits.isa import Instruction, OperandError, architecture, library_instruction
from mmabits.research.trace import Trace, trace

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """An element of a product with everything on the way to it, on one architecture and beside it on others."""

    traces: tuple[Trace, ...]
    """The architecture asked for first; every trace has the same operands."""
    row: int
    column: int

    @property
    def trace(self) -> Trace:
        """That of the architecture asked for."""
        return self.traces[0]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from mmabits.research.explain.terminal import explanation_lines

        return explanation_lines(self)

    def svg(self, step: int = 0, *, arch: str | None = None) -> str:
        """The alignment of one step, drawn to scale.

        Args:
            step: which; negative ones count from the last.
            arch: whose; None: the architecture asked for.

        Raises:
            OperandError: no such step or architecture.
        """
        from mmabits.research.explain.picture import step_picture

        found = self.on(arch)
        if isinstance(step, bool) or not isinstance(step, int) or not -len(found.steps) <= step < len(found.steps):
            raise OperandError(f"step {step} of a chain of {len(found.steps)}; allowed are 0 to {len(found.steps) - 1}")
        return step_picture(found, found.steps[step])

    def html(self) -> str:
        """A page of its own: step through K, hover a bit, switch the architecture."""
        from mmabits.research.explain.page import explanation_page

        return explanation_page(self)

    def save(self, path: str | Path) -> Path:
        """Write the page (`.html`) or the picture of the first step (`.svg`).

        Raises:
            OperandError: another ending.
        """
        from mmabits.reports.pages import write

        endings = {".html": self.html, ".svg": self.svg}
        found = endings.get(Path(path).suffix)
        if found is None:
            raise OperandError(f"an explanation is saved as .html or .svg, got {str(path)!r}")
        return write(path, found())

    def on(self, arch: str | None) -> Trace:
        """The trace of an architecture.

        Raises:
            OperandError: it is not among those explained.
            UnknownArchitecture: no such architecture.
        """
        by_arch = {found.arch: found for found in self.traces}
        if arch is None:
            return self.trace
        name = architecture(arch).name
        if name not in by_arch:
            raise OperandError(f"{arch} is not explained here; there are {', '.join(by_arch)}")
        return by_arch[name]


def explain(
    a: Any,
    b: Any,
    c: Any = None,
    *,
    instruction: str | Instruction,
    arch: str,
    scale_a: Any = None,
    scale_b: Any = None,
    promote_every: int | None = None,
    row: int = 0,
    column: int = 0,
    beside: Sequence[str] = (),
) -> Explanation:
    """Why an element of a product is what it is.

    Args:
        a: (M, K), or (K,) for a single dot product; dtypes as for `mmabits.gemm`.
        b: (K, N) or (K,).
        c: (M, N), or a number; zero if None.
        instruction: as for `mmabits.gemm`.
        arch: as for `mmabits.gemm`.
        scale_a: (M, blocks) or (blocks,) block scales.
        scale_b: (blocks, N) or (blocks,).
        promote_every: as for `mmabits.gemm`.
        row: which row of the product.
        column: which column.
        beside: other architectures to compare with; each uses the instruction its matrix libraries are taken to use.

    Returns:
        The explanation: print it (rich), or `.save("why.html")`.

    Raises:
        MmabitsError: as `mmabits.gemm`; OperandError for a row or column that is not there.
    """
    left, right = _matrix(a, "a", 0), _matrix(b, "b", 1)
    scales: tuple[Any, ...] = tuple(
        None if scale is None else _matrix(scale, name, side) for scale, name, side in ((scale_a, "scale_a", 0), (scale_b, "scale_b", 1))
    )
    held = _accumulators(c, (left.shape[0], right.shape[1]), operand_type(left, "a"))
    for name, index, size in (("row", row, left.shape[0]), ("column", column, right.shape[1])):
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
            raise OperandError(f"{name} must be an integer, got {index!r}")
        if not size:
            raise OperandError(f"a product of {left.shape[0]} x {right.shape[1]} has no element to explain")
        if not -size <= index < size:
            raise OperandError(f"{name} {index} of a product of {left.shape[0]} x {right.shape[1]}; allowed are 0 to {size - 1}")
    first = _traced(left, right, held, scales, instruction, arch, promote_every, row, column)
    others = []
    for name in beside:
        scale = None if first.instruction.scale_type is None else first.instruction.scale_type.name
        row_there = library_instruction(
            name, operand_type(left, "a"), operand_type(right, "b"), c_type=first.instruction.c_type.name, scale_type=scale
        )
        others.append(_traced(left, right, held, scales, row_there, name, promote_every, row, column))
    return Explanation(traces=(first, *others), row=row, column=column)


def _traced(
    a: npt.NDArray[Any], b: npt.NDArray[Any], c: npt.NDArray[Any] | None, scales: tuple[Any, ...], instruction: str | Instruction,
    arch: str, promote_every: int | None, row: int, column: int,
) -> Trace:  # fmt: skip
    call = prepare(
        a, b, c, instruction=instruction, arch=arch, scale_a=scales[0], scale_b=scales[1], promote_every=promote_every
    )  # fmt: skip
    kind = call.instruction
    codes = as_codes(call.a[row], kind.a_type), as_codes(np.ascontiguousarray(call.b[:, column]), kind.b_type)
    start = 0 if call.c is None else int(np.ascontiguousarray(call.c).view(f"uint{8 * call.c.dtype.itemsize}")[row, column])
    given: dict[str, Any] = {}
    if call.scale_a is not None and call.scale_b is not None:
        given = {"scale_a": call.scale_a.view(np.uint8)[row], "scale_b": np.ascontiguousarray(call.scale_b[:, column]).view(np.uint8)}
    return trace(kind, call.lowering.arch, *codes, start, promote_every=call.promote, **given)


def _matrix(operand: Any, name: str, side: int) -> npt.NDArray[Any]:
    """A matrix, also of a vector: a row of A or a column of B."""
    dimensions = getattr(operand, "ndim", 0)
    array = to_numpy(operand, name, packed_along=-1 if side == 0 or dimensions < 2 else -2)[0]
    if array.ndim == 1:
        return array[None, :] if side == 0 else array[:, None]
    if array.ndim != 2:
        raise OperandError(f"{name} must be a vector or a matrix, got shape {array.shape}")
    return array


def _accumulators(c: Any, shape: tuple[int, int], a_type: str) -> npt.NDArray[Any] | None:
    """C as a matrix, also of a number, which has the accumulator type that A's elements usually go with."""
    if c is None:
        return None
    if np.ndim(c) == 0:
        usual = {"f64": np.float64, "s8": np.int32, "u8": np.int32, "s4": np.int32, "u4": np.int32}.get(a_type, np.float32)
        try:
            with np.errstate(over="raise"):
                return np.full(shape, c, c.dtype if isinstance(c, np.generic) else usual)
        except (ArithmeticError, TypeError, ValueError):
            raise OperandError(f"c must be a matrix or a number that fits {np.dtype(usual)}, got {c!r}") from None
    return to_numpy(c, "c")[0]


__all__ = ["Explanation", "explain"]
