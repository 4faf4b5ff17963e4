//! What balancers see and are told: in which order, over crashes, and when nothing of it works.

use std::{
    fs,
    io::{ErrorKind, Read},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use leasehold::sys::clock;
use rustix::process::Signal;
use serde_json::Value;

use crate::rig::{Disk, Rig, both_ways, free_port, identities, send, until, until_true};

both_ways!(
    a_worker_is_withdrawn_before_it_is_told_to_stop,
    a_crash_is_unpublished_before_the_pause,
    what_hangs_fails_or_is_slow_holds_nobody_up,
    what_fails_its_check_is_put_back,
    a_supervisor_killed_in_a_reload_is_followed_by_another_reload,
    a_template_that_fails_says_so_and_comes_back,
    disks_that_take_nothing,
    an_agent_refuses_nobody,
    lists_for_programs_and_people,
    what_is_published_changes_without_touching_a_worker,
    a_file_that_is_published_no_more_says_so,
    what_was_not_checked_at_the_end_is_put_back,
);

/// Slots that take work, in one line.
const SLOTS: &str = "{% for e in endpoints %}{{ e.slot }} {% endfor %}";

/// Two workers with a file; `more` stands in `[fleet.web]`.
fn configure(rig: &Rig, more: &str, file: &str) {
    let base = free_port();
    let last = base + 9;
    // An agent's must not be among them.
    while (base..last).contains(&free_port()) {}
    fs::write(rig.path("web.j2"), SLOTS).unwrap();
    rig.configure(&format!(
        r#"
        [fleet.web]
        command = [{{worker}}, "published", "{{notes}}"]
        workers = 2
        ready = "notify"
        port_range = "{base}-{last}"
        {more}
        [fleet.web.publish]
        mode = "worker"
        [[fleet.web.publish.file]]
        template = "{{dir}}/web.j2"
        path = "{{dir}}/web.conf"
        {file}
    "#
    ));
}

const CHECK: &str = r#"check = [{worker}, "told", "{notes}", "check", "{dir}/web.conf"]"#;
const RELOAD: &str = r#"reload = [{worker}, "told", "{notes}", "reload", "{dir}/web.conf"]"#;

/// `(when, what)` of everything noted.
fn order(rig: &Rig) -> Vec<(u64, String)> {
    let parse = |line: String| {
        let (when, what) = line.split_once(' ').unwrap();
        (when.parse().unwrap(), what.trim().to_owned())
    };
    rig.notes("order").into_iter().map(parse).collect()
}

fn when(rig: &Rig, what: &str) -> Option<u64> {
    let all = order(rig);
    all.iter()
        .rev()
        .find(|(_, one)| one == what)
        .map(|one| one.0)
}

fn until_told(rig: &Rig, what: &str) -> u64 {
    until(what, 12_000, || {
        let mut last = order(rig)
            .into_iter()
            .filter(|(_, one)| one.starts_with("reload"));
        let last = last.next_back().ok_or("nothing was told")?;
        match last.1 == what {
            true => Ok(last.0),
            false => Err(format!("{last:?}")),
        }
    })
}

fn set(rig: &Rig, flag: &str, on: bool) {
    let path = rig.path("notes").join(flag);
    if on {
        fs::write(path, "").unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

fn published(rig: &Rig) -> Value {
    let (code, body) = rig.request("GET", "/v1/endpoints", "").unwrap();
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// The one file's state, and why it fails.
fn target(rig: &Rig) -> Result<(String, String), String> {
    let (_, body) = rig.request("GET", "/v1/endpoints", "")?;
    let all: Value = serde_json::from_str(&body).map_err(|e| format!("{e}: {body}"))?;
    let target = &all[0]["targets"][0];
    let why = target["failure"]["reason"].as_str().unwrap_or_default();
    Ok((
        target["state"].as_str().ok_or("no state")?.to_owned(),
        why.to_owned(),
    ))
}

fn until_target(rig: &Rig, state: &str, word: &str) {
    until(&format!("{state} {word}"), 12_000, || {
        let (now, why) = target(rig)?;
        match now == state && why.contains(word) {
            true => Ok(()),
            false => Err(format!("{now}: {why}")),
        }
    });
}

fn a_worker_is_withdrawn_before_it_is_told_to_stop(mut rig: Rig) {
    configure(
        &rig,
        r#"stop = { deregister_delay = "2s" }"#,
        &format!("{CHECK}\n{RELOAD}"),
    );
    rig.start_settled();
    until_told(&rig, "reload 0 1");
    let asked = clock::now().0;
    rig.ok(&["stop", "web/1"]);
    let (withdrawn, told) = (
        until_told(&rig, "reload 0"),
        when(&rig, "term 1").expect("it was told"),
    );
    assert!(asked < withdrawn && withdrawn < told, "{:?}", order(&rig));
    assert!(told - asked >= 2_000_000_000, "{:?}", order(&rig));
    rig.ok(&["start", "web/1"]);
    until_told(&rig, "reload 0 1");
    let asked = clock::now().0;
    rig.ok(&["restart", "web/0"]);
    let told = when(&rig, "term 0").expect("it was told");
    assert!(told - asked >= 2_000_000_000, "{:?}", order(&rig));
    let without: Vec<u64> = order(&rig)
        .into_iter()
        .filter(|(at, what)| what == "reload 1" && *at > asked)
        .map(|(at, _)| at)
        .collect();
    assert!(without.iter().any(|at| *at < told), "{:?}", order(&rig));
    until_told(&rig, "reload 0 1");
    let asked = clock::now().0;
    rig.drain(10_000);
    let withdrawn = when(&rig, "reload").expect("the empty list was told");
    for worker in ["term 0", "term 1"] {
        let told = when(&rig, worker).unwrap();
        assert!(
            withdrawn < told && told - asked >= 2_000_000_000,
            "{:?}",
            order(&rig)
        );
    }
}

fn a_crash_is_unpublished_before_the_pause(mut rig: Rig) {
    configure(
        &rig,
        // Any part of it may be the pause: ten seconds of it are as good as never.
        r#"restart = { backoff = "10000h..10000h" }
        stop = { deregister_delay = "0" }"#,
        RELOAD,
    );
    rig.start_settled();
    until_told(&rig, "reload 0 1");
    for generation in [1, 2] {
        let status = rig.wait("it is up", 5_000, |status| {
            status
                .worker("web/1")
                .is_some_and(|w| w.generation == generation && w.ready)
        });
        send(status.worker("web/1").unwrap().pid, Signal::KILL);
        rig.wait("it is seen", 3_000, |status| {
            status
                .worker("web/1")
                .is_none_or(|w| w.generation > generation || w.state == "backing-off")
        });
    }
    until_told(&rig, "reload 0");
    assert_eq!(rig.status().worker("web/1").unwrap().state, "backing-off");
    let endpoints = &published(&rig)[0]["endpoints"];
    assert_eq!(endpoints.as_array().unwrap().len(), 1, "{endpoints}");
    // With no delay the daemon's end still tells everybody.
    rig.drain(8_000);
    until_told(&rig, "reload");
}

fn what_hangs_fails_or_is_slow_holds_nobody_up(mut rig: Rig) {
    configure(
        &rig,
        r#"stop = { deregister_delay = "0" }"#,
        &format!("{CHECK}\n{RELOAD}\ntimeout = \"2500ms\""),
    );
    rig.start_settled();
    until_told(&rig, "reload 0 1");
    for flag in [
        "reload-hangs",
        "check-hangs",
        "reload-fails",
        "check-fails",
        "reload-slow",
    ] {
        set(&rig, flag, true);
        let before = rig.wait("both are up", 4_000, |status| {
            status.settled() && status.of("web").len() == 2
        });
        let worker = before.worker("web/0").unwrap();
        send(worker.pid, Signal::KILL);
        // Well within the deadline of the command.
        rig.wait("it is up again", 2_000, |status| {
            status
                .worker("web/0")
                .is_some_and(|w| w.generation > worker.generation && w.ready)
        });
        let begun = clock::now();
        rig.ok(&["stop", "web/1"]);
        let took = clock::now().since(begun);
        assert!(took.as_millis() < 2_000, "{flag}: a stop took {took:?}");
        if !flag.ends_with("slow") {
            until_target(&rig, "failed", flag.split_once('-').unwrap().0);
            let (code, body) = rig.request("GET", "/readyz?verbose", "").unwrap();
            assert!(body.contains("[!]publish:web"), "{code} {body}");
        }
        set(&rig, flag, false);
        rig.ok(&["start", "web/1"]);
        until_target(&rig, "ok", "");
        until_told(&rig, "reload 0 1");
    }
    rig.assert_noted_are_gone();
    let (_, events) = rig.request("GET", "/v1/events", "").unwrap();
    for word in [
        "web.conf is not published, it is tried again: its reload took longer than 2s500ms and was killed",
        "its check exited with code 7; what was there before is put back",
        "web.conf is published again after",
    ] {
        assert!(events.contains(word), "{word}: {events}");
    }
    // Whatever hangs, a drain does not wait for it.
    set(&rig, "reload-hangs", true);
    let begun = clock::now();
    rig.drain(10_000);
    let took = clock::now().since(begun);
    assert!(took.as_millis() < 6_000, "a drain took {took:?}");
}

fn what_fails_its_check_is_put_back(mut rig: Rig) {
    configure(
        &rig,
        r#"stop = { deregister_delay = "0" }"#,
        &format!("{CHECK}\n{RELOAD}"),
    );
    fs::write(rig.path("web.conf"), "by hand").unwrap();
    fs::set_permissions(rig.path("web.conf"), fs::Permissions::from_mode(0o640)).unwrap();
    set(&rig, "check-fails", true);
    rig.start_settled();
    until_target(&rig, "failed", "its check exited with code 7");
    let read = || fs::read_to_string(rig.path("web.conf")).unwrap();
    until_true("what was there is there again", 3_000, || {
        read() == "by hand"
    });
    assert!(order(&rig).iter().all(|(_, what)| !what.contains("reload")));
    set(&rig, "check-fails", false);
    until_told(&rig, "reload 0 1");
    set(&rig, "check-fails", true);
    rig.ok(&["stop", "web/1"]);
    until_target(&rig, "failed", "its check");
    until_true("the last good one is there", 3_000, || read() == "0 1 ");
    // A new supervisor knows which of the two was good.
    let supervisor = rig.status().supervisor();
    send(supervisor, Signal::KILL);
    rig.wait("another supervisor", 3_000, |s| {
        s.supervisor() != supervisor
    });
    until_target(&rig, "failed", "its check");
    until_true("the last good one is there", 3_000, || read() == "0 1 ");
    set(&rig, "check-fails", false);
    until_told(&rig, "reload 0");
    assert_eq!(read(), "0 ");
    let mode = fs::metadata(rig.path("web.conf"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    until_true("nothing is left beside it", 3_000, || {
        let names = fs::read_dir(rig.path("")).unwrap().flatten();
        names
            .into_iter()
            .all(|entry| !entry.file_name().to_string_lossy().contains(".leasehold-"))
    });
    rig.drain(5_000);
}

fn a_supervisor_killed_in_a_reload_is_followed_by_another_reload(mut rig: Rig) {
    configure(&rig, r#"stop = { deregister_delay = "0" }"#, RELOAD);
    rig.start_settled();
    until_told(&rig, "reload 0 1");
    set(&rig, "reload-slow", true);
    let begun = |rig: &Rig| {
        let all = order(rig);
        all.iter()
            .filter(|(_, what)| what == "begin-reload")
            .count()
    };
    let before = begun(&rig);
    let workers = rig.status().of("web");
    rig.ok(&["stop", "web/1"]);
    until_true("a reload runs", 5_000, || begun(&rig) > before);
    let supervisor = rig.status().supervisor();
    send(supervisor, Signal::KILL);
    rig.wait("another supervisor", 3_000, |s| {
        s.supervisor() != supervisor
    });
    until_target(&rig, "ok", "");
    set(&rig, "reload-slow", false);
    until_told(&rig, "reload 0");
    assert_eq!(
        identities(&workers[..1]),
        identities(&rig.status().of("web")[..1])
    );
    // With nothing to tell, the next one tells nothing.
    let told = begun(&rig);
    let supervisor = rig.status().supervisor();
    send(supervisor, Signal::KILL);
    rig.wait("another supervisor", 3_000, |s| {
        s.supervisor() != supervisor
    });
    until_target(&rig, "ok", "");
    assert_eq!(begun(&rig), told, "{:?}", order(&rig));
    rig.drain(8_000);
}

fn a_template_that_fails_says_so_and_comes_back(mut rig: Rig) {
    configure(&rig, r#"stop = { deregister_delay = "0" }"#, RELOAD);
    rig.start_settled();
    until_told(&rig, "reload 0 1");
    fs::remove_file(rig.path("web.j2")).unwrap();
    rig.ok(&["stop", "web/1"]);
    until_target(&rig, "failed", "cannot read the template");
    fs::write(rig.path("web.j2"), "one\n{{ nobody.knows }}\n").unwrap();
    until_target(&rig, "failed", "web.j2:2: undefined value");
    fs::write(
        rig.path("web.j2"),
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    )
    .unwrap();
    until_target(&rig, "failed", "fuel");
    assert_eq!(fs::read_to_string(rig.path("web.conf")).unwrap(), "0 1 ");
    assert!(rig.status().fleet("web")["publish"]["state"] == "failed");
    assert!(rig.cli(&["status"]).out.contains("not published"));
    fs::write(rig.path("web.j2"), SLOTS).unwrap();
    until_target(&rig, "ok", "");
    until_told(&rig, "reload 0");
    rig.drain(5_000);
}

fn disks_that_take_nothing(mut rig: Rig) {
    let Some(disk) = Disk::mount(&rig.path("disk"), "256k") else {
        return;
    };
    configure(&rig, r#"stop = { deregister_delay = "0" }"#, "");
    let text = fs::read_to_string(rig.path("leasehold.toml")).unwrap();
    let moved = text.replace("/web.conf", "/disk/web.conf");
    fs::write(rig.path("leasehold.toml"), moved).unwrap();
    rig.start_settled();
    let read = || fs::read_to_string(rig.path("disk/web.conf")).unwrap_or_default();
    until_true("it is there", 5_000, || read() == "0 1 ");
    disk.fill();
    rig.ok(&["stop", "web/1"]);
    until_target(&rig, "failed", "No space left");
    assert_eq!(read(), "0 1 ");
    disk.empty();
    until_target(&rig, "ok", "");
    assert_eq!(read(), "0 ");
    disk.make_read_only();
    rig.ok(&["start", "web/1"]);
    until_target(&rig, "failed", "Read-only file system");
    assert_eq!(read(), "0 ");
    rig.drain(5_000);
}

/// A line of an agent, or why there is none.
fn ask(port: u16) -> Result<String, ErrorKind> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.kind())?;
    let limit = Some(std::time::Duration::from_secs(5));
    stream.set_read_timeout(limit).unwrap();
    let mut line = String::new();
    // One that was accepted by a supervisor that died then may be reset.
    let _ = stream.read_to_string(&mut line);
    Ok(line)
}

fn an_agent_refuses_nobody(mut rig: Rig) {
    let port = free_port();
    rig.configure(&format!(
        r#"
        [fleet.web]
        command = [{{worker}}, "published", "{{notes}}"]
        workers = 4
        ready = "notify"
        stop = {{ deregister_delay = "1500ms" }}
        publish = {{ port = 80, haproxy_agent = "127.0.0.1:{port}" }}
    "#
    ));
    rig.start_settled();
    let says = |word: &str| {
        until(word, 6_000, || match ask(port) {
            Ok(line) if line == word => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    says("ready up 100%\n");
    let (stop, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let client = {
        let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
        std::thread::spawn(move || {
            let mut bad = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match ask(port) {
                    Ok(line) if line.is_empty() || line == "ready up 100%\n" => {}
                    other => bad.push(format!("{other:?}")),
                }
                asked.fetch_add(1, Ordering::Relaxed);
            }
            bad
        })
    };
    for _ in 0..4 {
        let supervisor = rig.status().supervisor();
        send(supervisor, Signal::KILL);
        rig.wait("another supervisor", 5_000, |s| {
            s.supervisor() != supervisor
        });
        let now = asked.load(Ordering::Relaxed);
        until_true("it answers", 5_000, || {
            asked.load(Ordering::Relaxed) > now + 5
        });
    }
    stop.store(true, Ordering::Relaxed);
    let bad = client.join().unwrap();
    assert!(bad.is_empty(), "{bad:?}");
    rig.ok(&["stop", "web/3"]);
    // Three of three that are wanted.
    says("ready up 100%\n");
    rig.ok(&["start", "web/3"]);
    rig.settle(5_000);
    rig.ok(&["stop", "web", "--no-wait"]);
    says("drain\n");
    says("maint\n");
    rig.ok(&["start", "web"]);
    says("ready up 100%\n");
    rig.drain(8_000);
}

fn lists_for_programs_and_people(mut rig: Rig) {
    let base = free_port();
    rig.configure(&format!(
        r#"
        [node]
        name = "n1"
        [fleet.alone]
        command = [{{worker}}, "sleep"]
        [fleet.shared]
        command = [{{worker}}, "published", "{{notes}}"]
        workers = 3
        ready = "notify"
        stop.deregister_delay = "3s"
        publish = {{ port = 8080, address = "10.0.0.5" }}
        [fleet.own]
        command = [{{worker}}, "published", "{{notes}}"]
        workers = 2
        ready = "notify"
        port_range = "{base}-{}"
        publish = {{ mode = "worker", address = "::1" }}
        stop.deregister_delay = "0"
    "#,
        base + 5
    ));
    rig.start_settled();
    let all = published(&rig);
    let names: Vec<&str> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["fleet"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["own", "shared"]);
    let shared = &all[1]["endpoints"];
    assert_eq!(shared[0]["id"], "shared");
    assert_eq!(shared[0]["weight"], 3);
    assert_eq!(shared[0]["port"], 8080);
    let (code, body) = rig.request("GET", "/v1/sd/prometheus", "").unwrap();
    let groups: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(code, 200);
    assert_eq!(groups.as_array().unwrap().len(), 3, "{groups}");
    assert_eq!(groups[1]["targets"][0], format!("[::1]:{}", base + 1));
    assert_eq!(groups[1]["labels"]["__meta_leasehold_slot"], "1");
    assert_eq!(groups[2]["labels"]["__meta_leasehold_node"], "n1");
    let text = rig.ok(&["endpoints"]);
    for word in ["10.0.0.5:8080", "own/1", &format!("[::1]:{base}"), "ready"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let one: Value = serde_json::from_str(&rig.ok(&["endpoints", "own", "--json"])).unwrap();
    assert_eq!(one.as_array().unwrap().len(), 1);
    assert_eq!(rig.cli(&["endpoints", "alone"]).code, 4);
    assert_eq!(rig.cli(&["endpoints", "nobody"]).code, 4);
    rig.ok(&["stop", "shared", "--no-wait"]);
    rig.ok(&["stop", "own"]);
    let all = published(&rig);
    assert_eq!(all[0]["endpoints"].as_array().unwrap().len(), 0, "{all}");
    assert_eq!(all[1]["endpoints"][0]["state"], "draining", "{all}");
    assert_eq!(all[1]["endpoints"][0]["weight"], 0, "{all}");
    let (_, body) = rig.request("GET", "/v1/sd/prometheus", "").unwrap();
    assert_eq!(body, "[]");
    rig.drain(8_000);
}

/// A reload changes who is told and where, and nobody is replaced for it.
fn what_is_published_changes_without_touching_a_worker(mut rig: Rig) {
    configure(&rig, r#"stop = { deregister_delay = "0" }"#, RELOAD);
    let before = rig.start_settled();
    until_told(&rig, "reload 0 1");
    let (one, two) = (free_port(), free_port());
    let text = fs::read_to_string(rig.path("leasehold.toml")).unwrap();
    let with = |agent: u16| {
        let more = format!("mode = \"worker\"\nhaproxy_agent = \"127.0.0.1:{agent}\"");
        let text = text.replace("mode = \"worker\"", &more);
        fs::write(rig.path("leasehold.toml"), text).unwrap();
        rig.ok(&["reload"]);
    };
    with(one);
    until("it answers", 3_000, || match ask(one) {
        Ok(line) if line == "ready up 100%\n" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    with(two);
    until("it answers at the other", 3_000, || match ask(two) {
        Ok(line) if line == "ready up 100%\n" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    until_true("the first is closed", 3_000, || {
        ask(one) == Err(ErrorKind::ConnectionRefused)
    });
    let moved = text.replace("/web.conf", "/moved.conf");
    fs::write(rig.path("leasehold.toml"), moved).unwrap();
    rig.ok(&["reload"]);
    until_true("the file is elsewhere", 5_000, || {
        fs::read_to_string(rig.path("moved.conf")).is_ok_and(|text| text == "0 1 ")
    });
    assert_eq!(
        identities(&before.workers()),
        identities(&rig.status().workers())
    );
    rig.drain(8_000);
}

fn a_file_that_is_published_no_more_says_so(mut rig: Rig) {
    configure(&rig, r#"stop = { deregister_delay = "0" }"#, CHECK);
    rig.start_settled();
    let holds = |name: &str, text: &str| {
        until_true(&format!("{name} holds {text:?}"), 8_000, || {
            fs::read_to_string(rig.path(name)).is_ok_and(|now| now == text)
        });
    };
    let config = |text: &str| {
        fs::write(rig.path("leasehold.toml"), text).unwrap();
        rig.ok(&["reload"]);
    };
    holds("web.conf", "0 1 ");
    let text = fs::read_to_string(rig.path("leasehold.toml")).unwrap();
    let moved = text.replace("/web.conf\"\n", "/moved.conf\"\n");
    assert_ne!(text, moved);
    config(&moved);
    holds("moved.conf", "0 1 ");
    holds("web.conf", "");
    // A check that runs comes to its end, and so does what it was about.
    set(&rig, "check-slow", true);
    rig.ok(&["stop", "web/1"]);
    holds("moved.conf", "0 ");
    set(&rig, "check-fails", true);
    let (alone, _) = text.split_once("[fleet.web.publish]").unwrap();
    config(alone);
    holds("moved.conf", "0 1 ");
    set(&rig, "check-fails", false);
    holds("moved.conf", "");
    // Whoever is configured with a file has it.
    rig.ok(&["start", "web/1"]);
    config(&text);
    holds("web.conf", "0 1 ");
    config(&text.replace("fleet.web", "fleet.shop"));
    rig.wait("the first is gone", 8_000, |status| {
        status.of("web").is_empty() && status.of("shop").len() == 2
    });
    holds("web.conf", "0 1 ");
    until_target(&rig, "ok", "");
    holds("web.conf", "0 1 ");
    rig.drain(8_000);
}

fn what_was_not_checked_at_the_end_is_put_back(mut rig: Rig) {
    configure(
        &rig,
        r#"stop = { deregister_delay = "0" }"#,
        &format!("{CHECK}\n{RELOAD}"),
    );
    rig.start_settled();
    until_told(&rig, "reload 0 1");
    let read = || fs::read_to_string(rig.path("web.conf")).unwrap();
    set(&rig, "check-hangs", true);
    rig.ok(&["stop", "web/1"]);
    until_true("it is being checked", 5_000, || read() == "0 ");
    rig.drain(8_000);
    assert_eq!(fs::read_to_string(rig.path("web.conf")).unwrap(), "0 1 ");
    let mut names = fs::read_dir(rig.path("")).unwrap().flatten();
    assert!(names.all(|entry| !entry.file_name().to_string_lossy().contains(".leasehold-")));
}
