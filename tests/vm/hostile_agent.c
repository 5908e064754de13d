// An agent that is the enemy: it boots like agentd with frames canned by the test, then does its worst.
// Built with -DWORST=0..4 and a generated frames.h: HELLO, RESOLVED, READY, FLOOD as byte arrays.
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "frames.h"

enum { GARBAGE, HUGE_FRAME, HELLO_FLOOD, READY_FLOOD, READY_GARBAGE };

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static void load_modules(void) {
    struct dirent **entries;
    int count = scandir("/modules", &entries, NULL, by_name);
    for (int i = 0; i < count; i++) {
        char path[512];
        snprintf(path, sizeof path, "/modules/%s", entries[i]->d_name);
        int fd = open(path, O_RDONLY);
        syscall(SYS_finit_module, fd, "", 0);
        close(fd);
    }
}

static void put(int port, const unsigned char *bytes, size_t size) {
    while (size > 0) {
        ssize_t written = write(port, bytes, size);
        if (written <= 0) continue;
        bytes += written;
        size -= (size_t)written;
    }
}

static void skip_frame(int port) {
    unsigned char length[4], byte;
    for (int i = 0; i < 4; i++) while (read(port, &length[i], 1) != 1) {}
    uint32_t left = (uint32_t)length[0] << 24 | (uint32_t)length[1] << 16 | (uint32_t)length[2] << 8 | length[3];
    while (left > 0) if (read(port, &byte, 1) == 1) left--;
}

int main(void) {
    mount("none", "/dev", "devtmpfs", 0, NULL);
    load_modules();
    int port;
    while ((port = open("/dev/vport0p1", O_RDWR)) < 0) usleep(1000);
    static unsigned char garbage[65536];
    for (size_t i = 0; i < sizeof garbage; i++) garbage[i] = (unsigned char)(i * 2654435761u >> 13);
    if (WORST == GARBAGE) for (;;) put(port, garbage, sizeof garbage);
    if (WORST == HUGE_FRAME) for (;;) put(port, (const unsigned char *)"\xff\xff\xff\xff\0\0\0\0\0", 9);
    put(port, HELLO, sizeof HELLO);
    if (WORST == HELLO_FLOOD) for (;;) put(port, FLOOD, sizeof FLOOD);
    skip_frame(port);
    put(port, RESOLVED, sizeof RESOLVED);
    skip_frame(port);
    put(port, READY, sizeof READY);
    if (WORST == READY_GARBAGE) for (;;) put(port, garbage, sizeof garbage);
    for (;;) put(port, FLOOD, sizeof FLOOD);
}
