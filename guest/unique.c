/*
 * What two guests from one template must never share: random numbers and the time of day.
 */
#include "boot.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { POOL = 64 };

static const int64_t CLOCK_TOLERANCE_NS = 100000000;

uint64_t now_ns(void)
{
    struct timespec now = {0};
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Mixed in, credited, and the generator seeded anew at once: what it held before is the template's. */
void add_entropy(struct agent *agent, struct cbor_string entropy)
{
    struct { /* the kernel's rand_pool_info */
        int bits, size;
        uint8_t data[POOL];
    } pool = {0, 0, {0}};
    size_t size = entropy.length < POOL ? entropy.length : POOL;
    if (size == 0)
        return;
    memcpy(pool.data, entropy.data, size);
    pool.bits = (int)(8 * size);
    pool.size = (int)size;
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
        boot_fail(agent, "other", errno, "the random number generator cannot be seeded");
    close(fd);
    explicit_bzero(&pool, sizeof pool);
}

bool set_clock(uint64_t unix_time_nanos)
{
    struct timespec time = {
        .tv_sec = (time_t)(unix_time_nanos / 1000000000),
        .tv_nsec = (long)(unix_time_nanos % 1000000000),
    };
    return clock_settime(CLOCK_REALTIME, &time) == 0;
}

void correct_clock(uint64_t unix_time_nanos)
{
    struct timespec now;
    if (unix_time_nanos > INT64_MAX || clock_gettime(CLOCK_REALTIME, &now) < 0)
        return;
    int64_t difference = (int64_t)unix_time_nanos - ((int64_t)now.tv_sec * 1000000000 + now.tv_nsec);
    if ((difference > CLOCK_TOLERANCE_NS || difference < -CLOCK_TOLERANCE_NS) && !set_clock(unix_time_nanos))
        console("the clock cannot be set: %s", os_error(errno).text);
}
