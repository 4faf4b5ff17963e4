//! Facts about this machine and this process: name, users, limits, boot.

use std::{ffi::CString, fs, io, sync::OnceLock};

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{Group, User},
};

use crate::wire::Credentials;

/// The machine's name.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Identifies this boot: a pid of another boot proves nothing.
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_default()
    })
}

/// What we may use of the processors, in thousandths of a core: those of our affinity, and no more than `cpu.max` of our cgroup or one
/// above it.
pub fn usable_cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores)
        .unwrap_or(u32::MAX)
        .saturating_mul(1_000)
}

/// The processors that we may run on.
pub fn usable_cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None);
    let highest = rustix::thread::CpuSet::MAX_CPU;
    set.map_or_else(
        |_| vec![0],
        |set| (0..highest).filter(|cpu| set.is_set(*cpu)).collect(),
    )
}

/// The inode of our pid namespace: a pid of another one proves nothing. No process ever changes its own.
pub fn pid_namespace() -> u64 {
    static INODE: OnceLock<u64> = OnceLock::new();
    *INODE.get_or_init(|| {
        fs::metadata("/proc/self/ns/pid")
            .map_or(0, |meta| std::os::unix::fs::MetadataExt::ino(&meta))
    })
}

/// CAP_SYS_ADMIN, which it takes to make a PID namespace and to have a child born in one (clone(2), setns(2)).
pub fn may_make_namespaces() -> bool {
    let effective = rustix::thread::capabilities(None).map(|sets| sets.effective);
    effective.is_ok_and(|set| set.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

/// 128 random bits in hex: what `LEASEHOLD_RUN` is set to.
pub fn cookie() -> io::Result<String> {
    let mut bits = [0_u8; 16];
    rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty())?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// 64 random bits: a seed for jitter.
pub fn seed() -> u64 {
    let mut bits = [0_u8; 8];
    let _ = rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::NONBLOCK);
    u64::from_ne_bytes(bits)
}

/// Raises the soft limit on open descriptors to the hard one; returns what it was, which children get back: programs that use
/// select(2) must not be given more than they can count.
pub fn raise_nofile() -> (u64, u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    (soft, hard)
}

/// Signals that we were started with ignored, signal n in bit n - 1, but for SIGPIPE, which Rust's runtime ignores.
pub fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or(0) & !(1 << (libc::SIGPIPE - 1))
}

/// Numeric identity of a user and optional groups, as `login` would have it; the error reads after "user: ".
pub fn credentials(
    user: &str,
    group: Option<&str>,
    groups: Option<&[String]>,
) -> Result<Credentials, String> {
    let entry = find_user(user)?;
    let gid = match group {
        Some(group) => find_group(group)?,
        None => entry.gid.as_raw(),
    };
    let groups = match groups {
        Some(names) => names
            .iter()
            .map(|name| find_group(name))
            .collect::<Result<Vec<_>, _>>()?,
        None => {
            let name = CString::new(entry.name.as_str())
                .map_err(|_| format!("`{user}` holds a NUL byte"))?;
            let all = nix::unistd::getgrouplist(&name, nix::unistd::Gid::from_raw(gid));
            all.map_err(|e| format!("looking up the groups of `{user}`: {e}"))?
                .iter()
                .map(|g| g.as_raw())
                .collect()
        }
    };
    Ok(Credentials {
        uid: entry.uid.as_raw(),
        gid,
        groups,
    })
}

/// The home directory and login name of a user.
pub fn home(user: &str) -> Option<(String, String)> {
    let entry = find_user(user).ok()?;
    Some((entry.dir.display().to_string(), entry.name))
}

fn find_user(user: &str) -> Result<User, String> {
    let found = match user.parse::<u32>() {
        Ok(uid) => User::from_uid(nix::unistd::Uid::from_raw(uid)),
        Err(_) => User::from_name(user),
    };
    found
        .map_err(|e| format!("looking up `{user}`: {e}"))?
        .ok_or_else(|| format!("no user `{user}` on this machine"))
}

fn find_group(group: &str) -> Result<u32, String> {
    if let Ok(gid) = group.parse::<u32>() {
        return Ok(gid);
    }
    let found = Group::from_name(group).map_err(|e| format!("looking up group `{group}`: {e}"))?;
    found
        .map(|g| g.gid.as_raw())
        .ok_or_else(|| format!("no group `{group}` on this machine"))
}

/// The name of an errno, for people: `ENOENT: No such file or directory`.
pub fn errno_text(errno: i32) -> String {
    let known = nix::errno::Errno::from_raw(errno);
    format!("{known:?}: {}", known.desc())
}
