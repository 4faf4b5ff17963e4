//! The way to etcd: built from `[etcd]` and the files that it names, and again when one of them changes. Where it cannot be built every
//! question is answered with why.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::mpsc;

use crate::{
    config::spec::EtcdSpec,
    driver::inbox::Inbox,
    engine::cluster::{
        Pin,
        rpc::{Failure, News, Order},
    },
    etcd::{Etcd, Settings, Tls},
    sys::clock,
    time::{Moment, Span},
};

/// What questions are handed to.
pub(super) struct Ways {
    spec: Option<EtcdSpec>,
    /// What the way was built with.
    settings: Option<Settings>,
    way: Result<Etcd, String>,
    tried: Moment,
    hand_in: mpsc::UnboundedSender<Inbox>,
}

/// A way that could not be built is tried again so often, while somebody asks.
const TRY_EVERY: Span = Span::secs(1);

impl Ways {
    pub(super) fn new(spec: Option<EtcdSpec>, hand_in: mpsc::UnboundedSender<Inbox>) -> Self {
        let mut ways = Self {
            spec,
            settings: None,
            way: Err(String::new()),
            tried: clock::now(),
            hand_in,
        };
        ways.build();
        ways
    }

    /// Why nobody can be asked, if so.
    pub(super) fn fault(&self) -> Option<&str> {
        let why = self.way.as_ref().err().filter(|_| self.spec.is_some());
        why.map(String::as_str)
    }

    /// Another configuration was accepted. What is under way on the way before is answered as lost.
    pub(super) fn follow(&mut self, spec: Option<EtcdSpec>) {
        let is_same = self.spec == spec;
        self.spec = spec;
        match settings(self.spec.as_ref()) {
            Ok(settings) if self.way.is_ok() && self.settings.as_ref() == Some(&settings) => {}
            // What was good for this configuration is better than nothing.
            Err(_) if is_same && self.way.is_ok() => {}
            Ok(_) | Err(_) => self.build(),
        }
    }

    fn build(&mut self) {
        self.tried = clock::now();
        let hand_in = self.hand_in.clone();
        let sink = move |news| {
            let _ = hand_in.send(Inbox::Etcd(news));
        };
        self.way = settings(self.spec.as_ref()).and_then(|settings| {
            self.settings = Some(settings.clone());
            Etcd::new(settings, Arc::new(sink)).map_err(|e| format!("failed to {e}"))
        });
    }

    pub(super) fn obey(&mut self, order: Order) {
        // A file may have been missing for a moment.
        if self.fault().is_some() && self.tried.after(TRY_EVERY) <= clock::now() {
            self.build();
        }
        let failure = match &mut self.way {
            Ok(etcd) => return etcd.obey(order),
            Err(why) => Failure::Unreachable(why.clone()),
        };
        let news = match order {
            Order::Call(call) => News::Answered {
                call: call.id,
                sent: clock::both(),
                result: Err(failure),
            },
            Order::Watch { id, .. } => News::WatchEnded {
                watch: id,
                why: failure,
            },
            Order::Unwatch(_) => return,
        };
        let _ = self.hand_in.send(Inbox::Etcd(news));
    }
}

/// Can etcd be asked with this? An error names what is wrong, for people.
pub(super) fn check(spec: Option<&EtcdSpec>) -> Result<(), String> {
    if spec.is_none() {
        return Ok(());
    }
    let settings = settings(spec).map_err(|why| format!("error: {why}"))?;
    Etcd::check(&settings).map_err(|e| format!("error: failed to {e}"))
}

fn settings(spec: Option<&EtcdSpec>) -> Result<Settings, String> {
    let spec = spec.ok_or("there is no [etcd]")?;
    let tls = spec.tls.as_ref().map(|tls| {
        let identity = match &tls.identity {
            Some((cert, key)) => Some((read(cert)?, read(key)?)),
            None => None,
        };
        let ca = read(&tls.ca)?;
        Ok::<_, String>(Tls { ca, identity })
    });
    Ok(Settings {
        endpoints: spec.endpoints.clone(),
        user: spec.user.clone(),
        tls: tls.transpose()?,
    })
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("cannot read {path} (etcd.tls): {e}"))
}

/// This state directory's own name, made when it is first asked for: by it a node is told from another one that was given its name.
pub(super) fn identity(state_dir: &Path) -> io::Result<String> {
    let path = state_dir.join("identity");
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(_) | Err(_) => {}
    }
    let fresh = format!(
        "{:016x}{:016x}",
        crate::sys::host::seed(),
        crate::sys::host::seed()
    );
    super::state::keep(state_dir, "identity", format!("{fresh}\n").as_bytes())?;
    Ok(fresh)
}

/// What this node has seen of its cluster, if it has seen one.
pub(super) fn pinned(state_dir: &Path) -> Option<Pin> {
    let text = fs::read(state_dir.join(PIN)).ok()?;
    serde_json::from_slice(&text).ok()
}

const PIN: &str = "cluster.json";

/// What is to be written down of that: by one thread at a time, so that the latest stays.
#[derive(Debug, Default)]
pub(super) struct Pins {
    wanted: Mutex<Option<Pin>>,
    writing: Mutex<()>,
}

impl Pins {
    /// It is what whoever writes next writes.
    pub(super) fn want(&self, pin: Pin) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(pin);
    }

    /// Writes what is wanted, unless somebody has meanwhile.
    pub(super) fn write(&self, state_dir: &Path) -> Result<(), String> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pin) = wanted.take() else {
            return Ok(());
        };
        drop(wanted);
        let text = serde_json::to_vec(&pin).map_err(|e| e.to_string())?;
        let kept = super::state::keep(state_dir, PIN, &text);
        kept.map_err(|e| format!("cannot write {}/{PIN}: {e}", state_dir.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A slow disk, and a pin that changes before the last one is written.
    #[test]
    fn the_latest_pin_stays() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::default();
        let pin = |revision| Pin {
            cluster: 1,
            epoch: 0,
            revision,
            forgot: false,
        };
        thread::scope(|scope| {
            for revision in 1..=200 {
                pins.want(pin(revision));
                scope.spawn(|| pins.write(dir.path()).unwrap());
            }
        });
        assert_eq!(pinned(dir.path()), Some(pin(200)));
    }
}
