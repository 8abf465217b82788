"""Training through quantization in JAX: fake quantization with straight-through gradients, and linear layers by a recipe.

Numbers come from `mmabits.kernels.schemes.fake` and `mmabits.kernels.schemes.training` by way of `jax.pure_callback`, so the functions can
be traced, and run on the CPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.fake import FakeScheme, fake_quantized, fake_scheme
from mmabits.kernels.schemes.training import LayerState, TrainingRecipe, linear, linear_gradients, training_recipe

_DTYPES = ("float32", "bfloat16", "float16")


def _checked(array: Any, name: str) -> Any:
    kind = str(getattr(array, "dtype", type(array).__name__))
    if kind not in _DTYPES:
        raise OperandTypeError(f"{name} must be {', '.join(_DTYPES)}, got {kind}")
    return jnp.asarray(array)


def _numbers(array: Any) -> Any:
    return np.ascontiguousarray(np.asarray(array), dtype=np.float32)


def _shaped(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def fake_quantize(x: Any, scheme: str | FakeScheme, *, axis: int = -1, clipped: bool = False, **options: Any) -> Any:
    """An array quantized and dequantized, with a straight-through gradient: as if nothing had been done.

    Args:
        x: float32, bfloat16 or float16; the result has its type, to which values are rounded.
        scheme: a name of `schemes.fake.FAKE_SCHEMES`, or a row.
        axis: along which blocks lie.
        clipped: the gradient is zero where values saturated.
        options: of the scheme's quantizer, as for `schemes.fake.fake_quantized`; no traced values.

    Raises:
        OperandTypeError, OperandError: another array; as `schemes.fake.fake_quantized`, where x is traced at run time.
    """
    given, row = _checked(x, "x"), fake_scheme(scheme)

    def both(values: Any) -> tuple[Any, Any]:
        return fake_quantized(_numbers(values), row, axis=axis, **options)

    shapes = (_shaped(given.shape), _shaped(given.shape, np.bool_))

    @jax.custom_vjp
    def quantized(values: Any) -> Any:
        return forward(values)[0]

    def forward(values: Any) -> tuple[Any, Any]:
        found, within = jax.pure_callback(both, shapes, values, vmap_method="sequential")
        return found.astype(given.dtype), within

    def backward(within: Any, grad: Any) -> tuple[Any]:
        return (jnp.where(within, grad, jnp.zeros_like(grad)) if clipped else grad,)

    quantized.defvjp(forward, backward)
    return quantized(given)


def quantized_linear(
    x: Any, w: Any, *, recipe: str | TrainingRecipe, arch: str | Dots, seed: int = 0, step: Any = 0
) -> Any:  # fmt: skip
    """The product x w whose three products, forward and backward, are quantized by a recipe.

    Args:
        x: (..., K) float32, bfloat16 or float16. All leading axes together are M.
        w: (K, N).
        recipe: a name of `schemes.training.TRAINING_RECIPES`, or a row; none with a history, which a function cannot keep.
        arch: architecture, or its dots.
        seed: of stochastic rounding; layers of a network have different ones.
        step: of training, an integer or a traced one: stochastic rounding draws anew with each.

    Returns:
        (..., N) of the type of x.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit; a recipe with a history. Sizes that are no multiples of the recipe's blocks,
            where x is traced, at run time.
    """
    row = training_recipe(recipe)
    if row.history:
        raise OperandError(f"{row.name} keeps a history, which a function of JAX cannot: use fp8-current, or torch's QuantizedLinear")
    given, weights = _checked(x, "x"), _checked(w, "w")
    if not given.ndim or weights.ndim != 2 or given.shape[-1] != weights.shape[0]:
        raise OperandError(f"x and w must be (..., K) and (K, N), got {given.shape} and {weights.shape}")
    return _linear(given, weights, jnp.asarray(step, jnp.uint32), row, arch, int(seed))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _linear(x: Any, w: Any, step: Any, recipe: TrainingRecipe, arch: str | Dots, seed: int) -> Any:
    return _forward(x, w, step, recipe, arch, seed)[0]


def _forward(x: Any, w: Any, step: Any, recipe: TrainingRecipe, arch: str | Dots, seed: int) -> Any:
    def product(left: Any, right: Any, at: Any) -> Any:
        state = LayerState(seed=seed, step=int(np.asarray(at)))
        rows = _numbers(left).reshape(-1, left.shape[-1])
        return linear(rows, _numbers(right), recipe=recipe, arch=arch, state=state)[0].reshape(*left.shape[:-1], right.shape[1])

    shape = _shaped((*x.shape[:-1], w.shape[1]))
    return jax.pure_callback(product, shape, x, w, step, vmap_method="sequential").astype(x.dtype), (x, w, step)


def _backward(recipe: TrainingRecipe, arch: str | Dots, seed: int, kept: Any, grad: Any) -> Any:
    x, w, step = kept

    def gradients(left: Any, right: Any, at: Any, given: Any) -> Any:
        state = LayerState(seed=seed, step=int(np.asarray(at)))
        rows = _numbers(left).reshape(-1, left.shape[-1])
        _, saved = linear(rows, _numbers(right), recipe=recipe, arch=arch, state=state)
        d_x, d_w = linear_gradients(_numbers(given).reshape(-1, given.shape[-1]), saved)
        return d_x.reshape(left.shape), d_w

    shapes = (_shaped(x.shape), _shaped(w.shape))
    d_x, d_w = jax.pure_callback(gradients, shapes, x, w, step, grad, vmap_method="sequential")
    return d_x.astype(x.dtype), d_w.astype(w.dtype), np.zeros(step.shape, jax.dtypes.float0)


_linear.defvjp(_forward, _backward)
