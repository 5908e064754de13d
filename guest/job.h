/* A child of the agent that does something long or blocking, and reports through a pipe. */
#ifndef JOB_H
#define JOB_H

#include "agent.h"

struct job {
    struct session *session; /* whose `child` it is */
    struct watch pipe;
};

/*
 * Returns 1 in the child, whose descriptor of the pipe is `*report`: it is an ordinary process with nothing
 * else open and must end with _exit(). Returns 0 in the agent, -1 and errno when there is no child.
 */
int job_fork(struct agent *, struct job *, struct session *, int *report);
/* What the child has written: its size, 0 at the end, -1 and errno (EAGAIN: not yet). */
ssize_t job_read(struct job *, void *, size_t);
/* Kills the child if it still runs. */
void job_close(struct agent *, struct job *);

#endif
