//! A number from outside that a fleet follows: the depth of a broker's queue, asked for by HTTP or of a program.

use crate::{
    config::spec::{HookSpec, SourceKind, SourceSpec},
    engine::{
        effect::{Effect, Effects, ExitWords},
        fleet::{Fleet, Room},
        scale::Scaling,
        spawn,
        supervisor::Supervisor,
    },
    id::{FleetName, Generation, SlotIndex, WorkerId},
    time::Moment,
    wire::{ExitStatus, Op, RowKey, Stopping, TaskKind},
};

/// A program that is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Asked {
    /// None is there.
    #[default]
    Nobody,
    /// It runs.
    Runs,
    /// Nobody waits for its answer any more, and it is being killed.
    Leaves,
}

impl Supervisor {
    /// Whom nobody listens to any more leaves: the daemon ends, or its fleet is made otherwise.
    pub(super) fn end_sources(&mut self, now: Moment, out: &mut Effects) {
        let stopping = self.asked.stopping != Stopping::No;
        let idle = |fleet: &&Fleet| {
            fleet.asked == Asked::Runs && (stopping || fleet.removed || fleet.source().is_none())
        };
        let names: Vec<FleetName> = self
            .fleets
            .values()
            .filter(idle)
            .map(|fleet| fleet.name.clone())
            .collect();
        for name in names {
            self.with_fleet(&name, now, out, |fleet, room| {
                fleet.asked = Asked::Leaves;
                room.out.keeper(Op::Kill {
                    key: fleet.source_key(),
                    generation: Generation::default().next(),
                    body: Vec::new(),
                });
            });
        }
    }

    /// What a fleet's source says.
    pub(super) fn sourced(&mut self, name: &FleetName, result: Result<u64, String>, now: Moment) {
        let fleet = self.fleets.get_mut(name);
        if let Some(scaling) = fleet.and_then(|fleet| fleet.body.scale.as_mut()) {
            scaling.source_asked = false;
            scaling.sourced = Some((now, result));
        }
    }
}

impl Scaling {
    /// What the source said last, in thousandths, while that can still be true.
    pub(super) fn said_by(&self, source: &SourceSpec, now: Moment) -> Option<u64> {
        let (at, result) = self.sourced.as_ref()?;
        let fresh = at.after(source.interval.times(2).plus(source.timeout)) > now;
        result.as_ref().ok().copied().filter(|_| fresh)
    }
}

impl Fleet {
    fn source(&self) -> Option<&SourceSpec> {
        self.spec.scale.as_ref()?.source.as_ref()
    }

    fn source_key(&self) -> RowKey {
        let worker = WorkerId {
            fleet: self.name.clone(),
            slot: SlotIndex(0),
        };
        RowKey::Task(worker, TaskKind::ScaleSource)
    }

    pub(super) fn source_deadline(&self) -> Option<Moment> {
        let source = self.source()?;
        let scaling = self
            .body
            .scale
            .as_ref()
            .filter(|scaling| !scaling.source_asked)?;
        Some(
            scaling
                .source_at
                .map_or(Moment(0), |at| at.after(source.interval)),
        )
    }

    /// Asks whoever knows how long the queue is, when it is time to.
    pub(super) fn ask_source(&mut self, room: &mut Room<'_>) {
        if self.source_deadline().is_none_or(|at| at > room.now) {
            return;
        }
        let source = self.source().cloned();
        let (Some(source), Some(scaling)) = (source, &mut self.body.scale) else {
            return;
        };
        scaling.source_asked = true;
        scaling.source_at = Some(room.now);
        match source.kind {
            SourceKind::Http { address, path } => room.out.list.push(Effect::AskSource {
                fleet: self.name.clone(),
                address,
                path,
                timeout: source.timeout,
            }),
            SourceKind::Exec(command) => self.run_source(&command, room),
        }
    }

    /// It runs as the fleet's workers do, and what it says first is the number.
    fn run_source(&mut self, command: &HookSpec, room: &mut Room<'_>) {
        self.asked = Asked::Runs;
        let worker = WorkerId {
            fleet: self.name.clone(),
            slot: SlotIndex(0),
        };
        let spec = spawn::source(&worker, &self.spec, room.facts, command);
        room.out.keeper(Op::Spawn {
            key: self.source_key(),
            after: Generation::default(),
            body: Vec::new(),
            stop: spawn::stop_record(&self.spec),
            deadline: Some(command.timeout),
            spec: Box::new(spec),
        });
    }

    /// It ended, or could not be run.
    pub(super) fn source_ended(
        &mut self,
        status: Result<ExitStatus, &'static str>,
        room: &mut Room<'_>,
    ) {
        if status.is_ok() {
            self.asked = Asked::Nobody;
        }
        let Some(scaling) = &mut self.body.scale else {
            return;
        };
        let why = match status {
            // The last supervisor asked: the answer was for that one.
            _ if !scaling.source_asked => return,
            Ok(ExitStatus::Code(0)) => {
                let fleet = self.name.clone();
                room.out.list.push(Effect::ReadSource(fleet));
                return;
            }
            Ok(status) => ExitWords(status).to_string(),
            Err(why) => why.to_owned(),
        };
        scaling.source_asked = false;
        scaling.sourced = Some((room.now, Err(format!("its program {why}"))));
    }
}
