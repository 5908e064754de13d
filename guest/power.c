/* The end: what commands have written reaches the disk, then the machine is switched off. */
#include "boot.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>

enum { FREEZE_MS = 1000 }; /* the host waits 8 s for the end, of which an init may have had 6.5 */

/*
 * Holds up every write from now on and leaves the file system clean. A freeze waits for writes that are under
 * way, whatever signals come, so it is another process that may have to wait for ever.
 */
static void freeze(int directory)
{
    int done[2];
    pid_t pid = pipe2(done, O_CLOEXEC) < 0 ? -1 : fork();
    if (pid == 0) {
        if (ioctl(directory, FIFREEZE, 0) < 0)
            console("the writable layer cannot be frozen: %s", os_error(errno).text);
        _exit(0);
    }
    if (pid < 0) {
        console("the writable layer cannot be frozen: %s", os_error(errno).text);
        return;
    }
    close(done[1]);
    struct pollfd end = {.fd = done[0]};
    if (poll(&end, 1, FREEZE_MS) <= 0)
        console("the writable layer is not frozen after %d ms", FREEZE_MS);
}

/*
 * Nothing writes any more when the file systems become read-only, so what is left is clean. An init is spared
 * by the kill; a file that it writes to, or has open and deleted, can keep them writable.
 */
void settle_disks(struct agent *agent)
{
    if (agent->upper < 0)
        return;
    kill(-1, SIGKILL);
    sync();
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
        console("the root stays writable: %s", os_error(errno).text);
    /* The writable layer lies outside this root, but a directory that is open there can be entered. */
    if (fchdir(agent->upper) < 0 || mount(NULL, ".", NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
        freeze(agent->upper);
    else
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
