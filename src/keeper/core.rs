//! The keeper's rows and what is done to them: pure, so that the simulation runs this very code.
//!
//! ```text
//!            Spawn                     leader ends              containment empty            Forget
//!   Vacant ─────────▶ Alive ─────────────────────▶ Clearing ─────────────────────▶ Gone ───────────▶ Vacant
//!      ▲                 spawn fails                                                 ▲                  │
//!      └──────────────────────────────────────────────────────────────────────────────┘◀────────────────┘
//! ```
//!
//! No policy lives here: a containment is killed with its leader, a generation is never issued twice, an exit record stays until
//! the row that acted on it arrives. When there is no supervisor to decide, [`Core::drain_alone`] runs the stop records by rank.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    id::Generation,
    time::{Moment, Span},
    wire::{
        Alive, Asked, BODY_MAX, ExitRecord, ExitStatus, Header, News, Op, PageSpec, Process,
        RowKey, SpawnSpec, StopRecord, Stopping, Target, TaskKind,
    },
};

/// Requests to drain that come within this are one.
const SAME_REQUEST: Span = Span::millis(300);
/// A helper of which something is left is killed again this often; of workers the supervisor sees to that, and says so.
const KILL_AGAIN: Span = Span::secs(5);

/// What the keeper asks of the kernel. `sys` answers in the real program, a fake host in the simulation.
pub trait Kernel {
    /// Starts a process, or says at which step that failed.
    fn spawn(
        &mut self,
        key: &RowKey,
        generation: Generation,
        spec: &SpawnSpec,
    ) -> Result<Alive, ExitStatus>;
    /// Has a leader hold what its page says; false: it may not any more, and its page is over.
    fn promote(&mut self, key: &RowKey, page: &PageSpec) -> bool;
    /// Signals a leader that has not been reaped, or its group.
    fn signal(&mut self, key: &RowKey, number: i32, to: Target);
    /// SIGKILL to the whole containment. Who is born meanwhile may be missed where the kernel has no cgroup.kill, and is for the next one.
    fn kill(&mut self, key: &RowKey);
    /// The containment is empty: reap the leader, remove the leaf, close what was open.
    fn release(&mut self, key: &RowKey);
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Row {
    header: Header,
    body: Vec<u8>,
    /// A helper's hard end; when it is killed the next time, once that was done.
    deadline: Option<Moment>,
    /// A hook that is not to outlive the leader of its slot.
    ends_with_worker: bool,
    /// Draining alone: when patience with this one ends.
    kill_at: Option<Moment>,
}

impl Row {
    /// Is its leader there, as far as is known?
    fn lives(&self) -> bool {
        matches!(self.header.process, Process::Alive(_))
    }

    /// Is anything of it there?
    fn is_busy(&self) -> bool {
        self.lives() || matches!(self.header.process, Process::Clearing(_))
    }
}

/// All rows, and what of them the supervisor has not been told yet.
#[derive(Clone, Debug, Default)]
pub struct Core {
    rows: BTreeMap<RowKey, Row>,
    asked: Asked,
    dirty: BTreeSet<RowKey>,
    asked_dirty: bool,
    refused: Vec<(RowKey, Generation)>,
    echoes: Vec<u64>,
    alone: bool,
}

impl Core {
    /// No rows yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What signals asked for so far.
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// Carries out one request about rows. Requests about descriptors and the daemon itself are the caller's.
    pub fn apply(&mut self, op: Op, now: Moment, kernel: &mut impl Kernel) {
        match op {
            Op::Put { key, body } => self.store(&key, body),
            Op::Drop { key } => self.drop_row(&key),
            Op::Spawn {
                key,
                after,
                body,
                stop,
                deadline,
                spec,
            } => {
                let too_late = spec.ends_with_worker && !self.has_leader(&key);
                if too_late || !self.is_vacant_after(&key, after) {
                    self.refuse(key, after);
                    return;
                }
                self.store(&key, body);
                let row = self.rows.entry(key.clone()).or_default();
                row.header.stop = stop;
                row.header.generation = after.next();
                row.deadline = deadline.map(|span| now.after(span));
                row.kill_at = None;
                row.ends_with_worker = spec.ends_with_worker;
                row.header.process = match kernel.spawn(&key, after.next(), &spec) {
                    Ok(alive) => Process::Alive(alive),
                    Err(status) => Process::Gone(ExitRecord {
                        pid: 0,
                        status,
                        since: now,
                        at: now,
                    }),
                };
                self.dirty.insert(key);
            }
            Op::Signal {
                key,
                generation,
                signal,
                to,
                body,
            } => {
                self.store(&key, body);
                if self.lives(&key, generation) {
                    kernel.signal(&key, signal, to);
                }
            }
            Op::Kill {
                key,
                generation,
                body,
            } => {
                // Whoever is killed in case he is there makes no row by it.
                if self.rows.contains_key(&key) {
                    self.store(&key, body);
                }
                if self.lives(&key, generation) {
                    self.kill(&key, now, kernel);
                }
            }
            Op::Forget {
                key,
                generation,
                body,
            } => {
                self.store(&key, body);
                if let Some(row) = self.rows.get_mut(&key)
                    && row.header.generation == generation
                    && matches!(row.header.process, Process::Gone(_))
                {
                    row.header.process = Process::Vacant;
                    row.deadline = None;
                }
            }
            Op::Promote {
                key,
                generation,
                page,
                body,
            } => {
                self.store(&key, body);
                if self.leads(&key, generation) && !kernel.promote(&key, &page) {
                    kernel.kill(&key);
                }
            }
            Op::Stop { key, stop } => {
                if let Some(row) = self.rows.get_mut(&key) {
                    row.header.stop = stop;
                }
            }
            Op::Hold { .. }
            | Op::Release { .. }
            | Op::Pong { .. }
            | Op::Notify { .. }
            | Op::Echo { .. }
            | Op::Exit { .. } => {
                debug_assert!(false, "{op:?} is not about rows");
            }
        }
    }

    /// Says no to a spawn; the supervisor learns of it.
    pub fn refuse(&mut self, key: RowKey, after: Generation) {
        self.refused.push((key, after));
    }

    /// The leader has ended: what is left of its containment ends with it.
    pub fn leader_ended(
        &mut self,
        key: &RowKey,
        status: ExitStatus,
        now: Moment,
        kernel: &mut impl Kernel,
    ) {
        let Some(row) = self.rows.get_mut(key) else {
            return;
        };
        if let Process::Alive(alive) = &row.header.process {
            row.header.process = Process::Clearing(ExitRecord {
                pid: alive.pid,
                status,
                since: alive.since,
                at: now,
            });
            self.dirty.insert(key.clone());
            self.kill(key, now, kernel);
            self.end_farewell(key, now, kernel);
        }
    }

    fn kill(&mut self, key: &RowKey, now: Moment, kernel: &mut impl Kernel) {
        kernel.kill(key);
        if let (RowKey::Task(..), Some(row)) = (key, self.rows.get_mut(key)) {
            row.deadline = Some(now.after(KILL_AGAIN));
        }
    }

    /// Does the worker live whose hook this is?
    fn has_leader(&self, hook: &RowKey) -> bool {
        let RowKey::Task(worker, _) = hook else {
            return false;
        };
        let row = self.rows.get(&RowKey::Slot(worker.clone()));
        row.is_some_and(Row::lives)
    }

    /// Kills the hook that ran before a worker's end, if that is not to run after it.
    fn end_farewell(&mut self, key: &RowKey, now: Moment, kernel: &mut impl Kernel) {
        let RowKey::Slot(worker) = key else { return };
        let hook = RowKey::Task(worker.clone(), TaskKind::PreStop);
        let row = self.rows.get(&hook);
        if row.is_some_and(|row| row.ends_with_worker && row.lives()) {
            self.kill(&hook, now, kernel);
        }
    }

    /// Nothing is left of it.
    pub fn containment_empty(&mut self, key: &RowKey, kernel: &mut impl Kernel) {
        let Some(row) = self.rows.get_mut(key) else {
            return;
        };
        if let Process::Clearing(record) = &row.header.process {
            row.header.process = Process::Gone(*record);
            self.dirty.insert(key.clone());
            kernel.release(key);
        }
    }

    /// A signal asked for something. Escalation only goes up; a second request to drain means "kill now".
    pub fn ask(&mut self, request: Request, by: Option<(i32, u32)>, now: Moment) {
        match request {
            Request::Drain if self.asked.stopping == Stopping::No => {
                self.asked.stopping = Stopping::Drain;
                self.asked.since = now;
            }
            // timeout(1) signals the process and then its group; wrappers repeat a terminal's ^C. That is one request, told twice.
            Request::Drain if now < self.asked.since.after(SAME_REQUEST) => {}
            Request::Drain | Request::Kill => {
                if self.asked.stopping == Stopping::No {
                    self.asked.since = now;
                }
                self.asked.stopping = Stopping::Kill;
            }
            Request::Reload => self.asked.reloads += 1,
            Request::Reopen => self.asked.reopens += 1,
        }
        self.asked.by = by;
        self.asked_dirty = true;
    }

    /// Everything a new supervisor must be told, in full: all rows.
    pub fn tell_all(&mut self) -> Vec<News> {
        self.dirty.clear();
        self.asked_dirty = false;
        self.refused.clear();
        self.echoes.clear();
        self.rows
            .iter()
            .map(|(key, row)| News::Row {
                key: key.clone(),
                header: row.header.clone(),
                body: Some(row.body.clone()),
            })
            .collect()
    }

    /// What changed since it was last told, at most `limit` messages; rows that changed twice are told once.
    pub fn take_news(&mut self, limit: usize) -> Vec<News> {
        let mut news = Vec::new();
        if std::mem::take(&mut self.asked_dirty) {
            news.push(News::Node(self.asked));
        }
        news.extend(
            self.refused
                .drain(..)
                .map(|(key, after)| News::Refused { key, after }),
        );
        while news.len() < limit {
            let Some(key) = self.dirty.pop_first() else {
                break;
            };
            if let Some(row) = self.rows.get(&key) {
                news.push(News::Row {
                    header: row.header.clone(),
                    key,
                    body: None,
                });
            }
        }
        if self.dirty.is_empty() {
            news.extend(self.echoes.drain(..).map(|number| News::Echo { number }));
        }
        news
    }

    /// To be answered when everything that is known by now has been told.
    pub fn echo(&mut self, number: u64) {
        self.echoes.push(number);
    }

    /// Is no process left?
    pub fn is_empty(&self) -> bool {
        self.rows
            .values()
            .all(|row| matches!(row.header.process, Process::Vacant | Process::Gone(_)))
    }

    /// Rows with a process, for people and for the end.
    pub fn occupied(&self) -> impl Iterator<Item = (&RowKey, &Header)> {
        self.rows
            .iter()
            .filter(|(_, row)| row.is_busy())
            .map(|(key, row)| (key, &row.header))
    }

    /// The next moment at which [`Core::tick`] has something to do.
    pub fn deadline(&self) -> Option<Moment> {
        let alone = self.alone;
        let waits = self.rows.values().flat_map(|row| {
            let deadline = row.deadline.filter(|_| row.is_busy());
            [deadline, row.kill_at.filter(|_| alone && row.lives())]
        });
        waits.flatten().min()
    }

    /// Ends what has outlived its deadline.
    pub fn tick(&mut self, now: Moment, kernel: &mut impl Kernel) {
        for (key, row) in &mut self.rows {
            let late = |at: Option<Moment>| at.is_some_and(|at| at <= now);
            if row.is_busy() && late(row.deadline) {
                row.deadline = Some(now.after(KILL_AGAIN));
                kernel.kill(key);
            } else if row.lives() && self.alone && late(row.kill_at) {
                row.kill_at = None;
                kernel.kill(key);
            }
        }
    }

    /// A supervisor answers again: it decides.
    pub fn accompanied(&mut self) {
        self.alone = false;
    }

    /// Stopping, with no supervisor to decide: the highest rank that is not empty gets its stop signal, and SIGKILL at its timeout;
    /// the next rank follows when it is empty. Call it whenever something changed.
    pub fn drain_alone(&mut self, now: Moment, kernel: &mut impl Kernel) {
        if self.asked.stopping == Stopping::No {
            return;
        }
        self.alone = true;
        let Some(rank) = self
            .rows
            .values()
            .filter(|row| row.is_busy())
            .map(|row| row.header.stop.rank)
            .max()
        else {
            return;
        };
        let kill = self.asked.stopping == Stopping::Kill;
        for (key, row) in &mut self.rows {
            if !row.lives() {
                continue;
            }
            let StopRecord {
                signal,
                to,
                timeout,
                rank: own,
            } = row.header.stop;
            if kill || matches!(key, RowKey::Task(..)) {
                kernel.kill(key);
            } else if own == rank && row.kill_at.is_none() {
                row.kill_at = Some(now.after(timeout));
                kernel.signal(key, signal, to);
            }
        }
    }

    fn store(&mut self, key: &RowKey, body: Vec<u8>) {
        debug_assert!(
            body.len() <= BODY_MAX,
            "a body of {} bytes for {key}",
            body.len()
        );
        // Our memory is bounded whatever the supervisor sends; the old body is at least a true one.
        if body.len() <= BODY_MAX {
            self.rows.entry(key.clone()).or_default().body = body;
        }
    }

    fn drop_row(&mut self, key: &RowKey) {
        if !self.rows.get(key).is_some_and(Row::is_busy) {
            self.rows.remove(key);
            self.dirty.remove(key);
        }
    }

    fn is_vacant_after(&self, key: &RowKey, after: Generation) -> bool {
        self.rows
            .get(key)
            .map_or(after == Generation::default(), |row| {
                matches!(row.header.process, Process::Vacant) && row.header.generation == after
            })
    }

    fn leads(&self, key: &RowKey, generation: Generation) -> bool {
        let row = self.rows.get(key);
        row.is_some_and(|row| row.header.generation == generation && row.lives())
    }

    fn lives(&self, key: &RowKey, generation: Generation) -> bool {
        let row = self.rows.get(key);
        row.is_some_and(|row| row.header.generation == generation && row.is_busy())
    }
}

/// What a signal to the daemon asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Drain everything and exit; asked twice: kill.
    Drain,
    /// Kill everything and exit.
    Kill,
    /// Read the configuration again.
    Reload,
    /// Reopen log files.
    Reopen,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::WorkerId, wire::Containment};

    /// A kernel that remembers what it was asked.
    #[derive(Default)]
    struct Diary(Vec<String>);

    impl Kernel for Diary {
        fn spawn(
            &mut self,
            key: &RowKey,
            generation: Generation,
            spec: &SpawnSpec,
        ) -> Result<Alive, ExitStatus> {
            self.0.push(format!("spawn {key}.{generation}"));
            if spec.program == "missing" {
                return Err(ExitStatus::SpawnFailed {
                    step: crate::wire::SpawnStep::Exec,
                    errno: 2,
                });
            }
            Ok(Alive {
                pid: 100,
                start_ticks: 1,
                since: Moment(0),
                containment: Containment::Group,
            })
        }
        fn promote(&mut self, key: &RowKey, page: &PageSpec) -> bool {
            self.0.push(format!("promote {key} {}", page.fence));
            page.fence != 0
        }
        fn signal(&mut self, key: &RowKey, number: i32, _: Target) {
            self.0.push(format!("signal {key} {number}"));
        }
        fn kill(&mut self, key: &RowKey) {
            self.0.push(format!("kill {key}"));
        }
        fn release(&mut self, key: &RowKey) {
            self.0.push(format!("release {key}"));
        }
    }

    fn slot(text: &str, n: u32) -> RowKey {
        RowKey::Slot(WorkerId::new(text.parse().unwrap(), n))
    }

    fn spawn(key: &RowKey, after: u64, rank: u16) -> Op {
        Op::Spawn {
            key: key.clone(),
            after: Generation(after),
            body: vec![1],
            stop: StopRecord {
                rank,
                timeout: Span::secs(5),
                ..StopRecord::default()
            },
            deadline: None,
            spec: Box::default(),
        }
    }

    #[test]
    fn a_slot_that_is_not_empty_is_refused_a_spawn_and_generations_never_repeat() {
        let (mut core, mut kernel) = (Core::new(), Diary::default());
        let key = slot("web", 0);
        core.apply(spawn(&key, 0, 0), Moment(0), &mut kernel);
        core.apply(spawn(&key, 1, 0), Moment(0), &mut kernel);
        core.apply(spawn(&key, 0, 0), Moment(0), &mut kernel);
        assert_eq!(kernel.0, ["spawn web/0.1"]);
        assert_eq!(
            core.take_news(9)
                .iter()
                .filter(|n| matches!(n, News::Refused { .. }))
                .count(),
            2
        );
        core.leader_ended(&key, ExitStatus::Code(0), Moment(1), &mut kernel);
        core.apply(spawn(&key, 1, 0), Moment(0), &mut kernel);
        core.containment_empty(&key, &mut kernel);
        core.apply(spawn(&key, 1, 0), Moment(0), &mut kernel);
        core.apply(
            Op::Forget {
                key: key.clone(),
                generation: Generation(1),
                body: vec![],
            },
            Moment(2),
            &mut kernel,
        );
        core.apply(spawn(&key, 1, 0), Moment(3), &mut kernel);
        assert_eq!(
            kernel.0,
            [
                "spawn web/0.1",
                "kill web/0",
                "release web/0",
                "spawn web/0.2"
            ]
        );
    }

    /// Whoever would hold what is over does not go on as if he did, and one that has ended holds nothing.
    #[test]
    fn a_worker_is_promoted_or_killed() {
        let (mut core, mut kernel) = (Core::new(), Diary::default());
        let key = slot("billing", 0);
        core.apply(spawn(&key, 0, 0), Moment(0), &mut kernel);
        kernel.0.clear();
        let promote = |generation, fence| Op::Promote {
            key: key.clone(),
            generation: Generation(generation),
            page: PageSpec {
                fence,
                epoch: 0,
                role: 1,
                timed: true,
            },
            body: vec![1],
        };
        core.apply(promote(2, 7), Moment(0), &mut kernel);
        core.apply(promote(1, 7), Moment(0), &mut kernel);
        core.apply(promote(1, 0), Moment(0), &mut kernel);
        let done = [
            "promote billing/0 7",
            "promote billing/0 0",
            "kill billing/0",
        ];
        assert_eq!(kernel.0, done);
        core.leader_ended(&key, ExitStatus::Code(0), Moment(1), &mut kernel);
        kernel.0.clear();
        core.apply(promote(1, 7), Moment(2), &mut kernel);
        assert!(kernel.0.is_empty(), "{:?}", kernel.0);
    }

    #[test]
    fn an_exit_stays_until_the_row_that_acted_on_it_arrives() {
        let (mut core, mut kernel) = (Core::new(), Diary::default());
        let key = slot("web", 0);
        core.apply(spawn(&key, 0, 0), Moment(0), &mut kernel);
        core.leader_ended(&key, ExitStatus::Code(3), Moment(1), &mut kernel);
        core.containment_empty(&key, &mut kernel);
        core.take_news(9);
        core.apply(
            Op::Forget {
                key: key.clone(),
                generation: Generation(9),
                body: vec![],
            },
            Moment(2),
            &mut kernel,
        );
        let told = core.tell_all();
        assert!(
            matches!(&told[..], [News::Row { header, .. }] if matches!(header.process, Process::Gone(record) if record.status == ExitStatus::Code(3)))
        );
    }

    #[test]
    fn alone_it_stops_rank_by_rank_and_kills_the_late() {
        let (mut core, mut kernel) = (Core::new(), Diary::default());
        let (db, web) = (slot("db", 0), slot("web", 0));
        core.apply(spawn(&db, 0, 0), Moment(0), &mut kernel);
        core.apply(spawn(&web, 0, 1), Moment(0), &mut kernel);
        kernel.0.clear();
        core.ask(Request::Drain, None, Moment(0));
        core.drain_alone(Moment(0), &mut kernel);
        core.drain_alone(Moment(1), &mut kernel);
        assert_eq!(kernel.0, ["signal web/0 15"]);
        assert_eq!(core.deadline(), Some(Moment(5_000_000_000)));
        core.tick(Moment(5_000_000_000), &mut kernel);
        assert_eq!(kernel.0, ["signal web/0 15", "kill web/0"]);
        core.leader_ended(&web, ExitStatus::Code(0), Moment(6), &mut kernel);
        core.containment_empty(&web, &mut kernel);
        kernel.0.clear();
        core.drain_alone(Moment(7), &mut kernel);
        assert_eq!(kernel.0, ["signal db/0 15"]);
    }

    #[test]
    fn the_second_drain_request_kills() {
        let mut core = Core::new();
        core.ask(Request::Drain, None, Moment(1));
        core.ask(Request::Drain, None, Moment(2));
        assert_eq!(
            core.asked().stopping,
            Stopping::Drain,
            "one request, told twice"
        );
        core.ask(Request::Drain, None, Moment(400_000_000));
        assert_eq!(core.asked().stopping, Stopping::Kill);
        assert_eq!(core.asked().since, Moment(1));
    }

    /// Whoever decides may be hung.
    #[test]
    fn a_hook_that_ends_with_its_worker_does_not_begin_after_it() {
        let (mut core, mut kernel) = (Core::new(), Diary::default());
        let worker = WorkerId::new("web".parse().unwrap(), 0);
        let (slot, hook) = (
            RowKey::Slot(worker.clone()),
            RowKey::Task(worker, TaskKind::PreStop),
        );
        let farewell = || {
            let mut op = spawn(&hook, 0, 0);
            if let Op::Spawn { spec, .. } = &mut op {
                spec.ends_with_worker = true;
            }
            op
        };
        core.apply(farewell(), Moment(0), &mut kernel);
        core.apply(spawn(&slot, 0, 0), Moment(0), &mut kernel);
        core.apply(farewell(), Moment(0), &mut kernel);
        core.leader_ended(&slot, ExitStatus::Code(0), Moment(1), &mut kernel);
        core.leader_ended(&hook, ExitStatus::Code(0), Moment(1), &mut kernel);
        core.containment_empty(&hook, &mut kernel);
        let key = hook.clone();
        let op = Op::Forget {
            key,
            generation: Generation(1),
            body: Vec::new(),
        };
        core.apply(op, Moment(2), &mut kernel);
        core.apply(farewell(), Moment(2), &mut kernel);
        let expected = [
            "spawn web/0.1",
            "spawn web/0:pre-stop.1",
            "kill web/0",
            "kill web/0:pre-stop",
            "kill web/0:pre-stop",
            "release web/0:pre-stop",
        ];
        assert_eq!(kernel.0, expected);
    }

    #[test]
    fn a_helper_past_its_deadline_is_killed_until_nothing_of_it_is_left() {
        let (mut core, mut kernel) = (Core::new(), Diary::default());
        let key = RowKey::Task(
            WorkerId::new("web".parse().unwrap(), 0),
            crate::wire::TaskKind::PreStop,
        );
        let Op::Spawn {
            key: _,
            after,
            body,
            stop,
            spec,
            ..
        } = spawn(&key, 0, 0)
        else {
            unreachable!()
        };
        let op = Op::Spawn {
            key: key.clone(),
            after,
            body,
            stop,
            deadline: Some(Span::secs(1)),
            spec,
        };
        core.apply(op, Moment(0), &mut kernel);
        core.tick(Moment(999), &mut kernel);
        core.tick(Moment(1_000_000_000), &mut kernel);
        core.tick(Moment(2_000_000_000), &mut kernel);
        assert_eq!(kernel.0, ["spawn web/0:pre-stop.1", "kill web/0:pre-stop"]);
        kernel.0.clear();
        let ended = Moment(3_000_000_000);
        core.leader_ended(&key, ExitStatus::Code(0), ended, &mut kernel);
        let again = Moment(8_000_000_000);
        assert_eq!(core.deadline(), Some(again));
        core.tick(again, &mut kernel);
        core.containment_empty(&key, &mut kernel);
        core.tick(Moment(20_000_000_000), &mut kernel);
        assert_eq!(core.deadline(), None);
        let kill = "kill web/0:pre-stop";
        assert_eq!(kernel.0, [kill, kill, "release web/0:pre-stop"]);
    }
}
