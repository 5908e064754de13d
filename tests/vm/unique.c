/*
 * Says what a guest must share with no other: random numbers the kernel gave this process and its stack, the
 * first sequence number of a TCP connection, where things were placed, and what time it is.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void say(const char *name, const unsigned char *data, size_t size)
{
    printf("%s ", name);
    for (size_t i = 0; i < size; i++)
        printf("%02x", data[i]);
    printf("\n");
}

static void must(int works, const char *what)
{
    if (!works) {
        perror(what);
        exit(1);
    }
}

/* The SYN of a connection over the loopback interface, read off the wire. */
static uint32_t first_sequence_number(void)
{
    int wire = socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_IP));
    int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(4242)};
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(4243)};
    int on = 1;
    to.sin_addr.s_addr = from.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    must(wire >= 0, "packet socket");
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    must(bind(server, (void *)&to, sizeof to) == 0 && listen(server, 1) == 0, "listen");
    must(bind(client, (void *)&from, sizeof from) == 0, "bind");
    must(connect(client, (void *)&to, sizeof to) == 0, "connect");
    for (;;) {
        unsigned char packet[256];
        must(recv(wire, packet, sizeof packet, 0) >= 40, "packet");
        struct iphdr *ip = (void *)packet;
        struct tcphdr *tcp = (void *)(packet + 4 * ip->ihl);
        if (ip->protocol == IPPROTO_TCP && tcp->dest == to.sin_port && tcp->syn && !tcp->ack)
            return ntohl(tcp->seq);
    }
}

int main(int argc, char **argv)
{
    struct timespec now;
    (void)argv;
    clock_gettime(CLOCK_REALTIME, &now);
    printf("clock %lld.%09ld\n", (long long)now.tv_sec, now.tv_nsec);
    if (argc > 1)
        return 0;
    unsigned char bytes[16];
    must(getrandom(bytes, sizeof bytes, 0) == sizeof bytes, "getrandom");
    say("getrandom", bytes, sizeof bytes);
    say("AT_RANDOM", (const unsigned char *)getauxval(AT_RANDOM), 16);
    void *map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("stack %p\nmmap %p\n", (void *)&now, map);
    printf("vdso %lx\n", getauxval(AT_SYSINFO_EHDR));
    printf("sequence %u\n", first_sequence_number());
    return 0;
}
