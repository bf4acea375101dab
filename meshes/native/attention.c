/* Softmax attention, in float32, for programs that XLA compiles for a CPU.
 *
 * Scores exist for a block of queries at a time, and only with keys that one of them sees: causal attention does little
 * more than half of the work, local attention that of its window. The forward pass keeps the logarithm of each query's
 * softmax denominator, from which the backward pass computes its scores again (Dao et al., 2022, arXiv:2205.14135).
 */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "host.h"
#include "matmul.h"
#include "vectors.h"

#define STRIP 24      /* queries that are scored with the same keys: causal, with none behind them */
#define QUERIES 96    /* of a block, whose keys get their gradients at once: strips of it */
#define SCORES 262144 /* of a block, which lie in the second cache: 1 MiB */

/* Tensors are [batch, positions, heads, features], `log_sums` [batch, heads, positions]. An entry is a head of a text.
 */
struct attention {
  long batch, positions, heads, features, window, block, groups;
  bool causal;
  const float *q, *k, *v, *attended_before, *log_sums_before, *upstream;
  float *attended, *log_sums, *dq, *dk, *dv;
  atomic_bool *failed;
};

/* The queries of a block, and the keys that one of them sees; rows of scores have `width` elements and are `apart`: not
 * by a power of two, which only few lines of a cache stand for. */
struct block {
  long first, queries, first_key, keys, width, apart;
};

static struct block block_at(const struct attention *p, long first) {
  const long end = least(first + p->block, p->positions);
  const long first_key = most(0, first - p->window + 1) / PANEL * PANEL;
  const long keys = (p->causal ? end : least(p->positions, end - 1 + p->window)) - first_key;
  return (struct block){first, end - first, first_key, keys, padded(keys), padded(keys) + LANES};
}

/* The strip of a block from its i-th query on; causal, without the keys behind it. */
static struct block strip_of(const struct attention *p, struct block b, long i) {
  b.first += i;
  b.queries = least(STRIP, b.queries - i);
  if (p->causal) b.keys = b.first + b.queries - b.first_key;
  b.width = padded(b.keys);
  return b;
}

static long scores_room(const struct attention *p) { return p->block * (padded(p->positions) + LANES); }

/* Where the elements of an entry begin. */
static long start_of(const struct attention *p, long entry) {
  return (entry / p->heads * p->positions * p->heads + entry % p->heads) * p->features;
}

/* [block, features]: rows of an entry's queries or keys from `first` on. */
static struct matrix rows_of(const struct attention *p, const float *x, long entry, long first) {
  const long apart = p->heads * p->features;
  return (struct matrix){x + start_of(p, entry) + first * apart, apart, 1};
}

static struct matrix turned(struct matrix m) { return (struct matrix){m.data, m.across, m.down}; }

/* Keys or values of an entry, all of them, packed for products over features, and over positions. */
static float *pack_for_features(const struct attention *p, const float *x, long entry, float *to) {
  pack_columns(turned(rows_of(p, x, entry, 0)), p->features, p->positions, to);
  return to + parts_of(p->positions, PANEL) * PANEL * p->features;
}

static float *pack_for_positions(const struct attention *p, const float *x, long entry, float *to) {
  pack_columns(rows_of(p, x, entry, 0), p->positions, p->features, to);
  return to + parts_of(p->features, PANEL) * PANEL * p->positions;
}

static long room_for_features(const struct attention *p) { return parts_of(p->positions, PANEL) * PANEL * p->features; }
static long room_for_positions(const struct attention *p) { return parts_of(p->features, PANEL) * PANEL * p->positions; }

/* [block's queries, block's keys] = x [positions, features] · panels. */
static void over_features(
    const struct attention *p, const float *x, long entry, struct block b, const float *panels, float *to) {
  multiply_packed(
      rows_of(p, x, entry, b.first), panels + b.first_key * p->features, PANEL * p->features, to, b.apart, b.queries,
      p->features, b.keys, false);
}

/* to [positions, features], the block's queries of it = x [block's queries, block's keys] · panels. */
static void over_positions(
    const struct attention *p, const float *x, long entry, struct block b, const float *panels, float *to) {
  const struct matrix weights = {x, b.apart, 1};
  const long apart = p->heads * p->features;
  multiply_packed(
      weights, panels + b.first_key * PANEL, PANEL * p->positions, to + start_of(p, entry) + b.first * apart, apart,
      b.queries, b.keys, p->features, false);
}

static void score(const struct attention *p, long entry, struct block b, const float *panels, float *scores) {
  over_features(p, p->q, entry, b, panels, scores);
  for (long i = 0; i < b.queries; i++) { /* what a query does not see, and what fills up its row */
    const long query = b.first + i, first = most(0, query - p->window + 1) - b.first_key;
    const long end = (p->causal ? query + 1 : least(p->positions, query + p->window)) - b.first_key;
    for (long j = 0; j < first; j++) scores[i * b.apart + j] = MASKED;
    for (long j = end; j < b.width; j++) scores[i * b.apart + j] = MASKED;
  }
}

static void attend_block(
    const struct attention *p, long entry, struct block b, const float *keys, const float *values, float *scores) {
  float sums[STRIP];
  score(p, entry, b, keys, scores);
  for (long i = 0; i < b.queries; i++) {
    float *row = scores + i * b.apart;
    const float peak = greatest_of(row, b.width);
    sums[i] = exponentials(row, b.width, peak);
    p->log_sums[entry * p->positions + b.first + i] = peak + logf(sums[i]);
  }
  over_positions(p, scores, entry, b, values, p->attended);
  const long apart = p->heads * p->features;
  for (long i = 0; i < b.queries; i++) {
    float *to = p->attended + start_of(p, entry) + (b.first + i) * apart;
    const float factor = 1 / sums[i];
    for (long f = 0; f < p->features; f++) to[f] *= factor;
  }
}

/* A task is a group of an entry's blocks. */
static void attend_group(const void *what, long task) {
  const struct attention *p = what;
  const long entry = task / p->groups, blocks = parts_of(p->positions, p->block), group = task % p->groups;
  float *keys = scratch(room_for_features(p) + room_for_positions(p) + scores_room(p));
  if (!keys) {
    atomic_store(p->failed, true);
    return;
  }
  float *values = pack_for_features(p, p->k, entry, keys);
  float *scores = pack_for_positions(p, p->v, entry, values);
  for (long block = blocks * group / p->groups; block < blocks * (group + 1) / p->groups; block++)
    attend_block(p, entry, block_at(p, block * p->block), keys, values, scores);
}

/* The weights of a block, and the gradients of its scores. */
static void differentiate_scores(
    const struct attention *p, long entry, struct block b, const float *keys, const float *values, float *weights,
    float *gradients) {
  const struct matrix upstream = rows_of(p, p->upstream, entry, b.first);
  const struct matrix attended = rows_of(p, p->attended_before, entry, b.first);
  score(p, entry, b, keys, weights);
  over_features(p, p->upstream, entry, b, values, gradients);
  for (long i = 0; i < b.queries; i++) {
    float *row = weights + i * b.apart, *gradient = gradients + i * b.apart;
    const float mean = dot(upstream.data + i * upstream.down, attended.data + i * attended.down, p->features);
    const float log_sum = p->log_sums_before[entry * p->positions + b.first + i];
    for (long j = 0; j < b.width; j += LANES) {
      const vector weight = exponential(*(vector *)(row + j) - log_sum);
      *(vector *)(row + j) = weight;
      *(vector *)(gradient + j) = weight * (*(vector *)(gradient + j) - mean);
    }
  }
}

/* Where the part of a block's keys ends that begins at `from`: keys of a part have gradients already, or none, and,
 * causal, no query of the strips before sees one of them. */
static long end_of_part(const struct attention *p, struct block b, long from, long seen) {
  const long end = from < seen ? least(seen, b.first_key + b.keys) : b.first_key + b.keys;
  return p->causal ? least(end, from < b.first ? b.first : from + STRIP) : end;
}

static void differentiate(const void *what, long entry) {
  const struct attention *p = what;
  const long start = start_of(p, entry), apart = p->heads * p->features, features = p->features;
  float *keys = scratch(2 * room_for_features(p) + room_for_positions(p) + 2 * scores_room(p));
  if (!keys) {
    atomic_store(p->failed, true);
    return;
  }
  float *values = pack_for_features(p, p->k, entry, keys);
  float *keys_again = pack_for_features(p, p->v, entry, values);
  float *weights = pack_for_positions(p, p->k, entry, keys_again), *gradients = weights + scores_room(p);
  long seen = 0; /* keys that a block before has seen: the others have no gradients yet */
  for (long first = 0; first < p->positions; first += p->block) {
    const struct block b = block_at(p, first);
    for (long i = 0; i < b.queries; i += STRIP)
      differentiate_scores(p, entry, strip_of(p, b, i), keys, values, weights + i * b.apart, gradients + i * b.apart);
    for (long from = b.first_key, until; from < b.first_key + b.keys; from = until) {
      until = end_of_part(p, b, from, seen);
      const long i = p->causal ? most(0, from - first) : 0; /* queries before see none of these keys */
      const long at = i * b.apart + from - b.first_key, place = start + from * apart, count = until - from;
      const struct matrix by_key = {weights + at, 1, b.apart}, gradients_by_key = {gradients + at, 1, b.apart};
      multiply(
          by_key, rows_of(p, p->upstream, entry, first + i), p->dv + place, apart, count, b.queries - i, features,
          from < seen);
      multiply(
          gradients_by_key, rows_of(p, p->q, entry, first + i), p->dk + place, apart, count, b.queries - i, features,
          from < seen);
    }
    seen = most(seen, b.first_key + b.keys);
    for (long i = 0; i < b.queries; i += STRIP)
      over_positions(p, gradients + i * b.apart, entry, strip_of(p, b, i), keys_again, p->dq);
  }
}

/* The sizes and the kind of attention; false: these are no queries, keys and values. */
static bool set_up(const XLA_FFI_CallFrame *frame, struct attention *p, long queries, atomic_bool *failed) {
  const XLA_FFI_Buffer *q = operand(frame, 0);
  for (int64_t i = 0; i < 3; i++)
    if (!is_float(operand(frame, i), 4) || !same_shape(operand(frame, i), q)) return false;
  *p = (struct attention){
      .batch = q->dims[0], .positions = q->dims[1], .heads = q->dims[2], .features = q->dims[3],
      .causal = integer(frame, "causal", 0), .failed = failed,
      .q = q->data, .k = operand(frame, 1)->data, .v = operand(frame, 2)->data};
  const long window = integer(frame, "window", 0);
  p->window = window > 0 ? least(window, p->positions) : p->positions;
  const long room = SCORES / most(1, p->positions); /* whole strips where it can be */
  p->block = least(queries, room < STRIP ? most(4, room) : room / STRIP * STRIP);
  atomic_init(failed, false);
  return true;
}

static bool are_log_sums(const XLA_FFI_Buffer *x, const struct attention *p) {
  return is_float(x, 3) && x->dims[0] == p->batch && x->dims[1] == p->heads && x->dims[2] == p->positions;
}

/* attended, log_sums of q, k, v. A query sees `window` keys at most, its own included (0: all), in each direction, or
 * with `causal` in that of earlier positions. */
static XLA_FFI_Error *attend(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  struct attention p;
  atomic_bool failed;
  if (!has(frame, 3, 2)) return invalid(frame, "another number of tensors");
  if (!set_up(frame, &p, STRIP, &failed) || !same_shape(result(frame, 0), operand(frame, 0)) ||
      !is_float(result(frame, 0), 4) || !are_log_sums(result(frame, 1), &p))
    return invalid(frame, "these are no queries, keys and values in float32");
  p.attended = result(frame, 0)->data;
  p.log_sums = result(frame, 1)->data;
  if (!elements(operand(frame, 0))) return NULL;
  p.groups = least(parts_of(p.positions, p.block), parts_of(2 * thread_count(frame), p.batch * p.heads));
  share_out(frame, p.batch * p.heads * p.groups, attend_group, &p);
  return atomic_load(&failed) ? out_of_memory(frame) : NULL;
}

/* dq, dk, dv of q, k, v, attended, log_sums and the gradient of attended. */
static XLA_FFI_Error *gradient(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  struct attention p;
  atomic_bool failed;
  if (!has(frame, 6, 3)) return invalid(frame, "another number of tensors");
  bool fits = set_up(frame, &p, QUERIES, &failed) && are_log_sums(operand(frame, 4), &p);
  for (int64_t i = 0; i < 5 && fits; i++) {
    const XLA_FFI_Buffer *x = i < 3 ? result(frame, i) : operand(frame, i == 3 ? 3 : 5);
    fits = is_float(x, 4) && same_shape(x, operand(frame, 0));
  }
  if (!fits) return invalid(frame, "these are no queries, keys, values and gradients in float32");
  p.attended_before = operand(frame, 3)->data;
  p.log_sums_before = operand(frame, 4)->data;
  p.upstream = operand(frame, 5)->data;
  p.dq = result(frame, 0)->data;
  p.dk = result(frame, 1)->data;
  p.dv = result(frame, 2)->data;
  if (elements(operand(frame, 0))) share_out(frame, p.batch * p.heads, differentiate, &p);
  return atomic_load(&failed) ? out_of_memory(frame) : NULL;
}

bool add_attention(const XLA_FFI_Api *api) {
  return add(api, "gpt_mesh_attend", attend) && add(api, "gpt_mesh_attend_gradient", gradient);
}
