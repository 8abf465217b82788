"""Mixtures of experts: what the order of the sum over experts changes, and what the batch does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.kernels.schemes import mxfp8, nvfp4
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.moe import Routing
from mmabits.kernels.schemes.moe_experts import Experts, expert_scheme, moe_rows, quantize_experts, weighted_rows
from mmabits.kernels.schemes.moe_sums import add_rows, all_orders, places_by_expert, random_places
from mmabits.kernels.schemes.routing import mixtral, routed
from mmabits.research.study.shipped.row import Chart, PublishedNumber, Row, Rows, Shipped, pick
from mmabits.research.study.sweeps import points

Array = npt.NDArray[Any]

_SCHEMES: Final = {
    "quick": ("w8a8", "fp8-tiles"),
    "full": ("w8a8", "w8a16-int8", "w8a16-e4m3", "fp8-tiles", "mxfp8", "nvfp4", "w4a16", "mxfp4"),
}
_ARCHES: Final = {"quick": ("sm_90a",), "full": ("sm_90a", "sm_100a")}
_TOKENS, _EXPERTS, _TOP_K, _K, _N = 32, 8, 4, 512, 128
_TYPES: Final = ("f32", "bf16")
_BATCHES: Final = (1, 4, 16)
_UNPACKED: Final = {"fp8-tiles": 4, "mxfp8": 4, "nvfp4": 8}
"""Neighbours of K to a thread where a small tile unpacks operands in registers: the order of K is then another."""
SAME_IN_SMALL: Final = ("mxfp4",)
"""What Triton turns round, so that the weights' columns are the rows of the large instruction."""


@dataclass(frozen=True, kw_only=True)
class HalfDots(Dots):
    """Dots that make f16 of e4m3 operands, exactly."""

    def __call__(
        self, a: Array, b: Array, c: Array | None = None, *, accumulator: str | None = None, scale_a: Array | None = None,
        scale_b: Array | None = None,
    ) -> Array:  # fmt: skip
        """As `Dots`."""
        return super().__call__(a.astype(np.float16), b.astype(np.float16), c, accumulator=accumulator, scale_a=scale_a, scale_b=scale_b)


def in_small_tiles(experts: Experts, arch: str) -> tuple[Experts, Dots]:
    """How Triton 3.9 multiplies blocks of 16 or 32 rows on sm_90a and sm_100a: by mma.sync, which takes no e4m3 there and no block scales."""
    from mmabits.emulator.hooks.triton.plans import k_order

    name = experts.scheme.name
    if name in SAME_IN_SMALL:
        return experts, Dots(arch=arch)
    order = tuple(k_order(_UNPACKED[name], 16, 64, 16)) if name in _UNPACKED else ()
    dots = (HalfDots if name == "fp8-tiles" else Dots)(arch=arch, instruction="mma.sync", k_order=order)
    through = {"mxfp8": mxfp8.mxfp8_matmul, "nvfp4": nvfp4.nvfp4_matmul}.get(name)
    if through is None:
        return experts, dots
    scheme = replace(experts.scheme, multiply=lambda x, w, dots: through(x, w, arch=dots, through="bf16"))
    return replace(experts, scheme=scheme), dots


def _points(size: str) -> list[Row]:
    return points(scheme=list(_SCHEMES[size]), arch=list(_ARCHES[size]), kind=["orders", "batch", "places"])


def _at(scheme: str, arch: str, kind: str) -> Iterable[Row]:
    rng = np.random.default_rng(20261129)
    values = rng.standard_normal((_TOKENS, _K)).astype(np.float32)
    weights = (rng.standard_normal((_EXPERTS, _K, _N)) / np.sqrt(_K)).astype(np.float32)
    routing = routed(rng.standard_normal((_TOKENS, _EXPERTS)).astype(np.float32), mixtral(_TOP_K))
    row, experts = expert_scheme(scheme), quantize_experts(weights, scheme)
    rows = weighted_rows(moe_rows(row.activations(values), experts, routing, arch=arch), routing)
    head: Row = {"kind": kind, "scheme": scheme, "arch": arch, "line": f"{scheme}, {arch}"}
    if kind == "orders":
        yield from (head | each for each in _orders(rows, routing))
        return
    plain = add_rows(rows)
    if kind == "places":
        turned = np.arange(_TOKENS)[::-1]
        there = moe_rows(row.activations(values[turned].copy()), experts, _some(routing, turned), arch=arch)
        yield head | {"way": "tokens in reverse", **_difference(plain, add_rows(weighted_rows(there, _some(routing, turned)))[turned])}
        return
    small, dots = in_small_tiles(experts, arch)
    for batch in _BATCHES:
        first, some = values[:batch].copy(), _some(routing, np.arange(batch))
        alone = add_rows(weighted_rows(moe_rows(row.activations(first), experts, some, arch=arch), some))
        narrow = add_rows(weighted_rows(moe_rows(row.activations(first), small, some, arch=dots), some))
        yield head | {"way": "the same tiles", "batch": batch, **_difference(plain[:batch], alone)}
        yield head | {"way": "tiles of 16 rows", "batch": batch, **_difference(plain[:batch], narrow)}


def _some(routing: Routing, tokens: npt.NDArray[np.int64]) -> Routing:
    return Routing(experts=routing.experts[tokens], weights=routing.weights[tokens], count=routing.count)


def _orders(rows: npt.NDArray[np.float32], routing: Routing) -> Iterable[Row]:
    for dtype in _TYPES:
        plain = add_rows(rows, dtype=dtype)
        reverse = np.tile(np.arange(_TOP_K)[::-1], (_TOKENS, 1))
        for way, order in (
            ("by expert", places_by_expert(routing)), ("in reverse", reverse), ("by chance", random_places(_TOKENS, _TOP_K, 1)),
        ):  # fmt: skip
            yield {"dtype": dtype, "way": way, **_difference(plain, add_rows(rows, order=order, dtype=dtype))}
        every = np.stack(
            [add_rows(rows, order=np.tile(np.array(order), (_TOKENS, 1)), dtype=dtype).astype(np.float64) for order in all_orders(_TOP_K)]
        )
        spread, size = every.max(axis=0) - every.min(axis=0), float(np.sqrt((plain.astype(np.float64) ** 2).mean()))
        yield {
            "dtype": dtype, "way": "atomic, any order", "share": float((spread != 0).mean()), "largest": float(spread.max()) / size,
            "rms": float(np.sqrt((spread**2).mean())) / size,
        }  # fmt: skip
        once = add_rows(rows, dtype=dtype, round_each=False)
        if dtype != "f32":
            yield {"dtype": dtype, "way": "by place, rounded once", **_difference(plain, once)}


def _difference(plain: Array, other: Array) -> Row:
    """Share of outputs that differ, and by how much, relative to the root mean square of the outputs."""
    wanted, got = plain.astype(np.float64), other.astype(np.float64)
    size, error = float(np.sqrt((wanted**2).mean())), got - wanted
    return {
        "share": float((error != 0).mean()),
        "largest": float(np.abs(error).max()) / size,
        "rms": float(np.sqrt((error**2).mean())) / size,
    }


def _claims(rows: Rows) -> list[PublishedNumber]:
    return []


def _findings(rows: Rows) -> list[str]:
    found = []
    for dtype in _TYPES:
        shares = [row["share"] for row in pick(rows, kind="orders", dtype=dtype, way="atomic, any order")]
        most = max(row["largest"] for row in pick(rows, kind="orders", dtype=dtype, way="atomic, any order"))
        found.append(
            f"Sums of {_TOP_K} experts in {dtype}: with atomic additions {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the outputs "
            f"depend on the order of arrival, by {most:.1g} of the outputs' root mean square at most."
        )
    moved = [row for row in pick(rows, kind="places") if row["share"]]
    found.append(f"Tokens in another order, rows added by place: {len(moved)} of {len(pick(rows, kind='places'))} cases change a bit.")
    for way in ("the same tiles", "tiles of 16 rows"):
        changing = [
            f"{row['scheme']} on {row['arch']} ({100 * row['share']:.3g} %, by {row['largest']:.1g} at most)"
            for row in pick(rows, kind="batch", way=way, batch=4)
            if row["share"]
        ]
        found.append(f"Four tokens alone in place of {_TOKENS}, {way}: outputs change in {', '.join(changing) or 'no case'}.")
    return found


STUDY: Final = Shipped(
    name="moe-orders",
    title="Orders and batches in mixtures of experts",
    question="Which outputs of a mixture of experts depend on the order of its sums, and on the other tokens of the batch?",
    measured=f"{_TOKENS} tokens, normal, {_TOP_K} of {_EXPERTS} experts each (softmax, renormalised), normal weights of {_K} x {_N}, quantized "
    "by each scheme. Rows times routing weights are float32; they are added by place (the order of a token's choices), by expert, in "
    "reverse, by chance and in all orders, in float32 and in bf16 with every sum rounded. Batches: the first tokens alone, quantized by "
    "themselves, by the instructions of large tiles and by those that Triton 3.9 takes for tiles of 16 rows.",
    points=_points,
    at=_at,
    charts=(
        Chart(
            title="Outputs that the order of the sum changes, float32", x="way", y="share", series="line", x_label="",
            y_label="share of outputs", bars=True, where={"kind": "orders", "dtype": "f32"},
            caption="Against the sum by place. Atomic: outputs for which at least two of the orders of arrival differ.",
        ),
        Chart(
            title="The same in bf16", x="way", y="rms", series="line", x_label="", y_label="difference, rms, relative", bars=True,
            where={"kind": "orders", "dtype": "bf16"},
            caption="Every sum rounded to bf16: about as many outputs change, by about 2^16 times as much.",
        ),
        Chart(
            title="Four tokens alone, in tiles of 16 rows", x="scheme", y="share", series="arch", x_label="", y_label="share of outputs",
            bars=True, where={"kind": "batch", "way": "tiles of 16 rows", "batch": 4},
            caption="mma.sync has no e4m3 products on sm_90a and sm_100a in Triton, and no block scales: operands become f16 or bf16, and K is "
            "taken in another order.",
        ),
    ),
    claims=_claims,
    findings=_findings,
    limits="Synthetic data. The orders of arrival on a GPU are not known: any is possible, and some will hardly come. Layers that quantize "
    "between their products pass differences on to codes, which is not followed here.",
)  # fmt: skip
