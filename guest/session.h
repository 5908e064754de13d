/*
 * Sessions: what a correlation id stands for between its SESSION_START and its TERMINAL frame.
 *
 * Descriptors are watched edge-triggered: an event only marks the watch and puts its session in the run
 * queue. Each session in the queue gets a turn, in which it moves a bounded share of data, so no session
 * waits for more than one share of each other one.
 */
#ifndef SESSION_H
#define SESSION_H

#include "message.h"

#include <sys/types.h>

struct agent;
struct session;

struct session_kind {
    /* A message for the session. Returns NULL, or why its payload cannot be read. */
    const char *(*message)(struct agent *, struct session *, enum message, struct cbor *);
    /* One turn. May end the session. */
    void (*run)(struct agent *, struct session *);
    /* Let go of everything but the memory of the session itself; sends nothing. */
    void (*release)(struct agent *, struct session *);
};

struct session {
    uint32_t id;
    const struct session_kind *kind;
    struct session *next_in_bucket, *next_to_run, *next_dead;
    uint64_t deadline_ns; /* the session is run then; 0: none */
    pid_t child;          /* its process; 0 when there is none, or it was waited for */
    int status;           /* of that process, from waitpid() */
    bool paused;          /* the host wants no output of it for now */
    bool queued;
    bool ended;
};

struct watch {
    int fd;
    struct session *owner;
    bool readable, writable;
    bool added; /* to epoll; regular files cannot be, and are always ready */
};

/* A new session of `size` zeroed bytes; NULL when there are too many, errno says EAGAIN or ENOMEM. */
void *session_start(struct agent *, uint32_t id, const struct session_kind *, size_t size);
struct session *session_find(struct agent *, uint32_t id);
struct session *session_next(struct agent *,
                             struct session *); /* all of them, in no order; NULL: the first */
void session_wake(struct agent *, struct session *);
void session_end(struct agent *, struct session *);
void session_set_deadline(struct agent *, struct session *, uint64_t when_ns);
bool sessions_runnable(const struct agent *);
void sessions_run(struct agent *);  /* turns, while the output has room */
void sessions_bury(struct agent *); /* free those that have ended */
int sessions_timeout_ms(struct agent *);
void sessions_reaped(struct agent *, pid_t child, int status);
void sessions_end_client(struct agent *, uint32_t first_id, uint32_t end_id);

/* `ready`: try it before any event says so. */
bool watch_open(struct agent *, struct watch *, int fd, struct session *owner, bool ready);
void watch_close(struct agent *, struct watch *);

/* Bytes on their way into a pipe, a socket or a file: a bounded queue that never blocks. */
struct outlet {
    struct watch watch;
    uint8_t *data;
    size_t head, tail, capacity;
    bool asked_pause; /* of the host */
    bool at_offset;   /* a file: written at `offset`, which moves on */
    off_t offset;
    uint64_t written;
};

/* Both return 0 or an error number; after an error the outlet takes nothing more. ENOBUFS: too much. */
int outlet_put(struct agent *, struct outlet *, const uint8_t *, size_t);
int outlet_drain(struct agent *, struct outlet *);
bool outlet_empty(const struct outlet *);
void outlet_close(struct agent *, struct outlet *);

#endif
