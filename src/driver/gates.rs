//! Takes and gives back the locks of singletons, when the engine says so. What is taken is held by the keeper at once; ours is a
//! duplicate, through which the record is written, and which lasts until everything of a dead keeper is ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
};

use tokio::sync::mpsc;

use crate::{
    config::spec::{LeaseSpec, SingletonSpec},
    driver::{authority::Authority, boot::Request, inbox::Inbox},
    engine::{
        Event,
        gate::{GateNews, Holder, HolderRecord, Kept, Pass},
        lock_name,
        release::Given,
    },
    id::WorkerId,
    locks::{self, Bell, LockFault, LockFile, Next, Patience, Proc, Record},
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
/// Whoever is left of the last holder is reported to people after this.
const SAY_AFTER: Span = Span::secs(1);

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

/// What we write into a lock.
#[derive(Clone)]
struct Me {
    cookie: String,
    keeper: Proc,
    cgroups: Option<String>,
    node: String,
}

/// Somebody who wants a lock.
struct Seeker {
    spec: SingletonSpec,
    /// Tells its results from those of one that was called off.
    ticket: u64,
    /// The files it may be; opened once, since closing one rings everybody's bell.
    files: BTreeMap<PathBuf, LockFile>,
    /// Runs that are over and of which somebody had inherited the lock.
    buried: BTreeSet<String>,
    /// What is left of the last holder is being ended, by a thread that stops when this is set.
    settling: Option<Arc<AtomicBool>>,
    /// It is not to be taken, only watched.
    yields: Option<Yielding>,
    /// Why the last look came to nothing, if not because somebody has it.
    fault: Option<LockFault>,
    /// A file that somebody may have held was replaced while it was waited for.
    replaced: bool,
}

/// A lock that was given back for others to take.
struct Yielding {
    given: Given,
    /// Until the next look.
    pause: Span,
}

/// A lock that was taken, what it gives, and who had it last.
pub(super) struct Had {
    file: LockFile,
    pass: Pass,
    from: Option<Holder>,
}

/// What a lock's taking came to.
pub(super) type Taken = Result<Had, Missed>;

/// Why a lock was not had, for people.
pub(super) enum Missed {
    /// It will be, when somebody lets go of it.
    Busy(String, Option<Holder>),
    /// Something is wrong with it.
    Wrong(String),
}

impl From<LockFault> for Missed {
    fn from(fault: LockFault) -> Self {
        Self::Wrong(fault.to_string())
    }
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
    pub(super) fn seek(&mut self, worker: WorkerId, spec: SingletonSpec) {
        let seeker = self.seeker(spec, None);
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
        let mut buries = false;
        for look in 0..looks {
            if look > 0 && !waiting.is_empty() {
                std::thread::yield_now();
            }
            waiting.retain(|worker| {
                let found = self.try_seeker(worker);
                buries |= matches!(found, Look::Buries);
                matches!(found, Look::Busy)
            });
        }
        if buries {
            self.look_again(LOOK_AFTER_BURIAL);
        }
        if !waiting.is_empty() {
            let pace = self.pace;
            self.pace = pace.plus(pace).min(LOOK_EVERY);
            self.look_again(pace);
        }
        for worker in waiting {
            self.report(worker);
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
        let lease = seeker.spec.lease.clone();
        self.seekers.remove(&worker);
        let fd = match file.duplicate() {
            Ok(fd) => fd,
            Err(e) => {
                set_free(&file);
                let why = format!("cannot duplicate a descriptor: {e}");
                return (None, Some(waits(worker, why, None)));
            }
        };
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
    pub(super) fn note_leaders(&mut self, leader: impl Fn(&WorkerId) -> Option<Proc>) {
        for (worker, held) in &mut self.held {
            let now = leader(worker);
            if now.is_none() || now == held.leader {
                continue;
            }
            if let Ok(Some(record)) = held.file.record() {
                let record = Record {
                    leader: now,
                    ..record
                };
                let _ = held.file.write(&record);
                held.leader = now;
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
                        let (off, work) = self.me.settle(worker, seeker, file, &self.hand_in);
                        seeker.settling = Some(off);
                        self.settler.give(work);
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

type Work = Box<dyn FnOnce() + Send>;

/// Work that may block is done by a thread that waits for it while somebody waits for a lock: to start one then would take as long as
/// everything else that is done on this side. Where that one has its hands full, one is started.
#[derive(Default)]
struct Settler {
    hand_over: Option<SyncSender<Work>>,
}

impl Settler {
    /// Has the thread wait.
    fn be_ready(&mut self) {
        if self.hand_over.is_some() {
            return;
        }
        // Without room: what is given is taken at once or not at all.
        let (hand_over, works) = sync_channel::<Work>(0);
        let body = move || works.into_iter().for_each(|work| work());
        let thread = std::thread::Builder::new().name("settle".to_owned());
        if thread.spawn(body).is_ok() {
            self.hand_over = Some(hand_over);
        }
    }

    fn give(&self, work: Work) {
        let left = match &self.hand_over {
            Some(hand_over) => match hand_over.try_send(work) {
                Ok(()) => return,
                Err(TrySendError::Full(work) | TrySendError::Disconnected(work)) => work,
            },
            None => work,
        };
        tokio::task::spawn_blocking(left);
    }
}

impl Seeker {
    fn call_off(&self) {
        if let Some(settling) = &self.settling {
            settling.store(true, Ordering::Relaxed);
        }
    }

    /// Opens a file, again if it was replaced, and takes it if it is free.
    fn try_file(&mut self, path: &Path, bell: &mut Bell) -> Result<bool, LockFault> {
        self.open(path, bell)?;
        match self.files.get(path) {
            // A file that was replaced while we took it is not the lock.
            Some(file) => Ok(file.try_take()? && file.is_named()),
            None => Ok(false),
        }
    }

    /// Opens a file, again if it was replaced.
    fn open(&mut self, path: &Path, bell: &mut Bell) -> Result<(), LockFault> {
        if self.files.get(path).is_none_or(|file| !file.is_named()) {
            let own = self.spec.flock.is_none();
            let file = LockFile::open(path, own, self.spec.allow_network_fs)?;
            self.replaced |= self.files.insert(path.to_owned(), file).is_some();
        }
        let _ = bell.watch(path);
        Ok(())
    }

    /// Does somebody hold it as one of another number of slots? Looked up before it is tried for the first time, and by whoever takes it.
    fn wrong_number(&self) -> Option<String> {
        let first = self.spec.flock.is_none().then(|| paths(&self.spec));
        let first = first.and_then(|paths| paths.into_iter().next())?;
        locks::other_number(&first, self.spec.slots).ok().flatten()
    }

    fn record(&self, path: &Path) -> Option<Record> {
        let record = self.files.get(path)?.record().ok().flatten()?;
        (record.held && record.is_of_this_boot()).then_some(record)
    }

    /// A lock lasts as long as anybody who has inherited it. Where its holder is dead those are ended, once, by a thread of its own;
    /// true if that has just begun.
    fn bury_holder(&mut self, path: &Path) -> bool {
        let record = self.record(path).filter(locks::is_orphaned);
        let Some(record) = record.filter(|one| self.buried.insert(one.cookie.clone())) else {
            return false;
        };
        tokio::task::spawn_blocking(move || locks::bury(&record));
        true
    }

    /// Who has it, for people.
    fn holder(&self, path: &Path) -> Missed {
        let record = self.record(path);
        if let Some(count) = record.as_ref().and_then(|record| record.slots)
            && count != self.spec.slots
            && let Some(why) = self.wrong_number()
        {
            return Missed::Wrong(why);
        }
        if let Some(record) = record {
            let why = format!("held by {}", record.holder());
            return Missed::Busy(why, Some(holder_of(&record)));
        }
        let file = self.files.get(path);
        match file.and_then(locks::holder_by_kernel) {
            Some(pid) => {
                let why = format!("held by pid {pid} ({})", path.display());
                let record = None;
                Missed::Busy(why, Some(Holder { pid, record }))
            }
            None => {
                let why = format!("held by somebody else ({})", path.display());
                Missed::Busy(why, None)
            }
        }
    }
}

impl Me {
    /// To be done where it may block: ends what is left of the last holder, and writes ourselves in.
    fn settle(
        &self,
        worker: &WorkerId,
        seeker: &Seeker,
        file: LockFile,
        hand_in: &mpsc::UnboundedSender<Inbox>,
    ) -> (Arc<AtomicBool>, Work) {
        let off = Arc::new(AtomicBool::new(false));
        let (me, worker, hand_in, called_off) = (
            self.clone(),
            worker.clone(),
            hand_in.clone(),
            Arc::clone(&off),
        );
        // A file that was named by hand is a lock of one.
        let spec = &seeker.spec;
        let slots = spec.flock.is_none().then_some(spec.slots);
        let (ticket, replaced) = (seeker.ticket, seeker.replaced);
        let work = move || {
            if replaced {
                locks::give_way();
            }
            let taken = loop {
                let before = match file.record() {
                    Ok(before) => before,
                    Err(fault) => break Err(fault.into()),
                };
                let settled = locks::settle(file.path(), before.as_ref(), Patience(SAY_AFTER));
                let first = file.path().with_extension("0");
                let settled = settled.and_then(|()| match slots {
                    Some(slots) => locks::settle_others(&first, slots),
                    None => Ok(()),
                });
                match settled {
                    Ok(()) => break me.write(&worker, file, slots, before.as_ref()),
                    Err(_) if called_off.load(Ordering::Relaxed) => {
                        break Err(Missed::Busy(String::new(), None));
                    }
                    Err(why) => {
                        let event = waits(worker.clone(), why, None);
                        let _ = hand_in.send(Inbox::Gate(event));
                    }
                }
            };
            let _ = hand_in.send(Inbox::Locked(worker, ticket, taken));
        };
        (off, Box::new(work))
    }

    fn write(
        &self,
        worker: &WorkerId,
        file: LockFile,
        slots: Option<u32>,
        before: Option<&Record>,
    ) -> Taken {
        let next = before.map_or_else(|| Next::after(last_fence(), 0), Record::next_fence);
        let record = Record {
            leasehold: 1,
            fence: next.fence,
            fences_kept: next.kept,
            held: true,
            path: file.path().to_owned(),
            boot: host::boot_id().to_owned(),
            pid_namespace: host::pid_namespace(),
            cookie: self.cookie.clone(),
            uid: rustix::process::geteuid().as_raw(),
            keeper: self.keeper,
            cgroups: self.cgroups.clone(),
            worker: worker.clone(),
            leader: None,
            node: self.node.clone(),
            since: clock::wall().to_string(),
            slots,
        };
        file.write(&record)?;
        if next.must_reach_disk {
            file.sync()?;
        }
        if let Some(slots) = slots
            && let Some(why) = locks::other_number(&file.path().with_extension("0"), slots)?
        {
            set_free(&file);
            return Err(Missed::Wrong(why));
        }
        let pass = Pass {
            path: file.path().display().to_string(),
            fence: record.fence,
        };
        let is_other = |before: &&Record| before.cookie != self.cookie || before.worker != *worker;
        let from = before.filter(is_other).map(holder_of);
        Ok(Had { file, pass, from })
    }
}

fn waits(worker: WorkerId, why: String, holder: Option<Holder>) -> Event {
    Event::Gate {
        worker,
        news: GateNews::Waits { why, holder },
    }
}

/// What a record says of its holder.
fn holder_of(record: &Record) -> Holder {
    Holder {
        pid: record.keeper.pid,
        record: Some(HolderRecord {
            node: record.node.clone(),
            worker: record.worker.clone(),
            leader: record.leader.map(|leader| leader.pid),
            fence: record.fence,
            since: record.since.clone(),
        }),
    }
}

/// The last fence of a file that nobody has held: later than any that was given before the file was lost, as every file on a tmpfs is at a
/// reboot. Milliseconds since 1970, which leave room for a holder each.
fn last_fence() -> u64 {
    u64::try_from(clock::wall().as_millisecond()).unwrap_or(0)
}

/// Every file that would do.
fn paths(spec: &SingletonSpec) -> Vec<PathBuf> {
    match &spec.flock {
        Some(path) => vec![PathBuf::from(path)],
        None => (0..spec.slots)
            .map(|slot| locks::default_path(locks::LOCAL, spec.lock.as_str(), slot))
            .collect(),
    }
}

/// Was the path chosen by us?
fn is_ours(path: &Path) -> bool {
    let root = locks::default_path(locks::LOCAL, "x", 0);
    path.parent() == root.parent()
}

/// The next one need not look for what is left of us: there is nothing.
fn set_free(file: &LockFile) {
    if let Ok(Some(record)) = file.record() {
        let _ = file.write(&Record {
            held: false,
            ..record
        });
    }
}
