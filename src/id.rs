//! Names and numbers that two functions could mix up, as types of their own.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest fleet name: it becomes a directory, a cgroup and a label, and must leave room for `.SLOT.GEN`.
pub const FLEET_NAME_MAX: usize = 64;

/// The name of a fleet: letters, digits, `-`, `_`, `.`; starts with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FleetName(Arc<str>);

/// Why a text is not a fleet name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a name has 1 to 64 letters, digits, `-`, `_` or `.`, and starts with a letter or digit")]
pub struct BadName;

impl FleetName {
    /// Stands in for a name that was lost.
    pub(crate) fn unknown() -> Self {
        Self("unknown".into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FleetName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let body_ok = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        let head_ok = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if body_ok && head_ok && text.len() <= FLEET_NAME_MAX {
            Ok(Self(text.into()))
        } else {
            Err(BadName)
        }
    }
}

impl TryFrom<String> for FleetName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<FleetName> for String {
    fn from(name: FleetName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for FleetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for FleetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The stable number of a slot inside its fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotIndex(pub u32);

impl fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which spawn of a slot: issued by the keeper, counted from 1, never reused; 0 is "none yet".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation that the next spawn gets.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A worker's place: fleet and slot, written `web/3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId {
    /// The fleet it belongs to.
    pub fleet: FleetName,
    /// Its stable number there.
    pub slot: SlotIndex,
}

impl WorkerId {
    /// Slot `slot` of `fleet`.
    pub fn new(fleet: FleetName, slot: u32) -> Self {
        Self {
            fleet,
            slot: SlotIndex(slot),
        }
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.fleet, self.slot))
    }
}

/// Identifies what a spawn would look like: a hash over everything that reaches the worker.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Revision(pub u64);

impl Revision {
    /// FNV-1a over `bytes`: stable over processes and versions, which `std`'s hasher does not promise.
    pub fn of(bytes: &[u8]) -> Self {
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(hash)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 32 ^ self.0 & 0xffff_ffff)
    }
}

/// Ties the answer of a command to the client that waits for it; dies with the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_paths_are_refused() {
        for bad in ["", "a/b", "-a", ".", "..", "a b", "ä", &"x".repeat(65)] {
            assert_eq!(bad.parse::<FleetName>(), Err(BadName), "{bad:?}");
        }
        for good in ["web", "9lives", "a.b_c-d"] {
            assert_eq!(good.parse::<FleetName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn revisions_differ_and_are_stable() {
        assert_eq!(Revision::of(b"a"), Revision(0xaf63_dc4c_8601_ec8c));
        assert_ne!(Revision::of(b"a"), Revision::of(b"b"));
    }
}
