//! The supervisor and its cluster: what the gates want is told to it, and what it says is told to the gates.

use crate::{
    config::{
        Config,
        spec::{LeaseSpec, Overlap, SingletonSpec},
    },
    engine::{
        book::Outcome,
        cluster::{
            Cluster, Membership, Said, Want, Word,
            docket::{Dispute, Fate, Jobs, Tick},
            rpc::{LeaseId, News},
        },
        command::{By, Denial},
        effect::{Effect, Effects, Subject, What},
        spawn::Facts,
        supervisor::Supervisor,
    },
    exit::ExitCode,
    id::{FleetName, RequestId, WorkerId},
    time::Moment,
};

/// Stands between the name of a machine and that of one command's run on it: such a node comes and goes, and is not missed.
pub const PASSING: &str = "/lock-";

/// Why a worker waits of whom the cluster is told nothing.
const AFTER_RELOAD: &str = "somebody here still has a lock by the lease of before a reload";

/// How a node of this configuration takes part in a cluster, if it does.
pub(super) fn membership(config: &Config, facts: &Facts) -> Option<Membership> {
    let etcd = config.etcd.as_ref()?;
    Some(Membership {
        cluster: etcd.cluster.clone(),
        node: facts.node.clone(),
        identity: facts.identity.clone(),
        run: facts.run.clone(),
        endpoints: etcd.endpoints.len(),
        ttl: etcd.lease_ttl,
        epoch: etcd.epoch,
        pin: facts.pin,
        is_passing: facts.node.contains(PASSING),
    })
}

/// Is there somebody who is to end before the node can have the lease that is configured? A run of a job ends when it ends: nobody waits for
/// that to have one of another length.
fn awaits_another_lease(cluster: &Cluster, wants: &[Want]) -> bool {
    let is_of_before = |want: &Want| {
        let lease = want.spec.lease.as_ref();
        want.ticket.is_some() && lease.is_some_and(|lease| lease.ttl != cluster.wanted_ttl())
    };
    cluster.is_outdated() && wants.iter().any(is_of_before)
}

/// Do its times do with the lease that there is, if that is another one than is configured?
fn has_time(cluster: &Cluster, spec: &SingletonSpec) -> bool {
    let there = cluster.ttl().filter(|_| cluster.is_outdated());
    let lease = spec.lease.clone().zip(there);
    lease.is_none_or(|(lease, ttl)| LeaseSpec { ttl, ..lease }.is_possible())
}

/// From now on questions go the way that this configuration names, if they did not yet.
fn way(due: &mut bool, config: &Config) -> Option<Effect> {
    std::mem::take(due).then(|| Effect::Way(config.etcd.clone()))
}

/// What came of a fleet's records, for people and for the count.
fn tell(fleet: FleetName, word: Word, now: Moment, out: &mut Effects) {
    let what = match word {
        Word::Failed {
            target,
            why,
            is_new,
        } => {
            out.list.push(Effect::Unpublished {
                fleet: fleet.clone(),
                target: target.clone(),
            });
            is_new.then_some(What::PublishFailed { target, why })
        }
        Word::Restored { target, after } => Some(What::PublishRestored { target, after }),
    };
    if let Some(what) = what {
        out.record(now, Subject::Fleet(fleet), what);
    }
}

impl Supervisor {
    /// Takes over the session of the supervisor before, and its records.
    pub(super) fn resume_cluster(&mut self, now: Moment) {
        let membership = membership(&self.config, &self.facts);
        if let (Some(membership), Some((cluster, epoch))) = (membership, self.node.home.clone()) {
            let before = Membership {
                cluster,
                epoch,
                ..membership
            };
            self.cluster = Some(Cluster::new(before, 0, now));
        }
        if let (Some(cluster), Some(row)) = (&mut self.cluster, self.node.register) {
            cluster.adopt_register(row, now);
        }
        let (Some(cluster), Some(row)) = (&mut self.cluster, self.node.session) else {
            return;
        };
        let slots = self.fleets.values().flat_map(|fleet| {
            let name = &fleet.name;
            let slots = fleet.slots.iter();
            slots.map(move |(index, slot)| {
                (
                    WorkerId {
                        fleet: name.clone(),
                        slot: *index,
                    },
                    slot,
                )
            })
        });
        let tickets = slots.filter_map(|(worker, slot)| {
            let spec = slot.gate.sought()?.clone();
            Some((worker, spec, slot.gate.ticket.clone()?))
        });
        cluster.adopt(row, tickets, now);
    }

    /// What this node's keys hang on, and whom to ask about it.
    pub fn lease(&self) -> Option<(LeaseId, usize)> {
        self.cluster.as_ref()?.lease_to_give_back()
    }

    /// When the cluster has something to do.
    pub(super) fn cluster_deadline(&self) -> Option<Moment> {
        self.cluster.as_ref()?.deadline()
    }

    pub(super) fn etcd_said(&mut self, news: News, now: Moment, out: &mut Effects) {
        let mut orders = Vec::new();
        if let Some(cluster) = &mut self.cluster {
            let drained = self.intent.node.as_ref().map(|hold| hold.who.as_str());
            cluster.see(self.clock.at(now), drained);
            cluster.heard(news, now, &mut orders);
        }
        out.list.extend(orders.into_iter().map(Effect::Etcd));
    }

    /// Nothing of ours is left there, as far as can be.
    pub(super) fn has_left_cluster(&mut self, now: Moment) -> bool {
        self.cluster
            .as_ref()
            .is_none_or(|cluster| cluster.has_left(now))
    }

    /// An operator wants a cluster's lock on another node.
    pub(super) fn move_lock(
        &mut self,
        request: RequestId,
        (name, to): (&str, Option<&str>),
        by: &By,
        now: Moment,
        out: &mut Effects,
    ) -> Result<(), Denial> {
        self.not_stopping()?;
        let fleet = self.singleton(name)?;
        let spec = fleet.spec.singleton.as_ref();
        let Some(spec) = spec.filter(|spec| spec.is_of_cluster()) else {
            let why = format!(
                "the lock of {name} is of this machine; `leasehold singletons release {name}` gives it to another daemon here"
            );
            return Err(Denial::new(ExitCode::Conflict, why));
        };
        let lock = spec.lock.to_string();
        let no_cluster = || Denial::new(ExitCode::NotReady, format!("{name} has no cluster yet"));
        let cluster = self.cluster.as_mut().ok_or_else(no_cluster)?;
        let mut orders = Vec::new();
        let asked = cluster.wish(request, (&lock, to), &by.who, now, &mut orders);
        out.list.extend(orders.into_iter().map(Effect::Etcd));
        asked.map_err(|why| {
            Denial::new(ExitCode::NotReady, format!("{name} cannot be moved: {why}"))
        })
    }

    /// Somebody wants to see all of the cluster.
    pub(super) fn survey(
        &mut self,
        request: RequestId,
        now: Moment,
        out: &mut Effects,
    ) -> Result<(), Denial> {
        let mut orders = Vec::new();
        self.its_cluster()?.survey(request, now, &mut orders);
        out.list.extend(orders.into_iter().map(Effect::Etcd));
        Ok(())
    }

    /// A node will not come back.
    pub(super) fn forget_node(
        &mut self,
        request: RequestId,
        node: &str,
        now: Moment,
        out: &mut Effects,
    ) -> Result<(), Denial> {
        let mut orders = Vec::new();
        self.its_cluster()?.forget(request, node, now, &mut orders);
        out.list.extend(orders.into_iter().map(Effect::Etcd));
        Ok(())
    }

    fn its_cluster(&mut self) -> Result<&mut Cluster, Denial> {
        let why = "this node belongs to no cluster: there is no [etcd] in its configuration";
        let none = || Denial::new(ExitCode::NotReady, why);
        self.cluster.as_mut().ok_or_else(none)
    }

    /// What the gates want goes to the cluster, and what it says goes to them.
    pub(super) fn follow_cluster(&mut self, now: Moment, out: &mut Effects) {
        // What is said to a gate may change what it wants.
        for _ in 0..4 {
            let mut wants = self.wants();
            let mut jobs = self.jobs(now);
            let demands = self.demands(now);
            let wanted = membership(&self.config, &self.facts);
            let over = self.is_over(now);
            let is_run = |want: &Want| {
                let fleet = self.fleets.get(&want.worker.fleet);
                fleet.is_some_and(|fleet| fleet.spec.cron.is_some())
            };
            let run_holds = wants.iter().any(|one| one.ticket.is_some() && is_run(one));
            let Some(cluster) = &mut self.cluster else {
                // What is configured is joined when what was before is left.
                out.list.extend(way(&mut self.way_due, &self.config));
                self.cluster = wanted.map(|one| Cluster::new(one, self.last_call, now));
                if self.cluster.is_none() {
                    return;
                }
                continue;
            };
            let drained = self.intent.node.as_ref().map(|hold| hold.who.as_str());
            cluster.see(self.clock.at(now), drained);
            // A run's lock is wanted from tick to tick.
            let fleets = self.fleets.values();
            let fleets = fleets.filter(|fleet| !fleet.removed && fleet.spec.cron.is_none());
            let specs = fleets.filter_map(|fleet| fleet.spec.singleton.as_ref());
            cluster.attend(specs.filter(|spec| spec.is_of_cluster()));
            let moves = !cluster.fits(wanted.as_ref()) || cluster.leaves();
            let all_wait = moves || (!run_holds && awaits_another_lease(cluster, &wants));
            let waits = |want: &mut Want| {
                want.ticket.is_none() && (all_wait || !has_time(cluster, &want.spec))
            };
            let waiting: Vec<Want> = wants.extract_if(.., waits).collect();
            if all_wait {
                // A tick that could not begin here is left to other nodes.
                let fleets = &self.fleets;
                let is_free = |job: &FleetName| {
                    let fleet = fleets.get(job);
                    fleet.is_some_and(|fleet| fleet.spec.singleton.is_none())
                };
                let disputes = &mut jobs.disputes;
                disputes.retain(|dispute| !moves && is_free(&dispute.tick.0));
            }
            if !moves {
                out.list.extend(way(&mut self.way_due, &self.config));
            }
            if over || (moves && wants.is_empty()) {
                cluster.leave(now);
            }
            for (request, reply) in cluster.replies() {
                let reply = reply.map_err(|why| Denial::new(ExitCode::Failed, why));
                out.list.push(Effect::Reply { request, reply });
            }
            let mut orders = Vec::new();
            let wall = self.clock.at(now);
            let offered = self.fleets.iter().filter_map(|(name, fleet)| {
                let (listing, spec) = fleet.recorded()?;
                Some((name, listing, spec))
            });
            for (name, listing, spec) in offered {
                cluster.offer(name, (listing, spec), wall, now);
            }
            let fleets = &self.fleets;
            let is_there = |name: &FleetName| {
                let fleet = fleets.get(name);
                fleet.is_some_and(|fleet| fleet.recorded().is_some())
            };
            cluster.keep_offers(is_there, now);
            cluster.demand(&demands, now);
            let mut said = cluster.follow(&wants, &jobs, now, &mut orders);
            for want in waiting {
                if want.waits.as_deref() != Some(AFTER_RELOAD) {
                    said.push((want.worker, Said::Waits(AFTER_RELOAD.to_owned())));
                }
            }
            let verdicts = cluster.verdicts();
            let shares = cluster.shares();
            self.node.session = cluster.row();
            self.node.home = self.node.session.is_some().then(|| cluster.home());
            self.node.register = cluster.register_row();
            for (fleet, word) in cluster.words() {
                tell(fleet, word, now, out);
            }
            out.list.extend(orders.into_iter().map(Effect::Etcd));
            let pin = cluster.pin();
            if pin != self.facts.pin {
                self.facts.pin = pin;
                out.list.extend(pin.map(Effect::Pin));
            }
            if moves && !over && cluster.has_left(now) {
                self.last_call = cluster.last_call();
                self.cluster = None;
                continue;
            }
            let grew = self.share_units(shares, now, out);
            if said.is_empty() && verdicts.is_empty() && !grew {
                return;
            }
            for ((job, scheduled), verdict) in verdicts {
                self.with_fleet(&job, now, out, |fleet, _| {
                    if let Some(cron) = fleet.body.cron.as_mut() {
                        cron.judged(scheduled, verdict);
                    }
                });
            }
            for (worker, one) in said {
                self.with_slot(&worker, now, out, |slot, desk| slot.cluster_said(one, desk));
            }
            self.settle(now, out);
        }
    }

    /// Runs that are to be this node's, and what became of those that were.
    fn jobs(&self, now: Moment) -> Jobs {
        let Some(cluster) = &self.cluster else {
            return Jobs::default();
        };
        let of = |name: &FleetName| {
            let fleet = self.fleets.get(name)?;
            Some((fleet.spec.cron.as_ref()?, fleet.body.cron.as_deref()?))
        };
        let disputes = self.fleets.keys().filter_map(|name| {
            let (spec, cron) = of(name).filter(|(spec, _)| spec.cluster)?;
            let run = cron.disputed()?;
            Some(Dispute {
                tick: (name.clone(), run.scheduled),
                started: run.started,
                through: cron.last_before_next(run),
                manual: run.manual,
                skips: matches!(spec.overlap, Overlap::Skip | Overlap::Forbid),
                history: spec.history,
            })
        });
        let fates = cluster.open_runs().into_iter().filter_map(|tick| {
            let fate = match (of(&tick.0), self.fleets.get(&tick.0)) {
                (Some((_, cron)), _) => cron.fate(tick.1),
                // What is left of what had its name is not gone yet.
                (None, Some(fleet)) if fleet.removed => return None,
                (None, _) => self.fate_of_former(&tick, now),
            };
            Some((tick, fate))
        });
        Jobs {
            disputes: disputes.collect(),
            fates: fates.collect(),
        }
    }

    /// Of a job that is not configured here any more. Its run has ended, or its fleet would be there; if how is not known, it is as good as
    /// lost: a run that stays open keeps the other nodes from theirs.
    fn fate_of_former(&self, tick: &Tick, now: Moment) -> Fate {
        let told = self.former.iter().rev().find(|(one, ..)| one == tick);
        let lost = Fate::Ended(Outcome::Lost, self.clock.at(now));
        told.map_or(lost, |(_, outcome, ended)| Fate::Ended(*outcome, *ended))
    }

    fn wants(&self) -> Vec<Want> {
        if self.cluster.is_none() {
            return Vec::new();
        }
        let slots = self.fleets.values().flat_map(|fleet| {
            let slots = fleet.slots.iter();
            slots.map(move |(index, slot)| (&fleet.name, *index, slot))
        });
        let wants = slots.filter_map(|(fleet, index, slot)| {
            let gate = &slot.gate;
            let spec = gate.sought().filter(|spec| spec.is_of_cluster())?;
            Some(Want {
                worker: WorkerId {
                    fleet: fleet.clone(),
                    slot: index,
                },
                spec: spec.clone(),
                ticket: gate.ticket.clone(),
                waits: gate.why_shut().map(str::to_owned),
                is_open: gate.pass().is_some(),
                is_released: gate.release.is_some(),
                has_begun: slot.needs_lock() || gate.lease.stands().is_some(),
                is_lapsing: gate.lease.is_lapsing() || gate.is_lost(),
            })
        });
        wants.collect()
    }
}
