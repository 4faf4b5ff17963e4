//! What is published of a fleet: a pure function of its slots' states. A worker is in the list while it takes work, and out of it in
//! the step that decides otherwise: before its deregister delay and its signal, before the pause after a crash, and all at once when the
//! daemon begins to drain. What is made of the list is the business of its files (`sheet.rs`), of its records in etcd (`records.rs`) and of the shells.

use std::{collections::BTreeSet, fmt::Display};

use serde::{Deserialize, Serialize};

use crate::{
    config::{
        spec::{PublishMode, PublishSpec, PublishedFile, RecordsSpec},
        template::{Context, Shown},
    },
    engine::{
        effect::{Effect, Effects},
        fleet::{Fleet, Room},
        intent::Intent,
        sheet::{Marks, Sheet},
        slot::Slot,
        supervisor::Supervisor,
    },
    id::{FleetName, Revision, SlotIndex},
    time::{Moment, Span},
    wire::Stopping,
};

/// Nothing is left when the daemon ends: files have so long to say so, if they do not fail.
const FAREWELL: Span = Span::secs(2);
/// Nothing is left of a fleet that is not configured any more, and nobody waits: so long, whether they fail or not.
pub(super) const LONG_FAREWELL: Span = Span::secs(120);

/// The name under which the keeper holds the listener of a fleet's agent-check.
pub fn agent_name(fleet: &FleetName, address: impl Display) -> String {
    format!("agent/{fleet}/{address}")
}

/// `10.0.0.5:8080`, `[::1]:8080`.
pub fn authority(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

/// Does it take work?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// It does.
    Ready,
    /// It does what it has, and gets no more.
    Draining,
}

impl Presence {
    /// The word in lists.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// Where work can be sent, or could a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whose, where each worker has its own.
    pub slot: Option<SlotIndex>,
    /// Its port, at the listing's address.
    pub port: u16,
    /// How many take work there; 1 where the first connection wakes somebody who will.
    pub weight: u32,
    /// Does it take work?
    pub state: Presence,
    /// What it was spawned from; of the node: what its workers should be.
    pub revision: Revision,
}

/// All that is published of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// What an endpoint is.
    pub mode: PublishMode,
    /// Of all endpoints.
    pub address: String,
    /// By slot.
    pub endpoints: Vec<Endpoint>,
    /// How many take work.
    pub ready: u32,
    /// How many should.
    pub desired: u32,
    /// Is anybody to take work here? Not while the daemon stops, and not of a fleet that is held.
    pub open: bool,
    /// The accepted configuration's.
    pub config: Revision,
}

impl Listing {
    /// As templates see it.
    pub fn context<'a>(&'a self, fleet: &'a FleetName, node: &'a str) -> Context<'a> {
        let of = |state: Presence| -> Vec<Shown<'_>> {
            let its = self.endpoints.iter().filter(|one| one.state == state);
            its.map(|one| self.shown(fleet, one)).collect()
        };
        Context {
            fleet: fleet.as_str(),
            node,
            mode: self.mode,
            address: &self.address,
            endpoints: of(Presence::Ready),
            draining: of(Presence::Draining),
            ready: self.ready,
            desired: self.desired,
            config_rev: self.config.to_string(),
        }
    }

    fn shown(&self, fleet: &FleetName, one: &Endpoint) -> Shown<'_> {
        Shown {
            id: match one.slot {
                Some(slot) => format!("{fleet}/{slot}"),
                None => fleet.to_string(),
            },
            slot: one.slot.map(|slot| slot.0),
            address: &self.address,
            port: one.port,
            authority: authority(&self.address, one.port),
            weight: one.weight,
            state: one.state.word(),
            revision: one.revision.to_string(),
        }
    }

    /// The last one.
    fn without_anybody(&self) -> Self {
        Self {
            endpoints: Vec::new(),
            ready: 0,
            desired: 0,
            open: false,
            ..self.clone()
        }
    }
}

/// A file to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileJob {
    /// For templates.
    pub fleet: FleetName,
    /// For templates.
    pub node: String,
    /// What it shows.
    pub listing: Listing,
    /// What it is made from.
    pub template: String,
    /// Where it goes.
    pub path: String,
    /// It is checked once it is there: what is there before is put aside.
    pub aside: Option<Aside>,
}

/// What is known of what is there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aside {
    /// What a file that passed its check looks like, as a number.
    pub good: Option<u64>,
    /// What is kept beside it was put there by this daemon, and not left by one before.
    pub ours: bool,
}

/// What a file is like that was put into its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its content as a number.
    pub content: u64,
    /// Was another content there before?
    pub changed: bool,
    /// What takes it away again, should its check fail; none if it was there before.
    pub undo: Option<Undo>,
}

/// How a file becomes again what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    /// There was none: it is removed.
    Remove,
    /// What was put aside comes back.
    PutBack,
}

/// What a fleet publishes, beside its row.
#[derive(Clone, Debug, Default)]
pub(super) struct Publication {
    /// What it is made by; another one, and its files follow.
    spec: Option<PublishSpec>,
    listing: Option<Listing>,
    serial: u64,
    /// By their number in the keeper, which they keep as long as they are there; a place that is free is taken by the next one.
    pub(super) sheets: Vec<Sheet>,
    /// What files show that are not published any more: nobody.
    parted: Option<(PublishSpec, Listing)>,
    farewell: Farewell,
}

/// How a fleet ends of which nothing is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Farewell {
    /// It does not.
    #[default]
    No,
    /// Its files are still to say so, until then.
    Saying(Moment),
    /// Nothing is begun any more; what still runs is being killed, what did not pass its check is put back, and both are waited for until
    /// then.
    Over(Moment),
}

/// What people see of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishStatus {
    /// The newest list.
    pub listing: Listing,
    /// Its number.
    pub serial: u64,
    /// Who is told: files, and places in etcd.
    pub targets: Vec<TargetStatus>,
    /// Where HAProxy asks.
    pub agent: Option<String>,
}

/// Somebody who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetStatus {
    /// `file`, `etcd`, `traefik`, `coredns` or `kv`.
    pub kind: &'static str,
    /// The file's path; where in etcd.
    pub target: String,
    /// `ok`, `pending` or `failed`.
    pub state: &'static str,
    /// Its readers are behind the list since then.
    pub behind: Option<Moment>,
    /// Why, since when, and how often it was tried.
    pub trouble: Option<(String, Moment, u32)>,
}

impl TargetStatus {
    pub(super) fn new(
        kind: &'static str,
        target: String,
        behind: Option<Moment>,
        trouble: Option<(String, Moment, u32)>,
    ) -> Self {
        Self {
            kind,
            target,
            state: match (&trouble, behind) {
                (Some(_), _) => "failed",
                (None, Some(_)) => "pending",
                (None, None) => "ok",
            },
            behind,
            trouble,
        }
    }
}

impl Supervisor {
    /// Every fleet publishes what it is now.
    pub(super) fn publish(&mut self, now: Moment, out: &mut Effects) {
        let names =
            self.fleets_where(|fleet| fleet.spec.publish.is_some() || fleet.publication.is_there());
        let (config, stopping) = (self.config.revision, self.asked.stopping);
        for name in &names {
            self.with_fleet(name, now, out, |fleet, room| {
                fleet.publish(config, stopping, room);
            });
        }
        let owned: BTreeSet<u64> = self.fleets.values().flat_map(Fleet::owned).collect();
        for name in &names {
            self.with_fleet(name, now, out, |fleet, room| {
                if fleet.publishes() {
                    fleet.tend_sheets(&owned, room);
                }
            });
        }
        let mut claimed: BTreeSet<u64> = self.fleets.values().flat_map(Fleet::claimed).collect();
        for name in &names {
            self.with_fleet(name, now, out, |fleet, room| {
                if fleet.publishes() {
                    fleet.write_sheets(&mut claimed, room);
                }
                fleet.tend_farewell(stopping, room);
            });
        }
    }
}

impl Publication {
    /// Is something published, or is a file still to say that nothing is?
    fn is_there(&self) -> bool {
        self.listing.is_some() || !self.sheets.is_empty()
    }

    /// A fleet that was going stays: it may have left files to others by now.
    pub(super) fn begin_anew(&mut self) {
        self.spec = None;
    }
}

impl Fleet {
    fn publish(&mut self, config: Revision, stopping: Stopping, room: &mut Room<'_>) {
        self.follow_spec(room.now);
        let listing = self.listing(config, stopping, room.intent);
        if listing != self.publication.listing {
            self.publication.listing.clone_from(&listing);
            self.publication.serial += 1;
            room.out.list.push(Effect::Publish {
                fleet: self.name.clone(),
                serial: self.publication.serial,
                listing,
            });
            let sheets = self.publication.sheets.iter_mut();
            for sheet in sheets.filter(|sheet| !sheet.is_leaving()) {
                sheet.fall_behind(room.now);
            }
        }
    }

    /// What nobody else may use while its files are being worked on.
    fn claimed(&self) -> impl Iterator<Item = u64> {
        let sheets = self.publication.sheets.iter();
        let busy = sheets.filter(|sheet| self.publishes() && sheet.is_busy());
        busy.flat_map(Sheet::claims)
    }

    /// The files that are its own. Whoever is configured with one has it: a fleet that goes, or publishes it no more, leaves it alone.
    fn owned(&self) -> impl Iterator<Item = u64> {
        let sheets = self.publication.sheets.iter();
        let stays = |sheet: &&Sheet| !self.removed && !sheet.is_leaving() && !sheet.is_gone();
        sheets.filter(stays).map(|sheet| sheet.id)
    }

    /// What is to be published now; none if nothing ever is.
    fn listing(&self, config: Revision, stopping: Stopping, intent: &Intent) -> Option<Listing> {
        let spec = self.spec.publish.as_ref()?;
        let open = stopping == Stopping::No && !self.removed && intent.node.is_none();
        let state = |slot: &Slot| match () {
            () if slot.is_ready() && open => Some(Presence::Ready),
            // Its turn to drain has not come, and nobody may rely on it any more.
            () if slot.is_ready() || (slot.is_leaving() && slot.leads()) => {
                Some(Presence::Draining)
            }
            () => None,
        };
        let there = self
            .slots
            .iter()
            .filter_map(|(index, slot)| Some((*index, slot, state(slot)?)));
        let workers: Vec<Endpoint> = there
            .map(|(index, slot, state)| Endpoint {
                slot: Some(index),
                // Ports are enough for all slots; a row of a larger fleet may still be there.
                port: u32::from(spec.port)
                    .checked_add(index.0)
                    .and_then(|port| u16::try_from(port).ok())
                    .unwrap_or_default(),
                weight: u32::from(state == Presence::Ready),
                state,
                revision: slot.revision,
            })
            .collect();
        let ready: u32 = workers.iter().map(|one| one.weight).sum();
        // Nobody would knock at a socket that is in no list.
        let wakes = open && self.wakes(intent) && ready == 0;
        let endpoints = match spec.mode {
            PublishMode::Node if wakes => vec![Endpoint {
                slot: None,
                port: spec.port,
                weight: 1,
                state: Presence::Ready,
                revision: self.revision(),
            }],
            PublishMode::Worker => workers,
            PublishMode::Node if workers.is_empty() => Vec::new(),
            PublishMode::Node => vec![Endpoint {
                slot: None,
                port: spec.port,
                weight: ready,
                state: match ready {
                    0 => Presence::Draining,
                    _ => Presence::Ready,
                },
                revision: self.revision(),
            }],
        };
        let desired = self.desired(intent);
        Some(Listing {
            mode: spec.mode,
            address: spec.address.clone(),
            endpoints,
            ready,
            desired,
            open: open && (desired > 0 || (wakes && spec.mode == PublishMode::Node)),
            config,
        })
    }

    /// May it have no workers, and gets one as soon as somebody connects?
    fn wakes(&self, intent: &Intent) -> bool {
        let scale = self.spec.scale.as_ref();
        scale.is_some_and(|scale| scale.min == 0) && !intent.fleets.contains_key(&self.name)
    }

    /// Files are known by their path. One that is there no more is made a last time; what is being done with it comes to its end.
    fn follow_spec(&mut self, now: Moment) {
        let publication = &mut self.publication;
        if publication.spec == self.spec.publish {
            return;
        }
        let before = std::mem::replace(&mut publication.spec, self.spec.publish.clone());
        if let (Some(spec), Some(listing)) = (before, &publication.listing) {
            publication.parted = Some((spec, listing.without_anybody()));
        }
        let mut files: Vec<&PublishedFile> = self
            .spec
            .publish
            .iter()
            .flat_map(|spec| &spec.files)
            .collect();
        for sheet in &mut publication.sheets {
            match files.iter().position(|file| sheet.is_of(file)) {
                Some(at) => sheet.follow(files.remove(at), now),
                None => sheet.leave(now),
            }
        }
        for file in files {
            let fresh = Sheet::new(file.clone(), now);
            match publication.sheets.iter_mut().find(|one| one.is_gone()) {
                Some(place) => *place = fresh,
                None => publication.sheets.push(fresh),
            }
        }
        self.forget_sheets();
    }

    /// Of files that are gone nothing is remembered.
    pub(super) fn forget_sheets(&mut self) {
        let sheets = &mut self.publication.sheets;
        while sheets.last().is_some_and(Sheet::is_gone) {
            sheets.pop();
        }
        let is_there = |marks: &Marks| {
            let mut sheets = sheets.iter();
            sheets.any(|sheet| sheet.id == marks.id && !sheet.is_gone())
        };
        self.body.files.retain(is_there);
    }

    /// A check or a reload of the last supervisor's still runs.
    pub(super) fn inherit_command(&mut self, file: SlotIndex, now: Moment) {
        self.follow_spec(now);
        if let Some(sheet) = self.publication.sheets.get_mut(file.0 as usize) {
            sheet.inherit();
        }
    }

    /// Nothing is published of it any more: it is gone.
    pub(super) fn unpublished(&self) -> Option<Effect> {
        self.publication.listing.as_ref()?;
        Some(Effect::Publish {
            fleet: self.name.clone(),
            serial: self.publication.serial + 1,
            listing: None,
        })
    }

    /// A fleet that goes is gone when its files say so. Where the daemon ends, one that fails, or takes too long, is not waited for.
    fn tend_farewell(&mut self, stopping: Stopping, room: &mut Room<'_>) {
        if (!self.removed && stopping == Stopping::No) || self.live() > 0 {
            self.publication.farewell = Farewell::No;
            return;
        }
        let sheets = &self.publication.sheets;
        let (waits, patience) = match stopping {
            Stopping::No => (sheets.iter().any(Sheet::is_behind), LONG_FAREWELL),
            Stopping::Drain => (sheets.iter().any(Sheet::is_under_way), FAREWELL),
            Stopping::Kill => (false, FAREWELL),
        };
        let latest = room.now.after(patience);
        match self.publication.farewell {
            Farewell::No if waits => self.publication.farewell = Farewell::Saying(latest),
            // The daemon may end while a fleet goes.
            Farewell::Saying(until) if waits && until > room.now => {
                self.publication.farewell = Farewell::Saying(until.min(latest));
            }
            Farewell::No | Farewell::Saying(_) => {
                self.publication.farewell = Farewell::Over(room.now.after(FAREWELL));
                self.kill_commands(room);
            }
            Farewell::Over(_) => {}
        }
    }

    /// It was gone before: the last supervisor said so.
    pub(super) fn forget_farewell(&mut self) {
        self.publication.farewell = Farewell::Over(Moment(0));
    }

    /// May its files still be made?
    pub(super) fn publishes(&self) -> bool {
        match self.publication.farewell {
            Farewell::No | Farewell::Saying(_) => true,
            Farewell::Over(_) => false,
        }
    }

    /// Do its files still have to say that it is gone, or is something still being done with one of them?
    pub(super) fn is_saying_farewell(&self, now: Moment) -> bool {
        match self.publication.farewell {
            Farewell::No => false,
            Farewell::Saying(until) => until > now,
            Farewell::Over(until) => {
                until > now && self.publication.sheets.iter().any(Sheet::is_busy)
            }
        }
    }

    pub(super) fn publish_deadline(&self) -> Option<Moment> {
        let sheets = self.publication.sheets.iter();
        let farewell = match self.publication.farewell {
            Farewell::No => None,
            Farewell::Saying(until) | Farewell::Over(until) => Some(until),
        };
        let sheets = sheets
            .filter_map(|sheet| sheet.deadline(self.looked))
            .filter(|_| self.publishes());
        let farewell = farewell.filter(|at| *at > self.looked);
        sheets.chain(farewell).min()
    }

    pub(super) fn publish_status(&self) -> Option<PublishStatus> {
        let publication = &self.publication;
        let spec = publication.spec.as_ref()?;
        let files = publication.sheets.iter().filter(|sheet| !sheet.is_gone());
        Some(PublishStatus {
            listing: publication.listing.clone()?,
            serial: publication.serial,
            targets: files.map(Sheet::status).collect(),
            agent: spec.haproxy_agent.map(|address| address.to_string()),
        })
    }

    /// What is to be told in etcd of it, if there is one.
    pub(super) fn recorded(&self) -> Option<(&Listing, &RecordsSpec)> {
        let publication = &self.publication;
        let spec = publication.spec.as_ref().filter(|_| !self.removed)?;
        Some((publication.listing.as_ref()?, spec.records.as_ref()?))
    }

    /// What is remembered of a file.
    pub(super) fn marks(&mut self, id: u64) -> &mut Marks {
        let files = &mut self.body.files;
        let at = match files.iter().position(|marks| marks.id == id) {
            Some(at) => at,
            None => {
                files.push(Marks::of(id));
                files.len() - 1
            }
        };
        &mut files[at]
    }

    /// What a file is to show.
    pub(super) fn shown(&self, sheet: &Sheet) -> Option<(&PublishSpec, &Listing)> {
        let publication = &self.publication;
        if sheet.is_leaving() {
            let (spec, listing) = publication.parted.as_ref()?;
            return Some((spec, listing));
        }
        Some((publication.spec.as_ref()?, publication.listing.as_ref()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::spec::{FleetSpec, ScaleSpec},
        engine::intent::Hold,
        wire::StopRecord,
    };

    fn published(files: &[&str]) -> Fleet {
        let file = |path: &&str| PublishedFile {
            template: "t".to_owned(),
            path: (*path).to_owned(),
            check: None,
            reload: None,
        };
        let mut spec = FleetSpec::unknown(&StopRecord::default());
        spec.publish = Some(PublishSpec {
            mode: PublishMode::Node,
            address: "10.0.0.5".to_owned(),
            port: 80,
            files: files.iter().map(file).collect(),
            haproxy_agent: None,
            environment: std::collections::BTreeMap::new(),
            records: None,
        });
        Fleet::new("web".parse().unwrap(), spec, Moment(0))
    }

    #[test]
    fn files_keep_their_places_and_one_that_was_left_to_others_comes_back() {
        let mut fleet = published(&["a", "b"]);
        let ids = |fleet: &Fleet| -> Vec<u64> {
            let sheets = fleet.publication.sheets.iter();
            sheets.map(|sheet| sheet.id).collect()
        };
        fleet.follow_spec(Moment(1));
        let before = ids(&fleet);
        let files = |fleet: &mut Fleet, change: fn(&mut Vec<PublishedFile>)| {
            change(&mut fleet.spec.publish.as_mut().unwrap().files);
            fleet.follow_spec(Moment(2));
        };
        files(&mut fleet, |files| files.reverse());
        assert_eq!(ids(&fleet), before);
        files(&mut fleet, |files| files.truncate(1));
        assert_eq!(ids(&fleet), before);
        let leaving = fleet.publication.sheets.iter().map(Sheet::is_leaving);
        assert_eq!(leaving.collect::<Vec<_>>(), [true, false]);
        fleet.publication.sheets.clear();
        fleet.follow_spec(Moment(3));
        assert!(ids(&fleet).is_empty());
        fleet.publication.begin_anew();
        fleet.follow_spec(Moment(3));
        assert_eq!(ids(&fleet), before[1..]);
    }

    #[test]
    fn a_fleet_that_sleeps_stays_where_somebody_can_wake_it() {
        let mut fleet = published(&[]);
        let name = fleet.name.clone();
        fleet.spec.scale = Some(ScaleSpec::between(0, 4));
        fleet.fit_scale(Moment(0));
        let mut intent = Intent::default();
        let listing = |fleet: &Fleet, stopping, intent: &Intent| {
            let listing = fleet.listing(Revision::default(), stopping, intent);
            let listing = listing.expect("it is published");
            let offered = listing.endpoints.iter().map(|one| (one.weight, one.state));
            (offered.collect::<Vec<_>>(), listing.open)
        };
        let awake = (vec![(1, Presence::Ready)], true);
        let asleep = (Vec::new(), false);
        assert_eq!(listing(&fleet, Stopping::No, &intent), awake);
        assert_eq!(listing(&fleet, Stopping::Drain, &intent), asleep);
        intent.fleets.insert(name, Hold::default());
        assert_eq!(listing(&fleet, Stopping::No, &intent), asleep);
        fleet.removed = true;
        assert_eq!(listing(&fleet, Stopping::No, &Intent::default()), asleep);
    }
}
