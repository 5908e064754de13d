/* Directories: a batch of a handle's entries at once, or a whole one in turns. */
#include "fs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    MAX_PATH = 4096 + 256,
    MAX_ENTRY = 3 * MAX_PATH + 256, /* encoded; a byte that is no UTF-8 becomes three */
    MAX_BATCH = 1024,
    MAX_BATCH_BYTES = 256 << 10,
    MAX_LIST_BYTES = MAX_LENGTH - 1024,
    ENTRIES_A_TURN = 64,
};

/* The next entry that is still there, encoded. Returns 1, 0 at the end, or -1 and errno. */
static int next_entry(DIR *directory, const char *path, struct cbor_out *put)
{
    char full[MAX_PATH];
    size_t length = strlen(path);
    for (;;) {
        struct stat info;
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (entry == NULL)
            return errno == 0 ? 0 : -1;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) < 0)
            continue; /* it went while we looked */
        const char *separator = length > 0 && path[length - 1] == '/' ? "" : "/";
        snprintf(full, sizeof full, "%s%s%s", path, separator, entry->d_name);
        fs_put_info(put, full, &info);
        return 1;
    }
}

void fs_read_directory(struct agent *agent, uint32_t id, const struct fs_request *request)
{
    struct handle *handle = handle_find(agent, id, request->handle);
    if (handle == NULL)
        return;
    if (handle->directory == NULL) {
        fs_fail(agent, id, "handle %llu is a file", (unsigned long long)handle->number);
        return;
    }
    uint64_t limit = request->limit < 1 ? 1 : request->limit < MAX_BATCH ? request->limit : MAX_BATCH;
    struct cbor_out put = fs_begin_answer(agent, id);
    cbor_put_map(&put, 1);
    cbor_put_text(&put, "List");
    uint8_t *start = put.at, *array = cbor_open_array(&put);
    uint32_t count = 0;
    int found = 1;
    while (count < limit && put.at - start < MAX_BATCH_BYTES &&
           (found = next_entry(handle->directory, handle->path, &put)) > 0)
        count++;
    if (found < 0 && count == 0) { /* otherwise the next batch fails */
        fs_fail_errno(agent, id, "readdir", errno);
        return;
    }
    cbor_close_array(&put, array, count);
    wire_end(&agent->wire, &put);
}

struct listing {
    struct session session;
    DIR *directory;
    uint8_t *data;
    size_t size, capacity;
    uint32_t count;
    char path[];
};

static bool ensure_room(struct listing *listing)
{
    if (listing->capacity - listing->size >= MAX_ENTRY)
        return true;
    size_t capacity = listing->capacity == 0 ? 32 << 10 : 2 * listing->capacity;
    uint8_t *grown = realloc(listing->data, capacity);
    if (grown == NULL)
        return false;
    listing->data = grown;
    listing->capacity = capacity;
    return true;
}

static void finish(struct agent *agent, struct listing *listing)
{
    uint32_t id = listing->session.id;
    struct cbor_out put = fs_begin_answer(agent, id);
    cbor_put_map(&put, 1);
    cbor_put_text(&put, "List");
    cbor_put_array(&put, listing->count);
    cbor_put_raw(&put, listing->data, listing->size);
    if (!wire_end(&agent->wire, &put))
        fs_fail_errno(agent, id, "readdir", EOVERFLOW);
    session_end(agent, &listing->session);
}

static void run(struct agent *agent, struct session *session)
{
    struct listing *listing = (struct listing *)session;
    for (unsigned i = 0; i < ENTRIES_A_TURN; i++) {
        int error = !ensure_room(listing) ? ENOMEM : listing->size > MAX_LIST_BYTES ? EOVERFLOW : 0;
        int found = -1;
        if (error == 0) {
            uint8_t *end = listing->data + listing->capacity;
            struct cbor_out put = {listing->data + listing->size, end, false};
            found = next_entry(listing->directory, listing->path, &put);
            error = found < 0 ? errno : 0;
            listing->size = (size_t)(put.at - listing->data);
        }
        if (error != 0) {
            fs_fail_errno(agent, session->id, "readdir", error);
            session_end(agent, session);
            return;
        }
        if (found == 0) {
            finish(agent, listing);
            return;
        }
        listing->count++;
    }
    session_wake(agent, session);
}

static const char *message(struct agent *agent, struct session *session, enum message kind,
                           struct cbor *payload)
{
    (void)agent, (void)session, (void)kind, (void)payload;
    return NULL;
}

static void release(struct agent *agent, struct session *session)
{
    struct listing *listing = (struct listing *)session;
    (void)agent;
    if (listing->directory != NULL)
        closedir(listing->directory);
    free(listing->data);
}

static const struct session_kind listing_kind = {message, run, release};

void fs_list(struct agent *agent, uint32_t id, const char *path)
{
    size_t length = strlen(path);
    struct listing *listing = session_start(agent, id, &listing_kind, sizeof *listing + length + 1);
    if (listing == NULL) {
        fs_fail_errno(agent, id, "readdir", errno);
        return;
    }
    memcpy(listing->path, path, length + 1);
    listing->directory = opendir(path);
    if (listing->directory == NULL) {
        fs_fail_errno(agent, id, "readdir", errno);
        session_end(agent, &listing->session);
        return;
    }
    session_wake(agent, &listing->session);
}
