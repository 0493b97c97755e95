/* Faults of a disk, for a process that this library is preloaded into. What happens is said by the environment, at every call:
   FAULT_PATH, a part of the path of the files that it happens to; FAULT_KIND; FAULT_AT, its number.

   eio    every read from the FAULT_ATth on fails        short  every read gives at most FAULT_AT bytes
   slow   every read takes FAULT_AT milliseconds more    full   writes fail once FAULT_AT bytes were written

   The real calls are the system's, by number, so that nothing of the C library is missed or called twice. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long n_reads, n_written;

static int is_meant(int file) {
  const char* part = getenv("FAULT_PATH");
  char link[64], path[4096];
  if (part == NULL || *part == 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return strstr(path, part) != NULL;
}

/* How many of n bytes may be read now; -1 for none, with errno. */
static ssize_t may_read(int file, size_t n) {
  const int error = errno;
  const char* kind = getenv("FAULT_KIND");
  if (kind == NULL || !is_meant(file)) {
    errno = error;
    return (ssize_t)n;
  }
  const long at = atol(getenv("FAULT_AT"));
  if (strcmp(kind, "eio") == 0 && __atomic_add_fetch(&n_reads, 1, __ATOMIC_RELAXED) > at) {
    errno = EIO;
    return -1;
  }
  if (strcmp(kind, "slow") == 0) {
    const struct timespec wait = {at / 1000, at % 1000 * 1000000};
    nanosleep(&wait, NULL);
  }
  errno = error;
  return strcmp(kind, "short") == 0 && n > (size_t)at ? at : (ssize_t)n;
}

static int is_full(int file, size_t n) {
  const int error = errno;
  const char* kind = getenv("FAULT_KIND");
  if (kind == NULL || strcmp(kind, "full") != 0 || !is_meant(file)) {
    errno = error;
    return 0;
  }
  if (__atomic_add_fetch(&n_written, (long)n, __ATOMIC_RELAXED) > atol(getenv("FAULT_AT"))) {
    errno = ENOSPC;
    return 1;
  }
  errno = error;
  return 0;
}

ssize_t read(int file, void* to, size_t n) {
  const ssize_t m = may_read(file, n);
  return m < 0 ? m : syscall(SYS_read, file, to, m);
}

ssize_t pread64(int file, void* to, size_t n, off64_t at) {
  const ssize_t m = may_read(file, n);
  return m < 0 ? m : syscall(SYS_pread64, file, to, m, at);
}

ssize_t pread(int file, void* to, size_t n, off_t at) { return pread64(file, to, n, at); }

/* Of several places the first alone, cut short: that is what a short read is. */
ssize_t preadv64(int file, const struct iovec* places, int n_places, off64_t at) {
  size_t whole = 0;
  for (int i = 0; i < n_places; i++) whole += places[i].iov_len;
  const ssize_t m = may_read(file, whole);
  if (m < 0 || n_places == 0) return m;
  if ((size_t)m == whole) return syscall(SYS_preadv, file, places, n_places, at, 0);
  const size_t n = places[0].iov_len < (size_t)m ? places[0].iov_len : (size_t)m;
  return syscall(SYS_pread64, file, places[0].iov_base, n, at);
}

ssize_t preadv(int file, const struct iovec* places, int n_places, off_t at) { return preadv64(file, places, n_places, at); }
ssize_t preadv2(int file, const struct iovec* places, int n_places, off_t at, int flags) { return preadv64(file, places, n_places, at); }
ssize_t preadv64v2(int file, const struct iovec* places, int n_places, off64_t at, int flags) { return preadv64(file, places, n_places, at); }

ssize_t write(int file, const void* from, size_t n) { return is_full(file, n) ? -1 : syscall(SYS_write, file, from, n); }
ssize_t pwrite64(int file, const void* from, size_t n, off64_t at) {
  return is_full(file, n) ? -1 : syscall(SYS_pwrite64, file, from, n, at);
}
ssize_t pwrite(int file, const void* from, size_t n, off_t at) { return pwrite64(file, from, n, at); }
