//! Simulation of a cluster: several real engines and keeper cores, a fake etcd that is as wrong as the real one can be, clocks that are
//! slewed, and an eye that sees everything at its true time.
//!
//! One seed, one story. `CLUSTER_SEEDS=20000` widens the sweeps, `CLUSTER_SEED=77` replays one with its trace.

#[path = "../sim/agenda.rs"]
mod agenda;
#[path = "../conformance/mod.rs"]
mod conformance;
mod doubles;
mod etcd;
mod host;
#[path = "../sim/jobs.rs"]
mod jobs;
mod mutants;
mod node;
mod reload;
#[path = "../sim/rng.rs"]
mod rng;
mod subject;
mod ticks;
mod world;

use etcd::Flavour;
use leasehold::{config::spec::Takeover, time::Span};
use mutants::Mutant;
use node::Contended;
use ticks::TWICE;
use world::{FELL, Faults, TWO, Totals, World};

/// So many seeds in CI for each sweep.
const SEEDS: u64 = 320;

const AFTER_A_SECOND: Takeover = Takeover::After(Span::secs(1));

/// One holder; two holders; one whose successors wait until he must be dead.
const LOCKS: [Contended; 3] = [
    lock("billing", 1, AFTER_A_SECOND),
    lock("pool", 2, AFTER_A_SECOND),
    lock("ledger", 1, Takeover::Strict),
];

const fn lock(name: &'static str, slots: u32, takeover: Takeover) -> Contended {
    Contended {
        name,
        slots,
        takeover,
        is_disputed: false,
        home: None,
        group: None,
        is_warm: false,
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays the stories of a sweep; `vary` says what one seed's etcd is.
fn sweep(name: &str, locks: &[Contended], vary: fn(u64) -> Faults) -> Totals {
    sweep_of(name, locks, SEEDS, vary)
}

fn sweep_of(name: &str, locks: &[Contended], seeds: u64, vary: fn(u64) -> Faults) -> Totals {
    let one = number("CLUSTER_SEED");
    let count = number("CLUSTER_SEEDS").unwrap_or(seeds);
    let seeds = one.map_or(0..count, |seed| seed..seed + 1);
    let mut totals = Totals::default();
    for seed in seeds {
        let story = || World::new(seed, vary(seed), locks, Mutant::None, one.is_some()).run();
        match std::panic::catch_unwind(story) {
            Ok(more) => totals.add(more),
            Err(cause) => {
                eprintln!(
                    "seed {seed} of {name} failed; CLUSTER_SEED={seed} cargo test --test cluster {name} -- --nocapture replays it"
                );
                std::panic::resume_unwind(cause);
            }
        }
    }
    println!("{name}: {totals:?}");
    assert!(one.is_some() || totals.spawns > 3 * count, "{totals:?}");
    totals
}

const NEW: Flavour = Flavour {
    is_old: false,
    revokes_early: false,
};

/// Every version that renews as it believes, and none that revokes on its own.
const OLD: Flavour = Flavour {
    is_old: true,
    revokes_early: false,
};

const OLD_AND_EARLY: Flavour = Flavour {
    is_old: true,
    revokes_early: true,
};

/// Nothing goes wrong.
const QUIET: Faults = Faults {
    troubles: 0,
    removals: 0,
    moves: 0,
    drains: 0,
    clocks: 0,
    reloads: 0,
    restored: false,
    slewed: false,
    ttl: Span::secs(10),
    stubborn: false,
    aims: false,
    endpoints: 3,
    far: false,
    counted: false,
    jobs: false,
    hooks: false,
    double: None,
    flavour: NEW,
};

#[test]
fn calm() {
    sweep("calm", &LOCKS, |_| Faults { moves: 12, ..QUIET });
}

/// Whatever freezes, hangs, dies or is cut off, and whatever clocks do.
#[test]
fn trouble() {
    sweep("trouble", &LOCKS, |seed| Faults {
        troubles: 8,
        drains: if seed % 3 == 1 { 4 } else { 0 },
        slewed: seed % 2 == 0,
        stubborn: seed % 7 == 0,
        aims: seed % 3 == 0,
        endpoints: if seed % 4 == 1 { 1 } else { 3 },
        far: seed % 5 == 0,
        flavour: if seed % 3 == 0 { NEW } else { OLD },
        ..QUIET
    });
}

/// Workers that are counted over all nodes, whatever befalls them.
#[test]
fn counted() {
    sweep("counted", &LOCKS[2..], |seed| Faults {
        troubles: 8,
        removals: if seed % 3 == 0 { 6 } else { 0 },
        drains: if seed % 3 == 1 { 4 } else { 0 },
        slewed: seed % 2 == 0,
        endpoints: if seed % 4 == 1 { 1 } else { 3 },
        far: seed % 5 == 0,
        counted: true,
        flavour: if seed % 3 == 0 { NEW } else { OLD },
        ..QUIET
    });
}

/// Each tick of a job is one node's, or nobody's and told, whatever befalls whom and whatever the wall clocks show.
#[test]
fn jobs_of_the_cluster() {
    let totals = sweep("jobs_of_the_cluster", &LOCKS[2..], |seed| Faults {
        troubles: if seed % 6 == 5 { 0 } else { 8 },
        drains: if seed % 3 == 1 { 3 } else { 0 },
        clocks: if seed % 4 == 0 { 3 } else { 0 },
        slewed: seed % 2 == 0,
        stubborn: seed % 7 == 0,
        endpoints: if seed % 4 == 1 { 1 } else { 3 },
        far: seed % 5 == 0,
        jobs: true,
        flavour: if seed % 3 == 0 { NEW } else { OLD },
        ..QUIET
    });
    assert!(totals.runs > totals.spawns, "{totals:?}");
}

/// Leases are revoked and keys deleted under the hands of those who are well.
#[test]
fn removals() {
    sweep("removals", &LOCKS, |seed| Faults {
        removals: 6,
        slewed: seed % 2 == 0,
        ..QUIET
    });
}

/// Both at once: only whoever waits until the holder must be dead is safe.
#[test]
fn removals_in_trouble() {
    sweep("removals_in_trouble", &LOCKS[2..], |seed| Faults {
        troubles: 8,
        removals: 4,
        slewed: seed % 2 == 0,
        stubborn: seed % 7 == 0,
        aims: seed % 3 == 0,
        endpoints: if seed % 4 == 1 { 1 } else { 3 },
        far: seed % 5 == 0,
        flavour: OLD_AND_EARLY,
        ..QUIET
    });
}

/// A node that says two does not run beside one that says one.
#[test]
fn disputed() {
    let disputed = Contended {
        is_disputed: true,
        ..lock("billing", 1, AFTER_A_SECOND)
    };
    sweep("disputed", &[disputed], |seed| Faults {
        troubles: seed as u32 % 5,
        moves: 4,
        ..QUIET
    });
}

/// Somebody edits the nodes' files, one by one, while everything goes wrong.
#[test]
fn reloads() {
    let totals = sweep("reloads", &LOCKS, |seed| Faults {
        troubles: if seed % 6 == 5 { 0 } else { 6 },
        removals: if seed % 6 == 5 { 4 } else { 0 },
        reloads: 12,
        // The last tick is so late that a job far from etcd may just not have its lock when the story ends.
        jobs: seed % 4 == 0,
        drains: if seed % 3 == 1 { 3 } else { 0 },
        slewed: seed % 2 == 0,
        stubborn: seed % 7 == 0,
        endpoints: if seed % 4 == 1 { 1 } else { 3 },
        far: seed % 5 == 0 && seed % 4 != 0,
        flavour: if seed % 3 == 0 { NEW } else { OLD },
        ..QUIET
    });
    assert!(totals.reloads > totals.spawns / 4, "{totals:?}");
}

/// Whatever befell it, in the end it is where it had best run.
#[test]
fn preferred() {
    let home = Contended {
        home: Some("node1"),
        ..lock("billing", 1, AFTER_A_SECOND)
    };
    sweep("preferred", &[home], |seed| Faults {
        troubles: 8,
        moves: 6,
        drains: 3,
        slewed: seed % 2 == 0,
        far: seed % 5 == 0,
        flavour: OLD,
        ..QUIET
    });
}

/// What runs before and after a worker does so under the same lock.
#[test]
fn hooks() {
    sweep("hooks", &LOCKS, |seed| Faults {
        troubles: 8,
        moves: 6,
        reloads: if seed % 2 == 1 { 8 } else { 0 },
        slewed: seed % 2 == 0,
        stubborn: seed % 7 == 0,
        aims: seed % 3 == 0,
        endpoints: if seed % 4 == 1 { 1 } else { 3 },
        far: seed % 5 == 0,
        hooks: true,
        flavour: if seed % 3 == 0 { NEW } else { OLD },
        ..QUIET
    });
}

/// Workers that stand by lead only when they may, whatever befalls whom; in the end everybody who does not lead stands by.
#[test]
fn warm() {
    let one = |name, takeover| Contended {
        is_warm: true,
        ..lock(name, 1, takeover)
    };
    let locks = [
        one("billing", AFTER_A_SECOND),
        one("ledger", Takeover::Strict),
    ];
    let totals = sweep("warm", &locks, |seed| Faults {
        troubles: if seed % 6 == 5 { 0 } else { 8 },
        removals: if seed % 6 == 5 { 4 } else { 0 },
        moves: 6,
        drains: if seed % 3 == 1 { 3 } else { 0 },
        slewed: seed % 2 == 0,
        stubborn: seed % 7 == 0,
        aims: seed % 3 == 0,
        endpoints: if seed % 4 == 1 { 1 } else { 3 },
        far: seed % 5 == 0,
        flavour: if seed % 3 == 0 { NEW } else { OLD },
        ..QUIET
    });
    assert!(totals.promotions > totals.spawns / 2, "{totals:?}");
}

/// Whatever befell them, in the end no node has two while another one has none.
#[test]
fn spread_out() {
    let one = |name| Contended {
        group: Some("heavy"),
        ..lock(name, 1, AFTER_A_SECOND)
    };
    let locks = ["billing", "ledger", "mail"].map(one);
    sweep("spread", &locks, |seed| Faults {
        troubles: 6,
        moves: 4,
        drains: 2,
        slewed: seed % 2 == 0,
        far: seed % 5 == 0,
        flavour: OLD,
        ..QUIET
    });
}

/// A backup is restored, with another id or the same one: nobody goes on as if nothing had happened.
#[test]
fn restored() {
    sweep("restored", &LOCKS, |seed| Faults {
        moves: 12,
        restored: true,
        slewed: seed % 2 == 0,
        endpoints: if seed % 4 == 1 { 1 } else { 3 },
        ..QUIET
    });
}

/// Does anybody notice that this is left out?
fn is_noticed(mutant: Mutant, locks: &[Contended], faults: Faults) {
    const ENOUGH: u64 = 2_000;
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let noticed = (0..ENOUGH).find(|seed| {
        let story = || World::new(*seed, faults, locks, mutant, false).run();
        let broke = |text: &str| [TWO, FELL, TWICE].iter().any(|how| text.starts_with(how));
        let end = std::panic::catch_unwind(story);
        end.is_err_and(|cause| {
            cause
                .downcast_ref::<String>()
                .is_some_and(|text| broke(text))
        })
    });
    std::panic::set_hook(hook);
    println!("{mutant:?}: seed {noticed:?}");
    assert!(
        noticed.is_some(),
        "{mutant:?} went unnoticed in {ENOUGH} stories"
    );
}

/// Everything goes wrong at once, in an etcd of the given kind.
const fn mischief(flavour: Flavour, endpoints: usize, far: bool) -> Faults {
    Faults {
        troubles: 12,
        slewed: true,
        stubborn: true,
        aims: true,
        endpoints,
        far,
        flavour,
        ..QUIET
    }
}

/// A lock whose successors do not wait: nothing hides what is left out.
const AT_ONCE: [Contended; 1] = [lock("billing", 1, Takeover::After(Span::ZERO))];

/// All that the mutants are compared with: without any of them nobody overlaps.
#[test]
fn complete() {
    sweep("complete", &AT_ONCE, |seed| {
        mischief(
            NEW_OR_OLD[seed as usize % 2],
            [1, 3, 3][seed as usize % 3],
            seed % 4 < 2,
        )
    });
}

const NEW_OR_OLD: [Flavour; 2] = [NEW, OLD];

#[test]
fn without_the_verifying_read_two_run() {
    is_noticed(Mutant::NoRead, &AT_ONCE, mischief(OLD, 3, false));
}

/// With one endpoint: two are asked whenever one is late, and so one of the two is asked in time.
#[test]
fn counting_from_the_answer_two_run() {
    is_noticed(Mutant::FromReceipt, &AT_ONCE, mischief(OLD, 1, true));
}

#[test]
fn with_the_plain_lease_api_two_run() {
    is_noticed(Mutant::PlainLease, &AT_ONCE, mischief(OLD, 3, false));
}

#[test]
fn by_one_clock_alone_two_run() {
    is_noticed(Mutant::OneClock, &AT_ONCE, mischief(NEW, 3, false));
}

/// Where the keeper hangs and nobody ends the unit, the supervisor alone is left.
#[test]
fn by_one_clock_alone_a_supervisor_kills_too_late() {
    let faults = Faults {
        double: Some(doubles::unwatched),
        slewed: true,
        stubborn: true,
        ttl: doubles::LONG,
        ..QUIET
    };
    is_noticed(Mutant::OneClockByHand, &AT_ONCE, faults);
}

#[test]
fn without_the_keeper_two_run() {
    is_noticed(Mutant::NoKeeper, &AT_ONCE, mischief(NEW, 3, false));
}

#[test]
fn without_a_claim_a_run_is_two() {
    is_noticed(Mutant::NoClaim, &LOCKS[2..], timetable(0));
}

/// Of a clock that is ahead runs are forgotten before the others come to them.
#[test]
fn without_the_past_a_run_is_two() {
    is_noticed(Mutant::NoPast, &LOCKS[2..], timetable(4));
}

const fn timetable(clocks: u32) -> Faults {
    Faults {
        clocks,
        jobs: true,
        ..mischief(NEW, 3, false)
    }
}

#[test]
fn without_a_delay_before_a_takeover_two_run() {
    is_noticed(Mutant::None, &AT_ONCE, mischief(OLD_AND_EARLY, 3, false));
}
