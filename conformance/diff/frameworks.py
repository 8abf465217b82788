"""What running something on a GPU, or on the CPU in its place, takes of PyTorch, Triton and JAX: a row for each."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.conformance.recorded.base import Provenance
from mmabits.isa import DeviceUnavailable, UnknownArchitecture, architecture
from mmabits.isa.architectures import ARCHITECTURES, target_of

Array = npt.NDArray[Any]


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
    """What a call is made in."""

    def versions(self) -> dict[str, str]:
        """Of what computes."""
        from mmabits import __version__

        found = {"mmabits": __version__, "numpy": np.__version__, "python": platform.python_version()}
        for package in self.packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "unknown"
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
    for package in FRAMEWORKS[name].packages:
        try:
            import_module(package)
        except ImportError as error:
            raise DeviceUnavailable(f"{case} needs {package}, which is not installed ({error}): pip install 'mmabits[{name}]'") from None
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
    )
}
"""Every framework by its name, which is also that of the extra."""

__all__ = ["FRAMEWORKS", "Framework", "Gpu", "arch_of_capability", "framework_named"]
