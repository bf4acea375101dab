/* Optimizer updates in float32, for programs that XLA compiles for a CPU: memory is read once. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "vectors.h"

#define PART 16384 /* elements of a task */

/* Before a loop whose iterations do not depend on each other. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

struct squares {
  const float *x;
  double *sums; /* one for each task */
  long count;
};

static void sum_squares(const void *what, long task) {
  const struct squares *p = what;
  const long first = task * PART;
  p->sums[task] = dot(p->x + first, p->x + first, min_of(PART, p->count - first));
}

/* The sum of the squares of all elements. */
static XLA_FFI_Error *sum_of_squares(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 1, 1)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *x = operand(frame, 0);
  if (!is_float(x, x->rank) || !is_float(result(frame, 0), 0)) return invalid(frame, "expected float32");
  const long count = elements(x), tasks = parts_of(count, PART);
  struct squares p = {.x = x->data, .sums = malloc(sizeof(double) * max_of(1, tasks)), .count = count};
  if (!p.sums) return out_of_memory(frame);
  share_out(frame, tasks, sum_squares, &p);
  double sum = 0;
  for (long task = 0; task < tasks; task++) sum += p.sums[task];
  free(p.sums);
  *(float *)result(frame, 0)->data = (float)sum;
  return NULL;
}

struct adam {
  long count;
  float lr, scale, beta1, beta2, epsilon, decay;
  const float *w, *g, *m, *v;
  float *new_w, *new_m, *new_v;
};

static void update(const void *what, long task) {
  const struct adam p = *(const struct adam *)what;
  const long end = min_of((task + 1) * PART, p.count);
  INDEPENDENT /* results may overwrite their operands */
  for (long i = task * PART; i < end; i++) {
    const float scaled = p.g[i] * p.scale;
    const float mean = p.beta1 * p.m[i] + (1 - p.beta1) * scaled;
    const float square = p.beta2 * p.v[i] + (1 - p.beta2) * scaled * scaled;
    p.new_m[i] = mean;
    p.new_v[i] = square;
    p.new_w[i] = p.w[i] - p.lr * (mean / (sqrtf(square) + p.epsilon) + p.decay * p.w[i]);
  }
}

/* Adam: weights, gradients, both moments, lr, scale -> new weights and moments. */
static XLA_FFI_Error *adam(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 6, 3)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *w = operand(frame, 0), *lr = operand(frame, 4), *scale = operand(frame, 5);
  bool fits = is_float(lr, 0) && is_float(scale, 0);
  for (int64_t i = 0; i < 7 && fits; i++) {
    const XLA_FFI_Buffer *x = i < 4 ? operand(frame, i) : result(frame, i - 4);
    fits = is_float(x, w->rank) && same_shape(x, w);
  }
  if (!fits) return invalid(frame, "expected weights with gradients and moments in float32");
  const struct adam p = {
      .count = elements(w), .lr = *(const float *)lr->data, .scale = *(const float *)scale->data,
      .beta1 = (float)number(frame, "beta1", 0), .beta2 = (float)number(frame, "beta2", 0),
      .epsilon = (float)number(frame, "epsilon", 0), .decay = (float)number(frame, "decay", 0),
      .w = w->data, .g = operand(frame, 1)->data, .m = operand(frame, 2)->data, .v = operand(frame, 3)->data,
      .new_w = result(frame, 0)->data, .new_m = result(frame, 1)->data, .new_v = result(frame, 2)->data};
  share_out(frame, parts_of(p.count, PART), update, &p);
  return NULL;
}

bool add_optimizer(const XLA_FFI_Api *api) {
  return add(api, "gpt_mesh_sum_of_squares", sum_of_squares) && add(api, "gpt_mesh_adam", adam);
}
