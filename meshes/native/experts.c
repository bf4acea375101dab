/* Mixtures of experts in float32, for programs that XLA compiles for a CPU: rows are sorted by their expert, and the rows
 * of each expert are multiplied by its own matrix. No row is padded, however uneven the load.
 */
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "matmul.h"

#define HEIGHT 264 /* rows of a task, a multiple of the height of a tile on every processor */
#define WIDTH 768  /* columns of a task, a multiple of the width of a tile */
#define SMALL 96   /* columns of the smallest task */

/* For each expert, c [rows, columns] = a [rows, summed] · b [summed, columns]. Which of the three sizes is the number of
 * the expert's rows depends on the target; `ends` are the sums of these numbers. */
struct experts {
  long count, rows, summed, columns, height, width;
  const int32_t *ends;
  const float *a, *b;
  float *c;
  bool transposed, outer;
  long *tasks; /* the number of tasks up to and including each expert */
};

static long first_row(const struct experts *p, long expert) { return expert ? p->ends[expert - 1] : 0; }

static long rows_of(const struct experts *p, long expert) {
  return p->outer ? p->rows : p->ends[expert] - first_row(p, expert);
}

static void do_task(const void *what, long task) {
  const struct experts *p = what;
  long low = 0, high = p->count - 1;
  while (low < high) { /* the first expert whose tasks end after this one */
    const long middle = (low + high) / 2;
    if (p->tasks[middle] > task) high = middle;
    else low = middle + 1;
  }
  const long expert = low, first = first_row(p, expert), across = parts_of(p->columns, p->width);
  const long place = task - (expert ? p->tasks[expert - 1] : 0), i = place / across * p->height;
  const long j = place % across * p->width, rows = min_of(p->height, rows_of(p, expert) - i);
  const long columns = min_of(p->width, p->columns - j);
  if (p->outer) {
    const long summed = p->ends[expert] - first;
    float *c = p->c + (expert * p->rows + i) * p->columns + j;
    const struct matrix a = {p->a + first * p->rows + i, 1, p->rows}, b = {p->b + first * p->columns + j, p->columns, 1};
    if (summed)
      multiply(a, b, c, p->columns, rows, summed, columns, false);
    else
      for (long r = 0; r < rows; r++) memset(c + r * p->columns, 0, sizeof(float) * columns);
    return;
  }
  const float *own = p->b + expert * p->summed * p->columns;
  const struct matrix a = {p->a + (first + i) * p->summed, p->summed, 1};
  const struct matrix b = {
      own + (p->transposed ? j * p->summed : j), p->transposed ? 1 : p->columns, p->transposed ? p->summed : 1};
  multiply(a, b, p->c + (first + i) * p->columns + j, p->columns, rows, p->summed, columns, false);
}

/* Compute all of it. */
static XLA_FFI_Error *run(XLA_FFI_CallFrame *frame, struct experts *p) {
  p->tasks = malloc(sizeof(long) * p->count);
  if (!p->tasks) return out_of_memory(frame);
  p->height = HEIGHT;
  p->width = WIDTH;
  long tasks;
  for (;; p->width = parts_of(p->width, 2)) { /* a few tasks for each thread */
    tasks = 0;
    for (long expert = 0; expert < p->count; expert++)
      p->tasks[expert] = tasks += parts_of(rows_of(p, expert), p->height) * parts_of(p->columns, p->width);
    if (tasks >= 4 * thread_count(frame) || p->width <= SMALL) break;
  }
  share_out(frame, tasks, do_task, p);
  free(p->tasks);
  return NULL;
}

/* Whether these are the ends of each expert's rows: int32, not descending, the last one `rows`. */
static bool are_ends(const XLA_FFI_Buffer *ends, long experts, long rows) {
  if (ends->dtype != XLA_FFI_DataType_S32 || ends->rank != 1 || ends->dims[0] != experts || !experts) return false;
  const int32_t *values = ends->data;
  for (long i = 0; i < experts; i++)
    if (values[i] < (i ? values[i - 1] : 0)) return false;
  return values[experts - 1] == rows;
}

/* rows [n, summed], ends [experts], matrices [experts, summed, columns], or `transposed`: [experts, columns, summed] ->
 * [n, columns]. */
static XLA_FFI_Error *multiply_rows(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 3, 1)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *rows = operand(frame, 0), *ends = operand(frame, 1), *matrices = operand(frame, 2);
  const XLA_FFI_Buffer *found = result(frame, 0);
  const bool transposed = integer(frame, "transposed", 0);
  if (!is_float(rows, 2) || !is_float(matrices, 3) || !is_float(found, 2) || rows->dims[0] != found->dims[0] ||
      matrices->dims[transposed ? 2 : 1] != rows->dims[1] || matrices->dims[transposed ? 1 : 2] != found->dims[1] ||
      !are_ends(ends, matrices->dims[0], rows->dims[0]))
    return invalid(frame, "expected rows, the ends of each expert's rows, and a matrix for each expert, in float32");
  if (!elements(found)) return NULL;
  struct experts p = {
      .count = matrices->dims[0], .summed = rows->dims[1], .columns = found->dims[1], .ends = ends->data,
      .a = rows->data, .b = matrices->data, .c = found->data, .transposed = transposed};
  if (!p.summed) {
    memset(p.c, 0, sizeof(float) * elements(found));
    return NULL;
  }
  return run(frame, &p);
}

/* a [n, rows], b [n, columns], ends [experts] -> [experts, rows, columns]: for each expert, the transpose of its rows of a
 * times its rows of b. */
static XLA_FFI_Error *multiply_outer(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 3, 1)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *a = operand(frame, 0), *b = operand(frame, 1), *ends = operand(frame, 2);
  const XLA_FFI_Buffer *found = result(frame, 0);
  if (!is_float(a, 2) || !is_float(b, 2) || !is_float(found, 3) || a->dims[0] != b->dims[0] ||
      found->dims[1] != a->dims[1] || found->dims[2] != b->dims[1] || !are_ends(ends, found->dims[0], a->dims[0]))
    return invalid(frame, "expected two sets of rows and the ends of each expert's rows, in float32");
  if (!elements(found)) return NULL;
  struct experts p = {
      .count = found->dims[0], .rows = a->dims[1], .columns = b->dims[1], .ends = ends->data, .a = a->data,
      .b = b->data, .c = found->data, .outer = true};
  return run(frame, &p);
}

/* ids [n], each from 0 to experts - 1 -> order [n], place [n], ends [experts]: order[i] is where row i of those sorted by
 * id was, place[order[i]] = i, and ends[e] is the number of rows with an id of at most e. */
static XLA_FFI_Error *sort(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 1, 3)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *given = operand(frame, 0);
  for (int64_t i = 0; i < 3; i++)
    if (result(frame, i)->rank != 1 || result(frame, i)->dtype != XLA_FFI_DataType_S32)
      return invalid(frame, "expected results of type int32");
  const long count = elements(given), experts = elements(result(frame, 2));
  if (given->dtype != XLA_FFI_DataType_S32 || elements(result(frame, 0)) != count ||
      elements(result(frame, 1)) != count || !experts)
    return invalid(frame, "expected int32 ids, and as many results");
  const int32_t *ids = given->data;
  int32_t *order = result(frame, 0)->data, *place = result(frame, 1)->data, *ends = result(frame, 2)->data;
  memset(ends, 0, sizeof(int32_t) * experts);
  for (long i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= experts) return invalid(frame, "no expert has this id");
    ends[ids[i]]++;
  }
  for (long e = 0, start = 0; e < experts; e++) { /* for now, the start of each */
    const int32_t own = ends[e];
    ends[e] = start;
    start += own;
  }
  for (long i = 0; i < count; i++) {
    place[i] = ends[ids[i]]++;
    order[place[i]] = i;
  }
  return NULL;
}

bool add_experts(const XLA_FFI_Api *api) {
  return add(api, "gpt_mesh_experts_matmul", multiply_rows) && add(api, "gpt_mesh_experts_outer", multiply_outer) &&
         add(api, "gpt_mesh_experts_sort", sort);
}
