"""Do the bits of a row depend on the batch it came in with, and on what else: products of a library, and functions of any kind.

A row of a product keeps its bits as long as its sums are formed in one order by one kind of instruction. So the question is which
schedule the library takes for the row's batch; `mmabits.choice` says what is known of that, and each candidate is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import by_schedule
from mmabits.emulator.codecs import encode
from mmabits.emulator.interop import to_numpy
from mmabits.emulator.schedules import Chains, Choice, Schedule, choice
from mmabits.emulator.schedules.choices import signature
from mmabits.emulator.schedules.cublaslt import FP8, chunk, operand_types
from mmabits.emulator.schedules.run import NARROW, rounded
from mmabits.isa import OperandError, architecture, library_instruction, lower
from mmabits.isa.errors import nearest
from mmabits.isa.ptx import resolve

Array = npt.NDArray[Any]

__all__ = ["BATCHES", "MODELS", "REDUCTIONS", "InvarianceFinding", "InvarianceReport", "LinearShape", "invariance", "invariance_of"]

ROWS: Final = 4
"""Rows of a batch that are computed; the rows of a product do not see each other."""
COLUMNS: Final = 64
"""Columns that are computed, for the same reason."""
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
REDUCTIONS: Final = ("order", "ring", "tree")
"""How the partial results of ranks are added: from rank 0 on; each part of the columns beginning with the rank after its own; neighbours in
pairs. Every sum is rounded to the result's type."""
SAME, OPEN, CHANGES = "same", "open", "changes"


@dataclass(frozen=True, kw_only=True)
class LinearShape:
    """A linear layer: N outputs of K inputs."""

    name: str
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.name} ({self.n} x {self.k})"


def _llama(hidden: int, key_value: int, inner: int, vocabulary: int) -> tuple[LinearShape, ...]:
    return (
        LinearShape(name="q, o", n=hidden, k=hidden), LinearShape(name="k, v", n=key_value, k=hidden),
        LinearShape(name="gate, up", n=inner, k=hidden),
        LinearShape(name="down", n=hidden, k=inner), LinearShape(name="lm_head", n=vocabulary, k=hidden),
    )  # fmt: skip


MODELS: Final[dict[str, tuple[LinearShape, ...]]] = {
    "minilm": (
        LinearShape(name="q, k, v, o", n=384, k=384),
        LinearShape(name="up", n=1536, k=384),
        LinearShape(name="down", n=384, k=1536),
    ),
    "llama-8b": _llama(4096, 1024, 14336, 128256),
    "llama-70b": _llama(8192, 1024, 28672, 128256),
}
"""The linear layers of some models."""


@dataclass(frozen=True, kw_only=True)
class InvarianceFinding:
    """What one setting does to the rows of one layer."""

    layer: str
    setting: str
    kind: str
    """batch, position, chunked prefill, padding, tensor parallel, architecture, library, kernel, function"""
    status: str
    """`changes`: some results change with the best known choices. `same`: no bit can change, the sums are the same ones by the same
    arithmetic, whichever candidate the library takes. `open`: neither; with other candidates, or other operands, some may."""
    changed: int
    """Results that change with the best known choices."""
    most: int
    """The most that change with any two candidates."""
    results: int
    cause: str
    """schedule, instruction, reduction, function; several, or empty. Where results change, of the best known choices; where it is
    open, of any candidates."""
    plan: str
    """The best known of the setting."""
    candidates: int


@dataclass(frozen=True, kw_only=True)
class InvarianceReport:
    """All findings."""

    findings: tuple[InvarianceFinding, ...]
    reference: str
    arch: str = ""
    library: str = ""
    types: tuple[str, str, str] = ("", "", "")
    plans: Mapping[str, str] = field(default_factory=dict)
    """The reference's plan by layer."""
    without_effect: tuple[str, ...] = ()
    """Settings that were asked for and are the reference itself, or cannot be, and why."""

    @property
    def is_invariant(self) -> bool:
        """No bit changes with what is best known."""
        return all(found.status != CHANGES for found in self.findings)

    @property
    def is_settled(self) -> bool:
        """Nor with any other candidate."""
        return all(found.status == SAME for found in self.findings)

    def count(self, status: str) -> int:
        """Findings of a status."""
        return sum(found.status == status for found in self.findings)

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("layer", "setting", "kind", "status", "changed", "most", "results", "cause", "plan", "candidates")
        return {
            "reference": self.reference, "arch": self.arch, "library": self.library, "types": list(self.types), "plans": dict(self.plans),
            "invariant": self.is_invariant, "settled": self.is_settled, "without_effect": list(self.without_effect),
            "findings": [{name: getattr(found, name) for name in names} for found in self.findings],
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _LayerSetting:
    """One way to come by the rows of a layer."""

    kind: str
    words: str
    m: int
    arch: str
    library: str
    n: int
    k: int
    ranks: int = 1
    schedule: Schedule | None = None


class _ComputedLayer:
    """A layer with operands, and the results of every schedule that was asked for."""

    def __init__(
        self, shape: LinearShape, types: tuple[str, str, str], seed: int, file: Path | None, fast_accum: bool, workspace: int
    ) -> None:
        self.shape, self.types, self.file, self.fast_accum, self.workspace = shape, types, file, fast_accum, workspace
        rng = np.random.default_rng([seed, shape.n, shape.k])
        columns = min(COLUMNS, shape.n)
        self.a = _operand(rng.standard_normal((ROWS, shape.k)), types[0])
        self.b = _operand(rng.standard_normal((shape.k, columns)) * (4 / np.sqrt(shape.k) if types[1] in NARROW else 1), types[1])
        self._results: dict[Any, Array] = {}

    def choice(self, setting: _LayerSetting) -> Choice:
        return choice(
            setting.m, setting.n, setting.k // setting.ranks, self.types, arch=setting.arch, library=setting.library, file=self.file,
            workspace=self.workspace, fast_accum=self.fast_accum,
        )  # fmt: skip

    def schedules(self, setting: _LayerSetting) -> list[Schedule]:
        """The best known first."""
        if setting.schedule is not None:
            return [setting.schedule]
        return [candidate.schedule for candidate in self.choice(setting).candidates]

    def results(self, schedule: Schedule, setting: _LayerSetting, reduction: str) -> Array:
        """The rows by a schedule, as bits."""
        k = setting.k // setting.ranks
        key = (
            signature(schedule, k), self.arithmetic(schedule, setting.arch), setting.k, setting.ranks,
            reduction if setting.ranks > 1 else "",
        )  # fmt: skip
        if key not in self._results:
            self._results[key] = self._computed(schedule, setting, k, reduction)
        return self._results[key]

    def arithmetic(self, schedule: Schedule, arch: str) -> tuple[Any, ...]:
        """The numbers that decide what one instruction of a schedule gives; of CUDA cores, which multiply and add in f32: none."""
        sums = schedule.sums
        if not isinstance(sums, Chains):
            return ()
        a, b = self.types[:2]
        row = resolve(sums.instruction, arch=arch, a_type=a, b_type=b) if sums.instruction else library_instruction(arch, a, b)
        lowering = lower(row, arch)
        path, group = lowering.datapath, sums.group or row.k
        return (
            path.fraction_bits, lowering.step if lowering.step < group else None, path.zero_exponent, path.result_rounding,
            path.result_fraction_bits, lowering.k_order, str(lowering.unpacked_to),
        )  # fmt: skip

    def _computed(self, schedule: Schedule, setting: _LayerSetting, k: int, reduction: str) -> Array:
        pad = setting.k - self.shape.k
        a = np.pad(self.a, ((0, 0), (0, pad))) if pad > 0 else self.a
        b = np.pad(self.b, ((0, pad), (0, 0))) if pad > 0 else self.b
        plain, width = replace(schedule, planned=None), setting.ranks * k
        if width < setting.k:
            raise OperandError(f"K = {setting.k} of {self.shape} is not divided by {setting.ranks} ranks")
        parts = [by_schedule(a[:, at : at + k], b[at : at + k], plain, arch=setting.arch) for at in range(0, width, k)]
        return _bits(_reduced(parts, schedule.output, reduction))


def _operand(values: npt.NDArray[np.float64], form: str) -> Array:
    if form in NARROW:
        return values.astype(NARROW[form])
    codes = encode(np.clip(values * 64, -400, 400), form, satfinite=True)
    kinds = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
    if form not in kinds:
        raise OperandError(f"invariance is for f16, bf16, e4m3 and e5m2, got {form}")
    return codes.view(kinds[form])


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize])


def _reduced(parts: list[Array], output: str | None, reduction: str) -> Array:
    """The sum over ranks; every sum is rounded to the result's type."""

    def added(x: Array, y: Array) -> Array:
        with np.errstate(all="ignore"):
            return rounded(x.astype(np.float32) + y.astype(np.float32), output)

    def chain(order: Iterable[int], columns: slice) -> Array:
        first, *others = order
        total = parts[first][:, columns]
        for rank in others:
            total = added(total, parts[rank][:, columns])
        return total

    ranks, width = len(parts), parts[0].shape[1]
    if ranks == 1:
        return parts[0]
    if reduction == "tree":
        held = parts
        while len(held) > 1:
            held = [added(held[at], held[at + 1]) if at + 1 < len(held) else held[at] for at in range(0, len(held), 2)]
        return held[0]
    if reduction == "order":
        return chain(range(ranks), slice(None))
    bounds = np.linspace(0, width, ranks + 1).astype(int)
    return np.concatenate(
        [chain([(own + 1 + step) % ranks for step in range(ranks)], slice(bounds[own], bounds[own + 1])) for own in range(ranks)], axis=1
    )


def invariance(
    layers: str | Sequence[LinearShape], *, types: str | Sequence[str] = "bf16", arch: str = "sm_90a", library: str = "cublaslt-13.1",
    file: str | Path | None = None, reference: int | None = None, batches: Sequence[int] = BATCHES, chunks: Sequence[int] = (),
    pads: Sequence[int] = (), ranks: Sequence[int] = (), reduction: str = "ring", archs: Sequence[str] = (), libraries: Sequence[str] = (),
    schedules: Mapping[str, Schedule] | None = None, splits: Sequence[int] = (), instructions: Sequence[str] = (),
    workspace: int = 32 << 20, fast_accum: bool = False, seed: int = 0,
) -> InvarianceReport:  # fmt: skip
    """Which settings change the bits of a model's linear layers, as far as the library's choices are known, and by which cause.

    Every setting is held against the reference: the layer with `reference` rows, unpadded, on one rank, on `arch`. A sample of rows and
    columns is computed by every candidate of both choices.

    Args:
        layers: a name out of MODELS, or shapes.
        types: of A, B and D, as for `mmabits.choice`.
        arch: `"sm_90a"` and so on.
        library: as for `mmabits.choice`.
        file: answers recorded on a GPU.
        reference: rows of the batch that all else is compared with; None: the largest of `batches`.
        batches: numbers of rows.
        chunks: sizes into which a prefill of `reference` rows may be cut; the last chunk is what is left.
        pads: K is filled with zeros to a multiple of these.
        ranks: tensor parallelism: K, and N, divided by so many.
        reduction: how partial results of ranks are added: one of REDUCTIONS.
        archs: other architectures.
        libraries: other versions.
        schedules: schedules of kernels by name, in place of the library's.
        splits: kernels that cut K into so many slices and add them in f32, as a split-K kernel does for few rows.
        instructions: kernels that are the reference's with another instruction, as tiles of 16 rows take `"mma.sync"`.
        workspace: bytes that the library may use.
        fast_accum: for FP8.
        seed: of the operands.

    Returns:
        The findings. It runs on the CPU and says nothing of choices that nobody has recorded but what the rules say.

    Raises:
        OperandError: unknown names, sizes below 1, types that are not for this.
        UnsupportedInstruction, UnknownInstruction: an instruction that the architecture lacks.
    """
    shapes = _shapes(layers)
    forms = operand_types(types)
    if reduction not in REDUCTIONS:
        raise OperandError(f"unknown reduction {reduction!r}{nearest(str(reduction), REDUCTIONS)}; known: {', '.join(REDUCTIONS)}")
    for name, sizes in (("batches", batches), ("chunks", chunks), ("pads", pads), ("ranks", ranks), ("splits", splits)):
        if any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in sizes):
            raise OperandError(f"{name} are whole numbers from 1 on, got {list(sizes)}")
    most = reference if reference is not None else max(batches, default=1)
    target = architecture(arch).name
    findings: list[InvarianceFinding] = []
    plans: dict[str, str] = {}
    idle: list[str] = []
    for shape in shapes:
        layer = _ComputedLayer(shape, forms, seed, None if file is None else Path(file), fast_accum, workspace)
        base = _LayerSetting(kind="batch", words=f"{most} rows", m=most, arch=target, library=library, n=shape.n, k=shape.k)
        plans[str(shape)] = layer.choice(base).words
        settings = _settings(base, shape, batches, chunks, pads, ranks, archs, libraries, idle)
        settings += _kernels(layer, base, schedules or {}, splits, instructions, idle)
        findings += [_compared(layer, base, setting, reduction) for setting in settings]
    return InvarianceReport(
        findings=tuple(findings), reference=f"{most} rows on {target}, {library}", arch=target, library=library, types=forms, plans=plans,
        without_effect=tuple(dict.fromkeys(idle)),
    )  # fmt: skip


def _shapes(layers: str | Sequence[LinearShape]) -> tuple[LinearShape, ...]:
    if isinstance(layers, str):
        if layers not in MODELS:
            raise OperandError(f"unknown model {layers!r}{nearest(layers, MODELS)}; known: {', '.join(MODELS)}")
        return MODELS[layers]
    if not layers or not all(isinstance(shape, LinearShape) for shape in layers):
        raise OperandError("layers are the name of a model or a sequence of LinearShape")
    return tuple(layers)


def _settings(
    base: _LayerSetting, shape: LinearShape, batches: Sequence[int], chunks: Sequence[int], pads: Sequence[int], ranks: Sequence[int],
    archs: Sequence[str], libraries: Sequence[str], idle: list[str],
) -> list[_LayerSetting]:  # fmt: skip
    """What is compared with the reference; `idle` gets what is not, and why."""
    found = [replace(base, words=f"{m} rows", m=m) for m in batches if m != base.m]
    found.append(replace(base, kind="position", words="another row of the same batch"))
    for size in chunks:
        if size >= base.m:
            idle.append(f"chunks of {size}: a prefill of {base.m} rows is one")
            continue
        for m in dict.fromkeys((size, base.m % size)):
            if m:
                found.append(replace(base, kind="chunked prefill", words=f"chunks of {size}, one of {m} rows", m=m))
    for multiple in pads:
        k = -(-shape.k // multiple) * multiple
        if k == shape.k:
            idle.append(f"K filled to multiples of {multiple}: K of {shape} is one")
        else:
            found.append(replace(base, kind="padding", words=f"K filled to {k}", k=k))
    for count in ranks:
        if count == 1:
            idle.append("1 rank: it is the reference")
            continue
        if shape.k % count == 0:
            found.append(replace(base, kind="tensor parallel", words=f"K over {count} ranks", ranks=count))
        else:
            idle.append(f"K over {count} ranks: they do not divide K of {shape}")
        if shape.n % count == 0:
            found.append(replace(base, kind="tensor parallel", words=f"N over {count} ranks", n=shape.n // count))
        else:
            idle.append(f"N over {count} ranks: they do not divide N of {shape}")
    for name in archs:
        other = architecture(name).name
        if other == base.arch:
            idle.append(f"{other}: it is the reference's")
        else:
            found.append(replace(base, kind="architecture", words=other, arch=other))
    for name in libraries:
        if name == base.library:
            idle.append(f"{name}: it is the reference's")
        else:
            found.append(replace(base, kind="library", words=name, library=name))
    return found


def _kernels(
    layer: _ComputedLayer, base: _LayerSetting, schedules: Mapping[str, Schedule], splits: Sequence[int], instructions: Sequence[str],
    idle: list[str],
) -> list[_LayerSetting]:  # fmt: skip
    """Kernels and their configurations in the library's place."""
    best = layer.schedules(base)[0]
    output = None if layer.types[2] == "f32" else layer.types[2]
    named = dict(schedules)
    for count in splits:
        grain = 32 if layer.types[0] in FP8 else 16
        size = chunk(base.k, count, grain)
        if size >= base.k:
            idle.append(f"K in {count} slices: K of {layer.shape} stays one")
        else:
            named[f"K in {count} slices"] = Schedule(sums=Chains(), slices=count, slice_k=size, output=output)
    for text in instructions:
        row = resolve(text, arch=base.arch, a_type=layer.types[0], b_type=layer.types[1])
        if isinstance(best.sums, Chains):
            other = replace(best, sums=replace(best.sums, instruction=text, group=None), planned=None)
            named[f"tiles of {row.m} rows: {row.ptx}"] = other
        else:
            idle.append(f"{text}: the reference's plan for {layer.shape} is one of CUDA cores")
    return [replace(base, kind="kernel", words=name, schedule=schedule) for name, schedule in named.items()]


def _compared(layer: _ComputedLayer, base: _LayerSetting, setting: _LayerSetting, reduction: str) -> InvarianceFinding:
    ours, theirs = layer.schedules(base), layer.schedules(setting)
    wanted = [layer.results(each, base, reduction) for each in ours]
    got = [layer.results(each, setting, reduction) for each in theirs]
    is_one = setting.kind == "position"  # whatever the library takes, it takes it for all rows
    pairs = [(x, x) for x in wanted] if is_one else [(x, y) for x in wanted for y in got]
    counts = [int(np.count_nonzero(x != y)) for x, y in pairs]
    changed, most = counts[0], max(counts)
    causes = [] if is_one else _causes(layer, base, setting, *((ours[:1], theirs[:1]) if changed else (ours, theirs)))
    return InvarianceFinding(
        layer=str(layer.shape), setting=setting.words, kind=setting.kind, status=CHANGES if changed else OPEN if causes else SAME,
        changed=changed, most=most, results=wanted[0].size, candidates=len(theirs), cause=", ".join(causes), plan=theirs[0].words,
    )  # fmt: skip


def _causes(
    layer: _ComputedLayer, base: _LayerSetting, setting: _LayerSetting, ours: Sequence[Schedule], theirs: Sequence[Schedule]
) -> list[str]:
    """What is not the same of any two candidates: sums over ranks, the arithmetic of the instructions, the order of K."""
    found = []
    if setting.ranks > 1:
        found.append("reduction")
    kinds = {layer.arithmetic(each, base.arch) for each in ours} | {layer.arithmetic(each, setting.arch) for each in theirs}
    if len(kinds) > 1:
        found.append("instruction")
    # Zeros after the end of an unsplit K change no sum.
    signs = [{signature(each, base.k if each.slice_k is None else k) for each in some} for some, k in ((ours, base.k), (theirs, setting.k))]
    if setting.ranks == 1 and len(signs[0] | signs[1]) > 1:
        found.append("schedule")
    return found


# Functions ----------------------------------------------------------------------------------------------------------------


def invariance_of(
    function: Callable[[Any], Any], x: Any, *, batches: Sequence[int] = BATCHES, positions: bool = True, name: str = "function",
    changes: Mapping[str, Callable[[Any], Any]] | None = None,
) -> InvarianceReport:  # fmt: skip
    """Whether a function gives a row the same bits in every batch: a kernel, a layer, a model, in an `emulate` block or on a GPU.

    Args:
        function: takes rows, (M, ...), and gives as many, (M, ...).
        x: the rows of the largest batch, an array or a tensor; all else is compared with the function of these.
        batches: numbers of rows, the first of x; larger ones than x has are left out.
        positions: whether rows are also turned round by one and by half of the batch.
        name: for the report.
        changes: other settings of the function, by name: all rows through each.

    Raises:
        OperandError: the function gives another number of rows than it got.
    """
    count = int(x.shape[0])
    want = _given(function, x, count)
    findings = []

    def hold(kind: str, words: str, got: Array, due: Array) -> None:
        changed = int(np.count_nonzero(got != due))
        findings.append(
            InvarianceFinding(
                layer=name, setting=words, kind=kind, status=CHANGES if changed else SAME, changed=changed, most=changed, results=due.size,
                cause="function" if changed else "", plan="", candidates=1,
            )
        )  # fmt: skip

    for m in batches:
        if m < count:
            hold("batch", f"{m} rows", _given(function, x[:m], m), want[:m])
    if positions:
        for shift in dict.fromkeys((1, count // 2)):
            if 0 < shift < count:
                order = np.roll(np.arange(count), shift)
                hold("position", f"rows moved by {shift}", _given(function, x[order.tolist()], count), want[order])
    for words, other in (changes or {}).items():
        hold("kernel", words, _given(other, x, count), want)
    return InvarianceReport(findings=tuple(findings), reference=f"{count} rows")


def _given(function: Callable[[Any], Any], x: Any, count: int) -> Array:
    result = to_numpy(function(x), "the function's result")[0]
    if result.ndim == 0 or result.shape[0] != count:
        raise OperandError(f"the function must give {count} rows for {count}, got shape {result.shape}")
    return _bits(result)
