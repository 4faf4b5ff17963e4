//! What the machine has left: idle processors, memory, and whether somebody waits for either.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::param::clock_ticks_per_second;
use sysinfo::System;

use crate::{
    engine::load::HostLoad,
    sys::{clock, host, usage},
    time::{Moment, Span},
};

/// What was measured over less, or more, says nothing.
const INTERVAL: [Span; 2] = [Span::millis(200), Span::secs(3)];
const THOUSAND: u64 = 1_000;

/// Reads it, again and again: idle time is what has passed since the time before.
pub struct Machine {
    /// None: its figures cannot be had here.
    system: Option<System>,
    /// The processors that we may use.
    cpus: Vec<usize>,
    /// The clock of the cgroup above us that has the tightest limit, if one has: all in it share that.
    limited: Option<usage::Clock>,
    /// Our cgroup and those above it.
    cgroups: Vec<PathBuf>,
    before: Option<Reading>,
}

#[derive(Clone, Copy)]
struct Reading {
    at: Moment,
    /// Nanoseconds that our processors were idle.
    idle: u64,
    /// Nanoseconds that the limited cgroup used.
    used: Option<u64>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// Finds out what does not change.
    pub fn new() -> Self {
        let cgroups = own_cgroups();
        let quotas = cgroups.iter().filter_map(|dir| {
            let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
            Some((quota(&text)?, dir.clone()))
        });
        let tightest = quotas.min().map(|(_, dir)| dir);
        Self {
            system: System::new().ok(),
            cpus: host::usable_cpus(),
            limited: tightest.and_then(|dir| usage::Clock::open(&usage::Place::Leaf(dir))),
            cgroups,
            before: None,
        }
    }

    /// What is left now; none the first time, and when too much or too little has passed since the last.
    pub fn read(&mut self) -> Option<HostLoad> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let now = Reading {
            at: clock::now(),
            idle: idle_time(&stat, &self.cpus)?,
            used: self.limited.as_ref().and_then(usage::Clock::read),
        };
        let before = self.before.replace(now)?;
        let elapsed = now.at.since(before.at);
        if elapsed < INTERVAL[0] || elapsed > INTERVAL[1] {
            return None;
        }
        let share = |nanos: u64| nanos.saturating_mul(THOUSAND) / elapsed.as_nanos().max(1);
        let cores = u64::from(host::usable_cores());
        let mut idle = share(now.idle.saturating_sub(before.idle)).min(cores);
        if let (Some(used), Some(used_before)) = (now.used, before.used) {
            // What that limit leaves, whatever the machine has.
            idle = idle.min(cores.saturating_sub(share(used.saturating_sub(used_before))));
        }
        let system = self.system.as_mut()?;
        system.refresh_memory();
        let (mut total, mut available) = (system.total_memory(), system.available_memory());
        for (most, free) in self.cgroups.iter().filter_map(|dir| memory_of(dir)) {
            total = total.min(most);
            available = available.min(free);
        }
        Some(HostLoad {
            cores: cores as u32,
            idle: idle as u32,
            cpu_pressure: pressure(Path::new("/proc/pressure/cpu")),
            memory_available: available,
            memory_total: total,
            memory_pressure: pressure(Path::new("/proc/pressure/memory")),
        })
    }
}

/// Nanoseconds that these processors did nothing, or waited for a disk (proc_stat(5)). Time that was stolen from us counts as used.
fn idle_time(stat: &str, cpus: &[usize]) -> Option<u64> {
    let mut ticks = 0_u64;
    let mut seen = 0;
    for line in stat.lines() {
        let Some((name, fields)) = line
            .strip_prefix("cpu")
            .and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        if name.parse().is_ok_and(|cpu: usize| cpus.contains(&cpu)) {
            let mut fields = fields.split_ascii_whitespace().skip(3);
            let idle: u64 = fields.next()?.parse().ok()?;
            let waiting: u64 = fields.next()?.parse().ok()?;
            ticks += idle + waiting;
            seen += 1;
        }
    }
    (seen > 0).then(|| ticks * (1_000_000_000 / clock_ticks_per_second()))
}

/// `some avg10` in hundredths of a percent (Documentation/accounting/psi.rst); none where the kernel does not say.
pub(super) fn pressure(file: &Path) -> Option<u32> {
    let text = fs::read_to_string(file).ok()?;
    some_avg10(&text)
}

fn some_avg10(text: &str) -> Option<u32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let average = some
        .split(' ')
        .find_map(|field| field.strip_prefix("avg10="))?;
    let (whole, hundredths) = average.split_once('.')?;
    let whole: u32 = whole.parse().ok()?;
    let hundredths: u32 = format!("{hundredths:0<2}").get(..2)?.parse().ok()?;
    Some(whole * 100 + hundredths)
}

/// The directories of our cgroup and of those above it, where there is the second version alone. systemd limits the unit, and we are
/// below it.
fn own_cgroups() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let mount = Path::new("/sys/fs/cgroup");
    let own = mount.join(path);
    let all = own.ancestors().take_while(|dir| dir.starts_with(mount));
    all.map(Path::to_owned).collect()
}

/// `cpu.max` in thousandths of a core; none: no limit.
fn quota(text: &str) -> Option<u64> {
    let (most, period) = text.trim_end().split_once(' ')?;
    let (most, period): (u64, u64) = (most.parse().ok()?, period.parse().ok()?);
    Some(most.saturating_mul(THOUSAND) / period.max(1))
}

/// A cgroup's memory limit and what is free of it, in bytes: files that are only cached make room. None: it has no limit.
fn memory_of(dir: &Path) -> Option<(u64, u64)> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let most: u64 = read("memory.max")?.trim_end().parse().ok()?;
    let used: u64 = read("memory.current")?.trim_end().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let cached = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok())
        .unwrap_or(0);
    Some((most, most.saturating_sub(used.saturating_sub(cached))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_of_our_processors_alone() {
        let stat = "cpu  9 9 9 900 9 9 9 9 0 0\ncpu0 1 0 1 100 10 0 0 50 0 0\ncpu1 1 0 1 200 0 0 0 0 0 0\nctxt 5\n";
        let tick = 1_000_000_000 / clock_ticks_per_second();
        assert_eq!(idle_time(stat, &[0]), Some(110 * tick));
        assert_eq!(idle_time(stat, &[0, 1]), Some(310 * tick));
        assert_eq!(idle_time(stat, &[7]), None);
    }

    #[test]
    fn pressure_is_read_in_hundredths() {
        let text = "some avg10=12.34 avg60=1.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(some_avg10(text), Some(1_234));
        assert_eq!(some_avg10("some avg10=0.5 avg60=0.00\n"), Some(50));
        assert_eq!(some_avg10("nonsense"), None);
    }

    #[test]
    fn limits_are_those_of_cgroups() {
        assert_eq!(quota("200000 100000\n"), Some(2_000));
        assert_eq!(quota("max 100000\n"), None);
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(memory_of(dir.path()), None);
        write("memory.current", "900\n");
        write("memory.max", "max\n");
        assert_eq!(memory_of(dir.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(memory_of(dir.path()), Some((1_000, 100)));
        // What is cached can go at any time.
        write("memory.stat", "anon 100\ninactive_file 700\n");
        assert_eq!(memory_of(dir.path()), Some((1_000, 800)));
    }

    #[test]
    fn the_machine_says_something_the_second_time() {
        let mut machine = Machine::new();
        assert_eq!(machine.read(), None);
        crate::sys::poll::pause(Span::millis(250));
        let load = machine.read().unwrap();
        assert!(load.idle <= load.cores && load.cores >= 1_000, "{load:?}");
        assert!(
            load.memory_available > 0 && load.memory_available <= load.memory_total,
            "{load:?}"
        );
    }
}
