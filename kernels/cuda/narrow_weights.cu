// Narrow weights: f16 or bf16 activations times INT8 or e4m3, and e4m3 activations times INT4, as W8A16 and W4A8 (FP8) have them.
//
// A warp makes 16 x 8 of the result, a CTA of four warps 64 x 8. Words of weights hold neighbours of K, as the Triton kernels take them: a
// lane's codes of a fragment of mma.sync lie in one word each. They are dequantized in registers.

// Two floats, rounded to f16 or bf16, in a register; the first in the low half.
template <bool BF16> __device__ __forceinline__ unsigned pair(float low, float high) {
    unsigned found;
    if constexpr (BF16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
    return found;
}

__device__ __forceinline__ float of_f16(unsigned short bits) {
    float found;
    asm("cvt.f32.f16 %0, %1;" : "=f"(found) : "h"(bits));
    return found;
}

// A scale in the type of the activations, as a float.
template <bool BF16> __device__ __forceinline__ float scale_as(unsigned short bits) {
    const float scale = of_f16(bits);
    if constexpr (BF16) return __uint_as_float(pair<true>(0.0f, scale) & 0xffff0000u);
    return scale;
}

// The lowest byte of a word as a number: its bits moved to where a float has them are a 2^120th of an e4m3, subnormals too.
template <bool E4M3> __device__ __forceinline__ float of_byte(unsigned byte) {
    if constexpr (E4M3)
        return __fmul_rn(__uint_as_float((byte & 0x80u) << 24 | (byte & 0x7fu) << 20), __uint_as_float((120u + 127u) << 23));
    return (float)(int)(signed char)byte;
}

template <bool BF16>
__device__ __forceinline__ void multiply16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (BF16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// x (M, K), words (K / 4, N), scales (K / group, N), or (1, N) where group is 0: then the sums are multiplied. K and group multiples of 16.
template <bool BF16, bool E4M3>
__device__ __forceinline__ void w8a16(const unsigned short *x, const unsigned *words, const unsigned short *scales, float *out, int M, int N,
                                      int K, int group) {
    const int lane = threadIdx.x % 32, row0 = blockIdx.y * 64 + threadIdx.x / 32 * 16, column0 = blockIdx.x * 8;
    const int row = row0 + lane / 4, column = column0 + lane / 4, place = lane % 4 * 2;
    float d[4] = {}, scale = 1.0f;
    for (int start = 0; start < K; start += 16) {
        unsigned a[4], b[2];
        for (int part = 0; part < 4; part++) {
            const int at = row + part % 2 * 8;
            a[part] = at < M ? *(const unsigned *)(x + (long long)at * K + start + place + part / 2 * 8) : 0;
        }
        if (group && start % group == 0) scale = scale_as<BF16>(scales[(long long)(start / group) * N + column]);
        for (int part = 0; part < 2; part++) {
            const unsigned two = words[(long long)((start + place) / 4 + 2 * part) * N + column] >> place % 4 * 8;
            // The product is exact in a float, and rounded once.
            b[part] = pair<BF16>(__fmul_rn(of_byte<E4M3>(two), scale), __fmul_rn(of_byte<E4M3>(two >> 8), scale));
        }
        multiply16<BF16>(d, a, b);
    }
    for (int half = 0; half < 2; half++)
        if (row + 8 * half < M)
            for (int side = 0; side < 2; side++) {
                const int to = column0 + place + side;
                const float sum = d[2 * half + side];
                out[(long long)(row + 8 * half) * N + to] = group ? sum : __fmul_rn(sum, of_f16(scales[to]));
            }
}

#define W8A16(NAME, BF16, E4M3)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(128) NAME(const unsigned short *x, const unsigned *words, const unsigned short *scales, \
                                                           float *out, int M, int N, int K, int group) {                                 \
        w8a16<BF16, E4M3>(x, words, scales, out, M, N, K, group);                                                                        \
    }

W8A16(w8a16_float16_int8, false, false)
W8A16(w8a16_float16_e4m3, false, true)
W8A16(w8a16_bfloat16_int8, true, false)
W8A16(w8a16_bfloat16_e4m3, true, true)

#if __CUDA_ARCH__ >= 890

// Four INT4 codes, two's complement, as e4m3: sign and magnitude are its bits.
__device__ __forceinline__ unsigned four_e4m3(unsigned codes) {
    const unsigned bytes = (codes & 0xfu) | (codes & 0xf0u) << 4 | (codes & 0xf00u) << 8 | (codes & 0xf000u) << 12;
    const unsigned negative = bytes >> 3 & 0x01010101u;
    return ((bytes ^ negative * 15) + negative) | negative << 7;
}

// x (M, K), words (K / 8, N), scales (K / group, N) or, where group is 0, (1, N); they hold the 512. K and group multiples of 32.
extern "C" __global__ void __launch_bounds__(128)
w4a8_fp8(const unsigned char *x, const float *x_scales, const unsigned *words, const unsigned short *scales, float *out, int M, int N,
         int K, int group) {
    const int lane = threadIdx.x % 32, row0 = blockIdx.y * 64 + threadIdx.x / 32 * 16, column0 = blockIdx.x * 8;
    const int row = row0 + lane / 4, column = column0 + lane / 4, place = lane % 4 * 4, to = column0 + lane % 4 * 2;
    float d[4] = {}, total[4] = {};
    for (int start = 0; start < K; start += 32) {
        unsigned a[4], b[2];
        for (int part = 0; part < 4; part++) {
            const int at = row + part % 2 * 8;
            a[part] = at < M ? *(const unsigned *)(x + (long long)at * K + start + place + part / 2 * 16) : 0;
        }
        for (int part = 0; part < 2; part++)
            b[part] = four_e4m3(words[(long long)((start + place) / 8 + 2 * part) * N + column] >> place % 8 * 4);
        asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        if (group && (start + 32) % group == 0)
            for (int part = 0; part < 4; part++) {
                total[part] = __fmaf_rn(d[part], of_f16(scales[(long long)(start / group) * N + to + part % 2]), total[part]);
                d[part] = 0.0f;
            }
    }
    for (int half = 0; half < 2; half++)
        if (row + 8 * half < M)
            for (int side = 0; side < 2; side++) {
                const int part = 2 * half + side;
                const float rows = x_scales[row + 8 * half];
                const float found = group ? __fmul_rn(total[part], rows)
                                          : __fmul_rn(__fmul_rn(d[part], rows), of_f16(scales[to + side]));
                out[(long long)(row + 8 * half) * N + to + side] = found;
            }
}

#endif
