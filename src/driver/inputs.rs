//! The keeper's news and the workers' notes become events.

use std::collections::BTreeMap;

use crate::{
    engine::{Event, event::Note},
    id::{Generation, WorkerId},
    sys::family::Stat,
    time::Span,
    wire::{Header, News, Process, RowKey},
};

/// What the keeper last said of every process: who a pid is, and what to end when the keeper is dead.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) headers: BTreeMap<RowKey, Header>,
    by_pid: BTreeMap<i32, RowKey>,
}

impl Known {
    /// Takes a row's header over.
    pub(super) fn learn(&mut self, key: &RowKey, header: &Header) {
        if let Some(Process::Alive(before)) = self.headers.get(key).map(|header| &header.process) {
            self.by_pid.remove(&before.pid);
        }
        if let Process::Alive(alive) = &header.process {
            self.by_pid.insert(alive.pid, key.clone());
        }
        if header.process == Process::Vacant {
            self.headers.remove(key);
        } else {
            self.headers.insert(key.clone(), header.clone());
        }
    }

    /// Whose process this is: a leader, or a descendant or group member of one. Its generation is what the row says now.
    pub(super) fn sender(&self, pid: i32, keeper: i32) -> Sender {
        match self.by_pid.get(&pid).or_else(|| self.by_kinship(pid)) {
            Some(key @ RowKey::Slot(worker)) => match self.headers.get(key) {
                Some(header) => Sender::Worker(worker.clone(), header.generation),
                None => Sender::Stranger,
            },
            Some(RowKey::Node | RowKey::Fleet(_) | RowKey::Task(..)) => Sender::Stranger,
            None if descends_from(pid, keeper) => Sender::Untold,
            None => Sender::Stranger,
        }
    }

    /// NotifyAccess=all: a shell around the program must not swallow its READY=1.
    fn by_kinship(&self, pid: i32) -> Option<&RowKey> {
        let mut pid = pid;
        for _ in 0..16 {
            let stat = Stat::read(pid)?;
            for candidate in [stat.group, stat.session, stat.ppid] {
                if let Some(key) = self.by_pid.get(&candidate) {
                    return Some(key);
                }
            }
            pid = stat.ppid;
        }
        None
    }
}

/// Who sent a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// This generation of this worker.
    Worker(WorkerId, Generation),
    /// A child of the keeper's of whom we have not been told: it was quicker than the news of its birth.
    Untold,
    /// Nobody whose word counts.
    Stranger,
}

/// A process that is gone already may have been one.
fn descends_from(pid: i32, keeper: i32) -> bool {
    let mut pid = pid;
    for _ in 0..16 {
        if pid == keeper {
            return true;
        }
        match Stat::read(pid) {
            Some(stat) if stat.ppid > 0 => pid = stat.ppid,
            Some(_) => return false,
            None => return true,
        }
    }
    false
}

/// The keeper's news, sorted into what the loop does with it.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    pub(super) events: Vec<Event>,
    pub(super) pings: Vec<u64>,
    /// The newest echo that came back.
    pub(super) echo: Option<u64>,
}

/// Sorts one batch of news; rows that came together are one event.
pub(super) fn sort(news: Vec<News>, known: &mut Known) -> Sorted {
    let mut sorted = Sorted::default();
    let mut rows = Vec::new();
    for one in news {
        match one {
            News::Row { key, header, .. } => {
                known.learn(&key, &header);
                rows.push((key, header));
            }
            News::Node(asked) => sorted.events.push(Event::Asked(asked)),
            News::Refused { key, after } => sorted.events.push(Event::Refused { key, after }),
            News::Ping { number } => sorted.pings.push(number),
            News::Echo { number } => sorted.echo = Some(number),
            News::Welcome(_) | News::Held { .. } | News::Caught => {}
        }
    }
    if !rows.is_empty() {
        sorted.events.push(Event::Rows(rows));
    }
    sorted
}

/// So many characters of a note that is none are shown.
const NONSENSE_MAX: usize = 60;

/// The lines of a notify datagram that mean something here (sd_notify(3)); never panics, whatever the bytes.
pub fn parse_note(bytes: &[u8]) -> Vec<Note> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Vec::new();
    };
    let notes = text.split('\n').filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        match (name, value) {
            ("READY", "1") => Some(Note::Ready),
            ("STOPPING", "1") => Some(Note::Stopping),
            ("WATCHDOG", "1") => Some(Note::Watchdog),
            ("WATCHDOG", "trigger") => Some(Note::WatchdogTrigger),
            ("EXTEND_TIMEOUT_USEC", micros) => micros
                .parse()
                .ok()
                .map(|micros| Note::Extend(Span::micros(micros))),
            ("X_LEASEHOLD_BUSY", share) => understood(line, share_of(share).map(Note::Busy)),
            ("X_LEASEHOLD_INFLIGHT", count) => {
                understood(line, count.parse().ok().map(Note::Inflight))
            }
            ("X_LEASEHOLD_QUEUE", length) => understood(line, length.parse().ok().map(Note::Queue)),
            ("X_LEASEHOLD_DONE", count) => understood(line, count.parse().ok().map(Note::Done)),
            ("STATUS", text) => Some(Note::Status(
                text.chars().filter(|c| !c.is_control()).collect(),
            )),
            _ => None,
        }
    });
    notes.collect()
}

/// What is no value says so, as far as it fits a line.
fn understood(line: &str, note: Option<Note>) -> Option<Note> {
    let shown = line.chars().filter(|c| !c.is_control()).take(NONSENSE_MAX);
    note.or_else(|| Some(Note::Nonsense(shown.collect())))
}

/// `0.7` in parts per million; what is no share, or not one of a whole, says nothing.
fn share_of(text: &str) -> Option<u32> {
    let share: f64 = text.parse().ok()?;
    (0.0..=1.0).contains(&share).then_some((share * 1e6) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_say_of_their_work() {
        let notes = parse_note(b"X_LEASEHOLD_BUSY=0.25\nX_LEASEHOLD_INFLIGHT=3\nX_LEASEHOLD_QUEUE=7\nX_LEASEHOLD_DONE=12");
        let said = [
            Note::Busy(250_000),
            Note::Inflight(3),
            Note::Queue(7),
            Note::Done(12),
        ];
        assert_eq!(notes, said);
        // Lies are not believed.
        let lies = b"X_LEASEHOLD_BUSY=NaN\nX_LEASEHOLD_BUSY=-1\nX_LEASEHOLD_BUSY=1e9\nX_LEASEHOLD_BUSY=inf\nX_LEASEHOLD_QUEUE=-4\nX_LEASEHOLD_DONE=";
        let said = parse_note(lies);
        assert_eq!(said.len(), 6);
        for note in said {
            assert!(matches!(note, Note::Nonsense(_)), "{note:?}");
        }
    }

    #[test]
    fn datagrams() {
        let notes = parse_note(
            b"READY=1\nSTATUS=up \x1b[31m\nX_OTHER=1\nEXTEND_TIMEOUT_USEC=5000\nWATCHDOG=1",
        );
        let status = Note::Status("up [31m".to_owned());
        assert_eq!(
            notes,
            [
                Note::Ready,
                status,
                Note::Extend(Span::millis(5)),
                Note::Watchdog
            ]
        );
        assert_eq!(parse_note(b"\xff\xfe=1"), []);
        assert_eq!(parse_note(b"EXTEND_TIMEOUT_USEC=-1\nREADY=0\n\n="), []);
    }
}
