/* Decoding of core.exec.request; pure, so that it can be fuzzed. */
#include "exec_request.h"

#include "strlist.h"

#include <stdlib.h>
#include <string.h>

static char *optional_text(struct cbor *in, struct strings *strings)
{
    return cbor_null(in) ? NULL : strings_add(strings, cbor_text(in));
}

static void read_list(struct cbor *in, struct strings *strings, struct list *list, size_t limit)
{
    if (cbor_null(in))
        return;
    struct cbor_level array = cbor_enter_array(in);
    while (cbor_more(in, &array))
        list_add(list, strings_add(strings, cbor_text(in)), limit);
}

static uint16_t read_size(struct cbor *in)
{
    uint64_t value = cbor_uint(in);
    if (value > UINT16_MAX)
        cbor_fail(in, "a window has at most 65535 rows and columns");
    return (uint16_t)value;
}

static void read_field(struct cbor *in, struct cbor_string key, struct exec_request *request,
                       struct strings *strings, struct list *argv, struct list *env)
{
    if (cbor_equal(key, "cmd"))
        argv->items[0] = strings_add(strings, cbor_text(in));
    else if (cbor_equal(key, "args"))
        read_list(in, strings, argv, MAX_ARGUMENTS);
    else if (cbor_equal(key, "env"))
        read_list(in, strings, env, MAX_ENVIRONMENT);
    else if (cbor_equal(key, "cwd"))
        request->cwd = optional_text(in, strings);
    else if (cbor_equal(key, "user"))
        request->user = optional_text(in, strings);
    else if (cbor_equal(key, "tty"))
        request->tty = !cbor_null(in) && cbor_bool(in);
    else if (cbor_equal(key, "rows"))
        request->rows = cbor_null(in) ? request->rows : read_size(in);
    else if (cbor_equal(key, "cols"))
        request->cols = cbor_null(in) ? request->cols : read_size(in);
    else if (cbor_equal(key, "rlimits"))
        request->limit_count = limits_decode(in, request->limits);
    else
        cbor_skip(in);
}

const char *exec_request_decode(struct cbor *in, struct exec_request *request)
{
    struct strings strings;
    struct list argv = {NULL, 0, 0, false}, env = {NULL, 0, 0, false};

    *request = (struct exec_request){.rows = 24, .cols = 80};
    if (!strings_init(&strings, in))
        return "out of memory";
    request->strings = strings.block;
    list_add(&argv, NULL, MAX_ARGUMENTS);
    if (!argv.failed) {
        struct cbor_level map = cbor_enter_map(in);
        while (cbor_more(in, &map)) {
            struct cbor_string key = cbor_text(in);
            read_field(in, key, request, &strings, &argv, &env);
        }
    }
    request->argv = argv.items;
    request->env = env.items;
    if (in->bad == NULL && (argv.items == NULL || argv.items[0] == NULL))
        cbor_fail(in, "missing field `cmd`");
    if (strings.has_nul)
        request->refusal = "nul byte found in provided data";
    else if (argv.failed || env.failed)
        request->refusal = "too many arguments or environment variables";
    return in->bad;
}

void exec_request_free(struct exec_request *request)
{
    free(request->strings);
    free(request->argv);
    free(request->env);
    *request = (struct exec_request){.rows = 0};
}
