/*
 * Copying a file and removing a tree: done by a child, because they take as long as they take.
 *
 * The child writes one number to its pipe, 0 or what went wrong; ending without a word is a failure too.
 */
#include "fs.h"
#include "job.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_DEPTH = 8192, BLOCK = 128 << 10 };

struct fs_job {
    struct session session;
    struct job job;
    const char *operation;
};

/* Runs in the child, which is about to end: nothing is freed. Returns 0 or an error number. */
static int copy_content(int from, int to)
{
    for (;;) {
        ssize_t count = copy_file_range(from, NULL, to, NULL, 1 << 30, 0);
        if (count == 0)
            break;
        if (count < 0 && errno != EXDEV && errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
            return errno;
        if (count < 0)
            break;
    }
    /* What the kernel cannot copy by itself, and files of /proc that claim to be empty. */
    char *block = malloc(BLOCK);
    if (block == NULL)
        return ENOMEM;
    for (;;) {
        ssize_t count = read(from, block, BLOCK);
        if (count <= 0)
            return count < 0 ? errno : 0;
        for (ssize_t done = 0; done < count;) {
            ssize_t written = write(to, block + done, (size_t)(count - done));
            if (written < 0)
                return errno;
            done += written;
        }
    }
}

static int copy_file(const char *source, const char *target)
{
    struct stat info, target_info;
    int from = open(source, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (from < 0 || fstat(from, &info) < 0)
        return errno;
    if (!S_ISREG(info.st_mode))
        return S_ISDIR(info.st_mode) ? EISDIR : EINVAL;
    if (stat(target, &target_info) == 0 && target_info.st_dev == info.st_dev &&
        target_info.st_ino == info.st_ino)
        return EINVAL; /* onto itself: truncating it would lose it */
    int to =
        open(target, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, info.st_mode & 0777);
    if (to < 0 || fstat(to, &target_info) < 0)
        return errno;
    if (S_ISREG(target_info.st_mode) && fchmod(to, info.st_mode & 07777) < 0)
        return errno;
    int error = copy_content(from, to);
    return close(to) < 0 && error == 0 ? errno : error;
}

/*
 * Removes what is below `top`, depth first, never following a symbolic link. The directories from the top
 * to the current one stay open, so that no one else's rename can lead it astray.
 */
static int empty_tree(int top)
{
    DIR **open_directories = calloc(MAX_DEPTH, sizeof *open_directories);
    char (*names)[NAME_MAX + 1] = calloc(MAX_DEPTH, sizeof *names);
    unsigned depth = 0;

    if (open_directories == NULL || names == NULL)
        return ENOMEM;
    open_directories[0] = fdopendir(top);
    if (open_directories[0] == NULL)
        return errno;
    for (;;) {
        DIR *directory = open_directories[depth];
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (entry == NULL && errno != 0)
            return errno;
        if (entry == NULL) {
            closedir(directory);
            if (depth == 0)
                return 0;
            depth--;
            if (unlinkat(dirfd(open_directories[depth]), names[depth], AT_REMOVEDIR) < 0 && errno != ENOENT)
                return errno;
            continue;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (unlinkat(dirfd(directory), entry->d_name, 0) == 0 || errno == ENOENT)
            continue;
        if (errno != EISDIR)
            return errno;
        if (depth + 1 == MAX_DEPTH)
            return ENAMETOOLONG;
        int fd = openat(dirfd(directory), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            return errno;
        strcpy(names[depth], entry->d_name);
        open_directories[++depth] = fdopendir(fd);
        if (open_directories[depth] == NULL)
            return errno;
    }
}

static int remove_tree(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        struct stat info;
        int error = errno;
        if (lstat(path, &info) == 0 && S_ISLNK(info.st_mode))
            return unlink(path) < 0 ? errno : 0;
        return error;
    }
    int error = empty_tree(fd);
    if (error != 0)
        return error;
    return rmdir(path) < 0 ? errno : 0;
}

static void run(struct agent *agent, struct session *session)
{
    struct fs_job *job = (struct fs_job *)session;
    int error = 0;
    if (!job->job.pipe.readable)
        return;
    ssize_t count = job_read(&job->job, &error, sizeof error);
    if (count < 0 && errno == EAGAIN)
        return;
    if (count != sizeof error)
        fs_fail(agent, session->id, "%s: the process that did it was killed", job->operation);
    else if (error != 0)
        fs_fail_errno(agent, session->id, job->operation, error);
    else
        fs_answer(agent, session->id);
    session_end(agent, session);
}

static const char *message(struct agent *agent, struct session *session, enum message kind,
                           struct cbor *payload)
{
    (void)agent, (void)session, (void)kind, (void)payload;
    return NULL;
}

static void release(struct agent *agent, struct session *session)
{
    job_close(agent, &((struct fs_job *)session)->job);
}

static const struct session_kind job_kind = {message, run, release};

/* Returns true in the child. In the agent it was answered, or will be. */
static bool start(struct agent *agent, uint32_t id, const char *operation, int *report)
{
    struct fs_job *job = session_start(agent, id, &job_kind, sizeof *job);
    if (job == NULL) {
        fs_fail_errno(agent, id, operation, errno);
        return false;
    }
    job->operation = operation;
    job->job.pipe.fd = -1;
    int forked = job_fork(agent, &job->job, &job->session, report);
    if (forked < 0) {
        fs_fail_errno(agent, id, operation, errno);
        session_end(agent, &job->session);
    }
    return forked > 0;
}

static _Noreturn void report_and_exit(int report, int error)
{
    _exit(write(report, &error, sizeof error) == sizeof error ? 0 : 1);
}

void fs_start_copy(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    int report;
    if (start(agent, id, "copy", &report))
        report_and_exit(report, copy_file(request->path, request->other));
}

void fs_start_remove_tree(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    int report;
    if (start(agent, id, "remove_dir", &report))
        report_and_exit(report, remove_tree(request->path));
}
