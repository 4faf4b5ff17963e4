//! What keeper and supervisor say to each other, and the rows that outlive the supervisor.
//!
//! One `SOCK_SEQPACKET` pair per supervisor incarnation. A packet is a version, then a list of messages in postcard;
//! it arrives whole or not at all. Both enums are append-only: a variant keeps its place for ever, so that a keeper and
//! a supervisor of neighbouring releases understand each other (`tests/wire.rs` holds the golden bytes).

use serde::{Deserialize, Serialize};

use crate::{
    id::{FleetName, Generation, Revision, WorkerId},
    time::{Clocks, Moment, Span},
};

/// Version of this module's messages; the first bytes of every packet.
pub const WIRE_VERSION: u16 = 1;

/// Largest row body the keeper stores, in bytes.
pub const BODY_MAX: usize = 4096;

/// A packet's bytes stay below this; what is larger travels in a memfd (socket buffers hold 212,992 bytes).
pub const PACKET_MAX: usize = 96 * 1024;

/// Most descriptors in one packet (`SCM_MAX_FD` is 253).
pub const PACKET_FDS_MAX: usize = 200;

/// Most sockets one worker can be handed.
pub const SOCKETS_MAX: usize = 24;

/// Most descriptors one worker can be handed: sockets, its lock, its lease page.
pub const PASS_MAX: usize = SOCKETS_MAX + 2;

/// Whom a row is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RowKey {
    /// The daemon itself.
    Node,
    /// One fleet.
    Fleet(FleetName),
    /// One slot: has a process.
    Slot(WorkerId),
    /// A helper run for a worker (hook, exec probe): has a process too.
    Task(WorkerId, TaskKind),
}

impl std::fmt::Display for RowKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Fleet(name) => write!(f, "{name}"),
            Self::Slot(worker) => write!(f, "{worker}"),
            Self::Task(worker, kind) => write!(f, "{worker}:{}", kind.word()),
        }
    }
}

/// What a helper process is for; at most one of each kind per worker at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskKind {
    /// Before the worker starts.
    PreStart,
    /// Before the worker is told to stop.
    PreStop,
    /// Asks whether the worker is ready.
    ReadyProbe,
    /// Asks whether the worker is still well.
    HealthProbe,
    /// Asks whether a published file is right; the slot is the file's number in its fleet.
    PublishCheck,
    /// Tells whoever reads a published file; likewise.
    PublishReload,
    /// Says how long the queue is that a fleet works off.
    ScaleSource,
}

impl TaskKind {
    /// The word used in names and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::PreStart => "pre-start",
            Self::PreStop => "pre-stop",
            Self::ReadyProbe => "ready-probe",
            Self::HealthProbe => "health-probe",
            Self::PublishCheck => "publish-check",
            Self::PublishReload => "publish-reload",
            Self::ScaleSource => "scale-source",
        }
    }
}

/// What the keeper knows about a slot or a task. Fixed; the body beside it is the engine's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The newest generation issued.
    pub generation: Generation,
    /// What is there now.
    pub process: Process,
    /// How the keeper stops it when no supervisor can.
    pub stop: StopRecord,
}

/// The process side of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Process {
    /// Nothing, and nothing to report.
    #[default]
    Vacant,
    /// The leader runs.
    Alive(Alive),
    /// The leader has ended; its containment is being killed and is not yet seen empty.
    Clearing(ExitRecord),
    /// All of it is gone; kept until `Forget`.
    Gone(ExitRecord),
}

/// A running leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// Its process id as the keeper sees it.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat` (clock ticks since boot): with the boot id it proves who a pid is.
    pub start_ticks: u64,
    /// When it was spawned.
    pub since: Moment,
    /// What holds its family together.
    pub containment: Containment,
}

/// What ends with a worker, and how sure that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Containment {
    /// A leaf below the unit's delegated cgroup: dies with the unit.
    Unit,
    /// A cgroup2 leaf of our own.
    Cgroup,
    /// Process group, session and cookie, found by scanning `/proc`.
    Group,
    /// A PID namespace, in a leaf of our own where there is one: dies with the keeper, since its first process does.
    Namespace {
        /// That process, as the keeper sees it.
        init: i32,
        /// When it started, as [`Alive::start_ticks`].
        start_ticks: u64,
    },
}

impl Containment {
    /// The word in `status`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Cgroup => "cgroup",
            Self::Group => "group",
            Self::Namespace { .. } => "pidns",
        }
    }
}

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The leader's pid; 0 if it never ran.
    pub pid: i32,
    /// Its status.
    pub status: ExitStatus,
    /// When it was spawned.
    pub since: Moment,
    /// When the keeper saw it end.
    pub at: Moment,
}

/// A wait status, or why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// The signal's number.
        number: i32,
        /// Did it leave a core?
        core: bool,
    },
    /// It never ran: this step of the spawn failed with this errno.
    SpawnFailed {
        /// The step.
        step: SpawnStep,
        /// The errno.
        errno: i32,
    },
}

/// The steps between "spawn" and the program's first instruction, in order; a failing one is reported by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum SpawnStep {
    /// Reading the order (a text with a NUL byte, a descriptor that is not held).
    Prepare,
    /// Creating the cgroup leaf or writing its limits.
    Cgroup,
    /// clone(2).
    Clone,
    /// Joining the cgroup leaf.
    JoinCgroup,
    /// Unsharing the descriptor table, or dup3(2) of a descriptor.
    Descriptors,
    /// setpgid(2) or setsid(2).
    Group,
    /// setrlimit(2).
    Limits,
    /// setpriority(2).
    Nice,
    /// sched_setaffinity(2).
    Affinity,
    /// Writing `/proc/self/oom_score_adj`.
    OomScore,
    /// setgroups(2), setresgid(2), setresuid(2).
    User,
    /// prctl(PR_SET_NO_NEW_PRIVS).
    NoNewPrivs,
    /// prctl(PR_SET_PDEATHSIG), or the keeper had died meanwhile.
    ParentDeath,
    /// chdir(2).
    WorkingDir,
    /// execve(2).
    Exec,
    /// The leader was killed before its exec without a step that failed.
    KilledAtBirth,
    /// Making its lease page (memfd_create(2), F_SEAL_FUTURE_WRITE).
    Page,
    /// Its gate's deadline does not stand, or had passed before its exec.
    Deadline,
    /// Making its PID namespace, or being born there (clone(2), setns(2)).
    Namespace,
}

impl SpawnStep {
    /// Reads after "failed to".
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Prepare => "prepare the spawn",
            Self::Cgroup => "create its cgroup",
            Self::Clone => "create the process (clone)",
            Self::JoinCgroup => "join its cgroup",
            Self::Descriptors => "set up its descriptors",
            Self::Group => "make its process group",
            Self::Limits => "set its resource limits (setrlimit)",
            Self::Nice => "set its nice value (setpriority)",
            Self::Affinity => "set its CPU affinity (sched_setaffinity)",
            Self::OomScore => "set its oom_score_adj",
            Self::User => "become its user and groups (setgroups, setresgid, setresuid)",
            Self::NoNewPrivs => "set no_new_privs",
            Self::ParentDeath => "arm the parent-death signal",
            Self::WorkingDir => "enter its working directory (chdir)",
            Self::Exec => "execute its program (execve)",
            Self::KilledAtBirth => "survive until its exec: something killed it",
            Self::Page => "make its lease page (needs Linux 5.1)",
            Self::Deadline => "execute its program before its gate's deadline",
            Self::Namespace => "make its PID namespace (CLONE_NEWPID, setns)",
        }
    }
}

/// How a slot is stopped without a supervisor: enough for the keeper to drain in order by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRecord {
    /// The first signal.
    pub signal: i32,
    /// To the leader alone or the whole group.
    pub to: Target,
    /// SIGKILL to everything after this long.
    pub timeout: Span,
    /// Higher ranks stop first; a rank waits until all higher ones are empty.
    pub rank: u16,
}

impl Default for StopRecord {
    fn default() -> Self {
        Self {
            signal: 15,
            to: Target::Leader,
            timeout: Span::secs(10),
            rank: 0,
        }
    }
}

/// Whom a signal reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The leader alone.
    Leader,
    /// Its process group.
    Group,
}

/// Everything the child needs. All of it is checked and resolved by the supervisor; the keeper has no policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnSpec {
    /// Path to execute (relative ones count from `cwd`). Empty: the one command that the keeper itself was started for, with that
    /// one's arguments, environment (below `env`), terminal and stdio; a keeper that was started for none refuses.
    pub program: String,
    /// The arguments, the first being the program's name.
    pub argv: Vec<String>,
    /// The whole environment as `KEY=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// User and groups.
    pub user: Option<Credentials>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// `(RLIMIT_*, soft, hard)`.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Nice value.
    pub nice: Option<i32>,
    /// CPUs it may run on; empty: all.
    pub affinity: Vec<u32>,
    /// A session of its own (`setsid`), not only a process group.
    pub session: bool,
    /// Set no_new_privs.
    pub no_new_privs: bool,
    /// `(cgroup file, value)` limits for its leaf, where the controllers are delegated.
    pub cgroup_limits: Vec<(String, String)>,
    /// stdout: the held pipe to write into; none: /dev/null.
    pub stdout: Option<String>,
    /// stderr, likewise.
    pub stderr: Option<String>,
    /// Held descriptors that become 3, 4, … in the child; `LISTEN_PID` is then set to its pid.
    pub pass: Vec<String>,
    /// What its lease page says; the page comes behind what is passed.
    pub page: Option<PageSpec>,
    /// Nothing that it starts may outlive the keeper, whatever it does: in a PID namespace, unless the keeper's own end sees to that.
    pub dies_with_keeper: bool,
    /// A hook that is killed when the leader of its slot has ended, since the lock goes on then.
    pub ends_with_worker: bool,
}

/// The role of who holds what its gate protects.
pub const HOLDER: u64 = 1;
/// The role of who waits for it: it may read, and learns from its page when it may write.
pub const STANDBY: u64 = 2;

/// A gated worker's lease page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSpec {
    /// Names the holder; grows with every holder.
    pub fence: u64,
    /// Grows when fences had to begin anew.
    pub epoch: u64,
    /// 1 holder, 2 standby.
    pub role: u64,
    /// It runs under a deadline, which must stand ([`DeadlineOp::Arm`]); else the page shows none.
    pub timed: bool,
}

/// Numeric identity, resolved before the fork.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Supervisor to keeper. Rows are stored before what stands beside them is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Store a body.
    Put {
        /// Whose.
        key: RowKey,
        /// The engine's bytes.
        body: Vec<u8>,
    },
    /// Remove a row; ignored while a process is there.
    Drop {
        /// Whose.
        key: RowKey,
    },
    /// Start generation `after + 1`; refused unless the row is vacant and `after` is its newest generation.
    Spawn {
        /// Where.
        key: RowKey,
        /// The newest generation the supervisor knows.
        after: Generation,
        /// The row that says so.
        body: Vec<u8>,
        /// How to stop it without us.
        stop: StopRecord,
        /// Kill it after this long (hooks and probes).
        deadline: Option<Span>,
        /// What to run.
        spec: Box<SpawnSpec>,
    },
    /// Send a signal to a living leader or its group.
    Signal {
        /// Where.
        key: RowKey,
        /// Which generation is meant; another one is left alone.
        generation: Generation,
        /// The signal's number.
        signal: i32,
        /// To whom.
        to: Target,
        /// The row that says so.
        body: Vec<u8>,
    },
    /// SIGKILL to everything in its containment.
    Kill {
        /// Where.
        key: RowKey,
        /// Which generation is meant.
        generation: Generation,
        /// The row that says so.
        body: Vec<u8>,
    },
    /// The exit record of this generation was acted on; `body` is the row that did.
    Forget {
        /// Where.
        key: RowKey,
        /// Which generation.
        generation: Generation,
        /// The new row.
        body: Vec<u8>,
    },
    /// Replace the stop record.
    Stop {
        /// Where.
        key: RowKey,
        /// The new record.
        stop: StopRecord,
    },
    /// Hold the next descriptor of this packet under a name; replaces and closes an older one.
    Hold {
        /// Its name.
        name: String,
    },
    /// Close a held descriptor.
    Release {
        /// Its name.
        name: String,
    },
    /// Answer to `Ping`.
    Pong {
        /// Its number.
        number: u64,
    },
    /// Relay to systemd's notify socket, in its own words (sd_notify(3)).
    Notify {
        /// `READY=1` and so on, newline separated.
        text: String,
    },
    /// Everything is done: end with this code.
    Exit {
        /// The process's exit code.
        code: u8,
    },
    /// Answer with the same number, after everything that is known by now was told.
    Echo {
        /// Any number.
        number: u64,
    },
    /// A worker that stood by holds its lock from now on: its page says so, and its deadline is armed. It is killed if that has passed.
    Promote {
        /// Where.
        key: RowKey,
        /// Which generation is meant; another one is left alone.
        generation: Generation,
        /// What its page says.
        page: PageSpec,
        /// The row that says so.
        body: Vec<u8>,
    },
}

/// Keeper to supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// The first message of an incarnation.
    Welcome(Box<Welcome>),
    /// A descriptor the keeper holds: the next one of this packet.
    Held {
        /// Its name.
        name: String,
    },
    /// A row: in full at the beginning, its header alone when that changes later.
    Row {
        /// Whose.
        key: RowKey,
        /// The keeper's part.
        header: Header,
        /// The engine's part (only at the beginning).
        body: Option<Vec<u8>>,
    },
    /// Everything held has been told.
    Caught,
    /// What was asked of the daemon itself.
    Node(Asked),
    /// A spawn was refused because its slot is not what the supervisor thinks.
    Refused {
        /// Where.
        key: RowKey,
        /// The generation it was to follow.
        after: Generation,
    },
    /// Are you there? Answered from the engine's loop.
    Ping {
        /// Its number.
        number: u64,
    },
    /// Answer to `Echo`: whatever was known when that was read has been told before.
    Echo {
        /// Its number.
        number: u64,
    },
}

/// What a new supervisor must know first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The keeper's wire version.
    pub version: u16,
    /// The keeper's pid.
    pub keeper: i32,
    /// When the keeper started.
    pub started: Moment,
    /// 1 for the first supervisor, counted up.
    pub incarnation: u64,
    /// The value of `LEASEHOLD_RUN`.
    pub cookie: String,
    /// Ignore row bodies: reading them may be what killed the last five.
    pub recover: bool,
    /// The strongest containment to be had here.
    pub containment: Containment,
    /// Directory of the worker cgroups, if any.
    pub cgroup: Option<String>,
    /// What was asked of the daemon so far.
    pub asked: Asked,
}

/// Supervisor to the keeper's deadline thread, over a socket of their own: one message a packet, none longer than
/// [`SMALL_MAX`], so that the thread needs no memory for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeadlineOp {
    /// Kill the worker of this seat at this instant. The same fence again: a later instant. Answered by what stands.
    Arm {
        /// Whose ([`seat_key`]).
        key: u64,
        /// Which holder.
        fence: u64,
        /// When.
        until: Clocks,
    },
    /// There is nobody to kill any more. Answered by what stands.
    Disarm {
        /// Whose.
        key: u64,
        /// Which holder.
        fence: u64,
    },
    /// Have whoever watches the keeper end it, and all that it contains, when nothing was heard of it for so long; zero: as usual. Not
    /// answered.
    Watch {
        /// For so long.
        within: Span,
    },
}

/// The deadline thread to a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeadlineNews {
    /// What stands: at the beginning, in answer, and when a deadline came.
    Seat(SeatReport),
    /// Everything that stood at the beginning has been told.
    Caught,
}

/// One deadline, as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatReport {
    /// Whose.
    pub key: u64,
    /// Which holder.
    pub fence: u64,
    /// When.
    pub until: Clocks,
    /// Whether it stands.
    pub state: SeatState,
}

/// Whether a deadline stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeatState {
    /// It does not: given back, or refused.
    Free,
    /// It will come.
    Armed,
    /// It came, and the worker was killed.
    Fired {
        /// How long after the deadline.
        late: Span,
    },
}

/// Whose deadline: a number, since the deadline thread has no memory for names.
pub fn seat_key(worker: &WorkerId) -> u64 {
    Revision::of(worker.to_string().as_bytes()).0
}

/// Longest packet between supervisor and deadline thread, in bytes.
pub const SMALL_MAX: usize = 64;

/// Encodes one small message into `packet`; returns the part that it took.
pub fn encode_small<'a, M: Serialize>(
    message: &M,
    packet: &'a mut [u8; SMALL_MAX],
) -> Result<&'a [u8], WireError> {
    let wrong = |source| WireError::Decode {
        length: SMALL_MAX,
        source,
    };
    let used = postcard::to_slice(&(WIRE_VERSION, message), packet).map_err(wrong)?;
    Ok(used)
}

/// Decodes one small message.
pub fn decode_small<M: for<'de> Deserialize<'de>>(packet: &[u8]) -> Result<M, WireError> {
    let (found, message) = postcard::from_bytes(packet).map_err(|source| WireError::Decode {
        length: packet.len(),
        source,
    })?;
    if found == WIRE_VERSION {
        Ok(message)
    } else {
        Err(WireError::Version { found })
    }
}

/// What signals asked of the daemon. Kept by the keeper, so that no request dies with a supervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Is it to stop, and how hard?
    pub stopping: Stopping,
    /// When stopping began.
    pub since: Moment,
    /// How often a reload was asked for.
    pub reloads: u64,
    /// How often log files were to be reopened.
    pub reopens: u64,
    /// Who sent the last signal: pid and uid; pid 0 is the kernel (a terminal).
    pub by: Option<(i32, u32)>,
}

/// How hard to stop; escalation only goes up.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Stopping {
    /// Not at all.
    #[default]
    No,
    /// Drain everything, then exit.
    Drain,
    /// Kill everything, then exit.
    Kill,
}

/// Why a packet could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Too short to hold a version.
    #[error("read a packet of {0} bytes: too short for a version")]
    Short(usize),
    /// A version this build does not speak.
    #[error(
        "read a packet of wire version {found}: this build speaks {WIRE_VERSION}; use the same leasehold for both processes"
    )]
    Version {
        /// What it said.
        found: u16,
    },
    /// Not a list of messages.
    #[error("decode a packet of {length} bytes")]
    Decode {
        /// Its size.
        length: usize,
        /// postcard's reason.
        source: postcard::Error,
    },
    /// Bytes were left over.
    #[error("decode a packet: {0} bytes left over")]
    Trailing(usize),
}

/// Encodes messages as one packet.
pub fn encode<M: Serialize>(messages: &[M]) -> Vec<u8> {
    let head = WIRE_VERSION.to_le_bytes().to_vec();
    postcard::to_extend(messages, head).expect("messages hold nothing that postcard cannot encode")
}

/// Decodes one packet; never panics, whatever the bytes.
pub fn decode<M: for<'de> Deserialize<'de>>(packet: &[u8]) -> Result<Vec<M>, WireError> {
    let (head, rest) = packet
        .split_first_chunk::<2>()
        .ok_or(WireError::Short(packet.len()))?;
    let found = u16::from_le_bytes(*head);
    if found != WIRE_VERSION {
        return Err(WireError::Version { found });
    }
    let (messages, left) = postcard::take_from_bytes(rest).map_err(|source| WireError::Decode {
        length: packet.len(),
        source,
    })?;
    if left.is_empty() {
        Ok(messages)
    } else {
        Err(WireError::Trailing(left.len()))
    }
}
