/*
 * Starting one command.
 *
 * The child shares the agent's memory until it executes the program (CLONE_VM and CLONE_VFORK): no page
 * tables are copied, which under emulation is most of the cost of a fork, and the child reports what failed
 * by writing it where the waiting parent looks. In return it may make only raw system calls, on a stack of
 * its own.
 *
 * The agent has a real-time priority (see set_urgent()). The child keeps one just below it until the program
 * is loaded: the agent waits for it, and a normal process would wait behind a fork bomb. Then the agent takes
 * it away; what the program forks meanwhile has none (RESET_ON_FORK).
 */
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SCHED_RESET_ON_FORK
#define SCHED_RESET_ON_FORK 0x40000000
#endif

enum { STACK = 64 << 10, AGENT_PRIORITY = 2, CHILD_PRIORITY = 1, MAX_PATH = 4096 };

static int set_scheduler(pid_t pid, int policy, int priority)
{
    struct {
        int priority;
    } parameters = {priority};
    return (int)syscall(SYS_sched_setscheduler, pid, policy, &parameters);
}

void scheduling_urgent(void)
{
    set_scheduler(0, SCHED_RR, AGENT_PRIORITY);
}

void scheduling_normal(void)
{
    set_scheduler(0, SCHED_OTHER, 0);
}

static void set_oom_score(const char *score)
{
    int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return;
    syscall(SYS_write, fd, score, strlen(score));
    syscall(SYS_close, fd);
}

void oom_protect(void)
{
    set_oom_score("-1000");
}

void oom_unprotect(void)
{
    set_oom_score("0");
}

static bool set_stdio(const struct spawn *spawn)
{
    /* Descriptors of the agent are 3 and above, so none is overwritten before it was duplicated. */
    for (int target = 0; target < 3; target++)
        if (syscall(SYS_dup3, spawn->stdio[target], target, 0) < 0)
            return false;
    return true;
}

/* From the sets of this process. Returns whether it is in none of them; `held`: it was in one. */
static bool drop_admin(bool *held)
{
    const uint32_t admin = 1u << CAP_SYS_ADMIN;
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];

    if (syscall(SYS_capget, &header, data) < 0)
        return false;
    *held = ((data[0].effective | data[0].permitted | data[0].inheritable) & admin) != 0;
    data[0].effective &= ~admin;
    data[0].permitted &= ~admin;
    data[0].inheritable &= ~admin;
    return !*held || syscall(SYS_capset, &header, data) == 0;
}

/* No new privileges, and no CAP_SYS_ADMIN in any set. */
static bool restrict_privileges(void)
{
    bool held = false;

    if (syscall(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return false;
    if (syscall(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
        return false;
    return drop_admin(&held) && (syscall(SYS_prctl, PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) == 0 ||
                                 errno == EINVAL || (errno == EPERM && !held));
}

static bool apply_limits(const struct limit *limits, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (limit_apply(&limits[i]) < 0)
            return false;
    return true;
}

static bool switch_user(struct spawn *spawn)
{
    const struct account *account = spawn->account;
    if (account == NULL)
        return true;
    spawn->stage = SPAWN_GROUPS;
    if (syscall(SYS_setgroups, account->group_count, account->groups) < 0 ||
        syscall(SYS_setgid, account->gid) < 0)
        return false;
    spawn->stage = SPAWN_USER;
    return syscall(SYS_setuid, account->uid) == 0;
}

static const char *search_path(char *const *env)
{
    for (; env != NULL && *env != NULL; env++)
        if (strncmp(*env, "PATH=", 5) == 0)
            return *env + 5;
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

/* As execvpe(), but a file that is no program is an error and not a shell script. Returns the error. */
static int execute(char *const *argv, char *const *env)
{
    const char *name = argv[0];
    size_t length = strlen(name);
    int error = ENOENT;
    char file[MAX_PATH];

    if (length == 0)
        return ENOENT;
    if (length >= sizeof file)
        return ENAMETOOLONG;
    if (strchr(name, '/') != NULL) {
        syscall(SYS_execve, name, argv, env);
        return errno;
    }
    for (const char *path = search_path(env);; path++) {
        size_t size = strcspn(path, ":");
        if (size + length + 2 <= sizeof file) {
            memcpy(file, path, size);
            file[size] = '/';
            memcpy(file + size + (size > 0), name, length + 1);
            syscall(SYS_execve, file, argv, env);
            if (errno == EACCES)
                error = EACCES;
            else if (errno != ENOENT && errno != ENOTDIR)
                return errno;
        }
        path += size;
        if (*path == '\0')
            return error;
    }
}

static int child(void *argument)
{
    struct spawn *spawn = argument;
    uint64_t no_signals = 0;

    spawn->stage = SPAWN_SESSION;
    if (syscall(SYS_setsid) < 0)
        goto failed;
    spawn->stage = SPAWN_TERMINAL;
    if (spawn->terminal && syscall(SYS_ioctl, spawn->stdio[0], TIOCSCTTY, 0) < 0)
        goto failed;
    spawn->stage = SPAWN_STDIO;
    if (!set_stdio(spawn))
        goto failed;
    spawn->stage = SPAWN_CWD;
    if (spawn->cwd != NULL && syscall(SYS_chdir, spawn->cwd) < 0)
        goto failed;
    if (spawn->oom_protected)
        oom_unprotect();
    spawn->stage = SPAWN_PROFILE;
    if (spawn->restricted && !restrict_privileges())
        goto failed;
    spawn->stage = SPAWN_LIMITS;
    if (!apply_limits(spawn->base_limits, spawn->base_limit_count) ||
        !apply_limits(spawn->limits, spawn->limit_count))
        goto failed;
    set_scheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, CHILD_PRIORITY);
    if (!switch_user(spawn))
        goto failed;
    spawn->stage = SPAWN_EXEC;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &no_signals, NULL, sizeof no_signals);
    spawn->error = execute(spawn->argv, spawn->env);
    syscall(SYS_exit, 127);
failed:
    spawn->error = errno;
    syscall(SYS_exit, 127);
    return 127;
}

pid_t spawn_command(struct spawn *spawn)
{
    _Alignas(16) uint8_t stack[STACK]; /* free again when the child is gone or runs its program */
    spawn->stage = SPAWN_CLONE;
    spawn->error = 0;
    pid_t pid = clone(child, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, spawn);
    if (pid < 0) {
        spawn->error = errno;
        return -1;
    }
    if (spawn->error != 0)
        return -1; /* the loop reaps what is left of it */
    set_scheduler(pid, SCHED_OTHER, 0);
    return pid;
}
