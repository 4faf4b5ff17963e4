//! The taking of a lock that is ours already: what is left of its last holder is ended, and we write ourselves in. That may block, so a
//! thread does it, unless the last holder gave it back in order.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc::{SyncSender, TrySendError, sync_channel},
};

use tokio::sync::mpsc;

use crate::{
    driver::{inbox::Inbox, seeker::Seeker},
    engine::{
        Event,
        gate::{GateNews, Holder, HolderRecord, Pass},
    },
    id::WorkerId,
    locks::{self, LockFault, LockFile, Next, Patience, Proc, Record},
    sys::{clock, host},
    time::Span,
};

/// Whoever is left of the last holder is reported to people after this.
const SAY_AFTER: Span = Span::secs(1);

/// What we write into a lock.
#[derive(Clone)]
pub(super) struct Me {
    pub(super) cookie: String,
    pub(super) keeper: Proc,
    pub(super) cgroups: Option<String>,
    pub(super) node: String,
}

/// A lock that was taken, what it gives, and who had it last.
pub(super) struct Had {
    pub(super) file: LockFile,
    pub(super) pass: Pass,
    pub(super) from: Option<Holder>,
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

pub(super) type Work = Box<dyn FnOnce() + Send>;

/// Work that may block is done by a thread that waits for it while somebody waits for a lock: to start one then would take as long as
/// everything else that is done on this side. Where that one has its hands full, one is started.
#[derive(Default)]
pub(super) struct Settler {
    pub(super) hand_over: Option<SyncSender<Work>>,
}

impl Settler {
    /// Has the thread wait.
    pub(super) fn be_ready(&mut self) {
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

    pub(super) fn give(&self, work: Work) {
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

impl Me {
    /// What its last holder gave back is taken at once, where that needs no disk and nobody is to be looked for; otherwise the file is for
    /// [`Me::settle`].
    pub(super) fn take_in_order(
        &self,
        worker: &WorkerId,
        seeker: &Seeker,
        file: LockFile,
    ) -> Result<Taken, LockFile> {
        let slots = seeker.slots();
        let before = match file.record() {
            Ok(Some(before)) if !before.held && !seeker.replaced => before,
            _ => return Err(file),
        };
        let first = file.path().with_extension("0");
        let others = slots.is_some_and(|slots| locks::others_held(&first, slots));
        let must_reach_disk = seeker.fence.is_none() && before.next_fence().must_reach_disk;
        if others || must_reach_disk {
            return Err(file);
        }
        Ok(self.write(worker, file, slots, seeker.fence, Some(&before)))
    }

    /// To be done where it may block: ends what is left of the last holder, and writes ourselves in.
    pub(super) fn settle(
        &self,
        worker: &WorkerId,
        seeker: &Seeker,
        file: LockFile,
        called_off: &Arc<AtomicBool>,
        hand_in: &mpsc::UnboundedSender<Inbox>,
    ) -> Work {
        let (me, worker, hand_in, called_off) = (
            self.clone(),
            worker.clone(),
            hand_in.clone(),
            Arc::clone(called_off),
        );
        let slots = seeker.slots();
        let (ticket, replaced, fence) = (seeker.ticket, seeker.replaced, seeker.fence);
        let work = move || {
            if replaced {
                locks::give_way();
            }
            let own = locks::Own {
                cookie: &me.cookie,
                cgroups: me.cgroups.as_deref(),
            };
            let taken = loop {
                // As long as we keep it, whoever takes the next one believes that somebody runs under it, and so would we ourselves.
                if !file.is_named() {
                    let why = "the lock file was replaced while it was taken".to_owned();
                    break Err(Missed::Busy(why, None));
                }
                let before = match file.record() {
                    Ok(before) => before,
                    Err(fault) => break Err(fault.into()),
                };
                let settled = locks::settle(file.path(), before.as_ref(), own, Patience(SAY_AFTER));
                let first = file.path().with_extension("0");
                let settled = settled.and_then(|()| match slots {
                    Some(slots) => locks::settle_others(&first, slots, own),
                    None => Ok(()),
                });
                match settled {
                    Ok(()) => break me.write(&worker, file, slots, fence, before.as_ref()),
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
        Box::new(work)
    }

    pub(super) fn write(
        &self,
        worker: &WorkerId,
        file: LockFile,
        slots: Option<u32>,
        fence: Option<u64>,
        before: Option<&Record>,
    ) -> Taken {
        let next = match fence {
            // A cluster's are made elsewhere, and kept there.
            Some(fence) => Next {
                fence,
                kept: before.map_or(0, |before| before.fences_kept),
                must_reach_disk: false,
            },
            None => before.map_or_else(|| Next::after(last_fence(), 0), Record::next_fence),
        };
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
            init: None,
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

pub(super) fn waits(worker: WorkerId, why: String, holder: Option<Holder>) -> Event {
    Event::Gate {
        worker,
        news: GateNews::Waits { why, holder },
    }
}

/// What a record says of its holder.
pub(super) fn holder_of(record: &Record) -> Holder {
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
pub(super) fn last_fence() -> u64 {
    u64::try_from(clock::wall().as_millisecond()).unwrap_or(0)
}

/// The next one need not look for what is left of us: there is nothing.
pub(super) fn set_free(file: &LockFile) {
    if let Ok(Some(record)) = file.record() {
        let _ = file.write(&Record {
            held: false,
            ..record
        });
    }
}
