//! Who belongs to the cluster, there or not. Every node leaves a card without a lease; whoever finds a card whose node is not there any more
//! writes on it when he missed it first, so that anybody can say for how long nobody has seen it.

use std::collections::BTreeMap;

use crate::{
    engine::cluster::{
        calls::{Desk, Purpose},
        keys::{self, KnownCard, Prefix},
        rpc::{CallId, Do, KeyValue, Request, Txn, When},
        session::PATIENCE,
    },
    time::{Moment, Span, Stamp},
};

/// It is looked so often: no absence is dated later than that.
const LOOK_EVERY: Span = Span::secs(30);
/// What could not be written, or read, is tried again after this.
const RETRY: Span = Span::secs(5);
/// So many absences are written down at once.
const MISSES_MAX: usize = 16;

/// What this node has to say of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own<'a> {
    pub(super) key: &'a str,
    /// The key with our name was created then.
    pub(super) created: i64,
    pub(super) version: &'a str,
    /// Who keeps it empty.
    pub(super) drained: Option<&'a str>,
}

/// What is known of the nodes of the cluster.
#[derive(Clone, Debug)]
pub(super) struct Census {
    prefix: Prefix,
    node: String,
    due: Moment,
    looks: Option<CallId>,
    writes: Option<CallId>,
    /// Nothing is written before.
    retry: Moment,
    /// Cards, and the revisions that wrote them.
    cards: Option<BTreeMap<String, (KnownCard, i64)>>,
    /// Nodes that are there.
    present: Vec<String>,
}

impl Census {
    pub(super) fn new(prefix: Prefix, node: String, now: Moment) -> Self {
        Self {
            prefix,
            node,
            due: now,
            looks: None,
            writes: None,
            retry: now,
            cards: None,
            present: Vec::new(),
        }
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        Some(self.due).filter(|_| self.looks.is_none() && self.writes.is_none())
    }

    /// A session has begun: nothing that was known before counts.
    pub(super) fn begin(&mut self, now: Moment) {
        *self = Self::new(self.prefix.clone(), self.node.clone(), now);
    }

    /// How many nodes are there, and how many cards belong to nobody who is.
    pub(super) fn counts(&self) -> Option<(u64, u64)> {
        let cards = self.cards.as_ref()?;
        let absent = cards.keys().filter(|name| !self.present.contains(name));
        Some((self.present.len() as u64, absent.count() as u64))
    }

    /// Looks, and writes down what is to be written.
    pub(super) fn tend(
        &mut self,
        own: &Own<'_>,
        wall: Stamp,
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) {
        if self.looks.is_some() || self.writes.is_some() {
            return;
        }
        if self.due <= desk.now {
            self.due = desk.now.after(LOOK_EVERY);
            let read = vec![Do::List(self.prefix.nodes()), Do::List(self.prefix.cards())];
            let request = Request::Txn(Txn::read(read));
            self.looks = Some(desk.ask(endpoint, request, PATIENCE, Purpose::Census));
            return;
        }
        if self.retry > desk.now {
            return;
        }
        if let Some(card) = self.card(own, wall) {
            self.writes = Some(self.put(&self.node, &card, vec![is_ours(own)], endpoint, desk));
        }
    }

    /// A card is written, as long as that holds.
    fn put(
        &self,
        node: &str,
        card: &KnownCard,
        when: Vec<When>,
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) -> CallId {
        let put = Do::Put {
            key: self.prefix.card(node),
            value: keys::encode(card),
            lease: None,
        };
        let txn = Txn {
            when,
            then: vec![put],
            otherwise: Vec::new(),
        };
        desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Census)
    }

    /// Our own card, if it does not say what it should.
    fn card(&self, own: &Own<'_>, wall: Stamp) -> Option<KnownCard> {
        let known = self.cards.as_ref()?.get(&self.node).map(|(card, _)| card);
        let same = known.filter(|card| card.session == own.created);
        let card = KnownCard {
            session: own.created,
            version: own.version.to_owned(),
            since: same.map_or(wall, |card| card.since),
            drained: own.drained.map(str::to_owned),
            gone: None,
        };
        (known != Some(&card)).then_some(card)
    }

    /// An answer to a look, or to something written: what is there is looked at again then.
    pub(super) fn answered(
        &mut self,
        call: CallId,
        read: Option<Vec<Vec<KeyValue>>>,
        wall: Stamp,
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) {
        if self.writes == Some(call) {
            self.writes = None;
            if read.is_none() {
                self.retry = desk.now.after(RETRY);
            }
            // What came of it is looked at.
            self.due = self.retry.max(desk.now);
            return;
        }
        if self.looks != Some(call) {
            return;
        }
        self.looks = None;
        let Some([nodes, cards]) = read.and_then(|read| <[_; 2]>::try_from(read).ok()) else {
            self.due = self.due.min(desk.now.after(RETRY));
            return;
        };
        self.present = nodes
            .iter()
            .filter_map(|kv| self.prefix.node_of(&kv.key))
            .map(str::to_owned)
            .collect();
        let cards = cards.iter().filter_map(|kv| {
            let name = self.prefix.card_of(&kv.key)?;
            Some((name.to_owned(), (keys::decode(&kv.value)?, kv.modified)))
        });
        let cards: BTreeMap<String, (KnownCard, i64)> = cards.collect();
        let missed = cards
            .iter()
            .filter(|(name, (card, _))| card.gone.is_none() && !self.present.contains(name));
        for (name, (card, modified)) in missed.take(MISSES_MAX) {
            let card = KnownCard {
                gone: Some(wall),
                ..card.clone()
            };
            // Whoever misses it at the same time, or sees it come back, is not contradicted.
            let when = vec![
                When::Created(self.prefix.node(name), 0),
                When::Modified(self.prefix.card(name), *modified),
            ];
            self.put(name, &card, when, endpoint, desk);
        }
        self.cards = Some(cards);
    }

    /// It leaves in order: nobody has to miss it.
    pub(super) fn take_leave(
        &mut self,
        own: &Own<'_>,
        wall: Stamp,
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) {
        let known = self.cards.take();
        let Some((card, _)) = known.and_then(|mut cards| cards.remove(&self.node)) else {
            return;
        };
        let card = KnownCard {
            gone: Some(wall),
            ..card
        };
        self.put(&self.node, &card, vec![is_ours(own)], endpoint, desk);
    }
}

/// The session that writes is the one whose key stands there.
fn is_ours(own: &Own<'_>) -> When {
    When::Created(own.key.to_owned(), own.created)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cluster::{calls::Calls, rpc::Order};

    const WALL: Stamp = Stamp(1_800_000_000_000);

    struct Bench {
        census: Census,
        calls: Calls,
        now: Moment,
    }

    impl Bench {
        fn new() -> Self {
            let now = Moment(0);
            Self {
                census: Census::new(Prefix::new("c"), "a".to_owned(), now),
                calls: Calls::default(),
                now,
            }
        }

        fn tend(&mut self) -> Option<(CallId, Txn)> {
            let own = Own {
                key: "/leasehold/v1/c/n/a",
                created: 7,
                version: "1.0",
                drained: None,
            };
            let (now, mut out) = (self.now, Vec::new());
            let calls = &mut self.calls;
            let mut desk = Desk {
                now,
                calls,
                out: &mut out,
            };
            self.census.tend(&own, WALL, 0, &mut desk);
            asked(out).pop()
        }

        fn answer(&mut self, call: CallId, read: Option<Vec<Vec<KeyValue>>>) -> Vec<Txn> {
            let (now, mut out) = (self.now, Vec::new());
            let calls = &mut self.calls;
            let mut desk = Desk {
                now,
                calls,
                out: &mut out,
            };
            self.census.answered(call, read, WALL, 0, &mut desk);
            asked(out).into_iter().map(|(_, txn)| txn).collect()
        }
    }

    fn asked(out: Vec<Order>) -> Vec<(CallId, Txn)> {
        let txn = |order| match order {
            Order::Call(call) => match call.request {
                Request::Txn(txn) => Some((call.id, txn)),
                _ => None,
            },
            Order::Watch { .. } | Order::Unwatch(_) => None,
        };
        out.into_iter().filter_map(txn).collect()
    }

    fn kv(key: &str, value: String) -> KeyValue {
        KeyValue {
            key: format!("/leasehold/v1/c/{key}"),
            value,
            created: 3,
            modified: 5,
            lease: None,
        }
    }

    /// An etcd that is full, or away, answers at once: whoever asks as fast makes it no better.
    #[test]
    fn what_failed_waits_its_turn() {
        let mut bench = Bench::new();
        let (look, _) = bench.tend().unwrap();
        bench.answer(look, Some(vec![vec![], vec![]]));
        let (write, txn) = bench.tend().unwrap();
        assert!(txn.writes());
        bench.answer(write, None);
        assert_eq!(bench.tend(), None, "it is written again at once");
        let due = bench.census.deadline().unwrap();
        assert!(due >= bench.now.after(Span::secs(1)), "{due:?}");
        bench.now = due;
        let mut again = (0..4).filter_map(|_| {
            let (call, txn) = bench.tend()?;
            bench.answer(call, Some(vec![vec![], vec![]]));
            Some(txn)
        });
        assert!(again.any(|txn| txn.writes()), "it is written in the end");
    }

    #[test]
    fn whoever_is_gone_is_missed_once() {
        let card = |gone| {
            keys::encode(&KnownCard {
                session: 3,
                version: "1.0".to_owned(),
                since: WALL,
                drained: None,
                gone,
            })
        };
        let mut bench = Bench::new();
        let (look, _) = bench.tend().unwrap();
        let cards = vec![
            kv("k/b", card(None)),
            kv("k/c", card(None)),
            kv("k/d", card(Some(WALL))),
        ];
        let missed = bench.answer(look, Some(vec![vec![kv("n/c", String::new())], cards]));
        let [txn] = &missed[..] else {
            panic!("{missed:?}")
        };
        let key = Prefix::new("c").card("b");
        let when = [
            When::Created(Prefix::new("c").node("b"), 0),
            When::Modified(key.clone(), 5),
        ];
        assert_eq!(txn.when, when);
        let value = card(Some(WALL));
        let put = Do::Put {
            key,
            value,
            lease: None,
        };
        assert_eq!(txn.then, [put]);
        assert_eq!(bench.census.counts(), Some((1, 2)));
    }
}
