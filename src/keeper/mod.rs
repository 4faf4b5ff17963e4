//! The keeper: parent of everything. It spawns on request, reaps, kills, holds descriptors and rows, and starts the supervisor again
//! when that dies. It has no network, no configuration, no policy and no async.
//!
//! | file | what |
//! | --- | --- |
//! | `core` | rows and what is done to them (pure; the simulation runs it) |
//! | `revival` | when to start and when to give up on the supervisor (pure) |
//! | `linux` | the kernel behind `core` |
//! | `nest` | PID namespaces for workers of which nothing may outlive us |
//! | `link` | the wire to one supervisor |
//! | `errand` | the one command of a keeper that was started for one: its terminal, signals and exit code |
//! | `signals` | what was sent to us, and by whom |
//! | `deadlines` | the second thread: kills gated workers at their deadlines, pings systemd's watchdog |
//! | `leftovers` | what an earlier run left behind |

pub mod core;
mod deadlines;
mod errand;
mod leftovers;
mod link;
mod linux;
mod nest;
pub mod revival;
mod signals;

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use crate::{
    keeper::{
        core::{Core, Request},
        deadlines::{Deadlines, Watchdog},
        errand::Errand,
        link::Link,
        linux::{Linux, SeatNews},
        revival::{Revival, Step},
        signals::{Asking, Signals},
    },
    sys::{
        cgroup::Tree,
        child::{Child, reap_now},
        clock, family, host,
        lock::{InstanceLock, LockError},
        packet,
        poll::EventFlags,
        sd::NotifySocket,
        spawn::Spawner,
    },
    time::{Moment, Span},
    wire::{self, News, Op, Stopping, Welcome},
};

pub use errand::Command;
pub use leftovers::LeftoverError;
pub use nest::{VERB as FIRST_OF_NAMESPACE, first_of_namespace};

const SIGNALS: u64 = 1;
const LINK: u64 = 2;
const SUPERVISOR: u64 = 3;

/// What the keeper is told when it starts; everything else is the supervisor's.
pub struct Settings {
    /// Holds an instance lock and `run.json`; exists.
    pub run_dir: PathBuf,
    /// Holds an instance lock; exists.
    pub state_dir: PathBuf,
    /// Holds an instance lock; exists.
    pub log_dir: PathBuf,
    /// The supervisor's arguments, without the program's name.
    pub supervisor_args: Vec<CString>,
    /// Contain workers by process group even where cgroups could be made.
    pub no_cgroup: bool,
}

/// Why the keeper could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another one runs, or the lock file cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// An earlier run is still in the way.
    #[error(transparent)]
    Leftovers(#[from] LeftoverError),
    /// The kernel refused something it needs.
    #[error("{what}")]
    Kernel {
        /// Reads after "failed to".
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Runs until everything is stopped; returns the exit code. Call it on the main thread, before any other thread exists.
pub fn run(settings: Settings) -> Result<u8, KeeperError> {
    let (spawner, nofile) = reserve()?;
    // State and logs have one writer each: two daemons on one directory would overwrite each other.
    let mut locks = Vec::new();
    for (directory, flag) in [
        (&settings.run_dir, "--run-dir"),
        (&settings.state_dir, "--state-dir"),
        (&settings.log_dir, "--log-dir"),
    ] {
        locks.push(InstanceLock::take(directory, flag)?);
    }
    let signals = Signals::new().map_err(needs("catch signals"))?;
    let cookie = host::cookie().map_err(needs("get random bits"))?;
    // First the old supervisor, if there is one: it removes cgroups while it dies.
    let ended = leftovers::end_processes(&settings.run_dir)?;
    let tree = if settings.no_cgroup {
        None
    } else {
        Tree::find(&settings.run_dir)
    };
    leftovers::begin(&settings.run_dir, &cookie, tree.as_ref())?;
    if ended > 0 {
        say(&format!(
            "ended {ended} processes that an earlier run had left behind"
        ));
    }
    let notify = NotifySocket::from_env().map_err(needs("connect to $NOTIFY_SOCKET"))?;
    let deadlines = Watchdog::from_env()
        .and_then(Deadlines::start)
        .map_err(needs("start the deadline thread"))?;
    let linux = Linux::new(spawner, tree, cookie.clone(), nofile, deadlines.seats)
        .map_err(needs("create an epoll instance"))?;
    let mut keeper = Keeper::new(
        linux,
        deadlines,
        signals,
        notify,
        settings.supervisor_args,
        cookie,
    )?;
    let code = keeper.run().map_err(needs("wait for events"))?;
    keeper.linux.dismantle();
    leftovers::finish(&settings.run_dir);
    drop(locks);
    Ok(code)
}

/// Runs one command under the supervisor that `args` start, until nothing is left of it; returns the command's exit code, or
/// the supervisor's if that never let it run. Leaves nothing behind and needs no directory. Call it as [`run`].
pub fn run_errand(
    command: Command,
    args: Vec<CString>,
    no_cgroup: bool,
) -> Result<u8, KeeperError> {
    let errand = Errand::new(command);
    let (spawner, nofile) = reserve()?;
    let signals = Signals::to_relay(errand.ignored).map_err(needs("catch signals"))?;
    let cookie = host::cookie().map_err(needs("get random bits"))?;
    let tree = if no_cgroup {
        None
    } else {
        Tree::below_us(&cookie)
    };
    // A watchdog that watches us is the command's to ping: it has our environment.
    let deadlines = Deadlines::start(None).map_err(needs("start the deadline thread"))?;
    let mut linux = Linux::new(spawner, tree, cookie.clone(), nofile, deadlines.seats)
        .map_err(needs("create an epoll instance"))?;
    linux.errand = Some(errand);
    let mut keeper = Keeper::new(linux, deadlines, signals, None, args, cookie)?;
    let code = keeper.run();
    keeper.linux.dismantle();
    let errand = keeper.linux.errand.as_mut();
    let code = code.map_err(needs("wait for events"))?;
    Ok(errand.map_or(code, |errand| {
        errand.finish();
        errand.code(code)
    }))
}

fn needs(what: &'static str) -> impl FnOnce(io::Error) -> KeeperError {
    move |source| KeeperError::Kernel { what, source }
}

/// The descriptors and limits of whoever spawns; nothing may have been opened before.
fn reserve() -> Result<(Spawner, (u64, u64)), KeeperError> {
    let nofile = host::raise_nofile();
    let spawner = Spawner::new().map_err(needs(
        "reserve descriptors (the hard limit on them must be well above 64: ulimit -Hn, LimitNOFILE=)",
    ))?;
    Ok((spawner, nofile))
}

struct Keeper {
    core: Core,
    linux: Linux,
    deadlines: Deadlines,
    revival: Revival,
    supervisor: Option<Child>,
    link: Option<Link>,
    signals: Signals,
    notify: Option<NotifySocket>,
    binary: OwnedFd,
    args: Vec<CString>,
    env: Vec<CString>,
    cookie: String,
    started: Moment,
    incarnation: u64,
    exit: Option<u8>,
    killed_at: Option<Moment>,
    last_tries: u32,
}

impl Keeper {
    fn new(
        linux: Linux,
        deadlines: Deadlines,
        signals: Signals,
        notify: Option<NotifySocket>,
        args: Vec<CString>,
        cookie: String,
    ) -> Result<Self, KeeperError> {
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).map_err(|e| {
            needs("become the reaper of orphans (PR_SET_CHILD_SUBREAPER)")(e.into())
        })?;
        let binary = std::fs::File::open("/proc/self/exe").map_err(needs(
            "open our own binary (/proc/self/exe; is /proc mounted?)",
        ))?;
        linux
            .poll
            .add(&signals, SIGNALS, EventFlags::IN)
            .map_err(needs("watch for signals"))?;
        let now = clock::now();
        Ok(Self {
            core: Core::new(),
            linux,
            deadlines,
            revival: Revival::new(now),
            supervisor: None,
            link: None,
            signals,
            notify,
            binary: binary.into(),
            args,
            env: supervisor_env(&cookie),
            cookie,
            started: now,
            incarnation: 0,
            exit: None,
            killed_at: None,
            last_tries: 0,
        })
    }

    fn run(&mut self) -> io::Result<u8> {
        loop {
            let now = clock::now();
            self.look_after_supervisor(now);
            self.core.tick(now, &mut self.linux);
            let news = self.linux.tick(now);
            self.seats_changed(news);
            self.end_with_errand(now);
            if self.core.asked().stopping == Stopping::Kill || !self.revival.is_up() {
                self.core.drain_alone(now, &mut self.linux);
            }
            self.pump();
            if let Some(code) = self.finished(now) {
                return Ok(code);
            }
            let timeout = self.deadline(now).map(|at| clock::now().until(at));
            for (token, flags) in self.linux.poll.wait(timeout)? {
                self.event(token, flags);
            }
        }
    }

    fn deadline(&self, now: Moment) -> Option<Moment> {
        let last_words = self.killed_at.map(|at| at.after(LAST_WORDS));
        let waits = [
            self.core.deadline(),
            self.revival.deadline().filter(|_| self.exit.is_none()),
            self.linux.deadline(),
            // Then it was killed, and its end wakes us: a disk that hangs may keep it for long.
            last_words.filter(|at| *at > now),
        ];
        waits.into_iter().flatten().min()
    }

    fn event(&mut self, token: u64, flags: EventFlags) {
        match token {
            SIGNALS => self.take_signals(),
            LINK => {
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.take_requests();
                }
                // Said again and again until it is closed, which its end will do: nothing more can come.
                if flags.contains(EventFlags::HUP)
                    && let Some(link) = &self.link
                {
                    let _ = self.linux.poll.remove(link);
                }
            }
            SUPERVISOR => self.supervisor_ended(),
            seat => {
                let news = self.linux.event(seat);
                self.seats_changed(news);
            }
        }
    }

    fn seats_changed(&mut self, news: impl IntoIterator<Item = SeatNews>) {
        for change in news {
            match change {
                SeatNews::LeaderEnded(key, status) => {
                    if let Some(errand) = &mut self.linux.errand {
                        errand.ended(status);
                    }
                    self.core
                        .leader_ended(&key, status, clock::now(), &mut self.linux);
                    let cleared = self.linux.clear(&key);
                    self.seats_changed(cleared);
                }
                SeatNews::Empty(key) => {
                    self.core.containment_empty(&key, &mut self.linux);
                }
            }
        }
    }

    fn take_signals(&mut self) {
        let now = clock::now();
        // However many children changed state, they are looked at once.
        let mut child = false;
        for asking in self.signals.take() {
            match asking {
                Asking::Child => child = true,
                Asking::Upgrade => say("SIGUSR2: this version cannot be upgraded while it runs"),
                Asking::Request(request, by) => {
                    self.core.ask(request, by, now);
                    if matches!(request, Request::Drain | Request::Kill) {
                        self.tell_systemd("STOPPING=1");
                    }
                }
                Asking::Relay(number) => self.relay(number),
            }
        }
        if child {
            self.child_changed(now);
        }
    }

    /// A signal to us is one to the command; before there is one it ends the waiting.
    fn relay(&mut self, number: i32) {
        let Some(errand) = &mut self.linux.errand else {
            return;
        };
        match number {
            libc::SIGCONT if !errand.continued() => {}
            _ if errand.is_running() => self.linux.signal_all(number),
            libc::SIGTSTP => errand.stop_waiting(),
            libc::SIGCONT | libc::SIGWINCH => {}
            _ => {
                if errand.call_off(number) {
                    self.core.ask(Request::Drain, None, clock::now());
                }
            }
        }
    }

    /// Nothing is left of the command, or it could not be started: its lock is given back, and we end.
    fn end_with_errand(&mut self, now: Moment) {
        let is_over = self.linux.errand.as_ref().is_some_and(Errand::is_over);
        if is_over && self.core.is_empty() && self.core.asked().stopping == Stopping::No {
            // While the lock's record still leads whoever comes next to what we might leave.
            self.linux.dismantle();
            self.core.ask(Request::Drain, None, now);
        }
    }

    fn child_changed(&mut self, now: Moment) {
        self.linux.child_changed(now);
        if let Some(number) = self.linux.take_stopped()
            && let Some(errand) = &mut self.linux.errand
            && errand.stopped(number)
        {
            self.linux.signal_all(libc::SIGCONT);
        }
        let stopped = self
            .supervisor
            .as_ref()
            .and_then(Child::take_stopped)
            .is_some();
        if stopped && self.revival.stopped(now) {
            say("the supervisor was stopped by a signal; replacing it");
            self.kill_supervisor();
        }
    }

    fn take_requests(&mut self) {
        loop {
            let packet = match self.link.as_ref().map(Link::receive) {
                Some(Ok(Some(packet))) => packet,
                Some(Ok(None)) | None => return,
                Some(Err(error)) => {
                    say(&format!(
                        "failed to read from the supervisor: {error}; replacing it"
                    ));
                    self.kill_supervisor();
                    return;
                }
            };
            match wire::decode::<Op>(&packet.bytes) {
                Ok(ops) => self.carry_out(ops, packet.fds),
                Err(error) => {
                    say(&format!("failed to {error}; replacing the supervisor"));
                    self.kill_supervisor();
                    return;
                }
            }
        }
    }

    fn carry_out(&mut self, ops: Vec<Op>, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        for op in ops {
            match op {
                Op::Hold { name } => {
                    if let Some(fd) = fds.next() {
                        self.linux.held.insert(name, fd);
                    }
                }
                Op::Release { name } => {
                    self.linux.held.remove(&name);
                }
                Op::Pong { number } => self.revival.answered(number, clock::now()),
                Op::Notify { text } => self.tell_systemd(&text),
                // The first supervisor may find that there is nothing to begin with; later ones may not end what runs.
                Op::Exit { code } if self.may_end() => self.exit = Some(code),
                Op::Exit { .. } => {
                    say("the supervisor cannot go on; workers do, and it is started again")
                }
                Op::Echo { number } => self.core.echo(number),
                Op::Spawn { key, after, .. } if self.core.asked().stopping == Stopping::Kill => {
                    self.core.refuse(key, after)
                }
                Op::Spawn { key, after, .. } if !self.linux.may_spawn() => {
                    self.core.refuse(key, after)
                }
                op => self.core.apply(op, clock::now(), &mut self.linux),
            }
        }
    }

    fn may_end(&self) -> bool {
        let stopping = self.core.asked().stopping != Stopping::No;
        let first = self.incarnation == 1 || self.linux.errand.is_some();
        stopping || (first && self.core.is_empty())
    }

    fn look_after_supervisor(&mut self, now: Moment) {
        if self.exit.is_some() {
            return;
        }
        let close = self.deadlines.seats.stands_any();
        self.revival.watch_closely(close, now);
        if self.revival.deadline().is_some_and(|at| at <= now) {
            // Where the machine stood still, its answer may lie here.
            self.take_requests();
            if self.exit.is_some() {
                return;
            }
        }
        let mut step = self.revival.step(now);
        if step == Step::Look {
            let child = self.supervisor.as_ref();
            let number = child.and_then(|child| child.number_in_proc().ok());
            step = self
                .revival
                .looked(number.is_some_and(family::is_asleep), now);
        }
        match step {
            Step::Wait | Step::Look => {}
            Step::Start { recover } => self.start_supervisor(recover, now),
            Step::Ping(number) => {
                // Behind whatever still waits: a long first telling is no silence.
                if let Some(link) = &mut self.link {
                    link.push(News::Ping { number });
                }
            }
            Step::Kill(silent) => {
                let tenths = silent.as_millis() / 100;
                say(&format!(
                    "the supervisor has not answered for {}.{} s; replacing it",
                    tenths / 10,
                    tenths % 10
                ));
                self.kill_supervisor();
            }
            Step::Complain => {
                let text = "the killed supervisor does not end (it hangs in the kernel); workers go on without one";
                say(text);
                self.tell_systemd(&format!("STATUS={text}"));
            }
        }
    }

    fn start_supervisor(&mut self, recover: bool, now: Moment) {
        if self.core.asked().stopping != Stopping::No && self.core.is_empty() {
            self.last_tries += 1;
        }
        self.incarnation += 1;
        let Err(error) = self.try_start(recover, now) else {
            return;
        };
        self.link = None;
        self.revival.start_failed(now);
        let failed = format!("failed to start the supervisor: {error}");
        // Whoever waits for a command counts on its patience, and nobody is there who would mind it.
        self.exit = self.linux.errand.as_ref().and_then(Errand::otherwise);
        say(&match self.exit {
            Some(_) => failed,
            None => failed + "; trying again in 1 s",
        });
    }

    fn try_start(&mut self, recover: bool, now: Moment) -> Result<(), String> {
        let pair = || packet::pair().map_err(|e| format!("make a socket pair: {e}"));
        let (ours, theirs) = pair()?;
        let (guards, deadlines) = pair()?;
        self.deadlines
            .connect(guards)
            .map_err(|e| format!("connect it to the deadline thread: {e}"))?;
        let links = [theirs.as_fd(), deadlines.as_fd()];
        let child = self
            .linux
            .spawn_supervisor(self.binary.as_fd(), &self.args, &self.env, &links)
            .map_err(|f| format!("{}: {}", f.step.phrase(), host::errno_text(f.errno)))?;
        let welcome = News::Welcome(Box::new(Welcome {
            version: wire::WIRE_VERSION,
            keeper: std::process::id() as i32,
            started: self.started,
            incarnation: self.incarnation,
            cookie: self.cookie.clone(),
            recover,
            containment: self.linux.containment(),
            cgroup: self.linux.cgroup(),
            asked: self.core.asked(),
        }));
        let link = Link::new(ours, welcome, &self.core.tell_all(), &self.linux.held);
        let poll = &self.linux.poll;
        let watched = poll
            .add(&link, LINK, EventFlags::IN)
            .and_then(|()| poll.add(&child, SUPERVISOR, EventFlags::IN));
        if let Err(error) = watched {
            // Its end would go unnoticed, and no other one may run beside it.
            let _ = child.signal(libc::SIGKILL);
            reap_now(&child);
            return Err(format!("watch it: {error}"));
        }
        self.link = Some(link);
        self.linux.supervisor = Some(child.pid());
        self.supervisor = Some(child);
        self.revival.started(now);
        self.core.accompanied();
        Ok(())
    }

    /// It has ended: what it had sent is still carried out, then its successor is due.
    fn supervisor_ended(&mut self) {
        let Some(child) = self.supervisor.take() else {
            return;
        };
        let _ = self.linux.poll.remove(&child);
        let status = child.reap().ok().flatten();
        self.linux.supervisor = None;
        self.take_requests();
        if let Some(link) = self.link.take() {
            let _ = self.linux.poll.remove(&link);
        }
        self.revival.ended(clock::now());
        if self.exit.is_none() {
            say(&format!(
                "the supervisor (pid {}) ended: {}; starting it again",
                child.pid(),
                describe(status)
            ));
        }
    }

    fn kill_supervisor(&mut self) {
        if let Some(child) = &self.supervisor {
            let _ = child.signal(libc::SIGKILL);
        }
    }

    /// Tells the supervisor what changed, and asks to be woken when it can read again.
    fn pump(&mut self) {
        let Some(link) = &mut self.link else { return };
        let core = &mut self.core;
        if link
            .pump(&self.linux.held, |limit| core.take_news(limit))
            .is_err()
        {
            self.kill_supervisor();
            return;
        }
        let flags = if link.is_blocked() {
            EventFlags::IN | EventFlags::OUT
        } else {
            EventFlags::IN
        };
        let _ = self.linux.poll.modify(&*link, LINK, flags);
    }

    /// The exit code, once nothing is left to do.
    fn finished(&mut self, now: Moment) -> Option<u8> {
        let stopping = self.core.asked().stopping;
        if self.exit.is_some() && !self.core.is_empty() && stopping != Stopping::Kill {
            self.core.ask(Request::Kill, None, now);
            self.core.drain_alone(now, &mut self.linux);
        }
        if stopping != Stopping::No && self.supervisor.is_none() && self.exit.is_none() {
            self.exit = self.end_alone(stopping);
        }
        if stopping == Stopping::Kill && self.core.is_empty() && self.exit.is_none() {
            // A supervisor that is well says goodbye by itself; one that is not must not keep us.
            let since = *self.killed_at.get_or_insert(now);
            if since.after(LAST_WORDS) <= now {
                self.exit = Some(1);
            }
        }
        let code = self.exit.filter(|_| self.core.is_empty())?;
        if let Some(child) = &self.supervisor {
            let since = *self.killed_at.get_or_insert(now);
            if since.after(LAST_WORDS) <= now {
                let _ = child.signal(libc::SIGKILL);
            }
            return None;
        }
        Some(code)
    }

    /// Everything is gone and nobody decides any more. If there are last words in the pipes, one more supervisor is to read them.
    fn end_alone(&self, stopping: Stopping) -> Option<u8> {
        if self.incarnation == 0 || !self.core.is_empty() {
            return None;
        }
        let words = self.linux.held.keys().any(|name| name.starts_with("log/"));
        if words && self.last_tries < LAST_TRIES {
            return None;
        }
        if words {
            say("no supervisor could be had to write the last lines of output");
        }
        Some(u8::from(stopping == Stopping::Kill))
    }

    fn tell_systemd(&self, text: &str) {
        if let Some(socket) = &self.notify {
            socket.send(text);
        }
    }
}

/// How long a supervisor may take to write last lines and to end by itself once everything else is over.
const LAST_WORDS: Span = Span::secs(10);
/// So many supervisors are tried for the last lines of output.
const LAST_TRIES: u32 = 1;

/// Our environment, with this run's cookie, without what systemd meant for us alone.
fn supervisor_env(cookie: &str) -> Vec<CString> {
    let ours = [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "LEASEHOLD_RUN",
    ];
    let inherited = std::env::vars_os().filter(|(name, _)| !ours.iter().any(|own| name == own));
    let inherited = inherited.filter_map(|(name, value)| {
        CString::new([name.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat()).ok()
    });
    inherited
        .chain(CString::new(format!("LEASEHOLD_RUN={cookie}")))
        .collect()
}

fn describe(status: Option<wire::ExitStatus>) -> String {
    match status {
        Some(wire::ExitStatus::Code(code)) => format!("exit code {code}"),
        Some(wire::ExitStatus::Signal { number, .. }) => format!("signal {number}"),
        Some(wire::ExitStatus::SpawnFailed { .. }) | None => "status unknown".to_owned(),
    }
}

/// A line on stderr, if that can take it: nobody who does not read may stop the keeper.
fn say(text: &str) {
    let stderr = io::stderr();
    let mut ready = [rustix::event::PollFd::new(
        &stderr,
        rustix::event::PollFlags::OUT,
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if rustix::event::poll(&mut ready, Some(&now)).is_ok_and(|n| n > 0) {
        let _ = rustix::io::write(&stderr, format!("leasehold: {text}\n").as_bytes());
    }
}
