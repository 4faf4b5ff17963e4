//! What a story is about, and what came of it; whoever controls the size.

use std::collections::BTreeMap;

use crate::plant::Demand;

/// Something that happens at a certain second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Twist {
    /// The oldest ready worker spins from now on.
    Sticks,
    /// The n-th ready worker crashes.
    Crashes(usize),
    /// So many core-seconds of connections come at once.
    Burst(f64),
    /// The supervisor is killed, and started again from the keeper's rows.
    SupervisorDies,
    /// The machine stands still for so many seconds.
    Pause(f64),
    /// The wall clock is set by so many seconds.
    ClockSet(i64),
}

/// A machine, its load, and what happens.
pub(crate) struct Scene {
    pub(crate) cores: f64,
    pub(crate) demands: Vec<Demand>,
    pub(crate) hogs: Vec<(f64, f64, u32)>,
    pub(crate) weighted: bool,
    pub(crate) noise: f64,
    /// So many of each fleet are ready when it begins.
    pub(crate) begin: Vec<u32>,
    /// Bounds of every fleet.
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) twists: Vec<(f64, Twist)>,
    /// So many percent of all readings of workers are lost.
    pub(crate) loss: u64,
    /// From when to when no worker can be read.
    pub(crate) outage: Option<(f64, f64)>,
    /// This slot can never be read.
    pub(crate) mute: Option<u32>,
    /// Workers say what they have done.
    pub(crate) says_done: bool,
    /// Fleets listen at a socket whose queue can be seen.
    pub(crate) socket: bool,
    /// The machine's share of idle time cannot be read for so many percent of the looks.
    pub(crate) blind: u64,
    /// From when to when sockets' queues cannot be read.
    pub(crate) deaf: Option<(f64, f64)>,
    /// Does the kernel say who waits for processors? None: half of the kernels do.
    pub(crate) pressures: Option<bool>,
    pub(crate) until: f64,
}

impl Scene {
    /// One fleet on eight cores.
    pub(crate) fn of(demand: Demand, begin: u32, until: f64) -> Self {
        Self {
            cores: 8.0,
            demands: vec![demand],
            hogs: Vec::new(),
            weighted: false,
            noise: 0.05,
            begin: vec![begin],
            min: 1,
            max: 16,
            twists: Vec::new(),
            loss: 0,
            outage: None,
            mute: None,
            says_done: false,
            socket: false,
            blind: 0,
            deaf: None,
            pressures: None,
            until,
        }
    }

    pub(crate) fn cores(mut self, cores: f64) -> Self {
        self.cores = cores;
        self
    }

    pub(crate) fn twist(mut self, at: f64, twist: Twist) -> Self {
        self.twists.push((at, twist));
        self
    }
}

/// What was done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Workers were started that nobody missed.
    Grow,
    /// Workers were told to end.
    Shrink,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Act {
    pub(crate) at: f64,
    pub(crate) fleet: usize,
    pub(crate) kind: Kind,
    pub(crate) by: usize,
    /// So many there are then.
    pub(crate) live: usize,
}

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            at,
            fleet,
            kind,
            by,
            live,
        } = self;
        write!(f, "{at:.1}: {fleet} {kind:?} by {by} to {live}")
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// From second 0 on.
    pub(crate) acts: Vec<Act>,
    /// Most that were there at once, on their way out or not counted apart.
    pub(crate) peak: usize,
    pub(crate) last: usize,
    pub(crate) lost: f64,
    /// The longest queue after second 0.
    pub(crate) queue: f64,
    pub(crate) queue_at_end: f64,
    /// Cores that each fleet used on average in the last part.
    pub(crate) shares: Vec<f64>,
    /// What was decided, in a word, and how often.
    pub(crate) verdicts: BTreeMap<&'static str, u32>,
}

impl Report {
    pub(crate) fn of(&self, kind: Kind) -> impl Iterator<Item = &Act> {
        self.acts.iter().filter(move |act| act.kind == kind)
    }

    /// So often it decided so.
    pub(crate) fn said(&self, word: &str) -> u32 {
        self.verdicts.get(word).copied().unwrap_or(0)
    }

    pub(crate) fn growths(&self) -> usize {
        self.of(Kind::Grow).count()
    }

    pub(crate) fn shrinks(&self) -> usize {
        self.of(Kind::Shrink).count()
    }
}
