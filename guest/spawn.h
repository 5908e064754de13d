/* Starting one command. */
#ifndef SPAWN_H
#define SPAWN_H

#include "account.h"
#include "limits.h"

enum spawn_stage {
    SPAWN_CLONE,
    SPAWN_SESSION,
    SPAWN_TERMINAL,
    SPAWN_STDIO,
    SPAWN_CWD,
    SPAWN_PROFILE,
    SPAWN_LIMITS,
    SPAWN_GROUPS,
    SPAWN_USER,
    SPAWN_EXEC,
};

struct spawn {
    char *const *argv, *const *env;
    const char *cwd;
    int stdio[3];
    bool terminal;                 /* stdio[0] becomes the controlling terminal */
    bool restricted;               /* the security profile */
    bool oom_protected;            /* this process is, the command is not to be */
    const struct account *account; /* NULL: stay root */
    const struct limit *base_limits, *limits;
    unsigned base_limit_count, limit_count;
    /* Set by the child while this process waits for it. */
    volatile enum spawn_stage stage;
    volatile int error;
};

/* The new process, leader of its own session and group; -1, with `stage` and `error` set, if there is none. */
pid_t spawn_command(struct spawn *);

/* Of this process: a real-time priority, or none. spawn_command() is to be called with one. */
void scheduling_urgent(void);
void scheduling_normal(void);

/* Of this process: it is never chosen when memory runs out, as only PID 1 is by itself; or as any other. */
void oom_protect(void);
void oom_unprotect(void);

#endif
