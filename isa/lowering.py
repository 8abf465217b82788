"""What an instruction becomes on an architecture: machine instructions, and the datapath that does the arithmetic.

Rows again. A row is named by `InstructionSpec.lowerings`; its texts are filled in for the instruction at hand.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from mmabits.isa.architectures import ARCHITECTURES, architecture
from mmabits.isa.datapaths import DATAPATHS, DatapathSpec
from mmabits.isa.errors import UnknownInstruction, UnsupportedInstruction
from mmabits.isa.evidence import Evidence, Proof, evidence_level, weakest
from mmabits.isa.formats import FormatSpec, format_spec
from mmabits.isa.instructions import (
    INSTRUCTION_SPECS,
    KNOWN_FORMS,
    Family,
    Instruction,
    InstructionSpec,
    KnownForm,
    Query,
    ScaleMode,
    Tile,
    make_instruction,
    not_on,
    spell,
)


class KOrder(enum.Enum):
    """In which order the K elements of an instruction enter the steps."""

    ASCENDING = "k ascending"
    LOW_PAIRS_FIRST = "first the elements with k mod 4 in {0, 1}, then those with k mod 4 in {2, 3}; ascending within"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A proof, and the instructions it is for; an empty field leaves the choice open."""

    proof: Proof
    archs: tuple[str, ...] = ()
    accumulators: tuple[str, ...] = ()
    k: tuple[int, ...] = ()
    same_types: bool | None = None
    """Only where A and B have one type (True) or two (False)."""

    def covers(self, instruction: Instruction, arch: str) -> bool:
        """Whether the claim speaks of that instruction on that architecture."""
        return (
            (not self.archs or arch in self.archs) and (not self.accumulators or instruction.d_type.name in self.accumulators)
            and (not self.k or instruction.k in self.k)
            and self.same_types in (None, instruction.a_type is instruction.b_type)
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class LoweringSpec:
    """One way to carry out instructions. The texts in braces are filled in for the instruction."""

    name: str
    machine: tuple[str, ...]
    datapath: str = ""
    """Unit and operands of the datapath, whose architecture and accumulator are the instruction's; empty where it is not modelled."""
    parts: int = 1
    """Machine instructions one after another that divide K among them."""
    k_order: KOrder = KOrder.ASCENDING
    separate_add: bool = False
    unpacked_to: str = ""
    """Format to which the operands are converted first, exactly; empty where the unit reads them as they are."""
    suffix_16: str = ""
    """What the machine instruction's name adds for blocks of 16."""
    claims: tuple[Claim, ...] = ()
    """Of the lowering itself, beyond what the datapath's proofs cover; the first that covers an instruction counts."""
    unmodelled: str = ""
    """Why it is known but not modelled."""
    note: str = ""

    def __repr__(self) -> str:
        return f"<lowering {self.name}>"


@dataclass(frozen=True, kw_only=True, eq=False)
class Lowering:
    """An instruction on an architecture, ready for the engine."""

    instruction: Instruction
    arch: str
    machine: tuple[str, ...]
    """Machine instructions the compiler emits, in order."""
    datapath: DatapathSpec
    step: int
    """Elements of K that one fused step takes here."""
    k_order: tuple[int, ...] | None
    """The K elements in the order in which they enter the steps; None: ascending."""
    separate_add: bool
    """The unit starts from +0, and C is added afterwards by one IEEE addition, to nearest even, in the accumulator type."""
    unpacked_to: FormatSpec | None
    """Format to which the operands are converted first; its exponent range decides which of them count as subnormal."""
    proofs: tuple[Proof, ...]
    """Of the lowering; those of the arithmetic are the datapath's."""
    note: str = ""

    @property
    def evidence(self) -> Evidence:
        """What may be claimed of the whole: the weakest proof of the lowering and of the datapath."""
        return weakest((*self.proofs, *self.datapath.proofs))

    @property
    def own_promotion(self) -> int:
        """Elements of K after which a what-if architecture promotes where nobody says otherwise; 0: never."""
        promotes = self.datapath.is_aligned and self.datapath.result.name == "f32"
        return architecture(self.arch).promote_every if promotes else 0


def _proof(level: Evidence, covers: str, *sources: str) -> Proof:
    return Proof(level=level, covers=covers, sources=sources)


_SHORT_K = Claim(proof=_proof(Evidence.PUBLISHED, "the form with half the K: one step as long as K", "mmasim"))
_OTHER_FP8 = (
    Claim(proof=_proof(Evidence.PUBLISHED, "m16n8k16", "mmasim"), k=(16,)),
    Claim(proof=_proof(Evidence.PUBLISHED, "A and B of two types", "mmasim"), same_types=False),
)


def _recorded_split(arch: str, accumulator: str, *recordings: str) -> Claim:
    proof = _proof(Evidence.RECORDED, "m16n8k32, A and B of one type", *recordings)
    return Claim(proof=proof, archs=(arch,), accumulators=(accumulator,), k=(32,), same_types=True)


_SPLIT = (
    _recorded_split("sm_90a", "f16", "h100-mma-e4m3-f16", "h100-mma-e5m2-f16", "h200-mma-e4m3-f16", "h200-mma-e5m2-f16"),
    _recorded_split("sm_100a", "f32", "b200-mma-e4m3-f32", "b200-mma-e5m2-f32"),
    _recorded_split("sm_100a", "f16", "b200-mma-e4m3-f16", "b200-mma-e5m2-f16"),
    Claim(proof=_proof(Evidence.INFERRED, "read from the machine code that ptxas 12.8 to 13.4 emit", "machine-code")),
)
_SOFTWARE = "a software routine from sm_80 on"

# fmt: off
_ROWS = (
    LoweringSpec(name="hmma.884",       machine=("HMMA.884.{D}",),            datapath="hmma.f16"),
    LoweringSpec(name="hmma.884.turing", machine=("HMMA.884.{D}",),           datapath="hmma884.f16"),
    LoweringSpec(name="hmma.884.mixed", machine=("HMMA.884.{D}",),            unmodelled="D f32 with C f16"),
    LoweringSpec(name="software",       machine=("CALL software routine",),   unmodelled=_SOFTWARE),
    LoweringSpec(name="hmma.f16",       machine=("HMMA.16816.{D}",),          datapath="hmma.f16"),
    LoweringSpec(name="hmma.f16.half",  machine=("HMMA.1688.{D}",),           datapath="hmma.f16", claims=(_SHORT_K,)),
    LoweringSpec(name="hmma.bf16",      machine=("HMMA.16816.{D}.BF16",),     datapath="hmma.bf16"),
    LoweringSpec(name="hmma.bf16.half", machine=("HMMA.1688.{D}.BF16",),      datapath="hmma.bf16", claims=(_SHORT_K,)),
    LoweringSpec(name="hmma.tf32",      machine=("HMMA.1688.{D}.TF32",),      datapath="hmma.tf32"),
    LoweringSpec(name="hmma.tf32.half", machine=("HMMA.1684.{D}.TF32",),      datapath="hmma.tf32", claims=(_SHORT_K,)),
    LoweringSpec(name="qmma.f8",        machine=("QMMA.{shape}.{D}.{A}.{B}",), datapath="qmma.f8", claims=_OTHER_FP8),
    LoweringSpec(name="qmma.f8f6f4",    machine=("QMMA.{shape}.{D}.{A}.{B}",), datapath="qmma.f8f6f4"),
    LoweringSpec(name="qmma.sf",        machine=("QMMA.SF.{shape}.{D}.{A}.{B}.{S}",), datapath="qmma.mxf8f6f4"),
    LoweringSpec(name="omma.sf",        machine=("OMMA.SF.{shape}.{D}.{A}.{B}.{S}{suffix}",), datapath="omma.mxf4",
                 suffix_16=".4X"),
    LoweringSpec(name="omma.sf.ptx91",  machine=("OMMA.SF.{shape}.{D}.{A}.{B}.{S}{suffix}",), datapath="omma.mxf4",
                 suffix_16=".4X", note="from PTX ISA 9.1 on"),
    LoweringSpec(
        name="f2fp.hmma",
        machine=(
            "F2FP.F16.{A}.UNPACK_B x{a_registers}", "F2FP.F16.{B}.UNPACK_B x{b_registers}", "HMMA.168{half_k}.{D} P, A, B, RZ",
            "F2FP.F16.{A}.UNPACK_B .H1 x{a_registers}", "F2FP.F16.{B}.UNPACK_B .H1 x{b_registers}", "HMMA.168{half_k}.{D} P, A, B, P",
            "{add} D, C, P",
        ),
        datapath="hmma.f16", parts=2, k_order=KOrder.LOW_PAIRS_FIRST, separate_add=True, unpacked_to="f16", claims=_SPLIT,
        note="no 8-bit unit for mma.sync: unpacked to f16, two HMMA from +0, then C is added",
    ),
    LoweringSpec(name="dmma.884",       machine=("DMMA.884",),                datapath="dmma.f64"),
    LoweringSpec(name="dmma.8x8x4",     machine=("DMMA.8x8x4",),              datapath="dmma.f64"),
    LoweringSpec(name="dmma.16x8",      machine=("DMMA.16x8x{k}",),           datapath="dmma.f64"),
    LoweringSpec(name="dmma.chain",     machine=("DMMA.8x8x4 x{chain}",),     datapath="dmma.f64",
                 note="chained in ascending k"),
    LoweringSpec(name="imma",           machine=("IMMA.{shape}.{A}.{B}{SAT}",), datapath="imma.int"),
    LoweringSpec(name="imma.rows16",    machine=("IMMA.16{n}{k}.{A}.{B}{SAT}",), datapath="imma.int",
                 note="carried out with 16 rows; the sum is exact"),
    LoweringSpec(name="imma.unpacked",
                 machine=("4-bit operands unpacked to 8 bits", "IMMA.{m}{n}{half_k}.{A8}.{B8} P, A, B, RZ x2", "IADD3 D, P, P, C"),
                 datapath="imma.int", note="no 4-bit unit: unpacked to 8 bits, two IMMA, then C is added; the sum is exact"),
    LoweringSpec(name="imma.unpacked.rows16",
                 machine=("4-bit operands unpacked to 8 bits", "IMMA.16{n}{half_k}.{A8}.{B8} P, A, B, RZ x2", "IADD3 D, P, P, C"),
                 datapath="imma.int",
                 note="no 4-bit unit: unpacked to 8 bits, two IMMA with 16 rows, then C is added; the sum is exact"),

    LoweringSpec(name="wgmma.f16",      machine=("HGMMA.{m}x{n}x{k}.{D}",),           datapath="wgmma.f16"),
    LoweringSpec(name="wgmma.bf16",     machine=("HGMMA.{m}x{n}x{k}.{D}.BF16",),      datapath="wgmma.bf16"),
    LoweringSpec(name="wgmma.tf32",     machine=("HGMMA.{m}x{n}x{k}.{D}.TF32",),      datapath="wgmma.tf32"),
    LoweringSpec(name="wgmma.f8",       machine=("QGMMA.{m}x{n}x{k}.{D}.{A}.{B}",),   datapath="wgmma.f8"),
    LoweringSpec(name="wgmma.int8",     machine=("IGMMA.{m}x{n}x{k}.{A}.{B}{SAT}",),  datapath="wgmma.int"),

    LoweringSpec(name="tcgen05.f16",      machine=("UTCHMMA{CTA}",), datapath="tcgen05.f16"),
    LoweringSpec(name="tcgen05.bf16",     machine=("UTCHMMA{CTA}",), datapath="tcgen05.bf16"),
    LoweringSpec(name="tcgen05.tf32",     machine=("UTCHMMA{CTA}",), datapath="tcgen05.tf32"),
    LoweringSpec(name="tcgen05.f8f6f4",   machine=("UTCQMMA{CTA}",), datapath="tcgen05.f8f6f4"),
    LoweringSpec(name="tcgen05.int8",     machine=("UTCIMMA{CTA}",), datapath="tcgen05.int"),
    LoweringSpec(name="tcgen05.mxf8f6f4", machine=("UTCQMMA{CTA}",), datapath="tcgen05.mxf8f6f4"),
    LoweringSpec(name="tcgen05.mxf4",     machine=("UTCOMMA{CTA}",), datapath="tcgen05.mxf4"),
    LoweringSpec(name="tcgen05.mxf4nvf4", machine=("UTCOMMA{CTA}{suffix}",), datapath="tcgen05.mxf4", suffix_16=".4X"),
    LoweringSpec(name="tcgen05.mxf4nvf4.ultra", machine=("UTCOMMA{CTA}{suffix}",), datapath="tcgen05.mxf4", suffix_16=".BLOCK16",
                 note="blocks of 16 take another machine instruction than on sm_100a; nobody has shown that they compute alike"),
    LoweringSpec(name="tcgen05.k96",      machine=("UTCOMMA{CTA}{suffix}",), suffix_16=".BLOCK16",
                 unmodelled="K = 96: how its six groups are summed is unknown"),
)
# fmt: on

LOWERINGS: dict[str, LoweringSpec] = {row.name: row for row in _ROWS}
"""Every lowering by its name."""

_ADD = {"f32": "FADD", "f16": "HADD2"}
_SCALE_WORD = {"ue8m0": "E8", "ue4m3": "UE4M3"}


def _machine(spec: LoweringSpec, instruction: Instruction) -> tuple[str, ...]:
    m, n, k = instruction.m, instruction.n, instruction.k
    words = {
        "m": m, "n": n, "k": k, "shape": f"{m}{n}{k}", "half_k": k // 2,
        "A": instruction.a_type.name.upper(), "B": instruction.b_type.name.upper(), "D": instruction.d_type.name.upper(),
        "S": _SCALE_WORD.get(instruction.scale_type.name, "") if instruction.scale_type else "",
        "suffix": spec.suffix_16 if instruction.block == 16 else "", "SAT": ".SAT" if instruction.satfinite else "",
        "CTA": ".2CTA" if instruction.cta_group == 2 else "", "add": _ADD.get(instruction.d_type.name, ""),
        "A8": instruction.a_type.name.upper().replace("4", "8"), "B8": instruction.b_type.name.upper().replace("4", "8"),
        "a_registers": k // 8, "b_registers": k // 16, "chain": m // 8 * (k // 4),
    }  # fmt: skip
    return tuple(text.format_map(words) for text in spec.machine)


def _k_order(order: KOrder, k: int) -> tuple[int, ...] | None:
    match order:
        case KOrder.ASCENDING:
            return None
        case KOrder.LOW_PAIRS_FIRST:
            return tuple(sorted(range(k), key=lambda element: (element % 4 >= 2, element)))


def _modifier_proofs(instruction: Instruction) -> Iterator[Proof]:
    """Of what an instruction's modifiers do; recordings were made without them."""
    if instruction.cta_group == 2:
        yield _proof(Evidence.INFERRED, "cta_group::2 computes as cta_group::1", "numerics")
    if instruction.scale_input_d:
        yield _proof(Evidence.INFERRED, "C is multiplied by the power of two exactly, before the sum", "numerics")
    if instruction.negate_a or instruction.negate_b:
        yield _proof(Evidence.PUBLISHED, "negation flips the operand's sign bits", "ptx")


def _spec_on(instruction: Instruction, arch: str) -> InstructionSpec:
    spec = instruction.on(arch)
    if spec is None:
        raise not_on(instruction.ptx, arch, instruction.query, elsewhere=(name for name in ARCHITECTURES if instruction.on(name)))
    return spec


WHAT_IF_DATAPATHS: dict[str, dict[str, DatapathSpec]] = {}
"""For each architecture that `what_if` made: its datapaths, by the names of those of its base that they replace."""


def _datapath(row: LoweringSpec, arch: str, accumulator: str) -> DatapathSpec:
    """The datapath of a lowering.

    Raises:
        UnsupportedInstruction: a new architecture has the instruction and no row for its unit yet.
    """
    found = DATAPATHS.get(f"{arch}.{row.datapath}.{accumulator}")
    if found is None:
        raise UnsupportedInstruction(f"{arch} is known, but no row says how its {row.datapath} computes into {accumulator}")
    return found


def _step(datapath: DatapathSpec, row: LoweringSpec, instruction: Instruction) -> int:
    """Elements of K that one fused step takes.

    Raises:
        UnsupportedInstruction: steps of that length do not divide the instruction; only what-if rows can have such.
    """
    whole = instruction.k // row.parts
    step = min(datapath.step, whole)
    if whole % step:
        raise UnsupportedInstruction(f"{instruction.ptx}: K = {whole} is no whole number of the {step} elements that {datapath.name} takes")
    if instruction.scale_input_d and step < whole:
        raise UnsupportedInstruction(
            f"{instruction.ptx}: scale-input-d is modelled in one step; {datapath.name} takes {step} of {whole} elements"
        )
    return step


@lru_cache(maxsize=4096)
def _lower(instruction: Instruction, arch: str) -> Lowering:
    target = architecture(arch).target
    row = LOWERINGS[_spec_on(instruction, target).lowerings[target]]
    if row.unmodelled:
        raise UnsupportedInstruction(f"{instruction.ptx} on {arch} is known but not modelled: {row.unmodelled}")
    datapath = _datapath(row, target, instruction.d_type.name)
    datapath = WHAT_IF_DATAPATHS.get(arch, {}).get(datapath.name, datapath)
    claim = next((claim for claim in row.claims if claim.covers(instruction, target)), None)
    return Lowering(
        instruction=instruction, arch=arch, machine=_machine(row, instruction), datapath=datapath,
        step=_step(datapath, row, instruction), k_order=_k_order(row.k_order, instruction.k), separate_add=row.separate_add,
        unpacked_to=format_spec(row.unpacked_to) if row.unpacked_to else None,
        proofs=(*((claim.proof,) if claim else ()), *_modifier_proofs(instruction)), note=_note(row, datapath),
    )  # fmt: skip


def lower(instruction: Instruction, arch: str) -> Lowering:
    """What the instruction becomes on the architecture.

    Args:
        instruction: see `parse` and `resolve`.
        arch: name of the architecture (`"sm_90a"`).

    Raises:
        UnknownArchitecture: no such architecture.
        UnsupportedInstruction: the architecture lacks it (the message says what it has instead), or it is known but not modelled.
    """
    return _lower(instruction, architecture(arch).name)


def is_modelled(spec: InstructionSpec, arch: str) -> bool:
    """Whether `lower` knows what the row's instructions compute on the architecture."""
    return arch in spec.lowerings and not LOWERINGS[spec.lowerings[arch]].unmodelled


# The table of what there is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Support:
    """One line of the support table: instructions of one architecture that share accumulator, datapath and evidence."""

    pattern: str
    """Their spelling, with sets in braces."""
    arch: str
    family: Family
    kind: str | None
    operands: str
    """Types of A and B."""
    accumulator: str
    scale: str
    """Block scales, or empty."""
    machine: tuple[str, ...]
    datapath: str | None
    evidence: Evidence | None
    modelled: bool
    note: str
    example: Instruction | None
    """The largest of them; None where there is no row."""


def _largest(spec: InstructionSpec, tile: Tile, pair: tuple[str, str], d: str, scale: ScaleMode | None) -> Instruction:
    rounding = spec.roundings[0] if spec.roundings else None
    query = Query(family=spec.family, kind=spec.kind or "", a=pair[0], b=pair[1], d=d, c=spec.c_type or d, rounding=rounding)
    return make_instruction(query, tile, tile.m[-1], tile.n[-1], scale)


def _pairs_text(pairs: list[tuple[str, str]]) -> str:
    lefts, rights = dict.fromkeys(a for a, _ in pairs), dict.fromkeys(b for _, b in pairs)
    if len(pairs) == len(lefts) * len(rights):
        return ".".join(f"{{{','.join(types)}}}" if len(types) > 1 else next(iter(types)) for types in (lefts, rights))
    return f"{{{','.join(f'{a}.{b}' for a, b in pairs)}}}"


def _pattern(spec: InstructionSpec, tile: Tile, pairs: list[tuple[str, str]], d: str, scale: ScaleMode | None) -> str:
    roundings = f"{{{','.join(spec.roundings)}}}" if spec.roundings else None
    return spell(
        family=spec.family, shape=str(tile), d=d, operands=_pairs_text(pairs), c=spec.c_type or d, kind=spec.kind,
        scale=(scale.scale_type, str(scale.block), scale.vector) if scale else None, cta_group=str(tile.cta_group), rounding=roundings,
    )  # fmt: skip


def _lines_of(spec: InstructionSpec, arch: str, tile: Tile, d: str, scale: ScaleMode | None) -> Iterator[Support]:
    """Lines of one row, tile, accumulator and scale mode: one for each level of evidence among the operand pairs."""
    row = LOWERINGS[spec.lowerings[arch]]
    groups: dict[Evidence | None, list[tuple[str, str]]] = {}
    for pair in spec.pairs:
        evidence = None if row.unmodelled else lower(_largest(spec, tile, pair, d, scale), arch).evidence
        groups.setdefault(evidence, []).append(pair)
    for evidence, pairs in groups.items():
        example = _largest(spec, tile, pairs[0], d, scale)
        datapath = None if row.unmodelled else _datapath(row, arch, d)
        yield Support(
            pattern=_pattern(spec, tile, pairs, d, scale), arch=arch, family=spec.family, kind=spec.kind,
            operands=_pairs_text(pairs), accumulator=d, scale=f"{scale.scale_type} block{scale.block}" if scale else "",
            machine=_machine(row, example), datapath=datapath.name if datapath else None, evidence=evidence,
            modelled=datapath is not None, note=_note(row, datapath), example=example,
        )  # fmt: skip


def _note(row: LoweringSpec, datapath: DatapathSpec | None) -> str:
    if datapath is None:
        return f"known but not modelled: {row.unmodelled}"
    return "; ".join(note for note in (row.note, datapath.note) if note)


def _known_line(form: KnownForm, arch: str) -> Support:
    return Support(
        pattern=form.pattern, arch=arch, family=form.family, kind=None, operands="", accumulator="", scale="", machine=(), datapath=None,
        evidence=None, modelled=False, note=f"known but not modelled: {form.reason}", example=None,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _all_lines() -> tuple[Support, ...]:
    rows = (
        line
        for arch in ARCHITECTURES for spec in INSTRUCTION_SPECS if arch in spec.lowerings
        for tile in spec.tiles for d in spec.accumulators for scale in (spec.scales or (None,))
        for line in _lines_of(spec, arch, tile, d, scale)
    )  # fmt: skip
    known = (_known_line(form, arch) for form in KNOWN_FORMS for arch in form.archs)
    return (*rows, *known)


def _family(name: str | Family) -> Family:
    if isinstance(name, Family):
        return name
    short = {word: family for family in Family for word in (family.value, family.value.split(".")[0])}
    if name not in short:
        raise UnknownInstruction(f"unknown instruction family {name!r}; known: {', '.join(map(str, Family))}")
    return short[name]


def instructions(*, arch: str | None = None, evidence: str | Evidence | None = None, family: str | Family | None = None) -> list[Support]:
    """What there is: a line for each row, architecture, shape range, accumulator, scale mode and level of evidence.

    Args:
        arch: only this architecture.
        evidence: only lines with at least this level; forms that are not modelled have none.
        family: only this family (`"wgmma"`, `"mma.sync"`, ...).

    Raises:
        UnknownArchitecture: no such architecture.
        UnknownInstruction: no such family.
        OperandError: no such level of evidence.
    """
    lines: Iterable[Support] = _all_lines()
    if arch is not None:
        wanted = architecture(arch).name
        lines = (line for line in lines if line.arch == wanted)
    if family is not None:
        chosen = _family(family)
        lines = (line for line in lines if line.family is chosen)
    if evidence is not None:
        level = evidence_level(evidence)
        lines = (line for line in lines if line.evidence is not None and line.evidence >= level)
    return list(lines)


def lowerings(arch: str | None = None) -> Iterator[Lowering]:
    """All that is modelled, on one architecture or on all: of each row's tiles, operand pairs, accumulators and scales the largest shape.

    Raises:
        UnknownArchitecture: no such architecture.
    """
    for name in ARCHITECTURES if arch is None else (architecture(arch).name,):
        for spec in INSTRUCTION_SPECS:
            if is_modelled(spec, name):
                for tile, pair, d, scale in product(spec.tiles, spec.pairs, spec.accumulators, spec.scales or (None,)):
                    yield lower(_largest(spec, tile, pair, d, scale), name)


__all__ = ["LOWERINGS", "Claim", "KOrder", "Lowering", "LoweringSpec", "Support", "instructions", "is_modelled", "lower", "lowerings"]
