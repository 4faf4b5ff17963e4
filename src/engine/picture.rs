//! The engine as people and programs see it.

use std::collections::BTreeSet;

use crate::{
    engine::{
        fleet::{Fleet, Stance},
        places::Places,
        publish::PublishStatus,
        rollout::Rollout,
        slot::{Slot, State},
        status::{
            ExitView, FleetStatus, GateStatus, LockStatus, ScaleStatus, Status, UnitsStatus,
            WorkerStatus,
        },
        supervisor::Supervisor,
    },
    id::{SlotIndex, WorkerId},
    time::Moment,
    wire::Stopping,
};

impl Supervisor {
    /// The picture for people and programs.
    pub fn status(&self, now: Moment) -> Status {
        Status {
            node: self.facts.node.clone(),
            stopping: self.asked.stopping,
            drained: self.intent.node.clone(),
            revision: self.config.revision,
            rejected: self.rejected.clone(),
            cluster: self.cluster_status(now),
            fleets: self
                .fleets
                .values()
                .map(|fleet| self.fleet_status(fleet, now))
                .collect(),
        }
    }

    fn fleet_status(&self, fleet: &Fleet, now: Moment) -> FleetStatus {
        let (desired, ready) = (fleet.desired(&self.intent), fleet.ready());
        let done = fleet.done();
        let standby = fleet.standby();
        let held = self.intent.fleet_hold(&fleet.name);
        let is_held = self.intent.holds(&fleet.name, SlotIndex(0));
        let cron = fleet.cron_status(is_held);
        let waits = self.stance(&fleet.name) == Stance::Wait && fleet.live() == 0;
        let state = match () {
            () if fleet.removed || self.asked.stopping != Stopping::No => "draining",
            () if held.is_some() => "held",
            () if let Some(job) = &cron => match &job.run {
                Some(run) if run.pausing => "retrying",
                Some(_) => "running",
                None if job.waiting > 0 => "waiting",
                None if is_held => "held",
                None => "idle",
            },
            () if done > 0 && ready + done >= desired && ready == 0 => "done",
            () if ready + done >= desired => "ok",
            () if standby > 0 && ready + done + standby >= desired => "standby",
            () if waits => "waiting",
            () if fleet.slots.values().any(|slot| {
                matches!(slot.state, State::BackingOff { .. } | State::Failed { .. })
            }) =>
            {
                "degraded"
            }
            () => "starting",
        };
        let size = fleet.size(&self.intent);
        // Slots are shown as held whether or not they were ever used.
        let shown = match &fleet.body.scale {
            Some(_) => fleet.places(&self.intent),
            None => Places::First(fleet.spec.workers.max(size)),
        };
        let held_slots = shown
            .iter()
            .filter(|index| self.intent.holds(&fleet.name, *index));
        let indexes: BTreeSet<SlotIndex> = fleet.slots.keys().copied().chain(held_slots).collect();
        let unused = Slot::default();
        let workers = indexes.into_iter().filter_map(|index| {
            let slot = fleet.slots.get(&index).unwrap_or(&unused);
            self.worker_status(fleet, index, slot, &shown, now)
        });
        FleetStatus {
            name: fleet.name.clone(),
            state,
            desired,
            ready,
            done,
            configured: fleet.spec.workers,
            held: held.map(|hold| hold.who.clone()),
            rollout: fleet.body.rollout.map(|rollout| match rollout {
                Rollout::Running { back: false } => "running",
                Rollout::Running { back: true } => "rolling-back",
                Rollout::Failed { .. } => "failed",
            }),
            round: fleet.body.round,
            revision: fleet.revision(),
            lock: self.lock_status(fleet, now),
            cron,
            scale: self.scale_status(fleet, now),
            publish: self.publish_status(fleet),
            workers: workers.collect(),
        }
    }

    /// Files are told of by the fleet, records by the cluster.
    fn publish_status(&self, fleet: &Fleet) -> Option<PublishStatus> {
        let mut status = fleet.publish_status()?;
        let records = self.cluster.as_ref().filter(|_| !fleet.removed);
        let records = records.map(|cluster| cluster.targets(&fleet.name));
        status.targets.extend(records.unwrap_or_default());
        Some(status)
    }

    fn scale_status(&self, fleet: &Fleet, now: Moment) -> Option<ScaleStatus> {
        let spec = fleet.spec.scale.clone()?;
        let scaling = fleet.body.scale.as_ref()?;
        let last = scaling.decisions.back();
        Some(ScaleStatus {
            members: scaling.members.len() as u32,
            cluster: spec.cluster_max.map(|max| UnitsStatus {
                max,
                held: scaling.units.share.held,
                taken: scaling.units.share.taken,
            }),
            floor: self.intent.sizes.get(&fleet.name).cloned(),
            paused: self.intent.pauses.get(&fleet.name).cloned(),
            utilization: last.and_then(|decision| decision.utilization),
            recommended: last.map(|decision| decision.recommended),
            penalty: scaling.penalty,
            waiting: scaling.queue.read.map(|_| scaling.queue.waiting),
            source: fleet.inquiry.said().cloned(),
            blocked: scaling.blocked,
            blocks: scaling.blocks.clone(),
            pressure: last.and_then(|decision| decision.pressure),
            host: self.host.status(self.config.node.cpu_reserve, now),
            decisions: scaling.decisions.iter().cloned().collect(),
            spec,
        })
    }

    fn worker_status(
        &self,
        fleet: &Fleet,
        index: SlotIndex,
        slot: &Slot,
        shown: &Places,
        now: Moment,
    ) -> Option<WorkerStatus> {
        let held =
            self.intent.holds(&fleet.name, index) && !slot.is_live() && shown.contains(index);
        let is_warm = slot.is_warm() && matches!(slot.state, State::Running { .. });
        let waits = is_warm || slot.waits_cold(&fleet.spec);
        if slot.state == State::Vacant && !held && !waits {
            return None;
        }
        Some(WorkerStatus {
            id: WorkerId {
                fleet: fleet.name.clone(),
                slot: index,
            },
            generation: slot.generation,
            pid: slot.process.map(|alive| alive.pid),
            state: match () {
                () if held => "held",
                () if waits => "standby",
                () => slot.word(),
            },
            ready: slot.is_ready(),
            since: slot.process.map(|alive| alive.since),
            restarts: slot.restarts,
            containment: slot.containment(),
            last_exit: slot.last_exit.map(|exit| ExitView {
                status: exit.status,
                at: exit.at,
                ending: exit.ending,
            }),
            next_start: slot.start_at(),
            ending: slot.ending,
            grace: match slot.state {
                State::Draining { kill_at, .. } => Some(now.until(kill_at)),
                _ => None,
            },
            revision: slot.revision,
            round: slot.round,
            said: slot.said.clone(),
        })
    }

    /// A fleet whose lock was configured away may still have it.
    fn lock_status(&self, fleet: &Fleet, now: Moment) -> Option<LockStatus> {
        let sought = || fleet.slots.values().find_map(|slot| slot.gate.sought());
        let spec = fleet.spec.singleton.as_ref().or_else(sought)?;
        let stance = self.stance(&fleet.name);
        let unused = Slot::default();
        let size = fleet.spec.workers.max(fleet.size(&self.intent));
        let used = fleet
            .slots
            .iter()
            .filter(|(_, slot)| slot.gate.sought().is_some());
        let indexes: BTreeSet<SlotIndex> = (0..size)
            .map(SlotIndex)
            .chain(used.map(|(index, _)| *index))
            .collect();
        let gate = |index: SlotIndex| -> (SlotIndex, GateStatus) {
            let slot = fleet.slots.get(&index).unwrap_or(&unused);
            let cause = fleet.shut_cause(index, slot, stance, &self.intent, now);
            (index, slot.gate.status(cause))
        };
        Some(LockStatus {
            name: spec.lock.clone(),
            scope: match spec.is_of_cluster() {
                true => "cluster",
                false => "node",
            },
            flock: spec.flock.clone(),
            slots: spec.slots,
            gates: indexes.into_iter().map(gate).collect(),
        })
    }
}
