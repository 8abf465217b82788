"""Experts in INT8, FP8 tiles, MXFP8, NVFP4 and others: storage, products token by token, hard inputs, refusals."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any

import numpy as np
import pytest
from arrays import tensor

from mmabits import emulate
from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes import moe, moe_experts, w8a8
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.routing import within_capacity
from mmabits.kernels.schemes.table_moe import ROWS_MOE

F32 = np.float32
LAUNCHERS = {
    "w8a8": ("w8a8", {}), "w8a16-int8": ("w8a16", {}), "w8a16-e4m3-groups": ("w8a16", {"kind": "e4m3", "grouped": True}),
    "fp8-tiles": ("fp8_tiles", {}), "fp8-tiles-in-turn": ("fp8_tiles", {"in_turn": True}), "mxfp8": ("mxfp8", {}), "nvfp4": ("nvfp4", {}),
    "w4a16": ("w4a16", {}), "mxfp4": ("mxfp4", {}),
}  # fmt: skip


def normal(*shape: int, seed: int = 20261129) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def tables(routing: moe.Routing, block: int) -> list[Any]:
    aligned = moe.align(routing, block=block)
    return [tensor(each) for each in (routing.weights, aligned.choices, aligned.experts)]


def launched(name: str, x: Any, experts: moe_experts.Experts, routing: moe.Routing, arch: str) -> np.ndarray:
    from mmabits.kernels.triton import moe as older
    from mmabits.kernels.triton import moe_experts as in_triton

    launcher, options = LAUNCHERS[name]
    given = [tensor(array) for array in (*experts.scheme.stored(x).values(), *experts.pack().values())]
    block = 128 if name in ("mxfp8", "nvfp4") else 64
    with emulate(arch, frameworks=["triton"], triton="interpreted"):
        result: np.ndarray = getattr(older if name in ("w4a16", "mxfp4") else in_triton, f"moe_{launcher}")(
            *given, *tables(routing, block), **options
        ).numpy()
    return result


@pytest.mark.parametrize("row", ROWS_MOE, ids=lambda row: row.name)
def test_what_rows_name_is_there(row: Any) -> None:
    pytest.importorskip("triton")
    pytest.importorskip("jax")
    for name in (*row.quantizers, row.composition, row.triton, *filter(None, [row.jax])):
        module, _, function = name.partition(":")
        found = reduce(getattr, function.split("."), importlib.import_module(f"mmabits.kernels.{module}"))
        assert callable(found) and found.__doc__
    assert ("sm_80" in row.architectures) is not any(part in row.operands for part in ("e4m3", "e2m1", "rows above"))


@pytest.mark.parametrize("name", moe_experts.EXPERTS)
def test_experts_come_back_from_their_arrays(name: str) -> None:
    experts = moe_experts.quantize_experts(normal(3, 256, 16), name)
    arrays = experts.pack()
    again = moe_experts.Experts.unpack(arrays, name)
    assert again.shape == experts.shape == (256, 16)
    assert {key: (value.dtype, value.shape, value.tobytes()) for key, value in arrays.items()} == {
        key: (value.dtype, value.shape, value.tobytes()) for key, value in again.pack().items()
    }


@pytest.mark.parametrize("name", moe_experts.EXPERTS)
def test_the_grouped_product_is_that_of_each_token_alone(name: str) -> None:
    """Token by token through the scheme's own product; the order of the choices is that of the sum."""
    scheme = moe_experts.EXPERTS[name]
    experts, routing = moe_experts.quantize_experts(normal(4, 256, 16), scheme), moe.route(normal(7, 4, seed=3), top_k=3)
    x = scheme.activations(normal(7, 256, seed=4))
    got = moe_experts.moe_matmul(x, experts, routing, arch="sm_90a")
    for token in range(7):
        total = None
        for place in range(3):
            weights = experts.matrices[routing.experts[token, place]]
            row = scheme.multiply(scheme.rows(x, np.array([token])), weights, Dots(arch="sm_90a"))[0] * routing.weights[token, place]
            total = row if total is None else total + row
        assert np.array_equal(got[token], total)


def test_rows_for_each_choice() -> None:
    """The second product of a layer: tokens times top_k rows, each with the expert of its choice."""
    scheme = moe_experts.EXPERTS["w8a8"]
    experts, routing = moe_experts.quantize_experts(normal(4, 64, 8), scheme), moe.route(normal(5, 4, seed=3), top_k=2)
    x = scheme.activations(normal(10, 64, seed=4))
    got = moe_experts.moe_rows(x, experts, routing, arch="sm_90a", by_choice=True)
    for choice in range(10):
        one = w8a8.w8a8_matmul(scheme.rows(x, np.array([choice])), experts.matrices[routing.experts.reshape(-1)[choice]], arch="sm_90a")
        assert np.array_equal(got.reshape(10, 8)[choice], one[0])


def hard(name: str) -> np.ndarray:
    """Rows of zeros and subnormals, an outlier and, where the quantizer takes them, a NaN and infinities."""
    x = normal(9, 256, seed=5)
    x[0], x[1, :128], x[2, 7] = 0, x[1, :128] * F32(2.0**-130), 3e4
    if name != "w8a8":
        x[3, 9], x[4, 200], x[5, :3] = np.nan, np.inf, -np.inf
    return x


@pytest.mark.parametrize("arch", ["sm_90a", pytest.param("sm_100a", marks=pytest.mark.slow), pytest.param("sm_89", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["fp8-tiles", "nvfp4", *(pytest.param(each, marks=pytest.mark.slow) for each in LAUNCHERS)])
def test_hard_inputs(name: str, arch: str) -> None:
    """Kernel and composition on zeros, subnormals, outliers, NaN, infinities; an expert that nobody chose, weights that are no numbers."""
    pytest.importorskip("triton")
    from mmabits.conformance.diff.kernel_cases import _order

    scheme = moe_experts.EXPERTS[name]
    weights = normal(4, 256, 24)
    weights[0], weights[1, :, 3], weights[2, 5] = 0, F32(2.0**-20), 700
    experts, x = moe_experts.quantize_experts(weights, scheme), scheme.activations(hard(name))
    routing = moe.Routing(
        experts=np.array([[0, 1], [1, 2], [2, 0], [2, 1], [0, 2], [1, 0], [0, 1], [2, 1], [1, 2]], np.int32),
        weights=np.array([[1, -1], [2.0**-140, 0.5], [0, 0], [3e38, 3e38], [np.nan, 1], [np.inf, 1], [1, 1], [0.3, 0.7], [-0.0, 1]], F32),
        count=4,
    )  # fmt: skip
    orders = {"mxfp8": _order(arch, 4), "nvfp4": _order(arch, 8), "mxfp4": _order(arch, 8, tile=64, is_native_on=())}
    dots = Dots(arch=arch, k_order=orders.get(name, ()))
    got, wanted = launched(name, x, experts, routing, arch), moe_experts.moe_matmul(x, experts, routing, arch=dots)
    is_nan = np.isnan(wanted)
    assert np.array_equal(np.isnan(got), is_nan)
    assert np.array_equal(got[~is_nan].view(np.uint32), wanted[~is_nan].view(np.uint32))


@pytest.mark.parametrize("name", ["nvfp4", *(pytest.param(each, marks=pytest.mark.slow) for each in LAUNCHERS if each != "nvfp4")])
def test_choices_over_capacity_are_zeros(name: str) -> None:
    """Even where their rows would be no numbers; others are as without a capacity."""
    pytest.importorskip("triton")
    scheme = moe_experts.EXPERTS[name]
    experts, x = moe_experts.quantize_experts(normal(4, 256, 24), scheme), scheme.activations(normal(9, 256, seed=5))
    routing = moe.route(normal(9, 4, seed=6), top_k=2)
    some = within_capacity(routing, 3)
    assert some.dropped.size
    some.weights[~some.kept] = np.nan
    rows = moe_experts.moe_rows(x, experts, routing, arch="sm_90a")
    kept = moe_experts.weighted_rows(rows, routing)
    kept[~some.kept] = 0
    wanted = moe_experts.added_by_place(kept)
    assert np.array_equal(moe_experts.moe_matmul(x, experts, some, arch="sm_90a"), wanted)
    assert np.array_equal(launched(name, x, experts, some, "sm_90a"), wanted)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: moe_experts.quantize_experts(normal(2, 64, 8), "w8a9"), OperandError, "'w8a9'; did you mean w8a8"),
        (lambda: moe_experts.quantize_experts(normal(2, 64, 8).astype(np.float64), "w8a8"), OperandTypeError, "float32"),
        (lambda: moe_experts.Experts.unpack({"w": np.zeros((2, 8, 64), np.int8)}, "w8a8"), OperandError, "have an array 'w_scales', got w"),
        (lambda: moe_experts.Experts.unpack({"w": np.zeros((2, 8, 64), np.int8), "w_scales": np.zeros((3, 8), F32)}, "w8a8"), OperandError,
         "one number of experts"),
        (lambda: moe_experts.quantize_experts(normal(0, 64, 8), "w8a8"), OperandError, "one shape, got none"),
        (lambda: moe_experts.quantize_experts(normal(2, 48, 8), "mxfp8"), OperandError, "got 48"),
        (
            lambda: moe_experts.Experts(scheme=moe_experts.EXPERTS["mxfp8"], matrices=(w8a8.quantize_int8(normal(64, 8), axis=1),)),
            OperandTypeError, "experts in mxfp8 are ColumnBlocks, got Int8Matrix",
        ),
        (
            lambda: moe_experts.moe_matmul(
                normal(2, 64), moe_experts.quantize_experts(normal(2, 64, 8), "w8a8"), moe.route(normal(2, 2), top_k=1), arch="sm_80"
            ),
            OperandTypeError, "activations in w8a8 must be Int8Matrix, got ndarray",
        ),
        (
            lambda: moe_experts.moe_matmul(
                w8a8.quantize_int8(normal(3, 64), axis=0), moe_experts.quantize_experts(normal(2, 64, 8), "w8a8"),
                moe.route(normal(2, 2), top_k=1), arch="sm_80",
            ),
            OperandError, r"activations must have shape \(2, 64\), got \(3, 64\)",
        ),
        (
            lambda: moe_experts.moe_matmul(
                w8a8.quantize_int8(normal(2, 64), axis=0), moe_experts.quantize_experts(normal(2, 64, 8), "w8a8"),
                moe.route(normal(2, 4), top_k=1), arch="sm_80",
            ),
            OperandError, "among 4 experts, weights of 2",
        ),
        (lambda: moe_experts.quantize_experts(normal(2, 64, 8), "int8"), OperandError, "did you mean w8a8 or w8a16-int8"),
        (lambda: moe_experts.expert_scheme(8), OperandTypeError, "ExpertScheme or its name, got int"),  # type: ignore[arg-type]
        (lambda: moe_experts.Experts.unpack({"w": normal(2, 64, 8)}, "w8a8"), OperandError, "have an array 'w_scales', got w$"),
        (lambda: moe_experts.Experts.unpack({"w": 5}, "w8a8"), OperandTypeError, "w must be a NumPy array"),  # type: ignore[dict-item]
    ],
)  # fmt: skip
def test_wrong_operands(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("arch", ["sm_90a", pytest.param("sm_100a", marks=pytest.mark.slow)])
def test_in_jax_compiled_too(arch: str) -> None:
    """XLA fuses products and sums where it can; choices that no expert takes give zeros."""
    jax = pytest.importorskip("jax")
    from mmabits.kernels.jax.moe import moe_w8a8

    scheme = moe_experts.EXPERTS["w8a8"]
    x, experts = scheme.activations(normal(9, 64)), moe_experts.quantize_experts(normal(4, 64, 24), scheme)
    routing = within_capacity(moe.route(normal(9, 4, seed=6), top_k=2), 3)
    assert routing.kept is not None and not routing.kept.all()
    w, w_scales = (np.stack([getattr(each, name) for each in experts.matrices]) for name in ("codes", "scales"))
    given = x.codes, x.scales, w, w_scales, routing.weights, np.where(routing.kept, routing.experts, np.int32(-1))
    wanted = moe_experts.moe_matmul(x, experts, routing, arch=arch)
    with emulate(arch, frameworks=["jax"]):
        assert np.array_equal(np.asarray(moe_w8a8(*given)), wanted)
        assert np.array_equal(np.asarray(jax.jit(moe_w8a8)(*given)), wanted)
    with pytest.raises(OperandError, match="experts are -1 to 3, got 4"):
        moe_w8a8(*given[:5], given[5] * 0 + 4)
    with pytest.raises(OperandTypeError, match="w must be int8, got float32"):
        moe_w8a8(x.codes, x.scales, w.astype(F32), *given[3:])
    assert moe_w8a8(x.codes[:0], x.scales[:0], w, w_scales, routing.weights[:0], given[5][:0]).shape == (0, 24)


def test_launchers_refuse_before_any_work() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from mmabits.kernels.triton import moe_experts as in_triton

    scheme = moe_experts.EXPERTS["w8a8"]
    x, experts, routing = scheme.activations(normal(5, 64)), moe_experts.quantize_experts(normal(4, 64, 8), scheme), moe.route(
        normal(5, 4, seed=3), top_k=2
    )  # fmt: skip
    codes, scales, w, w_scales = (tensor(array) for array in (*scheme.stored(x).values(), *experts.pack().values()))
    weights, choices, blocks = tables(routing, 64)
    with pytest.raises(OperandTypeError, match="x must be a torch tensor of int8, got float32"):
        in_triton.moe_w8a8(codes.float(), scales, w, w_scales, weights, choices, blocks)
    with pytest.raises(OperandError, match=r"w_scales must have shape \(4, 8\)"):
        in_triton.moe_w8a8(codes, scales, w, w_scales[:, :4].contiguous(), weights, choices, blocks)
    with pytest.raises(OperandError, match="x must have 4 rows"):
        in_triton.moe_w8a8(codes, scales, w, w_scales, weights[:4].contiguous(), choices, blocks, check=False)
    with pytest.raises(OperandError, match="experts of blocks are -1 to 3, got 7"):
        in_triton.moe_w8a8(codes, scales, w, w_scales, weights, choices, torch.full_like(blocks, 7))
    with pytest.raises(OperandError, match="choices must hold each of 0 to 9 once"):
        in_triton.moe_w8a8(codes, scales, w, w_scales, weights, torch.full_like(choices, 10), blocks)
    with pytest.raises(OperandError, match="kinds of 8-bit weights are int8, e4m3, got 'e5m2'"):
        in_triton.moe_w8a16(torch.zeros(5, 64).half(), w, w_scales, weights, choices, blocks, kind="e5m2")
