"""PyTorch: a dispatch mode below autograd that computes matrix products with the session's tensor cores.

`mode` finds the products, `products` computes ordinary ones, `scaled` those with scales and `grouped` those of groups;
`attention` takes fused attention apart. They import torch when they are imported, which is when a block is entered.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mmabits.emulator.session import Session
from mmabits.isa import EmulationError


@contextmanager
def hook(session: Session) -> Iterator[None]:
    """Emulate the matrix products of the running thread's PyTorch calls.

    Two switches of PyTorch that hold for the whole process are set meanwhile, so that attention arrives as products: attention
    by its math path multiplies f16 and bf16 as they are, and torch.nn's fused transformer layers are off.

    Raises:
        EmulationError: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise EmulationError("torch is not installed: pip install 'mmabits[torch]'")
    from mmabits.emulator.hooks.torch.mode import EmulateMode, attention_in_products

    with ExitStack() as entered:
        entered.enter_context(attention_in_products())
        entered.enter_context(EmulateMode(session))
        yield
