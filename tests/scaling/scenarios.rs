//! The scenarios, each with what must hold in it for every seed.

use crate::{
    plant::Demand,
    rig::Rig,
    scene::{Act, Kind, Report, Scene, Twist},
};

/// So many seeds for each.
const SEEDS: u64 = 40;
/// Loads change here, unless said otherwise.
const THEN: f64 = 60.0;

/// Fails with the words, unless it holds.
macro_rules! must {
    ($holds:expr, $($words:tt)+) => {
        let holds: bool = $holds;
        if !holds {
            return Err(format!($($words)+));
        }
    };
}

type Verdict = Result<(), String>;

/// What driver and keeper take to do what was decided.
const LATE: f64 = 0.1;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays a scene with every seed. What fails is played again with its trace.
pub(crate) fn every_seed(
    name: &str,
    scene: impl Fn(u64) -> Scene,
    check: impl Fn(&Report) -> Verdict,
) {
    let one = number("SCALING_SEED");
    let seeds = one.map_or(0..number("SCALING_SEEDS").unwrap_or(SEEDS), |seed| {
        seed..seed + 1
    });
    let play = |seed, traced: bool| {
        let rig = Rig::new(scene(seed), seed);
        let mut rig = if traced { rig.traced() } else { rig };
        rig.play();
        rig
    };
    let mut failed: Vec<(u64, String)> = Vec::new();
    for seed in seeds.clone() {
        let rig = play(seed, one.is_some());
        if one.is_some() {
            println!("{}", rig.trace());
        }
        let lawful = rig.broken.map_or(Ok(()), Err);
        if let Err(why) = lawful.and_then(|()| check(&rig.report)) {
            failed.push((seed, why));
        }
    }
    if let Some((seed, _)) = failed.first() {
        let trace = play(*seed, true);
        println!(
            "{name}, seed {seed} (SCALING_SEED={seed}):\n{}",
            trace.trace()
        );
        let first: Vec<String> = failed
            .iter()
            .take(5)
            .map(|(seed, why)| format!("{seed}: {why}"))
            .collect();
        panic!(
            "{name} fails for {} of {} seeds:\n{}",
            failed.len(),
            seeds.count(),
            first.join("\n")
        );
    }
}

/// One load, then another.
pub(crate) fn step(from: f64, to: f64) -> impl Fn(f64) -> f64 {
    move |at| if at < THEN { from } else { to }
}

/// A load for so many seconds.
pub(crate) fn spike(base: f64, high: f64, span: f64) -> impl Fn(f64) -> f64 {
    move |at| {
        if (THEN..THEN + span).contains(&at) {
            high
        } else {
            base
        }
    }
}

/// Low and high in turn, each for half a period.
pub(crate) fn square(low: f64, high: f64, period: f64) -> impl Fn(f64) -> f64 {
    move |at| {
        if at.rem_euclid(period) < period / 2.0 {
            low
        } else {
            high
        }
    }
}

/// Always the same load.
pub(crate) fn steady(load: f64) -> impl Fn(f64) -> f64 {
    move |_| load
}

fn nothing(report: &Report) -> Verdict {
    must!(report.acts.is_empty(), "{:?}", report.acts);
    Ok(())
}

/// The table has 15 s, of one phase. A step at any phase is seen above `high` after 5 s of smoothing, or 6 with unlucky noise; the next decision comes within 5 s, and another one agrees after as many.
const FIRST: f64 = 16.0 + LATE;

fn step_up(report: &Report) -> Verdict {
    let first = report
        .acts
        .first()
        .map_or(f64::INFINITY, |act| act.at - THEN);
    must!(
        (0.0..=FIRST).contains(&first),
        "grows first after {first:.0} s"
    );
    let last = report.acts.last().map_or(0.0, |act| act.at - THEN);
    // Six growths at most, each of which takes two decisions.
    must!(last <= FIRST + 50.0, "grows last after {last:.0} s");
    must!((7..=9).contains(&report.last), "ends with {}", report.last);
    must!(report.peak <= 9, "has {} once", report.peak);
    must!(report.growths() <= 6, "{} growths", report.growths());
    must!(report.shrinks() == 0, "{} shrinks", report.shrinks());
    Ok(())
}

#[test]
fn scenario_1_a_step_up() {
    let scene = |_| Scene::of(Demand::of(step(0.5, 5.0)), 1, 400.0);
    every_seed("1", scene, step_up);
}

/// With a socket whose queue is seen the emergency helps, and nothing else changes but the growths' number.
#[test]
fn scenario_1_a_step_up_with_a_socket() {
    let plain = |_| Scene::of(Demand::of(step(0.5, 5.0)), 1, 400.0);
    let scene = move |seed| Scene {
        socket: true,
        ..plain(seed)
    };
    let mut lost = [0.0; 2];
    for seed in 0..SEEDS {
        for (sum, scene) in lost.iter_mut().zip([plain(seed), scene(seed)]) {
            let mut rig = Rig::new(scene, seed);
            rig.play();
            *sum += rig.report.lost / SEEDS as f64;
        }
    }
    println!(
        "lost {:.0} core-seconds, with the queue seen {:.0}",
        lost[0], lost[1]
    );
    assert!(lost[1] < lost[0]);
    every_seed("1 with a socket", scene, |report| {
        let first = report
            .acts
            .first()
            .map_or(f64::INFINITY, |act| act.at - THEN);
        must!(
            (0.0..=FIRST).contains(&first),
            "grows first after {first:.0} s"
        );
        must!((7..=10).contains(&report.last), "ends with {}", report.last);
        must!(report.shrinks() == 0, "{} shrinks", report.shrinks());
        Ok(())
    });
}

#[test]
fn scenario_1b_a_step_down() {
    let scene = |_| Scene::of(Demand::of(step(5.0, 0.5)), 8, 400.0);
    every_seed("1b", scene, |report| {
        let first = report
            .acts
            .first()
            .map_or(f64::INFINITY, |act| act.at - THEN);
        must!(first >= 115.0, "acts after {first:.0} s");
        must!(report.growths() == 0, "{} growths", report.growths());
        must!(report.last == 1, "ends with {}", report.last);
        let last = report.acts.last().map_or(0.0, |act| act.at - THEN);
        must!(last <= 240.0, "is through after {last:.0} s");
        let most = report.acts.iter().map(|act| act.by).max().unwrap_or(0);
        must!(most <= 2, "{most} drain at once");
        Ok(())
    });
}

#[test]
fn scenario_2_a_ramp() {
    let ramp = |at: f64| 0.5 + 4.5 * (at / 600.0).clamp(0.0, 1.0);
    let scene = move |_| Scene::of(Demand::of(ramp), 1, 900.0);
    every_seed("2", scene, |report| {
        must!(report.growths() <= 6, "{} growths", report.growths());
        must!(report.shrinks() == 0, "{} shrinks", report.shrinks());
        must!((7..=8).contains(&report.last), "ends with {}", report.last);
        must!(
            report.queue == 0.0,
            "{:.1} core-seconds waited",
            report.queue
        );
        Ok(())
    });
}

#[test]
fn scenario_3_a_spike_of_5_s() {
    let scene = |_| Scene::of(Demand::of(spike(0.5, 1.0, 5.0)), 1, 400.0);
    every_seed("3, 5 s", scene, nothing);
    let scene = |_| Scene {
        min: 5,
        ..Scene::of(Demand::of(spike(2.5, 5.0, 5.0)), 5, 400.0)
    };
    every_seed("3, 5 s, five workers", scene, nothing);
    // What cannot be worked off at once waits, and that is half a minute of work for one worker: no spike any more.
    let scene = |_| Scene::of(Demand::of(spike(0.5, 4.0, 5.0)), 1, 400.0);
    every_seed("3, 5 s and a queue", scene, |report| {
        must!(
            report.growths() <= 2 && report.peak <= 4,
            "{:?}",
            report.acts
        );
        let last = report.acts.last().map_or(0.0, |act| act.at - THEN - 5.0);
        must!(
            report.last == 1 && last <= 240.0,
            "{} after {last:.0} s",
            report.last
        );
        Ok(())
    });
}

#[test]
fn scenario_3_a_spike_of_30_s() {
    let scene = |_| Scene::of(Demand::of(spike(0.5, 4.0, 30.0)), 1, 500.0);
    every_seed("3, 30 s", scene, |report| {
        must!(report.growths() <= 3, "{} growths", report.growths());
        must!(report.peak <= 8, "has {} once", report.peak);
        let last = report.acts.last().map_or(0.0, |act| act.at - THEN - 30.0);
        must!(
            report.last == 1 && last <= 240.0,
            "{} after {last:.0} s",
            report.last
        );
        Ok(())
    });
}

#[test]
fn scenario_4_a_fast_wave() {
    let scene = |_| Scene::of(Demand::of(square(1.0, 3.0, 60.0)), 2, 1_800.0);
    every_seed("4, 60 s", scene, |report| {
        let last = report.acts.last().map_or(0.0, |act| act.at);
        must!(last <= 240.0, "acts at {last:.0} s");
        must!(report.acts.len() <= 5, "{} actions", report.acts.len());
        Ok(())
    });
}

#[test]
fn scenario_4_a_slow_wave() {
    let scene = |_| Scene::of(Demand::of(square(1.0, 3.0, 400.0)), 2, 4_000.0);
    every_seed("4, 400 s", scene, |report| {
        must!(report.acts.len() <= 16, "{} actions", report.acts.len());
        Ok(())
    });
}

#[test]
fn scenario_5_a_neighbour() {
    let scene = |_| Scene {
        hogs: vec![(THEN, THEN + 480.0, 8)],
        ..Scene::of(Demand::of(steady(1.5)), 3, 1_200.0).cores(4.0)
    };
    every_seed("5", scene, |report| {
        let (during, after): (Vec<&Act>, Vec<&Act>) =
            report.acts.iter().partition(|act| act.at <= THEN + 480.0);
        must!(during.is_empty(), "{during:?}");
        let grown = after.iter().filter(|act| act.kind == Kind::Grow).count();
        must!(grown <= 1 && after.len() - grown <= 1, "{after:?}");
        Ok(())
    });
}

/// Somebody else keeps all cores busy, and our workers get what they want of them all the same. Where the kernel says so the fleet shrinks; where
/// it does not nothing is known, and nothing is done.
#[test]
fn scenario_5b_a_neighbour_that_takes_nothing_from_us() {
    let scene = |says| Scene {
        hogs: vec![(THEN, 800.0, 8)],
        pressures: Some(says),
        ..Scene::of(Demand::of(step(1.5, 0.3)), 4, 600.0).cores(4.0)
    };
    every_seed(
        "5b",
        |_| scene(true),
        |report| {
            must!(report.growths() == 0, "{} growths", report.growths());
            must!(report.last == 1, "ends with {}", report.last);
            Ok(())
        },
    );
    every_seed(
        "5b, unsaid",
        |_| scene(false),
        |report| {
            must!(report.said("starved") > 0, "{:?}", report.verdicts);
            nothing(report)
        },
    );
}

#[test]
fn scenario_5c_more_load_than_the_machine() {
    let scene = |_| Scene::of(Demand::of(step(0.5, 5.0)), 1, 400.0).cores(4.0);
    every_seed("5c", scene, |report| {
        must!(
            report.last == 4 && report.peak == 4,
            "{} at last, {} once",
            report.last,
            report.peak
        );
        must!(
            report.said("host_cpu") > 0,
            "is never blocked: {:?}",
            report.verdicts
        );
        Ok(())
    });
}

fn slow(load: impl Fn(f64) -> f64 + 'static) -> Demand {
    Demand {
        start: 45.0,
        boot: 1.0,
        ..Demand::of(load)
    }
}

#[test]
fn scenario_6_a_slow_start() {
    let scene = |_| Scene::of(slow(step(0.4, 3.0)), 1, 900.0);
    every_seed("6", scene, |report| {
        must!(report.peak <= 7, "has {} once", report.peak);
        must!(report.last == 5, "ends with {}", report.last);
        let grown: Vec<f64> = report.of(Kind::Grow).map(|act| act.at).collect();
        let hasty = grown.windows(2).any(|pair| pair[1] < pair[0] + 45.0);
        must!(!hasty, "grows while some start: {grown:?}");
        Ok(())
    });
    // What waits meanwhile is worked off in a few seconds, so that all that is left to see is the start itself.
    let scene = |_| Scene::of(slow(steady(0.05)), 1, 400.0).twist(THEN, Twist::Crashes(0));
    every_seed("6, a restart", scene, nothing);
}

#[test]
fn scenario_7_a_stuck_worker() {
    let stuck = |load, begin| Scene {
        says_done: true,
        ..Scene::of(Demand::of(steady(load)), begin, 900.0).twist(THEN, Twist::Sticks)
    };
    every_seed(
        "7, one of two",
        |_| Scene {
            min: 2,
            ..stuck(0.6, 2)
        },
        |report| {
            must!(
                report.growths() == 1 && report.shrinks() == 0,
                "{:?}",
                report.acts
            );
            must!(report.peak <= 3, "has {} once", report.peak);
            Ok(())
        },
    );
    every_seed(
        "7, the only one",
        |_| stuck(0.3, 1),
        |report| {
            must!(report.peak <= 4, "has {} once", report.peak);
            // The table has 2, the stuck one among them. If more had come before it was known, it is the first to go.
            must!((1..=2).contains(&report.last), "ends with {}", report.last);
            Ok(())
        },
    );
}

/// Six batches: the first when the window is over (120 s, and up to ten until the smoothed load has fallen and the next decision comes), then
/// one at the first decision after the one before has gone (60 s, and up to five). The table has 450 s, of one phase.
#[test]
fn scenario_8_long_drains() {
    let demand = || Demand {
        drain: 60.0,
        ..Demand::of(step(5.3, 1.1))
    };
    every_seed(
        "8",
        |_| Scene::of(demand(), 9, 700.0),
        |report| {
            let at: Vec<f64> = report.of(Kind::Shrink).map(|act| act.at).collect();
            must!(
                at.windows(2).all(|pair| pair[1] >= pair[0] + 60.0),
                "batches overlap: {at:?}"
            );
            must!(report.growths() == 0, "{} growths", report.growths());
            let last = at.last().map_or(0.0, |at| at - THEN);
            must!(
                report.last == 2 && last <= 452.0 + LATE,
                "{} after {last:.0} s",
                report.last
            );
            Ok(())
        },
    );
}

/// Load comes back while some of eight drain: others are started, and those that were told to end do.
#[test]
fn scenario_8_load_returns_during_a_drain() {
    const BACK: f64 = 220.0;
    let load = |at: f64| match at {
        at if at < THEN => 5.0,
        at if at < BACK => 1.0,
        _ => 6.0,
    };
    let scene = move |_| {
        Scene::of(
            Demand {
                drain: 120.0,
                ..Demand::of(load)
            },
            8,
            500.0,
        )
    };
    every_seed("8, back", scene, |report| {
        let told: Vec<_> = report
            .of(Kind::Shrink)
            .map(|act| (act.at, act.by))
            .collect();
        must!(
            matches!(told[..], [(at, _)] if at < BACK),
            "shrinks {told:?}"
        );
        let grown = report
            .of(Kind::Grow)
            .next()
            .map_or(f64::INFINITY, |act| act.at - BACK);
        must!((0.0..=30.0).contains(&grown), "grows after {grown:.0} s");
        Ok(())
    });
}

#[test]
fn scenario_9_samples_are_lost() {
    let calm = || Scene::of(Demand::of(steady(1.5)), 3, 900.0);
    every_seed("9, 30 %", |_| Scene { loss: 30, ..calm() }, nothing);
    every_seed(
        "9, outage",
        |_| Scene {
            outage: Some((100.0, 160.0)),
            ..calm()
        },
        |report| {
            must!(report.said("no_metrics") > 0, "{:?}", report.verdicts);
            nothing(report)
        },
    );
}

#[test]
fn scenario_9_a_mute_worker() {
    let scene = |_| Scene {
        mute: Some(0),
        ..Scene::of(Demand::of(step(4.5, 1.0)), 8, 900.0)
    };
    every_seed("9, mute", scene, |report| {
        must!(
            report.growths() == 0 && report.shrinks() > 0,
            "{:?}",
            report.acts
        );
        // Three workers: two thirds of a core are seen, one may be busy: ceil(1.67 / 0.6 - 0.1).
        must!(report.last == 3, "ends with {}", report.last);
        Ok(())
    });
}

#[test]
fn scenario_10_the_wall_clock() {
    for seed in 0..SEEDS {
        let scene = || Scene::of(Demand::of(spike(0.5, 4.0, 40.0)), 1, 500.0);
        let mut plain = Rig::new(scene(), seed);
        plain.play();
        let jumps = (1..=8_i64).map(|n| {
            let by = if n % 2 == 0 { 3_600 } else { -3_600 };
            ((n * 37 + seed as i64) as f64, Twist::ClockSet(by))
        });
        let mut set = Rig::new(
            Scene {
                twists: jumps.collect(),
                ..scene()
            },
            seed,
        );
        set.play();
        assert!(!plain.report.acts.is_empty());
        assert_eq!(plain.report.acts, set.report.acts, "seed {seed}");
        assert_eq!(plain.report.verdicts, set.report.verdicts, "seed {seed}");
    }
}

#[test]
fn scenario_10_the_machine_stands_still() {
    let scene = |seed| {
        let at = 200.0 + seed as f64 / 7.0;
        Scene::of(Demand::of(steady(1.5)), 3, 500.0).twist(at, Twist::Pause(30.0))
    };
    every_seed("10, pause", scene, nothing);
}

/// Longer than the down window, and nothing to do afterwards: what was needed before it counts no more, and a window begins.
#[test]
fn scenario_10_a_window_after_a_pause() {
    let load = |at: f64| if at < 250.0 { 2.9 } else { 0.3 };
    let scene = move |_| Scene::of(Demand::of(load), 5, 600.0).twist(100.0, Twist::Pause(150.0));
    every_seed("10, window", scene, |report| {
        let first = report.acts.first().map_or(f64::INFINITY, |act| act.at);
        must!(first >= 250.0 + 115.0, "acts at {first:.0} s");
        must!(report.last == 1, "ends with {}", report.last);
        Ok(())
    });
}

/// All of them are taken for stuck, one after the other: as many as there may be at all, and a quarter more.
#[test]
fn scenario_7_nobody_gets_anything_done() {
    let scene = |_| {
        let scene = Scene {
            says_done: true,
            min: 3,
            max: 3,
            ..Scene::of(Demand::of(steady(0.9)), 3, 900.0)
        };
        (0..8).fold(scene, |scene, nth| {
            scene.twist(THEN + 90.0 * f64::from(nth), Twist::Sticks)
        })
    };
    every_seed("7, nobody", scene, |report| {
        must!(report.peak <= 4, "has {} once", report.peak);
        Ok(())
    });
}

#[test]
fn scenario_11_no_room() {
    let scene = |_| Scene {
        min: 4,
        max: 4,
        ..Scene::of(Demand::of(step(0.1, 8.0)), 4, 600.0)
    };
    every_seed("11", scene, |report| {
        must!(report.said("max") > 0, "{:?}", report.verdicts);
        nothing(report)
    });
}

#[test]
fn scenario_12_one_core() {
    for load in [0.95, 1.5] {
        let scene = |_| Scene {
            max: 4,
            ..Scene::of(Demand::of(steady(load)), 1, 600.0).cores(1.0)
        };
        every_seed(&format!("12, {load}"), scene, |report| {
            must!(report.said("host_cpu") > 0, "{:?}", report.verdicts);
            nothing(report)
        });
    }
}

/// Two fleets that want three cores each, on four; the second comes late. It gets its share where each fleet has a cgroup with its
/// weight. Without, processor time follows the number of processes: it gets one more than it could by what is idle.
#[test]
fn scenario_13_two_fleets() {
    for (weight, weighted, fair) in [(1.0, true, 2.0), (3.0, true, 3.0), (1.0, false, 1.14)] {
        let scene = |_| {
            let late = Demand {
                weight,
                ..Demand::of(|at| if at < 240.0 { 0.0 } else { 3.0 })
            };
            let mut scene = Scene::of(Demand::of(steady(3.0)), 5, 900.0).cores(4.0);
            scene.demands.push(late);
            Scene {
                begin: vec![5, 1],
                weighted,
                ..scene
            }
        };
        every_seed(
            &format!("13, weight {weight}, {weighted}"),
            scene,
            |report| {
                must!(report.shrinks() == 0, "{:?}", report.acts);
                let late = report.shares.get(1).copied().unwrap_or(0.0);
                let first = report.shares.first().copied().unwrap_or(0.0);
                must!(
                    (late - fair).abs() <= 0.3,
                    "the late one gets {late:.2}, not {fair}"
                );
                must!(
                    (first - (4.0 - fair)).abs() <= 0.3,
                    "the first one gets {first:.2}"
                );
                must!(
                    late > 1.05,
                    "the late one gets {late:.2}: nothing it was entitled to"
                );
                Ok(())
            },
        );
    }
}

/// A hundred connections at a fleet of none: one worker. Idle for 300 s: none. One more while the last one drains: one again.
#[test]
fn scenario_14_none_and_back() {
    const BURST: f64 = 30.0;
    let scene = |seed| {
        let demand = Demand {
            drain: 60.0,
            ..Demand::of(steady(0.0))
        };
        // Idle from some 25 s after it was woken, which the smoothing takes.
        let again = BURST + 345.0 + seed as f64 % 5.0;
        let scene = Scene::of(demand, 0, 600.0).twist(BURST, Twist::Burst(1.0));
        Scene {
            min: 0,
            socket: true,
            ..scene.twist(again, Twist::Burst(0.01))
        }
    };
    every_seed("14", scene, |report| {
        let acts: Vec<_> = report
            .acts
            .iter()
            .map(|act| (act.kind, act.by, act.live))
            .collect();
        let expected = [(Kind::Grow, 1, 1), (Kind::Shrink, 1, 0), (Kind::Grow, 1, 1)];
        must!(acts == expected, "{:?}", report.acts);
        let [up, down, again] = [0, 1, 2].map(|n| report.acts[n].at);
        must!(up - BURST < 1.0, "wakes at {up:.1}");
        must!((300.0..=340.0).contains(&(down - up)), "ends at {down:.1}");
        must!(
            (60.0..=61.0).contains(&(again - down)),
            "wakes again at {again:.1}"
        );
        must!(
            report.lost == 0.0 && report.queue_at_end == 0.0,
            "something was refused"
        );
        Ok(())
    });
}

#[test]
fn scenario_16_loads_near_every_bound() {
    let scene = |seed| {
        let load = 0.55 + 1.85 * (seed % SEEDS) as f64 / (SEEDS - 1) as f64;
        let begin = (load / 0.6 - 0.1_f64).ceil().max(1.0) as u32;
        Scene {
            noise: 0.08,
            ..Scene::of(Demand::of(steady(load)), begin, 3_600.0)
        }
    };
    every_seed("16", scene, |report| {
        must!(
            report.growths() <= 2 && report.shrinks() <= 1,
            "{:?}",
            report.acts
        );
        let kinds: Vec<Kind> = report.acts.iter().map(|act| act.kind).collect();
        let pairs = kinds.windows(2).filter(|pair| pair[0] != pair[1]).count();
        must!(pairs <= 1, "a pair repeats: {:?}", report.acts);
        Ok(())
    });
}

/// Decisions go on where they were: the death of a supervisor makes nothing happen.
#[test]
fn deaths_of_the_supervisor_cause_nothing() {
    let calm = |seed: u64| {
        let scene = Scene::of(Demand::of(steady(1.5)), 3, 900.0);
        (0..12).fold(scene, |scene, n| {
            let at = 20.0 + n as f64 * 67.0 + (seed * 7_919 % 600) as f64 / 10.0;
            scene.twist(at, Twist::SupervisorDies)
        })
    };
    every_seed("deaths, calm", calm, nothing);
    let during = |seed: u64| 50.0 + (seed * 7_919 % 700) as f64 / 10.0;
    let up = |seed| {
        let scene = Scene::of(Demand::of(step(0.5, 5.0)), 1, 400.0);
        scene.twist(during(seed), Twist::SupervisorDies)
    };
    every_seed("deaths, 1", up, |report| {
        must!((7..=9).contains(&report.last), "ends with {}", report.last);
        must!(report.peak <= 9, "has {} once", report.peak);
        must!(report.shrinks() == 0, "{} shrinks", report.shrinks());
        let last = report.acts.last().map_or(0.0, |act| act.at - THEN);
        must!(last <= 75.0, "grows last after {last:.0} s");
        Ok(())
    });
    // What it knew of the last two minutes was not lost with it.
    let down = |seed| {
        let scene = Scene::of(Demand::of(step(5.0, 0.5)), 8, 400.0);
        let at = 60.0 + (seed * 7_919 % 2_400) as f64 / 10.0;
        scene.twist(at, Twist::SupervisorDies)
    };
    every_seed("deaths, 1b", down, |report| {
        let first = report
            .acts
            .first()
            .map_or(f64::INFINITY, |act| act.at - THEN);
        must!(first >= 115.0, "acts after {first:.0} s");
        must!(report.growths() == 0, "{} growths", report.growths());
        let last = report.acts.last().map_or(0.0, |act| act.at - THEN);
        must!(
            report.last == 1 && last <= 255.0,
            "{} after {last:.0} s",
            report.last
        );
        Ok(())
    });
}

/// What is known of a moment is no window: a fleet that begins with eight and may have fewer a moment later keeps them for a while.
#[test]
fn a_window_begins_with_its_fleet() {
    let scene = |_| Scene::of(Demand::of(steady(0.5)), 8, 300.0);
    every_seed("a window begins", scene, |report| {
        let first = report.acts.first().map_or(f64::INFINITY, |act| act.at);
        must!((75.0..=100.0).contains(&first), "acts at {first:.0}");
        must!(report.growths() == 0, "{} growths", report.growths());
        Ok(())
    });
}

/// Two have more to do than they can. One crashes and is slow to start again: it rests, and the other one is not stuck for that.
#[test]
fn a_newcomer_makes_nobody_suspect() {
    let scene = |seed| {
        let demand = Demand {
            start: 10.0 + (seed % 40) as f64 / 4.0,
            boot: 0.1,
            ..Demand::of(steady(2.5))
        };
        let scene = Scene::of(demand, 2, 500.0).twist(300.0, Twist::Crashes(1));
        Scene {
            min: 2,
            max: 2,
            ..scene
        }
    };
    every_seed("a newcomer", scene, nothing);
}

/// What once waited says nothing when the queue cannot be read any more: nobody is started for it.
#[test]
fn a_queue_that_cannot_be_read_is_not_known() {
    let scene = |_| {
        let scene = Scene::of(Demand::of(steady(2.2)), 4, 400.0).twist(100.0, Twist::Burst(1.2));
        Scene {
            socket: true,
            deaf: Some((100.3, 400.0)),
            ..scene
        }
    };
    every_seed("deaf", scene, nothing);
}

/// Nobody but a supervisor can hear a knock: its heir asks again who waits, also for those who came in between.
#[test]
fn a_knock_outlives_the_supervisor() {
    let scene = |seed| {
        let scene = Scene::of(Demand::of(steady(0.0)), 0, 300.0)
            .twist(50.0, Twist::SupervisorDies)
            .twist(49.9 + (seed % 5) as f64 / 10.0, Twist::Burst(0.5));
        Scene {
            min: 0,
            socket: true,
            ..scene
        }
    };
    every_seed("a knock", scene, |report| {
        let [act] = report.acts[..] else {
            return Err(format!("{:?}", report.acts));
        };
        must!(act.kind == Kind::Grow && act.at <= 51.0, "{act:?}");
        must!(report.queue_at_end == 0.0, "somebody still waits");
        Ok(())
    });
}
