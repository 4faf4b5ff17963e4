//! A supervisor for one command under one lock (`leasehold lock`): its configuration is made here, nobody can connect to it, and all that it
//! says is whom it waits for, and why it does not any more.

use std::{collections::BTreeMap, io::IsTerminal, path::PathBuf};

use crate::{
    config::{
        self, Config,
        spec::{
            Authority, Bond, EtcdSpec, FleetSpec, HttpSpec, LeaseSpec, NodeSpec, RestartPolicy,
            SingletonSpec, Sink,
        },
    },
    driver::run::Driver,
    engine::{PASSING, effect::Rough},
    id::{FleetName, Revision},
    sys::{host, surroundings::ThisMachine},
    time::{Moment, Span},
    wire::{StopRecord, Stopping, Target, Welcome},
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
    /// The lock is a cluster's.
    pub cluster: Option<ClusterErrand>,
}

/// Whose lock it is, if it is not this machine's.
#[derive(Clone, Debug)]
pub struct ClusterErrand {
    /// Its `[etcd]` says which cluster, its `[node]` who we are.
    pub config: PathBuf,
    /// What the command starts may outlive us.
    pub weak: bool,
}

/// In a cluster it takes a moment until it is known who has the lock, and until then nobody gives up.
const FIRST_ANSWER: Span = Span::secs(10);
/// Whom we wait for is said after this, if it is not known before.
const WORTH_SAYING: Span = Span::secs(1);
/// From SIGTERM to SIGKILL when etcd is not heard of, and from there until nothing may be left: the first that the lease has room for.
const TIMES: [(Span, Span); 3] = [
    (Span::secs(2), Span::secs(1)),
    (Span::secs(1), Span::secs(1)),
    (Span::millis(300), Span::millis(500)),
];

impl Errand {
    /// A fleet of one worker, the keeper's own command, which is never started again.
    pub(super) fn config(&self, welcome: &Welcome) -> Result<Config, String> {
        let (etcd, node) = match &self.cluster {
            Some(cluster) => cluster.membership(welcome)?,
            None => (None, host::hostname()),
        };
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
            per_node: self.slots,
            lease: etcd.as_ref().map(lease_of).transpose()?,
            bond: match &self.cluster {
                Some(ClusterErrand { weak: false, .. }) => Bond::Strict,
                Some(ClusterErrand { weak: true, .. }) | None => Bond::Weak,
            },
            ..SingletonSpec::default()
        });
        Ok(Config {
            revision: Revision::default(),
            path: String::new(),
            base: String::new(),
            node: NodeSpec {
                name: node,
                restart_rate: 1_000,
                restart_burst: 1,
                cpu_reserve: 0,
                memory_reserve: 0,
            },
            http: HttpSpec::default(),
            etcd,
            fleets: BTreeMap::from([(self.lock.clone(), fleet)]),
        })
    }
}

impl ClusterErrand {
    /// Which cluster, and by which name we are there: the machine's daemon has its own.
    fn membership(&self, welcome: &Welcome) -> Result<(Option<EtcdSpec>, String), String> {
        let shown = self.config.display();
        let found = config::membership(&self.config, &ThisMachine::from_outside());
        let found = found.map_err(|faults| faults.render(false))?;
        let (etcd, node) = found.ok_or_else(|| {
            format!("leasehold: {shown} has no [etcd], which says where the cluster is; name another file with -c")
        })?;
        let contained = welcome.keeper == 1 || host::may_make_namespaces();
        if !self.weak && !contained {
            return Err(
                "leasehold: what the command starts may outlive us if we are killed, and run beside whoever has the lock then: \
                 run it as root, or as PID 1 of a container, or say --weak"
                    .to_owned(),
            );
        }
        let run = welcome.cookie.get(..8).unwrap_or(&welcome.cookie);
        let name = format!("{node}{PASSING}{run}");
        Ok((Some(etcd), name))
    }
}

/// How long it lasts.
fn lease_of(etcd: &EtcdSpec) -> Result<LeaseSpec, String> {
    let lease = |(grace, kill_margin)| LeaseSpec {
        authority: Authority::Cluster(etcd.cluster.clone()),
        epoch: etcd.epoch,
        ttl: etcd.lease_ttl,
        grace,
        kill_margin,
    };
    let short = || {
        format!(
            "leasehold: etcd.lease_ttl = {} leaves no time to end a command in; 10s does",
            etcd.lease_ttl
        )
    };
    let mut all = TIMES.into_iter().map(lease);
    all.find(LeaseSpec::is_possible).ok_or_else(short)
}

impl Driver {
    /// When the waiting is over, or may be, if it may last only so long. Past that something else is waited for: the first look at the lock.
    pub(super) fn errand_deadline(&self) -> Option<Moment> {
        let patience = self.settings.errand.as_ref()?.patience?;
        self.errand_waits()?;
        let first = self.started().after(FIRST_ANSWER);
        let own = self.started().after(patience);
        [own, first].into_iter().find(|at| *at > self.now())
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
        let is_known = why.as_deref().is_some_and(|why| why.starts_with("held by"));
        let patience = match &errand.cluster {
            Some(_) if !is_known && errand.patience == Some(Span::ZERO) => Some(FIRST_ANSWER),
            Some(_) | None => errand.patience,
        };
        let deadline = patience.map(|span| self.started().after(span));
        let is_late = deadline.is_some_and(|at| at <= self.now());
        let at_once = patience == Some(Span::ZERO);
        // A node that has just begun has no lease yet, and knows of nobody: that is no news.
        let may_say = match (&errand.cluster, &self.said_waiting) {
            (None, said) => said.is_none(),
            (Some(_), said) => {
                let is_settled = is_known || self.started().after(WORTH_SAYING) <= self.now();
                is_settled && *said != why
            }
        };
        let last_word = match (self.gates.refusal(), &why, patience) {
            (Some(refusal), ..) => Some(format!("the lock {lock} cannot be had: {refusal}")),
            (None, Some(why), Some(_)) if at_once => Some(format!("the lock {lock} is {why}")),
            (None, Some(why), Some(patience))
                if is_late && !is_known && errand.cluster.is_some() =>
            {
                Some(format!(
                    "the lock {lock} cannot be had: {why}; gave up after {}",
                    Rough(patience)
                ))
            }
            (None, Some(why), Some(patience)) if is_late => Some(format!(
                "the lock {lock} is still {why}; gave up after {}",
                Rough(patience)
            )),
            // It has not been looked at, or is free and what is left of its last holder is being ended: nobody is waited for.
            (None, None, Some(_)) => None,
            (None, Some(why), _) if may_say && std::io::stderr().is_terminal() => {
                self.console
                    .say(format!("leasehold: waiting for the lock {lock}, {why}"));
                self.said_waiting = Some(why.clone());
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
