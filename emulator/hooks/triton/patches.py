"""Attributes replaced for a while, and put back exactly as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from types import FunctionType
from typing import Any

Change = tuple[Any, str, Any]
"""An object, the name of an attribute, its value."""
_ABSENT = object()


class Patches:
    """Replaced attributes of modules, classes and objects; `undo` restores them in reverse order."""

    def __init__(self) -> None:
        self._undo: list[tuple[Callable[..., None], Any]] = []
        self.changes: list[Change] = []
        """What `set` set."""

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute; what the owner itself held, and not a base class of it, is what `undo` restores."""
        before = vars(owner).get(name, _ABSENT)
        self._undo.append((delattr, (owner, name)) if before is _ABSENT else (setattr, (owner, name, before)))
        setattr(owner, name, value)
        self.changes.append((owner, name, value))

    def put(self, mapping: dict[str, Any], key: str, value: Any) -> None:
        """Replace an item."""
        before = mapping.get(key, _ABSENT)
        self._undo.append((mapping.pop, (key,)) if before is _ABSENT else (mapping.__setitem__, (key, before)))
        mapping[key] = value

    def undo(self) -> None:
        """Restore everything."""
        while self._undo:
            restore, arguments = self._undo.pop()
            restore(*arguments)


class _Recorder:
    """Takes the place of the interpreter's own scope of patches, and only notes what it would set."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def set_attr(self, owner: Any, name: str, value: Any) -> None:
        self.changes.append((owner, name, value))

    def restore(self) -> None:
        """Nothing was set."""


class NoScope:
    """What a launch inside a launch gets: the language is patched already."""

    @staticmethod
    def restore() -> None:
        """Nothing to restore."""


@lru_cache(maxsize=1)
def language_changes() -> tuple[Change, ...]:
    """What must be set in triton.language for kernels to be interpreted: found once, since looking for it takes a millisecond.

    To be called first before `interpreter._patch_lang` is replaced.
    """
    import triton.language as tl
    import triton.runtime.interpreter as interpreter
    from triton.runtime.jit import JITFunction

    recorder = _Recorder()
    patches = Patches()
    # The interpreter patches the language modules that a kernel's globals hold; these globals hold both.
    sees_both = FunctionType((lambda: None).__code__, {"tl": tl, "core": tl.core})
    patches.set(interpreter, "_LangPatchScope", lambda: recorder)
    try:
        interpreter._patch_lang(sees_both)
    finally:
        patches.undo()
    # Triton 3.6 makes an int of an array of one element, which NumPy 2.4 no longer does.
    index = (tl.core.tensor, "__index__", lambda self: int(self.handle.data.squeeze()))
    # Over the interpreter's own, which makes a handle past its builder.
    transpose = (tl.core.tensor, "T", property(lambda self: tl.trans(self)))
    return (*recorder.changes, index, transpose, *_methods(tl, JITFunction), *_reflected(tl.core.constexpr))


def _methods(tl: Any, jitted: type) -> Iterator[tuple[Any, str, Any]]:
    """Methods of tensors that the interpreter misses: the library's own kernels do not bind, and before Triton 3.9 exp and the like
    are not known for the language's.
    """
    for name, member in vars(tl.core.tensor).items():
        if isinstance(member, jitted):
            yield tl.core.tensor, name, lambda self, *rest, _function=member, **options: _function(self, *rest, **options)
        elif isinstance(member, FunctionType) and callable(vars(tl.math).get(name)) and not tl.core.is_builtin(member):
            yield tl.core.tensor, name, lambda self, *rest, _name=name, **options: getattr(tl.math, _name)(self, *rest, **options)


def _reflected(constexpr: type) -> Iterator[tuple[Any, str, Any]]:
    """What a declared constant lacks on the right of a number, which parameters are here and not in the compiler."""
    for name in ("mod", "and", "or", "xor", "lshift", "rshift", "pow"):
        if not any(f"__r{name}__" in vars(each) for each in constexpr.__mro__):
            yield constexpr, f"__r{name}__", lambda self, other, _name=name: getattr(other, f"__{_name}__")(self.value)
