"""What ptxas contracts: products whose every use is a sum become fused multiply-adds; and what it computes of constants.

The rules are rows of isa/contraction.py, found by disassembly; machine/sass.py compares them with the machine code of a kernel. Nothing
with a rounding of its own (`.rn`) takes part.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from mmabits.emulator.machine.program import base_of, read, results_of, written
from mmabits.emulator.machine.ptx import Entry, Immediate, Negative, Operand, PtxInstruction, Register, Symbol, Vector, registers_of
from mmabits.isa.contraction import CONTRACTIONS, ContractionSpec
from mmabits.isa.opcodes import OpcodeKind, opcode_table

_SUMS: Final = ("add", "sub")
_ENDS: Final = ("bra", "brx", "ret", "exit", "trap")
_TYPES: Final = ("f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64")
_QUARTER, _LIFT, _ONE = Immediate(0x3E80_0000, "f32"), Immediate(0x4B80_0000, "f32"), Immediate(0x3F80_0000, "f32")
_LARGE, _SMALL = Immediate(0x7E80_0000, "f32"), Immediate(0x0080_0000, "f32")
"""2^126 and 2^-126: beyond them ptxas scales what goes into the special function unit."""


class Root(NamedTuple):
    """A value: the instruction that made it, and which of its results it is."""

    place: int
    part: int = 0


class Use(NamedTuple):
    """A value read by an instruction, by whatever copies."""

    place: int
    """Of the reader; -1 of one in another block."""
    operand: int = 0
    minus: bool = False


def _is_sum(instruction: PtxInstruction) -> bool:
    row = opcode_table().get(instruction.opcode)
    return row is not None and row.fusible and row.base in _SUMS and row.parts[-2:-1] != ("f32",)


def _is_product(instruction: PtxInstruction, rule: ContractionSpec) -> bool:
    row = opcode_table().get(instruction.opcode)
    if row is None or instruction.guard is not None or "sat" in row.parts or not instruction.opcode.startswith(rule.products):
        return False
    return row.fusible if row.base == "mul" else row.parts[-1] == "f32"


def _rest(opcode: str) -> str:
    """Flushing and type, which a product and its sum must share."""
    return ".".join(word for word in opcode.split(".") if word in ("ftz", *_TYPES))


# ----------------------------------------------------------------------------------------------------------------- the values


@dataclass(eq=False)
class _Values:
    """Which value each instruction reads, inside the basic blocks of a kernel."""

    instructions: Sequence[PtxInstruction]
    rule: ContractionSpec
    reads: list[dict[Register, int]] = field(default_factory=list)
    """Of each instruction: the places, in its block, where the registers that it reads were written last."""
    leaving: list[tuple[int, Register]] = field(default_factory=list)
    """What blocks write last of registers that another block may read."""
    writes: dict[Register, list[int]] = field(default_factory=lambda: defaultdict(list))
    uses: dict[Root, list[Use]] = field(default_factory=lambda: defaultdict(list))
    needed: set[int] = field(default_factory=set)
    """Instructions that something rests on."""

    def root(self, register: Register, place: int) -> tuple[Root | None, bool]:
        """The value that an instruction reads from a register, past copies, and whether its sign was turned; None from elsewhere."""
        at = self.reads[place].get(register)
        return (None, False) if at is None else self.made(at, register)

    def made(self, at: int, register: Register) -> tuple[Root, bool]:
        """The value that an instruction writes to a register, likewise."""
        instruction = self.instructions[at]
        source = self.copied(instruction)
        if source is not None:
            root, minus = self.root(source, at)
            return (Root(at), False) if root is None else (root, minus != (base_of(instruction.opcode) == "neg"))
        results = [each for operand in results_of(instruction) for each in registers_of(operand)]
        part = results.index(register) if register in results else 0
        item = self.unpacked(at, part)
        if item is not None:
            root, minus = self.root(*item)
            if root is not None:
                return root, minus
        return Root(at, part), False

    def copied(self, instruction: PtxInstruction) -> Register | None:
        """The source of a copy, if it is one."""
        if instruction.guard is not None or base_of(instruction.opcode) not in self.rule.copies or len(instruction.operands) != 2:
            return None
        target, source = instruction.operands
        if isinstance(target, Register) and isinstance(source, Register) and target.bits == source.bits and not source.negated:
            return source
        return None

    def unpacked(self, at: int, part: int) -> tuple[Register, int] | None:
        """The register, and the instruction that packs it, whose value is part of what a `mov` takes apart."""
        target, source = (*self.instructions[at].operands, None, None)[:2]
        if not self._moves_pair(at) or not isinstance(target, Vector) or not isinstance(source, Register):
            return None
        packed = self.reads[at].get(source)
        if packed is None or not self.packs(packed):
            return None
        items = self.instructions[packed].operands[1]
        found = items.items[part] if isinstance(items, Vector) and len(items.items) == len(target.items) else None
        return (found, packed) if isinstance(found, Register) else None

    def hands_on(self, at: int) -> bool:
        """Whether an instruction only copies, or takes a pair apart that was put together in its block."""
        return self.copied(self.instructions[at]) is not None or self.unpacked(at, 0) is not None

    def packs(self, at: int) -> bool:
        """Whether an instruction puts a pair together."""
        return self._moves_pair(at) and isinstance(self.instructions[at].operands[1], Vector)

    def _moves_pair(self, at: int) -> bool:
        instruction = self.instructions[at]
        return self.rule.splits_pairs and instruction.opcode == "mov.b64" and instruction.guard is None


def _values(entry: Entry, rule: ContractionSpec) -> _Values:
    found = _Values(entry.instructions, rule)
    leaders = {entry.labels[name] for name in _branched(entry) if name in entry.labels}
    leaders |= {place + 1 for place, each in enumerate(entry.instructions) if base_of(each.opcode) in _ENDS}
    current: dict[Register, int] = {}
    last: list[dict[Register, int]] = []
    for place, each in enumerate(entry.instructions):
        if place in leaders:
            last.append(current)
            current = {}
        found.reads.append({register: current[register] for register in read(each) if register in current})
        for register in written(each):
            current[register] = place
            found.writes[register].append(place)
    last.append(current)
    _find_needed(found, last)
    needed = found.needed
    for place, each in enumerate(entry.instructions):
        if place in needed and not found.packs(place) and not found.hands_on(place):
            for at, register in _operands_read(each):
                _count(found, register, place, at)
    for place, register in found.leaving:
        if place in needed:
            found.uses[found.made(place, register)[0]].append(Use(-1))
    for place in reversed(range(len(entry.instructions))):  # a pair that something reads as a whole reads its halves
        if found.packs(place) and found.uses.get(Root(place)):
            for at, register in _operands_read(entry.instructions[place]):
                _count(found, register, place, at)
    return found


def _count(values: _Values, register: Register, place: int, at: int) -> None:
    """One more use, unless only what takes a pair apart again reads it there."""
    root, minus = values.root(register, place)
    if root is not None:
        values.uses[root].append(Use(place, at, minus))


def _branched(entry: Entry) -> Iterator[str]:
    """Labels that something branches to."""
    for each in entry.instructions:
        for operand in each.operands if base_of(each.opcode) in ("bra", "brx") else ():
            if isinstance(operand, Symbol):
                yield operand.name
                yield from entry.tables.get(operand.name, ())


def _operands_read(instruction: PtxInstruction) -> Iterator[tuple[int, Register]]:
    """Registers that are read, and in which operand; under a guard also what may stay as it was."""
    results = len(results_of(instruction))
    for at, operand in enumerate(instruction.operands):
        for register in registers_of(operand) if at >= results else ():
            yield at, register
    if instruction.guard is not None:
        yield -1, instruction.guard._replace(negated=False)
        for register in written(instruction):
            yield -1, register


def _find_needed(values: _Values, last: list[dict[Register, int]]) -> None:
    """What something rests on, in this block or another: ptxas drops the rest first."""
    leaving: dict[Register, list[int]] = defaultdict(list)
    for kept in last:
        for register, place in kept.items():
            leaving[register].append(place)
    table = opcode_table()
    rows = [table.get(each.opcode) for each in values.instructions]
    waiting = [place for place, row in enumerate(rows) if row is None or row.kind is not OpcodeKind.ELEMENTWISE]
    while waiting:
        place = waiting.pop()
        if place in values.needed:
            continue
        values.needed.add(place)
        for register in read(values.instructions[place]):
            at = values.reads[place].get(register)
            if at is not None:
                waiting.append(at)
            else:
                waiting += leaving[register]
                values.leaving += [(each, register) for each in leaving.pop(register)]


# ----------------------------------------------------------------------------------------------------------------- contraction


class Fused(NamedTuple):
    """A sum that takes a product."""

    product: int
    operand: int
    """Of the sum: 1 or 2."""
    minus: bool
    """Whether the product's sign is turned on the way."""


def _choice(entry: Entry, values: _Values) -> dict[int, Fused]:
    """Which sums take which products."""
    rule = values.rule
    sums: dict[int, list[Fused]] = {}
    for place, each in enumerate(entry.instructions):
        if not _is_sum(each):
            continue
        found = []
        for operand in (1, 2):
            register = each.operands[operand]
            root, minus = values.root(register, place) if isinstance(register, Register) else (None, False)
            made = None if root is None else entry.instructions[root.place]
            if root is not None and made is not None and _is_product(made, rule) and _rest(made.opcode) == _rest(each.opcode):
                found.append(Fused(root.place, operand, minus))
        if len(found) == 2 and _same(entry, *(each.product for each in found)):
            found = []
        if found:
            sums[place] = found
    chosen: dict[int, Fused] = {}

    def may(product: int) -> bool:
        """Whether every use of a product is a sum that takes it, or may still."""
        for use in values.uses[Root(product)]:
            taken = chosen.get(use.place)
            if taken is not None and taken.product != product:
                return False
            if product not in [each.product for each in sums.get(use.place, ())]:
                return False
        return True

    for several in (False, True):
        for place, found in sums.items():
            for taken in found if place not in chosen else ():
                if (several or len(values.uses[Root(taken.product)]) == 1) and may(taken.product):
                    chosen[place] = taken
                    break
    return chosen


def _same(entry: Entry, one: int, other: int) -> bool:
    """Whether two products are of the same factors."""
    first, second = (entry.instructions[place] for place in (one, other))
    return one == other or (first.opcode == second.opcode and {*first.operands[1:]} == {*second.operands[1:]})


@dataclass(eq=False)
class _Rewriting:
    """A kernel on the way to its contracted form."""

    entry: Entry
    prefix: str
    """Of the names of new registers."""
    before: dict[int, list[PtxInstruction]] = field(default_factory=lambda: defaultdict(list))
    """Instructions put in front of others."""
    changed: dict[int, PtxInstruction] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    named: int = 0

    def fresh(self, bits: int) -> Register:
        """A register that the text does not name."""
        self.named += 1
        return Register(f"%{self.prefix}{self.named}", bits)

    def put(self, place: int, opcode: str, *operands: Operand, bits: int = 32) -> Register:
        """An instruction before another, of whose line it is; its result."""
        target = self.fresh(bits)
        model = self.entry.instructions[place]
        self.before[place].append(replace(model, opcode=opcode, operands=(target, *operands), guard=None))
        return target

    def done(self) -> Entry:
        """The kernel."""
        kept: list[PtxInstruction] = []
        starts = [0]
        for place, each in enumerate(self.entry.instructions):
            starts.append(len(kept))
            kept += self.before.get(place, ())
            if place not in self.gone:
                kept.append(self.changed.get(place, each))
        starts.append(len(kept))
        old = self.entry
        labels = {name: starts[place + 1] for name, place in old.labels.items()}
        return Entry(old.name, old.is_kernel, old.parameters, old.returns, old.attributes, kept, labels, old.tables, old.variables)


def _scaled_quotient(rewriting: _Rewriting, place: int) -> tuple[Operand, Operand]:
    """The factors of a division's last product: the reciprocal of the divisor, and the dividend, both scaled as ptxas scales them."""
    made = rewriting.entry.instructions[place]
    words = made.opcode.split(".")
    ftz = "ftz." if "ftz" in words else ""

    def put(opcode: str, *operands: Operand, bits: int = 32) -> Register:
        return rewriting.put(place, opcode, *operands, bits=bits)

    if words[0] == "rcp":
        (a,) = made.operands[1:]
        size = put("abs.f32", a)
        is_small, is_large = put("setp.lt.f32", size, _SMALL, bits=1), put("setp.gt.f32", size, _LARGE, bits=1)
        factor: Operand = put("selp.f32", _QUARTER, put("selp.f32", _LIFT, _ONE, is_small), is_large)
        return put("rcp.approx.ftz.f32", put("mul.rn.f32", factor, a)), factor
    a, b = made.operands[1:]
    size = put(f"abs.{ftz}f32", b)
    for factor, when, wanted in ((_QUARTER, f"setp.gt.{ftz}f32", words[1] == "full"), (_LIFT, "setp.lt.f32", not ftz)):
        if wanted:
            is_so = put(when, size, _LARGE if factor is _QUARTER else _SMALL, bits=1)
            a = put("selp.f32", put(f"mul.rn.{ftz}f32", a, factor), a, is_so)
            b = put("selp.f32", put(f"mul.rn.{ftz}f32", b, factor), b, is_so)
    return put("rcp.approx.ftz.f32", b), a


def contracted(entry: Entry, rule: ContractionSpec = CONTRACTIONS[0]) -> tuple[Entry, int]:
    """A kernel as ptxas contracts it by default, and how many sums became fused multiply-adds.

    Args:
        entry: the kernel.
        rule: that of its architecture.
    """
    if not rule.splits_pairs:
        return _contracted(entry, rule)
    plain, count = _contracted(entry, rule)
    single, more = _contracted(_without_pairs(entry), rule)
    pairs = _fused_pairs(plain) - _fused_pairs(entry)
    return (plain, count) if more == count + pairs else (single, more)  # the longer text only where it fuses otherwise


def _fused_pairs(entry: Entry) -> int:
    return sum(each.opcode.startswith("fma") and each.opcode.endswith("f32x2") for each in entry.instructions)


def _contracted(entry: Entry, rule: ContractionSpec) -> tuple[Entry, int]:
    values = _values(entry, rule)
    chosen = _choice(entry, values)
    if not chosen:
        return entry, 0
    rewriting = _Rewriting(entry, "fused")
    takers: dict[int, set[int]] = defaultdict(set)
    for place, each in chosen.items():
        takers[each.product].add(place)
    for product, places in takers.items():
        a, b = _factors(rewriting, values, product, max(places))
        for place in places:
            made, taken = entry.instructions[place], chosen[place]
            other = made.operands[3 - taken.operand]
            is_difference = base_of(made.opcode) == "sub"
            minus = taken.minus != (is_difference and taken.operand == 2)
            if is_difference and taken.operand == 1:
                other = Negative(other)
            opcode = "fma.rn." + made.opcode.partition(".")[2]
            rewriting.changed[place] = replace(made, opcode=opcode, operands=(made.operands[0], Negative(a) if minus else a, b, other))
        if {use.place for use in values.uses[Root(product)]} == places:
            rewriting.gone.add(product)
    _drop(rewriting, values)
    return rewriting.done(), len(chosen)


def _factors(rewriting: _Rewriting, values: _Values, product: int, last: int) -> tuple[Operand, Operand]:
    """The factors of a product, in registers that hold them until the last sum that takes it."""
    made = rewriting.entry.instructions[product]
    if base_of(made.opcode) != "mul":
        return _scaled_quotient(rewriting, product)
    found = []
    for operand in made.operands[1:]:
        kept = operand
        if isinstance(operand, Register) and any(product <= place < last for place in values.writes[operand]):
            kept = rewriting.put(product, f"mov.b{operand.bits}", operand, bits=operand.bits)
        found.append(kept)
    return found[0], found[1]


def _drop(rewriting: _Rewriting, values: _Values) -> None:
    """What nothing rests on goes, and copies that nothing reads any more."""
    rewriting.gone |= {*range(len(values.instructions))} - values.needed
    idle = True
    while idle:
        kept = [rewriting.changed.get(place, each) for place, each in enumerate(values.instructions) if place not in rewriting.gone]
        kept += [each for place in rewriting.before for each in rewriting.before[place]]
        wanted = {register for each in kept for register in read(each)}
        idle = False
        for place, made in enumerate(values.instructions):
            is_copy = base_of(made.opcode) in values.rule.copies and made.guard is None
            if place not in rewriting.gone and place not in rewriting.changed and is_copy and wanted.isdisjoint(written(made)):
                rewriting.gone.add(place)
                idle = True


def _without_pairs(entry: Entry) -> Entry:
    """A kernel with two operations of f32 for each of f32x2."""
    rewriting = _Rewriting(entry, "half")
    for place, each in enumerate(entry.instructions):
        if not each.opcode.endswith("f32x2") or base_of(each.opcode) not in (*_SUMS, "mul", "fma") or each.guard is not None:
            continue
        halves: list[tuple[Register, Register]] = []
        for operand in each.operands[1:]:
            half = Vector((rewriting.fresh(32), rewriting.fresh(32)))
            rewriting.before[place].append(replace(each, opcode="mov.b64", operands=(half, operand)))
            halves.append((half.items[0], half.items[1]))  # type: ignore[arg-type]
        parts = [rewriting.put(place, each.opcode[:-2], *(half[k] for half in halves)) for k in (0, 1)]
        rewriting.changed[place] = replace(each, opcode="mov.b64", operands=(each.operands[0], Vector(tuple(parts))))
    return rewriting.done()


# ------------------------------------------------------------------------------------------------------------------- constants


def _root(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


_OF_CONSTANTS: Final[dict[str, Callable[[float], float]]] = {
    "rcp": lambda x: 1 / x, "ex2": lambda x: 2.0**x, "rsqrt": lambda x: 1 / _root(x), "sqrt": _root,
    "lg2": lambda x: math.log2(x) if x > 0 else math.nan, "sin": math.sin, "cos": math.cos,
}  # fmt: skip


def folded(entry: Entry, rule: ContractionSpec = CONTRACTIONS[0], *, contracts: bool = True) -> Entry:
    """A kernel in which functions of constants are computed as ptxas computes them: correctly rounded, not as the unit does.

    Constants and results that are subnormal, infinite or NaN are left to the unit.

    Args:
        entry: the kernel.
        rule: that of its architecture.
        contracts: whether a product by a reciprocal may be fused.
    """
    constants = _constants(entry)
    rewriting = _Rewriting(entry, "constant")
    for place, each in enumerate(entry.instructions):
        if not each.opcode.startswith(rule.folded) or not each.opcode.endswith(".f32"):
            continue
        last = each.operands[-1]
        bits = last.number & 0xFFFF_FFFF if isinstance(last, Immediate) else constants.get(last) if isinstance(last, Register) else None
        if bits is None:
            continue
        if base_of(each.opcode) == "div":
            _fold_quotient(rewriting, place, bits, "" if contracts else "rn.")
        elif (found := _function_of(base_of(each.opcode), bits)) is not None:
            rewriting.changed[place] = replace(each, opcode="mov.b32", operands=(each.operands[0], Immediate(found)))
    return rewriting.done() if rewriting.changed else entry


def _constants(entry: Entry) -> dict[Register, int]:
    """Registers that one `mov` of a number writes, and nothing else."""
    found: dict[Register, int] = {}
    seen: set[Register] = set()
    for each in entry.instructions:
        for register in written(each):
            found.pop(register, None)
            source = each.operands[1] if base_of(each.opcode) == "mov" and each.guard is None else None
            if register not in seen and isinstance(source, Immediate):
                found[register] = source.number & 0xFFFF_FFFF
            seen.add(register)
    return found


def _is_normal(bits: int) -> bool:
    return 0 < bits >> 23 & 0xFF < 255


def _function_of(base: str, bits: int) -> int | None:
    """The code of a function of a code, correctly rounded; None where either is not a normal number."""
    x = float(np.uint32(bits).view(np.float32))
    if not _is_normal(bits) or (base == "ex2" and not -126 <= x < 128) or (base == "rcp" and abs(x) > 2.0**126):
        return None
    found = int(np.float32(_OF_CONSTANTS[base](x)).view(np.uint32))
    return found if _is_normal(found) else None


def _fold_quotient(rewriting: _Rewriting, place: int, bits: int, rounding: str) -> None:
    """A product by the reciprocal in the place of a division by a constant."""
    made = rewriting.entry.instructions[place]
    is_full, ftz = "full" in made.opcode, "ftz." if "ftz" in made.opcode else ""
    b = float(np.uint32(bits).view(np.float32))
    factor = None
    if is_full and 2.0**126 < abs(b) < math.inf:
        factor = _QUARTER
    elif not ftz and 0 < abs(b) < 2.0**-126:
        factor = _LIFT
    scaled = float(np.float32(b) * np.uint32(factor.number).view(np.float32)) if factor is not None else b
    found = _function_of("rcp", int(np.float32(scaled).view(np.uint32)))
    if found is None:
        return
    a = made.operands[1]
    if factor is not None:
        a = rewriting.put(place, f"mul.rn.{ftz}f32", a, factor)
    operands = (made.operands[0], a, Immediate(found, "f32"))
    rewriting.changed[place] = replace(made, opcode=f"mul.{rounding}{ftz}f32", operands=operands)
