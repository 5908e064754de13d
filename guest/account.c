/*
 * Users and groups of the image.
 *
 * Parsed by hand: a static program cannot load name service modules, the files are the guest's and may be
 * anything (a FIFO, gigabytes, binary), and they change while the sandbox runs, so they are read each time.
 */
#include "account.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FILE = 1 << 20, PASSWD_FIELDS = 7, GROUP_FIELDS = 4 };

static struct text slice(const char *data, size_t length)
{
    return (struct text){data, length};
}

static bool equal(struct text a, struct text b)
{
    return a.length == b.length && memcmp(a.data, b.data, a.length) == 0;
}

static struct text trim(struct text text)
{
    while (text.length > 0 && strchr(" \t\r\n", text.data[0]) != NULL && text.data[0] != '\0')
        text = slice(text.data + 1, text.length - 1);
    while (text.length > 0 && strchr(" \t\r\n", text.data[text.length - 1]) != NULL &&
           text.data[text.length - 1] != '\0')
        text.length--;
    return text;
}

static bool parse_id(struct text text, uint32_t *id)
{
    uint64_t value = 0;
    if (text.length == 0 || text.length > 10)
        return false;
    for (size_t i = 0; i < text.length; i++) {
        if (text.data[i] < '0' || text.data[i] > '9')
            return false;
        value = value * 10 + (uint64_t)(text.data[i] - '0');
    }
    *id = (uint32_t)value;
    return value <= UINT32_MAX;
}

/* Cuts the next line off `rest`; false at the end. */
static bool next_line(struct text *rest, struct text *line)
{
    if (rest->length == 0)
        return false;
    const char *end = memchr(rest->data, '\n', rest->length);
    line->data = rest->data;
    line->length = end != NULL ? (size_t)(end - rest->data) : rest->length;
    size_t taken = line->length + (end != NULL);
    *rest = slice(rest->data + taken, rest->length - taken);
    return true;
}

/* Splits at colons; the last field keeps what is left. Returns how many fields there are. */
static unsigned split(struct text line, struct text *fields, unsigned count)
{
    unsigned found = 0;
    while (found < count) {
        const char *colon = found + 1 < count ? memchr(line.data, ':', line.length) : NULL;
        size_t length = colon != NULL ? (size_t)(colon - line.data) : line.length;
        fields[found++] = slice(line.data, length);
        if (colon == NULL)
            break;
        line = slice(colon + 1, line.length - length - 1);
    }
    return found;
}

struct user {
    struct text name, home;
    uid_t uid;
    gid_t gid;
};

/* The first entry with that name or, when `name` is NULL, that uid. */
static bool find_user(struct text passwd, const struct text *name, uid_t uid, struct user *user)
{
    struct text line, fields[PASSWD_FIELDS];
    while (next_line(&passwd, &line)) {
        if (split(line, fields, PASSWD_FIELDS) < PASSWD_FIELDS - 1)
            continue;
        *user = (struct user){.name = fields[0], .home = fields[5]};
        if (!parse_id(fields[2], &user->uid) || !parse_id(fields[3], &user->gid))
            continue;
        if (name != NULL ? equal(fields[0], *name) : user->uid == uid)
            return true;
    }
    return false;
}

static bool find_group(struct text group, struct text name, gid_t *gid)
{
    struct text line, fields[GROUP_FIELDS];
    while (next_line(&group, &line))
        if (split(line, fields, GROUP_FIELDS) >= GROUP_FIELDS - 1 && equal(fields[0], name) &&
            parse_id(fields[2], gid))
            return true;
    return false;
}

static bool is_member(struct text members, struct text name)
{
    while (members.length > 0) {
        const char *comma = memchr(members.data, ',', members.length);
        size_t length = comma != NULL ? (size_t)(comma - members.data) : members.length;
        if (equal(trim(slice(members.data, length)), name))
            return true;
        length += comma != NULL;
        members = slice(members.data + length, members.length - length);
    }
    return false;
}

/* What initgroups() would set. A user in more groups than fit is in fewer, never in others. */
static void add_groups(struct text group, struct text name, struct account *account)
{
    struct text line, fields[GROUP_FIELDS];
    account->groups[account->group_count++] = account->gid;
    while (account->group_count < MAX_GROUPS && next_line(&group, &line)) {
        gid_t gid;
        if (split(line, fields, GROUP_FIELDS) == GROUP_FIELDS && parse_id(fields[2], &gid) &&
            gid != account->gid && is_member(fields[3], name))
            account->groups[account->group_count++] = gid;
    }
}

static void set_home(struct account *account, struct text home)
{
    if (home.length == 0 || home.length >= sizeof account->home ||
        memchr(home.data, '\0', home.length) != NULL)
        home = slice("/", 1);
    memcpy(account->home, home.data, home.length);
    account->home[home.length] = '\0';
}

bool account_parse(const char *spec, struct text passwd, struct text group, struct account *account,
                   char *error, size_t size)
{
    struct text all = trim(slice(spec, strlen(spec))), name = all, group_name = {NULL, 0};
    const char *colon = memchr(all.data, ':', all.length);
    struct user user;
    uint32_t id = 0;

    if (colon != NULL) {
        name = trim(slice(all.data, (size_t)(colon - all.data)));
        group_name = trim(slice(colon + 1, all.length - (size_t)(colon - all.data) - 1));
    }
    account->group_count = 0;
    if (name.length == 0) {
        snprintf(error, size, "user spec has empty user");
        return false;
    }
    if (colon != NULL && group_name.length == 0) {
        snprintf(error, size, "user spec has empty group");
        return false;
    }
    bool numeric = parse_id(name, &id);
    bool known = find_user(passwd, numeric ? NULL : &name, id, &user);
    if (!known && !numeric) {
        snprintf(error, size, "guest user not found: %.*s",
                 (int)(name.length < MAX_NAME ? name.length : MAX_NAME), name.data);
        return false;
    }
    account->uid = known ? user.uid : id;
    account->gid = known ? user.gid : 0;
    set_home(account, known ? user.home : slice("/", 1));
    if (colon != NULL && !parse_id(group_name, &account->gid) &&
        !find_group(group, group_name, &account->gid)) {
        snprintf(error, size, "guest group not found: %.*s",
                 (int)(group_name.length < MAX_NAME ? group_name.length : MAX_NAME), group_name.data);
        return false;
    }
    if (known)
        add_groups(group, user.name, account);
    return true;
}

/* The start of a regular file, up to MAX_FILE bytes; nothing when it cannot be read. Free `data`. */
static struct text read_file(const char *path)
{
    struct text text = {NULL, 0};
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return text;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
        size_t size = info.st_size < MAX_FILE ? (size_t)info.st_size : MAX_FILE;
        char *data = malloc(size);
        ssize_t count = data != NULL ? pread(fd, data, size, 0) : -1;
        text = slice(data, count > 0 ? (size_t)count : 0);
    }
    close(fd);
    return text;
}

bool account_find(const char *spec, struct account *account, char *error, size_t size)
{
    struct text passwd = read_file("/etc/passwd"), group = {NULL, 0};
    if (spec != NULL)
        group = read_file("/etc/group");
    bool found = account_parse(spec != NULL ? spec : "0", passwd, group, account, error, size);
    free((void *)(uintptr_t)passwd.data);
    free((void *)(uintptr_t)group.data);
    return found;
}
