/* core.exec.request: what is accepted has a command and lists that end. */
#include "exec_request.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct exec_request request;
    struct cbor in = cbor_reader(data, size);
    if (exec_request_decode(&in, &request) == NULL && request.refusal == NULL) {
        size_t total = 0;
        for (char **argument = request.argv; *argument != NULL; argument++)
            total += strlen(*argument);
        for (char **entry = request.env; entry != NULL && *entry != NULL; entry++)
            total += strlen(*entry);
        if (request.argv[0] == NULL || total > size || request.limit_count > MAX_LIMITS)
            abort();
    }
    exec_request_free(&request);
    return 0;
}
