"""What is measured: a row for each instruction, with the rate it must reach and the rate it aims at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from mmabits.emulator.engine.width import lanes
from mmabits.isa import Instruction, MmabitsError, OperandError, lower, resolve
from mmabits.isa.errors import nearest


@dataclass(frozen=True, kw_only=True)
class Target:
    """Ratios to the rate of NumPy's f32 matmul."""

    avx512: float
    """At least, where that matmul has AVX-512, and so have we;"""
    avx2: float
    """and elsewhere."""
    aim: float

    @property
    def minimum(self) -> float:
        """What this processor must reach."""
        return self.avx512 if lanes() == 16 else self.avx2


FP8_HOPPER = Target(avx512=0.2, avx2=0.28, aim=0.33)
FP8_BLACKWELL = Target(avx512=0.14, avx2=0.2, aim=0.4)
FP4 = Target(avx512=0.5, avx2=0.5, aim=1.0)
HALF = Target(avx512=0.1, avx2=0.12, aim=0.25)
INTEGER = Target(avx512=0.8, avx2=0.8, aim=2.0)
OTHER = Target(avx512=0.05, avx2=0.06, aim=0.15)

HARD_DATA_MINIMUM = 0.5
"""The rate on hard data must be at least this part of the rate on plain data."""


@dataclass(frozen=True, kw_only=True)
class BenchPath:
    """One instruction on one architecture, as a GEMM."""

    arch: str
    name: str
    """Short spelling of the instruction: `wgmma`, `tcgen05.mma.kind::mxf4`."""
    operands: str
    """Type of A and B."""
    accumulator: str
    scale: str | None = None
    target: Target
    promote_every: int | None = None

    @property
    def id(self) -> str:
        """`sm_90a.wgmma.e4m3.f32`; what --paths selects by."""
        kind = self.name.replace("mma.sync", "mma").replace("tcgen05.mma", "tcgen05").replace(".kind::", ".")
        promoted = f".promote{self.promote_every}" if self.promote_every else ""
        return f"{self.arch}.{kind}.{self.operands}.{self.accumulator}{promoted}"

    @cached_property
    def instruction(self) -> Instruction:
        """The instruction with its largest shape."""
        return resolve(
            self.name, arch=self.arch, a_type=self.operands, b_type=self.operands, c_type=self.accumulator, scale_type=self.scale
        )  # fmt: skip

    @property
    def evidence(self) -> str:
        """How well its arithmetic is known."""
        return str(lower(self.instruction, self.arch).evidence)


def _path(
    arch: str, name: str, operands: str, accumulator: str, target: Target, scale: str | None = None, promote: int | None = None
) -> BenchPath:
    return BenchPath(arch=arch, name=name, operands=operands, accumulator=accumulator, target=target, scale=scale, promote_every=promote)


# fmt: off
PATHS: tuple[BenchPath, ...] = (
    _path("sm_90a",  "wgmma",                      "e4m3", "f32", FP8_HOPPER),
    _path("sm_90a",  "wgmma",                      "e4m3", "f32", FP8_HOPPER, promote=128),
    _path("sm_100a", "tcgen05.mma.kind::f8f6f4",   "e4m3", "f32", FP8_BLACKWELL),
    _path("sm_100a", "tcgen05.mma.kind::mxf8f6f4", "e4m3", "f32", FP8_BLACKWELL, "ue8m0"),
    _path("sm_100a", "tcgen05.mma.kind::mxf4",     "e2m1", "f32", FP4, "ue8m0"),
    _path("sm_100a", "tcgen05.mma.kind::mxf4nvf4", "e2m1", "f32", FP4, "ue4m3"),
    _path("sm_80",   "mma.sync",                   "f16",  "f32", HALF),
    _path("sm_80",   "mma.sync",                   "bf16", "f32", HALF),
    _path("sm_90a",  "mma.sync",                   "f16",  "f32", HALF),
    _path("sm_90a",  "mma.sync",                   "bf16", "f32", HALF),
    _path("sm_90a",  "wgmma",                      "f16",  "f32", HALF),
    _path("sm_90a",  "wgmma",                      "bf16", "f32", HALF),
    _path("sm_100a", "tcgen05.mma.kind::f16",      "f16",  "f32", HALF),
    _path("sm_100a", "tcgen05.mma.kind::f16",      "bf16", "f32", HALF),
    _path("sm_80",   "mma.sync",                   "tf32", "f32", OTHER),
    _path("sm_90a",  "wgmma",                      "tf32", "f32", OTHER),
    _path("sm_100a", "tcgen05.mma.kind::tf32",     "tf32", "f32", OTHER),
    _path("sm_80",   "mma.sync",                   "f16",  "f16", OTHER),
    _path("sm_90a",  "wgmma",                      "f16",  "f16", OTHER),
    _path("sm_90a",  "wgmma",                      "e4m3", "f16", OTHER),
    _path("sm_80",   "mma.sync",                   "f64",  "f64", OTHER),
    _path("sm_90a",  "mma.sync",                   "f64",  "f64", OTHER),
    _path("sm_89",   "mma.sync",                   "e4m3", "f32", OTHER),
    _path("sm_90a",  "mma.sync",                   "e4m3", "f32", OTHER),
    _path("sm_80",   "mma.sync",                   "s8",   "s32", INTEGER),
    _path("sm_90a",  "wgmma",                      "s8",   "s32", INTEGER),
)
# fmt: on
"""Every path."""

_BY_ID = {path.id: path for path in PATHS}

SCALING_IDS = ("sm_90a.wgmma.e4m3.f32", "sm_100a.tcgen05.mxf4nvf4.e2m1.f32")
"""Paths whose scaling is measured at every size of run."""
MORE_SCALING_IDS = (*SCALING_IDS, "sm_90a.wgmma.bf16.f32", "sm_90a.wgmma.f16.f16", "sm_90a.wgmma.s8.s32")
"""Paths whose scaling is measured in long runs: one a kind of inner loop."""


def by_id(identifier: str) -> BenchPath:
    """The path of an id.

    Raises:
        OperandError: no such path.
    """
    if identifier not in _BY_ID:
        raise OperandError(f"unknown path {identifier!r}{nearest(identifier, _BY_ID)}; there are {len(_BY_ID)}")
    return _BY_ID[identifier]


def select(patterns: str | None, among: Sequence[str] = tuple(_BY_ID)) -> list[BenchPath]:
    """The paths whose ids match one of the comma-separated patterns (`*` and `?` as in a shell; without them, a part of the id).

    Raises:
        MmabitsError: nothing matches.
    """
    wanted = ["*"] if patterns is None else [text if set("*?[") & set(text) else f"*{text}*" for text in patterns.split(",")]
    found = [path for path in PATHS if path.id in among and any(fnmatchcase(path.id, pattern) for pattern in wanted)]
    if not found and among == tuple(_BY_ID):
        raise MmabitsError(f"no path matches {patterns!r}{nearest(str(patterns), _BY_ID)}; paths are {', '.join(_BY_ID)}")
    return found
