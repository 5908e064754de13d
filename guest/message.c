/* Message types and the envelope around every payload: see message.h. */
#include "message.h"

const struct message_kind message_kinds[MESSAGE_COUNT] = {
    [MSG_READY] = {"core.ready", 0, false},
    [MSG_INIT_RESOLVED] = {"core.init.resolved", 0, false},
    [MSG_INIT_ACK] = {"core.init.ack", 0, true},
    [MSG_SHUTDOWN] = {"core.shutdown", FLAG_SHUTDOWN, true},
    [MSG_CLIENT_DISCONNECTED] = {"core.relay.client.disconnected", 0, true},
    [MSG_CLOCK_SYNC] = {"core.clock.sync", 0, true},
    [MSG_ERROR] = {"core.error", FLAG_TERMINAL, false},
    [MSG_FLOW] = {"core.flow", 0, true},
    [MSG_PING] = {"core.ping", 0, true},
    [MSG_PONG] = {"core.pong", 0, false},
    [MSG_BOOT_HELLO] = {"core.boot.hello", 0, false},
    [MSG_BOOT_ROOT] = {"core.boot.root", 0, true},
    [MSG_BOOT_CONFIG] = {"core.boot.config", 0, true},
    [MSG_BOOT_FAILED] = {"core.boot.failed", 0, false},
    [MSG_EXEC_REQUEST] = {"core.exec.request", FLAG_SESSION_START, true},
    [MSG_EXEC_STARTED] = {"core.exec.started", 0, false},
    [MSG_EXEC_STDIN] = {"core.exec.stdin", 0, true},
    [MSG_EXEC_STDIN_ERROR] = {"core.exec.stdin.error", 0, false},
    [MSG_EXEC_STDOUT] = {"core.exec.stdout", 0, false},
    [MSG_EXEC_STDERR] = {"core.exec.stderr", 0, false},
    [MSG_EXEC_EXITED] = {"core.exec.exited", FLAG_TERMINAL, false},
    [MSG_EXEC_FAILED] = {"core.exec.failed", FLAG_TERMINAL, false},
    [MSG_EXEC_RESIZE] = {"core.exec.resize", 0, true},
    [MSG_EXEC_SIGNAL] = {"core.exec.signal", 0, true},
    [MSG_FS_REQUEST] = {"core.fs.request", FLAG_SESSION_START, true},
    [MSG_FS_RESPONSE] = {"core.fs.response", FLAG_TERMINAL, false},
    [MSG_FS_DATA] = {"core.fs.data", 0, true},
    [MSG_TCP_CONNECT] = {"core.tcp.connect", FLAG_SESSION_START, true},
    [MSG_TCP_CONNECTED] = {"core.tcp.connected", 0, false},
    [MSG_TCP_DATA] = {"core.tcp.data", 0, true},
    [MSG_TCP_EOF] = {"core.tcp.eof", 0, true},
    [MSG_TCP_CLOSE] = {"core.tcp.close", 0, true},
    [MSG_TCP_CLOSED] = {"core.tcp.closed", FLAG_TERMINAL, false},
    [MSG_TCP_FAILED] = {"core.tcp.failed", FLAG_TERMINAL, false},
};

enum message message_find(struct cbor_string name)
{
    unsigned kind = 0;
    while (kind < MESSAGE_COUNT && !cbor_equal(name, message_kinds[kind].name))
        kind++;
    return kind;
}

const char *envelope_decode(const uint8_t *body, size_t length, struct envelope *envelope)
{
    struct cbor in = cbor_reader(body, length);
    struct cbor_level map = cbor_enter_map(&in);
    bool has_type = false, has_payload = false;
    while (cbor_more(&in, &map)) {
        struct cbor_string key = cbor_text(&in);
        if (cbor_equal(key, "t")) {
            envelope->type = cbor_text(&in);
            has_type = true;
        } else if (cbor_equal(key, "p")) {
            envelope->payload = cbor_bytes(&in);
            has_payload = true;
        } else {
            cbor_skip(&in);
        }
    }
    if (in.bad == NULL && !(has_type && has_payload))
        cbor_fail(&in, "the envelope lacks t or p");
    return in.bad;
}
