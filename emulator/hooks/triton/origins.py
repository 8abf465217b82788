"""Where the values of a kernel come from: what later operations, and the report, must know of a handle.

The compiler lays the operands of mma.sync out by the narrowest element that any load behind them had, and the order of K follows that
layout. It walks back from the dot through elementwise operations, views and loads, and stops at all others; what a loop carries, or a
branch gives, it does not follow as long as the loop and the branch are there. So here: an operation of `_VIEWS`, `_CASTS` or
`_ELEMENTWISE` passes the loads of its operands on, one of `_ENDS` has none, and of a value that anything else made the loads are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from triton.language import core as tl
from triton.runtime.interpreter import InterpreterBuilder

from mmabits.emulator.hooks.triton.patches import Patches


class Origin(NamedTuple):
    """The loads behind a value, and the tl.join."""

    bits: int
    """Of the narrowest element among the loads that the compiler certainly finds; `NO_LOAD` where there is none."""
    joined: int
    """Bits of the elements of a tl.join that it certainly finds; 0: it finds none."""
    least: int
    """Likewise `bits`, of all loads that it may find."""
    may_join: int
    """Likewise `joined`."""
    is_odd: bool = False
    """There are several tl.join one after another, or of different elements, or of what was not loaded."""

    def widths(self, bits: int, halves_always: bool) -> tuple[int, int]:
        """The bits by which an operand with elements of `bits` is laid out: those that are certain, and the fewest possible.

        A tl.join halves them, from Triton 3.8 on if its elements are twice as wide.
        """
        certain, least = min(bits, self.bits), min(bits, self.least)
        halves = bool(self.joined) if halves_always else self.joined == 2 * certain
        laid_out = certain // 2 if halves else certain
        if self.is_odd and not halves_always:
            return laid_out, 1
        if (certain, self.joined) == (least, self.may_join):
            return laid_out, laid_out
        return laid_out, least // 2 if self.may_join else least


NO_LOAD: Final = 99
NOTHING: Final = Origin(NO_LOAD, 0, NO_LOAD, 0)
UNKNOWN: Final = Origin(NO_LOAD, 0, 4, NO_LOAD)


def origin(handle: Any) -> Origin:
    """The loads behind a handle. Scalars reach a dot only by a splat, where the compiler stops."""
    found: Origin | None = handle.attr.get("origin")
    if found is not None:
        return found
    return NOTHING if handle.data.size == 1 else UNKNOWN


def _both(first: Origin, second: Origin) -> Origin:
    mixed = bool(first.joined and second.joined) and first.joined != second.joined
    return Origin(
        min(first.bits, second.bits), max(first.joined, second.joined), min(first.least, second.least),
        max(first.may_join, second.may_join), first.is_odd or second.is_odd or mixed,
    )  # fmt: skip


def crossed(value: Any) -> Any:
    """A value that a loop carried, or a branch gave: the compiler may follow it no further, or may have dissolved that."""
    if isinstance(value, tuple):
        for part in value:
            crossed(part)
    elif isinstance(value, tl.tensor):
        before = origin(value.handle)
        if before is not NOTHING:
            value.handle.attr["origin"] = Origin(NO_LOAD, 0, before.least, before.may_join, before.is_odd)
    return value


def crossing(names: Iterable[str], values: dict[str, Any]) -> None:
    """Called by a kernel (see `source.py`) where a loop or a branch that binds `names` begins a pass or has ended."""
    for name in names:
        if name in values:
            crossed(values[name])


_VIEWS: Final = (
    "create_trans", "create_reshape", "create_expand_dims", "create_broadcast", "create_split", "create_bitcast", "create_int_to_ptr",
    "create_ptr_to_int",
)  # fmt: skip
_CASTS: Final = ("cast_impl", "create_fp_to_fp")
_ELEMENTWISE: Final = (
    "unary_op", "binary_op", "ternary_op", "create_addptr", "create_fabs", "create_idiv", "create_ashr", "create_umulhi", "create_fma",
    "create_clampf", "create_erf", "create_rsqrt", "create_extern_elementwise",
)  # fmt: skip
_ENDS: Final = (
    "create_splat", "create_make_range", "create_gather", "create_cat", "create_histogram", "create_atomic_rmw", "create_atomic_cas",
)  # fmt: skip

_ALL: Final = ("product", "constant", "argument", "zero")
"""What a view of a value still is: a product (or quotient), a constant of the program, a pointer made from arguments (their names), a
literal zero."""


def install(patches: Patches) -> None:
    """Have the interpreter's operations pass on where their results come from."""
    builder = InterpreterBuilder
    passed: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
        (_VIEWS, _ALL), (_CASTS, ("constant",)), (_ELEMENTWISE, ("argument",)), (("create_join", "create_fneg"), ("product",)),
    )  # fmt: skip
    for names, keys in passed:
        for name in names:
            if hasattr(builder, name):
                patches.set(builder, name, _following(getattr(builder, name), keys, name == "create_join"))
    for name in _ENDS:
        patches.set(builder, name, _ending(getattr(builder, name), _ALL if name == "create_splat" else ()))
    for name in (
        "get_fp16",
        "get_bf16",
        "get_fp32",
        "get_fp64",
        *(f"get_{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    ):
        patches.set(builder, name, _constant(getattr(builder, name)))
    patches.set(builder, "get_null_value", _constant(builder.get_null_value))
    patches.set(builder, "create_masked_load", _loading(builder.create_masked_load))


def _following(stock: Callable[..., Any], keys: tuple[str, ...], joins: bool) -> Callable[..., Any]:
    def operation(self: Any, *arguments: Any) -> Any:
        result = stock(self, *arguments)
        loads = NOTHING
        kept: dict[str, Any] | None = None
        for argument in arguments:
            attributes = getattr(argument, "attr", None)
            if attributes is None:
                continue
            behind = attributes.get("origin")
            if behind is None:
                behind = origin(argument)
            if behind is not NOTHING:
                loads = behind if loads is NOTHING else _both(loads, behind)
            if keys and len(attributes) > 1:
                kept = kept or {}
                for key in keys:
                    if key in attributes:
                        kept[key] = attributes[key] | kept[key] if key == "argument" and key in kept else attributes[key]
        if joins:
            width = result.dtype.primitive_bitwidth
            is_odd = loads.is_odd or loads.may_join > 0 or any(origin(argument).bits == NO_LOAD for argument in arguments)
            loads = Origin(loads.bits, width, loads.least, width, is_odd)
        for handle in result if isinstance(result, tuple) else (result,):
            handle.attr["origin"] = loads
            if kept:
                handle.attr.update(kept)
        return result

    return operation


def _ending(stock: Callable[..., Any], keys: tuple[str, ...]) -> Callable[..., Any]:
    def operation(self: Any, *arguments: Any) -> Any:
        handle = stock(self, *arguments)
        handle.attr["origin"] = NOTHING
        for key in keys:
            if key in arguments[-1].attr:
                handle.attr[key] = arguments[-1].attr[key]
        return handle

    return operation


def _constant(stock: Callable[..., Any]) -> Callable[..., Any]:
    def make(self: Any, value: Any) -> Any:
        handle = stock(self, value)
        handle.attr["constant"] = True
        if not handle.data.any():
            handle.attr["zero"] = True
        return handle

    return make


def _loading(stock: Callable[..., Any]) -> Callable[..., Any]:
    def load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **options: Any) -> Any:
        handle = stock(self, pointers, mask, other, *rest, **options)
        loads = origin(pointers)
        for argument in (mask, other):
            attributes = getattr(argument, "attr", None)
            if attributes:
                loads = _both(loads, origin(argument))
        bits = 8 * handle.data.itemsize
        if bits < 64:
            found = handle.data.size > 1  # the load of a scalar is none of a tensor; whether this is one cannot be seen
            loads = _both(loads, Origin(bits if found else NO_LOAD, 0, bits, 0))
        handle.attr["origin"] = loads
        return handle

    return load
