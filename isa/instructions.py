"""Tensor-core instructions as rows: which shapes, operand types, scales and modifiers PTX has, and on which targets.

A row (`InstructionSpec`) is a set of constraints, not a list: the instruction it allows is made on demand (`Instruction`),
and making one checks it against the rows.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

from mmabits.isa.architectures import ARCHITECTURES, since
from mmabits.isa.errors import UnknownInstruction, UnsupportedInstruction
from mmabits.isa.formats import FormatSpec, format_spec
from mmabits.isa.rounding import QUALIFIERS, Rounding


class Family(enum.Enum):
    """The PTX instructions that multiply matrices on tensor cores."""

    MMA_SYNC = "mma.sync"
    WGMMA = "wgmma.mma_async"
    TCGEN05 = "tcgen05.mma"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Shapes: every `m` with every `n`, one `k`."""

    m: tuple[int, ...]
    n: tuple[int, ...]
    k: int
    cta_group: int | None = None

    def __str__(self) -> str:
        return f"m{spread(self.m)}n{spread(self.n)}k{self.k}"


@dataclass(frozen=True, kw_only=True)
class ScaleMode:
    """One way to scale blocks of operands."""

    scale_type: str
    block: int
    """Elements of K that share a scale."""
    vector: str
    """PTX `scale_vec::`: scales of one row of A in one instruction; empty where PTX has no such spelling."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InstructionSpec:
    """Instructions that differ only in what the row leaves open: every tile x operand pair x accumulator x scale mode."""

    name: str
    family: Family
    tiles: tuple[Tile, ...]
    types: tuple[str, ...]
    """What A and B may be."""
    mixed: bool = False
    """A and B may differ in type."""
    accumulators: tuple[str, ...]
    """What D may be, the default first."""
    c_type: str | None = None
    """What C is, where it is not the type of D."""
    kind: str | None = None
    scales: tuple[ScaleMode, ...] = ()
    """Ways to scale, the default first; empty: no block scales."""
    roundings: tuple[str, ...] = ()
    """Rounding qualifiers, the default first."""
    satfinite: bool = False
    negate: bool = False
    """Either operand can be negated."""
    skip_c: bool = False
    """C can be left out (`scale-d`, `enable-input-d`)."""
    scale_input_d: tuple[str, ...] = ()
    """Architectures where C can be scaled by 2^-1 to 2^-15."""
    lowerings: Mapping[str, str]
    """Architectures that have it, and the row of isa/lowering.py for each."""
    source: str = "ptx"

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every pair of types of A and B."""
        return tuple((a, b) for a in self.types for b in self.types if self.mixed or a == b)

    def __repr__(self) -> str:
        return f"<instructions {self.name}>"


def spread(values: Sequence[int]) -> str:
    """`8`, `{8,16}` or `{8..256}`."""
    if len(values) == 1:
        return str(values[0])
    return f"{{{values[0]},{values[1]}}}" if len(values) == 2 else f"{{{values[0]}..{values[-1]}}}"


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is known of an instruction; None leaves a field open."""

    family: Family | None = None
    kind: str | None = None
    """`""` for none."""
    m: int | None = None
    n: int | None = None
    k: int | None = None
    cta_group: int | None = None
    """0 for none."""
    a: str | None = None
    b: str | None = None
    c: str | None = None
    d: str | None = None
    scaled: bool | None = None
    scale_type: str | None = None
    block: int | None = None
    vector: str | None = None
    rounding: str | None = None
    satfinite: bool = False
    negate_a: bool = False
    negate_b: bool = False
    scale_d: bool = True
    scale_input_d: int = 0

    @property
    def shape(self) -> str:
        """The shape as far as it is known, `?` for what is not."""
        shape = "".join(f"{axis}{getattr(self, axis) or '?'}" for axis in "mnk")
        return f"{shape} cta_group::{self.cta_group}" if self.cta_group else shape


def _open(asked: object, has: object) -> bool:
    return asked is None or asked == has


def matching_tiles(spec: InstructionSpec, query: Query) -> list[Tile]:
    """The tiles of a row that the query allows."""
    return [
        tile for tile in spec.tiles
        if _open(query.k, tile.k) and _open(query.cta_group, tile.cta_group or 0)
        and (query.m is None or query.m in tile.m) and (query.n is None or query.n in tile.n)
    ]  # fmt: skip


def matching_scales(spec: InstructionSpec, query: Query) -> list[ScaleMode]:
    """The scale modes of a row that the query allows."""
    return [
        mode for mode in spec.scales
        if _open(query.scale_type, mode.scale_type) and _open(query.block, mode.block) and _open(query.vector, mode.vector)
    ]  # fmt: skip


def matching_accumulators(spec: InstructionSpec, query: Query) -> list[tuple[str, str]]:
    """The (D, C) types of a row that the query allows."""
    pairs = ((d, spec.c_type or d) for d in spec.accumulators)
    return [(d, c) for d, c in pairs if _open(query.d, d) and _open(query.c, c)]


def matching_pairs(spec: InstructionSpec, query: Query) -> list[tuple[str, str]]:
    """The (A, B) types of a row that the query allows."""
    return [(a, b) for a, b in spec.pairs if _open(query.a, a) and _open(query.b, b)]


def operand_text(spec: InstructionSpec) -> str:
    """`f16`, or `{e4m3,e5m2}` where A and B choose freely."""
    return f"{{{','.join(spec.types)}}}" if spec.mixed else " or ".join(spec.types)


def _scales_fit(spec: InstructionSpec, query: Query) -> bool:
    asked = query.scaled or any(value is not None for value in (query.scale_type, query.block, query.vector))
    if asked:
        return bool(matching_scales(spec, query))
    return query.scaled is None or not spec.scales


def _scale_text(spec: InstructionSpec) -> str:
    return " or ".join(f"{mode.scale_type} block{mode.block}" for mode in spec.scales) or "no block scales"


def _asked_scales(query: Query) -> str:
    parts = (query.scale_type, query.block and f"block{query.block}", query.vector and f"scale_vec::{query.vector}")
    text = " ".join(part for part in parts if part)
    return f"block scales {text}".rstrip() if text or query.scaled else "instruction without block scales"


def _asked_accumulator(query: Query) -> str:
    return " and ".join(f"{name} {value}" for name, value in (("D", query.d), ("C", query.c)) if value)


def _modifiers_fit(spec: InstructionSpec, query: Query) -> bool:
    return (
        (query.rounding is None or query.rounding in spec.roundings) and (spec.satfinite or not query.satfinite)
        and (spec.negate or not (query.negate_a or query.negate_b)) and (spec.skip_c or query.scale_d)
        and (not query.scale_input_d or (bool(spec.scale_input_d) and 0 < query.scale_input_d < 16))
    )  # fmt: skip


def _modifier_text(spec: InstructionSpec) -> str:
    had = [
        *spec.roundings, *(["satfinite"] if spec.satfinite else []), *(["negA", "negB"] if spec.negate else []),
        *(["scale_d::0"] if spec.skip_c else []), *(["scale_input_d::1 to 15"] if spec.scale_input_d else []),
    ]  # fmt: skip
    return ", ".join(had) or "no modifiers"


def _asked_modifiers(query: Query) -> str:
    had = [
        query.rounding, query.satfinite and "satfinite", query.negate_a and "negA", query.negate_b and "negB",
        not query.scale_d and "scale_d::0", query.scale_input_d and f"scale_input_d::{query.scale_input_d}",
    ]  # fmt: skip
    return ", ".join(str(word) for word in had if word)


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """One question put to the rows that are left; `asked` and `has` word the answer where none is left after it."""

    fits: Callable[[InstructionSpec, Query], bool]
    asked: Callable[[Query], str]
    has: Callable[[InstructionSpec], str]
    named: Callable[[Query], str] = lambda _query: ""
    """What a later stage calls the rows that passed."""


_STAGES = (
    _Stage(
        fits=lambda spec, query: _open(query.family, spec.family),
        asked=lambda query: str(query.family),
        has=lambda spec: str(spec.family),
        named=lambda query: str(query.family or ""),
    ),
    _Stage(
        fits=lambda spec, query: _open(query.kind, spec.kind or ""),
        asked=lambda query: f"kind::{query.kind}" if query.kind else "instruction without kind",
        has=lambda spec: f"kind::{spec.kind}" if spec.kind else "no kind",
        named=lambda query: f"kind::{query.kind}" if query.kind else "",
    ),
    _Stage(
        fits=lambda spec, query: bool(matching_pairs(spec, query)),
        asked=lambda query: f"operands {query.a or '?'} x {query.b or '?'}",
        has=operand_text,
    ),
    _Stage(fits=_scales_fit, asked=_asked_scales, has=_scale_text),
    _Stage(
        fits=lambda spec, query: bool(matching_accumulators(spec, query)),
        asked=_asked_accumulator,
        has=lambda spec: " or ".join(f"D {d} with C {spec.c_type or d}" for d in spec.accumulators),
    ),
    _Stage(
        fits=lambda spec, query: bool(matching_tiles(spec, query)),
        asked=lambda query: f"shape {query.shape}",
        has=lambda spec: ", ".join(f"{tile} cta_group::{tile.cta_group}" if tile.cta_group else str(tile) for tile in spec.tiles),
    ),
    _Stage(fits=_modifiers_fit, asked=_asked_modifiers, has=_modifier_text),
)


def _listed(words: Iterable[str], most: int = 6) -> str:
    distinct = list(dict.fromkeys(words))
    more = f" and {len(distinct) - most} more" if len(distinct) > most else ""
    return ", ".join(distinct[:most]) + more


def matching_specs(query: Query, text: str) -> list[InstructionSpec]:
    """The rows that allow what the query says.

    Args:
        query: what is known of the instruction.
        text: what to call it in an error.

    Raises:
        UnknownInstruction: no row; the message names the first demand that none meets, and what there is instead.
    """
    left: Sequence[InstructionSpec] = _INDEX[query.family] if query.family else INSTRUCTION_SPECS
    known = ""
    for stage in _STAGES:
        fitting = [spec for spec in left if stage.fits(spec, query)]
        if not fitting:
            near = f"{known} has" if known else "there is"
            raise UnknownInstruction(f"{text}: {near} no {stage.asked(query)}; allowed: {_listed(map(stage.has, left))}")
        left = fitting
        known = f"{known} {stage.named(query)}".strip()
    return list(left)


def spell(
    *, family: Family, shape: str, d: str, operands: str, c: str, kind: str | None = None, scale: tuple[str, str, str] | None = None,
    cta_group: str = "", rounding: str | None = None, satfinite: bool = False, negate_a: bool = False, negate_b: bool = False,
    scale_d: bool = True, scale_input_d: int = 0,
) -> str:  # fmt: skip
    """The canonical spelling, in PTX's order; the types that tcgen05.mma keeps in its descriptor are written out.

    All parts come as text, so that a pattern can be spelled too; `scale` is scale type, block size and vector size.
    """
    words = [str(family)]
    kinds = [f"kind::{kind}"] if kind else []
    scale_type = [scale[0]] if scale else []
    saturated = ["satfinite"] if satfinite else []
    match family:
        case Family.MMA_SYNC:
            scaled = ["block_scale", f"scale_vec::{scale[2]}"] if scale else []
            rounded = [rounding] if rounding else []
            words += ["aligned", shape, "row", "col", *kinds, *scaled, *rounded, *saturated, d, operands, c, *scale_type]
        case Family.WGMMA:
            words += ["sync", "aligned", shape, d, operands, *saturated]
        case Family.TCGEN05:
            scaled = ["block_scale", f"block{scale[1]}"] if scale else []
            words += [f"cta_group::{cta_group}", *kinds, *scaled, shape, d, operands, *scale_type, *saturated]
    words += ["negA"] if negate_a else []
    words += ["negB"] if negate_b else []
    words += [] if scale_d else ["scale_d::0"]
    words += [f"scale_input_d::{scale_input_d}"] if scale_input_d else []
    return ".".join(words)


def _instruction(values: tuple[Any, ...]) -> Instruction:
    """One out of a pickle."""
    return Instruction(**dict(zip((each.name for each in fields(Instruction)), values, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One tensor-core instruction, D = A * B + C. Hashable.

    Raises:
        UnknownInstruction: PTX has no such instruction on any target.
    """

    family: Family
    m: int
    n: int
    k: int
    d_type: FormatSpec
    a_type: FormatSpec
    b_type: FormatSpec
    c_type: FormatSpec
    kind: str | None = None
    """`f16`, `tf32`, `i8`, `f8f6f4`, `mxf8f6f4`, `mxf4`, `mxf4nvf4`."""
    scale_type: FormatSpec | None = None
    block: int | None = None
    """Elements of K that share a block scale."""
    cta_group: int | None = None
    """Thread blocks that work together (tcgen05.mma): 1 or 2."""
    rounding: str | None = None
    """`rn`, `rz`, `rm`, `rp` (f64)."""
    satfinite: bool = False
    """Integer results saturate."""
    negate_a: bool = False
    negate_b: bool = False
    scale_d: bool = True
    """False: D = A * B, and C is not read."""
    scale_input_d: int = 0
    """C is multiplied by 2^-scale_input_d first."""

    def __post_init__(self) -> None:
        if (self.scale_type is None) != (self.block is None):
            raise UnknownInstruction(f"block scales need a type and a block size; got type {self.scale_type} and block {self.block}")
        if not self.specs:
            raise UnknownInstruction(f"{self.ptx}: no row allows it")

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return _instruction, (tuple(getattr(self, each.name) for each in fields(self)),)  # without what is kept of its rows

    @cached_property
    def _hash(self) -> int:
        """Computed once: instructions are in the keys of many tables."""
        return hash(tuple(getattr(self, each.name) for each in fields(self)))

    @cached_property
    def specs(self) -> tuple[InstructionSpec, ...]:
        """The rows that allow it; targets may have it from different rows."""
        specs = matching_specs(self.query, self.ptx)
        if self.rounding is None and any(spec.roundings for spec in specs):
            raise UnknownInstruction(f"{self.ptx}: no rounding; it takes {', '.join(specs[0].roundings)}")
        return tuple(specs)

    @property
    def query(self) -> Query:
        """The instruction as a query that leaves nothing open."""
        return Query(
            family=self.family, kind=self.kind or "", m=self.m, n=self.n, k=self.k, cta_group=self.cta_group or 0,
            a=self.a_type.name, b=self.b_type.name, c=self.c_type.name, d=self.d_type.name,
            scaled=self.scale_type is not None or self.block is not None, scale_type=self.scale_type.name if self.scale_type else None,
            block=self.block, rounding=self.rounding, satfinite=self.satfinite, negate_a=self.negate_a, negate_b=self.negate_b,
            scale_d=self.scale_d, scale_input_d=self.scale_input_d,
        )  # fmt: skip

    @property
    def ptx(self) -> str:
        """The canonical spelling; `parse` reads it back."""
        scale = (self.scale_type.name, str(self.block), f"{self.k // self.block}X") if self.scale_type and self.block else None
        return spell(
            family=self.family, shape=self.shape, d=self.d_type.name, operands=f"{self.a_type.name}.{self.b_type.name}", c=self.c_type.name,
            kind=self.kind, scale=scale, cta_group=str(self.cta_group), rounding=self.rounding, satfinite=self.satfinite,
            negate_a=self.negate_a, negate_b=self.negate_b, scale_d=self.scale_d, scale_input_d=self.scale_input_d,
        )  # fmt: skip

    @property
    def rounding_mode(self) -> Rounding:
        """That of its qualifier; to nearest even without one."""
        return Rounding.NEAREST_EVEN if self.rounding is None else Rounding(self.rounding)

    @property
    def shape(self) -> str:
        """`m16n8k16`."""
        return f"m{self.m}n{self.n}k{self.k}"

    def on(self, arch: str) -> InstructionSpec | None:
        """The row that gives it to an architecture, or None."""
        allowed = (spec for spec in self.specs if not self.scale_input_d or arch in spec.scale_input_d)
        return next((spec for spec in allowed if arch in spec.lowerings), None)

    def __str__(self) -> str:
        return self.ptx

    def __repr__(self) -> str:
        return f"<instruction {self.ptx}>"


def not_on(what: str, arch: str, query: Query, *, elsewhere: Iterable[str]) -> UnsupportedInstruction:
    """The error for an architecture that lacks an instruction: it says what the architecture has for these operands.

    Args:
        what: the instruction as the caller spelled it.
        arch: name of the architecture.
        query: the instruction; family and types of A and B are read.
        elsewhere: names of the architectures that have it.
    """
    operands = f"{query.a} x {query.b}"
    here = [spec for spec in INSTRUCTION_SPECS if arch in spec.lowerings and matching_pairs(spec, query)]
    families = dict.fromkeys(spec.family for spec in reversed(here))
    shapes = _listed(str(tile) for spec in here if spec.family is query.family for tile in spec.tiles)
    having = [f"{family} {shapes}" if family is query.family else str(family) for family in families]
    instead = f"for {operands} it has {', '.join(having)}" if having else f"no tensor-core instruction there takes {operands}"
    others = set(elsewhere)
    return UnsupportedInstruction(
        f"{arch} has no {what}; {instead}; targets with it: {', '.join(name for name in ARCHITECTURES if name in others)}"
    )


# Targets -----------------------------------------------------------------------------------------------------------------


def _since(first: str, lowering: str) -> dict[str, str]:
    return dict.fromkeys(since(first), lowering)


def _on(lowering: str, *archs: str) -> dict[str, str]:
    return dict.fromkeys(archs, lowering)


_DATACENTER = ("sm_100a", "sm_103a", "sm_110a")
_CONSUMER = ("sm_120a", "sm_121a")
_ULTRA = ("sm_103a",)

# Types and shapes --------------------------------------------------------------------------------------------------------

_FP8 = ("e4m3", "e5m2")
_F8F6F4 = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
_FLOAT = ("f32", "f16")
_BY_8 = tuple(range(8, 257, 8))
_BY_16 = tuple(range(16, 257, 16))
_BY_32 = tuple(range(32, 257, 32))
_INTEGER_N = (8, 16, 24, *range(32, 257, 16))
_UE8M0_32_1X = ScaleMode(scale_type="ue8m0", block=32, vector="1X")
_UE8M0_32_2X = ScaleMode(scale_type="ue8m0", block=32, vector="2X")
_UE8M0_16_4X = ScaleMode(scale_type="ue8m0", block=16, vector="4X")
_UE4M3_16_4X = ScaleMode(scale_type="ue4m3", block=16, vector="4X")
_UE8M0_32_K96 = ScaleMode(scale_type="ue8m0", block=32, vector="")
_UE8M0_16_K96 = ScaleMode(scale_type="ue8m0", block=16, vector="")
_UE4M3_16_K96 = ScaleMode(scale_type="ue4m3", block=16, vector="")


def _warp(m: int, n: int, *k: int) -> tuple[Tile, ...]:
    return tuple(Tile(m=(m,), n=(n,), k=each) for each in k)


def _warpgroup(k: int, n: tuple[int, ...] = _BY_8) -> tuple[Tile, ...]:
    return (Tile(m=(64,), n=n, k=k),)


def _ctas(k: int, m1: tuple[int, ...] = (64, 128), *, n1: tuple[int, ...] = _BY_8, n2: tuple[int, ...] = _BY_16) -> tuple[Tile, ...]:
    return (Tile(m=m1, n=n1, k=k, cta_group=1), Tile(m=(128, 256), n=n2, k=k, cta_group=2))


@dataclass(frozen=True)
class _FamilyRows:
    """Makes the rows of one family, which share a prefix of their names and most modifiers."""

    family: Family
    negate: bool = False
    skip_c: bool = False

    def __call__(
        self, name: str, tiles: tuple[Tile, ...], types: tuple[str, ...], accumulators: tuple[str, ...], lowerings: Mapping[str, str], *,
        mixed: bool = False, c_type: str | None = None, kind: str | None = None, scales: tuple[ScaleMode, ...] = (),
        roundings: tuple[str, ...] = (), satfinite: bool = False, negate: bool | None = None, scale_input_d: tuple[str, ...] = (),
        source: str = "ptx",
    ) -> InstructionSpec:  # fmt: skip
        return InstructionSpec(
            name=f"{self.family}.{name}", family=self.family, tiles=tiles, types=types, mixed=mixed, accumulators=accumulators,
            c_type=c_type, kind=kind, scales=scales, roundings=roundings, satfinite=satfinite,
            negate=self.negate if negate is None else negate, skip_c=self.skip_c,
            scale_input_d=scale_input_d, lowerings=MappingProxyType(dict(lowerings)), source=source,
        )  # fmt: skip


_mma = _FamilyRows(Family.MMA_SYNC)
_wgmma = _FamilyRows(Family.WGMMA, negate=True, skip_c=True)
_tcgen05 = _FamilyRows(Family.TCGEN05, negate=True, skip_c=True)

_HMMA_884 = {**_since("sm_70", "software"), **_on("hmma.884", "sm_70"), **_on("hmma.884.turing", "sm_75")}
_HMMA_884_MIXED = {**_since("sm_70", "software"), **_on("hmma.884.mixed", "sm_70", "sm_75")}
_F8_WARP = {"sm_89": "qmma.f8", **_on("f2fp.hmma", "sm_90a", *_DATACENTER), **_on("qmma.f8f6f4", *_CONSUMER)}
_INT8_75 = {**_since("sm_75", "imma"), **_since("sm_100a", "imma.rows16")}
_INT4_75 = {**_since("sm_75", "imma"), **_since("sm_90a", "imma.unpacked"), **_since("sm_100a", "imma.unpacked.rows16")}
_INT4_80 = {**_since("sm_80", "imma"), **_since("sm_90a", "imma.unpacked")}
_DMMA_884 = {**_since("sm_80", "dmma.884"), **_since("sm_90a", "dmma.8x8x4")}

# fmt: off
INSTRUCTION_SPECS: tuple[InstructionSpec, ...] = (
    _mma("f16.m8n8k4",         _warp(8, 8, 4),       ("f16",),  _FLOAT,   _HMMA_884),
    _mma("f16.m8n8k4.mixed",   _warp(8, 8, 4),       ("f16",),  ("f32",), _HMMA_884_MIXED, c_type="f16"),
    _mma("f16.m16n8k8",        _warp(16, 8, 8),      ("f16",),  _FLOAT,   _since("sm_75", "hmma.f16.half")),
    _mma("f16.m16n8k16",       _warp(16, 8, 16),     ("f16",),  _FLOAT,   _since("sm_80", "hmma.f16")),
    _mma("bf16.m16n8k8",       _warp(16, 8, 8),      ("bf16",), ("f32",), _since("sm_80", "hmma.bf16.half")),
    _mma("bf16.m16n8k16",      _warp(16, 8, 16),     ("bf16",), ("f32",), _since("sm_80", "hmma.bf16")),
    _mma("tf32.m16n8k4",       _warp(16, 8, 4),      ("tf32",), ("f32",), _since("sm_80", "hmma.tf32.half")),
    _mma("tf32.m16n8k8",       _warp(16, 8, 8),      ("tf32",), ("f32",), _since("sm_80", "hmma.tf32")),
    _mma("f8",                 _warp(16, 8, 16, 32), _FP8,      _FLOAT,   _F8_WARP, mixed=True),
    # Where the unit is missing, the compiler takes this kind for the 8-bit types only.
    _mma("kind::f8f6f4.f8",    _warp(16, 8, 32),     _FP8,      _FLOAT,   _on("f2fp.hmma", *_DATACENTER), mixed=True, kind="f8f6f4",
         source="machine-code"),
    _mma("kind::f8f6f4",       _warp(16, 8, 32),     _F8F6F4,   _FLOAT,   _on("qmma.f8f6f4", *_CONSUMER), mixed=True, kind="f8f6f4"),
    _mma("kind::mxf8f6f4",     _warp(16, 8, 32),     _F8F6F4,   ("f32",), _on("qmma.sf", *_CONSUMER), mixed=True, kind="mxf8f6f4",
         scales=(_UE8M0_32_1X,)),
    _mma("kind::mxf4",         _warp(16, 8, 64),     ("e2m1",), ("f32",), _on("omma.sf", *_CONSUMER), kind="mxf4", scales=(_UE8M0_32_2X,)),
    _mma("kind::mxf4nvf4",     _warp(16, 8, 64),     ("e2m1",), ("f32",), _on("omma.sf", *_CONSUMER), kind="mxf4nvf4",
         scales=(_UE4M3_16_4X, _UE8M0_32_2X)),
    _mma("kind::mxf4nvf4.ptx91", _warp(16, 8, 64),   ("e2m1",), ("f32",), _on("omma.sf.ptx91", *_CONSUMER), kind="mxf4nvf4",
         scales=(_UE8M0_16_4X,)),
    _mma("f64.m8n8k4",         _warp(8, 8, 4),       ("f64",),  ("f64",), _DMMA_884, roundings=QUALIFIERS),
    _mma("f64.m16n8",          _warp(16, 8, 4, 8, 16), ("f64",), ("f64",), {**_since("sm_90a", "dmma.chain"), **_on("dmma.16x8", "sm_90a")},
         roundings=QUALIFIERS),
    _mma("int8.m8n8",          _warp(8, 8, 16),      ("s8", "u8"), ("s32",), _INT8_75, mixed=True, satfinite=True),
    _mma("int8.m16n8",         _warp(16, 8, 16, 32), ("s8", "u8"), ("s32",), _since("sm_80", "imma"), mixed=True, satfinite=True),
    _mma("int4.m8n8",          _warp(8, 8, 32),      ("s4", "u4"), ("s32",), _INT4_75, mixed=True, satfinite=True),
    _mma("int4.m16n8",         _warp(16, 8, 32, 64), ("s4", "u4"), ("s32",), _INT4_80, mixed=True, satfinite=True),

    _wgmma("f16",  _warpgroup(16), ("f16",),  _FLOAT,   _on("wgmma.f16", "sm_90a")),
    _wgmma("bf16", _warpgroup(16), ("bf16",), ("f32",), _on("wgmma.bf16", "sm_90a")),
    _wgmma("tf32", _warpgroup(8),  ("tf32",), ("f32",), _on("wgmma.tf32", "sm_90a")),
    _wgmma("f8",   _warpgroup(32), _FP8,      _FLOAT,   _on("wgmma.f8", "sm_90a"), mixed=True),
    _wgmma("int8", _warpgroup(32, _INTEGER_N), ("s8", "u8"), ("s32",), _on("wgmma.int8", "sm_90a"), mixed=True,
           satfinite=True, negate=False),

    _tcgen05("kind::f16.f16",  _ctas(16), ("f16",),  _FLOAT,   _on("tcgen05.f16", *_DATACENTER), kind="f16",
             scale_input_d=("sm_100a", "sm_103a")),
    _tcgen05("kind::f16.bf16", _ctas(16), ("bf16",), ("f32",), _on("tcgen05.bf16", *_DATACENTER), kind="f16",
             scale_input_d=("sm_100a", "sm_103a")),
    _tcgen05("kind::tf32",     _ctas(8),  ("tf32",), ("f32",), _on("tcgen05.tf32", *_DATACENTER), kind="tf32",
             scale_input_d=("sm_100a", "sm_103a")),
    _tcgen05("kind::f8f6f4",   _ctas(32), _F8F6F4,   _FLOAT,   _on("tcgen05.f8f6f4", *_DATACENTER), mixed=True, kind="f8f6f4"),
    _tcgen05("kind::i8", _ctas(32, n1=_INTEGER_N, n2=_BY_32), ("s8", "u8"), ("s32",), _on("tcgen05.int8", "sm_100a", "sm_110a"), mixed=True,
             kind="i8", satfinite=True, negate=False),
    _tcgen05("kind::mxf8f6f4", _ctas(32, (128,)), _F8F6F4, ("f32",), _on("tcgen05.mxf8f6f4", *_DATACENTER), mixed=True, kind="mxf8f6f4",
             scales=(_UE8M0_32_1X,)),
    _tcgen05("kind::mxf4",     _ctas(64, (128,)), ("e2m1",), ("f32",), _on("tcgen05.mxf4", *_DATACENTER), kind="mxf4",
             scales=(_UE8M0_32_2X,)),
    _tcgen05("kind::mxf4nvf4", _ctas(64, (128,)), ("e2m1",), ("f32",),
             {**_on("tcgen05.mxf4nvf4", "sm_100a", "sm_110a"), **_on("tcgen05.mxf4nvf4.ultra", *_ULTRA)}, kind="mxf4nvf4",
             scales=(_UE4M3_16_4X, _UE8M0_32_2X, _UE8M0_16_4X)),
    _tcgen05("kind::mxf4.k96", _ctas(96, (128,), n1=_BY_16), ("e2m1",), ("f32",), _on("tcgen05.k96", *_ULTRA), kind="mxf4",
             scales=(_UE8M0_32_K96,)),
    _tcgen05("kind::mxf4nvf4.k96", _ctas(96, (128,), n1=_BY_16), ("e2m1",), ("f32",), _on("tcgen05.k96", *_ULTRA), kind="mxf4nvf4",
             scales=(_UE4M3_16_K96, _UE8M0_32_K96, _UE8M0_16_K96)),
)
# fmt: on
"""Every row. Where two rows allow one instruction, no architecture has it from both."""

_INDEX = {family: tuple(spec for spec in INSTRUCTION_SPECS if spec.family is family) for family in Family}


@dataclass(frozen=True, kw_only=True)
class KnownForm:
    """Instructions that PTX has and that are not modelled: recognised by a word of their names."""

    family: Family
    word: str
    """Qualifier that gives it away."""
    pattern: str
    archs: tuple[str, ...]
    reason: str


_FROM_75, _FROM_80 = since("sm_75"), since("sm_80")


def _known(family: Family, word: str, pattern: str, archs: tuple[str, ...], reason: str) -> KnownForm:
    return KnownForm(family=family, word=word, pattern=pattern, archs=archs, reason=reason)


# fmt: off
KNOWN_FORMS: tuple[KnownForm, ...] = (
    _known(Family.MMA_SYNC, "sp",                   "mma.sp.sync.aligned",                   _FROM_80,    "2:4 sparse A"),
    _known(Family.MMA_SYNC, "sp::ordered_metadata", "mma.sp::ordered_metadata.sync.aligned", _FROM_80,    "2:4 sparse A"),
    _known(Family.MMA_SYNC, "b1",                   "mma.sync.aligned s32.b1.b1.s32",        _FROM_75,    "one-bit operands"),
    _known(Family.WGMMA,    "sp",                   "wgmma.mma_async.sp.sync.aligned",       ("sm_90a",), "2:4 sparse A"),
    _known(Family.WGMMA,    "b1",                   "wgmma.mma_async.sync.aligned s32.b1.b1", ("sm_90a",), "one-bit operands"),
    _known(Family.TCGEN05,  "sp",                   "tcgen05.mma.sp",                        _DATACENTER, "2:4 sparse A"),
    _known(Family.TCGEN05,  "ws",                   "tcgen05.mma.ws",                        _DATACENTER, "weight-stationary form"),
)
# fmt: on
"""Forms that no row describes."""


@lru_cache(maxsize=4096)
def make_instruction(query: Query, tile: Tile, m: int, n: int, scale: ScaleMode | None) -> Instruction:
    """The instruction that a query with its types filled in, a shape and a scale mode make."""
    if query.family is None or query.a is None or query.b is None or query.c is None or query.d is None:
        raise UnknownInstruction("an instruction needs a family and the types of A, B, C and D")
    return Instruction(
        family=query.family, m=m, n=n, k=tile.k, d_type=format_spec(query.d), a_type=format_spec(query.a), b_type=format_spec(query.b),
        c_type=format_spec(query.c), kind=query.kind or None, scale_type=format_spec(scale.scale_type) if scale else None,
        block=scale.block if scale else None, cta_group=tile.cta_group, rounding=query.rounding, satfinite=query.satfinite,
        negate_a=query.negate_a, negate_b=query.negate_b, scale_d=query.scale_d, scale_input_d=query.scale_input_d,
    )  # fmt: skip


__all__ = [
    "INSTRUCTION_SPECS",
    "KNOWN_FORMS",
    "Family",
    "Instruction",
    "InstructionSpec",
    "KnownForm",
    "Query",
    "ScaleMode",
    "Tile",
]
