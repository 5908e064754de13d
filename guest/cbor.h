/*
 * CBOR, the part of it that the agent protocol uses.
 *
 * The reader never allocates and never looks past its end. Its first error sticks: later reads give zeros,
 * loops over maps and arrays end, and the decoder looks once, at the end, whether `bad` was set.
 */
#ifndef CBOR_H
#define CBOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cbor {
    const uint8_t *at, *end;
    const char *bad; /* why the data cannot be read, NULL while it can */
};

/* A text or byte string inside the data that is being read; not terminated by a NUL. */
struct cbor_string {
    const uint8_t *data;
    size_t length;
};

/* The rest of a map or an array that is being read. */
struct cbor_level {
    uint64_t left;
    bool endless; /* until a break, instead of `left` entries */
};

struct cbor cbor_reader(const void *data, size_t length);
void cbor_fail(struct cbor *, const char *reason);
void cbor_skip(struct cbor *);
bool cbor_null(struct cbor *); /* takes a null if one comes next */
bool cbor_bool(struct cbor *);
uint64_t cbor_uint(struct cbor *);
int64_t cbor_int(struct cbor *);
struct cbor_string cbor_text(struct cbor *);
struct cbor_string cbor_bytes(struct cbor *);
struct cbor_level cbor_enter_map(struct cbor *);
struct cbor_level cbor_enter_array(struct cbor *);
bool cbor_more(struct cbor *, struct cbor_level *); /* is there another entry? */
bool cbor_equal(struct cbor_string, const char *);

/* The writer stops at its end and sets `full`. */
struct cbor_out {
    uint8_t *at, *end;
    bool full;
};

void cbor_put_uint(struct cbor_out *, uint64_t);
void cbor_put_int(struct cbor_out *, int64_t);
void cbor_put_bool(struct cbor_out *, bool);
void cbor_put_null(struct cbor_out *);
void cbor_put_map(struct cbor_out *, uint64_t entries);
void cbor_put_array(struct cbor_out *, uint64_t entries);
void cbor_put_bytes(struct cbor_out *, const void *, size_t);
/* Whatever the bytes are, what is written is UTF-8: what is not becomes U+FFFD. */
void cbor_put_text(struct cbor_out *, const char *);
void cbor_put_text_n(struct cbor_out *, const void *, size_t);
void cbor_put_raw(struct cbor_out *, const void *, size_t); /* items that are encoded already */
/* A byte string or an array whose size is known only afterwards: opening returns where its head is. */
uint8_t *cbor_open_bytes(struct cbor_out *);
void cbor_close_bytes(struct cbor_out *, uint8_t *head);
uint8_t *cbor_open_array(struct cbor_out *);
void cbor_close_array(struct cbor_out *, uint8_t *head, uint32_t entries);

#endif
