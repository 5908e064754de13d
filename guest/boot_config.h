/* core.boot.config: what makes a booted guest this sandbox. */
#ifndef BOOT_CONFIG_H
#define BOOT_CONFIG_H

#include "limits.h"
#include "strlist.h"

enum { MAX_TMPFS = 64, MAX_SCRIPTS = 512, MAX_ENV = 4096, MAX_INIT_ARGS = 4096 };

struct boot_script {
    char *name;
    struct cbor_string content; /* lies in the message */
};

/* The image and its writable layer: block devices and their file systems. */
struct boot_root {
    char *lower, *lower_type, *upper, *upper_type; /* NULL: not given */
    uint64_t tmp_mib; /* size of a tmpfs on /tmp, of core.boot.root only; 0: none */
    char *strings;
};

/* The program that becomes PID 1. `argv` is empty when there is none; argv[0] may be "auto". */
struct boot_init {
    struct list argv, env;
};

struct boot_config {
    char *hostname, *machine_id;
    char *user; /* NULL: root */
    struct boot_root root;
    struct {
        char *path;
        unsigned long flags; /* of mount(2) */
        uint64_t size_mib; /* 0: the kernel's default */
    } tmpfs[MAX_TMPFS];
    unsigned tmpfs_count;
    struct boot_script scripts[MAX_SCRIPTS];
    unsigned script_count;
    struct list env;
    struct boot_init init;
    struct limit limits[MAX_LIMITS];
    unsigned limit_count;
    bool restricted;
    uint64_t unix_time_nanos;
    struct cbor_string entropy; /* lies in the message */
    char *strings;
};

/* Returns NULL, or why it cannot be used. The items of all lists and `strings` are the caller's to free. */
const char *boot_config_decode(struct cbor *payload, struct boot_config *);

/* The same for core.boot.root: { "root": ... } as in a configuration, and perhaps "tmp_size_mib". */
const char *boot_root_decode(struct cbor *payload, struct boot_root *);

/* The unix_time_nanos of a message; 0 when there is none. */
uint64_t boot_time_decode(struct cbor *payload);

#endif
