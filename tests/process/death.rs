//! The keeper is killed: nothing goes on without it, and the next one starts clean.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::Signal;

use crate::{
    rig::{Mode, Rig, both_ways, identities, lives, send, until, until_true},
    survival::check_lines,
};

fn configure(rig: &Rig, bareness: u8) {
    rig.configure(&format!(
        r#"
        [fleet.web]
        command = [{{worker}}, "family", "{{notes}}", "{bareness}"]
        ready = "notify"
        workers = 2
        stop.timeout = "1s"
        [fleet.deaf]
        command = [{{worker}}, "stubborn"]
        workers = 2
        stop.timeout = "1s"
        "#
    ));
}

fn all_gone(rig: &Rig, bound_ms: u64) {
    until("nothing of the run is left", bound_ms, || {
        let mut left = rig.left();
        left.extend(rig.noted_pids().into_iter().filter(|pid| lives(*pid)));
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
}

both_ways!(
    a_killed_keeper_leaves_nothing,
    a_keeper_that_is_killed_and_started_at_once_starts_clean,
    what_both_leave_behind_is_ended_by_the_next_run,
    a_second_run_is_refused_and_told_by_whom,
    a_second_daemon_on_anothers_state_or_logs_is_refused,
    a_frozen_keeper_goes_on_where_it_was
);

/// Also descendants that left group and session; and the same directories serve the next run.
fn a_killed_keeper_leaves_nothing(mut rig: Rig) {
    configure(&rig, if rig.mode == Mode::Cgroup { 2 } else { 1 });
    let before = rig.start_settled();
    rig.kill_keeper();
    all_gone(&rig, 5_000);
    until_true("the supervisor is gone", 2_000, || {
        !lives(before.supervisor())
    });
    rig.assert_nothing_left();
    let _ = std::fs::remove_file(rig.path("notes/pids"));
    let after = rig.start_settled();
    assert_eq!(after.of("web").len(), 2);
    assert_ne!(identities(&before.of("web")), identities(&after.of("web")));
    rig.drain(8_000);
}

/// The next run begins while the supervisor of the one before still cleans up: neither takes away what the other needs.
fn a_keeper_that_is_killed_and_started_at_once_starts_clean(mut rig: Rig) {
    rig.configure(
        "[fleet.web]\ncommand = [\"/bin/sleep\", \"1000\"]\nworkers = 12\nstop.timeout = \"1s\"\n",
    );
    for _ in 0..25 {
        rig.start();
        let status = rig.settle(3_000);
        let first = status.workers().iter().all(|w| w.generation == 1);
        assert!(first && status.workers().len() == 12, "{status:?}");
        rig.kill_keeper();
    }
    let status = rig.start_settled();
    let cgroup = rig.cgroup().filter(|_| rig.mode == Mode::Cgroup);
    assert!(cgroup.is_none_or(|path| path.is_dir()));
    crate::rig::pause(200);
    assert_eq!(
        identities(&status.workers()),
        identities(&rig.status().workers())
    );
    rig.drain(5_000);
}

/// Nobody is there to clean up: the next run does it before it says that it is ready. Without cgroups it knows them by their
/// environment alone: who dropped that is not covered.
fn what_both_leave_behind_is_ended_by_the_next_run(mut rig: Rig) {
    configure(&rig, if rig.mode == Mode::Cgroup { 2 } else { 0 });
    let before = rig.start_settled();
    // Frozen first, so that it cannot clean up while the keeper dies.
    let keeper = rig.keeper();
    send(keeper, Signal::STOP);
    until_true("the keeper is frozen", 2_000, || {
        crate::rig::state_of(keeper) == Some('T')
    });
    send(before.supervisor(), Signal::KILL);
    rig.kill_keeper();
    let orphans = rig
        .noted_pids()
        .into_iter()
        .filter(|pid| lives(*pid))
        .count();
    assert!(
        orphans > 0,
        "the kernel kills leaders, not their descendants"
    );
    let stale = rig.noted_pids();
    let _ = std::fs::remove_file(rig.path("notes/pids"));
    rig.start();
    let alive: Vec<i32> = stale.into_iter().filter(|pid| lives(*pid)).collect();
    assert!(alive.is_empty(), "READY with leftovers {alive:?}");
    assert!(
        rig.stderr().contains("that an earlier run had left behind") || rig.mode == Mode::Cgroup,
        "{}",
        rig.stderr()
    );
    rig.settle(10_000);
    rig.drain(8_000);
}

/// One daemon per run directory.
fn a_second_run_is_refused_and_told_by_whom(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"sleep\"]\n");
    let before = rig.start_settled();
    let output = rig.run_command().stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(9), "{text}");
    assert!(text.contains(&format!("pid {}", rig.keeper())), "{text}");
    let after = rig.status();
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    assert_eq!(before.supervisor(), after.supervisor());
    rig.drain(5_000);
}

/// How a rig's daemon is started, but with somebody else's directory.
fn sharing(rig: &Rig, flag: &str, with: &Path) -> Command {
    let own = rig.run_command();
    let mut command = Command::new(own.get_program());
    let mut theirs = false;
    for word in own.get_args() {
        command.arg(if theirs { with.as_os_str() } else { word });
        theirs = word == flag;
    }
    for (variable, _) in own.get_envs() {
        command.env_remove(variable);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Run directories of their own do not make two daemons strangers: state and logs have one writer each, by whatever path.
fn a_second_daemon_on_anothers_state_or_logs_is_refused(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"lines\", \"5\", \"0.02\"]\nworkers = 2\n");
    let before = rig.start_settled();
    until_true("they talk", 5_000, || {
        rig.log("web/0").exists() && rig.log("web/1").exists()
    });
    let mut second = Rig::new(rig.mode).unwrap();
    // Should it not be refused, it does not run for ever.
    second.wrapper = ["timeout", "20"].map(str::to_owned).to_vec();
    second
        .configure("[fleet.web]\ncommand = [{worker}, \"lines\", \"5\", \"0.02\"]\nworkers = 2\n");
    for (flag, what) in [("--state-dir", "state"), ("--log-dir", "log")] {
        let link = second.path(&format!("to-{what}"));
        std::os::unix::fs::symlink(rig.path(what), &link).unwrap();
        for path in [rig.path(what), link] {
            let output = sharing(&second, flag, &path)
                .stderr(Stdio::piped())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(9), "{text}");
            for word in [
                &path.join("lock").display().to_string(),
                flag,
                &format!("pid {} ", rig.keeper()),
            ] {
                assert!(text.contains(word), "{word} is not in {text}");
            }
            assert_eq!(text.lines().count(), 1, "{text}");
            // It had not begun.
            assert!(!second.path("run/run.json").exists());
            assert!(second.cgroup().is_none_or(|path| !path.exists()));
        }
    }
    let after = rig.status();
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    assert_eq!(before.supervisor(), after.supervisor());
    rig.ok(&["restart", "web/1"]);
    rig.drain(5_000);
    check_lines(&rig, "web/0", 1);
    // What the first has left, the second may have.
    second.wrapper.clear();
    second.spawn_as(sharing(&second, "--state-dir", &rig.path("state")));
    second.settle(10_000);
    second.drain(5_000);
}

/// Alive, but deaf: the kernel's instance lock still keeps a second one away; its thaw harms nobody.
fn a_frozen_keeper_goes_on_where_it_was(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"sleep\"]\nworkers = 3\n");
    let before = rig.start_settled();
    rig.signal(Signal::STOP);
    send(before.workers()[0].pid, Signal::KILL);
    let output = rig.run_command().stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    rig.signal(Signal::CONT);
    let after = rig.wait("the dead one is back", 3_000, |status| {
        status
            .worker("web/0")
            .is_some_and(|w| w.generation == 2 && w.ready)
    });
    assert_eq!(
        identities(&before.workers()[1..]),
        identities(&after.workers()[1..])
    );
    rig.drain(5_000);
}

/// What a check of "nothing is left" would overlook if it looked in the wrong place.
#[test]
fn the_checks_look_where_workers_are() {
    let Some(mut rig) = Rig::new(Mode::Cgroup) else {
        return;
    };
    configure(&rig, 1);
    let status = rig.start_settled();
    let worker = status.worker("web/0").unwrap();
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", worker.pid)).unwrap();
    let name = rig
        .cgroup()
        .unwrap()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    assert!(cgroup.contains(&format!("0::/{name}/web.0.1")), "{cgroup}");
    assert!(rig.cgroup().unwrap().is_dir());
    assert!(rig.left().contains(&worker.pid) && rig.left().contains(&status.supervisor()));
    until_true("both families are complete", 3_000, || {
        rig.noted_pids().len() == 24
    });
    rig.drain(8_000);
}
