"""Rows of opcodes that act on more than one lane."""

from __future__ import annotations

import re

import pytest

from mmabits.emulator.machine.kernel import HANDLERS, Kernel
from mmabits.emulator.machine.warp import UnknownOpcode
from mmabits.isa import Evidence
from mmabits.isa.opcodes import OpcodeKind, family_of, form_of, opcode_forms, opcode_table

SPELLINGS = {
    "ld.global.v4.b32": ("ld", "global memory"), "ld.param.b64": ("ld", "parameters"), "ld.b32": ("ld", "generic memory"),
    "ld.global.L1::no_allocate.L2::cache_hint.v4.b32": ("ld", "global memory"),
    "st.shared::cta.b32": ("st", "shared memory"), "atom.global.gpu.acq_rel.add.v4.f32": ("atom", "atomics"),
    "red.global.add.noftz.bf16x2": ("red", "atomics"), "cp.async.ca.shared.global": ("cp.async.ca", "asynchronous copies"),
    "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes": ("cp.async.bulk.tensor", "asynchronous copies"),
    "cp.async.bulk.wait_group.read": ("cp.async.bulk.wait_group", "asynchronous copies"),
    "mbarrier.try_wait.parity.shared::cta.b64": ("mbarrier", "mbarriers"),
    "barrier.cluster.arrive.aligned": ("barrier.cluster", "barriers"),
    "bar.sync": ("bar", "barriers"),
    "bar.warp.sync": ("bar.warp.sync", "barriers"), "shfl.sync.bfly.b32": ("shfl.sync", "lanes of a warp"),
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": ("mma", "tensor cores"),
    "wgmma.fence.sync.aligned": ("wgmma", "waits of tensor cores"),
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16": ("wgmma.mma_async", "tensor cores"),
    "tcgen05.ld.sync.aligned.16x32bx2.x16.pack::16b.b32": ("tcgen05.ld", "tensor memory"), "bra.uni": ("bra", "branches"),
    "fence.proxy.tensormap::generic.acquire.gpu": ("fence", "fences"),
    "tensormap.replace.tile.box_dim.shared::cta.b1024.b32": ("tensormap.replace.tile", "tensor maps"),
}  # fmt: skip


@pytest.mark.parametrize("opcode", SPELLINGS)
def test_spellings_have_their_row(opcode: str) -> None:
    found = form_of(opcode)
    assert found is not None and (found.name, family_of(opcode)) == SPELLINGS[opcode]


@pytest.mark.parametrize("opcode", ["ld.global.b33", "ld.global", "st.shred.b32", "atom.global.f32", "shfl.sync.b32",
                                    "cp.async.cx.shared.global", "tcgen05.ld.sync.aligned.x16.b32", "mbarriers.init.b64",
                                    "frobnicate.b32"])  # fmt: skip
def test_spellings_that_there_are_not_have_none(opcode: str) -> None:
    assert form_of(opcode) is None


def test_what_the_machine_writes_has_a_row() -> None:
    bases = {name.partition(".")[0] for name in opcode_forms()} | {name.partition(".")[0] for name in opcode_table()}
    assert {name.partition(".")[0] for name in HANDLERS} <= bases


def test_rows_are_whole() -> None:
    for row in opcode_forms().values():
        assert row.kind is not OpcodeKind.ELEMENTWISE and re.fullmatch("[a-z0-9-]+", row.section) and row.family
        assert row.evidence is Evidence.PUBLISHED or row.note
        assert len(set(row.words)) == len(row.words) or row.name == "fence", row.name
    assert not set(opcode_forms()) & set(opcode_table())


@pytest.mark.parametrize(("opcode", "family"), [
    ("add.rn.f32", "f32 arithmetic"), ("fma.rn.bf16x2", "bf16 arithmetic"), ("ex2.approx.ftz.f32", "divisions and functions"),
    ("div.s32", "integers and bits"), ("cvt.rn.f16.f32", "conversions"), ("setp.lt.f32", "comparisons and choices"), ("mov.b32", "moves"),
    ("add.s32", "integers and bits"),
])  # fmt: skip
def test_families_of_one_lane(opcode: str, family: str) -> None:
    assert opcode in opcode_table() and family_of(opcode) == family


def test_a_word_that_no_row_has_is_an_error_before_the_launch() -> None:
    text = """.version 8.7
.target sm_80
.address_size 64
.visible .entry odd(.param .u64 p) {
 .reg .b64 %rd<2>; .reg .b32 %r<2>;
 ld.param.u64 %rd1, [p];
 ld.global.sideways.b32 %r1, [%rd1];
 st.global.b32 [%rd1], %r1;
 ret;
}"""
    with pytest.raises(UnknownOpcode, match=r"ld\.global\.sideways\.b32.*line 7 of the PTX"):
        Kernel(text, arch="sm_80")
