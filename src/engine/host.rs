//! What the machine has to give to fleets that want to grow, and who gets it.

use crate::{
    engine::{
        load::HostLoad,
        meter::{STALE, WHOLE, smooth},
        scale::Block,
        status::HostStatus,
    },
    time::Moment,
};

/// So much of a core stays idle at least, in thousandths.
const RESERVE_MIN: u64 = 250;
/// So much memory stays free at least, in bytes.
const MEMORY_RESERVE_MIN: u64 = 64 << 20;
/// With more pressure than this (PSI some avg10, in hundredths of a percent) there is not enough of it.
const PRESSURE_MAX: u32 = 1_000;

/// The machine, smoothed. A new supervisor finds it out anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Host {
    seen: Option<Moment>,
    cores: u64,
    /// In thousandths of a core.
    idle: u64,
    cpu_pressure: Option<u32>,
    memory_available: u64,
    memory_total: u64,
    memory_pressure: Option<u32>,
}

impl Host {
    pub(super) fn read(&mut self, at: Moment, load: &HostLoad) {
        let idle = u64::from(load.idle);
        self.idle = match self.seen {
            Some(before) if before.after(STALE) > at => smooth(self.idle, idle, at.since(before)),
            // What was long ago means nothing any more.
            _ => idle,
        };
        self.seen = Some(at);
        self.cores = u64::from(load.cores);
        self.cpu_pressure = load.cpu_pressure;
        self.memory_available = load.memory_available;
        self.memory_total = load.memory_total;
        self.memory_pressure = load.memory_pressure;
    }

    pub(super) fn is_known(&self, now: Moment) -> bool {
        self.seen.is_some_and(|seen| seen.after(STALE) > now)
    }

    /// Idle processors, in thousandths of a core, if that is known.
    pub(super) fn idle(&self, now: Moment) -> Option<u32> {
        self.is_known(now).then_some(self.idle as u32)
    }

    pub(super) fn status(&self, share: u32, now: Moment) -> Option<HostStatus> {
        Some(HostStatus {
            idle: self.idle(now)?,
            reserve: self.reserve(share) as u32,
            memory: self.memory_available,
        })
    }

    /// What stays idle, in thousandths of a core.
    pub(super) fn reserve(&self, share: u32) -> u64 {
        (self.cores * u64::from(share) / WHOLE).max(RESERVE_MIN)
    }

    /// Has it nothing to give to a fleet that waits so much of its time for a processor (the machine's word where its own is not known)? What
    /// its workers use then says nothing of what they need.
    pub(super) fn starves(&self, pressure: Option<u32>, share: u32, now: Moment) -> bool {
        let pressed = pressure
            .or(self.cpu_pressure)
            .is_none_or(|pressure| pressure >= PRESSURE_MAX);
        self.is_known(now) && self.idle < self.reserve(share) && pressed
    }
}

/// A fleet that wants to grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// It has so many.
    pub(super) workers: u32,
    /// It wants so many more.
    pub(super) more: u32,
    pub(super) weight: u32,
    /// What one of its workers can use, in thousandths of a core.
    pub(super) worker_cores: u32,
    /// What one of its workers takes, in bytes.
    pub(super) memory: u64,
    /// It is pressed for processors, and not for something else.
    pub(super) pressed: bool,
}

/// What a fleet gets: so many, and why not more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) workers: u32,
    pub(super) block: Option<Block>,
}

/// What is to be given away, at one decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reserves {
    /// Of the processors, in parts per million.
    pub(super) cpu: u32,
    /// Of the memory, in parts per million.
    pub(super) memory: u32,
    /// What our own scaled workers use now, in thousandths of a core.
    pub(super) used: u64,
    /// Weights of fleets that are pressed for processors and ask for nothing: they cannot grow, and use what they have.
    pub(super) others: u64,
}

impl Host {
    /// One worker at a time, to whoever has fewest for its weight, while processors are idle or a fleet has less than it is entitled to:
    /// somebody who comes late to a full machine would else get nothing for ever.
    pub(super) fn grant(&self, wants: &[Want], reserves: Reserves, now: Moment) -> Vec<Grant> {
        let mut grants = vec![Grant::default(); wants.len()];
        if !self.is_known(now) {
            for grant in &mut grants {
                grant.block = Some(Block::HostCpu);
            }
            return grants;
        }
        let reserve = self.reserve(reserves.cpu);
        let mut free = self.idle.checked_sub(reserve);
        let mut first = true;
        let others = self
            .cores
            .saturating_sub(self.idle)
            .saturating_sub(reserves.used);
        let ours = self.cores.saturating_sub(reserve).saturating_sub(others);
        let pressed = wants.iter().filter(|want| want.pressed);
        let weights = reserves.others + pressed.map(|want| u64::from(want.weight)).sum::<u64>();
        let entitled = |want: &Want| {
            let all = if want.pressed {
                weights
            } else {
                weights + u64::from(want.weight)
            };
            let share =
                ours * u64::from(want.weight) / all.max(1) / u64::from(want.worker_cores.max(1));
            share.max(1)
        };
        let memory_floor = (self.memory_total / 1_000 * u64::from(reserves.memory) / 1_000)
            .max(MEMORY_RESERVE_MIN);
        let mut memory = self.memory_available;
        let memory_pressed = self
            .memory_pressure
            .is_some_and(|pressure| pressure > PRESSURE_MAX);
        loop {
            let wanting = wants.iter().zip(&grants).enumerate();
            let wanting = wanting
                .filter(|(_, (want, grant))| grant.block.is_none() && grant.workers < want.more);
            let poorest = wanting.min_by_key(|(_, (want, grant))| {
                u64::from(want.workers + grant.workers) * WHOLE / u64::from(want.weight.max(1))
            });
            let Some((index, (want, grant))) = poorest else {
                return grants;
            };
            let has = u64::from(want.workers + grant.workers);
            let cost = u64::from(want.worker_cores);
            // With anything to spare at all one may start: that it needs a whole core is a guess.
            let spare = free.is_some_and(|free| first || free >= cost);
            let block = if memory_pressed || memory < memory_floor + want.memory {
                Some(Block::HostMemory)
            } else if !spare && has >= entitled(want) {
                Some(Block::HostCpu)
            } else {
                None
            };
            match block {
                Some(_) => grants[index].block = block,
                None => {
                    first = false;
                    free = free.map(|free| free.saturating_sub(cost));
                    memory -= want.memory;
                    grants[index].workers += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cores: u32, idle: u32, memory_available: u64) -> Host {
        let mut host = Host::default();
        host.read(
            Moment(1),
            &HostLoad {
                cores,
                idle,
                cpu_pressure: None,
                memory_available,
                memory_total: 8 << 30,
                memory_pressure: None,
            },
        );
        host
    }

    const RESERVES: Reserves = Reserves {
        cpu: 100_000,
        memory: 100_000,
        used: 0,
        others: 0,
    };

    fn want(workers: u32, more: u32) -> Want {
        Want {
            workers,
            more,
            weight: 100,
            worker_cores: 1_000,
            memory: 1 << 20,
            pressed: true,
        }
    }

    fn granted(host: &Host, wants: &[Want], used: u64) -> Vec<u32> {
        let reserves = Reserves { used, ..RESERVES };
        let grants = host.grant(wants, reserves, Moment(1));
        grants.iter().map(|grant| grant.workers).collect()
    }

    #[test]
    fn idle_processors_are_shared_by_weight_and_used_once() {
        let host = host(8_000, 5_000, 4 << 30);
        // 5 cores idle, 0.8 in reserve: four more.
        assert_eq!(granted(&host, &[want(1, 9)], 1_000), [4]);
        assert_eq!(granted(&host, &[want(1, 9), want(1, 9)], 2_000), [2, 2]);
        let heavy = Want {
            weight: 300,
            ..want(1, 9)
        };
        assert_eq!(granted(&host, &[heavy, want(1, 9)], 2_000), [3, 1]);
    }

    #[test]
    fn a_full_machine_gives_what_a_late_one_is_entitled_to() {
        let host = host(4_000, 0, 4 << 30);
        // The first uses everything; the second has one of the 1.8 that would be its own.
        assert_eq!(granted(&host, &[want(3, 2), want(1, 2)], 4_000), [0, 0]);
        let host = super::tests::host(8_000, 0, 4 << 30);
        assert_eq!(granted(&host, &[want(7, 2), want(1, 4)], 8_000), [0, 2]);
    }

    #[test]
    fn one_that_cannot_grow_keeps_what_it_is_entitled_to() {
        let host = host(4_000, 0, 4 << 30);
        // Four cores, all used by one of the same weight that is as large as it may be: 1.8 are the late one's.
        let others = Reserves {
            used: 4_000,
            others: 100,
            ..RESERVES
        };
        let grants = host.grant(&[want(1, 2)], others, Moment(1));
        assert_eq!(grants[0].block, Some(Block::HostCpu));
        let alone = Reserves {
            others: 0,
            ..others
        };
        assert_eq!(host.grant(&[want(1, 2)], alone, Moment(1))[0].workers, 2);
    }

    #[test]
    fn memory_and_ignorance_block() {
        let scarce = host(8_000, 8_000, 500 << 20);
        let grants = scarce.grant(&[want(1, 2)], RESERVES, Moment(1));
        assert_eq!(grants[0].block, Some(Block::HostMemory));
        let late = Moment(1).after(STALE);
        let grants = scarce.grant(&[want(1, 2)], RESERVES, late);
        assert_eq!(grants[0].block, Some(Block::HostCpu));
    }
}
