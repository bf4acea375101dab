/* What handlers of XLA's foreign function interface share: its threads, errors, attributes.
 *
 * https://openxla.org/xla/custom_call; the header comes with each TensorFlow, and __init__.py compiles against it.
 */
#ifndef GPT_MESH_HOST_H
#define GPT_MESH_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "xla/ffi/api/c_api.h"

/* Whether XLA asks only which version of the interface this is: it has the answer then. */
bool asked_for_version(const XLA_FFI_CallFrame *frame);

XLA_FFI_Error *invalid(const XLA_FFI_CallFrame *frame, const char *message);
XLA_FFI_Error *out_of_memory(const XLA_FFI_CallFrame *frame);

/* The attribute of that name, an i64 or f64; `otherwise` where there is none. */
int64_t integer(const XLA_FFI_CallFrame *frame, const char *name, int64_t otherwise);
double number(const XLA_FFI_CallFrame *frame, const char *name, double otherwise);

/* Whether there are so many operands and results. */
bool has(const XLA_FFI_CallFrame *frame, int64_t operands, int64_t results);
const XLA_FFI_Buffer *operand(const XLA_FFI_CallFrame *frame, int64_t index);
const XLA_FFI_Buffer *result(const XLA_FFI_CallFrame *frame, int64_t index);
bool same_shape(const XLA_FFI_Buffer *one, const XLA_FFI_Buffer *other);
bool is_float(const XLA_FFI_Buffer *buffer, int64_t rank);
/* Whether it is [width] for an x [rows, width], or has its shape. */
bool is_row_of(const XLA_FFI_Buffer *x, const XLA_FFI_Buffer *buffer);
bool is_like(const XLA_FFI_Buffer *x, const XLA_FFI_Buffer *buffer);
long elements(const XLA_FFI_Buffer *buffer);

/* At least 1. */
long thread_count(const XLA_FFI_CallFrame *frame);

/* `work` for task 0, 1, …, `tasks` - 1, on the threads that XLA has. */
void share_out(const XLA_FFI_CallFrame *frame, long tasks, void (*work)(const void *what, long task), const void *what);

/* So many floats of this thread's own, to be used until its next call; NULL: there is no memory. */
float *scratch(long count);

/* Make a handler known to XLA; false: it does not take it. */
bool add(const XLA_FFI_Api *api, const char *name, XLA_FFI_Handler *handler);

#endif
