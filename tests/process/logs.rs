//! Output: whole lines, once, whatever happens to the disk and to those who carry it there.

use std::{cell::Cell, fs, path::PathBuf};

use rustix::process::Signal;

use crate::{
    rig::{Disk, Mode, Rig, both_ways, identities, lives, pause, send, until, until_true},
    survival::{check_lines, supervisor_of, whole_log},
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
    a_rotation_takes_no_longer_for_files_that_may_come,
    a_log_file_that_was_removed_is_begun_anew,
    lines_without_an_end_and_last_words_arrive,
    stderr_goes_where_it_is_told_to,
    usr1_opens_the_files_anew,
    last_words_without_a_supervisor_arrive_once,
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

/// A cap that leaves room for millions of old files: a rotation moves those that are there.
fn a_rotation_takes_no_longer_for_files_that_may_come(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "flood", "10000", "100"]
        log = { rotate_size = "8KiB", max_size = "16GiB" }
    "#,
    );
    rig.start();
    until_true("everything is written", 10_000, || {
        ends_with(&rig, "web/0", "00010000 ")
    });
    rig.drain(5_000);
    assert_eq!(check_flood(&whole_log(&rig, "web/0"), 10_000, 100), 1);
}

/// What somebody else takes away is gone; what comes after it, and the old files, are kept as ever.
fn a_log_file_that_was_removed_is_begun_anew(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", \"n=0; while n=$((n+1)); do echo $n of these lines, of which a file holds some; sleep 0.002; done\"]\nlog = { rotate_size = \"4KiB\", max_size = \"256KiB\" }\n");
    rig.start_settled();
    let old = |n: u32| PathBuf::from(format!("{}.{n}", rig.log("web/0").display()));
    until_true("there are old files", 15_000, || old(3).exists());
    let first = fs::read_to_string(old(1)).unwrap();
    fs::remove_file(rig.log("web/0")).unwrap();
    until_true("two more are cut", 15_000, || {
        let its = (1..9).find(|n| fs::read_to_string(old(*n)).is_ok_and(|text| text == first));
        rig.log("web/0").exists() && its.is_some_and(|n| n >= 3)
    });
    rig.drain(5_000);
    let numbers: Vec<u64> = whole_log(&rig, "web/0")
        .lines()
        .map(|line| line.split(' ').next().unwrap().parse().unwrap())
        .collect();
    let gaps = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1);
    let gaps: Vec<&[u64]> = gaps.collect();
    assert!(
        numbers[0] == 1 && gaps.len() <= 1,
        "more is missing than that file had: {gaps:?}"
    );
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

/// The keeper drains alone, between two starts of a supervisor that keeps dying. What workers say at the end waits in their pipes for
/// the one supervisor that is started to write it down.
fn last_words_without_a_supervisor_arrive_once(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.bye]
        command = [{worker}, "farewell", "500"]
        ready = "notify"
        workers = 3
        log.stderr = "separate"
        [fleet.talk]
        command = [{worker}, "lines", "5", "0.05"]
        workers = 3
    "#,
    );
    let before = rig.start_settled();
    until_true("they talk", 5_000, || {
        (0..3).all(|n| rig.log(&format!("talk/{n}")).exists())
    });
    let keeper = rig.keeper();
    let last = Cell::new(0);
    let next = || supervisor_of(keeper).filter(|pid| *pid != last.get());
    let kill_next = || {
        let supervisor = until("a next supervisor", 8_000, || {
            next().ok_or_else(String::new)
        });
        send(supervisor, Signal::KILL);
        last.set(supervisor);
    };
    // After the eighth death in ten seconds its keeper waits two seconds before it starts another.
    for _ in 0..8 {
        kill_next();
    }
    rig.signal(Signal::TERM);
    let workers = before.workers();
    until("all workers are gone", 8_000, || {
        let mut left = workers.clone();
        left.retain(|worker| lives(worker.pid));
        if left.is_empty() {
            return Ok(());
        }
        // A slow machine took longer than that: this one goes, too.
        if next().is_some() {
            kill_next();
        }
        Err(format!("{left:?}"))
    });
    assert!(!rig.log("bye/0").exists(), "nobody was there to write it");
    let status = rig.ended(12_000);
    assert_eq!(status.code(), Some(0), "{status}: {}", rig.stderr());
    rig.assert_nothing_left();
    let lines = |word: &str| -> String { (1..=500).map(|n| format!("{word} {n}\n")).collect() };
    for n in 0..3 {
        let read = |name: &str| fs::read_to_string(rig.path("log/bye").join(name)).unwrap();
        assert_eq!(read(&format!("{n}.log")), lines("farewell") + "gone");
        assert_eq!(read(&format!("{n}.stderr.log")), lines("alas"));
        check_lines(&rig, &format!("talk/{n}"), 1);
    }
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
