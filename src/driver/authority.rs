//! Renews the leases of gates that must be renewed. Its authority is a file that names who may hold, which is what tests use.

use std::{collections::BTreeMap, path::PathBuf};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval},
};

use crate::{
    config::spec::{Authority as Renewer, LeaseSpec},
    driver::inbox::Inbox,
    engine::{Event, lease::LeaseNews},
    id::WorkerId,
    sys::clock,
};

/// The renewals that are under way.
pub(super) struct Authority {
    node: String,
    hand_in: mpsc::UnboundedSender<Inbox>,
    tasks: BTreeMap<WorkerId, JoinHandle<()>>,
}

impl Authority {
    pub(super) fn new(node: String, hand_in: mpsc::UnboundedSender<Inbox>) -> Self {
        Self {
            node,
            hand_in,
            tasks: BTreeMap::new(),
        }
    }

    /// Begins to renew; the first time at once.
    pub(super) fn begin(&mut self, worker: &WorkerId, fence: u64, spec: &LeaseSpec) {
        // The cluster's leases are the engine's to renew.
        let Renewer::File(path) = &spec.authority else {
            return;
        };
        let path = PathBuf::from(path);
        let ttl = spec.ttl;
        let period = std::time::Duration::from(spec.renew_every());
        let (holder, hand_in) = (worker.clone(), self.hand_in.clone());
        let node = self.node.clone();
        let task = tokio::spawn(async move {
            let mut turns = interval(period);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                turns.tick().await;
                // The lease counts from here, whenever the answer comes.
                let sent = clock::both();
                let file = path.clone();
                let said = spawn_blocking(move || std::fs::read_to_string(file)).await;
                let said = said.ok().and_then(Result::ok).unwrap_or_default();
                let news = match said.trim() {
                    name if name == node => LeaseNews::Renewed { sent, ttl },
                    "gone" => LeaseNews::Gone("its authority took it away".to_owned()),
                    _ => continue,
                };
                let worker = holder.clone();
                let _ = hand_in.send(Inbox::Gate(Event::Lease {
                    worker,
                    fence,
                    news,
                }));
            }
        });
        if let Some(before) = self.tasks.insert(worker.clone(), task) {
            before.abort();
        }
    }

    /// Nobody needs it any more.
    pub(super) fn end(&mut self, worker: &WorkerId) {
        if let Some(task) = self.tasks.remove(worker) {
            task.abort();
        }
    }
}
