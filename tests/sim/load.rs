//! A fleet that follows the load: what is measured of it, in a story in which the load comes and goes.

use std::collections::BTreeMap;

use leasehold::{
    engine::load::{HostLoad, Sample, SampleOrder, WorkerLoad},
    id::{Generation, WorkerId},
    time::{Moment, Span},
    wire::RowKey,
};

use crate::host::Host;

/// Shares of a core, in percent, each for a while.
const PHASES: [u64; 6] = [5, 97, 50, 99, 20, 2];
const PHASE: Span = Span::secs(25);

/// Processor time by worker, as its generation has used it.
#[derive(Default)]
pub(crate) struct Meters(BTreeMap<WorkerId, (Generation, u64, Moment)>);

impl Meters {
    /// What is measured now. With nobody failing any more there is nothing to do.
    pub(crate) fn measure(
        &mut self,
        host: &Host,
        order: &SampleOrder,
        now: Moment,
        calm: bool,
    ) -> Sample {
        let phase = now.0 / PHASE.as_nanos() % PHASES.len() as u64;
        let share = if calm { 2 } else { PHASES[phase as usize] };
        let mut workers = Vec::new();
        for (key, pid) in &host.by_key {
            let (RowKey::Slot(worker), Some(process)) = (key, host.procs.get(pid)) else {
                continue;
            };
            if !order.fleets.contains(&worker.fleet) {
                continue;
            }
            let fresh = (process.generation, 0, now);
            let (generation, cpu, at) = self.0.entry(worker.clone()).or_insert(fresh);
            if *generation != process.generation {
                (*generation, *cpu, *at) = fresh;
            }
            *cpu += now.since(*at).as_nanos() / 100 * share;
            *at = now;
            workers.push(WorkerLoad {
                worker: worker.clone(),
                generation: process.generation,
                cpu: *cpu,
                memory: Some(10 << 20),
                pressure: None,
            });
        }
        Sample {
            at: now,
            host: Some(HostLoad {
                cores: 8_000,
                idle: if phase == 3 { 100 } else { 4_000 },
                cpu_pressure: None,
                memory_available: 4 << 30,
                memory_total: 8 << 30,
                memory_pressure: None,
            }),
            workers,
            queues: Vec::new(),
        }
    }
}
