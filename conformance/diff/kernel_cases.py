"""The kernels of kernels/ as rows that `mmabits diff` runs on a GPU and under `emulate`: operands by seed, the call, the composition."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.layouts import pack_fp4, swizzle_scales, unpack_fp4
from mmabits.isa import FORMATS, OperandError, nearest
from mmabits.kernels.schemes import (
    asymmetric,
    attention,
    attention_cached,
    fp8,
    fp8_blockwise,
    gptq,
    kv_cache,
    moe,
    moe_experts,
    moe_layer,
    moe_sums,
    mxfp6_mxfp4,
    mxfp8,
    nvfp4,
    routing,
    w4a4,
    w4a8,
    w4a8_fp8,
    w4a16,
    w8a8,
    w8a16,
)
from mmabits.kernels.schemes.blocks import ColumnBlocks, RowBlocks, block_scaled_matmul
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.packing_awq_gptq import AwqTensors, GptqTensors

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

M, N, K = 40, 72, 288
"""Of most products: the tiles at the edges, and the last step over K, are not full."""
EVERY: Final = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_110a", "sm_120a", "sm_121a")
"""All that Triton compiles tensor-core instructions for."""
FROM_ADA: Final = EVERY[2:]
BLACKWELL: Final = EVERY[4:]
DATA_CENTRE: Final = EVERY[4:7]
"""Blackwell with `tcgen05`."""
_MMA_SYNC: Final = (*EVERY[:3], "sm_120a", "sm_121a")
"""Where Triton has no other instruction for f16 and bf16."""
_BF16: Final = ml_dtypes.bfloat16


class MakeDots(Protocol):
    """Makes the dots of the architecture at hand."""

    def __call__(self, **fields: Any) -> Dots:
        """`Dots(arch=..., **fields)`."""


Composition = Callable[[str, MakeDots], Arrays]
"""(architecture, dots) to the kernel's outputs by name, through mmabits.gemm; without any where it would round otherwise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Operands, and what a composition makes of the same ones."""

    inputs: Arrays
    """As the call stores them, by the names of its parameters."""
    composition: Composition | None = None
    """None: there is no second way to compute it."""


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """One call of a kernel."""

    name: str
    kernel: str
    """`module:function` from `mmabits.kernels` on; the first part is the framework."""
    draw: Callable[[int], Drawn]
    outputs: tuple[str, ...] = ("out",)
    """Names of what the call returns."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the call."""
    architectures: tuple[str, ...] = EVERY
    """Where both emulation and composition can compute it."""
    arguments: Callable[[Arrays], dict[str, Any]] = dict
    """What the launcher takes, of the operands."""
    note: str = ""

    @property
    def framework(self) -> str:
        """`triton`, `jax` or `cuda`."""
        return self.kernel.split(".")[0]

    @property
    def is_pallas(self) -> bool:
        """Whether its launcher takes `interpret`, which it needs without a GPU."""
        return self.framework == "jax" and "interpret" in inspect.signature(self.function).parameters

    @property
    def takes_arch(self) -> bool:
        """Whether its launcher is told the architecture."""
        return self.framework == "cuda"

    @property
    def call(self) -> str:
        """For manifests and tables."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"mmabits.kernels.{self.kernel.replace(':', '.')}({options})"

    @property
    def function(self) -> Callable[..., Any]:
        """The launcher; imports its framework."""
        module, _, name = self.kernel.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(f"mmabits.kernels.{module}"), name)
        return found


def case_of_kernel(name: str) -> KernelCase:
    """The case of a name.

    Raises:
        OperandError: there is none.
    """
    if name not in KERNEL_CASES:
        raise OperandError(f"unknown case {name!r}{nearest(name, KERNEL_CASES)}; known: {', '.join(KERNEL_CASES)}")
    return KERNEL_CASES[name]


# Operands ----------------------------------------------------------------------------------------------------------------


def _wide(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    """Normal numbers, each times a power of two of its own."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-9, 9, shape)).astype(np.float32)


def _normal(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


def _stored(array: Array) -> Array:
    """Contiguous; e2m1 two to a byte along the last axis, ue8m0 as bytes: as Triton takes them."""
    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.float4_e2m1fn:
        return np.asarray(pack_fp4(array))
    return array.view(np.uint8) if array.dtype == ml_dtypes.float8_e8m0fnu else array


def _triton(**arrays: Array) -> Arrays:
    return {name: _stored(array) for name, array in arrays.items()}


def _order(arch: str, width: int, *, tile: int = 128, is_native_on: tuple[str, ...] = BLACKWELL) -> tuple[int, ...]:
    """How mma.sync takes K where operands are unpacked in registers, `width` neighbours of K to a thread; elsewhere as it stands.

    Architectures of `is_native_on` have an instruction for the operands as they are.
    """
    from mmabits.emulator.hooks.triton.plans import k_order

    return tuple(k_order(width, 16, tile, 16)) if arch in _MMA_SYNC and arch not in is_native_on else ()


def _triton_casts_through_f16(arch: str) -> bool:
    """Triton before 3.9 has no direct cast from f32 to e4m3 on Ada."""
    import triton

    return arch == "sm_89" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


# Plain matrices ----------------------------------------------------------------------------------------------------------


def _plain(dtype: Any) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        a, b = _wide(rng, M, K).astype(dtype), _wide(rng, K, N).astype(dtype)
        return Drawn(inputs={"a": a, "b": b}, composition=lambda arch, dots: {"out": dots()(a, b)})

    return draw


def _split(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    a, b = _wide(rng, M, K).astype(np.float16), _wide(rng, K, N).astype(np.float16)

    def composition(arch: str, dots: MakeDots) -> Arrays:
        total = np.zeros((M, N), np.float32)
        for start in range(0, K, 96):  # three blocks of 32
            part = slice(start, start + 96)
            with np.errstate(all="ignore"):
                total = total + dots()(np.ascontiguousarray(a[:, part]), b[part])
        return {"out": total}

    return Drawn(inputs={"a": a, "b": b}, composition=composition)


# FP8 ---------------------------------------------------------------------------------------------------------------------


def _fp8_rows(a: str, b: str) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        x, w = fp8.quantize(_wide(rng, M, K), per="row", format=a), fp8.quantize(_wide(rng, K, N), per="column", format=b)
        inputs = _triton(x=x.elements, x_scales=x.scales.ravel(), w=w.elements.T, w_scales=w.scales.ravel())
        return Drawn(inputs=inputs, composition=lambda arch, dots: {"out": fp8.fp8_matmul(x, w, arch=dots())})

    return draw


def _fp8_accurate(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x, w = fp8.quantize(_wide(rng, M, K)), fp8.quantize(_wide(rng, K, N))

    def composition(arch: str, dots: MakeDots) -> Arrays:
        return {"out": fp8.fp8_matmul(x, w, arch=dots(promote_every=128 if arch == "sm_90a" else None))}

    inputs = _triton(x=x.elements, x_scales=x.scales.ravel(), w=w.elements.T, w_scales=w.scales.ravel())
    return Drawn(inputs=inputs, composition=composition)


def _fp8_tiles(recipe: str) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        x = fp8_blockwise.quantize_activations(_wide(rng, M, 256), recipe=recipe)
        w = fp8_blockwise.quantize_weights(_wide(rng, 256, N), recipe=recipe)
        inputs = _triton(x=x.elements, x_scales=x.scales, w=w.elements.T, w_scales=w.scales.T)
        return Drawn(inputs=inputs, composition=lambda arch, dots: {"out": fp8_blockwise.fp8_blockwise_matmul(x, w, arch=dots())})

    return draw


# Block scales ------------------------------------------------------------------------------------------------------------


def _mxfp8(a: str, b: str, *, swizzled: bool = False) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        x, w = mxfp8.quantize_rows(_wide(rng, M, K), format=a), mxfp8.quantize_columns(_wide(rng, K, N), format=b)
        scales = [x.block_scales, np.ascontiguousarray(w.block_scales.T)]
        if swizzled:
            scales = [np.asarray(swizzle_scales(each)) for each in scales]
        inputs = _triton(a=x.elements, a_scales=scales[0], b=w.elements.T, b_scales=scales[1])
        return Drawn(
            inputs=inputs, composition=lambda arch, dots: {"out": mxfp8.mxfp8_matmul(x, w, arch=dots(k_order=_order(arch, 4)))}
        )  # fmt: skip

    return draw


def _mxfp6(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x = mxfp6_mxfp4.quantize_rows(_wide(rng, M, K), format="e2m3")
    w = mxfp6_mxfp4.quantize_columns(_wide(rng, K, N), format="e3m2")

    def composition(arch: str, dots: MakeDots) -> Arrays:
        through = "e4m3" if arch in BLACKWELL else "bf16"
        return {"out": mxfp6_mxfp4.mx_matmul(x, w, arch=dots(k_order=_order(arch, 4)), through=through)}

    inputs = _triton(
        a=mxfp6_mxfp4.pack_fp6(x.elements, "e2m3"), a_scales=x.block_scales, b=mxfp6_mxfp4.pack_fp6(w.elements.T, "e3m2"),
        b_scales=w.block_scales.T,
    )  # fmt: skip
    return Drawn(inputs=inputs, composition=composition)


def _mxfp4(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x, w = mxfp6_mxfp4.quantize_rows(_wide(rng, M, K)), mxfp6_mxfp4.quantize_columns(_wide(rng, K, N))
    return Drawn(
        inputs=_triton(a=x.elements, a_scales=x.block_scales, b=w.elements.T, b_scales=w.block_scales.T),
        composition=lambda arch, dots: {"out": mxfp6_mxfp4.mx_matmul(x, w, arch=dots(k_order=_order(arch, 8)))},
    )


def _nvfp4(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x, w = nvfp4.quantize_rows(_wide(rng, M, K)), nvfp4.quantize_columns(_wide(rng, K, N))
    wholes = [np.full(1, each.tensor_scale) for each in (x, w)]
    return Drawn(
        inputs=_triton(
            a=x.elements, a_scales=x.block_scales, a_scale=wholes[0], b=w.elements.T, b_scales=w.block_scales.T, b_scale=wholes[1]
        ),
        composition=lambda arch, dots: {"out": nvfp4.nvfp4_matmul(x, w, arch=dots(k_order=_order(arch, 8)))},
    )


def _mixed_scaled(*, transposed: bool) -> Callable[[int], Drawn]:
    """e4m3 x e5m2 with ue8m0 scales; K is whole tiles. `transposed`: B as libraries store weights."""

    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        x, w = mxfp8.quantize_rows(_wide(rng, M, 256)), mxfp8.quantize_columns(_wide(rng, 256, N), format="e5m2")
        left, right = _stored(x.elements), _stored(w.elements.T if transposed else w.elements)
        ending = "scales" if transposed else "scale"
        return Drawn(
            inputs={"a": left, f"a_{ending}": _stored(x.block_scales), "b": right, f"b_{ending}": _stored(w.block_scales.T)},
            composition=lambda arch, dots: {"out": block_scaled_matmul(x, w, arch=dots(k_order=_order(arch, 4)))},
        )

    return draw


def _mxfp8_by_mxfp4(seed: int) -> Drawn:
    """Blackwell's data-centre instructions take the pair as it is; elsewhere Triton makes bf16 of both."""
    rng = np.random.default_rng(seed)
    x, w = mxfp8.quantize_rows(_wide(rng, M, K)), mxfp6_mxfp4.quantize_columns(_wide(rng, K, N))

    def composition(arch: str, dots: MakeDots) -> Arrays:
        native = arch in DATA_CENTRE
        order = _order(arch, 8, is_native_on=DATA_CENTRE)
        return {"out": mxfp6_mxfp4.mx_matmul(x, w, arch=dots(k_order=order), through="block-scaled" if native else "bf16")}

    inputs = _triton(a=x.elements, a_scales=x.block_scales, b=w.elements.T, b_scales=w.block_scales.T)
    return Drawn(inputs=inputs, composition=composition)


# INT4 and INT8 -----------------------------------------------------------------------------------------------------------


def _rows_with_outliers(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    x = _normal(rng, M, 256)
    x[:, [3, 77]] *= 20
    return x


def _awq(dtype: Any, rows: int = M, columns: int = N, *, promote_every: int | None = None) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        weights, x = w4a16.quantize_int4(_normal(rng, 256, columns)), _normal(rng, rows, 256).astype(dtype)
        packed = AwqTensors.pack(weights)
        return Drawn(
            inputs={"x": x, "qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales},
            composition=lambda arch, dots: {"out": w4a16.w4a16_matmul(x, weights, arch=dots(promote_every=promote_every))},
        )

    return draw


def _gptq(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x = _rows_with_outliers(rng)
    weights = gptq.gptq_quantize(_normal(rng, 256, N), gptq.hessian(x), group=64, act_order=True)
    packed, half = GptqTensors.pack(weights, zeros_minus_one=False), x.astype(np.float16)
    return Drawn(
        inputs={"x": half, "qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales, "g_idx": packed.g_idx},
        composition=lambda arch, dots: {"out": w4a16.w4a16_matmul(half, weights, arch=dots())},
    )


def _int8(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x, w = w8a8.quantize_int8(_rows_with_outliers(rng), axis=0), w8a8.quantize_int8(_normal(rng, 256, N), axis=1)
    return Drawn(
        inputs={"x": x.codes, "x_scales": x.scales, "w": w.codes, "w_scales": w.scales},
        composition=lambda arch, dots: {"out": w8a8.w8a8_matmul(x, w, arch=dots())},
    )


def _llm_int8(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    half, plain = _rows_with_outliers(rng).astype(np.float16), _normal(rng, 256, N)
    x, w, w16 = w8a8.split_outliers(half), w8a8.quantize_int8(plain, axis=1), plain.astype(np.float16)
    inputs: Arrays = {
        "x": x.regular.codes, "x_scales": x.regular.scales, "w": w.codes, "w_scales": w.scales, "outliers": x.outliers,
        "columns": x.columns, "w16": w16,
    }  # fmt: skip
    return Drawn(
        inputs=inputs, composition=lambda arch, dots: {"out": w8a8.llm_int8_matmul(x, w16, w, arch=dots(), f16=dots())}
    )  # fmt: skip


def _w4a8(group: int) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        x = w8a8.quantize_int8(_rows_with_outliers(rng), axis=0)
        w = w4a8.quantize_w4a8(_normal(rng, 256, N), group=group)
        inputs: Arrays = {"x": x.codes, "x_scales": x.scales, "words": w.pack(), "output_scales": w.output_scales}
        if w.group_scales is not None:
            inputs["group_scales"] = w.group_scales
        return Drawn(inputs=inputs, composition=lambda arch, dots: {"out": w4a8.w4a8_matmul(x, w, arch=dots())})

    return draw


def _asymmetric(*, weights: bool, by_dot: bool = False) -> Callable[[int], Drawn]:
    """u8 activations; `weights`: with zero points of their own. `by_dot`: the launcher sums weights itself."""

    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        x = asymmetric.quantize_affine(_rows_with_outliers(rng) + np.float32(0.5), axis=0)
        plain = _normal(rng, 256, N) + np.float32(0.25)
        w = asymmetric.quantize_affine(plain, axis=1, dtype=np.int8) if weights else w8a8.quantize_int8(plain, axis=1)
        inputs: Arrays = {"x": x.codes, "x_scales": x.scales, "x_zeros": x.zeros, "w": w.codes, "w_scales": w.scales}
        if not by_dot:
            inputs["w_sums"] = w.codes.sum(axis=0, dtype=np.int32)
        if isinstance(w, asymmetric.AffineMatrix):
            inputs["w_zeros"] = w.zeros
        return Drawn(inputs=inputs, composition=lambda arch, dots: {"out": asymmetric.asymmetric_matmul(x, w, arch=dots())})

    return draw


def _w8a16(kind: str, dtype: Any, group: int) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        w, x = w8a16.quantize_w8(_normal(rng, 256, N), kind=kind, group=group), _rows_with_outliers(rng).astype(dtype)
        return Drawn(
            inputs={"x": x, "words": w.pack(), "scales": w.scales},
            composition=lambda arch, dots: {"out": w8a16.w8a16_matmul(x, w, arch=dots())},
        )

    return draw


def _w4a8_fp8(group: int) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        x = fp8.quantize(_rows_with_outliers(rng), per="row")
        w = w4a8_fp8.quantize_w4a8_fp8(_normal(rng, 256, N), group=group)
        inputs = _triton(x=x.elements, x_scales=x.scales.ravel(), words=w.pack(), scales=w.kernel_scales)
        return Drawn(inputs=inputs, composition=lambda arch, dots: {"out": w4a8_fp8.w4a8_fp8_matmul(x, w, arch=dots())})

    return draw


def _w4a4(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x = w4a4.quantize_int4_symmetric(_rows_with_outliers(rng), axis=0, clip=0.9)
    w = w4a4.quantize_int4_symmetric(_normal(rng, 256, N), axis=1)
    return Drawn(
        inputs={"x": x.pack(), "x_scales": x.scales, "w": w.pack(), "w_scales": w.scales},
        composition=lambda arch, dots: {"out": w4a4.w4a4_matmul(x, w, arch=dots())},
    )


# Attention ---------------------------------------------------------------------------------------------------------------


def _heads(seed: int) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    return tuple(_normal(rng, heads, 100, 64) for heads in (4, 2, 2))


def _sage(seed: int) -> Drawn:
    queries, keys, values = _heads(seed)
    q, k, v = attention.quantize_queries(queries), attention.quantize_keys(keys), values.astype(np.float16)
    return Drawn(
        inputs={"q": q.codes, "q_scales": q.scales, "k": k.codes, "k_scales": k.scales, "v": v},
        composition=lambda arch, dots: {"out": attention.sage_attention(q, k, v, arch=dots())},
    )


def _sage2(seed: int) -> Drawn:
    queries, keys, values = _heads(seed)
    q, k, v = attention.quantize_queries(queries), attention.quantize_keys(keys), attention.quantize_values(values)
    inputs: Arrays = {
        "q": q.codes, "q_scales": q.scales, "k": k.codes, "k_scales": k.scales, "v": v.codes,
        "output_scales": attention.sage2_output_scales(v),
    }  # fmt: skip
    return Drawn(
        inputs=inputs,
        composition=lambda arch, dots: {
            "out": attention.sage2_attention(q, k, v, arch=dots(), through_f16=_triton_casts_through_f16(arch))
        },
    )


def _fp8_block_attention(seed: int) -> Drawn:
    queries, keys, values = _heads(seed)
    signs = attention.random_signs(64, seed)
    q, k = (attention.quantize_fp8_blocks(each, block=64, signs=signs) for each in (queries, keys))
    v = attention.quantize_fp8_blocks(values, block=64)
    inputs: Arrays = {f"{name}{end}": array for name, each in (("q", q), ("k", k), ("v", v)) for end, array in _codes_and_scales(each)}
    return Drawn(
        inputs=inputs,
        composition=lambda arch, dots: {
            "out": attention.fp8_block_attention(q, k, v, arch=dots(), causal=True, through_f16=_triton_casts_through_f16(arch))
        },
    )


def _codes_and_scales(each: attention.Fp8Blocks) -> tuple[tuple[str, Array], ...]:
    return (("", each.codes), ("_scales", each.scales))


def _turned_blocks(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    rows, signs = _wide(rng, 2, 100, 64), attention.random_signs(64, seed)

    def composition(arch: str, dots: MakeDots) -> Arrays:
        if _triton_casts_through_f16(arch):
            return {}
        found = attention.quantize_fp8_blocks(rows, block=64, signs=signs)
        return {"elements": found.codes, "scales": found.scales}

    return Drawn(inputs={"rows": rows, "signs": signs}, composition=composition)


def _fp8_cache(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    cache = attention.empty_cache(40, 16, 2, 64, key_scale=1 / 64, value_scale=1 / 64)
    tables, lengths = rng.permutation(40)[:14].reshape(2, 7).astype(np.int32), np.array([100, 71], np.int32)
    for row, length in enumerate(lengths):
        token = np.arange(length)
        fresh = _normal(rng, 2, length, 2, 64)
        cache.write(tables[row][token // 16].astype(np.int64) * 16 + token % 16, fresh[0], fresh[1])
    q = attention.quantize_fp8_queries(_normal(rng, 8, 5, 64), scale=1 / 64).reshape(2, 4, 5, 64)
    inputs: Arrays = {
        "q": q, "k_cache": cache.keys, "v_cache": cache.values, "tables": tables, "lengths": lengths,
        "factor": np.array([attention.fp8_score_factor(64, 1 / 64, cache.key_scale)]), "value_scale": np.array([cache.value_scale]),
    }  # fmt: skip
    return Drawn(
        inputs=inputs,
        composition=lambda arch, dots: {
            "out": attention.fp8_attention(
                q, cache, tables, lengths, query_scale=1 / 64, arch=dots(), through_f16=_triton_casts_through_f16(arch)
            )
        },
    )


def cached_dots(name: str, arch: str, rows: int, dots: MakeDots) -> Dots:
    """How Triton compiles the dots over a cache: `mma.sync` for fewer than 64 rows, with K permuted where scales are bytes."""
    from mmabits.emulator.hooks.triton.plans import k_order

    instruction = "mma.sync" if rows < 64 else None
    permuted = kv_cache.CACHES[name].keys.scale.startswith("ue") and (rows < 64 or arch in _MMA_SYNC)
    return dots(instruction=instruction, k_order=tuple(k_order(4, 16, 32, 16)) if permuted else ())


def _cached(name: str, *, new: int, sinks: bool = False, rows: int = 16, **fields: Any) -> Callable[[int], Drawn]:
    """Two sequences, two query heads a key head; `fields` are those of the call."""

    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        tables = rng.permutation(10)[:8].reshape(2, 4).astype(np.int32)
        cache = kv_cache.empty_kv_cache(name, tables=tables, pages=10, page=32, heads=2, width=64, key_amax=4.0, value_amax=4.0)
        for sequence, length in enumerate((100, 71)):
            cache.append(sequence, *_normal(rng, 2, length, 2, 64))
        q, logits = _normal(rng, 2, 4, new, 64).astype(np.float16), _normal(rng, 4) if sinks else None
        inputs: Arrays = {
            "q": q, "key_words": cache.keys.words, "key_scales": cache.keys.scales, "value_words": cache.values.words,
            "value_scales": cache.values.scales, "tables": tables, "lengths": cache.lengths,
            "factor": np.full(1, attention_cached.score_factor(cache)), "value_scale": np.full(1, cache.values.tensor_scale),
        }  # fmt: skip
        optional = {"key_zeros": cache.keys.zeros, "value_zeros": cache.values.zeros, "sinks": logits}
        inputs |= {each: array for each, array in optional.items() if array is not None}
        if cache.spec.keys.tokens > 1:
            inputs["tail"] = cache.tail

        def composition(arch: str, dots: MakeDots) -> Arrays:
            by = cached_dots(name, arch, rows, dots)
            return {"out": attention_cached.cached_attention(q, cache, arch=by, sinks=logits, rows=rows, **fields)}

        return Drawn(inputs=inputs, composition=composition)

    return draw


def _kv_tokens(name: str, side: str) -> Callable[[int], Drawn]:
    """Tokens of many magnitudes, some of them zero."""

    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        values, grouping = _wide(rng, 64, 2, 64), getattr(kv_cache.CACHES[name], side)
        values[3], values[32:, 1, 7] = 0, 0
        inputs = {"values": values}
        amax = 64.0
        if grouping.element == "e2m1":
            inputs["tensor_scale"] = np.full(1, np.float32(amax) / np.float32(kv_cache.NVFP4_LARGEST))

        def composition(arch: str, dots: MakeDots) -> Arrays:
            if grouping.element in ("e4m3", "e2m1") and _triton_casts_through_f16(arch):
                return {}
            found = kv_cache.quantize_tokens(values, grouping, amax=amax)
            return {"words": found.words, "scales": found.scales} | ({} if found.zeros is None else {"zeros": found.zeros})

        return Drawn(inputs=inputs, composition=composition)

    return draw


# Mixture of experts ------------------------------------------------------------------------------------------------------


def _routed(rng: np.random.Generator, block: int = moe.BLOCK_TOKENS, tokens: int = M) -> tuple[moe.Routing, Arrays]:
    found = moe.route(_normal(rng, tokens, 4), top_k=2)
    aligned = moe.align(found, block=block)
    return found, {"weights": found.weights, "choices": aligned.choices, "block_experts": aligned.experts}


def _moe_w4a16(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    experts = moe.Int4Experts.pack([w4a16.quantize_int4(_normal(rng, 256, N)) for _ in range(4)])
    x, (routes, where) = _normal(rng, M, 256).astype(np.float16), _routed(rng)
    return Drawn(
        inputs={"x": x, "qweight": experts.qweight, "qzeros": experts.qzeros, "scales": experts.scales, **where},
        composition=lambda arch, dots: {"out": moe.moe_w4a16(x, experts, routes, arch=dots())},
    )


def _moe_mxfp4(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    experts = moe.quantize_mxfp4_experts(_normal(rng, 4, 256, N))
    x, (routes, where) = _normal(rng, M, 256).astype(_BF16), _routed(rng)

    def composition(arch: str, dots: MakeDots) -> Arrays:
        order = _order(arch, 8, tile=64, is_native_on=())  # none multiplies bf16 by e2m1
        return {"out": moe.moe_mxfp4(x, experts, routes, arch=dots(k_order=order))}

    return Drawn(inputs={"x": x, "codes": experts.codes, "scales": experts.scales, **where}, composition=composition)


def _router(router: Callable[[np.random.Generator], routing.Router]) -> Callable[[int], Drawn]:
    """Logits with ties, each token's among 32 experts."""

    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        how, logits = router(rng), _normal(rng, M, 32)
        logits[1], logits[2, ::2], logits[3, 7], logits[4] = 0, logits[2, 1::2], 80, -60
        inputs: Arrays = {"logits": logits}
        if how.bias is not None:
            inputs["bias"] = how.bias

        def composition(arch: str, dots: MakeDots) -> Arrays:
            found = routing.routed(logits, how)
            return {"experts": found.experts, "weights": found.weights}

        return Drawn(inputs=inputs, composition=composition)

    return draw


def _experts(
    name: str, *, dtype: Any = None, block: int = moe.BLOCK_TOKENS, unpacked: int = 0, wide: bool = False
) -> Callable[[int], Drawn]:  # fmt: skip
    """Experts of a scheme. `unpacked`: neighbours of K to a thread where operands are unpacked in registers."""
    scheme = moe_experts.EXPERTS[name]

    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        values = _wide if wide else _normal
        plain, weights = values(rng, M, 256), values(rng, 4, 256, N)
        x = scheme.activations(plain) if dtype is None else plain.astype(dtype)
        experts, (routes, where) = moe_experts.quantize_experts(weights, scheme), _routed(rng, block)

        def composition(arch: str, dots: MakeDots) -> Arrays:
            order = _order(arch, unpacked) if unpacked else ()
            return {"out": moe_experts.moe_matmul(x, experts, routes, arch=dots(k_order=order))}

        return Drawn(inputs={**scheme.stored(x), **experts.pack(), **where}, composition=composition)

    return draw


def _summed(dtype: str, *, round_each: bool = True) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rows = _wide(np.random.default_rng(seed), 8, 3, N)
        stored = rows.astype(moe_sums.SUM_TYPES[dtype])

        def composition(arch: str, dots: MakeDots) -> Arrays:
            return {"sums": moe_sums.add_rows(rows, dtype=dtype, round_each=round_each)}

        return Drawn(inputs={"rows": stored.reshape(24, N)}, composition=composition)

    return draw


def _layer(name: str, dtype: Any, unpacked: int = 0) -> Callable[[int], Drawn]:
    """A layer of 4 experts, 128 wide and inside, 12 tokens."""

    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        gate_up, down = _normal(rng, 4, 128, 256) / np.float32(8), _normal(rng, 4, 128, 128) / np.float32(8)
        experts, x = moe_layer.quantize_layer(gate_up, down, name), _normal(rng, 12, 128).astype(dtype)
        routes, where = _routed(rng, 128 if unpacked else moe.BLOCK_TOKENS, 12)

        def composition(arch: str, dots: MakeDots) -> Arrays:
            order = _order(arch, unpacked) if unpacked else ()
            return {"hidden": moe_layer.moe_layer(x, experts, routes, arch=dots(k_order=order))}

        parts = {f"{side}.{key}": array for side in ("gate_up", "down") for key, array in getattr(experts, side).pack().items()}
        return Drawn(inputs={"x": x, **parts, **where}, composition=composition)

    return draw


def _of_layer(arrays: Arrays) -> dict[str, Any]:
    found: dict[str, Any] = {"gate_up": {}, "down": {}}
    for name, array in arrays.items():
        side, _, part = name.partition(".")
        if part:
            found[side][part] = array
        else:
            found[name] = array
    return found


def _gated(seed: int) -> Drawn:
    rows = _wide(np.random.default_rng(seed), 8, 2 * N)
    rows[1], rows[2, 0], rows[3, 1], rows[4, N], rows[5, :4] = 0, np.inf, -200, np.inf, 1e-39

    def composition(arch: str, dots: MakeDots) -> Arrays:
        return {"values": moe_layer.swiglu(rows, np.dtype(_BF16))}

    return Drawn(inputs={"rows": rows}, composition=composition)


def _jax_experts(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    scheme = moe_experts.EXPERTS["w8a8"]
    x, (routes, _) = scheme.activations(_normal(rng, M, 256)), _routed(rng)
    experts = moe_experts.quantize_experts(_normal(rng, 4, 256, N), scheme)
    inputs: Arrays = {
        "x": x.codes, "x_scales": x.scales, "w": np.stack([each.codes for each in experts.matrices]),
        "w_scales": np.stack([each.scales for each in experts.matrices]), "weights": routes.weights, "experts": routes.experts,
    }  # fmt: skip
    return Drawn(inputs=inputs, composition=lambda arch, dots: {"out": moe_experts.moe_matmul(x, experts, routes, arch=dots())})


# Quantizers --------------------------------------------------------------------------------------------------------------


def _quantizer(rows: int, columns: int, wanted: Callable[[Array], Arrays], *, to_e4m3: bool = True) -> Callable[[int], Drawn]:
    """Values with zeros, subnormals, an infinity and a NaN among them. `to_e4m3`: the kernel casts f32 to e4m3."""

    def draw(seed: int) -> Drawn:
        def composition(arch: str, dots: MakeDots) -> Arrays:
            if to_e4m3 and _triton_casts_through_f16(arch):
                return {}
            return {name: _stored(array) for name, array in wanted(values).items()}

        values = _wide(np.random.default_rng(seed), rows, columns)
        values[1], values[2, :32], values[3, 5], values[4, 40], values[5] = 0, values[2, :32] * np.float32(2.0**-122), np.nan, -np.inf, -0.0
        return Drawn(inputs={"values": values}, composition=composition)

    return draw


def _elements_and_scales(quantized: Any) -> Arrays:
    return {"elements": quantized.elements, "scales": quantized.scales}


def _quantized_by(quantize: Callable[[Array], Any], *, transposed: bool = False) -> Callable[[Array], Arrays]:
    def wanted(values: Array) -> Arrays:
        found = quantize(values)
        return _elements_and_scales(found.T if transposed else found)

    return wanted


def _quantized_rows_with_zeros(seed: int) -> Drawn:
    values = _wide(np.random.default_rng(seed), 32, 256)
    values[1], values[2, :32], values[3, 5], values[4], values[5] = 0, values[2, :32] * np.float32(2.0**-122), 3e38, 1e-45, -0.0

    def composition(arch: str, dots: MakeDots) -> Arrays:
        found = asymmetric.quantize_affine(values, axis=0)
        return {"codes": found.codes, "scales": found.scales, "zeros": found.zeros}

    return Drawn(inputs={"values": values}, composition=composition)


def _int8_rows(seed: int) -> Drawn:
    values = _wide(np.random.default_rng(seed), 32, 200)
    values[1], values[2, :32], values[3, 5], values[4], values[5] = 0, values[2, :32] * np.float32(2.0**-122), 3e38, 1e-45, -0.0

    def composition(arch: str, dots: MakeDots) -> Arrays:
        found = w8a8.quantize_int8(values, axis=0)
        return {"codes": found.codes, "scales": found.scales}

    return Drawn(inputs={"values": values}, composition=composition)


def _fp8_quantized(values: Array) -> Arrays:
    found = fp8.quantize(values, per="row")
    return {"elements": found.elements, "scales": found.scales.ravel()}


def _nvfp4_quantized(values: Array) -> Arrays:
    found = nvfp4.quantize_rows(values)
    return {**_elements_and_scales(found), "tensor_scale": np.full(1, found.tensor_scale)}


def _transformed(seed: int) -> Drawn:
    values, signs = _wide(np.random.default_rng(seed), 40, 96), nvfp4.random_signs(seed)
    return Drawn(
        inputs={"values": values, "signs": signs}, composition=lambda arch, dots: {"transformed": nvfp4.hadamard(values, signs, axis=1)}
    )  # fmt: skip


def _nvfp4_stochastic(seed: int) -> Drawn:
    values = _quantizer(32, 256, _nvfp4_quantized)(seed).inputs["values"]
    bits = np.random.default_rng([seed, 1]).integers(0, 1 << 32, values.shape, dtype=np.uint32)

    def composition(arch: str, dots: MakeDots) -> Arrays:
        if _triton_casts_through_f16(arch):
            return {}
        found = nvfp4.quantize_rows(values, rounding="rs", random_bits=bits)
        arrays = {**_elements_and_scales(found), "tensor_scale": np.full(1, found.tensor_scale)}
        return {name: _stored(array) for name, array in arrays.items()}

    return Drawn(inputs={"values": values, "random_bits": bits.view(np.int32)}, composition=composition)


# JAX ---------------------------------------------------------------------------------------------------------------------


def _jax_fp8(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x, w = fp8.quantize(_wide(rng, M, 256), per="row"), fp8.quantize(_wide(rng, 256, N), per="column")
    return Drawn(
        inputs={"x": x.elements, "x_scales": x.scales, "w": w.elements, "w_scales": w.scales},
        composition=lambda arch, dots: {"out": fp8.fp8_matmul(x, w, arch=dots())},
    )


def _jax_linear(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x, w, grad = _wide(rng, M, 256), _wide(rng, 256, N), _wide(rng, M, N)
    scales = [fp8.quantize(values, format=form).scales for values, form in ((x, "e4m3"), (w, "e4m3"), (grad, "e5m2"))]
    qx, qw = (fp8.quantize(values, scale=scale[0, 0]) for values, scale in zip((x, w), scales, strict=False))
    return Drawn(
        inputs={"x": x, "w": w, "x_scale": scales[0], "w_scale": scales[1], "grad_scale": scales[2]},
        composition=lambda arch, dots: {"out": fp8.fp8_matmul(qx, qw, arch=dots())},
    )


def _jax_mxfp8(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    a, b = mxfp8.quantize_rows(_wide(rng, M, 256)), mxfp8.quantize_columns(_wide(rng, 256, N), format="e5m2").T
    return Drawn(
        inputs={"a": a.elements, "a_scales": a.block_scales, "b": b.elements, "b_scales": b.block_scales},
        composition=lambda arch, dots: {"out": mxfp8.mxfp8_matmul(a, b.T, arch=dots())},
    )


def _jax_nvfp4(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    a, b = nvfp4.quantize_rows(_wide(rng, M, 256)), nvfp4.quantize_columns(_wide(rng, 256, N)).T
    inputs: Arrays = {
        "a": a.elements, "a_scales": a.block_scales, "a_scale": np.asarray(a.tensor_scale), "b": b.elements, "b_scales": b.block_scales,
        "b_scale": np.asarray(b.tensor_scale),
    }  # fmt: skip
    return Drawn(inputs=inputs, composition=lambda arch, dots: {"out": nvfp4.nvfp4_matmul(a, b.T, arch=dots())})


def _jax_quantized(seed: int) -> Drawn:
    values, scale = _wide(np.random.default_rng(seed), 8, 64), np.array([[0.37]], np.float32)
    return Drawn(
        inputs={"values": values, "scale": scale},
        composition=lambda arch, dots: {"out": fp8.quantize(values, scale=scale[0, 0]).elements},
    )


# CUDA C++ ----------------------------------------------------------------------------------------------------------------


def _cuda_w4a16(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    weights, x = w4a16.quantize_int4(_wide(rng, 256, 64), group=64), _normal(rng, M, 256).astype(np.float16)

    def composition(arch: str, dots: MakeDots) -> Arrays:
        return {"out": w4a16.w4a16_matmul(x, weights, arch=dots(instruction="mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"))}

    inputs: Arrays = {"x": x, "codes": weights.codes, "scales": weights.scales, "zeros": weights.zeros}
    return Drawn(inputs=inputs, composition=composition)


def _of_w4a16(arrays: Arrays) -> dict[str, Any]:
    codes, scales = arrays["codes"], arrays["scales"]
    group = len(codes) // max(1, len(scales))
    return {"x": arrays["x"], "weights": w4a16.Int4Weights(codes=codes, scales=scales, zeros=arrays["zeros"], group=group)}


def _cuda_fp8_tiles(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x, w = fp8_blockwise.quantize_activations(_wide(rng, M, 256)), fp8_blockwise.quantize_weights(_wide(rng, 256, N))
    inputs: Arrays = {"x": x.elements, "x_scales": x.scales, "w": w.elements, "w_scales": w.scales}
    return Drawn(inputs=inputs, composition=lambda arch, dots: {"out": fp8_blockwise.fp8_blockwise_matmul(x, w, arch=dots())})


def _of_fp8_tiles(arrays: Arrays) -> dict[str, Any]:
    return {
        name: fp8_blockwise.TiledFp8(elements=arrays[name], scales=arrays[f"{name}_scales"], tile=tile)
        for name, tile in (("x", (1, fp8_blockwise.BLOCK)), ("w", (fp8_blockwise.BLOCK, fp8_blockwise.BLOCK)))
    }


def _cuda_scaled(scheme: str) -> Callable[[int], Drawn]:
    """e4m3 x e5m2 with ue8m0 scales, or e2m1 with ue4m3 scales."""

    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        left, right = _wide(rng, M, 256), _wide(rng, 256, N)
        if scheme == "mxfp8":
            a, b = mxfp8.quantize_rows(left), mxfp8.quantize_columns(right, format="e5m2")
            multiply = mxfp8.mxfp8_matmul
        else:
            a, b = nvfp4.quantize_rows(left), nvfp4.quantize_columns(right)
            multiply = nvfp4.nvfp4_matmul
        inputs: Arrays = {}
        for name, each in (("a", a), ("b", b)):
            inputs |= _triton(**{name: each.elements, f"{name}_scales": each.block_scales, f"{name}_scale": np.full(1, each.tensor_scale)})
        return Drawn(inputs=inputs, composition=lambda arch, dots: {"out": multiply(a, b, arch=dots())})

    return draw


def _of_scaled(arrays: Arrays) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind, axis in (("a", RowBlocks, 1), ("b", ColumnBlocks, 0)):
        elements, scales = arrays[name], arrays[f"{name}_scales"]
        narrow = elements.dtype == np.uint8
        element = "e2m1" if narrow else "e5m2" if "e5m2" in elements.dtype.name else "e4m3"
        found[name] = kind(
            scheme="nvfp4" if narrow else f"mx-{element}-floor", element=FORMATS[element], block=16 if narrow else 32, axis=axis,
            elements=np.asarray(unpack_fp4(elements)) if narrow else elements, tensor_scale=np.float32(arrays[f"{name}_scale"][0]),
            scale=FORMATS["ue4m3" if narrow else "ue8m0"], scales=scales if narrow else scales.view(ml_dtypes.float8_e8m0fnu),
        )  # fmt: skip
    return found


def _cuda_sage2(seed: int) -> Drawn:
    queries, keys, values = _heads(seed)
    q, k, v = attention.quantize_queries(queries), attention.quantize_keys(keys), attention.quantize_values(values)

    def composition(arch: str, dots: MakeDots) -> Arrays:
        from mmabits.emulator.machine.calls import function
        from mmabits.kernels.cuda.sage2 import EXPONENTIAL, ORDER

        scores = dots(instruction="mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32")
        weighted = dots(instruction="mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", k_order=ORDER)
        found = attention.sage2_attention(
            q, k, v, arch=scores, pv=weighted, causal=True, exp2=lambda power: function(EXPONENTIAL, power, arch=arch)
        )
        return {"out": found}

    inputs: Arrays = {"q": q.codes, "q_scales": q.scales, "k": k.codes, "k_scales": k.scales, "v": v.codes, "v_scales": v.scales}
    return Drawn(inputs=inputs, composition=composition)


def _of_sage2(arrays: Arrays) -> dict[str, Any]:
    q, k = (
        attention.Int8Blocks(codes=arrays[name], scales=arrays[f"{name}_scales"], block=block)
        for name, block in (("q", attention.BLOCK_QUERIES), ("k", attention.BLOCK_KEYS))
    )
    return {"q": q, "k": k, "v": attention.E4M3Columns(codes=arrays["v"], scales=arrays["v_scales"])}


def _cuda_asymmetric(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x = asymmetric.quantize_affine(_wide(rng, M, 256) + np.float32(0.5), axis=0)
    w = asymmetric.quantize_affine(_normal(rng, 256, N) + np.float32(0.25), axis=1, dtype=np.int8)

    def composition(arch: str, dots: MakeDots) -> Arrays:
        return {"out": asymmetric.asymmetric_matmul(x, w, arch=dots(instruction="mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32"))}

    return Drawn(
        inputs={"x": x.codes, "x_scales": x.scales, "x_zeros": x.zeros, "w": w.codes, "w_scales": w.scales, "w_zeros": w.zeros},
        composition=composition,
    )


def _of_asymmetric(arrays: Arrays) -> dict[str, Any]:
    return {
        name: asymmetric.AffineMatrix(codes=arrays[name], scales=arrays[f"{name}_scales"], zeros=arrays[f"{name}_zeros"], axis=axis)
        for axis, name in enumerate(("x", "w"))
    }


def _cuda_w4a4(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x, w = w4a4.quantize_int4_symmetric(_wide(rng, M, 256), axis=0), w4a4.quantize_int4_symmetric(_wide(rng, 256, N), axis=1)

    def composition(arch: str, dots: MakeDots) -> Arrays:
        s4 = dots(instruction="mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32")
        return {"out": w4a4.w4a4_matmul(x, w, arch=s4, through="s4")}

    inputs: Arrays = {"x": x.codes, "x_scales": x.scales, "w": w.codes, "w_scales": w.scales}
    return Drawn(inputs=inputs, composition=composition)


def _of_w4a4(arrays: Arrays) -> dict[str, Any]:
    return {name: w4a4.Int4Matrix(codes=arrays[name], scales=arrays[f"{name}_scales"], axis=axis) for axis, name in enumerate(("x", "w"))}


def _cuda_w8a16(kind: str, dtype: Any, group: int) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        weights, x = w8a16.quantize_w8(_normal(rng, 256, N), kind=kind, group=group), _normal(rng, M, 256).astype(dtype)
        name = "f16" if dtype == np.float16 else "bf16"

        def composition(arch: str, dots: MakeDots) -> Arrays:
            multiply = dots(instruction=f"mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32")
            return {"out": w8a16.w8a16_matmul(x, weights, arch=multiply)}

        return Drawn(inputs={"x": x, "codes": weights.codes, "scales": weights.scales}, composition=composition)

    return draw


def _of_w8a16(arrays: Arrays) -> dict[str, Any]:
    codes, scales = arrays["codes"], arrays["scales"]
    return {"x": arrays["x"], "weights": w8a16.Weights8(codes=codes, scales=scales, group=_group_of(codes, scales))}


def _group_of(codes: Array, scales: Array) -> int:
    return len(codes) // len(scales) if len(scales) > 1 else 0


def _cuda_w4a8_fp8(group: int) -> Callable[[int], Drawn]:
    def draw(seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        x, w = fp8.quantize(_wide(rng, M, 256), per="row"), w4a8_fp8.quantize_w4a8_fp8(_normal(rng, 256, N), group=group)

        def composition(arch: str, dots: MakeDots) -> Arrays:
            multiply = dots(instruction="mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32")
            return {"out": w4a8_fp8.w4a8_fp8_matmul(x, w, arch=multiply)}

        inputs: Arrays = {"x": x.elements, "x_scales": x.scales, "codes": w.codes, "scales": w.scales}
        return Drawn(inputs=inputs, composition=composition)

    return draw


def _of_w4a8_fp8(arrays: Arrays) -> dict[str, Any]:
    codes, scales = arrays["codes"], arrays["scales"]
    weights = w4a8_fp8.W4A8Fp8Weights(codes=codes, scales=scales, group=_group_of(codes, scales))
    return {"x": fp8.Fp8Matrix(elements=arrays["x"], scales=arrays["x_scales"]), "weights": weights}


# The rows ----------------------------------------------------------------------------------------------------------------


def _matrices() -> Iterator[KernelCase]:
    """Plain products, FP8 and block scales."""
    for name, dtype in (("f16", np.float16), ("bf16", _BF16), ("tf32", np.float32), ("e4m3", ml_dtypes.float8_e4m3fn)):
        where = FROM_ADA if name == "e4m3" else EVERY
        yield KernelCase(name=f"triton-matmul-{name}", kernel="triton.matmul:matmul", draw=_plain(dtype), architectures=where)
    yield KernelCase(
        name="triton-persistent-f16", kernel="triton.persistent:persistent_matmul", draw=_plain(np.float16), options={"programs": 3}
    )
    yield KernelCase(
        name="triton-split-k-f16", kernel="triton.split_k:split_k_matmul", draw=_split, options={"parts": 3, "block": (64, 64, 32)},
        note="parts in order; atomics add in whatever order they come, which no emulation can give",
    )  # fmt: skip
    formats = {"a_format": "e4m3", "b_format": "e5m2"}
    yield KernelCase(
        name="triton-dot-scaled-e4m3-e5m2", kernel="triton.scaled:scaled_matmul", draw=_mixed_scaled(transposed=False), options=formats,
        architectures=FROM_ADA,
    )  # fmt: skip
    yield KernelCase(
        name="triton-block-scaled-e4m3-e5m2", kernel="triton.block_scaled:block_scaled_matmul", draw=_mixed_scaled(transposed=True),
        options=formats, architectures=FROM_ADA,
    )  # fmt: skip
    for name, kinds in (("fp8", ("e4m3", "e4m3")), ("fp8-gradient", ("e5m2", "e4m3"))):
        yield KernelCase(name=f"triton-{name}", kernel="triton.fp8:fp8_matmul", draw=_fp8_rows(*kinds), architectures=FROM_ADA)
    yield KernelCase(
        name="triton-fp8-accurate", kernel="triton.fp8:fp8_matmul", draw=_fp8_accurate, options={"fast_accumulation": False},
        architectures=FROM_ADA,
    )  # fmt: skip
    for recipe in ("divide", "power-of-two"):
        yield KernelCase(
            name=f"triton-fp8-tiles-{recipe}", kernel="triton.fp8_blockwise:fp8_blockwise_matmul", draw=_fp8_tiles(recipe),
            architectures=FROM_ADA,
        )  # fmt: skip
    mx = "triton.mxfp8:mxfp8_matmul"
    yield KernelCase(name="triton-mxfp8", kernel=mx, draw=_mxfp8("e4m3", "e4m3"), architectures=FROM_ADA)
    yield KernelCase(
        name="triton-mxfp8-swizzled", kernel=mx, draw=_mxfp8("e4m3", "e5m2", swizzled=True), options={"swizzled": True},
        architectures=FROM_ADA,
    )  # fmt: skip
    yield KernelCase(
        name="triton-mxfp6", kernel="triton.mxfp6_mxfp4:mxfp6_matmul", draw=_mxfp6, options={"a_format": "e2m3", "b_format": "e3m2"},
        architectures=FROM_ADA,
    )  # fmt: skip
    yield KernelCase(
        name="triton-mixed-mxfp8-mxfp4", kernel="triton.block_scaled:block_scaled_matmul", draw=_mxfp8_by_mxfp4,
        options={"a_format": "e4m3", "b_format": "e2m1"}, architectures=FROM_ADA,
    )  # fmt: skip
    yield KernelCase(name="triton-mxfp4", kernel="triton.mxfp6_mxfp4:mxfp4_matmul", draw=_mxfp4)
    yield KernelCase(
        name="triton-nvfp4", kernel="triton.nvfp4:nvfp4_matmul", draw=_nvfp4, architectures=FROM_ADA,
        note="before Blackwell it takes Triton 3.8",
    )  # fmt: skip


_CACHED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("int8", {"splits": 3}), ("fp8", {"splits": 2}), ("int8-kivi", {}), ("int4-kivi", {"splits": 2, "sinks": True}),
    ("mxfp8", {"window": 50, "splits": 2}),
    ("nvfp4", {"new": 5}), ("int4-prefill", {"name": "int4-kivi", "new": 70, "rows": 64, "window": 40, "sinks": True}),
)  # fmt: skip
"""Attention over caches: what differs from one token to decode over all keys at once."""


def _integers_attention_experts() -> Iterator[KernelCase]:
    yield KernelCase(name="triton-w4a16-awq-f16", kernel="triton.w4a16:awq_matmul", draw=_awq(np.float16))
    yield KernelCase(name="triton-w4a16-awq-bf16", kernel="triton.w4a16:awq_matmul", draw=_awq(_BF16))
    yield KernelCase(name="triton-w4a16-gptq-f16", kernel="triton.w4a16:gptq_matmul", draw=_gptq, options={"zeros_minus_one": False})
    yield KernelCase(name="triton-w8a8", kernel="triton.w8a8:w8a8_matmul", draw=_int8)
    yield KernelCase(name="triton-llm-int8", kernel="triton.w8a8:llm_int8_matmul", draw=_llm_int8)
    for group in (0, 64):
        yield KernelCase(
            name=f"triton-w4a8-{'group' if group else 'channel'}", kernel="triton.w4a8:w4a8_matmul", draw=_w4a8(group),
        )  # fmt: skip
    for name, with_zeros in (("asymmetric-int8", True), ("asymmetric-int8-activations", False)):
        yield KernelCase(name=f"triton-{name}", kernel="triton.asymmetric:asymmetric_matmul", draw=_asymmetric(weights=with_zeros))
    for name, dtype, options in (
        ("int8-f16", np.float16, {"kind": "int8", "grouped": True}), ("int8-bf16-channel", _BF16, {"kind": "int8", "grouped": False}),
        ("e4m3-bf16", _BF16, {"kind": "e4m3", "grouped": True}), ("e4m3-f16-channel", np.float16, {"kind": "e4m3", "grouped": False}),
    ):  # fmt: skip
        draw = _w8a16(str(options["kind"]), dtype, 64 if options["grouped"] else 0)
        yield KernelCase(name=f"triton-w8a16-{name}", kernel="triton.w8a16:w8a16_matmul", draw=draw, options=options)
    for group in (0, 64):
        yield KernelCase(
            name=f"triton-w4a8-fp8-{'group' if group else 'channel'}", kernel="triton.w4a8_fp8:w4a8_fp8_matmul", draw=_w4a8_fp8(group),
            options={"grouped": bool(group)}, architectures=FROM_ADA,
        )  # fmt: skip
    yield KernelCase(name="triton-w4a4", kernel="triton.w4a4:w4a4_matmul", draw=_w4a4)
    softmax = "the GPU's exp2 is not modelled: only with it alike do P and what follows agree"
    yield KernelCase(name="triton-sage", kernel="triton.attention:sage_attention", draw=_sage, note=softmax)
    yield KernelCase(name="triton-sage2", kernel="triton.attention:sage2_attention", draw=_sage2, architectures=FROM_ADA, note=softmax)
    yield KernelCase(
        name="triton-fp8-attention", kernel="triton.attention:fp8_attention", draw=_fp8_cache, architectures=FROM_ADA, note=softmax
    )
    yield KernelCase(
        name="triton-fp8-block-attention", kernel="triton.attention:fp8_block_attention", draw=_fp8_block_attention,
        options={"causal": True}, architectures=FROM_ADA, note=softmax,
    )  # fmt: skip
    for name, fields in _CACHED:
        draw = _cached(**{"new": 1, **fields, "name": fields.get("name", name)})
        options = {"cache": fields.get("name", name), **{each: fields[each] for each in ("splits", "window") if each in fields}}
        options |= {"block_q": fields["rows"]} if "rows" in fields else {}
        yield KernelCase(
            name=f"triton-cached-{name}", kernel="triton.attention_cached:cached_attention", draw=draw, options=options, note=softmax
        )  # fmt: skip
    yield KernelCase(name="triton-moe-w4a16", kernel="triton.moe:moe_w4a16", draw=_moe_w4a16)
    yield KernelCase(name="triton-moe-mxfp4", kernel="triton.moe:moe_mxfp4", draw=_moe_mxfp4)


def _mixtures() -> Iterator[KernelCase]:
    exponential = "the GPU's exp2 is not modelled by Triton's interpreter: only with it alike do weights agree"
    for name, router, options in (
        ("softmax", lambda rng: routing.mixtral(), {"top_k": 2, "renormalize": True}),
        ("chosen", lambda rng: routing.gpt_oss(), {"top_k": 4, "chosen_alone": True}),
        (
            "groups", lambda rng: routing.deepseek_v3(_normal(rng, 32) * np.float32(0.1)),
            {"top_k": 8, "scoring": "sigmoid", "groups": 8, "kept_groups": 4, "group_score": "two-largest", "renormalize": True,
             "factor": 2.5},
        ),
    ):  # fmt: skip
        yield KernelCase(
            name=f"triton-route-{name}", kernel="triton.routing:route", draw=_router(router), options=options,
            outputs=("experts", "weights"), note=exponential,
        )  # fmt: skip
    yield KernelCase(name="triton-moe-w8a8", kernel="triton.moe_experts:moe_w8a8", draw=_experts("w8a8"))
    for name, dtype, how in (
        ("int8", _BF16, {"kind": "int8"}), ("int8-groups", np.float16, {"kind": "int8", "grouped": True}),
        ("e4m3", np.float16, {"kind": "e4m3"}), ("e4m3-groups", _BF16, {"kind": "e4m3", "grouped": True}),
    ):  # fmt: skip
        yield KernelCase(
            name=f"triton-moe-w8a16-{name}", kernel="triton.moe_experts:moe_w8a16", draw=_experts(f"w8a16-{name}", dtype=dtype),
            options=how,
        )  # fmt: skip
    yield KernelCase(
        name="triton-moe-fp8-tiles",
        kernel="triton.moe_experts:moe_fp8_tiles",
        draw=_experts("fp8-tiles", wide=True),
        architectures=FROM_ADA,
    )
    yield KernelCase(
        name="triton-moe-mxfp8", kernel="triton.moe_experts:moe_mxfp8", draw=_experts("mxfp8", block=128, unpacked=4, wide=True),
        architectures=FROM_ADA,
    )  # fmt: skip
    yield KernelCase(
        name="triton-moe-nvfp4", kernel="triton.moe_experts:moe_nvfp4", draw=_experts("nvfp4", block=128, unpacked=8, wide=True),
        architectures=FROM_ADA, note="before Blackwell it takes Triton 3.8",
    )  # fmt: skip


def _layers() -> Iterator[KernelCase]:
    exponential = "the GPU's exp2 is not modelled by Triton's interpreter: only with it alike do results agree"
    for name, dtype, unpacked in (("w8a8", _BF16, 0), ("w8a16-int8", np.float16, 0), ("fp8-tiles", _BF16, 0), ("mxfp8", _BF16, 4),
                                  ("nvfp4", _BF16, 8)):  # fmt: skip
        yield KernelCase(
            name=f"triton-moe-layer-{name}", kernel="triton.moe_layer:moe_layer", draw=_layer(name, dtype, unpacked), arguments=_of_layer,
            options={"scheme": name}, outputs=("hidden",), architectures=EVERY if name.startswith("w8") else FROM_ADA, note=exponential,
        )  # fmt: skip
    yield KernelCase(
        name="triton-moe-swiglu", kernel="triton.moe_layer:swiglu", draw=_gated, outputs=("values",), note=exponential,
        arguments=lambda arrays: {**arrays, "dtype": "bfloat16"},
    )  # fmt: skip
    sums = "rows in order; atomics add in whatever order they come"
    yield KernelCase(
        name="triton-moe-sum-bf16",
        kernel="triton.moe_sums:add_rows",
        draw=_summed("bf16"),
        options={"top_k": 3},
        outputs=("sums",),
        note=sums,
    )
    yield KernelCase(
        name="triton-moe-sum-f16-once", kernel="triton.moe_sums:add_rows", draw=_summed("f16", round_each=False),
        options={"top_k": 3, "round_each": False}, outputs=("sums",), note=sums,
    )  # fmt: skip


def _quantizers() -> Iterator[KernelCase]:
    yield KernelCase(
        name="triton-quantize-int8", kernel="triton.moe_layer:quantize_int8_rows", draw=_int8_rows, outputs=("codes", "scales")
    )
    pair = ("elements", "scales")
    yield KernelCase(
        name="triton-quantize-fp8", kernel="triton.fp8:quantize_rows", draw=_quantizer(32, 256, _fp8_quantized), outputs=pair,
        architectures=FROM_ADA,
    )  # fmt: skip
    for side in ("activations", "weights"):
        yield KernelCase(
            name=f"triton-quantize-fp8-tiles-{side}", kernel=f"triton.fp8_blockwise:quantize_{side}", outputs=pair,
            architectures=FROM_ADA, draw=_quantizer(256, 256, _quantized_by(getattr(fp8_blockwise, f"quantize_{side}"))),
        )  # fmt: skip
    for name, module, by_rows, by_columns in (  # MXFP4 has no e4m3 in it
        ("mxfp8", "mxfp8", mxfp8.quantize_rows, mxfp8.quantize_columns),
        ("mxfp4", "mxfp6_mxfp4", mxfp6_mxfp4.quantize_rows, mxfp6_mxfp4.quantize_columns),
    ):
        inner = "" if name == "mxfp8" else "mxfp4_"
        yield KernelCase(
            name=f"triton-quantize-{name}-rows", kernel=f"triton.{module}:quantize_{inner}rows", outputs=pair, architectures=FROM_ADA,
            draw=_quantizer(32, 256, _quantized_by(by_rows), to_e4m3=name == "mxfp8"),
        )  # fmt: skip
        yield KernelCase(
            name=f"triton-quantize-{name}-columns", kernel=f"triton.{module}:quantize_{inner}columns", outputs=pair,
            architectures=FROM_ADA,
            draw=_quantizer(64, 96, _quantized_by(by_columns, transposed=True), to_e4m3=name == "mxfp8"),
        )  # fmt: skip
    yield KernelCase(
        name="triton-quantize-fp8-blocks", kernel="triton.attention:quantize_fp8_blocks", draw=_turned_blocks, outputs=pair,
        architectures=FROM_ADA,
    )  # fmt: skip
    for name, side in (
        ("int8", "keys"),
        ("int8-kivi", "values"),
        ("int4-kivi", "keys"),
        ("fp8", "keys"),
        ("mxfp8", "keys"),
        ("nvfp4", "keys"),
    ):
        yield KernelCase(
            name=f"triton-quantize-kv-{name}", kernel="triton.kv_cache:quantize_tokens", draw=_kv_tokens(name, side),
            options={"cache": name, "side": side}, outputs=("words", "scales", *(["zeros"] if name.endswith("kivi") else [])),
            architectures=FROM_ADA if name in ("fp8", "mxfp8", "nvfp4") else EVERY,
        )  # fmt: skip
    yield KernelCase(
        name="triton-quantize-asymmetric-int8", kernel="triton.asymmetric:quantize_rows", draw=_quantized_rows_with_zeros,
        outputs=("codes", "scales", "zeros"),
    )  # fmt: skip
    yield KernelCase(
        name="triton-quantize-nvfp4", kernel="triton.nvfp4:quantize", draw=_quantizer(32, 256, _nvfp4_quantized),
        outputs=(*pair, "tensor_scale"), architectures=FROM_ADA,
    )  # fmt: skip
    yield KernelCase(name="triton-quantize-hadamard", kernel="triton.training:hadamard", draw=_transformed, outputs=("transformed",))
    yield KernelCase(
        name="triton-quantize-nvfp4-stochastic", kernel="triton.training:quantize_nvfp4_stochastic", draw=_nvfp4_stochastic,
        outputs=(*pair, "tensor_scale"), architectures=FROM_ADA,
    )  # fmt: skip


def _jax() -> Iterator[KernelCase]:
    yield KernelCase(name="jax-moe-w8a8", kernel="jax.moe:moe_w8a8", draw=_jax_experts)
    yield KernelCase(name="jax-fp8", kernel="jax.fp8:fp8_matmul", draw=_jax_fp8, architectures=FROM_ADA)
    yield KernelCase(name="jax-fp8-linear", kernel="jax.fp8:fp8_linear", draw=_jax_linear, architectures=FROM_ADA)
    yield KernelCase(
        name="jax-fp8-tiles", kernel="jax.fp8_blockwise:fp8_blockwise_matmul", draw=_fp8_tiles("divide"), architectures=FROM_ADA
    )
    yield KernelCase(name="jax-mxfp8", kernel="jax.block_scaled:mxfp8_matmul", draw=_jax_mxfp8, architectures=BLACKWELL)
    yield KernelCase(name="jax-nvfp4", kernel="jax.block_scaled:nvfp4_matmul", draw=_jax_nvfp4, architectures=BLACKWELL)
    yield KernelCase(
        name="jax-w4a16-awq", kernel="jax.w4a16:awq_matmul", draw=_awq(np.float16, 64, 64, promote_every=128), options={"block_k": 128},
        note="Pallas",
    )  # fmt: skip
    yield KernelCase(name="jax-w8a8", kernel="jax.w8a8:w8a8_matmul", draw=_int8)
    yield KernelCase(name="jax-llm-int8", kernel="jax.w8a8:llm_int8_matmul", draw=_llm_int8)
    yield KernelCase(name="jax-w4a8", kernel="jax.w8a8:w4a8_matmul", draw=_w4a8(64))
    yield KernelCase(name="jax-asymmetric-int8", kernel="jax.w8a8:asymmetric_matmul", draw=_asymmetric(weights=True, by_dot=True))
    yield KernelCase(name="jax-w4a4", kernel="jax.w8a8:w4a4_matmul", draw=_w4a4)
    for name, dtype, kind, group in (("int8-f16", np.float16, "int8", 64), ("e4m3-bf16-channel", _BF16, "e4m3", 0)):
        yield KernelCase(
            name=f"jax-w8a16-{name}", kernel="jax.narrow_weights:w8a16_matmul", draw=_w8a16(kind, dtype, group),
            options={"kind": kind, "grouped": bool(group)},
        )  # fmt: skip
    for group in (0, 64):
        yield KernelCase(
            name=f"jax-w4a8-fp8-{'group' if group else 'channel'}", kernel="jax.narrow_weights:w4a8_fp8_matmul", draw=_w4a8_fp8(group),
            options={"grouped": bool(group)}, architectures=FROM_ADA,
        )  # fmt: skip
    yield KernelCase(name="jax-quantize-fp8", kernel="jax.fp8:quantize", draw=_jax_quantized, architectures=FROM_ADA)


def _cuda() -> Iterator[KernelCase]:
    yield KernelCase(name="cuda-w4a16", kernel="cuda.w4a16:w4a16_matmul", draw=_cuda_w4a16, arguments=_of_w4a16, note="NVRTC")
    yield KernelCase(
        name="cuda-sage2", kernel="cuda.sage2:sage2_attention", draw=_cuda_sage2, arguments=_of_sage2, options={"causal": True},
        architectures=FROM_ADA, note="NVRTC; exp2 by the model of ex2.approx",
    )  # fmt: skip
    yield KernelCase(
        name="cuda-fp8-blockwise", kernel="cuda.fp8_blockwise:fp8_blockwise_matmul", draw=_cuda_fp8_tiles, arguments=_of_fp8_tiles,
        architectures=("sm_90a",), note="NVRTC",
    )  # fmt: skip
    for scheme in ("mxfp8", "nvfp4"):
        for group, suffix in ((1, ""), (2, "-pair")):
            yield KernelCase(
                name=f"cuda-{scheme}{suffix}", kernel="cuda.block_scaled:block_scaled_matmul", draw=_cuda_scaled(scheme),
                arguments=_of_scaled, options={"group": group}, architectures=BLACKWELL[:3], note="NVRTC",
            )  # fmt: skip
    yield KernelCase(
        name="cuda-asymmetric-int8", kernel="cuda.integers:asymmetric_matmul", draw=_cuda_asymmetric, arguments=_of_asymmetric, note="NVRTC"
    )
    yield KernelCase(name="cuda-w4a4", kernel="cuda.integers:w4a4_matmul", draw=_cuda_w4a4, arguments=_of_w4a4, note="NVRTC")
    for name, dtype, kind, group in (
        ("int8-f16-channel", np.float16, "int8", 0), ("int8-bf16", _BF16, "int8", 64), ("e4m3-f16", np.float16, "e4m3", 64),
    ):  # fmt: skip
        yield KernelCase(
            name=f"cuda-w8a16-{name}", kernel="cuda.narrow_weights:w8a16_matmul", draw=_cuda_w8a16(kind, dtype, group),
            arguments=_of_w8a16, note="NVRTC",
        )  # fmt: skip
    for group in (0, 64):
        yield KernelCase(
            name=f"cuda-w4a8-fp8-{'group' if group else 'channel'}", kernel="cuda.narrow_weights:w4a8_fp8_matmul",
            draw=_cuda_w4a8_fp8(group), arguments=_of_w4a8_fp8, architectures=FROM_ADA, note="NVRTC",
        )  # fmt: skip


KERNEL_CASES: Final = {
    case.name: case for case in (*_matrices(), *_integers_attention_experts(), *_mixtures(), *_layers(), *_quantizers(), *_jax(), *_cuda())
}
"""Every case by its name."""

__all__ = ["KERNEL_CASES", "Drawn", "KernelCase", "MakeDots", "case_of_kernel"]
