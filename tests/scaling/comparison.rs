//! The engine beside other controllers, in the same plant.

use crate::{
    baselines::{self, Controller, Hpa, Literal, Pm2},
    plant::Demand,
    rig::Rig,
    scenarios::{spike, square, steady, step},
    scene::{Kind, Report, Scene, Twist},
};

/// The columns of the table.
fn scenes() -> [(&'static str, Scene); 8] {
    let slow = Demand {
        start: 45.0,
        boot: 1.0,
        ..Demand::of(step(0.4, 3.0))
    };
    [
        (
            "step 0.5->5",
            Scene::of(Demand::of(step(0.5, 5.0)), 1, 400.0),
        ),
        (
            "square 60 s, 30 min",
            Scene::of(Demand::of(square(1.0, 3.0, 60.0)), 2, 1_800.0),
        ),
        (
            "spike 5 s",
            Scene::of(Demand::of(spike(0.5, 4.0, 5.0)), 1, 400.0),
        ),
        (
            "spike 5 s, 5 workers",
            Scene {
                min: 5,
                ..Scene::of(Demand::of(spike(2.5, 5.0, 5.0)), 5, 400.0)
            },
        ),
        (
            "neighbour, C=4",
            Scene {
                hogs: vec![(60.0, 540.0, 8)],
                ..Scene::of(Demand::of(steady(1.5)), 3, 540.0).cores(4.0)
            },
        ),
        ("slow start 45 s", Scene::of(slow, 1, 900.0)),
        (
            "1 core 95 %",
            Scene {
                max: 4,
                ..Scene::of(Demand::of(steady(0.95)), 1, 400.0).cores(1.0)
            },
        ),
        (
            "stuck worker",
            Scene {
                says_done: true,
                min: 2,
                ..Scene::of(Demand::of(steady(0.6)), 2, 900.0).twist(60.0, Twist::Sticks)
            },
        ),
    ]
}

fn ours(scene: Scene, seed: u64) -> Report {
    let mut rig = Rig::new(scene, seed);
    rig.play();
    rig.report
}

fn row<C: Controller>(controller: fn() -> C, seed: u64) -> Vec<Report> {
    let played = scenes().map(|(_, scene)| baselines::play(scene, controller(), seed));
    played.into()
}

fn words(report: &Report) -> String {
    format!(
        "max {}, final {}, {} acts, lost {:.0}",
        report.peak,
        report.last,
        report.acts.len(),
        report.lost
    )
}

#[test]
#[ignore = "prints a table for people"]
fn comparison_table() {
    let rows = [
        (
            "leasehold",
            scenes().map(|(_, scene)| ours(scene, 1)).into(),
        ),
        (Literal.name(), row(|| Literal, 1)),
        (Pm2.name(), row(|| Pm2, 1)),
        (Hpa::default().name(), row(Hpa::default, 1)),
    ];
    let heads = scenes().map(|(name, _)| name).join(" | ");
    println!("| controller | {heads} |\n|{}", " --- |".repeat(9));
    for (name, reports) in rows {
        let cells: Vec<String> = reports.iter().map(words).collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
}

/// What the table is there to show, as far as it does not hang on a seed.
#[test]
fn comparison_holds() {
    for seed in 0..10 {
        let ours: Vec<Report> = scenes().map(|(_, scene)| ours(scene, seed)).into();
        let literal = row(|| Literal, seed);
        let pm2 = row(|| Pm2, seed);
        let hpa = row(Hpa::default, seed);
        let [step, square, queued, spike, neighbour, slow, one, stuck] = [0, 1, 2, 3, 4, 5, 6, 7];
        let acts = |reports: &[Report], at: usize| reports[at].acts.len();
        assert!(acts(&ours, step) < acts(&literal, step), "seed {seed}");
        assert!(acts(&pm2, step) > acts(&literal, step), "seed {seed}");
        assert!(ours[step].lost < hpa[step].lost, "seed {seed}");
        assert!(
            acts(&ours, square) * 5 < acts(&literal, square),
            "seed {seed}"
        );
        assert_eq!(acts(&ours, spike), 0, "seed {seed}");
        assert!(
            acts(&pm2, spike) > 0 && acts(&literal, queued) > 0,
            "seed {seed}"
        );
        assert_eq!(acts(&ours, neighbour), 0, "seed {seed}");
        assert!(ours[neighbour].lost <= hpa[neighbour].lost, "seed {seed}");
        assert!(
            literal[neighbour].growths() + pm2[neighbour].growths() > 0,
            "seed {seed}"
        );
        assert!(
            ours[slow].peak < literal[slow].peak.min(pm2[slow].peak),
            "seed {seed}"
        );
        assert_eq!(acts(&ours, one), 0, "seed {seed}");
        assert!(
            acts(&literal, one) > 0 && acts(&hpa, one) > 0,
            "seed {seed}"
        );
        assert_eq!(ours[stuck].of(Kind::Grow).count(), 1, "seed {seed}");
        assert_eq!(pm2[stuck].peak, 16, "seed {seed}");
    }
}
