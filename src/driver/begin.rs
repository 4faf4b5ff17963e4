//! From a keeper's first words to a loop that runs: what is told, read, bound and taken over before the engine's first step.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
};

use tokio::{io::unix::AsyncFd, sync::mpsc};

use crate::{
    driver::{
        Settings,
        alarm::Alarm,
        boot::{self, Request},
        cluster::{self, Ways},
        console::Console,
        deadlines::Deadlines,
        door::Door,
        gates::Gates,
        inbox::Inbox,
        inputs::Known,
        journal::Journal,
        last_rites::ByHand,
        link::{self, Link},
        run::{Driver, Echo, author, worker_of},
        sampler::Sampler,
        state,
    },
    engine::{Effects, Facts, Supervisor, supervisor::Origin, tally::Tally},
    exit::ExitCode,
    http::{self, Surface},
    logs::{self, Capture},
    publish::{Agents, Files},
    sys::{host, journal},
    wire::{Op, RowKey},
};

/// Where journald listens, for tests that have a socket of their own.
const JOURNAL_VARIABLE: &str = "LEASEHOLD_JOURNAL_SOCKET";

/// What was needed before there is an engine.
pub(super) struct Begin {
    settings: Settings,
    told: boot::Told,
    deadlines: Deadlines,
    accepted: boot::Accepted,
    first: bool,
    listeners: boot::Listeners,
    ops: Vec<Request>,
    intent: crate::engine::Intent,
}

pub(super) async fn begin(
    settings: Settings,
    link: &mut Link,
    deadlines: AsyncFd<OwnedFd>,
) -> Result<Begin, (ExitCode, String)> {
    let failed = |why: String| (ExitCode::Failed, format!("leasehold: {why}"));
    let mut told = boot::be_told(link)
        .await
        .map_err(|e| failed(e.to_string()))?;
    let deadlines = Deadlines::begin(deadlines)
        .await
        .map_err(|e| failed(e.to_string()))?;
    let (accepted, first) = boot::configuration(&settings, &told.welcome, &mut told.held)
        .map_err(|why| (ExitCode::Config, why))?;
    let intent = match settings.errand {
        Some(_) => Ok(crate::engine::Intent::default()),
        None => state::load(&settings.directories.state),
    };
    let intent = match intent {
        Ok(intent) => intent,
        // At the start a person can mend it; later, running workers matter more.
        Err(error) if first => return Err(failed(error.to_string())),
        Err(error) => {
            eprintln!("leasehold: {error}; holds and sizes are not known until it is mended");
            crate::engine::Intent::default()
        }
    };
    let (listeners, mut ops) =
        boot::listeners(&settings, &accepted.config, &mut told.held).map_err(failed)?;
    if first {
        let held = told.held.keys().cloned().collect();
        let bound = boot::bind_missing(&accepted.config, &held, true).map_err(failed)?;
        for (name, fd) in bound {
            let copy = fd.try_clone().map_err(|e| failed(e.to_string()))?;
            told.held.insert(name.clone(), copy);
            ops.push((Op::Hold { name }, Some(fd)));
        }
        ops.push(boot::hold_accepted(&accepted).map_err(|e| failed(e.to_string()))?);
    }
    Ok(Begin {
        settings,
        told,
        deadlines,
        accepted,
        first,
        listeners,
        ops,
        intent,
    })
}

impl Begin {
    /// No supervisor of this daemon has begun before.
    pub(super) fn is_first(&self) -> bool {
        self.first
    }

    /// The link is taken when nothing can fail any more: whoever fails says by it that he ends.
    pub(super) fn into_driver(self, to_keeper: &mut Option<Link>) -> Result<Driver, String> {
        let Self {
            settings,
            told,
            mut deadlines,
            accepted,
            first,
            listeners,
            ops,
            intent,
        } = self;
        let welcome = told.welcome;
        let (hand_in, inbox) = mpsc::unbounded_channel();
        let console =
            Console::start().map_err(|e| format!("failed to start the console thread: {e}"))?;
        let journal = Arc::new(Journal::new(welcome.incarnation, welcome.keeper));
        let echo = (settings.echo || std::io::stdout().is_terminal()) && !settings.quiet;
        let capture = match settings.errand {
            Some(_) => Capture::none(),
            None => start_capture(&settings, echo.then(|| console.clone()), hand_in.clone())?,
        };
        let facts = Facts {
            node: accepted.config.node.name.clone(),
            notify_socket: listeners.notify_path.display().to_string(),
            // One command under a lock has no state, and one that cannot be kept is this run's alone.
            identity: match settings.errand {
                Some(_) => welcome.cookie.clone(),
                None => cluster::identity(&settings.directories.state)
                    .unwrap_or_else(|_| welcome.cookie.clone()),
            },
            run: welcome.cookie.clone(),
            pin: match settings.errand {
                Some(_) => None,
                None => cluster::pinned(&settings.directories.state),
            },
        };
        let surface = || Surface {
            engine: Arc::new(Door {
                hand_in: hand_in.clone(),
            }),
            events: Arc::clone(&journal) as Arc<dyn http::Events>,
            directories: settings.directories.clone(),
            keeper: welcome.keeper,
            keeper_started: welcome.started,
            containment: welcome.containment,
            cgroup: welcome.cgroup.as_ref().map(PathBuf::from),
            http: listeners.http.iter().map(|(address, _)| *address).collect(),
        };
        if let Some(control) = listeners.control {
            let surface = surface();
            let tcp = listeners.http.into_iter().map(|(_, fd)| fd).collect();
            http::serve(surface, control, tcp)
                .map_err(|e| format!("failed to start the HTTP thread: {e}"))?;
        }
        let mut known = Known::default();
        for (key, header, _) in &told.rows {
            known.learn(key, header);
        }
        let mut gates = Gates::new(&welcome, accepted.config.node.name.clone(), hand_in.clone())
            .map_err(|e| format!("failed to watch locks: {e}"))?;
        let (locks, told_held) = told
            .held
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(name, _)| name.starts_with("lock/"));
        let mut held: BTreeSet<String> = locks.keys().cloned().collect();
        let mut open = BTreeMap::new();
        for (name, fd) in locks {
            let Some(worker) = worker_of(&name, "lock/") else {
                continue;
            };
            let singleton = accepted
                .config
                .fleets
                .get(&worker.fleet)
                .and_then(|fleet| fleet.singleton.as_ref());
            let lease = singleton.and_then(|singleton| singleton.lease.as_ref());
            if let Some(mut kept) = gates.adopt(&worker, fd, lease) {
                kept.until = deadlines.adopt(&worker, kept.pass.fence);
                open.insert(worker, kept);
            }
        }
        let tally = Tally::new(accepted.at);
        let ways = Ways::new(accepted.config.etcd.clone(), hand_in.clone());
        if let Some(why) = ways.fault().filter(|_| first) {
            return Err(why.to_owned());
        }
        let alarm = Alarm::new().map_err(|e| format!("failed to make a timer: {e}"))?;
        let origin = Origin {
            config: accepted.config,
            previous: accepted.previous,
            intent,
            facts,
            asked: welcome.asked,
            rows: told.rows,
            gates: open,
            shown: alarm.told(),
            recover: welcome.recover,
            seed: host::seed(),
        };
        let mut agents = Agents::default();
        let log_specs = origin.config.fleets.clone();
        // Captured before any row is read: whatever is wrong with those, no worker waits in its write().
        let mut sockets = BTreeMap::new();
        for (name, fd) in told_held {
            if name.starts_with("socket/")
                && let Ok(fd) = fd.try_clone()
            {
                sockets.insert(name.clone(), fd);
            }
            if let Some(fleet) = boot::agent_of(&name) {
                agents
                    .listen(&fleet, fd)
                    .map_err(|e| format!("failed to answer HAProxy for {fleet}: {e}"))?;
            } else if let Some(worker) = worker_of(&name, "log/") {
                let spec = log_specs.get(&worker.fleet).map(|spec| spec.log.clone());
                let spec = spec.unwrap_or_else(|| {
                    crate::config::spec::FleetSpec::unknown(&crate::wire::StopRecord::default()).log
                });
                let header = known.headers.get(&RowKey::Slot(worker.clone()));
                let author = header.map(author);
                capture.add(
                    logs::Source {
                        worker,
                        stderr: name.ends_with("/stderr"),
                    },
                    fd,
                    spec,
                    author,
                );
            }
            held.insert(name);
        }
        let mut effects = Effects::default();
        let engine = Supervisor::new(origin, crate::sys::clock::both(), &mut effects);
        let notify = link::watched(listeners.notify)
            .map_err(|e| format!("failed to watch the notify socket: {e}"))?;
        let bell = gates.bell().and_then(link::watched);
        let bell = bell.map_err(|e| format!("failed to watch locks: {e}"))?;
        let mut link = to_keeper.take().ok_or("there is no link to the keeper")?;
        link.push(ops);
        let mut driver = Driver {
            interactive: std::io::stderr().is_terminal() && !settings.quiet,
            settings,
            engine,
            link,
            held,
            sockets,
            sampler: Sampler::default(),
            watchers: BTreeMap::new(),
            source_pipes: BTreeMap::new(),
            logs: capture,
            journal,
            tally,
            console,
            hand_in,
            clients: BTreeMap::new(),
            leaving: None,
            gates,
            ways,
            deadlines,
            by_hand: ByHand::default(),
            pins: Arc::default(),
            alarm,
            files: Files::default(),
            agents,
            bell,
            known,
            inbox,
            notify,
            echo: Echo::None,
            echoes: 0,
            welcome,
            requests: 0,
            progress_at: None,
            said: String::new(),
            said_waiting: None,
        };
        if first {
            driver.greet();
        }
        driver.perform(effects);
        for event in driver.deadlines.came() {
            driver.step(event);
        }
        driver.say_ready();
        driver.note_leaders();
        driver.take_news(told.rest);
        Ok(driver)
    }
}

fn start_capture(
    settings: &Settings,
    console: Option<Console>,
    hand_in: mpsc::UnboundedSender<Inbox>,
) -> Result<Capture, String> {
    let trouble = hand_in.clone();
    let settings = logs::Settings {
        log_dir: settings.directories.log.clone(),
        echo: console.map(|console| {
            Box::new(move |line| console.echo(line)) as Box<dyn FnMut(logs::Line) + Send>
        }),
        closed: Box::new(move |source| {
            let _ = hand_in.send(Inbox::LogClosed(source));
        }),
        trouble: Box::new(move |what| {
            let _ = trouble.send(Inbox::LogTrouble(what));
        }),
        journal: std::env::var_os(JOURNAL_VARIABLE)
            .map_or_else(|| journal::SOCKET.into(), PathBuf::from),
    };
    Capture::start(settings).map_err(|e| format!("failed to start the log thread: {e}"))
}
