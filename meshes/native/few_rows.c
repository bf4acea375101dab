/* Products of a few rows with matrices, in float32, for programs that XLA compiles for a CPU: decoding.
 *
 * Such a product should take as long as reading the matrix once. The products that XLA calls read it as fast for one
 * row, but take twice that for eight: they are made for many rows, for which they first copy the matrix.
 *
 * A row's result does not depend on the other rows, nor on the number of threads.
 */
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "vectors.h"

#define TILE (2 * LANES) /* columns */
#define GROUP 8          /* rows at most whose sums are in registers */
#define STEPS 4          /* rows of the matrix that are read side by side */
#define SUMS 8192        /* of all rows, beside each other: 32 KiB */
#define LONG_PIECE 512   /* columns of a row, for which it is worth to cut a thread's part into several */
#define LEAST_WORK 32768 /* elements of matrices for which further threads pay */

enum form { STRAIGHT, TURNED, FIRST_SUMMED, FIRST_COLUMNS };

/* c [batch, rows, columns] = a [batch, rows, summed] · b, which is [batch, summed, columns], or turned: [batch,
 * columns, summed]. A task is `share` columns, or where there is a batch, `share` of its products. */
struct product {
  enum form form;
  long batch, rows, summed, columns, share;
  const float *a, *b;
  float *c;
  const float *panels; /* a as [batch, summed / STEPS, rows, STEPS], what is left over as [batch, the rest, rows] */
  /* Of the two last forms: how far the sum goes, where all after that is 0 in a, or how many columns are wanted, where
   * the others may hold anything. One for `batch / limit_count` products that follow each other. */
  const int32_t *limits;
  long limit_count;
};

/* sums [columns / TILE, all rows, TILE] of `rows` of the rows += a [rows, steps] · b [steps, columns], whose rows are
 * `apart` from each other. Reads b once, and asks for what is `steps` rows further on. */
INLINE void add_outer(
    const int rows, const int steps, const float *a, const float *b, long apart, long columns, long all_rows,
    float *sums) {
  float last[STEPS * TILE]; /* what is left over by whole tiles, filled up: rounded like those */
  for (long j = 0; j < columns; j += TILE, sums += all_rows * TILE) {
    const float *tile = b + j;
    if (columns - j < TILE) {
      memset(last, 0, sizeof last);
      for (int s = 0; s < steps; s++) memcpy(last + s * TILE, tile + s * apart, sizeof(float) * (columns - j));
      tile = last;
      apart = TILE;
    }
    vector sum[GROUP][2];
    UNROLLED for (int r = 0; r < rows; r++) {
      sum[r][0] = *(const vector *)(sums + r * TILE);
      sum[r][1] = *(const vector *)(sums + r * TILE + LANES);
    }
    UNROLLED for (int s = 0; s < steps; s++) {
      const float *from = tile + s * apart;
      __builtin_prefetch(from + steps * apart, 0, 1);
      __builtin_prefetch(from + steps * apart + LANES, 0, 1);
      const vector left = *(const vector *)from, right = *(const vector *)(from + LANES);
      UNROLLED for (int r = 0; r < rows; r++) {
        sum[r][0] += a[r * steps + s] * left;
        sum[r][1] += a[r * steps + s] * right;
      }
    }
    UNROLLED for (int r = 0; r < rows; r++) {
      *(vector *)(sums + r * TILE) = sum[r][0];
      *(vector *)(sums + r * TILE + LANES) = sum[r][1];
    }
  }
}

/* The same for any number of rows: those left over by groups of eight, by fours, and so on. */
INLINE void add_outer_of_all(
    const int steps, const float *a, const float *b, long apart, long columns, long rows, float *sums) {
  for (long r = 0, count; r < rows; r += count, a += count * steps, sums += count * TILE) {
    const long left = rows - r;
    count = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    switch (count) {
      case 8: add_outer(8, steps, a, b, apart, columns, rows, sums); break;
      case 4: add_outer(4, steps, a, b, apart, columns, rows, sums); break;
      case 2: add_outer(2, steps, a, b, apart, columns, rows, sums); break;
      default: add_outer(1, steps, a, b, apart, columns, rows, sums);
    }
  }
}

static void multiply(const struct product *p, long entry, long first, long end) {
  _Alignas(64) float sums[SUMS];
  const float *panel = p->panels + entry * p->rows * p->summed, *b = p->b + entry * p->summed * p->columns;
  float *c = p->c + entry * p->rows * p->columns;
  long summed = p->summed;
  if (p->limits) {
    const long limit = p->limits[entry * p->limit_count / p->batch], wanted = (limit + TILE - 1) / TILE * TILE;
    if (p->form == FIRST_SUMMED) {
      summed = least(summed, (limit + STEPS - 1) / STEPS * STEPS);
    } else if (wanted < end) {
      const long from = wanted > first ? wanted : first;
      for (long r = 0; r < p->rows; r++) memset(c + r * p->columns + from, 0, sizeof(float) * (end - from));
      end = from;
    }
  }
  const long block = SUMS / p->rows / TILE * TILE, whole = summed - summed % STEPS;
  for (long j = first; j < end; j += block) {
    const long columns = least(block, end - j);
    memset(sums, 0, sizeof(float) * p->rows * ((columns + TILE - 1) / TILE * TILE));
    for (long k = 0; k < whole; k += STEPS)
      add_outer_of_all(STEPS, panel + k * p->rows, b + k * p->columns + j, p->columns, columns, p->rows, sums);
    for (long k = whole; k < summed; k++)
      add_outer_of_all(1, panel + k * p->rows, b + k * p->columns + j, p->columns, columns, p->rows, sums);
    for (long r = 0; r < p->rows; r++)
      for (long t = 0; t < columns; t += TILE)
        memcpy(
            c + r * p->columns + j + t, sums + (t * p->rows) + r * TILE, sizeof(float) * least(TILE, columns - t));
  }
}

/* The first `count` numbers, then zeros. */
INLINE vector first_of(const float *from, long count) {
  float part[LANES] = {0};
  memcpy(part, from, sizeof(float) * count);
  return *(vector *)part;
}

/* `columns` columns of c from as many rows of the turned b. */
INLINE void take_inner(
    const int rows, const int columns, const float *a, const float *b, long summed, long apart, float *c) {
  vector sum[GROUP][3];
  UNROLLED for (int r = 0; r < rows; r++) UNROLLED for (int q = 0; q < columns; q++) sum[r][q] = (vector){0};
  long k = 0;
  for (; k + LANES <= summed; k += LANES) {
    vector weights[3];
    UNROLLED for (int q = 0; q < columns; q++) {
      __builtin_prefetch(b + (q + columns) * summed + k);
      weights[q] = *(const vector *)(b + q * summed + k);
    }
    UNROLLED for (int r = 0; r < rows; r++) {
      const vector x = *(const vector *)(a + r * summed + k);
      UNROLLED for (int q = 0; q < columns; q++) sum[r][q] += x * weights[q];
    }
  }
  if (k < summed) { /* rounded like the others */
    vector weights[3];
    for (int q = 0; q < columns; q++) weights[q] = first_of(b + q * summed + k, summed - k);
    UNROLLED for (int r = 0; r < rows; r++) {
      const vector x = first_of(a + r * summed + k, summed - k);
      UNROLLED for (int q = 0; q < columns; q++) sum[r][q] += x * weights[q];
    }
  }
  for (int r = 0; r < rows; r++)
    for (int q = 0; q < columns; q++) c[r * apart + q] = total(sum[r][q]);
}

INLINE void take_inner_of_all(const int columns, const float *a, const float *b, const struct product *p, float *c) {
  for (long r = 0, count; r < p->rows; r += count, a += count * p->summed, c += count * p->columns) {
    const long left = p->rows - r;
    count = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    switch (count) {
      case 8: take_inner(8, columns, a, b, p->summed, p->columns, c); break;
      case 4: take_inner(4, columns, a, b, p->summed, p->columns, c); break;
      case 2: take_inner(2, columns, a, b, p->summed, p->columns, c); break;
      default: take_inner(1, columns, a, b, p->summed, p->columns, c);
    }
  }
}

static void multiply_turned(const struct product *p, long entry, long first, long end) {
  const float *a = p->a + entry * p->rows * p->summed, *b = p->b + entry * p->summed * p->columns;
  float *c = p->c + entry * p->rows * p->columns;
  long j = first;
  for (; j + 3 <= end; j += 3) take_inner_of_all(3, a, b + j * p->summed, p, c + j);
  for (; j < end; j++) take_inner_of_all(1, a, b + j * p->summed, p, c + j);
}

typedef void multiplier(const struct product *p, long entry, long first, long end);

INLINE void do_share(const struct product *p, long task, multiplier *multiply_entry) {
  const long first = task * p->share;
  if (p->batch == 1) {
    multiply_entry(p, 0, first, least(first + p->share, p->columns));
  } else {
    const long end = least(first + p->share, p->batch);
    for (long entry = first; entry < end; entry++) multiply_entry(p, entry, 0, p->columns);
  }
}

static void straight_share(const void *p, long task) { do_share(p, task, multiply); }
static void turned_share(const void *p, long task) { do_share(p, task, multiply_turned); }

/* What `panels` is to be. */
static void lay_out(const struct product *p, float *to) {
  const long whole = p->summed - p->summed % STEPS;
  for (long entry = 0; entry < p->batch; entry++) {
    const float *a = p->a + entry * p->rows * p->summed;
    for (long k = 0; k < whole; k += STEPS)
      for (long r = 0; r < p->rows; r++, to += STEPS) memcpy(to, a + r * p->summed + k, sizeof(float) * STEPS);
    for (long k = whole; k < p->summed; k++)
      for (long r = 0; r < p->rows; r++) *to++ = a[r * p->summed + k];
  }
}

/* How much of `p` is a task: `share`. Gives the number of tasks. */
static long cut(const XLA_FFI_CallFrame *frame, struct product *p) {
  const long threads = p->batch * p->summed * p->columns < LEAST_WORK ? 1 : thread_count(frame);
  if (p->batch > 1) {
    p->share = (p->batch + 4 * threads - 1) / (4 * threads);
    return (p->batch + p->share - 1) / p->share;
  }
  /* Up to four a thread, so that one that the system holds up has others do its part; but long pieces of rows. */
  const long each = threads > 1 ? least(p->columns / (threads * LONG_PIECE), 4) : 1, tasks = threads * (each ? each : 1);
  p->share = ((p->columns + tasks - 1) / tasks + TILE - 1) / TILE * TILE;
  return (p->columns + p->share - 1) / p->share;
}

/* Whether b is what a and c ask for: of their type and batch, with all that is summed over, and all columns. */
static bool fits(const XLA_FFI_Buffer *a, const XLA_FFI_Buffer *b, const XLA_FFI_Buffer *c, enum form form) {
  const int64_t rank = c->rank;
  if (rank < 2 || a->rank != rank || b->rank != rank) return false;
  if (a->dtype != XLA_FFI_DataType_F32 || b->dtype != XLA_FFI_DataType_F32 || c->dtype != XLA_FFI_DataType_F32)
    return false;
  for (int64_t i = 0; i < rank - 2; i++)
    if (a->dims[i] != c->dims[i] || b->dims[i] != c->dims[i]) return false;
  const int64_t *rows = a->dims + rank - 2, *matrix = b->dims + rank - 2, *result = c->dims + rank - 2;
  const bool turned = form == TURNED;
  return rows[0] == result[0] && matrix[turned ? 1 : 0] == rows[1] && matrix[turned ? 0 : 1] == result[1];
}

/* Operands a and b, one result c: of the same rank, in float32, with any number of batch dimensions before the last
 * two; limits as a third operand where the form has them. */
static XLA_FFI_Error *answer(XLA_FFI_CallFrame *frame, enum form form) {
  if (asked_for_version(frame)) return NULL;
  const bool limited = form == FIRST_SUMMED || form == FIRST_COLUMNS;
  if (!has(frame, 2 + limited, 1)) return invalid(frame, "another number of tensors");
  const XLA_FFI_Buffer *a = frame->args.args[0], *b = frame->args.args[1], *c = frame->rets.rets[0];
  const int64_t rank = c->rank;
  if (!fits(a, b, c, form))
    return invalid(frame, "these are no factors of such a product in float32");
  struct product p = {
      .form = form, .batch = 1, .rows = c->dims[rank - 2], .summed = a->dims[rank - 1], .columns = c->dims[rank - 1],
      .a = a->data, .b = b->data, .c = c->data};
  for (int64_t i = 0; i < rank - 2; i++) p.batch *= c->dims[i];
  if (!p.batch || !p.rows || !p.columns) return NULL;
  if (limited) {
    const XLA_FFI_Buffer *limits = frame->args.args[2];
    if (limits->dtype != XLA_FFI_DataType_S32 || limits->rank != 1 || !limits->dims[0] || p.batch % limits->dims[0])
      return invalid(frame, "limits are a vector of int32 for the batch");
    p.limits = limits->data;
    p.limit_count = limits->dims[0];
    for (long i = 0; i < p.limit_count; i++)
      if (p.limits[i] < 0) return invalid(frame, "a limit below 0");
  }
  if (p.rows > SUMS / TILE) return invalid(frame, "too many rows");
  const long tasks = cut(frame, &p);
  if (form == TURNED) {
    share_out(frame, tasks, turned_share, &p);
    return NULL;
  }
  float *panels = NULL;
  if (p.rows > 1) {
    panels = malloc(sizeof(float) * p.batch * p.rows * p.summed);
    if (!panels) return out_of_memory(frame);
    lay_out(&p, panels);
  }
  p.panels = panels ? panels : p.a; /* one row is laid out so already */
  share_out(frame, tasks, straight_share, &p);
  free(panels);
  return NULL;
}

static XLA_FFI_Error *straight(XLA_FFI_CallFrame *frame) { return answer(frame, STRAIGHT); }
static XLA_FFI_Error *turned(XLA_FFI_CallFrame *frame) { return answer(frame, TURNED); }
static XLA_FFI_Error *first_summed(XLA_FFI_CallFrame *frame) { return answer(frame, FIRST_SUMMED); }
static XLA_FFI_Error *first_columns(XLA_FFI_CallFrame *frame) { return answer(frame, FIRST_COLUMNS); }

bool add_few_rows(const XLA_FFI_Api *api) {
  return add(api, "gpt_mesh_few_rows", straight) && add(api, "gpt_mesh_few_rows_turned", turned) &&
         add(api, "gpt_mesh_few_rows_first_summed", first_summed) &&
         add(api, "gpt_mesh_few_rows_first_columns", first_columns);
}
