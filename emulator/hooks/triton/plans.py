"""What a dot becomes on an architecture: which instruction, over which chunks of K, after which conversions.

Triton's compiler is the authority. It is asked with a kernel that holds the one dot, and a plan is read off the PTX it emits; where
it cannot be asked, the rows of `table.py` serve.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from mmabits.emulator.hooks.triton.compiler import CannotAsk, Compiler, Facts
from mmabits.emulator.hooks.triton.dots import Dot, ScaledDot
from mmabits.emulator.hooks.triton.table import facts_of
from mmabits.isa import EmulationError, Family, Instruction, MmabitsError, architecture, parse, resolve


class DotScheme(enum.Enum):
    """How a dot is put together from products."""

    PLAIN = "one product"
    TF32X3 = "three tf32 products of f32 operands split in two"
    BF16X3 = "three bf16 products of f32 operands split in two"
    BF16X6 = "six bf16 products of f32 operands split in three"
    FMA = "fused multiply-adds in f32, K ascending, without tensor cores"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is computed for a dot."""

    scheme: DotScheme = DotScheme.PLAIN
    instruction: Instruction | None = None
    """None where no tensor core is used."""
    convert: str = ""
    """Type to which both operands are converted first; empty: none."""
    k_order: tuple[int, ...] = field(default=(), repr=False)
    """K elements in the order in which the instructions take them; empty: ascending."""
    promote_every: int = 0
    """Elements of K after which the sum is added to the f32 accumulator and starts again; 0: the instructions are chained."""
    separate_add: bool = False
    """The product starts from zero, and the accumulator is added to it at the end."""
    zero_scale: float = 0.0
    """What a ue8m0 scale of 0x00 counts as, where scales are multiplied into the operands."""
    nan_scale: float = math.nan
    """Likewise 0xFF."""
    source: str = ""
    """Who says so."""
    unknown: str = ""
    """Why the order of K within the tile is not known; empty: it is."""

    def with_unknown_order(self, why: str) -> Plan:
        """The plan where the operands may be laid out otherwise: the same, if no order depends on it."""
        row = self.instruction
        if row is None or row.family is not Family.MMA_SYNC or row.d_type.is_integer:
            return self
        return replace(self, unknown=why)

    @property
    def note(self) -> str:
        """For the report."""
        words = []
        if self.convert:
            words.append(f"operands converted to {self.convert}")
        if self.promote_every:
            words.append(f"f32 addition every {self.promote_every} of K")
        if self.scheme is not DotScheme.PLAIN:
            words.append(self.scheme.value)
        if self.unknown:
            taken = "permuted" if self.k_order else "ascending"
            words.append(f"order of K within the tile not known, taken as {taken}: {self.unknown}")
        else:
            words += ["K permuted within the tile"] if self.k_order else []
            words.append(self.source)
        return "; ".join(word for word in words if word)


class Planner:
    """Plans for one architecture, asked once for each kind of dot.

    Args:
        arch: name of the architecture.
        ask: answers questions as `Compiler.ask` does; None: the table alone.
        version: of Triton.
    """

    def __init__(self, arch: str, ask: Callable[[dict[str, Any]], Facts] | None, version: str) -> None:
        self.arch, self.version, self._ask = arch, version, ask
        self.capability = architecture(arch).capability_number
        self._plans: dict[Dot | ScaledDot, Plan] = {}

    def plan(self, dot: Dot | ScaledDot) -> Plan:
        """What the compiler makes of a dot.

        Raises:
            EmulationError: the compiler rejects it, or emits what cannot be emulated.
        """
        known = self._plans.get(dot)
        if known is None:
            known = self._plans[dot] = self._make(dot)
        return known

    def _make(self, dot: Dot | ScaledDot) -> Plan:
        facts: Facts | None = None
        if self._ask is not None:
            try:
                facts = self._ask(dot.question)
            except CannotAsk:
                self._ask = None
        if facts is None:
            return read_plan(self.arch, dot, facts_of(dot, self.version), "by the table for Triton 3.6 to 3.9")
        return read_plan(self.arch, dot, facts, f"as Triton {self.version} compiles it")


# From the compiler's output to a plan ------------------------------------------------------------------------------------


def read_plan(arch: str, dot: Dot | ScaledDot, facts: Facts, source: str) -> Plan:
    """The plan that the compiler's output amounts to.

    Raises:
        EmulationError: the compiler rejected the dot, or its output is not one of the known forms.
    """
    if "error" in facts:
        raise EmulationError(f"{dot} on {arch}: Triton's compiler rejects it: {facts['error']}")
    opcodes: dict[str, int] = facts["opcodes"]
    products = {opcode: count for opcode, count in opcodes.items() if "mma" in opcode}
    if isinstance(dot, ScaledDot):
        return _scaled_plan(arch, dot, facts, products, source)
    if not products:
        return _without_tensor_cores(arch, dot, opcodes, source)
    spelling = _only(arch, dot, products)
    scheme = _scheme(dot)
    row = _instruction(arch, dot, spelling, {DotScheme.BF16X3: "bf16", DotScheme.BF16X6: "bf16"}.get(scheme))
    operand = "f32" if row.a_type.name == "tf32" else row.a_type.name
    convert = row.a_type.name if scheme is DotScheme.PLAIN and operand != dot.a else ""
    order, unknown = _order_or_reason(arch, dot, row, facts)
    return Plan(
        scheme=scheme, instruction=row, convert=convert, k_order=order, source=source, unknown=unknown,
        promote_every=_promotion(arch, dot, row, opcodes) if scheme is DotScheme.PLAIN else 0, separate_add=scheme is not DotScheme.PLAIN,
    )  # fmt: skip


def _scheme(dot: Dot) -> DotScheme:
    if dot.a != "f32" or dot.precision == "tf32":
        return DotScheme.PLAIN
    return {"tf32x3": DotScheme.TF32X3, "bf16x3": DotScheme.BF16X3, "bf16x6": DotScheme.BF16X6}[dot.precision]


def _only(arch: str, dot: Dot | ScaledDot, products: dict[str, int]) -> str:
    if len(products) != 1:
        raise EmulationError(f"{dot} on {arch}: Triton's compiler mixes {' and '.join(sorted(products))}, which is not emulated")
    return next(iter(products))


def _instruction(arch: str, dot: Dot | ScaledDot, spelling: str, operands: str | None = None, scale: str | None = None) -> Instruction:
    """The row of a spelling in PTX; tcgen05 keeps types and shape in a descriptor, so they come from the dot."""
    try:
        if not spelling.startswith("tcgen05"):
            row = parse(spelling)
            return resolve(row, arch=arch, a_type=row.a_type, b_type=row.b_type, scale_type=row.scale_type)
        a, b = operands or _operand(dot.a), operands or _operand(dot.b)
        acc = dot.acc if isinstance(dot, Dot) else "f32"
        whole = resolve(spelling, arch=arch, a_type=a, b_type=b, c_type=acc, scale_type=scale)
        return _with_tile(arch, whole, 64 if dot.m == 64 else 128, min(dot.n, 256))
    except MmabitsError as error:
        raise EmulationError(f"{dot} on {arch}: Triton's compiler emits {spelling}, which is not emulated: {error}") from error


def _with_tile(arch: str, row: Instruction, m: int, n: int) -> Instruction:
    try:
        return resolve(row.ptx.replace(row.shape, f"m{m}n{n}k{row.k}"), arch=arch, a_type=row.a_type, b_type=row.b_type)
    except MmabitsError:  # a shape beside the rows: the arithmetic does not depend on it
        return row


def _operand(name: str) -> str:
    return {"f32": "tf32", "fp16": "f16"}.get(name, name)


def _without_tensor_cores(arch: str, dot: Dot, opcodes: dict[str, int], source: str) -> Plan:
    if opcodes.get("fma.rn.f32") and dot.acc == "f32" and dot.a in ("f32", "f16", "bf16"):
        return Plan(scheme=DotScheme.FMA, source=source)
    found = ", ".join(sorted(opcodes)) or "nothing known"
    raise EmulationError(f"{dot} on {arch}: Triton's compiler uses no tensor core but {found}, which is not emulated")


def _promotion(arch: str, dot: Dot, row: Instruction, opcodes: dict[str, int]) -> int:
    """Elements of K between additions, from the number of additions for each accumulator."""
    adds = sum(count for opcode, count in opcodes.items() if opcode.startswith("add") and "f32" in opcode)
    if not adds:
        return 0
    every = math.ceil(max(dot.imprecise, 1) / row.k) * row.k
    expected = math.ceil(dot.k / every) * dot.m * dot.n
    if adds * 32 * dot.warps != expected or row.family is not Family.WGMMA:
        raise EmulationError(f"{dot} on {arch}: Triton's compiler emits {adds} additions, which max_num_imprecise_acc does not explain")
    return every


def _order_or_reason(arch: str, dot: Dot, row: Instruction, facts: Facts) -> tuple[tuple[int, ...], str]:
    """The order of K, or why it is not known: tl.join halves the width, down to tiles that are smaller than a run of neighbours."""
    try:
        return _k_order(arch, dot, row, facts), ""
    except EmulationError as error:
        if not (dot.a_joined or dot.b_joined):
            raise
        return (), str(error)


def _k_order(arch: str, dot: Dot | ScaledDot, row: Instruction, facts: Facts) -> tuple[int, ...]:
    if row.family is not Family.MMA_SYNC or row.d_type.is_integer:
        return ()
    bits = row.a_type.container_bits if row.a_type.name != "e2m1" else 8
    kinds = {"f32": 32, "f16": 16, "bf16": 16, "f64": 64, "i8": 8, "f8E4M3FN": 8, "f8E5M2": 8}
    widths = {int(width) for kind, width in facts["widths"] if kinds.get(kind.split("x")[-1]) == bits}
    if len(widths) > 1:
        raise EmulationError(f"{dot} on {arch}: operands have the K widths {sorted(widths)}, which is not emulated")
    width = widths.pop() if widths else 0
    return k_order(width, bits, dot.k, row.k) if width * bits > max(32, bits) else ()


@lru_cache(maxsize=256)
def k_order(width: int, bits: int, k: int, k_instruction: int) -> tuple[int, ...]:
    """The K elements in the order in which mma.sync takes them, where a thread holds `width` neighbours in K.

    An instruction takes from each of four threads one register of the lower half of its K and one of the upper. Where a thread
    holds more neighbours than a register, the compiler gives instruction i the i-th register of every run of neighbours.

    Args:
        width: neighbours in K that a thread holds (kWidth of the layout).
        bits: of an element.
        k: K of the tile.
        k_instruction: K of the instruction.

    Returns:
        A permutation of range(k), or an empty tuple where it ascends.

    Source: getValuesFromDotOperandLayoutStruct in Triton's lowering of mma.sync.
    """
    packed = 32 // bits
    instructions = width // packed
    whole = instructions <= k // k_instruction
    order: list[int] = []
    if whole:
        for start in range(0, k, 8 * width):
            for i in range(instructions):
                for half in range(2):
                    order += [start + half * 4 * width + width * t + packed * i + e for t in range(4) for e in range(packed)]
    else:
        for i in range(instructions // 2):
            for half in range(2):
                order += [width * t + packed * (2 * i + half) + e for t in range(4) for e in range(packed)]
    if sorted(order) != list(range(k)):
        raise EmulationError(f"a K of {k} with {width} neighbours of {bits} bits a thread is not emulated")
    return () if order == list(range(k)) else tuple(order)


def _scaled_plan(arch: str, dot: ScaledDot, facts: Facts, products: dict[str, int], source: str) -> Plan:
    spelling = _only(arch, dot, products)
    if "block_scale" in spelling:
        row = _instruction(arch, dot, spelling, scale=dot.a_scale or None)
        if row.block != dot.a_block or row.block != dot.b_block:
            raise EmulationError(f"{dot} on {arch}: Triton's compiler emits {spelling} for scales of {dot.a_block} elements each")
        return Plan(instruction=row, source=source)
    compute = "f16" if "fp16" in (dot.a, dot.b) else "bf16"
    row = _instruction(arch, dot, spelling, operands=compute)
    if row.a_type.name != compute:
        raise EmulationError(f"{dot} on {arch}: Triton's compiler emits {spelling}, which is not the known decomposition")
    words = facts["words"]
    masked = bool(words["arith.select"] or words["math.fma"])
    return Plan(
        instruction=row, convert=compute, k_order=_k_order(arch, dot, row, facts), source=source,
        zero_scale=2.0**-127 if words["arith.maxui"] else 0.0, nan_scale=math.nan if masked else math.inf,
    )  # fmt: skip


def planner(arch: str, version: str, ask: Compiler | None) -> Planner:
    """The plans for an architecture under a version of Triton."""
    return Planner(arch, None if ask is None else ask.ask, version)
