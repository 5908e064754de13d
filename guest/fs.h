/* Guest files: core.fs.* */
#ifndef FS_H
#define FS_H

#include "agent.h"
#include "fs_request.h"

#include <dirent.h>
#include <sys/stat.h>

/* What the host knows by a number: an open file or directory. */
struct handle {
    uint64_t number;
    uint32_t client;
    int fd;
    DIR *directory; /* NULL for a file */
    bool readable, writable;
    bool closed; /* by the host; it goes when the last stream that uses it ends */
    unsigned streams;
    char path[]; /* of a directory */
};

/* Returns NULL, or why the request cannot be read; everything else is answered. */
const char *fs_start(struct agent *, uint32_t id, struct cbor *payload);
/* core.fs.data for an id that has no session. */
void fs_refuse_data(struct agent *, uint32_t id);
/* The relay client of that slot is gone. */
void fs_close_client(struct agent *, uint32_t client);

/* Answers; each ends the session on the wire. */
void fs_answer(struct agent *, uint32_t id);
void fs_fail(struct agent *, uint32_t id, const char *format, ...) __attribute__((format(printf, 3, 4)));
void fs_fail_errno(struct agent *, uint32_t id, const char *operation, int number);
struct cbor_out fs_begin_answer(struct agent *, uint32_t id);
void fs_put_info(struct cbor_out *, const char *path, const struct stat *);

/* fs_handle.c: they answer when they fail, and return NULL. */
struct handle *handle_open(struct agent *, uint32_t id, const struct fs_request *);
struct handle *handle_open_directory(struct agent *, uint32_t id, const struct fs_request *);
struct handle *handle_find(struct agent *, uint32_t id, uint64_t number);
void handle_close(struct agent *, struct handle *);
void handle_unused(struct agent *, struct handle *); /* a stream has let go of it */

/* fs_stream.c */
void fs_start_read(struct agent *, uint32_t id, const struct fs_request *);
void fs_start_write(struct agent *, uint32_t id, const struct fs_request *);

/* fs_list.c */
void fs_list(struct agent *, uint32_t id, const char *path);
void fs_read_directory(struct agent *, uint32_t id, const struct fs_request *);

/* fs_job.c */
void fs_start_copy(struct agent *, uint32_t id, const struct fs_request *);
void fs_start_remove_tree(struct agent *, uint32_t id, const struct fs_request *);

#endif
