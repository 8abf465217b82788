// SageAttention's FP8 form: INT8 scores, P and V in e4m3, sums of 64 keys from zero in the tensor cores and of all keys in registers.
//
// A CTA of four warps has 64 queries of a head, a warp 16 of them; keys and values come 64 at a time through two buffers that cp.async
// fills. Scores stay in registers and become the left operand of P V as they lie: of every 16 keys a lane has 0, 1, 8 and 9 from twice its
// place on, which is the order that values have in memory (mmabits.kernels.cuda.sage2).

static constexpr int QUERIES = 64, KEYS = 64, LINE = WIDTH + 16, V_LINE = KEYS + 16;  // lines are padded, in bytes
static constexpr int K_BYTES = KEYS * LINE, V_BYTES = WIDTH * V_LINE;
#define INFINITY_F __int_as_float(0x7f800000)

__device__ __forceinline__ unsigned shared_address(const void *place) { return (unsigned)__cvta_generic_to_shared(place); }

__device__ __forceinline__ void copy16(unsigned to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ unsigned word(const unsigned char *line, int place) { return *(const unsigned *)(line + place); }

__device__ __forceinline__ void multiply_s8(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_e4m3(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float exponential(float power) {
    float found;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(power));
    return found;
}

// Four numbers as e4m3, the first in the low byte.
__device__ __forceinline__ unsigned packed(float first, float second, float third, float fourth) {
    unsigned found;
    asm("{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, %2, %1; cvt.rn.satfinite.e4m3x2.f32 high, %4, %3; mov.b32 %0, {low, high}; }"
        : "=r"(found) : "f"(first), "f"(second), "f"(third), "f"(fourth));
    return found;
}

// Among the four lanes of a row.
__device__ __forceinline__ float largest(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffff, value, 2));
}

__device__ __forceinline__ float summed(float value) {
    value = __fadd_rn(value, __shfl_xor_sync(0xffffffff, value, 1));
    return __fadd_rn(value, __shfl_xor_sync(0xffffffff, value, 2));
}

// q (heads, queries, WIDTH), k (heads / share, keys, WIDTH) INT8, both padded to blocks of 64 rows; v (heads / share, WIDTH, keys) e4m3; scales
// of 64 rows of q and k, of the output's columns (heads / share, WIDTH); out (heads, queries, WIDTH).
extern "C" __global__ void __launch_bounds__(128)
sage2(const unsigned char *q, const unsigned char *k, const unsigned char *v, const float *q_scales, const float *k_scales,
      const float *out_scales, float *out, int queries, int keys, int padded_queries, int padded_keys, int share, int causal) {
    extern __shared__ __align__(128) unsigned char buffers[];
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, head = blockIdx.y, own = head / share;
    const int first = blockIdx.x * QUERIES, row = first + 16 * warp + lane / 4, pair = lane % 4;
    const int end = causal && first + QUERIES < keys ? first + QUERIES : keys, blocks = (end + KEYS - 1) / KEYS;
    k += (long long)own * padded_keys * WIDTH;
    v += (long long)own * WIDTH * padded_keys;

    auto fill = [&](int block) {
        const unsigned place = shared_address(buffers) + block % 2 * (K_BYTES + V_BYTES);
        for (int part = thread; part < KEYS * WIDTH / 16; part += 128) {
            const int line = part / (WIDTH / 16), piece = part % (WIDTH / 16);
            copy16(place + line * LINE + piece * 16, k + (long long)(block * KEYS + line) * WIDTH + piece * 16);
        }
        for (int part = thread; part < KEYS * WIDTH / 16; part += 128) {
            const int line = part / (KEYS / 16), piece = part % (KEYS / 16);
            copy16(place + K_BYTES + line * V_LINE + piece * 16, v + (long long)line * padded_keys + block * KEYS + piece * 16);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    unsigned of_q[WIDTH / 32][4];
    const unsigned char *line = q + ((long long)head * padded_queries + row) * WIDTH;
    for (int part = 0; part < WIDTH / 32; part++)
        for (int each = 0; each < 4; each++) of_q[part][each] = word(line + each % 2 * 8 * WIDTH, part * 32 + each / 2 * 16 + pair * 4);
    const float q_scale = q_scales[head * (padded_queries / QUERIES) + blockIdx.x];
    float output[WIDTH / 8][4] = {}, top[2] = {-INFINITY_F, -INFINITY_F}, total[2] = {};
    fill(0);
    for (int block = 0; block < blocks; block++) {
        if (block + 1 < blocks) fill(block + 1);
        else asm volatile("cp.async.commit_group;" ::: "memory");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        const unsigned char *of_k = buffers + block % 2 * (K_BYTES + V_BYTES), *of_v = of_k + K_BYTES;
        const float scale = __fmul_rn(q_scale, k_scales[own * (padded_keys / KEYS) + block]);
        float p[KEYS / 8][4], most[2] = {-INFINITY_F, -INFINITY_F};
        for (int tile = 0; tile < KEYS / 8; tile++) {
            int sums[4] = {};
            const unsigned char *key = of_k + (tile * 8 + lane / 4) * LINE;
            for (int part = 0; part < WIDTH / 32; part++)
                multiply_s8(sums, of_q[part], word(key, part * 32 + pair * 4), word(key, part * 32 + 16 + pair * 4));
            for (int each = 0; each < 4; each++) {
                const int at = block * KEYS + tile * 8 + pair * 2 + each % 2;
                const bool seen = at < keys && (!causal || at <= row + each / 2 * 8);
                p[tile][each] = seen ? __fmul_rn(__int2float_rn(sums[each]), scale) : -INFINITY_F;
                most[each / 2] = fmaxf(most[each / 2], p[tile][each]);
            }
        }
        for (int half = 0; half < 2; half++) {
            const float higher = fmaxf(top[half], largest(most[half])), alpha = exponential(__fsub_rn(top[half], higher));
            top[half] = higher;
            float tree[KEYS / 8];
            for (int tile = 0; tile < KEYS / 8; tile++) {
                for (int each = 2 * half; each < 2 * half + 2; each++) p[tile][each] = exponential(__fsub_rn(p[tile][each], higher));
                tree[tile] = summed(__fadd_rn(p[tile][2 * half], p[tile][2 * half + 1]));
            }
            for (int step = 1; step < KEYS / 8; step *= 2)
                for (int tile = 0; tile < KEYS / 8; tile += 2 * step) tree[tile] = __fadd_rn(tree[tile], tree[tile + step]);
            total[half] = __fadd_rn(__fmul_rn(total[half], alpha), tree[0]);
            for (int tile = 0; tile < WIDTH / 8; tile++)
                for (int each = 2 * half; each < 2 * half + 2; each++) output[tile][each] = __fmul_rn(output[tile][each], alpha);
        }
        unsigned of_p[KEYS / 32][4];
        for (int part = 0; part < KEYS / 32; part++)
            for (int each = 0; each < 4; each++) {
                const float *left = &p[part * 4 + each / 2 * 2][each % 2 * 2], *right = &p[part * 4 + each / 2 * 2 + 1][each % 2 * 2];
                of_p[part][each] = packed(__fmul_rn(left[0], 448.0f), __fmul_rn(left[1], 448.0f), __fmul_rn(right[0], 448.0f),
                                          __fmul_rn(right[1], 448.0f));
            }
        for (int tile = 0; tile < WIDTH / 8; tile++) {
            float sums[4] = {};
            const unsigned char *column = of_v + (tile * 8 + lane / 4) * V_LINE;
            for (int part = 0; part < KEYS / 32; part++)
                multiply_e4m3(sums, of_p[part], word(column, part * 32 + pair * 4), word(column, part * 32 + 16 + pair * 4));
            for (int each = 0; each < 4; each++) output[tile][each] = __fadd_rn(output[tile][each], sums[each]);
        }
        __syncthreads();  // everyone is done with the buffer that is filled next
    }
    for (int each = 0; each < 4; each++) {
        const int at = row + each / 2 * 8;
        if (at < queries)
            for (int tile = 0; tile < WIDTH / 8; tile++) {
                const int column = tile * 8 + pair * 2 + each % 2;
                out[((long long)head * queries + at) * WIDTH + column] =
                    __fmul_rn(__fdiv_rn(output[tile][each], total[each / 2]), out_scales[own * WIDTH + column]);
            }
    }
}
