//! Faults, with real members of etcd, real nodes, and a judge who looks from outside: of a singleton there are never two, and soon
//! one again.
//!
//! Each row of the table in docs/faults.md is a test. They want the machine for themselves: `--test-threads=1`. Rows that take long, or show
//! what others show too, run with `LEASEHOLD_FAULTS_ALL=1`.

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

#[path = "faults/etcdctl.rs"]
mod etcdctl;
#[path = "process/freeze.rs"]
mod freeze;
#[path = "faults/load.rs"]
mod load;
#[path = "faults/oracle.rs"]
mod oracle;
#[path = "faults/proxy.rs"]
mod proxy;
#[path = "process/wall.rs"]
mod wall;
#[path = "faults/world.rs"]
mod world;

#[path = "faults/chaos.rs"]
mod chaos;
#[path = "faults/commands.rs"]
mod commands;
#[path = "faults/jobs.rs"]
mod jobs;
#[path = "faults/members.rs"]
mod members;
#[path = "faults/network.rs"]
mod network;
#[path = "faults/operators.rs"]
mod operators;
#[path = "faults/processes.rs"]
mod processes;
#[path = "faults/warm.rs"]
mod warm;
