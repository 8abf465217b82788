"""Import one module of a big package without what the rest of the package needs.

vllm and sglang import dozens of packages before a kernel is reached, and ask for a GPU through NVML. Their own folders are taken as bare
packages, whose `__init__` does not run, and modules that are not installed, or built for another PyTorch, become stand-ins, which refuse to
decide anything. Kernels and their launchers are the package's files as they are.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

BARE: Final = ("vllm", "sglang")
RUN: Final = (
    "vllm.triton_utils", "vllm.platforms", "sglang.kernels.jit.utils", "sglang.srt.utils", "sglang.srt.platforms", "sglang.srt.plugins",
)  # fmt: skip
"""Packages of BARE, whose `__init__` runs all the same, with what is below."""
VENDORED: Final = "triton_kernels"
"""OpenAI's package, which vllm has within its own; the name on PyPI is something else."""


class StandIn(types.ModuleType):
    """A module that is not installed: what it is asked for are stand-ins that do nothing."""

    __path__ = ()  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (_Nothing,), {})
        setattr(self, name, made)
        return made


class _Meta(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing

    def __or__(cls, _other: Any) -> Any:
        return cls

    __ror__ = __or__

    def __getitem__(cls, _item: Any) -> Any:
        return cls


class _Nothing(metaclass=_Meta):
    """Base class, decorator or function of a module that is not there."""

    def __new__(cls, *arguments: Any, **_: Any) -> Any:
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Whatever is given."""

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()

    def __bool__(self) -> bool:
        raise RuntimeError("a module that is not installed is asked for a decision")


def _importer() -> str:
    """Name of the module whose import statement runs."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").startswith(("importlib", "benchmarks.field.loading")):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))


class _Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last of the finders: whatever nobody else found, while one of BARE is being imported."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        first = name.partition(".")[0]
        if first != name and isinstance(sys.modules.get(first), StandIn):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        if _importer().partition(".")[0] not in BARE or (first != name and first not in BARE):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


class _Bare(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """First of the finders: the folders of BARE as packages without their `__init__`."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name == VENDORED:
            path = [str(Path(each) / "vllm" / "third_party") for each in sys.path]
            return importlib.machinery.PathFinder.find_spec(name, path)
        if name.partition(".")[0] not in BARE or any(name == each or name.startswith(f"{each}.") for each in RUN):
            return None
        last = name.rpartition(".")[2]
        for folder in sys.path if path is None else path:
            found = Path(folder) / last
            if next(Path(folder).glob(f"{last}.*.so"), None) is not None:  # built for another torch
                return importlib.machinery.ModuleSpec(name, _Missing())
            if found.is_dir():
                spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
                spec.submodule_search_locations = [str(found)]
                spec.origin = str(found / "__init__.py")
                return spec
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Package(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


class _Package(types.ModuleType):
    """A package without its `__init__`: names that it would have given are stand-ins."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


def load(name: str) -> Any:
    """A module, by its full name.

    Raises:
        ImportError: its package is not installed.
    """
    if name.partition(".")[0] not in (*BARE, VENDORED):
        return importlib.import_module(name)
    package = "vllm" if name.startswith(VENDORED) else name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{package} is not installed")
    first, last = _Bare(), _Missing()
    sys.meta_path.insert(0, first)
    sys.meta_path.append(last)
    before = set(sys.modules)
    try:
        if name.startswith("vllm.") and "vllm.platforms" not in sys.modules:
            platforms = importlib.import_module("vllm.platforms")
            platforms.current_platform = importlib.import_module("vllm.platforms.cuda").CudaPlatform()
        return importlib.import_module(name)
    finally:
        sys.meta_path.remove(first)
        sys.meta_path.remove(last)
        for each in set(sys.modules) - before:
            if isinstance(sys.modules[each], StandIn):
                del sys.modules[each]
