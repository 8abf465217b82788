"""Other emulators on the same operands: their rate, and whether they give the same bits. Each is used where it is installed.

MMA-Sim (PyPI `mmasim`) has most instructions; mmaemu has the fp8 products of Hopper's and Ada's tensor cores.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.data import Array, Data, Operands, draw, gemm_call
from benchmarks.measure import interleave, set_threads, summarize
from benchmarks.paths import BenchPath, by_id
from mmabits.emulator.codecs import as_codes
from mmabits.isa import FormatSpec

PEERS = {"mmasim": "MMA-Sim", "mmaemu": "mmaemu"}
"""Distribution to name."""
SHAPE = (128, 128, 256)
"""M, N, K of the comparison: MMA-Sim needs memory for M x N x step terms."""
DATA = (Data.PLAIN, Data.WIDE)


@dataclass(frozen=True, kw_only=True)
class PeerRow:
    """One path on one kind of data, ours and a peer's; `reason` says why there is no number."""

    peer: str
    version: str
    path: str
    data: str
    shape: tuple[int, int, int]
    threads: int
    seconds: float = 0.0
    peer_seconds: float = 0.0
    speedup: float = 0.0
    """Median of the pairwise ratios."""
    outputs: int = 0
    different: int = 0
    reason: str = ""

    @property
    def gmacs(self) -> float:
        """10^9 products a second, 0 where there is no number."""
        return self._rate(self.seconds)

    @property
    def peer_gmacs(self) -> float:
        """That of the peer."""
        return self._rate(self.peer_seconds)

    def _rate(self, seconds: float) -> float:
        m, n, k = self.shape
        return m * n * k / seconds / 1e9 if seconds else 0.0


class Absent(Exception):
    """The peer has no such instruction, or cannot run here."""


def version(peer: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(peer)
    except importlib.metadata.PackageNotFoundError:
        return None


def rows(
    peer: str, identifiers: Sequence[str], shape: tuple[int, int, int], data: Sequence[Data], *, threads: int, repeats: int
) -> Iterator[PeerRow]:
    """One peer beside the emulator; one row without numbers where it cannot run at all."""
    import torch

    torch.set_num_threads(threads)
    set_threads(threads)
    prepare = {"mmasim": mmasim_call, "mmaemu": mmaemu_call}[peer]
    for identifier in identifiers:
        path = by_id(identifier)
        if not covers(peer, path):
            continue
        for kind in data:
            yield _row(peer, path, kind, shape, prepare, threads=threads, repeats=repeats)


def _row(
    peer: str, path: BenchPath, kind: Data, shape: tuple[int, int, int], prepare: Callable[[BenchPath, Operands], Callable[[], Any]],
    *, threads: int, repeats: int,
) -> PeerRow:  # fmt: skip
    operands = draw(path, kind, *shape)
    common: dict[str, Any] = {
        "peer": PEERS[peer], "version": version(peer) or "", "path": path.id, "data": kind.value, "shape": operands.shape,
        "threads": threads,
    }  # fmt: skip
    ours = gemm_call(path, operands)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = prepare(path, operands)
            got = as_codes(ours(), path.instruction.d_type) if not path.instruction.d_type.is_integer else ours().view(np.uint32)
            want = theirs().contiguous().numpy().view(got.dtype)
            summary = summarize(interleave(ours, theirs, repeats=repeats))
    except Absent as error:
        return PeerRow(**common, reason=str(error))
    return PeerRow(
        **common, seconds=summary.ours, peer_seconds=summary.theirs, speedup=summary.ratio, outputs=got.size,
        different=int(np.count_nonzero(got != want)),
    )  # fmt: skip


def covers(peer: str, path: BenchPath) -> bool:
    """Whether the peer has the instruction."""
    row = path.instruction
    if peer == "mmaemu":
        return _mmaemu_profile(path) is not None
    no_hmma_pair = not (path.name == "mma.sync" and row.a_type.name == "e4m3" and path.arch != "sm_89")
    return not row.a_type.is_integer and no_hmma_pair and path.promote_every is None


# ---------------------------------------------------------------------------------------------------------------- MMA-Sim

_MMASIM_ARCHS = {"sm_80": "Ampere", "sm_89": "Ada Lovelace", "sm_90a": "Hopper", "sm_100a": "Blackwell"}
_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


def _mmasim_operation(path: BenchPath) -> Any:
    try:
        from mmasim import nv_ptx
    except (ImportError, OSError, RuntimeError) as error:
        raise Absent(f"mmasim does not import: {str(error).splitlines()[0]}") from error
    row, types = path.instruction, f"{path.instruction.d_type.name}.{path.operands}.{path.operands}"
    kind = f".kind::{row.kind}" if row.kind else ""
    arch = _MMASIM_ARCHS[path.arch]
    if row.scale_type is not None:
        return nv_ptx.TCGen05MMABlockScale(arch, f"{row.shape}{kind}.block{row.block}.{types}.{row.scale_type.name}")
    if path.name == "wgmma":
        return nv_ptx.WGMMA(arch, f"{row.shape}.{types}")
    if path.name == "mma.sync":
        return nv_ptx.MMA(arch, f"{row.shape}.{types}.{row.c_type.name}")
    return nv_ptx.TCGen05MMA(arch, f"{row.shape}{kind}.{types}")


def mmasim_call(path: BenchPath, operands: Operands) -> Callable[[], Any]:
    """The product through MMA-Sim, whose instructions take any M and N, and any K where there are no block scales.

    Raises:
        Absent: MMA-Sim cannot run here.
    """
    import torch

    operation, row = _mmasim_operation(path), path.instruction
    m, n, k = operands.shape
    packed = row.scale_type is not None and row.k == 64
    a, b = tensor(operands.a, row.a_type, pack_axis=1 if packed else None), tensor(operands.b, row.b_type, pack_axis=0 if packed else None)
    c = torch.zeros((m, n), dtype={"f64": torch.float64, "f16": torch.float16}.get(row.d_type.name, torch.float32))
    if row.scale_type is None or operands.scale_a is None or operands.scale_b is None:
        return lambda: operation(a, b, c)
    scale_a, scale_b = tensor(operands.scale_a, row.scale_type), tensor(operands.scale_b, row.scale_type)
    halves, blocks = 2 if packed else 1, row.k // (row.block or row.k)

    def chain() -> Any:
        d = c
        for i in range(k // row.k):
            part, scales = slice(i * row.k // halves, (i + 1) * row.k // halves), slice(i * blocks, (i + 1) * blocks)
            d = operation(a[:, part], b[part], d, scale_a[:, scales], scale_b[scales])
        return d

    return chain


def tensor(array: Array, form: FormatSpec, *, pack_axis: int | None = None) -> Any:
    """An array as the torch tensor that the peers take; with `pack_axis`, two fp4 codes a byte along it, the first in the high bits."""
    import torch

    codes = as_codes(array, form)
    if pack_axis is not None:
        even, odd = (np.take(codes, range(start, codes.shape[pack_axis], 2), axis=pack_axis) for start in (0, 1))
        return torch.from_numpy(even << 4 | odd)
    types = {
        "f64": torch.float64, "tf32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn,
        "ue4m3": torch.float8_e4m3fn, "ue8m0": torch.float8_e8m0fnu,
    }  # fmt: skip
    signed = np.ascontiguousarray(codes).view(_SIGNED[codes.dtype.itemsize])
    return torch.from_numpy(signed).view(types[form.name])


# ----------------------------------------------------------------------------------------------------------------- mmaemu


def _mmaemu_profile(path: BenchPath) -> str | None:
    """The platform whose fp8 products the path's are, f32 accumulator."""
    if path.operands != "e4m3" or path.accumulator != "f32":
        return None
    return {("sm_90a", "wgmma"): "hopper", ("sm_89", "mma.sync"): "ada"}.get((path.arch, path.name))


def mmaemu_call(path: BenchPath, operands: Operands) -> Callable[[], Any]:
    """The f32 accumulator through mmaemu, K not split; with promotion, `use_fast_accum` off, which promotes every 128.

    Raises:
        Absent: mmaemu cannot run here.
    """
    try:
        import mmaemu
    except (ImportError, OSError, RuntimeError) as error:
        raise Absent(f"mmaemu does not import: {str(error).splitlines()[0]}") from error
    row = path.instruction
    a, b = tensor(operands.a, row.a_type), tensor(np.ascontiguousarray(operands.b.T), row.b_type)
    fast = path.promote_every is None
    return lambda: mmaemu.accumulate(a, b, use_fast_accum=fast, profile=_mmaemu_profile(path), splitk=1)
