/* Decoding and checking of core.boot.config; pure, so that it can be fuzzed. */
#include "boot_config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>

enum { MAX_HOSTNAME = 64, MACHINE_ID = 32, MAX_COMPONENT = 255, MAX_PATH = 4096 };

static char *optional_text(struct cbor *in, struct strings *strings)
{
    return cbor_null(in) ? NULL : strings_add(strings, cbor_text(in));
}

static void read_root(struct cbor *in, struct boot_root *root, struct strings *strings)
{
    struct cbor_level map = cbor_enter_map(in);
    while (cbor_more(in, &map)) {
        struct cbor_string key = cbor_text(in);
        if (cbor_equal(key, "lower"))
            root->lower = optional_text(in, strings);
        else if (cbor_equal(key, "lower_fstype"))
            root->lower_type = optional_text(in, strings);
        else if (cbor_equal(key, "upper"))
            root->upper = optional_text(in, strings);
        else if (cbor_equal(key, "upper_fstype"))
            root->upper_type = optional_text(in, strings);
        else
            cbor_skip(in);
    }
    if (root->lower == NULL || root->lower_type == NULL || root->upper == NULL || root->upper_type == NULL)
        cbor_fail(in, "root needs lower, lower_fstype, upper and upper_fstype");
}

static bool is_usable_path(const char *path)
{
    if (path == NULL || path[0] != '/' || path[1] == '\0' || strlen(path) >= MAX_PATH)
        return false;
    for (const char *part = path; part != NULL; part = strchr(part + 1, '/'))
        if (strcmp(part, "/..") == 0 || strncmp(part, "/../", 4) == 0)
            return false;
    return true;
}

/* Mount options as mount(8) spells them. */
static unsigned long read_mount_options(struct cbor *in)
{
    static const struct {
        const char *name;
        unsigned long flag;
    } known[] = {{"ro", MS_RDONLY}, {"noexec", MS_NOEXEC}, {"nosuid", MS_NOSUID}, {"nodev", MS_NODEV}};
    unsigned long flags = 0;
    struct cbor_level array = cbor_enter_array(in);
    while (cbor_more(in, &array)) {
        struct cbor_string option = cbor_text(in);
        unsigned long flag = 0;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            if (cbor_equal(option, known[i].name))
                flag = known[i].flag;
        if (flag == 0)
            cbor_fail(in, "unknown mount option");
        flags |= flag;
    }
    return flags;
}

static void read_tmpfs(struct cbor *in, struct boot_config *config, struct strings *strings)
{
    struct cbor_level array = cbor_enter_array(in);
    while (cbor_more(in, &array)) {
        char *path = NULL;
        uint64_t size = 0;
        unsigned long flags = 0;
        struct cbor_level map = cbor_enter_map(in);
        while (cbor_more(in, &map)) {
            struct cbor_string key = cbor_text(in);
            if (cbor_equal(key, "path"))
                path = optional_text(in, strings);
            else if (cbor_equal(key, "size_mib"))
                size = cbor_null(in) ? 0 : cbor_uint(in);
            else if (cbor_equal(key, "options"))
                flags = read_mount_options(in);
            else
                cbor_skip(in);
        }
        if (!is_usable_path(path))
            cbor_fail(in, "the path of a tmpfs must be absolute, not / and without ..");
        else if (config->tmpfs_count == MAX_TMPFS)
            cbor_fail(in, "too many tmpfs mounts");
        if (in->bad != NULL)
            return;
        config->tmpfs[config->tmpfs_count].path = path;
        config->tmpfs[config->tmpfs_count].flags = flags;
        config->tmpfs[config->tmpfs_count++].size_mib = size;
    }
}

static bool is_file_name(const char *name)
{
    return name != NULL && name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0 && strlen(name) <= MAX_COMPONENT;
}

static void read_scripts(struct cbor *in, struct boot_config *config, struct strings *strings)
{
    struct cbor_level array = cbor_enter_array(in);
    while (cbor_more(in, &array)) {
        struct boot_script script = {NULL, {NULL, 0}};
        struct cbor_level map = cbor_enter_map(in);
        while (cbor_more(in, &map)) {
            struct cbor_string key = cbor_text(in);
            if (cbor_equal(key, "name"))
                script.name = optional_text(in, strings);
            else if (cbor_equal(key, "content"))
                script.content = cbor_bytes(in);
            else
                cbor_skip(in);
        }
        if (!is_file_name(script.name))
            cbor_fail(in, "the name of a script must be one path component");
        else if (config->script_count == MAX_SCRIPTS)
            cbor_fail(in, "too many scripts");
        if (in->bad != NULL)
            return;
        config->scripts[config->script_count++] = script;
    }
}

static void read_list(struct cbor *in, struct list *list, size_t limit, struct strings *strings,
                      const char *complaint)
{
    if (cbor_null(in))
        return;
    struct cbor_level array = cbor_enter_array(in);
    while (cbor_more(in, &array))
        list_add(list, strings_add(strings, cbor_text(in)), limit);
    if (list->failed)
        cbor_fail(in, complaint);
}

static void read_env(struct cbor *in, struct list *env, struct strings *strings)
{
    read_list(in, env, MAX_ENV, strings, "too many environment variables");
}

static void read_init(struct cbor *in, struct boot_init *init, struct strings *strings)
{
    char *command = NULL;
    if (init->argv.count > 0) {
        cbor_fail(in, "there are two inits");
        return;
    }
    list_add(&init->argv, NULL, MAX_INIT_ARGS);
    struct cbor_level map = cbor_enter_map(in);
    while (cbor_more(in, &map)) {
        struct cbor_string key = cbor_text(in);
        if (cbor_equal(key, "cmd"))
            command = strings_add(strings, cbor_text(in));
        else if (cbor_equal(key, "args"))
            read_list(in, &init->argv, MAX_INIT_ARGS, strings, "the init has too many arguments");
        else if (cbor_equal(key, "env"))
            read_env(in, &init->env, strings);
        else
            cbor_skip(in);
    }
    if (command == NULL || (command[0] != '/' && strcmp(command, "auto") != 0) || init->argv.failed)
        cbor_fail(in, "the path of the init must be absolute, or auto");
    else
        init->argv.items[0] = command;
}

static void read_field(struct cbor *in, struct cbor_string key, struct boot_config *config,
                       struct strings *strings)
{
    if (cbor_null(in))
        return;
    if (cbor_equal(key, "hostname"))
        config->hostname = strings_add(strings, cbor_text(in));
    else if (cbor_equal(key, "machine_id"))
        config->machine_id = strings_add(strings, cbor_text(in));
    else if (cbor_equal(key, "user"))
        config->user = strings_add(strings, cbor_text(in));
    else if (cbor_equal(key, "root"))
        read_root(in, &config->root, strings);
    else if (cbor_equal(key, "tmpfs"))
        read_tmpfs(in, config, strings);
    else if (cbor_equal(key, "scripts"))
        read_scripts(in, config, strings);
    else if (cbor_equal(key, "env"))
        read_env(in, &config->env, strings);
    else if (cbor_equal(key, "init"))
        read_init(in, &config->init, strings);
    else if (cbor_equal(key, "rlimits"))
        config->limit_count = limits_decode(in, config->limits);
    else if (cbor_equal(key, "security_profile"))
        config->restricted = cbor_equal(cbor_text(in), "restricted");
    else if (cbor_equal(key, "unix_time_nanos"))
        config->unix_time_nanos = cbor_uint(in);
    else if (cbor_equal(key, "entropy"))
        config->entropy = cbor_bytes(in);
    else
        cbor_skip(in);
}

static bool is_hostname(const char *name)
{
    if (name == NULL || name[0] == '\0' || strlen(name) > MAX_HOSTNAME)
        return false;
    for (; *name != '\0'; name++)
        if ((unsigned char)*name <= ' ' || *name == '/' || *name == 0x7f)
            return false;
    return true;
}

static bool is_machine_id(const char *id)
{
    return id == NULL || (strlen(id) == MACHINE_ID && strspn(id, "0123456789abcdef") == MACHINE_ID);
}

static void check(struct cbor *in, const struct boot_config *config, const struct strings *strings)
{
    if (in->bad != NULL)
        return;
    if (strings->has_nul)
        cbor_fail(in, "a string contains a NUL byte");
    else if (!is_hostname(config->hostname))
        cbor_fail(in, "the hostname must have 1 to 64 characters, no space, control character or /");
    else if (!is_machine_id(config->machine_id))
        cbor_fail(in, "the machine id must be 32 lower-case hexadecimal digits");
}

const char *boot_config_decode(struct cbor *in, struct boot_config *config)
{
    struct strings strings;
    *config = (struct boot_config){.hostname = NULL};
    if (!strings_init(&strings, in))
        return "out of memory";
    config->strings = strings.block;
    struct cbor_level map = cbor_enter_map(in);
    while (cbor_more(in, &map)) {
        struct cbor_string key = cbor_text(in);
        read_field(in, key, config, &strings);
    }
    check(in, config, &strings);
    return in->bad;
}

const char *boot_root_decode(struct cbor *in, struct boot_root *root)
{
    struct strings strings;
    *root = (struct boot_root){.lower = NULL};
    if (!strings_init(&strings, in))
        return "out of memory";
    root->strings = strings.block;
    struct cbor_level map = cbor_enter_map(in);
    while (cbor_more(in, &map)) {
        struct cbor_string key = cbor_text(in);
        if (cbor_equal(key, "root"))
            read_root(in, root, &strings);
        else if (cbor_equal(key, "tmp_size_mib"))
            root->tmp_mib = cbor_uint(in);
        else
            cbor_skip(in);
    }
    if (in->bad == NULL && strings.has_nul)
        cbor_fail(in, "a string contains a NUL byte");
    else if (in->bad == NULL && root->lower == NULL)
        cbor_fail(in, "root is missing");
    return in->bad;
}

uint64_t boot_time_decode(struct cbor *in)
{
    uint64_t time = 0;
    struct cbor_level map = cbor_enter_map(in);
    while (cbor_more(in, &map)) {
        if (cbor_equal(cbor_text(in), "unix_time_nanos"))
            time = cbor_uint(in);
        else
            cbor_skip(in);
    }
    return in->bad == NULL ? time : 0;
}
