//! How requests to etcd went, by kind and by endpoint: for `/metrics`, and for people who wonder what is wrong.

use std::collections::BTreeMap;

use crate::{
    engine::{
        cluster::{
            calls::Under,
            rpc::{Body, Failure, Health, Reply},
        },
        tally::Histogram,
    },
    time::{Moment, Span},
};

/// Upper bounds, in milliseconds, of how long answers take.
const TRIP_MS: &[u64] = &[1, 5, 10, 50, 100, 500, 1_000, 5_000];
/// An endpoint that has failed for so long, and answered nothing meanwhile, is said to be down.
const DOWN_AFTER: Span = Span::secs(10);

/// Requests of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpFigures {
    /// From a question to its answer.
    pub took: Histogram,
    /// So many were answered with an error, or not at all.
    pub failures: u64,
}

impl Default for OpFigures {
    fn default() -> Self {
        Self {
            took: Histogram::new(TRIP_MS),
            failures: 0,
        }
    }
}

/// What is known of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointFigures {
    /// It answered last then.
    pub heard: Option<Moment>,
    /// Since when it has failed, and how it did so last; none: its last answer was one.
    pub fails: Option<(Moment, String)>,
    /// So many requests in a row have failed.
    pub failures: u32,
    /// What it said of itself last.
    pub health: Option<Health>,
    /// Of the cluster that it belongs to.
    pub cluster: Option<u64>,
}

impl EndpointFigures {
    /// Can it not be asked? One lost answer says nothing.
    pub fn is_down(&self, now: Moment) -> bool {
        let long = |(since, _): &(Moment, String)| since.after(DOWN_AFTER) <= now;
        self.failures > 1 && self.fails.as_ref().is_some_and(long)
    }
}

/// All of it; it begins at zero with each supervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// By kind of request.
    pub ops: BTreeMap<&'static str, OpFigures>,
    /// As configured.
    pub endpoints: Vec<EndpointFigures>,
}

impl Figures {
    pub(super) fn new(endpoints: usize) -> Self {
        Self {
            ops: BTreeMap::new(),
            endpoints: vec![EndpointFigures::default(); endpoints],
        }
    }

    /// Another number of endpoints: what is known of those before may be of others.
    pub(super) fn reconfigure(&mut self, endpoints: usize) {
        self.endpoints = vec![EndpointFigures::default(); endpoints];
    }

    /// Why this endpoint does not answer, if it does not.
    pub(super) fn failure(&self, endpoint: usize) -> Option<&str> {
        let fails = self.endpoints.get(endpoint)?.fails.as_ref();
        fails.map(|(_, why)| why.as_str())
    }

    /// A request that was sent so long ago has its answer, or will have none.
    pub(super) fn answered(
        &mut self,
        under: &Under,
        took: Span,
        result: &Result<Reply, Failure>,
        now: Moment,
    ) {
        let op = self.ops.entry(under.op).or_default();
        match result {
            Ok(_) => op.took.add(took),
            Err(_) => op.failures += 1,
        }
        let Some(endpoint) = self.endpoints.get_mut(under.endpoint) else {
            return;
        };
        match result {
            Ok(reply) => {
                endpoint.heard = Some(now);
                (endpoint.fails, endpoint.failures) = (None, 0);
                endpoint.cluster = Some(reply.from.cluster);
                if let Body::Status(health) = &reply.body {
                    endpoint.health = Some(health.clone());
                }
            }
            // It is there, and refused: that is an answer.
            Err(Failure::NoLease | Failure::Compacted | Failure::NoSpace) => {
                endpoint.heard = Some(now);
                (endpoint.fails, endpoint.failures) = (None, 0);
            }
            Err(failure) => {
                let since = endpoint.fails.as_ref().map_or(now, |(since, _)| *since);
                endpoint.fails = Some((since, failure.to_string()));
                endpoint.failures = endpoint.failures.saturating_add(1);
            }
        }
    }
}
