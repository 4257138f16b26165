/* An Ethernet switch that holds every frame for a while: what netem does, for kernels without it.
 *
 *     delay_switch MICROSECONDS PORT PORT ...
 *
 * Ports are interfaces of this network namespace. Frames keep their order and their offloads (they come and go as large
 * as TCP made them, with a header that says so), so that a frame costs a few microseconds. Addresses are learned; what
 * is for everybody or for nobody known goes to every other port. A frame for a port that is full is dropped. Ends when a
 * port is removed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_PORTS = 16, MOST_KNOWN = 256, HEADER = 10, LARGEST = 1 << 17, BUFFER = 64 << 20, AT_ONCE = 32 };

struct frame {
    struct frame *next;
    long long due_ns;
    int from;
    size_t length;
    unsigned char bytes[]; /* a virtio_net_hdr of HEADER bytes, then Ethernet */
};

struct known {
    unsigned char address[ETH_ALEN];
    int port;
};

static struct pollfd ports[MOST_PORTS];
static const char *names[MOST_PORTS];
static int num_ports, num_known;
static struct known table[MOST_KNOWN];
static struct frame *first, **last = &first;

static void fail(const char *what, const char *name) {
    fprintf(stderr, "delay_switch: %s %s: %s\n", what, name, strerror(errno));
    exit(1);
}

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int open_port(const char *name) {
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    int on = 1, size = BUFFER, port = socket(AF_PACKET, SOCK_RAW, 0); /* 0: nothing comes before it is bound */
    if (port < 0 || !(at.sll_ifindex = (int)if_nametoindex(name))) fail("no port", name);
    if (setsockopt(port, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) ||
        setsockopt(port, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) ||
        setsockopt(port, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) ||
        setsockopt(port, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) ||
        bind(port, (struct sockaddr *)&at, sizeof at))
        fail("cannot use", name);
    return port;
}

static int find(const unsigned char *address) {
    for (int i = 0; i < num_known; i++)
        if (!memcmp(table[i].address, address, ETH_ALEN)) return i;
    return -1;
}

static void learn(const unsigned char *address, int port) {
    int i = find(address);
    if (i < 0 && num_known < MOST_KNOWN) memcpy(table[i = num_known++].address, address, ETH_ALEN);
    if (i >= 0) table[i].port = port;
}

static void forward(const struct frame *frame) {
    const unsigned char *to = frame->bytes + HEADER;
    int i = to[0] & 1 ? -1 : find(to); /* the lowest bit: for many */
    for (int port = 0; port < num_ports; port++)
        if (port != frame->from && (i < 0 || table[i].port == port))
            (void)!send(ports[port].fd, frame->bytes, frame->length, MSG_DONTWAIT);
}

static void take(int port, long long delay_ns) {
    static unsigned char buffer[LARGEST];
    for (int i = 0; i < AT_ONCE; i++) {
        ssize_t length = recv(ports[port].fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (length < 0) {
            if (errno == ENETDOWN && !if_nametoindex(names[port])) exit(0);
            return; /* nothing more, or the port is down for now */
        }
        if ((size_t)length < HEADER + sizeof(struct ether_header)) continue;
        struct frame *frame = malloc(sizeof *frame + (size_t)length);
        if (!frame) fail("no memory", names[port]);
        *frame = (struct frame){.due_ns = now_ns() + delay_ns, .from = port, .length = (size_t)length};
        memcpy(frame->bytes, buffer, (size_t)length);
        learn(frame->bytes + HEADER + ETH_ALEN, port);
        *last = frame;
        last = &frame->next;
    }
}

static void let_go(void) {
    while (first && first->due_ns <= now_ns()) {
        struct frame *frame = first;
        forward(frame);
        first = frame->next;
        if (!first) last = &first;
        free(frame);
    }
}

int main(int argc, char **argv) {
    if (argc < 4 || argc - 2 > MOST_PORTS) {
        fprintf(stderr, "usage: delay_switch MICROSECONDS PORT PORT ...\n");
        return 2;
    }
    long long delay_ns = atoll(argv[1]) * 1000;
    struct sched_param urgent = {.sched_priority = 1}; /* busy ranks must not make the link longer */
    (void)sched_setscheduler(0, SCHED_FIFO, &urgent);
    for (num_ports = 0; num_ports < argc - 2; num_ports++) {
        names[num_ports] = argv[num_ports + 2];
        ports[num_ports] = (struct pollfd){.fd = open_port(names[num_ports]), .events = POLLIN};
    }
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        long long wait_ns = first ? first->due_ns - now_ns() : 0;
        if (wait_ns < 0) wait_ns = 0;
        struct timespec wait = {wait_ns / 1000000000, wait_ns % 1000000000};
        if (ppoll(ports, (nfds_t)num_ports, first ? &wait : NULL, NULL) < 0 && errno != EINTR) fail("cannot wait", "");
        for (int port = 0; port < num_ports; port++)
            if (ports[port].revents) take(port, delay_ns);
        let_go();
    }
}
