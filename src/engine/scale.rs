//! How large a fleet that follows the load should be. Target tracking with a dead band: it grows above `high`, to land at `target`; it
//! shrinks only if that leaves it at or below `target`. Growing takes two decisions that agree, shrinking a whole window of them.
//!
//! Here are the arithmetic and the memory of one fleet; `autoscale` asks and obeys.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::{ScaleSpec, Signal},
    engine::{
        meter::{STALE, WHOLE},
        units::Units,
    },
    id::SlotIndex,
    time::{Moment, Span},
};

/// Regret over a shrink makes the next ones rarer, up to so many times.
const PENALTY_MAX: u32 = 8;
/// After so many windows without an action the penalty is halved.
const QUIET_WINDOWS: u32 = 4;
/// Decisions that are further apart than this do not tell what was needed in between.
const GAP: Span = Span::secs(20);
/// Between two shrinks.
const SHRINK_SPACING: Span = Span::secs(15);
/// So many recommendations of the down window are kept; more are merged, so that none is forgotten.
const HIGHS_MAX: usize = 32;
/// So many decisions are kept for people.
const DECISIONS_MAX: usize = 20;
/// Need that exceeds a whole number of workers by less, as a divisor, is noise.
const SLACK: u64 = 10;

/// A scaled fleet's memory; part of its row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scaling {
    /// Slots that are to be filled.
    pub(super) members: BTreeSet<SlotIndex>,
    /// Times the down window is longer than configured.
    pub(super) penalty: u32,
    /// When it grew last, or began.
    pub(super) grown_at: Moment,
    /// When it shrank last.
    pub(super) shrunk_at: Option<Moment>,
    /// When its queue made it grow last.
    pub(super) rescued_at: Option<Moment>,
    /// Nothing was done since; or the penalty was halved then.
    quiet_since: Moment,
    /// What the decision before recommended, if that was since the last growth.
    before: Option<(Moment, u32)>,
    /// The largest recommendations in the down window: falling, each with its time.
    highs: VecDeque<(Moment, u32)>,
    /// It was not decided for a while before: the down window begins anew then.
    resumed_at: Option<Moment>,
    /// Idle since, with `min = 0`.
    pub(super) idle_since: Option<Moment>,
    /// Everything below is found out anew by a new supervisor.
    #[serde(skip)]
    pub(super) queue: Queue,
    #[serde(skip)]
    pub(super) decisions: VecDeque<Decision>,
    /// What was said last of growth that was not possible.
    #[serde(skip)]
    pub(super) blocked: Option<Block>,
    /// So often a decision was not carried out, by reason.
    #[serde(skip)]
    pub(super) blocks: BTreeMap<&'static str, u64>,
    /// Somebody is asked to say when there is a knock.
    #[serde(skip)]
    pub(super) watching: bool,
    /// What it has of its cluster's, with a `cluster_max`.
    #[serde(skip)]
    pub(super) units: Units,
}

/// The accept queues of a fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Queue {
    /// When it was read; none: it has none, or it was never read.
    pub(super) read: Option<Moment>,
    pub(super) waiting: u32,
    pub(super) backlog: u32,
    /// So many samples in a row showed too many.
    pub(super) alerts: u32,
    /// Somebody has waited at every sample since.
    pub(super) waiting_since: Option<Moment>,
}

impl Queue {
    /// A sample of it.
    pub(super) fn read(&mut self, now: Moment, waiting: u32, backlog: u32, alert: Option<u32>) {
        let alert = alert.unwrap_or_else(|| (backlog / 10).max(16));
        (self.read, self.waiting, self.backlog) = (Some(now), waiting, backlog);
        self.alerts = if waiting > alert { self.alerts + 1 } else { 0 };
        if waiting == 0 {
            self.waiting_since = None;
        } else {
            self.waiting_since.get_or_insert(now);
        }
    }

    /// It was read once, and not lately.
    pub(super) fn is_stale(&self, now: Moment) -> bool {
        self.read.is_some_and(|at| at.after(STALE) <= now)
    }
}

/// What a decision is made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Inputs {
    /// Workers that are there, or on their way to be ready again.
    pub(super) n: u32,
    /// Of these, so many are not ready, or pause before a restart.
    pub(super) starting: u32,
    /// So many have been ready for less than `warmup`.
    pub(super) cold: u32,
    /// Measured.
    pub(super) have: u32,
    /// Warm, and not measured.
    pub(super) miss: u32,
    /// The measured ones' shares together, in parts per million of one worker.
    pub(super) load: u64,
    /// What workers say of themselves: so many did, and their shares together.
    pub(super) busy: Option<(u32, u64)>,
    /// Length of the queue that the fleet works off, in thousandths; none: not known.
    pub(super) queue: Option<u64>,
    /// Draining.
    pub(super) draining: u32,
    /// The machine has nothing to give, and its processes wait for it.
    pub(super) starved: bool,
    /// It has sockets, and how many wait at them is not known any more.
    pub(super) queue_stale: bool,
}

impl Inputs {
    /// The mean share, those that are not measured counted as idle.
    pub(super) fn utilization(&self) -> Option<u64> {
        (self.have > 0).then(|| self.load / u64::from(self.have + self.miss))
    }

    /// The mean share of those that say how busy they are.
    pub(super) fn said(&self) -> Option<u64> {
        let (count, sum) = self.busy.filter(|(count, _)| *count > 0)?;
        Some(sum / u64::from(count))
    }
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: Moment,
    /// So many workers counted.
    pub workers: u32,
    /// How busy they were, in parts per million; none: not known.
    pub utilization: Option<u64>,
    /// How busy they say that they are, in parts per million; none: nobody says.
    pub busy: Option<u64>,
    /// How much of the time they wait for a processor, in hundredths of a percent; none: not known.
    pub pressure: Option<u32>,
    /// So many were measured.
    pub measured: u32,
    /// So many should have been, and were not.
    pub missing: u32,
    /// So many were not ready, or paused before a restart.
    pub starting: u32,
    /// So many were on their way out.
    pub draining: u32,
    /// So many used all that they can and got nothing done: they are not among the workers.
    pub stuck: u32,
    /// Connections that waited; none: it has no sockets, or they were not read.
    pub waiting: Option<u32>,
    /// Length of the queue that the fleet works off, in thousandths; none: nobody says.
    pub queue: Option<u64>,
    /// Which signal asked for most.
    pub signal: Option<Reason>,
    /// Idle processors, in thousandths of a core.
    pub idle: Option<u32>,
    /// What this moment asks for.
    pub recommended: u32,
    /// What it would grow to.
    pub up: u32,
    /// What it could shrink to.
    pub down: u32,
    /// Times its down window is longer.
    pub penalty: u32,
    /// What was done, or why nothing.
    pub verdict: Verdict,
}

/// What came of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it should be.
    Fits,
    /// Nothing is done now.
    Holds(Hold),
    /// It cannot grow.
    Blocked(Block),
    /// It grew.
    Grew {
        /// By so many.
        by: u32,
        /// Why.
        reason: Reason,
    },
    /// It shrinks.
    Shrank {
        /// By so many.
        by: u32,
        /// Why.
        reason: Reason,
    },
}

/// Why nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Some are not ready yet.
    Starting,
    /// Some are still draining, or the last shrink was a moment ago.
    Draining,
    /// It has to be confirmed by the next decision.
    Confirming,
    /// It was needed larger a while ago.
    Window,
    /// Somebody waits at a socket.
    Queue,
    /// It asks for what it needs of `cluster_max`.
    Claiming,
    /// Nothing was measured.
    NoMetrics,
    /// The machine has no idle processor and its workers wait for one: that they use less means nothing.
    Starved,
    /// An operator wants it as it is.
    Paused,
    /// What it depends on is not there, or the daemon stops.
    NotKept,
}

impl Hold {
    /// The word in events and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Draining => "drain",
            Self::Confirming => "confirming",
            Self::Window => "window",
            Self::Queue => "queue",
            Self::Claiming => "claiming",
            Self::NoMetrics => "no_metrics",
            Self::Starved => "starved",
            Self::Paused => "paused",
            Self::NotKept => "not_kept",
        }
    }
}

/// Why it cannot grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Block {
    /// It is as large as it may be.
    Max,
    /// The machine has no idle processors.
    HostCpu,
    /// The machine has not enough memory.
    HostMemory,
    /// All nodes together have as many as they may have.
    ClusterMax,
    /// What all nodes have is not known, and so nobody adds to it.
    Etcd,
}

impl Block {
    /// The word in events and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Max => "max",
            Self::HostCpu => "host_cpu",
            Self::HostMemory => "host_mem",
            Self::ClusterMax => "cluster_max",
            Self::Etcd => "etcd",
        }
    }
}

/// Why a decision was not carried out, or not made: the words that are counted.
pub const BLOCK_WORDS: [&str; 10] = [
    "max",
    "host_cpu",
    "host_mem",
    "cluster_max",
    "etcd",
    "starting",
    "drain",
    "no_metrics",
    "starved",
    "stuck",
];

/// Why it grew, or shrank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its workers' processor time.
    Cpu,
    /// Connections that nobody accepted.
    Backlog,
    /// What its workers say of themselves.
    Busy,
    /// The queue that it works off.
    Queue,
    /// It had fewer than it must have.
    Min,
    /// It had more than it may have.
    Max,
    /// An operator's word.
    Manual,
    /// Somebody knocked.
    Wake,
    /// It had nothing to do.
    Idle,
}

impl Reason {
    /// The word in events and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Backlog => "backlog",
            Self::Busy => "busy",
            Self::Queue => "queue",
            Self::Min => "min",
            Self::Max => "max",
            Self::Manual => "manual",
            Self::Wake => "wake",
            Self::Idle => "idle",
        }
    }
}

/// What the arithmetic wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) recommended: u32,
    pub(super) reason: Reason,
    pub(super) up: u32,
    pub(super) down: u32,
    /// It would be fewer, on a machine that gave its workers what they need.
    pub(super) starved: bool,
}

/// Workers for so much load at `target`, both in parts per million of one worker.
fn need(load: u64, target: u64) -> u32 {
    let slack = target / SLACK;
    let workers = load.saturating_sub(slack).div_ceil(target.max(1));
    u32::try_from(workers).unwrap_or(u32::MAX).max(1)
}

/// The one rule, for every signal that is a share: above `high` what is needed, below only if that is fewer even if all that is unknown works.
fn recommend(n: u32, (have, miss): (u32, u32), load: u64, spec: &ScaleSpec, starved: bool) -> u32 {
    let target = u64::from(spec.target);
    let utilization = load / u64::from(have + miss).max(1);
    let at_most = load + u64::from(miss) * WHOLE;
    if utilization >= u64::from(spec.high) {
        return n.max(need(load, target));
    }
    let fewer = need(at_most, target);
    if fewer < n && !starved { fewer } else { n }
}

impl Scaling {
    pub(super) fn new(members: BTreeSet<SlotIndex>, now: Moment) -> Self {
        Self {
            members,
            penalty: 1,
            grown_at: now,
            quiet_since: now,
            ..Self::default()
        }
    }

    /// What the inputs ask for, by all signals; none: nothing is known.
    pub(super) fn advise(
        &mut self,
        inputs: &Inputs,
        spec: &ScaleSpec,
        now: Moment,
    ) -> Option<Advice> {
        let n = inputs.n;
        let mut answers: Vec<(u32, Reason)> = Vec::new();
        let mut unknown = false;
        if spec.uses(Signal::Cpu) {
            if inputs.have == 0 {
                unknown = true;
            } else {
                let counted = (inputs.have, inputs.miss);
                let answer = recommend(n, counted, inputs.load, spec, inputs.starved);
                answers.push((answer, Reason::Cpu));
            }
        }
        if spec.uses(Signal::Busy) {
            match inputs.busy {
                Some((have, load)) if have > 0 => {
                    let miss = (inputs.have + inputs.miss).saturating_sub(have);
                    let answer = recommend(n, (have, miss), load, spec, false);
                    answers.push((answer, Reason::Busy));
                }
                _ => unknown = true,
            }
        }
        if spec.uses(Signal::Queue) {
            match inputs.queue {
                Some(length) => {
                    let wanted = length.div_ceil(spec.queue_per_worker.max(1));
                    let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).max(1);
                    answers.push((wanted, Reason::Queue));
                }
                None => unknown = true,
            }
        }
        let by_backlog_alone = spec.signals.iter().all(|signal| *signal == Signal::Backlog);
        if by_backlog_alone && self.queue.read.is_some() {
            answers.push((if self.queue.waiting > 0 { n } else { 1 }, Reason::Backlog));
        }
        let (most, reason) = answers.into_iter().max_by_key(|(answer, _)| *answer)?;
        // One that says nothing may be the one that would have said more.
        let recommended = if unknown { most.max(n) } else { most };
        let advice = self.weigh(recommended, reason, n, spec, now);
        let counted = (inputs.have, inputs.miss);
        let rested = inputs.starved && recommended == n && reason == Reason::Cpu;
        Some(Advice {
            starved: rested && recommend(n, counted, inputs.load, spec, false) < n,
            ..advice
        })
    }

    fn weigh(
        &mut self,
        recommended: u32,
        reason: Reason,
        n: u32,
        spec: &ScaleSpec,
        now: Moment,
    ) -> Advice {
        let agreed = self
            .before
            .filter(|(at, _)| at.after(spec.up_window) >= now);
        let up = agreed.map_or(n, |(_, before)| before.min(recommended));
        self.before = Some((now, recommended));
        let window = self.down_window(spec);
        let gap = self.highs.back().is_some_and(|(at, _)| at.after(GAP) < now);
        if gap {
            self.highs.clear();
            self.resumed_at = Some(now);
        }
        while self
            .highs
            .back()
            .is_some_and(|(_, high)| *high <= recommended)
        {
            self.highs.pop_back();
        }
        self.highs.push_back((now, recommended));
        while self.highs.len() > 1
            && self
                .highs
                .front()
                .is_some_and(|(at, _)| at.after(window) < now)
        {
            self.highs.pop_front();
        }
        if self.highs.len() > HIGHS_MAX {
            // The first counts for as long as the second: larger for longer, never smaller.
            self.merge_highs();
        }
        let down = self.highs.front().map_or(recommended, |(_, high)| *high);
        Advice {
            recommended,
            reason,
            up,
            down,
            starved: false,
        }
    }

    fn merge_highs(&mut self) {
        if let (Some((_, high)), Some((at, _))) =
            (self.highs.front().copied(), self.highs.get(1).copied())
        {
            self.highs.pop_front();
            self.highs[0] = (at, high);
        }
    }

    pub(super) fn down_window(&self, spec: &ScaleSpec) -> Span {
        spec.down_window.times(self.penalty.max(1))
    }

    /// May it shrink now, apart from what its workers are doing?
    pub(super) fn may_shrink(&self, spec: &ScaleSpec, now: Moment) -> Result<(), Hold> {
        if self.queue.waiting > 0 {
            return Err(Hold::Queue);
        }
        if self
            .shrunk_at
            .is_some_and(|at| at.after(SHRINK_SPACING) > now)
        {
            return Err(Hold::Draining);
        }
        let since = self.resumed_at.unwrap_or_default().max(self.grown_at);
        if since.after(self.down_window(spec)) > now {
            return Err(Hold::Window);
        }
        Ok(())
    }

    /// It grew, and not because it had to have so many: if it shrank a moment ago, that was a mistake.
    pub(super) fn grew(&mut self, spec: &ScaleSpec, now: Moment) {
        let regret = self
            .shrunk_at
            .is_some_and(|at| at.after(self.down_window(spec)) > now);
        if regret {
            self.penalty = (self.penalty * 2).min(PENALTY_MAX);
        }
        self.grown_at = now;
        self.before = None;
        self.quiet_since = now;
    }

    pub(super) fn shrank(&mut self, now: Moment) {
        self.shrunk_at = Some(now);
        self.quiet_since = now;
    }

    /// Does this moment ask for fewer than `n`, and an earlier one of the window not?
    pub(super) fn highs_hold(&self, n: u32) -> bool {
        self.highs
            .back()
            .is_some_and(|(_, recommended)| *recommended < n)
    }

    /// Regret passes.
    pub(super) fn forgive(&mut self, spec: &ScaleSpec, now: Moment) {
        if self.penalty > 1
            && self
                .quiet_since
                .after(self.down_window(spec).times(QUIET_WINDOWS))
                <= now
        {
            self.penalty /= 2;
            self.quiet_since = now;
        }
    }

    pub(super) fn count_block(&mut self, word: &'static str) {
        if BLOCK_WORDS.contains(&word) {
            *self.blocks.entry(word).or_default() += 1;
        }
    }

    /// It grew by what the last decision waited for.
    pub(super) fn was_claimed(&mut self, verdict: Verdict) {
        self.blocked = None;
        let last = self.decisions.back_mut();
        if let Some(last) = last.filter(|one| one.verdict == Verdict::Holds(Hold::Claiming)) {
            last.verdict = verdict;
        }
    }

    pub(super) fn remember(&mut self, decision: Decision) {
        if self.decisions.len() >= DECISIONS_MAX {
            self.decisions.pop_front();
        }
        self.decisions.push_back(decision);
    }

    /// The lowest number that no member has and that is not taken otherwise.
    pub(super) fn free_slot(&self, taken: impl Fn(SlotIndex) -> bool) -> SlotIndex {
        let mut all = (0..).map(SlotIndex);
        let free = |index: &SlotIndex| !self.members.contains(index) && !taken(*index);
        all.find(free).unwrap_or(SlotIndex(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_what_the_target_takes_with_some_slack() {
        for (load, expected) in [
            (0, 1),
            (600, 1),
            (659, 1),
            (661, 2),
            (1_200, 2),
            (1_270, 3),
            (5_000, 9),
        ] {
            assert_eq!(need(load * 1_000, 600_000), expected, "{load}");
        }
    }

    #[test]
    fn what_was_high_in_the_window_is_never_forgotten() {
        let spec = ScaleSpec::between(1, 16);
        let mut scaling = Scaling::new(BTreeSet::new(), Moment(0));
        let second = Span::secs(1).as_nanos();
        for n in 0..200_u64 {
            let recommended = 1_000 - n as u32;
            let advice = scaling.weigh(recommended, Reason::Cpu, 5, &spec, Moment(n * second));
            let oldest = n.saturating_sub(120);
            assert!(advice.down >= 1_000 - oldest as u32, "{n}: {advice:?}");
            assert!(scaling.highs.len() <= HIGHS_MAX);
        }
    }
}
