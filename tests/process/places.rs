//! Other places to run in: no privileges, PID 1, an old container's filter, few descriptors.

use std::{
    fs,
    net::TcpStream,
    os::unix::{
        fs::{PermissionsExt, chown},
        net::{UnixDatagram, UnixStream},
    },
    path::PathBuf,
    process::Command,
};

use rustix::process::Signal;

use crate::{
    rig::{
        Mode, Rig, all_pids, cgroup_mount, free_port, identities, is_root, parent_of, send, skip,
        state_of, until, until_true,
    },
    survival::{check_lines, whole_log},
};

const FAMILY: &str = r#"
    [fleet.web]
    command = [{worker}, "family", "{notes}", "1"]
    ready = "notify"
    workers = 2
    stop.timeout = "2s"
    [fleet.fall]
    command = [{worker}, "crash", "{notes}"]
    restart = { backoff = "10ms..20ms", burst = 100000 }
"#;

/// Crashes, a killed supervisor, a hold, a drain: what every place must be able to do. `keeper` is its pid outside.
fn a_day(rig: &mut Rig, keeper: i32) {
    let before = rig.wait("the family is up", 10_000, |status| {
        status.of("web").iter().filter(|w| w.ready).count() == 2
    });
    rig.wait("something crashed and came back", 8_000, |s| {
        s.worker("fall/0").is_some_and(|w| w.restarts >= 2)
    });
    let supervisor = until("the supervisor", 2_000, || {
        let children = all_pids()
            .into_iter()
            .filter(|pid| parent_of(*pid) == Some(keeper));
        let mut named = children.filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(b"leasehold\0supervisor\0"))
        });
        named.next().ok_or_else(String::new)
    });
    send(supervisor, Signal::KILL);
    let after = rig.wait("another supervisor", 3_000, |s| {
        s.0["supervisor"]["incarnation"] == 2
    });
    assert_eq!(identities(&before.of("web")), identities(&after.of("web")));
    rig.ok(&["stop", "web"]);
    rig.assert_noted_are_gone();
    until("no zombie", 3_000, || {
        let mut zombies = all_pids();
        zombies.retain(|pid| parent_of(*pid) == Some(keeper) && state_of(*pid) == Some('Z'));
        if zombies.is_empty() {
            Ok(())
        } else {
            Err(format!("{zombies:?}"))
        }
    });
    send(keeper, Signal::TERM);
    let status = rig.ended(6_000);
    assert_eq!(status.code(), Some(0), "{status}: {}", rig.stderr());
    rig.assert_nothing_left();
}

/// The three directories, made and given to another user.
fn give(rig: &Rig, uid: u32) {
    for what in ["run", "state", "log"] {
        fs::create_dir(rig.path(what)).unwrap();
        chown(rig.path(what), Some(uid), Some(uid)).unwrap();
    }
    fs::set_permissions(rig.path("state"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn an_ordinary_user_can_run_it() {
    let Some(mut rig) = Rig::new(Mode::Cgroup) else {
        return;
    };
    if !is_root() {
        skip("needs root to become somebody else");
        return;
    }
    let words = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ];
    let seen = Command::new(words[0])
        .args(&words[1..])
        .args(["test", "-x", env!("CARGO_BIN_EXE_leasehold")])
        .status();
    if !seen.is_ok_and(|status| status.success()) {
        skip("nobody cannot execute our binary (or there is no setpriv)");
        return;
    }
    rig.wrapper = words.map(str::to_owned).to_vec();
    give(&rig, 65534);
    rig.configure(FAMILY);
    let status = rig.start();
    assert_eq!(status.0["keeper"]["containment"], "group");
    let keeper = rig.keeper();
    a_day(&mut rig, keeper);
}

/// A user's file that asks for another user is refused by name, not tried and retried.
#[test]
fn an_ordinary_user_may_not_name_another() {
    let Some(rig) = Rig::new(Mode::Group) else {
        return;
    };
    if !is_root() {
        skip("needs root to become somebody else");
        return;
    }
    rig.configure("[fleet.web]\ncommand = [\"/bin/sleep\", \"1000\"]\nuser = \"root\"\n");
    let output = Command::new("setpriv")
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            env!("CARGO_BIN_EXE_leasehold"),
            "check",
        ])
        .arg(rig.path("leasehold.toml"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(78) && text.contains("needs root"),
        "{output:?}"
    );
}

/// What a worker of a cluster's lock leaves behind ends with a unit, with a container, or with a PID namespace that the daemon makes. Who
/// has none of these says that he knows.
#[test]
fn who_cannot_contain_a_clusters_singleton_must_say_so() {
    let rootless = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ];
    let powerless = ["setpriv", "--bounding-set", "-sys_admin"];
    let places: [(&[&str], u32); 2] = [(&rootless, 65534), (&powerless, 0)];
    for (words, uid) in places {
        let Some(mut rig) = Rig::new(Mode::Group) else {
            return;
        };
        if !is_root() {
            skip("needs root to become somebody else");
            return;
        }
        let may = Command::new(words[0])
            .args(&words[1..])
            .args(["test", "-x", env!("CARGO_BIN_EXE_leasehold")])
            .status();
        if !may.is_ok_and(|status| status.success()) {
            skip("nobody cannot execute our binary (or there is no setpriv)");
            return;
        }
        rig.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        give(&rig, uid);
        let configure = |rig: &Rig, containment: &str| {
            rig.configure(&format!(
                r#"
                [etcd]
                endpoints = ["http://127.0.0.1:{}"]
                [fleet.billing]
                command = ["/bin/sleep", "1000"]
                singleton = {{ scope = "cluster", flock = "{{dir}}/state/lock"{containment} }}
                "#,
                free_port()
            ));
        };
        configure(&rig, "");
        let check = Command::new(words[0])
            .args(&words[1..])
            .args([env!("CARGO_BIN_EXE_leasehold"), "check"])
            .arg(rig.path("leasehold.toml"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&check.stderr);
        assert!(
            check.status.success() && text.contains("W272"),
            "it may be a unit's that we look at: {check:?}"
        );
        let run = rig.run_command().output().unwrap();
        let text = String::from_utf8_lossy(&run.stderr);
        assert!(
            run.status.code() == Some(78) && text.contains("E277"),
            "{run:?}"
        );
        configure(&rig, ", containment = \"weak\"");
        rig.start();
        let shown = rig.ok(&["config", "show"]);
        assert_eq!(
            shown.contains("\"no_new_privs\": true"),
            uid != 0,
            "whoever may become another user can get out of our reach: {shown}"
        );
        configure(&rig, "");
        let reload = rig.cli(&["reload"]);
        assert!(
            reload.code == 78 && reload.err.contains("E277"),
            "{}",
            reload.err
        );
        rig.drain(5_000);
    }
}

#[test]
fn as_pid_1_it_reaps_and_drains() {
    for mode in [Mode::Cgroup, Mode::Group] {
        let Some(mut rig) = Rig::new(mode) else {
            continue;
        };
        let words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
        if !Command::new(words[0])
            .args(&words[1..])
            .arg("true")
            .status()
            .is_ok_and(|s| s.success())
        {
            skip("no PID namespace can be made here");
            return;
        }
        rig.wrapper = words.map(str::to_owned).to_vec();
        rig.elsewhere = true;
        rig.configure(FAMILY);
        let status = rig.start();
        assert_eq!(status.0["keeper"]["pid"], 1);
        // A sender outside has no pid that means anything in here (its credentials say 0).
        let stranger = UnixDatagram::unbound().unwrap();
        stranger
            .send_to(b"READY=1", rig.path("run/notify"))
            .unwrap();
        let unshare = rig.keeper();
        let keeper = until("the keeper's pid outside", 2_000, || {
            all_pids()
                .into_iter()
                .find(|pid| parent_of(*pid) == Some(unshare))
                .ok_or_else(String::new)
        });
        a_day(&mut rig, keeper);
    }
}

/// PID 1 dies, and the kernel ends the rest; the next container on the same volume starts clean.
#[test]
fn as_pid_1_its_death_is_everybodys() {
    let Some(mut rig) = Rig::new(Mode::Group) else {
        return;
    };
    let words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !Command::new(words[0])
        .args(&words[1..])
        .arg("true")
        .status()
        .is_ok_and(|s| s.success())
    {
        skip("no PID namespace can be made here");
        return;
    }
    rig.wrapper = words.map(str::to_owned).to_vec();
    rig.elsewhere = true;
    rig.configure(FAMILY);
    rig.start();
    rig.wait("the family is up", 10_000, |status| {
        status.of("web").iter().filter(|w| w.ready).count() == 2
    });
    rig.kill_keeper();
    until_true("all are gone", 5_000, || rig.left().is_empty());
    let _ = fs::remove_file(rig.path("notes/pids"));
    rig.start();
    let unshare = rig.keeper();
    let keeper = until("the keeper's pid outside", 2_000, || {
        all_pids()
            .into_iter()
            .find(|pid| parent_of(*pid) == Some(unshare))
            .ok_or_else(String::new)
    });
    a_day(&mut rig, keeper);
}

/// Installs a filter under which clone3 does not exist, then executes its arguments.
pub(crate) const FILTER: &str = r#"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close_range, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof code / sizeof *code, code };
    if (argc < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 99;
    execvp(argv[1], argv + 1);
    return 98;
}
"#;

/// As in containers whose filter is older than their kernel: neither clone3 nor close_range.
#[test]
fn under_an_old_containers_filter() {
    for mode in [Mode::Cgroup, Mode::Group] {
        let Some(mut rig) = Rig::new(mode) else {
            continue;
        };
        let Some(program) = rig.compile("filter", FILTER, &[]) else {
            return;
        };
        if !Command::new(&program)
            .arg("true")
            .status()
            .is_ok_and(|status| status.success())
        {
            skip("no seccomp filter can be installed here");
            return;
        }
        rig.wrapper = vec![program.display().to_string()];
        rig.configure(FAMILY);
        rig.start();
        let keeper = rig.keeper();
        a_day(&mut rig, keeper);
    }
}

/// A unit or container that is started again in a cgroup that was killed once: some kernels let no child be born into another one there.
#[test]
fn in_a_cgroup_that_was_killed_before() {
    let Some(mut rig) = Rig::new(Mode::Cgroup) else {
        return;
    };
    let name = format!("leasehold-test-{}", std::process::id());
    let cgroup = cgroup_mount().unwrap().join(name);
    fs::create_dir(&cgroup).unwrap();
    let _removed = RemovedAtEnd(cgroup.clone());
    let join = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", cgroup.display());
    let mut victim = Command::new("sh")
        .args(["-c", &join, "sh", "sleep", "1000"])
        .spawn()
        .unwrap();
    let populated = || {
        fs::read_to_string(cgroup.join("cgroup.events"))
            .is_ok_and(|text| text.contains("populated 1"))
    };
    until_true("the first one is in it", 2_000, populated);
    fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    victim.wait().unwrap();
    rig.wrapper = ["sh", "-c", &join, "sh"].map(str::to_owned).to_vec();
    rig.configure(FAMILY);
    rig.start();
    let status = rig.wait("the family is up", 10_000, |status| {
        status.of("web").iter().filter(|w| w.ready).count() == 2
    });
    let restarts: Vec<u64> = status.of("web").iter().map(|w| w.restarts).collect();
    assert_eq!(restarts, [0, 0], "a worker died at its birth");
    let keeper = rig.keeper();
    a_day(&mut rig, keeper);
}

struct RemovedAtEnd(PathBuf);

impl Drop for RemovedAtEnd {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        until_true("the cgroup can go", 2_000, || {
            fs::remove_dir(&self.0).is_ok()
        });
    }
}

/// The sum is shown before anything is started.
#[test]
fn too_few_descriptors_are_refused_with_the_arithmetic() {
    let Some(mut rig) = Rig::new(Mode::Group) else {
        return;
    };
    rig.configure("[fleet.web]\ncommand = [\"/bin/sleep\", \"1000\"]\nworkers = 200\n");
    let limited = |words: &[&str]| {
        Command::new("sh")
            .args([
                "-c",
                "ulimit -n 300 && exec \"$@\"",
                "sh",
                env!("CARGO_BIN_EXE_leasehold"),
            ])
            .args(words)
            .output()
            .unwrap()
    };
    let config = rig.path("leasehold.toml").display().to_string();
    let check = limited(&["check", &config]);
    let text = String::from_utf8_lossy(&check.stderr).into_owned();
    assert_eq!(check.status.code(), Some(78), "{text}");
    for word in ["200 workers", "1040", "hard limit is 300"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    rig.wrapper = ["sh", "-c", "ulimit -n 300 && exec \"$@\"", "sh"]
        .map(str::to_owned)
        .to_vec();
    let run = rig.run_command().output().unwrap();
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(
        run.status.code() == Some(78) && text.contains("hard limit is 300"),
        "{run:?}"
    );
    rig.assert_nothing_left();
    // What fits, runs: the soft limit is raised by the daemon itself, and workers get theirs back.
    rig.configure("[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", \"ulimit -Sn; exec sleep 1000\"]\nworkers = 100\n");
    rig.wrapper = [
        "sh",
        "-c",
        "ulimit -Sn 64 && ulimit -Hn 840 && exec \"$@\"",
        "sh",
    ]
    .map(str::to_owned)
    .to_vec();
    rig.start_settled();
    until_true("it has its own limit", 3_000, || {
        fs::read_to_string(rig.log("web/99")).is_ok_and(|text| text == "64\n")
    });
    let supervisor = rig.status().supervisor();
    send(supervisor, Signal::KILL);
    rig.wait("another supervisor", 3_000, |status| {
        status.supervisor() != supervisor && status.settled()
    });
    rig.drain(8_000);
}

/// The limit that `check` asks for is enough for the worst that can be: every worker has its streams, every door its clients, the
/// supervisor dies, and so does a worker. With one less it is refused.
#[test]
fn the_limit_on_descriptors_that_is_accepted_suffices() {
    for mode in [Mode::Cgroup, Mode::Group] {
        if let Some(rig) = Rig::new(mode) {
            with_as_few_descriptors_as_accepted(rig);
        }
    }
}

fn with_as_few_descriptors_as_accepted(mut rig: Rig) {
    let (http, port) = (free_port(), free_port());
    let line = "x".repeat(400);
    rig.configure(&format!(
        r#"
        [http]
        listen = ["127.0.0.1:{http}"]
        [fleet.web]
        command = ["/bin/sh", "-c", "n=0; while n=$((n+1)); do echo $n {line}; echo $n {line} >&2; sleep 0.2; done"]
        workers = 30
        log = {{ stderr = "separate", rotate_size = "4KiB", max_size = "256KiB" }}
        socket.main.listen = "127.0.0.1:{port}"
        [fleet.quiet]
        command = ["/bin/sleep", "1000"]
        workers = 20
        rollout.max_surge = 2
    "#
    ));
    let config = rig.path("leasehold.toml").display().to_string();
    let check = |limit: u64| {
        let words = format!("ulimit -n {limit} && exec \"$0\" check \"$1\"");
        let output = Command::new("sh")
            .args(["-c", &words, env!("CARGO_BIN_EXE_leasehold"), &config])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = check(300);
    assert_eq!(code, Some(78), "{text}");
    let (before, _) = text.split_once(" open descriptors may be needed").unwrap();
    let least: u64 = before.rsplit(' ').next().unwrap().parse().unwrap();
    let (code, text) = check(least - 1);
    assert_eq!(code, Some(78), "{text}");
    assert!(
        text.contains(&format!("hard limit is {}", least - 1)),
        "{text}"
    );
    let (code, text) = check(least);
    assert_eq!(code, Some(0), "{text}");
    let words = format!("ulimit -n {least} && exec \"$@\"");
    rig.wrapper = ["sh", "-c", &words, "sh"].map(str::to_owned).to_vec();
    rig.start();
    let before = rig.settle(10_000);
    // As many clients as either door lets in, who stay for as long as they are let.
    let (mut remote, mut local) = (Vec::new(), Vec::new());
    for _ in 0..256 {
        remote.push(TcpStream::connect(("127.0.0.1", http)).unwrap());
        local.push(UnixStream::connect(rig.path("run/control.sock")).unwrap());
    }
    // The number of the last line of each stream, in files that are cut every two seconds.
    let last = |path: &str| -> u64 {
        let text = fs::read_to_string(rig.path("log/web").join(path)).unwrap_or_default();
        let line = text.lines().next_back().unwrap_or_default();
        line.split(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    };
    let more_lines = |when: &str| {
        let streams = (0..30).flat_map(|n| [format!("{n}.log"), format!("{n}.stderr.log")]);
        let before: Vec<(String, u64)> = streams.map(|path| (path.clone(), last(&path))).collect();
        for (path, before) in before {
            until_true(&format!("more lines in {path} {when}"), 5_000, || {
                last(&path) > before
            });
        }
    };
    let supervisor = before.supervisor();
    let fds = || {
        fs::read_dir(format!("/proc/{supervisor}/fd"))
            .unwrap()
            .count() as u64
    };
    until("it has let them in", 5_000, || {
        let count = fds();
        if count >= 512 {
            Ok(())
        } else {
            Err(count.to_string())
        }
    });
    assert!(fds() < least, "the sum holds with both doors full");
    // Files are begun anew meanwhile.
    more_lines("beside many clients");
    drop((remote, local));
    more_lines("after many clients");
    send(supervisor, Signal::KILL);
    let after = rig.wait("another supervisor", 4_000, |status| {
        status.supervisor() != supervisor && status.settled()
    });
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    more_lines("from the next supervisor");
    send(after.worker("web/7").unwrap().pid, Signal::KILL);
    rig.wait("the dead one is back", 4_000, |status| {
        let worker = status.worker("web/7").unwrap();
        worker.generation == 2 && worker.ready
    });
    more_lines("after a crash");
    rig.drain(8_000);
    for n in (0..30).filter(|n| *n != 7) {
        for stream in [format!("web/{n}"), format!("web/{n}.stderr")] {
            let text = whole_log(&rig, &stream);
            for (at, written) in text.lines().enumerate() {
                assert!(
                    written == format!("{} {line}", at + 1),
                    "{stream}: line {} is {:.20}",
                    at + 1,
                    written
                );
            }
        }
    }
}

/// A second look at a directory, through which nothing can be written; what was opened before stays as it was.
struct ReadOnly {
    path: PathBuf,
}

impl ReadOnly {
    fn over(path: PathBuf) -> Option<Self> {
        let mount = |options: &str| {
            let mut command = Command::new("mount");
            command.args(["-o", options]).arg(&path).arg(&path);
            command.status().is_ok_and(|status| status.success())
        };
        if !is_root() || !mount("bind") {
            skip("nothing can be mounted here");
            return None;
        }
        let only = Self { path: path.clone() };
        assert!(mount("remount,bind,ro"));
        let refused = fs::write(path.join("probe"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        Some(only)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[test]
fn a_run_directory_that_becomes_read_only_is_lived_with() {
    for mode in [Mode::Cgroup, Mode::Group] {
        if let Some(rig) = Rig::new(mode) {
            with_a_run_directory_that_becomes_read_only(rig);
        }
    }
}

/// The sockets in it are the keeper's, and open. Nothing else is needed there until the next start, which says what is wrong.
fn with_a_run_directory_that_becomes_read_only(mut rig: Rig) {
    let http = free_port();
    let talk = r#"
        [fleet.talk]
        command = [{worker}, "lines", "5", "0.05"]
        workers = 2
        [fleet.web]
        command = [{worker}, "ready"]
        ready = "notify"
        workers = 2
    "#;
    rig.configure(&format!("[http]\nlisten = [\"127.0.0.1:{http}\"]\n{talk}"));
    let before = rig.start_settled();
    until_true("they talk", 5_000, || {
        rig.log("talk/0").exists() && rig.log("talk/1").exists()
    });
    let Some(read_only) = ReadOnly::over(rig.path("run")) else {
        return;
    };
    send(before.supervisor(), Signal::KILL);
    let after = rig.wait("another supervisor", 3_000, |status| {
        status.supervisor() != before.supervisor() && status.settled()
    });
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    // Readiness still comes through that directory, and so do commands.
    send(after.worker("web/0").unwrap().pid, Signal::KILL);
    rig.wait("the dead one is back", 4_000, |status| {
        let worker = status.worker("web/0").unwrap();
        worker.generation == 2 && worker.ready
    });
    rig.ok(&["restart", "web/1", "--timeout", "5s"]);
    rig.ok(&["stop", "web"]);
    let length = fs::metadata(rig.log("talk/0")).unwrap().len();
    until_true("lines are written", 3_000, || {
        fs::metadata(rig.log("talk/0")).unwrap().len() > length
    });
    // What needs it is refused, with the reason, and changes nothing.
    rig.configure(&format!(
        "[http]\nlisten = [\"127.0.0.1:{http}\"]\n{talk}\nsocket.new.listen = \"{{dir}}/run/new.sock\"\n"
    ));
    let said = rig.cli(&["reload"]);
    assert!(
        said.code != 0 && said.err.contains("run/new.sock") && said.err.contains("Read-only"),
        "{said:?}"
    );
    assert_eq!(
        identities(&after.of("talk")),
        identities(&rig.status().of("talk"))
    );
    let stderr = rig.stderr();
    assert!(!stderr.contains("panicked"), "{stderr}");
    rig.drain(5_000);
    for n in 0..2 {
        check_lines(&rig, &format!("talk/{n}"), 1);
    }
    rig.wrapper = ["timeout", "20"].map(str::to_owned).to_vec();
    let again = rig.run_command().output().unwrap();
    let text = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        matches!(again.status.code(), Some(1 | 8)) && text.contains("Read-only"),
        "{again:?}"
    );
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    // Writable again: what the last run could not take away is in nobody's way.
    drop(read_only);
    rig.wrapper.clear();
    assert!(rig.path("run/control.sock").exists());
    rig.configure(talk);
    rig.start_settled();
    rig.drain(5_000);
}
