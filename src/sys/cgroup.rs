//! cgroup2 leaves: one *new* directory per generation, killed and seen empty as a whole.
//!
//! No controller is needed for that (cgroups(7), `cgroup.kill` since Linux 5.14).

use std::{
    fs,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use crate::{
    id::{Generation, Revision, WorkerId},
    wire::{Containment, RowKey},
};

/// The directory below which workers get their leaves.
#[derive(Debug)]
pub struct Tree {
    workers: PathBuf,
    remove: Option<PathBuf>,
    kind: Containment,
}

impl Tree {
    /// The best tree to be had, created and ready, or none where this user may not make one.
    ///
    /// Below a systemd unit with `Delegate=yes` that is `workers/` in the unit, and we move to `main/` beside it; as root elsewhere
    /// it is `leasehold-HASH/` at the root of the hierarchy, where HASH is made from `run_dir`.
    pub fn find(run_dir: &Path) -> Option<Self> {
        let mount = mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?)?;
        Self::in_unit(&mount).or_else(|| Self::at_root(&mount, run_dir))
    }

    fn in_unit(mount: &Path) -> Option<Self> {
        let by_systemd = std::env::var("SYSTEMD_EXEC_PID")
            .is_ok_and(|pid| pid == std::process::id().to_string());
        if !by_systemd {
            return None;
        }
        let unit = own_cgroup(mount)?;
        let unit = if unit.ends_with("main") {
            unit.parent()?.to_owned()
        } else {
            unit
        };
        let delegated = delegation(&unit);
        if delegated == Delegation::No {
            return None;
        }
        let (main, workers) = (unit.join("main"), unit.join("workers"));
        make(&main).ok()?;
        make(&workers).ok()?;
        fs::write(main.join("cgroup.procs"), "0").ok()?;
        // Without controllers, leaves beside other processes break no rule of the kernel's, whoever owns the unit.
        if delegated == Delegation::Yes {
            pass_controllers(&unit);
            pass_controllers(&workers);
        }
        Some(Self {
            workers,
            remove: None,
            kind: Containment::Unit,
        })
    }

    fn at_root(mount: &Path, run_dir: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let name = format!(
            "leasehold-{:016x}",
            Revision::of(run_dir.as_os_str().as_encoded_bytes()).0
        );
        let base = mount.join(name);
        make(&base).ok()?;
        // A hierarchy that is mounted read-only, or shows someone else's root, fails here and not at the first spawn.
        let probe = base.join("probe");
        make(&probe).ok()?;
        fs::remove_dir(&probe).ok()?;
        pass_controllers(&base);
        Some(Self {
            workers: base.clone(),
            remove: Some(base),
            kind: Containment::Cgroup,
        })
    }

    /// A directory of that run's below the cgroup that we are in, if we may make one: whatever ends us from outside ends it too. No controller
    /// is passed down, so that processes may stay beside it (cgroups(7), no internal processes).
    pub fn below_us(cookie: &str) -> Option<Self> {
        let mount = mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?)?;
        let own = own_cgroup(&mount)?;
        // To be born below it a process needs leave to be moved within ours.
        for needed in [&own, &own.join("cgroup.procs")] {
            rustix::fs::access(needed, rustix::fs::Access::WRITE_OK).ok()?;
        }
        // Made with the first leaf, when a lock's record names it: whoever dies before leaves nothing.
        let base = own.join(format!("{OF_ONE_COMMAND}{}", cookie.get(..16)?));
        Some(Self {
            workers: base.clone(),
            remove: Some(base),
            kind: Containment::Cgroup,
        })
    }

    /// How strong it is.
    pub fn kind(&self) -> Containment {
        self.kind
    }

    /// Where the leaves are.
    pub fn path(&self) -> &Path {
        &self.workers
    }

    /// A fresh leaf.
    pub fn leaf(&self, name: &str) -> io::Result<Leaf> {
        let path = self.workers.join(name);
        match fs::create_dir(&path) {
            // Somebody tidied up above us.
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&path)?,
            done => done?,
        }
        Ok(Leaf { path })
    }

    /// Leaves that an earlier run left behind.
    pub fn leftovers(&self) -> Vec<Leaf> {
        let entries = fs::read_dir(&self.workers).into_iter().flatten().flatten();
        entries
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| Leaf { path: e.path() })
            .collect()
    }

    /// Removes the directory we made at the root of the hierarchy; fails while a leaf is in it.
    pub fn remove(&self) -> io::Result<()> {
        self.remove.as_ref().map_or(Ok(()), fs::remove_dir)
    }
}

/// What directories of one command's begin with.
const OF_ONE_COMMAND: &str = "leasehold-lock-";

/// Was this directory made for one command, and for no run but one?
pub fn is_of_one_command(workers: &Path) -> bool {
    let name = workers.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(OF_ONE_COMMAND))
}

/// All leaves below `workers`.
pub fn leaves_below(workers: &Path) -> Vec<Leaf> {
    let entries = fs::read_dir(workers).into_iter().flatten().flatten();
    let leaves = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    leaves.map(|entry| Leaf::at(entry.path())).collect()
}

/// Leaves of any generation of a worker, and of its helpers, below `workers`: another daemon's directory, perhaps.
pub fn leaves_of(workers: &Path, worker: &WorkerId) -> Vec<Leaf> {
    let slot = RowKey::Slot(worker.clone()).to_string().replace('/', ".");
    let is_of_it = |name: &str| {
        let rest = name.strip_prefix(&slot)?;
        let (_, generation) = rest.rsplit_once('.')?;
        let own = rest.starts_with(':') || rest.strip_prefix('.') == Some(generation);
        let number = generation.bytes().all(|b| b.is_ascii_digit());
        (own && number && !generation.is_empty()).then_some(())
    };
    let entries = fs::read_dir(workers).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_name().to_str().and_then(is_of_it).is_some())
        .map(|e| Leaf { path: e.path() })
        .collect()
}

/// The leaf of one generation: `web.3.17`.
pub fn leaf_name(key: &RowKey, generation: Generation) -> String {
    format!("{}.{generation}", key.to_string().replace('/', "."))
}

/// One generation's cgroup.
#[derive(Debug)]
pub struct Leaf {
    path: PathBuf,
}

impl Leaf {
    /// A leaf by its path, as told by the keeper.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a limit (`memory.max`), if the controller is there; false if it is not.
    pub fn limit(&self, file: &str, value: &str) -> io::Result<bool> {
        match fs::write(self.path.join(file), value) {
            Ok(()) => Ok(true),
            Err(e)
                if e.kind() == io::ErrorKind::NotFound
                    || e.kind() == io::ErrorKind::PermissionDenied =>
            {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Its directory, open: a child is born into it.
    pub fn open(&self) -> io::Result<OwnedFd> {
        Ok(fs::File::open(&self.path)?.into())
    }

    /// What a `1` written to kills every process in it; none before Linux 5.14.
    pub fn killer(&self) -> Option<OwnedFd> {
        let file = fs::File::options()
            .write(true)
            .open(self.path.join("cgroup.kill"));
        file.ok().map(OwnedFd::from)
    }

    /// SIGKILL to every process in it, forks in flight included.
    pub fn kill(&self) -> io::Result<()> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.path.exists() => {
                self.kill_one_by_one()
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Before Linux 5.14: one pass; whoever forked meanwhile is killed by the next one.
    fn kill_one_by_one(&self) -> io::Result<()> {
        for pid in self.members()? {
            super::child::kill_proven(pid, false, || {
                self.members().is_ok_and(|now| now.contains(&pid))
            });
        }
        Ok(())
    }

    fn members(&self) -> io::Result<Vec<i32>> {
        let text = fs::read_to_string(self.path.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Is a process in it or below it? A leaf that is gone is empty.
    pub fn populated(&self) -> io::Result<bool> {
        match self.watch() {
            Ok(watch) => watch.populated(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Something that polls as priority data whenever `populated` changes.
    pub fn watch(&self) -> io::Result<Watch> {
        Ok(Watch(
            fs::File::open(self.path.join("cgroup.events"))?.into(),
        ))
    }

    /// Removes it if nobody is in it and nothing below it: one system call that answers both.
    pub fn remove_if_empty(&self) -> bool {
        fs::remove_dir(&self.path).is_ok()
    }

    /// Removes it and what a worker made below it, deepest first.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.path)
    }
}

/// An open `cgroup.events`.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Is a process in it or below it? The kernel compares later changes with what this read through this very descriptor.
    pub fn populated(&self) -> io::Result<bool> {
        let mut text = [0; 64];
        match rustix::io::pread(&self.0, &mut text, 0) {
            Ok(n) => Ok(!text[..n]
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"populated 0")),
            // Its directory was removed under us.
            Err(rustix::io::Errno::NODEV) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        // A worker made cgroups of its own below it.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            for entry in fs::read_dir(path)?.flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    remove_tree(&entry.path())?;
                }
            }
            fs::remove_dir(path)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// The first cgroup2 mount of a mountinfo table (proc_pid_mountinfo(5)) that shows its hierarchy's root.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mut fields = head.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        (tail.starts_with("cgroup2 ") && root == "/")
            .then(|| PathBuf::from(mount.replace("\\040", " ")))
    })
}

fn own_cgroup(mount: &Path) -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = table.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(mount.join(path))
}

/// Did systemd give this unit's cgroup away?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delegation {
    Yes,
    No,
    /// systemd before 251 marks it with `trusted.delegate` alone, which only CAP_SYS_ADMIN may read.
    Unknown,
}

/// systemd marks what it gave away (systemd's CGROUP_DELEGATION document).
fn delegation(unit: &Path) -> Delegation {
    let marked = |name: &str| {
        let mut value = [0_u8; 4];
        rustix::fs::getxattr(unit, name, &mut value).is_ok_and(|n| value.get(..n) == Some(b"1"))
    };
    if marked("user.delegate") || marked("trusted.delegate") {
        return Delegation::Yes;
    }
    if may_read_trusted() {
        Delegation::No
    } else {
        Delegation::Unknown
    }
}

/// CAP_SYS_ADMIN, without which attributes named `trusted.` do not seem to exist (xattr(7)).
fn may_read_trusted() -> bool {
    let effective = rustix::thread::capabilities(None).map(|sets| sets.effective);
    effective.is_ok_and(|set| set.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

/// Says what a leaf is to weigh beside its siblings. Where the controller was not given to us there is no such file, and nothing is said.
pub fn weigh(leaf: &Path, weight: u32) {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(leaf.join("cpu.weight"));
    if let Ok(mut file) = file {
        // The leaf may be going.
        let _ = file.write_all(weight.to_string().as_bytes());
    }
}

/// Offers every controller we have to the level below; one that is refused is simply not there for limits.
fn pass_controllers(path: &Path) {
    let available = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in available
        .split_whitespace()
        .filter(|c| ["cpu", "memory", "pids", "io"].contains(c))
    {
        let _ = fs::write(
            path.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weighs_only_what_can_be_weighed() {
        let leaf = tempfile::tempdir().unwrap();
        weigh(leaf.path(), 50);
        assert!(!leaf.path().join("cpu.weight").exists());
        fs::write(leaf.path().join("cpu.weight"), "100").unwrap();
        weigh(leaf.path(), 250);
        assert_eq!(
            fs::read_to_string(leaf.path().join("cpu.weight")).unwrap(),
            "250"
        );
    }

    #[test]
    fn finds_cgroup2_beside_version_1() {
        let table = "30 23 0:26 / /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids\n\
                     31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mount_point(table),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        assert_eq!(
            mount_point("31 23 0:27 /docker/x /sys/fs/cgroup rw - cgroup2 none rw\n"),
            None
        );
    }
}
