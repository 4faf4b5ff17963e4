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

/// What is kept from one measurement to the next.
#[derive(Default)]
struct Bench {
    machine: Machine,
    /// In the order of the subjects, which is that of their names.
    clocks: Vec<(WorkerId, Generation, Clock)>,
    memories: BTreeMap<WorkerId, u64>,
    memory_at: Option<Moment>,
    pressures: BTreeMap<WorkerId, u32>,
    pressure_at: Option<Moment>,
    /// Counts measurements.
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
        if memory_due {
            self.memories.clear();
        }
        if pressure_due {
            self.pressures.clear();
        }
        self.round += 1;
        let base = order.base.as_deref();
        let mut sizes: BTreeMap<&FleetName, usize> = BTreeMap::new();
        for subject in &order.subjects {
            *sizes.entry(&subject.worker.fleet).or_default() += 1;
        }
        let lots: BTreeMap<&FleetName, Lot> = sizes
            .into_iter()
            .map(|(fleet, workers)| (fleet, Lot::of(workers, self.round)))
            .collect();
        let mut known = std::mem::take(&mut self.clocks).into_iter().peekable();
        let groups = groups_of(&order.subjects);
        let mut clocks = Vec::with_capacity(order.subjects.len());
        let mut workers = Vec::with_capacity(order.subjects.len());
        for (place, subject) in order.subjects.iter().enumerate() {
            let load = |cpu, memory, pressure| WorkerLoad {
                worker: subject.worker.clone(),
                generation: subject.generation,
                cpu,
                memory,
                pressure,
            };
            if !subject.has_leaf {
                let usage = groups.get(&subject.leader).copied().unwrap_or_default();
                workers.extend(usage.cpu.map(|cpu| load(cpu, usage.memory, None)));
                continue;
            }
            while known
                .next_if(|(worker, ..)| *worker < subject.worker)
                .is_some()
            {}
            let same = |(worker, generation, _): &(WorkerId, Generation, Clock)| {
                *worker == subject.worker && *generation == subject.generation
            };
            let clock = known
                .next_if(same)
                .map(|(.., clock)| clock)
                .or_else(|| Clock::open(&subject.place(base)));
            let Some((clock, cpu)) = clock.and_then(|clock| {
                let cpu = clock.read()?;
                Some((clock, cpu))
            }) else {
                continue;
            };
            let speaks = lots[&subject.worker.fleet].falls_on(place);
            if memory_due
                && speaks
                && let Some(memory) = usage::memory_of(&subject.place(base))
            {
                self.memories.insert(subject.worker.clone(), memory);
            }
            if pressure_due
                && speaks
                && let Some(pressure) = usage::pressure_of(&subject.place(base))
            {
                self.pressures.insert(subject.worker.clone(), pressure);
            }
            let memory = self.memories.get(&subject.worker).copied();
            let pressure = self.pressures.get(&subject.worker).copied();
            workers.push(load(cpu, memory, pressure));
            clocks.push((subject.worker.clone(), subject.generation, clock));
        }
        self.clocks = clocks;
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
