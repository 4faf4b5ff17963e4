//! The supervisor process: every source becomes one `Event`, the engine decides, every `Effect` becomes one call.
//!
//! | file | what |
//! | --- | --- |
//! | `boot` | what the keeper tells first; configuration; listeners |
//! | `begin` | from there to a loop that can run |
//! | `run` | the loop: wait, step, perform |
//! | `inputs` | the keeper's news and workers' notes become events |
//! | `perform` | effects become calls |
//! | `link` | the wire to the keeper |
//! | `inbox` | what other threads and tasks hand in |
//! | `journal` | the one record of each thing that happened: a ring, and a line |
//! | `gates` | locks of singletons: sought, given back, still the file of that name |
//! | `seeker` | who wants a lock, and who has it |
//! | `taking` | what is left of the last holder is ended, and we write ourselves in |
//! | `authority` | renews the leases of gates that must be renewed |
//! | `deadlines` | the wire to the keeper's deadline thread |
//! | `door` | the HTTP thread's way to the engine |
//! | `console` | the terminal, on a thread of its own: a slow one loses lines, not time |
//! | `alarm` | the wall clock, for jobs |
//! | `load` | what fleets that follow the load need: measurements, sources, a knock |
//! | `sampler` | the thread that measures |
//! | `state` | the operator's intent on disk |
//! | `books` | what is known of jobs' ticks, on disk |
//! | `errand` | one command under one lock, without a daemon |
//! | `probe` | TCP and HTTP probes; environment files |
//! | `last_rites` | the keeper is dead: everything ends |

mod alarm;
mod authority;
mod begin;
mod books;
mod boot;
mod cluster;
mod console;
mod deadlines;
mod door;
mod errand;
mod gates;
mod inbox;
mod inputs;
mod journal;
mod last_rites;
mod link;
mod load;
mod perform;
mod probe;
mod run;
mod sampler;
mod seeker;
mod state;
mod taking;

use std::path::PathBuf;

use crate::{exit::ExitCode, http::Directories};

pub use errand::{ClusterErrand, Errand};
pub use inputs::parse_note;

/// What the supervisor is told on its command line.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration's main file.
    pub config: PathBuf,
    /// Where everything is.
    pub directories: Directories,
    /// Print neither events nor worker lines.
    pub quiet: bool,
    /// Print worker lines even when stdout is not a terminal.
    pub echo: bool,
    /// systemd wants to be told.
    pub systemd: bool,
    /// One command instead of a configuration: nothing is read, written or listened to.
    pub errand: Option<Errand>,
}

/// Runs the supervisor until the keeper is told to exit, or is gone.
pub fn run(settings: Settings) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(run::supervise(settings));
            // A probe or a read that hangs must not keep a finished supervisor.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("leasehold: failed to start the supervisor's event loop: {error}");
            ExitCode::Failed.number()
        }
    }
}
