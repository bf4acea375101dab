/* Loaded before libc (LD_PRELOAD): file operations on chosen paths fail with a chosen error.
 *
 * FAULT_PATH:  a part of the path. FAULT_CALL: open, write, sync or rename. FAULT_ERRNO: the error's number.
 * FAULT_AFTER: how many such operations succeed first (0). FAULT_TIMES: how many fail then (all). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_long seen;

static long number(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text ? atol(text) : otherwise;
}

static int fails(const char *call, const char *path) {
  const char *part = getenv("FAULT_PATH"), *wanted = getenv("FAULT_CALL");
  if (!part || !wanted || strcmp(call, wanted) || !path || !strstr(path, part)) return 0;
  const long before = atomic_fetch_add(&seen, 1), first = number("FAULT_AFTER", 0);
  if (before < first || before >= first + number("FAULT_TIMES", 1L << 40)) return 0;
  errno = (int)number("FAULT_ERRNO", EIO);
  return 1;
}

static int fails_on(const char *call, int fd) {
  char link[64], path[4096];
  const int saved = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  errno = saved;
  if (length < 0) return 0;
  path[length] = 0;
  return fails(call, path);
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, ...); \
    va_list rest; \
    va_start(rest, flags); \
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    return fails("open", path) ? -1 : real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    REAL(int, #name, int, const char *, int, ...); \
    va_list rest; \
    va_start(rest, flags); \
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    return fails("open", path) ? -1 : real(folder, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(FILE *, #name, const char *, const char *); \
    return fails("open", path) ? NULL : real(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, "write", int, const void *, size_t);
  return fails_on("write", fd) ? -1 : real(fd, data, size);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
  REAL(size_t, "fwrite", const void *, size_t, size_t, FILE *);
  return fails_on("write", fileno(file)) ? 0 : real(data, size, count, file);
}

int fflush(FILE *file) {
  REAL(int, "fflush", FILE *);
  return file && fails_on("write", fileno(file)) ? EOF : real(file);
}

int fsync(int fd) {
  REAL(int, "fsync", int);
  return fails_on("sync", fd) ? -1 : real(fd);
}

int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  return fails("rename", to) ? -1 : real(from, to);
}
