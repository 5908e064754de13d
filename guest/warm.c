/*
 * Before a template of an image is taken, a command of the image runs for the traces it leaves: its shell and
 * libraries in the page cache, and free objects in the kernel's. Every sandbox's first command finds them.
 */
#include "boot.h"

#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATIENCE_MS = 5000 };

static void wait_for(pid_t pid)
{
    struct pollfd end = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
    poll(&end, 1, PATIENCE_MS);
    close(end.fd);
}

/* Nothing of the image may go on running in every sandbox. */
static void end_all(void)
{
    kill(-1, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        continue;
}

void warm_up(struct agent *agent)
{
    static char *const argv[] = {"/bin/sh", "-c", ":", NULL};
    static char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    struct account root;
    char error[MAX_NAME + 64];
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct spawn spawn = {
        .argv = argv,
        .env = env,
        .cwd = "/",
        .stdio = {null, null, null},
        .base_limits = agent->limits,
    };
    account_find(NULL, &root, error, sizeof error);
    pid_t pid = null < 0 ? -1 : spawn_command(&spawn);
    if (pid > 0)
        wait_for(pid);
    end_all();
    close(null);
}
