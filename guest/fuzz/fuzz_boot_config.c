/* core.boot.config: what is accepted keeps the promises that the boot relies on. */
#include "boot_config.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct boot_config config;
    struct cbor in = cbor_reader(data, size);
    if (boot_config_decode(&in, &config) == NULL) {
        if (strlen(config.hostname) == 0 || (config.root.lower != NULL && config.root.upper_type == NULL))
            abort();
        if (config.init.argv.count > 0 && strcmp(config.init.argv.items[0], "auto") != 0 &&
            config.init.argv.items[0][0] != '/')
            abort();
        for (unsigned i = 0; i < config.script_count; i++)
            if (strchr(config.scripts[i].name, '/') != NULL || config.scripts[i].content.length > size)
                abort();
        for (unsigned i = 0; i < config.tmpfs_count; i++)
            if (config.tmpfs[i].path[0] != '/' || strstr(config.tmpfs[i].path, "/../") != NULL)
                abort();
    }
    free(config.env.items);
    free(config.init.argv.items);
    free(config.init.env.items);
    free(config.strings);
    return 0;
}
