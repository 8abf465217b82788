"""Calls of Liger's kernels: norms, gated activations, losses, rotary embedding; forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.field.cases import FieldCase, Numbers, Tensors

F16 = "results, and gradients on the way to them, are rounded to f16: 2^-11 each"
F32 = "f32 throughout; sums of at most 1,000 terms and approximate functions of a few ulps"


def _rows(*names: str, dtype: Any = torch.float16, rows: int = 48, columns: int = 500) -> Any:
    def draw(numbers: Numbers) -> Tensors:
        return {name: numbers.normal(rows, columns, dtype=dtype) for name in names}

    return draw


def _norm_operands(*weights: str) -> Any:
    def draw(numbers: Numbers) -> Tensors:
        found = {name: numbers.normal(48, 500) for name in ("x", "grad")}
        return found | {name: numbers.normal(500) for name in weights}

    return draw


def _rms(each: Tensors) -> Tensors:
    x = each["x"]
    return {"out": x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * each["w"]}


def _loss_operands(numbers: Numbers) -> Tensors:
    targets = numbers.integers(0, 999, 32, dtype=torch.int64)
    targets[5] = -100
    return {"x": numbers.normal(32, 999, dtype=torch.float32), "targets": targets}


def _linear_loss_operands(numbers: Numbers) -> Tensors:
    return {"x": numbers.normal(32, 64, dtype=torch.float32), "w": numbers.normal(333, 64, dtype=torch.float32, scale=0.3),
            "targets": numbers.integers(0, 333, 32, dtype=torch.int64)}  # fmt: skip


def _rope_operands(numbers: Numbers) -> Tensors:
    if numbers.exact:
        quarter = numbers.integers(0, 4, 1, 33, 32)
        cos, sin = (torch.tensor(each, dtype=torch.float32)[quarter] for each in ([1, 0, -1, 0], [0, 1, 0, -1]))
    else:
        angle = numbers.normal(1, 33, 32, dtype=torch.float32)
        cos, sin = angle.cos(), angle.sin()
    cos, sin = (torch.cat([each, each], -1) for each in (cos, sin))
    q, k = numbers.normal(2, 4, 33, 64, dtype=torch.float32), numbers.normal(2, 2, 33, 64, dtype=torch.float32)
    return {"q": q, "k": k, "cos": cos, "sin": sin}


def _rope(each: Tensors) -> Tensors:
    def turned(x: Any) -> Any:
        half = torch.cat([-x[..., 32:], x[..., :32]], -1)
        return x * each["cos"][:, None] + half * each["sin"][:, None]

    return {"q": turned(each["q"]), "k": turned(each["k"])}


def _group_norm(each: Tensors) -> Tensors:
    return {"out": F.group_norm(each["x"], 3, each["w"], each["b"], 1e-6)}


def _jsd_operands(numbers: Numbers) -> Tensors:
    return {name: torch.log_softmax(numbers.normal(32, 300, dtype=torch.float32), -1) for name in ("x", "y")}


def _jsd(each: Tensors) -> Tensors:
    x, y = each["x"], each["y"]
    mean = torch.log(0.5 * (x.exp() + y.exp()))
    kl = 0.5 * (x.exp() * (x - mean)).sum() + 0.5 * (y.exp() * (y - mean)).sum()
    return {"out": kl / x.shape[0]}


CASES = (
    FieldCase(
        name="liger-rms-norm", package="liger-kernel", module="liger_kernel.ops.rms_norm", kernel="RMS norm, forward and backward",
        draw=_norm_operands("w"),
        call=lambda m, t: {"out": m.LigerRMSNormFunction.apply(t["x"], t["w"], 1e-6, 0.0, "llama", False, None)},
        reference=_rms, bound=2**-9, why=F16, gradients=("x", "w"),
    ),
    FieldCase(
        name="liger-layer-norm", package="liger-kernel", module="liger_kernel.ops.layer_norm", kernel="layer norm, forward and backward",
        draw=_norm_operands("w", "b"),
        call=lambda m, t: {"out": m.LigerLayerNormFunction.apply(t["x"], t["w"], t["b"], 1e-6)},
        reference=lambda t: {"out": F.layer_norm(t["x"], (500,), t["w"], t["b"], 1e-6)}, bound=2**-9, why=F16, gradients=("x", "w", "b"),
    ),
    FieldCase(
        name="liger-group-norm", package="liger-kernel", module="liger_kernel.ops.group_norm", kernel="group norm, forward and backward",
        draw=lambda n: {"x": n.normal(4, 6, 50, dtype=torch.float32), "w": n.normal(6, dtype=torch.float32),
                        "b": n.normal(6, dtype=torch.float32), "grad": n.normal(4, 6, 50, dtype=torch.float32)},
        call=lambda m, t: {"out": m.LigerGroupNormFunction.apply(t["x"], t["w"], t["b"], 6, 3, 1e-6)},
        reference=_group_norm, bound=1e-5, why=F32, gradients=("x", "w", "b"),
    ),
    FieldCase(
        name="liger-swiglu", package="liger-kernel", module="liger_kernel.ops.swiglu", kernel="silu(a) b, forward and backward",
        draw=_rows("a", "b", "grad"), call=lambda m, t: {"out": m.LigerSiLUMulFunction.apply(t["a"], t["b"])},
        reference=lambda t: {"out": F.silu(t["a"]) * t["b"]}, bound=2**-9, why=F16, gradients=("a", "b"),
    ),
    FieldCase(
        name="liger-geglu", package="liger-kernel", module="liger_kernel.ops.geglu", kernel="gelu(a) b by tanh, forward and backward",
        draw=_rows("a", "b", "grad"), call=lambda m, t: {"out": m.LigerGELUMulFunction.apply(t["a"], t["b"])},
        reference=lambda t: {"out": F.gelu(t["a"], approximate="tanh") * t["b"]}, bound=2**-9, why=F16, gradients=("a", "b"),
    ),
    FieldCase(
        name="liger-relu-squared", package="liger-kernel", module="liger_kernel.ops.relu_squared", kernel="relu(x)^2, forward and backward",
        draw=_rows("x", "grad"), call=lambda m, t: {"out": m.LigerReLUSquaredFunction.apply(t["x"])},
        reference=lambda t: {"out": F.relu(t["x"]).square()}, bound=2**-9, why=F16, gradients=("x",), is_exact=True,
    ),
    FieldCase(
        name="liger-softmax", package="liger-kernel", module="liger_kernel.ops.softmax", kernel="softmax, forward and backward",
        draw=_rows("x", "grad", dtype=torch.float32), call=lambda m, t: {"out": m.LigerSoftmaxFunction.apply(t["x"])},
        reference=lambda t: {"out": torch.softmax(t["x"], -1)}, bound=1e-5, why=F32, gradients=("x",),
    ),
    FieldCase(
        name="liger-cross-entropy", package="liger-kernel", module="liger_kernel.ops.cross_entropy",
        kernel="cross entropy, forward and backward", draw=_loss_operands,
        call=lambda m, t: {"out": m.LigerCrossEntropyFunction.apply(t["x"], t["targets"], None)[0]},
        reference=lambda t: {"out": F.cross_entropy(t["x"], t["targets"])}, bound=1e-5, why=F32, gradients=("x",),
    ),
    FieldCase(
        name="liger-cross-entropy-smoothed", package="liger-kernel", module="liger_kernel.ops.cross_entropy",
        kernel="cross entropy with smoothed labels, forward and backward", draw=_loss_operands,
        call=lambda m, t: {"out": m.LigerCrossEntropyFunction.apply(t["x"], t["targets"], None, -100, 0.0, 0.1)[0]},
        reference=lambda t: {"out": F.cross_entropy(t["x"], t["targets"], label_smoothing=0.1)}, bound=1e-5, why=F32, gradients=("x",),
    ),
    FieldCase(
        name="liger-linear-cross-entropy", package="liger-kernel", module="liger_kernel.ops.fused_linear_cross_entropy",
        kernel="product and cross entropy, forward and backward", draw=_linear_loss_operands,
        call=lambda m, t: {"out": m.LigerFusedLinearCrossEntropyFunction.apply(t["x"], t["w"], t["targets"])[0]},
        reference=lambda t: {"out": F.cross_entropy(t["x"] @ t["w"].T, t["targets"])}, bound=1e-5, gradients=("x", "w"),
        why="f32; the products are PyTorch's, in f32",
    ),
    FieldCase(
        name="liger-jsd", package="liger-kernel", module="liger_kernel.ops.jsd", kernel="Jensen-Shannon divergence, forward and backward",
        draw=_jsd_operands, call=lambda m, t: {"out": m.LigerJSDFunction.apply(t["x"], t["y"])},
        reference=_jsd, bound=1e-4, why=F32, gradients=("x",),
    ),
    FieldCase(
        name="liger-rope", package="liger-kernel", module="liger_kernel.ops.rope", kernel="rotary embedding", draw=_rope_operands,
        call=lambda m, t: dict(zip(("q", "k"), m.LigerRopeFunction.apply(t["q"], t["k"], t["cos"], t["sin"]), strict=True)),
        reference=_rope, bound=1e-6, why="f32, two products and a sum", is_exact=True,
    ),
)  # fmt: skip
