//! One published file: made, checked where its readers look for it, and told to them.
//!
//! ```text
//!            the list changed          nothing to tell
//!    Idle ────────────▶ Due ──▶ Writing ──────────────────────────▶ Idle
//!                        ▲         │ ▲                               ▲
//!          after a pause │         │ └ Slow                          │
//!                        │         ▼                                 │
//!                        ├──── Checking ──▶ Settling ──▶ Reloading ──┘
//!                        │         │no                       │no
//!                        ├── Restoring                       │
//!                        └───────────────────────────────────┘
//! ```
//!
//! A file that is published no more is made a last time, and is `Gone`.
//!
//! Two numbers are remembered in the fleet's row: the content that last passed its check, and the content that its readers were last
//! told of. A supervisor that dies anywhere in between is followed by one that makes the file again, sees by these numbers what is still
//! to be done, and does that. Nothing here can hold up a worker.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::{HookSpec, PublishedFile},
    engine::{
        effect::{Effect, ExitWords, What},
        fleet::{Fleet, Room},
        publish::{Aside, FileJob, LONG_FAREWELL, TargetStatus, Undo, Written},
        spawn,
    },
    id::{Generation, Revision, SlotIndex, WorkerId},
    time::{Moment, Span},
    wire::{ExitStatus, Op, RowKey, TaskKind},
};

/// A burst of changes is one reload: the first at once, the others with the next, no sooner than this.
const PAUSE: Span = Span::secs(1);
/// Longest pause after a failure.
const PAUSE_MAX: Span = Span::secs(60);
/// A file system that takes longer than this is said to.
const PATIENCE: Span = Span::secs(10);
const SILENCE: &str = "its file system has not answered for 10 s";

/// SIGKILL.
const KILL: i32 = 9;

/// What is remembered of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marks {
    /// Which file: its path, as a number.
    pub(super) id: u64,
    /// The content that last passed its check.
    good: Option<u64>,
    /// The content that its readers were last told of; none while they may know of two.
    told: Option<u64>,
}

impl Marks {
    /// Of a file of which nothing is known.
    pub(super) fn of(id: u64) -> Self {
        Self {
            id,
            good: None,
            told: None,
        }
    }
}

/// When a command is killed, and after how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    until: Moment,
    timeout: Span,
}

impl Limit {
    /// Of one that begins now.
    fn of(command: &HookSpec, now: Moment) -> Self {
        Self {
            until: now.after(command.timeout),
            timeout: command.timeout,
        }
    }

    /// In words, how it ended, if that was no success.
    fn judge(self, status: Result<ExitStatus, &'static str>, now: Moment) -> Result<(), String> {
        match status {
            Ok(ExitStatus::Code(0)) => Ok(()),
            // The keeper does this and says no more.
            Ok(ExitStatus::Signal { number: KILL, .. }) if self.until <= now => {
                Err(format!("took longer than {} and was killed", self.timeout))
            }
            Ok(status) => Err(ExitWords(status).to_string()),
            Err(why) => Err(why.to_owned()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It shows the newest list, or nothing has changed since.
    Idle,
    /// It is to be made then.
    Due { at: Moment },
    /// It is being made.
    Writing { until: Moment },
    /// It is being made, and that takes too long.
    Slow,
    /// Its check runs.
    Checking {
        content: u64,
        undo: Option<Undo>,
        limit: Limit,
    },
    /// It passed: what was there before is being removed.
    Settling { content: u64, until: Moment },
    /// What was there before is put back.
    Restoring { until: Moment },
    /// Its readers are being told.
    Reloading { content: u64, limit: Limit },
    /// A command runs of which nobody knows any more what it was about.
    Inherited,
    /// It is not published any more, and said so: its place is free.
    Gone,
}

#[derive(Clone, Debug)]
struct Trouble {
    why: String,
    since: Moment,
    tries: u32,
}

/// One file.
#[derive(Clone, Debug)]
pub(super) struct Sheet {
    pub(super) id: u64,
    /// What it is made from, and what is done with it.
    file: PublishedFile,
    phase: Phase,
    /// It is not published any more: it is made once without anybody, if it can be by then.
    leaving: Option<Moment>,
    /// The list changed since it was begun.
    stale: bool,
    /// Names the newest request to the disk.
    ticket: u64,
    began: Option<Moment>,
    behind: Option<Moment>,
    trouble: Option<Trouble>,
}

impl Sheet {
    pub(super) fn new(file: PublishedFile, now: Moment) -> Self {
        Self {
            id: number(&file.path),
            file,
            phase: Phase::Due { at: now },
            leaving: None,
            stale: false,
            ticket: 0,
            began: None,
            behind: Some(now),
            trouble: None,
        }
    }

    pub(super) fn is_of(&self, file: &PublishedFile) -> bool {
        self.id == number(&file.path) && !self.is_gone()
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.phase == Phase::Gone
    }

    /// It is configured anew.
    pub(super) fn follow(&mut self, file: &PublishedFile, now: Moment) {
        self.file.clone_from(file);
        self.leaving = None;
        self.begin_anew(now);
    }

    /// It is not configured any more.
    pub(super) fn leave(&mut self, now: Moment) {
        if !self.is_gone() && !self.is_leaving() {
            self.leaving = Some(now.after(LONG_FAREWELL));
            self.begin_anew(now);
        }
    }

    fn begin_anew(&mut self, now: Moment) {
        self.began = None;
        self.fall_behind(now);
    }

    /// There is nothing to be done with it any more, no use in trying, or somebody else's it is now.
    fn ends(&self, ceded: bool, now: Moment) -> bool {
        let is_late = self.leaving.is_some_and(|until| until <= now);
        match self.phase {
            Phase::Idle => self.is_leaving() || ceded,
            Phase::Due { .. } | Phase::Slow => is_late || ceded,
            Phase::Writing { .. }
            | Phase::Checking { .. }
            | Phase::Settling { .. }
            | Phase::Restoring { .. }
            | Phase::Reloading { .. }
            | Phase::Inherited
            | Phase::Gone => false,
        }
    }

    fn is_due(&self, now: Moment) -> bool {
        matches!(self.phase, Phase::Due { at } if at <= now)
    }

    /// What must not be used by another one before it is through: its path, and its commands. A check reads more than one file: what one
    /// fleet tries must not fail another's.
    pub(super) fn claims(&self) -> Vec<u64> {
        let commands = self.file.check.iter().chain(&self.file.reload);
        let words = commands.map(|command| number(&command.argv.join("\0")));
        words.chain([self.id]).collect()
    }

    fn end(&mut self) {
        self.phase = Phase::Gone;
        self.behind = None;
        self.trouble = None;
    }

    /// Is something going on that must not be left half done? A file system that does not answer cannot be waited for.
    pub(super) fn is_busy(&self) -> bool {
        match self.phase {
            Phase::Idle | Phase::Due { .. } | Phase::Slow | Phase::Gone => false,
            Phase::Writing { .. }
            | Phase::Checking { .. }
            | Phase::Settling { .. }
            | Phase::Restoring { .. }
            | Phase::Reloading { .. }
            | Phase::Inherited => true,
        }
    }

    /// A command of the last supervisor's is still there.
    pub(super) fn inherit(&mut self) {
        self.phase = Phase::Inherited;
    }

    /// The list changed.
    pub(super) fn fall_behind(&mut self, now: Moment) {
        if self.is_gone() {
            return;
        }
        self.behind.get_or_insert(now);
        match self.phase {
            Phase::Idle => self.phase = Phase::Due { at: self.next(now) },
            // The newest list may do where the last one did not.
            Phase::Due { at } => {
                let at = at.min(self.next(now));
                self.phase = Phase::Due { at };
            }
            Phase::Writing { .. }
            | Phase::Slow
            | Phase::Checking { .. }
            | Phase::Settling { .. }
            | Phase::Restoring { .. }
            | Phase::Reloading { .. }
            | Phase::Inherited => self.stale = true,
            Phase::Gone => {}
        }
    }

    /// When it may be made again.
    fn next(&self, now: Moment) -> Moment {
        self.began.map_or(now, |began| began.after(PAUSE).max(now))
    }

    /// Will it soon be through, as far as one can know?
    pub(super) fn is_under_way(&self) -> bool {
        match self.phase {
            Phase::Idle | Phase::Slow | Phase::Gone => false,
            Phase::Due { .. }
            | Phase::Writing { .. }
            | Phase::Checking { .. }
            | Phase::Settling { .. }
            | Phase::Restoring { .. }
            | Phase::Reloading { .. }
            | Phase::Inherited => self.trouble.is_none(),
        }
    }

    /// Is there a list that it does not show, or of which its readers do not know?
    pub(super) fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// When something is due with it. What was ripe when it was last looked at waits for an event, not for time.
    pub(super) fn deadline(&self, looked: Moment) -> Option<Moment> {
        let phase = match self.phase {
            Phase::Due { at } => Some(at).filter(|at| *at > looked),
            Phase::Writing { until }
            | Phase::Settling { until, .. }
            | Phase::Restoring { until } => Some(until),
            Phase::Idle
            | Phase::Slow
            | Phase::Checking { .. }
            | Phase::Reloading { .. }
            | Phase::Inherited
            | Phase::Gone => None,
        };
        let leaving = self.leaving.filter(|until| *until > looked);
        phase.into_iter().chain(leaving).min()
    }

    pub(super) fn status(&self) -> TargetStatus {
        let trouble = self.trouble.as_ref();
        let trouble = trouble.map(|trouble| (trouble.why.clone(), trouble.since, trouble.tries));
        TargetStatus::new("file", self.file.path.clone(), self.behind, trouble)
    }
}

/// A path, as a row remembers it.
fn number(path: &str) -> u64 {
    Revision::of(path.as_bytes()).0
}

impl Fleet {
    /// Does what is due with its files; who has which is said by `owned`.
    pub(super) fn tend_sheets(&mut self, owned: &BTreeSet<u64>, room: &mut Room<'_>) {
        for at in 0..self.publication.sheets.len() {
            let sheet = &mut self.publication.sheets[at];
            let parts = self.removed || sheet.is_leaving();
            if sheet.ends(parts && owned.contains(&sheet.id), room.now) {
                sheet.end();
            }
            match self.publication.sheets[at].phase {
                Phase::Writing { until } if until <= room.now => {
                    self.publication.sheets[at].phase = Phase::Slow;
                    self.sheet_troubled(at, SILENCE.to_owned(), room);
                }
                // The disk does one thing after the other: what is asked of it next comes later.
                Phase::Restoring { until } if until <= room.now => {
                    self.sheet_failed(at, SILENCE.to_owned(), room);
                }
                // It is replaced by the next one.
                Phase::Settling { content, until } if until <= room.now => {
                    self.reload_sheet(at, content, room);
                }
                Phase::Idle
                | Phase::Due { .. }
                | Phase::Writing { .. }
                | Phase::Slow
                | Phase::Checking { .. }
                | Phase::Settling { .. }
                | Phase::Restoring { .. }
                | Phase::Reloading { .. }
                | Phase::Inherited
                | Phase::Gone => {}
            }
        }
        self.forget_sheets();
    }

    /// Makes those that are due, unless another one uses what they would. That one's end is an event.
    pub(super) fn write_sheets(&mut self, claimed: &mut BTreeSet<u64>, room: &mut Room<'_>) {
        for at in 0..self.publication.sheets.len() {
            let sheet = &self.publication.sheets[at];
            if !sheet.is_due(room.now) {
                continue;
            }
            let claims = sheet.claims();
            if claims.iter().all(|claim| !claimed.contains(claim)) {
                claimed.extend(claims);
                self.write_sheet(at, room);
            }
        }
    }

    fn write_sheet(&mut self, at: usize, room: &mut Room<'_>) {
        let sheet = &self.publication.sheets[at];
        let Some((_, listing)) = self.shown(sheet) else {
            return;
        };
        let (id, file) = (sheet.id, &sheet.file);
        // What is remembered of a file lasts as long as the daemon.
        let marks = self.body.files.iter().find(|marks| marks.id == id);
        let ours = marks.is_some();
        let good = marks.and_then(|marks| marks.good);
        let job = Box::new(FileJob {
            fleet: self.name.clone(),
            node: room.facts.node.clone(),
            listing: listing.clone(),
            template: file.template.clone(),
            path: file.path.clone(),
            aside: file.check.as_ref().map(|_| Aside { good, ours }),
        });
        self.marks(id);
        let sheet = &mut self.publication.sheets[at];
        sheet.phase = Phase::Writing {
            until: room.now.after(PATIENCE),
        };
        sheet.began = Some(room.now);
        sheet.stale = false;
        // A moment is a larger number than every one before it, also of a fleet that went and came again.
        sheet.ticket = room.now.0;
        room.out.list.push(Effect::WriteFile {
            fleet: self.name.clone(),
            file: at as u32,
            ticket: sheet.ticket,
            job,
        });
    }

    /// The disk's answer.
    pub(super) fn sheet_written(
        &mut self,
        file: u32,
        ticket: u64,
        result: Result<Written, String>,
        room: &mut Room<'_>,
    ) {
        let at = file as usize;
        let writes = |sheet: &Sheet| {
            sheet.ticket == ticket && matches!(sheet.phase, Phase::Writing { .. } | Phase::Slow)
        };
        if !self.publication.sheets.get(at).is_some_and(writes) {
            return;
        }
        let Written {
            content,
            changed,
            undo,
        } = match result {
            Ok(written) => written,
            Err(why) => return self.sheet_failed(at, why, room),
        };
        let marks = *self.marks(self.publication.sheets[at].id);
        if !changed && marks.told == Some(content) {
            return self.sheet_done(at, content, room);
        }
        match self.publication.sheets[at].file.check.clone() {
            // Nothing is begun any more.
            Some(_) if (changed || marks.good != Some(content)) && !self.publishes() => {
                self.restore_sheet(at, undo, "has no time left".to_owned(), room);
            }
            Some(check) if changed || marks.good != Some(content) => {
                let limit = Limit::of(&check, room.now);
                self.publication.sheets[at].phase = Phase::Checking {
                    content,
                    undo,
                    limit,
                };
                self.run_for_sheet(at, TaskKind::PublishCheck, &check, room);
            }
            Some(_) | None => self.reload_sheet(at, content, room),
        }
    }

    fn reload_sheet(&mut self, at: usize, content: u64, room: &mut Room<'_>) {
        if !self.publishes() {
            self.publication.sheets[at].phase = Phase::Due { at: room.now };
            return;
        }
        match self.publication.sheets[at].file.reload.clone() {
            Some(reload) => {
                let id = self.publication.sheets[at].id;
                self.marks(id).told = None;
                let limit = Limit::of(&reload, room.now);
                self.publication.sheets[at].phase = Phase::Reloading { content, limit };
                self.run_for_sheet(at, TaskKind::PublishReload, &reload, room);
            }
            None => self.sheet_done(at, content, room),
        }
    }

    fn run_for_sheet(
        &mut self,
        at: usize,
        kind: TaskKind,
        command: &HookSpec,
        room: &mut Room<'_>,
    ) {
        let sheet = &self.publication.sheets[at];
        let Some((publish, _)) = self.shown(sheet) else {
            return;
        };
        let worker = WorkerId {
            fleet: self.name.clone(),
            slot: SlotIndex(at as u32),
        };
        let spec = spawn::publisher(
            &worker,
            &self.spec,
            publish,
            &sheet.file.path,
            room.facts,
            command,
        );
        room.out.keeper(Op::Spawn {
            key: RowKey::Task(worker, kind),
            after: Generation::default(),
            body: Vec::new(),
            stop: spawn::stop_record(&self.spec),
            deadline: Some(command.timeout),
            spec: Box::new(spec),
        });
    }

    /// Whatever runs for its files is not waited for any longer.
    pub(super) fn kill_commands(&mut self, room: &mut Room<'_>) {
        for (at, sheet) in self.publication.sheets.iter().enumerate() {
            let kinds: &[TaskKind] = match sheet.phase {
                Phase::Checking { .. } => &[TaskKind::PublishCheck],
                Phase::Reloading { .. } => &[TaskKind::PublishReload],
                Phase::Inherited => &[TaskKind::PublishCheck, TaskKind::PublishReload],
                Phase::Idle
                | Phase::Due { .. }
                | Phase::Writing { .. }
                | Phase::Slow
                | Phase::Settling { .. }
                | Phase::Restoring { .. }
                | Phase::Gone => &[],
            };
            let worker = WorkerId {
                fleet: self.name.clone(),
                slot: SlotIndex(at as u32),
            };
            for kind in kinds {
                room.out.keeper(Op::Kill {
                    key: RowKey::Task(worker.clone(), *kind),
                    generation: Generation::default().next(),
                    body: Vec::new(),
                });
            }
        }
    }

    /// A check or a reload ended, or was refused.
    pub(super) fn sheet_command_ended(
        &mut self,
        file: SlotIndex,
        kind: TaskKind,
        status: Result<ExitStatus, &'static str>,
        room: &mut Room<'_>,
    ) {
        let at = file.0 as usize;
        let Some(sheet) = self.publication.sheets.get(at) else {
            return;
        };
        match (sheet.phase, kind) {
            (
                Phase::Checking {
                    content,
                    undo,
                    limit,
                },
                TaskKind::PublishCheck,
            ) => match limit.judge(status, room.now) {
                Ok(()) => {
                    let id = self.publication.sheets[at].id;
                    self.marks(id).good = Some(content);
                    self.settle_sheet(at, content, room);
                }
                Err(why) => self.restore_sheet(at, undo, why, room),
            },
            (Phase::Reloading { content, limit }, TaskKind::PublishReload) => {
                match limit.judge(status, room.now) {
                    Ok(()) => self.sheet_done(at, content, room),
                    Err(why) => self.sheet_failed(at, format!("its reload {why}"), room),
                }
            }
            (Phase::Inherited, _) => {
                let now = room.now;
                self.publication.sheets[at].phase = Phase::Due { at: now };
            }
            // It was about what is not wanted any more.
            (
                Phase::Idle
                | Phase::Due { .. }
                | Phase::Writing { .. }
                | Phase::Slow
                | Phase::Checking { .. }
                | Phase::Settling { .. }
                | Phase::Restoring { .. }
                | Phase::Reloading { .. }
                | Phase::Gone,
                _,
            ) => {}
        }
    }

    fn settle_sheet(&mut self, at: usize, content: u64, room: &mut Room<'_>) {
        let until = room.now.after(PATIENCE);
        let sheet = &mut self.publication.sheets[at];
        sheet.phase = Phase::Settling { content, until };
        room.out.list.push(Effect::SettleFile {
            fleet: self.name.clone(),
            file: at as u32,
            ticket: sheet.ticket,
            path: sheet.file.path.clone(),
        });
    }

    /// What was put aside is gone: its readers are told.
    pub(super) fn sheet_settled(&mut self, file: u32, ticket: u64, room: &mut Room<'_>) {
        let at = file as usize;
        let sheet = self.publication.sheets.get(at);
        let phase = sheet.filter(|sheet| sheet.ticket == ticket);
        if let Some(Phase::Settling { content, .. }) = phase.map(|sheet| sheet.phase) {
            self.reload_sheet(at, content, room);
        }
    }

    fn restore_sheet(&mut self, at: usize, undo: Option<Undo>, why: String, room: &mut Room<'_>) {
        let Some(undo) = undo else {
            let why = format!("its check {why}; it was there before, and stays");
            return self.sheet_failed(at, why, room);
        };
        let sheet = &mut self.publication.sheets[at];
        sheet.phase = Phase::Restoring {
            until: room.now.after(PATIENCE),
        };
        room.out.list.push(Effect::RestoreFile {
            fleet: self.name.clone(),
            file: at as u32,
            ticket: sheet.ticket,
            path: sheet.file.path.clone(),
            undo,
        });
        let why = format!("its check {why}; what was there before is put back");
        self.sheet_troubled(at, why, room);
    }

    /// What was there before its check failed is there again, or is not.
    pub(super) fn sheet_restored(
        &mut self,
        file: u32,
        ticket: u64,
        result: Result<(), String>,
        room: &mut Room<'_>,
    ) {
        let at = file as usize;
        let restores = |sheet: &Sheet| {
            sheet.ticket == ticket && matches!(sheet.phase, Phase::Restoring { .. })
        };
        if !self.publication.sheets.get(at).is_some_and(restores) {
            return;
        }
        if let Err(why) = result {
            self.sheet_troubled(at, why, room);
        }
        self.sheet_pauses(at, room);
    }

    fn sheet_failed(&mut self, at: usize, why: String, room: &mut Room<'_>) {
        self.sheet_troubled(at, why, room);
        self.sheet_pauses(at, room);
    }

    /// People hear of a failure when it begins, and when it becomes another one; all are counted.
    fn sheet_troubled(&mut self, at: usize, why: String, room: &mut Room<'_>) {
        let sheet = &mut self.publication.sheets[at];
        let (since, tries) = sheet
            .trouble
            .as_ref()
            .map_or((room.now, 0), |trouble| (trouble.since, trouble.tries));
        let is_new = sheet
            .trouble
            .as_ref()
            .is_none_or(|trouble| trouble.why != why);
        sheet.trouble = Some(Trouble {
            why: why.clone(),
            since,
            tries: tries.saturating_add(1),
        });
        let target = self.target(at);
        room.out.list.push(Effect::Unpublished {
            fleet: self.name.clone(),
            target: target.clone(),
        });
        if is_new {
            self.record(What::PublishFailed { target, why }, room);
        }
    }

    /// It is tried again; at once as far as that goes if there is a newer list.
    fn sheet_pauses(&mut self, at: usize, room: &mut Room<'_>) {
        let sheet = &mut self.publication.sheets[at];
        let tries = sheet.trouble.as_ref().map_or(1, |trouble| trouble.tries);
        let doubled = PAUSE.as_nanos() << tries.saturating_sub(1).min(16);
        let pause = Span::nanos(doubled).min(PAUSE_MAX);
        let when = match sheet.stale {
            true => sheet.next(room.now),
            false => room.now.after(pause),
        };
        sheet.phase = Phase::Due { at: when };
    }

    fn sheet_done(&mut self, at: usize, content: u64, room: &mut Room<'_>) {
        let id = self.publication.sheets[at].id;
        self.marks(id).told = Some(content);
        let sheet = &mut self.publication.sheets[at];
        let trouble = sheet.trouble.take();
        if sheet.stale {
            sheet.phase = Phase::Due {
                at: sheet.next(room.now),
            };
        } else {
            sheet.behind = None;
            sheet.phase = Phase::Idle;
        }
        if let Some(trouble) = trouble {
            let (target, after) = (self.target(at), room.now.since(trouble.since));
            self.record(What::PublishRestored { target, after }, room);
        }
    }

    fn target(&self, at: usize) -> String {
        self.publication.sheets[at].file.path.clone()
    }
}
