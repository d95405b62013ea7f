/* Preloaded into a worker: of its calls on files below FAULT_BELOW that FAULT_CALLS names, the one
 * with the number FAULT_AT fails with FAULT_ERRNO, or moves half of it where that is 0. The number
 * of calls so far is kept in the file FAULT_COUNT. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long calls;

static int hit(const char *name, int fd) {
    const char *below = getenv("FAULT_BELOW"), *names = getenv("FAULT_CALLS");
    char link[64], path[4096];
    if (!below || !names || !strstr(names, name)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, below, strlen(below))) return 0;
    long number = __sync_fetch_and_add(&calls, 1);
    FILE *count = fopen(getenv("FAULT_COUNT"), "w");
    if (count) { fprintf(count, "%ld", number + 1); fclose(count); }
    return number == atol(getenv("FAULT_AT"));
}

static int failing(void) { errno = atoi(getenv("FAULT_ERRNO")); return errno; }

#define MOVE(kind, name, buffer)                                                                  \
    ssize_t name(int fd, buffer, size_t count, off_t at) {                                        \
        static ssize_t (*real)(int, buffer, size_t, off_t);                                       \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                                \
        if (hit(kind, fd)) { if (failing()) return -1; count = count > 1 ? count / 2 : count; }   \
        return real(fd, data, count, at);                                                         \
    }
MOVE("pwrite", pwrite, const void *data)
MOVE("pwrite", pwrite64, const void *data)
MOVE("pread", pread, void *data)
MOVE("pread", pread64, void *data)

#define MOVE_PARTS(name)                                                                          \
    ssize_t name(int fd, const struct iovec *parts, int count, off_t at) {                        \
        static ssize_t (*real)(int, const struct iovec *, int, off_t);                            \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                                \
        if (hit("preadv", fd)) {                                                                  \
            if (failing()) return -1;                                                             \
            struct iovec half = {parts[0].iov_base, (parts[0].iov_len + 1) / 2};                  \
            return real(fd, &half, 1, at);                                                        \
        }                                                                                         \
        return real(fd, parts, count, at);                                                        \
    }
MOVE_PARTS(preadv)
MOVE_PARTS(preadv64)

ssize_t write(int fd, const void *data, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (hit("write", fd)) { if (failing()) return -1; count = count > 1 ? count / 2 : count; }
    return real(fd, data, count);
}

ssize_t read(int fd, void *data, size_t count) {
    static ssize_t (*real)(int, void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "read");
    if (hit("read", fd)) { if (failing()) return -1; count = count > 1 ? count / 2 : count; }
    return real(fd, data, count);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    if (hit("fsync", fd) && failing()) return -1;
    return real(fd);
}

#define RESIZE(name)                                                                              \
    int name(int fd, off_t size) {                                                                \
        static int (*real)(int, off_t);                                                           \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                                \
        if (hit("ftruncate", fd) && failing()) return -1;                                         \
        return real(fd, size);                                                                    \
    }
RESIZE(ftruncate)
RESIZE(ftruncate64)
