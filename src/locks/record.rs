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
    /// The node, for people.
    pub node: String,
    /// Since when, for people.
    pub since: String,
    /// Of how many slots this is one, if the file was chosen by the lock's name.
    #[serde(default)]
    pub slots: Option<u32>,
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
            held: true,
            path: path.to_owned(),
            boot: host::boot_id(),
            pid_namespace: host::pid_namespace(),
            cookie: "0".repeat(32),
            uid: 0,
            keeper: Proc { pid: 1, start: 1 },
            cgroups: None,
            worker: WorkerId::new("web".parse().unwrap(), 0),
            leader: None,
            node: "here".to_owned(),
            since: "today".to_owned(),
            slots: None,
        }
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
