"""A CUDA driver without a GPU: memory is a dictionary, a launch runs the emulator on what the arguments point at."""

# ruff: noqa: N802 (the names are the driver's)

import ctypes
import enum
import importlib.util
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmabits.conformance.record import driver as driver_module
from mmabits.conformance.record.device import EmulatedDevice, Images
from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.conformance.record.nvrtc import CompiledProgram
from mmabits.isa import parse


class Result(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_LAUNCH_FAILED = 719


class FakeDriver:
    """As much of cuda.bindings.driver as the recorder calls; every call returns a tuple with the status first."""

    CUresult = Result
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )

    def __init__(self, capability: tuple[int, int] = (9, 0), *, fail: dict[str, Result] | None = None) -> None:
        self.capability = dict(zip(("major", "minor"), capability, strict=True))
        self.fail = fail or {}
        self.kernels: dict[bytes, InstructionKernel] = {}
        """What the bytes of a module stand for."""
        self.memory: dict[int, np.ndarray[Any, Any]] = {}
        self.freed: list[int] = []
        self.launches: list[dict[str, Any]] = []
        self.spoil: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda words: words
        self._next = 0x7F00_0000_0000

    def _status(self, name: str) -> Result:
        return self.fail.get(name, Result.CUDA_SUCCESS)

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return (self._status("cuInit"),)

    def cuGetErrorName(self, status: Result) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS, status.name.encode())

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS, 1)

    def cuDeviceGet(self, index: int) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS, index)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS, "context")

    def cuCtxSetCurrent(self, context: str) -> tuple[Any, ...]:
        assert context == "context"
        return (Result.CUDA_SUCCESS,)

    def cuDeviceGetAttribute(self, attribute: str, device: int) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS, self.capability[attribute])

    def cuDeviceGetName(self, length: int, device: int) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS, b"Fake GPU".ljust(length, b"\0"))

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS, 13010)

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        return (self._status("cuModuleLoadData"), image)

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[Any, ...]:
        assert name == b"tile"
        return (Result.CUDA_SUCCESS, self.kernels[module])

    def cuMemAlloc(self, size: int) -> tuple[Any, ...]:
        if self._status("cuMemAlloc"):
            return (self._status("cuMemAlloc"), None)
        self._next += 1 << 32
        self.memory[self._next] = np.full(size, 0xCD, dtype=np.uint8)
        return (Result.CUDA_SUCCESS, self._next)

    def cuMemFree(self, pointer: int) -> tuple[Any, ...]:
        del self.memory[pointer]
        self.freed.append(pointer)
        return (Result.CUDA_SUCCESS,)

    def cuMemcpyHtoD(self, pointer: int, host: int, size: int) -> tuple[Any, ...]:
        assert size == len(self.memory[pointer])
        self.memory[pointer][:] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(host))
        return (Result.CUDA_SUCCESS,)

    def cuMemcpyDtoH(self, host: int, pointer: int, size: int) -> tuple[Any, ...]:
        assert size == len(self.memory[pointer])
        ctypes.memmove(host, self.memory[pointer].ctypes.data, size)
        return (Result.CUDA_SUCCESS,)

    def cuCtxSynchronize(self) -> tuple[Any, ...]:
        return (self._status("cuCtxSynchronize"),)

    def cuLaunchKernel(self, kernel: InstructionKernel, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int, stream: int,
                       parameters: int, extra: int) -> tuple[Any, ...]:  # fmt: skip
        """Reads the arguments as the driver does: an array of addresses, each of an argument of the kernel's type."""
        addresses = (ctypes.c_uint64 * 7).from_address(parameters)
        pointers = [ctypes.c_uint64.from_address(address).value for address in addresses[:6]]
        idesc = ctypes.c_uint32.from_address(addresses[6]).value
        self.launches.append({"grid": (gx, gy, gz), "block": (bx, by, bz), "shared": shared, "idesc": idesc, "pointers": pointers})
        assert extra == 0 and gx % kernel.blocks_per_tile == 0
        tiles = gx // kernel.blocks_per_tile
        words = [self.memory[pointer].view(np.uint32).reshape(tiles, -1) if pointer else None for pointer in pointers[:5]]
        result = EmulatedDevice(kernel.arch).run(kernel, Images(*words))
        self.memory[pointers[5]][:] = self.spoil(result).reshape(-1).view(np.uint8)
        return (self._status("cuLaunchKernel"),)


@pytest.fixture
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeDriver]]:
    """Makes fake drivers; NVRTC is replaced too, by one that takes every kernel and returns its text."""
    made: list[FakeDriver] = []

    def make(*args: Any, **kwargs: Any) -> FakeDriver:
        made.append(FakeDriver(*args, **kwargs))
        return made[-1]

    def prepared(self: Any, kernel: InstructionKernel) -> CompiledProgram:
        cubin = f"{kernel.instruction.ptx} x{kernel.chain}".encode()
        for fake in made:
            fake.kernels[cubin] = kernel
        # Two instructions may share a text, as tcgen05's do; the stand-in for machine code must tell them apart to emulate them.
        monkeypatch.setattr(driver_module, "compile_source", lambda source, arch: CompiledProgram(
            arch=arch, cubin=cubin, ptx=source.encode(), compiler="0.0", options=(f"--gpu-architecture={arch}",)))  # fmt: skip
        self._functions.pop(kernel.source, None)
        return original(self, kernel)

    original = driver_module.CudaDevice.prepare
    monkeypatch.setattr(driver_module.CudaDevice, "prepare", prepared)
    yield make
    for fake in made:
        assert not fake.memory, "device memory was not freed"


@pytest.fixture(scope="session")
def needs_nvrtc() -> None:
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        pytest.skip("cuda-bindings is not installed: pip install 'mmabits[gpu]'")
    from mmabits.conformance.record.nvrtc import compiler_version
    from mmabits.isa.errors import DeviceUnavailable

    try:
        compiler_version()
    except DeviceUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def small() -> Callable[[str], Any]:
    return parse
