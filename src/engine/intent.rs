//! What operators decided and what must outlive everything: holds, drains and sizes. It is on disk before a command is acknowledged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    id::{FleetName, SlotIndex, WorkerId},
    time::Stamp,
};

/// The operator's word. A file in `state_dir`; keys are only ever added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Intent {
    /// The whole node stays empty, until it is undrained.
    pub node: Option<Hold>,
    /// Fleets that stay stopped.
    pub fleets: BTreeMap<FleetName, Hold>,
    /// Slots that stay stopped.
    pub slots: BTreeMap<FleetName, BTreeMap<u32, Hold>>,
    /// Sizes other than configured; of a fleet that follows the load, how many it has at least.
    pub sizes: BTreeMap<FleetName, Size>,
    /// Fleets that follow the load no longer, and stay as they are.
    pub pauses: BTreeMap<FleetName, Hold>,
}

/// Somebody stopped it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hold {
    /// Who.
    pub who: String,
    /// When, RFC 3339.
    pub when: String,
}

/// Somebody sized it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Size {
    /// So many.
    pub workers: u32,
    /// Who.
    pub who: String,
    /// When, RFC 3339.
    pub when: String,
    /// Until then, by the wall clock; none: until somebody says otherwise.
    pub until: Option<Stamp>,
}

impl Intent {
    /// Is this slot, or its whole fleet, to stay stopped?
    pub fn holds(&self, fleet: &FleetName, slot: SlotIndex) -> bool {
        self.hold(fleet, slot).is_some()
    }

    /// What keeps this slot stopped, if something does.
    pub(super) fn hold(&self, fleet: &FleetName, slot: SlotIndex) -> Option<&Hold> {
        let of_slot = || self.slots.get(fleet)?.get(&slot.0);
        self.fleet_hold(fleet).or_else(of_slot)
    }

    /// What keeps the whole fleet stopped: its own hold, or the node's drain.
    pub(super) fn fleet_hold(&self, fleet: &FleetName) -> Option<&Hold> {
        self.fleets.get(fleet).or(self.node.as_ref())
    }

    /// Is the whole fleet to stay stopped?
    pub fn holds_fleet(&self, fleet: &FleetName) -> bool {
        self.fleet_hold(fleet).is_some()
    }

    /// Holds one slot.
    pub(super) fn hold_slot(&mut self, worker: &WorkerId, hold: Hold) {
        self.slots
            .entry(worker.fleet.clone())
            .or_default()
            .insert(worker.slot.0, hold);
    }

    /// Lifts every hold on the fleet and its slots.
    pub(super) fn release_fleet(&mut self, fleet: &FleetName) {
        self.fleets.remove(fleet);
        self.slots.remove(fleet);
    }

    /// Lifts the hold on one slot.
    pub(super) fn release_slot(&mut self, worker: &WorkerId) {
        if let Some(slots) = self.slots.get_mut(&worker.fleet) {
            slots.remove(&worker.slot.0);
            if slots.is_empty() {
                self.slots.remove(&worker.fleet);
            }
        }
    }
}
