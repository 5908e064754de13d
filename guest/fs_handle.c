/* Open files and directories of the relay's clients; each client has its own. */
#include "fs.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint32_t client_of(uint32_t id)
{
    uint32_t client = id / CLIENT_STEP;
    return client < MAX_CLIENTS ? client : MAX_CLIENTS - 1;
}

static unsigned open_handles(const struct agent *agent, uint32_t client)
{
    unsigned count = 0;
    for (unsigned i = 0; i < agent->handle_count; i++)
        count += agent->handles[i]->client == client && !agent->handles[i]->closed;
    return count;
}

static bool may_open(struct agent *agent, uint32_t id, const char *operation)
{
    uint32_t client = client_of(id);
    if (open_handles(agent, client) >= MAX_CLIENT_HANDLES)
        fs_fail(agent, id, "too many open filesystem handles for relay client: %u", client);
    else if (agent->handle_count >= MAX_HANDLES)
        fs_fail_errno(agent, id, operation, ENFILE);
    else
        return true;
    return false;
}

/* Takes over `fd`. */
static struct handle *add(struct agent *agent, uint32_t id, int fd, const char *operation, const char *path)
{
    size_t length = strlen(path);
    struct handle *handle = calloc(1, sizeof *handle + length + 1);
    if (handle == NULL) {
        close(fd);
        fs_fail_errno(agent, id, operation, ENOMEM);
        return NULL;
    }
    handle->number = ++agent->last_handle;
    handle->client = client_of(id);
    handle->fd = fd;
    memcpy(handle->path, path, length + 1);
    agent->handles[agent->handle_count++] = handle;
    return handle;
}

/* As Rust's OpenOptions, which the protocol's clients know: -1 for what makes no sense. */
static int open_flags(const struct fs_open_options *options)
{
    int flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    bool writes = options->write || options->append;
    if (!options->read && !writes)
        return -1;
    if (!writes && (options->create || options->truncate || options->create_new))
        return -1;
    if (options->append && options->truncate && !options->create_new)
        return -1;
    flags |= writes ? (options->read ? O_RDWR : O_WRONLY) : O_RDONLY;
    if (options->append)
        flags |= O_APPEND;
    if (options->create_new)
        return flags | O_CREAT | O_EXCL;
    return flags | (options->create ? O_CREAT : 0) | (options->truncate ? O_TRUNC : 0);
}

struct handle *handle_open(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    const struct fs_open_options *options = &request->options;
    int flags = open_flags(options);
    if (flags < 0) {
        fs_fail_errno(agent, id, "open", EINVAL);
        return NULL;
    }
    if (!may_open(agent, id, "open"))
        return NULL;
    int fd = open(request->path, flags, options->mode & 07777);
    if (fd < 0) {
        fs_fail_errno(agent, id, "open", errno);
        return NULL;
    }
    struct handle *handle = add(agent, id, fd, "open", request->path);
    if (handle != NULL) {
        handle->readable = options->read;
        handle->writable = options->write || options->append;
    }
    return handle;
}

struct handle *handle_open_directory(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    if (!may_open(agent, id, "opendir"))
        return NULL;
    int fd = open(request->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        fs_fail_errno(agent, id, "opendir", errno);
        return NULL;
    }
    struct handle *handle = add(agent, id, fd, "opendir", request->path);
    if (handle == NULL)
        return NULL;
    handle->directory = fdopendir(fd);
    if (handle->directory == NULL) {
        fs_fail_errno(agent, id, "opendir", errno);
        handle_close(agent, handle);
        return NULL;
    }
    return handle;
}

struct handle *handle_find(struct agent *agent, uint32_t id, uint64_t number)
{
    for (unsigned i = 0; i < agent->handle_count; i++) {
        struct handle *handle = agent->handles[i];
        if (handle->number != number || handle->closed)
            continue;
        if (handle->client == client_of(id))
            return handle;
        fs_fail(agent, id, "handle %" PRIu64 " is owned by a different relay client", number);
        return NULL;
    }
    fs_fail(agent, id, "invalid handle: %" PRIu64, number);
    return NULL;
}

static void destroy(struct agent *agent, struct handle *handle)
{
    unsigned i = 0;
    while (agent->handles[i] != handle)
        i++;
    agent->handles[i] = agent->handles[--agent->handle_count];
    if (handle->directory != NULL)
        closedir(handle->directory);
    else
        close(handle->fd);
    free(handle);
}

void handle_close(struct agent *agent, struct handle *handle)
{
    handle->closed = true;
    if (handle->streams == 0)
        destroy(agent, handle);
}

void handle_unused(struct agent *agent, struct handle *handle)
{
    handle->streams--;
    if (handle->closed && handle->streams == 0)
        destroy(agent, handle);
}

void fs_close_client(struct agent *agent, uint32_t client)
{
    for (unsigned i = agent->handle_count; i-- > 0;)
        if (agent->handles[i]->client == client && !agent->handles[i]->closed)
            handle_close(agent, agent->handles[i]);
}
