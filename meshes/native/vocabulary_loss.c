/* Cross-entropy over a vocabulary, with its gradients, in float32, for programs that XLA compiles for a CPU.
 *
 * Processes one chunk of tokens at a time: exponentials of its logits, then the gradients. The exponentials are not
 * normalised; instead activations and gradients, which are far smaller, are divided by the sums. Logits may have a bias
 * and a bound, cap · tanh(logit / cap), whose slope then multiplies the exponentials.
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
  float cap; /* 0: none */
  const float *x, *shares, *bias; /* bias: [vocab], or NULL */
  const int32_t *labels;
  float *objectives, *nlls; /* [tokens] */
  float *label_shares;      /* [tokens]: shares times the slope of the label's bound */
  float *scales;            /* [tokens]: the factors of the exponentials */
  float *dx, *dweight;      /* [tokens, width]; [vocab, width], transposed if the weight is */
  float *dbias;             /* [vocab], if there is a bias */
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

struct bounded {
  vector value, slope;
};

/* cap · tanh(x / cap) and its slope, both to full precision. */
INLINE struct bounded bound(vector x, float cap) {
  const integers sign = (integers)x & INT32_MIN;
  const vector power = exponential((vector)((integers)(x * (2 / cap)) | INT32_MIN)); /* e^(-2 |x| / cap) */
  const vector inverse = 1.0f / (1.0f + power), size = cap * (1.0f - power) * inverse;
  return (struct bounded){(vector)((integers)size | sign), 4.0f * power * inverse * inverse};
}

/* Replace a row of logits by e^(bounded logit - shift) times the slope of the bound; returns the sum of the former. */
INLINE float bounded_exponentials(float *row, long count, float cap, float shift) {
  vector sum = {0};
  for (long i = 0; i < count; i += LANES) {
    const vector x = *(vector *)(row + i);
    const struct bounded b = bound(x, cap);
    const integers inside = ~(x <= MASKED);
    const vector e = (vector)((integers)exponential(b.value - shift) & inside);
    *(vector *)(row + i) = e * b.slope;
    sum += e;
  }
  return total(sum);
}

static void do_rows(const void *what, long task) {
  const struct loss *p = what;
  const long row = task * p->rows, rows = min_of(p->rows, p->count - row), width = p->width;
  float *scales = p->scales + p->first + row;
  for (long i = 0; i < rows; i++) {
    const long token = p->first + row + i;
    float *from = p->logits + (row + i) * p->apart;
    const int32_t label = p->labels[token];
    for (long j = 0; p->bias && j < p->vocab; j++) from[j] += p->bias[j];
    float labelled = label >= 0 && label < p->vocab ? from[label] : 0, slope = 1;
    for (long j = p->vocab; j < padded(p->vocab); j++) from[j] = MASKED;
    float peak = greatest_of(from, padded(p->vocab)), all;
    if (p->cap > 0) {
      const struct bounded b = bound((vector){0} + labelled, p->cap);
      labelled = b.value[0];
      slope = b.slope[0];
      peak = bound((vector){0} + peak, p->cap).value[0];
      all = bounded_exponentials(from, padded(p->vocab), p->cap, peak);
    } else {
      all = exponentials(from, padded(p->vocab), peak);
    }
    const float log_z = peak + logf(all), share = p->shares[token], nll = log_z - labelled;
    p->label_shares[token] = share * slope;
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
    const float *labelled = p->weight.data + (known ? label * p->weight.down : 0);
    const float share = known ? p->label_shares[token] : 0;
    for (long k = 0; k < width; k++) dx[k] = scales[i] * dx[k] - share * labelled[k * p->weight.across];
  }
}

/* TILE_ROWS rows of the gradients of weight and bias. */
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
  if (!p->bias) return;
  const long end = min_of(begin + TILE_ROWS, p->vocab);
  if (!add) memset(p->dbias + begin, 0, sizeof(float) * (end - begin));
  for (long i = 0; i < p->count; i++)
    for (long j = begin; j < end; j++) p->dbias[j] += p->scales[p->first + i] * p->logits[i * p->apart + j];
}

/* FEATURES columns of each label's row; the first task also takes the labels out of the bias's gradient. */
static void subtract_labels(const void *what, long task) {
  const struct loss *p = what;
  const long begin = task * FEATURES, end = min_of(begin + FEATURES, p->width);
  const long down = is_row_by_row(p) ? p->width : 1, across = is_row_by_row(p) ? 1 : p->vocab;
  for (long token = 0; token < p->tokens; token++) {
    const long label = p->labels[token];
    if (label < 0 || label >= p->vocab) continue;
    const float share = p->label_shares[token], *x = p->x + token * p->width;
    if (p->bias && !task) p->dbias[label] -= share;
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

/* Operands: x [tokens, width], the weight [vocab, width], or with `transposed` [width, vocab], labels in int32 and shares,
 * [tokens], and perhaps a bias [vocab]. Results: the sums over tokens of share · (nll + z_loss · log² Z) and of
 * share · nll, and the gradients of the first with respect to x, the weight and the bias. The last three results are
 * scratch memory: the logits of a chunk, [chunk, vocab padded to whole vectors or more; a stride of a multiple of 4 KiB
 * is slow], its scaled x, and four rows of tokens. */
static XLA_FFI_Error *vocabulary_loss(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  const bool biased = has(frame, 5, 8);
  if (!biased && !has(frame, 4, 7)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *x = operand(frame, 0), *weight = operand(frame, 1), *labels = operand(frame, 2);
  const XLA_FFI_Buffer *shares = operand(frame, 3), *dx = result(frame, 2), *dweight = result(frame, 3);
  const XLA_FFI_Buffer *logits = result(frame, 4 + biased), *scaled = result(frame, 5 + biased);
  const XLA_FFI_Buffer *parts = result(frame, 6 + biased), *bias = biased ? operand(frame, 4) : NULL;
  const bool transposed = integer(frame, "transposed", 0);
  if (!is_float(x, 2) || !is_float(weight, 2) || weight->dims[!transposed] != x->dims[1] || !elements(weight) ||
      !is_float(logits, 2) || !is_vector(labels, XLA_FFI_DataType_S32, x->dims[0]) ||
      !is_vector(shares, XLA_FFI_DataType_F32, x->dims[0]) ||
      !is_float(result(frame, 0), 0) || !is_float(result(frame, 1), 0) || !is_float(dx, 2) || !same_shape(dx, x) ||
      !is_float(dweight, 2) || !same_shape(dweight, weight) || !is_float(scaled, 2) || !is_float(parts, 2) ||
      logits->dims[1] < padded(weight->dims[transposed]) || scaled->dims[0] != logits->dims[0] || !logits->dims[0] ||
      scaled->dims[1] != x->dims[1] || parts->dims[0] != 4 || parts->dims[1] != x->dims[0] ||
      (biased && (!is_vector(bias, XLA_FFI_DataType_F32, weight->dims[transposed]) ||
                  !is_vector(result(frame, 4), XLA_FFI_DataType_F32, weight->dims[transposed]))))
    return invalid(frame, "expected activations, weights, labels and shares");
  struct loss p = {
      .tokens = x->dims[0], .width = x->dims[1], .vocab = weight->dims[transposed], .chunk = logits->dims[0],
      .apart = logits->dims[1], .z_loss = number(frame, "z_loss", 0),
      .cap = (float)number(frame, "cap", 0), .x = x->data, .bias = biased ? bias->data : NULL,
      .dbias = biased ? result(frame, 4)->data : NULL,
      .weight = {weight->data, transposed ? 1 : weight->dims[1], transposed ? weight->dims[1] : 1},
      .labels = labels->data, .shares = shares->data, .dx = dx->data, .dweight = dweight->data,
      .logits = logits->data, .scaled = scaled->data, .objectives = parts->data};
  p.nlls = p.objectives + p.tokens;
  p.label_shares = p.nlls + p.tokens;
  p.scales = p.label_shares + p.tokens;
  if (!p.tokens) memset(p.dweight, 0, sizeof(float) * p.vocab * p.width);
  if (!p.tokens && biased) memset(p.dbias, 0, sizeof(float) * p.vocab);
  do_chunks(frame, &p);
  *(float *)result(frame, 0)->data = sum_of(p.objectives, p.tokens);
  *(float *)result(frame, 1)->data = sum_of(p.nlls, p.tokens);
  return NULL;
}

bool add_vocabulary_loss(const XLA_FFI_Api *api) { return add(api, "gpt_mesh_vocabulary_loss", vocabulary_loss); }
