//! The one record of each thing that happened: kept in a ring for `events`, printed as a line.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::{
    engine::effect::{Subject, Transition},
    http::{EventRow, Events, singletons::gate_event},
    sys::clock,
};

/// So many events are remembered.
const RING: usize = 4_096;

pub(super) struct Journal {
    ring: Mutex<VecDeque<EventRow>>,
    newest: watch::Sender<u64>,
    incarnation: u64,
    keeper: i32,
}

impl Journal {
    pub(super) fn new(incarnation: u64, keeper: i32) -> Self {
        Self {
            ring: Mutex::default(),
            newest: watch::Sender::new(0),
            incarnation,
            keeper,
        }
    }

    /// Keeps a record and returns it as a row.
    pub(super) fn record(&self, transition: &Transition) -> EventRow {
        let (worker, generation) = match &transition.subject {
            Subject::Worker(worker, generation) => (Some(worker.to_string()), Some(generation.0)),
            Subject::Node | Subject::Fleet(_) => (None, None),
        };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *self.newest.borrow() + 1;
        let row = EventRow {
            number,
            id: format!("{}-{number}", self.incarnation),
            at: format!("{:.3}", clock::wall_at(transition.at)),
            subject: transition.subject.to_string(),
            worker,
            generation,
            kind: kind_of(&transition.what),
            text: transition.what.to_string(),
            gate: gate_event(&transition.what, self.keeper),
        };
        if ring.len() == RING {
            ring.pop_front();
        }
        ring.push_back(row.clone());
        drop(ring);
        self.newest.send_replace(number);
        row
    }
}

/// `BackingOff` becomes `backing-off`: the variant's own name, in the style of the rest of the interface.
fn kind_of(what: &crate::engine::effect::What) -> String {
    let debug = format!("{what:?}");
    let name = debug
        .split(|c: char| !c.is_ascii_alphanumeric())
        .next()
        .unwrap_or_default();
    let mut kind = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !kind.is_empty() {
            kind.push('-');
        }
        kind.push(c.to_ascii_lowercase());
    }
    kind
}

impl Events for Journal {
    fn after(&self, number: u64, limit: usize) -> Vec<EventRow> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter()
            .filter(|row| row.number > number)
            .take(limit)
            .cloned()
            .collect()
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn incarnation(&self) -> u64 {
        self.incarnation
    }
}
