//! Measures what fleets that follow the load are decided by. A thread of its own: a thousand workers are milliseconds.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::mpsc::{Sender, channel},
};

use tokio::sync::mpsc;

use crate::{
    driver::inbox::Inbox,
    engine::load::{QueueLoad, Sample, WorkerLoad},
    id::{FleetName, Generation, WorkerId},
    sys::{
        cgroup, clock,
        machine::Machine,
        queues,
        usage::{self, Clock, Place},
    },
    time::{Moment, Span},
};

/// Memory changes slowly, and costs more to read.
const MEMORY_EVERY: Span = Span::secs(10);

/// As often as it is decided.
const PRESSURE_EVERY: Span = Span::secs(5);

/// One worker to be measured.
pub(super) struct Subject {
    pub(super) worker: WorkerId,
    pub(super) generation: Generation,
    pub(super) leader: i32,
    /// Its cgroup, if it has one.
    pub(super) leaf: Option<PathBuf>,
}

impl Subject {
    fn place(&self) -> Place {
        self.leaf
            .clone()
            .map_or(Place::Group(self.leader), Place::Leaf)
    }
}

/// What is to be measured.
pub(super) struct Order {
    pub(super) subjects: Vec<Subject>,
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

/// What is kept from one measurement to the next.
#[derive(Default)]
struct Bench {
    machine: Machine,
    clocks: BTreeMap<WorkerId, (Generation, Clock)>,
    memories: BTreeMap<WorkerId, u64>,
    memory_at: Option<Moment>,
    pressures: BTreeMap<WorkerId, u32>,
    pressure_at: Option<Moment>,
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
        let mut clocks = BTreeMap::new();
        let mut workers = Vec::with_capacity(order.subjects.len());
        for subject in &order.subjects {
            let known = self.clocks.remove(&subject.worker);
            let known = known.filter(|(generation, _)| *generation == subject.generation);
            let clock = known
                .map(|(_, clock)| clock)
                .or_else(|| Clock::open(&subject.place()));
            let Some(clock) = clock else {
                continue;
            };
            if memory_due && let Some(memory) = usage::memory_of(&subject.place()) {
                self.memories.insert(subject.worker.clone(), memory);
            }
            if pressure_due && let Some(pressure) = usage::pressure_of(&subject.place()) {
                self.pressures.insert(subject.worker.clone(), pressure);
            }
            if let Some(cpu) = clock.read() {
                workers.push(WorkerLoad {
                    worker: subject.worker.clone(),
                    generation: subject.generation,
                    cpu,
                    memory: self.memories.get(&subject.worker).copied(),
                    pressure: self.pressures.get(&subject.worker).copied(),
                });
                clocks.insert(subject.worker.clone(), (subject.generation, clock));
            }
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
