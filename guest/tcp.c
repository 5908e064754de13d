/*
 * TCP streams from inside the guest.
 *
 *     RESOLVING ──addresses──► CONNECTING ──► OPEN
 *
 * Names are looked up by a child, since that blocks; addresses are tried one after the other, all of it
 * within one deadline. An open stream ends when both directions have.
 */
#include "tcp.h"

#include "job.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SHARE = 64 << 10, MAX_ADDRESSES = 8, MAX_HOST = 256 };

static const uint64_t CONNECT_LIMIT_NS = 30000000000;

enum tcp_state { RESOLVING, CONNECTING, OPEN };

/* What the child that looks up a name reports; small enough to be written at once. */
struct addresses {
    int error; /* of getaddrinfo() */
    int error_number;
    unsigned count;
    struct sockaddr_in6 list[MAX_ADDRESSES]; /* or sockaddr_in, which is smaller */
};

struct tcp {
    struct session session;
    enum tcp_state state;
    struct job job;
    struct addresses addresses;
    unsigned next_address;
    int error;            /* of the last attempt */
    struct watch socket;  /* connecting, then reading */
    struct outlet outlet; /* writing, by a descriptor of its own */
    bool host_ended, guest_ended;
    uint16_t port;
    char host[MAX_HOST];
};

static void fail(struct agent *agent, uint32_t id, const char *text)
{
    struct cbor_out put = wire_begin(&agent->wire, id, MSG_TCP_FAILED);
    cbor_put_map(&put, 1);
    cbor_put_text(&put, "error");
    cbor_put_text(&put, text);
    wire_end(&agent->wire, &put);
}

static void end_with(struct agent *agent, struct tcp *tcp, const char *operation, int error)
{
    char text[MAX_HOST + 128];
    snprintf(text, sizeof text, "%s TCP stream: %s", operation, os_error(error).text);
    fail(agent, tcp->session.id, text);
    session_end(agent, &tcp->session);
}

static void fail_connect(struct agent *agent, struct tcp *tcp, const char *reason)
{
    char text[MAX_HOST + 256];
    snprintf(text, sizeof text, "connect %s:%u%s", tcp->host, tcp->port, reason);
    fail(agent, tcp->session.id, text);
    session_end(agent, &tcp->session);
}

/* Runs in the child. */
static _Noreturn void look_up(const struct tcp *tcp, int report)
{
    struct addresses found = {.count = 0};
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    char port[8];
    snprintf(port, sizeof port, "%u", tcp->port);
    found.error = getaddrinfo(tcp->host, port, &hints, &list);
    found.error_number = errno;
    for (struct addrinfo *entry = list; entry != NULL && found.count < MAX_ADDRESSES; entry = entry->ai_next)
        if (entry->ai_addrlen <= sizeof *found.list)
            memcpy(&found.list[found.count++], entry->ai_addr, entry->ai_addrlen);
    _exit(write(report, &found, sizeof found) == sizeof found ? 0 : 1);
}

/* Starts the next attempt; false when there is no address left. */
static bool try_next(struct agent *agent, struct tcp *tcp)
{
    while (tcp->next_address < tcp->addresses.count) {
        const struct sockaddr_in6 *address = &tcp->addresses.list[tcp->next_address++];
        bool six = address->sin6_family == AF_INET6;
        socklen_t size = six ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
        watch_close(agent, &tcp->socket);
        int fd = socket(address->sin6_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) {
            tcp->error = errno;
            continue;
        }
        if (connect(fd, (const struct sockaddr *)address, size) < 0 && errno != EINPROGRESS) {
            tcp->error = errno;
            close(fd);
        } else if (!watch_open(agent, &tcp->socket, fd, &tcp->session, false)) {
            tcp->error = ENOMEM;
            watch_close(agent, &tcp->socket);
        } else {
            tcp->state = CONNECTING;
            return true;
        }
    }
    return false;
}

static void connect_next(struct agent *agent, struct tcp *tcp)
{
    char reason[128];
    if (try_next(agent, tcp))
        return;
    snprintf(reason, sizeof reason, ": %s", os_error(tcp->error).text);
    fail_connect(agent, tcp, reason);
}

static void run_resolving(struct agent *agent, struct tcp *tcp)
{
    char reason[192] = ": the process that looks up its name was killed";
    struct addresses *found = &tcp->addresses;
    if (!tcp->job.pipe.readable)
        return;
    ssize_t count = job_read(&tcp->job, found, sizeof *found);
    if (count < 0 && errno == EAGAIN)
        return;
    job_close(agent, &tcp->job);
    if (count == sizeof *found && found->error == 0 && found->count <= MAX_ADDRESSES) {
        tcp->error = EADDRNOTAVAIL;
        connect_next(agent, tcp);
        return;
    }
    if (count == sizeof *found)
        snprintf(reason, sizeof reason, ": failed to lookup address information: %s",
                 found->error == EAI_SYSTEM ? strerror(found->error_number) : gai_strerror(found->error));
    fail_connect(agent, tcp, reason);
}

static void run_connecting(struct agent *agent, struct tcp *tcp)
{
    int error = 0, one = 1;
    socklen_t size = sizeof error;
    if (!tcp->socket.writable && !tcp->socket.readable)
        return;
    if (getsockopt(tcp->socket.fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
        error = errno;
    if (error != 0) {
        tcp->error = error;
        connect_next(agent, tcp);
        return;
    }
    setsockopt(tcp->socket.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int writer = fcntl(tcp->socket.fd, F_DUPFD_CLOEXEC, 3);
    if (writer < 0 || !watch_open(agent, &tcp->outlet.watch, writer, &tcp->session, true)) {
        char reason[128];
        snprintf(reason, sizeof reason, ": %s", os_error(writer < 0 ? errno : ENOMEM).text);
        fail_connect(agent, tcp, reason);
        return;
    }
    session_set_deadline(agent, &tcp->session, 0);
    tcp->state = OPEN;
    tcp->socket.readable = true;
    wire_send_empty(&agent->wire, tcp->session.id, MSG_TCP_CONNECTED);
    session_wake(agent, &tcp->session);
}

static void end_if_done(struct agent *agent, struct tcp *tcp)
{
    if (!tcp->guest_ended || !tcp->host_ended || tcp->outlet.watch.fd >= 0)
        return;
    wire_send_empty(&agent->wire, tcp->session.id, MSG_TCP_CLOSED);
    session_end(agent, &tcp->session);
}

/* After something was written, or the host has ended its direction. */
static void settle_output(struct agent *agent, struct tcp *tcp, int error)
{
    if (error != 0) {
        end_with(agent, tcp, "write", error);
        return;
    }
    if (!tcp->host_ended || tcp->outlet.watch.fd < 0 || !outlet_empty(&tcp->outlet))
        return;
    if (shutdown(tcp->outlet.watch.fd, SHUT_WR) < 0 && errno != ENOTCONN) {
        end_with(agent, tcp, "shutdown", errno);
        return;
    }
    outlet_close(agent, &tcp->outlet);
    end_if_done(agent, tcp);
}

static void forward(struct agent *agent, struct tcp *tcp)
{
    uint8_t *data = wire_begin_data(&agent->wire, tcp->session.id, MSG_TCP_DATA, SHARE);
    if (data == NULL)
        return;
    ssize_t count = read(tcp->socket.fd, data, SHARE);
    if (count > 0) {
        wire_end_data(&agent->wire, (size_t)count);
        session_wake(agent, &tcp->session);
    } else if (count == 0) {
        tcp->guest_ended = true;
        wire_send_empty(&agent->wire, tcp->session.id, MSG_TCP_EOF);
        end_if_done(agent, tcp);
    } else if (errno == EAGAIN) {
        tcp->socket.readable = false;
    } else if (errno == EINTR) {
        session_wake(agent, &tcp->session);
    } else {
        end_with(agent, tcp, "read", errno);
    }
}

static void run(struct agent *agent, struct session *session)
{
    struct tcp *tcp = (struct tcp *)session;
    if (session->deadline_ns != 0 && now_ns() >= session->deadline_ns) {
        fail_connect(agent, tcp, " timed out");
        return;
    }
    if (tcp->state == RESOLVING) {
        run_resolving(agent, tcp);
    } else if (tcp->state == CONNECTING) {
        run_connecting(agent, tcp);
    } else {
        if (!outlet_empty(&tcp->outlet))
            settle_output(agent, tcp, outlet_drain(agent, &tcp->outlet));
        if (!session->ended && !session->paused && !tcp->guest_ended && tcp->socket.readable)
            forward(agent, tcp);
    }
}

static void send_data(struct agent *agent, struct tcp *tcp, struct cbor_string data)
{
    if (tcp->state != OPEN || tcp->host_ended) {
        fail(agent, tcp->session.id, "TCP session is closed");
        session_end(agent, &tcp->session);
    } else if (data.length > 0) {
        settle_output(agent, tcp, outlet_put(agent, &tcp->outlet, data.data, data.length));
    }
}

static const char *message(struct agent *agent, struct session *session, enum message kind,
                           struct cbor *payload)
{
    struct tcp *tcp = (struct tcp *)session;
    struct cbor_string data = {NULL, 0};
    struct cbor_level map = {0, false};
    if (!cbor_null(payload))
        map = cbor_enter_map(payload);
    while (cbor_more(payload, &map)) {
        if (cbor_equal(cbor_text(payload), "data") && kind == MSG_TCP_DATA)
            data = cbor_bytes(payload);
        else
            cbor_skip(payload);
    }
    if (payload->bad != NULL)
        return payload->bad;
    if (kind == MSG_TCP_DATA) {
        send_data(agent, tcp, data);
    } else if (kind == MSG_TCP_EOF && tcp->state == OPEN) {
        tcp->host_ended = true;
        settle_output(agent, tcp, 0);
    } else if (kind == MSG_TCP_CLOSE) {
        session_end(agent, session);
    }
    return NULL;
}

static void release(struct agent *agent, struct session *session)
{
    struct tcp *tcp = (struct tcp *)session;
    job_close(agent, &tcp->job);
    outlet_close(agent, &tcp->outlet);
    watch_close(agent, &tcp->socket);
}

static const struct session_kind tcp_kind = {message, run, release};

/* An address in figures needs no look-up. */
static bool parse_address(struct tcp *tcp)
{
    struct sockaddr_in6 *six = &tcp->addresses.list[0];
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(tcp->port)};
    tcp->addresses.count = 1;
    if (inet_pton(AF_INET6, tcp->host, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons(tcp->port);
    } else if (inet_pton(AF_INET, tcp->host, &four.sin_addr) == 1) {
        memcpy(six, &four, sizeof four);
    } else {
        tcp->addresses.count = 0;
    }
    return tcp->addresses.count == 1;
}

static void open_stream(struct agent *agent, uint32_t id, struct cbor_string host, uint64_t port)
{
    char text[128];
    int report;
    struct tcp *tcp = session_start(agent, id, &tcp_kind, sizeof *tcp);
    if (tcp == NULL) {
        snprintf(text, sizeof text, "too many sessions: %s", os_error(errno).text);
        fail(agent, id, text);
        return;
    }
    tcp->job.pipe.fd = tcp->socket.fd = tcp->outlet.watch.fd = -1;
    tcp->port = (uint16_t)port;
    memcpy(tcp->host, host.data, host.length);
    session_set_deadline(agent, &tcp->session, now_ns() + CONNECT_LIMIT_NS);
    if (parse_address(tcp)) {
        connect_next(agent, tcp);
        return;
    }
    int forked = job_fork(agent, &tcp->job, &tcp->session, &report);
    if (forked > 0)
        look_up(tcp, report);
    if (forked < 0) {
        snprintf(text, sizeof text, ": %s", os_error(errno).text);
        fail_connect(agent, tcp, text);
    }
}

const char *tcp_start(struct agent *agent, uint32_t id, struct cbor *payload)
{
    struct cbor_string host = {NULL, 0};
    uint64_t port = 0;
    struct cbor_level map = cbor_enter_map(payload);
    while (cbor_more(payload, &map)) {
        struct cbor_string key = cbor_text(payload);
        if (cbor_equal(key, "host"))
            host = cbor_text(payload);
        else if (cbor_equal(key, "port"))
            port = cbor_uint(payload);
        else
            cbor_skip(payload);
    }
    if (payload->bad == NULL && host.length == 0)
        cbor_fail(payload, "missing field `host`");
    if (payload->bad == NULL && (port == 0 || port > UINT16_MAX))
        cbor_fail(payload, "a port is a number from 1 to 65535");
    if (payload->bad != NULL)
        return payload->bad;
    if (host.length >= MAX_HOST || memchr(host.data, '\0', host.length) != NULL)
        fail(agent, id, "connect: the host name is too long or contains a NUL byte");
    else
        open_stream(agent, id, host, port);
    return NULL;
}

void tcp_refuse(struct agent *agent, uint32_t id, enum message kind)
{
    char text[64];
    if (kind == MSG_TCP_CLOSE)
        return;
    snprintf(text, sizeof text, "unknown TCP session: %u", id);
    fail(agent, id, text);
}
