/* Resource limits by their names on the wire. */
#ifndef LIMITS_H
#define LIMITS_H

#include "cbor.h"

enum { MAX_LIMITS = 16 };

struct limit {
    int resource;
    uint64_t soft, hard;
};

/* Reads an array of {resource, soft, hard}. Unknown names are passed over, as are repeated ones. */
unsigned limits_decode(struct cbor *, struct limit limits[MAX_LIMITS]);
const char *limit_name(int resource);
/* By a raw system call, for a child that shares its parent's memory. Returns 0 or -1 and errno. */
int limit_apply(const struct limit *);

#endif
