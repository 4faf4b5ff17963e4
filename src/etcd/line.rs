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
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use etcd_client::{Channel, Client, ConnectOptions};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Uri};
use tower::ServiceExt;

use super::{
    EtcdFault, Settings, Tls,
    fault::{Fault, Kind, NeverSent},
    lease::Keepers,
};
use crate::{engine::cluster::rpc::Failure, sys::clock, time::Clocks};

/// No TCP connection by then is none.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// The TLS handshake, likewise.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(1);
/// A password is checked with bcrypt, and by all members: that takes its time.
const AUTHENTICATED_WITHIN: Duration = Duration::from_secs(2);
/// A connection with open streams on which nothing is heard for so long is pinged, and is dead if that does not help. etcd takes it ill if it
/// is pinged more often than every five seconds.
const PING_AFTER: Duration = Duration::from_secs(6);
const PONG_WITHIN: Duration = Duration::from_secs(2);

/// One endpoint.
pub(super) struct Line {
    to: Endpoint,
    user: Option<(String, String)>,
    current: Mutex<Option<Dial>>,
    /// The streams on which leases are renewed.
    pub(super) keepers: Keepers,
}

/// A connection, or the attempt to get one.
struct Dial {
    outcome: watch::Receiver<Option<Outcome>>,
    /// The attempt; ends with us.
    _task: JoinSet<()>,
}

type Outcome = Result<Arc<Link>, Failure>;

/// A connection.
pub(super) struct Link {
    /// Requires a leader.
    pub(super) client: Client,
    /// Neither requires a leader nor says who we are.
    pub(super) bare: Client,
    /// How often something was heard on it.
    heard: AtomicU64,
}

impl Link {
    /// Something was heard on it.
    pub(super) fn was_heard(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request, or a watch to be opened, that is under way.
pub(super) struct UnderWay {
    /// The clocks just before it was sent, or the attempt to.
    pub(super) sent: Clocks,
    /// On what, and how much had been heard on that before.
    on: Option<(Arc<Link>, u64)>,
}

impl UnderWay {
    pub(super) fn new() -> Self {
        Self {
            sent: clock::both(),
            on: None,
        }
    }

    /// It is about to be sent.
    pub(super) fn sets_out(&mut self, link: &Arc<Link>) {
        self.on = Some((Arc::clone(link), link.heard.load(Ordering::Relaxed)));
        self.sent = clock::both();
    }
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
            current: Mutex::new(None),
            keepers: Keepers::default(),
        })
    }

    fn current(&self) -> MutexGuard<'_, Option<Dial>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection; waits for it as long as whoever dials waits.
    pub(super) async fn link(&self) -> Outcome {
        let mut outcome = {
            let mut current = self.current();
            let usable = current.as_ref().filter(|dial| dial.is_of_use());
            match usable {
                Some(dial) => dial.outcome.clone(),
                None => current.insert(self.dial()).outcome.clone(),
            }
        };
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => Err(Failure::Unreachable("connecting was given up".to_owned())),
        }
    }

    fn dial(&self) -> Dial {
        let (tell, outcome) = watch::channel(None);
        let mut task = JoinSet::new();
        let (to, user) = (self.to.clone(), self.user.clone());
        task.spawn(async move {
            let outcome = connect(to, user).await;
            tell.send_replace(Some(outcome));
        });
        Dial {
            outcome,
            _task: task,
        }
    }

    /// Whoever asks next gets another connection than this one.
    pub(super) fn give_up(&self, link: &Arc<Link>) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|dial| dial.is(link)) {
            *current = None;
        }
    }

    /// Is it what whoever asks next gets?
    pub(super) fn is_current(&self, link: &Arc<Link>) -> bool {
        self.current().as_ref().is_some_and(|dial| dial.is(link))
    }

    /// It had no answer within its limit. If nobody had one meanwhile, whoever asks next shall not be asked to wait for this connection.
    pub(super) fn had_no_answer(&self, way: &UnderWay) {
        if let Some((link, heard)) = &way.on
            && link.heard.load(Ordering::Relaxed) == *heard
        {
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
}

impl Dial {
    /// Under way, or successful.
    fn is_of_use(&self) -> bool {
        match &*self.outcome.borrow() {
            Some(outcome) => outcome.is_ok(),
            None => self.outcome.has_changed().is_ok(),
        }
    }

    fn is(&self, link: &Arc<Link>) -> bool {
        matches!(&*self.outcome.borrow(), Some(Ok(own)) if Arc::ptr_eq(own, link))
    }
}

fn secured(tls: &Tls) -> Result<ClientTlsConfig, EtcdFault> {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    if !tls.ca.windows(BEGIN.len()).any(|part| part == BEGIN) {
        return Err(EtcdFault::Tls(
            "the authority has no certificate in PEM".to_owned(),
        ));
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
async fn connect(to: Endpoint, user: Option<(String, String)>) -> Outcome {
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
    let channel = Channel::Tonic(channel);
    let bare = Client::from_channel(channel.clone(), None).await;
    let bare = bare.map_err(|error| Fault::from(error).failure)?;
    let client = match timeout(AUTHENTICATED_WITHIN, authenticated(channel, user)).await {
        Ok(client) => client.map_err(|error| Fault::from(error).failure)?,
        Err(_) => {
            return Err(Failure::Unreachable(
                "it does not say whether it lets us in".to_owned(),
            ));
        }
    };
    Ok(Arc::new(Link {
        client,
        bare,
        heard: AtomicU64::new(0),
    }))
}

/// Where nobody is asked for a name yet, ours does no harm.
async fn authenticated(
    channel: Channel,
    user: Option<(String, String)>,
) -> Result<Client, etcd_client::Error> {
    let options = ConnectOptions::new().with_require_leader(true);
    let Some((name, password)) = user else {
        return Client::from_channel(channel, Some(options)).await;
    };
    let named = options.clone().with_user(name, password);
    match Client::from_channel(channel.clone(), Some(named)).await {
        Err(error) if Fault::says_nobody_is_asked(&error) => {
            Client::from_channel(channel, Some(options)).await
        }
        outcome => outcome,
    }
}
