/* core.exec.request: what is to be run, and how. */
#ifndef EXEC_REQUEST_H
#define EXEC_REQUEST_H

#include "limits.h"

enum { MAX_ARGUMENTS = 65536, MAX_ENVIRONMENT = 4096 };

struct exec_request {
    char **argv;      /* the command and its arguments, ends with NULL */
    char **env;       /* "K=V", ends with NULL */
    char *cwd, *user; /* NULL: not given */
    bool tty;
    uint16_t rows, cols;
    struct limit limits[MAX_LIMITS];
    unsigned limit_count;
    const char *refusal; /* why it is understood, but can't be run; NULL: it can */
    char *strings;       /* owns all strings */
};

/* Returns NULL, or why it cannot be read. exec_request_free() in either case. */
const char *exec_request_decode(struct cbor *payload, struct exec_request *);
void exec_request_free(struct exec_request *);

#endif
