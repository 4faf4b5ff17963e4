//! One connection. Who we are is said on it once, when the first call needs it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use etcd_client::{Channel, Client, ConnectOptions};
use tokio::time::timeout;

use super::{
    fault::Fault,
    flight::{Flight, outcome},
};
use crate::{sys::clock, time::Clocks};

/// A password is checked with bcrypt, and by all members: that takes its time.
const LET_IN_WITHIN: Duration = Duration::from_secs(2);

/// A connection.
pub(super) struct Link {
    channel: tonic::transport::Channel,
    user: Option<(String, String)>,
    /// Neither requires a leader nor says who we are.
    pub(super) bare: Client,
    /// The attempt to say who we are.
    let_in: Mutex<Option<Flight<Client>>>,
    ears: Arc<Ears>,
}

/// What is known of a connection by what came over it.
#[derive(Default)]
struct Ears {
    /// How often something was heard on it.
    heard: AtomicU64,
    /// It did not let us in.
    is_lost: AtomicBool,
}

impl Link {
    pub(super) async fn on(
        channel: tonic::transport::Channel,
        user: Option<(String, String)>,
    ) -> Result<Arc<Self>, Fault> {
        let bare = Client::from_channel(Channel::Tonic(channel.clone()), None).await?;
        Ok(Arc::new(Self {
            channel,
            user,
            bare,
            let_in: Mutex::new(None),
            ears: Arc::default(),
        }))
    }

    /// Requires a leader, and is who we are.
    pub(super) async fn client(&self) -> Result<Client, Fault> {
        let client = {
            let mut let_in = self.let_in.lock().unwrap_or_else(PoisonError::into_inner);
            Flight::join(&mut let_in, || {
                let channel = Channel::Tonic(self.channel.clone());
                let (user, ears) = (self.user.clone(), Arc::clone(&self.ears));
                Flight::begin(let_in_on(channel, user, ears))
            })
        };
        outcome(client).await
    }

    /// Something was heard on it.
    pub(super) fn was_heard(&self) {
        self.ears.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// Whoever asks next needs another one: said by nobody who waited, perhaps, since they may have less patience than it takes.
    pub(super) fn is_lost(&self) -> bool {
        self.ears.is_lost.load(Ordering::Relaxed)
    }

    fn heard(&self) -> u64 {
        self.ears.heard.load(Ordering::Relaxed)
    }

    /// Nothing was ever heard on it.
    pub(super) fn is_mute(&self) -> bool {
        self.heard() == 0
    }
}

async fn let_in_on(
    channel: Channel,
    user: Option<(String, String)>,
    ears: Arc<Ears>,
) -> Result<Client, Fault> {
    let options = ConnectOptions::new().with_require_leader(true);
    let Some((name, password)) = user else {
        return Ok(Client::from_channel(channel, Some(options)).await?);
    };
    let named = options.clone().with_user(name, password);
    let asked = Client::from_channel(channel.clone(), Some(named));
    let answer = timeout(LET_IN_WITHIN, asked).await;
    match &answer {
        Ok(Ok(_)) => drop(ears.heard.fetch_add(1, Ordering::Relaxed)),
        Ok(Err(_)) => {}
        Err(_) => ears.is_lost.store(true, Ordering::Relaxed),
    }
    match answer {
        Ok(Ok(client)) => Ok(client),
        // Where nobody is asked for a name yet, ours does no harm.
        Ok(Err(error)) if Fault::says_nobody_is_asked(&error) => {
            Ok(Client::from_channel(channel, Some(options)).await?)
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Fault::broken("it does not say whether it lets us in")),
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
        self.on = Some((Arc::clone(link), link.heard()));
        self.sent = clock::both();
    }

    /// It is about to be sent, as soon as we are let in. That may take longer than whoever asks has patience, and goes on for whoever asks
    /// next: the connection is none the worse for it.
    pub(super) async fn sets_out_as_ourselves(
        &mut self,
        link: &Arc<Link>,
    ) -> Result<Client, Fault> {
        (self.on, self.sent) = (None, clock::both());
        let client = link.client().await?;
        self.sets_out(link);
        Ok(client)
    }

    /// The connection that it went over, if nothing was heard on that since.
    pub(super) fn silent(&self) -> Option<&Arc<Link>> {
        let (link, heard) = self.on.as_ref()?;
        (link.heard() == *heard).then_some(link)
    }
}
