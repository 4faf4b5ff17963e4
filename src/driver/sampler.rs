//! Measures what fleets that follow the load are decided by. A thread of its own: a thousand workers are milliseconds.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::mpsc::{Sender, channel},
};

use tokio::sync::mpsc;

use crate::{
    driver::inbox::Inbox,
    engine::load::{QueueLoad, Sample, WorkerLoad},
    id::{FleetName, Generation, WorkerId},
    sys::{
        cgroup::{self, leaf_name},
        clock,
        machine::Machine,
        queues,
        usage::{self, Clock, Place, Usage},
    },
    time::{Moment, Span},
    wire::RowKey,
};

/// Memory changes slowly, and costs more to read.
const MEMORY_EVERY: Span = Span::secs(10);

/// As often as it is decided.
const PRESSURE_EVERY: Span = Span::secs(5);
/// Both are of interest of a fleet as a whole, and so many of its workers at a time speak for the others.
const SPEAKERS: usize = 40;

/// One worker to be measured.
pub(super) struct Subject {
    pub(super) worker: WorkerId,
    pub(super) generation: Generation,
    pub(super) leader: i32,
    /// It has a cgroup of its own.
    pub(super) has_leaf: bool,
}

impl Subject {
    fn load(&self, cpu: u64, memory: Option<u64>, pressure: Option<u32>) -> WorkerLoad {
        WorkerLoad {
            worker: self.worker.clone(),
            generation: self.generation,
            cpu,
            memory,
            pressure,
        }
    }

    fn open(&self, base: Option<&Path>) -> Option<Known> {
        Some(Known {
            worker: self.worker.clone(),
            generation: self.generation,
            clock: Clock::open(&self.place(base))?,
            memory: None,
            pressure: None,
        })
    }

    fn place(&self, base: Option<&Path>) -> Place {
        let base = base.filter(|_| self.has_leaf);
        base.map_or(Place::Group(self.leader), |base| {
            let key = RowKey::Slot(self.worker.clone());
            Place::Leaf(base.join(leaf_name(&key, self.generation)))
        })
    }
}

/// What is to be measured.
pub(super) struct Order {
    pub(super) subjects: Vec<Subject>,
    /// Where cgroups are, if there are any.
    pub(super) base: Option<PathBuf>,
    /// Inodes of each fleet's listening sockets.
    pub(super) sockets: Vec<(FleetName, u64)>,
}

/// What the thread does, in the order in which it is told.
enum Task {
    Measure(Order),
    /// Cgroups, and what they weigh.
    Weigh(Vec<(PathBuf, u32)>),
}

/// The thread, once there is something to do.
#[derive(Default)]
pub(super) struct Sampler {
    tasks: Option<Sender<Task>>,
}

impl Sampler {
    /// Has it measured; what comes of it is handed in.
    pub(super) fn measure(&mut self, order: Order, hand_in: &mpsc::UnboundedSender<Inbox>) {
        self.tell(Task::Measure(order), hand_in);
    }

    /// Has the kernel told what these weigh.
    pub(super) fn weigh(
        &mut self,
        leaves: Vec<(PathBuf, u32)>,
        hand_in: &mpsc::UnboundedSender<Inbox>,
    ) {
        self.tell(Task::Weigh(leaves), hand_in);
    }

    fn tell(&mut self, task: Task, hand_in: &mpsc::UnboundedSender<Inbox>) {
        let tasks = self.tasks.get_or_insert_with(|| {
            let (tasks, received) = channel::<Task>();
            let hand_in = hand_in.clone();
            let body = move || {
                let mut bench = Bench::default();
                for task in received {
                    match task {
                        Task::Measure(order) => {
                            let sample = Box::new(bench.measure(&order));
                            let _ = hand_in.send(Inbox::Sampled(sample));
                        }
                        Task::Weigh(leaves) => {
                            for (leaf, weight) in leaves {
                                cgroup::weigh(&leaf, weight);
                            }
                        }
                    }
                }
            };
            // Without it nothing is measured, and the decisions say so.
            let _ = std::thread::Builder::new()
                .name("sampler".to_owned())
                .spawn(body);
            tasks
        });
        if tasks.send(task).is_err() {
            self.tasks = None;
        }
    }
}

/// Every so many of a fleet's workers are looked at, others each time; all of a small one.
struct Lot {
    stride: usize,
    offset: usize,
}

impl Lot {
    fn of(workers: usize, round: usize) -> Self {
        let stride = workers.div_ceil(SPEAKERS).max(1);
        Self {
            stride,
            offset: round % stride,
        }
    }

    fn falls_on(&self, place: usize) -> bool {
        place % self.stride == self.offset
    }
}

/// A worker that was measured before.
struct Known {
    worker: WorkerId,
    generation: Generation,
    clock: Clock,
    /// As of when it was last its turn.
    memory: Option<u64>,
    pressure: Option<u32>,
}

/// What is kept from one measurement to the next.
#[derive(Default)]
struct Bench {
    machine: Machine,
    /// In the order of the subjects, which is that of their names.
    known: Vec<Known>,
    memory_at: Option<Moment>,
    pressure_at: Option<Moment>,
    /// Counts measurements in which somebody spoke for others.
    round: usize,
}

/// Is it time again?
fn due(last: &mut Option<Moment>, every: Span, now: Moment) -> bool {
    let due = last.is_none_or(|last| last.after(every) <= now);
    if due {
        *last = Some(now);
    }
    due
}

impl Bench {
    fn measure(&mut self, order: &Order) -> Sample {
        let at = clock::now();
        let memory_due = due(&mut self.memory_at, MEMORY_EVERY, at);
        let pressure_due = due(&mut self.pressure_at, PRESSURE_EVERY, at);
        // Others each time it is somebody's turn.
        self.round += usize::from(memory_due || pressure_due);
        let base = order.base.as_deref();
        let groups = groups_of(&order.subjects);
        let mut before = std::mem::take(&mut self.known).into_iter().peekable();
        let mut workers = Vec::with_capacity(order.subjects.len());
        let same_fleet = |a: &Subject, b: &Subject| a.worker.fleet == b.worker.fleet;
        for fleet in order.subjects.chunk_by(same_fleet) {
            let lot = Lot::of(fleet.len(), self.round);
            for (place, subject) in fleet.iter().enumerate() {
                if !subject.has_leaf {
                    let usage = groups.get(&subject.leader).copied().unwrap_or_default();
                    workers.extend(usage.cpu.map(|cpu| subject.load(cpu, usage.memory, None)));
                    continue;
                }
                while before.next_if(|one| one.worker < subject.worker).is_some() {}
                let is_it = |one: &Known| {
                    (&one.worker, one.generation) == (&subject.worker, subject.generation)
                };
                let known = before.next_if(is_it).or_else(|| subject.open(base));
                let Some((mut known, cpu)) = known.and_then(|known| {
                    let cpu = known.clock.read()?;
                    Some((known, cpu))
                }) else {
                    continue;
                };
                if (memory_due || pressure_due) && lot.falls_on(place) {
                    let leaf = subject.place(base);
                    if memory_due {
                        known.memory = usage::memory_of(&leaf);
                    }
                    if pressure_due {
                        known.pressure = usage::pressure_of(&leaf);
                    }
                }
                workers.push(subject.load(cpu, known.memory, known.pressure));
                self.known.push(known);
            }
        }
        Sample {
            at,
            host: self.machine.read(),
            workers,
            queues: queues_of(&order.sockets),
        }
    }
}

/// What workers use that have no cgroup, with all their living children, by leader.
fn groups_of(subjects: &[Subject]) -> BTreeMap<i32, Usage> {
    let leaders = subjects.iter().filter(|subject| !subject.has_leaf);
    let leaders: Vec<i32> = leaders.map(|subject| subject.leader).collect();
    let places: Vec<Place> = leaders.iter().copied().map(Place::Group).collect();
    leaders.into_iter().zip(usage::of_all(&places)).collect()
}

/// All sockets of a fleet together; a fleet none of whose sockets is found is left out.
fn queues_of(sockets: &[(FleetName, u64)]) -> Vec<QueueLoad> {
    if sockets.is_empty() {
        return Vec::new();
    }
    let all = queues::all().unwrap_or_default();
    let mut fleets: BTreeMap<&FleetName, (u32, u32)> = BTreeMap::new();
    for (fleet, inode) in sockets {
        if let Some(queue) = all.get(inode) {
            let (waiting, backlog) = fleets.entry(fleet).or_default();
            *waiting = waiting.saturating_add(queue.waiting);
            *backlog = backlog.saturating_add(queue.backlog);
        }
    }
    let loads = fleets
        .into_iter()
        .map(|(fleet, (waiting, backlog))| QueueLoad {
            fleet: fleet.clone(),
            waiting,
            backlog,
        });
    loads.collect()
}

/// The inode by which the kernel knows a socket.
pub(super) fn inode_of(socket: &OwnedFd) -> Option<u64> {
    rustix::fs::fstat(socket).ok().map(|stat| stat.st_ino)
}
