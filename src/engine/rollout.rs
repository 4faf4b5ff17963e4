//! Replacing a fleet's workers a few at a time, gated on readiness, stopped (or taken back) at the first failure.
//!
//! ```text
//!   none ──reload, restart──▶ Running ──no outdated worker left──▶ none
//!                                │ a new worker fails
//!                                ▼
//!                             Failed            Running (the revision before), if it is to be taken back
//! ```

use serde::{Deserialize, Serialize};

use crate::{
    config::{
        self,
        spec::{Authority, EtcdSpec, FleetSpec},
    },
    engine::{
        effect::{Effect, Ending, What},
        fleet::{Fleet, Room},
        places::Places,
        slot::{Slot, State},
        spawn::socket_name,
    },
    id::{SlotIndex, WorkerId},
    time::Moment,
};

/// Where a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Rollout {
    /// Under way.
    Running {
        /// Going back to the revision before, after a failure.
        back: bool,
    },
    /// Stopped at this slot; workers that were not reached keep what they have.
    Failed {
        /// Which slot's new worker failed.
        slot: SlotIndex,
    },
}

impl Fleet {
    pub(super) fn is_rolling(&self) -> bool {
        matches!(self.body.rollout, Some(Rollout::Running { .. }))
    }

    /// Must this slot's worker be replaced?
    fn is_outdated(&self, slot: &Slot) -> bool {
        slot.is_live() && (slot.revision != self.revision() || slot.round < self.body.round)
    }

    /// Starts a rollout, or turns a running one to the newest target. A fleet with nothing outdated has none.
    pub(super) fn begin_rollout(&mut self, room: &mut Room<'_>) {
        let workers = self
            .slots
            .values()
            .filter(|slot| self.is_outdated(slot))
            .count();
        self.body.rollout = (workers > 0).then_some(Rollout::Running { back: false });
        // What had failed under the old revision deserves a new try at once.
        let idle: Vec<SlotIndex> = self
            .slots
            .iter()
            .filter(|(_, slot)| !slot.is_live())
            .map(|(index, _)| *index)
            .collect();
        for index in idle {
            self.with_slot(index, room, |slot, _| slot.forgive());
        }
        if workers > 0 {
            self.record(What::RolloutBegan { workers }, room);
        } else {
            // Nobody is left who could need what was listened at before.
            self.keep_sockets(room);
        }
    }

    /// One step of a running rollout.
    pub(super) fn roll(&mut self, places: &Places, room: &mut Room<'_>) {
        let Some(Rollout::Running { back }) = self.body.rollout else {
            return;
        };
        if let Some(failed) = self.failed_newcomer() {
            return self.fail_rollout(failed, back, room);
        }
        let outdated: Vec<SlotIndex> = self.outdated();
        if outdated.is_empty() {
            if self.newcomers_ready(places, room) {
                self.body.rollout = None;
                self.record(What::RolloutDone, room);
                self.keep_sockets(room);
            }
            return;
        }
        self.add_surge(places, room);
        self.replace_some(outdated, room);
    }

    /// Slots in the order in which they are replaced: those that serve nobody first.
    fn outdated(&self) -> Vec<SlotIndex> {
        let mut all: Vec<(bool, SlotIndex)> = self
            .slots
            .iter()
            .filter(|(_, slot)| self.is_outdated(slot))
            .map(|(index, slot)| (slot.is_ready(), *index))
            .collect();
        all.sort();
        all.into_iter().map(|(_, index)| index).collect()
    }

    fn failed_newcomer(&self) -> Option<SlotIndex> {
        let is_new =
            |slot: &Slot| slot.revision == self.revision() && slot.round >= self.body.round;
        let failed = |slot: &Slot| match slot.state {
            State::BackingOff { .. } | State::Failed { .. } => true,
            _ => matches!(
                slot.ending,
                Some(Ending::StartTimeout | Ending::Unhealthy | Ending::Watchdog)
            ),
        };
        self.slots
            .iter()
            .find(|(_, slot)| is_new(slot) && failed(slot))
            .map(|(index, _)| *index)
    }

    fn newcomers_ready(&self, places: &Places, room: &Room<'_>) -> bool {
        let wanted = self.slots.iter().filter(|(index, _)| {
            places.contains(**index) && !room.intent.holds(&self.name, **index)
        });
        wanted.map(|(_, slot)| slot).all(|slot| {
            // Who waits for its lock may do so for good, and has nobody to be replaced.
            slot.waits_cold(&self.spec) || self.counts(slot, room.now) || slot.state == State::Done
        })
    }

    /// Is it ready, and has been for long enough if it is new?
    fn counts(&self, slot: &Slot, now: Moment) -> bool {
        match slot.state {
            State::Running { ready: true, since } => {
                self.is_outdated(slot) || since.after(self.spec.rollout.min_ready) <= now
            }
            _ => false,
        }
    }

    fn add_surge(&mut self, places: &Places, room: &mut Room<'_>) {
        let most = places.len().saturating_add(self.spec.rollout.max_surge);
        for index in places.beyond(self.spec.rollout.max_surge) {
            let free = self
                .slots
                .get(&index)
                .is_none_or(|slot| slot.state == State::Vacant);
            if free && self.live() < most as usize {
                self.start_slot(index, room);
            }
        }
    }

    fn replace_some(&mut self, outdated: Vec<SlotIndex>, room: &mut Room<'_>) {
        let floor = self
            .desired(room.intent)
            .saturating_sub(self.spec.rollout.max_unavailable);
        let mut available = self
            .slots
            .values()
            .filter(|slot| self.counts(slot, room.now))
            .count() as u32;
        for index in outdated {
            let Some(slot) = self.slots.get(&index) else {
                continue;
            };
            if slot.is_ending() {
                continue;
            }
            if slot.is_ready() && available <= floor {
                continue;
            }
            // One that stands by is nobody's to miss, and counts all the same.
            if slot.is_ready() || self.counts(slot, room.now) {
                available = available.saturating_sub(1);
            }
            self.with_slot(index, room, |slot, desk| slot.stop(Ending::Rollout, desk));
        }
    }

    fn fail_rollout(&mut self, slot: SlotIndex, back: bool, room: &mut Room<'_>) {
        let worker = WorkerId {
            fleet: self.name.clone(),
            slot,
        };
        let goes_back = self.spec.rollout.rollback && !back;
        let before = self.previous.take_if(|_| goes_back);
        self.record(
            What::RolloutFailed {
                worker,
                rollback: before.is_some(),
            },
            room,
        );
        match before {
            Some(spec) => {
                self.respecify(spec, room);
                self.previous = None;
                if self.is_rolling() {
                    self.body.rollout = Some(Rollout::Running { back: true });
                }
            }
            None => self.body.rollout = Some(Rollout::Failed { slot }),
        }
    }

    /// What does not belong to a fleet alone is not taken back with it: a node has one cluster and one lease, which are configured for all. If
    /// there is no such lease any more, or its times do not do with it, there is nothing to go back to.
    pub(super) fn fit_previous(&mut self, rank: u16, etcd: Option<&EtcdSpec>) {
        let Some(previous) = &mut self.previous else {
            return;
        };
        previous.rank = rank;
        if let Some(publish) = &mut previous.publish {
            let now = self.spec.publish.as_ref();
            let records = now.and_then(|now| now.records.clone());
            publish.records = publish
                .records
                .take()
                .or(records)
                .filter(|_| etcd.is_some());
        }
        if let Some(scale) = previous.scale.as_mut().filter(|_| etcd.is_none()) {
            scale.cluster_max = None;
        }
        let lock = previous.singleton.as_mut();
        let lease = lock
            .filter(|lock| lock.is_of_cluster())
            .and_then(|lock| lock.lease.as_mut());
        let Some(lease) = lease else {
            return;
        };
        let before = lease.clone();
        if let Some(etcd) = etcd {
            lease.authority = Authority::Cluster(etcd.cluster.clone());
            (lease.epoch, lease.ttl) = (etcd.epoch, etcd.lease_ttl);
        }
        if etcd.is_none() || !lease.is_possible() {
            self.previous = None;
        } else if *lease != before {
            previous.revision = config::revision(previous);
            // Nothing but the lease was changed, which stays.
            self.previous
                .take_if(|previous| previous.revision == self.spec.revision);
        }
    }

    /// The next moment at which a newcomer has been ready for long enough.
    pub(super) fn rollout_deadline(&self) -> Option<Moment> {
        if !self.is_rolling() {
            return None;
        }
        let ripe = |slot: &Slot| match slot.state {
            State::Running { ready: true, since } if !self.is_outdated(slot) => {
                Some(since.after(self.spec.rollout.min_ready))
            }
            _ => None,
        };
        self.slots
            .values()
            .filter_map(ripe)
            .filter(|at| *at > self.looked)
            .min()
    }

    /// Sockets that no worker can use any more are closed.
    pub(super) fn keep_sockets(&self, room: &mut Room<'_>) {
        let names = wanted_sockets(self, &self.spec);
        room.out.list.push(Effect::KeepSockets {
            fleet: self.name.clone(),
            names,
        });
    }
}

fn wanted_sockets(fleet: &Fleet, spec: &FleetSpec) -> Vec<String> {
    let slots: Vec<u32> = fleet.slots.keys().map(|index| index.0).collect();
    let mut names = Vec::new();
    for (name, socket) in &spec.sockets {
        match socket.reuse_port {
            false => names.push(socket_name(&fleet.name, name, socket, 0)),
            true => names.extend(
                slots
                    .iter()
                    .map(|slot| socket_name(&fleet.name, name, socket, *slot)),
            ),
        }
    }
    names
}
