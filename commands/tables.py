"""Tables of support and of datapaths, one instruction in full; for people (rich, Markdown) and programs (JSON). From the rows of isa/."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

import mmabits.isa
from mmabits.isa import (
    ARCHITECTURES,
    DATAPATHS,
    FORMATS,
    DatapathSpec,
    Evidence,
    Family,
    FormatSpec,
    Instruction,
    Lowering,
    Proof,
    Support,
    lower,
)
from mmabits.isa.datapaths import Arithmetic

_STYLE: Final = {Evidence.RECORDED: "green", Evidence.PUBLISHED: "yellow", Evidence.INFERRED: "red"}


# The support table -----------------------------------------------------------------------------------------------------


def support_table(rows: Sequence[Support]) -> Table:
    """A line for each form."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("arch", "instruction", "machine", "evidence", "note"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        machine = f"{row.machine[0]} .. {row.machine[-1]}" if len(row.machine) > 1 else "".join(row.machine)
        style = _STYLE.get(row.evidence, "dim") if row.evidence is not None else "dim"
        level = "not modelled" if row.evidence is None else str(row.evidence)
        table.add_row(row.arch, escape(row.pattern), escape(machine), f"[{style}]{level}[/]", escape(row.note))
    return table


def support_json(rows: Iterable[Support]) -> list[dict[str, Any]]:
    """The same as plain values."""
    return [
        {
            "arch": row.arch,
            "family": str(row.family),
            "kind": row.kind,
            "instruction": row.pattern,
            "example": None if row.example is None else row.example.ptx,
            "operands": row.operands,
            "accumulator": row.accumulator,
            "scale": row.scale or None,
            "machine": list(row.machine),
            "datapath": row.datapath,
            "evidence": None if row.evidence is None else str(row.evidence),
            "modelled": row.modelled,
            "note": row.note,
        }
        for row in rows
    ]


def counts_text(rows: Iterable[Support]) -> str:
    """`9 recorded, 3 published, 2 not modelled`; empty where there are no rows."""
    counts = Counter(row.evidence for row in rows)
    words = [f"{counts[level]} {level}" for level in sorted(Evidence, reverse=True) if counts[level]]
    return ", ".join([*words, *([f"{counts[None]} not modelled"] if counts[None] else [])])


def support_markdown(rows: Sequence[Support]) -> str:
    """The table of docs/support.md: how many forms each architecture has of each family, and with which evidence.

    Returns:
        Lines without a newline at the end.
    """
    families = [family for family in Family if any(row.family is family for row in rows)]
    lines = [
        "| Architecture | GPUs | " + " | ".join(f"`{family}`" for family in families) + " |",
        "|" + "---|" * (len(families) + 2),
    ]
    for arch in ARCHITECTURES.values():
        cells = [counts_text(row for row in rows if row.arch == arch.name and row.family is family) or "-" for family in families]
        if set(cells) != {"-"}:
            lines.append(f"| `{arch.name}` {arch.family} | {', '.join(arch.gpus)} | {' | '.join(cells)} |")
    total = counts_text(rows)
    lines += ["", f"Forms: {total}. A form is a shape (N and M may range), a set of operand types, an accumulator and a scale type."]
    return "\n".join(lines)


def support_summary(rows: Sequence[Support]) -> str:
    """The table of the README: what each architecture has, and how many of its forms are known how well.

    Returns:
        Lines without a newline at the end.
    """
    lines = ["| Architecture | GPUs | Instructions | Forms |", "|---|---|---|---|"]
    for arch in ARCHITECTURES.values():
        known = [row for row in rows if row.arch == arch.name and row.evidence is not None]
        families = ", ".join(f"`{family}`" for family in Family if any(row.family is family for row in known))
        lines.append(f"| `{arch.name}` {arch.family} | {', '.join(arch.gpus)} | {families} | {counts_text(known)} |")
    return "\n".join(lines)


# The table of datapaths ------------------------------------------------------------------------------------------------


_ALIGNED: Final = (Arithmetic.FUSED, Arithmetic.GROUPED)
_EXACT_STEPS: Final = {
    Arithmetic.FMA_CHAIN: "a chain of fused multiply-adds, each rounded as the instruction says",
    Arithmetic.INTEGER: "exact",
}


def _result_text(row: DatapathSpec) -> str:
    """`f32 rz 23`: format, rounding, fraction bits; for unaligned arithmetic what there is instead."""
    if row.arithmetic not in _ALIGNED:
        return f"{row.result.name}, {_EXACT_STEPS[row.arithmetic]}"
    return f"{row.result.name} {row.result_rounding.value} {row.result_fraction_bits}"


def _datapath_cells(row: DatapathSpec) -> tuple[str, ...]:
    """A row of the table without its architecture: rows that agree in it share a line."""
    if row.arithmetic in _ALIGNED:
        step = f"{row.step}, in groups of {row.group}" if row.group > 1 else str(row.step)
        numbers = (str(row.fraction_bits), step, str(row.zero_exponent))
    else:
        numbers = ("-", "-", "-")
    levels = [f"{proof.level} ({proof.covers})" for proof in row.proofs] if len(row.proofs) > 1 else [str(row.evidence)]
    return (*numbers, _result_text(row), "; ".join(levels))


def datapath_markdown() -> str:
    """The table of docs/numerics.md: the numbers of every datapath, and below it what the rows remark.

    Returns:
        Lines without a newline at the end.
    """
    archs: dict[tuple[str, ...], list[str]] = {}
    remarks: dict[str, list[str]] = {}
    for row in DATAPATHS.values():
        archs.setdefault((row.part, *_datapath_cells(row)), []).append(row.arch)
        if row.note:
            remarks.setdefault(row.note, []).append(row.name)
    order = list(ARCHITECTURES)
    units: dict[tuple[str, ...], list[str]] = {}
    for (unit, *cells), names in archs.items():
        units.setdefault((", ".join(sorted(names, key=order.index)), *cells), []).append(f"`{unit}`")
    text = ["| Architecture | Unit, operands, accumulator | F | L | e_zero | Result | Evidence |", "|" + "---|" * 7]
    text += [f"| {where} | {', '.join(names)} | {' | '.join(cells)} |" for (where, *cells), names in units.items()]
    text += ["", "Remarks of the rows:", ""]
    text += [f"- {', '.join(f'`{name}`' for name in names)}: {note}." for note, names in remarks.items()]
    return "\n".join(text)


# One instruction -------------------------------------------------------------------------------------------------------


@cache
def _citations() -> dict[str, str]:
    """What the keys of the proofs stand for, from isa/sources.toml."""
    path = Path(mmabits.isa.__file__).with_name("sources.toml")
    with path.open("rb") as file:
        tables = tomllib.load(file)
    sources = {key: ", ".join(str(text) for text in entry.values()) for key, entry in tables["sources"].items()}
    recordings = {key: f"recording {key}, {entry['gpu']}, {entry['instruction']}" for key, entry in tables["recordings"].items()}
    return {**sources, **recordings}


def citation(key: str) -> str:
    """A source or a recording written out, from its key in a proof."""
    return _citations().get(key, key)


def _proof_lines(title: str, proofs: Sequence[Proof]) -> list[str]:
    lines = []
    for proof in proofs:
        lines.append(f"  {title}: {proof.level}, {proof.covers}")
        lines += [f"    - {citation(key)}" for key in proof.sources]
    return lines


def _order_text(lowering: Lowering) -> str:
    if lowering.k_order is None:
        return "ascending"
    return " ".join(map(str, lowering.k_order))


def _datapath_values(datapath: DatapathSpec, step: int) -> list[tuple[str, str]]:
    """The numbers of a row that mean something for its kind of arithmetic, with their names."""
    values = [("datapath", datapath.name), ("arithmetic", datapath.arithmetic.value), ("elements a step (L)", str(step))]
    if datapath.is_aligned:
        values += [
            ("fraction bits kept (F)", str(datapath.fraction_bits)),
            ("exponent of a zero term (e_zero)", str(datapath.zero_exponent)),
        ]
    if datapath.arithmetic is Arithmetic.GROUPED:
        values.append(("elements summed exactly first", str(datapath.group)))
    values.append(("result", f"{datapath.result.name}, {datapath.result_fraction_bits} fraction bits, {datapath.result_rounding.value}"))
    if not datapath.result.is_integer:
        values.append(("NaN", f"0x{datapath.result_nan:0{datapath.result.container_bits // 4}X}"))
    return values


def _operand_values(instruction: Instruction) -> list[tuple[str, str]]:
    values = [
        ("shape", f"D {instruction.m} x {instruction.n} = A {instruction.m} x {instruction.k} * B {instruction.k} x {instruction.n} + C"),
        ("types", f"D {instruction.d_type.name}, A {instruction.a_type.name}, B {instruction.b_type.name}, C {instruction.c_type.name}"),
    ]
    if instruction.scale_type is not None and instruction.block is not None:
        values.append(("block scales", f"{instruction.scale_type.name}, one for {instruction.block} elements of K"))
    return values


def notes(lowering: Lowering) -> list[str]:
    """What the rows of the lowering and of its datapath remark, each remark once."""
    return list(dict.fromkeys(note for note in (lowering.note, lowering.datapath.note) if note))


def instruction_lines(instruction: Instruction, arch: str) -> list[str]:
    """Shape, types, lowering, arithmetic and evidence of one instruction on one architecture.

    Raises:
        UnknownArchitecture: no such architecture.
        UnsupportedInstruction: it does not have the instruction, or that is not modelled.
    """
    lowering = lower(instruction, arch)
    datapath = lowering.datapath
    values = [
        *_operand_values(instruction),
        ("machine code", "; ".join(lowering.machine)),
        ("order of K", _order_text(lowering)),
        *([("operands", f"converted to {lowering.unpacked_to.name} first, exactly")] if lowering.unpacked_to else []),
        ("C", "added after the steps by one IEEE addition, to nearest even" if lowering.separate_add else "a term of the first step"),
        *_datapath_values(datapath, lowering.step),
    ]
    values += [("note", note) for note in notes(lowering)]
    width = max(len(name) for name, _ in values)
    lines = [f"{instruction.ptx} on {lowering.arch}", *(f"  {name:{width}}  {text}" for name, text in values)]
    lines.append(f"evidence: {lowering.evidence}")
    lines += _proof_lines("lowering", lowering.proofs)
    lines += _proof_lines("arithmetic", datapath.proofs)
    lines += _proof_lines("special values", datapath.special_proofs)
    return lines


def instruction_json(instruction: Instruction, arch: str) -> dict[str, Any]:
    """The same as plain values."""
    lowering = lower(instruction, arch)
    datapath = lowering.datapath
    return {
        "instruction": instruction.ptx,
        "arch": lowering.arch,
        "m": instruction.m,
        "n": instruction.n,
        "k": instruction.k,
        "a_type": instruction.a_type.name,
        "b_type": instruction.b_type.name,
        "c_type": instruction.c_type.name,
        "d_type": instruction.d_type.name,
        "scale_type": None if instruction.scale_type is None else instruction.scale_type.name,
        "block": instruction.block,
        "machine": list(lowering.machine),
        "k_order": None if lowering.k_order is None else list(lowering.k_order),
        "separate_add": lowering.separate_add,
        "unpacked_to": lowering.unpacked_to.name if lowering.unpacked_to else None,
        "datapath": {
            "name": datapath.name,
            "arithmetic": datapath.arithmetic.name.lower(),
            "step": lowering.step,
            "fraction_bits": datapath.fraction_bits,
            "zero_exponent": datapath.zero_exponent,
            "group": datapath.group,
            "result": datapath.result.name,
            "result_fraction_bits": datapath.result_fraction_bits,
            "result_rounding": datapath.result_rounding.value,
            "result_nan": datapath.result_nan,
        },
        "evidence": str(lowering.evidence),
        "proofs": {
            "lowering": _proofs_json(lowering.proofs),
            "arithmetic": _proofs_json(datapath.proofs),
            "special values": _proofs_json(datapath.special_proofs),
        },
        "notes": notes(lowering),
    }


def _proofs_json(proofs: Sequence[Proof]) -> list[dict[str, Any]]:
    return [{"level": str(proof.level), "covers": proof.covers, "sources": list(proof.sources)} for proof in proofs]


def formats_markdown() -> str:
    """A section for each number format, from the rows."""
    return "\n".join(line for row in FORMATS.values() for line in (*_format_lines(row), ""))


def _format_lines(row: FormatSpec) -> Iterator[str]:
    yield f"### {row.name}"
    yield ""
    yield f"{citation(row.source)}. Arrays: `{row.numpy_name}`." + (" A block scale, never an operand." if row.scale_only else "")
    yield ""
    yield "| | |"
    yield "|---|---|"
    if row.is_integer:
        kind = "signed, in two's complement" if row.sign_bits else "unsigned"
        yield f"| bits | {row.code_bits}, {kind} |"
        return
    sign = "1" if row.sign_bits else "1 not read" if row.ignored_sign else "0"
    low = f", {row.ignored_low_bits} low bits not read" if row.ignored_low_bits else ""
    yield f"| sign / exponent / fraction | {sign} / {row.exponent_bits} / {row.fraction_bits}{low} |"
    yield f"| bias | {row.bias} |"
    yield f"| largest | {row.max_finite:g} |"
    if row.has_subnormals:
        yield f"| smallest normal | 2^{row.min_exponent} |"
        yield f"| smallest | 2^{row.min_exponent - row.fraction_bits}, subnormal |"
    else:
        yield f"| smallest | 2^{row.min_exponent}; there is no zero |"
    infinity = "none" if row.infinity is None else f"`{row.infinity:#x}`"
    nan = (
        "none"
        if row.nan is None
        else f"{row.non_finite.value.split(';')[0]}"
        if row.infinity is None
        else "all-ones exponent, fraction not 0"
    )
    yield f"| infinity | {infinity} |"
    yield f"| NaN | {nan} |"
