"""The command `mmabits explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import typer

from mmabits.commands.completion import architectures
from mmabits.isa import format_spec
from mmabits.isa.errors import OperandError

MOST_ELEMENTS: Final = 1 << 16
"""Elements of K that are drawn at most: of each everything is kept, which takes about a kilobyte and a tenth of a millisecond."""


def explain(
    instruction: Annotated[str, typer.Argument(help="PTX spelling, in full or short: wgmma, mma.sync, tcgen05.mma.")],
    arch: Annotated[str, typer.Option(autocompletion=architectures, help="Architecture, or GPU: sm_90a, h100.")],
    a_type: Annotated[str, typer.Option(help="Type of A's elements.")] = "e4m3",
    b_type: Annotated[str | None, typer.Option(help="Type of B's; that of A if left out.")] = None,
    scale_type: Annotated[str | None, typer.Option(help="Type of the block scales: ue8m0 or ue4m3.")] = None,
    a: Annotated[str | None, typer.Option("--a", help="Values of A along K, separated by commas; drawn at random if left out.")] = None,
    b: Annotated[str | None, typer.Option("--b", help="Values of B.")] = None,
    c: Annotated[float, typer.Option("--c", help="The accumulator at the start.")] = 0.0,
    scale_a: Annotated[
        str | None, typer.Option(help="Block scales of A, by commas; if left out 1 beside --a, else drawn at random.")
    ] = None,
    scale_b: Annotated[str | None, typer.Option(help="Block scales of B; if left out 1 beside --b, else drawn at random.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, max=MOST_ELEMENTS, help="Elements of K, where they are drawn at random.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the random values.")] = 0,
    promote_every: Annotated[int | None, typer.Option(help="Elements of K between promotions.")] = None,
    beside: Annotated[list[str] | None, typer.Option(help="Another architecture to compare with; may be repeated.")] = None,
    save: Annotated[list[Path] | None, typer.Option(help="Write a page (.html) or a picture (.svg); may be repeated.")] = None,
) -> None:
    """Explain one element of a product, step by step: what was aligned, cut off, rounded, and where the bits went."""
    from mmabits.isa import lower, resolve
    from mmabits.reports.output import draw, say
    from mmabits.reports.pages import check_page
    from mmabits.reports.progress import working
    from mmabits.research.explain import explain as explained

    for path in save or ():
        check_page(path, suffixes=(".html", ".svg"))
    right_type = b_type or a_type
    row = resolve(instruction, arch=arch, a_type=a_type, b_type=right_type, scale_type=scale_type)
    lower(row, arch)
    rng = np.random.default_rng(seed)
    left, right = _values(a, row.a_type.name, k, rng, "a"), _values(b, row.b_type.name, k, rng, "b")
    if left.size != right.size:
        raise OperandError(f"--a has {left.size} values and --b {right.size}; they must agree (or give both, or --k)")
    scales: dict[str, Any] = {}
    if row.scale_type is not None and row.block is not None:
        blocks = -(-left.size // row.block)
        for name, text, beside_it in (("scale_a", scale_a, a), ("scale_b", scale_b, b)):
            ones = None if beside_it is None else ",".join(["1"] * blocks)
            scales[name] = _values(text or ones, row.scale_type.name, blocks, rng, name)
    start = _told(np.array([c]), row.c_type.name, "c")[0]
    with working("explaining"):
        found = explained(left, right, start, instruction=row, arch=arch, promote_every=promote_every, beside=tuple(beside or ()), **scales)
    draw(found)
    for path in save or ():
        say(f"wrote {found.save(path)}")


def _encoded(values: npt.NDArray[Any], form: str, name: str) -> npt.NDArray[Any]:
    """Values rounded to a format; integers and block scales must be what they say."""
    from mmabits.emulator.codecs import CVT_ROUNDINGS, decode, encode, from_codes

    rounding = CVT_ROUNDINGS[form][0] if form in CVT_ROUNDINGS else "rn"
    codes = encode(values, form, rounding=rounding, satfinite=False)
    if format_spec(form).is_integer or format_spec(form).scale_only:
        wrong = values[decode(codes, form) != values]
        if wrong.size:
            raise OperandError(f"--{name.replace('_', '-')}: {wrong[0]:.17g} is no {form}")
    return from_codes(codes, form)


def _told(values: npt.NDArray[Any], form: str, name: str) -> npt.NDArray[Any]:
    """Given values rounded to a format; a note says what that changed."""
    from mmabits.emulator.codecs import as_codes, decode
    from mmabits.reports.output import note

    found = _encoded(values, form, name)
    got = decode(as_codes(found, form), form)
    changed = np.flatnonzero((got != values) & ~(np.isnan(got) & np.isnan(values)))
    if changed.size:
        first = changed[0]
        parts = [f"{changed.size} of {values.size} rounded, the first {_short(values[first])} to {_short(got[first])}"]
        beyond = int((np.abs(values) > format_spec(form).max_finite).sum())
        parts += [f"{beyond} beyond its largest number, {format_spec(form).max_finite:g}"] if beyond else []
        note(f"{name} to {form}: {', '.join(parts)}")
    return found


def _short(value: Any) -> str:
    return repr(float(value)).removesuffix(".0")


def _values(text: str | None, form: str, count: int, rng: np.random.Generator, name: str) -> npt.NDArray[Any]:
    if text is None:
        drawn = 2.0 ** rng.integers(-3, 4, count) if name.startswith("scale") else rng.standard_normal(count)
        if format_spec(form).is_integer:
            drawn = np.minimum(np.rint(np.abs(drawn) * 3), format_spec(form).max_finite)
        return _encoded(drawn, form, name)
    try:
        values = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise OperandError(f"--{name.replace('_', '-')} takes numbers separated by commas, got {text!r}") from None
    return _told(values, form, name)
