//! Verified renewal, checked exhaustively: every order in which three members of etcd elect, freeze, commit and expire, and one holder renews,
//! up to small bounds. The claim: what the holder accepted is over before a lease can be revoked for being too old.
//!
//! The rules are those of etcd's source and of the Raft paper (Ongaro and Ousterhout 2014):
//!
//! - A leader renews from memory, and does not ask anybody whether it still leads. Who has not heard of a higher term goes on.
//! - The answer's header is filled before the renewal is done, with the term of the last entry that the member has applied.
//! - A member steps down before it applies an entry of a higher term.
//! - A new leader gives every lease its whole time anew.
//! - A linearizable read is answered when a quorum has confirmed a leader that has committed an entry of its own term, by a member that has
//!   applied so far.
//! - A lease is revoked through the log: its leader, with a quorum.
//!
//! Clocks run alike here: their rates are a factor on the deadline, and `lease` has it. A cluster that revokes leases early (etcd before 3.4.31 and
//! 3.5.13), and operators who revoke, are outside: the delay before a takeover is for them.

use std::collections::{HashSet, VecDeque};

const MEMBERS: usize = 3;
/// A lease's time to live.
const TTL: u8 = 2;
/// Nothing later is looked at.
const END: u8 = 5;
/// Elections, and renewals, up to so many.
const TERMS: u8 = 3;
const RENEWALS: u8 = 2;
/// Every majority of three.
const QUORUMS: [u8; 4] = [0b011, 0b101, 0b110, 0b111];

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Member {
    /// The highest term that it has heard of.
    term: u8,
    /// It believes that it leads in that term.
    leads: bool,
    /// Its own term's first entry is committed.
    settled: bool,
    /// Of the last entry in its log.
    logged: u8,
    /// Of the last entry that it applied.
    applied: u8,
    /// While it leads: when the lease is over, as it remembers.
    expiry: u8,
}

/// What the holder waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Renewal {
    None,
    /// On its way to a member.
    Sent {
        at: u8,
        to: u8,
    },
    /// That one has filled the header.
    Begun {
        at: u8,
        to: u8,
        term: u8,
    },
    /// Done there; the answer is on its way for as long as it likes.
    Done {
        at: u8,
        term: u8,
    },
    /// The answer is here; a read is on its way.
    Reads {
        at: u8,
        got: u8,
        term: u8,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    now: u8,
    members: [Member; MEMBERS],
    /// Term of the newest committed entry.
    committed: u8,
    renewal: Renewal,
    renewals: u8,
    /// What a read showed that was made before the answer.
    early: Option<u8>,
    /// Until then the holder may work.
    deadline: u8,
}

/// How the holder decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    Verified,
    /// An answer is enough.
    NoRead,
    /// The time counts from the answer.
    FromReceipt,
    /// Any read that finds the key.
    AnyTerm,
    /// A read that was made before the renewal was sent.
    ReadBefore,
    /// A read that was made between the two.
    ReadBeside,
}

impl World {
    fn new() -> Self {
        let follower = Member {
            term: 1,
            leads: false,
            settled: false,
            logged: 1,
            applied: 1,
            expiry: 0,
        };
        let leader = Member {
            leads: true,
            settled: true,
            expiry: TTL,
            ..follower
        };
        Self {
            now: 0,
            members: [leader, follower, follower],
            committed: 1,
            renewal: Renewal::None,
            renewals: 0,
            early: None,
            deadline: TTL,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        change(&mut next);
        next
    }

    /// Has this leader a majority that has heard of nobody else since?
    fn has_quorum(&self, leader: usize) -> bool {
        let term = self.members[leader].term;
        let agree = self.members.iter().filter(|member| member.term == term);
        agree.count() * 2 > MEMBERS
    }

    /// The term that a linearizable read shows now, if one can be answered by this member.
    fn read(&self, member: usize) -> Option<u8> {
        let leads = |leader: usize| {
            let candidate = &self.members[leader];
            candidate.leads && candidate.settled && self.has_quorum(leader)
        };
        let leader = (0..MEMBERS).find(|leader| leads(*leader))?;
        let applied = self.members[member].applied;
        (applied >= self.members[leader].term).then_some(applied)
    }

    /// Everything that can happen next; `Err` if the lease was revoked while the holder worked.
    fn steps(&self, rule: Rule) -> Result<Vec<Self>, String> {
        let mut next = Vec::new();
        if self.now < END {
            next.push(self.with(|w| w.now += 1));
        }
        self.elections(&mut next);
        for leader in 0..MEMBERS {
            let member = self.members[leader];
            if !member.leads || !self.has_quorum(leader) {
                continue;
            }
            if !member.settled {
                next.extend(self.settle(leader));
            } else if member.expiry <= self.now {
                // It is revoked, and somebody else may hold it from this instant on.
                if self.deadline > self.now {
                    return Err(format!("revoked at {}: {self:?}", self.now));
                }
            }
        }
        for member in 0..MEMBERS {
            next.extend(self.hear(member));
            next.extend(self.apply(member));
        }
        self.holder(rule, &mut next);
        Ok(next)
    }

    /// Somebody asks for votes, and gets a majority. Who does not vote hears nothing, and goes on as it was.
    fn elections(&self, next: &mut Vec<Self>) {
        for candidate in 0..MEMBERS {
            for quorum in QUORUMS
                .iter()
                .filter(|quorum| **quorum >> candidate & 1 == 1)
            {
                let voters = (0..MEMBERS).filter(|voter| quorum >> voter & 1 == 1);
                let voters: Vec<usize> = voters.collect();
                let highest = voters.iter().map(|voter| self.members[*voter].term).max();
                let term = highest.unwrap_or(0) + 1;
                let logged = self.members[candidate].logged;
                let complete = voters
                    .iter()
                    .all(|voter| self.members[*voter].logged <= logged);
                if term > TERMS || !complete {
                    continue;
                }
                next.push(self.with(|w| {
                    for voter in voters {
                        w.members[voter].term = term;
                        w.members[voter].leads = false;
                    }
                    let leader = &mut w.members[candidate];
                    (leader.leads, leader.settled) = (true, false);
                    // The least that a new leader gives; etcd gives an election timeout more.
                    leader.expiry = w.now + TTL;
                }));
            }
        }
    }

    /// A leader's first entry reaches a majority.
    fn settle(&self, leader: usize) -> Vec<Self> {
        let term = self.members[leader].term;
        let all = QUORUMS.iter().filter(|quorum| {
            let members = (0..MEMBERS).filter(|member| **quorum >> member & 1 == 1);
            let mut members = members.map(|member| self.members[member].term);
            **quorum >> leader & 1 == 1 && members.all(|heard| heard == term)
        });
        let settled = all.map(|quorum| {
            self.with(|w| {
                for member in (0..MEMBERS).filter(|member| quorum >> member & 1 == 1) {
                    w.members[member].logged = term;
                }
                w.members[leader].settled = true;
                w.members[leader].applied = term;
                w.committed = term;
            })
        });
        settled.collect()
    }

    /// A member hears of the highest term that there is, from whoever leads in it, and steps down.
    fn hear(&self, member: usize) -> Option<Self> {
        let newest = self
            .members
            .iter()
            .filter(|other| other.leads)
            .max_by_key(|other| other.term)?;
        let behind = self.members[member].term < newest.term;
        behind.then(|| {
            self.with(|w| {
                let term = newest.term;
                let member = &mut w.members[member];
                (member.term, member.leads, member.settled) = (term, false, false);
            })
        })
    }

    /// A follower learns what is committed, and applies it.
    fn apply(&self, member: usize) -> Option<Self> {
        let own = self.members[member];
        let knows = own.term >= self.committed && own.applied < self.committed && !own.leads;
        knows.then(|| {
            self.with(|w| {
                w.members[member].logged = w.committed;
                w.members[member].applied = w.committed;
            })
        })
    }

    fn holder(&self, rule: Rule, next: &mut Vec<Self>) {
        match self.renewal {
            Renewal::None => {
                // Too late: it has stopped, and does not begin again.
                if self.renewals >= RENEWALS || self.deadline <= self.now {
                    return;
                }
                if rule == Rule::ReadBefore {
                    self.read_early(next);
                }
                for to in 0..MEMBERS {
                    next.push(self.with(|w| {
                        w.renewals += 1;
                        w.renewal = Renewal::Sent {
                            at: w.now,
                            to: to as u8,
                        };
                    }));
                }
            }
            Renewal::Sent { at, to } => {
                let term = self.members[to as usize].applied;
                next.push(self.with(|w| w.renewal = Renewal::Begun { at, to, term }));
            }
            Renewal::Begun { at, to, term } => {
                if rule == Rule::ReadBeside {
                    self.read_early(next);
                }
                if self.members[to as usize].leads {
                    next.push(self.with(|w| {
                        w.members[to as usize].expiry = w.now + TTL;
                        w.renewal = Renewal::Done { at, term };
                    }));
                }
            }
            Renewal::Done { at, term } => {
                let got = self.now;
                next.push(self.with(|w| match rule {
                    Rule::NoRead => w.accept(at),
                    Rule::ReadBefore | Rule::ReadBeside if w.early.take() == Some(term) => {
                        w.accept(at);
                    }
                    Rule::ReadBefore | Rule::ReadBeside => w.renewal = Renewal::None,
                    Rule::Verified | Rule::FromReceipt | Rule::AnyTerm => {
                        w.renewal = Renewal::Reads { at, got, term };
                    }
                }));
            }
            Renewal::Reads { at, got, term } => {
                for shown in (0..MEMBERS).filter_map(|member| self.read(member)) {
                    next.push(self.with(|w| match rule {
                        Rule::FromReceipt if shown == term => w.accept(got),
                        Rule::AnyTerm => w.accept(at),
                        _ if shown == term => w.accept(at),
                        _ => w.renewal = Renewal::None,
                    }));
                }
            }
        }
        // Whatever it waits for may never come.
        if self.renewal != Renewal::None {
            next.push(self.with(|w| (w.renewal, w.early) = (Renewal::None, None)));
        }
    }

    fn read_early(&self, next: &mut Vec<Self>) {
        if self.early.is_none() {
            let shown = (0..MEMBERS).filter_map(|member| self.read(member));
            next.extend(shown.map(|shown| self.with(|w| w.early = Some(shown))));
        }
    }

    /// Counted from the instant at which the renewal was sent.
    fn accept(&mut self, from: u8) {
        // Who has stopped stays stopped.
        if self.deadline > self.now {
            self.deadline = self.deadline.max(from + TTL);
        }
        self.renewal = Renewal::None;
    }
}

/// Looks at every world that can be reached; how many there are, or how it goes wrong.
fn explore(rule: Rule) -> Result<usize, String> {
    let mut seen = HashSet::from([World::new()]);
    let mut queue = VecDeque::from([World::new()]);
    while let Some(world) = queue.pop_front() {
        for next in world.steps(rule)? {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn a_verified_renewal_is_over_before_the_lease() {
    let worlds = explore(Rule::Verified).unwrap();
    println!("{worlds} worlds");
    // A search that is stuck at its beginning would prove nothing.
    assert!(worlds > 100_000, "{worlds}");
}

/// What matters of the read is that it was begun after the renewal was sent. That it is begun after the answer, too, is for versions of etcd
/// that renew a lease which they have revoked: then it shows that the key is there no more.
#[test]
fn a_read_beside_the_renewal_proves_as_much_of_the_leader() {
    explore(Rule::ReadBeside).unwrap();
}

#[test]
fn every_shortcut_goes_wrong() {
    for rule in [
        Rule::NoRead,
        Rule::FromReceipt,
        Rule::AnyTerm,
        Rule::ReadBefore,
    ] {
        let broken = explore(rule).unwrap_err();
        println!("{rule:?}: {broken}");
    }
}
