/*
 * The agent port, in frames: see wire.h.
 *
 * Both buffers are larger than they will ever be in ordinary use: their pages cost nothing before they are
 * touched and are given back after a very large frame has passed.
 */
#include "wire.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    PORT_WRITE = 32 << 10, /* the driver takes no more at once */
    KEEP = 1 << 20,        /* bytes of a buffer that stay resident once touched */
};

static uint32_t get_u32(const uint8_t *data)
{
    return (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
}

static void put_u32(uint8_t *data, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        data[i] = (uint8_t)(value >> (8 * (3 - i)));
}

ssize_t frame_parse(const uint8_t *data, size_t available, struct frame *frame)
{
    if (available < 4)
        return 0;
    uint32_t length = get_u32(data);
    if (length < MIN_LENGTH || length > MAX_LENGTH)
        return -1;
    if (available - 4 < length)
        return 0;
    *frame = (struct frame){get_u32(data + 4), data[8], data + FRAME_HEAD, length - MIN_LENGTH};
    return 4 + (ssize_t)length;
}

static bool buffer_init(struct buffer *buffer, size_t size)
{
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *buffer = (struct buffer){.data = data};
    return data != MAP_FAILED;
}

/* Move what is left to the start, and give back the pages of a frame much larger than usual. */
static void buffer_compact(struct buffer *buffer)
{
    size_t used = buffer->tail - buffer->head;
    if (used > 0 && buffer->head > 0)
        memmove(buffer->data, buffer->data + buffer->head, used);
    buffer->head = 0;
    buffer->tail = used;
    if (buffer->peak > KEEP && used <= KEEP) {
        madvise(buffer->data + KEEP, buffer->peak - KEEP, MADV_DONTNEED);
        buffer->peak = used;
    }
}

static void buffer_grow(struct buffer *buffer, size_t size)
{
    buffer->tail += size;
    if (buffer->tail > buffer->peak)
        buffer->peak = buffer->tail;
}

bool wire_init(struct wire *wire, int fd)
{
    wire->fd = fd;
    wire->readable = wire->writable = true;
    return buffer_init(&wire->in, INPUT_SIZE) && buffer_init(&wire->out, OUTPUT_SIZE);
}

bool wire_receive(struct wire *wire)
{
    struct buffer *in = &wire->in;
    if (wire->closed || wire->lost)
        return false;
    buffer_compact(in);
    size_t room = INPUT_SIZE - in->tail;
    ssize_t count = read(wire->fd, in->data + in->tail, room < 64 << 10 ? room : 64 << 10);
    if (count > 0) {
        buffer_grow(in, (size_t)count);
        return true;
    }
    if (count == 0 || (errno != EAGAIN && errno != EINTR))
        wire->closed = true;
    if (count == 0 || errno != EINTR)
        wire->readable = false;
    return false;
}

bool wire_next(struct wire *wire, struct frame *frame)
{
    struct buffer *in = &wire->in;
    ssize_t size = wire->lost ? 0 : frame_parse(in->data + in->head, in->tail - in->head, frame);
    if (size < 0)
        wire->lost = true;
    if (size <= 0)
        return false;
    in->head += (size_t)size;
    return true;
}

bool wire_has_input(const struct wire *wire)
{
    struct frame frame;
    return wire->readable ||
           frame_parse(wire->in.data + wire->in.head, wire->in.tail - wire->in.head, &frame) > 0;
}

bool wire_has_room(const struct wire *wire)
{
    return wire->out.tail - wire->out.head < OUTPUT_HIGH;
}

void wire_flush(struct wire *wire)
{
    struct buffer *out = &wire->out;
    while (out->head < out->tail && wire->writable && !wire->closed) {
        size_t size = out->tail - out->head;
        ssize_t count = write(wire->fd, out->data + out->head, size < PORT_WRITE ? size : PORT_WRITE);
        if (count >= 0)
            out->head += (size_t)count;
        else if (errno == EAGAIN)
            wire->writable = false;
        else if (errno != EINTR)
            wire->closed = true;
    }
    if (out->head == out->tail || out->head >= OUTPUT_HIGH)
        buffer_compact(out);
}

struct cbor_out wire_begin(struct wire *wire, uint32_t id, enum message kind)
{
    struct buffer *out = &wire->out;
    size_t room = OUTPUT_SIZE - out->tail;
    if (room < MAX_LENGTH + 4) {
        buffer_compact(out);
        room = OUTPUT_SIZE - out->tail;
    }
    uint8_t *frame = out->data + out->tail;
    struct cbor_out put = {frame, frame + (room < MAX_LENGTH + 4 ? room : MAX_LENGTH + 4), false};
    wire->open_frame = frame;
    if (room < FRAME_HEAD) {
        put.full = true;
        return put;
    }
    put_u32(frame + 4, id);
    frame[8] = message_kinds[kind].flags;
    put.at += FRAME_HEAD;
    cbor_put_map(&put, 3);
    cbor_put_text(&put, "v");
    cbor_put_uint(&put, GENERATION);
    cbor_put_text(&put, "t");
    cbor_put_text(&put, message_kinds[kind].name);
    cbor_put_text(&put, "p");
    wire->open_payload = cbor_open_bytes(&put);
    return put;
}

bool wire_end(struct wire *wire, struct cbor_out *put)
{
    if (put->full)
        return false;
    cbor_close_bytes(put, wire->open_payload);
    size_t size = (size_t)(put->at - wire->open_frame);
    put_u32(wire->open_frame, (uint32_t)size - 4);
    buffer_grow(&wire->out, size);
    return true;
}

void wire_send_empty(struct wire *wire, uint32_t id, enum message kind)
{
    struct cbor_out put = wire_begin(wire, id, kind);
    cbor_put_map(&put, 0);
    wire_end(wire, &put);
}

uint8_t *wire_begin_data(struct wire *wire, uint32_t id, enum message kind, size_t size)
{
    struct cbor_out put = wire_begin(wire, id, kind);
    cbor_put_map(&put, 1);
    cbor_put_text(&put, "data");
    wire->open_data = cbor_open_bytes(&put);
    if (put.full || (size_t)(put.end - put.at) < size)
        return NULL;
    return put.at;
}

void wire_end_data(struct wire *wire, size_t size)
{
    uint8_t *data = wire->open_data + 5;
    struct cbor_out put = {data + size, data + size, false};
    cbor_close_bytes(&put, wire->open_data);
    wire_end(wire, &put);
}
