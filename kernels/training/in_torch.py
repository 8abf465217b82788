"""Training through quantization in PyTorch: fake quantization with straight-through gradients, and linear layers by a recipe.

Tensors are on the CPU. The numbers are those of `mmabits.kernels.schemes.fake` and `mmabits.kernels.schemes.training`, whose products are
the instructions of a GPU.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.fake import FakeScheme, fake_quantized
from mmabits.kernels.schemes.training import (
    LayerState,
    SavedLinear,
    TrainingRecipe,
    check_layer,
    linear,
    linear_forward,
    linear_gradients,
    training_recipe,
)

_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


def _checked(tensor: Any, name: str, dims: int | None = None) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
        arrived = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise OperandTypeError(f"{name} must be a torch tensor of {', '.join(map(str, _DTYPES))}, got {arrived}")
    if tensor.device.type != "cpu":
        raise OperandError(f"{name} must be on the CPU, where products are emulated, got {tensor.device}")
    if tensor.layout is not torch.strided:
        raise OperandError(f"{name} must be a dense tensor, got {tensor.layout}; to_dense() makes one of it")
    if dims is not None and tensor.dim() != dims:
        raise OperandError(f"{name} must have {dims} dimensions, got shape {tuple(tensor.shape)}")
    return tensor


def _numbers(tensor: torch.Tensor) -> Any:
    """Float32 in NumPy, exactly."""
    return np.ascontiguousarray(tensor.detach().to(torch.float32).numpy())


def _tensor(values: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype)


class _FakeQuantize(torch.autograd.Function):
    """Quantized and dequantized; the gradient goes through, or where values were within reach."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scheme: str | FakeScheme, axis: int, clipped: bool, options: dict[str, Any]) -> torch.Tensor:
        values, within = fake_quantized(_numbers(x), scheme, axis=axis, **options)
        if clipped:
            ctx.save_for_backward(torch.from_numpy(within))
        ctx.clipped = clipped
        return _tensor(values, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.clipped:
            (within,) = ctx.saved_tensors
            grad = torch.where(within, grad, torch.zeros_like(grad))
        return grad, None, None, None, None


def fake_quantize(x: torch.Tensor, scheme: str | FakeScheme, *, axis: int = -1, clipped: bool = False, **options: Any) -> torch.Tensor:
    """A tensor quantized and dequantized, with a straight-through gradient: as if nothing had been done.

    Args:
        x: float32, bfloat16 or float16, on the CPU; the result has its type, to which values are rounded.
        scheme: a name of `schemes.fake.FAKE_SCHEMES`, or a row.
        axis: along which blocks lie: the last of activations (..., K) and of weights (N, K) as torch has them.
        clipped: the gradient is zero where values saturated.
        options: of the scheme's quantizer, as for `schemes.fake.fake_quantized`.

    Raises:
        OperandTypeError, OperandError: another tensor; as `schemes.fake.fake_quantized`.
    """
    result: torch.Tensor = _FakeQuantize.apply(_checked(x, "x"), scheme, axis, bool(clipped), options)  # type: ignore[no-untyped-call]
    return result


class _QuantizedLinear(torch.autograd.Function):
    """y = x w by a recipe, with the recipe's gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, recipe: TrainingRecipe, arch: str | Dots, state: LayerState, gradients: bool
    ) -> torch.Tensor:  # fmt: skip
        rows, w = _numbers(x).reshape(-1, x.shape[-1]), np.ascontiguousarray(_numbers(weight).T)
        if gradients:
            y, ctx.kept = linear(rows, w, recipe=recipe, arch=arch, state=state)
        else:
            y = linear_forward(rows, w, recipe=recipe, arch=arch, state=state)
        ctx.x_shape, ctx.dtypes = x.shape, (x.dtype, weight.dtype)
        return _tensor(y.reshape(*x.shape[:-1], y.shape[1]), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved: SavedLinear = ctx.kept
        d_x, d_w = linear_gradients(_numbers(grad).reshape(-1, grad.shape[-1]), saved)
        x_type, w_type = ctx.dtypes
        return (
            torch.from_numpy(d_x.reshape(ctx.x_shape)).to(x_type),
            torch.from_numpy(np.ascontiguousarray(d_w.T)).to(w_type),
            None,
            None,
            None,
            None,
        )


def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    recipe: str | TrainingRecipe,
    arch: str | Dots,
    state: LayerState | None = None,
) -> torch.Tensor:
    """`torch.nn.functional.linear` whose three products, forward and backward, are quantized by a recipe.

    Args:
        x: (..., K) float32, bfloat16 or float16, on the CPU. All leading axes together are M, which is a multiple of the recipe's blocks
            where there are gradients; under `torch.no_grad` it may be any.
        weight: (N, K), as torch has weights.
        bias: (N,), added by torch in the wider of both types; its gradient is torch's.
        recipe: a name of `schemes.training.TRAINING_RECIPES`, or a row.
        arch: architecture, or its dots.
        state: the layer's: it holds the seed of stochastic rounding and the histories of delayed scaling, and changes. None: a new one,
            with which there is no history, and whose seed is 0: layers that do so share their random bits.

    Returns:
        (..., N) of the type of x.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit; as `schemes.training.linear`.
        MmabitsError: as `mmabits.gemm`.
    """
    row = training_recipe(recipe)
    given, weights = _checked(x, "x"), _checked(weight, "weight", 2)
    if not given.dim() or given.shape[-1] != weights.shape[1]:
        raise OperandError(f"x of shape {tuple(given.shape)} and weight of shape {tuple(weights.shape)} do not have the same K")
    added = None if bias is None else _checked(bias, "bias", 1)
    if added is not None and added.shape[0] != weights.shape[0]:
        raise OperandError(f"bias must have shape ({weights.shape[0]},), got {tuple(added.shape)}")
    gradients = torch.is_grad_enabled() and (given.requires_grad or weights.requires_grad)
    y: torch.Tensor = _QuantizedLinear.apply(  # type: ignore[no-untyped-call]
        given, weights, row, arch, LayerState() if state is None else state, gradients
    )
    return y if added is None else (y + added).to(given.dtype)


class QuantizedLinear(torch.nn.Module):
    """A linear layer that is trained by a recipe. Its state is its own; `state_dict` has it, as numbers and texts.

    Args:
        in_features: K, a multiple of the recipe's blocks.
        out_features: N, likewise.
        bias: whether there is one.
        recipe: a name of `schemes.training.TRAINING_RECIPES`, or a row.
        arch: architecture, or its dots.
        seed: of stochastic rounding. None: drawn from torch's generator after the weights, so that `torch.manual_seed` decides it and
            layers have different ones; whatever the recipe, so that all recipes find the same weights.

    Raises:
        OperandError: sizes that are no multiples, no such recipe, no such seed.
        UnknownArchitecture: no such architecture.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, recipe: str | TrainingRecipe, arch: str | Dots,
        seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        row = training_recipe(recipe)
        check_layer(row, arch, n=out_features, k=in_features)
        plain = torch.nn.Linear(in_features, out_features, bias=bias)
        self.weight, self.bias = plain.weight, plain.bias
        drawn = int(torch.randint(1 << 62, (), device="cpu")) if seed is None else seed
        self.recipe, self.arch, self.state = row, arch, LayerState(seed=drawn)

    def extra_repr(self) -> str:
        """What the layer is, for `repr`."""
        n, k = self.weight.shape
        return f"{k}, {n}, bias={self.bias is not None}, recipe={self.recipe.name!r}, arch={self.arch!r}, seed={self.state.seed}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `quantized_linear`; in eval mode the state stays as it is. One token alone goes under `torch.no_grad`, by any recipe."""
        state = self.state if self.training else self.state.copy()
        return quantized_linear(x, self.weight, self.bias, recipe=self.recipe, arch=self.arch, state=state)

    def get_extra_state(self) -> dict[str, Any]:
        """The seed, the steps so far and the histories, for `state_dict`."""
        return self.state.as_numbers()

    def set_extra_state(self, state: Any) -> None:
        """From `state_dict`.

        Raises:
            OperandTypeError, OperandError: something else.
        """
        self.state = LayerState.of_numbers(state)


class _Matmul(torch.autograd.Function):
    """A batch of products in bf16, with gradients in bf16."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, arch: str | Dots) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        ctx.arch = arch
        return _in_bf16(a, b, arch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        a, b = ctx.saved_tensors
        return _in_bf16(grad, b.transpose(-1, -2), ctx.arch), _in_bf16(a.transpose(-1, -2), grad, ctx.arch), None


def _in_bf16(a: torch.Tensor, b: torch.Tensor, arch: str | Dots) -> torch.Tensor:
    import ml_dtypes

    left, right = (_numbers(each).astype(ml_dtypes.bfloat16) for each in (a, b))
    return _tensor(np.asarray(as_dots(arch)(left, right)).astype(ml_dtypes.bfloat16).astype(np.float32), a)


def bf16_matmul(a: torch.Tensor, b: torch.Tensor, *, arch: str | Dots) -> torch.Tensor:
    """A B of matrices or batches of them in bf16, accumulated in f32, rounded to bf16; so are both gradients. What recipes keep in bf16.

    Args:
        a: (..., M, K) float32, bfloat16 or float16, on the CPU.
        b: (..., K, N), of the same batch.
        arch: architecture, or its dots.

    Returns:
        (..., M, N) of the type of a.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
        MmabitsError: as `mmabits.gemm`.
    """
    left, right = _checked(a, "a"), _checked(b, "b")
    if left.dim() < 2 or left.shape[:-2] != right.shape[:-2] or left.shape[-1] != right.shape[-2] or left.dtype != right.dtype:
        raise OperandError(
            f"a and b must be (..., M, K) and (..., K, N) of one batch and type, got {tuple(left.shape)} {left.dtype} "
            f"and {tuple(right.shape)} {right.dtype}"
        )
    result: torch.Tensor = _Matmul.apply(left, right, arch)  # type: ignore[no-untyped-call]
    return result
