"""The part that talks to the CUDA driver, with a driver that is not there."""

# ruff: noqa: N802 (the names are the driver's)

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmabits.conformance.record import driver
from mmabits.conformance.record.device import EmulatedDevice, arch_of, pack
from mmabits.conformance.record.driver import CudaDevice, DeviceFailed, driver_version
from mmabits.conformance.record.generators import normal_values
from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.isa import parse
from mmabits.isa.errors import DeviceUnavailable


def made(ptx: str, arch: str, tiles: int = 3) -> tuple[InstructionKernel, Any]:
    kernel = InstructionKernel(instruction=parse(ptx), arch=arch)
    return kernel, pack(kernel, normal_values(kernel.instruction, arch, tiles, 7))


@pytest.mark.parametrize(("capability", "ptx", "grid", "block"), [
    ((8, 0), "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 3, 32),
    ((9, 0), "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3", 3, 128),
    ((10, 0), "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n16k32.f32.e4m3.e2m1.ue8m0", 3, 128),
    ((10, 3), "tcgen05.mma.cta_group::2.kind::f16.m128n32k16.f32.f16.f16", 6, 128),
    ((12, 0), "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0", 3, 32),
])  # fmt: skip
def test_arguments_and_launch(fake_driver: Any, capability: tuple[int, int], ptx: str, grid: int, block: int) -> None:
    fake = fake_driver(capability)
    device = CudaDevice(driver=fake)
    kernel, images = made(ptx, device.info.arch)
    assert (device.run(kernel, images) == EmulatedDevice(kernel.arch).run(kernel, images)).all()
    (launch,) = fake.launches
    assert (launch["grid"], launch["block"], launch["shared"]) == ((grid, 1, 1), (block, 1, 1), 0)
    assert launch["idesc"] == kernel.idesc
    assert [bool(pointer) for pointer in launch["pointers"]] == [True, True, True, *[kernel.scales is not None] * 2, True]
    assert len(set(fake.freed)) == len(fake.freed) == sum(map(bool, launch["pointers"]))


def test_what_a_gpu_is(fake_driver: Any) -> None:
    info = CudaDevice(driver=fake_driver((12, 0))).info
    assert (info.kind, info.name, info.compute_capability, info.arch, info.cuda) == ("hardware", "Fake GPU", "12.0", "sm_120a", "13.1")


@pytest.mark.parametrize(("capability", "arch"), [((7, 5), "sm_75"), ((8, 0), "sm_80"), ((9, 0), "sm_90a"), ((10, 3), "sm_103a")])
def test_targets_of_capabilities(capability: tuple[int, int], arch: str) -> None:
    assert arch_of(*capability) == arch


def test_a_gpu_without_tensor_cores_is_refused(fake_driver: Any) -> None:
    with pytest.raises(DeviceUnavailable, match=r"compute capability 6\.1 has no tensor cores that are known here; known: 70, "):
        CudaDevice(driver=fake_driver((6, 1)))


def test_no_gpu(fake_driver: Any) -> None:

    with pytest.raises(DeviceUnavailable, match=r"cuInit says CUDA_ERROR_NO_DEVICE; .*the extra gpu \(pip install 'mmabits\[gpu\]'\)"):
        CudaDevice(driver=fake_driver(fail={"cuInit": fake_driver().CUresult.CUDA_ERROR_NO_DEVICE}))
    with pytest.raises(DeviceUnavailable, match="no GPU 1: there are 1"):
        CudaDevice(1, driver=fake_driver())


def test_no_driver_and_no_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLibrary:
        def cuInit(self, flags: int) -> None:
            raise RuntimeError("libcuda.so.1:\n not found")

    with pytest.raises(DeviceUnavailable, match=r"no NVIDIA driver here \(libcuda.so.1: not found\); recording needs an NVIDIA GPU"):
        CudaDevice(driver=NoLibrary())

    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(driver.importlib, "import_module", missing)
    with pytest.raises(DeviceUnavailable, match=r"driver's bindings, which are not installed .*: pip install 'mmabits\[gpu\]'"):
        CudaDevice()


@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuMemAlloc", "cuLaunchKernel", "cuCtxSynchronize"])
def test_a_failing_call_is_named_and_memory_freed(fake_driver: Any, call: str) -> None:

    fake = fake_driver(fail={call: fake_driver().CUresult.CUDA_ERROR_LAUNCH_FAILED})
    kernel, images = made("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3", "sm_90a")
    with pytest.raises(DeviceFailed, match=f"^{call} fails: CUDA_ERROR_LAUNCH_FAILED$"):
        CudaDevice(driver=fake).run(kernel, images)
    assert not fake.memory


def test_kernels_are_loaded_once(fake_driver: Any) -> None:
    device = CudaDevice(driver=fake_driver())
    kernel, images = made("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3", "sm_90a")
    assert np.array_equal(device.run(kernel, images), device.run(kernel, images))


def test_driver_version(tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)\nGCC version: 12.2\n")
    assert driver_version(file) == "580.95.05"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n")
    assert driver_version(file) == "535.183.01"
    assert driver_version(tmp_path / "missing") == "unknown"
