"""One call of a kernel on a GPU, kept in a file ("kernel-run/1"), and the same call emulated: compared bit by bit.

The tensors of a file are `in.NAME` and `out.NAME`, codes as unsigned integers; the metadata hold `format`, `manifest` (JSON, with the dtype
of every tensor) and `sha256`. A finished file is never written again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.comparing import Difference, compare
from mmabits.conformance.diff.files import check_dtypes, check_manifest, format_of, read_arrays, write_arrays
from mmabits.conformance.diff.frameworks import FRAMEWORKS, framework_named
from mmabits.conformance.diff.kernel_cases import KernelCase, case_of_kernel
from mmabits.emulator.api import operand_type, scale_type
from mmabits.emulator.hooks.session import SessionReport, emulate
from mmabits.emulator.interop import to_numpy
from mmabits.isa import Instruction, MmabitsError, OperandError, VectorFileError, architecture, resolve
from mmabits.kernels.schemes.dots import Dots
from mmabits.reports.failures import one_line

if TYPE_CHECKING:
    from mmabits.research.explain import Explanation

Array = npt.NDArray[Any]

FORMAT: Final = "kernel-run/1"
KINDS: Final = ("hardware", "emulator")
_CELLS: Final = 32
_TEXTS: Final = ("case", "arch", "call", "kind", "gpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelRun:
    """A kernel's operands and results, and where they come from.

    Raises:
        OperandError: an unknown kind or case, or arrays that a file cannot hold.
    """

    case: str
    """Name of a row of kernel_cases.py."""
    arch: str
    call: str
    kind: str
    """`hardware`, or `emulator`: a stand-in, proving nothing about hardware."""
    gpu: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OperandError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        case = case_of_kernel(self.case)
        if set(self.outputs) != set(case.outputs):
            raise OperandError(f"outputs are {', '.join(self.outputs) or 'none'}; {self.case} has {', '.join(case.outputs)}")
        check_dtypes(self.arrays)

    @property
    def arrays(self) -> dict[str, Array]:
        """Inputs and outputs as a file names them."""
        return {f"{side}.{name}": array for side, arrays in (("in", self.inputs), ("out", self.outputs)) for name, array in arrays.items()}

    @property
    def manifest(self) -> dict[str, Any]:
        """All but the arrays."""
        return {**{name: getattr(self, name) for name in (*_TEXTS, "seed")}, "versions": dict(self.versions)}


def is_kernel_run(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is of this format. A file that cannot be read is not."""
    return format_of(path) == FORMAT


def write_kernel_run(path: str | os.PathLike[str], run: KernelRun) -> None:
    """Write a run, whole or not at all; nothing is replaced.

    Raises:
        VectorFileError: a file of that name is there, or it cannot be written.
    """
    write_arrays(path, FORMAT, run.manifest, run.arrays)


def read_kernel_run(path: str | os.PathLike[str]) -> KernelRun:
    """Read and check a run.

    Raises:
        VectorFileError: the file is missing, damaged, of another format or contradicts itself; one line that names it.
    """
    manifest, arrays = read_arrays(path, FORMAT)
    try:
        check_manifest(manifest, _TEXTS)
        strange = [name for name in arrays if not name.startswith(("in.", "out."))]
        if strange:
            raise OperandError(f"tensor {strange[0]!r} is neither an input nor an output")
        sides: dict[str, dict[str, Array]] = {"in": {}, "out": {}}
        for name, array in arrays.items():
            side, _, short = name.partition(".")
            sides[side][short] = array
        known: dict[str, Any] = {name: manifest[name] for name in (*_TEXTS, "seed", "versions") if name in manifest}
        return KernelRun(**known, inputs=sides["in"], outputs=sides["out"])
    except MmabitsError as error:
        raise VectorFileError(f"{path}: {error}") from error


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
    if stand_in is None:
        found = framework.gpu()
        arch, gpu = found.arch, found.name
        with framework.around():
            outputs = _called(case, inputs, found.device)
    else:
        arch = architecture(stand_in).name
        gpu = f"emulator of {arch}"
        outputs, _ = emulated(case, inputs, arch)
    return KernelRun(
        case=case.name, arch=arch, call=case.call, kind="hardware" if stand_in is None else "emulator", gpu=gpu, inputs=inputs,
        outputs=outputs, seed=seed, versions=framework.versions(),
    )  # fmt: skip


def emulated(case: KernelCase, inputs: Mapping[str, Array], arch: str) -> tuple[dict[str, Array], SessionReport]:
    """A case's outputs under `emulate`, and the report of what was emulated.

    Raises:
        DeviceUnavailable: the framework is missing.
        MmabitsError: the architecture lacks the product.
    """
    framework = framework_named(case.framework, case.name)
    with ExitStack() as around:
        session = around.enter_context(emulate(arch, frameworks=[case.framework]))
        around.enter_context(framework.around())
        outputs = _called(case, inputs, None)
    return outputs, session.report()


def _called(case: KernelCase, inputs: Mapping[str, Array], device: Any) -> dict[str, Array]:
    framework = FRAMEWORKS[case.framework]
    arguments = {name: framework.put(array, device) for name, array in inputs.items()}
    options = {**case.options, **({"interpret": True} if case.is_pallas and device is None else {})}
    result = case.function(**arguments, **options)
    results = result if isinstance(result, tuple) else (result,)
    return {name: np.array(to_numpy(one, name)[0]) for name, one in zip(case.outputs, results, strict=True)}


# Comparing ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """A product that a composition did: its operands and its result."""

    a: Array
    b: Array
    c: Array | None
    scale_a: Array | None
    scale_b: Array | None
    instruction: Instruction
    promote_every: int | None
    result: Array


@dataclass(frozen=True, kw_only=True)
class KeptDots(Dots):
    """Dots that keep what they multiplied."""

    products: list[Product] = field(default_factory=list, compare=False, repr=False)

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
        self.products.append(
            Product(
                a=left, b=right, c=c, scale_a=scale_a, scale_b=scale_b, instruction=found, promote_every=self.promote_every, result=result
            )
        )
        return result


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """The products behind one element that differs."""

    output: str
    row: int
    column: int
    values: tuple[float, ...]
    """What each product adds to the element, before scales; empty where that cannot be told."""
    products: int
    """How many the composition did."""
    explanation: Explanation | None
    """Of the product that adds most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelDifference:
    """What a comparison found."""

    run: KernelRun
    arch: str
    """Emulated."""
    outputs: Mapping[str, Difference]
    """Recorded against emulated, by output."""
    composition: Mapping[str, Difference] | None
    """Composition against emulated; None where there is none for these operands."""
    report: SessionReport
    attribution: Attribution | None = None

    @property
    def is_equal(self) -> bool:
        """Whether every bit of every output is the same."""
        return all(found.is_equal for found in self.outputs.values())

    @property
    def differing(self) -> int:
        """Elements that differ, of all outputs."""
        return sum(found.differing for found in self.outputs.values())

    @property
    def elements(self) -> int:
        """Elements of all outputs."""
        return sum(found.elements for found in self.outputs.values())

    @property
    def verdict(self) -> str:
        """Where the disagreement lies, in words."""
        if self.composition is None:
            agreed = "no composition to ask"
        elif all(found.is_equal for found in self.composition.values()):
            agreed = "emulated kernel and composition agree"
        else:
            agreed = "emulated kernel and composition DIFFER: look there first"
        if self.is_equal:
            return f"every bit equal; {agreed}"
        return f"{self.differing:,} of {self.elements:,} elements differ; {agreed}"

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run.manifest, "arch": self.arch, "verdict": self.verdict, "elements": self.elements, "differing": self.differing,
            "outputs": {name: found.as_json for name, found in self.outputs.items()},
            "composition": None
            if self.composition is None
            else {name: {"elements": found.elements, "differing": found.differing} for name, found in self.composition.items()},
            "emulated": [
                {"where": line.site, "instruction": line.instruction.ptx, "shape": line.shape, "count": line.count,
                 "evidence": str(line.evidence)}
                for line in self.report.emulated
            ],
        }  # fmt: skip


def compare_kernel(run: KernelRun, *, arch: str | None = None) -> KernelDifference:
    """Emulate a run's call on its operands and compare every output.

    Args:
        run: of a GPU, or of a stand-in.
        arch: what to emulate; that of the run if None.

    Raises:
        DeviceUnavailable: the case's framework is missing.
        MmabitsError: the architecture lacks the product.
    """
    case, target = case_of_kernel(run.case), architecture(arch or run.arch).name
    outputs, report = _emulated_run(case, run, target)
    found = {name: _compared(run.outputs[name], outputs[name]) for name in case.outputs}
    composed, products = _composed(case, run, target)
    composition = None if composed is None else {name: _compared(array, outputs[name]) for name, array in composed.items()}
    done = KernelDifference(run=run, arch=target, outputs=found, composition=composition, report=report)
    return replace(done, attribution=_attributed(done, products, outputs))


def _emulated_run(case: KernelCase, run: KernelRun, arch: str) -> tuple[dict[str, Array], SessionReport]:
    """As `emulated`; what a kernel says of operands that are not those of the run's seed is the file's fault, not the kernel's.

    Raises:
        OperandError: the operands are no such kernel's.
    """
    drawn = case.draw(run.seed).inputs
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
    rows, columns = (max(1, 1 << ((size - 1) // _CELLS).bit_length()) for size in _flat(right).shape)
    return compare(_flat(left), _flat(right), tile=(rows, columns))


def _flat(array: Array) -> Array:
    """An output as (rows, last dimension)."""
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)


def _composed(case: KernelCase, run: KernelRun, arch: str) -> tuple[dict[str, Array] | None, list[Product]]:
    """The composition on the run's operands, where they are those of its seed, and the products it did."""
    drawn = case.draw(run.seed)
    if drawn.composition is None or not _same(drawn.inputs, run.inputs):
        return None, []
    products: list[Product] = []

    def dots(**fields: Any) -> Dots:
        return KeptDots(arch=arch, products=products, **fields)

    return drawn.composition(architecture(arch).target, dots) or None, products


def _same(left: Mapping[str, Array], right: Mapping[str, Array]) -> bool:
    def bits(arrays: Mapping[str, Array]) -> dict[str, tuple[Any, ...]]:
        return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}

    return bits(left) == bits(right)


def _attributed(found: KernelDifference, products: list[Product], outputs: Mapping[str, Array]) -> Attribution | None:
    """The first element that differs, by the products that feed it where their results have the output's shape."""
    name = next((name for name, difference in found.outputs.items() if not difference.is_equal), None)
    if name is None or not products:
        return None
    first = found.outputs[name].first[0]
    shape = _flat(outputs[name]).shape
    if any(product.result.shape != shape for product in products):
        return Attribution(output=name, row=first.row, column=first.column, values=(), products=len(products), explanation=None)
    values = tuple(float(product.result[first.row, first.column]) for product in products)
    most = max(range(len(values)), key=lambda number: (abs(values[number]) if np.isfinite(values[number]) else np.inf, -number))
    return Attribution(
        output=name, row=first.row, column=first.column, values=values, products=len(products),
        explanation=_explained(products[most], found.arch, first.row, first.column),
    )  # fmt: skip


def _explained(product: Product, arch: str, row: int, column: int) -> Explanation:
    from mmabits.research.explain import explain

    return explain(
        product.a, product.b, product.c, instruction=product.instruction, arch=arch, scale_a=product.scale_a, scale_b=product.scale_b,
        promote_every=product.promote_every, row=row, column=column,
    )  # fmt: skip


def difference_lines(found: KernelDifference) -> Iterator[str]:
    """The comparison for people to read, without its explanation."""
    run = found.run
    yield f"{run.case}: {run.call}, {run.gpu}"
    if run.kind != "hardware":
        yield "recorded by the emulator standing in for a GPU: proves nothing about hardware"
    yield f"against the same call emulated on {found.arch}"
    yield found.verdict
    for name, difference in found.outputs.items():
        if difference.is_equal:
            continue
        yield f"{name}: {difference.differing} of {difference.elements} differ"
        yield from (f"  {kind.value:22} {count}" for kind, count in difference.counts.items() if count)
        yield from (f"  {part.label:>22} ulp {part.count}" for part in difference.ulps)
        yield "first differences (recorded, emulated):"
        for one in difference.first:
            apart = "" if one.ulp is None else f", {one.ulp} ulp"
            values = f"{one.hardware_value}, {one.emulated_value}"
            yield f"  [{one.row}, {one.column}] {one.hardware} {one.emulated}  {values}: {one.kind.value}{apart}"
    if found.attribution is not None:
        yield attribution_text(found.attribution)


def attribution_text(found: Attribution) -> str:
    """Which products feed the first element that differs."""
    place = f"{found.output}[{found.row}, {found.column}]"
    if found.explanation is None:
        return f"{place} comes from {found.products} products of other shapes: no single one is to blame"
    if found.products == 1:
        return f"{place} comes from one product, explained below up to its accumulator; scales and rounding follow it"
    values = ", ".join(f"{value:.9g}" for value in found.values)
    return f"{place} is made of {found.products} products, before scales {values}; the largest is explained below"


__all__ = [
    "FORMAT", "Attribution", "KernelDifference", "KernelRun", "attribution_text", "compare_kernel", "difference_lines", "emulated",
    "is_kernel_run", "read_kernel_run", "record_kernel", "write_kernel_run",
]  # fmt: skip
