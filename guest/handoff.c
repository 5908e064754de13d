/*
 * Handing PID 1 over to a program of the image (systemd, say), when everything is mounted and named.
 *
 *     agent, PID 1 ──fork──► agent, a process among others: session, cgroup, loop of its own; says ready
 *         └──exec──► init
 *
 * An init may think that it owns every other process. The agent is in a cgroup beside its own, which systemd
 * neither empties nor limits; a name that begins with @ has it spared when systemd ends everything at the end
 * (systemd.io/ROOT_STORAGE_DAEMONS); signals that ask it to end wait for ever.
 */
#include "handoff.h"

#include "boot.h"
#include "exec_env.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define CGROUPS "/sys/fs/cgroup"
#define AGENT_CGROUP CGROUPS "/microsandbox"
#define LOG "/run/microsandbox/agentd.log"

/* As systemd has it: SIGRTMIN + 4, counted from where glibc begins. musl begins one later. */
enum { POWER_OFF_SIGNAL = 34 + 4 };

struct streams {
    int null, log;
};

/* Why the program does not run. */
struct failure {
    int error; /* 0: it does */
    int limit; /* the index of one that cannot be applied, -1: the program cannot be executed */
};

extern char **environ;

static const char *find_init(struct agent *agent, const char *wanted)
{
    static const char *const usual[] = {"/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"};
    if (strcmp(wanted, "auto") != 0)
        return wanted;
    for (unsigned i = 0; i < sizeof usual / sizeof *usual; i++)
        if (access(usual[i], F_OK) == 0)
            return usual[i];
    boot_fail(agent, "config", 0, "auto: no init binary found, checked: %s, %s, %s", usual[0], usual[1],
              usual[2]);
}

static void check_init(struct agent *agent, const char *path)
{
    struct stat info;
    if (stat(path, &info) < 0)
        boot_fail(agent, "config", errno, "handoff init binary not found at %s", path);
    if (!S_ISREG(info.st_mode))
        boot_fail(agent, "config", 0, "handoff init path is not a regular file: %s", path);
    if ((info.st_mode & 0111) == 0)
        boot_fail(agent, "config", 0, "handoff init binary is not executable: %s", path);
}

/* What an init mounts itself unless it finds it, and would so cover up what lies below: our log. */
static void prepare_run(struct agent *agent)
{
    struct stat root, run;
    char log[] = LOG;
    *strrchr(log, '/') = '\0';
    if (stat("/", &root) < 0 || stat("/run", &run) < 0)
        boot_fail(agent, "mount", errno, "/run cannot be used");
    if (root.st_dev == run.st_dev) {
        if (mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=20%") < 0)
            boot_fail(agent, "mount", errno, "a tmpfs cannot be mounted on /run");
        if (mkdir("/run/lock", 0755) == 0 && chmod("/run/lock", 01777) < 0)
            boot_fail(agent, "mount", errno, "/run/lock cannot be made");
    }
    if (!make_path(log))
        boot_fail(agent, "mount", errno, "the directory %s cannot be made", log);
}

/* This process and what it forks from now on. Without cgroups it stays where the init finds it. */
static void enter_cgroup(const char *processes)
{
    int fd = open(processes, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "0", 1) < 0)
        console("%s cannot be written: %s", processes, os_error(errno).text);
    if (fd >= 0)
        close(fd);
}

static struct failure apply_limits(const struct agent *agent)
{
    for (unsigned i = 0; i < agent->limit_count; i++)
        if (limit_apply(&agent->limits[i]) < 0)
            return (struct failure){errno, (int)i};
    return (struct failure){0, -1};
}

/* If the program cannot be executed this process does nothing more: the agent says why and powers off. */
static _Noreturn void become_init(struct agent *agent, char *const *argv, char *const *env, int report)
{
    sigset_t none;
    sigemptyset(&none);
    enter_cgroup(CGROUPS "/cgroup.procs");
    struct failure failure = apply_limits(agent);
    scheduling_normal();
    sigprocmask(SIG_SETMASK, &none, NULL); /* the agent has no handlers */
    if (failure.error == 0) {
        execve(argv[0], argv, env);
        failure.error = errno;
    }
    if (write(report, &failure, sizeof failure) < 0)
        close(report);
    for (;;)
        pause();
}

/* Returns when the program runs, which closes the report. */
static void await_init(struct agent *agent, const char *path, int report)
{
    struct failure failure;
    ssize_t length = read(report, &failure, sizeof failure);
    if (length == 0) {
        close(report);
        return;
    }
    if (length > 0 && failure.limit >= 0)
        limit_fail(agent, &agent->limits[failure.limit], failure.error);
    boot_fail(agent, "config", length < 0 ? errno : failure.error, "handoff init %s cannot be executed", path);
}

static void go_on_as_child(struct agent *agent)
{
    agent->handed_off = true;
    setsid();
    loop_close(agent);
    loop_open(agent);
    oom_protect();
    prctl(PR_SET_NAME, "agentd");
    snprintf(agent->name, strlen(agent->name) + 1, "@msb");
}

/* Opened before the init runs, which may mount something over it. The console becomes the init's. */
static void open_streams(struct agent *agent, struct streams *streams)
{
    streams->null = open("/dev/null", O_RDWR | O_CLOEXEC);
    streams->log = open(LOG, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0640);
    if (streams->null < 0 || streams->log < 0)
        boot_fail(agent, "mount", errno, "the log %s cannot be opened", LOG);
}

static void redirect(const struct streams *streams)
{
    dup2(streams->null, 0);
    dup2(streams->null, 1);
    dup2(streams->log, 2);
    close(streams->null);
    close(streams->log);
}

void hand_off(struct agent *agent, const struct boot_init *init)
{
    static char home[] = "HOME=/";
    char **argv = init->argv.items, *path;
    int report[2];
    struct streams streams;

    argv[0] = (char *)find_init(agent, argv[0]);
    check_init(agent, argv[0]);
    struct list env = exec_environment(environ, home, init->env.items, &path);
    if (env.failed)
        boot_fail(agent, "config", E2BIG, "the init has too many environment variables");
    prepare_run(agent);
    open_streams(agent, &streams);
    if (mkdir(AGENT_CGROUP, 0755) < 0 && errno != EEXIST)
        console("%s cannot be made: %s", AGENT_CGROUP, os_error(errno).text);
    enter_cgroup(AGENT_CGROUP "/cgroup.procs");
    pid_t pid = pipe2(report, O_CLOEXEC) < 0 ? -1 : fork();
    if (pid < 0)
        boot_fail(agent, "other", errno, "the agent cannot make way for an init");
    if (pid > 0)
        become_init(agent, argv, env.items, report[1]);
    close(report[1]);
    go_on_as_child(agent);
    await_init(agent, argv[0], report[0]);
    redirect(&streams);
}

static unsigned long long signal_set(const char *status, const char *name)
{
    const char *line = strstr(status, name);
    return line == NULL ? 0 : strtoull(line + strlen(name), NULL, 16);
}

/*
 * Whether the init handles a signal, or has it blocked, to read it from a signalfd as systemd does. One that
 * waits for it by sigwaitinfo(2), as busybox does, does not show that.
 */
static bool init_heeds(int number)
{
    char text[4096];
    int fd = open("/proc/1/status", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (length < 0)
        return true; /* for all that is known */
    text[length] = '\0';
    unsigned long long heeded = signal_set(text, "\nSigBlk:") | signal_set(text, "\nSigCgt:");
    return heeded >> (number - 1) & 1;
}

/* Its answer is the end of the machine, and with it of this process. */
static void ask_init(struct agent *agent, int number, uint64_t patience_ms)
{
    if (kill(1, number) == 0)
        linger(agent, patience_ms);
}

void stop_init(struct agent *agent)
{
    sync(); /* an init that just ends has the kernel panic */
    if (init_heeds(POWER_OFF_SIGNAL))
        ask_init(agent, POWER_OFF_SIGNAL, 5000);
    ask_init(agent, SIGTERM, 1500);
}
