//! Worker output to rotating files, whole lines, exactly once; or to systemd's journal; on a thread of its own.
//!
//! A line is looked at with tee(2) and moved with splice(2): what has not reached its file is still in the pipe, which the keeper
//! holds. A supervisor killed at any instruction therefore loses nothing and repeats nothing. What goes to the journal is sent first
//! and consumed after: nothing is lost, and one batch may be repeated.

mod capture;
mod file;
mod journal;
mod stream;
mod tap;

pub use capture::{Author, Capture, Closed, Flow, Line, Settings, Source, Trouble};
pub use file::{LogFile, path_of};
