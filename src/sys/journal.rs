//! systemd's journal: one datagram an entry, in its native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketFlags, SocketType, connect, send, sendmsg, socket_with,
    },
};

use crate::{
    sys::{
        memfd,
        poll::{EventFlags, Poll},
    },
    time::Span,
};

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// A socket connected to journald's. Connected, because only then it can be waited for until there is room in journald's queue.
#[derive(Debug)]
pub struct JournalSocket(OwnedFd);

impl JournalSocket {
    /// Connects; fails if nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// Sends one entry, whole or not at all; `WouldBlock` means that journald has not read what it has.
    pub fn send(&self, entry: &[u8]) -> io::Result<()> {
        match send(&self.0, entry, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => Ok(()),
            // Larger than a datagram can be: it travels as a file that nobody can change any more.
            Err(Errno::MSGSIZE) => self.send_file(memfd::sealed("leasehold-journal", entry)?),
            Err(e) => Err(e.into()),
        }
    }

    fn send_file(&self, file: OwnedFd) -> io::Result<()> {
        let fds = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        debug_assert!(fits, "the space was made for one descriptor");
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.0, &[IoSlice::new(&[])], &mut ancillary, flags)?;
        Ok(())
    }

    /// Waits until an entry may be sent; false if that took longer than `limit`.
    pub fn wait_for_room(&self, limit: Span) -> io::Result<bool> {
        let mut poll = Poll::new()?;
        poll.add(&self.0, 0, EventFlags::OUT)?;
        Ok(!poll.wait(Some(limit))?.is_empty())
    }
}

impl AsFd for JournalSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
