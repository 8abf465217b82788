/* A stand-in for cuBLASLt: keeps descriptors, answers by a rule of its own, and refuses what the library would. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { uint64_t data[8]; } algo_t;
typedef struct { algo_t algo; size_t workspace; int state; float waves; int reserved[4]; } result_t;
typedef struct { int compute, scale, transa, fast; void *scale_a, *scale_b; } desc_t;
typedef struct { int type, order; uint64_t rows, columns; int64_t lead; } layout_t;
typedef struct { uint64_t workspace; } preference_t;

int live = 0; /* descriptors that nobody has destroyed */

#ifndef VERSION
#define VERSION 130101
#endif

size_t cublasLtGetVersion(void) { return VERSION; }
size_t cublasLtGetCudartVersion(void) { return 13010; }
int cublasLtCreate(void **handle) {
  if (getenv("STAND_IN_FAILS")) return 1;
  *handle = malloc(8);
  return 0;
}
int cublasLtMatmulDescCreate(desc_t **made, int compute, int scale) {
  *made = calloc(1, sizeof(desc_t));
  (*made)->compute = compute, (*made)->scale = scale, live++;
  return 0;
}
int cublasLtMatmulDescDestroy(desc_t *desc) { free(desc), live--; return 0; }
int cublasLtMatmulDescSetAttribute(desc_t *desc, int attribute, const void *value, size_t size) {
  switch (attribute) {
  case 3: if (size != 4) return 7; memcpy(&desc->transa, value, 4); return 0;
  case 17: if (size != 8) return 7; memcpy(&desc->scale_a, value, 8); return 0;
  case 18: if (size != 8) return 7; memcpy(&desc->scale_b, value, 8); return 0;
  case 25: if (size != 1) return 7; desc->fast = *(const int8_t *)value; return 0;
  }
  return 7;
}
int cublasLtMatrixLayoutCreate(layout_t **made, int type, uint64_t rows, uint64_t columns, int64_t lead) {
  *made = calloc(1, sizeof(layout_t));
  (*made)->type = type, (*made)->rows = rows, (*made)->columns = columns, (*made)->lead = lead, live++;
  return 0;
}
int cublasLtMatrixLayoutDestroy(layout_t *layout) { free(layout), live--; return 0; }
int cublasLtMatrixLayoutSetAttribute(layout_t *layout, int attribute, const void *value, size_t size) {
  if (attribute != 1 || size != 4) return 7;
  memcpy(&layout->order, value, 4);
  return 0;
}
int cublasLtMatmulPreferenceCreate(preference_t **made) { *made = calloc(1, sizeof(preference_t)), live++; return 0; }
int cublasLtMatmulPreferenceDestroy(preference_t *preference) { free(preference), live--; return 0; }
int cublasLtMatmulPreferenceSetAttribute(preference_t *preference, int attribute, const void *value, size_t size) {
  if (attribute != 1 || size != 8) return 7;
  memcpy(&preference->workspace, value, 8);
  return 0;
}
static int fits(const layout_t *matrix) { return matrix->lead >= (int64_t)(matrix->order ? matrix->columns : matrix->rows); }

int cublasLtMatmulAlgoGetHeuristic(void *handle, desc_t *desc, layout_t *a, layout_t *b, layout_t *c, layout_t *d, preference_t *preference,
                                   int asked, result_t *results, int *count) {
  uint64_t m = desc->transa ? a->columns : a->rows, k = desc->transa ? a->rows : a->columns;
  int fp8 = a->type == 28 || a->type == 29;
  if (!handle || asked != 1 || desc->compute != 68 || desc->scale != 0 || c != d) return 7;
  if (b->rows != k || d->rows != m || d->columns != b->columns || !fits(a) || !fits(b) || !fits(d)) return 7;
  if (fp8 && (!desc->transa || !desc->scale_a || !desc->scale_b || a->order)) return 15;
  if (k == 13) { *count = 0; return 15; }
  memset(results, 0, sizeof(result_t));
  *count = 1;
  uint64_t splits = k >= 8192 && preference->workspace ? 4 : 1;
  results->workspace = splits > 1 ? 4096 : 0;
  uint64_t config[9] = {66, 100 + a->order, splits, 0, 1, (uint64_t)desc->fast, fp8 ? 36 : 35, 7, 3};
  for (int at = 0; at < 9; at++) ((uint16_t *)&results->algo)[at] = (uint16_t)config[at];
  return 0;
}
/* What computes: told by the test. M, N, K of the columns' product, types of A and D, splits, by rows, fast; then A, B and D. */
typedef int (*product_t)(int64_t m, int64_t n, int64_t k, int type, int out, int splits, int by_rows, int fast, void *a, void *b, void *d);
product_t product = 0;

int cublasLtMatmul(void *handle, desc_t *desc, const float *alpha, void *a, layout_t *left, void *b, layout_t *right, const float *beta,
                   void *c, layout_t *layout_c, void *d, layout_t *out, const algo_t *algo, void *workspace, size_t size, void *stream) {
  const uint16_t *config = (const uint16_t *)algo;
  if (!handle || *alpha != 1.0f || *beta != 0.0f || c != d || layout_c != out || stream || !workspace) return 7;
  if (config[0] != 66 || size < (config[2] > 1 ? 4096u : 0u)) return 7;
  if (left->type >= 28 && (*(float *)desc->scale_a != 1.0f || *(float *)desc->scale_b != 1.0f)) return 7;
  int64_t m = desc->transa ? left->columns : left->rows, k = desc->transa ? left->rows : left->columns;
  return product ? product(m, (int64_t)right->columns, k, left->type, out->type, config[2], left->order, config[5], a, b, d) : 15;
}

int cublasLtMatmulAlgoConfigGetAttribute(const algo_t *algo, int attribute, void *value, size_t size, size_t *written) {
  size_t due = attribute < 7 ? 4 : 2;
  if (attribute > 8 || size != due) return 7;
  uint32_t wide = ((const uint16_t *)algo)[attribute];
  memcpy(value, &wide, due);
  *written = due;
  return 0;
}
