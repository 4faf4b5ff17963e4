//! One slot's log file and its rotated predecessors: `0.log`, `0.log.1` (the newest), `0.log.2`, ….

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use crate::sys::pipe;

/// `LOG_DIR/FLEET/SLOT.log`, or `SLOT.stderr.log`.
pub fn path_of(log_dir: &Path, fleet: &str, slot: u32, stderr: bool) -> PathBuf {
    log_dir
        .join(fleet)
        .join(format!("{slot}{}.log", if stderr { ".stderr" } else { "" }))
}

/// An open log file; we are its only writer, so its end is where we left it.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// Its length.
    pub offset: u64,
    /// Where the line begins that has no end yet; the end of the file if there is none such.
    line: u64,
    /// Its last byte is not a line end.
    mid_line: bool,
}

impl LogFile {
    /// Opens it at its end, creating it and its directory if need be.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(path)?;
        let offset = file.metadata()?.len();
        let mut last = [b'\n'];
        if offset > 0 {
            file.read_exact_at(&mut last, offset - 1)?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            offset,
            line: offset,
            mid_line: last != [b'\n'],
        })
    }

    /// These bytes were put at its end: where does its last line begin now?
    pub fn ended_with(&mut self, bytes: &[u8]) {
        match memchr::memrchr(b'\n', bytes) {
            Some(at) => self.line = self.offset - (bytes.len() - at - 1) as u64,
            None if !self.mid_line => self.line = self.offset - bytes.len() as u64,
            None => {}
        }
        self.mid_line = bytes.last().map_or(self.mid_line, |last| *last != b'\n');
    }

    /// Is it in the middle of a line?
    pub fn is_mid_line(&self) -> bool {
        self.mid_line
    }

    /// Takes back the line that has no end; returns its length.
    pub fn take_back_line(&mut self) -> io::Result<u64> {
        let length = self.offset - self.line;
        if length > 0 {
            self.file.set_len(self.line)?;
            self.offset = self.line;
            self.mid_line = false;
        }
        Ok(length)
    }

    /// Moves up to `length` bytes out of a pipe to its end; only what arrived here has left the pipe.
    pub fn take_from(&mut self, pipe: impl AsFd, length: usize) -> io::Result<usize> {
        pipe::take(pipe, &self.file, &mut self.offset, length)
    }

    /// Writes at its end; for file systems that cannot splice.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.offset)?;
        self.offset += written as u64;
        Ok(written)
    }

    /// Moves it and its predecessors one number up, drops those past `keep`, and begins a new one. If that cannot be had, it keeps its
    /// name; a number that is free then is where the next attempt stops moving.
    pub fn rotate(&mut self, keep: u64) -> io::Result<()> {
        let keep = keep.max(1);
        let numbered = |n: u64| PathBuf::from(format!("{}.{n}", self.path.display()));
        let free = (1..keep).find(|n| !numbered(*n).exists()).unwrap_or(keep);
        for n in (1..free).rev() {
            fs::rename(numbered(n), numbered(n + 1))?;
        }
        let moved = match fs::rename(&self.path, numbered(1)) {
            // Somebody else took it away: what it holds is gone, and a new one is begun.
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(e),
            Ok(()) => true,
        };
        match Self::open(&self.path) {
            Ok(fresh) => *self = fresh,
            Err(error) => {
                if moved {
                    let _ = fs::rename(numbered(1), &self.path);
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_at_its_end_and_rotates_within_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_of(dir.path(), "web", 3, false);
        let mut log = LogFile::open(&path).unwrap();
        log.write(b"one\ntw").unwrap();
        let mut log = LogFile::open(&path).unwrap();
        assert!(log.is_mid_line() && log.offset == 6);
        log.write(b"o\n").unwrap();
        for _ in 0..5 {
            log.rotate(2).unwrap();
            log.write(b"x\n").unwrap();
        }
        let mut names: Vec<String> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["3.log", "3.log.1", "3.log.2"]);
    }
}
