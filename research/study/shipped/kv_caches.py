"""What quantized KV caches do to the outputs of attention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from mmabits.kernels.schemes.attention_cached import cached_attention
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.kv_cache import CACHES, KvCache, empty_kv_cache
from mmabits.research import minilm
from mmabits.research.study.shipped.row import Chart, PublishedNumber, Row, Rows, Shipped, one, pick
from mmabits.research.study.sweeps import points

Floats = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]
Operands = tuple[Floats, Floats, Floats]
"""Queries, keys and values: (layers, heads, tokens, D)."""

_DATA: Final = {
    "quick": ("normal", "key channels"),
    "full": ("normal", "key channels", "value channels", "MiniLM"),
}
_FACTOR: Final = 16
_NEW: Final = 16
"""The last tokens, which are the queries."""
_PARTS: Final = ("keys", "values", "arithmetic", "all")
_SPLITS: Final = {"quick": (1, 8), "full": (1, 2, 4, 8, 16)}
_LONG: Final = "2048 tokens"
"""Data of which the keys are split."""


def _points(size: str) -> list[Row]:
    return points(data=list(_DATA[size]), cache=list(CACHES)) + points(data=[_LONG], cache=["int8"], splits=list(_SPLITS[size]))


def _minilm() -> Operands:
    """Every layer's queries, keys and values of eight sentences in one text."""
    tensors = minilm.load()
    found: dict[str, list[Floats]] = {"query": [], "key": [], "value": []}

    def product(name: str, rows: Floats, weights: Floats) -> Floats:
        made = minilm.plain(name, rows, weights)
        if (kind := name.rpartition(".")[2]) in found:
            by_head = (made + tensors[f"{name}.bias"]).reshape(len(made), minilm.HEADS, -1)
            found[kind].append(np.ascontiguousarray(by_head.swapaxes(0, 1)))
        return made

    minilm.embed(tensors, [token for sentence in minilm.SENTENCES for token in sentence], product)
    q, k, v = (np.stack(each) for each in found.values())
    return q, k, v


def operands(data: str) -> Operands:
    """Queries, keys and values. Where channels of the keys stand out those of the queries are divided, so that scores stay."""
    if data == "MiniLM":
        return _minilm()
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 4, 256, 64)).astype(np.float32) for _ in range(3))
    if data == "key channels":
        k[..., ::16] *= np.float32(_FACTOR)
        q[..., ::16] /= np.float32(_FACTOR)
    elif data == "value channels":
        v[..., ::16] *= np.float32(_FACTOR)
    return q, k, v


def _exact(q: Exact, k: Exact, v: Exact) -> Exact:
    """The last queries of a layer in float64: (heads, new, D)."""
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2])
    seen = np.arange(k.shape[1])[None, :] <= k.shape[1] - q.shape[1] + np.arange(q.shape[1])[:, None]
    powers = np.where(seen, np.exp(scores - scores.max(axis=2, keepdims=True)), 0.0)
    return np.asarray(powers / powers.sum(axis=2, keepdims=True) @ v)


def _filled(name: str, k: Floats, v: Floats) -> KvCache:
    """A cache of one sequence: (heads, tokens, D) each."""
    heads, tokens, width = k.shape
    pages = -(-tokens // 32)
    cache = empty_kv_cache(
        name, tables=np.arange(pages, dtype=np.int32)[None], pages=pages, page=32, heads=heads, width=width,
        key_amax=float(np.abs(k).max()), value_amax=float(np.abs(v).max()),
    )  # fmt: skip
    cache.append(0, np.ascontiguousarray(k.swapaxes(0, 1)), np.ascontiguousarray(v.swapaxes(0, 1)))
    return cache


def _split(cache: str, splits: int) -> Row:
    """One token decoded over 2,048, beside the same with its keys in one split."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((4, tokens, 64)).astype(np.float32) for tokens in (1, 2048, 2048))
    held, half = _filled(cache, k, v), q.astype(np.float16)
    real = _exact(half.astype(np.float64), *(each.astype(np.float64) for each in held.sequence(0)))
    got, once = (
        cached_attention(half[None], held, arch=Dots(arch="sm_90a", instruction="mma.sync"), splits=number)[0] for number in (splits, 1)
    )
    size = _rms([real])
    return {
        "data": _LONG, "cache": cache, "part": "splits", "splits": splits, "changed": float((got != once).mean()),
        "moved": _rms([got.astype(np.float64) - once]) / size, "error": _rms([got - real]) / size, "bits": _bits(held),
    }  # fmt: skip


def _at(data: str, cache: str, splits: int = 0) -> Iterable[Row]:
    if splits:
        yield _split(cache, splits)
        return
    errors: dict[str, list[Exact]] = {part: [] for part in _PARTS}
    size: list[Exact] = []
    for q, k, v in zip(*operands(data), strict=True):
        half = q[:, -_NEW:].astype(np.float16)
        held = _filled(cache, k, v)
        kept = [each.astype(np.float64) for each in held.sequence(0)]
        last, keys, values = (each.astype(np.float64) for each in (half, k, v))
        real, both = _exact(last, keys, values), _exact(last, *kept)
        got = cached_attention(half[None], held, arch=Dots(arch="sm_90a", instruction="mma.sync"))[0].astype(np.float64)
        size.append(real)
        for part, made, beside in (
            ("keys", _exact(last, kept[0], values), real), ("values", _exact(last, keys, kept[1]), real),
            ("arithmetic", got, both), ("all", got, real),
        ):  # fmt: skip
            errors[part].append(made - beside)
    whole = _rms(size)
    bits = _bits(held)
    for part in _PARTS:
        yield {
            "data": data, "cache": cache, "part": part, "splits": 1, "changed": 0.0, "moved": 0.0, "error": _rms(errors[part]) / whole,
            "bits": bits,
        }  # fmt: skip


def _rms(parts: list[Exact]) -> float:
    return float(np.sqrt(np.mean([(part**2).mean() for part in parts])))


def _bits(held: KvCache) -> float:
    """Stored for one number, scales included, in pages that are full."""
    stored = sum(array.nbytes for side in (held.keys, held.values) for array in (side.words, side.scales, side.zeros) if array is not None)
    numbers = sum(side.words.size * side.grouping.per_word for side in (held.keys, held.values))
    return 8 * stored / numbers


def _claims(rows: Rows) -> list[PublishedNumber]:
    return []


def _findings(rows: Rows) -> list[str]:
    def error(data: str, cache: str, part: str = "all") -> float:
        return float(100 * one(rows, "error", data=data, cache=cache, part=part))

    found = []
    for data in dict.fromkeys(row["data"] for row in rows if row["part"] == "all"):
        listed = ", ".join(
            f"{name} {error(data, name):.2g} % ({one(rows, 'bits', data=data, cache=name, part='all'):.3g} bits)" for name in CACHES
        )
        found.append(f"{data}: outputs are off by {listed}.")
    token, channel = (error("key channels", name, "keys") / error("normal", name, "keys") for name in ("int8", "int8-kivi"))
    found.append(
        f"Channels of the keys that are {_FACTOR} times as large make the part of the keys {token:.3g} times as large where tokens have a scale "
        f"(int8), and {channel:.2f} times where channels have one (int8-kivi)."
    )
    split = pick(rows, part="splits")
    most = max(split, key=lambda row: row["splits"])
    found.append(
        f"One token over {_LONG}, int8: keys in {most['splits']} splits change the bits of {100 * most['changed']:.0f} % of the outputs, by "
        f"{100 * most['moved']:.2g} % (rms); the arithmetic's error is {100 * most['error']:.2g} %, and {100 * split[0]['error']:.2g} % in one."
    )
    return found


STUDY: Final = Shipped(
    name="kv-caches",
    title="Quantized KV caches",
    question="What does each KV cache do to the outputs of attention?",
    measured="Four heads of 256 normal tokens with D = 64, as they are, with four channels of the keys 16 times as large (and those of the queries "
    "divided, so that exact scores stay), or four of the values; and all 72 heads of all-MiniLM-L6-v2 over eight sentences as one text, "
    "D = 32. The last 16 tokens are the queries, in f16, each sees its own key and those before. Keys of -kivi since the last full 32 tokens are "
    "f16; the scale of the whole of NVFP4 is that of the data. Decoded on sm_90a by mma.sync; errors are against the softmax of unquantized "
    "keys and values in float64, rms over rms. And one token over 2,048, with the keys in splits: beside the softmax of what the cache holds.",
    points=_points,
    at=_at,
    charts=(
        *(
            Chart(
                title=title, x="cache", y="error", series="part", x_label="cache", y_label="error, rms, relative", where={"data": data},
                bars=True, caption=caption,
            )
            for data, title, caption in (
                ("normal", "Normal numbers", "keys, values: the quantization of these alone. arithmetic: f16 and the kernel's sums."),
                ("key channels", "Keys with large channels", "Scales of tokens must cover the largest channel; those of channels need not."),
            )
        ),
        Chart(
            title="Keys in splits", x="splits", y="error", series="cache", x_label="splits", y_label="error of the arithmetic, rms, relative",
            where={"part": "splits"}, caption="Each split has a maximum of its own, so that p is rounded to f16 otherwise; splits are added in order.",
        ),
    ),
    claims=_claims,
    findings=_findings,
    limits="Synthetic keys and values, and those of one small encoder, whose own attention is not causal. No perplexities; none of KIVI's published "
    "numbers, which are tasks of large models.",
)  # fmt: skip
