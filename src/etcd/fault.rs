//! Errors of etcd and of the network, as the engine knows them.

use std::{error::Error as _, io};

use etcd_client::Error;
use tonic::{Code, Status};

use super::line::CONNECT_WITHIN;
use crate::{engine::cluster::rpc::Failure, time::Span};

/// An error, and what it says of the connection.
#[derive(Clone, Debug)]
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
#[error("connection closed")]
pub(super) struct NeverSent;

impl Fault {
    /// Why there is no connection.
    pub(super) fn of_dialing(error: &tonic::transport::Error) -> Self {
        Self::broken(Self::innermost(error))
    }

    /// What a cause of causes comes down to, in words.
    pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
        words(last_of(error))
    }

    /// etcd answered, and that was it.
    pub(super) fn said(failure: Failure) -> Self {
        Self {
            failure,
            kind: Kind::Said,
        }
    }

    /// The connection is of no more use.
    pub(super) fn broken(why: impl Into<String>) -> Self {
        Self {
            failure: Failure::Unreachable(why.into()),
            kind: Kind::Broken,
        }
    }

    /// What etcd gives as reason for ending a watch.
    pub(super) fn of_reason(reason: &str) -> Self {
        told(Code::Unknown, reason)
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
            other => Self::broken(other.to_string()),
        }
    }
}

/// What etcd sends has no source; what befell the connection has.
fn of_status(status: &Status) -> Fault {
    match status.source() {
        Some(source) => of_chain(source),
        None => told(status.code(), status.message()),
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
    Fault::broken(Fault::innermost(error))
}

/// The texts are those of etcd 3.4 to 3.6 (`rpctypes/error.go`); codes alone do not tell them apart.
fn told(code: Code, message: &str) -> Fault {
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
    } else if has("message length too large") {
        // Ours, of an answer that we do not read: what was asked may be done.
        Failure::Unreachable(text.to_owned())
    } else if has("permission denied") || has("authentication failed") {
        Failure::Denied(text.to_owned())
    } else {
        by_code(code, text)
    };
    Fault::said(failure)
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
        _ => of_tls(&error.to_string()).unwrap_or_else(|| error.to_string()),
    }
}

/// rustls' errors are texts to us: it is tonic's and not ours.
fn of_tls(text: &str) -> Option<String> {
    if let Some(why) = text.strip_prefix("invalid peer certificate: ") {
        return Some(format!("its certificate does not hold: {why}"));
    }
    if text.contains("InvalidContentType") {
        return Some("it does not speak TLS".to_owned());
    }
    if text == "tls handshake eof" {
        return Some("it hung up instead of speaking TLS".to_owned());
    }
    let alert = text.strip_prefix("received fatal alert: ")?;
    let of_us = ["Certificate", "UnknownCA", "AccessDenied"];
    Some(if of_us.iter().any(|part| alert.contains(part)) {
        format!("it does not accept our certificate: {alert}")
    } else {
        format!("it ended TLS: {alert}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_etcd_says() {
        let denied = |text: &str| Failure::Denied(text.to_owned());
        let refused = |text: &str| Failure::Refused(text.to_owned());
        let unreachable = |text: &str| Failure::Unreachable(text.to_owned());
        for (code, message, failure, kind) in [
            (
                Code::NotFound,
                "etcdserver: requested lease not found",
                Failure::NoLease,
                Kind::Said,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                Failure::NoSpace,
                Kind::Said,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                refused("too many requests"),
                Kind::Said,
            ),
            (
                Code::Unavailable,
                "etcdserver: no leader",
                Failure::NoLeader,
                Kind::Said,
            ),
            (
                Code::Unavailable,
                "etcdserver: leader changed",
                unreachable("leader changed"),
                Kind::Said,
            ),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
                unreachable("request timed out, possibly due to previous leader failure"),
                Kind::Said,
            ),
            (
                Code::Unknown,
                "context deadline exceeded",
                unreachable("context deadline exceeded"),
                Kind::Said,
            ),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
                Failure::Compacted,
                Kind::Said,
            ),
            (
                Code::OutOfRange,
                "decoded message length too large",
                unreachable("decoded message length too large"),
                Kind::Said,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
                refused("duplicate key given in txn request"),
                Kind::Said,
            ),
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                denied("permission denied"),
                Kind::Said,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                denied("authentication failed, invalid user ID or password"),
                Kind::Said,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: user name is empty",
                denied("user name is empty"),
                Kind::TokenUsedUp,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
                denied("revision of auth store is old"),
                Kind::TokenUsedUp,
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                denied("invalid auth token"),
                Kind::TokenUsedUp,
            ),
        ] {
            let fault = told(code, message);
            assert_eq!((fault.failure, fault.kind), (failure, kind), "{message}");
        }
        // A reason for the end of a watch has the code in its text.
        let reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
        assert_eq!(Fault::of_reason(reason).kind, Kind::TokenUsedUp);
        let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
        let fault = Fault::of_reason(reason);
        assert_eq!(fault.failure, denied("permission denied"));
    }

    #[test]
    fn what_befell_the_connection() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] Box<dyn std::error::Error + Send + Sync>);
        let outer = |inner: Box<dyn std::error::Error + Send + Sync>| Outer(inner);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let fault = of_chain(&outer(Box::new(outer(Box::new(refused)))));
        let why = Failure::Unreachable("connection refused".to_owned());
        assert_eq!((fault.failure, fault.kind), (why, Kind::Broken));
        let fault = of_chain(&outer(Box::new(NeverSent)));
        assert_eq!(fault.kind, Kind::NeverSent);
        for (text, why) in [
            (
                "invalid peer certificate: Expired",
                "its certificate does not hold: Expired",
            ),
            (
                "received fatal alert: UnknownCA",
                "it does not accept our certificate: UnknownCA",
            ),
            (
                "received fatal alert: HandshakeFailure",
                "it ended TLS: HandshakeFailure",
            ),
            ("host not found", "host not found"),
        ] {
            let error = io::Error::other(text);
            assert_eq!(Fault::innermost(&error), why);
        }
    }
}
