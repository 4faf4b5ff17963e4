//! Every effect becomes one call.

use std::{collections::BTreeSet, os::fd::OwnedFd, path::PathBuf};

use crate::{
    config::{self, spec::Sink},
    driver::{
        books,
        boot::{self, Accepted, Request},
        cluster,
        inbox::Inbox,
        probe,
        run::{Driver, author, worker_of},
        state,
    },
    engine::{
        Effect, Effects, Event, agent_name, cluster::Pin, event::Purpose, gate::GateNews,
        log_pipes, publish::Listing,
    },
    http::EventRow,
    id::{FleetName, WorkerId},
    logs::{Author, Source},
    publish::Files,
    sys::{clock, pipe, surroundings::ThisMachine},
    wire::{Op, RowKey, SpawnSpec, TaskKind},
};

impl Driver {
    /// Carries out what a step wants. Requests to the keeper that belong together travel together.
    pub(super) fn perform(&mut self, effects: Effects) {
        self.perform_after(Vec::new(), effects);
    }

    /// The same, behind what the keeper must have before.
    pub(super) fn perform_after(&mut self, mut ops: Vec<Request>, effects: Effects) {
        let mut replies = Vec::new();
        for effect in effects.list {
            match effect {
                Effect::Keeper(Op::Exit { code }) => self.leaving = Some(code),
                Effect::Keeper(op) if self.is_called_off(&op) => {}
                Effect::Keeper(op) => {
                    if let Op::Spawn {
                        key, spec, after, ..
                    } = &op
                    {
                        ops.extend(self.make_missing(key, spec));
                        if let RowKey::Slot(worker) = key {
                            let generation = after.next();
                            let pid = None;
                            self.name_author(worker, Author { generation, pid });
                        }
                    }
                    ops.push((op, None));
                }
                Effect::Probe {
                    worker,
                    generation,
                    target,
                    timeout,
                } => {
                    let hand_in = self.hand_in.clone();
                    tokio::spawn(async move {
                        let answer = probe::ask(target, timeout).await;
                        let _ = hand_in.send(Inbox::Probed(worker, generation, answer));
                    });
                }
                Effect::ReadEnv {
                    worker,
                    after,
                    files,
                } => {
                    self.in_background(move || {
                        Inbox::EnvRead(worker, after, probe::read_env_files(&files))
                    });
                }
                Effect::SeekGate {
                    worker,
                    spec,
                    fence,
                } => {
                    ops.extend(self.make_logs_early(&worker));
                    self.gates.seek(worker, spec, fence);
                }
                Effect::YieldGate {
                    worker,
                    spec,
                    given,
                } => self.gates.watch(worker, spec, given),
                Effect::Etcd(order) => self.ways.obey(order),
                // One command has nothing to remember it by.
                Effect::Pin(_) if self.settings.errand.is_some() => {}
                Effect::Pin(pin) => self.pin(pin),
                Effect::ShutGate(worker) => ops.extend(self.gates.shut(&worker)),
                Effect::Arm {
                    worker,
                    fence,
                    until,
                    margin,
                } => self.deadlines.arm(worker, fence, until, margin),
                Effect::Disarm { worker, fence } => self.deadlines.disarm(&worker, fence),
                Effect::KillByHand(key, generation) => {
                    let header = self.known.headers.get(&key);
                    let header = header.filter(|header| header.generation == generation);
                    self.by_hand.kill(&self.welcome, &key, generation, header);
                }
                Effect::ReadConfig(purpose) => self.read_config(purpose),
                Effect::Way(etcd) => self.ways.follow(etcd),
                Effect::Accept { config, previous } => {
                    let accepted = Accepted {
                        config: *config,
                        previous: previous.into_iter().collect(),
                        at: self.tally.accepted,
                    };
                    ops.extend(self.accept(accepted));
                }
                Effect::SaveIntent(intent) => {
                    let dir: PathBuf = self.settings.directories.state.clone();
                    self.in_background(move || Inbox::IntentSaved(state::save(&dir, &intent)));
                }
                Effect::WakeAt(wake) => {
                    if let Err(error) = self.alarm.set(wake) {
                        self.complain(&format!("failed to set a timer for jobs: {error}"));
                    }
                }
                Effect::ReadBook(fleet) => {
                    let dir: PathBuf = self.settings.directories.state.clone();
                    self.in_background(move || {
                        let read = books::read(&dir, &fleet);
                        Inbox::BookRead(fleet, read)
                    });
                }
                Effect::KeepBook { fleet, book, claim } => {
                    let dir: PathBuf = self.settings.directories.state.clone();
                    let run = self.welcome.cookie.clone();
                    self.in_background(move || {
                        let kept = books::keep(&dir, &fleet, &run, &book, claim.as_ref());
                        Inbox::BookKept(fleet, kept)
                    });
                }
                Effect::Sample(order) => self.sample(&order),
                Effect::Watch { fleet, on } => self.watch_sockets(&fleet, on),
                Effect::AskSource {
                    fleet,
                    address,
                    path,
                    timeout,
                } => self.ask_source(fleet, address, path, timeout),
                Effect::Weigh(weights) => self.weigh(&weights),
                Effect::ReadSource(fleet) => ops.extend(self.read_source(fleet)),
                Effect::Publish { fleet, listing, .. } => {
                    ops.extend(self.tend_agent(&fleet, listing.as_ref()));
                }
                Effect::WriteFile {
                    fleet,
                    file,
                    ticket,
                    job,
                } => {
                    self.work_on_files(move |files| Event::Written {
                        fleet,
                        file,
                        ticket,
                        result: files.write(ticket, &job),
                    });
                }
                Effect::RestoreFile {
                    fleet,
                    file,
                    ticket,
                    path,
                    undo,
                } => {
                    self.work_on_files(move |files| Event::Restored {
                        fleet,
                        file,
                        ticket,
                        result: files.restore(ticket, &path, undo),
                    });
                }
                Effect::SettleFile {
                    fleet,
                    file,
                    ticket,
                    path,
                } => {
                    self.work_on_files(move |files| {
                        files.settle(ticket, &path);
                        Event::Settled {
                            fleet,
                            file,
                            ticket,
                        }
                    });
                }
                Effect::Unpublished { fleet, target } => self.tally.unpublished(fleet, target),
                Effect::CloseLogs(worker) => self.logs.close(worker),
                Effect::KeepSockets { fleet, names } => {
                    let prefix = format!("socket/{fleet}/");
                    let gone: Vec<String> = self
                        .held
                        .iter()
                        .filter(|name| name.starts_with(&prefix) && !names.contains(name))
                        .cloned()
                        .collect();
                    for name in gone {
                        self.held.remove(&name);
                        self.sockets.remove(&name);
                        ops.push((Op::Release { name }, None));
                    }
                }
                Effect::ReopenLogs => self.logs.reopen(),
                Effect::Reply { request, reply } => {
                    let client = self.clients.remove(&request);
                    replies.extend(client.map(|client| (client, reply)));
                }
                Effect::Probed {
                    fleet,
                    aim,
                    took,
                    passed,
                } => self.tally.probed(fleet, aim, took, passed),
                Effect::Record(transition) => {
                    self.tally.record(&transition);
                    let row = self.journal.record(&transition);
                    self.print(&row);
                }
            }
        }
        self.link.push(ops);
        if !replies.is_empty() {
            // Rows first: what was promised to a client must not die with us. That it fails is seen by the loop.
            let _ = self.link.flush();
        }
        for (client, reply) in replies {
            // A client that went away does not want its answer.
            let _ = client.send(reply);
        }
    }

    /// A lock that was replaced a moment ago is not run under: whoever took the new file has looked for us already.
    fn is_called_off(&mut self, op: &Op) -> bool {
        let (Op::Spawn { key, .. } | Op::Promote { key, .. }) = op else {
            return false;
        };
        let (RowKey::Slot(worker) | RowKey::Task(worker, TaskKind::PreStart)) = key else {
            return false;
        };
        let Err(why) = self.gates.still_ours(worker) else {
            return false;
        };
        let lost = Event::Gate {
            worker: worker.clone(),
            news: GateNews::Lost(why),
        };
        let refused = match op {
            Op::Spawn { key, after, .. } => Some(Event::Refused {
                key: key.clone(),
                after: *after,
            }),
            _ => None,
        };
        for event in [Some(lost), refused].into_iter().flatten() {
            let _ = self.hand_in.send(Inbox::Gate(event));
        }
        true
    }

    /// A line for people; under systemd the journal puts its own time in front.
    pub(super) fn print(&self, row: &EventRow) {
        // Why a command is ended that nobody wants to end is said in any case.
        match row.kind.as_str() {
            "gate-lost" if self.settings.errand.is_some() => {
                self.complain(&format!("{} {}; it is ended", row.subject, row.text));
            }
            "lease-lapsed" if self.settings.errand.is_some() => {
                let cluster = self.engine.status(self.now()).cluster;
                let why = cluster.and_then(|cluster| cluster.why);
                let why = why.map_or_else(String::new, |why| format!(" ({why})"));
                self.complain(&format!("{} {}{why}", row.subject, row.text));
            }
            _ => {}
        }
        if self.settings.quiet {
            return;
        }
        let time = if self.settings.systemd {
            ""
        } else {
            row.at.get(11..23).unwrap_or(&row.at)
        };
        let gap = if time.is_empty() { "" } else { " " };
        let generation = row
            .generation
            .filter(|n| *n > 0)
            .map_or_else(String::new, |n| format!(" [{n}]"));
        self.console.say(format!(
            "{time}{gap}{}{generation} {}",
            row.subject, row.text
        ));
    }

    /// What a spawn refers to and nobody holds yet: log pipes, sockets of a slot's own.
    fn make_missing(&mut self, key: &RowKey, spec: &SpawnSpec) -> Vec<Request> {
        let (RowKey::Slot(worker) | RowKey::Task(worker, _)) = key else {
            return Vec::new();
        };
        let asks = matches!(key, RowKey::Task(_, TaskKind::ScaleSource));
        let mut ops = if asks {
            self.make_source_pipe(&worker.fleet)
        } else {
            self.make_logs(worker, [&spec.stdout, &None])
        };
        ops.extend(self.make_logs(worker, [&None, &spec.stderr]));
        for name in &spec.pass {
            if name.starts_with("socket/") && !self.held.contains(name) {
                match self.bind_by_name(worker, name) {
                    Ok(fd) => ops.push(self.hold(name.clone(), fd)),
                    Err(error) => self.complain(&format!("{worker}: {error}")),
                }
            }
        }
        ops
    }

    fn make_logs(&mut self, worker: &WorkerId, names: [&Option<String>; 2]) -> Vec<Request> {
        let mut ops = Vec::new();
        for name in names.into_iter().flatten() {
            if !self.held.contains(name) {
                // What is run for a fleet writes into the log of one of its workers.
                let whose = worker_of(name, "log/").unwrap_or_else(|| worker.clone());
                match self.make_log(&whose, name) {
                    Ok(fd) => ops.push(self.hold(name.clone(), fd)),
                    Err(error) => {
                        self.complain(&format!("{worker}: cannot make its log pipe: {error}"))
                    }
                }
            }
        }
        ops
    }

    /// Of a worker that waits for its lock: when that is free there is less to do.
    fn make_logs_early(&mut self, worker: &WorkerId) -> Vec<Request> {
        let spec = self.engine.config().fleets.get(&worker.fleet);
        let names = spec.map(|spec| log_pipes(worker, spec));
        let (stdout, stderr) = names.unwrap_or_default();
        self.make_logs(worker, [&stdout, &stderr])
    }

    /// The listener that is configured now answers with the newest list; another one is given up.
    fn tend_agent(&mut self, fleet: &FleetName, listing: Option<&Listing>) -> Vec<Request> {
        let spec = self.engine.config().fleets.get(fleet);
        let publish = spec.and_then(|spec| spec.publish.as_ref());
        let wanted = publish
            .and_then(|publish| publish.haproxy_agent)
            .filter(|_| listing.is_some())
            .map(|address| agent_name(fleet, address));
        match (&wanted, listing) {
            (Some(_), Some(listing)) => self.agents.say(fleet, listing),
            (None, _) | (_, None) => self.agents.close(fleet),
        }
        let prefix = format!("agent/{fleet}/");
        let gone: Vec<String> = self
            .held
            .iter()
            .filter(|name| name.starts_with(&prefix) && Some(*name) != wanted.as_ref())
            .cloned()
            .collect();
        let release = |name: String| {
            self.held.remove(&name);
            (Op::Release { name }, None)
        };
        gone.into_iter().map(release).collect()
    }

    pub(super) fn hold(&mut self, name: String, fd: OwnedFd) -> Request {
        if name.starts_with("socket/")
            && let Ok(fd) = fd.try_clone()
        {
            self.sockets.insert(name.clone(), fd);
        }
        self.held.insert(name.clone());
        (Op::Hold { name }, Some(fd))
    }

    fn make_log(&self, worker: &WorkerId, name: &str) -> std::io::Result<OwnedFd> {
        let spec = self.engine.config().fleets.get(&worker.fleet);
        let buffer = spec.map_or(65_536, |spec| spec.log.buffer);
        let reader = pipe::reader(buffer as usize)?;
        self.capture(worker, name, reader.try_clone()?);
        Ok(reader)
    }

    /// Captures a held pipe.
    pub(super) fn capture(&self, worker: &WorkerId, name: &str, pipe: OwnedFd) {
        let spec = self
            .engine
            .config()
            .fleets
            .get(&worker.fleet)
            .map(|spec| spec.log.clone());
        let spec = spec.unwrap_or_else(|| {
            config::spec::FleetSpec::unknown(&crate::wire::StopRecord::default()).log
        });
        let source = Source {
            worker: worker.clone(),
            stderr: name.ends_with("/stderr"),
        };
        self.logs.add(source, pipe, spec, None);
    }

    /// What a worker writes goes to the journal with its generation and pid; files say neither.
    pub(super) fn name_author(&self, worker: &WorkerId, author: Author) {
        let fleet = self.engine.config().fleets.get(&worker.fleet);
        if fleet.is_some_and(|spec| spec.log.sink == Sink::Journal) {
            self.logs.began(worker, author);
        }
    }

    fn bind_by_name(&self, worker: &WorkerId, full: &str) -> Result<OwnedFd, String> {
        let Some(spec) = self.engine.config().fleets.get(&worker.fleet) else {
            return Err("its fleet is not configured".to_owned());
        };
        let name = full.split('/').nth(2).unwrap_or_default();
        boot::bind(&worker.fleet, spec, name, false)
    }

    fn complain(&self, text: &str) {
        self.console.say(format!("leasehold: {text}"));
    }

    fn read_config(&mut self, purpose: Purpose) {
        if matches!(purpose, Purpose::Reload(_)) {
            let micros = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let micros = micros.tv_sec * 1_000_000 + micros.tv_nsec / 1_000;
            self.tell_systemd(format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
        }
        let path = self.settings.config.clone();
        let machine = ThisMachine::of_daemon(&self.welcome);
        self.in_background(move || {
            let result = config::load(&path, &machine).map_err(|faults| faults.render(false));
            let result = result.and_then(|config| {
                cluster::check(config.etcd.as_ref())?;
                Ok(Box::new(config))
            });
            Inbox::ConfigRead(purpose, result)
        });
    }

    /// Has the keeper hold the configuration, and lets the shells follow it.
    fn accept(&mut self, accepted: Accepted) -> Vec<Request> {
        // More slots than are configured may write: an operator may have scaled the fleet, a rollout may surge.
        let workers: BTreeSet<WorkerId> = self
            .held
            .iter()
            .filter_map(|name| worker_of(name, "log/"))
            .collect();
        for worker in workers {
            if let Some(spec) = accepted.config.fleets.get(&worker.fleet) {
                self.logs.respecify(worker, spec.log.clone());
            }
        }
        for (key, header) in &self.known.headers {
            if let RowKey::Slot(worker) = key {
                self.name_author(worker, author(header));
            }
        }
        let there = |name: &FleetName| {
            accepted.config.fleets.contains_key(name) || accepted.previous.contains_key(name)
        };
        self.tally.retain(there);
        self.logs.retain_flows(there);
        match boot::hold_accepted(&accepted) {
            Ok(op) => vec![op],
            Err(error) => {
                self.complain(&format!("failed to store the accepted configuration: {error}; a restarted supervisor would use the one before"));
                Vec::new()
            }
        }
    }

    /// Which cluster we belong to is written down. Where it cannot be, the next start believes whoever answers.
    fn pin(&self, pin: Pin) {
        let state = self.settings.directories.state.clone();
        let (console, pins) = (self.console.clone(), self.pins.clone());
        pins.want(pin);
        tokio::task::spawn_blocking(move || {
            if let Err(why) = pins.write(&state) {
                console.say(format!("leasehold: {why}"));
            }
        });
    }

    fn in_background(&self, work: impl FnOnce() -> Inbox + Send + 'static) {
        let hand_in = self.hand_in.clone();
        tokio::task::spawn_blocking(move || {
            let _ = hand_in.send(work());
        });
    }

    /// What came of it is handed in.
    fn work_on_files(&self, work: impl FnOnce(&Files) -> Event + Send + 'static) {
        let hand_in = self.hand_in.clone();
        self.files.work(move |files| {
            let _ = hand_in.send(Inbox::Published(work(files)));
        });
    }

    /// Relayed by the keeper, which is the process that systemd knows.
    pub(super) fn tell_systemd(&mut self, text: String) {
        if self.settings.systemd {
            self.link.push(vec![(Op::Notify { text }, None)]);
        }
    }

    /// The engine's clock.
    pub(super) fn now(&self) -> crate::time::Moment {
        clock::now()
    }
}
