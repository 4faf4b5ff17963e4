//! `/metrics` as it is written: two golden pages of one scene, a strict reader for both, and the dashboards and alerts that use it.
//!
//! `UPDATE_GOLDEN=1` writes the golden pages anew.

#[path = "metrics/lint.rs"]
mod lint;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixListener, unix::net::UnixStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use leasehold::{
    config::{
        Config,
        spec::{CronSpec, ScaleSpec},
    },
    engine::{
        Command, Denial, Reply, Status, Transition,
        book::{Miss, Outcome, RunRecord, Skip},
        cluster::{
            figures::{EndpointFigures, Figures},
            rpc::LeaseId,
        },
        effect::{Cause, Ending, ProbeAim, Subject, What},
        gate::Pass,
        scale::{Block, Reason},
        status::{
            ClusterStatus, CronStatus, FleetStatus, GateStatus, HostStatus, LockStatus,
            ScaleStatus, UnitsStatus, WorkerStatus,
        },
        tally::Tally,
    },
    http::{
        Answer, Directories, Engine, EngineError, EventRow, Events, Measures, Surface,
        metrics::{Format, Scene, render},
    },
    id::{FleetName, Generation, Revision, SlotIndex, WorkerId},
    sys::{clock, usage::Usage},
    time::{Moment, Span, Stamp},
    wire::{Containment, ExitStatus, Stopping},
};
use lint::Exposition;

const NOW: Moment = Moment(100_000_000_000);

fn name(text: &str) -> FleetName {
    text.parse().unwrap()
}

fn worker(fleet: &str, slot: u32, state: &'static str, pid: Option<i32>) -> WorkerStatus {
    WorkerStatus {
        id: WorkerId::new(name(fleet), slot),
        generation: Generation(1),
        pid,
        state,
        ready: state == "running",
        since: pid.map(|_| Moment(1)),
        restarts: 0,
        containment: pid.map(|_| Containment::Group),
        last_exit: None,
        next_start: None,
        ending: None,
        grace: None,
        revision: Revision(1),
        round: 0,
        said: "\"never\" shown\n".to_owned(),
    }
}

fn fleet(text: &str, workers: Vec<WorkerStatus>) -> FleetStatus {
    FleetStatus {
        name: name(text),
        state: "ok",
        desired: workers.len() as u32,
        ready: 0,
        done: 0,
        configured: workers.len() as u32,
        held: None,
        rollout: None,
        round: 0,
        revision: Revision(1),
        lock: None,
        cron: None,
        scale: None,
        publish: None,
        workers,
    }
}

/// A fleet that would grow and cannot.
fn scale() -> ScaleStatus {
    ScaleStatus {
        spec: ScaleSpec::between(1, 4),
        members: 4,
        cluster: Some(UnitsStatus {
            max: 12,
            held: 4,
            taken: Some(11),
        }),
        floor: None,
        paused: None,
        utilization: Some(912_345),
        recommended: Some(7),
        penalty: 2,
        waiting: Some(3),
        source: None,
        blocked: Some(Block::Max),
        blocks: BTreeMap::from([("max", 12)]),
        pressure: Some(1_250),
        host: Some(HostStatus {
            idle: 250,
            reserve: 400,
            memory: 3 << 30,
        }),
        decisions: Vec::new(),
    }
}

/// The lock of two slots, one of which is ours.
fn lock() -> LockStatus {
    let gate = |state, since, pass| GateStatus {
        state,
        since: Some(Moment(since)),
        pass,
        waits: None,
        holder: None,
        until: None,
        release: None,
        cause: None,
    };
    let pass = Pass {
        path: "/run/lock/x".to_owned(),
        fence: 1_795_000_000_007,
    };
    LockStatus {
        scope: "cluster",
        name: name("ledger"),
        flock: None,
        slots: 2,
        gates: vec![
            (SlotIndex(0), gate("open", 1, Some(pass))),
            (SlotIndex(1), gate("waiting", 97_500_000_000, None)),
        ],
    }
}

fn job() -> CronStatus {
    let ran = |at, outcome| RunRecord {
        scheduled: Stamp(at),
        manual: false,
        attempts: 1,
        started: Some(Stamp(at)),
        ended: Stamp(at + 1_500),
        outcome,
        count: 1,
    };
    CronStatus {
        spec: CronSpec::of("@daily"),
        next: None,
        waiting: 0,
        run: None,
        history: vec![
            ran(1_795_000_000_000, Outcome::Succeeded),
            ran(1_795_000_100_000, Outcome::TimedOut),
        ],
    }
}

/// One endpoint answers, and one does not.
fn cluster() -> ClusterStatus {
    let mut figures = Figures::default();
    let renewals = figures.ops.entry("keepalive").or_default();
    for ms in [2, 3, 700] {
        renewals.took.add(Span::millis(ms));
    }
    renewals.failures = 2;
    figures.endpoints = vec![
        EndpointFigures {
            heard: Some(Moment(0)),
            ..EndpointFigures::default()
        },
        EndpointFigures {
            fails: Some((Moment(0), "connection refused".to_owned())),
            ..EndpointFigures::default()
        },
    ];
    ClusterStatus {
        name: "prod".to_owned(),
        state: "joined",
        why: None,
        lease: Some(LeaseId(7)),
        ttl: Some(Span::secs(10)),
        expires_in: Some(Span::millis(8_500)),
        margin: Some(Span::millis(7_900)),
        id: Some(7),
        epoch: 0,
        nodes: Some((2, 1)),
        figures,
        endpoints: vec![
            "https://10.0.0.1:2379".to_owned(),
            "https://10.0.0.2:2379".to_owned(),
        ],
        concerns: Vec::new(),
    }
}

fn status() -> Status {
    let mut ledger = fleet("ledger", vec![worker("ledger", 0, "running", Some(30))]);
    ledger.lock = Some(lock());
    let mut report = fleet("report", Vec::new());
    (report.configured, report.cron) = (1, Some(job()));
    let unwell = WorkerStatus {
        ready: false,
        ..worker("web", 4, "running", Some(14))
    };
    let web = vec![
        worker("web", 0, "running", Some(10)),
        worker("web", 1, "starting", Some(11)),
        worker("web", 2, "starting", None),
        worker("web", 3, "draining", Some(13)),
        unwell,
        worker("web", 5, "backing-off", None),
        worker("web", 6, "failed", None),
        worker("web", 7, "held", None),
        worker("web", 8, "killing", Some(18)),
    ];
    Status {
        node: "vps-1".to_owned(),
        stopping: Stopping::No,
        drained: None,
        cluster: Some(cluster()),
        revision: Revision(7),
        rejected: Some("error".to_owned()),
        fleets: vec![
            ledger,
            report,
            FleetStatus {
                scale: Some(scale()),
                ..fleet("web", web)
            },
        ],
    }
}

fn tally() -> Tally {
    let mut tally = Tally::new(Some(Stamp(1_795_000_000_250)));
    let mut tell = |at_ms: u64, subject: Subject, what| {
        tally.record(&Transition {
            at: Moment(at_ms * 1_000_000),
            subject,
            what,
        });
    };
    let grew = What::Grew {
        from: 1,
        to: 3,
        reason: Reason::Cpu,
    };
    tell(900, Subject::Fleet(name("web")), grew);
    let of = |fleet: &str| Subject::Worker(WorkerId::new(name(fleet), 0), Generation(1));
    tell(0, of("web"), What::Started { pid: 10 });
    let after = Span::millis(185);
    tell(185, of("web"), What::Ready { after });
    let stopping = What::Stopping {
        ending: Ending::Rollout,
        signal: libc::SIGTERM,
        grace: Span::secs(2),
    };
    tell(1_000, of("web"), stopping);
    let (reason, drained) = ("its grace is over", true);
    tell(3_000, of("web"), What::Killed { reason, drained });
    let ended = |status, ending, uptime| What::Ended {
        status,
        ending,
        uptime: Span::millis(uptime),
    };
    let killed = ExitStatus::Signal {
        number: libc::SIGKILL,
        core: false,
    };
    tell(
        3_010,
        of("web"),
        ended(killed, Some(Ending::Rollout), 3_010),
    );
    tell(4_000, of("web"), What::Started { pid: 10 });
    tell(5_000, of("web"), ended(ExitStatus::Code(3), None, 1_000));
    // It is not configured any more, and was until lately.
    tell(
        6_000,
        of("api"),
        ended(ExitStatus::Code(0), Some(Ending::Removed), 1),
    );
    let waited = Span::ZERO;
    let opened = What::GateOpened {
        fence: 1_795_000_000_007,
        waited,
        from: None,
        gap: Some(Span::millis(1_250)),
    };
    tell(7_000, of("ledger"), opened);
    let shut = What::GateShut {
        fence: 1,
        held: waited,
        cause: Cause::ScaledIn,
    };
    tell(7_000, of("ledger"), shut);
    let report = || Subject::Fleet(name("report"));
    tell(8_000, of("report"), ended(ExitStatus::Code(0), None, 1_500));
    let scheduled = Stamp(1_795_000_000_000);
    let run = What::RunEnded {
        scheduled,
        attempts: 1,
        outcome: Outcome::Succeeded,
        ended: Stamp(1_795_000_001_500),
    };
    tell(8_000, report(), run);
    let skipped = What::RunSkipped {
        scheduled,
        why: Skip::Overlap,
    };
    tell(8_000, report(), skipped);
    let missed = What::RunsMissed {
        first: scheduled,
        last: scheduled,
        count: 3,
        why: Miss::Late,
    };
    tell(8_000, report(), missed);
    for (aim, ms, passed) in [
        (ProbeAim::Ready, 2, false),
        (ProbeAim::Ready, 3, true),
        (ProbeAim::Health, 2_500, false),
    ] {
        tally.probed(name("web"), aim, Span::millis(ms), passed);
    }
    tally.wrote(name("web"), 123_456, 78);
    tally.lap(Span::micros(40));
    tally.lap(Span::millis(2));
    tally
}

fn page(format: Format) -> String {
    let measures = Measures {
        status: status(),
        tally: tally(),
    };
    let used = Usage {
        cpu: Some(1_250_000_000),
        memory: Some(8 << 20),
    };
    let usage = BTreeMap::from([
        (WorkerId::new(name("web"), 0), used),
        // It ended while it was looked at.
        (WorkerId::new(name("web"), 1), Usage::default()),
    ]);
    let scene = Scene {
        measures: &measures,
        usage: &usage,
        now: NOW,
        started: Stamp(1_795_000_000_001),
    };
    render(&scene, format)
}

/// Every name that a sample of it may have.
fn names(page: &Exposition) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for lint::Family { name, kind, .. } in &page.families {
        let parts: &[&str] = match kind.as_str() {
            "counter" if !name.ends_with("_total") => &["_total"],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        names.extend(parts.iter().map(|part| format!("{name}{part}")));
    }
    names
}

fn ours(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn both_formats_are_as_they_were() {
    for (format, file) in [(Format::OpenMetrics, "open"), (Format::Text, "text")] {
        let page = page(format);
        // A build may say which commit it is of, and every version has a number of its own.
        let page: String = page
            .lines()
            .map(|line| match line.strip_prefix("leasehold_build_info{") {
                Some(_) => "leasehold_build_info{…} 1\n".to_owned(),
                None => format!("{line}\n"),
            })
            .collect();
        let path = ours(&format!("tests/metrics/{file}.golden"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &page).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        for (n, (is, was)) in page.lines().zip(golden.lines()).enumerate() {
            assert_eq!(is, was, "{file}.golden, line {}", n + 1);
        }
        assert_eq!(page.lines().count(), golden.lines().count(), "{file}");
    }
}

#[test]
fn both_formats_are_well_formed_and_say_the_same() {
    let open = Exposition::read(&page(Format::OpenMetrics), true);
    let text = Exposition::read(&page(Format::Text), false);
    assert_eq!(names(&open), names(&text));
    for (a, b) in open.families.iter().zip(&text.families) {
        let values = |samples: &[(String, lint::Labels, f64)]| -> Vec<f64> {
            samples.iter().map(|(_, _, value)| *value).collect()
        };
        assert_eq!(values(&a.samples), values(&b.samples), "{}", a.name);
    }
    let states = open.families.iter().find(|f| f.name == "leasehold_workers");
    let slots = states
        .unwrap()
        .samples
        .iter()
        .map(|(_, _, n)| n)
        .sum::<f64>();
    assert_eq!(
        slots, 10.0,
        "the sum over all states is the number of slots"
    );
    assert_eq!(
        open.value(
            "leasehold_lock_held",
            &[("lock", "ledger"), ("scope", "cluster")]
        ),
        Some(1.0)
    );
}

#[test]
fn the_client_chooses() {
    let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for (accept, wanted) in [
        (None, Format::Text),
        (Some("*/*"), Format::Text),
        (Some(""), Format::Text),
        (Some(prometheus), Format::OpenMetrics),
        (Some("application/openmetrics-text"), Format::OpenMetrics),
        (
            Some("application/openmetrics-text; version=\"1.0.0\""),
            Format::OpenMetrics,
        ),
        (
            Some("application/openmetrics-text;version=0.0.1"),
            Format::Text,
        ),
        (Some("application/openmetrics-text;q=0"), Format::Text),
        (Some("application/openmetrics-text;q=x"), Format::Text),
        (
            Some("application/openmetrics-text;q=0.2,text/plain;q=0.9"),
            Format::Text,
        ),
        (Some("text/html, text/plain;version=0.0.4"), Format::Text),
        (Some(";;,=,;q=;"), Format::Text),
    ] {
        assert_eq!(Format::of(accept), wanted, "{accept:?}");
    }
}

/// Alerts and panels for numbers that nobody shows are worse than none.
#[test]
fn what_is_watched_is_shown() {
    let names = names(&Exposition::read(&page(Format::OpenMetrics), true));
    let mut watched = 0;
    for file in ["leasehold.rules.yml", "dashboard.json", "prometheus.yml"] {
        let text = fs::read_to_string(ours(&format!("examples/monitoring/{file}"))).unwrap();
        for (at, _) in text.match_indices("leasehold_") {
            let name: String = text[at..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            assert!(names.contains(&name), "{file}: nobody shows {name}");
            watched += 1;
        }
        if file.ends_with(".json") {
            let _: serde_json::Value = serde_json::from_str(&text).unwrap();
        }
    }
    assert!(watched > 50, "the scan found only {watched}: it is blind");
}

/// An engine that gives its measures slowly, or not at all.
struct Slow {
    asked: AtomicUsize,
    after: Option<Duration>,
}

impl Engine for Slow {
    fn command(&self, _: Command) -> Answer<Result<Reply, Denial>> {
        Box::pin(async { Err(EngineError::Gone) })
    }

    fn status(&self) -> Answer<Status> {
        Box::pin(async { Ok(status()) })
    }

    fn measures(&self) -> Answer<Box<Measures>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let after = self.after;
        Box::pin(async move {
            match after {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
            Ok(Box::new(Measures {
                status: status(),
                tally: tally(),
            }))
        })
    }

    fn config(&self) -> Answer<Box<Config>> {
        Box::pin(async { Err(EngineError::Gone) })
    }
}

struct Quiet(tokio::sync::watch::Sender<u64>);

impl Events for Quiet {
    fn after(&self, _: u64, _: usize) -> Vec<EventRow> {
        Vec::new()
    }

    fn watch(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.subscribe()
    }

    fn incarnation(&self) -> u64 {
        1
    }
}

/// The doors of such an engine.
struct House {
    dir: tempfile::TempDir,
    engine: Arc<Slow>,
}

impl House {
    fn open(after: Option<Duration>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(Slow {
            asked: AtomicUsize::new(0),
            after,
        });
        let there = || dir.path().to_owned();
        let surface = Surface {
            engine: Arc::clone(&engine) as Arc<dyn Engine>,
            events: Arc::new(Quiet(tokio::sync::watch::Sender::new(0))),
            directories: Directories {
                run: there(),
                state: there(),
                log: there(),
            },
            keeper: 1,
            keeper_started: Moment(1),
            containment: Containment::Group,
            cgroup: None,
            http: Vec::new(),
        };
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        leasehold::http::serve(surface, OwnedFd::from(listener), Vec::new()).unwrap();
        Self { dir, engine }
    }

    /// The answers to so many at once, and how long they took.
    fn crowd(&self, most: usize) -> (Vec<String>, Span) {
        let began = clock::now();
        let ask = |_| {
            let stream = UnixStream::connect(self.dir.path().join("socket"));
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let text = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
                stream.write_all(text.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            })
        };
        let crowd: Vec<_> = (0..most).map(ask).collect();
        let answers = crowd.into_iter().map(|one| one.join().unwrap()).collect();
        (answers, clock::now().since(began))
    }
}

#[test]
fn who_scrapes_at_once_shares_a_picture() {
    let house = House::open(Some(Duration::from_millis(300)));
    let (answers, _) = house.crowd(60);
    assert!(answers.iter().all(|one| one.starts_with("HTTP/1.1 200")));
    let asked = house.engine.asked.load(Ordering::Relaxed);
    assert!(asked < 20, "60 clients had {asked} pictures made");
}

/// Numbers that stand still would look like health. Each client waits for the loop and not for those before it.
#[test]
fn a_loop_that_is_stuck_has_no_metrics() {
    let house = House::open(None);
    let (answers, took) = house.crowd(4);
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("has not answered"), "{answer}");
    }
    assert!(took < Span::secs(9), "they waited for each other: {took}");
}
