//! Jobs: runs that are asked for, runs that the clock brings, and what is left of them when supervisors, keepers, disks and clocks fail.
//!
//! A preloaded library shows the daemon another wall clock (`jump.c`), so that the next minute is a second away. Every run notes its tick
//! and its attempt into one file: that file is the oracle.

use std::{fs, process::Command};

use jiff::{SignedDuration, Timestamp};
use leasehold::sys::clock;
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    rig::{Disk, Rig, both_ways, lives, send, until, until_true},
    wall::Clock,
};

both_ways!(
    a_run_is_asked_for,
    overlap_is_as_the_job_says,
    a_tick_starts_once_whatever_the_clock_does,
    a_run_outlives_supervisors_and_is_tried_again,
    a_run_that_is_lost_with_its_keeper_is_reported,
    what_cannot_be_claimed_is_not_started,
    nobody_else_runs_what_is_forbidden,
    an_edit_is_for_the_next_run,
    a_name_may_become_another_kinds,
);

/// Notes `TICK ATTEMPT`, then does what `then` says.
fn job(then: &str) -> String {
    format!(
        r#"["/bin/sh", "-c", "echo $LEASEHOLD_SCHEDULED $LEASEHOLD_ATTEMPT >> {{notes}}/$LEASEHOLD_FLEET; {then}"]"#
    )
}

fn view(rig: &Rig, name: &str) -> Result<Value, String> {
    let (code, body) = rig.request("GET", &format!("/v1/crons/{name}"), "")?;
    let value: Value = serde_json::from_str(&body).map_err(|e| format!("{e}: {body}"))?;
    match code {
        200 => Ok(value),
        code => Err(format!("{code}: {value}")),
    }
}

/// Waits until the job is as wanted.
fn job_is(rig: &Rig, name: &str, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
    until(&format!("{name}: {what}"), 20_000, || {
        let job = view(rig, name)?;
        if wanted(&job) {
            Ok(job)
        } else {
            Err(job.to_string())
        }
    })
}

fn outcome(job: &Value) -> &str {
    job["last"]["outcome"].as_str().unwrap_or("none")
}

/// `(tick, attempt)` of every process that a job has had.
fn started(rig: &Rig, job: &str) -> Vec<(Timestamp, u32)> {
    let read = |line: String| {
        let (tick, attempt) = line.split_once(' ')?;
        Some((tick.parse().ok()?, attempt.parse().ok()?))
    };
    rig.notes(job)
        .into_iter()
        .map(|line| read(line.clone()).unwrap_or_else(|| panic!("{line:?}")))
        .collect()
}

/// What a person does: runs, exit codes, what is said to mistakes.
fn a_run_is_asked_for(mut rig: Rig) {
    let (good, bad, long, killed) = (
        job("exit 0"),
        job("exit 7"),
        job("exec sleep 1000"),
        job("kill -9 $$$$"),
    );
    rig.configure(&format!(
        r#"
        [cron.good]
        command = {good}
        schedule = "@yearly"
        [cron.bad]
        command = {bad}
        schedule = "@yearly"
        retry = {{ attempts = 3, backoff = "1ms..2ms" }}
        [cron.odd]
        command = {good}
        schedule = "@yearly"
        success = [3]
        [cron.long]
        command = {long}
        schedule = "@yearly"
        timeout = "300ms"
        [cron.killed]
        command = {killed}
        schedule = "0 0 1 1 *"
        timezone = "Asia/Tokyo"
        [fleet.steady]
        command = [{{worker}}, "sleep"]
    "#
    ));
    rig.start_settled();
    assert_eq!(rig.cli(&["status"]).code, 0);
    let ready = rig.request("GET", "/readyz?verbose", "").unwrap();
    assert_eq!(ready.0, 200, "{}", ready.1);
    assert!(ready.1.contains("[+]fleet:good idle"), "{}", ready.1);

    rig.ok(&["cron", "run", "good", "--wait"]);
    let said = rig.cli(&["cron", "run", "bad", "--wait"]);
    assert_eq!(said.code, 7, "{}", said.err);
    let attempts: Vec<u32> = started(&rig, "bad").iter().map(|run| run.1).collect();
    assert_eq!(attempts, [1, 2, 3]);
    let said = rig.cli(&["cron", "run", "odd", "--wait"]);
    assert_eq!(said.code, 1, "{}", said.err);
    let said = rig.cli(&["cron", "run", "long", "--wait"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("took longer than its timeout"),
        "{}",
        said.err
    );
    assert_eq!(rig.cli(&["cron", "run", "killed", "--wait"]).code, 128 + 9);

    let list = rig.ok(&["cron", "list"]);
    assert!(
        list.contains("Asia/Tokyo") && list.contains("exited with code 7"),
        "{list}"
    );
    let next = rig.ok(&["cron", "next", "killed", "-n", "2"]);
    let ticks: Vec<&str> = next.lines().collect();
    assert_eq!(ticks.len(), 2);
    assert!(
        ticks[0].contains("-12-31T15:00:00Z") && ticks[0].ends_with("00:00 JST"),
        "{next}"
    );
    let history: Value =
        serde_json::from_str(&rig.ok(&["cron", "history", "bad", "--json"])).unwrap();
    assert_eq!(
        (&history[0]["attempts"], &history[0]["code"]),
        (&3.into(), &7.into())
    );
    let all: Value = serde_json::from_str(&rig.request("GET", "/v1/crons", "").unwrap().1).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 5);
    let fleet = rig.status().fleet("good").clone();
    assert_eq!(
        (&fleet["kind"], &fleet["last"]["outcome"]),
        (&"cron".into(), &"succeeded".into())
    );
    assert!(
        fleet["next"]
            .as_str()
            .unwrap()
            .ends_with("-01-01T00:00:00Z"),
        "{fleet}"
    );

    for (words, code, text) in [
        (["cron", "run", "godo"].as_slice(), 4, "did you mean `good`"),
        (&["cron", "run", "steady"], 4, "no job"),
        (&["cron", "run", "good", "--timeout", "1s"], 2, "--wait"),
        (&["restart", "good"], 9, "cron run good"),
        (&["scale", "good", "2"], 9, "one run at a time"),
    ] {
        let said = rig.cli(words);
        assert_eq!(said.code, code, "{words:?}: {}", said.err);
        assert!(said.err.contains(text), "{words:?}: {}", said.err);
    }
    // A pattern means those who can be restarted.
    rig.ok(&["restart", "*"]);
    rig.ok(&["stop", "good"]);
    let said = rig.cli(&["cron", "run", "good"]);
    assert!(said.code == 9 && said.err.contains("held"), "{said:?}");
    assert_eq!(rig.status().fleet("good")["state"], "held");
    rig.ok(&["start", "good"]);
    rig.ok(&["cron", "run", "good", "--wait"]);
    assert_eq!(started(&rig, "good").len(), 2);
    rig.drain(10_000);
}

/// Two runs of one job: skipped, after each other, instead of each other.
fn overlap_is_as_the_job_says(mut rig: Rig) {
    let waits = job("while [ ! -e {notes}/go ]; do sleep 0.02; done");
    let all = ["skip", "queue", "replace"].map(|overlap| {
        format!(
            "[cron.{overlap}]\ncommand = {waits}\nschedule = \"@yearly\"\noverlap = \"{overlap}\"\n"
        )
    });
    rig.configure(&all.concat());
    rig.start();
    for name in ["skip", "queue", "replace"] {
        rig.ok(&["cron", "run", name]);
        until_true("the first runs", 5_000, || rig.notes(name).len() == 1);
    }
    let said = rig.cli(&["cron", "run", "skip"]);
    assert!(
        said.code == 9 && said.err.contains("has not ended"),
        "{said:?}"
    );
    let first = rig.status().worker("replace/0").unwrap();
    for name in ["queue", "queue", "replace"] {
        assert!(
            rig.ok(&["cron", "run", name])
                .contains("waits for its turn")
        );
    }
    job_is(&rig, "replace", "the second runs", |job| {
        outcome(job) == "stopped"
    });
    until_true("it has begun", 5_000, || rig.notes("replace").len() == 2);
    assert!(!lives(first.pid));
    let queue = job_is(&rig, "queue", "two wait", |job| job["waiting"] == 2);
    // The queue is nobody's who dies.
    send(rig.status().supervisor(), Signal::KILL);
    let heir = job_is(&rig, "queue", "two wait still", |job| job["waiting"] == 2);
    assert_eq!(heir["running"], queue["running"]);
    assert_eq!(rig.notes("queue").len(), 1);
    fs::write(rig.path("notes/go"), "").unwrap();
    let done = job_is(&rig, "queue", "three runs", |job| {
        job["waiting"] == 0
            && job["running"].is_null()
            && job["history"].as_array().unwrap().len() == 3
    });
    let runs = started(&rig, "queue");
    assert!(runs.len() == 3 && runs.is_sorted(), "{runs:?}");
    assert_eq!(done["last"]["outcome"], "succeeded");
    rig.drain(10_000);
}

/// The next minute comes, comes again because the clock is set back, and is jumped over.
fn a_tick_starts_once_whatever_the_clock_does(mut rig: Rig) {
    let Some(wall) = Clock::new(&mut rig) else {
        return;
    };
    let quick = job("exit 0");
    rig.configure(&format!(
        "[cron.tick]\ncommand = {quick}\nschedule = \"* * * * *\"\n[cron.late]\ncommand = {quick}\nschedule = \"* * * * *\"\ncatch_up = \"1h\"\noverlap = \"queue\"\n"
    ));
    let first = wall.set_before(10, 2);
    rig.start();
    job_is(&rig, "tick", "its first tick is known", |job| {
        job["next"] == first.to_string()
    });
    assert_eq!(rig.notes("tick"), [""; 0]);
    job_is(&rig, "tick", "the first tick ran", |job| {
        outcome(job) == "succeeded"
    });
    let starts = || started(&rig, "tick");
    assert_eq!(starts(), [(first, 1)]);

    // Back to two seconds before: the same minute again, and again, each time with another supervisor.
    let second = first.checked_add(SignedDuration::from_mins(1)).unwrap();
    for _ in 0..2 {
        wall.set(first.as_second() - 2 - Timestamp::now().as_second());
        send(rig.status().supervisor(), Signal::KILL);
        job_is(&rig, "tick", "the minute after is next", |job| {
            job["next"] == second.to_string()
        });
        let after = clock::now().after(leasehold::time::Span::millis(2_500));
        until_true("the minute comes again", 10_000, || {
            let _ = rig.try_status();
            clock::now() > after
        });
        assert_eq!(starts(), [(first, 1)]);
    }

    // Forth by twenty minutes, to half a minute after: nineteen are missed, the twentieth is late within its minute.
    let last = first.checked_add(SignedDuration::from_mins(20)).unwrap();
    wall.set(last.as_second() + 30 - Timestamp::now().as_second());
    job_is(&rig, "tick", "the newest tick ran", |job| {
        job["last"]["scheduled"] == last.to_string() && outcome(job) == "succeeded"
    });
    assert_eq!(starts(), [(first, 1), (last, 1)]);
    let missed = view(&rig, "tick").unwrap()["history"][1].clone();
    assert_eq!(
        (&missed["outcome"], &missed["count"]),
        (&"missed".into(), &19.into())
    );
    // Whoever may be late, is: every tick, each once, oldest first, as many as may wait.
    let late = job_is(&rig, "late", "all ran", |job| {
        job["waiting"] == 0
            && job["running"].is_null()
            && job["last"]["scheduled"] == last.to_string()
            || job["history"]
                .as_array()
                .unwrap()
                .iter()
                .any(|run| run["outcome"] == "skipped")
                && job["waiting"] == 0
                && job["running"].is_null()
    });
    let runs = started(&rig, "late");
    let mut once = runs.clone();
    once.dedup();
    assert!(
        runs.is_sorted() && once == runs && runs.len() >= 16,
        "{runs:?}"
    );
    let skipped: u64 = late["history"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|run| run["outcome"] == "skipped")
        .map(|run| run["count"].as_u64().unwrap())
        .sum();
    assert_eq!(runs.len() as u64 + skipped, 21, "{late}");

    // Down for ten minutes: what nobody was there for is missed, or caught up.
    rig.drain(10_000);
    let back = last.checked_add(SignedDuration::from_mins(10)).unwrap();
    wall.set(back.as_second() + 5 - Timestamp::now().as_second());
    rig.start();
    job_is(&rig, "tick", "it goes on", |job| {
        job["last"]["scheduled"] == back.to_string() && outcome(job) == "succeeded"
    });
    let missed = view(&rig, "tick").unwrap()["history"][1].clone();
    assert_eq!(
        (&missed["outcome"], &missed["count"]),
        (&"missed".into(), &9.into())
    );
    job_is(&rig, "late", "it catches up", |job| {
        job["last"]["scheduled"] == back.to_string() && outcome(job) == "succeeded"
    });
    assert_eq!(started(&rig, "late").len(), runs.len() + 10);
    rig.drain(10_000);
}

/// Supervisors die while it runs, while it waits for its next attempt, and around its ticks.
fn a_run_outlives_supervisors_and_is_tried_again(mut rig: Rig) {
    let Some(wall) = Clock::new(&mut rig) else {
        return;
    };
    let once = job("[ $LEASEHOLD_ATTEMPT = 3 ] && exit 0; exit 1");
    let (long, quick) = (job("sleep 1.5"), job("exit 0"));
    rig.configure(&format!(
        r#"
        [cron.again]
        command = {once}
        schedule = "@yearly"
        retry = {{ attempts = 5, backoff = "700ms..700ms" }}
        [cron.long]
        command = {long}
        schedule = "@yearly"
        [cron.tick]
        command = {quick}
        schedule = "* * * * *"
    "#
    ));
    let first = wall.set_before(10, 3);
    rig.start();
    rig.ok(&["cron", "run", "long"]);
    rig.ok(&["cron", "run", "again"]);
    let worker = rig.wait("it runs", 5_000, |status| {
        status.worker("long/0").is_some_and(|w| w.pid > 0)
    });
    let before = worker.worker("long/0").unwrap();
    let kill = || send(rig.status().supervisor(), Signal::KILL);
    kill();
    // Each dies where something waits: a pause, a run, the minute.
    job_is(&rig, "again", "its second pause", |job| {
        job["running"]["pausing"] == true && job["running"]["attempt"] == 2
    });
    kill();
    job_is(&rig, "long", "it has ended", |job| {
        outcome(job) == "succeeded"
    });
    kill();
    for name in ["again", "tick"] {
        job_is(&rig, name, "all ended as they should", |job| {
            outcome(job) == "succeeded"
        });
    }
    kill();
    let heir = job_is(&rig, "tick", "an heir knows", |job| {
        outcome(job) == "succeeded"
    });
    assert!(heir["running"].is_null());
    let attempts: Vec<u32> = started(&rig, "again").iter().map(|run| run.1).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert_eq!(started(&rig, "long").len(), 1);
    assert_eq!(started(&rig, "tick"), [(first, 1)]);
    assert_eq!(view(&rig, "again").unwrap()["last"]["attempts"], 3);
    assert!(before.generation == 1 && !lives(before.pid));
    rig.drain(10_000);
}

/// What was under way is reported; only who may be tried again, and still be late, is.
fn a_run_that_is_lost_with_its_keeper_is_reported(mut rig: Rig) {
    let (waits, quick) = (
        job("[ $LEASEHOLD_ATTEMPT = 2 ] && exit 0; exec sleep 1000"),
        job("exit 0"),
    );
    rig.configure(&format!(
        r#"
        [cron.once]
        command = {waits}
        schedule = "@yearly"
        retry = {{ attempts = 3 }}
        [cron.again]
        command = {waits}
        schedule = "@yearly"
        retry = {{ attempts = 3 }}
        catch_up = "1h"
        [cron.done]
        command = {quick}
        schedule = "@yearly"
    "#
    ));
    rig.start();
    rig.ok(&["cron", "run", "done", "--wait"]);
    for name in ["once", "again"] {
        rig.ok(&["cron", "run", name]);
        until_true("it runs", 5_000, || rig.notes(name).len() == 1);
    }
    let pids: Vec<i32> = rig.status().workers().iter().map(|w| w.pid).collect();
    assert_eq!(pids.len(), 2);
    // The last history may be on its way to disk.
    until("its history is on disk", 5_000, || {
        let book = fs::read_to_string(rig.path("state/cron/done.json")).unwrap_or_default();
        book.contains("succeeded").then_some(()).ok_or(book)
    });
    rig.kill_keeper();
    rig.start();
    let once = job_is(&rig, "once", "it is lost", |job| outcome(job) == "lost");
    assert!(once["running"].is_null() && once["waiting"] == 0, "{once}");
    let again = job_is(&rig, "again", "its second attempt", |job| {
        outcome(job) == "succeeded"
    });
    assert_eq!(again["last"]["attempts"], 2);
    assert_eq!(rig.notes("once").len(), 1);
    let attempts: Vec<u32> = started(&rig, "again").iter().map(|run| run.1).collect();
    assert_eq!(attempts, [1, 2]);
    assert_eq!(outcome(&view(&rig, "done").unwrap()), "succeeded");
    assert!(pids.iter().all(|pid| !lives(*pid)));
    // A drain is no loss: the next daemon knows that it stopped the run.
    rig.ok(&["cron", "run", "once"]);
    until_true("it runs", 5_000, || rig.notes("once").len() == 2);
    rig.drain(10_000);
    rig.start();
    let once = job_is(&rig, "once", "it was stopped", |job| {
        outcome(job) == "stopped"
    });
    assert_eq!(once["history"].as_array().unwrap().len(), 2, "{once}");
    rig.drain(10_000);
}

/// No claim, no run; and nothing else is harmed.
fn what_cannot_be_claimed_is_not_started(mut rig: Rig) {
    let Some(disk) = Disk::mount(&rig.path("state"), "64k") else {
        return;
    };
    let quick = job("exit 0");
    rig.configure(&format!(
        "[cron.job]\ncommand = {quick}\nschedule = \"@yearly\"\n[fleet.steady]\ncommand = [{{worker}}, \"sleep\"]\n"
    ));
    let before = rig.start_settled();
    rig.ok(&["cron", "run", "job", "--wait"]);
    disk.fill();
    let said = rig.cli(&["cron", "run", "job"]);
    assert!(
        said.code == 1 && said.err.contains("could not be claimed"),
        "{said:?}"
    );
    assert!(said.err.contains("No space left"), "{said:?}");
    let missed = view(&rig, "job").unwrap();
    assert_eq!(outcome(&missed), "missed", "{missed}");
    assert_eq!(rig.status().of("steady")[0].pid, before.of("steady")[0].pid);
    assert_eq!(rig.notes("job").len(), 1);
    disk.empty();
    rig.ok(&["cron", "run", "job", "--wait"]);
    assert_eq!(rig.notes("job").len(), 2);
    assert!(rig.ok(&["events"]).contains("could not be claimed"));
    rig.drain(10_000);
}

/// Another daemon, and flock(1), with the same lock.
fn nobody_else_runs_what_is_forbidden(mut rig: Rig) {
    let Some(mut other) = Rig::new(rig.mode) else {
        return;
    };
    let lock = rig.path("lock.file");
    let waits = job(&format!(
        "while [ ! -e {}/go ]; do sleep 0.02; done",
        rig.path("notes").display()
    ));
    for one in [&rig, &other] {
        one.configure(&format!(
            "[cron.sole]\ncommand = {waits}\nschedule = \"@yearly\"\noverlap = \"forbid\"\nsingleton = {{ scope = \"node\", flock = \"{}\" }}\n",
            lock.display()
        ));
    }
    rig.start();
    other.start();
    rig.ok(&["cron", "run", "sole"]);
    until_true("it runs", 5_000, || rig.notes("sole").len() == 1);
    assert_eq!(rig.cli(&["cron", "run", "sole"]).code, 9);
    let said = other.cli(&["cron", "run", "sole"]);
    assert!(
        said.code == 9 && said.err.contains("its lock is taken: held by sole/0"),
        "{said:?}"
    );
    assert_eq!(outcome(&view(&other, "sole").unwrap()), "skipped");
    let flock = || {
        Command::new("flock")
            .arg("-n")
            .arg(&lock)
            .arg("true")
            .status()
            .unwrap()
    };
    assert!(!flock().success(), "flock(1) got what the run holds");
    // Its lock is the run's, not the supervisor's.
    send(rig.status().supervisor(), Signal::KILL);
    job_is(&rig, "sole", "it runs on", |job| !job["running"].is_null());
    assert_eq!(other.cli(&["cron", "run", "sole"]).code, 9);
    fs::write(rig.path("notes/go"), "").unwrap();
    job_is(&rig, "sole", "its end", |job| outcome(job) == "succeeded");
    other.ok(&["cron", "run", "sole", "--wait"]);
    rig.ok(&["cron", "run", "sole", "--wait"]);
    until_true("the lock is given back", 5_000, || flock().success());
    assert_eq!((rig.notes("sole").len(), other.notes("sole").len()), (2, 1));
    rig.drain(10_000);
    other.drain(10_000);
}

/// A new command does not touch the run that is there; a new schedule is in force at once.
fn an_edit_is_for_the_next_run(mut rig: Rig) {
    let configure = |rig: &Rig, then: &str, schedule: &str| {
        let command = job(then);
        rig.configure(&format!(
            "[cron.job]\ncommand = {command}\nschedule = \"{schedule}\"\n"
        ));
    };
    configure(
        &rig,
        "while [ ! -e {notes}/go ]; do sleep 0.02; done; exit 5",
        "0 0 1 1 *",
    );
    rig.start();
    rig.ok(&["cron", "run", "job"]);
    let pid = rig.wait("it runs", 5_000, |status| {
        status.worker("job/0").is_some_and(|worker| worker.pid > 0)
    });
    let pid = pid.worker("job/0").unwrap().pid;
    configure(&rig, "exit 6", "0 0 1 7 *");
    let plan = rig.ok(&["plan"]);
    assert!(
        plan.contains("takes effect at the job's next run"),
        "{plan}"
    );
    assert!(
        plan.contains(r#"schedule: "0 0 1 1 *" -> "0 0 1 7 *""#),
        "{plan}"
    );
    rig.ok(&["reload"]);
    let job_now = job_is(&rig, "job", "its schedule", |job| {
        job["next"]
            .as_str()
            .is_some_and(|next| next.contains("-07-01T"))
    });
    assert!(!job_now["running"].is_null() && lives(pid));
    fs::write(rig.path("notes/go"), "").unwrap();
    let old = job_is(&rig, "job", "the old run's end", |job| {
        outcome(job) == "failed"
    });
    assert_eq!(old["last"]["code"], 5);
    assert_eq!(rig.cli(&["cron", "run", "job", "--wait"]).code, 6);
    // Removed, and added again: its past is known.
    rig.configure("[fleet.steady]\ncommand = [{worker}, \"sleep\"]\n");
    rig.ok(&["reload"]);
    assert_eq!(rig.cli(&["cron", "list", "job"]).code, 4);
    configure(&rig, "exit 0", "@yearly");
    rig.ok(&["reload"]);
    let again = job_is(&rig, "job", "its history", |job| {
        job["history"].as_array().unwrap().len() == 2
    });
    assert_eq!(again["last"]["code"], 6);
    rig.drain(10_000);
}

/// A job becomes a fleet while it runs, and a job again: its run was ended, not lost, and neither kind begins beside the other.
fn a_name_may_become_another_kinds(mut rig: Rig) {
    let slow = job("trap 'sleep 1; exit 0' TERM; while :; do sleep 0.02; done");
    let as_job =
        format!("[cron.job]\ncommand = {slow}\nschedule = \"@yearly\"\noverlap = \"queue\"\n");
    rig.configure(&as_job);
    rig.start();
    rig.ok(&["cron", "run", "job"]);
    rig.ok(&["cron", "run", "job"]);
    let started_once = || rig.notes("job").len() == 1;
    until_true("it runs", 5_000, started_once);
    let run = rig.status().worker("job/0").unwrap().pid;
    rig.configure("[fleet.job]\ncommand = [{worker}, \"sleep\"]\n");
    rig.ok(&["reload", "--no-wait"]);
    // Whoever takes over meanwhile knows which of them it is that drains.
    send(rig.status().supervisor(), Signal::KILL);
    let now = rig.wait("the fleet", 10_000, |status| {
        status.worker("job/0").is_some_and(|worker| worker.ready)
    });
    assert!(!lives(run) && now.worker("job/0").unwrap().pid != run);
    assert_eq!(now.fleet("job")["kind"], "fleet");
    // And knows, once it has drained, that it is the heir who is there.
    send(rig.status().supervisor(), Signal::KILL);
    let worker = now.worker("job/0").unwrap().pid;
    rig.wait("the fleet, still", 10_000, |status| {
        status.worker("job/0").is_some_and(|worker| worker.ready)
    });
    assert!(lives(worker));
    rig.configure(&as_job);
    rig.ok(&["reload"]);
    let job = job_is(&rig, "job", "its history", |job| {
        !job["history"].as_array().unwrap().is_empty()
    });
    let outcomes: Vec<&str> = job["history"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|run| run["outcome"].as_str())
        .collect();
    assert_eq!(outcomes, ["stopped", "skipped"], "{job}");
    assert!(!lives(worker));
    assert_eq!(rig.notes("job").len(), 1);
    rig.drain(10_000);
}
