"""JAX's lowering rules for matrix products on the CPU, replaced while an `emulate` block is open.

Autodiff, vmap, scan and the rest stand above the rules and stay JAX's own: whatever made a product, here it arrives. A flag in
JAX's context (`flag`) is part of the keys of its caches: programs compiled inside and outside never mix, and no cache needs clearing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax._src import source_info_util
from jax._src.interpreters import mlir
from jax.extend.core import primitives

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.jax import account, ahead_of_time, choices, dequantized, flag, handler, matrices, pallas, schedules
from mmabits.emulator.hooks.jax.choices import Choice, OnTensorCores, Refused, WithoutTensorCores
from mmabits.emulator.hooks.jax.matrices import Dimensions
from mmabits.emulator.hooks.session import ReadyProduct, Session, poison
from mmabits.emulator.schedules import Chains
from mmabits.isa import EmulationError, Evidence, Instruction

Rule = Callable[..., Any]

CONVOLUTION: Final = "convolutions are not emulated: cuDNN computes them in several ways"

_HERE = str(Path(__file__).parent)
_OF_LAYERS: Final = frozenset({"aqt", "equinox", "flax", "haiku", "qwix"})
"""Folders of libraries whose lines say nothing of the program."""
_NOTE: ContextVar[str] = ContextVar("note", default="")
"""What the products that a rule is made of have in common, for the report."""

_GROUPED: ContextVar[bool] = ContextVar("grouped", default=False)
"""Whether they are a grouped product's, whose schedule nobody knows."""


# ---------------------------------------------------------------------------------------------------- replacing, and back


_PUT_BACK: Final = ExitStack()
"""What the last block that is left undoes."""


def begin(session: Session) -> Callable[[], None]:
    """Replace the rules, or keep them replaced, and count for a session until what is returned is called, in whichever order.

    Raises:
        EmulationError: inside of a function that JAX traces; a version of JAX that this cannot work with.
    """
    if isinstance(jax.numpy.zeros(()), jax.core.Tracer):
        raise EmulationError("emulate inside a function that JAX compiles: it runs after the block; open the block around the call")
    handler.load()
    if not account.is_open():
        _replace()
    try:
        account.enter(session)
        flag.begin()
    except BaseException:  # it waits for programs: an interruption
        _after_last()
        raise

    def end() -> None:
        try:
            account.leave(session)
        finally:
            _after_last()

    return end


def _after_last() -> None:
    if not account.is_open():
        flag.end()
        _PUT_BACK.close()


def _replace() -> None:
    """Our rules in the places of JAX's for the CPU; `_PUT_BACK` makes it exactly JAX's again."""
    known, unshared = _registry()
    ours = {primitive: _rule(primitive, lower) for primitive, lower in _rules().items()}
    before = {primitive: known.get(primitive) for primitive in ours}
    added = set(ours) - unshared

    def put_back() -> None:
        unshared.difference_update(added)
        for primitive, entry in before.items():
            if entry is None:
                known.pop(primitive, None)
            else:
                known[primitive] = entry

    with ExitStack() as undo:
        undo.callback(put_back)
        for primitive, rule in ours.items():
            mlir.register_lowering(primitive, rule, platform="cpu")
        unshared.update(added)  # every product is lowered by itself, and knows its line
        undo.callback(ahead_of_time.watch())
        _PUT_BACK.push(undo.pop_all())


def _registry() -> tuple[dict[Any, Any], set[Any]]:
    """JAX's rules for the CPU, and the primitives whose lowerings it does not share among like calls; private to JAX.

    Raises:
        EmulationError: this jax keeps them elsewhere.
    """
    try:
        return mlir._platform_specific_lowerings["cpu"], mlir._uncacheable_primitives
    except AttributeError as error:
        raise EmulationError(f"jax {jax.__version__} keeps its lowering rules where emulate does not find them: {error}") from error


def _original(primitive: Any) -> Rule:
    """JAX's own rule, for the CPU or for every platform."""
    for known in (mlir._platform_specific_lowerings["cpu"], mlir._lowerings):
        if primitive in known:
            entry: Any = known[primitive]
            found: Rule = getattr(entry, "rule", entry)
            return found

    def missing(*_arguments: Any, **_parameters: Any) -> Any:
        raise NotImplementedError(f"MLIR translation rule for primitive '{primitive}' not found for platform cpu")

    return missing


def _rules() -> dict[Any, Callable[[_Equation], Any]]:
    """What we do for which primitive. JAX exports neither block-scaled one, nor `lax.empty`'s; where it moves them, they stay its own."""
    found: dict[Any, Callable[[_Equation], Any]] = {
        primitives.dot_general_p: _dot_general, primitives.conv_general_dilated_p: _convolution,
    }  # fmt: skip
    try:
        from jax._src.lax.scaled_dot import scaled_dot_p

        found[scaled_dot_p] = _scaled_dot
    except ImportError:
        pass
    try:
        from jax._src.lax.lax import ragged_dot_general_p

        found[ragged_dot_general_p] = _ragged
    except ImportError:
        pass
    try:
        from jax._src.lax.lax import empty_p

        found[empty_p] = _empty
    except ImportError:
        pass
    if pallas.MODULE in sys.modules:  # else there are no kernels yet
        call = getattr(sys.modules[pallas.MODULE], "pallas_call_p", None)
        if call is not None:
            found[call] = _pallas
    try:
        from jax._src.cudnn.scaled_matmul_stablehlo import _scaled_matmul_p, _scaled_matmul_p_wrapper

        found |= {_scaled_matmul_p: _scaled_matmul, _scaled_matmul_p_wrapper: _scaled_matmul}
    except ImportError:
        pass
    return found


def _rule(primitive: Any, lower: Callable[[_Equation], Any]) -> Rule:
    original = _original(primitive)

    def rule(context: Any, *operands: Any, **parameters: Any) -> Any:
        key = flag.key()
        session = account.open_session(key)
        if session is None or key is None:
            scope.tell_of_missed("jax", _name(context), str(context.primitive))
            return original(context, *operands, **parameters)
        if _is_exported(context):
            session.refuse(_name(context), str(context.primitive), EXPORTED)
        return lower(_Equation(context=context, operands=operands, parameters=parameters, session=session, key=key, original=original))

    return rule


# --------------------------------------------------------------------------------------------------------- what is lowered

EXPORTED: Final = (
    "jax.export makes programs for other processes, where nothing emulates; export outside of the block, and jit the function itself inside"
)


def _is_exported(context: Any) -> bool:
    """Whether `jax.export` asked for the program."""
    settings = getattr(context.module_context, "lowering_parameters", None)
    return bool(getattr(settings, "for_export", False))


def _tracebacks(context: Any) -> Iterator[Any]:
    """Where the equation was traced and, as before jax 0.10.2 that may be inside JAX alone, where it is lowered."""
    yield context.traceback
    yield source_info_util.xla_client.Traceback.get_traceback()  # type: ignore[attr-defined,unused-ignore]


JAX_SCOPES: Final = frozenset({"body", "checkpoint", "closed_call", "cond", "rematted_computation", "while"})
"""What JAX itself puts among the names of scopes, besides words with brackets and `branch_1_fun`."""


def _scopes(context: Any) -> str:
    """`Net/block_0/Dense_0`: the scopes of an equation (jax.named_scope, modules of flax.linen), within the function that is lowered.

    That of a backward pass is that of its forward pass.
    """
    stack = getattr(getattr(context, "name_stack", None), "stack", ())  # private to JAX
    names = [str(each.name) for each in stack if type(each).__name__ == "Scope" and hasattr(each, "name")]
    return "/".join(
        name for name in names if name not in JAX_SCOPES and "(" not in name and not (name.startswith("branch_") and name.endswith("_fun"))
    )


def _name(context: Any) -> str:
    """The scopes of an equation, and the line that called it: `Net/block_0/Dense_0: Dense.__call__ (linear.py:287)`."""
    scopes = _scopes(context)
    return f"{scopes}: {_line(context)}" if scopes else _line(context, whose=True)


def _line(context: Any, *, whose: bool = False) -> str:
    """`function (file:line)`: the innermost frame of an equation that is neither JAX's nor ours.

    Args:
        context: of the equation.
        whose: where that is in a library of layers, put the program's own line before it.
    """
    try:
        for traceback in _tracebacks(context):
            inner = ""
            for frame in source_info_util.user_frames(traceback):
                if frame.file_name.startswith(_HERE):
                    continue
                told = f"{frame.function_name.rpartition('.<locals>.')[2]} ({Path(frame.file_name).name}:{frame.start_line})"
                if not whose or _OF_LAYERS.isdisjoint(Path(frame.file_name).parts):
                    return f"{told}: {inner}" if inner else told
                inner = inner or told
            if inner:
                return inner
    except (AttributeError, TypeError):  # private to JAX: another version may have changed it
        pass
    return str(context.primitive)


@dataclass(frozen=True, kw_only=True)
class _Equation:
    """One equation that JAX lowers inside a block."""

    context: Any
    """JAX's LoweringRuleContext."""
    operands: tuple[Any, ...]
    parameters: dict[str, Any]
    session: Session
    key: account.Key
    original: Rule

    @property
    def avals(self) -> list[Any]:
        """Shapes and types of the operands."""
        return list(self.context.avals_in)

    @property
    def out(self) -> Any:
        """Shape and type of the result."""
        return self.context.avals_out[0]

    @property
    def name(self) -> str:
        """Where in the program it stands."""
        return _name(self.context)

    @property
    def operation(self) -> str:
        """`dot_general of f32[4,8] and f32[8,2]`."""
        return f"{self.context.primitive} of {' and '.join(aval.str_short(short_dtypes=True) for aval in self.avals[:2])}"

    def traced(self, function: Callable[..., Any]) -> Any:
        """The equation as JAX operations on its operands."""
        return mlir.lower_fun(function, multiple_results=False)(self.context, *self.operands)

    def zeros(self) -> Any:
        """The result of a sum of nothing."""
        return self.traced(lambda *_: lax.full(self.out.shape, 0, self.out.dtype))

    def as_jax_does(self) -> Any:
        """The equation as JAX lowers it, uncounted."""
        return self.original(self.context, *self.operands, **self.parameters)

    def refuse(self, reason: str) -> NoReturn:
        """Stop the program.

        Raises:
            EmulationError: always.
        """
        self.session.refuse(self.name, self.operation, reason)

    def not_emulated(self, reason: str, shape: tuple[int, int, int, int] = (1, 0, 0, 0)) -> Any:
        """The equation as JAX lowers it, counted in the report as not emulated; its batch, M, N and K where it is a product."""
        calls = handler.counting_site()
        self._enter(calls, shape, None, reason)
        mlir.lower_fun(partial(handler.count, calls), multiple_results=False)(self.context.replace(avals_in=[]))
        return self.as_jax_does()

    def multiply(self, choice: OnTensorCores, shape: tuple[int, int, int, int]) -> Callable[..., Any]:
        """What multiplies codes, (batch, M, K) by (batch, K, N), and their scales if any; entered into the report."""
        plan = None
        if not _GROUPED.get():
            plan = choices.plan(self.session.library, choice, shape, np.dtype(self.out.dtype), self.session.arch)
        if plan is None:
            words, order = self.session.library.unknown(choice.instruction)
            ready = self._ready(choice.instruction, choice.promote_every, (words, choice.note), order)
            return self._product(ready, shape, (shape[3],))[0]
        row = plan.instruction(choice.instruction, self.session.arch)
        sums = plan.schedule.sums
        if not isinstance(sums, Chains):
            self.refuse(f"schedules of CUDA cores are not followed in JAX programs ({sums.words}); library='chain' multiplies by {row}")
        ready = self._ready(row, sums.promote_every, (plan.words, choice.note), plan.evidence)
        if plan.chain(shape[3], row) is not None:
            return self._product(ready, shape, (shape[3],))[0]
        followed = schedules.FollowedSchedule.of(plan.schedule, shape[3], row.k, bugs=self.session.library.bugs)
        return partial(followed.product, self._product(ready, shape, followed.sizes))

    def _ready(self, row: Instruction, promote: int | None, notes: tuple[str, ...], order: Evidence) -> ReadyProduct:
        told = "; ".join(note for note in (*notes, _NOTE.get()) if note)
        return self.session.ready(self.name, row, promote_every=promote, note=told, order=order)

    def _product(self, ready: ReadyProduct, shape: tuple[int, int, int, int], sizes: Sequence[int]) -> list[Callable[..., Any]]:
        """What multiplies each of some slices of K; the first counts for all in the report."""
        batch, m, n, _ = shape
        product = ready.native(batch, m, n, what=self.operation)
        found: list[Callable[..., Any]] = []
        for number, size in enumerate(sizes):
            calls = handler.product_site(product, batch, m, n, size, account.gate(self.key))
            if not number:
                self._enter(calls, shape, ready.instruction, ready.note)
            found.append(partial(self._call, calls, (batch, m, n), product.accumulator))
        return found

    @staticmethod
    def _call(calls: handler.Site, shape: tuple[int, int, int], accumulator: Any, *operands: Any) -> Any:
        return handler.call(calls, list(operands), shape, accumulator)

    def _enter(self, calls: handler.Site, shape: tuple[int, int, int, int], instruction: Instruction | None, note: str) -> None:
        entry = account.ReportedSite(
            calls=calls, site=self.name, operation=self.operation, shape=shape, instruction=instruction, note=note
        )  # fmt: skip
        account.add(self.key, entry)


@contextmanager
def _noted(note: str) -> Iterator[None]:
    token = _NOTE.set(note)
    try:
        yield
    finally:
        _NOTE.reset(token)


# ---------------------------------------------------------------------------------------------------------- products


def _dot_general(site: _Equation) -> Any:
    """lax.dot_general, and with it jnp.dot, matmul, einsum and tensordot."""
    a, b = site.avals
    if not _known(a, b):
        site.refuse("emulate needs shapes that are known when a program is compiled")
    dimensions = Dimensions.of(site.parameters["dimension_numbers"])
    if _is_nothing(site):
        return site.zeros()
    vectors = not dimensions.free_a(a.ndim) and not dimensions.free_b(b.ndim)
    types = (np.dtype(a.dtype), np.dtype(b.dtype), np.dtype(site.out.dtype))
    choice = choices.product(site.session.arch, *types, site.parameters["precision"], vectors=vectors)
    if (
        not _NOTE.get()
        and isinstance(choice, OnTensorCores)
        and dequantized.is_rewritten(site.operands[0], site.operands[1], site.session.arch)
    ):
        with _noted(dequantized.REWRITTEN):
            return _product(site, choice, dimensions)
    return _product(site, choice, dimensions)


def _is_nothing(site: _Equation) -> bool:
    """Whether an operand has no elements: the result has none either, or it is zero."""
    return any(size == 0 for aval in site.avals[:2] for size in aval.shape if isinstance(size, int))


def _known(*avals: Any) -> bool:
    return all(isinstance(size, int) for aval in avals for size in aval.shape)


def _product(site: _Equation, choice: Choice, dimensions: Dimensions) -> Any:
    if isinstance(choice, Refused):
        return site.refuse(choice.reason)
    if isinstance(choice, WithoutTensorCores):
        return site.not_emulated(choice.reason, dimensions.shape(site.avals[0].shape, site.avals[1].shape))
    a, b = site.avals
    multiply = site.multiply(choice, dimensions.shape(a.shape, b.shape))

    def product(left: Any, right: Any) -> Any:
        left = matrices.codes(matrices.left_matrix(left.astype(choice.operands[0]), dimensions))
        right = matrices.codes(matrices.right_matrix(right.astype(choice.operands[1]), dimensions))
        return matrices.result(multiply(left, right), site.out.shape, np.dtype(site.out.dtype))

    return site.traced(product)


def _convolution(site: _Equation) -> Any:
    return site.not_emulated(CONVOLUTION)


def _ragged(site: _Equation) -> Any:
    """lax.ragged_dot: the product that JAX expands it to, one chain."""
    token = _GROUPED.set(True)
    try:
        with _noted("a grouped product by JAX's own expansion: K becomes pairs of an element and a group"):
            return site.as_jax_does()
    finally:
        _GROUPED.reset(token)


def _pallas(site: _Equation) -> Any:
    """pallas_call: the interpreter is a program like any other, and what is not interpreted runs compiled."""
    return site.as_jax_does() if site.parameters.get("interpret") else pallas.lower(site)


def _empty(site: _Equation) -> Any:
    """lax.empty: memory as it was on a GPU, zeros on the CPU."""
    dtype = site.out.dtype
    if not site.session.poisons or jnp.issubdtype(dtype, jax.dtypes.extended):
        return site.as_jax_does()
    return site.traced(lambda: lax.full(site.out.shape, poison(np.dtype(dtype)), dtype))


# -------------------------------------------------------------------------------------------------------- block scales


def _scaled_product(site: _Equation, choice: OnTensorCores, dimensions: Dimensions) -> Any:
    """A block-scaled product. Scales have the dimensions of their operands, fewer elements where these are contracted."""
    a, b = site.avals[:2]
    multiply = site.multiply(choice, dimensions.shape(a.shape, b.shape))

    def product(left: Any, right: Any, scale_left: Any, scale_right: Any) -> Any:
        lefts = [matrices.codes(matrices.left_matrix(each, dimensions)) for each in (left, scale_left)]
        rights = [matrices.codes(matrices.right_matrix(each, dimensions)) for each in (right, scale_right)]
        d = multiply(lefts[0], rights[0], lefts[1], rights[1])
        return matrices.result(d, site.out.shape, np.dtype(site.out.dtype))

    return site.traced(product)


def _block_choice(site: _Equation, dimensions: Dimensions) -> Choice:
    """The instruction of a block-scaled product, or why XLA dequantizes.

    Raises:
        EmulationError: shapes that are not known, or K not divisible by the block.
    """
    a, b, scale_a, scale_b = site.avals
    if not _known(*site.avals):
        site.refuse("emulate needs shapes that are known when a program is compiled")
    blocks = [dimensions.shape(scale_a.shape, b.shape)[3], Dimensions(*_swapped(dimensions)).shape(scale_b.shape, a.shape)[3]]
    k = dimensions.shape(a.shape, b.shape)[3]
    for count in blocks:
        if count == 0 or k % count:
            site.refuse(f"K = {k} is not divisible into {count} blocks of one scale each")
    if len(dimensions.contracted_a) != 1 or blocks[0] != blocks[1]:
        return WithoutTensorCores("cuDNN takes one contracted dimension, with as many scales of either operand")
    types = [np.dtype(each.dtype) for each in site.avals]
    return choices.block_scaled(site.session.arch, types[0], types[1], types[2], types[3], k, blocks[0])


def _swapped(dimensions: Dimensions) -> tuple[tuple[int, ...], ...]:
    return dimensions.contracted_b, dimensions.contracted_a, dimensions.batch_b, dimensions.batch_a


def _scaled_dot(site: _Equation) -> Any:
    """lax.scaled_dot: as block-scaled products where cuDNN takes them, else by XLA's own expansion, which is JAX's."""
    dimensions = Dimensions.of(site.parameters["dimension_numbers"])
    if _known(*site.avals) and _is_nothing(site):
        return site.zeros()
    choice = _block_choice(site, dimensions)
    if isinstance(choice, OnTensorCores):
        return _scaled_product(site, choice, dimensions)
    with _noted(f"scaled_dot multiplied out in bf16, as XLA does: {choice.reason}"):
        return site.as_jax_does()


_SCALED_MATMUL: Final = Dimensions(contracted_a=(2,), contracted_b=(2,), batch_a=(0,), batch_b=(0,))


def _scaled_matmul(site: _Equation) -> Any:
    """jax.nn.scaled_matmul and scaled_dot_general, which have no rule for the CPU: (B, M, K) and (B, N, K) with scales along K."""
    if _known(*site.avals) and _is_nothing(site):
        return site.zeros()
    choice = _block_choice(site, _SCALED_MATMUL)
    if isinstance(choice, OnTensorCores):
        return _scaled_product(site, choice, _SCALED_MATMUL)
    out = site.out.dtype

    def dequantized(left: Any, right: Any, scale_left: Any, scale_right: Any) -> Any:
        a, b = (_dequantized(values, scales, out) for values, scales in ((left, scale_left), (right, scale_right)))
        return lax.dot_general(a, b, (((2,), (2,)), ((0,), (0,))), preferred_element_type=out)

    with _noted(f"scaled_matmul multiplied out in {out}, as XLA does: {choice.reason}"):
        return site.traced(dequantized)


def _dequantized(values: Any, scales: Any, dtype: Any) -> Any:
    """Values times their scales, both converted to a type first."""
    *rest, blocks = scales.shape
    block = values.shape[-1] // blocks
    spread = lax.broadcast_in_dim(scales.astype(dtype), (*rest, blocks, block), tuple(range(len(rest) + 1)))
    return values.astype(dtype) * spread.reshape(values.shape)
