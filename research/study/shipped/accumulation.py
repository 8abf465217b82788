"""Hopper's FP8 accumulation: bits kept, error against K, and what promotion mends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import ml_dtypes
import numpy as np

import mmabits
from mmabits.kernels.quantize import quantize_fp8
from mmabits.research.study.shipped.row import Chart, PublishedNumber, Row, Rows, Shipped, one, pick
from mmabits.research.study.sweeps import points

_FP8: Final = ml_dtypes.float8_e4m3fn
_INSTRUCTION: Final = {"sm_89": "mma.sync.m16n8k32", "sm_90a": "wgmma", "sm_100a": "tcgen05.mma", "sm_120a": "mma.sync.m16n8k32"}
_SIZES: Final = {"quick": (512, 2048, 8192), "full": (256, 512, 1024, 2048, 4096, 8192, 16384)}
_LENGTHS: Final = {"quick": (1024, 8192, 32768), "full": (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)}


def _points(size: str) -> list[Row]:
    ways = [("sm_89", 0), ("sm_90a", 0), ("sm_90a", 512), ("sm_90a", 128), ("sm_100a", 0)]
    matrices = [{"kind": "matrix", "arch": arch, "promote": every, "k": k} for arch, every in ways for k in _SIZES[size]]
    attention = [{"kind": "attention", "arch": arch, "promote": every, "k": k} for arch, every in ways[1:] for k in _LENGTHS[size]]
    signed = [{"kind": "signed", "arch": "sm_90a", "promote": 0, "k": 4096}]
    return [*matrices, *attention, *signed, *points(kind=["bits"], arch=list(_INSTRUCTION))]


def _at(kind: str, arch: str, promote: int = 0, k: int = 0) -> Iterable[Row]:
    if kind == "bits":
        yield {"kind": kind, "arch": arch, **_bits(arch)}
        return
    rng = np.random.default_rng(k)
    if kind == "matrix":
        a, b = rng.random((128, k)).astype(np.float32), rng.random((k, 128)).astype(np.float32)
    elif kind == "signed":
        a, b = rng.standard_normal((256, k)).astype(np.float32), rng.standard_normal((k, 256)).astype(np.float32)
    else:
        scores = rng.standard_normal((64, k)).astype(np.float32)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        a, b = weights.astype(np.float32), (rng.standard_normal((k, 64)) + 0.5).astype(np.float32)
    left, right = quantize_fp8(a), quantize_fp8(b)
    d = mmabits.gemm(left.elements, right.elements, instruction=_INSTRUCTION[arch], arch=arch, promote_every=promote or None)
    exact = left.elements.astype(np.float64) @ right.elements.astype(np.float64)
    error = d.astype(np.float64) - exact
    size = float(np.sqrt((exact**2).mean()))
    label = f"{arch}{f', promoted every {promote}' if promote else ''}"
    yield {
        "kind": kind, "arch": arch, "promote": promote, "k": k, "way": label, "rms": float(np.sqrt((error**2).mean())) / size,
        "largest": float(np.abs(error / exact).max()) if kind == "matrix" else float(np.abs(error).max()) / size,
        "bias": float((error * np.sign(exact)).mean()) / float(np.abs(exact).mean()),
    }  # fmt: skip


def _bits(arch: str) -> Row:
    """How far below the largest product a second one still counts, and how many low bits of results are always zero."""
    instruction, kept = _INSTRUCTION[arch], 0
    for distance in range(1, 30):
        a, b = np.zeros((16, 32)), np.zeros((32, 8))
        a[:, 0], b[0] = 2.0**7, 2.0**5
        a[:, 1], b[1] = 2.0 ** (6 - distance // 2), 2.0 ** (6 - distance + distance // 2)
        c = np.full((16, 8), -(2.0**12), np.float32)  # takes the large product away again, in the same sum
        d = mmabits.gemm(a.astype(_FP8), b.astype(_FP8), c, instruction=instruction, arch=arch)
        kept = distance if d[0, 0] else kept
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((256, 128)), rng.standard_normal((128, 256))
    codes = mmabits.gemm(a.astype(_FP8), b.astype(_FP8), instruction=instruction, arch=arch).view(np.uint32)
    used = int(np.bitwise_or.reduce(codes, axis=None))
    return {"kept": kept, "zero_low_bits": (used & -used).bit_length() - 1}


def _claims(rows: Rows) -> list[PublishedNumber]:
    bits = {row["arch"]: row for row in pick(rows, kind="bits")}
    found = [
        PublishedNumber(
            what="fraction bits that survive beside the largest product, FP8 on H100", published="13", measured=str(bits["sm_90a"]["kept"]),
            agrees=bits["sm_90a"]["kept"] == 13, source="DeepGEMM, notes on FP8 accumulation",
        ),
        PublishedNumber(
            what="the same on B200", published="25", measured=str(bits["sm_100a"]["kept"]),
            agrees=bits["sm_100a"]["kept"] == 25, source="DeepGEMM, notes on FP8 accumulation",
        ),
        PublishedNumber(
            what="low bits of FP8 results that are always zero, Ada (mma.sync f32)", published="10",
            measured=str(bits["sm_89"]["zero_low_bits"]), agrees=bits["sm_89"]["zero_low_bits"] == 10, source="SageAttention2, arXiv 2411.10958",
        ),
    ]  # fmt: skip
    signed = one(rows, "largest", kind="signed")
    found.append(
        PublishedNumber(
            what="largest error at K = 4096, FP8 on H800, two random matrices",
            published="nearly 2 %",
            measured=f"{100 * signed:.1f} %",
            agrees=0.01 < signed < 0.02,
            source="DeepSeek-V3, arXiv 2412.19437, section 3.3.2. Its matrices and its measure are not published: here both matrices are "
            "normal and the largest error is relative to the root mean square of the results; positive matrices give more, see the chart",
        )
    )
    return found


def _findings(rows: Rows) -> list[str]:
    longest = max(row["k"] for row in pick(rows, kind="matrix"))
    chain, promoted, blackwell = (
        one(rows, "rms", kind="matrix", arch=arch, promote=every, k=longest)
        for arch, every in (("sm_90a", 0), ("sm_90a", 128), ("sm_100a", 0))
    )
    context = max(row["k"] for row in pick(rows, kind="attention"))
    collapse, mended = (one(rows, "rms", kind="attention", arch="sm_90a", promote=every, k=context) for every in (0, 128))
    return [
        f"At K = {longest}, sums of positive products on Hopper are off by {100 * chain:.2g} % (root mean square); promoted every 128 "
        f"by {100 * promoted:.2g} %, on Blackwell by {100 * blackwell:.2g} %.",
        f"A row of attention over {context} keys, probabilities and values in FP8: {100 * collapse:.2g} % in one chain, "
        f"{100 * mended:.2g} % with two-level accumulation.",
    ]


STUDY: Final = Shipped(
    name="accumulation",
    title="Hopper's FP8 accumulation, and the promotion interval",
    question="How much does it cost that Hopper's FP8 instruction keeps 13 fraction bits, and how often must a kernel promote?",
    measured="Operands are quantized to e4m3 with one scale a matrix; errors are against the exact product of the quantized operands, "
    "so that accumulation alone is seen. Matrices: 128 x K times K x 128, uniform on [0, 1). Attention: softmax of normal scores over K "
    "keys (64 rows) times values normal around 0.5.",
    points=_points,
    at=_at,
    charts=(
        Chart(
            title="Products of positive matrices", x="k", y="rms", series="way", x_label="K", y_label="error, rms, relative",
            where={"kind": "matrix"}, caption="In one chain the error grows with K: the accumulator grows, and with it what is cut off.",
        ),
        Chart(
            title="Attention over long contexts", x="k", y="rms", series="way", x_label="keys", y_label="error, rms, relative",
            where={"kind": "attention"},
            caption="Small probabilities fall below the accumulator's last place. An f32 sum every 128 keys keeps the error level.",
        ),
        Chart(
            title="The error has a direction", x="k", y="bias", series="way", x_label="K", y_label="mean error toward the result",
            where={"kind": "matrix"}, caption="Truncation is toward zero, so results come out too small, and errors do not average out.",
        ),
    ),
    claims=_claims,
    findings=_findings,
    limits="Data are synthetic. Kernels that order K otherwise, or split it, have other errors.",
)  # fmt: skip
