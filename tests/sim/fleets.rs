//! Configurations to be simulated: a database, a web fleet that waits for it, a flaky one, one that is done when it succeeds.

use std::collections::BTreeMap;

use leasehold::{
    config::{
        Config,
        spec::{
            AfterState, Authority, CronSpec, EnvFile, FleetSpec, HookSpec, HttpSpec, LeaseSpec,
            NodeSpec, Overlap, ProbeKind, ProbeSpec, PublishMode, PublishSpec, PublishedFile,
            ReadySpec, RestartPolicy, RetrySpec, ScaleSpec, Signal, SingletonSpec, Sink,
            SourceKind, SourceSpec,
        },
    },
    id::{FleetName, Revision},
    time::Span,
    wire::StopRecord,
};

use crate::rng::Rng;

pub(crate) fn name(text: &str) -> FleetName {
    text.parse().expect("a name")
}

fn base(command: &str, workers: u32) -> FleetSpec {
    let mut spec = FleetSpec::unknown(&StopRecord::default());
    spec.workers = workers;
    spec.process.program = format!("/bin/{command}");
    spec.process.argv = vec![command.to_owned()];
    spec.log.sink = Sink::None;
    spec.stop.timeout = Span::secs(10);
    spec.stop.extend_max = Span::secs(30);
    spec.start.timeout = Span::secs(20);
    spec.restart.policy = RestartPolicy::Always;
    spec.restart.backoff_min = Span::millis(200);
    spec.restart.backoff_max = Span::secs(20);
    spec.restart.burst = 5;
    spec.restart.window = Span::secs(30);
    spec.restart.healthy = Span::secs(5);
    spec.restart.give_up = false;
    seal(spec)
}

fn seal(mut spec: FleetSpec) -> FleetSpec {
    spec.revision = Revision::of(format!("{:?}", spec.process).as_bytes());
    spec
}

fn lock(of: &str) -> SingletonSpec {
    SingletonSpec {
        lock: name(of),
        ..SingletonSpec::default()
    }
}

fn hook(program: &str) -> HookSpec {
    HookSpec {
        program: program.to_owned(),
        argv: vec![program.to_owned()],
        timeout: Span::secs(3),
        abort: true,
    }
}

/// How long a worker of `web` is out of all lists before it is told to stop.
pub(crate) const WEB_DELAY: Span = Span::secs(2);

/// A fleet that is published by one file.
fn published(fleet: &str, mode: PublishMode, check: bool) -> PublishSpec {
    PublishSpec {
        mode,
        address: "10.0.0.5".to_owned(),
        port: 8_000,
        files: vec![PublishedFile {
            template: "t".to_owned(),
            path: format!("/etc/{fleet}"),
            check: check.then(|| hook("check")),
            reload: Some(hook("reload")),
        }],
        haproxy_agent: None,
        environment: BTreeMap::new(),
        records: None,
    }
}

/// How `timed` is leased.
pub(crate) fn lease() -> LeaseSpec {
    LeaseSpec {
        epoch: 0,
        authority: Authority::File(String::new()),
        ttl: Span::secs(15),
        grace: Span::secs(3),
        kill_margin: Span::secs(1),
    }
}

/// A job for every minute.
fn job(overlap: Overlap, attempts: u32, catch_up: u64) -> FleetSpec {
    let mut spec = base("job", 1);
    spec.cron = Some(CronSpec {
        timezone: "Europe/Berlin".to_owned(),
        overlap,
        catch_up: Span::secs(catch_up),
        retry: RetrySpec {
            attempts,
            backoff_min: Span::secs(2),
            backoff_max: Span::secs(30),
        },
        ..CronSpec::of("* * * * *")
    });
    spec
}

/// Jobs of every kind. Nobody edits them away.
fn jobs() -> [(&'static str, FleetSpec); 5] {
    let skips = job(Overlap::Skip, 1, 0);
    let mut queues = job(Overlap::Queue, 3, 600);
    let mut replaces = job(Overlap::Replace, 2, 300);
    let mut short = job(Overlap::Skip, 2, 120);
    let mut sole = job(Overlap::Forbid, 3, 120);
    sole.singleton = Some(lock("sole"));
    let change = |spec: &mut FleetSpec, change: fn(&mut CronSpec)| {
        spec.cron.as_mut().map(change).expect("a job");
    };
    change(&mut queues, |cron| cron.jitter = Span::secs(20));
    change(&mut replaces, |cron| {
        cron.schedule = "*/2 * * * *".to_owned()
    });
    change(&mut short, |cron| cron.timeout = Span::secs(10));
    short.process.pre_start = Some(hook("fetch"));
    queues.process.env_files = vec![EnvFile {
        path: "/etc/job.env".to_owned(),
        optional: false,
    }];
    [
        ("skips", skips),
        ("queues", queues),
        ("replaces", replaces),
        ("short", short),
        ("sole", sole),
    ]
}

pub(crate) fn is_job(name: &FleetName) -> bool {
    jobs().iter().any(|(job, _)| name.as_str() == *job)
}

/// The configuration that a story begins with.
pub(crate) fn first() -> Config {
    let mut db = base("db", 3);
    db.ready = ReadySpec::Notify;
    db.process.pre_stop = Some(hook("say-goodbye"));
    db.publish = Some(published("db", PublishMode::Node, false));
    let mut web = base("web", 4);
    web.ready = ReadySpec::Probe(ProbeSpec {
        kind: ProbeKind::Tcp("127.0.0.1:80".to_owned()),
        interval: Span::millis(300),
        timeout: Span::secs(1),
        fail: 3,
        pass: 1,
    });
    web.health.watchdog = Some(Span::secs(8));
    web.health.restarts_per_minute = 6;
    web.after.insert(name("db"), AfterState::Ready);
    web.rank = 1;
    web.stop.deregister_delay = WEB_DELAY;
    web.publish = Some(published("web", PublishMode::Worker, true));
    web.process.env_files = vec![EnvFile {
        path: "/etc/web.env".to_owned(),
        optional: false,
    }];
    web.rollout.max_surge = 1;
    web.rollout.max_unavailable = 0;
    let mut flaky = base("flaky", 2);
    flaky.process.pre_start = Some(hook("migrate"));
    let mut once = base("once", 2);
    once.restart.policy = RestartPolicy::OnFailure;
    once.start.parallel = 1;
    let mut lone = base("lone", 1);
    lone.ready = ReadySpec::Notify;
    lone.singleton = Some(lock("lone"));
    lone.process.pre_start = Some(hook("prepare"));
    lone.process.pre_stop = Some(hook("say-farewell"));
    let mut timed = base("timed", 1);
    timed.ready = ReadySpec::Notify;
    timed.stop.deregister_delay = Span::secs(1);
    timed.process.pre_stop = Some(hook("say-goodbye"));
    timed.singleton = Some(SingletonSpec {
        lease: Some(lease()),
        ..lock("timed")
    });
    let mut follows = base("follows", 1);
    follows.ready = ReadySpec::Notify;
    follows.rollout.max_surge = 1;
    follows.scale = Some(ScaleSpec {
        down_window: Span::secs(20),
        warmup: Span::secs(2),
        signals: vec![Signal::Cpu, Signal::Queue],
        queue_per_worker: 1_000,
        source: Some(SourceSpec {
            kind: SourceKind::Exec(hook("depth")),
            interval: Span::secs(7),
            timeout: Span::secs(5),
        }),
        ..ScaleSpec::between(1, 6)
    });
    let fleets = [
        ("db", db),
        ("web", web),
        ("follows", follows),
        ("flaky", flaky),
        ("once", once),
        ("lone", lone),
        ("timed", timed),
    ]
    .into_iter()
    .chain(jobs());
    config(
        fleets
            .into_iter()
            .map(|(n, spec)| (name(n), seal(spec)))
            .collect(),
    )
}

fn config(fleets: BTreeMap<FleetName, FleetSpec>) -> Config {
    let node = NodeSpec {
        name: "sim".to_owned(),
        restart_rate: 20_000,
        restart_burst: 50,
        cpu_reserve: 100_000,
        memory_reserve: 100_000,
    };
    let revision = Revision::of(format!("{fleets:?}").as_bytes());
    Config {
        revision,
        path: "sim.toml".to_owned(),
        base: String::new(),
        node,
        http: HttpSpec::default(),
        etcd: None,
        fleets,
    }
}

/// The same, edited by somebody: sizes, commands, limits, fleets that come and go.
pub(crate) fn edited(before: &Config, rng: &mut Rng) -> Config {
    let mut fleets = before.fleets.clone();
    for _ in 0..=rng.below(2) {
        let names: Vec<FleetName> = fleets.keys().cloned().collect();
        let which = rng.pick(&names).clone();
        match rng.below(6) {
            0 if matches!(which.as_str(), "lone" | "timed") || is_job(&which) => continue,
            0 => fleets.entry(which).and_modify(|spec| {
                let size = 1 + rng.below(6) as u32;
                match &mut spec.scale {
                    Some(scale) => scale.max = size,
                    None => spec.workers = size,
                }
            }),
            1 | 2 => fleets.entry(which).and_modify(|spec| {
                spec.process.argv = vec![format!("v{}", rng.below(1_000))];
                spec.rollout.rollback = rng.chance(50);
            }),
            3 => fleets
                .entry(which)
                .and_modify(|spec| spec.stop.timeout = Span::secs(3 + rng.below(10))),
            4 if which.as_str() != "db" && !is_job(&which) => {
                fleets.remove(&which);
                continue;
            }
            _ => fleets.entry(name("extra")),
        };
        if rng.chance(20) {
            fleets
                .entry(name("extra"))
                .or_insert_with(|| base("extra", 2));
        }
    }
    config(
        fleets
            .into_iter()
            .map(|(name, spec)| (name, seal(spec)))
            .collect(),
    )
}
