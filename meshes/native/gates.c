/* Values times activated gates in one pass, in float32, for programs that XLA compiles for a CPU. Only values and gates are
 * kept for the backward pass.
 */
#include <string.h>

#include "activations.h"
#include "host.h"
#include "vectors.h"

#define ELEMENTS 16384 /* of a task */

/* All of one shape, `count` elements. */
struct gates {
  long count;
  bool gelu; /* the gate's activation: GELU in its tanh form; else x · sigmoid(x) */
  const float *value, *gate, *upstream;
  float *y, *dvalue, *dgate;
};

struct activated {
  vector value, slope;
};

INLINE struct activated activated(vector x, bool gelu) {
  if (gelu) return (struct activated){gelu_of(x), gelu_slope(x)};
  const struct sigmoids s = sigmoids_of(x);
  const vector value = x * s.of_z;
  return (struct activated){value, s.of_z + value * s.of_minus_z};
}

/* `gelu` is a constant where these are inlined. */
INLINE void multiply_gates(const struct gates *p, long task, bool gelu) {
  const long begin = task * ELEMENTS, end = min_of(begin + ELEMENTS, p->count), whole = end - (end - begin) % LANES;
  for (long i = begin; i < whole; i += LANES)
    *(vector *)(p->y + i) = *(const vector *)(p->value + i) * activated(*(const vector *)(p->gate + i), gelu).value;
  if (whole < end) {
    const vector last = part(p->value + whole, end - whole) * activated(part(p->gate + whole, end - whole), gelu).value;
    memcpy(p->y + whole, &last, sizeof(float) * (end - whole));
  }
}

INLINE void differentiate_gates(const struct gates *p, long task, bool gelu) {
  const long begin = task * ELEMENTS, end = min_of(begin + ELEMENTS, p->count), whole = end - (end - begin) % LANES;
  for (long i = begin; i < whole; i += LANES) {
    const vector dy = *(const vector *)(p->upstream + i);
    const struct activated a = activated(*(const vector *)(p->gate + i), gelu);
    *(vector *)(p->dvalue + i) = dy * a.value;
    *(vector *)(p->dgate + i) = dy * *(const vector *)(p->value + i) * a.slope;
  }
  if (whole < end) {
    const long rest = end - whole;
    const vector dy = part(p->upstream + whole, rest);
    const struct activated a = activated(part(p->gate + whole, rest), gelu);
    const vector dvalue = dy * a.value, dgate = dy * part(p->value + whole, rest) * a.slope;
    memcpy(p->dvalue + whole, &dvalue, sizeof(float) * rest);
    memcpy(p->dgate + whole, &dgate, sizeof(float) * rest);
  }
}

static void multiply(const void *what, long task) {
  const struct gates *p = what;
  if (p->gelu)
    multiply_gates(p, task, true);
  else
    multiply_gates(p, task, false);
}

static void differentiate(const void *what, long task) {
  const struct gates *p = what;
  if (p->gelu)
    differentiate_gates(p, task, true);
  else
    differentiate_gates(p, task, false);
}

/* value · activation(gate), of rows. */
static XLA_FFI_Error *gated(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 2, 1)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *value = operand(frame, 0), *gate = operand(frame, 1);
  if (!is_float(value, 2) || !is_like(value, gate) || !is_like(value, result(frame, 0)))
    return invalid(frame, "expected values and gates in float32");
  const struct gates p = {
      .count = elements(value), .gelu = integer(frame, "gelu", 0), .value = value->data, .gate = gate->data,
      .y = result(frame, 0)->data};
  if (p.count) share_out(frame, parts_of(p.count, ELEMENTS), multiply, &p);
  return NULL;
}

/* value, gate, gradient of the result -> gradients of value and gate. */
static XLA_FFI_Error *gradient(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 3, 2)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *value = operand(frame, 0), *gate = operand(frame, 1), *upstream = operand(frame, 2);
  if (!is_float(value, 2) || !is_like(value, gate) || !is_like(value, upstream) || !is_like(value, result(frame, 0)) ||
      !is_like(value, result(frame, 1)))
    return invalid(frame, "expected values, gates and a gradient in float32");
  const struct gates p = {
      .count = elements(value), .gelu = integer(frame, "gelu", 0), .value = value->data, .gate = gate->data,
      .upstream = upstream->data, .dvalue = result(frame, 0)->data, .dgate = result(frame, 1)->data};
  if (p.count) share_out(frame, parts_of(p.count, ELEMENTS), differentiate, &p);
  return NULL;
}

bool add_gates(const XLA_FFI_Api *api) {
  return add(api, "gpt_mesh_gated", gated) && add(api, "gpt_mesh_gated_gradient", gradient);
}
