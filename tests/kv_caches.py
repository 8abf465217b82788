"""Tokens, and KV caches that hold them."""

import numpy as np

from mmabits.kernels.schemes.kv_cache import KvCache, empty_kv_cache

SEED = 20261129
F32 = np.float32


def tokens(count: int, heads: int = 2, width: int = 64, seed: int = SEED) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, heads, width)) * 2.0 ** rng.integers(-4, 4, (count, 1, 1))).astype(F32)


def cache_of(name: str, *, lengths: tuple[int, ...] = (), width: int = 64, **fields: object) -> KvCache:
    """Two sequences of up to 128 tokens, pages in no order."""
    tables = np.random.default_rng(3).permutation(10)[:8].reshape(2, 4).astype(np.int32)
    cache = empty_kv_cache(name, tables=tables, pages=10, page=32, heads=2, width=width, key_amax=64.0, value_amax=64.0, **fields)
    for sequence, length in enumerate(lengths):
        cache.append(sequence, tokens(length, width=width, seed=sequence), tokens(length, width=width, seed=sequence + 9))
    return cache
