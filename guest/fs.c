/*
 * Guest files: the operations that are over at once, and the answers.
 *
 * Everything runs as root in the guest's root. Files are opened without blocking, so that a FIFO or a
 * terminal cannot hold up the agent; what takes long is done in a child (fs_job.c) or in turns.
 */
#include "fs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct cbor_out fs_begin_answer(struct agent *agent, uint32_t id)
{
    struct cbor_out put = wire_begin(&agent->wire, id, MSG_FS_RESPONSE);
    cbor_put_map(&put, 2);
    cbor_put_text(&put, "ok");
    cbor_put_bool(&put, true);
    cbor_put_text(&put, "data");
    return put;
}

void fs_answer(struct agent *agent, uint32_t id)
{
    struct cbor_out put = fs_begin_answer(agent, id);
    cbor_put_null(&put);
    wire_end(&agent->wire, &put);
}

void fs_fail(struct agent *agent, uint32_t id, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    struct cbor_out put = wire_begin(&agent->wire, id, MSG_FS_RESPONSE);
    cbor_put_map(&put, 2);
    cbor_put_text(&put, "ok");
    cbor_put_bool(&put, false);
    cbor_put_text(&put, "error");
    cbor_put_text(&put, text);
    wire_end(&agent->wire, &put);
}

void fs_fail_errno(struct agent *agent, uint32_t id, const char *operation, int number)
{
    fs_fail(agent, id, "%s: %s", operation, os_error(number).text);
}

static void finish(struct agent *agent, uint32_t id, const char *operation, int result)
{
    if (result < 0)
        fs_fail_errno(agent, id, operation, errno);
    else
        fs_answer(agent, id);
}

static void answer_text(struct agent *agent, uint32_t id, const char *key, const char *text)
{
    struct cbor_out put = fs_begin_answer(agent, id);
    cbor_put_map(&put, 1);
    cbor_put_text(&put, key);
    cbor_put_text(&put, text);
    wire_end(&agent->wire, &put);
}

void fs_put_info(struct cbor_out *put, const char *path, const struct stat *info)
{
    const char *kind = "other";
    const struct {
        const char *key;
        int64_t value;
    } fields[] = {
        {"size", info->st_size},         {"mode", info->st_mode}, {"modified", info->st_mtim.tv_sec},
        {"uid", info->st_uid},           {"gid", info->st_gid},   {"atime", info->st_atim.tv_sec},
        {"mtime", info->st_mtim.tv_sec},
    };
    if (S_ISREG(info->st_mode))
        kind = "file";
    else if (S_ISDIR(info->st_mode))
        kind = "dir";
    else if (S_ISLNK(info->st_mode))
        kind = "symlink";
    cbor_put_map(put, 2 + sizeof fields / sizeof *fields);
    cbor_put_text(put, "path");
    cbor_put_text(put, path);
    cbor_put_text(put, "kind");
    cbor_put_text(put, kind);
    for (unsigned i = 0; i < sizeof fields / sizeof *fields; i++) {
        cbor_put_text(put, fields[i].key);
        cbor_put_int(put, fields[i].value);
    }
}

static void answer_info(struct agent *agent, uint32_t id, const char *path, const struct stat *info)
{
    struct cbor_out put = fs_begin_answer(agent, id);
    cbor_put_map(&put, 1);
    cbor_put_text(&put, "Stat");
    fs_put_info(&put, path, info);
    wire_end(&agent->wire, &put);
}

static void answer_handle(struct agent *agent, uint32_t id, const struct handle *handle)
{
    if (handle == NULL)
        return; /* answered already */
    struct cbor_out put = fs_begin_answer(agent, id);
    cbor_put_map(&put, 1);
    cbor_put_text(&put, "Handle");
    cbor_put_uint(&put, handle->number);
    wire_end(&agent->wire, &put);
}

/* The canonical path; of a name that does not exist, its canonical directory and the name. */
static void real_path(struct agent *agent, uint32_t id, const char *path)
{
    char resolved[PATH_MAX], parent[PATH_MAX];
    if (realpath(path, resolved) != NULL) {
        answer_text(agent, id, "Path", resolved);
        return;
    }
    int error = errno;
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    const char *slash = memrchr(path, '/', length);
    const char *name = slash != NULL ? slash + 1 : path;
    size_t name_length = (size_t)(path + length - name), parent_length = (size_t)(name - path);
    bool named = name_length > 0 && !(name_length <= 2 && strncmp(name, "..", name_length) == 0);
    if (!named || parent_length >= sizeof parent) {
        fs_fail_errno(agent, id, "realpath", error);
        return;
    }
    memcpy(parent, path, parent_length);
    parent[parent_length] = '\0';
    if (realpath(parent_length > 0 ? parent : ".", resolved) == NULL ||
        strlen(resolved) + 1 + name_length >= sizeof resolved) {
        fs_fail_errno(agent, id, "realpath", error);
        return;
    }
    size_t end = strlen(resolved);
    if (end > 1)
        resolved[end++] = '/';
    memcpy(resolved + end, name, name_length);
    resolved[end + name_length] = '\0';
    answer_text(agent, id, "Path", resolved);
}

static void read_link(struct agent *agent, uint32_t id, const char *path)
{
    char target[PATH_MAX];
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0) {
        fs_fail_errno(agent, id, "readlink", errno);
        return;
    }
    target[length] = '\0';
    answer_text(agent, id, "Path", target);
}

/* Makes the directories of a path in place: every '/' ends one for a moment. Returns 0 or -1 and errno. */
static int make_directories(char *path)
{
    struct stat info;
    if (mkdir(path, 0777) == 0)
        return 0;
    if (errno != ENOENT) {
        int error = errno;
        if (error == EEXIST && stat(path, &info) == 0 && S_ISDIR(info.st_mode))
            return 0;
        errno = error;
        return -1;
    }
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        int result = mkdir(path, 0777);
        *slash = '/';
        if (result < 0 && errno != EEXIST)
            return -1;
    }
    return mkdir(path, 0777) == 0 || errno == EEXIST ? 0 : -1;
}

static void make_directory(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    if (make_directories(request->path) < 0)
        fs_fail_errno(agent, id, "mkdir", errno);
    else if (request->has_mode && chmod(request->path, request->mode & 07777) < 0)
        fs_fail_errno(agent, id, "chmod", errno);
    else
        fs_answer(agent, id);
}

static struct timespec time_of(const struct fs_attributes *attributes, unsigned which, int64_t seconds)
{
    if (!(attributes->given & which))
        return (struct timespec){.tv_nsec = UTIME_OMIT};
    return (struct timespec){.tv_sec = seconds};
}

/* Of a path when `fd` is negative. Size, mode, owner, times, in this order; returns 0 or -1 and errno. */
static int set_attributes(int fd, const char *path, bool follow, const struct fs_attributes *attributes)
{
    const unsigned given = attributes->given;
    const int flags = follow ? 0 : AT_SYMLINK_NOFOLLOW;
    const struct timespec times[2] = {
        time_of(attributes, ATTR_ATIME, attributes->atime),
        time_of(attributes, ATTR_MTIME, attributes->mtime),
    };
    uid_t uid = given & ATTR_UID ? attributes->uid : (uid_t)-1;
    gid_t gid = given & ATTR_GID ? attributes->gid : (gid_t)-1;
    mode_t mode = attributes->mode & 07777;
    off_t size = (off_t)attributes->size;

    if (given & ATTR_SIZE && (fd >= 0 ? ftruncate(fd, size) : truncate(path, size)) < 0)
        return -1;
    if (given & ATTR_MODE && (fd >= 0 ? fchmod(fd, mode) : chmod(path, mode)) < 0)
        return -1;
    if (given & (ATTR_UID | ATTR_GID) &&
        (fd >= 0 ? fchown(fd, uid, gid) : fchownat(AT_FDCWD, path, uid, gid, flags)) < 0)
        return -1;
    if (given & (ATTR_ATIME | ATTR_MTIME) &&
        (fd >= 0 ? futimens(fd, times) : utimensat(AT_FDCWD, path, times, flags)) < 0)
        return -1;
    return 0;
}

static void set_stat(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    struct stat info;
    bool on_link = !request->follow && lstat(request->path, &info) == 0 && S_ISLNK(info.st_mode);
    if (on_link && request->attributes.given & ATTR_MODE)
        fs_fail(agent, id, "chmod on symlink without following is not supported");
    else
        finish(agent, id, "setstat",
               set_attributes(-1, request->path, request->follow, &request->attributes));
}

static void with_handle(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    struct stat info;
    struct handle *handle = handle_find(agent, id, request->handle);
    if (handle == NULL)
        return;
    if (request->operation == FS_CLOSE_HANDLE) {
        handle_close(agent, handle);
        fs_answer(agent, id);
    } else if (request->operation == FS_FSETSTAT) {
        finish(agent, id, "fsetstat", set_attributes(handle->fd, NULL, true, &request->attributes));
    } else if (fstat(handle->fd, &info) < 0) {
        fs_fail_errno(agent, id, "fstat", errno);
    } else {
        answer_info(agent, id, handle->path, &info);
    }
}

static void perform(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    struct stat info;
    switch (request->operation) {
    case FS_REAL_PATH:
        real_path(agent, id, request->path);
        break;
    case FS_STAT:
        if ((request->follow ? stat(request->path, &info) : lstat(request->path, &info)) < 0)
            fs_fail_errno(agent, id, "stat", errno);
        else
            answer_info(agent, id, request->path, &info);
        break;
    case FS_SET_STAT:
        set_stat(agent, id, request);
        break;
    case FS_LIST:
        fs_list(agent, id, request->path);
        break;
    case FS_READ_LINK:
        read_link(agent, id, request->path);
        break;
    case FS_SYMLINK:
        finish(agent, id, "symlink", symlink(request->path, request->other));
        break;
    case FS_MKDIR:
        make_directory(agent, id, request);
        break;
    case FS_REMOVE:
        finish(agent, id, "remove", unlink(request->path));
        break;
    case FS_REMOVE_DIR:
        if (request->recursive)
            fs_start_remove_tree(agent, id, request);
        else
            finish(agent, id, "remove_dir", rmdir(request->path));
        break;
    case FS_COPY:
        fs_start_copy(agent, id, request);
        break;
    case FS_RENAME:
        finish(agent, id, "rename", rename(request->path, request->other));
        break;
    case FS_OPEN_FILE:
        answer_handle(agent, id, handle_open(agent, id, request));
        break;
    case FS_OPEN_DIR:
        answer_handle(agent, id, handle_open_directory(agent, id, request));
        break;
    case FS_READ_DIR:
        fs_read_directory(agent, id, request);
        break;
    case FS_READ:
        fs_start_read(agent, id, request);
        break;
    case FS_WRITE:
        fs_start_write(agent, id, request);
        break;
    case FS_FSTAT:
    case FS_FSETSTAT:
    case FS_CLOSE_HANDLE:
        with_handle(agent, id, request);
        break;
    case FS_OPERATIONS:
        break;
    }
}

const char *fs_start(struct agent *agent, uint32_t id, struct cbor *payload)
{
    struct fs_request request;
    const char *bad = fs_request_decode(payload, &request);
    if (bad == NULL && request.has_nul)
        fs_fail(agent, id, "file name contained an unexpected NUL byte");
    else if (bad == NULL)
        perform(agent, id, &request);
    fs_request_free(&request);
    return bad;
}

void fs_refuse_data(struct agent *agent, uint32_t id)
{
    fs_fail(agent, id, "unknown write session: %u", id);
}
