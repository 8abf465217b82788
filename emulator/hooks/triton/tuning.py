"""Which configuration an autotuned kernel runs with. Nothing is measured: how fast one is here says nothing of the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.autotuner import Config
from triton.runtime.errors import OutOfResources, PTXASError

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.session import Session
from mmabits.isa import OperandError

_UNFIT: Final = (OutOfResources, CompileTimeAssertionFailure, PTXASError)
"""For these Triton's autotuner leaves a configuration out. They come before anything runs."""
_SETTLED: WeakKeyDictionary[Session, dict[tuple[Any, ...], tuple[Any, str]]] = WeakKeyDictionary()
"""Configurations that were found to be the first which can be, and why, by kernel and tuning key; and what each kernel had last."""


def run(session: Session, tuner: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Launch an autotuned kernel. The autotuner learns nothing from it: a GPU's choice is neither asked for nor overwritten.

    Raises:
        OperandError: `autotune` does not fit the kernel.
    """
    tuner.nargs = dict(zip(tuner.arg_names, arguments, strict=False))
    try:
        return _launched(session, tuner, arguments, keywords)
    finally:
        tuner.nargs = None


def _launched(session: Session, tuner: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    name, key = tuner.base_fn.__name__, _tuning_key(tuner, arguments, keywords)
    settled = _SETTLED.setdefault(session, {})
    candidates, why = _candidates(session, tuner, key, keywords)
    if len(candidates) > 1 and (id(tuner), *key) not in settled:
        # As after tuning, whose trials leave something behind: what reset_to_zero names is zeros at the first launch.
        tuner.pre_hook({**tuner.nargs, **keywords, **candidates[0].all_kwargs()}, reset_only=True)
    elif len(candidates) > 1:
        configuration, why = settled[id(tuner), *key]
        candidates = [configuration]
    unfit: list[str] = []
    for place, configuration in enumerate(candidates):
        _check_clash(name, configuration, keywords)
        values = configuration.all_kwargs()
        if configuration.pre_hook is not None:
            configuration.pre_hook({**tuner.nargs, **keywords, **values})
        try:
            result = tuner.fn.run(*arguments, **keywords, **values)
        except _UNFIT as error:
            if place + 1 == len(candidates):
                raise
            unfit.append(f"{configuration} ({type(error).__name__})")
            continue
        break
    if unfit:
        why = f"the first of {len(candidates)} that can be; not {'; '.join(unfit)}"
    if len(candidates) > 1:
        settled[id(tuner), *key] = configuration, why
    if len(tuner.configs) > 1:
        session.choose(name, str(configuration), why)
    settled[id(tuner), "last"] = configuration, why
    return result


class BestConfiguration:
    """`kernel.best_config` of an autotuner that was never tuned: in a block, what the kernel was launched with last."""

    def __get__(self, tuner: Any, _owner: Any) -> Any:
        block = scope.current("triton")
        settled = _SETTLED.get(block.session, {}) if block is not None else {}
        if tuner is None or (id(tuner), "last") not in settled:
            raise AttributeError("best_config")
        return settled[id(tuner), "last"][0]


def _candidates(session: Session, tuner: Any, key: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Sequence[Any], str]:
    """Configurations to try one after another, and what the report says of the first."""
    name, asked = tuner.base_fn.__name__, session.autotune
    if len(tuner.configs) == 1:
        return tuner.configs, "its only one"
    if isinstance(asked, int):
        if asked >= len(tuner.configs):
            raise OperandError(f"autotune={asked}: {name} has {len(tuner.configs)} configurations, counted from 0")
        return [tuner.configs[asked]], f"number {asked} of {len(tuner.configs)}, as asked"
    tuned = tuner.cache.get(key) or vars(tuner).get("best_config")
    if asked == "best" and tuned is not None:
        return [tuned], "tuned on a GPU"
    left = tuner.prune_configs(keywords)
    if not callable(asked):
        return left, f"the first of {len(left)}"
    chosen = asked(tuner, tuple(left), {**tuner.nargs, **keywords})
    if not isinstance(chosen, Config):
        raise OperandError(f"autotune: {_name(asked)} must return a configuration of {name}, got {chosen!r}")
    return [chosen], f"chosen by {_name(asked)}"


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", None) or type(function).__name__)


def _check_clash(name: str, configuration: Any, keywords: dict[str, Any]) -> None:
    clash = sorted(keywords.keys() & configuration.kwargs.keys())
    if clash:
        raise OperandError(f"{name}: {', '.join(clash)} is chosen by its autotuner and cannot be given")


def _tuning_key(tuner: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, ...]:
    given = {**dict(zip(tuner.arg_names, arguments, strict=False)), **keywords}
    known = {name: value for name, value in given.items() if name in tuner.arg_names}
    return (
        *(known[name] for name in tuner.keys if name in known),
        *(str(value.dtype) for value in known.values() if hasattr(value, "dtype")),
    )
