//! The supervisor's end of the wire: packets of requests, in order, whole.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::event::{PollFd, PollFlags};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    driver::boot::Request,
    sys::packet::{self, Packet, Received},
    wire::{self, Op, PACKET_FDS_MAX, PACKET_MAX},
};

/// The descriptor under which the keeper passes it.
const LINK_FD: i32 = 3;
/// The one to its deadline thread.
const DEADLINES_FD: i32 = 4;

/// A full socket that cannot be watched is tried again after this.
const TRY_AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

/// One packet to be sent.
struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

pub(super) struct Link {
    /// Watched for what comes alone: that it takes more would be told after every packet that the keeper reads.
    socket: AsyncFd<OwnedFd>,
    outbox: VecDeque<Outgoing>,
}

impl Link {
    /// Takes over descriptor 3. Call it once, first of all.
    pub(super) fn inherited() -> io::Result<Self> {
        Ok(Self {
            socket: watched(adopt(LINK_FD)?)?,
            outbox: VecDeque::new(),
        })
    }

    /// Waits for packets; an empty list means that the keeper is gone.
    pub(super) async fn receive(&self) -> io::Result<Vec<Packet>> {
        loop {
            let mut guard = self.socket.readable().await?;
            let mut packets = Vec::new();
            // Bounded, so that a storm of news does not starve the rest of the loop.
            while packets.len() < 16 {
                match packet::receive(self.socket.get_ref())? {
                    Received::Packet(packet) => packets.push(packet),
                    Received::Empty => {
                        guard.clear_ready();
                        break;
                    }
                    Received::Closed => return Ok(packets),
                }
            }
            if !packets.is_empty() {
                return Ok(packets);
            }
        }
    }

    /// Queues requests that belong together: one packet, unless they are too many for one.
    pub(super) fn push(&mut self, ops: Vec<Request>) {
        let mut batch: Vec<Op> = Vec::new();
        let mut fds: Vec<OwnedFd> = Vec::new();
        let mut size = 0;
        for (op, fd) in ops {
            let estimate = weight(&op);
            if !batch.is_empty() && (size + estimate > PACKET_MAX || fds.len() + 1 > PACKET_FDS_MAX)
            {
                self.outbox.push_back(Outgoing {
                    bytes: wire::encode(&batch),
                    fds: std::mem::take(&mut fds),
                });
                batch.clear();
                size = 0;
            }
            size += estimate;
            batch.push(op);
            fds.extend(fd);
        }
        if !batch.is_empty() {
            self.outbox.push_back(Outgoing {
                bytes: wire::encode(&batch),
                fds,
            });
        }
    }

    /// Sends what the socket takes now; true if nothing is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while let Some(next) = self.outbox.front() {
            let fds: Vec<BorrowedFd<'_>> = next.fds.iter().map(AsFd::as_fd).collect();
            match packet::send(self.socket.get_ref(), &next.bytes, &fds) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Sends everything, for as long as the keeper lives.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        while !self.flush()? {
            let mut ready = [PollFd::new(self.socket.get_ref(), PollFlags::OUT)];
            match rustix::event::poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Is something still waiting to be sent?
    pub(super) fn is_blocked(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Waits until the socket takes more.
    pub(super) async fn writable(&self) {
        let copy = self.socket.get_ref().try_clone();
        match copy.and_then(|copy| watched_for(copy, Interest::WRITABLE)) {
            Ok(copy) => {
                let _ = copy.writable().await;
            }
            // Out of descriptors: it is tried again, as it is whenever anything else happens.
            Err(_) => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}

/// The wire to the keeper's deadline thread. Call it once, early.
pub(super) fn inherited_deadlines() -> io::Result<AsyncFd<OwnedFd>> {
    watched(adopt(DEADLINES_FD)?)
}

/// Takes over a descriptor that the keeper passed to us.
#[expect(
    unsafe_code,
    reason = "a descriptor inherited by number can only be adopted unsafely"
)]
fn adopt(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl touches no memory; it answers EBADF if nothing is there.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::other(
            "there is no keeper: this command is started by `leasehold run` alone",
        ));
    }
    // SAFETY: the descriptor is open, was passed to us to own, and nothing in this process has touched it yet.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor that the runtime watches for something to read.
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watched_for(fd, Interest::READABLE)
}

#[expect(
    unsafe_code,
    reason = "AsyncFd asks that the descriptor stays the same while it is registered"
)]
fn watched_for(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd answers with the same open descriptor for as long as it lives, and AsyncFd owns it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(|error| io::Error::other(error.to_string()))
}

/// About how many bytes it takes.
fn weight(op: &Op) -> usize {
    let fixed = 128;
    match op {
        Op::Put { body, .. }
        | Op::Signal { body, .. }
        | Op::Kill { body, .. }
        | Op::Forget { body, .. }
        | Op::Promote { body, .. } => fixed + body.len(),
        Op::Spawn { body, spec, .. } => {
            let texts = |list: &[String]| list.iter().map(|text| text.len() + 2).sum::<usize>();
            fixed * 2 + body.len() + texts(&spec.argv) + texts(&spec.env) + texts(&spec.pass)
        }
        Op::Notify { text } => fixed + text.len(),
        Op::Drop { .. }
        | Op::Stop { .. }
        | Op::Hold { .. }
        | Op::Release { .. }
        | Op::Pong { .. }
        | Op::Echo { .. }
        | Op::Exit { .. } => fixed,
    }
}
