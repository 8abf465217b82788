"""How the linear layers of a model are multiplied, as rows: what each recipe makes of a layer's weights and of the rows that come in.

Imports torch when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from mmabits.emulator.hooks.session import Session, current_session
from mmabits.emulator.hooks.torch.calls import module_path
from mmabits.isa import EmulationError, OperandError, nearest
from mmabits.kernels.quantize import MX_RECIPES, Quantized, quantize_mx, quantize_nvfp4
from mmabits.kernels.schemes import fp8_blockwise
from mmabits.kernels.schemes.blocks import ColumnBlocks, RowBlocks, block_scaled_matmul
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.w4a16 import GROUP, quantize_int4
from mmabits.research.evaluation.compositions import COMPOSITIONS, Composition

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Split = Callable[[Floats, int], Quantized]
"""(matrix, axis of K) to elements and scales."""

E4M3: Final = torch.float8_e4m3fn
_LARGEST: Final = 448.0
_SMALLEST: Final = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class SessionDots(Dots):
    """Dots of a composition that run in a block: with its architecture, and entered into its report."""

    session: Session
    site: str = field(default="")

    def __call__(
        self, a: Array, b: Array, c: Array | None = None, *, accumulator: str | None = None, scale_a: Array | None = None,
        scale_b: Array | None = None,
    ) -> Array:  # fmt: skip
        """As `Dots`."""
        return self.session.dot(
            self.site, a, b, c, scale_a=scale_a, scale_b=scale_b, instruction=self.instruction, accumulator=accumulator,
            promote_every=self.promote_every,
        )  # fmt: skip


def _dots() -> SessionDots:
    """Those of the block that the running layer lies in.

    Raises:
        EmulationError: it lies in none.
    """
    session = current_session("torch")
    if session is None:
        raise EmulationError("a quantized layer of mmabits.evaluate runs in an emulate block only")
    return SessionDots(arch=session.arch, session=session, site=module_path())


class QuantizedLayer(nn.Module):
    """A linear layer as a recipe multiplies it.

    Args:
        weight: (N, K).
        bias: (N,), or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.fast = False
        self.columns = weight.shape[0]
        self.bias = None if bias is None else bias.detach()
        self.prepare(weight.detach().float())

    def prepare(self, weight: torch.Tensor) -> None:
        """Keep a weight, (N, K) in f32, as the recipe stores it."""
        raise NotImplementedError

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """(M, K) in the model's type to (M, N) in f32, without the bias."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The bias is added in f32, and the sum rounded once to the type of x."""
        product = self.multiply(x.detach().reshape(-1, x.shape[-1])).float()
        if self.bias is not None:
            product = product + self.bias.float()
        return product.to(x.dtype).reshape(*x.shape[:-1], self.columns)


def _fp8(values: torch.Tensor, amax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3 codes, f32 scales) by amax / 448."""
    scale = (amax / _LARGEST).clamp(min=_SMALLEST)
    return (values / scale).clamp(-_LARGEST, _LARGEST).to(E4M3), scale


class TensorFp8(QuantizedLayer):
    """e4m3, a scale for each operand, by `torch._scaled_mm`."""

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        self.weight, self.scale = _fp8(weight, weight.abs().max())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scales, bias and the one rounding are the library's, but where the result is f32, which takes no bias."""
        rows = x.detach().float().reshape(-1, x.shape[-1])
        codes, scale = _fp8(rows, rows.abs().max())
        bias = None if self.bias is None or x.dtype == torch.float32 else self.bias.to(x.dtype)
        product = torch._scaled_mm(codes, self.weight.t(), scale, self.scale, bias, out_dtype=x.dtype, use_fast_accum=self.fast)
        if self.bias is not None and bias is None:
            product = product + self.bias
        return product.reshape(*x.shape[:-1], self.columns)


class RowFp8(QuantizedLayer):
    """e4m3, a scale for each row of activations and each output channel."""

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        self.weight, self.scale = _fp8(weight, weight.abs().amax(1, keepdim=True))

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """The product, then the scale of the row, then that of the column."""
        wide = rows.float()
        codes, scale = _fp8(wide, wide.abs().amax(1, keepdim=True))
        one = torch.ones((), dtype=torch.float32)
        product = torch._scaled_mm(codes, self.weight.t(), one, one, out_dtype=torch.float32, use_fast_accum=self.fast)
        return product * scale * self.scale.t()


class TiledFp8Layer(QuantizedLayer):
    """e4m3 in tiles of 1 x 128 and 128 x 128, as DeepSeek-V3 has them; every 128 of K added up in f32."""

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        self.weight = fp8_blockwise.quantize_weights(_columns(weight))

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """The composition of the scheme."""
        given = fp8_blockwise.quantize_activations(_matrix(rows))
        return torch.from_numpy(fp8_blockwise.fp8_blockwise_matmul(given, self.weight, arch=_dots()))


class BlockScaled(QuantizedLayer):
    """MXFP8, MXFP6, MXFP4, NVFP4: block-scaled instructions; where the architecture has none, elements times scales in bf16."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, split: Split) -> None:
        self._split = split
        super().__init__(weight, bias)

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        self.weight = ColumnBlocks.of(self._split(_columns(weight), 0))

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """The product, times both scales of the tensors."""
        given = RowBlocks.of(self._split(_matrix(rows), 1))
        product = block_scaled_matmul(given, self.weight, arch=_dots())
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return torch.from_numpy(product * np.float32(given.tensor_scale * self.weight.tensor_scale))


class Int8Layer(QuantizedLayer):
    """s8, a scale for each row of activations and each output channel."""

    @staticmethod
    def _split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = (values.abs().amax(1, keepdim=True) / 127.0).clamp(min=_SMALLEST)
        return (values / scale).round().clamp(-127, 127).to(torch.int8), scale

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        self.weight, self.scale = self._split(weight)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum of integers in f32, then the scale of the row, then that of the column."""
        codes, scale = self._split(rows.float())
        return torch._int_mm(codes, self.weight.t()).float() * scale * self.scale.t()


class Int4Weight(QuantizedLayer):
    """INT4 weights in groups of 128, dequantized to the type of the activations."""

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        stored = quantize_int4(_columns(weight))
        self.weights = {
            torch.float16: torch.from_numpy(stored.dequantize(np.float16)),
            torch.bfloat16: torch.from_numpy(stored.dequantize(ml_dtypes.bfloat16).view(np.int16)).view(torch.bfloat16),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`torch.nn.functional.linear`; f32 activations are multiplied as bf16."""
        kind = x.dtype if x.dtype in self.weights else torch.bfloat16
        bias = None if self.bias is None else self.bias.to(kind)
        return F.linear(x.detach().to(kind), self.weights[kind].t(), bias).to(x.dtype)


class ComposedLayer(QuantizedLayer):
    """As a composition has it.

    Args:
        weight: (N, K).
        bias: (N,), or None.
        by: the composition.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, by: Composition) -> None:
        self._by = by
        super().__init__(weight, bias)

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        self.weight = self._by.store(_columns(weight))

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """The composition's product.

        Raises:
            EmulationError: activations that are not finite, for which it has no codes.
        """
        if self._by.is_finite and not bool(torch.isfinite(rows).all()):
            raise EmulationError(
                f"activations of {module_path() or 'a layer'} are not finite: recipe {self._by.name} has no codes for them"
            )
        given = _halves(rows) if self._by.is_half else _matrix(rows)
        return torch.from_numpy(np.asarray(self._by.multiply(given, self.weight, _dots())))


def _halves(rows: torch.Tensor) -> Array:
    """float16 or bfloat16; any other type as bfloat16."""
    given = rows.detach().contiguous()
    if given.dtype == torch.float16:
        halves: Array = given.numpy()
        return halves
    wide: Array = given.to(torch.bfloat16).view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return wide


def _matrix(rows: torch.Tensor) -> Floats:
    return np.ascontiguousarray(rows.detach().float().numpy())


def _columns(weight: torch.Tensor) -> Floats:
    """(N, K) to (K, N)."""
    return np.ascontiguousarray(weight.detach().float().numpy().T)


Make = Callable[[torch.Tensor, torch.Tensor | None], QuantizedLayer]


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """What a model is brought into."""

    name: str
    what: str
    dtype: torch.dtype | None = None
    """Of the whole model; None: its own."""
    layer: Make | None = None
    """What a linear layer becomes; None: it stays."""
    k: int = 1
    """What divides K of every layer."""
    n: int = 1
    """What divides N."""
    largest_k: int | None = None
    """The largest K that it takes; None: any."""
    has_fast: bool = False
    """Whether it may be accumulated fast."""
    tf32: bool = False


def _block(split: Split) -> Make:
    return partial(BlockScaled, split=split)


def _mx(form: str, recipe: str) -> Make:
    return _block(lambda values, axis: quantize_mx(values, format=form, recipe=recipe, axis=axis))


def _rows() -> tuple[ModelRecipe, ...]:
    forms = {"mxfp8": "e4m3", "mxfp8-e5m2": "e5m2", "mxfp6-e3m2": "e3m2", "mxfp6-e2m3": "e2m3", "mxfp4": "e2m1"}
    return (
        ModelRecipe(name="none", what="the model in its own type"),
        ModelRecipe(name="tf32", what="the model in f32, multiplied as TF32", dtype=torch.float32, tf32=True),
        ModelRecipe(name="f16", what="the model in float16", dtype=torch.float16),
        ModelRecipe(name="bf16", what="the model in bfloat16", dtype=torch.bfloat16),
        ModelRecipe(name="fp8", what="e4m3, a scale for each operand", layer=TensorFp8, k=16, n=16, has_fast=True),
        ModelRecipe(name="fp8-row", what="e4m3, a scale for each row and output channel", layer=RowFp8, k=16, n=16, has_fast=True),
        ModelRecipe(name="fp8-tiles", what="e4m3 in tiles of 1 x 128 and 128 x 128 (DeepSeek-V3)", layer=TiledFp8Layer, k=128),
        *(
            ModelRecipe(
                name=name if recipe == "floor" else f"{name}-{recipe}", what=f"{form} in blocks of 32, ue8m0 scales ({recipe})",
                layer=_mx(form, recipe), k=32,
            )
            for name, form in forms.items()
            for recipe in MX_RECIPES
        ),
        ModelRecipe(
            name="nvfp4", what="e2m1 in blocks of 16, e4m3 scales and an f32 scale a matrix",
            layer=_block(lambda values, axis: quantize_nvfp4(values, axis=axis)), k=16,
        ),
        ModelRecipe(name="int8", what="s8, a scale for each row and output channel", layer=Int8Layer, k=8, n=8),
        ModelRecipe(name="w4a16", what=f"INT4 weights in groups of {GROUP}, dequantized", layer=Int4Weight, k=GROUP),
        *(
            ModelRecipe(name=row.name, what=row.what, layer=partial(ComposedLayer, by=row), k=row.k, largest_k=row.largest_k)
            for row in COMPOSITIONS
        ),
    )  # fmt: skip


RECIPES: Final = {row.name: row for row in _rows()}
"""Every recipe by its name."""
OTHER_NAMES: Final = {"fp8-rowwise": "fp8-row"}
"""What `study` calls some of them."""
_OWN_TYPE: Final = "weights are dequantized to the model's type here; --dtype bf16 (dtype='bf16') casts the model"
LEFT_OUT: Final = {
    f"{name}-bf16": _OWN_TYPE for name in ("w4a16", "w4a16-symmetric", "w8a16-int8", "w8a16-int8-groups", "w8a16-e4m3", "w8a16-e4m3-groups")
}
"""Recipes of `study` that `evaluate` does not take, and why."""


def model_recipe(name: str) -> ModelRecipe:
    """The recipe of that name.

    Raises:
        OperandError: there is none.
    """
    if name in LEFT_OUT:
        raise OperandError(f"recipe {name!r} is of study alone: {LEFT_OUT[name]}")
    name = OTHER_NAMES.get(name, name)
    if name not in RECIPES:
        raise OperandError(f"unknown recipe {name!r}{nearest(str(name), RECIPES)}; known: {', '.join(RECIPES)}")
    return RECIPES[name]
