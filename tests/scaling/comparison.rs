//! The engine beside other controllers, in the same plant. `docs/scaling.md` shows how they do;
//! `UPDATE_GOLDEN=1 cargo test --test scaling comparison` writes its table anew.

use std::{fs, path::Path};

use crate::{
    baselines::{self, Controller, Hpa, Literal, Pm2},
    plant::Demand,
    rig::Rig,
    scenarios::{spike, square, steady, step},
    scene::{Kind, Report, Scene, Twist},
};

/// Between these the document holds the table.
const BEGIN: &str = "<!-- The table is written by tests/scaling/comparison.rs. -->\n";
const END: &str = "<!-- Here it ends. -->\n";
/// The table tells one story of each scene.
const SEED: u64 = 1;

/// The rows of the table.
fn scenes() -> [(&'static str, Scene); 8] {
    let slow = Demand {
        start: 45.0,
        boot: 1.0,
        ..Demand::of(step(0.4, 3.0))
    };
    [
        (
            "load of 0.5 cores, then of 5",
            Scene::of(Demand::of(step(0.5, 5.0)), 1, 400.0),
        ),
        (
            "1 and 3 cores in turn, 30 s each, for 30 min",
            Scene::of(Demand::of(square(1.0, 3.0, 60.0)), 2, 1_800.0),
        ),
        (
            "0.5 cores, and 4 for 5 s",
            Scene::of(Demand::of(spike(0.5, 4.0, 5.0)), 1, 400.0),
        ),
        (
            "2.5 cores, and 5 for 5 s, with 5 workers at least",
            Scene {
                min: 5,
                ..Scene::of(Demand::of(spike(2.5, 5.0, 5.0)), 5, 400.0)
            },
        ),
        (
            "1.5 cores, beside 8 busy processes of others on 4 processors",
            Scene {
                hogs: vec![(60.0, 540.0, 8)],
                ..Scene::of(Demand::of(steady(1.5)), 3, 540.0).cores(4.0)
            },
        ),
        (
            "0.4 cores, then 3, where a worker takes 45 s to start",
            Scene::of(slow, 1, 900.0),
        ),
        (
            "0.95 cores, on a machine of one, with 4 workers at most",
            Scene {
                max: 4,
                ..Scene::of(Demand::of(steady(0.95)), 1, 400.0).cores(1.0)
            },
        ),
        (
            "0.6 cores, with 2 workers at least, of which one gets stuck",
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

fn theirs<C: Controller>(controller: fn() -> C, seed: u64) -> Vec<Report> {
    let played = scenes().map(|(_, scene)| baselines::play(scene, controller(), seed));
    played.into()
}

fn words(report: &Report) -> String {
    format!(
        "max {}, final {}, acts {}, lost {:.0}",
        report.peak,
        report.last,
        report.acts.len(),
        report.lost
    )
}

fn table() -> String {
    let controllers: [(&str, Vec<Report>); 4] = [
        (
            "leasehold",
            scenes().map(|(_, scene)| ours(scene, SEED)).into(),
        ),
        (Literal.name(), theirs(|| Literal, SEED)),
        (Pm2.name(), theirs(|| Pm2, SEED)),
        (Hpa::default().name(), theirs(Hpa::default, SEED)),
    ];
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let heads = controllers.iter().map(|(name, _)| (*name).to_owned());
    let heads: Vec<String> = ["scene".to_owned()].into_iter().chain(heads).collect();
    let rule = vec!["---".to_owned(); heads.len()];
    let rows = scenes().into_iter().enumerate().map(|(at, (scene, _))| {
        let cells = controllers.iter().map(|(_, reports)| words(&reports[at]));
        let cells: Vec<String> = [scene.to_owned()].into_iter().chain(cells).collect();
        line(&cells)
    });
    [line(&heads), line(&rule)]
        .into_iter()
        .chain(rows)
        .collect()
}

#[test]
fn comparison_is_as_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scaling.md");
    let document = fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("a table begins");
    let (shown, after) = rest.split_once(END).expect("the table ends");
    let table = table();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, [before, BEGIN, &table, END, after].concat()).unwrap();
    } else {
        let words = "UPDATE_GOLDEN=1 writes it anew";
        assert_eq!(shown, table, "{}: {words}", path.display());
    }
}

/// What the table is there to show, as far as it does not hang on a seed.
#[test]
fn comparison_holds() {
    for seed in 0..10 {
        let ours: Vec<Report> = scenes().map(|(_, scene)| ours(scene, seed)).into();
        let literal = theirs(|| Literal, seed);
        let pm2 = theirs(|| Pm2, seed);
        let hpa = theirs(Hpa::default, seed);
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
