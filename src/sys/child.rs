//! A direct child, held by pidfd: no pid is ever signalled that may belong to a stranger.
#![expect(
    unsafe_code,
    reason = "waitid with a pid in its answer, and signals by number, have no safe wrapper"
)]

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};

use crate::wire::ExitStatus;

/// A child that has not been reaped yet. Readable (epoll) once it has ended.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
    pub(super) start_ticks: u64,
}

impl Child {
    pub(super) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd,
            start_ticks: 0,
        }
    }

    /// When it started, in clock ticks since boot: with the pid, which process it is (proc_pid_stat(5)).
    pub fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its number below /proc, which may be that of a PID namespace around ours: `Pid` of its descriptor (proc_pid_fdinfo(5)).
    pub fn number_in_proc(&self) -> io::Result<i32> {
        let path = format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd());
        let info = fs::read_to_string(path)?;
        let number = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        let number = number.and_then(|number| number.trim().parse().ok());
        number
            .filter(|number| *number > 0)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
    }

    /// Sends a signal to the leader. A leader that has ended already is not an error.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal(number)?) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends a signal to the process group it leads. Safe only while the child is unreaped: that keeps the number ours.
    pub fn signal_group(&self, number: i32) -> io::Result<()> {
        match kill_process_group(pid(self.pid)?, signal(number)?) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// How it ended, or none if it runs; leaves it unreaped (`WNOWAIT`), so that its group can still be signalled.
    pub fn peek(&self) -> io::Result<Option<ExitStatus>> {
        self.wait(WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)
    }

    /// Reaps it if it has ended.
    pub fn reap(&self) -> io::Result<Option<ExitStatus>> {
        self.wait(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Was it just stopped by a signal, and by which? Consumes the report.
    pub fn take_stopped(&self) -> Option<i32> {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let report = waitid(WaitId::PidFd(self.pidfd.as_fd()), options).ok()??;
        report.stopping_signal()
    }

    fn wait(&self, options: WaitIdOptions) -> io::Result<Option<ExitStatus>> {
        loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(found) => return Ok(found.map(|status| exit_status(&status))),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(number)) => ExitStatus::Signal {
            number,
            core: status.dumped(),
        },
        (None, None) => ExitStatus::Code(0),
    }
}

/// Waits for a child that is certain to end at once: it never got as far as its program.
pub(crate) fn reap_now(child: &Child) {
    while let Err(rustix::io::Errno::INTR) =
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
    {}
}

/// A dead child of which nobody holds a pidfd: an orphan that came to us as subreaper.
pub enum Zombie {
    /// Reaped; this was its pid.
    Reaped(i32),
    /// A zombie with this pid is one of ours and still wanted; it hides those behind it from this call.
    Ours(i32),
    /// No zombie is waiting.
    None,
}

/// Looks at one dead child of any kind and reaps it unless `ours` claims it.
pub fn reap_orphan(ours: impl Fn(i32) -> bool) -> Zombie {
    match peek_any() {
        None => Zombie::None,
        Some(pid) if ours(pid) => Zombie::Ours(pid),
        Some(pid) => {
            reap_pid(pid);
            Zombie::Reaped(pid)
        }
    }
}

/// Reaps a dead child by pid; nothing happens if it is not a dead child of ours.
pub fn reap_pid(number: i32) {
    if let Ok(pid) = pid(number) {
        let _ = waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }
}

/// The pid of some dead child, left unreaped. rustix's `waitid` does not tell the pid.
fn peek_any() -> Option<i32> {
    // SAFETY: siginfo_t is plain data for which all zeroes is a value; si_pid stays 0 if no child is dead (POSIX).
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid, exclusive siginfo_t for the duration of the call; P_ALL ignores the id.
    let done = unsafe {
        libc::waitid(
            libc::P_ALL,
            0,
            &raw mut info,
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        )
    };
    // SAFETY: after a successful waitid the fields of a SIGCHLD siginfo are the ones set, si_pid among them.
    let pid = unsafe { info.si_pid() };
    (done == 0 && pid > 0).then_some(pid)
}

/// Ctrl-Z must not freeze the parent of everything, and neither must a terminal that stops background writers (`stty tostop`).
pub fn ignore_terminal_stops() {
    use nix::sys::signal::{SigHandler, Signal as Name, signal};
    for number in [Name::SIGTSTP, Name::SIGTTOU, Name::SIGTTIN] {
        // SAFETY: SIG_IGN installs no function, which is what signal(2) is unsafe for.
        let _ = unsafe { signal(number, SigHandler::SigIgn) };
    }
}

/// A limit on the size of files (RLIMIT_FSIZE) is to be an error of the write that meets it, as a full disk is, not our end.
pub fn outlive_size_limit() {
    use nix::sys::signal::{SigHandler, Signal as Name, signal};
    // SAFETY: SIG_IGN installs no function, which is what signal(2) is unsafe for.
    let _ = unsafe { signal(Name::SIGXFSZ, SigHandler::SigIgn) };
}

/// Stops us and our whole process group as a terminal does, and returns when somebody continues us. At once if nobody could: the kernel
/// stops no orphaned group (setpgid(2)).
pub fn stop_our_group(number: i32) {
    use nix::sys::signal::{
        SaFlags, SigAction, SigHandler, SigSet, Signal as Name, raise, sigaction,
    };
    let Ok(name) = Name::try_from(number) else {
        return;
    };
    let set = |handler| {
        // SAFETY: neither SIG_IGN nor SIG_DFL is a function, and what is put back at the end was there before.
        unsafe {
            sigaction(
                name,
                &SigAction::new(handler, SaFlags::empty(), SigSet::empty()),
            )
        }
    };
    // The others first: we would stop with them, and then once more.
    let before = set(SigHandler::SigIgn);
    let _ = rustix::process::kill_current_process_group(match signal(number) {
        Ok(signal) => signal,
        Err(_) => return,
    });
    let _ = set(SigHandler::SigDfl);
    let _ = raise(name);
    if let Ok(before) = before {
        // SAFETY: as above.
        let _ = unsafe { sigaction(name, &before) };
    }
}

/// Ends us by SIGINT, so that whoever waits for us sees that it was that; with our whole process group if that is to hear of it, as it
/// does of a key on its terminal.
pub fn end_by_interrupt(whole_group: bool) {
    use nix::sys::signal::{SigHandler, Signal as Name, raise, signal};
    // SAFETY: SIG_DFL installs no function, which is what signal(2) is unsafe for.
    let _ = unsafe { signal(Name::SIGINT, SigHandler::SigDfl) };
    if whole_group {
        let _ = rustix::process::kill_current_process_group(Signal::INT);
    }
    let _ = raise(Name::SIGINT);
}

/// SIGKILL to a process that is no child of ours, or to the process group that it leads.
///
/// `proof` is asked, by the number, while a pidfd keeps hold of the process: whatever takes the number over afterwards is safe.
pub fn kill_proven(number: i32, whole_group: bool, proof: impl FnOnce() -> bool) {
    let Ok(Ok(held)) = pid(number).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return;
    };
    if !proof() {
        return;
    }
    if whole_group && !kill_group_of(&held) {
        // Before Linux 6.9 a group has no other name than its number; its leader was there a moment ago.
        let _ = pid(number).map(|pid| kill_process_group(pid, Signal::KILL));
    }
    let _ = pidfd_send_signal(&held, Signal::KILL);
}

/// PIDFD_SIGNAL_PROCESS_GROUP of pidfd_send_signal(2); false where the kernel does not know it.
fn kill_group_of(leader: &OwnedFd) -> bool {
    const PROCESS_GROUP: u32 = 1 << 2;
    // SAFETY: a descriptor, a signal, no siginfo, and a flag; no memory is touched.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            leader.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            PROCESS_GROUP,
        )
    };
    done == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL)
}

fn pid(number: i32) -> io::Result<Pid> {
    if number <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Pid::from_raw(number).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn signal(number: i32) -> io::Result<Signal> {
    if !(1..=64).contains(&number) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is a signal of Linux (1 to 64), and it is only sent, never given a handler, which is what the
    // numbers that libc keeps to itself must be guarded from.
    Ok(unsafe { Signal::from_raw_unchecked(number) })
}
