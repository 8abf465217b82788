"""The engine's machine code: kept in files of its own, so that a process which finds them needs no Numba.

A file is the object code that LLVM made of one function of ENTRIES, behind a digest and a line that says what it was
made for: the compiled modules, the processor, the versions of Numba, llvmlite and NumPy. LLVM alone, by llvmlite, loads it.
A file that is missing, damaged or made for something else is replaced.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import llvmlite
import numpy as np
from llvmlite import binding as llvm

from mmabits.emulator.engine import cache, shipped
from mmabits.emulator.engine.record import Variant
from mmabits.emulator.engine.shares import TICK
from mmabits.emulator.engine.width import byte_products, lanes
from mmabits.isa import CompilerError

NUMBA: Final = ("0.61", "0.68")
"""First and last version of Numba that the engine is made for: it uses private parts of it."""
NOTICE: Final = "mmabits: compiling the engine for these types, once on this machine (about ten seconds)"
QUICK_NOTICE: Final = "mmabits: compiling the engine for these types, once on this machine (about a second)"
"""Where Numba's part was done when the package was built."""
_LONG_NOTICES: Final = {
    "machine": "mmabits: compiling what all compiled kernels call, once on this machine (about half a minute)",
    "checks": "mmabits: compiling the checks of compiled kernels, once on this machine (about half a minute)",
}
"""Of kinds that take longer."""
_log = logging.getLogger("mmabits")
ENTRIES: Final = {
    "fused": "engine.fused:fused_entry", "fused_side_by_side": "engine.fused:side_by_side_entry",
    "grouped": "engine.grouped:grouped_entry", "grouped_side_by_side": "engine.grouped:grouped_side_by_side_entry",
    "grouped_bytes": "engine.grouped:bytes_entry", "grouped_bytes_side_by_side": "engine.grouped:bytes_side_by_side_entry",
    "chain": "engine.chains:chain_entry", "integer": "engine.integers:integer_entry", "machine": "machine.operations:entry",
    "checks": "machine.checking:entry",
}  # fmt: skip
"""By the kind of a variant what gives its function, to be compiled for the address of a record: module of the emulator, and name."""
_COMPILED = (
    "chains",
    "decode",
    "floors",
    "fused",
    "grouped",
    "integers",
    "jit",
    "lanes",
    "objects",
    "plan",
    "primitives",
    "record",
    "steps",
    "tasks",
    "tiles",
    "width",
)
"""Modules whose code or constants end up in machine code."""
_MACHINE = (
    *(f"../machine/{name}" for name in (
        "cells", "context", "halves", "hasten", "helpers", "operands", "operations", "pending", "phases", "requests", "tensormaps",
        "tensorrecords",
        "tensorwork", "transfers", "turns", "warpgrouprecords", "warpgroups",
    )),
    "../../isa/memories",
)  # fmt: skip
"""Those that only the code of compiled kernels calls."""
_CHECKS = tuple(f"../machine/{name}" for name in ("checkcopies", "checkglobal", "checking", "checkproducts", "checkrecords", "clocks"))
"""Those that only checked kernels call."""
_OF_KERNELS: Final = ("mmabits_kernel_*.mmabits", "mmabits_opcode_*.mmabits")
KEPT_BYTES: Final = 256 << 20
"""Of the machine code of kernels: where a folder has more, what was used longest ago is removed."""
_MAGIC: Final = b"mmabits machine code 1\n"
_INDIFFERENT = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_ENABLE_CUDASIM"}
"""Settings of Numba that change no machine code."""

_functions: dict[Variant, int] = {}
_lock = threading.Lock()
_compilations: dict[Variant, Future[tuple[_Object, list[str] | None]]] = {}
"""Under way, or done and not yet fetched: the object code, and why it could not be kept. Guarded by _lock."""


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
    _compilations.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def warm(variant: Variant) -> bool:
    """Have the machine code of a variant kept for later processes, and say whether it had to be made.

    Raises:
        CompilerError: this Numba cannot compile it.
        OSError: it cannot be kept.
    """
    if _read(variant.symbol) is not None:
        return False
    reasons = _write(variant.symbol, _compiled(variant))
    if reasons is not None:
        raise OSError("; ".join(reasons) or "there is no folder for it")
    return True


def _make(variant: Variant) -> _Object:
    """Compile, and say so to who listens: the first call of a kind waits for it.

    Numba works in a thread that no signal reaches: what a handler raises in the midst of it can leave Numba unable to compile that
    function again. A caller who is interrupted leaves at once; the work goes on, and the next call gets its result.
    """
    work = _compilations.get(variant)
    if work is None:
        notify(QUICK_NOTICE if _shipped(variant) is not None else _LONG_NOTICES.get(variant.kind, NOTICE))
        work = _compilations[variant] = Future()
        try:
            threading.Thread(target=_make_apart, args=(variant, work), name="mmabits compiler").start()
        except BaseException:
            _compilations.pop(variant, None)
            raise
    while not wait([work], TICK).done:
        pass
    _compilations.pop(variant, None)
    made, reasons = work.result()
    if reasons is not None:
        cache.warn_uncached(reasons)
    return made


def _make_apart(variant: Variant, work: Future[tuple[_Object, list[str] | None]]) -> None:
    try:
        made = _compiled(variant)
        work.set_result((made, _write(variant.symbol, made)))
    except BaseException as error:
        work.set_exception(error)


def notify(text: str) -> None:
    """Say something to the log where it takes such records, else to a terminal; a pipe stays clean."""
    if _log.isEnabledFor(logging.INFO) and _log.hasHandlers():
        _log.info(text)
    elif sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr)


def entry(variant: Variant) -> Callable[[Any], Any]:
    """The Python function of a variant. It imports Numba."""
    module, _, name = ENTRIES[variant.kind].partition(":")
    found: Callable[[Any], Any] = getattr(importlib.import_module(f"mmabits.emulator.{module}"), name)(variant)
    return found


def _shipped(variant: Variant) -> bytes | None:
    """What Numba made of a function when the package was built; None where there is none, or where Numba is to do otherwise now."""
    if _settings():
        return None
    try:
        return shipped.bitcode(variant.symbol, sources_of(variant.symbol))
    except OSError:  # only compiled modules are installed
        return None


def _compiled(variant: Variant) -> _Object:
    """Compile: what was shipped by LLVM alone, else the Python functions by Numba.

    Raises:
        CompilerError: Numba is switched off, or is one that lacks what the engine takes from it.
    """
    code = _shipped(variant)
    if code is not None:
        from mmabits.emulator.engine.objects import object_code

        made = _Object(*object_code(code, variant.symbol))
        if _resolvable(made.expected):
            return made
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise CompilerError("NUMBA_DISABLE_JIT is set, and the engine is nothing but compiled code")
    try:
        from mmabits.emulator.engine.jit import compiled_object

        made = _Object(*compiled_object(entry(variant), variant.symbol))
    except Exception as error:
        if not isinstance(error, (ImportError, AttributeError, KeyError, TypeError, *_numba_errors())):
            raise
        version = getattr(sys.modules.get("numba"), "__version__", "(not imported)")
        reason = " ".join(str(error).split())[:300] or "no reason given"
        raise CompilerError(
            f"numba {version} cannot compile the engine, which is made for numba {NUMBA[0]} to {NUMBA[1]}: {type(error).__name__}: {reason}"
        ) from error
    missing = [name for name in made.expected if not _resolvable((name,))]
    if missing:
        raise CompilerError(f"numba {sys.modules['numba'].__version__} made code that needs {', '.join(missing)}, which nothing here has")
    return made


def _numba_errors() -> tuple[type[Exception], ...]:
    """Those of Numba itself; anything else, as an exception out of a signal's handler, is not its fault."""
    found = getattr(sys.modules.get("numba.core.errors"), "NumbaError", None)
    return () if found is None else (found,)


# ------------------------------------------------------------------------------------------------------------------ loading


_loaders: list[Any] = []
"""One for each function, kept as long as the process."""


def loaded(*objects: bytes) -> Any:
    """Object files, in memory: LLVM's loader, which owns the code. They find each other's names; those of other loaders may be the same."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    loader = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    for code in objects:
        loader.add_object_file(llvm.ObjectFileRef.from_data(code))
    loader.finalize_object()
    return loader


def _load(made: _Object, symbol: str) -> int:
    loader = loaded(made.code)
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


@lru_cache(maxsize=64)
def sources_of(symbol: str) -> str:
    """A digest of the modules that the machine code of a function is made of.

    Raises:
        OSError: their sources are not there.
    """
    return _digest(_modules_of(symbol)).hexdigest()


def _digest(more: tuple[str, ...]) -> hashlib._Hash:
    sources = hashlib.sha256()
    for name in _COMPILED + more:
        sources.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return sources


def _settings() -> dict[str, str]:
    """Those of Numba that may change machine code."""
    return {name: value for name, value in os.environ.items() if name.startswith("NUMBA_") and name not in _INDIFFERENT}


@lru_cache(maxsize=3)
def _made_for(more: tuple[str, ...] = ()) -> str:
    """What machine code depends on: modules besides those that all does."""
    sources = _digest(more)
    numba = importlib.util.find_spec("numba")
    if numba is not None and numba.origin:  # its version, without importing it
        version = Path(numba.origin).with_name("_version.py")
        sources.update(version.read_bytes() if version.is_file() else b"")
    return json.dumps(
        {
            "sources": sources.hexdigest(),
            "llvmlite": llvmlite.__version__,
            "numpy": np.__version__,
            "triple": llvm.get_process_triple(),
            "processor": llvm.get_host_cpu_name(),
            "features": llvm.get_host_cpu_features().flatten(),
            "lanes": lanes(),
            "byte products": byte_products(),
            "settings": _settings(),
        },
        sort_keys=True,
    )


def _modules_of(symbol: str) -> tuple[str, ...]:
    if symbol.startswith("mmabits_checks"):
        return _MACHINE + _CHECKS
    return _MACHINE if symbol.startswith("mmabits_machine") else ()


def _file_name(symbol: str) -> str:
    return f"{symbol}-{hashlib.sha256(_made_for(_modules_of(symbol)).encode()).hexdigest()[:16]}.mmabits"


def is_current(name: str) -> bool:
    """Whether a kept file is for these sources and settings, and for this processor."""
    return name == _file_name(name.rpartition("-")[0])


def _read(symbol: str) -> _Object | None:
    """The kept object code, or None where there is none that can be used."""
    for folder in cache.machine_code_folders():
        try:
            name = _file_name(symbol)
            kept = cache.read(folder, name)
        except cache.Distrusted as reason:
            cache.warn_passed_over(folder / name, reason)
            continue
        except OSError:
            continue
        found = _unpacked(kept, symbol)
        if found is not None:
            return found
    return None


def kept_code(symbol: str) -> bytes | None:
    """Object code that `keep_code` kept, here or in an earlier process of this processor and these versions; None where there is none."""
    found = _read(symbol)
    if found is None:
        return None
    for folder in cache.machine_code_folders():
        cache.touch(folder, _file_name(symbol))
    return found.code


def keep_code(symbol: str, code: bytes, expected: tuple[str, ...] = ()) -> None:
    """Keep object code for later processes.

    Args:
        symbol: its name, `mmabits_...`, which says all that it depends on but the processor and the versions of what made it.
        code: the object file.
        expected: names that it expects of the process.
    """
    reasons = _write(symbol, _Object(code, expected))
    if reasons is not None:
        cache.warn_uncached(reasons)
        return
    taken = next((folder for folder in cache.machine_code_folders() if (folder / _file_name(symbol)).exists()), None)
    if taken is not None:
        cache.prune(taken, _OF_KERNELS, KEPT_BYTES)


def _header(symbol: str, expected: tuple[str, ...]) -> dict[str, Any]:
    return {"symbol": symbol, "made_for": _made_for(_modules_of(symbol)), "expected": list(expected)}


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


def _write(symbol: str, made: _Object) -> list[str] | None:
    """Keep object code for later processes, in the first folder that takes it; where none does, why each did not."""
    reasons = []
    for folder in cache.machine_code_folders():
        try:
            cache.write(folder, _file_name(symbol), _packed(symbol, made))
        except OSError as error:
            reasons.append(cache.text_of(error))
        else:
            return None
    return reasons
