//! A fake authority that leases `timed/0` out: renewals are late, are lost, or are not answered, and its clock runs fast. When it thinks
//! that the lease is over somebody else has it, and nothing of ours may be there.

use leasehold::{
    config::spec::LeaseSpec,
    engine::gate::{Kept, Pass},
    id::WorkerId,
    time::{Clocks, Moment, Span},
    wire::RowKey,
};

use crate::{
    fleets,
    host::{Host, Seat},
    rng::Rng,
};

/// How much faster than ours its clock may run, in thousandth parts (research: an oscillator of 500 ppm beside a slew of 8.3 %).
const FAST: u64 = 1_083;

/// The lease of `timed/0`.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) spec: LeaseSpec,
    pub(crate) sought: bool,
    pub(crate) fence: u64,
    /// The keeper holds its lock.
    pub(crate) kept: bool,
    /// Renewed by this supervisor.
    pub(crate) open: bool,
    /// Somebody else has it from then on.
    ours_until: Option<Moment>,
    pub(crate) cut_until: Moment,
    raw_ppm: u64,
}

pub(crate) fn worker() -> WorkerId {
    WorkerId::new(fleets::name("timed"), 0)
}

impl Lease {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self {
            spec: fleets::lease(),
            sought: false,
            fence: 100,
            kept: false,
            open: false,
            ours_until: None,
            cut_until: Moment(0),
            // 999,500 to 1,000,500 millionth parts of BOOTTIME.
            raw_ppm: 999_500 + rng.below(1_001),
        }
    }

    pub(crate) fn clocks(&self, now: Moment) -> Clocks {
        let raw = u128::from(now.0) * u128::from(self.raw_ppm) / 1_000_000;
        Clocks {
            boottime: now,
            raw: Moment(raw as u64),
        }
    }

    /// The moment at which a deadline has passed.
    pub(crate) fn comes_at(&self, until: Clocks) -> Moment {
        let by_raw = u128::from(until.raw.0) * 1_000_000 / u128::from(self.raw_ppm) + 1;
        until.boottime.min(Moment(by_raw as u64 + 1))
    }

    pub(crate) fn pass(&self) -> Pass {
        Pass {
            path: "/run/lock/timed.0".to_owned(),
            fence: self.fence,
        }
    }

    /// What a new supervisor finds in the keeper's hands.
    pub(crate) fn found(&self, host: &Host) -> Option<Kept> {
        let armed = |seat: &&Seat| seat.fence == self.fence && seat.fired.is_none();
        self.kept.then(|| Kept {
            pass: self.pass(),
            lost: None,
            until: host.seat.as_ref().filter(armed).map(|seat| seat.until),
        })
    }

    /// A renewal arrives at the authority.
    pub(crate) fn renewed(&mut self, now: Moment) {
        let span = Span::nanos(self.spec.ttl.as_nanos() / FAST * 1_000);
        self.ours_until = self.ours_until.max(Some(now.after(span)));
    }

    /// It is given back: somebody else has it at once.
    pub(crate) fn given_back(&mut self, host: &Host) {
        assert!(!lives(host), "a lease was given back under a living worker");
        self.open = false;
        self.sought = false;
        self.ours_until = None;
    }

    pub(crate) fn keeper_died(&mut self) {
        (self.kept, self.open, self.sought) = (false, false, false);
        self.ours_until = None;
    }

    /// Seen from outside: when somebody else has it, our worker is gone, or was killed so long ago that only a hang in the kernel keeps it.
    pub(crate) fn check(&self, host: &Host, now: Moment) {
        let Some(proc) = host.process(&RowKey::Slot(worker())) else {
            return;
        };
        let Some(until) = self.ours_until else {
            panic!("a leased worker runs, and the lease was never ours");
        };
        if now >= until {
            let killed = proc.killed_at.unwrap_or(now);
            assert!(
                killed.after(self.spec.kill_margin) <= until,
                "somebody else has the lease since {until:?}; our worker was killed at {:?}",
                proc.killed_at
            );
        }
    }
}

fn lives(host: &Host) -> bool {
    host.process(&RowKey::Slot(worker())).is_some()
}
