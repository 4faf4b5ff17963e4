//! From a specification and a slot to the order for one process.

use crate::{
    config::spec::{Bond, EnvFile, FleetSpec, HookSpec, ListenAddress, PublishSpec, SocketSpec},
    engine::{cluster::Pin, cron::Occasion, gate::Gate},
    id::{FleetName, WorkerId},
    time::Span,
    wire::{SpawnSpec, StopRecord, TaskKind},
};

/// What spawns must know about this run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The node's name.
    pub node: String,
    /// Path of the workers' notify socket; empty: there is none.
    pub notify_socket: String,
    /// Made once for a state directory: tells this node from another one of its name. Empty: none can be kept.
    pub identity: String,
    /// Names this run of the daemon.
    pub run: String,
    /// What this node has seen of its cluster before.
    pub pin: Option<Pin>,
}

/// The names under which the keeper holds a slot's log pipes: stdout and, if it is separate, stderr.
pub fn log_pipes(worker: &WorkerId, spec: &FleetSpec) -> (Option<String>, Option<String>) {
    if !spec.log.sink.is_captured() {
        return (None, None);
    }
    let stdout = format!("log/{worker}");
    let stderr = if spec.process.stderr_separate {
        format!("log/{worker}/stderr")
    } else {
        stdout.clone()
    };
    (Some(stdout), Some(stderr))
}

/// The name under which the keeper holds a socket: it says where it listens, so that another address is another name.
pub fn socket_name(fleet: &FleetName, name: &str, socket: &SocketSpec, slot: u32) -> String {
    let address = match &socket.listen {
        ListenAddress::Tcp(address) => address.to_string(),
        ListenAddress::Unix(path) => path.clone(),
    };
    let slot = if socket.reuse_port {
        format!("#{slot}")
    } else {
        String::new()
    };
    format!("socket/{fleet}/{name}/{address}{slot}")
}

/// The name under which the keeper holds a worker's lock.
pub fn lock_name(worker: &WorkerId) -> String {
    format!("lock/{worker}")
}

/// The worker itself.
pub(super) fn worker(
    worker: &WorkerId,
    spec: &FleetSpec,
    facts: &Facts,
    (gate, stands_by): (&Gate, bool),
    occasion: Option<Occasion>,
    extra: Vec<(String, String)>,
) -> SpawnSpec {
    let fill = Fill::new(worker, spec, facts);
    let process = &spec.process;
    let (stdout, stderr) = log_pipes(worker, spec);
    let mut env = environment(spec, &fill, occasion, extra);
    if !facts.notify_socket.is_empty() {
        env.push(format!("NOTIFY_SOCKET={}", facts.notify_socket));
    }
    if let Some(watchdog) = spec.health.watchdog {
        env.push(format!("WATCHDOG_USEC={}", watchdog.as_nanos() / 1_000));
    }
    if !spec.sockets.is_empty() {
        let names: Vec<&str> = spec.sockets.keys().map(String::as_str).collect();
        env.push(format!("LISTEN_FDS={}", names.len()));
        env.push(format!("LISTEN_FDNAMES={}", names.join(":")));
    }
    let mut passed: Vec<String> = spec
        .sockets
        .iter()
        .map(|(name, socket)| socket_name(&worker.fleet, name, socket, worker.slot.0))
        .collect();
    let page = match stands_by {
        true => Some(gate.standby_page()),
        false => gate.page(),
    };
    if let Some(pass) = gate.pass().filter(|_| !stands_by) {
        env.push(format!("LEASEHOLD_LOCK={}", pass.path));
        env.push(format!("LEASEHOLD_LOCK_FD={}", 3 + passed.len()));
        env.push(format!("LEASEHOLD_FENCE={}", pass.fence));
        let epoch = gate.page().map_or(0, |page| page.epoch);
        env.push(format!("LEASEHOLD_EPOCH={epoch}"));
        passed.push(lock_name(worker));
    }
    if page.is_some() {
        env.push(format!("LEASEHOLD_PAGE_FD={}", 3 + passed.len()));
    }
    SpawnSpec {
        program: process.program.clone(),
        argv: process.argv.iter().map(|word| fill.put(word)).collect(),
        env,
        stdout,
        stderr,
        pass: passed,
        cgroup_limits: process.cgroup_limits.clone(),
        session: process.session,
        page,
        ..common(spec)
    }
}

/// A hook or an exec probe: the worker's identity, limits and environment, but neither its sockets nor its notify socket.
pub(super) fn helper(
    worker: &WorkerId,
    spec: &FleetSpec,
    facts: &Facts,
    occasion: Option<Occasion>,
    hook: &HookSpec,
) -> SpawnSpec {
    let fill = Fill::new(worker, spec, facts);
    let (stdout, stderr) = log_pipes(worker, spec);
    SpawnSpec {
        program: hook.program.clone(),
        argv: hook.argv.iter().map(|word| fill.put(word)).collect(),
        env: environment(spec, &fill, occasion, Vec::new()),
        stdout,
        stderr,
        ..common(spec)
    }
}

/// What runs before a worker's start, or before its stop: for the lock that is had the first is under its deadline, and the second ends with the
/// worker.
pub(super) fn hook(
    worker: &WorkerId,
    spec: &FleetSpec,
    facts: &Facts,
    (gate, kind): (&Gate, TaskKind),
    occasion: Option<Occasion>,
    hook: &HookSpec,
) -> SpawnSpec {
    let helper = helper(worker, spec, facts, occasion, hook);
    let Some(page) = gate.page() else {
        return helper;
    };
    let is_first = kind == TaskKind::PreStart;
    let mut env = helper.env;
    env.push(format!("LEASEHOLD_FENCE={}", page.fence));
    env.push(format!("LEASEHOLD_EPOCH={}", page.epoch));
    if is_first {
        env.push("LEASEHOLD_PAGE_FD=3".to_owned());
    }
    SpawnSpec {
        env,
        page: is_first.then_some(page),
        ends_with_worker: kind == TaskKind::PreStop,
        ..helper
    }
}

/// The name under which the keeper holds the pipe into which a fleet's source says its number.
pub fn source_pipe(fleet: &FleetName) -> String {
    format!("source/{fleet}")
}

/// A program that says how long the fleet's queue is: like a helper, and its stdout is the answer.
pub(super) fn source(
    worker: &WorkerId,
    spec: &FleetSpec,
    facts: &Facts,
    command: &HookSpec,
) -> SpawnSpec {
    SpawnSpec {
        stdout: Some(source_pipe(&worker.fleet)),
        ..helper(worker, spec, facts, None, command)
    }
}

/// A check or a reload of a published file. It runs as who wrote the file, which is the daemon, and not as the fleet's user: who may
/// reload a balancer is not who serves. What it says stands in the log of the fleet's first slot.
pub(super) fn publisher(
    worker: &WorkerId,
    spec: &FleetSpec,
    publish: &PublishSpec,
    path: &str,
    facts: &Facts,
    command: &HookSpec,
) -> SpawnSpec {
    let fill = Fill::new(worker, spec, facts);
    let (stdout, stderr) = log_pipes(&WorkerId::new(worker.fleet.clone(), 0), spec);
    let mut env = publish.environment.clone();
    env.insert("LEASEHOLD_NODE".to_owned(), facts.node.clone());
    env.insert("LEASEHOLD_PUBLISHED".to_owned(), path.to_owned());
    SpawnSpec {
        program: command.program.clone(),
        argv: command.argv.iter().map(|word| fill.put(word)).collect(),
        env: env
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        stdout,
        stderr,
        ..SpawnSpec::default()
    }
}

fn common(spec: &FleetSpec) -> SpawnSpec {
    let process = &spec.process;
    SpawnSpec {
        cwd: process.cwd.clone(),
        user: process.user.clone(),
        umask: process.umask,
        rlimits: process.rlimits.clone(),
        nice: process.nice,
        affinity: process.affinity.clone(),
        no_new_privs: process.no_new_privs,
        dies_with_keeper: spec
            .singleton
            .as_ref()
            .is_some_and(|lock| lock.bond == Bond::Strict),
        ..SpawnSpec::default()
    }
}

fn environment(
    spec: &FleetSpec,
    fill: &Fill<'_>,
    occasion: Option<Occasion>,
    extra: Vec<(String, String)>,
) -> Vec<String> {
    let mut all: std::collections::BTreeMap<String, String> = spec
        .process
        .env
        .iter()
        .map(|(name, value)| (name.clone(), fill.put(value)))
        .collect();
    all.extend(extra);
    all.insert("LEASEHOLD_NODE".to_owned(), fill.node.to_owned());
    if let Some(occasion) = occasion {
        let (scheduled, attempt) = (occasion.scheduled, occasion.attempt);
        all.insert("LEASEHOLD_SCHEDULED".to_owned(), scheduled.to_string());
        all.insert("LEASEHOLD_ATTEMPT".to_owned(), attempt.to_string());
    }
    if !fill.port.is_empty() {
        all.insert("PORT".to_owned(), fill.port.clone());
    }
    all.into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

/// How the keeper stops it without us.
pub(super) fn stop_record(spec: &FleetSpec) -> StopRecord {
    StopRecord {
        signal: spec.stop.signal,
        to: spec.stop.to,
        timeout: spec.stop.timeout,
        rank: spec.rank,
    }
}

/// Files to read before a spawn.
pub(super) fn env_files(spec: &FleetSpec) -> &[EnvFile] {
    &spec.process.env_files
}

/// Puts `{{ slot }}` and friends in.
pub(super) struct Fill<'a> {
    fleet: String,
    slot: String,
    node: &'a str,
    port: String,
}

impl<'a> Fill<'a> {
    pub(super) fn new(worker: &WorkerId, spec: &FleetSpec, facts: &'a Facts) -> Self {
        let port = spec
            .process
            .port_range
            .map_or_else(String::new, |(low, _)| {
                (u32::from(low) + worker.slot.0).to_string()
            });
        Self {
            fleet: worker.fleet.to_string(),
            slot: worker.slot.to_string(),
            node: &facts.node,
            port,
        }
    }

    pub(super) fn put(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, (name, tail))) = rest
            .split_once("{{")
            .and_then(|(b, t)| Some((b, t.split_once("}}")?)))
        {
            out.push_str(before);
            out.push_str(match name.trim() {
                "fleet" => &self.fleet,
                "slot" => &self.slot,
                "node" => self.node,
                "port" => &self.port,
                _ => "",
            });
            rest = tail;
        }
        out + rest
    }
}

/// A pause that `EXTEND_TIMEOUT_USEC` may ask for at most at once: a typo must not park a drain for a year.
pub(super) const EXTEND_STEP_MAX: Span = Span::secs(3_600);
