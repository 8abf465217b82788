"""CUDA C to machine code with NVRTC, for an exact target; no GPU, no headers, no nvcc."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mmabits.emulator.cuda.nvrtc import CompilerRefused, compile_program, compiler_version

EXTRA: Final = "pip install 'mmabits[gpu]'"


@dataclass(frozen=True, kw_only=True, eq=False)
class CompiledProgram:
    """What a kernel was compiled to."""

    arch: str
    cubin: bytes
    ptx: bytes
    compiler: str
    """`13.0`: the version of NVRTC."""
    options: tuple[str, ...]

    @property
    def cubin_sha256(self) -> str:
        """Of the machine code that the GPU runs."""
        return hashlib.sha256(self.cubin).hexdigest()

    @property
    def ptx_sha256(self) -> str:
        """Of the PTX on the way to it."""
        return hashlib.sha256(self.ptx).hexdigest()


@lru_cache(maxsize=1024)
def compile_source(source: str, arch: str) -> CompiledProgram:
    """Compile one translation unit.

    Args:
        source: CUDA C.
        arch: the target in full: `"sm_90a"`.

    Raises:
        DeviceUnavailable: NVRTC is not installed.
        CompilerRefused: it takes the target or the text not; the message has the first lines of its log.
    """
    made = compile_program(source, "tile.cu", arch, wants=("CUBIN", "PTX"))
    return CompiledProgram(
        arch=arch, cubin=made.outputs["CUBIN"], ptx=made.outputs["PTX"].rstrip(b"\0"), compiler=compiler_version(),
        options=(f"--gpu-architecture={arch}",),
    )  # fmt: skip


__all__ = ["EXTRA", "CompiledProgram", "CompilerRefused", "compile_source", "compiler_version"]
