//! Jobs seen from outside: what was started is read off the processes, what was reported off the events, and what was owed off the
//! calendar and the wall clock, which somebody sets now and then.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::{
    config::{calendar::Calendar, spec::CronSpec},
    engine::{
        Transition,
        book::{Book, Run},
        effect::{Subject, What},
    },
    id::FleetName,
    time::{Moment, Span, Stamp},
    wire::{RowKey, SpawnSpec},
};

/// The wall clock of the machine when a story begins, at moment zero: an hour before Berlin's clocks jump to summer time.
pub(crate) const BEGIN: Stamp = Stamp(1_774_741_800_000);

/// The machine's wall clock, the jobs' books on its disk, and the ledger of what became of ticks.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    /// How far the clock is off, in ms.
    pub(crate) offset: i64,
    /// When the supervisor wants to be woken.
    pub(crate) wake: Option<Stamp>,
    /// Which keeper wrote a book, and the book.
    pub(crate) books: BTreeMap<FleetName, (u64, Book)>,
    calendars: BTreeMap<FleetName, (CronSpec, Calendar)>,
    /// Up to here the clock was followed.
    seen: Option<Stamp>,
    /// Nothing is due before; none: that is not known.
    next: Option<Stamp>,
    highest: Stamp,
    owed: BTreeSet<(FleetName, Stamp)>,
    fates: BTreeSet<(FleetName, Stamp)>,
    /// From, to: nobody started these. Their last one may be due in a moment only, by a clock that runs slower than ours.
    missed: Vec<(FleetName, Stamp, Stamp)>,
    /// How often something of a tick was started.
    starts: BTreeMap<(FleetName, Stamp), u32>,
    first_attempts: BTreeSet<(FleetName, Stamp)>,
}

impl Jobs {
    pub(crate) fn add(&mut self, name: FleetName, spec: &CronSpec) {
        let calendar = Calendar::of(spec).expect("a schedule");
        self.calendars.insert(name, (spec.clone(), calendar));
        self.next = None;
    }

    pub(crate) fn shown(&self, now: Moment) -> Stamp {
        Stamp(BEGIN.0 + (now.0 / 1_000_000) as i64 + self.offset)
    }

    /// When the clock shows what is waited for.
    pub(crate) fn rings(&self, now: Moment) -> Option<Moment> {
        self.wake
            .map(|wake| Moment(now.0 / 1_000_000 * 1_000_000).after(wake.since(self.shown(now))))
    }

    /// Somebody sets the clock.
    pub(crate) fn set(&mut self, by_ms: i64, now: Moment) {
        self.follow(now);
        self.next = None;
        self.offset += by_ms;
        if by_ms < 0 {
            self.seen = Some(self.shown(now));
        }
        self.follow(now);
    }

    /// Every tick that the clock passes is owed a run or a word.
    pub(crate) fn follow(&mut self, now: Moment) {
        let shown = self.shown(now);
        let seen = *self.seen.get_or_insert(shown);
        self.highest = self.highest.max(shown);
        if self.next.is_some_and(|next| shown < next) {
            self.seen = Some(seen.max(shown));
            return;
        }
        for (name, (_, calendar)) in &self.calendars {
            let ticks =
                std::iter::successors(calendar.next_after(seen), |t| calendar.next_after(*t));
            for tick in ticks.take_while(|tick| *tick <= shown) {
                self.owed.insert((name.clone(), tick));
            }
        }
        self.seen = Some(seen.max(shown));
        let calendars = self.calendars.values();
        self.next = calendars
            .filter_map(|(_, calendar)| calendar.next_after(shown))
            .min();
    }

    /// A process begins: of which tick; none: it is no job's.
    pub(crate) fn started(
        &mut self,
        key: &RowKey,
        spec: &SpawnSpec,
        keeper_deaths: u64,
    ) -> Option<(FleetName, Stamp)> {
        let RowKey::Slot(worker) = key else {
            return None;
        };
        let of = |name: &str| spec.env.iter().find_map(|line| line.strip_prefix(name));
        let (job, _) = self.calendars.get(&worker.fleet)?;
        let scheduled = of("LEASEHOLD_SCHEDULED=").expect("a run knows its tick");
        let scheduled: Stamp = serde_json::from_str(&format!("{scheduled:?}")).unwrap();
        let attempt: u32 = of("LEASEHOLD_ATTEMPT=").unwrap().parse().unwrap();
        // What somebody asked for is called by what the clock must show by now.
        let is_tick = scheduled.0 % 60_000 == 0;
        assert!(
            !is_tick || scheduled <= self.highest,
            "{worker}: {scheduled} is yet to come"
        );
        let tick = (worker.fleet.clone(), scheduled);
        if attempt == 1 {
            assert!(
                self.first_attempts.insert(tick.clone()),
                "{worker}: {scheduled} was started twice"
            );
        }
        assert!(attempt <= job.retry.attempts, "{worker}: attempt {attempt}");
        let starts = self.starts.entry(tick.clone()).or_default();
        *starts += 1;
        // What was lost with its keeper may have been a later attempt than the disk knew.
        assert!(
            u64::from(*starts) <= u64::from(job.retry.attempts) + keeper_deaths,
            "{worker}: {scheduled} was started {starts} times"
        );
        Some(tick)
    }

    /// Something was reported.
    pub(crate) fn reported(&mut self, transition: &Transition) {
        let Subject::Fleet(name) = &transition.subject else {
            return;
        };
        match &transition.what {
            What::RunBegan { scheduled, .. }
            | What::RunSkipped { scheduled, .. }
            | What::RunUnclaimed { scheduled, .. }
            | What::RunElsewhere { scheduled, .. }
            | What::RunLost { scheduled, .. }
            | What::RunEnded { scheduled, .. } => {
                self.fates.insert((name.clone(), *scheduled));
            }
            What::RunsMissed { first, last, .. } => {
                self.missed.push((name.clone(), *first, *last));
            }
            _ => {}
        }
    }

    /// A claim is written, or refused.
    pub(crate) fn keep(
        &mut self,
        keeper: u64,
        fleet: &FleetName,
        book: Book,
        claim: Option<&Run>,
    ) -> Result<(), String> {
        if let (Some(claim), Some((by, old))) = (claim, self.books.get(fleet)) {
            let is_ours = *by == keeper
                && old
                    .open()
                    .is_some_and(|open| open.scheduled == claim.scheduled);
            if !is_ours && !old.allows(claim) {
                return Err("claimed before".to_owned());
            }
        }
        self.books.insert(fleet.clone(), (keeper, book));
        Ok(())
    }

    /// No tick was forgotten, but for those that wait, and those that a clock that was set back will show again.
    pub(crate) fn check(&self, name: &FleetName, waiting: usize, now: Moment) {
        let shown = self.shown(now);
        let was_missed = |tick: &Stamp| {
            let mut all = self.missed.iter().filter(|one| one.0 == *name);
            all.any(|(_, first, last)| (first..=last).contains(&tick))
        };
        let lost: Vec<&Stamp> = self
            .owed
            .difference(&self.fates)
            .filter(|(job, tick)| job == name && *tick <= shown && !was_missed(tick))
            .map(|(_, tick)| tick)
            .collect();
        assert!(
            lost.len() <= waiting,
            "{name}: nobody knows what became of {lost:?}; {waiting} wait"
        );
    }

    pub(crate) fn count(&self) -> u64 {
        self.starts.len() as u64
    }
}

/// How far somebody sets a clock.
pub(crate) fn jump(rng: &mut crate::rng::Rng) -> i64 {
    let most = match rng.below(4) {
        0 => Span::secs(1),
        1 => Span::secs(90),
        2 => Span::secs(900),
        _ => Span::secs(2 * 86_400),
    };
    let far = rng.below(most.as_millis()) as i64;
    if rng.chance(50) { far } else { -far }
}
