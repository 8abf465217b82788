"""The engine's machine code: kept in files of its own, so that a process which finds them needs no Numba.

A file is the object code that LLVM made of one function of entries.py, behind a digest and a line that says what it was
made for: the compiled modules, the processor, the versions of Numba, llvmlite and NumPy. LLVM alone, by llvmlite, loads it.
A file that is missing, damaged or made for something else is replaced.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import llvmlite
import numpy as np
from llvmlite import binding as llvm

from mmabits.emulator.native import Variant

_COMPILED = ("chains", "decode", "entries", "fused", "grouped", "jit", "lanes", "native", "plan", "steps", "tasks", "tiles")
"""Modules whose code or constants end up in machine code."""
_MAGIC: Final = b"mmabits machine code 1\n"
_INDIFFERENT = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_ENABLE_CUDASIM"}
"""Settings of Numba that change no machine code."""

_functions: dict[Variant, int] = {}
_lock = threading.Lock()


class _Object(NamedTuple):
    """Object code."""

    code: bytes
    expected: tuple[str, ...]
    """Names that it expects of the process."""


def function_address(variant: Variant) -> int:
    """Address of the C function of a variant, `void (void *)`: loaded, or made and kept for later processes."""
    found = _functions.get(variant)
    if found is None:
        with _lock:
            found = _functions.get(variant) or _load(_read(variant.symbol) or _make(variant), variant.symbol)
            _functions[variant] = found
    return found


def _forget_lock() -> None:
    """A forked process has none of the threads that might hold it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def _make(variant: Variant) -> _Object:
    """Compile, with a line on a terminal: the first call of a kind waits for it."""
    if sys.stderr.isatty():
        print("mmabits: compiling the engine for these types, once on this machine (about ten seconds)", file=sys.stderr)
    from mmabits.emulator import entries
    from mmabits.emulator.jit import compiled_object

    made = _Object(*compiled_object(entries.entry(variant), variant.symbol))
    _write(variant.symbol, made)
    return made


# ------------------------------------------------------------------------------------------------------------------ loading


_loaders: list[Any] = []
"""LLVM's loaders, one for each function: they own the code they have loaded, and names in it need not differ."""


def _new_loader() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def _load(made: _Object, symbol: str) -> int:
    loader = _new_loader()
    loader.add_object_file(llvm.ObjectFileRef.from_data(made.code))
    loader.finalize_object()
    _loaders.append(loader)
    return int(loader.get_function_address(symbol))


@lru_cache(maxsize=1)
def _process() -> ctypes.CDLL:
    """Where LLVM finds what object code expects."""
    return ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)


def _resolvable(names: tuple[str, ...]) -> bool:
    """Whether the process has everything that object code expects; LLVM ends the process where something is missing."""
    return all(hasattr(_process(), name) for name in names)


# -------------------------------------------------------------------------------------------------------------------- files


def _folders() -> Iterator[Path]:
    """Where machine code may be kept, best first: where Numba was told, else beside this module, else in the user's cache."""
    told = os.environ.get("NUMBA_CACHE_DIR")
    if told:
        yield Path(told) / "mmabits"
        return
    yield Path(__file__).with_name("__pycache__")
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    yield base / "mmabits"


@lru_cache(maxsize=1)
def _made_for() -> str:
    """What machine code depends on."""
    sources = hashlib.sha256()
    for name in _COMPILED:
        sources.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    numba = importlib.util.find_spec("numba")
    if numba is not None and numba.origin:  # its version, without importing it
        version = Path(numba.origin).with_name("_version.py")
        sources.update(version.read_bytes() if version.is_file() else b"")
    settings = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_") and name not in _INDIFFERENT}
    return json.dumps(
        {
            "sources": sources.hexdigest(),
            "llvmlite": llvmlite.__version__,
            "numpy": np.__version__,
            "triple": llvm.get_process_triple(),
            "processor": llvm.get_host_cpu_name(),
            "features": llvm.get_host_cpu_features().flatten(),
            "settings": settings,
        },
        sort_keys=True,
    )


def _file_name(symbol: str) -> str:
    return f"{symbol}-{hashlib.sha256(_made_for().encode()).hexdigest()[:16]}.mmabits"


def _read(symbol: str) -> _Object | None:
    """The kept object code, or None where there is none that can be used."""
    for folder in _folders():
        try:
            kept = (folder / _file_name(symbol)).read_bytes()
        except OSError:
            continue
        found = _unpacked(kept, symbol)
        if found is not None:
            return found
    return None


def _header(symbol: str, expected: tuple[str, ...]) -> dict[str, Any]:
    return {"symbol": symbol, "made_for": _made_for(), "expected": list(expected)}


def _packed(symbol: str, made: _Object) -> bytes:
    content = json.dumps(_header(symbol, made.expected)).encode() + b"\n" + made.code
    return _MAGIC + hashlib.sha256(content).digest() + content


def _unpacked(kept: bytes, symbol: str) -> _Object | None:
    start = len(_MAGIC) + hashlib.sha256().digest_size
    content = kept[start:]
    if kept[:start] != _MAGIC + hashlib.sha256(content).digest():
        return None
    line, _, code = content.partition(b"\n")
    try:
        header = json.loads(line)
        expected = tuple(header["expected"])
    except (ValueError, KeyError, TypeError):
        return None
    return _Object(code, expected) if header == _header(symbol, expected) and _resolvable(expected) else None


def _write(symbol: str, made: _Object) -> None:
    """Keep object code for later processes, in the first folder that takes it; a process that reads meanwhile sees all or nothing."""
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=symbol, delete=False) as file:
                file.write(_packed(symbol, made))
            os.replace(file.name, folder / _file_name(symbol))
        except OSError:
            continue
        return
