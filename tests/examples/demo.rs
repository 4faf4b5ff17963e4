//! `examples/cluster-demo`: it ends well, it sees what is not well, and it leaves nothing.

use std::{
    fs::{self, File},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    rig::{all_pids, lives, send, skip, until, until_true},
    shop::{directory, examples, python},
};

struct Demo {
    dir: TempDir,
    child: Child,
}

impl Demo {
    fn start(words: &[&str], columns: &str) -> Option<Self> {
        let python = python()?;
        let there = Command::new("etcd").arg("--version").output();
        if there.is_err() {
            skip("there is no etcd (Debian: etcd-server)");
            return None;
        }
        let dir = directory();
        // Everything lies below it, so that whoever is left names it.
        let below = dir.path().join("below");
        fs::create_dir(&below).unwrap();
        let file = |name| File::create(dir.path().join(name)).unwrap();
        let mut command = Command::new(python);
        command.arg(examples().join("cluster-demo/demo.py"));
        command.args(["--leasehold", env!("CARGO_BIN_EXE_leasehold")]);
        command.args(words).env("TMPDIR", &below);
        let child = command
            .env("COLUMNS", columns)
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap();
        Some(Self { dir, child })
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    /// Its exit code, what it said, and that nothing of it is left.
    fn ended(mut self, columns: usize) -> (i32, String) {
        let status = until("it ends", 90_000, || {
            let status = self.child.try_wait().unwrap();
            status.ok_or_else(|| self.said("out"))
        });
        let (out, err) = (self.said("out"), self.said("err"));
        let left = self.left();
        assert!(left.is_empty(), "left over: {left:?}");
        let files: Vec<PathBuf> = self.files();
        assert!(files.is_empty(), "left over: {files:?}");
        let wide = out.lines().find(|line| line.chars().count() > columns);
        assert_eq!(wide, None, "{out}");
        assert!(!out.contains('\x1b'), "colours are for terminals");
        let code = status.code();
        let code = code.unwrap_or_else(|| panic!("{:?}: {err}", status.signal()));
        (code, out + &err)
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("below")).unwrap();
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// Living processes that name its directory.
    fn left(&self) -> Vec<String> {
        let needle = self.dir.path().join("below").display().to_string();
        let lines = all_pids().into_iter().filter(|pid| lives(*pid));
        let lines = lines.filter_map(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
        let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
        lines.filter(|line| line.contains(&needle)).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // It ends what it started.
            send(self.child.id() as i32, Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

#[test]
fn the_short_demonstration_ends_well() {
    let Some(demo) = Demo::start(&["--quick"], "80") else {
        return;
    };
    let (code, said) = demo.ended(80);
    assert_eq!(code, 0, "{said}");
    for words in [
        "kill -9 of the worker",
        "two at once: 0",
        "6,000 sold",
        "its page said no",
    ] {
        let plain: Vec<&str> = said.split_whitespace().collect();
        let is_said = plain.join(" ").contains(words) || said.contains(words);
        assert!(is_said, "{words:?}: {said}");
    }
}

/// A judge who always says that all is well would say so here.
#[test]
fn without_the_fence_it_sees_what_was_sold_twice() {
    let words = ["--acts", "freeze", "--without-fence"];
    let Some(demo) = Demo::start(&words, "80") else {
        return;
    };
    let (code, said) = demo.ended(80);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("BAD 6,000 units, 6,00"), "{said}");
}

#[test]
fn interrupted_it_leaves_nothing() {
    let Some(demo) = Demo::start(&["--acts", "freeze"], "50") else {
        return;
    };
    // Somebody is frozen by then.
    until_true("it is under way", 30_000, || {
        demo.said("out").contains("asks the bank")
    });
    assert!(!demo.left().is_empty(), "nothing is looked at");
    send(demo.child.id() as i32, Signal::INT);
    let (code, said) = demo.ended(50);
    assert_eq!(code, 130, "{said}");
}

#[test]
fn whoever_has_no_etcd_is_told_where_to_get_it() {
    let Some(python) = python() else {
        return;
    };
    let dir = directory();
    let which = "import sys; print(sys.executable)";
    let python = Command::new(python).args(["-c", which]).output().unwrap();
    let python = String::from_utf8(python.stdout).unwrap();
    let output = Command::new(python.trim())
        .arg(examples().join("cluster-demo/demo.py"))
        .args(["--leasehold", env!("CARGO_BIN_EXE_leasehold")])
        .env("PATH", dir.path())
        .env("TMPDIR", dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("apt-get install etcd-server"), "{said}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn its_judge_sees_two_at_once_and_a_fence_that_falls() {
    let Some(python) = python() else {
        return;
    };
    let output = Command::new(python)
        .args(["-B", "-c", include_str!("judge.py")])
        .arg(examples().join("cluster-demo"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
