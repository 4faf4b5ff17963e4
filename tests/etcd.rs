//! The shell against real servers: what the engine is promised of etcd, and of what happens when etcd does not answer.
//!
//! Each test has a cluster of its own, in memory where there is a place for that; nothing is waited for but a condition with a bound.

mod conformance;

#[path = "etcd/client.rs"]
mod client;
#[expect(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the rig serves the process tests first"
)]
#[path = "process/rig.rs"]
mod daemon;
#[path = "etcd/proxy.rs"]
mod proxy;
#[path = "etcd/real.rs"]
mod real;
#[path = "etcd/rig.rs"]
mod rig;

#[path = "etcd/auth.rs"]
mod auth;
#[path = "etcd/capacity.rs"]
mod capacity;
#[path = "etcd/nodes.rs"]
mod nodes;
#[path = "etcd/records.rs"]
mod records;
#[path = "etcd/shell.rs"]
mod shell;
#[path = "etcd/silence.rs"]
mod silence;
#[path = "etcd/tls.rs"]
mod tls;

mod like_any_etcd {
    crate::conformance::of_one!(crate::real::of_one);
    crate::conformance::of_three!(crate::real::of_three);
}
