/* May I still write? Read from the page that leasehold gives to a gated worker (LEASEHOLD_PAGE_FD): loads and two clock readings from
 * the vDSO, no system call. A write must be over before the deadline: ask for as much time as it may take.
 *
 *     const struct leasehold_page *page = leasehold_page_map();      // NULL: not started by leasehold, or an unknown layout
 *     uint64_t left = leasehold_page_left(page, NULL);               // ns; 0: write nothing any more
 *
 * Layout 1: eight native 64-bit words. Everything but the first two is zero for ever once the worker's generation has ended. */
#ifndef LEASEHOLD_PAGE_H
#define LEASEHOLD_PAGE_H

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

struct leasehold_page {
    char name[8];              /* "LEASEPG1" */
    _Atomic uint64_t sequence; /* odd while it is being written */
    _Atomic uint64_t until[2]; /* CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, in ns: over as soon as either is reached */
    _Atomic uint64_t fence, epoch, generation, role;
};

/* Copy this out if you need more than the deadline: the words belong together. */
struct leasehold_lease {
    uint64_t fence, epoch, generation, role; /* role: 1 holder, 2 standby, 0 over */
};

static inline const struct leasehold_page *leasehold_page_map(void) {
    const char *fd = getenv("LEASEHOLD_PAGE_FD");
    void *page = fd ? mmap(NULL, sizeof(struct leasehold_page), PROT_READ, MAP_SHARED, atoi(fd), 0) : MAP_FAILED;
    if (page == MAP_FAILED || memcmp(page, "LEASEPG1", 8) != 0) return NULL;
    return page;
}

static inline uint64_t leasehold_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Nanoseconds that are left; UINT64_MAX without a deadline; 0 when it is over, or when the page could not be read whole (its writer
 * was stopped in the middle). */
static inline uint64_t leasehold_page_left(const struct leasehold_page *page, struct leasehold_lease *lease) {
    for (int tries = 0; page && tries < 1000; tries++) {
        uint64_t before = atomic_load_explicit(&page->sequence, memory_order_acquire);
        uint64_t boottime = atomic_load_explicit(&page->until[0], memory_order_relaxed);
        uint64_t raw = atomic_load_explicit(&page->until[1], memory_order_relaxed);
        struct leasehold_lease copy = {
            atomic_load_explicit(&page->fence, memory_order_relaxed),
            atomic_load_explicit(&page->epoch, memory_order_relaxed),
            atomic_load_explicit(&page->generation, memory_order_relaxed),
            atomic_load_explicit(&page->role, memory_order_relaxed),
        };
        atomic_thread_fence(memory_order_acquire);
        if (before % 2 || before != atomic_load_explicit(&page->sequence, memory_order_relaxed)) continue;
        if (lease) *lease = copy;
        if (boottime == UINT64_MAX && raw == UINT64_MAX) return UINT64_MAX;
        uint64_t now = leasehold_clock(CLOCK_BOOTTIME), now_raw = leasehold_clock(CLOCK_MONOTONIC_RAW);
        if (now >= boottime || now_raw >= raw) return 0;
        return boottime - now < raw - now_raw ? boottime - now : raw - now_raw;
    }
    return 0;
}

#endif
