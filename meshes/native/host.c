#include "host.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "vectors.h"

bool asked_for_version(const XLA_FFI_CallFrame *frame) {
  if (!frame->extension_start || frame->extension_start->type != XLA_FFI_Extension_Metadata) return false;
  XLA_FFI_Metadata *asked = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
  asked->api_version = (XLA_FFI_Api_Version){
      .struct_size = sizeof asked->api_version,
      .major_version = XLA_FFI_API_MAJOR,
      .minor_version = XLA_FFI_API_MINOR};
  return true;
}

static XLA_FFI_Error *error_of(const XLA_FFI_CallFrame *frame, XLA_FFI_Error_Code code, const char *message) {
  XLA_FFI_Error_Create_Args args = {.struct_size = sizeof args, .message = message, .errc = code};
  return frame->api->XLA_FFI_Error_Create(&args);
}

XLA_FFI_Error *invalid(const XLA_FFI_CallFrame *frame, const char *message) {
  return error_of(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, message);
}

XLA_FFI_Error *out_of_memory(const XLA_FFI_CallFrame *frame) {
  return error_of(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory for intermediate results");
}

static const void *attribute(const XLA_FFI_CallFrame *frame, const char *name, XLA_FFI_DataType type) {
  for (int64_t i = 0; i < frame->attrs.size; i++) {
    const XLA_FFI_ByteSpan *found = frame->attrs.names[i];
    if (frame->attrs.types[i] != XLA_FFI_AttrType_SCALAR || found->len != strlen(name)) continue;
    const XLA_FFI_Scalar *scalar = frame->attrs.attrs[i];
    if (!memcmp(found->ptr, name, found->len) && scalar->dtype == type) return scalar->value;
  }
  return NULL;
}

int64_t integer(const XLA_FFI_CallFrame *frame, const char *name, int64_t otherwise) {
  const int64_t *value = attribute(frame, name, XLA_FFI_DataType_S64);
  return value ? *value : otherwise;
}

double number(const XLA_FFI_CallFrame *frame, const char *name, double otherwise) {
  const double *value = attribute(frame, name, XLA_FFI_DataType_F64);
  return value ? *value : otherwise;
}

bool has(const XLA_FFI_CallFrame *frame, int64_t operands, int64_t results) {
  return frame->args.size == operands && frame->rets.size == results;
}

const XLA_FFI_Buffer *operand(const XLA_FFI_CallFrame *frame, int64_t index) { return frame->args.args[index]; }
const XLA_FFI_Buffer *result(const XLA_FFI_CallFrame *frame, int64_t index) { return frame->rets.rets[index]; }

bool same_shape(const XLA_FFI_Buffer *one, const XLA_FFI_Buffer *other) {
  return one->rank == other->rank && !memcmp(one->dims, other->dims, sizeof(int64_t) * one->rank);
}

bool is_float(const XLA_FFI_Buffer *buffer, int64_t rank) {
  return buffer->dtype == XLA_FFI_DataType_F32 && buffer->rank == rank;
}

bool is_row_of(const XLA_FFI_Buffer *x, const XLA_FFI_Buffer *buffer) {
  return is_float(buffer, 1) && buffer->dims[0] == x->dims[1];
}

bool is_like(const XLA_FFI_Buffer *x, const XLA_FFI_Buffer *buffer) {
  return is_float(buffer, x->rank) && same_shape(buffer, x);
}

long elements(const XLA_FFI_Buffer *buffer) {
  long count = 1;
  for (int64_t i = 0; i < buffer->rank; i++) count *= buffer->dims[i];
  return count;
}

static bool failed(const XLA_FFI_Api *api, XLA_FFI_Error *error) {
  if (!error) return false;
  XLA_FFI_Error_Destroy_Args unwanted = {.struct_size = sizeof unwanted, .error = error};
  api->XLA_FFI_Error_Destroy(&unwanted);
  return true;
}

long thread_count(const XLA_FFI_CallFrame *frame) {
  int64_t count = 1;
  XLA_FFI_ThreadPool_NumThreads_Args asked = {.struct_size = sizeof asked, .ctx = frame->ctx, .num_threads = &count};
  return failed(frame->api, frame->api->XLA_FFI_ThreadPool_NumThreads(&asked)) ? 1 : max_of(1, (long)count);
}

struct job {
  atomic_long next, done, users;
  long tasks;
  void (*work)(const void *what, long task);
  const void *what;
};

static void take(struct job *job) {
  for (long task; (task = atomic_fetch_add(&job->next, 1)) < job->tasks;) {
    job->work(job->what, task);
    atomic_fetch_add(&job->done, 1);
  }
}

static void leave(struct job *job) {
  if (atomic_fetch_sub(&job->users, 1) == 1) free(job);
}

static void help(void *job) {
  take(job);
  leave(job);
}

/* This thread takes tasks like the others, and waits only for tasks that have started. So it finishes even if no other
 * thread is free; a thread that starts later finds no tasks left. */
void share_out(const XLA_FFI_CallFrame *frame, long tasks, void (*work)(const void *, long), const void *what) {
  const long threads = tasks > 1 ? min_of(thread_count(frame), tasks) : 1;
  struct job *job = threads > 1 ? malloc(sizeof *job) : NULL;
  if (!job) {
    for (long task = 0; task < tasks; task++) work(what, task);
    return;
  }
  atomic_init(&job->next, 0);
  atomic_init(&job->done, 0);
  atomic_init(&job->users, threads);
  job->tasks = tasks;
  job->work = work;
  job->what = what;
  for (long i = 1; i < threads; i++) {
    XLA_FFI_ThreadPool_Schedule_Args asked = {
        .struct_size = sizeof asked, .ctx = frame->ctx, .task = help, .data = job};
    if (failed(frame->api, frame->api->XLA_FFI_ThreadPool_Schedule(&asked))) leave(job);
  }
  take(job);
  for (long tries = 0; atomic_load(&job->done) < tasks; tries++)
    if (tries > 1000) sched_yield();
  leave(job);
}

float *scratch(long count) {
  static _Thread_local float *kept;
  static _Thread_local long size;
  if (count > size) {
    free(kept);
    size = 0;
    kept = aligned_alloc(64, (sizeof(float) * count + 63) / 64 * 64);
    if (kept) size = count;
  }
  return kept;
}

bool add(const XLA_FFI_Api *api, const char *name, XLA_FFI_Handler *handler) {
  XLA_FFI_Handler_Register_Args args = {
      .struct_size = sizeof args,
      .name = {name, strlen(name)},
      .platform = {"Host", strlen("Host")},
      .bundle = {.execute = handler}};
  return !failed(api, api->XLA_FFI_Handler_Register(&args));
}
