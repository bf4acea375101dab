/* Products of matrices, in float32, for programs that XLA compiles for a CPU: training, and reading prompts.
 *
 * After Goto and van de Geijn (2008, doi:10.1145/1356052.1356053): a tile of the result stays in registers while a panel
 * of each factor goes by, from copies in which elements follow each other as they are used. The copies cost the same
 * whether a factor is turned or not, where XLA's products take longer for turned ones, as gradients of weights have.
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
#define DEPTH 256                     /* of a panel: one of b lies in the first cache */
#define BLOCK (HEIGHT * (528 / HEIGHT)) /* rows of a whose panels lie in the second cache */
#define PANELS 4                      /* of a that are copied side by side */
#define NEAR 65536                    /* floats over which columns of a or rows of b may be spread to be read there */
#define ALIKE 1024                    /* floats between two that stand for the same line of the first cache */
#define LINE 64                       /* bytes of the caches */
#define WIDE 1024                     /* columns of a task at most */
#define SMALL 128                     /* rows and columns of a task that is not cut further */
#define LEAST_WORK 262144             /* multiplications for which further threads pay */

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(16)));
#if defined(__clang__)
#define SHUFFLED(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLED(x, y, ...) __builtin_shuffle(x, y, (places){__VA_ARGS__})
#endif

static _Thread_local _Alignas(64) float left[BLOCK * DEPTH], right[WIDTH * DEPTH];

/* to [depth, width] from 4 rows of `depth` elements, each `step` from the next. */
INLINE void turn_four(float *restrict to, const float *from, long step, long depth, const long width) {
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

/* `panels` panels [depth, width], one after the other, from rows (columns) that are neighbours in memory: read side by
 * side, as a line of a cache holds parts of several. */
INLINE void pack_side_by_side(float *restrict to, const float *from, long on, long panels, long depth, const long width) {
  for (long k = 0; k < depth; k++, from += on)
    for (long i = 0; i < panels; i++)
      memcpy(to + (i * depth + k) * width, from + i * width, sizeof(float) * width);
}

/* to [depth, width]: a panel of `count` rows of a, or columns of b, then zeros. `step`: from one of them to the next;
 * `on`: from one of their elements to the next. */
INLINE void pack(float *restrict to, const float *from, long step, long on, long count, long depth, const long width) {
  if (step == 1 && count >= width) {
    pack_side_by_side(to, from, on, 1, depth, width);
    return;
  }
  for (long i = 0; i < width; i += 4) {
    if (on == 1 && count - i >= 4) {
      turn_four(to + i, from + i * step, step, depth, width);
      continue;
    }
    for (long k = 0; k < depth; k++)
      for (long j = i; j < i + 4; j++) to[k * width + j] = j < count ? from[j * step + k * on] : 0;
  }
}

/* A block of rows of a, [rows, depth], as tiles take it. Where all that a tile reads at a time has room in the first
 * cache, whole panels are read where they are: rows that are neighbours in memory whose columns are not far apart, and
 * rows that do not all stand for the same lines of the cache. */
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
      pack_side_by_side(to, from, a.across, PANELS, depth, HEIGHT);
      i += PANELS * HEIGHT;
    } else {
      pack(to, from, a.down, a.across, count - i, depth, HEIGHT);
      i += HEIGHT;
    }
  }
  return rows;
}

/* WIDTH columns of b, [depth, WIDTH]: row after row, packed, or where they are: from the second cache, if tiles are so
 * high that they do not wait for it. */
static struct matrix pack_panel(struct matrix b, long columns, long depth) {
  if (HEIGHT >= 12 && b.across == 1 && b.down * depth <= NEAR && columns >= WIDTH) return b;
  pack(right, b.data, b.across, b.down, columns, depth, WIDTH);
  return (struct matrix){right, WIDTH, 1};
}

/* sum [height, WIDTH] grows by a [height, depth] times b [depth, WIDTH]. Of a, one row in `reach` has a pointer of its
 * own: from one pointer an instruction reaches many neighbours in memory, but of rows that are apart only 0, 1 and 2. */
INLINE void add_products(
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

/* The same for any a one of whose steps is 1. */
INLINE void multiply_rows(
    vector (*sum)[VECTORS], const int height, long depth, const float *a, long down, long across, const float *b,
    long under) {
  if (down == 1)
    add_products(sum, height, HEIGHT, depth, a, 1, across, b, under);
  else
    add_products(sum, height, 3, depth, a, down, 1, b, under);
}

/* c [height, WIDTH] of a [height, depth], one of whose steps is 1, and b [depth, WIDTH], whose rows are `under` apart.
 */
INLINE void tile(
    const int height, long depth, const float *a, long down, long across, const float *b, long under, float *c,
    long apart, bool add) {
  vector sum[HEIGHT][VECTORS];
  UNROLLED for (int i = 0; i < height; i++) UNROLLED for (int v = 0; v < VECTORS; v++) sum[i][v] = (vector){0};
  const long piece = depth / 16;
  for (int i = 0; i < height; i++) { /* c is asked for by and by: all at once would hold up what is read meanwhile */
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

/* `tile` for at most HEIGHT rows and WIDTH columns of the result. (Processors take long to read a struct in other
 * pieces than it was just written in.) */
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
    for (long j = 0; j < least(columns, WIDTH); j++)
      c[i * apart + j] = whole[i * WIDTH + j] + (add ? c[i * apart + j] : 0);
}

/* What will be copied next, asked for a little at a time while tiles are computed: `rows` rows of `lines` lines. */
struct ahead {
  const char *data;
  long apart, rows, lines, row, line, each;
};

/* The part of a matrix with those rows and columns, in so many times. */
static struct ahead ask_for(struct matrix m, long rows, long columns, long times) {
  const bool by_row = m.across == 1;
  const long count = by_row ? rows : columns, lines = parts_of((by_row ? columns : rows) * sizeof(float), LINE);
  return (struct ahead){
      .data = (const char *)m.data, .apart = (by_row ? m.down : m.across) * (long)sizeof(float), .rows = count,
      .lines = lines, .each = parts_of(count * lines, times)};
}

INLINE void go_ahead(struct ahead *p) {
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

/* c [rows, columns] from a panel of b, of whose columns there are `columns`. */
static void multiply_panel(
    struct rows rows, struct matrix panel, float *c, long apart, long columns, bool add, struct ahead *next_a,
    struct ahead *next_b) {
  for (long i = 0; i < rows.count; i += HEIGHT) {
    if (next_a) go_ahead(next_a);
    if (next_b) go_ahead(next_b);
    const bool in_place = i < rows.in_place;
    part_of_tile(
        least(HEIGHT, rows.count - i), columns, rows.depth,
        in_place ? rows.a.data + i * rows.a.down : left + i * rows.depth, in_place ? rows.a.down : 1,
        in_place ? rows.a.across : HEIGHT, panel.data, panel.down, c + i * apart, apart, add);
  }
}

void multiply(struct matrix a, struct matrix b, float *c, long apart, long rows, long summed, long columns, bool add) {
  for (long k = 0; k < summed; k += DEPTH) {
    const long depth = least(DEPTH, summed - k), next_depth = most(0, least(DEPTH, summed - k - DEPTH));
    for (long i = 0; i < rows; i += BLOCK) {
      const long height = least(BLOCK, rows - i), tiles = parts_of(height, HEIGHT);
      const struct rows packed = pack_rows(part_of(a, i, k), height, depth);
      struct ahead next_a = ask_for(part_of(a, i, k + DEPTH), height, next_depth, tiles * parts_of(columns, WIDTH));
      for (long j = 0; j < columns; j += WIDTH) {
        const bool last = j + WIDTH >= columns;
        struct ahead next_b = last ? ask_for(part_of(b, k + DEPTH, 0), next_depth, least(WIDTH, columns), tiles)
                                   : ask_for(part_of(b, k, j + WIDTH), depth, least(WIDTH, columns - j - WIDTH), tiles);
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
      const struct rows packed = pack_rows(part_of(a, i, k), least(BLOCK, rows - i), least(DEPTH, summed - k));
      for (long j = 0; j < columns; j += WIDTH)
        multiply_panel(
            packed, (struct matrix){panels + j / WIDTH * apart_panels + k * WIDTH, WIDTH, 1}, c + i * apart + j, apart,
            columns - j, add || k, NULL, NULL);
    }
}

/* A task is up to `height` rows and `width` columns of the result. */
struct product {
  struct matrix a, b;
  float *c;
  long rows, summed, columns, height, width;
};

static void do_task(const void *what, long task) {
  const struct product *p = what;
  const long across = parts_of(p->columns, p->width), i = task / across * p->height, j = task % across * p->width;
  multiply(
      part_of(p->a, i, 0), part_of(p->b, 0, j), p->c + i * p->columns + j, p->columns, least(p->height, p->rows - i), p->summed,
      least(p->width, p->columns - j), false);
}

/* Two tasks a thread, so that one that the system holds up has others do its part; but none so small that copying
 * its factors would count. Gives their number. */
static long cut(const XLA_FFI_CallFrame *frame, struct product *p) {
  const long threads = p->rows * p->summed * p->columns < LEAST_WORK ? 1 : thread_count(frame);
  long height = least(p->rows, BLOCK), width = least(p->columns, WIDE);
  while (threads > 1 && parts_of(p->rows, height) * parts_of(p->columns, width) < 2 * threads &&
         most(height, width) > SMALL) {
    if (height > width)
      height = parts_of(height, 2);
    else
      width = parts_of(width, 2);
  }
  height = parts_of(p->rows, parts_of(p->rows, height)); /* so that none is smaller than the others by much */
  p->height = parts_of(height, HEIGHT) * HEIGHT;
  p->width = parts_of(width, WIDTH) * WIDTH;
  return parts_of(p->rows, p->height) * parts_of(p->columns, p->width);
}

/* c [rows, columns] of a [rows, summed] and b [summed, columns]; of `turned_a` and `turned_b`, the other way round. */
static XLA_FFI_Error *matmul(XLA_FFI_CallFrame *frame) {
  if (asked_for_version(frame)) return NULL;
  if (!has(frame, 2, 1)) return invalid(frame, "another number of tensors");
  const XLA_FFI_Buffer *a = operand(frame, 0), *b = operand(frame, 1), *c = result(frame, 0);
  const bool turned_a = integer(frame, "turned_a", 0), turned_b = integer(frame, "turned_b", 0);
  if (!is_float(a, 2) || !is_float(b, 2) || !is_float(c, 2) || a->dims[turned_a] != c->dims[0] ||
      b->dims[!turned_b] != c->dims[1] || a->dims[!turned_a] != b->dims[turned_b])
    return invalid(frame, "these are no factors of such a product in float32");
  struct product p = {
      .a = {a->data, turned_a ? 1 : a->dims[1], turned_a ? a->dims[1] : 1},
      .b = {b->data, turned_b ? 1 : b->dims[1], turned_b ? b->dims[1] : 1},
      .c = c->data, .rows = c->dims[0], .summed = a->dims[!turned_a], .columns = c->dims[1]};
  if (!p.rows || !p.columns) return NULL;
  if (!p.summed) {
    memset(p.c, 0, sizeof(float) * p.rows * p.columns);
    return NULL;
  }
  share_out(frame, cut(frame, &p), do_task, &p);
  return NULL;
}

bool add_matmul(const XLA_FFI_Api *api) { return add(api, "gpt_mesh_matmul", matmul); }
