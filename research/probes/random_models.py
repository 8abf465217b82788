"""Datapaths that stand in no row, to test `identify` with."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.isa import FORMATS, Arithmetic, Rounding
from mmabits.research.model import Model


def random_models(count: int = 20, seed: int = 7) -> list[Model]:
    """Datapaths with random numbers, roundings, orders and rules; every fourth with block scales and groups."""
    rng = np.random.default_rng(seed)
    found: list[Model] = []
    while len(found) < count:
        d = FORMATS["f16" if rng.random() < 0.3 else "f32"]
        t = FORMATS[("f16", "bf16", "tf32", "e4m3", "e5m2")[int(rng.integers(5))]]
        t = FORMATS["f16"] if d.name == "f16" and t.name in ("bf16", "tf32") else t
        k = int(rng.choice([8, 16, 32]))
        step = int(rng.choice([size for size in (2, 4, 8, 16, 32) if size <= k]))
        more: dict[str, Any] = {"arithmetic": Arithmetic.FUSED}
        scaled = len(found) % 4 == 3
        if scaled:
            t, d, k, step = FORMATS["e2m1"], FORMATS["f32"], 64, int(rng.choice([32, 64]))
            group = int(rng.choice([4, 8, 16]))
            scale = FORMATS["ue8m0"] if rng.random() < 0.6 else FORMATS["ue4m3"]
            more = {"scale_type": scale, "block": 16, "arithmetic": Arithmetic.GROUPED, "group": group}
        ascending = rng.random() < 0.3 or scaled
        order = tuple(range(k)) if ascending else tuple(int(at) for at in rng.permutation(k))
        width = int(rng.integers(8, 33))
        bits = d.fraction_bits if rng.random() < 0.6 else int(rng.integers(min(width, d.fraction_bits) // 2 + 3, d.fraction_bits + 1))
        zero = int(rng.integers(-30, -8)) if d.name == "f16" else int(rng.integers(-145, -10))
        found.append(
            Model(
                a_type=t, b_type=t, d_type=d, k=k, order=order, step=step, fraction_bits=width, zero_exponent=zero,
                result_fraction_bits=bits,
                c_added=bool(rng.random() < 0.2) and not scaled and t.name != "tf32", rounding=list(Rounding)[int(rng.integers(4))],
                alignment=(Rounding.TOWARD_ZERO, Rounding.DOWN, Rounding.NEAREST_EVEN)[int(rng.choice(3, p=[0.6, 0.2, 0.2]))],
                flushes_operands=bool(rng.random() < 0.2), flushes_results=bool(rng.random() < 0.2),
                normalised_products=bool(rng.random() < 0.2) and not scaled,
                nan=d.exponent_mask | (1 << (d.fraction_bits - 1)) if rng.random() < 0.5 else d.exponent_mask | d.fraction_mask, **more,
            )
        )  # fmt: skip
    return found
