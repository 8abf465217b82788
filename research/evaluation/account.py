"""What an evaluation found: settings, and what differs between them, as tables, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmabits.reports.pages import write

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

Row = Mapping[str, Any]

FIELDS: Final = ("arch", "recipe", "library", "accumulator")
"""What makes a setting."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedSetting:
    """A setting over all the text."""

    arch: str
    recipe: str
    library: str
    """Empty: the best known choice."""
    accumulator: str
    tokens: int = 0
    perplexity: float | None = None
    """None: the model gives no probabilities of next tokens."""
    exact_perplexity: float | None = None
    """Of the model in f32."""
    multiply_adds: int = 0
    """That were emulated."""
    share: float | None = None
    """The part of those that can be counted."""
    kinds: tuple[tuple[str, float], ...] = ()
    """Types of products and their part of the multiply-adds, the largest first."""
    evidence: tuple[tuple[str, float], ...] = ()
    """How well the instructions are known, and their part."""
    not_emulated: tuple[str, ...] = ()
    """Operations and reasons."""
    refusal: str = ""
    """Why it cannot be run; nothing else is known then."""

    @property
    def words(self) -> str:
        """In words."""
        return words_of(asdict(self))


def words_of(setting: Row) -> str:
    """A setting in words: `sm_90a, fp8, accumulator fast`."""
    more = [setting["library"] and f"library {setting['library']}"]
    more.append("" if setting["accumulator"] == "default" else f"accumulator {setting['accumulator']}")
    return ", ".join([setting["arch"], setting["recipe"], *filter(None, more)])


@dataclass(frozen=True, kw_only=True)
class EvaluatedDifference:
    """What one setting gives beside another, of a linear layer or at the end of the model, over all the text."""

    arch: str
    recipe: str
    library: str
    accumulator: str
    against: str
    """`f32`: the model in f32; `arch`, `recipe`, `library`, `accumulator`: the setting that differs in this alone, and has the first."""
    other: str
    """That one, in words."""
    layer: str
    """Empty: the end of the model."""
    results: int
    changed: int | None
    """Those that differ: in any bit where the types are the same. None: other rows reach the layer, as in a mixture of experts."""
    largest: float | None
    """The largest difference."""
    error: float | None
    """Root mean square of the differences, relative to that of the other's results."""
    agreement: float | None = None
    """The part of the positions with the same most likely token; None: no logits."""
    kl: float | None = None
    """Mean Kullback-Leibler divergence of the setting's distribution from the other's, natural logarithms."""

    @property
    def words(self) -> str:
        """The setting in words."""
        return words_of(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model, in all settings."""

    model: str
    measure: str
    """What stands at the end: `logits` or `outputs`; empty where no setting could be run."""
    pieces: int
    length: int
    """Tokens of a piece at most."""
    settings: tuple[EvaluatedSetting, ...]
    differences: tuple[EvaluatedDifference, ...]
    without_effect: tuple[str, ...] = ()
    """Settings that were left out since they are others under another name."""

    @property
    def ends(self) -> tuple[EvaluatedDifference, ...]:
        """Differences at the end of the model."""
        return tuple(each for each in self.differences if not each.layer)

    def layers(self, end: EvaluatedDifference) -> tuple[EvaluatedDifference, ...]:
        """Differences of the linear layers that belong to one at the end, in their order."""
        key = _key(asdict(end))
        return tuple(each for each in self.differences if each.layer and _key(asdict(each)) == key)

    @property
    def is_whole(self) -> bool:
        """Whether every setting could be run."""
        return not any(each.refusal for each in self.settings)

    def rows(self) -> list[dict[str, Any]]:
        """Flat rows: one for each setting, then one for each difference."""
        settings = [
            {
                "kind": "setting", **{name: getattr(each, name) for name in FIELDS}, "tokens": each.tokens, "perplexity": each.perplexity,
                "f32_perplexity": each.exact_perplexity, "multiply_adds": each.multiply_adds, "share": each.share, "refusal": each.refusal,
            }
            for each in self.settings
        ]  # fmt: skip
        return settings + [{"kind": "layer" if each.layer else "end", **asdict(each)} for each in self.differences]

    def csv(self, path: str | Path) -> Path:
        """Write the rows as CSV."""
        rows = self.rows()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return write(path, text.getvalue())

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite as words, `inf` and `nan`."""
        return {
            "model": self.model, "measure": self.measure, "pieces": self.pieces, "length": self.length,
            "settings": [
                {**_finite(asdict(each)), "kinds": dict(each.kinds), "evidence": dict(each.evidence)} for each in self.settings
            ],
            "differences": [_finite(asdict(each)) for each in self.differences], "without_effect": list(self.without_effect),
        }  # fmt: skip

    def tables(self) -> Iterator[Table]:
        """The settings, and what differs at the end, as rich tables."""
        from rich.table import Table
        from rich.text import Text

        shown = Table(title=f"{self.model}: {self.pieces} x {self.length} tokens at most", title_justify="left", box=None, pad_edge=False)
        for heading in ("setting", "perplexity", "f32", "emulated", "products"):
            shown.add_column(heading, overflow="fold", justify="right" if heading in ("perplexity", "f32", "emulated") else "left")
        for each in self.settings:
            shown.add_row(*map(Text, setting_cells(each)))
        yield shown
        if not self.ends:
            return
        differ = Table(title="What differs at the end", title_justify="left", box=None, pad_edge=False)
        for heading in END_HEADINGS:
            differ.add_column(heading, overflow="fold", justify="left" if heading in END_HEADINGS[:2] else "right")
        for end in self.ends:
            differ.add_row(*map(Text, self.end_cells(end)))
        yield differ

    def end_cells(self, end: EvaluatedDifference) -> tuple[str, ...]:
        """A difference at the end as cells, with the first layer that differs."""
        layers = self.layers(end)
        first = next((each.layer for each in layers if each.changed != 0), "")
        differing = sum(each.changed != 0 for each in layers)
        return (
            end.words, end.other, "" if end.changed is None else f"{end.changed:,} of {end.results:,}", shown_number(end.largest),
            shown_number(end.error), "" if end.agreement is None else f"{100 * end.agreement:.4g}%", shown_number(end.kl),
            f"{differing} of {len(layers)}" + (f", from {first}" if first else ""),
        )  # fmt: skip

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        return iter(self.tables())


END_HEADINGS: Final = ("setting", "against", "differ", "largest", "error", "top-1", "KL", "layers")
"""Of `Evaluation.end_cells`."""


def setting_cells(each: EvaluatedSetting) -> tuple[str, ...]:
    """A setting as cells: its words, perplexities, share, types of products."""
    if each.refusal:
        return (each.words, "", "", "", f"not run: {each.refusal}")
    share = "" if each.share is None else f"{100 * each.share:.4g}%"
    kinds = ", ".join(f"{100 * part:.3g}% {kind}" for kind, part in each.kinds)
    return (each.words, shown_number(each.perplexity), shown_number(each.exact_perplexity), share, kinds)


def shown_number(value: float | None) -> str:
    """A figure as tables have it."""
    return "" if value is None else "0" if value == 0 else f"{value:.4g}"


def _finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()}


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in (*FIELDS, "against"))


# From rows of points ------------------------------------------------------------------------------------------------------


def settings_of(rows: Sequence[Row], settings: Iterable[Row]) -> tuple[EvaluatedSetting, ...]:
    """Each setting over all pieces."""
    runs: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] in ("run", "refused"):
            runs[tuple(row[name] for name in FIELDS)].append(row)
    return tuple(_setting(setting, runs[tuple(setting[name] for name in FIELDS)]) for setting in settings)


def _setting(setting: Row, runs: Sequence[Row]) -> EvaluatedSetting:
    fields = {name: setting[name] for name in FIELDS}
    refused = [row["why"] for row in runs if row["kind"] == "refused"]
    if refused:
        return EvaluatedSetting(**fields, refusal=refused[0])
    emulated = sum(row["emulated"] for row in runs)
    skipped = _summed(row["skipped"] for row in runs)
    seen = emulated + sum(skipped.values())
    predicted = sum(row["predicted"] for row in runs)
    return EvaluatedSetting(
        **fields, tokens=sum(row["tokens"] for row in runs), perplexity=_perplexity([row["nll"] for row in runs], predicted),
        exact_perplexity=_perplexity([row["exact_nll"] for row in runs], predicted), multiply_adds=emulated,
        share=emulated / seen if seen else None, kinds=_parts(_summed(row["kinds"] for row in runs)),
        evidence=_parts(_summed(row["evidence"] for row in runs)), not_emulated=tuple(skipped),
    )  # fmt: skip


def _perplexity(surprises: Sequence[float | None], predicted: int) -> float | None:
    known = [each for each in surprises if each is not None]
    if not predicted or len(known) < len(surprises):
        return None
    mean = math.fsum(known) / predicted
    return math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan


def _summed(each: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in each:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return total


def _parts(counts: Mapping[str, int]) -> tuple[tuple[str, float], ...]:
    whole = sum(counts.values())
    return tuple(sorted(((name, count / whole) for name, count in counts.items() if whole), key=lambda part: (-part[1], part[0])))


def differences_of(rows: Iterable[Row], others: Mapping[tuple[str, ...], str]) -> tuple[EvaluatedDifference, ...]:
    """Each difference over all pieces.

    Args:
        rows: of points.
        others: by a setting's fields and `against`: what that is, in words.
    """
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "difference":
            groups[(*_key(row), row["layer"])].append(row)
    return tuple(_difference(key, others[key[:-1]], parts) for key, parts in groups.items())


def _difference(key: tuple[str, ...], other: str, parts: Sequence[Row]) -> EvaluatedDifference:
    fields: dict[str, Any] = dict(zip((*FIELDS, "against", "layer"), key, strict=True))
    results = sum(part["results"] for part in parts)
    if any(part["changed"] is None for part in parts):
        return EvaluatedDifference(**fields, other=other, results=results, changed=None, largest=None, error=None)
    squares, reference = (math.fsum(part[name] for part in parts) for name in ("squares", "reference"))
    positions = sum(part.get("positions") or 0 for part in parts)
    return EvaluatedDifference(
        **fields, other=other, results=results, changed=sum(part["changed"] for part in parts),
        largest=max(part["largest"] for part in parts),
        error=math.sqrt(squares / reference) if reference else (math.inf if squares else 0.0),
        agreement=sum(part["agree"] for part in parts) / positions if positions else None,
        kl=math.fsum(part["kl"] for part in parts) / positions if positions else None,
    )  # fmt: skip
