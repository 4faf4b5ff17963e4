//! What must hold for every input. A target panics where something does not.

use std::path::{Path, PathBuf};

use leasehold::{
    config::{self, Config, Faults, diff},
    driver,
    engine::{command::By, event::Note},
    http::route::{Asked, Door, Route, route},
    wire::{self, News, Op},
};

use crate::fake::FakeMachine;

pub(crate) const CONFIG_WORDS: &[&[u8]] = &[
    b"[fleet.web]\n",
    b"[fleet.api]\n",
    b"[defaults]\n",
    b"[node]\n",
    b"[http]\n",
    b"schema = 1\n",
    b"command = [\"/bin/true\"]\n",
    b"include = [\"conf.d/*.toml\"]\n",
    b"\n#=== conf.d/a.toml\n",
    b"${",
    b"${file:leasehold.toml}",
    b"${PORT}",
    b"${X:-",
    b"$$",
    b"{{ slot }}",
    b"{{",
    b"}}",
    b"{{ port }}",
    b"\"\"\"",
    b"'''",
    b"\\u0000",
    b"\\uD800",
    b"\xef\xbb\xbf",
    "\u{e4}".as_bytes(),
    "\u{1f600}".as_bytes(),
    b"\r\n",
    b"\t",
    b"1e400",
    b"0x",
    b"1979-05-27",
    b"inf",
    b"nan",
    b"[[",
    b"]]",
    b"{}",
    b"[]",
    b"a.b.c.d.e.f = 1\n",
    b"workers = ",
    b"ready = ",
    b"ready = \"delay=1s\"\n",
    b"stop.timeout = \"1s\"\n",
    b"drain.timeout = \"1s\"\n",
    b"log.rotate_size = ",
    b"log.max_size = ",
    b"\"1TiB\"",
    b"\"16777216TiB\"",
    b"\"9000000TiB\"",
    b"\"infinity\"",
    b"\"106751d\"",
    b"\"1s..2s\"",
    b"\"1-65535\"",
    b"port_range = ",
    b"limits.cpus = \"0-1023\"\n",
    b"limits.nofile = ",
    b"after = { api = \"ready\" }\n",
    b"after.web = \"started\"\n",
    b"socket.http.listen = \"127.0.0.1:80\"\n",
    b"restart.success = [0]\n",
    b"restart_rate = \"1/h\"\n",
    b"user = \"web\"\n",
    b"group = \"adm\"\n",
    b"hooks.pre_start.run = [\"/bin/true\"]\n",
    b"health = { http = \"http://a\" }\n",
    b"umask = \"0027\"\n",
    b"env = { A = 1 }\n",
    b"[cron.job]\n",
    b"schedule = \"",
    b"\"*/61 1-5/2,7 L jan-dec sun\"",
    b"@every",
    b"@reboot",
    b"timezone = \"Europe/Berlin\"\n",
    b"overlap = \"queue\"\n",
    b"catch_up = \"all\"\n",
    b"retry = { attempts = 3 }\n",
    b"singleton = { scope = \"node\" }\n",
    b"slots = 257\n",
];

/// `leasehold.toml`, then further files, each behind a line `#=== PATH`.
fn files(text: &str) -> Vec<(PathBuf, String)> {
    let mut parts = text.split("#=== ");
    let mut files = vec![(
        PathBuf::from("leasehold.toml"),
        parts.next().unwrap_or("").to_owned(),
    )];
    for part in parts {
        let (name, text) = part.split_once('\n').unwrap_or((part, ""));
        files.push((PathBuf::from(name.trim_end()), text.to_owned()));
    }
    files
}

/// Whatever is typed is understood, or refused at a place that is there.
pub(crate) fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        // Files that are not UTF-8 do not get further than `Surroundings::read`.
        return;
    };
    let machine = FakeMachine::with(files(text));
    match config::load(Path::new("leasehold.toml"), &machine) {
        Ok(accepted) => check_accepted(&accepted, &machine),
        Err(faults) => check_faults(&faults),
    }
}

fn check_accepted(accepted: &Config, machine: &FakeMachine) {
    let again = config::load(Path::new("leasehold.toml"), machine);
    assert_eq!(
        again.as_ref().ok(),
        Some(accepted),
        "the same text means something else the second time"
    );
    let text = serde_json::to_vec(accepted).unwrap();
    let kept: Config = serde_json::from_slice(&text).unwrap();
    assert_eq!(&kept, accepted, "what a restarted supervisor reads differs");
    assert_eq!(diff::diff(accepted, &kept), []);
    assert!(!accepted.fleets.is_empty());
    for spec in accepted.fleets.values() {
        let program = Path::new(&spec.process.program);
        assert!(
            config::Surroundings::is_executable(machine, program),
            "{program:?}"
        );
        assert!(spec.stop.timeout <= spec.stop.extend_max && !spec.stop.timeout.is_forever());
        assert!(spec.rollout.max_surge + spec.rollout.max_unavailable > 0);
        assert!(spec.log.max_size / 2 >= spec.log.rotate_size);
        if let Some(cron) = &spec.cron {
            // The engine has no way to say that a schedule means nothing.
            assert!(config::calendar::Calendar::of(cron).is_some(), "{cron:?}");
            assert!(cron.retry.attempts > 0 && spec.workers == 1);
        }
        for other in spec.after.keys() {
            assert!(
                accepted.fleets[other].rank < spec.rank,
                "a fleet stops before what it needs"
            );
        }
    }
}

fn check_faults(faults: &Faults) {
    assert!(!faults.list.is_empty(), "refused without a reason");
    for fault in &faults.list {
        assert!(!fault.message.is_empty());
        let Some((file, span)) = &fault.place else {
            // The main file cannot be read, or has no fleet at all: there is no better place than the file.
            assert!(
                matches!(fault.code, "E001" | "E104"),
                "{fault:?} is nowhere"
            );
            continue;
        };
        let text = &faults.sources[*file].text;
        assert!(
            text.get(span.clone()).is_some(),
            "{fault:?} lies outside its file, or cuts a character"
        );
    }
    for row in faults.rows() {
        assert_eq!(row.file.is_some(), row.line.is_some(), "{row:?}");
    }
    assert!(faults.render(true).len() >= faults.render(false).len());
}

pub(crate) const WIRE_WORDS: &[&[u8]] = &[
    b"\x01\x00",
    b"\x02\x00",
    b"\x00",
    b"\x01",
    b"\x02\x03",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\x80\x00",
    b"\x80\x80\x04",
    b"\x03web",
    b"\x00\x03web\x07",
    b"\x02\x03web\x07",
    b"\x00\x00",
    b"\x7f",
    b"\xff\xff\x03",
    b"\xc3\x28",
    b"\x0f",
];

/// Whatever the other process sends is a list of messages that means the same once it is sent on, or an error.
pub(crate) fn wire(input: &[u8]) {
    if let Ok(ops) = wire::decode::<Op>(input) {
        assert_eq!(wire::decode::<Op>(&wire::encode(&ops)).unwrap(), ops);
    }
    if let Ok(news) = wire::decode::<News>(input) {
        assert_eq!(wire::decode::<News>(&wire::encode(&news)).unwrap(), news);
    }
}

pub(crate) const NOTIFY_WORDS: &[&[u8]] = &[
    b"READY=1\n",
    b"STOPPING=1\n",
    b"WATCHDOG=1\n",
    b"WATCHDOG=trigger\n",
    b"EXTEND_TIMEOUT_USEC=",
    b"18446744073709551615",
    b"STATUS=",
    b"MAINPID=1\n",
    b"FDSTORE=1",
    b"\n",
    b"=",
    b"\x1b[2J",
    b"\x00",
    b"\xff",
    "\u{9b}".as_bytes(),
    "\u{2028}".as_bytes(),
    b"-1",
];

/// A worker says what it likes; no more notes come of it than it has lines, and none can write to a terminal.
pub(crate) fn notify(input: &[u8]) {
    let notes = driver::parse_note(input);
    let lines = input.split(|byte| *byte == b'\n').count();
    assert!(notes.len() <= lines);
    for note in notes {
        if let Note::Status(text) = note {
            assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
        }
    }
}

pub(crate) const HTTP_WORDS: &[&[u8]] = &[
    b"tcp ",
    b"unix ",
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"/",
    b"//",
    b"/livez",
    b"/readyz",
    b"/fleets/",
    b"/v1/",
    b"status",
    b"events",
    b"config",
    b"fleets",
    b"scale",
    b"signal",
    b"reload",
    b"plan",
    b"start",
    b"stop",
    b"restart",
    b"crons",
    b"singletons/",
    b"release",
    b"/run",
    b"?next=1001",
    b"{\"slot\":1}",
    b"?verbose",
    b"&",
    b"=",
    b"after=18446744073709551616",
    b"%2f",
    b"..",
    b"host: ",
    b"localhost",
    b"[::1]:80",
    b"127.0.0.1:",
    b"evil.example",
    b"accept: text/event-stream\n",
    b"\n\n",
    b"{\"names\":[\"web\"]}",
    b"{\"workers\":4294967296}",
    b"{\"auto\":true}",
    b"\"signal\":\"RTMIN+30\"",
    b"[[[[[[[[[[[[[[[[",
    b"{\"\":",
    b"null",
    b"\xff",
    b"\"\\ud800\"",
];

/// `DOOR METHOD TARGET`, header lines `host:` and `accept:`, an empty line, the body.
pub(crate) fn http(input: &[u8]) {
    let middle = input.windows(2).position(|two| two == b"\n\n");
    let (head, body) = middle.map_or((input, &b""[..]), |at| (&input[..at], &input[at + 2..]));
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split('\n');
    let mut words = lines.next().unwrap_or("").splitn(3, ' ');
    let mut word = || words.next().unwrap_or("");
    let door = if word() == "tcp" {
        Door::Tcp
    } else {
        Door::Unix
    };
    let (method, target) = (word(), word());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let header = |name: &str| {
        head.split('\n')
            .skip(1)
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let asked = Asked {
        method,
        path,
        query,
        host: header("host:"),
        accept: header("accept:"),
        body,
        by: By::default(),
    };
    match route(door, &asked) {
        Ok(Route::Command(_)) => assert!(
            door == Door::Unix && method == "POST",
            "{asked:?} must not change anything"
        ),
        Ok(_) => assert!(matches!(method, "GET" | "HEAD"), "{asked:?}"),
        Err(refusal) => {
            assert!((400..500).contains(&refusal.status), "{refusal:?}");
            assert!(!refusal.why.is_empty());
        }
    }
}
