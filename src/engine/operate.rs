//! What operators ask is carried out: holds, sizes, restarts, signals, configurations. An intent takes effect when it is on disk.

use std::collections::BTreeSet;

use crate::{
    config::{Config, diff, units::count},
    engine::{
        command::{By, Command, Denial, Reply, Selected, Sizing, select},
        effect::{Effect, Effects, Ending, Subject, Transition, What},
        event::Purpose,
        fleet::Fleet,
        intent::{Hold, Intent, Size},
        supervisor::Supervisor,
    },
    exit::ExitCode,
    id::{FleetName, Generation, RequestId, SlotIndex, WorkerId},
    time::{Moment, Stamp},
    wire::Stopping,
};

/// A change of intent that is being written to disk.
#[derive(Clone, Debug)]
pub(super) struct Saving {
    /// Who waits; none: nobody asked for it.
    request: Option<RequestId>,
    selected: Vec<Selected>,
    change: Change,
}

/// What an operator's command makes of the intent.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) intent: Intent,
    pub(super) records: Vec<(Subject, What)>,
    /// Who is started is forgiven its crashes; who is told to stop is not.
    pub(super) forgive: bool,
}

impl Supervisor {
    pub(super) fn command(
        &mut self,
        request: RequestId,
        command: Command,
        now: Moment,
        out: &mut Effects,
    ) {
        let result = match command {
            Command::Start { .. }
            | Command::Stop { .. }
            | Command::Scale { .. }
            | Command::Drain { .. }
            | Command::Undrain { .. }
                if self.saving.is_some() =>
            {
                self.waiting.push_back((request, command));
                return;
            }
            Command::Drain { by } => self.drain_node(request, by, out),
            Command::Undrain { by } => self.undrain_node(request, by, out),
            Command::Start { names, by } => self.start(request, &names, by, out),
            Command::Stop { names, by } => self.stop(request, &names, by, out),
            Command::Scale {
                fleet,
                to,
                lasting,
                by,
            } => {
                let until = lasting.map(|span| self.clock.at(now).after(span));
                self.scale(request, fleet, (to, until), by, out)
            }
            Command::Restart { names } => self.restart(&names, now, out).map(Some),
            Command::Signal { names, signal } => self.signal(&names, signal, now, out).map(Some),
            Command::Run { name, by } => self.run(request, &name, &by, now, out),
            Command::Release { name, slot, by } => {
                self.release(&name, slot, &by, now, out).map(Some)
            }
            Command::Move { name, to, by } => {
                let asked = self.move_lock(request, (&name, to.as_deref()), &by, now, out);
                asked.map(|()| None)
            }
            Command::Survey => self.survey(request, now, out).map(|()| None),
            Command::Forget { node } => {
                let asked = self.forget_node(request, &node, now, out);
                asked.map(|()| None)
            }
            Command::Reload => self.reload(request, out),
            Command::Plan => {
                out.list.push(Effect::ReadConfig(Purpose::Plan(request)));
                Ok(None)
            }
        };
        if let Some(reply) = result.transpose() {
            out.list.push(Effect::Reply { request, reply });
        }
    }

    pub(super) fn selected(&self, names: &[String]) -> Result<Vec<Selected>, Denial> {
        let fleets: Vec<(FleetName, Vec<u32>)> = self
            .fleets
            .values()
            .map(|fleet| {
                let size = match &fleet.body.scale {
                    Some(_) => 0,
                    None => fleet.spec.workers,
                };
                let places = fleet.places(&self.intent);
                let slots: BTreeSet<u32> = (0..size)
                    .chain(places.iter().map(|index| index.0))
                    .chain(
                        fleet
                            .slots
                            .iter()
                            .filter(|(_, s)| s.is_live())
                            .map(|(i, _)| i.0),
                    )
                    .collect();
                (fleet.name.clone(), slots.into_iter().collect())
            })
            .collect();
        select(names, &fleets)
    }

    /// What an operator said for a while is over.
    pub(super) fn expire_sizes(&mut self, now: Moment, out: &mut Effects) {
        let wall = self.clock.at(now);
        let is_over = |size: &Size| size.until.is_some_and(|until| until <= wall);
        let over = self.intent.sizes.iter().filter(|(_, size)| is_over(size));
        let over: Vec<FleetName> = over.map(|(name, _)| name.clone()).collect();
        if over.is_empty() || self.saving.is_some() {
            return;
        }
        let mut intent = self.intent.clone();
        for name in &over {
            intent.sizes.remove(name);
        }
        let records = over
            .into_iter()
            .map(|name| (Subject::Fleet(name), What::SizeExpired));
        let change = Change {
            intent,
            records: records.collect(),
            forgive: false,
        };
        self.save(None, Vec::new(), change, out);
    }

    pub(super) fn not_stopping(&self) -> Result<(), Denial> {
        match self.asked.stopping {
            Stopping::No => Ok(()),
            Stopping::Drain | Stopping::Kill => Err(Denial::new(
                ExitCode::Conflict,
                "the daemon is shutting down",
            )),
        }
    }

    fn start(
        &mut self,
        request: RequestId,
        names: &[String],
        by: By,
        out: &mut Effects,
    ) -> Result<Option<Reply>, Denial> {
        self.not_stopping()?;
        self.not_drained()?;
        let selected = self.selected(names)?;
        let mut intent = self.intent.clone();
        let mut records = Vec::new();
        for one in &selected {
            let subject = match one {
                Selected::Fleet(fleet) => {
                    intent.release_fleet(fleet);
                    Subject::Fleet(fleet.clone())
                }
                Selected::Slot(worker) => {
                    if intent.fleets.contains_key(&worker.fleet) {
                        let why = format!(
                            "{} is held as a whole; start {} first",
                            worker.fleet, worker.fleet
                        );
                        return Err(Denial::new(ExitCode::Conflict, why));
                    }
                    intent.release_slot(worker);
                    Subject::Worker(worker.clone(), Generation::default())
                }
            };
            records.push((
                subject,
                What::Released {
                    who: by.who.clone(),
                },
            ));
        }
        if intent == self.intent {
            records.clear();
        }
        let change = Change {
            intent,
            records,
            forgive: true,
        };
        Ok(self.save(Some(request), selected, change, out))
    }

    fn stop(
        &mut self,
        request: RequestId,
        names: &[String],
        by: By,
        out: &mut Effects,
    ) -> Result<Option<Reply>, Denial> {
        let selected = self.selected(names)?;
        let mut intent = self.intent.clone();
        let mut records = Vec::new();
        for one in &selected {
            let hold = Hold {
                who: by.who.clone(),
                when: by.when.clone(),
            };
            let (subject, new) = match one {
                Selected::Fleet(fleet) => {
                    let new = !intent.fleets.contains_key(fleet);
                    intent.fleets.entry(fleet.clone()).or_insert(hold);
                    (Subject::Fleet(fleet.clone()), new)
                }
                Selected::Slot(worker) => {
                    let new = !intent.holds(&worker.fleet, worker.slot);
                    if new {
                        intent.hold_slot(worker, hold);
                    }
                    (Subject::Worker(worker.clone(), Generation::default()), new)
                }
            };
            if new {
                records.push((
                    subject,
                    What::HeldBy {
                        who: by.who.clone(),
                    },
                ));
            }
        }
        if records.is_empty() {
            return Ok(Some(Reply::AlreadySo));
        }
        let change = Change {
            intent,
            records,
            forgive: false,
        };
        Ok(self.save(Some(request), selected, change, out))
    }

    fn scale(
        &mut self,
        request: RequestId,
        fleet: String,
        (to, until): (Sizing, Option<Stamp>),
        by: By,
        out: &mut Effects,
    ) -> Result<Option<Reply>, Denial> {
        self.not_stopping()?;
        let selected = self.selected(&[fleet])?;
        let mut intent = self.intent.clone();
        let mut records = Vec::new();
        for one in &selected {
            let Selected::Fleet(name) = one else {
                return Err(Denial::new(
                    ExitCode::Usage,
                    "only a whole fleet has a size; name it without a slot",
                ));
            };
            self.check_size(name, to)?;
            let (who, when) = (by.who.clone(), by.when.clone());
            let what = match to {
                Sizing::Workers(workers) => {
                    let size = Size {
                        workers,
                        who: who.clone(),
                        when,
                        until,
                    };
                    intent.sizes.insert(name.clone(), size);
                    let workers = Some(workers);
                    What::Scaled { workers, who }
                }
                Sizing::Auto => {
                    intent.sizes.remove(name);
                    intent.pauses.remove(name);
                    What::Scaled { workers: None, who }
                }
                Sizing::Pause => {
                    let hold = Hold {
                        who: who.clone(),
                        when,
                    };
                    intent.pauses.insert(name.clone(), hold);
                    What::Paused { who }
                }
            };
            records.push((Subject::Fleet(name.clone()), what));
        }
        let before = &self.intent;
        let unchanged = selected.iter().all(|one| match one {
            Selected::Fleet(name) => {
                let same = |size: &Size| (size.workers, size.until);
                intent.sizes.get(name).map(same) == before.sizes.get(name).map(same)
                    && intent.pauses.contains_key(name) == before.pauses.contains_key(name)
            }
            Selected::Slot(_) => false,
        });
        if unchanged {
            return Ok(Some(Reply::AlreadySo));
        }
        let change = Change {
            intent,
            records,
            forgive: false,
        };
        Ok(self.save(Some(request), selected, change, out))
    }

    fn check_size(&self, name: &FleetName, to: Sizing) -> Result<(), Denial> {
        if self.is_job(name) {
            let why = format!("{name} is a job: it has one run at a time, and no size");
            return Err(Denial::new(ExitCode::Conflict, why));
        }
        let Some(fleet) = self.fleets.get(name) else {
            return Ok(());
        };
        let workers = match (to, &fleet.spec.scale) {
            (Sizing::Auto, _) | (Sizing::Pause, Some(_)) => return Ok(()),
            (Sizing::Pause, None) => {
                let why = format!(
                    "{name} does not follow the load ([fleet.{name}.scale]): its size stays as it is"
                );
                return Err(Denial::new(ExitCode::Conflict, why));
            }
            (Sizing::Workers(workers), Some(scale)) if workers > scale.max => {
                let why = format!(
                    "{name} has at most {} (scale.max); raise that first",
                    count(scale.max, "worker")
                );
                return Err(Denial::new(ExitCode::Conflict, why));
            }
            (Sizing::Workers(workers), _) => workers,
        };
        if workers > 20_000 {
            let why = format!("{workers} workers are more than a fleet can have (20000)");
            return Err(Denial::new(ExitCode::Usage, why));
        }
        if let Some(lock) = &fleet.spec.singleton
            && workers > lock.slots
        {
            let why = format!(
                "{name} is a singleton with {} slots (singleton.slots); {workers} could never run at once",
                lock.slots
            );
            return Err(Denial::new(ExitCode::Conflict, why));
        }
        let surge = fleet.spec.rollout.max_surge;
        if let Some((low, high)) = fleet.spec.process.port_range
            && workers.saturating_add(surge) > u32::from(high - low) + 1
        {
            let have = u32::from(high - low) + 1;
            let why = format!(
                "{name} has {} (port_range) for {} and {surge} more while it rolls",
                count(have, "port"),
                count(workers, "worker")
            );
            return Err(Denial::new(ExitCode::Conflict, why));
        }
        Ok(())
    }

    /// Has an intent written to disk; it takes effect, and is answered, when that is done.
    pub(super) fn save(
        &mut self,
        request: Option<RequestId>,
        selected: Vec<Selected>,
        change: Change,
        out: &mut Effects,
    ) -> Option<Reply> {
        out.list.push(Effect::SaveIntent(change.intent.clone()));
        self.saving = Some(Saving {
            request,
            selected,
            change,
        });
        None
    }

    pub(super) fn intent_saved(
        &mut self,
        result: Result<(), String>,
        now: Moment,
        out: &mut Effects,
    ) {
        let Some(saving) = self.saving.take() else {
            return;
        };
        // What has expired has, written down or not.
        let result = result.or_else(|why| saving.request.map_or(Ok(()), |_| Err(why)));
        let reply = match result {
            Ok(()) => {
                self.intent = saving.change.intent;
                for (subject, what) in saving.change.records {
                    out.list.push(Effect::Record(Transition {
                        at: now,
                        subject,
                        what,
                    }));
                }
                if saving.change.forgive {
                    self.forgive(&saving.selected, now, out);
                }
                Ok(Reply::Begun {
                    names: saving.selected.iter().map(name_of).collect(),
                })
            }
            Err(why) => Err(Denial::new(
                ExitCode::Failed,
                format!("nothing was changed, because it could not be stored: {why}"),
            )),
        };
        if let Some(request) = saving.request {
            out.list.push(Effect::Reply { request, reply });
        }
        while self.saving.is_none() {
            let Some((request, command)) = self.waiting.pop_front() else {
                return;
            };
            self.command(request, command, now, out);
        }
    }

    fn forgive(&mut self, selected: &[Selected], now: Moment, out: &mut Effects) {
        for one in selected {
            match one {
                Selected::Slot(worker) => {
                    self.with_slot(worker, now, out, |slot, _| slot.forgive())
                }
                Selected::Fleet(name) => {
                    let slots = self
                        .fleets
                        .get(name)
                        .map(|fleet| fleet.slots.keys().copied().collect::<Vec<_>>());
                    for slot in slots.unwrap_or_default() {
                        self.with_slot(
                            &WorkerId {
                                fleet: name.clone(),
                                slot,
                            },
                            now,
                            out,
                            |slot, _| slot.forgive(),
                        );
                    }
                }
            }
        }
    }

    fn restart(
        &mut self,
        names: &[String],
        now: Moment,
        out: &mut Effects,
    ) -> Result<Reply, Denial> {
        self.not_stopping()?;
        self.not_drained()?;
        let selected = self.selected(names)?;
        let selected = self.without_jobs(names, selected)?;
        for one in &selected {
            let (fleet, held) = match one {
                Selected::Fleet(name) => (name, self.intent.fleets.contains_key(name)),
                Selected::Slot(worker) => {
                    (&worker.fleet, self.intent.holds(&worker.fleet, worker.slot))
                }
            };
            if held {
                return Err(Denial::new(
                    ExitCode::Conflict,
                    format!(
                        "{} is held; `leasehold start {fleet}` lifts that",
                        name_of(one)
                    ),
                ));
            }
        }
        for one in &selected {
            match one {
                Selected::Fleet(name) => {
                    let dropped = self.with_fleet(name, now, out, Fleet::restart);
                    if dropped == Some(true) {
                        self.store_accepted(out);
                    }
                }
                Selected::Slot(worker) => self.with_slot(worker, now, out, |slot, desk| {
                    slot.forgive();
                    slot.stop(Ending::Rollout, desk);
                }),
            }
        }
        Ok(Reply::Begun {
            names: selected.iter().map(name_of).collect(),
        })
    }

    fn signal(
        &mut self,
        names: &[String],
        signal: i32,
        now: Moment,
        out: &mut Effects,
    ) -> Result<Reply, Denial> {
        let mut reached = Vec::new();
        for one in self.selected(names)? {
            let workers: Vec<WorkerId> = match one {
                Selected::Slot(worker) => vec![worker],
                Selected::Fleet(name) => {
                    let slots = self
                        .fleets
                        .get(&name)
                        .map(|fleet| fleet.slots.keys().copied().collect::<Vec<SlotIndex>>());
                    slots
                        .unwrap_or_default()
                        .into_iter()
                        .map(|slot| WorkerId {
                            fleet: name.clone(),
                            slot,
                        })
                        .collect()
                }
            };
            for worker in workers {
                let mut there = false;
                self.with_slot(&worker, now, out, |slot, desk| {
                    there = slot.pass_signal(signal, desk)
                });
                if there {
                    reached.push(worker.to_string());
                }
            }
        }
        if reached.is_empty() {
            return Err(Denial::new(
                ExitCode::NotReady,
                "none of them has a process to signal",
            ));
        }
        Ok(Reply::Begun { names: reached })
    }

    fn reload(&mut self, request: RequestId, out: &mut Effects) -> Result<Option<Reply>, Denial> {
        self.not_stopping()?;
        if self.reading {
            return Err(Denial::new(
                ExitCode::Conflict,
                "a reload is under way; try again when it is done",
            ));
        }
        self.reading = true;
        out.list
            .push(Effect::ReadConfig(Purpose::Reload(Some(request))));
        Ok(None)
    }

    pub(super) fn config_read(
        &mut self,
        purpose: Purpose,
        result: Result<Box<Config>, String>,
        now: Moment,
        out: &mut Effects,
    ) {
        let result = result.and_then(|config| self.keeps_its_name(config));
        let request = match purpose {
            Purpose::Plan(request) => {
                let reply = result
                    .map(|config| Reply::Plan {
                        changes: diff::diff(&self.config, &config),
                    })
                    .map_err(|why| Denial::new(ExitCode::Config, why));
                out.list.push(Effect::Reply { request, reply });
                return;
            }
            Purpose::Reload(request) => request,
        };
        self.reading = false;
        self.node.reloads = self.asked.reloads;
        let reply = match result {
            Ok(config) => Ok(Reply::Plan {
                changes: self.accept(*config, now, out),
            }),
            Err(why) => {
                let first = why.lines().next().unwrap_or_default().to_owned();
                out.record(now, Subject::Node, What::Rejected { why: first });
                self.rejected = Some(why.clone());
                Err(Denial::new(ExitCode::Config, why))
            }
        };
        if let Some(request) = request {
            out.list.push(Effect::Reply { request, reply });
        }
    }

    /// Its lease, and all that hangs on it, is known by its name in the cluster.
    fn keeps_its_name(&self, config: Box<Config>) -> Result<Box<Config>, String> {
        let (ours, other) = (&self.facts.node, &config.node.name);
        if self.config.etcd.is_some() && ours != other {
            return Err(format!(
                "node.name = {other:?}, and the cluster knows this node as {ours:?}: that needs a restart of the daemon; nothing was changed"
            ));
        }
        Ok(config)
    }

    /// Takes a configuration over: what is unchanged is not touched.
    fn accept(&mut self, config: Config, now: Moment, out: &mut Effects) -> Vec<diff::Change> {
        let changes = diff::diff(&self.config, &config);
        self.rejected = None;
        self.config = config;
        self.way_due = true;
        self.facts.node.clone_from(&self.config.node.name);
        out.record(
            now,
            Subject::Node,
            What::Accepted {
                changes: changes.len(),
                shown: self.clock.at(now),
            },
        );
        for change in &changes {
            let spec = self.config.fleets.get(&change.fleet).cloned();
            match spec {
                None => {
                    if let Some(fleet) = self.fleets.get_mut(&change.fleet) {
                        fleet.remove();
                    }
                }
                Some(spec) if self.fleets.contains_key(&change.fleet) => {
                    self.with_fleet(&change.fleet, now, out, |fleet, room| {
                        fleet.respecify(spec, room)
                    });
                }
                Some(spec) => {
                    self.fleets.insert(
                        change.fleet.clone(),
                        Fleet::new(change.fleet.clone(), spec, now),
                    );
                }
            }
        }
        // Ranks depend on other fleets, so they may change where nothing else did.
        for (name, spec) in &self.config.fleets {
            if let Some(fleet) = self.fleets.get_mut(name) {
                fleet.spec.rank = spec.rank;
                fleet.fit_previous(spec.rank, self.config.etcd.as_ref());
            }
        }
        self.store_accepted(out);
        changes
    }

    pub(super) fn store_accepted(&self, out: &mut Effects) {
        let previous = self.fleets.values().filter_map(|fleet| {
            let spec = if fleet.removed {
                Some(&fleet.spec)
            } else {
                fleet.previous.as_ref()
            };
            spec.map(|spec| (fleet.name.clone(), spec.clone()))
        });
        out.list.push(Effect::Accept {
            config: Box::new(self.config.clone()),
            previous: previous.collect(),
        });
    }

    /// A fleet that went back to its revision before: so does the accepted configuration.
    pub(super) fn follow_rollbacks(&mut self, out: &mut Effects) {
        let mut changed = false;
        for (name, fleet) in self.fleets.iter().filter(|(_, fleet)| !fleet.removed) {
            if self
                .config
                .fleets
                .get(name)
                .is_some_and(|spec| *spec != fleet.spec)
            {
                self.config.fleets.insert(name.clone(), fleet.spec.clone());
                changed = true;
            }
        }
        if changed {
            self.store_accepted(out);
        }
    }
}

fn name_of(one: &Selected) -> String {
    match one {
        Selected::Fleet(name) => name.to_string(),
        Selected::Slot(worker) => worker.to_string(),
    }
}
