// W4A16: f16 activations times INT4 weights in groups, with the arithmetic of Marlin's kernel.
//
// A CTA of four warps makes 64 x 64 of the result; K goes by 64 through STAGES buffers that cp.async fills. Weights lie as the fragments of
// mma.sync take them (mmabits.kernels.cuda.w4a16.pack): a word has the eight codes that a lane needs for 16 of K and 16 columns. Dequantized
// in registers: a code becomes 1024 + code by its bits alone, zero and scale follow as one exact difference and one rounded product.

static constexpr int TILE = 64, STEP = 64, STAGES = 4;
static constexpr int X_BYTES = TILE * STEP * 2, CODE_BYTES = STEP / 16 * (TILE / 16) * 32 * 4;

__device__ __forceinline__ unsigned shared_address(const void *place) { return (unsigned)__cvta_generic_to_shared(place); }

__device__ __forceinline__ void copy16(unsigned to, const void *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

// Two codes from bits 0-3 and 16-19 of a word, less their zero point; `zero` is 1024 + the zero point, twice.
__device__ __forceinline__ unsigned low_codes(unsigned word, unsigned zero) {
    unsigned found;
    asm("{ .reg .b32 t; lop3.b32 t, %1, 0x000f000f, 0x64006400, 0xea; sub.rn.f16x2 %0, t, %2; }" : "=r"(found) : "r"(word), "r"(zero));
    return found;
}

// Likewise from bits 4-7 and 20-23, which are sixteen times as large; `less` is -64 less the zero point, twice.
__device__ __forceinline__ unsigned high_codes(unsigned word, unsigned less) {
    unsigned found;
    asm("{ .reg .b32 t; lop3.b32 t, %1, 0x00f000f0, 0x64006400, 0xea; fma.rn.f16x2 %0, t, %3, %2; }"
        : "=r"(found) : "r"(word), "r"(less), "r"(0x2c002c00));  // 1 / 16, twice
    return found;
}

__device__ __forceinline__ unsigned scaled(unsigned codes, unsigned scale) {
    unsigned found;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(found) : "r"(codes), "r"(scale));
    return found;
}

__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// x (M, K), codes [K / 16][N / 16][32], scales (K / group, N), zeros (K / group, N), out (M, N); group a multiple of 64, as N and K are.
extern "C" __global__ void __launch_bounds__(128)
w4a16(const unsigned short *x, const unsigned *codes, const unsigned short *scales, const unsigned char *zeros, float *out,
      int M, int N, int K, int group) {
    extern __shared__ __align__(128) unsigned char buffers[];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE, steps = K / STEP;
    const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
    const unsigned base = shared_address(buffers);

    auto fill = [&](int step) {
        const unsigned place = base + step % STAGES * (X_BYTES + CODE_BYTES);
        for (int part = thread; part < TILE * STEP / 8; part += 128) {  // rows of 128 bytes, their pieces of 16 exchanged
            const int row = part / 8, piece = part % 8;
            const bool inside = row0 + row < M;
            const unsigned short *from = x + (long long)(inside ? row0 + row : 0) * K + step * STEP + piece * 8;
            copy16(place + row * 128 + ((piece ^ row % 8) << 4), from, inside);
        }
        const unsigned *from = codes + ((long long)(step * (STEP / 16) + thread / 32) * (N / 16) + column0 / 16) * 32 + thread % 32 * 4;
        copy16(place + X_BYTES + thread * 16, from, true);
    };

    float sums[2][4][4] = {};
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) fill(step);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    unsigned scale[4] = {}, zero[4] = {}, less[4] = {};
    for (int step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();  // the step is there, and everyone is done with the buffer that is filled next
        if (step + STAGES - 1 < steps) fill(step + STAGES - 1);
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (step * STEP % group == 0) {
            const long long at = (long long)(step * STEP / group) * N + column0 + warp_column + lane / 4;
            for (int part = 0; part < 4; part++) {
                const unsigned one = scales[at + 8 * part], point = zeros[at + 8 * part];
                scale[part] = one * 0x10001u;
                zero[part] = (0x6400u + point) * 0x10001u;
                less[part] = (0xd400u + (point << 4)) * 0x10001u;
            }
        }
        const unsigned place = base + step % STAGES * (X_BYTES + CODE_BYTES);
        const unsigned *words = (const unsigned *)(buffers + step % STAGES * (X_BYTES + CODE_BYTES) + X_BYTES);
        for (int k = 0; k < STEP / 16; k++) {
            unsigned a[2][4];
            for (int part = 0; part < 2; part++) {
                const int row = warp_row + 16 * part + lane % 16, piece = 2 * k + lane / 16;
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(a[part][0]), "=r"(a[part][1]), "=r"(a[part][2]), "=r"(a[part][3])
                             : "r"(place + row * 128 + ((piece ^ row % 8) << 4)) : "memory");
            }
            for (int pair = 0; pair < 2; pair++) {
                const unsigned word = words[(k * (TILE / 16) + warp_column / 16 + pair) * 32 + lane];
                const int first = 2 * pair, second = first + 1;
                const unsigned b[4] = {
                    scaled(low_codes(word, zero[first]), scale[first]), scaled(high_codes(word, less[first]), scale[first]),
                    scaled(low_codes(word >> 8, zero[second]), scale[second]), scaled(high_codes(word >> 8, less[second]), scale[second])};
                for (int part = 0; part < 2; part++) {
                    multiply(sums[part][first], a[part], b[0], b[1]);
                    multiply(sums[part][second], a[part], b[2], b[3]);
                }
            }
        }
    }
    for (int part = 0; part < 2; part++)
        for (int half = 0; half < 2; half++) {
            const int row = row0 + warp_row + 16 * part + 8 * half + lane / 4;
            if (row < M)
                for (int tile = 0; tile < 4; tile++) {
                    float *to = out + (long long)row * N + column0 + warp_column + 8 * tile + lane % 4 * 2;
                    to[0] = sums[part][tile][2 * half];
                    to[1] = sums[part][tile][2 * half + 1];
                }
        }
}
