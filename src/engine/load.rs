//! What was measured of workers, queues and the machine, as the engine hears of it.

use crate::{
    id::{FleetName, Generation, WorkerId},
    time::Moment,
};

/// What is to be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleOrder {
    /// Workers of these fleets, their sockets' queues, and the machine.
    pub fleets: Vec<FleetName>,
}

/// What was measured, as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Moment,
    /// The machine; none: it could not be read, or not for an interval that means anything.
    pub host: Option<HostLoad>,
    /// Workers that could be read.
    pub workers: Vec<WorkerLoad>,
    /// Fleets whose listening sockets could be asked, all sockets of a fleet together.
    pub queues: Vec<QueueLoad>,
}

/// The machine, as far as it is ours to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLoad {
    /// What we may use (affinity, `cpu.max`), in thousandths of a core.
    pub cores: u32,
    /// Of that nobody used since the sample before, in thousandths of a core; stolen time counts as used, waiting for disks does not.
    pub idle: u32,
    /// Time in which somebody waited for a processor (PSI some avg10), in hundredths of a percent.
    pub cpu_pressure: Option<u32>,
    /// Memory that is to be had without swapping, in bytes.
    pub memory_available: u64,
    /// All memory, in bytes.
    pub memory_total: u64,
    /// Time in which somebody waited for memory (PSI some avg10), in hundredths of a percent.
    pub memory_pressure: Option<u32>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Which.
    pub worker: WorkerId,
    /// Which generation.
    pub generation: Generation,
    /// Processor time that it has used up to now, with all its children, in nanoseconds.
    pub cpu: u64,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Time in which something of it waited for a processor (PSI some avg10 of its cgroup), in hundredths of a percent.
    pub pressure: Option<u32>,
}

/// The accept queues of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueLoad {
    /// Whose.
    pub fleet: FleetName,
    /// Connections that nobody has accepted yet.
    pub waiting: u32,
    /// So many may wait.
    pub backlog: u32,
}
