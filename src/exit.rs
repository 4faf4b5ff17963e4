//! Every way to end, with the number that scripts may rely on.

use serde::{Deserialize, Serialize};

/// The exit code of a `leasehold` command; the numbers are a public interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum ExitCode {
    /// Done as asked.
    Ok = 0,
    /// The work failed; stderr says how.
    Failed = 1,
    /// The command line does not make sense (clap's own code).
    Usage = 2,
    /// Something asked about is not ready, or not running.
    NotReady = 3,
    /// No fleet or worker has this name.
    UnknownName = 4,
    /// `plan --detailed-exitcode`: the files differ from what runs.
    ChangesPending = 5,
    /// Waiting took longer than allowed; the work goes on.
    WaitTimedOut = 6,
    /// No daemon answers on the control socket.
    Unreachable = 7,
    /// The daemon, or the system, does not let this user do it.
    Permission = 8,
    /// It contradicts what is going on (draining, another instance).
    Conflict = 9,
    /// The configuration has faults (sysexits.h EX_CONFIG).
    Config = 78,
    /// Interrupted by Ctrl-C while waiting.
    Interrupted = 130,
}

impl ExitCode {
    /// The number itself.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.number())
    }
}
