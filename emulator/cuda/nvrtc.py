"""NVRTC: CUDA C++ to PTX and machine code, without a GPU and without nvcc."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from mmabits.isa.errors import DeviceUnavailable, MmabitsError, OperandError

EXTRA: Final = "pip install 'mmabits[nvrtc]'"
_LOG_LINES: Final = 3
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_LEAST: Final = 64
"""Bytes of a buffer, at least."""


class CompilerRefused(MmabitsError, RuntimeError):
    """NVRTC does not take a kernel; the text says what it said, and `log` has all of it."""

    log = ""


STANDARD_HEADERS: Final = (
    "algorithm", "array", "atomic", "bit", "cassert", "cfloat", "climits", "cmath", "complex", "concepts", "cstddef", "cstdint", "cstdlib",
    "cstring", "functional", "initializer_list", "iterator", "limits", "numeric", "optional", "ratio", "span", "tuple", "type_traits",
    "utility", "variant",
)  # fmt: skip
"""Headers of C++'s standard library that CUDA has in a namespace of its own; NVRTC has none."""
_IN_C: Final = {"stdint.h": "cstdint", "stddef.h": "cstddef", "assert.h": "cassert", "string.h": "cstring", "math.h": "cmath",
                "float.h": "cfloat", "limits.h": "climits"}  # fmt: skip


class Compiled(NamedTuple):
    """What NVRTC made."""

    outputs: dict[str, bytes]
    """By what was asked for: `PTX`, `CUBIN`."""
    names: dict[str, str]
    """Of name expressions, what they are called in the PTX."""
    log: str
    """Warnings."""


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
    # NVRTC writes into the bytes; Python has one object for all bytes of length 1, which must not be given.
    buffer = bytes(_LEAST if int(status) else max(size, _LEAST))
    if not int(status):
        (status,) = getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    if int(status):
        raise CompilerRefused(f"NVRTC does not hand out the {what} ({status})")
    return buffer[:size]


def header_folders() -> tuple[str, ...]:
    """Folders of CUDA's headers: those of the packages on PyPI, for the NVRTC that is installed, or else of a toolkit (CUDA_HOME)."""
    found = [each for each in _candidates() if (each / "cuda_runtime.h").is_file() or (each / "cuda" / "std").is_dir()]
    return tuple(dict.fromkeys(str(each) for each in found))


def _candidates() -> Iterator[Path]:
    major = compiler_version().partition(".")[0]
    spec = importlib.util.find_spec("nvidia")
    for folder in map(Path, (spec.submodule_search_locations or ()) if spec is not None else ()):
        for name in (f"cu{major}", "cuda_runtime", "cuda_cccl"):
            yield from (folder / name / "include", folder / name / "include" / "cccl")
    for home in filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"))):
        yield from (Path(home) / "include", Path(home) / "include" / "cccl")


def standard_headers() -> dict[str, str]:
    """Headers of C++'s standard library, made of CUDA's: what `#include <cstdint>` means to NVRTC."""
    if not any((Path(each) / "cuda" / "std").is_dir() for each in header_folders()):
        return {}
    found = {name: _forwarding(name) for name in STANDARD_HEADERS}
    return found | {name: _forwarding(of) for name, of in _IN_C.items()}


def _forwarding(name: str) -> str:
    lines = ["#pragma once", f"#include <cuda/std/{name}>", "namespace std { using namespace cuda::std; }"]
    if name == "cstdint":
        lines += [f"using cuda::std::{sign}int{bits}_t;" for sign in ("", "u") for bits in (8, 16, 32, 64)]
        lines += ["using cuda::std::intptr_t;", "using cuda::std::uintptr_t;"]
    return "\n".join(lines) + "\n"


def compile_program(
    source: str, file: str, arch: str, options: Sequence[str] = (), *, names: Sequence[str] = (), wants: Sequence[str] = ("PTX",),
    headers: Mapping[str, str] | None = None,
) -> Compiled:  # fmt: skip
    """Compile one translation unit.

    Args:
        source: CUDA C++.
        file: what messages call it.
        arch: the target: `sm_90a`, or `compute_90a` for PTX alone.
        options: of NVRTC, besides.
        names: expressions of kernels that are wanted: instances of templates.
        wants: what to fetch: `PTX`, `CUBIN`.
        headers: texts of headers, by the names that they are included by.

    Raises:
        DeviceUnavailable: NVRTC is not installed.
        CompilerRefused: it does not take the options or the text; the message has the first errors of its log.
    """
    version = compiler_version()
    nvrtc = _bindings()
    given = dict(headers or {})
    for what, text in [("the source", source), *(("an option", each) for each in options), *(("a name", each) for each in names)]:
        if "\0" in text or (not text.isascii() and _SURROGATE.search(text)):
            raise OperandError(f"{what} has a character that NVRTC would not see whole: U+0000 or half of a surrogate pair")
    status, program = nvrtc.nvrtcCreateProgram(
        source.encode(), file.encode(), len(given), [text.encode() for text in given.values()], [name.encode() for name in given]
    )
    if int(status):
        raise CompilerRefused(f"NVRTC {version} makes no program ({status})")
    try:
        for name in names:
            (status,) = nvrtc.nvrtcAddNameExpression(program, name.encode())
            if int(status):
                raise CompilerRefused(f"NVRTC {version} does not take the name {name!r} ({status})")
        every = [f"--gpu-architecture={arch}", *options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(every), [option.encode() for option in every])
        log = _fetched(nvrtc, program, "ProgramLog").decode(errors="replace").strip("\0 \n")
        if int(status):
            lines = [line.strip() for line in log.splitlines() if line.strip()]
            errors = [line for line in lines if "error" in line] or lines
            refused = CompilerRefused(f"NVRTC {version} does not compile it for {arch}: {'; '.join(errors[:_LOG_LINES]) or status}")
            refused.log = log
            raise refused
        found = {}
        for name in names:
            status, lowered = nvrtc.nvrtcGetLoweredName(program, name.encode())
            if int(status):
                raise CompilerRefused(f"NVRTC {version} has no kernel {name!r} ({status})")
            found[name] = lowered.decode()
        return Compiled({what: _fetched(nvrtc, program, what) for what in wants}, found, log)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
