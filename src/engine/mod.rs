//! Decides. No clock, no I/O, no async, no logger, no descriptor, no hash order: the same seed and the same events give the same
//! effects, byte for byte.
//!
//! The contract: [`Supervisor::step`] takes one [`Event`] and appends [`Effect`]s; [`Supervisor::deadline`] says when a
//! `Tick` is due; [`Supervisor::status`] is the picture for people. A machine's whole memory is its row: whatever a step changes is part
//! of the messages that it sends, so a supervisor that dies after any of them is rebuilt as it was.
//!
//! The life of a slot:
//!
//! ```text
//!          ┌────────────────────────────── stopped on purpose ──────────────────────────────┐
//!          ▼                                                                                 │
//!       Vacant ─▶ Preparing ─▶ Spawning ─▶ Starting ─▶ Running ─▶ Deregistering ─▶ PreStop ─▶ Draining ─▶ Killing ─▶ Clearing
//!                    ▲             │           │           │                                                          │
//!                    │             └───────────┴───────────┴───────── the leader ended ──────────────────────────────▶│
//!                 BackingOff ◀─────────────────────── to be restarted ◀───────────────────────────────────────────────┤
//!                 Failed     ◀─────────────────────── too many failures ◀─────────────────────────────────────────────┤
//!                 Done       ◀─────────────────────── the policy says no ◀────────────────────────────────────────────┘
//! ```

mod autoscale;
pub mod book;
mod bookkeeping;
pub mod cluster;
pub mod command;
mod cron;
mod drain;
pub mod effect;
mod ending;
pub mod event;
mod fleet;
pub mod gate;
mod host;
pub mod intent;
mod jitter;
mod job;
pub mod lease;
pub mod load;
mod membership;
mod meter;
mod operate;
mod picture;
mod places;
pub mod publish;
mod records;
pub mod release;
pub mod restart;
mod rollout;
mod roster;
mod rows;
pub mod scale;
mod sheet;
mod slot;
mod source;
mod spawn;
pub mod status;
pub mod supervisor;
pub mod tally;
mod ticks;
mod units;
mod vigil;
mod vitals;
pub mod weights;
mod words;

pub use command::{Command, Denial, Reply};
pub use effect::{Effect, Effects, Transition};
pub use event::Event;
pub use intent::Intent;
pub use membership::PASSING;
pub use publish::agent_name;
pub use spawn::{Facts, lock_name, log_pipes, socket_name, source_pipe};
pub use status::Status;
pub use supervisor::Supervisor;
