"""Triton kernels as Triton's compiler makes them, whole: a driver that takes the GPU's place, and the machine that runs their PTX.

Triton's own launch path compiles, specialises and chooses; what it asks of a driver is here. No kernel is rewritten and nothing of
Triton is patched but which driver is active.
"""

from __future__ import annotations

import hashlib
import importlib
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.launched import NOT_ASKED, Duration, LaunchedKernel
from mmabits.emulator.hooks.session import Session
from mmabits.emulator.hooks.triton import ptxas
from mmabits.emulator.hooks.triton.patches import Patches
from mmabits.emulator.machine.kernel import Kernel, KernelCheckError, aligned
from mmabits.emulator.machine.sass import FusionCheck, check_fusion
from mmabits.emulator.machine.summary import adds_floats_by_atomics, families, schedule, weak_points
from mmabits.emulator.machine.tensormaps import tensor_map
from mmabits.isa import EmulationError, Evidence, InsufficientEvidence, MmabitsError, architecture, lower
from mmabits.isa.devices import device_of

_KERNELS: dict[tuple[str, str, int, bool], Kernel] = {}
"""Compiled kernels, by PTX, architecture, shared memory and contraction."""
_REFUSALS: dict[tuple[str, str, int, bool], MmabitsError] = {}
"""Why others are not, likewise."""
_LAUNCHERS: dict[tuple[str, str], Launcher] = {}
"""By the hash of what Triton compiled, and architecture: Triton asks at each launch."""
TRANSLATIONS: dict[str, Duration] = {}
"""How long Triton took for a kernel, by its hash."""
_FLOATS: Final = {"fp16": "<e", "fp32": "<f", "fp64": "<d"}
_DEVICES: dict[str, int] = {}
_FIRST_DEVICE: Final = 1000
"""Numbers of devices, by architecture, that no GPU has."""


class _Moment:
    """A moment, for `triton.testing`. Times between two are those of the CPU, and say nothing of the GPU's."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.at = 0.0

    def record(self, *_: Any) -> None:
        """Now."""
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """It has happened."""

    def elapsed_time(self, end: _Moment) -> float:
        """Milliseconds from this one to another."""
        block = scope.current("triton")
        if block is not None:
            block.session.skip("triton.testing", "time", "what is measured in a block is the CPU's time")
        return 1e3 * (end.at - self.at)


class _Interface:
    """Triton's idea of a device's module in PyTorch."""

    Event = _Moment

    @staticmethod
    def synchronize(*_: Any) -> None:
        """Launches are done when they return."""

    @staticmethod
    def current_device() -> int:
        """There is one."""
        return 0


class _Utilities:
    """What Triton asks for binaries and devices."""

    def __init__(self, arch: str) -> None:
        self.device = device_of(arch)
        self.shared_memory = 1024 * architecture(architecture(arch).target).shared_memory

    @staticmethod
    def load_binary(name: str, _kernel: bytes, _shared: int, _device: int) -> tuple[Any, Any, int, int, int]:
        """Module, function, registers, spills, and the most threads of a CTA: no module, since none has to be unloaded."""
        return None, name, 0, 0, 1024

    def get_device_properties(self, _device: int) -> dict[str, int]:
        """Of the GPU that stands for the architecture, as far as kernels ask."""
        processors = self.device.processors
        return {"max_shared_mem": self.shared_memory, "multiprocessor_count": processors, "max_num_regs": 65536, "warpSize": 32}


class MachineDriver:
    """The GPU's place in Triton, for one session."""

    def __init__(self, session: Session) -> None:
        self.arch = session.arch
        self.capability = architecture(session.arch).capability_number
        self.device = _DEVICES.setdefault(session.arch, _FIRST_DEVICE + len(_DEVICES))
        self.utils = _Utilities(session.arch)

    def launcher_cls(self, source: Any, metadata: Any) -> Launcher | None:
        """What launches a kernel."""
        if int(metadata.shared) > self.utils.shared_memory:
            return None  # Triton refuses it next, in the words that its autotuner knows
        key = metadata.hash, self.arch
        found = _LAUNCHERS.get(key)
        if found is None:
            found = _LAUNCHERS[key] = Launcher(self.arch, source, metadata)
        return found

    def get_current_target(self) -> Any:
        """What Triton compiles for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """One for each architecture: Triton keeps what it has compiled by the device."""
        return self.device

    def set_current_device(self, _device: int) -> None:
        """There is one in a block."""

    def get_current_stream(self, _device: int = 0) -> int:
        """Everything is done in order."""
        return 0

    def get_active_torch_device(self) -> Any:
        """Tensors are on the CPU."""
        return importlib.import_module("torch").device("cpu")

    def get_device_interface(self) -> type[_Interface]:
        """For host code that synchronises."""
        return _Interface

    def get_empty_cache_for_benchmark(self) -> None:
        """A GPU's cache is not there to be cleared."""

    def clear_cache(self, _cache: None) -> None:
        """Likewise."""

    def get_benchmarker(self) -> Callable[..., list[float]]:
        """Nothing is measured: every configuration is as fast as the first, which an autotuner then takes."""
        return lambda _call, quantiles=None, **_: [1.0] * (len(quantiles) if quantiles else 1)

    def map_python_to_cpp_type(self, name: str) -> str:
        """Of a launcher that is compiled; there is none."""
        return name


class Launcher:
    """What Triton calls to launch one specialised kernel."""

    def __init__(self, arch: str, source: Any, metadata: Any) -> None:
        self.arch, self.source, self.metadata = arch, source, metadata
        self.ctas = int(getattr(metadata, "num_ctas", 1))
        text = _ptx(source, metadata)
        contracts = bool(getattr(metadata, "enable_fp_fusion", True))
        key = (hashlib.sha256(text.encode()).hexdigest(), arch, int(metadata.shared), contracts)
        kernel, began = _KERNELS.get(key), time.perf_counter()
        was_known = kernel is not None
        if kernel is None:
            if key in _REFUSALS:
                raise _REFUSALS[key].with_traceback(None)
            cluster = (self.ctas, 1, 1) if self.ctas != 1 else None
            try:
                kernel = _KERNELS[key] = Kernel(text, arch=arch, shared=int(metadata.shared), cluster=cluster, contracts=contracts)
            except MmabitsError as error:
                _REFUSALS[key] = error
                raise
        self.compilation = Duration(seconds=time.perf_counter() - began, was_cached=was_known or kernel.was_kept)
        self.kernel, self.text = kernel, text
        self.weak = weak_points(kernel)
        self._checked: dict[tuple[str, ...], Kernel] = {}

    def checked(self, checks: tuple[str, ...]) -> Kernel:
        """The kernel with checks."""
        found = self._checked.get(checks)
        if found is None:
            kernel, cluster = self.kernel, (self.ctas, 1, 1) if self.ctas != 1 else None
            found = self._checked[checks] = Kernel(
                self.text, arch=self.arch, shared=int(self.metadata.shared), cluster=cluster, contracts=kernel.contracts, checks=checks
            )
        return found

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        _stream: Any,
        _function: Any,
        _packed: Any,
        launch_metadata: Any,
        enter: Any,
        leave: Any,
        *arguments: Any,
    ) -> None:
        """Launch."""
        session = self._session()
        if enter is not None:
            enter(launch_metadata)
        values: list[Any] = []
        ranges: list[tuple[int, int]] = []
        maps = iter(getattr(self.metadata, "tensordesc_meta", None) or ())
        for kind, value in _flattened(self.source.signature.values(), arguments):
            if kind.startswith("tensordesc"):
                values += self._descriptor(value, next(maps, None), ranges)
            else:
                values.append(self._argument(kind, value, ranges))
        kept = []
        for name in ("global_scratch", "profile_scratch"):
            size = int(getattr(self.metadata, f"{name}_size", 0) or 0) * x * y * z * self.ctas
            if len(values) < len(self.kernel.entry.parameters):
                room = aligned(size, max(128, int(getattr(self.metadata, f"{name}_align", 1) or 1))) if size else None
                kept.append(room)
                values.append(room.ctypes.data if room is not None else 0)
                if room is not None:
                    ranges.append((room.ctypes.data, room.ctypes.data + room.size))
        sizes = [variable.size for variable in self.kernel.entry.parameters]
        packed = [_packed_value(value, size) for value, size in zip(values, sizes, strict=True)]
        self._check(session)
        name, began = self.metadata.name, time.perf_counter()
        kernel, trace = self.kernel if not session.checks else self.checked(session.checks), None
        if session.watch is not None:
            kernel, trace = session.watch.begin(kernel, self.text, self._tensors(arguments))
        finish = None
        if session.keeper is not None:
            grid = (x * self.ctas, y, z)
            finish = session.keeper.begin(kernel, self.text, grid, packed, ranges, self._tensors(arguments))
        try:
            executed = kernel.launch(
                (x * self.ctas, y, z), packed, ranges, lambda matrix: session.ready(name, matrix), trace, session.findings, session.schedule
            )
        except KernelCheckError as error:
            session.raised += error.findings
            raise
        if finish is not None:
            finish()
        session.ran(self.described, x * self.ctas * y * z, time.perf_counter() - began)
        self._report(session, executed)
        if leave is not None:
            leave(launch_metadata)

    def _tensors(self, arguments: tuple[Any, ...]) -> list[tuple[str, Any]]:
        """Tensors among the arguments, by their names."""
        found = []
        for name, value in zip(self.source.signature, arguments, strict=True):
            held = getattr(value, "base", None) if hasattr(value, "block_shape") else value
            if hasattr(held, "untyped_storage"):
                found.append((name, held))
        return found

    def _session(self) -> Session:
        """That of the block around the launch: a kernel outlives the block that it was compiled in."""
        block = scope.current("triton")
        if block is None or block.session.arch != self.arch or block.session.triton == "interpreted":
            raise EmulationError(f"{self.metadata.name}: compiled for {self.arch} inside an emulate block, and launched outside of it")
        found: Session = block.session
        return found

    def _argument(self, kind: str, value: Any, ranges: list[tuple[int, int]]) -> Any:
        if not kind.startswith("*"):
            return (kind, value) if kind in (*_FLOATS, "bf16") else value
        if value is None:
            return 0
        if not hasattr(value, "data_ptr"):
            return int(value)
        pointer = int(value.data_ptr())
        found = False
        for storage in _storages(value):
            if str(storage.device) != "cpu":
                raise EmulationError(f"{self.metadata.name}: a tensor on {storage.device}; emulated kernels run on CPU tensors")
            first, last = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
            if first <= pointer <= last:
                ranges.append((first, last))
                found = True
        if pointer and not found:
            raise EmulationError(f"{self.metadata.name}: an argument of type {type(value).__name__} points to memory of unknown extent")
        return pointer

    def _descriptor(self, value: Any, layout: Any, ranges: list[tuple[int, int]]) -> list[Any]:
        """A descriptor of the host: its map, as Triton's launcher makes it, or its parts, where the architecture has no TMA."""
        base = self._argument("*", value.base, ranges)
        shape, strides = [int(each) for each in value.shape], [int(each) for each in value.strides]
        is_nan = value.padding == "nan"
        if layout is None:
            return [base, *shape, *strides, int(is_nan), int(value.round_f32_to_tf32), *shape, *strides]
        if layout.get("is_im2col", False) or value.round_f32_to_tf32:
            what = "rounds to tf32" if value.round_f32_to_tf32 else "is im2col"
            raise EmulationError(f"{self.metadata.name}: a tensor descriptor that {what} is not emulated")
        sizes = [*shape[:-1], shape[-1] * (2 if layout["fp4_padded"] else 1)]
        steps = [layout["elem_size"] * each for each in strides[:-1]]
        record = tensor_map(
            base, sizes[::-1], steps[::-1], [int(each) for each in layout["block_size"]][::-1], element=layout["elem_type"],
            swizzle=layout["swizzle"], fill=int(is_nan),
        )  # fmt: skip
        return [record, *shape, *strides]

    def _check(self, session: Session) -> None:
        """Refuse, before the launch, what is known less well than the session requires."""
        for matrix in self.kernel.matrices:
            session.ready(self.metadata.name, matrix)
        for each in self.weak:
            if each.evidence < session.require:
                raise InsufficientEvidence(
                    f"{self.metadata.name}: {each} rests on {each.evidence} evidence, but {session.require} is required ({each.reason})"
                )

    def _report(self, session: Session, executed: dict[Any, int]) -> None:
        name, note = self.metadata.name, f"as compiled by {_compiler()}"
        for matrix, count in executed.items():
            session.ready(name, matrix, note=note).count(matrix.m, matrix.n, matrix.k, count=count)
        for each in self.weak:
            if each.evidence < Evidence.PUBLISHED:
                session.skip(name, each.what, each.reason)
        if session.poisons:
            reason = "masked loads give what Triton's compiler puts there, fresh shared memory zeros; triton='interpreted' poisons loads"
            session.skip(name, "poison", reason)
        if adds_floats_by_atomics(self.kernel):
            session.skip(name, "floating-point atomics", "added in ascending order of programs; a GPU's order is not defined")

    def described(self, session: Session, spills: bool, fusion: bool) -> LaunchedKernel:
        """For the report."""
        kernel, shared = self.kernel, int(self.metadata.shared)
        return LaunchedKernel(
            name=self.metadata.name, compiler=_compiler(), warps=kernel.warps, cluster=kernel.cluster_size, shared=shared,
            opcodes=dict(kernel.text_opcodes), families=dict(families(kernel.text_opcodes)),
            tensor=tuple((matrix, lower(matrix, session.arch).evidence) for matrix in kernel.matrices), weak=self.weak,
            contracts=kernel.contracts, fused=kernel.fused, schedule=schedule(kernel),
            translation=TRANSLATIONS.get(self.metadata.hash), compilation=self.compilation, ptx=self.text,
            fusion=self._fusion(session.target) if fusion else NOT_ASKED,
            spills=ptxas.spills(self.text, session.target, contracts=kernel.contracts) if spills else NOT_ASKED,
        )  # fmt: skip

    def _fusion(self, arch: str) -> FusionCheck | str:
        try:
            return check_fusion(self.text, arch=arch, contracts=self.kernel.contracts)
        except MmabitsError as error:
            return f"fusion was not checked: {error}"


def _compiler() -> str:
    import triton

    return f"Triton {triton.__version__}"


def is_refusal(error: MmabitsError) -> bool:
    """Whether an error says that a kernel cannot be compiled for the processor, before anything of it ran."""
    return any(error is each for each in _REFUSALS.values())


def _ptx(source: Any, metadata: Any) -> str:
    """The PTX that Triton keeps beside the binary."""
    name = source.name[:150]
    group = get_cache_manager(metadata.hash).get_group(f"{name}.json") or {}
    path = group.get(f"{name}.ptx")
    if path is None:
        raise EmulationError(f"{source.name}: Triton kept no PTX; is its cache switched off?")
    return Path(path).read_text(encoding="utf-8")


def _flattened(kinds: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """Arguments that are no constants, tuples taken apart."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flattened(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _storages(value: Any, depth: int = 3) -> Iterator[Any]:
    """The storage of a tensor, or those of the tensors that an object with a `data_ptr` of its own holds."""
    if hasattr(value, "untyped_storage"):
        yield value.untyped_storage()
    elif depth:
        for held in getattr(value, "__dict__", {}).values():
            yield from _storages(held, depth - 1)


def _packed_value(value: Any, size: int) -> Any:
    """A float argument as the bytes of its type; a map as it is."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, tuple):
        return int(value)
    kind, number = value
    if kind == "bf16":
        import ml_dtypes

        return np.array(number, ml_dtypes.bfloat16).tobytes()
    return struct.pack(_FLOATS[kind], number).ljust(size, b"\0")


class _Active:
    """What Triton takes for its active driver while there are blocks: that of the block around the running code, else its own."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock

    def __getattr__(self, name: str) -> Any:
        block = scope.current("triton")
        found = None if block is None else _DRIVERS.get(id(block.session))
        if found is None:
            found = self._stock if self._stock is not None else _default()
        return getattr(found, name)


def _default() -> Any:
    """Triton's own driver."""
    try:
        return driver.default
    except RuntimeError as error:
        error.add_note("An emulate block holds for the thread and the task that entered it; what asks for a GPU here lies outside of it.")
        raise


_DRIVERS: dict[int, MachineDriver] = {}
"""Of the open blocks, by the `id` of their sessions."""
_PATCHES: Final = Patches()
"""In place while there are any."""


def install(session: Session) -> Callable[[], None]:
    """Make the machine Triton's device inside a session's block; what is returned ends that, in whichever order."""
    if not _DRIVERS:
        _PATCHES.set(driver, "_active", _Active(vars(driver).get("_active")))
    _DRIVERS[id(session)] = MachineDriver(session)

    def end() -> None:
        del _DRIVERS[id(session)]
        if not _DRIVERS:
            _PATCHES.undo()

    return end
