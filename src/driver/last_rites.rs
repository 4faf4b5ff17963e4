//! The keeper is dead, and with it the only parent of every worker: everything ends. Where systemd or PID 1 does it too,
//! we are merely first.

use std::{collections::BTreeMap, path::Path};

use crate::{
    sys::{
        cgroup::{Leaf, leaf_name},
        clock, family, poll,
    },
    time::Span,
    wire::{Header, Process, RowKey, Welcome},
};

/// So long do we try; what hangs in the kernel is left to the next keeper.
const PATIENCE: Span = Span::secs(5);

/// Kills every containment and everything that carries this run's cookie, until nothing is left.
pub(super) fn end_everything(welcome: &Welcome, headers: &BTreeMap<RowKey, Header>) {
    let until = clock::now().after(PATIENCE);
    let leaves = || {
        let base = welcome.cgroup.as_deref();
        let named = headers
            .iter()
            .filter(|(_, header)| header.process != Process::Vacant);
        named.filter_map(move |(key, header)| {
            Some(Leaf::at(
                Path::new(base?).join(leaf_name(key, header.generation)),
            ))
        })
    };
    let me = std::process::id() as i32;
    let heads: Vec<family::Head> = headers
        .iter()
        .filter_map(|(key, header)| head(key, header))
        .collect();
    loop {
        for leaf in leaves() {
            let _ = leaf.kill();
        }
        let carriers = family::with_cookie(&welcome.cookie, &[me]);
        for carrier in &carriers {
            carrier.kill();
        }
        // Whoever dropped the cookie is still of a leader's group or session.
        let kin = family::search(&heads, &welcome.cookie, None).members;
        for member in &kin {
            family::kill(member, &heads);
        }
        let clear =
            carriers.is_empty() && kin.is_empty() && leaves().all(|leaf| leaf.remove().is_ok());
        if clear || clock::now() > until {
            break;
        }
        poll::pause(Span::millis(2));
    }
    if let Some(base) = &welcome.cgroup {
        let _ = std::fs::remove_dir(base);
    }
}

/// Kills one worker without waiting for its end: for when the keeper, which would do it, may be frozen.
pub(super) fn kill_once(welcome: &Welcome, key: &RowKey, header: &Header) {
    if let Some(base) = &welcome.cgroup {
        let leaf = Leaf::at(Path::new(base).join(leaf_name(key, header.generation)));
        let _ = leaf.kill();
    }
    let heads: Vec<family::Head> = head(key, header).into_iter().collect();
    heads.iter().for_each(family::kill_leader);
    let found = family::search(&heads, &welcome.cookie, Some(welcome.keeper));
    for member in &found.members {
        family::kill(member, &heads);
    }
}

/// A leader that lived when the keeper was last heard: its number is its group's and its session's for as long as either has a member.
fn head(key: &RowKey, header: &Header) -> Option<family::Head> {
    let (pid, start_ticks) = match header.process {
        Process::Alive(alive) => (alive.pid, alive.start_ticks),
        Process::Vacant | Process::Clearing(_) | Process::Gone(_) => return None,
    };
    Some(family::Head {
        key: key.clone(),
        generation: header.generation,
        pid,
        start_ticks,
    })
}
