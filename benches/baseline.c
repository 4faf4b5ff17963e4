/*
 * The floor under the benchmarks: the least a supervisor can do, in C, with nothing to configure and nothing kept.
 *
 *   baseline keep N WORKER ARGUMENT...
 *       spawns N workers (posix_spawn, each in a process group of its own, `-i bench/SLOT` as first arguments),
 *       spawns again what ends, and on SIGTERM signals every group and leaves when the last leader is reaped.
 *
 *   baseline copy FILE ROTATE_BYTES WORKER ARGUMENT...
 *       spawns one worker, reads its stdout in blocks of 64 KiB and appends them to FILE; at ROTATE_BYTES it rotates
 *       (FILE -> FILE.1 -> FILE.2 ...) at the last line end of the block. On SIGTERM it passes the signal on and
 *       leaves at the end of the pipe.
 *
 * What it does not do: logs of many workers, back-off, status, readiness, grandchildren, surviving its own death.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

_Noreturn static void die(const char *what, int error) {
    fprintf(stderr, "baseline: %s: %s\n", what, strerror(error));
    exit(1);
}

/* Spawns WORKER with `-i bench/SLOT` and no signal blocked; stdout_fd < 0: our own stdout. */
static pid_t spawn(int slot, int stdout_fd, char **command) {
    char id[32];
    snprintf(id, sizeof id, "bench/%d", slot);
    size_t words = 0;
    while (command[words] != NULL)
        words++;
    char *argv[words + 3];
    argv[0] = command[0];
    argv[1] = "-i";
    argv[2] = id;
    memcpy(argv + 3, command + 1, words * sizeof *argv); /* its terminating NULL too */

    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    if (stdout_fd >= 0)
        posix_spawn_file_actions_adddup2(&files, stdout_fd, STDOUT_FILENO);

    pid_t pid;
    int error = posix_spawn(&pid, command[0], &files, &attributes, argv, environ);
    if (error != 0)
        die(command[0], error);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    return pid;
}

/* --- keep -------------------------------------------------------------------------------------------------------- */

/* A linear search: at a thousand workers it takes a quarter of a microsecond. */
static int slot_of(pid_t pid, const pid_t *pids, int count) {
    for (int slot = 0; slot < count; slot++)
        if (pids[slot] == pid)
            return slot;
    return -1;
}

static void replace_the_dead(pid_t *pids, int count, char **command) {
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
        int slot = slot_of(pid, pids, count);
        if (slot >= 0)
            pids[slot] = spawn(slot, -1, command);
    }
}

static void stop_all(const pid_t *pids, int count) {
    for (int slot = 0; slot < count; slot++)
        kill(-pids[slot], SIGTERM);
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
}

static int keep(int count, char **command) {
    sigset_t news;
    sigemptyset(&news);
    sigaddset(&news, SIGCHLD);
    sigaddset(&news, SIGTERM);
    sigaddset(&news, SIGINT);
    sigprocmask(SIG_BLOCK, &news, NULL);

    pid_t *pids = calloc((size_t)count, sizeof *pids);
    if (pids == NULL)
        die("pids", errno);
    for (int slot = 0; slot < count; slot++)
        pids[slot] = spawn(slot, -1, command);
    for (;;) {
        switch (sigwaitinfo(&news, NULL)) {
        case SIGCHLD:
            replace_the_dead(pids, count, command);
            break;
        case SIGTERM:
        case SIGINT:
            stop_all(pids, count);
            free(pids);
            return 0;
        }
    }
}

/* --- copy -------------------------------------------------------------------------------------------------------- */

static volatile pid_t copied_worker;

static void pass_on(int signal) {
    int error = errno;
    kill(-copied_worker, signal);
    errno = error;
}

struct log {
    const char *path;
    int fd;
    size_t size, rotate_at;
    int rotated; /* files beside this one */
};

static void log_open(struct log *log) {
    log->fd = open(log->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (log->fd < 0)
        die(log->path, errno);
    log->size = 0;
}

static void log_append(struct log *log, const char *text, size_t size) {
    log->size += size;
    while (size > 0) {
        ssize_t written = write(log->fd, text, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            die(log->path, errno);
        text += written;
        size -= (size_t)written;
    }
}

static void log_rotate(struct log *log) {
    char from[4096], to[4096];
    for (int number = log->rotated++; number >= 0; number--) {
        snprintf(from, sizeof from, number > 0 ? "%s.%d" : "%s", log->path, number);
        snprintf(to, sizeof to, "%s.%d", log->path, number + 1);
        if (rename(from, to) < 0)
            die(from, errno);
    }
    close(log->fd);
    log_open(log);
}

/* A block without any line end goes where the line began: a line is never cut. */
static void log_block(struct log *log, const char *block, size_t size) {
    const char *newline = log->size + size >= log->rotate_at ? memrchr(block, '\n', size) : NULL;
    if (newline == NULL) {
        log_append(log, block, size);
        return;
    }
    size_t whole = (size_t)(newline + 1 - block);
    log_append(log, block, whole);
    log_rotate(log);
    log_append(log, block + whole, size - whole);
}

static int copy(struct log *log, char **command) {
    static char block[64 * 1024];
    int pipe_ends[2];
    if (pipe2(pipe_ends, O_CLOEXEC) < 0)
        die("pipe", errno);
    log_open(log);
    copied_worker = spawn(0, pipe_ends[1], command);
    close(pipe_ends[1]);
    struct sigaction action = { .sa_handler = pass_on, .sa_flags = SA_RESTART };
    sigaction(SIGTERM, &action, NULL);

    ssize_t size;
    while ((size = read(pipe_ends[0], block, sizeof block)) != 0) {
        if (size > 0)
            log_block(log, block, (size_t)size);
        else if (errno != EINTR)
            die("pipe", errno);
    }
    waitpid(copied_worker, NULL, 0);
    return 0;
}

/* --- main -------------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* whoever measures us may be killed; we leave with it */
    if (argc >= 4 && strcmp(argv[1], "keep") == 0 && atoi(argv[2]) > 0)
        return keep(atoi(argv[2]), argv + 3);
    if (argc >= 5 && strcmp(argv[1], "copy") == 0 && strtoull(argv[3], NULL, 10) > 0) {
        struct log log = { .path = argv[2], .rotate_at = strtoull(argv[3], NULL, 10) };
        return copy(&log, argv + 4);
    }
    fputs("usage: baseline keep N WORKER ARGUMENT... | copy FILE ROTATE_BYTES WORKER ARGUMENT...\n", stderr);
    return 2;
}
