"""The dispatch mode: which operators are matrix products, and what is known to pass them by."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch._C import _get_dispatch_mode, _get_dispatch_stack_at, _len_torch_dispatch_stack, _TorchDispatchModeKey
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.session import Session
from mmabits.emulator.hooks.torch import attention, grouped, products, scaled
from mmabits.emulator.hooks.torch.calls import OperatorCall, Signature, caller
from mmabits.emulator.hooks.torch.nodes import WatchedNodes
from mmabits.emulator.hooks.torch.sizes import has_formula
from mmabits.emulator.hooks.torch.undefined import UNWRITTEN, unwritten
from mmabits.emulator.interop import without_numbers

Handler = Callable[[OperatorCall], Any]

PRODUCTS: Final[dict[str, Handler]] = {
    "mm": products.mm,
    "bmm": products.bmm,
    "addmm": products.addmm,
    "addmm_": products.addmm,
    "_addmm_activation": products.addmm,
    "baddbmm": products.baddbmm,
    "baddbmm_": products.baddbmm,
    "addbmm": products.addbmm,
    "addbmm_": products.addbmm,
    "mv": products.mv,
    "addmv": products.addmv,
    "addmv_": products.addmv,
    "_int_mm": products.int_mm,
    "_scaled_mm": scaled.scaled_mm,
    "_scaled_mm_v2": scaled.scaled_mm_v2,
    "_grouped_mm": grouped.grouped_mm,
    "_scaled_grouped_mm": grouped.scaled_grouped_mm,
    "_scaled_grouped_mm_v2": grouped.scaled_grouped_mm_v2,
    attention.FORWARD: attention.forward,
    attention.BACKWARD: attention.backward,
}
"""The operators of aten that are computed here, in all their overloads."""


@dataclass(frozen=True, kw_only=True)
class Bypass:
    """Operators that multiply and are not emulated; they run as PyTorch computes them and stand in the report."""

    names: re.Pattern[str]
    """Matched against the whole of `namespace::name`."""
    reason: str


UNKNOWN_PRODUCT: Final = Bypass(
    names=re.compile(r".*(_|::)((\w*mm|\w*gemv|gemm|matmul|linear|qlinear)(_\w+)?)"),
    reason="a matrix product that the emulator does not know",
)
BYPASSES: Final = (
    Bypass(names=re.compile(r"aten::(dot|vdot|addr_?)"), reason="a product of vectors runs on CUDA cores"),
    Bypass(
        names=re.compile(r".*(_|::)conv(\d+d|olution)?(_.*)?"),
        reason="convolutions are not emulated; on a GPU cuDNN would use tensor cores",
    ),
    Bypass(names=re.compile(r"aten::\w*_rnn(_.*)?"), reason="fused recurrent layers are not emulated"),
    Bypass(names=re.compile(r"aten::(_trilinear|_cdist_\w+|_euclidean_dist)"), reason="its products are inside the operator, not emulated"),
    Bypass(names=re.compile(r"aten::\w*(sparse|sspaddmm|hspmm|smm)\w*mm\w*"), reason="sparse products are not emulated"),
    Bypass(
        names=re.compile(r"aten::(_weight_int\dpack_mm\w*|_dyn_quant_matmul_4bit|_mixed_dtypes_linear|_wrapped_\w*linear\w*)"),
        reason="weight-only quantized kernels are not emulated",
    ),
    UNKNOWN_PRODUCT,
)
"""The first that matches counts. The last is the net under the others."""

FUSED_ATTENTION: Final = re.compile(
    r"aten::(_scaled_dot_product_\w+|_flash_attention_\w+|_efficient_attention_\w+|_cudnn_attention_\w+"
    r"|_native_multi_head_attention|_transformer_encoder_layer_fwd|_triton_\w*attention)"
)
NOT_PRODUCTS: Final = re.compile(r".*(_(un|pre)pack(_\w+)?|_reorder_\w+|_flatten_weight|_search|pack_gemm_matrix_fp16)")
"""Operators that only arrange weights."""


WITH_PRODUCTS: Final = frozenset({"flex_attention", "flex_attention_backward"})
"""Operators that take functions and multiply matrices by themselves, in Python."""


def _passed(call: OperatorCall) -> Any:
    return call.stock()


class _AttentionInProducts:
    """Keeps torch.nn and the math path of attention from hiding products, or turning them into f32 ones; process-wide.

    Blocks may be left in any order: the first sets the switches, the last one left puts them back.
    """

    def __init__(self) -> None:
        self._blocks = 0
        self._was = (False, False)

    def set(self) -> None:
        """For one block more."""
        if self._blocks == 0:
            cuda: Any = torch.backends.cuda
            self._was = cuda.fp16_bf16_reduction_math_sdp_allowed(), torch.backends.mha.get_fastpath_enabled()
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
            torch.backends.mha.set_fastpath_enabled(False)
        self._blocks += 1

    def put_back(self) -> None:
        """For one block fewer."""
        self._blocks -= 1
        if self._blocks == 0:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(self._was[0])
            torch.backends.mha.set_fastpath_enabled(self._was[1])


attention_in_products: Final = _AttentionInProducts()


def _nested(func: torch._ops.OpOverload, values: Iterable[Any]) -> bool:
    """Whether an operator works on nested tensors of torch's own layout, by a kernel for them that is made of products of their parts."""
    is_nested = any(isinstance(value, torch.Tensor) and value.is_nested and value.layout == torch.strided for value in values)
    return is_nested and func.has_kernel_for_dispatch_key(torch._C.DispatchKey.NestedTensorCPU)


def _decomposed(call: OperatorCall) -> Any:
    """An operator made of others, which inference mode does not take apart by itself."""
    with call.mode.emulating(call.mode.within):
        result = call.func.decompose(*call.args, **call.kwargs)
    return call.stock() if result is NotImplemented else result


OF_TORCH: Final = frozenset({
    "aten", "prim", "prims", "rngprims", "debug_mode_ops", "quantized", "inductor", "profiler", "c10d", "_c10d_functional",
    "_c10d_functional_autograd", "c10d_functional", "symm_mem", "fsdp", "higher_order", "_dtensor", "mkldnn", "mkl", "onednn", "torch_xla",
    "streams", "nccl", "cudnn", "export", "bundled", "sparse", "static_runtime", "_quantized", "xnnpack", "prepacked", "torchvision",
})  # fmt: skip
"""Namespaces of operators of PyTorch's own, known by their names, and of some that multiply no matrices."""
ARRANGING: Final = re.compile(
    r"aten\.(_?empty|new_|zeros|ones|full|detach|alias|view|_unsafe_view|as_strided|reshape|contiguous|clone|copy_|_to_copy|to|lift_fresh"
    r"|permute|transpose|t|slice|select|expand|unsqueeze|squeeze|set_|resize_|is_|resolve_|size|stride|numel|item|_local_scalar_dense)\w*\..*"
)
"""Operators that compute nothing: allocate, copy, show otherwise."""
CUSTOM: Final = "an operator of {}'s own: what it computes past PyTorch's operators is not seen"


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _custom(call: OperatorCall) -> Any:
    """An operator that a program or a package defines: what it does by operators of PyTorch is emulated.

    Its kernel for the CPU is called as the dispatcher would call it, with the mode in place. Where it was seen to compute nothing, by
    operators of PyTorch or kernels, the report says so.
    """
    session, name = call.session, call.func._schema.name
    tensors = [value for value in _flat(call.values.values()) if isinstance(value, torch.Tensor)]
    if any(tensor.is_meta for tensor in tensors):
        return call.stock()
    other = next(filter(None, map(without_numbers, tensors)), "")
    if other:  # its kernel is another
        return call.skip(f"an operand is {other}")
    before, outer, mode = session.work, call.mode.called, call.mode
    mode.called = set()
    try:
        with mode.emulating(name):
            result = call.func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *call.args, **call.kwargs)
        computes = any(not ARRANGING.fullmatch(str(func)) for func in mode.called)
    finally:
        mode.called = outer
    if session.work == before and not computes:
        product = UNKNOWN_PRODUCT.names.fullmatch(name) is not None
        session.skip(call.site, name, UNKNOWN_PRODUCT.reason if product else CUSTOM.format(name.partition("::")[0]))
    return result


def _bypass(rule: Bypass) -> Handler:
    return lambda call: call.skip(rule.reason)


def _handler(func: torch._ops.OpOverload) -> Handler:
    """What is done with an operator."""
    name = func._schema.name
    namespace, _, bare = name.partition("::")
    if namespace == "aten" and bare in PRODUCTS:
        return PRODUCTS[bare]
    if func._can_decompose():
        return _decomposed
    if FUSED_ATTENTION.fullmatch(name):
        return attention.refuse
    if NOT_PRODUCTS.fullmatch(name):
        return _passed
    if namespace not in OF_TORCH:
        return _custom
    found = next((_bypass(rule) for rule in BYPASSES if rule.names.fullmatch(name)), None)
    return found or (_bypass(UNKNOWN_PRODUCT) if has_formula(func) else _passed)


_KNOWN: dict[Any, tuple[Handler, Signature]] = {}
"""Operators met so far."""
_PASSED: set[Any] = set()
"""Those of them that are none of the emulator's business."""
_NO_DISPATCH: Final = torch.Tensor.__torch_dispatch__
_TRACERS: Final = (_TorchDispatchModeKey.FAKE, _TorchDispatchModeKey.PROXY, _TorchDispatchModeKey.FUNCTIONAL)
"""Modes that torch keeps below all others: shapes without numbers, graphs in the making."""


def _is_traced() -> bool:
    """Whether torch only looks at what a program would do: nothing is to be multiplied, and the graph must hold the operators."""
    return any(_get_dispatch_mode(key) is not None for key in _TRACERS)


def begin(session: Session) -> Callable[[], None]:
    """Put a session's mode on the running thread's stack; what is returned ends it, in whichever order."""
    mode = EmulateMode(session)
    mode.__enter__()  # type: ignore[no-untyped-call,unused-ignore]

    def end() -> None:
        mode.nodes.watch()
        mode.has_ended = True
        _take_off_ended()

    return end


def _take_off_ended() -> None:
    """Take modes whose blocks have ended off the running thread's stack, wherever they lie in it.

    One may be left there: that of a block which was left by another thread, or while the mode was at work. It lets everything through.
    """
    stack = [_get_dispatch_stack_at(place) for place in range(_len_torch_dispatch_stack())]
    lowest = next((place for place, mode in enumerate(stack) if getattr(mode, "has_ended", False)), len(stack))
    # By the base class's own methods, which keep account of the stack in flags for the process; the others' modes do not see it.
    for mode in reversed(stack[lowest:]):
        TorchDispatchMode.__exit__(mode, None, None, None)  # type: ignore[no-untyped-call,unused-ignore]
    for mode in stack[lowest:]:
        if not getattr(mode, "has_ended", False):
            TorchDispatchMode.__enter__(mode)  # type: ignore[no-untyped-call,unused-ignore]


class EmulateMode(TorchDispatchMode):  # type: ignore[no-untyped-call,unused-ignore]
    """Computes the matrix products of the running thread with a session's tensor cores, where the session's block holds."""

    supports_higher_order_operators = True

    def __init__(self, session: Session) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self.session, self.poisons = session, session.poisons
        self.has_ended = False
        self._thread = threading.get_ident()
        self.within = ""
        """The operator that is being taken apart, for the report."""
        self.called: set[Any] | None = None
        """Operators that one of a program's own has called so far."""
        self.nodes = WatchedNodes(self)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Do without torch's wrapper, which imports the compiler (and Triton) at the first operator and slows every one."""
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.compile trace as if no mode were there; what it made is emulated when it runs."""
        return True

    @contextmanager
    def emulating(self, within: str) -> Iterator[None]:
        """Inside an operator's own handler: emulate the operators that are called now, too."""
        outer, self.within = self.within, within
        try:
            with self:
                yield
        finally:
            self.within = outer

    def _holds(self) -> bool:
        """Whether the session's is the block that the running code lies in."""
        block = scope.current("torch")
        if block is None and threading.get_ident() != self._thread:  # a thread of autograd's, to which it gave the modes
            block = scope.innermost("torch")
        return block is not None and block.session is self.session

    def _tell(self, func: Any) -> None:
        """Say that a product is not emulated because its caller is outside of a block that it may seem to be in."""
        if isinstance(func, torch._ops.OpOverload) and not self.has_ended and scope.current("torch") is None:
            name = func._schema.name.split("::")[-1]
            if name in PRODUCTS:
                scope.tell_of_missed("torch", caller(name), name)

    def _of_functions(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        """An operator that takes functions, as `cond` and `flex_attention`: the products in these are emulated, and its own."""
        if _is_traced():
            return func(*args, **kwargs)
        name = str(func)
        own = func.py_kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd) if name in WITH_PRODUCTS else None
        if own is not None:
            with self.emulating(name):
                return own(*args, **kwargs)

        def inside(value: Any) -> Any:
            if not callable(value) or isinstance(value, (torch.Tensor, torch._ops.OperatorBase, type)):
                return value

            def emulated(*own: Any, **named: Any) -> Any:
                with self.emulating(name):
                    return value(*own, **named)

            return emulated

        return func(*map(inside, args), **{word: inside(value) for word, value in kwargs.items()})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operator that the thread calls."""
        if self.nodes.fresh:
            self.nodes.watch()
        if self.called is not None:
            self.called.add(func)
        if func in _PASSED and not (self.poisons and func in UNWRITTEN):
            return func(*args, **kwargs or {})
        if not self._holds():
            self._tell(func)
            return func(*args, **kwargs or {})
        if self.poisons and func in UNWRITTEN and not _is_traced():
            return unwritten(func, args, kwargs or {})
        for kind in types:
            if kind.__torch_dispatch__ is not _NO_DISPATCH:
                if _is_traced():
                    return func(*args, **kwargs or {})
                return NotImplemented  # a tensor subclass: it takes itself apart, and its parts come here
        known = _KNOWN.get(func)
        if known is None:
            if isinstance(func, HigherOrderOperator):
                return self._of_functions(func, args, kwargs or {})
            if not isinstance(func, torch._ops.OpOverload):
                return func(*args, **kwargs or {})
            handler = _handler(func)
            if handler is _passed:
                _PASSED.add(func)
                return func(*args, **kwargs or {})
            known = _KNOWN[func] = handler, Signature.of(func)
        if _is_traced():
            return func(*args, **kwargs or {})
        if _nested(func, args):
            with self.emulating(self.within):
                return func._op_dk(torch._C.DispatchKey.NestedTensorCPU, *args, **kwargs or {})
        call = OperatorCall(self, func, known[1], args, kwargs or {})
        result = known[0](call)
        if torch.is_grad_enabled():
            self.nodes.made(known[1].name, call.path, result)
        elif not torch.is_inference_mode_enabled():
            self.nodes.made_inside(call.path)
        return result
