//! The loop: wait, step, perform.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::Arc,
};

use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    config::units::count,
    driver::{
        Settings,
        alarm::Alarm,
        begin::begin,
        boot::{self, Request},
        cluster::{Pins, Ways},
        console::Console,
        deadlines::Deadlines,
        gates::Gates,
        inbox::Inbox,
        inputs::{self, Known, Sender},
        journal::Journal,
        last_rites::{self, ByHand},
        link::{self, Link},
        sampler::Sampler,
    },
    engine::{
        Effects, Event, Supervisor,
        cluster::rpc,
        command::{Denial, Reply},
        effect::Rough,
        event::Purpose,
        tally::Tally,
    },
    exit::ExitCode,
    http::Measures,
    id::{FleetName, RequestId, WorkerId},
    locks::Proc,
    logs::{self, Capture},
    publish::{Agents, Files},
    sys::notify,
    time::{Moment, Span},
    wire::{Containment, DeadlineNews, Header, News, Op, Process, RowKey, Stopping, Welcome},
};

/// The request that a supervisor without a keeper has left.
const LAST_CALL: rpc::CallId = rpc::CallId(u64::MAX);
const LAST_CALL_WITHIN: Span = Span::secs(1);
/// While it drains, the terminal and systemd hear how far it is this often.
const PROGRESS_EVERY: Span = Span::secs(1);

pub(super) struct Driver {
    pub(super) settings: Settings,
    pub(super) engine: Supervisor,
    pub(super) link: Link,
    pub(super) held: BTreeSet<String>,
    /// Of those the listening sockets: who waits at them is looked at.
    pub(super) sockets: BTreeMap<String, OwnedFd>,
    pub(super) sampler: Sampler,
    pub(super) watchers: BTreeMap<FleetName, Vec<JoinHandle<()>>>,
    /// What programs say that were asked for a number.
    pub(super) source_pipes: BTreeMap<FleetName, OwnedFd>,
    pub(super) logs: Capture,
    pub(super) journal: Arc<Journal>,
    pub(super) tally: Tally,
    pub(super) console: Console,
    pub(super) hand_in: mpsc::UnboundedSender<Inbox>,
    pub(super) clients: BTreeMap<RequestId, oneshot::Sender<Result<Reply, Denial>>>,
    /// The engine is done: the last lines are written, then the keeper hears this code.
    pub(super) leaving: Option<u8>,
    pub(super) gates: Gates,
    pub(super) ways: Ways,
    pub(super) deadlines: Deadlines,
    pub(super) by_hand: ByHand,
    /// What is seen of the cluster, on its way to disk.
    pub(super) pins: Arc<Pins>,
    pub(super) alarm: Alarm,
    pub(super) files: Files,
    pub(super) agents: Agents,
    pub(super) bell: AsyncFd<OwnedFd>,
    pub(super) known: Known,
    pub(super) inbox: mpsc::UnboundedReceiver<Inbox>,
    pub(super) notify: AsyncFd<OwnedFd>,
    pub(super) echo: Echo,
    pub(super) echoes: u64,
    pub(super) welcome: Welcome,
    pub(super) requests: u64,
    pub(super) progress_at: Option<Moment>,
    pub(super) interactive: bool,
    pub(super) said: String,
    /// Why an errand waits, as it said last.
    pub(super) said_waiting: Option<String>,
}

/// Runs until the keeper has been told to exit, or is gone.
pub(super) async fn supervise(settings: Settings) -> u8 {
    // The name that people see in `ps`; the binary was executed by descriptor, which has none.
    let _ = rustix::thread::set_name(c"leasehold-super");
    // We are a background group of whatever terminal the keeper has.
    crate::sys::child::ignore_terminal_stops();
    crate::sys::child::outlive_size_limit();
    let links = Link::inherited().and_then(|link| Ok((link, link::inherited_deadlines()?)));
    let (mut link, deadlines) = match links {
        Ok(links) => links,
        Err(error) => {
            eprintln!("leasehold: {error}");
            return ExitCode::Usage.number();
        }
    };
    // The lock was not had, whatever the reason.
    let of_errand = settings.errand.as_ref().map(|errand| errand.code);
    let (code, why, link) = match begin(settings, &mut link, deadlines).await {
        Ok(begin) => {
            // What a later supervisor lacks for a moment is no reason for the daemon to end: another one is started.
            let ends = begin.is_first() || of_errand.is_some();
            let mut link = Some(link);
            match begin.into_driver(&mut link) {
                Ok(mut driver) => return driver.run().await,
                Err(why) => {
                    let link = link.filter(|_| ends);
                    (ExitCode::Failed, format!("leasehold: {why}"), link)
                }
            }
        }
        Err((code, why)) => (code, why, Some(link)),
    };
    eprintln!("{}", why.trim_end());
    let code = of_errand.unwrap_or(code.number());
    if let Some(mut link) = link {
        // Refused while anything runs: then another one begins.
        link.push(vec![(Op::Exit { code }, None)]);
        let _ = link.flush();
    }
    code
}

/// Who writes, as the keeper tells.
pub(super) fn author(header: &Header) -> logs::Author {
    let pid = match &header.process {
        Process::Alive(alive) => Some(alive.pid),
        Process::Vacant | Process::Clearing(_) | Process::Gone(_) => None,
    };
    logs::Author {
        generation: header.generation,
        pid,
    }
}

/// `log/web/3`, `log/web/3/stderr`, `lock/web/3`.
pub(super) fn worker_of(name: &str, kind: &str) -> Option<WorkerId> {
    let mut parts = name.strip_prefix(kind)?.split('/');
    let (fleet, slot) = (parts.next()?, parts.next()?);
    Some(WorkerId::new(
        fleet.parse::<FleetName>().ok()?,
        slot.parse().ok()?,
    ))
}

impl Driver {
    /// The first lines a person sees.
    pub(super) fn greet(&self) {
        if self.settings.quiet {
            return;
        }
        let config = self.engine.config();
        let containment = self.welcome.containment.word();
        self.console.say(format!(
            "leasehold {} on {}: {} ({containment} containment)",
            env!("CARGO_PKG_VERSION"),
            config.node.name,
            config.size()
        ));
        self.console.say(format!(
            "  configuration {}",
            self.settings.config.display()
        ));
        self.console.say(format!(
            "  control       {}",
            self.settings.directories.run.join("control.sock").display()
        ));
        for address in &config.http.listen {
            self.console
                .say(format!("  status        http://{address}/"));
        }
        self.console.say(format!(
            "  logs          {}",
            self.settings.directories.log.display()
        ));
    }

    async fn run(&mut self) -> u8 {
        loop {
            self.tend_errand();
            if let Err(error) = self.flush() {
                return self.cut_off(&error).await;
            }
            if let Some(code) = self.leaving {
                return self.leave(code).await;
            }
            let event = self.next().await;
            let began = self.now();
            // Before anything is decided: what the engine believes of the wall clock is never older than this lap.
            if let Some(event) = self.alarm.look() {
                self.step(event);
            }
            match event {
                Next::Keeper(Ok(packets)) if packets.is_empty() => return self.orphaned().await,
                Next::Keeper(Ok(packets)) => {
                    let mut news = Vec::new();
                    for packet in packets {
                        match crate::wire::decode::<News>(&packet.bytes) {
                            Ok(more) => news.extend(more),
                            Err(error) => self.console.say(format!("leasehold: failed to {error}")),
                        }
                    }
                    // Before the news of an end, why it came.
                    if self.deadlines.is_used() {
                        self.take_deadlines(self.deadlines.there());
                    }
                    self.take_news(news);
                }
                Next::Keeper(Err(error)) => return self.cut_off(&error).await,
                Next::Deadlines(news) => self.take_deadlines(news),
                Next::Note => self.take_notes(),
                Next::Inbox(item) => self.take_item(*item),
                Next::Writable | Next::Alarm => {}
                Next::Bell => {
                    for event in self.gates.rang() {
                        self.step(event);
                    }
                }
                Next::Time => {
                    if self.gates.deadline().is_some_and(|at| at <= self.now()) {
                        self.gates.look();
                    }
                    self.step(Event::Tick);
                }
            }
            self.report_progress();
            self.tally.lap(self.now().since(began));
        }
    }

    fn take_deadlines(&mut self, news: std::io::Result<Vec<DeadlineNews>>) {
        // If the keeper is dead the wire says so; if not, leases run out where they stand.
        let Ok(news) = news else {
            return self.deadlines.close();
        };
        for one in news {
            if let DeadlineNews::Seat(report) = one
                && let Some(event) = self.deadlines.event(report)
            {
                self.step(event);
            }
        }
    }

    /// When the keeper was started.
    pub(super) fn started(&self) -> Moment {
        self.welcome.started
    }

    /// Waits for the first thing that happens. An arm builds a value and nothing else.
    async fn next(&mut self) -> Next {
        let now = self.now();
        let waits = [
            self.engine.deadline(),
            self.gates.deadline(),
            self.alarm.deadline(),
            self.progress_at,
            self.errand_deadline(),
        ];
        let deadline = waits.into_iter().flatten().min();
        let pause = deadline.map(|at| std::time::Duration::from(now.until(at)));
        let quiet = !self.link.is_blocked();
        tokio::select! {
            biased;
            packets = self.link.receive() => Next::Keeper(packets),
            news = self.deadlines.receive(), if self.deadlines.is_open() => Next::Deadlines(news),
            () = self.link.writable(), if !quiet => Next::Writable,
            // Notes are consumed only after the keeper holds what they changed.
            ready = self.notify.readable(), if quiet && !matches!(self.echo, Echo::Asked(_)) => {
                drop(ready);
                Next::Note
            }
            Ok(mut guard) = self.bell.readable() => {
                guard.clear_ready();
                Next::Bell
            }
            () = self.alarm.rang() => Next::Alarm,
            Some(item) = self.inbox.recv() => Next::Inbox(Box::new(item)),
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => Next::Time,
        }
    }

    pub(super) fn step(&mut self, event: Event) {
        self.step_after(Vec::new(), event);
    }

    /// The same, behind what the keeper must have before, and in one packet with that.
    fn step_after(&mut self, ops: Vec<Request>, event: Event) {
        let mut effects = Effects::default();
        self.engine
            .step(event, crate::sys::clock::both(), &mut effects);
        self.perform_after(ops, effects);
    }

    fn flush(&mut self) -> std::io::Result<bool> {
        self.link.flush()
    }

    pub(super) fn take_news(&mut self, news: Vec<News>) {
        let sorted = inputs::sort(news, &mut self.known);
        if self.echo == Echo::Asked(sorted.echo.unwrap_or(0)) {
            self.echo = Echo::Heard;
        }
        if !sorted.events.is_empty() {
            self.note_leaders();
        }
        for event in sorted.events {
            if let Event::Rows(rows) = &event {
                for (key, header) in rows {
                    if let RowKey::Slot(worker) = key {
                        self.name_author(worker, author(header));
                    }
                }
            }
            self.step(event);
        }
        let pongs = sorted
            .pings
            .into_iter()
            .map(|number| (Op::Pong { number }, None));
        self.link.push(pongs.collect());
    }

    /// Whoever takes a lock after us is to know whom to end.
    pub(super) fn note_leaders(&mut self) {
        let headers = &self.known.headers;
        self.gates.note_leaders(|worker| {
            match headers.get(&RowKey::Slot(worker.clone()))?.process {
                Process::Alive(alive) => {
                    let leader = Proc {
                        pid: alive.pid,
                        start: alive.start_ticks,
                    };
                    let init = match alive.containment {
                        Containment::Namespace { init, start_ticks } => Some(Proc {
                            pid: init,
                            start: start_ticks,
                        }),
                        Containment::Unit | Containment::Cgroup | Containment::Group => None,
                    };
                    Some((leader, init))
                }
                Process::Vacant | Process::Clearing(_) | Process::Gone(_) => None,
            }
        });
    }

    /// Looks at each waiting datagram, lets the keeper hold what it changed, and only then consumes it.
    fn take_notes(&mut self) {
        for _ in 0..64 {
            match notify::peek(self.notify.get_ref()) {
                Ok(Some(datagram)) => {
                    match self.known.sender(datagram.pid, self.welcome.keeper) {
                        // It stays where it is until the keeper has told us all that it knew when it was asked.
                        Sender::Untold if self.echo == Echo::None => return self.ask_echo(),
                        Sender::Untold | Sender::Stranger => {}
                        Sender::Worker(worker, generation) => {
                            for note in inputs::parse_note(&datagram.bytes) {
                                let worker = worker.clone();
                                self.step(Event::Note {
                                    worker,
                                    generation,
                                    note,
                                });
                            }
                        }
                    }
                    self.echo = Echo::None;
                    if !matches!(self.flush(), Ok(true)) {
                        return;
                    }
                    let _ = notify::consume(self.notify.get_ref());
                }
                Ok(None) => break,
                Err(_) => {
                    let _ = notify::consume(self.notify.get_ref());
                }
            }
        }
        // Readiness is cleared only by a would-block seen through the guard; a datagram that came meanwhile sets it again.
        let _ = self
            .notify
            .try_io(tokio::io::Interest::READABLE, |fd| match notify::peek(fd) {
                Ok(None) => Err(std::io::ErrorKind::WouldBlock.into()),
                Ok(Some(_)) | Err(_) => Ok(()),
            });
    }

    fn ask_echo(&mut self) {
        self.echoes += 1;
        self.echo = Echo::Asked(self.echoes);
        self.link.push(vec![(
            Op::Echo {
                number: self.echoes,
            },
            None,
        )]);
    }

    fn take_item(&mut self, item: Inbox) {
        match item {
            Inbox::Command(command, client) => {
                self.requests += 1;
                let request = RequestId(self.requests);
                self.clients.insert(request, client);
                self.step(Event::Command { request, command });
            }
            Inbox::Status(client) => {
                let _ = client.send(self.engine.status(self.now()));
            }
            Inbox::Measures(client) => {
                for (fleet, flow) in self.logs.flows() {
                    self.tally.wrote(fleet, flow.written, flow.dropped);
                }
                let status = self.engine.status(self.now());
                let tally = self.tally.clone();
                let _ = client.send(Box::new(Measures { status, tally }));
            }
            Inbox::Config(client) => {
                let _ = client.send(Box::new(self.engine.config().clone()));
            }
            Inbox::Probed(worker, generation, result) => self.step(Event::Probed {
                worker,
                generation,
                result,
            }),
            Inbox::EnvRead(worker, after, result) => self.step(Event::EnvRead {
                worker,
                after,
                result,
            }),
            Inbox::ConfigRead(purpose, result) => self.config_read(purpose, result),
            Inbox::IntentSaved(result) => self.step(Event::IntentSaved { result }),
            Inbox::BookRead(fleet, result) => self.step(Event::BookRead { fleet, result }),
            Inbox::BookKept(fleet, result) => self.step(Event::BookKept { fleet, result }),
            Inbox::Locked(worker, ticket, taken) => {
                // Held by the keeper before anything that needs it can be asked of it.
                let (request, event) = self.gates.settled(worker, ticket, taken);
                // Of one that stood by it is known already whom it names.
                self.note_leaders();
                let ops = request.into_iter().collect();
                match event {
                    Some(event) => self.step_after(ops, event),
                    None => self.link.push(ops),
                }
            }
            Inbox::Gate(event) | Inbox::Published(event) => self.step(event),
            Inbox::Etcd(news) => self.step(Event::Etcd(news)),
            Inbox::Sampled(sample) => self.step(Event::Sampled(sample)),
            Inbox::Knock(fleet) => self.step(Event::Knock(fleet)),
            Inbox::Sourced(fleet, result) => self.step(Event::Sourced { fleet, result }),
            Inbox::Hold(name, fd) => self.link.push(vec![(Op::Hold { name }, Some(fd))]),
            Inbox::LogClosed(source) => {
                let suffix = if source.stderr { "/stderr" } else { "" };
                let name = format!("log/{}{suffix}", source.worker);
                if self.held.remove(&name) {
                    self.link.push(vec![(Op::Release { name }, None)]);
                }
            }
            Inbox::LogTrouble(trouble) => self.say_trouble(&trouble),
        }
    }

    fn say_trouble(&self, trouble: &logs::Trouble) {
        let (whose, it) = match &trouble.whose {
            Some(source) => (
                format!("{}: its log", source.worker),
                "it waits in its pipe",
            ),
            None => (
                "the journal".to_owned(),
                "what workers write waits in their pipes",
            ),
        };
        let dropped = count(trouble.dropped, "byte");
        self.console.say(match (&trouble.why, trouble.dropped) {
            (Some(why), 0) => format!("leasehold: {whose} cannot be written: {why}; {it}"),
            (Some(why), _) => {
                format!("leasehold: {whose} cannot be written: {why}; {dropped} dropped so far")
            }
            (None, 0) => format!("leasehold: {whose} is written again"),
            (None, _) => format!("leasehold: {whose} is written again ({dropped} dropped)"),
        });
    }

    /// Sockets are bound before the engine hears of a new configuration: it is accepted as a whole or not at all.
    fn config_read(
        &mut self,
        purpose: Purpose,
        result: Result<Box<crate::config::Config>, String>,
    ) {
        let is_reload = matches!(purpose, Purpose::Reload(_));
        let result = result.and_then(|config| {
            if is_reload {
                self.bind_for(&config)?;
            }
            Ok(config)
        });
        self.step(Event::ConfigRead { purpose, result });
        if is_reload {
            self.say_ready();
        }
    }

    /// READY=1 with what people see in `systemctl status`: the size of it, and a reload that was refused.
    pub(super) fn say_ready(&mut self) {
        let size = self.engine.config().size();
        let refused = if self.engine.is_rejected() {
            "; the newest reload was refused, nothing changed"
        } else {
            ""
        };
        self.tell_systemd(format!("READY=1\nSTATUS=keeping {size}{refused}"));
    }

    fn bind_for(&mut self, config: &crate::config::Config) -> Result<(), String> {
        if config.http.listen != self.engine.config().http.listen {
            return Err(
                "http.listen changed: that needs a restart of the daemon; nothing was changed"
                    .to_owned(),
            );
        }
        let bound = boot::bind_missing(config, &self.held, false)?;
        let mut ops = Vec::new();
        for (name, fd) in bound {
            if let Some(fleet) = boot::agent_of(&name) {
                let copy = fd.try_clone().and_then(|fd| self.agents.listen(&fleet, fd));
                copy.map_err(|e| format!("fleet.{fleet}.publish.haproxy_agent: {e}"))?;
            }
            ops.push(self.hold(name, fd));
        }
        self.link.push(ops);
        Ok(())
    }

    /// While it drains, who remains is said once a second.
    fn report_progress(&mut self) {
        let due = self.progress_at.is_none_or(|at| at <= self.now());
        if self.engine.stopping() == Stopping::No || !due {
            return;
        }
        let status = self.engine.status(self.now());
        let remaining: Vec<_> = status
            .fleets
            .iter()
            .flat_map(|fleet| &fleet.workers)
            .filter(|w| w.pid.is_some())
            .collect();
        if remaining.is_empty() {
            return;
        }
        let names: Vec<String> = remaining
            .iter()
            .take(6)
            .map(|worker| {
                worker.grace.map_or_else(
                    || worker.id.to_string(),
                    |grace| format!("{} ({})", worker.id, Rough(grace)),
                )
            })
            .collect();
        let more = remaining.len().saturating_sub(names.len());
        let tail = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let text = format!("{}{tail}", names.join(", "));
        let first = self.progress_at.is_none();
        self.progress_at = Some(self.now().after(PROGRESS_EVERY));
        if self.interactive && first && status.stopping == Stopping::Drain {
            self.console.say(format!(
                "draining {}, ^C again kills",
                count(remaining.len(), "worker")
            ));
        } else if self.interactive && !first {
            self.console.say(format!("waiting for {text}"));
        }
        let longest = remaining
            .iter()
            .filter_map(|worker| worker.grace)
            .max()
            .unwrap_or(Span::secs(30));
        if self.said != text {
            let micros = longest.plus(Span::secs(30)).as_nanos() / 1_000;
            self.tell_systemd(format!(
                "STATUS=draining: {text}\nEXTEND_TIMEOUT_USEC={micros}"
            ));
            self.said = text;
        }
    }

    /// Everything is stopped: the last lines are written before the keeper lets the pipes go.
    async fn leave(&mut self, code: u8) -> u8 {
        // Whoever gave up waiting stands in the queue still.
        if self.settings.errand.is_some() {
            self.give_lease_back().await;
        }
        let logs = std::mem::replace(&mut self.logs, Capture::none());
        let lost = logs.finish();
        if lost > 0 {
            self.console.say(format!(
                "leasehold: {lost} bytes of output could not be written to {}",
                self.settings.directories.log.display()
            ));
        }
        if self.interactive {
            self.console.say(if code == 0 {
                "drained; everything is stopped".to_owned()
            } else {
                "killed; everything is stopped".to_owned()
            });
        }
        self.console.flush();
        if self.settings.errand.is_none() {
            for name in ["control.sock", "notify"] {
                let _ = std::fs::remove_file(self.settings.directories.run.join(name));
            }
        }
        self.tell_systemd("STATUS=everything is stopped".to_owned());
        self.link.push(vec![(Op::Exit { code }, None)]);
        // The keeper reads whatever happens; should it not, it is dead, and so are we.
        let _ = self.link.drain();
        code
    }

    /// The wire failed. Only a broken connection proves that the keeper is dead; after anything else a successor does better.
    async fn cut_off(&mut self, error: &std::io::Error) -> u8 {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
        if matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected) {
            return self.orphaned().await;
        }
        self.console
            .say(format!("leasehold: the wire to the keeper failed: {error}"));
        self.console.flush();
        ExitCode::Failed.number()
    }

    /// Nothing of ours is left: whoever is next need not wait until our lease is over.
    async fn give_lease_back(&mut self) {
        let Some((lease, endpoint)) = self.engine.lease() else {
            return;
        };
        self.ways.obey(rpc::Order::Call(rpc::Call {
            id: LAST_CALL,
            endpoint,
            request: rpc::Request::Revoke(lease),
            within: LAST_CALL_WITHIN,
        }));
        let heard = async {
            while let Some(item) = self.inbox.recv().await {
                let Inbox::Etcd(rpc::News::Answered { call, .. }) = item else {
                    continue;
                };
                if call == LAST_CALL {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(LAST_CALL_WITHIN.into(), heard).await;
    }

    /// The keeper is dead.
    async fn orphaned(&mut self) -> u8 {
        if last_rites::end_everything(&self.welcome, &self.known.headers) {
            self.gates.free_all();
            self.give_lease_back().await;
        }
        let logs = std::mem::replace(&mut self.logs, Capture::none());
        logs.finish();
        if self.settings.errand.is_none() {
            self.console
                .say("leasehold: the keeper is dead; every worker was ended".to_owned());
        }
        self.console.flush();
        ExitCode::Failed.number()
    }
}

/// Whether the keeper was asked to tell all that it knows, for the sake of the datagram that waits first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Echo {
    None,
    Asked(u64),
    Heard,
}

enum Next {
    Deadlines(std::io::Result<Vec<DeadlineNews>>),
    Keeper(std::io::Result<Vec<crate::sys::packet::Packet>>),
    Note,
    Bell,
    Alarm,
    Inbox(Box<Inbox>),
    Writable,
    Time,
}
