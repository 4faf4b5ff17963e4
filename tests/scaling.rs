//! Scaling by load: the real engine and the real keeper core in a simulated plant: scenarios with their bounds, and
//! laws that hold under any load.
//!
//! One seed, one story. `SCALING_SEED=7` replays one seed of the named tests with its trace; `SCALING_SEEDS=1000` widens them.
//! How other controllers do in the same plant is in `docs/scaling.md`, and compared with what is there.

#[path = "sim/agenda.rs"]
mod agenda;
#[path = "scaling/baselines.rs"]
mod baselines;
#[path = "scaling/comparison.rs"]
mod comparison;
#[path = "scaling/fleets.rs"]
mod fleets;
#[path = "scaling/laws.rs"]
mod laws;
#[path = "scaling/plant.rs"]
mod plant;
#[path = "scaling/rig.rs"]
mod rig;
#[path = "sim/rng.rs"]
mod rng;
#[path = "scaling/scenarios.rs"]
mod scenarios;
#[path = "scaling/scene.rs"]
mod scene;
