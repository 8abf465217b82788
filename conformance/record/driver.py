"""Loading and launching kernels through the CUDA driver."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmabits.conformance.record.device import DeviceInfo, Images, arch_of
from mmabits.conformance.record.kernels import ENTRY, PARAMETERS, InstructionKernel
from mmabits.conformance.record.nvrtc import EXTRA, CompiledProgram, compile_source
from mmabits.conformance.recorded.base import Provenance
from mmabits.emulator.machine.tensormaps import MapDescription
from mmabits.isa.errors import DeviceUnavailable, MmabitsError
from mmabits.isa.fragments import Words

_VERSION_FILE: Final = Path("/proc/driver/nvidia/version")
_NEEDS: Final = f"recording needs an NVIDIA GPU and the extra gpu ({EXTRA}); --compile-only and --emulated need no GPU"
_MAP_TYPES: Final = {
    "u8": "UINT8", "u16": "UINT16", "u32": "UINT32", "s32": "INT32", "u64": "UINT64", "s64": "INT64", "f16": "FLOAT16", "f32": "FLOAT32",
    "f64": "FLOAT64", "bf16": "BFLOAT16", "b4x16": "16U4_ALIGN8B", "b4x16_p64": "16U4_ALIGN16B", "b6x16_p32": "16U6_ALIGN16B",
}  # fmt: skip
"""The driver's names of the elements of tensor maps, and of what fills them."""
_MAP_FILLS: Final = {False: "NONE", True: "NAN_REQUEST_ZERO_FMA"}
_VERSION: Final = re.compile(r"\s(\d{3,}\.\d+(?:\.\d+)?)\s")


class DeviceFailed(MmabitsError, RuntimeError):
    """The GPU or its driver refused or broke off; what was finished before is kept."""


def _bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise DeviceUnavailable(f"recording needs the CUDA driver's bindings, which are not installed ({error}): {EXTRA}") from error


def driver_version(path: Path = _VERSION_FILE) -> str:
    """The version of the kernel driver, `unknown` where the system does not tell it."""
    try:
        found = _VERSION.search(path.read_text(encoding="utf-8"))
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


class CudaDevice:
    """A GPU of this machine.

    Args:
        index: which, counted as the driver does.
        driver: the driver's bindings; those of cuda-bindings if None.

    Raises:
        DeviceUnavailable: no bindings, no driver, no such GPU, or one without tensor cores.
    """

    def __init__(self, index: int = 0, *, driver: Any = None) -> None:
        self._driver = _bindings() if driver is None else driver
        self._functions: dict[str, Any] = {}
        try:
            status = int(self._driver.cuInit(0)[0])
        except Exception as error:  # the bindings' loader has exceptions of its own for a missing library
            raise DeviceUnavailable(f"no NVIDIA driver here ({' '.join(str(error).split())}); {_NEEDS}") from error
        if status:
            raise DeviceUnavailable(f"no usable GPU: cuInit says {self._name_of(status)}; {_NEEDS}")
        count = self._call("cuDeviceGetCount")
        if not 0 <= index < count:
            raise DeviceUnavailable(f"no GPU {index}: there are {count}")
        self._device = self._call("cuDeviceGet", index)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", self._device))
        self._info = self._read_info()

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return self._info

    def _read_info(self) -> DeviceInfo:
        attributes = self._driver.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device)
        minor = self._call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device)
        name = self._call("cuDeviceGetName", 256, self._device)
        version = self._call("cuDriverGetVersion")
        return DeviceInfo(
            kind=Provenance.HARDWARE, name=bytes(name).split(b"\0")[0].decode(errors="replace"), compute_capability=f"{major}.{minor}",
            arch=arch_of(major, minor), driver=driver_version(), cuda=f"{version // 1000}.{version % 1000 // 10}",
        )  # fmt: skip

    def _name_of(self, status: int) -> str:
        try:
            _, name = self._driver.cuGetErrorName(self._driver.CUresult(status))
        except Exception:  # an unknown code must not hide the error that is being told
            return f"error {status}"
        return name.decode() if isinstance(name, bytes) else str(name)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A driver call's result, or the error it returned."""
        status, *results = getattr(self._driver, name)(*arguments)
        if int(status):
            raise DeviceFailed(f"{name} fails: {self._name_of(int(status))}")
        return results[0] if len(results) == 1 else tuple(results)

    def call(self, name: str, *arguments: Any) -> Any:
        """A driver call's result.

        Raises:
            DeviceFailed: it returned an error.
        """
        return self._call(name, *arguments)

    def allow_shared(self, function: Any, size: int) -> None:
        """Let a kernel have so many bytes of dynamic shared memory.

        Raises:
            DeviceFailed: the GPU has not so many.
        """
        attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call("cuFuncSetAttribute", function, attribute, size)

    def tensor_map(self, described: MapDescription, address: int) -> bytes:
        """The driver's 128 bytes of a tensor map, for a tensor at an address of the GPU's memory.

        Raises:
            DeviceFailed: the driver does not take it.
        """
        names = self._driver
        kind = getattr(names.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_MAP_TYPES[described.element]}")
        span, atom = described.swizzle, described.atom
        swizzle = "NONE" if not span else f"{span}B" if atom == 16 else f"{span}B_ATOM_{atom}B"
        made = self._call(
            "cuTensorMapEncodeTiled", kind, len(described.sizes), address, *(
                [kind_of(each) for each in values] for kind_of, values in (
                    (names.cuuint64_t, described.sizes), (names.cuuint64_t, described.strides), (names.cuuint32_t, described.box),
                    (names.cuuint32_t, described.element_strides),
                )
            ),
            names.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(names.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{swizzle}"),
            names.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE,
            getattr(names.CUtensorMapFloatOOBfill, f"CU_TENSOR_MAP_FLOAT_OOB_FILL_{_MAP_FILLS[described.fills_nan]}"),
        )  # fmt: skip
        return b"".join(int(each).to_bytes(8, "little") for each in made.opaque)

    def launch_clusters(
        self, function: Any, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, cluster: tuple[int, int, int],
        parameters: int,
    ) -> None:  # fmt: skip
        """Launch a kernel whose CTAs form clusters that its text does not say.

        Raises:
            DeviceFailed: the driver does not take it.
        """
        names = self._driver
        attribute, config = names.CUlaunchAttribute(), names.CUlaunchConfig()
        attribute.id = names.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = attribute.value.clusterDim
        size.x, size.y, size.z = cluster
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes, config.hStream = shared, 0
        config.attrs, config.numAttrs = [attribute], 1
        self._call("cuLaunchKernelEx", config, function, parameters, 0)

    def free(self, pointer: int) -> None:
        """Give memory back; after a failed kernel that fails too, and says nothing new."""
        self._driver.cuMemFree(pointer)

    def prepare(self, kernel: InstructionKernel) -> CompiledProgram:
        """Compile and load a kernel.

        Raises:
            DeviceUnavailable: NVRTC is missing.
            CompilerRefused: NVRTC does not take it.
            DeviceFailed: the driver does not take the machine code.
        """
        program = compile_source(kernel.source, kernel.arch)
        if kernel.source not in self._functions:
            module = self._call("cuModuleLoadData", program.cubin)
            self._functions[kernel.source] = self._call("cuModuleGetFunction", module, ENTRY.encode())
        return program

    def run(self, kernel: InstructionKernel, images: Images) -> Words:
        """Launch a kernel over its tiles and wait for it.

        Raises:
            DeviceFailed: memory, launch or kernel failed.
        """
        self.prepare(kernel)
        tiles = len(images.a)
        result = np.empty((tiles, kernel.accumulator.words), dtype=np.uint32)
        with self._on_device(images, result.nbytes) as pointers:
            storage = np.zeros(len(PARAMETERS), dtype=np.uint64)
            for place, name in enumerate(PARAMETERS):
                storage[place] = kernel.idesc if name == "idesc" else pointers.get(name, 0)
            addresses = storage.ctypes.data + 8 * np.arange(len(PARAMETERS), dtype=np.uint64)
            function = self._functions[kernel.source]
            blocks = tiles * kernel.blocks_per_tile
            self._call("cuLaunchKernel", function, blocks, 1, 1, kernel.threads, 1, 1, 0, 0, addresses.ctypes.data, 0)
            self._call("cuCtxSynchronize")
            self._call("cuMemcpyDtoH", result.ctypes.data, pointers["d"], result.nbytes)
        return result

    @contextmanager
    def _on_device(self, images: Images, result_bytes: int) -> Iterator[dict[str, int]]:
        """Device memory with the images in it, and room for D, by parameter name; freed at the end."""
        pointers: dict[str, int] = {}
        try:
            for name, words in zip(Images._fields, images, strict=True):
                if words is not None:
                    words = np.ascontiguousarray(words)
                    pointers[name] = int(self._call("cuMemAlloc", words.nbytes))
                    self._call("cuMemcpyHtoD", pointers[name], words.ctypes.data, words.nbytes)
            pointers["d"] = int(self._call("cuMemAlloc", result_bytes))
            yield pointers
        finally:
            for pointer in pointers.values():
                self._driver.cuMemFree(pointer)  # after a failed kernel this fails too, and says nothing new
