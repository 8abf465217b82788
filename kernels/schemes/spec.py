"""What a row of the table of schemes says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SchemeSpec:
    """A quantization scheme and the code that does it. Functions are named from `mmabits.kernels` on, `module:function`."""

    number: int
    """Group of schemes: 1 to 9."""
    name: str
    """As people call it."""
    operands: str
    """What is multiplied, activations first."""
    scales: str
    """Which scales there are, and their type."""
    product: str
    """Types of the tensor cores' operands and accumulator, and what is added outside."""
    quantizers: tuple[str, ...]
    """What makes the operands."""
    composition: str
    """The plain composition through `mmabits.gemm`."""
    triton: str
    """The Triton launcher that gives the same bits."""
    jax: str = ""
    """The JAX or Pallas form; empty: none."""
    cuda: str = ""
    """The launcher of the CUDA C++ form; empty: none."""
    architectures: tuple[str, ...] = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
    """Where kernel and composition were compared."""
    source: str
    """Where the scheme comes from."""
