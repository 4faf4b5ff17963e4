//! Somebody who wants a lock: the files it may be, who has them, and what is left of a dead holder.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    config::spec::{LOCAL, SingletonSpec},
    driver::taking::{Missed, holder_of},
    engine::{gate::Holder, release::Given},
    locks::{self, Bell, LockFault, LockFile, Record},
    time::Span,
};

/// Somebody who wants a lock.
pub(super) struct Seeker {
    pub(super) spec: SingletonSpec,
    /// What to write into the lock; none: the next fence of those that it has given.
    pub(super) fence: Option<u64>,
    /// Tells its results from those of one that was called off.
    pub(super) ticket: u64,
    /// The files it may be; opened once, since closing one rings everybody's bell.
    pub(super) files: BTreeMap<PathBuf, LockFile>,
    /// Runs that are over and of which somebody had inherited the lock.
    pub(super) buried: BTreeSet<String>,
    /// What is left of the last holder is being ended, by a thread that stops when this is set.
    pub(super) settling: Option<Arc<AtomicBool>>,
    /// It is not to be taken, only watched.
    pub(super) yields: Option<Yielding>,
    /// Why the last look came to nothing, if not because somebody has it.
    pub(super) fault: Option<LockFault>,
    /// A file that somebody may have held was replaced while it was waited for.
    pub(super) replaced: bool,
}

/// A lock that was given back for others to take.
pub(super) struct Yielding {
    pub(super) given: Given,
    /// Until the next look.
    pub(super) pause: Span,
}

impl Seeker {
    pub(super) fn call_off(&self) {
        if let Some(settling) = &self.settling {
            settling.store(true, Ordering::Relaxed);
        }
    }

    /// How many there are; a file that was named by hand is a lock of one.
    pub(super) fn slots(&self) -> Option<u32> {
        let by_name = self.spec.flock.is_none();
        by_name.then_some(self.spec.slots)
    }

    /// Opens a file, again if it was replaced, and takes it if it is free.
    pub(super) fn try_file(&mut self, path: &Path, bell: &mut Bell) -> Result<bool, LockFault> {
        self.open(path, bell)?;
        match self.files.get(path) {
            // A file that was replaced while we took it is not the lock.
            Some(file) => Ok(file.try_take()? && file.is_named()),
            None => Ok(false),
        }
    }

    /// Opens a file, again if it was replaced.
    pub(super) fn open(&mut self, path: &Path, bell: &mut Bell) -> Result<(), LockFault> {
        if self.files.get(path).is_none_or(|file| !file.is_named()) {
            let own = self.spec.flock.is_none();
            let file = LockFile::open(path, own, self.spec.allow_network_fs)?;
            self.replaced |= self.files.insert(path.to_owned(), file).is_some();
        }
        let _ = bell.watch(path);
        Ok(())
    }

    /// Does somebody hold it as one of another number of slots? Looked up before it is tried for the first time, and by whoever takes it.
    pub(super) fn wrong_number(&self) -> Option<String> {
        let first = self.spec.flock.is_none().then(|| paths(&self.spec));
        let first = first.and_then(|paths| paths.into_iter().next())?;
        locks::other_number(&first, self.spec.slots).ok().flatten()
    }

    pub(super) fn record(&self, path: &Path) -> Option<Record> {
        let record = self.files.get(path)?.record().ok().flatten()?;
        (record.held && record.is_of_this_boot()).then_some(record)
    }

    /// A lock lasts as long as anybody who has inherited it. Where its holder is dead those are ended, once, by a thread of its own;
    /// true if that has just begun.
    pub(super) fn bury_holder(&mut self, path: &Path) -> bool {
        let record = self.record(path).filter(locks::is_orphaned);
        let Some(record) = record.filter(|one| self.buried.insert(one.cookie.clone())) else {
            return false;
        };
        tokio::task::spawn_blocking(move || locks::bury(&record));
        true
    }

    /// Who has it, for people.
    pub(super) fn holder(&self, path: &Path) -> Missed {
        let record = self.record(path);
        if let Some(record) = record {
            // To look at all files would ring the bell for everybody who waits for them, and for us.
            if let Some(why) = locks::of_another_number(&record, self.spec.slots) {
                return Missed::Wrong(why);
            }
            let why = format!("held by {}", record.holder());
            return Missed::Busy(why, Some(holder_of(&record)));
        }
        let file = self.files.get(path);
        match file.and_then(locks::holder_by_kernel) {
            Some(pid) => {
                let why = format!("held by pid {pid} ({})", path.display());
                let record = None;
                Missed::Busy(why, Some(Holder { pid, record }))
            }
            None => {
                let why = format!("held by somebody else ({})", path.display());
                Missed::Busy(why, None)
            }
        }
    }
}

/// Every file that would do.
pub(super) fn paths(spec: &SingletonSpec) -> Vec<PathBuf> {
    match &spec.flock {
        Some(path) => vec![PathBuf::from(path)],
        None => {
            let cluster = spec.cluster().unwrap_or(LOCAL);
            (0..spec.slots)
                .map(|slot| locks::default_path(cluster, spec.lock.as_str(), slot))
                .collect()
        }
    }
}
