//! The lease page: one page of memory that the keeper writes and a gated worker reads, to learn without a system call whether it may
//! still write to what its gate protects.
//!
//! A sealed memfd, one per generation. Eight native 64-bit words, of which the first is the layout's name:
//!
//! | byte | word |
//! | --- | --- |
//! | 0 | `LEASEPG1` |
//! | 8 | sequence: odd while the keeper writes, another even number afterwards |
//! | 16 | the deadline on CLOCK_BOOTTIME, in ns; all ones: none |
//! | 24 | the deadline on CLOCK_MONOTONIC_RAW, in ns |
//! | 32 | fence |
//! | 40 | epoch |
//! | 48 | generation |
//! | 56 | role: 1 holder, 2 standby |
//!
//! It is over as soon as either clock has reached its deadline. A standby's is over from the beginning, and its fence 0, until it is
//! promoted to holder in the same page. When the generation has ended, everything but name and sequence is zero for ever, which reads as
//! a deadline long past. Readers are under `examples/page/`.
#![expect(
    unsafe_code,
    reason = "memory that is shared with another process is mapped and dereferenced by address"
)]

use std::{
    io,
    os::fd::OwnedFd,
    ptr::{self, NonNull},
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
        fence,
    },
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    mm::{Advice, MapFlags, ProtFlags},
};

use crate::time::{Clocks, Moment};

/// The first word.
const NAME: u64 = u64::from_ne_bytes(*b"LEASEPG1");
/// How long it is; a multiple of every page size in use.
const BYTES: usize = 65_536;
/// A reader gives up after so many tries: a writer that was stopped in the middle leaves the sequence odd.
const TRIES: u32 = 1_000;

/// What a page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// When it is over.
    pub until: Clocks,
    /// Names the holder; grows with every holder.
    pub fence: u64,
    /// Grows when fences had to begin anew.
    pub epoch: u64,
    /// Which generation of the worker.
    pub generation: u64,
    /// 1 holder, 2 standby, 0 none any more.
    pub role: u64,
}

impl Contents {
    /// Of a generation that has ended.
    pub const OVER: Self = Self {
        until: Clocks {
            boottime: Moment(0),
            raw: Moment(0),
        },
        fence: 0,
        epoch: 0,
        generation: 0,
        role: 0,
    };
}

/// A page as it lies in memory.
#[repr(C)]
#[derive(Debug)]
pub struct Words {
    name: AtomicU64,
    sequence: AtomicU64,
    until_boottime: AtomicU64,
    until_raw: AtomicU64,
    fence: AtomicU64,
    epoch: AtomicU64,
    generation: AtomicU64,
    role: AtomicU64,
}

impl Words {
    /// Replaces everything. One writer at a time.
    pub fn write(&self, contents: &Contents) {
        self.change(|| {
            self.store_until(contents.until);
            self.fence.store(contents.fence, Relaxed);
            self.epoch.store(contents.epoch, Relaxed);
            self.generation.store(contents.generation, Relaxed);
            self.role.store(contents.role, Relaxed);
        });
    }

    /// Replaces the deadline. One writer at a time.
    pub fn extend(&self, until: Clocks) {
        self.change(|| self.store_until(until));
    }

    /// What it says; none if it is no page of this layout, or its writer stopped in the middle.
    pub fn read(&self) -> Option<Contents> {
        if self.name.load(Relaxed) != NAME {
            return None;
        }
        for _ in 0..TRIES {
            let before = self.sequence.load(Acquire);
            let contents = Contents {
                until: Clocks {
                    boottime: Moment(self.until_boottime.load(Relaxed)),
                    raw: Moment(self.until_raw.load(Relaxed)),
                },
                fence: self.fence.load(Relaxed),
                epoch: self.epoch.load(Relaxed),
                generation: self.generation.load(Relaxed),
                role: self.role.load(Relaxed),
            };
            fence(Acquire);
            if before.is_multiple_of(2) && before == self.sequence.load(Relaxed) {
                return Some(contents);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// The writer's side of a seqlock (Boehm, "Can seqlocks get along with programming language memory models?", 2012).
    fn change(&self, stores: impl FnOnce()) {
        let before = self.sequence.load(Relaxed);
        self.sequence.store(before + 1, Relaxed);
        fence(Release);
        stores();
        self.sequence.store(before + 2, Release);
    }

    fn store_until(&self, until: Clocks) {
        self.until_boottime.store(until.boottime.0, Relaxed);
        self.until_raw.store(until.raw.0, Relaxed);
    }
}

/// The keeper's mapping of a page. What it says when it is dropped stays; see [`Contents::OVER`].
#[derive(Debug)]
pub struct Page {
    words: NonNull<Words>,
}

impl Page {
    /// A page, and the descriptor through which others can read it and nobody can write it (F_SEAL_FUTURE_WRITE, since Linux 5.1).
    pub fn new(contents: &Contents) -> io::Result<(Self, OwnedFd)> {
        let fd = memfd_create(
            "leasehold-page",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        ftruncate(&fd, BYTES as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice, which nothing refers to yet.
        let address = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        let page = Self {
            words: NonNull::new(address.cast())
                .ok_or_else(|| io::Error::other("mapped at address zero"))?,
        };
        // SAFETY: the mapping is ours and whole; a child gets no copy of it, and it is never swapped out (where we may say so).
        unsafe {
            rustix::mm::madvise(address, BYTES, Advice::LinuxDontFork)?;
            let _ = rustix::mm::mlock(address, size_of::<Words>());
        }
        page.words().name.store(NAME, Relaxed);
        page.words().write(contents);
        fcntl_add_seals(
            &fd,
            SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        Ok((page, fd))
    }

    /// Its memory.
    pub fn words(&self) -> &Words {
        // SAFETY: the mapping is at least as long and as aligned as `Words`, lives as long as `self`, and everything in it is atomic,
        // whatever is stored there; other processes may only read it.
        unsafe { self.words.as_ref() }
    }
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only reached through atomics.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and `words` lends it for no longer than `self` lives.
        let _ = unsafe { rustix::mm::munmap(self.words.as_ptr().cast(), BYTES) };
    }
}
