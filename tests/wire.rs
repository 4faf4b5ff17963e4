//! The exact bytes of wire version 1. A keeper of one release and a supervisor of the next must understand each other, so these
//! lines never change: what is new is appended to `Op` and `News`, and gets lines of its own here.
//!
//! A line is a packet that holds one message: version, number of messages (1), the message.

#[path = "fuzz/hex.rs"]
mod hex;

use std::fmt::Debug;

use leasehold::{
    id::{FleetName, Generation, WorkerId},
    time::{Clocks, Moment, Span},
    wire::*,
};
use serde::{Deserialize, Serialize};

fn fleet() -> FleetName {
    "web".parse().unwrap()
}

fn worker() -> WorkerId {
    WorkerId::new(fleet(), 3)
}

fn slot() -> RowKey {
    RowKey::Slot(worker())
}

fn task(kind: TaskKind) -> RowKey {
    RowKey::Task(worker(), kind)
}

fn stop() -> StopRecord {
    StopRecord {
        signal: 15,
        to: Target::Group,
        timeout: Span::secs(30),
        rank: 300,
    }
}

fn spec() -> SpawnSpec {
    SpawnSpec {
        program: "/bin/w".to_owned(),
        argv: vec!["w".to_owned(), "-v".to_owned()],
        env: vec!["A=1".to_owned()],
        cwd: Some("/srv".to_owned()),
        user: Some(Credentials {
            uid: 1000,
            gid: 100,
            groups: vec![4, 27],
        }),
        umask: Some(0o027),
        rlimits: vec![(7, 1024, u64::MAX)],
        nice: Some(-5),
        affinity: vec![0, 2],
        session: true,
        no_new_privs: false,
        cgroup_limits: vec![("pids.max".to_owned(), "9".to_owned())],
        stdout: Some("o".to_owned()),
        stderr: None,
        pass: vec!["s".to_owned()],
        page: Some(PageSpec {
            fence: 1 << 40,
            epoch: 0,
            role: 1,
            timed: true,
        }),
        dies_with_keeper: true,
        ends_with_worker: true,
    }
}

fn asked() -> Asked {
    Asked {
        stopping: Stopping::Drain,
        since: Moment(1_000_000_007),
        reloads: 2,
        reopens: 1,
        by: Some((77, 1000)),
    }
}

fn row(key: RowKey, process: Process, body: Option<Vec<u8>>) -> News {
    let header = Header {
        generation: Generation(300),
        process,
        stop: stop(),
    };
    News::Row { key, header, body }
}

fn exit(status: ExitStatus) -> ExitRecord {
    ExitRecord {
        pid: 4242,
        status,
        at: Moment(u64::MAX),
        since: Moment(1 << 40),
    }
}

fn alive(containment: Containment) -> Process {
    Process::Alive(Alive {
        pid: 4242,
        start_ticks: 987_654,
        since: Moment(1 << 40),
        containment,
    })
}

/// Whether the list of examples lacks a variant: the compiler asks for it here when there is a new one.
fn op_number(op: &Op) -> usize {
    match op {
        Op::Put { .. } => 0,
        Op::Drop { .. } => 1,
        Op::Spawn { .. } => 2,
        Op::Signal { .. } => 3,
        Op::Kill { .. } => 4,
        Op::Forget { .. } => 5,
        Op::Stop { .. } => 6,
        Op::Hold { .. } => 7,
        Op::Release { .. } => 8,
        Op::Pong { .. } => 9,
        Op::Notify { .. } => 10,
        Op::Exit { .. } => 11,
        Op::Echo { .. } => 12,
        Op::Promote { .. } => 13,
    }
}
const OPS: usize = 14;

fn news_number(news: &News) -> usize {
    match news {
        News::Welcome(_) => 0,
        News::Held { .. } => 1,
        News::Row { .. } => 2,
        News::Caught => 3,
        News::Node(_) => 4,
        News::Refused { .. } => 5,
        News::Ping { .. } => 6,
        News::Echo { .. } => 7,
    }
}
const NEWS: usize = 8;

fn ops() -> Vec<(&'static str, Op)> {
    let (generation, body) = (Generation(300), vec![1, 255]);
    vec![
        (
            "PUT_NODE",
            Op::Put {
                key: RowKey::Node,
                body: vec![],
            },
        ),
        (
            "PUT_FLEET",
            Op::Put {
                key: RowKey::Fleet(fleet()),
                body: body.clone(),
            },
        ),
        ("DROP", Op::Drop { key: slot() }),
        (
            "SPAWN",
            Op::Spawn {
                key: slot(),
                after: generation,
                body: body.clone(),
                stop: stop(),
                deadline: Some(Span::secs(10)),
                spec: Box::new(spec()),
            },
        ),
        (
            "SPAWN_LEAST",
            Op::Spawn {
                key: task(TaskKind::PreStart),
                after: Generation(0),
                body: vec![],
                stop: StopRecord::default(),
                deadline: None,
                spec: Box::default(),
            },
        ),
        (
            "SIGNAL",
            Op::Signal {
                key: slot(),
                generation,
                signal: 1,
                to: Target::Leader,
                body: body.clone(),
            },
        ),
        (
            "KILL",
            Op::Kill {
                key: task(TaskKind::PreStop),
                generation,
                body: body.clone(),
            },
        ),
        (
            "FORGET",
            Op::Forget {
                key: task(TaskKind::ReadyProbe),
                generation,
                body,
            },
        ),
        (
            "STOP",
            Op::Stop {
                key: task(TaskKind::HealthProbe),
                stop: stop(),
            },
        ),
        (
            "KILL_CHECK",
            Op::Kill {
                key: task(TaskKind::PublishCheck),
                generation,
                body: vec![],
            },
        ),
        (
            "KILL_RELOAD",
            Op::Kill {
                key: task(TaskKind::PublishReload),
                generation,
                body: vec![],
            },
        ),
        (
            "KILL_SOURCE",
            Op::Kill {
                key: task(TaskKind::ScaleSource),
                generation,
                body: vec![],
            },
        ),
        (
            "HOLD",
            Op::Hold {
                name: "log web/3".to_owned(),
            },
        ),
        (
            "RELEASE",
            Op::Release {
                name: "log web/3".to_owned(),
            },
        ),
        ("PONG", Op::Pong { number: u64::MAX }),
        (
            "NOTIFY",
            Op::Notify {
                text: "READY=1\nSTATUS=up".to_owned(),
            },
        ),
        ("EXIT", Op::Exit { code: 78 }),
        ("ECHO", Op::Echo { number: 128 }),
        (
            "PROMOTE",
            Op::Promote {
                key: slot(),
                generation,
                page: PageSpec {
                    fence: 300,
                    epoch: 2,
                    role: HOLDER,
                    timed: true,
                },
                body: vec![7],
            },
        ),
    ]
}

fn news() -> Vec<(&'static str, News)> {
    let mut all = vec![
        (
            "WELCOME",
            News::Welcome(Box::new(Welcome {
                version: 1,
                keeper: 4000,
                started: Moment(5),
                incarnation: 2,
                cookie: "c00c1e".to_owned(),
                recover: true,
                containment: Containment::Unit,
                cgroup: Some("/sys/fs/cgroup/l".to_owned()),
                asked: asked(),
            })),
        ),
        (
            "HELD",
            News::Held {
                name: "socket web/http".to_owned(),
            },
        ),
        (
            "ROW_VACANT",
            row(RowKey::Fleet(fleet()), Process::Vacant, Some(vec![9])),
        ),
        (
            "ROW_ALIVE_UNIT",
            row(slot(), alive(Containment::Unit), None),
        ),
        (
            "ROW_ALIVE_CGROUP",
            row(slot(), alive(Containment::Cgroup), None),
        ),
        (
            "ROW_ALIVE_GROUP",
            row(slot(), alive(Containment::Group), None),
        ),
        (
            "ROW_ALIVE_NAMESPACE",
            row(
                slot(),
                alive(Containment::Namespace {
                    init: 4241,
                    start_ticks: 987_653,
                }),
                None,
            ),
        ),
        (
            "ROW_CLEARING",
            row(slot(), Process::Clearing(exit(ExitStatus::Code(3))), None),
        ),
        (
            "ROW_GONE_SIGNAL",
            row(
                slot(),
                Process::Gone(exit(ExitStatus::Signal {
                    number: 9,
                    core: true,
                })),
                None,
            ),
        ),
    ];
    for (name, step) in [
        ("ROW_PREPARE", SpawnStep::Prepare),
        ("ROW_CGROUP", SpawnStep::Cgroup),
        ("ROW_CLONE", SpawnStep::Clone),
        ("ROW_JOIN_CGROUP", SpawnStep::JoinCgroup),
        ("ROW_DESCRIPTORS", SpawnStep::Descriptors),
        ("ROW_GROUP", SpawnStep::Group),
        ("ROW_LIMITS", SpawnStep::Limits),
        ("ROW_NICE", SpawnStep::Nice),
        ("ROW_AFFINITY", SpawnStep::Affinity),
        ("ROW_OOM_SCORE", SpawnStep::OomScore),
        ("ROW_USER", SpawnStep::User),
        ("ROW_NO_NEW_PRIVS", SpawnStep::NoNewPrivs),
        ("ROW_PARENT_DEATH", SpawnStep::ParentDeath),
        ("ROW_WORKING_DIR", SpawnStep::WorkingDir),
        ("ROW_EXEC", SpawnStep::Exec),
        ("ROW_KILLED_AT_BIRTH", SpawnStep::KilledAtBirth),
        ("ROW_PAGE", SpawnStep::Page),
        ("ROW_DEADLINE", SpawnStep::Deadline),
        ("ROW_NAMESPACE", SpawnStep::Namespace),
    ] {
        let status = ExitStatus::SpawnFailed { step, errno: 2 };
        all.push((name, row(slot(), Process::Gone(exit(status)), None)));
    }
    all.extend([
        ("CAUGHT", News::Caught),
        ("NODE", News::Node(asked())),
        (
            "NODE_KILL",
            News::Node(Asked {
                stopping: Stopping::Kill,
                ..Asked::default()
            }),
        ),
        ("NODE_NOTHING", News::Node(Asked::default())),
        (
            "REFUSED",
            News::Refused {
                key: slot(),
                after: Generation(7),
            },
        ),
        ("PING", News::Ping { number: 128 }),
        ("ECHOED", News::Echo { number: 128 }),
    ]);
    all
}

/// `NAME HEX` lines of `tests/wire.golden`.
fn golden(name: &str) -> Option<&'static str> {
    let lines = include_str!("wire.golden").lines();
    lines
        .filter_map(|line| line.split_once(' '))
        .find(|(found, _)| *found == name)
        .map(|(_, bytes)| bytes)
}

fn check<M>(examples: Vec<(&'static str, M)>)
where
    M: Serialize + for<'de> Deserialize<'de> + PartialEq + Debug + Clone,
{
    let mut missing = String::new();
    for (name, message) in examples {
        let bytes = encode(std::slice::from_ref(&message));
        let Some(expected) = golden(name) else {
            missing.push_str(&format!("{name} {}\n", hex::write(&bytes)));
            continue;
        };
        assert_eq!(
            hex::write(&bytes),
            expected,
            "{name} is written otherwise than before"
        );
        let old = decode::<M>(&hex::read(expected).unwrap()).unwrap();
        assert_eq!(old, [message], "{name} is read otherwise than before");
    }
    assert!(
        missing.is_empty(),
        "append to tests/wire.golden:\n{missing}"
    );
}

#[test]
fn the_bytes_of_every_op_stay() {
    let mut seen = [false; OPS];
    ops().iter().for_each(|(_, op)| seen[op_number(op)] = true);
    assert_eq!(seen, [true; OPS], "an example of each");
    for (name, op) in ops() {
        let bytes = encode(std::slice::from_ref(&op));
        assert_eq!(
            usize::from(bytes[3]),
            op_number(&op),
            "{name} has another place"
        );
    }
    check(ops());
}

#[test]
fn the_bytes_of_every_piece_of_news_stay() {
    let mut seen = [false; NEWS];
    news()
        .iter()
        .for_each(|(_, news)| seen[news_number(news)] = true);
    assert_eq!(seen, [true; NEWS], "an example of each");
    for (name, news) in news() {
        let bytes = encode(std::slice::from_ref(&news));
        assert_eq!(
            usize::from(bytes[3]),
            news_number(&news),
            "{name} has another place"
        );
    }
    check(news());
}

fn seat(state: SeatState) -> DeadlineNews {
    DeadlineNews::Seat(SeatReport {
        key: u64::MAX,
        fence: u64::MAX,
        until: Clocks::NEVER,
        state,
    })
}

fn deadline_ops() -> Vec<(&'static str, DeadlineOp)> {
    let until = Clocks {
        boottime: Moment(1 << 40),
        raw: Moment(1 << 39),
    };
    let (key, fence) = (seat_key(&worker()), 300);
    vec![
        ("ARM", DeadlineOp::Arm { key, fence, until }),
        ("DISARM", DeadlineOp::Disarm { key, fence }),
        (
            "WATCH",
            DeadlineOp::Watch {
                within: Span::millis(500),
            },
        ),
    ]
}

fn deadline_news() -> Vec<(&'static str, DeadlineNews)> {
    let late = Span::nanos(u64::MAX);
    vec![
        ("SEAT_FREE", seat(SeatState::Free)),
        ("SEAT_ARMED", seat(SeatState::Armed)),
        ("SEAT_FIRED", seat(SeatState::Fired { late })),
        ("SEATS_CAUGHT", DeadlineNews::Caught),
    ]
}

fn check_small<M>(examples: Vec<(&'static str, M)>)
where
    M: Serialize + for<'de> Deserialize<'de> + PartialEq + Debug + Clone,
{
    let mut missing = String::new();
    for (name, message) in examples {
        let mut packet = [0; SMALL_MAX];
        let bytes = encode_small(&message, &mut packet).expect("the largest values fit");
        let Some(expected) = golden(name) else {
            missing.push_str(&format!("{name} {}\n", hex::write(bytes)));
            continue;
        };
        assert_eq!(
            hex::write(bytes),
            expected,
            "{name} is written otherwise than before"
        );
        let old = decode_small::<M>(&hex::read(expected).unwrap()).unwrap();
        assert_eq!(old, message, "{name} is read otherwise than before");
        for length in 0..bytes.len() {
            assert!(
                decode_small::<M>(&bytes[..length]).is_err(),
                "{length} bytes of {name}"
            );
        }
        let mut newer = bytes.to_vec();
        newer[0] = 2;
        assert!(matches!(
            decode_small::<M>(&newer),
            Err(WireError::Version { found: 2 })
        ));
    }
    assert!(
        missing.is_empty(),
        "append to tests/wire.golden:\n{missing}"
    );
}

#[test]
fn the_bytes_of_every_word_about_deadlines_stay() {
    check_small(deadline_ops());
    check_small(deadline_news());
}

/// A line of the golden file that nobody checks would protect nothing.
#[test]
fn every_golden_line_has_its_example() {
    let names: Vec<&str> = ops()
        .iter()
        .map(|(name, _)| *name)
        .chain(news().iter().map(|(name, _)| *name))
        .chain(deadline_ops().iter().map(|(name, _)| *name))
        .chain(deadline_news().iter().map(|(name, _)| *name))
        .collect();
    let mut lines: Vec<&str> = include_str!("wire.golden")
        .lines()
        .map(|line| line.split_once(' ').unwrap().0)
        .collect();
    assert!(lines.iter().all(|line| names.contains(line)), "{lines:?}");
    let count = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), count, "a name stands there twice");
}

#[test]
fn messages_keep_their_order_and_a_packet_is_read_whole_or_not_at_all() {
    let all: Vec<Op> = ops().into_iter().map(|(_, op)| op).collect();
    let packet = encode(&all);
    assert!(packet.len() < PACKET_MAX);
    assert_eq!(decode::<Op>(&packet).unwrap(), all);
    for length in 0..packet.len() {
        assert!(
            decode::<Op>(&packet[..length]).is_err(),
            "{length} bytes of {}",
            packet.len()
        );
    }
    let mut longer = packet.clone();
    longer.push(0);
    assert!(matches!(decode::<Op>(&longer), Err(WireError::Trailing(1))));
    let mut newer = packet;
    newer[0] = 2;
    assert!(matches!(
        decode::<Op>(&newer),
        Err(WireError::Version { found: 2 })
    ));
    assert!(matches!(decode::<Op>(&[1]), Err(WireError::Short(1))));
    assert!(decode::<Op>(&encode::<Op>(&[])).unwrap().is_empty());
}

/// A variant of tomorrow is an error today, not another message.
#[test]
fn unknown_variants_are_refused() {
    assert!(matches!(
        decode::<Op>(&[1, 0, 1, OPS as u8]),
        Err(WireError::Decode { .. })
    ));
    assert!(matches!(
        decode::<News>(&[1, 0, 1, NEWS as u8]),
        Err(WireError::Decode { .. })
    ));
}
