// Products of narrow integers with scales for rows and columns: u8 x s8 with zero points, and s4 x s4.
//
// A warp makes 16 x 8 of the result, a CTA of four warps 64 x 8. Fragments of mma.sync come straight from memory, 32 bytes of K a step: both
// operands have K in rows, and a lane's four bytes of a fragment are neighbours, as 4-bit operands of twice the K are, too.

template <bool S4>
__device__ __forceinline__ void multiply(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (S4)
        asm("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four bytes, each added: what a row's zero point of the other operand is multiplied by.
__device__ __forceinline__ int sum_of(unsigned four) {
    return (int)((four & 255) + (four >> 8 & 255) + (four >> 16 & 255) + (four >> 24));
}

// sums of 16 x 8, and of x over K where `over_k` is there; x (M, K), w (N, K), in bytes, K of them a multiple of 32.
template <bool S4>
__device__ __forceinline__ void product(int (&d)[4], int (&x_sums)[2], const unsigned char *x, const unsigned char *w, int M, int K,
                                        int row0, int column0) {
    const int lane = threadIdx.x % 32, row = row0 + lane / 4, column = column0 + lane / 4;
    for (int k = lane % 4 * 4; k < K; k += 32) {
        unsigned a[4], b[2];
        for (int part = 0; part < 4; part++) {
            const int at = row + part % 2 * 8;
            a[part] = at < M ? *(const unsigned *)(x + (long long)at * K + k + part / 2 * 16) : 0;
        }
        for (int part = 0; part < 2; part++) b[part] = *(const unsigned *)(w + (long long)column * K + k + part * 16);
        multiply<S4>(d, a, b);
        if constexpr (!S4)
            for (int part = 0; part < 4; part++) x_sums[part % 2] += sum_of(a[part]);
    }
}

// What stands at row and column of the result, scaled; two roundings besides that of the conversion.
__device__ __forceinline__ float scaled(int total, float row_scale, float column_scale) {
    return __fmul_rn(__fmul_rn(__int2float_rn(total), row_scale), column_scale);
}

// u8 x s8: total = sum - zx sum(w) - zw (sum(x) - K zx), in 32 bits, which wrap.
extern "C" __global__ void __launch_bounds__(128)
asymmetric(const unsigned char *x, const float *x_scales, const int *x_zeros, const unsigned char *w, const float *w_scales,
           const int *w_sums, const int *w_zeros, float *out, int M, int N, int K) {
    const int lane = threadIdx.x % 32, row0 = blockIdx.y * 64 + threadIdx.x / 32 * 16, column0 = blockIdx.x * 8;
    int d[4] = {}, x_sums[2] = {};
    product<false>(d, x_sums, x, w, M, K, row0, column0);
    for (int half = 0; half < 2; half++) {
        for (int mask = 1; mask < 4; mask *= 2) x_sums[half] += __shfl_xor_sync(~0u, x_sums[half], mask);
        const int row = row0 + 8 * half + lane / 4;
        if (row < M)
            for (int side = 0; side < 2; side++) {
                const int column = column0 + lane % 4 * 2 + side, zero = x_zeros[row];
                const int total = d[2 * half + side] - zero * w_sums[column] - w_zeros[column] * (x_sums[half] - K * zero);
                out[(long long)row * N + column] = scaled(total, x_scales[row], w_scales[column]);
            }
    }
}

// s4 x s4; K in bytes, that is half the elements.
extern "C" __global__ void __launch_bounds__(128)
w4a4(const unsigned char *x, const float *x_scales, const unsigned char *w, const float *w_scales, float *out, int M, int N, int K) {
    const int lane = threadIdx.x % 32, row0 = blockIdx.y * 64 + threadIdx.x / 32 * 16, column0 = blockIdx.x * 8;
    int d[4] = {}, unused[2];
    product<true>(d, unused, x, w, M, K, row0, column0);
    for (int half = 0; half < 2; half++) {
        const int row = row0 + 8 * half + lane / 4;
        if (row < M)
            for (int side = 0; side < 2; side++) {
                const int column = column0 + lane % 4 * 2 + side;
                out[(long long)row * N + column] = scaled(d[2 * half + side], x_scales[row], w_scales[column]);
            }
    }
}
