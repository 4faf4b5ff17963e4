//! One inotify descriptor for all locks: rings when somebody closes a lock file, or does something to its name.
//!
//! The kernel rings *before* the lock is gone, a moment later it is: whoever hears the bell tries a few times. What happens to other
//! files of the same directory is not told.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// Watches directories of lock files.
#[derive(Debug)]
pub struct Bell {
    inotify: OwnedFd,
    directories: BTreeMap<PathBuf, Directory>,
}

/// One that is watched, and for the sake of which files.
#[derive(Debug)]
struct Directory {
    number: i32,
    files: BTreeSet<OsString>,
}

impl Bell {
    /// A new one that watches nothing.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            directories: BTreeMap::new(),
        })
    }

    /// Watches the directory of a lock file; again is harmless.
    pub fn watch(&mut self, file: &Path) -> io::Result<()> {
        let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else {
            return Ok(());
        };
        if let Some(known) = self.directories.get_mut(directory) {
            if !known.files.contains(name) {
                known.files.insert(name.to_owned());
            }
            return Ok(());
        }
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CLOSE_NOWRITE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let number = inotify::add_watch(&self.inotify, directory, flags)?;
        let files = BTreeSet::from([name.to_owned()]);
        self.directories
            .insert(directory.to_owned(), Directory { number, files });
        Ok(())
    }

    /// Takes everything that happened; true if something happened to a file that is watched, or to its directory. Directories that are
    /// gone are forgotten, to be watched anew.
    pub fn take(&mut self) -> bool {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.inotify.as_fd(), &mut space);
        let mut rang = false;
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_bytes());
            let mut concerned = self
                .directories
                .values()
                .filter(|one| one.number == event.wd());
            rang |= match name {
                Some(name) => concerned.any(|one| one.files.contains(OsStr::from_bytes(name))),
                // The directory itself, or more than the kernel could remember.
                None => true,
            };
            let gone = inotify::ReadFlags::IGNORED
                | inotify::ReadFlags::DELETE_SELF
                | inotify::ReadFlags::MOVE_SELF;
            if event.events().intersects(gone) {
                self.directories.retain(|_, one| one.number != event.wd());
            }
        }
        rang
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
