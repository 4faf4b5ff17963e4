//! A fake machine of the cluster: processes that start, ignore SIGTERM, and linger after SIGKILL; and the deadlines of the keeper's second
//! thread.

use std::collections::BTreeMap;

use leasehold::{
    engine::event::Note,
    id::{FleetName, Generation, WorkerId},
    keeper::core::Kernel,
    time::{Clocks, Span, Stamp},
    wire::{
        self, Alive, Containment, ExitStatus, PageSpec, RowKey, SpawnSpec, SpawnStep, Target,
        TaskKind,
    },
};

use crate::{jobs::Jobs, node::UNDER_LOCK, reload::BROKEN, rng::Rng};

/// Epoch and fence: what a store compares.
pub(crate) type Token = (u64, u64);

#[derive(Clone, Debug)]
pub(crate) enum Act {
    Exit(ExitStatus),
    FamilyGone,
    Ready,
}

#[derive(Clone, Debug)]
pub(crate) struct Proc {
    pub(crate) key: RowKey,
    pub(crate) generation: Generation,
    pub(crate) leader: bool,
    pub(crate) family: bool,
    /// 0: it stands by.
    pub(crate) fence: u64,
    killed: bool,
}

impl Proc {
    /// Is anything left of it but an exit status that nobody has asked for?
    pub(crate) fn lives(&self) -> bool {
        self.leader || self.family
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub(crate) fence: u64,
    pub(crate) until: Clocks,
    pub(crate) fired: bool,
}

/// What the keeper learns.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    LeaderEnded(RowKey, ExitStatus),
    Empty(RowKey),
    Ready(RowKey, Generation),
}

const TOO_LATE: ExitStatus = ExitStatus::SpawnFailed {
    step: SpawnStep::Deadline,
    errno: 62,
};

#[derive(Debug)]
pub(crate) struct Host {
    rng: Rng,
    /// On this machine's clocks, as its keeper sees them.
    pub(crate) now: Clocks,
    pub(crate) procs: BTreeMap<i32, Proc>,
    by_key: BTreeMap<RowKey, i32>,
    pub(crate) agenda: Vec<(Span, i32, Act)>,
    pub(crate) seats: BTreeMap<WorkerId, Seat>,
    /// Workers are started although nothing will kill them in time.
    pub(crate) is_careless: bool,
    pub(crate) tempers: bool,
    pub(crate) stubborn: bool,
    /// What was killed is gone by then.
    pub(crate) linger: Span,
    /// A hook begins, behind which a worker is to lead.
    pub(crate) prepares: bool,
    /// Who leads from now on, and whether he stood by before.
    pub(crate) began: Vec<(WorkerId, Token, bool)>,
    /// The wall clock, and the jobs that follow it.
    pub(crate) jobs: Jobs,
    /// Keepers that there were before.
    pub(crate) keeper_deaths: u64,
    /// Ticks whose runs have begun, once more perhaps.
    pub(crate) runs: Vec<(FleetName, Stamp)>,
    next_pid: i32,
}

impl Host {
    pub(crate) fn new(rng: Rng, linger: Span) -> Self {
        Self {
            rng,
            now: Clocks::default(),
            procs: BTreeMap::new(),
            by_key: BTreeMap::new(),
            agenda: Vec::new(),
            seats: BTreeMap::new(),
            is_careless: false,
            tempers: true,
            stubborn: false,
            linger,
            prepares: false,
            began: Vec::new(),
            jobs: Jobs::default(),
            keeper_deaths: 0,
            runs: Vec::new(),
            next_pid: 100,
        }
    }

    /// What lives for this worker, and leads.
    pub(crate) fn leader(&self, worker: &WorkerId) -> Option<&Proc> {
        self.process(worker).filter(|proc| proc.fence != 0)
    }

    /// What lives for this worker.
    pub(crate) fn process(&self, worker: &WorkerId) -> Option<&Proc> {
        let pid = self.by_key.get(&RowKey::Slot(worker.clone()))?;
        self.procs.get(pid)
    }

    /// Will it be killed in time?
    fn is_armed(&self, worker: &WorkerId, fence: u64) -> bool {
        let is_past = |seat: &Seat| seat.fired || self.now.has_passed(seat.until);
        let stands = |seat: &Seat| seat.fence == fence && !is_past(seat);
        self.is_careless || self.seats.get(worker).is_some_and(stands)
    }

    /// Leaders that live for workers of this fleet.
    pub(crate) fn count(&self, fleet: &FleetName) -> usize {
        let is_its = |proc: &&Proc| matches!(&proc.key, RowKey::Slot(id) if id.fleet == *fleet);
        self.procs.values().filter(is_its).count()
    }

    /// By which fence something of its lock lives here: its leader, or a hook of his.
    pub(crate) fn holds(&self, worker: &WorkerId) -> Option<u64> {
        let is_its = |key: &RowKey| match key {
            RowKey::Slot(id) | RowKey::Task(id, _) => id == worker,
            RowKey::Node | RowKey::Fleet(_) => false,
        };
        let mut all = self.procs.values();
        let one = all.find(|proc| is_its(&proc.key) && proc.fence != 0 && proc.lives());
        one.map(|proc| proc.fence)
    }

    fn add(&mut self, key: RowKey, generation: Generation, fence: u64) -> i32 {
        let pid = self.next_pid;
        self.next_pid += 1;
        let proc = Proc {
            key: key.clone(),
            generation,
            leader: true,
            family: self.rng.chance(30),
            fence,
            killed: false,
        };
        self.procs.insert(pid, proc);
        self.by_key.insert(key, pid);
        pid
    }

    fn alive(&self, pid: i32) -> Alive {
        Alive {
            pid,
            start_ticks: pid as u64,
            since: self.now.boottime,
            containment: Containment::Cgroup,
        }
    }

    /// What runs before or after a worker, under his lock.
    fn hook(
        &mut self,
        (worker, kind): (&WorkerId, TaskKind),
        generation: Generation,
        spec: &SpawnSpec,
    ) -> Result<Alive, ExitStatus> {
        let fence = self.seats.get(worker).map_or(0, |seat| seat.fence);
        assert_eq!(spec.page.is_some(), kind == TaskKind::PreStart);
        assert_eq!(spec.ends_with_worker, kind == TaskKind::PreStop);
        assert!(spec.page.is_none_or(|page| page.fence == fence));
        if !self.is_armed(worker, fence) {
            return Err(TOO_LATE);
        }
        let key = RowKey::Task(worker.clone(), kind);
        let pid = self.add(key, generation, fence);
        let most = *self.rng.pick(&[1_000, 6_000, 14_000]);
        let end = self.rng.span(1, most);
        let fails = self.tempers && self.rng.chance(10);
        let status = ExitStatus::Code(i32::from(fails));
        self.agenda.push((end, pid, Act::Exit(status)));
        self.prepares |= kind == TaskKind::PreStart;
        Ok(self.alive(pid))
    }

    /// A deadline has come: whoever is in its seat is killed.
    pub(crate) fn strike(&mut self, worker: &WorkerId) {
        // Who stands by has no deadline.
        if self.leader(worker).is_some() {
            self.kill(&RowKey::Slot(worker.clone()));
        }
        for hook in [TaskKind::PreStart, TaskKind::PreStop] {
            self.kill(&RowKey::Task(worker.clone(), hook));
        }
    }

    pub(crate) fn happen(&mut self, pid: i32, act: &Act) -> Option<Change> {
        let proc = self.procs.get_mut(&pid)?;
        match act {
            Act::Exit(status) if proc.leader => {
                proc.leader = false;
                Some(Change::LeaderEnded(proc.key.clone(), *status))
            }
            Act::FamilyGone if !proc.leader && proc.family => {
                proc.family = false;
                Some(Change::Empty(proc.key.clone()))
            }
            Act::Ready if proc.leader => Some(Change::Ready(proc.key.clone(), proc.generation)),
            Act::Exit(_) | Act::FamilyGone | Act::Ready => None,
        }
    }

    pub(crate) fn pid(&self, key: &RowKey) -> Option<i32> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn has_family(&self, key: &RowKey) -> bool {
        let pid = self.by_key.get(key);
        pid.is_some_and(|pid| self.procs[pid].family)
    }

    /// The machine, or all that is contained on it, is gone.
    pub(crate) fn wipe(&mut self) {
        self.procs.clear();
        self.by_key.clear();
        self.agenda.clear();
        self.seats.clear();
    }
}

impl Kernel for Host {
    fn spawn(
        &mut self,
        key: &RowKey,
        generation: Generation,
        spec: &SpawnSpec,
    ) -> Result<Alive, ExitStatus> {
        assert!(!self.by_key.contains_key(key), "{key} spawned twice");
        let worker = match key {
            RowKey::Slot(worker) => worker,
            RowKey::Task(worker, kind) => return self.hook((worker, *kind), generation, spec),
            RowKey::Node | RowKey::Fleet(_) => panic!("{key} has no process"),
        };
        // Whoever needs no lock has none.
        let needs_lock = spec.argv.first().is_some_and(|name| name == UNDER_LOCK);
        assert!(spec.page.is_some() || !needs_lock, "{key} has no lock");
        let fence = spec.page.as_ref().map_or(0, |page| page.fence);
        if let Some(page) = &spec.page {
            let stands_by = page.role == wire::STANDBY;
            assert_eq!(stands_by, fence == 0, "{page:?}");
            if !stands_by && !self.is_armed(worker, fence) {
                return Err(TOO_LATE);
            }
            if !stands_by {
                self.began
                    .push((worker.clone(), (page.epoch, fence), false));
            }
        }
        let run = self.jobs.started(key, spec, self.keeper_deaths);
        let is_run = run.is_some();
        self.runs.extend(run);
        let pid = self.add(key.clone(), generation, fence);
        if is_run {
            let end = self.rng.span(100, 20_000);
            let fails = self.tempers && self.rng.chance(30);
            let status = ExitStatus::Code(i32::from(fails));
            self.agenda.push((end, pid, Act::Exit(status)));
        } else if spec.argv.iter().any(|word| word == BROKEN) {
            let end = self.rng.span(1, 200);
            self.agenda.push((end, pid, Act::Exit(ExitStatus::Code(1))));
        } else {
            let ready = self.rng.span(1, 200);
            self.agenda.push((ready, pid, Act::Ready));
        }
        if self.tempers && self.rng.chance(10) {
            let end = self.rng.span(0, 20_000);
            self.agenda.push((end, pid, Act::Exit(ExitStatus::Code(1))));
        }
        Ok(self.alive(pid))
    }

    fn promote(&mut self, key: &RowKey, page: &PageSpec) -> bool {
        let RowKey::Slot(worker) = key else {
            panic!("nothing but workers is promoted: {key}");
        };
        assert!(page.role == wire::HOLDER && page.timed, "{page:?}");
        let armed = self.is_armed(worker, page.fence);
        let Some(proc) = self.by_key.get(key).and_then(|pid| self.procs.get_mut(pid)) else {
            return false;
        };
        if proc.fence != 0 {
            return proc.fence == page.fence;
        }
        if armed {
            proc.fence = page.fence;
            self.began
                .push((worker.clone(), (page.epoch, page.fence), true));
        }
        armed
    }

    fn signal(&mut self, key: &RowKey, number: i32, _: Target) {
        let Some(&pid) = self.by_key.get(key).filter(|_| number == 15) else {
            return;
        };
        // One in some does not care.
        if !self.stubborn && !self.rng.chance(20) {
            let after = self.rng.span(1, 1_500);
            let end = Act::Exit(ExitStatus::Code(0));
            self.agenda.push((after, pid, end));
        }
    }

    fn kill(&mut self, key: &RowKey) {
        let Some(&pid) = self.by_key.get(key) else {
            return;
        };
        let Some(proc) = self.procs.get_mut(&pid) else {
            return;
        };
        if std::mem::replace(&mut proc.killed, true) && proc.leader {
            return;
        }
        let most = self.linger.as_millis();
        let after = match self.rng.chance(10) {
            _ if self.stubborn => self
                .rng
                .span(most.saturating_sub(50), most.saturating_sub(10)),
            true => self.rng.span(most / 2, most.saturating_sub(10)),
            false => self.rng.span(1, 50.min(most)),
        };
        let number = 9;
        let end = ExitStatus::Signal {
            number,
            core: false,
        };
        self.agenda.push((after, pid, Act::Exit(end)));
        let rest = after.plus(Span::micros(10));
        self.agenda.push((rest, pid, Act::FamilyGone));
    }

    fn release(&mut self, key: &RowKey) {
        let pid = self.by_key.remove(key).expect("it has a process");
        let proc = self.procs.remove(&pid).expect("it has a process");
        assert!(!proc.leader && !proc.family, "{key} released alive");
    }
}

/// What a note says.
pub(crate) fn ready() -> Note {
    Note::Ready
}
