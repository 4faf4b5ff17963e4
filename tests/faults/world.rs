//! Three members, some nodes that are machines of their own as far as locks go, and a judge.

use std::{env, fs::File, io::Write};

use leasehold::{
    config::spec::LeaseSpec,
    sys::clock,
    time::{Moment, Span},
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    etcd::{Cluster, Setup},
    etcdctl,
    oracle::{Oracle, Run},
    rig::{Mode, Rig, Status, cgroup_mount, is_root, send, skip, until, until_true},
};

/// Whose workers are watched.
pub(crate) const WORKER: &str = "billing/0";

/// What a lease is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) ttl: Span,
    pub(crate) grace: Span,
    pub(crate) kill_margin: Span,
}

impl Times {
    /// As it is where nothing is configured: etcd's leader may crash.
    pub(crate) const DEFAULT: Self = Self {
        ttl: Span::secs(10),
        grace: Span::secs(2),
        kill_margin: Span::secs(1),
    };
    /// Where etcd's leader stays.
    pub(crate) const QUICK: Self = Self {
        ttl: Span::secs(5),
        grace: Span::millis(500),
        kill_margin: Span::millis(500),
    };

    /// From a renewal to the moment at which nothing is left.
    pub(crate) fn dead(&self) -> Span {
        LeaseSpec::dead_after(self.ttl)
    }

    /// From a renewal to SIGKILL.
    pub(crate) fn kill(&self) -> Span {
        self.dead().minus(self.kill_margin)
    }

    /// From a renewal to SIGTERM.
    pub(crate) fn term(&self) -> Span {
        self.kill().minus(self.grace)
    }

    /// From one renewal to the next, with what the second may take.
    fn round(&self) -> Span {
        Span::nanos(self.ttl.as_nanos() / 5).plus(Span::secs(1))
    }

    /// From a fault to the moment at which somebody else runs, where only the end of the lease tells of it: etcd looks for ended leases
    /// twice a second, and whoever is next waits a second.
    pub(crate) fn failover(&self) -> Span {
        self.ttl.plus(Span::secs(3))
    }
}

/// How a node is.
#[derive(Clone, Debug)]
pub(crate) struct How {
    /// Letters for its worker.
    pub(crate) worker: &'static str,
    /// Whoever stands by does so with a worker.
    pub(crate) warm: bool,
    pub(crate) takeover: &'static str,
    pub(crate) containment: &'static str,
    pub(crate) mode: Mode,
    /// None: all members.
    pub(crate) endpoints: Option<Vec<String>>,
    /// More settings of how etcd is asked.
    pub(crate) etcd: &'static str,
    /// Starts the daemon somewhere else.
    pub(crate) wrapper: Vec<String>,
}

impl Default for How {
    fn default() -> Self {
        Self {
            worker: "-",
            warm: false,
            takeover: "1s",
            containment: if is_root() { "strict" } else { "weak" },
            mode: surest(),
            endpoints: None,
            etcd: "",
            wrapper: Vec::new(),
        }
    }
}

/// What holds workers together best here.
fn surest() -> Mode {
    if is_root() && cgroup_mount().is_some() {
        Mode::Cgroup
    } else {
        Mode::Group
    }
}

/// Who runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) node: usize,
    pub(crate) fence: u64,
    pub(crate) leader: i32,
}

pub(crate) struct World {
    pub(crate) nodes: Vec<Rig>,
    pub(crate) etcd: Cluster,
    pub(crate) oracle: Oracle,
    pub(crate) times: Times,
    witness: String,
    _dir: TempDir,
}

impl World {
    /// Members, and nobody else. None, loudly, where that cannot be.
    pub(crate) fn new(times: Times) -> Option<Self> {
        Self::of(times, &[])
    }

    pub(crate) fn of(times: Times, args: &[&str]) -> Option<Self> {
        let dir = tempfile::Builder::new()
            .prefix("lh-faults-")
            .tempdir_in("/tmp")
            .unwrap();
        let witness = compiled(&dir)?;
        let etcd = Cluster::with(Setup {
            members: 3,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Setup::default()
        })?;
        let world = Self {
            nodes: Vec::new(),
            etcd,
            oracle: Oracle::new(dir.path().join("oracle")),
            times,
            witness,
            _dir: dir,
        };
        world.leader();
        Some(world)
    }

    /// The member that leads now.
    pub(crate) fn leader(&self) -> usize {
        until("a member leads", 20_000, || {
            self.etcd.leader().ok_or_else(|| "nobody leads".to_owned())
        })
    }

    /// All members, from that one on.
    pub(crate) fn endpoints_from(&self, member: usize) -> Vec<String> {
        let mut all = self.etcd.endpoints();
        all.rotate_left(member);
        all
    }

    /// A node, not yet started: its number.
    pub(crate) fn plan(&mut self, how: &How) -> usize {
        let name = format!("n{}", self.nodes.len());
        self.plan_named(how, &name)
    }

    pub(crate) fn plan_named(&mut self, how: &How, name: &str) -> usize {
        let number = self.nodes.len();
        let mut rig = Rig::new(how.mode).expect("this mode was looked for");
        rig.wrapper.clone_from(&how.wrapper);
        let Times {
            ttl,
            grace,
            kill_margin,
        } = self.times;
        let endpoints = how.endpoints.clone();
        let endpoints = endpoints.unwrap_or_else(|| self.etcd.endpoints());
        rig.configure(&format!(
            r#"
            [node]
            name = "{name}"
            [etcd]
            endpoints = {endpoints:?}
            lease_ttl = "{}s"
            {}
            [fleet.billing]
            command = ["{}", "{}", "n{number}", "{}"]
            singleton = {{ scope = "cluster", flock = "{{dir}}/lock", grace = "{}ms", kill_margin = "{}ms", takeover_delay = "{}", containment = "{}", warm = {} }}
            restart = {{ backoff = "1ms..5ms", burst = 100000 }}
            stop.timeout = "2s"
            "#,
            ttl.as_millis() / 1_000,
            how.etcd,
            self.witness,
            self.oracle.path().display(),
            how.worker,
            grace.as_millis(),
            kill_margin.as_millis(),
            how.takeover,
            how.containment,
            how.warm,
        ));
        self.nodes.push(rig);
        number
    }

    /// Says something else in a node's file, and has it read.
    pub(crate) fn edit(&self, node: usize, from: &str, to: &str) {
        let path = self.nodes[node].path("leasehold.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        self.nodes[node].ok(&["reload"]);
    }

    /// A node that runs.
    pub(crate) fn node(&mut self, how: &How) -> usize {
        let node = self.plan(how);
        self.nodes[node].start();
        node
    }

    /// Three nodes; the first holds, the others stand by.
    pub(crate) fn three(&mut self, how: &How) -> Holder {
        let holder = self.holding(how);
        for _ in 0..2 {
            let node = self.node(how);
            self.stands_by(node);
        }
        holder
    }

    /// A node that runs and holds.
    pub(crate) fn holding(&mut self, how: &How) -> Holder {
        let node = self.node(how);
        let holder = self.somebody(10_000);
        assert_eq!(holder.node, node, "{}", self.oracle.story());
        self.is_renewed_since(&holder, clock::now());
        holder
    }

    /// It knows who has it.
    pub(crate) fn stands_by(&self, node: usize) -> Status {
        self.stands_by_within(node, 10_000)
    }

    pub(crate) fn stands_by_within(&self, node: usize, bound_ms: u64) -> Status {
        self.nodes[node].wait("it stands by", bound_ms, |status| {
            self.gate(status)["holder"]
                .as_str()
                .is_some_and(|why| why.contains("held by"))
        })
    }

    pub(crate) fn gate(&self, status: &Status) -> Value {
        status.fleet("billing")["gate"].clone()
    }

    fn holder_of(run: &Run) -> Holder {
        Holder {
            node: run.node[1..].parse().unwrap(),
            fence: run.fence,
            leader: run.leader,
        }
    }

    /// Somebody says a word from now on.
    pub(crate) fn somebody(&self, bound_ms: u64) -> Holder {
        let now = clock::now();
        until("somebody runs", bound_ms, || {
            let runs = self.oracle.runs();
            let speaks = runs.iter().rev().find(|run| run.last > now);
            speaks.map(Self::holder_of).ok_or(self.oracle.story())
        })
    }

    /// Somebody else than this run began.
    pub(crate) fn after(&self, holder: &Holder, bound: Span) -> Holder {
        until("somebody else runs", bound.as_millis(), || {
            let runs = self.oracle.runs();
            let of = |run: &Run| Self::holder_of(run) == *holder;
            let at = runs.iter().position(of).expect("it ran");
            let next = runs.get(at + 1);
            next.map(Self::holder_of).ok_or_else(|| self.oracle.story())
        })
    }

    /// As its lines tell it.
    pub(crate) fn run(&self, holder: &Holder) -> Run {
        let runs = self.oracle.runs();
        let mut runs = runs.into_iter();
        runs.find(|run| Self::holder_of(run) == *holder)
            .expect("it ran")
    }

    pub(crate) fn rig(&self, holder: &Holder) -> &Rig {
        &self.nodes[holder.node]
    }

    /// It goes on under a deadline that a renewal sent since then has moved: nothing is left of what was before.
    pub(crate) fn is_renewed_since(&self, holder: &Holder, moment: Moment) -> Moment {
        let bound = self.times.ttl.as_millis();
        let rig = self.rig(holder);
        let until = until("its lease is renewed", bound, || {
            let asked = clock::now();
            let status = rig.try_status()?;
            let gate = self.gate(&status);
            let left = gate["deadline_in_ms"].as_u64().unwrap_or(0);
            let until = asked.after(Span::millis(left));
            let renewed = until >= moment.after(self.times.kill());
            renewed.then_some(until).ok_or(gate.to_string())
        });
        let now = clock::now();
        until_true("it goes on", 2_000, || self.run(holder).last > now);
        until
    }

    /// Nobody began but this one, and nobody asked it to end.
    pub(crate) fn is_untouched(&self, holder: &Holder) {
        let runs = self.oracle.runs();
        let last = runs.last().map(Self::holder_of);
        assert_eq!(last.as_ref(), Some(holder), "{}", self.oracle.story());
        let said = self.rig(holder).stderr();
        let end = [
            "it ends",
            "lost its lock",
            "its deadline",
            "gave its lock back",
        ];
        assert!(!end.iter().any(|words| said.contains(words)), "{said}");
    }

    /// It is renewed for as long as a lease lasts, and on.
    pub(crate) fn outlasts_a_lease(&self, holder: &Holder) {
        let over = clock::now().after(self.times.ttl);
        let bound = self.times.failover().as_millis();
        until_true("a lease would be over", bound, || clock::now() >= over);
        self.is_renewed_since(holder, over);
        self.is_untouched(holder);
    }

    /// When it says its last word, if renewals sent after that moment do not count: not before it must, and not after.
    pub(crate) fn ended_as_its_lease_did(&self, holder: &Holder, moment: Moment, ignores: bool) {
        self.ended_between(holder, moment, moment, ignores);
    }

    /// So, if they do not count from some moment between the two on.
    pub(crate) fn ended_between(&self, holder: &Holder, from: Moment, to: Moment, ignores: bool) {
        let last = self.run(holder).last;
        let times = self.times;
        // The last one may have been sent a round before.
        let after = if ignores { times.kill() } else { times.term() };
        let begins = from.after(after.minus(times.round()));
        let ends = to.after(if ignores { times.dead() } else { times.kill() });
        let at = milliseconds(from.until(last));
        assert!(last >= begins, "it ended after {at}: too early");
        assert!(last <= ends, "it ended after {at}: too late");
    }

    /// What a daemon says, of which this is a part.
    pub(crate) fn said(&self, node: usize, words: &str) {
        until("it says so", 5_000, || {
            let said = self.nodes[node].stderr();
            let is_said = said.contains(words);
            is_said.then_some(()).ok_or(format!("{words:?}: {said}"))
        });
    }

    pub(crate) fn supervisor(&self, holder: &Holder) -> i32 {
        self.rig(holder).status().supervisor()
    }

    pub(crate) fn keeper(&self, holder: &Holder) -> i32 {
        self.rig(holder).keeper()
    }

    /// The keys of the queue, by the revision that made them: who has it is the first.
    pub(crate) fn queue(&self) -> Vec<String> {
        until("etcd shows the queue", 10_000, || {
            etcdctl::queue(&self.etcd)
        })
    }

    /// The lease of whoever has it.
    pub(crate) fn lease_of_first(&self) -> String {
        etcdctl::lease_of(&self.queue()[0]).to_owned()
    }

    /// The end of a row: never two at once, fences that rise; and a line for the table.
    pub(crate) fn verdict(&self, fault: &str, seen: &str) {
        let faults = self.oracle.faults();
        assert!(faults.is_empty(), "{faults:?}\n{}", self.oracle.story());
        self.report(fault, "none", seen);
    }

    pub(crate) fn report(&self, fault: &str, overlap: &str, seen: &str) {
        let changes = self.oracle.changes();
        let gap = changes.iter().map(|change| change.gap).max();
        let runs = self.oracle.runs();
        let silence = runs.iter().map(|run| run.silence).max().unwrap_or_default();
        let gap = match gap {
            Some(gap) => milliseconds(gap),
            None => format!("none ({} between two lines)", milliseconds(silence)),
        };
        let story: Vec<String> = changes
            .iter()
            .map(|change| {
                format!(
                    "{} → {} {}",
                    change.from,
                    change.to,
                    milliseconds(change.gap)
                )
            })
            .collect();
        let mut stderr = std::io::stderr();
        let _ = writeln!(
            stderr,
            "\nROW {fault}: gap {gap}, {seen} [{}]",
            story.join("; ")
        );
        if let Some(table) = env::var_os("LEASEHOLD_FAULTS_TABLE") {
            let mut file = File::options()
                .append(true)
                .create(true)
                .open(table)
                .unwrap();
            writeln!(file, "| {fault} | {gap} | {overlap} | {seen} |").unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- who ran ---\n{}", self.oracle.story());
            eprintln!("--- faults: {:?}", self.oracle.faults());
        }
        // What a test froze does not end by itself.
        for rig in &self.nodes {
            for pid in rig.left() {
                send(pid, Signal::CONT);
            }
        }
    }
}

pub(crate) fn milliseconds(span: Span) -> String {
    match span.as_millis() {
        0 => format!("{} µs", span.as_nanos() / 1_000),
        ms @ 1..10_000 => format!("{ms} ms"),
        ms => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
    }
}

/// Rows that take long, or show what others show too, run only if that is asked for.
pub(crate) fn all_rows() -> bool {
    let asked = env::var_os("LEASEHOLD_FAULTS_ALL").is_some();
    if !asked {
        skip("a row for LEASEHOLD_FAULTS_ALL=1");
    }
    asked
}

fn compiled(dir: &TempDir) -> Option<String> {
    let (source, program) = (dir.path().join("witness.c"), dir.path().join("witness"));
    std::fs::write(&source, include_str!("witness.c")).unwrap();
    let mut cc = std::process::Command::new("cc");
    match cc.args(["-O1", "-o"]).arg(&program).arg(&source).status() {
        Ok(status) => assert!(status.success(), "witness.c does not compile"),
        Err(_) => {
            skip("no C compiler (cc)");
            return None;
        }
    }
    Some(program.display().to_string())
}
