"""Kernel runs on a GPU: the PTX of a file, assembled by ptxas and launched through the CUDA driver."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmabits.conformance.record.driver import CudaDevice
from mmabits.conformance.recorded.runs import Bytes, PtxRun
from mmabits.emulator.machine.sass import assemble
from mmabits.isa import EmulationError

_PLAIN_SHARED: Final = 48 << 10
"""Bytes of dynamic shared memory that a launch has without asking."""


class RunDevice:
    """A GPU that runs kernel runs; calling it gives the buffers afterwards.

    Args:
        device: the GPU.
    """

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self._functions: dict[tuple[str, str], Any] = {}

    def __call__(self, run: PtxRun) -> list[Bytes]:
        """Launch, and wait.

        Raises:
            EmulationError: a run with tensor maps, whose bytes are the driver's own.
            DeviceUnavailable: no ptxas.
            DeviceFailed: memory, launch or kernel failed.
        """
        if any(each.is_map for each in run.parameters):
            raise EmulationError(f"{run.name}: tensor maps of a file are not made on a GPU yet; the emulator runs them")
        call = self.device.call
        function = self._function(run)
        pointers: list[int] = []
        try:
            for held in run.before:
                pointers.append(int(call("cuMemAlloc", max(1, held.size))))
                if held.size:
                    call("cuMemcpyHtoD", pointers[-1], np.ascontiguousarray(held).ctypes.data, held.size)
            storage = [np.frombuffer(each.ljust(8, b"\0"), np.uint8).copy() for each in run.arguments(pointers)]
            addresses = np.array([each.ctypes.data for each in storage], np.uint64)
            call("cuLaunchKernel", function, *run.grid, *run.block, run.shared, 0, addresses.ctypes.data, 0)
            call("cuCtxSynchronize")
            found = [np.empty(each.size, np.uint8) for each in run.before]
            for pointer, held in zip(pointers, found, strict=True):
                if held.size:
                    call("cuMemcpyDtoH", held.ctypes.data, pointer, held.size)
            return found
        finally:
            for pointer in pointers:
                self.device.free(pointer)

    def _function(self, run: PtxRun) -> Any:
        key = (run.hash, run.kernel)
        if key not in self._functions:
            module = self.device.call("cuModuleLoadData", assemble(run.ptx, arch=run.arch, contracts=run.contracts))
            function = self.device.call("cuModuleGetFunction", module, run.kernel.encode())
            if run.shared > _PLAIN_SHARED:
                self.device.allow_shared(function, run.shared)
            self._functions[key] = function
        return self._functions[key]
