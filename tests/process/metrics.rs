//! `/metrics` of a real daemon: what happened is counted, what is used is charged, and every client gets the format that it reads.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

use leasehold::{sys::clock, time::Moment};
use rustix::process::Signal;

use crate::{
    lint::Exposition,
    rig::{Rig, both_ways, free_port, send, until},
};

const OPEN: &str = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5";

both_ways!(
    what_happened_is_counted,
    what_is_used_is_charged,
    clients_get_what_they_read
);

/// Head and body of one answer.
fn converse(mut stream: impl Read + Write, method: &str, accept: &str) -> (String, String) {
    let request = format!(
        "{method} /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept: {accept}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn control(rig: &Rig) -> UnixStream {
    let stream = UnixStream::connect(rig.path("run/control.sock")).unwrap();
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).unwrap();
    stream
}

fn scrape(rig: &Rig) -> Exposition {
    let (head, body) = converse(control(rig), "GET", OPEN);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}: {body}");
    Exposition::read(&body, true)
}

/// A sample's name without `leasehold_`, its labels, its value.
type Wanted<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

/// Scrapes until these samples have these values.
fn counted(rig: &Rig, wanted: &[Wanted<'_>]) -> Exposition {
    until("everything is counted", 10_000, || {
        let all = scrape(rig);
        for (name, labels, value) in wanted {
            let found = all.value(&format!("leasehold_{name}"), labels);
            if found != Some(*value) {
                return Err(format!("{name}{labels:?} is {found:?}, not {value}"));
            }
        }
        Ok(all)
    })
}

fn what_happened_is_counted(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "ready"]
        ready = "notify"
        workers = 2
        restart = { backoff = "10ms..20ms", burst = 100 }
        [fleet.deaf]
        command = [{worker}, "stubborn"]
        ready = "notify"
        stop.timeout = "200ms"
        [fleet.loud]
        command = ["/bin/sh", "-c", "echo 123456789; exec sleep 1000"]
        [fleet.ledger]
        command = [{worker}, "sleep"]
        singleton = { scope = "node", flock = "{dir}/lock" }
        [cron.report]
        command = ["/bin/sh", "-c", "exit 4"]
        schedule = "@yearly"
    "#,
    );
    let status = rig.start_settled();
    let web: &[(&str, &str)] = &[("fleet", "web")];
    let deaf: &[(&str, &str)] = &[("fleet", "deaf")];
    let first = counted(
        &rig,
        &[
            ("worker_starts_total", web, 2.0),
            ("worker_ready_duration_seconds_count", web, 2.0),
            ("workers", &[("fleet", "web"), ("state", "ready")], 2.0),
            ("fleet_desired", web, 2.0),
            ("worker_kills_total", deaf, 0.0),
            ("worker_up", &[("fleet", "deaf"), ("worker", "0")], 1.0),
            ("log_bytes_total", &[("fleet", "loud")], 10.0),
            ("config_last_reload_successful", &[], 1.0),
        ],
    );
    let lock: &[(&str, &str)] = &[("lock", "ledger"), ("scope", "node")];
    counted(
        &rig,
        &[
            ("lock_held", lock, 1.0),
            ("lock_transitions_total", lock, 1.0),
            ("lock_wait_seconds", lock, 0.0),
        ],
    );
    assert!(first.value("leasehold_fencing_token", lock) > Some(1e12));
    // A crash, a stop, a kill at the end of a drain, a run that fails.
    send(status.worker("web/0").unwrap().pid, Signal::KILL);
    rig.wait("it is back", 5_000, |s| {
        s.worker("web/0")
            .is_some_and(|w| w.generation == 2 && w.ready)
    });
    rig.ok(&["stop", "web/1", "deaf", "ledger"]);
    rig.cli(&["cron", "run", "report", "--wait"]);
    let exit = |fleet, reason, class| [("fleet", fleet), ("reason", reason), ("code_class", class)];
    counted(
        &rig,
        &[
            ("worker_starts_total", web, 3.0),
            ("worker_exits_total", &exit("web", "signal", "signal"), 1.0),
            ("worker_exits_total", &exit("web", "stop", "zero"), 1.0),
            ("worker_exits_total", &exit("deaf", "stop", "signal"), 1.0),
            ("worker_drain_duration_seconds_count", web, 1.0),
            ("worker_drain_duration_seconds_count", deaf, 1.0),
            ("worker_kills_total", web, 0.0),
            ("worker_kills_total", deaf, 1.0),
            ("workers", &[("fleet", "deaf"), ("state", "held")], 1.0),
            ("fleet_desired", deaf, 0.0),
            ("lock_held", lock, 0.0),
            ("lock_transitions_total", lock, 2.0),
            (
                "cron_runs_total",
                &[("cron", "report"), ("outcome", "failed")],
                1.0,
            ),
            (
                "cron_duration_seconds_count",
                &[("cron", "report"), ("outcome", "failed")],
                1.0,
            ),
        ],
    );
    let drained = scrape(&rig).value("leasehold_worker_drain_duration_seconds_sum", deaf);
    assert!(drained >= Some(0.2), "{drained:?}");
    // A reload that is refused, and one that is not.
    let accepted = "leasehold_config_last_reload_success_timestamp_seconds";
    let before = first.value(accepted, &[]).unwrap();
    let good = fs::read_to_string(rig.path("leasehold.toml")).unwrap();
    fs::write(rig.path("leasehold.toml"), "schema = 1\n[fleet.web\n").unwrap();
    assert_eq!(rig.cli(&["reload"]).code, 78);
    let refused = counted(&rig, &[("config_last_reload_successful", &[], 0.0)]);
    assert_eq!(refused.value(accepted, &[]), Some(before));
    let gone = good.replace("[fleet.loud]", "[fleet.soft]");
    fs::write(rig.path("leasehold.toml"), gone).unwrap();
    rig.ok(&["reload"]);
    let reason = exit("loud", "removed", "signal");
    let after = counted(
        &rig,
        &[
            ("config_last_reload_successful", &[], 1.0),
            ("worker_exits_total", &reason, 1.0),
            ("worker_starts_total", &[("fleet", "soft")], 1.0),
        ],
    );
    let since = after.value(accepted, &[]).unwrap();
    assert!(since > before, "{since} {before}");
    // Another supervisor begins at zero, says so, and knows when the configuration was accepted.
    let supervisor = rig.status().supervisor();
    send(supervisor, Signal::KILL);
    rig.wait("another supervisor", 3_000, |s| {
        s.supervisor() != supervisor
    });
    let next = counted(&rig, &[("worker_starts_total", web, 0.0)]);
    assert_eq!(next.value(accepted, &[]), Some(since));
    let began = "leasehold_start_time_seconds";
    assert!(next.value(began, &[]) > first.value(began, &[]));
    // The next accepted configuration forgets what is not configured any more.
    fs::write(rig.path("leasehold.toml"), &good).unwrap();
    rig.ok(&["reload"]);
    counted(&rig, &[("worker_starts_total", &[("fleet", "loud")], 1.0)]);
    rig.drain(8_000);
}

/// Of everything in the worker: the shell that waits, and the child that burns.
fn what_is_used_is_charged(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.hot]
        command = ["/bin/sh", "-c", "(while :; do :; done) & wait"]
        stop.timeout = "1s"
        [fleet.cold]
        command = [{worker}, "sleep"]
    "#,
    );
    rig.start_settled();
    let cpu = |fleet: &str| {
        let labels = [("fleet", fleet), ("worker", "0")];
        let all = scrape(&rig);
        let memory = all.value("leasehold_worker_memory_bytes", &labels);
        assert!(memory > Some(50_000.0), "{fleet} has {memory:?} bytes");
        all.value("leasehold_worker_cpu_seconds_total", &labels)
            .unwrap_or_else(|| panic!("{fleet} has no clock"))
    };
    let (began, hot, cold) = (clock::now(), cpu("hot"), cpu("cold"));
    until("it burned half a second", 30_000, || {
        let burned = cpu("hot") - hot;
        if burned >= 0.5 {
            Ok(())
        } else {
            Err(format!("{burned}"))
        }
    });
    // One loop cannot burn more than there was; ticks are a hundredth of a second.
    let most = seconds(began) + 0.1;
    let burned = cpu("hot") - hot;
    assert!(burned <= seconds(began) + 0.1, "{burned} of {most}");
    assert!(cpu("cold") - cold < 0.25, "who sleeps is not charged");
    // The status tells it too, as a share of a core.
    rig.wait("the status knows", 5_000, |status| {
        let all = |worker: &str| status.worker(worker).unwrap().all;
        let percent = |worker| all(worker)["cpu"].as_f64().unwrap_or(-1.0);
        let there = all("hot/0")["memory"].as_u64() > Some(50_000);
        there && percent("hot/0") > 1.0 && (0.0..50.0).contains(&percent("cold/0"))
    });
    rig.drain(5_000);
}

fn seconds(since: Moment) -> f64 {
    clock::now().since(since).as_nanos() as f64 / 1e9
}

fn clients_get_what_they_read(mut rig: Rig) {
    let http = free_port();
    rig.configure(&format!(
        "[http]\nlisten = [\"127.0.0.1:{http}\"]\n[fleet.web]\ncommand = [{{worker}}, \"sleep\"]\nworkers = 20\n"
    ));
    rig.start_settled();
    let tcp = || {
        let stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
        let limit = Some(Duration::from_secs(20));
        stream.set_read_timeout(limit).unwrap();
        stream
    };
    for (accept, open) in [(OPEN, true), ("*/*", false), ("text/plain", false)] {
        for (head, body) in [
            converse(tcp(), "GET", accept),
            converse(control(&rig), "GET", accept),
        ] {
            let kind = if open {
                "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"
            } else {
                "content-type: text/plain; version=0.0.4; charset=utf-8"
            };
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            assert!(head.contains(kind), "{head}");
            let all = Exposition::read(&body, open);
            let labels = [("fleet", "web"), ("worker", "19")];
            assert_eq!(all.value("leasehold_worker_up", &labels), Some(1.0));
            let clock = all.value("leasehold_worker_cpu_seconds_total", &labels);
            assert!(clock.is_some());
        }
    }
    let (head, body) = converse(tcp(), "HEAD", OPEN);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(
        head.contains("openmetrics-text") && body.is_empty(),
        "{head}{body}"
    );
    let (head, _) = converse(tcp(), "POST", OPEN);
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    // A crowd at once gets pages, each whole.
    let crowd: Vec<_> = (0..40)
        .map(|n| {
            let stream = tcp();
            let accept = if n % 2 == 0 { OPEN } else { "*/*" };
            std::thread::spawn(move || (n % 2 == 0, converse(stream, "GET", accept)))
        })
        .collect();
    for one in crowd {
        let (open, (head, body)) = one.join().unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        Exposition::read(&body, open);
    }
    rig.drain(5_000);
}
