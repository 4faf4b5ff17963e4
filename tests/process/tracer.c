/* Traces a process. `polite`: hears of all that happens to it, as strace does. `deaf`: never listens, as a debugger that was stopped. */
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    pid_t pid = atoi(argv[2]);
    if (ptrace(PTRACE_SEIZE, pid, 0, 0)) return 1;
    while (!strcmp(argv[1], "deaf")) pause();
    for (;;) {
        int status;
        if (waitpid(pid, &status, __WALL) < 0 || WIFEXITED(status) || WIFSIGNALED(status)) return 0;
        ptrace(PTRACE_CONT, pid, 0, status >> 16 ? 0 : WSTOPSIG(status));
    }
}
