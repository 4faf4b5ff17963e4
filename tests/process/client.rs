//! The command line as people meet it: what is refused at once, what is said when nobody answers, Ctrl-C.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use rustix::process::Signal;

use crate::rig::{Mode, Rig, pause, send, until};

fn group() -> Rig {
    Rig::new(Mode::Group).expect("everybody can hold workers together by group")
}

/// Said before anything starts: the supervisor is another process, and reads it again at each reload.
#[test]
fn a_pipe_is_no_configuration_for_a_daemon() {
    let rig = group();
    rig.configure("[fleet.web]\ncommand = [\"/bin/sleep\", \"1000\"]\n");
    let with_pipe = |verb: &str| {
        let file = rig.path("leasehold.toml").display().to_string();
        let words = "exec \"$1\" \"$2\" -c <(cat \"$3\") --run-dir \"$4\" --state-dir \"$4\" --log-dir \"$4\"";
        let words = match verb {
            "run" => words,
            _ => "exec \"$1\" \"$2\" -c <(cat \"$3\")",
        };
        Command::new("bash")
            .args(["-c", words, "bash", env!("CARGO_BIN_EXE_leasehold"), verb])
            .args([file, rig.path("run").display().to_string()])
            .output()
            .unwrap()
    };
    let run = with_pipe("run");
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(78), "{text}");
    assert!(
        text.contains("not a regular file") && text.trim().lines().count() == 1,
        "{text}"
    );
    assert!(!rig.path("run").exists(), "something was begun");
    let check = with_pipe("check");
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(
        check.status.success() && text.contains("1 fleet, 1 worker,"),
        "{check:?}"
    );
}

#[test]
fn logs_are_printed_without_a_daemon_and_that_is_said() {
    let mut rig = group();
    rig.configure(
        "[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", \"echo hello; exec sleep 1000\"]\n",
    );
    rig.start_settled();
    until("its output is there", 3_000, || {
        let said = rig.cli(&["logs", "web"]);
        let right = said.code == 0 && said.out == "hello\n" && said.err.is_empty();
        right.then_some(()).ok_or(format!("{said:?}"))
    });
    let said = rig.cli(&["logs", "wbe"]);
    assert!(
        said.code == 4 && said.err.contains("nothing is called `wbe`"),
        "{said:?}"
    );
    let empty = rig.path("state").display().to_string();
    let said = rig.cli(&["logs", "web", "--log-dir", &empty]);
    assert!(
        said.code == 4 && said.err.contains("holds no output of web"),
        "{said:?}"
    );
    rig.drain(5_000);
    let dir = rig.path("log").display().to_string();
    let said = rig.cli(&["logs", "web", "--log-dir", &dir]);
    assert_eq!((said.code, said.out.as_str()), (0, "hello\n"));
    let said = rig.cli(&["logs", "wbe", "--log-dir", &dir]);
    assert!(
        said.code == 7 && said.err.contains("no daemon answers"),
        "{said:?}"
    );
    let mut follower = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .args(["logs", "-f", "--log-dir", &dir, "--socket"])
        .arg(rig.path("run/control.sock"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(follower.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert!(line.contains("no daemon answers"), "{line}");
}

/// It ends the waiting, at whatever moment it comes, and not the work.
#[test]
fn ctrl_c_ends_the_waiting_alone() {
    let mut rig = group();
    rig.configure(
        "[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", \"trap '' TERM; while :; do sleep 1; done\"]\nstop.timeout = \"6s\"\n",
    );
    let before = rig.start_settled();
    let client = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .args(["restart", "web", "--socket"])
        .arg(rig.path("run/control.sock"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    rig.wait("it drains", 3_000, |status| {
        status
            .worker("web/0")
            .is_some_and(|w| w.state == "draining")
    });
    // It has asked at least once by now, and waits for an event that is seconds away.
    pause(500);
    send(client.id() as i32, Signal::INT);
    let output = client.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("the work goes on"), "{text}");
    let worker = rig.status().worker("web/0").unwrap();
    assert_eq!((worker.state.as_str(), worker.generation), ("draining", 1));
    rig.wait("another generation", 12_000, |status| {
        status.of("web").first().map(|w| w.generation)
            > before.of("web").first().map(|w| w.generation)
    });
}

/// `events -f | head -1` ends when there is something to write and nobody to read it.
#[test]
fn a_follower_whose_reader_went_ends() {
    let mut rig = group();
    rig.configure("[fleet.web]\ncommand = [\"/bin/sleep\", \"1000\"]\n");
    rig.start_settled();
    let mut follower = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .args(["events", "-f", "--socket"])
        .arg(rig.path("run/control.sock"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(follower.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.contains("started, pid"), "{line}");
    rig.ok(&["restart", "web"]);
    let status = until("it ends", 5_000, || {
        follower.try_wait().unwrap().ok_or_else(String::new)
    });
    assert!(status.success(), "{status}");
    rig.drain(5_000);
}
