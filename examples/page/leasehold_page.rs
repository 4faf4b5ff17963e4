//! May I still write? Read from the page that leasehold gives to a gated worker (LEASEHOLD_PAGE_FD): loads and two clock readings from
//! the vDSO, no system call. Copy this file; it needs `rustix` with the features `mm` and `time`.
#![expect(
    unsafe_code,
    reason = "memory that another process writes is mapped by hand"
)]

use std::{
    os::fd::{BorrowedFd, RawFd},
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
        fence,
    },
    time::Duration,
};

use rustix::{
    mm::{MapFlags, ProtFlags},
    time::{ClockId, clock_gettime},
};

/// Layout 1: a name, a sequence that is odd while the others are being written; the deadline on CLOCK_BOOTTIME and on
/// CLOCK_MONOTONIC_RAW in ns; fence, epoch, generation, role.
type Words = [AtomicU64; 8];

/// A mapped page; it stays mapped for as long as the process lives.
pub(crate) struct Page(&'static Words);

/// Who holds what, as it belongs together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    /// Names the holder; send it with every write.
    pub(crate) fence: u64,
    /// Grows when fences had to begin anew.
    pub(crate) epoch: u64,
    /// Which generation of the worker.
    pub(crate) generation: u64,
    /// 1 holder, 2 standby, 0 over.
    pub(crate) role: u64,
}

impl Page {
    /// None if leasehold gave none, or one of another layout.
    pub(crate) fn from_env() -> Option<Self> {
        let fd: RawFd = std::env::var("LEASEHOLD_PAGE_FD").ok()?.parse().ok()?;
        // SAFETY: leasehold left this descriptor open for us, and nobody here closes it.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let (length, shared) = (size_of::<Words>(), MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice; the page is sealed against shrinking, never unmapped by us, and
        // holds plain integers, which its writer changes atomically.
        let words: &'static Words = unsafe {
            let page =
                rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ, shared, fd, 0);
            &*page.ok()?.cast()
        };
        (words[0].load(Relaxed) == u64::from_ne_bytes(*b"LEASEPG1")).then_some(Self(words))
    }

    /// The lease and what is left of it: `Duration::MAX` without a deadline, zero when it is over. None if the writer was stopped in
    /// the middle: write nothing then.
    pub(crate) fn read(&self) -> Option<(Lease, Duration)> {
        let [_, sequence, words @ ..] = self.0;
        for _ in 0..1_000 {
            let before = sequence.load(Acquire);
            let [boottime, raw, fencing, epoch, generation, role] =
                words.each_ref().map(|word| word.load(Relaxed));
            fence(Acquire);
            if !before.is_multiple_of(2) || before != sequence.load(Relaxed) {
                continue;
            }
            let left = if boottime == u64::MAX && raw == u64::MAX {
                Duration::MAX
            } else {
                let boottime = boottime.saturating_sub(now(ClockId::Boottime));
                let raw = raw.saturating_sub(now(ClockId::MonotonicRaw));
                Duration::from_nanos(boottime.min(raw))
            };
            let lease = Lease {
                fence: fencing,
                epoch,
                generation,
                role,
            };
            return Some((lease, left));
        }
        None
    }
}

fn now(clock: ClockId) -> u64 {
    let t = clock_gettime(clock);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}
