/* A user specification with passwd and group files, the three separated by NUL bytes. */
#include "account.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct account account;
    char error[MAX_NAME + 64];
    char *copy = malloc(size + 1);
    if (copy == NULL)
        return 0;
    memcpy(copy, data, size);
    copy[size] = '\0';
    size_t spec = strlen(copy);
    struct text passwd = {copy + spec, 0}, group = {copy + size, 0};
    if (spec < size) {
        const char *rest = copy + spec + 1;
        size_t left = size - spec - 1;
        const char *end = memchr(rest, '\0', left);
        passwd = (struct text){rest, end != NULL ? (size_t)(end - rest) : left};
        if (end != NULL)
            group = (struct text){end + 1, left - (size_t)(end + 1 - rest)};
    }
    if (account_parse(copy, passwd, group, &account, error, sizeof error)) {
        if (account.group_count > MAX_GROUPS || strlen(account.home) == 0)
            abort();
    } else if (strlen(error) == 0) {
        abort();
    }
    free(copy);
    return 0;
}
