//! An operator has a lock given to whoever waits for it: its worker is ended as by a stop, and we do not take the lock back at once.
//!
//! ```text
//!   open ──asked──▶ releasing ──nothing of the worker is left──▶ yielding ──somebody took it, or 2 s──▶ sought
//! ```
//!
//! Nobody can be seen to wait for a lock, so whether anybody does is found out by waiting: longer than the second after which a waiter looks
//! without a sign.

use serde::{Deserialize, Serialize};

use crate::{
    config::fault::nearest,
    engine::{
        command::{By, Denial, ReleasedGate, Reply},
        effect::{Effect, Effects, Ending, What},
        fleet::{Fleet, Room},
        gate::Pass,
        slot::{Desk, Slot},
        supervisor::Supervisor,
    },
    exit::ExitCode,
    id::{FleetName, SlotIndex, WorkerId},
    time::{Moment, Span},
};

/// Whoever waits has this long to take it before we do.
pub const YIELDS_FOR: Span = Span::secs(2);
/// A row is small, and so is the name of whoever asked.
const WHO_MAX: usize = 100;

/// How far it is; part of the slot's row, so that a successor goes on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Release {
    /// Its worker is being ended.
    Asked {
        /// By whom.
        who: String,
    },
    /// It was given back, and is not sought before then unless somebody else has it.
    Yields {
        /// By whom it was asked.
        who: String,
        /// Until when.
        until: Moment,
        /// What was given back.
        given: Given,
    },
}

/// A lock that was given back, by which one that is somebody else's since is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Ours, which is over.
    pub fence: u64,
    /// Its file, if the lock has several.
    pub path: Option<String>,
}

impl Release {
    /// Who asked for it.
    pub(super) fn who(&self) -> &str {
        match self {
            Self::Asked { who } | Self::Yields { who, .. } => who,
        }
    }
}

impl Slot {
    /// Ends the worker, so that its lock can be given to somebody else. Only while that is open.
    pub(super) fn release_gate(&mut self, fence: u64, who: &str, desk: &mut Desk<'_>) {
        let who: String = who.chars().take(WHO_MAX).collect();
        let what = What::GateReleased {
            fence,
            who: who.clone(),
        };
        desk.record(self.generation, what);
        self.gate.release = Some(Release::Asked { who });
        if !self.is_warm() {
            self.stop(Ending::Released, desk);
        }
    }

    /// The fence of a lock that can be given away, or is just being.
    fn fence_to_release(&self) -> Option<u64> {
        match &self.gate.release {
            Some(Release::Yields { given, .. }) => Some(given.fence),
            Some(Release::Asked { .. }) | None => self.gate.fence().filter(|_| self.gate.is_open()),
        }
    }

    /// It was given back as asked: whoever waits has his turn.
    pub(super) fn yield_gate(&mut self, who: String, pass: Pass, desk: &mut Desk<'_>) {
        let slots = self.gate.sought().map_or(1, |spec| spec.slots);
        let given = Given {
            fence: pass.fence,
            path: (slots > 1).then_some(pass.path),
        };
        self.gate.release = Some(Release::Yields {
            who,
            until: desk.now.after(YIELDS_FOR),
            given,
        });
        self.watch_given(desk);
    }

    /// Has it said when somebody else takes what we gave back.
    fn watch_given(&self, desk: &mut Desk<'_>) {
        if let (Some(Release::Yields { given, .. }), Some(spec)) =
            (&self.gate.release, self.gate.sought())
        {
            desk.out.list.push(Effect::YieldGate {
                worker: desk.worker.clone(),
                spec: spec.clone(),
                given: given.clone(),
            });
        }
    }

    /// Somebody else has it, or nobody wants it: it is sought like any other.
    pub(super) fn end_yielding(&mut self, desk: &mut Desk<'_>) {
        if let Some(Release::Yields { .. }) = self.gate.release {
            self.gate.release = None;
            self.seek_gate(desk);
        }
    }

    /// When nobody has taken it by then, nobody waits for it.
    pub(super) fn yields_until(&self) -> Option<Moment> {
        match self.gate.release {
            Some(Release::Yields { until, .. }) => Some(until),
            Some(Release::Asked { .. }) | None => None,
        }
    }

    /// After a supervisor's death, the keeper not holding the lock: true if it was given back as asked.
    pub(super) fn resume_yielding(&mut self, desk: &mut Desk<'_>) -> bool {
        if let Some(Release::Asked { who }) = &self.gate.release {
            // Given back in a packet that arrived, before the one with the row, which did not.
            self.gate.release = Some(Release::Yields {
                who: who.clone(),
                until: desk.now.after(YIELDS_FOR),
                given: Given::default(),
            });
        }
        self.watch_given(desk);
        self.gate.release.is_some()
    }

    /// After a supervisor's death, the keeper holding the lock: what was not given back is given back anew.
    pub(super) fn take_back_yielding(&mut self) {
        if let Some(Release::Yields { who, .. }) = &self.gate.release {
            let who = who.clone();
            self.gate.release = Some(Release::Asked { who });
        }
    }
}

impl Fleet {
    /// What one slot has given back to others is not for its neighbours, which may wait for a lock too.
    pub(super) fn stand_back(&mut self, index: SlotIndex, room: &mut Room<'_>) {
        let release = |slot: &Slot| slot.gate.release.clone();
        let Some(release @ Release::Yields { .. }) = self.slots.get(&index).and_then(release)
        else {
            return;
        };
        let waits = |slot: &Slot| slot.gate.waits() && slot.gate.release.is_none();
        let slots = self.slots.iter().filter(|(_, slot)| waits(slot));
        let waiting: Vec<SlotIndex> = slots.map(|(index, _)| *index).collect();
        for index in waiting {
            self.with_slot(index, room, |slot, desk| {
                slot.gate.release = Some(release.clone());
                slot.watch_given(desk);
            });
        }
    }
}

/// What operators ask of locks.
impl Supervisor {
    /// Gives the locks of a fleet, or of one of its slots, to whoever waits for them.
    pub(super) fn release(
        &mut self,
        name: &str,
        slot: Option<u32>,
        by: &By,
        now: Moment,
        out: &mut Effects,
    ) -> Result<Reply, Denial> {
        self.not_stopping()?;
        let fleet = self.singleton(name)?;
        let (name, size) = (fleet.name.clone(), fleet.size(&self.intent));
        let lock_slots = fleet.slots.keys().map(|index| index.0 + 1).max();
        let known = size.max(fleet.spec.workers).max(lock_slots.unwrap_or(0));
        if let Some(slot) = slot.filter(|slot| *slot >= known) {
            let why = format!(
                "{name}/{slot} does not exist; there is {name}/0{}",
                match known {
                    0 | 1 => String::new(),
                    more => format!(" to {name}/{}", more - 1),
                }
            );
            return Err(Denial::new(ExitCode::UnknownName, why));
        }
        let asked = |index: &SlotIndex| slot.is_none_or(|slot| slot == index.0);
        let ours: Vec<(SlotIndex, u64)> = fleet
            .slots
            .iter()
            .filter(|(index, _)| asked(index) && !self.intent.holds(&name, **index))
            .filter_map(|(index, slot)| Some((*index, slot.fence_to_release()?)))
            .collect();
        if ours.is_empty() {
            return Err(self.nothing_to_release(fleet, slot));
        }
        let mut gates = Vec::new();
        for (slot, fence) in ours {
            let fleet = name.clone();
            let worker = WorkerId { fleet, slot };
            self.with_slot(&worker, now, out, |slot, desk| {
                if slot.gate.release.is_none() {
                    slot.release_gate(fence, &by.who, desk);
                }
            });
            let id = worker.to_string();
            gates.push(ReleasedGate { id, fence });
        }
        Ok(Reply::Released { gates })
    }

    /// The fleet of that name, if it is a singleton.
    pub(super) fn singleton(&self, name: &str) -> Result<&Fleet, Denial> {
        let needs_lock = |fleet: &&Fleet| fleet.spec.singleton.is_some();
        let is_job = |fleet: &Fleet| fleet.spec.cron.is_some();
        let found = self
            .fleets
            .values()
            .find(|fleet| fleet.name.as_str() == name);
        if let Some(job) = found.filter(|fleet| is_job(fleet)) {
            let why = match job.spec.singleton {
                Some(_) => format!(
                    "{name} is a job: its lock is given back when its run ends; `leasehold stop {name}` ends that and holds the job"
                ),
                None => format!("{name} is a job, and needs no lock (overlap = \"forbid\")"),
            };
            return Err(Denial::new(ExitCode::Conflict, why));
        }
        if let Some(fleet) = found.filter(needs_lock) {
            return Ok(fleet);
        }
        let others = self.fleets.values().filter(needs_lock);
        let known: Vec<&str> = others
            .filter(|fleet| !is_job(fleet))
            .map(|fleet| fleet.name.as_str())
            .collect();
        let why = no_singleton(name, found.is_some(), &known);
        Err(Denial::new(ExitCode::UnknownName, why))
    }

    /// Nothing of what was named holds its lock: why not, and who does.
    fn nothing_to_release(&self, fleet: &Fleet, slot: Option<u32>) -> Denial {
        let name: &FleetName = &fleet.name;
        let first = SlotIndex(slot.unwrap_or(0));
        let subject = match slot {
            Some(slot) => format!("{name}/{slot}"),
            None => name.to_string(),
        };
        if let Some(hold) = self.intent.hold(name, first) {
            let why = format!(
                "{subject} is stopped by {}, and keeps no lock from anybody; `leasehold start {subject}` lifts that",
                hold.who
            );
            return Denial::new(ExitCode::NotReady, why);
        }
        let is_meant = |index: &SlotIndex| slot.is_none_or(|slot| slot == index.0);
        let slots = fleet.slots.iter().filter(|(index, _)| is_meant(index));
        let waits = slots.filter_map(|(_, slot)| slot.gate.why_shut()).next();
        let why = match waits {
            Some(why) => format!("{subject} does not have its lock, it waits for it: {why}"),
            None => format!(
                "{subject} does not have its lock; `leasehold singletons show {name}` tells more"
            ),
        };
        Denial::new(ExitCode::NotReady, why)
    }
}

/// What is said to a name that is no singleton's; `exists`: it is something else's.
pub fn no_singleton(name: &str, exists: bool, known: &[&str]) -> String {
    let is_not = match exists {
        true => format!("{name} is not a singleton"),
        false => format!("no singleton is called `{name}`"),
    };
    let near = nearest(name, known.iter().copied()).filter(|_| !exists);
    let help = match (near, known) {
        (_, []) => "there are none (singleton = { scope = \"node\" } makes one)".to_owned(),
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, [one]) => format!("there is {one}"),
        (None, all) => format!("there are {}", all.join(", ")),
    };
    format!("{is_not}; {help}")
}
