//! Before a lock that was had is used: what is left of the holder before is ended, if it is provably there and ours to end.

use std::{collections::BTreeSet, path::Path};

use crate::{
    locks::record::Record,
    sys::{
        cgroup, clock,
        family::{self, Stat},
        host, poll,
    },
    time::Span,
};

/// What could not be looked at is given this long to end: its keeper is gone, and SIGKILL is on its way.
const UNSEEN: Span = Span::secs(1);
/// So often is looked again.
const GLANCE: Span = Span::millis(2);

/// How long to go on before it is reported that somebody is still there.
#[derive(Clone, Copy, Debug)]
pub struct Patience(pub Span);

/// The run that takes a lock: what it has, its predecessor has not.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// `LEASEHOLD_RUN`.
    pub cookie: &'a str,
    /// The directory of its workers' cgroups, if they have any.
    pub cgroups: Option<&'a str>,
}

/// The file that we waited for was replaced by this one: whoever ran under it hears that when we do, and ends what he sees of himself;
/// what he had asked his keeper to start is there a moment later. Blocks.
pub fn give_way() {
    poll::pause(UNSEEN);
}

/// Ends what the record's holder left behind and returns when nothing of it is there, or says who is, for people. Blocks; call it again
/// after an error.
///
/// `path` is the lock's: with no record at all, the file is new, and whoever runs under its name runs under a file that was unlinked.
pub fn settle(
    path: &Path,
    before: Option<&Record>,
    own: Own<'_>,
    patience: Patience,
) -> Result<(), String> {
    let until = clock::now().after(patience.0);
    if let Some(record) = before
        && record.held
        && record.is_of_this_boot()
        && record.pid_namespace != host::pid_namespace()
    {
        // Its pids mean nothing here, and we need not see any of its processes. Its lock is free, so its keeper is gone, and
        // whatever ends its workers then has begun to.
        poll::pause(UNSEEN);
    }
    loop {
        let left = match before {
            None => others_of(path),
            // Written by us, and nothing was started under it: our supervisor died in between.
            Some(record) if record.cookie == own.cookie => return Ok(()),
            Some(record) if !record.held || !record.is_of_this_boot() => return Ok(()),
            // What we do see, as a host sees its containers, is known by its environment.
            Some(record) if record.pid_namespace != host::pid_namespace() => end_family(record),
            Some(record) => end(record, own),
        };
        match left {
            None => return Ok(()),
            Some(who) if clock::now() >= until => return Err(who),
            Some(_) => poll::pause(GLANCE),
        }
    }
}

/// Is its keeper provably dead? Whoever then still keeps the lock has only inherited it, or is frozen.
pub fn is_orphaned(record: &Record) -> bool {
    let keeper = family::Carrier {
        pid: record.keeper.pid,
        start_ticks: record.keeper.start,
    };
    let known = record.is_of_this_boot() && record.pid_namespace == host::pid_namespace();
    record.held && known && !keeper.lives()
}

/// Ends what an orphaned record's holder left behind, while that still keeps the lock. Without the lock somebody else may write himself in
/// at any moment: only what is of that very run is touched.
pub fn bury(record: &Record) {
    if !is_orphaned(record) {
        return;
    }
    if let Some(base) = record.cgroups.as_deref().map(Path::new)
        && cgroup::is_of_one_command(base)
    {
        for leaf in cgroup::leaves_of(base, &record.worker) {
            let _ = leaf.kill();
        }
    }
    let _ = end_family(record);
    // Its supervisor would have done all that, and writes last lines of output now, unless it is frozen.
    for carrier in family::with_cookie(&record.cookie, &[]) {
        if Stat::read(carrier.pid).is_some_and(|stat| stat.state == b'T') {
            carrier.kill();
        }
    }
}

/// Kills what is left of a holder; the text says who is left.
fn end(record: &Record, own: Own<'_>) -> Option<String> {
    // In the directory that we have since, there was nothing left when we began: what is there is ours.
    let leaves = record
        .cgroups
        .as_deref()
        .filter(|base| own.cgroups != Some(*base))
        .map(|base| cgroup::leaves_of(Path::new(base), &record.worker))
        .unwrap_or_default();
    for leaf in leaves {
        let killed = leaf.kill();
        if leaf.populated().unwrap_or(false) {
            let why = killed.err().map_or_else(String::new, |e| format!(": {e}"));
            return Some(format!(
                "processes of {} are still in {}{why}",
                record.holder(),
                leaf.path().display()
            ));
        }
        let _ = leaf.remove();
    }
    if let Some(base) = record.cgroups.as_deref().map(Path::new)
        && cgroup::is_of_one_command(base)
    {
        // A daemon's would be its successor's.
        let _ = std::fs::remove_dir(base);
    }
    end_family(record)
}

/// The leader, its group and session, the first process of its PID namespace, and whoever carries the worker's environment.
fn end_family(record: &Record) -> Option<String> {
    let is_elsewhere = record.pid_namespace != host::pid_namespace();
    let [leader, init] = [record.leader, record.init].map(|head| {
        head.filter(|_| !is_elsewhere).map(|head| family::Carrier {
            pid: head.pid,
            start_ticks: head.start,
        })
    });
    let left = family::left_of(&family::Late {
        cookie: &record.cookie,
        worker: &record.worker,
        leader,
        init,
        // Whoever has pids of his own may have a clock of his own, too.
        since: if is_elsewhere { 0 } else { record.keeper.start },
    });
    for member in &left {
        family::kill(member, &[]);
    }
    let pids: Vec<String> = left.iter().map(|member| member.pid.to_string()).collect();
    (!pids.is_empty()).then(|| {
        format!(
            "processes of {} are still there (pids {})",
            record.holder(),
            pids.join(", ")
        )
    })
}

/// Processes that run under this lock's name, or hold it for others that do: their own daemon sees that its file is gone, and ends them.
fn others_of(path: &Path) -> Option<String> {
    let mut pids: BTreeSet<i32> = family::with_lock(&format!("{} (deleted)", path.display()))
        .into_iter()
        .collect();
    let carriers = family::with_variables(&[format!("LEASEHOLD_LOCK={}", path.display())], &[]);
    pids.extend(carriers.iter().map(|carrier| carrier.pid));
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    (!pids.is_empty()).then(|| {
        format!(
            "the lock file was replaced while somebody runs under it (pids {}); waiting for their daemon to end them",
            pids.join(", ")
        )
    })
}
