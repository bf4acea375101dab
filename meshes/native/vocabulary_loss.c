/* Cross-entropy over a vocabulary, with its gradients, in float32, for programs that XLA compiles for a CPU.
 *
 * A chunk of tokens at a time: exponentials of its scores, then the gradients that they are needed for. They are not
 * divided by their sums: activations and gradients are instead, which are smaller by far.
 */
#include <math.h>
#include <string.h>

#include "host.h"
#include "matmul.h"
#include "vectors.h"

#define SCORED 256    /* rows of the weight, whose scores a task computes */
#define MOST_ROWS 128 /* tokens of a task, whose exponentials and gradients it computes */
#define LEAST_ROWS 24
#define TILE_ROWS 264 /* of the weight's gradient, a task */
#define FEATURES 64   /* of a task, where labels' rows are subtracted */

struct loss {
  long tokens, width, vocab, chunk, apart, rows;
  struct matrix weight; /* [vocab, width] */
  double z_loss;
  const float *x, *shares;
  const int32_t *labels;
  float *objectives, *nlls; /* [tokens] */
  float *dx, *dweight;      /* [tokens, width]; [vocab, width], or where the weight is turned, the other way round */
  float *scores, *scaled;   /* of a chunk: [chunk, apart]; x times what its exponentials are to be multiplied by */
  long first, count;        /* the chunk's tokens */
};

static bool is_row_by_row(const struct loss *p) { return p->weight.across == 1; }

/* Scores of a chunk's tokens with SCORED rows of the weight. */
static void score(const void *what, long task) {
  const struct loss *p = what;
  const struct matrix x = {p->x + p->first * p->width, p->width, 1};
  const long begin = task * SCORED, columns = least(SCORED, p->vocab - begin);
  const struct matrix weight = {p->weight.data + begin * p->weight.down, p->weight.across, p->weight.down};
  multiply(x, weight, p->scores + begin, p->apart, p->count, p->width, columns, false);
}

static void do_rows(const void *what, long task) {
  const struct loss *p = what;
  const long row = task * p->rows, rows = least(p->rows, p->count - row), width = p->width;
  float scales[MOST_ROWS];
  for (long i = 0; i < rows; i++) {
    const long token = p->first + row + i;
    float *from = p->scores + (row + i) * p->apart;
    const int32_t label = p->labels[token];
    const float labelled = label >= 0 && label < p->vocab ? from[label] : 0;
    for (long j = p->vocab; j < padded(p->vocab); j++) from[j] = MASKED;
    const float peak = greatest_of(from, padded(p->vocab));
    const float all = exponentials(from, padded(p->vocab), peak), log_z = peak + logf(all);
    const float share = p->shares[token], nll = log_z - labelled;
    p->objectives[token] = share * (nll + (float)p->z_loss * log_z * log_z);
    p->nlls[token] = share * nll;
    scales[i] = share * (1 + 2 * (float)p->z_loss * log_z) / all;
    for (long k = 0; k < width; k++) p->scaled[(row + i) * width + k] = scales[i] * p->x[token * width + k];
  }
  const struct matrix weights = {p->scores + row * p->apart, p->apart, 1};
  float *dx = p->dx + (p->first + row) * width;
  multiply(weights, p->weight, dx, width, rows, p->vocab, width, false);
  for (long i = 0; i < rows; i++, dx += width) {
    const long token = p->first + row + i, label = p->labels[token];
    const bool known = label >= 0 && label < p->vocab;
    const float *labelled = p->weight.data + (known ? label * p->weight.down : 0), share = known ? p->shares[token] : 0;
    for (long k = 0; k < width; k++) dx[k] = scales[i] * dx[k] - share * labelled[k * p->weight.across];
  }
}

/* A part of the weight's gradient: that of TILE_ROWS of its rows. */
static void add_to_dweight(const void *what, long task) {
  const struct loss *p = what;
  const struct matrix scaled = {p->scaled, p->width, 1};
  const bool add = p->first > 0;
  const long begin = task * TILE_ROWS;
  if (is_row_by_row(p)) {
    const struct matrix left = {p->scores + begin, 1, p->apart};
    multiply(
        left, scaled, p->dweight + begin * p->width, p->width, least(TILE_ROWS, p->vocab - begin), p->count, p->width,
        add);
  } else {
    const struct matrix right = {p->scores + begin, p->apart, 1};
    const struct matrix turned = {p->scaled, 1, p->width};
    multiply(
        turned, right, p->dweight + begin, p->vocab, p->width, p->count, least(TILE_ROWS, p->vocab - begin), add);
  }
}

/* FEATURES columns of each label's row. */
static void subtract_labels(const void *what, long task) {
  const struct loss *p = what;
  const long begin = task * FEATURES, end = least(begin + FEATURES, p->width);
  const long down = is_row_by_row(p) ? p->width : 1, across = is_row_by_row(p) ? 1 : p->vocab;
  for (long token = 0; token < p->tokens; token++) {
    const long label = p->labels[token];
    if (label < 0 || label >= p->vocab) continue;
    const float share = p->shares[token], *x = p->x + token * p->width;
    float *to = p->dweight + label * down;
    for (long k = begin; k < end; k++) to[k * across] -= share * x[k];
  }
}

static void do_chunks(const XLA_FFI_CallFrame *frame, struct loss *p) {
  p->rows = most(LEAST_ROWS, least(MOST_ROWS, parts_of(p->chunk, 2 * thread_count(frame))));
  for (p->first = 0; p->first < p->tokens; p->first += p->chunk) {
    p->count = least(p->chunk, p->tokens - p->first);
    share_out(frame, parts_of(p->vocab, SCORED), score, p);
    share_out(frame, parts_of(p->count, p->rows), do_rows, p);
    share_out(frame, parts_of(p->vocab, TILE_ROWS), add_to_dweight, p);
  }
  share_out(frame, parts_of(p->width, FEATURES), subtract_labels, p);
}

static float sum_of(const float *x, long count) {
  double sum = 0;
  for (long i = 0; i < count; i++) sum += x[i];
  return (float)sum;
}

static bool is_vector(const XLA_FFI_Buffer *x, XLA_FFI_DataType type, long count) {
  return x->rank == 1 && x->dtype == type && x->dims[0] == count;
}

/* The sums over tokens of share · (nll + z_loss · log² Z) and of share · nll, and the gradients of the first with
 * respect to x [tokens, width] and the weight: [vocab, width], or with `turned` [width, vocab]. Then labels in int32
 * and shares, [tokens]. Last among the results are scratch: scores of a chunk of tokens, [chunk, at least vocab, filled
 * up to whole vectors: rows best do not begin a multiple of 4 KiB apart], its scaled x, and two rows of the tokens'
 * parts of the sums. */
static XLA_FFI_Error *vocabulary_loss(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 4, 7)) return invalid(frame, "another number of tensors");
  const XLA_FFI_Buffer *x = operand(frame, 0), *weight = operand(frame, 1), *labels = operand(frame, 2);
  const XLA_FFI_Buffer *shares = operand(frame, 3), *dx = result(frame, 2), *dweight = result(frame, 3);
  const XLA_FFI_Buffer *scores = result(frame, 4), *scaled = result(frame, 5), *parts = result(frame, 6);
  const bool turned = integer(frame, "turned", 0);
  if (!is_float(x, 2) || !is_float(weight, 2) || weight->dims[!turned] != x->dims[1] || !elements(weight) ||
      !is_float(scores, 2) || !is_vector(labels, XLA_FFI_DataType_S32, x->dims[0]) ||
      !is_vector(shares, XLA_FFI_DataType_F32, x->dims[0]) ||
      !is_float(result(frame, 0), 0) || !is_float(result(frame, 1), 0) || !is_float(dx, 2) || !same_shape(dx, x) ||
      !is_float(dweight, 2) || !same_shape(dweight, weight) || !is_float(scaled, 2) || !is_float(parts, 2) ||
      scores->dims[1] < padded(weight->dims[turned]) || scaled->dims[0] != scores->dims[0] || !scores->dims[0] ||
      scaled->dims[1] != x->dims[1] || parts->dims[0] != 2 || parts->dims[1] != x->dims[0])
    return invalid(frame, "these are no activations, weights, labels and shares");
  struct loss p = {
      .tokens = x->dims[0], .width = x->dims[1], .vocab = weight->dims[turned], .chunk = scores->dims[0],
      .apart = scores->dims[1], .z_loss = number(frame, "z_loss", 0), .x = x->data,
      .weight = {weight->data, turned ? 1 : weight->dims[1], turned ? weight->dims[1] : 1},
      .labels = labels->data, .shares = shares->data, .dx = dx->data, .dweight = dweight->data,
      .scores = scores->data, .scaled = scaled->data, .objectives = parts->data};
  p.nlls = p.objectives + p.tokens;
  if (!p.tokens) memset(p.dweight, 0, sizeof(float) * p.vocab * p.width);
  do_chunks(frame, &p);
  *(float *)result(frame, 0)->data = sum_of(p.objectives, p.tokens);
  *(float *)result(frame, 1)->data = sum_of(p.nlls, p.tokens);
  return NULL;
}

bool add_vocabulary_loss(const XLA_FFI_Api *api) { return add(api, "gpt_mesh_vocabulary_loss", vocabulary_loss); }
