/* Activations of vectors, and their derivatives. */
#ifndef GPT_MESH_ACTIVATIONS_H
#define GPT_MESH_ACTIVATIONS_H

#include <string.h>

#include "vectors.h"

/* sigmoid(z) and sigmoid(-z), both to full precision. */
struct sigmoids {
  vector of_z, of_minus_z;
};

INLINE struct sigmoids sigmoids_of(vector z) {
  const vector power = exponential((vector)((integers)z | INT32_MIN)); /* e^-|z| */
  const vector large = 1.0f / (1.0f + power), small = power * large;
  const integers positive = z > 0;
  return (struct sigmoids){
      (vector)(((integers)large & positive) | ((integers)small & ~positive)),
      (vector)(((integers)small & positive) | ((integers)large & ~positive))};
}

/* x times sigmoid(z) with z = 2 √(2/π) (x + 0.044715 x³): the tanh form of Hendrycks and Gimpel (2016,
 * arXiv:1606.08415), as (1 + tanh(z / 2)) / 2 = sigmoid(z). */
#define LINEAR 1.5957691216f
#define CUBIC 0.0713548163f

INLINE vector gelu_of(vector x) { return x * sigmoids_of(x * (LINEAR + CUBIC * x * x)).of_z; }

INLINE vector gelu_slope(vector x) {
  const vector square = -greater((vector){0} - 1000.0f, -x * x); /* at most 1000: sigmoids are 0 and 1 there */
  const struct sigmoids s = sigmoids_of(x * (LINEAR + CUBIC * x * x));
  return s.of_z + s.of_z * s.of_minus_z * x * (LINEAR + 3 * CUBIC * square);
}

/* The first `count` elements, then zeros. */
INLINE vector part(const float *x, long count) {
  vector found = {0};
  memcpy(&found, x, sizeof(float) * count);
  return found;
}

#endif
