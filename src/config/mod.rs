//! Text becomes checked settings. Nothing here runs anything; what must be looked up outside comes through [`Surroundings`].
//!
//! | file | what |
//! | --- | --- |
//! | `document` | files as trees with their places; the list of faults |
//! | `files` | the main file and those it includes |
//! | `section` | a table over its defaults; typed access that collects every fault |
//! | `forms` | how texts such as addresses are read, and what was meant by wrong ones |
//! | `resolve` | the whole: node, http, fleets, and what holds between them |
//! | `fleet` | one `[fleet.NAME]` and its smaller tables |
//! | `process`, `commands`, `limits` | what reaches a worker's process |
//! | `probes` | is it ready, is it well |
//! | `cron` | one `[cron.NAME]` |
//! | `singleton` | the lock that its workers need |
//! | `publish`, `records` | where they are found, and who is told |
//! | `template` | what templates of published files and records see |
//! | `spec` | what it all means: [`Config`] |
//! | `calendar`, `crontab` | schedules: when they are due, and how they are typed |
//! | `diff` | what a reload would do |
//! | `shown` | a fleet's settings as people type them |
//! | `units` | `30s`, `8MiB`, `20/s` |
//! | `fault` | what is wrong, where, and what would do |

pub mod calendar;
mod commands;
mod cron;
mod crontab;
pub mod diff;
mod document;
mod etcd;
pub mod fault;
mod files;
mod fleet;
mod forms;
mod limits;
mod probes;
mod process;
mod publish;
pub mod records;
mod resolve;
mod scale;
mod section;
pub mod shown;
mod singleton;
pub mod spec;
pub mod template;
pub mod units;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use fault::{Fault, Faults};
pub(crate) use fleet::revision;
pub use resolve::{check, load, membership};
pub use spec::Config;

use crate::wire::Credentials;

/// What ends whatever a worker may have become, when the daemon dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastResort {
    /// systemd, the kernel with a container, or the kernel with a PID namespace that the daemon may make.
    #[default]
    ThereIs,
    /// Nothing, and it is the daemon that asks.
    None,
    /// Nothing here; the daemon may be elsewhere.
    NoneHere,
}

/// What a configuration may ask of the world: given by `sys` in the program, by a table in tests.
pub trait Surroundings {
    /// An environment variable, for `${NAME}`.
    fn variable(&self, name: &str) -> Option<String>;
    /// A file's text, for the files themselves and `${file:…}`.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// Is it a regular file, or a link to one? The error says why nobody knows; most often there is nothing.
    fn is_regular(&self, path: &Path) -> io::Result<bool>;
    /// Files in `dir` that match a pattern with one `*` in their name, in lexical order.
    fn matching(&self, dir: &Path, pattern: &str) -> io::Result<Vec<PathBuf>>;
    /// A user's numeric identity; the error reads as a sentence.
    fn credentials(
        &self,
        user: &str,
        group: Option<&str>,
        groups: Option<&[String]>,
    ) -> Result<Credentials, String>;
    /// A user's home directory and login name.
    fn home(&self, user: &str) -> Option<(String, String)>;
    /// Does this name an executable file?
    fn is_executable(&self, path: &Path) -> bool;
    /// The machine's name.
    fn hostname(&self) -> String;
    /// May we become another user?
    fn is_root(&self) -> bool;
    /// Does everything that a worker may leave behind end with the daemon?
    fn last_resort(&self) -> LastResort;
    /// The hard limit on open descriptors.
    fn nofile_hard(&self) -> u64;
    /// How many CPUs there are.
    fn cpus(&self) -> u32;
    /// What we may use of them (affinity, `cpu.max`), in thousandths of a core.
    fn usable_cores(&self) -> u32;
}
