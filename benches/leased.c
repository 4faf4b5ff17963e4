/* For the rows `page` and `deadline`:
 *   leased check FILE   how long a look at the lease page takes, and how long a round trip over loopback TCP; medians of batches, in
 *                       picoseconds and nanoseconds, written to FILE. Then it waits.
 *   leased deaf         waits, whatever SIGTERM says
 *   leased floor N MS   makes N deaf children and kills each at an instant of its own, MS ms apart, after having written these, as
 *                       "PID NANOSECONDS" on CLOCK_BOOTTIME, and then, how late it killed each, in ns: what a program does
 *                       that does nothing else */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../examples/page/leasehold_page.h"

#define BATCHES 101
#define LOOKS 20000
#define TRIPS 200

static int by_size(const void *a, const void *b) {
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static uint64_t median(uint64_t *batches) {
    qsort(batches, BATCHES, sizeof *batches, by_size);
    return batches[BATCHES / 2];
}

/* A connected pair, the other end of which sends every byte back. */
static int echo(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (void *)&address, length) || listen(listener, 1) ||
        getsockname(listener, (void *)&address, &length))
        return -1;
    if (fork() == 0) {
        int there = accept(listener, 0, 0);
        char byte;
        setsockopt(there, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        while (read(there, &byte, 1) == 1 && write(there, &byte, 1) == 1) {}
        _exit(0);
    }
    int here = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(here, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int failed = connect(here, (void *)&address, length);
    close(listener);
    return failed ? -1 : here;
}

static int check(const char *path) {
    const struct leasehold_page *page = leasehold_page_map();
    int trip = echo();
    if (!page || trip < 0) return 1;
    uint64_t looks[BATCHES], trips[BATCHES];
    for (int batch = 0; batch < BATCHES; batch++) {
        uint64_t begin = leasehold_clock(CLOCK_BOOTTIME);
        for (int n = 0; n < LOOKS; n++) {
            uint64_t left = leasehold_page_left(page, NULL);
            /* One without a deadline needs no clock, and would be no measurement. */
            if (left == 0 || left == UINT64_MAX) return 1;
        }
        looks[batch] = (leasehold_clock(CLOCK_BOOTTIME) - begin) * 1000 / LOOKS;
        char byte = 0;
        begin = leasehold_clock(CLOCK_BOOTTIME);
        for (int n = 0; n < TRIPS; n++)
            if (write(trip, &byte, 1) != 1 || read(trip, &byte, 1) != 1) return 1;
        trips[batch] = (leasehold_clock(CLOCK_BOOTTIME) - begin) / TRIPS;
    }
    close(trip);
    wait(0);
    char temporary[4096];
    snprintf(temporary, sizeof temporary, "%s.new", path);
    FILE *file = fopen(temporary, "w");
    if (!file) return 1;
    fprintf(file, "%llu %llu\n", (unsigned long long)median(looks), (unsigned long long)median(trips));
    return fclose(file) || rename(temporary, path);
}

static int kill_in_turn(int count, int apart_ms) {
    pid_t children[1024];
    uint64_t late[1024];
    uint64_t at = leasehold_clock(CLOCK_BOOTTIME) + 4000000000;
    if (count > 1024) return 2;
    for (int n = 0; n < count; n++) {
        children[n] = fork();
        if (children[n] == 0) {
            signal(SIGTERM, SIG_IGN);
            for (;;) pause();
        }
        printf("%d %llu\n", children[n], (unsigned long long)(at + (uint64_t)n * apart_ms * 1000000));
    }
    fflush(stdout);
    for (int n = 0; n < count; n++) {
        uint64_t then = at + (uint64_t)n * apart_ms * 1000000;
        struct timespec until = {.tv_sec = then / 1000000000, .tv_nsec = then % 1000000000};
        clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &until, 0);
        late[n] = leasehold_clock(CLOCK_BOOTTIME) - then;
        kill(children[n], SIGKILL);
    }
    for (int n = 0; n < count; n++) printf("%llu\n", (unsigned long long)late[n]);
    while (wait(0) > 0) {}
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "floor")) return kill_in_turn(atoi(argv[2]), atoi(argv[3]));
    signal(SIGTERM, argc == 2 ? SIG_IGN : SIG_DFL);
    if (argc == 3 && !strcmp(argv[1], "check") && check(argv[2])) return 1;
    for (;;) pause();
}
