"""Change any one number of any datapath row or lowering, and a test fails: which one, for every row and number.

A mutant is a row with one number changed. It is caught by `validation` (the row refuses itself), by `results` (the engine, run with
the mutant, differs from the exact model on adversarial operands), also by `recordings` (it differs from recorded hardware), or by the
`pin` alone: `test_rows_against_reference.py` compares every number with a second transcription. What only the pin catches stands in
`UNOBSERVABLE` with the reason why no result can show it.

    python tests/mutation/test_mutations.py     prints the table of README.md
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import operands  # noqa: E402
import slow_reference  # noqa: E402

from mmabits.emulator.engine import products  # noqa: E402
from mmabits.isa import (  # noqa: E402
    DATAPATHS,
    LOWERINGS,
    Arithmetic,
    DatapathSpec,
    Instruction,
    Lowering,
    ResultRounding,
    instructions,
    lower,
    parse,
)

ROUNDS = 30
"""How often the operands of a row are drawn anew while a mutant that should show does not."""
DRAWS = {"edge": 60, "raw_finite": 20, "wide": 20, "cancelling": 20, "raw": 12}
"""Dot products of a round by distribution."""
FOLDER = Path(os.environ.get("MMABITS_RECORDINGS") or ROOT.parent / "shared" / "hardware")
FAMILIES = {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}
ALIGNED = (Arithmetic.FUSED, Arithmetic.GROUPED)


# ---------------------------------------------------------------------------------------------------------------- mutants


class Mutant(NamedTuple):
    """One number of a row or lowering, changed."""

    number: str
    change: str
    value: Any


def mutants(row: DatapathSpec) -> list[Mutant]:
    """Every number up and down by one; K elements of a step and of a group also halved and doubled; the other rounding."""
    names = ["fraction_bits", "step", "zero_exponent", "group", "result_fraction_bits", "result_nan"]
    found = [Mutant(name, f"{by:+d}", getattr(row, name) + by) for name in names for by in (-1, 1)]
    if row.arithmetic in ALIGNED:
        halved = ["step", "group"] if row.arithmetic is Arithmetic.GROUPED else ["step"]
        found += [Mutant(name, "/2", getattr(row, name) // 2) for name in halved]
        found += [Mutant(name, "x2", getattr(row, name) * 2) for name in halved]
        other = {ResultRounding.TOWARD_ZERO: ResultRounding.NEAREST_EVEN, ResultRounding.NEAREST_EVEN: ResultRounding.TOWARD_ZERO}
        found.append(Mutant("result_rounding", "other", other[row.result_rounding]))
    return found


def lowering_mutants(row: Instruction, arch: str) -> list[Mutant]:
    """Every part of a lowering that converts, reorders, splits or adds, left out."""
    lowering = lower(row, arch)
    if not lowering.separate_add:
        return []
    return [
        Mutant("k_order", "ascending", None), Mutant("separate_add", "off", False), Mutant("unpacked_to", "none", None),
        Mutant("parts", "1", min(lowering.datapath.step, row.k)), Mutant("parts", "4", row.k // 4),
    ]  # fmt: skip


def mutated(lowering: Lowering, mutant: Mutant) -> Lowering:
    """The lowering with one number changed, of its own or of its datapath.

    Raises:
        ValueError: the datapath row refuses it.
    """
    if mutant.number == "parts":
        return dataclasses.replace(lowering, step=mutant.value)
    if mutant.number in ("k_order", "separate_add", "unpacked_to"):
        return dataclasses.replace(lowering, **{mutant.number: mutant.value})
    datapath = dataclasses.replace(lowering.datapath, **{mutant.number: mutant.value})
    own_k = lowering.instruction.k // parts(lowering.instruction, lowering.arch)
    return dataclasses.replace(lowering, datapath=datapath, step=min(datapath.step, own_k))


def parts(row: Instruction, arch: str) -> int:
    """Machine instructions among which K is divided."""
    spec = row.on(arch)
    assert spec is not None
    return LOWERINGS[spec.lowerings[arch]].parts


# ---------------------------------------------------------------------------------------------- the two sides of a comparison


@dataclasses.dataclass(frozen=True)
class Padded:
    """An instruction with another K, which PTX need not have: only the engine sees it."""

    row: Instruction
    k: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.row, name)


def engine_codes(lowering: Lowering, drawn: operands.Operands) -> np.ndarray[Any, Any]:
    """Result codes of independent dot products; a K that the step does not divide is filled up with zeros."""
    row = lowering.instruction
    k = -(-row.k // lowering.step) * lowering.step
    if k != row.k:
        padded: Any = Padded(row, k)
        lowering = dataclasses.replace(lowering, instruction=padded)
    a, b = engine_operand(drawn.a, row.a_type.name), engine_operand(drawn.b, row.b_type.name)
    held, code = {"f32": ("f4", "u4"), "f16": ("f2", "u2"), "f64": ("f8", "u8"), "s32": ("i4", "u4")}[row.d_type.name]
    d = drawn.c.view(held).copy()[:, None, None]
    scales = (drawn.scale_a, drawn.scale_b)
    arrays = [None if codes is None else np.ascontiguousarray(codes) for codes in scales]
    products.run(
        lowering, a[:, None, :], b[:, :, None], d,
        None if arrays[0] is None else arrays[0][:, None, :], None if arrays[1] is None else arrays[1][:, :, None],
    )  # fmt: skip
    return d.view(code).ravel()


def engine_operand(codes: operands.Codes, name: str) -> np.ndarray[Any, Any]:
    """Codes as the engine takes them."""
    if name in slow_reference.INTEGERS:
        bits, signed = slow_reference.INTEGERS[name]
        values = codes.astype(np.int16)
        return np.where(signed & (values >> (bits - 1) == 1), values - (1 << bits), values).astype(np.int8).view(np.uint8)
    return np.ascontiguousarray(codes).view(np.float64) if name == "f64" else np.ascontiguousarray(codes)


def exact_codes(row: Instruction, arch: str, drawn: operands.Operands) -> np.ndarray[Any, Any]:
    """The exact model's result codes."""
    results = []
    for i in range(len(drawn.c)):
        scales: dict[str, Any] = {}
        if row.scale_type is not None and drawn.scale_a is not None and drawn.scale_b is not None:
            scales = {"scale_a": drawn.scale_a[i], "scale_b": drawn.scale_b[i], "scale_type": row.scale_type.name, "block": row.block}
        types = (row.a_type.name, row.b_type.name, row.d_type.name)
        results.append(
            slow_reference.dot(
                arch, FAMILIES[row.family.value], *types, drawn.a[i].tolist(), drawn.b[i].tolist(), int(drawn.c[i]),
                k_instruction=row.k, rounding=row.rounding or "rn", **scales,
            )
        )  # fmt: skip
    return np.array(results, dtype=np.uint64)


def draw(row: Instruction, kind: str, n: int, *seed: object) -> operands.Operands:
    rng = operands.generator("mutation", row, kind, *seed)
    types = (row.a_type.name, row.b_type.name)
    if kind == "lead":
        return lead_by_a_subnormal(row, n, rng)
    if row.scale_type is not None and row.block is not None:
        return operands.draw_scaled(kind, *types, n, row.k, rng, scale_format=row.scale_type.name, block=row.block)
    return operands.draw_pair(kind, *types, n, row.k, rng, c_format=row.c_type.name)


def lead_by_a_subnormal(row: Instruction, n: int, rng: np.random.Generator) -> operands.Operands:
    """For e4m3 with e5m2: the smallest e4m3 times 2^15 and its negative, in one half of K, beside products of 2^-21 to 2^-15.

    The pair aligns at 2^6 if the e4m3 becomes normal first, else at 2^9: that is what decides how much of the others is cut.
    """
    small = np.ones((n, row.k), np.uint8)
    large = rng.integers(4 * 3, 4 * 9, (n, row.k), dtype=np.uint8)
    halves = np.arange(row.k) % 4 < 2
    for i in range(n):
        pair = rng.choice(np.flatnonzero(halves == (i % 2 == 0)), 2, replace=False)
        large[i, pair] = 30 * 4
        small[i, pair[1]] |= 0x80
    c = np.zeros(n, operands.dtype_of(row.c_type.name))
    return operands.Operands(small, large, c) if row.b_type.name == "e5m2" else operands.Operands(large, small, c)


# ------------------------------------------------------------------------------------------------------------ the row's users


@functools.cache
def users(name: str) -> tuple[tuple[Instruction, str], ...]:
    """Every instruction that a datapath row carries out, largest tile, with its architecture."""
    found = []
    for line in instructions():
        if line.datapath == name and line.example is not None:
            spec = line.example.on(line.arch)
            assert spec is not None
            types = f".{line.example.a_type.name}.{line.example.b_type.name}"
            found += [(parse(str(line.example).replace(types, f".{a}.{b}")), line.arch) for a, b in spec.pairs]
    return tuple(dict.fromkeys(found))


def probes(name: str) -> list[tuple[Instruction, str]]:
    """At most four users of a row that tell its numbers: the longest K, and types spread over what there is."""
    own = [(row, arch) for row, arch in users(name) if not lower(row, arch).separate_add]
    longest = max(row.k for row, _ in own)
    candidates = [(row, arch) for row, arch in own if row.k == longest]
    return candidates[:: -(-len(candidates) // 4)]


@functools.cache
def recordings(name: str) -> tuple[tuple[Instruction, str, operands.Operands, np.ndarray[Any, Any]], ...]:
    """The recorded dot products of a datapath row or of an instruction: (instruction, architecture, operands, results)."""
    if not FOLDER.is_dir():
        return ()
    import tomllib

    from safetensors.numpy import load_file

    found = []
    for key, meta in tomllib.loads((ROOT / "isa" / "sources.toml").read_text())["recordings"].items():
        row, path = parse(meta["instruction"]), FOLDER / f"{key}.safetensors"
        if name in (lower(row, meta["arch"]).datapath.name, f"{meta['arch']} {row}") and path.is_file():
            arrays = load_file(path)
            found.append((row, meta["arch"], operands.Operands(arrays["a"], arrays["b"], arrays["c"]), arrays["d"]))
    return tuple(found)


# ------------------------------------------------------------------------------------------------- what no result can show


class Unobservable(NamedTuple):
    """Changes of a number of some rows that no result shows."""

    rows: tuple[str, ...]
    number: str
    changes: tuple[str, ...]
    reason: str
    holds: Callable[[DatapathSpec], bool]
    """The reason as arithmetic."""

    def covers(self, row: DatapathSpec, mutant: Mutant) -> bool:
        named = any(fnmatchcase(row.name, pattern) for pattern in self.rows)
        return named and self.number == mutant.number and mutant.change in self.changes


def no_instruction_is_longer(row: DatapathSpec) -> bool:
    return all(user.k // parts(user, arch) <= row.step for user, arch in users(row.name))


def no_product_lies_so_low(row: DatapathSpec) -> bool:
    """Unnormalised exponents: the least is that of two subnormals (e4m3 that becomes f16 included)."""
    lowest = min(user.a_type.min_exponent + user.b_type.min_exponent for user, _ in users(row.name))
    unscaled = all(user.scale_type is None for user, _ in users(row.name))
    return unscaled and min(lowest, row.result.min_exponent) > row.zero_exponent + 1


def no_product_reaches_below_the_edge(row: DatapathSpec) -> bool:
    lowest = min(
        user.a_type.min_exponent - user.a_type.fraction_bits + user.b_type.min_exponent - user.b_type.fraction_bits
        for user, _ in users(row.name)
    )
    least_c = row.result.min_exponent - row.result.fraction_bits
    return min(lowest, least_c) >= row.zero_exponent + 1 - row.fraction_bits


UNOBSERVABLE = (
    Unobservable(
        ("sm_70.*.f[13]*", "sm_75.*.f[13]*", "sm_90a.*.f[13]*", "sm_100a.*.f[13]*", "sm_103a.*.f[13]*", "sm_110a.*.f[13]*",
         "sm_120a.*.f[13]*", "sm_121a.*.f[13]*"),
        "step", ("+1", "x2"), "no instruction has more K than one step takes", no_instruction_is_longer,
    ),
    Unobservable(
        ("*.hmma.f16.f32", "*.hmma884.f16.f32", "*.wgmma.f16.f32", "*.tcgen05.f16.f32", "*.qmma.f8.f32", "*.wgmma.f8.f32",
         "*.f8f6f4.f32"),
        "zero_exponent", ("-1", "+1"),
        "every nonzero product and c has a larger exponent; where tcgen05 scales c down below it, c is the only term, and truncating it "
        "before rounding it toward zero changes nothing",
        no_product_lies_so_low,
    ),
    Unobservable(
        ("*.qmma.f8.f16", "*.wgmma.f8.f16", "*.f8f6f4.f16"),
        "zero_exponent", ("-1", "+1"), "products of two 8-bit floats are multiples of 2^-32, which the floor of e_zero - F never cuts",
        no_product_reaches_below_the_edge,
    ),
    Unobservable(
        ("*.f16.f[13]*", "*.bf16.f32", "*.tf32.f32", "*.f8.f[13]*", "*f8f6f4.f[13]*"),
        "group", ("+1",), "fused rows have no groups", lambda row: row.arithmetic is Arithmetic.FUSED,
    ),
    Unobservable(
        ("*.dmma.f64.f64", "*.int.s32"), "step", ("+1",), "products are added one by one, or exactly",
        lambda row: row.arithmetic not in ALIGNED,
    ),
    Unobservable(
        ("*.dmma.f64.f64", "*.int.s32"), "fraction_bits", ("-1", "+1"), "nothing is aligned", lambda row: row.arithmetic not in ALIGNED,
    ),
    Unobservable(
        ("*.dmma.f64.f64", "*.int.s32"), "zero_exponent", ("-1", "+1"), "nothing is aligned", lambda row: row.arithmetic not in ALIGNED,
    ),
    Unobservable(
        ("*.dmma.f64.f64", "*.int.s32"), "result_fraction_bits", ("-1",), "the width is that of the format",
        lambda row: row.arithmetic not in ALIGNED,
    ),
    Unobservable(
        ("*.int.s32",), "result_nan", ("-1", "+1"), "an integer is never NaN", lambda row: row.arithmetic is Arithmetic.INTEGER,
    ),
)  # fmt: skip
"""All that only the row pin catches."""


def unobservable(row: DatapathSpec, mutant: Mutant) -> Unobservable | None:
    """The entry that covers a change."""
    return next((entry for entry in UNOBSERVABLE if entry.covers(row, mutant)), None)


# ------------------------------------------------------------------------------------------------------------------ the check


def refused(row: DatapathSpec, mutant: Mutant) -> bool:
    """Whether the row's own validation catches it."""
    try:
        dataclasses.replace(row, **{mutant.number: mutant.value})
    except ValueError:
        return True
    return False


def rounds(
    probes: list[tuple[Instruction, str]], draws: dict[str, int], count: int
) -> Iterator[tuple[Lowering, operands.Operands, np.ndarray[Any, Any]]]:
    """Operands and the exact model's results, probe by probe; the engine without a mutant agrees with them."""
    for number in range(count):
        for kind, n in draws.items():
            for row, arch in probes:
                drawn = draw(row, kind, n, arch, number)
                exact, lowering = exact_codes(row, arch, drawn), lower(row, arch)
                assert np.array_equal(engine_codes(lowering, drawn), exact), f"{row} {arch} {kind}: not even the row itself agrees"
                yield lowering, drawn, exact


def differing(probes: list[tuple[Instruction, str]], candidates: list[Mutant], wanted: Callable[[Mutant], bool], count: int) -> set[Mutant]:
    """The mutants that some result shows; drawing ends when all the wanted ones have shown, after at least one round."""
    shown: set[Mutant] = set()
    draws = DRAWS | {"lead": 20} if probes[0][0].a_type.name != probes[0][0].b_type.name and lower(*probes[0]).separate_add else DRAWS
    at_least = len(draws) * len(probes)
    for number, (lowering, drawn, exact) in enumerate(rounds(probes, draws, count)):
        if number >= at_least and all(mutant in shown for mutant in candidates if wanted(mutant)):
            break
        for mutant in candidates:
            if mutant not in shown and not np.array_equal(engine_codes(mutated(lowering, mutant), drawn), exact):
                shown.add(mutant)
    return shown


def recorded(name: str, candidates: list[Mutant]) -> set[Mutant]:
    """The mutants that differ from recorded hardware."""
    shown = set()
    for row, arch, drawn, results in recordings(name):
        for mutant in candidates:
            if mutant not in shown and not np.array_equal(engine_codes(mutated(lower(row, arch), mutant), drawn), results):
                shown.add(mutant)
    return shown


def caught_by(row: DatapathSpec, count: int, *, with_recordings: bool = False) -> dict[Mutant, str]:
    """How each mutant of a row is caught: V, R, H (results, and recordings too) or p (the row pin alone)."""
    found = {mutant: "V" for mutant in mutants(row) if refused(row, mutant)}
    rest = [mutant for mutant in mutants(row) if mutant not in found]
    shown = differing(probes(row.name), rest, lambda mutant: unobservable(row, mutant) is None, count)
    by_hardware = recorded(row.name, rest) if with_recordings else set()
    return found | {mutant: "H" if mutant in by_hardware else "R" if mutant in shown else "p" for mutant in rest}


def check_row(row: DatapathSpec, count: int) -> None:
    """What only the pin catches is just what is listed."""
    only_pinned = {f"{m.number} {m.change}" for m, how in caught_by(row, count).items() if how == "p"}
    listed = {f"{m.number} {m.change}" for m in mutants(row) if not refused(row, m) and unobservable(row, m)}
    assert only_pinned == listed


ROWS = list(DATAPATHS.values())
SPLIT = [
    (row, arch)
    for arch in ("sm_90a", "sm_100a", "sm_103a", "sm_110a")
    for name in (f"{arch}.hmma.f16.f32", f"{arch}.hmma.f16.f16")
    for row, _ in users(name)
    if lower(row, arch).separate_add
]
"""The instructions whose lowering does more than choose a datapath."""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_changed_number_of_a_row_shows(row: DatapathSpec) -> None:
    check_row(row, ROUNDS)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.arithmetic in ALIGNED], ids=lambda row: row.name)
def test_what_is_listed_as_unobservable_stays_so(row: DatapathSpec) -> None:
    """Many draws for the mutants that should not show."""
    listed = [mutant for mutant in mutants(row) if not refused(row, mutant) and unobservable(row, mutant)]
    if listed:
        assert differing(probes(row.name), listed, lambda mutant: True, 5) == set()


@pytest.mark.parametrize("entry", UNOBSERVABLE, ids=lambda entry: f"{entry.number}-{entry.reason[:20]}")
def test_the_reasons_hold_of_just_the_rows_they_name(entry: Unobservable) -> None:
    """As arithmetic on the rows; no pattern is idle."""
    named = [row for row in ROWS if any(fnmatchcase(row.name, pattern) for pattern in entry.rows)]
    assert [row.name for row in named if not entry.holds(row)] == []
    assert all(any(fnmatchcase(row.name, pattern) for row in ROWS) for pattern in entry.rows)


@pytest.mark.parametrize(("row", "arch"), SPLIT[::5], ids=str)
def test_a_changed_lowering_shows(row: Instruction, arch: str) -> None:
    check_lowering(row, arch)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "arch"), SPLIT, ids=str)
def test_every_changed_lowering_shows(row: Instruction, arch: str) -> None:
    check_lowering(row, arch)


def invisible(row: Instruction, mutant: Mutant) -> bool:
    """What changes nothing in this instruction.

    K = 32 as one part still makes steps of 16. e5m2 has the exponents of f16. Left as it is, a subnormal of e4m3 aligns at up to
    2^3 more; where the other operand is e4m3 too, at 2^(8 - 6) at most, so that nothing below 2^-23 is cut, and no product of two e4m3
    has such bits. With e5m2 (2^15) it shows.
    """
    if mutant.number == "unpacked_to":
        return row.a_type is row.b_type
    return mutant.number == "parts" and mutant.change == "1" and row.k == 32


def check_lowering(row: Instruction, arch: str) -> None:
    candidates = lowering_mutants(row, arch)
    expected = {mutant for mutant in candidates if not invisible(row, mutant)}
    assert differing([(row, arch)], candidates, expected.__contains__, ROUNDS) == expected


# ------------------------------------------------------------------------------------------------------------------ the table

COLUMNS = (
    ("fraction_bits", "F", ("-1", "+1")), ("step", "L", ("-1", "+1", "/2", "x2")), ("zero_exponent", "e_zero", ("-1", "+1")),
    ("group", "group", ("-1", "+1", "/2", "x2")), ("result_fraction_bits", "result bits", ("-1", "+1")),
    ("result_rounding", "rounding", ("other",)), ("result_nan", "NaN", ("-1", "+1")),
)  # fmt: skip


def table() -> Iterator[str]:
    """README.md's tables, line by line."""
    yield "| row | " + " | ".join(f"{title} {' '.join(changes)}" for _, title, changes in COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for row in ROWS:
        how = {(mutant.number, mutant.change): letter for mutant, letter in caught_by(row, ROUNDS, with_recordings=True).items()}
        cells = (" ".join(how.get((number, change), "-") for change in changes) for number, _, changes in COLUMNS)
        yield f"| {row.name} | {' | '.join(cells)} |"
    yield ""
    yield "| fp8 mma.sync through f16 | k_order ascending | separate_add off | unpacked_to none | parts 1 | parts 4 |"
    yield "|---|---|---|---|---|---|"
    best: dict[str, list[str]] = {}
    for row, arch in SPLIT:
        candidates = lowering_mutants(row, arch)
        shown = differing([(row, arch)], candidates, lambda mutant, row=row: not invisible(row, mutant), ROUNDS)
        by_hardware = recorded(f"{arch} {row}", candidates)
        letters = ["H" if mutant in by_hardware else "R" if mutant in shown else "p" for mutant in candidates]
        key = f"m16n8k{row.k} {row.a_type.name}.{row.b_type.name}"
        best[key] = [min(pair) for pair in zip(letters, best.get(key, letters), strict=True)]
    for key, letters in best.items():
        yield f"| {key} | {' | '.join(letters)} |"


if __name__ == "__main__":
    for text in table():
        print(text, flush=True)
