//! One inotify descriptor for all locks: rings when somebody closes a lock file, or does something to its name.
//!
//! The kernel rings *before* the lock is gone, a moment later it is: whoever hears the bell tries a few times.

use std::{
    collections::BTreeMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// Watches directories of lock files.
#[derive(Debug)]
pub struct Bell {
    inotify: OwnedFd,
    directories: BTreeMap<PathBuf, i32>,
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
        let Some(directory) = file.parent() else {
            return Ok(());
        };
        if self.directories.contains_key(directory) {
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
        self.directories.insert(directory.to_owned(), number);
        Ok(())
    }

    /// Takes everything that rang. Directories that are gone are forgotten, to be watched anew.
    pub fn take(&mut self) -> bool {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.inotify.as_fd(), &mut space);
        let mut rang = false;
        while let Ok(event) = reader.next() {
            rang = true;
            let gone = inotify::ReadFlags::IGNORED
                | inotify::ReadFlags::DELETE_SELF
                | inotify::ReadFlags::MOVE_SELF;
            if event.events().intersects(gone) {
                self.directories.retain(|_, number| *number != event.wd());
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
