//! The keeper's end of the wire to one supervisor incarnation. Never blocks, never queues more than the first telling.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::{
    sys::packet::{self, Packet, Received},
    wire::{self, News, PACKET_FDS_MAX},
};

/// Messages in one packet at most; a row with its body is below a kilobyte on average.
const MESSAGES_MAX: usize = 128;

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    /// The first telling, encoded: packets with the descriptors that go with them.
    first: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    blocked: bool,
}

impl Link {
    /// Begins with a full telling: `news` in order, then every held descriptor, then `Caught`.
    pub(super) fn new(
        socket: OwnedFd,
        welcome: News,
        rows: &[News],
        held: Vec<(String, OwnedFd)>,
    ) -> Self {
        let mut first = VecDeque::new();
        first.push_back((wire::encode(&[welcome]), Vec::new()));
        let mut held = held.into_iter().peekable();
        while held.peek().is_some() {
            let (names, fds): (Vec<String>, Vec<OwnedFd>) =
                held.by_ref().take(PACKET_FDS_MAX).unzip();
            let messages: Vec<News> = names.into_iter().map(|name| News::Held { name }).collect();
            first.push_back((wire::encode(&messages), fds));
        }
        for chunk in rows.chunks(MESSAGES_MAX) {
            first.push_back((wire::encode(chunk), Vec::new()));
        }
        first.push_back((wire::encode(&[News::Caught]), Vec::new()));
        Self {
            socket,
            first,
            blocked: false,
        }
    }

    /// Sends what it can of the first telling; true once all of it is out.
    fn flush_first(&mut self) -> io::Result<bool> {
        while let Some((bytes, fds)) = self.first.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            if !self.try_send_raw(bytes, &borrowed)? {
                self.blocked = true;
                return Ok(false);
            }
            self.first.pop_front();
        }
        Ok(true)
    }

    /// Sends news taken from `source` until it is dry or the socket is full. What was taken and could not be sent is kept.
    pub(super) fn pump(&mut self, mut source: impl FnMut(usize) -> Vec<News>) -> io::Result<()> {
        self.blocked = false;
        if !self.flush_first()? {
            return Ok(());
        }
        loop {
            let news = source(MESSAGES_MAX);
            if news.is_empty() {
                return Ok(());
            }
            self.first.push_back((wire::encode(&news), Vec::new()));
            if !self.flush_first()? {
                return Ok(());
            }
        }
    }

    /// The socket was full: to be pumped again when it can take more.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The next packet, if there is one.
    pub(super) fn receive(&self) -> io::Result<Option<Packet>> {
        match packet::receive(&self.socket)? {
            Received::Packet(packet) => Ok(Some(packet)),
            Received::Empty | Received::Closed => Ok(None),
        }
    }

    fn try_send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
        match packet::send(&self.socket, bytes, fds) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            // It is gone; its pidfd will say so.
            Err(e)
                if e.raw_os_error() == Some(libc::EPIPE)
                    || e.raw_os_error() == Some(libc::ECONNRESET) =>
            {
                Ok(true)
            }
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
