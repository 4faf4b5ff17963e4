//! What balancers see: the lists that were published, the files made from them, and what they were told to read.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::{
    engine::{
        Status,
        effect::Ending,
        publish::{FileJob, Listing, Presence, Undo, Written},
    },
    id::{FleetName, Generation, Revision, WorkerId},
    time::{Moment, Span},
    wire::{ExitStatus, RowKey, TaskKind},
};

use crate::{fleets, host::Host};

/// The one file of a fleet.
#[derive(Debug, Default)]
struct File {
    content: Option<String>,
    old: Option<String>,
    /// Of the newest write.
    ticket: u64,
    /// What passed its check.
    checked: BTreeSet<Option<String>>,
    /// What its readers read last.
    read: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Market {
    lists: BTreeMap<FleetName, Listing>,
    /// When a worker was last taken out of the list, and which generation that was.
    out: BTreeMap<WorkerId, (Moment, Generation)>,
    files: BTreeMap<FleetName, File>,
    pub(crate) reloads: u64,
}

fn text(listing: &Listing) -> String {
    format!("{:?}", listing.endpoints)
}

fn number(text: &str) -> u64 {
    Revision::of(text.as_bytes()).0
}

impl Market {
    fn offered(&self) -> impl Iterator<Item = WorkerId> {
        self.lists.iter().flat_map(|(name, listing)| {
            let ready = listing.endpoints.iter();
            ready
                .filter(|one| one.state == Presence::Ready)
                .filter_map(|one| Some(WorkerId::new(name.clone(), one.slot?.0)))
        })
    }

    pub(crate) fn publish(
        &mut self,
        fleet: FleetName,
        listing: Option<Listing>,
        status: &Status,
        now: Moment,
    ) {
        let before: Vec<WorkerId> = self.offered().collect();
        match listing {
            Some(listing) => self.lists.insert(fleet, listing),
            None => self.lists.remove(&fleet),
        };
        let after: Vec<WorkerId> = self.offered().collect();
        for worker in before.iter().filter(|worker| !after.contains(worker)) {
            if let Some(generation) = generation(status, worker) {
                self.out.insert(worker.clone(), (now, generation));
            }
        }
        for worker in after.iter().filter(|worker| !before.contains(worker)) {
            self.out.remove(worker);
        }
    }

    /// A supervisor that died is followed by one that says again what there is.
    pub(crate) fn supervisor_died(&mut self) {
        self.lists.clear();
    }

    pub(crate) fn keeper_died(&mut self) {
        self.lists.clear();
        self.out.clear();
    }

    /// Nobody is offered who was told to stop, or has not begun to serve.
    pub(crate) fn check(&self, host: &Host) {
        for worker in self.offered() {
            let proc = host.process(&RowKey::Slot(worker.clone()));
            // News of an end may be on its way.
            if let Some(proc) = proc.filter(|proc| proc.leader) {
                assert!(proc.listens, "{worker} is offered and does not serve");
                assert!(
                    proc.term_at.is_none(),
                    "{worker} is offered and was told to stop"
                );
            }
        }
    }

    /// A stop signal is on its way: nobody is sent there any more, and everybody had the time to notice.
    pub(crate) fn stopping(
        &self,
        worker: &WorkerId,
        generation: Generation,
        ending: Option<Ending>,
        now: Moment,
    ) {
        let is_offered = self.offered().any(|offered| offered == *worker);
        assert!(!is_offered, "{worker} is told to stop and is still offered");
        let polite = matches!(
            ending,
            Some(
                Ending::Held
                    | Ending::ScaleIn
                    | Ending::Removed
                    | Ending::Shutdown
                    | Ending::Rollout
            )
        );
        if let Some((at, _)) = self.out.get(worker).filter(|(_, was)| *was == generation)
            && polite
        {
            assert!(
                at.after(fleets::WEB_DELAY) <= now,
                "{worker} is told to stop ({ending:?}) {:?} after it was withdrawn",
                now.since(*at)
            );
        }
    }

    pub(crate) fn write(&mut self, ticket: u64, job: &FileJob) -> Written {
        let file = self.files.entry(job.fleet.clone()).or_default();
        file.ticket = ticket;
        let text = text(&job.listing);
        let changed = file.content.as_ref() != Some(&text);
        let content = number(&text);
        let undo = job.aside.and_then(|aside| {
            let is_good = |text: &Option<String>| {
                aside.good.is_some() && text.as_deref().map(number) == aside.good
            };
            let last = aside.good.is_none() || is_good(&file.old);
            let kept = file.old.is_some() && aside.ours && last;
            if !changed {
                if kept && aside.good != Some(content) {
                    return Some(Undo::PutBack);
                }
                file.old = None;
                return None;
            }
            if is_good(&file.content) || !kept {
                file.old.clone_from(&file.content);
            }
            Some(match file.old {
                Some(_) => Undo::PutBack,
                None => Undo::Remove,
            })
        });
        file.content = Some(text);
        Written {
            content,
            changed,
            undo,
        }
    }

    pub(crate) fn restore(&mut self, fleet: &FleetName, ticket: u64, undo: Undo) {
        let file = self.files.entry(fleet.clone()).or_default();
        if file.ticket > ticket {
            return;
        }
        let old = file.old.take();
        match undo {
            Undo::Remove => file.content = None,
            Undo::PutBack => file.content = Some(old.expect("it was put aside")),
        }
    }

    pub(crate) fn settle(&mut self, fleet: &FleetName, ticket: u64) {
        if let Some(file) = self.files.get_mut(fleet)
            && file.ticket <= ticket
        {
            file.old = None;
        }
    }

    /// A check or a reload is through.
    pub(crate) fn command_ended(&mut self, key: &RowKey, status: ExitStatus) {
        let RowKey::Task(file, kind) = key else {
            return;
        };
        let is_web = file.fleet == fleets::name("web");
        let Some(file) = self.files.get_mut(&file.fleet) else {
            return;
        };
        match (kind, status) {
            (TaskKind::PublishCheck, ExitStatus::Code(0)) => {
                file.checked.insert(file.content.clone());
            }
            (TaskKind::PublishReload, ExitStatus::Code(0)) => {
                self.reloads += 1;
                assert!(
                    !is_web || file.checked.contains(&file.content),
                    "readers are told of what was not checked: {file:?}"
                );
                file.read.clone_from(&file.content);
            }
            _ => {}
        }
    }

    /// With nobody failing any more, everybody knows what there is.
    pub(crate) fn settled(&self, status: &Status) {
        for fleet in &status.fleets {
            let Some(publish) = &fleet.publish else {
                assert!(!self.lists.contains_key(&fleet.name));
                continue;
            };
            let listing = &self.lists[&fleet.name];
            assert_eq!(*listing, publish.listing);
            assert_eq!(listing.ready, fleet.ready, "{listing:?}");
            let file = &self.files[&fleet.name];
            assert_eq!(
                file.read.as_ref(),
                Some(&text(listing)),
                "{}: {publish:?}",
                fleet.name
            );
            assert!(
                publish.targets.iter().all(|file| file.state == "ok"),
                "{publish:?}"
            );
        }
    }

    /// The daemon is gone, and nobody is sent to it. Files of a fleet that was configured away are forgotten with their keeper.
    pub(crate) fn withdrawn(&self, status: &Status) {
        let published = status.fleets.iter().filter(|fleet| fleet.publish.is_some());
        for fleet in published.map(|fleet| &fleet.name) {
            let file = &self.files[fleet];
            let read = file.read.clone().unwrap_or_default();
            assert!(
                !read.contains("Ready"),
                "{fleet} is gone, and its readers read {read}"
            );
        }
    }
}

fn generation(status: &Status, worker: &WorkerId) -> Option<Generation> {
    let workers = status.fleets.iter().flat_map(|fleet| &fleet.workers);
    workers
        .filter(|one| one.id == *worker)
        .map(|one| one.generation)
        .next()
}

/// How long the disk takes.
pub(crate) fn disk(rng: &mut crate::rng::Rng, tempers: bool) -> Span {
    let hangs = tempers && rng.chance(3);
    rng.span(0, if hangs { 20_000 } else { 40 })
}
