//! Everything the engine can want done, and the one record of each thing that happened.

use std::fmt;

use crate::{
    config::{
        Config,
        spec::{EnvFile, EtcdSpec, FleetSpec, SingletonSpec},
    },
    engine::{
        book::{Book, Miss, Outcome, Run, Skip},
        cluster::{Pin, rpc::Order},
        command::{Denial, Reply},
        event::Purpose,
        gate::Holder,
        intent::Intent,
        load::SampleOrder,
        publish::{FileJob, Listing, Undo},
        release::Given,
        scale::{Block, Reason},
        weights::Weighed,
    },
    id::{FleetName, Generation, RequestId, WorkerId},
    time::{Clocks, Moment, Span, Stamp},
    wire::{ExitStatus, Op, RowKey},
};

pub use crate::engine::words::{ExitWords, Rough};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell the keeper. Consecutive ones travel together.
    Keeper(Op),
    /// Ask a worker over the network.
    Probe {
        /// Whom.
        worker: WorkerId,
        /// Which generation.
        generation: Generation,
        /// Where and what.
        target: ProbeTarget,
        /// No answer by then is a failure.
        timeout: Span,
    },
    /// A probe was answered: for the counters alone. What people want to hear of it is recorded.
    Probed {
        /// Whose worker it was about.
        fleet: FleetName,
        /// What it was to tell.
        aim: ProbeAim,
        /// From the question to the answer.
        took: Span,
        /// Was it a yes?
        passed: bool,
    },
    /// Read environment files.
    ReadEnv {
        /// For whom.
        worker: WorkerId,
        /// The generation it is to follow.
        after: Generation,
        /// Which.
        files: Vec<EnvFile>,
    },
    /// Take a lock for a worker; answered by `Gate` events.
    SeekGate {
        /// For whom.
        worker: WorkerId,
        /// Which.
        spec: SingletonSpec,
        /// What to write into it; none: the next one of those that it has given.
        fence: Option<u64>,
    },
    /// Ask etcd, or watch it; answered by `Etcd` events.
    Etcd(Order),
    /// Write down which cluster this node belongs to.
    Pin(Pin),
    /// Say, by a `Gate` event that it waits, when somebody else has what was given back, and do not take it.
    YieldGate {
        /// For whom.
        worker: WorkerId,
        /// Which.
        spec: SingletonSpec,
        /// What was given back.
        given: Given,
    },
    /// Give its lock back, or look for it no longer: nothing of the worker is left.
    ShutGate(WorkerId),
    /// Have the keeper kill a worker then, unless told otherwise before; answered by `Lease` events.
    Arm {
        /// Whose.
        worker: WorkerId,
        /// Which holder.
        fence: u64,
        /// When.
        until: Clocks,
        /// What is left then before somebody else may run, if the cluster says who may.
        margin: Option<Span>,
    },
    /// There is nobody to kill any more.
    Disarm {
        /// Whose.
        worker: WorkerId,
        /// Which holder.
        fence: u64,
    },
    /// SIGKILL to a worker, or to a hook of his, without the keeper, which may be frozen.
    KillByHand(RowKey, Generation),
    /// Read the configuration, bind what it needs.
    ReadConfig(Purpose),
    /// Questions to etcd go this way from now on.
    Way(Option<EtcdSpec>),
    /// This configuration is now the accepted one.
    Accept {
        /// The whole.
        config: Box<Config>,
        /// What changed fleets looked like before, for rollback.
        previous: Vec<(FleetName, FleetSpec)>,
    },
    /// Write the operator's intent to disk; answered by `IntentSaved`.
    SaveIntent(Intent),
    /// Say so, by `Wall`, when the wall clock shows this or more; none: nobody waits for it.
    WakeAt(Option<Stamp>),
    /// Read a job's book; answered by `BookRead`.
    ReadBook(FleetName),
    /// Write a job's book to disk; answered by `BookKept`.
    KeepBook {
        /// Whose.
        fleet: FleetName,
        /// It.
        book: Box<Book>,
        /// The run that it claims: refused if what is on disk does not allow it.
        claim: Option<Run>,
    },
    /// Measure; answered by `Sampled`.
    Sample(SampleOrder),
    /// Say, by `Knock`, when somebody waits at a socket of a fleet that has no workers; with false, do not any more.
    Watch {
        /// Whose sockets.
        fleet: FleetName,
        /// Or no longer?
        on: bool,
    },
    /// Ask how long a queue is; answered by `Sourced`.
    AskSource {
        /// Who follows it.
        fleet: FleetName,
        /// `HOST:PORT`.
        address: String,
        /// The answer to a GET of it is the number.
        path: String,
        /// No answer by then is none.
        timeout: Span,
    },
    /// Have these workers' cgroups weigh so much, where there is a controller for it.
    Weigh(Vec<Weighed>),
    /// The program that was asked has ended well; answered by `Sourced` with what it wrote.
    ReadSource(FleetName),
    /// This is now what is published of a fleet; none: nothing is.
    Publish {
        /// Whose.
        fleet: FleetName,
        /// Grows with every list of this supervisor's.
        serial: u64,
        /// What.
        listing: Option<Listing>,
    },
    /// Put a file into its place, made from a list; answered by `Written`.
    WriteFile {
        /// Whose.
        fleet: FleetName,
        /// Its number there.
        file: u32,
        /// Names this request; of two for one path the larger wins.
        ticket: u64,
        /// What.
        job: Box<FileJob>,
    },
    /// Its check said no: put back what was there before; answered by `Restored`.
    RestoreFile {
        /// Whose.
        fleet: FleetName,
        /// Its number there.
        file: u32,
        /// Names this request.
        ticket: u64,
        /// Where.
        path: String,
        /// How.
        undo: Undo,
    },
    /// It is right: what was there before is not needed any more; answered by `Settled`.
    SettleFile {
        /// Whose.
        fleet: FleetName,
        /// Its number there.
        file: u32,
        /// Of the request that made it; what a newer one put aside stays.
        ticket: u64,
        /// Where.
        path: String,
    },
    /// For the count: a published file could not be made or its readers not be told, however often that was said.
    Unpublished {
        /// Whose.
        fleet: FleetName,
        /// Which.
        target: String,
    },
    /// A slot is not used any more: read its log to the end and close it.
    CloseLogs(WorkerId),
    /// Close sockets of this fleet that are not among these names.
    KeepSockets {
        /// Whose.
        fleet: FleetName,
        /// Names still wanted.
        names: Vec<String>,
    },
    /// Reopen log files.
    ReopenLogs,
    /// Answer a client.
    Reply {
        /// Whom.
        request: RequestId,
        /// What.
        reply: Result<Reply, Denial>,
    },
    /// Something happened.
    Record(Transition),
}

/// What a probe is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeAim {
    /// Does the worker take work yet?
    Ready,
    /// Is it well?
    Health,
}

/// A probe with everything filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeTarget {
    /// Connect.
    Tcp(String),
    /// GET.
    Http {
        /// `HOST:PORT`.
        address: String,
        /// Path.
        path: String,
    },
}

/// What a step wants done, in order.
#[derive(Debug, Default)]
pub struct Effects {
    /// The list.
    pub list: Vec<Effect>,
}

impl Effects {
    /// Adds one for the keeper.
    pub(super) fn keeper(&mut self, op: Op) {
        self.list.push(Effect::Keeper(op));
    }

    /// Adds the record of something that happened.
    pub(super) fn record(&mut self, at: Moment, subject: Subject, what: What) {
        self.list
            .push(Effect::Record(Transition { at, subject, what }));
    }
}

/// One thing that happened: the log line, the event stream and the counters are all made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// When.
    pub at: Moment,
    /// To whom.
    pub subject: Subject,
    /// What.
    pub what: What,
}

/// Whom it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The daemon.
    Node,
    /// A fleet.
    Fleet(FleetName),
    /// One generation of a worker.
    Worker(WorkerId, Generation),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.pad("leasehold"),
            Self::Fleet(name) => name.fmt(f),
            Self::Worker(worker, _) => worker.fmt(f),
        }
    }
}

/// Why a worker is being ended.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Ending {
    /// An operator stopped its fleet or slot.
    Held,
    /// Its fleet is smaller now.
    ScaleIn,
    /// Its fleet is not configured any more.
    Removed,
    /// The daemon stops.
    Shutdown,
    /// It is replaced by another revision, or restarted on request.
    Rollout,
    /// It was not ready in time.
    StartTimeout,
    /// Its probe failed too often.
    Unhealthy,
    /// Its watchdog was silent too long, or triggered.
    Watchdog,
    /// Its lock excludes nobody any more.
    LockLost,
    /// Its lease was not renewed in time.
    LeaseLapsed,
    /// An operator gives its lock to whoever waits.
    Released,
    /// A run of a job took longer than its timeout.
    Timeout,
    /// A run of a job makes room for the next one.
    Replaced,
}

impl Ending {
    /// Is the slot to be empty, or refilled by the fleet, afterwards; rather than restarted as after a crash?
    pub fn on_purpose(self) -> bool {
        match self {
            Self::Held
            | Self::ScaleIn
            | Self::Removed
            | Self::Shutdown
            | Self::Rollout
            | Self::LockLost
            | Self::LeaseLapsed
            | Self::Released
            | Self::Replaced => true,
            Self::StartTimeout | Self::Unhealthy | Self::Watchdog | Self::Timeout => false,
        }
    }

    /// Has it lost its lock, or is it to give it away?
    pub fn parts_with_lock(self) -> bool {
        matches!(self, Self::LockLost | Self::LeaseLapsed | Self::Released)
    }

    /// The word in status and events.
    pub fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::ScaleIn => "scale-in",
            Self::Removed => "removed",
            Self::Shutdown => "shutdown",
            Self::Rollout => "rollout",
            Self::StartTimeout => "start-timeout",
            Self::Unhealthy => "unhealthy",
            Self::Watchdog => "watchdog",
            Self::LockLost => "lock-lost",
            Self::LeaseLapsed => "lease-lapsed",
            Self::Released => "released",
            Self::Timeout => "timeout",
            Self::Replaced => "replaced",
        }
    }
}

/// Why a lock was given back, or nobody asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An operator gave it to whoever waits.
    Released {
        /// Who.
        who: String,
    },
    /// An operator stopped its fleet or slot.
    Stopped {
        /// Who.
        who: String,
    },
    /// Its fleet is smaller now.
    ScaledIn,
    /// Its fleet is not configured any more.
    Removed,
    /// Another lock is configured now.
    Reconfigured,
    /// The daemon stops.
    Shutdown,
    /// What its fleet depends on is not there.
    Dependencies,
    /// Its worker failed too often.
    Failed,
    /// Its worker is through, and wants no other.
    Done,
    /// Its job has no run.
    NoRun,
    /// It excluded nobody any more.
    Lost,
    /// It was not renewed in time.
    Lapsed,
    /// It was its turn in the cluster, and it could not begin.
    Passed,
    /// It was had when nobody wanted it any more.
    NotWanted,
}

impl Cause {
    /// The word in events.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Released { .. } => "released",
            Self::Stopped { .. } => "stopped",
            Self::ScaledIn => "scaled-in",
            Self::Removed => "removed",
            Self::Reconfigured => "reconfigured",
            Self::Shutdown => "shutdown",
            Self::Dependencies => "dependencies",
            Self::Failed => "failed",
            Self::Done => "done",
            Self::NoRun => "no-run",
            Self::Lost => "lost",
            Self::Lapsed => "lapsed",
            Self::Passed => "passed",
            Self::NotWanted => "not-wanted",
        }
    }

    /// Who wanted it so, if somebody did.
    pub fn who(&self) -> Option<&str> {
        match self {
            Self::Released { who } | Self::Stopped { who } => Some(who),
            Self::ScaledIn
            | Self::Removed
            | Self::Reconfigured
            | Self::Shutdown
            | Self::Dependencies
            | Self::Failed
            | Self::Done
            | Self::NoRun
            | Self::Lost
            | Self::Lapsed
            | Self::Passed
            | Self::NotWanted => None,
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The worker's program runs.
    Started {
        /// Its pid.
        pid: i32,
    },
    /// It is ready.
    Ready {
        /// How long that took.
        after: Span,
    },
    /// It does not take work any more, by its own word.
    NotReady,
    /// Its first stop signal is on its way.
    Stopping {
        /// Why.
        ending: Ending,
        /// Which signal.
        signal: i32,
        /// SIGKILL follows after this.
        grace: Span,
    },
    /// It asked for more time.
    Extended {
        /// In all, from now.
        grace: Span,
    },
    /// SIGKILL to everything in its containment.
    Killed {
        /// Why.
        reason: &'static str,
        /// Had it been asked to stop?
        drained: bool,
    },
    /// SIGKILL was long ago and something is still there.
    StillThere {
        /// How long ago.
        since: Span,
    },
    /// It ended and nothing of it is left.
    Ended {
        /// How.
        status: ExitStatus,
        /// Why, if we wanted it.
        ending: Option<Ending>,
        /// How long it had run.
        uptime: Span,
    },
    /// It will be started again.
    BackingOff {
        /// After this pause.
        pause: Span,
        /// Failures in a row.
        failures: u32,
    },
    /// Too many failures.
    Failed {
        /// Tried again after this; none: for good.
        retry: Option<Span>,
    },
    /// It ended and its policy wants no restart.
    Done,
    /// A step before its start failed.
    NotPrepared {
        /// Which, and why.
        why: String,
    },
    /// A probe failed.
    ProbeFailed {
        /// Why.
        why: String,
        /// So often in a row.
        times: u32,
    },
    /// A restart for its health's sake was not done.
    RestartWithheld {
        /// What reached the cap of so many a minute.
        cap: u32,
    },
    /// An old generation's news arrived and was dropped.
    OldNews,
    /// A row could not be read and was rebuilt from what the keeper knows.
    Recovered,
    /// A rollout began.
    RolloutBegan {
        /// So many to replace.
        workers: usize,
    },
    /// It is through.
    RolloutDone,
    /// It stopped at a failure.
    RolloutFailed {
        /// Which worker failed.
        worker: WorkerId,
        /// Is the revision before coming back?
        rollback: bool,
    },
    /// An operator's hold.
    HeldBy {
        /// Who.
        who: String,
    },
    /// An operator's hold was lifted.
    Released {
        /// Who.
        who: String,
    },
    /// An operator keeps the node empty.
    Drained {
        /// Who.
        who: String,
    },
    /// The node takes work again.
    Undrained {
        /// Who.
        who: String,
    },
    /// The node has a lease in its cluster.
    Joined {
        /// Which.
        cluster: String,
        /// For so long, if it is not renewed.
        ttl: Span,
    },
    /// It has none any more.
    Parted {
        /// Why.
        why: String,
    },
    /// Something is not well with etcd.
    Concern {
        /// What.
        why: String,
    },
    /// That is over.
    Relief {
        /// What.
        why: String,
    },
    /// An operator's word on how many.
    Scaled {
        /// So many; none: as configured.
        workers: Option<u32>,
        /// Who.
        who: String,
    },
    /// It follows the load, and grew.
    Grew {
        /// It had so many.
        from: u32,
        /// And has so many.
        to: u32,
        /// Why.
        reason: Reason,
    },
    /// It follows the load, and has fewer.
    Shrank {
        /// It had so many.
        from: u32,
        /// And has so many.
        to: u32,
        /// Why.
        reason: Reason,
    },
    /// It should grow and cannot.
    GrowthBlocked {
        /// Why.
        block: Block,
        /// It has so many.
        workers: u32,
        /// It would have so many.
        wanted: u32,
    },
    /// It is pegged while the others are not, or says that it gets nothing done.
    Stuck {
        /// Is it restarted?
        restart: bool,
    },
    /// It said something of its work that cannot be.
    NotBelieved {
        /// What.
        text: String,
    },
    /// An operator wants its size left alone.
    Paused {
        /// Who.
        who: String,
    },
    /// An operator's word on how many has expired.
    SizeExpired,
    /// A configuration was accepted.
    Accepted {
        /// So many fleets changed.
        changes: usize,
        /// What the wall clock showed.
        shown: Stamp,
    },
    /// A configuration was not.
    Rejected {
        /// Why.
        why: String,
    },
    /// The daemon drains, or kills, everything.
    ShuttingDown {
        /// Kill?
        now: bool,
        /// pid and uid of who asked.
        by: Option<(i32, u32)>,
    },
    /// Its lock was taken: it may run.
    GateOpened {
        /// Names the holder.
        fence: u64,
        /// So long after it was asked for.
        waited: Span,
        /// Who had it last, if that is known.
        from: Option<Holder>,
        /// Of a cluster's lock: how long nobody had it, if that was seen.
        gap: Option<Span>,
    },
    /// It stood by, and has its lock now.
    Promoted {
        /// Names the holder.
        fence: u64,
    },
    /// It ran on when its lease was over: somebody else may have run beside it.
    Outlived {
        /// For so long.
        by: Span,
    },
    /// Its lock cannot be had yet.
    GateWaits {
        /// Why.
        why: String,
        /// Who has it, if that is known.
        holder: Option<Holder>,
    },
    /// An operator wants its lock given to whoever waits.
    GateReleased {
        /// Ours.
        fence: u64,
        /// Who.
        who: String,
    },
    /// Its lock was given back.
    GateShut {
        /// Ours, which is over.
        fence: u64,
        /// For so long it was ours.
        held: Span,
        /// Why.
        cause: Cause,
    },
    /// Its lock excludes nobody any more.
    GateLost {
        /// Why.
        why: String,
    },
    /// Its lease was not renewed in time: it ends.
    LeaseLapsed,
    /// The keeper killed it at its deadline.
    DeadlineCame {
        /// How much later than that.
        late: Span,
    },
    /// A run of a job begins, or its next attempt.
    RunBegan {
        /// Its tick.
        scheduled: Stamp,
        /// From 1.
        attempt: u32,
        /// After its tick.
        late: Span,
    },
    /// A run of a job is over.
    RunEnded {
        /// Its tick.
        scheduled: Stamp,
        /// So many were made.
        attempts: u32,
        /// What became of it.
        outcome: Outcome,
        /// What the wall clock showed.
        ended: Stamp,
    },
    /// A run failed and is tried again.
    RunRetries {
        /// Its tick.
        scheduled: Stamp,
        /// The one that failed.
        attempt: u32,
        /// So many there may be.
        of: u32,
        /// How it failed.
        outcome: Outcome,
        /// The next one begins after this.
        pause: Span,
    },
    /// A tick waits for the run before.
    RunQueued {
        /// Which.
        scheduled: Stamp,
        /// So many wait.
        waiting: usize,
    },
    /// Another node of the cluster has the run of a tick.
    RunElsewhere {
        /// Which.
        scheduled: Stamp,
        /// Where.
        node: String,
    },
    /// A tick was skipped.
    RunSkipped {
        /// Which.
        scheduled: Stamp,
        /// Why.
        why: Skip,
    },
    /// Ticks were not started.
    RunsMissed {
        /// The first.
        first: Stamp,
        /// The last.
        last: Stamp,
        /// So many, or more if it is 10,000.
        count: u32,
        /// Why.
        why: Miss,
    },
    /// A tick could not be claimed, and was not started.
    RunUnclaimed {
        /// Which.
        scheduled: Stamp,
        /// Why.
        why: String,
    },
    /// A run was claimed, and nobody saw its end.
    RunLost {
        /// Its tick.
        scheduled: Stamp,
        /// The attempt that was lost.
        attempt: u32,
        /// Is it tried again?
        again: bool,
    },
    /// Somebody wants a run now.
    RunAsked {
        /// Who.
        who: String,
    },
    /// The wall clock was set back over ticks.
    ClockSetBack {
        /// By so much.
        by: Span,
    },
    /// What is known of a job's past could not be read: it begins anew.
    BookForgotten {
        /// Why.
        why: String,
    },
    /// It could not be written.
    BookNotKept {
        /// Why.
        why: String,
    },
    /// What a fleet publishes does not reach somebody.
    PublishFailed {
        /// The file.
        target: String,
        /// Why.
        why: String,
    },
    /// It does again.
    PublishRestored {
        /// The file.
        target: String,
        /// After so long.
        after: Span,
    },
    /// A supervisor took over the rows of its predecessor.
    TookOver {
        /// So many living workers.
        workers: usize,
    },
}
