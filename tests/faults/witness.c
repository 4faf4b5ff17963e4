/* A worker that says "NODE FENCE LEADER PID BOOTTIME" to one file, again and again: whoever has its lines between another node's runs beside
 * it. On SIGTERM it says so once more and ends. "i": it ignores SIGTERM. "g": it has a grandchild in a session of its own, without
 * descriptors, that ignores SIGTERM and says it too. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t asked;

static void term(int signal) { asked = signal; }

static void witness(const char *path, const char *node, int leader) {
    const char *fence = getenv("LEASEHOLD_FENCE");
    for (;;) {
        int last = asked;
        struct timespec now;
        char line[200];
        /* The clock before the line: what is said was true then. */
        clock_gettime(CLOCK_BOOTTIME, &now);
        int length = snprintf(line, sizeof line, "%s %s %d %d %lld\n", node, fence ? fence : "0", leader, getpid(),
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

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int leader = getpid();
    signal(SIGTERM, strchr(argv[3], 'i') ? SIG_IGN : term);
    if (strchr(argv[3], 'g') && fork() == 0) {
        setsid();
        signal(SIGTERM, SIG_IGN);
        for (int n = 0; n < 256; n++) close(n);
        witness(argv[1], argv[2], leader);
    }
    witness(argv[1], argv[2], leader);
}
