/*
 * Loaded into QEMU: what may not be opened for writing is opened for reading.
 *
 * A template's RAM is shared by every sandbox that resumes from it, so no QEMU may be able to write to the
 * file. QEMU maps it privately and never writes to it, yet before version 8.2 it insists on opening it for
 * reading and writing, and the jail's read-only mount refuses. This lets it have what it needs; the wall is
 * the mount.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

static int open_or_read(const char *path, int flags, int mode)
{
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd < 0 && (flags & O_ACCMODE) == O_RDWR && (errno == EROFS || errno == EACCES))
        fd = (int)syscall(SYS_openat, AT_FDCWD, path, (flags & ~O_ACCMODE) | O_RDONLY, mode);
    return fd;
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    int mode = (flags & (O_CREAT | __O_TMPFILE)) != 0 ? va_arg(rest, int) : 0;
    va_end(rest);
    return open_or_read(path, flags, mode);
}

/* What open() becomes when QEMU is built with _FORTIFY_SOURCE. */
int __open64_2(const char *path, int flags)
{
    return open_or_read(path, flags, 0);
}
