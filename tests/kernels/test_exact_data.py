"""Every Triton kernel of kernels/, compiled, on data of which every order of sums gives one result: NumPy's, to the last bit.

Elements are small integers and scales powers of two; what differs then is no rounding: it is movement, a mask, a layout or a scale. The
rows of `mmabits diff` give shapes and layouts; their numbers are replaced, and the results computed here from the bytes that are passed.
Attention, routers and gated layers are left out, but for attention over caches: there are exponentials in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import operands
import pytest
from arrays import tensor
from exact_caches import CACHE_MAKERS

import mmabits
from mmabits.conformance.diff.kernel_cases import KERNEL_CASES, KernelCase

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Generator = np.random.Generator
ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
QUICK = {
    "sm_80": ("triton-matmul-f16", "triton-w4a16-gptq-f16"), "sm_89": ("triton-fp8", "triton-w4a8-fp8-group"),
    "sm_90a": ("triton-persistent-f16", "triton-cached-int4-kivi", "triton-moe-fp8-tiles"),
    "sm_100a": ("triton-nvfp4", "triton-moe-nvfp4"), "sm_120a": ("triton-quantize-mxfp4-rows",),
}  # fmt: skip
BF16, E4M3, E5M2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def small(rng: Generator, shape: tuple[int, ...], dtype: Any = np.float64, most: int = 2) -> Array:
    return rng.integers(-most, most + 1, shape).astype(dtype)


def powers(rng: Generator, like: Array) -> Array:
    """0.5, 1 or 2; as ue8m0 where `like` holds bytes."""
    exponents = rng.integers(-1, 2, like.shape)
    return (exponents + 127).astype(np.uint8) if like.dtype == np.uint8 else (2.0**exponents).astype(like.dtype)


def wide(array: Array) -> Array:
    """In float64; bytes are ue8m0."""
    return 2.0 ** (array.astype(np.float64) - 127) if array.dtype == np.uint8 else array.astype(np.float64)


def spread(scales: Array, shape: tuple[int, ...]) -> Array:
    """Scales of blocks, for each element; edges may be part of a block."""
    for axis, size in enumerate(shape):
        block = next(each for each in (1, 16, 32, 64, 128) if -(-size // each) == scales.shape[axis]) if scales.shape[axis] != 1 else size
        scales = np.repeat(scales, block, axis)
        scales = scales[(slice(None),) * axis + (slice(size),)]
    return scales


def nibbles(words: Array, axis: int, order: tuple[int, ...] = tuple(range(8))) -> Array:
    """The 4-bit codes of int32 words or bytes along an axis, the lowest first or in a given order."""
    shifts = np.array([4 * each for each in order[: 2 * words.itemsize]], words.dtype)
    codes = (np.expand_dims(words, -1) >> shifts & words.dtype.type(15)).astype(np.int64)
    codes = np.moveaxis(codes, -1, axis % words.ndim + 1)
    shape = list(words.shape)
    shape[axis] *= len(shifts)
    return codes.reshape(shape)


AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)

Made = tuple[Arrays, Arrays]


def plain(rng: Generator, given: Arrays) -> Made:
    a, b = (small(rng, given[name].shape, given[name].dtype) for name in "ab")
    return {"a": a, "b": b}, {"out": wide(a) @ wide(b)}


def by_rows_and_columns(rng: Generator, given: Arrays) -> Made:
    """FP8 and INT8: x with scales of rows, w of columns, stored N x K in FP8."""
    new = {name: powers(rng, array) if "scales" in name else small(rng, array.shape, array.dtype) for name, array in given.items()}
    w = wide(new["w"]).T if new["w"].dtype != np.int8 else new["w"].astype(np.float64)
    x, columns = new["x"].astype(np.float64), new["w_scales"].reshape(1, -1)
    return new, {"out": x @ w * new["x_scales"].reshape(-1, 1).astype(np.float64) * columns}


def tiled(rng: Generator, given: Arrays) -> Made:
    new = {name: powers(rng, array) if "scales" in name else small(rng, array.shape, array.dtype) for name, array in given.items()}
    x, w = (wide(new[name]) * spread(wide(new[f"{name}_scales"]), new[name].shape) for name in "xw")
    return new, {"out": x @ w.T}


def blocks(*, transposed: bool = True, ending: str = "scales", swizzled: bool = False) -> Callable[[Generator, Arrays], Made]:
    """Scales of 32 elements of K."""

    def made(rng: Generator, given: Arrays) -> Made:
        new = {name: small(rng, given[name].shape, given[name].dtype) for name in "ab"}
        sides = {}
        for name in "ab":
            values = wide(new[name]) if transposed or name == "a" else wide(new[name]).T
            scales = powers(rng, np.empty((values.shape[0], values.shape[1] // 32), np.uint8))
            sides[name] = values * np.repeat(wide(scales), 32, 1)
            new[f"{name}_{ending}"] = swizzled_scales(scales) if swizzled else scales
        return new, {"out": sides["a"] @ sides["b"].T}

    return made


def swizzled_scales(scales: Array) -> Array:
    """Atoms of 128 x 4 scales, row r of them at (r % 32) * 16 + r // 32 * 4, as the PTX manual has them."""
    rows, columns = (-(-size // each) for size, each in zip(scales.shape, (128, 4), strict=True))
    whole = np.zeros((rows * 128, columns * 4), np.uint8)
    whole[: scales.shape[0], : scales.shape[1]] = scales
    atoms = whole.reshape(rows, 4, 32, columns, 4).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(atoms).ravel()


def mxfp6(rng: Generator, given: Arrays) -> Made:
    tables = {"a": np.array([0, 8, 16, 40, 48]), "b": np.array([0, 12, 16, 44, 48])}  # 0, 1, 2, -1, -2 in e2m3 and in e3m2
    new, sides = {}, []
    for name, codes in tables.items():
        chosen = rng.integers(0, 5, (given[name].shape[0], given[name].shape[1] // 3 * 4))
        bits = (codes[chosen][..., None] >> np.arange(6) & 1).reshape(len(chosen), -1)
        new[name] = np.packbits(bits.astype(np.uint8), axis=-1, bitorder="little")
        new[f"{name}_scales"] = powers(rng, given[f"{name}_scales"])
        sides.append(np.array([0, 1, 2, -1, -2.0])[chosen] * np.repeat(wide(new[f"{name}_scales"]), 32, 1))
    return new, {"out": sides[0] @ sides[1].T}


def _fp4_codes(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Two of 0, 1, 2, -1, -2 to a byte."""
    low, high = (np.array([0, 2, 4, 10, 12], np.uint8)[rng.integers(0, 5, shape)] for _ in range(2))
    return low | high << np.uint8(4)


def fp4(rng: Generator, given: Arrays) -> Made:
    """MXFP4, and NVFP4 with scales of 16 elements and of whole matrices."""
    new, sides = {}, []
    for name in "ab":
        new[name] = _fp4_codes(rng, given[name].shape)
        new[f"{name}_scales"] = powers(rng, given[f"{name}_scales"])
        values = E2M1[nibbles(new[name], 1)]
        values = values * np.repeat(wide(new[f"{name}_scales"]), values.shape[1] // new[f"{name}_scales"].shape[1], 1)
        if f"{name}_scale" in given:
            new[f"{name}_scale"] = powers(rng, given[f"{name}_scale"])
            values = values * new[f"{name}_scale"].astype(np.float64)
        sides.append(values)
    return new, {"out": sides[0] @ sides[1].T}


def awq_weights(new: Arrays) -> Array:
    codes, zeros = (nibbles(new[name], -1, AWQ_ORDER) for name in ("qweight", "qzeros"))
    group = codes.shape[-2] // zeros.shape[-2]
    return (codes - np.repeat(zeros, group, -2)) * np.repeat(new["scales"].astype(np.float64), group, -2)


def words(rng: Generator, like: Array) -> Array:
    return rng.integers(-(2**31), 2**31, like.shape).astype(np.int32)


def awq(rng: Generator, given: Arrays) -> Made:
    new = {"x": small(rng, given["x"].shape, given["x"].dtype), "scales": powers(rng, given["scales"])}
    new |= {name: words(rng, given[name]) for name in ("qweight", "qzeros")}
    return new, {"out": wide(new["x"]) @ awq_weights(new)}


def gptq(rng: Generator, given: Arrays) -> Made:
    new = {"x": small(rng, given["x"].shape, given["x"].dtype), "scales": powers(rng, given["scales"]), "g_idx": given["g_idx"]}
    new |= {name: words(rng, given[name]) for name in ("qweight", "qzeros")}
    zeros = nibbles(new["qzeros"], 1)[new["g_idx"]]
    return new, {"out": wide(new["x"]) @ ((nibbles(new["qweight"], 0) - zeros) * new["scales"].astype(np.float64)[new["g_idx"]])}


def llm_int8(rng: Generator, given: Arrays) -> Made:
    names = ("x", "w", "outliers", "w16")
    new = {name: small(rng, given[name].shape, given[name].dtype) for name in names}
    new |= {name: powers(rng, given[name]) for name in ("x_scales", "w_scales")} | {"columns": given["columns"]}
    x, w = new["x"].astype(np.float64), new["w"].astype(np.float64)
    regular = x @ w * new["x_scales"].reshape(-1, 1) * new["w_scales"].reshape(1, -1)
    return new, {"out": regular + wide(new["outliers"]) @ wide(new["w16"])[given["columns"]]}


def w4a8(rng: Generator, given: Arrays) -> Made:
    codes = rng.integers(-7, 8, (8 * given["words"].shape[0], given["words"].shape[1]))
    packed = sum((codes[place::8] & 15).astype(np.uint32) << np.uint32(4 * place) for place in range(8))
    new = {"x": small(rng, given["x"].shape, np.int8), "words": packed.view(np.int32)}
    new |= {name: powers(rng, given[name]) for name in ("x_scales", "output_scales")}
    weights = codes * 16.0
    if "group_scales" in given:
        new["group_scales"] = (2.0 ** rng.integers(0, 3, given["group_scales"].shape)).astype(np.float16)
        weights = codes * np.repeat(new["group_scales"].astype(np.float64), 64, 0)
    sums = new["x"].astype(np.float64) @ weights
    return new, {"out": sums * new["x_scales"].reshape(-1, 1) * new["output_scales"].reshape(1, -1)}


def _experts(rng: Generator, given: Arrays, new: Arrays, weights: Array, x: Array | None = None) -> Made:
    """Rows of `choices` in blocks of an expert each; a choice is token * top_k + place."""
    new |= {"weights": powers(rng, given["weights"]), "choices": given["choices"], "block_experts": given["block_experts"]}
    tokens, top = new["weights"].shape
    out, values = np.zeros((tokens, weights.shape[-1])), wide(new["x"]) if x is None else x
    for choices, expert in zip(given["choices"].reshape(len(given["block_experts"]), -1), given["block_experts"], strict=True):
        for choice in choices[choices < tokens * top]:
            token, place = divmod(int(choice), top)
            out[token] += values[token] @ weights[expert] * float(new["weights"][token, place])
    return new, {"out": out}


def moe_awq(rng: Generator, given: Arrays) -> Made:
    new = {"x": small(rng, given["x"].shape, given["x"].dtype), "scales": powers(rng, given["scales"])}
    new |= {name: words(rng, given[name]) for name in ("qweight", "qzeros")}
    return _experts(rng, given, new, awq_weights(new))


def moe_mxfp4(rng: Generator, given: Arrays) -> Made:
    new = {"x": small(rng, given["x"].shape, given["x"].dtype), "codes": _fp4_codes(rng, given["codes"].shape)}
    new["scales"] = powers(rng, given["scales"])
    weights = E2M1[nibbles(new["codes"], -1)] * np.repeat(wide(new["scales"]), 32, -1)
    return _experts(rng, given, new, weights.swapaxes(1, 2))


def moe_w8a8(rng: Generator, given: Arrays) -> Made:
    new = {name: small(rng, given[name].shape, np.int8) for name in "xw"}
    new |= {name: powers(rng, given[name]) for name in ("x_scales", "w_scales")}
    x = new["x"] * new["x_scales"].astype(np.float64)[:, None]
    return _experts(rng, given, new, (new["w"] * new["w_scales"].astype(np.float64)[:, :, None]).swapaxes(1, 2), x)


def moe_w8a16(kind: Any) -> Callable[[Generator, Arrays], Made]:
    """Four codes to a word, the lowest K in the lowest byte."""

    def made(rng: Generator, given: Arrays) -> Made:
        experts, quarter, n = given["words"].shape
        codes = small(rng, (experts, 4 * quarter, n), kind)
        parts = codes.view(np.uint8).reshape(experts, quarter, 4, n).astype(np.uint32)
        packed = sum(parts[:, :, place] << np.uint32(8 * place) for place in range(4))
        new = {"x": small(rng, given["x"].shape, given["x"].dtype), "words": packed.view(np.int32), "scales": powers(rng, given["scales"])}
        scales = np.repeat(new["scales"].astype(np.float64), codes.shape[1] // new["scales"].shape[1], 1)
        return _experts(rng, given, new, codes.astype(np.float64) * scales)

    return made


def moe_scaled(rng: Generator, given: Arrays) -> Made:
    """FP8 in tiles, MXFP8 and NVFP4."""
    narrow = given["x"].dtype == np.uint8
    new = {name: _fp4_codes(rng, given[name].shape) if narrow else small(rng, given[name].shape, given[name].dtype) for name in "xw"}
    new |= {name: powers(rng, given[name]) for name in given if "scale" in name}
    x, w = (E2M1[nibbles(new[name], -1)] if narrow else wide(new[name]) for name in "xw")
    x = x * spread(wide(new["x_scales"]), x.shape)
    w = np.stack([each * spread(scales, each.shape) for each, scales in zip(w, wide(new["w_scales"]), strict=True)])
    if narrow:
        x, w = x * float(new["x_tensor_scale"][0]), w * new["w_tensor_scales"].astype(np.float64)[:, None, None]
    return _experts(rng, given, new, w.swapaxes(1, 2), x)


def moe_sum(rng: Generator, given: Arrays) -> Made:
    rows = small(rng, given["rows"].shape, given["rows"].dtype, most=40)
    return {"rows": rows}, {"sums": wide(rows).reshape(-1, 3, rows.shape[1]).sum(axis=1)}


def int8_quantizer(rng: Generator, given: Arrays) -> Made:
    codes = small(rng, given["values"].shape, np.int8, most=127)
    codes[:, 7] = 127
    scales = powers(rng, np.empty(len(codes), np.float32))
    return {"values": codes * scales[:, None]}, {"codes": codes, "scales": scales}


def quantizer(block: tuple[int, int], largest: float, scale_dtype: Any, dtype: Any) -> Callable[[Generator, Arrays], Made]:
    """Integers that the format has, times a power of two for each block, whose greatest element is the format's greatest."""

    def made(rng: Generator, given: Arrays) -> Made:
        shape = given["values"].shape
        size = tuple(length if each == 0 else each for each, length in zip(block, shape, strict=True))
        elements = small(rng, shape, most=2)
        elements[tuple(slice(None, None, each) for each in size)] = largest
        exponents = rng.integers(-2, 3, tuple(-(-length // each) for length, each in zip(shape, size, strict=True)))
        values = elements * np.repeat(np.repeat(2.0**exponents, size[0], 0), size[1], 1)[: shape[0], : shape[1]]
        scales = (exponents + 127.0) if scale_dtype == np.uint8 else 2.0**exponents
        turned = block[0] == 32  # along columns: results are transposed
        found: Arrays = {"elements": elements.T if turned else elements, "scales": scales.T if turned else scales}
        if dtype == "e2m1":
            codes = np.argmax(found["elements"][..., None] == E2M1, -1).astype(np.uint8)
            found["elements"] = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
        else:
            found["elements"] = found["elements"].astype(dtype)
        if block == (1, 0):
            found["scales"] = found["scales"].ravel()
        return {"values": values.astype(np.float32)}, {"elements": found["elements"], "scales": found["scales"].astype(scale_dtype)}

    return made


def nvfp4_quantizer(rng: Generator, given: Arrays) -> Made:
    """The greatest element is 6 * 448 * 4: the tensor's scale is 4, each block's 448 / 2^k."""
    rows, columns = given["values"].shape
    exponents = rng.integers(0, 4, (rows, columns // 16))
    exponents[0, 0] = 0
    elements = small(rng, (rows, columns), most=2)
    elements[:, ::16] = 6
    values = elements * np.repeat(448 / 2.0**exponents, 16, 1) * 4
    codes = np.argmax(elements[..., None] == E2M1, -1).astype(np.uint8)
    wanted = {"elements": codes[:, ::2] | codes[:, 1::2] << np.uint8(4), "scales": (448 / 2.0**exponents).astype(E4M3)}
    return {"values": values.astype(np.float32)}, {**wanted, "tensor_scale": np.full(1, 4, np.float32)}


def transformed(rng: Generator, given: Arrays) -> Made:
    """Sums of 16 small integers, and a fourth of them."""
    values, signs = small(rng, given["values"].shape, np.float32, most=9), rng.choice([-1.0, 1.0], 16).astype(np.float32)
    lanes = np.arange(16)
    signs_of_h = (-1.0) ** np.array([[bin(row & column).count("1") for column in lanes] for row in lanes])
    runs = (values.reshape(-1, 16) * signs).astype(np.float64)
    return {"values": values, "signs": signs}, {"transformed": (runs @ signs_of_h / 4).reshape(values.shape)}


def nvfp4_stochastic(rng: Generator, given: Arrays) -> Made:
    """Values that e2m1 holds: random bits change nothing."""
    made, wanted = nvfp4_quantizer(rng, given)
    return {**made, "random_bits": rng.integers(0, 1 << 32, given["values"].shape, dtype=np.uint32).view(np.int32)}, wanted


def asymmetric(rng: Generator, given: Arrays) -> Made:
    """Codes about zero points that are anything."""
    new = {name: powers(rng, given[name]) for name in ("x_scales", "w_scales")}
    new["x_zeros"] = rng.integers(2, 254, given["x_zeros"].shape).astype(np.int32)
    columns = rng.integers(-126, 126, given["w_scales"].shape).astype(np.int32) if "w_zeros" in given else 0
    x, w = small(rng, given["x"].shape), small(rng, given["w"].shape)
    new["x"] = (x + new["x_zeros"][:, None]).astype(np.uint8)
    new["w"] = (w + columns).astype(np.int8)
    new["w_sums"] = new["w"].sum(axis=0, dtype=np.int32)
    if "w_zeros" in given:
        new["w_zeros"] = np.asarray(columns)
    return new, {"out": x @ w * new["x_scales"][:, None] * new["w_scales"]}


def asymmetric_quantizer(rng: Generator, given: Arrays) -> Made:
    """Each row has the codes 0 and 255, so that its scale is the power of two that it was made with."""
    codes, zeros = rng.integers(0, 256, given["values"].shape), rng.integers(0, 256, len(given["values"]))
    codes[:, 3], codes[:, 77] = 0, 255
    scales = 2.0 ** rng.integers(-3, 4, len(codes))
    values = ((codes - zeros[:, None]) * scales[:, None]).astype(np.float32)
    wanted = {"codes": codes.astype(np.uint8), "scales": scales.astype(np.float32), "zeros": zeros.astype(np.int32)}
    return {"values": values}, wanted


def w4a4(rng: Generator, given: Arrays) -> Made:
    new, sides = {}, []
    for name in "xw":
        codes = rng.integers(-8, 8, (len(given[name]), 2 * given[name].shape[1]))
        new[name] = ((codes[:, ::2] & 15) | (codes[:, 1::2] & 15) << 4).astype(np.uint8)
        new[f"{name}_scales"] = powers(rng, given[f"{name}_scales"])
        sides.append(codes * new[f"{name}_scales"][:, None].astype(np.float64))
    return new, {"out": sides[0] @ sides[1].T}


def w4a8_fp8(rng: Generator, given: Arrays) -> Made:
    """The launcher's scales hold the 512."""
    codes = rng.integers(-8, 8, (8 * given["words"].shape[0], given["words"].shape[1]))
    packed = sum((codes[place::8] & 15).astype(np.uint32) << np.uint32(4 * place) for place in range(8))
    new = {"x": small(rng, given["x"].shape, E4M3), "words": packed.view(np.int32), "x_scales": powers(rng, given["x_scales"])}
    new["scales"] = powers(rng, given["scales"]) * np.float16(512)
    weights = codes * np.repeat(new["scales"].astype(np.float64) / 512, len(codes) // len(new["scales"]), 0)
    return new, {"out": wide(new["x"]) @ weights * new["x_scales"][:, None]}


def w8a16(stored: Any) -> Callable[[Generator, Arrays], Made]:
    """Integers, as far as the type has them all."""
    largest = 127 if stored == np.int8 else 16

    def made(rng: Generator, given: Arrays) -> Made:
        codes = small(rng, (4 * given["words"].shape[0], given["words"].shape[1]), stored, largest)
        parts = codes.view(np.uint8).astype(np.uint32)
        packed = sum(parts[place::4] << np.uint32(8 * place) for place in range(4))
        new = {"x": small(rng, given["x"].shape, given["x"].dtype), "words": packed.view(np.int32)}
        new["scales"] = powers(rng, given["scales"])
        weights = wide(codes.astype(np.float32)) * np.repeat(wide(new["scales"]), len(codes) // len(new["scales"]), 0)
        return new, {"out": wide(new["x"]) @ weights}

    return made


def mxfp8_by_mxfp4(rng: Generator, given: Arrays) -> Made:
    new = {"a": small(rng, given["a"].shape, E4M3), "b": _fp4_codes(rng, given["b"].shape)}
    new |= {name: powers(rng, given[name]) for name in ("a_scales", "b_scales")}
    left, right = (
        values * np.repeat(wide(new[f"{name}_scales"]), 32, 1)
        for name, values in (("a", wide(new["a"])), ("b", E2M1[nibbles(new["b"], 1)]))
    )
    return new, {"out": left @ right.T}


MAKERS: dict[str, Callable[[Generator, Arrays], Made]] = {
    **dict.fromkeys(("triton-matmul-f16", "triton-matmul-bf16", "triton-matmul-tf32", "triton-matmul-e4m3"), plain),
    **dict.fromkeys(("triton-persistent-f16", "triton-split-k-f16"), plain),
    "triton-dot-scaled-e4m3-e5m2": blocks(transposed=False, ending="scale"), "triton-block-scaled-e4m3-e5m2": blocks(),
    **dict.fromkeys(("triton-fp8", "triton-fp8-gradient", "triton-fp8-accurate", "triton-w8a8"), by_rows_and_columns),
    **dict.fromkeys(("triton-fp8-tiles-divide", "triton-fp8-tiles-power-of-two"), tiled),
    "triton-mxfp8": blocks(), "triton-mxfp8-swizzled": blocks(swizzled=True),
    "triton-mxfp6": mxfp6, "triton-mxfp4": fp4, "triton-nvfp4": fp4,
    "triton-w4a16-awq-f16": awq, "triton-w4a16-awq-bf16": awq, "triton-w4a16-gptq-f16": gptq, "triton-llm-int8": llm_int8,
    "triton-w4a8-channel": w4a8, "triton-w4a8-group": w4a8, "triton-moe-w4a16": moe_awq, "triton-moe-mxfp4": moe_mxfp4,
    "triton-moe-w8a8": moe_w8a8, **dict.fromkeys(("triton-moe-w8a16-int8", "triton-moe-w8a16-int8-groups"), moe_w8a16(np.int8)),
    **dict.fromkeys(("triton-moe-w8a16-e4m3", "triton-moe-w8a16-e4m3-groups"), moe_w8a16(E4M3)),
    **dict.fromkeys(("triton-moe-fp8-tiles", "triton-moe-mxfp8", "triton-moe-nvfp4"), moe_scaled),
    **dict.fromkeys(("triton-moe-sum-bf16", "triton-moe-sum-f16-once"), moe_sum), "triton-quantize-int8": int8_quantizer,
    "triton-quantize-fp8": quantizer((1, 0), 448, np.float32, E4M3),
    "triton-quantize-fp8-tiles-activations": quantizer((1, 128), 448, np.float32, E4M3),
    "triton-quantize-fp8-tiles-weights": quantizer((128, 128), 448, np.float32, E4M3),
    "triton-quantize-mxfp8-rows": quantizer((1, 32), 256, np.uint8, E4M3),
    "triton-quantize-mxfp8-columns": quantizer((32, 1), 256, np.uint8, E4M3),
    "triton-quantize-mxfp4-rows": quantizer((1, 32), 4, np.uint8, "e2m1"),
    "triton-quantize-mxfp4-columns": quantizer((32, 1), 4, np.uint8, "e2m1"), "triton-quantize-nvfp4": nvfp4_quantizer,
    "triton-quantize-hadamard": transformed, "triton-quantize-nvfp4-stochastic": nvfp4_stochastic,
    "triton-asymmetric-int8": asymmetric, "triton-asymmetric-int8-activations": asymmetric,
    "triton-quantize-asymmetric-int8": asymmetric_quantizer, "triton-w4a4": w4a4,
    "triton-w4a8-fp8-channel": w4a8_fp8, "triton-w4a8-fp8-group": w4a8_fp8,
    **dict.fromkeys(("triton-w8a16-int8-f16", "triton-w8a16-int8-bf16-channel"), w8a16(np.int8)),
    **dict.fromkeys(("triton-w8a16-e4m3-bf16", "triton-w8a16-e4m3-f16-channel"), w8a16(E4M3)),
    "triton-mixed-mxfp8-mxfp4": mxfp8_by_mxfp4, **CACHE_MAKERS,
}  # fmt: skip
"""Operands and results, by the row's name."""
WITHOUT = {
    "triton-sage", "triton-sage2", "triton-fp8-attention", "triton-fp8-block-attention",
    "triton-route-softmax", "triton-route-chosen", "triton-route-groups",
    "triton-moe-swiglu", *(f"triton-moe-layer-{scheme}" for scheme in ("w8a8", "w8a16-int8", "fp8-tiles", "mxfp8", "nvfp4")),
}  # fmt: skip


def test_every_kernel_is_here() -> None:
    assert MAKERS.keys() | WITHOUT == {name for name, case in KERNEL_CASES.items() if case.framework == "triton"}


def compiled() -> list[Any]:
    found = []
    for arch in ARCHITECTURES:
        for name in MAKERS:
            if arch in KERNEL_CASES[name].architectures:
                marks = () if name in QUICK[arch] else pytest.mark.slow
                found.append(pytest.param(arch, KERNEL_CASES[name], marks=marks, id=f"{arch}-{name}"))
    return found


def _bytes(array: Any) -> bytes:
    found: bytes = (
        array.view(torch.uint8).numpy().tobytes() if array.dtype.itemsize == 1 else array.contiguous().view(torch.uint8).numpy().tobytes()
    )
    return found


@pytest.mark.parametrize(("arch", "case"), compiled())
def test_compiled_equals_numpy(arch: str, case: KernelCase) -> None:
    inputs, wanted = MAKERS[case.name](operands.generator(case.name), case.draw(0).inputs)
    inputs = {name: inputs[name] for name in case.draw(0).inputs}  # in the call's order
    with mmabits.emulate(arch, frameworks=["triton"], triton="compiled"):
        found = case.function(**{name: tensor(array) for name, array in inputs.items()}, **case.options)
    for name, got in zip(case.outputs, found if isinstance(found, tuple) else (found,), strict=True):
        want = wanted[name]
        if want.dtype == np.float64:
            exact = torch.from_numpy(want)
            assert torch.equal(exact.to(got.dtype).double(), exact), "the data is not exact"
            want_tensor = exact.to(got.dtype) + 0.0  # no -0
            got = got + 0.0
        else:
            want_tensor = tensor(want)
        assert got.shape == want_tensor.shape and got.dtype == want_tensor.dtype, name
        assert _bytes(got) == _bytes(want_tensor), name
