//! `leasehold lock --cluster`: one command under a lock of the cluster, without a daemon.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use leasehold::{sys::clock, time::Span};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    etcd::{Cluster, Setup},
    rig::{is_root, lives, patience, pause, send, skip, until, until_true},
};

const TTL_MS: u64 = 6_000;

struct Scene {
    etcd: Cluster,
    dir: TempDir,
}

impl Scene {
    /// None, loudly, where that cannot be.
    fn new() -> Option<Self> {
        if !is_root() {
            skip("no PID namespaces without root");
            return None;
        }
        let etcd = Cluster::with(Setup {
            members: 1,
            ..Setup::default()
        })?;
        let dir = tempfile::tempdir().unwrap();
        // As an ordinary user reads it, too.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), open).unwrap();
        // Lock files of this machine are its: tests must not share them.
        let name = dir
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let cluster = format!("commands{}", name.replace('.', "-"));
        let endpoints = etcd.endpoints();
        let text = format!(
            "schema = 1\n[node]\nname = \"vps-1\"\n[etcd]\nendpoints = {endpoints:?}\ncluster = \"{cluster}\"\nlease_ttl = \"{TTL_MS}ms\"\n",
        );
        fs::write(dir.path().join("leasehold.toml"), text).unwrap();
        Some(Self { etcd, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        command.args(["lock", "--cluster"]).args(words);
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command.env_remove("SYSTEMD_EXEC_PID");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// A command that has the lock, and said its fence.
    fn holder(&self, then: &str) -> (Child, u64) {
        let script = format!("echo $LEASEHOLD_FENCE; {then}");
        let mut command = self.command(&["demo", "--", "sh", "-c", &script]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.as_mut().unwrap());
        out.read_line(&mut line).unwrap();
        let fence = line.trim().parse().expect("a fence");
        (child, fence)
    }

    fn pid(&self, file: &str) -> i32 {
        until("it said its pid", 5_000, || {
            let text = fs::read_to_string(self.path(file)).map_err(|e| e.to_string())?;
            text.trim().parse().map_err(|e| format!("{e}: {text:?}"))
        })
    }
}

/// What a command said that ends by itself, soon; it does not outlive the test if it does not.
fn ended(command: &mut Command) -> Output {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let end = clock::now().after(Span::millis(10_000 * patience()));
    while child.try_wait().unwrap().is_none() && clock::now() < end {
        pause(4);
    }
    let _ = child.kill();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_command_has_a_clusters_lock() {
    let Some(scene) = Scene::new() else { return };
    let output = scene.run(&["demo", "--", "sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    let (mut first, fence) = scene.holder("exec sleep 1000");
    let refused = scene.run(&["--no-wait", "demo", "--", "true"]);
    assert_eq!(refused.status.code(), Some(69));
    assert!(
        said(&refused).contains("held by demo/0 on vps-1/lock-"),
        "{}",
        said(&refused)
    );
    let late = scene.run(&["--timeout", "500ms", "-E", "3", "demo", "--", "true"]);
    assert_eq!(late.status.code(), Some(3), "{}", said(&late));
    // Those who gave up stand in nobody's way.
    let asked = clock::now();
    send(first.id() as i32, Signal::TERM);
    let (mut second, next) = scene.holder("exit 0");
    let took = clock::now().since(asked);
    assert!(next > fence, "{next} after {fence}");
    assert!(took.as_millis() < TTL_MS / 2, "it waited for {took}");
    assert!(second.wait().unwrap().success());
    assert_eq!(first.wait().unwrap().code(), Some(128 + 15));
    // Nothing of it is left: no node, nobody in the queue, no file where it was called.
    let keys = scene
        .etcd
        .ctl(&["get", "--prefix", "--keys-only", "/leasehold/"])
        .unwrap();
    assert!(
        !keys.contains("/n/") && !keys.contains("/k/") && !keys.contains("/q/"),
        "{keys}"
    );
    let files: Vec<_> = fs::read_dir(scene.dir.path()).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "{files:?}");
}

/// Whatever the command does about it: nobody else can have the lock before it is gone.
#[test]
fn a_command_ends_before_its_lease_does() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let stray = "trap '' TERM; sh -c 'trap \"\" TERM; cut -d\" \" -f4 /proc/self/stat > stray; while :; do sleep 1; done' & while :; do sleep 1; done";
    let (mut child, _) = scene.holder(stray);
    let stray = scene.pid("stray");
    assert!(lives(stray));
    let gone = clock::now();
    scene.etcd.kill(0);
    until_true("all of it is gone", TTL_MS, || !lives(stray));
    let took = clock::now().since(gone);
    assert!(took.as_millis() < TTL_MS, "it took {took}");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 9));
}

#[test]
fn a_killed_keeper_takes_its_command_with_it() {
    let Some(scene) = Scene::new() else { return };
    let (mut child, fence) = scene.holder(
        "setsid sh -c 'cut -d\" \" -f4 /proc/self/stat > stray; exec sleep 1000' & exec sleep 1000",
    );
    let stray = scene.pid("stray");
    child.kill().unwrap();
    let _ = child.wait();
    until_true("nothing of it is left", 3_000, || !lives(stray));
    let (mut next, later) = scene.holder("exit 0");
    assert!(later > fence);
    assert!(next.wait().unwrap().success());
}

#[test]
fn what_cannot_be_promised_is_refused() {
    let Some(scene) = Scene::new() else { return };
    let config = scene.path("leasehold.toml").display().to_string();
    let nobody = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            "65534",
            "--clear-groups",
            env!("CARGO_BIN_EXE_leasehold"),
        ]);
        command
            .args(["lock", "--cluster", "-c", &config])
            .args(words);
        command.current_dir("/").output().unwrap()
    };
    let refused = nobody(&["demo", "--", "true"]);
    assert_eq!(refused.status.code(), Some(69));
    assert!(
        said(&refused).contains("or say --weak"),
        "{}",
        said(&refused)
    );
    let weak = nobody(&["--weak", "demo", "--", "true"]);
    assert_eq!(weak.status.code(), Some(0), "{}", said(&weak));
    // Nobody but root can end what has become somebody else's.
    let grown = ["demo", "--", "grep", "NoNewPrivs", "/proc/self/status"];
    let kept = nobody(&[&["--weak"], &grown[..]].concat());
    assert!(kept.stdout.ends_with(b"1\n"), "{kept:?}");
    let free = scene.run(&grown);
    assert!(free.stdout.ends_with(b"0\n"), "{free:?}");
    let missing = scene.run(&["-c", "/nowhere.toml", "demo", "--", "true"]);
    assert!(missing.status.code() == Some(69) && said(&missing).contains("/nowhere.toml"));
    fs::write(scene.path("none.toml"), "schema = 1\n").unwrap();
    let alone = scene.run(&["-c", "none.toml", "demo", "--", "true"]);
    assert!(said(&alone).contains("has no [etcd]"), "{}", said(&alone));
}

#[test]
fn a_command_that_obeys_is_ended_with_a_reason() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let mut command = scene.command(&["demo", "--", "sh", "-c", "echo $$; exec sleep 1000"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.as_mut().unwrap());
    out.read_line(&mut String::new()).unwrap();
    scene.etcd.kill(0);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 15), "{}", said(&output));
    let told = said(&output);
    assert!(
        told.contains("was not renewed in time") && told.contains("could not be renewed"),
        "{told}"
    );
}

/// Whatever is wrong before there is somebody who could wait: it ends, and says what.
#[test]
fn what_fails_before_it_waits_ends_it() {
    let Some(scene) = Scene::new() else { return };
    fs::write(scene.path("ca.pem"), "no certificate").unwrap();
    let text = fs::read_to_string(scene.path("leasehold.toml")).unwrap();
    let text = text.replace("http://", "https://") + "tls = { ca = \"ca.pem\" }\n";
    fs::write(scene.path("tls.toml"), text).unwrap();
    let words = [
        "-c",
        "tls.toml",
        "-E",
        "5",
        "--no-wait",
        "demo",
        "--",
        "true",
    ];
    let output = ended(&mut scene.command(&words));
    let told = said(&output);
    assert_eq!(output.status.code(), Some(5), "{told}");
    assert!(
        told.contains("etcd.tls.ca") && told.lines().count() < 4,
        "{told}"
    );
}

/// Who has as many processes as he may have gets his answer from a keeper that is alone.
#[test]
fn a_keeper_that_can_start_nobody_ends() {
    let Some(scene) = Scene::new() else { return };
    // The kernel counts by user, and other tests have users too; a keeper is two threads.
    let user = (1 << 30) + std::process::id();
    let mut command = Command::new("prlimit");
    command.args(["--nproc=2", "setpriv", "--reuid", &user.to_string()]);
    command.args(["--clear-groups", env!("CARGO_BIN_EXE_leasehold")]);
    let words = ["lock", "--timeout", "1s", "-E", "5", "demo", "--", "true"];
    let output = ended(command.args(words).current_dir(scene.dir.path()));
    let told = said(&output);
    assert_eq!(output.status.code(), Some(5), "{told}");
    assert!(
        told.contains("failed to start the supervisor") && told.lines().count() == 1,
        "{told}"
    );
}

#[test]
fn a_killed_waiter_stands_in_nobodys_way() {
    let Some(scene) = Scene::new() else { return };
    let (mut first, _) = scene.holder("exec sleep 1000");
    let mut waiter = scene.command(&["demo", "--", "true"]).spawn().unwrap();
    let waiting = || {
        let keys = scene
            .etcd
            .ctl(&["get", "--prefix", "--keys-only", "/leasehold/"])
            .unwrap();
        keys.matches("/q/").count()
    };
    until_true("it waits", 10_000, || waiting() == 2);
    waiter.kill().unwrap();
    waiter.wait().unwrap();
    let killed = clock::now();
    until_true("its place is gone", 10_000, || waiting() == 1);
    let took = clock::now().since(killed);
    assert!(took.as_millis() < TTL_MS / 2, "it took {took}");
    send(first.id() as i32, Signal::TERM);
    let _ = first.wait();
}

#[test]
fn a_command_under_one_lock_may_have_another() {
    let Some(scene) = Scene::new() else { return };
    let leasehold = env!("CARGO_BIN_EXE_leasehold");
    let inner = ["lock", "--cluster", "inner", "--", "sh", "-c", "exit 7"];
    let output = scene.run(&[&["outer", "--", leasehold], &inner[..]].concat());
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
}
