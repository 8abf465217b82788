"""C++ names as people write them, by the demangler of the C++ library that the process has."""

from __future__ import annotations

import ctypes
import re
from functools import lru_cache
from typing import Any, Final

_ABI: Final = re.compile(r"\[abi:[^\]]*\]")
"""Tags, as Numba puts behind its names."""
_LIBRARIES: Final = ("libstdc++.so.6", "libc++abi.so.1", "libc++abi.dylib", None)


@lru_cache(maxsize=1)
def _demangler() -> Any:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
            function = library.__cxa_demangle
        except (OSError, AttributeError, TypeError):
            continue
        function.restype = ctypes.c_void_p
        function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
        library.free.argtypes = [ctypes.c_void_p]
        return function, library.free
    return None


def demangled(name: str) -> str:
    """The name in C++, with its parameters; as it is where it is not mangled, or where no demangler is at hand."""
    found = _demangler()
    if found is None or not name.startswith("_Z"):
        return name
    function, free = found
    status = ctypes.c_int()
    place = function(name.encode(), None, None, ctypes.byref(status))
    if not place:
        return name
    try:
        return ctypes.string_at(place).decode(errors="replace")
    finally:
        free(place)


def short_names(full: str) -> tuple[str, ...]:
    """What a function may be called besides `void ns::scale<7>(float*)`: `ns::scale<7>`, `ns::scale`, `scale<7>` and `scale`."""
    head = _ABI.sub("", _without_parameters(full))
    head = head[_last_outside(head, " ") + 1 :]
    bare = head[: head.index("<")] if "<" in head else head
    return tuple(dict.fromkeys([head, bare, head[_last_outside(head, ":") + 1 :], bare.rpartition(":")[2]]))


def _without_parameters(full: str) -> str:
    if not full.endswith(")"):
        return full
    depth = 0
    for place in reversed(range(len(full))):
        depth += (full[place] == ")") - (full[place] == "(")
        if depth == 0:
            return full[:place]
    return full


def _last_outside(text: str, sign: str) -> int:
    """Where a character stands last outside every bracket; -1 where it does not."""
    depth, found = 0, -1
    for place, each in enumerate(text):
        depth += (each in "<(") - (each in ">)")
        if each == sign and depth == 0:
            found = place
    return found
