"""What a call of a field kernel is, and how it is compared with float64."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

Tensors = dict[str, Any]
ARCHITECTURES: Final = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
FROM_ADA: Final = ARCHITECTURES[1:]


class Numbers:
    """Operands by seed: normal numbers, or small integers, of which every sum is exact in every order."""

    def __init__(self, *, exact: bool, seed: int = 20261128) -> None:
        self.exact = exact
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape: int, dtype: Any = torch.float16, scale: float = 1.0, most: int = 2) -> Any:
        """Normal numbers times `scale`; exact: integers from -most to most."""
        if self.exact:
            return torch.from_numpy(self.rng.integers(-most, most + 1, shape).astype(np.float32)).to(dtype)
        return torch.from_numpy((scale * self.rng.standard_normal(shape)).astype(np.float32)).to(dtype)

    def integers(self, low: int, high: int, *shape: int, dtype: Any = torch.int32) -> Any:
        """From low to high - 1."""
        return torch.from_numpy(self.rng.integers(low, high, shape)).to(dtype)

    def scales(self, *shape: int, dtype: Any = torch.float32, most: float = 0.05) -> Any:
        """Positive numbers; exact: powers of two."""
        if self.exact:
            return torch.from_numpy((2.0 ** self.rng.integers(-1, 2, shape)).astype(np.float32)).to(dtype)
        return torch.from_numpy((most * (0.5 + self.rng.random(shape))).astype(np.float32)).to(dtype)


@dataclass(frozen=True, kw_only=True)
class FieldCase:
    """One call of a kernel."""

    name: str
    package: str
    """Distribution on PyPI."""
    module: str
    """What is imported inside the block, where the package asks which GPU there is."""
    kernel: str
    """What it computes, for the table."""
    draw: Callable[[Numbers], Tensors]
    call: Callable[[Any, Tensors], Tensors]
    """Module and operands to results by name."""
    reference: Callable[[Tensors], Tensors]
    """The same in float64 by PyTorch; operands come as float64 where they are floating-point."""
    bound: float
    """Most that |result - float64| may be, in parts of the greatest |float64| of a result."""
    why: str
    """Where the bound comes from."""
    is_exact: bool = False
    """Whether small integers give the bits of the reference: no function of the special unit, no division."""
    gradients: tuple[str, ...] = ()
    """Operands that a backward pass is run for; its results are `d` and the name."""
    architectures: tuple[str, ...] = ARCHITECTURES

    def prepare(self) -> None:
        """Import; inside an `emulate` block."""
        loaded(self.module)

    def run(self, operands: Tensors) -> Tensors:
        """Call; inside an `emulate` block."""
        module = loaded(self.module)
        held = {name: value.clone() if torch.is_tensor(value) else value for name, value in operands.items()}
        return _with_gradients(self, lambda each: self.call(module, each), held)

    def wanted(self, operands: Tensors) -> Tensors:
        """In float64."""
        wide = {name: value.double() if _is_float(value) else value for name, value in operands.items()}
        return _with_gradients(self, self.reference, wide)


def _is_float(value: Any) -> bool:
    return torch.is_tensor(value) and value.dtype.is_floating_point


def _with_gradients(case: FieldCase, function: Callable[[Tensors], Tensors], operands: Tensors) -> Tensors:
    """Forward, and backward from a gradient that is the operand `grad`, of the result `out`."""
    if not case.gradients:
        return {name: value.detach() for name, value in function(operands).items()}
    for name in case.gradients:
        operands[name] = operands[name].detach().clone().requires_grad_(True)
    results = function(operands)
    out = results["out"]
    out.backward(operands["grad"].clone() if "grad" in operands else torch.ones_like(out))
    grads = {f"d{name}": operands[name].grad for name in case.gradients}
    return {name: value.detach() for name, value in {**results, **grads}.items()}


def difference(got: Any, want: Any) -> float:
    """Greatest |got - want|, in parts of the greatest |want|; infinite where one has a NaN or an infinity that the other lacks."""
    got, want = got.double(), want.double()
    if got.shape != want.shape:
        raise ValueError(f"shapes {tuple(got.shape)} and {tuple(want.shape)}")
    finite = torch.isfinite(want)
    if not torch.equal(torch.isfinite(got), finite):
        return float("inf")
    most = want[finite].abs().max().item() if finite.any() else 0.0
    return ((got - want)[finite].abs().max().item() / most) if most else got[finite].abs().max().item()


def compared(got: Tensors, want: Tensors) -> dict[str, float]:
    """`difference` of every result.

    Raises:
        ValueError: not the same results, or other shapes.
    """
    if got.keys() != want.keys():
        raise ValueError(f"results {sorted(got)} and {sorted(want)}")
    return {name: difference(got[name], want[name]) for name in want}


# Packages ----------------------------------------------------------------------------------------------------------------

_CAPABILITY: list[tuple[int, int]] = []


def version(package: str) -> str | None:
    """Of an installed distribution."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def loaded(name: str) -> Any:
    """A module of a package; packages decide by the block's GPU while they are imported, so a process serves one.

    Raises:
        RuntimeError: another GPU than the first time.
    """
    from benchmarks.field.loading import load

    capability = torch.cuda.get_device_capability()
    if _CAPABILITY and _CAPABILITY[0] != capability:
        raise RuntimeError(f"packages were imported for {_CAPABILITY[0]}, and are asked for {capability}: take another process")
    _CAPABILITY[:] = [capability]
    return load(name)


@contextmanager
def emulated(arch: str, *, triton: str = "compiled") -> Iterator[Any]:
    """An `emulate` block as host code written for CUDA needs it."""
    import triton as _  # noqa: F401  # a framework of the block

    import mmabits

    with mmabits.emulate(arch, frameworks=["torch", "triton"], triton=triton, cuda=True) as session:
        yield session


def field_cases() -> Mapping[str, FieldCase]:
    """Every case, by its name."""
    from benchmarks.field import fla, gemlite, liger, matmul_ogs, sageattention, servers

    rows = [row for module in (liger, sageattention, servers, fla, matmul_ogs, gemlite) for row in module.CASES]
    return {row.name: row for row in rows}
