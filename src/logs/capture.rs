//! The log thread: every pipe, edge-triggered, one turn each.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use crate::{
    config::spec::{LogSpec, Sink},
    id::{FleetName, Generation, WorkerId},
    logs::{
        file::path_of,
        journal::Journal,
        stream::{Counts, Rules, Stream, Turn, Workbench},
        tap::Tap,
    },
    sys::{
        clock,
        poll::{EventFlags, Poll},
    },
    time::{Moment, Span},
};

/// Token of the command channel; streams count up from 1.
const COMMANDS: u64 = 0;
/// Token of the journal's socket.
const JOURNAL: u64 = u64::MAX;
/// The journal has so long to take what is left of a slot that is given up, or of all at the end.
const LAST_OF_ONE: Span = Span::secs(1);
const LAST_OF_ALL: Span = Span::secs(3);

/// A piece of a line is shown without its end when it is longer than this.
const SHOWN_MAX: usize = 4_096;

/// Which pipe of which worker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// The worker.
    pub worker: WorkerId,
    /// Its separate stderr.
    pub stderr: bool,
}

/// Which generation of a worker writes, and its leader's pid, as soon as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// Which.
    pub generation: Generation,
    /// Its leader.
    pub pid: Option<i32>,
}

/// A stream that was read to its end and closed.
pub type Closed = Source;

/// Lines of a worker, for the terminal.
pub struct Line {
    /// Whose.
    pub source: Source,
    /// Its bytes: whole lines, or a piece of a long one.
    pub bytes: Vec<u8>,
}

/// How the thread is set up.
pub struct Settings {
    /// Where files go.
    pub log_dir: PathBuf,
    /// Sees what was moved, if somebody watches; must not block.
    pub echo: Option<Box<dyn FnMut(Line) + Send>>,
    /// Told of closed streams.
    pub closed: Box<dyn FnMut(Closed) + Send>,
    /// Told, once per change, of what cannot be written (and that it can again).
    pub trouble: Box<dyn FnMut(Trouble) + Send>,
    /// Where journald listens.
    pub journal: PathBuf,
}

/// Something cannot be written, or can again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Whose output; none: the journal as a whole.
    pub whose: Option<Source>,
    /// Why; none: it is over.
    pub why: Option<String>,
    /// So many bytes were dropped so far.
    pub dropped: u64,
}

/// What became of the output of one fleet's workers, since the thread began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Bytes that are where they belong.
    pub written: u64,
    /// Bytes that were dropped.
    pub dropped: u64,
}

/// A fleet's flow: the log thread adds to it, others read it.
#[derive(Debug, Default)]
struct Meter {
    written: AtomicU64,
    dropped: AtomicU64,
}

impl Meter {
    fn add(&self, counts: Counts) {
        self.written.fetch_add(counts.written, Ordering::Relaxed);
        self.dropped.fetch_add(counts.dropped, Ordering::Relaxed);
    }
}

type Meters = Arc<Mutex<BTreeMap<FleetName, Arc<Meter>>>>;

enum Order {
    Add(Source, Tap, LogSpec),
    Rules(WorkerId, LogSpec),
    Close(WorkerId),
    Reopen,
    Finish(mpsc::Sender<u64>),
}

/// A handle to the log thread.
pub struct Capture {
    orders: Arc<Mutex<VecDeque<Order>>>,
    bell: Option<UnixStream>,
    taps: Mutex<BTreeMap<Source, Tap>>,
    meters: Meters,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts the thread.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let (bell, ring) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ring.set_nonblocking(true)?;
        let orders = Arc::new(Mutex::new(VecDeque::new()));
        let bench = Workbench::new()?;
        let meters = Meters::default();
        let (theirs, shared) = (Arc::clone(&orders), Arc::clone(&meters));
        let thread = std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || {
                // Without its epoll the thread is nothing; workers then wait in their pipes until the next supervisor.
                if let Ok(mut room) = LogRoom::new(settings, bench, theirs, shared, ring) {
                    room.run();
                }
            })?;
        Ok(Self {
            orders,
            bell: Some(bell),
            taps: Mutex::default(),
            meters,
            thread: Some(thread),
        })
    }

    /// Captures nothing: what is left in place when the last lines are written.
    pub fn none() -> Self {
        Self {
            orders: Arc::default(),
            bell: None,
            taps: Mutex::default(),
            meters: Meters::default(),
            thread: None,
        }
    }

    /// Captures a pipe; what waits in it is taken to be the author's, if there is one.
    pub fn add(&self, source: Source, pipe: OwnedFd, spec: LogSpec, author: Option<Author>) {
        let tap = Tap::new(pipe);
        if let Some(author) = author {
            tap.began(author);
        }
        self.taps().insert(source.clone(), tap.clone());
        self.order(Order::Add(source, tap, spec));
    }

    fn taps(&self) -> MutexGuard<'_, BTreeMap<Source, Tap>> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of each fleet's output.
    pub fn flows(&self) -> Vec<(FleetName, Flow)> {
        let meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        let flow = |meter: &Meter| Flow {
            written: meter.written.load(Ordering::Relaxed),
            dropped: meter.dropped.load(Ordering::Relaxed),
        };
        meters
            .iter()
            .map(|(fleet, meter)| (fleet.clone(), flow(meter)))
            .collect()
    }

    /// Forgets the flows of fleets that nobody will ask about any more.
    pub fn retain_flows(&self, wanted: impl Fn(&FleetName) -> bool) {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        meters.retain(|fleet, _| wanted(fleet));
    }

    /// Its limits changed.
    pub fn respecify(&self, worker: WorkerId, spec: LogSpec) {
        self.order(Order::Rules(worker, spec));
    }

    /// A generation is about to begin (its pid is not known yet), or has begun. Said before it can write, it is right to the line.
    pub fn began(&self, worker: &WorkerId, author: Author) {
        for stderr in [false, true] {
            let source = Source {
                worker: worker.clone(),
                stderr,
            };
            if let Some(tap) = self.taps().get(&source) {
                tap.began(author);
            }
        }
    }

    /// Reads a worker's pipes to the end and closes them.
    pub fn close(&self, worker: WorkerId) {
        self.taps().retain(|source, _| source.worker != worker);
        self.order(Order::Close(worker));
    }

    /// Opens every file anew.
    pub fn reopen(&self) {
        self.order(Order::Reopen);
    }

    /// Reads everything to the end and stops the thread; returns how many bytes could not be written anywhere.
    pub fn finish(mut self) -> u64 {
        if self.thread.is_none() {
            return 0;
        }
        let (tell, told) = mpsc::channel();
        self.order(Order::Finish(tell));
        let lost = told.recv().unwrap_or(0);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        lost
    }

    fn order(&self, order: Order) {
        self.orders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(order);
        if let Some(mut bell) = self.bell.as_ref() {
            let _ = bell.write(&[1]);
        }
    }
}

struct LogRoom {
    settings: Settings,
    bench: Workbench,
    orders: Arc<Mutex<VecDeque<Order>>>,
    meters: Meters,
    ring: UnixStream,
    poll: Poll,
    streams: BTreeMap<u64, (Source, Stream, Arc<Meter>)>,
    next_token: u64,
    ready: BTreeSet<u64>,
    waits: BTreeMap<u64, Moment>,
    journal: Journal,
    /// Streams that wait for room in the journal.
    blocked: BTreeSet<u64>,
    /// Whose turn comes first: the one after that which filled the journal.
    first: u64,
}

impl LogRoom {
    fn new(
        settings: Settings,
        bench: Workbench,
        orders: Arc<Mutex<VecDeque<Order>>>,
        meters: Meters,
        ring: UnixStream,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(&ring, COMMANDS, EventFlags::IN)?;
        let (streams, ready, waits) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let journal = Journal::new(settings.journal.clone());
        Ok(Self {
            settings,
            bench,
            orders,
            meters,
            ring,
            poll,
            streams,
            next_token: 1,
            ready,
            waits,
            journal,
            blocked: BTreeSet::new(),
            first: 0,
        })
    }

    fn run(&mut self) {
        loop {
            let now = clock::now();
            let due: Vec<u64> = self
                .waits
                .iter()
                .filter(|(_, at)| **at <= now)
                .map(|(token, _)| *token)
                .collect();
            self.ready.extend(due);
            let mut earlier = std::mem::take(&mut self.ready);
            let later = earlier.split_off(&self.first);
            for token in later.into_iter().chain(earlier) {
                self.turn(token, now, false);
            }
            let timeout = if self.ready.is_empty() {
                self.waits.values().min().map(|at| clock::now().until(*at))
            } else {
                Some(crate::time::Span::ZERO)
            };
            let Ok(events) = self.poll.wait(timeout) else {
                return;
            };
            for (token, _) in events {
                match token {
                    COMMANDS => {
                        if self.obey() {
                            return;
                        }
                    }
                    JOURNAL => {
                        self.journal.opened();
                        self.ready.append(&mut self.blocked);
                    }
                    token => {
                        self.ready.insert(token);
                    }
                }
            }
        }
    }

    fn turn(&mut self, token: u64, now: Moment, to_the_end: bool) {
        self.waits.remove(&token);
        let Some((source, stream, meter)) = self.streams.get_mut(&token) else {
            return;
        };
        let before = stream.failing.clone();
        let counted = stream.counts;
        let journal_before = self.journal.failing.clone();
        let was_open = self.journal.closed(now).is_none();
        let echo = &mut self.settings.echo;
        let mut unshown = std::mem::take(&mut stream.unshown);
        let (bench, journal) = (&mut self.bench, &mut self.journal);
        let turn = stream.pump(bench, journal, now, to_the_end, &mut |bytes| {
            if let Some(echo) = echo {
                unshown.extend_from_slice(bytes);
                // People see whole lines, or a long piece of one.
                let end = memchr::memrchr(b'\n', &unshown).map_or(0, |at| at + 1);
                let end = if end == 0 && (to_the_end || unshown.len() > SHOWN_MAX) {
                    unshown.len()
                } else {
                    end
                };
                if end > 0 {
                    echo(Line {
                        source: source.clone(),
                        bytes: unshown.drain(..end).collect(),
                    });
                }
            }
        });
        stream.unshown = unshown;
        meter.add(stream.counts.since(counted));
        if stream.failing != before {
            (self.settings.trouble)(Trouble {
                whose: Some(source.clone()),
                why: stream.failing.clone(),
                dropped: stream.counts.dropped,
            });
        }
        if self.journal.failing != journal_before {
            let to_journal = self.streams.values().filter(|(_, s, _)| s.to_journal());
            (self.settings.trouble)(Trouble {
                whose: None,
                why: self.journal.failing.clone(),
                dropped: to_journal.map(|(_, stream, _)| stream.counts.dropped).sum(),
            });
        }
        match turn {
            Turn::Dry => {}
            Turn::More => {
                self.ready.insert(token);
            }
            Turn::At(at) => {
                self.waits.insert(token, at);
            }
            Turn::Journal(at) => {
                self.waits.insert(token, at);
                self.blocked.insert(token);
                if was_open {
                    self.first = token + 1;
                }
            }
        }
        self.journal.watch(&self.poll, JOURNAL);
    }

    /// Carries out what was ordered; true when the thread is to end.
    fn obey(&mut self) -> bool {
        let mut sink = [0; 64];
        while self.ring.read(&mut sink).is_ok_and(|n| n > 0) {}
        loop {
            let order = self
                .orders
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            match order {
                None => return false,
                Some(Order::Add(source, tap, spec)) => self.add(source, tap, &spec),
                Some(Order::Rules(worker, spec)) => {
                    for (token, (source, stream, _)) in &mut self.streams {
                        if source.worker == worker {
                            stream.set_rules(rules(&spec));
                            self.bench.fit(stream);
                            // What it waited for may not concern it any more.
                            self.ready.insert(*token);
                        }
                    }
                }
                Some(Order::Close(worker)) => self.close(&worker),
                Some(Order::Reopen) => self
                    .streams
                    .values_mut()
                    .for_each(|(_, stream, _)| stream.reopen()),
                Some(Order::Finish(tell)) => {
                    let _ = tell.send(self.finish());
                    return true;
                }
            }
        }
    }

    fn add(&mut self, source: Source, tap: Tap, spec: &LogSpec) {
        let path = path_of(
            &self.settings.log_dir,
            source.worker.fleet.as_str(),
            source.worker.slot.0,
            source.stderr,
        );
        let stream = Stream::new(&source, tap, path, rules(spec));
        self.bench.fit(&stream);
        let token = self.next_token;
        self.next_token += 1;
        // Level-triggered would spin on a line without an end.
        if self
            .poll
            .add(stream.pipe(), token, EventFlags::IN | EventFlags::ET)
            .is_ok()
        {
            let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
            let meter = meters.entry(source.worker.fleet.clone()).or_default();
            let meter = Arc::clone(meter);
            drop(meters);
            self.streams.insert(token, (source, stream, meter));
            self.ready.insert(token);
        }
    }

    fn close(&mut self, worker: &WorkerId) {
        let theirs = self
            .streams
            .iter()
            .filter(|(_, (source, ..))| source.worker == *worker);
        let tokens: Vec<u64> = theirs.map(|(token, _)| *token).collect();
        let until = clock::now().after(LAST_OF_ONE);
        for token in tokens {
            self.read_to_end(token, until);
            if let Some((source, stream, meter)) = self.streams.remove(&token) {
                let _ = self.poll.remove(stream.pipe());
                self.waits.remove(&token);
                self.ready.remove(&token);
                self.blocked.remove(&token);
                let lost = crate::sys::pipe::waiting(stream.pipe()) as u64;
                if lost > 0 {
                    meter.add(Counts {
                        dropped: lost,
                        ..Counts::default()
                    });
                    let why = stream.failing.or(self.journal.failing.clone());
                    (self.settings.trouble)(Trouble {
                        whose: Some(source.clone()),
                        why: Some(why.unwrap_or_else(|| "its slot is given up".to_owned())),
                        dropped: stream.counts.dropped + lost,
                    });
                }
                (self.settings.closed)(source);
            }
        }
    }

    /// What waits now is written; whoever goes on writing for ever does not hold up the others.
    fn read_to_end(&mut self, token: u64, until: Moment) {
        let Some((_, stream, _)) = self.streams.get(&token) else {
            return;
        };
        let mut turns = stream.most_turns();
        loop {
            self.ready.remove(&token);
            self.turn(token, clock::now(), true);
            // The journal's queue may be shorter than what waits here; one that takes nothing for long is not waited for.
            if self.blocked.remove(&token) {
                if self.journal.failing.is_some() || !self.journal.wait_for_room(until) {
                    return;
                }
                continue;
            }
            turns -= 1;
            if !self.ready.contains(&token) || turns == 0 {
                return;
            }
        }
    }

    fn finish(&mut self) -> u64 {
        let tokens: Vec<u64> = self.streams.keys().copied().collect();
        let until = clock::now().after(LAST_OF_ALL);
        for token in tokens {
            self.read_to_end(token, until);
        }
        self.streams
            .values()
            .map(|(_, stream, _)| crate::sys::pipe::waiting(stream.pipe()) as u64)
            .sum()
    }
}

fn rules(spec: &LogSpec) -> Rules {
    Rules {
        rotate_size: spec.rotate_size,
        max_size: spec.max_size,
        drop: spec.drop,
        journal: spec.sink == Sink::Journal,
    }
}
