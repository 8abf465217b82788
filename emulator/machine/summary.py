"""What a kernel is made of, and what its bits rest on: for reports, and for who asks for evidence before a launch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mmabits.emulator.machine.kernel import Kernel
from mmabits.emulator.machine.program import base_of
from mmabits.emulator.machine.ptx import PtxInstruction
from mmabits.isa import Evidence
from mmabits.isa.opcodes import family_of, form_of, opcode_table


def families(opcodes: Counter[str]) -> Counter[str]:
    """Instructions by family, from those by opcode."""
    found: Counter[str] = Counter()
    for opcode, count in opcodes.items():
        found[family_of(opcode)] += count
    return found


@dataclass(frozen=True, kw_only=True)
class WeakPoint:
    """Something in a kernel whose bits neither the PTX manual defines nor a recording shows."""

    what: str
    evidence: Evidence
    reason: str
    instruction: PtxInstruction | None = None
    """Where it stands first."""

    def __str__(self) -> str:
        return self.what if self.instruction is None else f"{self.what} in {self.instruction}"


def weak_points(kernel: Kernel) -> tuple[WeakPoint, ...]:
    """What a kernel's bits rest on besides its tensor-core instructions, as far as the PTX manual leaves it open.

    Opcodes that the manual defines to the last bit, such as integers, moves and correctly rounded arithmetic, are none of these.
    """
    found: dict[str, WeakPoint] = {}

    def add(what: str, evidence: Evidence, reason: str, instruction: PtxInstruction | None = None) -> None:
        found.setdefault(what, WeakPoint(what=what, evidence=evidence, reason=reason, instruction=instruction))

    for instruction in kernel.entry.instructions:
        row = opcode_table().get(instruction.opcode) or form_of(instruction.opcode)
        if row is not None and not row.is_defined and row.evidence < Evidence.RECORDED:
            reason = f"{row.evidence}: {row.note or 'what it does is carried over from its neighbours'}"
            add(instruction.opcode, row.evidence, reason, instruction)
    if kernel.fused:
        reason = (
            f"inferred: {kernel.fused} sums of the text are fused with products by a rule; report(fusion=True) looks at the machine code"
        )
        add("fused multiply-adds", Evidence.INFERRED, reason)
    return tuple(found.values())


def adds_floats_by_atomics(kernel: Kernel) -> bool:
    """Whether a kernel's atomic operations are on floating-point numbers, whose sums depend on the order."""
    return any(base_of(name) in ("atom", "red") and name.rpartition(".")[2][0] == "f" for name in kernel.opcodes)


def schedule(kernel: Kernel) -> tuple[str, ...]:
    """The orders in which a kernel's work is done here, where a GPU may take others."""
    orders = []
    if kernel.program.spins:
        orders.append("programs that wait for others take turns with later ones")
    elif kernel.has_atomics:
        orders.append("programs in ascending order")
    else:
        orders.append("programs on threads, which do not see each other")
    asynchronous = ("cp.async", "cp.reduce.async", "wgmma.mma_async", "tcgen05.mma", "tcgen05.cp")
    if any(name.startswith(asynchronous) for name in kernel.opcodes):
        orders.append("asynchronous work at the wait that wants it, in the order in which it was asked for")
    return tuple(orders)
