"""PyTorch: a dispatch mode below autograd that computes matrix products with the session's tensor cores.

`mode` finds the products, `products` computes ordinary ones, `scaled` those with scales and `grouped` those of groups;
`attention` takes fused attention apart; `posing` answers for a GPU where host code asks. They import torch when they
are imported, which is when a block is entered.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable
from contextlib import ExitStack

from mmabits.emulator.hooks.session import NotEmulated, Session
from mmabits.isa import EmulationError

VERSIONS = ((2, 9), (2, 13))
"""First and last version of PyTorch that the hook is made for. Newer ones of the same major version work, unless they have changed."""


def hook(session: Session) -> ExitStack:
    """Emulate the matrix products of the running thread's PyTorch calls, until what is returned is closed.

    Two switches of PyTorch that hold for the whole process are set meanwhile, so that attention arrives as products: attention
    by its math path multiplies f16 and bf16 as they are, and torch.nn's fused transformer layers are off.

    Raises:
        EmulationError: PyTorch is not installed, or is a version that this cannot work with.
    """
    if importlib.util.find_spec("torch") is None:
        raise EmulationError("torch is not installed: pip install 'mmabits[torch]'")
    import torch

    version = str(torch.__version__)
    _check_version(version, session)
    try:
        from mmabits.emulator.hooks.torch import posing
        from mmabits.emulator.hooks.torch.inductor import inductor_in_blocks
        from mmabits.emulator.hooks.torch.mode import attention_in_products, begin
        from mmabits.emulator.hooks.torch.nodes import watched_pullbacks
    except (ImportError, AttributeError) as error:
        raise EmulationError(f"PyTorch {version} lacks what emulate needs of it: {error}") from error

    with ExitStack() as undo:  # no generators: nothing may happen when a block that was never left is collected
        attention_in_products.set()
        undo.callback(attention_in_products.put_back)
        inductor_in_blocks.set()
        undo.callback(inductor_in_blocks.put_back)
        watched_pullbacks.set()
        undo.callback(watched_pullbacks.put_back)
        undo.callback(begin(session))
        if session.cuda:
            undo.callback(posing.begin(session))
        return undo.pop_all()


def enter_thread(session: Session) -> Callable[[], None]:
    """Let a thread that was started inside a session's block be inside; what is returned ends it."""
    from mmabits.emulator.hooks.torch import posing
    from mmabits.emulator.hooks.torch.mode import begin

    with ExitStack() as undo:
        undo.callback(begin(session))
        if session.cuda:
            undo.callback(posing.begin_thread(session))
        return undo.pop_all().close


def _check_version(version: str, session: Session) -> None:
    """Refuse versions without what the hook needs; of newer ones than it was made for, say what that may mean."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    found = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    first, last = (".".join(map(str, each)) for each in VERSIONS)
    if found < VERSIONS[0] or found[0] > VERSIONS[1][0]:
        raise EmulationError(f"PyTorch {version} is not emulated; the versions are {first} to {last}")
    if found > VERSIONS[1]:
        reason = (
            f"PyTorch {version} is newer than {last}, the last that emulate was made for: operators that it has since may multiply unseen"
        )
        session.skip("operators that are new", "torch", reason)
        warnings.warn(f"perhaps not emulated: {reason}", NotEmulated, stacklevel=4)
