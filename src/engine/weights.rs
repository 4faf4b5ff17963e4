//! How fleets that follow the load share processors that all of them want: by their weights, however many workers each has. Processors are
//! shared among cgroups, and each worker has one of its own: what a fleet is to have is divided among those.

use crate::{
    engine::{
        effect::{Effect, Effects},
        fleet::Fleet,
        slot::Slot,
        supervisor::Supervisor,
    },
    id::{Generation, WorkerId},
};

/// What the kernel gives a cgroup of which nobody said anything (Documentation/admin-guide/cgroup-v2.rst), and takes at most.
const USUAL: u64 = 100;
const MOST: u64 = 10_000;

/// A worker's cgroup and what it weighs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighed {
    /// Whose.
    pub worker: WorkerId,
    /// Which one.
    pub generation: Generation,
    /// `cpu.weight`.
    pub weight: u32,
}

impl Supervisor {
    /// Says again what workers weigh, where that has changed. Together they weigh what they would if nobody had said anything: against
    /// others on the machine nothing is won.
    pub(super) fn weigh(&mut self, out: &mut Effects) {
        let shares = || self.fleets.values().filter_map(Fleet::weighed);
        let workers: u64 = shares().map(|(_, workers)| workers).sum();
        let weights: u64 = shares().map(|(weight, _)| weight).sum();
        let mut changed = Vec::new();
        for fleet in self.fleets.values_mut() {
            let Some((weight, own)) = fleet.weighed() else {
                continue;
            };
            let each = USUAL * weight * workers / (own * weights).max(1);
            let each = each.clamp(1, MOST) as u32;
            for (index, slot) in fleet.slots.iter_mut().filter(|(_, slot)| is_there(slot)) {
                let before = slot.weight.replace((slot.generation, each));
                if before != slot.weight {
                    changed.push(Weighed {
                        worker: WorkerId {
                            fleet: fleet.name.clone(),
                            slot: *index,
                        },
                        generation: slot.generation,
                        weight: each,
                    });
                }
            }
        }
        if !changed.is_empty() {
            out.list.push(Effect::Weigh(changed));
        }
    }
}

fn is_there(slot: &Slot) -> bool {
    slot.process.is_some()
}

impl Fleet {
    /// Its weight and how many there are to share it; none if nobody is, or if its limits say what a worker of it weighs.
    fn weighed(&self) -> Option<(u64, u64)> {
        let spec = self.spec.scale.as_ref()?;
        let limits = &self.spec.process.cgroup_limits;
        if limits.iter().any(|(file, _)| file == "cpu.weight") {
            return None;
        }
        let there = self.slots.values().filter(|slot| is_there(slot)).count();
        (there > 0).then_some((u64::from(spec.weight), there as u64))
    }
}
