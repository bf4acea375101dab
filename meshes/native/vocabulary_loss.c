/* Cross-entropy over a vocabulary, with its gradients, in float32, for programs that XLA compiles for a CPU.
 *
 * Processes one chunk of tokens at a time: exponentials of its logits, then the gradients. The exponentials are not
 * normalised; instead activations and gradients, which are far smaller, are divided by the sums.
 */
#include <math.h>
#include <string.h>

#include "host.h"
#include "matmul.h"
#include "vectors.h"

#define LOGIT_ROWS 256 /* rows of the weight in a task that computes logits */
#define MAX_ROWS 128   /* tokens in a task that computes exponentials and gradients */
#define MIN_ROWS 24
#define TILE_ROWS 264  /* rows of the weight's gradient in a task */
#define FEATURES 64    /* features in a task that subtracts the labels' rows */

struct loss {
  long tokens, width, vocab, chunk, apart, rows;
  struct matrix weight; /* [vocab, width] */
  double z_loss;
  const float *x, *shares;
  const int32_t *labels;
  float *objectives, *nlls; /* [tokens] */
  float *dx, *dweight;      /* [tokens, width]; [vocab, width], transposed if the weight is */
  float *logits, *scaled;   /* of a chunk: [chunk, apart]; x times the factors of its exponentials */
  long first, count;        /* the chunk's tokens */
};

static bool is_row_by_row(const struct loss *p) { return p->weight.across == 1; }

/* Logits of a chunk's tokens for LOGIT_ROWS rows of the weight. */
static void compute_logits(const void *what, long task) {
  const struct loss *p = what;
  const struct matrix x = {p->x + p->first * p->width, p->width, 1};
  const long begin = task * LOGIT_ROWS, columns = min_of(LOGIT_ROWS, p->vocab - begin);
  const struct matrix weight = {p->weight.data + begin * p->weight.down, p->weight.across, p->weight.down};
  multiply(x, weight, p->logits + begin, p->apart, p->count, p->width, columns, false);
}

static void do_rows(const void *what, long task) {
  const struct loss *p = what;
  const long row = task * p->rows, rows = min_of(p->rows, p->count - row), width = p->width;
  float scales[MAX_ROWS];
  for (long i = 0; i < rows; i++) {
    const long token = p->first + row + i;
    float *from = p->logits + (row + i) * p->apart;
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
  const struct matrix weights = {p->logits + row * p->apart, p->apart, 1};
  float *dx = p->dx + (p->first + row) * width;
  multiply(weights, p->weight, dx, width, rows, p->vocab, width, false);
  for (long i = 0; i < rows; i++, dx += width) {
    const long token = p->first + row + i, label = p->labels[token];
    const bool known = label >= 0 && label < p->vocab;
    const float *labelled = p->weight.data + (known ? label * p->weight.down : 0), share = known ? p->shares[token] : 0;
    for (long k = 0; k < width; k++) dx[k] = scales[i] * dx[k] - share * labelled[k * p->weight.across];
  }
}

/* TILE_ROWS rows of the weight's gradient. */
static void add_to_dweight(const void *what, long task) {
  const struct loss *p = what;
  const struct matrix scaled = {p->scaled, p->width, 1};
  const bool add = p->first > 0;
  const long begin = task * TILE_ROWS;
  if (is_row_by_row(p)) {
    const struct matrix left = {p->logits + begin, 1, p->apart};
    multiply(
        left, scaled, p->dweight + begin * p->width, p->width, min_of(TILE_ROWS, p->vocab - begin), p->count, p->width,
        add);
  } else {
    const struct matrix right = {p->logits + begin, p->apart, 1};
    const struct matrix transposed = {p->scaled, 1, p->width};
    multiply(
        transposed, right, p->dweight + begin, p->vocab, p->width, p->count, min_of(TILE_ROWS, p->vocab - begin), add);
  }
}

/* FEATURES columns of each label's row. */
static void subtract_labels(const void *what, long task) {
  const struct loss *p = what;
  const long begin = task * FEATURES, end = min_of(begin + FEATURES, p->width);
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
  p->rows = max_of(MIN_ROWS, min_of(MAX_ROWS, parts_of(p->chunk, 2 * thread_count(frame))));
  for (p->first = 0; p->first < p->tokens; p->first += p->chunk) {
    p->count = min_of(p->chunk, p->tokens - p->first);
    share_out(frame, parts_of(p->vocab, LOGIT_ROWS), compute_logits, p);
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
 * respect to x [tokens, width] and the weight: [vocab, width], or with `transposed` [width, vocab]. Then labels in int32
 * and shares, [tokens]. The last results are scratch memory: the logits of a chunk, [chunk, vocab padded to whole
 * vectors or more; a stride of a multiple of 4 KiB is slow], its scaled x, and two rows for the tokens' parts of the
 * sums. */
static XLA_FFI_Error *vocabulary_loss(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 4, 7)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *x = operand(frame, 0), *weight = operand(frame, 1), *labels = operand(frame, 2);
  const XLA_FFI_Buffer *shares = operand(frame, 3), *dx = result(frame, 2), *dweight = result(frame, 3);
  const XLA_FFI_Buffer *logits = result(frame, 4), *scaled = result(frame, 5), *parts = result(frame, 6);
  const bool transposed = integer(frame, "transposed", 0);
  if (!is_float(x, 2) || !is_float(weight, 2) || weight->dims[!transposed] != x->dims[1] || !elements(weight) ||
      !is_float(logits, 2) || !is_vector(labels, XLA_FFI_DataType_S32, x->dims[0]) ||
      !is_vector(shares, XLA_FFI_DataType_F32, x->dims[0]) ||
      !is_float(result(frame, 0), 0) || !is_float(result(frame, 1), 0) || !is_float(dx, 2) || !same_shape(dx, x) ||
      !is_float(dweight, 2) || !same_shape(dweight, weight) || !is_float(scaled, 2) || !is_float(parts, 2) ||
      logits->dims[1] < padded(weight->dims[transposed]) || scaled->dims[0] != logits->dims[0] || !logits->dims[0] ||
      scaled->dims[1] != x->dims[1] || parts->dims[0] != 2 || parts->dims[1] != x->dims[0])
    return invalid(frame, "expected activations, weights, labels and shares");
  struct loss p = {
      .tokens = x->dims[0], .width = x->dims[1], .vocab = weight->dims[transposed], .chunk = logits->dims[0],
      .apart = logits->dims[1], .z_loss = number(frame, "z_loss", 0), .x = x->data,
      .weight = {weight->data, transposed ? 1 : weight->dims[1], transposed ? weight->dims[1] : 1},
      .labels = labels->data, .shares = shares->data, .dx = dx->data, .dweight = dweight->data,
      .logits = logits->data, .scaled = scaled->data, .objectives = parts->data};
  p.nlls = p.objectives + p.tokens;
  if (!p.tokens) memset(p.dweight, 0, sizeof(float) * p.vocab * p.width);
  do_chunks(frame, &p);
  *(float *)result(frame, 0)->data = sum_of(p.objectives, p.tokens);
  *(float *)result(frame, 1)->data = sum_of(p.nlls, p.tokens);
  return NULL;
}

bool add_vocabulary_loss(const XLA_FFI_Api *api) { return add(api, "gpt_mesh_vocabulary_loss", vocabulary_loss); }
