//! How the queue of one lock is followed: a watch that was open before the queue was read, so that nothing between the two is missed. A watch
//! from now on is served at once; one from a known revision waits for etcd's next turn, up to 100 ms.
//!
//! What a watch shows is true and in order, but it may be late, and it may have ended: it says when to begin, never that we may go on. That is
//! the lease's to say.

use crate::{
    engine::cluster::{
        calls::{Desk, Purpose},
        keys,
        line::{Delay, Line, Listing},
        rpc::{CallId, Change, Do, KeyValue, Request, Txn},
        session::PATIENCE,
    },
    time::{Moment, Span},
};

/// It is read again this often, whatever the watch says.
const RECONCILE_EVERY: Span = Span::secs(30);
/// What was read, and a watch has not told by then, it has missed.
const WATCH_LAG: Span = Span::secs(3);
/// A watch that failed is opened again so soon, then after twice as long, and so on.
const REOPEN_MIN: Span = Span::millis(50);
const REOPEN_MAX: Span = Span::secs(1);

#[derive(Clone, Debug)]
enum Watch {
    Closed { until: Moment },
    Opening { id: CallId, endpoint: usize },
    Open { id: CallId, endpoint: usize },
}

/// The queue of one lock.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    /// Everything below here is the lock's.
    pub(super) lock: String,
    slots: u32,
    delay: Delay,
    watch: Watch,
    pause: Span,
    line: Option<Line>,
    /// Seen by the watch since it is open, and before the queue was read.
    early: Vec<(i64, Vec<Change>)>,
    /// Only what was asked since then was asked after the watch was open.
    open_since: CallId,
    /// What the watch may have missed has not been read yet.
    is_stale: bool,
    listing: Option<CallId>,
    list_at: Moment,
    /// It was read otherwise than the watch tells it: if it still is then, the watch has missed something.
    doubtful: Option<Moment>,
}

impl Queue {
    pub(super) fn new(lock: String, slots: u32, delay: Delay, now: Moment) -> Self {
        Self {
            lock,
            slots,
            delay,
            watch: Watch::Closed { until: now },
            pause: REOPEN_MIN,
            line: None,
            early: Vec::new(),
            open_since: CallId(0),
            is_stale: true,
            listing: None,
            list_at: now,
            doubtful: None,
        }
    }

    /// What is known of it, if that is all that there is to know.
    pub(super) fn line(&self) -> Option<&Line> {
        self.line.as_ref().filter(|_| !self.is_stale)
    }

    /// How many may have it by the word of one who stands there. Nobody changes that word, so that it holds however old the line is.
    pub(super) fn slots_of(&self, fence: i64) -> Option<u32> {
        self.line.as_ref()?.slots_of(fence)
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.watch, Watch::Open { .. })
    }

    pub(super) fn reconfigure(&mut self, slots: u32, delay: Delay) {
        (self.slots, self.delay) = (slots, delay);
        if let Some(line) = &mut self.line {
            line.reconfigure(slots, delay);
        }
    }

    pub(super) fn deadline(&self, now: Moment) -> Option<Moment> {
        let line = self.line.as_ref();
        let clear = line.and_then(Line::clear_at);
        let wish = line.and_then(Line::wish_at);
        let own = match self.watch {
            Watch::Closed { until } => Some(until),
            Watch::Open { .. } if self.listing.is_none() => Some(self.list_at),
            Watch::Opening { .. } | Watch::Open { .. } => None,
        };
        let later = clear.into_iter().chain(wish).filter(|at| *at > now);
        later.chain(own).min()
    }

    /// Opens the watch, and reads the queue; `joins`: somebody joins it in this moment, and gets it with his answer.
    pub(super) fn tend(&mut self, endpoint: usize, joins: bool, desk: &mut Desk<'_>) {
        match self.watch {
            Watch::Closed { until } if until <= desk.now => {
                let id = desk.watch(endpoint, self.lock.clone(), PATIENCE);
                self.watch = Watch::Opening { id, endpoint };
            }
            // Whoever renews our lease does not answer there any more; the watch may hang as well.
            Watch::Open { id, endpoint: at } | Watch::Opening { id, endpoint: at }
                if at != endpoint =>
            {
                desk.unwatch(id);
                let id = desk.watch(endpoint, self.lock.clone(), PATIENCE);
                self.watch = Watch::Opening { id, endpoint };
                self.is_stale = true;
                self.early.clear();
            }
            Watch::Open { .. } if self.listing.is_none() && self.list_at <= desk.now => {
                self.list_at = desk.now.after(RECONCILE_EVERY);
                if !joins {
                    let purpose = Purpose::List(self.lock.clone());
                    let request = Request::Txn(Txn::read(self.reads()));
                    self.listing = Some(desk.ask(endpoint, request, PATIENCE, purpose));
                }
            }
            Watch::Closed { .. } | Watch::Opening { .. } | Watch::Open { .. } => {}
        }
    }

    /// All that is to be known of it: for [`Queue::listed`].
    pub(super) fn reads(&self) -> Vec<Do> {
        vec![
            Do::Get(keys::last(&self.lock)),
            Do::Get(keys::released(&self.lock)),
            Do::Get(keys::wish(&self.lock)),
            Do::List(keys::queue(&self.lock)),
        ]
    }

    /// It was read: by whoever joined it, just before he did, or by `ours`, who stood there already.
    pub(super) fn listed(
        &mut self,
        call: CallId,
        revision: i64,
        read: Vec<Vec<KeyValue>>,
        (joined, ours): (bool, Option<i64>),
        now: Moment,
    ) {
        if self.listing == Some(call) {
            self.listing = None;
        }
        let mut read = read.into_iter();
        let mut next = || read.next().unwrap_or_default();
        let (last, released, wish, places) = (next(), next(), next(), next());
        let listing = Listing {
            revision,
            places,
            released: released.into_iter().next(),
            wish: wish.into_iter().next(),
            last: last.first().map_or(0, |kv| kv.modified),
            ours,
        };
        match &mut self.line {
            Some(line) if !self.is_stale && !joined && line.shows(&listing) => self.doubtful = None,
            // The watch will tell of it, and in which order it happened, if it is well.
            Some(_) if !self.is_stale && !joined && self.doubtful.is_none_or(|at| at > now) => {
                let until = *self.doubtful.get_or_insert(now.after(WATCH_LAG));
                self.list_at = until;
            }
            Some(line) => {
                line.relist(listing, now);
                self.doubtful = None;
            }
            None => self.line = Some(Line::new(self.slots, self.delay, listing, now)),
        }
        if call >= self.open_since && self.is_open() {
            self.is_stale = false;
            for (revision, changes) in std::mem::take(&mut self.early) {
                self.follow(&changes, revision, now);
            }
        } else if self.is_stale && self.listing.is_none() {
            // Whoever joined had asked before the watch was open: what happened in between is not known.
            self.list_at = now;
        }
    }

    /// A reading failed: soon again.
    pub(super) fn not_listed(&mut self, call: CallId, now: Moment) {
        if self.listing == Some(call) {
            self.listing = None;
        }
        self.list_at = self.list_at.min(now.after(REOPEN_MIN));
    }

    /// Is this our watch?
    pub(super) fn watches(&self, id: CallId) -> bool {
        match self.watch {
            Watch::Closed { .. } => false,
            Watch::Opening { id: ours, .. } | Watch::Open { id: ours, .. } => ours == id,
        }
    }

    /// The watch is open: whatever is asked with this number or a later one is asked after that.
    pub(super) fn opened(&mut self, next: CallId, now: Moment) {
        if let Watch::Opening { id, endpoint } = self.watch {
            self.watch = Watch::Open { id, endpoint };
            self.open_since = next;
            self.pause = REOPEN_MIN;
            self.list_at = now;
            self.listing = None;
        }
    }

    pub(super) fn follow(&mut self, changes: &[Change], revision: i64, now: Moment) {
        match &mut self.line {
            Some(line) if !self.is_stale => line.follow(&self.lock, changes, revision, now),
            Some(_) | None => self.early.push((revision, changes.to_vec())),
        }
    }

    /// The watch is over: what is known may be out of date.
    pub(super) fn ended(&mut self, now: Moment) {
        let until = now.after(self.pause);
        self.pause = self.pause.plus(self.pause).min(REOPEN_MAX);
        self.watch = Watch::Closed { until };
        self.is_stale = true;
        self.early.clear();
    }

    /// Nobody is interested any more.
    pub(super) fn close(&self, desk: &mut Desk<'_>) {
        match self.watch {
            Watch::Closed { .. } => {}
            Watch::Opening { id, .. } | Watch::Open { id, .. } => desk.unwatch(id),
        }
    }
}
