//! systemd's journal as a place for lines: what an entry says, and the one way there that all streams share.

use std::{io, path::PathBuf};

use crate::{
    logs::capture::{Author, Source},
    sys::{
        clock,
        journal::JournalSocket,
        poll::{EventFlags, Poll},
    },
    time::{Moment, Span},
};

/// A journal that takes nothing is tried again after this long; one that is only full says itself when it has room.
const RETRY: Span = Span::secs(1);
/// Priorities of syslog(3). Not "error" for stderr: programs write much there that is none.
const STDOUT: u8 = 6;
const STDERR: u8 = 4;

/// The way to the journal.
pub(super) struct Journal {
    path: PathBuf,
    socket: Option<JournalSocket>,
    /// Is the socket known to the poll that says when there is room, and is that to be said?
    watched: bool,
    armed: bool,
    /// Nothing is tried before then, unless there is room sooner.
    closed_until: Moment,
    full_since: Option<Moment>,
    /// Why it takes nothing, if that has not passed by itself within a moment.
    pub(super) failing: Option<String>,
    entry: Vec<u8>,
}

impl Journal {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            socket: None,
            watched: false,
            armed: false,
            closed_until: Moment::default(),
            full_since: None,
            failing: None,
            entry: Vec::new(),
        }
    }

    /// Until when it need not be asked; none if it may take something now.
    pub(super) fn closed(&mut self, now: Moment) -> Option<Moment> {
        if now >= self.closed_until {
            return None;
        }
        if let Some(since) = self.full_since
            && now >= since.after(RETRY)
            && self.failing.is_none()
        {
            let path = self.path.display();
            self.failing = Some(format!("{path} is full, journald does not read it"));
        }
        Some(self.closed_until)
    }

    /// Sends what `write` makes.
    pub(super) fn send(&mut self, now: Moment, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        if now < self.closed_until {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.entry.clear();
        write(&mut self.entry);
        let mut fresh = false;
        loop {
            let socket = match &self.socket {
                Some(socket) => socket,
                None => {
                    fresh = true;
                    (self.watched, self.armed) = (false, false);
                    match JournalSocket::connect(&self.path) {
                        Ok(socket) => self.socket.insert(socket),
                        Err(error) => return Err(self.refused(error, now)),
                    }
                }
            };
            match socket.send(&self.entry) {
                Ok(()) => {
                    self.full_since = None;
                    self.failing = None;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.full_since.get_or_insert(now);
                    self.closed_until = now.after(RETRY);
                    return Err(error);
                }
                // A journald that took another's place has another socket.
                Err(_) if !fresh => self.socket = None,
                Err(error) => return Err(self.refused(error, now)),
            }
        }
    }

    fn refused(&mut self, error: io::Error, now: Moment) -> io::Error {
        self.socket = None;
        self.full_since = None;
        self.closed_until = now.after(RETRY);
        self.failing = Some(format!("{}: {error}", self.path.display()));
        error
    }

    /// Has `poll` say once under `token` that there is room, if it is full.
    pub(super) fn watch(&mut self, poll: &Poll, token: u64) {
        let Some(socket) = &self.socket else {
            return;
        };
        if self.full_since.is_none() || self.armed {
            return;
        }
        // Once: while there is room nobody wants to hear of it, and it is said of every entry that journald reads.
        let flags = EventFlags::OUT | EventFlags::ONESHOT;
        let done = if self.watched {
            poll.modify(socket, token, flags)
        } else {
            poll.add(socket, token, flags)
        };
        // Without it there still is the next try.
        self.armed = done.is_ok();
        self.watched |= self.armed;
    }

    /// There is room.
    pub(super) fn opened(&mut self) {
        self.armed = false;
        self.closed_until = Moment::default();
    }

    /// Waits for room when the last lines are to be written; false if there is none in time, or nobody is there.
    pub(super) fn wait_for_room(&mut self, until: Moment) -> bool {
        let left = clock::now().until(until);
        let Some(socket) = &self.socket else {
            return false;
        };
        let room = left > Span::ZERO && socket.wait_for_room(left).unwrap_or(false);
        if room {
            self.opened();
        }
        room
    }
}

/// What every entry of a stream says.
pub(super) struct Label(Vec<u8>);

impl Label {
    pub(super) fn new(source: &Source) -> Self {
        let worker = &source.worker;
        let priority = if source.stderr { STDERR } else { STDOUT };
        let fields = format!(
            "PRIORITY={priority}\nSYSLOG_IDENTIFIER={worker}\nLEASEHOLD_FLEET={}\nLEASEHOLD_SLOT={}\n",
            worker.fleet, worker.slot
        );
        Self(fields.into_bytes())
    }

    /// The entry of a line.
    pub(super) fn write(
        &self,
        entry: &mut Vec<u8>,
        line: &[u8],
        has_end: bool,
        author: Option<Author>,
    ) {
        entry.extend_from_slice(&self.0);
        if let Some(Author { generation, pid }) = author {
            entry.extend_from_slice(format!("LEASEHOLD_GENERATION={generation}\n").as_bytes());
            // journald itself adds what it knows of this process, if we may tell (as root).
            if let Some(pid) = pid {
                entry.extend_from_slice(format!("OBJECT_PID={pid}\n").as_bytes());
            }
        }
        if !has_end {
            entry.extend_from_slice(b"LEASEHOLD_PARTIAL=1\n");
        }
        let is_text = line.iter().all(|byte| *byte >= b' ' || *byte == b'\t')
            && std::str::from_utf8(line).is_ok();
        if is_text {
            entry.extend_from_slice(b"MESSAGE=");
        } else {
            entry.extend_from_slice(b"MESSAGE\n");
            entry.extend_from_slice(&(line.len() as u64).to_le_bytes());
        }
        entry.extend_from_slice(line);
        entry.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Generation, WorkerId};

    fn entry(stderr: bool, line: &[u8], has_end: bool, author: Option<Author>) -> Vec<u8> {
        let label = Label::new(&Source {
            worker: WorkerId::new("web".parse().unwrap(), 3),
            stderr,
        });
        let mut entry = Vec::new();
        label.write(&mut entry, line, has_end, author);
        entry
    }

    #[test]
    fn text_is_readable_and_bytes_are_counted() {
        let fixed = "PRIORITY=6\nSYSLOG_IDENTIFIER=web/3\nLEASEHOLD_FLEET=web\nLEASEHOLD_SLOT=3\n";
        let text = entry(false, "grün\t1".as_bytes(), true, None);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            format!("{fixed}MESSAGE=grün\t1\n")
        );
        for line in [&b"\xff"[..], b"a\x1b[31m", b"a\0b"] {
            let wanted = [
                fixed.as_bytes(),
                b"MESSAGE\n",
                &(line.len() as u64).to_le_bytes(),
                line,
                b"\n",
            ];
            assert_eq!(entry(false, line, true, None), wanted.concat());
        }
        let author = Author {
            generation: Generation(7),
            pid: Some(99),
        };
        let piece = String::from_utf8(entry(true, b"no end", false, Some(author))).unwrap();
        assert!(piece.starts_with("PRIORITY=4\n"), "{piece}");
        let tail = "\nLEASEHOLD_GENERATION=7\nOBJECT_PID=99\nLEASEHOLD_PARTIAL=1\nMESSAGE=no end\n";
        assert!(piece.ends_with(tail), "{piece}");
    }
}
