/* Decoding of core.fs.request; pure, so that it can be fuzzed. */
#include "fs_request.h"

#include "strlist.h"

#include <stdlib.h>

enum { NEED_PATH = 1, NEED_OTHER = 2, NEED_HANDLE = 4 };
enum { DEFAULT_BATCH = 128, DEFAULT_MODE = 0666 };

static const struct {
    const char *name;
    unsigned needs;
} operations[FS_OPERATIONS] = {
    [FS_REAL_PATH] = {"RealPath", NEED_PATH},
    [FS_STAT] = {"Stat", NEED_PATH},
    [FS_SET_STAT] = {"SetStat", NEED_PATH},
    [FS_LIST] = {"List", NEED_PATH},
    [FS_READ_LINK] = {"ReadLink", NEED_PATH},
    [FS_SYMLINK] = {"Symlink", NEED_PATH | NEED_OTHER},
    [FS_MKDIR] = {"Mkdir", NEED_PATH},
    [FS_REMOVE] = {"Remove", NEED_PATH},
    [FS_REMOVE_DIR] = {"RemoveDir", NEED_PATH},
    [FS_COPY] = {"Copy", NEED_PATH | NEED_OTHER},
    [FS_RENAME] = {"Rename", NEED_PATH | NEED_OTHER},
    [FS_OPEN_FILE] = {"OpenFile", NEED_PATH},
    [FS_OPEN_DIR] = {"OpenDir", NEED_PATH},
    [FS_READ_DIR] = {"ReadDir", NEED_HANDLE},
    [FS_READ] = {"Read", NEED_HANDLE},
    [FS_WRITE] = {"Write", NEED_HANDLE},
    [FS_FSTAT] = {"FStat", NEED_HANDLE},
    [FS_FSETSTAT] = {"FSetStat", NEED_HANDLE},
    [FS_CLOSE_HANDLE] = {"CloseHandle", NEED_HANDLE},
};

static uint32_t read_u32(struct cbor *in)
{
    uint64_t value = cbor_uint(in);
    if (value > UINT32_MAX)
        cbor_fail(in, "expected a whole number of 32 bits");
    return (uint32_t)value;
}

static bool optional_bool(struct cbor *in)
{
    return !cbor_null(in) && cbor_bool(in);
}

static void read_attributes(struct cbor *in, struct fs_attributes *attributes)
{
    struct cbor_level map = cbor_enter_map(in);
    while (cbor_more(in, &map)) {
        struct cbor_string key = cbor_text(in);
        if (cbor_null(in))
            continue;
        if (cbor_equal(key, "mode")) {
            attributes->mode = read_u32(in);
            attributes->given |= ATTR_MODE;
        } else if (cbor_equal(key, "uid")) {
            attributes->uid = read_u32(in);
            attributes->given |= ATTR_UID;
        } else if (cbor_equal(key, "gid")) {
            attributes->gid = read_u32(in);
            attributes->given |= ATTR_GID;
        } else if (cbor_equal(key, "size")) {
            attributes->size = cbor_uint(in);
            attributes->given |= ATTR_SIZE;
        } else if (cbor_equal(key, "atime")) {
            attributes->atime = cbor_int(in);
            attributes->given |= ATTR_ATIME;
        } else if (cbor_equal(key, "mtime")) {
            attributes->mtime = cbor_int(in);
            attributes->given |= ATTR_MTIME;
        } else {
            cbor_skip(in);
        }
    }
}

static void read_options(struct cbor *in, struct fs_open_options *options)
{
    struct cbor_level map = cbor_enter_map(in);
    while (cbor_more(in, &map)) {
        struct cbor_string key = cbor_text(in);
        if (cbor_equal(key, "read"))
            options->read = optional_bool(in);
        else if (cbor_equal(key, "write"))
            options->write = optional_bool(in);
        else if (cbor_equal(key, "append"))
            options->append = optional_bool(in);
        else if (cbor_equal(key, "create"))
            options->create = optional_bool(in);
        else if (cbor_equal(key, "truncate"))
            options->truncate = optional_bool(in);
        else if (cbor_equal(key, "create_new"))
            options->create_new = optional_bool(in);
        else if (cbor_equal(key, "mode"))
            options->mode = cbor_null(in) ? DEFAULT_MODE : read_u32(in);
        else
            cbor_skip(in);
    }
}

static void read_fields(struct cbor *in, struct fs_request *request, struct strings *strings)
{
    unsigned found = 0;
    struct cbor_level map = cbor_enter_map(in);
    while (cbor_more(in, &map)) {
        struct cbor_string key = cbor_text(in);
        if (cbor_equal(key, "path") || cbor_equal(key, "src") || cbor_equal(key, "target")) {
            request->path = strings_add(strings, cbor_text(in));
            found |= NEED_PATH;
        } else if (cbor_equal(key, "dst") || cbor_equal(key, "link_path")) {
            request->other = strings_add(strings, cbor_text(in));
            found |= NEED_OTHER;
        } else if (cbor_equal(key, "handle")) {
            request->handle = cbor_uint(in);
            found |= NEED_HANDLE;
        } else if (cbor_null(in)) {
            continue;
        } else if (cbor_equal(key, "follow_symlink")) {
            request->follow = cbor_bool(in);
        } else if (cbor_equal(key, "recursive")) {
            request->recursive = cbor_bool(in);
        } else if (cbor_equal(key, "mode")) {
            request->mode = read_u32(in);
            request->has_mode = true;
        } else if (cbor_equal(key, "offset")) {
            request->offset = cbor_uint(in);
        } else if (cbor_equal(key, "len")) {
            request->length = cbor_uint(in);
            request->has_length = true;
        } else if (cbor_equal(key, "limit")) {
            request->limit = cbor_uint(in);
        } else if (cbor_equal(key, "attrs")) {
            read_attributes(in, &request->attributes);
        } else if (cbor_equal(key, "options")) {
            read_options(in, &request->options);
        } else {
            cbor_skip(in);
        }
    }
    unsigned missing = operations[request->operation].needs & ~found;
    if (in->bad != NULL || missing == 0)
        return;
    if (missing & NEED_PATH)
        cbor_fail(in, "missing field `path`");
    else
        cbor_fail(in, missing & NEED_OTHER ? "missing field `dst`" : "missing field `handle`");
}

/* {"Name": {fields}} */
static void read_operation(struct cbor *in, struct fs_request *request, struct strings *strings)
{
    struct cbor_level map = cbor_enter_map(in);
    if (!cbor_more(in, &map)) {
        cbor_fail(in, "expected an operation");
        return;
    }
    struct cbor_string name = cbor_text(in);
    unsigned operation = 0;
    while (operation < FS_OPERATIONS && !cbor_equal(name, operations[operation].name))
        operation++;
    if (operation == FS_OPERATIONS) {
        cbor_fail(in, "unknown operation");
        return;
    }
    request->operation = operation;
    read_fields(in, request, strings);
    if (cbor_more(in, &map))
        cbor_fail(in, "expected one operation");
}

const char *fs_request_decode(struct cbor *in, struct fs_request *request)
{
    struct strings strings;
    bool found = false;

    *request = (struct fs_request){.follow = true, .limit = DEFAULT_BATCH, .options.mode = DEFAULT_MODE};
    if (!strings_init(&strings, in))
        return "out of memory";
    request->strings = strings.block;
    struct cbor_level map = cbor_enter_map(in);
    while (cbor_more(in, &map)) {
        if (cbor_equal(cbor_text(in), "op") && !found) {
            read_operation(in, request, &strings);
            found = true;
        } else {
            cbor_skip(in);
        }
    }
    if (in->bad == NULL && !found)
        cbor_fail(in, "missing field `op`");
    request->has_nul = strings.has_nul;
    return in->bad;
}

void fs_request_free(struct fs_request *request)
{
    free(request->strings);
    request->strings = NULL;
}
