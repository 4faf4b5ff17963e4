//! Who belongs to a worker where there is no cgroup: its process group, its session, whoever carries its environment,
//! and their children. One pass over `/proc` serves any number of workers.
//!
//! Not covered, and documented: a process that leaves the session *and* drops the environment *and* outlives its parent.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::Path,
};

use crate::{
    id::{Generation, WorkerId},
    sys::{child, poll},
    time::Span,
    wire::RowKey,
};

/// A worker whose family is looked for.
#[derive(Debug, Clone)]
pub struct Head {
    /// Its row.
    pub key: RowKey,
    /// Its generation.
    pub generation: Generation,
    /// The leader's pid, which numbers its group and session.
    pub pid: i32,
    /// When the leader started, in clock ticks: nobody older belongs to it.
    pub start_ticks: u64,
}

/// One line of `/proc/PID/stat`, as far as it matters here (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// State letter.
    pub state: u8,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub group: i32,
    /// Session.
    pub session: i32,
    /// Start, in clock ticks since boot.
    pub start_ticks: u64,
    /// Size of its memory in bytes; a process that is being killed loses it first.
    pub memory: u64,
    /// Processor time in clock ticks, its own and of all children that it waited for.
    pub cpu_ticks: u64,
    /// What of its memory is there, in pages; a few may be missing (proc_pid_statm(5)).
    pub resident: u64,
}

impl Stat {
    /// Reads it; none if the process is gone.
    pub fn read(pid: i32) -> Option<Self> {
        Self::at(format!("/proc/{pid}/stat"))
    }

    fn at(path: impl AsRef<Path>) -> Option<Self> {
        // One read(2) gets all of it, into a space that it cannot outgrow: 52 numbers and a name of at most 64 bytes.
        let mut line = [0; 2048];
        let mut file = File::open(path).ok()?;
        let length = file.read(&mut line).ok()?;
        Self::parse(line.get(..length)?)
    }

    /// The command's name may hold anything, so fields are counted from the last `)`.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let close = memchr::memrchr(b')', line)?;
        let rest = std::str::from_utf8(line.get(close + 2..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            state: *fields.first()?.as_bytes().first()?,
            ppid: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
            memory: fields.get(20)?.parse().ok()?,
            cpu_ticks: (11..15).try_fold(0_u64, |sum, n| {
                // A child's time may be written as negative once it has overflown.
                let ticks: i64 = fields.get(n)?.parse().ok()?;
                Some(sum.saturating_add_signed(ticks))
            })?,
            resident: fields.get(21)?.parse().ok()?,
        })
    }

    /// Dead, or so far into its death that nothing tells any more whose it was. Kernel threads, children of kthreadd (2), never had
    /// memory.
    fn is_ending(self) -> bool {
        self.is_dead() || (self.memory == 0 && self.ppid != 2 && self.ppid != 0)
    }

    /// Reading the environment of a process that hangs in the kernel may hang us with it (its memory may be locked).
    fn may_block_us(self) -> bool {
        self.state == b'D' && self.memory > 0
    }

    /// The first process of a PID namespace that has ended but for one thing: it waits until everybody else in there, who was killed, is
    /// gone and reaped (zap_pid_ns_processes() in Linux). No other user process sleeps like this without memory.
    fn waits_for_namespace(self) -> bool {
        self.state == b'S' && self.is_ending()
    }

    /// A zombie, or about to be removed: its descriptors are closed.
    pub fn is_dead(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// A living process of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Index into the heads.
    pub head: usize,
    /// Its pid.
    pub pid: i32,
    /// Its process group.
    pub group: i32,
    /// When it started, in clock ticks: with the pid, which process it is.
    pub start_ticks: u64,
}

/// SIGKILL to a member, and to its process group if that is one of the family's own making: what forks inside a group cannot outrun
/// a signal to the group.
pub fn kill(member: &Member, heads: &[Head]) {
    let of_a_leader = heads.iter().any(|head| head.pid == member.group);
    let own_group = member.group == member.pid && !of_a_leader;
    child::kill_proven(member.pid, own_group, || {
        is_still(member.pid, member.start_ticks)
    });
}

/// SIGKILL to a leader and its whole group at once, before anybody looks for the rest.
pub fn kill_leader(head: &Head) {
    child::kill_proven(head.pid, true, || is_still(head.pid, head.start_ticks));
}

/// A process that carries a run's cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carrier {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks.
    pub start_ticks: u64,
}

impl Carrier {
    /// SIGKILL, if it is still the process that was found.
    pub fn kill(&self) {
        child::kill_proven(self.pid, false, || is_still(self.pid, self.start_ticks));
    }

    /// It has neither gone nor become a zombie, nor closed everything and waits for zombies.
    pub fn lives(&self) -> bool {
        self.stat()
            .is_some_and(|stat| !stat.is_dead() && !stat.waits_for_namespace())
    }

    /// Taken for the first process of a PID namespace: does anybody live in there, or could begin to? A zombie whose parent is elsewhere
    /// keeps the first process waiting for as long as that parent likes, and does no harm.
    pub fn namespace_lives(&self) -> bool {
        match self.stat() {
            None => false,
            Some(stat) if stat.is_dead() => false,
            // Nobody can be born in there any more, so one look at everybody is enough.
            Some(stat) if stat.waits_for_namespace() => {
                let others = process_table().into_iter();
                let mut others = others.filter(|(pid, stat)| *pid != self.pid && !stat.is_dead());
                let Some(namespace) = pid_namespace_of(self.pid) else {
                    return self.stat().is_some_and(|stat| !stat.is_dead());
                };
                others.any(|(pid, _)| pid_namespace_of(pid) == Some(namespace))
            }
            Some(_) => true,
        }
    }

    fn stat(&self) -> Option<Stat> {
        Stat::read(self.pid).filter(|stat| stat.start_ticks == self.start_ticks)
    }
}

fn pid_namespace_of(pid: i32) -> Option<u64> {
    let namespace = fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?;
    Some(std::os::unix::fs::MetadataExt::ino(&namespace))
}

fn is_still(pid: i32, start_ticks: u64) -> bool {
    Stat::read(pid).is_some_and(|stat| stat.start_ticks == start_ticks)
}

/// What one pass found.
#[derive(Debug, Default)]
pub struct Found {
    /// Living members; the leaders themselves are not among them.
    pub members: Vec<Member>,
    /// Dead children of `parent`, orphans that came to us.
    pub zombies: Vec<i32>,
    /// Of somebody it could not be told whose it is: it ended during the pass, or hangs in the kernel.
    pub unread: bool,
}

/// Looks for the families of `heads`. `cookie` is this run's `LEASEHOLD_RUN`; `parent` is the keeper, if it lives: all that it ever started
/// descends from it, since orphans come to it (PR_SET_CHILD_SUBREAPER).
pub fn search(heads: &[Head], cookie: &str, parent: Option<i32>) -> Found {
    let by_leader: BTreeMap<i32, usize> = heads
        .iter()
        .enumerate()
        .map(|(n, head)| (head.pid, n))
        .collect();
    let marks: BTreeMap<Vec<u8>, usize> = heads
        .iter()
        .enumerate()
        .map(|(n, head)| (mark(head), n))
        .collect();
    let oldest = heads.iter().map(|head| head.start_ticks).min().unwrap_or(0);
    let table = process_table();
    let mut found = Found::default();
    let mut belongs: BTreeMap<i32, usize> = BTreeMap::new();
    for (&pid, stat) in &table {
        if stat.is_dead() {
            if parent == Some(stat.ppid) && !by_leader.contains_key(&pid) {
                found.zombies.push(pid);
            }
            continue;
        }
        let head = by_leader
            .get(&stat.group)
            .or_else(|| by_leader.get(&stat.session))
            .copied();
        let head = head.or_else(|| {
            if stat.start_ticks < oldest {
                return None;
            }
            if stat.may_block_us() {
                found.unread |= parent.is_none_or(|top| may_descend(&table, pid, top));
                return None;
            }
            let head = by_environment(pid, cookie, &marks);
            // It was there a moment ago and has no environment now: it ended while we looked, perhaps with a child behind it.
            if head.is_none() && Stat::read(pid).is_none_or(Stat::is_ending) {
                found.unread = true;
            }
            head
        });
        if let Some(n) = head.filter(|&n| stat.start_ticks >= heads[n].start_ticks) {
            belongs.insert(pid, n);
        }
    }
    add_descendants(&table, &by_leader, &mut belongs);
    let members = belongs
        .into_iter()
        .filter(|(pid, _)| !by_leader.contains_key(pid));
    found.members = members
        .filter_map(|(pid, head)| {
            let stat = table.get(&pid)?;
            Some(Member {
                head,
                pid,
                group: stat.group,
                start_ticks: stat.start_ticks,
            })
        })
        .collect();
    found
}

/// Might it descend from `top`? What hangs in the kernel elsewhere on the machine is nobody's business here.
fn may_descend(table: &BTreeMap<i32, Stat>, pid: i32, top: i32) -> bool {
    let mut at = pid;
    for _ in 0..table.len() {
        match table.get(&at) {
            _ if at == top => return true,
            Some(stat) if stat.ppid == 0 => return false,
            Some(stat) => at = stat.ppid,
            // Its parent was gone when the pass came there: it has another one now.
            None => return true,
        }
    }
    true
}

/// Living processes, other than us and `spare`, that carry this cookie: provable leftovers of an earlier run.
pub fn with_cookie(cookie: &str, spare: &[i32]) -> Vec<Carrier> {
    with_variables(&[format!("LEASEHOLD_RUN={cookie}")], spare)
}

/// A worker of a run that is over, as its record tells of it.
#[derive(Debug, Clone, Copy)]
pub struct Late<'a> {
    /// The run's `LEASEHOLD_RUN`.
    pub cookie: &'a str,
    /// The worker, whatever its generation.
    pub worker: &'a WorkerId,
    /// Who led it last, if that was noted and the number means anything here.
    pub leader: Option<Carrier>,
    /// The first process of its PID namespace, likewise.
    pub init: Option<Carrier>,
    /// When the run began, in clock ticks: nobody older belongs to it. Zero: unknown.
    pub since: u64,
}

/// So many passes over `/proc` for one answer, at most: each after the first looks only at whoever came meanwhile, or was in the middle of
/// an exec.
const PASSES_MAX: usize = 8;
/// An exec is through after this, but for those who have an empty environment and keep it.
const EXEC: Span = Span::millis(1);

/// Who is left of a worker of a run that is over: whoever carries its environment, its leader and the first process of its
/// PID namespace, and their groups, sessions and descendants. Where somebody ended during a pass over `/proc`, who may have had a child, whoever was not there in that pass is looked at, too.
/// May block for some milliseconds.
pub fn left_of(late: &Late<'_>) -> Vec<Member> {
    let mut known = BTreeMap::new();
    for _ in 0..PASSES_MAX {
        let (left, doubt) = left_among(late, &mut known);
        match doubt {
            _ if !left.is_empty() => return left,
            Doubt::None => return Vec::new(),
            Doubt::Ended => {}
            Doubt::Exec => poll::pause(EXEC),
        }
    }
    Vec::new()
}

/// Why a pass that found nobody may have missed somebody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    None,
    /// Somebody ended, who may have had a child.
    Ended,
    /// Somebody had no environment, as in the middle of an exec.
    Exec,
}

/// Those of them who are not `known` yet, as everybody is afterwards who could be told.
fn left_among(late: &Late<'_>, known: &mut BTreeMap<i32, Stat>) -> (Vec<Member>, Doubt) {
    let [fleet, slot, _] = marks_of(&RowKey::Slot(late.worker.clone()), Generation::default());
    let wanted = [format!("LEASEHOLD_RUN={}", late.cookie), fleet, slot];
    let mut pids = pids();
    pids.retain(|pid| !known.contains_key(pid));
    let table: BTreeMap<i32, Stat> = read_stats(&pids).collect();
    let mut doubt = if table.len() < pids.len() {
        Doubt::Ended
    } else {
        Doubt::None
    };
    known.extend(&table);
    // Its number is its group's and its session's for as long as either has a member.
    let init = late.init.filter(Carrier::namespace_lives);
    let mut heads: Vec<Carrier> = [late.leader, init].into_iter().flatten().collect();
    heads.retain(|head| {
        let now = known.get(&head.pid);
        now.is_none_or(|stat| stat.start_ticks == head.start_ticks)
    });
    let leads = |pid: i32| heads.iter().any(|head| head.pid == pid);
    let oldest = heads.iter().map(|head| head.start_ticks).min().unwrap_or(0);
    let mut belongs: BTreeMap<i32, usize> = BTreeMap::new();
    let mut space = Vec::new();
    for (&pid, stat) in table.iter().filter(|(_, s)| s.start_ticks >= late.since) {
        if stat.is_dead() {
            doubt = doubt.max(Doubt::Ended);
            continue;
        }
        let of_a_head = leads(pid) || leads(stat.group) || leads(stat.session);
        let carries = if of_a_head && stat.start_ticks >= oldest {
            Some(true)
        } else if stat.may_block_us() {
            Some(false)
        } else {
            carries(pid, &wanted, &mut space)
        };
        if carries == Some(true) {
            belongs.insert(pid, 0);
        } else if Stat::read(pid).is_none_or(Stat::is_ending) {
            // It runs nothing any more; that it is gone is looked up, too, since it takes microseconds.
            known.remove(&pid);
            doubt = doubt.max(Doubt::Ended);
        } else if carries.is_none() && stat.memory > 0 {
            known.remove(&pid);
            doubt = Doubt::Exec;
        }
    }
    let leaders = heads.iter().map(|head| (head.pid, 0)).collect();
    add_descendants(known, &leaders, &mut belongs);
    let members = belongs.into_iter().filter_map(|(pid, head)| {
        let stat = known.get(&pid)?;
        Some(Member {
            head,
            pid,
            group: stat.group,
            start_ticks: stat.start_ticks,
        })
    });
    (members.collect(), doubt)
}

/// Living processes whose environment holds all of these, other than `spare`.
pub fn with_variables(wanted: &[String], spare: &[i32]) -> Vec<Carrier> {
    let table = process_table();
    let readable = table
        .iter()
        .filter(|(pid, stat)| !stat.is_dead() && !stat.may_block_us() && !spare.contains(pid));
    let mut space = Vec::new();
    readable
        .filter(|(pid, _)| carries(**pid, wanted, &mut space) == Some(true))
        .map(|(pid, stat)| Carrier {
            pid: *pid,
            start_ticks: stat.start_ticks,
        })
        .collect()
}

/// Living processes with a descriptor through which that file is locked, by what /proc/PID/fd shows of it (flock(2); the lock is the open
/// file's, and proc_pid_fdinfo(5) tells).
pub fn with_lock(link: &str) -> Vec<i32> {
    let locks = |pid: i32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut fds = fds.into_iter().flatten().flatten();
        fds.any(|fd| {
            let is_it = fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == link);
            let info = format!("/proc/{pid}/fdinfo/{}", fd.file_name().display());
            is_it && fs::read_to_string(info).is_ok_and(|info| info.contains("FLOCK"))
        })
    };
    process_table()
        .into_keys()
        .filter(|pid| locks(*pid))
        .collect()
}

/// Does its environment hold all of these? None if it has none. `space` is for the reading.
fn carries(pid: i32, wanted: &[String], space: &mut Vec<u8>) -> Option<bool> {
    space.clear();
    let file = File::open(format!("/proc/{pid}/environ"));
    let read = file.and_then(|mut file| file.read_to_end(space));
    let has = |one: &String| space.split(|b| *b == 0).any(|v| v == one.as_bytes());
    match read {
        Ok(0) => None,
        Ok(_) => Some(wanted.iter().all(has)),
        // It hides it from us, and is not found by it.
        Err(_) => Some(false),
    }
}

/// The text by which a worker's environment is known: set last, in this order, by every spawn.
pub fn marks_of(key: &RowKey, generation: Generation) -> [String; 3] {
    let (worker, task) = match key {
        RowKey::Slot(worker) => (Some(worker), None),
        RowKey::Task(worker, kind) => (Some(worker), Some(kind)),
        RowKey::Node | RowKey::Fleet(_) => (None, None),
    };
    let fleet = worker.map_or_else(String::new, |w| w.fleet.to_string());
    let slot = worker.map_or_else(String::new, |w| w.slot.to_string());
    let kind = task.map_or_else(String::new, |kind| format!(":{}", kind.word()));
    [
        format!("LEASEHOLD_FLEET={fleet}"),
        format!("LEASEHOLD_SLOT={slot}"),
        format!("LEASEHOLD_GENERATION={generation}{kind}"),
    ]
}

fn mark(head: &Head) -> Vec<u8> {
    marks_of(&head.key, head.generation).join("\0").into_bytes()
}

fn by_environment(pid: i32, cookie: &str, marks: &BTreeMap<Vec<u8>, usize>) -> Option<usize> {
    let env = environment(pid)?;
    let mut variables: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for variable in env.split(|b| *b == 0) {
        if let Some(at) =
            memchr::memchr(b'=', variable).filter(|_| variable.starts_with(b"LEASEHOLD_"))
        {
            variables.insert(&variable[..at], variable);
        }
    }
    let run = variables.get(b"LEASEHOLD_RUN".as_slice())?;
    if run.strip_prefix(b"LEASEHOLD_RUN=") != Some(cookie.as_bytes()) {
        return None;
    }
    let names: [&[u8]; 3] = [
        b"LEASEHOLD_FLEET",
        b"LEASEHOLD_SLOT",
        b"LEASEHOLD_GENERATION",
    ];
    let parts: Option<Vec<&[u8]>> = names
        .iter()
        .map(|name| variables.get(name).copied())
        .collect();
    marks.get(&parts?.join(&0)).copied()
}

fn environment(pid: i32) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/environ")).ok()
}

/// Children of members are members, whatever they did to their environment, while their parent lives.
fn add_descendants(
    table: &BTreeMap<i32, Stat>,
    leaders: &BTreeMap<i32, usize>,
    belongs: &mut BTreeMap<i32, usize>,
) {
    loop {
        let more: Vec<(i32, usize)> = table
            .iter()
            .filter(|(pid, stat)| !stat.is_dead() && !belongs.contains_key(pid))
            .filter_map(|(pid, stat)| {
                let living_leader = leaders
                    .get(&stat.ppid)
                    .filter(|_| table.contains_key(&stat.ppid));
                Some((*pid, *belongs.get(&stat.ppid).or(living_leader)?))
            })
            .collect();
        if more.is_empty() {
            return;
        }
        belongs.extend(more);
    }
}

fn process_table() -> BTreeMap<i32, Stat> {
    read_stats(&pids()).collect()
}

pub(super) fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// Are all threads of it seen to sleep, or to be stopped: none runs, or wants to, or waits for a disk (proc_pid_stat(5): `R`, `D`)?
pub fn is_asleep(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    let mut states = threads.map(|thread| {
        let stat = Stat::at(thread.ok()?.path().join("stat"))?;
        Some(stat.state)
    });
    states.all(|state| state.is_some_and(|state| !matches!(state, b'R' | b'D')))
}

fn read_stats(pids: &[i32]) -> impl Iterator<Item = (i32, Stat)> {
    pids.iter()
        .filter_map(|pid| Some((*pid, Stat::read(*pid)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_hostile_command_name() {
        let line = b"77 (a) R 1) b) S 5 6 7 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 4242 8192 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(
            stat,
            Stat {
                state: b'S',
                ppid: 5,
                group: 6,
                session: 7,
                start_ticks: 4242,
                memory: 8192,
                cpu_ticks: 10,
                resident: 0,
            }
        );
        assert_eq!(Stat::parse(b"77 (x"), None);
    }

    #[test]
    fn whoever_looks_is_awake_and_whoever_waits_sleeps() {
        assert!(!is_asleep(std::process::id() as i32));
        assert!(!is_asleep(i32::MAX), "nobody sees it");
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let begun = crate::sys::clock::now();
        while !is_asleep(pid) {
            let waited = crate::sys::clock::now().since(begun);
            assert!(waited < Span::secs(10), "it is never seen to sleep");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn whoever_hangs_elsewhere_is_nobodys() {
        let stat = |ppid| Stat {
            state: b'D',
            ppid,
            group: 9,
            session: 9,
            start_ticks: 1,
            memory: 1,
            cpu_ticks: 0,
            resident: 0,
        };
        // 1 ─ 10 (the keeper) ─ 20 ─ 30, and 1 ─ 11 ─ 21; 41's parent has gone.
        let tree = [
            (1, 0),
            (2, 0),
            (10, 1),
            (20, 10),
            (30, 20),
            (11, 1),
            (21, 11),
            (41, 40),
        ];
        let table = tree.map(|(pid, ppid)| (pid, stat(ppid))).into();
        let ours = |pid| may_descend(&table, pid, 10);
        assert_eq!([20, 30, 41].map(ours), [true; 3]);
        assert_eq!([2, 11, 21].map(ours), [false; 3]);
        assert!(
            may_descend(&table, 21, 1),
            "the keeper of a container is its init"
        );
    }

    #[test]
    fn we_have_a_stat() {
        let me = Stat::read(std::process::id() as i32).unwrap();
        assert!(me.start_ticks > 0 && !me.is_dead());
    }
}
