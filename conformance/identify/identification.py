"""`identify`: find the datapath of a device by probing it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mmabits.conformance.identify.devices import Device, Oracle, Shape, oracle_of, shape_of
from mmabits.conformance.identify.search import ROUNDS, Finding, Search, integers
from mmabits.isa import (
    DATAPATHS,
    Arithmetic,
    DatapathSpec,
    Evidence,
    Instruction,
    Proof,
    ResultRounding,
    Rounding,
    instructions,
    lower,
    parse,
)
from mmabits.isa.errors import MmabitsError
from mmabits.research.exact import evaluate
from mmabits.research.model import Model, Overflow, fma_chain, model_of
from mmabits.research.probes.equivalent import reason_for
from mmabits.research.probes.mutants import Mutant, mutants, orders

_UNSEEN: Final = "no dot product that was tried tells them apart"
_WIDTHS: Final = 16
"""Candidates for widths and roundings, alike so far, that are tried with every e_zero."""
_FAR: Final = 6
"""How far from the value that was found numbers are tried, to say what else would do."""


@dataclass(frozen=True, kw_only=True)
class Undecided:
    """What else would give every answer that the device gave."""

    what: str
    alternatives: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Match:
    """A row of isa/ that gives every answer that the device gave."""

    datapath: str
    arch: str
    instruction: str


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What was found of a device."""

    model: Model
    """The datapath: its fields are those of a row of isa/, and more that rows do not have."""
    probes: int
    """Dot products asked, or held by the recording."""
    contradictions: int
    """Answers that the model does not give: 0, or nothing that is modelled fits."""
    findings: tuple[Finding, ...]
    undecided: tuple[Undecided, ...]
    matches: tuple[Match, ...]

    @property
    def survived(self) -> bool:
        """Whether the model gives every answer of the device."""
        return self.contradictions == 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matching rows of isa/."""
        return tuple(dict.fromkeys(match.datapath for match in self.matches))

    @property
    def row(self) -> str:
        """The row as it would stand in isa/."""
        return row_text(self.model)

    @property
    def what_if(self) -> str:
        """A call that makes an architecture with these numbers, ready to be pasted; what it cannot say stands below it as comments."""
        return what_if_text(self.model, self.matches)

    @property
    def datapath(self) -> DatapathSpec | None:
        """The row as an object, None where isa/ has no field for something that was found."""
        return datapath_of(self.model)

    def lines(self) -> Iterator[str]:
        """A report for people to read."""
        yield from (f"{finding.what:18} {finding.value}   [{finding.probes} probes: {finding.evidence}]" for finding in self.findings)
        yield ""
        yield from self.what_if.split("\n")
        yield ""
        for each in self.undecided:
            yield f"undecided: {each.what}: also {', '.join(each.alternatives)} ({each.reason})"
        if self.matches:
            yield f"known datapaths that agree: {', '.join(self.names)}"
        else:
            yield "no known datapath agrees"
        end = "none contradicts the row" if self.survived else f"{self.contradictions} contradict the row: nothing that is modelled fits"
        yield f"{self.probes} dot products; {end}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


# The row ---------------------------------------------------------------------------------------------------------------------

_RESULT: Final = {mode.mode: mode for mode in ResultRounding if mode.mode is not None}


def _beyond_rows(model: Model) -> list[str]:
    """What was found that a datapath row has no field for."""
    plain = model.arithmetic.is_aligned
    said = [
        (model.alignment is not Rounding.TOWARD_ZERO, f"alignment {model.alignment.value}"),
        (model.flushes_operands, "subnormal operands count as zero"),
        (model.flushes_c, "subnormal accumulators count as zero"),
        (model.flushes_results, "subnormal results become zero"),
        (model.normalised_products, "products from 2 on have one more in their exponent"),
        (plain and model.signed_zeros, "zeros are signed as in IEEE 754"),
        (plain and model.overflow is not Overflow.INFINITY, f"overflow: {model.overflow.value}"),
        (not model.zero_times_infinity, "zero times infinity is infinity"),
        (not model.opposite_infinities, "of infinities of both signs the first wins"),
        (not model.zero_scale_absent, "a zero scale keeps its exponent"),
        (bool(model.scale_rotation), f"blocks read the scale of {model.scale_rotation} further on"),
        (plain and model.fraction_bits is None, "the sum of a step is exact"),
        (plain and model.zero_exponent is None, "zero terms have no exponent"),
        (plain and model.rounding not in _RESULT, f"result rounding {model.rounding.value}"),
        (plain and model.rounding is Rounding.TOWARD_ZERO and model.d_type.name != "f32", "rounding toward zero"),
    ]
    return [text for found, text in said if found]


def _lowering_words(model: Model) -> list[str]:
    """What belongs to a lowering rather than to a datapath."""
    words = []
    if model.order != tuple(range(model.k)) and len(model.steps) > 1:
        named = next((name for name, order in orders(model.k).items() if order == model.order), None)
        words.append("k_order=KOrder.LOW_PAIRS_FIRST" if named == "low pairs first" else f"k_order={named or list(model.order)}")
    if model.c_added:
        words.append("separate_add=True")
    if model.operand_format is not None:
        words.append(f'unpacked_to="{model.operand_format.name}"')
    return words


def row_text(model: Model) -> str:
    """A model as a row of isa/datapaths.py, with what belongs to the lowering and what rows cannot say as comments."""
    operands = model.a_type.name if model.a_type is model.b_type else f"{model.a_type.name}-{model.b_type.name}"
    name = f"device.{operands}.{model.d_type.name}"
    match model.arithmetic:
        case Arithmetic.INTEGER:
            lines = [f'_integer("device", "{operands}"),' + ("  # .satfinite" if model.overflow is Overflow.SATURATES else "")]
        case Arithmetic.FMA_CHAIN:
            lines = [f'_fma_chain("device"),  # {name}, .{model.rounding.value}']
        case Arithmetic.GROUPED:
            lines = [
                f'DatapathSpec(name="{name}", arithmetic=Arithmetic.GROUPED, fraction_bits={model.fraction_bits}, step={model.step}, '
                f"group={model.group}, zero_exponent={model.zero_exponent}, result_fraction_bits={model.result_fraction_bits}, ...),"
            ]
        case _:
            short = model.result_fraction_bits != model.d_type.fraction_bits
            more = f", result_fraction_bits={model.result_fraction_bits}" if short else ""
            lines = [f'_fused("{name}", {model.fraction_bits}, {model.step}, {model.zero_exponent}, _recorded(...){more}),']
    lines += [f"# lowering: {', '.join(_lowering_words(model))}"] if _lowering_words(model) else []
    return "\n".join(lines + [f"# rows have no field for: {text}" for text in _beyond_rows(model)])


def what_if_text(model: Model, matches: tuple[Match, ...] = ()) -> str:
    """A model as a call of `mmabits.what_if`.

    Args:
        model: the numbers.
        matches: rows that have them; the first is the base. Without any it is the row of the same kind that differs least.
    """
    if not model.arithmetic.is_aligned:
        there = f", as in {matches[0].datapath}" if matches else ""
        return f"# {model.arithmetic.value}{there}: no numbers to change"
    given = {
        "fraction_bits": model.fraction_bits, "step": model.step, "zero_exponent": model.zero_exponent,
        "result_fraction_bits": model.result_fraction_bits, "result_rounding": model.rounding.value,
        **({"group": model.group} if model.arithmetic is Arithmetic.GROUPED else {}),
    }  # fmt: skip
    said = {name: value for name, value in given.items() if value is not None}
    base = matches[0] if matches else _nearest_row(model, said)
    comments = [f"# what_if has no field for: {text}" for text in (*_beyond_rows(model), *([] if matches else _lowering_text(model)))]
    if base is None:
        return "\n".join([f"# no architecture has a row of this kind that what_if could change: {said}", *comments])
    row = base.datapath.removeprefix(f"{base.arch}.")
    numbers = ", ".join(f'"{name}": {json.dumps(value)}' for name, value in said.items())
    return "\n".join([f'mmabits.what_if("device", base="{base.arch}", rows={{"{row}": {{{numbers}}}}})', *comments])


def _nearest_row(model: Model, said: dict[str, int | str]) -> Match | None:
    """The row of the same kind, for the same types and K, that differs in the fewest numbers."""
    shape = Shape(
        a_type=model.a_type, b_type=model.b_type, d_type=model.d_type, k=model.k, scale_type=model.scale_type,
        block=model.block if model.scale_type else None,
    )  # fmt: skip

    def differing(path: DatapathSpec) -> int:
        values = {name: getattr(path, name) for name in said}
        values["result_rounding"] = path.result_rounding.value
        return sum(values[name] != value for name, value in said.items())

    rows = [(DATAPATHS[match.datapath], match) for other, match in known_models(shape) if other.arithmetic is model.arithmetic]
    return min(rows, key=lambda row: differing(row[0]), default=(None, None))[1]


def _lowering_text(model: Model) -> list[str]:
    """What belongs to how an instruction becomes machine code, in words."""
    words = []
    if model.order != tuple(range(model.k)) and len(model.steps) > 1:
        named = next((name for name, order in orders(model.k).items() if order == model.order), None)
        words.append(f"the order of K, {named or list(model.order)}")
    words += ["C is added after the steps by an IEEE addition"] if model.c_added else []
    words += [f"operands are converted to {model.operand_format.name} first"] if model.operand_format is not None else []
    return words


def datapath_of(model: Model) -> DatapathSpec | None:
    """A model as a DatapathSpec, None where a row has no field for what it does."""
    if _beyond_rows(model):
        return None
    exact = {Arithmetic.INTEGER: ResultRounding.EXACT, Arithmetic.FMA_CHAIN: ResultRounding.FROM_INSTRUCTION}
    rounding = exact.get(model.arithmetic) or _RESULT[model.rounding]
    aligned = model.arithmetic.is_aligned
    return DatapathSpec(
        arch="device", unit="", operands=f"{model.a_type.name}-{model.b_type.name}", arithmetic=model.arithmetic,
        step=model.step if aligned else 1, fraction_bits=(model.fraction_bits or 0) if aligned else 0,
        zero_exponent=(model.zero_exponent or 0) if aligned else 0, group=model.group, result=model.d_type,
        result_fraction_bits=model.result_fraction_bits, result_rounding=rounding, result_nan=model.nan,
        proofs=(Proof(level=Evidence.INFERRED, covers="found by probing", sources=()),),
    )  # fmt: skip


# Rows of isa/ that agree -----------------------------------------------------------------------------------------------------


def _candidates(shape: Shape) -> Iterator[tuple[Instruction, str]]:
    """Instructions of the shape's types and K, one for each line of the support table."""
    for line in instructions():
        example = line.example
        if example is None or not line.modelled or example.k != shape.k or example.d_type is not shape.d_type:
            continue
        spec = example.on(line.arch)
        pair = (shape.a_type.name, shape.b_type.name)
        if spec is None or pair not in spec.pairs or (example.scale_type, example.block) != (shape.scale_type, shape.block):
            continue
        text = str(example).replace(f".{example.a_type.name}.{example.b_type.name}", f".{pair[0]}.{pair[1]}")
        texts = [text.replace(".rn.", f".{rounding}.") for rounding in spec.roundings] or [text]
        for each in [*texts, *([f"{text}.satfinite"] if spec.satfinite else [])]:
            try:
                yield parse(each), line.arch
            except MmabitsError:
                continue


def known_models(shape: Shape) -> list[tuple[Model, Match]]:
    """Every row of isa/ for instructions of a shape."""
    found = {}
    for instruction, arch in _candidates(shape):
        lowering = lower(instruction, arch)
        model = model_of(lowering)
        found[lowering.datapath.name, model] = (model, Match(datapath=lowering.datapath.name, arch=arch, instruction=str(instruction)))
    return list(found.values())


def matching(oracle: Oracle) -> list[tuple[Model, Match]]:
    """The rows that give every answer."""
    operands, codes = oracle.evidence()
    agrees: dict[Model, bool] = {}
    for model, _ in known_models(oracle.shape):
        if model not in agrees:
            agrees[model] = bool((evaluate(model, operands) == codes).all())
    return [(model, match) for model, match in known_models(oracle.shape) if agrees[model]]


# What stays undecided --------------------------------------------------------------------------------------------------------


def _numbers_around(model: Model) -> Iterator[Mutant]:
    """F, e_zero and bits of the result further away than mutants go."""
    for name, label in (("fraction_bits", "F"), ("zero_exponent", "e_zero")):
        value = getattr(model, name)
        for by in range(-_FAR, _FAR + 1) if value is not None else ():
            if abs(by) > 1 and (value + by >= 0 or name == "zero_exponent"):
                yield Mutant(number=label, change=f"{by:+d}", model=dataclasses.replace(model, **{name: value + by}))


def undecided(oracle: Oracle, model: Model) -> tuple[Undecided, ...]:
    """Neighbours of a model that give every answer of the device too."""
    operands, codes = oracle.evidence()
    found: dict[tuple[str, str], list[str]] = {}
    for mutant in [*mutants(model), *_numbers_around(model)]:
        if (evaluate(mutant.model, operands) == codes).all():
            reason = reason_for(model, mutant) or _UNSEEN
            found.setdefault((mutant.number, reason), []).append(_change_text(model, mutant))
    return tuple(Undecided(what=what, alternatives=tuple(texts), reason=reason) for (what, reason), texts in found.items())


def _change_text(model: Model, mutant: Mutant) -> str:
    number = {"F": model.fraction_bits, "e_zero": model.zero_exponent, "L": model.step, "result bits": model.result_fraction_bits}
    base = number.get(mutant.number)
    return str(base + int(mutant.change)) if base is not None and mutant.change[:1] in "+-" else mutant.change


# Identify --------------------------------------------------------------------------------------------------------------------


def identify(
    device: Device, *, a_type: str, b_type: str, d_type: str, k: int, scale_type: str | None = None, block_size: int | None = None
) -> Identification:
    """Find the datapath of a device by asking it dot products.

    Args:
        device: a callable d = f(a, b, c) of n x k, n x k and n arrays in the formats' NumPy types (ml_dtypes; tf32 is float32), which
            returns n results in the type of D; where scaled, f(a, b, c, scale_a, scale_b) with n x k / block_size scales, by keyword if
            its parameters are so named. Or a recording: DotVectors, or the path of a vector file.
        a_type: format of A, a PTX name: `"e4m3"`, `"f16"`, `"s8"`, ...
        b_type: format of B.
        d_type: format of C and D: `"f32"`, `"f16"`, `"f64"` or `"s32"`.
        k: elements of a dot product, 1 to 1024.
        scale_type: `"ue8m0"` or `"ue4m3"` where scaled.
        block_size: elements of K that share a scale; divides `k`.

    Returns:
        The row, how many dot products it took, the evidence for each finding, what stays undecided, and which rows of isa/ agree. A
        device that nothing modelled fits gives the best there is, with `contradictions` above 0.

    Raises:
        OperandError, OperandTypeError, UnknownFormat: types, sizes, or results of the device that do not fit.
        VectorFileError: a recording that cannot be read.
    """
    oracle = oracle_of(device, shape_of(a_type, b_type, d_type, k, scale_type, block_size))
    search = Search(oracle)
    model = _from_recording(oracle) if oracle.is_recording else _by_asking(search)
    matches = matching(oracle)
    if matches and model not in [known for known, _ in matches]:
        model = matches[0][0]  # where several fit, the one that stands in the table
    return Identification(
        model=model, probes=oracle.count, contradictions=oracle.contradictions(model), findings=tuple(search.findings),
        undecided=undecided(oracle, model), matches=tuple(match for _, match in matches),
    )  # fmt: skip


def _by_asking(search: Search) -> Model:
    oracle = search.oracle
    if oracle.shape.d_type.is_integer:
        found = integers(oracle)
        return _tested(search, found[0])
    kept = search.kept_bits()
    steps = search.steps(kept)
    candidates = search.arithmetic(steps, kept)
    model = candidates[0] if candidates else search.draft(order=tuple(at for step in steps for at in step), step=max(map(len, steps)))
    for each in [model, *candidates[1:_WIDTHS]]:  # subnormal results may contradict one width of the result and not another
        zeros = search.zero_exponents(each)
        if zeros:
            model = _usual(zeros)
            break
    model = search.nan_code(model)
    return _tested(search, _as_chain(search.settled(model)))


def _usual(models: list[Model]) -> Model:
    """Where e_zero cannot be seen, that of an ordinary unit if it is among what is left."""
    usual = {-133, -132, -131, -139, -19, -20, -21}
    return next((model for model in models if model.zero_exponent in usual), models[-1])


def _as_chain(model: Model) -> Model:
    """Exact sums of one product and the accumulator are fused multiply-adds."""
    chain = model.step == 1 and model.fraction_bits is None and model.zero_exponent is None and model.signed_zeros
    return dataclasses.replace(model, arithmetic=Arithmetic.FMA_CHAIN) if chain else model


def _tested(search: Search, model: Model) -> Model:
    """The hypothesis after attacks: corrected where one succeeds, until it survives two in a row."""
    survived = 0
    for seed in range(ROUNDS):
        if search.attacked(model, seed):
            survived += 1
            if survived == 2:
                break
            continue
        survived = 0
        better = search.climbed(model)
        if better == model:
            break
        model = better if model.is_integer else search.settled(better)
    return model


def _from_recording(oracle: Oracle) -> Model:
    """The known row, or a neighbour of one, that contradicts the fewest rows of a recording."""
    search = Search(oracle)
    known = list(dict.fromkeys(model for model, _ in known_models(oracle.shape)))
    starts = known or [search.draft()]
    operands, codes = oracle.evidence()
    wrong = {model: int((evaluate(model, operands) != codes).sum()) for model in starts}
    best = min(starts, key=lambda model: wrong[model])
    return best if not wrong[best] else search.climbed(best)


__all__ = ["Identification", "Match", "Undecided", "datapath_of", "fma_chain", "identify", "row_text"]
