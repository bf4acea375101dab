/* Shared by the handlers of XLA's foreign function interface: threads, errors, attributes.
 *
 * https://openxla.org/xla/custom_call; the header comes with TensorFlow.
 */
#ifndef GPT_MESH_HOST_H
#define GPT_MESH_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "xla/ffi/api/c_api.h"

/* Whether XLA only asks for the version of the interface; if so, the answer is filled in. */
bool asked_for_version(const XLA_FFI_CallFrame *frame);

XLA_FFI_Error *invalid(const XLA_FFI_CallFrame *frame, const char *message);
XLA_FFI_Error *out_of_memory(const XLA_FFI_CallFrame *frame);

/* The i64 or f64 attribute of that name; `otherwise` if it is absent. */
int64_t integer(const XLA_FFI_CallFrame *frame, const char *name, int64_t otherwise);
double number(const XLA_FFI_CallFrame *frame, const char *name, double otherwise);

/* Whether the numbers of operands and results are these. */
bool has(const XLA_FFI_CallFrame *frame, int64_t operands, int64_t results);
const XLA_FFI_Buffer *operand(const XLA_FFI_CallFrame *frame, int64_t index);
const XLA_FFI_Buffer *result(const XLA_FFI_CallFrame *frame, int64_t index);
bool same_shape(const XLA_FFI_Buffer *one, const XLA_FFI_Buffer *other);
bool is_float(const XLA_FFI_Buffer *buffer, int64_t rank);
/* Whether it is [width] for x [rows, width]; whether it has the shape of x. */
bool is_row_of(const XLA_FFI_Buffer *x, const XLA_FFI_Buffer *buffer);
bool is_like(const XLA_FFI_Buffer *x, const XLA_FFI_Buffer *buffer);
long elements(const XLA_FFI_Buffer *buffer);

/* Number of threads, at least 1. */
long thread_count(const XLA_FFI_CallFrame *frame);

/* Call `work` for tasks 0 to `tasks` - 1, on XLA's threads. */
void share_out(const XLA_FFI_CallFrame *frame, long tasks, void (*work)(const void *what, long task), const void *what);

/* Memory of this thread for `count` floats, valid until its next call; NULL if there is not enough memory. */
float *scratch(long count);

/* Register a handler with XLA; false if XLA rejects it. */
bool add(const XLA_FFI_Api *api, const char *name, XLA_FFI_Handler *handler);

#endif
