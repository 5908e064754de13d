/*
 * Messages of the host, after core.ready: checked, and handed to whom they concern.
 *
 * A message that makes no sense is answered with core.error and ends its session; it never ends the agent.
 */
#include "dispatch.h"

#include "boot.h"
#include "exec.h"
#include "fs.h"
#include "tcp.h"

#include <stdio.h>

static void refuse(struct agent *agent, uint32_t id, const char *kind, struct cbor_string type,
                   const char *text)
{
    struct session *session = session_find(agent, id);
    if (session != NULL)
        session_end(agent, session);
    struct cbor_out put = wire_begin(&agent->wire, id, MSG_ERROR);
    cbor_put_map(&put, type.data != NULL ? 3 : 2);
    cbor_put_text(&put, "kind");
    cbor_put_text(&put, kind);
    cbor_put_text(&put, "message");
    cbor_put_text(&put, text);
    if (type.data != NULL) {
        cbor_put_text(&put, "offending_type");
        cbor_put_text_n(&put, type.data, type.length < 64 ? type.length : 64);
    }
    wire_end(&agent->wire, &put);
}

static const char *client_gone(struct agent *agent, struct cbor *payload)
{
    uint64_t start = 0, end = 0;
    struct cbor_level map = cbor_enter_map(payload);
    while (cbor_more(payload, &map)) {
        struct cbor_string key = cbor_text(payload);
        if (cbor_equal(key, "id_start"))
            start = cbor_uint(payload);
        else if (cbor_equal(key, "id_end_exclusive"))
            end = cbor_uint(payload);
        else
            cbor_skip(payload);
    }
    if (payload->bad == NULL && (start > UINT32_MAX || end > UINT32_MAX || start > end))
        cbor_fail(payload, "not a range of ids");
    if (payload->bad == NULL) {
        sessions_end_client(agent, (uint32_t)start, (uint32_t)end);
        fs_close_client(agent, (uint32_t)start / CLIENT_STEP);
    }
    return payload->bad;
}

static const char *synchronise_clock(struct cbor *payload)
{
    uint64_t time = 0;
    struct cbor_level map = cbor_enter_map(payload);
    while (cbor_more(payload, &map)) {
        if (cbor_equal(cbor_text(payload), "unix_time_nanos"))
            time = cbor_uint(payload);
        else
            cbor_skip(payload);
    }
    if (payload->bad == NULL && time > 0)
        correct_clock(time);
    return payload->bad;
}

static const char *set_flow(struct agent *agent, struct session *session, struct cbor *payload)
{
    bool paused = false;
    struct cbor_level map = cbor_enter_map(payload);
    while (cbor_more(payload, &map)) {
        if (cbor_equal(cbor_text(payload), "paused"))
            paused = cbor_bool(payload);
        else
            cbor_skip(payload);
    }
    if (payload->bad == NULL && session != NULL) {
        session->paused = paused;
        if (!paused)
            session_wake(agent, session);
    }
    return payload->bad;
}

static const char *start(struct agent *agent, uint32_t id, enum message kind, struct cbor *payload)
{
    if (kind == MSG_EXEC_REQUEST)
        return exec_start(agent, id, payload);
    if (kind == MSG_FS_REQUEST)
        return fs_start(agent, id, payload);
    return tcp_start(agent, id, payload);
}

/* A message for a session that is not there: commands may just have ended, streams are told. */
static void miss(struct agent *agent, uint32_t id, enum message kind)
{
    if (kind == MSG_FS_DATA)
        fs_refuse_data(agent, id);
    else if (kind == MSG_TCP_DATA || kind == MSG_TCP_EOF)
        tcp_refuse(agent, id, kind);
}

static const char *handle(struct agent *agent, uint32_t id, enum message kind, struct cbor *payload)
{
    struct session *session = session_find(agent, id);
    switch (kind) {
    case MSG_SHUTDOWN:
        agent->stopping = true;
        return NULL;
    case MSG_CLIENT_DISCONNECTED:
        return client_gone(agent, payload);
    case MSG_CLOCK_SYNC:
        return synchronise_clock(payload);
    case MSG_PING:
        wire_send_empty(&agent->wire, 0, MSG_PONG);
        return NULL;
    case MSG_FLOW:
        return set_flow(agent, session, payload);
    case MSG_INIT_ACK:
    case MSG_BOOT_CONFIG:
        return NULL;
    default:
        if (session != NULL)
            return session->kind->message(agent, session, kind, payload);
        miss(agent, id, kind);
        return NULL;
    }
}

void dispatch(struct agent *agent, const struct frame *frame)
{
    const struct cbor_string no_type = {NULL, 0};
    char text[256];
    struct envelope envelope;
    const char *bad = envelope_decode(frame->body, frame->length, &envelope);
    if (bad != NULL) {
        refuse(agent, frame->id, "malformed_message", no_type, bad);
        return;
    }
    const char *name = (const char *)envelope.type.data;
    int length = envelope.type.length < 64 ? (int)envelope.type.length : 64;
    enum message kind = message_find(envelope.type);
    if (kind == MESSAGE_COUNT) {
        snprintf(text, sizeof text, "unsupported message type %.*s", length, name);
        refuse(agent, frame->id, "unsupported_message_type", envelope.type, text);
        return;
    }
    uint8_t flags = message_kinds[kind].flags;
    if (frame->flags != flags) {
        snprintf(text, sizeof text, "invalid flags for %.*s: got %u, expected %u", length, name, frame->flags,
                 flags);
        refuse(agent, frame->id, "invalid_flags", envelope.type, text);
        return;
    }
    if (!message_kinds[kind].from_host)
        return;
    struct cbor payload = cbor_reader(envelope.payload.data, envelope.payload.length);
    if (!(flags & FLAG_SESSION_START)) {
        bad = handle(agent, frame->id, kind, &payload);
    } else if (session_find(agent, frame->id) != NULL) {
        snprintf(text, sizeof text, "session id %u is in use", frame->id);
        refuse(agent, frame->id, "invalid_session", envelope.type, text);
        return;
    } else {
        bad = start(agent, frame->id, kind, &payload);
    }
    if (bad != NULL) {
        snprintf(text, sizeof text, "decode payload for %.*s: %s", length, name, bad);
        refuse(agent, frame->id, "invalid_payload", envelope.type, text);
    }
}
