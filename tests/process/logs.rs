//! Output: whole lines, once, whatever happens to the disk and to those who carry it there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;

use crate::{
    rig::{Mode, Rig, both_ways, identities, is_root, pause, send, skip, until, until_true},
    survival::whole_log,
};

/// `flood`'s lines, each as it should be, from the first that is still there to the last; returns which is the first.
fn check_flood(text: &str, last: usize, width: usize) -> usize {
    let first: usize = text
        .get(..8)
        .and_then(|n| n.parse().ok())
        .expect("a line begins with its number");
    let mut next = first;
    for line in text.split_inclusive('\n') {
        let right = line.len() == width
            && line.ends_with("x\n")
            && line.starts_with(&format!("{next:08} "));
        assert!(right, "line {next} is {:?}", &line[..line.len().min(60)]);
        next += 1;
    }
    assert_eq!(next - 1, last, "the end is missing");
    first
}

/// Does the newest file of a slot, or the one before, end with a line that begins so?
fn ends_with(rig: &Rig, worker: &str, line: &str) -> bool {
    let newest = rig.log(worker);
    let before = PathBuf::from(format!("{}.1", newest.display()));
    [newest, before].iter().any(|path| {
        let text = fs::read(path).unwrap_or_default();
        text.windows(line.len())
            .rev()
            .take(400)
            .any(|w| w == line.as_bytes())
    })
}

both_ways!(
    rotation_cuts_at_line_ends_only,
    old_files_go_when_the_cap_is_reached,
    lines_without_an_end_and_last_words_arrive,
    stderr_goes_where_it_is_told_to,
    usr1_opens_the_files_anew,
    a_full_disk_makes_a_worker_wait,
    a_full_disk_drops_and_counts_where_that_was_chosen,
    a_full_state_directory_refuses_commands
);

/// Fifty megabytes as fast as they are taken, the supervisor killed thrice on the way.
fn rotation_cuts_at_line_ends_only(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "flood", "500000", "100"]
        log = { rotate_size = "3MiB", max_size = "120MiB" }
    "#,
    );
    rig.start();
    for _ in 0..3 {
        let supervisor = rig.status().supervisor();
        pause(60);
        send(supervisor, Signal::KILL);
        rig.wait("another supervisor", 2_000, |status| {
            status.supervisor() != supervisor
        });
    }
    until_true("everything is written", 15_000, || {
        ends_with(&rig, "web/0", "00500000 ")
    });
    rig.drain(5_000);
    for entry in fs::read_dir(rig.path("log/web")).unwrap().flatten() {
        let text = fs::read(entry.path()).unwrap();
        assert!(
            text.is_empty() || text.ends_with(b"\n"),
            "{:?} ends within a line",
            entry.path()
        );
        assert!(
            text.len() < 5 << 20,
            "{:?} has {}",
            entry.path(),
            text.len()
        );
    }
    assert_eq!(check_flood(&whole_log(&rig, "web/0"), 500_000, 100), 1);
}

fn old_files_go_when_the_cap_is_reached(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "flood", "60000", "100"]
        log = { rotate_size = "256KiB", max_size = "1MiB" }
    "#,
    );
    rig.start();
    until_true("everything is written", 15_000, || {
        ends_with(&rig, "web/0", "00060000 ")
    });
    rig.drain(5_000);
    let text = whole_log(&rig, "web/0");
    assert!(text.len() <= (1 << 20) + 70_000, "{}", text.len());
    assert!(check_flood(&text, 60_000, 100) > 1);
}

/// In pieces slower than a second; the end of the worker is the end of its last line.
fn lines_without_an_end_and_last_words_arrive(mut rig: Rig) {
    rig.configure(
        "[fleet.web]\ncommand = [{worker}, \"torn\", \"5\"]\nrestart.policy = \"never\"\n",
    );
    let before = rig.start();
    pause(900);
    send(before.supervisor(), Signal::KILL);
    rig.wait("it is done", 6_000, |status| {
        status.worker("web/0").is_some_and(|w| w.state == "done")
    });
    let wanted = "piece0 piece1 piece2 piece3 piece4 end\nlast words";
    until("all of it is there", 3_000, || {
        let text = fs::read_to_string(rig.log("web/0")).unwrap_or_default();
        if text == wanted { Ok(()) } else { Err(text) }
    });
    rig.drain(5_000);
    assert_eq!(fs::read_to_string(rig.log("web/0")).unwrap(), wanted);
}

fn stderr_goes_where_it_is_told_to(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.merged]
        command = ["/bin/sh", "-c", "echo out; echo err >&2; exec sleep 1000"]
        [fleet.apart]
        command = ["/bin/sh", "-c", "echo out; echo err >&2; exec sleep 1000"]
        log.stderr = "separate"
        [fleet.none]
        command = ["/bin/sh", "-c", "echo out; echo err >&2; exec sleep 1000"]
        log.sink = "none"
    "#,
    );
    rig.start_settled();
    let is = |path: &str, wanted: &str| {
        until(path, 3_000, || {
            let text = fs::read_to_string(rig.path(path)).unwrap_or_default();
            if text == wanted { Ok(()) } else { Err(text) }
        });
    };
    is("log/merged/0.log", "out\nerr\n");
    is("log/apart/0.log", "out\n");
    is("log/apart/0.stderr.log", "err\n");
    assert!(!rig.path("log/none/0.log").exists());
    rig.drain(5_000);
}

/// logrotate's way: the file is moved away, then SIGUSR1.
fn usr1_opens_the_files_anew(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", \"n=0; while n=$((n+1)); do echo $n; sleep 0.02; done\"]\n");
    rig.start_settled();
    until_true("it writes", 3_000, || rig.log("web/0").exists());
    let moved = rig.path("log/web/moved");
    fs::rename(rig.log("web/0"), &moved).unwrap();
    rig.signal(Signal::USR1);
    until_true("a new file", 3_000, || {
        fs::read_to_string(rig.log("web/0")).is_ok_and(|t| t.lines().count() > 3)
    });
    rig.drain(5_000);
    let text = fs::read_to_string(moved).unwrap() + &fs::read_to_string(rig.log("web/0")).unwrap();
    let numbers: Vec<usize> = text.lines().map(|n| n.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
}

/// The worker waits in its write; when there is room again, not a byte is missing.
fn a_full_disk_makes_a_worker_wait(mut rig: Rig) {
    let Some(disk) = Disk::mount(&rig.path("log"), "1m") else {
        return;
    };
    rig.configure("[fleet.web]\ncommand = [{worker}, \"flood\", \"30000\", \"100\"]\nlog = { rotate_size = \"64MiB\", max_size = \"256MiB\" }\n[fleet.other]\ncommand = [{worker}, \"sleep\"]\n");
    let before = rig.start_settled();
    until_true("people are told", 5_000, || {
        rig.stderr().contains("its log cannot be written")
    });
    assert!(rig.stderr().contains("No space left"), "{}", rig.stderr());
    assert!(rig.stderr().contains("web/0"), "{}", rig.stderr());
    // Nothing else suffers, and a new supervisor goes on where it stands.
    send(before.supervisor(), Signal::KILL);
    let after = rig.wait("another supervisor", 2_000, |s| {
        s.supervisor() != before.supervisor()
    });
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    disk.grow("16m");
    until_true("everything is written", 8_000, || {
        ends_with(&rig, "web/0", "00030000 ")
    });
    rig.drain(5_000);
    assert_eq!(
        check_flood(&fs::read_to_string(rig.log("web/0")).unwrap(), 30_000, 100),
        1
    );
}

/// The worker goes on; what is dropped is whole lines, and it is counted.
fn a_full_disk_drops_and_counts_where_that_was_chosen(mut rig: Rig) {
    let Some(disk) = Disk::mount(&rig.path("log"), "1m") else {
        return;
    };
    rig.configure("[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", 'n=0; while [ $n -lt 30000 ]; do n=$((n+1)); echo \"line $n of these is about as long as that\"; done; echo done > {notes}/done; while :; do n=$((n+1)); echo \"line $n of these is about as long as that\"; sleep 0.05; done']\nlog = { rotate_size = \"64MiB\", max_size = \"256MiB\", on_full = \"drop\" }\n");
    rig.start();
    until_true("it is through", 15_000, || !rig.notes("done").is_empty());
    until_true("people are told", 5_000, || {
        rig.stderr().contains("bytes dropped so far")
    });
    disk.grow("16m");
    until("people are told what was lost", 5_000, || {
        let text = rig.stderr();
        let line = text
            .lines()
            .find(|line| line.contains("its log is written again"))
            .ok_or("not yet")?;
        let count = line
            .split(['(', ' '])
            .find_map(|word| word.parse::<u64>().ok());
        count.filter(|n| *n > 0).ok_or(line.to_owned())
    });
    pause(200);
    rig.drain(5_000);
    let text = fs::read_to_string(rig.log("web/0")).unwrap();
    let mut before = 0;
    for line in text.lines() {
        let number: u64 = line
            .split(' ')
            .nth(1)
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        assert!(
            number > before && line == format!("line {number} of these is about as long as that"),
            "after {before}: {line:?}"
        );
        before = number;
    }
    assert!(before > 30_000, "{before}");
}

/// Accepted means kept: with no room for it a command is refused, and nothing changes.
fn a_full_state_directory_refuses_commands(mut rig: Rig) {
    let Some(disk) = Disk::mount(&rig.path("state"), "64k") else {
        return;
    };
    rig.configure("[fleet.web]\ncommand = [{worker}, \"sleep\"]\nworkers = 2\n");
    let before = rig.start_settled();
    disk.fill();
    for words in [&["stop", "web"][..], &["scale", "web", "3"]] {
        let said = rig.cli(words);
        assert!(
            said.code == 1 && said.err.contains("No space left"),
            "{said:?}"
        );
    }
    let after = rig.status();
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    disk.empty();
    rig.ok(&["stop", "web"]);
    rig.drain(5_000);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let Some(rig) = Rig::new(Mode::Group) else {
        return;
    };
    rig.configure("[fleet.web]\ncommand = [{worker}, \"sleep\"]\n");
    for what in ["run", "state", "log"] {
        let Some(disk) = Disk::mount(&rig.path(what), "64k") else {
            return;
        };
        disk.make_read_only();
        let output = rig.run_command().output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            matches!(output.status.code(), Some(1 | 8)),
            "{what}: {output:?}"
        );
        let path = rig.path(what).display().to_string();
        assert!(
            text.contains(&path)
                && text.contains(&format!("--{what}-dir"))
                && text.contains("Read-only"),
            "{text}"
        );
        assert_eq!(text.trim().lines().count(), 1, "{text}");
    }
}

/// A small file system of memory.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size},mode=0755");
        let done = is_root()
            && Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
                .arg(path)
                .status()
                .is_ok_and(|status| status.success());
        if !done {
            skip("no tmpfs can be mounted here");
            return None;
        }
        Some(Self {
            path: path.to_owned(),
        })
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.path)
            .status();
        assert!(status.unwrap().success());
    }

    fn grow(&self, size: &str) {
        self.remount(&format!("size={size}"));
    }

    fn make_read_only(&self) {
        self.remount("ro");
    }

    fn fill(&self) {
        let _ = fs::write(self.path.join("ballast"), vec![0; 1 << 20]);
    }

    fn empty(&self) {
        fs::remove_file(self.path.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
