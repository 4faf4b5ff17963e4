//! The plant: a machine with so many cores, load that comes in core-seconds a second, workers that are slow to start and to end.
//!
//! Pure physics: who starts and ends workers is somebody else's, so that several controllers can be tried on the same one.
//! Every fleet has a queue of at most 20 core-seconds; what does not fit is lost. Each of its `r` ready workers wants
//! `min(1, (L + Q) / r)` cores, and the cores are shared so that the smallest wish is met first (max-min).

use std::collections::BTreeMap;

use crate::rng::Rng;

/// What a cgroup weighs of which nobody said anything.
const WEIGHT: f64 = 100.0;
/// What a fleet's queue holds, in core-seconds.
pub(crate) const QUEUE_MAX: f64 = 20.0;
/// What one connection costs, in core-seconds.
pub(crate) const CONNECTION: f64 = 0.01;
/// Over so many seconds the kernel averages what waits (PSI avg10).
const PRESSURE_TAU: f64 = 10.0;

/// Load over time: core-seconds a second, at seconds since the begin of the story; before that it is as then.
pub(crate) type Load = Box<dyn Fn(f64) -> f64>;

/// What a fleet has to do, and what its workers are like.
pub(crate) struct Demand {
    pub(crate) load: Load,
    /// From spawn to ready.
    pub(crate) start: f64,
    /// What a worker burns meanwhile, in cores.
    pub(crate) boot: f64,
    /// From SIGTERM to the end.
    pub(crate) drain: f64,
    /// Beside other fleets, where processor time goes by fleet.
    pub(crate) weight: f64,
}

impl Demand {
    /// The plant of the table: 3 s at half a core to start, 5 s to end.
    pub(crate) fn of(load: impl Fn(f64) -> f64 + 'static) -> Self {
        Self {
            load: Box::new(load),
            start: 3.0,
            boot: 0.5,
            drain: 5.0,
            weight: 1.0,
        }
    }
}

/// Where a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Ready,
    Draining,
}

#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) fleet: usize,
    pub(crate) phase: Phase,
    /// It takes no work and burns a core.
    pub(crate) stuck: bool,
    /// Core-seconds that it has used.
    used: f64,
    /// Of these the last look has seen so many ...
    seen: f64,
    /// ... and shown so many, with its error.
    shown: f64,
    /// Percentage of time that it waits for a processor.
    pressure: f64,
    /// What its cgroup weighs.
    weight: f64,
}

pub(crate) struct Plant {
    pub(crate) cores: f64,
    pub(crate) demands: Vec<Demand>,
    /// `(from, to, how many)`: somebody else's processes, each of which wants a core.
    pub(crate) hogs: Vec<(f64, f64, u32)>,
    /// Is there a controller that knows what workers' cgroups weigh?
    pub(crate) weighted: bool,
    /// Standard deviation of what a look at a worker shows.
    pub(crate) noise: f64,
    /// Nobody asks for anything before.
    pub(crate) opens: f64,
    pub(crate) workers: BTreeMap<i32, Worker>,
    pub(crate) queues: Vec<f64>,
    /// Core-seconds that found a full queue.
    pub(crate) lost: Vec<f64>,
    /// Core-seconds that each fleet has used.
    pub(crate) used: Vec<f64>,
    now: f64,
    /// Core-seconds that all used since the last look at the machine, and when that was.
    busy: f64,
    looked: f64,
    pressure: f64,
    rng: Rng,
}

impl Plant {
    pub(crate) fn new(cores: f64, demands: Vec<Demand>, noise: f64, begin: f64, rng: Rng) -> Self {
        let fleets = demands.len();
        Self {
            cores,
            demands,
            hogs: Vec::new(),
            weighted: false,
            noise,
            opens: begin,
            workers: BTreeMap::new(),
            queues: vec![0.0; fleets],
            lost: vec![0.0; fleets],
            used: vec![0.0; fleets],
            now: begin,
            busy: 0.0,
            looked: begin,
            pressure: 0.0,
            rng,
        }
    }

    pub(crate) fn start(&mut self, pid: i32, fleet: usize) {
        let worker = Worker {
            fleet,
            phase: Phase::Starting,
            stuck: false,
            used: 0.0,
            seen: 0.0,
            shown: 0.0,
            weight: WEIGHT,
            pressure: 0.0,
        };
        self.workers.insert(pid, worker);
    }

    /// So many of this fleet are in this phase.
    pub(crate) fn count(&self, fleet: usize, phase: Phase) -> usize {
        let same = |worker: &&Worker| worker.fleet == fleet && worker.phase == phase;
        self.workers.values().filter(same).count()
    }

    /// So many are there and not on their way out.
    pub(crate) fn live(&self, fleet: usize) -> usize {
        self.count(fleet, Phase::Starting) + self.count(fleet, Phase::Ready)
    }

    /// So many connections wait.
    pub(crate) fn connections(&self, fleet: usize) -> u32 {
        (self.queues[fleet] / CONNECTION).round() as u32
    }

    /// The machine stands still until then: nobody works, nobody waits, and the clock goes on.
    pub(crate) fn skip(&mut self, to: f64) {
        self.now = self.now.max(to);
        self.looked = self.now;
        self.busy = 0.0;
    }

    /// Lets time pass. Nothing but load and hogs changes meanwhile.
    pub(crate) fn advance(&mut self, to: f64) {
        while self.now + 1e-9 < to {
            // Loads change at whole seconds.
            let next = (self.now + 1e-9).floor() + 1.0;
            let until = next.min(to);
            self.pass(until - self.now);
            self.now = until;
        }
    }

    fn pass(&mut self, dt: f64) {
        let serving: Vec<f64> = (0..self.demands.len())
            .map(|fleet| {
                let serves = |w: &&Worker| w.fleet == fleet && w.phase == Phase::Ready && !w.stuck;
                self.workers.values().filter(serves).count() as f64
            })
            .collect();
        let open = if self.now < self.opens { 0.0 } else { 1.0 };
        let at = self.now.max(0.0);
        let loads: Vec<f64> = self.demands.iter().map(|d| open * (d.load)(at)).collect();
        let hogs = self
            .hogs
            .iter()
            .filter(|(from, to, _)| (*from..*to).contains(&self.now));
        let hogs: u32 = hogs.map(|(_, _, many)| *many).sum();
        let mut wishes: Vec<(f64, f64)> = self
            .workers
            .values()
            .map(|worker| {
                let fleet = worker.fleet;
                let wish = match worker.phase {
                    Phase::Starting => self.demands[fleet].boot,
                    Phase::Ready if worker.stuck => 1.0,
                    Phase::Ready => ((loads[fleet] + self.queues[fleet]) / serving[fleet]).min(1.0),
                    Phase::Draining => 0.0,
                };
                let weight = if self.weighted { worker.weight } else { WEIGHT };
                (wish, weight)
            })
            .collect();
        wishes.extend((0..hogs).map(|_| (1.0, WEIGHT)));
        let granted = fair(&wishes, self.cores);
        let waits = wishes
            .iter()
            .zip(&granted)
            .any(|((wish, _), got)| got + 1e-9 < *wish);
        let aim = if waits { 100.0 } else { 0.0 };
        self.pressure += (1.0 - (-dt / PRESSURE_TAU).exp()) * (aim - self.pressure);
        self.busy += granted.iter().sum::<f64>() * dt;
        let mut served = vec![0.0; self.demands.len()];
        let decay = 1.0 - (-dt / PRESSURE_TAU).exp();
        let wished = wishes.iter().map(|(wish, _)| wish);
        for ((worker, got), wish) in self.workers.values_mut().zip(&granted).zip(wished) {
            worker.used += got * dt;
            let aim = if *wish > 0.0 {
                100.0 * (1.0 - got / wish)
            } else {
                0.0
            };
            worker.pressure += decay * (aim - worker.pressure);
            self.used[worker.fleet] += got * dt;
            if worker.phase == Phase::Ready && !worker.stuck {
                served[worker.fleet] += got * dt;
            }
        }
        for (fleet, load) in loads.iter().enumerate() {
            let queue = (self.queues[fleet] + load * dt - served[fleet]).max(0.0);
            self.lost[fleet] += (queue - QUEUE_MAX).max(0.0);
            self.queues[fleet] = queue.min(QUEUE_MAX);
            if self.queues[fleet] < 1e-6 {
                self.queues[fleet] = 0.0;
            }
        }
    }

    /// Its cgroup is to weigh so much.
    pub(crate) fn weigh(&mut self, pid: i32, weight: f64) {
        if let Some(worker) = self.workers.get_mut(&pid) {
            worker.weight = weight;
        }
    }

    /// What a look at one worker shows, with its error: processor time so far, in nanoseconds.
    pub(crate) fn read(&mut self, pid: i32) -> Option<u64> {
        let error = self.noise * gauss(&mut self.rng);
        let worker = self.workers.get_mut(&pid)?;
        worker.shown += (worker.used - worker.seen) * (1.0 + error).max(0.0);
        worker.seen = worker.used;
        Some((worker.shown * 1e9) as u64)
    }

    /// How much of the time it waits for a processor, in hundredths of a percent.
    pub(crate) fn pressure_of(&self, pid: i32) -> Option<u32> {
        Some((self.workers.get(&pid)?.pressure * 100.0).max(0.0) as u32)
    }

    /// What a worker has done so far, by its own word.
    pub(crate) fn done(&self, pid: i32) -> Option<u64> {
        let worker = self.workers.get(&pid)?;
        Some(if worker.stuck {
            0
        } else {
            (worker.used * 1e3) as u64
        })
    }

    /// Cores that nobody used since the last look, and the percentage of time in which somebody waited for one.
    pub(crate) fn look(&mut self) -> Option<(f64, f64)> {
        let (busy, since) = (self.busy, self.now - self.looked);
        self.busy = 0.0;
        self.looked = self.now;
        (since > 0.2).then(|| ((self.cores - busy / since).max(0.0), self.pressure))
    }
}

/// Shares `all` among `(wish, weight)`: nobody gets more than the wish, and what one does not want is for the others.
fn fair(wishes: &[(f64, f64)], all: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wishes.len()).collect();
    order.sort_by(|a, b| {
        let by_weight = |at: usize| wishes[at].0 / wishes[at].1;
        by_weight(*a).total_cmp(&by_weight(*b))
    });
    let mut weights: f64 = wishes.iter().map(|(_, weight)| weight).sum();
    let mut left = all;
    let mut granted = vec![0.0; wishes.len()];
    for at in order {
        let (wish, weight) = wishes[at];
        granted[at] = wish.min(left * weight / weights);
        left -= granted[at];
        weights -= weight;
    }
    granted
}

/// One draw from the normal distribution (Box and Muller 1958).
pub(crate) fn gauss(rng: &mut Rng) -> f64 {
    let mut uniform = || (rng.next() >> 11) as f64 / (1_u64 << 53) as f64;
    let (a, b) = (1.0 - uniform(), uniform());
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_shared_so_that_the_smallest_wish_is_met_first() {
        assert_eq!(fair(&[(0.5, 1.0), (0.2, 1.0)], 4.0), [0.5, 0.2]);
        assert_eq!(
            fair(&[(1.0, 1.0), (0.2, 1.0), (1.0, 1.0)], 1.0),
            [0.4, 0.2, 0.4]
        );
        assert_eq!(fair(&[(3.0, 1.0), (3.0, 3.0)], 4.0), [1.0, 3.0]);
    }

    #[test]
    fn a_queue_fills_and_the_rest_is_lost() {
        let mut plant = Plant::new(8.0, vec![Demand::of(|_| 3.0)], 0.0, 0.0, Rng::new(1));
        plant.start(1, 0);
        plant.workers.get_mut(&1).unwrap().phase = Phase::Ready;
        plant.advance(5.0);
        assert!((plant.queues[0] - 10.0).abs() < 1e-6, "{}", plant.queues[0]);
        plant.advance(15.0);
        assert!((plant.lost[0] - 10.0).abs() < 1e-6, "{}", plant.lost[0]);
        assert_eq!(plant.read(1).unwrap() / 1_000_000, 15_000);
        assert!((plant.look().unwrap().0 - 7.0).abs() < 1e-6);
    }
}
