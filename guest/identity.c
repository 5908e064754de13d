/*
 * Who this guest is: its names, and the files in which programs look for them.
 *
 * A file of the image is never written through a symbolic link (it could lead to /proc or a device): a new
 * one takes its place.
 */
#include "boot.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_PROFILE = 1 << 20 };

#define PROFILE_MARK "# >>> microsandbox scripts path >>>"

static const char PROFILE_BLOCK[] = "\n" PROFILE_MARK "\n"
                                    "case \":$PATH:\" in\n"
                                    "    *:/.msb/scripts:*) ;;\n"
                                    "    *) PATH=\"/.msb/scripts:$PATH\"; export PATH ;;\n"
                                    "esac\n"
                                    "# <<< microsandbox scripts path <<<\n";

static bool write_all(int fd, const void *data, size_t size)
{
    while (size > 0) {
        ssize_t count = write(fd, data, size);
        if (count < 0)
            return false;
        data = (const char *)data + count;
        size -= (size_t)count;
    }
    return true;
}

/* Puts a whole new file in the place of whatever has that name. */
static void replace_file(struct agent *agent, int directory, const char *name, const void *data, size_t size,
                         mode_t mode)
{
    const char *partial = ".msb-partial";
    unlinkat(directory, partial, 0);
    int fd = openat(directory, partial, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0 || !write_all(fd, data, size) || fchmod(fd, mode) < 0 ||
        renameat(directory, partial, directory, name) < 0)
        boot_fail(agent, "mount", errno, "the file %s cannot be written", name);
    close(fd);
}

/* A file in /etc. To fill an empty placeholder costs a fraction of what it takes to replace a file. */
static void write_name(struct agent *agent, int etc, const char *name, const char *text, size_t size,
                       mode_t mode)
{
    if (!agent->rooted) {
        replace_file(agent, etc, name, text, size, mode);
        return;
    }
    int fd = openat(etc, name, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || !write_all(fd, text, size))
        boot_fail(agent, "mount", errno, "the file %s cannot be written", name);
    close(fd);
}

static void write_hosts(struct agent *agent, int etc, const char *hostname)
{
    char text[512];
    int length = snprintf(text, sizeof text,
                          "127.0.0.1\tlocalhost\t%s\n"
                          "::1\tlocalhost\tip6-localhost\tip6-loopback\t%s\n"
                          "fe00::\tip6-localnet\n"
                          "ff00::\tip6-mcastprefix\n"
                          "ff02::1\tip6-allnodes\n"
                          "ff02::2\tip6-allrouters\n",
                          hostname, hostname);
    write_name(agent, etc, "hosts", text, (size_t)length, 0644);
}

/* Whether a file may be written by us. A link (usually to a file of systemd's) is the image's decision. */
static bool is_ours(int etc, const char *name)
{
    struct stat info;
    return fstatat(etc, name, &info, AT_SYMLINK_NOFOLLOW) < 0 || S_ISREG(info.st_mode);
}

static void write_machine_id(struct agent *agent, int etc, const char *id)
{
    char text[64];
    if (id == NULL || !is_ours(etc, "machine-id"))
        return;
    int length = snprintf(text, sizeof text, "%s\n", id);
    write_name(agent, etc, "machine-id", text, (size_t)length, 0444);
}

/* Appends to a regular file once; what is no regular file is left alone. */
static void extend_profile(struct agent *agent, int etc)
{
    struct stat info;
    int fd = openat(etc, "profile",
                    O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644);
    if (fd < 0 && (errno == ELOOP || errno == ENXIO || errno == EISDIR))
        return;
    if (fd < 0 || fstat(fd, &info) < 0)
        boot_fail(agent, "mount", errno, "/etc/profile cannot be opened");
    if (S_ISREG(info.st_mode) && info.st_size <= MAX_PROFILE) {
        size_t size = (size_t)info.st_size;
        char *text = malloc(size + 1);
        if (text == NULL || pread(fd, text, size, 0) != (ssize_t)size)
            boot_fail(agent, "mount", errno, "/etc/profile cannot be read");
        bool present = memmem(text, size, PROFILE_MARK, strlen(PROFILE_MARK)) != NULL;
        if (!present && !write_all(fd, PROFILE_BLOCK, sizeof PROFILE_BLOCK - 1))
            boot_fail(agent, "mount", errno, "/etc/profile cannot be written");
        free(text);
    }
    close(fd);
}

/* A directory of the image, made if need be; not through a link. */
static int open_directory(struct agent *agent, const char *path)
{
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        boot_fail(agent, "mount", errno, "the directory %s cannot be made", path);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        boot_fail(agent, "image", errno, "%s in the image cannot be used as a directory", path);
    return fd;
}

void prepare_root(struct agent *agent)
{
    char run[] = "/run/microsandbox";
    int etc = open_directory(agent, "/etc");
    extend_profile(agent, etc);
    close(etc);
    if (!make_path(run))
        boot_fail(agent, "mount", errno, "the directory %s cannot be made", run);
    close(open_directory(agent, "/.msb"));
    if (mount("tmpfs", "/.msb", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=8m") < 0)
        boot_fail(agent, "mount", errno, "a tmpfs cannot be mounted on /.msb");
    close(open_directory(agent, "/.msb/scripts"));
    make_temporary(agent, "/tmp");
    make_temporary(agent, "/var/tmp");
}

void prepare_names(struct agent *agent)
{
    int etc = open_directory(agent, "/etc");
    replace_file(agent, etc, "hostname", "", 0, 0644);
    replace_file(agent, etc, "hosts", "", 0, 0644);
    if (is_ours(etc, "machine-id"))
        replace_file(agent, etc, "machine-id", "", 0, 0444);
    close(etc);
}

void set_identity(struct agent *agent, const char *hostname, const char *machine_id)
{
    char line[80];
    if (sethostname(hostname, strlen(hostname)) < 0)
        boot_fail(agent, "config", errno, "the hostname %s cannot be set", hostname);
    int etc = open_directory(agent, "/etc");
    int length = snprintf(line, sizeof line, "%s\n", hostname);
    write_name(agent, etc, "hostname", line, (size_t)length, 0644);
    write_hosts(agent, etc, hostname);
    write_machine_id(agent, etc, machine_id);
    close(etc);
}

void install_scripts(struct agent *agent, const struct boot_config *config)
{
    int scripts = open_directory(agent, "/.msb/scripts");
    for (unsigned i = 0; i < config->script_count; i++) {
        const struct boot_script *script = &config->scripts[i];
        replace_file(agent, scripts, script->name, script->content.data, script->content.length, 0755);
    }
    close(scripts);
}

/* The kernel gives the interface 127.0.0.1/8 and ::1/128 when it comes up. */
void loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        console("there is no loopback interface: %s", os_error(errno).text);
    request.ifr_flags |= IFF_UP;
    if (fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        console("the loopback interface does not come up: %s", os_error(errno).text);
    if (fd >= 0)
        close(fd);
}
