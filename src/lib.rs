//! leasehold: a process supervisor. The map of the house is in `ARCHITECTURE.md`.
//!
//! ```text
//!  6  main.rs  cli/                argv in, exit code out
//!  5  driver/  keeper/             the two loops
//!  4  sys/  etcd/  http/  locks/  logs/  publish/   shells that do not know each other
//!  3  engine/                      pure state machines
//!  2  config/                      text -> checked settings
//!  1  id  time  exit  wire         words everyone uses
//! ```

pub mod cli;
pub mod config;
pub mod driver;
pub mod engine;
pub mod etcd;
pub mod exit;
pub mod http;
pub mod id;
pub mod keeper;
pub mod locks;
pub mod logs;
pub mod publish;
pub mod sys;
pub mod time;
pub mod wire;
