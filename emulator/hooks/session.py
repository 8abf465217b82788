"""`emulate`: inside its block, programs multiply matrices with the tensor cores of the architecture they name.

The hooks of the frameworks (mmabits.emulator.hooks) find the products; a Session computes them and keeps account.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import numpy as np

from mmabits.emulator.api import Array, gemm, operand_type, prepare, scale_type
from mmabits.emulator.engine import memory
from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.condensed import by_evidence, largest, rows
from mmabits.emulator.hooks.launched import Chosen, LaunchedKernel
from mmabits.emulator.hooks.library import COMPARED, ChoiceSample, Library
from mmabits.emulator.hooks.scope import NotEmulated
from mmabits.emulator.machine.checkrecords import check_names
from mmabits.emulator.machine.workorder import WorkSchedule
from mmabits.isa import (
    EmulationError,
    Evidence,
    Instruction,
    InsufficientEvidence,
    Lowering,
    OperandError,
    architecture,
    evidence_level,
    library_instruction,
    lower,
    nearest,
)

if TYPE_CHECKING:
    from rich.table import Table

    from mmabits.emulator.engine.native import NativeProduct
    from mmabits.emulator.machine.checks import KernelFinding
    from mmabits.emulator.schedules import Schedule

__all__ = ["FRAMEWORKS", "Emulated", "Emulation", "NotEmulated", "Session", "SessionReport", "Skipped", "current_session", "emulate"]

Function = TypeVar("Function", bound=Callable[..., Any])

FRAMEWORKS: Final = ("triton", "jax", "torch")
"""What can be emulated: `mmabits.emulator.hooks` has a module of that name for each."""


TRITON: Final = ("compiled", "interpreted", "fallback")
"""How `emulate` runs Triton's kernels: as Triton's compiler makes them, whole; by Triton's interpreter with the GPU's dots in it; or whole,
and by the interpreter those of whose instructions one is not emulated."""


AUTOTUNE: Final = ("best", "first")
"""How an autotuner chooses, which measures nothing here: what was tuned on a GPU, else the first that can be; or always the first."""


FINDINGS: Final = ("raise", "collect")
UNDEFINED: Final = ("zero", "poison")
"""What `emulate` puts where a GPU puts nothing."""


JUNK: Final = 0xA5
"""Every byte of a poisoned number that cannot be NaN."""


def poison(dtype: np.dtype[Any]) -> Any:
    """What stands for an undefined value in a test that should see it: NaN, True for booleans, else bytes of JUNK; a scalar."""
    if dtype == np.bool_:
        return np.True_
    junk = np.frombuffer(bytes([JUNK] * dtype.itemsize), dtype)
    with np.errstate(all="ignore"):
        nan = junk if dtype.kind in "iu" else np.array([np.nan]).astype(dtype)
    return (nan if nan[0] != nan[0] else junk)[0]


@dataclass(frozen=True, kw_only=True)
class Emulated:
    """Products of one kind that were computed with the arithmetic of the named GPU."""

    site: str
    """Where in the program: a kernel's name, or an operation and the line that called it."""
    instruction: Instruction
    arch: str
    m: int
    n: int
    k: int
    count: int
    """How many products of this shape, batches counted singly."""
    note: str = ""
    """What was assumed, such as the choice of a library that does not document it."""

    @property
    def evidence(self) -> Evidence:
        """How well the instruction's arithmetic is known."""
        return lower(self.instruction, self.arch).evidence

    @property
    def shape(self) -> str:
        """`M x N x K`."""
        return f"{self.m} x {self.n} x {self.k}"

    @property
    def multiply_adds(self) -> int:
        """Of all of them."""
        return self.m * self.n * self.k * self.count


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An operation that ran without emulation, and why."""

    site: str
    operation: str
    reason: str
    count: int
    multiply_adds: int | None = None
    """Of all of them; None: not known, or none."""


@dataclass(frozen=True, kw_only=True)
class Undefined:
    """Values that a GPU leaves open: nothing writes them, or it depends on the kernel what they are."""

    site: str
    operation: str
    what: str
    """Which values, and why they are open."""
    here: str
    """What stands there instead."""
    count: int
    """In how many calls."""


@dataclass(frozen=True, kw_only=True)
class SessionReport:
    """What a session did. Printed, it is a table."""

    arch: str
    emulated: tuple[Emulated, ...]
    skipped: tuple[Skipped, ...]
    undefined: tuple[Undefined, ...] = ()
    kernels: tuple[LaunchedKernel, ...] = ()
    chosen: tuple[Chosen, ...] = ()
    checks: tuple[str, ...] = ()
    """What compiled kernels were checked for,"""
    findings: tuple[KernelFinding, ...] = ()
    """and what was found, raised or not."""

    @property
    def multiply_adds(self) -> int:
        """How many were emulated."""
        return sum(line.multiply_adds for line in self.emulated)

    @property
    def share(self) -> float | None:
        """The part of the multiply-adds, of those that can be counted, that was emulated; None where none were seen.

        What compiled code, extensions and other threads multiply by themselves is not seen; lines of `skipped` name what is known of it.
        """
        missed = sum(line.multiply_adds or 0 for line in self.skipped)
        return self.multiply_adds / (self.multiply_adds + missed) if self.multiply_adds + missed else None

    @property
    def _seen(self) -> str:
        """One line on the multiply-adds."""
        if self.share is None:
            return ""
        unknown = sum(line.multiply_adds is None for line in self.skipped)
        left = f"; {unknown} line{'s' * (unknown > 1)} below of unknown size" if unknown else ""
        levels = ", ".join(f"{100 * part:.4g}% {level}" for level, part in by_evidence(self.emulated).items())
        return f"{self.multiply_adds:,} multiply-adds emulated ({levels or 'none'}), {100 * self.share:.4g}% of those counted{left}"

    def json(self) -> str:
        """The lines of the report as JSON: emulated (each with shape, evidence and multiply-adds), skipped, undefined, kernels by name."""
        words = {
            "arch": self.arch, "multiply_adds": self.multiply_adds, "share": self.share, "evidence": dict(by_evidence(self.emulated)),
            "emulated": [
                {"site": line.site, "instruction": line.instruction.ptx, "m": line.m, "n": line.n, "k": line.k, "count": line.count,
                 "multiply_adds": line.multiply_adds, "evidence": str(line.evidence), "note": line.note}
                for line in self.emulated
            ],
            "skipped": [asdict(line) for line in self.skipped],
            "undefined": [asdict(line) for line in self.undefined],
            "kernels": [
                {"name": kernel.name, "launches": kernel.launches, "programs": kernel.programs, "seconds": kernel.seconds}
                for kernel in self.kernels
            ],
            "chosen": [asdict(line) for line in self.chosen],
            "checks": list(self.checks),
            "findings": [
                {"check": each.check, "text": each.text, "missing": each.missing, "space": each.space, "program": each.program,
                 "warp": each.warp, "lane": each.lane, "times": each.times}
                for each in self.findings
            ],
        }  # fmt: skip
        return json.dumps(words, indent=1)

    def page(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one page: shares of the multiply-adds by evidence and by module, and every row.

        Args:
            path: of the file, `.html`; folders are made.

        Raises:
            OperandError: another ending, or a place where nothing can be written.
            MmabitsError: jinja2 is not installed, or the file cannot be written.
        """
        pages = importlib.import_module("mmabits.reports.pages")  # above the emulator, and asked for only here
        pages.check_page(path)
        pages.write(path, importlib.import_module("mmabits.reports.session").session_page(self))

    def tables(self) -> Iterator[Table]:
        """The report as rich tables: what was emulated and, if there is any, what was not."""
        from rich.table import Table
        from rich.text import Text

        done = Table(title=f"Emulated with the tensor cores of {self.arch}", title_justify="left")
        for heading in ("where", "instruction", "M x N x K", "count", "evidence", "note"):
            done.add_column(heading, overflow="fold", justify="right" if heading == "count" else "left")
        shown, others = largest(rows(self.emulated))
        for line in shown:
            row = (line.site, line.instruction, line.shape, str(line.count), line.evidence, line.note)
            done.add_row(*map(Text, row))  # as it is: names of sites and reasons may hold brackets
        if self._seen:
            done.caption, done.caption_justify = "\n".join(filter(None, (others, self._seen))), "left"
        yield done
        if self.kernels:
            whole = Table(title="Kernels that ran whole, as compiled", title_justify="left")
            for heading in ("kernel", "", ""):
                whole.add_column(heading, overflow="fold")
            for kernel in self.kernels:
                for place, (heading, words) in enumerate(kernel.lines):
                    whole.add_row(*map(Text, ("" if place else kernel.name, heading, words)))
            yield whole
        if self.checks:
            named = Table(title=f"Found by the checks ({', '.join(self.checks)})", title_justify="left")
            for heading in ("check", "what", "times"):
                named.add_column(heading, overflow="fold", justify="right" if heading == "times" else "left")
            for found in self.findings:
                named.add_row(*map(Text, (found.check, found.text, f"{found.times:,}")))
            if not self.findings:
                named.caption, named.caption_justify = "nothing", "left"
            yield named
        if self.chosen:
            told = Table(title="Autotuned: nothing is measured", title_justify="left")
            for heading in ("kernel", "configuration", "launches", "why"):
                told.add_column(heading, overflow="fold", justify="right" if heading == "launches" else "left")
            for choice in self.chosen:
                told.add_row(*map(Text, (choice.site, choice.configuration, str(choice.count), choice.why)))
            yield told
        if self.skipped:
            left = Table(title="Not emulated", title_justify="left")
            for heading in ("where", "operation", "count", "multiply-adds", "why"):
                left.add_column(heading, overflow="fold", justify="right" if heading in ("count", "multiply-adds") else "left")
            for missed in self.skipped:
                size = "" if missed.multiply_adds is None else f"{missed.multiply_adds:,}"
                left.add_row(*map(Text, (missed.site, missed.operation, str(missed.count), size, missed.reason)))
            yield left
        if self.undefined:
            open_ = Table(title="Undefined on a GPU", title_justify="left")
            for heading in ("where", "operation", "calls", "what", "here"):
                open_.add_column(heading, overflow="fold", justify="right" if heading == "calls" else "left")
            for gap in self.undefined:
                open_.add_row(*map(Text, (gap.site, gap.operation, str(gap.count), gap.what, gap.here)))
            yield open_

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Table]:
        return self.tables()

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        console = Console(width=200, file=text, force_jupyter=False)  # which would write to the notebook instead
        for table in self.tables():
            console.print(table)
        return text.getvalue()


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyProduct:
    """Products that a session has agreed to: of one instruction, scheduled in one way, known as well as it requires."""

    session: Session
    site: str
    lowering: Lowering
    asked_promotion: int | None
    """Elements of K; None: what the architecture does by itself."""
    note: str

    @property
    def instruction(self) -> Instruction:
        """Which."""
        return self.lowering.instruction

    @property
    def promote_every(self) -> int:
        """Elements of K after which the chain is added to an f32 total; 0: never."""
        return self.asked_promotion or self.lowering.own_promotion

    def multiply(
        self, a: Array, b: Array, c: Array | None = None, *, scale_a: Array | None = None, scale_b: Array | None = None
    ) -> Array:  # fmt: skip
        """A B + C, as `mmabits.gemm` takes and gives them."""
        d: Array = gemm(
            a, b, c, instruction=self.instruction, arch=self.lowering.arch, scale_a=scale_a, scale_b=scale_b,
            promote_every=self.asked_promotion,
        )  # fmt: skip
        return d

    def native(self, batch: int, m: int, n: int, *, what: str) -> NativeProduct:
        """The engine's function for products of a shape, for callers that are machine code themselves.

        Args:
            batch: items.
            m: rows of each.
            n: columns of each.
            what: the operation, for the error.

        Raises:
            NotEnoughMemory: no room for the result.
            UnsupportedInstruction: a datapath whose sums the engine could not keep exact.
        """
        from mmabits.emulator.engine.native import native_product
        from mmabits.emulator.engine.tasks import lie_side_by_side

        memory.require(batch * m * n * (8 if self.instruction.d_type.name == "f64" else 4), f"{self.site}: {what}")
        return native_product(self.lowering, self.promote_every, side_by_side=lie_side_by_side(batch, n))

    def count(self, m: int, n: int, k: int, *, count: int = 1) -> None:
        """Enter products of a shape into the session's report."""
        self.session.count(self.site, self.instruction, m, n, k, count=count, note=self.note)

    def compare(self, m: int, n: int, k: int, sample: Callable[[], ChoiceSample]) -> None:
        """Keep a sample for the report, which says in how many results of it the library's candidates differ."""
        self.session.compare((self.site, self.instruction, m, n, k, self.note), sample)


Describe = Callable[["Session", bool, bool], LaunchedKernel]
"""What the report says of a kernel, but its launches; whether ptxas is asked for its spills, and for what it fuses."""
Autotune = str | int | Callable[[Any, Sequence[Any], dict[str, Any]], Any]
"""How an autotuner chooses: see `emulate`."""


@dataclass(kw_only=True, eq=False)
class Session:
    """What an `emulate` block hands out: the architecture, and the account of what was done."""

    arch: str
    require: Evidence = Evidence.INFERRED
    frameworks: tuple[str, ...] = ()
    triton: str = "compiled"
    """How Triton's kernels run: one of TRITON."""
    not_compiled: str = ""
    """Why they are interpreted where nobody asked for it."""
    autotune: Autotune = "best"
    """How an autotuner chooses: one of AUTOTUNE, the place of a configuration, or a function that chooses."""
    undefined: str = "zero"
    """What stands where a GPU leaves a value open: one of UNDEFINED."""
    cuda: bool = False
    """Whether host code finds a GPU."""
    threads: bool = False
    """Whether threads that the program starts inside a block are inside too."""
    library: Library = field(default_factory=Library)
    """What a matrix library is taken to do."""
    watch: Any = field(default=None, repr=False)
    """What compiled kernels tell of their steps (research/follow.py)."""
    keeper: Any = field(default=None, repr=False)
    """What looks at memory before and after each launch of a compiled kernel (conformance/diff/runs.py)."""
    checks: tuple[str, ...] = ()
    """What compiled kernels are checked for: out of checks.CHECKS."""
    findings: list[KernelFinding] | None = field(default=None, repr=False)
    """What the checks found, where they do not raise it."""
    raised: list[KernelFinding] = field(default_factory=list, repr=False)
    """What they found and raised."""
    schedule: WorkSchedule | None = None
    """In which order compiled kernels work, where not in the machine's own."""
    has_failed: bool = field(default=False, repr=False)
    """Whether an exception left the block."""
    within: tuple[Session, ...] = field(default=(), repr=False)
    """The sessions of the blocks that its own lies in, and whose code does not go on before it ends."""
    _emulated: dict[tuple[str, Instruction, int, int, int, str], int] = field(default_factory=dict, repr=False)
    _skipped: dict[tuple[str, str, str], tuple[int, int | None]] = field(default_factory=dict, repr=False)
    _undefined: dict[tuple[str, str, str, str], int] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _counters: list[Callable[[], None]] = field(default_factory=list, repr=False)
    _kernels: dict[Describe, tuple[int, int, float]] = field(default_factory=dict, repr=False)
    _chosen: dict[tuple[str, str, str], int] = field(default_factory=dict, repr=False)
    _samples: dict[tuple[str, Instruction, int, int, int, str], ChoiceSample] = field(default_factory=dict, repr=False)

    @property
    def target(self) -> str:
        """The real architecture: differs from `arch` for one that `what_if` made."""
        return architecture(self.arch).target

    @property
    def poisons(self) -> bool:
        """Whether NaN stands where a GPU leaves a value open."""
        return self.undefined == "poison"

    def ready(
        self, site: str, instruction: Instruction, *, promote_every: int | None = None, note: str = "", order: Evidence = Evidence.RECORDED
    ) -> ReadyProduct:
        """Get products of one kind ready: every hook's way to the engine, whoever calls it then.

        Args:
            site: where in the program, for the report.
            instruction: which.
            promote_every: as for `mmabits.gemm`.
            note: for the report.
            order: how well it is known in which order the elements of K are summed; as well as can be where the program says it itself.

        Raises:
            UnsupportedInstruction: the architecture lacks the instruction, or it is not modelled.
            InsufficientEvidence: it, or the order, is known less well than the session requires.
        """
        return self.agree(site, lower(instruction, self.arch), promote_every=promote_every, note=note, order=order)

    def agree(self, site: str, lowering: Lowering, *, promote_every: int | None, note: str, order: Evidence) -> ReadyProduct:
        """`ready` with what the instruction becomes on the architecture at hand.

        Raises:
            InsufficientEvidence: as `ready`.
        """
        instruction = lowering.instruction
        if lowering.evidence < self.require:
            raise InsufficientEvidence(
                f"{instruction} on {self.arch} rests on {lowering.evidence} evidence, but {self.require} is required"
            )
        if order < self.require:
            raise InsufficientEvidence(
                f"{site}: the order in which the library sums K rests on {order} evidence, but {self.require} is required; "
                "library= takes a Schedule, 'chain' (one chain of the instruction, K upward), or cuBLASLt's answers for its products"
            )
        return ReadyProduct(session=self, site=site, lowering=lowering, asked_promotion=promote_every, note=note)

    def dot(
        self,
        site: str,
        a: Array,
        b: Array,
        c: Array | None = None,
        *,
        scale_a: Array | None = None,
        scale_b: Array | None = None,
        instruction: str | Instruction | None = None,
        accumulator: str | None = None,
        promote_every: int | None = None,
        note: str = "",
        order: Evidence = Evidence.RECORDED,
    ) -> Array:
        """A product with the session's architecture, entered into the report.

        Args:
            site: where in the program, for the report.
            a: (..., M, K), dtypes as for `mmabits.gemm`.
            b: (..., K, N).
            c: (..., M, N) accumulator; zeros if None.
            scale_a: (..., M, K / block) block scales.
            scale_b: (..., K / block, N).
            instruction: which; None: what a matrix library is taken to use.
            accumulator: its type, where `instruction` is None and it is not the usual one: `"f16"`.
            promote_every: as for `mmabits.gemm`.
            note: for the report.
            order: as for `ready`.

        Returns:
            D, (..., M, N), in the accumulator's type.

        Raises:
            MmabitsError: as `mmabits.gemm`; InsufficientEvidence where the session requires more than is known.
        """
        if instruction is None:
            scales = None if scale_a is None else scale_type(scale_a)
            instruction = library_instruction(self.arch, operand_type(a, "a"), operand_type(b, "b"), c_type=accumulator, scale_type=scales)
            note = note or "the library's choice of instruction is assumed"
        if not isinstance(instruction, Instruction):
            instruction = prepare(
                a, b, c, instruction=instruction, arch=self.arch, scale_a=scale_a, scale_b=scale_b, promote_every=promote_every
            ).instruction  # fmt: skip
        found = self.ready(site, instruction, promote_every=promote_every, note=note, order=order)
        result = found.multiply(a, b, c, scale_a=scale_a, scale_b=scale_b)
        m, n = result.shape[-2:]
        if result.size and a.shape[-1]:  # else no instruction runs
            found.count(m, n, a.shape[-1], count=result.size // (m * n))
        return result

    def count(self, site: str, instruction: Instruction, m: int, n: int, k: int, *, count: int = 1, note: str = "") -> None:
        """Enter `count` products of one shape into the report."""
        key = (site, instruction, m, n, k, note)
        with self._lock:
            self._emulated[key] = self._emulated.get(key, 0) + count

    def compare(self, product: tuple[str, Instruction, int, int, int, str], sample: Callable[[], ChoiceSample]) -> None:
        """Keep a sample of a product of several candidates for the report, of so many products."""
        if product in self._samples:
            return
        with self._lock:
            if product not in self._samples and len(self._samples) < COMPARED:
                self._samples[product] = sample()

    def _compared(self, product: tuple[str, Instruction, int, int, int, str]) -> str:
        """The note of a product, with what its sample says."""
        sample = self._samples.get(product)
        return product[-1] if sample is None else f"{product[-1]}; {sample.words}"

    def skip(self, site: str, operation: str, reason: str, *, count: int = 1, multiply_adds: int | None = None) -> None:
        """Enter into the report that something runs without emulation.

        Args:
            site: where in the program.
            operation: which.
            reason: why.
            count: how often.
            multiply_adds: all that it does; None: not known, or nothing.
        """
        key = (site, operation, reason)
        with self._lock:
            times, before = self._skipped.get(key, (0, 0))
            self._skipped[key] = times + count, None if multiply_adds is None or before is None else before + multiply_adds

    @property
    def work(self) -> int:
        """A number that grows with whatever is entered into the report, emulated or not."""
        launched = sum(launches for launches, *_ in self._kernels.values())
        return launched + sum(self._emulated.values()) + sum(times for times, _ in self._skipped.values())

    def leave_open(self, site: str, operation: str, what: str, *, here: str = "") -> None:
        """Enter into the report that a GPU leaves values undefined.

        Args:
            site: where in the program.
            operation: which.
            what: the values, and why they are open.
            here: what stands there now; empty: what `undefined` says.
        """
        key = (site, operation, what, here or ("poison" if self.poisons else "zeros"))
        with self._lock:
            self._undefined[key] = self._undefined.get(key, 0) + 1

    def ran(self, kernel: Describe, programs: int, seconds: float) -> None:
        """Enter into the report one launch of a kernel that ran whole."""
        with self._lock:
            launches, before, spent = self._kernels.get(kernel, (0, 0, 0.0))
            self._kernels[kernel] = (launches + 1, before + programs, spent + seconds)

    def choose(self, site: str, configuration: str, why: str) -> None:
        """Enter into the report that an autotuner launches a configuration, and why this one."""
        key = (site, configuration, why)
        with self._lock:
            self._chosen[key] = self._chosen.get(key, 0) + 1

    def refuse(self, site: str, operation: str, reason: str) -> NoReturn:
        """Stop a program that asks for what the architecture or the emulator lacks.

        Raises:
            EmulationError: always.
        """
        raise EmulationError(f"{site}: {operation} cannot be emulated for {self.arch}: {reason}")

    def before_report(self, counter: Callable[[], None]) -> None:
        """Have a function called before a report is made, for hooks that count outside Python."""
        self._counters.append(counter)

    def report(self, *, spills: bool = False, fusion: bool = False) -> SessionReport:
        """What was emulated so far, in order of first appearance, and what was not.

        Args:
            spills: ask ptxas, the assembler that comes with Triton, how many registers of compiled kernels it keeps in memory: it takes as
                long as Triton's own compilation.
            fusion: compare the machine code that ptxas makes of compiled kernels with what was executed: which sums take which products
                (`mmabits.check_fusion`). It takes as long again.
        """
        for counter in self._counters:
            counter()
        done = tuple(
            Emulated(
                site=site, instruction=row, arch=self.arch, m=m, n=n, k=k, count=count, note=self._compared((site, row, m, n, k, note))
            )
            for (site, row, m, n, k, note), count in self._emulated.items()
        )
        left = tuple(
            Skipped(site=site, operation=operation, reason=reason, count=count, multiply_adds=size)
            for (site, operation, reason), (count, size) in self._skipped.items()
        )
        opened = tuple(
            Undefined(site=site, operation=operation, what=what, here=here, count=count)
            for (site, operation, what, here), count in self._undefined.items()
        )
        kernels = tuple(
            replace(kernel(self, spills, fusion), launches=launches, programs=programs, seconds=seconds)
            for kernel, (launches, programs, seconds) in self._kernels.items()
        )
        chosen = tuple(
            Chosen(site=site, configuration=configuration, why=why, count=count)
            for (site, configuration, why), count in self._chosen.items()
        )
        return SessionReport(
            arch=self.arch, emulated=done, skipped=left, undefined=opened, kernels=kernels, chosen=chosen,
            checks=self.checks, findings=tuple(self.raised if self.findings is None else self.findings),
        )  # fmt: skip


def current_session(framework: str | None = None) -> Session | None:
    """The session of the innermost block that the running code lies in, of those that emulate a framework; None outside."""
    block = scope.current(framework)
    return None if block is None else block.session


class Emulation(AbstractContextManager["Session"]):
    """What `emulate` returns: a context manager that may be entered again once it was left, and a decorator."""

    def __init__(self, session: Callable[[], Session], *, chosen: bool) -> None:
        """Prepare a block.

        Args:
            session: makes the session of each block.
            chosen: whether the program has named the frameworks.
        """
        self._session, self._chosen = session, chosen
        self._block: scope.Block | None = None
        self._absent: set[str] = set()

    def __enter__(self) -> Session:
        if self._block is not None and self._block.is_open:
            raise EmulationError("this emulate block is entered already; call mmabits.emulate again for another one")
        session = self._session()
        hooks = [_hook(name) for name in session.frameworks]
        # Who names frameworks has chosen. Triton is imported by PyTorch itself; without its hook no kernel runs here anyway.
        self._absent = set() if self._chosen else {name for name in FRAMEWORKS if name not in sys.modules and name != "triton"}
        self._block = block = scope.enter(session, sys._getframe(1))
        try:
            for hook in hooks:
                block.hooks.enter_context(hook(session))
        except BaseException:
            scope.leave(block)
            raise
        scope.hold(block)
        return session

    def __exit__(self, *error: object) -> None:
        if self._block is None:
            raise EmulationError("this emulate block was left without having been entered")
        block, self._block = self._block, None
        block.session.has_failed = error[0] is not None
        if sys.is_finalizing():  # a generator that is collected at the end: what would be put back is ending too
            return
        try:
            scope.leave(block)
        finally:
            _tell_of_late_imports(block.session, self._absent)

    def __call__(self, function: Function) -> Function:
        """Run each call of a function in a block of its own; each step of a generator, of an async function too.

        Raises:
            EmulationError: an async generator function.
        """
        called = getattr(function, "__call__", function)  # noqa: B004
        if inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(called):
            raise EmulationError("emulate does not decorate async generators; open the block inside")
        again = partial(Emulation, self._session, chosen=self._chosen)
        wrapped: Any
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):

            async def wrapped(*arguments: Any, **keywords: Any) -> Any:
                with again():
                    return await function(*arguments, **keywords)

        elif inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(called):

            def wrapped(*arguments: Any, **keywords: Any) -> Any:
                with again():
                    return (yield from function(*arguments, **keywords))

        else:

            def wrapped(*arguments: Any, **keywords: Any) -> Any:
                with again():
                    result = function(*arguments, **keywords)
                if inspect.iscoroutine(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
                    result.close() if not inspect.isasyncgen(result) else None
                    kind = type(result).__name__.replace("_", " ")
                    raise EmulationError(f"{function!r} returned a {kind}, which runs after the block; decorate what makes it")
                return result

        return wraps(function)(wrapped)  # type: ignore[return-value]


def emulate(
    arch: str,
    *,
    require: str | Evidence = Evidence.INFERRED,
    frameworks: Sequence[str] | None = None,
    undefined: str = "zero",
    triton: str | None = None,
    autotune: Autotune = "best",
    cuda: bool = False,
    threads: bool = False,
    library: str | os.PathLike[str] | Schedule | None = None,
    bugs: bool = False,
    check: str | Sequence[str] = (),
    findings: str = "raise",
    schedule: str | int | None = None,
) -> Emulation:
    """Run what stands in the block with the tensor cores of an architecture, on the CPU.

    Triton kernels, JAX functions and PyTorch calls inside the block multiply matrices bit for bit as that architecture's
    instructions do. Blocks nest, the innermost counts.

    A block holds for the thread and the asyncio task that entered it, and for the tasks that these start inside. One thread at a time
    may be inside. A block that a generator enters holds while the generator runs, and not for the code that iterates over it; made a
    context manager (contextlib.contextmanager) or a pytest fixture, it passes the block on. Blocks may be left in any order.

    Args:
        arch: `"sm_90a"` and so on; mmabits.instructions() lists what each has.
        require: refuse instructions whose evidence is below `"recorded"` or `"published"`, and products whose order of sums is a
            library's and known less well.
        frameworks: which of `"triton"`, `"jax"`, `"torch"` to emulate; None: those that the program has imported, and Triton with `cuda`.
        undefined: what stands where a GPU leaves values open, such as rows that no kernel writes, and memory of `torch.empty`:
            `"zero"` (memory of `torch.empty`: whatever it holds), or `"poison"`, so that a test sees a program that counts on
            them: NaN in floats, True in booleans, bytes of 0xA5 in everything else.
        triton: `"compiled"`: Triton's kernels run as Triton's compiler makes them, whole (see docs/compiled.md); `"interpreted"`: in
            Triton's interpreter, dots as on the GPU (docs/triton.md); `"fallback"`: whole, and interpreted where the machine lacks an
            instruction. None: compiled, or interpreted where that cannot be here; the report says why.
        autotune: which configuration Triton's autotuner takes, which measures nothing here. `"best"`: what it was tuned to on a GPU
            (`kernel.best_config`), else the first that pruning leaves and the architecture has room for; `"first"`: always that one;
            a number: that of `kernel.configs`; a function of the kernel, the configurations that pruning leaves and the arguments by
            name, which returns one of them. The report has it.
        cuda: let host code written for CUDA run: `torch.cuda` tells of a GPU of that architecture (isa/devices.py), what asks for the
            device `"cuda"` gets the CPU, and tensors say they are on the GPU. PyTorch must be among the frameworks. See docs/torch.md.
        threads: let threads that the program starts inside the block (`threading.Thread`, `ThreadPoolExecutor`) be inside too.
            Otherwise the report has a line for each place that starts some. Triton's interpreter runs in one thread only.
        library: in which order PyTorch's and JAX's products of f16, bf16 and FP8 are summed: `"cublaslt-13.1"` or `"cublaslt-12.8"`, what
            is known of that version's choices; a file of choices that was recorded on a GPU; a `mmabits.Schedule` for all of them;
            `"chain"`: one chain of instructions, K upward. None: the best known choice of the newest version, which is inferred, so that
            `require` refuses it. The report has plan, evidence and candidates. See docs/library-choices.md.
        bugs: whether to leave out what the library is known to leave out.
        check: what to look for while compiled Triton kernels run, out of `"memory"`, `"init"`, `"races"` and `"sync"`: errors that a GPU
            does not tell of. See docs/checks.md.
        findings: `"raise"`: a kernel that the checks found something in raises KernelCheckError when it has run, with all of it;
            `"collect"`: `session.findings` has it, and the program goes on.
        schedule: one order out of those that a GPU may take, of asynchronous work, warps and CTAs of compiled Triton kernels: `"usual"`,
            `"latest"`, `"earliest"`, or the number of one by chance. See docs/checks.md and `mmabits.compare_schedules`.

    Returns:
        For `with`: gives the session; `session.report()` says what was emulated, with which instructions, what was not, and what a
        GPU leaves open. It can be used again, and as a decorator of functions, async functions and generators.

    Raises:
        UnknownArchitecture: when a block begins: no such architecture.
        OperandError: no such framework, evidence level or way to fill what is undefined.
        EmulationError: a framework is not installed, another thread is inside an `emulate` block, or the object is entered already.
    """
    if not (isinstance(undefined, str) and undefined in UNDEFINED):
        raise OperandError(f"undefined must be {' or '.join(map(repr, UNDEFINED))}, got {undefined!r}")
    if triton is not None and not (isinstance(triton, str) and triton in TRITON):
        raise OperandError(f"triton must be {', '.join(map(repr, TRITON))} or None, got {triton!r}")
    is_number = isinstance(autotune, int) and not isinstance(autotune, bool) and autotune >= 0
    if not (is_number or callable(autotune) or (isinstance(autotune, str) and autotune in AUTOTUNE)):
        names = ", ".join(map(repr, AUTOTUNE))
        raise OperandError(f"autotune must be {names}, the number of a configuration from 0, or a function, got {autotune!r}")
    if not isinstance(cuda, bool):
        raise OperandError(f"cuda must be True or False, got {cuda!r}")
    if findings not in FINDINGS:
        raise OperandError(f"findings must be {' or '.join(map(repr, FINDINGS))}, got {findings!r}")
    checks, order = check_names(check), WorkSchedule.of(schedule)
    if (checks or order is not None) and triton not in (None, "compiled"):
        raise OperandError(f"checks and schedules are those of compiled kernels: triton must be 'compiled' or None, got {triton!r}")
    if not isinstance(threads, bool):
        raise OperandError(f"threads must be True or False, got {threads!r}")
    if frameworks is not None and not isinstance(frameworks, str) and isinstance(frameworks, Iterable):
        frameworks = tuple(frameworks)  # a generator would be empty the second time

    sums = Library.of(library, bugs=bugs)

    def session() -> Session:
        wanted = _wanted(frameworks, cuda)
        way, reason = (triton or "compiled", "") if "triton" not in wanted else _way_of_triton(triton)
        if (checks or order is not None) and "triton" not in wanted:
            raise OperandError(
                "checks and schedules are those of Triton's kernels, and Triton is not among the frameworks; import it, or name it"
            )
        if (checks or order is not None) and way != "compiled":
            raise EmulationError(f"checks and schedules are those of compiled kernels, which cannot be here: {reason}")
        if cuda and "torch" not in wanted:
            raise OperandError("cuda=True poses as PyTorch's GPU, and PyTorch is not among the frameworks; import it before, or name it")
        return Session(
            arch=architecture(arch).name, require=evidence_level(require), frameworks=wanted, undefined=undefined, triton=way,
            not_compiled=reason, autotune=autotune, cuda=cuda, threads=threads, library=sums, checks=checks,
            findings=[] if findings == "collect" else None, schedule=order,
        )  # fmt: skip

    return Emulation(session, chosen=frameworks is not None)


def _wanted(frameworks: Sequence[str] | None, cuda: bool) -> tuple[str, ...]:
    if frameworks is None:  # code written for CUDA imports packages of kernels when it needs them: inside the block
        late = ("triton",) if cuda and "triton" not in sys.modules and importlib.util.find_spec("triton") is not None else ()
        return tuple(name for name in FRAMEWORKS if name in sys.modules or name in late)
    if isinstance(frameworks, str) or not isinstance(frameworks, Iterable):
        raise OperandError(f"frameworks must be a sequence of names out of {', '.join(FRAMEWORKS)}, got {frameworks!r}")
    frameworks = tuple(frameworks)
    for name in frameworks:
        if name not in FRAMEWORKS:
            raise OperandError(f"unknown framework {name!r}{nearest(str(name), FRAMEWORKS)}; known: {', '.join(FRAMEWORKS)}")
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise EmulationError(f"{name} is not installed: pip install 'mmabits[{name}]'")
    return tuple(name for name in FRAMEWORKS if name in frameworks)


def _way_of_triton(asked: str | None) -> tuple[str, str]:
    """One of TRITON, and why it is not compiled where that would have been right.

    Raises:
        EmulationError: `"compiled"` was asked for, and cannot be.
    """
    reason = "" if asked == "interpreted" else importlib.import_module("mmabits.emulator.hooks.triton").why_not_compiled()
    if reason and asked == "compiled":
        raise EmulationError(f"kernels cannot be compiled here: {reason}")
    return ("interpreted", reason) if reason else (asked or "compiled", "")


def _hook(framework: str) -> Callable[[Session], AbstractContextManager[None]]:
    found: Callable[[Session], AbstractContextManager[None]] = importlib.import_module(f"mmabits.emulator.hooks.{framework}").hook
    return found


def _tell_of_late_imports(session: Session, absent: set[str]) -> None:
    for name in sorted(absent):
        if name in sys.modules and name not in session.frameworks:
            reason = f"{name} was imported inside the block, after emulate had looked; import it before, or name it in frameworks="
            session.skip("the whole block", name, reason)
            warnings.warn(f"not emulated: {reason}", NotEmulated, stacklevel=3)
