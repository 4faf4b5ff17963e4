//! HAProxy's agent-check: whoever connects gets one line and the end. The keeper holds the listeners, so a connect is never refused; the
//! line comes from the newest list, and is waited for when there is none yet.
//!
//! Only an agent can take back what an agent said: `drain` and `maint` last until `ready`, `down` until `up`, so the line of a fleet that
//! serves says both. Its weight is a percentage of the server's configured one.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{Semaphore, watch},
    task::JoinHandle,
};

use crate::{
    engine::publish::{Listing, Presence},
    id::FleetName,
};

/// A conversation is over by then.
const PATIENCE: Duration = Duration::from_secs(3);
/// After a failed accept, for want of descriptors most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Conversations of one fleet at once; more wait in the accept queue.
const AT_ONCE: usize = 32;

/// What a fleet says of itself.
pub fn word(listing: &Listing) -> String {
    let drains = listing
        .endpoints
        .iter()
        .any(|one| one.state == Presence::Draining);
    let offered = listing
        .endpoints
        .iter()
        .filter(|one| one.state == Presence::Ready);
    let weight: u64 = offered.map(|one| u64::from(one.weight)).sum();
    match listing {
        _ if weight == 0 && drains => "drain\n".to_owned(),
        Listing { open: false, .. } => "maint\n".to_owned(),
        _ if weight == 0 => "down\n".to_owned(),
        Listing { desired, .. } => {
            let percent = weight * 100 / u64::from(*desired).max(1);
            format!("ready up {}%\n", percent.clamp(1, 100))
        }
    }
}

struct Agent {
    words: watch::Sender<Option<String>>,
    listens: Option<JoinHandle<()>>,
}

/// All agents, and the thread on which they answer.
#[derive(Default)]
pub struct Agents {
    thread: Option<Handle>,
    all: BTreeMap<FleetName, Agent>,
}

impl Agents {
    /// Answers for a fleet on this listener, and no longer on another one.
    pub fn listen(&mut self, fleet: &FleetName, listener: OwnedFd) -> io::Result<()> {
        let listener = std::net::TcpListener::from(listener);
        listener.set_nonblocking(true)?;
        let thread = match &self.thread {
            Some(thread) => thread.clone(),
            None => self.thread.insert(start()?).clone(),
        };
        let agent = self.agent(fleet);
        let words = agent.words.subscribe();
        let task = thread.spawn(answer_all(listener, words));
        if let Some(before) = agent.listens.replace(task) {
            before.abort();
        }
        Ok(())
    }

    fn agent(&mut self, fleet: &FleetName) -> &mut Agent {
        let fresh = || Agent {
            words: watch::Sender::new(None),
            listens: None,
        };
        self.all.entry(fleet.clone()).or_insert_with(fresh)
    }

    /// What a fleet says from now on.
    pub fn say(&mut self, fleet: &FleetName, listing: &Listing) {
        self.agent(fleet).words.send_replace(Some(word(listing)));
    }

    /// Nobody asks for this fleet any more.
    pub fn close(&mut self, fleet: &FleetName) {
        let agent = self.all.remove(fleet);
        if let Some(task) = agent.and_then(|agent| agent.listens) {
            task.abort();
        }
    }
}

/// A thread of its own: the engine's loop and the control socket do not wait for who connects here.
fn start() -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("agents".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}

async fn answer_all(listener: std::net::TcpListener, words: watch::Receiver<Option<String>>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    let seats = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let words = words.clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(PATIENCE, answer(stream, words)).await;
                    drop(seat);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
        }
    }
}

/// What it sends (`agent-send`) is read and means nothing: closing a socket with bytes unread would reset it, and the answer with it.
async fn answer(
    mut stream: TcpStream,
    mut words: watch::Receiver<Option<String>>,
) -> io::Result<()> {
    let word = match words.wait_for(Option::is_some).await {
        Ok(word) => word.clone().unwrap_or_default(),
        Err(_) => return Ok(()),
    };
    stream.write_all(word.as_bytes()).await?;
    stream.shutdown().await?;
    let mut space = [0; 256];
    while stream.read(&mut space).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::spec::PublishMode,
        engine::publish::Endpoint,
        id::{Revision, SlotIndex},
    };

    fn listing(ready: u32, draining: u32, desired: u32, open: bool) -> Listing {
        let endpoint = |slot: u32| Endpoint {
            slot: Some(SlotIndex(slot)),
            port: 80,
            weight: u32::from(slot < ready),
            state: if slot < ready {
                Presence::Ready
            } else {
                Presence::Draining
            },
            revision: Revision::default(),
        };
        Listing {
            mode: PublishMode::Worker,
            address: String::new(),
            endpoints: (0..ready + draining).map(endpoint).collect(),
            ready,
            desired,
            open,
            config: Revision::default(),
        }
    }

    #[test]
    fn what_is_said_of_a_fleet() {
        for (ready, draining, desired, open, said) in [
            (4, 0, 4, true, "ready up 100%\n"),
            (3, 1, 4, true, "ready up 75%\n"),
            (5, 0, 4, true, "ready up 100%\n"),
            (1, 0, 1_000, true, "ready up 1%\n"),
            (0, 0, 4, true, "down\n"),
            (0, 2, 4, true, "drain\n"),
            (0, 2, 4, false, "drain\n"),
            (0, 0, 4, false, "maint\n"),
            (0, 0, 0, false, "maint\n"),
            (2, 0, 0, false, "maint\n"),
        ] {
            let listing = listing(ready, draining, desired, open);
            assert_eq!(word(&listing), said, "{listing:?}");
        }
        // The first connection wakes somebody.
        let mut asleep = listing(1, 0, 0, true);
        asleep.ready = 0;
        assert_eq!(word(&asleep), "ready up 100%\n");
    }
}
