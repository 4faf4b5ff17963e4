//! The keeper's end of the wire to one supervisor incarnation. Never blocks; what it queues is bounded by
//! the first telling and one batch of news, since rows that changed twice are told once.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::{
    sys::packet::{self, Packet, Received},
    wire::{self, News, PACKET_FDS_MAX},
};

/// Messages in one packet at most; a row with its body is below a kilobyte on average.
const MESSAGES_MAX: usize = 128;

/// One packet to be sent.
#[derive(Debug)]
enum Outgoing {
    /// Messages, encoded.
    Messages(Vec<u8>),
    /// These descriptors, by the names under which they are held when it is sent.
    Held(Vec<String>),
}

/// What the keeper holds, by name.
pub(super) type Held = BTreeMap<String, OwnedFd>;

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    queue: VecDeque<Outgoing>,
    blocked: bool,
}

impl Link {
    /// Begins with a full telling: welcome, every held descriptor, the rows, then `Caught`.
    pub(super) fn new(socket: OwnedFd, welcome: News, rows: &[News], held: &Held) -> Self {
        let names: Vec<String> = held.keys().cloned().collect();
        let mut queue = VecDeque::from([Outgoing::Messages(wire::encode(&[welcome]))]);
        queue.extend(
            names
                .chunks(PACKET_FDS_MAX)
                .map(|names| Outgoing::Held(names.to_vec())),
        );
        queue.extend(
            rows.chunks(MESSAGES_MAX)
                .map(|rows| Outgoing::Messages(wire::encode(rows))),
        );
        queue.push_back(Outgoing::Messages(wire::encode(&[News::Caught])));
        Self {
            socket,
            queue,
            blocked: false,
        }
    }

    /// Queues a message behind everything that waits.
    pub(super) fn push(&mut self, news: News) {
        self.queue
            .push_back(Outgoing::Messages(wire::encode(&[news])));
    }

    /// Sends what it can of the queue; true once all of it is out.
    fn flush(&mut self, held: &Held) -> io::Result<bool> {
        while let Some(next) = self.queue.front() {
            let sent = match next {
                Outgoing::Messages(bytes) => self.try_send(bytes, &[])?,
                Outgoing::Held(names) => {
                    // Borrowed, not duplicated: the kernel makes the receiver's copies, and ours may be the last ones we can have.
                    let there = names
                        .iter()
                        .filter_map(|name| Some((name, held.get(name)?.as_fd())));
                    let (names, fds): (Vec<&String>, Vec<BorrowedFd<'_>>) = there.unzip();
                    let news: Vec<News> = names
                        .into_iter()
                        .map(|name| News::Held { name: name.clone() })
                        .collect();
                    self.try_send(&wire::encode(&news), &fds)?
                }
            };
            if !sent {
                self.blocked = true;
                return Ok(false);
            }
            self.queue.pop_front();
        }
        Ok(true)
    }

    /// Sends news taken from `source` until it is dry or the socket is full. What was taken and could not be sent is kept.
    pub(super) fn pump(
        &mut self,
        held: &Held,
        mut source: impl FnMut(usize) -> Vec<News>,
    ) -> io::Result<()> {
        self.blocked = false;
        while self.flush(held)? {
            let news = source(MESSAGES_MAX);
            if news.is_empty() {
                return Ok(());
            }
            self.queue
                .push_back(Outgoing::Messages(wire::encode(&news)));
        }
        Ok(())
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

    fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
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
