//! What stands in etcd of one fleet, and what is to stand there: the difference, in transactions.
//!
//! One transaction is under way at a time, and all records of an endpoint are in one. Each names the revision of every key that it writes
//! as we last knew it: what is somebody else's, what a predecessor of ours sent late, and what we do not know we wrote is seen in the answer
//! and not overwritten unseen. So whatever is not known is taken for not there, and asked about by trying.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    config::spec::RecordsSpec,
    engine::{
        cluster::{
            anchors::{Anchors, somebody_elses},
            calls::{Desk, Purpose},
            keys,
            rpc::{
                Body, CallId, Do, Failure, Header, KeyValue, LeaseId, Reply, Request, TXN_MAX, Txn,
                When,
            },
            session::PATIENCE,
        },
        publish::{Listing, TargetStatus},
        records::{self, Canonical, Offer, Wanted},
    },
    id::SlotIndex,
    time::{Moment, Span, Stamp},
};

/// After a failure it is tried again so soon, then after twice as long, and so on.
const RETRY_MIN: Span = Span::millis(100);
const RETRY_MAX: Span = Span::secs(5);
/// Whoever comes, and takes nothing from anybody, waits for others that come.
const PAUSE: Span = Span::millis(100);
/// What is somebody else's is looked at again after so long.
const TAKEN: Span = Span::secs(5);
/// What is published no more, and cannot be told, is forgotten then: its lease is over.
const FAREWELL: Span = Span::secs(120);

/// Whose leases they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leases {
    /// What we write hangs on it.
    pub(super) ours: LeaseId,
    /// What hangs on this one was written by a daemon of this node before us.
    pub(super) before: Option<LeaseId>,
}

/// What people are to hear of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Word {
    /// It was not reached; anew for the same reason: that is only counted.
    Failed {
        target: String,
        why: String,
        is_new: bool,
    },
    /// It is reached again.
    Restored { target: String, after: Span },
}

/// A key that we wrote, as far as we know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mark {
    /// When it was last written; 0: not known.
    revision: i64,
    /// What it says; none: not known.
    value: Option<String>,
    /// Whose it is.
    endpoint: Option<SlotIndex>,
    /// For whom.
    target: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    why: String,
    /// People were told.
    is_said: bool,
    since: Moment,
    tries: u32,
}

/// Somebody who is told.
#[derive(Clone, Debug)]
struct Target {
    kind: &'static str,
    target: String,
    trouble: Option<Trouble>,
}

/// What a transaction is to do to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    key: String,
    /// As we knew it.
    revision: i64,
    /// What it is to say; none: nothing.
    value: Option<String>,
    endpoint: Option<SlotIndex>,
    target: Option<usize>,
}

#[derive(Clone, Debug)]
struct Asked {
    call: CallId,
    steps: Vec<Step>,
}

/// What the register must know of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Fine,
    /// The lease is gone.
    NoLease,
    /// Somebody else is to be asked.
    Elsewhere,
}

/// One fleet's; or what was found on our lease and is nobody's.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// None: nothing is to be published.
    offer: Option<Offer>,
    /// Who takes work, since when.
    since: BTreeMap<Option<SlotIndex>, Stamp>,
    /// What comes of both; none: to be made.
    wanted: Option<Wanted>,
    known: BTreeMap<String, Mark>,
    asked: Option<Asked>,
    /// There may be something to do.
    is_due: bool,
    /// But not before.
    until: Moment,
    retry: Span,
    /// So often in a row something was otherwise than we knew.
    surprises: u32,
    /// etcd takes no writes: first of all what may be done all the same.
    is_full: bool,
    /// Somebody goes, or serves less: that does not wait.
    is_urgent: bool,
    /// Those who come are gathered until then.
    gathers: Option<Moment>,
    /// Something was begun, and is to come to its end.
    flows: bool,
    /// We may not write everywhere: each target by itself, to see where.
    is_split: bool,
    /// Where not, and why.
    denied: BTreeMap<Option<usize>, String>,
    /// What is somebody else's. Both are looked at again then.
    taken: BTreeMap<(usize, Option<SlotIndex>), String>,
    look_again: Option<Moment>,
    behind: Option<Moment>,
    targets: Vec<Target>,
    anchors: Anchors,
    /// There was a record of ours when everything was as it is to be.
    had_some: bool,
    /// Nothing is to be published any more since then.
    withdrawn: Option<Moment>,
    pub(super) words: Vec<Word>,
}

impl Entry {
    /// `anchors`: where it is written down what stands without a lease.
    pub(super) fn new(anchors: String) -> Self {
        Self {
            anchors: Anchors::at(anchors),
            ..Self::default()
        }
    }

    /// What was found on our lease, and nobody knows: it goes.
    pub(super) fn find(&mut self, key: String, now: Moment) {
        self.known.entry(key).or_default();
        self.fall_behind(now);
    }

    /// Is this what is to be published?
    pub(super) fn shows(&self, listing: &Listing, spec: &RecordsSpec) -> bool {
        let ours = self.offer.as_ref();
        ours.is_some_and(|ours| (&ours.listing, &ours.spec) == (listing, spec))
    }

    pub(super) fn offer(&mut self, offer: Offer, endpoints: &str, wall: Stamp, now: Moment) {
        let mut before = std::mem::take(&mut self.targets);
        let numbers: Vec<(&'static str, String)> = before
            .iter()
            .map(|one| (one.kind, one.target.clone()))
            .collect();
        let names = records::targets(&offer, endpoints).into_iter();
        let targets = names.map(|(kind, target)| {
            let mut there = before.iter_mut();
            let same = there.find(|one| one.kind == kind && one.target == target);
            Target {
                kind,
                target,
                trouble: same.and_then(|one| one.trouble.take()),
            }
        });
        self.targets = targets.collect();
        self.renumber(&numbers);
        let ready = offer.listing.endpoints.iter();
        let ready: BTreeSet<Option<SlotIndex>> = ready
            .filter(|one| one.weight > 0)
            .map(|one| one.slot)
            .collect();
        let before = self.offer.as_ref().map_or(0, |one| one.listing.ready);
        self.is_urgent |= offer.listing.ready < before;
        self.since.retain(|slot, _| ready.contains(slot));
        // To the second: it is for people.
        let wall = Stamp(wall.0 - wall.0.rem_euclid(1_000));
        for slot in ready {
            self.since.entry(slot).or_insert(wall);
        }
        self.anchors.want(records::anchors(&offer.spec), now);
        self.offer = Some(offer);
        self.withdrawn = None;
        self.fall_behind(now);
    }

    /// What was written for a target is known by the target's place, which was another one `before`; none: it is gone.
    fn renumber(&mut self, before: &[(&'static str, String)]) {
        let targets = &self.targets;
        let now = |place: usize| {
            let (kind, target) = before.get(place)?;
            let mut targets = targets.iter();
            targets.position(|one| one.kind == *kind && one.target == *target)
        };
        for mark in self.known.values_mut() {
            mark.target = mark.target.and_then(now);
        }
        let asked = self.asked.iter_mut().flat_map(|asked| &mut asked.steps);
        for step in asked {
            step.target = step.target.and_then(now);
        }
    }

    /// Nothing of it is to be published any more.
    pub(super) fn withdraw(&mut self, now: Moment) {
        if self.offer.take().is_some() {
            self.withdrawn = Some(now);
            self.since.clear();
            self.is_urgent = true;
            self.anchors.want(BTreeMap::new(), now);
            self.fall_behind(now);
        }
    }

    /// Where it is written down what stands of it without a lease, if some of that may be another fleet's by now.
    pub(super) fn leaves(&self) -> Option<&str> {
        self.anchors.leaves()
    }

    /// Such records of all.
    pub(super) fn heed(&mut self, elders: &[String], now: Moment) {
        if self.offer.is_some() {
            self.anchors.heed(elders, now);
        }
    }

    fn fall_behind(&mut self, now: Moment) {
        self.behind.get_or_insert(now);
        self.wanted = None;
        self.taken.clear();
        self.denied.clear();
        self.is_due = true;
        // The newest list may do where the last one did not.
        self.until = self.until.min(now.after(PAUSE));
    }

    /// Is there nothing left that it could say or do?
    pub(super) fn is_over(&self, now: Moment) -> bool {
        let withdrawn = self.withdrawn;
        let late = withdrawn.is_some_and(|since| since.after(FAREWELL) <= now);
        let idle = self.known.is_empty() && self.asked.is_none() && self.anchors.is_settled();
        self.offer.is_none() && (idle || late)
    }

    /// The lease is over, and all that hung on it.
    pub(super) fn lost(&mut self, now: Moment) {
        self.known.clear();
        self.asked = None;
        self.anchors.lost(now);
        self.fall_behind(now);
    }

    /// Which keys are to be there?
    pub(super) fn wants(&self, key: &str) -> bool {
        let wanted = self.wanted.as_ref();
        wanted.is_some_and(|wanted| wanted.records.contains_key(key))
    }

    /// Does it know of this key, or will it?
    pub(super) fn knows(&self, key: &str) -> bool {
        let steps = self.asked.iter().flat_map(|asked| &asked.steps);
        let mut asked = steps.map(|step| step.key.as_str());
        self.wants(key) || self.known.contains_key(key) || asked.any(|one| one == key)
    }

    /// All that hangs on our lease, as of a revision. What was there and is not was taken away by somebody; whoever has not come as far as
    /// what we wrote is behind, or was restored from a backup: what he has is asked for by trying.
    pub(super) fn compare(&mut self, there: &BTreeSet<&str>, revision: i64, now: Moment) {
        let mut differs = false;
        self.known.retain(|key, mark| {
            let is_strange = mark.revision > revision;
            if is_strange {
                (mark.revision, mark.value) = (0, None);
            }
            let is_gone = mark.revision > 0 && !there.contains(key.as_str());
            differs |= is_strange || is_gone;
            !is_gone
        });
        if differs {
            self.behind.get_or_insert(now);
            self.is_due = true;
        }
    }

    /// Makes what is wanted of what is offered, if that has changed.
    pub(super) fn refresh(&mut self, endpoints: &str) {
        if self.wanted.is_none() {
            let offer = self.offer.as_ref();
            let made = offer.map(|offer| records::wanted(offer, endpoints, &self.since));
            self.wanted = Some(made.unwrap_or_default());
        }
    }

    /// What it would delete.
    pub(super) fn unwanted(&self) -> Vec<String> {
        let keys = self.known.keys().filter(|key| !self.wants(key));
        keys.cloned().collect()
    }

    /// Another fleet's they are now.
    pub(super) fn cede(&mut self, key: &str) {
        self.known.remove(key);
    }

    pub(super) fn may_act(&self, now: Moment) -> bool {
        self.asked.is_none() && self.is_due && self.until <= now
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        let waits = self.is_due && self.asked.is_none();
        let due = waits.then_some(self.until);
        let farewell = self.withdrawn.map(|since| since.after(FAREWELL));
        let anchors = self.anchors.deadline().filter(|_| self.tends_anchors());
        [due, self.look_again, farewell, anchors]
            .into_iter()
            .flatten()
            .min()
    }

    /// A service that still has servers is somebody's: our own go first.
    fn tends_anchors(&self) -> bool {
        self.offer.is_some() || (self.known.is_empty() && self.asked.is_none())
    }

    /// Does what is due, under our lease.
    pub(super) fn tend(&mut self, leases: Leases, endpoint: usize, desk: &mut Desk<'_>) {
        if self.look_again.is_some_and(|at| at <= desk.now) {
            self.look_again = None;
            self.taken.clear();
            self.denied.clear();
            self.is_due = true;
        }
        if self.may_act(desk.now) {
            self.act(leases, endpoint, desk);
        }
        if self.tends_anchors() {
            self.anchors.tend(endpoint, desk);
        }
    }

    fn act(&mut self, leases: Leases, endpoint: usize, desk: &mut Desk<'_>) {
        let steps = self.next_steps();
        if steps.is_empty() {
            return self.done(desk.now);
        }
        let takes = steps.iter().any(|step| step.value.is_none());
        let first = self.known.is_empty();
        if !takes && !first && !self.is_urgent && !self.flows {
            let until = self.gathers.get_or_insert(desk.now.after(PAUSE));
            if *until > desk.now {
                self.until = *until;
                return;
            }
        }
        (self.gathers, self.flows) = (None, true);
        let when = steps
            .iter()
            .map(|step| When::Modified(step.key.clone(), step.revision));
        let then = steps.iter().map(|step| match &step.value {
            Some(value) => Do::Put {
                key: step.key.clone(),
                value: value.clone(),
                lease: Some(leases.ours),
            },
            None => Do::Delete(step.key.clone()),
        });
        let look = steps.iter().map(|step| Do::Get(step.key.clone()));
        let txn = Txn {
            when: when.collect(),
            then: then.collect(),
            otherwise: look.collect(),
        };
        let call = desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Register);
        self.asked = Some(Asked { call, steps });
    }

    /// What is to be done next, as much as goes into one transaction: who goes before who comes.
    fn next_steps(&self) -> Vec<Step> {
        let Some(wanted) = &self.wanted else {
            return Vec::new();
        };
        let mut by_endpoint: BTreeMap<Option<SlotIndex>, Vec<Step>> = BTreeMap::new();
        for (key, mark) in &self.known {
            if !wanted.records.contains_key(key) {
                by_endpoint.entry(mark.endpoint).or_default().push(Step {
                    key: key.clone(),
                    revision: mark.revision,
                    value: None,
                    endpoint: mark.endpoint,
                    target: mark.target,
                });
            }
        }
        let is_denied = |step: &Step| self.denied.contains_key(&step.target);
        by_endpoint
            .values_mut()
            .for_each(|steps| steps.retain(|one| !is_denied(one)));
        by_endpoint.retain(|_, steps| !steps.is_empty());
        let only_goes = self.is_full && !by_endpoint.is_empty();
        for (key, record) in wanted.records.iter().filter(|_| !only_goes) {
            let mark = self.known.get(key);
            let stands = mark.is_some_and(|mark| mark.value.as_ref() == Some(&record.value));
            let is_taken = self.taken.contains_key(&(record.target, record.endpoint));
            if stands || is_taken || self.denied.contains_key(&Some(record.target)) {
                continue;
            }
            by_endpoint.entry(record.endpoint).or_default().push(Step {
                key: key.clone(),
                revision: mark.map_or(0, |mark| mark.revision),
                value: Some(record.value.clone()),
                endpoint: record.endpoint,
                target: Some(record.target),
            });
        }
        let mut groups: Vec<Vec<Step>> = by_endpoint.into_values().collect();
        groups.sort_by_key(|steps| steps.iter().any(|step| step.value.is_some()));
        if self.is_split
            && let Some(target) = groups.first().map(|steps| steps[0].target)
        {
            groups
                .iter_mut()
                .for_each(|steps| steps.retain(|one| one.target == target));
        }
        let mut all: Vec<Step> = Vec::new();
        for steps in groups {
            // What was found and is nobody's is not one endpoint's.
            let fits = all.len() + steps.len() <= TXN_MAX;
            if !fits && !all.is_empty() {
                break;
            }
            all.extend(steps.into_iter().take(TXN_MAX));
        }
        all
    }

    /// Everything is as it is to be, but for what is somebody else's.
    fn done(&mut self, now: Moment) {
        (self.is_due, self.is_urgent, self.is_full) = (false, false, false);
        self.flows = false;
        (self.surprises, self.retry) = (0, Span::ZERO);
        let has_some = !self.known.is_empty();
        if has_some && !self.had_some {
            // While nobody of ours was there another node may have taken away what they are found by.
            self.anchors.look_again(now);
        }
        self.had_some = has_some;
        let faults = self.wanted.iter().flat_map(|wanted| &wanted.faults);
        let mut faults: BTreeMap<usize, String> = faults.cloned().collect();
        for ((target, _), key) in &self.taken {
            let why = somebody_elses(key);
            faults.insert(*target, why);
        }
        for (target, why) in &self.denied {
            faults.extend(target.map(|target| (target, why.clone())));
        }
        let fault = self.anchors.trouble().map(str::to_owned);
        let traefik = self.targets.iter().position(|one| one.kind == "traefik");
        faults.extend(traefik.zip(fault));
        self.is_split = !self.denied.is_empty();
        if !self.taken.is_empty() || self.is_split {
            self.look_again.get_or_insert(now.after(TAKEN));
        }
        self.behind = None;
        for at in 0..self.targets.len() {
            match faults.remove(&at) {
                Some(why) => self.troubled(at, why, true, now),
                None => self.well(at, now),
            }
        }
    }

    fn well(&mut self, at: usize, now: Moment) {
        let target = &mut self.targets[at];
        if let Some(trouble) = target.trouble.take().filter(|trouble| trouble.is_said) {
            self.words.push(Word::Restored {
                target: target.target.clone(),
                after: now.since(trouble.since),
            });
        }
    }

    /// All failures are counted; people hear of one when it begins, and when it becomes another.
    fn troubled(&mut self, at: usize, why: String, is_said: bool, now: Moment) {
        let target = &mut self.targets[at];
        let before = target.trouble.as_ref();
        let is_new = is_said && before.is_none_or(|before| before.why != why);
        let is_said = is_said || before.is_some_and(|before| before.is_said);
        let (since, tries) = before.map_or((now, 0), |before| (before.since, before.tries));
        target.trouble = Some(Trouble {
            why: why.clone(),
            is_said,
            since,
            tries: tries.saturating_add(1),
        });
        self.words.push(Word::Failed {
            target: target.target.clone(),
            why,
            is_new,
        });
    }

    /// Nothing of it reaches anybody: that is said once for all of them.
    pub(super) fn fail(&mut self, why: &str, now: Moment) {
        self.behind.get_or_insert(now);
        self.is_due = true;
        for at in 0..self.targets.len() {
            self.troubled(at, why.to_owned(), at == 0, now);
        }
    }

    fn pause(&mut self, now: Moment) {
        self.retry = self.retry.plus(self.retry).clamp(RETRY_MIN, RETRY_MAX);
        self.until = now.after(self.retry);
    }

    pub(super) fn asked(&self, call: CallId) -> bool {
        self.anchors.asked(call) || self.asked.as_ref().is_some_and(|one| one.call == call)
    }

    /// An answer to something that it asked.
    pub(super) fn answered(
        &mut self,
        call: CallId,
        result: Result<Reply, Failure>,
        (endpoint, leases): (usize, Leases),
        desk: &mut Desk<'_>,
    ) -> Verdict {
        let now = desk.now;
        if self.anchors.asked(call) {
            self.anchors.answered(result, endpoint, desk);
            // Whether it is well is said with the rest.
            self.is_due = true;
            return Verdict::Fine;
        }
        let Some(Asked { steps, .. }) = self.asked.take_if(|asked| asked.call == call) else {
            return Verdict::Fine;
        };
        let failure = match result {
            Ok(Reply {
                from,
                body: Body::Txn { held: true, .. },
            }) => {
                self.stands(steps, from);
                return Verdict::Fine;
            }
            Ok(Reply {
                body: Body::Txn { read, .. },
                ..
            }) => {
                let found = read.into_iter().map(|found| found.into_iter().next());
                for (step, found) in steps.into_iter().zip(found) {
                    self.learn(step, found, leases);
                }
                self.surprises += 1;
                if self.surprises > 2 {
                    self.pause(now);
                }
                return Verdict::Fine;
            }
            Ok(_) => Failure::Refused("it answered another question".to_owned()),
            Err(Failure::NoLease) => return Verdict::NoLease,
            Err(failure) => failure,
        };
        if let Failure::Denied(why) = &failure {
            let targets: BTreeSet<Option<usize>> = steps.iter().map(|step| step.target).collect();
            match targets.first() {
                Some(target) if targets.len() == 1 => {
                    self.denied.insert(*target, format!("etcd: {why}"));
                }
                _ => self.is_split = true,
            }
            return Verdict::Fine;
        }
        // Whether it was done is not known: of a record that was to go, too, which may be wanted again by now.
        for step in steps {
            let mark = self.known.entry(step.key).or_default();
            mark.value = None;
            (mark.endpoint, mark.target) = (step.endpoint, step.target);
        }
        self.is_full = failure == Failure::NoSpace;
        self.fail(&format!("etcd: {failure}"), now);
        self.pause(now);
        Verdict::Elsewhere
    }

    /// It was done.
    fn stands(&mut self, steps: Vec<Step>, from: Header) {
        (self.surprises, self.retry) = (0, Span::ZERO);
        for step in steps {
            match step.value {
                Some(value) => {
                    let mark = Mark {
                        revision: from.revision,
                        value: Some(value),
                        endpoint: step.endpoint,
                        target: step.target,
                    };
                    self.known.insert(step.key, mark);
                }
                None => {
                    self.known.remove(&step.key);
                }
            }
        }
    }

    /// Something was otherwise than we knew; this is how it is.
    fn learn(&mut self, step: Step, found: Option<KeyValue>, leases: Leases) {
        let Some(kv) = found else {
            self.known.remove(&step.key);
            return;
        };
        let is_ours = kv.lease == Some(leases.ours);
        let was_ours = kv.lease.is_some() && kv.lease == leases.before;
        if is_ours || was_ours {
            self.adopt_since(&step, &kv.value);
            let mark = Mark {
                revision: kv.modified,
                // Written anew it hangs on our lease.
                value: is_ours.then_some(kv.value),
                endpoint: step.endpoint,
                target: step.target,
            };
            self.known.insert(step.key, mark);
        } else {
            self.known.remove(&step.key);
            if let Some(target) = step.target {
                self.taken.insert((target, step.endpoint), step.key);
            }
        }
    }

    /// A worker that was there under the supervisor before has taken work since then.
    fn adopt_since(&mut self, step: &Step, value: &str) {
        let Some(canonical) = keys::decode::<Canonical>(value).filter(|_| step.target == Some(0))
        else {
            return;
        };
        let offer = self.offer.as_ref();
        let of = |offer: &Offer| offer.revision_of(step.endpoint);
        let is_same = offer.and_then(of).is_some_and(|rev| rev == canonical.rev);
        let since: Option<jiff::Timestamp> = canonical.since.parse().ok();
        if let Some(since) = since.filter(|_| is_same) {
            self.since.insert(step.endpoint, since.into());
            self.wanted = None;
        }
    }

    pub(super) fn states(&self) -> Vec<TargetStatus> {
        let state = |target: &Target| {
            let trouble = target.trouble.as_ref();
            let trouble =
                trouble.map(|trouble| (trouble.why.clone(), trouble.since, trouble.tries));
            let behind = trouble.as_ref().map(|(_, since, _)| *since);
            let behind = behind.or(self.behind);
            TargetStatus::new(target.kind, target.target.clone(), behind, trouble)
        };
        self.targets.iter().map(state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::spec::{KvSpec, PublishMode},
        engine::{
            cluster::{
                calls::Calls,
                rpc::{Call, Order},
            },
            publish::{Endpoint, Presence},
        },
        id::Revision,
    };

    const OURS: LeaseId = LeaseId(7);
    const LEASES: Leases = Leases {
        ours: OURS,
        before: Some(LeaseId(6)),
    };

    struct Bench {
        entry: Entry,
        calls: Calls,
        now: Moment,
    }

    impl Bench {
        /// So many workers with a canonical record and one of another kind each.
        fn of(workers: u32) -> Self {
            let mut bench = Self {
                entry: Entry::new(String::new()),
                calls: Calls::default(),
                now: Moment(1_000_000_000),
            };
            bench.offer(workers);
            bench
        }

        fn offer(&mut self, workers: u32) {
            let endpoint = |slot| Endpoint {
                slot: Some(SlotIndex(slot)),
                port: 9_000 + slot as u16,
                weight: 1,
                state: Presence::Ready,
                revision: Revision::default(),
            };
            let kv = KvSpec {
                key: "/s/{{ node }}/{{ slot }}".to_owned(),
                value: "{{ authority }}".to_owned(),
            };
            let offer = Offer {
                fleet: "web".parse().unwrap(),
                node: "n1".to_owned(),
                spec: RecordsSpec {
                    kv: vec![kv],
                    ..RecordsSpec::default()
                },
                listing: Listing {
                    mode: PublishMode::Worker,
                    address: "10.0.0.5".to_owned(),
                    endpoints: (0..workers).map(endpoint).collect(),
                    ready: workers,
                    desired: workers,
                    open: true,
                    config: Revision::default(),
                },
            };
            self.entry.offer(offer, "/e/", Stamp(5_000), self.now);
        }

        /// The transaction that it wants now, if it wants one.
        fn asks(&mut self) -> Option<(CallId, Txn)> {
            let mut out = Vec::new();
            let mut desk = Desk {
                now: self.now,
                calls: &mut self.calls,
                out: &mut out,
            };
            self.entry.refresh("/e/");
            self.entry.tend(LEASES, 0, &mut desk);
            match out.pop()? {
                Order::Call(Call {
                    id,
                    request: Request::Txn(txn),
                    ..
                }) => Some((id, txn)),
                other => panic!("{other:?}"),
            }
        }

        fn hears(&mut self, call: CallId, result: Result<Reply, Failure>) -> Verdict {
            let mut out = Vec::new();
            let mut desk = Desk {
                now: self.now,
                calls: &mut self.calls,
                out: &mut out,
            };
            self.entry.answered(call, result, (0, LEASES), &mut desk)
        }

        fn done(&mut self, call: CallId, revision: i64) {
            self.hears(call, reply(revision, true, Vec::new()));
        }
    }

    fn reply(revision: i64, held: bool, read: Vec<Vec<KeyValue>>) -> Result<Reply, Failure> {
        let from = Header {
            revision,
            ..Header::default()
        };
        let body = Body::Txn { held, read };
        Ok(Reply { from, body })
    }

    fn there(key: &str, lease: i64, modified: i64) -> Vec<KeyValue> {
        vec![KeyValue {
            key: key.to_owned(),
            value: "something".to_owned(),
            created: 1,
            modified,
            lease: Some(LeaseId(lease)),
        }]
    }

    fn puts(txn: &Txn) -> Vec<&str> {
        let puts = txn.then.iter().filter_map(|one| match one {
            Do::Put { key, .. } => Some(key.as_str()),
            _ => None,
        });
        puts.collect()
    }

    /// No more than etcd takes at once, and nobody's in two.
    #[test]
    fn endpoints_stay_whole_in_as_many_transactions_as_it_takes() {
        let mut bench = Bench::of(100);
        let mut sizes = Vec::new();
        for revision in 2.. {
            let Some((call, txn)) = bench.asks() else {
                break;
            };
            assert_eq!(txn.when.len(), txn.then.len());
            let slots: BTreeSet<&str> = puts(&txn)
                .iter()
                .map(|key| key.rsplit('/').next().unwrap())
                .collect();
            assert_eq!(txn.then.len(), 2 * slots.len());
            sizes.push(txn.then.len());
            bench.done(call, revision);
        }
        assert_eq!(sizes, [TXN_MAX, 200 - TXN_MAX]);
        assert_eq!(bench.entry.deadline(), None);
        assert!(bench.entry.states().iter().all(|one| one.state == "ok"));
    }

    #[test]
    fn who_comes_waits_a_moment_for_others_and_who_goes_does_not() {
        let mut bench = Bench::of(1);
        let (call, _) = bench.asks().expect("the first one does not wait");
        bench.done(call, 2);
        assert_eq!(bench.asks(), None);
        bench.offer(2);
        assert_eq!(bench.asks(), None);
        let at = bench.entry.deadline().expect("it waits");
        assert_eq!(at, bench.now.after(PAUSE));
        bench.now = at;
        let (call, txn) = bench.asks().expect("they come");
        assert_eq!(puts(&txn), ["/e/web/n1/1", "/s/n1/1"]);
        bench.done(call, 3);
        bench.offer(1);
        let (_, txn) = bench.asks().expect("it goes at once");
        let keys = ["/e/web/n1/1", "/s/n1/1"].map(str::to_owned);
        assert_eq!(txn.then, keys.clone().map(Do::Delete));
        assert_eq!(txn.when, keys.map(|key| When::Modified(key, 3)));
    }

    /// Ours by its lease, of a daemon before us, somebody else's.
    #[test]
    fn what_stands_there_already_is_told_apart() {
        let mut bench = Bench::of(2);
        let (call, txn) = bench.asks().unwrap();
        assert_eq!(puts(&txn).len(), 4);
        let read = vec![
            there("/e/web/n1/0", OURS.0, 11),
            there("/s/n1/0", 6, 12),
            Vec::new(),
            there("/s/n1/1", 99, 13),
        ];
        let _ = bench.hears(call, reply(20, false, read));
        let (call, txn) = bench.asks().expect("it tries again");
        assert_eq!(puts(&txn), ["/e/web/n1/0", "/s/n1/0", "/e/web/n1/1"]);
        let at = |key: &str, revision| When::Modified(key.to_owned(), revision);
        assert_eq!(
            txn.when,
            [
                at("/e/web/n1/0", 11),
                at("/s/n1/0", 12),
                at("/e/web/n1/1", 0)
            ]
        );
        bench.done(call, 21);
        assert_eq!(bench.asks(), None);
        let states = bench.entry.states();
        let words: Vec<_> = states.iter().map(|one| (one.kind, one.state)).collect();
        assert_eq!(words, [("etcd", "ok"), ("kv", "failed")]);
        assert!(states[1].trouble.as_ref().unwrap().0.contains("/s/n1/1"));
        // It is looked at again, and is free then.
        bench.now = bench.entry.deadline().expect("it is looked at again");
        assert_eq!(bench.asks(), None);
        bench.now = bench.entry.deadline().expect("gathered with others");
        let (call, txn) = bench.asks().unwrap();
        assert_eq!(puts(&txn), ["/s/n1/1"]);
        bench.done(call, 22);
        assert_eq!(bench.asks(), None);
        assert!(bench.entry.states().iter().all(|one| one.state == "ok"));
    }

    #[test]
    fn what_may_have_been_written_is_not_forgotten() {
        let mut bench = Bench::of(1);
        let (call, _) = bench.asks().unwrap();
        let lost = Err(Failure::Unanswered(PATIENCE));
        assert_eq!(bench.hears(call, lost), Verdict::Elsewhere);
        assert!(bench.entry.states().iter().all(|one| one.state == "failed"));
        bench.offer(0);
        bench.now = bench.entry.deadline().expect("it is tried again");
        let (call, txn) = bench.asks().unwrap();
        let keys = ["/e/web/n1/0", "/s/n1/0"].map(str::to_owned);
        assert_eq!(txn.when, keys.clone().map(|key| When::Modified(key, 0)));
        assert_eq!(txn.then, keys.map(Do::Delete));
        let read = vec![there("/e/web/n1/0", OURS.0, 5), there("/s/n1/0", OURS.0, 5)];
        let _ = bench.hears(call, reply(6, false, read));
        let (call, txn) = bench.asks().unwrap();
        assert_eq!(txn.when[0], When::Modified("/e/web/n1/0".to_owned(), 5));
        bench.done(call, 7);
        assert_eq!(bench.asks(), None);
        assert!(bench.entry.unwanted().is_empty());
    }

    /// That somebody goes can be said to an etcd that takes no writes.
    #[test]
    fn a_full_etcd_is_first_told_who_goes() {
        let mut bench = Bench::of(2);
        let (call, _) = bench.asks().unwrap();
        bench.done(call, 2);
        bench.offer(1);
        let (call, _) = bench.asks().unwrap();
        bench.offer(3);
        let _ = bench.hears(call, Err(Failure::NoSpace));
        bench.offer(1);
        bench.now = bench.entry.deadline().unwrap();
        let (_, txn) = bench.asks().unwrap();
        assert_eq!((puts(&txn).len(), txn.then.len()), (0, 2));
    }

    /// What is not there, and what comes of an etcd that has forgotten.
    #[test]
    fn a_look_finds_what_differs() {
        let mut bench = Bench::of(1);
        let (call, _) = bench.asks().unwrap();
        bench.done(call, 5);
        assert_eq!(bench.asks(), None);
        let all = BTreeSet::from(["/e/web/n1/0", "/s/n1/0"]);
        bench.entry.compare(&all, 9, bench.now);
        assert_eq!(bench.asks(), None);
        bench
            .entry
            .compare(&BTreeSet::from(["/e/web/n1/0"]), 9, bench.now);
        assert_eq!(bench.asks(), None, "it is gathered with others");
        bench.now = bench.entry.deadline().unwrap();
        let (call, txn) = bench.asks().unwrap();
        assert_eq!(puts(&txn), ["/s/n1/0"]);
        bench.done(call, 10);
        assert_eq!(bench.asks(), None);
        bench.entry.compare(&all, 3, bench.now);
        assert_eq!(bench.asks(), None);
        bench.now = bench.entry.deadline().unwrap();
        let (_, txn) = bench.asks().expect("it is asked by trying");
        let at = |key: &str| When::Modified(key.to_owned(), 0);
        assert_eq!(txn.when, [at("/e/web/n1/0"), at("/s/n1/0")]);
    }
}
