"""The generated parts of docs/probes.md and docs/probes-recorded.md.

python -m mmabits.conformance.probes.tables docs     rewrites them
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from mmabits.conformance.probes.pack import FOLDER
from mmabits.conformance.probes.score import Score, score_files
from mmabits.conformance.recorded.reading import find_files, recordings_folder
from mmabits.research.probes.generators import RECIPES

BEGIN: Final = "<!-- begin {} -->"
END: Final = "<!-- end {} -->"


def recipe_lines() -> Iterator[str]:
    """What the recipes tell apart."""
    yield "| recipe | tells apart |"
    yield "|---|---|"
    for name, tells, _ in RECIPES:
        yield f"| {name} | {tells} |"


def score_lines(scores: Sequence[Score]) -> Iterator[str]:
    """A line for each file, with the survivors that other operands would kill."""
    yield "| file | datapath | rows | killed | no operands kill | survive |"
    yield "|---|---|---:|---:|---:|---|"
    for score in scores:
        names: dict[str, list[str]] = {}
        for survivor in score.open:
            names.setdefault(survivor.number, []).append(survivor.change)
        text = "; ".join(f"{number}: {', '.join(changes)}" for number, changes in names.items()) or "none"
        yield (f"| {Path(score.path).stem} | {score.datapath} | {score.rows} | {len(score.killed)} | {len(score.equivalent)} | {text} |")


def reason_lines(scores: Sequence[Score]) -> Iterator[str]:
    """How many mutants each argument covers, and which."""
    found: Counter[str] = Counter(str(survivor.reason) for score in scores for survivor in score.equivalent)
    yield "| why no operands kill it | mutants | of |"
    yield "|---|---:|---|"
    for reason, count in found.most_common():
        numbers = dict.fromkeys(s.number for score in scores for s in score.equivalent if s.reason == reason)
        yield f"| {reason} | {count} | {', '.join(numbers)} |"


def total_lines(scores: Sequence[Score]) -> Iterator[str]:
    """One sentence of sums."""
    counts = [sum(len(part) for part in parts) for parts in zip(*((s.killed, s.open, s.equivalent) for s in scores), strict=True)]
    rows = sum(score.rows for score in scores)
    yield f"{len(scores)} files, {rows} dot products: {counts[0]} mutants killed, {counts[1]} survive, {counts[2]} that no operands kill."


def rewritten(text: str, parts: dict[str, Callable[[], Iterator[str]]]) -> str:
    """A page with the parts between its markers made anew."""
    for name, lines in parts.items():
        begin, end = BEGIN.format(name), END.format(name)
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}\n" + "\n".join(lines()) + f"\n{end}{rest.split(end, 1)[1]}"
    return text


def main(docs: Path) -> None:
    """Rewrite the pages; that of recordings only where there are recordings."""
    pack = list(score_files(find_files([FOLDER])))
    _rewrite(docs / "probes.md", {"recipes": recipe_lines, "pack": lambda: total_lines(pack), "reasons": lambda: reason_lines(pack)})
    folder = recordings_folder()
    if folder is not None:
        recorded = list(score_files(find_files([folder])))
        _rewrite(docs / "probes-recorded.md", {"recorded": lambda: score_lines(recorded), "recorded sums": lambda: total_lines(recorded)})


def _rewrite(path: Path, parts: dict[str, Callable[[], Iterator[str]]]) -> None:
    path.write_text(rewritten(path.read_text(encoding="utf-8"), parts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
