"""The kernels' sources, compiled once for an architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import resources
from typing import Any, Final

from mmabits.emulator.cuda.modules import PtxModule, compile_cuda
from mmabits.isa import UnsupportedInstruction, architecture

_LAST: Final = 999
"""Compute capability of any architecture to come."""
Kernels = Mapping[str, Callable[..., Any]]
"""Of a module, by name; launched as `CudaKernel` is."""
Modules = Callable[[str, str, tuple[str, ...]], Kernels]
"""(name of a source, architecture, options of NVRTC) to its kernels."""
_ELSEWHERE: ContextVar[Modules | None] = ContextVar("mmabits.kernels.cuda", default=None)


@contextmanager
def launched_by(modules: Modules) -> Iterator[None]:
    """In the block the launchers of this package take their kernels from `modules`: those of a GPU, say."""
    token = _ELSEWHERE.set(modules)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


def source(name: str) -> str:
    """The text of a kernel: `w4a16`."""
    return resources.files(__package__).joinpath(f"{name}.cu").read_text(encoding="utf-8")


@lru_cache(maxsize=64)
def compiled(name: str, arch: str, options: tuple[str, ...]) -> PtxModule:
    """A kernel's module on this machine's CPU."""
    return compile_cuda(source(name), arch=arch, options=options)


def module(name: str, arch: str, *options: str, since: int, until: int = _LAST) -> Kernels:
    """A kernel's module, or what `launched_by` has in its place.

    Args:
        name: of the source.
        arch: architecture, or a GPU of it.
        *options: of NVRTC.
        since: the first compute capability that has its instructions, 90 of sm_90a,
        until: and the last.

    Raises:
        UnsupportedInstruction: the architecture lacks its instructions.
        MmabitsError: as `mmabits.compile_cuda`.
    """
    spec = architecture(arch)
    if not since <= spec.capability_number <= until:
        last = "" if until == _LAST else f" to {until / 10}"
        raise UnsupportedInstruction(f"the kernel {name} is for compute capability {since / 10}{last}, which {spec.name} is not")
    return (_ELSEWHERE.get() or compiled)(name, spec.name, options)
