// FP8 in tiles, as DeepGEMM multiplies it: TMA into shared memory, wgmma from zero for every 128 of K, then one fused multiply-add in registers
// with the product of both scales.
//
// A CTA makes 64 x 64 of the result. Warps 0 to 3 are the warpgroup that multiplies; one lane of warp 4 asks for the copies, STAGES ahead.

static constexpr int ROWS = 64, COLUMNS = 64, STEP = 128, STAGES = 4;
static constexpr int X_BYTES = ROWS * STEP, W_BYTES = COLUMNS * STEP;

struct alignas(64) TensorMap { unsigned long long words[16]; };

__device__ __forceinline__ unsigned shared_address(const void *place) { return (unsigned)__cvta_generic_to_shared(place); }

__device__ __forceinline__ void wait(unsigned barrier, unsigned parity) {
    asm volatile("{ .reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again; }" ::"r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ void copy_box(unsigned to, const TensorMap *map, int k, int row, unsigned barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(to), "l"(map), "r"(k), "r"(row), "r"(barrier) : "memory");
}

// A K-major matrix with rows of 128 bytes, swizzled by 128.
__device__ __forceinline__ unsigned long long described(unsigned place) {
    return (unsigned long long)((place & 0x3ffff) >> 4) | 1ull << 16 | (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
}

__device__ __forceinline__ void multiply(float (&d)[COLUMNS / 2], unsigned long long x, unsigned long long w, int adds) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31},\n"
                 "%32, %33, p, 1, 1; }"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
                 : "l"(x), "l"(w), "r"(adds));
}

// x (M, K) and w (N, K) e4m3 by their maps, boxes of 64 x 128; x_scales (M, K / 128), w_scales (K / 128, ceil(N / 128)), out (M, N).
extern "C" __global__ void __launch_bounds__(160)
fp8_blockwise(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const float *x_scales, const float *w_scales,
              float *out, int M, int N, int K) {
    extern __shared__ __align__(1024) unsigned char buffers[];
    __shared__ __align__(8) unsigned long long full[STAGES], empty[STAGES];
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, blocks = K / STEP;
    const int row0 = blockIdx.y * ROWS, column0 = blockIdx.x * COLUMNS;
    const unsigned base = shared_address(buffers), fulls = shared_address(full), empties = shared_address(empty);
    if (thread == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(fulls + 8 * stage) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 128;" ::"r"(empties + 8 * stage) : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (warp == 4) {
        if (lane == 0)
            for (int block = 0; block < blocks; block++) {
                const int stage = block % STAGES;
                const unsigned place = base + stage * (X_BYTES + W_BYTES), barrier = fulls + 8 * stage;
                if (block >= STAGES) wait(empties + 8 * stage, (block / STAGES - 1) & 1);
                asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(X_BYTES + W_BYTES) : "memory");
                copy_box(place, &x, block * STEP, row0, barrier);
                copy_box(place + X_BYTES, &w, block * STEP, column0, barrier);
            }
        return;
    }
    const int row = row0 + 16 * warp + lane / 4, tiles = (N + 127) / 128;
    float total[COLUMNS / 2] = {};
    for (int block = 0; block < blocks; block++) {
        const int stage = block % STAGES;
        const unsigned place = base + stage * (X_BYTES + W_BYTES);
        const float of_w = w_scales[block * tiles + column0 / 128];
        const float upper = row < M ? __fmul_rn(x_scales[(long long)row * blocks + block], of_w) : 0;
        const float lower = row + 8 < M ? __fmul_rn(x_scales[(long long)(row + 8) * blocks + block], of_w) : 0;
        wait(fulls + 8 * stage, block / STAGES & 1);
        float sums[COLUMNS / 2];
        for (int place_of = 0; place_of < COLUMNS / 2; place_of++) sums[place_of] = 0;
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int part = 0; part < STEP / 32; part++)
            multiply(sums, described(place) + 2 * part, described(place + X_BYTES) + 2 * part, part != 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(empties + 8 * stage) : "memory");
#pragma unroll
        for (int each = 0; each < COLUMNS / 2; each++) total[each] = __fmaf_rn(sums[each], each & 2 ? lower : upper, total[each]);
    }
#pragma unroll
    for (int each = 0; each < COLUMNS / 2; each++) {
        const int at = row + (each & 2 ? 8 : 0), column = column0 + each / 4 * 8 + lane % 4 * 2 + (each & 1);
        if (at < M && column < N) out[(long long)at * N + column] = total[each];
    }
}
