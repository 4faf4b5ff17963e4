//! The instance lock: one daemon per directory, held by the kernel, so that no stale file can lie.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

/// Held until dropped, or until this process is gone.
#[derive(Debug)]
pub struct InstanceLock {
    _file: File,
}

/// Why it was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "take {path}: a leasehold with pid {holder} already uses this directory; stop it, or give this one another with {flag}"
    )]
    Held {
        /// The lock file.
        path: String,
        /// What the holder wrote there.
        holder: String,
        /// The flag that names another directory.
        flag: &'static str,
    },
    /// The file system said no.
    #[error("take {path}")]
    Io {
        /// The lock file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl InstanceLock {
    /// Takes `directory/lock` without waiting and writes our pid there, for people. `flag` is what names another directory.
    pub fn take(directory: &Path, flag: &'static str) -> Result<Self, LockError> {
        let path = directory.join("lock");
        let failed = |source| LockError::Io {
            path: path.display().to_string(),
            source,
        };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(LockError::Held {
                    path: path.display().to_string(),
                    holder: holder.trim().to_owned(),
                    flag,
                });
            }
            Err(e) => return Err(failed(e.into())),
        }
        // The pid is for people; a disk too full to hold it does not make the lock less ours.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_and_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = InstanceLock::take(dir.path(), "--run-dir").unwrap();
        let refused = InstanceLock::take(dir.path(), "--run-dir").unwrap_err();
        assert!(
            refused
                .to_string()
                .contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(first);
        InstanceLock::take(dir.path(), "--run-dir").unwrap();
    }
}
