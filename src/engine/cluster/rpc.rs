//! What is said to etcd and what it answers, as data: the engine asks, the shell carries, and a fake etcd that answers likewise takes the
//! same questions in simulation.
//!
//! A request goes to one endpoint and is answered exactly once, within its limit: by etcd, or by [`Failure::Unanswered`]. Which endpoint
//! is asked, and when another one is asked too, is decided here and nowhere below.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::{Clocks, Span};

/// Names a lease; never zero.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LeaseId(pub i64);

/// As etcdctl writes it, and as it stands in our keys.
impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Names a request, and a watch, for as long as a supervisor lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// One request to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Names it in the answer.
    pub id: CallId,
    /// Which of the configured endpoints.
    pub endpoint: usize,
    /// What.
    pub request: Request,
    /// No answer by then is none.
    pub within: Span,
}

/// What is to be done about etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Ask; answered by [`News::Answered`].
    Call(Call),
    /// Open a watch of everything below a prefix, from now on, with the value before each change; told of by [`News::Watching`] within
    /// `within`, or by [`News::WatchEnded`]. It requires a leader.
    Watch {
        /// Names it.
        id: CallId,
        /// Which of the configured endpoints.
        endpoint: usize,
        /// Everything that begins so.
        prefix: String,
        /// It is open by then, or it failed.
        within: Span,
    },
    /// Close a watch, or one that is being opened; nothing more is said of it.
    Unwatch(CallId),
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Who are you, and how are you? Says also whether an alarm is raised.
    Status,
    /// A new lease of so many seconds; etcd may give more.
    Grant {
        /// In seconds.
        ttl: i64,
    },
    /// Renews a lease. Answered by the member that believes that it leads, from memory, so it proves nothing by itself.
    KeepAlive(LeaseId),
    /// Ends a lease, with all its keys.
    Revoke(LeaseId),
    /// Which keys hang on a lease?
    LeaseKeys(LeaseId),
    /// Linearizable: all of it or none of it, at one revision.
    Txn(Txn),
}

impl Request {
    /// Its kind, for figures.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Grant { .. } => "grant",
            Self::KeepAlive(_) => "keepalive",
            Self::Revoke(_) => "revoke",
            Self::LeaseKeys(_) => "lease_keys",
            Self::Txn(txn) if txn.writes() => "write",
            Self::Txn(_) => "read",
        }
    }
}

/// If everything in `when` holds then `then`, else `otherwise`. Without writes it is a linearizable read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub when: Vec<When>,
    /// What is done if so; at most [`TXN_MAX`].
    pub then: Vec<Do>,
    /// What is done if not; at most [`TXN_MAX`].
    pub otherwise: Vec<Do>,
}

/// etcd's default limit to the operations of a transaction (`--max-txn-ops`).
pub const TXN_MAX: usize = 128;

impl Txn {
    /// May it change anything?
    pub fn writes(&self) -> bool {
        let all = self.then.iter().chain(&self.otherwise);
        all.into_iter()
            .any(|one| matches!(one, Do::Put { .. } | Do::Delete(_)))
    }

    /// A linearizable read of these.
    pub fn read(what: Vec<Do>) -> Self {
        Self {
            then: what,
            ..Self::default()
        }
    }
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// The key was created at this revision; 0: it does not exist.
    Created(String, i64),
    /// The key was last written at this revision; 0: it does not exist.
    Modified(String, i64),
}

/// One operation of a transaction. They see what the ones before them did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Do {
    /// The key, if it exists.
    Get(String),
    /// Every key that begins so, in ascending order.
    List(String),
    /// Write it; it goes with the lease, if one is named.
    Put {
        /// Where.
        key: String,
        /// What.
        value: String,
        /// With which lease it goes.
        lease: Option<LeaseId>,
    },
    /// It shall not exist.
    Delete(String),
}

/// What is heard of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A request has its answer.
    Answered {
        /// Which.
        call: CallId,
        /// The clocks, read just before it was sent.
        sent: Clocks,
        /// The answer, or why there is none.
        result: Result<Reply, Failure>,
    },
    /// A watch is open: every change after the revision of this answer is told of.
    Watching {
        /// Which.
        watch: CallId,
        /// From whom, and when.
        from: Header,
    },
    /// Changes, in the order of their revisions; all of one revision come together.
    Watched {
        /// Which watch.
        watch: CallId,
        /// The revision that they bring us to.
        revision: i64,
        /// What.
        changes: Vec<Change>,
    },
    /// It is over: changes may have been missed.
    WatchEnded {
        /// Which.
        watch: CallId,
        /// Why.
        why: Failure,
    },
}

/// What every answer says of who gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Names the cluster.
    pub cluster: u64,
    /// Names the member.
    pub member: u64,
    /// The newest revision that it has applied.
    pub revision: i64,
    /// The term of the newest entry that it has applied.
    pub term: u64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// By whom, and as of when.
    pub from: Header,
    /// What.
    pub body: Body,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// To [`Request::Status`].
    Status(Health),
    /// To [`Request::Grant`].
    Granted {
        /// The new lease.
        lease: LeaseId,
        /// In seconds, as granted.
        ttl: i64,
    },
    /// To [`Request::KeepAlive`].
    Alive {
        /// In seconds, from now on; zero or less: there is no such lease.
        ttl: i64,
    },
    /// To [`Request::Revoke`]: it is gone.
    Revoked,
    /// To [`Request::LeaseKeys`].
    LeaseKeys {
        /// In seconds, what is left; less than zero: there is no such lease.
        ttl: i64,
        /// What hangs on it.
        keys: Vec<String>,
    },
    /// To [`Request::Txn`].
    Txn {
        /// Did the conditions hold?
        held: bool,
        /// What was read: one list for each `Get` and `List` that was done, in their order.
        read: Vec<Vec<KeyValue>>,
    },
}

/// How a member is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// As `3.4.23`.
    pub version: String,
    /// It knows of a leader.
    pub has_leader: bool,
    /// The cluster takes no writes (`NOSPACE`), or its data are damaged (`CORRUPT`): the names of the alarms.
    pub alarms: Vec<String>,
}

/// A key, and what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// Its name. What is not UTF-8 is replaced, so that it is none of ours.
    pub key: String,
    /// Its value, likewise.
    pub value: String,
    /// The revision that created it.
    pub created: i64,
    /// The revision that wrote it last.
    pub modified: i64,
    /// The lease that it goes with, if any.
    pub lease: Option<LeaseId>,
}

/// Something that a watch saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key was written.
    Put(KeyValue),
    /// A key was deleted, by whomever, or with its lease.
    Deleted {
        /// Which.
        key: String,
        /// At which revision.
        revision: i64,
    },
}

/// Why there is no answer, or none that helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Whether it was done is not known.
    #[error("no answer within {0}")]
    Unanswered(Span),
    /// Nobody is there, or the connection broke: whether it was done is not known.
    #[error("{0}")]
    Unreachable(String),
    /// The member knows of no leader: whether it was done is not known.
    #[error("it has no leader")]
    NoLeader,
    /// There is no such lease.
    #[error("there is no such lease")]
    NoLease,
    /// Its disk quota is used up, so that it takes no writes.
    #[error("its database is full (alarm NOSPACE)")]
    NoSpace,
    /// Who we are was refused, or may not do this.
    #[error("{0}")]
    Denied(String),
    /// What was to be watched from is compacted away.
    #[error("what was missed is compacted away")]
    Compacted,
    /// Anything else that it says.
    #[error("{0}")]
    Refused(String),
}
