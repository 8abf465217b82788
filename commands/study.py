"""The command `mmabits study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmabits.commands.completion import sizes, studies
from mmabits.isa.errors import OperandError, nearest


def study(
    name: Annotated[str | None, typer.Argument(autocompletion=studies, help="Which study; without one they are listed.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for table and page; study-NAME if left out. An interrupted run goes on there.")
    ] = None,
    size: Annotated[str, typer.Option(autocompletion=sizes, help="quick or full.")] = "full",
) -> None:
    """Run a study that ships, and write its page: what accumulation, formats and scale recipes do to products."""
    from mmabits.reports.output import say
    from mmabits.reports.pages import check_page
    from mmabits.research.study.report import can_write_parquet, run
    from mmabits.research.study.shipped import STUDIES

    if name is None:
        width = max(map(len, STUDIES))
        say(*(f"{row.name:{width}}  {row.title}" for row in STUDIES.values()))
        return
    if name not in STUDIES:
        raise OperandError(f"unknown study {name!r}{nearest(name, STUDIES)}; known: {', '.join(STUDIES)}")
    folder = out or Path(f"study-{name}")
    check_page(folder / "index.html")
    table = run(STUDIES[name], out=folder, size=size)
    chosen = STUDIES[name]
    say(chosen.title)
    for finding in chosen.findings(table.rows):
        say(f"- {finding}")
    for claim in chosen.claims(table.rows):
        say(f"- published {claim.published}, measured {claim.measured}: {claim.what} ({claim.source})")
    if not can_write_parquet():
        say("table.parquet is left out: pyarrow is not installed (pip install 'mmabits[study]')")
    say(f"wrote {folder / 'index.html'}")
