//! A fake machine: processes that start slowly, crash, hang, fork, ignore SIGTERM and linger after SIGKILL.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::{
    engine::event::Note,
    id::Generation,
    keeper::core::Kernel,
    time::{Clocks, Moment, Span},
    wire::{
        Alive, Containment, ExitStatus, PageSpec, RowKey, SpawnSpec, SpawnStep, Target, TaskKind,
    },
};

use crate::{jobs::Jobs, rng::Rng};

/// What a process will do of its own accord, or when told.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// The leader ends.
    Exit(ExitStatus),
    /// What is left of its family ends.
    FamilyGone,
    /// It says something.
    Say(Note),
}

/// A generation on the machine: a leader and perhaps children of its own.
#[derive(Clone, Debug)]
pub(crate) struct Proc {
    pub(crate) key: RowKey,
    pub(crate) generation: Generation,
    pub(crate) leader: bool,
    pub(crate) family: u32,
    pub(crate) listens: bool,
    pub(crate) term_at: Option<Moment>,
    pub(crate) killed: bool,
    pub(crate) killed_at: Option<Moment>,
    temper: Temper,
}

#[derive(Clone, Debug)]
struct Temper {
    on_term: OnTerm,
    dies_in: Span,
}

#[derive(Clone, Debug)]
enum OnTerm {
    Exit(Span),
    Ignore,
    AskForMore(Span, Span),
}

/// A deadline, as the keeper's second thread has it.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) fence: u64,
    pub(crate) until: Clocks,
    pub(crate) fired: Option<Span>,
}

/// The machine, and what happens on it next: `(when, pid, what)` to be scheduled by the world.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) rng: Rng,
    pub(crate) now: Moment,
    pub(crate) procs: BTreeMap<i32, Proc>,
    pub(crate) by_key: BTreeMap<RowKey, i32>,
    pub(crate) agenda: Vec<(Moment, i32, Act)>,
    pub(crate) tempers: bool,
    pub(crate) spawned: u64,
    pub(crate) reaped: BTreeSet<i32>,
    pub(crate) terms: Vec<(RowKey, Generation)>,
    /// The deadline of the one worker that has one.
    pub(crate) seat: Option<Seat>,
    pub(crate) jobs: Jobs,
    pub(crate) keeper_deaths: u64,
    next_pid: i32,
}

impl Host {
    /// Who lives of those that run under the lock of that name: a worker, or a hook of his.
    pub(crate) fn under(&self, lock: &str) -> Option<&RowKey> {
        let is_under = |key: &&RowKey| match key {
            RowKey::Slot(worker) | RowKey::Task(worker, TaskKind::PreStart | TaskKind::PreStop) => {
                leasehold::engine::lock_name(worker) == lock
            }
            RowKey::Task(..) | RowKey::Node | RowKey::Fleet(_) => false,
        };
        self.by_key.keys().find(is_under)
    }

    pub(crate) fn new(rng: Rng, tempers: bool) -> Self {
        Self {
            rng,
            now: Moment(0),
            procs: BTreeMap::new(),
            by_key: BTreeMap::new(),
            agenda: Vec::new(),
            tempers,
            spawned: 0,
            reaped: BTreeSet::new(),
            terms: Vec::new(),
            seat: None,
            jobs: Jobs::default(),
            keeper_deaths: 0,
            next_pid: 100,
        }
    }

    pub(crate) fn process(&self, key: &RowKey) -> Option<&Proc> {
        self.procs.get(self.by_key.get(key)?)
    }

    fn later(&mut self, after: Span, pid: i32, act: Act) {
        self.agenda.push((self.now.after(after), pid, act));
    }

    fn temper(&mut self) -> Temper {
        let rng = &mut self.rng;
        let mild = !self.tempers || rng.chance(60);
        let on_term = match rng.below(4) {
            _ if mild => OnTerm::Exit(rng.span(1, 500)),
            0 => OnTerm::Ignore,
            1 => OnTerm::Exit(rng.span(1_000, 20_000)),
            2 => OnTerm::AskForMore(rng.span(1_000, 9_000), rng.span(5_000, 60_000)),
            _ => OnTerm::Exit(Span::ZERO),
        };
        let dies_in = if self.tempers && rng.chance(3) {
            rng.span(1_000, 12_000)
        } else {
            rng.span(1, 40)
        };
        Temper { on_term, dies_in }
    }

    /// What a fresh process will do by itself.
    fn plan_life(&mut self, pid: i32, key: &RowKey, spec: &SpawnSpec) {
        let bad = self.tempers;
        if let RowKey::Task(..) = key {
            let code = i32::from(bad && self.rng.chance(20));
            let end = if bad && self.rng.chance(10) {
                Span::secs(60)
            } else {
                self.rng.span(1, 800)
            };
            return self.later(end, pid, Act::Exit(ExitStatus::Code(code)));
        }
        let start = if bad && self.rng.chance(10) {
            Span::secs(60)
        } else {
            self.rng.span(1, 1_500)
        };
        self.later(start, pid, Act::Say(Note::Ready));
        self.later(Span::secs(4), pid, Act::Say(Note::Watchdog));
        let program = spec.program.as_str();
        let end = match program {
            "/bin/once" => Some((
                self.rng.span(500, 30_000),
                i32::from(bad && self.rng.chance(40)),
            )),
            "/bin/job" => Some((
                self.rng.span(100, 100_000),
                i32::from(bad && self.rng.chance(30)),
            )),
            "/bin/flaky" if bad => Some((self.rng.span(0, 9_000), 1)),
            _ if bad && self.rng.chance(15) => Some((self.rng.span(0, 120_000), 1)),
            _ => None,
        };
        if let Some((after, code)) = end {
            let status = if self.rng.chance(30) {
                ExitStatus::Signal {
                    number: 11,
                    core: true,
                }
            } else {
                ExitStatus::Code(code)
            };
            self.later(after, pid, Act::Exit(status));
        }
    }

    /// Something on the agenda happens; true if the keeper would be told that the leader ended, or that nothing is left.
    pub(crate) fn happen(&mut self, pid: i32, act: &Act) -> Option<Change> {
        let proc = self.procs.get_mut(&pid)?;
        match act {
            Act::Exit(status) if proc.leader => {
                proc.leader = false;
                proc.listens = false;
                Some(Change::LeaderEnded(proc.key.clone(), *status))
            }
            Act::FamilyGone if !proc.leader && proc.family > 0 => {
                proc.family = 0;
                Some(Change::Empty(proc.key.clone()))
            }
            Act::Say(note) if proc.leader => {
                proc.listens |= *note == Note::Ready;
                let falls_silent = self.tempers && self.rng.chance(2);
                if *note == Note::Watchdog && !falls_silent {
                    self.agenda.push((
                        self.now.after(Span::secs(4)),
                        pid,
                        Act::Say(Note::Watchdog),
                    ));
                }
                Some(Change::Said(
                    proc.key.clone(),
                    proc.generation,
                    note.clone(),
                ))
            }
            Act::Exit(_) | Act::FamilyGone | Act::Say(_) => None,
        }
    }

    /// The keeper died, and all that it contained with it.
    pub(crate) fn wipe(&mut self) {
        self.procs.clear();
        self.by_key.clear();
        self.agenda.clear();
        self.seat = None;
    }
}

/// What the keeper learns.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    LeaderEnded(RowKey, ExitStatus),
    Empty(RowKey),
    Said(RowKey, Generation, Note),
}

impl Kernel for Host {
    fn spawn(
        &mut self,
        key: &RowKey,
        generation: Generation,
        spec: &SpawnSpec,
    ) -> Result<Alive, ExitStatus> {
        if let Some(pid) = self.by_key.get(key) {
            let there = &self.procs[pid];
            panic!(
                "{key}.{generation} spawned while generation {} has leader {} and family {}",
                there.generation, there.leader, there.family
            );
        }
        if let Some(page) = spec.page.filter(|page| page.timed) {
            let stands = |seat: &Seat| seat.fence == page.fence && seat.fired.is_none();
            if !self.seat.as_ref().is_some_and(stands) {
                return Err(ExitStatus::SpawnFailed {
                    step: SpawnStep::Deadline,
                    errno: 62,
                });
            }
        }
        self.jobs.started(key, spec, self.keeper_deaths);
        if self.tempers && self.rng.chance(3) {
            return Err(ExitStatus::SpawnFailed {
                step: SpawnStep::Exec,
                errno: 2,
            });
        }
        let pid = self.next_pid;
        self.next_pid += 1;
        self.spawned += 1;
        let family = if self.rng.chance(30) {
            1 + self.rng.below(3) as u32
        } else {
            0
        };
        let temper = self.temper();
        let proc = Proc {
            key: key.clone(),
            generation,
            leader: true,
            family,
            listens: false,
            term_at: None,
            killed: false,
            killed_at: None,
            temper,
        };
        self.procs.insert(pid, proc);
        self.by_key.insert(key.clone(), pid);
        self.plan_life(pid, key, spec);
        Ok(Alive {
            pid,
            start_ticks: pid as u64,
            since: self.now,
            containment: Containment::Cgroup,
        })
    }

    fn promote(&mut self, key: &RowKey, _: &PageSpec) -> bool {
        panic!("{key} does not stand by");
    }

    fn signal(&mut self, key: &RowKey, number: i32, _: Target) {
        let Some(&pid) = self.by_key.get(key) else {
            return;
        };
        let now = self.now;
        let Some(proc) = self.procs.get_mut(&pid) else {
            return;
        };
        if number != 15 || !proc.leader {
            return;
        }
        proc.term_at.get_or_insert(now);
        self.terms.push((key.clone(), proc.generation));
        match proc.temper.on_term.clone() {
            OnTerm::Exit(after) => self.later(after, pid, Act::Exit(ExitStatus::Code(0))),
            OnTerm::Ignore => {}
            OnTerm::AskForMore(after, more) => {
                self.later(after, pid, Act::Say(Note::Extend(more)));
                self.later(after.plus(more), pid, Act::Exit(ExitStatus::Code(0)));
            }
        }
    }

    fn kill(&mut self, key: &RowKey) {
        let Some(&pid) = self.by_key.get(key) else {
            return;
        };
        let Some(proc) = self.procs.get_mut(&pid) else {
            return;
        };
        if proc.killed && proc.leader {
            return;
        }
        proc.killed = true;
        proc.killed_at.get_or_insert(self.now);
        let (leader, dies_in) = (proc.leader, proc.temper.dies_in);
        if leader {
            self.later(
                dies_in,
                pid,
                Act::Exit(ExitStatus::Signal {
                    number: 9,
                    core: false,
                }),
            );
        }
        self.later(dies_in.plus(Span::micros(10)), pid, Act::FamilyGone);
    }

    fn release(&mut self, key: &RowKey) {
        let pid = self
            .by_key
            .remove(key)
            .unwrap_or_else(|| panic!("{key} released twice"));
        let proc = self.procs.remove(&pid).expect("a seat has a process");
        assert!(
            !proc.leader && proc.family == 0,
            "{key} released while something of it lives"
        );
        assert!(self.reaped.insert(pid), "pid {pid} reaped twice");
    }
}
