"""What running something on a GPU, or on the CPU in its place, takes of PyTorch, Triton, JAX and NVRTC: a row for each."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.conformance.recorded.base import Provenance
from mmabits.isa import DeviceUnavailable, UnknownArchitecture, architecture
from mmabits.isa.architectures import ARCHITECTURES, target_of

Array = npt.NDArray[Any]
_SOURCE_PATH: Final = re.compile(r'(\.file\s+\d+\s+)"[^"]*"')


class Gpu(NamedTuple):
    """The GPU at hand."""

    arch: str
    name: str
    device: Any
    """As the framework names it."""


@dataclass(frozen=True, kw_only=True)
class Framework:
    """One of them."""

    name: str
    packages: tuple[str, ...]
    """What is imported."""
    gpu: Callable[[], Gpu]
    """The GPU at hand. Raises DeviceUnavailable where there is none, UnknownArchitecture for one without a row."""
    put: Callable[[Array, Any], Any]
    """An array on a device; None: the CPU."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What a call is made in,"""
    on: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    """of a device besides,"""
    within: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    """and of a session of `emulate`."""
    is_hooked: bool = True
    """Whether `emulate` names it."""
    extra: str = ""
    """What installs it; of the same name if empty."""
    distributions: Mapping[str, str] = field(default_factory=dict)
    """Packages whose distributions have other names."""

    def versions(self) -> dict[str, str]:
        """Of what computes."""
        from mmabits import __version__

        found = {"mmabits": __version__, "numpy": np.__version__, "python": platform.python_version()}
        for package in self.packages:
            try:
                found[self.distributions.get(package, package)] = version(self.distributions.get(package, package))
            except PackageNotFoundError:
                found[self.distributions.get(package, package)] = "unknown"
        return found

    def told(self, case: Any, seed: int, stand_in: str | None) -> tuple[dict[str, Any], Any]:
        """What a manifest says of a run, and where it runs: the GPU at hand, or the CPU in its place.

        Args:
            case: what is run.
            seed: of its operands.
            stand_in: the architecture that `emulate` stands in for, which may be a what-if; None: the GPU.

        Raises:
            DeviceUnavailable: the framework, its CUDA build or a GPU is missing.
        """
        name = None if stand_in is None else architecture(stand_in).name
        gpu = self.gpu() if name is None else Gpu(name, f"emulator of {name}", None)
        kind = str(Provenance.HARDWARE if name is None else Provenance.EMULATOR)
        known = {"arch": gpu.arch, "gpu": gpu.name, "kind": kind, "case": case.name, "call": case.call, "seed": seed}
        return {**known, "versions": self.versions()}, gpu.device


def framework_named(name: str, case: str) -> Framework:
    """A framework, imported.

    Args:
        name: one of FRAMEWORKS.
        case: what needs it, for the message.

    Raises:
        DeviceUnavailable: it is not installed.
    """
    extra = FRAMEWORKS[name].extra or name
    for package in FRAMEWORKS[name].packages:
        try:
            import_module(package)
        except ImportError as error:
            raise DeviceUnavailable(f"{case} needs {package}, which is not installed ({error}): pip install 'mmabits[{extra}]'") from None
    return FRAMEWORKS[name]


def arch_of_capability(digits: str, name: str) -> str:
    """The architecture of a GPU of compute capability `digits` (`"90"`).

    Raises:
        UnknownArchitecture: none is known.
    """
    found = target_of(int(digits[:-1]), int(digits[-1])) if len(digits) > 1 and digits.isdigit() else None
    if found is None:
        raise UnknownArchitecture(f"{name} is sm_{digits}; known: {', '.join(ARCHITECTURES)}")
    return found.name


def _torch_gpu() -> Gpu:
    import torch

    if torch.version.cuda is None:
        raise DeviceUnavailable(f"PyTorch {torch.__version__} is built without CUDA; this takes a CUDA build and a GPU")
    if not torch.cuda.is_available():
        raise DeviceUnavailable(f"PyTorch {torch.__version__} finds no CUDA GPU here; this takes one")
    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    return Gpu(arch_of_capability(f"{major}{minor}", name), name, "cuda")


def _torch_put(array: Array, device: Any) -> Any:
    """A tensor of the same bits."""
    import torch

    kind, plain = str(array.dtype), np.array(array, order="C")
    if kind in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        made = torch.from_numpy(plain.view(f"int{8 * plain.dtype.itemsize}")).view(getattr(torch, kind))
    else:
        made = torch.from_numpy(plain)
    return made if device is None else made.to(device)


@contextmanager
def _tf32() -> Iterator[None]:
    """f32 products as TF32, and PyTorch's setting as it was afterwards."""
    import torch

    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _jax_gpu() -> Gpu:
    import jax

    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        raise DeviceUnavailable(f"JAX {jax.__version__} finds no GPU here; this takes one") from None
    digits = str(device.compute_capability).replace(".", "")
    return Gpu(arch_of_capability(digits, device.device_kind), device.device_kind, device)


def _jax_put(array: Array, device: Any) -> Any:
    import jax

    return jax.device_put(array, device or jax.devices("cpu")[0])


def _cuda_gpu() -> Gpu:
    from mmabits.conformance.record.driver import CudaDevice

    device = CudaDevice()
    return Gpu(device.info.arch, device.info.name, device)


def _cuda_put(array: Array, _device: Any) -> Array:
    """In this machine's memory: each launch copies."""
    return np.array(array, order="C")


def _on_cuda(device: Any) -> AbstractContextManager[None]:
    """Kernels of mmabits.kernels.cuda run on a GPU."""
    if device is None:
        return nullcontext()
    from mmabits.conformance.record.modules import GpuModules
    from mmabits.kernels.cuda.sources import launched_by

    return launched_by(GpuModules(device))


def _in_session(session: Any) -> AbstractContextManager[None]:
    """Kernels of mmabits.kernels.cuda run on the CPU, and are in a session's report and with its keeper."""
    from mmabits.emulator.cuda.modules import PtxModule
    from mmabits.kernels.cuda.sources import compiled, launched_by

    @lru_cache(maxsize=8)
    def modules(name: str, arch: str, options: tuple[str, ...]) -> PtxModule:
        known = compiled(name, arch, options)
        text = _SOURCE_PATH.sub(rf'\1"{name}.cu"', known.ptx)  # what is kept has no path of this machine
        made = PtxModule(text, arch, contracts=known.contracts)
        made.session, made.keeper = session, session.keeper
        return made

    return launched_by(modules)


def _op_by_op() -> AbstractContextManager[Any]:
    """Compiled as a whole, XLA fuses elementwise operations, and rounds less often."""
    import jax

    found: AbstractContextManager[Any] = jax.disable_jit()
    return found


FRAMEWORKS: Final = {
    row.name: row
    for row in (
        Framework(name="torch", packages=("torch",), gpu=_torch_gpu, put=_torch_put, around=_tf32),
        Framework(name="triton", packages=("torch", "triton"), gpu=_torch_gpu, put=_torch_put),
        Framework(name="jax", packages=("jax",), gpu=_jax_gpu, put=_jax_put, around=_op_by_op),
        Framework(
            name="cuda",
            packages=("cuda.bindings.nvrtc",),
            gpu=_cuda_gpu,
            put=_cuda_put,
            on=_on_cuda,
            within=_in_session,
            is_hooked=False,
            extra="nvrtc",
            distributions={"cuda.bindings.nvrtc": "nvidia-cuda-nvrtc"},
        ),
    )
}
"""Every framework by its name; `cuda`: CUDA C++ by NVRTC, launched through the driver."""

__all__ = ["FRAMEWORKS", "Framework", "Gpu", "arch_of_capability", "framework_named"]
