// MXFP8 and NVFP4 on tcgen05, block scales in tensor memory; with GROUP = 2 two CTAs of a cluster multiply together.
//
// A CTA holds 128 rows of the result and 128 columns; a step is 128 bytes of K. One lane of warp 0 asks for the copies of TMA, STAGES ahead,
// one lane of warp 1 (of a pair: of the first CTA) for the copies of scales into tensor memory and for the products. Scales come as
// cuBLAS has them: blocks of 128 rows and 4 along K, which 32 lanes of tensor memory hold in 4 columns.

#ifdef NVFP4
static constexpr int SCALE_BLOCKS = 4;
#define PRODUCT "kind::mxf4nvf4.block_scale.block16"
static constexpr unsigned TYPES = 1 << 7 | 1 << 10;  // e2m1, scales of ue4m3
#else
static constexpr int SCALE_BLOCKS = 1;
#define PRODUCT "kind::mxf8f6f4.block_scale.block32"
static constexpr unsigned TYPES = A_TYPE << 7 | B_TYPE << 10 | 1 << 23;  // 0 of e4m3, 1 of e5m2; scales of ue8m0
#endif
#if GROUP == 2
#define PAIR "cta_group::2"
#else
#define PAIR "cta_group::1"
#endif

static constexpr int ROWS = 128, COLUMNS = 128, WIDTH = 128, STAGES = 3;
static constexpr int A_BYTES = ROWS * WIDTH, B_BYTES = COLUMNS / GROUP * WIDTH, SCALE_BYTES = SCALE_BLOCKS * 512;
static constexpr int STAGE_BYTES = A_BYTES + B_BYTES + 2048 * 2;  // each part at a multiple of 1024
static constexpr int A_SCALES = COLUMNS, B_SCALES = COLUMNS + 4 * SCALE_BLOCKS;
static constexpr unsigned INSTRUCTION = TYPES | COLUMNS / 8 << 17 | (unsigned)(ROWS * GROUP / 16) << 24;

struct alignas(64) TensorMap { unsigned long long words[16]; };

__device__ __forceinline__ unsigned shared_address(const void *place) { return (unsigned)__cvta_generic_to_shared(place); }

__device__ __forceinline__ void wait(unsigned barrier, unsigned parity) {
    asm volatile("{ .reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again; }" ::"r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ void copy_box(unsigned to, const TensorMap *map, int inner, int outer, unsigned barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(to), "l"(map), "r"(inner), "r"(outer), "r"(barrier) : "memory");
}

// A K-major matrix with rows of 128 bytes, swizzled by 128.
__device__ __forceinline__ unsigned long long of_elements(unsigned place) {
    return (unsigned long long)((place & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 46 | 2ull << 61;
}

// 32 rows of 16 bytes, one after another.
__device__ __forceinline__ unsigned long long of_scales(unsigned place) {
    return (unsigned long long)((place & 0x3ffff) >> 4) | 1ull << 16 | 8ull << 32 | 1ull << 46;
}

__device__ __forceinline__ void copy_scales(unsigned column, unsigned long long matrix) {
    asm volatile("tcgen05.cp." PAIR ".32x128b.warpx4 [%0], %1;" ::"r"(column), "l"(matrix) : "memory");
}

__device__ __forceinline__ void multiply(unsigned d, unsigned long long a, unsigned long long b, unsigned instruction, unsigned a_scales,
                                         unsigned b_scales, int adds) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0;\n"
                 "tcgen05.mma." PAIR "." PRODUCT " [%0], %1, %2, %3, [%4], [%5], p; }"
                 ::"r"(d), "l"(a), "l"(b), "r"(instruction), "r"(a_scales), "r"(b_scales), "r"(adds) : "memory");
}

// Tells a barrier, of a pair in both CTAs, when everything before it is done.
__device__ __forceinline__ void commit(unsigned barrier) {
#if GROUP == 2
    asm volatile("tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%0], %1;"
                 ::"r"(barrier), "h"((unsigned short)3) : "memory");
#else
    asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(barrier) : "memory");
#endif
}

__device__ __forceinline__ void everyone() {
#if GROUP == 2
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// a (M, K) and b (N, K) by their maps, boxes of 128 and 128 / GROUP rows of 128 bytes; their scales by maps of blocks of 512 bytes; out (M, N)
// is the sums times alpha. steps: of 128 bytes along K.
extern "C" __global__ void __launch_bounds__(128)
block_scaled(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap a_scales,
             const __grid_constant__ TensorMap b_scales, float *out, int M, int N, int steps, float alpha) {
    extern __shared__ __align__(1024) unsigned char buffers[];
    __shared__ __align__(8) unsigned long long full[STAGES], empty[STAGES], peer[STAGES], done;
    __shared__ unsigned held;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, rank = blockIdx.x % GROUP;
    const int row0 = blockIdx.x * ROWS, column0 = blockIdx.y * COLUMNS;
    const unsigned base = shared_address(buffers), fulls = shared_address(full), empties = shared_address(empty);
    const unsigned peers = shared_address(peer), end = shared_address(&done);
    if (thread == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(fulls + 8 * stage) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(empties + 8 * stage) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(peers + 8 * stage) : "memory");
        }
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(end) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (warp == 2) {
        asm volatile("tcgen05.alloc." PAIR ".sync.aligned.shared::cta.b32 [%0], 256;" ::"r"(shared_address(&held)) : "memory");
        asm volatile("tcgen05.relinquish_alloc_permit." PAIR ".sync.aligned;");
    }
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
    everyone();
    __syncthreads();
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
    const unsigned tensor = held;
    if (thread == 0)
        for (int step = 0; step < steps; step++) {
            const int stage = step % STAGES;
            const unsigned place = base + stage * STAGE_BYTES, barrier = fulls + 8 * stage;
            if (step >= STAGES) wait(empties + 8 * stage, (step / STAGES - 1) & 1);
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                         ::"r"(barrier), "r"(A_BYTES + B_BYTES + 2 * SCALE_BYTES) : "memory");
            copy_box(place, &a, step * WIDTH, row0, barrier);
            copy_box(place + A_BYTES, &b, step * WIDTH, column0 + rank * (COLUMNS / GROUP), barrier);
            copy_box(place + A_BYTES + B_BYTES, &a_scales, 0, (blockIdx.x * steps + step) * SCALE_BLOCKS, barrier);
            copy_box(place + A_BYTES + B_BYTES + 2048, &b_scales, 0, (blockIdx.y * steps + step) * SCALE_BLOCKS, barrier);
        }
#if GROUP == 2
    if (thread == 32 && rank == 1)  // tells the first CTA that this one's part of a step is there
        for (int step = 0; step < steps; step++) {
            const int stage = step % STAGES;
            wait(fulls + 8 * stage, step / STAGES & 1);
            asm volatile("{ .reg .b32 first; mapa.shared::cluster.u32 first, %0, 0;\n"
                         "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [first]; }" ::"r"(peers + 8 * stage) : "memory");
        }
#endif
    if (thread == 32 && rank == 0) {
        for (int step = 0; step < steps; step++) {
            const int stage = step % STAGES;
            const unsigned place = base + stage * STAGE_BYTES, scales = place + A_BYTES + B_BYTES;
            wait(fulls + 8 * stage, step / STAGES & 1);
#if GROUP == 2
            wait(peers + 8 * stage, step / STAGES & 1);
#endif
            asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
            for (int block = 0; block < SCALE_BLOCKS; block++) {
                copy_scales(tensor + A_SCALES + 4 * block, of_scales(scales + 512 * block));
                copy_scales(tensor + B_SCALES + 4 * block, of_scales(scales + 2048 + 512 * block));
            }
            for (int part = 0; part < 4; part++) {  // 32 bytes of K each; of MXFP8 a byte of each word of scales
                const unsigned byte = SCALE_BLOCKS == 1 ? part : 0, columns = SCALE_BLOCKS == 1 ? 0 : 4 * part;
                multiply(tensor, of_elements(place) + 2 * part, of_elements(place + A_BYTES) + 2 * part, INSTRUCTION | byte << 29 | byte << 4,
                         tensor + A_SCALES + columns, tensor + B_SCALES + columns, step + part != 0);
            }
            commit(empties + 8 * stage);
        }
        commit(end);
    }
    __syncwarp();
    wait(end, 0);
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
    const int row = row0 + thread;
    for (int first = 0; first < COLUMNS; first += 8) {
        unsigned found[8];
        asm volatile("tcgen05.ld.sync.aligned.32x32b.x8.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];\ntcgen05.wait::ld.sync.aligned;"
                     : "=r"(found[0]), "=r"(found[1]), "=r"(found[2]), "=r"(found[3]), "=r"(found[4]), "=r"(found[5]), "=r"(found[6]),
                       "=r"(found[7]) : "r"(tensor + (warp << 21) + first) : "memory");
        for (int each = 0; each < 8; each++)
            if (row < M && column0 + first + each < N)
                out[(long long)row * N + column0 + first + each] = __fmul_rn(__uint_as_float(found[each]), alpha);
    }
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
    everyone();
    if (warp == 2) asm volatile("tcgen05.dealloc." PAIR ".sync.aligned.b32 %0, 256;" ::"r"(tensor));
}
