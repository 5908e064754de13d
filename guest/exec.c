/*
 * Commands: core.exec.*
 *
 * Each command leads its own session and process group. SIGKILL, and the loss of the client that started
 * it, reach the group; other signals the command alone. It has ended when it was waited for and nobody
 * holds its output any more.
 */
#include "exec.h"

#include "exec_env.h"
#include "exec_failure.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { SHARE = 32 << 10, MAX_MESSAGE = 512 };

struct exec {
    struct session session;
    pid_t group;
    bool terminal;
    bool input_ends; /* close it when its queue is empty */
    bool finished;   /* in the ordinary way: what is left of its group may live on */
    struct outlet input;
    struct watch output[2]; /* stdout and stderr; a terminal has one */
};

struct stdio {
    int child[3];
    int agent[3]; /* stdin, stdout, stderr */
};

static void close_all(int *fds)
{
    for (int i = 0; i < 3; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
        fds[i] = -1;
    }
}

static bool open_pipes(struct stdio *stdio)
{
    for (int i = 0; i < 3; i++) {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) < 0)
            return false;
        stdio->child[i] = ends[i == 0 ? 0 : 1];
        stdio->agent[i] = ends[i == 0 ? 1 : 0];
        if (fcntl(stdio->agent[i], F_SETFL, O_NONBLOCK) < 0)
            return false;
    }
    return true;
}

static bool open_terminal(struct stdio *stdio, const struct exec_request *request,
                          const struct account *account)
{
    struct winsize size = {.ws_row = request->rows, .ws_col = request->cols};
    int unlocked = 0;
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0)
        return false;
    stdio->agent[1] = master;
    if (ioctl(master, TIOCSPTLCK, &unlocked) < 0 || ioctl(master, TIOCSWINSZ, &size) < 0)
        return false;
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0)
        return false;
    stdio->child[0] = slave;
    /* So that programs of that user may open their terminal by its name. */
    if (account != NULL && fchown(slave, account->uid, (gid_t)-1) < 0)
        return false;
    for (int i = 1; i < 3; i++)
        if ((stdio->child[i] = fcntl(slave, F_DUPFD_CLOEXEC, 3)) < 0)
            return false;
    return (stdio->agent[0] = fcntl(master, F_DUPFD_CLOEXEC, 3)) >= 0;
}

static const struct session_kind exec_kind;

/* The session takes over the agent's ends. */
static bool adopt(struct agent *agent, struct exec *exec, struct stdio *stdio)
{
    bool watched = watch_open(agent, &exec->input.watch, stdio->agent[0], &exec->session, true);
    for (int i = 0; i < 2; i++)
        if (stdio->agent[1 + i] >= 0)
            watched &= watch_open(agent, &exec->output[i], stdio->agent[1 + i], &exec->session, false);
    for (int i = 0; i < 3; i++)
        stdio->agent[i] = -1;
    return watched;
}

static void start_command(struct agent *agent, uint32_t id, const struct exec_request *request,
                          struct spawn *spawn, struct stdio *stdio)
{
    struct exec *exec = session_start(agent, id, &exec_kind, sizeof *exec);
    if (exec == NULL) {
        const char *detail = errno == EAGAIN ? "too many sessions" : "out of memory";
        exec_spawn_failed(agent, id, request, exec_error_kind(errno), errno, "fork", detail);
        return;
    }
    exec->terminal = request->tty;
    exec->input.watch.fd = exec->output[0].fd = exec->output[1].fd = -1;
    exec->finished = true; /* until there is a process */
    bool watched = adopt(agent, exec, stdio);
    set_urgent(agent, true);
    pid_t pid = watched ? spawn_command(spawn) : -1;
    if (pid < 0) {
        if (!watched)
            exec_spawn_failed(agent, id, request, "resource_limit", ENOMEM, "stdio",
                              "too many descriptors are watched");
        else
            exec_stage_failed(agent, id, request, spawn);
        session_end(agent, &exec->session);
        return;
    }
    exec->session.child = exec->group = pid;
    exec->finished = false;
    struct cbor_out put = wire_begin(&agent->wire, id, MSG_EXEC_STARTED);
    cbor_put_map(&put, 1);
    cbor_put_text(&put, "pid");
    cbor_put_uint(&put, (uint64_t)pid);
    wire_end(&agent->wire, &put);
}

/* What is given to the child: environment, user, descriptors. */
static void prepare(struct agent *agent, uint32_t id, struct exec_request *request)
{
    struct account account;
    char home[MAX_HOME + 8], error[MAX_NAME + 64], message[MAX_MESSAGE];
    const char *user = request->user != NULL ? request->user : agent->user;
    struct stdio stdio = {{-1, -1, -1}, {-1, -1, -1}};
    char *path;

    if (!account_find(user, &account, error, sizeof error)) {
        snprintf(message, sizeof message, "exec session error: %s", error);
        exec_failed(agent, id, "other", 0, NULL, message);
        return;
    }
    snprintf(home, sizeof home, "HOME=%s", account.home);
    struct list env = exec_environment(agent->env, home, request->env, &path);
    if (env.failed) {
        exec_spawn_failed(agent, id, request, "bad_args", E2BIG, NULL, "too many environment variables");
    } else if (!(request->tty ? open_terminal(&stdio, request, user != NULL ? &account : NULL)
                              : open_pipes(&stdio))) {
        struct os_error reason = os_error(errno);
        const char *kind = request->tty ? "pty_setup_failed" : exec_error_kind(errno);
        exec_spawn_failed(agent, id, request, kind, errno, request->tty ? "openpty" : "Command::spawn",
                          reason.text);
    } else {
        struct spawn spawn = {
            .argv = request->argv,
            .env = env.items,
            .cwd = request->cwd != NULL ? request->cwd : "/",
            .stdio = {stdio.child[0], stdio.child[1], stdio.child[2]},
            .terminal = request->tty,
            .restricted = agent->restricted,
            .oom_protected = agent->handed_off,
            .account = user != NULL ? &account : NULL,
            .base_limits = agent->limits,
            .base_limit_count = agent->limit_count,
            .limits = request->limits,
            .limit_count = request->limit_count,
        };
        start_command(agent, id, request, &spawn, &stdio);
    }
    close_all(stdio.child);
    close_all(stdio.agent);
    free(env.items);
    free(path);
}

const char *exec_start(struct agent *agent, uint32_t id, struct cbor *payload)
{
    struct exec_request request;
    const char *bad = exec_request_decode(payload, &request);
    if (bad == NULL && request.refusal != NULL)
        exec_spawn_failed(agent, id, &request, "bad_args", 0, NULL, request.refusal);
    else if (bad == NULL)
        prepare(agent, id, &request);
    exec_request_free(&request);
    return bad;
}

/* Closes the input once it is wanted and everything was written; says why when it breaks. */
static void settle_input(struct agent *agent, struct exec *exec, int error)
{
    if (error != 0)
        exec_input_failed(agent, exec->session.id, error);
    else if (exec->input_ends && outlet_empty(&exec->input))
        outlet_close(agent, &exec->input);
}

static void feed(struct agent *agent, struct exec *exec, struct cbor_string data)
{
    if (exec->input.watch.fd < 0 || exec->input_ends)
        return;
    int error = 0;
    if (data.length > 0)
        error = outlet_put(agent, &exec->input, data.data, data.length);
    else
        exec->input_ends = !exec->terminal;
    settle_input(agent, exec, error);
}

/*
 * Once the leader was waited for its number may belong to another command, but not while that is one of
 * ours: then the group is left alone.
 */
static void kill_group(struct agent *agent, struct exec *exec)
{
    for (struct session *other = session_next(agent, NULL); other != NULL; other = session_next(agent, other))
        if (other != &exec->session && other->child == exec->group)
            return;
    kill(-exec->group, SIGKILL);
}

static void send_signal(struct agent *agent, struct exec *exec, int64_t number)
{
    if (number == SIGKILL)
        kill_group(agent, exec);
    else if (number > 0 && number < _NSIG && exec->session.child > 0)
        kill(exec->session.child, (int)number);
}

static void resize(struct exec *exec, uint64_t rows, uint64_t columns)
{
    struct winsize size = {.ws_row = (uint16_t)rows, .ws_col = (uint16_t)columns};
    if (exec->terminal && exec->output[0].fd >= 0 && rows <= UINT16_MAX && columns <= UINT16_MAX)
        ioctl(exec->output[0].fd, TIOCSWINSZ, &size);
}

static const char *message(struct agent *agent, struct session *session, enum message kind,
                           struct cbor *payload)
{
    struct exec *exec = (struct exec *)session;
    struct cbor_string data = {NULL, 0};
    uint64_t rows = 0, columns = 0;
    int64_t number = 0;
    struct cbor_level map = cbor_enter_map(payload);
    while (cbor_more(payload, &map)) {
        struct cbor_string key = cbor_text(payload);
        if (kind == MSG_EXEC_STDIN && cbor_equal(key, "data"))
            data = cbor_bytes(payload);
        else if (kind == MSG_EXEC_SIGNAL && cbor_equal(key, "signal"))
            number = cbor_int(payload);
        else if (kind == MSG_EXEC_RESIZE && cbor_equal(key, "rows"))
            rows = cbor_uint(payload);
        else if (kind == MSG_EXEC_RESIZE && cbor_equal(key, "cols"))
            columns = cbor_uint(payload);
        else
            cbor_skip(payload);
    }
    if (payload->bad != NULL)
        return payload->bad;
    if (kind == MSG_EXEC_STDIN)
        feed(agent, exec, data);
    else if (kind == MSG_EXEC_SIGNAL)
        send_signal(agent, exec, number);
    else if (kind == MSG_EXEC_RESIZE)
        resize(exec, rows, columns);
    return NULL;
}

/* Sends one share of one stream. Returns whether there may be more at once. */
static bool forward(struct agent *agent, struct exec *exec, int stream)
{
    struct watch *output = &exec->output[stream];
    if (output->fd < 0 || !output->readable)
        return false;
    enum message kind = stream == 0 ? MSG_EXEC_STDOUT : MSG_EXEC_STDERR;
    uint8_t *data = wire_begin_data(&agent->wire, exec->session.id, kind, SHARE);
    if (data == NULL)
        return true;
    ssize_t count = read(output->fd, data, SHARE);
    if (count > 0)
        wire_end_data(&agent->wire, (size_t)count);
    else if (count < 0 && errno == EAGAIN)
        output->readable = false;
    else if (count == 0 || errno != EINTR)
        watch_close(agent, output); /* a terminal ends with EIO */
    return output->readable;
}

static void run(struct agent *agent, struct session *session)
{
    struct exec *exec = (struct exec *)session;
    bool more = false;
    if (!outlet_empty(&exec->input))
        settle_input(agent, exec, outlet_drain(agent, &exec->input));
    for (int stream = 0; stream < 2 && !session->paused; stream++)
        more |= forward(agent, exec, stream);
    if (session->child == 0 && exec->output[0].fd < 0 && exec->output[1].fd < 0) {
        struct cbor_out put = wire_begin(&agent->wire, session->id, MSG_EXEC_EXITED);
        cbor_put_map(&put, 1);
        cbor_put_text(&put, "code");
        cbor_put_int(&put, WIFEXITED(session->status) ? WEXITSTATUS(session->status) : -1);
        wire_end(&agent->wire, &put);
        exec->finished = true;
        session_end(agent, session);
    } else if (more) {
        session_wake(agent, session);
    }
}

static void release(struct agent *agent, struct session *session)
{
    struct exec *exec = (struct exec *)session;
    if (!exec->finished)
        kill_group(agent, exec);
    outlet_close(agent, &exec->input);
    watch_close(agent, &exec->output[0]);
    watch_close(agent, &exec->output[1]);
}

static const struct session_kind exec_kind = {message, run, release};

unsigned exec_terminate_all(struct agent *agent)
{
    unsigned count = 0;
    for (struct session *session = session_next(agent, NULL); session != NULL;
         session = session_next(agent, session))
        if (session->kind == &exec_kind && session->child > 0 && kill(session->child, SIGTERM) == 0)
            count++;
    return count;
}

unsigned exec_count(struct agent *agent)
{
    unsigned count = 0;
    for (struct session *session = session_next(agent, NULL); session != NULL;
         session = session_next(agent, session))
        count += session->kind == &exec_kind && session->child > 0;
    return count;
}
