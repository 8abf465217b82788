"""`emulate(..., cuda=True)`: host code written for CUDA finds the named GPU, and its tensors stay on the CPU.

A function mode turns every mention of a CUDA device into the CPU and answers for tensors as if they were there; the functions of
torch.cuda that ask for a GPU answer for the one of isa/devices.py. What is replaced gives the stock answer to code outside the block.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.session import Session
from mmabits.emulator.hooks.torch.calls import caller
from mmabits.emulator.hooks.triton.patches import Patches
from mmabits.isa import ARCHITECTURES, EmulationError
from mmabits.isa.devices import DeviceSpec, device_of

CUDA_VERSION: Final = "13.0"
"""What torch.version.cuda says in a block."""
_CPU: Final = torch.device("cpu")
_CUDA: Final = torch.device("cuda", 0)
_PYTORCH: Final = ("prims::", "rngprims::", "debug_mode_ops::")
"""Operators of PyTorch's own."""
_IS: Final = {"is_cuda": True, "is_cpu": False, "device": _CUDA}
"""Attributes of tensors that say where they are."""


def _here(value: Any) -> Any:
    """A device that is named, as the CPU; anything else as it is."""
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    if isinstance(value, torch.device) and value.type == "cuda":
        return _CPU
    return value


class _Pose(TorchFunctionMode):
    """Tensors of the CPU that say they are on a GPU, while the session's block holds."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every function of PyTorch that the thread calls."""
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # it looks into this function, and must understand all of it; a mode is part of its guards
            if function is torch.Tensor.cuda or function is torch.Tensor.pin_memory:
                return args[0]
            return function(*[_here(each) for each in args], **{key: _here(kwargs[key]) for key in kwargs})
        if function is torch.device or not _holds(self.session):
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name == "__get__":
            told = _IS.get(getattr(getattr(function, "__self__", None), "__name__", ""))
            return function(*args, **kwargs) if told is None else told
        if name in ("cuda", "pin_memory"):
            return args[0]
        if name == "get_device":
            return 0
        if name == "histc" and args and "out" not in kwargs and not args[0].dtype.is_floating_point:
            return _histogram(*args, **kwargs)
        kwargs = {key: _here(value) for key, value in kwargs.items() if not (key == "pin_memory" and value)}
        written = _written_in_python(function)
        if written is not None:
            with self:
                return written(*map(_here, args), **kwargs)
        return function(*map(_here, args), **kwargs)


def _histogram(values: torch.Tensor, bins: int = 100, min: int = 0, max: int = 0) -> torch.Tensor:
    """`torch.histc` of integers, which CUDA has and the CPU lacks: bins by a division of integers, as in PyTorch's kernel."""
    if min == max and values.numel():
        min, max = int(values.min()), int(values.max())
    if min == max:
        min, max = min - 1, max + 1
    inside = values[(values >= min) & (values <= max)].long()
    places = ((inside - int(min)) * bins).div(int(max) - int(min), rounding_mode="trunc").clamp(max=bins - 1)
    return torch.bincount(places.flatten(), minlength=bins).to(values.dtype)


def _written_in_python(operator: Any) -> Callable[..., Any] | None:
    """The function behind an operator of torch.library.custom_op: called by PyTorch it would run without the mode."""
    if isinstance(operator, torch._ops.OpOverload):
        name = str(operator.name())  # type: ignore[no-untyped-call]
    elif isinstance(operator, torch._ops.OpOverloadPacket):
        name = str(operator._qualified_op_name)
    else:
        return None
    found = OPDEFS.get(name)
    if found is None or found._backward_fn is not None or name.startswith(_PYTORCH):
        return None
    made: Callable[..., Any] = found._init_fn
    return made


def _holds(session: Session) -> bool:
    block = scope.current("torch")
    return block is not None and block.session is session


_STOCK: Final = {"Stream": torch.cuda.Stream, "Event": torch.cuda.Event}


class Stream:
    """A queue of work; everything in it is done when the call that asks for it returns."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        """PyTorch's own for code outside of a block that poses."""
        return _STOCK["Stream"](*arguments, **keywords) if _posing() is None else super().__new__(cls)

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device, self.priority, self.cuda_stream, self.stream_id, self.device_index = _CUDA, priority, 0, 0, 0

    def query(self) -> bool:
        """Whether all is done."""
        return True

    def synchronize(self) -> None:
        """All is done."""

    def wait_stream(self, _stream: Any) -> None:
        """All is done."""

    def wait_event(self, _event: Any) -> None:
        """All is done."""

    def record_event(self, event: Event | None = None) -> Event:
        """An event that has happened."""
        event = event or Event(enable_timing=True)
        event.record(self)
        return event

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        """Work goes on in order."""


class Event:
    """A moment. Times between two are those of the CPU, and say nothing of the GPU's."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        """PyTorch's own for code outside of a block that poses."""
        return _STOCK["Event"](*arguments, **keywords) if _posing() is None else super().__new__(cls)

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **_: Any) -> None:
        self.enable_timing, self.cuda_event, self._at = enable_timing, 0, 0.0

    def record(self, _stream: Any = None) -> None:
        """Now."""
        self._at = time.perf_counter()

    def wait(self, _stream: Any = None) -> None:
        """It has happened."""

    def query(self) -> bool:
        """Whether it has happened."""
        return True

    def synchronize(self) -> None:
        """It has happened."""

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this one to another.

        Raises:
            EmulationError: an event without timing.
        """
        if not (self.enable_timing and end.enable_timing):
            raise EmulationError("both events must be made with enable_timing=True")
        return 1e3 * (end._at - self._at)


def _properties(device: DeviceSpec) -> SimpleNamespace:
    major, minor = device.capability
    return SimpleNamespace(
        name=device.name, major=major, minor=minor, total_memory=device.memory << 20, multi_processor_count=device.processors,
        L2_cache_size=device.cache << 10, shared_memory_per_block=48 << 10, warp_size=32, regs_per_multiprocessor=65536,
        shared_memory_per_block_optin=ARCHITECTURES[device.arch].shared_memory << 10,
        shared_memory_per_multiprocessor=device.shared_memory << 10,
        max_threads_per_multi_processor=device.threads, max_threads_per_block=1024, is_integrated=0, is_multi_gpu_board=0, gcnArchName="",
    )  # fmt: skip


_RANDOM: Final[dict[str, Callable[..., Any]]] = {
    "manual_seed": torch.default_generator.manual_seed, "manual_seed_all": torch.default_generator.manual_seed,
    "seed": lambda: torch.default_generator.seed(), "seed_all": lambda: torch.default_generator.seed(),
    "initial_seed": lambda: torch.default_generator.initial_seed(),
    "get_rng_state": lambda *_, **__: torch.default_generator.get_state(),
    "get_rng_state_all": lambda: [torch.default_generator.get_state()],
    "set_rng_state": lambda state, *_, **__: torch.default_generator.set_state(state),
    "set_rng_state_all": lambda states: torch.default_generator.set_state(next(iter(states))),
}  # fmt: skip
"""Random numbers of tensors that pose come from the CPU's generator: it is the one that is seeded, kept and put back."""


def _answers(device: DeviceSpec) -> dict[str, Callable[..., Any]]:
    """What functions of torch.cuda say of a GPU."""
    properties, stream = _properties(device), object.__new__(Stream)
    stream.__init__()  # type: ignore[misc]
    total = device.memory << 20
    nothing: Callable[..., Any] = lambda *_, **__: None  # noqa: E731
    none_used: Callable[..., Any] = lambda *_, **__: 0  # noqa: E731
    context: Callable[..., Any] = lambda *_, **__: nullcontext()  # noqa: E731
    return {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "get_device_capability": lambda *_: device.capability, "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: device.name, "get_arch_list": lambda: [device.arch],
        "is_bf16_supported": lambda *_, **__: device.capability >= (8, 0), "is_tf32_supported": lambda: device.capability >= (8, 0),
        "current_stream": lambda *_: stream, "default_stream": lambda *_: stream, "is_current_stream_capturing": lambda: False,
        "device": context, "device_of": context, "stream": context, "init": nothing, "_lazy_init": nothing, "set_device": nothing,
        "set_stream": nothing, "synchronize": nothing, "empty_cache": nothing, "ipc_collect": nothing, "reset_peak_memory_stats": nothing,
        "reset_max_memory_allocated": nothing, "memory_allocated": none_used, "max_memory_allocated": none_used,
        "memory_reserved": none_used, "max_memory_reserved": none_used, "mem_get_info": lambda *_: (total, total), **_RANDOM,
    }  # fmt: skip


_ACCELERATOR: Final[dict[str, Callable[..., Any]]] = {
    "is_available": lambda: True, "current_accelerator": lambda *_, **__: torch.device("cuda"), "device_count": lambda: 1,
    "current_device_index": lambda: 0, "synchronize": lambda *_: None, "current_stream": lambda *_: Stream(),
}  # fmt: skip
"""What those of torch.accelerator say."""

_BLOCKS: dict[int, tuple[Session, dict[str, Callable[..., Any]]]] = {}
"""Sessions that pose, by their `id`, and what is said in their blocks."""
_PATCHES: Final = Patches()
"""In place while there are any."""


def _posing() -> dict[str, Callable[..., Any]] | None:
    """What is said to the running code; None: the truth."""
    block = scope.current("torch")
    found = None if block is None else _BLOCKS.get(id(block.session))
    return None if found is None else found[1]


def _either(stock: Any, name: str, of: str) -> Any:
    """A function that answers for the emulated GPU inside a block that poses, and as before elsewhere."""

    @wraps(stock, updated=())
    def answer(*arguments: Any, **keywords: Any) -> Any:
        posing = _posing()
        if posing is None:
            return stock(*arguments, **keywords)
        return (_ACCELERATOR if of == "accelerator" else posing)[name](*arguments, **keywords)

    return answer


def _autocast(stock: Any) -> Any:
    @wraps(stock)
    def init(self: Any, device_type: Any, *arguments: Any, **keywords: Any) -> None:
        block = scope.current("torch")
        if _posing() is not None and block is not None and _here(device_type) is not device_type:
            block.session.skip(caller("autocast"), "autocast", "the CPU's list of operators stands in for CUDA's, which differs")
            device_type = _here(device_type)
        stock(self, device_type, *arguments, **keywords)

    return init


def _default_device(stock: Any) -> Any:
    @wraps(stock)
    def set_default_device(device: Any) -> None:
        stock(device if _posing() is None else _here(device))

    return set_default_device


def _triton_backend(stock: Any) -> Any:
    """Triton looks for NVIDIA's driver where CUDA is there: torch.compile expects the error that it gives without a GPU."""

    @wraps(stock)
    def backend() -> Any:
        try:
            return stock()
        except AssertionError as error:  # no library of the driver
            if _posing() is None:
                raise
            raise RuntimeError(f"the GPU is emulated, and Triton finds no driver: {error}") from error

    return backend


def _record_stream(stock: Any) -> Any:
    @wraps(stock)
    def record_stream(self: Any, stream: Any) -> None:
        if not isinstance(stream, Stream):
            stock(self, stream)

    return record_stream


def _wrapper_subclass(stock: Any) -> Any:
    """Tensors of tensors are made past every mode: their device is that of their parts, the CPU."""

    @wraps(stock)
    def make(*arguments: Any, **keywords: Any) -> Any:
        if _posing() is not None:
            keywords = {key: _here(value) for key, value in keywords.items()}
        return stock(*arguments, **keywords)

    return staticmethod(make)


def _patch() -> None:
    for name in _answers(device_of("sm_90a")):
        stock = getattr(torch.cuda, name, None)
        if stock is not None:
            _PATCHES.set(torch.cuda, name, _either(stock, name, "cuda"))
    _PATCHES.set(torch.cuda, "Stream", Stream)
    _PATCHES.set(torch.cuda, "Event", Event)
    accelerator = getattr(torch, "accelerator", None)
    for name in _ACCELERATOR if accelerator is not None else ():
        stock = getattr(accelerator, name, None)
        if stock is not None:
            _PATCHES.set(accelerator, name, _either(stock, name, "accelerator"))
    _PATCHES.set(torch.amp.autocast_mode.autocast, "__init__", _autocast(torch.amp.autocast_mode.autocast.__init__))
    _PATCHES.set(torch, "set_default_device", _default_device(torch.set_default_device))
    _PATCHES.set(torch.Tensor, "record_stream", _record_stream(torch.Tensor.record_stream))
    _PATCHES.set(torch.Tensor, "_make_wrapper_subclass", _wrapper_subclass(torch.Tensor._make_wrapper_subclass))
    _PATCHES.set(torch.version, "cuda", CUDA_VERSION)
    from torch.utils import _triton

    if hasattr(_triton, "triton_backend"):
        _PATCHES.set(_triton, "triton_backend", _triton_backend(_triton.triton_backend))


def begin(session: Session) -> Callable[[], None]:
    """Pose as the session's GPU; what is returned ends it."""
    answers = _answers(device_of(session.arch))
    mode: AbstractContextManager[Any] = _Pose(session)
    if not _BLOCKS:
        _patch()
    _BLOCKS[id(session)] = session, answers
    mode.__enter__()

    def end() -> None:
        _take_off(mode)
        del _BLOCKS[id(session)]
        if not _BLOCKS:
            _PATCHES.undo()

    return end


def begin_thread(session: Session) -> Callable[[], None]:
    """Pose in a thread of a block that poses already; what is returned ends it."""
    mode: AbstractContextManager[Any] = _Pose(session)
    mode.__enter__()
    return lambda: _take_off(mode)


def _take_off(mode: Any) -> None:
    """Take a function mode off the running thread's stack, wherever it lies."""
    above = []
    while torch._C._len_torch_function_stack():
        last = torch._C._pop_torch_function_stack()
        if last is mode:
            break
        above.append(last)
    for each in reversed(above):
        torch._C._push_on_torch_function_stack(each)
