//! Which slots of a fleet are to be filled.

use std::collections::BTreeSet;

use crate::id::SlotIndex;

/// The slots that are to be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Places {
    /// So many from 0.
    First(u32),
    /// These: a fleet that follows the load gives up whichever worker it can best do without.
    These(BTreeSet<SlotIndex>),
}

impl Places {
    pub(super) fn contains(&self, index: SlotIndex) -> bool {
        match self {
            Self::First(size) => index.0 < *size,
            Self::These(members) => members.contains(&index),
        }
    }

    pub(super) fn len(&self) -> u32 {
        match self {
            Self::First(size) => *size,
            Self::These(members) => members.len() as u32,
        }
    }

    pub(super) fn iter(&self) -> Box<dyn Iterator<Item = SlotIndex> + '_> {
        match self {
            Self::First(size) => Box::new((0..*size).map(SlotIndex)),
            Self::These(members) => Box::new(members.iter().copied()),
        }
    }

    /// So many more, for what a rollout has beside the others.
    pub(super) fn beyond(&self, more: u32) -> Vec<SlotIndex> {
        match self {
            Self::First(size) => (*size..size.saturating_add(more)).map(SlotIndex).collect(),
            Self::These(members) => {
                let others = (0..)
                    .map(SlotIndex)
                    .filter(|index| !members.contains(index));
                others.take(more as usize).collect()
            }
        }
    }
}
