/* Matmuls of a few rows with a matrix, in float32, for programs that XLA compiles for a CPU: decoding.
 *
 * Such a matmul should take as long as reading the matrix once. The matmul that XLA calls does for one row, but takes
 * twice as long for eight: it is made for many rows, and first copies the matrix.
 *
 * The result for a row depends neither on the other rows nor on the number of threads.
 */
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "vectors.h"

#define TILE (2 * LANES) /* columns */
#define GROUP 8          /* maximum number of rows whose sums are in registers */
#define STEPS 4          /* rows of the matrix that are read together */
#define SUMS 8192        /* of all rows together: 32 KiB */
#define LONG_PIECE 512   /* columns of a row from which on a thread's part is worth dividing */
#define MIN_WORK 32768   /* elements of matrices from which on further threads pay off */

enum form { STRAIGHT, TRANSPOSED, FIRST_SUMMED, FIRST_COLUMNS };

/* c [batch, rows, columns] = a [batch, rows, summed] · b, which is [batch, summed, columns], or transposed: [batch,
 * columns, summed]. A task is `share` columns or, if there is a batch, `share` of its entries. */
struct matmul {
  enum form form;
  long batch, rows, summed, columns, share;
  const float *a, *b;
  float *c;
  const float *panels; /* a as [batch, summed / STEPS, rows, STEPS], then the remainder as [batch, rest, rows] */
  /* For the last two forms: how many elements are summed (a is 0 after them), or how many columns are computed (the
   * others may hold anything). Each limit is for `batch / limit_count` consecutive entries. */
  const int32_t *limits;
  long limit_count;
};

/* sums [columns / TILE, all rows, TILE] of `rows` of the rows += a [rows, steps] · b [steps, columns], whose rows are
 * `apart` from each other. Reads b once, and prefetches what is `steps` rows ahead. */
INLINE void add_outer(
    const int rows, const int steps, const float *a, const float *b, long apart, long columns, long all_rows,
    float *sums) {
  float last[STEPS * TILE]; /* the remainder after whole tiles, padded, so that it is rounded like those */
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

/* The same for any number of rows: in groups of eight, then four, two and one. */
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

static void multiply(const struct matmul *p, long entry, long first, long end) {
  _Alignas(64) float sums[SUMS];
  const float *panel = p->panels + entry * p->rows * p->summed, *b = p->b + entry * p->summed * p->columns;
  float *c = p->c + entry * p->rows * p->columns;
  long summed = p->summed;
  if (p->limits) {
    const long limit = p->limits[entry * p->limit_count / p->batch], wanted = (limit + TILE - 1) / TILE * TILE;
    if (p->form == FIRST_SUMMED) {
      summed = min_of(summed, (limit + STEPS - 1) / STEPS * STEPS);
    } else if (wanted < end) {
      const long from = wanted > first ? wanted : first;
      for (long r = 0; r < p->rows; r++) memset(c + r * p->columns + from, 0, sizeof(float) * (end - from));
      end = from;
    }
  }
  const long block = SUMS / p->rows / TILE * TILE, whole = summed - summed % STEPS;
  for (long j = first; j < end; j += block) {
    const long columns = min_of(block, end - j);
    memset(sums, 0, sizeof(float) * p->rows * ((columns + TILE - 1) / TILE * TILE));
    for (long k = 0; k < whole; k += STEPS)
      add_outer_of_all(STEPS, panel + k * p->rows, b + k * p->columns + j, p->columns, columns, p->rows, sums);
    for (long k = whole; k < summed; k++)
      add_outer_of_all(1, panel + k * p->rows, b + k * p->columns + j, p->columns, columns, p->rows, sums);
    for (long r = 0; r < p->rows; r++)
      for (long t = 0; t < columns; t += TILE)
        memcpy(
            c + r * p->columns + j + t, sums + (t * p->rows) + r * TILE, sizeof(float) * min_of(TILE, columns - t));
  }
}

/* The first `count` numbers, then zeros. */
INLINE vector first_of(const float *from, long count) {
  float part[LANES] = {0};
  memcpy(part, from, sizeof(float) * count);
  return *(vector *)part;
}

/* `columns` columns of c, from the same number of rows of the transposed b. */
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
  if (k < summed) { /* padded, so that it is rounded like the others */
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

INLINE void take_inner_of_all(const int columns, const float *a, const float *b, const struct matmul *p, float *c) {
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

static void multiply_transposed(const struct matmul *p, long entry, long first, long end) {
  const float *a = p->a + entry * p->rows * p->summed, *b = p->b + entry * p->summed * p->columns;
  float *c = p->c + entry * p->rows * p->columns;
  long j = first;
  for (; j + 3 <= end; j += 3) take_inner_of_all(3, a, b + j * p->summed, p, c + j);
  for (; j < end; j++) take_inner_of_all(1, a, b + j * p->summed, p, c + j);
}

typedef void multiplier(const struct matmul *p, long entry, long first, long end);

INLINE void do_share(const struct matmul *p, long task, multiplier *multiply_entry) {
  const long first = task * p->share;
  if (p->batch == 1) {
    multiply_entry(p, 0, first, min_of(first + p->share, p->columns));
  } else {
    const long end = min_of(first + p->share, p->batch);
    for (long entry = first; entry < end; entry++) multiply_entry(p, entry, 0, p->columns);
  }
}

static void straight_share(const void *p, long task) { do_share(p, task, multiply); }
static void transposed_share(const void *p, long task) { do_share(p, task, multiply_transposed); }

/* Write the contents of `panels`. */
static void lay_out(const struct matmul *p, float *to) {
  const long whole = p->summed - p->summed % STEPS;
  for (long entry = 0; entry < p->batch; entry++) {
    const float *a = p->a + entry * p->rows * p->summed;
    for (long k = 0; k < whole; k += STEPS)
      for (long r = 0; r < p->rows; r++, to += STEPS) memcpy(to, a + r * p->summed + k, sizeof(float) * STEPS);
    for (long k = whole; k < p->summed; k++)
      for (long r = 0; r < p->rows; r++) *to++ = a[r * p->summed + k];
  }
}

/* Set `share`, the size of a task; returns the number of tasks. */
static long cut(const XLA_FFI_CallFrame *frame, struct matmul *p) {
  const long threads = p->batch * p->summed * p->columns < MIN_WORK ? 1 : thread_count(frame);
  if (p->batch > 1) {
    p->share = (p->batch + 4 * threads - 1) / (4 * threads);
    return (p->batch + p->share - 1) / p->share;
  }
  /* Up to four for each thread, so that others can take over from a thread that is held up; but long pieces of rows. */
  const long each = threads > 1 ? min_of(p->columns / (threads * LONG_PIECE), 4) : 1;
  const long tasks = threads * (each ? each : 1);
  p->share = ((p->columns + tasks - 1) / tasks + TILE - 1) / TILE * TILE;
  return (p->columns + p->share - 1) / p->share;
}

/* Whether types, batches and sizes of a, b and c agree. */
static bool fits(const XLA_FFI_Buffer *a, const XLA_FFI_Buffer *b, const XLA_FFI_Buffer *c, enum form form) {
  const int64_t rank = c->rank;
  if (rank < 2 || a->rank != rank || b->rank != rank) return false;
  if (a->dtype != XLA_FFI_DataType_F32 || b->dtype != XLA_FFI_DataType_F32 || c->dtype != XLA_FFI_DataType_F32)
    return false;
  for (int64_t i = 0; i < rank - 2; i++)
    if (a->dims[i] != c->dims[i] || b->dims[i] != c->dims[i]) return false;
  const int64_t *rows = a->dims + rank - 2, *matrix = b->dims + rank - 2, *result = c->dims + rank - 2;
  const bool transposed = form == TRANSPOSED;
  return rows[0] == result[0] && matrix[transposed ? 1 : 0] == rows[1] && matrix[transposed ? 0 : 1] == result[1];
}

/* Operands a and b, one result c: of the same rank, in float32, with any number of batch dimensions before the last
 * two; limits as a third operand where the form has them. */
static XLA_FFI_Error *answer(XLA_FFI_CallFrame *frame, enum form form) {
  if (asked_for_version(frame)) return NULL;
  const bool limited = form == FIRST_SUMMED || form == FIRST_COLUMNS;
  if (!has(frame, 2 + limited, 1)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *a = frame->args.args[0], *b = frame->args.args[1], *c = frame->rets.rets[0];
  const int64_t rank = c->rank;
  if (!fits(a, b, c, form))
    return invalid(frame, "shapes or types do not match a float32 matmul");
  struct matmul p = {
      .form = form, .batch = 1, .rows = c->dims[rank - 2], .summed = a->dims[rank - 1], .columns = c->dims[rank - 1],
      .a = a->data, .b = b->data, .c = c->data};
  for (int64_t i = 0; i < rank - 2; i++) p.batch *= c->dims[i];
  if (!p.batch || !p.rows || !p.columns) return NULL;
  if (limited) {
    const XLA_FFI_Buffer *limits = frame->args.args[2];
    if (limits->dtype != XLA_FFI_DataType_S32 || limits->rank != 1 || !limits->dims[0] || p.batch % limits->dims[0])
      return invalid(frame, "limits must be an int32 vector that divides the batch");
    p.limits = limits->data;
    p.limit_count = limits->dims[0];
    for (long i = 0; i < p.limit_count; i++)
      if (p.limits[i] < 0) return invalid(frame, "a limit below 0");
  }
  if (p.rows > SUMS / TILE) return invalid(frame, "too many rows");
  const long tasks = cut(frame, &p);
  if (form == TRANSPOSED) {
    share_out(frame, tasks, transposed_share, &p);
    return NULL;
  }
  float *panels = NULL;
  if (p.rows > 1) {
    panels = malloc(sizeof(float) * p.batch * p.rows * p.summed);
    if (!panels) return out_of_memory(frame);
    lay_out(&p, panels);
  }
  p.panels = panels ? panels : p.a; /* a single row has that layout already */
  share_out(frame, tasks, straight_share, &p);
  free(panels);
  return NULL;
}

static XLA_FFI_Error *straight(XLA_FFI_CallFrame *frame) { return answer(frame, STRAIGHT); }
static XLA_FFI_Error *transposed(XLA_FFI_CallFrame *frame) { return answer(frame, TRANSPOSED); }
static XLA_FFI_Error *first_summed(XLA_FFI_CallFrame *frame) { return answer(frame, FIRST_SUMMED); }
static XLA_FFI_Error *first_columns(XLA_FFI_CallFrame *frame) { return answer(frame, FIRST_COLUMNS); }

bool add_few_rows(const XLA_FFI_Api *api) {
  return add(api, "gpt_mesh_few_rows", straight) && add(api, "gpt_mesh_few_rows_transposed", transposed) &&
         add(api, "gpt_mesh_few_rows_first_summed", first_summed) &&
         add(api, "gpt_mesh_few_rows_first_columns", first_columns);
}
