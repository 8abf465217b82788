"""Schedules in plain Python: one element of a product from a published plan, by the description of its mode.

Written from docs/library-choices.md and the arithmetic of `slow_reference`, one number at a time; shares nothing with the package.
Plans are dictionaries as the published cases have them: `mode` and its fields. Numbers are codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slow_reference as slow

Codes = Sequence[int]
NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}


def convert(code: int, of: str, to: str) -> int:
    """A number in another type, rounded to nearest even."""
    number = slow.decode(of, code)
    form = slow.FORMATS[to]
    sign_bit = (number.sign < 0) << (form.code_bits - 1)
    if number.kind == "nan":
        return NAN[to]
    if number.kind == "infinity":
        return sign_bit | (((1 << form.exponent_bits) - 1) << form.fraction_bits)
    return slow.round_to_code(to, number.sign, number.significand, number.lsb, rounding="rn")


def add(x: int, y: int) -> int:
    """f32."""
    return slow.ieee_add("f32", x, y)


def in_order(terms: Sequence[int]) -> int:
    """((t0 + t1) + t2) + ..."""
    total = terms[0]
    for term in terms[1:]:
        total = add(total, term)
    return total


def down(terms: Sequence[int]) -> int:
    """x[i] = x[i] + x[i + half], until one is left."""
    terms = list(terms)
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [add(terms[at], terms[at + half]) for at in range(half)]
    return terms[0]


def fma_chain(pairs: Sequence[tuple[int, int]]) -> int:
    """f32 pairs, multiplied and added from +0."""
    total = 0
    for x, y in pairs:
        total = slow.ieee_fma("f32", x, y, total)
    return total


class Element:
    """One element of D: a row of A and a column of B."""

    def __init__(self, plan: dict[str, Any], a: Codes, b: Codes, *, types: tuple[str, str, str], arch: str, family: str) -> None:
        self.plan, self.types, self.arch, self.family = plan, types, arch, family
        self.a, self.b = [int(code) for code in a], [int(code) for code in b]

    def sum(self) -> int:
        """In f32, before scales and the last rounding."""
        mode: str = self.plan["mode"]
        result: int = getattr(self, f"_{mode}")(0, len(self.a))
        return result

    def result(self, factor: int | None = None, *, rounds: bool = True) -> int:
        """D's code, or that of the f32 before the last rounding; the factor is an f32 code."""
        total = self.sum()
        if factor is not None:
            total = slow.ieee_fma("f32", total, factor, 0x80000000)  # -0: a product alone keeps its sign
        return convert(total, "f32", self.types[2]) if rounds else total

    # ------------------------------------------------------------------------------------------------------- tensor cores

    def _mma(self, start: int, stop: int, c: int) -> int:
        """One instruction on the elements start to stop, the rest of it zeros."""
        k = 32 if self.types[0] == "e4m3" else 16
        return slow.dot(self.arch, self.family, self.types[0], self.types[1], "f32", self.a[start:stop], self.b[start:stop], c,
                        k_instruction=k)  # fmt: skip

    def _grouped(self, start: int, stop: int, size: int, lead: int) -> int:
        """A chain of instructions of `size` elements; the first `lead` elements are groups of their own."""
        total, at = 0, start
        while at < stop:
            end = min(at + size, start + lead if at < start + lead else stop)
            total, at = self._mma(at, end, total), end
        return total

    def _plain(self, start: int, stop: int) -> int:
        return self._grouped(start, stop, 32 if self.types[0] == "e4m3" else 16, 0)

    def _slices(self, start: int, stop: int) -> list[tuple[int, int]]:
        size = self.plan["k_chunk"]
        return [(at, min(at + size, stop)) for at in range(start, stop, size)]

    def _split(self, start: int, stop: int) -> int:
        return in_order([self._plain(*part) for part in self._slices(start, stop)])

    def _split_blocks(self, start: int, stop: int) -> int:
        totals = []
        for first, last in self._slices(start, stop):
            total = 0
            for at in range(first, last, self.plan["block_k"]):
                total = add(total, self._plain(at, min(at + self.plan["block_k"], last)))
            totals.append(total)
        return in_order(totals)

    def _k_per_dot(self, start: int, stop: int) -> int:
        return self._grouped(start, stop, self.plan["k_per_dot"], self.plan["leading_group_k"])

    def _splitk_groups(self, start: int, stop: int) -> int:
        block, narrow = self.plan["block_k"], self.types[2]
        partial = [self._grouped(*part, self.plan["k_per_dot"], (part[1] - part[0]) % block) for part in self._slices(start, stop)]

        def rounded(code: int) -> int:
            return convert(convert(code, "f32", narrow), narrow, "f32")

        match self.plan["merge_scheme"]:
            case 0:
                return in_order(partial)
            case 2:
                return in_order([rounded(part) for part in partial])
            case 3:
                total = rounded(partial[0])
                for part in partial[1:]:
                    total = rounded(add(total, part))
                return total
            case scheme:
                raise ValueError(f"merge scheme {scheme}")

    # --------------------------------------------------------------------------------------------------------- CUDA cores

    def _pairs(self, elements: Sequence[int]) -> list[tuple[int, int]]:
        return [(convert(self.a[at], self.types[0], "f32"), convert(self.b[at], self.types[1], "f32")) for at in elements]

    def _gemmsn(self, start: int, stop: int) -> int:
        parts, block = self.plan["simt"]
        size = -(-(stop - start) // parts)
        totals = []
        for first in range(start, stop, size):
            last = min(first + size, stop)
            step = block or size
            totals.append(in_order([fma_chain(self._pairs(range(at, min(at + step, last)))) for at in range(first, last, step)]))
        return in_order(totals)

    def _gemv13(self, start: int, stop: int) -> int:
        (vector, lanes, close_every, is_down), splits = self.plan["gemv"]
        size = -(-(stop - start) // splits)
        return in_order(
            [self._gemv_slice(at, min(at + size, stop), vector, lanes, close_every, is_down) for at in range(start, stop, size)]
        )

    def _gemv_slice(self, start: int, stop: int, vector: int, lanes: int, close_every: int, is_down: bool) -> int:
        found = []
        for lane in range(lanes):
            chains: list[list[int]] = []
            for number, tile in enumerate(range(start, stop, vector * lanes)):
                if number == 0 or (close_every and number % close_every == 0):
                    chains.append([])
                first = tile + lane * vector
                chains[-1] += [at for at in range(first, first + vector) if at < stop]
            closed = [fma_chain(self._pairs(chain)) for chain in chains if chain]
            found.append(in_order(closed) if closed else 0)
        return down(found) if is_down else in_order(found)

    def _gemv_cslice(self, start: int, stop: int) -> int:
        lanes, length = self.plan["gemv"]
        size = -(-(stop - start) // lanes)
        found = []
        for lane in range(lanes):
            first, last = min(start + lane * size, stop), min(start + (lane + 1) * size, stop)
            chains = [fma_chain(self._pairs(range(at, min(at + length, last)))) for at in range(first, last, length)]
            found.append(in_order(chains) if chains else 0)
        return in_order(found)

    def _gemv14(self, start: int, stop: int) -> int:
        blocks, vector = self.plan["gemv"]
        tiles = list(range(start, stop, 128 * vector))
        partial = []
        for block in range(blocks):
            threads = []
            for thread in range(128):
                chains = []
                for each in range(vector):
                    elements = [tile + thread * vector + each for tile in tiles[block::blocks]]
                    chains.append(fma_chain(self._pairs([at for at in elements if at < stop])))
                threads.append(in_order(chains))
            partial.append(down(threads))
        partial += [0] * (-len(partial) % 128)
        q = [in_order(partial[thread::128]) for thread in range(128)]
        for half in (64, 32):
            q = [add(q[at], q[at + half]) for at in range(half)]
        u = [in_order(q[at::4]) for at in range(4)]
        return in_order(u)
