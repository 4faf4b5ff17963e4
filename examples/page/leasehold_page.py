"""May I still write? Read from the page that leasehold gives to a gated worker (LEASEHOLD_PAGE_FD).

    page = leasehold_page.Page()
    if page.left() > 0.5:       # a write that takes no more than half a second
        write(fence=page.lease().fence)

A worker that is started before its lock is had (`warm = true`) gets ready, reads, and waits:

    lease = page.lead()         # returns when it holds what its gate protects

Run by itself it says what the page says; exit code 0 while it may write, 1 when it may not.
"""

import collections
import mmap
import os
import struct
import sys
import time

Lease = collections.namedtuple("Lease", "boottime raw fence epoch generation role")
OVER = Lease(0, 0, 0, 0, 0, 0)
NEVER = 2**64 - 1
HOLDER, STANDBY = 1, 2


class Page:
    """Layout 1: eight native 64-bit words: a name, a sequence that is odd while the others are being written, and a `Lease`."""

    def __init__(self, fd=None):
        fd = int(os.environ["LEASEHOLD_PAGE_FD"]) if fd is None else fd
        self._page = mmap.mmap(fd, 64, mmap.MAP_SHARED, mmap.PROT_READ)
        if self._page[:8] != b"LEASEPG1":
            raise ValueError("a lease page of another layout")

    def lease(self):
        """All words as they belong together; OVER if the writer was stopped in the middle."""
        words = struct.Struct("=7Q")
        for _ in range(1000):
            before, *lease = words.unpack_from(self._page, 8)
            if before % 2 == 0 and before == words.unpack_from(self._page, 8)[0]:
                return Lease(*lease)
        return OVER

    def lead(self, pause=0.005):
        """Waits until it is the holder; for ever, if it never is."""
        while (lease := self.lease()).role != HOLDER or self.left() == 0:
            time.sleep(pause)
        return lease

    def left(self):
        """Seconds that are left: infinite without a deadline, 0 when it is over."""
        lease = self.lease()
        if lease.boottime == lease.raw == NEVER:
            return float("inf")
        boottime = lease.boottime - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        raw = lease.raw - time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        return max(0, min(boottime, raw)) / 1e9


if __name__ == "__main__":
    page = Page()
    left, lease = page.left(), page.lease()
    if left == 0:
        print("no")
        sys.exit(1)
    more = "" if left == float("inf") else f" left_ms {int(left * 1000)}"
    print(f"yes fence {lease.fence} epoch {lease.epoch} generation {lease.generation} role {lease.role}{more}")
