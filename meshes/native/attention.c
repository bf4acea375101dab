/* Softmax attention, in float32, for programs that XLA compiles for a CPU.
 *
 * Logits are computed for one block of queries at a time, and only for keys that one of them sees: causal attention
 * does little more than half of the work, local attention only that of its window. The forward pass keeps the logarithm
 * of each query's softmax denominator; with it the backward pass recomputes the attention weights (Dao et al., 2022,
 * arXiv:2205.14135).
 *
 * Keys and values may have fewer heads than queries: each is read by a group of consecutive query heads. With slopes
 * (ALiBi), a logit falls by its head's slope times the distance of query and key. With starts (packed samples), a query
 * sees no key before the first position of its own sample.
 */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "matmul.h"
#include "vectors.h"

#define STRIP 24      /* queries that share their keys; in causal attention no later keys than the last query's */
#define QUERIES 96    /* of a block in the backward pass; a multiple of STRIP */
#define LOGITS 262144 /* of a block: 1 MiB, which fits the L2 cache */
#define TASKS 16      /* of the backward pass: below this number, query heads that share keys are divided into parts */

/* Tensors are [batch, positions, heads, features], those of keys and values with `kv_heads`, and `log_sums` is [batch,
 * heads, positions]. An entry is one query head of one sequence; `shared` of them read the same keys and values.
 */
struct attention {
  long batch, positions, heads, kv_heads, shared, features, window, block, groups;
  bool causal;
  const float *q, *k, *v, *slopes, *starts, *attended_before, *log_sums_before, *upstream;
  float *attended, *log_sums, *dq, *dk, *dv;
  long parts;      /* of the query heads that share keys, in the backward pass */
  float *sums[2]; /* dk and dv of the parts after the first, [batch, positions, kv_heads, features] each */
  atomic_bool *failed;
};

/* The queries of a block, and the keys that any of them sees. Rows of logits have `width` elements and a stride of
 * `apart`, which is not a power of two: those map to few cache sets. */
struct block {
  long first, queries, first_key, keys, width, apart;
};

/* The first key that a query of an entry sees; it does not fall from one query to the next. */
static long first_seen(const struct attention *p, long entry, long query) {
  const long start = p->starts ? (long)p->starts[entry / p->heads * p->positions + query] : 0;
  return max_of(start, query - p->window + 1);
}

static struct block block_at(const struct attention *p, long entry, long first) {
  const long end = min_of(first + p->block, p->positions);
  const long first_key = first_seen(p, entry, first) / PANEL * PANEL;
  const long keys = (p->causal ? end : min_of(p->positions, end - 1 + p->window)) - first_key;
  return (struct block){first, end - first, first_key, keys, padded(keys), padded(keys) + LANES};
}

/* The strip of a block that starts at its i-th query; in causal attention without later keys. */
static struct block strip_of(const struct attention *p, struct block b, long i) {
  b.first += i;
  b.queries = min_of(STRIP, b.queries - i);
  if (p->causal) b.keys = b.first + b.queries - b.first_key;
  b.width = padded(b.keys);
  return b;
}

static long logits_room(const struct attention *p) { return p->block * (padded(p->positions) + LANES); }

/* The offset of the first element of an entry, and of its keys and values. */
static long start_of(const struct attention *p, long entry) {
  return (entry / p->heads * p->positions * p->heads + entry % p->heads) * p->features;
}

static long kv_start_of(const struct attention *p, long entry) {
  const long kv_entry = entry / p->shared; /* of batch and kv heads: the heads of a sequence are whole groups */
  return (kv_entry / p->kv_heads * p->positions * p->kv_heads + kv_entry % p->kv_heads) * p->features;
}

/* [block, features]: rows of an entry's queries, and of its keys or values, starting at `first`. */
static struct matrix rows_of(const struct attention *p, const float *x, long entry, long first) {
  const long apart = p->heads * p->features;
  return (struct matrix){x + start_of(p, entry) + first * apart, apart, 1};
}

static struct matrix kv_rows_of(const struct attention *p, const float *x, long entry) {
  return (struct matrix){x + kv_start_of(p, entry), p->kv_heads * p->features, 1};
}

static struct matrix transposed(struct matrix m) { return (struct matrix){m.data, m.across, m.down}; }

/* All keys or values of an entry, packed for matmuls over features, and over positions. */
static float *pack_for_features(const struct attention *p, const float *x, long entry, float *to) {
  pack_columns(transposed(kv_rows_of(p, x, entry)), p->features, p->positions, to);
  return to + parts_of(p->positions, PANEL) * PANEL * p->features;
}

static float *pack_for_positions(const struct attention *p, const float *x, long entry, float *to) {
  pack_columns(kv_rows_of(p, x, entry), p->positions, p->features, to);
  return to + parts_of(p->features, PANEL) * PANEL * p->positions;
}

static long room_for_features(const struct attention *p) { return parts_of(p->positions, PANEL) * PANEL * p->features; }
static long room_for_positions(const struct attention *p) {
  return parts_of(p->features, PANEL) * PANEL * p->positions;
}

/* [block's queries, block's keys] = x [positions, features] · panels. */
static void over_features(
    const struct attention *p, const float *x, long entry, struct block b, const float *panels, float *to) {
  multiply_packed(
      rows_of(p, x, entry, b.first), panels + b.first_key * p->features, PANEL * p->features, to, b.apart, b.queries,
      p->features, b.keys, false);
}

/* The block's rows of `to` [positions, features] = x [block's queries, block's keys] · panels. */
static void over_positions(
    const struct attention *p, const float *x, long entry, struct block b, const float *panels, float *to) {
  const struct matrix weights = {x, b.apart, 1};
  const long apart = p->heads * p->features;
  multiply_packed(
      weights, panels + b.first_key * PANEL, PANEL * p->positions, to + start_of(p, entry) + b.first * apart, apart,
      b.queries, b.keys, p->features, false);
}

/* Subtract slope times the distance of each key from `query`, both counted from the row's first key. */
static void fall_with_distance(float *row, long width, long query, float slope) {
  const float place = (float)query;
  for (long j = 0; j < width; j++) row[j] -= slope * fabsf(place - (float)j);
}

static void compute_logits(const struct attention *p, long entry, struct block b, const float *panels, float *logits) {
  over_features(p, p->q, entry, b, panels, logits);
  for (long i = 0; i < b.queries; i++) { /* mask the keys that a query does not see, and padding */
    const long query = b.first + i, first = first_seen(p, entry, query) - b.first_key;
    const long end = (p->causal ? query + 1 : min_of(p->positions, query + p->window)) - b.first_key;
    if (p->slopes) fall_with_distance(logits + i * b.apart, b.width, query - b.first_key, p->slopes[entry % p->heads]);
    for (long j = 0; j < first; j++) logits[i * b.apart + j] = MASKED;
    for (long j = end; j < b.width; j++) logits[i * b.apart + j] = MASKED;
  }
}

static void attend_block(
    const struct attention *p, long entry, struct block b, const float *keys, const float *values, float *logits) {
  float sums[STRIP];
  compute_logits(p, entry, b, keys, logits);
  for (long i = 0; i < b.queries; i++) {
    float *row = logits + i * b.apart;
    const float peak = greatest_of(row, b.width);
    sums[i] = exponentials(row, b.width, peak);
    p->log_sums[entry * p->positions + b.first + i] = peak + logf(sums[i]);
  }
  over_positions(p, logits, entry, b, values, p->attended);
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
  float *keys = scratch(room_for_features(p) + room_for_positions(p) + logits_room(p));
  if (!keys) {
    atomic_store(p->failed, true);
    return;
  }
  float *values = pack_for_features(p, p->k, entry, keys);
  float *logits = pack_for_positions(p, p->v, entry, values);
  for (long block = blocks * group / p->groups; block < blocks * (group + 1) / p->groups; block++)
    attend_block(p, entry, block_at(p, entry, block * p->block), keys, values, logits);
}

/* The attention weights of a block, and the gradients of its logits. */
static void differentiate_logits(
    const struct attention *p, long entry, struct block b, const float *keys, const float *values, float *weights,
    float *gradients) {
  const struct matrix upstream = rows_of(p, p->upstream, entry, b.first);
  const struct matrix attended = rows_of(p, p->attended_before, entry, b.first);
  compute_logits(p, entry, b, keys, weights);
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

/* The end of the part of a block's keys that begins at `from`. Either all keys of a part have gradients already, or
 * none has; in causal attention no query of earlier strips sees them. */
static long end_of_part(const struct attention *p, struct block b, long from, long seen) {
  const long end = from < seen ? min_of(seen, b.first_key + b.keys) : b.first_key + b.keys;
  return p->causal ? min_of(end, from < b.first ? b.first : from + STRIP) : end;
}

/* Gradients of one entry's queries, and of its keys and values: set where `seen` keys have none yet, else added. */
static void differentiate_entry(
    const struct attention *p, long entry, const float *keys, const float *values, const float *keys_again,
    float *weights, float *dk, float *dv, bool add) {
  const long apart = p->kv_heads * p->features, features = p->features;
  float *gradients = weights + logits_room(p);
  long seen = add ? p->positions : 0; /* keys before this one have gradients already */
  for (long first = 0; first < p->positions; first += p->block) {
    const struct block b = block_at(p, entry, first);
    for (long i = 0; i < b.queries; i += STRIP)
      differentiate_logits(p, entry, strip_of(p, b, i), keys, values, weights + i * b.apart, gradients + i * b.apart);
    for (long from = b.first_key, until; from < b.first_key + b.keys; from = until) {
      until = end_of_part(p, b, from, seen);
      const long i = p->causal ? max_of(0, from - first) : 0; /* earlier queries do not see these keys */
      const long at = i * b.apart + from - b.first_key, place = from * apart, count = until - from;
      const struct matrix by_key = {weights + at, 1, b.apart}, gradients_by_key = {gradients + at, 1, b.apart};
      multiply(
          by_key, rows_of(p, p->upstream, entry, first + i), dv + place, apart, count, b.queries - i, features,
          from < seen);
      multiply(
          gradients_by_key, rows_of(p, p->q, entry, first + i), dk + place, apart, count, b.queries - i, features,
          from < seen);
    }
    seen = max_of(seen, b.first_key + b.keys);
    for (long i = 0; i < b.queries; i += STRIP)
      over_positions(p, gradients + i * b.apart, entry, strip_of(p, b, i), keys_again, p->dq);
  }
}

/* A task is a part of the query heads that share keys and values. */
static void differentiate(const void *what, long task) {
  const struct attention *p = what;
  const long part = task % p->parts, first = task / p->parts * p->shared;
  const long begin = first + p->shared * part / p->parts, end = first + p->shared * (part + 1) / p->parts;
  const long size = p->batch * p->positions * p->kv_heads * p->features, start = kv_start_of(p, begin);
  float *dk = part ? p->sums[0] + (part - 1) * size : p->dk, *dv = part ? p->sums[1] + (part - 1) * size : p->dv;
  float *keys = scratch(2 * room_for_features(p) + room_for_positions(p) + 2 * logits_room(p));
  if (!keys) {
    atomic_store(p->failed, true);
    return;
  }
  float *values = pack_for_features(p, p->k, begin, keys);
  float *keys_again = pack_for_features(p, p->v, begin, values);
  float *weights = pack_for_positions(p, p->k, begin, keys_again);
  for (long entry = begin; entry < end; entry++)
    differentiate_entry(p, entry, keys, values, keys_again, weights, dk + start, dv + start, entry > begin);
}

/* Add the parts' gradients of one sequence's keys and values. */
static void add_parts(const void *what, long sequence) {
  const struct attention *p = what;
  const long count = p->positions * p->kv_heads * p->features, size = p->batch * count, start = sequence * count;
  for (int which = 0; which < 2; which++) {
    float *to = (which ? p->dv : p->dk) + start;
    for (long part = 0; part < p->parts - 1; part++) {
      const float *from = p->sums[which] + part * size + start;
      for (long i = 0; i < count; i++) to[i] += from[i];
    }
  }
}

/* Set the sizes and the kind of attention; false if the operands are not queries, keys and values, and from number
 * `next` on what the attributes promise: the slope of each head, the start of each position's sample. */
static bool set_up(const XLA_FFI_CallFrame *frame, struct attention *p, long queries, int64_t next, atomic_bool *failed) {
  const XLA_FFI_Buffer *q = operand(frame, 0), *k = operand(frame, 1), *v = operand(frame, 2);
  if (!is_float(q, 4) || !is_float(k, 4) || !is_float(v, 4) || !same_shape(k, v)) return false;
  if (k->dims[0] != q->dims[0] || k->dims[1] != q->dims[1] || k->dims[3] != q->dims[3]) return false;
  if (q->dims[2] && (!k->dims[2] || q->dims[2] % k->dims[2])) return false;
  *p = (struct attention){
      .batch = q->dims[0], .positions = q->dims[1], .heads = q->dims[2], .kv_heads = k->dims[2],
      .shared = q->dims[2] / max_of(1, k->dims[2]), .features = q->dims[3],
      .causal = integer(frame, "causal", 0), .failed = failed, .q = q->data, .k = k->data, .v = v->data};
  if (integer(frame, "slopes", 0)) {
    const XLA_FFI_Buffer *given = operand(frame, next++);
    if (!is_float(given, 1) || given->dims[0] != p->heads) return false;
    p->slopes = given->data;
  }
  if (integer(frame, "starts", 0)) {
    const XLA_FFI_Buffer *given = operand(frame, next);
    if (!is_float(given, 2) || given->dims[0] != p->batch || given->dims[1] != p->positions || !p->causal) return false;
    p->starts = given->data;
  }
  const long window = integer(frame, "window", 0);
  p->window = window > 0 ? min_of(window, p->positions) : p->positions;
  const long room = LOGITS / max_of(1, p->positions); /* whole strips if possible */
  p->block = min_of(queries, room < STRIP ? max_of(4, room) : room / STRIP * STRIP);
  atomic_init(failed, false);
  return true;
}

/* How many operands the attributes promise beside the others. */
static int64_t more_operands(const XLA_FFI_CallFrame *frame) {
  return (integer(frame, "slopes", 0) != 0) + (integer(frame, "starts", 0) != 0);
}

static bool are_log_sums(const XLA_FFI_Buffer *x, const struct attention *p) {
  return is_float(x, 3) && x->dims[0] == p->batch && x->dims[1] == p->heads && x->dims[2] == p->positions;
}

/* q, k, v, slopes and starts if any -> attended, log_sums. A query sees at most `window` keys, its own included (0: all), in
 * each direction; with `causal`, only at earlier positions. */
static XLA_FFI_Error *attend(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  struct attention p;
  atomic_bool failed;
  if (!has(frame, 3 + more_operands(frame), 2)) return invalid(frame, "unexpected number of tensors");
  if (!set_up(frame, &p, STRIP, 3, &failed) ||
      !same_shape(result(frame, 0), operand(frame, 0)) || !is_float(result(frame, 0), 4) ||
      !are_log_sums(result(frame, 1), &p))
    return invalid(frame, "expected queries, keys and values in float32");
  p.attended = result(frame, 0)->data;
  p.log_sums = result(frame, 1)->data;
  if (!elements(operand(frame, 0))) return NULL;
  p.groups = min_of(parts_of(p.positions, p.block), parts_of(2 * thread_count(frame), p.batch * p.heads));
  share_out(frame, p.batch * p.heads * p.groups, attend_group, &p);
  return atomic_load(&failed) ? out_of_memory(frame) : NULL;
}

/* q, k, v, attended, log_sums, gradient of attended, slopes and starts if any -> dq, dk, dv. */
static XLA_FFI_Error *gradient(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  struct attention p;
  atomic_bool failed;
  if (!has(frame, 6 + more_operands(frame), 3)) return invalid(frame, "unexpected number of tensors");
  bool fits = set_up(frame, &p, QUERIES, 6, &failed) && are_log_sums(operand(frame, 4), &p);
  for (int64_t i = 0; i < 5 && fits; i++) {
    const XLA_FFI_Buffer *x = i < 3 ? result(frame, i) : operand(frame, i == 3 ? 3 : 5);
    fits = is_float(x, 4) && same_shape(x, operand(frame, i == 1 || i == 2));
  }
  if (!fits) return invalid(frame, "expected queries, keys, values and gradients in float32");
  p.attended_before = operand(frame, 3)->data;
  p.log_sums_before = operand(frame, 4)->data;
  p.upstream = operand(frame, 5)->data;
  p.dq = result(frame, 0)->data;
  p.dk = result(frame, 1)->data;
  p.dv = result(frame, 2)->data;
  if (!elements(operand(frame, 0))) return NULL;
  /* Enough parts for many threads; their number does not depend on that of threads, nor does the result. */
  p.parts = min_of(p.shared, parts_of(TASKS, p.batch * p.kv_heads));
  const long more = (p.parts - 1) * elements(operand(frame, 1));
  if (more) {
    p.sums[0] = malloc(2 * sizeof(float) * more);
    if (!p.sums[0]) return out_of_memory(frame);
    p.sums[1] = p.sums[0] + more;
  }
  share_out(frame, p.batch * p.kv_heads * p.parts, differentiate, &p);
  if (more && !atomic_load(&failed)) share_out(frame, p.batch, add_parts, &p);
  free(p.sums[0]);
  return atomic_load(&failed) ? out_of_memory(frame) : NULL;
}

bool add_attention(const XLA_FFI_Api *api) {
  return add(api, "gpt_mesh_attend", attend) && add(api, "gpt_mesh_attend_gradient", gradient);
}
