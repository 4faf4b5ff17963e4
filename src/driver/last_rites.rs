//! The keeper is dead, and with it the only parent of every worker: everything ends. Where systemd or PID 1 does it too,
//! we are merely first.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::task::spawn_blocking;

use crate::{
    id::Generation,
    sys::{
        cgroup::{Leaf, is_of_one_command, leaf_name, leaves_below},
        clock,
        family::{self, Carrier},
        poll,
    },
    time::Span,
    wire::{Containment, Header, Process, RowKey, Welcome},
};

/// So long do we try; what hangs in the kernel is left to the next keeper.
const PATIENCE: Span = Span::secs(5);

/// Kills every containment and everything that carries this run's cookie, until nothing is left. True if the kernel proves that: a
/// directory of cgroups can be removed only when nobody is in any of them.
pub(super) fn end_everything(welcome: &Welcome, headers: &BTreeMap<RowKey, Header>) -> bool {
    let until = clock::now().after(PATIENCE);
    let leaves = || {
        let base = welcome.cgroup.as_deref();
        let named = headers
            .iter()
            .filter(|(_, header)| header.process != Process::Vacant);
        let named = named.filter_map(move |(key, header)| {
            Some(Leaf::at(
                Path::new(base?).join(leaf_name(key, header.generation)),
            ))
        });
        // The keeper may have died before it could tell of the last one. In a directory that no other run uses, all of them are its own.
        let own = base.map(Path::new).filter(|base| is_of_one_command(base));
        named.chain(own.into_iter().flat_map(leaves_below))
    };
    let me = std::process::id() as i32;
    let heads: Vec<family::Head> = headers
        .iter()
        .filter_map(|(key, header)| head(key, header))
        .collect();
    let inits: Vec<Carrier> = headers.values().filter_map(init).collect();
    loop {
        for init in &inits {
            init.kill();
        }
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
        let clear = carriers.is_empty()
            && kin.is_empty()
            && !inits.iter().any(Carrier::namespace_lives)
            && leaves().all(|leaf| leaf.remove().is_ok());
        if clear || clock::now() > until {
            break;
        }
        poll::pause(Span::millis(2));
    }
    let base = welcome.cgroup.as_ref();
    base.is_some_and(|base| match std::fs::remove_dir(base) {
        Ok(()) => true,
        // Nothing was ever started in it, or somebody has seen to it that nothing is left.
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    })
}

/// Kills single workers without the keeper, which would do it but may be frozen.
#[derive(Clone, Default)]
pub(super) struct ByHand {
    /// Whose families are still to be looked for; none while nobody looks.
    wanted: Arc<Mutex<Option<Vec<family::Head>>>>,
}

impl ByHand {
    /// At once what can be named: the cgroup, or else the leader with its group. The rest of a family takes a look at every process
    /// of the machine, which a thread does for all of them together.
    pub(super) fn kill(
        &self,
        welcome: &Welcome,
        key: &RowKey,
        generation: Generation,
        header: Option<&Header>,
    ) {
        let lives =
            |header: &&Header| matches!(header.process, Process::Alive(_) | Process::Clearing(_));
        let Some(header) = header.filter(lives) else {
            return unheard(welcome, key, generation);
        };
        if let Some(init) = init(header) {
            init.kill();
        }
        if let Some(base) = &welcome.cgroup {
            let leaf = Leaf::at(Path::new(base).join(leaf_name(key, header.generation)));
            let _ = leaf.kill();
            return;
        }
        let Some(head) = head(key, header) else {
            return;
        };
        family::kill_leader(&head);
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *wanted {
            Some(heads) => heads.push(head),
            None => {
                *wanted = Some(vec![head]);
                let (me, cookie, keeper) = (self.clone(), welcome.cookie.clone(), welcome.keeper);
                spawn_blocking(move || me.look(&cookie, keeper));
            }
        }
    }

    fn look(&self, cookie: &str, keeper: i32) {
        while let Some(heads) = self.take() {
            for member in &family::search(&heads, cookie, Some(keeper)).members {
                family::kill(member, &heads);
            }
        }
    }

    /// Whom to look for; with none, nobody looks any more.
    fn take(&self) -> Option<Vec<family::Head>> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let heads = wanted.as_mut().map(std::mem::take).unwrap_or_default();
        if heads.is_empty() {
            *wanted = None;
            return None;
        }
        Some(heads)
    }
}

/// SIGKILL to a generation that the keeper was asked for, and may have made without a word, if it is there.
fn unheard(welcome: &Welcome, key: &RowKey, generation: Generation) {
    if let Some(base) = &welcome.cgroup {
        let leaf = Leaf::at(Path::new(base).join(leaf_name(key, generation)));
        let _ = leaf.kill();
        return;
    }
    let mut wanted = family::marks_of(key, generation).to_vec();
    wanted.push(format!("LEASEHOLD_RUN={}", welcome.cookie));
    spawn_blocking(move || {
        for carrier in family::with_variables(&wanted, &[]) {
            carrier.kill();
        }
    });
}

/// The first process of a worker's PID namespace: the kernel ends everybody else in there with it.
fn init(header: &Header) -> Option<Carrier> {
    match header.process {
        Process::Alive(alive) => match alive.containment {
            Containment::Namespace { init, start_ticks } => Some(Carrier {
                pid: init,
                start_ticks,
            }),
            Containment::Unit | Containment::Cgroup | Containment::Group => None,
        },
        Process::Vacant | Process::Clearing(_) | Process::Gone(_) => None,
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
