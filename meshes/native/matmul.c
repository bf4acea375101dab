/* Matmuls in float32, for programs that XLA compiles for a CPU: training, and prefill.
 *
 * After Goto and van de Geijn (2008, doi:10.1145/1356052.1356053): a tile of the result stays in registers while a panel
 * of each factor passes by, from copies whose elements are in the order of their use. The copies cost the same whether
 * a factor is transposed or not; XLA's own matmuls are slower for transposed factors, which gradients of weights have.
 */
#include "matmul.h"

#include <string.h>

#include "host.h"
#include "vectors.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define HEIGHT 12
#else /* 16 registers */
#define HEIGHT 4
#endif
#define WIDTH PANEL                   /* of a tile, HEIGHT × WIDTH */
#define VECTORS (PANEL / LANES)
#define DEPTH 256                     /* of a panel: one panel of b fits the L1 cache */
#define BLOCK (HEIGHT * (528 / HEIGHT)) /* rows of a whose panels fit the L2 cache */
#define PANELS 4                      /* of a that are copied together */
#define NEAR 65536                    /* floats over which columns of a or rows of b may spread to be read in place */
#define ALIKE 1024                    /* distance in floats of elements that map to the same set of the L1 cache */
#define LINE 64                       /* bytes of a cache line */
#define WIDE 1024                     /* maximum columns of a task */
#define SMALL 128                     /* rows and columns of a task that is not divided further */
#define MIN_WORK 262144               /* multiplications from which on further threads pay off */

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(16)));
#if defined(__clang__)
#define SHUFFLED(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLED(x, y, ...) __builtin_shuffle(x, y, (places){__VA_ARGS__})
#endif

static _Thread_local _Alignas(64) float left[BLOCK * DEPTH], right[WIDTH * DEPTH];

/* to [depth, width] = the transpose of 4 rows of `depth` elements with a stride of `step`. */
INLINE void transpose_four(float *restrict to, const float *from, long step, long depth, const long width) {
  long k = 0;
  for (; k + 4 <= depth; k += 4, from += 4, to += 4 * width) {
    const four a = *(const four *)from, b = *(const four *)(from + step);
    const four c = *(const four *)(from + 2 * step), d = *(const four *)(from + 3 * step);
    const four ab = SHUFFLED(a, b, 0, 4, 1, 5), cd = SHUFFLED(c, d, 0, 4, 1, 5);
    const four later_ab = SHUFFLED(a, b, 2, 6, 3, 7), later_cd = SHUFFLED(c, d, 2, 6, 3, 7);
    *(four *)to = SHUFFLED(ab, cd, 0, 1, 4, 5);
    *(four *)(to + width) = SHUFFLED(ab, cd, 2, 3, 6, 7);
    *(four *)(to + 2 * width) = SHUFFLED(later_ab, later_cd, 0, 1, 4, 5);
    *(four *)(to + 3 * width) = SHUFFLED(later_ab, later_cd, 2, 3, 6, 7);
  }
  for (; k < depth; k++, from++, to += width)
    for (long i = 0; i < 4; i++) to[i] = from[i * step];
}

/* Consecutive panels [depth, width] from rows (columns) that are contiguous in memory. They are read together, as a
 * cache line holds parts of several. */
INLINE void pack_together(
    float *restrict to, const float *from, long on, long panels, long depth, const long width) {
  for (long k = 0; k < depth; k++, from += on)
    for (long i = 0; i < panels; i++)
      memcpy(to + (i * depth + k) * width, from + i * width, sizeof(float) * width);
}

/* to [depth, width]: a panel of `count` rows of a, or columns of b, padded with zeros. `step`: stride between them;
 * `on`: stride between their elements. */
INLINE void pack(float *restrict to, const float *from, long step, long on, long count, long depth, const long width) {
  if (step == 1 && count >= width) {
    pack_together(to, from, on, 1, depth, width);
    return;
  }
  for (long i = 0; i < width; i += 4) {
    if (on == 1 && count - i >= 4) {
      transpose_four(to + i, from + i * step, step, depth, width);
      continue;
    }
    for (long k = 0; k < depth; k++)
      for (long j = i; j < i + 4; j++) to[k * width + j] = j < count ? from[j * step + k * on] : 0;
  }
}

/* A block of rows of a, [rows, depth], as tiles read it. Whole panels are read in place if what a tile reads at a time
 * fits the L1 cache: contiguous rows whose columns are near each other, and rows that do not all map to the same cache
 * sets. */
struct rows {
  long count, depth, in_place;
  struct matrix a;
};

static struct rows pack_rows(struct matrix a, long count, long depth) {
  const bool near = a.down == 1 ? a.across * depth <= NEAR : a.across == 1 && a.down % ALIKE;
  const struct rows rows = {count, depth, near ? count / HEIGHT * HEIGHT : 0, a};
  for (long i = rows.in_place; i < count;) {
    float *to = left + i * depth;
    const float *from = a.data + i * a.down;
    if (a.down == 1 && count - i >= PANELS * HEIGHT) {
      pack_together(to, from, a.across, PANELS, depth, HEIGHT);
      i += PANELS * HEIGHT;
    } else {
      pack(to, from, a.down, a.across, count - i, depth, HEIGHT);
      i += HEIGHT;
    }
  }
  return rows;
}

/* WIDTH columns of b, [depth, WIDTH], row by row: packed or, if tiles are high enough to hide the latency of the L2
 * cache, in place. */
static struct matrix pack_panel(struct matrix b, long columns, long depth) {
  if (HEIGHT >= 12 && b.across == 1 && b.down * depth <= NEAR && columns >= WIDTH) return b;
  pack(right, b.data, b.across, b.down, columns, depth, WIDTH);
  return (struct matrix){right, WIDTH, 1};
}

/* sum [height, WIDTH] += a [height, depth] · b [depth, WIDTH]. One in `reach` rows of a has its own pointer: an
 * instruction can address many contiguous elements from one pointer, but only 3 rows with a stride. */
INLINE void add_outer_products(
    vector (*sum)[VECTORS], const int height, const int reach, long depth, const float *a, long down, long across,
    const float *b, long under) {
  const float *rows[HEIGHT];
  UNROLLED for (int i = 0; i < height; i += reach) rows[i] = a + i * down;
  for (long k = 0; k < depth; k++, b += under) {
    vector x[VECTORS];
    UNROLLED for (int v = 0; v < VECTORS; v++) x[v] = *(const vector *)(b + v * LANES);
    UNROLLED for (int i = 0; i < height; i++) UNROLLED for (int v = 0; v < VECTORS; v++)
      sum[i][v] += rows[i - i % reach][i % reach * down] * x[v];
    UNROLLED for (int i = 0; i < height; i += reach) rows[i] += across;
  }
}

/* The same for any a with a stride of 1 along one dimension. */
INLINE void multiply_rows(
    vector (*sum)[VECTORS], const int height, long depth, const float *a, long down, long across, const float *b,
    long under) {
  if (down == 1)
    add_outer_products(sum, height, HEIGHT, depth, a, 1, across, b, under);
  else
    add_outer_products(sum, height, 3, depth, a, down, 1, b, under);
}

/* c [height, WIDTH] = a [height, depth] · b [depth, WIDTH]. a has a stride of 1 along one dimension; rows of b have a
 * stride of `under`. */
INLINE void tile(
    const int height, long depth, const float *a, long down, long across, const float *b, long under, float *c,
    long apart, bool add) {
  vector sum[HEIGHT][VECTORS];
  UNROLLED for (int i = 0; i < height; i++) UNROLLED for (int v = 0; v < VECTORS; v++) sum[i][v] = (vector){0};
  const long piece = depth / 16;
  for (int i = 0; i < height; i++) { /* prefetch c gradually: all of it together would delay other reads */
    for (int v = 0; v < VECTORS; v++) __builtin_prefetch(c + i * apart + v * LANES, 1);
    multiply_rows(sum, height, piece, a + i * piece * across, down, across, b + i * piece * under, under);
  }
  const long done = height * piece;
  multiply_rows(sum, height, depth - done, a + done * across, down, across, b + done * under, under);
  UNROLLED for (int i = 0; i < height; i++) UNROLLED for (int v = 0; v < VECTORS; v++) {
    vector *to = (vector *)(c + i * apart + v * LANES);
    if (add) sum[i][v] += *to;
    *to = sum[i][v];
  }
}

/* `tile` for at most HEIGHT rows and WIDTH columns of the result. (No struct arguments: processors are slow to read
 * freshly written memory in pieces of another size.) */
static void part_of_tile(
    long rows, long columns, long depth, const float *a, long down, long across, const float *b, long under, float *c,
    long apart, bool add) {
  _Alignas(64) float whole[HEIGHT * WIDTH];
  const bool fits = columns >= WIDTH && rows % 4 == 0;
  float *to = fits ? c : whole;
  const long step = fits ? apart : WIDTH;
  if (HEIGHT >= 12 && rows > 8) {
    tile(HEIGHT, depth, a, down, across, b, under, to, step, fits && add);
  } else if (HEIGHT >= 12 && rows > 4) {
    tile(8, depth, a, down, across, b, under, to, step, fits && add);
  } else {
    tile(4, depth, a, down, across, b, under, to, step, fits && add);
  }
  if (fits) return;
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < min_of(columns, WIDTH); j++)
      c[i * apart + j] = whole[i * WIDTH + j] + (add ? c[i * apart + j] : 0);
}

/* What is copied next, `rows` rows of `lines` cache lines, is prefetched gradually while tiles are computed. */
struct prefetch {
  const char *data;
  long apart, rows, lines, row, line, each;
};

/* Prefetch this part of a matrix in `times` portions. */
static struct prefetch prefetch_of(struct matrix m, long rows, long columns, long times) {
  const bool by_row = m.across == 1;
  const long count = by_row ? rows : columns, lines = parts_of((by_row ? columns : rows) * sizeof(float), LINE);
  return (struct prefetch){
      .data = (const char *)m.data, .apart = (by_row ? m.down : m.across) * (long)sizeof(float), .rows = count,
      .lines = lines, .each = parts_of(count * lines, times)};
}

INLINE void prefetch_next(struct prefetch *p) {
  for (long i = 0; i < p->each && p->row < p->rows; i++) {
    __builtin_prefetch(p->data + p->row * p->apart + p->line * LINE, 0, 2);
    if (++p->line == p->lines) {
      p->line = 0;
      p->row++;
    }
  }
}

static struct matrix part_of(struct matrix m, long row, long column) {
  return (struct matrix){m.data + row * m.down + column * m.across, m.down, m.across};
}

/* c [rows, columns] from a panel of b with `columns` columns. */
static void multiply_panel(
    struct rows rows, struct matrix panel, float *c, long apart, long columns, bool add, struct prefetch *next_a,
    struct prefetch *next_b) {
  for (long i = 0; i < rows.count; i += HEIGHT) {
    if (next_a) prefetch_next(next_a);
    if (next_b) prefetch_next(next_b);
    const bool in_place = i < rows.in_place;
    part_of_tile(
        min_of(HEIGHT, rows.count - i), columns, rows.depth,
        in_place ? rows.a.data + i * rows.a.down : left + i * rows.depth, in_place ? rows.a.down : 1,
        in_place ? rows.a.across : HEIGHT, panel.data, panel.down, c + i * apart, apart, add);
  }
}

void multiply(struct matrix a, struct matrix b, float *c, long apart, long rows, long summed, long columns, bool add) {
  for (long k = 0; k < summed; k += DEPTH) {
    const long depth = min_of(DEPTH, summed - k), next_depth = max_of(0, min_of(DEPTH, summed - k - DEPTH));
    for (long i = 0; i < rows; i += BLOCK) {
      const long height = min_of(BLOCK, rows - i), tiles = parts_of(height, HEIGHT);
      const struct rows packed = pack_rows(part_of(a, i, k), height, depth);
      struct prefetch next_a =
          prefetch_of(part_of(a, i, k + DEPTH), height, next_depth, tiles * parts_of(columns, WIDTH));
      for (long j = 0; j < columns; j += WIDTH) {
        const bool last = j + WIDTH >= columns;
        struct prefetch next_b = last ? prefetch_of(part_of(b, k + DEPTH, 0), next_depth, min_of(WIDTH, columns), tiles)
                                   : prefetch_of(
                                         part_of(b, k, j + WIDTH), depth, min_of(WIDTH, columns - j - WIDTH), tiles);
        const struct matrix panel = pack_panel(part_of(b, k, j), columns - j, depth);
        multiply_panel(packed, panel, c + i * apart + j, apart, columns - j, add || k, &next_a, &next_b);
      }
    }
  }
}

void pack_columns(struct matrix b, long summed, long columns, float *panels) {
  for (long j = 0; j < columns; j += WIDTH, panels += summed * WIDTH)
    pack(panels, b.data + j * b.across, b.across, b.down, columns - j, summed, WIDTH);
}

void multiply_packed(
    struct matrix a, const float *panels, long apart_panels, float *c, long apart, long rows, long summed, long columns,
    bool add) {
  for (long k = 0; k < summed; k += DEPTH)
    for (long i = 0; i < rows; i += BLOCK) {
      const struct rows packed = pack_rows(part_of(a, i, k), min_of(BLOCK, rows - i), min_of(DEPTH, summed - k));
      for (long j = 0; j < columns; j += WIDTH)
        multiply_panel(
            packed, (struct matrix){panels + j / WIDTH * apart_panels + k * WIDTH, WIDTH, 1}, c + i * apart + j, apart,
            columns - j, add || k, NULL, NULL);
    }
}

/* A task is up to `height` rows and `width` columns of the result. */
struct matmul {
  struct matrix a, b;
  float *c;
  long rows, summed, columns, height, width;
};

static void do_task(const void *what, long task) {
  const struct matmul *p = what;
  const long across = parts_of(p->columns, p->width), i = task / across * p->height, j = task % across * p->width;
  multiply(
      part_of(p->a, i, 0), part_of(p->b, 0, j), p->c + i * p->columns + j, p->columns,
      min_of(p->height, p->rows - i), p->summed,
      min_of(p->width, p->columns - j), false);
}

/* Two tasks for each thread, so that others can take over from a thread that is held up, but none so small that copying
 * its factors matters. Returns their number. */
static long cut(const XLA_FFI_CallFrame *frame, struct matmul *p) {
  const long threads = p->rows * p->summed * p->columns < MIN_WORK ? 1 : thread_count(frame);
  long height = min_of(p->rows, BLOCK), width = min_of(p->columns, WIDE);
  while (threads > 1 && parts_of(p->rows, height) * parts_of(p->columns, width) < 2 * threads &&
         max_of(height, width) > SMALL) {
    if (height > width)
      height = parts_of(height, 2);
    else
      width = parts_of(width, 2);
  }
  height = parts_of(p->rows, parts_of(p->rows, height)); /* so that all have about the same size */
  p->height = parts_of(height, HEIGHT) * HEIGHT;
  p->width = parts_of(width, WIDTH) * WIDTH;
  return parts_of(p->rows, p->height) * parts_of(p->columns, p->width);
}

/* a [rows, summed], b [summed, columns] -> c [rows, columns]. `transposed_a`: a is [summed, rows]; `transposed_b`: b is
 * [columns, summed]. */
static XLA_FFI_Error *matmul(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 2, 1)) return invalid(frame, "unexpected number of tensors");
  const XLA_FFI_Buffer *a = operand(frame, 0), *b = operand(frame, 1), *c = result(frame, 0);
  const bool transposed_a = integer(frame, "transposed_a", 0), transposed_b = integer(frame, "transposed_b", 0);
  if (!is_float(a, 2) || !is_float(b, 2) || !is_float(c, 2) || a->dims[transposed_a] != c->dims[0] ||
      b->dims[!transposed_b] != c->dims[1] || a->dims[!transposed_a] != b->dims[transposed_b])
    return invalid(frame, "expected factors of such a product in float32");
  struct matmul p = {
      .a = {a->data, transposed_a ? 1 : a->dims[1], transposed_a ? a->dims[1] : 1},
      .b = {b->data, transposed_b ? 1 : b->dims[1], transposed_b ? b->dims[1] : 1},
      .c = c->data, .rows = c->dims[0], .summed = a->dims[!transposed_a], .columns = c->dims[1]};
  if (!p.rows || !p.columns) return NULL;
  if (!p.summed) {
    memset(p.c, 0, sizeof(float) * p.rows * p.columns);
    return NULL;
  }
  share_out(frame, cut(frame, &p), do_task, &p);
  return NULL;
}

bool add_matmul(const XLA_FFI_Api *api) { return add(api, "gpt_mesh_matmul", matmul); }
