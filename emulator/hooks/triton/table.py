"""What Triton 3.6 to 3.9 make of dots, as rows: it serves where the compiler cannot be asked. Tests hold it against the compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmabits.emulator.hooks.triton.compiler import Facts
from mmabits.emulator.hooks.triton.dots import FP8, Dot, ScaledDot

_BITS: Final = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "s8": 8, "e4m3": 8, "e5m2": 8}
_LOADED_BITS: Final = {"e2m1": 4, "s8": 8, "f16": 16}
_LEAST_K: Final = {8: 32, 16: 16, 32: 8, 64: 4}
_WGMMA_N: Final = tuple(range(256, 7, -8))
_INTEGER_N: Final = (256, 224, 192, 160, 128, 96, 80, 64, 48, 32, 24, 16, 8)
_DATACENTER: Final = (100, 119)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Dots that become one kind of instruction; the first row that fits counts."""

    capabilities: tuple[int, int]
    """From, to."""
    types: tuple[str, ...]
    """Of A and B."""
    spelling: str
    """PTX; {a}, {b}, {d} and {n} are filled in."""
    m: int = 1
    """M is a multiple of it."""
    n: int = 1
    """N is a multiple of it."""
    warps: tuple[int, ...] = ()
    """How many there may be; empty: any number."""
    imprecise: int = 0
    """Least max_num_imprecise_acc of a dot into f32."""
    flat: bool = False
    """Only dots of two dimensions."""
    converts: bool = False
    """The operands are converted to f16 first."""
    without: tuple[int, ...] = ()
    """Capabilities in the range that lack it."""
    since: tuple[int, int] = (3, 6)
    """First version of Triton."""
    until: tuple[int, int] = (3, 9)
    """Last version of Triton."""

    def fits(self, dot: Dot, a: str, version: tuple[int, int]) -> bool:
        """Whether a dot of operands `a` is one of the row's."""
        first, last = self.capabilities
        return (
            self.since <= version <= self.until and first <= dot.capability <= last and dot.capability not in self.without
            and a in self.types and dot.m % self.m == 0 and dot.n % self.n == 0 and (not self.warps or dot.warps in self.warps)
            and (dot.acc != "f32" or dot.imprecise >= self.imprecise) and not (self.flat and dot.batch)
        )  # fmt: skip


_EARLY: Final = (3, 7)
_FITTED: Final = (3, 9)
_LATE: Final = (3, 8)
_WARPGROUPS: Final = (4, 8, 16, 32)
_TMEM_WARPS: Final = (4, 8)

# fmt: off
ROWS: Final = (
    Row(capabilities=(90, 90), types=FP8,             m=64, n=8, warps=_WARPGROUPS, flat=True, imprecise=32,
        spelling="wgmma.mma_async.sync.aligned.m64n{n}k32.{d}.{a}.{b}"),
    Row(capabilities=(90, 90), types=("f16", "bf16"), m=64, n=8, warps=_WARPGROUPS, flat=True,
        spelling="wgmma.mma_async.sync.aligned.m64n{n}k16.{d}.{a}.{b}"),
    Row(capabilities=(90, 90), types=("f32",),        m=64, n=8, warps=_WARPGROUPS, flat=True,
        spelling="wgmma.mma_async.sync.aligned.m64n{n}k8.{d}.{a}.{b}"),
    Row(capabilities=(90, 90), types=("s8",),         m=64, n=8, warps=_WARPGROUPS, flat=True,
        spelling="wgmma.mma_async.sync.aligned.m64n{n}k32.{d}.{a}.{b}"),
    Row(capabilities=_DATACENTER, types=FP8,             m=64, n=8, warps=_TMEM_WARPS, flat=True,
        spelling="tcgen05.mma.cta_group::1.kind::f8f6f4"),
    Row(capabilities=_DATACENTER, types=("f16", "bf16"), m=64, n=8, warps=_TMEM_WARPS, flat=True,
        spelling="tcgen05.mma.cta_group::1.kind::f16"),
    Row(capabilities=_DATACENTER, types=("f32",),        m=64, n=8, warps=_TMEM_WARPS, flat=True,
        spelling="tcgen05.mma.cta_group::1.kind::tf32"),
    Row(capabilities=_DATACENTER, types=("s8",),         m=64, n=8, warps=_TMEM_WARPS, flat=True, without=(103, 110), since=_LATE,
        spelling="tcgen05.mma.cta_group::1.kind::i8"),
    Row(capabilities=(89, 89),   types=FP8, spelling="mma.sync.aligned.m16n8k32.row.col.{d}.{a}.{b}.{d}"),
    Row(capabilities=(120, 999), types=FP8, spelling="mma.sync.aligned.m16n8k32.row.col.{d}.{a}.{b}.{d}"),
    Row(capabilities=(80, 999),  types=FP8, converts=True, spelling="mma.sync.aligned.m16n8k16.row.col.{d}.f16.f16.{d}"),
    Row(capabilities=(80, 999),  types=("f16", "bf16"), spelling="mma.sync.aligned.m16n8k16.row.col.{d}.{a}.{b}.{d}"),
    Row(capabilities=(80, 999),  types=("f32",),        spelling="mma.sync.aligned.m16n8k8.row.col.{d}.{a}.{b}.{d}"),
    Row(capabilities=(80, 999),  types=("s8",),         spelling="mma.sync.aligned.m16n8k32.row.col.satfinite.{d}.{a}.{b}.{d}"),
    Row(capabilities=(80, 119),  types=("f64",), since=_LATE, without=(86, 89), spelling="mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64"),
    Row(capabilities=(80, 80),   types=("f64",), until=_EARLY, spelling="mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64"),
    Row(capabilities=(90, 90),   types=("f64",), until=_EARLY, spelling="mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64"),
    Row(capabilities=(75, 79),   types=("f16", "bf16", "f32"), spelling="fma.rn.{d}"),
)
# fmt: on
"""Dots without block scales."""


@dataclass(frozen=True, kw_only=True)
class ScaledRow:
    """Block-scaled dots that have an instruction of their own; all others are converted to bf16 or f16."""

    capabilities: tuple[int, int]
    pairs: tuple[tuple[str, str], ...]
    """Formats of A and B."""
    scale: str
    block: int
    spelling: str
    m: int = 1
    n: int = 1
    warps: tuple[int, ...] = ()

    def fits(self, dot: ScaledDot) -> bool:
        """Whether a dot is one of the row's."""
        first, last = self.capabilities
        scales = (dot.a_scale, dot.b_scale, dot.a_block, dot.b_block)
        return (
            first <= dot.capability <= last and (dot.a, dot.b) in self.pairs and scales == (self.scale, self.scale, self.block, self.block)
            and dot.m % self.m == 0 and dot.n % self.n == 0 and (not self.warps or dot.warps in self.warps)
            and dot.a_along_k and dot.b_along_k
        )  # fmt: skip


_FP8_PAIRS: Final = tuple((a, b) for a in FP8 for b in FP8)
_MIXED: Final = (*_FP8_PAIRS, *((a, "e2m1") for a in FP8), *(("e2m1", b) for b in FP8))
_FP4: Final = (("e2m1", "e2m1"),)
_OMMA: Final = "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale"
_QMMA: Final = "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale"

# fmt: off
SCALED_ROWS: Final = (
    ScaledRow(capabilities=_DATACENTER, pairs=_MIXED, scale="ue8m0", block=32, m=128, n=16, warps=_TMEM_WARPS,
              spelling="tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32"),
    ScaledRow(capabilities=_DATACENTER, pairs=_FP4,   scale="ue8m0", block=32, m=128, n=16, warps=_TMEM_WARPS,
              spelling="tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32"),
    ScaledRow(capabilities=_DATACENTER, pairs=_FP4,   scale="ue8m0", block=16, m=128, n=16, warps=_TMEM_WARPS,
              spelling="tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16"),
    ScaledRow(capabilities=_DATACENTER, pairs=_FP4,   scale="ue4m3", block=16, m=128, n=16, warps=_TMEM_WARPS,
              spelling="tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16"),
    ScaledRow(capabilities=(120, 999), pairs=_FP8_PAIRS, scale="ue8m0", block=32,
              spelling=f"{_QMMA}.scale_vec::1X.f32.{{a}}.{{b}}.f32.ue8m0"),
    ScaledRow(capabilities=(120, 999), pairs=_FP4, scale="ue8m0", block=32, spelling=f"{_OMMA}.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0"),
    ScaledRow(capabilities=(120, 999), pairs=_FP4, scale="ue8m0", block=16, spelling=f"{_OMMA}.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0"),
    ScaledRow(capabilities=(120, 999), pairs=_FP4, scale="ue4m3", block=16, spelling=f"{_OMMA}.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"),
)
# fmt: on
"""Block-scaled dots."""


def facts_of(dot: Dot | ScaledDot, version: str) -> Facts:
    """What the rows say of a dot, in the form of the compiler's answers.

    Args:
        dot: the dot.
        version: of Triton, `"3.9.0"`.
    """
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if isinstance(dot, ScaledDot):
        return _scaled(dot, (numbers[0], numbers[1]))
    kinds = {"tf32x3": "f32", "bf16x3": "bf16", "bf16x6": "bf16"}
    operand = kinds.get(dot.precision, dot.a) if dot.a == "f32" else dot.a
    return _plain(dot, operand, dot.b if operand == dot.a else operand, (numbers[0], numbers[1]))


def _plain(dot: Dot, a: str, b: str, version: tuple[int, int]) -> Facts:
    least = _LEAST_K[_BITS[dot.a]]
    if dot.k < least:
        return {"error": f"K must be at least {least}"}
    if dot.a == "f32" and dot.precision == "ieee":
        return _facts({"fma.rn.f32": 1})
    if dot.capability < 89 and "e4m3" in (dot.a, dot.b):
        return {"error": "type fp8e4nv not supported in this architecture"}
    row = next((row for row in ROWS if row.fits(dot, a, version)), None)
    if row is None:
        return {"error": "no row of the table fits"}
    spelled = {"f32": "tf32"}
    spelling = row.spelling.format(a=spelled.get(a, a), b=spelled.get(b, b), d=dot.acc, n=_wgmma_n(dot))
    width, kind = 0, "f16" if row.converts else a
    if spelling.startswith("mma"):
        operands = ((dot.a_loaded, dot.a_joined), (dot.b_loaded, dot.b_joined))
        bits = [_laid_out(_LOADED_BITS.get(loaded, _BITS[dot.a]), joined, dot.k, version) for loaded, joined in operands]
        width = max(32 // min(*bits, _BITS[a]), 1)
    opcodes = {spelling: 1}
    if "wgmma" in spelling and dot.a in FP8 and dot.acc == "f32" and dot.imprecise <= dot.k:
        every = -(-dot.imprecise // 32) * 32
        opcodes["add.f32"] = -(-dot.k // every) * dot.m * dot.n // (32 * dot.warps)
    return _facts(opcodes, [(kind, width)] if width else [])


def _laid_out(loaded: int, joined: int, k: int, version: tuple[int, int]) -> int:
    """The bits by which an operand is laid out. A tl.join halves them; later if its elements are twice as wide, and latest if besides
    four threads of the width then fit into K.
    """
    fits = version < _FITTED or 4 * (32 // (loaded // 2)) <= k
    halves = bool(joined) if version <= _EARLY else joined == 2 * loaded and fits
    return loaded // 2 if halves else loaded


def _wgmma_n(dot: Dot) -> int:
    """Columns of one wgmma: as many as the share of a warpgroup has."""
    across = max(dot.warps // max(dot.m // 16, 1), 1)
    most = max(dot.n // across, 8)
    sizes = _INTEGER_N if dot.a == "s8" else _WGMMA_N
    return next((n for n in sizes if dot.n % n == 0 and n <= most), 8)


def _scaled(dot: ScaledDot, version: tuple[int, int]) -> Facts:
    if dot.capability < 89 and {"e4m3", "ue4m3"} & {dot.a, dot.b, dot.a_scale, dot.b_scale}:
        return {"error": "type fp8e4nv not supported in this architecture"}
    if version <= _EARLY and ("ue8m0", 16) in ((dot.a_scale, dot.a_block), (dot.b_scale, dot.b_block)):
        return {"error": "lhs_scale must be a tensor of another shape"}
    row = next((row for row in SCALED_ROWS if row.fits(dot)), None)
    if row is not None:
        return _facts({row.spelling.format(a=dot.a, b=dot.b): 1})
    if version <= _EARLY and "ue4m3" in (dot.a_scale, dot.b_scale):
        return {"error": "PassManager::run failed"}
    compute = "f16" if "fp16" in (dot.a, dot.b) else "bf16"
    loaded = "e2m1" if "e2m1" in (dot.a, dot.b) else "s8"
    # A scaled B beside a plain A: the compiler computes the transposed product, whose sums are the same.
    m, n = (dot.n, dot.m) if dot.b_scale and not dot.a_scale else (dot.m, dot.n)
    plain = Dot(
        capability=dot.capability, a=compute, b=compute, acc="f32", m=m, n=n, k=dot.k, warps=dot.warps, ctas=dot.ctas, a_loaded=loaded
    )
    facts = _plain(plain, compute, compute, version)
    if "error" not in facts:
        exponents = "ue8m0" in (dot.a_scale, dot.b_scale)
        newest = version >= (3, 9)
        facts["words"]["arith.maxui"] = int(newest and exponents and compute == "bf16")
        facts["words"]["math.fma"] = int(newest and exponents and not dot.fast)
        facts["words"]["arith.select"] = int(not newest and not dot.fast)
    return facts


def _facts(opcodes: dict[str, int], widths: list[tuple[str, int]] | None = None) -> Facts:
    words = dict.fromkeys(("arith.maxui", "math.fma", "arith.select", "arith.cmpf"), 0)
    return {"opcodes": opcodes, "widths": widths or [], "words": words}
