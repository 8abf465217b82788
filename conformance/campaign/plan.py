"""What a campaign is to run on a GPU, from what isa/ does not know yet: steps, what each would settle, and which come first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from mmabits.conformance.diff.kernel_cases import KernelCase
from mmabits.conformance.diff.recorder import ALL_CASES, is_possible
from mmabits.conformance.record.functions import plans_for
from mmabits.conformance.record.session import recordable
from mmabits.isa import Evidence, architecture, lower, parse
from mmabits.isa.evidence import weakest
from mmabits.isa.opcodes import opcode_table

KINDS: Final = {
    "instruction": (1.0, "layout check, special values, probes, normal values and random bits, C other than zero; a chain"),
    "many": (2.5, "two million results with C of random bits, and of normal values"),
    "identify": (5.0, "asks for the datapath, probe by probe"),
    "function": (2.0, "every operand of a function"),
    "choices": (12.0, "which algorithms cuBLASLt takes, and the bits of their products"),
    "product": (2.0, "a matrix product of PyTorch or JAX, and the schedule that explains it"),
    "kernel": (3.0, "a kernel of kernels/"),
    "cuda": (40.0, "device=\"cuda\" against the CPU: bits, and how fast"),
    "tests": (75.0, "the tests marked gpu of the engine and of recording"),
}  # fmt: skip
"""Seconds that a step of each kind takes, and what it does: the host's part as measured without a GPU, the GPU's counted.

docs/campaign.md says how. A run corrects them by its own.
"""
OF_INSTRUCTIONS: Final = ("instruction", "many", "identify")
"""Kinds whose steps are named by an instruction."""
LARGEST_SCALE: Final = 15
"""Of `scale_input_d`: C is multiplied by 2^-15."""
_REPEATED: Final = 0.05
"""What a fact is worth that an earlier step of the plan shows already."""
_ROW_WORTH: Final = {Evidence.INFERRED: 8.0, Evidence.PUBLISHED: 5.0, Evidence.RECORDED: 1.0}
_SPECIALS_WORTH: Final = 3.0
_OPEN_WORTH: Final = 10.0
_PRODUCT_WORTH: Final = 2.0
_FIRST_KERNEL_WORTH: Final = 3.0
_KIND_WORTH: Final = {"choices": 30.0, "product": 2.2, "kernel": 4.5, "cuda": 80.0, "tests": 30.0}
_MANY_WORTH: Final = {Evidence.INFERRED: 8.0, Evidence.PUBLISHED: 6.0, Evidence.RECORDED: 4.0}
CHOICE_SHAPES: Final = tuple(
    f"{m}x{n}x{k}:{types}"
    for types in ("bf16", "f16", "e4m3,e4m3,bf16", "e4m3,e4m3,bf16:fast")
    for n, k in ((4096, 4096), (14336, 4096), (4096, 14336), (6144, 4096))
    for m in (1, 16, 128, 4096)
)
"""Layers of an 8B model at four batch sizes."""


@dataclass(frozen=True, kw_only=True)
class CampaignStep:
    """One thing to run."""

    kind: str
    """Of KINDS."""
    name: str
    """Of the instruction, function or case."""
    facts: tuple[tuple[str, float], ...] = ()
    """What it would show, and what each is worth that nothing has shown before."""

    @property
    def key(self) -> str:
        """`instruction wgmma...`: tells it from every other."""
        return f"{self.kind} {self.name}"

    @property
    def group(self) -> str:
        """Steps that would fail together, by how their names begin: `instruction wgmma`, `kernel triton`."""
        return f"{self.kind} {self.name.partition('.' if self.kind in OF_INSTRUCTIONS else '-')[0]}"

    @property
    def estimate(self) -> float:
        """Seconds."""
        return KINDS[self.kind][0]

    def worth(self, shown: Set[str]) -> float:
        """What it is worth where some facts have been shown before."""
        return sum(worth * (_REPEATED if fact in shown else 1.0) for fact, worth in self.facts)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What docs/unknown.md leaves open, and which steps settle it."""

    name: str
    words: str
    kinds: tuple[str, ...]
    datapaths: tuple[str, ...] = ("*",)
    """Patterns of datapaths, of instructions and identifications."""
    part: str = ""
    """Of the step's name."""
    archs: tuple[str, ...] = ()
    """Where it is open; empty: everywhere."""
    about: str
    """How docs/unknown.md begins to speak of it, without its marks."""

    def is_settled_by(self, kind: str, name: str, arch: str) -> bool:
        """Whether a step, once done, answers it."""
        if kind not in self.kinds or (self.archs and arch not in self.archs) or self.part not in name:
            return False
        if kind not in OF_INSTRUCTIONS:
            return True
        return any(fnmatchcase(lower(parse(name), arch).datapath.name, pattern) for pattern in self.datapaths)


QUESTIONS: Final = (
    Question(name="wgmma-fp8-c", words="FP8 wgmma into f32 with C other than zero", kinds=("instruction", "many"),
             datapaths=("sm_90a.wgmma.f8.f32",), about="C other than zero for Hopper's FP8 wgmma"),
    Question(name="wgmma-f16-zero", words="e_zero of wgmma into f16", kinds=("identify",),
             datapaths=("sm_90a.wgmma.f8.f16", "sm_90a.wgmma.f16.f16"), about="The exponent of zero terms"),
    Question(name="hopper-fp8-mma", words="FP8 mma.sync into f32: two FP16 instructions and an addition", kinds=("instruction",),
             part=".f32.e4m3.e4m3.f32", archs=("sm_90a",), about="FP8 mma.sync into f32 on Hopper"),
    Question(name="fp4-width", words="the width of MXFP4 and NVFP4", kinds=("identify",), datapaths=("*.mxf4.f32",),
             about="MXFP4 and NVFP4"),
    Question(name="two-widths", words="operands of two widths, FP8 and FP4", kinds=("instruction",), part="e4m3.e2m1",
             about="Operands of two widths"),
    Question(name="cta-group-2", words="cta_group::2 computes as cta_group::1", kinds=("instruction",), part="cta_group::2",
             about="cta_group::2 and scale_input_d"),
    Question(name="scale-input-d", words="scale_input_d multiplies C before it is aligned", kinds=("instruction",), part="scale_input_d",
             about="cta_group::2 and scale_input_d"),
    Question(name="carried-over", words="sm_103a, sm_110a and sm_121a compute as their neighbours", kinds=("instruction",),
             archs=("sm_103a", "sm_110a", "sm_121a"), about="sm_103a, sm_110a and sm_121a"),
    Question(name="specials", words="infinities, NaN and signed zeros", kinds=("instruction",), about="Infinities, NaN and signed zeros"),
    Question(name="functions", words="the tables of the special function unit", kinds=("function",),
             about="The tables of the special function unit"),
    Question(name="choices", words="which algorithm cuBLASLt takes", kinds=("choices",), about="The choice of libraries"),
    Question(name="schedules", words="which schedules the frameworks' products have", kinds=("product",), about="The choice of libraries"),
    Question(name="kernels", words="compiled kernels give the emulator's bits", kinds=("kernel",), about="Nothing here ran on a GPU"),
    Question(name="engine", words="device=\"cuda\" gives the CPU's bits", kinds=("cuda",), about="Nothing here ran on a GPU"),
)  # fmt: skip
NO_STEP: Final = {"Not modelled": "isa/ has no rows of them, so that there is nothing a recording could be held against"}
"""What docs/unknown.md leaves open and no step settles, and why."""


def questions_of(kind: str, name: str, arch: str) -> tuple[Question, ...]:
    """What a step would settle."""
    return tuple(each for each in QUESTIONS if each.is_settled_by(kind, name, arch))


def _step(kind: str, name: str, arch: str, facts: Sequence[tuple[str, float]] = ()) -> CampaignStep:
    asked = [(f"question {each.name}", _OPEN_WORTH) for each in questions_of(kind, name, arch)]
    return CampaignStep(kind=kind, name=name, facts=(*facts, *asked))


def _instructions(arch: str) -> Iterator[CampaignStep]:
    for instruction in recordable(arch):
        found = lower(instruction, arch)
        row = found.datapath
        facts = [(f"row {row.name}", _ROW_WORTH[row.evidence]), (f"instruction {instruction.ptx}", 0.5)]
        if not row.special_proofs or weakest(row.special_proofs) < Evidence.RECORDED:
            facts.append((f"specials {row.name}", _SPECIALS_WORTH))
        facts += [(f"claim {proof.covers}", _ROW_WORTH[proof.level]) for proof in found.proofs]
        yield _step("instruction", instruction.ptx, arch, facts)


def _modified(arch: str) -> Iterator[CampaignStep]:
    """An instruction that scales C down, where there is one: no other step has it."""
    for instruction in recordable(arch):
        if any(arch in spec.scale_input_d for spec in instruction.specs):
            scaled = replace(instruction, scale_input_d=LARGEST_SCALE)
            proofs = [(f"claim {proof.covers}", _ROW_WORTH[proof.level]) for proof in lower(scaled, arch).proofs]
            yield _step("instruction", scaled.ptx, arch, [(f"instruction {scaled.ptx}", 0.5), *proofs])
            return


def _many(arch: str) -> Iterator[CampaignStep]:
    """Of each datapath, one instruction."""
    firsts = {lower(instruction, arch).datapath.name: instruction for instruction in reversed(recordable(arch))}
    for name, instruction in firsts.items():
        yield _step("many", instruction.ptx, arch, [(f"many {name}", _MANY_WORTH[lower(instruction, arch).datapath.evidence])])


def _identifications(arch: str) -> Iterator[CampaignStep]:
    """Of disputed datapaths, one instruction each."""
    seen = set()
    for instruction in recordable(arch):
        row = lower(instruction, arch).datapath
        if questions_of("identify", instruction.ptx, arch) and row.name not in seen:
            seen.add(row.name)
            yield _step("identify", instruction.ptx, arch, [(f"dispute {row.name}", _OPEN_WORTH)])


def _functions(arch: str) -> Iterator[CampaignStep]:
    table = opcode_table()
    for plan in plans_for(arch):
        worth = _ROW_WORTH[table[plan.opcode].evidence] if plan.opcode in table else _OPEN_WORTH
        yield _step("function", plan.opcode, arch, [(f"function {plan.opcode}", worth)])


def _cases(arch: str) -> Iterator[CampaignStep]:
    for case in ALL_CASES.values():
        if is_possible(case, arch):
            kind = "kernel" if isinstance(case, KernelCase) else "product"
            facts = [(f"case {case.name}", _KIND_WORTH[kind])]
            if kind == "product":  # of several K the shortest counts most
                facts.append((f"product {case.name.rpartition('-k')[0]}", _PRODUCT_WORTH))
            else:
                facts.append((f"kernels of {case.framework}", _FIRST_KERNEL_WORTH))
            yield _step(kind, case.name, arch, facts)


_SOURCES: Final[tuple[Callable[[str], Iterator[CampaignStep]], ...]] = (
    _instructions,
    _modified,
    _many,
    _identifications,
    _functions,
    _cases,
)


def plan_for(arch: str, *, only: str | None = None) -> list[CampaignStep]:
    """The steps for an architecture, the most valuable for its time first.

    A fact counts in full for the first step that shows it, and little for the next ones.

    Args:
        arch: the architecture.
        only: a kind of KINDS, or any part of a step's name.

    Raises:
        UnknownArchitecture: no such architecture.
    """
    target = architecture(arch).target
    steps = [step for source in _SOURCES for step in source(target)]
    steps += [
        _step(kind, name, target, [(kind, _KIND_WORTH[kind])])
        for kind, name in (("choices", "cuBLASLt"), ("cuda", "engine"), ("tests", "gpu"))
    ]
    return _ordered([step for step in steps if only is None or only == step.kind or only in step.name])


def _ordered(steps: Sequence[CampaignStep]) -> list[CampaignStep]:
    """The best for its time, then the best beside it, and so on."""
    left, found = list(steps), []
    shown: set[str] = set()
    while left:
        best = max(left, key=lambda step: step.worth(shown) / step.estimate)
        left.remove(best)
        shown.update(fact for fact, _ in best.facts)
        found.append(best)
    return found


__all__ = ["CHOICE_SHAPES", "KINDS", "NO_STEP", "OF_INSTRUCTIONS", "QUESTIONS", "Question", "CampaignStep", "plan_for", "questions_of"]
