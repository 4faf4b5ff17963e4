//! What a holder writes into its lock file: enough to prove, and end, what is left of it; and the fence.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{id::WorkerId, sys::host};

/// A record takes this much, always: one write replaces all of it.
pub(super) const RECORD_BYTES: usize = 8192;

/// A process that cannot be mistaken for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proc {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

/// Who holds a lock, or held it last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this record.
    pub leasehold: u32,
    /// Grows with every holder.
    pub fence: u64,
    /// No fence up to this one is given again, whatever a power cut takes: it is on the disk before any of them is given.
    #[serde(default)]
    pub fences_kept: u64,
    /// Is it held? A holder that leaves in order says no once nothing of its worker is left.
    pub held: bool,
    /// The lock's file.
    pub path: PathBuf,
    /// The boot in which it was taken.
    pub boot: String,
    /// The pid namespace in which the pids mean something (its inode).
    pub pid_namespace: u64,
    /// `LEASEHOLD_RUN` of the daemon's processes.
    pub cookie: String,
    /// Uid of the daemon.
    pub uid: u32,
    /// Its keeper.
    pub keeper: Proc,
    /// The directory of its workers' cgroups, if they have any.
    pub cgroups: Option<String>,
    /// For which worker.
    pub worker: WorkerId,
    /// The worker's leader, once there is one.
    pub leader: Option<Proc>,
    /// The first process of the worker's own PID namespace, if it has one: everything of the worker ends with it.
    #[serde(default)]
    pub init: Option<Proc>,
    /// The node, for people.
    pub node: String,
    /// Since when, for people.
    pub since: String,
    /// Of how many slots this is one, if the file was chosen by the lock's name.
    #[serde(default)]
    pub slots: Option<u32>,
}

/// So many fences are put on the disk at once: to wait for a disk takes longer than all else in a takeover.
const FENCES_AT_ONCE: u64 = 100;

/// What a new holder writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Its fence.
    pub fence: u64,
    /// `fences_kept`.
    pub kept: u64,
    /// Must it be on the disk before the fence is given to anybody?
    pub must_reach_disk: bool,
}

impl Next {
    /// The fence after this one, of which those up to `kept` are on the disk.
    pub fn after(last: u64, kept: u64) -> Self {
        let fence = last.saturating_add(1);
        let must_reach_disk = fence > kept;
        Self {
            fence,
            kept: if must_reach_disk {
                fence.saturating_add(FENCES_AT_ONCE)
            } else {
                kept
            },
            must_reach_disk,
        }
    }
}

impl Record {
    /// Reads one; none if it is something else.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(bytes).ok()?;
        (record.leasehold == 1).then_some(record)
    }

    /// The text, padded with spaces to its full length and ended by a newline.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a record is plain data");
        debug_assert!(bytes.len() < RECORD_BYTES, "{self:?}");
        bytes.resize(RECORD_BYTES - 1, b' ');
        bytes.push(b'\n');
        bytes
    }

    /// Was it written in this boot? A holder of another one is dead.
    pub fn is_of_this_boot(&self) -> bool {
        self.boot == host::boot_id()
    }

    /// The fence of whoever comes after this holder.
    pub fn next_fence(&self) -> Next {
        // Of another boot, or another machine, the file may say what it said a while before the last holders.
        let last = if self.is_of_this_boot() {
            self.fence
        } else {
            self.fence.max(self.fences_kept)
        };
        Next::after(last, self.fences_kept)
    }

    /// For people: who has it.
    pub fn holder(&self) -> String {
        format!(
            "{} on {} (keeper pid {}) since {}",
            self.worker, self.node, self.keeper.pid, self.since
        )
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record of somebody who is dead.
    pub(in crate::locks) fn record(path: &std::path::Path) -> Record {
        Record {
            leasehold: 1,
            fence: 7,
            fences_kept: 7,
            held: true,
            path: path.to_owned(),
            boot: host::boot_id().to_owned(),
            pid_namespace: host::pid_namespace(),
            cookie: "0".repeat(32),
            uid: 0,
            keeper: Proc { pid: 1, start: 1 },
            cgroups: None,
            worker: WorkerId::new("web".parse().unwrap(), 0),
            leader: None,
            init: None,
            node: "here".to_owned(),
            since: "today".to_owned(),
            slots: None,
        }
    }

    #[test]
    fn fences_grow_and_reach_the_disk_before_they_are_given() {
        let mut last = record("/x".as_ref());
        let mut kept_on_disk = last.clone();
        let mut writes = 0;
        for holder in 0..5_000 {
            let next = last.next_fence();
            assert!(next.fence > last.fence, "{holder}");
            last = Record {
                fence: next.fence,
                fences_kept: next.kept,
                ..last
            };
            if next.must_reach_disk {
                writes += 1;
                kept_on_disk = last.clone();
            }
            assert!(kept_on_disk.fences_kept >= last.fence, "{holder}");
        }
        assert!(writes < 51, "{writes}");
        // The power was cut: what was not on the disk is forgotten, and no fence comes again.
        let found = Record {
            boot: "another".to_owned(),
            ..kept_on_disk
        };
        let next = found.next_fence();
        assert!(next.fence > last.fence && next.must_reach_disk);
        // A record of before there was anything kept.
        let old = Record {
            fences_kept: 0,
            ..record("/x".as_ref())
        };
        let next = old.next_fence();
        assert!(next.fence == 8 && next.must_reach_disk && next.kept >= 8);
    }

    #[test]
    fn a_record_from_before_slots_were_counted_is_read() {
        let new = Record {
            slots: Some(3),
            ..record("/x".as_ref())
        };
        let text = String::from_utf8(new.bytes()).unwrap();
        let old = text.replace(",\"slots\":3", "");
        assert_ne!(old, text);
        assert_eq!(Record::parse(old.as_bytes()), Some(record("/x".as_ref())));
        assert_eq!(Record::parse(text.as_bytes()), Some(new));
    }
}
