/* Layer norm and RMS norm, in float32, for programs that XLA compiles for a CPU: each row is read once. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "vectors.h"

#define ROWS 64 /* of a task: each task sums over its rows, so sums do not depend on the number of threads */

/* x, and everything of its shape, is [rows, width]; gain and bias are [width]. */
struct norm {
  long rows, width;
  float epsilon;
  bool centred; /* layer norm, which subtracts the mean; else RMS norm */
  const float *x, *gain, *bias, *upstream; /* bias: NULL if there is none */
  float *y, *dx;
  float *sums; /* [tasks, 2, width]: the gradients of gain and bias, summed over each task's rows */
};

struct moments {
  float mean, inverse; /* the inverse of the standard deviation, or of the root mean square */
};

INLINE struct moments moments_of(const float *x, long width, float epsilon, bool centred) {
  const long whole = width - width % LANES;
  vector sums = {0}, squares = {0};
  float sum = 0, square = 0;
  if (centred) {
    for (long i = 0; i < whole; i += LANES) sums += *(const vector *)(x + i);
    sum = total(sums);
    for (long i = whole; i < width; i++) sum += x[i];
  }
  const float mean = centred ? sum / width : 0;
  for (long i = 0; i < whole; i += LANES) {
    const vector value = *(const vector *)(x + i) - mean;
    squares += value * value;
  }
  for (long i = whole; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
  return (struct moments){mean, 1 / sqrtf((total(squares) + square) / width + epsilon)};
}

/* `centred` and `biased` are constants where this is inlined. */
INLINE void normalize_rows(const struct norm *p, long task, bool centred, bool biased) {
  for (long row = task * ROWS; row < min_of((task + 1) * ROWS, p->rows); row++) {
    const float *restrict x = p->x + row * p->width, *restrict gain = p->gain, *restrict bias = p->bias;
    float *restrict y = p->y + row * p->width;
    const struct moments m = moments_of(x, p->width, p->epsilon, centred);
    for (long i = 0; i < p->width; i++) {
      const float normal = (x[i] - m.mean) * m.inverse;
      y[i] = biased ? normal * gain[i] + bias[i] : normal * gain[i];
    }
  }
}

static void normalize(const void *what, long task) {
  const struct norm *p = what;
  if (p->centred && p->bias)
    normalize_rows(p, task, true, true);
  else if (p->centred)
    normalize_rows(p, task, true, false);
  else
    normalize_rows(p, task, false, false);
}

/* The gradient of a row, and its contribution to the gradients of gain and bias. */
INLINE void differentiate_row(
    const struct norm *p, long row, float *restrict dgain, float *restrict dbias, bool centred) {
  const float *restrict x = p->x + row * p->width, *restrict dy = p->upstream + row * p->width;
  const float *restrict gain = p->gain;
  float *restrict dx = p->dx + row * p->width;
  const long width = p->width, whole = width - width % LANES;
  const struct moments m = moments_of(x, width, p->epsilon, centred);
  vector sums = {0}, products = {0};
  for (long i = 0; i < whole; i += LANES) {
    const vector value = *(const vector *)(x + i), from = *(const vector *)(dy + i);
    const vector normal = (value - m.mean) * m.inverse;
    const vector scaled = from * *(const vector *)(gain + i);
    products += scaled * normal;
    *(vector *)(dgain + i) += from * normal;
    if (centred) {
      sums += scaled;
      *(vector *)(dbias + i) += from;
    }
  }
  float sum = total(sums), product = total(products);
  for (long i = whole; i < width; i++) {
    const float normal = (x[i] - m.mean) * m.inverse;
    sum += dy[i] * gain[i];
    product += dy[i] * gain[i] * normal;
    dgain[i] += dy[i] * normal;
    dbias[i] += dy[i];
  }
  const float mean = centred ? sum / width : 0, along = product / width;
  for (long i = 0; i < width; i++)
    dx[i] = m.inverse * (dy[i] * gain[i] - mean - (x[i] - m.mean) * m.inverse * along);
}

static void differentiate(const void *what, long task) {
  const struct norm *p = what;
  float *dgain = p->sums + task * 2 * p->width, *dbias = dgain + p->width;
  memset(dgain, 0, sizeof(float) * 2 * p->width);
  for (long row = task * ROWS; row < min_of((task + 1) * ROWS, p->rows); row++)
    if (p->centred)
      differentiate_row(p, row, dgain, dbias, true);
    else
      differentiate_row(p, row, dgain, dbias, false);
}

/* x, gain and perhaps a bias -> (x - mean) / sqrt(variance + epsilon) * gain + bias, for each row; without the attribute
 * `centred` x / sqrt(mean of squares + epsilon) * gain. */
static XLA_FFI_Error *norm(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  const bool centred = integer(frame, "centred", 0), biased = centred && has(frame, 3, 1);
  if (!biased && !has(frame, 2, 1)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *x = operand(frame, 0), *gain = operand(frame, 1), *bias = biased ? operand(frame, 2) : NULL;
  if (!is_float(x, 2) || !is_row_of(x, gain) || (bias && !is_row_of(x, bias)) || !is_like(x, result(frame, 0)))
    return invalid(frame, "expected rows in float32 with a gain and a bias");
  const struct norm p = {
      .rows = x->dims[0], .width = x->dims[1], .epsilon = (float)number(frame, "epsilon", 0), .centred = centred,
      .x = x->data, .gain = gain->data, .bias = bias ? bias->data : NULL, .y = result(frame, 0)->data};
  if (elements(x)) share_out(frame, parts_of(p.rows, ROWS), normalize, &p);
  return NULL;
}

/* x, gain, gradient of the result -> gradients of x, gain and perhaps a bias. */
static XLA_FFI_Error *gradient(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  const bool centred = integer(frame, "centred", 0), biased = centred && has(frame, 3, 3);
  if (!biased && !has(frame, 3, 2)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *x = operand(frame, 0), *gain = operand(frame, 1), *upstream = operand(frame, 2);
  if (!is_float(x, 2) || !is_row_of(x, gain) || !is_like(x, upstream) || !is_like(x, result(frame, 0)) ||
      !is_row_of(x, result(frame, 1)) || (biased && !is_row_of(x, result(frame, 2))))
    return invalid(frame, "expected rows in float32 with a gain and a gradient");
  struct norm p = {
      .rows = x->dims[0], .width = x->dims[1], .epsilon = (float)number(frame, "epsilon", 0), .centred = centred,
      .x = x->data, .gain = gain->data, .upstream = upstream->data, .dx = result(frame, 0)->data};
  float *dgain = result(frame, 1)->data, *dbias = biased ? result(frame, 2)->data : NULL;
  const long tasks = parts_of(p.rows, ROWS);
  memset(dgain, 0, sizeof(float) * p.width);
  if (biased) memset(dbias, 0, sizeof(float) * p.width);
  if (!elements(x)) return NULL;
  p.sums = malloc(sizeof(float) * tasks * 2 * p.width);
  if (!p.sums) return out_of_memory(frame);
  share_out(frame, tasks, differentiate, &p);
  for (long task = 0; task < tasks; task++)
    for (long i = 0; i < p.width; i++) {
      dgain[i] += p.sums[task * 2 * p.width + i];
      if (biased) dbias[i] += p.sums[(task * 2 + 1) * p.width + i];
    }
  free(p.sums);
  return NULL;
}

bool add_norms(const XLA_FFI_Api *api) {
  return add(api, "gpt_mesh_norm", norm) && add(api, "gpt_mesh_norm_gradient", gradient);
}
