//! Three controllers to compare with, re-implemented from their documents, in the same plant.

use crate::{
    plant::{Phase, Plant},
    rng::Rng,
    scene::{Act, Kind, Report, Scene, Twist},
};

/// What a controller sees: shares of a core, smoothed over 5 s.
pub(crate) struct View {
    at: f64,
    /// Of ready workers.
    shares: Vec<f64>,
    starting: usize,
}

impl View {
    fn live(&self) -> usize {
        self.shares.len() + self.starting
    }

    fn mean(&self) -> f64 {
        self.shares.iter().sum::<f64>() / self.shares.len().max(1) as f64
    }
}

/// A controller says how many there should be.
pub(crate) trait Controller {
    fn name(&self) -> &'static str;
    /// It looks so often, in seconds.
    fn every(&self) -> u32;
    fn wants(&mut self, view: &View) -> usize;
}

/// Above 80 % one more, below 30 % one less, every 5 s.
pub(crate) struct Literal;

impl Controller for Literal {
    fn name(&self) -> &'static str {
        "literal threshold"
    }

    fn every(&self) -> u32 {
        5
    }

    fn wants(&mut self, view: &View) -> usize {
        match view.mean() {
            _ if view.shares.is_empty() => view.live(),
            mean if mean > 0.8 => view.live() + 1,
            mean if mean < 0.3 => view.live().saturating_sub(1),
            _ => view.live(),
        }
    }
}

/// pm2-autoscale with its defaults: the busiest above 30 % one more each 10 s, the mean below 5 % one less.
pub(crate) struct Pm2;

impl Controller for Pm2 {
    fn name(&self) -> &'static str {
        "pm2-autoscale"
    }

    fn every(&self) -> u32 {
        10
    }

    fn wants(&mut self, view: &View) -> usize {
        let busiest = view.shares.iter().copied().fold(0.0, f64::max);
        if busiest > 0.3 {
            view.live() + 1
        } else if !view.shares.is_empty() && view.mean() < 0.05 {
            view.live().saturating_sub(1)
        } else {
            view.live()
        }
    }
}

/// The horizontal pod autoscaler v2 with its defaults and a target of 80 %: a sync every 15 s, a tolerance of a tenth, up at most by the
/// larger of 100 % and four pods, down to the largest that was right within 300 s; who is not ready counts as idle when it would grow.
#[derive(Default)]
pub(crate) struct Hpa {
    past: Vec<(f64, usize)>,
}

impl Controller for Hpa {
    fn name(&self) -> &'static str {
        "HPA"
    }

    fn every(&self) -> u32 {
        15
    }

    fn wants(&mut self, view: &View) -> usize {
        let live = view.live();
        let right = if view.shares.is_empty() {
            live
        } else {
            Self::right(view)
        };
        self.past.push((view.at, right));
        self.past.retain(|(at, _)| view.at - at <= 300.0);
        let most = self.past.iter().map(|(_, n)| *n).max().unwrap_or(live);
        if right > live {
            right.min(live + live.max(4))
        } else {
            most.min(live)
        }
    }
}

impl Hpa {
    const TARGET: f64 = 0.8;

    fn right(view: &View) -> usize {
        let (live, sum) = (view.live() as f64, view.shares.iter().sum::<f64>());
        let ratio = view.mean() / Self::TARGET;
        if (ratio - 1.0).abs() <= 0.1 {
            return view.live();
        }
        if ratio < 1.0 || view.starting == 0 {
            return (view.shares.len() as f64 * ratio).ceil() as usize;
        }
        // Whoever is not ready counts as idle; if that turns the decision round, there is none.
        let filled = sum / live / Self::TARGET;
        if filled <= 1.1 {
            view.live()
        } else {
            (live * filled).ceil() as usize
        }
    }
}

/// Plays a scene of one fleet with a controller.
pub(crate) fn play(scene: Scene, mut controller: impl Controller, seed: u64) -> Report {
    let Scene {
        cores,
        demands,
        hogs,
        noise,
        begin,
        min,
        max,
        twists,
        until,
        ..
    } = scene;
    let (start, drain) = (demands[0].start, demands[0].drain);
    let mut plant = Plant::new(cores, demands, noise, 0.0, Rng::new(seed));
    plant.hogs = hogs;
    let mut report = Report::default();
    // Of each worker: what was read last, its smoothed share, and when it is ready or gone.
    let mut known: Vec<(i32, f64, f64, f64)> = Vec::new();
    let mut pid = 0;
    for _ in 0..begin[0] {
        pid += 1;
        plant.start(pid, 0);
        if let Some(worker) = plant.workers.get_mut(&pid) {
            worker.phase = Phase::Ready;
        }
        known.push((pid, 0.0, 0.0, f64::INFINITY));
    }
    for second in 1..=until as u32 {
        let now = f64::from(second);
        plant.advance(now);
        for (pid, read, share, due) in &mut known {
            if *due <= now {
                *due = f64::INFINITY;
                match plant.workers.get_mut(pid) {
                    Some(worker) if worker.phase == Phase::Starting => worker.phase = Phase::Ready,
                    _ => drop(plant.workers.remove(pid)),
                }
            }
            if let Some(cpu) = plant.read(*pid) {
                let cpu = cpu as f64 / 1e9;
                let used = (cpu - *read).min(1.0);
                *read = cpu;
                *share += (1.0 - (-1.0_f64 / 5.0).exp()) * (used - *share);
            }
        }
        let stuck = |(at, twist): &&(f64, Twist)| *at == now && *twist == Twist::Sticks;
        if twists.iter().any(|twist| stuck(&twist)) {
            let mut ready = plant.workers.values_mut();
            if let Some(worker) = ready.find(|worker| worker.phase == Phase::Ready) {
                worker.stuck = true;
            }
        }
        report.queue = report.queue.max(plant.queues[0]);
        if second % controller.every() != 0 {
            continue;
        }
        let is = |pid: &i32, phase| plant.workers.get(pid).is_some_and(|w| w.phase == phase);
        let ready = known.iter().filter(|known| is(&known.0, Phase::Ready));
        let view = View {
            at: now,
            shares: ready.map(|known| known.2).collect(),
            starting: plant.count(0, Phase::Starting),
        };
        let (live, wants) = (view.live(), controller.wants(&view));
        let wants = wants.clamp(min as usize, max as usize);
        for _ in live..wants {
            pid += 1;
            plant.start(pid, 0);
            known.push((pid, 0.0, 0.0, now + start));
        }
        // The newest first.
        for (pid, _, _, due) in known.iter_mut().rev() {
            if plant.live(0) <= wants {
                break;
            }
            if let Some(worker) = plant.workers.get_mut(pid)
                && worker.phase != Phase::Draining
            {
                worker.phase = Phase::Draining;
                *due = now + drain;
            }
        }
        if wants != live {
            let kind = if wants > live {
                Kind::Grow
            } else {
                Kind::Shrink
            };
            report.acts.push(Act {
                at: now,
                fleet: 0,
                kind,
                by: wants.abs_diff(live),
                live: wants,
            });
        }
        report.peak = report.peak.max(wants);
    }
    report.last = plant.live(0);
    report.lost = plant.lost[0];
    report
}
