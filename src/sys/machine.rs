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
    /// Our own cgroup's clock, if that is limited.
    own: Option<usage::Clock>,
    before: Option<Reading>,
}

#[derive(Clone, Copy)]
struct Reading {
    at: Moment,
    /// Nanoseconds that our processors were idle.
    idle: u64,
    /// Nanoseconds that our own cgroup used.
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
        let quota = own_cgroup().filter(|dir| {
            fs::read_to_string(dir.join("cpu.max")).is_ok_and(|max| !max.starts_with("max"))
        });
        Self {
            system: System::new().ok(),
            cpus: host::usable_cpus(),
            own: quota.and_then(|dir| usage::Clock::open(&usage::Place::Leaf(dir))),
            before: None,
        }
    }

    /// What is left now; none the first time, and when too much or too little has passed since the last.
    pub fn read(&mut self) -> Option<HostLoad> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let now = Reading {
            at: clock::now(),
            idle: idle_time(&stat, &self.cpus)?,
            used: self.own.as_ref().and_then(usage::Clock::read),
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
            // What our own limit leaves, whatever the machine has.
            idle = idle.min(cores.saturating_sub(share(used.saturating_sub(used_before))));
        }
        let system = self.system.as_mut()?;
        system.refresh_memory();
        let (mut total, mut available) = (system.total_memory(), system.available_memory());
        if let Some(limits) = system.cgroup_limits() {
            total = total.min(limits.total_memory);
            available = available.min(limits.free_memory);
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

/// The directory of our cgroup, where there is the second version alone.
fn own_cgroup() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(PathBuf::from("/sys/fs/cgroup").join(path))
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
