/*
 * agentd: the first process of the guest, unless the image has an init. It makes the machine a sandbox, then
 * serves the host's requests over one virtio-serial port until it is told to stop.
 *
 * One thread, one loop, no waiting anywhere but in epoll_wait() as long as there is a host: see serve().
 */
#include "agent.h"

#include "boot.h"
#include "dispatch.h"
#include "exec.h"
#include "handoff.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    EVENTS = 64,
    FRAMES_A_TURN = 64,
    TERMINATION_MS = 50, /* in which commands may finish after SIGTERM */
    MAX_URGENT_NS = 5000000,
    MIN_QUEUE_LIMIT = 8 << 20,
    MAX_QUEUE_LIMIT = 64 << 20,
};

struct os_error os_error(int number)
{
    struct os_error error;
    snprintf(error.text, sizeof error.text, "%s (os error %d)", strerror(number), number);
    return error;
}

void console(const char *format, ...)
{
    char line[600] = "agentd: ";
    size_t start = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line + start, sizeof line - start - 1, format, arguments);
    va_end(arguments);
    size_t end = start + (length < 0 ? 0 : (size_t)length);
    if (end > sizeof line - 2)
        end = sizeof line - 2;
    line[end++] = '\n';
    if (write(2, line, end) < 0)
        return; /* nobody is there to be told */
}

void set_urgent(struct agent *agent, bool urgent)
{
    if (agent->urgent == urgent)
        return;
    agent->urgent = urgent;
    if (urgent)
        scheduling_urgent();
    else
        scheduling_normal();
}

/* Every child that has ended, also those that others have left behind. */
static void reap(struct agent *agent)
{
    struct signalfd_siginfo ignored[8];
    int status;
    pid_t pid;
    if (!agent->children.readable)
        return;
    agent->children.readable = false;
    while (read(agent->children.fd, ignored, sizeof ignored) > 0)
        continue;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        sessions_reaped(agent, pid, status);
}

/* What the host has sent, as long as answers have room. */
static void receive(struct agent *agent)
{
    struct wire *wire = &agent->wire;
    struct frame frame;
    for (unsigned i = 0; i < FRAMES_A_TURN && wire_has_room(wire);) {
        if (wire_next(wire, &frame)) {
            dispatch(agent, &frame);
            i++;
        } else if (!wire->readable || !wire_receive(wire)) {
            break;
        }
    }
    if (wire->lost)
        console("a frame of the host has an impossible length");
}

static bool has_work(const struct agent *agent)
{
    return wire_has_room(&agent->wire) && (wire_has_input(&agent->wire) || sessions_runnable(agent));
}

static void wait_for_events(struct agent *agent, int timeout_ms)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(agent->epoll, events, EVENTS, timeout_ms);
    for (int i = 0; i < count; i++) {
        struct watch *watch = events[i].data.ptr;
        if (watch->fd < 0)
            continue;
        watch->readable |= (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0;
        watch->writable |= (events[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
        if (watch->owner != NULL)
            session_wake(agent, watch->owner);
    }
    agent->wire.readable |= agent->port.readable;
    agent->wire.writable |= agent->port.writable;
    agent->port.readable = agent->port.writable = false;
}

static void turn(struct agent *agent)
{
    reap(agent);
    receive(agent);
    sessions_run(agent);
    wire_flush(&agent->wire);
    sessions_bury(agent);
}

/* Waits if there is nothing to do; an agent that never waits gives way to others. */
static void rest(struct agent *agent, int timeout_ms)
{
    if (!has_work(agent)) {
        set_urgent(agent, true);
        agent->busy_since_ns = 0;
        wait_for_events(agent, timeout_ms);
        return;
    }
    uint64_t now = now_ns();
    if (agent->busy_since_ns == 0)
        agent->busy_since_ns = now;
    else if (now - agent->busy_since_ns > MAX_URGENT_NS)
        set_urgent(agent, false);
    wait_for_events(agent, 0);
}

static bool is_connected(const struct agent *agent)
{
    return !agent->wire.closed && !agent->wire.lost;
}

static void serve(struct agent *agent)
{
    while (!agent->stopping && is_connected(agent)) {
        rest(agent, sessions_timeout_ms(agent));
        turn(agent);
    }
}

/* One turn, which waits no longer than to `end_ns`. False: it has passed. */
static bool serve_until(struct agent *agent, uint64_t end_ns)
{
    uint64_t now = now_ns();
    if (now >= end_ns)
        return false;
    int left_ms = (int)((end_ns - now) / 1000000 + 1), timeout_ms = sessions_timeout_ms(agent);
    rest(agent, timeout_ms >= 0 && timeout_ms < left_ms ? timeout_ms : left_ms);
    turn(agent);
    return true;
}

void linger(struct agent *agent, uint64_t duration_ms)
{
    uint64_t end = now_ns() + duration_ms * 1000000;
    while (is_connected(agent) && serve_until(agent, end))
        continue;
    for (uint64_t now; (now = now_ns()) < end;)
        poll(NULL, 0, (int)((end - now) / 1000000 + 1));
}

/* Commands are told, and have a moment; what they still say is sent. */
static void stop(struct agent *agent)
{
    uint64_t end = now_ns() + TERMINATION_MS * 1000000ull;
    exec_terminate_all(agent);
    while (exec_count(agent) > 0 && is_connected(agent) && serve_until(agent, end))
        continue;
    if (agent->handed_off)
        stop_init(agent);
    power_off(agent);
}

static void prepare_signals(struct agent *agent)
{
    sigset_t children;
    for (int number = 1; number < _NSIG; number++)
        signal(number, SIG_DFL); /* what commands inherit */
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigset_t blocked = children;
    if (agent->handed_off) { /* an init that ends everything ends the machine: until then there is work */
        sigaddset(&blocked, SIGTERM);
        sigaddset(&blocked, SIGINT);
        sigaddset(&blocked, SIGHUP);
    }
    sigprocmask(SIG_SETMASK, &blocked, NULL);
    int fd = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0 || !watch_open(agent, &agent->children, fd, NULL, true))
        boot_fail(agent, "other", errno, "the ends of processes cannot be watched");
}

void loop_open(struct agent *agent)
{
    struct sysinfo memory;
    agent->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (agent->epoll < 0)
        boot_fail(agent, "other", errno, "epoll cannot be used");
    agent->queue_limit = MIN_QUEUE_LIMIT;
    if (sysinfo(&memory) == 0) {
        uint64_t share = (uint64_t)memory.totalram * memory.mem_unit / 8;
        if (share > agent->queue_limit)
            agent->queue_limit = share < MAX_QUEUE_LIMIT ? (size_t)share : MAX_QUEUE_LIMIT;
    }
    prepare_signals(agent);
    set_urgent(agent, true);
}

void loop_close(struct agent *agent)
{
    close(agent->children.fd);
    close(agent->epoll);
}

/* From here on the port does not block. */
static void watch_port(struct agent *agent)
{
    int fd = agent->wire.fd;
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || !watch_open(agent, &agent->port, fd, NULL, true))
        boot_fail(agent, "other", errno, "the agent port cannot be watched");
}

int main(int argc, char **argv)
{
    static struct agent agent = {.wire.fd = -1, .upper = -1};
    static char none[] = "";
    agent.name = argc > 0 ? argv[0] : none;
    agent.started_ns = now_ns();
    boot_start(&agent);
    loop_open(&agent);
    boot_finish(&agent);
    watch_port(&agent);
    serve(&agent);
    stop(&agent);
}
