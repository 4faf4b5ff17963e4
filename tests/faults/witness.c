/* A worker that says "NODE FENCE LEADER PID BOOTTIME" to one file, again and again: whoever has its lines between another node's runs beside
 * it. On SIGTERM it says so once more and ends. "i": it ignores SIGTERM. "g": it has a grandchild in a session of its own, without
 * descriptors, that ignores SIGTERM and says it too. "d" behind that: which drops its environment as well, and its parent. "w": it says
 * nothing until its page calls it the holder, and looks there no more. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* The number by which it is known outside, whatever PID namespace it is in. */
static int own_pid(void) {
    char name[16] = "";
    return readlink("/proc/self", name, sizeof name - 1) > 0 ? atoi(name) : getpid();
}

static volatile sig_atomic_t asked;

static void term(int signal) { asked = signal; }

static void witness(const char *path, const char *node, int leader, const char *fence) {
    int own = own_pid();
    for (;;) {
        int last = asked;
        struct timespec now;
        char line[200];
        /* The clock before the line: what is said was true then. */
        clock_gettime(CLOCK_BOOTTIME, &now);
        int length = snprintf(line, sizeof line, "%s %s %d %d %lld\n", node, fence, leader, own,
                              now.tv_sec * 1000000000LL + now.tv_nsec);
        int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
        if (file >= 0) {
            if (write(file, line, (size_t)length) != length) _exit(3);
            close(file);
        }
        if (last) _exit(0);
        usleep(2000);
    }
}

/* The fence, as its lease page says it when it calls it the holder. The layout is in examples/page/leasehold_page.h. */
static const char *promoted(void) {
    static char fence[24];
    const char *fd = getenv("LEASEHOLD_PAGE_FD");
    if (!fd) _exit(5);
    volatile unsigned long long *page = mmap(NULL, 64, PROT_READ, MAP_SHARED, atoi(fd), 0);
    if (page == MAP_FAILED) _exit(6);
    for (;;) {
        unsigned long long before = page[1], holder = page[4], role = page[7];
        __sync_synchronize();
        if (before % 2 == 0 && before == page[1] && role == 1) {
            snprintf(fence, sizeof fence, "%llu", holder);
            return fence;
        }
        if (asked) _exit(0);
        usleep(1000);
    }
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int leader = own_pid();
    const char *fence = getenv("LEASEHOLD_FENCE");
    if (!fence) fence = "0";
    if (argc == 6) witness(argv[1], argv[2], atoi(argv[4]), argv[5]);
    signal(SIGTERM, strchr(argv[3], 'i') ? SIG_IGN : term);
    if (strchr(argv[3], 'w')) fence = promoted();
    if (strchr(argv[3], 'g') && fork() == 0) {
        setsid();
        signal(SIGTERM, SIG_IGN);
        for (int n = 0; n < 256; n++) close(n);
        if (strchr(argv[3], 'd')) {
            char number[16], *none[] = {NULL};
            snprintf(number, sizeof number, "%d", leader);
            if (fork()) _exit(0);
            execle("/proc/self/exe", argv[0], argv[1], argv[2], "-", number, fence, (char *)NULL, none);
            _exit(4);
        }
        witness(argv[1], argv[2], leader, fence);
    }
    witness(argv[1], argv[2], leader, fence);
}
