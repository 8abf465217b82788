"""What was recorded against the same emulated: one `Comparison`, whatever the format, told as text, as JSON, or as sections of a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar

from mmabits.conformance.diff.comparing import Difference, Differing, Kind
from mmabits.conformance.recorded.base import Recorded
from mmabits.isa import OperandError
from mmabits.reports.pages.charts import Bar, bars, heat_map
from mmabits.reports.pages.report import Block, Cell, ChartBlock, NoteBlock, Section, TableBlock
from mmabits.research.explain import Explanation
from mmabits.research.explain.page import drawn_step
from mmabits.research.explain.words import exact


class Detail:
    """What a comparison tells beside the differences themselves; nothing where a way of telling is left out."""

    comes_first: ClassVar[bool] = False
    """On a page, whether it stands before the differences."""

    def lines(self) -> Iterator[str]:
        """As text; nothing is asked for where every bit is equal."""
        yield from ()

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {}

    def sections(self) -> Iterator[Section]:
        """Of a page."""
        yield from ()


F = TypeVar("F", bound=Detail)


def _place(one: Differing) -> str:
    return f"[{one.row}, {one.column}]"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a comparison says of the recording and of what it was held against."""

    head: tuple[str, ...]
    """Lines: what was recorded, and against what it is compared."""
    lead: str
    """The same on a page, in sentences."""
    notice: str = ""
    """What a reader must know before believing any of it."""
    facts: tuple[tuple[str, str], ...]
    plain: Mapping[str, Any]
    """The same in JSON; `verdict` keeps the place for it."""
    size: str = ""
    """Behind the number of results in text."""
    unit: str = "elements"
    names_outputs: bool = False
    """Whether the results have names: a kernel's."""
    is_tiled: bool = True
    """Whether output tiles of the differences say anything; else a detail says where they are."""
    before: str = ", before scales and rounding of the result"
    """What an explanation leaves out."""
    ends_blank: bool = True
    """Whether a blank line follows the text."""
    place: Callable[[Differing], str] = _place
    """Where a result stands."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What a comparison found."""

    name: str
    """Of the file, or of the case."""
    recorded: Recorded
    arch: str
    """Emulated."""
    outputs: Mapping[str, Difference]
    """Recorded against emulated, by the name of the result."""
    told: Told
    beside: str = ""
    """What the verdict says besides."""
    details: tuple[Detail, ...] = ()
    explanation: Explanation | None = field(default=None, repr=False)
    """Of the first result that differs, as emulated."""

    @property
    def found(self) -> Difference:
        """Of the first result; most have no other."""
        return next(iter(self.outputs.values()))

    @property
    def is_equal(self) -> bool:
        """Whether every bit is the same."""
        return self.differing == 0

    @property
    def elements(self) -> int:
        """How many were compared."""
        return sum(found.elements for found in self.outputs.values())

    @property
    def differing(self) -> int:
        """How many have different bits."""
        return sum(found.differing for found in self.outputs.values())

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        text = "every bit equal" if self.is_equal else f"{self.differing:,} of {self.elements:,} {self.told.unit} differ"
        return f"{text}; {self.beside}" if self.beside else text

    def detail(self, kind: type[F]) -> F:
        """What was found of a kind.

        Raises:
            OperandError: nothing was.
        """
        for one in self.details:
            if isinstance(one, kind):
                return one
        raise OperandError(f"{self.name} has no {kind.__name__}")

    # Text --------------------------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[str]:
        """For people to read, without the explanation."""
        told = self.told
        yield from told.head
        yield self.verdict if told.names_outputs else f"{self.elements} {told.unit}, {self.differing} differ{told.size}"
        if self.is_equal:
            return
        details = [line for one in self.details for line in one.lines()]
        for name, found in self.outputs.items():
            if found.is_equal:
                continue
            if told.names_outputs:
                yield f"{name}: {found.differing} of {found.elements} differ"
            yield from (f"  {kind.value:22} {count}" for kind, count in self._counts(found) if count)
            yield from (f"  {part.label:>22} ulp {part.count}" for part in found.ulps)
            if not told.names_outputs:
                yield from (*details, "")
            yield "first differences (recorded, emulated):"
            for one in found.first:
                apart = "" if one.ulp is None else f", {one.ulp} ulp"
                values = f"{one.hardware_value}, {one.emulated_value}"
                yield f"  {told.place(one)} {one.hardware} {one.emulated}  {values}: {one.kind.value}{apart}"
        if told.names_outputs:
            yield from details

    def _counts(self, found: Difference) -> list[tuple[Kind, int]]:
        return [(kind, count) for kind, count in found.counts.items() if self.told.is_tiled or kind is not Kind.EQUAL]

    # JSON --------------------------------------------------------------------------------------------------------------

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        if self.told.names_outputs:
            outputs = {name: found.as_json for name, found in self.outputs.items()}
            counted: dict[str, Any] = {"elements": self.elements, "differing": self.differing, "outputs": outputs}
        else:
            counted = {name: value for name, value in self.found.as_json.items() if self.told.is_tiled or name not in ("tile", "tiles")}
        parts = {**self.told.plain, "verdict": self.verdict, **counted}
        return parts | {name: value for one in self.details for name, value in one.as_json.items()}

    # A page ------------------------------------------------------------------------------------------------------------

    def sections(self) -> Iterator[Section]:
        """What differs, and all that was found of it."""
        for one in self.details:
            if one.comes_first:
                yield from one.sections()
        if self.is_equal:
            return
        later = [section for one in self.details if not one.comes_first for section in one.sections()]
        for name, found in self.outputs.items():
            if found.is_equal:
                continue
            of = f"{name}, {found.differing:,} of {found.elements:,} elements differ: " if self.told.names_outputs else ""
            if self.told.is_tiled:
                yield Section(title=_titled(f"{of}where they differ"), blocks=(_output_map(found),))
            yield Section(title=_titled(f"{of}by how much"), blocks=tuple(self._how_much(found)))
            if not self.told.names_outputs:
                yield from later
            yield Section(title=_titled(f"{of}first differences"), blocks=(self._first(found),))
        if self.told.names_outputs:
            yield from later
        if self.explanation is not None:
            place = f"element [{self.explanation.row}, {self.explanation.column}]" if self.told.is_tiled else self.told.place(
                self.found.first[0]
            )  # fmt: skip
            yield Section(title=_titled(f"{place}, as emulated"), blocks=tuple(self._explained(self.explanation)))

    def _how_much(self, found: Difference) -> Iterator[Block]:
        rows = tuple((kind.value, count) for kind, count in self._counts(found) if count or self.told.is_tiled)
        yield TableBlock(headings=("class", self.told.unit), rows=rows, numeric=frozenset({1}))
        if found.ulps:
            chart = bars([Bar(label=part.label, value=part.count) for part in found.ulps], label="differing values by ulp")
            caption = f"Differing values by their distance in ulp of {found.dtype}; the largest is {found.largest_ulp:,}."
            yield ChartBlock(svg=chart, caption=caption)

    def _first(self, found: Difference) -> Block:
        rows = tuple(
            (
                self.told.place(one), one.kind.value, Cell(text=one.hardware, is_code=True), Cell(text=one.emulated, is_code=True),
                one.hardware_value, one.emulated_value, "" if one.ulp is None else f"{one.ulp:,}",
            )
            for one in found.first
        )  # fmt: skip
        headings = ("where", "class", "recorded", "emulated", "recorded", "emulated", "ulp")
        return TableBlock(headings=headings, rows=rows, numeric=frozenset({4, 5, 6}))

    def _explained(self, explanation: Explanation) -> Iterator[Block]:
        """The chain in a sentence, and the step that cut off most, drawn."""
        chain = explanation.trace
        recorded = "" if self.told.is_tiled else f", recorded {self.found.first[0].hardware_value}"
        error = "" if chain.error is None else f" Result minus exact: {exact(chain.error)}."
        text = f"Exactly {exact(chain.exact)}; after {len(chain.steps)} steps on {chain.arch} {chain.result}{self.told.before}{recorded}."
        yield NoteBlock(text=f"{text}{error}")
        yield from drawn_step(chain)


def _titled(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" if ":" not in text else text


def _output_map(found: Difference) -> Block:
    """The output by tiles, the stronger the colour the more elements of a tile differ."""
    heights = [min(found.tile[0], found.shape[0] - row * found.tile[0]) for row in range(len(found.tiles))]
    widths = [min(found.tile[1], found.shape[1] - column * found.tile[1]) for column in range(len(found.tiles[0]))]
    sizes = [[height * width for width in widths] for height in heights]
    return ChartBlock(
        svg=heat_map(found.tiles, sizes, tile=found.tile, label="differing elements by output tile"),
        caption=f"Output tiles of {found.tile[0]} x {found.tile[1]} by their first row and column; the stronger, the more differs.",
    )


def stand_in_line(recorded: Recorded) -> Sequence[str]:
    """A line that a recorded call is no GPU's; none where it is."""
    return () if recorded.is_hardware else ("recorded by the emulator standing in for a GPU: proves nothing about hardware",)


CALLS_LEAD: Final = "The same call on the same operands, once as recorded and once emulated; every bit of the results compared."
"""What a page says of a kernel, or of several calls."""


def stand_in_notice(recorded: Recorded) -> str:
    """The same for a page."""
    said = "What was recorded here is a stand-in that the emulator computed: it proves nothing about hardware."
    return "" if recorded.is_hardware else said


__all__ = ["CALLS_LEAD", "Comparison", "Detail", "Told", "stand_in_line", "stand_in_notice"]
