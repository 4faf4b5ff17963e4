//! Real processes: what a person, a balancer and a worker see of a daemon that is killed, frozen, filled up and reloaded.
//!
//! Most tests run twice: with cgroups, and with `--no-cgroup`. Each has a daemon of its own; nothing is waited for but a condition
//! with a bound. `LEASEHOLD_TEST_ROUNDS` raises how often the supervisor is killed.

#[path = "process/rig.rs"]
mod rig;

#[path = "metrics/lint.rs"]
mod lint;

#[path = "process/abuse.rs"]
mod abuse;
#[path = "process/client.rs"]
mod client;
#[path = "process/clock.rs"]
mod clock;
#[path = "process/containers.rs"]
mod containers;
#[path = "process/cron.rs"]
mod cron;
#[path = "process/deadlines.rs"]
mod deadlines;
#[path = "process/death.rs"]
mod death;
#[path = "process/freeze.rs"]
mod freeze;
#[path = "process/hang.rs"]
mod hang;
#[path = "process/health.rs"]
mod health;
#[path = "process/holds.rs"]
mod holds;
#[path = "process/jobs.rs"]
mod jobs;
#[path = "process/journal.rs"]
mod journal;
#[path = "process/lock.rs"]
mod lock;
#[path = "process/logs.rs"]
mod logs;
#[path = "process/metrics.rs"]
mod metrics;
#[path = "process/nest.rs"]
mod nest;
#[path = "process/onlookers.rs"]
mod onlookers;
#[path = "process/pages.rs"]
mod pages;
#[path = "process/places.rs"]
mod places;
#[path = "process/publish.rs"]
mod publish;
#[path = "process/release.rs"]
mod release;
#[path = "process/reload.rs"]
mod reload;
#[path = "process/scaling.rs"]
mod scaling;
#[path = "process/singletons.rs"]
mod singletons;
#[path = "process/spawn.rs"]
mod spawn;
#[path = "process/stop.rs"]
mod stop;
#[path = "process/survival.rs"]
mod survival;
#[path = "process/terminal.rs"]
mod terminal;
#[path = "process/traffic.rs"]
mod traffic;
#[path = "process/wall.rs"]
mod wall;
#[path = "process/warm.rs"]
mod warm;
