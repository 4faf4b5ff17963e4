//! What an earlier run left behind is ended before this one starts; only what is proven to be ours is touched.
//!
//! The proof is the run's cookie: 128 random bits that every process of that run carries in its environment, written to
//! `run.json` with the boot id; and our own cgroup directory.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    sys::{
        cgroup::Tree,
        clock, family, host,
        poll::{self, EventFlags, Poll},
    },
    time::Span,
};

/// How long leftovers may take to die before we give up: SIGKILL needs CPU, and nothing else.
const PATIENCE: Span = Span::secs(10);

/// So often is looked again at what gives no event.
const GLANCE: Span = Span::millis(20);

#[derive(Serialize, Deserialize)]
struct RunFile {
    boot_id: String,
    cookie: String,
    keeper: i32,
}

/// Why a run cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// The run file cannot be written.
    #[error("write {path}")]
    Write {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// They do not die.
    #[error(
        "end what an earlier run left behind: {count} processes survive SIGKILL (pids {pids}); they hang in the kernel, see their /proc/PID/stack"
    )]
    Immortal {
        /// How many.
        count: usize,
        /// Which.
        pids: String,
    },
    /// A cgroup of the earlier run does not empty.
    #[error("end what an earlier run left behind: its cgroup {path} does not become empty")]
    Cgroup {
        /// Which.
        path: String,
    },
}

/// Ends every process that carries the earlier run's cookie. Returns how many there were.
pub(super) fn end_processes(run_dir: &Path) -> Result<usize, LeftoverError> {
    let before: Option<RunFile> = fs::read(run_dir.join("run.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match before.filter(|run| run.boot_id == host::boot_id() && run.cookie.len() == 32) {
        Some(run) => end_carriers(&run.cookie),
        None => Ok(0),
    }
}

/// Ends what is left in our cgroups, and records this run.
pub(super) fn begin(
    run_dir: &Path,
    cookie: &str,
    tree: Option<&Tree>,
) -> Result<(), LeftoverError> {
    let path = run_dir.join("run.json");
    if let Some(tree) = tree {
        end_cgroups(tree)?;
    }
    let run = RunFile {
        boot_id: host::boot_id().to_owned(),
        cookie: cookie.to_owned(),
        keeper: std::process::id() as i32,
    };
    let failed = |source| LeftoverError::Write {
        path: path.display().to_string(),
        source,
    };
    let bytes = serde_json::to_vec(&run).map_err(|e| failed(e.into()))?;
    let fresh = run_dir.join("run.json.new");
    fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, &path))
        .map_err(failed)
}

/// Forgets this run: nothing of it is left.
pub(super) fn finish(run_dir: &Path) {
    let _ = fs::remove_file(run_dir.join("run.json"));
}

fn end_carriers(cookie: &str) -> Result<usize, LeftoverError> {
    let spare = ourselves();
    let until = clock::now().after(PATIENCE);
    let mut ended: Vec<family::Carrier> = Vec::new();
    loop {
        let carriers = family::with_cookie(cookie, &spare);
        for carrier in &carriers {
            carrier.kill();
            if !ended.contains(carrier) {
                ended.push(*carrier);
            }
        }
        // A dying process loses its environment before it closes its sockets: it is over when it is a zombie, or not there.
        let dying = ended.iter().filter(|carrier| carrier.lives());
        let left: Vec<String> = dying.map(|carrier| carrier.pid.to_string()).collect();
        if carriers.is_empty() && left.is_empty() {
            return Ok(ended.len());
        }
        if clock::now() > until {
            return Err(LeftoverError::Immortal {
                count: left.len(),
                pids: left.join(", "),
            });
        }
        // Strangers' children give no event when they end.
        poll::pause(GLANCE);
    }
}

fn end_cgroups(tree: &Tree) -> Result<(), LeftoverError> {
    let until = clock::now().after(PATIENCE);
    for leaf in tree.leftovers() {
        let path = leaf.path().display().to_string();
        let watch = leaf.watch().ok();
        let _ = leaf.kill();
        while leaf.populated().unwrap_or(false) {
            if clock::now() > until {
                return Err(LeftoverError::Cgroup { path });
            }
            wait_for(watch.as_ref());
        }
        let _ = leaf.remove();
    }
    Ok(())
}

/// We and our ancestors: a shell inside an old worker may be what starts this run.
fn ourselves() -> Vec<i32> {
    let mut line = vec![std::process::id() as i32];
    while let Some(stat) = line
        .last()
        .and_then(|pid| family::Stat::read(*pid))
        .filter(|stat| stat.ppid > 0)
    {
        line.push(stat.ppid);
    }
    line
}

fn wait_for(watch: Option<&crate::sys::cgroup::Watch>) {
    let Ok(mut poll) = Poll::new() else { return };
    if let Some(watch) = watch {
        let _ = poll.add(watch, 0, EventFlags::PRI | EventFlags::ERR);
    }
    let _ = poll.wait(Some(GLANCE));
}
