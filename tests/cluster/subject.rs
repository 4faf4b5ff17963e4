//! The fake etcd answers to the same suite as the real one (`tests/conformance`): where they differ, what is simulated is a fairy tale.

use std::collections::BTreeMap;

use leasehold::{
    engine::cluster::rpc::{CallId, Failure, News, Reply, Request},
    time::{Moment, Span},
};

use crate::{
    conformance::{Scenario, Subject, of_one, of_three},
    etcd::{Etcd, Flavour, Verdict},
    rng::Rng,
};

const PATIENCE: Span = Span::secs(3);
const STEP: Span = Span::millis(5);
const NEVER: Moment = Moment(u64::MAX);

/// The fake, and a clock of its own.
struct Fake {
    etcd: Etcd,
    rng: Rng,
    now: Moment,
    endpoints: usize,
    crashed: Vec<usize>,
    watches: u64,
    heard: BTreeMap<CallId, Vec<News>>,
}

impl Fake {
    fn new(endpoints: usize) -> Self {
        let mut rng = Rng::new(1);
        let flavour = Flavour {
            is_old: true,
            revokes_early: false,
        };
        Self {
            etcd: Etcd::new(flavour, false, &mut rng),
            rng,
            now: Moment(1_000_000_000),
            endpoints,
            crashed: Vec::new(),
            watches: 0,
            heard: BTreeMap::new(),
        }
    }
}

impl Subject for Fake {
    fn endpoints(&self) -> usize {
        self.endpoints
    }

    fn ask(&mut self, endpoint: usize, request: Request) -> Result<Reply, Failure> {
        let since = self.now;
        while self.now.since(since) < PATIENCE {
            if self.crashed.contains(&endpoint) {
                return Err(Failure::Unreachable("nobody is there".to_owned()));
            }
            match self
                .etcd
                .serve(endpoint, &request, since, self.now, &mut self.rng)
            {
                Verdict::Answer(after, result) => {
                    self.pass(after);
                    return result;
                }
                Verdict::Later(after) => self.pass(after),
                Verdict::Never => break,
            }
        }
        Err(Failure::Unanswered(PATIENCE))
    }

    fn watch(&mut self, endpoint: usize, prefix: &str) -> CallId {
        self.watches += 1;
        let id = CallId(self.watches);
        let news = match self.crashed.contains(&endpoint) {
            true => News::WatchEnded {
                watch: id,
                why: Failure::Unreachable("nobody is there".to_owned()),
            },
            false => self
                .etcd
                .watch(0, endpoint, id, prefix.to_owned(), self.now),
        };
        self.heard.entry(id).or_default().push(news);
        id
    }

    fn unwatch(&mut self, watch: CallId) {
        self.etcd.unwatch(0, watch);
        self.heard.remove(&watch);
    }

    fn next_news(&mut self, watch: CallId, bound: Span) -> Option<News> {
        let until = self.now.after(bound);
        loop {
            let heard = self.heard.get_mut(&watch)?;
            if !heard.is_empty() {
                return Some(heard.remove(0));
            }
            if self.now >= until {
                return None;
            }
            self.pass(STEP);
        }
    }

    fn pass(&mut self, span: Span) {
        let until = self.now.after(span);
        while self.now < until {
            self.now = self.now.after(STEP).min(until);
            for out in self.etcd.tick(self.now, &mut self.rng) {
                let (News::Watching { watch, .. }
                | News::Watched { watch, .. }
                | News::WatchEnded { watch, .. }) = &out.news
                else {
                    continue;
                };
                if let Some(heard) = self.heard.get_mut(watch) {
                    heard.push(out.news);
                }
            }
        }
    }

    fn now(&mut self) -> Moment {
        self.now
    }

    fn fill(&mut self) -> bool {
        self.etcd.has_space = false;
        true
    }

    fn leader(&mut self) -> Option<usize> {
        self.etcd.leads(self.now)
    }

    fn crash(&mut self, endpoint: usize) {
        self.crashed.push(endpoint);
        self.etcd.freeze(endpoint, NEVER);
        for watch in self.etcd.lose_watches(endpoint) {
            let why = Failure::Unreachable("the connection broke".to_owned());
            if let Some(heard) = self.heard.get_mut(&watch) {
                heard.push(News::WatchEnded { watch, why });
            }
        }
    }

    fn start(&mut self, endpoint: usize) {
        self.crashed.retain(|one| *one != endpoint);
        self.etcd.revive(endpoint, self.now);
    }
}

fn alone(_: &str, scenario: Scenario) {
    scenario(&mut Fake::new(1));
}

fn of_three_members(_: &str, scenario: Scenario) {
    scenario(&mut Fake::new(3));
}

mod one {
    use super::*;
    of_one!(super::alone);
}

mod three {
    use super::*;
    of_three!(super::of_three_members);
}
