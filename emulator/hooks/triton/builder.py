"""The interpreter's operations that compute otherwise than a GPU, done right: dots, casts and arithmetic on bf16."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
from triton._C.libtriton import ir
from triton.language import core as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from mmabits.emulator.codecs import encode, from_codes
from mmabits.emulator.engine.fma import fma, sum_rounded_to_odd
from mmabits.emulator.hooks.session import Session
from mmabits.emulator.hooks.triton import accesses, account, libdevice, origins
from mmabits.emulator.hooks.triton.accesses import Accesses
from mmabits.emulator.hooks.triton.account import Account
from mmabits.emulator.hooks.triton.casts import NAMES, Casts, float_to_integer
from mmabits.emulator.hooks.triton.dots import Dot, ScaledDot
from mmabits.emulator.hooks.triton.memory import GivenMemory
from mmabits.emulator.hooks.triton.origins import NOTHING, origin
from mmabits.emulator.hooks.triton.patches import Patches
from mmabits.emulator.hooks.triton.plans import Planner
from mmabits.emulator.hooks.triton.products import VIEWS, as_operand, product, scaled_product
from mmabits.emulator.hooks.triton.source import Kernels, RewrittenKernel
from mmabits.emulator.layouts import unpack_fp4
from mmabits.isa import EmulationError

Array = npt.NDArray[Any]

_FLOATS = frozenset(("fp16", "bf16", "fp32", "fp64", "fp8e4nv", "fp8e5"))
_FP8 = frozenset(("fp8e4nv", "fp8e5"))
_UNSETTLED = (
    "the compiler makes the other term of a sum with a dot its accumulator if the dot has no other uses, and this one has uses that depend "
    "on the course of the program; write tl.dot(a, b, acc)"
)
_ASSUMED = "the term added to the dot taken for its accumulator, as if the dot had no other use"
_CROSSED = "the operands came through a loop, a branch or an operation behind which the compiler may not look"
_MASKED = (
    "elements that a mask leaves out of a load without `other`: undefined in Triton's language, though its compiler for NVIDIA's GPUs "
    "puts zeros there"
)
_NAN = frozenset(("f16", "bf16", "f32", "f64", "e4m3", "e5m2"))
"""Types that have NaN."""
_OTHER_FP8 = frozenset(("fp8e4b8", "fp8e4b15", "fp8e5b16"))


@dataclass
class InterpretedLaunch:
    """A kernel being run."""

    kernel: RewrittenKernel
    warps: int
    ctas: int
    constants: frozenset[str] = frozenset()
    """Parameters whose values the compiler knows."""
    fuses: bool = True
    """The compiler may make one fused multiply-add of a product and a sum."""
    memory: GivenMemory | None = None
    """What the launch may touch."""


class Lazy(TensorHandle):  # type: ignore[misc]
    """A dot whose accumulator is a literal zero: what is added to it may become the accumulator. Computed when it is read."""

    def __init__(self, dtype: Any, zero: Array, compute: Callable[[Array, str], Array], one_use: bool | None, site: str) -> None:
        self.dtype, self.zero, self.compute, self.one_use, self.site = dtype, zero, compute, one_use, site
        self.attr: dict[str, Any] = {"origin": NOTHING}
        self.taken: Array | None = None
        """The sum that the dot went into, where only what came before said that it has no other use."""
        self.plain: Array | None = None
        """What that sum is otherwise."""
        self._data: Array | None = None

    @property
    def is_read(self) -> bool:
        """Whether it has had another use."""
        return self._data is not None or self.taken is not None

    @property
    def data(self) -> Array:
        """The dot added to zero."""
        if self._data is None:
            self._data = self.compute(self.zero, "")
            if self.taken is not None and self.plain is not None and self.taken.tobytes() != (self._data + self.plain).tobytes():
                raise EmulationError(f"{self.site}: {_UNSETTLED}")
        return self._data


@dataclass
class Operations:
    """Methods that take the place of the interpreter's, for one session."""

    session: Session
    planner: Planner
    casts: Casts
    kernels: Kernels
    folds_scaled: bool
    """The compiler makes what is added to a block-scaled dot its accumulator, as with other dots."""
    halves_always: bool
    """A tl.join behind an operand always halves the width of its layout."""
    launch: InterpretedLaunch | None = None
    account: Account = field(init=False)
    _sites: dict[tuple[str, int, int], str] = field(default_factory=dict)
    _facts: dict[tuple[Any, ...], tuple[bool | None, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.account = Account(self)

    # Where we are ----------------------------------------------------------------------------------------------------

    def frame(self) -> tuple[RewrittenKernel, FrameType] | None:
        """The innermost function of the program on the stack."""
        frame: FrameType | None = sys._getframe(1)
        known = self.kernels.by_code
        while frame is not None:
            kernel = known.get(id(frame.f_code))
            if kernel is not None:
                return kernel, frame
            frame = frame.f_back
        return None

    def site(self, where: tuple[RewrittenKernel, FrameType] | None) -> str:
        """`kernel, line 12` for the report; inside a function that the kernel calls, that function too."""
        outer = self.launch.kernel.name if self.launch else "a kernel"
        if where is None:
            return outer
        kernel, frame = where
        key = (outer, id(frame.f_code), frame.f_lineno)
        if key not in self._sites:
            inner = "" if kernel.name == outer else f" in {kernel.name}"
            self._sites[key] = f"{outer}{inner}, line {frame.f_lineno}"
        return self._sites[key]

    def place(self) -> str:
        """As `site`, but inside a function of Triton's library the line of the program that calls it: `kernel, line 12, tl.softmax`."""
        frame: FrameType | None = sys._getframe(1)
        known, inner = self.kernels.by_code, ""
        while frame is not None:
            kernel = known.get(id(frame.f_code))
            if kernel is not None and not kernel.library:
                return self.site((kernel, frame)) + inner
            if kernel is not None:
                inner = f", tl.{kernel.name}"
            frame = frame.f_back
        return self.site(None) + inner

    # Dots ------------------------------------------------------------------------------------------------------------

    def dot(self, a: Any, b: Any, d: Any, precision: Any, imprecise: int) -> TensorHandle:
        """`create_dot`."""
        where = self.frame()
        site = self.site(where)
        name_a, name_b, name_d = (self._type(handle, site) for handle in (a, b, d))
        *batch, m, k = a.data.shape
        assert self.launch is not None
        loaded, joined, known = self._layout(a, b)
        plan = self.planner.plan(
            Dot(
                capability=self.planner.capability, a=name_a, b=name_b, acc=name_d, m=m, n=b.data.shape[-1], k=k,
                batch=batch[0] if batch else 0, warps=self.launch.warps, ctas=self.launch.ctas,
                precision=str(precision).split(".")[-1].lower(), imprecise=imprecise,
                a_loaded=loaded[0], b_loaded=loaded[1], a_joined=joined[0], b_joined=joined[1],
            )
        )  # fmt: skip
        left, right = as_operand(a.data, name_a), as_operand(b.data, name_b)
        if not known or (batch and any(joined)):
            plan = plan.with_unknown_order(_CROSSED)

        def compute(c: Array, note: str) -> Array:
            return np.ascontiguousarray(product(self.session, plan, left, right, c, site=site, note=note), dtype=c.dtype)

        if imprecise == 0 and "zero" in d.attr and name_d != "s32" and where is not None:
            one_use, literal = self._dot_in_source(*where)
            if literal:
                return Lazy(d.dtype.scalar, np.ascontiguousarray(d.data), compute, one_use, site)
        return _ended(TensorHandle(compute(np.ascontiguousarray(d.data), ""), d.dtype.scalar))

    def _layout(self, *operands: Any) -> tuple[list[str], list[int], bool]:
        """By which narrower loads a dot's operands are laid out (`f16`, `s8`, or empty), the bits of what tl.join joined behind them, and
        whether both are certain.
        """
        loaded, joined, certain, least = [], [], [], []
        for handle in operands:
            bits, behind = handle.dtype.primitive_bitwidth, origin(handle)
            narrowest, widths = min(bits, behind.bits), behind.widths(bits, self.halves_always)
            loaded.append({16: "f16", 8: "s8"}.get(narrowest, "") if narrowest < bits else "")
            joined.append(0 if str(handle.dtype.scalar) in _FP8 else behind.joined)
            certain.append(widths[0])
            least.append(widths[1] if joined[-1] == behind.joined else widths[1] // 2)
        return loaded, joined, min(certain) == min(least)

    def _type(self, handle: Any, site: str) -> str:
        name = str(handle.dtype.scalar)
        if name in _OTHER_FP8:
            self.session.refuse(site, f"tl.dot on {name}", "no NVIDIA tensor core has that type")
        return {"int32": "s32"}.get(name) or NAMES[name]

    def _constants(self, kernel: RewrittenKernel) -> frozenset[str]:
        return self.launch.constants if self.launch is not None and kernel is self.launch.kernel else frozenset()

    def _dot_in_source(self, kernel: RewrittenKernel, frame: FrameType, *, position: int = 2) -> tuple[bool | None, bool]:
        """Of a dot onto zero: whether its result has one use, and whether the compiler sees the zero, too.

        Args:
            kernel: the function that calls the dot.
            frame: in which it does.
            position: of the accumulator among the dot's arguments.
        """
        constants = self._constants(kernel)
        key = (frame.f_code, frame.f_lasti, constants)
        if key not in self._facts:
            node = kernel.node_at(frame)
            if isinstance(node, ast.Call):
                given = [keyword.value for keyword in node.keywords if keyword.arg == "acc"] or node.args[position : position + 1]
                self._facts[key] = kernel.result_used_once(node), _is_literal(kernel, node, given[0] if given else None, constants)
            else:
                self._facts[key] = None, True
        return self._facts[key]

    def add(self, stock: Callable[..., Any], builder: Any, left: Any, right: Any) -> Any:
        """`create_fadd`: a dot onto zero that something is added to is a dot onto that, as the compiler's combine pass has it.

        It does so where the result of the dot has no other use, and with the right operand first. Where the source does not settle
        the uses, what happens does, and the report says so; a use that comes later and would change the sum is an error.
        """
        for dot, other in ((right, left), (left, right)):
            if not isinstance(dot, Lazy) or dot.is_read or dot.dtype != other.dtype or other.data.shape != dot.zero.shape:
                continue
            once, literal = self._sum_in_source(dot is right)
            if dot.one_use is False or once is False:
                continue
            certain = bool(dot.one_use and once)
            if "zero" in other.attr and literal:
                return Lazy(dot.dtype, dot.zero, dot.compute, True if certain else None, dot.site)
            folded = dot.compute(np.ascontiguousarray(other.data), "" if certain else _ASSUMED)
            if not certain:
                dot.taken, dot.plain = folded, other.data
            return _ended(TensorHandle(folded, dot.dtype))
        self.account.sum(left, right)
        return stock(builder, left, right)

    def leave_open(self, handle: Any, masked: Array) -> None:
        """What a load left out, and what stands there. Integers stay zero: as offsets they would lead the program astray."""
        form = NAMES.get(str(handle.dtype.scalar))
        if self.session.poisons and form in _NAN:
            handle.data[masked] = encode(np.nan, form).view(handle.data.dtype)
        here = "poison" if self.session.poisons and form in _NAN else "zeros"
        self.session.leave_open(self.site(self.frame()), "tl.load", _MASKED, here=here)

    def _sum_in_source(self, dot_is_right: bool) -> tuple[bool | None, bool]:
        """Of a sum: whether the operand that is a dot has no other use, and whether a zero beside it is one for the compiler, too."""
        where = self.frame()
        if where is None:
            return None, False
        kernel, frame = where
        constants = self._constants(kernel)
        key = (frame.f_code, frame.f_lasti, constants, dot_is_right)
        if key not in self._facts:
            match kernel.node_at(frame):
                case ast.BinOp(left=left, right=right) as node:
                    dot, other = (right, left) if dot_is_right else (left, right)
                    self._facts[key] = kernel.operand_read_once(dot), _is_literal(kernel, node, other, constants)
                case ast.AugAssign(target=target, value=value) as node if dot_is_right:
                    self._facts[key] = kernel.operand_read_once(value), _is_literal(kernel, node, target, constants)
                case _:
                    self._facts[key] = None, False
        return self._facts[key]

    def scaled_dot(self, semantic: Any, arguments: tuple[Any, ...]) -> Any:
        """`TritonSemantic.dot_scaled`, whose own form fails in Triton 3.6 and 3.7 and ignores e4m3 scales later."""
        lhs, lhs_scale, lhs_format, rhs, rhs_scale, rhs_format, acc, fast, lhs_along_k, rhs_along_k, out = map(_value, arguments)
        where = self.frame()
        site = self.site(where)
        a, b = self._scaled_elements(site, lhs, lhs_format, lhs_along_k, 1), self._scaled_elements(site, rhs, rhs_format, rhs_along_k, 0)
        if a.ndim != 2:
            self.session.refuse(site, "tl.dot_scaled", f"operands of {a.ndim} dimensions are not emulated")
        if a.shape[1] != b.shape[0]:
            self.session.refuse(site, "tl.dot_scaled", f"A is {a.shape[0]} x {a.shape[1]} and B is {b.shape[0]} x {b.shape[1]}")
        scale_a, block_a = self._scales(site, "lhs_scale", lhs_scale, lhs_format, a.shape)
        scale_b, block_b = self._scales(site, "rhs_scale", rhs_scale, rhs_format, b.shape[::-1])
        if scale_a is None and scale_b is None:
            self.session.refuse(site, "tl.dot_scaled", "neither operand has scales; that is tl.dot")
        (m, k), n = a.shape, b.shape[1]
        c = np.zeros((m, n), np.float32) if acc is None else np.ascontiguousarray(acc.handle.data)
        if c.shape != (m, n) or c.dtype != np.float32 or str(out) != "fp32":
            self.session.refuse(site, "tl.dot_scaled", f"the accumulator must be fp32 of {m} x {n}, got {out} of {c.shape}")
        assert self.launch is not None
        plan = self.planner.plan(
            ScaledDot(
                capability=self.planner.capability, a=lhs_format, b=rhs_format, m=m, n=n, k=k, a_scale=_scale_name(scale_a),
                b_scale=_scale_name(scale_b), a_block=block_a, b_block=block_b, a_along_k=bool(lhs_along_k), b_along_k=bool(rhs_along_k),
                fast=bool(fast), warps=self.launch.warps, ctas=self.launch.ctas,
            )
        )  # fmt: skip
        assert plan.instruction is not None
        if plan.convert and "e2m1" not in (lhs_format, rhs_format):
            behind = [origin(each.handle) for each in (lhs, lhs_scale, rhs, rhs_scale) if each is not None]
            if min(each.bits for each in behind) > 8 or any(each.may_join for each in behind):
                plan = plan.with_unknown_order(_CROSSED)
        columns = None if scale_b is None else np.ascontiguousarray(scale_b.T)

        def compute(c: Array, note: str) -> Array:
            return np.ascontiguousarray(scaled_product(self.session, plan, a, b, c, scale_a, columns, site=site, note=note))

        handle: TensorHandle | None = None
        if self.folds_scaled and where is not None and (acc is None or "zero" in acc.handle.attr):
            one_use, literal = self._dot_in_source(*where, position=6)
            if literal:
                handle = Lazy(tl.float32, c, compute, one_use, site)
        if handle is None:
            handle = _ended(TensorHandle(compute(c, ""), tl.float32))
        return tl.tensor(handle, tl.block_type(out, [m, n]))

    def _scaled_elements(self, site: str, operand: Any, form: str, along_k: bool, k_axis: int) -> Array:
        """The elements of an operand, two-dimensional, in an ml_dtypes type or float16."""
        wanted = {"e4m3": ("fp8e4nv", "uint8"), "e5m2": ("fp8e5", "uint8"), "e2m1": ("uint8",), "bf16": ("bf16", "uint16"),
                  "fp16": ("fp16", "uint16")}.get(form)  # fmt: skip
        held = str(operand.dtype)
        if wanted is None or held not in wanted:
            known = "e2m1, e4m3, e5m2, bf16, fp16" if wanted is None else " or ".join(wanted)
            self.session.refuse(site, f"tl.dot_scaled with format {form!r}", f"got a tensor of {held}; allowed: {known}")
        data = np.ascontiguousarray(operand.handle.data)
        if form == "e2m1":
            return unpack_fp4(data.view(np.uint8), axis=k_axis if along_k else 1 - k_axis)
        if not along_k:
            self.session.refuse(site, f"tl.dot_scaled with format {form!r}", "only e2m1 can be packed along another axis than K")
        return data.view(VIEWS.get(form, np.dtype(np.float16)))

    def _scales(self, site: str, name: str, scale: Any, form: str, shape: tuple[int, ...]) -> tuple[Array | None, int]:
        """Scales as (rows, K / block), and the block."""
        if scale is None:
            if form == "e2m1":
                self.session.refuse(site, "tl.dot_scaled", f"an operand of e2m1 has no {name}")
            return None, 0
        held, data = str(scale.dtype), np.ascontiguousarray(scale.handle.data)
        rows, k = shape
        block = k // data.shape[-1] if data.ndim == 2 and data.shape[-1] else 0
        if block not in (16, 32) or data.shape != (rows, k // block) or k % block:
            self.session.refuse(site, "tl.dot_scaled", f"{name} must have shape ({rows}, {k} / 32) or ({rows}, {k} / 16), got {data.shape}")
        forms = {"uint8": "ue8m0", "int8": "ue8m0", "fp8e4nv": "ue4m3"}
        if held not in forms:
            self.session.refuse(site, "tl.dot_scaled", f"{name} must be uint8 (ue8m0) or fp8e4nv (ue4m3), got {held}")
        return from_codes(data.view(np.uint8), forms[held]), block

    # Casts and arithmetic --------------------------------------------------------------------------------------------

    def cast(self, stock: Callable[..., Any], builder: Any, source: Any, to: Any) -> TensorHandle:
        """`cast_impl`, which truncates f32 to bf16 and wraps floats out of an integer's range."""
        from_name, to_name = str(source.dtype.scalar), str(to.scalar)
        if from_name in _FLOATS and to_name in _FLOATS:
            handle = self.convert(source, to, None)
            if (from_name, to_name) == ("fp32", "fp64") and "product" in source.attr:
                handle.attr["product"] = source.attr["product"]  # a sum cut back to f32 is one of f32 for the compiler
            return handle
        if from_name in _FLOATS and to.scalar.is_int() and to_name != "int1":
            values = self.casts.float_to_float(source.data, "bf16", "f32") if from_name == "bf16" else source.data
            return TensorHandle(float_to_integer(values, interpreter._get_np_dtype(to)), to.scalar)
        if to_name == "bf16":
            return TensorHandle(self.casts.integer_to_bf16(source.data), to.scalar)
        return TensorHandle(stock(builder, source, to).data, to.scalar)

    def multiply_add(self, stock: Callable[..., Any], builder: Any, x: Any, y: Any, z: Any) -> Any:
        """`create_fma`, which rounds twice before Triton 3.9, in f16 always, and takes the codes of bf16 for integers."""
        self.account.roundings += 1
        name = str(z.dtype.scalar)
        if name == "fp32":
            return TensorHandle(fma(x.data, y.data, z.data), z.dtype.scalar)
        if name not in ("fp16", "bf16"):
            return stock(builder, x, y, z)
        x, y, z = (self.casts.float_to_float(each.data, NAMES[name], "f64") for each in (x, y, z))
        total = sum_rounded_to_odd(x * y, z)
        return TensorHandle(self.casts.float_to_float(total, "f64", NAMES[name]), tl.bfloat16 if name == "bf16" else tl.float16)

    def convert(self, source: Any, to: Any, rounding: Any) -> TensorHandle:
        """`create_fp_to_fp`."""
        names = str(source.dtype.scalar), str(to.scalar)
        for name in names:
            if name not in NAMES:
                self.session.refuse(self.site(self.frame()), f"a cast from {names[0]} to {names[1]}", f"{name} is not emulated")
        how = "rz" if str(rounding).endswith("RTZ") else "rn"
        return TensorHandle(self.casts.float_to_float(source.data, NAMES[names[0]], NAMES[names[1]], how), to.scalar)

    def arithmetic(self, stock: Callable[..., Any], builder: Any, handles: tuple[Any, ...], op: Callable[..., Array]) -> TensorHandle:
        """`unary_op`, `binary_op` and `ternary_op`, which take the codes of bf16 for integers."""
        kinds = {str(handle.dtype) for handle in handles}
        if "bf16" in kinds and op is not np.where:
            wide = [self.casts.float_to_float(h.data, "bf16", "f32") if str(h.dtype) == "bf16" else h.data for h in handles]
            with np.errstate(all="ignore"):
                result = op(*wide)
            if result.dtype != np.bool_:
                result = self.casts.float_to_float(result.astype(np.float32), "f32", "bf16")
            return TensorHandle(result, tl.bfloat16)
        if kinds & _FP8 and op is not np.where:
            self.session.refuse(self.site(self.frame()), "arithmetic on fp8", "NVIDIA GPUs have none; cast first")
        return stock(builder, *handles, op)


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, tl.constexpr) else argument


def _scale_name(scales: Array | None) -> str:
    if scales is None:
        return ""
    return "ue8m0" if scales.dtype == np.dtype("float8_e8m0fnu") else "ue4m3"


def _ended(handle: TensorHandle) -> TensorHandle:
    """A handle behind which the compiler does not look."""
    handle.attr["origin"] = NOTHING
    return handle


def _is_literal(kernel: RewrittenKernel, place: ast.AST, zero: ast.AST | None, constants: frozenset[str]) -> bool:
    """Whether a zero that is read at a place is one for the compiler, and not carried by a loop."""
    return not (isinstance(zero, ast.Name) and kernel.is_carried(place, zero.id, constants))


def install(patches: Patches, operations: Operations) -> None:
    """Put the operations in the place of the interpreter's."""
    builder, ops = InterpreterBuilder, operations
    patches.set(builder, "create_dot", lambda self, a, b, d, precision, imprecise: ops.dot(a, b, d, precision, imprecise))
    patches.set(builder, "create_fp_to_fp", lambda self, source, to, rounding: ops.convert(source, to, rounding))
    stock_cast, stock_add = builder.cast_impl, builder.create_fadd
    patches.set(builder, "cast_impl", lambda self, source, to: ops.cast(stock_cast, self, source, to))
    patches.set(builder, "create_fadd", lambda self, left, right: ops.add(stock_add, self, left, right))
    unary, binary, ternary = builder.unary_op, builder.binary_op, builder.ternary_op
    patches.set(builder, "unary_op", lambda self, x, op: ops.arithmetic(unary, self, (x,), op))
    patches.set(builder, "binary_op", lambda self, x, y, op: ops.arithmetic(binary, self, (x, y), op))
    patches.set(builder, "ternary_op", lambda self, x, y, z, op: ops.arithmetic(ternary, self, (x, y, z), op))
    stock_fma = builder.create_fma
    patches.set(builder, "create_fma", lambda self, x, y, z: ops.multiply_add(stock_fma, self, x, y, z))
    for name, rounding in (("create_floor", np.floor), ("create_ceil", np.ceil)):
        patches.set(builder, name, _without_subnormals(rounding))
    if not hasattr(builder, "get_bf16"):  # up to Triton 3.8
        patches.set(builder, "get_bf16", lambda self, value: self.create_fp_trunc(self.get_fp32(value), tl.bfloat16))
    # Up to Triton 3.7 these pass NaN on; the compiler's do not.
    patches.set(builder, "create_maxnumf", lambda self, x, y: self.binary_op(x, y, np.fmax))
    patches.set(builder, "create_minnumf", lambda self, x, y: self.binary_op(x, y, np.fmin))
    stock_clamp = builder.create_clampf

    def clamp(self: Any, x: Any, low: Any, high: Any, propagated: Any) -> Any:
        if propagated != ir.PROPAGATE_NAN.NONE:
            return stock_clamp(self, x, low, high, propagated)
        return self.binary_op(self.binary_op(x, low, np.fmax), high, np.fmin)

    patches.set(builder, "create_clampf", clamp)
    libdevice.install(patches, ops)
    for name, what in (("create_inline_asm", "inline assembly"), ("new_block", "tl.map_elementwise")):
        patches.set(builder, name, _refusing(ops, what))
    origins.install(patches)
    account.install(patches, ops.account)
    accesses.install(patches, Accesses(ops, ops.account))
    semantic = interpreter.TritonSemantic
    stock_scaled = semantic.dot_scaled

    def scaled(self: Any, *arguments: Any) -> Any:
        if self.builder is not interpreter.interpreter_builder:
            return stock_scaled(self, *arguments)
        return ops.scaled_dot(self, arguments)

    patches.set(semantic, "dot_scaled", scaled)


def _refusing(ops: Operations, what: str) -> Callable[..., Any]:
    def operation(self: Any, *arguments: Any) -> Any:
        ops.session.refuse(ops.place(), what, "kernels are interpreted here, and this is for the compiler alone")

    return operation


def _without_subnormals(rounding: Any) -> Callable[..., Any]:
    """Rounding to an integer as `cvt.ftz`."""

    def operation(self: Any, x: Any) -> Any:
        return self.unary_op(TensorHandle(libdevice.flushed(x.data), x.dtype, x.attr), rounding)

    return operation
