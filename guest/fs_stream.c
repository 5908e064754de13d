/*
 * Reading and writing files: sessions that move one share a turn.
 *
 * Files are read and written at the stream's own offset; what cannot be positioned (FIFOs, terminals) is
 * taken as it comes, and waited for through epoll by a descriptor of the stream's own.
 */
#include "fs.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

enum { SHARE = 64 << 10 };

struct reading {
    struct session session;
    struct handle *handle;
    struct watch watch; /* its fd is -1 until the file has to be waited for */
    bool ready;
    bool positioned;
    off_t offset;
    uint64_t left;
};

struct writing {
    struct session session;
    struct handle *handle;
    struct outlet outlet;
    bool has_length, ending;
    uint64_t length;
};

static struct handle *find_file(struct agent *agent, uint32_t id, const struct fs_request *request,
                                bool write)
{
    struct handle *handle = handle_find(agent, id, request->handle);
    if (handle == NULL)
        return NULL;
    if (handle->directory != NULL)
        fs_fail(agent, id, "handle %" PRIu64 " is a directory", handle->number);
    else if (write ? !handle->writable : !handle->readable)
        fs_fail(agent, id, "handle %" PRIu64 " is not open for %s", handle->number,
                write ? "writing" : "reading");
    else
        return handle;
    return NULL;
}

/* Whether the file has positions, and the wanted one is one of them. False: answered. */
static bool check_offset(struct agent *agent, uint32_t id, int fd, uint64_t offset, bool *positioned)
{
    if (offset > INT64_MAX) {
        fs_fail_errno(agent, id, "seek", EINVAL);
        return false;
    }
    *positioned = lseek(fd, 0, SEEK_CUR) >= 0;
    if (!*positioned && offset > 0) {
        fs_fail_errno(agent, id, "seek", errno);
        return false;
    }
    return true;
}

static void *start(struct agent *agent, uint32_t id, const struct session_kind *kind, size_t size,
                   const char *operation)
{
    void *session = session_start(agent, id, kind, size);
    if (session == NULL && errno == EAGAIN)
        fs_fail(agent, id, "%s: too many sessions", operation);
    else if (session == NULL)
        fs_fail_errno(agent, id, operation, errno);
    return session;
}

static void finish(struct agent *agent, struct session *session, const char *operation, int error)
{
    if (error != 0)
        fs_fail_errno(agent, session->id, operation, error);
    else
        fs_answer(agent, session->id);
    session_end(agent, session);
}

/* A file that has nothing now is asked again when epoll says so. Returns 0 or an error number. */
static int wait_for_input(struct agent *agent, struct reading *reading)
{
    reading->ready = false;
    if (reading->watch.fd >= 0) {
        reading->watch.readable = false;
        return 0;
    }
    int fd = fcntl(reading->handle->fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return errno;
    if (watch_open(agent, &reading->watch, fd, &reading->session, false) && reading->watch.added)
        return 0;
    return EAGAIN; /* it can neither be read nor waited for */
}

static void run_read(struct agent *agent, struct session *session)
{
    struct reading *reading = (struct reading *)session;
    if (session->paused || !(reading->ready || reading->watch.readable))
        return;
    size_t size = reading->left < SHARE ? (size_t)reading->left : SHARE;
    uint8_t *data = wire_begin_data(&agent->wire, session->id, MSG_FS_DATA, size);
    if (data == NULL || size == 0) {
        finish(agent, session, "read", data == NULL ? ENOMEM : 0);
        return;
    }
    ssize_t count = reading->positioned ? pread(reading->handle->fd, data, size, reading->offset)
                                        : read(reading->handle->fd, data, size);
    if (count > 0) {
        wire_end_data(&agent->wire, (size_t)count);
        reading->offset += count;
        reading->left -= (uint64_t)count;
        session_wake(agent, session);
    } else if (count == 0) {
        finish(agent, session, "read", 0);
    } else if (errno == EAGAIN) {
        int error = wait_for_input(agent, reading);
        if (error != 0)
            finish(agent, session, "read", error);
    } else if (errno == EINTR) {
        session_wake(agent, session);
    } else {
        finish(agent, session, "read", errno);
    }
}

static const char *no_message(struct agent *agent, struct session *session, enum message kind,
                              struct cbor *payload)
{
    (void)agent, (void)session, (void)kind, (void)payload;
    return NULL;
}

static void release_read(struct agent *agent, struct session *session)
{
    struct reading *reading = (struct reading *)session;
    watch_close(agent, &reading->watch);
    handle_unused(agent, reading->handle);
}

static const struct session_kind read_kind = {no_message, run_read, release_read};

void fs_start_read(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    bool positioned;
    struct handle *handle = find_file(agent, id, request, false);
    if (handle == NULL || !check_offset(agent, id, handle->fd, request->offset, &positioned))
        return;
    struct reading *reading = start(agent, id, &read_kind, sizeof *reading, "read");
    if (reading == NULL)
        return;
    reading->handle = handle;
    reading->watch.fd = -1;
    reading->ready = true;
    reading->positioned = positioned;
    reading->offset = (off_t)request->offset;
    reading->left = request->has_length ? request->length : UINT64_MAX;
    handle->streams++;
    session_wake(agent, &reading->session);
}

/* Answers once the end was announced and everything is written, or when writing failed. */
static void settle_write(struct agent *agent, struct writing *writing, int error)
{
    struct session *session = &writing->session;
    if (error == 0 && !(writing->ending && outlet_empty(&writing->outlet)))
        return;
    if (error == 0 && writing->has_length && writing->length != writing->outlet.written) {
        fs_fail(agent, session->id, "write length mismatch: expected %" PRIu64 ", wrote %" PRIu64,
                writing->length, writing->outlet.written);
        session_end(agent, session);
        return;
    }
    finish(agent, session, "write", error);
}

static const char *write_message(struct agent *agent, struct session *session, enum message kind,
                                 struct cbor *payload)
{
    struct writing *writing = (struct writing *)session;
    struct cbor_string data = {NULL, 0};
    if (kind != MSG_FS_DATA)
        return NULL;
    struct cbor_level map = cbor_enter_map(payload);
    while (cbor_more(payload, &map)) {
        if (cbor_equal(cbor_text(payload), "data"))
            data = cbor_bytes(payload);
        else
            cbor_skip(payload);
    }
    if (payload->bad != NULL)
        return payload->bad;
    int error = 0;
    if (data.length == 0)
        writing->ending = true;
    else if (!writing->ending)
        error = outlet_put(agent, &writing->outlet, data.data, data.length);
    settle_write(agent, writing, error);
    return NULL;
}

static void run_write(struct agent *agent, struct session *session)
{
    struct writing *writing = (struct writing *)session;
    if (!outlet_empty(&writing->outlet))
        settle_write(agent, writing, outlet_drain(agent, &writing->outlet));
}

static void release_write(struct agent *agent, struct session *session)
{
    struct writing *writing = (struct writing *)session;
    outlet_close(agent, &writing->outlet);
    handle_unused(agent, writing->handle);
}

static const struct session_kind write_kind = {write_message, run_write, release_write};

void fs_start_write(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    bool positioned;
    struct handle *handle = find_file(agent, id, request, true);
    if (handle == NULL || !check_offset(agent, id, handle->fd, request->offset, &positioned))
        return;
    int fd = fcntl(handle->fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0) {
        fs_fail_errno(agent, id, "write", errno);
        return;
    }
    struct writing *writing = start(agent, id, &write_kind, sizeof *writing, "write");
    if (writing == NULL) {
        close(fd);
        return;
    }
    writing->handle = handle;
    handle->streams++;
    writing->has_length = request->has_length;
    writing->length = request->length;
    bool watched = watch_open(agent, &writing->outlet.watch, fd, &writing->session, true);
    writing->outlet.at_offset = positioned;
    writing->outlet.offset = (off_t)request->offset;
    if (!watched)
        finish(agent, &writing->session, "write", ENOMEM);
}
