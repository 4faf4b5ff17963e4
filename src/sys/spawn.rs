//! An order becomes a process of its own group, or a step and an errno.
//!
//! The child borrows our memory until its exec (`clone`), so the cost does not grow with ours, and it leaves the failing step in
//! that memory, so no error pipe is needed.
//!
//! With `CLONE_FILES` and `close_range(CLOSE_RANGE_UNSHARE)` as the child's first step only the first 64 descriptors are ever
//! copied, so the cost does not grow with our open files either. What the child is to inherit is staged there first.
#![expect(
    unsafe_code,
    reason = "the child of a vfork-like clone may use raw system calls only"
)]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    sync::atomic::AtomicI32,
};

use crate::{
    sys::{
        child::{self, Child},
        clock,
        clone::Cloner,
        family::Stat,
        seats::Place,
    },
    time::Moment,
    wire::{Credentials, PASS_MAX, SpawnStep},
};

/// Where what is passed to a worker begins: after stderr, as sd_listen_fds(3) has it.
pub const FIRST_PASS: c_int = 3;
/// Descriptors below this are the spawner's: 3 up are the child's, [`STAGE`] up carry what it inherits.
const RESERVED: c_int = 64;
/// First descriptor of the staging area.
const STAGE: c_int = 32;
/// The staging area holds stdio, the cgroup and the binary besides what is passed.
const _: () = assert!(PASS_MAX + 5 <= (RESERVED - STAGE) as usize);

/// What to execute.
pub enum Program<'a> {
    /// By path, relative to the working directory.
    Path(&'a CStr),
    /// By descriptor (execveat(2) with AT_EMPTY_PATH): the supervisor's own binary.
    Descriptor(BorrowedFd<'a>),
}

/// The PID namespace that a child is born into (pid_namespaces(7)). It is our child in any of them.
#[derive(Clone, Copy)]
pub enum Birthplace<'a> {
    /// Ours.
    Here,
    /// A new one, as its first process: with its end the kernel ends everybody in it.
    NewNamespace,
    /// That one, as any process of it but the first.
    Namespace(BorrowedFd<'a>),
}

/// Everything about the child-to-be, with nothing left to look up.
pub struct Order<'a> {
    /// What to execute.
    pub program: Program<'a>,
    /// Among whom.
    pub birthplace: Birthplace<'a>,
    /// Its arguments.
    pub argv: &'a [CString],
    /// Its whole environment.
    pub env: &'a [CString],
    /// Append `LISTEN_PID` with the child's pid.
    pub listen_pid: bool,
    /// stdin; /dev/null if none.
    pub stdin: Option<BorrowedFd<'a>>,
    /// stdout; /dev/null if none.
    pub stdout: Option<BorrowedFd<'a>>,
    /// stderr; /dev/null if none.
    pub stderr: Option<BorrowedFd<'a>>,
    /// These become `first_pass` and up.
    pub pass: &'a [BorrowedFd<'a>],
    /// Number of the first that is passed.
    pub first_pass: c_int,
    /// Descriptors of ours that the program gets under the same number; see [`inherited`].
    pub keep: &'a [c_int],
    /// Its leaf's directory.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A session of its own, not only a group.
    pub session: bool,
    /// Working directory.
    pub cwd: Option<&'a CStr>,
    /// User and groups.
    pub user: Option<&'a Credentials>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// `(resource, soft, hard)`.
    pub rlimits: &'a [(u32, u64, u64)],
    /// Nice value.
    pub nice: Option<i32>,
    /// CPUs; empty: all.
    pub affinity: &'a [u32],
    /// Set no_new_privs.
    pub no_new_privs: bool,
    /// Put oom_score_adj back to 0: ours is lower.
    pub reset_oom_score: bool,
    /// Die with the thread that spawns.
    pub die_with_parent: bool,
    /// Its deadline: it can be killed there from its first instant on, and does not execute after it.
    pub seat: Option<Place>,
    /// Its group becomes the foreground of the terminal that is its stdin, before its first instruction could read from there.
    pub foreground: bool,
    /// Signals that stay ignored, signal n in bit n - 1: somebody's nohup(1).
    pub ignored: u64,
}

/// Numbers above stderr under which we were started with something, as far as they can be kept for a program ([`Order::keep`]): those from 64 up,
/// and the few that are needed for staging, cannot. To be looked up before [`Spawner::new`].
pub fn inherited() -> Vec<c_int> {
    // stdio, a cgroup, a lock and its page are staged for a child.
    let usable = (3..STAGE).chain(STAGE + 6..RESERVED);
    // SAFETY: F_GETFD touches no memory; a number that is not open answers EBADF.
    usable
        .filter(|number| unsafe { libc::fcntl(*number, libc::F_GETFD) } == 0)
        .collect()
}

/// Why there is no child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpawnFailure {
    /// The step that failed.
    pub step: SpawnStep,
    /// Its errno.
    pub errno: i32,
}

/// Makes processes. One per process, used from one thread that never ends: parent-death signals fire when the spawning
/// *thread* ends (prctl(2)).
pub struct Spawner {
    cloner: Cloner,
    null: OwnedFd,
    share_files: bool,
    keeper: i32,
    ticks_per_second: u64,
    /// Our own PID namespace, while our children would be born into another one.
    way_back: Option<OwnedFd>,
}

impl Spawner {
    /// Reserves descriptors 3 to 63. Call it before anything else is opened; everything that we were started with above stderr
    /// becomes close-on-exec.
    pub fn new() -> io::Result<Self> {
        let null = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        let null = rustix::io::fcntl_dupfd_cloexec(&null, RESERVED)?;
        mark_cloexec_from(3);
        for number in 3..RESERVED {
            // SAFETY: F_GETFD and dup3 touch no memory; a number that is taken is left to its owner.
            unsafe {
                if libc::fcntl(number, libc::F_GETFD) == -1 {
                    libc::dup3(null.as_raw_fd(), number, libc::O_CLOEXEC);
                }
            }
        }
        let share_files = close_range_works();
        Ok(Self {
            cloner: Cloner::new(share_files)?,
            null,
            share_files,
            keeper: std::process::id() as i32,
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
            way_back: None,
        })
    }

    /// Spawns; returns once the child has executed its program, or with the step at which it failed.
    pub fn spawn(&mut self, order: &Order<'_>) -> Result<Child, SpawnFailure> {
        if order.pass.len() > PASS_MAX {
            return Err(SpawnFailure {
                step: SpawnStep::Prepare,
                errno: libc::EMFILE,
            });
        }
        self.go_to(order.birthplace).map_err(no_namespace)?;
        let born = self.bear(order);
        // If that fails, whoever is next is not born: not before it succeeds.
        let _ = self.go_home();
        born
    }

    fn bear(&self, order: &Order<'_>) -> Result<Child, SpawnFailure> {
        let staged = Staged::new(self.null.as_fd(), order)?;
        let argv = pointers(order.argv);
        let mut listen_pid = *b"LISTEN_PID=\0\0\0\0\0\0\0\0\0\0\0\0";
        let mut env = pointers(order.env);
        if order.listen_pid {
            env.insert(env.len() - 1, listen_pid.as_ptr().cast());
        }
        let mut plan = Plan {
            program: match order.program {
                Program::Path(path) => path.as_ptr(),
                Program::Descriptor(_) => ptr::null(),
            },
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            listen_pid: if order.listen_pid {
                listen_pid.as_mut_ptr()
            } else {
                ptr::null_mut()
            },
            staged: &staged,
            order,
            affinity: cpu_mask(order.affinity),
            keeper: self.keeper,
            unshare: self.share_files,
            join_cgroup: true,
            step: SpawnStep::Clone,
            errno: 0,
            begun: 0,
            executing: false,
        };
        let before = clock::now();
        let dumpable = order.user.is_some() && is_dumpable();
        let child = match self.clone_child(&mut plan) {
            Err(failure) if plan.join_cgroup => Err(failure),
            Err(failure) if is_about_clone3(failure) => self.clone_without_cgroup(&mut plan),
            Ok(child) if !plan.join_cgroup && plan.begun().is_none() => {
                end_unborn(&child, order);
                self.clone_without_cgroup(&mut plan)
            }
            done => done,
        };
        if dumpable {
            set_dumpable();
        }
        let mut child = child?;
        match plan.outcome() {
            None => {
                child.start_ticks = self.start_ticks(child.pid(), before, plan.begun());
                if let Some(seat) = order.seat {
                    seat.set_group(child.pid());
                }
                Ok(child)
            }
            Some(failure) => {
                end_unborn(&child, order);
                Err(failure)
            }
        }
    }

    /// Has our children born there. We ourselves stay where we are: setns(2) of a PID namespace is about children alone.
    fn go_to(&mut self, place: Birthplace<'_>) -> rustix::io::Result<()> {
        self.go_home()?;
        if let Birthplace::Namespace(there) = place {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            let here = rustix::fs::open("/proc/self/ns/pid", flags, rustix::fs::Mode::empty())?;
            set_birthplace(there)?;
            self.way_back = Some(here);
        }
        Ok(())
    }

    fn go_home(&mut self) -> rustix::io::Result<()> {
        if let Some(here) = &self.way_back {
            set_birthplace(here.as_fd())?;
            self.way_back = None;
        }
        Ok(())
    }

    /// The kernel notes a start in clock ticks. If one tick covers all of the child's birth that is the answer; reading `/proc` costs
    /// little, but makes the kernel tidy up there when the process is reaped, which costs more than the reaping.
    fn start_ticks(&self, pid: i32, before: Moment, begun: Option<Moment>) -> u64 {
        let tick = |at: Moment| at.0 / (1_000_000_000 / self.ticks_per_second);
        match begun.map(tick) {
            Some(known) if known == tick(before) => known,
            _ => Stat::read(pid).map_or(0, |stat| stat.start_ticks),
        }
    }

    /// Into its cgroup if that is thought to work, else into ours, from which it moves itself.
    fn clone_child(&self, plan: &mut Plan<'_>) -> Result<Child, SpawnFailure> {
        let leaf = plan.order.cgroup.filter(|_| self.cloner.can_enter_cgroup());
        plan.join_cgroup = leaf.is_none();
        let nowhere = AtomicI32::new(-1);
        let pidfd = match plan.order.seat {
            Some(place) => place.pidfd(),
            None => &nowhere,
        };
        let first = matches!(plan.order.birthplace, Birthplace::NewNamespace);
        let argument = ptr::from_mut(plan).cast::<c_void>();
        // SAFETY: `run` makes raw system calls only and ends in _exit; it takes a Plan, which is exclusively its own until it is gone.
        let child = unsafe { self.cloner.clone(run, argument, leaf, first, pidfd) };
        let step = if first {
            SpawnStep::Namespace
        } else {
            SpawnStep::Clone
        };
        child.map_err(|errno| SpawnFailure { step, errno })
    }

    /// No clone3 here, or one that kills what it bears: such a kernel compares how often our cgroup and the child's were killed
    /// (seen on 6.18; docs/adr/0001).
    fn clone_without_cgroup(&self, plan: &mut Plan<'_>) -> Result<Child, SpawnFailure> {
        self.cloner.never_enter_cgroup();
        self.clone_child(plan)
    }
}

fn set_birthplace(namespace: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let kind = rustix::thread::LinkNameSpaceType::ProcessID;
    rustix::thread::move_into_link_name_space(namespace, Some(kind))
}

fn no_namespace(errno: rustix::io::Errno) -> SpawnFailure {
    SpawnFailure {
        step: SpawnStep::Namespace,
        errno: errno.raw_os_error(),
    }
}

/// Reaps a child that never got as far as its program.
fn end_unborn(child: &Child, order: &Order<'_>) {
    if let Some(seat) = order.seat {
        seat.forget_process();
    }
    child::reap_now(child);
}

/// Errors of clone3 that say nothing about this child: unknown, forbidden by a filter, or not for cgroups.
fn is_about_clone3(failure: SpawnFailure) -> bool {
    [
        libc::ENOSYS,
        libc::EPERM,
        libc::EACCES,
        libc::EINVAL,
        libc::E2BIG,
        libc::EOPNOTSUPP,
        libc::EBUSY,
    ]
    .contains(&failure.errno)
}

/// May whoever has our user look at our memory (PR_GET_DUMPABLE)?
fn is_dumpable() -> bool {
    // SAFETY: reads one flag of ours.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE) == 1 }
}

/// A child that changed its user in our memory left us undumpable (prctl(2)): no core, and `/proc/self` would not be ours.
fn set_dumpable() {
    // SAFETY: sets one flag of ours; the child that shared our memory is gone.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
}

/// What the child reads, and the four fields it writes.
struct Plan<'a> {
    program: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    listen_pid: *mut u8,
    staged: &'a Staged<'a>,
    order: &'a Order<'a>,
    affinity: [u64; 16],
    keeper: i32,
    unshare: bool,
    join_cgroup: bool,
    step: SpawnStep,
    errno: i32,
    /// When, on CLOCK_BOOTTIME; 0 until then.
    begun: u64,
    executing: bool,
}

impl Plan<'_> {
    /// When the child took its first step, if it did. Volatile here and below, because the compiler did not see the child write.
    fn begun(&self) -> Option<Moment> {
        // SAFETY: the child has executed or ended (CLONE_VFORK), so nobody else writes.
        let at = unsafe { ptr::read_volatile(&raw const self.begun) };
        (at != 0).then_some(Moment(at))
    }

    /// What became of the child, once it has executed or ended.
    fn outcome(&self) -> Option<SpawnFailure> {
        // SAFETY: as above.
        let (step, errno, executing) = unsafe {
            (
                ptr::read_volatile(&raw const self.step),
                ptr::read_volatile(&raw const self.errno),
                ptr::read_volatile(&raw const self.executing),
            )
        };
        match (errno, executing) {
            (0, true) => None,
            (0, false) => Some(SpawnFailure {
                step: SpawnStep::KilledAtBirth,
                errno,
            }),
            _ => Some(SpawnFailure { step, errno }),
        }
    }
}

/// The child's life until its exec. No allocation, no lock, no libc call that is more than a system call.
extern "C" fn run(plan: *mut c_void) -> c_int {
    // SAFETY: `clone_child` passes a live, exclusive Plan; our parent sleeps until we are gone.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    plan.begun = boottime();
    if let Err((step, errno)) = child_steps(plan) {
        plan.step = step;
        plan.errno = errno;
    }
    // SAFETY: _exit runs no handlers and does not return.
    unsafe { libc::_exit(127) }
}

/// A raw system call, its failure as errno. libc's wrappers of setresuid and friends are not used: they signal all *threads*
/// of the process whose memory we borrow.
macro_rules! sys {
    ($number:expr $(, $argument:expr)*) => {{
        // SAFETY: arguments are integers or pointers into memory that outlives the call; see each use.
        let result = unsafe { libc::syscall($number $(, $argument)*) };
        if result < 0 {
            // SAFETY: errno is thread-local; the thread that shares it with us is suspended.
            Err(unsafe { *libc::__errno_location() })
        } else {
            Ok(result)
        }
    }};
}

/// CLOCK_BOOTTIME in nanoseconds; never 0.
fn boottime() -> u64 {
    let mut now = [0_i64; 2];
    let _ = sys!(
        libc::SYS_clock_gettime,
        libc::CLOCK_BOOTTIME,
        now.as_mut_ptr()
    );
    (now[0] as u64 * 1_000_000_000 + now[1] as u64).max(1)
}

fn child_steps(plan: &mut Plan<'_>) -> Result<(), (SpawnStep, i32)> {
    let order = plan.order;
    let staged = plan.staged;
    let at = |step: SpawnStep| move |errno: i32| (step, errno);
    if plan.unshare {
        sys!(
            libc::SYS_close_range,
            RESERVED,
            u32::MAX,
            libc::CLOSE_RANGE_UNSHARE
        )
        .map_err(at(SpawnStep::Descriptors))?;
    }
    if let Some(leaf) = staged.cgroup.filter(|_| plan.join_cgroup) {
        let procs = sys!(
            libc::SYS_openat,
            leaf,
            c"cgroup.procs".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC
        )
        .map_err(at(SpawnStep::JoinCgroup))?;
        sys!(libc::SYS_write, procs, c"0".as_ptr(), 1).map_err(at(SpawnStep::JoinCgroup))?;
    }
    for (target, source) in staged.targets() {
        sys!(libc::SYS_dup3, source, target, 0).map_err(at(SpawnStep::Descriptors))?;
    }
    for &number in order.keep {
        sys!(libc::SYS_fcntl, number, libc::F_SETFD, 0).map_err(at(SpawnStep::Descriptors))?;
    }
    set_dispositions(order.ignored);
    if order.session {
        sys!(libc::SYS_setsid).map_err(at(SpawnStep::Group))?;
    } else {
        sys!(libc::SYS_setpgid, 0, 0).map_err(at(SpawnStep::Group))?;
    }
    // In another PID namespace our number is not the one by which we can be killed from outside; there the whole namespace is.
    if let (Some(seat), Birthplace::Here) = (order.seat, order.birthplace) {
        let pid = sys!(libc::SYS_getpid).map_err(at(SpawnStep::Group))?;
        seat.set_group(pid as i32);
    }
    if order.foreground
        && let Ok(group) = sys!(libc::SYS_getpid)
    {
        // All signals are blocked, SIGTTOU among them: so a background group may do this (tcsetpgrp(3)). A terminal that has gone
        // away meanwhile is nobody's to have.
        let group = group as c_int;
        let _ = sys!(libc::SYS_ioctl, 0, libc::TIOCSPGRP, &raw const group);
    }
    if let Some(mask) = order.umask {
        let _ = sys!(libc::SYS_umask, mask);
    }
    for &(resource, soft, hard) in order.rlimits {
        let limit = [soft, hard];
        sys!(
            libc::SYS_prlimit64,
            0,
            resource,
            limit.as_ptr(),
            ptr::null::<u64>()
        )
        .map_err(at(SpawnStep::Limits))?;
    }
    if let Some(nice) = order.nice {
        sys!(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice).map_err(at(SpawnStep::Nice))?;
    }
    if !order.affinity.is_empty() {
        let bytes = size_of_val(&plan.affinity);
        sys!(
            libc::SYS_sched_setaffinity,
            0,
            bytes,
            plan.affinity.as_ptr()
        )
        .map_err(at(SpawnStep::Affinity))?;
    }
    if order.reset_oom_score {
        let path = c"/proc/self/oom_score_adj";
        let file = sys!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC
        )
        .map_err(at(SpawnStep::OomScore))?;
        sys!(libc::SYS_write, file, c"0".as_ptr(), 1).map_err(at(SpawnStep::OomScore))?;
    }
    if let Some(user) = order.user {
        sys!(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr())
            .map_err(at(SpawnStep::User))?;
        sys!(libc::SYS_setresgid, user.gid, user.gid, user.gid).map_err(at(SpawnStep::User))?;
        sys!(libc::SYS_setresuid, user.uid, user.uid, user.uid).map_err(at(SpawnStep::User))?;
    }
    if order.no_new_privs {
        sys!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            .map_err(at(SpawnStep::NoNewPrivs))?;
    }
    if order.die_with_parent {
        // After setresuid, which clears it.
        sys!(
            libc::SYS_prctl,
            libc::PR_SET_PDEATHSIG,
            libc::SIGKILL,
            0,
            0,
            0
        )
        .map_err(at(SpawnStep::ParentDeath))?;
        // Our parent may have died before it was armed. In another PID namespace it has no number, and whoever is first there has other
        // ways to notice.
        if matches!(order.birthplace, Birthplace::Here)
            && sys!(libc::SYS_getppid) != Ok(i64::from(plan.keeper))
        {
            return Err((SpawnStep::ParentDeath, libc::ESRCH));
        }
    }
    if let Some(cwd) = order.cwd {
        sys!(libc::SYS_chdir, cwd.as_ptr()).map_err(at(SpawnStep::WorkingDir))?;
    }
    if !plan.listen_pid.is_null() {
        let pid = sys!(libc::SYS_getpid).map_err(at(SpawnStep::Prepare))?;
        write_decimal(plan.listen_pid, pid);
    }
    let empty = 0_u64;
    sys!(
        libc::SYS_rt_sigprocmask,
        libc::SIG_SETMASK,
        &raw const empty,
        ptr::null::<u64>(),
        8
    )
    .map_err(at(SpawnStep::Exec))?;
    // After this look the deadline thread knows us by our pidfd, if it does not already.
    if order.seat.is_some_and(|seat| !seat.stands()) {
        return Err((SpawnStep::Deadline, libc::ETIME));
    }
    plan.executing = true;
    match staged.program {
        None => sys!(libc::SYS_execve, plan.program, plan.argv, plan.env),
        Some(fd) => sys!(
            libc::SYS_execveat,
            fd,
            c"".as_ptr(),
            plan.argv,
            plan.env,
            libc::AT_EMPTY_PATH
        ),
    }
    .map_err(at(SpawnStep::Exec))?;
    Ok(())
}

/// SIG_DFL for all 64, or SIG_IGN for those that are to stay `ignored`: *ignored* signals survive exec, and Rust's runtime ignores SIGPIPE;
/// one that we had found ignored may have a handler by now (a second thread brings glibc's).
fn set_dispositions(ignored: u64) {
    for number in 1..=64_i64 {
        // struct kernel_sigaction: handler (SIG_DFL is 0, SIG_IGN 1), flags, restorer, mask.
        let action = [ignored >> (number - 1) & 1, 0, 0, 0];
        // SIGKILL and SIGSTOP answer EINVAL.
        let _ = sys!(
            libc::SYS_rt_sigaction,
            number,
            action.as_ptr(),
            ptr::null::<u64>(),
            8
        );
    }
}

/// Writes `number` after the `LISTEN_PID=` that `out` begins with.
fn write_decimal(out: *mut u8, number: i64) {
    let mut digits = [0_u8; 10];
    let mut rest = number.unsigned_abs();
    let mut length = 0;
    while length < digits.len() && (rest > 0 || length == 0) {
        digits[length] = b'0' + (rest % 10) as u8;
        rest /= 10;
        length += 1;
    }
    for (place, digit) in digits[..length].iter().rev().enumerate() {
        // SAFETY: the buffer has 12 bytes behind its 11-byte head, at most 10 are written, the last stays NUL.
        unsafe { out.add(11 + place).write(*digit) };
    }
}

/// Copies of what the child inherits, in the range that it keeps when it unshares the descriptor table. Dropped as soon
/// as the child has them: a copy left behind would keep a pipe from its end of file.
struct Staged<'a> {
    null: BorrowedFd<'a>,
    used: c_int,
    stdio: [c_int; 3],
    first_pass: c_int,
    first_target: c_int,
    pass: usize,
    cgroup: Option<c_int>,
    program: Option<c_int>,
}

impl<'a> Staged<'a> {
    fn new(null: BorrowedFd<'a>, order: &Order<'_>) -> Result<Self, SpawnFailure> {
        let mut staged = Self {
            null,
            used: STAGE,
            stdio: [0; 3],
            first_pass: 0,
            first_target: order.first_pass,
            pass: order.pass.len(),
            cgroup: None,
            program: None,
        };
        for (place, source) in [order.stdin, order.stdout, order.stderr]
            .into_iter()
            .enumerate()
        {
            staged.stdio[place] = staged.put(source.unwrap_or(null))?;
        }
        if let Some(fd) = order.cgroup {
            staged.cgroup = Some(staged.put(fd)?);
        }
        if let Program::Descriptor(fd) = order.program {
            staged.program = Some(staged.put(fd)?);
        }
        staged.first_pass = staged.used;
        for fd in order.pass {
            staged.put(*fd)?;
        }
        Ok(staged)
    }

    fn put(&mut self, source: BorrowedFd<'_>) -> Result<c_int, SpawnFailure> {
        let place = self.used;
        // SAFETY: dup3 touches no memory; `place` lies in the range that `Spawner::new` reserved for exactly this.
        let done = unsafe { libc::dup3(source.as_raw_fd(), place, libc::O_CLOEXEC) };
        if done < 0 {
            let errno = io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO);
            return Err(SpawnFailure {
                step: SpawnStep::Descriptors,
                errno,
            });
        }
        self.used += 1;
        Ok(place)
    }

    /// `(descriptor in the program, staged copy)`.
    fn targets(&self) -> impl Iterator<Item = (c_int, c_int)> + '_ {
        let stdio = (0..3).zip(self.stdio);
        let pass = (0..self.pass as c_int).map(|n| (self.first_target + n, self.first_pass + n));
        stdio.chain(pass)
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        for place in STAGE..self.used {
            // SAFETY: dup3 touches no memory; it puts the reserved descriptor back to /dev/null.
            unsafe { libc::dup3(self.null.as_raw_fd(), place, libc::O_CLOEXEC) };
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([ptr::null()])
        .collect()
}

fn cpu_mask(cpus: &[u32]) -> [u64; 16] {
    let mut mask = [0; 16];
    for &cpu in cpus {
        if let Some(word) = mask.get_mut(cpu as usize / 64) {
            *word |= 1 << (cpu % 64);
        }
    }
    mask
}

/// close_range(2) came with Linux 5.9; without it every child copies our table, and close-on-exec does the rest.
fn close_range_works() -> bool {
    // SAFETY: an empty range at the far end of the number space; no descriptor is touched.
    unsafe { libc::syscall(libc::SYS_close_range, u32::MAX - 1, u32::MAX - 1, 0) == 0 }
}

/// What we inherited from whoever started us must not reach the workers.
fn mark_cloexec_from(first: c_int) {
    for number in first..1024 {
        // SAFETY: fcntl with F_SETFD touches no memory; numbers that are not open answer EBADF.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}
