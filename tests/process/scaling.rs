//! Fleets that follow the load, as operators see and command them. What the load does to them is `scaling`'s; here the machine is shared,
//! and may have no idle processor for anybody.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::rig::{Rig, both_ways, free_port, identities, send, until, until_true};

both_ways!(
    an_operators_floor_lasts_as_long_as_it_was_said,
    a_fleet_that_says_it_is_busy_wants_more_and_says_why,
    a_fleet_of_nobody_is_woken_and_sleeps_again,
    a_supervisors_death_changes_no_size,
    bounds_follow_a_reload,
    a_source_that_lies_is_seen_and_changes_nothing,
    a_program_that_is_asked_may_do_anything,
    a_sleeping_fleet_listens_where_it_is_told_to,
    who_is_through_wakes_up_others,
);

/// One fleet that follows the load; `scale` stands in its table.
fn configure(rig: &Rig, command: &str, scale: &str, more: &str) {
    rig.configure(&format!(
        r#"
        [fleet.web]
        command = [{{worker}}, {command}]
        {more}
        [fleet.web.scale]
        {scale}
    "#
    ));
}

/// It listens there, and sleeps when nobody has come for a moment.
fn configure_sleeper(rig: &Rig, port: u16) {
    configure(
        rig,
        r#""serve""#,
        "min = 0\nmax = 2\nidle_timeout = \"1s\"\nwarmup = \"0s\"\ndown_window = \"1s\"",
        &format!("socket.http.listen = \"127.0.0.1:{port}\""),
    );
}

/// Somebody connects, and is answered within seconds.
fn knock(port: u16, what: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let patience = Duration::from_secs(20);
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 1, "{what}");
}

fn decisions(rig: &Rig) -> Value {
    let text = rig.ok(&["scale", "web", "--explain", "--json"]);
    serde_json::from_str(&text).unwrap()
}

/// The first decision of which this is true.
fn decided(rig: &Rig, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    until(what, 30_000, || {
        let all = decisions(rig);
        let found = all["decisions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| is_it(one));
        found.cloned().ok_or_else(|| all.to_string())
    })
}

fn an_operators_floor_lasts_as_long_as_it_was_said(mut rig: Rig) {
    // By their own word: nobody shrinks by processor time while the machine has none to spare.
    configure(
        &rig,
        r#""busy", "0.01""#,
        "max = 5\nsignals = [\"busy\"]\ndown_window = \"1s\"\nwarmup = \"0s\"",
        "ready = \"notify\"",
    );
    rig.start_settled();
    rig.ok(&["scale", "web", "4", "--for", "3s"]);
    let status = rig.wait("it has four", 20_000, |status| status.of("web").len() == 4);
    let floor = &status.fleet("web")["scale"]["floor"];
    assert_eq!(floor["workers"], 4, "{floor}");
    assert!(floor["until"].is_string(), "{floor}");
    // It was right to have them, so they go by and by.
    rig.wait("the floor expires", 20_000, |status| {
        status.fleet("web")["scale"]["floor"].is_null()
    });
    rig.wait("it shrinks", 60_000, |status| status.of("web").len() < 4);
    assert!(rig.stderr().contains("has expired"), "{}", rig.stderr());
    rig.ok(&["scale", "web", "--pause"]);
    assert!(rig.status().fleet("web")["scale"]["paused"].is_string());
    rig.ok(&["scale", "web", "auto"]);
    assert!(rig.status().fleet("web")["scale"]["paused"].is_null());
    for (words, code, why) in [
        (&["scale", "web", "6"][..], 9, "scale.max"),
        (&["scale", "nobody", "--explain"], 4, "nobody"),
        (&["scale", "web", "--pause", "3"], 2, "--pause"),
        (&["scale", "web", "auto", "--for", "1h"], 2, "for a while"),
        (&["scale", "web"], 2, "required"),
    ] {
        let said = rig.cli(words);
        assert_eq!(said.code, code, "{words:?}: {}", said.err);
        assert!(said.err.contains(why), "{words:?}: {}", said.err);
    }
    rig.drain(10_000);
}

fn a_fleet_that_says_it_is_busy_wants_more_and_says_why(mut rig: Rig) {
    configure(
        &rig,
        r#""busy", "0.95""#,
        "max = 3\nsignals = [\"busy\"]\nwarmup = \"0s\"",
        "ready = \"notify\"",
    );
    rig.start_settled();
    let wants = |one: &Value| {
        let grew = one["verdict"] == "grew" && one["reason"] == "busy";
        let blocked = one["verdict"] == "blocked" && one["reason"] == "host_cpu";
        one["recommended"].as_u64() >= Some(2) && (grew || blocked)
    };
    let decision = decided(&rig, "it wants more", wants);
    assert!(
        decision["at"].is_string() && decision["idle_cores"].is_number(),
        "{decision}"
    );
    let table = rig.ok(&["scale", "web", "--explain"]);
    assert!(
        table.contains("grows above 80%") && table.contains("WANTS"),
        "{table}"
    );
    rig.drain(10_000);
}

fn a_fleet_of_nobody_is_woken_and_sleeps_again(mut rig: Rig) {
    let port = free_port();
    configure_sleeper(&rig, port);
    rig.start();
    let status = rig.settle(10_000);
    assert!(status.of("web").is_empty(), "{}", status.0);
    for round in 0..2 {
        // Nobody refuses, though nobody is there.
        knock(port, &format!("round {round}"));
        assert_eq!(rig.status().of("web").len(), 1);
        rig.wait("it sleeps", 60_000, |status| status.of("web").is_empty());
    }
    assert!(
        rig.stderr().contains("somebody knocked"),
        "{}",
        rig.stderr()
    );
    // Also for a supervisor that was not there when it fell asleep.
    send(rig.status().supervisor(), Signal::KILL);
    knock(port, "the next supervisor");
    rig.drain(10_000);
}

fn a_sleeping_fleet_listens_where_it_is_told_to(mut rig: Rig) {
    let (before, after) = (free_port(), free_port());
    configure_sleeper(&rig, before);
    rig.start();
    rig.settle(10_000);
    configure_sleeper(&rig, after);
    rig.ok(&["reload"]);
    knock(after, "the new address");
    assert!(TcpStream::connect(("127.0.0.1", before)).is_err());
    rig.drain(10_000);
}

fn who_is_through_wakes_up_others(mut rig: Rig) {
    let port = free_port();
    configure(
        &rig,
        r#""serve_once""#,
        "min = 0\nmax = 1\nwarmup = \"0s\"",
        &format!("restart.policy = \"on-failure\"\nsocket.http.listen = \"127.0.0.1:{port}\""),
    );
    rig.start();
    rig.settle(10_000);
    for round in 0..4 {
        knock(port, &format!("round {round}"));
    }
    rig.drain(10_000);
}

fn a_supervisors_death_changes_no_size(mut rig: Rig) {
    configure(&rig, r#""sleep""#, "max = 5\nwarmup = \"0s\"", "");
    rig.start_settled();
    rig.ok(&["scale", "web", "4"]);
    rig.wait("it has four", 20_000, |status| status.of("web").len() == 4);
    rig.ok(&["scale", "web", "auto"]);
    let before = rig.settle(5_000);
    for _ in 0..3 {
        let supervisor = rig.status().supervisor();
        send(supervisor, Signal::KILL);
        rig.wait("another one is there", 10_000, |status| {
            status.supervisor() != supervisor && status.settled()
        });
    }
    // Its window goes on where it was.
    decided(&rig, "it decides", |_| true);
    let after = rig.status();
    assert_eq!(identities(&before.of("web")), identities(&after.of("web")));
    rig.drain(10_000);
}

fn bounds_follow_a_reload(mut rig: Rig) {
    configure(&rig, r#""sleep""#, "min = 3\nmax = 5", "");
    rig.start_settled();
    let before = rig.status();
    configure(&rig, r#""sleep""#, "min = 4\nmax = 3", "");
    let said = rig.cli(&["reload"]);
    assert_eq!(said.code, 78, "{}", said.err);
    assert!(said.err.contains("E254"), "{}", said.err);
    configure(&rig, r#""sleep""#, "min = 1\nmax = 2", "");
    rig.ok(&["reload", "--no-wait"]);
    let status = rig.wait("it has two", 20_000, |status| status.of("web").len() == 2);
    let kept = identities(&status.of("web"));
    assert!(
        kept.iter()
            .all(|one| identities(&before.of("web")).contains(one))
    );
    rig.configure("[fleet.web]\ncommand = [{worker}, \"sleep\"]\nworkers = 3");
    rig.ok(&["reload"]);
    assert_eq!(rig.settle(10_000).of("web").len(), 3);
    assert_eq!(rig.cli(&["scale", "web", "--explain"]).code, 9);
    rig.drain(10_000);
}

fn a_source_that_lies_is_seen_and_changes_nothing(mut rig: Rig) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let said = rig.path("said");
    fs::write(&said, "NaN").unwrap();
    let answers = std::thread::spawn({
        let said = said.clone();
        move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 512];
                let length = stream.read(&mut request).unwrap_or(0);
                if request[..length].starts_with(b"GET /end") {
                    return;
                }
                let body = fs::read_to_string(&said).unwrap_or_default();
                let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}");
            }
        }
    });
    configure(
        &rig,
        r#""sleep""#,
        &format!(
            "max = 4\nsignals = [\"queue\"]\nqueue_per_worker = 10\nsource = {{ http = \"http://{address}/depth\", interval = \"200ms\" }}"
        ),
        "",
    );
    rig.start_settled();
    let source = |rig: &Rig, key: &str| rig.status().fleet("web")["scale"][key].clone();
    for lie in ["NaN", "-5", "many", ""] {
        fs::write(&said, lie).unwrap();
        until_true("it is seen", 10_000, || {
            source(&rig, "source_error")
                .to_string()
                .contains(&format!("\\\"{lie}\\\""))
        });
        assert_eq!(rig.status().of("web").len(), 1);
    }
    fs::write(&said, "25").unwrap();
    until_true("it is believed", 10_000, || source(&rig, "source") == 25.0);
    decided(&rig, "it wants three", |one| one["recommended"] == 3);
    let _ = TcpStream::connect(address).unwrap().write_all(b"GET /end");
    answers.join().unwrap();
    until_true("silence is seen", 20_000, || {
        source(&rig, "source_error").is_string()
    });
    rig.drain(10_000);
}

fn a_program_that_is_asked_may_do_anything(mut rig: Rig) {
    let (program, says) = (rig.path("depth"), rig.path("says"));
    fs::write(&program, format!("#!/bin/sh\n. {}\n", says.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&says, "echo nothing").unwrap();
    configure(
        &rig,
        r#""sleep""#,
        &format!(
            "max = 4\nsignals = [\"queue\"]\nqueue_per_worker = 10\nsource = {{ exec = [\"{}\"], interval = \"200ms\", timeout = \"1s\" }}",
            program.display()
        ),
        "",
    );
    rig.start_settled();
    let source = |rig: &Rig, key: &str| rig.status().fleet("web")["scale"][key].clone();
    for (script, seen) in [
        ("echo -5", "\\\"-5"),
        ("exit 3", "exited with code 3"),
        ("sleep 100", "SIGKILL"),
        // More than its pipe holds.
        ("yes", "SIGKILL"),
        // Its children are no answer, and do not stay.
        ("(sleep 0.3; echo 12) & exit 0", "\\\"\\\""),
    ] {
        fs::write(&says, script).unwrap();
        until_true(script, 10_000, || {
            source(&rig, "source_error").to_string().contains(seen)
        });
        assert_eq!(rig.status().of("web").len(), 1, "{script}");
    }
    fs::write(&says, "echo 25").unwrap();
    until_true("it is believed", 10_000, || source(&rig, "source") == 25.0);
    decided(&rig, "it wants three", |one| one["recommended"] == 3);
    let before = rig.status().supervisor();
    send(before, Signal::KILL);
    until_true("another one asks", 10_000, || {
        rig.status().supervisor() != before && source(&rig, "source") == 25.0
    });
    // Who is asked when everybody leaves holds nobody up.
    fs::write(&says, "sleep 100").unwrap();
    rig.drain(10_000);
}
