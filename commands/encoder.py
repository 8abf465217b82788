"""The encoder of all-MiniLM-L6-v2 in plain PyTorch, and linear layers that multiply in few bits.

The stream between the layers, the normalisations and the biases are f32 throughout, so that what the products do can be seen.
Imports torch when it is imported.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from mmabits.emulator.layouts import pack_fp4, swizzle_scales
from mmabits.kernels.quantize import Quantized, quantize_mx, quantize_nvfp4

Weights = dict[str, torch.Tensor]

LAYERS: Final = 6
HEADS: Final = 12
EPSILON: Final = 1e-12
_E4M3: Final = torch.float8_e4m3fn
_LARGEST: Final = 448.0
_SMALLEST: Final = float(np.finfo(np.float32).tiny)


# Linear layers --------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """x W^T + bias in f32; the other kinds quantize both operands of the product.

    Args:
        weight: (N, K), float32.
        bias: (N,), float32.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.bias = bias
        self.prepare(weight)

    def prepare(self, weight: torch.Tensor) -> None:
        """Keep the weight in the form that `multiply` wants."""
        self.weight = weight

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """(M, K) in f32 to (M, N) in f32."""
        return rows @ self.weight.t()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(M, K) in f32 to (M, N) in f32, the bias added in f32."""
        return self.multiply(rows) + self.bias


class HalfLinear(Linear):
    """Operands rounded to f16 or bf16, the product stored as f32."""

    dtype = torch.float16

    def prepare(self, weight: torch.Tensor) -> None:
        """Round once."""
        self.weight = weight.to(self.dtype)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """`torch.mm` with an f32 result."""
        return torch.mm(rows.to(self.dtype), self.weight.t(), out_dtype=torch.float32)


class BFloat16Linear(HalfLinear):
    """As `HalfLinear`, in bf16."""

    dtype = torch.bfloat16


def _fp8(values: torch.Tensor, amax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3 codes, f32 scales) by amax / 448."""
    scale = (amax / _LARGEST).clamp(min=_SMALLEST)
    return (values / scale).clamp(-_LARGEST, _LARGEST).to(_E4M3), scale


class Fp8Linear(Linear):
    """e4m3 with one scale for each operand."""

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        self.weight, self.scale = _fp8(weight, weight.abs().max())

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """`_scaled_mm`, tensorwise."""
        codes, scale = _fp8(rows, rows.abs().max())
        return torch._scaled_mm(codes, self.weight.t(), scale, self.scale, out_dtype=torch.float32, use_fast_accum=True)


class Fp8RowLinear(Linear):
    """e4m3 with a scale for each token and each output channel, promoted where the architecture can."""

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        self.weight, self.scale = _fp8(weight, weight.abs().amax(1, keepdim=True))

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """`_scaled_mm`, then the scales of rows and columns: the bits of a rowwise product, whose f32 result not every PyTorch has."""
        codes, scale = _fp8(rows, rows.abs().amax(1, keepdim=True))
        one = torch.ones((), dtype=torch.float32, device=rows.device)
        return torch._scaled_mm(codes, self.weight.t(), one, one, out_dtype=torch.float32) * scale * self.scale.t()


def _torch_bits(array: npt.NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).view(np.uint8)).view(dtype)


def _operand(quantized: Quantized, dtype: torch.dtype) -> torch.Tensor:
    """Elements as torch keeps them: FP4 two to a byte."""
    is_fp4 = quantized.element.name == "e2m1"
    return _torch_bits(pack_fp4(quantized.elements) if is_fp4 else quantized.elements, dtype)


def _scales(quantized: Quantized, dtype: torch.dtype) -> torch.Tensor:
    return _torch_bits(swizzle_scales(_present(quantized.scales)), dtype)


def _present(scales: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if scales is None:
        raise TypeError("block scales expected")
    return scales


class MxFp8Linear(Linear):
    """MXFP8: e4m3 in blocks of 32 with ue8m0 scales, rounded up so that nothing saturates."""

    def _quantize(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        quantized = quantize_mx(values.detach().numpy(), recipe="rceil")
        return _operand(quantized, _E4M3), _scales(quantized, torch.float8_e8m0fnu)

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        self.weight, self.scale = self._quantize(weight)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """`scaled_mm` with swizzled block scales."""
        codes, scale = self._quantize(rows)
        kind, swizzle = functional.ScalingType.BlockWise1x32, functional.SwizzleType.SWIZZLE_32_4_4
        return functional.scaled_mm(
            codes, self.weight.t(), scale, kind, self.scale, kind, swizzle, swizzle, output_dtype=torch.float32
        )  # fmt: skip


class NvFp4Linear(Linear):
    """NVFP4: e2m1 in blocks of 16 with ue4m3 scales, and an f32 scale for each operand."""

    def _quantize(self, values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        quantized = quantize_nvfp4(values.detach().numpy())
        return _operand(quantized, torch.float4_e2m1fn_x2), [_scales(quantized, _E4M3), torch.tensor([float(quantized.tensor_scale)])]

    def prepare(self, weight: torch.Tensor) -> None:
        """Quantize once."""
        self.weight, self.scales = self._quantize(weight)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """`scaled_mm` with swizzled block scales and global scales."""
        codes, scales = self._quantize(rows)
        kinds = [functional.ScalingType.BlockWise1x16, functional.ScalingType.TensorWise]
        swizzles = [functional.SwizzleType.SWIZZLE_32_4_4, functional.SwizzleType.NO_SWIZZLE]
        return functional.scaled_mm(
            codes, self.weight.t(), scales, kinds, self.scales, kinds, swizzles, swizzles, output_dtype=torch.float32
        )  # fmt: skip


# The encoder ----------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """One transformer layer: attention, then two linear layers with GELU between, each with its residual and its norm."""

    def __init__(self, weights: Weights, prefix: str, linear: type[Linear], attention: torch.dtype) -> None:
        super().__init__()

        def layer(name: str) -> Linear:
            return linear(weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"])

        self.query, self.key, self.value = (layer(f"attention.self.{name}") for name in ("query", "key", "value"))
        self.attended, self.widen, self.narrow = layer("attention.output.dense"), layer("intermediate.dense"), layer("output.dense")
        self.first_norm, self.last_norm = (_Norm(weights, f"{prefix}.{name}.LayerNorm") for name in ("attention.output", "output"))
        self.attention = attention

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, width) to the same, f32."""
        query, key, value = (self._heads(layer(hidden)) for layer in (self.query, self.key, self.value))
        context = functional.scaled_dot_product_attention(query, key, value).float()
        hidden = self.first_norm(hidden + self.attended(context.transpose(1, 2).reshape(hidden.shape)))
        return torch.as_tensor(self.last_norm(hidden + self.narrow(functional.gelu(self.widen(hidden)))))

    def _heads(self, rows: torch.Tensor) -> torch.Tensor:
        """(tokens, width) to (1, heads, tokens, width of a head) in the type that attention multiplies."""
        return rows.reshape(1, len(rows), HEADS, -1).transpose(1, 2).to(self.attention)


class _Norm(nn.Module):
    def __init__(self, weights: Weights, prefix: str) -> None:
        super().__init__()
        self.weight, self.bias = weights[f"{prefix}.weight"], weights[f"{prefix}.bias"]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(hidden, hidden.shape[-1:], self.weight, self.bias, EPSILON)


class SentenceEncoder(nn.Module):
    """Token numbers to a sentence's embedding: the mean of its tokens' last states, scaled to length 1.

    Args:
        weights: the model's tensors by their names in `model.safetensors`.
        linear: the kind of its 36 linear layers.
        attention: the type in which attention multiplies.
        layers: how many of the layers to run, at most 6.
    """

    def __init__(
        self, weights: Weights, *, linear: type[Linear] = Linear, attention: torch.dtype = torch.float32, layers: int = LAYERS
    ) -> None:
        super().__init__()
        self.words, self.positions, self.kinds = (
            weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        self.norm = _Norm(weights, "embeddings.LayerNorm")
        self.layers = nn.ModuleList(Layer(weights, f"encoder.layer.{number}", linear, attention) for number in range(layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tokens,) int64 to (384,) float32."""
        hidden = self.norm(self.words[tokens] + self.positions[: len(tokens)] + self.kinds[0])
        for layer in self.layers:
            hidden = layer(hidden)
        mean = hidden.mean(0)
        return torch.as_tensor(mean / math.sqrt(float((mean * mean).sum())))


def load_weights(folder: Path) -> Weights:
    """The tensors of `model.safetensors` in a folder, float32."""
    from safetensors.torch import load_file

    return {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(folder / "model.safetensors").items()
    }


LINEAR_KINDS: Final[dict[str, tuple[type[Linear], torch.dtype]]] = {
    "f16": (HalfLinear, torch.float16),
    "bf16": (BFloat16Linear, torch.bfloat16),
    "fp8-tensor": (Fp8Linear, torch.bfloat16),
    "fp8-row": (Fp8RowLinear, torch.bfloat16),
    "mxfp8": (MxFp8Linear, torch.bfloat16),
    "nvfp4": (NvFp4Linear, torch.bfloat16),
}
"""By scheme: the kind of the linear layers, and the type in which attention multiplies."""
