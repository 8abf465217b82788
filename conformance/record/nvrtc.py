"""CUDA C to machine code with NVRTC, for an exact target; no GPU, no headers, no nvcc."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from mmabits.isa.errors import DeviceUnavailable, MmabitsError

EXTRA: Final = "pip install 'mmabits[gpu]'"
_LOG_LINES: Final = 3


class CompilerRefused(MmabitsError, RuntimeError):
    """NVRTC does not take a kernel; the text says what it said."""


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


def _bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.nvrtc")
    except ImportError as error:
        raise DeviceUnavailable(f"kernels are compiled by NVRTC, which is not installed ({error}): {EXTRA}") from error


@lru_cache(maxsize=1)
def compiler_version() -> str:
    """The version of NVRTC.

    Raises:
        DeviceUnavailable: NVRTC is not installed; the message names the extra.
    """
    nvrtc = _bindings()
    try:
        status, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # the bindings' loader has exceptions of its own for a missing library
        raise DeviceUnavailable(f"the NVRTC library cannot be loaded ({_one_line(error)}): {EXTRA}") from error
    if int(status):
        raise DeviceUnavailable(f"NVRTC does not tell its version ({status})")
    return f"{major}.{minor}"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _fetched(nvrtc: Any, program: Any, what: str) -> bytes:
    status, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    data = bytearray(0 if int(status) else size)
    buffer = b" " * len(data)
    if not int(status):
        (status,) = getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    if int(status):
        raise CompilerRefused(f"NVRTC does not hand out the {what} ({status})")
    return buffer


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
    version = compiler_version()
    nvrtc = _bindings()
    options = (f"--gpu-architecture={arch}",)
    status, program = nvrtc.nvrtcCreateProgram(source.encode(), b"tile.cu", 0, [], [])
    if int(status):
        raise CompilerRefused(f"NVRTC {version} makes no program ({status})")
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if int(status):
            log = [line.strip() for line in _fetched(nvrtc, program, "ProgramLog").decode(errors="replace").strip("\0 \n").splitlines()]
            said = "; ".join(line for line in log[:_LOG_LINES] if line) or str(status)
            raise CompilerRefused(f"NVRTC {version} does not compile it for {arch}: {said}")
        cubin, ptx = _fetched(nvrtc, program, "CUBIN"), _fetched(nvrtc, program, "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return CompiledProgram(arch=arch, cubin=cubin, ptx=ptx.rstrip(b"\0"), compiler=version, options=options)
