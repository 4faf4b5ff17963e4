/* Traces a process, until it is killed itself.
 * `polite`: hears of all that happens to it, as strace does. `deaf`: never listens, as a debugger that was stopped.
 * `freeze`: all its threads stop without a stop that a parent would hear of; `freeze-one`: one thread does. Says so by a line.
 * `hang`: as `freeze`, but who is killed meanwhile is gone, and does not wait for its tracer. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static int freeze(pid_t tid) {
    if (ptrace(PTRACE_SEIZE, tid, 0, 0) || ptrace(PTRACE_INTERRUPT, tid, 0, 0)) return 1;
    int status;
    return waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status);
}

/* Threads that a thread makes before it is stopped are found by another look. */
static int freeze_all(pid_t pid) {
    char path[64];
    pid_t done[256];
    int n = 0, news;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    do {
        news = 0;
        DIR *tasks = opendir(path);
        if (!tasks) return 1;
        for (struct dirent *entry; (entry = readdir(tasks));) {
            pid_t tid = atoi(entry->d_name);
            int known = tid == 0;
            for (int i = 0; i < n; i++) known |= done[i] == tid;
            if (known) continue;
            if (n == 256) return 1;
            /* One that has just ended is none. */
            if (!freeze(tid)) news++;
            else if (tid == pid) return 1;
            done[n++] = tid;
        }
        closedir(tasks);
    } while (news);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    pid_t pid = atoi(argv[2]);
    int hang = !strcmp(argv[1], "hang");
    if (hang || !strncmp(argv[1], "freeze", 6)) {
        if (strcmp(argv[1], "freeze-one") ? freeze_all(pid) : freeze(pid)) return 1;
        puts("frozen");
        fflush(stdout);
        while (hang && waitpid(-1, 0, __WALL) > 0) continue;
        for (;;) pause();
    }
    if (ptrace(PTRACE_SEIZE, pid, 0, 0)) return 1;
    while (!strcmp(argv[1], "deaf")) pause();
    for (;;) {
        int status;
        if (waitpid(pid, &status, __WALL) < 0 || WIFEXITED(status) || WIFSIGNALED(status)) return 0;
        ptrace(PTRACE_CONT, pid, 0, status >> 16 ? 0 : WSTOPSIG(status));
    }
}
