/* Bias and GELU in one pass, in float32, for programs that XLA compiles for a CPU. Each row is read once, and only the
 * input is kept for the backward pass.
 */
#include <stdlib.h>
#include <string.h>

#include "activations.h"
#include "host.h"
#include "vectors.h"

#define ROWS 64 /* of a task: each task sums over its rows, so sums do not depend on the number of threads */

/* x, and everything of its shape, is [rows, width]; bias is [width]. */
struct gelu {
  long rows, width;
  const float *x, *bias, *upstream;
  float *y, *dx;
  float *sums; /* [tasks, width]: the bias's gradient, summed over each task's rows */
};

static void activate(const void *what, long task) {
  const struct gelu *p = what;
  const long width = p->width, whole = width - width % LANES;
  for (long row = task * ROWS; row < min_of((task + 1) * ROWS, p->rows); row++) {
    const float *x = p->x + row * width;
    float *y = p->y + row * width;
    for (long i = 0; i < whole; i += LANES)
      *(vector *)(y + i) = gelu_of(*(const vector *)(x + i) + *(const vector *)(p->bias + i));
    if (whole < width) {
      const vector last = gelu_of(part(x + whole, width - whole) + part(p->bias + whole, width - whole));
      memcpy(y + whole, &last, sizeof(float) * (width - whole));
    }
  }
}

static void differentiate(const void *what, long task) {
  const struct gelu *p = what;
  const long width = p->width, whole = width - width % LANES, rest = width - whole;
  float *sums = p->sums + task * width;
  memset(sums, 0, sizeof(float) * width);
  for (long row = task * ROWS; row < min_of((task + 1) * ROWS, p->rows); row++) {
    const float *x = p->x + row * width, *dy = p->upstream + row * width;
    float *dx = p->dx + row * width;
    for (long i = 0; i < whole; i += LANES) {
      const vector found = *(const vector *)(dy + i) * gelu_slope(*(const vector *)(x + i) + *(const vector *)(p->bias + i));
      *(vector *)(dx + i) = found;
      *(vector *)(sums + i) += found;
    }
    if (rest) {
      const vector found = part(dy + whole, rest) * gelu_slope(part(x + whole, rest) + part(p->bias + whole, rest));
      memcpy(dx + whole, &found, sizeof(float) * rest);
      for (long i = 0; i < rest; i++) sums[whole + i] += dx[whole + i];
    }
  }
}

/* gelu(x + bias). */
static XLA_FFI_Error *gelu(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 2, 1)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *x = operand(frame, 0), *bias = operand(frame, 1);
  if (!is_float(x, 2) || !is_row_of(x, bias) || !is_like(x, result(frame, 0)))
    return invalid(frame, "expected rows in float32 with a bias");
  const struct gelu p = {
      .rows = x->dims[0], .width = x->dims[1], .x = x->data, .bias = bias->data, .y = result(frame, 0)->data};
  if (elements(x)) share_out(frame, parts_of(p.rows, ROWS), activate, &p);
  return NULL;
}

/* x, bias, gradient of the result -> gradients of x and bias. */
static XLA_FFI_Error *gradient(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 3, 2)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *x = operand(frame, 0), *bias = operand(frame, 1), *upstream = operand(frame, 2);
  if (!is_float(x, 2) || !is_row_of(x, bias) || !is_like(x, upstream) || !is_like(x, result(frame, 0)) ||
      !is_row_of(x, result(frame, 1)))
    return invalid(frame, "expected rows in float32 with a bias and a gradient");
  struct gelu p = {
      .rows = x->dims[0], .width = x->dims[1], .x = x->data, .bias = bias->data, .upstream = upstream->data,
      .dx = result(frame, 0)->data};
  float *dbias = result(frame, 1)->data;
  const long tasks = parts_of(p.rows, ROWS);
  memset(dbias, 0, sizeof(float) * p.width);
  if (!elements(x)) return NULL;
  p.sums = malloc(sizeof(float) * tasks * p.width);
  if (!p.sums) return out_of_memory(frame);
  share_out(frame, tasks, differentiate, &p);
  for (long task = 0; task < tasks; task++)
    for (long i = 0; i < p.width; i++) dbias[i] += p.sums[task * p.width + i];
  free(p.sums);
  return NULL;
}

bool add_gelu(const XLA_FFI_Api *api) {
  return add(api, "gpt_mesh_gelu", gelu) && add(api, "gpt_mesh_gelu_gradient", gradient);
}
