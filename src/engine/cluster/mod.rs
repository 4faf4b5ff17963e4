//! The part of the engine that knows of a cluster.

pub mod rpc;
