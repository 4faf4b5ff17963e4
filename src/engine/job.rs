//! A fleet that is a job: what its machine decides is done with its one slot, and what operators ask is passed to it.

use crate::{
    config::spec::{FleetSpec, SingletonSpec},
    engine::{
        book::Book,
        command::{By, Denial, Reply, Selected},
        cron::{Cron, FAR_LOCK_PATIENCE, JobDesk, LOCK_PATIENCE, Move, Seen},
        effect::Effects,
        fleet::{Fleet, Room, Stance},
        slot::{Slot, State},
        status::{CronStatus, RunStatus},
        supervisor::Supervisor,
    },
    exit::ExitCode,
    id::{FleetName, RequestId, SlotIndex},
    time::{Moment, Span, Stamp},
};

/// A job has one slot.
const SLOT: SlotIndex = SlotIndex(0);
/// Decisions that follow from each other in one step: a run that ended and the next one that begins are five.
const TURNS_MAX: usize = 16;

impl Fleet {
    /// A job has a machine that follows its schedule; other fleets have none.
    pub(super) fn fit_cron(&mut self) {
        match &self.spec.cron {
            Some(spec) => self.body.cron.get_or_insert_with(Box::default).follow(spec),
            None => self.body.cron = None,
        }
    }

    /// A job's new settings are for its next run; its schedule changes at once.
    pub(super) fn respecify_job(&mut self, spec: FleetSpec, room: &mut Room<'_>) {
        self.removed = false;
        self.spec = spec;
        self.previous = None;
        self.body.rollout = None;
        self.fit_cron();
        let all: Vec<SlotIndex> = self.slots.keys().copied().collect();
        for index in all {
            self.with_slot(index, room, |slot, desk| slot.respecified(desk));
        }
    }

    /// Has its machine decide until it rests.
    pub(super) fn tend_job(&mut self, stance: Stance, room: &mut Room<'_>) {
        for _ in 0..TURNS_MAX {
            let next = self.with_job(stance, room, Cron::turn);
            match next {
                None | Some(Move::Rest) => return,
                Some(Move::Again) => {}
                Some(Move::Seek) => {
                    self.with_slot(SLOT, room, Slot::passes);
                    return;
                }
                Some(Move::Start) => {
                    if let Some(slot) = self.slots.get_mut(&SLOT) {
                        slot.last_exit = None;
                    }
                    self.start_slot(SLOT, room);
                }
                Some(Move::Stop(ending)) => {
                    self.with_slot(SLOT, room, |slot, desk| slot.stop(ending, desk));
                    return;
                }
                Some(Move::Clear) => {
                    self.with_slot(SLOT, room, |slot, _| {
                        if slot.state == State::Done {
                            slot.state = State::Vacant;
                        }
                    });
                }
            }
        }
    }

    /// Its book was read.
    pub(super) fn book_read(
        &mut self,
        stance: Stance,
        result: Result<Option<Box<Book>>, String>,
        room: &mut Room<'_>,
    ) {
        let result = result.map(|book| book.map(|book| *book));
        self.with_job(stance, room, |cron, seen, desk| {
            cron.book_read(result, seen, desk);
        });
    }

    /// Its book is on disk, or is not.
    pub(super) fn book_kept(
        &mut self,
        stance: Stance,
        result: Result<(), String>,
        room: &mut Room<'_>,
    ) {
        self.with_job(stance, room, |cron, _, desk| cron.book_kept(result, desk));
    }

    /// Somebody wants a run now; answered when it begins. An error says why there is none.
    pub(super) fn run_now(
        &mut self,
        stance: Stance,
        request: RequestId,
        who: &str,
        room: &mut Room<'_>,
    ) -> Result<(), String> {
        let asked = self.with_job(stance, room, |cron, _, desk| cron.ask(request, who, desk));
        asked.unwrap_or_else(|| Err("it is no job".to_owned()))
    }

    fn with_job<R>(
        &mut self,
        stance: Stance,
        room: &mut Room<'_>,
        work: impl FnOnce(&mut Cron, &Seen, &mut JobDesk<'_>) -> R,
    ) -> Option<R> {
        let spec = self.spec.cron.as_ref()?;
        let cron = self.body.cron.as_mut()?;
        let slot = self.slots.entry(SLOT).or_default();
        let seen = Seen {
            live: slot.is_live() || slot.says_farewell,
            since: slot.process.map(|process| process.since),
            ending: slot.ending,
            last_exit: slot.last_exit,
            open: slot.gate.is_open(),
            may_begin: slot.gate.is_open()
                && slot.lease_allows(room.clocks)
                && slot.gate.sought() == self.spec.singleton.as_ref(),
            asks: slot.gate.sought().is_some(),
            waits: slot.gate.why_shut().map(str::to_owned),
        };
        let mut desk = JobDesk {
            now: room.now,
            clock: room.clock,
            name: &self.name,
            spec,
            success: &self.spec.restart.success,
            gated: self.spec.singleton.is_some(),
            lock_patience: lock_patience(self.spec.singleton.as_ref()),
            heir_patience: heir_patience(self.spec.singleton.as_ref()),
            stance,
            held: room.intent.holds(&self.name, SLOT),
            removed: self.removed,
            jitter: room.jitter,
            out: room.out,
        };
        Some(work(cron, &seen, &mut desk))
    }

    pub(super) fn job_deadline(&self) -> Option<Moment> {
        let (spec, cron) = (self.spec.cron.as_ref()?, self.body.cron.as_ref()?);
        let slot = self.slots.get(&SLOT);
        let since = slot
            .filter(|slot| slot.ending.is_none())
            .and_then(|slot| Some(slot.process?.since));
        cron.deadline(spec, since, self.looked)
    }

    /// When the wall clock shows this, it has something to decide.
    pub(super) fn wake(&self, held: bool) -> Option<Stamp> {
        let cron = self.body.cron.as_ref().filter(|_| !self.removed)?;
        cron.next(held)
    }

    /// Is its book being written?
    pub(super) fn is_writing(&self, now: Moment) -> bool {
        let cron = self.body.cron.as_ref();
        cron.is_some_and(|cron| cron.is_writing(now))
    }

    /// The job for people; none if it is none.
    pub(super) fn cron_status(&self, held: bool) -> Option<CronStatus> {
        let (spec, cron) = (self.spec.cron.as_ref()?, self.body.cron.as_ref()?);
        Some(CronStatus {
            spec: spec.clone(),
            next: self.wake(held),
            waiting: cron.waiting(),
            run: cron.running().map(|run| RunStatus {
                run: run.clone(),
                pausing: cron.is_pausing(),
            }),
            history: cron.book.history.iter().cloned().collect(),
        })
    }
}

/// Whoever had it may be letting it go; what somebody in a cluster left behind who is gone without a word has its time to end.
fn lock_patience(lock: Option<&SingletonSpec>) -> Span {
    match lock.filter(|spec| spec.is_of_cluster()) {
        Some(spec) => spec.takeover_delay().plus(FAR_LOCK_PATIENCE),
        None => LOCK_PATIENCE,
    }
}

/// What this machine had under its last lease in a cluster is free when that is over, and its successors have waited.
fn heir_patience(lock: Option<&SingletonSpec>) -> Span {
    let lease = lock.and_then(|spec| spec.lease.as_ref());
    let ttl = lease.filter(|_| lock.is_some_and(SingletonSpec::is_of_cluster));
    lock_patience(lock).plus(ttl.map_or(Span::ZERO, |lease| lease.ttl))
}

/// What operators ask of jobs.
impl Supervisor {
    /// A run now, whatever the schedule says.
    pub(super) fn run(
        &mut self,
        request: RequestId,
        name: &str,
        by: &By,
        now: Moment,
        out: &mut Effects,
    ) -> Result<Option<Reply>, Denial> {
        self.not_stopping()?;
        self.not_drained()?;
        let selected = self.selected(&[name.to_owned()])?;
        let [Selected::Fleet(name)] = selected.as_slice() else {
            return Err(Denial::new(ExitCode::Usage, "name one job"));
        };
        if !self.is_job(name) {
            let why = format!("{name} is a fleet; `leasehold start {name}` starts it");
            return Err(Denial::new(ExitCode::Usage, why));
        }
        if self.intent.holds(name, SlotIndex(0)) {
            let why = format!("{name} is held; `leasehold start {name}` lifts that");
            return Err(Denial::new(ExitCode::Conflict, why));
        }
        let stance = self.stance(name);
        let asked = self.with_fleet(name, now, out, |fleet, room| {
            fleet.run_now(stance, request, &by.who, room)
        });
        match asked {
            Some(Err(why)) => Err(Denial::new(ExitCode::Conflict, format!("{name}: {why}"))),
            Some(Ok(())) | None => Ok(None),
        }
    }

    pub(super) fn is_job(&self, name: &FleetName) -> bool {
        let fleet = self.fleets.get(name);
        fleet.is_some_and(|fleet| fleet.spec.cron.is_some())
    }

    /// Only what is always there can be restarted. A pattern leaves jobs out; one that is named is a mistake.
    pub(super) fn without_jobs(
        &self,
        names: &[String],
        mut selected: Vec<Selected>,
    ) -> Result<Vec<Selected>, Denial> {
        let fleet_of = |one: &Selected| match one {
            Selected::Fleet(name) => name.clone(),
            Selected::Slot(worker) => worker.fleet.clone(),
        };
        for one in &selected {
            let fleet = fleet_of(one);
            let head = |name: &String| name.split('/').next() == Some(fleet.as_str());
            if self.is_job(&fleet) && names.iter().any(head) {
                let why = format!(
                    "{fleet} is a job: `leasehold cron run {fleet}` starts a run, `stop` ends one and holds the job"
                );
                return Err(Denial::new(ExitCode::Conflict, why));
            }
        }
        selected.retain(|one| !self.is_job(&fleet_of(one)));
        if selected.is_empty() {
            let why = "there are only jobs of such names: they are run, not restarted";
            return Err(Denial::new(ExitCode::Conflict, why));
        }
        Ok(selected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::spec::{Authority, LeaseSpec, Takeover};

    /// Else no tick of it would ever have its lock again.
    #[test]
    fn a_run_waits_longer_than_its_lock_does() {
        let lease = LeaseSpec {
            authority: Authority::Cluster("main".to_owned()),
            epoch: 0,
            ttl: Span::secs(30),
            grace: Span::secs(2),
            kill_margin: Span::secs(8),
        };
        for takeover in [Takeover::After(Span::secs(8)), Takeover::Strict] {
            let lock = SingletonSpec {
                lease: Some(lease.clone()),
                takeover,
                ..SingletonSpec::default()
            };
            let (delay, waits) = (lock.takeover_delay(), lock_patience(Some(&lock)));
            assert!(waits > delay, "{waits} of {delay}");
            assert!(heir_patience(Some(&lock)) > delay.plus(lease.ttl));
        }
    }
}
