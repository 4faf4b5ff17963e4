//! `leasehold lock`: one command under one lock. What it does to the command, and what it does to everybody else who wants the lock; the oracle
//! is that of the daemons' singletons. Terminals and job control are in `jobs`.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::process::Signal;

use crate::{
    rig::{
        Mode, Rig, all_pids, both_ways, is_root, lives, parent_of, pause, send, skip, until,
        until_true,
    },
    singletons::{Beat, Dice, hold, one_at_a_time, rounds},
};

both_ways!(
    it_leaves_nothing_where_it_was_called,
    it_ends_as_the_command_does,
    the_command_sees_what_we_were_given,
    what_it_leaves_running_ends_with_it,
    whoever_dies_the_command_goes_on_or_ends,
    signals_are_the_commands,
    waiting_has_an_end,
    slots_are_counted_by_everybody,
    a_daemon_and_we_exclude_each_other,
    a_replaced_lock_file_ends_the_command,
    one_command_at_a_time_through_everything,
);

/// A lock of its own, whose files go at the end.
pub(crate) struct Lock {
    pub(crate) rig: Rig,
    pub(crate) name: String,
}

impl Lock {
    pub(crate) fn new(rig: Rig) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        Self { rig, name }
    }

    /// `leasehold lock NAME`, with these words behind it.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        command.arg("lock").args(self.words()).args(words);
        command.env_remove("SYSTEMD_EXEC_PID").stdin(Stdio::null());
        command
    }

    pub(crate) fn words(&self) -> Vec<&str> {
        match self.rig.mode {
            Mode::Cgroup => vec![&self.name],
            Mode::Group => vec![&self.name, "--no-cgroup"],
        }
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn code(&self, words: &[&str]) -> i32 {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output
            .status
            .code()
            .unwrap_or_else(|| panic!("{words:?}: {:?} {said}", output.status))
    }

    /// Starts a shell that says where it is and then does as told; returns when it runs.
    fn start(&self, words: &[&str], script: &str) -> (Child, i32) {
        let mark = self.rig.path("mark");
        let _ = fs::remove_file(&mark);
        let script = format!(
            "echo $$ > {0}.new && mv {0}.new {0}; {script}",
            mark.display()
        );
        let mut all = words.to_vec();
        all.extend(["--", "sh", "-c", &script]);
        let child = self.command(&all).stderr(Stdio::piped()).spawn().unwrap();
        let leader = until("the command runs", 5_000, || {
            let text = fs::read_to_string(&mark).map_err(|e| e.to_string())?;
            text.trim().parse().map_err(|_| text)
        });
        (child, leader)
    }

    fn path(&self, slot: u32) -> PathBuf {
        let uid = rustix::process::geteuid().as_raw();
        PathBuf::from(format!(
            "/run/lock/leasehold-{uid}/local/{}.{slot}",
            self.name
        ))
    }

    /// Processes under this lock, and those who decide for them.
    fn left(&self) -> Vec<i32> {
        let variable = format!(
            "LEASEHOLD_LOCK={}.",
            self.path(0).with_extension("").display()
        );
        let of_us = |pid: &i32| {
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let env = String::from_utf8_lossy(&env).contains(&variable);
            let line = String::from_utf8_lossy(&line).into_owned();
            env || (line.starts_with("leasehold\0lock-supervisor")
                && line.ends_with(&format!("\0{}\0", self.name)))
        };
        all_pids()
            .into_iter()
            .filter(|pid| of_us(pid) && lives(*pid))
            .collect()
    }

    /// Nothing runs under it, and no cgroup of its last holder is there.
    pub(crate) fn assert_nothing_left(&self) {
        until("nothing is left", 5_000, || {
            let left = self.left();
            left.is_empty()
                .then_some(())
                .ok_or_else(|| format!("{left:?}"))
        });
        let cgroup = self.cgroup().filter(|path| path.exists());
        assert_eq!(cgroup, None, "its cgroup is left");
    }

    /// Where the cgroup of whoever wrote himself in last is, or was.
    fn cgroup(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(self.path(0)).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        record["cgroups"].as_str().map(PathBuf::from)
    }

    /// Does somebody run under it?
    pub(crate) fn holds(&self) -> bool {
        self.left().len() > 1
    }

    fn find_supervisor(&self, keeper: i32) -> Option<i32> {
        let is_it = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            parent_of(*pid) == Some(keeper) && line.starts_with(b"leasehold\0lock-supervisor")
        };
        all_pids().into_iter().find(is_it)
    }

    fn supervisor(&self, keeper: i32) -> i32 {
        until("it has a supervisor", 5_000, || {
            self.find_supervisor(keeper).ok_or_else(String::new)
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        for pid in self.left() {
            send(pid, Signal::KILL);
        }
        for slot in 0..4 {
            let _ = fs::remove_file(self.path(slot));
        }
    }
}

/// Its code, when it has ended.
fn ended(child: &mut Child) -> std::process::ExitStatus {
    until("it ends", 10_000, || {
        child.try_wait().unwrap().ok_or_else(String::new)
    })
}

fn it_ends_as_the_command_does(rig: Rig) {
    let lock = Lock::new(rig);
    let not_a_program = lock.rig.path("text");
    fs::write(&not_a_program, "no program\n").unwrap();
    let text = not_a_program.display().to_string();
    let broken = lock.rig.path("broken");
    fs::write(&broken, "#!/no/such/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&broken, mode).unwrap();
    let broken = broken.display().to_string();
    // As the shell does with it.
    let script = lock.rig.path("script");
    fs::write(&script, "exit 1$1\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, mode).unwrap();
    let script = script.display().to_string();
    for (words, code) in [
        (vec!["--", "true"], 0),
        (vec!["--", "sh", "-c", "exit 77"], 77),
        (vec!["sh", "-c", "exit 3"], 3),
        (vec!["--", "sh", "-c", "kill -TERM $$"], 143),
        (vec!["--", "sh", "-c", "kill -KILL $$"], 137),
        (vec!["--", "no-such-program"], 127),
        (vec!["--", "/no/such/program"], 127),
        (vec!["--", &broken], 127),
        (vec!["--", &script, "7"], 17),
        (vec!["--", &text], 126),
        (vec!["--", "/"], 126),
        (vec![], 2),
        (vec!["-n", "0", "--", "true"], 2),
        (vec!["--timeout", "soon", "--", "true"], 2),
        (vec!["--timeout", "1s", "--no-wait", "--", "true"], 2),
        (vec!["--nowait", "--", "true"], 2),
    ] {
        assert_eq!(lock.code(&words), code, "{words:?}");
    }
    let refused = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .args(["lock", "a/b", "--", "true"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2));
    assert!(said.contains("a-b would do"), "{said}");
    lock.assert_nothing_left();
}

fn it_leaves_nothing_where_it_was_called(rig: Rig) {
    let lock = Lock::new(rig);
    let here = lock.rig.path("here");
    std::fs::create_dir(&here).unwrap();
    let output = lock.command(&["--", "true"]).current_dir(&here).output();
    assert!(output.unwrap().status.success());
    let left: Vec<_> = std::fs::read_dir(&here).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn the_command_sees_what_we_were_given(rig: Rig) {
    let lock = Lock::new(rig);
    // What it is told besides is left out; so is the shell's own.
    let script = "pwd; umask; ulimit -a; nice; grep SigIgn /proc/self/status; \
                  env | grep -av '^LEASEHOLD_\\|^_=\\|^SHLVL=' | sort";
    let around = |mut command: Command| {
        command
            .args([
                "nice",
                "-n",
                "3",
                "sh",
                "-c",
                "umask 027; ulimit -Sn 100; trap '' HUP; exec \"$@\"",
                "sh",
            ])
            .current_dir("/usr")
            .env("ODD", OsStr::from_bytes(b"\xff\xfe"));
        command
    };
    let bare = around(Command::new("env"))
        .args(["sh", "-c", script])
        .output()
        .unwrap();
    let under = around(Command::new("env"))
        .arg(env!("CARGO_BIN_EXE_leasehold"))
        .arg("lock")
        .args(lock.words())
        .args(["--", "sh", "-c", script])
        .output()
        .unwrap();
    assert!(bare.stdout.windows(2).any(|two| two == b"\xff\xfe"));
    assert_eq!(
        String::from_utf8_lossy(&under.stdout),
        String::from_utf8_lossy(&bare.stdout)
    );
    // Bytes go through, whatever they are and how many.
    let words = [
        "--",
        "sh",
        "-c",
        "cat; echo end >&2; test -e /proc/self/fd/$LEASEHOLD_LOCK_FD",
    ];
    let mut cat = lock
        .command(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| ((n * 7) >> 3) as u8).collect();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = cat.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == bytes && output.stderr == b"end\n");
    // Arguments too large for a packet, and closed stdio.
    let large = "x".repeat(120_000);
    let output = lock.run(&[
        "--",
        "sh",
        "-c",
        "echo ${#1} ${#2} ${#3}",
        "sh",
        &large,
        &large,
        &large,
    ]);
    assert_eq!(output.stdout, b"120000 120000 120000\n", "{output:?}");
    let shell = format!(
        "{} lock {} -- true <&- >&- 2>&-",
        env!("CARGO_BIN_EXE_leasehold"),
        lock.name
    );
    assert!(
        Command::new("sh")
            .args(["-c", &shell])
            .status()
            .unwrap()
            .success()
    );
    // Other descriptors, wherever they are.
    let shell = format!(
        "exec 3</dev/null 5<&1; {} lock {} -- sh -c \
         'test ! -s /dev/fd/3 && echo five >&5 && echo $LEASEHOLD_LOCK_FD $LEASEHOLD_PAGE_FD && cat \"$1\"' sh <(echo substituted)",
        env!("CARGO_BIN_EXE_leasehold"),
        lock.name
    );
    let output = Command::new("bash").args(["-c", &shell]).output().unwrap();
    assert_eq!(output.stdout, b"five\n6 7\nsubstituted\n", "{output:?}");
    lock.assert_nothing_left();
}

/// Forks that left the group and the session, and ignore what they can.
const STRAY: &str = "setsid sh -c 'trap \"\" TERM HUP; echo $$ >> $NOTES; exec sleep 1000' & ";

fn what_it_leaves_running_ends_with_it(rig: Rig) {
    let lock = Lock::new(rig);
    let notes = lock.rig.path("notes/pids");
    let script =
        format!("{STRAY} {STRAY} while [ \"$(cat $NOTES | wc -l)\" != 2 ]; do :; done; exit 4");
    let mut command = lock.command(&["--", "sh", "-c", &script]);
    let status = command.env("NOTES", &notes).status().unwrap();
    assert_eq!(status.code(), Some(4));
    lock.rig.assert_noted_are_gone();
    lock.assert_nothing_left();
}

fn whoever_dies_the_command_goes_on_or_ends(rig: Rig) {
    let lock = Lock::new(rig);
    let notes = lock.rig.path("notes/pids");
    let strays = |wanted: usize| {
        until_true("the strays run", 5_000, || {
            lock.rig.notes("pids").len() == wanted
        });
    };
    let script = format!(
        "NOTES={}; export NOTES; {STRAY} while [ ! -e {}/go ]; do sleep 0.02; done; exit 6",
        notes.display(),
        lock.rig.path("notes").display()
    );
    // The one who decides: nothing happens.
    let (mut child, leader) = lock.start(&[], &script);
    strays(1);
    let keeper = child.id() as i32;
    for _ in 0..3 {
        let supervisor = lock.supervisor(keeper);
        send(supervisor, Signal::KILL);
        until_true("there is another one", 5_000, || {
            lock.supervisor(keeper) != supervisor
        });
        assert!(lives(leader));
        assert_eq!(lock.code(&["--no-wait", "--", "true"]), 69);
    }
    fs::write(lock.rig.path("notes/go"), "").unwrap();
    assert_eq!(ended(&mut child).code(), Some(6));
    lock.rig.assert_noted_are_gone();
    lock.assert_nothing_left();
    // Who holds it: everything ends.
    fs::remove_file(lock.rig.path("notes/go")).unwrap();
    let (mut child, leader) = lock.start(&[], &script);
    strays(2);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(lock.code(&["--timeout", "10s", "--", "true"]), 0);
    assert!(!lives(leader));
    lock.rig.assert_noted_are_gone();
    lock.assert_nothing_left();
    // Both: the next one ends what is left.
    let (mut child, leader) = lock.start(&[], &script);
    strays(3);
    send(lock.supervisor(child.id() as i32), Signal::STOP);
    let supervisor = lock.supervisor(child.id() as i32);
    send(child.id() as i32, Signal::STOP);
    send(supervisor, Signal::KILL);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(lock.code(&["--timeout", "10s", "--", "true"]), 0);
    assert!(!lives(leader));
    lock.rig.assert_noted_are_gone();
    lock.assert_nothing_left();
}

fn signals_are_the_commands(rig: Rig) {
    let lock = Lock::new(rig);
    let counts = lock.rig.path("counts");
    let script = format!(
        "for s in HUP INT QUIT USR1 USR2 TERM; do trap \"echo $s >> {}\" $s; done; \
         trap 'exit 5' ALRM; echo 0 >> {0}; while :; do sleep 0.01; done",
        counts.display()
    );
    let (mut child, _) = lock.start(&[], &script);
    let heard = || fs::read_to_string(&counts).unwrap_or_default();
    until_true("it listens", 5_000, || heard() == "0\n");
    let mut all = "0\n".to_owned();
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::TERM, "TERM"),
        (Signal::TERM, "TERM"),
    ] {
        send(child.id() as i32, signal);
        all += &format!("{name}\n");
        until("it hears", 5_000, || {
            if heard() == all { Ok(()) } else { Err(heard()) }
        });
    }
    // Who waits meanwhile ends by a signal of its own.
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut waits = lock.command(&["--", "false"]).spawn().unwrap();
        lock.supervisor(waits.id() as i32);
        send(waits.id() as i32, signal);
        assert_eq!(ended(&mut waits).code(), Some(code));
    }
    send(child.id() as i32, Signal::ALARM);
    assert_eq!(ended(&mut child).code(), Some(5));
    lock.assert_nothing_left();
}

fn waiting_has_an_end(rig: Rig) {
    let lock = Lock::new(rig);
    let (mut child, _) = lock.start(&[], "exec sleep 1000");
    let holder = format!("pid {}) since 20", child.id());
    for (words, code, what) in [
        (vec!["--no-wait", "--", "true"], 69, "is held by"),
        (vec!["--no-wait", "-E", "5", "--", "true"], 5, "is held by"),
        (
            vec!["--timeout", "50ms", "--", "true"],
            69,
            "gave up after 50ms",
        ),
    ] {
        let output = lock.run(&words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(what) && said.contains(&holder), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let mut waits = lock
        .command(&["--timeout", "1m", "--", "sh", "-c", "exit 8"])
        .spawn()
        .unwrap();
    lock.supervisor(waits.id() as i32);
    send(child.id() as i32, Signal::TERM);
    assert_eq!(ended(&mut child).code(), Some(143));
    assert_eq!(ended(&mut waits).code(), Some(8));
    // A record that may not be written is an error, not the end of whoever writes it, again and again.
    for blocks in [0, 8] {
        let limited = format!(
            "ulimit -f {blocks}; exec {} lock {} --timeout 5s -- true",
            env!("CARGO_BIN_EXE_leasehold"),
            lock.words().join(" ")
        );
        let output = Command::new("sh").args(["-c", &limited]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(69), "{said}");
        assert!(said.contains("File too large"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // Nobody can have this one.
    let path = lock.path(0);
    fs::write(&path, "somebody's data\n").unwrap();
    let output = lock.run(&["-E", "9", "--", "true"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert!(said.contains("is not a lock's"), "{said}");
    fs::remove_file(&path).unwrap();
    lock.assert_nothing_left();
}

fn slots_are_counted_by_everybody(rig: Rig) {
    let lock = Lock::new(rig);
    let (mut first, _) = lock.start(&["-n", "2"], "exec sleep 1000");
    let (mut second, _) = lock.start(&["-n", "2"], "exec sleep 1000");
    assert_eq!(lock.code(&["-n", "2", "--no-wait", "--", "true"]), 69);
    for other in ["1", "3"] {
        let output = lock.run(&["-n", other, "--", "true"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(69), "{said}");
        assert!(
            said.contains("2 slots") && said.contains(&format!("{other} here")),
            "{said}"
        );
    }
    send(first.id() as i32, Signal::TERM);
    assert_eq!(ended(&mut first).code(), Some(143));
    assert_eq!(lock.code(&["-n", "2", "--no-wait", "--", "true"]), 0);
    // The one that is left may hold a file that another number would not look at.
    assert_eq!(lock.code(&["-n", "1", "--", "true"]), 69);
    // Dead holders do not count.
    second.kill().unwrap();
    second.wait().unwrap();
    until("the number is free", 5_000, || {
        let output = lock.run(&["-n", "1", "--timeout", "5s", "--", "true"]);
        output
            .status
            .success()
            .then_some(())
            .ok_or_else(|| format!("{output:?}"))
    });
    lock.assert_nothing_left();
}

fn a_daemon_and_we_exclude_each_other(rig: Rig) {
    let mut lock = Lock::new(rig);
    lock.rig.configure(&format!(
        "[fleet.job]\ncommand = [\"/bin/sleep\", \"1000\"]\nsingleton = {{ scope = \"node\", lock = \"{}\" }}\n",
        lock.name
    ));
    lock.rig.start_settled();
    let output = lock.run(&["--no-wait", "--", "true"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("held by job/0"), "{said}");
    lock.rig.ok(&["stop", "job"]);
    let (mut child, leader) = lock.start(&["--no-wait"], "exec sleep 1000");
    lock.rig.ok(&["start", "job", "--no-wait"]);
    lock.rig.wait("the daemon waits for us", 5_000, |status| {
        let holder = status.fleet("job")["gate"]["holder"].as_str();
        holder.is_some_and(|text| text.contains(&format!("pid {}", child.id())))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    lock.rig.settle(10_000);
    assert!(!lives(leader));
    lock.rig.drain(5_000);
    // flock(1) on the printed path, both ways.
    let output = lock.run(&["--print-path"]);
    let path = String::from_utf8(output.stdout).unwrap();
    assert_eq!(path.trim_end(), lock.path(0).display().to_string());
    let flock = |path: &str| {
        Command::new("flock")
            .args(["-n", path, "true"])
            .status()
            .unwrap()
            .code()
    };
    let (mut child, _) = lock.start(&[], "exec sleep 1000");
    assert_eq!(flock(path.trim_end()), Some(1));
    send(child.id() as i32, Signal::TERM);
    ended(&mut child);
    assert_eq!(flock(path.trim_end()), Some(0));
    let mut stranger = hold(&lock.path(0));
    let output = lock.run(&["--no-wait", "--", "true"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(
        said.contains(&format!("held by pid {}", stranger.id())),
        "{said}"
    );
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    let _ = fs::remove_file(lock.path(0).with_extension("held"));
    assert_eq!(lock.code(&["--", "true"]), 0);
    lock.assert_nothing_left();
}

fn a_replaced_lock_file_ends_the_command(rig: Rig) {
    let lock = Lock::new(rig);
    let (mut child, leader) = lock.start(&[], "exec sleep 1000");
    // Nobody else is there: the new file is taken as well.
    fs::remove_file(lock.path(0)).unwrap();
    until_true("it is there again", 5_000, || lock.path(0).exists());
    assert!(lives(leader));
    let other = lock.path(3);
    fs::write(&other, "").unwrap();
    let mut stranger = hold(&other);
    fs::rename(&other, lock.path(0)).unwrap();
    assert_eq!(ended(&mut child).code(), Some(137));
    let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(said.contains("lost its lock"), "{said}");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    let _ = fs::remove_file(other.with_extension("held"));
    assert_eq!(lock.code(&["--", "true"]), 0);
    lock.assert_nothing_left();
}

/// Somebody who may make no cgroup, and has locks of his own.
#[test]
fn another_user_has_the_same_promises() {
    let Some(rig) = Rig::new(Mode::Group) else {
        return;
    };
    if !is_root() {
        skip("only root can become somebody else; the other tests run as this user");
        return;
    }
    const NOBODY: u32 = 65_534;
    let lock = Lock::new(rig);
    let program = lock.rig.path("leasehold");
    fs::copy(env!("CARGO_BIN_EXE_leasehold"), &program).unwrap();
    let command = |words: &[&str]| {
        let mut command = Command::new(&program);
        command
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/")
            .arg("lock")
            .arg(&lock.name);
        command
            .args(words)
            .env("NOTES", lock.rig.path("notes/pids"));
        command
    };
    let path = command(&["--print-path"]).output().unwrap().stdout;
    let path = PathBuf::from(String::from_utf8(path).unwrap().trim_end());
    assert_eq!(
        path,
        PathBuf::from(format!(
            "/run/lock/leasehold-{NOBODY}/local/{}.0",
            lock.name
        ))
    );
    let script = format!("{STRAY} exec sleep 1000");
    let mut child = command(&["--", "sh", "-c", &script]).spawn().unwrap();
    until_true("the stray runs", 5_000, || {
        lock.rig.notes("pids").len() == 1
    });
    assert_eq!(
        command(&["--no-wait", "--", "true"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(69)
    );
    // His is not ours.
    assert_eq!(lock.code(&["--no-wait", "--", "true"]), 0);
    send(lock.supervisor(child.id() as i32), Signal::KILL);
    child.kill().unwrap();
    child.wait().unwrap();
    let taken = command(&["--timeout", "10s", "--", "sh", "-c", "exit 7"])
        .status()
        .unwrap();
    assert_eq!(taken.code(), Some(7));
    // It has no memory any more when its lock is free, and is gone a moment later.
    until_true("the stray is gone", 2_000, || {
        lock.rig.noted_pids().iter().all(|pid| !lives(*pid))
    });
    fs::remove_file(&path).unwrap();
    lock.assert_nothing_left();
}

/// Four want it all the time; whoever has it, or decides for it, dies or freezes at any moment.
fn one_command_at_a_time_through_everything(rig: Rig) {
    let lock = Lock::new(rig);
    let Some(program) = lock.rig.compile("beat", include_str!("beat.c"), &[]) else {
        return;
    };
    let beats_file = lock.rig.path("beats");
    let read = || {
        let text = fs::read_to_string(&beats_file).unwrap_or_default();
        text.lines().filter_map(Beat::read).collect::<Vec<_>>()
    };
    let contend = |name: usize| {
        let (program, file) = (
            program.display().to_string(),
            beats_file.display().to_string(),
        );
        let name = format!("n{name}");
        let mut command = lock.command(&["--", &program, &file, &name, "-g"]);
        command.stderr(Stdio::null()).spawn().unwrap()
    };
    let mut contenders: Vec<Child> = (0..4).map(contend).collect();
    let mut dice = Dice::new();
    let mut cgroups = BTreeSet::new();
    let goes_on = || {
        let before = read().len();
        until("somebody runs", 15_000, || {
            let beats = read();
            let last = beats.last().filter(|_| beats.len() > before + 5);
            last.map(|beat| beat.leader).ok_or_else(String::new)
        })
    };
    for _ in 0..rounds() {
        let leader = goes_on();
        cgroups.extend(lock.cgroup());
        let keeper =
            parent_of(leader).filter(|pid| contenders.iter().any(|c| c.id() as i32 == *pid));
        let Some(keeper) = keeper else { continue };
        match dice.below(7) {
            0 => send(leader, Signal::KILL),
            1 => send(keeper, Signal::KILL),
            // It may be between two, or on its way out.
            number @ 2..=4 => {
                if let Some(supervisor) = lock.find_supervisor(keeper) {
                    let stop = if number == 3 {
                        Signal::STOP
                    } else {
                        Signal::KILL
                    };
                    send(supervisor, stop);
                }
                if number == 4 {
                    send(keeper, Signal::KILL);
                }
            }
            5 => {
                // Frozen, it still holds; then it is gone without having done anything more.
                send(keeper, Signal::STOP);
                pause(dice.below(20));
                send(keeper, Signal::KILL);
            }
            _ => {
                let any = &contenders[dice.below(4) as usize];
                send(any.id() as i32, Signal::KILL);
            }
        }
        pause(dice.below(40));
        for (n, child) in contenders.iter_mut().enumerate() {
            if child.try_wait().unwrap().is_some() {
                *child = contend(n);
            }
        }
    }
    goes_on();
    let holders = one_at_a_time(&read(), String::new);
    assert!(holders > 1, "{holders} holders");
    for child in &mut contenders {
        send(child.id() as i32, Signal::KILL);
        let _ = child.wait();
    }
    assert_eq!(lock.code(&["--timeout", "20s", "--", "true"]), 0);
    one_at_a_time(&read(), String::new);
    lock.assert_nothing_left();
    cgroups.retain(|path| path.exists());
    assert!(cgroups.is_empty(), "left: {cgroups:?}");
}
