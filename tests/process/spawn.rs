//! What a worker is given, and nothing else; and what is said when it cannot be given.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::rig::{Rig, both_ways, free_port, is_root, send, skip, until};

/// What `worker.py dump` saw.
fn dump(rig: &Rig, name: &str) -> Value {
    until("the worker has told what it sees", 5_000, || {
        let text = fs::read_to_string(rig.path("notes").join(name)).map_err(|e| e.to_string())?;
        serde_json::from_str(&text).map_err(|e| e.to_string())
    })
}

/// The text behind a name in a `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
}

both_ways!(
    environment_descriptors_and_group_are_what_was_meant,
    inherited_sockets_listen_where_they_should,
    user_limits_and_privileges,
    what_the_daemon_inherited_stops_at_the_daemon,
    a_step_that_fails_is_named,
    hooks_run_before_start_and_before_stop
);

fn environment_descriptors_and_group_are_what_was_meant(mut rig: Rig) {
    let (one, two) = (free_port(), free_port());
    rig.configure(&format!(
        r#"
        [node]
        name = "here"
        [fleet.web]
        command = [{{worker}}, "dump", "{{notes}}/web.{{{{ slot }}}}", "a b", "$HOME", ""]
        workers = 2
        port_range = "18000-18003"
        env = {{ MINE = "x {{{{ port }}}}", EMPTY = "" }}
        env_file = ["{{dir}}/env", "-{{dir}}/no-such-file"]
        socket.b.listen = "127.0.0.1:{two}"
        socket.a.listen = "127.0.0.1:{one}"
        [fleet.plain]
        command = [{{worker}}, "dump", "{{notes}}/plain"]
        session = true
    "#
    ));
    fs::write(
        rig.path("env"),
        "# why\nFROM_FILE=yes\nQUOTED=\"two words\"\n",
    )
    .unwrap();
    let status = rig.start_settled();
    let seen = dump(&rig, "web.1");
    let worker = status.worker("web/1").unwrap();
    let words: Vec<&str> = seen["argv"].as_array().unwrap()[1..]
        .iter()
        .map(|w| w.as_str().unwrap())
        .collect();
    assert_eq!(words[2..], ["a b", "$HOME", ""]);
    let env = seen["env"].as_object().unwrap();
    let is = |name: &str, value: &str| {
        assert_eq!(env.get(name), Some(&json!(value)), "{name} in {env:?}")
    };
    is("LEASEHOLD_FLEET", "web");
    is("LEASEHOLD_SLOT", "1");
    is("LEASEHOLD_GENERATION", "1");
    is("LEASEHOLD_NODE", "here");
    is("PORT", "18001");
    is("MINE", "x 18001");
    is("EMPTY", "");
    is("FROM_FILE", "yes");
    is("QUOTED", "two words");
    is("LISTEN_FDS", "2");
    is("LISTEN_FDNAMES", "a:b");
    is("LISTEN_PID", &worker.pid.to_string());
    is(
        "NOTIFY_SOCKET",
        &rig.path("run/notify").display().to_string(),
    );
    let meant = [
        "PATH",
        "LANG",
        "TZ",
        "HOME",
        "USER",
        "LOGNAME",
        "LEASEHOLD_RUN",
        "LC_CTYPE",
        "LEASEHOLD_FLEET",
        "LEASEHOLD_SLOT",
        "LEASEHOLD_GENERATION",
        "LEASEHOLD_NODE",
        "PORT",
        "MINE",
        "EMPTY",
        "FROM_FILE",
        "QUOTED",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "LISTEN_PID",
        "NOTIFY_SOCKET",
    ];
    let strangers: Vec<&String> = env
        .keys()
        .filter(|name| !meant.contains(&name.as_str()))
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    let fds = seen["fds"].as_object().unwrap();
    let kind = |n: &str| {
        fds.get(n)
            .map(|at| at.as_str().unwrap().split(':').next().unwrap().to_owned())
            .unwrap_or_default()
    };
    assert_eq!(fds.len(), 5, "{fds:?}");
    assert_eq!(
        [kind("0"), kind("1"), kind("2"), kind("3"), kind("4")],
        ["/dev/null", "pipe", "pipe", "socket", "socket"],
        "{fds:?}"
    );
    assert_eq!(fds["1"], fds["2"]);
    assert_eq!(seen["pgid"], seen["pid"]);
    assert_ne!(seen["sid"], seen["pid"]);
    assert_eq!(seen["ppid"], rig.keeper());
    assert_eq!(
        seen["nofile"],
        json!([
            rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum
        ])
    );
    let plain = dump(&rig, "plain");
    assert_eq!(plain["sid"], plain["pid"]);
    assert_eq!(plain["fds"].as_object().unwrap().len(), 3, "{plain}");
    for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "PORT", "MINE"] {
        assert_eq!(plain["env"].get(name), None);
    }
    rig.drain(5_000);
}

/// Sockets come in the order of their names, each where it was said.
fn inherited_sockets_listen_where_they_should(mut rig: Rig) {
    let port = free_port();
    rig.configure(&format!("[fleet.web]\ncommand = [{{worker}}, \"serve\"]\nsocket.main.listen = \"127.0.0.1:{port}\"\n"));
    let status = rig.start_settled();
    let mut text = String::new();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
    assert_eq!(text.trim(), status.worker("web/0").unwrap().pid.to_string());
    rig.drain(5_000);
}

fn user_limits_and_privileges(mut rig: Rig) {
    if !is_root() {
        skip("only root may become another user");
        return;
    }
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "dump", "{notes}/web"]
        user = "nobody"
        group = "60"
        groups = ["12", "60"]
        umask = "0027"
        cwd = "/usr"
        no_new_privs = true
        limits = { nofile = 123, core = "1MiB", nice = 5, cpus = "0" }
        [fleet.rest]
        command = [{worker}, "dump", "{notes}/rest"]
        user = "nobody"
    "#,
    );
    rig.start_settled();
    let seen = dump(&rig, "web");
    assert_eq!(seen["uid"], json!([65534, 65534, 65534]));
    assert_eq!(seen["gid"], json!([60, 60, 60]));
    assert_eq!(seen["groups"], json!([12, 60]));
    assert_eq!(seen["umask"], 0o027);
    assert_eq!(seen["cwd"], "/usr");
    assert_eq!(seen["nofile"], json!([123, 123]));
    assert_eq!(seen["core"], json!([1 << 20, 1 << 20]));
    assert_eq!(seen["nice"], 5);
    assert_eq!(seen["cpus"], json!([0]));
    assert_eq!(seen["status"]["NoNewPrivs"], "1");
    assert_eq!(seen["status"]["CapEff"], "0000000000000000");
    assert_eq!(seen["env"]["USER"], "nobody");
    let rest = dump(&rig, "rest");
    assert_eq!(rest["status"]["NoNewPrivs"], "0");
    let gids: Vec<i64> = rest["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| g.as_i64().unwrap())
        .collect();
    assert!(!gids.contains(&0), "a group of ours was kept: {gids:?}");
    rig.drain(5_000);
}

/// Whatever the daemon itself was started with: blocked signals, ignored signals, open descriptors, secrets.
fn what_the_daemon_inherited_stops_at_the_daemon(mut rig: Rig) {
    let program = "import os, signal, sys\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2, signal.SIGRTMIN + 2})\n\
        for number in (signal.SIGUSR2, signal.SIGPIPE, signal.SIGQUIT, signal.SIGRTMIN + 1): signal.signal(number, signal.SIG_IGN)\n\
        os.dup2(os.open('/dev/zero', os.O_RDONLY), 77, True)\n\
        os.dup2(77, 5, True)\n\
        os.environ['SECRET'] = 'x'\n\
        os.execv(sys.argv[1], sys.argv[1:])\n";
    rig.wrapper = ["/usr/bin/env", "python3", "-c", program]
        .map(str::to_owned)
        .to_vec();
    rig.configure("[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", \"cat /proc/self/status; ls -l /proc/self/fd; env; echo END\"]\nrestart.policy = \"never\"\n[fleet.other]\ncommand = [{worker}, \"sleep\"]\n");
    rig.start();
    let text = until("it has told", 5_000, || {
        let text = fs::read_to_string(rig.log("web/0")).unwrap_or_default();
        if text.contains("END") {
            Ok(text)
        } else {
            Err(text)
        }
    });
    for name in ["SigBlk:", "SigIgn:", "SigPnd:", "ShdPnd:"] {
        assert_eq!(field(&text, name), "0000000000000000", "{name}");
    }
    assert!(
        !text.contains("/dev/zero") && !text.contains("SECRET"),
        "{text}"
    );
    assert_eq!(
        text.matches(" -> ").count(),
        4,
        "0, 1, 2 and what ls itself opened: {text}"
    );
    // And the daemon still hears what it was told to be deaf for.
    rig.drain(5_000);
}

/// Each with the step's name and the errno's, in `status` and on stderr; it goes on as soon as it can.
fn a_step_that_fails_is_named(mut rig: Rig) {
    let (program, cwd) = (rig.path("prog"), rig.path("cwd"));
    let prepare = || {
        // By rename: a file that is being tried cannot be written.
        let fresh = program.with_extension("new");
        fs::copy("/bin/sleep", &fresh).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&fresh, &program).unwrap();
        fs::create_dir_all(&cwd).unwrap();
    };
    prepare();
    rig.configure(
        r#"
        [fleet.web]
        command = ["{dir}/prog", "1000"]
        cwd = "{dir}/cwd"
        restart = { backoff = "50ms..100ms", burst = 100000 }
    "#,
    );
    rig.start_settled();
    let path = cwd.clone();
    type Harm<'a> = Box<dyn Fn() + 'a>;
    let harms: [(Harm<'_>, &str, &str); 4] = [
        (
            Box::new(|| fs::remove_file(&program).unwrap()),
            "execve",
            "ENOENT",
        ),
        (
            Box::new(|| fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap()),
            "execve",
            "EACCES",
        ),
        (
            Box::new(|| fs::write(&program, "no program").unwrap()),
            "execve",
            "ENOEXEC",
        ),
        (
            Box::new(|| fs::remove_dir(&path).unwrap()),
            "chdir",
            "ENOENT",
        ),
    ];
    for (harm, step, errno) in &harms {
        let pid = rig.status().worker("web/0").unwrap().pid;
        // A running program's file cannot be written, so it ends first, by a stop.
        rig.ok(&["stop", "web"]);
        harm();
        assert_eq!(rig.cli(&["start", "web", "--no-wait"]).code, 0);
        let status = rig.wait("it says why", 4_000, |status| {
            let worker = status.worker("web/0");
            worker.is_some_and(|w| {
                w.all["last_exit"]["reason"]
                    .as_str()
                    .is_some_and(|why| why.contains(step) && why.contains(errno))
            })
        });
        assert_ne!(status.worker("web/0").unwrap().pid, pid);
        // Printed by a thread of its own.
        crate::rig::until_true("stderr says so too", 2_000, || rig.stderr().contains(errno));
        prepare();
        rig.wait("it runs again", 5_000, |status| {
            status.worker("web/0").is_some_and(|w| w.ready)
        });
        if let Some(worker) = rig.status().worker("web/0") {
            crate::rig::pause(20);
            assert!(crate::rig::lives(worker.pid));
        }
    }
    rig.drain(5_000);
}

/// Hooks and probes see the worker's environment; a hook that fails keeps the worker from starting.
fn hooks_run_before_start_and_before_stop(mut rig: Rig) {
    rig.configure(r#"
        [fleet.web]
        command = [{worker}, "sleep"]
        hooks.pre_start = { run = ["/bin/sh", "-c", "echo start $LEASEHOLD_SLOT >> {notes}/hooks; exit $(cat {notes}/code)"] }
        hooks.pre_stop = { run = ["/bin/sh", "-c", "echo stop $LEASEHOLD_SLOT >> {notes}/hooks; sleep 1000"], timeout = "300ms" }
        restart = { backoff = "50ms..100ms", burst = 1000 }
    "#);
    fs::write(rig.path("notes/code"), "1").unwrap();
    rig.start();
    rig.wait("the hook keeps it away", 4_000, |_| {
        rig.notes("hooks").len() >= 3
    });
    assert!(rig.status().of("web").iter().all(|w| !w.ready));
    fs::write(rig.path("notes/code"), "0").unwrap();
    rig.settle(4_000);
    rig.ok(&["stop", "web"]);
    assert_eq!(
        rig.notes("hooks").last().map(String::as_str),
        Some("stop 0")
    );
    rig.drain(5_000);
}

/// What the kernel tells about the two of us while nothing happens: no zombie, no lost child.
#[test]
fn a_hundred_short_lives_leave_no_zombie() {
    let Some(mut rig) = Rig::new(crate::rig::Mode::Group) else {
        return;
    };
    rig.configure("[node]\nrestart_rate = \"1000/s\"\nrestart_burst = 1000\n[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", \"(sleep 0.01 &) ; exit 0\"]\nworkers = 4\nrestart = { backoff = \"1ms..5ms\", burst = 100000 }\n");
    rig.start();
    let status = rig.wait("a hundred lives", 15_000, |status| {
        status.of("web").iter().map(|w| w.generation).sum::<u64>() >= 100
    });
    rig.ok(&["stop", "web"]);
    let keeper = rig.keeper();
    until("no zombie", 3_000, || {
        let zombies: Vec<i32> = crate::rig::all_pids()
            .into_iter()
            .filter(|pid| {
                crate::rig::parent_of(*pid) == Some(keeper) && *pid != status.supervisor()
            })
            .collect();
        if zombies.is_empty() {
            Ok(())
        } else {
            Err(format!("{zombies:?}"))
        }
    });
    send(status.supervisor(), Signal::KILL);
    rig.wait("another supervisor", 2_000, |after| {
        after.supervisor() != status.supervisor()
    });
    let output = Command::new("ls")
        .arg(format!("/proc/{keeper}/fd"))
        .output()
        .unwrap();
    let count = String::from_utf8_lossy(&output.stdout).lines().count();
    assert!(count < 64 + 40, "{count} descriptors in the keeper");
    rig.drain(5_000);
}
