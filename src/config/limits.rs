//! `[fleet.NAME.limits]`.

use crate::config::{forms, section::Section};

/// Limits that count, by key and RLIMIT number.
pub(super) const COUNTS: [(&str, u32); 2] = [
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
];
/// Limits in bytes.
pub(super) const SIZES: [(&str, u32); 6] = [
    ("core", libc::RLIMIT_CORE),
    ("fsize", libc::RLIMIT_FSIZE),
    ("stack", libc::RLIMIT_STACK),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("as", libc::RLIMIT_AS),
    ("data", libc::RLIMIT_DATA),
];
/// Limits of a cgroup in bytes, by key and file.
pub(super) const CGROUP_SIZES: [(&str, &str); 2] =
    [("memory_high", "memory.high"), ("memory_max", "memory.max")];
/// Limits of a cgroup that count: key, file, largest value.
pub(super) const CGROUP_COUNTS: [(&str, &str, i64); 2] = [
    ("tasks", "pids.max", i64::MAX),
    ("cpu_weight", "cpu.weight", 10_000),
];

/// What a worker may use.
pub(super) struct Limits {
    pub(super) rlimits: Vec<(u32, u64, u64)>,
    pub(super) cgroup: Vec<(String, String)>,
    pub(super) nice: Option<i32>,
    pub(super) affinity: Vec<u32>,
}

pub(super) fn limits(section: &Section<'_, '_>) -> Limits {
    let limits = Limits {
        rlimits: rlimits(section),
        cgroup: cgroup(section),
        nice: section.integer("nice", -20, 19).map(|n| n as i32),
        affinity: affinity(section),
    };
    section.finish();
    limits
}

fn rlimits(section: &Section<'_, '_>) -> Vec<(u32, u64, u64)> {
    let mut all = Vec::new();
    for (key, resource) in COUNTS {
        let count = section.integer(key, 0, i64::MAX);
        all.extend(count.map(|n| (resource, n as u64, n as u64)));
    }
    for (key, resource) in SIZES {
        let size = section.parsed(key, &forms::LIMIT);
        all.extend(size.map(|n| (resource, n, n)));
    }
    let hard = section.reader.around.nofile_hard();
    if let Some((_, asked, _)) = all
        .iter()
        .find(|(resource, asked, _)| *resource == libc::RLIMIT_NOFILE && *asked > hard)
    {
        let message = format!(
            "{} = {asked} is above the hard limit of {hard}",
            section.name("nofile")
        );
        let help = "lower it, or raise LimitNOFILE= of the unit";
        section.fault("E195", "nofile", message, help);
    }
    all
}

fn cgroup(section: &Section<'_, '_>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (key, file) in CGROUP_SIZES {
        let size = section.size(key);
        all.extend(size.map(|n| (file.to_owned(), n.to_string())));
    }
    for (key, file, most) in CGROUP_COUNTS {
        let count = section.integer(key, 1, most);
        all.extend(count.map(|n| (file.to_owned(), n.to_string())));
    }
    all
}

fn affinity(section: &Section<'_, '_>) -> Vec<u32> {
    let cpus = section.reader.around.cpus();
    let list = section.parsed("cpus", &forms::CPUS).unwrap_or_default();
    if let Some(missing) = list.iter().find(|cpu| **cpu >= cpus) {
        let message = format!(
            "{} names CPU {missing}, which this machine does not have",
            section.name("cpus")
        );
        let help = match cpus - 1 {
            0 => "there is only CPU 0".to_owned(),
            last => format!("there are CPUs 0 to {last}"),
        };
        section.fault("E196", "cpus", message, &help);
    }
    list
}
