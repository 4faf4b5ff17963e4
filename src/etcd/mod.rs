//! Carries what the engine asks of etcd and hands in what is heard of it (`engine/cluster/rpc.rs` is the vocabulary). Decides nothing: whom
//! to ask, when to ask another, and what an answer is worth is the engine's to say.
//!
//! What it promises: every call is answered exactly once and within its limit, also when its task dies; every watch that was opened ends
//! with exactly one `WatchEnded`, unless it is told to close; one endpoint never waits for another; an answer that comes too late is never
//! taken for another one's.
//!
//! What it does not do: resume watches, retry what may have been done, back off, follow the members of a cluster.
//!
//! | file | what |
//! | --- | --- |
//! | `line` | one endpoint: which connection it has, and when that is given up for a new one |
//! | `link` | one connection, and who we are on it |
//! | `flight` | an attempt, for everybody who waits for it |
//! | `call` | one question and its answer |
//! | `lease` | renewals, on a stream for each lease |
//! | `watch` | one watch, from opening to end |
//! | `words` | our vocabulary to etcd's and back |
//! | `fault` | etcd's and the network's errors as `Failure` |

mod call;
mod fault;
mod flight;
mod lease;
mod line;
mod link;
mod watch;
mod words;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::task::{AbortHandle, JoinSet};

use self::{call::Answer, line::Line, watch::Voice};
use crate::{
    engine::cluster::rpc::{CallId, Failure, News, Order},
    sys::clock,
    time::Span,
};

/// Where news go.
pub type HandIn = Arc<dyn Fn(News) + Send + Sync>;

/// Where etcd is, and as whom we go there.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// `http://host:port` or `https://host:port`; an order names one by its place.
    pub endpoints: Vec<String>,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// For `https`, and only for that.
    pub tls: Option<Tls>,
}

/// Passwords and keys are not shown.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoints", &self.endpoints)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("tls", &self.tls.is_some())
            .finish()
    }
}

/// Whom we trust, and who we are, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Tls {
    /// Who signs certificates of etcd's members.
    pub ca: Vec<u8>,
    /// Our certificate and its key, where members ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Why there cannot be a client with such settings.
#[derive(Debug, thiserror::Error)]
pub enum EtcdFault {
    /// Not an address of the form that we take.
    #[error(
        "read the etcd endpoint {endpoint:?}: {why}; it is written http://host:port or https://host:port"
    )]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// `https` without anybody to trust.
    #[error("use the etcd endpoint {0:?}: https needs the certificate of an authority to trust")]
    NoAuthority(String),
    /// A password or a key that would go over a line that anybody can read.
    #[error("use the etcd endpoint {0:?}: there are TLS settings, and http does not use them")]
    Plain(String),
    /// A certificate or a key that is none.
    #[error("use the TLS settings for etcd (etcd.tls): {0}")]
    Tls(String),
}

/// Everything that is under way.
pub struct Etcd {
    lines: Vec<Arc<Line>>,
    hand_in: HandIn,
    /// One for each call and watch; they end with us.
    tasks: JoinSet<()>,
    watches: BTreeMap<CallId, Watched>,
}

struct Watched {
    task: AbortHandle,
    /// Nothing is to be said of it any more.
    hushed: Arc<AtomicBool>,
}

impl Etcd {
    /// Could there be a client with these settings? Asks nobody.
    pub fn check(settings: &Settings) -> Result<(), EtcdFault> {
        let mut lines = settings
            .endpoints
            .iter()
            .map(|one| Line::new(one, settings));
        lines.try_for_each(|line| line.map(drop))
    }

    /// Connects to nobody yet. Orders are obeyed on the tokio runtime that they are given on.
    pub fn new(settings: Settings, hand_in: HandIn) -> Result<Self, EtcdFault> {
        let line = |endpoint: &String| Line::new(endpoint, &settings).map(Arc::new);
        Ok(Self {
            lines: settings
                .endpoints
                .iter()
                .map(line)
                .collect::<Result<_, _>>()?,
            hand_in,
            tasks: JoinSet::new(),
            watches: BTreeMap::new(),
        })
    }

    /// Begins with it and returns at once.
    pub fn obey(&mut self, order: Order) {
        while self.tasks.try_join_next().is_some() {}
        self.watches
            .retain(|_, watched| !watched.task.is_finished());
        match order {
            Order::Call(call) => {
                let answer = Answer::new(call.id, clock::both(), Arc::clone(&self.hand_in));
                match self.lines.get(call.endpoint) {
                    Some(line) => {
                        self.tasks
                            .spawn(call::carry(Arc::clone(line), call, answer));
                    }
                    None => answer.give(Err(nowhere(call.endpoint))),
                }
            }
            Order::Watch {
                id,
                endpoint,
                prefix,
                within,
            } => self.watch(id, endpoint, prefix, within),
            Order::Unwatch(id) => {
                if let Some(watched) = self.watches.remove(&id) {
                    watched.hushed.store(true, Ordering::SeqCst);
                    watched.task.abort();
                }
            }
        }
    }

    fn watch(&mut self, id: CallId, endpoint: usize, prefix: String, within: Span) {
        let hushed = Arc::new(AtomicBool::new(false));
        let voice = Voice::new(id, Arc::clone(&self.hand_in), Arc::clone(&hushed));
        match self.lines.get(endpoint) {
            Some(line) => {
                let watch = watch::watch(Arc::clone(line), prefix, within, voice);
                let task = self.tasks.spawn(watch);
                self.watches.insert(id, Watched { task, hushed });
            }
            None => voice.end(nowhere(endpoint)),
        }
    }
}

fn nowhere(endpoint: usize) -> Failure {
    Failure::Refused(format!("there is no endpoint {endpoint}"))
}
