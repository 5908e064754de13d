/* Any bytes may be read as CBOR, and any bytes written as text come out as UTF-8 of the length announced. */
#include "cbor.h"

#include <stdlib.h>
#include <string.h>

static void read_everything(const uint8_t *data, size_t size)
{
    struct cbor in = cbor_reader(data, size);
    while (in.bad == NULL && in.at < in.end)
        cbor_skip(&in);

    in = cbor_reader(data, size);
    struct cbor_level map = cbor_enter_map(&in);
    while (cbor_more(&in, &map)) {
        struct cbor_string key = cbor_text(&in);
        if (key.length % 5 == 0)
            cbor_uint(&in);
        else if (key.length % 5 == 1)
            cbor_int(&in);
        else if (key.length % 5 == 2)
            cbor_bytes(&in);
        else if (!cbor_null(&in))
            cbor_bool(&in);
    }
}

static void write_text(const uint8_t *data, size_t size)
{
    size_t room = 3 * size + 16;
    uint8_t *buffer = malloc(room);
    if (buffer == NULL)
        return;
    struct cbor_out out = {buffer, buffer + (size > 0 && data[0] & 1 ? room : size / 2), false};
    uint8_t *head = cbor_open_array(&out);
    cbor_put_text_n(&out, data, size);
    cbor_put_bytes(&out, data, size);
    cbor_close_array(&out, head, 2);
    if (!out.full) {
        struct cbor in = cbor_reader(buffer, (size_t)(out.at - buffer));
        struct cbor_level array = cbor_enter_array(&in);
        if (!cbor_more(&in, &array))
            abort();
        cbor_text(&in);
        struct cbor_string bytes = cbor_bytes(&in);
        if (in.bad != NULL || in.at != in.end || bytes.length != size ||
            (size > 0 && memcmp(bytes.data, data, size) != 0))
            abort();
    }
    free(buffer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_everything(data, size);
    write_text(data, size);
    return 0;
}
