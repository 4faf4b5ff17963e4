//! What a simulated world has before it, for a heap: the earliest first, and of two at the same time whichever was put in first.

use std::cmp::Ordering;

use leasehold::time::Moment;

/// Something that is to happen: when, after how many others, what.
#[derive(Clone, Debug)]
pub(crate) struct Due<T>(pub(crate) Moment, pub(crate) u64, pub(crate) T);

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl<T> Eq for Due<T> {}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}
