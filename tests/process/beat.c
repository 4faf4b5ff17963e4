/* A worker that says "NAME FENCE PID" to one file, again and again: whoever has its lines between another one's runs beside it.
 * "-g": it has a grandchild in a session of its own that closes every descriptor and goes on saying it. "-c": it closes every descriptor
 * itself. An "i" behind that: it ignores SIGTERM. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The number by which it is known outside, whatever PID namespace it is in. */
static int own_pid(void) {
    char name[16] = "";
    return readlink("/proc/self", name, sizeof name - 1) > 0 ? atoi(name) : getpid();
}

static void beat(const char *path, const char *who, int leader) {
    char line[200];
    const char *fence = getenv("LEASEHOLD_FENCE");
    int length = snprintf(line, sizeof line, "%s %s %d\n", who, fence ? fence : "0", leader);
    for (;;) {
        int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
        if (file >= 0) {
            if (write(file, line, (size_t)length) != length) _exit(3);
            close(file);
        }
        usleep(1000);
    }
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int leader = own_pid();
    const char *how = argc > 3 ? argv[3] : "";
    if (strchr(how, 'i')) signal(SIGTERM, SIG_IGN);
    if (strchr(how, 'g') && fork() == 0) {
        setsid();
        signal(SIGTERM, SIG_IGN);
        for (int n = 0; n < 256; n++) close(n);
        beat(argv[1], argv[2], leader);
    }
    if (strchr(how, 'c'))
        for (int n = 3; n < 256; n++) close(n);
    beat(argv[1], argv[2], leader);
}
