/*
 * Frames on the agent port:  u32 length (= 5 + body) | u32 id | u8 flags | body   (big-endian)
 *
 * Output is collected in one bounded buffer. Whoever has bulk data asks wire_has_room() first; the answer
 * to a request always fits, because requests are only read while there is room (see serve.c).
 */
#ifndef WIRE_H
#define WIRE_H

#include "message.h"

#include <sys/types.h>

enum {
    MIN_LENGTH = 5,
    MAX_LENGTH = 4 << 20,
    FRAME_HEAD = 9,
    OUTPUT_HIGH = 256 << 10, /* waiting output above which nothing more is produced */
    OUTPUT_SIZE = MAX_LENGTH + (1 << 20),
    INPUT_SIZE = MAX_LENGTH + (128 << 10),
};

struct frame {
    uint32_t id;
    uint8_t flags;
    const uint8_t *body;
    size_t length; /* of the body */
};

struct buffer {
    uint8_t *data;
    size_t head, tail, peak;
};

struct wire {
    int fd;
    struct buffer in, out;
    uint8_t *open_frame;   /* the frame that is being written, */
    uint8_t *open_payload; /* and the head of its payload */
    uint8_t *open_data;    /* and of its data */
    bool readable, writable;
    bool closed; /* the host is gone */
    bool lost;   /* an impossible length: where the next frame starts is unknown */
};

/* Bytes of the frame at `data`; 0 when it is not complete yet, -1 when its length is impossible. */
ssize_t frame_parse(const uint8_t *data, size_t available, struct frame *);

bool wire_init(struct wire *, int fd);
bool wire_receive(struct wire *);              /* one read; false when there is nothing to read now */
bool wire_next(struct wire *, struct frame *); /* valid until the next wire_receive() */
bool wire_has_input(const struct wire *);
bool wire_has_room(const struct wire *);
void wire_flush(struct wire *);

/* A message: begin, put the payload, end. It is not sent, and false returned, when it was too large. */
struct cbor_out wire_begin(struct wire *, uint32_t id, enum message);
bool wire_end(struct wire *, struct cbor_out *);
void wire_send_empty(struct wire *, uint32_t id, enum message);

/* A data message filled in place: begin gives room for `size` bytes, end sends what was put there. */
uint8_t *wire_begin_data(struct wire *, uint32_t id, enum message, size_t size);
void wire_end_data(struct wire *, size_t size);

#endif
