/* Vectors of the processor's width, as extensions that GCC and Clang share. */
#ifndef GPT_MESH_VECTORS_H
#define GPT_MESH_VECTORS_H

#include <stdint.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
/* Before a loop over values that should stay in registers. */
#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

INLINE long min_of(long x, long y) { return x < y ? x : y; }
INLINE long max_of(long x, long y) { return x > y ? x : y; }
INLINE long parts_of(long count, long size) { return (count + size - 1) / size; }

/* Far below all logits: its exponential is 0. */
#define MASKED -1e30f

/* e^x for x from -87 to 0, within two units in the last place; 0 below that; NaN stays NaN. After Cephes
 * (Moshier, netlib.org/cephes): a polynomial between -ln 2 / 2 and ln 2 / 2, times a power of two. */
INLINE vector exponential(vector x) {
  const integers counts = ~(x < -87.0f);
  x = (vector)((integers)x & counts);
  const float round = 12582912.0f; /* 1.5 · 2^23: adding to it rounds to an integer */
  const vector shifted = x * 1.44269504f + round, power = shifted - round;
  x = x - power * 0.693359375f + power * 2.12194440e-4f;
  vector y = x * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * x + 8.3334519073e-3f;
  y = y * x + 4.1665795894e-2f;
  y = y * x + 1.6666665459e-1f;
  y = y * x + 5.0000001201e-1f;
  y = y * x * x + x + 1.0f;
  return (vector)(((integers)y + (((integers)shifted << 23) & (x == x))) & counts);
}

INLINE vector greater(vector x, vector y) {
  const integers first = x > y;
  return (vector)(((integers)x & first) | ((integers)y & ~first));
}

INLINE float greatest(vector v) {
  float part[LANES];
  *(vector *)part = v;
  for (int i = 1; i < LANES; i++) part[0] = part[i] > part[0] ? part[i] : part[0];
  return part[0];
}

/* `count` rounded up to whole vectors. */
INLINE long padded(long count) { return parts_of(count, LANES) * LANES; }

INLINE float total(vector v) {
  float part[LANES];
  *(vector *)part = v;
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; i++) part[i] += part[i + width];
  return part[0];
}

/* The maximum of a row of whole vectors. */
INLINE float greatest_of(const float *row, long count) {
  vector found = *(const vector *)row;
  for (long i = LANES; i < count; i += LANES) found = greater(found, *(const vector *)(row + i));
  return greatest(found);
}

/* Replace a row of whole vectors by e^(row - shift); returns its sum. */
INLINE float exponentials(float *row, long count, float shift) {
  vector sum = {0};
  for (long i = 0; i < count; i += LANES) {
    const vector e = exponential(*(vector *)(row + i) - shift);
    *(vector *)(row + i) = e;
    sum += e;
  }
  return total(sum);
}

INLINE float dot(const float *x, const float *y, long count) {
  vector sum = {0};
  long i = 0;
  for (; i + LANES <= count; i += LANES) sum += *(const vector *)(x + i) * *(const vector *)(y + i);
  float found = total(sum);
  for (; i < count; i++) found += x[i] * y[i];
  return found;
}

#endif
