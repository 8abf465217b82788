"""Reads PTX spellings of tensor-core instructions: whole ones (`parse`) and short ones (`resolve`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from mmabits.isa.architectures import ARCHITECTURES, architecture
from mmabits.isa.errors import UnknownInstruction, UnsupportedInstruction, nearest
from mmabits.isa.formats import FORMATS, FormatSpec, format_spec
from mmabits.isa.instructions import (
    INSTRUCTION_SPECS,
    KNOWN_FORMS,
    Family,
    Instruction,
    InstructionSpec,
    Query,
    ScaleMode,
    Tile,
    make_instruction,
    matching_accumulators,
    matching_pairs,
    matching_scales,
    matching_specs,
    matching_tiles,
    not_on,
)
from mmabits.isa.lowering import is_modelled

_SHAPE = re.compile(r"m([1-9][0-9]{0,3})n([1-9][0-9]{0,3})k([1-9][0-9]{0,3})")
_MARKS = {"wgmma": Family.WGMMA, "mma_async": Family.WGMMA, "tcgen05": Family.TCGEN05}
"""Words that only one family has; `mma` without them is mma.sync."""
_WORDS = {
    Family.MMA_SYNC: {"mma", "sync", "aligned", "row", "col"},
    Family.WGMMA: {"wgmma", "mma_async", "sync", "aligned"},
    Family.TCGEN05: {"tcgen05", "mma"},
}
"""Words that say nothing beyond the family."""
_PLAIN_WORDS = frozenset().union(*_WORDS.values())
_KINDS = {spec.kind for spec in INSTRUCTION_SPECS if spec.kind}
_ROUNDINGS = {rounding for spec in INSTRUCTION_SPECS for rounding in spec.roundings}
_VECTORS = {mode.vector for spec in INSTRUCTION_SPECS for mode in spec.scales if mode.vector}
_BLOCKS = {mode.block for spec in INSTRUCTION_SPECS for mode in spec.scales}

_QUALIFIERS: dict[str, tuple[str, object]] = {
    **{f"kind::{kind}": ("kind", kind) for kind in _KINDS},
    **{f"cta_group::{group}": ("cta_group", group) for group in (1, 2)},
    **{f"scale_vec::{vector}": ("vector", vector) for vector in _VECTORS},
    **{f"block{block}": ("block", block) for block in _BLOCKS},
    **{rounding: ("rounding", rounding) for rounding in _ROUNDINGS},
    "block_scale": ("scaled", True),
    "satfinite": ("satfinite", True),
    "negA": ("negate_a", True),
    "negB": ("negate_b", True),
    "scale_d::0": ("scale_d", False),
    "scale_d::1": ("scale_d", True),
    **{f"scale_input_d::{shift}": ("scale_input_d", shift) for shift in range(16)},
}
"""Every other qualifier, and the field of a query that it sets."""
_VOCABULARY = (*_PLAIN_WORDS, *_QUALIFIERS, *FORMATS)
_FAMILY_QUALIFIERS = {"cta_group": (Family.TCGEN05,), "block": (Family.TCGEN05,), "rounding": (Family.MMA_SYNC,)}
"""Fields that only some families spell."""


def _near(word: str, family: Family | None) -> str:
    """A hint at the qualifiers most like a word, none of another family's.

    A family is a generation: its name is only meant where the word begins alike and has the same number. wmma is no wgmma.
    """

    def is_meant(mark: str) -> bool:
        return family in (None, _MARKS[mark]) and mark[:2] == word[:2] and re.findall("[0-9]+", mark) == re.findall("[0-9]+", word)

    foreign = {name for name, owners in _FAMILY_QUALIFIERS.items() if family and family not in owners}
    words = [known for known in _VOCABULARY if known not in _MARKS or is_meant(known)]
    return nearest(word, [known for known in words if _QUALIFIERS.get(known, ("",))[0] not in foreign])


def _refuse_known_forms(words: list[str], family: Family | None, text: str) -> None:
    for form in KNOWN_FORMS:
        if form.word in words and form.family is (family or form.family):
            raise UnsupportedInstruction(f"{text} is known but not modelled: {form.reason} ({form.pattern})")


def _family(words: list[str], text: str) -> Family | None:
    found = {_MARKS[word] for word in words if word in _MARKS}
    if len(found) > 1:
        raise UnknownInstruction(f"{text}: mixes {' and '.join(sorted(map(str, found)))}")
    if found:
        return found.pop()
    return Family.MMA_SYNC if "mma" in words else None


def _check_plain_words(words: list[str], family: Family | None, text: str) -> None:
    plain = [word for word in words if word in _PLAIN_WORDS]
    if family is not None:
        foreign = [word for word in plain if word not in _WORDS[family]]
        if foreign:
            raise UnknownInstruction(f"{text}: {family} has no .{foreign[0]}")
    layouts = [word for word in plain if word in ("row", "col")]
    if layouts not in ([], ["row", "col"]):
        raise UnknownInstruction(f"{text}: layouts .{'.'.join(layouts)}; A is .row and B is .col (.row.col)")


def _qualifiers(words: list[str], family: Family | None, text: str) -> Iterator[tuple[str, object]]:
    for word in words:
        if word in _QUALIFIERS:
            name, value = _QUALIFIERS[word]
            owners = _FAMILY_QUALIFIERS.get(name, ())
            if family and owners and family not in owners:
                hint = "; mma.sync spells the block size scale_vec::1X, 2X or 4X" if name == "block" else ""
                raise UnknownInstruction(f"{text}: {family} has no .{word}{hint}")
            yield name, value
        elif shape := _SHAPE.fullmatch(word):
            yield from zip("mnk", map(int, shape.groups()), strict=True)
        elif word not in _PLAIN_WORDS and word not in FORMATS:
            raise UnknownInstruction(f"{text}: unknown qualifier {word!r}{_near(word, family)}")


def _types(words: list[str], family: Family | None, text: str) -> dict[str, str]:
    """The types by operand. They stand in the order D, A, B, C, scale; a lone one is D's."""
    names = [word for word in words if word in FORMATS]
    found: dict[str, str] = {}
    if names and FORMATS[names[-1]].scale_only:
        found["scale_type"] = names.pop()
    allowed = (0, 1, 3, 4) if family in (Family.MMA_SYNC, None) else (0, 1, 3)
    if len(names) not in allowed:
        raise UnknownInstruction(f"{text}: {len(names)} operand types; write D.A.B{'.C' if 4 in allowed else ''}, D alone, or none")
    return {**found, **dict(zip(("d", "a", "b", "c"), names, strict=False))}


def _read(text: str) -> Query:
    """The query that a spelling, whole or in part, makes. Qualifiers may stand in any order, types keep theirs."""
    if not isinstance(text, str):
        raise UnknownInstruction(f"an instruction is given as text, not as {type(text).__name__}")
    words = text.strip().split(".")
    family = _family(words, text)
    _refuse_known_forms(words, family, text)
    known = [word for word in words if word in _VOCABULARY or _SHAPE.fullmatch(word)]
    if not known:
        raise UnknownInstruction(f"unknown instruction {text!r}{_near(words[0], None)}; families: {', '.join(map(str, Family))}")
    _check_plain_words(words, family, text)
    found: dict[str, object] = {**_types(words, family, text)}
    types = len(found)
    stated = list(_qualifiers(words, family, text))
    found.update(stated)
    if len(found) != len(stated) + types:
        raise UnknownInstruction(f"{text}: a qualifier is given twice")
    return replace(Query(family=family), **found)  # type: ignore[arg-type]


def _only_scale(specs: list[InstructionSpec], query: Query, text: str) -> ScaleMode | None:
    modes = [mode for spec in specs for mode in matching_scales(spec, query)]
    if len(modes) > 1:
        spellings = " or ".join(f"{mode.scale_type} with block{mode.block} (scale_vec::{mode.vector})" for mode in modes)
        raise UnknownInstruction(f"{text} leaves the block scales open: {spellings}")
    return modes[0] if modes else None


def _rounding(spec: InstructionSpec, query: Query) -> str | None:
    return query.rounding or (spec.roundings[0] if spec.roundings else None)


def parse(text: str) -> Instruction:
    """The instruction of a whole PTX spelling: family, shape and every operand type are there.

    Args:
        text: for example `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32`. Qualifiers may stand in any order, types in
            PTX's (D, A, B, C, scale). tcgen05.mma, which keeps types and shape in a descriptor, is spelled
            `tcgen05.mma.cta_group::1.kind::f8f6f4.m128n256k32.f32.e4m3.e4m3`. Modifiers: `.negA`, `.negB`, `.scale_d::0`,
            `.scale_input_d::1` to `15`.

    Raises:
        UnknownInstruction: PTX has no such instruction, or the spelling is not whole; the message says what there is.
        UnsupportedInstruction: known but not modelled (sparse, weight-stationary and one-bit forms).
    """
    query = _read(text)
    missing = [
        name for name, there in (
            ("family", query.family), ("shape", query.m), ("operand types", query.a),
            ("type of C", query.c or query.family is not Family.MMA_SYNC or query.a is None),
            ("cta_group", query.cta_group or query.family is not Family.TCGEN05),
        ) if not there
    ]  # fmt: skip
    if missing:
        raise UnknownInstruction(f"{text} is not a whole spelling: it lacks {', '.join(missing)}; resolve() completes short ones")
    scaled = query.scaled or query.scale_type is not None or query.block is not None or query.vector is not None
    query = replace(query, kind=query.kind or "", c=query.c or query.d, scaled=scaled, cta_group=query.cta_group or 0)
    specs = matching_specs(query, text)
    (tile,) = matching_tiles(specs[0], query)
    complete = replace(query, rounding=_rounding(specs[0], query))
    return make_instruction(complete, tile, query.m or 0, query.n or 0, _only_scale(specs, query, text))


# Short spellings ---------------------------------------------------------------------------------------------------------


def _narrow(query: Query, text: str, **given: str | None) -> Query:
    """The query with the operands' types, which must not contradict the text."""
    added = {}
    for name, value in given.items():
        stated = getattr(query, name)
        if value is not None and stated is not None and stated != value:
            raise UnknownInstruction(f"{text}: {name.removesuffix('_type')} is {stated} in the text and {value} among the operands")
        added[name] = value or stated
    return replace(query, **added)  # type: ignore[arg-type]


def _rank(spec: InstructionSpec, tile: Tile, query: Query, arch: str) -> tuple[int, ...]:
    """Order of candidates, the best first: modelled, long K, one thread block, large tile, no kind, early row."""
    area = (query.m or tile.m[-1]) * (query.n or tile.n[-1])
    return (
        not is_modelled(spec, arch), -tile.k, tile.cta_group or 0, -area, spec.kind is not None, INSTRUCTION_SPECS.index(spec)
    )  # fmt: skip


def _best(specs: list[InstructionSpec], query: Query, arch: str) -> Instruction:
    candidates = [(spec, tile) for spec in specs for tile in matching_tiles(spec, query)]
    spec, tile = min(candidates, key=lambda candidate: _rank(candidate[0], candidate[1], query, arch))
    d, c = matching_accumulators(spec, query)[0]
    a, b = matching_pairs(spec, query)[0]
    scale = matching_scales(spec, query)[0] if spec.scales else None
    complete = replace(query, family=spec.family, kind=spec.kind or "", a=a, b=b, c=c, d=d, rounding=_rounding(spec, query))
    return make_instruction(complete, tile, query.m or tile.m[-1], query.n or tile.n[-1], scale)


def _has(spec: InstructionSpec, query: Query, arch: str) -> bool:
    return arch in spec.lowerings and (not query.scale_input_d or arch in spec.scale_input_d)


@lru_cache(maxsize=4096)
def _resolve(text: str, arch: str, a: str, b: str, c: str | None, scale_type: str | None) -> Instruction:
    query = _read(text)
    scaled = bool(query.scaled or query.block or query.vector or query.scale_type or scale_type or (query.kind or "").startswith("mx"))
    query = _narrow(replace(query, scaled=scaled), text, a=a, b=b, c=c, scale_type=scale_type)
    specs = matching_specs(query, text)
    here = [spec for spec in specs if _has(spec, query, arch)]
    if not here:
        raise not_on(text, arch, query, elsewhere=(name for spec in specs for name in spec.lowerings if _has(spec, query, name)))
    return _best(here, query, arch)


def _check_operands(instruction: Instruction, arch: str, given: dict[str, FormatSpec | None]) -> None:
    for operand, spec in given.items():
        has: FormatSpec | None = getattr(instruction, operand)
        if spec is not None and spec is not has:
            raise UnknownInstruction(f"{instruction}: {operand} is {has.name if has else 'none'}, the operand is {spec.name}")
    if instruction.on(arch) is None:
        raise not_on(instruction.ptx, arch, instruction.query, elsewhere=(name for name in ARCHITECTURES if instruction.on(name)))


def resolve(
    text: str | Instruction, *, arch: str, a_type: str | FormatSpec, b_type: str | FormatSpec, c_type: str | FormatSpec | None = None,
    scale_type: str | FormatSpec | None = None,
) -> Instruction:  # fmt: skip
    """The instruction that a short or partial spelling means for these operands on this architecture.

    What the text says constrains; the operands constrain further. Of what is left the architecture's instruction with the
    largest K is taken, then cta_group::1, then the largest tile, then the plain spelling before one with a kind.

    Args:
        text: `"wgmma"`, `"mma.sync.m16n8k16"`, `"tcgen05.mma.kind::mxf8f6f4.block_scale"`, a whole spelling, or an instruction,
            which is checked and returned.
        arch: name of the architecture.
        a_type: type of A.
        b_type: type of B.
        c_type: type of C and D; by default f32, or s32 or f64 where the operands ask for it.
        scale_type: type of the block scales; None: none, unless the text asks for them.

    Raises:
        UnknownArchitecture: no such architecture.
        UnknownFormat: no such operand type.
        UnknownInstruction: no instruction like that, or it does not take these operands.
        UnsupportedInstruction: the architecture lacks it, or it is known but not modelled.
    """
    target = architecture(arch).target
    a, b = format_spec(a_type), format_spec(b_type)
    c = None if c_type is None else format_spec(c_type)
    scale = None if scale_type is None else format_spec(scale_type, scale=True)
    if isinstance(text, Instruction):
        _check_operands(text, target, {"a_type": a, "b_type": b, "c_type": c, "scale_type": scale})
        return text
    return _resolve(text, target, a.name, b.name, c.name if c else None, scale.name if scale else None)


def complete(
    text: str, *, arch: str, a_type: str | FormatSpec, b_type: str | FormatSpec, c_type: str | FormatSpec, d_type: str | FormatSpec, k: int,
    m: int | None = None, n: int | None = None, scale_type: str | FormatSpec | None = None, block: int | None = None,
) -> Instruction:  # fmt: skip
    """The instruction of a spelling beside which types and shape are known, as in a recording.

    A whole spelling is read as `parse` does. PTX's own of tcgen05.mma leaves types and shape to a descriptor
    (`tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.scale_vec::4X`): they are taken from here. M and N that are left open are the
    largest: no element of D depends on them.

    Args:
        text: with the family, kind and cta_group.
        arch: architecture.
        a_type: type of A.
        b_type: type of B.
        c_type: type of C.
        d_type: type of D.
        k: elements of K, those of the instruction or fewer, as long as it is clear which instruction has them.
        m: rows of D.
        n: columns of D.
        scale_type: of the block scales, where there are any.
        block: elements that share a scale.

    Raises:
        UnknownInstruction: PTX has no such instruction, or it stays open which.
        UnsupportedInstruction: the architecture lacks it, or it is not modelled.
    """
    query = _read(text)
    if query.family is not Family.TCGEN05 or not query.cta_group or (query.a and query.m):
        return parse(text)
    if None not in (block, query.block) and block != query.block:
        raise UnknownInstruction(f"{text}: block{query.block} in the text, and a block of {block} beside it")
    a, b, c, d = (format_spec(given).name for given in (a_type, b_type, c_type, d_type))
    scale = None if scale_type is None else format_spec(scale_type, scale=True).name
    query = _narrow(query, text, a=a, b=b, c=c, d=d, scale_type=scale)
    query = replace(query, block=block, scaled=bool(query.scaled or scale), kind=query.kind or "", m=query.m or m, n=query.n or n)
    specs, target = matching_specs(query, text), architecture(arch).target
    here = [spec for spec in specs if _has(spec, query, target)]
    if not here:
        raise not_on(text, arch, query, elsewhere=(name for spec in specs for name in spec.lowerings if _has(spec, query, name)))
    there = {tile.k for spec in here for tile in matching_tiles(spec, query)}
    wanted = {k} & there or {each for each in there if each > k}
    if len(wanted) != 1:
        raise UnknownInstruction(f"{text} with k = {k} does not tell the shape; {arch} has K = {' and '.join(map(str, sorted(there)))}")
    return _best(here, replace(query, k=wanted.pop()), target)


__all__ = ["complete", "parse", "resolve"]
