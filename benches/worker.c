/*
 * The worker of the benchmarks: it reports that it has started, and then does as little as it can.
 *
 *   worker [-i ID] pause            wait for a signal
 *   worker [-i ID] flood BYTES WRITE_SIZE [RATE [exit]]
 *                                   on SIGUSR1 write numbered lines to stdout, then wait (or exit);
 *                                   RATE in bytes per second, 0 = as fast as it goes
 *   worker [-i ID] grandchildren    fork two children that a careless supervisor leaves behind
 *   worker exit                     exit 0 at once: what it costs to run any program at all
 *   worker [-i ID] watch FILE       notes when FILE is closed, which is an instant before a lock on it is free;
 *                                   says so on SIGUSR1, since a report at that instant would be in the way
 *   worker verify LINES FILE...     was each of a flood's lines kept exactly once, and whole?
 *
 * Reports are datagrams of text to the unix socket BENCH_SOCKET, times are CLOCK_BOOTTIME in nanoseconds:
 *
 *   start TIME PID ID FIRST            (at the top of main, and at the very first instruction)
 *   done TIME PID ID BEGIN BYTES       (flood: written from BEGIN to TIME)
 *   closed TIME PID ID                 (watch: the file was closed at TIME)
 *   told TIME PID ID                   (watch: these were all)
 *
 * Without -i the id is LEASEHOLD_FLEET/LEASEHOLD_SLOT.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* A line is a number of DIGITS digits, a blank, filler, a newline. */
enum { LINE = 100, DIGITS = 12, FILLER = LINE - DIGITS - 2 };

static const char *worker_id;

static void die(const char *what) {
    fprintf(stderr, "worker: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/*
 * The first thing that the process does, before the C library prepares itself: that asks the processor dozens of times what it can do
 * (CPUID), each of which costs microseconds in a virtual machine.
 */
struct timespec first_instruction_at;
#if defined(__x86_64__) && defined(__linux__)
__asm__(".globl first_instruction\n"
        "first_instruction:\n"
        "    movl $228, %eax\n" /* clock_gettime */
        "    movl $7, %edi\n"   /* CLOCK_BOOTTIME */
        "    leaq first_instruction_at(%rip), %rsi\n"
        "    syscall\n"
        "    jmp _start\n");
#endif

/* The kernel queues about ten datagrams for a reader; a report waits for its place, so none is lost. */
__attribute__((format(printf, 1, 2)))
static void report(const char *format, ...) {
    const char *path = getenv("BENCH_SOCKET");
    if (path == NULL)
        return;
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    if (strlen(path) >= sizeof to.sun_path) {
        errno = ENAMETOOLONG;
        die(path);
    }
    strcpy(to.sun_path, path);

    char text[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);

    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || sendto(fd, text, (size_t)length, 0, (struct sockaddr *)&to, sizeof to) < 0)
        die(path);
    close(fd);
}

static void report_start(uint64_t started_ns) {
    uint64_t first_ns = (uint64_t)first_instruction_at.tv_sec * 1000000000u + (uint64_t)first_instruction_at.tv_nsec;
    report("start %" PRIu64 " %d %s %" PRIu64, started_ns, (int)getpid(), worker_id, first_ns > 0 ? first_ns : started_ns);
}

_Noreturn static void wait_for_ever(void) {
    for (;;)
        pause();
}

/* --- flood ------------------------------------------------------------------------------------------------------- */

struct lines {
    char next[LINE];
    size_t taken; /* bytes of `next` already handed out */
};

static void lines_begin(struct lines *lines) {
    memset(lines->next, '0', DIGITS);
    lines->next[DIGITS] = ' ';
    memset(lines->next + DIGITS + 1, 'x', FILLER);
    lines->next[LINE - 1] = '\n';
    lines->taken = 0;
}

/* Writers of blocks do not stop at line ends, so a block begins and ends anywhere in a line. */
static void lines_take(struct lines *lines, char *block, size_t size) {
    while (size > 0) {
        size_t part = LINE - lines->taken < size ? LINE - lines->taken : size;
        memcpy(block, lines->next + lines->taken, part);
        block += part;
        size -= part;
        lines->taken += part;
        if (lines->taken == LINE) {
            lines->taken = 0;
            for (char *digit = lines->next + DIGITS - 1; ++*digit > '9'; digit--)
                *digit = '0';
        }
    }
}

static void write_all(const char *block, size_t size) {
    while (size > 0) {
        ssize_t written = write(STDOUT_FILENO, block, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            die("stdout");
        block += written;
        size -= (size_t)written;
    }
}

/* Sleeps only when a millisecond ahead: a timer for each write would cost more than the write. */
static void keep_pace(uint64_t begin_ns, uint64_t written, uint64_t rate) {
    uint64_t due_ns = begin_ns + (uint64_t)((double)written / (double)rate * 1e9);
    if (due_ns < now_ns() + 1000000)
        return;
    struct timespec due = { .tv_sec = (time_t)(due_ns / 1000000000u), .tv_nsec = (long)(due_ns % 1000000000u) };
    clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &due, NULL);
}

static void wait_for_go(uint64_t started_ns) {
    sigset_t go;
    sigemptyset(&go);
    sigaddset(&go, SIGUSR1);
    sigprocmask(SIG_BLOCK, &go, NULL);
    report_start(started_ns);
    while (sigwaitinfo(&go, NULL) != SIGUSR1)
        ;
}

static void flood(uint64_t bytes, size_t write_size, uint64_t rate, uint64_t started_ns) {
    bytes -= bytes % LINE;
    char *block = malloc(write_size);
    if (block == NULL)
        die("block");
    struct lines lines;
    lines_begin(&lines);

    wait_for_go(started_ns);
    uint64_t begin_ns = now_ns();
    for (uint64_t written = 0; written < bytes;) {
        size_t size = bytes - written < write_size ? (size_t)(bytes - written) : write_size;
        lines_take(&lines, block, size);
        write_all(block, size);
        written += size;
        if (rate > 0)
            keep_pace(begin_ns, written, rate);
    }
    report("done %" PRIu64 " %d %s %" PRIu64 " %" PRIu64, now_ns(), (int)getpid(), worker_id, begin_ns, bytes);
    free(block);
}

/* --- verify ------------------------------------------------------------------------------------------------------ */

struct verdict {
    uint64_t next; /* the number expected next */
    uint64_t lost, doubled, damaged;
};

static int is_number_and_filler(const char *line, uint64_t *number) {
    *number = 0;
    for (int i = 0; i < DIGITS; i++) {
        if (line[i] < '0' || line[i] > '9')
            return 0;
        *number = *number * 10 + (uint64_t)(line[i] - '0');
    }
    if (line[DIGITS] != ' ')
        return 0;
    for (int i = DIGITS + 1; i < LINE - 1; i++)
        if (line[i] != 'x')
            return 0;
    return 1;
}

/* A line cut in two by a rotation counts as two damaged ones: the rest of it heads the next file. */
static void verify_text(const char *text, const char *end, struct verdict *verdict) {
    while (text < end) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const char *stop = newline != NULL ? newline : end;
        uint64_t number;
        if (newline == NULL || stop - text != LINE - 1 || !is_number_and_filler(text, &number)) {
            verdict->damaged++;
        } else if (number < verdict->next) {
            verdict->doubled++;
        } else {
            verdict->lost += number - verdict->next;
            verdict->next = number + 1;
        }
        text = stop + 1;
    }
}

static void verify_file(const char *path, struct verdict *verdict) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat stat;
    if (fd < 0 || fstat(fd, &stat) < 0)
        die(path);
    if (stat.st_size > 0) {
        size_t size = (size_t)stat.st_size;
        char *text = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (text == MAP_FAILED)
            die(path);
        verify_text(text, text + size, verdict);
        munmap(text, size);
    }
    close(fd);
}

/* The files come in the order in which they were written; prints "LOST DOUBLED DAMAGED", in lines. */
static int verify(uint64_t lines, char **files) {
    struct verdict verdict = { 0 };
    for (; *files != NULL; files++)
        verify_file(*files, &verdict);
    if (verdict.next < lines)
        verdict.lost += lines - verdict.next;
    else
        verdict.doubled += verdict.next - lines; /* more than was ever written */
    printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", verdict.lost, verdict.doubled, verdict.damaged);
    return 0;
}

/* --- grandchildren ----------------------------------------------------------------------------------------------- */

/* One is deaf to SIGTERM in the worker's own group, the other has left group and session. */
static void fork_grandchildren(void) {
    int settled[2];
    if (pipe(settled) < 0)
        die("pipe");
    for (int detached = 0; detached < 2; detached++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0) {
            if (detached)
                setsid();
            else
                signal(SIGTERM, SIG_IGN);
            close(settled[0]);
            close(settled[1]);
            wait_for_ever();
        }
    }
    /* End of file when both have done what they were forked for: only then may the report go out. */
    char byte;
    close(settled[1]);
    while (read(settled[0], &byte, 1) < 0 && errno == EINTR)
        ;
    close(settled[0]);
}

/* --- watch ------------------------------------------------------------------------------------------------------- */

enum { CLOSES = 64 };

/* As quick as the machine allows: whoever is late here makes a takeover look faster than it was. */
static void watch(const char *path, uint64_t started_ns) {
    struct sched_param first = { .sched_priority = 1 };
    (void)sched_setscheduler(0, SCHED_FIFO, &first); /* root only */
    sigset_t tell;
    sigemptyset(&tell);
    sigaddset(&tell, SIGUSR1);
    sigprocmask(SIG_BLOCK, &tell, NULL);
    struct pollfd sources[2] = {
        { .fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK), .events = POLLIN },
        { .fd = signalfd(-1, &tell, SFD_CLOEXEC | SFD_NONBLOCK), .events = POLLIN },
    };
    if (inotify_add_watch(sources[0].fd, path, IN_CLOSE) < 0 || sources[1].fd < 0)
        die(path);
    report_start(started_ns);

    uint64_t closed[CLOSES];
    int count = 0;
    while (poll(sources, 2, -1) > 0 || errno == EINTR) {
        uint64_t now = now_ns();
        char events[4096];
        ssize_t size = sources[0].revents != 0 ? read(sources[0].fd, events, sizeof events) : 0;
        /* Without a name each event is as long as its head; two that wait were not told apart by the clock either. */
        if (size > 0 && count < CLOSES)
            closed[count++] = now;
        if (sources[1].revents == 0)
            continue;
        struct signalfd_siginfo asked;
        if (read(sources[1].fd, &asked, sizeof asked) < 0)
            continue;
        for (int i = 0; i < count; i++)
            report("closed %" PRIu64 " %d %s", closed[i], (int)getpid(), worker_id);
        report("told %" PRIu64 " %d %s", now, (int)getpid(), worker_id);
        count = 0;
    }
    die("poll");
}

/* --- main -------------------------------------------------------------------------------------------------------- */

static const char *id_from_environment(void) {
    static char id[128];
    const char *fleet = getenv("LEASEHOLD_FLEET"), *slot = getenv("LEASEHOLD_SLOT");
    snprintf(id, sizeof id, "%s/%s", fleet != NULL ? fleet : "-", slot != NULL ? slot : "-");
    return id;
}

static int usage(void) {
    fputs("usage: worker [-i ID] pause | flood BYTES WRITE_SIZE [RATE [exit]] | grandchildren | watch FILE\n"
          "       worker exit | verify LINES FILE...\n", stderr);
    return 2;
}

int main(int argc, char **argv) {
    uint64_t started_ns = now_ns();
    char **words = argv + 1;
    if (argc > 2 && strcmp(words[0], "-i") == 0) {
        worker_id = words[1];
        words += 2;
    } else {
        worker_id = id_from_environment();
    }
    int count = (int)(argv + argc - words);
    const char *mode = count > 0 ? words[0] : "";

    if (strcmp(mode, "exit") == 0)
        return 0;
    if (strcmp(mode, "verify") == 0 && count >= 2)
        return verify(strtoull(words[1], NULL, 10), words + 2);
    if (strcmp(mode, "pause") == 0) {
        report_start(started_ns);
        wait_for_ever();
    }
    if (strcmp(mode, "grandchildren") == 0) {
        fork_grandchildren();
        report_start(started_ns);
        wait_for_ever();
    }
    if (strcmp(mode, "watch") == 0 && count == 2)
        watch(words[1], started_ns);
    if (strcmp(mode, "flood") == 0 && count >= 3 && strtoull(words[2], NULL, 10) > 0) {
        uint64_t rate = count > 3 ? strtoull(words[3], NULL, 10) : 0;
        flood(strtoull(words[1], NULL, 10), strtoull(words[2], NULL, 10), rate, started_ns);
        if (count > 4 && strcmp(words[4], "exit") == 0)
            return 0;
        wait_for_ever();
    }
    return usage();
}
