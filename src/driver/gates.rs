//! Takes and gives back the locks of singletons, when the engine says so. What is taken is held by the keeper at once; ours is a
//! duplicate, through which the record is written, and which lasts until everything of a dead keeper is ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use tokio::sync::mpsc;

use crate::{
    config::spec::{LOCAL, LeaseSpec, SingletonSpec},
    driver::{
        authority::Authority,
        boot::Request,
        inbox::Inbox,
        seeker::{Seeker, Yielding, paths},
        taking::{Had, Me, Missed, Settler, Taken, holder_of, set_free, waits},
    },
    engine::{
        Event,
        gate::{GateNews, Kept, Pass},
        lock_name,
        release::Given,
    },
    id::WorkerId,
    locks::{self, Bell, LockFile, Proc, Record},
    sys::{clock, host},
    time::{Moment, Span},
    wire::{Op, Welcome},
};

/// A lock that gives no sign (LOCK_UN, another mount of the file) is looked at this often.
const LOOK_EVERY: Span = Span::secs(1);
/// After a sign the lock is free within microseconds, unless we have just taken the processor from whoever lets go of it: so many looks,
/// between which he has it.
const LOOKS_AFTER_BELL: u32 = 3;
/// Then so soon again, and each time after twice as long.
const LOOK_SOON: Span = Span::millis(1);
/// What a dead holder left behind is killed by then, if nothing hangs.
const LOOK_AFTER_BURIAL: Span = Span::millis(20);
/// Who takes what we gave back is looked for after this, then after twice as long, and so on.
const LOOK_AFTER_YIELDING: Span = Span::millis(10);

/// All locks of this daemon.
pub(super) struct Gates {
    bell: Bell,
    seekers: BTreeMap<WorkerId, Seeker>,
    held: BTreeMap<WorkerId, Held>,
    me: Me,
    authority: Authority,
    hand_in: mpsc::UnboundedSender<Inbox>,
    look_at: Option<Moment>,
    /// How long after a look in vain the next one is.
    pace: Span,
    settler: Settler,
    tickets: u64,
    /// Why waiting would not help, as far as can be told: a daemon waits all the same, since people may mend it.
    refusal: Option<String>,
}

/// A lock that is ours.
struct Held {
    file: LockFile,
    /// As written there.
    leader: Option<Proc>,
}

impl Gates {
    pub(super) fn new(
        welcome: &Welcome,
        node: String,
        hand_in: mpsc::UnboundedSender<Inbox>,
    ) -> std::io::Result<Self> {
        let start = crate::sys::family::Stat::read(welcome.keeper).map_or(0, |s| s.start_ticks);
        // Read once, and not when a lock has just become free.
        let _ = (host::boot_id(), host::pid_namespace());
        Ok(Self {
            bell: Bell::new()?,
            seekers: BTreeMap::new(),
            held: BTreeMap::new(),
            authority: Authority::new(node.clone(), hand_in.clone()),
            me: Me {
                cookie: welcome.cookie.clone(),
                keeper: Proc {
                    pid: welcome.keeper,
                    start,
                },
                cgroups: welcome.cgroup.clone(),
                node,
            },
            hand_in,
            look_at: None,
            pace: LOOK_EVERY,
            settler: Settler::default(),
            tickets: 0,
            refusal: None,
        })
    }

    /// Takes over what the keeper holds since before us; the fence is in the file. How long it lasts is the caller's to say.
    pub(super) fn adopt(
        &mut self,
        worker: &WorkerId,
        fd: OwnedFd,
        lease: Option<&LeaseSpec>,
    ) -> Option<Kept> {
        let file = LockFile::adopt(fd).ok()?;
        let mut record = file.record().ok().flatten()?;
        if !record.held {
            // Our predecessor was giving it back when it died; whether it is given back is decided anew.
            record.held = true;
            file.write(&record).ok()?;
        }
        let pass = Pass {
            path: file.path().display().to_string(),
            fence: record.fence,
        };
        let _ = self.bell.watch(file.path());
        let leader = record.leader;
        let named = file.is_named();
        self.held.insert(worker.clone(), Held { file, leader });
        let lost = if named {
            None
        } else {
            self.hold_again(worker).err()
        };
        if let Some(lease) = lease {
            self.authority.begin(worker, pass.fence, lease);
        }
        let until = None;
        Some(Kept { pass, lost, until })
    }

    /// A descriptor that becomes readable when somebody lets go.
    pub(super) fn bell(&self) -> std::io::Result<OwnedFd> {
        self.bell.as_fd().try_clone_to_owned()
    }

    /// Why waiting would not help.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// When [`Gates::look`] is due without a bell.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.look_at
    }

    /// Begins to look for a lock.
    pub(super) fn seek(&mut self, worker: WorkerId, spec: SingletonSpec, fence: Option<u64>) {
        let mut seeker = self.seeker(spec, None);
        seeker.fence = fence;
        let wrong = seeker.wrong_number();
        if let Some(before) = self.seekers.insert(worker.clone(), seeker) {
            before.call_off();
        }
        if let Some(why) = wrong {
            self.missed(worker, Missed::Wrong(why));
            self.look_again(LOOK_EVERY);
            return;
        }
        match self.try_seeker(&worker) {
            Look::Busy => {
                // It will be had at any moment.
                self.settler.be_ready();
                self.report(worker);
                self.look_again(LOOK_EVERY);
            }
            Look::Buries => self.look_again(LOOK_AFTER_BURIAL),
            Look::Over => {}
        }
    }

    /// Looks who takes what was given back, and does not take it.
    pub(super) fn watch(&mut self, worker: WorkerId, spec: SingletonSpec, given: Given) {
        let pause = LOOK_AFTER_YIELDING;
        let seeker = self.seeker(spec, Some(Yielding { given, pause }));
        if let Some(before) = self.seekers.insert(worker.clone(), seeker) {
            before.call_off();
        }
        self.try_seeker(&worker);
    }

    fn seeker(&mut self, spec: SingletonSpec, yields: Option<Yielding>) -> Seeker {
        self.tickets += 1;
        Seeker {
            spec,
            fence: None,
            ticket: self.tickets,
            files: BTreeMap::new(),
            buried: BTreeSet::new(),
            settling: None,
            yields,
            fault: None,
            replaced: false,
        }
    }

    /// Gives a lock back, or stops looking for it; what the keeper is to do.
    pub(super) fn shut(&mut self, worker: &WorkerId) -> Option<Request> {
        if let Some(seeker) = self.seekers.remove(worker) {
            seeker.call_off();
        }
        if self.seekers.is_empty() {
            self.look_at = None;
        }
        self.authority.end(worker);
        set_free(&self.held.remove(worker)?.file);
        let name = lock_name(worker);
        Some((Op::Release { name }, None))
    }

    /// Nothing is left of any worker: whoever takes our locks need not look for it.
    pub(super) fn free_all(&self) {
        for held in self.held.values() {
            set_free(&held.file);
        }
    }

    /// Tries everybody who waits, as it is time to.
    pub(super) fn look(&mut self) {
        self.look_times(1);
    }

    fn look_times(&mut self, looks: u32) {
        let mut waiting: Vec<WorkerId> = self
            .seekers
            .iter()
            .filter(|(_, seeker)| seeker.settling.is_none())
            .map(|(worker, _)| worker.clone())
            .collect();
        self.look_at = None;
        let mut burying = BTreeSet::new();
        for look in 0..looks {
            if look > 0 && !waiting.is_empty() {
                std::thread::yield_now();
            }
            waiting.retain(|worker| match self.try_seeker(worker) {
                Look::Busy => true,
                Look::Buries => burying.insert(worker.clone()),
                Look::Over => false,
            });
        }
        if !burying.is_empty() {
            self.pace = self.pace.min(LOOK_AFTER_BURIAL);
        }
        if !waiting.is_empty() {
            let pace = self.pace;
            self.pace = pace.plus(pace).min(LOOK_EVERY);
            self.look_again(pace);
        }
        for worker in waiting {
            if !burying.contains(&worker) {
                self.report(worker);
            }
        }
    }

    fn look_again(&mut self, after: Span) {
        let at = clock::now().after(after);
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    /// Somebody did something to a lock's file: takes all of it, and returns whom of ours it concerns. The bell rings before the lock is
    /// free.
    pub(super) fn rang(&mut self) -> Vec<Event> {
        if !self.bell.take() {
            return Vec::new();
        }
        self.pace = LOOK_SOON;
        self.look_times(LOOKS_AFTER_BELL);
        self.check_names()
    }

    /// Is what we hold still what others would lock? A file that was replaced is locked too, if nobody was faster.
    pub(super) fn check_names(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let replaced: Vec<WorkerId> = self
            .held
            .iter()
            .filter(|(_, held)| !held.file.is_named())
            .map(|(worker, _)| worker.clone())
            .collect();
        for worker in replaced {
            if let Err(why) = self.hold_again(&worker) {
                events.push(Event::Gate {
                    worker,
                    news: GateNews::Lost(why),
                });
            }
        }
        events
    }

    /// May it start under its lock now? An error says why not: somebody has just put another file in its place.
    pub(super) fn still_ours(&mut self, worker: &WorkerId) -> Result<(), String> {
        match self.held.get(worker) {
            Some(held) if !held.file.is_named() => self.hold_again(worker),
            _ => Ok(()),
        }
    }

    fn hold_again(&mut self, worker: &WorkerId) -> Result<(), String> {
        let Some(held) = self.held.get_mut(worker) else {
            return Ok(());
        };
        let path = held.file.path().to_owned();
        let record = held.file.record().ok().flatten();
        let again = LockFile::open(&path, is_ours(&path), true).map_err(|e| e.to_string())?;
        let gone = format!(
            "{} was replaced, and somebody else holds it",
            path.display()
        );
        let taken = again.try_take().map_err(|e| e.to_string())? && again.is_named();
        let record = record.filter(|_| taken).ok_or(gone)?;
        // Free, but somebody has had it: his fence is later than ours, and must not be written over.
        let since = again.record().map_err(|e| e.to_string())?;
        if let Some(other) = since.filter(|since| since.fence != record.fence) {
            return Err(format!(
                "{} was replaced, and {} has had it since",
                path.display(),
                other.holder()
            ));
        }
        let written = again.write(&record).and_then(|()| again.sync());
        written.map_err(|e| e.to_string())?;
        let fd = again.duplicate().map_err(|e| e.to_string())?;
        let _ = self.bell.watch(&path);
        held.file = again;
        let _ = self.hand_in.send(Inbox::Hold(lock_name(worker), fd));
        Ok(())
    }

    /// The thread that ended the last holder is through. What the keeper is to hold, and what the engine is to hear.
    pub(super) fn settled(
        &mut self,
        worker: WorkerId,
        ticket: u64,
        taken: Taken,
    ) -> (Option<Request>, Option<Event>) {
        let seeker = self.seekers.get_mut(&worker);
        let Some(seeker) = seeker.filter(|seeker| seeker.ticket == ticket) else {
            // Called off meanwhile.
            if let Ok(had) = taken {
                set_free(&had.file);
            }
            return (None, None);
        };
        let Had { file, pass, from } = match taken {
            Ok(taken) => taken,
            Err(missed) => {
                seeker.settling = None;
                self.missed(worker, missed);
                self.look_again(LOOK_EVERY);
                return (None, None);
            }
        };
        let fd = match file.duplicate() {
            Ok(fd) => fd,
            Err(e) => {
                seeker.settling = None;
                set_free(&file);
                self.look_again(LOOK_EVERY);
                let why = format!("cannot duplicate a descriptor: {e}");
                return (None, Some(waits(worker, why, None)));
            }
        };
        let lease = seeker.spec.lease.clone();
        self.seekers.remove(&worker);
        let name = lock_name(&worker);
        let leader = None;
        self.held.insert(worker.clone(), Held { file, leader });
        if let Some(lease) = lease {
            self.authority.begin(&worker, pass.fence, &lease);
        }
        let news = GateNews::Opened { pass, from };
        (
            Some((Op::Hold { name }, Some(fd))),
            Some(Event::Gate { worker, news }),
        )
    }

    /// Writes into our locks who leads their workers, for whoever comes after us.
    pub(super) fn note_leaders(
        &mut self,
        leader: impl Fn(&WorkerId) -> Option<(Proc, Option<Proc>)>,
    ) {
        for (worker, held) in &mut self.held {
            let Some((now, init)) = leader(worker).filter(|(now, _)| Some(*now) != held.leader)
            else {
                continue;
            };
            if let Ok(Some(record)) = held.file.record() {
                let record = Record {
                    leader: Some(now),
                    init,
                    ..record
                };
                let _ = held.file.write(&record);
                held.leader = Some(now);
            }
        }
    }

    fn try_seeker(&mut self, worker: &WorkerId) -> Look {
        let Some(seeker) = self
            .seekers
            .get_mut(worker)
            .filter(|s| s.settling.is_none())
        else {
            return Look::Over;
        };
        if seeker.yields.is_some() {
            self.watch_given(worker);
            return Look::Over;
        }
        seeker.fault = None;
        let mut buries = false;
        for path in paths(&seeker.spec) {
            match seeker.try_file(&path, &mut self.bell) {
                Ok(true) => {
                    if let Some(file) = seeker.files.remove(&path) {
                        let off = Arc::new(AtomicBool::new(false));
                        match self.me.take_in_order(worker, seeker, file) {
                            Ok(taken) => {
                                let had = Inbox::Locked(worker.clone(), seeker.ticket, taken);
                                let _ = self.hand_in.send(had);
                            }
                            Err(file) => {
                                let me = &self.me;
                                let work = me.settle(worker, seeker, file, &off, &self.hand_in);
                                self.settler.give(work);
                            }
                        }
                        seeker.settling = Some(off);
                    }
                    return Look::Over;
                }
                Ok(false) => buries |= seeker.bury_holder(&path),
                Err(fault) => seeker.fault = Some(fault),
            }
        }
        if buries { Look::Buries } else { Look::Busy }
    }

    /// Says who has what a seeker did not get.
    fn report(&mut self, worker: WorkerId) {
        let Some(seeker) = self.seekers.get_mut(&worker) else {
            return;
        };
        let missed = match (seeker.fault.take(), paths(&seeker.spec).pop()) {
            (Some(fault), _) => fault.into(),
            (None, Some(path)) => seeker.holder(&path),
            (None, None) => return,
        };
        self.missed(worker, missed);
    }

    /// Does somebody else have what was given back? That there is a taker at all is found in the record alone: for a moment the kernel
    /// still names ourselves.
    fn watch_given(&mut self, worker: &WorkerId) {
        let Some(seeker) = self.seekers.get_mut(worker) else {
            return;
        };
        let Some(Yielding { given, pause }) = &mut seeker.yields else {
            return;
        };
        let (fence, next) = (given.fence, *pause);
        *pause = pause.plus(*pause);
        let named = given.path.as_ref().map(PathBuf::from);
        let Some(path) = named.or_else(|| paths(&seeker.spec).into_iter().next()) else {
            return;
        };
        // One that cannot be opened is reported when it is sought again.
        let is_there = seeker.open(&path, &mut self.bell).is_ok();
        let taken = seeker
            .record(&path)
            .filter(|record| is_there && record.fence != fence);
        if let Some(record) = taken {
            let why = format!("held by {}", record.holder());
            let event = waits(worker.clone(), why, Some(holder_of(&record)));
            let _ = self.hand_in.send(Inbox::Gate(event));
        } else {
            self.look_again(next);
        }
    }

    /// Not this time.
    fn missed(&mut self, worker: WorkerId, missed: Missed) {
        let (why, holder) = match missed {
            Missed::Busy(why, holder) => (why, holder),
            Missed::Wrong(why) => {
                self.refusal = Some(why.clone());
                (why, None)
            }
        };
        let _ = self.hand_in.send(Inbox::Gate(waits(worker, why, holder)));
    }
}

/// What a look at a lock came to.
enum Look {
    /// Somebody has it.
    Busy,
    /// Somebody has inherited it from a holder who is dead, and is being ended.
    Buries,
    /// There is nothing to look at: it was had, or is not sought.
    Over,
}

/// Was the path chosen by us?
fn is_ours(path: &Path) -> bool {
    let root = locks::default_path(LOCAL, "x", 0);
    path.parent() == root.parent()
}
