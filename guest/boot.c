/*
 * From the kernel's first program to core.ready.
 *
 *     boot_start    devices, modules, the agent port       the same for every sandbox
 *     boot_finish   core.boot.hello ──►                    a template may be taken here
 *                   ◄── core.boot.root                     perhaps: the image is mounted ahead
 *                   core.boot.hello ──►                    a template may be taken here
 *                   ◄── core.boot.config                   root, names, clock, random numbers
 *                   core.init.resolved ──►, ◄── ack, perhaps PID 1 is handed over, core.ready ──►
 *
 * Until ready the port blocks: there is nothing else to do, and a template that waits must not run.
 */
#include "boot.h"

#include "handoff.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

enum {
    PORT_WAIT_S = 30,
    ACK_WAIT_MS = 60000,
    FAREWELL_MS = 100, /* for the host to read why */
    MAX_PATH = 4096,
    MAX_MODULES = 256,
};

_Noreturn void boot_fail(struct agent *agent, const char *stage, int number, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (number != 0 && length >= 0 && (size_t)length < sizeof text)
        snprintf(text + length, sizeof text - (size_t)length, ": %s", os_error(number).text);
    console("%s", text);
    if (agent->wire.fd >= 0) {
        struct cbor_out put = wire_begin(&agent->wire, 0, MSG_BOOT_FAILED);
        cbor_put_map(&put, number != 0 ? 3 : 2);
        cbor_put_text(&put, "stage");
        cbor_put_text(&put, stage);
        cbor_put_text(&put, "message");
        cbor_put_text(&put, text);
        if (number != 0) {
            cbor_put_text(&put, "errno");
            cbor_put_int(&put, number);
        }
        wire_end(&agent->wire, &put);
        wire_flush(&agent->wire);
        struct pollfd gone = {.fd = agent->wire.fd};
        poll(&gone, 1, FAREWELL_MS);
    }
    power_off(agent);
}

static int open_uevents(void)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Sleeps until the kernel reports a device. What it says does not matter: the caller looks again. */
static bool wait_for_uevent(int uevents, uint64_t deadline_ns)
{
    char event[4096];
    struct pollfd wait = {.fd = uevents, .events = POLLIN};
    uint64_t now = now_ns();
    if (now >= deadline_ns)
        return false;
    if (poll(&wait, 1, (int)((deadline_ns - now) / 1000000 + 1)) <= 0)
        return false;
    while (recv(uevents, event, sizeof event, 0) >= 0 || errno == ENOBUFS)
        continue;
    return true;
}

bool wait_for_device(int uevents, const char *path, int seconds)
{
    uint64_t deadline = now_ns() + (uint64_t)seconds * 1000000000;
    while (access(path, F_OK) < 0)
        if (!wait_for_uevent(uevents, deadline))
            return access(path, F_OK) == 0;
    return true;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The module is removed when it is loaded: files of an initramfs occupy memory. */
static void load_module(struct agent *agent, const char *name)
{
    char path[MAX_PATH];
    snprintf(path, sizeof path, "/modules/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        boot_fail(agent, "build_vm", errno, "the kernel module %s cannot be loaded", name);
    close(fd);
    unlink(path);
}

static void load_modules(struct agent *agent)
{
    char *names[MAX_MODULES];
    unsigned count = 0;
    DIR *directory = opendir("/modules");
    if (directory == NULL)
        return; /* a kernel with everything built in */
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        if (count == MAX_MODULES || (names[count++] = strdup(entry->d_name)) == NULL)
            boot_fail(agent, "build_vm", E2BIG, "/modules has more than %d modules", MAX_MODULES);
    }
    closedir(directory);
    qsort(names, count, sizeof *names, by_name);
    for (unsigned i = 0; i < count; i++) {
        load_module(agent, names[i]);
        free(names[i]);
    }
    rmdir("/modules");
}

/* Finds the port that is called "agent"; its name may appear after its device. */
static bool find_port(char *path, size_t size)
{
    bool found = false;
    DIR *directory = opendir("/sys/class/virtio-ports");
    if (directory == NULL)
        return false;
    for (struct dirent *entry; !found && (entry = readdir(directory)) != NULL;) {
        char name[16] = "";
        snprintf(path, size, "/sys/class/virtio-ports/%.64s/name", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t length = read(fd, name, sizeof name - 1);
        close(fd);
        name[strcspn(name, "\n")] = '\0';
        found = length > 0 && strcmp(name, "agent") == 0;
        snprintf(path, size, "/dev/%.64s", entry->d_name);
    }
    closedir(directory);
    return found;
}

static void open_port(struct agent *agent, int uevents)
{
    char path[128];
    uint64_t deadline = now_ns() + (uint64_t)PORT_WAIT_S * 1000000000;
    while (!find_port(path, sizeof path))
        if (!wait_for_uevent(uevents, deadline))
            boot_fail(agent, "build_vm", 0, "there is no virtio-serial port named agent");
    if (!wait_for_device(uevents, path, PORT_WAIT_S))
        boot_fail(agent, "build_vm", ENOENT, "%s does not appear", path);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        boot_fail(agent, "build_vm", errno, "the agent port %s cannot be opened", path);
    if (!wire_init(&agent->wire, fd)) {
        agent->wire.fd = -1;
        boot_fail(agent, "other", ENOMEM, "no memory for the buffers of the agent port");
    }
}

/* Blocks while no host listens. Said again when the host changes, as it does when a template is resumed. */
static void say_hello(struct agent *agent)
{
    struct utsname system;
    uname(&system);
    struct cbor_out put = wire_begin(&agent->wire, 0, MSG_BOOT_HELLO);
    cbor_put_map(&put, 3);
    cbor_put_text(&put, "agent_version");
    cbor_put_text(&put, AGENT_VERSION);
    cbor_put_text(&put, "kernel");
    cbor_put_text(&put, system.release);
    cbor_put_text(&put, "rooted");
    cbor_put_bool(&put, agent->rooted);
    wire_end(&agent->wire, &put);
    wire_flush(&agent->wire);
    if (agent->wire.closed)
        boot_fail(agent, "build_vm", 0, "the agent port is gone");
}

/* The next message of one of two kinds; others are passed over. MESSAGE_COUNT: the host is gone. */
static enum message await_message(struct agent *agent, enum message one, enum message other,
                                  struct cbor *payload)
{
    struct wire *wire = &agent->wire;
    for (;;) {
        struct frame frame;
        struct envelope envelope;
        while (wire_next(wire, &frame)) {
            const char *bad = envelope_decode(frame.body, frame.length, &envelope);
            if (bad != NULL)
                boot_fail(agent, "config", 0, "a message of the host cannot be read: %s", bad);
            *payload = cbor_reader(envelope.payload.data, envelope.payload.length);
            enum message kind = message_find(envelope.type);
            if (kind == one || kind == other)
                return kind;
        }
        if (wire->lost)
            boot_fail(agent, "config", 0, "a frame of the host has an impossible length");
        if (!wire_receive(wire) && wire->closed)
            return MESSAGE_COUNT;
    }
}

/* Every disk is there. Its end costs the kernel a while, so a template has it behind it. */
static void close_uevents(struct agent *agent)
{
    if (agent->uevents >= 0)
        close(agent->uevents);
    agent->uevents = -1;
}

/* The image may be mounted before anything of the sandbox is known, for a template. */
static void mount_ahead(struct agent *agent, struct cbor *payload)
{
    static struct boot_root root;
    const char *bad = boot_root_decode(payload, &root);
    if (bad != NULL || agent->rooted)
        boot_fail(agent, "config", 0, "core.boot.root cannot be used: %s", bad ? bad : "there is a root");
    mount_root(agent, &root, agent->uevents);
    prepare_root(agent);
    prepare_names(agent);
    mount_tmp_ahead(agent, root.tmp_mib);
    agent->rooted = true;
    warm_up(agent);
    close_uevents(agent);
    sync();
}

static struct cbor await_config(struct agent *agent)
{
    for (;;) {
        struct cbor payload;
        say_hello(agent);
        switch (await_message(agent, MSG_BOOT_ROOT, MSG_BOOT_CONFIG, &payload)) {
        case MSG_BOOT_CONFIG:
            return payload;
        case MSG_BOOT_ROOT:
            mount_ahead(agent, &payload);
            break;
        default: /* another host is to come */
            agent->wire.in.head = agent->wire.in.tail = 0;
            agent->wire.closed = false;
        }
    }
}

void boot_start(struct agent *agent)
{
    struct rlimit descriptors = {1 << 16, 1 << 16};
    mount_initial(agent);
    setrlimit(RLIMIT_NOFILE, &descriptors);
    agent->uevents = open_uevents();
    load_modules(agent);
    open_port(agent, agent->uevents);
    loopback_up();
}

_Noreturn void limit_fail(struct agent *agent, const struct limit *limit, int number)
{
    boot_fail(agent, "config", number, "failed to apply rlimit %s=%llu:%llu", limit_name(limit->resource),
              (unsigned long long)limit->soft, (unsigned long long)limit->hard);
}

static void check_limits(struct agent *agent, const struct boot_config *config)
{
    for (unsigned i = 0; i < config->limit_count; i++)
        if (config->limits[i].soft > config->limits[i].hard)
            limit_fail(agent, &config->limits[i], EINVAL);
}

/* Commands get the usual number of descriptors, not the agent's, unless the sandbox says otherwise. */
static void keep_settings(struct agent *agent, struct boot_config *config)
{
    bool has_descriptors = false;
    agent->env = config->env.items;
    agent->user = config->user;
    agent->restricted = config->restricted;
    for (unsigned i = 0; i < config->limit_count; i++) {
        agent->limits[agent->limit_count++] = config->limits[i];
        has_descriptors |= config->limits[i].resource == RLIMIT_NOFILE;
    }
    if (!has_descriptors && agent->limit_count < MAX_LIMITS)
        agent->limits[agent->limit_count++] = (struct limit){RLIMIT_NOFILE, 1024, 524288};
}

static void resolve_user(struct agent *agent)
{
    struct account account;
    char error[MAX_NAME + 64];
    if (!account_find(agent->user, &account, error, sizeof error))
        boot_fail(agent, "config", 0, "%s", error);
    struct cbor_out put = wire_begin(&agent->wire, 0, MSG_INIT_RESOLVED);
    cbor_put_map(&put, 1);
    cbor_put_text(&put, "default_user");
    cbor_put_map(&put, 2);
    cbor_put_text(&put, "uid");
    cbor_put_uint(&put, account.uid);
    cbor_put_text(&put, "gid");
    cbor_put_uint(&put, account.gid);
    wire_end(&agent->wire, &put);
    wire_flush(&agent->wire);

    struct cbor ack;
    struct pollfd input = {.fd = agent->wire.fd, .events = POLLIN};
    if (poll(&input, 1, ACK_WAIT_MS) == 0)
        boot_fail(agent, "other", 0, "timed out waiting for init ack");
    if (await_message(agent, MSG_INIT_ACK, MSG_INIT_ACK, &ack) != MSG_INIT_ACK)
        power_off(agent); /* the host is gone */
    uint64_t now = boot_time_decode(&ack);
    if (now != 0 && !set_clock(now)) /* that of the configuration may have waited for a machine to resume */
        boot_fail(agent, "other", errno, "the clock cannot be set");
}

static void say_ready(struct agent *agent)
{
    uint64_t now = now_ns();
    const struct {
        const char *key;
        uint64_t value;
    } times[] = {
        {"boot_time_ns", agent->started_ns},          /* the kernel's part */
        {"init_time_ns", now - agent->configured_ns}, /* from the configuration to here */
        {"ready_time_ns", now},                       /* since the kernel started */
    };
    struct cbor_out put = wire_begin(&agent->wire, 0, MSG_READY);
    cbor_put_map(&put, 5);
    for (unsigned i = 0; i < sizeof times / sizeof *times; i++) {
        cbor_put_text(&put, times[i].key);
        cbor_put_uint(&put, times[i].value);
    }
    cbor_put_text(&put, "agent_version");
    cbor_put_text(&put, AGENT_VERSION);
    cbor_put_text(&put, "features");
    cbor_put_array(&put, 2);
    cbor_put_text(&put, "flow");
    cbor_put_text(&put, "ping");
    wire_end(&agent->wire, &put);
    wire_flush(&agent->wire);
}

void boot_finish(struct agent *agent)
{
    static struct boot_config config; /* large; its strings are used as long as the sandbox lives */
    struct cbor payload = await_config(agent);
    agent->configured_ns = now_ns();
    const char *bad = boot_config_decode(&payload, &config);
    if (bad != NULL)
        boot_fail(agent, "config", 0, "the boot configuration cannot be used: %s", bad);
    if (agent->rooted == (config.root.lower != NULL))
        boot_fail(agent, "config", EINVAL, agent->rooted ? "a second root is configured" : "root is missing");
    check_limits(agent, &config);
    add_entropy(agent, config.entropy);
    if (config.unix_time_nanos != 0 && !set_clock(config.unix_time_nanos))
        boot_fail(agent, "other", errno, "the clock cannot be set");
    if (!agent->rooted) {
        mount_root(agent, &config.root, agent->uevents);
        prepare_root(agent);
    }
    set_identity(agent, config.hostname, config.machine_id);
    mount_tmpfs(agent, &config);
    install_scripts(agent, &config);
    keep_settings(agent, &config);
    close_uevents(agent);
    resolve_user(agent);
    if (config.init.argv.count > 0)
        hand_off(agent, &config.init);
    say_ready(agent);
}
