/*
 * CBOR reader and writer: see cbor.h.
 *
 * Strings in pieces (indefinite length) are refused: no client of the protocol sends them, and a string
 * that lies in the frame as it is needs no copy.
 */
#include "cbor.h"

#include <string.h>

enum { UINT, NEGATIVE, BYTES, TEXT, ARRAY, MAP, TAG, SIMPLE };
enum { MAX_DEPTH = 16, BREAK = 0xff, LONG_HEAD = 5 };

struct head {
    unsigned major;
    unsigned info;
    uint64_t value;
};

struct cbor cbor_reader(const void *data, size_t length)
{
    return (struct cbor){.at = data, .end = (const uint8_t *)data + length};
}

void cbor_fail(struct cbor *in, const char *reason)
{
    if (in->bad == NULL)
        in->bad = reason;
    in->at = in->end;
}

static struct head read_one_head(struct cbor *in)
{
    struct head head = {.major = SIMPLE};
    if (in->bad != NULL || in->at == in->end) {
        cbor_fail(in, "unexpected end of data");
        return head;
    }
    uint8_t first = *in->at++;
    head.major = first >> 5;
    head.info = first & 31;
    if (head.info < 24) {
        head.value = head.info;
    } else if (head.info <= 27) {
        size_t size = (size_t)1 << (head.info - 24);
        if ((size_t)(in->end - in->at) < size) {
            cbor_fail(in, "unexpected end of data");
            return (struct head){.major = SIMPLE};
        }
        while (size-- > 0)
            head.value = head.value << 8 | *in->at++;
    } else if (head.info != 31 || head.major <= NEGATIVE || head.major == TAG) {
        cbor_fail(in, "reserved length");
        return (struct head){.major = SIMPLE};
    }
    return head;
}

/* The head of the next item; tags say nothing to this protocol and are passed over. */
static struct head read_head(struct cbor *in)
{
    struct head head;
    do
        head = read_one_head(in);
    while (head.major == TAG);
    return head;
}

static struct cbor_string read_string(struct cbor *in, struct head head)
{
    if (head.info == 31) {
        cbor_fail(in, "strings of indefinite length are not supported");
    } else if (head.value > (uint64_t)(in->end - in->at)) {
        cbor_fail(in, "unexpected end of data");
    } else {
        struct cbor_string string = {in->at, (size_t)head.value};
        in->at += head.value;
        return string;
    }
    return (struct cbor_string){(const uint8_t *)"", 0};
}

static void skip(struct cbor *in, unsigned depth)
{
    if (depth > MAX_DEPTH) {
        cbor_fail(in, "nested too deeply");
        return;
    }
    struct head head = read_head(in);
    struct cbor_level level = {head.value, head.info == 31};
    switch (head.major) {
    case BYTES:
    case TEXT:
        read_string(in, head);
        break;
    case ARRAY:
        while (cbor_more(in, &level))
            skip(in, depth + 1);
        break;
    case MAP:
        while (cbor_more(in, &level)) {
            skip(in, depth + 1);
            skip(in, depth + 1);
        }
        break;
    case SIMPLE:
        if (head.info == 31)
            cbor_fail(in, "unexpected break");
        break;
    }
}

void cbor_skip(struct cbor *in)
{
    skip(in, 0);
}

bool cbor_null(struct cbor *in)
{
    if (in->bad != NULL || in->at == in->end || (*in->at != 0xf6 && *in->at != 0xf7))
        return false;
    in->at++;
    return true;
}

bool cbor_bool(struct cbor *in)
{
    struct head head = read_head(in);
    if (head.major != SIMPLE || (head.info != 20 && head.info != 21))
        cbor_fail(in, "expected a boolean");
    return in->bad == NULL && head.info == 21;
}

uint64_t cbor_uint(struct cbor *in)
{
    struct head head = read_head(in);
    if (head.major != UINT)
        cbor_fail(in, "expected a whole number that is not negative");
    return in->bad == NULL ? head.value : 0;
}

int64_t cbor_int(struct cbor *in)
{
    struct head head = read_head(in);
    if (head.major > NEGATIVE || head.value > INT64_MAX)
        cbor_fail(in, "expected a whole number of 64 bits");
    if (in->bad != NULL)
        return 0;
    return head.major == UINT ? (int64_t)head.value : -1 - (int64_t)head.value;
}

struct cbor_string cbor_text(struct cbor *in)
{
    struct head head = read_head(in);
    if (head.major == TEXT)
        return read_string(in, head);
    cbor_fail(in, "expected a text string");
    return (struct cbor_string){(const uint8_t *)"", 0};
}

struct cbor_string cbor_bytes(struct cbor *in)
{
    struct head head = read_head(in);
    if (head.major == BYTES)
        return read_string(in, head);
    cbor_fail(in, "expected a byte string");
    return (struct cbor_string){(const uint8_t *)"", 0};
}

static struct cbor_level enter(struct cbor *in, unsigned major, const char *expectation)
{
    struct head head = read_head(in);
    if (head.major != major)
        cbor_fail(in, expectation);
    return (struct cbor_level){head.value, head.info == 31};
}

struct cbor_level cbor_enter_map(struct cbor *in)
{
    return enter(in, MAP, "expected a map");
}

struct cbor_level cbor_enter_array(struct cbor *in)
{
    return enter(in, ARRAY, "expected an array");
}

bool cbor_more(struct cbor *in, struct cbor_level *level)
{
    if (in->bad != NULL)
        return false;
    if (!level->endless)
        return level->left > 0 && level->left-- > 0;
    if (in->at < in->end && *in->at == BREAK) {
        in->at++;
        return false;
    }
    return true; /* at the end of the data the next read fails */
}

bool cbor_equal(struct cbor_string string, const char *other)
{
    return string.length == strlen(other) && memcmp(string.data, other, string.length) == 0;
}

static bool has_room(struct cbor_out *out, size_t size)
{
    if (out->full || (size_t)(out->end - out->at) < size)
        out->full = true;
    return !out->full;
}

static void put_head(struct cbor_out *out, unsigned major, uint64_t value)
{
    unsigned info = value < 24 ? (unsigned)value : 24, size = value < 24 ? 0 : 1;
    for (unsigned bits = 8; size > 0 && bits < 64 && value >> bits != 0; bits *= 2, info++)
        size *= 2;
    if (!has_room(out, 1 + size))
        return;
    *out->at++ = (uint8_t)(major << 5 | info);
    while (size-- > 0)
        *out->at++ = (uint8_t)(value >> (8 * size));
}

void cbor_put_uint(struct cbor_out *out, uint64_t value)
{
    put_head(out, UINT, value);
}

void cbor_put_int(struct cbor_out *out, int64_t value)
{
    if (value >= 0)
        put_head(out, UINT, (uint64_t)value);
    else
        put_head(out, NEGATIVE, (uint64_t)(-1 - value));
}

void cbor_put_bool(struct cbor_out *out, bool value)
{
    put_head(out, SIMPLE, value ? 21 : 20);
}

void cbor_put_null(struct cbor_out *out)
{
    put_head(out, SIMPLE, 22);
}

void cbor_put_map(struct cbor_out *out, uint64_t entries)
{
    put_head(out, MAP, entries);
}

void cbor_put_array(struct cbor_out *out, uint64_t entries)
{
    put_head(out, ARRAY, entries);
}

void cbor_put_raw(struct cbor_out *out, const void *data, size_t length)
{
    if (has_room(out, length) && length > 0) {
        memcpy(out->at, data, length);
        out->at += length;
    }
}

void cbor_put_bytes(struct cbor_out *out, const void *data, size_t length)
{
    put_head(out, BYTES, length);
    cbor_put_raw(out, data, length);
}

/* The length of the UTF-8 sequence at `text`, 0 when there is none. */
static size_t sequence_length(const uint8_t *text, size_t available)
{
    uint8_t first = text[0];
    size_t length = 1;
    if (first >= 0x80)
        length = first < 0xc2 || first > 0xf4 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (length > available)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    if ((first == 0xe0 && text[1] < 0xa0) || (first == 0xed && text[1] > 0x9f) ||
        (first == 0xf0 && text[1] < 0x90) || (first == 0xf4 && text[1] > 0x8f))
        return 0;
    return length;
}

/* Copies text as UTF-8 and returns its length; counts only when `to` is NULL. */
static size_t copy_utf8(uint8_t *to, const uint8_t *from, size_t length)
{
    static const uint8_t replacement[3] = {0xef, 0xbf, 0xbd};
    size_t written = 0;
    for (size_t i = 0; i < length;) {
        size_t size = sequence_length(from + i, length - i);
        const uint8_t *piece = size > 0 ? from + i : replacement;
        size_t piece_size = size > 0 ? size : sizeof replacement;
        if (to != NULL)
            memcpy(to + written, piece, piece_size);
        written += piece_size;
        i += size > 0 ? size : 1;
    }
    return written;
}

void cbor_put_text_n(struct cbor_out *out, const void *text, size_t length)
{
    size_t encoded = copy_utf8(NULL, text, length);
    put_head(out, TEXT, encoded);
    if (has_room(out, encoded))
        out->at += copy_utf8(out->at, text, length);
}

void cbor_put_text(struct cbor_out *out, const char *text)
{
    cbor_put_text_n(out, text, strlen(text));
}

static uint8_t *open_item(struct cbor_out *out, unsigned major)
{
    if (!has_room(out, LONG_HEAD))
        return NULL;
    uint8_t *head = out->at;
    head[0] = (uint8_t)(major << 5 | 26);
    out->at += LONG_HEAD;
    return head;
}

static void close_item(struct cbor_out *out, uint8_t *head, uint32_t value)
{
    if (out->full || head == NULL)
        return;
    for (unsigned i = 0; i < 4; i++)
        head[1 + i] = (uint8_t)(value >> (8 * (3 - i)));
}

uint8_t *cbor_open_bytes(struct cbor_out *out)
{
    return open_item(out, BYTES);
}

void cbor_close_bytes(struct cbor_out *out, uint8_t *head)
{
    if (head != NULL)
        close_item(out, head, (uint32_t)(out->at - head - LONG_HEAD));
}

uint8_t *cbor_open_array(struct cbor_out *out)
{
    return open_item(out, ARRAY);
}

void cbor_close_array(struct cbor_out *out, uint8_t *head, uint32_t entries)
{
    close_item(out, head, entries);
}
