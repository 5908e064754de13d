/* The table of sessions, the run queue and the queues towards descriptors: see session.h. */
#include "agent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    /* Bytes waiting in one outlet: the host is asked to pause above the first and to go on below the
     * second. What is on its way by then still arrives; a host that does not listen loses the outlet. */
    QUEUE_HIGH = 256 << 10,
    QUEUE_LOW = 64 << 10,
    QUEUE_LIMIT = 8 << 20,
    QUEUE_STEP = 64 << 10,
};

void *session_start(struct agent *agent, uint32_t id, const struct session_kind *kind, size_t size)
{
    if (agent->session_count >= MAX_SESSIONS) {
        errno = EAGAIN;
        return NULL;
    }
    struct session *session = calloc(1, size);
    if (session == NULL)
        return NULL;
    session->id = id;
    session->kind = kind;
    struct session **bucket = &agent->sessions[id % SESSION_BUCKETS];
    session->next_in_bucket = *bucket;
    *bucket = session;
    agent->session_count++;
    return session;
}

struct session *session_find(struct agent *agent, uint32_t id)
{
    struct session *session = agent->sessions[id % SESSION_BUCKETS];
    while (session != NULL && session->id != id)
        session = session->next_in_bucket;
    return session;
}

struct session *session_next(struct agent *agent, struct session *session)
{
    if (session != NULL && session->next_in_bucket != NULL)
        return session->next_in_bucket;
    for (unsigned i = session == NULL ? 0 : session->id % SESSION_BUCKETS + 1; i < SESSION_BUCKETS; i++)
        if (agent->sessions[i] != NULL)
            return agent->sessions[i];
    return NULL;
}

void session_wake(struct agent *agent, struct session *session)
{
    if (session->queued || session->ended)
        return;
    session->queued = true;
    session->next_to_run = NULL;
    if (agent->run_last != NULL)
        agent->run_last->next_to_run = session;
    else
        agent->run_first = session;
    agent->run_last = session;
}

/* The memory stays until the end of the turn: events that were fetched together may still name it. */
void session_end(struct agent *agent, struct session *session)
{
    if (session->ended)
        return;
    session->ended = true;
    session_set_deadline(agent, session, 0);
    session->kind->release(agent, session);
    struct session **link = &agent->sessions[session->id % SESSION_BUCKETS];
    while (*link != session)
        link = &(*link)->next_in_bucket;
    *link = session->next_in_bucket;
    agent->session_count--;
    session->next_dead = agent->dead;
    agent->dead = session;
}

void session_set_deadline(struct agent *agent, struct session *session, uint64_t when_ns)
{
    agent->deadline_count += (when_ns != 0) - (session->deadline_ns != 0);
    session->deadline_ns = when_ns;
}

bool sessions_runnable(const struct agent *agent)
{
    return agent->run_first != NULL;
}

void sessions_run(struct agent *agent)
{
    /* Those that wake themselves again wait for the next round, so the port gets its turn as well. */
    struct session *last = agent->run_last;
    bool done = last == NULL;
    while (!done && wire_has_room(&agent->wire)) {
        struct session *session = agent->run_first;
        agent->run_first = session->next_to_run;
        if (agent->run_first == NULL)
            agent->run_last = NULL;
        session->queued = false;
        done = session == last;
        if (!session->ended)
            session->kind->run(agent, session);
    }
}

void sessions_bury(struct agent *agent)
{
    struct session **link = &agent->dead;
    while (*link != NULL) {
        struct session *session = *link;
        if (session->queued) { /* the run queue still holds it */
            link = &session->next_dead;
            continue;
        }
        *link = session->next_dead;
        free(session);
    }
}

int sessions_timeout_ms(struct agent *agent)
{
    if (agent->deadline_count == 0)
        return -1;
    uint64_t now = now_ns(), next = UINT64_MAX;
    for (struct session *session = session_next(agent, NULL); session != NULL;
         session = session_next(agent, session)) {
        if (session->deadline_ns == 0)
            continue;
        if (session->deadline_ns <= now)
            session_wake(agent, session);
        if (session->deadline_ns < next)
            next = session->deadline_ns;
    }
    return next <= now ? 0 : (int)((next - now) / 1000000 + 1);
}

void sessions_reaped(struct agent *agent, pid_t child, int status)
{
    for (struct session *session = session_next(agent, NULL); session != NULL;
         session = session_next(agent, session)) {
        if (session->child != child)
            continue;
        session->child = 0;
        session->status = status;
        session_wake(agent, session);
        return;
    }
}

void sessions_end_client(struct agent *agent, uint32_t first_id, uint32_t end_id)
{
    struct session *session = session_next(agent, NULL);
    while (session != NULL) {
        struct session *next = session_next(agent, session);
        if (session->id >= first_id && session->id < end_id)
            session_end(agent, session);
        session = next;
    }
}

bool watch_open(struct agent *agent, struct watch *watch, int fd, struct session *owner, bool ready)
{
    *watch = (struct watch){.fd = fd, .owner = owner, .readable = ready, .writable = ready};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = watch};
    watch->added = epoll_ctl(agent->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
    return watch->added || errno == EPERM;
}

/* Taken out of epoll by name: a child that was just forked may hold the same open file for a moment. */
void watch_close(struct agent *agent, struct watch *watch)
{
    if (watch->fd < 0)
        return;
    if (watch->added)
        epoll_ctl(agent->epoll, EPOLL_CTL_DEL, watch->fd, NULL);
    close(watch->fd);
    *watch = (struct watch){.fd = -1};
}

bool outlet_empty(const struct outlet *outlet)
{
    return outlet->head == outlet->tail;
}

static void forget_queue(struct agent *agent, struct outlet *outlet)
{
    agent->queued -= outlet->tail - outlet->head;
    free(outlet->data);
    outlet->data = NULL;
    outlet->head = outlet->tail = outlet->capacity = 0;
}

static void ask_pause(struct agent *agent, struct outlet *outlet, bool pause)
{
    if (outlet->asked_pause == pause || outlet->watch.owner == NULL)
        return;
    outlet->asked_pause = pause;
    struct cbor_out put = wire_begin(&agent->wire, outlet->watch.owner->id, MSG_FLOW);
    cbor_put_map(&put, 1);
    cbor_put_text(&put, "paused");
    cbor_put_bool(&put, pause);
    wire_end(&agent->wire, &put);
}

void outlet_close(struct agent *agent, struct outlet *outlet)
{
    forget_queue(agent, outlet);
    watch_close(agent, &outlet->watch);
}

/* Writes what goes without waiting. Returns the bytes written, or -1 and errno. */
static ssize_t write_some(struct outlet *outlet, const uint8_t *data, size_t size)
{
    size_t done = 0;
    while (done < size && outlet->watch.writable) {
        ssize_t count = outlet->at_offset ? pwrite(outlet->watch.fd, data + done, size - done, outlet->offset)
                                          : write(outlet->watch.fd, data + done, size - done);
        if (count > 0) {
            done += (size_t)count;
            outlet->offset += count;
            outlet->written += (uint64_t)count;
        } else if (count == 0 || errno == EAGAIN) {
            outlet->watch.writable = false;
        } else if (errno != EINTR) {
            return -1;
        }
    }
    return (ssize_t)done;
}

static int give_up(struct agent *agent, struct outlet *outlet, int error)
{
    ask_pause(agent, outlet, false);
    outlet_close(agent, outlet);
    return error;
}

static int enqueue(struct agent *agent, struct outlet *outlet, const uint8_t *data, size_t size)
{
    size_t waiting = outlet->tail - outlet->head;
    if (waiting + size > QUEUE_LIMIT || agent->queued + size > agent->queue_limit)
        return ENOBUFS;
    if (outlet->capacity - outlet->tail < size) {
        if (outlet->head > 0)
            memmove(outlet->data, outlet->data + outlet->head, waiting);
        outlet->head = 0;
        outlet->tail = waiting;
    }
    if (outlet->capacity - outlet->tail < size) {
        size_t capacity = outlet->capacity;
        while (capacity - waiting < size)
            capacity = capacity == 0 ? QUEUE_STEP : 2 * capacity;
        uint8_t *grown = realloc(outlet->data, capacity);
        if (grown == NULL)
            return ENOMEM;
        outlet->data = grown;
        outlet->capacity = capacity;
    }
    memcpy(outlet->data + outlet->tail, data, size);
    outlet->tail += size;
    agent->queued += size;
    return 0;
}

int outlet_put(struct agent *agent, struct outlet *outlet, const uint8_t *data, size_t size)
{
    ssize_t done = 0;
    if (outlet->watch.fd < 0)
        return EBADF;
    if (outlet_empty(outlet))
        done = write_some(outlet, data, size);
    if (done < 0)
        return give_up(agent, outlet, errno);
    if ((size_t)done == size)
        return 0;
    int error = enqueue(agent, outlet, data + done, size - (size_t)done);
    if (error != 0)
        return give_up(agent, outlet, error);
    size_t waiting = outlet->tail - outlet->head;
    if (waiting > QUEUE_HIGH || agent->queued > agent->queue_limit / 4)
        ask_pause(agent, outlet, true);
    return 0;
}

int outlet_drain(struct agent *agent, struct outlet *outlet)
{
    if (outlet->watch.fd < 0 || outlet_empty(outlet))
        return 0;
    ssize_t done = write_some(outlet, outlet->data + outlet->head, outlet->tail - outlet->head);
    if (done < 0)
        return give_up(agent, outlet, errno);
    outlet->head += (size_t)done;
    agent->queued -= (size_t)done;
    if (outlet_empty(outlet))
        forget_queue(agent, outlet);
    if (outlet->tail - outlet->head <= QUEUE_LOW)
        ask_pause(agent, outlet, false);
    return 0;
}
