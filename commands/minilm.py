"""`mmabits minilm`: a whole sentence-embedding model with the arithmetic of several GPUs.

all-MiniLM-L6-v2 runs in PyTorch under `emulate`, its linear layers quantized in one scheme after the other, and the embeddings of
some sentences are compared with those in f32 and between the architectures.
"""

from __future__ import annotations

import csv
import importlib.util
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from mmabits.commands.completion import architectures
from mmabits.isa import EmulationError, OperandError, architecture
from mmabits.isa.errors import nearest
from mmabits.reports.output import Fitting
from mmabits.reports.pages import check_folder
from mmabits.reports.written import written_whole
from mmabits.research.sentence import TOKEN_IDS, model_folder

if TYPE_CHECKING:
    from rich.console import Console

Floats = npt.NDArray[np.float32]

INSTALL: Final = "pip install 'mmabits[demo,torch]'"
FILE: Final = "minilm.csv"
ARCHITECTURES: Final = ("sm_80", "sm_90a", "sm_100a")
SCHEMES: Final = {
    "f16": "f16",
    "bf16": "bf16",
    "fp8-tensor": "FP8 e4m3, a scale per tensor, fast accumulation",
    "fp8-row": "FP8 e4m3, a scale per row, promoted where the GPU can",
    "mxfp8": "MXFP8 e4m3",
    "nvfp4": "NVFP4, two levels of scales",
}
"""Names of `encoder.LINEAR_KINDS`, and what they are."""
SENTENCES: Final = (
    "The Analytical Engine has no pretensions whatever to originate anything.",
    "It can do whatever we know how to order it to perform.",
    "A tensor core multiplies small matrices and adds the products.",
    "Matrix units in graphics processors compute many multiply-adds at once.",
    "How long does the bread have to bake?",
    "Leave the loaf in the oven for about forty minutes.",
    "The ferry to the island leaves twice a day.",
    "Rain is expected along the coast until Thursday.",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SchemeRun:
    """The embeddings of a scheme on an architecture, or why there are none."""

    scheme: str
    arch: str
    embeddings: Floats | None = None
    """(sentences, 384), each of length 1."""
    seconds: float = 0.0
    products: int = 0
    instructions: tuple[str, ...] = ()
    refusal: str = ""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run compared with f32 and with the scheme's first architecture."""

    scheme: str
    arch: str
    instruction: str
    products: int
    seconds: float
    cosine: float
    """The lowest cosine between a sentence's embedding and the same in f32."""
    difference: float
    """The largest difference of a component from f32."""
    similarity: float
    """The largest change of the similarity of two sentences."""
    from_first: float | None
    """The largest difference of a component from the scheme's first architecture; None for that one."""
    bits_differ: int | None
    """Components whose bits are not those of the first architecture."""


def tokenize(folder: Path, sentences: Sequence[str]) -> list[list[int]]:
    """The sentences as the model's tokens; without the package tokenizers one fixed sentence."""
    if importlib.util.find_spec("tokenizers") is None:
        return [list(TOKEN_IDS)]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [list(tokenizer.encode(sentence).ids) for sentence in sentences]


def _embed(encoder: Any, tokens: Sequence[list[int]]) -> Floats:
    import torch

    with torch.no_grad():
        return np.stack([encoder(torch.tensor(line)).numpy() for line in tokens])


def reference(weights: Any, tokens: Sequence[list[int]]) -> Floats:
    """The embeddings in PyTorch's own f32, (sentences, 384)."""
    from mmabits.commands.encoder import SentenceEncoder

    return _embed(SentenceEncoder(weights), tokens)


def run(weights: Any, tokens: Sequence[list[int]], scheme: str, arch: str) -> SchemeRun:
    """The embeddings of a scheme on an architecture.

    Args:
        weights: of `encoder.load_weights`.
        tokens: the sentences' token numbers.
        scheme: one of SCHEMES.
        arch: `"sm_90a"` and so on.
    """
    from mmabits.commands.encoder import LINEAR_KINDS, SentenceEncoder
    from mmabits.emulator.hooks.session import emulate

    linear, attention = LINEAR_KINDS[scheme]
    encoder = SentenceEncoder(weights, linear=linear, attention=attention)
    start = time.perf_counter()
    try:
        with emulate(arch, frameworks=["torch"]) as session:
            embeddings = _embed(encoder, tokens)
    except EmulationError as error:
        return SchemeRun(scheme=scheme, arch=arch, refusal=str(error).partition(": ")[2] or str(error))
    seconds = time.perf_counter() - start
    report = session.report()
    if report.skipped:
        missed = ", ".join(sorted({line.operation for line in report.skipped}))
        raise EmulationError(f"{scheme} on {arch}: {missed} ran without emulation")
    named = dict.fromkeys(line.instruction.ptx for line in report.emulated if "attention" not in line.site)
    return SchemeRun(
        scheme=scheme, arch=arch, embeddings=embeddings, seconds=seconds, products=sum(line.count for line in report.emulated),
        instructions=tuple(named),
    )  # fmt: skip


def compare(found: SchemeRun, exact: Floats, first: SchemeRun | None) -> ComparedRun:
    """A run against f32 and against the scheme's first architecture."""
    embeddings = found.embeddings
    if embeddings is None:
        raise OperandError(f"{found.scheme} on {found.arch} has no embeddings: {found.refusal}")
    wide, wanted = embeddings.astype(np.float64), exact.astype(np.float64)
    base = None if first is None else first.embeddings
    return ComparedRun(
        scheme=found.scheme,
        arch=found.arch,
        instruction=" ".join(found.instructions),
        products=found.products,
        seconds=found.seconds,
        cosine=float((wide * wanted).sum(1).min()),
        difference=float(np.abs(wide - wanted).max()),
        similarity=float(np.abs(wide @ wide.T - wanted @ wanted.T).max()),
        from_first=None if base is None else float(np.abs(wide - base).max()),
        bits_differ=None if base is None else int(np.count_nonzero(embeddings.view(np.uint32) != base.view(np.uint32))),
    )


def compare_all(runs: Sequence[SchemeRun], exact: Floats) -> list[ComparedRun]:
    """A line for each run that has embeddings; the first of a scheme is what its others are compared with."""
    lines: list[ComparedRun] = []
    first: dict[str, SchemeRun] = {}
    for found in runs:
        if found.embeddings is not None:
            lines.append(compare(found, exact, first.get(found.scheme)))
            first.setdefault(found.scheme, found)
    return lines


def minilm_table(runs: Sequence[SchemeRun], lines: Sequence[ComparedRun]) -> Table:
    """Every scheme and architecture; a dash where the GPU lacks the product."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("scheme", "arch"):
        table.add_column(name, no_wrap=True)
    table.add_column("instruction of the linear layers", overflow="fold")
    for name in ("lowest\ncosine", "largest\ndifference", "similarity\nchanges by", "from first\narch", "bits\ndiffer", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    by_run = {(line.scheme, line.arch): line for line in lines}
    size = next((run.embeddings.size for run in runs if run.embeddings is not None), 1)
    for run in runs:
        line = by_run.get((run.scheme, run.arch))
        if line is None:
            table.add_row(run.scheme, run.arch, *["-"] * 7)
            continue
        table.add_row(
            line.scheme,
            line.arch,
            line.instruction,
            f"{line.cosine:.7f}",
            f"{line.difference:.1e}",
            f"{line.similarity:.1e}",
            "" if line.from_first is None else f"{line.from_first:.1e}",
            "" if line.bits_differ is None else f"{100 * line.bits_differ / size:.0f} %",
            f"{line.seconds:.1f} s",
        )
    return table


EXPLANATION: Final = (
    "lowest cosine, largest difference, similarity changes by: against the model in f32 on the CPU, over all sentences.\n"
    "from first arch, bits differ: against the scheme's first architecture in the table, of the embeddings' components.\n"
    "Between the products everything is f32; attention multiplies in f16 for f16, otherwise in bf16."
)


def write_csv(lines: Sequence[ComparedRun], path: Path) -> None:
    """The lines as a CSV file."""
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        names = list(ComparedRun.__dataclass_fields__)
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(line, name) for name in names] for line in lines)


@contextmanager
def _status(progress: Console) -> Iterator[Any]:
    """A function that shows what is being computed, on a terminal alone."""
    if not progress.is_terminal:
        yield lambda text: None
        return
    with progress.status("") as status:
        yield status.update


def _checked(names: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    for name in names:
        if name not in known:
            raise OperandError(f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return list(names)


def run_minilm(
    *, architectures: Sequence[str], schemes: Sequence[str], sentences: Sequence[str], out: Path, console: Console, progress: Console
) -> list[ComparedRun]:
    """Run every scheme on every architecture, print the table and write it to `out / "minilm.csv"`.

    Args:
        architectures: `"sm_90a"` and so on; the first is what the others are compared with.
        schemes: names out of SCHEMES.
        sentences: what to embed.
        out: folder for the file; made if missing.
        console: where the results go.
        progress: where the name of the present run goes, if that is a terminal.

    Raises:
        OperandError: no such scheme, no sentence, or a folder that cannot be written.
        UnknownArchitecture: no such architecture.
        EmulationError: the model's package or PyTorch is not installed.
    """
    names, targets = _checked(schemes, tuple(SCHEMES), "scheme"), [architecture(name).name for name in architectures]
    if not sentences:
        raise OperandError("minilm needs at least one sentence")
    folder = model_folder()
    if folder is None or importlib.util.find_spec("torch") is None:
        raise EmulationError(f"minilm needs the model's package and PyTorch: {INSTALL}")
    check_folder(out)
    from mmabits.commands.encoder import load_weights

    start = time.perf_counter()
    weights, tokens = load_weights(folder), tokenize(folder, sentences)
    console.print(f"all-MiniLM-L6-v2 in PyTorch: {len(tokens)} sentences, {sum(map(len, tokens))} tokens\n", markup=False)
    runs: list[SchemeRun] = []
    with _status(progress) as show:
        show("f32")
        exact = reference(weights, tokens)
        for scheme in names:
            for arch in targets:
                show(f"{scheme} on {arch}")
                runs.append(run(weights, tokens, scheme, arch))
    lines = compare_all(runs, exact)
    console.print(Fitting(minilm_table(runs, lines)), crop=False)
    for refused in dict.fromkeys(f"{run.scheme} on {run.arch}: {run.refusal}" for run in runs if run.refusal):
        console.print(f"- {refused}", markup=False, soft_wrap=True)
    console.print(f"\n{EXPLANATION}", markup=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_csv(lines, out / FILE)
    except OSError as error:
        raise OperandError(f"the table cannot be written to {out}: {error.strerror or error}") from error
    console.print(f"Table: {out / FILE}\n{time.perf_counter() - start:.1f} s in all", markup=False, soft_wrap=True)
    return lines


def minilm(
    arch: Annotated[
        list[str] | None,
        typer.Option(autocompletion=architectures, help="Architecture, or GPU, repeatable: sm_80, sm_90a, sm_100a by default."),
    ] = None,
    scheme: Annotated[list[str] | None, typer.Option(help=f"Scheme, repeatable: {', '.join(SCHEMES)}; all by default.")] = None,
    sentence: Annotated[list[str] | None, typer.Option(help="A sentence to embed, repeatable; eight of ours by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table as CSV.")] = Path("results"),
) -> None:
    """Run a whole sentence-embedding model in PyTorch with the arithmetic of several GPUs."""
    from mmabits.reports.output import console

    run_minilm(
        architectures=arch or ARCHITECTURES, schemes=scheme or tuple(SCHEMES), sentences=sentence or SENTENCES, out=out,
        console=console(), progress=console(stderr=True),
    )  # fmt: skip
