"""Products of groups: `_grouped_mm`, `_scaled_grouped_mm` and its `_v2`, as mixtures of experts use them.

`offs` holds where each group ends: rows of A (2-D x 3-D), columns of B (3-D x 2-D) or elements of K (2-D x 2-D).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from mmabits.emulator.hooks.torch import openmp
from mmabits.emulator.hooks.torch.calls import OperatorCall, tensor_of, to_numpy
from mmabits.emulator.hooks.torch.epilogue import Floats, store
from mmabits.emulator.hooks.torch.products import joined, route
from mmabits.emulator.hooks.torch.scaled import (
    FP4,
    RECIPES,
    ScaledOperands,
    ScalingRecipe,
    check_contraction,
    compute,
    elements,
    floats,
    instruction_for,
    named_recipe,
    swizzled_size,
    unswizzled,
)
from mmabits.emulator.hooks.torch.undefined import poison
from mmabits.isa import OperandError, OperandTypeError, architecture

ROWWISE: Final = next(recipe for recipe in RECIPES if recipe.name == "rowwise")
MXFP8: Final = next(recipe for recipe in RECIPES if recipe.name == "MXFP8")
GROUPED: Final = ("rowwise", "MXFP8", "MXFP4", "NVFP4")
WHOLE: Final = slice(None)
TAIL: Final = "{} past the last offset are written by no kernel"


@dataclass(frozen=True, kw_only=True)
class Group:
    """One product of a group: where its operands and its result lie."""

    number: int
    a: Any
    """Index into A: a group's matrix, or its rows or columns."""
    b: Any
    out: Any


@dataclass(frozen=True, kw_only=True)
class GroupedProducts:
    """All products of a call."""

    groups: list[Group]
    shape: tuple[int, ...]
    """Of the result."""
    tail: Any = None
    """Index of the part of the result that is no group's, which a GPU never writes; None where there is none."""
    note: str = ""
    """What the report says of the tail."""


def _ends(call: OperatorCall, limit: int) -> list[int]:
    offs = call.values["offs"]
    if offs is None:
        raise OperandError(f"{call.site}: offs is needed where an operand has two dimensions")
    if offs.dtype != torch.int32 or offs.dim() != 1:
        raise OperandError(f"{call.site}: offs must be one-dimensional torch.int32, got {offs.dtype} of shape {tuple(offs.shape)}")
    ends: list[int] = offs.tolist()
    if any(end < start for start, end in zip([0, *ends], ends, strict=False)) or (ends and ends[-1] > limit):
        raise OperandError(f"{call.site}: offs must rise and stay within {limit}, got {ends}")
    return ends


def _layout(call: OperatorCall, a: torch.Tensor, b: torch.Tensor) -> GroupedProducts:
    """The products, and the shape of the result; K of packed FP4 counts in bytes."""
    kinds = a.dim(), b.dim()
    if kinds not in ((2, 2), (2, 3), (3, 2), (3, 3)):
        raise OperandError(f"{call.site}: operands must have two or three dimensions, got {tuple(a.shape)} and {tuple(b.shape)}")
    if kinds != (2, 2) and a.shape[-1] != b.shape[-2]:
        raise OperandError(f"{call.site}: K of {tuple(a.shape)} and {tuple(b.shape)} must agree")
    if kinds == (3, 3):
        if call.values["offs"] is not None or a.shape[0] != b.shape[0]:
            raise OperandError(f"{call.site}: 3-D operands take no offs and as many groups, got {tuple(a.shape)} and {tuple(b.shape)}")
        return GroupedProducts(groups=[Group(number=g, a=g, b=g, out=g) for g in range(len(a))], shape=(len(a), a.shape[1], b.shape[2]))
    packed = 2 if a.dtype in FP4 and kinds == (2, 2) else 1
    limit = {(2, 3): a.shape[0], (3, 2): b.shape[-1], (2, 2): a.shape[-1] * packed}[kinds]
    ends = _ends(call, limit)
    counted = {(2, 3): b.shape[0], (3, 2): a.shape[0], (2, 2): len(ends)}[kinds]
    if len(ends) != counted or (kinds == (2, 2) and a.shape[1] != b.shape[0]):
        raise OperandError(f"{call.site}: {len(ends)} ends in offs for operands {tuple(a.shape)} and {tuple(b.shape)}")
    parts = [slice(start // packed, end // packed) for start, end in zip([0, *ends], ends, strict=False)]
    last = ends[-1] if ends else 0
    rest = slice(last, None) if last < limit else None
    if kinds == (2, 3):
        return GroupedProducts(
            groups=[Group(number=g, a=part, b=g, out=part) for g, part in enumerate(parts)], shape=(a.shape[0], b.shape[2]),
            tail=rest, note=TAIL.format("rows") if rest else "",
        )  # fmt: skip
    if kinds == (3, 2):
        return GroupedProducts(
            groups=[Group(number=g, a=g, b=(WHOLE, part), out=(WHOLE, part)) for g, part in enumerate(parts)],
            shape=(a.shape[1], b.shape[1]), tail=(WHOLE, rest) if rest else None, note=TAIL.format("columns") if rest else "",
        )  # fmt: skip
    groups = [Group(number=g, a=(WHOLE, part), b=part, out=g) for g, part in enumerate(parts)]
    return GroupedProducts(groups=groups, shape=(len(parts), a.shape[0], b.shape[1]))


def _each(layout: GroupedProducts, a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[Group, torch.Tensor, torch.Tensor]]:
    """The groups that have something to multiply; the result of the others is zero."""
    for group in layout.groups:
        left, right = a[group.a], b[group.b]
        if left.numel() and right.numel():
            yield group, left, right


def _blank(call: OperatorCall, layout: GroupedProducts, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The result before anything is multiplied; what stays of it is zero where a group has no elements of K, and open in the tail."""
    result = torch.zeros(layout.shape, dtype=dtype, device=device)
    if layout.tail is not None and result.numel():
        if call.session.poisons:
            poison(result[layout.tail])
        call.session.leave_open(call.site, call.signature.name, layout.note)
    return result


def _check_plain(call: OperatorCall, *names: str) -> None:
    for name in names:
        if call.values.get(name) is not None:
            call.session.refuse(call.site, call.signature.name, f"PyTorch's kernels take no {name} yet")


def grouped_mm(call: OperatorCall) -> Any:
    """`_grouped_mm`: bf16, and f16 or f32 as PyTorch's fallback, which multiplies group by group."""
    a, b = call.values["self"], call.values["mat2"]
    if a.is_meta or b.is_meta:
        return call.stock()
    _check_plain(call, "bias")
    if a.dtype != b.dtype:
        raise OperandTypeError(f"{call.site}: operands must be of one type, got {a.dtype} and {b.dtype}")
    found = route(call.session.arch, a.dtype)
    if found.instruction is None:
        if found.is_refused:
            call.session.refuse(call.site, call.signature.name, found.reason)
        return call.skip(found.reason)
    out_dtype = call.values["out_dtype"] or a.dtype
    layout = _layout(call, a, b)
    result = _blank(call, layout, out_dtype, a.device)
    words, order = call.session.library.unknown(found.instruction)
    note = joined(words, layout.note)
    openmp.rest(a.numel() * b.shape[-1])
    for group, left, right in _each(layout, a, b):
        product = call.session.dot(call.site, to_numpy(left), to_numpy(right), instruction=found.instruction, note=note, order=order)
        result[group.out] = store(tensor_of(product, a), out_dtype)
    return call.give(result)


def _check_capability(call: OperatorCall) -> None:
    if architecture(call.session.arch).capability[0] not in (9, 10):
        call.session.refuse(call.site, call.signature.name, "PyTorch has scaled grouped products for compute capability 9.x and 10.x")


def scaled_grouped_mm(call: OperatorCall) -> Any:
    """`_scaled_grouped_mm`: e4m3 with f32 scales by row and column, or MXFP8."""
    if call.values["self"].is_meta:
        return call.stock()
    _check_plain(call, "bias", "scale_result")
    recipe = MXFP8 if call.values["scale_a"].dtype == torch.float8_e8m0fnu else ROWWISE
    return _scaled(call, recipe, [call.values["scale_a"]], [call.values["scale_b"]])


def scaled_grouped_mm_v2(call: OperatorCall) -> Any:
    """`_scaled_grouped_mm_v2`: rowwise, MXFP8, MXFP4 and NVFP4."""
    if call.values["self"].is_meta:
        return call.stock()
    _check_plain(call, "bias")
    check_contraction(call)
    recipe = named_recipe(call)
    if recipe.name not in GROUPED:
        call.session.refuse(call.site, call.signature.name, f"PyTorch has no grouped kernel for {recipe.name}; it has {', '.join(GROUPED)}")
    return _scaled(call, recipe, list(call.values["scale_a"]), list(call.values["scale_b"]))


def _scaled(call: OperatorCall, recipe: ScalingRecipe, scale_a: list[torch.Tensor], scale_b: list[torch.Tensor]) -> Any:
    a, b = call.values["self"], call.values["mat2"]
    _check_capability(call)
    instruction = instruction_for(call, recipe, a, b)
    if not recipe.block and not a.dtype == b.dtype == torch.float8_e4m3fn:
        raise OperandTypeError(f"{call.site}: rowwise groups must be torch.float8_e4m3fn, got {a.dtype} and {b.dtype}")
    if call.values["out_dtype"] not in (None, torch.bfloat16):
        raise OperandTypeError(f"{call.site}: out_dtype must be torch.bfloat16, got {call.values['out_dtype']}")
    if recipe.block and (a.dim() != 2 or call.values["offs"] is None):
        call.session.refuse(call.site, call.signature.name, f"PyTorch has grouped {recipe.name} for 2-D x 3-D and 2-D x 2-D operands")
    layout = _layout(call, a, b)
    result = _blank(call, layout, torch.bfloat16, a.device)
    left_scales = _BlockScales(call, recipe, scale_a, a.dim() == 3, "scale_a")
    right_scales = _BlockScales(call, recipe, scale_b, b.dim() == 3, "scale_b")
    for group, left, right in _each(layout, a, b):
        if recipe.block:
            k = left.shape[1] * (2 if left.dtype in FP4 else 1)
            scales_a = left_scales.of(group.number, left.shape[0], k)
            scales_b = right_scales.of(group.number, right.shape[1], k)
            scales_b[0] = scales_b[0].T
        else:
            scales_a = [_row_scales(call, scale_a[0], a, group, group.a, left.shape[0], "scale_a")[:, None]]
            scales_b = [_row_scales(call, scale_b[0], b, group, group.b, right.shape[1], "scale_b")[None]]
        given = ScaledOperands(
            recipe=recipe, instruction=instruction, a=elements(left, 1), b=elements(right, 0), scale_a=scales_a, scale_b=scales_b,
            note=layout.note,
        )  # fmt: skip
        result[group.out] = store(tensor_of(compute(call, given, call.values["use_fast_accum"]), a), torch.bfloat16)
    return call.give(result)


def _row_scales(call: OperatorCall, scale: torch.Tensor, matrix: torch.Tensor, group: Group, index: Any, rows: int, name: str) -> Floats:
    """f32 scales of a group's rows of A or columns of B: (groups, rows) of a 3-D operand, otherwise one line of all."""
    if scale.dim() and scale.shape[-1] > 1 and scale.stride(-1) != 1:
        raise OperandError(f"{call.site}: {name} must be contiguous along its last dimension, got strides {tuple(scale.stride())}")
    if matrix.dim() == 3:
        outer = matrix.shape[1] if name == "scale_a" else matrix.shape[2]
        whole = floats(call, scale, (matrix.shape[0], outer), name)
        row: Floats = whole[group.number]
        return row
    outer = matrix.shape[0] if name == "scale_a" else matrix.shape[1]
    is_by_k = call.values["self"].dim() == call.values["mat2"].dim() == 2
    if is_by_k:
        count = len(call.values["offs"])
        return floats(call, scale, (count * outer,), name)[group.number * outer : (group.number + 1) * outer]
    part = index[1] if isinstance(index, tuple) else index
    return floats(call, scale, (outer,), name)[part]


class _BlockScales:
    """Swizzled scales of groups: a row for each group of a 3-D operand, otherwise group after group, each padded by itself."""

    def __init__(self, call: OperatorCall, recipe: ScalingRecipe, scales: list[torch.Tensor], is_stacked: bool, name: str) -> None:
        self.call, self.recipe, self.scales, self.is_stacked, self.name = call, recipe, scales, is_stacked, name
        self.used = 0

    def of(self, group: int, rows: int, k: int) -> list[Any]:
        """The scales of one group: (rows, K / block), and the f32 scale of the whole where there is one."""
        columns = -(-k // self.recipe.block)
        size = swizzled_size(rows, columns)
        blocks = self.scales[0][group] if self.is_stacked else self.scales[0].reshape(-1)[self.used : self.used + size]
        self.used += size
        found: list[Any] = [unswizzled(self.call, blocks.reshape(-1), rows, columns, self.recipe, self.name)]
        for scale in self.scales[1:]:
            values = floats(self.call, scale.reshape(-1), (scale.numel(),), self.name)
            found.append(np.float32(values[group if values.size > 1 else 0]))
        return found
