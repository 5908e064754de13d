/* core.fs.request: one operation on the guest's files. */
#ifndef FS_REQUEST_H
#define FS_REQUEST_H

#include "cbor.h"

enum fs_operation {
    FS_REAL_PATH,
    FS_STAT,
    FS_SET_STAT,
    FS_LIST,
    FS_READ_LINK,
    FS_SYMLINK,
    FS_MKDIR,
    FS_REMOVE,
    FS_REMOVE_DIR,
    FS_COPY,
    FS_RENAME,
    FS_OPEN_FILE,
    FS_OPEN_DIR,
    FS_READ_DIR,
    FS_READ,
    FS_WRITE,
    FS_FSTAT,
    FS_FSETSTAT,
    FS_CLOSE_HANDLE,
    FS_OPERATIONS
};

/* Which attributes are to be set. */
enum { ATTR_MODE = 1, ATTR_UID = 2, ATTR_GID = 4, ATTR_SIZE = 8, ATTR_ATIME = 16, ATTR_MTIME = 32 };

struct fs_attributes {
    unsigned given;
    uint32_t mode, uid, gid;
    uint64_t size;
    int64_t atime, mtime; /* seconds */
};

struct fs_open_options {
    bool read, write, append, create, truncate, create_new;
    uint32_t mode;
};

struct fs_request {
    enum fs_operation operation;
    char *path;  /* also `src` and `target` */
    char *other; /* `dst` and `link_path` */
    bool follow, recursive;
    bool has_mode, has_length;
    uint32_t mode;
    uint64_t handle, offset, length, limit;
    struct fs_attributes attributes;
    struct fs_open_options options;
    bool has_nul; /* a path contained a NUL byte */
    char *strings;
};

/* Returns NULL, or why it cannot be read. fs_request_free() in either case. */
const char *fs_request_decode(struct cbor *payload, struct fs_request *);
void fs_request_free(struct fs_request *);

#endif
