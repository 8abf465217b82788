"""Training through quantization in JAX: fake quantization with straight-through gradients, and linear layers by a recipe.

Numbers come from `mmabits.kernels.schemes.fake` and `mmabits.kernels.schemes.training` by way of `jax.pure_callback`, so the functions can
be traced, and run on the CPU. Where JAX has one thread, on one processor, that is refused: a callback would wait for ever.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmabits.isa import EmulationError, OperandError, OperandTypeError
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.fake import FakeScheme, check_fake, fake_quantized, fake_scheme
from mmabits.kernels.schemes.training import (
    LayerState,
    TrainingRecipe,
    check_layer,
    linear,
    linear_forward,
    linear_gradients,
    training_recipe,
)

_DTYPES = ("float32", "bfloat16", "float16")


def _checked(array: Any, name: str) -> Any:
    kind = str(getattr(array, "dtype", type(array).__name__))
    if kind not in _DTYPES:
        raise OperandTypeError(f"{name} must be {', '.join(_DTYPES)}, got {kind}")
    return jnp.asarray(array)


def _numbers(array: Any) -> Any:
    return np.ascontiguousarray(np.asarray(array), dtype=np.float32)


def _called_back(function: Any, shapes: Any, *arrays: Any) -> Any:
    """`jax.pure_callback`, refused where it would wait for ever.

    Raises:
        EmulationError: JAX has one thread.
    """
    if _threads() < 2:
        raise EmulationError(
            "JAX has one thread here, on which a callback waits for its own operands and never ends; set NPROC=2 in the environment "
            "before JAX is imported"
        )
    return jax.pure_callback(function, shapes, *arrays, vmap_method="sequential")


def _threads() -> int:
    """Threads that XLA's CPU client takes: a number in the environment, or the processors of this process."""
    given = os.environ.get("PJRT_NPROC") or os.environ.get("NPROC") or ""
    if given.isdecimal():
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        OperandTypeError, OperandError: another array, axis or option, or blocks that do not fit; as `schemes.fake.fake_quantized`.
            Where x is traced, what depends on values, its own or an option's, comes at run time, as JAX's error with ours in it.
    """
    given, row = _checked(x, "x"), fake_scheme(scheme)
    check_fake(row, given.shape, axis, options)

    def both(values: Any) -> tuple[Any, Any]:
        return fake_quantized(_numbers(values), row, axis=axis, **options)

    if not isinstance(given, jax.core.Tracer):  # nothing asks for a gradient
        return jnp.asarray(both(given)[0]).astype(given.dtype)
    shapes = (_shaped(given.shape), _shaped(given.shape, np.bool_))

    @jax.custom_vjp
    def quantized(values: Any) -> Any:
        return forward(values)[0]

    def forward(values: Any) -> tuple[Any, Any]:
        found, within = _called_back(both, shapes, values)
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
        x: (..., K) float32, bfloat16 or float16. All leading axes together are M, which is a multiple of the recipe's blocks where there
            are gradients, and may be any where there are none.
        w: (K, N).
        recipe: a name of `schemes.training.TRAINING_RECIPES`, or a row; none with a history, which a function cannot keep.
        arch: architecture, or its dots.
        seed: of stochastic rounding, an integer from 0 on: give each layer of a network another; with the same, and that is what 0 is
            for all, they share their random bits.
        step: of training, an integer from 0 to 2^32 - 1 or a traced one: stochastic rounding draws anew with each.

    Returns:
        (..., N) of the type of x.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit, sizes that are no multiples of the recipe's blocks, a recipe with a history,
            another seed or step. A traced step that is negative comes at run time, as JAX's error with ours in it.
        MmabitsError: as `mmabits.gemm`.
    """
    row = training_recipe(recipe)
    if row.history:
        raise OperandError(f"{row.name} keeps a history, which a function of JAX cannot: use fp8-current, or torch's QuantizedLinear")
    given, weights = _checked(x, "x"), _checked(w, "w")
    if not given.ndim or weights.ndim != 2 or given.shape[-1] != weights.shape[0]:
        raise OperandError(f"x and w must be (..., K) and (K, N), got {given.shape} and {weights.shape}")
    check_layer(row, arch, n=weights.shape[1], k=weights.shape[0])
    at = _step(step)
    LayerState(seed=seed)
    if any(isinstance(each, jax.core.Tracer) for each in (given, weights, at)):
        _try(row, arch, weights.shape, False)
        return _linear(given, weights, at, row, arch, int(seed))
    return jnp.asarray(_product(given, weights, at, row, arch, int(seed))).astype(given.dtype)


def _step(step: Any) -> Any:
    """A traced step as it is, any other as uint32, which JAX always has."""
    if isinstance(step, jax.core.Tracer):
        if step.shape or not jnp.issubdtype(step.dtype, jnp.integer):
            raise OperandError(f"step must be one integer, got {step.dtype} of shape {step.shape}")
        return step
    number = step.item() if isinstance(step, (np.ndarray, np.generic, jax.Array)) and step.shape == () else step
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 32:
        raise OperandError(f"step must be an integer from 0 to 2^32 - 1, got {number!r}")
    return jnp.asarray(np.uint32(number))


@lru_cache(maxsize=256)
def _try(recipe: TrainingRecipe, arch: str | Dots, w_shape: tuple[int, int], gradients: bool) -> None:
    """The products without a row of x: what they refuse is refused when they are traced."""
    x, w = np.zeros((0, w_shape[0]), np.float32), np.zeros(w_shape, np.float32)
    if gradients:
        linear_gradients(np.zeros((0, w_shape[1]), np.float32), linear(x, w, recipe=recipe, arch=arch)[1])
    else:
        linear_forward(x, w, recipe=recipe, arch=arch)


def _product(x: Any, w: Any, step: Any, recipe: TrainingRecipe, arch: str | Dots, seed: int) -> Any:
    state = LayerState(seed=seed, step=int(np.asarray(step)))
    rows = _numbers(x).reshape(-1, x.shape[-1])
    return linear_forward(rows, _numbers(w), recipe=recipe, arch=arch, state=state).reshape(*x.shape[:-1], w.shape[1])


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _linear(x: Any, w: Any, step: Any, recipe: TrainingRecipe, arch: str | Dots, seed: int) -> Any:
    return _called(x, w, step, recipe, arch, seed)


def _called(x: Any, w: Any, step: Any, recipe: TrainingRecipe, arch: str | Dots, seed: int) -> Any:
    shape, product = _shaped((*x.shape[:-1], w.shape[1])), partial(_product, recipe=recipe, arch=arch, seed=seed)
    return _called_back(product, shape, x, w, step).astype(x.dtype)


def _forward(x: Any, w: Any, step: Any, recipe: TrainingRecipe, arch: str | Dots, seed: int) -> Any:
    check_layer(recipe, arch, m=math.prod(x.shape[:-1]), n=w.shape[1], k=w.shape[0])
    _try(recipe, arch, w.shape, True)
    return _called(x, w, step, recipe, arch, seed), (x, w, step)


def _backward(recipe: TrainingRecipe, arch: str | Dots, seed: int, kept: Any, grad: Any) -> Any:
    x, w, step = kept

    def gradients(left: Any, right: Any, at: Any, given: Any) -> Any:
        state = LayerState(seed=seed, step=int(np.asarray(at)))
        rows = _numbers(left).reshape(-1, left.shape[-1])
        _, saved = linear(rows, _numbers(right), recipe=recipe, arch=arch, state=state)
        d_x, d_w = linear_gradients(_numbers(given).reshape(-1, given.shape[-1]), saved)
        return d_x.reshape(left.shape), d_w

    shapes = (_shaped(x.shape), _shaped(w.shape))
    d_x, d_w = _called_back(gradients, shapes, x, w, step, grad)
    return d_x.astype(x.dtype), d_w.astype(w.dtype), np.zeros(step.shape, jax.dtypes.float0)


_linear.defvjp(_forward, _backward)
