"""One call of a kernel on a GPU, or under `emulate` in its place, and a recorded call against the same one emulated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.comparing import Difference, compare
from mmabits.conformance.diff.comparison import CALLS_LEAD, Comparison, Detail, Told, stand_in_line, stand_in_notice
from mmabits.conformance.diff.frameworks import FRAMEWORKS, framework_named
from mmabits.conformance.diff.kernel_cases import Drawn, KernelCase, case_of_kernel
from mmabits.conformance.recorded.calls import KernelRun
from mmabits.emulator.api import operand_type, scale_type
from mmabits.emulator.hooks.session import SessionReport, emulate
from mmabits.emulator.interop import to_numpy
from mmabits.isa import Instruction, MmabitsError, OperandError, architecture, resolve
from mmabits.kernels.schemes.dots import Dots
from mmabits.reports.failures import one_line
from mmabits.reports.pages.report import Cell, NoteBlock, Section, TableBlock
from mmabits.research.explain import Explanation, explain

Array = npt.NDArray[Any]

_CELLS: Final = 32
"""Tiles along each side of an output, at most."""


_WAYS: Final = {"triton": ", by Triton's interpreter", "cuda": ", by its PTX"}
"""How a framework's kernels are emulated, where there are several ways."""


# Running -----------------------------------------------------------------------------------------------------------------


def record_kernel(case: KernelCase, *, seed: int = 0, stand_in: str | None = None) -> KernelRun:
    """Run a case on the GPU at hand, or under `emulate` in its place.

    Args:
        case: which.
        seed: of the operands.
        stand_in: an architecture, which may be a what-if: the same call on the CPU inside `emulate`. None: the GPU.

    Raises:
        DeviceUnavailable: the framework or a GPU is missing.
        MmabitsError: the architecture lacks the product.
    """
    framework, inputs = framework_named(case.framework, case.name), case.draw(seed).inputs
    told, device = framework.told(case, seed, stand_in)
    if stand_in is not None:
        return KernelRun(**told, inputs=inputs, outputs=emulated(case, inputs, told["arch"])[0])
    with framework.around():
        return KernelRun(**told, inputs=inputs, outputs=_called(case, inputs, device, told["arch"]))


def emulated(
    case: KernelCase, inputs: Mapping[str, Array], arch: str, *, way: str = "interpreted", keeper: Any = None
) -> tuple[dict[str, Array], SessionReport]:  # fmt: skip
    """A case's outputs under `emulate`, and the report of what was emulated.

    Args:
        case: what is called.
        inputs: its operands.
        arch: what to emulate.
        way: how Triton's kernels are computed, as `emulate` takes it.
        keeper: keeps the launches of compiled kernels; see `Keeper`.

    Raises:
        DeviceUnavailable: the framework is missing.
        MmabitsError: the architecture lacks the product.
    """
    framework = framework_named(case.framework, case.name)
    with ExitStack() as around:
        # Compositions are of what the interpreter computes: exact dots, and between them each operation rounded.
        hooked: dict[str, Any] = {"frameworks": [case.framework], "triton": way} if framework.is_hooked else {"frameworks": []}
        session = around.enter_context(emulate(arch, **hooked))
        session.keeper = keeper
        around.enter_context(framework.within(session))
        around.enter_context(framework.around())
        outputs = _called(case, inputs, None, arch)
    return outputs, session.report()


def _called(case: KernelCase, inputs: Mapping[str, Array], device: Any, arch: str = "") -> dict[str, Array]:
    framework = FRAMEWORKS[case.framework]
    arguments = {name: framework.put(array, device) for name, array in inputs.items()}
    options = {**case.options, **({"interpret": True} if case.is_pallas and device is None else {})}
    options |= {"arch": arch} if case.takes_arch else {}
    with framework.on(device):
        result = case.function(**case.arguments(arguments), **options)
    results = result if isinstance(result, tuple) else (result,)
    return {name: np.array(to_numpy(one, name)[0]) for name, one in zip(case.outputs, results, strict=True)}


# Comparing ---------------------------------------------------------------------------------------------------------------


def compare_kernel(run: KernelRun, *, arch: str | None = None) -> Comparison:
    """Emulate a run's call on its operands and compare every output.

    Args:
        run: of a GPU, or of a stand-in.
        arch: what to emulate; that of the run if None.

    Raises:
        DeviceUnavailable: the case's framework is missing.
        MmabitsError: the architecture lacks the product.
    """
    case, target = case_of_kernel(run.case), architecture(arch or run.arch).name
    drawn = case.draw(run.seed)
    outputs, report = _emulated_run(case, run, drawn.inputs, target)
    found = {name: _compared(run.outputs[name], outputs[name]) for name in case.outputs}
    arrays, products = _composed(drawn, run, target)
    composed = Composed(found=None if arrays is None else {name: _compared(array, outputs[name]) for name, array in arrays.items()})
    place = _attributed(found, products, target)
    return Comparison(
        name=run.case, recorded=run, arch=target, outputs=found, told=_told(run, target), beside=composed.words,
        details=(composed, InstructionsUsed(report=report), *([] if place is None else [place])),
        explanation=None if place is None else place.explanation,
    )  # fmt: skip


def _told(run: KernelRun, arch: str) -> Told:
    return Told(
        head=(f"{run.case}: {run.call}, {run.gpu}", *stand_in_line(run), f"against the same call emulated on {arch}{_way(run.case)}"),
        lead=CALLS_LEAD, notice=stand_in_notice(run), facts=(("call", run.call),), names_outputs=True,
        plain={"run": run.manifest, "arch": arch, "verdict": ""},
    )  # fmt: skip


def _way(case: str) -> str:
    return _WAYS.get(case_of_kernel(case).framework, "")


def _emulated_run(
    case: KernelCase, run: KernelRun, drawn: Mapping[str, Array], arch: str
) -> tuple[dict[str, Array], SessionReport]:  # fmt: skip
    """As `emulated`; what a kernel says of operands that are not those of the run's seed is the file's fault, not the kernel's.

    Raises:
        OperandError: the operands are no such kernel's.
    """
    told = {name: (str(array.dtype), array.ndim) for name, array in run.inputs.items()}
    wanted = {name: (str(array.dtype), array.ndim) for name, array in drawn.items()}
    if told != wanted:
        raise OperandError(f"{case.name} takes {_listed(wanted)}; the run has {_listed(told)}")
    try:
        return emulated(case, run.inputs, arch)
    except MmabitsError:
        raise
    except Exception as error:
        if _same(drawn, run.inputs):
            raise
        raise OperandError(f"{case.name} does not take the run's operands ({type(error).__name__}: {one_line(error)})") from error


def _listed(kinds: Mapping[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({dtype}, {ndim} axes)" for name, (dtype, ndim) in sorted(kinds.items())) or "nothing"


def _compared(left: Array, right: Array) -> Difference:
    """By tiles so small that there are up to _CELLS of them along each side."""
    left, right = (array.reshape(-1, array.shape[-1] if array.ndim else 1) for array in (left, right))
    rows, columns = (max(1, 1 << ((size - 1) // _CELLS).bit_length()) for size in right.shape)
    return compare(left, right, tile=(rows, columns))


@dataclass(frozen=True, kw_only=True)
class InstructionsUsed(Detail):
    """What was emulated, and with which instructions."""

    comes_first: ClassVar[bool] = True
    report: SessionReport

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "emulated": [
                {"where": line.site, "instruction": line.instruction.ptx, "shape": line.shape, "count": line.count,
                 "evidence": str(line.evidence)}
                for line in self.report.emulated
            ]
        }  # fmt: skip

    def sections(self) -> Iterator[Section]:
        """A table."""
        rows = tuple(
            (line.site, Cell(text=line.instruction.ptx, is_code=True), line.shape, line.count, str(line.evidence))
            for line in self.report.emulated
        )
        table = TableBlock(headings=("where", "instruction", "M x N x K", "count", "evidence"), rows=rows, numeric=frozenset({3}))
        nothing = NoteBlock(text="No matrix product: elementwise arithmetic alone.", tone="soft")
        yield Section(title="Emulated with", blocks=(table if rows else nothing,))


# The composition and its products ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Composed(Detail):
    """The composition against the emulated kernel."""

    found: Mapping[str, Difference] | None
    """By output; None where there is none for these operands."""

    @property
    def words(self) -> str:
        """Where the disagreement lies."""
        if self.found is None:
            return "no composition to ask"
        if all(found.is_equal for found in self.found.values()):
            return "emulated kernel and composition agree"
        return "emulated kernel and composition DIFFER: look there first"

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        if self.found is None:
            return {"composition": None}
        return {"composition": {name: {"elements": one.elements, "differing": one.differing} for name, one in self.found.items()}}


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptProduct:
    """A product that a composition did."""

    given: dict[str, Any]
    """Operands, instruction and promotion, as `explain` takes them."""
    result: Array


@dataclass(frozen=True, kw_only=True)
class KeptDots(Dots):
    """Dots that keep what they multiplied."""

    products: list[KeptProduct] = field(default_factory=list, compare=False, repr=False)

    def __call__(
        self, a: Array, b: Array, c: Array | None = None, *, accumulator: str | None = None, scale_a: Array | None = None,
        scale_b: Array | None = None,
    ) -> Array:  # fmt: skip
        """As `Dots`."""
        result = super().__call__(a, b, c, accumulator=accumulator, scale_a=scale_a, scale_b=scale_b)
        found = self.instruction_for(a, b, accumulator=accumulator, scale=scale_a)
        left, right = (a, b) if scale_a is not None else self.in_order(a, b)
        if not isinstance(found, Instruction):
            kinds = operand_type(a, "a"), operand_type(b, "b")
            scale = None if scale_a is None else scale_type(scale_a)
            found = resolve(found, arch=self.arch, a_type=kinds[0], b_type=kinds[1], c_type=accumulator, scale_type=scale)
        given = {"a": left, "b": right, "c": c, "scale_a": scale_a, "scale_b": scale_b}
        self.products.append(KeptProduct(given={**given, "instruction": found, "promote_every": self.promote_every}, result=result))
        return result


def _composed(drawn: Drawn, run: KernelRun, arch: str) -> tuple[dict[str, Array] | None, list[KeptProduct]]:
    """The composition on the run's operands, where they are those of its seed, and the products it did."""
    if drawn.composition is None or not _same(drawn.inputs, run.inputs):
        return None, []
    products: list[KeptProduct] = []

    def dots(**fields: Any) -> Dots:
        return KeptDots(arch=arch, products=products, **fields)

    return drawn.composition(architecture(arch).target, dots) or None, products


def _same(left: Mapping[str, Array], right: Mapping[str, Array]) -> bool:
    def bits(arrays: Mapping[str, Array]) -> dict[str, tuple[Any, ...]]:
        return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}

    return bits(left) == bits(right)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution(Detail):
    """The products behind one element that differs."""

    output: str
    row: int
    column: int
    products: int
    """How many the composition did."""
    values: tuple[float, ...] = ()
    """What each product adds to the element, before scales; empty where that cannot be told."""
    explanation: Explanation | None = None
    """Of the product that adds most."""

    def lines(self) -> Iterator[str]:
        """Which products feed the element."""
        place = f"{self.output}[{self.row}, {self.column}]"
        if self.explanation is None:
            yield f"{place} comes from {self.products} products of other shapes: no single one is to blame"
        elif self.products == 1:
            yield f"{place} comes from one product, explained below up to its accumulator; scales and rounding follow it"
        else:
            values = ", ".join(f"{value:.9g}" for value in self.values)
            yield f"{place} is made of {self.products} products, before scales {values}; the largest is explained below"

    def sections(self) -> Iterator[Section]:
        """The same."""
        yield Section(title="Where the first comes from", blocks=tuple(NoteBlock(text=line) for line in self.lines()))


def _attributed(found: Mapping[str, Difference], products: list[KeptProduct], arch: str) -> Attribution | None:
    """The first element that differs, by the products that feed it where their results have the output's shape."""
    name = next((name for name, difference in found.items() if not difference.is_equal), None)
    if name is None or not products:
        return None
    first = found[name].first[0]
    place: dict[str, Any] = {"output": name, "row": first.row, "column": first.column, "products": len(products)}
    if any(product.result.shape != found[name].shape for product in products):
        return Attribution(**place)
    values = tuple(float(product.result[first.row, first.column]) for product in products)
    most = products[max(range(len(values)), key=lambda number: (abs(values[number]) if np.isfinite(values[number]) else np.inf, -number))]
    return Attribution(**place, values=values, explanation=explain(**most.given, arch=arch, row=first.row, column=first.column))


__all__ = ["Attribution", "Composed", "InstructionsUsed", "compare_kernel", "emulated", "record_kernel"]
