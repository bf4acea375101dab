/* Matmuls of any size on one thread. */
#ifndef GPT_MESH_MATMUL_H
#define GPT_MESH_MATMUL_H

#include <stdbool.h>

#include "vectors.h"

/* Element (i, j) is data[i * down + j * across]; one of the two strides is 1. */
struct matrix {
  const float *data;
  long down, across;
};

/* c [rows, columns], whose rows have a stride of `apart`, = a [rows, summed] · b [summed, columns]; with `add`, +=.
 * Long sums are computed in parts, which depend on `summed` only. */
void multiply(struct matrix a, struct matrix b, float *c, long apart, long rows, long summed, long columns, bool add);

/* The same with b already packed; panels have a stride of `apart_panels` floats. */
void multiply_packed(
    struct matrix a, const float *panels, long apart_panels, float *c, long apart, long rows, long summed, long columns,
    bool add);

/* Pack b [summed, columns] into consecutive panels of PANEL columns each, row by row. */
void pack_columns(struct matrix b, long summed, long columns, float *panels);

/* Columns of a panel. */
#if defined(__AVX512F__) || !defined(__AVX__)
#define PANEL (2 * LANES)
#else
#define PANEL (3 * LANES) /* uses most of 16 registers */
#endif

#endif
