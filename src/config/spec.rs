//! What a configuration means. Built only by `resolve`; every value in it is checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    config::units::count,
    id::{FleetName, Revision},
    time::Span,
    wire::{Credentials, StopRecord, Target},
};

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Hash over everything below.
    pub revision: Revision,
    /// The main file, for people.
    pub path: String,
    /// Directory of the main file: relative paths count from here.
    pub base: String,
    /// This machine.
    pub node: NodeSpec,
    /// Where health and status are answered.
    pub http: HttpSpec,
    /// The cluster that it belongs to, if any.
    pub etcd: Option<EtcdSpec>,
    /// The fleets by name; jobs are fleets of one run at a time.
    pub fleets: BTreeMap<FleetName, FleetSpec>,
}

impl Config {
    /// `2 fleets, 5 workers, 1 job`: how large it is, for people.
    pub fn size(&self) -> String {
        let jobs = self.fleets.values().filter(|spec| spec.cron.is_some());
        let jobs = jobs.count();
        let fleets = self.fleets.values().filter(|spec| spec.cron.is_none());
        let (mut least, mut most) = (0, 0);
        for spec in fleets {
            least += spec.workers;
            most += spec.most();
        }
        let workers = if least == most {
            count(most, "worker")
        } else {
            format!("{least} to {most} workers")
        };
        let mut size = format!("{}, {workers}", count(self.fleets.len() - jobs, "fleet"));
        if jobs > 0 {
            size += &format!(", {}", count(jobs, "job"));
        }
        size
    }
}

/// `[node]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Its name in status and environment.
    pub name: String,
    /// Restarts after crashes, all fleets together: refill of the bucket in restarts per 1,000 s.
    pub restart_rate: u64,
    /// Size of that bucket.
    pub restart_burst: u64,
    /// No fleet grows while less of the machine's processors is idle: a share, in parts per million, and never below a quarter of a core.
    pub cpu_reserve: u32,
    /// No fleet grows if less memory than this share would be left, in parts per million, and never below 64 MiB.
    pub memory_reserve: u32,
}

/// `[http]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpSpec {
    /// Loopback addresses, read-only.
    pub listen: Vec<std::net::SocketAddr>,
}

/// The cluster of locks that are one machine's: without a cluster all daemons of one user are one.
pub const LOCAL: &str = "local";

/// `[etcd]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdSpec {
    /// `http://HOST:PORT` or `https://HOST:PORT`, of every member.
    pub endpoints: Vec<String>,
    /// Everything of this name belongs together: locks, nodes, queues.
    pub cluster: String,
    /// Of the node's lease; etcd may grant more.
    pub lease_ttl: Span,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// For `https`.
    pub tls: Option<TlsSpec>,
    /// Stands before every fence: raised by an operator when a cluster was restored, and its revisions with it.
    pub epoch: u64,
}

/// `etcd.tls`: files in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsSpec {
    /// Whom we trust.
    pub ca: String,
    /// Our certificate and its key.
    pub identity: Option<(String, String)>,
}

/// `[fleet.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetSpec {
    /// Hash over what a spawn looks like: another one means that workers must be replaced.
    pub revision: Revision,
    /// How many.
    pub workers: u32,
    /// What reaches a worker.
    pub process: ProcessSpec,
    /// Listening sockets by name, in the order in which workers get them.
    pub sockets: BTreeMap<String, SocketSpec>,
    /// When is it ready?
    pub ready: ReadySpec,
    /// Start budget.
    pub start: StartSpec,
    /// Is it still well?
    pub health: HealthSpec,
    /// What happens after an exit.
    pub restart: RestartSpec,
    /// How it is stopped.
    pub stop: StopSpec,
    /// How a new revision is rolled out.
    pub rollout: RolloutSpec,
    /// Fleets that must be there first.
    pub after: BTreeMap<FleetName, AfterState>,
    /// Depth in the dependency graph: higher stops first.
    pub rank: u16,
    /// Its output.
    pub log: LogSpec,
    /// Its workers run only while they hold this lock.
    pub singleton: Option<SingletonSpec>,
    /// It follows the load, between bounds.
    #[serde(default)]
    pub scale: Option<ScaleSpec>,
    /// It is a job, `[cron.NAME]`: its one slot is empty between runs.
    #[serde(default)]
    pub cron: Option<CronSpec>,
    /// Where its workers are found, and who is told.
    #[serde(default)]
    pub publish: Option<PublishSpec>,
}

/// `publish`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishSpec {
    /// What an endpoint is.
    pub mode: PublishMode,
    /// A name or an address of this machine.
    pub address: String,
    /// Of the node; of slot 0 where each worker has its own.
    pub port: u16,
    /// Files made from the list of endpoints.
    pub files: Vec<PublishedFile>,
    /// HAProxy's agent-check is answered here.
    pub haproxy_agent: Option<std::net::SocketAddr>,
    /// What checks and reloads find in their environment.
    pub environment: BTreeMap<String, String>,
    /// What stands of it in etcd; none without `[etcd]`.
    pub records: Option<RecordsSpec>,
}

/// What stands in etcd of a fleet beside its canonical records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsSpec {
    /// Servers of a Traefik.
    pub traefik: Option<TraefikSpec>,
    /// Names of a CoreDNS.
    pub coredns: Option<CorednsSpec>,
    /// Anything else.
    pub kv: Vec<KvSpec>,
}

/// `publish.traefik`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraefikSpec {
    /// Which keys it knows: one that it does not know spoils its whole tree.
    pub version: TraefikVersion,
    /// As its provider has it.
    pub rootkey: String,
    /// What is routed.
    pub protocol: TraefikProtocol,
    /// The name of router and service.
    pub router: String,
    /// What is routed to it; not of UDP.
    pub rule: Option<String>,
    /// Where it is reached; none: at all of them.
    pub entrypoints: Vec<String>,
    /// What a request goes through; not of UDP.
    pub middlewares: Vec<String>,
    /// Is TLS ended there? Not of UDP.
    pub tls: bool,
    /// Of servers: `http`, `https` or `h2c`; HTTP alone.
    pub scheme: String,
    /// HTTP alone.
    pub passhostheader: bool,
    /// HTTP alone.
    pub healthcheck: Option<TraefikCheck>,
}

/// Which Traefik.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraefikVersion {
    /// Servers have no weight.
    V2,
    /// Its matchers take one value.
    V3,
}

/// What a Traefik routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraefikProtocol {
    /// Requests.
    Http,
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// `publish.traefik.healthcheck`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraefikCheck {
    /// What it asks for.
    pub path: String,
    /// How often, if not as often as it does by itself.
    pub interval: Option<Span>,
    /// How long it waits, likewise.
    pub timeout: Option<Span>,
}

/// `publish.coredns`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorednsSpec {
    /// As its plugin has it: the path that everything lies below.
    pub prefix: String,
    /// As `svc.example.org`.
    pub zone: String,
    /// Of the fleet in it; `@`: the zone itself.
    pub name: String,
    /// `_http._tcp`, for who asks for SRV.
    pub srv: Option<String>,
    /// In seconds.
    pub ttl: u32,
    /// Of SRV.
    pub priority: u32,
}

/// `[[publish.kv]]`: one record for each endpoint. Templates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvSpec {
    /// Where.
    pub key: String,
    /// What.
    pub value: String,
}

/// What an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublishMode {
    /// The fleet on this node: its weight is how many take work.
    Node,
    /// A worker, with a port of its own.
    Worker,
}

/// `[[publish.file]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedFile {
    /// What it is made from.
    pub template: String,
    /// Where it goes.
    pub path: String,
    /// Must succeed with the new file in its place, or the one before is put back.
    pub check: Option<HookSpec>,
    /// Tells whoever reads it.
    pub reload: Option<HookSpec>,
}

impl FleetSpec {
    /// So many workers it may have, holds and rollouts aside.
    pub fn most(&self) -> u32 {
        self.scale.as_ref().map_or(self.workers, |scale| scale.max)
    }

    /// Are its workers started before they have their locks?
    pub fn is_warm(&self) -> bool {
        self.singleton.as_ref().is_some_and(|lock| lock.warm)
    }

    /// Is it well without a single worker?
    pub fn may_be_empty(&self) -> bool {
        self.scale.as_ref().map_or(self.workers, |scale| scale.min) == 0
    }
}

/// `scale`: a fleet that follows the load. Shares are in parts per million of what they are a share of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleSpec {
    /// Never fewer; 0 needs a socket of ours, at which somebody can knock.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// Over all nodes of the cluster it does not grow beyond; none: no node knows of the others'.
    pub cluster_max: Option<u32>,
    /// Above this share of what its workers can use it grows ...
    pub high: u32,
    /// ... to land here; it shrinks only if that leaves it at or below.
    pub target: u32,
    /// What it is measured by; the largest answer wins.
    pub signals: Vec<Signal>,
    /// What one worker can use, in thousandths of a core.
    pub worker_cores: u32,
    /// A worker that has been ready for less says little.
    pub warmup: Span,
    /// Two decisions in a row, at most so far apart, make it grow.
    pub up_window: Span,
    /// It is as large as it had to be at any time in this window.
    pub down_window: Span,
    /// Its share of the machine beside other fleets that grow.
    pub weight: u32,
    /// With `min = 0`: idle for so long, it ends.
    pub idle_timeout: Span,
    /// So many start when somebody knocks.
    pub wake: u32,
    /// So many waiting connections make it grow at once; none: more than 16 and a tenth of the backlog.
    pub backlog_alert: Option<u32>,
    /// A worker that is pegged for so long while the others are not is suspect.
    pub stuck_after: Span,
    /// Is a suspect restarted, or only reported?
    pub restart_stuck: bool,
    /// Where the length of a queue is asked for; none: workers report it.
    pub source: Option<SourceSpec>,
    /// So much of the queue is one worker's work, in thousandths.
    pub queue_per_worker: u64,
}

impl ScaleSpec {
    /// With everything else as it is unless said.
    pub fn between(min: u32, max: u32) -> Self {
        Self {
            min,
            max,
            cluster_max: None,
            high: 800_000,
            target: 600_000,
            signals: vec![Signal::Cpu, Signal::Backlog],
            worker_cores: 1_000,
            warmup: Span::secs(10),
            up_window: Span::secs(10),
            down_window: Span::secs(120),
            weight: 100,
            idle_timeout: Span::secs(300),
            wake: 1,
            backlog_alert: None,
            stuck_after: Span::secs(60),
            restart_stuck: false,
            source: None,
            queue_per_worker: 1_000,
        }
    }

    /// So many slots it may have: a quarter of its workers may be leaving, or be stuck, while others are in their place.
    pub fn places(&self) -> u32 {
        self.max + (self.max / 4).max(1)
    }

    /// Is it measured by this?
    pub fn uses(&self, signal: Signal) -> bool {
        self.signals.contains(&signal)
    }
}

/// What a fleet's size can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Signal {
    /// Its workers' processor time.
    Cpu,
    /// Connections that nobody has accepted.
    Backlog,
    /// What workers say of themselves (`X_LEASEHOLD_BUSY=`).
    Busy,
    /// A queue somewhere else, or workers' own (`X_LEASEHOLD_QUEUE=`).
    Queue,
}

/// `scale.source`: who knows how long a queue is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSpec {
    /// Who.
    pub kind: SourceKind,
    /// So often.
    pub interval: Span,
    /// No answer by then is none.
    pub timeout: Span,
}

/// Who is asked for a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKind {
    /// A server on this machine or another.
    Http {
        /// `HOST:PORT`.
        address: String,
        /// Path; the answer is a number.
        path: String,
    },
    /// A program; what it writes is a number.
    Exec(HookSpec),
}

/// What only `[cron.NAME]` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronSpec {
    /// Five fields or a nickname, as typed.
    pub schedule: String,
    /// IANA name of the zone in which the fields are read.
    pub timezone: String,
    /// A tick comes while a run is there.
    pub overlap: Overlap,
    /// A tick may be started so late.
    pub catch_up: Span,
    /// An attempt that takes longer is ended, and failed.
    pub timeout: Span,
    /// What follows a failure.
    pub retry: RetrySpec,
    /// A run starts up to so much later than its tick.
    pub jitter: Span,
    /// So many ended runs are remembered.
    pub history: u32,
    /// Each tick is run by one node of the cluster.
    pub cluster: bool,
}

impl CronSpec {
    /// With everything else as it is unless said, in UTC.
    pub fn of(schedule: &str) -> Self {
        Self {
            schedule: schedule.to_owned(),
            timezone: "UTC".to_owned(),
            overlap: Overlap::Skip,
            catch_up: Span::ZERO,
            timeout: Span::FOREVER,
            retry: RetrySpec {
                attempts: 1,
                backoff_min: Span::secs(10),
                backoff_max: Span::secs(300),
            },
            jitter: Span::ZERO,
            history: 20,
            cluster: false,
        }
    }
}

/// What happens to a tick that comes while a run is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// It is skipped.
    Skip,
    /// It starts after.
    Queue,
    /// The run is drained and the tick's begins.
    Replace,
    /// As `Skip`, for whoever else holds the job's lock, too.
    Forbid,
}

/// What follows a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetrySpec {
    /// So many attempts in all.
    pub attempts: u32,
    /// Pause after the first failure; doubles.
    pub backoff_min: Span,
    /// Longest pause.
    pub backoff_max: Span,
}

/// `singleton`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SingletonSpec {
    /// Name of the lock; as good as any fleet's.
    pub lock: FleetName,
    /// A file to lock instead of the one that follows from the name.
    pub flock: Option<String>,
    /// So many may hold it at once, each a file of its own.
    pub slots: u32,
    /// So many of them on one node of a cluster.
    pub per_node: u32,
    /// Take file systems whose locks may not exclude anybody.
    pub allow_network_fs: bool,
    /// Holding the lock is not enough: it lasts only from one renewal to the next.
    pub lease: Option<LeaseSpec>,
    /// In a cluster: where it had best run.
    pub preference: Preference,
    /// In a cluster: what somebody who is gone without a word may have left behind.
    pub takeover: Takeover,
    /// In a cluster: what its worker may leave behind when the daemon dies.
    pub bond: Bond,
    /// A worker is started before the lock is had, and told by its page when it is.
    pub warm: bool,
}

/// What of a worker ends with the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bond {
    /// Everything, whatever it does.
    Strict,
    /// What is known by its group, session, environment or cgroup, as of any worker.
    #[default]
    Weak,
}

/// Which of the nodes that wait for a cluster's lock is next, and whether it is given up to a better one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preference {
    /// Who has more is next, before who came first.
    pub priority: u32,
    /// This node is next, before all others.
    pub node: Option<String>,
    /// A node that has locks of this group is next after those that have fewer.
    pub spread: Option<String>,
    /// Whoever has the lock gives it to a better one who has waited so long; none: never.
    pub failback: Option<Span>,
}

impl Preference {
    /// How good a node of this name is that has so many locks of the group: more is better. To be named counts most, then to have few, then
    /// the priority.
    pub fn rank(&self, node: &str, has: usize) -> u64 {
        let is_named = self.node.as_deref() == Some(node);
        let free = u8::MAX - u8::try_from(has).unwrap_or(u8::MAX);
        u64::from(self.priority) + (u64::from(free) << 32) + (u64::from(is_named) << 40)
    }
}

/// How long a successor waits for what may be left of a holder who is gone without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Takeover {
    /// So long.
    After(Span),
    /// Until he must be dead even if he hears of nothing.
    Strict,
}

impl Default for Takeover {
    fn default() -> Self {
        Self::After(Span::secs(1))
    }
}

impl SingletonSpec {
    /// Is it for the whole cluster?
    pub fn is_of_cluster(&self) -> bool {
        self.cluster().is_some()
    }

    /// Which cluster, if it is for one.
    pub fn cluster(&self) -> Option<&str> {
        match &self.lease.as_ref()?.authority {
            Authority::Cluster(name) => Some(name),
            Authority::File(_) => None,
        }
    }

    /// How long what may be left of a holder who is gone without a word is given to end.
    pub fn takeover_delay(&self) -> Span {
        LeaseSpec::outwait(match self.takeover {
            Takeover::After(span) => span,
            Takeover::Strict => {
                let ttl = self.lease.as_ref().map_or(Span::ZERO, |lease| lease.ttl);
                LeaseSpec::dead_after(ttl)
            }
        })
    }
}

/// How long a gate lasts that must be renewed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSpec {
    /// Who renews.
    pub authority: Authority,
    /// Stands before its fences.
    pub epoch: u64,
    /// For how long a renewal is good, in the authority's eyes; etcd may grant more.
    pub ttl: Span,
    /// From SIGTERM to SIGKILL, when renewals stay away.
    pub grace: Span,
    /// From SIGKILL to the moment at which nothing may be left.
    pub kill_margin: Span,
}

/// Who renews leases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Authority {
    /// A file that renews for as long as it holds this node's name: what tests use.
    File(String),
    /// The etcd of the cluster of this name.
    Cluster(String),
}

impl LeaseSpec {
    /// What a clock may be fast, in its thousandth parts of a span.
    const RATE: u64 = 920;
    /// What an authority may be late to notice, and we to kill.
    const SLACK: Span = Span::millis(350);

    /// From the sending of a renewal that is good for `ttl` to the moment at which nothing may be left: before the authority may give it to
    /// somebody else.
    pub fn dead_after(ttl: Span) -> Span {
        let bound = Span::nanos(ttl.as_nanos() / 1_000 * Self::RATE);
        bound.minus(Self::SLACK)
    }

    /// How long somebody waits by a clock that may be fast for what takes so long by a right one.
    pub fn outwait(span: Span) -> Span {
        Span::nanos((span.as_nanos() / Self::RATE).saturating_mul(1_000))
    }

    /// From the sending of a renewal that is good for `ttl` to SIGKILL.
    pub fn kill_after(&self, ttl: Span) -> Span {
        Self::dead_after(ttl).minus(self.kill_margin)
    }

    /// How often it is renewed.
    pub fn renew_every(&self) -> Span {
        Span::nanos(self.ttl.as_nanos() / 5)
    }

    /// How long an etcd that does not answer can be borne, before its worker must begin to end: until the next renewal it may have been gone
    /// unnoticed, and that one may be late.
    pub fn bears(&self) -> Span {
        let term = self.kill_after(self.ttl).minus(self.grace);
        term.minus(self.renew_every()).minus(Self::LATE)
    }

    /// A renewal is answered by then, or somebody else has been asked.
    const LATE: Span = Span::millis(400);

    /// Can it be renewed at least once before its worker must begin to end?
    pub fn is_possible(&self) -> bool {
        self.kill_after(self.ttl) >= self.grace.plus(self.renew_every()).plus(self.renew_every())
    }
}

impl Default for SingletonSpec {
    /// Of a lock that is held and of which nothing else is known.
    fn default() -> Self {
        Self {
            lock: FleetName::unknown(),
            flock: None,
            slots: 1,
            per_node: 1,
            allow_network_fs: false,
            lease: None,
            preference: Preference::default(),
            takeover: Takeover::default(),
            bond: Bond::default(),
            warm: false,
        }
    }
}

impl FleetSpec {
    /// Stands in for a fleet of which only living workers are left: enough to drain them by their stop record.
    pub fn unknown(stop: &StopRecord) -> Self {
        Self {
            revision: Revision::default(),
            workers: 0,
            process: ProcessSpec::default(),
            sockets: BTreeMap::new(),
            ready: ReadySpec::Spawned,
            start: StartSpec {
                timeout: Span::secs(60),
                parallel: 0,
            },
            health: HealthSpec::default(),
            restart: RestartSpec {
                policy: RestartPolicy::Never,
                backoff_min: Span::secs(1),
                backoff_max: Span::secs(1),
                burst: 1,
                window: Span::secs(1),
                healthy: Span::secs(1),
                give_up: true,
                success: vec![0],
            },
            stop: StopSpec {
                signal: stop.signal,
                to: stop.to,
                timeout: stop.timeout,
                extend_max: stop.timeout,
                deregister_delay: Span::ZERO,
            },
            rollout: RolloutSpec {
                max_surge: 0,
                max_unavailable: 1,
                min_ready: Span::ZERO,
                rollback: false,
            },
            after: BTreeMap::new(),
            rank: stop.rank,
            log: LogSpec {
                sink: Sink::File,
                rotate_size: 8 << 20,
                max_size: 64 << 20,
                drop: false,
                buffer: 65_536,
            },
            singleton: None,
            scale: None,
            cron: None,
            publish: None,
        }
    }
}

/// Everything that reaches a worker's process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Path to execute.
    pub program: String,
    /// Arguments, the first being the program as typed. May hold `{{ slot }}` and friends.
    pub argv: Vec<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Environment on top of the base. Values may hold `{{ slot }}` and friends.
    pub env: BTreeMap<String, String>,
    /// Files with more of it, read at each spawn.
    pub env_files: Vec<EnvFile>,
    /// Numeric identity; none: ours.
    pub user: Option<Credentials>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// `(RLIMIT_*, soft, hard)`.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Nice value.
    pub nice: Option<i32>,
    /// CPUs; empty: all.
    pub affinity: Vec<u32>,
    /// `setsid`.
    pub session: bool,
    /// no_new_privs.
    pub no_new_privs: bool,
    /// `(cgroup file, value)`.
    pub cgroup_limits: Vec<(String, String)>,
    /// `$PORT` is the first of these plus the slot's number.
    pub port_range: Option<(u16, u16)>,
    /// stderr to a file of its own.
    pub stderr_separate: bool,
    /// Before the worker starts.
    pub pre_start: Option<HookSpec>,
    /// Before the worker is told to stop.
    pub pre_stop: Option<HookSpec>,
}

/// A file of `KEY=value` lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFile {
    /// Its path.
    pub path: String,
    /// Typed as `-path`: may be missing.
    pub optional: bool,
}

/// A hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookSpec {
    /// Path to execute.
    pub program: String,
    /// Arguments.
    pub argv: Vec<String>,
    /// SIGKILL after this long.
    pub timeout: Span,
    /// Does its failure stop what it stands before?
    pub abort: bool,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSpec {
    /// Where.
    pub listen: ListenAddress,
    /// Accept queue.
    pub backlog: u32,
    /// One socket per worker with SO_REUSEPORT instead of a shared one.
    pub reuse_port: bool,
    /// Mode of a unix socket's file.
    pub mode: Option<u32>,
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListenAddress {
    /// TCP.
    Tcp(std::net::SocketAddr),
    /// A unix stream socket.
    Unix(String),
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => f.write_str(path),
        }
    }
}

/// When a worker counts as ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadySpec {
    /// As soon as its program runs.
    Spawned,
    /// After this long.
    Delay(Span),
    /// When it says READY=1.
    Notify,
    /// When a probe passes.
    Probe(ProbeSpec),
}

/// A question asked again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSpec {
    /// What is asked.
    pub kind: ProbeKind,
    /// From the end of one to the start of the next.
    pub interval: Span,
    /// No answer by then is a failure.
    pub timeout: Span,
    /// So many failures in a row mean "not well".
    pub fail: u32,
    /// So many passes in a row mean "well".
    pub pass: u32,
}

/// How it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeKind {
    /// Does it accept? (`HOST:PORT`, may hold `{{ port }}`).
    Tcp(String),
    /// Does GET answer 2xx or 3xx?
    Http {
        /// `HOST:PORT`.
        address: String,
        /// The path.
        path: String,
    },
    /// Does this command exit 0?
    Exec(HookSpec),
}

/// Start budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSpec {
    /// Ready by then, or killed and counted as a failure.
    pub timeout: Span,
    /// At most so many starting at once; 0: no limit.
    pub parallel: u32,
}

/// Is it still well?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSpec {
    /// The worker sends WATCHDOG=1 at least this often.
    pub watchdog: Option<Span>,
    /// Asked of a ready worker.
    pub probe: Option<ProbeSpec>,
    /// At most so many restarts for the sake of probes and watchdogs in a minute.
    pub restarts_per_minute: u32,
}

/// Which exits are followed by a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// All.
    Always,
    /// Those that are not a success.
    OnFailure,
    /// None.
    Never,
}

/// What happens after an exit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartSpec {
    /// Which exits.
    pub policy: RestartPolicy,
    /// Pause after the second failure; doubles.
    pub backoff_min: Span,
    /// Longest pause.
    pub backoff_max: Span,
    /// So many failures ...
    pub burst: u32,
    /// ... within this long mean `Failed`.
    pub window: Span,
    /// Up for this long, and earlier failures are forgotten.
    pub healthy: Span,
    /// Failed for good, rather than tried again every `backoff_max`.
    pub give_up: bool,
    /// Exit codes that are a success.
    pub success: Vec<i32>,
}

/// How a worker is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopSpec {
    /// The first signal.
    pub signal: i32,
    /// To whom.
    pub to: Target,
    /// SIGKILL to everything after this long.
    pub timeout: Span,
    /// The worker may ask for more, up to this long in all.
    pub extend_max: Span,
    /// From "not ready any more" to the first signal.
    pub deregister_delay: Span,
}

/// How a new revision, or a restart, goes through a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutSpec {
    /// So many more than wanted, at most.
    pub max_surge: u32,
    /// So many fewer ready than wanted, at most.
    pub max_unavailable: u32,
    /// Ready for this long counts.
    pub min_ready: Span,
    /// Go back to the revision before, rather than stop, at the first failure.
    pub rollback: bool,
}

/// What a dependency must have reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AfterState {
    /// All its workers run.
    Started,
    /// All its workers are ready.
    Ready,
}

/// What output goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sink {
    /// Rotating files.
    File,
    /// systemd's journal.
    Journal,
    /// /dev/null.
    None,
}

impl Sink {
    /// Is there a pipe between the worker and it? Workers see no other difference.
    pub fn is_captured(self) -> bool {
        match self {
            Self::File | Self::Journal => true,
            Self::None => false,
        }
    }
}

/// Where output goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpec {
    /// To what.
    pub sink: Sink,
    /// A file is rotated at the first line end past this many bytes.
    pub rotate_size: u64,
    /// A slot's files together stay below this.
    pub max_size: u64,
    /// When it cannot be written: drop and count, rather than let the worker wait.
    pub drop: bool,
    /// Bytes the pipe to the worker holds.
    pub buffer: u64,
}
