/* Records every call that changes a folder, and fails the n-th one on demand.
 *
 * Loaded with LD_PRELOAD in front of libc; the program under test drives it by ctypes
 * (crash_shim.py). Calls outside the folder pass untouched. For one thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OPEN = 1, WRITE, TRUNCATE, RENAME, LINK, UNLINK, MKDIR, RMDIR, FSYNC, CLOSE, MARK,
       SYMLINK };

struct record {
    int32_t kind, fd, created;
    uint32_t path_bytes, other_bytes, data_bytes;
    int64_t offset;
};

#define MAX_FDS 4096
static char root[4096];
static size_t root_bytes;
static int recording;
static char watched[MAX_FDS];
static char *buffer;
static size_t used, room;
static long calls, fail_at;
static int fail_errno, fail_on;

static int inside(const char *path) {
    return recording && path && root_bytes && !strncmp(path, root, root_bytes);
}

static int known(int fd) { return recording && fd >= 0 && fd < MAX_FDS && watched[fd]; }

static void put(const void *data, size_t bytes) {
    if (used + bytes > room) {
        room = 2 * (used + bytes) + 65536;
        buffer = realloc(buffer, room);
        if (!buffer) abort();
    }
    memcpy(buffer + used, data, bytes);
    used += bytes;
}

static void note(int kind, int fd, int created, const char *path, const char *other,
                 const void *data, size_t bytes, int64_t offset) {
    struct record it = {kind, fd, created, path ? strlen(path) : 0,
                        other ? strlen(other) : 0, bytes, offset};
    put(&it, sizeof it);
    if (path) put(path, it.path_bytes);
    if (other) put(other, it.other_bytes);
    if (bytes) put(data, bytes);
}

/* Whether this call is to fail; every call that changes the folder counts. */
static int fails(void) {
    calls++;
    if (!fail_at || (fail_on ? calls < fail_at : calls != fail_at)) return 0;
    errno = fail_errno;
    return 1;
}

void shim_start(const char *folder) {
    strncpy(root, folder, sizeof root - 1);
    root_bytes = strlen(root);
    memset(watched, 0, sizeof watched);
    used = 0;
    calls = fail_at = 0;
    recording = 1;
}

void shim_stop(void) { recording = 0; }
void shim_fail(long call, int error, int from_then_on) {
    calls = 0;
    fail_at = call;
    fail_errno = error;
    fail_on = from_then_on;
}
long shim_calls(void) { return calls; }
const char *shim_records(void) { return buffer; }
size_t shim_bytes(void) { return used; }
void shim_mark(const char *text) { note(MARK, -1, 0, text, NULL, NULL, 0, 0); }

static int opened(int folder, const char *path, int flags, mode_t mode) {
    int mine = inside(path), created = 0;
    if (mine && (flags & (O_CREAT | O_TRUNC) || (flags & O_ACCMODE) != O_RDONLY)) {
        if (fails()) return -1;
        created = flags & O_CREAT && syscall(SYS_faccessat, AT_FDCWD, path, F_OK, 0);
    }
    int fd = syscall(SYS_openat, folder, path, flags, mode);
    if (mine && fd >= 0 && fd < MAX_FDS) {
        watched[fd] = 1;
        note(OPEN, fd, created, path, NULL, NULL, 0, flags & O_TRUNC ? 1 : 0);
    }
    return fd;
}

#define MODE(flags)                                     \
    mode_t mode = 0;                                    \
    if (flags & (O_CREAT | __O_TMPFILE)) {              \
        va_list more;                                   \
        va_start(more, flags);                          \
        mode = va_arg(more, mode_t);                    \
        va_end(more);                                   \
    }

int open(const char *path, int flags, ...) {
    MODE(flags)
    return opened(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags)
    return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return opened(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return opened(folder, path, flags | O_LARGEFILE, mode);
}

int close(int fd) {
    if (known(fd)) {
        watched[fd] = 0;
        note(CLOSE, fd, 0, NULL, NULL, NULL, 0, 0);
    }
    return syscall(SYS_close, fd);
}

ssize_t write(int fd, const void *data, size_t bytes) {
    if (!known(fd)) return syscall(SYS_write, fd, data, bytes);
    if (fails()) return -1;
    int64_t offset = syscall(SYS_lseek, fd, 0, SEEK_CUR);
    ssize_t done = syscall(SYS_write, fd, data, bytes);
    if (done > 0) note(WRITE, fd, 0, NULL, NULL, data, done, offset);
    return done;
}

static ssize_t written(int fd, const void *data, size_t bytes, int64_t offset) {
    if (known(fd) && fails()) return -1;
    ssize_t done = syscall(SYS_pwrite64, fd, data, bytes, offset);
    if (known(fd) && done > 0) note(WRITE, fd, 0, NULL, NULL, data, done, offset);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    return written(fd, data, bytes, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) {
    return written(fd, data, bytes, offset);
}

static int cut(int fd, int64_t bytes) {
    if (known(fd) && fails()) return -1;
    int done = syscall(SYS_ftruncate, fd, bytes);
    if (known(fd) && !done) note(TRUNCATE, fd, 0, NULL, NULL, NULL, 0, bytes);
    return done;
}
int ftruncate(int fd, off_t bytes) { return cut(fd, bytes); }
int ftruncate64(int fd, off64_t bytes) { return cut(fd, bytes); }

static int synced(int number, int fd) {
    if (known(fd) && fails()) return -1;
    int done = syscall(number, fd);
    if (known(fd) && !done) note(FSYNC, fd, 0, NULL, NULL, NULL, 0, 0);
    return done;
}
int fsync(int fd) { return synced(SYS_fsync, fd); }
int fdatasync(int fd) { return synced(SYS_fdatasync, fd); }

static int two(int kind, int number, const char *from, const char *to) {
    int mine = inside(from) || inside(to);
    if (mine && fails()) return -1;
    int done = syscall(number, from, to);
    if (mine && !done) note(kind, -1, 0, from, to, NULL, 0, 0);
    return done;
}
int rename(const char *from, const char *to) {
    return two(RENAME, SYS_rename, from, to);
}
int link(const char *from, const char *to) { return two(LINK, SYS_link, from, to); }
int symlink(const char *to, const char *path) { return two(SYMLINK, SYS_symlink, to, path); }

static int one(int kind, int number, const char *path, mode_t mode) {
    int mine = inside(path);
    if (mine && fails()) return -1;
    int done = syscall(number, path, mode);
    if (mine && !done) note(kind, -1, 0, path, NULL, NULL, 0, 0);
    return done;
}
int unlink(const char *path) { return one(UNLINK, SYS_unlink, path, 0); }
int mkdir(const char *path, mode_t mode) { return one(MKDIR, SYS_mkdir, path, mode); }
int rmdir(const char *path) { return one(RMDIR, SYS_rmdir, path, 0); }

/* What removes a tree names its files by the folder's number. */
int unlinkat(int folder, const char *path, int flags) {
    char number[64], whole[8192];
    ssize_t used;
    snprintf(number, sizeof number, "/proc/self/fd/%d", folder);
    if (!recording || *path == '/' || folder == AT_FDCWD ||
        (used = syscall(SYS_readlinkat, AT_FDCWD, number, whole, 4096)) < 0)
        return syscall(SYS_unlinkat, folder, path, flags);
    snprintf(whole + used, sizeof whole - used, "/%s", path);
    return flags & AT_REMOVEDIR ? rmdir(whole) : unlink(whole);
}
