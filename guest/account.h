/* Whose command it is: users and groups as the image's /etc/passwd and /etc/group name them. */
#ifndef ACCOUNT_H
#define ACCOUNT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { MAX_GROUPS = 1024, MAX_NAME = 256, MAX_HOME = 4096 };

struct account {
    uid_t uid;
    gid_t gid;
    char home[MAX_HOME]; /* "/" when none is known */
    gid_t groups[MAX_GROUPS];
    size_t group_count;
};

struct text {
    const char *data;
    size_t length;
};

/*
 * What "user", "uid", "user:group" or "uid:gid" means with these files. On failure `error` says why, in the
 * words of the protocol.
 */
bool account_parse(const char *spec, struct text passwd, struct text group, struct account *, char *error,
                   size_t size);

/* The same with the files of the image. NULL: root. */
bool account_find(const char *spec, struct account *, char *error, size_t size);

#endif
