/* What does a program do whose disk fails?

   Preloaded into a process, this stands between it and the kernel. Calls on files under one folder fail when the plan
   says so; everything else goes through. The plan is a small file that the test maps too, so that it is changed while
   the process runs. A write that fails has written its first half, as on a disk that fills up in the middle of it.

   Linux only. The layout of the plan is repeated in faulty_disk.py. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPEN = 1, READ = 2, WRITE = 4, SYNC = 8, TRUNCATE = 16, RENAME = 32, UNLINK = 64, MKDIR = 128 };

struct plan {
    uint32_t kinds;  /* which calls are counted */
    uint32_t nth;    /* which of them fails, from 1; 0 for none */
    uint32_t onward; /* and all after it */
    uint32_t error;  /* its errno */
    uint32_t seen;   /* how many were counted */
    uint32_t failed; /* how many failed */
    char suffix[64]; /* of the path; empty for any */
    char folder[PATH_MAX];
};

static struct plan *plan;

__attribute__((constructor)) static void read_plan(void) {
    const char *path = getenv("FAULTY_DISK");
    if (!path)
        return;
    long descriptor = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0)
        abort();
    void *mapped = mmap(NULL, sizeof(struct plan), PROT_READ | PROT_WRITE, MAP_SHARED, (int)descriptor, 0);
    if (mapped == MAP_FAILED)
        abort();
    syscall(SYS_close, (int)descriptor);
    plan = mapped;
}

static int fails(uint32_t kind, const char *path) {
    if (strncmp(path, plan->folder, strlen(plan->folder)) != 0)
        return 0;
    size_t length = strlen(path), suffix = strlen(plan->suffix);
    if (length < suffix || strcmp(path + length - suffix, plan->suffix) != 0)
        return 0;
    uint32_t number = __atomic_add_fetch(&plan->seen, 1, __ATOMIC_SEQ_CST);
    if (!plan->nth || number < plan->nth || (number > plan->nth && !plan->onward))
        return 0;
    __atomic_add_fetch(&plan->failed, 1, __ATOMIC_SEQ_CST);
    errno = (int)plan->error;
    return 1;
}

static int planned(uint32_t kind) { return plan && (plan->kinds & kind); }

static int path_fails(uint32_t kind, const char *path) { return planned(kind) && fails(kind, path); }

static int descriptor_fails(uint32_t kind, int descriptor) {
    if (!planned(kind))
        return 0;
    char link[32] = "/proc/self/fd/", digits[12], path[PATH_MAX];
    int length = 0, written = 14;
    if (descriptor < 0)
        return 0;
    do
        digits[length++] = (char)('0' + descriptor % 10);
    while (descriptor /= 10);
    while (length)
        link[written++] = digits[--length];
    link[written] = 0;
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return fails(kind, path);
}

/* -- the calls, each under the names that the C library has for it */

static int open_at(int folder, const char *path, int flags, va_list more) {
    mode_t mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? (mode_t)va_arg(more, unsigned) : 0;
    if (path_fails(OPEN, path))
        return -1;
    return (int)syscall(SYS_openat, folder, path, flags, mode);
}

#define DEFINE_OPEN(name)                                                                                              \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        int descriptor = open_at(AT_FDCWD, path, flags, more);                                                         \
        va_end(more);                                                                                                  \
        return descriptor;                                                                                             \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

#define DEFINE_OPENAT(name)                                                                                            \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        int descriptor = open_at(folder, path, flags, more);                                                           \
        va_end(more);                                                                                                  \
        return descriptor;                                                                                             \
    }
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

#define DEFINE_PREAD(name)                                                                                             \
    ssize_t name(int descriptor, void *bytes, size_t size, off_t offset) {                                             \
        return descriptor_fails(READ, descriptor) ? -1 : syscall(SYS_pread64, descriptor, bytes, size, offset);        \
    }
DEFINE_PREAD(pread)
DEFINE_PREAD(pread64)

ssize_t write(int descriptor, const void *bytes, size_t size) {
    if (descriptor_fails(WRITE, descriptor)) {
        int error = errno;
        syscall(SYS_write, descriptor, bytes, size / 2);
        errno = error;
        return -1;
    }
    return syscall(SYS_write, descriptor, bytes, size);
}

#define DEFINE_PWRITE(name)                                                                                            \
    ssize_t name(int descriptor, const void *bytes, size_t size, off_t offset) {                                       \
        if (descriptor_fails(WRITE, descriptor)) {                                                                     \
            int error = errno;                                                                                         \
            syscall(SYS_pwrite64, descriptor, bytes, size / 2, offset);                                                \
            errno = error;                                                                                             \
            return -1;                                                                                                 \
        }                                                                                                              \
        return syscall(SYS_pwrite64, descriptor, bytes, size, offset);                                                 \
    }
DEFINE_PWRITE(pwrite)
DEFINE_PWRITE(pwrite64)

/* What succeeds takes no time: it is the process that dies in these tests, never the machine. */
int fsync(int descriptor) { return descriptor_fails(SYNC, descriptor) ? -1 : 0; }
int fdatasync(int descriptor) { return descriptor_fails(SYNC, descriptor) ? -1 : 0; }

#define DEFINE_FTRUNCATE(name)                                                                                         \
    int name(int descriptor, off_t size) {                                                                             \
        return descriptor_fails(TRUNCATE, descriptor) ? -1 : (int)syscall(SYS_ftruncate, descriptor, size);            \
    }
DEFINE_FTRUNCATE(ftruncate)
DEFINE_FTRUNCATE(ftruncate64)

int rename(const char *from, const char *to) {
    return path_fails(RENAME, to) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char *path) { return path_fails(UNLINK, path) ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0); }

int mkdir(const char *path, mode_t mode) {
    return path_fails(MKDIR, path) ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
