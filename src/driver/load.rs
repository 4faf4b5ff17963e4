//! What scaled fleets need of the world: measurements, sources of numbers, and a knock at the door of one that sleeps.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{io::Interest, io::unix::AsyncFd};

use crate::{
    driver::{
        boot::Request,
        inbox::Inbox,
        link::watched,
        probe,
        run::Driver,
        sampler::{Order, Subject, inode_of},
    },
    engine::{load::SampleOrder, source_pipe, weights::Weighed},
    id::FleetName,
    sys::{cgroup::leaf_name, pipe},
    time::Span,
    wire::{Containment, Header, Op, Process, RowKey},
};

/// A source that says more has something else to say.
const NUMBER_MAX: f64 = 1e12;
/// A number has fewer bytes.
const ANSWER_MAX: usize = 4_096;

impl Driver {
    /// Has the workers of these fleets measured.
    pub(super) fn sample(&mut self, order: &SampleOrder) {
        let mut subjects = Vec::new();
        for (key, header) in &self.known.headers {
            let (RowKey::Slot(worker), Process::Alive(alive)) = (key, &header.process) else {
                continue;
            };
            if !order.fleets.contains(&worker.fleet) {
                continue;
            }
            subjects.push(Subject {
                worker: worker.clone(),
                generation: header.generation,
                leader: alive.pid,
                has_leaf: self.welcome.cgroup.is_some() && alive.containment != Containment::Group,
            });
        }
        let sockets = self.sockets.iter().filter_map(|(name, fd)| {
            let fleet = fleet_of_socket(name)?;
            let wanted = order.fleets.contains(&fleet);
            Some((fleet, inode_of(fd)?)).filter(|_| wanted)
        });
        let order = Order {
            subjects,
            base: self.welcome.cgroup.as_deref().map(PathBuf::from),
            sockets: sockets.collect(),
        };
        self.sampler.measure(order, &self.hand_in);
    }

    /// The cgroup of what lives there, if it has one.
    fn leaf_of(&self, key: &RowKey, header: &Header) -> Option<PathBuf> {
        let base = self.welcome.cgroup.as_deref().map(Path::new)?;
        let Process::Alive(alive) = &header.process else {
            return None;
        };
        let has_one = alive.containment != Containment::Group;
        has_one.then(|| base.join(leaf_name(key, header.generation)))
    }

    /// Says to the kernel what workers weigh.
    pub(super) fn weigh(&mut self, weights: &[Weighed]) {
        let leaves = weights.iter().filter_map(|one| {
            let key = RowKey::Slot(one.worker.clone());
            let header = self.known.headers.get(&key)?;
            let leaf = self.leaf_of(&key, header)?;
            (header.generation == one.generation).then_some((leaf, one.weight))
        });
        let leaves: Vec<_> = leaves.collect();
        if !leaves.is_empty() {
            self.sampler.weigh(leaves, &self.hand_in);
        }
    }

    /// Says when somebody waits at a socket of this fleet; or does not any more.
    pub(super) fn watch_sockets(&mut self, fleet: &FleetName, on: bool) {
        if let Some(watchers) = self.watchers.remove(fleet) {
            for watcher in watchers {
                watcher.abort();
            }
        }
        if !on {
            return;
        }
        let prefix = format!("socket/{fleet}/");
        let theirs = self
            .sockets
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix));
        let theirs: Vec<OwnedFd> = theirs.filter_map(|(_, fd)| fd.try_clone().ok()).collect();
        let watchers = theirs.into_iter().filter_map(|fd| {
            let fd = watched(fd).ok()?;
            let (hand_in, fleet) = (self.hand_in.clone(), fleet.clone());
            Some(tokio::spawn(async move {
                if knocks(&fd).await {
                    let _ = hand_in.send(Inbox::Knock(fleet));
                }
            }))
        });
        let watchers = watchers.collect();
        self.watchers.insert(fleet.clone(), watchers);
    }

    /// Asks a server for the number that a fleet follows.
    pub(super) fn ask_source(
        &self,
        fleet: FleetName,
        address: String,
        path: String,
        timeout: Span,
    ) {
        let hand_in = self.hand_in.clone();
        tokio::spawn(async move {
            let limit = Duration::from(timeout);
            let answer = tokio::time::timeout(limit, number_of(&address, &path)).await;
            let result = answer.unwrap_or_else(|_| Err(format!("no answer in {timeout}")));
            let _ = hand_in.send(Inbox::Sourced(fleet, result));
        });
    }

    /// A pipe for a program that is asked: a new one each time, so that nothing of an earlier answer is in it.
    pub(super) fn make_source_pipe(&mut self, fleet: &FleetName) -> Vec<Request> {
        let made = pipe::reader(ANSWER_MAX).and_then(|pipe| {
            let ours = pipe.try_clone()?;
            Ok((pipe, ours))
        });
        match made {
            Ok((pipe, ours)) => {
                self.source_pipes.insert(fleet.clone(), ours);
                vec![self.hold(source_pipe(fleet), pipe)]
            }
            // Its spawn fails for want of it, and says so.
            Err(_) => Vec::new(),
        }
    }

    /// What the program wrote that was asked; it is gone, and so nothing more will come.
    pub(super) fn read_source(&mut self, fleet: FleetName) -> Vec<Request> {
        let mut bytes = vec![0; ANSWER_MAX];
        let read = self
            .source_pipes
            .remove(&fleet)
            .map_or(0, |pipe| rustix::io::read(&pipe, &mut bytes).unwrap_or(0));
        let text = String::from_utf8_lossy(&bytes[..read]);
        let result = thousandths(&text).ok_or_else(|| {
            let text = shortened(&text);
            format!("its program wrote {text:?}, which is not a number")
        });
        let name = source_pipe(&fleet);
        let _ = self.hand_in.send(Inbox::Sourced(fleet, result));
        self.held.remove(&name);
        vec![(Op::Release { name }, None)]
    }
}

/// `socket/web/…`.
fn fleet_of_socket(name: &str) -> Option<FleetName> {
    name.strip_prefix("socket/")?
        .split('/')
        .next()?
        .parse()
        .ok()
}

/// Until somebody waits there.
async fn knocks(socket: &AsyncFd<OwnedFd>) -> bool {
    socket.ready(Interest::READABLE).await.is_ok()
}

async fn number_of(address: &str, path: &str) -> Result<u64, String> {
    let whose = format!("http://{address}{path}");
    let body = probe::get_body(address, path).await;
    let text = body.map_err(|error| format!("{whose}: {error}"))?;
    let number = thousandths(&text);
    number.ok_or_else(|| {
        format!(
            "{whose} answered {:?}, which is not a number",
            shortened(&text)
        )
    })
}

/// A number that can be the length of a queue.
fn thousandths(text: &str) -> Option<u64> {
    let number: f64 = text.trim().parse().ok()?;
    (0.0..=NUMBER_MAX)
        .contains(&number)
        .then_some((number * 1_000.0) as u64)
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_lies_is_not_believed() {
        assert_eq!(thousandths("12\n"), Some(12_000));
        assert_eq!(thousandths("0.5"), Some(500));
        for lie in ["", "-1", "NaN", "inf", "1e300", "12 jobs", "<html>"] {
            assert_eq!(thousandths(lie), None, "{lie}");
        }
    }
}
