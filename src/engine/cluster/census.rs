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
        let Some(card) = self.card(own, wall) else {
            return;
        };
        let txn = Txn {
            when: vec![When::Created(own.key.to_owned(), own.created)],
            then: vec![Do::Put {
                key: self.prefix.card(&self.node),
                value: keys::encode(&card),
                lease: None,
            }],
            otherwise: Vec::new(),
        };
        self.writes = Some(desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Census));
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
            // What came of it is looked at; what failed waits its turn.
            self.due = match read {
                Some(_) => desk.now,
                None => desk.now.after(LOOK_EVERY),
            };
            return;
        }
        if self.looks != Some(call) {
            return;
        }
        self.looks = None;
        let Some([nodes, cards]) = read.and_then(|read| <[_; 2]>::try_from(read).ok()) else {
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
            let key = self.prefix.card(name);
            // Whoever misses it at the same time, or sees it come back, is not contradicted.
            let txn = Txn {
                when: vec![
                    When::Created(self.prefix.node(name), 0),
                    When::Modified(key.clone(), *modified),
                ],
                then: vec![Do::Put {
                    key,
                    value: keys::encode(&card),
                    lease: None,
                }],
                otherwise: Vec::new(),
            };
            desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Census);
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
        let txn = Txn {
            when: vec![When::Created(own.key.to_owned(), own.created)],
            then: vec![Do::Put {
                key: self.prefix.card(&self.node),
                value: keys::encode(&card),
                lease: None,
            }],
            otherwise: Vec::new(),
        };
        desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Census);
    }
}
