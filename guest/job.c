/* Children that do what would hold up the agent: see job.h. */
#include "job.h"

#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Closing all but one matters: a copy of a command's standard input would keep its end from being seen. */
static void become_ordinary(const struct agent *agent, int report)
{
    if (agent->handed_off)
        oom_unprotect();
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    scheduling_normal();
    setsid();
    if (report > 3)
        syscall(SYS_close_range, 3u, (unsigned)report - 1, 0u);
    syscall(SYS_close_range, (unsigned)report + 1, ~0u, 0u);
}

int job_fork(struct agent *agent, struct job *job, struct session *session, int *report)
{
    int ends[2];
    job->session = session;
    job->pipe.fd = -1;
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        become_ordinary(agent, ends[1]);
        *report = ends[1];
        return 1;
    }
    int error = errno;
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        errno = error;
        return -1;
    }
    session->child = pid;
    if (watch_open(agent, &job->pipe, ends[0], session, true))
        return 0;
    job_close(agent, job);
    errno = ENOMEM;
    return -1;
}

ssize_t job_read(struct job *job, void *data, size_t size)
{
    ssize_t count = read(job->pipe.fd, data, size);
    if (count < 0 && errno == EAGAIN)
        job->pipe.readable = false;
    return count;
}

void job_close(struct agent *agent, struct job *job)
{
    if (job->session != NULL && job->session->child > 0)
        kill(job->session->child, SIGKILL);
    watch_close(agent, &job->pipe);
}
