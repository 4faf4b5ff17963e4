//! What other threads and tasks hand to the loop.

use std::os::fd::OwnedFd;

use tokio::sync::oneshot;

use crate::{
    config::Config,
    driver::taking::Taken,
    engine::{
        Event,
        book::Book,
        cluster::rpc::News,
        command::{Command, Denial, Reply},
        event::Purpose,
        load::Sample,
        status::Status,
    },
    http::Measures,
    id::{FleetName, Generation, WorkerId},
    logs::{Source, Trouble},
};

/// One thing handed in.
pub(super) enum Inbox {
    /// A client wants something done.
    Command(Command, oneshot::Sender<Result<Reply, Denial>>),
    /// A client wants to see.
    Status(oneshot::Sender<Status>),
    /// A client wants to see what was counted, too.
    Measures(oneshot::Sender<Box<Measures>>),
    /// A client wants to see what is configured.
    Config(oneshot::Sender<Box<Config>>),
    /// A probe has its answer.
    Probed(WorkerId, Generation, Result<(), String>),
    /// Environment files were read.
    EnvRead(WorkerId, Generation, Result<Vec<(String, String)>, String>),
    /// A configuration was read.
    ConfigRead(Purpose, Result<Box<Config>, String>),
    /// The intent is on disk, or not.
    IntentSaved(Result<(), String>),
    /// A job's book was read.
    BookRead(FleetName, Result<Option<Box<Book>>, String>),
    /// A job's book is on disk, or not.
    BookKept(FleetName, Result<(), String>),
    /// A lock was taken for this ticket, with nothing left of its last holder; or why not.
    Locked(WorkerId, u64, Taken),
    /// News of a lock.
    Gate(Event),
    /// etcd answered, or showed something.
    Etcd(News),
    /// A published file is in its place, or not.
    Published(Event),
    /// The keeper is to hold this.
    Hold(String, OwnedFd),
    /// What was to be measured.
    Sampled(Box<Sample>),
    /// Somebody waits at a socket of a fleet without workers.
    Knock(FleetName),
    /// What a fleet's source said.
    Sourced(FleetName, Result<u64, String>),
    /// A log was read to its end and closed.
    LogClosed(Source),
    /// Output cannot be written where it belongs, or can again.
    LogTrouble(Trouble),
}
