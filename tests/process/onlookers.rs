//! Those who look on: tracers of workers, followers of events. They may be slow, deaf, or too many.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    hang::Hang,
    rig::{
        Mode, Rig, both_ways, free_port, identities, lives, pause, send, skip, state_of, ticks,
        until, until_true,
    },
};

both_ways!(
    a_traced_worker_is_restarted_and_stopped,
    a_stranger_that_hangs_in_the_kernel_holds_nobody_up,
);

/// Its environment cannot be read. It is nobody's whom we look for, since it does not descend from us.
fn a_stranger_that_hangs_in_the_kernel_holds_nobody_up(mut rig: Rig) {
    let Some(hang) = Hang::new(&rig) else {
        return;
    };
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "sleep"]
        restart = { backoff = "1ms..5ms" }
    "#,
    );
    let before = rig.start_settled().worker("web/0").unwrap();
    let [program, place] = hang.words();
    let script = format!("until [ -e {place}/../hung ]; do :; done; exec cat {place}/file");
    let mut stranger = Command::new(program)
        .args([&place, "/bin/sh", "-c", &script])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    hang.begin();
    let pid = stranger.id() as i32;
    until_true("it hangs", 3_000, || state_of(pid) == Some('D'));
    send(before.pid, Signal::KILL);
    rig.wait("the worker is back", 3_000, |status| {
        let worker = status.worker("web/0").unwrap();
        worker.generation == 2 && worker.ready
    });
    rig.drain(5_000);
    assert_eq!(state_of(pid), Some('D'), "it went on");
    hang.end();
    assert_eq!(stranger.wait().unwrap().code(), Some(1));
}

/// A tracer that is ended with its test.
struct Tracer(Child);

impl Tracer {
    /// Attached when this returns; none if that is forbidden here.
    fn attach(program: &PathBuf, manner: &str, pid: i32) -> Option<Self> {
        let child = Command::new(program)
            .args([manner, &pid.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut tracer = Self(child);
        let attached = until("the tracer is attached, or refused", 5_000, || {
            if tracer.0.try_wait().unwrap().is_some() {
                return Ok(false);
            }
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = format!("TracerPid:\t{}\n", tracer.0.id());
            status.contains(&line).then_some(true).ok_or(status)
        });
        if !attached {
            skip("nobody may trace here (ptrace)");
        }
        attached.then_some(tracer)
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.end();
    }
}

/// A tracer hears first of the death of what it traces, and may keep it to itself. Whoever waits for it costs no time meanwhile.
fn a_traced_worker_is_restarted_and_stopped(mut rig: Rig) {
    let Some(program) = rig.compile("tracer", include_str!("tracer.c"), &[]) else {
        return;
    };
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "family", "{notes}", "0"]
        ready = "notify"
        workers = 3
        stop.timeout = "2s"
    "#,
    );
    let before = rig.start_settled();
    let pid = |n: usize| before.of("web")[n].pid;
    let Some(mut deaf) = Tracer::attach(&program, "deaf", pid(0)) else {
        return;
    };
    let polite = Tracer::attach(&program, "polite", pid(1)).unwrap();
    for n in [0, 1] {
        send(pid(n), Signal::KILL);
    }
    let second = |id: &str, bound_ms: u64| {
        rig.wait(&format!("{id} is back"), bound_ms, |status| {
            let worker = status.worker(id).unwrap();
            worker.generation == 2 && worker.ready
        })
    };
    second("web/1", 3_000);
    drop(polite);
    // The other is dead, and nobody may say so yet: its slot stays its own.
    assert_eq!(state_of(pid(0)), Some('Z'));
    let spent = ticks(&[rig.keeper(), before.supervisor()]);
    pause(1_000);
    let spent = ticks(&[rig.keeper(), before.supervisor()]) - spent;
    assert!(
        spent <= 20,
        "{spent} of 100 ticks spent on waiting for a tracer"
    );
    assert_eq!(rig.status().worker("web/0").unwrap().generation, 1);
    deaf.end();
    let after = second("web/0", 3_000);
    assert_eq!(
        identities(&before.of("web")[2..]),
        identities(&after.of("web")[2..])
    );
    // The same while it drains.
    let worker = after.worker("web/2").unwrap().pid;
    let mut deaf = Tracer::attach(&program, "deaf", worker).unwrap();
    rig.signal(Signal::TERM);
    until_true("it has ended", 4_000, || !lives(worker));
    deaf.end();
    let status = rig.ended(5_000);
    assert_eq!(status.code(), Some(0), "{status}: {}", rig.stderr());
    rig.assert_nothing_left();
}

const FOLLOW: &str =
    "GET /v1/events?follow HTTP/1.1\r\nhost: localhost\r\nlast-event-id: 0-0\r\n\r\n";

/// What may be open at once on either kind of listener, and how many of these may follow (`http::server`).
const CONNECTIONS_MAX: usize = 256;
const FOLLOWERS_MAX: usize = 64;

fn fds_of(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn rss_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse().unwrap()
}

/// More than are let in, on both doors, most of whom never read: the others are told so or wait, and nothing else waits for them.
#[test]
fn followers_without_number_stop_nothing() {
    let Some(mut rig) = Rig::new(Mode::Group) else {
        return;
    };
    let http = free_port();
    rig.configure(&format!(
        r#"
        [node]
        restart_rate = "10000/s"
        restart_burst = 10000
        [http]
        listen = ["127.0.0.1:{http}"]
        [fleet.web]
        command = ["/bin/false"]
        workers = 6
        restart = {{ backoff = "1ms..2ms", burst = 1000000 }}
        [fleet.fine]
        command = [{{worker}}, "sleep"]
    "#
    ));
    rig.start();
    let before = rig.wait("the fine one is ready", 5_000, |status| {
        status.worker("fine/0").is_some_and(|w| w.ready)
    });
    let supervisor = before.supervisor();
    let generations = || {
        let status = rig.status();
        status.of("web").iter().map(|w| w.generation).sum::<u64>()
    };
    // Four events each: more than a socket holds, and every follower asks for all of it.
    until_true("there is a past", 30_000, || generations() > 400);
    let (fds, rss) = (fds_of(supervisor), rss_kib(supervisor));
    // Half of all followers, who never read, on the control socket: its buffer is small, so that they block their writers.
    let mut deaf = Vec::new();
    for _ in 0..FOLLOWERS_MAX / 2 {
        let mut stream = UnixStream::connect(rig.path("run/control.sock")).unwrap();
        stream.write_all(FOLLOW.as_bytes()).unwrap();
        deaf.push(stream);
    }
    // One who reads, to measure how much there is to read.
    let mut reader = TcpStream::connect(("127.0.0.1", http)).unwrap();
    reader
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    reader.write_all(FOLLOW.as_bytes()).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let head = reader.read(&mut buffer).unwrap();
    let text = String::from_utf8_lossy(&buffer[..head]).into_owned();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    // More than the other door lets in at once.
    let mut crowd = Vec::new();
    for _ in 0..CONNECTIONS_MAX + 44 {
        let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
        stream.write_all(FOLLOW.as_bytes()).unwrap();
        crowd.push(stream);
    }
    let begun = generations();
    let mut seen = 0;
    while seen < 600 << 10 {
        let length = reader.read(&mut buffer).unwrap();
        assert!(length > 0, "the stream ended after {seen} bytes");
        seen += length;
        let (code, text) = rig.request("GET", "/livez", "").unwrap();
        assert_eq!(code, 200, "{text}");
    }
    assert!(generations() > begun + 50, "they go on crashing");
    let now = rig.status();
    assert_eq!(now.supervisor(), supervisor);
    assert_eq!(identities(&before.of("fine")), identities(&now.of("fine")));
    let most = fds + 2 * CONNECTIONS_MAX + 16;
    assert!(fds_of(supervisor) <= most, "{}", fds_of(supervisor));
    let more = rss_kib(supervisor).saturating_sub(rss);
    // A past is less than a megabyte.
    assert!(more < 96 << 10, "{more} KiB for those who follow");
    // Exactly so many were let in; the others were told why not, and do not keep those out who ask for something else.
    let mut let_in = deaf.len() + 1;
    for stream in &mut crowd {
        stream
            .set_read_timeout(Some(Duration::from_secs(15)))
            .unwrap();
        let length = stream.read(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text.starts_with("HTTP/1.1 200") {
            let_in += 1;
        } else {
            assert!(
                text.starts_with("HTTP/1.1 503") && text.contains("follow events already"),
                "{text}"
            );
        }
    }
    assert_eq!(let_in, FOLLOWERS_MAX);
    // Those who were refused have left the door to others; the followers keep their places.
    let mut health = TcpStream::connect(("127.0.0.1", http)).unwrap();
    health
        .set_read_timeout(Some(Duration::from_secs(15)))
        .unwrap();
    health
        .write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let length = health.read(&mut buffer).unwrap();
    assert!(String::from_utf8_lossy(&buffer[..length]).starts_with("HTTP/1.1 200"));
    drop((deaf, crowd, reader, health));
    until("its descriptors are back", 5_000, || {
        let now = fds_of(supervisor);
        if now <= fds + 4 {
            Ok(())
        } else {
            Err(format!("{now}, {fds} before"))
        }
    });
    let mut again = TcpStream::connect(("127.0.0.1", http)).unwrap();
    again.write_all(FOLLOW.as_bytes()).unwrap();
    let length = again.read(&mut buffer).unwrap();
    assert!(String::from_utf8_lossy(&buffer[..length]).starts_with("HTTP/1.1 200"));
    drop(again);
    rig.drain(6_000);
}
