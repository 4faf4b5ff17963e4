//! One node: the real engine, the real keeper core, a fake machine, and clocks that run as they like.

use std::collections::BTreeMap;

use leasehold::{
    config::{
        Config,
        spec::{
            Authority, EnvFile, EtcdSpec, FleetSpec, HookSpec, HttpSpec, LeaseSpec, NodeSpec,
            Preference, PublishMode, PublishSpec, ReadySpec, RecordsSpec, RestartPolicy, ScaleSpec,
            SingletonSpec, Sink, Takeover, TraefikProtocol, TraefikSpec, TraefikVersion,
        },
    },
    engine::{
        Facts, Intent, Supervisor,
        cluster::{Pin, rpc::CallId},
        gate::{Kept, Pass},
        intent::Size,
        supervisor::Origin,
    },
    id::{FleetName, Revision, WorkerId},
    keeper::core::Core,
    time::{Clocks, Moment, Span},
    wire::{News, StopRecord},
};

use crate::{etcd::slew, host::Host, mutants::Mutant, reload, rng::Rng, ticks, world::Faults};

/// A lock that is contended, and how many may have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contended {
    pub(crate) name: &'static str,
    pub(crate) slots: u32,
    pub(crate) takeover: Takeover,
    /// One of the nodes says one more.
    pub(crate) is_disputed: bool,
    /// Who is to have it in the end.
    pub(crate) home: Option<&'static str>,
    /// It is not to be together with others of this group.
    pub(crate) group: Option<&'static str>,
    /// Whoever waits for it does so with a worker that stands by.
    pub(crate) is_warm: bool,
}

pub(crate) fn fleet(text: &str) -> FleetName {
    text.parse().expect("a name")
}

pub(crate) fn worker(lock: &str) -> WorkerId {
    WorkerId::new(fleet(lock), 0)
}

pub(crate) fn process(command: &str) -> FleetSpec {
    let mut spec = FleetSpec::unknown(&StopRecord::default());
    spec.workers = 1;
    spec.process.program = format!("/bin/{command}");
    spec.process.argv = vec![command.to_owned()];
    spec.log.sink = Sink::None;
    spec.stop.timeout = Span::secs(4);
    spec.start.timeout = Span::secs(20);
    spec.ready = ReadySpec::Notify;
    spec.restart.policy = RestartPolicy::Always;
    spec.restart.backoff_min = Span::millis(100);
    spec.restart.backoff_max = Span::secs(2);
    spec.restart.burst = 100;
    spec
}

pub(crate) fn seal(mut spec: FleetSpec) -> FleetSpec {
    spec.revision = Revision::of(format!("{:?}", spec.process).as_bytes());
    spec
}

pub(crate) fn lease(faults: &Faults) -> LeaseSpec {
    LeaseSpec {
        epoch: 0,
        authority: Authority::Cluster("sim".to_owned()),
        ttl: faults.ttl,
        grace: Span::secs(2),
        kill_margin: Span::secs(1),
    }
}

/// Runs under a lock, or stands by; nowhere else.
pub(crate) const UNDER_LOCK: &str = "worker";

fn spec(node: &str, lock: &Contended, faults: &Faults) -> FleetSpec {
    let mut spec = process(UNDER_LOCK);
    spec.process.env_files = vec![EnvFile {
        path: "/etc/worker.env".to_owned(),
        optional: true,
    }];
    spec.singleton = Some(SingletonSpec {
        lock: fleet(lock.name),
        slots: lock.slots + u32::from(lock.is_disputed && node == "node2"),
        takeover: lock.takeover,
        preference: Preference {
            priority: 0,
            node: lock.home.map(str::to_owned),
            spread: lock.group.map(str::to_owned),
            failback: lock.home.or(lock.group).map(|_| Span::secs(3)),
        },
        lease: Some(lease(faults)),
        warm: lock.is_warm,
        ..SingletonSpec::default()
    });
    spec.publish = Some(published(lock.name));
    if faults.hooks {
        spec.process.pre_start = Some(hook());
        spec.process.pre_stop = Some(hook());
    }
    seal(spec)
}

/// It runs under the lock, too, and may take longer than its lease is good for.
fn hook() -> HookSpec {
    HookSpec {
        program: "/bin/hook".to_owned(),
        argv: vec!["hook".to_owned()],
        timeout: Span::secs(15),
        abort: true,
    }
}

/// Whoever has the lock is found in etcd, too.
fn published(name: &str) -> PublishSpec {
    let traefik = TraefikSpec {
        version: TraefikVersion::V3,
        rootkey: "traefik".to_owned(),
        protocol: TraefikProtocol::Http,
        router: name.to_owned(),
        rule: Some(format!("Host(`{name}`)")),
        entrypoints: Vec::new(),
        middlewares: Vec::new(),
        tls: false,
        scheme: "http".to_owned(),
        passhostheader: true,
        healthcheck: None,
    };
    PublishSpec {
        mode: PublishMode::Node,
        address: "10.0.0.5".to_owned(),
        port: 8_000,
        files: Vec::new(),
        haproxy_agent: None,
        environment: BTreeMap::new(),
        records: Some(RecordsSpec {
            traefik: Some(traefik),
            ..RecordsSpec::default()
        }),
    }
}

/// A fleet that follows the load, with fewer units than its nodes would have workers.
pub(crate) const COUNTED: &str = "web";
pub(crate) const UNITS: u32 = 5;
pub(crate) const WANTED: u32 = 3;

fn counted() -> FleetSpec {
    let mut spec = process("server");
    spec.scale = Some(ScaleSpec {
        cluster_max: Some(UNITS),
        ..ScaleSpec::between(1, WANTED)
    });
    seal(spec)
}

/// An operator wants them all, everywhere.
fn intent(faults: &Faults) -> Intent {
    let mut intent = Intent::default();
    if faults.counted {
        let size = Size {
            workers: WANTED,
            ..Size::default()
        };
        intent.sizes.insert(fleet(COUNTED), size);
    }
    intent
}

fn config(node: &str, locks: &[Contended], faults: &Faults) -> Config {
    let fleets = locks
        .iter()
        .map(|lock| (fleet(lock.name), spec(node, lock, faults)));
    let counted = faults.counted.then(|| (fleet(COUNTED), counted()));
    let jobs = faults
        .jobs
        .then(|| ticks::specs(faults))
        .into_iter()
        .flatten();
    let fleets: BTreeMap<FleetName, FleetSpec> = fleets.chain(counted).chain(jobs).collect();
    let endpoints = faults.endpoints;
    Config {
        revision: Revision::of(format!("{fleets:?}").as_bytes()),
        path: "sim.toml".to_owned(),
        base: String::new(),
        node: NodeSpec {
            name: node.to_owned(),
            restart_rate: 20_000,
            restart_burst: 50,
            cpu_reserve: 100_000,
            memory_reserve: 100_000,
        },
        http: HttpSpec::default(),
        etcd: Some(EtcdSpec {
            endpoints: (0..endpoints)
                .map(|member| format!("http://{member}"))
                .collect(),
            cluster: "sim".to_owned(),
            lease_ttl: faults.ttl,
            user: None,
            tls: None,
            epoch: 0,
        }),
        fleets,
    }
}

/// Which way a client's packets are lost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cut {
    pub(crate) there_until: Moment,
    pub(crate) back_until: Moment,
}

pub(crate) struct Node {
    pub(crate) name: String,
    /// As it was at first.
    base: Config,
    /// What its file says.
    pub(crate) file: Config,
    /// What was accepted of it last, and what that replaced.
    pub(crate) config: Config,
    pub(crate) previous: BTreeMap<FleetName, FleetSpec>,
    /// Millionths of true time; a reboot begins it anew.
    boot_ppm: u64,
    raw_ppm: u64,
    booted: Moment,
    pub(crate) host: Host,
    pub(crate) core: Option<Core>,
    pub(crate) engine: Option<Supervisor>,
    /// When it has something to do, as of its last step.
    pub(crate) engine_due: Option<Moment>,
    pub(crate) incarnation: u64,
    pub(crate) pin: Option<Pin>,
    pub(crate) intent: Intent,
    pub(crate) locks: BTreeMap<WorkerId, u64>,
    /// Somebody else on this machine has the lock files, until then.
    pub(crate) lock_busy_until: Moment,
    pub(crate) sought: BTreeMap<WorkerId, u64>,
    /// Its wall clock is never wrong by more than some seconds.
    pub(crate) is_sane: bool,
    /// The kernel has yet to tell the supervisor.
    pub(crate) clock_was_set: bool,
    pub(crate) cuts: [Cut; 3],
    /// True time.
    pub(crate) supervisor_until: Moment,
    pub(crate) keeper_until: Moment,
    pub(crate) asked: BTreeMap<CallId, Clocks>,
    pub(crate) to_keeper: Moment,
    pub(crate) to_supervisor: Moment,
    /// What comes from a member comes in order.
    pub(crate) stream_at: [Moment; 3],
    runs: u64,
    pub(crate) mutant: Mutant,
}

impl Node {
    pub(crate) fn new(
        index: usize,
        locks: &[Contended],
        linger: Span,
        faults: &Faults,
        mutant: Mutant,
        rng: &mut Rng,
    ) -> Self {
        let name = format!("node{index}");
        let mut host = Host::new(Rng::new(rng.next()), linger);
        host.stubborn = faults.stubborn;
        host.is_careless = mutant == Mutant::NoKeeper;
        let config = config(&name, locks, faults);
        for (name, spec) in &config.fleets {
            if let Some(cron) = &spec.cron {
                host.jobs.add(name.clone(), cron);
            }
        }
        Self {
            base: config.clone(),
            file: config.clone(),
            config,
            previous: BTreeMap::new(),
            name,
            boot_ppm: if faults.slewed {
                slew(rng) * 1_000
            } else {
                1_000_000
            },
            raw_ppm: 999_500 + rng.below(1_001),
            booted: Moment(rng.below(900) * 1_000_000_000),
            host,
            core: None,
            engine: None,
            engine_due: None,
            incarnation: 0,
            pin: None,
            intent: intent(faults),
            locks: BTreeMap::new(),
            lock_busy_until: Moment(0),
            sought: BTreeMap::new(),
            is_sane: true,
            clock_was_set: false,
            cuts: [Cut::default(); 3],
            supervisor_until: Moment(0),
            keeper_until: Moment(0),
            asked: BTreeMap::new(),
            to_keeper: Moment(0),
            to_supervisor: Moment(0),
            stream_at: [Moment(0); 3],
            runs: 0,
            mutant,
        }
    }

    /// There is no supervisor that would see something.
    pub(crate) fn is_blind(&self, now: Moment) -> bool {
        self.engine.is_none() || self.supervisor_until > now
    }

    /// Somebody edits its file, or makes it again what it was.
    pub(crate) fn edit(&mut self, as_it_was: bool, rng: &mut Rng) {
        self.file = match as_it_was {
            true => self.base.clone(),
            false => reload::edited(&self.base, rng),
        };
    }

    /// Its operator says that etcd may have forgotten something.
    pub(crate) fn raise_epoch(&mut self) {
        self.base = reload::of_a_higher_epoch(&self.base);
        self.file = self.base.clone();
    }

    /// Somebody sets its wall clock.
    pub(crate) fn set_clock(&mut self, by_ms: i64, now: Moment) {
        self.host.jobs.set(by_ms, now);
        self.clock_was_set = true;
    }

    /// When its supervisor looks at the wall clock.
    pub(crate) fn alarm(&self, now: Moment) -> Option<Moment> {
        self.engine.as_ref()?;
        let at = match self.clock_was_set {
            true => now,
            false => self.host.jobs.rings(now)?,
        };
        Some(at.max(self.supervisor_until))
    }

    /// What its clocks show at this true time.
    pub(crate) fn clocks(&self, now: Moment) -> Clocks {
        let show = |ppm: u64| {
            let ran = u128::from(now.0) * u128::from(ppm) / 1_000_000;
            Moment(self.booted.0 + ran as u64)
        };
        Clocks {
            boottime: show(self.boot_ppm),
            raw: show(self.raw_ppm),
        }
    }

    /// What its keeper sees of them.
    pub(crate) fn seen_by_keeper(&self, now: Moment) -> Clocks {
        let mut clocks = self.clocks(now);
        if self.mutant == Mutant::OneClock {
            clocks.raw = Moment(0);
        }
        clocks
    }

    /// What its supervisor sees of them.
    pub(crate) fn seen(&self, now: Moment) -> Clocks {
        let mut clocks = self.clocks(now);
        if matches!(self.mutant, Mutant::OneClock | Mutant::OneClockByHand) {
            clocks.raw = Moment(0);
        }
        clocks
    }

    fn true_time(&self, shown: Moment, ppm: u64) -> Moment {
        let ran = u128::from(shown.0.saturating_sub(self.booted.0));
        let passed = (ran * 1_000_000).div_ceil(u128::from(ppm)) + 1;
        Moment(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// The true time at which BOOTTIME shows this.
    pub(crate) fn when(&self, shown: Moment) -> Moment {
        self.true_time(shown, self.boot_ppm)
    }

    /// The true time at which this deadline has passed.
    pub(crate) fn passes(&self, until: Clocks) -> Moment {
        let by_boottime = self.when(until.boottime);
        match self.mutant {
            Mutant::OneClock => by_boottime,
            _ => by_boottime.min(self.true_time(until.raw, self.raw_ppm)),
        }
    }

    pub(crate) fn is_past(&self, until: Clocks, now: Moment) -> bool {
        self.passes(until) <= now
    }

    /// A keeper that begins has a run of its own.
    pub(crate) fn keeper_starts(&mut self) {
        self.runs += 1;
        self.host.keeper_deaths = self.runs - 1;
        self.core = Some(Core::new());
    }

    pub(crate) fn origin(&mut self, seed: u64, recover: bool, now: Moment) -> Origin {
        let core = self.core.as_mut().expect("a keeper");
        let rows = core.tell_all().into_iter().filter_map(|news| match news {
            News::Row { key, header, body } => Some((key, header, body.unwrap_or_default())),
            _ => None,
        });
        let rows = rows.collect();
        let asked = core.asked();
        let stands = |worker: &WorkerId, fence: u64| {
            let seat = self.host.seats.get(worker)?;
            (seat.fence == fence && !seat.fired).then_some(seat.until)
        };
        let gates = self.locks.iter().map(|(worker, fence)| {
            let kept = Kept {
                pass: Pass {
                    path: "/run/lock/sim".to_owned(),
                    fence: *fence,
                },
                lost: None,
                until: stands(worker, *fence),
            };
            (worker.clone(), kept)
        });
        Origin {
            config: self.config.clone(),
            previous: self.previous.clone(),
            intent: self.intent.clone(),
            facts: Facts {
                node: self.name.clone(),
                notify_socket: "/run/notify".to_owned(),
                identity: format!("identity of {}", self.name),
                run: format!("{}", self.runs),
                pin: self.pin,
            },
            asked,
            rows,
            gates: gates.collect(),
            shown: self.host.jobs.shown(now),
            recover,
            seed,
        }
    }

    /// An operator keeps it empty.
    pub(crate) fn is_drained(&self) -> bool {
        self.intent.node.is_some()
    }

    /// The machine loses its power, and its clocks begin anew.
    pub(crate) fn power_lost(&mut self, rng: &mut Rng) {
        self.keeper_lost();
        self.booted = Moment(rng.below(900) * 1_000_000_000);
    }

    /// Everything that the keeper contained ends with it.
    pub(crate) fn keeper_lost(&mut self) {
        self.core = None;
        self.engine = None;
        // The next one reads the file.
        self.config = self.file.clone();
        self.previous.clear();
        self.incarnation += 1;
        self.host.wipe();
        self.locks.clear();
        self.asked.clear();
        (self.supervisor_until, self.keeper_until) = (Moment(0), Moment(0));
    }
}
