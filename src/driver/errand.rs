//! A supervisor for one command under one lock (`leasehold lock`): its configuration is made here, nobody can connect to it, and all that it
//! says is whom it waits for, and why it does not any more.

use std::{collections::BTreeMap, io::IsTerminal};

use crate::{
    config::{
        Config,
        spec::{FleetSpec, HttpSpec, NodeSpec, RestartPolicy, SingletonSpec, Sink},
    },
    driver::run::Driver,
    engine::effect::Rough,
    id::{FleetName, Revision},
    sys::host,
    time::{Moment, Span},
    wire::{StopRecord, Stopping, Target},
};

/// What is to be had before the keeper's command is run.
#[derive(Clone, Debug)]
pub struct Errand {
    /// The lock's name; the fleet of one is called like it.
    pub lock: FleetName,
    /// So many may hold it at once.
    pub slots: u32,
    /// Wait no longer than this; zero: not at all.
    pub patience: Option<Span>,
    /// What to end with if it cannot be had.
    pub code: u8,
}

impl Errand {
    /// A fleet of one worker, the keeper's own command, which is never started again.
    pub(super) fn config(&self) -> Config {
        // The keeper alone passes signals on; without a supervisor it ends the command by itself only with what remains of it.
        let mut fleet = FleetSpec::unknown(&StopRecord {
            to: Target::Group,
            ..StopRecord::default()
        });
        fleet.workers = 1;
        fleet.restart.policy = RestartPolicy::Never;
        fleet.log.sink = Sink::None;
        fleet.singleton = Some(SingletonSpec {
            lock: self.lock.clone(),
            slots: self.slots,
            ..SingletonSpec::default()
        });
        Config {
            revision: Revision::default(),
            path: String::new(),
            base: String::new(),
            node: NodeSpec {
                name: host::hostname(),
                restart_rate: 1_000,
                restart_burst: 1,
                cpu_reserve: 0,
                memory_reserve: 0,
            },
            http: HttpSpec::default(),
            etcd: None,
            fleets: BTreeMap::from([(self.lock.clone(), fleet)]),
        }
    }
}

impl Driver {
    /// When the waiting is over, if it may last only so long. Past that something else is waited for: the first look at the lock.
    pub(super) fn errand_deadline(&self) -> Option<Moment> {
        let patience = self.settings.errand.as_ref()?.patience?;
        self.errand_waits()?;
        Some(self.started().after(patience)).filter(|at| *at > self.now())
    }

    /// While the lock is not had: why, as far as is known yet.
    fn errand_waits(&self) -> Option<Option<String>> {
        let status = self.engine.status(self.now());
        if status.stopping != Stopping::No || self.leaving.is_some() {
            return None;
        }
        let fleet = status.fleets.first()?;
        let (_, gate) = fleet.lock.as_ref()?.gates.first()?;
        let runs = fleet.workers.iter().any(|worker| worker.pid.is_some());
        (gate.state == "waiting" && !runs).then(|| gate.waits.clone())
    }

    /// Says once whom we wait for, where somebody reads it; gives up when that was asked for, or when waiting does not help.
    pub(super) fn tend_errand(&mut self) {
        let Some(errand) = &self.settings.errand else {
            return;
        };
        let Some(why) = self.errand_waits() else {
            return;
        };
        let lock = &errand.lock;
        let deadline = errand.patience.map(|span| self.started().after(span));
        let is_late = deadline.is_some_and(|at| at <= self.now());
        let at_once = errand.patience == Some(Span::ZERO);
        let last_word = match (self.gates.refusal(), &why, errand.patience) {
            (Some(refusal), ..) => Some(format!("the lock {lock} cannot be had: {refusal}")),
            (None, Some(why), Some(_)) if at_once => Some(format!("the lock {lock} is {why}")),
            (None, Some(why), Some(patience)) if is_late => Some(format!(
                "the lock {lock} is still {why}; gave up after {}",
                Rough(patience)
            )),
            // It has not been looked at, or is free and what is left of its last holder is being ended: nobody is waited for.
            (None, None, Some(_)) => None,
            (None, Some(why), _) if !self.said_waiting && std::io::stderr().is_terminal() => {
                self.console
                    .say(format!("leasehold: waiting for the lock {lock}, {why}"));
                self.said_waiting = true;
                None
            }
            (None, ..) => None,
        };
        if let Some(text) = last_word {
            self.leaving = Some(errand.code);
            self.console.say(format!("leasehold: {text}"));
        }
    }
}
