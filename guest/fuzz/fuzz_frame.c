/* A byte stream from the host: cut into frames, each with an envelope. */
#include "wire.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t position = 0;
    struct frame frame;
    ssize_t length;
    while ((length = frame_parse(data + position, size - position, &frame)) > 0) {
        struct envelope envelope;
        if ((size_t)length > size - position || frame.body + frame.length != data + position + length)
            abort();
        if (envelope_decode(frame.body, frame.length, &envelope) == NULL) {
            struct cbor payload = cbor_reader(envelope.payload.data, envelope.payload.length);
            message_find(envelope.type);
            cbor_skip(&payload);
        }
        position += (size_t)length;
    }
    return 0;
}
