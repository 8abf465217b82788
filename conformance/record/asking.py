"""A GPU's instruction as a function of dot products: what `mmabits identify` asks."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from mmabits.conformance.record.device import Device, DeviceInfo
from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.conformance.record.session import check_layout, run_tiles
from mmabits.conformance.record.tiles import TileOperands, diagonal_tiles, diagonals
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.isa.errors import OperandError
from mmabits.isa.instructions import Instruction

Array = npt.NDArray[Any]


class AskedInstruction:
    """An instruction on a GPU, or on the emulator in its place, as d = f(a, b, c) over independent dot products.

    Each lies on the diagonal of a tile (`diagonal_tiles`); the other elements of D are thrown away.

    Args:
        device: what runs kernels.
        instruction: which.

    Raises:
        UnsupportedInstruction: the GPU's architecture lacks it, or it is not modelled.
        LayoutCheckFailed: the kernel does not multiply small integers exactly, so its operands do not lie where they should.
        MmabitsError: the kernel cannot be compiled or run.
    """

    def __init__(self, device: Device, instruction: Instruction) -> None:
        self._device, self._instruction = device, instruction
        self._kernel = InstructionKernel(instruction=instruction, arch=device.info.arch)
        device.prepare(self._kernel)
        check_layout(device, self._kernel)

    @property
    def info(self) -> DeviceInfo:
        """What answers."""
        return self._device.info

    def __call__(self, a: Array, b: Array, c: Array, scale_a: Array | None = None, scale_b: Array | None = None) -> Array:
        """Dot products on the device.

        Args:
            a: (n, K) of the format's NumPy type.
            b: (n, K).
            c: (n,) accumulators.
            scale_a: (n, K / block) where the instruction is block-scaled, else None.
            scale_b: likewise.

        Returns:
            (n,) of the accumulator's type.

        Raises:
            OperandError: shapes that do not fit, scales missing or superfluous.
            DeviceFailed: the GPU failed.
        """
        row = self._instruction
        codes = {"a": as_codes(a, row.a_type), "b": as_codes(b, row.b_type), "c": as_codes(c, row.c_type)}
        if (row.scale_type is None) != (scale_a is None) or (scale_a is None) != (scale_b is None):
            raise OperandError(f"{row} takes {'no scales' if row.scale_type is None else 'both scales'}")
        if row.scale_type is not None and scale_a is not None and scale_b is not None:
            codes |= {"scale_a": as_codes(scale_a, row.scale_type), "scale_b": as_codes(scale_b, row.scale_type)}
        count = len(codes["c"])
        if not count:
            raise OperandError("no dot products: a, b and c are empty")
        for name, found in codes.items():
            width = {"c": (), "a": (row.k,), "b": (row.k,)}.get(name, (row.k // (row.block or 1),))
            if found.shape != (count, *width):
                raise OperandError(f"{name} must have shape {(count, *width)}, got {found.shape}")
        side = min(row.m, row.n)
        d = run_tiles(self._device, self._kernel, diagonal_tiles(row, TileOperands(**codes), -(-count // side)))
        return from_codes(diagonals(d)[:count], row.d_type)
