/* From the kernel's first program to core.ready. */
#ifndef BOOT_H
#define BOOT_H

#include "agent.h"
#include "boot_config.h"

/* Opens the port; nothing up to here is any sandbox's own. */
void boot_start(struct agent *);
/*
 * Says hello, learns which sandbox this is, makes it so, and says ready. A template may be taken at each hello:
 * of a guest that has come up, and of one whose image is mounted already.
 */
void boot_finish(struct agent *);

/* Says why on the port and the console, and powers off. `stage` is one of those of core.boot.failed. */
_Noreturn void boot_fail(struct agent *, const char *stage, int number, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The same for a limit of the configuration that cannot be applied. */
_Noreturn void limit_fail(struct agent *, const struct limit *, int number);

/* A file that appears when a driver has found its device. False: not within `seconds`. */
bool wait_for_device(int uevents, const char *path, int seconds);

/* mount.c */
void mount_initial(struct agent *);
void mount_root(struct agent *, const struct boot_root *, int uevents);
void mount_tmp_ahead(struct agent *, uint64_t size_mib); /* that most configurations ask for */
void mount_tmpfs(struct agent *, const struct boot_config *);
void make_temporary(struct agent *, const char *name);
bool make_path(char *path);

/* identity.c */
void prepare_root(struct agent *); /* all of it that is the same for every sandbox */
void prepare_names(struct agent *); /* empty files, for set_identity() to fill */
void set_identity(struct agent *, const char *hostname, const char *machine_id);
void install_scripts(struct agent *, const struct boot_config *);
void loopback_up(void);

/* warm.c */
void warm_up(struct agent *);

/* unique.c */
void add_entropy(struct agent *, struct cbor_string entropy);
bool set_clock(uint64_t unix_time_nanos);
void correct_clock(uint64_t unix_time_nanos); /* when it is off by more than 100 ms */

/* power.c */
_Noreturn void power_off(struct agent *);
void settle_disks(struct agent *); /* every process but this one is killed, then all is written */

#endif
