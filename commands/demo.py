"""`mmabits demo`: one product of a real model, in four quantizations, with the arithmetic of several GPUs.

The activations are what a sentence's tokens are after the embedding layer of all-MiniLM-L6-v2, the weights are those of the query, key
and value projections of its first layer: the product is one the model computes.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from rich.table import Table

from mmabits.emulator.codecs import decode
from mmabits.isa import Evidence, Instruction, lower, resolve
from mmabits.isa.errors import OperandError, nearest
from mmabits.kernels.quantize import Quantized, quantize_fp8, quantize_mx, quantize_nvfp4
from mmabits.reports.output import Fitting
from mmabits.reports.pages import check_folder
from mmabits.reports.written import written_whole
from mmabits.research.products import round_to_odd
from mmabits.research.sentence import (
    INSTALL,
    SIZES,
    Floats,
    LayerOperands,
    load_operands,
)

if TYPE_CHECKING:
    from rich.console import Console

Doubles = npt.NDArray[np.float64]


PICTURE: Final = "relative-error.png"


# Exact results -------------------------------------------------------------------------------------------------------


def _lowest_bits(values: Doubles) -> npt.NDArray[np.int64]:
    """The exponent of the lowest set bit of each value; a large number for zero."""
    significand, exponent = np.frexp(values)
    integer = np.abs(np.ldexp(significand, 53)).astype(np.int64)
    lowest = np.frexp((integer & -integer).astype(np.float64))[1] - 1
    return np.where(integer == 0, np.int64(4096), exponent.astype(np.int64) - 53 + lowest)


def exact_product(a: Doubles, b: Doubles) -> tuple[Doubles, Floats]:
    """A * B without rounding errors, and the same rounded once to float32.

    A float64 sum is exact, in whatever order, where the sum of the magnitudes of its products is below 2^53 times the lowest bit any of
    them can have. That is checked for every result; where it does not hold, the result comes from fractions.

    Args:
        a: M x K, finite, few significand bits.
        b: K x N, likewise.

    Returns:
        float64 (of results from fractions: to within its precision) and float32, both M x N.
    """
    product = a @ b
    # The bound itself is rounded: 2^52 leaves a factor of two, far more than its error.
    bound = np.abs(a) @ np.abs(b)
    lowest = _lowest_bits(a).min(axis=1)[:, None] + _lowest_bits(b).min(axis=0)[None, :]
    with np.errstate(over="ignore"):
        is_exact = bound <= np.ldexp(np.float64(1), (np.minimum(lowest, 900) + 52).astype(np.int32))
    for row, column in np.argwhere(~is_exact):
        terms = (Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a[row], b[:, column], strict=True))
        product[row, column] = round_to_odd(sum(terms, Fraction(0)))
    with np.errstate(over="ignore"):
        return product, product.astype(np.float32)


# Runs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A quantization of both operands."""

    name: str
    quantize: Callable[[Floats, int], Quantized]
    """From an array and the axis of K."""


SCHEMES: Final = (
    Scheme(name="FP8 e4m3", quantize=lambda values, axis: quantize_fp8(values, format="e4m3")),
    Scheme(name="MXFP8 e4m3", quantize=lambda values, axis: quantize_mx(values, format="e4m3", axis=axis)),
    Scheme(name="MXFP4 e2m1", quantize=lambda values, axis: quantize_mx(values, format="e2m1", axis=axis)),
    Scheme(name="NVFP4", quantize=lambda values, axis: quantize_nvfp4(values, axis=axis)),
)


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """A scheme's product with one instruction of one architecture."""

    scheme: str
    instruction: str
    arch: str
    promote_every: int | None = None

    @property
    def label(self) -> str:
        """`wgmma on sm_90a`."""
        family = self.instruction.split(".kind")[0]
        promoted = f", promoted every {self.promote_every}" if self.promote_every else ""
        return f"{family} on {self.arch}{promoted}"


RUNS: Final = (
    DemoRun(scheme="FP8 e4m3", instruction="wgmma", arch="sm_90a"),
    DemoRun(scheme="FP8 e4m3", instruction="wgmma", arch="sm_90a", promote_every=128),
    DemoRun(scheme="FP8 e4m3", instruction="tcgen05.mma.kind::f8f6f4", arch="sm_100a"),
    DemoRun(scheme="FP8 e4m3", instruction="mma.sync", arch="sm_89"),
    DemoRun(scheme="FP8 e4m3", instruction="mma.sync", arch="sm_90a"),
    DemoRun(scheme="MXFP8 e4m3", instruction="tcgen05.mma.kind::mxf8f6f4.block_scale", arch="sm_100a"),
    DemoRun(scheme="MXFP8 e4m3", instruction="mma.sync.kind::mxf8f6f4.block_scale", arch="sm_120a"),
    DemoRun(scheme="MXFP4 e2m1", instruction="tcgen05.mma.kind::mxf4.block_scale", arch="sm_100a"),
    DemoRun(scheme="MXFP4 e2m1", instruction="mma.sync.kind::mxf4.block_scale", arch="sm_120a"),
    DemoRun(scheme="NVFP4", instruction="tcgen05.mma.kind::mxf4nvf4.block_scale.block16", arch="sm_100a"),
    DemoRun(scheme="NVFP4", instruction="mma.sync.kind::mxf4nvf4.block_scale.scale_vec::4X", arch="sm_120a"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantization:
    """How far the exact product of the quantized operands is from that of the given ones."""

    rms_error: float
    relative_errors: Doubles


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoOutcome:
    """What came of a run. Differences are counted in bits, errors against the exact product."""

    run: DemoRun
    instruction: Instruction
    evidence: Evidence
    result: Floats
    differ_from_exact: int
    """Results that are not the exact product rounded to float32."""
    differ_from_first: int
    """Results that are not those of the scheme's first run."""
    largest_error: float
    """The largest |result - exact| / |exact|."""
    rms_error: float
    """Root of (sum of squared errors / sum of squared exact results)."""
    relative_errors: Doubles
    """|result - exact| / |exact| of each result that is not exactly zero."""
    seconds: float
    quantization: Quantization
    """What the scheme itself changed, the same for all of its runs."""


def _decoded(quantized: Quantized) -> Doubles:
    """The values that the instruction multiplies: block scales in, the tensor scale not."""
    values = decode(quantized.elements, quantized.element)
    if quantized.scales is None or quantized.scale is None or quantized.block is None:
        return values
    return values * np.repeat(decode(quantized.scales, quantized.scale), quantized.block, axis=quantized.axis)


def _instruction(run: DemoRun, a: Quantized, b: Quantized) -> Instruction:
    scale = None if a.scale is None else a.scale.name
    return resolve(run.instruction, arch=run.arch, a_type=a.element, b_type=b.element, scale_type=scale)


def _multiply(run: DemoRun, instruction: Instruction, a: Quantized, b: Quantized) -> tuple[Floats, float]:
    """The product and the time it took, the engine's compilation left out."""
    from mmabits import gemm

    options: dict[str, Any] = {"instruction": instruction, "arch": run.arch, "promote_every": run.promote_every}
    first_b = None if b.scales is None else b.scales[:, :1]
    first_a = None if a.scales is None else a.scales[:1]
    gemm(a.elements[:1], b.elements[:, :1], scale_a=first_a, scale_b=first_b, **options)
    start = time.perf_counter()
    result = gemm(a.elements, b.elements, scale_a=a.scales, scale_b=b.scales, **options)
    return np.asarray(result), time.perf_counter() - start


def _relative_errors(values: Doubles, reference: Doubles) -> Doubles:
    """|values - reference| / |reference|, where the reference is not zero."""
    is_set = reference != 0
    return np.asarray(np.abs(values - reference)[is_set] / np.abs(reference[is_set]))


def _rms_error(values: Doubles, reference: Doubles) -> float:
    """Root of (sum of squared errors / sum of squared references)."""
    return float(np.sqrt(((values - reference) ** 2).sum() / max(float((reference**2).sum()), np.finfo(np.float64).tiny)))


def _quantization(operands: LayerOperands, a: Quantized, b: Quantized, exact: Doubles) -> Quantization:
    given = operands.activations.astype(np.float64) @ operands.weights.astype(np.float64)
    restored = exact * (float(a.tensor_scale) * float(b.tensor_scale))
    return Quantization(rms_error=_rms_error(restored, given), relative_errors=_relative_errors(restored, given))


def _outcome(
    run: DemoRun, a: Quantized, b: Quantized, exact: Doubles, rounded: Floats, first: Floats | None, quantization: Quantization
) -> DemoOutcome:
    instruction = _instruction(run, a, b)
    result, seconds = _multiply(run, instruction, a, b)
    wide = result.astype(np.float64)
    relative = _relative_errors(wide, exact)
    return DemoOutcome(
        run=run,
        instruction=instruction,
        evidence=lower(instruction, run.arch).evidence,
        result=result,
        # A sum that is exactly zero has no sign of its own: -0 and +0 count as equal to it.
        differ_from_exact=int(np.count_nonzero(result != rounded)),
        differ_from_first=0 if first is None else int(np.count_nonzero(result.view(np.uint32) != first.view(np.uint32))),
        largest_error=float(relative.max(initial=0.0)),
        rms_error=_rms_error(wide, exact),
        relative_errors=relative,
        seconds=seconds,
        quantization=quantization,
    )


def outcomes(operands: LayerOperands) -> Iterator[DemoOutcome]:
    """Every run, one by one; those of a scheme follow each other."""
    for scheme in SCHEMES:
        a, b = scheme.quantize(operands.activations, 1), scheme.quantize(operands.weights, 0)
        exact, rounded = exact_product(_decoded(a), _decoded(b))
        quantization = _quantization(operands, a, b, exact)
        first: Floats | None = None
        for run in (run for run in RUNS if run.scheme == scheme.name):
            outcome = _outcome(run, a, b, exact, rounded, first, quantization)
            first = outcome.result if first is None else first
            yield outcome


# Presentation --------------------------------------------------------------------------------------------------------


def outcome_table(found: Sequence[DemoOutcome]) -> Table:
    """For each scheme a line of what its quantization changes, and a line for each run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("instruction", overflow="fold", min_width=12)
    for name in ("arch", "evidence"):
        table.add_column(name, no_wrap=True)
    for name in ("not exact", "not as first", "largest\nerror", "rms\nerror", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, outcome in enumerate(found):
        run, count = outcome.run, outcome.result.size
        is_first = number == 0 or found[number - 1].run.scheme != run.scheme
        if is_first:
            table.add_row(f"[bold]{run.scheme}[/], quantization", *[""] * 5, f"{outcome.quantization.rms_error:.1e}", "")
        promoted = f", promoted every {run.promote_every}" if run.promote_every else ""
        table.add_row(
            f"  {run.instruction.split('.block_scale')[0]}{promoted}",
            run.arch,
            str(outcome.evidence),
            _share(outcome.differ_from_exact, count),
            "" if is_first else _share(outcome.differ_from_first, count),
            f"{outcome.largest_error:.1e}",
            f"{outcome.rms_error:.1e}",
            f"{1e3 * outcome.seconds:.0f} ms",
        )
    return table


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)"


EXPLANATION: Final = (
    "not exact: results that are not the exact sum rounded to f32.\n"
    "not as first: results that are not, bit for bit, those of the scheme's first instruction.\n"
    "largest error: of |result - exact| / |exact|, large where a sum cancels; rms error: of all results together.\n"
    "quantization: the rms error of the exact sum itself, against the product of the operands before they were quantized."
)


EDGES: Final = np.arange(-32.0, 4.5, 0.5)
"""Of the histogram, as powers of two."""


def _shares(errors: Doubles) -> Doubles:
    """The share of the errors in each bin, in percent; errors of zero are in none."""
    logarithms = np.log2(errors[errors > 0])
    return np.asarray(100 * np.histogram(np.clip(logarithms, EDGES[0], EDGES[-1]), EDGES)[0] / max(errors.size, 1))


def draw(found: Sequence[DemoOutcome], path: Path) -> None:
    """Histograms of the relative errors as a PNG, written beside `path` and renamed over it."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for panel, scheme in zip(axes, SCHEMES, strict=True):
        shown = [outcome for outcome in found if outcome.run.scheme == scheme.name]
        panel.stairs(_shares(shown[0].quantization.relative_errors), EDGES, fill=True, color="0.85", label="quantization of the operands")
        for number, outcome in enumerate(shown):
            errors = outcome.relative_errors
            without = 100 * np.count_nonzero(errors == 0) / max(errors.size, 1)
            # Alternating dashes keep lines apart that lie on each other.
            style = {"color": colours[number], "linewidth": 1.8, "linestyle": ("-", "--", "-", ":", "-.")[number]}
            panel.stairs(_shares(errors), EDGES, label=f"{outcome.run.label}: {without:.0f} % without error", **style)
        panel.axvline(-24, color="0.6", linewidth=0.8)
        panel.set_title(scheme.name, loc="left", fontweight="bold")
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8, loc="upper left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(EDGES[0], EDGES[-1])
        panel.set_ylim(0, 24)
    figure.supxlabel("relative error of a result, as a power of two (line: 2^-24, half a unit of f32)")
    figure.supylabel("share of the results, %")
    figure.suptitle("One product of a real model: what quantization changes, and what the tensor cores' sums change", fontsize=14)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def run_demo(*, out: Path, size: str, console: Console, progress: Console) -> list[DemoOutcome]:
    """Run everything and print it.

    Args:
        out: folder for the picture; made if missing.
        size: `"small"` or `"full"`.
        console: where the results go.
        progress: where the name of the present run goes, if that is a terminal.

    Raises:
        OperandError: no such size, or a folder that cannot be made or written.
    """
    if size not in SIZES:
        raise OperandError(f"unknown size {size!r}{nearest(size, SIZES)}; known: {', '.join(SIZES)}")
    if _has_matplotlib():
        check_folder(out)
    start = time.perf_counter()
    operands = load_operands(SIZES[size])
    (m, k), n = operands.activations.shape, operands.weights.shape[1]
    console.print(
        f"{operands.description}\nA {m} x {k}, B {k} x {n}, {m * n} results a line\n",
        style=None if operands.is_real else "yellow",
        markup=False,
    )
    found = _collect(operands, progress)
    console.print(Fitting(outcome_table(found)), crop=False)
    console.print(f"\n{EXPLANATION}", markup=False)
    console.print(_picture(found, out), markup=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.1f} s in all")
    return found


def _collect(operands: LayerOperands, progress: Console) -> list[DemoOutcome]:
    if not progress.is_terminal:
        return list(outcomes(operands))
    found: list[DemoOutcome] = []
    with progress.status("") as status:
        results = outcomes(operands)
        for run in RUNS:
            status.update(f"{run.scheme}: {run.label}")
            found.append(next(results))
    return found


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _picture(found: Sequence[DemoOutcome], out: Path) -> str:
    if not _has_matplotlib():
        return f"No picture: matplotlib is not installed ({INSTALL})."
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw(found, out / PICTURE)
    except OSError as error:
        raise OperandError(f"the picture cannot be written to {out}: {error.strerror or error}") from error
    return f"Picture: {out / PICTURE}"
