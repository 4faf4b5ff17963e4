//! Those who do what nobody should: unread pipes, foreign datagrams, idle connections, commands and deaths without end.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::{UnixDatagram, UnixStream},
};

use rustix::process::Signal;

use crate::rig::{
    Rig, Status, all_pids, both_ways, free_port, identities, lives, parent_of, pause, send, ticks,
    until,
};

/// Every living leader is one of the status, and the other way round: nobody is doubled, nobody forgotten.
fn accounts(rig: &Rig) -> Result<Status, String> {
    let status = rig.try_status()?;
    let supervisor = status.supervisor();
    let mut known: Vec<i32> = status
        .workers()
        .iter()
        .map(|w| w.pid)
        .filter(|pid| *pid > 0)
        .collect();
    let mut living: Vec<i32> = all_pids()
        .into_iter()
        .filter(|pid| parent_of(*pid) == Some(rig.keeper()) && lives(*pid) && *pid != supervisor)
        .collect();
    known.sort_unstable();
    living.sort_unstable();
    if known == living {
        Ok(status)
    } else {
        Err(format!("known {known:?}, living {living:?}"))
    }
}

both_ways!(
    commands_among_deaths_end_in_order,
    a_drain_without_any_supervisor_ends,
    an_unread_stderr_stops_nobody,
    started_without_stdin_stdout_and_stderr,
    strangers_cannot_notify,
    idle_connections_starve_nobody,
    the_tcp_address_is_read_only
);

/// Commands and deaths in any order; when it is quiet, what was asked for is what is there.
fn commands_among_deaths_end_in_order(mut rig: Rig) {
    let text = |word: &str, more: u32| {
        format!(
            r#"
        [node]
        restart_rate = "10000/s"
        restart_burst = 10000
        [fleet.web]
        command = [{{worker}}, "ready", "0.02"]
        env = {{ WORD = "{word}" }}
        ready = "notify"
        workers = {more}
        stop.timeout = "300ms"
        rollout = {{ max_surge = 1, max_unavailable = 1 }}
        [fleet.fall]
        command = [{{worker}}, "crash", "{{notes}}"]
        workers = 2
        restart = {{ backoff = "5ms..20ms", burst = 100000 }}
    "#
        )
    };
    rig.configure(&text("a", 3));
    rig.start_settled();
    let mut bits = [0_u8; 60];
    rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty()).unwrap();
    let steps: Vec<String> = bits.iter().map(|n| (n % 10).to_string()).collect();
    eprintln!("steps {}", steps.join(" "));
    for (n, bit) in bits.iter().enumerate() {
        let words: &[&str] = match bit % 10 {
            0 => &["stop", "web", "--no-wait"],
            1 => &["start", "web", "--no-wait"],
            2 => &["restart", "web", "--no-wait"],
            3 => &["scale", "web", "5", "--no-wait"],
            4 => &["scale", "web", "auto", "--no-wait"],
            5 => &["stop", "web/1", "--no-wait"],
            6 => &["restart", "web/0", "--no-wait"],
            7 => {
                rig.configure(&text(
                    if n % 2 == 0 { "b" } else { "c" },
                    2 + (n % 3) as u32,
                ));
                &["reload", "--no-wait"]
            }
            _ => {
                // Stopped, not killed: those deaths are not counted against it.
                send(rig.status().supervisor(), Signal::STOP);
                pause(u64::from(*bit) / 8);
                continue;
            }
        };
        let said = rig.cli(words);
        // Held, or not there any more; or the supervisor died with the command in its hand.
        assert!(matches!(said.code, 0 | 4 | 7 | 9), "{words:?}: {said:?}");
    }
    rig.configure(&text("end", 3));
    fs::write(rig.path("notes/calm"), "").unwrap();
    for words in [
        &["reload", "--no-wait"][..],
        &["start", "web", "web/1", "--no-wait"],
        &["scale", "web", "auto", "--no-wait"],
    ] {
        until("a last command", 4_000, || {
            let said = rig.cli(words);
            if said.code == 0 {
                Ok(())
            } else {
                Err(format!("{said:?}"))
            }
        });
    }
    let status = until("it is quiet", 15_000, || {
        let status = accounts(&rig)?;
        let web = status.of("web");
        let quiet = status.settled() && web.len() == 3 && web.iter().all(|w| w.ready);
        if quiet {
            Ok(status)
        } else {
            Err(status.0.to_string())
        }
    });
    for worker in status.of("web") {
        let env = fs::read_to_string(format!("/proc/{}/environ", worker.pid)).unwrap();
        assert!(
            env.contains("WORD=end\0"),
            "{} has another revision",
            worker.id
        );
    }
    for worker in status.of("fall") {
        let starts = rig.notes(&format!("starts.{}", worker.id.rsplit('/').next().unwrap()));
        assert!(
            starts.len() as u64 <= worker.generation,
            "{worker:?} {starts:?}"
        );
    }
    rig.drain(5_000);
}

/// However often its supervisor dies, the keeper drains to the end.
fn a_drain_without_any_supervisor_ends(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.db]
        command = [{worker}, "order", "{notes}"]
        ready = "notify"
        workers = 1
        [fleet.web]
        command = [{worker}, "order", "{notes}"]
        ready = "notify"
        after = { db = "ready" }
        [fleet.deaf]
        command = [{worker}, "stubborn"]
        ready = "notify"
        stop.timeout = "800ms"
        after = { db = "ready" }
    "#,
    );
    rig.start_settled();
    let keeper = rig.keeper();
    rig.signal(Signal::TERM);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let theirs = std::sync::Arc::clone(&stop);
    let hunter = std::thread::spawn(move || {
        let mut kills = 0;
        while !theirs.load(std::sync::atomic::Ordering::Relaxed) {
            for pid in all_pids()
                .into_iter()
                .filter(|pid| parent_of(*pid) == Some(keeper))
            {
                if fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.starts_with(b"leasehold\0supervisor\0"))
                {
                    send(pid, Signal::KILL);
                    kills += 1;
                }
            }
            pause(5);
        }
        kills
    });
    let status = rig.ended(12_000);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(hunter.join().unwrap() >= 2);
    assert_eq!(status.code(), Some(0), "{status}");
    rig.assert_nothing_left();
    let order = rig.notes("order");
    let at = |what: &str| order.iter().position(|line| line == what);
    assert!(
        at("web gone") < at("db told") && at("web gone").is_some(),
        "{order:?}"
    );
}

/// A pipe that nobody reads, full: neither keeper nor supervisor waits for it.
fn an_unread_stderr_stops_nobody(mut rig: Rig) {
    let words = "mkfifo \"$0\" && exec 9<>\"$0\" && exec \"$@\" 2>&9 9>&-";
    rig.wrapper = [
        "/bin/sh",
        "-c",
        words,
        &rig.path("fifo").display().to_string(),
    ]
    .map(str::to_owned)
    .to_vec();
    rig.configure(
        r#"
        [node]
        restart_rate = "10000/s"
        restart_burst = 10000
        [fleet.web]
        command = ["/bin/false"]
        workers = 4
        restart = { backoff = "1ms..2ms", burst = 1000000 }
        [fleet.fine]
        command = [{worker}, "sleep"]
    "#,
    );
    rig.start();
    rig.wait("enough was said to fill any pipe", 15_000, |s| {
        s.of("web").iter().map(|w| w.generation).sum::<u64>() > 600
    });
    let status = rig.status();
    send(status.supervisor(), Signal::KILL);
    rig.wait("another supervisor", 3_000, |s| {
        s.supervisor() != status.supervisor()
    });
    rig.drain(6_000);
}

/// Closed, all three: descriptors of ours must not become somebody's output.
fn started_without_stdin_stdout_and_stderr(mut rig: Rig) {
    rig.wrapper = ["/bin/sh", "-c", "exec \"$@\" <&- >&- 2>&-", "sh"]
        .map(str::to_owned)
        .to_vec();
    rig.configure("[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", \"echo out; echo err >&2; ls -l /proc/self/fd; exec sleep 1000\"]\nworkers = 2\n");
    let status = rig.start_settled();
    let text = until("it has spoken", 3_000, || {
        let text = fs::read_to_string(rig.log("web/1")).unwrap_or_default();
        if text.contains("/proc/") {
            Ok(text)
        } else {
            Err(text)
        }
    });
    assert!(
        text.starts_with("out\nerr\n") && text.matches(" -> ").count() == 4,
        "{text}"
    );
    send(status.supervisor(), Signal::KILL);
    let after = rig.wait("another supervisor", 2_000, |s| {
        s.supervisor() != status.supervisor()
    });
    assert_eq!(identities(&status.workers()), identities(&after.workers()));
    rig.drain(5_000);
}

/// Only a worker speaks for a worker, whatever reaches its socket.
fn strangers_cannot_notify(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"sleep\"]\nready = \"notify\"\nworkers = 2\n[fleet.said]\ncommand = [{worker}, \"ready\"]\nready = \"notify\"\n");
    rig.start();
    rig.wait("the one that spoke is ready", 4_000, |s| {
        s.of("said").iter().any(|w| w.ready)
    });
    let socket = UnixDatagram::unbound().unwrap();
    let path = rig.path("run/notify");
    for text in [
        &b"READY=1"[..],
        b"STOPPING=1",
        b"WATCHDOG=trigger",
        b"",
        b"\xff\xfe=\n\n=\n",
        &[b'x'; 60_000],
        b"MAINPID=1\nREADY=1",
        b"FDSTORE=1",
    ] {
        let _ = socket.send_to(text, &path);
    }
    for _ in 0..5_000 {
        // Blocks while the queue is full: it must be emptied.
        socket.send_to(b"READY=1\nSTATUS=not you", &path).unwrap();
    }
    let status = rig.status();
    assert!(
        status
            .of("web")
            .iter()
            .all(|w| !w.ready && w.all["status"].is_null()),
        "{status:?}"
    );
    assert!(
        status
            .of("said")
            .iter()
            .all(|w| w.ready && w.generation == 1)
    );
    rig.drain(5_000);
}

/// Idle connections take every descriptor there is: no spinning, workers are still restarted, and it recovers.
fn idle_connections_starve_nobody(mut rig: Rig) {
    let http = free_port();
    rig.wrapper = [
        "sh",
        "-c",
        "ulimit -Sn 648 && ulimit -Hn 648 && exec \"$@\"",
        "sh",
    ]
    .map(str::to_owned)
    .to_vec();
    rig.configure(&format!("[http]\nlisten = [\"127.0.0.1:{http}\"]\n[fleet.web]\ncommand = [{{worker}}, \"sleep\"]\nworkers = 4\nrestart = {{ backoff = \"20ms..50ms\", burst = 1000 }}\n"));
    let before = rig.start_settled();
    let mut idle = Vec::new();
    let mut local = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(("127.0.0.1", http)).unwrap());
    }
    for _ in 0..300 {
        local.push(UnixStream::connect(rig.path("run/control.sock")).unwrap());
    }
    pause(300);
    let spent = ticks(&[rig.keeper(), before.supervisor()]);
    pause(1_000);
    let spent = ticks(&[rig.keeper(), before.supervisor()]) - spent;
    assert!(spent <= 20, "{spent} of 100 ticks spent on doing nothing");
    send(before.workers()[0].pid, Signal::KILL);
    until("a dead worker comes back meanwhile", 4_000, || {
        let found = all_pids().into_iter().find(|pid| {
            parent_of(*pid) == Some(rig.keeper())
                && fs::read_to_string(format!("/proc/{pid}/environ"))
                    .is_ok_and(|env| env.contains("LEASEHOLD_GENERATION=2"))
        });
        found.ok_or_else(String::new)
    });
    drop((idle, local));
    let status = rig.wait("it answers again", 5_000, |s| {
        s.of("web").iter().all(|w| w.ready)
    });
    assert_eq!(status.supervisor(), before.supervisor());
    rig.drain(5_000);
}

/// The TCP address is for reading, and only for those who call it by its name.
fn the_tcp_address_is_read_only(mut rig: Rig) {
    let http = free_port();
    rig.configure(&format!(
        "[http]\nlisten = [\"127.0.0.1:{http}\"]\n[fleet.web]\ncommand = [{{worker}}, \"sleep\"]\n"
    ));
    rig.start_settled();
    let ask = |text: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        let _ = stream.write_all(text.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let head = |text: &str, host: &str, more: &str| {
        format!("{text} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n")
    };
    for path in [
        "/livez",
        "/readyz",
        "/health",
        "/metrics",
        "/v1/status",
        "/",
        "/readyz/fleets/web",
    ] {
        assert!(
            ask(&head(&format!("GET {path}"), "localhost", "")).starts_with("HTTP/1.1 200"),
            "{path}"
        );
    }
    let post = ask(
        &(head("POST /v1/stop", "localhost", "content-length: 17\r\n") + "{\"names\":[\"web\"]}"),
    );
    assert!(post.starts_with("HTTP/1.1 403"), "{post}");
    assert!(ask(&head("GET /v1/status", "evil.example", "")).starts_with("HTTP/1.1 421"));
    assert!(ask(&head("GET /readyz/fleets/none", "localhost", "")).starts_with("HTTP/1.1 404"));
    for junk in [
        "\0\0\0\0\r\n\r\n",
        "GET",
        "GET / HTTP/9.9\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 99999999999999\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
        let _ = stream.write_all(junk.as_bytes());
    }
    assert!(rig.status().settled());
    rig.drain(5_000);
}
