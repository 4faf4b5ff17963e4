//! Who belongs to a worker where there is no cgroup: its process group, its session, whoever carries its environment,
//! and their children. One pass over `/proc` serves any number of workers.
//!
//! Not covered, and documented: a process that leaves the session *and* drops the environment *and* outlives its parent.

use std::{collections::BTreeMap, fs};

use crate::{
    id::{Generation, WorkerId},
    sys::child,
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
}

impl Stat {
    /// Reads it; none if the process is gone.
    pub fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The command's name may hold anything, so fields are counted from the last `)`.
    fn parse(line: &[u8]) -> Option<Self> {
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

    /// It has neither gone nor become a zombie.
    pub fn lives(&self) -> bool {
        Stat::read(self.pid)
            .is_some_and(|stat| stat.start_ticks == self.start_ticks && !stat.is_dead())
    }
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

/// Living processes of a worker of that run, whatever their generation.
pub fn of_worker(cookie: &str, worker: &WorkerId) -> Vec<Carrier> {
    let [fleet, slot, _] = marks_of(&RowKey::Slot(worker.clone()), Generation::default());
    with_variables(&[format!("LEASEHOLD_RUN={cookie}"), fleet, slot], &[])
}

/// Living processes whose environment holds all of these, other than `spare`.
pub fn with_variables(wanted: &[String], spare: &[i32]) -> Vec<Carrier> {
    let carries = |pid: i32| {
        environment(pid).is_some_and(|env| {
            let has = |one: &String| env.split(|b| *b == 0).any(|v| v == one.as_bytes());
            wanted.iter().all(has)
        })
    };
    let table = process_table();
    let readable = table
        .iter()
        .filter(|(pid, stat)| !stat.is_dead() && !stat.may_block_us() && !spare.contains(pid));
    readable
        .filter(|(pid, _)| carries(**pid))
        .map(|(pid, stat)| Carrier {
            pid: *pid,
            start_ticks: stat.start_ticks,
        })
        .collect()
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
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| Some((pid, Stat::read(pid)?)))
        .collect()
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
            }
        );
        assert_eq!(Stat::parse(b"77 (x"), None);
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
