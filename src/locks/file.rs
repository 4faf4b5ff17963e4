//! The lock file: never unlinked by us, in a directory that only its owner may enter, on a file system that has real locks.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock, fstatfs};

use crate::locks::record::{RECORD_BYTES, Record};

/// Why a lock cannot be had at all; waiting would not help.
#[derive(Debug, thiserror::Error)]
pub enum LockFault {
    /// The file system said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// `open`, `lock`, ….
        what: &'static str,
        /// Which file or directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Locks on it are somebody's emulation.
    #[error(
        "{path} is on {kind}, where flock(2) is emulated or local to one client; give a path on a local disk or tmpfs, or say allow_network_fs = true and rely on the fence alone"
    )]
    Network {
        /// The file.
        path: String,
        /// `NFS`, `FUSE`, ….
        kind: &'static str,
    },
    /// Others could put files there.
    #[error(
        "{path} belongs to uid {owner} with mode {mode:04o}; it must be ours alone (mode 0700)"
    )]
    Directory {
        /// The directory.
        path: String,
        /// Its owner.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// It is not empty and not ours to write to.
    #[error("{path} holds data that is not a lock's; lock a file of its own")]
    Foreign {
        /// The file.
        path: String,
    },
}

/// Where the lock `name` of slot `slot` is, for every daemon of this user: a function of cluster, name and slot, never of
/// a daemon's directories.
pub fn default_path(cluster: &str, name: &str, slot: u32) -> PathBuf {
    let owner = format!("leasehold-{}", rustix::process::geteuid().as_raw());
    Path::new("/run/lock")
        .join(owner)
        .join(cluster)
        .join(format!("{name}.{slot}"))
}

/// An open lock file, taken or not. The lock ends with the last duplicate of its descriptor.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Opens it, and makes it if it is not there. `own_directory`: the directories were chosen by us, are made by us, and must be ours
    /// alone.
    pub fn open(path: &Path, own_directory: bool, network: bool) -> Result<Self, LockFault> {
        if own_directory {
            make_directories(path)?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)
            .map_err(|e| fault("open", path, e))?;
        if let Some(kind) = network_kind(&file).filter(|_| !network) {
            return Err(LockFault::Network {
                path: path.display().to_string(),
                kind,
            });
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// A lock that was taken by somebody else's open, whose descriptor we were given; its record says where it is.
    pub fn adopt(fd: OwnedFd) -> Result<Self, LockFault> {
        let mut lock = Self {
            file: fd.into(),
            path: PathBuf::from("a held lock"),
        };
        if let Some(record) = lock.record()? {
            lock.path = record.path;
        }
        Ok(lock)
    }

    /// Takes the lock if it is free; false if somebody has it.
    pub fn try_take(&self) -> Result<bool, LockFault> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(fault("lock", &self.path, e.into())),
        }
    }

    /// Is it still the file of that name? One that was unlinked or replaced keeps nobody out.
    pub fn is_named(&self) -> bool {
        let named = fs::metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        let open = self.file.metadata().map(|meta| (meta.dev(), meta.ino()));
        matches!((named, open), (Ok(a), Ok(b)) if a == b)
    }

    /// What the newest holder wrote; none if nobody has written yet.
    pub fn record(&self) -> Result<Option<Record>, LockFault> {
        let mut bytes = vec![0; RECORD_BYTES];
        let length = self
            .file
            .read_at(&mut bytes, 0)
            .map_err(|e| fault("read", &self.path, e))?;
        match &bytes[..length] {
            [] => Ok(None),
            text => Record::parse(text)
                .map(Some)
                .ok_or_else(|| LockFault::Foreign {
                    path: self.path.display().to_string(),
                }),
        }
    }

    /// Writes who holds it, in one write(2). A power cut may take it back: of another boot only the fence means anything.
    pub fn write(&self, record: &Record) -> Result<(), LockFault> {
        self.file
            .write_all_at(&record.bytes(), 0)
            .map_err(|e| fault("write", &self.path, e))
    }

    /// Has what was written on the disk, where there is one: a fence that falls is worthless.
    pub fn sync(&self) -> Result<(), LockFault> {
        self.file
            .sync_data()
            .map_err(|e| fault("write", &self.path, e))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another descriptor of the same lock.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whom the kernel's table (proc_locks(5)) names as holder of the flock on this file: a pid, of people's interest only.
pub fn holder_by_kernel(file: &LockFile) -> Option<i32> {
    let inode = file.file.metadata().ok()?.ino();
    let table = fs::read_to_string("/proc/locks").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // `1: FLOCK  ADVISORY  WRITE 4242 00:1b:77 0 EOF`
        let (kind, pid, place) = (fields.get(1)?, fields.get(4)?, fields.get(5)?);
        let same = place.rsplit(':').next()?.parse() == Ok(inode);
        (*kind == "FLOCK" && same).then(|| pid.parse().ok())?
    })
}

/// `/run/lock/leasehold-UID` is ours alone; `/run/lock` is everybody's.
fn make_directories(path: &Path) -> Result<(), LockFault> {
    let Some((cluster, owner)) = path
        .parent()
        .and_then(|cluster| Some((cluster, cluster.parent()?)))
    else {
        return Ok(());
    };
    for directory in [owner, cluster] {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(fault("make", directory, e));
            }
            _ => {}
        }
        let meta = fs::symlink_metadata(directory).map_err(|e| fault("open", directory, e))?;
        let ours = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw();
        if !ours || meta.mode() & 0o077 != 0 {
            return Err(LockFault::Directory {
                path: directory.display().to_string(),
                owner: meta.uid(),
                mode: meta.mode() & 0o7777,
            });
        }
    }
    Ok(())
}

/// File systems whose flock(2) does not exclude other machines, or may not (statfs(2) has the numbers).
fn network_kind(file: &File) -> Option<&'static str> {
    const KINDS: [(u64, &str); 9] = [
        (0x6969, "NFS"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB"),
        (0x517b, "SMB"),
        (0x0102_1997, "9p"),
        (0x6573_5546, "FUSE"),
        (0x00c3_6400, "Ceph"),
        (0x5346_414f, "AFS"),
        (0x7461_636f, "OCFS2"),
    ];
    let kind = fstatfs(file).ok()?.f_type as u64 & 0xffff_ffff;
    KINDS
        .iter()
        .find(|(number, _)| *number == kind)
        .map(|(_, name)| *name)
}

fn fault(what: &'static str, path: &Path, source: io::Error) -> LockFault {
    LockFault::Io {
        what,
        path: path.display().to_string(),
        source,
    }
}
