"""The kernels of mmabits.kernels.cuda on a GPU: compiled by NVRTC for it, loaded and launched through the driver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.record.driver import CudaDevice
from mmabits.emulator.cuda.arguments import described, is_array, scalar_bytes
from mmabits.emulator.cuda.maps import ArrayMap
from mmabits.emulator.cuda.nvrtc import compile_program
from mmabits.emulator.machine import tensormaps
from mmabits.emulator.machine.kernel import aligned
from mmabits.emulator.machine.ptx import Entry, read_ptx
from mmabits.isa import OperandError, OperandTypeError
from mmabits.isa.architectures import architecture
from mmabits.kernels.cuda.sources import source

_PLAIN_SHARED: Final = 48 << 10
"""Bytes of dynamic shared memory that a launch has without asking."""
_POINTER: Final = 8
_Three = tuple[int, int, int]


class GpuModules:
    """Modules of a GPU, each compiled and loaded once; what `launched_by` takes.

    Args:
        device: the GPU.
    """

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self._made: dict[tuple[str, tuple[str, ...]], GpuModule] = {}

    def __call__(self, name: str, arch: str, options: tuple[str, ...]) -> GpuModule:
        """A module.

        Raises:
            OperandError: another architecture than the GPU's.
            DeviceUnavailable: NVRTC is not installed; CompilerRefused: it does not take the text.
            DeviceFailed: the driver does not take the machine code.
        """
        own = self.device.info.arch
        if architecture(arch).name != architecture(own).name:
            raise OperandError(f"the kernel {name} is asked for on {arch}; the GPU is {own}")
        if (name, options) not in self._made:
            self._made[name, options] = GpuModule(self.device, source(name), f"{name}.cu", options)
        return self._made[name, options]


class GpuModule(Mapping[str, "GpuKernel"]):
    """The kernels of a CUDA C++ text without headers, whose kernels are `extern "C"`."""

    def __init__(self, device: CudaDevice, text: str, file: str, options: Sequence[str] = ()) -> None:
        made = compile_program(text, file, device.info.arch, options, wants=("CUBIN", "PTX"))
        self.cubin, self.ptx = made.outputs["CUBIN"], made.outputs["PTX"].decode(errors="replace").rstrip("\0")
        module = device.call("cuModuleLoadData", self.cubin)
        self._kernels = {
            name: GpuKernel(device, device.call("cuModuleGetFunction", module, name.encode()), entry)
            for name, entry in read_ptx(self.ptx).entries.items()
            if entry.is_kernel
        }

    def __getitem__(self, name: str) -> GpuKernel:
        return self._kernels[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kernels)

    def __len__(self) -> int:
        return len(self._kernels)


class GpuKernel:
    """One of them. Calling it copies its arrays to the GPU, launches it, waits, and copies them back."""

    def __init__(self, device: CudaDevice, function: Any, entry: Entry) -> None:
        self._device, self._function = device, function
        self.name = entry.name
        self.parameters = tuple(map(described, entry.parameters))

    def __call__(
        self, grid: int | Sequence[int], block: int | Sequence[int], *arguments: Any, shared: int = 0, cluster: Sequence[int] | None = None
    ) -> None:  # fmt: skip
        """Launch the kernel.

        Args:
            grid: CTAs along x, y and z.
            block: threads of a CTA, likewise.
            *arguments: NumPy arrays, in whose memory the results are then, numbers, and tensor maps of NumPy arrays.
            shared: bytes of dynamic shared memory.
            cluster: CTAs of a cluster.

        Raises:
            OperandError, OperandTypeError: arguments that do not fit.
            DeviceFailed: memory, launch or kernel failed.
        """
        arrays = self._arrays(arguments)
        call = self._device.call
        pointers: dict[int, int] = {}
        try:
            storage = []
            for place, (value, parameter) in enumerate(zip(arguments, self.parameters, strict=True)):
                if place in arrays:
                    array = arrays[place]
                    pointers[place] = int(call("cuMemAlloc", max(1, array.nbytes)))
                    if array.nbytes:
                        call("cuMemcpyHtoD", pointers[place], array.ctypes.data, array.nbytes)
                    data = pointers[place].to_bytes(_POINTER, "little")
                    if isinstance(value, ArrayMap):
                        data = self._device.tensor_map(tensormaps.described(value.record), pointers[place])
                else:
                    data = scalar_bytes(value, parameter, f"argument {place + 1} of {self.name}, {parameter.kind},")
                storage.append(aligned(max(_POINTER, len(data))))
                storage[-1][: len(data)] = np.frombuffer(data, np.uint8)
            if shared > _PLAIN_SHARED:
                self._device.allow_shared(self._function, shared)
            addresses = np.array([each.ctypes.data for each in storage], np.uint64)
            self._launch(_three(grid), _three(block), shared, _three(cluster or 1), addresses.ctypes.data)
            call("cuCtxSynchronize")
            for place, array in arrays.items():
                if array.nbytes:
                    self._copy_back(place, array, pointers[place])
        finally:
            for pointer in pointers.values():
                self._device.free(pointer)

    def _launch(self, grid: _Three, block: _Three, shared: int, cluster: _Three, parameters: int) -> None:
        """Through cuLaunchKernelEx where there are clusters that the text does not say."""
        driver = self._device
        if cluster == (1, 1, 1):
            driver.call("cuLaunchKernel", self._function, *grid, *block, shared, 0, parameters, 0)
        else:
            driver.launch_clusters(self._function, grid, block, shared, cluster, parameters)

    def _arrays(self, arguments: Sequence[Any]) -> dict[int, npt.NDArray[Any]]:
        """Those of the arguments, by place."""
        if len(arguments) != len(self.parameters):
            told = ", ".join(each.kind for each in self.parameters)
            raise OperandError(f"{self.name} takes {len(self.parameters)} arguments ({told}), got {len(arguments)}")
        found = {}
        for place, (value, parameter) in enumerate(zip(arguments, self.parameters, strict=True)):
            name = f"argument {place + 1} of {self.name}, {parameter.kind},"
            if isinstance(value, ArrayMap):
                if parameter.size != tensormaps.BYTES:
                    raise OperandError(f"{name} has {parameter.size} bytes; a tensor map has {tensormaps.BYTES}")
                value = value.array.own
            elif not is_array(value):
                continue
            elif parameter.size != _POINTER:
                raise OperandTypeError(f"{name} is no pointer, got an array")
            if not isinstance(value, np.ndarray) or not value.flags.c_contiguous:
                raise OperandTypeError(f"{name} must be a contiguous NumPy array, got {type(value).__name__}")
            found[place] = value
        return found

    def _copy_back(self, place: int, array: npt.NDArray[Any], pointer: int) -> None:
        held = np.empty(array.nbytes, np.uint8)
        self._device.call("cuMemcpyDtoH", held.ctypes.data, pointer, held.nbytes)
        if array.flags.writeable:
            array.reshape(-1).view(np.uint8)[:] = held
        elif held.tobytes() != array.tobytes():
            raise OperandError(f"{self.name} wrote to argument {place + 1}, a read-only array")


def _three(size: int | Sequence[int]) -> _Three:
    x, y, z = [*((size,) if isinstance(size, int) else size), 1, 1][:3]
    return x, y, z


__all__ = ["GpuKernel", "GpuModule", "GpuModules"]
