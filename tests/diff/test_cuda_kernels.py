"""CUDA C++ kernels as cases: on a driver without a GPU, which emulates what it is given to launch, with faults in the text of a kernel."""

# ruff: noqa: N802 (the names are the driver's)

from __future__ import annotations

import ctypes
import enum
import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mmabits.conformance.campaign.bench import emulated_bench
from mmabits.conformance.campaign.cases import remade
from mmabits.conformance.campaign.plan import CampaignStep, plan_for
from mmabits.conformance.campaign.steps import run_step
from mmabits.conformance.diff import frameworks
from mmabits.conformance.diff.frameworks import Gpu
from mmabits.conformance.diff.kernel_cases import KERNEL_CASES
from mmabits.conformance.diff.kernels import Composed, compare_kernel, record_kernel
from mmabits.conformance.record import modules
from mmabits.conformance.record.driver import CudaDevice, DeviceFailed
from mmabits.conformance.record.modules import GpuModule, GpuModules
from mmabits.emulator.cuda.nvrtc import Compiled, compile_program, compiler_version
from mmabits.emulator.machine.kernel import Kernel, aligned
from mmabits.emulator.machine.tensormaps import ELEMENTS, tensor_map
from mmabits.isa import DeviceUnavailable, OperandError, OperandTypeError
from mmabits.kernels.cuda.sources import source

TWICE = 'extern "C" __global__ void twice(float *x, int n, float by) { if (threadIdx.x < n) x[threadIdx.x] = 2 * x[threadIdx.x] + by; }'


@pytest.fixture(autouse=True)
def nvrtc() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    try:
        compiler_version()
    except DeviceUnavailable as error:
        pytest.skip(str(error))


class Result(enum.IntEnum):
    SUCCESS = 0
    LAUNCH_FAILED = 719


class EmulatingDriver:
    """As much of cuda.bindings.driver as launches take. Memory is this machine's; a launch emulates the PTX beside the machine code."""

    CUresult = Result
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")

    def __getattr__(self, name: str) -> Any:
        """Types and numbers of the bindings."""
        if name.startswith("cu") and not name.startswith("cuuint"):
            raise AttributeError(name)
        return getattr(importlib.import_module("cuda.bindings.driver"), name)

    def __init__(self, capability: tuple[int, int], arch: str) -> None:
        self.capability, self.arch = dict(zip(("major", "minor"), capability, strict=True)), arch
        self.texts: dict[bytes, str] = {}
        """PTX by machine code."""
        self.memory: dict[int, npt.NDArray[np.uint8]] = {}
        self.allowed: dict[tuple[bytes, bytes], int] = {}
        self.launches: list[tuple[Any, ...]] = []
        self.status = Result.SUCCESS

    def compile(self, text: str, file: str, arch: str, options: Any = (), **more: Any) -> Compiled:
        """NVRTC's, and what a launch of it will emulate."""
        made = compile_program(text, file, arch, options, **more)
        self.texts[made.outputs["CUBIN"]] = made.outputs["PTX"].decode().rstrip("\0")
        return made

    def cuInit(self, _flags: int) -> tuple[Any, ...]:
        return (Result.SUCCESS,)

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return (Result.SUCCESS, 1)

    def cuDeviceGet(self, index: int) -> tuple[Any, ...]:
        return (Result.SUCCESS, index)

    def cuDevicePrimaryCtxRetain(self, _device: int) -> tuple[Any, ...]:
        return (Result.SUCCESS, "context")

    def cuCtxSetCurrent(self, _context: str) -> tuple[Any, ...]:
        return (Result.SUCCESS,)

    def cuDeviceGetAttribute(self, attribute: str, _device: int) -> tuple[Any, ...]:
        return (Result.SUCCESS, self.capability[attribute])

    def cuDeviceGetName(self, _length: int, _device: int) -> tuple[Any, ...]:
        return (Result.SUCCESS, b"GPU of a test\0")

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return (Result.SUCCESS, 13010)

    def cuGetErrorName(self, status: Result) -> tuple[Any, ...]:
        return (Result.SUCCESS, status.name.encode())

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        assert image[:4] == b"\x7fELF"
        return (Result.SUCCESS, image)

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[Any, ...]:
        return (Result.SUCCESS, (module, name))

    def cuFuncSetAttribute(self, function: tuple[bytes, bytes], attribute: str, size: int) -> tuple[Any, ...]:
        assert attribute == "shared"
        self.allowed[function] = size
        return (Result.SUCCESS,)

    def cuMemAlloc(self, size: int) -> tuple[Any, ...]:
        held = aligned(size)[:size]
        held[:] = 0xCD
        self.memory[held.ctypes.data] = held
        return (Result.SUCCESS, held.ctypes.data)

    def cuMemFree(self, pointer: int) -> tuple[Any, ...]:
        del self.memory[pointer]
        return (Result.SUCCESS,)

    def cuMemcpyHtoD(self, pointer: int, host: int, size: int) -> tuple[Any, ...]:
        assert size <= len(self.memory[pointer])
        ctypes.memmove(pointer, host, size)
        return (Result.SUCCESS,)

    def cuMemcpyDtoH(self, host: int, pointer: int, size: int) -> tuple[Any, ...]:
        assert size <= len(self.memory[pointer])
        ctypes.memmove(host, pointer, size)
        return (Result.SUCCESS,)

    def cuCtxSynchronize(self) -> tuple[Any, ...]:
        return (self.status,)

    def cuTensorMapEncodeTiled(
        self, kind: Any, rank: int, address: int, sizes: Any, strides: Any, box: Any, steps: Any, interleave: Any, swizzle: Any,
        promotion: Any, fill: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """A map as the machine has it, by the driver's names."""
        assert address in self.memory and interleave == 0 and promotion == 0 and fill == 0
        dtypes = {"UINT8": "u8", "UINT16": "u16", "UINT32": "u32", "FLOAT16": "f16", "BFLOAT16": "bf16", "FLOAT32": "f32"}
        element = dtypes[kind.name.removeprefix("CU_TENSOR_MAP_DATA_TYPE_")]
        code = next(code for code, row in ELEMENTS.items() if row.name == element)
        counts = [[int(each) for each in values] for values in (sizes, strides, box, steps)]
        assert len(counts[0]) == rank
        record = tensor_map(address, *counts[:3], element=code, swizzle=int(swizzle), element_strides=counts[3])
        return (Result.SUCCESS, SimpleNamespace(opaque=np.frombuffer(record, np.uint64)))

    def cuLaunchKernelEx(self, config: Any, function: tuple[bytes, bytes], parameters: int, extra: int) -> tuple[Any, ...]:
        (attribute,) = config.attrs
        assert attribute.id.name == "CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION" and config.numAttrs == 1
        size = attribute.value.clusterDim
        return self.cuLaunchKernel(
            function, config.gridDimX, config.gridDimY, config.gridDimZ, config.blockDimX, config.blockDimY, config.blockDimZ,
            config.sharedMemBytes, 0, parameters, extra, (size.x, size.y, size.z),
        )  # fmt: skip

    def cuLaunchKernel(
        self, function: tuple[bytes, bytes], gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int, _stream: int,
        parameters: int, extra: int, cluster: tuple[int, int, int] | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        assert extra == 0 and (shared <= 48 << 10 or self.allowed[function] >= shared)
        kernel = Kernel(self.texts[function[0]], function[1].decode(), arch=self.arch, shared=shared, threads=(bx, by, bz), cluster=cluster)
        places = (ctypes.c_uint64 * len(kernel.entry.parameters)).from_address(parameters)
        values = [ctypes.string_at(place, each.size) for place, each in zip(places, kernel.entry.parameters, strict=True)]
        kernel.launch((gx, gy, gz), values, [(each, each + held.size) for each, held in self.memory.items()])
        self.launches.append(((gx, gy, gz), (bx, by, bz), shared))
        return (Result.SUCCESS,)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[EmulatingDriver, CudaDevice]]:
    """Makes the GPU at hand."""

    def make(capability: tuple[int, int], arch: str) -> tuple[EmulatingDriver, CudaDevice]:
        driver = EmulatingDriver(capability, arch)
        device = CudaDevice(driver=driver)
        monkeypatch.setattr(modules, "compile_program", driver.compile)
        row = replace(frameworks.FRAMEWORKS["cuda"], gpu=lambda: Gpu(device.info.arch, device.info.name, device))
        monkeypatch.setitem(frameworks.FRAMEWORKS, "cuda", row)
        return driver, device

    return make


@pytest.mark.parametrize(("name", "capability", "arch"), [
    ("cuda-w4a16", (9, 0), "sm_90a"), ("cuda-sage2", (8, 9), "sm_89"), ("cuda-fp8-blockwise", (9, 0), "sm_90a"),
    ("cuda-mxfp8", (10, 0), "sm_100a"), ("cuda-nvfp4-pair", (10, 3), "sm_103a"), ("cuda-asymmetric-int8", (9, 0), "sm_90a"),
    ("cuda-w4a4", (8, 9), "sm_89"), ("cuda-w8a16-e4m3-f16", (9, 0), "sm_90a"), ("cuda-w4a8-fp8-group", (8, 9), "sm_89"),
])  # fmt: skip
def test_a_run_on_a_gpu(gpu: Any, name: str, capability: tuple[int, int], arch: str) -> None:
    """Compiled to the GPU's machine code, its memory filled and read; all of it given back."""
    driver, _ = gpu(capability, arch)
    run = record_kernel(KERNEL_CASES[name])
    assert (run.kind, run.arch, run.gpu) == ("hardware", arch, "GPU of a test") and "nvidia-cuda-nvrtc" in run.versions
    assert len(driver.launches) == 1 and not driver.memory
    found = compare_kernel(run)
    assert found.is_equal and found.verdict == "every bit equal; emulated kernel and composition agree"
    assert "by its PTX" in "\n".join(found.lines())


@pytest.mark.parametrize(("name", "old", "new"), [
    ("sage2", "value = __fadd_rn(value, __shfl_xor_sync(0xffffffff, value, 1))",
     "value = __fadd_rz(value, __shfl_xor_sync(0xffffffff, value, 1))"),
    ("w4a16", "sub.rn.f16x2 %0, t, %2;", "sub.rn.f16x2 %0, t, %2; xor.b32 %0, %0, 1;"),
])  # fmt: skip
def test_another_text_on_the_gpu_is_found(gpu: Any, monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str) -> None:
    gpu((8, 9), "sm_89")
    assert source(name).count(old) == 1
    monkeypatch.setattr(modules, "source", lambda of: source(of).replace(old, new))
    found = compare_kernel(record_kernel(KERNEL_CASES[f"cuda-{name}"]))
    assert found.differing and found.verdict.endswith("elements differ; emulated kernel and composition agree")
    composition = found.detail(Composed).found
    assert composition is not None and all(each.is_equal for each in composition.values())


def test_a_step_of_a_campaign_and_a_fault_of_the_stand_in() -> None:
    """The first instruction that differs is named, by the same PTX on both sides; what equals is made again from its seed."""
    step = CampaignStep(kind="kernel", name="cuda-w4a16")
    result = run_step(emulated_bench("sm_89", "fraction-bits"), step, limit=60)
    words = "\n".join(result.said)
    assert result.state == "done" and result.differ and "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in words
    assert "the first instruction that differs: `mma.sync" in words
    assert "w4a16.cu:" in words
    (launch,) = [data for name, data in result.files.items() if name.startswith("launches/")]
    assert os.getcwd().encode() not in launch and any(name.startswith("differing/") for name in result.files)
    result = run_step(emulated_bench("sm_89"), step, limit=60)
    assert result.state == "done" and result.line == "2,560 elements, 0 differ" and not result.said
    assert remade(result.recordings[0], "sm_89") == 2560


def test_where_they_are_planned() -> None:
    planned = {arch: {step.name for step in plan_for(arch, only="cuda-")} for arch in ("sm_75", "sm_80", "sm_90a", "sm_100a")}
    scaled = {"cuda-mxfp8", "cuda-mxfp8-pair", "cuda-nvfp4", "cuda-nvfp4-pair"}
    everywhere = {"cuda-w4a16", "cuda-asymmetric-int8", "cuda-w4a4"} | {
        f"cuda-w8a16-{name}" for name in ("int8-f16-channel", "int8-bf16", "e4m3-f16")
    }
    from_ada = {"cuda-sage2", "cuda-w4a8-fp8-channel", "cuda-w4a8-fp8-group"}
    assert planned == {
        "sm_75": set(), "sm_80": everywhere, "sm_90a": {*everywhere, *from_ada, "cuda-fp8-blockwise"},
        "sm_100a": {*everywhere, *from_ada, *scaled},
    }  # fmt: skip


def test_without_nvrtc_the_step_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(frameworks, "import_module", no_module)
    result = run_step(emulated_bench("sm_89"), CampaignStep(kind="kernel", name="cuda-w4a16"), limit=60)
    assert result.state == "left out" and "cuda-w4a16 needs cuda.bindings.nvrtc" in result.line and "mmabits[nvrtc]" in result.line


def test_a_launch_on_a_gpu(gpu: Any) -> None:
    driver, device = gpu((9, 0), "sm_90a")
    kernel = GpuModule(device, TWICE, "twice.cu")["twice"]
    x = np.arange(4, dtype=np.float32)
    kernel(1, 32, x, 3, 0.5)
    assert x.tolist() == [0.5, 2.5, 4.5, 3.0] and driver.launches == [((1, 1, 1), (32, 1, 1), 0)]
    fixed = np.arange(4, dtype=np.float32)
    fixed.setflags(write=False)
    with pytest.raises(OperandError, match="twice wrote to argument 1, a read-only array"):
        kernel(1, 32, fixed, 3, 0.5)
    with pytest.raises(OperandTypeError, match=r"argument 1 of twice, u64, must be a contiguous NumPy array"):
        kernel(1, 32, x[::2], 2, 0.5)
    with pytest.raises(OperandTypeError, match=r"argument 2 of twice, u32, is no pointer"):
        kernel(1, 32, x, x, 0.5)
    with pytest.raises(OperandError, match="twice takes 3 arguments"):
        kernel(1, 32, x)
    with pytest.raises(OperandError, match="the kernel w4a16 is asked for on sm_80; the GPU is sm_90a"):
        GpuModules(device)("w4a16", "sm_80", ())
    driver.status = Result.LAUNCH_FAILED
    with pytest.raises(DeviceFailed, match="cuCtxSynchronize fails: LAUNCH_FAILED"):
        kernel(1, 32, x, 3, 0.5)
    assert not driver.memory
