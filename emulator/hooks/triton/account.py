"""What a kernel computes here otherwise than a GPU does, entered into the report as it happens: each line an operation and its place."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder

from mmabits.emulator.hooks.triton.origins import NOTHING
from mmabits.emulator.hooks.triton.patches import Patches

if TYPE_CHECKING:
    from mmabits.emulator.hooks.triton.builder import Operations


@dataclass(frozen=True, kw_only=True)
class Inexact:
    """An operation of the interpreter's builder whose bits are not the GPU's."""

    method: str
    operation: str
    reason: str
    exact: tuple[str, ...] = ()
    """Types for which they are."""


_DIVISION: Final = "a GPU divides by div.full, or multiplies by the reciprocal of a constant, both up to 2 ulp off; here it is IEEE"
_LIBDEVICE: Final = "a GPU computes a polynomial of libdevice; here it is NumPy's"

# fmt: off
ROWS: Final = (
    Inexact(method="create_exp",        operation="exp",   reason="a GPU: a product and ex2.approx, f64 a polynomial; here NumPy's"),
    Inexact(method="create_exp2",       operation="exp2",  reason="a GPU: ex2.approx, f64 a polynomial; here NumPy's"),
    Inexact(method="create_log",        operation="log",   reason=_LIBDEVICE),
    Inexact(method="create_log2",       operation="log2",  reason=_LIBDEVICE),
    Inexact(method="create_sin",        operation="sin",   reason=_LIBDEVICE),
    Inexact(method="create_cos",        operation="cos",   reason=_LIBDEVICE),
    Inexact(method="create_erf",        operation="erf",   reason=_LIBDEVICE),
    Inexact(method="create_sqrt",       operation="sqrt",  reason="a GPU: sqrt.approx.ftz; here it is IEEE", exact=("fp64",)),
    Inexact(method="create_rsqrt",      operation="rsqrt", reason="a GPU: rsqrt.approx; here a square root and a quotient, each IEEE"),
    Inexact(method="create_frem", operation="remainder of floats", reason="a GPU: x - trunc(x / y) y, the quotient rounded; here exact"),
    Inexact(method="create_approx_divf", operation="division", reason=_DIVISION),
)
# fmt: on
"""Read from the PTX that Triton 3.6 to 3.9 emit."""

_TREE: Final = "a GPU adds in a tree of threads and warps; here NumPy's order"
_COMBINED: Final = "a GPU combines in a tree of threads and warps; here one after another"
ATOMIC: Final = "a GPU adds in any order, and f32 without subnormal numbers; here the programs take turns"
_RETURNED: Final = "it depends on the order of the programs; here they take turns"
_FUSED: Final = (
    "the compiler may fuse them into one multiply-add, which rounds once; here each is rounded; "
    "launch with enable_fp_fusion=False for the same on a GPU"
)


def _values(handle: Any) -> Any:
    """The numbers of a handle of floats."""
    if str(handle.dtype.scalar) == "bf16":
        return (handle.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return handle.data


def _power_of_two(handle: Any) -> bool:
    """Whether a handle is a constant of the program, and a power of two by which a GPU multiplies and divides exactly."""
    if "constant" not in handle.attr:
        return False
    fraction, exponent = np.frexp(_values(handle).flat[0])
    return bool(abs(fraction) == 0.5 and abs(exponent) < 120)


def _undone(scaled: Any, factor: Any, before: Any) -> bool:
    """Whether nothing was lost when a handle was multiplied by a constant."""
    return np.array_equal(_values(scaled) / _values(factor).flat[0], _values(before), equal_nan=True)


def _name(function: Any) -> str:
    """That of a function of triton.language.standard; empty: another."""
    found: str = getattr(function, "__name__", "")
    return found if getattr(interpreter.tl.standard, found, None) is function else ""


def _has_ties(data: Any, axis: int | None, largest: bool) -> bool:
    extremum = data.max(axis=axis, keepdims=True) if largest else data.min(axis=axis, keepdims=True)
    return bool(((data == extremum).sum(axis=axis) > 1).any())


class Account:
    """Enters into a session's report what differs, where it happens."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.roundings = 0
        """How many operations on floats have rounded so far: what combines floats and rounds depends on the order."""

    def tell(self, operation: str, reason: str) -> None:
        """One line more for the place where the kernel is."""
        operations = self.operations
        if operations.launch is not None:  # else an inner session runs the kernel, and tells
            operations.session.skip(operations.place(), operation, reason)

    # Products and sums -----------------------------------------------------------------------------------------------

    def product(self, stock: Callable[..., Any], builder: Any, left: Any, right: Any) -> Any:
        """`create_fmul`. A product with a power of two is exact, unless it leaves the range of normal numbers: then fusing shows."""
        handle = stock(builder, left, right)
        self.roundings += 1
        for constant, other in ((right, left), (left, right)):
            if _power_of_two(constant) and _undone(handle, constant, other):
                return handle
        handle.attr["product"] = "product"
        return handle

    def quotient(self, stock: Callable[..., Any], builder: Any, left: Any, right: Any) -> Any:
        """`create_fdiv`. The product inside a division is fused with a sum, too."""
        handle = stock(builder, left, right)
        self.roundings += 1
        if str(handle.dtype.scalar) == "fp64":
            return handle
        if not _power_of_two(right):
            self.tell("division", _DIVISION)
        elif np.array_equal(_values(handle) * _values(right).flat[0], _values(left), equal_nan=True):
            return handle
        handle.attr["product"] = "quotient"
        return handle

    def sum(self, left: Any, right: Any) -> None:
        """Of a sum or difference: whether a GPU rounds it once with the product in it."""
        self.roundings += 1
        for term, other in ((left, right), (right, left)):
            if "product" in term.attr and "zero" not in other.attr:
                return self.fused(term.attr["product"])

    def fused(self, kind: str) -> None:
        """A product, or a quotient, and a sum."""
        launch = self.operations.launch
        if launch is not None and launch.fuses:
            self.tell(f"a {kind} and a sum", _FUSED)

    # Reductions and scans --------------------------------------------------------------------------------------------

    def combined(self, stock: Callable[..., Any], op: Any, inputs: Any, *, scan: bool) -> Any:
        """`ReduceOps.apply_impl` and `ScanOps.apply_impl`."""
        handles = [each.handle for each in inputs]
        kinds = {str(handle.dtype.scalar) for handle in handles}
        length = handles[0].data.size if op.axis is None else handles[0].data.shape[op.axis]
        name, before = _name(op.combine_fn), self.roundings
        if "bf16" in kinds:
            # Past the short cuts for known functions, which take the codes of bf16 for integers.
            op.combine_fn = SimpleNamespace(fn=op.combine_fn.fn)
        result = stock(op, inputs)
        adds = name in ("_sum_combine", "_prod_combine")
        if (adds or self.roundings > before) and any(kind[0] in "fb" for kind in kinds):
            self._of_floats(name, handles, length, scan)
        elif name.endswith("_tie_break_fast") and _has_ties(handles[0].data, op.axis, "argmax" in name):
            self.tell("index of an extremum", "a GPU returns that of any of several that are equal; here the first's (see tie_break_left)")
        for each in result if isinstance(result, (list, tuple)) else (result,):
            each.handle.attr["origin"] = NOTHING
        return result

    def _of_floats(self, name: str, handles: list[Any], length: int, scan: bool) -> None:
        kinds = {handle.attr["product"] for handle in handles if "product" in handle.attr}
        if kinds and length > 1 and name == "_sum_combine":
            self.fused(kinds.pop())
        if length > 2:  # of two the order does not matter
            kind = "scan" if scan else "sum" if name == "_sum_combine" else "reduction"
            self.tell(f"{kind} of floats", _TREE if name == "_sum_combine" else _COMBINED)

    # Atomic operations -----------------------------------------------------------------------------------------------

    def atomic(self, name: str, pointers: Any, value: Any, adds: bool) -> None:
        """Of an atomic operation: the order of the programs shows in float sums, and in what it returns."""
        if adds and value.dtype.is_floating():
            self.tell("atomic sum of floats", ATOMIC)
        alone = interpreter.interpreter_builder.grid_dim == (1, 1, 1) and np.unique(pointers.data).size == pointers.data.size
        if not alone and not self._is_dropped():
            self.tell(f"what {name} returns", _RETURNED)

    def _is_dropped(self) -> bool:
        """Whether the kernel makes nothing of what the call returns."""
        where = self.operations.frame()
        if where is None:
            return False
        kernel, frame = where
        return isinstance(kernel.node_at(frame), ast.Expr)  # a statement that is one call has the place of the call

    # Undefined results -----------------------------------------------------------------------------------------------

    def divisor(self, right: Any) -> None:
        """Of an integer division or its remainder."""
        if not right.data.all():
            self.tell("integer division by zero", "undefined on a GPU; here 0")

    def distance(self, left: Any, right: Any) -> None:
        """Of a shift."""
        data = right.data
        if data.size and (int(data.max()) >= left.dtype.scalar.primitive_bitwidth or int(data.min()) < 0):
            self.tell("shift by more than the width", "undefined on a GPU; here NumPy's")


def install(patches: Patches, account: Account) -> None:
    """Have the interpreter's operations tell what differs."""
    builder = InterpreterBuilder

    def telling(row: Inexact, stock: Callable[..., Any]) -> Callable[..., Any]:
        def operation(self: Any, *arguments: Any) -> Any:
            account.roundings += 1
            if str(arguments[0].dtype.scalar) not in row.exact:
                account.tell(row.operation, row.reason)
            return stock(self, *arguments)

        return operation

    for row in ROWS:
        if hasattr(builder, row.method):
            patches.set(builder, row.method, telling(row, getattr(builder, row.method)))
    product, quotient = builder.create_fmul, builder.create_fdiv
    patches.set(builder, "create_fmul", lambda self, left, right: account.product(product, self, left, right))
    patches.set(builder, "create_fdiv", lambda self, left, right: account.quotient(quotient, self, left, right))

    def before(name: str, tell: Callable[[Any, Any], None]) -> None:
        stock = getattr(builder, name)

        def operation(self: Any, left: Any, right: Any) -> Any:
            tell(left, right)
            return stock(self, left, right)

        patches.set(builder, name, operation)

    for name in ("create_sdiv", "create_udiv", "create_srem", "create_urem"):
        before(name, lambda left, right: account.divisor(right))
    for name in ("create_shl", "create_lshr", "create_ashr"):
        before(name, account.distance)
    before("create_fsub", account.sum)
    for owner, scan in ((interpreter.ReduceOps, False), (interpreter.ScanOps, True)):

        def combine(self: Any, inputs: Any, stock: Any = owner.apply_impl, scan: bool = scan) -> Any:
            return account.combined(stock, self, inputs, scan=scan)

        patches.set(owner, "apply_impl", combine)
