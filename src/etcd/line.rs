//! One endpoint, and the connection that there is to it.
//!
//! ```text
//!            a call wants it                    it is up
//!    none ──────────────────▶ being opened ─────────────────▶ open
//!     ▲                            │ refused, no answer         │ it broke; a call on it had no answer and nobody
//!     └────────────────────────────┴────────────────────────────┘ else had one since; its token is used up
//! ```
//!
//! Everybody who waits for a connection waits for the same attempt and hears its outcome; whoever comes after a failed one begins another.
//! A connection that is given up goes when the last call and the last watch on it are over: those on it have their own limits, and HTTP/2's
//! pings end the watches of a peer that is silent. (Not faster: etcd closes connections that ping more often than every five seconds.)
//!
//! It is dialed here and not by tonic, which would dial again by itself and tell only one of those who wait why it failed.

use std::{
    iter,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper_util::client::legacy::connect::HttpConnector;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Uri};
use tower::ServiceExt;

use super::{
    EtcdFault, Settings, Tls,
    fault::{Fault, Kind, NeverSent},
    flight::{Flight, outcome},
    lease::Keepers,
    link::{Link, UnderWay},
};
use crate::engine::cluster::rpc::Failure;

/// No TCP connection by then is none.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// The TLS handshake, likewise.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(1);
/// A connection with open streams on which nothing is heard for so long is pinged, and is dead if that does not help. etcd takes it ill if it
/// is pinged more often than every five seconds.
const PING_AFTER: Duration = Duration::from_secs(6);
const PONG_WITHIN: Duration = Duration::from_secs(2);

/// By these a file in PEM is known; a key may be of whatever kind.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const KEY: &str = "PRIVATE KEY-----";

/// One endpoint.
pub(super) struct Line {
    to: Endpoint,
    user: Option<(String, String)>,
    is_secured: bool,
    current: Mutex<Option<Flight<Arc<Link>>>>,
    /// The streams on which leases are renewed.
    pub(super) keepers: Keepers,
}

impl Line {
    pub(super) fn new(endpoint: &str, settings: &Settings) -> Result<Self, EtcdFault> {
        let wrong = |why: String| EtcdFault::Endpoint {
            endpoint: endpoint.to_owned(),
            why,
        };
        let uri: Uri = endpoint
            .parse()
            .map_err(|error| wrong(format!("{error}")))?;
        if uri.port_u16().is_none() {
            return Err(wrong("it names no port".to_owned()));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("it names more than a host and a port".to_owned()));
        }
        let to = match (uri.scheme_str(), &settings.tls) {
            (Some("http"), None) => Endpoint::from(uri),
            (Some("http"), Some(_)) => return Err(EtcdFault::Plain(endpoint.to_owned())),
            (Some("https"), None) => return Err(EtcdFault::NoAuthority(endpoint.to_owned())),
            (Some("https"), Some(tls)) => Endpoint::from(uri)
                .tls_config(secured(tls)?)
                .map_err(|error| EtcdFault::Tls(Fault::innermost(&error)))?,
            _ => return Err(wrong("its scheme is neither http nor https".to_owned())),
        };
        let to = to
            .http2_keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PONG_WITHIN)
            .keep_alive_while_idle(false);
        Ok(Self {
            to,
            user: settings.user.clone(),
            is_secured: settings.tls.is_some(),
            current: Mutex::new(None),
            keepers: Keepers::default(),
        })
    }

    fn current(&self) -> MutexGuard<'_, Option<Flight<Arc<Link>>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection; waits for it as long as whoever dials waits.
    pub(super) async fn link(&self) -> Result<Arc<Link>, Fault> {
        let link = {
            let mut current = self.current();
            current.take_if(|current| current.came_to(|link| link.is_lost()));
            Flight::join(&mut current, || {
                Flight::begin(connect(self.to.clone(), self.user.clone()))
            })
        };
        outcome(link).await
    }

    /// Is it what whoever asks next gets?
    pub(super) fn is_current(&self, link: &Arc<Link>) -> bool {
        let current = self.current();
        let is_it = |own: &Arc<Link>| Arc::ptr_eq(own, link);
        current.as_ref().is_some_and(|own| own.came_to(is_it))
    }

    /// Whoever asks next gets another connection than this one.
    fn give_up(&self, link: &Arc<Link>) {
        if self.is_current(link) {
            *self.current() = None;
        }
        self.keepers.give_up(link);
    }

    /// It had no answer within its limit. If nobody had one meanwhile, whoever asks next shall not be asked to wait for this connection.
    pub(super) fn had_no_answer(&self, way: &UnderWay) {
        if let Some(link) = way.silent() {
            self.give_up(link);
        }
    }

    /// What an error means for the connection that it came over. True: it is sure that nothing was done, and a new connection may help.
    pub(super) fn blame(&self, link: &Arc<Link>, fault: &Fault) -> bool {
        match fault.kind {
            Kind::Said => link.was_heard(),
            Kind::Broken => self.give_up(link),
            Kind::NeverSent => {
                self.give_up(link);
                return true;
            }
            Kind::TokenUsedUp => {
                link.was_heard();
                if self.user.is_some() {
                    self.give_up(link);
                    return true;
                }
            }
        }
        false
    }

    /// Members look at our certificate when the handshake is over for us, and hang up: whether we read why before we find nobody there is a
    /// matter of luck.
    pub(super) fn why(&self, link: &Link, fault: Fault) -> Failure {
        match (fault.kind, fault.failure) {
            (Kind::Broken | Kind::NeverSent, Failure::Unreachable(why))
                if self.is_secured && link.is_mute() && !why.contains("our certificate") =>
            {
                Failure::Unreachable(format!(
                    "{why} after the TLS handshake: it may not accept our certificate"
                ))
            }
            (_, failure) => failure,
        }
    }
}

fn secured(tls: &Tls) -> Result<ClientTlsConfig, EtcdFault> {
    let has =
        |file: &[u8], mark: &str| file.windows(mark.len()).any(|part| part == mark.as_bytes());
    let identity = tls.identity.iter();
    let parts = identity.flat_map(|(certificate, key)| {
        [
            ("cert", certificate, "certificate", CERTIFICATE),
            ("key", key, "private key", KEY),
        ]
    });
    let all = iter::once(("ca", &tls.ca, "certificate", CERTIFICATE)).chain(parts);
    for (setting, file, what, mark) in all {
        if !has(file, mark) {
            let why = format!("etcd.tls.{setting} names a file with no {what} in PEM");
            return Err(EtcdFault::Tls(why));
        }
    }
    let config = ClientTlsConfig::new()
        .timeout(HANDSHAKE_WITHIN)
        .ca_certificate(Certificate::from_pem(&tls.ca));
    Ok(match &tls.identity {
        Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
        None => config,
    })
}

/// Bounded, but for the name: whoever looks that up holds a thread that cannot be called back, so that a second attempt would hold a second one.
async fn connect(to: Endpoint, user: Option<(String, String)>) -> Result<Arc<Link>, Fault> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_WITHIN));
    let used = AtomicBool::new(false);
    let once = tower::service_fn(move |uri: Uri| {
        let first = !used.swap(true, Ordering::Relaxed);
        let http = http.clone();
        async move {
            if first {
                Ok(http.oneshot(uri).await?)
            } else {
                Err::<_, tower::BoxError>(Box::new(NeverSent))
            }
        }
    });
    let channel = to.connect_with_connector(once).await;
    let channel = channel.map_err(|error| Fault::of_dialing(&error))?;
    Link::on(channel, user).await
}
