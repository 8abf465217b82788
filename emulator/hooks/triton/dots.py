"""What decides how a dot is compiled: the questions to Triton's compiler, and to the table that stands in for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

FP8: Final = ("e4m3", "e5m2")


@dataclass(frozen=True, kw_only=True)
class Dot:
    """What decides how `tl.dot` is compiled."""

    capability: int
    a: str
    """Type of A's elements, by its name in mmabits.isa; f32 for tf32 too."""
    b: str
    acc: str
    m: int
    n: int
    k: int
    batch: int = 0
    """Tiles of a three-dimensional dot; 0: it has two dimensions."""
    warps: int = 4
    ctas: int = 1
    precision: str = "tf32"
    imprecise: int = 0
    """max_num_imprecise_acc."""
    a_loaded: str = ""
    """`f16` or `s8`, where A was made of elements loaded with so many bits: layouts depend on it; else empty."""
    b_loaded: str = ""
    a_joined: int = 0
    """Bits of the elements, where A was made by a tl.join: layouts depend on it, too; 0: it was not."""
    b_joined: int = 0

    @property
    def question(self) -> dict[str, Any]:
        """As `probe` is asked."""
        fields = asdict(self)
        return {**fields, "a_loaded": self.a_loaded or self.a, "b_loaded": self.b_loaded or self.b, "scaled": False}

    def __str__(self) -> str:
        return f"tl.dot {self.m} x {self.n} x {self.k}, {self.a} x {self.b} into {self.acc}, {self.warps} warps"


@dataclass(frozen=True, kw_only=True)
class ScaledDot:
    """What decides how `tl.dot_scaled` is compiled."""

    capability: int
    a: str
    """Format as in the program: e2m1, e4m3, e5m2, bf16 or fp16."""
    b: str
    m: int
    n: int
    k: int
    a_scale: str
    """ue8m0, ue4m3, or empty for none."""
    b_scale: str
    a_block: int
    b_block: int
    a_along_k: bool = True
    b_along_k: bool = True
    fast: bool = False
    warps: int = 4
    ctas: int = 1

    @property
    def question(self) -> dict[str, Any]:
        """As `probe` is asked."""
        return {**asdict(self), "scaled": True}

    def __str__(self) -> str:
        return f"tl.dot_scaled {self.m} x {self.n} x {self.k}, {self.a} x {self.b}, {self.warps} warps"
