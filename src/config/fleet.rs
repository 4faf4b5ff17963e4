//! One `[fleet.NAME]`.

use std::{collections::BTreeMap, path::Path};

use crate::{
    config::{
        document::{Kind, Section},
        fault::nearest,
        spec::*,
        units,
    },
    id::{FleetName, Revision},
    time::Span,
    wire::{Credentials, Target},
};

/// Most workers of one fleet.
const WORKERS_MAX: i64 = 20_000;
/// Names that `{{ … }}` may hold in commands, environments and probe addresses.
const PLACEHOLDERS: [&str; 4] = ["fleet", "slot", "node", "port"];

/// Reads a fleet; the dependency ranks are filled in later, when all fleets are known.
pub(super) fn fleet(section: &Section<'_, '_>) -> Option<FleetSpec> {
    not_here_yet(section);
    let port_range = section.parsed(
        "port_range",
        "a range such as \"18000-18063\"",
        units::port_range,
    );
    let process = process(section, port_range)?;
    let stop = stop(section);
    let workers = section.integer("workers", 0, WORKERS_MAX).unwrap_or(1) as u32;
    if let Some((low, high)) = port_range.filter(|(low, high)| u32::from(high - low) + 1 < workers)
    {
        let have = u32::from(high - low) + 1;
        let message = format!(
            "{} holds {have} ports for {workers} workers",
            section.name("port_range")
        );
        section.fault(
            "E101",
            "port_range",
            message,
            "one port for each slot, and one more for each of rollout.max_surge",
        );
    }
    let mut spec = FleetSpec {
        revision: Revision::default(),
        workers,
        sockets: sockets(section),
        ready: ready(section, &process),
        start: start(section),
        health: health(section, &process),
        restart: restart(section),
        stop,
        rollout: rollout(section),
        after: after(section),
        rank: 0,
        log: log(section),
        process,
    };
    spec.revision = revision(&spec);
    check_together(section, &spec);
    section.finish();
    Some(spec)
}

/// Keys of the design that this version does not have: better refused than ignored.
fn not_here_yet(section: &Section<'_, '_>) {
    for key in ["singleton", "scale", "publish"] {
        if section.value(key).is_some() {
            let message = format!("`{}` is not available in this version", section.name(key));
            section.fault(
                "E102",
                key,
                message,
                "remove it; fleets of a fixed size work",
            );
        }
    }
}

/// What a spawn looks like, as a number: everything that makes a running worker differ from a new one.
fn revision(spec: &FleetSpec) -> Revision {
    let sockets: Vec<(&String, String)> = spec
        .sockets
        .iter()
        .map(|(name, s)| (name, s.listen.to_string()))
        .collect();
    let watchdog = spec.health.watchdog;
    let text = serde_json::to_vec(&(&spec.process, sockets, watchdog, spec.log.file))
        .expect("a specification has only string keys and finite numbers");
    Revision::of(&text)
}

fn process(section: &Section<'_, '_>, port_range: Option<(u16, u16)>) -> Option<ProcessSpec> {
    let user = section.string("user");
    let group = section.string("group");
    let groups = section
        .strings("groups")
        .map(|list| list.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
    let credentials = credentials(
        section,
        user.as_deref(),
        group.as_deref(),
        groups.as_deref(),
    );
    let cwd = section
        .string("cwd")
        .or_else(|| section.string("working_dir"));
    let cwd = cwd.map(|dir| absolute(section.base(), &dir));
    let env = environment(section, user.as_deref(), credentials.as_ref());
    let search = env.get("PATH").cloned();
    let command = command(section, "command", search.as_deref(), cwd.as_deref());
    let limits = section.section("limits");
    let hooks = section.section("hooks");
    let hook = |key| hook(&hooks, key, search.as_deref(), cwd.as_deref());
    let (pre_start, pre_stop) = (hook("pre_start"), hook("pre_stop"));
    hooks.finish();
    let rlimits = rlimits(&limits);
    let cgroup_limits = cgroup_limits(&limits);
    let nice = limits.integer("nice", -20, 19).map(|n| n as i32);
    let affinity = affinity(&limits);
    limits.finish();
    let env_files = section.strings("env_file").unwrap_or_default();
    let (program, argv) = command?;
    Some(ProcessSpec {
        program,
        argv,
        cwd,
        env,
        env_files: env_files
            .into_iter()
            .map(|(path, _)| env_file(section.base(), &path))
            .collect(),
        user: credentials,
        umask: section.parsed("umask", "an octal mode such as \"0027\"", octal),
        rlimits,
        nice,
        affinity,
        session: section.boolean("session").unwrap_or(false),
        no_new_privs: section.boolean("no_new_privs").unwrap_or(false),
        cgroup_limits,
        port_range,
        stderr_separate: section
            .section("log")
            .word("stderr", &[("merge", false), ("separate", true)])
            .unwrap_or(false),
        pre_start,
        pre_stop,
    })
}

fn env_file(base: &Path, typed: &str) -> EnvFile {
    let (path, optional) = typed
        .strip_prefix('-')
        .map_or((typed, false), |path| (path, true));
    EnvFile {
        path: absolute(base, path),
        optional,
    }
}

fn credentials(
    section: &Section<'_, '_>,
    user: Option<&str>,
    group: Option<&str>,
    groups: Option<&[String]>,
) -> Option<Credentials> {
    let around = section.reader.around;
    let Some(user) = user else {
        if group.is_some() || groups.is_some() {
            let message = format!("{} without a user", section.name("group"));
            section.fault(
                "E110",
                "group",
                message,
                "set `user` too: groups are changed together with it",
            );
        }
        return None;
    };
    match around.credentials(user, group, groups) {
        Ok(found) => {
            if !around.is_root() {
                let message = format!(
                    "{} needs root: only root may become another user",
                    section.name("user")
                );
                section.fault(
                    "E111",
                    "user",
                    message,
                    "remove it, or run the daemon as root",
                );
            }
            Some(found)
        }
        Err(why) => {
            section.fault(
                "E112",
                "user",
                format!("{}: {why}", section.name("user")),
                "create it (sysusers.d, useradd), or name another",
            );
            None
        }
    }
}

/// A clean environment: what a login would have, then `env`.
fn environment(
    section: &Section<'_, '_>,
    user: Option<&str>,
    credentials: Option<&Credentials>,
) -> BTreeMap<String, String> {
    let around = section.reader.around;
    let mut env = BTreeMap::new();
    env.insert(
        "PATH".to_owned(),
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    );
    for name in ["PATH", "LANG", "TZ"] {
        if let Some(value) = around.variable(name) {
            env.insert(name.to_owned(), value);
        }
    }
    match user
        .filter(|_| credentials.is_some())
        .and_then(|user| around.home(user))
    {
        Some((home, login)) => env.extend([
            ("HOME".to_owned(), home),
            ("USER".to_owned(), login.clone()),
            ("LOGNAME".to_owned(), login),
        ]),
        None => {
            for name in ["HOME", "USER", "LOGNAME"] {
                env.extend(around.variable(name).map(|value| (name.to_owned(), value)));
            }
        }
    }
    let given = section.section("env");
    for (name, place, value) in given.entries() {
        if name.is_empty() || name.contains('=') || name.contains('\0') {
            let message = format!("{name:?} cannot be the name of an environment variable");
            given.reader.fault(
                "E113",
                Some(place),
                message,
                "this name",
                "a name has no `=`".to_owned(),
            );
        } else if name.starts_with("LEASEHOLD_") {
            let message = format!("`{name}` is set by leasehold itself");
            given.reader.fault(
                "E114",
                Some(place),
                message,
                "this name",
                "choose a name that does not begin with LEASEHOLD_".to_owned(),
            );
        } else if let Some(text) = given.entry_string(&name, &value) {
            placeholders(section, "env", &text);
            env.insert(name, text);
        }
    }
    env
}

/// `["program", "argument", …]`, the program found as a shell would find it, but now, so that `check` can say that it is missing.
fn command(
    section: &Section<'_, '_>,
    key: &'static str,
    search: Option<&str>,
    cwd: Option<&str>,
) -> Option<(String, Vec<String>)> {
    let Some(value) = section.value(key) else {
        let message = format!(
            "{} has no `{key}`",
            if section.path.is_empty() {
                "this table"
            } else {
                &section.path
            }
        );
        section.reader.fault(
            "E120",
            section.place(),
            message,
            "",
            format!("add {key} = [\"/path/to/program\", \"argument\"]"),
        );
        return None;
    };
    if let Kind::String(text) = &value.kind {
        let words: Vec<String> = text
            .split_whitespace()
            .map(|word| format!("{word:?}"))
            .collect();
        let message = format!(
            "{} must be an array: there is no shell to split it",
            section.name(key)
        );
        section.fault(
            "E121",
            key,
            message,
            &format!("write {key} = [{}]", words.join(", ")),
        );
        return None;
    }
    let argv: Vec<String> = section
        .strings(key)?
        .into_iter()
        .map(|(word, _)| word)
        .collect();
    let Some(program) = argv.first().filter(|program| !program.is_empty()) else {
        section.fault(
            "E122",
            key,
            format!("{} is empty", section.name(key)),
            "its first word is the program",
        );
        return None;
    };
    for word in &argv {
        placeholders(section, key, word);
    }
    let found = find_program(section, program, search, cwd);
    if found.is_none() {
        let (message, help) = if program.contains('/') {
            (
                format!("{program} is not an executable file"),
                "correct the path, or make the file executable (chmod +x)".to_owned(),
            )
        } else {
            let path = search.unwrap_or("");
            (
                format!("`{program}` is in no directory of PATH"),
                format!("give its full path; PATH is {path}"),
            )
        };
        section.fault("E123", key, message, &help);
    }
    Some((found.unwrap_or_else(|| program.clone()), argv))
}

fn find_program(
    section: &Section<'_, '_>,
    program: &str,
    search: Option<&str>,
    cwd: Option<&str>,
) -> Option<String> {
    let around = section.reader.around;
    if program.contains('/') {
        // Relative to the working directory, as execve(2) after chdir(2) will have it; without one, to the configuration.
        let base = cwd.map_or_else(|| section.base().to_owned(), Into::into);
        let path = base.join(program);
        return around
            .is_executable(&path)
            .then(|| path.display().to_string());
    }
    let directories = search
        .unwrap_or("")
        .split(':')
        .filter(|dir| dir.starts_with('/'));
    directories
        .map(|dir| format!("{dir}/{program}"))
        .find(|path| around.is_executable(Path::new(path)))
}

fn hook(
    hooks: &Section<'_, '_>,
    key: &'static str,
    search: Option<&str>,
    cwd: Option<&str>,
) -> Option<HookSpec> {
    let section = hooks.section(key);
    if section.is_absent() {
        return None;
    }
    let spec = command(&section, "run", search, cwd).map(|(program, argv)| HookSpec {
        program,
        argv,
        timeout: section.span("timeout").unwrap_or(Span::secs(10)),
        abort: section
            .word("on_error", &[("abort", true), ("ignore", false)])
            .unwrap_or(key == "pre_start"),
    });
    section.finish();
    spec
}

fn placeholders(section: &Section<'_, '_>, key: &'static str, text: &str) {
    let mut rest = text;
    while let Some((name, tail)) = rest
        .split_once("{{")
        .and_then(|(_, tail)| tail.split_once("}}"))
    {
        let name = name.trim();
        if !PLACEHOLDERS.contains(&name) {
            let help = nearest(name, PLACEHOLDERS).map_or_else(
                || format!("there are {{{{ {} }}}}", PLACEHOLDERS.join(" }}, {{ ")),
                |near| format!("did you mean {{{{ {near} }}}}?"),
            );
            section.fault(
                "E124",
                key,
                format!("unknown placeholder {{{{ {name} }}}} in {text:?}"),
                &help,
            );
        }
        rest = tail;
    }
}

fn sockets(section: &Section<'_, '_>) -> BTreeMap<String, SocketSpec> {
    let all = section.section("socket");
    let mut sockets = BTreeMap::new();
    for (name, _, value) in all.entries() {
        let Some(socket) = all.entry_section(&name, &value) else {
            continue;
        };
        let listen = socket.parsed(
            "listen",
            "an address such as \"127.0.0.1:8080\" or an absolute path",
            |text| {
                let tcp = text.parse().ok().map(ListenAddress::Tcp);
                tcp.or_else(|| {
                    text.starts_with('/')
                        .then(|| ListenAddress::Unix(text.to_owned()))
                })
            },
        );
        if socket.value("listen").is_none() {
            socket.fault(
                "E130",
                "listen",
                format!("{} has no `listen`", socket.path),
                "add listen = \"127.0.0.1:8080\"",
            );
        }
        let spec = listen.map(|listen| SocketSpec {
            listen,
            backlog: socket.integer("backlog", 1, 65_535).unwrap_or(1024) as u32,
            reuse_port: socket.boolean("reuse_port").unwrap_or(false),
            mode: socket.parsed("mode", "an octal mode such as \"0660\"", octal),
        });
        socket.finish();
        sockets.extend(spec.map(|spec| (name, spec)));
    }
    if sockets.len() > crate::wire::PASS_MAX {
        let most = crate::wire::PASS_MAX;
        section.fault(
            "E131",
            "socket",
            format!(
                "{} has {} sockets; a worker can get {most}",
                section.path,
                sockets.len()
            ),
            "use fewer",
        );
    }
    sockets
}

fn ready(section: &Section<'_, '_>, process: &ProcessSpec) -> ReadySpec {
    let Some(value) = section.value("ready") else {
        return ReadySpec::Spawned;
    };
    match &value.kind {
        Kind::String(text) if text == "notify" => ReadySpec::Notify,
        Kind::String(text) if text == "spawned" => ReadySpec::Spawned,
        Kind::String(text) if text.starts_with("delay=") => {
            let delay = text.strip_prefix("delay=").and_then(units::span);
            if delay.is_none() {
                section.fault(
                    "E140",
                    "ready",
                    format!("{text:?} has no duration"),
                    "write \"delay=2s\"",
                );
            }
            delay.map_or(ReadySpec::Spawned, ReadySpec::Delay)
        }
        Kind::Table(_) => {
            let table = section.section("ready");
            let probe = probe(&table, process, Span::millis(500));
            table.finish();
            probe.map_or(ReadySpec::Spawned, ReadySpec::Probe)
        }
        _ => {
            let help = "\"notify\", \"spawned\", \"delay=2s\", or a probe such as { tcp = \"127.0.0.1:8080\" }";
            section.fault(
                "E141",
                "ready",
                format!("{} has a value it does not know", section.name("ready")),
                help,
            );
            ReadySpec::Spawned
        }
    }
}

/// `{ tcp | http | exec = …, interval, timeout, fail, pass }`.
fn probe(table: &Section<'_, '_>, process: &ProcessSpec, interval: Span) -> Option<ProbeSpec> {
    let search = process.env.get("PATH").map(String::as_str);
    let timeout = table.span("timeout").unwrap_or(Span::secs(2));
    let mut kinds = Vec::new();
    if let Some(address) = table.parsed("tcp", "HOST:PORT", probe_address) {
        placeholders(table, "tcp", &address);
        kinds.push(ProbeKind::Tcp(address));
    }
    if let Some((address, path)) = table.parsed(
        "http",
        "a URL such as \"http://127.0.0.1:8080/healthz\"",
        probe_url,
    ) {
        placeholders(table, "http", &address);
        kinds.push(ProbeKind::Http { address, path });
    }
    if table.value("exec").is_some() {
        let run = command(table, "exec", search, process.cwd.as_deref());
        kinds.extend(run.map(|(program, argv)| {
            ProbeKind::Exec(HookSpec {
                program,
                argv,
                timeout,
                abort: true,
            })
        }));
    }
    if kinds.len() > 1 {
        table.fault(
            "E142",
            "http",
            format!("{} asks in more than one way", table.path),
            "choose one of tcp, http, exec",
        );
    }
    Some(ProbeSpec {
        kind: kinds.into_iter().next()?,
        interval: table
            .span("interval")
            .unwrap_or(interval)
            .max(Span::millis(10)),
        timeout,
        fail: table.integer("fail", 1, 1_000).unwrap_or(3) as u32,
        pass: table.integer("pass", 1, 1_000).unwrap_or(1) as u32,
    })
}

fn probe_address(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let port_ok = port.contains("{{") || port.parse::<u16>().is_ok_and(|port| port > 0);
    (!host.is_empty() && port_ok).then(|| text.to_owned())
}

fn probe_url(text: &str) -> Option<(String, String)> {
    let rest = text.strip_prefix("http://")?;
    let (address, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let address = if address.contains(':') {
        address.to_owned()
    } else {
        format!("{address}:80")
    };
    let clean = !path.contains(|c: char| c.is_whitespace() || c.is_control());
    probe_address(&address)
        .filter(|_| clean)
        .map(|address| (address, path.to_owned()))
}

fn start(section: &Section<'_, '_>) -> StartSpec {
    let table = section.section("start");
    let spec = StartSpec {
        timeout: table.span("timeout").unwrap_or(Span::secs(60)),
        parallel: table.integer("parallel", 0, 10_000).unwrap_or(0) as u32,
    };
    table.finish();
    spec
}

fn health(section: &Section<'_, '_>, process: &ProcessSpec) -> HealthSpec {
    let table = section.section("health");
    if table.is_absent() {
        return HealthSpec::default();
    }
    let spec = HealthSpec {
        watchdog: table.span("watchdog"),
        probe: probe(&table, process, Span::secs(5)),
        restarts_per_minute: table
            .integer("restarts_per_minute", 0, 100_000)
            .unwrap_or(6) as u32,
    };
    table.finish();
    spec
}

fn restart(section: &Section<'_, '_>) -> RestartSpec {
    let table = section.section("restart");
    let policies = [
        ("always", RestartPolicy::Always),
        ("on-failure", RestartPolicy::OnFailure),
        ("never", RestartPolicy::Never),
    ];
    let backoff = table.parsed(
        "backoff",
        "a range such as \"500ms..60s\"",
        units::span_range,
    );
    let (backoff_min, backoff_max) = backoff.unwrap_or((Span::millis(200), Span::secs(30)));
    if backoff_min > backoff_max {
        table.fault(
            "E150",
            "backoff",
            format!("{} runs backwards", table.name("backoff")),
            "write the shorter pause first",
        );
    }
    let success = table.value("success").map(|value| match &value.kind {
        Kind::Array(items) => items
            .iter()
            .filter_map(|item| match item.kind {
                Kind::Integer(n) if (0..=255).contains(&n) => Some(n as i32),
                _ => {
                    let message = format!(
                        "{} holds something that is not an exit code",
                        table.name("success")
                    );
                    table.fault(
                        "E151",
                        "success",
                        message,
                        "exit codes are integers from 0 to 255",
                    );
                    None
                }
            })
            .collect(),
        _ => {
            table.fault(
                "E151",
                "success",
                format!("{} must be an array", table.name("success")),
                "write success = [0, 3]",
            );
            Vec::new()
        }
    });
    let spec = RestartSpec {
        policy: table
            .word("policy", &policies)
            .unwrap_or(RestartPolicy::Always),
        backoff_min,
        backoff_max,
        burst: table.integer("burst", 1, 1_000_000).unwrap_or(10) as u32,
        window: table.span("window").unwrap_or(Span::secs(60)),
        healthy: table.span("healthy").unwrap_or(Span::secs(10)),
        give_up: table
            .word("then", &[("retry", false), ("fail", true)])
            .unwrap_or(false),
        success: success.unwrap_or_else(|| vec![0]),
    };
    table.finish();
    spec
}

fn stop(section: &Section<'_, '_>) -> StopSpec {
    let (table, drain) = (section.section("stop"), section.section("drain"));
    if table.has_own("timeout") && drain.has_own("timeout") {
        let message = format!(
            "{} and {} say the same thing twice",
            table.name("timeout"),
            drain.name("timeout")
        );
        drain.fault("E160", "timeout", message, "keep one of them");
    }
    let timeout = drain
        .span("timeout")
        .or_else(|| table.span("timeout"))
        .unwrap_or(Span::secs(30));
    let spec = StopSpec {
        signal: table
            .parsed(
                "signal",
                "a signal such as \"SIGTERM\" or \"SIGQUIT\"",
                units::signal,
            )
            .unwrap_or(15),
        to: table
            .word(
                "to",
                &[("leader", Target::Leader), ("group", Target::Group)],
            )
            .unwrap_or(Target::Leader),
        timeout,
        extend_max: table
            .span("extend_max")
            .unwrap_or(Span::secs(600))
            .max(timeout),
        deregister_delay: drain
            .span("deregister_delay")
            .or_else(|| table.span("deregister_delay"))
            .unwrap_or(Span::ZERO),
    };
    table.finish();
    drain.finish();
    spec
}

fn rollout(section: &Section<'_, '_>) -> RolloutSpec {
    let table = section.section("rollout");
    let spec = RolloutSpec {
        max_surge: table.integer("max_surge", 0, 10_000).unwrap_or(0) as u32,
        max_unavailable: table.integer("max_unavailable", 0, 10_000).unwrap_or(1) as u32,
        min_ready: table.span("min_ready").unwrap_or(Span::ZERO),
        rollback: table
            .word("on_failure", &[("stop", false), ("rollback", true)])
            .unwrap_or(false),
    };
    if spec.max_surge == 0 && spec.max_unavailable == 0 {
        let message = format!(
            "{} allows neither one more nor one fewer worker: nothing could ever be replaced",
            table.path
        );
        table.fault(
            "E170",
            "max_surge",
            message,
            "set max_surge or max_unavailable to 1",
        );
    }
    table.finish();
    spec
}

fn after(section: &Section<'_, '_>) -> BTreeMap<FleetName, AfterState> {
    let table = section.section("after");
    let mut after = BTreeMap::new();
    for (name, place, value) in table.entries() {
        let state = match &value.kind {
            Kind::String(text) if text == "ready" => Some(AfterState::Ready),
            Kind::String(text) if text == "started" => Some(AfterState::Started),
            _ => None,
        };
        match (name.parse::<FleetName>(), state) {
            (Ok(fleet), Some(state)) => {
                after.insert(fleet, state);
            }
            (_, None) => {
                let message = format!(
                    "{}: a fleet can be waited for until it is \"ready\" or \"started\"",
                    table.name(&name)
                );
                table.reader.fault(
                    "E180",
                    Some(place),
                    message,
                    "",
                    format!("write {name} = \"ready\""),
                );
            }
            (Err(why), _) => table.reader.fault(
                "E103",
                Some(place),
                format!("{name:?} is not a name: {why}"),
                "",
                String::new(),
            ),
        }
    }
    after
}

fn log(section: &Section<'_, '_>) -> LogSpec {
    let table = section.section("log");
    table.value("stderr");
    let spec = LogSpec {
        file: table
            .word("sink", &[("file", true), ("none", false)])
            .unwrap_or(true),
        rotate_size: table.size("rotate_size").unwrap_or(8 << 20),
        max_size: table.size("max_size").unwrap_or(64 << 20),
        drop: table
            .word("on_full", &[("block", false), ("drop", true)])
            .unwrap_or(false),
        buffer: table.size("buffer").unwrap_or(65_536),
    };
    if spec.rotate_size < 4096 || spec.max_size / 2 < spec.rotate_size {
        let message = format!(
            "{}: rotating at {} bytes below a cap of {} cannot keep a whole file",
            table.path, spec.rotate_size, spec.max_size
        );
        table.fault(
            "E190",
            "max_size",
            message,
            "rotate_size is at least 4KiB and max_size at least twice rotate_size",
        );
    }
    if !(4096..=16 << 20).contains(&spec.buffer) {
        table.fault(
            "E191",
            "buffer",
            format!("{} is out of bounds", table.name("buffer")),
            "from 4KiB to 16MiB",
        );
    }
    table.finish();
    spec
}

fn rlimits(limits: &Section<'_, '_>) -> Vec<(u32, u64, u64)> {
    let counts: [(&'static str, u32); 2] = [
        ("nofile", libc::RLIMIT_NOFILE),
        ("nproc", libc::RLIMIT_NPROC),
    ];
    let sizes: [(&'static str, u32); 6] = [
        ("core", libc::RLIMIT_CORE),
        ("fsize", libc::RLIMIT_FSIZE),
        ("stack", libc::RLIMIT_STACK),
        ("memlock", libc::RLIMIT_MEMLOCK),
        ("as", libc::RLIMIT_AS),
        ("data", libc::RLIMIT_DATA),
    ];
    let mut all = Vec::new();
    for (key, resource) in counts {
        all.extend(
            limits
                .integer(key, 0, i64::MAX)
                .map(|n| (resource, n as u64, n as u64)),
        );
    }
    for (key, resource) in sizes {
        let size = limits.parsed(key, "a size such as \"64MiB\", or \"infinity\"", |text| {
            if text == "infinity" {
                Some(u64::MAX)
            } else {
                units::size(text)
            }
        });
        all.extend(size.map(|n| (resource, n, n)));
    }
    let hard = limits.reader.around.nofile_hard();
    if let Some((_, asked, _)) = all
        .iter()
        .find(|(resource, asked, _)| *resource == libc::RLIMIT_NOFILE && *asked > hard)
    {
        let message = format!(
            "{} = {asked} is above the hard limit of {hard}",
            limits.name("nofile")
        );
        limits.fault(
            "E195",
            "nofile",
            message,
            "lower it, or raise LimitNOFILE= of the unit",
        );
    }
    all
}

fn cgroup_limits(limits: &Section<'_, '_>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (key, file) in [("memory_high", "memory.high"), ("memory_max", "memory.max")] {
        all.extend(limits.size(key).map(|n| (file.to_owned(), n.to_string())));
    }
    all.extend(
        limits
            .integer("tasks", 1, i64::MAX)
            .map(|n| ("pids.max".to_owned(), n.to_string())),
    );
    all.extend(
        limits
            .integer("cpu_weight", 1, 10_000)
            .map(|n| ("cpu.weight".to_owned(), n.to_string())),
    );
    all
}

fn affinity(limits: &Section<'_, '_>) -> Vec<u32> {
    let cpus = limits.reader.around.cpus();
    let list = limits.parsed("cpus", "a list such as \"0-1,3\"", |text| {
        let mut all = Vec::new();
        for part in text.split(',') {
            let (low, high) = part
                .trim()
                .split_once('-')
                .unwrap_or((part.trim(), part.trim()));
            all.extend(
                low.parse::<u32>().ok()?..=high.parse::<u32>().ok().filter(|high| *high < 1024)?,
            );
        }
        (!all.is_empty()).then_some(all)
    });
    let list = list.unwrap_or_default();
    if !list.is_empty() && list.iter().all(|cpu| *cpu >= cpus) {
        limits.fault(
            "E196",
            "cpus",
            format!("{} names no CPU of this machine", limits.name("cpus")),
            &format!("there are 0 to {}", cpus - 1),
        );
    }
    list
}

fn check_together(section: &Section<'_, '_>, spec: &FleetSpec) {
    let uses_port = |text: &str| text.contains("{{ port }}") || text.contains("{{port}}");
    let asks = spec.process.argv.iter().any(|word| uses_port(word))
        || spec.process.env.values().any(|value| uses_port(value));
    if asks && spec.process.port_range.is_none() {
        let message = format!("{} uses {{{{ port }}}} without a port_range", section.path);
        section.fault(
            "E197",
            "command",
            message,
            "add port_range = \"18000-18063\"",
        );
    }
    if spec.stop.timeout.is_forever() {
        section.fault("E198", "stop", format!("{} would wait for ever", section.name("stop.timeout")), "give a ceiling; a worker may ask for more with EXTEND_TIMEOUT_USEC, up to stop.extend_max");
    }
}

fn absolute(base: &Path, typed: &str) -> String {
    base.join(typed).display().to_string()
}

fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
}
