"""How the dots of a kernel are issued: what a composition must know of the compiler to give the kernel's bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import gemm, operand_type, scale_type
from mmabits.isa import Evidence, Instruction, OperandError, library_instruction

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Dots:
    """The instruction of a kernel's dots, and the order in which they take K.

    The tile of a kernel does not change the bits as long as one chain of instructions runs through K. What does change them is here.
    """

    arch: str
    """`"sm_90a"` and so on."""
    instruction: str | Instruction | None = None
    """Which, as for `mmabits.gemm`; None: what a matrix library is taken to use on `arch`."""
    promote_every: int | None = None
    """As for `mmabits.gemm`."""
    k_order: tuple[int, ...] = ()
    """Order of K within a tile of that many elements; empty: ascending. Compilers permute K where they unpack narrow operands in
    registers and hand them to `mma.sync` (`mmabits.emulator.hooks.triton.plans.k_order`); A and B are permuted alike, so only the
    order of the sum changes."""
    require: str | Evidence = Evidence.INFERRED
    """As for `mmabits.gemm`."""

    def __call__(
        self, a: Array, b: Array, c: Array | None = None, *, accumulator: str | None = None, scale_a: Array | None = None,
        scale_b: Array | None = None,
    ) -> Array:  # fmt: skip
        """D = A B + C: without elements where M, N or the batch has none, and C or zeros where only K has none.

        Args:
            a: (..., M, K), dtypes as for `mmabits.gemm`.
            b: (..., K, N).
            c: (..., M, N) in the accumulator's type; zeros if None.
            accumulator: `"f16"` where it is not the usual one.
            scale_a: (..., M, K / block) block scales of a block-scaled instruction, which takes K as it stands.
            scale_b: (..., K / block, N), of the same type.

        Returns:
            (..., M, N), in the accumulator's type.

        Raises:
            MmabitsError: as `mmabits.gemm`.
        """
        if c is None and accumulator == "f16":
            c = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.float16)
        instruction = self.instruction_for(a, b, accumulator=accumulator, scale=scale_a)
        if scale_a is None and 0 not in (*a.shape, *b.shape):
            a, b = self.in_order(a, b)
        result: Array = gemm(
            a, b, c, instruction=instruction, arch=self.arch, scale_a=scale_a, scale_b=scale_b, promote_every=self.promote_every,
            require=self.require,
        )  # fmt: skip
        return result

    def instruction_for(
        self, a: Array, b: Array, *, accumulator: str | None = None, scale: Array | None = None
    ) -> str | Instruction:  # fmt: skip
        """The instruction of a product.

        Raises:
            UnsupportedInstruction: the architecture has none for such operands.
        """
        if self.instruction is not None:
            return self.instruction
        kinds = operand_type(a, "a"), operand_type(b, "b")
        return library_instruction(self.arch, *kinds, c_type=accumulator, scale_type=None if scale is None else scale_type(scale))

    def in_order(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Both operands with K as the instructions take it; a last tile that is not full is filled with zeros."""
        if not self.k_order:
            return a, b
        tile = len(self.k_order)
        if sorted(self.k_order) != list(range(tile)):
            raise OperandError(f"k_order must be a permutation of 0 to {tile - 1}, got {self.k_order[:8]}...")
        missing = -a.shape[-1] % tile
        if missing:
            a = np.concatenate([a, np.zeros((*a.shape[:-1], missing), a.dtype)], axis=-1)
            b = np.concatenate([b, np.zeros((*b.shape[:-2], missing, b.shape[-1]), b.dtype)], axis=-2)
        order = (np.arange(0, a.shape[-1], tile)[:, None] + np.asarray(self.k_order)).reshape(-1)
        return a[..., order], b[..., order, :]


def as_dots(arch: str | Dots) -> Dots:
    """`Dots` themselves, or those of an architecture's libraries."""
    return arch if isinstance(arch, Dots) else Dots(arch=arch)
