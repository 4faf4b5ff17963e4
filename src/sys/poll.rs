//! epoll with a number per source.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::event::{Timespec, epoll};

pub use rustix::event::epoll::EventFlags;

use crate::time::Span;

/// An epoll instance.
pub struct Poll {
    epoll: OwnedFd,
    buffer: Vec<epoll::Event>,
}

impl Poll {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            buffer: Vec::with_capacity(256),
        })
    }

    /// Watches `source` under `token`.
    pub fn add(&self, source: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            source,
            epoll::EventData::new_u64(token),
            flags,
        )?)
    }

    /// Watches it for something else.
    pub fn modify(&self, source: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            source,
            epoll::EventData::new_u64(token),
            flags,
        )?)
    }

    /// Stops watching. Must come before the source is closed: a copy of it may live on in a child.
    pub fn remove(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, source)?)
    }

    /// Waits for at most `timeout` (none: for ever) and returns the tokens that are ready with their flags.
    pub fn wait(&mut self, timeout: Option<Span>) -> io::Result<Vec<(u64, EventFlags)>> {
        let limit = timeout.map(|span| Timespec {
            tv_sec: (span.as_nanos() / 1_000_000_000) as i64,
            tv_nsec: (span.as_nanos() % 1_000_000_000) as i64,
        });
        self.buffer.clear();
        match wait_precise(&self.epoll, &mut self.buffer, limit.as_ref()) {
            Ok(()) => {}
            Err(rustix::io::Errno::INTR) => self.buffer.clear(),
            Err(e) => return Err(e.into()),
        }
        Ok(self
            .buffer
            .iter()
            .map(|event| (event.data.u64(), event.flags))
            .collect())
    }
}

/// rustix waits with epoll_pwait2 where the kernel has it and rounds up to milliseconds elsewhere.
fn wait_precise(
    epoll: &OwnedFd,
    buffer: &mut Vec<epoll::Event>,
    limit: Option<&Timespec>,
) -> rustix::io::Result<()> {
    epoll::wait(epoll, rustix::buffer::spare_capacity(buffer), limit).map(|_| ())
}

/// Waits for a moment where there is nothing to wait for.
pub fn pause(span: Span) {
    if let Ok(mut nothing) = Poll::new() {
        let _ = nothing.wait(Some(span));
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
