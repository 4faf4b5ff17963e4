//! Laws that hold in every plant: loads, losses, crashes and deaths of the supervisor at random.

use leasehold::engine::{
    effect::Ending,
    status::{ScaleStatus, WorkerStatus},
};

use crate::{
    plant::Demand,
    rig::Rig,
    rng::Rng,
    scene::{Kind, Scene, Twist},
};

/// So many random plants.
const SEEDS: u64 = 300;
/// A crash is repaired within this: the longest pause before a restart, a supervisor that is not there, and some slack.
pub(crate) const REPAIR: f64 = 5.0 + 1.0 + 2.0;

/// What an action may be like: `live` workers after it, `under_way` of the same kind before it, and of the other.
pub(crate) struct Action {
    pub(crate) kind: Kind,
    pub(crate) by: usize,
    pub(crate) live: usize,
    pub(crate) under_way: usize,
    /// So many burn all they can and do nothing: others may have taken their places.
    pub(crate) stuck: usize,
    /// Connections waited when the queue was looked at last.
    pub(crate) waiting: u32,
}

/// Is it lawful?
pub(crate) fn check_act(act: &Action, scene: &Scene) -> Result<(), String> {
    let (min, max) = (scene.min as usize, scene.max as usize);
    match act.kind {
        Kind::Grow => {
            let before = act.live.saturating_sub(act.by + act.stuck);
            if before >= min && act.under_way > 0 {
                return Err("it grows while some are starting".to_owned());
            }
            let places = max + act.stuck.min((max / 4).max(1));
            if act.live > places {
                return Err(format!("it has {} of at most {max}", act.live));
            }
            if before >= min && act.by > before.max(2) {
                return Err(format!("it grows from {before} by {}", act.by));
            }
        }
        Kind::Shrink => {
            let before = act.live + act.by;
            if act.under_way > 0 {
                return Err("it shrinks while some are draining".to_owned());
            }
            if act.live < min {
                return Err(format!("it shrinks to {}", act.live));
            }
            if act.by > (before / 4).max(1) {
                return Err(format!("it shrinks from {before} by {}", act.by));
            }
            if act.waiting > 0 && before <= max {
                return Err(format!("it shrinks while {} wait", act.waiting));
            }
        }
    }
    Ok(())
}

/// What the engine shows must be within its bounds.
pub(crate) fn check_picture(scale: &ScaleStatus) -> Result<(), String> {
    if !(1..=8).contains(&scale.penalty) {
        return Err(format!("a penalty of {}", scale.penalty));
    }
    if scale.decisions.len() > 32 {
        return Err(format!("{} decisions are kept", scale.decisions.len()));
    }
    Ok(())
}

/// Of one that was told to end because its fleet shrinks: no drain is taken back, whatever the load does meanwhile.
pub(crate) fn check_drain(worker: &WorkerStatus) -> Result<(), String> {
    let ends = worker.ending == Some(Ending::ScaleIn) && !worker.ready;
    if worker.pid.is_some() && !ends {
        let WorkerStatus { id, state, .. } = worker;
        return Err(format!("{id} was told to end, and is {state}"));
    }
    Ok(())
}

/// What people are told when it has ended.
pub(crate) fn check_end(ending: Option<Ending>) -> Result<(), String> {
    match ending {
        Some(Ending::ScaleIn) => Ok(()),
        other => Err(format!("a worker was told to end, and ended by {other:?}")),
    }
}

/// A load that jumps, ramps and waves at random.
fn load(rng: &mut Rng) -> impl Fn(f64) -> f64 + 'static {
    let pieces: Vec<(f64, f64, f64)> = (0..8)
        .map(|_| {
            let level = rng.below(90) as f64 / 10.0;
            let wave = if rng.chance(40) {
                rng.below(30) as f64 / 10.0
            } else {
                0.0
            };
            let period = 20.0 + rng.below(300) as f64;
            (level, wave, period)
        })
        .collect();
    let calm = rng.chance(30);
    move |at: f64| {
        let piece = (at.max(0.0) / 110.0) as usize % pieces.len();
        let (level, wave, period) = pieces[if calm { piece / 4 } else { piece }];
        (level + wave * (std::f64::consts::TAU * at / period).sin()).max(0.0)
    }
}

fn scene(seed: u64) -> Scene {
    let mut rng = Rng::new(seed ^ 0xfeed);
    let demand = Demand {
        start: 0.5 + rng.below(200) as f64 / 10.0,
        boot: rng.below(11) as f64 / 10.0,
        drain: rng.below(900) as f64 / 10.0,
        ..Demand::of(load(&mut rng))
    };
    let socket = rng.chance(50);
    let least = if socket { 0 } else { 1 };
    let min = least + rng.below(3) as u32;
    let max = min.max(1) + rng.below(14) as u32;
    let mut scene = Scene {
        min,
        max,
        loss: *rng.pick(&[0, 0, 10, 50]),
        blind: *rng.pick(&[0, 0, 20, 100]),
        noise: *rng.pick(&[0.0, 0.05, 0.2]),
        socket,
        hogs: vec![(200.0, 400.0, rng.below(10) as u32)],
        says_done: rng.chance(50),
        ..Scene::of(demand, min, 880.0).cores(1.0 + rng.below(12) as f64)
    };
    for _ in 0..rng.below(8) {
        let at = rng.span(1_000, 870_000).as_millis() as f64 / 1e3;
        let twist = match rng.below(5) {
            0 => Twist::SupervisorDies,
            1 => Twist::Pause(rng.below(60) as f64),
            2 => Twist::Sticks,
            _ => Twist::Crashes(rng.below(16) as usize),
        };
        scene = scene.twist(at, twist);
    }
    scene
}

#[test]
fn laws_hold_in_random_plants() {
    let one: Option<u64> = std::env::var("SCALING_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let many = std::env::var("SCALING_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let seeds = one.map_or(0..many.unwrap_or(SEEDS), |seed| seed..seed + 1);
    let (mut growths, mut shrinks) = (0, 0);
    let count = seeds.clone().count();
    for seed in seeds {
        let mut rig = Rig::new(scene(seed), seed).lawful();
        rig.play();
        if let Some(broken) = rig.broken.take() {
            let mut again = Rig::new(scene(seed), seed).lawful().traced();
            again.play();
            println!("{}", again.trace());
            panic!("seed {seed} (SCALING_SEED={seed}): {broken}");
        }
        growths += rig.report.growths();
        shrinks += rig.report.shrinks();
    }
    println!("{growths} growths, {shrinks} shrinks");
    // A sweep in which nothing happened would prove nothing.
    assert!(
        one.is_some() || (growths > count && shrinks > count / 4),
        "{growths}, {shrinks}"
    );
}

/// As many as a configuration allows must fit the row that is kept of them.
#[test]
fn the_largest_fleet_fits_its_row() {
    let demand = Demand {
        start: 1_000.0,
        ..Demand::of(|_| 0.0)
    };
    let mut rig = Rig::new(
        Scene {
            min: 1_500,
            max: 1_500,
            ..Scene::of(demand, 0, 1.0)
        },
        1,
    );
    rig.play();
}
