//! A fake lock file: whoever has a descriptor of it holds it, a rival wants it too, and somebody may put another file in its place.

use std::collections::BTreeSet;

use leasehold::{
    engine::{
        gate::{Kept, Pass},
        release::YIELDS_FOR,
    },
    id::WorkerId,
    time::{Moment, Span},
    wire::RowKey,
};

use crate::{fleets, host::Host};

/// Who has a descriptor of the lock that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Supervisor(u64),
    /// On its way to the keeper.
    Packet,
    Keeper,
    Rival,
}

/// A start that was on its way when the file was replaced has arrived by then: removing lock files by hand is safe but for that.
const LOOKS: Span = Span::millis(10);

/// Whoever is told that a lock is given away sees it given back by then: after a drain, and all that may stand in its way.
const RELEASE_MAX: Span = Span::secs(120);

/// The lock of one worker.
#[derive(Debug)]
pub(crate) struct Lock {
    worker: WorkerId,
    owners: BTreeSet<Owner>,
    pub(crate) fence: u64,
    /// Somebody of this supervisor's looks for it.
    pub(crate) sought: bool,
    /// It was had, and what is left of the last holder is being ended.
    pub(crate) settling: bool,
    /// The rival's worker runs.
    rival_runs: bool,
    /// What the keeper holds is not the file of that name any more.
    pub(crate) replaced: bool,
    /// Not before this has the rival looked for our worker, and found none.
    rival_from: Moment,
    pub(crate) taken: u64,
    /// It was given back for others to take, and is only watched, until then.
    pub(crate) watched: bool,
    /// We gave it back to whoever waits, then; nobody has had it since.
    yielded: Option<Moment>,
    /// An operator was told that it is given away, with this fence, then.
    promised: Option<(u64, Moment)>,
}

/// Who needs one: a singleton, and a job that forbids every other run.
pub(crate) fn workers() -> [WorkerId; 2] {
    ["lone", "sole"].map(|fleet| WorkerId::new(fleets::name(fleet), 0))
}

impl Lock {
    pub(crate) fn new(worker: WorkerId) -> Self {
        Self {
            worker,
            owners: BTreeSet::new(),
            fence: 0,
            sought: false,
            settling: false,
            rival_runs: false,
            replaced: false,
            rival_from: Moment(0),
            taken: 0,
            watched: false,
            yielded: None,
            promised: None,
        }
    }

    pub(crate) fn try_take(&mut self, who: Owner, now: Moment) -> bool {
        let free = self.owners.is_empty();
        if free {
            if let Some(yielded) = self.yielded.take().filter(|_| who != Owner::Rival) {
                let turn = yielded.after(YIELDS_FOR);
                assert!(now >= turn, "taken back before anybody else had a chance");
            }
            self.owners.insert(who);
        }
        free
    }

    /// Does somebody else have it?
    pub(crate) fn is_rivals(&self) -> bool {
        self.owners.contains(&Owner::Rival)
    }

    /// It is looked for no longer, or given back.
    pub(crate) fn shut(&mut self) {
        self.sought = false;
        self.watched = false;
        self.yielded = None;
    }

    /// It was given back for others to take.
    pub(crate) fn yielded(&mut self, now: Moment) {
        self.yielded = Some(now);
    }

    /// The keeper holds the row in which it is given away.
    pub(crate) fn promised(&mut self, fence: u64, now: Moment) {
        if self.owners.contains(&Owner::Keeper) && fence == self.fence {
            self.promised = Some((fence, now));
        }
    }

    pub(crate) fn open(&mut self) -> Pass {
        self.fence += 1;
        self.taken += 1;
        Pass {
            path: "/run/lock/lone.0".to_owned(),
            fence: self.fence,
        }
    }

    /// What a new supervisor finds in the keeper's hands.
    pub(crate) fn kept(&self) -> Option<Kept> {
        let kept = self.owners.contains(&Owner::Keeper) || self.replaced;
        kept.then(|| Kept {
            pass: Pass {
                path: "/run/lock/lone.0".to_owned(),
                fence: self.fence,
            },
            lost: self.replaced.then(|| "replaced".to_owned()),
            until: None,
        })
    }

    pub(crate) fn add(&mut self, owner: Owner) {
        assert!(
            !self.owners.contains(&Owner::Rival),
            "{owner:?} holds what the rival has"
        );
        self.owners.insert(owner);
    }

    pub(crate) fn remove(&mut self, owner: Owner) {
        self.replaced &= owner != Owner::Keeper;
        if owner == Owner::Keeper {
            self.promised = None;
        }
        self.owners.remove(&owner);
    }

    pub(crate) fn supervisor_died(&mut self) {
        self.owners
            .retain(|owner| matches!(owner, Owner::Keeper | Owner::Rival));
        self.sought = false;
        self.settling = false;
        self.watched = false;
    }

    pub(crate) fn keeper_died(&mut self) {
        self.owners.retain(|owner| *owner == Owner::Rival);
        self.replaced = false;
        self.settling = false;
        self.promised = None;
        self.shut();
    }

    /// The rival's turn: it lets go, or tries; it starts its worker only when nothing is left of ours.
    pub(crate) fn rival(&mut self, host: &Host, quiet: bool, now: Moment) {
        if self.owners.contains(&Owner::Rival) && self.lives(host) {
            // It has a file that was put in our lock's place, and waits until our worker is gone.
        } else if self.owners.remove(&Owner::Rival) {
            self.rival_runs = false;
        } else if !quiet && self.try_take(Owner::Rival, now) {
            assert!(
                !self.lives(host),
                "the lock was free while our worker lives"
            );
            self.fence += 1;
            self.rival_runs = true;
        }
    }

    /// Somebody unlinks the file, and the rival locks the one that it makes: ours excludes nobody any more. It sees our worker and waits.
    pub(crate) fn replace(&mut self, now: Moment) -> bool {
        if self.owners.contains(&Owner::Keeper) && !self.owners.contains(&Owner::Rival) {
            self.owners.clear();
            self.owners.insert(Owner::Rival);
            self.yielded = None;
            self.replaced = true;
            self.rival_from = now.after(LOOKS);
            return true;
        }
        false
    }

    /// Seen from outside: at most one of the two, and ours never without the lock, a moment after a replacement aside.
    pub(crate) fn check(&mut self, host: &Host, now: Moment) {
        let ours = self.lives(host);
        assert!(
            !(ours && self.rival_runs),
            "two workers under one lock: {self:?}"
        );
        if self.owners.contains(&Owner::Rival) && !ours && now >= self.rival_from {
            self.rival_runs = true;
        }
        assert!(
            !ours || !self.owners.is_empty(),
            "a worker without its lock"
        );
        if let Some((fence, since)) = self.promised {
            assert!(
                since.after(RELEASE_MAX) > now,
                "{} was to be given away since {since:?}, and is still ours with fence {fence}",
                self.worker
            );
        }
    }

    fn lives(&self, host: &Host) -> bool {
        host.by_key.contains_key(&RowKey::Slot(self.worker.clone()))
    }
}
