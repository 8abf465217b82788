"""What a recording is made on: a GPU (driver.py), or the emulator standing in for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.conformance.record.nvrtc import CompiledProgram
from mmabits.conformance.record.tiles import TileOperands, emulate_tiles
from mmabits.conformance.recorded.base import Provenance
from mmabits.isa.architectures import ARCHITECTURES, architecture, target_of
from mmabits.isa.errors import DeviceUnavailable
from mmabits.isa.fragments import Words


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """What a manifest says of a device."""

    kind: str
    """`hardware` or `emulator`: who computes."""
    name: str
    compute_capability: str
    """`9.0`."""
    arch: str
    driver: str
    """Version of the kernel driver."""
    cuda: str
    """The newest CUDA version that the driver offers."""


class Images(NamedTuple):
    """The operands of tiles as a kernel's words, (tiles, words) each; scales only where there are any."""

    a: Words
    b: Words
    c: Words
    scale_a: Words | None = None
    scale_b: Words | None = None


class Device(Protocol):
    """Something that runs kernels."""

    @property
    def info(self) -> DeviceInfo:
        """What it is."""

    def prepare(self, kernel: InstructionKernel) -> CompiledProgram:
        """Compile a kernel and make it ready; the same kernel again costs nothing."""

    def run(self, kernel: InstructionKernel, images: Images) -> Words:
        """The words of D, (tiles, words)."""


def pack(kernel: InstructionKernel, operands: TileOperands) -> Images:
    """Operands as a kernel's words."""
    a, b, c = kernel.a.pack(operands.a), kernel.b.pack(operands.b), kernel.accumulator.pack(operands.c)
    if kernel.scales is None or operands.scale_a is None or operands.scale_b is None:
        return Images(a, b, c)
    return Images(a, b, c, kernel.scales[0].pack(operands.scale_a), kernel.scales[1].pack(operands.scale_b))


def unpack(kernel: InstructionKernel, images: Images) -> TileOperands:
    """The operands in a kernel's words."""
    a, b, c = kernel.a.unpack(images.a), kernel.b.unpack(images.b), kernel.accumulator.unpack(images.c)
    if kernel.scales is None or images.scale_a is None or images.scale_b is None:
        return TileOperands(a=a, b=b, c=c)
    return TileOperands(a=a, b=b, c=c, scale_a=kernel.scales[0].unpack(images.scale_a), scale_b=kernel.scales[1].unpack(images.scale_b))


def arch_of(major: int, minor: int) -> str:
    """The target for a compute capability, with the architecture-specific instructions.

    Raises:
        DeviceUnavailable: no row for it.
    """
    found = target_of(major, minor)
    if found is None:
        known = ", ".join(name.removeprefix("sm_") for name in ARCHITECTURES)
        raise DeviceUnavailable(f"a GPU of compute capability {major}.{minor} has no tensor cores that are known here; known: {known}")
    return found.name


class EmulatedDevice:
    """The emulator behind the interface of a GPU: it takes a kernel's words and returns a kernel's words.

    Recordings made with it say so, and prove nothing about hardware.
    """

    def __init__(self, arch: str) -> None:
        self._arch = architecture(arch).name

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        from mmabits import __version__

        major, minor = architecture(self._arch).capability
        return DeviceInfo(
            kind=Provenance.EMULATOR, name=f"mmabits {__version__}", compute_capability=f"{major}.{minor}", arch=self._arch,
            driver="none", cuda="none",
        )  # fmt: skip

    def prepare(self, kernel: InstructionKernel) -> CompiledProgram:
        """Nothing is compiled."""
        return CompiledProgram(arch=kernel.arch, cubin=b"", ptx=b"", compiler="none", options=())

    def run(self, kernel: InstructionKernel, images: Images) -> Words:
        """What the emulator makes of the words."""
        return kernel.accumulator.pack(emulate_tiles(kernel.instruction, kernel.arch, unpack(kernel, images)))
