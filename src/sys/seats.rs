//! The table through which the keeper's main thread and its deadline thread share what is to be killed, and when. Neither ever waits
//! for the other to be scheduled while it holds anything: everything is an atomic.
//!
//! ```text
//!   FREE ──arm──▶ ARMED ◀──extend── TOUCHED
//!                   │ deadline: signals
//!                   ▼
//!                KILLING ──cgroup.kill──▶ FIRED ──disarm──▶ FREE
//! ```
//!
//! Only the deadline thread changes a seat's state. The main thread publishes descriptors in it before a process is made, and takes
//! them out again before it closes them or reaps the process: out of the seat first, then a look whether the other one still has
//! its hands on it ([`Claim::drop`]). So the deadline thread signals nothing that is not, at that moment, the gated worker.
#![expect(
    unsafe_code,
    reason = "signals by number, a scheduling class, and a page by address have no safe wrapper"
)]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    ptr,
    sync::atomic::{
        AtomicI32, AtomicPtr, AtomicU32, AtomicU64,
        Ordering::{Acquire, SeqCst},
    },
    thread,
};

use rustix::mm::{MlockAllFlags, mlockall};

use crate::{
    sys::{
        clock,
        page::{Contents, Page, Words},
    },
    time::{Clocks, Moment, Span},
    wire::{SeatReport, SeatState},
};

/// So many deadlines can stand at once.
pub const SEATS: usize = 256;

const FREE: u32 = 0;
const ARMED: u32 = 1;
const TOUCHED: u32 = 2;
const KILLING: u32 = 3;
const FIRED: u32 = 4;

/// "No descriptor."
const NONE: i32 = -1;

/// Whom a deadline ends, by all the names that he has.
#[derive(Debug)]
struct Names {
    /// `cgroup.kill` of its leaf.
    leaf: AtomicI32,
    /// Its leader; written by the kernel while that is made.
    pidfd: AtomicI32,
    /// Its process group; written by the leader itself, or by its parent where it does not know its own number.
    group: AtomicI32,
    /// The first process of its PID namespace, if it has one of its own; 0 if not.
    init: AtomicI32,
}

impl Names {
    const fn new() -> Self {
        Self {
            leaf: AtomicI32::new(NONE),
            pidfd: AtomicI32::new(NONE),
            group: AtomicI32::new(0),
            init: AtomicI32::new(0),
        }
    }

    fn is_nobody(&self) -> bool {
        self.leaf.load(SeqCst) == NONE
            && self.pidfd.load(SeqCst) == NONE
            && self.group.load(SeqCst) == 0
            && self.init.load(SeqCst) == 0
    }

    fn clear(&self) {
        self.leaf.store(NONE, SeqCst);
        self.pidfd.store(NONE, SeqCst);
        self.group.store(0, SeqCst);
        self.init.store(0, SeqCst);
    }

    /// SIGKILL to the leader, its group, and all of its namespace.
    fn strike(&self) {
        let pidfd = self.pidfd.load(SeqCst);
        let group = self.group.load(SeqCst);
        let init = self.init.load(SeqCst);
        // To die takes processor time, of which busy neighbours leave little; it executes nothing of its own any more, so it may go first.
        let first = libc::sched_param { sched_priority: 1 };
        let class = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
        // SAFETY: system calls that touch no memory but the parameter. The numbers are those of this seat's processes: the main thread
        // takes them out and waits until the state is not KILLING before it closes the descriptor or reaps whom they name.
        unsafe {
            let mut killed = false;
            if pidfd != NONE {
                let no_info = ptr::null::<libc::siginfo_t>();
                let sent = libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    pidfd,
                    libc::SIGKILL,
                    no_info,
                    0,
                );
                killed = sent == 0;
            }
            if group > 1 {
                libc::kill(-group, libc::SIGKILL);
                if killed {
                    libc::sched_setscheduler(group, class, &raw const first);
                }
            }
            // It is what the kernel has kill the others.
            if init > 1 && libc::kill(init, libc::SIGKILL) == 0 {
                libc::sched_setscheduler(init, class, &raw const first);
            }
        }
    }

    /// SIGKILL to everything else of it.
    fn finish(&self) {
        let leaf = self.leaf.load(SeqCst);
        if leaf != NONE {
            // SAFETY: the constant is valid for the call; as for the number, see above.
            unsafe { libc::write(leaf, c"1".as_ptr().cast(), 1) };
        }
    }
}

/// One deadline, and who ends with it.
#[derive(Debug)]
pub struct Seat {
    state: AtomicU32,
    key: AtomicU64,
    fence: AtomicU64,
    boottime: AtomicU64,
    raw: AtomicU64,
    /// How late it was killed, in ns.
    late: AtomicU64,
    /// The worker, or the hook before him.
    holder: Names,
    /// The hook that runs before his end, and perhaps for a moment longer than he does.
    farewell: Names,
    page: AtomicPtr<Words>,
}

impl Seat {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            key: AtomicU64::new(0),
            fence: AtomicU64::new(0),
            boottime: AtomicU64::new(0),
            raw: AtomicU64::new(0),
            late: AtomicU64::new(0),
            holder: Names::new(),
            farewell: Names::new(),
            page: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Does a deadline stand that nobody has said to have come?
    fn is_armed(&self) -> bool {
        matches!(self.state.load(SeqCst), ARMED | TOUCHED)
    }

    /// Has its deadline not come yet? When we were stopped or the machine slept, the other thread may not have looked yet.
    fn stands(&self) -> bool {
        self.is_armed() && !clock::both().has_passed(self.until())
    }

    fn until(&self) -> Clocks {
        Clocks {
            boottime: Moment(self.boottime.load(SeqCst)),
            raw: Moment(self.raw.load(SeqCst)),
        }
    }

    fn set_until(&self, until: Clocks) {
        self.boottime.store(until.boottime.0, SeqCst);
        self.raw.store(until.raw.0, SeqCst);
    }

    /// Only ever as long as the other thread makes a few system calls.
    fn wait_while_busy(&self) {
        while matches!(self.state.load(SeqCst), TOUCHED | KILLING) {
            thread::yield_now();
        }
    }

    fn is_occupied(&self) -> bool {
        let is_nobody = self.holder.is_nobody() && self.farewell.is_nobody();
        !is_nobody || !self.page.load(SeqCst).is_null()
    }

    fn report(&self) -> SeatReport {
        let state = match self.state.load(SeqCst) {
            FREE => SeatState::Free,
            FIRED => SeatState::Fired {
                late: Span::nanos(self.late.load(SeqCst)),
            },
            _ => SeatState::Armed,
        };
        SeatReport {
            key: self.key.load(SeqCst),
            fence: self.fence.load(SeqCst),
            until: self.until(),
            state,
        }
    }

    fn extend(&self, until: Clocks) {
        self.state.store(TOUCHED, SeqCst);
        self.set_until(until);
        let page = self.page.load(SeqCst);
        if !page.is_null() {
            // SAFETY: the main thread takes the address out of the seat and waits until its state is not TOUCHED before it
            // unmaps the page, so it is mapped; it writes there itself only while the address is not in the seat.
            unsafe { &*page }.extend(until);
        }
        self.state.store(ARMED, SeqCst);
    }

    /// SIGKILL to who is named. Their cgroups are for [`Seat::finish`]: that write waits for whoever changes any cgroup.
    fn strike(&self, now: Clocks) {
        let until = self.until();
        self.state.store(KILLING, SeqCst);
        self.holder.strike();
        self.farewell.strike();
        let by_boottime = now.boottime.since(until.boottime);
        let late = by_boottime.max(now.raw.since(until.raw));
        self.late.store(late.as_nanos(), SeqCst);
    }

    fn finish(&self) {
        self.holder.finish();
        self.farewell.finish();
        self.state.store(FIRED, SeqCst);
    }
}

/// The table.
#[derive(Debug)]
pub struct Seats([Seat; SEATS]);

impl Seats {
    /// An empty one, for ever: a thread of its own reads it until the process ends.
    pub fn new() -> &'static Self {
        Box::leak(Box::new(Self([const { Seat::new() }; SEATS])))
    }

    /// Sets or moves a deadline; it only moves forward. What stands now. For the deadline thread alone.
    pub fn arm(&self, key: u64, fence: u64, until: Clocks) -> SeatReport {
        let refused = SeatReport {
            key,
            fence,
            until: Clocks::default(),
            state: SeatState::Free,
        };
        let Some(seat) = self.find(key).or_else(|| self.free()) else {
            return refused;
        };
        let same = seat.fence.load(SeqCst) == fence;
        match seat.state.load(SeqCst) {
            ARMED if same => {
                if until.is_after(seat.until()) {
                    seat.extend(until);
                }
            }
            FIRED if same => {}
            FREE | ARMED | FIRED if !seat.is_occupied() => {
                seat.key.store(key, SeqCst);
                seat.fence.store(fence, SeqCst);
                seat.set_until(until);
                seat.state.store(ARMED, SeqCst);
            }
            // Another holder's worker is still there.
            _ => return refused,
        }
        seat.report()
    }

    /// Gives a seat back, unless a process is in it. What stands now. For the deadline thread alone.
    pub fn disarm(&self, key: u64, fence: u64) -> SeatReport {
        let free = SeatReport {
            key,
            fence,
            until: Clocks::default(),
            state: SeatState::Free,
        };
        let Some(seat) = self.find(key).filter(|s| s.fence.load(SeqCst) == fence) else {
            return free;
        };
        let before = seat.state.swap(TOUCHED, SeqCst);
        let after = if seat.is_occupied() { before } else { FREE };
        seat.state.store(after, SeqCst);
        if after == FREE { free } else { seat.report() }
    }

    /// Kills what is due and calls `told` for each. For the deadline thread alone.
    pub fn fire(&self, now: Clocks, mut told: impl FnMut(SeatReport)) {
        for seat in &self.0 {
            if seat.state.load(Acquire) == ARMED && now.has_passed(seat.until()) {
                seat.strike(now);
            }
        }
        for seat in &self.0 {
            if seat.state.load(Acquire) == KILLING {
                seat.finish();
                told(seat.report());
            }
        }
    }

    /// When to look again.
    pub fn next_look(&self, now: Clocks) -> Option<Moment> {
        let armed = self
            .0
            .iter()
            .filter(|seat| seat.state.load(Acquire) == ARMED);
        armed.map(|seat| now.next_look(seat.until())).min()
    }

    /// Does any deadline stand?
    pub fn stands_any(&self) -> bool {
        self.0.iter().any(Seat::is_armed)
    }

    /// Everything that is not free.
    pub fn reports(&self) -> impl Iterator<Item = SeatReport> + '_ {
        let busy = self
            .0
            .iter()
            .filter(|seat| seat.state.load(Acquire) != FREE);
        busy.map(Seat::report)
    }

    /// Puts a process that is about to be made into its seat: a page for it, and what kills it. None if no such deadline stands.
    pub fn hold(
        &'static self,
        key: u64,
        leaf: Option<OwnedFd>,
        contents: &Contents,
    ) -> io::Result<Option<(Hold, OwnedFd)>> {
        let Some(seat) = self.standing(key, contents.fence) else {
            return Ok(None);
        };
        let (page, fd) = Page::new(contents)?;
        Ok(Hold::take((seat, contents), leaf, page, None).map(|hold| (hold, fd)))
    }

    /// Puts a process that is there already into its seat, with the page that it has had so far. None if no such deadline stands, and the
    /// page is over then.
    pub fn promote(
        &'static self,
        key: u64,
        leaf: Option<OwnedFd>,
        page: Page,
        contents: &Contents,
        who: Leader,
    ) -> Option<Hold> {
        let Some(seat) = self.standing(key, contents.fence) else {
            page.words().write(&Contents::OVER);
            return None;
        };
        Hold::take((seat, contents), leaf, page, Some(who))
    }

    /// The seat of a holder whose deadline stands, if nobody is in it.
    fn standing(&'static self, key: u64, fence: u64) -> Option<&'static Seat> {
        let seat = self.find(key)?;
        let is_free = seat.stands() && !seat.is_occupied();
        (is_free && seat.fence.load(SeqCst) == fence).then_some(seat)
    }

    fn find(&self, key: u64) -> Option<&Seat> {
        let used = self.0.iter().filter(|seat| seat.state.load(SeqCst) != FREE);
        used.into_iter().find(|seat| seat.key.load(SeqCst) == key)
    }

    fn free(&self) -> Option<&Seat> {
        self.0.iter().find(|seat| seat.state.load(SeqCst) == FREE)
    }
}

/// A process that is there already.
#[derive(Clone, Copy, Debug)]
pub struct Leader {
    /// Its pidfd, which stays open until [`Place::forget_process`].
    pub pidfd: i32,
    /// Its process group.
    pub group: i32,
    /// The first process of its PID namespace, if it has one of its own.
    pub init: Option<i32>,
}

/// One of the two whom a deadline ends.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    seat: &'static Seat,
    names: &'static Names,
}

impl Place {
    /// Has its deadline not come yet? What the child asks as its last step before it executes.
    pub(super) fn stands(self) -> bool {
        self.seat.stands()
    }

    /// Where the kernel writes the pidfd of the leader.
    pub(super) fn pidfd(self) -> &'static AtomicI32 {
        &self.names.pidfd
    }

    /// The leader, in its own words.
    pub(super) fn set_group(self, pid: i32) {
        self.names.group.store(pid, SeqCst);
    }

    /// With this process, a child of the main thread's, everything in the leader's PID namespace ends.
    pub fn set_init(self, pid: i32) {
        self.names.init.store(pid, SeqCst);
    }

    /// That process is about to be reaped: nothing here names it any more when this returns.
    pub fn forget_init(self) {
        self.names.init.store(0, SeqCst);
        self.seat.wait_while_busy();
    }

    /// The process is about to be reaped and its pidfd closed: nothing here names it any more when this returns.
    pub fn forget_process(self) {
        self.names.pidfd.store(NONE, SeqCst);
        self.names.group.store(0, SeqCst);
        self.seat.wait_while_busy();
    }
}

/// A process's claim to its place. When it is dropped, nothing in the table names the process any more.
#[derive(Debug)]
pub struct Claim {
    place: Place,
    leaf: Option<OwnedFd>,
}

impl Claim {
    fn new(seat: &'static Seat, names: &'static Names, leaf: Option<OwnedFd>) -> Self {
        let place = Place { seat, names };
        let claim = Self { place, leaf };
        if let Some(leaf) = &claim.leaf {
            names.leaf.store(leaf.as_raw_fd(), SeqCst);
        }
        claim
    }

    /// For the making of the process.
    pub fn place(&self) -> Place {
        self.place
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.place.names.clear();
        self.place.seat.wait_while_busy();
    }
}

/// A gated process's place in the table, and its page. When it is dropped, nothing in the table names the process any more and its page is zero.
#[derive(Debug)]
pub struct Hold {
    claim: Claim,
    page: Page,
}

impl Hold {
    /// Takes the seat. None if it was given back, or has fired, meanwhile.
    fn take(
        (seat, contents): (&'static Seat, &Contents),
        leaf: Option<OwnedFd>,
        page: Page,
        who: Option<Leader>,
    ) -> Option<Self> {
        let claim = Claim::new(seat, &seat.holder, leaf);
        let hold = Self { claim, page };
        let stands = || seat.stands() && seat.fence.load(SeqCst) == contents.fence;
        if let Some(Leader { pidfd, group, init }) = who {
            seat.holder.pidfd.store(pidfd, SeqCst);
            seat.holder.group.store(group, SeqCst);
            seat.holder.init.store(init.unwrap_or(0), SeqCst);
            // It learns that it leads when nothing can come between it and its deadline any more: whoever strikes says so first, and
            // looks then whom.
            if !stands() {
                return None;
            }
            let until = seat.until();
            hold.page.words().write(&Contents { until, ..*contents });
        }
        hold.publish_page();
        stands().then_some(hold)
    }

    fn seat(&self) -> &'static Seat {
        self.claim.place.seat
    }

    /// Its place, for the making of the process.
    pub fn place(&self) -> Place {
        self.claim.place
    }

    /// The place beside it, for the hook before its end. None if the deadline has come, or somebody is there.
    pub fn farewell(&self, leaf: Option<OwnedFd>) -> Option<Claim> {
        let seat = self.seat();
        let is_free = seat.stands() && seat.farewell.is_nobody();
        is_free.then(|| Claim::new(seat, &seat.farewell, leaf))
    }

    /// Names the holder.
    pub fn fence(&self) -> u64 {
        self.seat().fence.load(SeqCst)
    }

    /// Shows the page the deadline that stands, and leaves it to the other thread, unless the deadline moved meanwhile.
    fn publish_page(&self) {
        let words = self.page.words();
        loop {
            let seat = self.seat();
            let until = seat.until();
            words.extend(until);
            seat.page.store(ptr::from_ref(words).cast_mut(), SeqCst);
            if seat.until() == until {
                return;
            }
            self.take_page();
        }
    }

    fn take_page(&self) {
        self.seat().page.store(ptr::null_mut(), SeqCst);
        self.seat().wait_while_busy();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.take_page();
        self.page.words().write(&Contents::OVER);
    }
}

/// Puts the calling thread before all others, and keeps in memory what of us is there: where we may (CAP_SYS_NICE or RLIMIT_RTPRIO,
/// CAP_IPC_LOCK or RLIMIT_MEMLOCK).
pub fn become_urgent() {
    let priority = libc::sched_param { sched_priority: 50 };
    let class = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is the calling thread; the parameter is valid for the call.
    let _ = unsafe { libc::sched_setscheduler(0, class, &raw const priority) };
    let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT);
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    const CONTENTS: Contents = Contents {
        until: Clocks::NEVER,
        fence: 7,
        epoch: 0,
        generation: 1,
        role: 1,
    };

    /// A process in a seat, and how to see it end.
    struct Worker {
        child: Child,
        pidfd: OwnedFd,
        hold: Option<Hold>,
        page: OwnedFd,
    }

    impl Worker {
        fn new(seats: &'static Seats) -> Self {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            let pid = Pid::from_raw(child.id() as i32).unwrap();
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            let (hold, page) = seats.hold(1, None, &CONTENTS).unwrap().unwrap();
            hold.place().pidfd().store(pidfd.as_raw_fd(), SeqCst);
            Self {
                child,
                pidfd,
                hold: Some(hold),
                page,
            }
        }

        fn page(&self) -> Contents {
            said(&self.page)
        }

        fn has_ended(&mut self) -> bool {
            self.child.try_wait().unwrap().is_some()
        }
    }

    /// What a worker reads.
    fn said(page: &OwnedFd) -> Contents {
        let mut bytes = [0; 64];
        assert_eq!(rustix::io::pread(page, &mut bytes, 0), Ok(64));
        let word = |n: usize| u64::from_ne_bytes(bytes[n * 8..][..8].try_into().unwrap());
        Contents {
            until: Clocks {
                boottime: Moment(word(2)),
                raw: Moment(word(3)),
            },
            fence: word(4),
            epoch: word(5),
            generation: word(6),
            role: word(7),
        }
    }

    impl Drop for Worker {
        fn drop(&mut self) {
            self.hold = None;
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = &self.pidfd;
        }
    }

    fn fired(seats: &Seats, now: Clocks) -> Vec<SeatReport> {
        let mut all = Vec::new();
        seats.fire(now, |report| all.push(report));
        all
    }

    #[test]
    fn a_deadline_kills_when_it_comes_and_not_before() {
        let (seats, now) = (Seats::new(), clock::both());
        let until = now.after(Span::secs(10));
        assert_eq!(seats.arm(1, 7, until).state, SeatState::Armed);
        let mut worker = Worker::new(seats);
        assert_eq!(worker.page(), Contents { until, ..CONTENTS });
        assert_eq!(fired(seats, now.after(Span::millis(9_999))), []);
        assert!(!worker.has_ended());
        // Either clock alone is enough.
        let raced = Clocks {
            boottime: now.boottime,
            raw: until.raw.after(Span::millis(3)),
        };
        let reports = fired(seats, raced);
        let late = Span::millis(3);
        assert_eq!(reports[0].state, SeatState::Fired { late });
        worker.child.wait().unwrap();
        assert_eq!(fired(seats, until), [], "it fires once");
        assert!(!worker.hold.as_ref().unwrap().seat().is_armed());
        assert_eq!(seats.disarm(1, 7).state, reports[0].state, "occupied");
        worker.hold = None;
        assert_eq!(worker.page(), Contents::OVER);
        assert_eq!(seats.disarm(1, 7).state, SeatState::Free);
        assert_eq!(seats.reports().count(), 0);
    }

    #[test]
    fn deadlines_move_forward_only_and_the_page_follows() {
        let (seats, now) = (Seats::new(), clock::both());
        seats.arm(1, 7, now.after(Span::secs(10)));
        let worker = Worker::new(seats);
        let later = now.after(Span::secs(20));
        assert_eq!(seats.arm(1, 7, later).until, later);
        assert_eq!(worker.page().until, later);
        assert_eq!(seats.arm(1, 7, now.after(Span::secs(15))).until, later);
        assert_eq!(worker.page().until, later);
        assert_eq!(fired(seats, now.after(Span::secs(19))), []);
    }

    /// A hook that runs before a worker's end is under his deadline, also where he has gone before it.
    #[test]
    fn a_deadline_ends_a_farewell_too_and_none_begins_after_it() {
        let (seats, now) = (Seats::new(), clock::both());
        let until = now.after(Span::secs(10));
        seats.arm(1, 7, until);
        let mut worker = Worker::new(seats);
        let mut hook = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(hook.id() as i32).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let beside = worker.hold.as_ref().unwrap().farewell(None).unwrap();
        beside.place().pidfd().store(pidfd.as_raw_fd(), SeqCst);
        let again = worker.hold.as_ref().unwrap().farewell(None);
        assert!(again.is_none(), "it is there");
        worker.hold = None;
        assert_eq!(seats.disarm(1, 7).state, SeatState::Armed, "occupied");
        let next = seats.arm(1, 8, until.after(Span::secs(1)));
        assert_eq!(next.state, SeatState::Free, "refused");
        assert!(beside.place().stands());
        assert_eq!(fired(seats, until).len(), 1);
        hook.wait().unwrap();
        assert!(!worker.has_ended());
        assert!(!beside.place().stands());
        drop(beside);
        assert_eq!(seats.disarm(1, 7).state, SeatState::Free);
        seats.arm(1, 7, clock::both().after(Span::millis(30)));
        let worker = Worker::new(seats);
        while worker.hold.as_ref().unwrap().place().stands() {
            thread::yield_now();
        }
        let late = worker.hold.as_ref().unwrap().farewell(None);
        assert!(late.is_none(), "the other thread has not looked yet");
    }

    #[test]
    fn who_has_left_its_seat_is_not_killed() {
        let (seats, now) = (Seats::new(), clock::both());
        seats.arm(1, 7, now.after(Span::secs(1)));
        let mut worker = Worker::new(seats);
        worker.hold = None;
        assert_eq!(fired(seats, now.after(Span::secs(2))).len(), 1);
        assert!(!worker.has_ended());
    }

    #[test]
    fn a_standby_is_promoted_in_the_page_that_it_has() {
        let (seats, now) = (Seats::new(), clock::both());
        let standby = Contents {
            until: Contents::OVER.until,
            fence: 0,
            role: crate::wire::STANDBY,
            ..CONTENTS
        };
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let who = Leader {
            pidfd: pidfd.as_raw_fd(),
            group: 0,
            init: None,
        };
        let until = now.after(Span::secs(10));
        let (page, shown) = Page::new(&standby).unwrap();
        assert!(seats.promote(1, None, page, &CONTENTS, who).is_none());
        assert_eq!(said(&shown), Contents::OVER, "nobody armed it");
        seats.arm(1, 7, until);
        let (page, shown) = Page::new(&standby).unwrap();
        assert_eq!(said(&shown), standby);
        let hold = seats.promote(1, None, page, &CONTENTS, who).unwrap();
        assert_eq!(said(&shown), Contents { until, ..CONTENTS });
        let later = now.after(Span::secs(20));
        seats.arm(1, 7, later);
        assert_eq!(said(&shown).until, later);
        assert_eq!(fired(seats, later).len(), 1);
        child.wait().unwrap();
        drop(hold);
        assert_eq!(said(&shown), Contents::OVER);
    }

    /// A keeper that was frozen may have its first thread running again before its second.
    #[test]
    fn nobody_gets_a_seat_whose_time_is_over() {
        let (seats, now) = (Seats::new(), clock::both());
        let by_raw_alone = Clocks {
            boottime: now.boottime.after(Span::secs(10)),
            raw: now.raw,
        };
        let who = Leader {
            pidfd: NONE,
            group: 0,
            init: None,
        };
        for (key, until) in [(1, now), (2, by_raw_alone)] {
            assert_eq!(seats.arm(key, 7, until).state, SeatState::Armed);
            assert!(seats.hold(key, None, &CONTENTS).unwrap().is_none());
            let (page, shown) = Page::new(&CONTENTS).unwrap();
            assert!(seats.promote(key, None, page, &CONTENTS, who).is_none());
            assert_eq!(said(&shown), Contents::OVER);
        }
    }

    #[test]
    fn only_the_holder_that_was_armed_gets_a_seat() {
        let (seats, now) = (Seats::new(), clock::both());
        let hold = |key| seats.hold(key, None, &CONTENTS).unwrap().is_some();
        assert!(!hold(1), "nobody armed it");
        seats.arm(1, 6, now.after(Span::secs(1)));
        assert!(!hold(1), "another fence");
        seats.arm(1, 7, now.after(Span::secs(1)));
        assert!(!hold(2), "another worker");
        let worker = Worker::new(seats);
        assert!(!hold(1), "it is taken");
        let refused = seats.arm(1, 8, now.after(Span::secs(9)));
        assert_eq!(refused.state, SeatState::Free, "the old holder is there");
        drop(worker);
        fired(seats, now.after(Span::secs(2)));
        assert!(!hold(1), "its deadline has passed");
        let same = seats.arm(1, 7, now.after(Span::secs(9)));
        assert!(matches!(same.state, SeatState::Fired { .. }), "{same:?}");
        assert_eq!(
            seats.arm(1, 8, now.after(Span::secs(9))).state,
            SeatState::Armed
        );
    }

    #[test]
    fn there_are_only_so_many_seats() {
        let (seats, until) = (Seats::new(), clock::both().after(Span::secs(9)));
        for key in 1..=SEATS as u64 {
            assert_eq!(seats.arm(key, 1, until).state, SeatState::Armed);
        }
        assert_eq!(seats.arm(9_999, 1, until).state, SeatState::Free);
        seats.disarm(17, 1);
        assert_eq!(seats.arm(9_999, 1, until).state, SeatState::Armed);
    }
}
