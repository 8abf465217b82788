"""mma.sync: products put off until a result is read, then given to the engine as few and large ones.

A product whose C is what an earlier one wrote goes on along K in the same call; products that share A or B stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.native import NativeProduct, native_product
from mmabits.emulator.engine.record import Call
from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.memory import together
from mmabits.emulator.machine.ptx import Immediate, Operand, PtxInstruction, Register, Vector
from mmabits.emulator.machine.tensorrecords import SIGNED
from mmabits.emulator.machine.vectors import LANES, Value
from mmabits.emulator.machine.warp import Handler, WarpCode
from mmabits.isa import Lowering, MmabitsError, lower, parse
from mmabits.isa.fragments import ScaleSelectors, accumulator_layout, operand_layout, register_bits, scale_layout
from mmabits.isa.instructions import Instruction as Matrix

_BASE: Final = 4096
"""Where the frame's room for products begins; records and small vectors lie before it."""

_MOST: Final = 256
"""Kinds of products of a kernel."""


class GatheredKind(NamedTuple):
    """A product of one instruction and size: what the helper is told of it."""

    matrix: Matrix
    lowering: Lowering
    rows: int
    columns: int
    steps: int
    selectors: ScaleSelectors


@dataclass(eq=False)
class Tables:
    """Words and arrays that a kind of product needs at run time; they live as long as the kernel."""

    kind: GatheredKind
    product: NativeProduct
    shape: npt.NDArray[np.int64]
    record: npt.NDArray[np.void]
    kept: list[npt.NDArray[np.int32]]

    @property
    def words(self) -> tuple[int, int, int, int]:
        """As the context's `tables` has them."""
        return self.shape.ctypes.data, self.record.ctypes.data, self.product.address, len(Call._fields)


def tables_of(kind: GatheredKind) -> Tables:
    """What the helper needs for a kind of product."""
    matrix = kind.matrix
    product = native_product(kind.lowering)
    m, n, k = matrix.m, matrix.n, matrix.k
    layouts = operand_layout(matrix, side="a"), operand_layout(matrix, side="b"), accumulator_layout(matrix)
    kept = [layout.starts[0].astype(np.int32) for layout in layouts]
    blocks, scales = 0, [0, 0]
    if matrix.scale_type is not None:
        of_scales = [scale_layout(matrix, side=side, selectors=kind.selectors) for side in ("a", "b")]
        blocks = of_scales[0].shape[1]
        kept += [np.ascontiguousarray(layout.starts[0]).astype(np.int32) for layout in of_scales]
        scales = [each.ctypes.data for each in kept[3:]]
    held = [
        SIGNED if form.is_integer and form.sign_bits and form.code_bits < 8 else form.container_bits
        for form in (matrix.a_type, matrix.b_type)
    ]
    shape = np.array(
        [m, n, k, *(layout.words for layout in layouts), matrix.a_type.code_bits, matrix.b_type.code_bits, *held,
         matrix.d_type.container_bits,
         blocks, *(each.ctypes.data for each in kept[:3]), *scales, 0], np.int64,
    )  # fmt: skip
    shape = np.concatenate([shape, np.zeros(40 - len(shape), np.int64)])
    record = product.record(1, m * kind.rows, n * kind.columns, k * kind.steps)
    return Tables(kind, product, shape, record, kept)


@dataclass(eq=False)
class _Chain:
    """Products one after another along K."""

    matrix: Matrix
    selectors: ScaleSelectors
    c: tuple[Value, ...]
    d: tuple[Register, ...]
    a: list[tuple[Value, ...]] = field(default_factory=list)
    b: list[tuple[Value, ...]] = field(default_factory=list)
    """Fragments of A, and of B, each with its scales behind it."""


class Products:
    """What was put off in the segment that is being written."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.kinds: list[GatheredKind] = []
        self.chains: list[_Chain] = []
        self.waiting: set[Register] = set()
        self.counts: dict[Matrix, int] = {}
        """How often each instruction stands in the text."""

    def writes(self, register: Register) -> bool:
        """Whether a product that was put off writes a register."""
        return register in self.waiting

    def add(self, code: WarpCode, matrix: Matrix, selectors: ScaleSelectors, operands: list[tuple[Operand, ...]]) -> None:
        """Put off one mma.sync."""
        d, a, b, c = operands[:4]
        self.counts[matrix] = self.counts.get(matrix, 0) + 1
        targets = tuple(each for each in d if isinstance(each, Register))
        if len(targets) != len(d):
            raise code.refused("a result that is no register")
        given = tuple(each for each in c if isinstance(each, Register))
        # Reading operands may carry out what was put off: what goes on along K is looked for afterwards.
        left = tuple(code.operand(each, register_bits(matrix.a_type)) for each in a) + tuple(code.operand(each, 32) for each in operands[4])
        right = tuple(code.operand(each, register_bits(matrix.b_type)) for each in b) + tuple(
            code.operand(each, 32) for each in operands[5]
        )
        chain = self.chain_of(matrix, selectors, given)
        if chain is not None and any(each not in targets and code.program.readers[each] > 1 for each in chain.d):
            code.flush()  # a sum on the way that something else reads
            chain = None
        if chain is not None:
            self.waiting.difference_update(chain.d)
            if any(map(self.writes, targets)):
                self.waiting.update(chain.d)
                code.flush()
                chain = None
        else:
            for register in targets:
                code.settle(register)
        if chain is None:
            start = tuple(code.operand(each, register_bits(matrix.d_type)) for each in c)
            chain = _Chain(matrix, selectors, start, targets)
            self.chains.append(chain)
        chain.d = targets
        chain.a.append(left)
        chain.b.append(right)
        self.waiting.update(targets)

    def chain_of(self, matrix: Matrix, selectors: ScaleSelectors, registers: tuple[Register, ...]) -> _Chain | None:
        """What was put off and wrote these registers last."""
        for chain in self.chains:
            if chain.d == registers and chain.matrix == matrix and chain.selectors == selectors:
                return chain
        return None

    def carry_out(self, code: WarpCode) -> None:
        """Compute everything that was put off."""
        chains, self.chains, self.waiting = self.chains, [], set()
        while chains:
            first = chains[0]
            alike = [each for each in chains if (each.matrix, each.selectors, len(each.a)) == (first.matrix, first.selectors, len(first.a))]
            rows = list(dict.fromkeys(tuple(each.a) for each in alike))
            columns = list(dict.fromkeys(tuple(each.b) for each in alike))
            places = {(rows.index(tuple(each.a)), columns.index(tuple(each.b))): each for each in alike}
            if len(places) != len(alike) or len(alike) != len(rows) * len(columns):
                alike, rows, columns, places = [first], [tuple(first.a)], [tuple(first.b)], {(0, 0): first}
            chains = [each for each in chains if each not in alike]
            self.product(code, rows, columns, places)

    def product(
        self, code: WarpCode, rows: list[tuple[tuple[Value, ...], ...]], columns: list[tuple[tuple[Value, ...], ...]],
        places: dict[tuple[int, int], _Chain],
    ) -> None:  # fmt: skip
        """One product of rows x columns tiles."""
        first = places[0, 0]
        matrix, steps = first.matrix, len(first.a)
        kind = GatheredKind(matrix, lower(matrix, self.arch), len(rows), len(columns), steps, first.selectors)
        if kind not in self.kinds:
            if len(self.kinds) == _MOST:
                raise code.refused(f"more than {_MOST} kinds of products")
            self.kinds.append(kind)
        number = self.kinds.index(kind)
        has_scales = matrix.scale_type is not None
        a_size, b_size, d_size = (sum(each.bits for each in values) * LANES // 8 for values in (first.a[0], first.b[0], first.c))
        scale = 4 * LANES if has_scales else 0
        a_size, b_size = a_size - scale, b_size - scale
        at = _BASE
        places_of: dict[str, int] = {}
        m, n, k = matrix.m * len(rows), matrix.n * len(columns), matrix.k * steps
        held = matrix.a_type.container_bits // 8
        blocks = k // matrix.block if matrix.block else 0
        for name, size in (
            ("a", a_size * len(rows) * steps), ("b", b_size * len(columns) * steps), ("d", d_size * len(rows) * len(columns)),
            ("scale_a", scale * len(rows) * steps), ("scale_b", scale * len(columns) * steps), ("room_a", held * m * k),
            ("room_b", held * k * n),
            ("room_d", max(4, matrix.d_type.container_bits // 8) * m * n), ("room_sa", blocks * m), ("room_sb", blocks * n),
            ("call", 8 * len(Call._fields)),
        ):  # fmt: skip
            places_of[name] = at
            at += (size + 127) // 64 * 64
        code.reserve(at)
        for side, fragments, size in (("a", rows, a_size), ("b", columns, b_size)):
            for tile, along in enumerate(fragments):
                for step, values in enumerate(along):
                    place = places_of[side] + size * (tile * steps + step)
                    for value in values[: len(values) - has_scales]:
                        code.put_down(value, place)
                        place += value.bits * LANES // 8
                    if has_scales:
                        code.put_down(values[-1], places_of[f"scale_{side}"] + scale * (tile * steps + step))
        for (row, column), chain in places.items():
            place = places_of["d"] + d_size * (row * len(columns) + column)
            for value in chain.c:
                code.put_down(value, place)
                place += value.bits * LANES // 8
        table = code.named(f"inttoptr i64 {code.context_word('tables')} to ptr")
        shape, record, engine, count = (
            code.named(f"load i64, ptr {code.named(f'getelementptr i64, ptr {table}, i64 {4 * number + word}')}") for word in range(4)
        )
        addresses = {name: code.frame_number(place) for name, place in places_of.items()}
        code.call_helper([
            words.PRODUCT, len(rows), len(columns), steps, addresses["a"], addresses["b"], addresses["d"], addresses["scale_a"],
            addresses["scale_b"], shape, addresses["room_a"], addresses["room_b"], addresses["room_d"], addresses["room_sa"],
            addresses["room_sb"], record, engine, addresses["call"], count, number,
            "%context_number",
        ])  # fmt: skip
        for (row, column), chain in places.items():
            place = places_of["d"] + d_size * (row * len(columns) + column)
            for register in chain.d:
                code.values[register] = code.take_up(f"i{register.bits}", place)
                code.dirty.add(register)
                place += register.bits * LANES // 8


def _items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)


def _multiply(code: WarpCode, instruction: PtxInstruction) -> None:
    together(code)
    try:
        matrix = parse(instruction.opcode)
        lower(matrix, code.products.arch)
    except MmabitsError as error:
        raise code.refused(f"{instruction.opcode} ({error})") from None
    d, a, b, c, *scales = instruction.operands
    selectors = ScaleSelectors()
    more: list[tuple[Operand, ...]] = [(), ()]
    if scales:
        numbers = [each.number for vector in (scales[1], scales[3]) for each in _items(vector) if isinstance(each, Immediate)]
        if len(numbers) != 4:
            raise code.refused("a selector of scales that is no constant")
        selectors = ScaleSelectors(*numbers)
        more = [(scales[0],), (scales[2],)]
    code.products.add(code, matrix, selectors, [*map(_items, (d, a, b, c)), *more])


HANDLERS: Final[dict[str, Handler]] = {"mma": _multiply}
