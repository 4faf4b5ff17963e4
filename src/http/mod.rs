//! Health and status over HTTP, and full control over the unix socket. On a thread of its own: it answers when the engine is stuck,
//! and says so.
//!
//! | file | what |
//! | --- | --- |
//! | `route` | method and path become a `Route`; pure |
//! | `view` | a `Status` becomes JSON, health documents, readiness; pure |
//! | `crons` | jobs become JSON; pure |
//! | `singletons` | locks become JSON; pure |
//! | `metrics` | a `Status` and a `Tally` become what Prometheus reads; pure |
//! | `scrape` | one page for all who scrape at once |
//! | `meter` | what workers use, read on a thread of its own |
//! | `endpoints` | what is published becomes JSON; pure |
//! | `scaling` | how fleets follow the load becomes JSON; pure |
//! | `server` | connections |

pub mod cluster;
pub mod crons;
pub mod endpoints;
mod meter;
pub mod metrics;
mod page;
pub mod route;
pub mod scaling;
mod scrape;
mod server;
pub mod singletons;
pub mod view;

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    config::Config,
    engine::{
        command::{Command, Denial, Reply},
        status::Status,
        tally::Tally,
    },
    time::Moment,
    wire::Containment,
};

pub use server::serve;

/// Where this daemon keeps things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directories {
    /// Control socket and instance lock.
    pub run: PathBuf,
    /// What must survive everything.
    pub state: PathBuf,
    /// Worker output.
    pub log: PathBuf,
}

/// Why the engine did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineError {
    /// It is not there any more.
    Gone,
}

/// An answer on its way.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, EngineError>> + Send>>;

/// What `/metrics` is made of, all of one instant.
#[derive(Clone, Debug)]
pub struct Measures {
    /// The picture.
    pub status: Status,
    /// What was counted.
    pub tally: Tally,
}

/// The way to the engine; handed in by the driver.
pub trait Engine: Send + Sync {
    /// Has it done.
    fn command(&self, command: Command) -> Answer<Result<Reply, Denial>>;
    /// The picture as it is now.
    fn status(&self) -> Answer<Status>;
    /// The picture with what was counted.
    fn measures(&self) -> Answer<Box<Measures>>;
    /// The accepted configuration.
    fn config(&self) -> Answer<Box<Config>>;
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    /// Counts up within one supervisor.
    pub number: u64,
    /// Incarnation and number: what `Last-Event-ID` gives back.
    pub id: String,
    /// RFC 3339.
    pub at: String,
    /// `web/3`, `web` or `leasehold`.
    pub subject: String,
    /// The worker, if it is about one.
    pub worker: Option<String>,
    /// Its generation.
    pub generation: Option<u64>,
    /// `started`, `ended`, `backing-off`, ….
    pub kind: String,
    /// The line for people.
    pub text: String,
    /// What it tells of a singleton's lock, if it is about one.
    #[serde(default)]
    pub gate: Option<singletons::GateEvent>,
}

/// What has happened lately; handed in by the driver.
pub trait Events: Send + Sync {
    /// Rows with a higher number, oldest first.
    fn after(&self, number: u64, limit: usize) -> Vec<EventRow>;
    /// The newest number, watched.
    fn watch(&self) -> watch::Receiver<u64>;
    /// Which supervisor this is; numbers of another one mean nothing here.
    fn incarnation(&self) -> u64;
}

/// Everything the handlers see.
#[derive(Clone)]
pub struct Surface {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The journal.
    pub events: Arc<dyn Events>,
    /// Where things are.
    pub directories: Directories,
    /// The keeper's pid.
    pub keeper: i32,
    /// When the keeper started.
    pub keeper_started: Moment,
    /// The strongest containment to be had here.
    pub containment: Containment,
    /// Directory of the workers' cgroups, if they have any.
    pub cgroup: Option<PathBuf>,
    /// Where TCP is answered.
    pub http: Vec<std::net::SocketAddr>,
}
