"""Clusters: CTAs that run together, and reach each other's shared memory and mbarriers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mmabits.emulator.machine.kernel import Kernel, KernelError
from mmabits.emulator.machine.tensormaps import tensor_map
from mmabits.isa import OperandError

HEAD = ".version 8.8\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 room[];\n"
REGISTERS = "\t.reg .pred %p<20>;\n\t.reg .b16 %rs<9>;\n\t.reg .b32 %r<60>;\n\t.reg .b64 %rd<40>;\n"
START = """
	ld.param.b64 %rd1, [k_1];
	mov.u32 %r1, %tid.x;
	mov.b32 %r8, room;
	mov.u32 %r6, %cluster_ctarank;
	mov.u32 %r2, %ctaid.x;
	mad.lo.s32 %r4, %r2, %ntid.x, %r1;
	mul.wide.u32 %rd10, %r4, 4;
	add.s64 %rd11, %rd1, %rd10;
	setp.eq.s32 %p1, %r1, 0;
"""
SYNC = "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n"
WAIT = """
$L_wait:
	mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r8], 0;
	@!%p2 bra $L_wait;
"""


def kernel(body: str, *, threads: int = 32, cluster: str = "2", **options: Any) -> Kernel:
    head = f".visible .entry k(.param .align 64 .b8 k_0[128], .param .u64 k_1) .reqntid {threads} .explicitcluster"
    size = f" .reqnctapercluster {cluster}" if cluster else ""
    return Kernel(f"{HEAD}{head}{size}\n{{\n{REGISTERS}{START}{body}\nret;\n}}", arch="sm_90a", shared=4096, **options)


def run(made: Kernel, array: npt.NDArray[Any], *, grid: tuple[int, ...], tensor: bytes = bytes(128), more: tuple[Any, ...] = ()) -> None:
    made.launch(grid, [tensor, array.ctypes.data], [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in (array, *more)])


@pytest.mark.parametrize("load", [
    "mapa.shared::cluster.u32 %r20, %r9, %r7; ld.shared::cluster.b32 %r21, [%r20];",
    "cvt.u64.u32 %rd20, %r9; cvta.shared.u64 %rd20, %rd20; mapa.u64 %rd21, %rd20, %r7; ld.b32 %r21, [%rd21];",
])  # fmt: skip
def test_shared_memory_of_another_cta(load: str) -> None:
    """Warps of three CTAs read from the next one's; CTAs of the next cluster begin with zeros."""
    made = kernel(f"""
	mad.lo.s32 %r9, %r1, 4, %r8;
	ld.shared.b32 %r22, [%r9];
	mad.lo.s32 %r23, %r4, 2, %r22;
	st.shared.b32 [%r9], %r23;
	{SYNC}
	add.s32 %r7, %r6, 1;
	rem.u32 %r7, %r7, 3;
	{load}
	st.global.b32 [%rd11], %r21;
	{SYNC}""", threads=64, cluster="3")  # fmt: skip
    found = np.zeros(9 * 64, np.int32)
    run(made, found, grid=(9,))
    wanted = np.roll(2 * np.arange(9 * 64).reshape(3, 3, 64), -1, axis=1)
    assert np.array_equal(found.reshape(3, 3, 64), wanted)


def test_special_registers_of_clusters_of_two_dimensions() -> None:
    names = ["%clusterid.x", "%clusterid.y", "%nclusterid.x", "%nclusterid.y", "%cluster_ctaid.x", "%cluster_ctaid.y", "%cluster_nctaid.x",
             "%cluster_nctaid.y", "%cluster_ctarank", "%cluster_nctarank"]  # fmt: skip
    body = "mov.u32 %r9, %ctaid.y; mov.u32 %r10, %nctaid.x; mad.lo.s32 %r11, %r9, %r10, %r2; mul.wide.u32 %rd12, %r11, 40;\n"
    body += "add.s64 %rd12, %rd12, %rd1;\n"
    body += "".join(f"mov.u32 %r20, {name}; @%p1 st.global.b32 [%rd12+{4 * place}], %r20;\n" for place, name in enumerate(names))
    found = np.zeros((6, 4, 10), np.int32)
    run(kernel(body, cluster="2, 3"), found, grid=(4, 6))
    for y, x in np.ndindex(6, 4):
        assert found[y, x].tolist() == [x // 2, y // 3, 2, 2, x % 2, y % 3, 2, 3, x % 2 + 2 * (y % 3), 6]


def test_an_mbarrier_of_another_cta() -> None:
    """All CTAs arrive at that of rank 1, whose warps alone wait."""
    made = kernel(f"""
	@%p1 mbarrier.init.shared::cta.b64 [%r8], 4;
	fence.mbarrier_init.release.cluster;
	{SYNC}
	mov.b32 %r7, 1;
	mapa.shared::cluster.u32 %r9, %r8, %r7;
	getctarank.shared::cluster.u32 %r20, %r9;
	getctarank.shared::cluster.u32 %r21, %r8;
	@%p1 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r9];
	setp.ne.s32 %p3, %r6, 1;
	@%p3 bra $L_end;
	{WAIT}
$L_end:
	shl.b32 %r21, %r21, 4;
	or.b32 %r20, %r20, %r21;
	st.global.b32 [%rd11], %r20;
	{SYNC}""", cluster="4")  # fmt: skip
    found = np.zeros(128, np.int32)
    run(made, found, grid=(4,))
    assert found.tolist() == [1 + 16 * rank for rank in range(4) for _ in range(32)]


@pytest.mark.parametrize("kind", ["box", "bytes"])
def test_a_copy_for_several_ctas(kind: str) -> None:
    """Each CTA waits at its own mbarrier; one asks for all, into 1024 of each; the third of three gets nothing."""
    everywhere = "shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
    copy = {
        "box": f"cp.async.bulk.tensor.1d.{everywhere} [%r9], [%rd3, {{%r20}}], [%r8], %rs1",
        "bytes": f"cp.async.bulk.{everywhere} [%r9], [%rd4], 128, [%r8], %rs1",
    }[kind]
    made = kernel(f"""
	mov.b32 %r30, k_0; cvt.u64.u32 %rd2, %r30; cvta.param.u64 %rd3, %rd2;
	add.s64 %rd4, %rd1, 384;
	@%p1 mbarrier.init.shared::cta.b64 [%r8], 1;
	{SYNC}
	setp.eq.s32 %p4, %r6, 2;
	@%p4 bra $L_out;
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], 128;
	setp.eq.s32 %p3, %r6, 1;
	and.pred %p3, %p3, %p1;
	mov.b32 %r20, 32;
	add.s32 %r9, %r8, 1024;
	mov.b16 %rs1, 3;
	@%p3 {copy};
	{WAIT}
$L_out:
	mad.lo.s32 %r9, %r1, 4, %r8;
	ld.shared.b32 %r21, [%r9+1024];
	st.global.b32 [%rd11], %r21;
	{SYNC}""", cluster="3")  # fmt: skip
    raw = np.zeros(256 + 16, np.int32)
    start = -(raw.ctypes.data // 4) % 4
    array = raw[start : start + 256]
    array[96:128] = np.arange(1000, 1032)
    tensor = tensor_map(array.ctypes.data + 256, (64,), (), (32,), element=3)
    run(made, array, grid=(3,), tensor=tensor)
    assert np.array_equal(array[:96].reshape(3, 32), [np.arange(1000, 1032), np.arange(1000, 1032), np.zeros(32)])


def test_what_clusters_cannot_have() -> None:
    made = kernel("mapa.shared::cluster.u32 %r20, %r8, %r1; ld.shared::cluster.b32 %r21, [%r20];")
    with pytest.raises(KernelError, match=r"outside the memory.* lane 2, at `ld.shared::cluster"):
        run(made, np.zeros(4, np.int32), grid=(2,))
    with pytest.raises(OperandError, match=r"k: a grid of \(3, 1, 1\) CTAs is not made of clusters of \(2, 1, 1\)"):
        run(made, np.zeros(4, np.int32), grid=(3,))
    with pytest.raises(OperandError, match="clusters of 20 CTAs"):
        kernel("", cluster="20")
    assert kernel("", cluster="").cluster == (1, 1, 1)
