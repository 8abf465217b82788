"""MMA-Sim (PyPI `mmasim`), an independent model of tensor cores that its authors validated on GPUs, as a peer to compare with.

`CASES` are the kinds of instruction that mmasim 2.1.1 models, one shape for each K. It has no model of fp8 `mma.sync` on sm_90 and
sm_100, of sm_103a, sm_110a and sm_121a, of K = 96, of scale-input-d, of integers and of other f64 roundings.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import operands
import pytest

F8F6F4 = ("e5m2", "e4m3", "e3m2", "e2m3", "e2m1")
FP8 = ("e5m2", "e4m3")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One instruction, in our terms and in mmasim's."""

    arch: str
    family: str
    peer_class: str
    peer_arch: str
    peer_name: str
    a_type: str
    b_type: str
    acc_type: str
    k: int
    scale_type: str | None = None
    block: int = 32

    def __str__(self) -> str:
        return f"{self.arch}-{self.family}-{self.peer_name}"

    @property
    def ptx(self) -> str:
        """The instruction's full spelling."""
        shape, *words = self.peer_name.split(".")
        if self.family == "wgmma":
            return f"wgmma.mma_async.sync.aligned.{self.peer_name}"
        kind = [word for word in words if word.startswith("kind::")]
        types = [word for word in words if not word.startswith(("kind::", "block"))]
        if self.family == "tcgen05":
            scaling = [f"block_scale.block{self.block}"] if self.scale_type else []
            return ".".join(["tcgen05.mma.cta_group::1", *kind, *scaling, shape, *types])
        scaling = [f"block_scale.scale_vec::{self.k // self.block}X"] if self.scale_type else []
        rounding = ["rn"] if self.a_type == "f64" else []
        return ".".join(["mma.sync.aligned", shape, "row.col", *rounding, *kind, *scaling, *types])


def _mma(arch: str, peer_arch: str) -> list[Case]:
    """`mma.sync` without block scales: (K, types, accumulators) by first architecture."""
    number = int("".join(filter(str.isdigit, arch)))
    kinds: list[tuple[int, str, str, str, str]] = []
    if number in (70, 75):
        kinds += [(4, "f16", "f16", acc, "m8n8k4.") for acc in ("f32", "f16")]
    if number >= 75:
        kinds += [(8, "f16", "f16", acc, "m16n8k8.") for acc in ("f32", "f16")]
    if number >= 80:
        kinds += [(16, "f16", "f16", acc, "m16n8k16.") for acc in ("f32", "f16")]
        kinds += [(k, "bf16", "bf16", "f32", f"m16n8k{k}.") for k in (8, 16)]
        kinds += [(k, "tf32", "tf32", "f32", f"m16n8k{k}.") for k in (4, 8)]
        kinds += [(4, "f64", "f64", "f64", "m8n8k4.")]
    if number in (89, 120):
        kinds += [(k, a, b, acc, f"m16n8k{k}.") for k in (16, 32) for a in FP8 for b in FP8 for acc in ("f32", "f16")]
    if number == 90:
        kinds += [(k, "f64", "f64", "f64", f"m16n8k{k}.") for k in (4, 8, 16)]
    if number == 120:
        kinds += [(32, a, b, acc, "m16n8k32.kind::f8f6f4.") for a in F8F6F4 for b in F8F6F4 for acc in ("f32", "f16")]
    return [
        Case(arch=arch, family="mma", peer_class="MMA", peer_arch=peer_arch, peer_name=f"{start}{acc}.{a}.{b}.{acc}",
             a_type=a, b_type=b, acc_type=acc, k=k)
        for k, a, b, acc, start in kinds
    ]  # fmt: skip


def _asynchronous(arch: str, family: str, peer_class: str, peer_arch: str) -> list[Case]:
    """`wgmma` and `tcgen05.mma` without block scales."""
    fp8_kinds = FP8 if family == "wgmma" else F8F6F4
    kinds = [(16, "f16", "f16", "f32"), (16, "f16", "f16", "f16"), (16, "bf16", "bf16", "f32"), (8, "tf32", "tf32", "f32")]
    kinds += [(32, a, b, acc) for a in fp8_kinds for b in fp8_kinds for acc in ("f32", "f16")]
    kind = {8: ".kind::tf32", 16: ".kind::f16", 32: ".kind::f8f6f4"} if family == "tcgen05" else {8: "", 16: "", 32: ""}
    return [
        Case(arch=arch, family=family, peer_class=peer_class, peer_arch=peer_arch, peer_name=f"m64n8k{k}{kind[k]}.{acc}.{a}.{b}",
             a_type=a, b_type=b, acc_type=acc, k=k)
        for k, a, b, acc in kinds
    ]  # fmt: skip


def _scaled(arch: str, family: str, peer_class: str, peer_arch: str, shape: str) -> list[Case]:
    """Block-scaled kinds."""
    c_type = "f32." if family == "mma" else ""
    kinds = [(32, "mxf8f6f4", 32, a, b, "ue8m0") for a in F8F6F4 for b in F8F6F4]
    kinds += [(64, "mxf4", 32, "e2m1", "e2m1", "ue8m0")]
    kinds += [(64, "mxf4nvf4", block, "e2m1", "e2m1", scale) for block, scale in ((32, "ue8m0"), (16, "ue8m0"), (16, "ue4m3"))]
    return [
        Case(arch=arch, family=family, peer_class=peer_class, peer_arch=peer_arch, acc_type="f32", k=k, scale_type=scale, block=block,
             peer_name=f"{shape}k{k}.kind::{kind}.block{block}.f32.{a}.{b}.{c_type}{scale}", a_type=a, b_type=b)
        for k, kind, block, a, b, scale in kinds
    ]  # fmt: skip


PEER_ARCHS = {
    "sm_70": "Volta", "sm_75": "Turing", "sm_80": "Ampere", "sm_86": "Ampere", "sm_89": "Ada Lovelace", "sm_90a": "Hopper",
    "sm_100a": "Blackwell", "sm_120a": "RTX Blackwell",
}  # fmt: skip
CASES = [
    *itertools.chain.from_iterable(_mma(arch, peer_arch) for arch, peer_arch in PEER_ARCHS.items()),
    *_asynchronous("sm_90a", "wgmma", "WGMMA", "Hopper"),
    *_asynchronous("sm_100a", "tcgen05", "TCGen05MMA", "Blackwell"),
    *_scaled("sm_100a", "tcgen05", "TCGen05MMABlockScale", "Blackwell", "m128n8"),
    *_scaled("sm_120a", "mma", "MMABlockScale", "RTX Blackwell", "m16n8"),
]


def load_peer() -> Any:
    """`mmasim.nv_ptx`, or skip; importing it compiles a small C++ file with torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mmasim", reason="mmasim (with torch) is not installed")
        try:
            from mmasim import nv_ptx
        except (ImportError, OSError, RuntimeError) as error:
            pytest.skip(f"mmasim could not compile its C++ part: {str(error).splitlines()[0]}")
    return nv_ptx


def tensor(codes: operands.Codes, name: str, *, packed: bool) -> Any:
    """Codes as the torch tensor that mmasim takes: fp6 and fp4 in bits 5 to 0 (fp4: 5 to 2) of a byte, or two fp4 a byte."""
    torch = pytest.importorskip("torch")
    if name == "e2m1" and packed:
        return torch.from_numpy(codes[:, 0::2] << 4 | codes[:, 1::2])
    if name in ("e3m2", "e2m3", "e2m1"):
        return torch.from_numpy(codes << (2 if name == "e2m1" else 0))
    types = {
        "f64": torch.float64, "f32": torch.float32, "tf32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
        "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "ue4m3": torch.float8_e4m3fn, "ue8m0": torch.float8_e8m0fnu,
    }  # fmt: skip
    signed = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}[codes.dtype.itemsize]
    return torch.from_numpy(np.ascontiguousarray(codes).view(signed)).view(types[name])


def peer_results(peer: Any, case: Case, drawn: operands.Operands) -> list[int]:
    """Result codes of mmasim."""
    operation = getattr(peer, case.peer_class)(case.peer_arch, case.peer_name)
    packed = case.scale_type is not None and case.k == 64
    arguments = [tensor(drawn.a, case.a_type, packed=packed), tensor(drawn.b, case.b_type, packed=packed)]
    arguments.append(tensor(drawn.c, case.acc_type, packed=False))
    if case.scale_type:
        arguments += [tensor(scales, case.scale_type, packed=False) for scales in (drawn.scale_a, drawn.scale_b) if scales is not None]
    result = operation.dpa(*arguments).contiguous().numpy()
    return [int(code) for code in result.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[result.dtype.itemsize])]


def draw(case: Case, kind: str, n: int) -> operands.Operands:
    """n dot products of a case's types, of one distribution."""
    rng = operands.generator("mmasim", case, kind)
    if case.scale_type:
        return operands.draw_scaled(kind, case.a_type, case.b_type, n, case.k, rng, scale_format=case.scale_type, block=case.block)
    return operands.draw_pair(kind, case.a_type, case.b_type, n, case.k, rng, c_format=case.acc_type)
