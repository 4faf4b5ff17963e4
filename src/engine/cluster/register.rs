//! This node's records in etcd: the lease that they hang on, and the entries of its fleets.
//!
//! ```text
//!   Away ──▶ Granting ──▶ Held: renewed, signed, looked through ──gone──▶ Away
//!                           └──── nothing is to be published ──▶ Revoking ──▶ Away
//! ```
//!
//! It is another lease than that of the locks: what becomes of those must not take a worker's record away, and the other way round. Nothing
//! is unsafe here, so a renewal is what etcd says it is, and a lease that cannot be renewed is believed in until etcd says that it is gone.
//! Its number is in the node's row, so that a supervisor that takes over goes on with it; and in etcd beside the node's name, so that a
//! keeper that begins anew, within the time of the lease of the one before, moves the records onto its own. Two nodes of one name are seen
//! there, too.
//!
//! Once in its time all that hangs on it is looked at: what somebody deleted is written again, and what nobody knows is deleted.
//!
//! The units of fleets that have a `cluster_max` hang on it as well (`capacity.rs`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::RecordsSpec,
    engine::{
        cluster::{
            calls::{Desk, Purpose},
            capacity::{Capacity, Demand, Share},
            entry::{Entry, Leases, Verdict, Word},
            keys::{self, Prefix},
            rpc::{Body, CallId, Do, Failure, KeyValue, LeaseId, Reply, Request, Txn, When},
            session::PATIENCE,
        },
        publish::{Listing, TargetStatus},
        records::Offer,
    },
    id::FleetName,
    time::{Clocks, Moment, Span, Stamp},
};

/// So many fleets that leave something are looked at by their heirs.
const ELDERS_MAX: usize = 64;
const RETRY_MIN: Span = Span::millis(100);
const RETRY_MAX: Span = Span::secs(5);

/// What a supervisor leaves to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct RegisterRow {
    lease: LeaseId,
    /// As granted.
    ttl: Span,
    /// The key that says that it is ours was there.
    signed: bool,
}

/// Who writes the records of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Card {
    /// Made once for a state directory.
    identity: String,
}

/// Something that is done again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Due(Moment),
    Asked(CallId),
}

impl Turn {
    fn is_due(self, now: Moment) -> bool {
        matches!(self, Self::Due(at) if at <= now)
    }

    fn deadline(self) -> Option<Moment> {
        match self {
            Self::Due(at) => Some(at),
            Self::Asked(_) => None,
        }
    }
}

/// A lease, as far as we know.
#[derive(Clone, Debug)]
struct Held {
    lease: LeaseId,
    ttl: Span,
    /// It was renewed at that time, or granted.
    heard: Moment,
    renewal: Turn,
    /// It was not renewed for so long that it may be gone.
    is_doubted: bool,
    /// The key that says that it is ours; none: it does.
    signature: Option<Turn>,
    /// As it was when it was last read: by which revision.
    card: i64,
    /// Of a daemon of this node before us.
    before: Option<LeaseId>,
    look: Turn,
}

#[derive(Clone, Debug)]
enum Phase {
    Away { until: Moment },
    Granting(CallId),
    Held(Box<Held>),
    Revoking(CallId),
}

/// All records of this node.
#[derive(Clone, Debug)]
pub(super) struct Register {
    prefix: Prefix,
    endpoints: String,
    node: String,
    identity: String,
    ttl: Span,
    /// How many endpoints of etcd there are, and whom to ask.
    members: usize,
    favourite: usize,
    phase: Phase,
    retry: Span,
    /// By fleet; without a name what was found and is nobody's.
    entries: BTreeMap<Option<FleetName>, Entry>,
    /// Of fleets that have a maximum over all nodes.
    capacities: BTreeMap<FleetName, Capacity>,
    looked: Moment,
}

impl Register {
    pub(super) fn new(
        prefix: Prefix,
        (node, identity): (&str, &str),
        (ttl, members): (Span, usize),
        now: Moment,
    ) -> Self {
        Self {
            endpoints: prefix.endpoints(),
            prefix,
            node: node.to_owned(),
            identity: identity.to_owned(),
            ttl,
            members,
            favourite: 0,
            phase: Phase::Away { until: now },
            retry: Span::ZERO,
            entries: BTreeMap::new(),
            capacities: BTreeMap::new(),
            looked: now,
        }
    }

    /// Another number of endpoints; the next lease is of another length.
    pub(super) fn reconfigure(&mut self, members: usize, ttl: Span) {
        (self.members, self.ttl) = (members, ttl);
        self.favourite %= members;
    }

    /// Goes on with the lease of the supervisor before. What hangs on it is found by looking, and by trying.
    pub(super) fn adopt(&mut self, row: RegisterRow, now: Moment) {
        self.hold(row.lease, row.ttl, now, now);
        // An etcd that is full takes no signature, and is to be told who goes. That it stands there still is looked up.
        if let Phase::Held(held) = &mut self.phase
            && row.signed
        {
            held.signature = None;
        }
    }

    fn hold(&mut self, lease: LeaseId, ttl: Span, heard: Moment, renew: Moment) {
        self.phase = Phase::Held(Box::new(Held {
            lease,
            ttl,
            heard,
            renewal: Turn::Due(renew),
            is_doubted: false,
            signature: Some(Turn::Due(heard)),
            card: 0,
            before: None,
            look: Turn::Due(heard),
        }));
    }

    /// For the node's row.
    pub(super) fn row(&self) -> Option<RegisterRow> {
        match &self.phase {
            Phase::Held(held) => Some(RegisterRow {
                lease: held.lease,
                ttl: held.ttl,
                signed: held.signature.is_none(),
            }),
            Phase::Away { .. } | Phase::Granting(_) | Phase::Revoking(_) => None,
        }
    }

    /// Nothing of ours is there, as far as we know.
    pub(super) fn is_away(&self) -> bool {
        matches!(self.phase, Phase::Away { .. })
    }

    /// What is published of a fleet now.
    pub(super) fn offer(
        &mut self,
        fleet: &FleetName,
        (listing, spec): (&Listing, &RecordsSpec),
        wall: Stamp,
        now: Moment,
    ) {
        let name = Some(fleet.clone());
        let anchors = self.prefix.anchors(fleet);
        let fresh = || Entry::new(anchors);
        let entry = self.entries.entry(name).or_insert_with(fresh);
        if !entry.shows(listing, spec) {
            let offer = Offer {
                fleet: fleet.clone(),
                node: self.node.clone(),
                spec: spec.clone(),
                listing: listing.clone(),
            };
            entry.offer(offer, &self.endpoints, wall, now);
        }
    }

    /// Of the others nothing is published any more.
    pub(super) fn keep(&mut self, is_there: impl Fn(&FleetName) -> bool, now: Moment) {
        for (name, entry) in &mut self.entries {
            if name.as_ref().is_some_and(|name| !is_there(name)) {
                entry.withdraw(now);
            }
        }
    }

    /// What fleets want that have a maximum over all nodes. What others had is nobody's any more: it is found, and deleted.
    pub(super) fn demand(&mut self, demands: &BTreeMap<FleetName, Demand>, now: Moment) {
        let before = self.capacities.len();
        self.capacities.retain(|name, _| demands.contains_key(name));
        if let Phase::Held(held) = &mut self.phase
            && self.capacities.len() < before
            && matches!(held.look, Turn::Due(_))
        {
            held.look = Turn::Due(now);
        }
        for (name, demand) in demands {
            let ours = (self.node.as_str(), self.identity.as_str());
            let fresh = || Capacity::new(self.prefix.units(name), ours, *demand, now);
            self.capacities
                .entry(name.clone())
                .or_insert_with(fresh)
                .want(*demand);
        }
    }

    /// What they have.
    pub(super) fn shares(&self) -> Vec<(FleetName, Share)> {
        let acts = self.acts();
        let shares = self.capacities.iter().map(|(name, capacity)| {
            let share = capacity.share();
            let is_known = share.is_known && acts;
            (name.clone(), Share { is_known, ..share })
        });
        shares.collect()
    }

    /// What hangs on its lease can be written.
    fn acts(&self) -> bool {
        matches!(&self.phase, Phase::Held(held) if held.may_write())
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        let own = match &self.phase {
            Phase::Away { until } => self.is_needed().then_some(*until),
            Phase::Granting(_) | Phase::Revoking(_) => None,
            Phase::Held(held) => {
                let turns = [Some(held.renewal), held.signature, Some(held.look)];
                let turns = turns.into_iter().flatten().filter_map(Turn::deadline);
                turns.min()
            }
        };
        let acts = self.acts();
        let entries = self.entries.values().filter(|_| acts);
        let entries = entries.filter_map(Entry::deadline);
        let capacities = self.capacities.values().filter(|_| acts);
        let capacities = capacities.filter_map(Capacity::deadline);
        own.into_iter()
            .chain(entries)
            .chain(capacities)
            .filter(|at| *at > self.looked)
            .min()
    }

    fn is_needed(&self) -> bool {
        !self.entries.is_empty() || !self.capacities.is_empty()
    }

    /// Does what is due; `leaves`: nothing is to be begun, and what hangs on the lease is to go.
    pub(super) fn tend(&mut self, leaves: bool, desk: &mut Desk<'_>) {
        let now = desk.now;
        self.looked = now;
        self.entries.retain(|_, entry| !entry.is_over(now));
        for entry in self.entries.values_mut() {
            entry.refresh(&self.endpoints);
        }
        let needed = self.is_needed() && !leaves;
        let favourite = self.favourite;
        match &mut self.phase {
            Phase::Away { until } if needed && *until <= now => {
                let seconds = self.ttl.as_millis().div_ceil(1_000);
                let ttl = i64::try_from(seconds).unwrap_or(i64::MAX);
                let request = Request::Grant { ttl };
                let call = desk.ask(favourite, request, PATIENCE, Purpose::Register);
                self.phase = Phase::Granting(call);
            }
            Phase::Held(held) if !needed => {
                let request = Request::Revoke(held.lease);
                let call = desk.ask(favourite, request, PATIENCE, Purpose::Register);
                self.phase = Phase::Revoking(call);
            }
            Phase::Held(held) => {
                let ask = |request: Request, desk: &mut Desk<'_>| {
                    Turn::Asked(desk.ask(favourite, request, PATIENCE, Purpose::Register))
                };
                if held.renewal.is_due(now) {
                    // Who does not answer must not use up the time of who would.
                    let within = PATIENCE.min(Span::nanos(held.ttl.as_nanos() / 5));
                    let request = Request::KeepAlive(held.lease);
                    let call = desk.ask(favourite, request, within, Purpose::Register);
                    held.renewal = Turn::Asked(call);
                }
                if held.signature.is_some_and(|turn| turn.is_due(now)) {
                    let key = self.prefix.publisher(&self.node);
                    let card = Card {
                        identity: self.identity.clone(),
                    };
                    let txn = Txn {
                        when: vec![When::Modified(key.clone(), held.card)],
                        then: vec![Do::Put {
                            key: key.clone(),
                            value: keys::encode(&card),
                            lease: Some(held.lease),
                        }],
                        otherwise: vec![Do::Get(key)],
                    };
                    held.signature = Some(ask(Request::Txn(txn), desk));
                }
                if held.may_write() {
                    if held.look.is_due(now) {
                        held.look = ask(Request::LeaseKeys(held.lease), desk);
                    }
                    let leases = held.leases();
                    for capacity in self.capacities.values_mut() {
                        capacity.tend(leases.ours, favourite, desk);
                    }
                    self.tend_entries(leases, desk);
                }
            }
            Phase::Away { .. } | Phase::Granting(_) | Phase::Revoking(_) => {}
        }
    }

    fn tend_entries(&mut self, leases: Leases, desk: &mut Desk<'_>) {
        let elders = self.entries.values().filter_map(Entry::leaves);
        let elders: Vec<String> = elders.take(ELDERS_MAX).map(str::to_owned).collect();
        let names: Vec<Option<FleetName>> = self.entries.keys().cloned().collect();
        for name in names {
            let Some(entry) = self.entries.get(&name) else {
                continue;
            };
            let unwanted = match entry.may_act(desk.now) {
                true => entry.unwanted(),
                false => Vec::new(),
            };
            // Whoever is configured with a key has it: one that goes to another fleet is not deleted behind that one's back.
            let others = |key: &String| {
                let mut others = self.entries.iter().filter(|(other, _)| **other != name);
                others.any(|(_, entry)| entry.wants(key)) || self.is_unit(key)
            };
            let ceded: Vec<String> = unwanted.into_iter().filter(others).collect();
            if let Some(entry) = self.entries.get_mut(&name) {
                for key in &ceded {
                    entry.cede(key);
                }
                entry.heed(&elders, desk.now);
                entry.tend(leases, self.favourite, desk);
            }
        }
    }

    /// It is a unit of a fleet that counts them.
    fn is_unit(&self, key: &str) -> bool {
        self.capacities.values().any(|capacity| capacity.knows(key))
    }

    /// An answer to something that it, an entry or a capacity asked.
    pub(super) fn answered(
        &mut self,
        call: CallId,
        sent: Clocks,
        result: Result<Reply, Failure>,
        desk: &mut Desk<'_>,
    ) {
        let now = desk.now;
        match &mut self.phase {
            Phase::Granting(asked) if *asked == call => self.granted(sent, result, now),
            Phase::Revoking(asked) if *asked == call => {
                // If it was not heard it ends by itself.
                self.lose(now);
            }
            Phase::Held(held) if held.renewal == Turn::Asked(call) => {
                self.renewed(sent, result, now);
            }
            Phase::Held(held) if held.signature == Some(Turn::Asked(call)) => {
                self.signed(result, now);
            }
            Phase::Held(held) if held.look == Turn::Asked(call) => self.seen(result, now),
            Phase::Held(held) => {
                let place = (self.favourite, held.leases());
                let mut entries = self.entries.values_mut();
                let mut capacities = self.capacities.values_mut();
                let verdict = if let Some(entry) = entries.find(|entry| entry.asked(call)) {
                    entry.answered(call, result, place, desk)
                } else if let Some(capacity) = capacities.find(|one| one.asked(call)) {
                    capacity.answered(result, place.1.ours, now)
                } else {
                    Verdict::Fine
                };
                match verdict {
                    Verdict::NoLease => self.lose(now),
                    Verdict::Elsewhere => self.next_member(),
                    Verdict::Fine => {}
                }
            }
            Phase::Away { .. } | Phase::Granting(_) | Phase::Revoking(_) => {}
        }
    }

    fn next_member(&mut self) {
        self.favourite = (self.favourite + 1) % self.members;
    }

    fn pause(&mut self, now: Moment) -> Moment {
        self.retry = self.retry.plus(self.retry).clamp(RETRY_MIN, RETRY_MAX);
        now.after(self.retry)
    }

    fn fail(&mut self, why: &str, now: Moment) {
        for entry in self.entries.values_mut() {
            entry.fail(why, now);
        }
    }

    fn granted(&mut self, sent: Clocks, result: Result<Reply, Failure>, now: Moment) {
        let why = match result.map(|reply| reply.body) {
            Ok(Body::Granted { lease, ttl }) if ttl > 0 => {
                let ttl = Span::secs(ttl.unsigned_abs());
                let third = Span::nanos(ttl.as_nanos() / 3);
                self.hold(lease, ttl, sent.boottime, now.after(third));
                return;
            }
            Ok(_) => "it granted no lease".to_owned(),
            Err(failure) => failure.to_string(),
        };
        self.next_member();
        let until = self.pause(now);
        self.phase = Phase::Away { until };
        self.fail(&format!("etcd: {why}"), now);
    }

    /// It is over: all that hung on it goes, or is gone.
    fn lose(&mut self, now: Moment) {
        let until = self.pause(now);
        self.phase = Phase::Away { until };
        for entry in self.entries.values_mut() {
            entry.lost(now);
        }
        for capacity in self.capacities.values_mut() {
            capacity.lost(now);
        }
    }

    fn renewed(&mut self, sent: Clocks, result: Result<Reply, Failure>, now: Moment) {
        let Phase::Held(held) = &mut self.phase else {
            return;
        };
        let why = match result.map(|reply| reply.body) {
            Ok(Body::Alive { ttl }) if ttl > 0 => {
                (held.heard, held.is_doubted) = (sent.boottime, false);
                held.renewal = Turn::Due(now.after(Span::nanos(held.ttl.as_nanos() / 3)));
                self.retry = Span::ZERO;
                return;
            }
            Ok(Body::Alive { .. }) | Err(Failure::NoLease) => return self.lose(now),
            Ok(_) => "it answered another question".to_owned(),
            Err(failure) => failure.to_string(),
        };
        // Another member does as well, if there is one; a leader that crashes is nobody's business.
        let late = held.heard.after(Span::nanos(held.ttl.as_nanos() / 2)) <= now;
        let at = self.pause(now);
        if let Phase::Held(held) = &mut self.phase {
            held.renewal = Turn::Due(at);
            held.is_doubted |= late;
        }
        self.next_member();
        if late {
            self.fail(&format!("etcd: its lease is not renewed: {why}"), now);
        }
    }

    fn signed(&mut self, result: Result<Reply, Failure>, now: Moment) {
        let Phase::Held(held) = &mut self.phase else {
            return;
        };
        let why = match result.map(|reply| reply.body) {
            Ok(Body::Txn { held: true, .. }) => {
                held.signature = None;
                return;
            }
            Ok(Body::Txn { read, .. }) => {
                let found = read.into_iter().flatten().next();
                match held.reads_card(found.as_ref(), (&self.node, &self.identity)) {
                    Ok(true) => {
                        held.signature = Some(Turn::Due(now.after(RETRY_MIN)));
                        return;
                    }
                    Ok(false) => {
                        held.signature = None;
                        return;
                    }
                    Err(why) => why,
                }
            }
            Err(Failure::NoLease) => return self.lose(now),
            Ok(_) => "etcd: it answered another question".to_owned(),
            Err(failure) => format!("etcd: {failure}"),
        };
        self.next_member();
        let at = self.pause(now);
        if let Phase::Held(held) = &mut self.phase {
            (held.signature, held.card) = (Some(Turn::Due(at)), 0);
        }
        self.fail(&why, now);
    }

    /// All that hangs on the lease.
    fn seen(&mut self, result: Result<Reply, Failure>, now: Moment) {
        let Phase::Held(held) = &mut self.phase else {
            return;
        };
        held.look = Turn::Due(now.after(held.ttl));
        let (revision, keys) = match result {
            Ok(Reply {
                from,
                body: Body::LeaseKeys { ttl, keys },
            }) if ttl >= 0 => (from.revision, keys),
            Ok(Reply {
                body: Body::LeaseKeys { .. },
                ..
            })
            | Err(Failure::NoLease) => return self.lose(now),
            // It is looked at again.
            Ok(_) | Err(_) => return,
        };
        let there: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
        let card = self.prefix.publisher(&self.node);
        if !there.contains(card.as_str()) {
            (held.signature, held.card) = (Some(Turn::Due(now)), 0);
        }
        for entry in self.entries.values_mut() {
            entry.refresh(&self.endpoints);
            entry.compare(&there, revision, now);
        }
        let known =
            |key: &str| self.entries.values().any(|entry| entry.knows(key)) || self.is_unit(key);
        let strays = there.iter().filter(|key| **key != card && !known(key));
        let strays: Vec<String> = strays.map(|key| (*key).to_owned()).collect();
        for key in strays {
            self.entries.entry(None).or_default().find(key, now);
        }
    }

    /// What people are to hear.
    pub(super) fn words(&mut self) -> Vec<(FleetName, Word)> {
        let mut all = Vec::new();
        for (name, entry) in &mut self.entries {
            let words = std::mem::take(&mut entry.words);
            if let Some(name) = name {
                all.extend(words.into_iter().map(|word| (name.clone(), word)));
            }
        }
        all
    }

    /// How a fleet's targets are.
    pub(super) fn targets(&self, fleet: &FleetName) -> Vec<TargetStatus> {
        let entry = self.entries.get(&Some(fleet.clone()));
        entry.map(Entry::states).unwrap_or_default()
    }
}

impl Held {
    /// Everybody knows that it is ours, and it is there as far as we know.
    fn may_write(&self) -> bool {
        self.signature.is_none() && !self.is_doubted
    }

    fn leases(&self) -> Leases {
        Leases {
            ours: self.lease,
            before: self.before,
        }
    }

    /// What stands where we want to sign: is it still to be done? An error says whose else it is.
    fn reads_card(
        &mut self,
        kv: Option<&KeyValue>,
        (node, identity): (&str, &str),
    ) -> Result<bool, String> {
        let Some(kv) = kv else {
            // It went with its lease since we looked.
            self.card = 0;
            return Ok(true);
        };
        if kv.lease == Some(self.lease) {
            return Ok(false);
        }
        let Some(card) = keys::decode::<Card>(&kv.value) else {
            return Err(format!("its place is taken by {}", keys::strange(&kv.key)));
        };
        if card.identity != identity {
            return Err(format!(
                "another node has the name {node}: give one of them another name"
            ));
        }
        (self.before, self.card) = (kv.lease, kv.modified);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::spec::PublishMode,
        engine::cluster::{
            calls::Calls,
            rpc::{Call, Header, Order},
        },
        id::Revision,
    };

    struct Bench {
        register: Register,
        calls: Calls,
        now: Moment,
    }

    impl Bench {
        /// Goes on with a lease, and has something to publish.
        fn new() -> Self {
            let now = Moment(1_000_000_000);
            let size = (Span::secs(10), 3);
            let mut register = Register::new(Prefix::new("c"), ("n1", "me"), size, now);
            let row = RegisterRow {
                lease: LeaseId(7),
                ttl: size.0,
                signed: false,
            };
            register.adopt(row, now);
            let listing = Listing {
                mode: PublishMode::Node,
                address: "10.0.0.5".to_owned(),
                endpoints: Vec::new(),
                ready: 0,
                desired: 1,
                open: true,
                config: Revision::default(),
            };
            let fleet = "web".parse().unwrap();
            register.offer(&fleet, (&listing, &RecordsSpec::default()), Stamp(0), now);
            Self {
                register,
                calls: Calls::default(),
                now,
            }
        }

        fn asks(&mut self) -> Vec<(CallId, Request)> {
            let mut out = Vec::new();
            let mut desk = Desk {
                now: self.now,
                calls: &mut self.calls,
                out: &mut out,
            };
            self.register.tend(false, &mut desk);
            let calls = out.into_iter().map(|order| match order {
                Order::Call(Call { id, request, .. }) => (id, request),
                other => panic!("{other:?}"),
            });
            calls.collect()
        }

        /// It signs, and expects to find its name so.
        fn signs(&mut self, revision: i64) -> CallId {
            let asked = self.asks();
            let signs = asked.into_iter().find_map(|(id, request)| match request {
                Request::Txn(txn) => Some((id, txn.when)),
                _ => None,
            });
            let (call, when) = signs.expect("it signs");
            assert_eq!(
                when,
                [When::Modified("/leasehold/v1/c/p/n1".to_owned(), revision)]
            );
            call
        }

        fn hears(&mut self, call: CallId, body: Body) {
            let reply = Reply {
                from: Header::default(),
                body,
            };
            let mut out = Vec::new();
            let mut desk = Desk {
                now: self.now,
                calls: &mut self.calls,
                out: &mut out,
            };
            let sent = Clocks::default();
            self.register.answered(call, sent, Ok(reply), &mut desk);
        }

        fn finds(&mut self, call: CallId, there: Option<(&str, i64, i64)>) {
            let kv = there.map(|(identity, lease, modified)| KeyValue {
                key: "/leasehold/v1/c/p/n1".to_owned(),
                value: format!("{{\"identity\":\"{identity}\"}}"),
                created: 1,
                modified,
                lease: Some(LeaseId(lease)),
            });
            let read = vec![kv.into_iter().collect()];
            self.hears(call, Body::Txn { held: false, read });
            self.now = self.now.after(RETRY_MIN);
        }
    }

    /// A daemon of this node before us, whose lease ends while we look.
    #[test]
    fn a_name_that_goes_with_its_lease_is_free() {
        let mut bench = Bench::new();
        let call = bench.signs(0);
        bench.finds(call, Some(("me", 6, 70)));
        let call = bench.signs(70);
        bench.finds(call, None);
        let call = bench.signs(0);
        bench.finds(call, Some(("me", 7, 90)));
        let looks = bench.asks();
        let looks = looks.into_iter().map(|(_, request)| request);
        assert!(
            looks
                .into_iter()
                .any(|one| one == Request::LeaseKeys(LeaseId(7)))
        );
    }

    #[test]
    fn another_nodes_name_is_left_alone() {
        let mut bench = Bench::new();
        let call = bench.signs(0);
        bench.finds(call, Some(("you", 6, 70)));
        let words = bench.register.words();
        let said = words.iter().any(|(_, word)| {
            matches!(word, Word::Failed { why, is_new: true, .. } if why.contains("has the name n1"))
        });
        assert!(said, "{words:?}");
        bench.signs(0);
    }

    /// What hangs on the lease and is counted stays; when it is not counted any more it is nobody's.
    #[test]
    fn units_hang_on_the_lease_of_the_records() {
        let mut bench = Bench::new();
        let call = bench.signs(0);
        bench.finds(call, Some(("me", 7, 90)));
        let web: FleetName = "web".parse().unwrap();
        let demand = Demand { wanted: 2, max: 4 };
        let all = BTreeMap::from([(web, demand)]);
        bench.register.demand(&all, bench.now);
        let unit = "/leasehold/v1/c/cap/web/1";
        let asked = bench.asks();
        let lists = Request::Txn(Txn::read(vec![Do::List(unit.replace("/1", "/"))]));
        assert!(asked.iter().any(|(_, one)| *one == lists), "{asked:?}");
        assert!(!bench.register.shares()[0].1.is_known);
        let look = |asked: &[(CallId, Request)]| {
            let mut all = asked.iter();
            let look = all.find(|(_, one)| *one == Request::LeaseKeys(LeaseId(7)));
            look.expect("it is looked through").0
        };
        let keys = || Body::LeaseKeys {
            ttl: 10,
            keys: vec!["/leasehold/v1/c/p/n1".to_owned(), unit.to_owned()],
        };
        bench.hears(look(&asked), keys());
        let strays = |register: &Register| register.entries.contains_key(&None);
        assert!(!strays(&bench.register));
        // It is configured away: that is seen at once, and what it had goes.
        bench.register.demand(&BTreeMap::new(), bench.now);
        let asked = bench.asks();
        bench.hears(look(&asked), keys());
        assert!(strays(&bench.register));
        assert!(bench.register.entries[&None].knows(unit));
    }

    #[test]
    fn units_alone_need_a_lease_and_go_with_it() {
        let mut bench = Bench::new();
        bench.register.entries.clear();
        let demand = Demand { wanted: 1, max: 4 };
        let all = BTreeMap::from([("web".parse().unwrap(), demand)]);
        bench.register.demand(&all, bench.now);
        assert!(bench.register.is_needed());
        bench.register.lose(bench.now);
        assert_eq!(bench.register.shares()[0].1, Share::default());
        bench.now = bench.now.after(RETRY_MAX);
        let asked = bench.asks();
        assert!(
            matches!(asked[..], [(_, Request::Grant { ttl: 10 })]),
            "{asked:?}"
        );
    }
}
