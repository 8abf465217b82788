"""What a campaign's steps run on: a GPU, or the emulator in its place, with a fault planted where a rehearsal wants one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import numpy as np

from mmabits.conformance.record.device import Device, DeviceInfo, EmulatedDevice, Images, unpack
from mmabits.conformance.record.functions import CudaFunctions, EmulatedFunctions, FunctionDevice, FunctionPlan, computed, source_of
from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.conformance.record.nvrtc import CompiledProgram, compile_source
from mmabits.conformance.record.tiles import emulate_tiles
from mmabits.conformance.recorded.functions import Codes, Sums
from mmabits.isa import OperandError, architecture, nearest
from mmabits.isa.datapaths import DATAPATHS
from mmabits.isa.fragments import Words
from mmabits.isa.whatif import what_if

Place = Literal["fraction-bits", "nan", "function"]


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A fault of the stand-in."""

    words: str
    place: Place


PLANTS: Final[Mapping[str, Plant]] = {
    "fraction-bits": Plant(words="every datapath of f16 into f32 keeps one fraction bit less", place="fraction-bits"),
    "nan": Plant(words="the NaN of f32 results is 0x7fc00000", place="nan"),
    "function": Plant(words="rcp.approx.ftz.f32 is one unit too large in a row of its table", place="function"),
}
"""By name: another F, a wrong NaN, a function off by one ulp."""
_PLANTED_OPCODE: Final = "rcp.approx.ftz.f32"
_ROW_BITS, _ROW, _ROWS = 16, 5, 0x7F
_F32_NAN, _OTHER_NAN = 0x7FFF_FFFF, 0x7FC0_0000


def plant_named(name: str) -> Plant:
    """A fault by its name.

    Raises:
        OperandError: there is none.
    """
    if name not in PLANTS:
        raise OperandError(f"unknown fault {name!r}{nearest(name, PLANTS)}; known: {', '.join(PLANTS)}")
    return PLANTS[name]


def _narrower(arch: str) -> str:
    """The same architecture with one fraction bit less in the datapaths of f16 into f32."""
    rows = {
        row.part: {"fraction_bits": row.fraction_bits - 1}
        for row in DATAPATHS.values()
        if row.arch == arch and row.is_aligned and fnmatchcase(row.part, "*.f16.f32")
    }
    return what_if(f"planted-{arch}", base=arch, rows=rows).name


class PlantedDevice:
    """The emulator behind the interface of a GPU, with a fault."""

    def __init__(self, arch: str, place: Place) -> None:
        self._device, self._place = EmulatedDevice(arch), place
        self._arch = _narrower(self._device.info.arch) if place == "fraction-bits" else self._device.info.arch

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return self._device.info

    @property
    def stand_in(self) -> str:
        """The architecture that frameworks' products are computed on."""
        return self._arch

    def prepare(self, kernel: InstructionKernel) -> CompiledProgram:
        """Nothing is compiled."""
        return self._device.prepare(kernel)

    def run(self, kernel: InstructionKernel, images: Images) -> Words:
        """What the emulator makes of the words, and the fault of that."""
        d = emulate_tiles(kernel.instruction, self._arch, unpack(kernel, images))
        if self._place == "nan" and kernel.instruction.d_type.name == "f32":
            d = np.where(d == _F32_NAN, _OTHER_NAN, d).astype(d.dtype)
        return kernel.accumulator.pack(d)


def _off_by_one(arch: str) -> Any:
    def model(opcode: str, codes: Any) -> Any:
        found = computed(opcode, codes, arch)
        if opcode != _PLANTED_OPCODE:
            return found
        return found + (codes >> _ROW_BITS & _ROWS == _ROW).astype(np.uint32)

    return model


@dataclass(frozen=True)
class CompilingDevice:
    """A stand-in whose kernels are compiled as for the GPU, so that a rehearsal takes that time too."""

    device: Device
    functions: FunctionDevice

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return self.device.info

    def prepare(self, kernel: InstructionKernel) -> CompiledProgram:
        """Compile it; nothing loads it."""
        compile_source(kernel.source, kernel.arch)
        return self.device.prepare(kernel)

    def run(self, kernel: InstructionKernel, images: Images) -> Words:
        """What the stand-in gives."""
        return self.device.run(kernel, images)

    def results(self, plan: FunctionPlan, first: int, count: int) -> Codes:
        """What the stand-in gives."""
        compile_source(source_of(plan), self.info.arch)
        return self.functions.results(plan, first, count)

    def sums(self, plan: FunctionPlan, blocks: Sequence[int]) -> Sums:
        """What the stand-in gives."""
        return self.functions.sums(plan, blocks)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where steps run."""

    device: Device
    functions: FunctionDevice
    stand_in: str | None
    """The architecture that `emulate` takes for the frameworks' products; None: the GPU."""
    index: int = 0

    @property
    def is_hardware(self) -> bool:
        """Whether it is a GPU."""
        return self.stand_in is None


def emulated_bench(arch: str, plant: str | None = None, *, compiles: bool = False) -> Bench:
    """The emulator in a GPU's place.

    Args:
        arch: which.
        plant: a fault of PLANTS.
        compiles: kernels are compiled by NVRTC first, as for the GPU.

    Raises:
        OperandError: no such fault.
        UnknownArchitecture: no such architecture.
    """
    name = architecture(arch).name
    place = None if plant is None else plant_named(plant).place
    planted = None if place is None else PlantedDevice(name, place)
    device: Device = planted or EmulatedDevice(name)
    functions: FunctionDevice = EmulatedFunctions(name, _off_by_one(name) if place == "function" else None)
    if compiles:
        device = functions = CompilingDevice(device, functions)
    return Bench(device=device, functions=functions, stand_in=planted.stand_in if planted else name)


def cuda_bench(index: int = 0) -> Bench:
    """A GPU of this machine.

    Raises:
        DeviceUnavailable: none, no driver, or the extra `gpu` is missing.
    """
    from mmabits.conformance.record.driver import CudaDevice

    device = CudaDevice(index)
    return Bench(device=device, functions=CudaFunctions(device), stand_in=None, index=index)


__all__ = ["PLANTS", "Bench", "Plant", "PlantedDevice", "cuda_bench", "emulated_bench", "plant_named"]
