"""Loads, stores, atomic operations and tensor descriptors: within the arguments, and as a GPU carries them out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from triton._C.libtriton import ir
from triton.language import core as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from mmabits.emulator.hooks.triton.account import ATOMIC, Account
from mmabits.emulator.hooks.triton.origins import NO_LOAD, NOTHING, Origin
from mmabits.emulator.hooks.triton.patches import Patches
from mmabits.isa import OperandError

if TYPE_CHECKING:
    from mmabits.emulator.hooks.triton.builder import Operations

Array = npt.NDArray[Any]

_NAN = {"fp16": 0x7E00, "bf16": 0x7FC0, "fp32": 0x7FC00000, "fp64": 0x7FF8000000000000, "fp8e5": 0x7E, "fp8e4nv": 0x7F}
"""What the compiler pads with where it turns descriptors into pointers: before sm_90."""
_TMA = 90
"""First capability that carries out descriptors itself."""
_POLICIES = (None,) * (len(inspect.signature(InterpreterBuilder.create_masked_load).parameters) - 4)
"""What `create_masked_load` takes beside pointers, mask and padding, and does not use."""
_COMBINE: dict[str, Callable[..., Array]] = {
    "ADD": np.add, "AND": np.bitwise_and, "OR": np.bitwise_or, "XOR": np.bitwise_xor, "MIN": np.fmin, "MAX": np.fmax,
}  # fmt: skip


class Accesses:
    """What takes the place of the interpreter's own accesses, for one session."""

    def __init__(self, operations: Operations, account: Account) -> None:
        self.operations, self.account = operations, account

    def check(self, what: str, pointers: Any, mask: Any) -> None:
        """Refuse to follow pointers out of the arguments that they were made from.

        Pointers that a program reads from memory, or makes from integers, are followed as they are.

        Raises:
            OperandError: one leads elsewhere.
        """
        launch, names = self.operations.launch, pointers.attr.get("argument")
        if launch is None or launch.memory is None or not names or not names <= launch.memory.of.keys():
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        set_ = None if mask is None else np.asarray(getattr(mask, "data", mask))
        if not launch.memory.holds(pointers.data, set_, size):
            site = self.operations.site(self.operations.frame())
            far = launch.memory.distance(names, pointers.data, set_, size)
            raise OperandError(f"{site}: {what} leaves its argument {' or '.join(sorted(names))}: {far}")

    # Atomic operations -----------------------------------------------------------------------------------------------

    def atomic(self, stock: Callable[..., Any], builder: Any, kind: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        """`create_atomic_rmw`, which knows no bf16."""
        self.check("an atomic operation", pointers, mask)
        self.account.atomic("an atomic operation", pointers, value, kind == ir.ATOMIC_OP.FADD)
        if kind == ir.ATOMIC_OP.FADD and str(value.dtype.scalar) == "bf16":
            return self._in_turns(pointers, value, mask, "ADD")
        return stock(builder, kind, pointers, value, mask, *rest)

    def _in_turns(self, pointers: Any, value: Any, mask: Any, kind: str) -> TensorHandle:
        """Combine values with what memory holds; where several have one address, one after another. What was there before."""
        places, new, wanted = (np.broadcast_to(data, pointers.data.shape).ravel() for data in (pointers.data, value.data, mask.data))
        before, element = np.zeros_like(new), value.dtype.scalar
        turns = _turns(places, wanted)
        for turn in range(int(turns.max(initial=-1)) + 1):
            at = np.flatnonzero(turns == turn)
            every = np.ones(at.size, bool)
            before[at] = interpreter._interpreter.load(places[at], every, np.zeros_like(new[at]), new.dtype)
            interpreter._interpreter.store(places[at], self._combined(kind, element, before[at], new[at]), every)
        return TensorHandle(before.reshape(pointers.data.shape), element)

    def _combined(self, kind: str, element: Any, held: Array, new: Array) -> Array:
        if element != tl.bfloat16:
            return _COMBINE[kind](held, new)
        casts = self.operations.casts
        wide = _COMBINE[kind](casts.float_to_float(held, "bf16", "f32"), casts.float_to_float(new, "bf16", "f32"))
        return casts.float_to_float(wide, "f32", "bf16")

    # Descriptors -----------------------------------------------------------------------------------------------------

    def load(self, builder: Any, descriptor: Any, offsets: list[Any]) -> TensorHandle:
        """`create_descriptor_load`, which has no NaN for bf16 and fp8."""
        pointers, inside = _pointers(descriptor, offsets)
        element, nan = pointers.get_element_ty(), descriptor.padding == ir.PADDING_OPTION.PAD_NAN
        if nan and self.operations.planner.capability >= _TMA and not inside.data.all():
            self.account.tell("padding with NaN", "which NaN the copy unit of a GPU writes is not known")
        handle = self._padded(builder, pointers, inside, element, nan)
        if getattr(descriptor, "round_f32_to_tf32", False) and element == tl.float32:
            rounded = TensorHandle(interpreter._round_f32_to_tf32(handle.data), element)
            rounded.attr["origin"] = handle.attr["origin"]
            return rounded
        return handle

    def gather(self, builder: Any, descriptor: Any, rows: Any, column: Any) -> TensorHandle:
        """`create_descriptor_gather`. Whether the compiler takes it for a load depends on version and architecture."""
        parts = [self.load(builder, descriptor, [TensorHandle(np.array([row]), tl.int32), column]) for row in rows.data]
        result = TensorHandle(np.concatenate([part.data for part in parts]), parts[0].dtype)
        result.attr["origin"] = Origin(NO_LOAD, 0, 8 * result.data.itemsize, 0)
        return result

    def reduce(self, kind: Any, descriptor: Any, value: Any, offsets: list[Any]) -> None:
        """`create_descriptor_reduce`, which the interpreter lacks."""
        pointers, inside = _pointers(descriptor, offsets)
        element = pointers.get_element_ty()
        if value.dtype.scalar != element:
            operations = self.operations
            site = operations.site(operations.frame())
            operations.session.refuse(site, "an atomic operation by a descriptor", f"a value of {value.dtype.scalar} for {element}")
        self.check("an atomic operation by a descriptor", pointers, inside)
        if element.is_floating() and kind == ir.DESCRIPTOR_REDUCE_KIND.ADD:
            self.account.tell("atomic sum of floats", ATOMIC)
        self._in_turns(pointers, value, inside, kind.name)

    def block(self, builder: Any, block: Any, boundary_check: Any, padding: Any, *_: Any) -> TensorHandle:
        """`create_tensor_pointer_load` (up to Triton 3.7), which has no NaN for bf16 and fp8."""
        pointers, inside = block.materialize_pointers(boundary_check)
        element = pointers.get_element_ty()
        return self._padded(builder, pointers, TensorHandle(inside, tl.int1), element, padding == ir.PADDING_OPTION.PAD_NAN)

    def _padded(self, builder: Any, pointers: TensorHandle, inside: TensorHandle, element: Any, nan: bool) -> TensorHandle:
        dtype = interpreter._get_np_dtype(element)
        other = TensorHandle(np.zeros(inside.data.shape, dtype), element)
        if nan:
            other.data.view(f"u{dtype.itemsize}")[...] = _NAN[str(element)]
        inside.attr["origin"] = other.attr["origin"] = NOTHING
        loaded: TensorHandle = builder.create_masked_load(pointers, inside, other, *_POLICIES)
        return loaded


def _pointers(descriptor: Any, offsets: list[Any]) -> tuple[TensorHandle, TensorHandle]:
    """`TensorDescHandle.materialize_pointers`, which wants block offsets that are multiples of 16 bytes; TMA does not."""
    element, shape = descriptor.base.dtype.element_ty, descriptor.block_shape
    size = element.primitive_bitwidth // 8
    places, inside = np.broadcast_to(descriptor.base.data, shape), np.ones(shape, bool)
    for axis, (extent, stride, offset) in enumerate(zip(descriptor.shape, descriptor.strides, offsets, strict=True)):
        along = [1] * len(shape)
        along[axis] = shape[axis]
        index = (np.asarray(offset.data).astype(np.int64) + np.arange(shape[axis])).reshape(along)
        places = places + (size * index * stride.data).astype(np.uint64)
        inside = inside & (index >= 0) & (index < extent.data)
    pointers = TensorHandle(places, descriptor.base.dtype.scalar)
    _mark(pointers, descriptor.base)
    return pointers, TensorHandle(inside, tl.int1)


def _turns(places: Array, wanted: Array) -> Array:
    """For each place how often it stood before; -1 where it is not wanted."""
    turns = np.full(places.size, -1)
    at = np.flatnonzero(wanted)
    order = at[np.argsort(places[at], kind="stable")]
    first = np.r_[True, places[order][1:] != places[order][:-1]][: order.size]
    starts = np.maximum.accumulate(np.where(first, np.arange(order.size), 0)) if order.size else order
    turns[order] = np.arange(order.size) - starts
    return turns


def install(patches: Patches, accesses: Accesses) -> None:
    """Put the accesses in the place of the interpreter's."""
    builder = InterpreterBuilder
    load, store, atomic, compare = (
        getattr(builder, f"create_{name}") for name in ("masked_load", "masked_store", "atomic_rmw", "atomic_cas")
    )

    def loads(self: Any, pointers: Any, mask: Any, *rest: Any, **policies: Any) -> Any:
        accesses.check("a load", pointers, mask)
        handle = load(self, pointers, mask, *rest, **policies)
        other = rest[0] if rest else policies.get("other")
        if other is None and not mask.data.all():
            accesses.operations.leave_open(handle, ~mask.data)
        return handle

    def stores(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **policies: Any) -> Any:
        accesses.check("a store", pointers, mask)
        return store(self, pointers, value, mask, *rest, **policies)

    def compares(self: Any, pointers: Any, expected: Any, value: Any, *rest: Any) -> Any:
        accesses.check("an atomic operation", pointers, None)
        accesses.account.atomic("an atomic operation", pointers, value, False)
        return compare(self, pointers, expected, value, *rest)

    patches.set(builder, "create_masked_load", loads)
    patches.set(builder, "create_masked_store", stores)
    patches.set(builder, "create_atomic_rmw", lambda self, *arguments: accesses.atomic(atomic, self, *arguments))
    patches.set(builder, "create_atomic_cas", compares)
    patches.set(interpreter.TensorDescHandle, "materialize_pointers", _pointers)
    patches.set(builder, "create_descriptor_load", lambda self, descriptor, offsets, *_: accesses.load(self, descriptor, offsets))
    patches.set(
        builder, "create_descriptor_gather", lambda self, descriptor, rows, column, _: accesses.gather(self, descriptor, rows, column)
    )
    patches.set(
        builder, "create_descriptor_reduce",
        lambda self, kind, descriptor, value, offsets: accesses.reduce(kind, descriptor, value, offsets),
    )  # fmt: skip
    make = builder.create_make_tensor_descriptor

    def descriptor(self: Any, *arguments: Any) -> Any:
        try:
            return make(self, *arguments)
        except AssertionError as error:
            operations = accesses.operations
            raise OperandError(f"{operations.site(operations.frame())}: a tensor descriptor: {error}") from error

    patches.set(builder, "create_make_tensor_descriptor", descriptor)
    if hasattr(interpreter, "BlockPointerHandle"):
        stock = interpreter.BlockPointerHandle.materialize_pointers

        def materialize(self: Any, boundary_check: Any) -> Any:
            pointers, inside = stock(self, boundary_check)
            _mark(pointers, self.base)
            return pointers, inside

        patches.set(interpreter.BlockPointerHandle, "materialize_pointers", materialize)
        patches.set(builder, "create_tensor_pointer_load", lambda self, *arguments: accesses.block(self, *arguments))


def _mark(pointers: Any, base: Any) -> None:
    """Pointers made from a base and from numbers."""
    pointers.attr["origin"] = NOTHING
    if "argument" in base.attr:
        pointers.attr["argument"] = base.attr["argument"]
