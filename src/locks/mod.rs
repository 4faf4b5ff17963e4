//! Locks between daemons of one machine: flock(2) on a file, and in the file who holds it.
//!
//! Holding the lock is necessary, not sufficient. The lock lives as long as any duplicate of its descriptor, so it goes with a holder
//! whose workers have closed theirs, and a file that was unlinked can be locked a second time. Hence the record: whoever takes the lock
//! first ends what the record proves to be left of the holder before, or waits and says for whom.
//!
//! | file | what |
//! | --- | --- |
//! | `file` | opening, taking, and is it still the file of that name |
//! | `record` | who holds it, and the fence |
//! | `predecessor` | ending what a holder before left behind |
//! | `slots` | do all who use a lock mean the same number of slots? |
//! | `bell` | waking up when somebody lets go |

mod bell;
mod file;
mod predecessor;
mod record;
mod slots;

pub use bell::Bell;
pub use file::{LockFault, LockFile, default_path, holder_by_kernel};
pub use predecessor::{Own, Patience, bury, give_way, is_orphaned, settle};
pub use record::{Next, Proc, Record};
pub use slots::{of_another_number, other_number, others_held, settle_others};
