//! One pipe on its way to one file, or to the journal.

use std::{
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use crate::{
    logs::{
        capture::Source,
        file::LogFile,
        journal::{Journal, Label},
        tap::Tap,
    },
    sys::pipe,
    time::{Moment, Span},
};

/// A line without an end is moved as it is after this long.
const UNFINISHED_MAX: Span = Span::secs(1);
/// A line without an end is looked at again after this, then after twice as long, and so on.
const LOOK_AGAIN: Span = Span::millis(5);
/// A file that could not be written is tried again after this long.
const RETRY: Span = Span::secs(1);
/// So many rounds for one pipe before the others get their turn.
const ROUNDS_MAX: usize = 16;
/// What goes to the journal is looked at in pieces of this size: a small queue takes a few lines of it at a time.
const JOURNAL_LOOK: usize = 65_536;

/// How a stream is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) rotate_size: u64,
    pub(super) max_size: u64,
    pub(super) drop: bool,
    /// To the journal; no file then.
    pub(super) journal: bool,
}

/// What a turn came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The pipe is empty.
    Dry,
    /// There may be more; others first.
    More,
    /// Look again then: an unfinished line, or a file that cannot be written.
    At(Moment),
    /// The journal takes nothing: look again when it does, and then at the latest.
    Journal(Moment),
}

/// Counts of what happened to a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) written: u64,
    pub(super) dropped: u64,
}

impl Counts {
    /// What came to it after `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            written: self.written - earlier.written,
            dropped: self.dropped - earlier.dropped,
        }
    }
}

pub(super) struct Stream {
    tap: Tap,
    capacity: usize,
    path: PathBuf,
    file: Option<LogFile>,
    rules: Rules,
    label: Label,
    /// The journal has the beginning of a line, and not its end.
    mid_line: bool,
    /// When something was dropped that was meant for the journal.
    dropped_at: Option<Moment>,
    unfinished_since: Option<Moment>,
    splices: bool,
    /// What was moved and not shown yet: a piece of a line.
    pub(super) unshown: Vec<u8>,
    pub(super) counts: Counts,
    /// Why it cannot be written, if so: its file; of what goes to the journal, only what is dropped.
    pub(super) failing: Option<String>,
}

/// Buffers that all streams share: one turn at a time.
pub(super) struct Workbench {
    read: OwnedFd,
    write: OwnedFd,
    room: usize,
    buffer: Vec<u8>,
}

impl Workbench {
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = pipe::scratch(1 << 20)?;
        let room = pipe::capacity(&read);
        Ok(Self {
            read,
            write,
            room,
            buffer: vec![0; room],
        })
    }

    /// Makes room for all that a pipe can hold, where the kernel lets us: a line in the journal is whole or in pieces for good.
    pub(super) fn fit(&mut self, stream: &Stream) {
        if stream.rules.journal
            && stream.capacity > self.room
            && let Ok((read, write)) = pipe::scratch(stream.capacity)
        {
            self.room = pipe::capacity(&read);
            self.buffer.resize(self.room, 0);
            (self.read, self.write) = (read, write);
        }
    }

    /// Copies up to `most` of what waits in `pipe` without consuming it.
    fn look(&mut self, pipe: &OwnedFd, most: usize) -> io::Result<usize> {
        let length = pipe::look(pipe, &self.write, most)?;
        let mut file = io::BufReader::with_capacity(0, ReadFd(self.read.as_fd()));
        file.read_exact(&mut self.buffer[..length])?;
        Ok(length)
    }
}

struct ReadFd<'a>(std::os::fd::BorrowedFd<'a>);

impl Read for ReadFd<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl Stream {
    pub(super) fn new(source: &Source, tap: Tap, path: PathBuf, rules: Rules) -> Self {
        let capacity = pipe::capacity(tap.pipe());
        Self {
            tap,
            capacity,
            path,
            file: None,
            rules,
            label: Label::new(source),
            mid_line: false,
            dropped_at: None,
            unfinished_since: None,
            splices: true,
            unshown: Vec::new(),
            counts: Counts::default(),
            failing: None,
        }
    }

    pub(super) fn pipe(&self) -> &OwnedFd {
        self.tap.pipe()
    }

    /// More turns than it takes to empty a full pipe twice, however small the pieces are that it comes in.
    pub(super) fn most_turns(&self) -> usize {
        2 * self.capacity / 4096 + 2
    }

    pub(super) fn set_rules(&mut self, rules: Rules) {
        if rules.journal {
            self.file = None;
        }
        self.rules = rules;
    }

    pub(super) fn to_journal(&self) -> bool {
        self.rules.journal
    }

    /// The file was moved away by somebody else: the next line goes to a new one.
    pub(super) fn reopen(&mut self) {
        self.file = None;
    }

    /// Moves what is there. `to_the_end`: also a line without its end. `echo` sees what was moved.
    pub(super) fn pump(
        &mut self,
        bench: &mut Workbench,
        journal: &mut Journal,
        now: Moment,
        to_the_end: bool,
        echo: &mut dyn FnMut(&[u8]),
    ) -> Turn {
        let mut large = false;
        for _ in 0..ROUNDS_MAX {
            if self.rules.journal
                && !self.must_drop()
                && let Some(at) = journal.closed(now)
            {
                return self.wait_for_journal(at);
            }
            let length = match self.look(bench) {
                Ok(0) => {
                    self.unfinished_since = None;
                    return Turn::Dry;
                }
                Ok(length) => length,
                Err(error) => return self.fail(&error, now),
            };
            let wanted = match memchr::memrchr(b'\n', &bench.buffer[..length]) {
                Some(end) => end + 1,
                None => {
                    let since = *self.unfinished_since.get_or_insert(now);
                    let due = since.after(UNFINISHED_MAX);
                    let full = length >= self.capacity.min(bench.room)
                        || pipe::waiting(self.tap.pipe()) + 4096 > self.capacity;
                    // A writer that is blocked in the middle of a large write wakes nobody unless the pipe was empty (pipe_write in the
                    // kernel): after a large piece, what has no end yet is moved too.
                    if !to_the_end && !full && !large && now < due {
                        // A new large write may begin behind it, so it is looked at again sooner than it is due.
                        let soon = now.after(now.since(since)).after(LOOK_AGAIN);
                        return Turn::At(soon.min(due));
                    }
                    length
                }
            };
            // In the journal that would tear a line for good: there a look every few milliseconds has to do.
            large = !self.rules.journal && length >= self.capacity / 2;
            self.unfinished_since = None;
            let moved = if self.rules.journal {
                self.send_away(bench, wanted, journal, now)
            } else {
                self.put_away(bench, wanted)
            };
            match moved {
                Ok(moved) => {
                    // What is taken between drops is not the end of them.
                    if self.dropped_at.is_none_or(|at| now >= at.after(RETRY)) {
                        self.failing = None;
                    }
                    self.counts.written += moved as u64;
                    echo(&bench.buffer[..moved]);
                }
                Err(_) if self.rules.journal && !self.must_drop() => {
                    let at = journal.closed(now).unwrap_or(now.after(RETRY));
                    return self.wait_for_journal(at);
                }
                Err(error) if self.rules.drop => {
                    self.failing = Some(match (self.rules.journal, &journal.failing) {
                        (true, Some(why)) => why.clone(),
                        (true, None) => "the journal is full".to_owned(),
                        (false, _) => error.to_string(),
                    });
                    self.dropped_at = self.rules.journal.then_some(now);
                    // A line is kept whole or dropped whole: what of it got through is taken back.
                    let back = self.file.as_mut().map_or(Ok(0), LogFile::take_back_line);
                    self.counts.dropped += back.unwrap_or(0);
                    if let Err(error) = self.tap.take(wanted) {
                        return self.fail(&error, now);
                    }
                    self.counts.dropped += wanted as u64;
                }
                Err(error) => return self.fail(&error, now),
            }
        }
        Turn::More
    }

    /// Copies what waits to the bench: for a file all there is, for the journal a piece that holds a line end, if there is one.
    fn look(&self, bench: &mut Workbench) -> io::Result<usize> {
        let most = if self.rules.journal {
            bench.room.min(JOURNAL_LOOK)
        } else {
            bench.room
        };
        let length = bench.look(self.tap.pipe(), most)?;
        let has_end = memchr::memchr(b'\n', &bench.buffer[..length]).is_some();
        if length == most && length < bench.room && !has_end {
            return bench.look(self.tap.pipe(), bench.room);
        }
        Ok(length)
    }

    /// A journal that is full or away for a moment costs nothing: the lines wait in the pipe, until the worker would have to.
    fn must_drop(&self) -> bool {
        // Writes that do not fit together on a page leave it half empty: a pipe may be full that holds half its bytes.
        self.rules.drop
            && (self.failing.is_some() || pipe::waiting(self.tap.pipe()) >= self.capacity / 2)
    }

    fn wait_for_journal(&mut self, at: Moment) -> Turn {
        self.unfinished_since = None;
        Turn::Journal(at)
    }

    /// Sends line by line what the journal takes of `wanted` bytes, and consumes that. A crash between the two repeats it.
    fn send_away(
        &mut self,
        bench: &Workbench,
        wanted: usize,
        journal: &mut Journal,
        now: Moment,
    ) -> io::Result<usize> {
        let (first, authors) = self.tap.authors();
        let (mut sent, mut refused) = (0, None);
        for line in bench.buffer[..wanted].split_inclusive(|byte| *byte == b'\n') {
            let (text, has_end) = line
                .strip_suffix(b"\n")
                .map_or((line, false), |text| (text, true));
            // Of a line whose pieces are there already, the end alone is nothing to be read.
            let author = authors.author(first + sent as u64);
            if !(self.mid_line && text.is_empty())
                && let Err(error) =
                    journal.send(now, |entry| self.label.write(entry, text, has_end, author))
            {
                refused = Some(error);
                break;
            }
            self.mid_line = !has_end;
            sent += line.len();
        }
        self.tap.take(sent)?;
        match refused {
            Some(error) if sent == 0 => Err(error),
            Some(_) | None => Ok(sent),
        }
    }

    fn fail(&mut self, error: &io::Error, now: Moment) -> Turn {
        self.failing = Some(error.to_string());
        Turn::At(now.after(RETRY))
    }

    /// Moves `wanted` bytes, or as many as the file takes, and rotates at a line end.
    fn put_away(&mut self, bench: &Workbench, wanted: usize) -> io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(LogFile::open(&self.path)?),
        };
        let mut moved = 0;
        while moved < wanted {
            let step = if self.splices {
                file.take_from(self.tap.pipe(), wanted - moved)
            } else {
                Ok(0)
            };
            match step {
                Ok(0) => moved += copy_away(self.tap.pipe(), file, &bench.buffer[moved..wanted])?,
                Ok(n) => moved += n,
                // This file system has no splice: write, then consume; a crash between the two repeats a batch.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && self.splices => {
                    self.splices = false
                }
                Err(_) if moved > 0 => break,
                Err(e) => return Err(e),
            }
        }
        file.ended_with(&bench.buffer[..moved]);
        if file.offset >= self.rules.rotate_size && !file.is_mid_line() {
            let keep = (self.rules.max_size / self.rules.rotate_size)
                .saturating_sub(1)
                .max(1);
            if let Err(error) = file.rotate(keep) {
                // What was moved is safe; only the rotation waits.
                self.failing = Some(format!("cannot rotate {}: {error}", self.path.display()));
            }
        }
        Ok(moved)
    }
}

fn copy_away(pipe: &OwnedFd, file: &mut LogFile, bytes: &[u8]) -> io::Result<usize> {
    let written = file.write(bytes)?;
    let mut left = written;
    let mut sink = [0; 65_536];
    while left > 0 {
        let most = left.min(sink.len());
        left -= rustix::io::read(pipe, &mut sink[..most])?;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write};

    struct Rig {
        dir: tempfile::TempDir,
        stream: Stream,
        writer: fs::File,
        bench: Workbench,
    }

    fn rig(rules: Rules) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let reader = pipe::reader(65_536).unwrap();
        let writer = fs::File::from(pipe::writer(&reader).unwrap());
        let source = Source {
            worker: crate::id::WorkerId::new("f".parse().unwrap(), 0),
            stderr: false,
        };
        let stream = Stream::new(&source, Tap::new(reader), dir.path().join("f/0.log"), rules);
        Rig {
            dir,
            stream,
            writer,
            bench: Workbench::new().unwrap(),
        }
    }

    const RULES: Rules = Rules {
        rotate_size: 1_000,
        max_size: 3_000,
        drop: false,
        journal: false,
    };

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    impl Rig {
        fn pump(&mut self, now: Moment) -> Turn {
            let mut journal = Journal::new(self.dir.path().join("journal"));
            self.stream
                .pump(&mut self.bench, &mut journal, now, false, &mut |_| {})
        }

        fn text(&self) -> String {
            fs::read_to_string(self.dir.path().join("f/0.log")).unwrap_or_default()
        }
    }

    #[test]
    fn whole_lines_at_once_and_the_rest_after_a_second() {
        let mut rig = rig(RULES);
        rig.writer.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(rig.pump(at(0)), Turn::At(at(5)));
        assert_eq!(rig.text(), "one\ntwo\n");
        assert_eq!(rig.pump(at(100)), Turn::At(at(205)));
        assert_eq!(rig.pump(at(999)), Turn::At(at(1_000)));
        assert_eq!(rig.pump(at(1_000)), Turn::Dry);
        assert_eq!(rig.text(), "one\ntwo\nthr");
        rig.writer.write_all(b"ee\n").unwrap();
        assert_eq!(rig.pump(at(1_001)), Turn::Dry);
        assert_eq!(rig.text(), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_writer_blocked_in_a_large_write_is_not_left_waiting() {
        let mut rig = rig(Rules {
            rotate_size: 1 << 20,
            max_size: 1 << 30,
            drop: false,
            journal: false,
        });
        let mut writer = rig.writer.try_clone().unwrap();
        let whole: Vec<u8> = (0..20_000)
            .flat_map(|n| format!("line {n:06}\n").into_bytes())
            .collect();
        let length = whole.len() as u64;
        let thread = std::thread::spawn(move || writer.write_all(&whole).unwrap());
        let mut rounds = 0;
        while rig.stream.counts.written < length {
            // No look may leave something behind that only a timer would bring back.
            let turn = rig.pump(at(0));
            assert!(
                matches!(turn, Turn::Dry | Turn::More) || thread.is_finished(),
                "{turn:?}"
            );
            rounds += 1;
            assert!(rounds < 100_000_000, "the writer waits for ever");
        }
        thread.join().unwrap();
        assert_eq!(rig.text().len() as u64, length);
    }

    #[test]
    fn rotation_cuts_between_lines_only_and_keeps_its_cap() {
        let mut rig = rig(RULES);
        for n in 0..400 {
            writeln!(rig.writer, "line number {n:04}").unwrap();
            rig.pump(at(0));
        }
        let mut total = 0;
        for name in ["0.log", "0.log.1", "0.log.2"] {
            let text = fs::read_to_string(rig.dir.path().join("f").join(name)).unwrap();
            assert!(
                text.is_empty() || text.ends_with('\n'),
                "{name} ends in the middle of a line"
            );
            assert!(text.lines().all(|line| line.len() == 16), "{name}: {text}");
            total += text.len();
        }
        assert!(total <= 3_100, "{total}");
        assert!(!rig.dir.path().join("f/0.log.3").exists());
    }

    #[test]
    fn a_line_that_fills_the_pipe_is_moved_and_not_rotated_in_the_middle() {
        let mut rig = rig(RULES);
        rig.writer.write_all(&[b'x'; 65_536]).unwrap();
        assert_eq!(rig.pump(at(0)), Turn::Dry);
        assert_eq!(
            rig.text().len(),
            65_536,
            "past rotate_size, but its line has no end yet"
        );
        rig.writer.write_all(b"end\nnext\n").unwrap();
        rig.pump(at(1));
        assert_eq!(rig.text(), "");
    }

    #[test]
    fn a_file_that_cannot_be_written_waits_or_drops_as_chosen() {
        for drop in [false, true] {
            let mut rig = rig(Rules { drop, ..RULES });
            fs::write(rig.dir.path().join("f"), "in the way").unwrap();
            rig.writer.write_all(b"one\n").unwrap();
            let turn = rig.pump(at(0));
            assert!(rig.stream.failing.is_some());
            fs::remove_file(rig.dir.path().join("f")).unwrap();
            rig.writer.write_all(b"two\n").unwrap();
            rig.pump(at(1_000));
            match drop {
                false => assert_eq!(
                    (turn, rig.text().as_str()),
                    (Turn::At(at(1_000)), "one\ntwo\n")
                ),
                true => assert_eq!(
                    (turn, rig.text().as_str(), rig.stream.counts.dropped),
                    (Turn::Dry, "two\n", 4)
                ),
            }
        }
    }
}
