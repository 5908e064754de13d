/* The end: what commands have written reaches the disk, then the machine is switched off. */
#include "boot.h"

#include <errno.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>

/* Nothing writes any more when the file systems become read-only, so what is left is clean. */
void settle_disks(struct agent *agent)
{
    if (agent->upper < 0)
        return;
    kill(-1, SIGKILL);
    sync();
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
        console("the root stays writable: %s", os_error(errno).text);
    /* The writable layer lies outside this root, but a directory that is open there can be entered. */
    if (fchdir(agent->upper) == 0)
        mount(NULL, ".", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    sync();
}

_Noreturn void power_off(struct agent *agent)
{
    settle_disks(agent);
    reboot(RB_POWER_OFF);
    console("the machine cannot be powered off: %s", os_error(errno).text);
    reboot(RB_HALT_SYSTEM);
    for (;;)
        pause();
}
