//! The log thread: every pipe, edge-triggered, one turn each.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use crate::{
    config::spec::LogSpec,
    id::WorkerId,
    logs::{
        file::path_of,
        stream::{Rules, Stream, Turn, Workbench},
    },
    sys::{
        clock,
        poll::{EventFlags, Poll},
    },
    time::Moment,
};

/// Token of the command channel; streams count up from 1.
const COMMANDS: u64 = 0;

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
    /// Told, once per change, of files that cannot be written (and that they can again).
    pub trouble: Box<dyn FnMut(Source, Option<String>, u64) + Send>,
}

enum Order {
    Add(Source, OwnedFd, LogSpec),
    Rules(WorkerId, LogSpec),
    Close(WorkerId),
    Reopen,
    Finish(mpsc::Sender<u64>),
}

/// A handle to the log thread.
pub struct Capture {
    orders: Arc<Mutex<VecDeque<Order>>>,
    bell: Option<UnixStream>,
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
        let theirs = Arc::clone(&orders);
        let thread = std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || {
                // Without its epoll the thread is nothing; workers then wait in their pipes until the next supervisor.
                if let Ok(mut room) = LogRoom::new(settings, bench, theirs, ring) {
                    room.run();
                }
            })?;
        Ok(Self {
            orders,
            bell: Some(bell),
            thread: Some(thread),
        })
    }

    /// Captures nothing: what is left in place when the last lines are written.
    pub fn none() -> Self {
        Self {
            orders: Arc::default(),
            bell: None,
            thread: None,
        }
    }

    /// Captures a pipe.
    pub fn add(&self, source: Source, pipe: OwnedFd, spec: LogSpec) {
        self.order(Order::Add(source, pipe, spec));
    }

    /// Its limits changed.
    pub fn respecify(&self, worker: WorkerId, spec: LogSpec) {
        self.order(Order::Rules(worker, spec));
    }

    /// Reads a worker's pipes to the end and closes them.
    pub fn close(&self, worker: WorkerId) {
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
    ring: UnixStream,
    poll: Poll,
    streams: BTreeMap<u64, (Source, Stream)>,
    next_token: u64,
    ready: BTreeSet<u64>,
    waits: BTreeMap<u64, Moment>,
}

impl LogRoom {
    fn new(
        settings: Settings,
        bench: Workbench,
        orders: Arc<Mutex<VecDeque<Order>>>,
        ring: UnixStream,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(&ring, COMMANDS, EventFlags::IN)?;
        let (streams, ready, waits) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Ok(Self {
            settings,
            bench,
            orders,
            ring,
            poll,
            streams,
            next_token: 1,
            ready,
            waits,
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
            for token in std::mem::take(&mut self.ready) {
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
                    token => {
                        self.ready.insert(token);
                    }
                }
            }
        }
    }

    fn turn(&mut self, token: u64, now: Moment, to_the_end: bool) {
        self.waits.remove(&token);
        let Some((source, stream)) = self.streams.get_mut(&token) else {
            return;
        };
        let before = (stream.failing.clone(), stream.counts.dropped);
        let echo = &mut self.settings.echo;
        let mut unshown = std::mem::take(&mut stream.unshown);
        let turn = stream.pump(&mut self.bench, now, to_the_end, &mut |bytes| {
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
        if stream.failing != before.0 {
            (self.settings.trouble)(
                source.clone(),
                stream.failing.clone(),
                stream.counts.dropped,
            );
        }
        match turn {
            Turn::Dry => {}
            Turn::More => {
                self.ready.insert(token);
            }
            Turn::At(at) => {
                self.waits.insert(token, at);
            }
        }
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
                Some(Order::Add(source, pipe, spec)) => self.add(source, pipe, &spec),
                Some(Order::Rules(worker, spec)) => {
                    for (_, stream) in self
                        .streams
                        .values_mut()
                        .filter(|(source, _)| source.worker == worker)
                    {
                        stream.set_rules(rules(&spec));
                    }
                }
                Some(Order::Close(worker)) => self.close(&worker),
                Some(Order::Reopen) => self
                    .streams
                    .values_mut()
                    .for_each(|(_, stream)| stream.reopen()),
                Some(Order::Finish(tell)) => {
                    let _ = tell.send(self.finish());
                    return true;
                }
            }
        }
    }

    fn add(&mut self, source: Source, pipe: OwnedFd, spec: &LogSpec) {
        let path = path_of(
            &self.settings.log_dir,
            source.worker.fleet.as_str(),
            source.worker.slot.0,
            source.stderr,
        );
        let stream = Stream::new(pipe, path, rules(spec));
        let token = self.next_token;
        self.next_token += 1;
        // Level-triggered would spin on a line without an end.
        if self
            .poll
            .add(stream.pipe(), token, EventFlags::IN | EventFlags::ET)
            .is_ok()
        {
            self.streams.insert(token, (source, stream));
            self.ready.insert(token);
        }
    }

    fn close(&mut self, worker: &WorkerId) {
        let theirs = self
            .streams
            .iter()
            .filter(|(_, (source, _))| source.worker == *worker);
        let tokens: Vec<u64> = theirs.map(|(token, _)| *token).collect();
        for token in tokens {
            self.read_to_end(token);
            if let Some((source, stream)) = self.streams.remove(&token) {
                let _ = self.poll.remove(stream.pipe());
                self.waits.remove(&token);
                self.ready.remove(&token);
                (self.settings.closed)(source);
            }
        }
    }

    /// What waits now is written; whoever goes on writing for ever does not hold up the others.
    fn read_to_end(&mut self, token: u64) {
        let Some((_, stream)) = self.streams.get(&token) else {
            return;
        };
        let mut turns = stream.most_turns();
        loop {
            self.ready.remove(&token);
            self.turn(token, clock::now(), true);
            turns -= 1;
            if !self.ready.contains(&token) || turns == 0 {
                return;
            }
        }
    }

    fn finish(&mut self) -> u64 {
        let tokens: Vec<u64> = self.streams.keys().copied().collect();
        for token in tokens {
            self.read_to_end(token);
        }
        self.streams
            .values()
            .map(|(_, stream)| crate::sys::pipe::waiting(stream.pipe()) as u64)
            .sum()
    }
}

fn rules(spec: &LogSpec) -> Rules {
    Rules {
        rotate_size: spec.rotate_size,
        max_size: spec.max_size,
        drop: spec.drop,
    }
}
