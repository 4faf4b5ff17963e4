//! Everything that can happen to the engine.

use crate::{
    config::Config,
    engine::{
        book::Book, cluster::rpc::News, command::Command, gate::GateNews, lease::LeaseNews,
        load::Sample, publish::Written,
    },
    id::{FleetName, Generation, RequestId, WorkerId},
    time::{Span, Stamp},
    wire::{Asked, Header, RowKey},
};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The keeper tells what became of processes.
    Rows(Vec<(RowKey, Header)>),
    /// The keeper refused a spawn.
    Refused {
        /// Where.
        key: RowKey,
        /// The generation it was to follow.
        after: Generation,
    },
    /// Signals asked something of the daemon.
    Asked(Asked),
    /// A worker said something on its notify socket.
    Note {
        /// Who.
        worker: WorkerId,
        /// Which generation; old news is dropped.
        generation: Generation,
        /// What.
        note: Note,
    },
    /// A probe has its answer.
    Probed {
        /// Of whom.
        worker: WorkerId,
        /// Which generation was asked.
        generation: Generation,
        /// Passed, or why not.
        result: Result<(), String>,
    },
    /// The environment files of a worker about to start were read.
    EnvRead {
        /// Whose.
        worker: WorkerId,
        /// The generation it is to follow.
        after: Generation,
        /// `KEY=value` lines, or why not.
        result: Result<Vec<(String, String)>, String>,
    },
    /// A worker's lock was taken, cannot be had, or is gone.
    Gate {
        /// Whose.
        worker: WorkerId,
        /// What.
        news: GateNews,
    },
    /// etcd answered, or showed something.
    Etcd(News),
    /// A worker's gate lasts longer, or no longer.
    Lease {
        /// Whose.
        worker: WorkerId,
        /// Which holder.
        fence: u64,
        /// What.
        news: LeaseNews,
    },
    /// Somebody wants something.
    Command {
        /// To whom the answer goes.
        request: RequestId,
        /// What.
        command: Command,
    },
    /// A configuration was read, as asked; an error is the rendered faults.
    ConfigRead {
        /// Why it was read.
        purpose: Purpose,
        /// What it says.
        result: Result<Box<Config>, String>,
    },
    /// The operator's intent is on disk, or is not.
    IntentSaved {
        /// Why not.
        result: Result<(), String>,
    },
    /// The wall clock shows this: it is as late as was to be said, or it was set.
    Wall {
        /// What it shows.
        shown: Stamp,
    },
    /// A job's book was read; none if there is none yet, an error if it tells nothing.
    BookRead {
        /// Whose.
        fleet: FleetName,
        /// It, or why not.
        result: Result<Option<Box<Book>>, String>,
    },
    /// A job's book is on disk, or is not.
    BookKept {
        /// Whose.
        fleet: FleetName,
        /// Why not.
        result: Result<(), String>,
    },
    /// What was to be measured was measured.
    Sampled(Box<Sample>),
    /// Somebody waits at a socket of a fleet that has no workers.
    Knock(FleetName),
    /// What a fleet's source says of its queue, in thousandths; or why it says nothing.
    Sourced {
        /// Whose.
        fleet: FleetName,
        /// So many, or why not.
        result: Result<u64, String>,
    },
    /// A published file is in its place, or is not.
    Written {
        /// Whose.
        fleet: FleetName,
        /// Its number there.
        file: u32,
        /// Which request this answers.
        ticket: u64,
        /// What is there now, or why not.
        result: Result<Written, String>,
    },
    /// What was put aside for a published file is gone.
    Settled {
        /// Whose.
        fleet: FleetName,
        /// Its number there.
        file: u32,
        /// Which request this answers.
        ticket: u64,
    },
    /// What was there before is there again, or is not.
    Restored {
        /// Whose.
        fleet: FleetName,
        /// Its number there.
        file: u32,
        /// Which request this answers.
        ticket: u64,
        /// Why not.
        result: Result<(), String>,
    },
    /// Time has passed.
    Tick,
}

/// Why a configuration is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be accepted; the client, if one waits, gets the plan.
    Reload(Option<RequestId>),
    /// To be compared only.
    Plan(RequestId),
}

/// What a worker says (sd_notify(3)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// READY=1.
    Ready,
    /// STOPPING=1: it goes by itself, and takes no more work.
    Stopping,
    /// WATCHDOG=1.
    Watchdog,
    /// WATCHDOG=trigger: it says itself that it is broken.
    WatchdogTrigger,
    /// EXTEND_TIMEOUT_USEC=n.
    Extend(Span),
    /// STATUS=text, for people; bounded.
    Status(String),
    /// X_LEASEHOLD_BUSY=0.7: the share of it that works, in parts per million.
    Busy(u32),
    /// X_LEASEHOLD_INFLIGHT=n: what it works on.
    Inflight(u32),
    /// X_LEASEHOLD_QUEUE=n: what waits for it.
    Queue(u32),
    /// X_LEASEHOLD_DONE=n: what it has done so far.
    Done(u64),
    /// One of these, and no value that it can have; bounded.
    Nonsense(String),
}
