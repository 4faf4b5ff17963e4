//! The queue of one lock, as it is known here: who stands in it, and when whoever is first may begin.
//!
//! Everybody stands where the revision that created his key puts him; the first so many have the lock. That somebody who had it is gone
//! does not say that his worker is: his lease may have been revoked, or his key deleted, under his hands. Whoever has ended his worker
//! says so in the transaction that deletes his key; after everybody else the next one waits.

use std::collections::BTreeMap;

use crate::{
    config::spec::{LeaseSpec, SingletonSpec, Takeover},
    engine::cluster::{
        keys::{self, Card, Released, Wish},
        rpc::{Change, KeyValue},
    },
    time::{Moment, Span},
};

/// Those who stand before whoever is to have it have so long to step back.
const STEP_BACK: Span = Span::secs(2);

/// How long whoever is gone without a word is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delay {
    pub(super) span: Span,
    /// Or until he must be dead by his own lease, if that is longer.
    pub(super) strict: bool,
}

impl Delay {
    pub(super) fn of(spec: &SingletonSpec) -> Self {
        Self {
            span: spec.takeover_delay(),
            strict: spec.takeover == Takeover::Strict,
        }
    }
}

/// Somebody in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) key: String,
    /// What he says of himself; none if it cannot be read: he counts all the same.
    pub(super) card: Option<Card>,
}

impl Place {
    fn is_on(&self, node: &str) -> bool {
        self.card.as_ref().is_some_and(|card| card.node == node)
    }

    fn rank(&self) -> u64 {
        self.card.as_ref().map_or(0, |card| card.rank)
    }

    /// Nothing of him is left after so long.
    fn dead(&self) -> Span {
        let ms = self.card.as_ref().map_or(0, |card| card.dead_ms);
        Span::millis(ms)
    }
}

/// What a read of all of it showed, at one revision.
pub(super) struct Listing {
    pub(super) revision: i64,
    pub(super) places: Vec<KeyValue>,
    pub(super) released: Option<KeyValue>,
    pub(super) wish: Option<KeyValue>,
    /// The highest fence that had been given; 0: none was.
    pub(super) last: i64,
    /// Of those who stand there the one of ours who asked, if this is the answer to his joining.
    pub(super) ours: Option<i64>,
}

impl Listing {
    /// Who is first of the others.
    fn first(&self) -> Option<i64> {
        let fences = self.places.iter().map(|kv| kv.created);
        fences.filter(|fence| Some(*fence) != self.ours).min()
    }

    /// Who is first of the others says that one alone may have it: he began when nobody was before him, and how he leaves says it all.
    fn first_is_alone(&self) -> bool {
        let first = self.first();
        let mut places = self.places.iter();
        let kv = places.find(|kv| Some(kv.created) == first);
        let card = kv.and_then(|kv| keys::decode::<Card>(&kv.value));
        card.is_some_and(|card| card.slots == 1)
    }

    /// Who released it last, if he was the only one who had it: of the others the last to leave knows nothing.
    fn released(&self) -> Option<i64> {
        let said: Released = keys::decode(&self.released.as_ref()?.value)?;
        (said.slots == 1).then_some(said.fence)
    }
}

/// The queue.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// So many have the lock.
    slots: u32,
    /// How long whoever is gone without a word may have left something behind.
    delay: Delay,
    /// Of those who were gone without a word the longest-lived is dead after so long.
    dead: Span,
    /// As of then.
    revision: i64,
    places: BTreeMap<i64, Place>,
    /// Somebody was gone without a word, then.
    suspicious: Option<Moment>,
    /// Somebody who had it was gone, then.
    vacated: Option<Moment>,
    /// Whoever is first now was so when we looked, and how those before him left was not seen: that he did not begin does not say that they
    /// are gone.
    is_blind: bool,
    /// What an operator wants, since when it is known.
    wish: Option<(Wish, Moment)>,
}

impl Line {
    /// A queue of which nothing was known before.
    pub(super) fn new(slots: u32, delay: Delay, listing: Listing, now: Moment) -> Self {
        let mut line = Self {
            slots,
            delay,
            dead: Span::ZERO,
            revision: listing.revision,
            places: BTreeMap::new(),
            suspicious: None,
            vacated: None,
            is_blind: false,
            wish: None,
        };
        line.wish(listing.wish.as_ref(), now);
        // Who was here before, and is not any more? With one holder at a time he who released it last was the only one, unless somebody
        // joined after him.
        let in_order =
            listing.last == 0 || (slots == 1 && listing.released() == Some(listing.last));
        // How whoever has it now leaves will be seen.
        let someone_has_it = slots == 1 && listing.first_is_alone();
        line.is_blind = !in_order && someone_has_it;
        if !in_order && !someone_has_it {
            line.suspicious = Some(now);
        }
        line.fill(listing.places);
        line
    }

    fn fill(&mut self, places: Vec<KeyValue>) {
        self.places = places.into_iter().map(place).collect();
    }

    /// Is it as this listing has it?
    pub(super) fn shows(&self, listing: &Listing) -> bool {
        let listed = listing.places.iter().map(|kv| kv.created);
        // Somebody may have come and gone.
        listing.last <= self.revision && listed.eq(self.in_order_of_keys())
    }

    /// Fences, in the order in which etcd lists their keys.
    fn in_order_of_keys(&self) -> impl Iterator<Item = i64> {
        let mut all: Vec<(&String, i64)> = self
            .places
            .iter()
            .map(|(fence, place)| (&place.key, *fence))
            .collect();
        all.sort();
        all.into_iter().map(|(_, fence)| fence)
    }

    /// All of it was read again.
    pub(super) fn relist(&mut self, listing: Listing, now: Moment) {
        if listing.revision < self.revision {
            return;
        }
        let known = std::mem::replace(&mut self.revision, listing.revision);
        self.wish(listing.wish.as_ref(), now);
        let (first, released, last) = (listing.first(), listing.released(), listing.last);
        let is_alone = self.slots == 1 && listing.first_is_alone();
        let before = std::mem::take(&mut self.places);
        self.fill(listing.places);
        if before.is_empty() {
            self.vacated = None;
        }
        let gone: Vec<i64> = before
            .keys()
            .filter(|fence| !self.places.contains_key(fence))
            .copied()
            .collect();
        if before
            .keys()
            .take(self.slots as usize)
            .any(|fence| gone.contains(fence))
        {
            self.vacated = Some(now);
        }
        // What happened meanwhile, and in which order, is not known; that the last of those who are gone released it is enough where only
        // one can have it, since he began after everybody before him had ended.
        let mut gone_last = gone.last().copied();
        let unseen = last > known;
        if unseen && is_alone && first.is_some_and(|first| first > known) {
            // Of those who came meanwhile one is first now: others may have been so before him.
            self.is_blind = true;
        } else if unseen && !is_alone {
            // They came, and went.
            gone_last = Some(last);
        }
        let in_order = self.slots == 1 && gone_last.is_none_or(|last| released == Some(last));
        if gone_last.is_some() && !in_order {
            let dead = gone
                .iter()
                .filter_map(|fence| before.get(fence))
                .map(Place::dead);
            self.suspect(dead.max().unwrap_or_default(), now);
        }
    }

    /// What a watch saw at one revision.
    pub(super) fn follow(&mut self, lock: &str, changes: &[Change], revision: i64, now: Moment) {
        if revision <= self.revision {
            return;
        }
        self.revision = revision;
        let (queue, marker) = (keys::queue(lock), keys::released(lock));
        let wish = keys::wish(lock);
        let (mut released, mut passed) = (None, None);
        let pass = keys::passed(lock);
        for change in changes {
            match change {
                Change::Put(kv) if kv.key == marker => released = fence_released(kv),
                // Only who saw how all those before him left may take his word.
                Change::Put(kv) if kv.key == pass => passed = fence_released(kv),
                Change::Put(kv) if kv.key == wish => self.wish(Some(kv), now),
                Change::Put(kv) if kv.key.starts_with(&queue) => {
                    // Nobody wanted it meanwhile.
                    if self.places.is_empty() {
                        self.vacated = None;
                    }
                    let (fence, place) = place(kv.clone());
                    self.places.insert(fence, place);
                }
                Change::Put(_) | Change::Deleted { .. } => {}
            }
        }
        for change in changes {
            let Change::Deleted { key, .. } = change else {
                continue;
            };
            let Some(fence) = self.fence_of(key) else {
                continue;
            };
            let most = self.numbers().max().unwrap_or(self.slots);
            let could_have_it = self.rank(fence).is_some_and(|rank| rank < most);
            let is_beside_another = self.rank(fence) != Some(0);
            let dead = self.places.get(&fence).map_or(Span::ZERO, Place::dead);
            if self.has_it(fence) {
                self.vacated = Some(now);
            }
            self.places.remove(&fence);
            if !could_have_it {
                continue;
            }
            let vouches = released == Some(fence);
            let is_believed = passed == Some(fence) && !self.is_blind;
            if !vouches && !is_believed {
                self.suspect(dead, now);
            }
            // He had ended everybody before him, or everybody is waited for.
            self.is_blind &= is_beside_another && vouches;
        }
    }

    fn suspect(&mut self, dead: Span, now: Moment) {
        if self.clear_at().is_none_or(|at| at <= now) {
            self.dead = Span::ZERO;
        }
        self.suspicious = Some(now);
        self.dead = self.dead.max(dead);
    }

    fn wish(&mut self, kv: Option<&KeyValue>, now: Moment) {
        let wish = kv.and_then(|kv| keys::decode::<Wish>(&kv.value));
        let known = self.wish.as_ref().map(|(wish, _)| wish);
        if known != wish.as_ref() {
            self.wish = wish.map(|wish| (wish, now));
        }
    }

    /// What an operator wants of whoever has it now.
    pub(super) fn wished(&self) -> Option<&Wish> {
        let (wish, _) = self.wish.as_ref()?;
        self.has_it(wish.fence).then_some(wish)
    }

    /// Does the one with this fence have to go now? Not before whoever is to have it is next, or was given time to be.
    pub(super) fn must_go(&self, fence: i64, now: Moment) -> Option<&Wish> {
        let (wish, since) = self.wish.as_ref()?;
        let next = self.places().nth(self.slots() as usize);
        let next = next.and_then(|(_, place)| place.card.as_ref());
        let is_ready = wish.to.as_ref().is_none_or(|to| {
            next.is_some_and(|card| card.node == *to) || since.after(STEP_BACK) <= now
        });
        (wish.fence == fence && is_ready).then_some(wish)
    }

    /// Must this one let others by: whoever is to have it, or is better?
    pub(super) fn steps_back(&self, fence: i64, node: &str) -> bool {
        let mut behind = self.places.range(fence + 1..).map(|(_, place)| place);
        match self.wished().and_then(|wish| wish.to.as_deref()) {
            Some(to) => to != node && behind.any(|place| place.is_on(to)),
            None => {
                let own = self.places.get(&fence).map_or(0, Place::rank);
                behind.any(|place| place.rank() > own)
            }
        }
    }

    /// Does somebody better than this one wait?
    pub(super) fn has_better(&self, fence: i64) -> bool {
        let own = self.places.get(&fence).map_or(0, Place::rank);
        let mut waiting = self.places.values().skip(self.slots() as usize);
        waiting.any(|place| place.rank() > own)
    }

    fn fence_of(&self, key: &str) -> Option<i64> {
        let mut places = self.places.iter();
        places
            .find(|(_, place)| place.key == key)
            .map(|(fence, _)| *fence)
    }

    /// How many stand before this one; none if he does not stand here.
    pub(super) fn rank(&self, fence: i64) -> Option<u32> {
        self.places.contains_key(&fence).then_some(())?;
        Some(self.places.range(..fence).count() as u32)
    }

    /// Does this one have the lock, as far as the queue goes?
    pub(super) fn has_it(&self, fence: i64) -> bool {
        self.rank(fence).is_some_and(|rank| rank < self.slots())
    }

    /// Whoever has it now may begin then; at once, if none.
    pub(super) fn clear_at(&self) -> Option<Moment> {
        let own = self.delay.span;
        let delay = match self.delay.strict {
            true => own.max(LeaseSpec::outwait(self.dead)),
            false => own,
        };
        self.suspicious.map(|since| since.after(delay))
    }

    /// Since when whoever had it last is gone, as far as that was seen.
    pub(super) fn vacated(&self) -> Option<Moment> {
        self.vacated
    }

    /// When [`Line::must_go`] may say something else.
    pub(super) fn wish_at(&self) -> Option<Moment> {
        self.wish.as_ref().map(|(_, since)| since.after(STEP_BACK))
    }

    /// Something was seen then that whoever begins must have looked after.
    pub(super) fn suspicious(&self) -> Option<Moment> {
        self.suspicious
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// What everybody who stands here says of how many may have it, and we.
    fn numbers(&self) -> impl Iterator<Item = u32> {
        let said = self.places.values().filter_map(|place| place.card.as_ref());
        said.map(|card| card.slots).chain([self.slots])
    }

    /// How many may have it by the word of one who stands there.
    pub(super) fn slots_of(&self, fence: i64) -> Option<u32> {
        Some(self.places.get(&fence)?.card.as_ref()?.slots)
    }

    /// So many have it. Where they disagree the least counts: whoever says one is promised to be alone.
    pub(super) fn slots(&self) -> u32 {
        self.numbers().min().unwrap_or(self.slots)
    }

    /// Who says another number than we, for people.
    pub(super) fn disagreement(&self) -> Option<String> {
        let cards = self.places.values().filter_map(|place| place.card.as_ref());
        let other = cards.into_iter().find(|card| card.slots != self.slots)?;
        let (node, theirs, ours) = (&other.node, other.slots, self.slots);
        Some(format!(
            "slots = {ours} here, and {theirs} on {node}: the least counts"
        ))
    }

    /// For people: who stands there.
    pub(super) fn name_of(&self, fence: i64) -> String {
        let place = self.places.get(&fence);
        match place.map(|place| (&place.card, &place.key)) {
            Some((Some(card), _)) => {
                format!("{} on {} with fence {fence}", card.worker, card.node)
            }
            Some((None, key)) => keys::strange(key),
            None => format!("somebody with fence {fence}"),
        }
    }

    /// Who has to go so that a node has it, and his key. An error says why nobody.
    pub(super) fn to_move(&self, to: Option<&str>) -> Result<(i64, String), String> {
        let node = |place: &Place| place.card.as_ref().map(|card| card.node.clone());
        let slots = self.slots() as usize;
        let waiting = self.places().skip(slots);
        let mut waiting: Vec<String> = waiting.filter_map(|(_, place)| node(place)).collect();
        waiting.dedup();
        if let Some(to) = to.filter(|to| !waiting.iter().any(|one| one == to)) {
            let mut holders = self.places().take(slots);
            let has_it = holders.any(|(_, place)| node(place).as_deref() == Some(to));
            return Err(match (has_it, waiting.is_empty()) {
                (true, _) => format!("node {to} has it already"),
                (false, true) => format!("node {to} does not wait for it; nobody does"),
                (false, false) => format!(
                    "node {to} does not wait for it; these do: {}",
                    waiting.join(", ")
                ),
            });
        }
        if waiting.is_empty() {
            return Err("nobody waits for it".to_owned());
        }
        let mut holders = self.places().take(slots);
        let holder = holders.find(|(_, place)| to.is_none() || node(place).as_deref() != to);
        let (fence, place) = holder.ok_or("nobody has it")?;
        Ok((fence, place.key.clone()))
    }

    /// Those who have it, and after them those who wait.
    pub(super) fn places(&self) -> impl Iterator<Item = (i64, &Place)> {
        self.places.iter().map(|(fence, place)| (*fence, place))
    }

    /// Another number of holders, another delay.
    pub(super) fn reconfigure(&mut self, slots: u32, delay: Delay) {
        (self.slots, self.delay) = (slots, delay);
    }
}

fn place(kv: KeyValue) -> (i64, Place) {
    let place = Place {
        card: keys::decode(&kv.value),
        key: kv.key,
    };
    (kv.created, place)
}

fn fence_released(kv: &KeyValue) -> Option<i64> {
    keys::decode::<Released>(&kv.value).map(|released| released.fence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::cluster::rpc::LeaseId, id::WorkerId};

    const LOCK: &str = "/s/billing/";
    const NOW: Moment = Moment(1_000_000_000);
    const DELAY: Delay = Delay {
        span: Span::secs(1),
        strict: false,
    };

    fn kv(key: String, value: String, fence: i64) -> KeyValue {
        KeyValue {
            key,
            value,
            created: fence,
            modified: fence,
            lease: Some(LeaseId(1)),
        }
    }

    fn released(fence: i64) -> String {
        released_of(fence, 1)
    }

    fn released_of(fence: i64, slots: u32) -> String {
        let node = "b".to_owned();
        keys::encode(&Released { fence, node, slots })
    }

    fn stands(fence: i64) -> KeyValue {
        kv(format!("{}{fence}", keys::queue(LOCK)), card(1), fence)
    }

    fn card(slots: u32) -> String {
        let (node, worker) = ("b".to_owned(), WorkerId::new("billing".parse().unwrap(), 0));
        keys::encode(&Card {
            node,
            worker,
            slots,
            rank: 0,
            dead_ms: 0,
        })
    }

    /// `last` has been given, `rel` was released last; we stand there with `ours`.
    fn listing(revision: i64, there: &[i64], last: i64, rel: i64, ours: Option<i64>) -> Listing {
        let all = there.iter().copied().chain(ours);
        Listing {
            revision,
            places: all.map(stands).collect(),
            released: (rel > 0).then(|| kv(keys::released(LOCK), released(rel), rel)),
            wish: None,
            last,
            ours,
        }
    }

    fn new(listing: Listing) -> Line {
        Line::new(1, DELAY, listing, NOW)
    }

    fn leaves(line: &mut Line, fence: i64, marker: Option<String>, revision: i64) {
        let key = stands(fence).key;
        let gone = Change::Deleted { key, revision };
        let said = marker.map(|key| Change::Put(kv(key, released(fence), revision)));
        let changes: Vec<Change> = said.into_iter().chain([gone]).collect();
        line.follow(LOCK, &changes, revision, NOW);
    }

    fn waits(line: &Line) -> bool {
        line.clear_at().is_some()
    }

    #[test]
    fn who_was_there_before_is_known_by_who_left_last() {
        for (last, rel, doubted) in [(0, 0, false), (8, 8, false), (8, 5, true), (8, 0, true)] {
            for ours in [None, Some(20)] {
                let line = new(listing(20, &[], last, rel, ours));
                assert_eq!(waits(&line), doubted, "{last} {rel} {ours:?}");
            }
        }
        // An answer that was lost: our own place is nobody's who has it.
        assert!(waits(&new(listing(21, &[], 20, 8, Some(20)))));
        // Who left last was not alone, or nobody knows: nothing is said of the others.
        for slots in [0, 2, 3] {
            let mut others = listing(20, &[], 8, 8, None);
            others.released.as_mut().unwrap().value = released_of(8, slots);
            assert!(waits(&new(others)), "{slots}");
        }
    }

    /// Of whoever has it beside others nobody learns how those others left.
    #[test]
    fn whoever_is_not_alone_vouches_for_himself() {
        let with = |slots: u32, last: i64| {
            let mut listing = listing(20, &[15], last, 8, None);
            listing.places[0].value = card(slots);
            listing
        };
        assert!(waits(&new(with(2, 15))) && !waits(&new(with(1, 15))));
        // Nor does he who stands behind vouch for whoever was there before the first.
        let mut line = new(with(1, 15));
        let mut second = stands(18);
        second.value = card(2);
        line.follow(LOCK, &[Change::Put(second)], 21, NOW);
        leaves(&mut line, 18, Some(keys::released(LOCK)), 22);
        assert!(!waits(&line));
        leaves(&mut line, 15, Some(keys::passed(LOCK)), 23);
        assert!(waits(&line));
        // Somebody came and went while the watch was closed.
        for slots in [1, 2] {
            let mut line = new(with(1, 15));
            line.relist(with(slots, 30), NOW);
            assert_eq!(waits(&line), slots == 2, "{slots}");
        }
    }

    /// Nobody of ours stood there: what a watch missed shows in the number that was given last.
    #[test]
    fn who_came_and_went_unseen_is_waited_for() {
        for (there, last, rel, doubted) in [
            (vec![], 8, 8, false),
            (vec![], 30, 30, false),
            (vec![], 30, 8, true),
            // The first of those who are there was there before; whoever came behind him never had it.
            (vec![15], 30, 8, false),
        ] {
            let mut line = new(listing(20, &there, *there.last().unwrap_or(&8), 8, None));
            assert!(!waits(&line));
            line.relist(listing(40, &there, last, rel, Some(40)), NOW);
            assert_eq!(waits(&line), doubted, "{there:?} {last} {rel}");
        }
        let line = new(listing(20, &[15], 15, 8, None));
        assert!(line.shows(&listing(40, &[15], 15, 8, None)));
        assert!(!line.shows(&listing(40, &[15], 30, 8, None)));
        // The one we knew released it, and whoever came after him vanished.
        let mut line = line;
        line.relist(listing(40, &[], 30, 15, Some(40)), NOW);
        assert!(waits(&line));
    }

    #[test]
    fn whoever_did_not_begin_vouches_for_nobody_before_him() {
        // How those before him left nobody of us saw.
        let blind = || new(listing(20, &[15], 15, 8, Some(20)));
        let mut line = blind();
        leaves(&mut line, 15, Some(keys::passed(LOCK)), 21);
        assert!(waits(&line));
        let mut line = blind();
        leaves(&mut line, 15, Some(keys::released(LOCK)), 21);
        assert!(!waits(&line));
        let mut line = blind();
        leaves(&mut line, 15, None, 21);
        assert!(waits(&line));
        // Somebody came while we did not look, and is first.
        let mut line = new(listing(20, &[], 8, 8, None));
        line.relist(listing(40, &[30], 30, 8, Some(40)), NOW);
        assert!(!waits(&line));
        leaves(&mut line, 30, Some(keys::passed(LOCK)), 41);
        assert!(waits(&line));
        // Of those who came behind our eyes it is known.
        let mut line = new(listing(20, &[], 8, 8, None));
        line.follow(LOCK, &[Change::Put(stands(25))], 25, NOW);
        leaves(&mut line, 25, Some(keys::passed(LOCK)), 26);
        assert!(!waits(&line));
    }

    #[test]
    fn a_gap_begins_when_somebody_waits() {
        let mut line = new(listing(20, &[15], 15, 8, None));
        leaves(&mut line, 15, Some(keys::released(LOCK)), 21);
        line.follow(LOCK, &[Change::Put(stands(30))], 30, NOW);
        assert_eq!(line.vacated(), None);
        line.follow(LOCK, &[Change::Put(stands(31))], 31, NOW);
        leaves(&mut line, 30, Some(keys::released(LOCK)), 32);
        assert_eq!(line.vacated(), Some(NOW));
    }
}
