//! Leases of gated workers, and their deadlines: whoever is killed, frozen or busy, nothing of the worker is there when the lease may be
//! somebody else's. The authority is a file that names who may hold, `nobody` among them.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use leasehold::{
    sys::clock,
    time::{Moment, Span},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open},
};

use crate::{
    freeze::{Freeze, tracer},
    hang::Hang,
    pages::{Readers, page_number, page_of},
    rig::{
        Mode, Rig, both_ways, identities, is_root, lives, pause, send, skip, state_of, until,
        until_true,
    },
    singletons::{Beat, Dice, rounds, speaks_never_again},
};

both_ways!(
    it_ends_when_it_is_not_renewed,
    nothing_takes_a_renewed_lease_away,
    a_hung_supervisor_is_replaced_before_its_worker_ends,
    it_ends_though_the_supervisor_is_frozen,
    it_ends_though_supervisors_are_killed_again_and_again,
    it_ends_though_the_keeper_is_frozen,
    with_both_frozen_the_page_says_so,
    it_ends_among_busy_loops,
    it_ends_though_the_keeper_hangs_in_a_spawn,
    it_ends_though_the_keepers_main_thread_is_frozen,
    one_holder_at_a_time_from_lease_to_lease,
    many_leases_at_once,
    its_hook_ends_though_the_supervisor_is_frozen,
    its_hook_ends_though_the_keeper_is_frozen,
    its_farewell_ends_though_all_but_the_second_thread_is_frozen,
    it_ends_in_its_namespace_when_it_is_not_renewed,
    it_ends_in_its_namespace_though_the_keeper_is_frozen,
    it_ends_in_its_namespace_though_the_keepers_main_thread_is_frozen,
);

/// What the lease of the worker under test is made of.
pub(crate) const LONG: &str = r#"ttl = "5s", grace = "500ms", kill_margin = "500ms""#;
/// The same for one of whom nothing may outlive the daemon.
const ENCLOSED: &str =
    r#"ttl = "5s", grace = "500ms", kill_margin = "500ms", containment = "strict""#;
/// After its deadline nothing of it may be there.
const KILL_MARGIN: Span = Span::millis(500);
/// From one renewal to the next.
const RENEWED: u64 = 1_000;

/// A daemon with one worker on a lease.
struct Leased {
    rig: Rig,
    node: &'static str,
    authority: PathBuf,
}

impl Leased {
    /// None if there is no C compiler. It has a grandchild where that is contained for certain.
    fn new(rig: Rig, lease: &str) -> Option<Self> {
        let dir = rig.path("").display().to_string();
        Self::with(rig, "a", Path::new(&dir), lease, "")
    }

    fn with(
        mut rig: Rig,
        node: &'static str,
        shared: &Path,
        lease: &str,
        more: &str,
    ) -> Option<Self> {
        let program = rig.compile("beat", include_str!("beat.c"), &[])?;
        let authority = shared.join("authority");
        let how = match rig.mode {
            Mode::Cgroup => "-gi",
            Mode::Group if lease.contains("strict") => "-gi",
            Mode::Group => "-i",
        };
        rig.configure(&format!(
            r#"
            [node]
            name = "{node}"
            [fleet.job]
            command = ["{}", "{}", "{node}", "{how}"]
            singleton = {{ scope = "test", flock = "{{dir}}/lock", authority = "{}", {lease} }}
            restart = {{ backoff = "1ms..5ms", burst = 100000 }}
            stop.timeout = "1s"
            {more}
            "#,
            program.display(),
            shared.join("beats").display(),
            authority.display(),
        ));
        rig.wrapper
            .extend(["/usr/bin/env", "LEASEHOLD_TEST_GATE=1"].map(str::to_owned));
        Some(Self {
            rig,
            node,
            authority,
        })
    }

    fn owner(&self, name: &str) {
        // As a whole: nobody may read half a name.
        let new = self.authority.with_extension("new");
        fs::write(&new, name).unwrap();
        fs::rename(new, &self.authority).unwrap();
    }

    fn start(&mut self) -> Holder {
        self.owner(self.node);
        self.rig.start();
        self.holder()
    }

    fn freeze_supervisor(&self) -> Option<Freeze> {
        Freeze::new(&self.rig, "freeze", self.rig.status().supervisor())
    }

    /// A hang is noticed after a second at the soonest.
    fn freeze_supervisor_before(&self, deadline: Moment) -> Option<Freeze> {
        let supervisor = self.rig.status().supervisor();
        tracer(&self.rig)?;
        let soon = Moment(deadline.0 - Span::secs(1).as_nanos());
        until_true("the deadline is near", 8_000, || clock::now() >= soon);
        let frozen = Freeze::new(&self.rig, "freeze", supervisor);
        assert!(clock::now() < deadline, "it was frozen too late");
        frozen
    }

    fn freeze_all_but_the_second_thread(&self) -> Option<[Freeze; 2]> {
        all_but_the_second_thread(&self.rig, self.rig.status().supervisor())
    }

    /// Whoever runs now: a machine that stands still for a while ends one before he is looked at.
    fn holder(&self) -> Holder {
        let status = self.rig.wait("it holds", 10_000, |status| {
            let worker = status.worker("job/0");
            let runs = worker.filter(|w| w.state == "running" && w.pid > 0);
            runs.is_some_and(|w| page_number(w.pid).is_ok())
        });
        Holder::new(status.worker("job/0").unwrap().pid)
    }

    /// No renewal counts any more: the deadline that stands, when the last one was answered.
    fn abandon(&self, holder: &Holder) -> Moment {
        self.owner("nobody");
        // A renewal that was on its way is through by the next one.
        let mut last = (holder.until(), clock::now());
        until("no renewal comes", 5_000, || {
            let (until, now) = (holder.until(), clock::now());
            if until != last.0 {
                last = (until, now);
            }
            let quiet = last.1.until(now) > Span::millis(RENEWED / 5);
            quiet.then_some(()).ok_or_else(String::new)
        });
        last.0
    }

    /// It runs until its deadline, and says nothing any more when it is to be dead. To be gone as well takes processor time, of which busy
    /// neighbours leave little.
    fn ends_at(&self, holder: &Holder, deadline: Moment) {
        let beats = self.authority.with_file_name("beats");
        let length = || fs::metadata(&beats).unwrap().len();
        let dead = deadline.after(KILL_MARGIN);
        holder.ended_by(dead);
        // Whoever it forked may end a moment after it.
        until_true("it is to be dead", 5_000, || clock::now() >= dead);
        let before = length();
        let end = holder.ended_by(deadline.after(Span::secs(10)));
        let end = end.expect("it lives 10 s after its deadline");
        assert!(
            deadline <= end,
            "its deadline was {deadline:?}, its end {end:?}"
        );
        pause(20);
        assert_eq!(before, length(), "something of it speaks on");
    }

    /// The authority comes to its mind: the worker is there again, and not the same.
    fn comes_back(&self, before: &Holder) {
        self.owner(self.node);
        let after = self.holder();
        assert_ne!(after.pid, before.pid);
        assert!(after.word(4) > before.fence, "its fence did not grow");
    }
}

/// A worker, its end and its page, seen from outside.
struct Holder {
    pid: i32,
    fence: u64,
    pidfd: OwnedFd,
    page: fs::File,
}

impl Holder {
    fn new(pid: i32) -> Self {
        let raw = Pid::from_raw(pid).unwrap();
        let page = page_of(pid);
        let mut holder = Self {
            pid,
            fence: 0,
            pidfd: pidfd_open(raw, PidfdFlags::empty()).unwrap(),
            page,
        };
        holder.fence = holder.word(4);
        holder
    }

    /// A word of its page. Words are aligned, so none is torn.
    fn word(&self, number: u64) -> u64 {
        let mut bytes = [0; 8];
        self.page.read_exact_at(&mut bytes, number * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn until(&self) -> Moment {
        Moment(self.word(2))
    }

    fn lives(&self) -> bool {
        lives(self.pid)
    }

    /// When it ended; waits for that until then.
    fn ended_by(&self, bound: Moment) -> Option<Moment> {
        ended_by(&self.pidfd, bound)
    }
}

/// When it ended; waits for that until then.
fn ended_by(pidfd: &OwnedFd, bound: Moment) -> Option<Moment> {
    let left = clock::now().until(bound).as_nanos();
    let left = rustix::event::Timespec {
        tv_sec: (left / 1_000_000_000) as i64,
        tv_nsec: (left % 1_000_000_000) as i64,
    };
    let mut ready = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    let ready = poll(&mut ready, Some(&left)).unwrap();
    (ready == 1).then(clock::now)
}

/// A keeper of which no thread goes on, until this is dropped.
struct Stopped(i32);

impl Stopped {
    fn new(rig: &Rig) -> Self {
        rig.signal(Signal::STOP);
        Self(rig.keeper())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        send(self.0, Signal::CONT);
    }
}

/// Nobody notices that the supervisor hangs, then.
fn all_but_the_second_thread(rig: &Rig, supervisor: i32) -> Option<[Freeze; 2]> {
    let keeper = Freeze::new(rig, "freeze-one", rig.keeper())?;
    Some([keeper, Freeze::new(rig, "freeze", supervisor)?])
}

/// Everybody is well, and the authority answers no more: SIGTERM a grace before the deadline, SIGKILL at it.
fn it_ends_when_it_is_not_renewed(rig: Rig) {
    ends_unrenewed(rig, LONG);
}

fn it_ends_in_its_namespace_when_it_is_not_renewed(rig: Rig) {
    if may_enclose() {
        ends_unrenewed(rig, ENCLOSED);
    }
}

fn may_enclose() -> bool {
    if !is_root() {
        skip("only root may make a PID namespace");
    }
    is_root()
}

fn ends_unrenewed(rig: Rig, lease: &str) {
    let readers = Readers::new(&rig);
    let Some(mut leased) = Leased::new(rig, lease) else {
        return;
    };
    let holder = leased.start();
    let said = readers.ask(&holder.page);
    assert!(
        said.iter().all(|(_, said)| said.starts_with("yes")),
        "{said:?}"
    );
    let deadline = leased.abandon(&holder);
    leased.ends_at(&holder, deadline);
    until("its page is over", 2_000, || {
        let said = readers.ask(&holder.page);
        let over = said.iter().all(|(_, said)| said == "no");
        over.then_some(()).ok_or(format!("{said:?}"))
    });
    until("it is said why", 2_000, || {
        let said = leased.rig.stderr();
        let all = ["was not renewed in time", "killed by the keeper", "SIGTERM"];
        let all = all.iter().all(|words| said.contains(words));
        all.then_some(()).ok_or(said)
    });
    leased.comes_back(&holder);
    leased.rig.drain(5_000);
}

/// Supervisors die and hang; the lease is renewed by whoever is there, and its worker stays.
fn nothing_takes_a_renewed_lease_away(rig: Rig) {
    let Some(mut leased) = Leased::new(rig, LONG) else {
        return;
    };
    let holder = leased.start();
    let mut dice = Dice::new();
    for _ in 0..rounds() / 2 {
        let supervisor = leased.rig.status().supervisor();
        let frozen = match dice.below(3) {
            0 => Freeze::new(&leased.rig, "freeze", supervisor),
            1 => {
                send(supervisor, Signal::STOP);
                None
            }
            _ => {
                send(supervisor, Signal::KILL);
                None
            }
        };
        pause(dice.below(300));
        drop(frozen);
        let before = holder.until();
        until("it is renewed again", 5_000, || {
            let until = holder.until();
            (until > before)
                .then_some(())
                .ok_or_else(|| leased.rig.stderr())
        });
    }
    assert!(holder.lives());
    let status = leased.rig.status();
    let left = status.fleet("job")["gate"]["deadline_in_ms"]
        .as_u64()
        .unwrap();
    assert!((1..=3_750).contains(&left), "{left} ms are left");
    leased.rig.drain(5_000);
}

/// While deadlines stand a hang is noticed within 1.5 s, so the next one renews in time.
fn a_hung_supervisor_is_replaced_before_its_worker_ends(rig: Rig) {
    const LONGER: &str = r#"ttl = "10s", grace = "500ms", kill_margin = "500ms""#;
    let Some(mut leased) = Leased::new(rig, LONGER) else {
        return;
    };
    let holder = leased.start();
    let supervisor = leased.rig.status().supervisor();
    let Some(_hung) = Freeze::new(&leased.rig, "hang", supervisor) else {
        return;
    };
    let before = holder.until();
    until("it is renewed by another one", 8_000, || {
        let until = holder.until();
        (until > before)
            .then_some(())
            .ok_or_else(|| leased.rig.stderr())
    });
    assert!(holder.lives());
    let status = leased.rig.status();
    assert_ne!(status.supervisor(), supervisor);
    assert_eq!(status.worker("job/0").unwrap().pid, holder.pid);
    let said = leased.rig.stderr();
    assert!(
        said.contains("the supervisor has not answered for "),
        "{said}"
    );
    leased.rig.drain(5_000);
}

/// It ends at the deadline that stands, whatever `fault` does to those who are to end it. A fault lasts until what it gives is dropped, and
/// gives nothing where this machine cannot do it.
fn it_ends_though<T>(
    rig: Rig,
    lease: &str,
    fault: impl FnOnce(&Leased, Moment) -> Option<T>,
) -> Option<Leased> {
    let mut leased = Leased::new(rig, lease)?;
    let holder = leased.start();
    let deadline = leased.abandon(&holder);
    let lasting = fault(&leased, deadline)?;
    leased.ends_at(&holder, deadline);
    drop(lasting);
    leased.comes_back(&holder);
    Some(leased)
}

/// So late that nobody is there in its place when the deadline comes.
fn it_ends_though_the_supervisor_is_frozen(rig: Rig) {
    if let Some(mut leased) = it_ends_though(rig, LONG, Leased::freeze_supervisor_before) {
        leased.rig.drain(5_000);
    }
}

fn it_ends_though_supervisors_are_killed_again_and_again(rig: Rig) {
    let killed = |leased: &Leased, deadline| {
        while clock::now() < deadline {
            if let Ok(status) = leased.rig.try_status() {
                send(status.supervisor(), Signal::KILL);
            }
            pause(30);
        }
        Some(())
    };
    if let Some(mut leased) = it_ends_though(rig, LONG, killed) {
        leased.rig.drain(5_000);
    }
}

fn it_ends_though_the_keeper_is_frozen(rig: Rig) {
    ends_by_the_supervisor(rig, LONG);
}

fn it_ends_in_its_namespace_though_the_keeper_is_frozen(rig: Rig) {
    if may_enclose() {
        ends_by_the_supervisor(rig, ENCLOSED);
    }
}

/// The keeper could be continued at any moment, and knows nothing; its supervisor kills instead.
fn ends_by_the_supervisor(rig: Rig, lease: &str) {
    let stopped = |leased: &Leased, _| Some(Stopped::new(&leased.rig));
    if let Some(mut leased) = it_ends_though(rig, lease, stopped) {
        leased.rig.drain(5_000);
    }
}

/// Says that it has begun, and does not end by itself.
const LONG_HOOK: &str = r#"{ run = ["/bin/sh", "-c", "echo $$$$ > {dir}/new; mv {dir}/new {dir}/hook; exec sleep 1000"], timeout = "60s" }"#;

/// What prepares a worker does so under the same deadline, and by the same page.
fn its_hook_ends_though<T>(
    rig: Rig,
    fault: impl FnOnce(&Leased, Moment) -> Option<T>,
) -> Option<(Moment, Moment)> {
    let (dir, hook) = (rig.path("").display().to_string(), rig.path("hook"));
    let prepares = format!("hooks.pre_start = {LONG_HOOK}");
    let mut leased = Leased::with(rig, "a", Path::new(&dir), LONG, &prepares)?;
    leased.owner(leased.node);
    leased.rig.start();
    until_true("it prepares", 10_000, || hook.exists());
    let pid = fs::read_to_string(&hook).unwrap().trim().parse();
    let holder = Holder::new(pid.unwrap());
    let deadline = leased.abandon(&holder);
    let lasting = fault(&leased, deadline)?;
    let end = holder.ended_by(deadline.after(KILL_MARGIN));
    let end = end.expect("it lives on after its lease");
    drop(lasting);
    let status = leased.rig.status();
    assert_eq!(status.worker("job/0").map_or(0, |worker| worker.pid), 0);
    leased.rig.drain(5_000);
    Some((deadline, end))
}

fn its_hook_ends_though_the_supervisor_is_frozen(rig: Rig) {
    let ends = its_hook_ends_though(rig, Leased::freeze_supervisor_before);
    if let Some((deadline, end)) = ends {
        assert!(deadline <= end, "{end:?} is before {deadline:?}");
    }
}

fn its_hook_ends_though_the_keeper_is_frozen(rig: Rig) {
    its_hook_ends_though(rig, |leased, _| Some(Stopped::new(&leased.rig)));
}

/// Of the keeper nobody hears that the worker has ended.
fn its_farewell_ends_though_all_but_the_second_thread_is_frozen(rig: Rig) {
    let (dir, hook) = (rig.path("").display().to_string(), rig.path("hook"));
    let farewell = format!("hooks.pre_stop = {LONG_HOOK}");
    let leased = Leased::with(rig, "a", Path::new(&dir), LONG, &farewell);
    let Some(mut leased) = leased else {
        return;
    };
    let holder = leased.start();
    leased.rig.ok(&["stop", "job", "--no-wait"]);
    until_true("it says farewell", 10_000, || hook.exists());
    let pid = fs::read_to_string(&hook).unwrap().trim().parse();
    let pid = Pid::from_raw(pid.unwrap()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let deadline = leased.abandon(&holder);
    let Some(frozen) = leased.freeze_all_but_the_second_thread() else {
        return;
    };
    let end = ended_by(&pidfd, deadline.after(KILL_MARGIN));
    let end = end.expect("it lives on after its worker's lease");
    assert!(deadline <= end, "{end:?} is before {deadline:?}");
    drop(frozen);
    leased.rig.drain(5_000);
    leased.rig.assert_nothing_left();
}

/// Nobody can kill it then but the machine's watchdog. A worker that looks at its page knows; and whoever wakes up kills it.
fn with_both_frozen_the_page_says_so(rig: Rig) {
    let readers = Readers::new(&rig);
    let Some(mut leased) = Leased::new(rig, LONG) else {
        return;
    };
    let holder = leased.start();
    let deadline = leased.abandon(&holder);
    let Some(frozen) = leased.freeze_supervisor() else {
        return;
    };
    leased.rig.signal(Signal::STOP);
    until_true("the deadline comes", 8_000, || clock::now() > deadline);
    for (language, said) in readers.ask(&holder.page) {
        assert_eq!(said, "no", "{language}");
    }
    assert!(holder.lives());
    leased.rig.signal(Signal::CONT);
    until_true("whoever wakes up kills it", 2_000, || !holder.lives());
    drop(frozen);
    leased.comes_back(&holder);
    leased.rig.drain(5_000);
}

/// A new supervisor hears of all deadlines, all of them are renewed, and all of them come at once.
fn many_leases_at_once(mut rig: Rig) {
    const MANY: usize = 40;
    let authority = rig.path("authority");
    let fleets: String = (0..MANY)
        .map(|n| {
            format!(
                r#"
                [fleet.job{n}]
                command = ["/bin/sleep", "1000"]
                singleton = {{ scope = "test", flock = "{{dir}}/lock{n}", authority = "{}", {LONG} }}
                "#,
                authority.display()
            )
        })
        .collect();
    rig.configure(&format!("[node]\nname = \"a\"\n{fleets}"));
    rig.wrapper
        .extend(["/usr/bin/env", "LEASEHOLD_TEST_GATE=1"].map(str::to_owned));
    fs::write(&authority, "a").unwrap();
    let before = rig.start_settled();
    let holders: Vec<Holder> = before
        .workers()
        .iter()
        .map(|worker| Holder::new(worker.pid))
        .collect();
    send(before.supervisor(), Signal::KILL);
    rig.wait("a new supervisor", 3_000, |status| {
        status.0["supervisor"]["incarnation"] == 2
    });
    let deadlines: Vec<Moment> = holders.iter().map(Holder::until).collect();
    until("all are renewed again", 3_000, || {
        let behind = holders.iter().zip(&deadlines);
        let behind = behind.filter(|(holder, before)| holder.until() <= **before);
        match behind.count() {
            0 => Ok(()),
            n => Err(format!("{n} are not")),
        }
    });
    let after = rig.status();
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    let Some(frozen) = all_but_the_second_thread(&rig, after.supervisor()) else {
        return;
    };
    until_true("all have ended", 8_000, || {
        !holders.iter().any(Holder::lives)
    });
    drop(frozen);
    until("all deadlines are told of", 5_000, || {
        let said = rig.stderr().matches("killed by the keeper").count();
        (said == MANY).then_some(()).ok_or(format!("{said} were"))
    });
    rig.drain(5_000);
}

/// Processes that take all the time that they get, once they may.
struct BusyLoops(Vec<Child>);

impl BusyLoops {
    /// Stopped, as yet.
    fn new(count: usize) -> Self {
        let one = |_| {
            Command::new("sh")
                .args(["-c", "kill -STOP $$; while :; do :; done"])
                .spawn()
                .unwrap()
        };
        let loops = Self((0..count).map(one).collect());
        until_true("all have stopped", 10_000, || {
            let mut pids = loops.0.iter().map(|child| child.id() as i32);
            pids.all(|pid| state_of(pid) == Some('T'))
        });
        loops
    }

    fn go(&self) {
        for child in &self.0 {
            send(child.id() as i32, Signal::CONT);
        }
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

fn it_ends_among_busy_loops(rig: Rig) {
    let Some(mut leased) = Leased::new(rig, LONG) else {
        return;
    };
    let busy = BusyLoops::new(64);
    let holder = leased.start();
    let deadline = leased.abandon(&holder);
    let Some(frozen) = leased.freeze_supervisor_before(deadline) else {
        return;
    };
    // Not for longer than it takes: other tests run beside, whose daemons renew leases.
    let soon = Moment(deadline.0 - Span::millis(400).as_nanos());
    until_true("the deadline is near", 8_000, || clock::now() >= soon);
    busy.go();
    assert!(clock::now() < deadline, "they came too late");
    leased.ends_at(&holder, deadline);
    drop(busy);
    drop(frozen);
    leased.comes_back(&holder);
    leased.rig.drain(5_000);
}

/// Another fleet's directory is on a file system that does not answer: whoever starts a worker there waits.
fn it_ends_though_the_keeper_hangs_in_a_spawn(mut rig: Rig) {
    const STUCK: &str = r#"
        [fleet.stuck]
        command = [{worker}, "sleep"]
        cwd = "{dir}/place"
        restart = { backoff = "1ms..5ms", burst = 100000 }
    "#;
    let Some(hang) = Hang::new(&rig) else {
        return;
    };
    rig.wrapper.extend(hang.words());
    let shared = rig.path("");
    let Some(mut leased) = Leased::with(rig, "a", &shared, LONG, STUCK) else {
        return;
    };
    let holder = leased.start();
    let status = leased.rig.settle(5_000);
    let stuck = status.worker("stuck/0").unwrap().pid;
    let deadline = leased.abandon(&holder);
    hang.begin();
    send(stuck, Signal::KILL);
    // Its successor has been forked and gets no further.
    let keeper = leased.rig.keeper();
    let waits = || state_of(keeper) == Some('D');
    until_true("the keeper waits for its child", 2_000, waits);
    let Some(frozen) = Freeze::new(&leased.rig, "freeze", status.supervisor()) else {
        return;
    };
    leased.ends_at(&holder, deadline);
    assert!(waits(), "it went on");
    drop(frozen);
    hang.end();
    leased.comes_back(&holder);
    leased.rig.ok(&["stop", "stuck"]);
    leased.rig.drain(5_000);
}

fn it_ends_though_the_keepers_main_thread_is_frozen(rig: Rig) {
    ends_by_the_second_thread(rig, LONG);
}

fn it_ends_in_its_namespace_though_the_keepers_main_thread_is_frozen(rig: Rig) {
    if may_enclose() {
        ends_by_the_second_thread(rig, ENCLOSED);
    }
}

/// Wherever the supervisor and the keeper's main thread are, which would replace it, the second one goes on.
fn ends_by_the_second_thread(rig: Rig, lease: &str) {
    let frozen = |leased: &Leased, _| leased.freeze_all_but_the_second_thread();
    if let Some(mut leased) = it_ends_though(rig, lease, frozen) {
        let said = leased.rig.stderr();
        assert!(said.contains("killed by the keeper"), "{said}");
        leased.rig.drain(5_000);
    }
}

/// The lease goes from one daemon to the other, as soon as the authority's clock allows; faults come at any moment. Neither knows of
/// the other: nothing but the deadline keeps them apart.
fn one_holder_at_a_time_from_lease_to_lease(rig: Rig) {
    const SHORT: &str = r#"ttl = "2s", grace = "200ms", kill_margin = "200ms""#;
    const TTL: Span = Span::secs(2);
    let Some(other) = Rig::new(rig.mode) else {
        return;
    };
    let shared = rig.path("");
    let nodes =
        [(rig, "a"), (other, "b")].map(|(rig, node)| Leased::with(rig, node, &shared, SHORT, ""));
    let [Some(a), Some(b)] = nodes else {
        return;
    };
    let mut nodes = [a, b];
    nodes[0].owner("nobody");
    for node in &mut nodes {
        node.rig.start();
    }
    let beats = || -> Vec<Beat> {
        let text = fs::read_to_string(shared.join("beats")).unwrap_or_default();
        text.lines().filter_map(Beat::read).collect()
    };
    let mut dice = Dice::new();
    for round in 0..rounds() as usize / 2 {
        let which = round % 2;
        let node = &mut nodes[which];
        node.owner(node.node);
        let before = beats().len();
        until("it runs", 10_000, || {
            let all = beats();
            let new = all[before..].iter().any(|beat| beat.node == node.node);
            new.then_some(()).ok_or_else(|| node.rig.stderr())
        });
        let frozen = trouble(node, &mut dice, || beats().last().map(|beat| beat.leader));
        node.owner("nobody");
        // What was renewed just now is over, in the authority's eyes.
        let over = clock::now().after(TTL);
        until_true("the lease is over", 3_000, || clock::now() >= over);
        let length = beats().len();
        let other = nodes[1 - which].node;
        nodes[1 - which].owner(other);
        drop(frozen);
        nodes[which].rig.signal(Signal::CONT);
        let late = beats()[length..]
            .iter()
            .filter(|beat| beat.node != other)
            .count();
        assert_eq!(late, 0, "it spoke when its lease was over");
    }
    speaks_never_again(&beats(), || {
        format!("a: {}\nb: {}", nodes[0].rig.stderr(), nodes[1].rig.stderr())
    });
    for node in &mut nodes {
        node.rig.drain(5_000);
    }
}

/// Keeper or supervisor freeze until the end of the round, or whatever else: never both of them, since then nobody is there to kill.
fn trouble(node: &mut Leased, dice: &mut Dice, leader: impl Fn() -> Option<i32>) -> Option<Freeze> {
    let kill_leader = || leader().into_iter().for_each(|pid| send(pid, Signal::KILL));
    let mut frozen = None;
    match dice.below(4) {
        0 => {
            frozen = node.freeze_supervisor();
            pause(dice.below(200));
            if dice.below(2) == 0 {
                kill_leader();
            }
        }
        1 => {
            node.rig.signal(Signal::STOP);
            pause(dice.below(200));
            if dice.below(2) == 0 {
                kill_leader();
            }
        }
        _ => {
            for _ in 0..dice.below(4) {
                match dice.below(4) {
                    0 => kill_leader(),
                    1 => {
                        node.rig.kill_keeper();
                        node.rig.start();
                    }
                    fault => {
                        let how = [Signal::KILL, Signal::STOP][fault as usize - 2];
                        send(node.rig.status().supervisor(), how);
                    }
                }
                pause(dice.below(200));
            }
        }
    }
    frozen
}
