//! How this node stands in its cluster: what is said of it there, and what is told of that here.

use crate::{
    engine::{
        cluster::{
            Cluster, FAREWELL,
            calls::Desk,
            census::Own,
            docket::{Jobs, Tick, Verdict},
            read_of,
            rpc::{CallId, Failure, LeaseId, Order, Reply},
            session::Session,
        },
        status::ClusterStatus,
    },
    time::{Moment, Stamp},
};

/// What the cluster knows of the node and the day.
#[derive(Clone, Debug, Default)]
pub(super) struct Scene {
    pub(super) wall: Stamp,
    /// Who keeps the node empty.
    pub(super) drained: Option<String>,
}

impl Cluster {
    /// Who belongs to the cluster is known, or was written down.
    pub(super) fn counted(
        &mut self,
        call: CallId,
        result: Result<Reply, Failure>,
        now: Moment,
        out: &mut Vec<Order>,
    ) {
        let read = read_of(result).ok().filter(|(_, held, _)| *held);
        let read = read.map(|(_, _, read)| read);
        let endpoint = self.session.favourite();
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        self.census
            .answered(call, read, self.scene.wall, endpoint, &mut desk);
    }

    /// Runs of jobs are claimed, and their ends written down.
    pub(super) fn tend_jobs(&mut self, jobs: &Jobs, now: Moment, out: &mut Vec<Order>) {
        let stamp = self.session.stamp();
        let Some(stamp) = stamp else { return };
        // Whoever leaves begins nothing.
        let farewell = self.leaves_until.map(|_| Jobs {
            disputes: Vec::new(),
            fates: jobs.fates.clone(),
        });
        let jobs = farewell.as_ref().unwrap_or(jobs);
        let endpoint = self.session.favourite();
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        self.docket.tend(jobs, &stamp, endpoint, &mut desk);
    }

    pub(super) fn docketed(
        &mut self,
        call: CallId,
        result: Result<Reply, Failure>,
        now: Moment,
        out: &mut Vec<Order>,
    ) {
        let result = read_of(result).ok().map(|(_, held, read)| (held, read));
        let endpoint = self.session.favourite();
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        if self.docket.answered(call, result, endpoint, &mut desk) {
            self.restamp(now);
        }
    }

    /// Whoever leaves has so long to write down what ended; then he must give his lease back.
    pub(super) fn writes_until(&self) -> Option<Moment> {
        let half = FAREWELL.as_nanos() / 2;
        let until = self.leaves_until?;
        Some(Moment(until.0.saturating_sub(half)))
    }

    /// Runs of ours of which etcd does not know the end.
    pub(in crate::engine) fn open_runs(&self) -> Vec<Tick> {
        self.docket.open().cloned().collect()
    }

    /// What came of runs that were to start.
    pub(in crate::engine) fn verdicts(&mut self) -> Vec<(Tick, Verdict)> {
        self.docket.verdicts()
    }

    /// Whoever leaves in order says so.
    pub(super) fn take_leave(&mut self, now: Moment, out: &mut Vec<Order>) {
        let created = self.session.created();
        let Some(created) = created.filter(|_| self.leaves_until.is_some()) else {
            return;
        };
        let endpoint = self.session.favourite();
        let own = own(&self.session, &self.scene, created);
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        self.census
            .take_leave(&own, self.scene.wall, endpoint, &mut desk);
    }

    /// What is said of us, and what the wall clock shows, from now on.
    pub(in crate::engine) fn see(&mut self, wall: Stamp, drained: Option<&str>) {
        self.scene = Scene {
            wall,
            drained: drained.map(str::to_owned),
        };
    }

    /// What our keys hang on, while it is renewed.
    pub(in crate::engine) fn lease_in_force(&self) -> Option<LeaseId> {
        self.session.lease().filter(|_| self.session.is_open())
    }

    /// What our keys hang on, renewed or not, and whom to ask about it.
    pub(in crate::engine) fn lease_to_give_back(&self) -> Option<(LeaseId, usize)> {
        Some((self.session.lease()?, self.session.favourite()))
    }

    /// For people and programs.
    pub(in crate::engine) fn status(&self, now: Moment) -> ClusterStatus {
        let verified = self.session.verified();
        let expires = verified.map(|(sent, ttl)| sent.boottime.after(ttl));
        ClusterStatus {
            name: self.membership.cluster.clone(),
            state: self.session.word(),
            why: self.waits.clone().filter(|_| !self.session.is_open()),
            lease: self.session.lease(),
            ttl: self.session.ttl(),
            expires_in: expires.map(|at| now.until(at)),
            margin: self.session.margin(),
            id: self.session.pin.map(|pin| pin.cluster),
            epoch: self.membership.epoch,
            nodes: self.census.counts(),
            figures: self.figures.clone(),
            endpoints: Vec::new(),
            concerns: Vec::new(),
        }
    }
}

/// What is to be said of this node.
pub(super) fn own<'a>(session: &'a Session, scene: &'a Scene, created: i64) -> Own<'a> {
    Own {
        key: &session.identity.key,
        created,
        version: &session.identity.card.version,
        drained: scene.drained.as_deref(),
    }
}
