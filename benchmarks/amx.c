// Rates of products of bytes on one thread, in processor time: AMX's tiles beside vpdpbusd, on operands packed as
// emulator/engine/integers.py packs them, without the packing. What it showed stands in docs/how-the-engine-works.md.
//
//     gcc -O3 -march=sapphirerapids benchmarks/amx.c -o /tmp/amx && /tmp/amx      (Linux 5.16 or newer)
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { WIDTH = 32, PANEL = 512, ROWS = 256, TILES = 16, PERMISSION = 0x1023, TILE_DATA = 18 };
static int8_t *A;     // ROWS x PANEL
static int8_t *B;     // TILES of PANEL / 4 x WIDTH x 4
static int32_t *D;    // TILES x ROWS x WIDTH
static double *SUMS;  // the same, of scaled groups
static double *LEFT;  // ROWS x groups: scales
static double *RIGHT; // groups x WIDTH

struct __attribute__((packed)) tiles { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; };

// Tiles 0 to 3: sums. 4 and 5: 16 rows of A, k bytes each. 6 and 7: 16 columns of B, four elements of K together.
static void configure(int k) {
  struct tiles all = {.palette = 1};
  for (int i = 0; i < 8; i++) all.rows[i] = i < 6 ? 16 : k / 4, all.bytes[i] = i == 4 || i == 5 ? k : 64;
  _tile_loadconfig(&all);
}

static inline void multiply_tiles(const int8_t *a, const int8_t *b) {
  _tile_loadd(4, a, PANEL); _tile_loadd(5, a + 16 * PANEL, PANEL);
  _tile_loadd(6, b, 4 * WIDTH); _tile_loadd(7, b + 64, 4 * WIDTH);
  _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7); _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7);
}

static inline void store_tiles(int32_t *d) {
  _tile_stored(0, d, 4 * WIDTH); _tile_stored(1, d + 16, 4 * WIDTH);
  _tile_stored(2, d + 16 * WIDTH, 4 * WIDTH); _tile_stored(3, d + 16 * WIDTH + 16, 4 * WIDTH);
}

static void whole_by_tiles(int unused) {
  (void)unused;
  for (int t = 0; t < TILES; t++) for (int r = 0; r < ROWS; r += 32) {
    int32_t *d = D + (t * ROWS + r) * WIDTH;
    _tile_loadd(0, d, 4 * WIDTH); _tile_loadd(1, d + 16, 4 * WIDTH);
    _tile_loadd(2, d + 16 * WIDTH, 4 * WIDTH); _tile_loadd(3, d + 16 * WIDTH + 16, 4 * WIDTH);
    for (int k = 0; k < PANEL; k += 64) multiply_tiles(A + r * PANEL + k, B + t * PANEL * WIDTH + k * WIDTH);
    store_tiles(d);
  }
}

static inline __m512i four_bytes(const int8_t *a) { int32_t word; memcpy(&word, a, 4); return _mm512_set1_epi32(word); }

static void whole_by_vectors(int unused) { // eight rows of A at once; the terms for a signed A are left out
  (void)unused;
  for (int t = 0; t < TILES; t++) for (int r = 0; r < ROWS; r += 8) {
    int32_t *d = D + (t * ROWS + r) * WIDTH;
    __m512i s[8][2];
    for (int i = 0; i < 8; i++) for (int j = 0; j < 2; j++) s[i][j] = _mm512_loadu_si512(d + i * WIDTH + 16 * j);
    for (int k = 0; k < PANEL; k += 4) {
      const int8_t *b = B + t * PANEL * WIDTH + k * WIDTH;
      __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 64);
      for (int i = 0; i < 8; i++) {
        __m512i a = four_bytes(A + (r + i) * PANEL + k);
        s[i][0] = _mm512_dpbusd_epi32(s[i][0], a, b0), s[i][1] = _mm512_dpbusd_epi32(s[i][1], a, b1);
      }
    }
    for (int i = 0; i < 8; i++) for (int j = 0; j < 2; j++) _mm512_storeu_si512(d + i * WIDTH + 16 * j, s[i][j]);
  }
}

static inline void add_scaled(const int32_t *group, double *sums, double left, const double *right) {
  for (int j = 0; j < WIDTH; j += 8) {
    __m512d v = _mm512_cvtepi32_pd(_mm256_loadu_si256((const void *)(group + j)));
    __m512d scale = _mm512_mul_pd(_mm512_set1_pd(left), _mm512_loadu_pd(right + j));
    _mm512_storeu_pd(sums + j, _mm512_fmadd_pd(v, scale, _mm512_loadu_pd(sums + j)));
  }
}

static void groups_by_tiles(int size) { // each group's sums become float64, times two scales
  static int32_t d[32 * WIDTH] __attribute__((aligned(64)));
  int groups = PANEL / size;
  for (int t = 0; t < TILES; t++) for (int r = 0; r < ROWS; r += 32) for (int g = 0; g < groups; g++) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    multiply_tiles(A + r * PANEL + g * size, B + t * PANEL * WIDTH + g * size * WIDTH);
    store_tiles(d);
    for (int i = 0; i < 32; i++)
      add_scaled(d + i * WIDTH, SUMS + (t * ROWS + r + i) * WIDTH, LEFT[(r + i) * groups + g], RIGHT + g * WIDTH);
  }
}

static void groups_by_vectors(int size) {
  int groups = PANEL / size;
  for (int t = 0; t < TILES; t++) for (int r = 0; r < ROWS; r++) for (int g = 0; g < groups; g++) {
    int32_t d[WIDTH];
    __m512i s0 = _mm512_setzero_si512(), s1 = s0;
    for (int k = g * size; k < (g + 1) * size; k += 4) {
      const int8_t *b = B + t * PANEL * WIDTH + k * WIDTH;
      __m512i a = four_bytes(A + r * PANEL + k);
      s0 = _mm512_dpbusd_epi32(s0, a, _mm512_loadu_si512(b)), s1 = _mm512_dpbusd_epi32(s1, a, _mm512_loadu_si512(b + 64));
    }
    _mm512_storeu_si512(d, s0); _mm512_storeu_si512(d + 16, s1);
    add_scaled(d, SUMS + (t * ROWS + r) * WIDTH, LEFT[r * groups + g], RIGHT + g * WIDTH);
  }
}

static const struct { const char *name; void (*run)(int); int size; } WAYS[] = {
  {"s8, tdpbssd", whole_by_tiles, 64}, {"s8, vpdpbusd", whole_by_vectors, 64},
  {"e2m1 in groups of 32, tdpbssd", groups_by_tiles, 32}, {"e2m1 in groups of 32, vpdpbusd", groups_by_vectors, 32},
  {"e2m1 in groups of 16, tdpbssd", groups_by_tiles, 16}, {"e2m1 in groups of 16, vpdpbusd", groups_by_vectors, 16},
};
enum { COUNT = sizeof WAYS / sizeof *WAYS, CALLS = 60 };

static double seconds(void) { struct timespec t; clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }

static long differing(void) { // results of whole_by_tiles that a plain sum does not give
  long found = 0;
  for (int t = 0; t < TILES; t++) for (int r = 0; r < ROWS; r++) for (int j = 0; j < WIDTH; j++) {
    int sum = 0;
    for (int k = 0; k < PANEL; k++) sum += A[r * PANEL + k] * B[t * PANEL * WIDTH + (k / 4 * WIDTH + j) * 4 + k % 4];
    found += sum != D[(t * ROWS + r) * WIDTH + j];
  }
  return found;
}

int main(void) {
  if (syscall(SYS_arch_prctl, PERMISSION, TILE_DATA)) return perror("no AMX"), 1;
  A = aligned_alloc(64, ROWS * PANEL), B = aligned_alloc(64, TILES * PANEL * WIDTH);
  D = calloc(TILES * ROWS * WIDTH, sizeof *D), SUMS = calloc(TILES * ROWS * WIDTH, sizeof *SUMS);
  LEFT = malloc(ROWS * PANEL / 16 * sizeof *LEFT), RIGHT = malloc(PANEL / 16 * WIDTH * sizeof *RIGHT);
  for (int i = 0; i < ROWS * PANEL / 16; i++) LEFT[i] = 0.5;
  for (int i = 0; i < PANEL / 16 * WIDTH; i++) RIGHT[i] = 2;
  for (int i = 0; i < ROWS * PANEL; i++) A[i] = rand() % 25 - 12; // e2m1, doubled: integers of at most 12
  for (int i = 0; i < TILES * PANEL * WIDTH; i++) B[i] = rand() % 25 - 12;
  configure(64), whole_by_tiles(64);
  printf("differing: %ld\n", differing());
  double best[COUNT];
  for (int call = 0; call < CALLS; call++) for (int i = 0; i < COUNT; i++) {
    configure(WAYS[i].size);
    double start = seconds();
    WAYS[i].run(WAYS[i].size);
    double took = seconds() - start;
    best[i] = call && best[i] < took ? best[i] : took;
  }
  for (int i = 0; i < COUNT; i++) printf("%-32s %7.1f GMAC/s\n", WAYS[i].name, (double)TILES * ROWS * WIDTH * PANEL / best[i] / 1e9);
}
