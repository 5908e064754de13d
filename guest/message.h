/* The message types of the agent protocol, generation 5; flags are a function of the type. */
#ifndef MESSAGE_H
#define MESSAGE_H

#include "cbor.h"

enum { GENERATION = 5 };
enum { FLAG_TERMINAL = 1, FLAG_SESSION_START = 2, FLAG_SHUTDOWN = 4 };

enum message {
    MSG_READY,
    MSG_INIT_RESOLVED,
    MSG_INIT_ACK,
    MSG_SHUTDOWN,
    MSG_CLIENT_DISCONNECTED,
    MSG_CLOCK_SYNC,
    MSG_ERROR,
    MSG_FLOW,
    MSG_PING,
    MSG_PONG,
    MSG_BOOT_HELLO,
    MSG_BOOT_ROOT,
    MSG_BOOT_CONFIG,
    MSG_BOOT_FAILED,
    MSG_EXEC_REQUEST,
    MSG_EXEC_STARTED,
    MSG_EXEC_STDIN,
    MSG_EXEC_STDIN_ERROR,
    MSG_EXEC_STDOUT,
    MSG_EXEC_STDERR,
    MSG_EXEC_EXITED,
    MSG_EXEC_FAILED,
    MSG_EXEC_RESIZE,
    MSG_EXEC_SIGNAL,
    MSG_FS_REQUEST,
    MSG_FS_RESPONSE,
    MSG_FS_DATA,
    MSG_TCP_CONNECT,
    MSG_TCP_CONNECTED,
    MSG_TCP_DATA,
    MSG_TCP_EOF,
    MSG_TCP_CLOSE,
    MSG_TCP_CLOSED,
    MSG_TCP_FAILED,
    MESSAGE_COUNT
};

struct message_kind {
    const char *name;
    uint8_t flags;
    bool from_host;
};

extern const struct message_kind message_kinds[MESSAGE_COUNT];

/* The message of that name; MESSAGE_COUNT when there is none. */
enum message message_find(struct cbor_string name);

/* The envelope {v, t, p} of a frame's body. */
struct envelope {
    struct cbor_string type;
    struct cbor_string payload;
};

/* Returns NULL, or why the body is not an envelope. */
const char *envelope_decode(const uint8_t *body, size_t length, struct envelope *);

#endif
