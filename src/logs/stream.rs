//! One pipe on its way to one file.

use std::{
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use crate::{
    logs::file::LogFile,
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

/// How a stream is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) rotate_size: u64,
    pub(super) max_size: u64,
    pub(super) drop: bool,
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
}

/// Counts of what happened to a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) written: u64,
    pub(super) dropped: u64,
}

pub(super) struct Stream {
    pipe: OwnedFd,
    capacity: usize,
    path: PathBuf,
    file: Option<LogFile>,
    rules: Rules,
    unfinished_since: Option<Moment>,
    splices: bool,
    /// What was moved and not shown yet: a piece of a line.
    pub(super) unshown: Vec<u8>,
    pub(super) counts: Counts,
    /// Why its file cannot be written, if so.
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

    /// Copies what waits in `pipe` without consuming it.
    fn look(&mut self, pipe: &OwnedFd) -> io::Result<usize> {
        let length = pipe::look(pipe, &self.write, self.room)?;
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
    pub(super) fn new(pipe: OwnedFd, path: PathBuf, rules: Rules) -> Self {
        let capacity = pipe::capacity(&pipe);
        Self {
            pipe,
            capacity,
            path,
            file: None,
            rules,
            unfinished_since: None,
            splices: true,
            unshown: Vec::new(),
            counts: Counts::default(),
            failing: None,
        }
    }

    pub(super) fn pipe(&self) -> &OwnedFd {
        &self.pipe
    }

    /// More turns than it takes to empty a full pipe twice, however small the pieces are that it comes in.
    pub(super) fn most_turns(&self) -> usize {
        2 * self.capacity / 4096 + 2
    }

    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// The file was moved away by somebody else: the next line goes to a new one.
    pub(super) fn reopen(&mut self) {
        self.file = None;
    }

    /// Moves what is there. `to_the_end`: also a line without its end. `echo` sees what was moved.
    pub(super) fn pump(
        &mut self,
        bench: &mut Workbench,
        now: Moment,
        to_the_end: bool,
        echo: &mut dyn FnMut(&[u8]),
    ) -> Turn {
        let mut large = false;
        for _ in 0..ROUNDS_MAX {
            let length = match bench.look(&self.pipe) {
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
                        || pipe::waiting(&self.pipe) + 4096 > self.capacity;
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
            large = length >= self.capacity / 2;
            self.unfinished_since = None;
            let moved = self.put_away(bench, wanted);
            match moved {
                Ok(moved) => {
                    self.failing = None;
                    self.counts.written += moved as u64;
                    echo(&bench.buffer[..moved]);
                }
                Err(error) if self.rules.drop => {
                    self.failing = Some(error.to_string());
                    // A line is kept whole or dropped whole: what of it got through is taken back.
                    let back = self.file.as_mut().map_or(Ok(0), LogFile::take_back_line);
                    self.counts.dropped += back.unwrap_or(0);
                    if let Err(error) = self.discard(wanted) {
                        return self.fail(&error, now);
                    }
                    self.counts.dropped += wanted as u64;
                }
                Err(error) => return self.fail(&error, now),
            }
        }
        Turn::More
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
                file.take_from(&self.pipe, wanted - moved)
            } else {
                Ok(0)
            };
            match step {
                Ok(0) => moved += copy_away(&self.pipe, file, &bench.buffer[moved..wanted])?,
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

    /// Takes bytes out of the pipe without keeping them.
    fn discard(&self, mut length: usize) -> io::Result<()> {
        let mut sink = [0; 65_536];
        while length > 0 {
            let most = length.min(sink.len());
            match rustix::io::read(&self.pipe, &mut sink[..most]) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Ok(n) => length -= n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
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
        let stream = Stream::new(reader, dir.path().join("f/0.log"), rules);
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
    };

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    impl Rig {
        fn pump(&mut self, now: Moment) -> Turn {
            self.stream.pump(&mut self.bench, now, false, &mut |_| {})
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
