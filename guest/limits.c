/* Resource limits: names, decoding, applying. */
#include "limits.h"

#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct {
    const char *name;
    int resource;
} resources[] = {
    {"cpu", RLIMIT_CPU},           {"fsize", RLIMIT_FSIZE},
    {"data", RLIMIT_DATA},         {"stack", RLIMIT_STACK},
    {"core", RLIMIT_CORE},         {"rss", RLIMIT_RSS},
    {"nproc", RLIMIT_NPROC},       {"nofile", RLIMIT_NOFILE},
    {"memlock", RLIMIT_MEMLOCK},   {"as", RLIMIT_AS},
    {"locks", RLIMIT_LOCKS},       {"sigpending", RLIMIT_SIGPENDING},
    {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE},
    {"rtprio", RLIMIT_RTPRIO},     {"rttime", RLIMIT_RTTIME},
};

enum { RESOURCES = sizeof resources / sizeof *resources };

static int find_resource(struct cbor_string name)
{
    for (unsigned i = 0; i < RESOURCES; i++)
        if (name.length == strlen(resources[i].name) &&
            strncasecmp((const char *)name.data, resources[i].name, name.length) == 0)
            return resources[i].resource;
    return -1;
}

const char *limit_name(int resource)
{
    for (unsigned i = 0; i < RESOURCES; i++)
        if (resources[i].resource == resource)
            return resources[i].name;
    return "?";
}

static struct limit decode_one(struct cbor *in)
{
    struct limit limit = {.resource = -1};
    bool has_hard = false;
    struct cbor_level map = cbor_enter_map(in);
    while (cbor_more(in, &map)) {
        struct cbor_string key = cbor_text(in);
        if (cbor_equal(key, "resource")) {
            limit.resource = find_resource(cbor_text(in));
        } else if (cbor_equal(key, "soft")) {
            limit.soft = cbor_uint(in);
        } else if (cbor_equal(key, "hard")) {
            has_hard = !cbor_null(in);
            limit.hard = has_hard ? cbor_uint(in) : 0;
        } else {
            cbor_skip(in);
        }
    }
    if (!has_hard)
        limit.hard = limit.soft;
    return limit;
}

unsigned limits_decode(struct cbor *in, struct limit limits[MAX_LIMITS])
{
    unsigned count = 0;
    if (cbor_null(in))
        return 0;
    struct cbor_level array = cbor_enter_array(in);
    while (cbor_more(in, &array)) {
        struct limit limit = decode_one(in);
        bool seen = limit.resource < 0;
        for (unsigned i = 0; i < count; i++)
            seen = seen || limits[i].resource == limit.resource;
        if (!seen && count < MAX_LIMITS)
            limits[count++] = limit;
    }
    return in->bad == NULL ? count : 0;
}

int limit_apply(const struct limit *limit)
{
    struct {
        uint64_t soft, hard;
    } kernel = {limit->soft, limit->hard};
    return (int)syscall(SYS_prlimit64, 0, limit->resource, &kernel, NULL);
}
