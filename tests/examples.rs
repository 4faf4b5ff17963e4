//! The examples of a cluster, as their readers run them: real members of etcd, real nodes, Python's standard library.

#[expect(dead_code, reason = "the rig serves the tests of the shell first")]
#[path = "etcd/rig.rs"]
mod etcd;
#[expect(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the rig serves the process tests first"
)]
#[path = "process/rig.rs"]
mod rig;

#[path = "examples/shop.rs"]
mod shop;

#[path = "examples/demo.rs"]
mod demo;
#[path = "examples/fencing.rs"]
mod fencing;
