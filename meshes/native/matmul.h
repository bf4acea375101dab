/* Products of matrices of any size on one thread. */
#ifndef GPT_MESH_MATMUL_H
#define GPT_MESH_MATMUL_H

#include <stdbool.h>

#include "vectors.h"

/* Element (i, j) stands at data[i * down + j * across]; one of the two steps is 1. */
struct matrix {
  const float *data;
  long down, across;
};

/* c [rows, columns], whose rows are `apart` from each other, = a [rows, summed] · b [summed, columns]; with `add`, that
 * is added to it. Sums over more than a few hundred are taken in parts, at places that depend on `summed` alone. */
void multiply(struct matrix a, struct matrix b, float *c, long apart, long rows, long summed, long columns, bool add);

/* The same with b packed before: `apart_panels` floats from one panel to the next. */
void multiply_packed(
    struct matrix a, const float *panels, long apart_panels, float *c, long apart, long rows, long summed, long columns,
    bool add);

/* b [summed, columns] in panels: PANEL columns each, row after row; they follow each other. */
void pack_columns(struct matrix b, long summed, long columns, float *panels);

/* Columns of a panel. */
#if defined(__AVX512F__) || !defined(__AVX__)
#define PANEL (2 * LANES)
#else
#define PANEL (3 * LANES) /* of 16 registers most are taken */
#endif

#endif
