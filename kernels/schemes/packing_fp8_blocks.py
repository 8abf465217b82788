"""Layers in FP8 with a scale for each 128 x 128, and scales of FP8 KV caches, as checkpoints hold them.

`packing_fp8_nvfp4` reads and writes the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.checks import Array, check_finite, check_positive, check_shape, checked, row_named
from mmabits.kernels.schemes.fp8_blockwise import BLOCK, TiledFp8
from mmabits.kernels.schemes.w8a8 import Floats

_E4M3: Final = np.dtype(ml_dtypes.float8_e4m3fn)
_E8M0: Final = np.dtype(ml_dtypes.float8_e8m0fnu)
_BF16: Final = np.dtype(ml_dtypes.bfloat16)
_F32: Final = np.dtype(np.float32)


@dataclass(frozen=True, kw_only=True)
class BlockFlavour:
    """How a library calls the scales of FP8 blocks."""

    name: str
    scales: str
    """The name beside `weight`."""
    config: Mapping[str, Any]
    """What tells loaders, in config.json."""
    source: str


BLOCK_FLAVOURS: Final[dict[str, BlockFlavour]] = {
    row.name: row
    for row in (
        BlockFlavour(
            name="deepseek", scales="weight_scale_inv",
            config={"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]},
            source="DeepSeek-V3's checkpoint; transformers' finegrained FP8",
        ),
        BlockFlavour(
            name="compressed-tensors", scales="weight_scale", config={"quant_method": "compressed-tensors", "format": "float-quantized"},
            source="compressed-tensors, preset FP8_BLOCK",
        ),
    )
}  # fmt: skip
"""By library. Values are multiplied by the scales in both, whatever the name says."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockFp8Tensors:
    """The tensors of one layer with a scale for each 128 x 128.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, scales that are not finite, another flavour.
    """

    weight: npt.NDArray[Any]
    """(N, K) float8_e4m3fn."""
    scales: npt.NDArray[Any]
    """(ceil(N / 128), ceil(K / 128)): float32, bfloat16 or float8_e8m0fnu; values are multiplied by them."""
    flavour: str = "deepseek"
    """A name of `BLOCK_FLAVOURS`."""

    def __post_init__(self) -> None:
        """Check."""
        row_named(BLOCK_FLAVOURS, self.flavour, "flavour of blockwise FP8 checkpoints")
        n, k = checked(self.weight, "weight", (_E4M3,), 2).shape
        checked(self.scales, "scales", (_F32, _BF16, _E8M0), 2)
        check_shape(self.scales, f"scales of {BLOCK} x {BLOCK} of a weight of {n} x {k}", (-(-n // BLOCK), -(-k // BLOCK)))
        check_finite(self.scales.astype(np.float32), "scales")

    def operand(self) -> TiledFp8:
        """The right operand of `fp8_blockwise_matmul`, (K, N), scales in float32: exact."""
        return TiledFp8(
            elements=np.ascontiguousarray(self.weight.T), scales=np.ascontiguousarray(self.scales.T.astype(np.float32)), tile=(BLOCK, BLOCK)
        )  # fmt: skip

    def dequantize(self) -> Floats:
        """(N, K): element times scale, rounded once to float32."""
        return np.ascontiguousarray(self.operand().dequantize().T)

    @classmethod
    def of(cls, weights: TiledFp8, *, flavour: str = "deepseek") -> BlockFp8Tensors:
        """From a right operand (K, N) of e4m3 in tiles of 128 x 128.

        Raises:
            OperandTypeError, OperandError: another operand or flavour.
        """
        if not isinstance(weights, TiledFp8) or weights.elements.dtype != _E4M3 or weights.tile != (BLOCK, BLOCK):
            raise OperandTypeError("weights must be TiledFp8 of e4m3 in tiles of 128 x 128; fp8_blockwise.quantize_weights makes them")
        return cls(weight=np.ascontiguousarray(weights.elements.T), scales=np.ascontiguousarray(weights.scales.T), flavour=flavour)

    def converted(self, flavour: str) -> BlockFp8Tensors:
        """As the other library calls it: the same tensors.

        Raises:
            OperandError: another flavour.
        """
        return BlockFp8Tensors(weight=self.weight, scales=self.scales, flavour=flavour)


# KV caches ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CacheFlavour:
    """Where a library keeps the scales of keys and of values, below an attention module's name."""

    name: str
    keys: str
    values: str
    """The same as `keys`: one scale for both."""
    source: str


CACHE_FLAVOURS: Final[dict[str, CacheFlavour]] = {
    row.name: row
    for row in (
        CacheFlavour(
            name="compressed-tensors", keys="k_scale", values="v_scale", source="compressed-tensors, KVCacheScaleType; vLLM"
        ),
        CacheFlavour(name="modelopt", keys="k_proj.k_scale", values="v_proj.v_scale", source="NVIDIA ModelOpt's export, as vLLM maps it"),
        CacheFlavour(name="kv-scale", keys="kv_scale", values="kv_scale", source="AutoFP8; deprecated in vLLM"),
    )
}  # fmt: skip
"""By library. A code times the scale is the value in each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheScales:
    """The static scales of one attention layer's cache.

    Raises:
        OperandTypeError, OperandError: dtypes, shapes, scales that are not positive and finite, two scales where a flavour has one.
    """

    keys: npt.NDArray[Any]
    """() or (1,) for the cache, (heads,) for each head; float32 or bfloat16."""
    values: npt.NDArray[Any]
    """Likewise."""
    flavour: str = "compressed-tensors"
    """A name of `CACHE_FLAVOURS`."""

    def __post_init__(self) -> None:
        """Check."""
        row = row_named(CACHE_FLAVOURS, self.flavour, "flavour of cache scales")
        for array, name in ((self.keys, "the scale of keys"), (self.values, "the scale of values")):
            if checked(array, name, (_F32, _BF16)).ndim > 1 or not array.size:
                raise OperandError(f"{name} must have shape (), (1,) or (heads,), got {array.shape}")
            check_positive(array.astype(np.float32).reshape(-1), name)
        alike = (
            self.keys.dtype == self.values.dtype and self.keys.shape == self.values.shape and self.keys.tobytes() == self.values.tobytes()
        )
        if row.keys == row.values and not alike:
            raise OperandError(f"{self.flavour} checkpoints have one scale for keys and values, got {self.keys} and {self.values}")

    def whole(self) -> tuple[np.float32, np.float32]:
        """Scales of keys and values as `schemes.attention.PagedCache` takes them.

        Raises:
            OperandError: there is one for each head.
        """
        if self.keys.size > 1 or self.values.size > 1:
            raise OperandError(f"the scales are of {max(self.keys.size, self.values.size)} heads, not of a whole cache")
        keys, values = (np.float32(array.astype(np.float32).reshape(-1)[0]) for array in (self.keys, self.values))
        return keys, values

    def converted(self, flavour: str) -> CacheScales:
        """As the other library keeps them: the same numbers in other places. (compressed-tensors' own converter rounds them to bfloat16.)

        Raises:
            OperandError: another flavour; scales that differ where it has one for both.
        """
        return CacheScales(keys=self.keys, values=self.values, flavour=flavour)

    def tensors(self) -> dict[str, Array]:
        """By their names below that of the attention module."""
        row = CACHE_FLAVOURS[self.flavour]
        return {row.keys: self.keys, row.values: self.values}


_CACHE_NAMES: Final = re.compile(r"(?:^|\.)(?:k_proj\.k|v_proj\.v|[kv]|kv)_scale$")
_NO_PLACE: Final = ("k_zero_point", "v_zero_point")


def cache_scales_of(tensors: Mapping[str, Array]) -> dict[str, CacheScales]:
    """The caches' scales among a file's tensors, by the names of the attention modules.

    Raises:
        OperandError: a scale of keys without that of values, or the other way round; zero points, which codes in FP8 do not have.
        OperandTypeError: tensors of other types.
    """
    wrong = [name for name in tensors if name.rpartition(".")[2] in _NO_PLACE]
    if wrong:
        raise OperandError(f"caches with zero points are not read: {wrong[0]}")
    found: dict[str, CacheScales] = {}
    left = {name for name in tensors if _CACHE_NAMES.search(name)}
    # The longer names first: k_proj.k_scale ends as k_scale does.
    for row in sorted(CACHE_FLAVOURS.values(), key=lambda row: -len(row.keys)):
        for name in sorted(left):
            module = next((name[: -len(part)] for part in (row.keys, row.values) if _ends(name, part)), None)
            if module is None or name not in left:
                continue
            missing = [part for part in (row.keys, row.values) if module + part not in left]
            if missing:
                raise OperandError(f"there is {name} without {module}{missing[0]}")
            key = module.removesuffix(".")
            if key in found:
                raise OperandError(f"{key} has scales of its cache under two names, {name} and those of {found[key].flavour}")
            found[key] = CacheScales(keys=tensors[module + row.keys], values=tensors[module + row.values], flavour=row.name)
            left -= {module + row.keys, module + row.values}
    return dict(sorted(found.items()))


def _ends(name: str, part: str) -> bool:
    return name == part or name.endswith("." + part)


__all__ = ["BLOCK_FLAVOURS", "CACHE_FLAVOURS", "BlockFlavour", "BlockFp8Tensors", "CacheFlavour", "CacheScales", "cache_scales_of"]
