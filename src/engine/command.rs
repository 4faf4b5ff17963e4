//! What operators ask, and how it is answered: done, already so, or denied with a reason.

use serde::{Deserialize, Serialize};

use crate::{
    config::{diff::Change, fault::nearest},
    engine::cluster::ClusterPicture,
    exit::ExitCode,
    id::{FleetName, WorkerId},
    time::Span,
};

/// One request. Names are checked against what there is; stopping twice is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Lift holds and start what is not running.
    Start {
        /// Names, `name/slot`, globs.
        names: Vec<String>,
        /// Who asks and when, for the record.
        by: By,
    },
    /// Stop and stay stopped.
    Stop {
        /// Names, `name/slot`, globs.
        names: Vec<String>,
        /// Who asks and when.
        by: By,
    },
    /// Replace workers: fleets as a rollout, slots at once.
    Restart {
        /// Names, `name/slot`, globs.
        names: Vec<String>,
    },
    /// Another size, or the configured one again.
    Scale {
        /// Which fleet.
        fleet: String,
        /// What it is to have.
        to: Sizing,
        /// For so long; none: until somebody says otherwise.
        lasting: Option<Span>,
        /// Who asks and when.
        by: By,
    },
    /// A signal to leaders.
    Signal {
        /// Names, `name/slot`, globs.
        names: Vec<String>,
        /// Which.
        signal: i32,
    },
    /// A run of a job now, whatever its schedule says.
    Run {
        /// Which job.
        name: String,
        /// Who asks.
        by: By,
    },
    /// Give a singleton's lock to whoever waits for it.
    Release {
        /// Which fleet.
        name: String,
        /// Which of its slots; none: every one that has its lock.
        slot: Option<u32>,
        /// Who asks.
        by: By,
    },
    /// Have a cluster's lock moved to whoever is next, or to a node.
    Move {
        /// Which fleet's.
        name: String,
        /// To which node; none: whoever is next.
        to: Option<String>,
        /// Who asks.
        by: By,
    },
    /// Stop everything on this node, and keep it empty.
    Drain {
        /// Who asks and when.
        by: By,
    },
    /// Have this node take work again.
    Undrain {
        /// Who asks.
        by: By,
    },
    /// Show all of the cluster, as it is now.
    Survey,
    /// Forget a node of the cluster that will not come back.
    Forget {
        /// Its name.
        node: String,
    },
    /// Read the configuration again and apply it.
    Reload,
    /// Read it and only say what would change.
    Plan,
}

/// What an operator wants of a fleet's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizing {
    /// So many; of a fleet that follows the load, at least so many.
    Workers(u32),
    /// As configured.
    Auto,
    /// As it is, whatever the load.
    Pause,
}

/// Who asked, and when by the wall clock: both for people only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct By {
    /// `uid 0 (pid 77)`.
    pub who: String,
    /// RFC 3339.
    pub when: String,
}

/// A positive answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Begun; these are affected. Watch the status for its end.
    Begun {
        /// Workers or fleets.
        names: Vec<String>,
    },
    /// It was so already.
    AlreadySo,
    /// A run of a job that was asked for.
    Run {
        /// The job.
        name: String,
        /// What the run is called by, in its job's history: when it was asked for, RFC 3339.
        scheduled: String,
        /// It begins when another one has ended; else it has begun.
        queued: bool,
    },
    /// Locks that are being given to whoever waits. Watch the singletons for what comes of it.
    Released {
        /// Which.
        gates: Vec<ReleasedGate>,
    },
    /// All of the cluster.
    Cluster(Box<ClusterPicture>),
    /// What changes.
    Plan {
        /// Fleet by fleet.
        changes: Vec<Change>,
    },
}

/// A lock that is being given away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedGate {
    /// `billing/0`.
    pub id: String,
    /// Under which it was ours: it has another one if it is ours again.
    pub fence: u64,
}

/// A negative answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// What a command line ends with.
    pub code: ExitCode,
    /// Why, as a sentence.
    pub why: String,
}

impl Denial {
    pub(super) fn new(code: ExitCode, why: impl Into<String>) -> Self {
        Self {
            code,
            why: why.into(),
        }
    }
}

/// What a selector names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Selected {
    /// A whole fleet.
    Fleet(FleetName),
    /// One slot.
    Slot(WorkerId),
}

/// Resolves selectors against fleets and their slots.
pub(super) fn select(
    names: &[String],
    fleets: &[(FleetName, Vec<u32>)],
) -> Result<Vec<Selected>, Denial> {
    if names.is_empty() {
        return Err(Denial::new(
            ExitCode::Usage,
            "name a fleet, a worker (web/3), or a pattern (web*)",
        ));
    }
    let mut found = Vec::new();
    for name in names {
        let before = found.len();
        let (fleet_pattern, slot_pattern) = name
            .split_once('/')
            .map_or((name.as_str(), None), |(f, s)| (f, Some(s)));
        for (fleet, slots) in fleets
            .iter()
            .filter(|(fleet, _)| matches(fleet_pattern, fleet.as_str()))
        {
            match slot_pattern {
                None => found.push(Selected::Fleet(fleet.clone())),
                Some(pattern) => {
                    let hits = slots
                        .iter()
                        .filter(|slot| matches(pattern, &slot.to_string()));
                    found.extend(
                        hits.map(|slot| Selected::Slot(WorkerId::new(fleet.clone(), *slot))),
                    );
                }
            }
        }
        if found.len() == before {
            let known = fleets.iter().map(|(fleet, _)| fleet.as_str());
            let hint = nearest(fleet_pattern, known.clone())
                .filter(|near| *near != fleet_pattern)
                .map_or_else(
                    || format!("there are {}", known.collect::<Vec<_>>().join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
            return Err(Denial::new(
                ExitCode::UnknownName,
                format!("nothing is called `{name}`; {hint}"),
            ));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// A glob with `*` and `?`.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut i, mut j, mut star, mut mark) = (0, 0, None, 0);
    while j < t.len() {
        match p.get(i) {
            Some('*') => {
                star = Some(i);
                mark = j;
                i += 1;
            }
            Some(c) if *c == '?' || *c == t[j] => {
                i += 1;
                j += 1;
            }
            Some(_) | None => match star {
                Some(at) => {
                    i = at + 1;
                    mark += 1;
                    j = mark;
                }
                None => return false,
            },
        }
    }
    p[i..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, hit) in [
            ("web", "web", true),
            ("we*", "web", true),
            ("*", "", true),
            ("w?b", "web", true),
            ("*b*", "abc", true),
            ("web", "webs", false),
            ("w?", "web", false),
            ("*x", "web", false),
        ] {
            assert_eq!(matches(pattern, text), hit, "{pattern} {text}");
        }
    }

    #[test]
    fn unknown_names_are_told_with_a_hint() {
        let fleets = [
            ("web".parse().unwrap(), vec![0, 1]),
            ("queue".parse().unwrap(), vec![0]),
        ];
        let why = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            select(&names, &fleets).map_err(|denial| denial.why)
        };
        assert_eq!(
            why(&["wbe"]),
            Err("nothing is called `wbe`; did you mean `web`?".to_owned())
        );
        assert_eq!(
            why(&["web/7"]),
            Err("nothing is called `web/7`; there are web, queue".to_owned())
        );
        assert_eq!(why(&["*"]).unwrap().len(), 2);
        assert_eq!(why(&["web/*", "web/0"]).unwrap().len(), 2);
    }
}
