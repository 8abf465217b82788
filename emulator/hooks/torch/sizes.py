"""How many multiply-adds an operator does that is not emulated: PyTorch's own formulas, and those it lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

Values = Mapping[str, Any]


def _attention(values: Values, within: int, beside: int) -> int:
    """Products of query and key, `within` of them as long as the query's heads, and `beside` as long as the value's."""
    query, key, value = (values[name] for name in ("query", "key", "value"))
    each: int = within * query.shape[-1] + beside * value.shape[-1]
    return int(math.prod(query.shape[:-1])) * int(key.shape[-2]) * each


def _product(left: str, right: str) -> Callable[[Values], int]:
    return lambda values: int(math.prod(values[left].shape)) * int(values[right].shape[-1])


_FORMULAS: Final[dict[str, Callable[[Values], int]]] = {
    "mm": _product("self", "mat2"), "bmm": _product("self", "mat2"), "_int_mm": _product("self", "mat2"),
    "addmm": _product("mat1", "mat2"), "addmm_": _product("mat1", "mat2"), "_addmm_activation": _product("mat1", "mat2"),
    "baddbmm": _product("batch1", "batch2"), "baddbmm_": _product("batch1", "batch2"),
    "addbmm": _product("batch1", "batch2"), "addbmm_": _product("batch1", "batch2"),
    "mv": lambda values: math.prod(values["self"].shape), "addmv": lambda values: math.prod(values["mat"].shape),
    "addmv_": lambda values: math.prod(values["mat"].shape),
    "dot": lambda values: math.prod(values["self"].shape), "vdot": lambda values: math.prod(values["self"].shape),
    "addr": lambda values: math.prod(values["vec1"].shape) * math.prod(values["vec2"].shape),
    "addr_": lambda values: math.prod(values["vec1"].shape) * math.prod(values["vec2"].shape),
    "_scaled_dot_product_flash_attention_for_cpu": lambda values: _attention(values, 1, 1),
    "_scaled_dot_product_flash_attention_for_cpu_backward": lambda values: _attention(values, 3, 2),
}  # fmt: skip
"""By the names of aten's operators, from their arguments."""


def has_formula(func: torch._ops.OpOverload) -> bool:
    """Whether PyTorch counts the operator's multiply-adds, whatever its name says."""
    from torch.utils.flop_counter import flop_registry

    return func._overloadpacket in flop_registry


def multiply_adds(func: torch._ops.OpOverload, values: Values, args: Any, kwargs: Any, result: Any) -> int | None:
    """Those of one call; None: not known."""
    known = _FORMULAS.get(func._schema.name.removeprefix("aten::"))
    if known is not None:
        return known(values)
    if not has_formula(func):
        return None
    from torch.utils.flop_counter import flop_registry

    return int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)) // 2
