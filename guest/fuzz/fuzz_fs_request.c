/* core.fs.request: what is accepted has what its operation needs. */
#include "fs_request.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fs_request request;
    struct cbor in = cbor_reader(data, size);
    if (fs_request_decode(&in, &request) == NULL) {
        bool by_handle = request.operation == FS_READ_DIR || request.operation >= FS_READ;
        if (request.operation >= FS_OPERATIONS || (!by_handle && request.path == NULL))
            abort();
        if (request.path != NULL && strlen(request.path) > size)
            abort();
        if (request.operation == FS_RENAME && request.other == NULL)
            abort();
    }
    fs_request_free(&request);
    return 0;
}
