/* The agent: everything it knows while it runs. */
#ifndef AGENT_H
#define AGENT_H

#include "account.h"
#include "limits.h"
#include "session.h"
#include "wire.h"

#include <stdarg.h>
#include <time.h>

enum {
    MAX_SESSIONS = 1024,
    MAX_HANDLES = 8192,        /* open file handles of all clients */
    MAX_CLIENT_HANDLES = 1024, /* and of one */
    CLIENT_STEP = 33554431,    /* correlation ids of one relay client */
    MAX_CLIENTS = 128,
    SESSION_BUCKETS = 256,
};

struct handle;

struct agent {
    struct wire wire;
    struct watch port;
    struct watch children; /* a signalfd: SIGCHLD */
    int epoll;
    char *name; /* argv[0], as others see it */
    bool stopping;
    bool handed_off;        /* PID 1 is an init of the image */
    bool urgent;            /* the agent has a real-time priority */
    uint64_t busy_since_ns; /* without a pause; 0: it has just waited */

    struct session *sessions[SESSION_BUCKETS];
    struct session *run_first, *run_last; /* those that have something to do */
    struct session *dead;                 /* to be freed at the end of the turn */
    unsigned session_count;
    unsigned deadline_count;

    struct handle *handles[MAX_HANDLES];
    unsigned handle_count;
    uint64_t last_handle;

    size_t queued, queue_limit; /* bytes waiting for commands and connections, all together */

    /* What core.boot.config said. */
    char **env; /* of every command, ends with NULL */
    char *user; /* of commands that ask for none, NULL for root */
    struct limit limits[MAX_LIMITS];
    unsigned limit_count;
    bool restricted;
    bool rooted; /* ahead of the configuration: the image is mounted, placeholders stand for the names */
    uint64_t tmp_mib; /* the same: size of the tmpfs on /tmp, 0 when there is none */
    int uevents; /* the kernel's reports of devices, while booting */
    int upper;   /* the file system of the writable layer, -1 before it is mounted */

    uint64_t started_ns, configured_ns; /* since the kernel started */
};

/* What tells of events: closed and opened again when the process is another. */
void loop_open(struct agent *);
void loop_close(struct agent *);

/* Lets time pass. The host, if there still is one, is served meanwhile. */
void linger(struct agent *, uint64_t duration_ms);

uint64_t now_ns(void); /* since the kernel started, suspended time included */

/* "<text of the error> (os error N)" */
struct os_error {
    char text[96];
};
struct os_error os_error(int number);

/*
 * The agent has a real-time priority, so that it answers whatever load there is, a fork bomb included; but
 * not while it moves data without a pause: then the guest's other processes have as much of the processor.
 */
void set_urgent(struct agent *, bool urgent);

void console(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
