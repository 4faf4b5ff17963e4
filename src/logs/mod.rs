//! Worker output to rotating files: whole lines, exactly once, on a thread of its own.
//!
//! A line is looked at with tee(2) and moved with splice(2): what has not reached its file is still in the pipe, which the keeper
//! holds. A supervisor killed at any instruction therefore loses nothing and repeats nothing.

mod capture;
mod file;
mod stream;

pub use capture::{Capture, Closed, Line, Settings, Source};
pub use file::{LogFile, path_of};
