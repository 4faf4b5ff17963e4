//! Errors of etcd and of the network, as the engine knows them.

use std::{error::Error as _, io};

use etcd_client::Error;
use tonic::{Code, Status};

use super::line::CONNECT_WITHIN;
use crate::{engine::cluster::rpc::Failure, time::Span};

/// An error, and what it says of the connection.
pub(super) struct Fault {
    /// For the engine.
    pub(super) failure: Failure,
    /// For the connection.
    pub(super) kind: Kind,
}

/// What an error says of the connection that it came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// etcd said so: it is well.
    Said,
    /// It is gone, and whether the request got there is not known.
    Broken,
    /// It was gone before: the request did not leave.
    NeverSent,
    /// etcd does not know its token (any more).
    TokenUsedUp,
}

/// The connection is gone and is not dialed again.
#[derive(Debug, thiserror::Error)]
#[error("the connection is gone")]
pub(super) struct NeverSent;

impl Fault {
    /// Why there is no connection.
    pub(super) fn of_dialing(error: &tonic::transport::Error) -> Failure {
        Failure::Unreachable(Self::innermost(error))
    }

    /// What a cause of causes comes down to, in words.
    pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
        words(last_of(error))
    }

    /// What etcd gives as reason for ending a watch.
    pub(super) fn of_reason(reason: &str) -> Self {
        said(Code::Unknown, reason)
    }

    /// There is no authentication (yet).
    pub(super) fn says_nobody_is_asked(error: &Error) -> bool {
        matches!(error, Error::GRpcStatus(status) if status.message().contains("authentication is not enabled"))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => of_status(&status),
            Error::TransportError(error) => of_chain(&error),
            Error::IoError(error) => of_chain(&error),
            // Their streams' ends of channels are gone, or an answer makes no sense.
            other => Self {
                failure: Failure::Unreachable(other.to_string()),
                kind: Kind::Broken,
            },
        }
    }
}

/// What etcd sends has no source; what befell the connection has.
fn of_status(status: &Status) -> Fault {
    match status.source() {
        Some(source) => of_chain(source),
        None => said(status.code(), status.message()),
    }
}

fn of_chain(error: &(dyn std::error::Error + 'static)) -> Fault {
    let mut cause = Some(error);
    while let Some(one) = cause {
        if one.is::<NeverSent>() {
            return Fault {
                failure: Failure::Unreachable(NeverSent.to_string()),
                kind: Kind::NeverSent,
            };
        }
        cause = one.source();
    }
    Fault {
        failure: Failure::Unreachable(Fault::innermost(error)),
        kind: Kind::Broken,
    }
}

/// The texts are those of etcd 3.4 to 3.6 (`rpctypes/error.go`); codes alone do not tell them apart.
fn said(code: Code, message: &str) -> Fault {
    let text = message.rsplit("desc = ").next().unwrap_or(message);
    let text = text.strip_prefix("etcdserver: ").unwrap_or(text);
    let has = |part: &str| text.contains(part);
    let failure = if has("requested lease not found") {
        Failure::NoLease
    } else if has("database space exceeded") {
        Failure::NoSpace
    } else if has("no leader") {
        Failure::NoLeader
    } else if has("has been compacted") {
        Failure::Compacted
    } else if [
        "invalid auth token",
        "user name is empty",
        "auth store is old",
    ]
    .iter()
    .any(|part| has(part))
    {
        return Fault {
            failure: Failure::Denied(text.to_owned()),
            kind: Kind::TokenUsedUp,
        };
    } else if has("permission denied") || has("authentication failed") {
        Failure::Denied(text.to_owned())
    } else {
        by_code(code, text)
    };
    Fault {
        failure,
        kind: Kind::Said,
    }
}

/// Refused is what certainly was not done.
fn by_code(code: Code, text: &str) -> Failure {
    match code {
        Code::PermissionDenied | Code::Unauthenticated => Failure::Denied(text.to_owned()),
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => Failure::Refused(text.to_owned()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Failure::Unreachable(text.to_owned()),
    }
}

fn last_of<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last
}

fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        Some(io::ErrorKind::ConnectionReset) => "connection reset".to_owned(),
        Some(io::ErrorKind::BrokenPipe) => "connection closed".to_owned(),
        Some(io::ErrorKind::TimedOut) => {
            let within = Span::nanos(u64::try_from(CONNECT_WITHIN.as_nanos()).unwrap_or(u64::MAX));
            format!("no connection within {within}")
        }
        _ => error.to_string(),
    }
}
