"""Mixture of experts: a grouped GEMM over tokens sorted by expert, with W4A16 or MXFP4 weights.

Each token goes to `top_k` experts. A row of a token's product with an expert is multiplied by its routing weight, and the rows of a token
are added in the order of its choices: float32 operations, each rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import decode
from mmabits.emulator.layouts import pack_fp4, unpack_fp4
from mmabits.isa import OperandError
from mmabits.kernels.quantize import MX_BLOCK, quantize_mx
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_range, check_shape, checked
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.packing_awq_gptq import AwqTensors
from mmabits.kernels.schemes.w4a16 import Int4Weights, check_activations

Floats = npt.NDArray[np.float32]

BLOCK_TOKENS: Final = 64


# Routing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Routing:
    """Which experts a token goes to, and with which weights."""

    experts: npt.NDArray[np.int32]
    """(tokens, top_k)."""
    weights: Floats
    """(tokens, top_k)."""
    count: int
    """Experts that there are."""
    kept: npt.NDArray[np.bool_] | None = None
    """(tokens, top_k): choices that an expert takes; those over its capacity, or of experts elsewhere, give +0. None: all."""

    def __post_init__(self) -> None:
        """Check dtypes, shapes and the numbers of experts."""
        checked(self.experts, "experts", (np.int32,), 2)
        check_shape(checked(self.weights, "routing weights", (np.float32,), 2), "routing weights", self.experts.shape)
        if self.experts.shape[1] == 0:
            raise OperandError(f"every token needs an expert, got shape {self.experts.shape}")
        check_range(self.experts, "experts", 0, self.count - 1)
        if self.kept is not None:
            check_shape(checked(self.kept, "kept", (np.bool_,), 2), "kept", self.experts.shape)

    def choices_of(self, expert: int) -> npt.NDArray[np.int64]:
        """Which choices an expert takes, token * top_k + place, ascending."""
        taken = self.experts.reshape(-1) == expert
        return np.flatnonzero(taken if self.kept is None else taken & self.kept.reshape(-1))

    @property
    def dropped(self) -> npt.NDArray[np.int64]:
        """Choices that no expert takes, ascending."""
        return np.zeros(0, np.int64) if self.kept is None else np.flatnonzero(~self.kept)


def route(logits: Array, *, top_k: int) -> Routing:
    """The `top_k` largest logits of each token, and the softmax over them alone, as gpt-oss and Mixtral have it.

    Of equal logits the lower expert comes first. The softmax is float64, rounded once.

    Args:
        logits: (tokens, experts) float32, finite.
        top_k: 1 to the number of experts.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    given = checked(logits, "logits", (np.float32,), 2)
    check_finite(given, "logits")
    if not 1 <= top_k <= given.shape[1]:
        raise OperandError(f"top_k must be 1 to {given.shape[1]}, got {top_k}")
    experts = np.argsort(-given, axis=1, kind="stable")[:, :top_k].astype(np.int32)
    chosen = np.take_along_axis(given, experts, axis=1).astype(np.float64)
    powers = np.exp(chosen - chosen.max(axis=1, keepdims=True))
    weights = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return Routing(experts=experts, weights=weights, count=given.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """Choices sorted by expert, in blocks that have one expert each.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, negative experts.
    """

    choices: npt.NDArray[np.int32]
    """(blocks * block,) token * top_k + place; the number of choices where a block is filled up."""
    experts: npt.NDArray[np.int32]
    """(blocks,); -1: choices that no expert takes."""
    block: int
    """Rows of a block."""

    def __post_init__(self) -> None:
        """Check."""
        blocks = checked(self.experts, "experts", (np.int32,), 1).size
        check_shape(checked(self.choices, "choices", (np.int32,), 1), "choices", (blocks * self.block,))
        check_range(self.experts, "experts", -1, np.iinfo(np.int32).max)


def align(routing: Routing, *, block: int = BLOCK_TOKENS, order: str | int = "stable") -> Alignment:
    """Sort the choices by expert and fill each expert's up to whole blocks; those that none takes come last, in blocks of -1.

    Args:
        routing: which expert each choice has.
        block: rows of a block.
        order: of an expert's choices: `"stable"`, ascending; `"reversed"`; or the seed of a random one, as from kernels whose threads take
            places by atomic additions.

    Raises:
        OperandError: a block that is not positive, another order.
    """
    if block < 1:
        raise OperandError(f"block must be positive, got {block}")
    if order not in ("stable", "reversed") and (isinstance(order, (str, bool)) or not isinstance(order, int)):
        raise OperandError(f"order must be 'stable', 'reversed' or a seed, got {order!r}")
    rng = np.random.default_rng(order) if isinstance(order, int) else None
    choices: list[npt.NDArray[np.int32]] = []
    experts: list[int] = []
    for expert in (*range(routing.count), -1):
        own = (routing.dropped if expert < 0 else routing.choices_of(expert)).astype(np.int32)
        own = own[::-1] if order == "reversed" else own if rng is None else rng.permutation(own)
        fill = np.full(-own.size % block, routing.experts.size, np.int32)
        choices += [own, fill]
        experts += [expert] * ((own.size + fill.size) // block)
    return Alignment(choices=np.concatenate([np.empty(0, np.int32), *choices]), experts=np.array(experts, np.int32), block=block)


# Weights --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Int4Experts:
    """INT4 experts of one shape, stacked in AWQ's packing."""

    qweight: npt.NDArray[np.int32]
    """(experts, K, N / 8)."""
    qzeros: npt.NDArray[np.int32]
    """(experts, K / group, N / 8)."""
    scales: npt.NDArray[np.float16]
    """(experts, K / group, N)."""

    @classmethod
    def pack(cls, experts: Sequence[Int4Weights]) -> Int4Experts:
        """From plain codes.

        Raises:
            OperandError: none, experts of several shapes or group sizes, or what AWQ cannot hold.
        """
        if not experts or len({(expert.shape, expert.group) for expert in experts}) > 1:
            raise OperandError(f"experts must have one shape and group size, got {[(e.shape, e.group) for e in experts]}")
        packed = [AwqTensors.pack(expert) for expert in experts]
        return cls(
            qweight=np.stack([each.qweight for each in packed]), qzeros=np.stack([each.qzeros for each in packed]),
            scales=np.stack([each.scales for each in packed]),
        )  # fmt: skip

    def unpack(self) -> tuple[Int4Weights, ...]:
        """To plain codes."""
        parts = zip(self.qweight, self.qzeros, self.scales, strict=True)
        return tuple(AwqTensors(qweight=weight, qzeros=zeros, scales=scales).unpack() for weight, zeros, scales in parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mxfp4Experts:
    """MXFP4 experts as gpt-oss stores them: packed along K, a ue8m0 scale for 32 elements."""

    codes: npt.NDArray[np.uint8]
    """(experts, N, K / 2): two e2m1 codes to a byte, the lower index of K in the low nibble."""
    scales: npt.NDArray[np.uint8]
    """(experts, N, K / 32) ue8m0 codes."""

    def __post_init__(self) -> None:
        """Check dtypes and shapes."""
        experts, n, bytes_of_k = checked(self.codes, "codes", (np.uint8,), 3).shape
        check_multiple(2 * bytes_of_k, MX_BLOCK, "K of the weights", "the block size")
        check_shape(checked(self.scales, "scales", (np.uint8,), 3), "scales", (experts, n, 2 * bytes_of_k // MX_BLOCK))

    @classmethod
    def from_checkpoint(cls, blocks: Array, scales: Array) -> Mxfp4Experts:
        """From the tensors `..._blocks` (experts, N, K / 32, 16) and `..._scales` (experts, N, K / 32) of a gpt-oss checkpoint.

        Raises:
            OperandTypeError, OperandError: something else.
        """
        given = checked(blocks, "blocks", (np.uint8,), 4)
        return cls(codes=np.ascontiguousarray(given.reshape(*given.shape[:2], -1)), scales=scales)

    def to_checkpoint(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """The inverse of `from_checkpoint`."""
        return self.codes.reshape(*self.scales.shape, MX_BLOCK // 2), self.scales

    def dequantize(self, expert: int) -> Array:
        """(K, N) bfloat16: code times scale, exact wherever bfloat16 reaches."""
        values = decode(unpack_fp4(self.codes[expert]), "e2m1") * np.repeat(decode(self.scales[expert], "ue8m0"), MX_BLOCK, axis=1)
        return np.ascontiguousarray(values.astype(np.float32).astype(ml_dtypes.bfloat16).T)


def quantize_mxfp4_experts(weights: Array, *, recipe: str = "floor") -> Mxfp4Experts:
    """MXFP4 along K.

    Args:
        weights: (experts, K, N) float32, K a multiple of 32.
        recipe: of the scales, as for `quantize_mx`.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    given = checked(weights, "weights", (np.float32,), 3)
    quantized = quantize_mx(np.ascontiguousarray(given.swapaxes(1, 2)), format="e2m1", recipe=recipe, axis=-1)
    assert quantized.scales is not None
    return Mxfp4Experts(codes=pack_fp4(quantized.elements), scales=quantized.scales.view(np.uint8))


# Compositions ---------------------------------------------------------------------------------------------------------


def _grouped(x: Array, routing: Routing, n: int, weights: Callable[[int], Array], dots: Dots) -> Floats:
    """(tokens, N): each token's rows, weighted and added in the order of its choices."""
    tokens, top_k = routing.experts.shape
    if x.shape[0] != tokens:
        raise OperandError(f"{x.shape[0]} activations and routing for {tokens} tokens")
    rows = np.zeros((tokens * top_k, n), np.float32)
    for expert in np.unique(routing.experts):
        own = routing.choices_of(int(expert))
        if not own.size:
            continue
        rows[own] = dots(np.ascontiguousarray(x[own // top_k]), weights(int(expert)))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        weighted = (rows * routing.weights.reshape(-1, 1)).reshape(tokens, top_k, n)
        if routing.kept is not None:
            weighted[~routing.kept] = 0
        total: Floats = weighted[:, 0]
        for choice in range(1, top_k):
            total = total + weighted[:, choice]
    return total


def moe_w4a16(x: Array, experts: Int4Experts, routing: Routing, *, arch: str | Dots) -> Floats:
    """Grouped GEMM with INT4 experts, dequantized as in `w4a16_matmul`: the bits of `mmabits.kernels.triton.moe`.

    Args:
        x: (tokens, K) float16 or bfloat16.
        experts: weights.
        routing: as many experts.
        arch: architecture, or its dots.

    Returns:
        (tokens, N) float32.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    given = check_activations(x, experts.qweight.shape[1])
    check_count(routing, experts.qweight.shape[0])
    plain = experts.unpack()
    return _grouped(given, routing, experts.scales.shape[2], lambda expert: plain[expert].dequantize(given.dtype), as_dots(arch))


def moe_mxfp4(x: Array, experts: Mxfp4Experts, routing: Routing, *, arch: str | Dots) -> Floats:
    """Grouped GEMM with MXFP4 experts and bfloat16 activations: the bits of `mmabits.kernels.triton.moe`.

    No instruction takes bf16 with e2m1: the weights are converted to bf16, which is exact, and multiplied as such on every
    architecture. That is what Triton makes of `tl.dot_scaled` on these operands.

    Args:
        x: (tokens, K) bfloat16.
        experts: weights.
        routing: as many experts.
        arch: architecture, or its dots; where they are `mma.sync`, Triton permutes K within a tile (`Dots.k_order`).

    Returns:
        (tokens, N) float32.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    given = checked(x, "activations", (ml_dtypes.bfloat16,), 2)
    check_activations(given, 2 * experts.codes.shape[2])
    check_count(routing, experts.codes.shape[0])
    return _grouped(given, routing, experts.codes.shape[1], experts.dequantize, as_dots(arch))


def check_count(routing: Routing, experts: int) -> None:
    """Refuse routing among another number of experts.

    Raises:
        OperandError: it is.
    """
    if routing.count != experts:
        raise OperandError(f"routing among {routing.count} experts, weights of {experts}")
