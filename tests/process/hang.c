/* hang DIR PROGRAM...: runs the program in a mount namespace of its own, in which whatever looks into DIR hangs from the moment on at which
 * DIR/hang-now is made, until DIR/../hung is removed: a file system in user space that nobody serves. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    if (unshare(CLONE_NEWNS) || mount("none", "/", 0, MS_REC | MS_PRIVATE, 0)) return 99;
    int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fuse < 0) return 99;
    pid_t keeper = getpid(), between = fork();
    if (between == 0) {
        /* No child of the program's, which would end it. */
        if (fork()) _exit(0);
        char now[4096], hung[4096], options[200];
        snprintf(now, sizeof now, "%s/hang-now", argv[1]);
        snprintf(hung, sizeof hung, "%s/../hung", argv[1]);
        while (access(now, F_OK)) {
            if (kill(keeper, 0)) _exit(0);
            usleep(1000);
        }
        snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
        if (mount("hung", argv[1], "fuse", 0, options)) _exit(1);
        close(open(hung, O_CREAT | O_WRONLY, 0666));
        while (!access(hung, F_OK) && !kill(keeper, 0)) usleep(1000);
        /* Whoever hangs hears ENOTCONN. */
        _exit(0);
    }
    waitpid(between, 0, 0);
    close(fuse);
    execv(argv[2], argv + 2);
    return 1;
}
