"""Kernels in Gluon, Triton's lower language."""

# mypy: ignore-errors
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait


@gluon.jit
def ring(a, b, c, K, num_warps: gl.constexpr):
    """A times B in tiles: copies go to one of two buffers, products take the other."""
    BM: gl.constexpr = a.block_type.shape[0]
    BK: gl.constexpr = a.block_type.shape[1]
    BN: gl.constexpr = b.block_type.shape[1]
    left = gl.allocate_shared_memory(a.dtype, [2] + a.block_type.shape, a.layout)  # noqa: RUF005
    right = gl.allocate_shared_memory(b.dtype, [2] + b.block_type.shape, b.layout)  # noqa: RUF005
    barriers = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(2):
        mbarrier.init(barriers.index(place), count=1)
    i, j = gl.program_id(0) * BM, gl.program_id(1) * BN
    layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, BN, 16])
    total = gl.zeros((BM, BN), dtype=gl.float32, layout=layout)
    phase = 0
    place = 0
    for k in range(0, K, BK):
        barrier = barriers.index(place)
        mbarrier.expect(barrier, a.block_type.nbytes + b.block_type.nbytes)
        tma.async_load(a, [i, k], barrier, left.index(place))
        tma.async_load(b, [k, j], barrier, right.index(place))
        mbarrier.wait(barrier, phase)
        total = warpgroup_mma(left.index(place), right.index(place), total, is_async=True)
        total = warpgroup_mma_wait(num_outstanding=1, deps=(total,))
        place ^= 1
        if place == 0:
            phase ^= 1
    total = warpgroup_mma_wait(num_outstanding=0, deps=(total,))
    out = gl.allocate_shared_memory(c.dtype, c.block_type.shape, c.layout)
    out.store(total.to(c.dtype))
    fence_async_shared()
    tma.async_store(c, [i, j], out)
    tma.store_wait(pendings=0)
