"""Whole tiles of operands as codes, what the emulator makes of them, and operands on which every datapath must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.recorded.files import check_codes
from mmabits.emulator.api import gemm, mma
from mmabits.emulator.codecs import CVT_ROUNDINGS, as_codes, decode, encode, from_codes
from mmabits.isa.errors import OperandError
from mmabits.isa.formats import FormatSpec
from mmabits.isa.instructions import Instruction

Codes = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class TileOperands:
    """The operands of independent tiles, as codes: unsigned integers as wide as the container of their format."""

    a: Codes
    """(tiles, M, K); K is that of the instruction, or of a chain of them."""
    b: Codes
    """(tiles, K, N)."""
    c: Codes
    """(tiles, M, N)."""
    scale_a: Codes | None = None
    """(tiles, M, K / block)."""
    scale_b: Codes | None = None
    """(tiles, K / block, N)."""

    @property
    def tiles(self) -> int:
        """How many there are."""
        return len(self.a)

    def part(self, start: int, stop: int) -> TileOperands:
        """Some of the tiles."""
        rows = slice(start, stop)
        return TileOperands(
            a=self.a[rows], b=self.b[rows], c=self.c[rows], scale_a=None if self.scale_a is None else self.scale_a[rows],
            scale_b=None if self.scale_b is None else self.scale_b[rows],
        )  # fmt: skip

    def named(self) -> Iterator[tuple[str, Codes | None]]:
        """Every operand with its name."""
        for name in ("a", "b", "c", "scale_a", "scale_b"):
            yield name, getattr(self, name)


Generator = Callable[[Instruction, str, int, int], TileOperands]
"""(instruction, architecture, tiles, seed) to the operands of as many tiles, each of one instruction; always the same for a seed."""


def operand_formats(instruction: Instruction, *, chain: int = 1) -> Iterator[tuple[str, FormatSpec, tuple[int, int]]]:
    """Name, format and shape of each operand of one tile."""
    m, n, k = instruction.m, instruction.n, instruction.k * chain
    yield "a", instruction.a_type, (m, k)
    yield "b", instruction.b_type, (k, n)
    yield "c", instruction.c_type, (m, n)
    if instruction.scale_type is not None and instruction.block is not None:
        yield "scale_a", instruction.scale_type, (m, k // instruction.block)
        yield "scale_b", instruction.scale_type, (k // instruction.block, n)


def check_operands(instruction: Instruction, operands: TileOperands, *, chain: int = 1) -> None:
    """Whether operands are what the instruction takes.

    Raises:
        OperandError: a missing or superfluous operand, another dtype or shape, a code that the format does not have.
    """
    wanted = {name: (spec, shape) for name, spec, shape in operand_formats(instruction, chain=chain)}
    for name, codes in operands.named():
        if (codes is None) != (name not in wanted):
            raise OperandError(f"{name} is {'missing' if codes is None else 'superfluous'} for {instruction}")
        if codes is not None:
            check_codes(name, codes, wanted[name][0], (operands.tiles, *wanted[name][1]))


def emulate_tiles(instruction: Instruction, arch: str, operands: TileOperands) -> Codes:
    """What the emulator computes of tiles.

    Args:
        instruction: the instruction.
        arch: architecture.
        operands: of one instruction each, or of a chain along K.

    Returns:
        (tiles, M, N) codes of D.

    Raises:
        MmabitsError: as `mmabits.mma`.
    """
    run = mma if operands.a.shape[-1] == instruction.k else gemm
    scale_a, scale_b = (_scales(codes, instruction.scale_type) for codes in (operands.scale_a, operands.scale_b))
    d = run(
        a=from_codes(operands.a, instruction.a_type), b=from_codes(operands.b, instruction.b_type),
        c=from_codes(operands.c, instruction.c_type), instruction=instruction, arch=arch, scale_a=scale_a, scale_b=scale_b,
    )  # fmt: skip
    return as_codes(d, instruction.d_type)


def _scales(codes: Codes | None, spec: FormatSpec | None) -> Codes | None:
    return None if codes is None or spec is None else from_codes(codes, spec)


def encoded(values: npt.NDArray[Any], spec: FormatSpec) -> Codes:
    """Values rounded to a format the first way it has (ue8m0 knows no nearest even)."""
    return encode(values, spec, rounding=CVT_ROUNDINGS[spec.name][0])


def diagonal_tiles(instruction: Instruction, dots: TileOperands, tiles: int) -> TileOperands:
    """Tiles with independent dot products on the diagonals of D.

    Dot product i of a tile takes row i of A and column i of B, so that a tile holds as many as its shorter side. Rows and columns past
    the diagonal hold operands of the dot products that come next, and each row of C is filled with one accumulator: what else stands in
    D comes from operands of the same kind, mixed.

    Args:
        instruction: whose tiles.
        dots: n dot products as codes: a and b (n, K), c (n,), scales (n, K / block); taken again from the first where they do not suffice.
        tiles: how many.
    """
    first = np.arange(tiles)[:, None] * min(instruction.m, instruction.n)
    rows, columns = ((first + np.arange(size)) % len(dots.c) for size in (instruction.m, instruction.n))

    def turned(codes: Codes | None) -> Codes | None:
        return None if codes is None else np.ascontiguousarray(np.swapaxes(codes[columns], 1, 2))

    b = turned(dots.b)
    if b is None:
        raise OperandError("b cannot be missing")
    return TileOperands(
        a=dots.a[rows], b=b, c=np.repeat(dots.c[rows][:, :, None], instruction.n, axis=2),
        scale_a=None if dots.scale_a is None else dots.scale_a[rows], scale_b=turned(dots.scale_b),
    )  # fmt: skip


def diagonals(d: Codes) -> Codes:
    """The results of `diagonal_tiles`, tile by tile: (tiles * shorter side,)."""
    return np.ascontiguousarray(np.diagonal(d, axis1=1, axis2=2)).reshape(-1)


def join_chain(parts: TileOperands, chain: int) -> TileOperands:
    """Operands of `chain` times as many tiles as tiles with `chain` times the K; C is that of the first of each."""
    if chain == 1:
        return parts

    def along(codes: Codes | None, axis: int) -> Codes | None:
        return None if codes is None else np.concatenate([codes[number::chain] for number in range(chain)], axis=axis)

    a, b = along(parts.a, 2), along(parts.b, 1)
    if a is None or b is None:
        raise OperandError("a and b cannot be missing")
    return TileOperands(a=a, b=b, c=parts.c[::chain], scale_a=along(parts.scale_a, 2), scale_b=along(parts.scale_b, 1))


# Operands that settle whether a kernel multiplies the matrices it was given ------------------------------------------------

_SMALL: Final = (0.0, 1.0, 2.0)
_LARGEST_C: Final = 8


def exact_operands(instruction: Instruction, arch: str, tiles: int, seed: int) -> TileOperands:
    """Small integers, and scales 1 and 2: sums so small that every datapath, known or not, must get them exactly."""
    rng = np.random.default_rng([seed, tiles])
    made: dict[str, Codes] = {}
    for name, spec, shape in operand_formats(instruction):
        size = (tiles, *shape)
        if name.startswith("scale"):
            values = rng.choice(np.array([1.0, 2.0]), size)
        elif name == "c":
            values = rng.integers(-_LARGEST_C, _LARGEST_C + 1, size) * 2.0**instruction.scale_input_d
        else:
            signs = (1.0, -1.0) if spec.sign_bits else (1.0,)
            values = rng.choice(np.array(_SMALL), size) * rng.choice(np.array(signs), size)
        made[name] = encoded(values, spec)
    return TileOperands(**made)


def exact_result(instruction: Instruction, operands: TileOperands) -> Codes:
    """The codes of D for `exact_operands` and chains of them, by plain float64 arithmetic, which is exact there.

    Returns:
        (tiles, M, N) codes.
    """
    a, b = decode(operands.a, instruction.a_type), decode(operands.b, instruction.b_type)
    if operands.scale_a is not None and operands.scale_b is not None and instruction.scale_type is not None and instruction.block:
        a = a * np.repeat(decode(operands.scale_a, instruction.scale_type), instruction.block, axis=2)
        b = b * np.repeat(decode(operands.scale_b, instruction.scale_type), instruction.block, axis=1)
    if instruction.negate_a != instruction.negate_b:
        a = -a
    total = decode(operands.c, instruction.c_type) * (1.0 if instruction.scale_d else 0.0)
    for start in range(0, a.shape[2], instruction.k):
        total = total * 2.0**-instruction.scale_input_d + a[:, :, start : start + instruction.k] @ b[:, start : start + instruction.k]
    return encode(total + 0.0, instruction.d_type)
