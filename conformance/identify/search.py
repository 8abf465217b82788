"""The search: measure the order of the steps, then narrow a set of candidate models by asking what splits it, then try to break the rest.

Every question is chosen by what the remaining candidates would answer, so a number is found by bisection, whatever it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.identify.devices import Oracle
from mmabits.conformance.probes.score import killing_rows
from mmabits.isa import FORMATS, Arithmetic, NonFinite, Rounding
from mmabits.isa.errors import OperandError
from mmabits.research.exact import Operands, decode, evaluate, join
from mmabits.research.model import Model, Overflow, exact_integers, reread
from mmabits.research.probes import generators
from mmabits.research.probes.equivalent import reason_for
from mmabits.research.probes.generators import Setting
from mmabits.research.probes.mutants import mutants
from mmabits.research.probes.sketch import Encoder, Sketch, SketchedProduct, smallest_exponent

WIDEST: Final = 40
"""The largest F that is looked for; beyond it, exact."""
ROUNDS: Final = 8
"""How often a hypothesis is corrected before it is given up."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found."""

    what: str
    value: str
    evidence: str
    probes: int
    """Dot products asked for it."""


def narrowed(oracle: Oracle, candidates: Sequence[Model], pool: Operands, *, most: int = 64) -> list[Model]:
    """The candidates that agree with the device on a pool of dot products; asked are only those that split what is left.

    Args:
        oracle: the device.
        candidates: models.
        pool: dot products to choose from.
        most: questions at most.
    """
    left = list(candidates)
    if len(left) < 2 or not len(pool.c) or oracle.is_recording:
        return left
    answers = np.array([evaluate(model, pool) for model in left])
    alive = np.arange(len(left))
    for _ in range(most):
        here = answers[alive]
        differing = np.flatnonzero((here != here[0]).any(axis=0))
        if not len(differing):
            break
        row = int(max(_spread(differing), key=lambda i: _split(here[:, i])))
        code = oracle.ask(pool.take(np.array([row])))[0]
        kept = alive[here[:, row] == code]
        if not len(kept):
            return []
        alive = kept
    return [left[i] for i in alive]


def _spread(rows: npt.NDArray[np.int64], most: int = 160) -> list[int]:
    return [int(row) for row in rows[:: max(1, len(rows) // most)]]


def _split(answers: npt.NDArray[Any]) -> float:
    """How much an answer tells, in bits."""
    _, counts = np.unique(answers, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _alone(sketch: Sketch, block: int | None) -> bool:
    """Whether each block has at most one product: then it counts alike however products are grouped."""
    blocks = [product_.at // block for product_ in sketch.products] if block else []
    return len(set(blocks)) == len(blocks)


def _encoded(model: Model, setting: Setting, names: Iterable[str], most: int | None = None, *, alone: bool = False) -> Operands:
    """The dot products of some recipes, by name; with `alone`, at most one product in a block."""
    wanted = set(names)
    rng = np.random.default_rng([generators.SEED, model.k])
    parts = []
    for name, _, recipe in generators.RECIPES:
        if name in wanted:
            found = setting.encoder.encode(sketch for sketch in recipe(setting) if not alone or _alone(sketch, model.block))
            if most is not None and len(found.c) > most:
                found = found.take(np.sort(rng.choice(len(found.c), most, replace=False)))
            parts.append(found)
    return generators.unique(join(parts))


class Search:
    """The state of one identification."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.findings: list[Finding] = []
        self._counted = oracle.count

    def _found(self, what: str, value: object, evidence: str) -> None:
        self.findings.append(Finding(what=what, value=str(value), evidence=evidence, probes=self.oracle.count - self._counted))
        self._counted = self.oracle.count

    def draft(self, **numbers: Any) -> Model:
        """A model of the device's shape; what is not said is an ordinary tensor core's."""
        shape = self.oracle.shape
        form = shape.d_type
        fields: dict[str, Any] = {
            "arithmetic": Arithmetic.FUSED, "order": tuple(range(shape.k)), "step": shape.k, "fraction_bits": 25,
            "zero_exponent": -20 if form.name == "f16" else -133, "result_fraction_bits": form.fraction_bits,
            "rounding": Rounding.TOWARD_ZERO, "nan": form.exponent_mask | form.fraction_mask, **shape.fields(),
        }  # fmt: skip
        return Model(**{**fields, **numbers})

    # Bits that a step keeps ----------------------------------------------------------------------------------------------

    def kept_bits(self) -> int:
        """Fraction bits of c that come through a step of zeros: the lesser of F and the bits of the result."""
        form = self.oracle.shape.d_type
        encoder, level = Encoder(self.draft()), 10
        sketches = [Sketch(c_bits=(1 << bits) + 1, c_last=level - bits) for bits in range(1, form.fraction_bits + 1)]
        operands = encoder.encode(sketches)
        same = self.oracle.ask(operands) == operands.c
        kept = int(np.flatnonzero(same)[-1]) + 1 if same.any() else 0
        self._found("bits kept of c", kept, f"2^{level} + 2^({level} - {kept}) comes through steps of zeros, with one bit more it does not")
        return kept

    # Order ---------------------------------------------------------------------------------------------------------------

    def steps(self, kept: int) -> list[list[int]]:
        """The elements of each step, in order."""
        found = self._sorted(list(range(self.oracle.shape.k)), kept)
        how = "+2 and -2 on the largest c below a power of two: a result other than c says that +2 came in an earlier step"
        if len(found) == 1 and self.oracle.shape.k > 1 and self.oracle.shape.scale_type is None:
            found = self._sorted_without_c(found[0])
            how += "; sums of products that cancel, beside small ones: those of later steps survive"
        self._found("steps", " then ".join(_ranges(step) for step in found) if len(found) < 9 else f"{len(found)} steps", how)
        return found

    def _sorted(self, elements: list[int], kept: int) -> list[list[int]]:
        if len(elements) < 2:
            return [elements]
        pivot, others = elements[0], elements[1:]
        model = self.draft()
        sketches = [generators.order_pair(model, kept, pivot, other) for other in others]
        sketches += [generators.order_pair(model, kept, other, pivot) for other in others]
        operands = Encoder(model).encode(sketches)
        if len(operands.c) != len(sketches):
            return [elements]
        moved = self.oracle.ask(operands) != operands.c
        later = [other for other, yes in zip(others, moved[: len(others)], strict=True) if yes]
        earlier = [other for other, yes in zip(others, moved[len(others) :], strict=True) if yes and other not in later]
        same = [other for other in others if other not in later and other not in earlier]
        before = self._sorted(earlier, kept) if earlier else []
        after = self._sorted(later, kept) if later else []
        return [*before, sorted([pivot, *same]), *after]

    def _survivors(self, pairs: list[tuple[int, int]], below: int) -> list[int]:
        """For each pair, how many small products survive beside a product at one and its negative at the other."""
        model = self.draft()
        encoder, form = Encoder(model), model.d_type
        high = min(encoder.highest, form.max_exponent - 1)
        low = max(encoder.lowest, smallest_exponent(form), high - below)
        sketches = []
        for first, second in pairs:
            small = [SketchedProduct(at=at, exponent=low) for at in range(model.k) if at not in (first, second)]
            sketches.append(
                Sketch(
                    products=(SketchedProduct(at=first, exponent=high), SketchedProduct(at=second, exponent=high, negative=True), *small)
                )
            )
        operands = encoder.encode(sketches)
        numbers = decode(self.oracle.ask(operands), form)
        return [
            int(s) << (int(e) - low) if e >= low else int(s) >> (low - int(e))
            for s, e in zip(numbers.significand, numbers.lsb, strict=True)
        ]

    def _sorted_without_c(self, elements: list[int]) -> list[list[int]]:
        """The same for a unit that starts from zero, for formats whose products reach further than F.

        How small is small enough is not known yet, and what is too small is cut beside zeros: several are tried.
        """
        for below in (60, 34, 28, 22, 16):
            found = self._sorted_by_survivors(elements, below)
            if len(found) > 1:
                return found
        return [elements]

    def _sorted_by_survivors(self, elements: list[int], below: int) -> list[list[int]]:
        if len(elements) < 3:
            return [elements]
        pivot, others = elements[0], elements[1:]
        counts = dict(zip(others, self._survivors([(other, pivot) for other in others], below), strict=True))
        top = max(counts.values())
        if top >= self.oracle.shape.k - 2:  # nothing is cut at all
            return [elements]
        front = [pivot, *(other for other in others if counts[other] == top)]
        later = [[other for other in others if counts[other] == count] for count in sorted(set(counts.values()) - {top}, reverse=True)]
        for probe in front[1 :: max(1, len(front) // 6)]:
            rest = [other for other in front if other not in (probe, pivot)]
            again = dict(zip(rest, self._survivors([(other, probe) for other in rest], below), strict=True)) if rest else {}
            earlier = [other for other in rest if again[other] > top]
            if earlier:
                first = self._sorted_by_survivors(sorted([probe, *earlier]), below)
                return [*first, sorted(set(front) - {probe, *earlier}), *later]
        return [sorted(front), *later]

    # Widths and roundings ------------------------------------------------------------------------------------------------

    def _widths(self, kept: int) -> list[tuple[int | None, int]]:
        """(F, result bits) such that the lesser is what a step keeps."""
        form = self.oracle.shape.d_type
        most = max(WIDEST, form.fraction_bits + 8)
        pairs: list[tuple[int | None, int]] = [(width, kept) for width in (*range(kept, most + 1), None)]
        return pairs + [(kept, bits) for bits in range(kept + 1, form.fraction_bits + 1)]

    def arithmetic(self, steps: list[list[int]], kept: int) -> list[Model]:
        """Candidates for F, the rounding of the result and of the alignment, and the place of c, narrowed."""
        order = tuple(at for step in steps for at in step)
        base = self.draft(order=order, step=max(map(len, steps)))
        wide = base.d_type.fraction_bits > 40
        alignments = (Rounding.TOWARD_ZERO,) if wide else (Rounding.TOWARD_ZERO, Rounding.DOWN, Rounding.NEAREST_EVEN)
        # A unit that adds c afterwards keeps every bit of it and says nothing of F.
        outside = len(steps) > 1 and kept == base.d_type.fraction_bits and not self._c_in_first(base)
        inside = [] if outside else [(width, bits, False) for width, bits in self._widths(kept)]
        if kept == base.d_type.fraction_bits and (outside or len(steps) == 1 or not inside):
            inside += self._widths_outside(base)
        candidates = [
            dataclasses.replace(base, fraction_bits=width, result_fraction_bits=bits, c_added=added, rounding=rounding, alignment=alignment)
            for (width, bits, added), rounding, alignment in product(inside, Rounding, alignments)
            if width is not None or alignment is Rounding.TOWARD_ZERO
        ]
        left = self._narrowed_by_width(base, candidates)
        if base.scale_type is not None:
            left = self._grouped(base, left)
        else:
            left = narrowed(self.oracle, left, _encoded(base, generators.setting_of(left[0]), ("carries", "long sums"))) if left else left
        if left:
            # the simplest of what cannot be told apart: exact sums, and all the bits that the result has
            left.sort(key=lambda model: (model.fraction_bits is not None, -model.result_fraction_bits))
            best = left[0]
            self._found("F", "exact" if best.fraction_bits is None else best.fraction_bits, "the last place at which a product beside a "
                        "large c, or beside products that cancel, still counts")  # fmt: skip
            self._found("rounding", f"result {best.rounding.value} to {best.result_fraction_bits} bits, alignment {best.alignment.value}",
                        f"{len(candidates)} combinations of widths and roundings, {len(left)} left")  # fmt: skip
        return left

    def _grouped(self, base: Model, left: list[Model]) -> list[Model]:
        """Every way to group the products, with every combination of widths and roundings that is left."""
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if (base.block or 0) % size == 0 and base.step % size == 0]
        ways: list[dict[str, Any]] = [{}, *({"arithmetic": Arithmetic.GROUPED, "group": size} for size in sizes)]
        known = left[:: max(1, len(left) // 400)]
        candidates = [dataclasses.replace(model, **way) for model in known for way in ways]
        if not candidates:
            return candidates
        setting = dataclasses.replace(generators.setting_of(known[0]), high_only=True)
        pool = _encoded(base, setting, ("groups", "carries", "carries of groups", "many small"), 400)
        found = narrowed(self.oracle, candidates, pool)
        if found:
            way = found[0].arithmetic is Arithmetic.GROUPED
            self._found(
                "groups", f"of {found[0].group}" if way else "none: every product is aligned", "sums of tiny products beside large ones"
            )
        if len(known) < len(left):  # the ways are known now: again, with all that was left
            fields: list[dict[str, Any]] = [
                {"arithmetic": arithmetic, "group": group} for arithmetic, group in {(m.arithmetic, m.group) for m in found}
            ]
            candidates = [dataclasses.replace(model, **field) for model in left for field in fields]
            found = narrowed(self.oracle, candidates, pool)
        return found

    def _c_in_first(self, base: Model) -> bool:
        """Whether c takes part in the steps: -c and a product cancel before a later step."""
        pair = generators.order_pair(base, base.result_fraction_bits, base.order[0], base.order[-1])
        operands = Encoder(base).encode([pair])
        return bool((self.oracle.ask(operands) != operands.c).any())

    def _widths_outside(self, base: Model) -> list[tuple[int | None, int, bool]]:
        """The same for a unit that adds c afterwards: the bits that a sum of two products keeps."""
        form = base.d_type
        encoder = Encoder(base)
        first = base.steps[0]
        found: list[int] = []
        if len(first) > 1:
            high = min(encoder.highest, form.max_exponent - 1)
            for bits in range(1, form.fraction_bits + 1):
                pair = (SketchedProduct(at=first[0], exponent=high), SketchedProduct(at=first[1], exponent=high - bits))
                operands = encoder.encode([Sketch(products=pair)])
                if len(operands.c):
                    number = decode(self.oracle.ask(operands), form)
                    total = int(number.significand[0]) * 2.0 ** int(number.lsb[0])
                    found += [bits] if total == 2.0**high + 2.0 ** (high - bits) else []
        kept = max(found, default=form.fraction_bits)
        widths = self._widths(kept) if kept < form.fraction_bits else self._widths(form.fraction_bits)
        return [(width, bits, True) for width, bits in widths]

    def _narrowed_by_width(self, base: Model, candidates: list[Model]) -> list[Model]:
        """First over a few questions for every F, then over all of them for the F that are left."""
        left = candidates
        coarse = ("window of c", "window of products", "c inside or added", "c below products", "ties")
        fine = (
            "window of c",
            "window of products",
            "ties",
            "long sums",
            "long products",
            "c below products",
            "c inside or added",
            "many small",
        )
        for names, thin in ((coarse, 260), (fine, 900), (fine, None)):
            distances = sorted({model.fraction_bits or 0 for model in left} | {base.d_type.fraction_bits})
            if any(model.fraction_bits is None for model in left):
                distances += [max(distances) + 4, max(distances) + 9, min(2 * base.d_type.fraction_bits, 104)]
            near = sorted({d + by for d in distances for by in (0, 1, 2)} | {model.result_fraction_bits + 1 for model in left})
            setting = Setting(model=base, distances=tuple(near), floors=(), high_only=True)
            left = narrowed(self.oracle, left, _encoded(base, setting, names, thin, alone=True))
            if len(left) < 2:
                break
        return left

    # Zero terms ----------------------------------------------------------------------------------------------------------

    def zero_exponents(self, model: Model) -> list[Model]:
        """Candidates for e_zero, narrowed by bisection."""
        encoder = Encoder(model)
        lowest = min(encoder.lowest, model.d_type.min_exponent) - 2
        values: list[int | None] = [*range(lowest, 21), None]
        left = [dataclasses.replace(model, zero_exponent=value) for value in values]
        if model.fraction_bits is None:
            return [dataclasses.replace(model, zero_exponent=None)]
        for _ in range(6):
            known = [m.zero_exponent for m in left if m.zero_exponent is not None]
            picked = known[:: max(1, len(known) // 16)] + known[-1:]
            floors = sorted({value - model.fraction_bits + by for value in picked for by in (-1, 0)})
            if len(picked) < 12:
                floors = sorted({floor + by for floor in floors for by in (-1, 0, 1)})
            setting = Setting(model=model, distances=(), floors=tuple(floors))
            names = ("zero terms", "zero terms of many")
            pool = _encoded(model, setting, names, 1200)
            before = len(left)
            left = narrowed(self.oracle, left, pool)
            if len(left) in (0, 1) or (len(left) == before and len(picked) < 12):
                break
        if left:
            shown = [m.zero_exponent for m in left]
            value = shown[0] if len(shown) == 1 else f"one of {len(shown)} values" if len(shown) < len(values) else "not to be seen"
            self._found("e_zero", value, "small products beside zeros: those below 2^(e_zero - F) are cut")
        return left

    # Rules ---------------------------------------------------------------------------------------------------------------

    def nan_code(self, model: Model) -> Model:
        """The code of the NaN that comes out, read off."""
        form = model.d_type
        if model.is_integer:
            return model
        quiet = form.exponent_mask | 1 << (form.fraction_bits - 1)
        sketches = [Sketch(c_code=quiet | 1)]
        for name, at in (("a_type", 0), ("b_type", 1)):
            operand = getattr(model, name)
            if operand.nan is not None:
                sketches.append(Sketch(codes={model.order[-1]: (operand.nan, 0) if at == 0 else (0, operand.nan)}))
        codes = self.oracle.ask(Encoder(model).encode(sketches))
        magnitude = codes & codes.dtype.type(form.magnitude_mask)
        nans = codes[magnitude > form.exponent_mask]
        if not len(nans):
            return model
        self._found("NaN", f"{int(nans[-1]):#x}", "NaN operands and a NaN accumulator")
        return dataclasses.replace(model, nan=int(nans[-1]))

    def settled(self, model: Model) -> Model:
        """The rules, one family after the other, until none changes."""
        for _ in range(3):
            before = model
            for what, alternatives, recipes in _families(model):
                model = self._decided(model, what, alternatives, recipes)
            if model == before:
                break
        self._found("rules", _rules(model), "each rule against its alternatives, on operands where they differ")
        return model

    def _decided(self, model: Model, what: str, alternatives: list[Model], recipes: Sequence[str]) -> Model:
        del what
        setting = generators.setting_of(model)
        names = recipes or [name for name, _, _ in generators.RECIPES]
        left = narrowed(self.oracle, [model, *alternatives], _encoded(model, setting, names, 500))
        return left[0] if left else model

    # Trying to break it --------------------------------------------------------------------------------------------------

    def attacked(self, model: Model, seed: int) -> bool:
        """Ask what would kill each neighbour of the hypothesis, and random operands; whether it survived."""
        wrong = [mutant.model for mutant in mutants(model) if reason_for(model, mutant) is None]
        for most in (80, None):
            pool = generators.all_operands(generators.probes_for(model, seed=seed, random=40, most=most))
            rows, kills = killing_rows(model, pool, wrong, times=2, rng=np.random.default_rng([generators.SEED, seed]))
            if seed or kills.all():
                break
        chance = len(pool.c) - 1 - np.arange(min(160, len(pool.c)))
        asked = pool.take(np.union1d(rows, chance))
        return bool((self.oracle.ask(asked) == evaluate(model, asked)).all())

    def climbed(self, model: Model) -> Model:
        """The neighbour, or neighbour's neighbour, that contradicts the fewest answers."""
        operands, codes = self.oracle.evidence()

        def wrong(candidate: Model) -> int:
            return int((evaluate(candidate, operands) != codes).sum())

        best, fewest = model, wrong(model)
        for _ in range(12):
            if fewest == 0:
                break
            scored = [(wrong(candidate), i, candidate) for i, candidate in enumerate(_neighbours(best))]
            least = min(scored)
            if least[0] >= fewest:
                break
            fewest, best = least[0], least[2]
        return best


def _neighbours(model: Model) -> list[Model]:
    found = [mutant.model for mutant in mutants(model)]
    found += [other for _, alternatives, _ in _families(model) for other in alternatives]
    return [other for other in dict.fromkeys(found) if other != model]


def _families(model: Model) -> list[tuple[str, list[Model], Sequence[str]]]:
    """Families of rules: name, the other members, and the recipes that tell them apart (all where empty)."""

    def variants(*choices: dict[str, Any]) -> list[Model]:
        found = []
        for fields in choices:
            try:
                other = dataclasses.replace(model, **fields)
            except OperandError:
                continue
            if other != model:
                found.append(other)
        return found

    families: list[tuple[str, list[Model], Sequence[str]]] = []
    scale = model.scale_type
    if scale is not None and model.block is not None:
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if model.block % size == 0 and model.step % size == 0]
        grouped = [{"arithmetic": Arithmetic.GROUPED, "group": size} for size in sizes]
        alike = [{"arithmetic": Arithmetic.FUSED, "group": 1}]
        families.append(("groups", variants(*grouped, *alike), ("groups", "window of c", "long products", "many small", "scale codes")))
        readings = [reread(FORMATS[scale.name], **fields) for fields in _READINGS[scale.name]]
        families.append(("scale codes", variants(*({"scale_type": form} for form in readings)), ("scale codes", "unread bits", "one-hot")))
        families.append(("zero scales", variants({"zero_scale_absent": not model.zero_scale_absent}), ("scale codes",)))
        families.append(("scales of blocks", variants(*({"scale_rotation": r} for r in range(model.blocks))), ("one-hot",)))
    formats = [{"operand_format": form} for form in (None, FORMATS["f16"], FORMATS["f64"])]
    families.append(("subnormal operands", variants({"flushes_operands": not model.flushes_operands}, *formats), ("subnormal operands",)))
    families.append(("subnormal c", variants({"flushes_c": not model.flushes_c}), ("subnormal results",)))
    families.append(("subnormal results", variants({"flushes_results": not model.flushes_results}), ("subnormal results",)))
    names = ("products from 2 on", "c below products from 2 on", "long products")
    families.append(("exponents of products", variants({"normalised_products": not model.normalised_products}), names))
    families.append(("zeros", variants({"signed_zeros": not model.signed_zeros}), ("signed zeros", "special values")))
    families.append(("overflow", variants(*({"overflow": each} for each in Overflow)), ("overflow", "special values")))
    specials = [{"zero_times_infinity": x, "opposite_infinities": y} for x in (True, False) for y in (True, False)]
    families.append(("special values", variants(*specials), ("special values",)))
    return families


_READINGS: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "ue8m0": ({}, {"has_subnormals": True}, {"non_finite": NonFinite.NONE}),
    "ue4m3": ({}, {"sign_bits": 1, "ignored_sign": False}, {"non_finite": NonFinite.NONE}, {"has_subnormals": False}),
}


def _rules(model: Model) -> str:
    words = [
        "subnormal operands " + ("flushed" if model.flushes_operands else "as " + (model.operand_format or model.a_type).name),
        "subnormal c flushed" if model.flushes_c else "subnormal c kept",
        "subnormal results flushed" if model.flushes_results else "subnormal results kept",
        "IEEE zeros" if model.signed_zeros else "zero always +0",
        f"overflow {model.overflow.name.lower()}",
    ]
    if model.arithmetic is Arithmetic.GROUPED:
        words.append(f"groups of {model.group}")
    return ", ".join(words)


def _ranges(elements: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for k in sorted(elements):
        if runs and runs[-1][1] == k - 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def integers(oracle: Oracle) -> list[Model]:
    """Candidates for a unit of integers."""
    shape = oracle.shape
    order = tuple(range(shape.k))
    found = [exact_integers(**shape.fields(), order=order, saturates=saturates) for saturates in (False, True)]
    found.append(dataclasses.replace(found[1], step=1))
    pool = generators.all_operands(generators.probes_for(found[1]))
    return narrowed(oracle, found, pool) or found[:1]
