/* NUL-terminated copies of the strings of one payload, and lists of them. */
#ifndef STRLIST_H
#define STRLIST_H

#include "cbor.h"

/* One block holds them all: a string and its NUL take no more than the string and its head did. */
struct strings {
    char *block;
    size_t used, size;
    bool has_nul; /* a string contained a NUL and is cut there */
};

/* Room for all strings of what `payload` has left. False: no memory. */
bool strings_init(struct strings *, const struct cbor *payload);
/* Never NULL while the strings come from that payload. */
char *strings_add(struct strings *, struct cbor_string);

/* A list of pointers that ends with NULL. */
struct list {
    char **items;
    size_t count, capacity;
    bool failed; /* no memory, or more than `limit` items */
};

void list_add(struct list *, char *, size_t limit);

#endif
