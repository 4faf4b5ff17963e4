//! The engine's memory in the keeper: bodies are written beside the requests that imply them, and read back by a new supervisor.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::FleetSpec,
    engine::{
        effect::{Effect, Effects, Subject, What},
        fleet::{Fleet, FleetBody},
        gate::Kept,
        slot::Slot,
        supervisor::Supervisor,
    },
    id::WorkerId,
    time::Moment,
    wire::{BODY_MAX, Header, Op, Process, RowKey, TaskKind},
};

/// Version of the bodies; a body begins with it.
const BODY_VERSION: u8 = 4;

impl Supervisor {
    pub(super) fn take_over(
        &mut self,
        rows: Vec<(RowKey, Header, Vec<u8>)>,
        mut gates: BTreeMap<WorkerId, Kept>,
        recover: bool,
        now: Moment,
        out: &mut Effects,
    ) {
        for (key, header, body) in &rows {
            self.stored.insert(key.clone(), body.clone());
            match key {
                RowKey::Node => {
                    if let Some(node) = decode(body).filter(|_| !recover) {
                        self.node = node;
                    }
                }
                RowKey::Fleet(name) => {
                    if let Some(fleet) = self.fleets.get_mut(name) {
                        fleet.body = decode::<FleetBody>(body)
                            .filter(|_| !recover)
                            .unwrap_or_default();
                        fleet.fit_cron();
                    }
                }
                RowKey::Slot(worker) => {
                    self.take_over_slot(worker, header, body, recover, now, out)
                }
                // Its end was taken note of, and no more.
                RowKey::Task(..) if header.process == Process::Vacant => {
                    out.keeper(Op::Drop { key: key.clone() });
                }
                RowKey::Task(..) => {}
            }
        }
        for fleet in self.fleets.values_mut() {
            // If its row said nothing, by what is there.
            fleet.fit_scale(now);
        }
        let workers = self.fleets.values().map(Fleet::live).sum();
        if !rows.is_empty() {
            out.record(now, Subject::Node, What::TookOver { workers });
        }
        self.resume_cluster(now);
        let headers: BTreeMap<&RowKey, &Header> =
            rows.iter().map(|(key, header, _)| (key, header)).collect();
        for (key, header, _) in &rows {
            if let RowKey::Slot(worker) = key {
                let runs = |kind| {
                    let header = headers.get(&RowKey::Task(worker.clone(), kind));
                    header.is_some_and(|header| header.process != Process::Vacant)
                };
                let hooks = (runs(TaskKind::PreStart), runs(TaskKind::PreStop));
                let held = gates.remove(worker);
                self.with_slot(worker, now, out, |slot, desk| {
                    slot.take_back(header, hooks, held, desk);
                });
            }
            if header.process == Process::Vacant {
                continue;
            }
            if let RowKey::Task(file, TaskKind::PublishCheck | TaskKind::PublishReload) = key
                && let Some(fleet) = self.fleets.get_mut(&file.fleet)
            {
                fleet.inherit_command(file.slot, now);
            }
            if let RowKey::Task(worker, TaskKind::ScaleSource) = key {
                self.with_fleet(&worker.fleet, now, out, Fleet::inherit_source);
            }
        }
        for (name, fleet) in &mut self.fleets {
            if fleet.removed && !headers.contains_key(&RowKey::Fleet(name.clone())) {
                fleet.forget_farewell();
            }
        }
        // Taken for a slot that has no row: nothing was ever started under it.
        out.list.extend(gates.into_keys().map(Effect::ShutGate));
        self.rows_changed(
            rows.into_iter()
                .map(|(key, header, _)| (key, header))
                .collect(),
            now,
            out,
        );
    }

    pub(super) fn take_over_slot(
        &mut self,
        worker: &WorkerId,
        header: &Header,
        body: &[u8],
        recover: bool,
        now: Moment,
        out: &mut Effects,
    ) {
        if !self.fleets.contains_key(&worker.fleet) {
            // Nothing says what it was: it is drained by its stop record and goes.
            let mut fleet = Fleet::new(worker.fleet.clone(), FleetSpec::unknown(&header.stop), now);
            fleet.removed = true;
            self.fleets.insert(worker.fleet.clone(), fleet);
        }
        let Some(fleet) = self.fleets.get_mut(&worker.fleet) else {
            return;
        };
        let slot = decode::<Slot>(body)
            .filter(|_| !recover)
            .unwrap_or_else(|| {
                out.record(
                    now,
                    Subject::Worker(worker.clone(), header.generation),
                    What::Recovered,
                );
                Slot::recovered(header, fleet.revision(), now)
            });
        fleet.slots.insert(worker.slot, slot);
    }

    pub(super) fn drop_row(&mut self, key: RowKey, out: &mut Effects) {
        self.touched.remove(&key);
        if self.stored.remove(&key).is_some() {
            out.keeper(Op::Drop { key });
        }
    }

    /// Puts every changed body beside the request that it belongs to, or sends it by itself.
    pub(super) fn send_rows(&mut self, out: &mut Effects) {
        let mut changed: BTreeMap<RowKey, Vec<u8>> = BTreeMap::new();
        let touched = std::mem::take(&mut self.touched);
        for key in touched {
            if let RowKey::Slot(worker) = &key {
                let slot = self
                    .fleets
                    .get(&worker.fleet)
                    .and_then(|fleet| fleet.slots.get(&worker.slot));
                if let Some(body) = slot.map(encode) {
                    changed.insert(key, body);
                }
            }
        }
        for (name, fleet) in &self.fleets {
            changed.insert(RowKey::Fleet(name.clone()), encode(&fleet.body));
        }
        changed.insert(RowKey::Node, encode(&self.node));
        let mut carried = BTreeSet::new();
        for effect in &mut out.list {
            let Effect::Keeper(
                Op::Spawn { key, body, .. }
                | Op::Signal { key, body, .. }
                | Op::Kill { key, body, .. }
                | Op::Forget { key, body, .. }
                | Op::Promote { key, body, .. },
            ) = effect
            else {
                continue;
            };
            if let Some(new) = changed.get(key).or_else(|| self.stored.get(key)) {
                body.clone_from(new);
                carried.insert(key.clone());
            }
        }
        let mut puts = Vec::new();
        for (key, body) in changed {
            if self.stored.get(&key) == Some(&body) {
                continue;
            }
            if !carried.contains(&key) {
                puts.push(Effect::Keeper(Op::Put {
                    key: key.clone(),
                    body: body.clone(),
                }));
            }
            self.stored.insert(key, body);
        }
        // Said before readers are told of a file: a supervisor that dies in between leaves them with this content or the one before.
        let telling = out.list.iter().position(is_telling);
        let at = telling.unwrap_or(out.list.len());
        out.list.splice(at..at, puts);
    }
}

fn is_telling(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Keeper(Op::Spawn {
            key: RowKey::Task(_, TaskKind::PublishReload),
            ..
        })
    )
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let body = postcard::to_extend(value, vec![BODY_VERSION])
        .expect("rows hold nothing that postcard cannot encode");
    debug_assert!(body.len() <= BODY_MAX, "a row of {} bytes", body.len());
    body
}

fn decode<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Option<T> {
    let (version, rest) = body.split_first()?;
    if *version != BODY_VERSION {
        return None;
    }
    postcard::take_from_bytes(rest)
        .ok()
        .filter(|(_, left)| left.is_empty())
        .map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::spec::{CronSpec, HookSpec, SingletonSpec},
        engine::{Event, gate::Pass, supervisor::Origin},
        id::Generation,
        time::{Clocks, Span},
        wire::{Alive, Containment, ExitRecord, ExitStatus, StopRecord},
    };

    fn header(generation: u64, process: Process) -> Header {
        Header {
            generation: Generation(generation),
            process,
            stop: StopRecord::default(),
        }
    }

    fn alive() -> Process {
        Process::Alive(Alive {
            pid: 100,
            start_ticks: 1,
            since: Moment(0),
            containment: Containment::Group,
        })
    }

    fn gone() -> Process {
        Process::Gone(ExitRecord {
            pid: 100,
            status: ExitStatus::Code(0),
            since: Moment(0),
            at: Moment(0),
        })
    }

    fn kills(out: &Effects) -> usize {
        let kill = |effect: &&Effect| matches!(effect, Effect::Keeper(Op::Kill { .. }));
        out.list.iter().filter(kill).count()
    }

    fn gives_back(out: &Effects) -> bool {
        let gives_back = |effect: &Effect| matches!(effect, Effect::ShutGate(_));
        out.list.iter().any(gives_back)
    }

    /// The row of a singleton says nothing of the hook before it, since it was lost, or was on its way when the last supervisor died.
    #[test]
    fn a_hook_that_no_row_knows_of_is_ended_before_its_lock_goes() {
        let worker = WorkerId::new("web".parse().unwrap(), 0);
        let hook = RowKey::Task(worker.clone(), TaskKind::PreStart);
        let mut spec = FleetSpec::unknown(&StopRecord::default());
        spec.singleton = Some(SingletonSpec::default());
        spec.process.pre_start = Some(HookSpec {
            program: "prepare".to_owned(),
            argv: Vec::new(),
            timeout: Span::secs(60),
            abort: true,
        });
        let pass = Pass {
            path: "/run/lock/web".to_owned(),
            fence: 7,
        };
        let kept = Kept {
            pass,
            lost: None,
            until: None,
        };
        for recover in [false, true] {
            // Nobody is wanted in it: with nothing there its lock is given back at once.
            let origin = Origin {
                rows: vec![
                    (
                        RowKey::Slot(worker.clone()),
                        header(1, Process::Vacant),
                        encode(&Slot::default()),
                    ),
                    (hook.clone(), header(1, alive()), Vec::new()),
                ],
                gates: BTreeMap::from([(worker.clone(), kept.clone())]),
                recover,
                ..Origin::of([("web", spec.clone())])
            };
            let mut out = Effects::default();
            let mut engine = Supervisor::new(origin, Clocks::default(), &mut out);
            assert_eq!((kills(&out), gives_back(&out)), (1, false), "{recover}");
            let mut out = Effects::default();
            let ended = Event::Rows(vec![(hook.clone(), header(1, gone()))]);
            engine.step(ended, Moment(1).into(), &mut out);
            assert!(gives_back(&out), "{recover}");
        }
    }

    /// A job accounts for runs, and what is there of it counts as one.
    #[test]
    fn a_hook_without_a_row_is_no_run_of_a_job() {
        let mut spec = FleetSpec::unknown(&StopRecord::default());
        spec.cron = Some(CronSpec::of("@daily"));
        let worker = WorkerId::new("web".parse().unwrap(), 0);
        let hook = RowKey::Task(worker.clone(), TaskKind::PreStart);
        let slot = (
            RowKey::Slot(worker),
            header(1, Process::Vacant),
            encode(&Slot::default()),
        );
        let origin = Origin {
            rows: vec![slot, (hook, header(1, alive()), Vec::new())],
            ..Origin::of([("web", spec)])
        };
        let mut out = Effects::default();
        let engine = Supervisor::new(origin, Clocks::default(), &mut out);
        assert_eq!(kills(&out), 1);
        assert!(engine.fleets.values().all(|fleet| fleet.live() == 0));
    }

    /// Its end was taken note of by the last supervisor, which died before it could drop the row.
    #[test]
    fn a_command_that_has_ended_is_not_waited_for() {
        let worker = WorkerId::new("web".parse().unwrap(), 0);
        let source = RowKey::Task(worker, TaskKind::ScaleSource);
        let mut out = Effects::default();
        let origin = Origin {
            rows: vec![(source, header(1, Process::Vacant), Vec::new())],
            ..Origin::of([("web", FleetSpec::unknown(&StopRecord::default()))])
        };
        let engine = Supervisor::new(origin, Clocks::default(), &mut out);
        let waits = |fleet: &Fleet| fleet.inquiry.runs_program();
        assert!(!engine.fleets.values().any(waits));
        assert_eq!(kills(&out), 0);
    }
}
