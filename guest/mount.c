/*
 * Mounts: the initramfs's own, the image with its writable layer, and what every Linux system has.
 *
 * The image is not trusted to be well-formed: its directories may be links. The places of /dev, /proc and
 * /sys must be real directories; everything else is mounted after the change of root, so that no link leads
 * out of it.
 */
#include "boot.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEVICE_WAIT_S = 10 };

#define NEW_ROOT "/newroot"
/* The file is all holes: there is no inode table to be zeroed in the background. */
#define UPPER_OPTIONS "noinit_itable"
#define OVERLAY_OPTIONS "lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work"

struct mount_point {
    const char *type, *target;
    unsigned long flags;
    const char *options;
};

static const unsigned long SAFE = MS_NODEV | MS_NOEXEC | MS_NOSUID | MS_RELATIME;

static void make_directory(struct agent *agent, const char *path)
{
    struct stat info;
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        boot_fail(agent, "mount", errno, "the directory %s cannot be made", path);
    if (lstat(path, &info) < 0 || !S_ISDIR(info.st_mode))
        boot_fail(agent, "image", 0, "%s in the image is not a directory",
                  strncmp(path, NEW_ROOT, strlen(NEW_ROOT)) == 0 ? path + strlen(NEW_ROOT) : path);
}

static void mount_all(struct agent *agent, const struct mount_point *points, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct mount_point *point = &points[i];
        make_directory(agent, point->target);
        if (mount(point->type, point->target, point->type, point->flags, point->options) < 0 &&
            errno != EBUSY)
            boot_fail(agent, "mount", errno, "%s cannot be mounted on %s", point->type, point->target);
    }
}

/* The console comes first: everything later can say why it failed. */
static void open_console(void)
{
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0)
        fd = open("/dev/kmsg", O_WRONLY | O_NOCTTY);
    if (fd < 0)
        fd = open("/dev/null", O_RDWR);
    for (int target = 0; fd >= 0 && target < 3; target++)
        if (fd != target)
            dup2(fd, target);
    if (fd > 2)
        close(fd);
}

static void make_link(const char *target, const char *path)
{
    if (symlink(target, path) < 0 && errno != EEXIST)
        console("%s cannot be made: %s", path, os_error(errno).text);
}

/* All of it belongs to the kernel and not to the image, so a template has it already. */
void mount_initial(struct agent *agent)
{
    static const struct mount_point points[] = {
        {"devtmpfs", "/dev", MS_RELATIME, NULL},
        {"proc", "/proc", SAFE, NULL},
        {"sysfs", "/sys", SAFE, NULL},
        {"cgroup2", "/sys/fs/cgroup", SAFE, NULL},
        {"devpts", "/dev/pts", MS_NOEXEC | MS_NOSUID | MS_RELATIME, "mode=0620,gid=5,ptmxmode=0666"},
        {"tmpfs", "/dev/shm", MS_NOEXEC | MS_NOSUID | MS_RELATIME, "mode=1777"},
    };
    umask(022);
    mount_all(agent, points, 1);
    open_console();
    mount_all(agent, points + 1, sizeof points / sizeof *points - 1);
    make_link("/proc/self/fd", "/dev/fd");
    make_link("fd/0", "/dev/stdin");
    make_link("fd/1", "/dev/stdout");
    make_link("fd/2", "/dev/stderr");
    make_directory(agent, "/lower");
    make_directory(agent, "/upper");
    make_directory(agent, NEW_ROOT);
}

/* Blocks read from a template's placeholder must not be taken for those of the disk that replaced it. */
static void forget_cached_blocks(struct agent *agent, const char *stage, const char *device)
{
    int fd = open(device, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || ioctl(fd, BLKFLSBUF, 0) < 0)
        boot_fail(agent, stage, errno, "the disk %s cannot be opened", device);
    close(fd);
}

static void mount_disk(struct agent *agent, int uevents, const char *stage, const char *device,
                       const char *type, const char *target, unsigned long flags, const char *options)
{
    if (!wait_for_device(uevents, device, DEVICE_WAIT_S))
        boot_fail(agent, stage, ENOENT, "the disk %s does not appear", device);
    forget_cached_blocks(agent, stage, device);
    if (mount(device, target, type, flags, options) < 0)
        boot_fail(agent, stage, errno, "%s (%s, %s) cannot be mounted",
                  flags & MS_RDONLY ? "the image" : "the writable layer", device, type);
}

/* Takes /dev, /proc and /sys with what is mounted in them along to the new root, and enters it. */
static void change_root(struct agent *agent)
{
    static const char *const kept[] = {"/dev", "/proc", "/sys"};
    for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++) {
        char target[32];
        snprintf(target, sizeof target, NEW_ROOT "%s", kept[i]);
        make_directory(agent, target);
        if (mount(kept[i], target, NULL, MS_MOVE, NULL) < 0)
            boot_fail(agent, "mount", errno, "%s cannot be moved to the root file system", kept[i]);
    }
    if (chdir(NEW_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        boot_fail(agent, "mount", errno, "the root file system cannot be entered");
}

void mount_root(struct agent *agent, const struct boot_root *root, int uevents)
{
    mount_disk(agent, uevents, "image", root->lower, root->lower_type, "/lower", MS_RDONLY,
               NULL);
    mount_disk(agent, uevents, "mount", root->upper, root->upper_type, "/upper", 0,
               UPPER_OPTIONS);
    make_directory(agent, "/upper/upper");
    make_directory(agent, "/upper/work");
    agent->upper = open("/upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (agent->upper < 0)
        boot_fail(agent, "mount", errno, "the writable layer cannot be opened");
    if (mount("overlay", NEW_ROOT, "overlay", 0, OVERLAY_OPTIONS) < 0)
        boot_fail(agent, "mount", errno, "the overlay of image and writable layer cannot be mounted");
    change_root(agent);
}

/* As mkdir -p. */
bool make_path(char *path)
{
    struct stat info;
    for (char *slash = path; slash != NULL;) {
        slash = strchr(slash + 1, '/');
        if (slash != NULL)
            *slash = '\0';
        int result = mkdir(path, 0755);
        bool failed = result < 0 && errno != EEXIST;
        if (slash != NULL)
            *slash = '/';
        if (failed)
            return false;
    }
    if (stat(path, &info) < 0)
        return false;
    errno = ENOTDIR;
    return S_ISDIR(info.st_mode);
}

static bool is_temporary(const char *path)
{
    return strcmp(path, "/tmp") == 0 || strcmp(path, "/var/tmp") == 0;
}

/* World-writable and sticky, whatever the image says; untouched when it is so already. */
void make_temporary(struct agent *agent, const char *name)
{
    char path[16];
    struct stat info;
    snprintf(path, sizeof path, "%s", name);
    if (!make_path(path) || stat(path, &info) < 0 ||
        ((info.st_mode & 07777) != 01777 && chmod(path, 01777) < 0))
        boot_fail(agent, "image", errno, "%s cannot be made a directory for everybody", name);
}

static void mount_one_tmpfs(struct agent *agent, char *path, uint64_t size_mib, unsigned long flags)
{
    char options[64];
    int length = snprintf(options, sizeof options, "mode=%s", is_temporary(path) ? "1777" : "0755");
    if (size_mib > 0)
        snprintf(options + length, sizeof options - (size_t)length, ",size=%llum",
                 (unsigned long long)size_mib);
    if (!make_path(path))
        boot_fail(agent, "mount", errno, "the directory %s for a tmpfs cannot be made", path);
    if (mount("tmpfs", path, "tmpfs", flags, options) < 0)
        boot_fail(agent, "mount", errno, "a tmpfs (%s) cannot be mounted on %s", options, path);
}

void mount_tmp_ahead(struct agent *agent, uint64_t size_mib)
{
    char path[] = "/tmp";
    if (size_mib > 0)
        mount_one_tmpfs(agent, path, size_mib, 0);
    agent->tmp_mib = size_mib;
}

static unsigned long tmpfs_flags(const struct boot_config *config, unsigned i)
{
    return config->tmpfs[i].flags | (config->restricted ? MS_NOSUID | MS_NODEV : 0);
}

static bool is_mounted_ahead(const struct agent *agent, const struct boot_config *config, unsigned i)
{
    return agent->tmp_mib > 0 && config->tmpfs[i].size_mib == agent->tmp_mib &&
           tmpfs_flags(config, i) == 0 && strcmp(config->tmpfs[i].path, "/tmp") == 0;
}

void mount_tmpfs(struct agent *agent, const struct boot_config *config)
{
    bool wanted = false;
    for (unsigned i = 0; i < config->tmpfs_count; i++)
        wanted |= is_mounted_ahead(agent, config, i);
    if (!wanted && agent->tmp_mib > 0 && umount2("/tmp", 0) < 0)
        boot_fail(agent, "mount", errno, "the tmpfs on /tmp cannot be taken away");
    for (unsigned i = 0; i < config->tmpfs_count; i++)
        if (!is_mounted_ahead(agent, config, i))
            mount_one_tmpfs(agent, config->tmpfs[i].path, config->tmpfs[i].size_mib,
                            tmpfs_flags(config, i));
}
