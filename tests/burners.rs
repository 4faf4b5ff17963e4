//! Real processor time: workers that burn what is asked of them, on a machine that somebody else may want too. One test at a time, and
//! nothing beside them; what needs simulated time is in `scaling`.
//!
//! A worker may use a tenth of a core (but on the machine of one core), so that a fleet of nine leaves most of two cores idle.

#[expect(dead_code, reason = "the rig serves the process tests first")]
#[path = "process/rig.rs"]
mod rig;

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command},
    sync::{Mutex, MutexGuard},
};

use leasehold::{sys::clock, time::Span};
use rig::{Mode, Rig, both_ways, pause, until};
use rustix::thread::{CpuSet, sched_getaffinity};
use serde_json::Value;

both_ways!(a_step, a_neighbour);

/// Burners disturb each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Of one worker, in cores.
const CORES: f64 = 0.1;

/// A fleet that follows the load, as it is seen from outside.
struct Scene {
    rig: Rig,
    /// Sizes at which it was seen, without repetitions.
    sizes: Vec<usize>,
    /// The decisions so far that were no `fits`, by time.
    decisions: BTreeMap<String, Value>,
}

impl Scene {
    fn new(rig: Rig, cores: f64, load: f64, scale: &str) -> Self {
        rig.configure(&format!(
            r#"
            [fleet.web]
            command = [{{worker}}, "burn", "{{notes}}", "{cores}"]
            ready = "notify"
            [fleet.web.scale]
            worker_cores = "{cores}"
            warmup = "2s"
            down_window = "15s"
            {scale}
        "#
        ));
        let mut scene = Self {
            rig,
            sizes: Vec::new(),
            decisions: BTreeMap::new(),
        };
        scene.load(load);
        scene.rig.start_settled();
        scene
    }

    fn load(&self, cores: f64) {
        let (new, load) = (self.rig.path("notes/new"), self.rig.path("notes/load"));
        fs::write(&new, cores.to_string()).unwrap();
        fs::rename(new, load).unwrap();
    }

    /// One look; how many are wanted, and how many serve.
    fn look(&mut self) -> (usize, usize) {
        let status = self.rig.status();
        let fleet = status.fleet("web");
        let size = fleet["desired"].as_u64().unwrap() as usize;
        if self.sizes.last() != Some(&size) {
            self.sizes.push(size);
        }
        let text = self.rig.ok(&["scale", "web", "--explain", "--json"]);
        let all: Value = serde_json::from_str(&text).unwrap();
        for one in all["decisions"].as_array().unwrap() {
            if one["verdict"] != "fits" {
                let at = one["at"].as_str().unwrap().to_owned();
                self.decisions.insert(at, one.clone());
            }
        }
        (size, fleet["ready"].as_u64().unwrap() as usize)
    }

    fn said(&self, verdict: &str, reason: &str) -> usize {
        let said = |one: &&Value| one["verdict"] == verdict && one["reason"] == reason;
        self.decisions.values().filter(said).count()
    }

    fn until(&mut self, what: &str, seconds: u64, mut done: impl FnMut(&mut Self) -> bool) {
        until(what, seconds * 1_000, || {
            if done(self) {
                return Ok(());
            }
            pause(300);
            Err(self.story())
        });
    }

    /// Looks for so long; a condition that must hold at every look.
    fn watch(&mut self, seconds: u64, mut holds: impl FnMut(&Self) -> bool) {
        let end = clock::now().after(Span::secs(seconds));
        while clock::now() < end {
            self.look();
            assert!(holds(self), "{}", self.story());
            pause(300);
        }
    }

    fn story(&self) -> String {
        let decisions: Vec<String> = self.decisions.values().map(Value::to_string).collect();
        format!("sizes {:?}\n{}", self.sizes, decisions.join("\n"))
    }

    fn end(mut self) {
        self.rig.drain(20_000);
        self.rig.assert_nothing_left();
    }
}

/// Half a core of work after a twentieth: eight workers, by doubling; and back.
fn a_step(rig: Rig) {
    let _alone = alone();
    let mut scene = Scene::new(rig, CORES, 0.05, "max = 16");
    scene.watch(12, |scene| scene.sizes == [1]);
    scene.load(0.5);
    scene.until("it grows", 180, |scene| {
        scene.look() >= (7, 7) && scene.look().1 >= 7
    });
    // It is enough: nobody comes, and nobody goes.
    scene.watch(12, |scene| scene.sizes.last().is_some_and(|n| *n <= 10));
    let rises = scene.sizes.windows(2).all(|pair| pair[0] < pair[1]);
    assert!(rises && scene.sizes.len() <= 7, "{}", scene.story());
    let peak = *scene.sizes.last().unwrap();
    scene.load(0.2);
    scene.until("it shrinks", 240, |scene| scene.look().0 <= 4);
    let falls: Vec<usize> = scene
        .sizes
        .iter()
        .copied()
        .skip_while(|n| *n < peak)
        .collect();
    for pair in falls.windows(2) {
        let by = pair[0].saturating_sub(pair[1]);
        assert!((1..=2).contains(&by), "{}", scene.story());
    }
    scene.watch(8, |scene| scene.sizes.last() >= Some(&3));
    scene.end();
}

/// Five seconds of twice the load are no reason.
#[test]
fn a_spike() {
    let _alone = alone();
    let rig = Rig::new(Mode::Group).expect("a process group is to be had everywhere");
    let mut scene = Scene::new(rig, CORES, 0.05, "max = 16");
    scene.watch(7, |scene| scene.sizes == [1]);
    scene.load(0.1);
    scene.watch(5, |scene| scene.sizes == [1]);
    scene.load(0.05);
    scene.watch(15, |scene| scene.sizes == [1]);
    scene.end();
}

/// Busy loops of somebody else, ended whatever happens.
struct Hogs(Vec<Child>);

impl Hogs {
    fn new(count: usize) -> Self {
        let spin = || {
            Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .spawn()
                .unwrap()
        };
        Self((0..count).map(|_| spin()).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            hog.kill().unwrap();
            hog.wait().unwrap();
        }
    }
}

/// Somebody takes all processors: what our workers use less means nothing, and more of them would get no more.
fn a_neighbour(rig: Rig) {
    let _alone = alone();
    let scale = "min = 3\nmax = 8";
    let mut scene = Scene::new(rig, CORES, 0.21, scale);
    scene.watch(10, |scene| scene.sizes == [3]);
    let cores = std::thread::available_parallelism().unwrap().get();
    let hogs = Hogs::new(cores * 3);
    // The fleet alone is pressed now: what it asks for is what it waits for.
    scene.load(0.29);
    scene.watch(25, |scene| scene.sizes == [3]);
    scene.until("it says why", 30, |scene| {
        scene.look();
        scene.said("blocked", "host_cpu") > 0
    });
    drop(hogs);
    scene.until("it grows when there is something to give", 90, |scene| {
        scene.look().0 > 3
    });
    scene.end();
}

/// One of two burns all it can and does nothing: it does not count, and one more comes, once.
#[test]
fn a_stuck_worker() {
    let _alone = alone();
    let rig = Rig::new(Mode::Group).expect("a process group is to be had everywhere");
    let scale = "min = 2\nmax = 8\nstuck_after = \"5s\"";
    let mut scene = Scene::new(rig, CORES, 0.06, scale);
    scene.watch(6, |scene| scene.sizes == [2]);
    fs::write(scene.rig.path("notes/stuck"), "1").unwrap();
    scene.until("another one comes", 90, |scene| scene.look() == (3, 3));
    scene.watch(15, |scene| scene.sizes == [2, 3]);
    let events = scene.rig.ok(&["events"]);
    let says_so = |line: &str| line.contains("web/1 ") && line.contains("gets nothing done");
    assert!(events.lines().any(says_so), "{events}");
    scene.end();
}

/// One core, and a worker that takes nearly all of it: a second one would take it from the first.
#[test]
fn one_core() {
    let _alone = alone();
    let mut rig = Rig::new(Mode::Group).expect("a process group is to be had everywhere");
    let ours = sched_getaffinity(None).unwrap();
    let core = (0..CpuSet::MAX_CPU).find(|cpu| ours.is_set(*cpu)).unwrap();
    let core = core.to_string();
    rig.wrapper = ["taskset", "-c", &core].map(str::to_owned).to_vec();
    let mut scene = Scene::new(rig, 1.0, 0.95, "max = 4");
    scene.until("it is blocked", 90, |scene| {
        scene.look();
        scene.said("blocked", "host_cpu") >= 2
    });
    assert_eq!(scene.sizes, [1], "{}", scene.story());
    scene.end();
}
